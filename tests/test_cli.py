"""The command: what it says, what it refuses in one line, what it leaves behind,
and that it runs offline and from a wheel."""
import hashlib, io, json, math, os, re, shlex, shutil, signal, subprocess, sys, textwrap
import threading, time, urllib.error, urllib.request, zipfile
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path

import numpy as np, pytest, torch
from cheap import cheap
from layouts import make_arrays, write_npz
from processes import Here, process, wait_for

import tsynd
from tsynd.arguments import options, parser
from tsynd.cli import default_out, main
from tsynd.core import begun, InputError, resumable
from tsynd.data import load_npz, medmnist_info, phantom
from tsynd.experiments import run, RunConfig
from tsynd.manual import EXAMPLES
from tsynd.models import Autoencoder, make_classifier, save_model

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = Path(sys.executable).parent
SMOKE = ('--quick', '--size', '12', '--subset', '16', '--ae-steps', '4', '--epochs', '2', '--steps', '1',
         '--T', '4', '--bs', '8', '--attack-n', '16')
FILES = {'metrics.json', 'synthetic.npz', 'provenance.csv', 'report.html', 'figures', 'models', 'bundle'}


def said(*argv):
    "Exit status, standard output and standard error of `tsynd …` in this process"
    out, err = io.StringIO(), io.StringIO()
    with cheap(), redirect_stdout(out), redirect_stderr(err):
        try: code = main([str(a) for a in argv])
        except SystemExit as e: code = e.code
    return code, out.getvalue(), err.getvalue()

def screen(text):
    """The lines that a terminal shows, where a carriage return goes back to the start of the line;
    without the MD5 warning of made-up files and bars that are full"""
    lines = []
    for raw in text.split('\n'):
        line = ''
        for part in raw.split('\r'): line = part + line[len(part):]
        if line.strip() and not re.match(r'tsynd: warning: .* has MD5|robustness: 100%', line):
            lines.append(line.rstrip())
    return lines

def listing(folder):
    "What is in a folder: names, and checksums of the files"
    md5 = lambda p: hashlib.md5(p.read_bytes()).hexdigest() if p.is_file() else ''
    return sorted((p.relative_to(folder).as_posix(), md5(p)) for p in folder.rglob('*'))

def refused(folder, *argv, words, code=2):
    "Run in `folder`: one line on stderr with `words`, nothing on stdout, nothing left behind"
    before = listing(folder)
    got, out, err = said(*argv)
    assert got == code and out == ''
    shown = screen(err)
    assert len(shown) == 1 and re.match(r'tsynd[ \w]*: \S', shown[0]) and 'Traceback' not in err, err
    assert 'Exception' not in shown[0]
    for w in words: assert w in shown[0], shown[0]
    assert listing(folder) == before

@pytest.fixture
def here(tmp_path, monkeypatch):
    "An empty working folder without data and without a network; `tsynd` would write `runs` into it"
    (tmp_path/'here').mkdir(); (tmp_path/'home').mkdir()
    monkeypatch.chdir(tmp_path/'here')
    monkeypatch.setenv('HOME', str(tmp_path/'home')); monkeypatch.delenv('MEDMNIST_ROOT', raising=False)
    def unreachable(*args, **kwargs): raise urllib.error.URLError('no network')
    monkeypatch.setattr(urllib.request, 'urlopen', unreachable)
    return tmp_path/'here'

@pytest.fixture
def no_training(monkeypatch):
    "What is refused under this was refused before anything long began"
    def never(*args, **kwargs): raise AssertionError('training began')
    for f in ('train_autoencoder', 'train_classifier'):
        monkeypatch.setattr(f'tsynd.experiments.experiment.{f}', never)


# What is said

def test_every_option_reaches_the_configuration(monkeypatch, tmp_path):
    seen = []
    def take(c, out, root=None, *args, **kwargs):
        seen.append((c, Path(out), root)); raise InputError('enough', 'enough')
    monkeypatch.setattr('tsynd.experiments.run', take)            # where the command finds it
    monkeypatch.chdir(tmp_path)
    values = {int: 7, float: .7, str: 'name'}
    for name, typ, default, _ in options():
        value = not default if typ is bool else dict(budget=1.7, resize='pad').get(name, values[typ])
        option = f"--{'no-' if default is True else ''}{name}"
        argv = [value] if name == 'dataset' else [option] if typ is bool else [option, value]
        assert said('run', *argv)[0] == 2
        assert seen.pop()[0] == replace(RunConfig(), **{name.replace('-', '_'): value})
    assert said('run', 'breastmnist', '--root', 'data', '--out', 'there', '--quick')[0] == 2
    assert seen.pop() == (RunConfig('breastmnist', quick=True), Path('there'), 'data')
    assert said('run')[0] == 2 and seen.pop() == (RunConfig(), Path('runs')/'phantom-mi-seed0', None)

@pytest.mark.parametrize('argv, see', [(('run','--subsett','5'), 'tsynd run --help'),
                                       (('study','x.toml','--job','2','more'), 'tsynd study --help'),
                                       (('report','a','--b'), 'tsynd report --help')])
def test_options_that_are_not_known(argv, see):
    code, out, err = said(*argv)
    assert (code == 2 and not out and err.count('\n') == 1 and err.startswith('tsynd: ')
            and f'see {see}' in err and any(a in err for a in argv[1:]))

def test_a_run_that_made_no_image_says_so(here):
    code, _, err = said('run', *SMOKE, '--warmup', '1', '--out', 'x')
    assert code == 0 and 'tsynd: warning: TSynD made no image in this run' in err

def test_help_teaches_with_examples_that_are_commands():
    code, text, err = said('run', '--help')
    assert code == 0 and err == '' and EXAMPLES in text
    for option in ('--root', '--out', '--quick', 'MEDMNIST_ROOT',
                   *(f'--{n}' for n, *_ in options() if n != 'dataset')):
        assert option in text
    lines = [re.split(r'\s{3,}', line.strip())[0] for line in EXAMPLES.splitlines()
             if line.startswith('  tsynd')]
    assert len(lines) >= 5
    commands = {parser().parse_args(shlex.split(line)[1:]).command for line in lines}
    assert commands == {'run', 'train', 'predict', 'audit', 'generate', 'readers', 'study', 'report'}
    assert all(name in EXAMPLES for name in medmnist_info())

def test_version_and_no_command():
    assert said('--version') == (0, f'tsynd {tsynd.__version__}\n', '')
    code, out, err = said()
    assert code == 0 and 'usage: tsynd' in out and err == ''

def test_default_folder_is_new_and_named_after_the_options(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert default_out() == Path('runs/phantom-mi-seed0')
    names = {str(default_out(**c)) for c in (dict(), dict(dataset='octmnist'), dict(subset=9), dict(size=64),
                                             dict(objective='random'), dict(seed=1), dict(quick=True))}
    assert len(names) == 7
    for expected in ('', '-2', '-3'):
        out = default_out(bs=5)
        assert out == Path(f'runs/phantom-mi-seed0{expected}') and not out.exists()
        out.mkdir(parents=True)


# In a process of its own, offline, and from a wheel

WATCH = '''
import os, sys
def watch(event, args):
    if event in ('socket.connect', 'socket.getaddrinfo', 'socket.gethostbyname',
                 'socket.sendto', 'socket.sendmsg', 'urllib.Request'):
        with open(os.environ['WATCH_LOG'], 'a') as f: f.write(f'{event} {args[1:]}' + chr(10))
        raise OSError('the network is closed')
sys.addaudithook(watch)
'''

def offline(folder, *argv, path=()):
    "Run a command in a new folder; whatever asks for the network fails, and is written down"
    (folder/'site').mkdir(parents=True)
    (folder/'site'/'sitecustomize.py').write_text(WATCH)
    (folder/'cwd').mkdir(); (folder/'home').mkdir()
    env = {k: v for k, v in os.environ.items() if not re.match(r'(?i).*_proxy$|MEDMNIST_ROOT|PYTHONPATH', k)}
    paths = [folder/'site', *path, *filter(None, os.environ.get('PYTHONPATH', '').split(os.pathsep))]
    env |= dict(HOME=str(folder/'home'), WATCH_LOG=str(folder/'log'),
                PYTHONPATH=os.pathsep.join(map(str, paths)), OMP_NUM_THREADS='1')
    res = subprocess.run([str(a) for a in argv], cwd=folder/'cwd', env=env, capture_output=True, text=True)
    return res, (folder/'log').read_text().splitlines() if (folder/'log').exists() else []

def check_run(folder, data):
    assert {p.name for p in folder.iterdir()} == FILES
    m = json.loads((folder/'metrics.json').read_text())
    assert m['data']['name'] == data
    assert m['conditions'] == ['clean', 'perturbed', 'PGD 0.25/255', 'PGD 0.5/255', 'PGD 1/255']
    return m

@pytest.mark.xdist_group('watch')
def test_the_watch_on_the_network_works(tmp_path):
    "Otherwise the next tests prove nothing"
    ask = "import socket\ntry: socket.create_connection(('127.0.0.1', 9))\nexcept OSError as e: print(e)"
    res, asked = offline(tmp_path/'a', sys.executable, '-c', ask)
    assert (res.stdout.strip() == 'the network is closed' and len(asked) == 1
            and asked[0].startswith('socket.getaddrinfo'))

@pytest.mark.xdist_group('watch')
@pytest.mark.parametrize('argv', [['--help'], ['run', '--help'], ['--version'], ['run', '--subset', 'many']],
                         ids=' '.join)
def test_help_imports_nothing_heavy(tmp_path, argv):
    code = f'''
        import sys
        from tsynd.cli import main
        try: main({argv!r})
        except SystemExit: pass
        heavy = {{'torch', 'fastai', 'numpy', 'pandas', 'matplotlib', 'medmnist'}}
        print('loaded:', sorted(heavy & set(sys.modules)))'''
    res, asked = offline(tmp_path, sys.executable, '-c', textwrap.dedent(code))
    assert res.returncode == 0 and res.stdout.splitlines()[-1] == 'loaded: []' and asked == []

@pytest.mark.xdist_group('wheel')
def test_the_wheel_runs_offline_outside_the_source_tree(distributions, tmp_path):
    target, quiet = tmp_path/'target', dict(cwd=tmp_path, capture_output=True, text=True)
    wheel, = distributions.folder.glob('*.whl')
    names = zipfile.ZipFile(wheel).namelist()
    assert {n.split('/')[0] for n in names} == {'tsynd', f'tsynd-{tsynd.__version__}.dist-info'}
    assert {n for n in names if n.startswith('tsynd/')} == {
        f for f in distributions.files if f.startswith('tsynd/')}
    subprocess.run([sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps', '--no-index', '--target',
                    target, wheel], check=True, **quiet)
    res, _ = offline(tmp_path/'a', sys.executable, '-c',
                     'import tsynd, tsynd.cli; print(tsynd.__file__, tsynd.cli.__file__)', path=[target])
    assert all(target in Path(f).parents for f in res.stdout.split()) and res.returncode == 0
    res, asked = offline(tmp_path/'b', sys.executable, target/'bin'/'tsynd', 'run', '--quick', '--size', '16',
                         '--ae-steps', '5', path=[target])
    assert res.returncode == 0 and asked == [], res.stderr[-2000:]
    assert 'Warning' not in res.stderr
    assert all(f'{k}:' in res.stderr for k in ('autoencoder', 'baseline', 'tsynd', 'robustness'))
    assert re.search(r'\[\d\d:\d\d<\d\d:\d\d', res.stderr), 'the time left'
    printed = re.search(r'report: (\S+)', res.stdout)[1]
    assert printed == 'runs/phantom-16px-mi-seed0-quick/report.html' and 'balanced accuracy' in res.stdout
    m = check_run((tmp_path/'b'/'cwd'/printed).parent, 'phantom')
    assert m['versions']['tsynd'] == tsynd.__version__
    assert (m['data']['train'], m['data']['test']) == (100, 100)
    assert m['config']['quick'] is True and m['data']['shape'] == [1, 16, 16]
    assert [p.name for p in (tmp_path/'b'/'cwd').iterdir()] == ['runs']


# Bad input: parameters

@pytest.mark.parametrize('argv, words', [
    ('brestmnist', ["'brestmnist'", 'unknown', 'breastmnist']), ('breastmnist3d', ['unknown', 'breastmnist']),
    ('xyz', ['unknown', 'known are phantom', 'octmnist']),
    ('PHANTOM', ['did you mean phantom']),
    ('--subset 0', ['subset is 0', 'at least 2']), ('--subset 1', ['subset is 1', 'at least 2']),
    ('--subset -5', ['subset is -5', 'at least 2']),
    ('--subset 201', ['subset is 201', 'only 200']),
    ('--subset many', ["'many'", '--subset', 'whole number']), ('--subset 1.5', ["'1.5'", '--subset']),
    ('--bs 0', ['bs is 0', 'at least 1']), ('--bs -1', ['bs is -1']), ('--T 1', ['T is 1', 'at least 2']),
    ('--T 0', ['T is 0']), ('--T 0 --objective random', ['T is 0', 'at least 1']),
    ('--radius 0', ['radius is 0.0', 'at least 0.0001']),
    ('--radius -1', ['radius is -1.0', 'at least 0.0001']),
    ('--radius 1e-300', ['radius is 1e-300', 'at least 0.0001']),
    ('--lr 1e308', ['lr is 1e+308', 'at most 10']),
    ('--root data', ['root is', 'the phantom needs no folder', 'breastmnist']),
    ('mine.npz', ["'mine.npz'", 'unknown', 'no folder, table or npz file']),
    ('--resize stretch', ['resize is', 'crop or pad']), ('--label-column dx', ['label_column', './phantom']),
    ('--radius nan', ['radius is nan']), ('--radius inf', ['radius is inf']),
    ('--steps 0', ['steps is 0', 'at least 1']), ('--epochs 0', ['epochs is 0', 'at least 1']),
    ('--ae-steps 0', ['steps is 0', 'at least 1']),
    ('--warmup 2', ['warmup is 2.0', 'at most 1']), ('--warmup -1', ['warmup is -1.0']),
    ('--weight -1', ['weight is -1.0', 'at least 0']), ('--weight inf', ['weight is inf']),
    ('--share 0', ['share is 0.0', 'at least 0.0001']), ('--share 1.5', ['share is 1.5', 'at most 1']),
    ('--every 0', ['every is 0', 'at least 1']),
    ('--lr 0', ['lr is 0.0', 'at least 1e-06']), ('--lr nan', ['lr is nan']),
    ('--seed -1', ['seed is -1', 'at least 0']),
    ('--seed 99999999999999999999999', ['seed is 9999', 'at most']),
    ('--objective foo', ["'foo'", 'expected one of mi', 'reconstruction']),
    ('--model foo', ["'foo'", 'small_resnet, resnet18 or timm:NAME']),
    ('--model timm:foo', ["'timm:foo'", 'no model']),
    ('--size 30', ['size is 30', 'multiple of 4']), ('--size 0', ['size is 0', 'at least 4']),
    ('breastmnist --size 30', ['size is 30', '28, 64, 128 and 224']),
    ('--device tpu', ["'tpu'", 'cpu, cuda or mps']), ('--device meta', ["'meta'", '--device cpu']),
    ('--autoencoder nowhere', ['nowhere.json', 'does not exist', '.safetensors']),
    ('--nosuch', ['--nosuch', '--help']), ('phantom twice', ['twice', '--help'])])
def test_a_parameter_is_refused(here, no_training, argv, words):
    refused(here, 'run', *argv.split(), words=words)

@pytest.mark.parametrize('argv, words', [(['ru'], ["'ru'", 'run']), (['report'], ['FOLDER', '--help']),
                                         (['--quick'], ['--quick'])], ids=str)
def test_a_command_is_refused(here, argv, words): refused(here, *argv, words=words)

def test_cuda_is_refused_where_there_is_none(here, no_training, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    refused(here, 'run', '--device', 'cuda', words=["'cuda'", '--device cpu'])

def test_a_cuda_device_beyond_the_last_is_refused(here, no_training, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    refused(here, 'run', '--device', 'cuda:1', words=["'cuda:1'"])

def test_a_model_for_another_size_is_refused(here, no_training):
    refused(here, 'run', '--model', 'timm:vit_tiny_patch16_224', words=['timm:vit_tiny_patch16_224', '28'])

def test_training_that_diverges_is_refused(here, monkeypatch):
    monkeypatch.setattr('tsynd.models.classifier.Classifier.forward',
                        lambda self, x: self.out(self.drop(self.trunk(x)))*math.nan)
    refused(here, 'run', *SMOKE, words=['loss ', 'is nan', 'must be finite', 'learning rate'])


# Bad input: files

def broken(file, edit):
    "A file of BreastMNIST's layout, with one thing wrong"
    a = make_arrays('breastmnist', 28, (24, 16, 16))
    edit(a)
    np.savez(file, **a)

def truncated(file):
    write_npz(file.parent, 'breastmnist')
    file.write_bytes(file.read_bytes()[:-300])

def foreign(file): np.savez(file, x=np.zeros(3))
def colour(file): np.savez(file, **make_arrays('bloodmnist', 28, (24, 16, 16)))
def larger(file): np.savez(file, **make_arrays('breastmnist', 64, (24, 16, 16)))
def no_archive(file): file.write_text('<html>not found</html>')
def nan_pixels(file):
    def edit(a): a['val_images'] = a['val_images']/255.; a['val_images'][3, 5, 5] = np.nan
    broken(file, edit)
def label_two(file): broken(file, lambda a: a['test_labels'].__setitem__(0, 2))
def short_labels(file): broken(file, lambda a: a.update(train_labels=a['train_labels'][:-1]))
def no_test(file): broken(file, lambda a: a.pop('test_images'))
def no_images(file): broken(file, lambda a: a.update({k: a[k][:0] for k in ('val_images', 'val_labels')}))
def pickled(file): np.savez(file, train_images=np.array([dict()], dtype=object))

@pytest.mark.parametrize('make, words', [
    (truncated, ['not a complete numpy archive', 'download it again']),
    (no_archive, ['not a complete numpy archive']), (pickled, ['train_images holds', 'object']),
    (foreign, ['no array train_images', 'six arrays']), (no_test, ['no array test_images']),
    (colour, ['train_images', '24×28×28×3', 'N×28×28 uint8']),
    (larger, ['train_images', '24×64×64', 'N×28×28']),
    (nan_pixels, ['val_images', 'float64', '1 pixels are NaN', 'uint8']),
    (label_two, ['test_labels', '0 to 2', 'expected 0 to 1']),
    (short_labels, ['train_labels', '23×1', 'expected 24×1']),
    (no_images, ['val_images', 'no image', 'at least one'])], ids=lambda v: getattr(v, '__name__', ''))
@pytest.mark.parametrize('by', ['option', 'variable'])
def test_a_data_file_is_refused(here, no_training, monkeypatch, make, words, by):
    (here/'data').mkdir()
    make(here/'data'/'breastmnist.npz')
    if by == 'variable': monkeypatch.setenv('MEDMNIST_ROOT', 'data')
    refused(here, 'run', 'breastmnist', '--quick', *(['--root', 'data'] if by == 'option' else []),
            words=['breastmnist.npz', *words])

@pytest.mark.parametrize('argv, words', [
    (['--root', 'data'], ['data/breastmnist.npz does not exist', 'zenodo.org', '--root']),
    (['--root', 'data', '--size', 64], ['data/breastmnist_64.npz does not exist']),
    (['--root', 'new/folder'], ['new/folder/breastmnist.npz does not exist']),
    (['--root', 'file'], ['file/breastmnist.npz does not exist']),
    ([], ['.medmnist/breastmnist.npz does not exist'])], ids=str)
def test_a_missing_file_without_a_network_is_refused(here, no_training, argv, words):
    (here/'data').mkdir(); (here/'file').touch()
    refused(here, 'run', 'breastmnist', *argv, words=[*words, 'could not be downloaded'])

@pytest.mark.parametrize('argv', [[], ['--subset', 20], ['--quick']], ids=str)
def test_a_class_without_an_image_is_refused(here, no_training, argv):
    broken(here/'breastmnist.npz', lambda a: a['train_labels'].fill(1))
    refused(here, 'run', 'breastmnist', '--root', '.', *argv,
            words=['breastmnist', "no image of 'malignant'", 'larger subset'])

def test_a_subset_without_one_image_per_class_is_refused(here, no_training):
    write_npz(here, 'organamnist')
    refused(here, 'run', 'organamnist', '--root', '.', '--subset', 10, words=['subset is 10', '11 classes'])

def test_a_label_without_an_image_is_refused(here, no_training):
    def edit(a): a['train_labels'][:, 4] = 0
    a = make_arrays('chestmnist', 28, (40, 16, 16)); edit(a); np.savez(here/'chestmnist.npz', **a)
    refused(here, 'run', 'chestmnist', '--root', '.', words=['chestmnist', "one negative image of 'mass'"])


# Bad input: the autoencoder

def of_colour(path): save_model(path, Autoencoder(ch=3))
def of_another_kind(path): save_model(path, make_classifier())
def no_json(path):
    path.with_suffix('.json').write_text('{'); path.with_suffix('.safetensors').write_bytes(b'')
def no_weights(path): save_model(path, Autoencoder()); path.with_suffix('.safetensors').unlink()
def cut_weights(path):
    save_model(path, Autoencoder()); f = path.with_suffix('.safetensors')
    f.write_bytes(f.read_bytes()[:5000])
def other_weights(path):
    save_model(path, Autoencoder(width=8))
    facts = json.loads(path.with_suffix('.json').read_text())
    path.with_suffix('.json').write_text(json.dumps(facts | dict(config=facts['config'] | dict(width=16))))
def other_config(path):
    save_model(path, Autoencoder())
    path.with_suffix('.json').write_text(json.dumps(dict(kind='Autoencoder', config=dict(depth=3))))
def a_list(path): save_model(path, Autoencoder()); path.with_suffix('.json').write_text('[]')

@pytest.mark.parametrize('make, words', [
    (of_colour, ['3-channel', 'the data has 1']),
    (of_another_kind, ["'Classifier'", "expected 'Autoencoder'"]), (no_json, ['not a model saved by tsynd']),
    (no_weights, ['does not exist']), (cut_weights, ['not a model saved by tsynd']),
    (other_weights, []), (other_config, []), (a_list, [])], ids=lambda v: getattr(v, '__name__', ''))
@pytest.mark.parametrize('suffix', ['', '.json'], ids=['bare', 'json'])
def test_an_autoencoder_is_refused(here, no_training, make, words, suffix):
    make(here/'model')
    refused(here, 'run', *SMOKE, '--autoencoder', f'model{suffix}', words=['model', *words])

def test_a_grey_autoencoder_is_refused_for_colour_images(here, no_training):
    write_npz(here, 'pathmnist')
    save_model(here/'model', Autoencoder(ch=1))
    refused(here, 'run', 'pathmnist', '--root', '.', '--autoencoder', 'model',
            words=['model', '1-channel', 'the data has 3'])


# Bad input: the output folder

@pytest.fixture
def taken(here):
    (here/'full').mkdir(); (here/'full'/'a').touch(); (here/'empty').mkdir(); (here/'file').touch()
    (here/'link').symlink_to('empty'); (here/'dangling').symlink_to('nowhere')
    return here

@pytest.mark.parametrize('out, words', [
    ('full', ['exists and is not an empty folder', '--out']), ('file', ['exists', '--out']),
    ('file/x', ['cannot be written', '--out']), ('file/x/y/z', ['cannot be written']),
    ('.', ['exists and is not an empty folder']), ('dangling', ['--out']),
    ('new/'+'x'*300, ['cannot be written', 'too long']), ('y'*300, ['cannot be written', 'too long']),
    ('/dev/null', ['--out'])], ids=lambda v: v[:20] if isinstance(v, str) else '')
def test_an_output_folder_is_refused(taken, no_training, out, words):
    refused(taken, 'run', '--quick', '--out', out, words=[out[:200], *words])

def test_a_folder_without_permission_is_refused(here, no_training, monkeypatch):
    def denied(*args, **kwargs): raise PermissionError(13, 'Permission denied')
    monkeypatch.setattr(Path, 'mkdir', denied)
    refused(here, 'run', '--quick', '--out', 'a/b/x',
            words=['a/b/x', 'cannot be written (Permission denied)', '--out'])

def test_a_folder_that_cannot_be_listed_is_refused(taken, no_training, monkeypatch):
    def denied(self): raise PermissionError(13, 'Permission denied')
    with monkeypatch.context() as m:
        m.setattr(Path, 'iterdir', denied)
        code, out, err = said('run', '--quick', '--out', 'empty')
    assert code == 2 and len(screen(err)) == 1 and 'Permission denied' in err

@pytest.mark.parametrize('out', ['empty', 'a/b/c', 'a/../d', 'link'])
def test_a_folder_that_is_empty_or_new_is_filled(taken, out):
    with resumable(out) as work:
        work.begin({}, {})
        work.finish(lambda folder: (folder/'file').write_text('x'))
    assert (taken/out/'file').read_text() == 'x' and not [p for p in taken.rglob('*unfinished*')]
    assert (taken/out).stat().st_mode & 0o777 == 0o755


# A finished run

@pytest.fixture(scope='module')
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp('made')/'x'
    code, out, err = said('run', *SMOKE, '--out', folder)
    assert code == 0 and str(folder/'report.html') in out
    return folder

reports = pytest.mark.xdist_group('made')


# Whatever happens in the middle, the same command goes on after the last stage

EXPERIMENT = 'tsynd.experiments.experiment'
# where a run is interrupted: how many stages are finished
MIDDLE = {f'{EXPERIMENT}.load_data': 0, f'{EXPERIMENT}.train_autoencoder': 0,
          'tsynd.models.autoencoder.Autoencoder.measure_sigma': 0, f'{EXPERIMENT}.BatchOrder': 1,
          'tsynd.targeting.synthesis.Synthesizer.measure': 2, f'{EXPERIMENT}.robustness_table': 3,
          'tsynd.experiments.results.save_npz': 5, 'tsynd.reports.run.gallery_plot': 5,
          'tsynd.core.unfinished.os.rename': 5}
STAGES = ['autoencoder', 'baseline', 'tsynd', 'evaluation of baseline', 'evaluation of tsynd']
UNFINISHED = 'runs/phantom-n16-12px-mi-seed0-quick.unfinished'

def interrupted(*args, **kwargs): raise KeyboardInterrupt

def same(folder, other):
    "Are two runs the same, bit for bit, but for the seconds?"
    a, b = (dict(listing(f)) for f in (folder, other))
    m, n = (dict(json.loads((f/'metrics.json').read_text()), timing=0) for f in (folder, other))
    timed = 'metrics.json', 'report.html', 'synthetic.npz'    # an archive holds the time of its making
    x, y = (np.load(f/'synthetic.npz') for f in (folder, other))
    arrays = x.files == y.files and all(x[k].dtype == y[k].dtype and np.array_equal(x[k], y[k])
                                        for k in x.files)
    return (arrays and json.dumps(m) == json.dumps(n) and list(a) == list(b)
            and all(a[f] == b[f] for f in a if f not in timed))

@reports
@pytest.mark.parametrize('point, stages', MIDDLE.items())
def test_an_interrupted_run_goes_on(here, made, point, stages):
    with pytest.MonkeyPatch.context() as m:
        m.setattr(point, interrupted)
        code, out, err = said('run', *SMOKE)
    line, = screen(err)
    assert code == 130 and out == ''
    if not stages:                                             # and nothing to go on with
        assert line == 'tsynd: interrupted; nothing was written' and listing(here) == []
        return
    assert [p.name for p in here.glob('runs/*')] == [Path(UNFINISHED).name]
    assert list(begun(UNFINISHED).finished) == STAGES[:stages]
    assert UNFINISHED in line and STAGES[stages-1] in line and 'the same command goes on' in line
    with pytest.MonkeyPatch.context() as m:                    # what is finished is not made again
        m.setattr('tsynd.experiments.experiment.train_autoencoder', None)
        if stages > 2: m.setattr('tsynd.experiments.experiment.train_classifier', None)
        if stages > 4: m.setattr('tsynd.experiments.experiment.robustness_table', None)
        code, out, err = said('run', *SMOKE)
    assert code == 0 and 'tsynd: goes on after autoencoder' in err and 'begun at 2' in err
    assert [p.name for p in here.glob('runs/*')] == [Path(UNFINISHED).stem]
    assert same(here/UNFINISHED.removesuffix('.unfinished'), made)

@pytest.fixture(scope='module')
def stopped(tmp_path_factory):
    "A folder with the unfinished run `x`, whose baseline is trained"
    folder = tmp_path_factory.mktemp('stopped')
    with pytest.MonkeyPatch.context() as m:
        m.setattr('tsynd.targeting.synthesis.Synthesizer.measure', interrupted)
        assert said('run', *SMOKE, '--out', folder/'x')[0] == 130
    return folder

@pytest.fixture
def half(here, stopped):
    shutil.copytree(stopped/'x.unfinished', here/'x.unfinished')
    return here

STOPS = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGKILL, -signal.SIGKILL)]

@reports
@pytest.mark.parametrize('number, code', STOPS, ids=lambda v: getattr(v, 'name', ''))
def test_every_signal_leaves_what_a_kill_leaves(half, made, capfd, number, code):
    "also when it comes twice, as from `timeout`; meanwhile a second process is refused; and all goes on"
    before = listing(half)
    def training(*args, **kw): (half/'training').touch(); signal.pause(); time.sleep(60)
    def child():
        if code > 0: signal.signal(number, signal.SIG_DFL)      # under nohup it is ignored, and stays so
        with pytest.MonkeyPatch.context() as m:
            m.setattr('tsynd.targeting.synthesis.Synthesizer.measure', training)
            sys.exit(said_here('run', *SMOKE, '--out', 'x'))
    p = process(child)
    wait_for((half/'training').exists)
    (half/'training').unlink()
    refused(half, 'run', *SMOKE, '--out', 'x', words=['x.unfinished', 'another process'])
    os.kill(p.pid, number)
    p.join(60)
    assert p.exitcode == code and listing(half) == before
    last = screen(capfd.readouterr().err)[-1]
    assert (last == 'tsynd: interrupted; finished and kept in x.unfinished: autoencoder and baseline; '
                    'the same command goes on') == (code > 0)
    if number == signal.SIGKILL:
        assert said('run', *SMOKE, '--out', 'x')[0] == 0 and same(half/'x', made)
        assert [p.name for p in half.iterdir()] == ['x']

def said_here(*argv):
    "Exit status of `tsynd …`, whose output is not caught"
    with cheap(): return main(list(argv))

@reports
def test_a_second_signal_does_not_disturb_the_cleaning_up(here, monkeypatch):
    def twice(*args, **kwargs): os.kill(os.getpid(), signal.SIGTERM)
    rmtree = shutil.rmtree
    def remove(*args, **kwargs): twice(); rmtree(*args, **kwargs)
    monkeypatch.setattr('tsynd.experiments.experiment.train_autoencoder', twice)
    monkeypatch.setattr('tsynd.core.unfinished.shutil.rmtree', remove)
    assert said('run', *SMOKE, '--out', 'a/x')[0] == 143 and listing(here) == []

def test_a_signal_that_is_ignored_stays_so(monkeypatch):
    "as under nohup"
    before, seen = signal.signal(signal.SIGHUP, signal.SIG_IGN), []
    monkeypatch.setattr('tsynd.cli._report', lambda **asked: seen.append(signal.getsignal(signal.SIGHUP)))
    try: assert main(['report', 'x']) == 0 and seen == [signal.SIG_IGN]
    finally: signal.signal(signal.SIGHUP, before)

@reports
def test_another_run_does_not_go_on_with_it(half, no_training, monkeypatch):
    for more, words in (('--lr .1', 'lr is 0.002, not 0.1'), ('--epochs 3', 'epochs is 2, not 3')):
        refused(half, 'run', *SMOKE, *more.split(), '--out', 'x', words=['x.unfinished', words, '--anew'])
    with monkeypatch.context() as m:
        m.setattr('tsynd.experiments.results.code_checksum', lambda module: 'changed')
        refused(half, 'run', *SMOKE, '--out', 'x', words=['code of tsynd', "not 'changed'", '--anew'])
    c = parser().parse_args(['run', *SMOKE])
    c = RunConfig(**{k: v for k, v in vars(c).items() if k in RunConfig.__dataclass_fields__})
    data = replace(phantom(seed=0, size=12))
    data.train.x[:, 0, 0, 0] += 1
    with pytest.raises(InputError, match='checksum of the images'): run(c, 'x', progress=False, data=data)

@reports
def test_another_run_begins_anew_if_told_to(half, made):
    code, _, err = said('run', *SMOKE, '--seed', '1', '--out', 'x', '--anew')
    assert code == 0 and 'goes on' not in err and [p.name for p in half.iterdir()] == ['x']
    m = json.loads((half/'x'/'metrics.json').read_text())
    assert m['config']['seed'] == 1 and not same(half/'x', made)

@reports
def test_the_default_folder_is_that_of_the_run_that_was_stopped(half):
    (half/'runs').mkdir()
    for name in ('', '-2'): (half/f'runs/phantom-n16-12px-mi-seed0-quick{name}').mkdir()
    (half/'x.unfinished').rename(half/'runs/phantom-n16-12px-mi-seed0-quick-3.unfinished')
    asked = vars(parser().parse_args(['run', *SMOKE]))
    asked = {k: v for k, v in asked.items() if k in RunConfig.__dataclass_fields__}
    name = lambda **more: default_out(**(asked | more)).name.removeprefix('phantom-n16-12px-mi-seed0-quick')
    assert name() == '-3' and name(lr=.1) == '-4'

@reports
def test_an_unfinished_run_has_no_report(half):
    for folder in ('x', 'x.unfinished'):
        refused(half, 'report', folder,
                words=['x.unfinished is an unfinished run', 'autoencoder and baseline'])

def test_signals_are_given_back_and_another_thread_sets_none(here):
    before, codes = signal.getsignal(signal.SIGTERM), [main(['report', 'x'])]
    t = threading.Thread(target=lambda: codes.append(main(['report', 'x'])))
    t.start(); t.join()
    assert codes == [2, 2] and signal.getsignal(signal.SIGTERM) is before

@reports
@pytest.mark.parametrize('error', [RuntimeError, ValueError, OSError])
@pytest.mark.parametrize('point', ['tsynd.experiments.experiment.load_data',
                                   'tsynd.targeting.synthesis.Synthesizer.measure',
                                   'tsynd.experiments.results.save_npz'])
def test_a_bug_shows_its_traceback_and_leaves_what_is_finished(here, monkeypatch, point, error):
    def fails(*args, **kwargs): raise error('a bug of ours')
    monkeypatch.setattr(point, fails)
    with pytest.raises(error, match='a bug of ours') as caught: said('run', *SMOKE)
    if not MIDDLE[point]: assert listing(here) == []
    else:
        assert list(begun(UNFINISHED).finished) == STAGES[:MIDDLE[point]]
        assert 'the same command goes on' in caught.value.__notes__[0]

@reports
def test_a_full_disk_is_one_sentence_that_says_what_is_kept(here, monkeypatch):
    def fails(*args, **kwargs): raise OSError(28, 'No space left on device', 'x')
    monkeypatch.setattr('tsynd.targeting.synthesis.Synthesizer.measure', fails)
    code, _, err = said('run', *SMOKE)
    last = err.splitlines()[-1]
    assert code == 2 and last.startswith('tsynd: x cannot be used (No space left on device); finished')
    assert last.endswith('the same command goes on')

# Drawing a report again

@reports
def test_the_report_is_drawn_again_just_so(made, tmp_path):
    again = tmp_path/'x'
    shutil.copytree(made, again)
    shutil.rmtree(again/'figures'); (again/'report.html').unlink()
    assert said('report', again) == (0, f"{again/'report.html'}\n", '')
    assert [f for f, _ in listing(again)] == [f for f, _ in listing(made)]
    assert listing(again) == listing(made)

@reports
@pytest.mark.parametrize('edit, words', [
    (lambda f: (f/'metrics.json').unlink(), ['x has no metrics.json', 'tsynd run']),
    (lambda f: (f/'provenance.csv').unlink(), ['x has no provenance.csv']),
    (lambda f: (f/'metrics.json').write_text('{"config":'), ['metrics.json is not JSON']),
    (lambda f: (f/'metrics.json').write_text('{}'), ['metrics.json has no entry config']),
    (lambda f: (f/'synthetic.npz').write_bytes(b'x'),
     ['synthetic.npz is not a complete numpy archive', 'make the run again']),
    (lambda f: (f/'synthetic.npz').unlink(), ['synthetic.npz does not exist', 'make the run again']),
    (lambda f: shutil.rmtree(f), ['x is no folder', 'tsynd run'])])
def test_a_folder_that_is_no_run_is_refused(made, here, edit, words):
    shutil.copytree(made, here/'x')
    edit(here/'x')
    refused(here, 'report', 'x', words=words)

@pytest.mark.parametrize('name', ['x'*300, 'file/x', '/dev/null'], ids=lambda v: v[:9])
def test_a_path_that_cannot_be_looked_at_is_no_run(here, name):
    (here/'file').touch()
    refused(here, 'report', name, words=[name[:250], 'is no folder'])

def test_a_file_is_no_run(here):
    (here/'x').touch()
    refused(here, 'report', 'x', words=['x is no folder', 'tsynd run'])

@reports
def test_synthetic_images_of_the_phantom_are_a_data_set(made):
    data = load_npz(made/'synthetic.npz', dict(task='binary-class', label={'0': 'benign', '1': 'malignant'},
                                               n_channels=1), 'synthetic', 12)
    assert len(data.train) > 0 and data.test.factors.shape == (len(data.test), 8)
    assert data.train.factors is None
    clean = json.loads((made/'metrics.json').read_text())['arms']['tsynd']['metrics']['clean']
    assert all(math.isfinite(v) for v in clean.values())


# A study

STUDY = ('datasets = ["phantom"]\nn = [20]\nseeds = 1\nupdates = 4\nae_steps = 5\nattack_n = 8\n'
         'pgd_steps = 1\neps = [2]\ncorruptions = []\ntest_n = 24\n[arms.baseline]\n[arms.mixup]\n')

def test_a_study_from_the_command_line_and_its_failed_cells(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('tsynd.experiments.study.Processes', lambda jobs, threads: Here())
    (tmp_path/'mine.toml').write_text(STUDY)
    assert main(['study', 'mine.toml', '--dry-run']) == 0
    out = capsys.readouterr().out
    assert 'phantom-20-0-baseline' in out and '2 trainings' in out and not (tmp_path/'studies').exists()
    (tmp_path/'mine.toml').write_text(STUDY.replace('n = [20]', 'n = [20, 9999]'))
    assert main(['study', 'mine.toml', '--jobs', '1']) == 0
    page = tmp_path/'studies'/'mine'/'report.html'
    out, err = capsys.readouterr()
    assert page.exists() and str(page.relative_to(tmp_path)) in out
    # and the rest is reported
    assert 'phantom-9999-0-baseline failed: InputError: subset is 9999' in err
    before = page.stat().st_mtime_ns
    assert main(['report', str(page.parent)]) == 0 and page.stat().st_mtime_ns > before

@pytest.mark.parametrize('text, said', [(STUDY.replace('mixup', 'mixpu'), "arm is 'mixpu'"),
                                        (STUDY.replace('seeds', 'sedes'), "has a key 'sedes'"),
                                        ('nothing', 'is not TOML')])
def test_a_study_with_a_slip_says_so_in_one_line(tmp_path, capsys, text, said):
    (tmp_path/'mine.toml').write_text(text)
    assert main(['study', str(tmp_path/'mine.toml'), '--out', str(tmp_path/'out')]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count('\n') == 1 and 'Traceback' not in err and not (tmp_path/'out').exists()

@pytest.mark.parametrize('jobs', [0, -1])
@pytest.mark.parametrize('dry', [[], ['--dry-run']], ids=str)
def test_jobs_are_checked_before_anything_is_estimated(here, monkeypatch, jobs, dry):
    monkeypatch.setattr('tsynd.experiments.estimate', None)
    (here/'mine.toml').write_text(STUDY)
    refused(here, 'study', 'mine.toml', '--jobs', jobs, *dry, words=[f'jobs is {jobs}', 'at least 1'])
