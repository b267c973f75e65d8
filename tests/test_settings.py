"""A setting is stated once and has two ends; whatever a file or a command line holds,
the answer is one sentence."""
import io, json, math, os, shutil, subprocess, sys, textwrap
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field, fields, replace
from fractions import Fraction
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pytest, torch
from annotated_types import Len
from fastcore.docments import docments

from refused import refused
from tsynd.arguments import options
from tsynd.cli import main
from tsynd.core import (
    AutoencoderSettings, bounds, check_range, checked, ClassifierSettings, derived, expected, InputError,
    number, rows, Settings, shown, SynthesisSettings, takes, TargetingSettings, type_of, whole)
from tsynd.data import clear_phantom, image_dls, load_data, phantom, read_npz, subset
from tsynd.experiments import (
    ARMS, ArmSettings, callbacks, check_config, read_config, read_study, resolve, RunConfig,
    StudyConfig, to_toml)
from tsynd.models import (
    Autoencoder, autoencoder_learner, load_autoencoder, make_classifier, mc_logits, predict,
    train_autoencoder, train_classifier)
from tsynd.robustness import adversarial, ATTACKS, attack_suite, corrupt, perturb, pgd, robustness_table
from tsynd.targeting import synthesize, Synthesizer, TSynD

ROOT = Path(__file__).resolve().parents[1]
RECORDS = (AutoencoderSettings, ClassifierSettings, SynthesisSettings, TargetingSettings, RunConfig,
           ArmSettings)
STUDY = StudyConfig('s', ['phantom'], [20], 1, dict(baseline={}))
NUMBERS = [(k, f.name) for k in (*RECORDS, StudyConfig) for f in fields(k) if type_of(f.type) in (int, float)]


# One edit

SHOW = '''
    import json, inspect
    from tsynd.arguments import options
    from tsynd.data import image_dls
    from tsynd.experiments import ARMS, RunConfig, StudyConfig, to_toml
    from tsynd.targeting import Synthesizer, TSynD
    default = lambda f, name: inspect.signature(f).parameters[name].default
    told = {o[0]: o[3] for o in options()}
    bs = to_toml(StudyConfig('s', ['phantom'], [20], 1, dict(baseline={}))).split('\\nbs = ')[1].split()[0]
    print(json.dumps(dict(
        radius=[told['radius'], RunConfig().radius, default(TSynD, 'radius'), default(Synthesizer, 'radius'),
                TSynD(None).engine.radius,
                *(ARMS[a].settings['radius'] for a in ('mi', 'mi_default', 'random', 'mi_fgsm'))],
        bs=[told['bs'], RunConfig().bs, default(image_dls, 'bs'), float(bs)])))'''
EDITS = {'radius': ("in its standard deviations'] = .3", .37),
         'bs': ("'images in a batch at most'] = 32", 48)}

def test_changing_a_default_is_one_edit(tmp_path):
    shutil.copytree(ROOT/'tsynd', tmp_path/'tsynd', ignore=shutil.ignore_patterns('__pycache__'))
    file = tmp_path/'tsynd'/'core'/'defaults.py'
    text = file.read_text(encoding='utf-8')
    for old, new in EDITS.values():
        assert text.count(old) == 1
        text = text.replace(old, f"{old.rpartition(' ')[0]} {new}")
    file.write_text(text, encoding='utf-8')
    res = subprocess.run([sys.executable, '-W', 'ignore', '-c', textwrap.dedent(SHOW)], cwd=tmp_path,
                         env=os.environ | dict(PYTHONPATH=str(tmp_path)), capture_output=True, text=True)
    assert res.returncode == 0, res.stderr
    for name, (told, *found) in json.loads(res.stdout.splitlines()[-1]).items():
        assert f'default: {EDITS[name][1]:g}' in told and set(found) == {EDITS[name][1]}, (name, told, found)

def test_signatures_tell_defaults_and_words():
    for f, kind in ((TSynD, TargetingSettings), (Synthesizer, SynthesisSettings)):
        par, words = signature(f).parameters, docments(f)
        told = {k.name: (par[k.name].default, words[k.name]) for k in rows(kind)}
        assert told == {k.name: (k.value, k.words) for k in rows(kind)}
    assert all(words for _, _, _, words in options())
    assert [n for n, *_ in options()] == [r.name.replace('_', '-') for r in rows(RunConfig)]
    assert {k for a in ARMS.values() for k in a.settings} <= {f.name for f in fields(ArmSettings)}


# Both ends

def test_every_setting_has_words_and_a_default_that_is_allowed():
    for k in RECORDS:
        checked(k())
        assert all(r.words for r in rows(k)), k
    assert check_config(STUDY) == STUDY and all(r.words for r in rows(STUDY))

@pytest.mark.parametrize('kind, name', NUMBERS, ids=lambda v: getattr(v, '__name__', v))
def test_a_number_has_two_ends_and_they_are_where_they_are_said_to_be(kind, name):
    b, whole_number = bounds(kind, name), bounds(kind, name)['integer']
    assert math.isfinite(b['lo']) and math.isfinite(b['hi']) and b['lo'] < b['hi']
    step = 1 if whole_number else 1e-9
    made = lambda v: replace(STUDY if kind is StudyConfig else kind(), **{name: v})
    inside = [b['hi'], b['lo']+step if b['open_lo'] else b['lo']]
    for v in inside: checked(made(v)); check_range(name, v, **b)
    wrong = [b['lo']-step, b['hi']*(1+1e-9)+step, math.nan, math.inf, -math.inf, 10**400, -10**400, 10**5000,
             '3', True, [1], {}]
    for v in [*wrong, *([b['lo']] if b['open_lo'] else []), *([1.5] if whole_number else [])]:
        for refuse in (lambda: checked(made(v)), lambda: check_range(name, v, **b)):
            with refused(name, f"at most {b['hi']}") as e: refuse()
            assert len(str(e.value)) < 250

@pytest.mark.parametrize('value', [np.int64(3), np.array(3), torch.tensor(3), np.float64(.3), np.float32(.5),
                                   np.bool_(True)], ids=str)
def test_numbers_of_numpy_and_torch_are_numbers(value):
    name = {'i': 'every', 'f': 'share', 'b': 'warm'}[np.asarray(value).dtype.kind]
    kept = getattr(checked(TargetingSettings(**{name: value})), name)
    assert kept == value and json.loads(json.dumps(kept)) == kept

def test_a_fraction_of_any_size_is_compared():
    check_range('x', Fraction(1, 3), lo=0, hi=1)
    with refused('x', found=Fraction(10**400)): check_range('x', Fraction(10**400), lo=0, hi=1)

def test_what_is_shown_is_short():
    values = ('x'*10**6, list(range(10**6)), 10**400, 10**5000, [[10**5000]],
              {str(i): i for i in range(10**4)}, [[[[[[[[[[]]]]]]]]]])
    for v in values: assert len(shown(v)) < 500 and '\n' not in shown(v)
    assert shown(.3) == '0.3' and shown("a'b") == repr("a'b")

@pytest.mark.parametrize('field, call', [
    ('bs', lambda: image_dls(phantom(), bs=10**9)), ('size', lambda: phantom(size=100000)),
    ('size', lambda: phantom(size=10**5000)), ('seed', lambda: phantom(seed=2**63)),
    ('n_train', lambda: phantom(n_train=10**15)), ('subset', lambda: subset(phantom(), 10**5000)),
    ('seed', lambda: subset(phantom(), 10, seed=2**70)), ('T', lambda: TSynD(None, T=10**9)),
    ('weight', lambda: TSynD(None, weight=1e308)), ('steps', lambda: Synthesizer(None, steps=10**400)),
    ('alpha', lambda: callbacks('mixup', alpha=1e308)), ('steps', lambda: callbacks('pgd', steps=10**9)),
    ('times', lambda: callbacks('random', times=math.inf))])
def test_arguments_have_ends_as_well(field, call):
    with refused(field) as e: call()
    assert len(str(e.value)) < 250

# Whatever a function is given

DATA = phantom(16, 8, 8, size=12)
X, Y = DATA.train.batch(slice(0, 4))
AE, MODEL = Autoencoder(width=4, latent_channels=2).eval(), make_classifier()
SEEDS = 10**400, 10**5000, 2**63, -1, 1.5, True, '3', None, math.nan, [1]
WHOLE = 10**30, 10**400, 10**5000, 0, -1, 1.5, True, '3', math.nan, math.inf, [1], np.array([1, 2])
REAL = 1e308, 10**400, -1., math.nan, math.inf, '0.3', [.1], torch.tensor([.1, .2])
TEXTS = 5, None, True, ['mi'], b'mi', 'x'*5000, 'a\0b', 'a\nb', '\ud800'
PATHS = 5, b'x', ['x'], 'x'*5000, 'a\0b', 'a\nb', '\ud800', '~no_such_user/x'
FUNCTIONS = [
    (phantom, dict(seed=SEEDS[:7], n_train=(10**30, 10**400, -1, 1.5, True, '3'), size=(100_000, *WHOLE),
                   holes=('x', 3, None, [1], {'a': 3}, {'a': {}}, {'a': {'q': (0, 1)}}, {'a': {'x': 3}},
                          {'a': {'x': ('a', 'b')}}))),
    (clear_phantom, dict(n_train=WHOLE)), (load_data, dict(name=TEXTS, seed=SEEDS)),
    (partial(load_data, 'breastmnist'), dict(root=PATHS, size=(96, *WHOLE))),
    (read_npz, dict(path=(*PATHS, '/dev/zero'))),
    (partial(subset, DATA, 8), dict(seed=SEEDS)), (partial(subset, DATA), dict(n=WHOLE)),
    (partial(image_dls, DATA), dict(bs=WHOLE, seed=SEEDS, device=('x'*5000, 'a\0b', True, ['cpu']))),
    (partial(train_autoencoder, DATA),
     dict(steps=WHOLE, lr=(1e-300, *REAL), bs=WHOLE, seed=SEEDS, width=WHOLE,
                                            latent_channels=WHOLE, noise=REAL, device=('tpu', 'a\nb', True))),
    (partial(train_classifier, DATA),
     dict(model=TEXTS, epochs=WHOLE, lr=(1e-300, *REAL), seed=SEEDS, p=REAL, bs=WHOLE)),
    (make_classifier, dict(model=TEXTS, ch=WHOLE, n_classes=WHOLE, p=REAL)),
    (load_autoencoder, dict(path=PATHS)), (partial(predict, MODEL, X), dict(bs=WHOLE)),
    (partial(mc_logits, MODEL, X), dict(T=WHOLE, seed=SEEDS)),
    (partial(TSynD, AE),
     dict(objective=TEXTS, T=WHOLE, steps=WHOLE, radius=(1e-300, 0., *REAL), step=(1e-300, *REAL),
                              weight=REAL, share=(1e-300, *REAL), every=WHOLE, seed=SEEDS[:7])),
    (partial(synthesize, AE, MODEL, X, Y), dict(seed=SEEDS, task=TEXTS)),
    (partial(perturb, X),
     dict(strength=REAL, seed=SEEDS, bs=WHOLE, kinds=(5, None, ['x']), ranges=(5, 'x', {'noise': 1e308}))),
    (partial(corrupt, X, 'pixelate', severity=1),
     dict(severity=(10**30, -1, 1.5, True, '1', None), seed=SEEDS, bs=WHOLE)),
    (partial(pgd, MODEL, X, Y, .01),
     dict(steps=WHOLE, restarts=WHOLE, seed=SEEDS, step_size=REAL, bs=WHOLE, task=TEXTS)),
    (partial(ATTACKS['PGD-L2'], MODEL, X, Y), dict(eps=REAL)),
    (partial(attack_suite, MODEL, X, Y, 'binary-class'), dict(eps=REAL, seed=SEEDS, names=(5, None, 'x'))),
    (partial(robustness_table, MODEL, X, Y, 'binary-class'),
     dict(eps=(5, 'x', [1e308], ['x'], None), steps=WHOLE, seed=SEEDS)),
    (partial(adversarial, MODEL, X, Y), dict(eps=REAL, steps=WHOLE, seed=SEEDS)),
    (lambda **given: resolve(RunConfig(**given), DATA),
     dict(epochs=WHOLE, seed=SEEDS, lr=(1e308, 1e-300), dataset=TEXTS, autoencoder=PATHS, device=TEXTS,
          model=TEXTS))]

@pytest.mark.parametrize('function, given', FUNCTIONS,
                         ids=lambda v: getattr(getattr(v, 'func', v), '__name__', ''))
def test_whatever_a_function_is_given_is_answered_in_a_sentence(function, given):
    for name, values in given.items():
        for v in values:
            try: function(**{name: v})
            except InputError as e: assert len(str(e)) < 700 and len(str(e).splitlines()) == 1, (name, e)
            else: assert v is None, (name, shown(v))        # which may be a default

@pytest.mark.parametrize('seed', [np.int64(3), np.array(3), torch.tensor(3)], ids=lambda v: type(v).__name__)
def test_a_seed_of_numpy_or_torch_is_a_seed(seed):
    assert phantom(8, 4, 4, size=12, seed=seed).md5 == phantom(8, 4, 4, size=12, seed=3).md5
    assert torch.equal(perturb(X, seed=seed), perturb(X, seed=3))


# The mechanism

@dataclass(kw_only=True)
class Small(Settings):
    count: Annotated[whole(1, 9), 'of things'] = 3
    ratio: Annotated[number(0, 1, open_lo=True)|None, 'of others'] = None
    kind: Annotated[Literal['a','b'], 'which'] = 'a'
    many: Annotated[list[whole(1, 5)|Literal['all']], Len(1, 3), 'sizes'] = field(default_factory=lambda: [1])

@pytest.mark.parametrize('name, value, found, said', [
    ('count', 0, 0, 'a whole number, at least 1 and at most 9'),
    ('ratio', 0, 0, 'a number, more than 0 and at most 1'), ('kind', 'c', 'c', 'a or b'),
    ('many', [], [], 'a list of 1 to 3'), ('many', [1, 9], 9, 'a list of 1 to 3'),
    ('many', [1]*4, [1]*4, 'a list of 1 to 3')])
def test_the_first_that_is_wrong_is_named(name, value, found, said):
    with refused(name, said, found=found): checked(Small(**{name: value}))
    assert checked(Small(ratio=None, many=['all', 2])) == Small(many=['all', 2])

def test_a_function_takes_settings_one_by_one():
    @takes(derived(Small, 'count', 'kind', count=5))
    def f(x, settings, last=0): return x, settings.count, settings.kind, last
    assert f(1) == (1, 5, 'a', 0) and f(1, 2, 'b', 4) == f(x=1, kind='b', count=2, last=4) == (1, 2, 'b', 4)
    for wrong in (lambda: f(), lambda: f(1, nothing=2), lambda: f(1, 2, count=2),
                  lambda: derived(Small, nothing=1)):
        with pytest.raises(TypeError): wrong()
    with refused('count', found=10): f(1, count=10)
    assert expected(Small.__annotations__['ratio']) == 'a number, more than 0 and at most 1'


# A hostile file

GOOD = 'datasets = ["phantom"]\nn = [20]\nseeds = 2\n[arms.baseline]\n[arms.mi]\nradius = 0.5\n'
DIGITS = '9'*5000

@pytest.mark.parametrize('old, new', [
    *(('seeds = 2', f'seeds = {v}') for v in (
        '1e9', '1000000000', DIGITS, '9'*400, '-1', 'true', '"2"', 'nan', 'inf', '[1]', '{}', '1979-05-27',
        '['*1000+']'*1000, '['*100+']'*100)),
    *(('seeds = 2', f'seeds = 2\n{line}') for line in (
        'bs = 1000000000', 'bs = 1e9', 'first_seed = 9223372036854775807', 'lr = 1e308', 'lr = 1e999',
        'lr = nan', 'size = 100000', f'size = {DIGITS}', 'updates = 10000000000', 'epochs = 9999999',
        'ae_steps = 1000000000', 'ae_bs = 1000000', 'pgd_steps = 1000000', 'eps = [nan]',
        f'eps = [{"1, "*500}1]', f'eps = [{DIGITS}]', 'dropout = 1.0', 'attack_n = 0',
        'name = "a\\u0000b"', 'name = "a\\nb"', 'name = "a/b"', 'name = ".."', 'name = ""',
        f'name = "{"x"*101}"', 'model = "\\u0000"', 'device = "a\\nb"', 'split = 5', 'seeds = 3',
        '"\\u0000" = 1', f'{"k"*5000} = 1', 'headline = [[[[[[[["mi"]]]]]]]]',
        f'headline = [["mi", "baseline", "clean", "auc", {"["*100}{"]"*100}]]',
        f'headline = [["mi", "baseline", "clean", "auc", {DIGITS[:400]}]]', 'corruptions = ["\\u0000"]')),
    *(('[20]', f'[{v}]') for v in (
        '1e9', '1000000000', DIGITS[:400], '"half"', '20, 20', ', '.join(map(str, range(2, 200))))),
    *(('["phantom"]', v) for v in (
        '["a/b"]', '["a\\u0000b"]', '[["phantom"]]', '["phantom", "phantom"]', f'["{"x"*5000}"]')),
    *(('radius = 0.5', v) for v in (
        'radius = 1e308', 'radius = nan', f'radius = {"9"*400}', 'radius = [[[]]]', 'radius = "far"',
        'steps = 1000000000', 'gate = {}', 'longer = 1e308', 'lr = 1e308', 'lr = [1]', 'arm = ["mi"]',
        'arm = "\\u0000"', '"\\u0000" = 1', 'radius = 0.5\nradius = 0.6')),
    ('arms.mi', 'arms."a\\nb"'), ('arms.mi', f'arms."{"x"*200}"'),
    ('[arms.baseline]', '\n'.join(f'[arms.a{i}]\narm = "baseline"' for i in range(1100))),
    ('n = [20]\nseeds = 2', f'n = {list(range(2, 102))}\nseeds = 2000')], ids=lambda v: v[:40])
def test_a_hostile_file_is_refused_in_one_sentence(tmp_path, old, new):
    assert GOOD.count(old) == 1
    (tmp_path/'x.toml').write_text(GOOD.replace(old, new), encoding='utf-8')
    stopped(['study', str(tmp_path/'x.toml'), '--out', str(tmp_path/'out')])
    assert not (tmp_path/'out').exists()

@pytest.mark.parametrize('raw', [b'\xff\xfe', b'name = "\xff"', b'\0', b'x'*2_000_000, b'', b'[[[['])
def test_a_file_that_is_no_text_is_refused(tmp_path, raw):
    (tmp_path/'x.toml').write_bytes(raw)
    stopped(['study', str(tmp_path/'x.toml')])

@pytest.mark.parametrize('path', ['.', '/dev/zero', '/dev/null', 'x'*5000, 'a\0b', 'a\nb', '\ud800'],
                         ids=ascii)
def test_what_is_no_file_is_refused(path): stopped(['study', path])

def stopped(argv):
    "Exit status 2, one line, no traceback; and nothing was trained, which takes longer than a test may"
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try: code = main(argv)
        except SystemExit as e: code = e.code
    said = err.getvalue()
    assert (code, out.getvalue(), said.count('\n')) == (2, '', 1), said
    assert said.startswith('tsynd') and 'Traceback' not in said and len(said) < 1500
    assert all(c.isprintable() for c in said[:-1])


# A hostile command line

@pytest.fixture
def no_training(monkeypatch, tmp_path):
    def never(*args, **kwargs): raise AssertionError('training began')
    for f in ('train_autoencoder', 'train_classifier'):
        monkeypatch.setattr(f'tsynd.experiments.experiment.{f}', never)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('MEDMNIST_ROOT', str(tmp_path))

VALUES = DIGITS, '9'*400, '-1', '1e308', 'nan', 'inf', '-inf', 'x'*5000, 'a\nb', 'a\0b', '\ud800', ''

@pytest.mark.parametrize('value', VALUES, ids=lambda v: ascii(v)[:12])
@pytest.mark.parametrize('option', [f'--{n}' for n, kind, *_ in options() if kind in (int, float)])
def test_a_hostile_number_is_refused(no_training, option, value): stopped(['run', f'{option}={value}'])

@pytest.mark.parametrize('argv', [
    *(['run', v] for v in VALUES[:10] if v[0] != '-'),
    *(['run', f'--{o}={v}'] for o in ('model', 'device', 'objective', 'autoencoder')
      for v in VALUES if v or o != 'autoencoder'),
    *(['run', f'--{o}={v}', 'breastmnist', '--size=28'] for o in ('root', 'out')
      for v in ('a\nb', 'a\0b', '\ud800')), ['run', '--out', 'x'*5000], ['run', '--x'*5000], ['x'*5000],
    *(['study', 'x.toml', f'--jobs={v}'] for v in VALUES),
    *(['report', v] for v in VALUES if v and v[0] != '-')], ids=lambda v: ascii(v)[:40])
def test_a_hostile_word_is_refused(no_training, argv):
    Path('x.toml').write_text(GOOD)
    stopped(argv)
    assert [p.name for p in Path().iterdir()] == ['x.toml']


# What is on record

@pytest.mark.parametrize('path', sorted((ROOT/'nbs'/'studies').rglob('*.toml')),
                         ids=lambda p: '/'.join(p.parts[-2:]))
def test_studies_on_record_are_read_and_written_again(path, tmp_path):
    c = read_study(path.parent).config if path.name == 'study.toml' else read_config(path)
    (tmp_path/path.name).write_text(to_toml(c))
    assert read_config(tmp_path/path.name) == c
    later = c.cell == 'generator' or c.pool                                 # the others are of version 0.1
    assert later or (c.ae_steps, c.ae_bs) == (400, 64)

def test_what_version_0_1_did_not_write_down_is_its_recipe_and_not_todays(tmp_path):
    text = to_toml(replace(STUDY, ae_steps=400))
    old = '\n'.join(l for l in text.splitlines() if not l.startswith('ae_bs'))
    (tmp_path/'study.toml').write_text(old)
    assert (read_study(tmp_path).config.ae_steps, read_study(tmp_path).config.ae_bs) == (400, 64)
    (tmp_path/'mine.toml').write_text(GOOD)
    c = read_config(tmp_path/'mine.toml')
    assert (c.ae_steps, c.ae_bs) == (AutoencoderSettings.steps, AutoencoderSettings.bs)

def test_one_recipe_for_the_autoencoder():
    steps, bs = AutoencoderSettings.steps, AutoencoderSettings.bs
    for f in (train_autoencoder, autoencoder_learner):
        assert [signature(f).parameters[k].default for k in ('steps', 'bs')] == [steps, bs]
    assert {(c.ae_steps, c.ae_bs) for c in (RunConfig(), STUDY)} == {(steps, bs)}
    assert 'train_autoencoder(data)' in (ROOT/'README.md').read_text(encoding='utf-8')
