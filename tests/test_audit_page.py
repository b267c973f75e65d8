"The page of an audit says what is in the audit, and nothing from a file can run in it."
import base64, io, json, math, re
from types import SimpleNamespace

import numpy as np, pandas as pd, pytest, torch
from PIL import Image

from refused import refused
from test_report import EVIL, Page
from tsynd.data import Split
from tsynd.reports import (
    audit_html, blind_draw, differences_plot, map_plot, shown_pairs, Plot, utility_plot, write_audit)

QUESTIONS = ['fidelity', 'diversity', 'utility', 'copies', 'membership', 'labels']
WORDS = ['holds', 'cannot say', 'holds', 'fails', 'fails', 'cannot say']
TAG = '<img src=x onerror=alert(1)>'


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    "Figures are made but not drawn, as nobody looks at them here"
    f = io.BytesIO()
    Image.new('RGB', (2, 2)).save(f, 'PNG')
    monkeypatch.setattr(Plot, 'png', lambda self, dpi=100: f.getvalue())


def images(n, seed, ch=1, size=12, classes=2, table=None):
    g = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 256, (n, ch, size, size), dtype=torch.uint8, generator=g)
    return Split(x, torch.arange(n) % classes, torch.arange(n), table)

def utility():
    arms = {'real': .8, 'synthetic': .7, 'real twice': .81,
            'real + 0.25': .82, 'real + 1': .83, 'real + 10': .75}
    def row(a, s, v): return dict(arm=a, ratio=float(a[7:]) if '+' in a else math.nan, seed=s, n_images=9,
                                  auc=v+.01*s, accuracy=v, balanced_accuracy=v)
    return pd.DataFrame([row(a, s, v) for a,v in arms.items() for s in range(3)])

def differences():
    return pd.DataFrame([dict(comparison=f'{a} less real', difference=d, low=d-.01, high=d+.01,
                              image_low=math.nan, image_high=math.nan, p=.2, p_not_worse=.01, p_equal=.04,
                              n=3) for a,d in {'synthetic': -.1, 'real + 1': .03}.items()])

def verdicts():
    return {k: SimpleNamespace(verdict=w, value=.9 if k != 'labels' else None, reference=1.,
                               interval=(.8, math.nan) if k == 'utility' else (np.float64(.8), 1.),
                               needed_n=500 if w == 'cannot say' else None, sentence=f'A sentence on {k}.')
            for k,w in zip(QUESTIONS, WORDS)}

def make_audit(ch=1, classes=('benign', 'malignant'), n=30, **changed):
    "An audit of noise: every third image is a copy"
    made,real,test = (images(n, s, ch, classes=len(classes)) for s in range(3))
    made.x[::3] = real.x[::3]
    copy = np.arange(n) % 3 == 0
    nearest = pd.DataFrame(dict(image=range(n), training=range(n), distance=np.where(copy, 0, 5.),
                                test=range(n), test_distance=6., threshold=1., copy=copy))
    rows = [dict(question=q, measure=f'measure of {q}', encoder=e, trained_on='test', group=g, value=.5,
                 reference=math.nan, low=math.nan, high=math.nan, p=math.nan, n=n)
            for q in QUESTIONS for e in ('pixels', 'latents') for g in ('whole', *classes)]
    kinds = np.repeat(['real','held-out','synthetic'], n)
    points = pd.DataFrame(dict(x=range(3*n), y=range(3*n), kind=kinds))
    twice = dict(where='inside the real images', image=0, other_image=3, equal=True, likeness=1.)
    facts = dict(n=dict(real=n), seed=np.int64(3), quick=True, seconds=dict(all=math.nan),
                 versions=dict(tsynd='9'))
    return SimpleNamespace(**dict(
        synthetic=made, real=real, test=test, classes=list(classes), verdicts=verdicts(), map=points,
        names=dict(synthetic='made', real='train', test='test'), measures=pd.DataFrame(rows), nearest=nearest,
        utility=utility(), differences=differences(), notes=['Something was left out.'],
        duplicates=pd.DataFrame([twice]), facts=facts) | changed)

def check(audit):
    "What holds for every page; gives the page"
    text = str(audit_html(audit))
    page = Page(text.replace('<!doctype html>', ''))
    assert not [t for t,_ in page.tags if t in ('script', 'link', 'iframe', 'object', 'form')]
    assert not [k for _,a in page.tags for k in a if k.startswith('on')] and 'url(' not in text
    ids = [a['id'] for _,a in page.tags if 'id' in a]
    for _,a in page.tags:
        for k in ('src', 'srcset', 'href'):
            assert k not in a or a[k].startswith('data:image/png;base64,') or a[k][1:] in ids, (k, a[k][:60])
    assert all(a.get('alt') for a in page.get('img')) and len(page.get('h1')) == 1
    assert not re.search(r'\b(nan|None|inf)\b', page.text)
    assert re.findall(r'</svg>([a-z ]+)</p>', text) == [v.verdict for v in audit.verdicts.values()]
    return page


def test_six_verdicts_come_first_with_sign_sentence_and_the_size_that_is_needed():
    page = check(make_audit())
    words = page.text[:page.text.index('Pictures')]
    for question in ('Looks like the real images', 'As varied', 'Useful', 'Does not copy',
                     'Does not betray members', 'Labels right'): assert question in words
    assert [k for k in QUESTIONS if f'A sentence on {k}.' not in words] == []
    assert words.count('500 images a side') == 2 == WORDS.count('cannot say')
    assert words.count('0.800 to 1.000') == 5 and 'Something was left out.' in words
    text = str(audit_html(make_audit()))
    signs = dict(zip(WORDS, re.findall(r'<svg[^>]*>(.*?)</svg>', text)))
    assert len(set(signs.values())) == 3, 'a sign of its own for each word'

def test_the_size_of_utility_is_in_seeds():
    a = make_audit()
    a.verdicts['utility'].verdict,a.verdicts['utility'].needed_n = 'cannot say',12
    assert '12 seeds' in check(a).text and '12 images a side' not in check(a).text


CASES = dict(
    no_test=lambda: make_audit(test=None, nearest=make_audit().nearest.assign(
        test=math.nan, test_distance=math.nan, threshold=math.nan, copy=False)),
    no_labels=lambda: make_audit(synthetic=Split(images(30, 0).x, None, torch.arange(30))),
    several_labels=lambda: make_audit(**{k: Split(images(30, s).x, torch.eye(2)[images(30, s).y],
                                                             images(30, s).index)
                                                    for s,k in enumerate(('real', 'synthetic'))}),
    no_utility=lambda: make_audit(utility=None, differences=None),
    no_auc=lambda: make_audit(utility=utility().assign(auc=math.nan)),
    one_seed=lambda: make_audit(utility=utility().query('seed == 0'), differences=None),
    colours=lambda: make_audit(ch=3),
    one_class=lambda: make_audit(classes=['all']),
    many_classes=lambda: make_audit(classes=[f'class {i}' for i in range(25)]),
    nothing_near=lambda: make_audit(nearest=make_audit().nearest.head(0),
                                 duplicates=make_audit().duplicates.head(0)),
    no_map=lambda: make_audit(map=make_audit().map.head(0)))

@pytest.mark.parametrize('case', CASES)
def test_it_is_written_whatever_is_there(case, tmp_path):
    a = CASES[case]()
    page = check(a)
    assert ('Not measured' in page.text) == (a.utility is None)
    assert ('there is no threshold' in page.text) == (a.test is None)
    assert ('nearest test image' in page.text) == (a.test is not None and len(a.nearest) > 0)
    assert ('a map of the images' in page.text.lower()) == (len(a.map) > 0)
    if case in ('no_test', 'no_utility', 'colours'): written(a, tmp_path)


def written(a, out):
    assert write_audit(a, out) == out/'audit.html'
    def strict(word): raise AssertionError(word)
    record = json.loads((out/'audit.json').read_text(), parse_constant=strict)
    assert list(record['verdicts']) == QUESTIONS
    for k,v in record['verdicts'].items():
        assert list(v) == ['verdict', 'value', 'reference', 'interval', 'needed_n', 'sentence']
        assert (v['verdict'], v['needed_n'], v['sentence']) == tuple(
            getattr(a.verdicts[k], p) for p in ('verdict', 'needed_n', 'sentence'))
    assert [record['verdicts'][k]['interval'] for k in ('fidelity', 'utility')] == [[.8, 1], [.8, None]]
    assert record['facts']['seed'] == 3 and record['facts']['seconds'] == dict(all=None)
    tables = dict(measures=a.measures, nearest=a.nearest, duplicates=a.duplicates, utility=a.utility,
                  utility_differences=a.differences)
    assert {f.stem for f in out.glob('*.csv')} == {k for k,t in tables.items() if t is not None}
    for k,t in tables.items():
        if t is not None: pd.testing.assert_frame_equal(pd.read_csv(out/f'{k}.csv'), t, check_dtype=False)
    return sorted((out/'pairs').iterdir())

def test_the_pairs_are_files_that_show_the_images(tmp_path):
    a = make_audit()
    files = written(a, tmp_path)
    assert [f.name for f in files[:2]] == ['01_image0_training0.png', '02_image3_training3.png']
    assert len(files) == 12
    shown = np.array(Image.open(files[1]))
    assert shown.shape == (228, 3*228+16)       # 12 pixels, 19 times
    for k,s in enumerate((a.synthetic, a.real, a.test)):
        assert (shown[9::19, 9+236*k:228+236*k:19] == s.x[3,0].numpy()).all()

def test_copies_come_first_though_others_are_nearer():
    t = make_audit().nearest
    t.loc[1, 'distance'] = -1.
    pairs = shown_pairs(SimpleNamespace(nearest=t.sort_values('distance')))
    assert pairs['copy'].tolist() == [True]*10 + [False]*2 and pairs.image.tolist()[10] == 1

def test_pairs_tell_distance_threshold_and_path():
    a = make_audit()
    a.real.table = pd.DataFrame(dict(path=[f'patient/{i}.png' for i in range(30)]))
    page = check(a)
    assert page.text.count('= very near') == 10 and page.text.count('(threshold 1.000)') == 12
    assert 'training 3: patient/3.png' in page.text and '10 of 30 synthetic images are nearer' in page.text
    assert 'Inside the real images: 1 pair of nearly equal images, 1 of them pixel for pixel' in page.text


def test_names_from_files_are_text():
    path = 'a" onload="alert(1)\'.png'
    names = dict(synthetic=f'set/{EVIL}', real=TAG, test=path)
    a = make_audit(classes=[TAG, 'other'], names=names, notes=[EVIL])
    for s in (a.synthetic, a.real, a.test): s.table = pd.DataFrame(dict(path=[path]*30))
    a.verdicts['copies'].sentence = EVIL
    a.facts['encoders'] = [TAG]
    a.measures['encoder'] = TAG
    page = check(a)
    assert page.text.count(TAG) > 4 and path in page.text and '<script>alert(1)' in page.text
    assert not [b for b in page.get('img') if 'onerror' in b or b.get('src') == 'x']


def test_the_draw_is_blind_and_fair():
    a = make_audit(n=41)
    a.synthetic.y[a.synthetic.y == 1] = 0
    a.synthetic.y[:3] = 1                       # few of a class
    drawn = blind_draw(a)
    for c,(name,(real,made)) in enumerate(drawn.items()):
        assert name == a.classes[c] and len(real) == len(made) == (6, 3)[c]
        assert (a.real.y[real] == c).all() and (a.synthetic.y[made] == c).all()
        assert len(set(real)) == len(real) and len(set(made)) == len(made)
    assert drawn == blind_draw(a)
    a.synthetic.x = a.synthetic.x.flip(0)
    assert drawn == blind_draw(a), 'it looks at labels only'
    a.facts['seed'] = 4
    assert drawn != blind_draw(a)

def test_a_class_that_one_set_lacks_is_named():
    a = make_audit()
    a.synthetic.y[:] = 0
    assert blind_draw(a)['malignant'] == ([], [])
    assert 'no image of it: malignant' in check(a).text


def test_a_hundred_thousand_large_images_make_a_small_page():
    n,few = 100_000,images(1, 0, ch=3, size=224)
    made = Split(few.x.expand(n, -1, -1, -1), torch.arange(n) % 2, torch.arange(n))
    real = Split(few.x.expand(60, -1, -1, -1), torch.arange(60) % 2, torch.arange(60))
    t = pd.DataFrame(dict(image=range(n), training=0, distance=1., test=0, test_distance=1., threshold=2.,
                          copy=True))
    points = pd.DataFrame(dict(x=np.arange(n), y=0, kind='synthetic'))
    many = pd.concat([make_audit().measures]*100)
    a = make_audit(synthetic=made, real=real, test=real, nearest=t, map=points, measures=many)
    page = audit_html(a)
    assert len(page) < 3e6 and 'more rows are in measures.csv' in page and '100,000 of 100,000' in page


def test_figures_show_the_numbers():
    plot = utility_plot(utility())
    plot.file('svg')                            # it can be drawn
    assert all(word in plot.alt for word in ('0.25: 0.830', '10: 0.760', 'real 0.810', 'real twice 0.820'))
    line = plot.fig.axes[0].lines
    means = [v.get_ydata() for v in line if list(v.get_xdata()) == [.25, 1, 10]]
    assert np.allclose(means[0], [.83, .84, .76])   # then the ends of the bars
    plot = differences_plot(differences(), .02)
    assert 'synthetic less real -0.100' in plot.alt and 'less than 0.02' in plot.caption
    assert 'Shaded' not in differences_plot(differences()).caption
    assert map_plot(None) is None and '30 held-out' in map_plot(make_audit().map).alt

def test_a_page_picture_is_the_image():
    a = make_audit()
    uris = re.findall(r'src="data:image/png;base64,([^"]+)" alt="Synthetic image, benign', audit_html(a))
    shown = [np.array(Image.open(io.BytesIO(base64.b64decode(u)))) for u in uris]
    assert len(shown) == 6 and all((x == a.synthetic.x[i,0].numpy()).all()
                                   for x,i in zip(shown, blind_draw(a)['benign'][1]))

def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with refused(tmp_path/'none'/'measures.csv'): write_audit(make_audit(), tmp_path/'none')
