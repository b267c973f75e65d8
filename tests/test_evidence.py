"""The pages of the evidence: numbers are what the studies give, sentences hold, pages stay short."""
import importlib.util
import json
import re
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[1]
HERE = ROOT/'nbs'/'evidence'
PAGES = sorted(HERE.glob('*.ipynb'))
WORDS = {'index': 700}                                                  # all others: 1,200
SAY = re.compile(r'say\("""(.*)"""\)', re.S)
BOTH,SIZES = ('breast','pneumonia'), (50, 100, 200)
CLEAN = ('auc','accuracy','balanced')
SHOWN = (*CLEAN,'perturbed_auc','perturbed','corrupted_auc','corrupted','pgd2','pgd4')


@cache
def module(name):
    "A script of the folder, imported under a name of its own"
    spec = importlib.util.spec_from_file_location(f'evidence_{name}', HERE/f'{name}.py')
    m = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(m)
    return m

def cells(page): return json.loads(page.read_text(encoding='utf-8'))['cells']

def outputs(page, kind):
    return [''.join(o['data'][kind]) for c in cells(page) for o in c.get('outputs', [])
            if kind in o.get('data', {})]

def claim(id): return module('pages').claim(id)

def value(pair, k='', d='', n=100): return claim(f'{pair}/{d}/{n}/{k}' if k else pair).value

def values(pair, k, n=100): return [value(pair, k, d, n) for d in BOTH]

def clear(id):
    "1 or -1 where the interval leaves out 0, else 0"
    q = claim(id)
    return 1 if q.lo > 0 else -1 if q.hi < 0 else 0

def clears(*ids): return [clear(i) for i in ids]

def signs(pair, k, n=100): return [clear(f'{pair}/{d}/{n}/{k}') for d in BOTH]


# The table

def test_claims_and_losses_are_what_the_studies_give():
    made = module('claims')
    claims,lost = made.make(images=False)
    assert made.changed(claims, numbers=[k for k in made.NUMBERS if 'image' not in k]) == []
    seen = claims[claims.image_lo.notna()]    # the bootstrap of images: of the headline it takes too long
    assert len(seen) == 6 and not set(made.changed(seen)) & set(seen.id)
    kept = pd.read_csv(HERE/'losses.csv', dtype={'n': str})
    pd.testing.assert_frame_equal(kept, lost.astype({'n': str}), check_dtype=False, atol=2e-3)

def test_a_changed_number_a_changed_verdict_and_a_missing_claim_are_found():
    made,claims = module('claims'), pd.read_csv(HERE/'claims.csv')
    assert made.changed(claims) == []
    moved = claims.assign(value=claims.value + .01*(claims.id == 'mi-baseline/breast/100/pgd4'),
                          verdict=claims.verdict.mask(claims.id == 'mi-entropy/pneumonia/100/auc', 'open'))
    assert set(made.changed(moved)) == {'mi-baseline/breast/100/pgd4', 'mi-entropy/pneumonia/100/auc'}
    assert made.changed(claims.iloc[1:]) == [claims.id[0]]

def test_a_difference_is_the_one_of_the_statistics_chapter():
    from tsynd.experiments import contrast, tidy
    from tsynd.experiments import read_study
    t = contrast(tidy(read_study(ROOT/'nbs'/'studies'/'half').results), 'mi_pgd', 'pgd, 4 steps',
                 'PGD 4/255', 'balanced_accuracy', 'breastmnist', 100)
    q = claim('half:mi_pgd-pgd_4_steps/breast/100/pgd4')
    assert np.allclose([q.value, q.lo, q.hi], [100*t[k] for k in ('difference','lo','hi')], atol=1e-3)
    assert q.seeds == t['seeds'] == 10


# The pages

@pytest.mark.parametrize('page', PAGES, ids=lambda p: p.stem)
def test_page_is_short_and_its_numbers_are_claims(page):
    "Markdown and told paragraphs, as saved; these say what the table says, no result is written by hand"
    told = [(m[1], c) for c in cells(page) if (m := SAY.search(''.join(c['source'])))]
    pages = module('pages')
    for text,cell in told:
        assert ''.join(cell['outputs'][0]['data']['text/markdown']) == pages.told(text), 'run the page again'
    plain = [''.join(c['source']) for c in cells(page) if c['cell_type'] == 'markdown']
    prose = '\n'.join(plain + outputs(page, 'text/markdown'))
    words = [w for line in prose.splitlines() if not line.startswith('|')
             for w in line.split() if re.search(r'\w', w)]
    assert len(words) <= WORDS.get(page.stem, 1200)
    for text in plain:
        plain = re.sub(r'`[^`]*`|\]\([^)]*\)', '', text)
        assert not re.findall(r'±|[+−]\d|\d\.\d', plain), 'a result written by hand; name a claim'

def test_every_interval_in_a_table_is_a_claim():
    pages,lost = module('pages'), pd.read_csv(HERE/'losses.csv')
    known = {pages.number(i, how).replace('\xa0', ' ')
             for i,q in pages.CLAIMS.iterrows() if q.lo == q.lo for how in ('','span')}
    known |= {f"{pages.signed(q.difference, k)} ± {(q.hi-q.lo)/2:.{k}f}"
              for q in lost.itertuples() for k in [2 if q.unit == 'nats' else 1]}
    shown = {v.replace('\xa0', ' ') for p in PAGES for html in outputs(p, 'text/html')
             for v in re.findall(r'[+−]?\d+\.\d+\s±\s\d+\.\d+', html)}
    assert len(shown) > 300 and shown <= known

def test_a_claim_that_is_not_there_is_named():
    with pytest.raises(KeyError, match='mi-nothing'): module('pages').told('{mi-nothing/breast/100/auc}')


# What the sentences say: index and protocol

def test_settled_in_both_runs_is_robustness_alone():
    t = module('pages').CLAIMS[lambda t: t.p_holm.notna()]
    first,second = (t[t.source == s] for s in ('studies/uneven','studies/headline'))
    settled = {i: v for i,v in second.verdict.items() if v != 'open'}
    assert len(first) == len(second) == 22 and (second.seeds == 12).all() and (first.seeds == 12).all()
    assert settled == ({f'mi-baseline/{d}/100/pgd4': 'better' for d in BOTH}
                       | {f'mi_fgsm-pgd/{d}/100/pgd4': 'worse' for d in BOTH}
                       | {'mi-entropy/pneumonia/100/auc': 'worse',
                          'mi-cross_entropy/breast/100/auc': 'worse'})
    before = {i.removeprefix('uneven:'): v for i,v in first.verdict.items() if v != 'open'}
    assert len(before) == 6 and set(before.values()) == {'better'}
    assert before.keys() & settled.keys() == {f'mi-baseline/{d}/100/pgd4' for d in BOTH}
    assert .049 < t.p_holm['mi-entropy/pneumonia/100/auc'] < .05
    assert t.p_holm[list(settled)].nlargest(2).iloc[1] < .04
    assert second[second.condition == 'clean'].image_lo.notna().all()
    assert second[second.condition != 'clean'].image_lo.isna().all()

def test_what_mi_brings_and_costs_at_100_images():
    assert signs('mi-baseline', 'auc') == [0, 0] and signs('mi-baseline', 'nll') == [1, 1]
    assert signs('mi_default-baseline', 'nll') == [0, 0]
    assert clears('mi-baseline/breast/100/accuracy', 'mi-baseline/breast/100/perturbed_accuracy',
                  'mi-baseline/breast/100/corrupted_accuracy') == [-1]*3
    assert signs('mi_default-baseline', 'accuracy') == [0, 0] and clear('mi-baseline/breast/100/ece') == 1
    assert signs('mi_default-baseline', 'ece') == [0, 0]
    assert all(clear(f'mi-baseline/pneumonia/100/{k}') == 1
               for k in ('perturbed_auc','corrupted_auc','corrupted'))
    assert clear('mi-baseline/breast/100/corrupted_auc') == 1
    assert not any(clear(f'mi-baseline/breast/100/{k}') == 1
                   for k in ('perturbed_auc','perturbed','corrupted'))
    assert signs('mi_default-baseline', 'corrupted') == [1, 1]
    assert [round(v) for v in values('mi', 'pgd4')] == [6, 35]
    assert [round(v) for v in values('baseline', 'pgd4')] == [0, 4]
    for k in ('reconstruction','random','random_as_far','random_as_far_in_pixels','baseline_longer'):
        assert signs(f'mi-{k}', 'pgd4') == [1, 1] and max(values(f'{k}-baseline', 'pgd4')) < 5
    whole = [value(f'price/mi_default/{d}') + value(f'price/autoencoder/{d}') for d in BOTH]
    assert all(3.9 < w < 4.4 for w in whole)

def test_search_and_arms():
    pages = module('pages')
    found = pages.CLAIMS[pages.CLAIMS.index.str.startswith('search/')]
    assert len(found) == 48 and (found.verdict == 'chosen').sum() == 12
    assert found.arm[found.verdict == 'best by AUC'].nunique() == 8
    assert 'mi' in set(found.arm[found.verdict == 'best by AUC'])
    assert found.verdict['search/mi, weight 4, radius 0.6'] == 'chosen'
    autoencoder = np.mean([value(f'price/autoencoder/{d}') for d in BOTH])*value('training/baseline/seconds')
    assert 1.05 < value('training/baseline_longer/seconds')/(value('training/mi/seconds')+autoencoder) < 1.14


# What helps

def test_random_steps_beside_mi():
    assert [clear(f'mi-random_as_far/pneumonia/100/{k}')
            for k in ('perturbed_auc','perturbed','corrupted')] == [1, 1, 1]
    assert [clear(f'mi-random_as_far_in_pixels/pneumonia/100/{k}')
            for k in ('perturbed_auc','perturbed','corrupted')] == [0, 1, 0]
    assert .9 < value('way/random_as_far_in_pixels/breast') < .95
    assert 1.1 < value('way/random_as_far_in_pixels/pneumonia') < 1.2
    assert value('training/random_as_far_in_pixels/latents') > 1.7*value('training/mi/latents')
    assert abs(value('training/random_as_far/latents')/value('training/mi/latents')-1) < .2
    def part(arm, k, d): return value(f'{arm}-baseline', k, d)/value('mi-baseline', k, d)
    for k in ('perturbed_auc','corrupted'):
        assert .5 < part('random_as_far', k, 'pneumonia') < .65
        assert .25 < part('reconstruction', k, 'pneumonia') < .45
        assert part('random_as_far_in_pixels', k, 'pneumonia') > .9
    assert part('random_as_far', 'accuracy', 'breast') < .33
    assert clear('random_as_far_in_pixels-baseline/breast/100/corrupted') == 1
    assert not any(clear(f'{a}-baseline/breast/100/corrupted_auc') == 1
                   for a in ('random','random_as_far','random_as_far_in_pixels'))
    assert 4 < (value('mi-baseline', 'pgd4', 'pneumonia')
                - value('mi-random_as_far_in_pixels', 'pgd4', 'pneumonia')) < 6

def test_entropy_cross_entropy_and_pixels_beside_mi():
    assert max(values('mi-entropy', 'auc')) < 0 and value('mi-cross_entropy', 'balanced', 'breast') > 4.5
    assert clear('mi-cross_entropy/breast/100/accuracy') == -1
    assert clears('mi-entropy/pneumonia/100/pgd4', 'mi-cross_entropy/pneumonia/100/pgd4',
                  'mi-entropy/breast/100/pgd4') == [1]*3
    assert clear('mi-cross_entropy/breast/100/pgd4') == 0
    t = module('pages').CLAIMS
    for k in ('nll','ece'):
        arms = t.loc[t.index.str.match(rf'[\w]+/breast/100/{k}$'), 'value']
        assert arms.idxmin() == f'cross_entropy/breast/100/{k}'
    assert signs('mi-pixel_mi', 'pgd4') == [-1, -1]
    assert all(v < -2.5 for k in ('perturbed','corrupted') for v in values('mi-pixel_mi', k))
    assert all(abs(v) < 1.2 for k in ('auc','perturbed_auc','corrupted_auc')
               for v in values('mi-pixel_mi', k))
    assert value('pixel_mi/pneumonia/100/one_class') == 1

def test_the_hole():
    rise = {h: value(f'hole/{h}/mi/after') - value(f'hole/{h}/mi/before') for h in ('inside','edge')}
    assert rise['inside'] > .3 and 0 < rise['edge'] < .06
    assert abs(value('hole/inside/random/after') - value('hole/inside/random/before')) < .02
    assert value('hole/edge/oracle-baseline') > 27
    assert clears('hole/edge/mi-baseline', 'hole/inside/mi-baseline') == [0]*2
    assert clears('hole/edge/oracle-baseline', 'hole/inside/oracle-baseline') == [1]*2


# Rivals

def test_cheap_rivals():
    assert [signs('trivialaugment-mi', k) for k in ('perturbed','corrupted')] == [[1, 1], [1, 0]]
    assert signs('trivialaugment-baseline', 'auc')[0] == -1
    assert max(values('trivialaugment-baseline', 'auc')) < 0
    assert [signs('trivialaugment-mi', k) for k in ('perturbed_auc','corrupted_auc')] == [[0, -1], [0, -1]]
    assert signs('trivialaugment-baseline', 'pgd4') == [0, 0]
    assert signs('fgsm-mi', 'pgd4') == [1, 1] and not any(s == -1 for k in SHOWN for s in signs('fgsm-mi', k))
    assert all(-4 < value('mixup-baseline', k, 'pneumonia') < -2.5
               for k in ('auc','perturbed_auc','corrupted_auc'))
    assert signs('mixup-baseline', 'corrupted') == [1, 1]
    assert [value(f'{a}/{d}/100/one_class') for a in ('joint','mi_mixup') for d in BOTH] == [3, 1, 1, 1]
    assert max(a-b for a,b in zip(values('joint-baseline', 'pgd4'), values('fgsm-baseline', 'pgd4'))) < 0

def test_beside_adversarial_training():
    assert all(claim(f'mi_fgsm-pgd/{d}/100/pgd4').hi < 0 and claim(f'mi_fgsm-pgd/{d}/100/pgd4').lo < -3
               for d in BOTH)
    assert all(abs(v) < .6 for v in values('mi_fgsm-pgd', 'auc'))
    assert clear('mi_fgsm-pgd/pneumonia/100/balanced') == -1
    for d in BOTH:
        ours,ae = value(f'price/mi_fgsm/{d}'), value(f'price/autoencoder/{d}')
        assert ours < value(f'price/pgd/{d}') < ours+ae
        assert value(f'price/fgsm/{d}') < .55*value(f'price/mi_fgsm/{d}')
    # three steps would be the cheaper way
    assert (np.mean([(value(f'price/pgd/{d}')-1)*3/7+1 for d in BOTH])
            < np.mean([value(f'price/mi_fgsm/{d}') for d in BOTH]))
    assert 0 < value('search/pgd, weight 1, steps 7') - value('search/pgd, weight 4, steps 3') < .02

def test_the_larger_box():
    assert all(abs(v) < 1.5 for v in values('pgd_8-pixel_mi', 'pgd4'))
    assert signs('pgd_8-pgd', 'auc') == [-1, -1] and all(-1.5 < v < -.5 for v in values('pgd_8-pgd', 'auc'))
    assert signs('mi_fgsm_8-pgd', 'pgd4') == [1, 1]
    assert not any(s == 1 for k in SHOWN[:7] for s in signs('mi_fgsm_8-pgd', k))
    assert signs('mi_fgsm_8-pgd_8', 'pgd4') == [-1, -1] and signs('mi_fgsm_8-fgsm_8', 'pgd4') == [0, 0]
    assert value('pgd_8-pixel_mi', 'accuracy', 'breast') > 3
    assert -3.5 < value('pgd_8-pixel_mi', 'balanced', 'breast') < -2.5
    assert value('training/pixel_mi/pixels')*255 == pytest.approx(5, abs=.3)

def test_several_steps_and_their_controls():
    assert all(claim(f'mi_pgd-pgd/{d}/100/pgd4').lo > -2.1 and claim(f'mi_pgd-pgd/{d}/100/pgd4').seeds == 12
               for d in BOTH)
    assert signs('mi_pgd-pgd', 'auc') == signs('mi_pgd-pgd', 'corrupted') == [0, 0]
    assert .75 < value('short_price/mi_pgd')/value('short_price/pgd') < .9
    assert signs('mi_pgd-pgd', 'pgd4')[0] == -1
    assert not any(s == 1 for k in SHOWN for s in signs('mi_pgd-pgd', k))
    assert all(clear(f'mi_pgd-pgd/pneumonia/100/{k}') == -1 and value('mi_pgd-pgd', k, 'pneumonia') > -.34
               for k in ('perturbed_auc','corrupted_auc'))
    assert max(values('mi_pgd-fgsm_8', 'pgd4')) < -4
    for d in BOTH:
        assert (min(value(f'where/{b}/{d}/high') for b in ('entropy','loss','loss_after_one_step'))
                > value(f'where/MI/{d}/high') > 55)
    assert signs('half:mi_pgd-random_pgd', 'pgd4') == [0, 0]
    assert signs('half:mi_pgd-pgd_4_steps', 'pgd4') == [-1, 0] and .85 < value('half:price/pgd_4_steps') < .88
    t = module('pages').CLAIMS
    rest = [i for i in t.index if i.startswith('half:mi_pgd-') and not i.endswith('pgd4')]
    assert len(rest) == 24
    assert {i for i in rest if clear(i)} == {f'half:mi_pgd-pgd_4_steps/pneumonia/100/{k}'
                                             for k in ('auc','perturbed_auc','corrupted_auc')}
    assert all(-.34 < claim(i).value < 0 for i in rest if clear(i))

def test_the_suite_of_attacks():
    t = module('pages').CLAIMS[lambda t: t.index.str.match('suite')]
    assert (t.verdict.dropna() == 'no sign of gradient masking').all() and t.verdict.notna().sum() > 140
    below = t.value[t.index.str.endswith('/below')]
    first = below[below.index.str.startswith('suite/')]
    assert len(first) == 14 and (first > 2).sum() == 3 and first.max() < 4.1 and below.max() < 5.6
    assert below[below.index.str.contains('/pneumonia/')].nlargest(2).index.str.contains('/mi/').all()
    for n,d in [(n, d) for n in ('suite','suite_again') for d in BOTH]:
        worst = [value(f'{n}/{a}/{d}/worst case') for a in ('pgd','mi_fgsm','mi','baseline')]
        assert worst == sorted(worst, reverse=True) and len(set(worst)) == 4
        for a in ('pgd','mi'):
            found = {k: value(f'{n}/{a}/{d}/{k}') for k in ('APGD-CE','APGD-margin','Square','worst case')}
            assert min(found['APGD-CE'], found['APGD-margin']) == found['worst case'] < found['Square']
    assert [value(f'suite/mi/{d}/rank') for d in BOTH] == [1, 12]


# Sizes

def test_50_and_200_images():
    for n in SIZES:
        assert signs('mi-baseline', 'auc', n) == [0, 0]
        assert signs('mi-random', 'pgd4', n) == signs('mi-reconstruction', 'pgd4', n)[1:]*2 == [1, 1]
        assert min(values('fgsm-mi', 'pgd4', n)) > 10
        assert min(values('mi-baseline', 'corrupted', n)) > 0
        assert min(values('trivialaugment-mi', 'corrupted', n)) > .5
        assert signs('baseline_longer-baseline', 'auc', n) == [-1, -1]
        assert 1.5 < value('mi_default-baseline', 'balanced', 'breast', n) < 5.5
        assert clear(f'mi-entropy/pneumonia/{n}/auc') == -1
        assert all(2.5 < value(f'mi-{a}', 'corrupted', 'pneumonia', n) < 3.7
                   for a in ('reconstruction','entropy'))
        assert min(values('pgd-mi', 'pgd4', n)) > 15 and min(values('pgd-mi', 'auc', n)) > 0
        assert -45 < value('mi-pixel_mi', 'pgd4', 'breast', n) < -38
        assert -31 < value('mi-pixel_mi', 'pgd4', 'pneumonia', n) < -27
        assert signs('mixup-baseline', 'corrupted', n) == [1, 1]
        assert -4 < value('mixup-baseline', 'auc', 'pneumonia', n) < -3
        assert clear(f'joint-fgsm/pneumonia/{n}/balanced') == -1
        assert [s for k in ('auc','balanced','corrupted','pgd2','pgd4')
                for s in signs('joint-fgsm', k, n) if s == 1] == []
        assert signs('joint-fgsm', 'pgd8', n) == [0, int(n == 50)]
        assert not any(s == 1 for k in (*CLEAN, 'corrupted') for s in signs('mi_mixup-mi', k, n))
        assert value('mi_mixup-mi', 'pgd4', 'pneumonia', n) < 0
    assert [clear(f'mi-baseline/breast/{n}/accuracy') for n in SIZES] == [0, -1, -1]
    assert value('mi-baseline', 'accuracy', 'breast', 200) < value('mi-baseline', 'accuracy', 'breast')
    assert clears('mi-baseline/pneumonia/200/balanced', 'random-baseline/breast/200/auc',
                  'mi-pixel_mi/pneumonia/50/auc', 'mi_mixup-mi/breast/200/pgd2') == [1]*4
    assert clear('mi-random/breast/200/auc') == -1
    assert [clear(f'mi_mixup-mi/pneumonia/{n}/auc') for n in SIZES] == [-1, 0, 0]
    assert clear('mi_mixup-mi/pneumonia/200/perturbed_auc') == -1
    assert abs(value('mi-baseline', 'balanced', 'pneumonia', 200)
               - value('random-baseline', 'balanced', 'pneumonia', 200)) < 1.5
    assert [clear(f'mi-cross_entropy/breast/{n}/auc') for n in SIZES] == [0, -1, -1]
    assert clear('mi-cross_entropy/pneumonia/200/auc') == 1

def test_an_attack_with_tsynd_by_size():
    assert [[clear(f'mi_fgsm-pgd/{d}/{n}/pgd4') for n in SIZES] for d in BOTH] == [[-1, -1, 0], [-1, -1, -1]]
    assert [[claim(f'mi_fgsm-pgd/{d}/{n}/pgd4').lo > -3 for n in SIZES] for d in BOTH] == [
        [False, False, True], [False]*3]
    assert signs('mi_fgsm-fgsm', 'pgd4', 50) == [-1, -1] and signs('mi_fgsm-fgsm', 'pgd4', 200) == [1, 0]
    assert min(values('mi_fgsm-fgsm', 'pgd4', 200)) > 0 and clear('mi_fgsm-pgd/pneumonia/200/pgd8') == -1

def test_all_labels():
    def seeds(arm, d, k): return [value(f'full:{arm}-baseline/{d}/{k}/seed{s}') for s in (0, 1)]
    assert all(max(seeds('mi', d, 'auc')) < -1.5 and max(abs(v) for v in seeds('mi_default', d, 'auc')) < .6
               for d in BOTH)
    assert max(seeds('mi', 'breast', 'accuracy')) < -7 and max(seeds('mi', 'pneumonia', 'corrupted')) < -1
    assert all(min(seeds('pgd', d, 'pgd4')) > max(0, max(seeds('mi', d, 'pgd4'))+10)
               and min(seeds('pgd', d, 'corrupted')) > 1.6 for d in BOTH)
    assert min(seeds('mi', 'pneumonia', 'pgd4')) > 20
    assert [value(f'{s}:higher/{k}') for s in ('official','official_xrays') for k in CLEAN] == [
        4, 5, 5, 1, 0, 0]
    assert [value(f'official:images/{e}') for e in ('min','max')] == [2, 7]
    assert clear('official:mi_default-baseline/breast/full/accuracy') == 1
    assert clears('official_xrays:mi_default-baseline/pneumonia/full/accuracy',
                  'official_xrays:mi_default-baseline/pneumonia/full/balanced') == [-1]*2
    assert [clear(f'official_xrays:mi_default-baseline/pneumonia/full/{k}')
            for k in ('nll','ece','auc','pgd4')] == [1, 1, 0, 0]
    assert claim('official:mi_default-baseline/breast/full/auc').p > .06


# Replication and limits

def test_a_batch_of_four():
    assert value('uneven:baseline/pneumonia/100/auc') < value('uneven:baseline/pneumonia/50/auc')
    assert (value('baseline', 'auc', 'pneumonia', 50) < value('baseline', 'auc', 'pneumonia')
            < value('baseline', 'auc', 'pneumonia', 200))
    for a in ('baseline','reconstruction'): assert min(values(f'runs:{a}-{a}_first_run', 'auc')) > 1
    assert max(values('runs:mi-mi_first_run', 'auc')) < 0 and max(values('runs:mi-mi_first_run', 'pgd4')) < -3
    assert signs('runs:baseline-baseline_first_run', 'auc') == [0, 1]
    assert clear('runs:mi-mi_first_run/breast/100/auc') == 0

def test_precision_changes_little():
    t = module('pages').CLAIMS[lambda t: t.index.str.startswith('precision:')]
    assert len(t) == 18
    assert {i for i in t.index if clear(i)} == {
        'precision:breast/balanced', 'precision:pneumonia/perturbed_auc'}
    assert t.value.abs().max() < 2 and -6.5 < t.lo['precision:breast/pgd4'] < -5.5
    same = 'same:mi_float32-random_as_far_in_pixels/pneumonia/100/'
    assert [clear(same+k) for k in ('perturbed_auc','corrupted','perturbed','auc')] == [0, 0, 1, 1]

def test_the_published_numbers():
    def short(init, k): return -value(f'letter:breast/{init}/chosen/{k}-published')
    assert [short(i, k) <= 1.5 for i in ('torchvision_5','pytorch_5') for k in ('auc','accuracy')] == [
        True, False, False, True]
    assert all(abs(value(f'letter:breast/pytorch_20/{w}/{k}-published')) < .5
               for w in ('chosen','last') for k in ('auc','accuracy'))
    assert clear('letter:pneumonia/pytorch_5/chosen/accuracy-published') == 1
    assert all(abs(value(f'letter:pneumonia/pytorch_5/last/{k}-published')) < 1.05
               for k in ('auc','accuracy'))

def test_first_weights_differ_clearly_once_in_four():
    from scipy.stats import ttest_ind
    t = pd.read_csv(ROOT/'nbs'/'studies'/'official.csv').query("dataset == 'breastmnist' and dropout == 0")
    def own(init, when, k, seeds): return t[(t.init == init) & (t.measured == when) & (t.seed < seeds)][k]
    p = {(w, k): ttest_ind(own('pytorch', w, k, 20), own('torchvision', w, k, 5), equal_var=False).pvalue
         for w in ('chosen','last') for k in ('auc','accuracy')}
    assert {q for q,v in p.items() if v < .05} == {('chosen','accuracy')}

def test_where_it_hurts():
    worse = pd.read_csv(HERE/'losses.csv', dtype={'n': str}).query("clearly == 'worse'")
    worst = worse[worse.measure == 'balanced_accuracy'].set_index(['arm','dataset','n','condition'])
    worst = worst.difference.sort_index()
    assert worst['mi','breastmnist','200'].round().to_dict() == {
        'perturbed': -4, 'corrupted motion_blur': -7, 'corrupted jpeg_compression': -4}
    assert worst['mi','breastmnist'].index.get_level_values(0).unique().tolist() == ['200']
    assert not len(worse.query("arm == 'mi' and dataset == 'breastmnist' and n == '50'"))
    assert len(worse.query("arm == 'mi_default' and n != '50'")) == 2
    assert worst['mi_default','pneumoniamnist','50'].between(-3.5, -1.9).all()
    assert len(worst['mi_default','pneumoniamnist','50']) == 4
    assert len(worse) == sum(value(f'losses/{n}/worse') for n in SIZES) == 62

def test_classes_and_calibration():
    assert value('baseline/breast/100/recall0') < 50
    assert [clear(f'{a}-baseline/breast/100/recall{k}')
            for a in ('mi','mi_default','random_as_far','trivialaugment') for k in (0, 1)] == [1, -1]*4
    benign = {a: value(f'{a}/breast/100/called') - value('share/breast')
              for a in ('baseline','mi','entropy','pixel_mi')}
    assert benign.pop('baseline') > 0 and max(benign.values()) < 0
    lack = {a: value(f'{a}/breast/100/nll') - value('baseline/breast/100/nll')
            for a in ('mi','reconstruction','random')}
    assert .4 < lack['reconstruction']/lack['mi'] < .6 and lack['random'] < .1*lack['mi']
    assert all(value(f'entropy/{d}/100/nll') > value(f'baseline/{d}/100/nll') for d in BOTH)

def test_families_of_corruption():
    t = module('pages').CLAIMS[lambda t: t.measure == 'balanced_accuracy']
    t = t[t.condition.fillna('').str.startswith('corrupted ')]
    noisy = {'breastmnist': {'corrupted speckle_noise'},
             'pneumoniamnist': {f'corrupted {k}_noise' for k in ('gaussian','impulse','shot')}}
    for (d,a),own in t.groupby(['dataset','arm']):
        if a in ('mi','fgsm','pgd'): assert set(own.nlargest(len(noisy[d]), 'value').condition) == noisy[d]
    light = (t[t.condition.str.match('corrupted (bright|contrast|gamma)')]
             .pivot(index=['dataset','condition'], columns='arm', values='value'))
    assert (light.idxmax(axis=1) == 'trivialaugment').mean() >= .7
    assert (light.loc['pneumoniamnist','corrupted brightness_up'][['fgsm','pgd','pixel_mi']] < -5).all()
    dark = 'mi-baseline/breast/100/brightness_down'
    assert value(f'{dark}_accuracy') < value(dark) - 8
