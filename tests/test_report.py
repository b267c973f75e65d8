"A report is honest, safe and self-contained, whatever the run folder holds."
import json, math, re
from html.parser import HTMLParser

import matplotlib, numpy as np, pandas as pd, pytest
from hypothesis import given, strategies as st
from PIL import Image

from refused import refused
from tsynd.reports import write_report
from tsynd.reports import figure_style, PALETTE
from tsynd.reports import result_html
from tsynd.reports import compare_arms, comparison_words, read_run, run_caution, run_finding, RunFolder
from tsynd.reports import robustness_plot, trace_plot, training_plot
from tsynd.reports import evenly_ranked, gallery_html, gallery_plot
from tsynd.reports import python_lines
from tsynd.reports import meaning, summary_html
from tsynd.reports import parse_attack

CONDITIONS = ['clean', 'perturbed', 'PGD 1/255', 'PGD 4/255']
MEASURES = ('accuracy', 'auc', 'balanced_accuracy')
VOID = {'meta', 'img', 'source', 'br', 'link', 'path', 'circle', 'rect'}
EVIL = '"><script>alert(1)</script><img src=http://evil.example/x onerror=1> $\\frac{a} & \' </style>'


def make_metrics(base=.7, ours=.75, ch=1, size=28, classes=('benign', 'malignant'), task='binary-class',
                 objective='mi'):
    def arm(v, **kw):
        return dict(metrics={c: {k: v-.05*i for k in MEASURES} for i, c in enumerate(CONDITIONS)},
                    optimizer_steps=340, images_seen=10880, synthetic_images=0,
                    history=[dict(epoch=e, train_loss=.5, valid_loss=.6, valid_auc=.8) for e in range(3)],
                    **kw)
    trace = [dict(step=s, mi_before=.1, mi_after=.2) for s in (40, 80, 120)]
    return dict(config=dict(dataset='somemnist', subset=100, size=size, objective=objective, epochs=3, bs=32,
                            lr=.001, seed=7, model='small_resnet', autoencoder=None),
                versions=dict(tsynd='0.1.0'), conditions=list(CONDITIONS),
                data=dict(name='somemnist', task=task, classes=list(classes), shape=[ch, size, size],
                          train=100, val=78, test=200, attacked=200,
                          md5='0'*32, licence='CC BY 4.0', source='SomeMNIST'),
                autoencoder=dict(latent_shape=[4, size//4, size//4], compression=.25, psnr=30.1, ssim=.91,
                                 psnr_train=31., epochs=10),
                arms=dict(baseline=arm(base), tsynd=arm(ours, trace=trace) | dict(synthetic_images=120)),
                timing=dict(autoencoder=1., baseline=2., tsynd=3., evaluation=4., total=10.))


def make_run(folder, n=12, edit=lambda m: None, labels=None, moves=True, **kw):
    "A run folder with random images"
    m = make_metrics(**kw)
    edit(m)
    folder.mkdir(parents=True, exist_ok=True)
    (folder/'metrics.json').write_text(json.dumps(m))
    g = np.random.default_rng(0)
    ch, size, _ = m['data']['shape']
    shape = (n, size, size, 3) if ch == 3 else (n, size, size)
    rec = g.integers(0, 256, shape, dtype=np.uint8)
    new = np.clip(rec + g.integers(-20, 20, shape), 0, 255).astype(np.uint8) if moves else rec
    np.savez(folder/'synthetic.npz', train_images=new, train_source=g.integers(0, 256, shape, dtype=np.uint8),
             train_reconstruction=rec)
    before = g.uniform(0, .3, n)
    pd.DataFrame(dict(source_index=range(n), label=0,
                      label_name=labels or [m['data']['classes'][i % len(m['data']['classes'])]
                                            for i in range(n)],
                      gate=1., distance_latent=.3, radius=.3, distance_pixel=.04, mi_source=before,
                      mi_before=before, mi_after=before + .1*moves, p_before=.9, p_after=.8)
                 ).to_csv(folder/'provenance.csv', index=False)
    return folder


class Page(HTMLParser):
    "Tags that nest, and what they point to"
    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text = [], [], ''
        self.feed(text)
        self.close()
        assert self.open == []
    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID: self.open.append(tag)
    def handle_startendtag(self, tag, attrs): self.tags.append((tag, dict(attrs)))
    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag
    def handle_data(self, data):
        if not self.open or self.open[-1] != 'style': self.text += data
    def get(self, tag): return [a for t, a in self.tags if t == tag]


def check(folder):
    "Write the report, check what holds for every page, and return the page"
    path = write_report(folder)
    text = path.read_text(encoding='utf-8')
    page = Page(text)
    assert path == folder/'report.html' and path.stat().st_size < 1.5e6
    assert not list(folder.glob('.*'))
    assert not page.get('script') and not page.get('link') and 'url(' not in text and '@import' not in text
    assert not [k for _, a in page.tags for k in a if k.startswith('on')]
    assert page.get('html') == [dict(lang='en')] and len(page.get('h1')) == 1
    ids = [a['id'] for _, a in page.tags if 'id' in a]
    assert len(ids) == len(set(ids))
    for _, a in page.tags:
        for k in ('src', 'srcset', 'href', 'action', 'data', 'poster'):
            v = a.get(k)
            assert (v is None or v.startswith('data:image/png;base64,') or v[0] == '#' and v[1:] in ids
                    or (folder/v).is_file()), (k, v[:80])
    assert all(a.get('alt') for a in page.get('img'))
    assert not re.search(r'\b(nan|None|inf)\b', page.text)
    assert 'One run with one seed is no evidence' in page.text and 'not a medical device' in page.text
    return page


KINDS = dict(grey=dict(), rgb=dict(ch=3, classes=[f'class {i}' for i in range(9)], task='multi-class'),
             large=dict(size=64), ordinal=dict(task='ordinal-regression', classes='01234'),
             rgb_large=dict(ch=3, size=64, classes=[f'class {i}' for i in range(14)], task='multi-class'))

@pytest.mark.parametrize('kind', KINDS)
def test_every_layout(tmp_path, kind):
    page = check(make_run(tmp_path/'run', **KINDS[kind]))
    assert len(page.get('img')) == 4*9 + 4
    figures = sorted(f.name for f in (tmp_path/'run'/'figures').iterdir())
    assert figures == ['gallery.png', 'mi_images.png', 'mi_training.png', 'robustness.png', 'training.png']
    for f in figures:
        with Image.open(tmp_path/'run'/'figures'/f) as im: assert im.width >= 900
    assert {a['href'] for a in page.get('a')} >= {f'figures/{f}' for f in figures} | {
        'metrics.json', 'synthetic.npz', 'provenance.csv'}


def test_multi_label(tmp_path):
    classes = ['atelectasis', 'cardiomegaly', 'effusion', 'infiltration', 'mass', 'nodule', 'pneumonia',
               'pneumothorax', 'consolidation', 'edema', 'emphysema', 'fibrosis', 'pleural', 'hernia']
    labels = ['', ', '.join(classes), 'mass, nodule'] * 4
    page = check(make_run(tmp_path/'run', classes=classes, task='multi-label, binary-class', labels=labels))
    assert 'no label' in page.text and ', '.join(classes) in page.text
    assert f'{14*math.log(2):.2f}' in page.text and 'BCEWithLogitsLoss' in page.text


def test_undefined_measures_are_dashes_and_not_zeros(tmp_path):
    def edit(m):
        for a in m['arms'].values(): a['metrics']['clean']['auc'] = None
        m['arms']['tsynd']['metrics']['PGD 1/255'] = dict(accuracy=.5, auc=float('nan'),
                                                          balanced_accuracy=None)
        m['arms']['baseline']['metrics']['PGD 4/255'] = {}
        m['arms']['tsynd']['history'][0]['valid_auc'] = None
        m['autoencoder'] = m['timing'] = None
        m['data']['test'] = None
    page = check(make_run(tmp_path/'run', edit=edit))
    run = read_run(tmp_path/'run')
    t = compare_arms(run).set_index(['condition', 'metric'])
    assert t.loc[('clean', 'AUC'), ['baseline', 'tsynd', 'points']].isna().all()
    assert math.isnan(t.loc[('PGD 4/255', 'Accuracy'), 'baseline'])
    assert math.isnan(t.points[('PGD 4/255', 'Accuracy')])
    assert 'undefined' in page.text and 'AUC' not in run_finding(run) and 'PGD' not in run_finding(run)
    assert '0.000' not in result_html(run)


def test_nothing_defined_at_all(tmp_path):
    def edit(m):
        for a in m['arms'].values(): a['metrics'], a['history'] = {}, []
        m['arms']['tsynd']['trace'] = []
    page = check(make_run(tmp_path/'run', edit=edit, n=0))
    run = read_run(tmp_path/'run')
    assert 'nothing can be compared' in page.text and training_plot(run) is None and trace_plot(run) is None


@pytest.mark.parametrize('empty', ['header', 'nothing'])
def test_no_synthetic_image(tmp_path, empty):
    folder = make_run(tmp_path/'run', n=0)
    (folder/'synthetic.npz').unlink()
    if empty == 'nothing': (folder/'provenance.csv').write_text('')
    page = check(folder)
    run = read_run(folder)
    assert 'made no synthetic image' in page.text
    assert (gallery_html(run) == '' and gallery_plot(run) is None
            and not (folder/'figures'/'gallery.png').exists())


@pytest.mark.parametrize('n', [1, 2, 8])
def test_few_synthetic_images(tmp_path, n):
    assert len(check(make_run(tmp_path/'run', n=n)).get('img')) == 4*n + 4


def test_hostile_strings(tmp_path):
    def edit(m):
        m['config'] |= dict(dataset=EVIL, model=EVIL, autoencoder=EVIL)
        m['data'] |= dict(name=EVIL, classes=[EVIL, EVIL], source=EVIL, licence=EVIL, md5=EVIL, task=EVIL)
        m['versions'] = {EVIL: EVIL}
        m['conditions'][1] = EVIL
        for a in m['arms'].values(): a['metrics'][EVIL] = a['metrics'].pop('perturbed')
    labels = [EVIL, '   ', '$x', '_', 'NA', 'None?', '-', '\\', '<b>', '&amp;', '%', '{}']
    page = check(make_run(tmp_path/'run', edit=edit, labels=labels))
    assert 'alert(1)' in page.text and len(page.get('img')) == 4*9 + 4
    assert not [a for _, a in page.tags if 'evil' in str(a.get('src'))]


@pytest.mark.parametrize('objective', ['mi', 'random', 'entropy', 'cross_entropy', 'reconstruction'])
def test_objectives(tmp_path, objective):
    page = check(make_run(tmp_path/'run', objective=objective, moves=objective != 'reconstruction'))
    run = read_run(tmp_path/'run')
    assert run.label == ('TSynD (MI)' if objective == 'mi'
                         else f"TSynD engine, {objective.replace('_', '-')}")
    assert run.label in page.text and ('nothing moves' in page.text) == (objective == 'reconstruction')


# What is said

def run_with(base, ours): return RunFolder(None, make_metrics(base, ours), None, {})


@given(st.floats(0, 1), st.floats(0, 1))
def test_the_sentence_follows_the_numbers(base, ours):
    run = run_with(base, ours)
    points, said = round(100*(ours - base), 1), run_finding(run)
    assert ('better' in said, 'worse' in said, 'equal' in said) == (points > 0, points < 0, points == 0)
    assert f'{abs(points):.1f} points' in said or points == 0
    assert re.search(rf'Of 12 comparisons {12*(points>0)} came out better, '
                     rf'{12*(points<0)} worse and {12*(points==0)} equal', run_caution(run))


def test_a_mixed_result_is_told_as_one():
    run = run_with(.7, .75)
    run.m['arms']['tsynd']['metrics']['clean']['balanced_accuracy'] = .6
    assert '5.0 points better in AUC on clean test images (0.750 against 0.700)' in run_finding(run)
    words = '10.0 points worse in balanced accuracy on clean test images (0.600 against 0.700)'
    assert words in run_finding(run)
    assert summary_html(run).count('<strong>') == 4 == len(comparison_words(run))
    assert 'One of the 200 test images is 0.5 points' in run_caution(run)


def test_the_better_value_is_marked_by_more_than_colour():
    rows = Page(result_html(run_with(.7, .75)))
    assert rows.text.count('better') == rows.text.count('◂') == 12 and '+5.0' in rows.text
    assert 'better' not in result_html(run_with(.7, .70004)) and '−5.0' in result_html(run_with(.75, .7))


def test_attack_names():
    assert parse_attack('PGD 4/255') == ('PGD', 4.) and parse_attack('FGSM 0.5/255') == ('FGSM', .5)
    assert (not parse_attack('clean') and not parse_attack('PGD 4')
            and not parse_attack('perturbed 1/255 twice'))


@given(st.lists(st.one_of(st.floats(-1, 1), st.just(math.nan)), max_size=50), st.integers(1, 12))
def test_gallery_is_picked_by_rule(gain, k):
    idx = evenly_ranked(gain, k)
    g = np.nan_to_num(gain)
    assert len(idx) == len(set(idx)) == min(k, len(gain))
    assert all(a >= b for a, b in zip(g[idx], g[idx][1:])) if len(gain) else idx == []
    if len(idx) > 1: assert g[idx[0]] == g.max() and g[idx[-1]] == g.min()


def test_several_attacks_and_no_attack():
    run = run_with(.7, .75)
    run.m['conditions'] += ['FGSM 4/255']
    for a in run.m['arms'].values(): a['metrics']['FGSM 4/255'] = dict(accuracy=.5, balanced_accuracy=.5)
    assert 'dashed FGSM' in robustness_plot(run).caption
    run.m['conditions'] = ['clean', 'perturbed']
    plot = robustness_plot(run)
    assert plot.png() and 'PGD' not in plot.alt


def test_the_attack_begins_at_its_own_unchanged_images():
    "Attacked are some of the test images; where these were measured unchanged, no second point stands at 0"
    run = run_with(.7, .75)
    at = lambda: list(robustness_plot(run).fig.axes[0].lines[0].get_xdata())
    assert at() == [0, 1, 4]
    run.m['conditions'] += ['PGD 0/255']
    for a in run.m['arms'].values(): a['metrics']['PGD 0/255'] = dict(accuracy=.5, balanced_accuracy=.5)
    assert at() == [0, 1, 4] and robustness_plot(run).fig.axes[0].lines[0].get_ydata()[0] == .5
    assert [t.get_text() for t in robustness_plot(run).fig.axes[1].get_xticklabels()].count('0') == 1


def test_what_means_nothing_is_not_told_as_a_result(tmp_path):
    def smoke(m): m['config']['quick'] = True
    def idle(m): m['arms']['tsynd']['synthetic_images'] = 0
    def dropped(m): m['arms']['tsynd']['trace'][0]['gate'] = .0499
    def alike(m): m['arms']['tsynd']['metrics'] = m['arms']['baseline']['metrics']
    for name,edits,said in (('smoke', [smoke], 'its numbers mean nothing'),
                            ('idle', [idle, alike], 'TSynD made no image in this run'),
                            ('dropped', [dropped, alike], 'The gate kept 5.0 % of the 120 images'),
                            ('both', [smoke, idle], 'TSynD made no image in this run')):
        run = read_run(make_run(tmp_path/name, edit=lambda m: [e(m) for e in edits]))
        assert said in run_finding(run) and 'better' not in run_finding(run)
        page = check(run.folder)
        if name == 'smoke': continue
        assert 'equal' not in page.text.split('Uncertainty, robustness')[0] and meaning(run) == ''
        assert compare_arms(run).points.isna().all() and page.text.count(said) >= 2
    def kept(m): m['arms']['tsynd']['trace'][0]['gate'] = .05
    assert 'better' in run_finding(read_run(make_run(tmp_path/'kept', edit=kept)))
    assert 'better' in run_finding(read_run(make_run(tmp_path/'x')))
    assert ('subset(load_data(' in python_lines(dict(quick=True))
            and ', 100, seed=0)' in python_lines(dict(quick=True)))

@pytest.mark.parametrize('multilabel', [False, True])
def test_python_lines_are_python(multilabel):
    lines = python_lines(dict(dataset="it's", subset=None),
                         'multi-label, binary-class' if multilabel else 'multi-class')
    assert ('BCEWithLogitsLoss' in lines) == multilabel
    compile(lines, 'lines', 'exec')
    assert 'subset(load' not in lines and "it's" in lines
    assert ("subset(load_data('phantom', size=28, seed=3), 50, seed=3)"
            in python_lines(dict(subset=50, seed=3)))
    own = python_lines(dict(autoencoder='runs/x/models/autoencoder', dropout=.2, balanced=False))
    compile(own, 'lines', 'exec')
    for line in ("autoencoder = load_autoencoder('runs/x/models/autoencoder', data.shape)",
                 ', load_autoencoder', 'n_classes=data.n_classes, p=0.2)', 'seed=0, balanced=False)'):
        assert line in own
    assert 'train_autoencoder' not in own and 'balanced' not in lines and ', p=' not in lines


# The first screen

def test_the_first_screen_says_what_was_compared_what_came_out_what_it_means_and_where_to_go():
    sections = summary_html(run_with(.7, .75)).split('<h2>')[1:]
    compared, came_out, means, further = (re.sub(r'\s+', ' ', text_of(s)) for s in sections)
    assert ('tell benign from malignant' in compared and 'same 100 labelled images' in compared
            and '120 synthetic images' in compared)
    assert 'On 200 test images' in came_out
    assert all(f'5.0 points better {of_what}' in came_out
               for _, of_what in comparison_words(run_with(.7, .75)))
    assert 'no evidence' in means and 'Of 12 comparisons' in means
    assert 'tsynd study' in further
    page = Page(summary_html(run_with(.7, .75)))
    assert {a['href'] for a in page.get('a')} == {'#result', '#images', '#training', '#read'}


def text_of(piece): return re.sub(r'<[^>]*>', '', piece)


def test_every_term_of_the_first_screen_is_explained_there():
    run = run_with(.7, .75)
    terms = re.findall('<b>([^<]*)</b>:', summary_html(run))
    assert terms == ['A point', 'AUC', 'Balanced accuracy', 'Clean', 'Random perturbations', 'PGD 4/255']
    run.m['conditions'] = ['clean', 'fog']
    for a in run.m['arms'].values():
        a['metrics'] = {c: dict(balanced_accuracy=.5) for c in run.m['conditions']}
    assert re.findall('<b>([^<]*)</b>:', summary_html(run)) == [
        'A point', 'Balanced accuracy', 'Clean', 'fog']


@pytest.mark.parametrize('clean, changed, said', [
    (.8, .7, ['did better, on the test images as they are and on changed ones']),
    (.6, .5, ['did worse, on the test images']),
    (.8, .5, ['did better on the test', 'did worse on changed']),
    (.7, .6, ['did equally well, on the test images'])])
def test_the_meaning_follows_the_numbers(clean, changed, said):
    run = run_with(.7, .7)
    for c in CONDITIONS:
        run.m['arms']['baseline']['metrics'][c] = {k: .7 if c == 'clean' else .6 for k in MEASURES}
        run.m['arms']['tsynd']['metrics'][c] = {k: clean if c == 'clean' else changed for k in MEASURES}
    assert all(s in meaning(run) for s in said) and ('guessing' in meaning(run)) is False


def test_rows_at_which_both_only_guess_are_named():
    run = run_with(.7, .75)
    for a, v in (('baseline', .2), ('tsynd', .5)):
        run.m['arms'][a]['metrics']['PGD 4/255']['balanced_accuracy'] = v
    assert meaning(run).count('no better than guessing') == 1 and 'Under PGD 4/255 both' in meaning(run)
    run.m['arms']['tsynd']['metrics']['PGD 4/255']['balanced_accuracy'] = .51
    assert 'guessing' not in meaning(run)


# Around it

def test_figures_leave_the_program_as_it_was():
    before = dict(matplotlib.rcParams)
    with figure_style(dark=True) as c:
        assert matplotlib.rcParams['figure.facecolor'] == c.paper == PALETTE['dark']['paper']
    assert dict(matplotlib.rcParams) == before


def test_the_same_run_gives_the_same_page(tmp_path):
    folder = make_run(tmp_path/'run')
    write_report(folder)
    first = write_report(folder).read_bytes()
    assert first == write_report(folder).read_bytes()


def contrast(a, b):
    def lum(h):
        return sum(w*(v/12.92 if v <= .04045 else ((v+.055)/1.055)**2.4)
                   for w, v in zip((.2126, .7152, .0722), (int(h[i:i+2], 16)/255 for i in (1, 3, 5))))
    hi, lo = sorted((lum(a), lum(b)), reverse=True)
    return (hi+.05)/(lo+.05)

@pytest.mark.parametrize('scheme', PALETTE)
def test_text_can_be_read(scheme):
    p = PALETTE[scheme]
    for ground in ('paper', 'wash'):
        assert contrast(p['ink'], p[ground]) > 7 and contrast(p['muted'], p[ground]) > 4.5
        assert contrast(p['tsynd'], p[ground]) > 4.5
    assert contrast(p['base'], p['paper']) > 3


def broken(folder, name, content):
    (folder/name).unlink(missing_ok=True)
    if isinstance(content, tuple): content = json.dumps(put(make_metrics(), *content))
    if content is not None:
        (folder/name).write_bytes(content if isinstance(content, bytes) else content.encode())

def put(m, where, value):
    *path, last = where.split('.')
    o = m
    for k in path: o = o[k]
    o[last] = value
    return m

# the file, what is put into it, and the entry or column at fault, where it is not the whole file
BAD = {'no metrics': ('metrics.json', None, None), 'no provenance': ('provenance.csv', None, None),
       'half a json': ('metrics.json', '{"config": ', None), 'a list': ('metrics.json', '[]', None),
       'no arms': ('metrics.json', '{"config":{},"data":{},"conditions":[],"arms":{"baseline":{}}}',
                   'arms.tsynd'),
       **{f'{k} is {v}': ('metrics.json', (k, v), k) for k, v in {
           'data': 3, 'arms': [], 'conditions': 3, 'arms.baseline': [], 'arms.tsynd.metrics': 3}.items()},
       **{f'{k} is null': ('metrics.json', (k, None), k) for k in (
           'data', 'config', 'arms', 'arms.tsynd', 'arms.baseline.metrics', 'data.classes')},
       **{f'{k} holds {v!r}': ('metrics.json', (k, v), f'{k}{at}') for k, v, at in (
           ('conditions', ['clean', 3], '.1'), ('conditions', [], ''), ('arms.tsynd.metrics.clean', 'x', ''),
           ('arms.baseline.metrics.clean', None, ''), ('arms.baseline.history', 'x', ''),
           ('arms.tsynd.history', 3, ''), ('arms.tsynd.trace', [None], '.0'),
           ('arms.tsynd.trace', {'a': 1}, ''), ('data.name', 'half a letter \ud800', ''))},
       'ragged table': ('provenance.csv', 'a,b\n1,2,3,4\n1,2,3,4,5,6,7\n', None),
       'latin-1 table': ('provenance.csv', 'label_name\nKr\xe4he\n'.encode('latin-1'), None),
       'latin-1 json': ('metrics.json', '"\xe4"'.encode('latin-1'), None),
       'foreign table': ('provenance.csv', 'a,b\n1,2\n', 'label_name'),
       'broken npz': ('synthetic.npz', 'x', None)}

@pytest.mark.parametrize('what', BAD)
def test_bad_input_is_one_sentence(tmp_path, what):
    folder = make_run(tmp_path/'run')
    name, content, field = BAD[what]
    broken(folder, name, content)
    with refused(field or folder/name, name): write_report(folder)
    assert not (folder/'report.html').exists()


def test_images_and_table_must_agree(tmp_path):
    folder = make_run(tmp_path/'run', n=5)
    np.savez(folder/'synthetic.npz', train_images=np.zeros((4, 28, 28), np.uint8))
    with refused('train_source', '5', found='no'): write_report(folder)
    same = np.zeros((5, 28, 28), np.uint8)
    np.savez(folder/'synthetic.npz', train_source=same, train_reconstruction=same, train_images=same[:4])
    with refused('train_images', '5', found=4): write_report(folder)


def test_a_page_that_cannot_be_written(tmp_path):
    folder = make_run(tmp_path/'run')
    (folder/'figures').write_text('in the way')
    with refused(folder/'figures'): write_report(folder)
    assert not (folder/'report.html').exists()

def test_a_page_that_breaks_off_leaves_no_part(tmp_path, monkeypatch):
    folder = make_run(tmp_path/'run')
    def full(part, target): raise OSError(28, 'No space left on device', str(part))
    (folder/'report.html').write_text('what was there')
    monkeypatch.setattr('os.replace', full)
    with refused(folder/'figures'/'mi_images.png', found='No space left on device'): write_report(folder)
    assert not [*folder.rglob('.*')] and (folder/'report.html').read_text() == 'what was there'
