"""`tsynd generate`: may the set be shared, where every image comes from, and what goes on after a kill."""
import io, json, os, signal
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np, pandas as pd, pytest, torch
from PIL import Image

from processes import process
from refused import refused
from tsynd.audit import audit_sets, FLIPS_AND_SHIFTS
from tsynd.cli import main
from tsynd.core import GenerateSettings
from tsynd.data import ImageData, phantom, save_npz, Split
from tsynd.generation import Generator, generators, labels_like
from tsynd.reports import (
    generator_options, learning_html, made_words, onset_words, overfitting_onset, Plot, proportioned,
    provenance, run_generation, SHARING, sharing, ways_html)

SIZE,REAL,COMMAND = 12,'real.npz','tsynd.reports.generate_command'


@pytest.fixture(scope='module')
def archive(tmp_path_factory):
    "A phantom whose test images are like the training images, in a file"
    path = tmp_path_factory.mktemp('phantom')/REAL
    save_npz(path, phantom(n_train=60, n_val=60, n_test=60, size=SIZE, holes=False, seed=1))
    return path

@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch, archive):
    "A folder with the data; figures are made but not drawn, and images moved less"
    monkeypatch.setenv('TSYND_CACHE', str(tmp_path/'cache'))
    (tmp_path/'here').mkdir(); monkeypatch.chdir(tmp_path/'here')
    os.link(archive, REAL)
    f = io.BytesIO()
    Image.new('RGB', (2, 2)).save(f, 'PNG')
    monkeypatch.setattr(Plot, 'png', lambda self, dpi=100: f.getvalue())
    monkeypatch.setattr('tsynd.audit.privacy.FLIPS_AND_SHIFTS', FLIPS_AND_SHIFTS[:2])
    return tmp_path/'here'

def said(*argv):
    "Exit status, standard output and standard error"
    out,err = io.StringIO(),io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try: code = main(['generate', *map(str, argv)])
        except SystemExit as e: code = e.code
    return code, out.getvalue(), err.getvalue()

def make(name='copycat', out='out', n=30, audit=False, options=None, data=REAL, **asked):
    known = {k: asked.pop(k) for k in list(asked) if hasattr(GenerateSettings, k)}
    settings = GenerateSettings(generator=name, n=n, size=SIZE, audit=audit, **known)
    return run_generation(data, out, settings, options, **asked)

def arrays(out): return dict(np.load(Path(out)/'synthetic.npz'))

def same(a, b): return a.keys() == b.keys() and all((a[k] == b[k]).all() for k in a)


# May it be shared?

ARGUMENTS = REAL, '--size', SIZE, '--n', 60

def test_copies_are_not_safe_to_share(here, monkeypatch):
    "Said first, by command, page and record; the exit status says it where that is asked for"
    made = []
    def kept(*args, **kwargs): made.append(run_generation(*args, **kwargs)); return made[0]
    monkeypatch.setattr(f'{COMMAND}.run_generation', kept)
    code,out,err = said(*ARGUMENTS, '--with', 'copycat', '--out', 'out')
    assert code == 0 and 'Traceback' not in err and not list(here.glob('*.unfinished'))
    assert out.splitlines()[0].startswith(SHARING['fails']) and 'must not be shared' in out.splitlines()[0]
    page,kept = Path('out/generation.html').read_text(),json.loads(Path('out/generation.json').read_text())
    assert page.index(SHARING['fails']) < page.index('<img') and 'href="audit/audit.html"' in page
    assert kept['sharing']['verdict'] == kept['verdicts']['copies']['verdict'] == 'fails'
    assert {p.name for p in Path('out').iterdir()} == {
        'generation.html', 'generation.json', 'synthetic.npz', 'provenance.csv', 'generator', 'audit'}
    assert {p.name for p in Path('out/audit').iterdir()} >= {'audit.html', 'audit.json', 'nearest.csv'}
    before = {p: p.read_bytes() for p in Path('out').rglob('*') if p.is_file()}
    code,out,err = said(*ARGUMENTS, '--with', 'copycat', '--out', 'out')
    assert (code, out) == (2, '') and 'out exists' in err
    assert before == {p: p.read_bytes() for p in Path('out').rglob('*') if p.is_file()}
    monkeypatch.setattr(f'{COMMAND}.run_generation', lambda *args, **kwargs: made[0])
    assert said(*ARGUMENTS, '--with', 'copycat', '--strict')[0] == 1

def test_new_images_are_not_accused(here):
    code,out,_ = said(REAL, '--size', SIZE, '--n', 40, '--with', 'fresh', '--strict')
    kept = json.loads(Path('generated/real-fresh/generation.json').read_text())
    assert kept['sharing']['verdict'] != 'fails' and not out.startswith(SHARING['fails'])
    assert code == int(any(v['verdict'] == 'fails' for v in kept['verdicts'].values()))

@pytest.mark.parametrize('why', ['no test images', 'few images', 'not asked for'])
def test_nothing_shows_that_it_is_safe(why, archive):
    "Where there is no audit, or no images that the generator never saw"
    if why == 'no test images':
        with np.load(archive) as z: parts = dict(z)
        Path(REAL).unlink()
        np.savez(REAL, **{k: v[:10] if k.startswith('test') else v for k,v in parts.items()})
    found = make('copycat', n=10 if why == 'few images' else 40, audit=why != 'not asked for')
    word,sentence = found.answer
    assert word == 'cannot say' and (found.audit is None) == (why != 'no test images')
    assert sentence in Path('out/generation.html').read_text() and Path('out/synthetic.npz').exists()
    if why == 'few images': assert '10' in sentence and '20' in sentence


# What is written

def test_the_audit_reads_the_folder(here):
    found = make('copycat', proportions='0=.5,1=.5')
    z = arrays('out')
    assert z['train_images'].dtype == np.uint8 and z['train_images'].shape == (30, SIZE, SIZE)
    assert z['train_labels'].shape == (30, 1) and z['train_labels'].sum() == 15
    s = audit_sets('out', REAL, size=SIZE)
    assert torch.equal(s.synthetic.x, found.made.x) and torch.equal(s.synthetic.y, found.made.y)

def test_where_images_come_from():
    "What half_copies says of an image is so"
    make('half_copies', n=40)
    t = pd.read_csv('out/provenance.csv')
    copied = t.origin == 'copy'
    assert t.image.tolist() == list(range(40)) and copied.sum() == 20 and (t.generator == 'half_copies').all()
    assert (t.distance[copied] == 0).all() and (t.distance[~copied] > 0).all()
    assert (t.nearest[copied] == t.source[copied]).all()
    x,real = (np.load(f)['train_images'] for f in ('out/synthetic.npz', REAL))
    assert (x[copied] == real[t.nearest[copied]]).all()
    assert t.label.tolist() == arrays('out')['train_labels'][:,0].tolist()

def test_a_generator_may_have_columns_of_the_same_name():
    d = phantom(n_train=20, n_val=2, n_test=2, size=SIZE)
    own = pd.DataFrame(dict(generator='x', label='its own', distance=7., nearest=-1), index=[0])
    made = Split(d.train.x, d.train.y, d.train.index, pd.concat([own]*20, ignore_index=True))
    t = provenance(made, d)
    assert t.columns.is_unique and (t.distance == 0).all() and t.nearest.tolist() == list(range(20))
    assert (t.distance_drawn == 7).all() and (t.label_drawn == 'its own').all()

def test_images_as_files_from_files(here):
    "Paths and patients of the nearest training image; PNG by class, which the audit reads as well"
    x,y = (np.load(REAL)[f'train_{k}'] for k in ('images','labels'))
    names = [f'{i:02}.png' for i in range(60)]
    for i,name in enumerate(names): Image.fromarray(x[i]).save(name)
    parts = np.repeat(['train','val','test'], [40, 10, 10])
    pd.DataFrame(dict(path=names, label=np.where(y[:,0] == 0, 'a/b', 'b'), split=parts,
                      patient=[f'p{i}' for i in range(60)])).to_csv('mine.csv', index=False)
    found = make(data='mine.csv', png=True, subset=20)
    t = pd.read_csv('out/provenance.csv')
    assert set(t.nearest_path) <= set(found.data.train.table.path)
    assert [int(p[1:]) for p in t.nearest_patient] == [int(p[:2]) for p in t.nearest_path]
    for r,image in zip(t.itertuples(), arrays('out')['train_images']):
        assert (np.asarray(Image.open(Path('out')/r.path)) == image).all()
        assert (x[int(r.nearest_path[:2])] == image).all()
        assert Path(r.path).parts[1] == {'a/b': 'a-b', 'b': 'b'}[r.label]

def test_several_labels():
    "Their rows are those of real images"
    d = phantom(n_train=40, n_val=20, n_test=20, size=SIZE, holes=False)
    def several(s): return replace(s, y=torch.stack([s.y, 1-s.y, s.index % 2], 1).float(), table=None)
    d = ImageData('several', 'multi-label, binary-class', ['a', 'b', 'c'],
                  *(several(s) for s in (d.train, d.val, d.test)))
    save_npz('several.npz', d)
    found = make(data='several.npz', png=True, class_names='a,b,c')
    t = pd.read_csv('out/provenance.csv')
    assert {tuple(r) for r in found.made.y.tolist()} <= {tuple(r) for r in d.train.y.tolist()}
    assert arrays('out')['train_labels'].tolist() == found.made.y.tolist()
    names = [{'abc'[c] for c in r.nonzero()[:,0]} for r in found.made.y]
    assert [set(v.split('|')) for v in t.label] == names
    assert t.path[3] == 'images/00003.png' and len(list(Path('out/images').iterdir())) == 30
    for text in ('equal', 'a=1'):
        with refused('proportions', 'several labels', found=text): proportioned(text, d, 10)

def test_equal_seeds_equal_sets():
    for out,seed in (('one', 3), ('two', 3), ('three', 4)): make('half_copies', out, seed=seed)
    assert same(arrays('one'), arrays('two')) and not same(arrays('one'), arrays('three'))
    assert Path('one/provenance.csv').read_bytes() == Path('two/provenance.csv').read_bytes()

def test_a_saved_generator():
    "gives the same images as when it was trained, and is refused for images that are not like its own"
    made = make('half_copies', seed=3)
    again = make('copycat', 'again', seed=3, saved='out/generator')
    assert again.name == 'half_copies' and torch.equal(again.made.x, made.made.x)
    assert (again.made.table.distance == made.made.table.distance).all()
    assert 'training' not in again.seconds and again.notes == made.notes and not again.trained_on
    save_npz('large.npz', phantom(n_train=30, n_val=20, n_test=20, size=16))
    with refused('generator', '16', '12', '--size'):
        run_generation('large.npz', 'no', GenerateSettings(size=16), saved='out/generator')
    three = phantom(n_train=30, n_val=20, n_test=20, size=SIZE)
    def third(s): return Split(s.x, torch.arange(len(s)) % 3, s.index)
    parts = map(third, (three.train, three.val, three.test))
    save_npz('three.npz', ImageData('t', 'multi-class', ['a', 'b', 'c'], *parts))
    with refused('generator', 'multi-class'): make(data='three.npz', out='no', saved='out/generator')
    with refused('nowhere', 'generator.json'): make(out='no', saved='nowhere')
    with refused('set', 'noise'): make(out='no', saved='out/generator', options=dict(noise=.1))
    assert not Path('no').exists()


def test_a_saved_generator_beside_images_that_it_never_saw():
    "clears nobody, also in the second generation; another seed is no other data"
    make('fresh', n=20, subset=40)
    for seed,subset in ((0, 40), (1, 40), (1, 50)):
        out = f'{seed}-{subset}'
        found = make(out=out, n=20, audit=subset == 50, subset=subset, seed=seed, saved='out/generator')
        assert (found.trained_on == {}) == (subset == 40)
    assert found.answer[0] == 'cannot say' and 'other images' in found.answer[1]
    assert found.trained_on['images'] == 40 and any('40 images' in n for n in found.notes)
    again = make(out='third', n=20, subset=50, saved=f'{out}/generator')
    assert again.trained_on == found.trained_on
    holds = SimpleNamespace(verdict='holds')
    audit = SimpleNamespace(verdicts=dict(copies=holds, membership=holds))
    assert sharing(audit)[0] == 'holds' and sharing(audit, others=True)[0] == 'cannot say'

# Proportions and settings

@pytest.mark.parametrize('n', [1, 7, 30, 101])
def test_proportions(n, archive):
    d = phantom(n_train=60, n_val=1, n_test=1, size=SIZE, holes=False, seed=1)
    def counts(text): return proportioned(text, d, n, 5).bincount(minlength=2).tolist()
    assert abs(counts('equal')[0]-n/2) < 1 and sum(counts('equal')) == n
    for text,share in (('benign=.3,malignant=.7', .3), ('1=.29,0=.71', .71), ('malignant=1', 0)):
        assert abs(counts(text)[0]-share*n) < 1 and sum(counts(text)) == n
    assert torch.equal(proportioned('real', d, n, 5), labels_like(d.train.y, n, 5))
    assert torch.equal(proportioned('equal', d, n, 5), proportioned('equal', d, n, 5))

def test_a_class_without_training_images():
    d = phantom(n_train=60, n_val=1, n_test=1, size=SIZE, holes=False)
    d.train = d.train.select(d.train.y == 0)
    assert (proportioned('benign=1', d, 5) == 0).all()
    with refused('proportions', 'malignant'): proportioned('equal', d, 5)

def test_settings_of_a_generator():
    texts = ['a=1', 'b=1e-3', 'c=True', 'd=none', 'e=a=b', 'f=inf', 'g='+'9'*400, 'h='+'9'*5000]
    assert generator_options(texts) == dict(a=1, b=.001, c=True, d=None, e='a=b', f='inf', g='9'*400,
                                            h='9'*5000)
    assert [type(v) for v in generator_options(['a=1', 'b=1.']).values()] == [int, float]
    t = make('moved_copies', options=dict(move='flipped')).made.table
    assert (t.origin == 'flipped').all()
    assert json.loads(Path('out/generation.json').read_text())['options'] == dict(move='flipped')

def bad(): # arguments, and words of the answer
    yield 'no such generator', ('--with', 'magic'), ['magic', 'copycat']
    yield 'no such setting', ('--set', 'magic=1'), ['copycat', 'magic']
    yield 'no value', ('--set', 'noise'), ['set', 'noise', 'name=value']
    yield 'a setting twice', ('--set', 'noise=.1', '--set', 'noise=.2'), ['set', 'noise']
    yield 'a value out of range', ('--set', 'noise=7'), ['noise', '7']
    yield 'a text for a number', ('--set', 'noise=much'), ['noise', 'much']
    yield 'broken characters', ('--set', 'noise=\0'), ['set']
    yield 'no images', ('--n', '0'), ['n is 0']
    yield 'no data', ('--root', 'x'), ['nowhere']
    yield 'a class', ('--proportions', 'cyst=1'), ['proportions', 'cyst']
    yield 'a sum', ('--proportions', '0=.5'), ['proportions', '1']
    yield 'a share', ('--proportions', '0=-1,1=2'), ['proportions', '-1']
    yield 'nan', ('--proportions', '0=nan,1=1'), ['proportions', 'nan']
    yield 'a subset', ('--subset', '500'), ['subset', '60']
    yield 'both', ('--generator', 'x'), ['--with', '--generator']
    yield 'more than there are', ('--with', 'fresh', '--n', '500'), ['fewer']

@pytest.mark.parametrize('argv, words', [pytest.param(*v, id=k) for k,*v in bad()])
def test_what_is_refused(here, argv, words):
    "In one line, and nothing is left behind"
    before = sorted(here.rglob('*'))
    data = 'nowhere.npz' if 'nowhere' in words else REAL
    code,out,err = said(data, '--with', 'copycat', '--size', SIZE, '--out', 'new/out', *argv)
    lines = [line for line in err.splitlines() if line.startswith('tsynd')]
    assert (code, out) == (2, '') and len(lines) == 1 and 'Traceback' not in err
    assert [w for w in words if w not in lines[0]] == [], lines
    assert sorted(here.rglob('*')) == before

def test_the_help_names_every_generator():
    code,out,err = said('--help')
    assert code == 0 and err == ''
    assert [e for e in generators().values() if e.name not in out or e.sentence not in out] == []


# Stopped work

class Slow(Generator):
    "Learns a brightness in ten steps, of which it keeps each"
    stop = None
    def learn(self, seed):
        at = Path(self.keep)/'step'
        self.steps = begun = int(at.read_text()) if at.exists() else 0
        for k in range(begun, 10):
            if Slow.stop == k: raise KeyboardInterrupt
            self.steps = k+1
            at.write_text(str(self.steps))
        self.made,Slow.learned = 10-begun,10-begun
    def draw(self, labels, g):
        x = torch.randint(self.steps, (len(labels), *self.shape), generator=g, dtype=torch.uint8)
        return x, pd.DataFrame(dict(origin='slow', chance=torch.rand(len(x), generator=g).numpy()))
    def state(self): return dict(steps=torch.tensor(self.steps))
    def restore(self, state): self.steps = int(state['steps'])

@pytest.fixture
def slow(monkeypatch):
    from tsynd.generation import GeneratorEntry, GENERATORS
    monkeypatch.setitem(GENERATORS, 'slow', GeneratorEntry('slow', 'for tests', Slow, False))
    monkeypatch.setattr(Slow, 'stop', None)
    monkeypatch.setattr(f'{COMMAND}.code_checksum', lambda module: module)      # of a test, all code

def test_a_stopped_training_goes_on(slow, monkeypatch):
    whole = make('slow', 'whole')
    monkeypatch.setattr(Slow, 'stop', 7)
    with pytest.raises(KeyboardInterrupt, match='same command'): make('slow')
    monkeypatch.setattr(Slow, 'stop', None)
    with refused('seed', 'unfinished'): make('slow', seed=1)
    found = make('slow', png=True)                      # what the images do not depend on may be another
    assert Slow.learned == 3 and torch.equal(found.made.x, whole.made.x)
    assert same(arrays('out'), arrays('whole')) and not Path('out.unfinished').exists()

def test_a_killed_training_goes_on(slow, monkeypatch):
    whole = make('slow', 'whole')
    def killed(): monkeypatch.setattr(Path, 'write_text', die_at_7); make('slow')
    def die_at_7(path, text):
        path.write_bytes(text.encode())
        if text == '7': os.kill(os.getpid(), signal.SIGKILL)
    p = process(killed); p.join(60)
    assert p.exitcode == -signal.SIGKILL
    assert torch.equal(make('slow').made.x, whole.made.x) and Slow.learned == 3

def test_begun_anew(slow, monkeypatch):
    monkeypatch.setattr(Slow, 'stop', 7)
    with pytest.raises(KeyboardInterrupt): make('slow')
    monkeypatch.setattr(Slow, 'stop', None)
    make('slow', anew=True, seed=1)
    assert Slow.learned == 10

@pytest.mark.parametrize('where', ['sample', 'provenance', 'write_generation'])
def test_killed_and_gone_on(where, slow, monkeypatch):
    "During sampling, before the audit, and while the results are written: nothing is learned again"
    make('slow', 'whole')
    def killed():
        def die(*args): os.kill(os.getpid(), signal.SIGKILL)
        monkeypatch.setattr(f'{COMMAND}.{where}', die)
        make('slow')
    p = process(killed); p.join(60)
    assert p.exitcode == -signal.SIGKILL and Path('out.unfinished').exists() and not Path('out').exists()
    monkeypatch.setattr(Slow, 'learn', lambda *a: pytest.fail('learned again'))
    make('slow')
    assert same(arrays('out'), arrays('whole'))
    assert Path('out/provenance.csv').read_bytes() == Path('whole/provenance.csv').read_bytes()


# How it learned

def look(t, validation, **more): return dict(updates=t, training=1/(t+1), validation=validation) | more

@pytest.mark.parametrize('values, onset', [
    ([5, 4, 3], None), ([5, 3, 4], 2), ([5, 3, 4, 3], None), ([3, 4, 3, 4, 5], 3), ([3, 4], 1), ([3], None),
    ([], None), ([5, float('nan'), 3, 4], 3), ([5, 3, 4, 2, 6, 7], 4)])
def test_the_onset_of_overfitting(values, onset):
    "The first look from which the loss stays above its minimum"
    history = [look(k, v) for k,v in enumerate(values)]
    assert overfitting_onset(history) == onset
    words = onset_words(history)
    assert (words == '') == (not values) and ('not seen' in words) == (onset is None and values != [])

def test_curves_and_ways_where_there_are_some(slow):
    found = make('copycat')
    assert learning_html(found).count('<figure') == 0 and ways_html(found) == ''
    found.generator.history = [look(k, v, onset=.1*k, kept=float(k == 1)) for k,v in enumerate([5, 3, 4])]
    found.generator.between = lambda labels, n, g: found.made.x[:n]
    page = learning_html(found)
    assert page.count('<figure') == 2 and onset_words(found.generator.history) in page
    assert 'after 1 updates' in page
    assert ways_html(found).count('<img') == 8
    found.generator.history = [dict(updates=1.), dict(updates=2., training=None)]
    assert learning_html(found).count('<figure') == 0
    assert made_words(found).startswith('30 images made by copycat')
