"""What becomes of files: sets in one form, `tsynd audit` on them, and what it refuses in one line."""
import io, json, os, warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np, pandas as pd, pytest, torch
from PIL import Image

from refused import refused
from tsynd.audit import audit_sets, FLIPS_AND_SHIFTS, QUESTIONS
from tsynd.cli import main
from tsynd.core import AuditSettings, InputError
from tsynd.reports import Plot, run_audit

SIZE = 12
PARTS = {'verdict', 'value', 'reference', 'interval', 'needed_n', 'sentence'}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    "An empty working folder; figures are made but not drawn, and images moved less"
    monkeypatch.setenv('TSYND_CACHE', str(tmp_path/'cache'))
    (tmp_path/'here').mkdir(); monkeypatch.chdir(tmp_path/'here')
    f = io.BytesIO()
    Image.new('RGB', (2, 2)).save(f, 'PNG')
    monkeypatch.setattr(Plot, 'png', lambda self, dpi=100: f.getvalue())
    monkeypatch.setattr('tsynd.audit.privacy.FLIPS_AND_SHIFTS', FLIPS_AND_SHIFTS[:2])
    return tmp_path/'here'

def picture(n, seed, C=2, size=SIZE):
    "Grey images (n,H,W), their classes: blocks of noise, and a bright spot that says the class"
    rng,y = np.random.default_rng(seed),np.arange(n) % C
    coarse = rng.normal(90, 25, (n, size//2, size//2)).repeat(2, 1).repeat(2, 2)
    for c in range(C): coarse[y == c,3*c:3*c+3,:5] += 90
    return coarse.clip(0, 255).astype(np.uint8), y

def npz(name, n=40, seed=0, **changed):
    x,y = picture(n, seed)
    np.savez(name, **{k: v for k,v in (dict(images=x, labels=y) | changed).items() if v is not None})
    return name

def folder(name, x, y=None, classes=('a', 'b')):
    "Images as PNG, in folders of the classes"
    for i,image in enumerate(x):
        where = Path(name)/(classes[y[i]] if y is not None else '')
        where.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(where/f'{i:03}.png')
    return name

def read(synthetic, real='real.npz', **more):
    return audit_sets(synthetic, real, size=SIZE, **more)

def tensor(x): return torch.from_numpy(x)[:,None]


# Sets

def test_the_same_images_in_every_form(here):
    x,y = picture(20, 1)
    npz('real.npz', class_names=None)
    folder('named', x, y, '01'); folder('flat', x)
    names = [f'{i:03}.png' for i in range(20)]
    pd.DataFrame(dict(path=names, label=y, split=['Training']*12+['test']*8, site='x')).to_csv('flat/t.csv')
    np.savez('medmnist.npz', train_images=x[:12], train_labels=y[:12,None], test_images=x[12:],
             test_labels=y[12:,None])
    np.savez('bare.npz', images=x)
    order = np.argsort(y, kind='stable')                        # of the folders of the classes
    for name,part,rows,labels in [
            ('named', 'train', order, y[order]), ('flat/t.csv', 'train', slice(12), y[:12]),
            ('flat/t.csv', 'test', slice(12, None), y[12:]), ('flat/t.csv', 'all', slice(None), y),
            ('medmnist.npz', 'train', slice(12), y[:12]), ('medmnist.npz', 'all', slice(None), y),
            ('bare.npz', 'train', slice(None), None), ('flat', 'test', slice(None), None)]:
        with warnings.catch_warnings(action='ignore'):         # a table lies beside the images
            s = read(name, parts=dict(synthetic=part))
        assert torch.equal(s.synthetic.x, tensor(x[rows])), name
        if labels is None: assert s.synthetic.y is None and any('synthetic' in n for n in s.notes)
        else: assert s.synthetic.y.tolist() == labels.tolist() and len(s.notes) == 1
    s = read('named', 'flat/t.csv', root='flat')                # which is of tables, not of folders
    assert torch.equal(s.synthetic.x, tensor(x[order])) and torch.equal(s.real.x, tensor(x[:12]))
    assert read('flat/t.csv').synthetic.table.site.tolist() == ['x']*12
    assert read('flat/t.csv', test='medmnist.npz').names == dict(
        synthetic='flat/t.csv, train', real='real.npz', test='medmnist.npz, test')

def test_images_follow_the_real_ones(here):
    x,y = picture(20, 1)
    big = x.repeat(2, 1).repeat(2, 2)
    npz('real.npz')
    for name,images in dict(colour=np.stack([x]*3, -1), large=big, both=np.stack([big]*3, -1)).items():
        npz(f'{name}.npz', images=images, labels=y)
        folder(name, images, np.zeros(20, int), '0')
        one,other = (read(source).synthetic.x for source in (f'{name}.npz', name))
        assert one.shape == (20, 1, SIZE, SIZE) and torch.equal(one, other)
        if name == 'colour': assert torch.equal(one, tensor(x))
        else: assert np.corrcoef(one.flatten(), x.ravel())[0,1] > .95   # without the sharpest edges
    tinted = np.stack([x, x//2, x], -1)
    npz('tinted.npz', images=tinted, labels=y)
    s = read(npz('grey.npz', 20, 1), 'tinted.npz')
    assert s.real.x.shape == s.synthetic.x.shape == (20, 3, SIZE, SIZE)
    assert torch.equal(s.real.x, torch.from_numpy(tinted).permute(0, 3, 1, 2))
    assert (s.synthetic.x == tensor(x)).all()

@pytest.mark.parametrize('deep', ['synthetic', 'real'])
def test_sixteen_bits_beside_eight(here, deep):
    "Their own black and white; the others stay as they are"
    x,y = picture(40, 1)
    folder('eight', x, y); folder('sixteen', (x.astype(np.uint16)*20+300), y)
    real,synthetic = ('eight', 'sixteen') if deep == 'synthetic' else ('sixteen', 'eight')
    s = read(synthetic, real)
    order = np.argsort(y, kind='stable')
    flat,stretched = (s.real, s.synthetic) if deep == 'synthetic' else (s.synthetic, s.real)
    assert torch.equal(flat.x, tensor(x[order]))
    both = np.corrcoef(stretched.x.flatten(), x[order].ravel())[0,1]
    assert both > .99 and stretched.x.min() == 0 and stretched.x.max() == 255

def test_class_names_and_numbers(here):
    x,y = picture(24, 1, 3)
    npz('real.npz', images=x, labels=y)
    folder('named', x, y, ('ada', 'bo', 'cy')); folder('few', x[:2], y[:2], ('ada', 'bo'))
    folder('other', x, y, ('ada', 'bo', 'dee'))
    assert read('real.npz', 'named').classes == ['ada', 'bo', 'cy']
    assert read('real.npz', 'named').synthetic.y.tolist() == y.tolist()     # a number is a place
    assert read('few', 'named').synthetic.y.tolist() == [0, 1]
    assert read('named', class_names='ada, bo,cy').synthetic.y.tolist() == sorted(y)
    with refused('synthetic images', "'dee'", 'ada, bo, cy', found='dee'): read('other', 'named')
    with refused('synthetic images', "'ada'"): read('named')
    with refused('synthetic images', 'ada, bo'): read('real.npz', 'few')
    with refused('class_names', '3 classes'): read('named', class_names='ada,bo')
    with refused('class_names', 'once'): read('named', class_names='ada,bo,bo')

def test_several_labels(here):
    x,y = picture(20, 1)
    marks = np.stack([y, 1-y, np.arange(20) % 3 == 0], 1).astype(int)
    npz('real.npz', images=x, labels=marks); folder('flat', x)
    t = pd.DataFrame(marks, columns=['0', '1', '2']).assign(path=[f'{i:03}.png' for i in range(20)])
    t[['path', '2', '0', '1']].to_csv('flat/t.csv', index=False)
    s = read('flat/t.csv', label_columns='2,0,1')
    assert s.synthetic.y.tolist() == s.real.y.tolist() == marks.tolist()
    npz('one.npz', images=x, labels=y)
    with refused('synthetic images', 'one label'): read('one.npz')
    with refused('two.npz', 'zeros and ones'): read(npz('two.npz', images=x, labels=2*marks))

def test_a_label_that_is_missing(here):
    x,_ = picture(20, 1)
    npz('real.npz'); folder('flat', x)
    names = [f'{i:03}.png' for i in range(20)]
    pd.DataFrame(dict(path=names, label=['0', '', *['1']*18])).to_csv('flat/t.csv', index=False)
    with refused('synthetic images', '1 of 20'): read('flat/t.csv')
    pd.DataFrame(dict(path=names, label='')).to_csv('flat/t.csv', index=False)
    assert read('flat/t.csv').synthetic.y is None

def test_images_that_cannot_be_read(here):
    x,y = picture(20, 1)
    npz('real.npz')
    folder('bad', x, y, '01')
    Path('bad/0/004.png').write_bytes(b'no image')
    for sets in (('bad', 'real.npz'), ('real.npz', 'bad')):
        with pytest.raises(InputError, match='004.png.*--skip-unreadable'): read(*sets)
        with warnings.catch_warnings(action='ignore'):
            s = read(*sets, skip_unreadable=True)
        left = s.synthetic if sets[0] == 'bad' else s.real
        assert len(left) == len(left.table) == 19 and '0/004.png' not in set(left.table.path)
        assert left.y.tolist() == [0]*9 + [1]*10
        assert torch.equal(left.x[2], tensor(x)[6])             # the images after it keep their labels


# The command

def said(*argv):
    "Exit status, standard output and standard error"
    out,err = io.StringIO(),io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try: code = main(['audit', *map(str, argv)])
        except SystemExit as e: code = e.code
    return code, out.getvalue(), err.getvalue()

SETS = 'made.npz', '--real', 'real.npz', '--test', 'test.npz'
QUICK = '--size', SIZE, '--quick', '--out', 'out'

@pytest.fixture
def three(here):
    "Three sets of one kind; half of the synthetic images are copies"
    npz('real.npz', 60, 1); npz('test.npz', 60, 2)
    x,y = picture(60, 3)
    x[:30] = picture(60, 1)[0][:30]
    return npz('made.npz', images=x, labels=y)

def test_the_command(three):
    code,out,err = said(*SETS, *QUICK)
    assert code == 0 and 'Traceback' not in err and not list(Path().glob('*.unfinished'))
    assert [f'{q} ' in out for q in QUESTIONS.values()] == [True]*6 and str(Path('out')/'audit.html') in out
    text = Path('out/audit.json').read_text()
    verdicts = json.loads(text, parse_constant=pytest.fail)['verdicts']
    assert [*verdicts] == [*QUESTIONS] and all({*v} == PARTS for v in verdicts.values())
    assert verdicts['copies']['verdict'] == verdicts['membership']['verdict'] == 'fails'
    pairs = pd.read_csv('out/nearest.csv')
    copies = pairs[pairs.image < 30]
    assert (copies.image == copies.training).all() and copies['copy'].all() and (copies.distance == 0).all()
    assert {p.name for p in Path('out').iterdir()} >= {'audit.html', 'measures.csv', 'pairs'}
    before = {p: p.read_bytes() for p in Path('out').rglob('*') if p.is_file()}
    code,out,err = said(*SETS, *QUICK)
    assert (code, out) == (2, '') and len(err.splitlines()) == 1 and 'out exists' in err
    assert before == {p: p.read_bytes() for p in Path('out').rglob('*') if p.is_file()}

def test_strict_is_a_status(three, monkeypatch):
    "Of a set that fails, and of one that does not; into a folder with a name of its own"
    bare = *SETS[:3], '--size', SIZE, '--quick', '--strict'
    x,_ = picture(60, 3)
    npz('fresh.npz', images=x, labels=None)
    assert said('fresh.npz', *bare[1:])[0] == 0 and Path('audits/fresh/audit.json').exists()
    assert said(*SETS, *bare[3:])[0] == 1 and Path('audits/made/audit.json').exists()
    assert said('fresh.npz', *bare[1:])[0] == 0 and Path('audits/fresh-2/audit.json').exists()

def bad(): # arguments, and words of the answer
    (x,y),test = picture(40, 1),('--test', 'test.npz')
    yield 'labels', dict(labels=y[:-1]), (), ['39', '40']
    yield 'a single label', dict(labels=np.array(1)), (), ['labels']
    yield 'negative labels', dict(labels=y-1), (), ['labels']
    yield 'labels in fractions', dict(labels=y/2), (), ['float64']
    yield 'fractions', dict(images=x/255.), (), ['float64', 'bytes']
    yield 'flat images', dict(images=x.reshape(40, -1)), (), ['(40, 144)']
    yield 'no images', dict(images=x[:0], labels=y[:0]), (), ['(0, 12, 12)']
    yield 'a single image', dict(images=None, labels=None, train_images=np.uint8(1)), (), ['uint8', '()']
    yield 'nothing', dict(images=None, labels=None), (), ['no images', 'train']
    yield 'five images', dict(images=x[:5], labels=y[:5]), (), ['5', 'at least 20']
    yield 'another class', dict(labels=y+1), (), ["'2'", '0, 1']
    yield 'parts', dict(images=None, train_images=x), ('--synthetic-part', 'test'), ['train', 'test']
    yield 'parts of two sizes', dict(images=None, labels=None, train_images=x, val_images=x[:,:8]), \
        ('--synthetic-part', 'all'), ['shapes', '(8, 12)']
    yield 'test is real', {}, ('--test', 'real.npz'), ['test images', '0', 'near-duplicates']
    yield 'no utility without test', {}, ('--utility',), ['utility', '--test']
    yield 'no more without utility', {}, ('--more', 'real.npz'), ['more', '--utility']
    yield 'no labels for utility', dict(labels=None), ('--utility', *test), ['synthetic', 'labels']
    yield 'a class for utility', {}, ('--utility', '--test', 'one.npz'), ['test', "'1'"]
    yield 'no such model', {}, ('--utility', *test, '--model', 'magic'), ['model', 'magic']
    yield 'no such encoder', {}, ('--encoder', 'magic'), ['magic']
    yield 'no file', {}, ('--real', 'nowhere.npz'), ['nowhere.npz']
    yield 'no archive', {}, ('--real', 'text.npz'), ['text.npz']
    yield 'no image', {}, ('--real', 'empty'), ['empty']
    yield 'a number', {}, ('--seeds', '1'), ['seeds']
    yield 'names', {}, ('--class-names', 'a'), ['class_names']

@pytest.mark.parametrize('changed, argv, words', [pytest.param(*v, id=k) for k,*v in bad()])
def test_what_is_refused(here, changed, argv, words):
    "In one line, and nothing is left behind"
    npz('real.npz', 40, 1); npz('test.npz', 40, 2); npz('made.npz', 40, 3, **changed)
    npz('one.npz', 40, 2, labels=np.zeros(40, int)); Path('text.npz').write_text('no'); Path('empty').mkdir()
    before = sorted(here.rglob('*'))
    code,out,err = said('made.npz', '--real', 'real.npz', *QUICK, *argv)
    lines = [line for line in err.splitlines() if line.startswith('tsynd')]
    assert (code, out) == (2, '') and len(lines) == 1 and 'Traceback' not in err and 'kept' not in err
    assert [w for w in words if w not in lines[0]] == [], lines
    assert sorted(here.rglob('*')) == before


# Utility

ARGUMENTS = 'made.npz', 'real.npz', 'out'
USEFUL = AuditSettings(size=SIZE, quick=True, utility=True, seeds=2, updates=2, jobs=1)

def rows(found): return found.utility.drop(columns=['weights'], errors='ignore')

@pytest.fixture
def trainings(monkeypatch):
    "Images of each training"
    from tsynd.audit import utilities
    made,train = [],utilities.train_classifier
    def counted(data, *args, **kwargs):
        made.append(len(data.train)); return train(data, *args, **kwargs)
    monkeypatch.setattr(utilities, 'train_classifier', counted)
    return made

def test_a_stopped_audit_goes_on(three, trainings, monkeypatch):
    whole = run_audit('made.npz', 'real.npz', 'whole', USEFUL, test='test.npz')
    n = len(trainings)
    assert n == len(whole.utility) and whole.verdicts['utility'].value is not None
    from tsynd.audit import utilities
    write = utilities.write_whole
    def stopped(path, content):
        write(path, content)
        if len(list(Path('out.unfinished/trainings').iterdir())) == 3: raise KeyboardInterrupt
    trainings.clear()
    with monkeypatch.context() as m:
        m.setattr(utilities, 'write_whole', stopped)
        with pytest.raises(KeyboardInterrupt, match='same command'):
            run_audit(*ARGUMENTS, USEFUL, test='test.npz')
    assert len(trainings) == 3 and not Path('out').exists()
    with refused('settings'):                                   # what is finished is of other trainings
        run_audit(*ARGUMENTS, AuditSettings(size=SIZE, quick=True, seed=1), test='test.npz')
    found = run_audit(*ARGUMENTS, USEFUL, test='test.npz')
    assert len(trainings) == n and not Path('out.unfinished').exists()
    pd.testing.assert_frame_equal(found.utility, whole.utility)
    pd.testing.assert_frame_equal(found.differences, whole.differences)
    assert found.verdicts == whole.verdicts and (Path('out')/'audit.html').exists()

def test_without_a_class_nobody_is_trained_on_synthetic_images_alone(three, trainings):
    x,_ = picture(60, 3)
    npz('made.npz', images=x, labels=np.zeros(60, int))
    asked = '--utility', '--seeds', 2, '--updates', 2, '--jobs', 1
    code,out,_ = said(*SETS, *asked, '--size', SIZE, '--quick')
    useful = json.loads(Path('audits/made/audit.json').read_text())['verdicts']['utility']
    assert code == 0 and useful['verdict'] == 'cannot say' and useful['value'] is None

def test_the_default_folder_is_gone_on_with(three, trainings, monkeypatch):
    asked = '--utility', '--seeds', 2, '--updates', 2, '--jobs', 1, '--size', SIZE, '--quick'
    def stopped(*args): raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr('tsynd.reports.audit_command.write_audit', stopped)
        assert said(*SETS, *asked)[0] == 130
    assert os.listdir('audits') == ['made.unfinished']
    n = len(trainings)
    code,_,err = said(*SETS, *asked)
    assert code == 0 and 'goes on' in err and os.listdir('audits') == ['made'] and len(trainings) == n
