"""Studies of readers: the numbers are right where they are known, the page works in a browser and is blind,
files that are damaged or of another study get one sentence."""
import base64, contextlib, io, json, re

import numpy as np
import pytest

from refused import refused
from tsynd.audit import (
    against_chance, as_chance, crossed, ImageSet, krippendorff_alpha, level_counts, reader_measures,
    reader_power, Simulated, simulated_levels, simulated_truth)
from tsynd.cli import main
from tsynd.core import InputError, ReaderSettings
from tsynd.data import phantom
from tsynd.deployment import wilson
from tsynd.reports import (
    make_reader_study, read_answers, read_key, read_scores, reader_html, score_readers)

# the browser, which one worker has
pytestmark = pytest.mark.xdist_group('site')


# Numbers

def test_counts_leave_out_what_was_not_answered():
    counts = level_counts([[0, 5, np.nan, 5]], [0, 0, 1, 1])
    assert counts.sum() == 3 and counts[0,0,0] == counts[0,0,5] == counts[0,1,5] == 1
    with refused('levels'): level_counts([[6]], [1])

def test_somebody_who_calls_everything_real_guesses_and_is_biased():
    m = {k: v[0] for k,v in reader_measures(level_counts([[0]*20], [0, 1]*10)).items()}
    assert m['accuracy'] == .5 and m['AUC'] == .5 and m["d′"] == 0 and m['criterion'] > 1

def test_auc_is_that_of_scikit_learn():
    from sklearn.metrics import roc_auc_score
    levels,synthetic = simulated_levels(Simulated(1.), 1, 80)
    assert np.isclose(reader_measures(level_counts(levels, synthetic))['AUC'][0],
                      roc_auc_score(synthetic, levels[0]))

@pytest.mark.parametrize('measure', ['accuracy', "d′", 'AUC'])
def test_intervals_cover(measure):
    about = Simulated(.8, .1, .3, .3, .4)
    truth,covered = simulated_truth(about)[measure],0
    for k in range(150):
        lo,hi = crossed(*simulated_levels(about, 5, 80, k), measure).interval()
        covered += lo <= truth <= hi
    assert .89 <= covered/150 <= .995

def test_one_reader_has_an_interval_over_images():
    levels,synthetic = simulated_levels(Simulated(), 1, 200)
    c = crossed(levels, synthetic)
    assert np.isclose(c.se, (c.value*(1-c.value)/200)**.5, rtol=.05)
    with refused('images'): crossed([[0, 1, 2]], [0, 1, 1])

def test_tests_are_two_questions():
    found = [crossed(*simulated_levels(Simulated(d), 10, 400, 1)) for d in (0., 2.)]
    assert against_chance(found[0]) > .05 >= as_chance(found[0], .1)
    assert against_chance(found[1]) <= .05 < as_chance(found[1], .1)
    with refused('margin'): as_chance(found[0], 0)

@pytest.mark.parametrize('right,images', [(1., 4), (1., 100), (.97, 100)])
def test_an_interval_of_one_reader_is_that_of_a_share(right, images):
    "About Wilson's, also where nearly all is right"
    synthetic = np.arange(images) >= images//2
    wrong = np.arange(images) % 33 == 5 if right < 1 else np.zeros(images, bool)
    levels = 5.*(synthetic ^ wrong)
    lo,hi = crossed([levels], synthetic).interval()
    low,_ = wilson(images-int(wrong.sum()), images)
    assert lo < 1 >= hi and lo < low+.04

def test_alpha_without_a_choice_is_undefined():
    assert np.isnan(krippendorff_alpha([[1, 1], [1, 1]])) and np.isnan(krippendorff_alpha([[0, 1]]))
    assert krippendorff_alpha([[0, 1]*50, [1, 0]*50]) < -.9

def test_power_grows_and_keeps_its_level():
    small,large = (reader_power(r, 200, .6)['other than chance'] for r in (3, 10))
    assert small < large
    assert reader_power(5, 100, .5)['other than chance'] < .07
    assert reader_power(5, 100, .6)['as chance'] < .06                               # at the margin


# Make, read, score

def images(name, seed, n=80):
    d = phantom(n_train=n, seed=seed, size=16)
    return ImageSet('real', name, d.train.x, [d.classes[c] for c in d.train.y], d.classes, None, None)

WANTED = ReaderSettings(n=8, repeats=2, practice=1)

@pytest.fixture(scope='module')
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp('readers')/'s'
    return make_reader_study(images('one', 1), images('two', 2), folder, WANTED)

@pytest.fixture
def key(study): return read_key(study.parent/'key'/'key.json')

def answered(key, tmp_path, name='a.json', **changes):
    answers = [dict(kind=5*i['synthetic'], finding=0, seconds=1.) for i in key['items']]
    content = dict(format='tsynd answers 1', study=key['study'], reader='A', answers=answers) | changes
    (tmp_path/name).write_text(json.dumps(content))
    return tmp_path/name

def test_half_are_synthetic_and_labels_do_not_speak_for_a_kind(key):
    tested = [i for i in key['items'][2:] if i['repeats'] is None]
    assert len(tested) == 8 and sum(i['synthetic'] for i in tested) == 4
    labels = [sorted(i['label'] for i in key['items'] if i['synthetic'] == k and i.get('repeats') is None)
              for k in (False, True)]
    assert labels[0] == labels[1]                                   # those to practise on included
    for k,i in enumerate(key['items']):
        if i.get('repeats') is None: continue
        assert key['items'][i['repeats']]['row'] == i['row'] and i['repeats'] < k

def test_classes_are_called_by_the_same_names(tmp_path):
    numbers = images('two', 2)
    numbers.labels = ['01'[numbers.classes.index(v)] for v in numbers.labels]
    numbers.classes = ['0','1']
    page = make_reader_study(images('one', 1), numbers, tmp_path/'s', WANTED)
    labels = {i['label'] for i in read_key(page.parent/'key'/'key.json')['items']}
    assert labels == {'benign','malignant'}

def test_the_page_has_pixels_and_no_key(study, key):
    data = json.loads(re.search(r'const study = (\{.*\})', study.read_text())[1])
    raw = np.frombuffer(base64.b64decode(data['pixels']), np.uint8)
    assert raw.size == 16*16*len(key['items']) and len(data['told']) == 2 and data['score'] is None
    assert {*data} == {'study','width','height','channels','images','tasks','classes','levels','told',
                       'pixels','score'}
    stored = np.load(study.parent/'key'/'images.npz')['images']
    assert (raw == stored.transpose(0, 2, 3, 1).ravel()).all()

def test_who_answers_right_is_right(study, key, tmp_path):
    s = score_readers(study.parent/'key'/'key.json', [answered(key, tmp_path)], tmp_path/'out')
    t = s.by_reader()
    assert t.accuracy.iloc[0] == t['agrees with oneself'].iloc[0] == 1 and t.answers.iloc[0] == 8
    assert (tmp_path/'out'/'report.html').exists() and 'better than guessing' in s.words()[1]

def test_one_task_alone(tmp_path):
    def made(name, **settings):
        sets = images('one', 1),images('two', 2)
        return make_reader_study(*sets, tmp_path/name, ReaderSettings(**settings))
    kind,finding = made('k', n=8, tasks='kind'),made('f', n=8, tasks='finding', title='<b>')
    assert read_key(kind.parent/'key'/'key.json')['classes'] == [] and '<b></h1>' not in finding.read_text()
    key = read_key(finding.parent/'key'/'key.json')
    s = read_scores(finding.parent/'key'/'key.json', [answered(key, tmp_path)])
    assert list(s.over_readers()) == ['findings, real less synthetic'] and s.words()

@pytest.mark.parametrize('changes', [
    dict(study='another'), dict(answers=[]), dict(answers=[dict(kind=7)]), dict(answers=[None]*100),
    dict(answers=[dict(kind=k % 6, finding=2) for k in range(12)]),
    dict(format='x'), dict(reader=3), dict(answers='x')])
def test_answers_that_do_not_fit(study, key, tmp_path, changes):
    path = answered(key, tmp_path, **changes)
    with pytest.raises(InputError) as e: read_scores(study.parent/'key'/'key.json', [path])
    assert str(path) in str(e.value) and len(str(e.value).splitlines()) == 1

def test_files_that_are_none(study, key, tmp_path):
    (tmp_path/'x.json').write_text('{')
    with refused(tmp_path/'x.json'): read_answers(tmp_path/'x.json', key)
    with refused(tmp_path/'x.json'): read_key(tmp_path/'x.json')
    with refused('answers'): read_scores(study.parent/'key'/'key.json', [])

@pytest.mark.parametrize('change,field', [(dict(n=9), 'n'), (dict(n=200), 'real images')])
def test_sets_that_do_not_fit(tmp_path, change, field):
    with refused(field):
        make_reader_study(images('a', 1), images('b', 2), tmp_path/'x', ReaderSettings(**change))
    assert not (tmp_path/'x').exists()

def said(*argv):
    out,err = io.StringIO(),io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try: code = main([str(a) for a in argv])
        except SystemExit as e: code = e.code
    return code, out.getvalue(), err.getvalue()

def test_the_three_commands(tmp_path):
    code,out,_ = said('readers', 'power', '--accuracy', '.7')
    assert code == 0 and len(out.splitlines()) == 8
    where = '--real', 'phantom', '--synthetic', 'phantom:seed=3', '--out', tmp_path/'r'
    assert said('readers', 'make', *where, '--n', '8')[0] == 0
    assert said('readers', 'make', *where)[0] == 2                                     # it is there
    key = tmp_path/'r'/'key'/'key.json'
    code,out,_ = said('readers', 'score', key, answered(read_key(key), tmp_path))
    assert code == 0 and 'accuracy' in out and (tmp_path/'r'/'scores'/'report.html').exists()
    code,_,err = said('readers', 'score', key, tmp_path/'none.json')
    assert code == 2 and 'none.json' in err and err.count('\n') == 1


# In a browser

@pytest.fixture(params=[(1280,800), (390,844)], ids=['desktop','phone'])
def page(browser, request):
    context = browser.new_context(viewport=dict(zip(('width','height'), request.param)), has_touch=True,
                                  accept_downloads=True)
    page = context.new_page()
    page.said = []
    page.on('console', lambda m: page.said.append(m.text) if m.type == 'error' else None)
    page.on('pageerror', lambda e: page.said.append(str(e)))
    yield page
    context.close()

def test_a_reader_reads(page, study, key, tmp_path):
    "Keys, mouse and touch, one step back, a reload in the middle; what is saved is what was answered"
    page.goto(f'file://{study}')
    page.fill('#name', 'Jane Doe')
    page.click('#start')
    n,given = len(key['items']),[]
    for k in range(n):
        if k == 5:
            page.reload()
            assert page.input_value('#name') == 'Jane Doe'
            page.click('#start')
            assert page.inner_text('#where') == '4 of 10'               # two were to practise
        level = (2*k) % 6
        page.wait_for_timeout(160)
        if k % 3 == 0: page.keyboard.press(str(level+1))
        elif k % 3 == 1: page.click(f'#answers button:nth-child({level+1})')
        else: page.tap(f'#answers button:nth-child({level+1})')
        if k == 7:                                               # changed her mind
            page.keyboard.press('Backspace')
            page.wait_for_timeout(160)
            level = 1
            page.keyboard.press('2')
        page.keyboard.press(str(k % 2+1))                        # at once: the second half of a double click
        page.wait_for_timeout(160)
        page.keyboard.press(str(k % 2+1))                        # the finding
        if k < 2:
            assert 'This one is' in page.inner_text('#told')
            page.keyboard.press('3')                             # too late to change
            page.click('#next')
        given.append((level, k % 2))
    wide = page.evaluate('document.documentElement.scrollWidth <= innerWidth')
    with page.expect_download() as saved: page.click('#save')
    assert saved.value.suggested_filename == 'answers-Jane_Doe.json'
    saved.value.save_as(tmp_path/'a.json')
    a = read_answers(tmp_path/'a.json', key)
    assert [(v['kind'], v['finding']) for v in a['answers']] == given and a['reader'] == 'Jane Doe'
    assert json.loads(page.input_value('#text')) == a and wide and page.said == []
    read_scores(study.parent/'key'/'key.json', [tmp_path/'a.json'])

    page.reload()
    page.fill('#name', 'Bert')                                   # somebody else on the same device
    page.click('#start')
    assert page.inner_text('#where') == 'To practise: 1 of 2' and not page.query_selector('.chosen')

def test_a_class_may_be_called_anything(page, tmp_path):
    real,made = images('one', 1),images('two', 2)
    for s in (real, made):
        s.labels,s.classes = [v+'</script><b>' for v in s.labels],[v+'</script><b>' for v in s.classes]
    page.goto(f"file://{make_reader_study(real, made, tmp_path/'s', WANTED)}")
    page.click('#start')
    page.wait_for_timeout(160)
    page.keyboard.press('1')
    assert 'benign</script><b>' in page.inner_text('#answers') and page.said == []

def test_a_page_may_score_itself(page, tmp_path):
    levels,synthetic = simulated_levels(Simulated(2.), 1, 8)
    x = images('one', 1, 8).x
    html = reader_html(x, 'name', ['kind'], [], score=synthetic.astype(int).tolist())
    (tmp_path/'self.html').write_text(html)
    page.goto(f"file://{tmp_path/'self.html'}")
    page.click('#start')
    for v in levels[0]:
        page.wait_for_timeout(160)
        page.keyboard.press(str(int(v)+1))
    m = {k: v[0] for k,v in reader_measures(level_counts(levels, synthetic)).items()}
    said = page.inner_text('#result')
    assert f"{round(8*m['accuracy'])} of 8" in said and f'{m["d′"]:.2f}' in said
    page.click('#anew')
    assert page.inner_text('#where') == '1 of 8'
