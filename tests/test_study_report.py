"The report of a study says what the tables say, marks what is lost, and is safe whatever the folder holds."
import json, re
from base64 import b64encode
from dataclasses import replace

import matplotlib, numpy as np, pandas as pd, pytest

from refused import refused
from test_report import Page
from tsynd.experiments import differences, headline, pairs, stored_predictions, t_interval, tidy
from tsynd.experiments import ARMS as ARMS_HERE, read_study, StudyConfig, to_toml
from tsynd.reports import arms_table, pairing, study_facts_html, study_html, study_report
from tsynd.reports import findings, is_loss, study_caution, study_finding, table_columns, verdicts
from tsynd.reports import (
    ARM_COLOURS, attack_plot, auc_plot, coloured_arms, cost_plot, costs, kept_predictions, line_styles,
    Plot, pool, reliability, reliability_plot, severity_plot)
from tsynd.reports import families_table, nothing_made, synthesis_counts
from tsynd.reports import arms_html, contrasts_html, costs_html, departures, OFFICIAL, official_html, PROTOCOL

EVIL = '"><script>alert(1)</script><img src=http://evil.example/x onerror=1> $\\frac{a} & \' </style>'
ARMS = dict(baseline={}, mi={}, pgd={})
GAIN = dict(baseline=0, mi=.05, pgd=-.05)
FAMILY = [['mi', 'baseline', 'clean', 'auc'], ['pgd', 'baseline', 'clean', 'auc'],
          ['mi', 'pgd', 'PGD 4/255', 'balanced_accuracy']]


def packed(p): return b64encode(p.astype(np.float16).tobytes()).decode()


def record(c, d, n, s, a, i):
    "A finished cell; every value can be told from every other"
    base = .6 + .1*GAIN.get(a, .01*i)*10 + .01*s + {50: 0, 100: .02, 'full': .0305}[n] + .0003*((7*s+3*i) % 5)
    def m(drop): return dict(accuracy=base-drop, auc=base-drop+.02, balanced_accuracy=base-drop-.01)
    measures = dict(clean=m(0) | dict(ece=.1-GAIN.get(a, 0), nll=.5+.01*s),
                    perturbed=m(.1)) | {f'PGD {e}/255': m(.1*e) for e in (0, 1, 4)}
    measures |= {'corrupted': m(.05), 'corrupted blur': m(.04), 'corrupted noise': m(.06)}
    measures |= {f'severity {v}': m(.02*v) for v in range(1, 6)}
    y = np.arange(40) % 2
    g = np.random.default_rng(100*s+i)
    p = np.clip(.5 + (y-.5)*.4 + g.normal(0, .2, 40), 0, 1)
    return dict(id=f'{d}-{n}-{s}-{a}', dataset=d, n=n, seed=s, arm=a, status='done',
                versions=dict(tsynd='0.1.0'), seconds=10.*(1+i)*(1+s), seconds_autoencoder=5.,
                seconds_measuring=3., steps=300, images_seen=9600, weights=f'w{s}',
                synthetic=0 if a == 'baseline' else 9600,
                order=f'o{s}', subset=f's{n}{s}', measures=measures, shape=[40, 2],
                p=packed(np.stack([1-p, p], 1)), y=y.tolist())


def make(folder, edit=lambda r: r, arms=ARMS, n=(50, 100), seeds=4, datasets=('breastmnist',),
         headline=FAMILY, **kw):
    "The folder of a study; `edit` changes a record or drops it with None"
    c = StudyConfig('a study', list(datasets), list(n), seeds, arms, headline=headline, **kw)
    folder.mkdir(parents=True, exist_ok=True)
    (folder/'study.toml').write_text(to_toml(c), encoding='utf-8')
    rows = [edit(record(c, d, k, s, a, i)) for s in range(seeds) for d in datasets for k in n
            for i, a in enumerate(arms)]
    (folder/'cells.jsonl').write_text(''.join(json.dumps(r)+'\n' for r in rows if r))
    return folder

def found(folder, *args, **kw): return findings(read_study(make(folder, *args, **kw)))

@pytest.fixture(scope='module', autouse=True)
def coarse():
    "Figures in fewer pixels: the same code, less to do"
    png = Plot.png
    with pytest.MonkeyPatch.context() as m:
        m.setattr(Plot, 'png', lambda self, dpi=100: png(self, 40))
        yield

@pytest.fixture(scope='module')
def f(tmp_path_factory): return found(tmp_path_factory.mktemp('study')/'s')


def check(folder):
    "Write the report, check what holds for every page, and return the page"
    path = study_report(folder)
    text = path.read_text(encoding='utf-8')
    page = Page(text)
    assert path == folder/'report.html' and len(text) < 3e6 and not list(folder.glob('.report*'))
    assert not page.get('script') and not page.get('link') and 'url(' not in text and '@import' not in text
    assert not [k for _, a in page.tags for k in a if k.startswith('on')]
    assert page.get('html') == [dict(lang='en')] and len(page.get('h1')) == 1
    ids = [a['id'] for _, a in page.tags if 'id' in a]
    assert len(ids) == len(set(ids))
    for _, a in page.tags:
        for k in ('src', 'srcset', 'href'):
            v = a.get(k)
            assert (v is None or v.startswith('data:image/png;base64,')
                    or v[0] == '#' and v[1:] in ids), (k, v[:80])
    assert all(len(a.get('alt', '')) > 20 for a in page.get('img'))
    assert len(page.get('img')) == len(page.get('source'))
    assert not re.search(r'\b(nan|None|inf)\b', page.text)
    assert 'dropout off' in page.text and 'not a medical device' in page.text
    for words in page.get('table'): assert page.text
    return page


def drop(*measures):
    def edit(r):
        return dict(r, measures={k: v for k, v in r['measures'].items() if not k.startswith(measures)})
    return edit

def several_labels(r):
    return dict(r, y=np.stack([np.arange(40) % 2, np.arange(40) % 3 == 0], 1).astype(int).tolist())

LAYOUTS = dict(
    plain={}, one_seed=dict(seeds=1), one_arm=dict(arms=dict(baseline={}), headline=[]),
    full=dict(n=['full'], datasets=['pathmnist'], **PROTOCOL), mixed=dict(n=[50, 'full']),
    phantom=dict(datasets=['phantom', 'breastmnist']), part=dict(test_n=40),
    bare=dict(edit=drop('PGD', 'corrupted', 'severity', 'perturbed')), labels=dict(edit=several_labels),
    no_baseline=dict(arms=dict(mi={}, pgd={}), headline=[['pgd', 'mi', 'clean', 'auc']]),
    default=dict(headline=[]),
    lost=dict(edit=lambda r: None if (r['arm'], r['seed']) in (('pgd', 0), ('mi', 1), ('mi', 2)) else r))

@pytest.mark.parametrize('layout', LAYOUTS)
def test_every_layout(tmp_path, layout):
    page = check(make(tmp_path/'s', **LAYOUTS[layout]))
    pictures = dict(one_arm=4, bare=3, labels=4).get(layout, 5)
    assert len(page.get('img')) == pictures
    assert ('cannot be answered' in page.text) == (layout in ('one_seed', 'one_arm', 'bare', 'lost'))

def test_many_arms_with_long_names(tmp_path):
    arms = {f'mi, radius {i/10} and a weight of {i}': dict(arm='mi', radius=.1+i/20) for i in range(16)}
    page = check(make(tmp_path/'s', arms=arms, seeds=2,
                      headline=[[list(arms)[3], list(arms)[9], 'clean', 'auc']]))
    assert all(page.text.count(a) >= 5 for a in arms)

def test_hostile_strings(tmp_path):
    def edit(r):
        if r['seed'] == 1 and r['n'] == 50: return dict(r, status='failed', reason=EVIL)
        perturbed = r['measures']['perturbed']
        more = {EVIL: perturbed, 'corrupted '+EVIL: perturbed}
        return dict(r, versions={EVIL: EVIL}, measures=r['measures'] | more)
    folder = make(tmp_path/'s', edit, arms={'baseline': {}, EVIL: dict(arm='mi')},
                  headline=[[EVIL, 'baseline', 'clean', 'auc']], seeds=3)
    page = check(folder)
    assert page.text.count('alert(1)') > 10 and not [a for _, a in page.tags if 'evil' in str(a.get('src'))]


# What is said

def test_the_headline_is_that_of_the_statistics(f):
    want = headline(tidy(f.study.results), FAMILY, stored_predictions(f.study.cells, f.study.predictions))
    pd.testing.assert_frame_equal(f.head.drop(columns='nothing'), want)
    assert (f.head.nothing == 0).all()
    page = Page(contrasts_html(f))
    for r in want.itertuples():
        lo, hi = (f'{100*v:+.1f}'.replace('-', '−') for v in (r.lo, r.hi))
        assert f'{lo} to {hi}' in page.text and f'{100*r.difference:+.1f}'.replace('-', '−') in page.text
        assert f'{r.p_holm:.3f}' in page.text
    assert page.text.count('open') == 3 and page.text.count('out of reach') == 3          # four seeds
    assert want.image_lo.notna().tolist() == [True, True, False]

@pytest.mark.parametrize('measure, difference, p, said', [
    ('auc', .1, .05, 'better'), ('auc', .1, .051, 'open'), ('auc', -.1, .01, 'worse'),
    ('ece', -.1, .01, 'better'), ('ece', .1, .01, 'worse'), ('nll', .1, .01, 'worse'),
    ('auc', 0., 0., 'open')])
def test_verdicts(measure, difference, p, said):
    assert verdicts(pd.DataFrame([dict(measure=measure, difference=difference, p_holm=p)])) == [said]

def test_a_clear_result_turns_with_the_arms(tmp_path):
    up = found(tmp_path/'up', seeds=8,
               headline=[['mi', 'baseline', 'clean', 'auc'], ['pgd', 'baseline', 'clean', 'auc']])
    assert verdicts(up.head) == ['better', 'worse']
    assert ('1 came out better, 1 worse and 0 stay open' in study_finding(up)
            and re.search(r'mi against baseline on breastmnist: \+5\.\d points of AUC, clean \(.* over 8 '
                          r'seeds\), better', study_finding(up)))
    down = found(tmp_path/'down', seeds=8, headline=[['baseline', 'mi', 'clean', 'auc']])
    assert (verdicts(down.head) == ['worse'] and '−5.' in study_finding(down)
            and '▾ worse' in contrasts_html(down))
    assert 'out of reach' not in study_caution(up)
    assert 'out of reach' in study_caution(replace(up, head=up.head.assign(possible=.06)))

def test_a_likelihood_is_given_in_nats_and_not_drawn(tmp_path):
    g = found(tmp_path/'s', headline=[['mi', 'baseline', 'clean', 'nll'], ['mi', 'baseline', 'clean', 'auc']])
    assert len(g.head) == 2 and 'nats of NLL' in study_finding(g) and contrasts_html(g).count('<svg') == 1

def test_severity_zero_is_of_the_images_that_are_corrupted(tmp_path):
    "Which are the attacked ones, where these are fewer than all"
    def start(g): return severity_plot(g).fig.axes[0].lines[0].get_ydata()[0]
    few = lambda r: dict(r, measures=r['measures'] | {
        'PGD 0/255': dict(accuracy=.1, auc=.1, balanced_accuracy=.123)})
    assert start(found(tmp_path/'few', few)) == .123
    all_ = found(tmp_path/'all', drop('PGD 0'))
    t = all_.means
    own = t[(t.condition == 'clean') & (t.measure == 'balanced_accuracy') & (t.arm == all_.baseline)]
    assert start(all_) == own['mean'].mean()

def test_what_cannot_be_asked_is_said(tmp_path):
    g = found(tmp_path/'s', headline=[['mi', 'baseline', 'PGD 16/255', 'accuracy']], eps=[1, 4, 16])
    assert not len(g.head) and 'PGD 16/255' in study_finding(g) and 'PGD 16/255' in Page(study_html(g)).text

@pytest.mark.parametrize('how', [dict(datasets=['phantom']), dict(test_n=40), dict(split='val')])
def test_no_interval_over_images_that_differ_between_seeds(tmp_path, how):
    g = found(tmp_path/'s', **how)
    assert g.head.image_lo.isna().all() and g.head.lo.notna().all()


# What is lost is marked

def test_every_loss_is_marked_and_counted(f):
    d = differences(f.results)
    keep = [(r.condition, r.measure) in table_columns(f) for r in d.itertuples()]
    better = dict(ece=-1, nll=-1)
    lost = sum(round(r.difference*better.get(r.measure, 1), 3) < 0 for r in d[keep].itertuples())
    page = arms_html(f)
    assert lost == page.count('▾ ') == page.count('> worse<') == page.count('class="n lost"') > 5
    assert f'{lost} are losses' in study_caution(f) and f'Of {sum(keep)} mean' in study_caution(f)

@pytest.mark.parametrize('d, measure, lost', [
    (-.0006, 'auc', True), (-.0004, 'auc', False), (.01, 'auc', False), (.01, 'ece', True),
    (-.01, 'ece', False), (.0006, 'nll', True), (.0004, 'nll', False), (.01, 'seconds', False),
    (np.nan, 'auc', False)])
def test_losses(d, measure, lost): assert is_loss(d, measure) == lost

def test_the_tables_hold_all_arms_and_conditions(f):
    clean = [('clean', m) for m in ('auc', 'accuracy', 'balanced_accuracy', 'ece', 'nll')]
    worse = ('perturbed', 'PGD 0/255', 'PGD 1/255', 'PGD 4/255', 'corrupted')
    assert table_columns(f) == clean + [(c, 'balanced_accuracy') for c in worse]
    text = arms_html(f)
    for r in f.means.itertuples():
        if (r.condition, r.measure) in table_columns(f): assert f'{r.mean:.3f} <small>± {r.sd:.3f}' in text
    assert text.count('<tr>') == 2*(1+3)

def test_failed_and_missing_cells_are_told(tmp_path):
    def edit(r):
        if r['arm'] == 'pgd' and r['seed'] == 2:
            if r['n'] != 50: return None
            return dict(id=r['id'], dataset=r['dataset'], n=r['n'], arm='pgd', seed=2, status='failed',
                        reason='RuntimeError: the disk is full')
        return r
    g = found(tmp_path/'s', edit)
    text = Page(study_facts_html(g)).text
    assert ('breastmnist-50-2-pgd: RuntimeError: the disk is full' in text
            and '22 of 24 cells are finished, 1 failed.' in study_caution(g))
    assert re.search(r'planned24finished22failed1not yet run1', text)
    assert '1 more without a partner' in contrasts_html(g)

def test_pairing_is_checked(f):
    assert dict(pairing(f.study.cells)) == dict.fromkeys(
        ('training subset', 'initial weights', 'order of batches'), 'equal in all 8 groups of arms')
    cells = f.study.cells.copy()
    cells.loc[4, 'weights'] = 'other'
    assert dict(pairing(cells))['initial weights'] == 'differs in 1 of 8 groups of arms'
    longer = cells.assign(order=cells.order.where(cells.arm != 'mi', 'more'), weights='same')
    assert dict(pairing(longer))['order of batches'] == 'differs in 8 of 8 groups of arms'
    assert dict(pairing(longer, ['mi'])) == dict(pairing(f.study.cells))


# What synthesised nothing

def idle(arm, n=None, **facts):
    def edit(r): return r | facts if r['arm'] == arm and n in (None, r['n']) else r
    return edit

CALLED_SO = dict(none=dict(synthetic=0), dropped=dict(gate=.0499), kept=dict(gate=.05))

@pytest.mark.parametrize('case', CALLED_SO)
def test_an_arm_that_synthesised_nothing_is_never_compared(tmp_path, case):
    g = found(tmp_path/'s', idle('mi', **CALLED_SO[case]), seeds=8, headline=FAMILY[:2])
    empty = case in ('none', 'dropped')
    assert nothing_made(g) == ([('mi', 16, 16)] if empty else [])
    assert verdicts(g.head) == ['nothing synthesised' if empty else 'better', 'worse']
    assert ('mi' in set(g.diffs.arm)) == (not empty) and 'pgd' in set(g.diffs.arm)
    assert ('16 of 16 cells of mi' in study_caution(g)) == empty
    assert ('mi against baseline on breastmnist: nothing synthesised' in study_finding(g)) == empty
    t = costs(g).set_index('arm')
    assert np.isnan(t.gain.mi) == empty
    assert families_table(g).set_index('arm').difference.mi.isna().all() == empty
    assert t.kept.mi == CALLED_SO[case].get('gate') or case == 'none' and np.isnan(t.kept.mi)
    assert 'kept by the gate' in costs_html(g)
    assert contrasts_html(g).count('>nothing synthesised<') == empty
    assert arms_html(g).count('>nothing synthesised<') == 2*empty

def test_half_of_the_cells_decide(tmp_path):
    half = found(tmp_path/'half', idle('mi', 50, gate=.01), seeds=8)
    assert verdicts(half.head)[0] == 'nothing synthesised' and nothing_made(half) == [('mi', 8, 16)]
    assert half.diffs[half.diffs.arm == 'mi'].n.unique().tolist() == ['100']
    third = found(tmp_path/'third', idle('mi', 50, gate=.01), seeds=8, n=(50, 100, 'full'),
                  headline=[['mi', 'baseline', 'clean', 'auc', [50, 100, 'full']]])
    assert verdicts(third.head) == ['better'] and 'in 33 % of the cells' in contrasts_html(third)
    # the arm that the others are compared with
    alone = found(tmp_path/'alone', idle('mi', synthetic=0), arms=dict(mi={}, pgd={}), headline=[])
    assert not len(alone.diffs) and costs(alone).gain.isna().all()

@pytest.mark.parametrize('arm, facts, should', [
    ('mixup', dict(synthetic=0), False), ('fgsm', dict(synthetic=0), True),
    ('mixup', dict(synthetic=0, distance_latent=.1), True)])
def test_who_should_synthesise(tmp_path, arm, facts, should):
    "Those with a distance or with callbacks that make images"
    g = found(tmp_path/'s', idle('other', **facts), arms=dict(baseline={}, other=dict(arm=arm)), headline=[],
              seeds=2)
    assert nothing_made(g) == ([('other', 4, 4)] if should else [])

def test_records_of_today_say_it_themselves(f):
    "None where nothing is synthesised by design"
    cells = f.study.cells.assign(threads=1, distance_latent=None)
    made = cells.synthetic.astype(object).where(cells.arm == 'pgd', None)
    cells['synthetic'] = made.where(cells.seed > 0, 0)
    counts = synthesis_counts(replace(f.study, cells=cells)).groupby('arm').nothing.sum()
    assert counts.to_dict() == dict(baseline=2, mi=2, pgd=2)

def test_lines_that_were_left_out_are_told(f):
    f.study.faults = ['line 3 is <b>no record']
    try:
        assert '1 line of cells.jsonl is left out' in study_caution(f)
        assert 'line 3 is &lt;b&gt;no record' in study_facts_html(f)
    finally: f.study.faults = []
    assert 'left out' not in study_caution(f)

def test_arms_of_ones_own_are_in_words(f, monkeypatch):
    monkeypatch.delitem(ARMS_HERE, 'mi'); monkeypatch.delitem(ARMS_HERE, 'pgd')
    told = pd.Series([dict(sentence='Mine', source='me') if a == 'mi' else None for a in f.study.cells.arm])
    g = replace(f, study=replace(f.study, cells=f.study.cells.assign(about=told)))
    assert arms_table(g).sentence.tolist() == ['Real images only', 'Mine', '–']
    assert findings(g.study).arms == list(ARMS) and 'Mine' in study_facts_html(g)


# Official numbers

OTHER = dict(protocol='tsynd', model='small_resnet', size=64, epochs=50, bs=32, lr=.002, balanced=True,
             split='val', test_n=40)

def test_official_numbers_stand_beside_ours_only_under_their_protocol(tmp_path):
    g = found(tmp_path/'same', n=[50, 'full'], datasets=['breastmnist', 'pneumoniamnist'], **PROTOCOL)
    text = Page(official_html(g)).text
    assert departures(g) == []
    assert all(f'{v:.3f}' in text for d in ('breastmnist', 'pneumoniamnist') for v in OFFICIAL[d])
    assert '0.983' not in text
    clean = g.means[g.means.condition == 'clean']
    own = clean[(clean.n == 'full') & clean.measure.isin(['auc', 'accuracy'])]
    assert all(f'{r.mean:.3f} ± {r.sd:.3f}' in text for r in own.itertuples()) and len(own) == 12
    fewer = clean[(clean.n == '50') & (clean.measure == 'auc') & (clean.arm == 'mi')]
    assert f'{fewer["mean"].iloc[0]:.3f}' not in text

def test_arms_with_a_rate_of_their_own_stand_not_beside_them(tmp_path):
    g = found(tmp_path/'own', n=['full'], datasets=['breastmnist'], arms={'baseline': {}, 'mi': dict(lr=.01)},
              headline=[], **PROTOCOL)
    text = Page(official_html(g)).text
    assert 'baseline, ' in text and 'mi, ' not in text and 'of their own: mi' in text

def test_no_official_numbers_without_ours(tmp_path):
    g = found(tmp_path/'s', lambda r: None if (r['dataset'], r['n']) == ('pneumoniamnist', 'full') else r,
              n=[50, 'full'], datasets=['breastmnist', 'pneumoniamnist'], headline=[], **PROTOCOL)
    assert '0.901' in official_html(g) and '0.944' not in official_html(g)

def test_without_a_baseline_the_first_arm_is_named(tmp_path):
    page = check(make(tmp_path/'s', arms={'mi': {}, 'pgd': {}}, headline=[]))
    assert ('paired difference to mi,' in page.text and 'mi = 1' in page.text
            and 'baseline' not in page.text.replace('baseline, longer', ''))

@pytest.mark.parametrize('key', PROTOCOL)
def test_any_departure_hides_them_and_is_named(tmp_path, key):
    g = found(tmp_path/'s', n=['full'], seeds=2, **PROTOCOL | {key: OTHER[key]})
    assert departures(g) == [
        f'{key} is {OTHER[key]}, not {PROTOCOL[key] if key != "test_n" else "the whole split"}']
    assert '0.901' not in official_html(g) and f'{key} is {OTHER[key]}' in official_html(g)

def test_subsets_and_other_sets_have_no_official_numbers(tmp_path):
    assert departures(found(tmp_path/'a', **PROTOCOL)) == ['no arm was trained on the full data']
    g = found(tmp_path/'b', n=['full'], datasets=['phantom'], **PROTOCOL)
    assert departures(g) == ['there are no official numbers for these data sets']

def test_official_numbers_are_as_published():
    assert len(OFFICIAL) == 12 and OFFICIAL['breastmnist'] == (.901, .863)
    assert OFFICIAL['pneumoniamnist'] == (.944, .854)
    assert all(.5 < v < 1 for r in OFFICIAL.values() for v in r)


# Figures

def line(plot, label, panel=0): return next(l for l in plot.fig.axes[panel].lines if l.get_color() == label)

def test_figures_draw_the_means(f):
    colour = dict(zip(coloured_arms(f), ARM_COLOURS['light']))
    for a in f.arms:
        own = f.means[f.means.arm == a]
        t = own[(own.condition == 'clean') & (own.measure == 'auc')].set_index('n')
        assert np.allclose(line(auc_plot(f), colour[a]).get_ydata(), t['mean'][['50', '100']])
        p = pool(f, 'breastmnist', 'balanced_accuracy')[a]
        at, sev = line(attack_plot(f), colour[a]), line(severity_plot(f), colour[a])
        assert at.get_xdata().tolist() == [0, 1, 4]
        assert np.allclose(at.get_ydata(), p[['PGD 0/255', 'PGD 1/255', 'PGD 4/255']])
        assert sev.get_xdata().tolist() == list(range(6))
        assert np.allclose(sev.get_ydata(), p[['clean', *(f'severity {s}' for s in range(1, 6))]])
        want = own[(own.condition == 'PGD 4/255') & (own.measure == 'balanced_accuracy')]['mean'].mean()
        assert np.isclose(p['PGD 4/255'], want)

def test_clean_stands_at_zero_where_nothing_else_does(tmp_path):
    g = found(tmp_path/'s', drop('PGD 0'), headline=FAMILY[:2])
    p = pool(g, 'breastmnist', 'balanced_accuracy')['mi']
    assert np.allclose(line(attack_plot(g), ARM_COLOURS['light'][coloured_arms(g).index('mi')]).get_ydata(),
                       p[['clean', 'PGD 1/255', 'PGD 4/255']])

def test_an_arm_that_lacks_a_size_is_not_pooled(tmp_path):
    g = found(tmp_path/'s', lambda r: None if (r['arm'], r['n']) == ('pgd', 100) else r, n=(50, 100, 'full'))
    p = pool(g, 'breastmnist', 'auc')
    assert p.pgd.isna().all() and p.mi.notna().all() and g.pooled('breastmnist') == ['50', '100']

def test_a_page_of_arms_none_of_which_has_all_sizes(tmp_path):
    folder = make(tmp_path/'s', lambda r: None if r['n'] == (50 if r['arm'] == 'mi' else 100) else r,
                  arms=dict(baseline={}, mi={}), headline=[])
    check(folder)
    g = findings(read_study(folder))
    assert attack_plot(g) is severity_plot(g) is None

def test_colours_are_few_and_fixed(f, tmp_path):
    arms = dict(baseline={}) | {f'mi {i}': dict(arm='mi') for i in range(12)}
    g = found(tmp_path/'s', arms=arms, seeds=2, headline=[['mi 9', 'mi 7', 'clean', 'auc']])
    assert coloured_arms(g) == ['baseline', 'mi 9', 'mi 7', 'mi 0', 'mi 1', 'mi 2', 'mi 3']
    assert coloured_arms(f) == ['baseline', 'mi', 'pgd']
    from tsynd.reports import figure_style
    for dark in (False, True):
        with figure_style(dark) as c: st = line_styles(g, c, dark)
        own = [s for s in st.values() if 'marker' in s]
        assert len(st) == 13
        assert len(own) == 7 == len({s['color'] for s in own}) == len({s['marker'] for s in own})
        assert list(st)[-7:] == coloured_arms(g)
        assert [s['color'] for s in own] == ARM_COLOURS['dark' if dark else 'light']
    assert '6 other arms' in [t.get_text() for t in auc_plot(g).fig.legends[0].get_texts()]

def test_reliability_by_hand():
    p = np.array([[.95, .05]]*10 + [[.45, .55]]*10)
    y = np.r_[np.zeros(9), 1, np.ones(4), np.zeros(6)]
    assert np.allclose(reliability(p, y), [[.55, .4], [.95, .9]])
    rare = np.concatenate([p]*20 + [[[.25, .75]]])
    assert np.allclose(reliability(rare, np.r_[np.tile(y, 20), 0]), [[.55, .4], [.95, .9]])
    assert np.allclose(reliability(np.array([[1., 0], [.5, .5]]), np.array([0, 1]), 4), [[.5, 0], [1, 1]])
    four = np.full((8, 4), .25)
    assert np.allclose(reliability(four, np.arange(8) % 4), [[.25, .25]])

def test_reliability_is_of_all_cells_of_an_arm(f):
    kept = kept_predictions(f, 'breastmnist', 'mi')
    assert len(kept) == 8
    r = reliability(np.concatenate([p for _, p in kept]), np.concatenate([y for y, _ in kept]))
    assert np.allclose(line(reliability_plot(f), ARM_COLOURS['light'][1]).get_xydata(), r)

def test_cost_is_relative_to_the_same_cell(f, tmp_path):
    t = costs(f).set_index('arm')
    assert t.relative.tolist() == [1, 2, 3] and t.seconds.tolist() == [25, 50, 75]
    d = pairs(f.results, 'mi', 'baseline', 'clean', 'auc', 'breastmnist', ('50', '100')).difference
    assert np.allclose(t.loc['mi', ['gain', 'lo', 'hi']].astype(float), [d.mean(), *t_interval(d)])
    g = found(tmp_path/'s', lambda r: None if (r['arm'], r['seed']) == ('baseline', 3)
              else r | dict(seconds=r['seconds']*(9 if r['n'] == 'full' else 1)), n=(50, 'full'))
    assert costs(g).set_index('arm').relative.tolist() == [1, 2, 3]
    assert cost_plot(f).alt.endswith("mi, at 2.0 times the seconds of the baseline.")
    def dearer(r):
        if (r['arm'], r['n']) != ('mi', 100): return r | dict(precision='bfloat16')
        return r | dict(precision='float32', seconds=9*r['seconds'])
    moved = found(tmp_path/'t', dearer)
    t = costs(moved).set_index('arm')
    # half of the cells of mi were trained on a slower machine
    assert t.relative.tolist() == [1, 2, 3] and t.seconds.tolist() == [25, 50, 75]

def test_drawing_leaves_no_trace(f):
    before = dict(matplotlib.rcParams)
    study_html(f)
    assert dict(matplotlib.rcParams) == before


# Folders

def test_bad_folders_are_refused(tmp_path):
    with refused(tmp_path/'study.toml'): study_report(tmp_path)
    with refused(tmp_path/'s'):
        study_report(make(tmp_path/'s', lambda r: None))
    with refused(tmp_path/'t'):
        study_report(make(tmp_path/'t', lambda r: dict(r, status='failed', reason='x')))
    blocked = make(tmp_path/'u')
    (blocked/'report.html').mkdir()
    with refused(blocked/'report.html'): study_report(blocked)

def test_the_same_study_makes_the_same_page(tmp_path):
    a, b = make(tmp_path/'a'), make(tmp_path/'b')
    lines = (b/'cells.jsonl').read_text().splitlines(keepends=True)
    (b/'cells.jsonl').write_text(''.join(np.random.default_rng(0).permutation(lines)))
    assert study_report(a).read_text() == study_report(b).read_text()
