"""A bundle predicts the same wherever it is loaded, refers what it must, and says what is wrong with it."""
import json, re, shutil, subprocess, sys
from dataclasses import replace

import numpy as np, pandas as pd, pytest, torch
from PIL import Image
from refused import refused
from sklearn.metrics import roc_auc_score

from tsynd.cli import main
from tsynd.data import ImageData, phantom, Split
from tsynd.deployment import (
    auc_interval, calibrated, conformal_quantile, Limits, limits_for_share, load_bundle, make_bundle,
    MEASURED, operating_point, predict_images, reasons, save_bundle)
from tsynd.experiments import RunConfig, train
from tsynd.models import Autoencoder, make_classifier, predict
from tsynd.reports import predictions_html, predictions_report, read_predictions

CONFIG = dict(size=12, epochs=1, bs=8, ae_steps=5, subset=16, quick=True, T=2, steps=1, seed=3)


@pytest.fixture(scope='module')
def data(): return phantom(32, 40, 30, size=12)

@pytest.fixture(scope='module')
def bundle(data):
    torch.manual_seed(0)
    ae = Autoencoder(width=4).eval()
    ae.measure_sigma(data.train.x)
    return make_bundle(make_classifier().eval(), ae, data, 'baseline')

@pytest.fixture(scope='module')
def saved(bundle, tmp_path_factory): return save_bundle(bundle, tmp_path_factory.mktemp('saved')/'bundle')

@pytest.fixture
def folder(saved, tmp_path): return shutil.copytree(saved, tmp_path/'bundle')

@pytest.fixture
def files(data, tmp_path):
    "The first ten test images as PNG, in class folders, and one file that is none"
    for i, (x, y) in enumerate(zip(data.test.x[:10], data.test.y)):
        where = tmp_path/'files'/data.classes[y]
        where.mkdir(parents=True, exist_ok=True)
        Image.fromarray(x[0].numpy()).save(where/f'{i}.png')
    (where/'broken.png').write_bytes(b'\x89PNG nothing')
    return tmp_path/'files'

def numbers(table): return table.select_dtypes('number').to_numpy()


# The same predictions

def test_the_bundle_predicts_as_the_network_it_was_made_of(bundle, saved, data):
    table = load_bundle(saved).predict(data.test.x)
    p = calibrated(predict(bundle.classifier, data.test.x), bundle.facts['temperature'])
    assert np.allclose(table[['p_benign', 'p_malignant']], p, atol=1e-6)
    assert table.label.tolist() == [data.classes[i] for i in p.argmax(1)]
    assert (table.mutual_information > 0).all() and (table.mutual_information < np.log(2)).all()

def test_an_answer_depends_on_its_image_alone(bundle, data):
    whole = bundle.predict(data.test.x)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    arrays = list(data.test.x[order, 0].numpy())
    for other in (bundle.predict(data.test.x[order], bs=7), bundle.predict(arrays)):
        assert np.allclose(numbers(other), numbers(whole.iloc[order.tolist()]), atol=1e-5)

def test_files_give_what_tensors_give(bundle, data, files, tmp_path):
    told = predict_images(bundle, files, tmp_path/'p.csv')
    whole = bundle.predict(data.test.x)
    for row in told[told.reason != 'unreadable file'].itertuples():
        if row.reason.startswith('unreadable'): continue
        i = int(row.path.split('/')[1].split('.')[0])
        assert row.truth == data.classes[data.test.y[i]] and row.label == whole.label[i]
        assert row.distance == pytest.approx(whole.distance[i], rel=1e-3)
    broken = told[told.path.str.contains('broken')].iloc[0]
    assert broken.refer and broken.reason.startswith('unreadable file') and pd.isna(broken.label)
    again = pd.read_csv(tmp_path/'p.csv')
    assert list(again) == list(told) and len(again) == 11

def test_nothing_is_left_where_no_file_can_be_read(bundle, tmp_path):
    for i in range(2): (tmp_path/f'{i}.png').write_bytes(b'nothing')
    told = bundle.predict(str(tmp_path))
    assert told.refer.all() and len(told) == 2 and told.p_benign.isna().all()

@pytest.mark.parametrize('size', [(40, 12), (12, 40), (12, 12), (100, 90)])
def test_images_of_any_size_are_taken(bundle, size):
    assert len(bundle.predict([np.zeros(size, np.uint8), np.zeros((*size, 3), np.uint8)])) == 2


# What is referred

@pytest.mark.parametrize('share', [0, .1, .25, .5, 1])
def test_so_many_of_the_validation_images_are_referred(bundle, data, share):
    n = bundle.predict(data.val.x, refer=share).refer.sum()
    assert n == 40*share if share in (0, 1) else 40*share-3 <= n <= 40*share

def test_black_and_noise_are_unlike_the_training_images(bundle, data):
    g = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (5, 1, 12, 12), generator=g, dtype=torch.uint8)
    told = bundle.predict(torch.cat([noise, torch.zeros_like(noise)]))
    assert told.reason.str.contains('unlike the training images').all()

def test_every_reason_has_its_limit(bundle):
    limits = Limits(1., 1., 1.)
    for k in MEASURED:
        told = reasons(limits, {m: torch.tensor([2. if m == k else 0.]) for m in MEASURED})[0]
        assert k.replace('_', ' ') in told or told == 'uncertain'

def test_what_is_not_a_number_is_not_referred_as_unlike(data):
    told = make_bundle(make_classifier().eval(), None, data).predict(data.test.x)
    assert told.distance.isna().all() and not told.reason.str.contains('unlike').any()

def test_a_limit_is_kept_on_images_that_were_not_seen():
    "Of exchangeable images the share that exceeds a limit is the one that was asked for"
    g = torch.Generator().manual_seed(0)
    def drawn(): return {k: torch.randn(200, generator=g).exp() for k in MEASURED}
    def share(): return sum(limits_for_share(drawn(), .2).exceeded(drawn()).values()).bool().double().mean()
    assert np.mean([share() for _ in range(200)]) == pytest.approx(.2, abs=.01)


# Several labels, and one class that no validation image has

@pytest.mark.parametrize('task, C', [('multi-label, binary-class', 4), ('multi-class', 3),
                                     ('multi-class', 5)])
def test_every_kind_of_labels_goes_to_a_file_and_back(task, C, tmp_path):
    g = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (24, 3, 12, 12), generator=g, dtype=torch.uint8)
    y = torch.rand(24, C, generator=g).round() if 'label' in task else torch.arange(24) % 3
    s = Split(x, y, torch.arange(24))
    mine = ImageData('mine', task, [f'{c},"ü' for c in range(C)], s, s, s)
    net = make_classifier(ch=3, n_classes=C).eval().to(memory_format=torch.channels_last)
    made = make_bundle(net, None, mine, coverage=.5)
    again = load_bundle(save_bundle(made, tmp_path/'b'))
    assert again.predict(x).equals(made.predict(x))
    unseen = (np.arange(C) > 2) & ('label' not in task)
    assert [t is None for t in again.facts['thresholds']] == unseen.tolist()

def test_with_too_few_validation_images_all_labels_belong_to_the_set(data):
    few = ImageData('few', 'binary-class', data.classes, data.train, data.val.select(slice(5)), data.test)
    made = make_bundle(make_classifier().eval(), None, few)
    assert made.facts['conformal']['quantiles'] == [None]
    assert (made.predict(data.test.x).conformal_set == 'benign|malignant').all()


# Measures against others' implementations

def test_auc_and_operating_point_agree_with_scikit_learn():
    g = np.random.default_rng(0)
    y = g.random(200) < .3
    p = (g.random(200)+.4*y).round(1)                     # with ties
    assert auc_interval(y, p)[0] == pytest.approx(roc_auc_score(y, p))
    for want in (.6, .9, 1.):
        t = operating_point(y, p, want)
        higher = p[p > t].min() if (p > t).any() else 2
        assert (p[y] >= t).mean() >= want > (p[y] >= higher).mean()

def test_a_quantile_is_an_order_statistic():
    s = torch.rand(99, generator=torch.Generator().manual_seed(0))
    for c in (.5, .9, .95, .99): assert (s <= conformal_quantile(s, c)).sum() == round(100*c)
    assert conformal_quantile(s, .995) == float('inf')


# What is said of a bundle that is not as it was

@pytest.mark.parametrize('name', ['classifier.safetensors', 'classifier.json', 'autoencoder.safetensors',
                                  'autoencoder.json', 'reference.safetensors'])
def test_a_file_that_was_changed_or_is_missing_is_named(folder, name):
    whole = (folder/name).read_bytes()
    for wrong in (whole[:-1], whole[:-1]+bytes([whole[-1] ^ 1]), b''):
        (folder/name).write_bytes(wrong)
        with refused(folder/name, 'was changed'): load_bundle(folder)
    (folder/name).unlink()
    with refused(folder/name, 'is missing'): load_bundle(folder)

def rewrite(folder, **changes):
    path = folder/'bundle.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))

@pytest.mark.parametrize('changes, field', [
    (dict(classes=['a', 'b']), None), (dict(temperature=2.), None), (dict(format=2), 'format'),
    (dict(format='1'), 'format'), (dict(temperature=-1.), 'temperature'),
    (dict(temperature='1'), 'temperature'),
    (dict(classes=[]), 'classes'), (dict(refer=None), 'refer'), (dict(draws=10**9), 'draws'),
    (dict(shape=[1, 12]), 'shape'), (dict(preparation=dict(size=12)), 'preparation.channels')])
def test_a_fact_that_was_changed_is_said(folder, changes, field):
    rewrite(folder, **changes)
    with refused(field or folder/'bundle.json', *([] if field else ['was changed'])): load_bundle(folder)

def test_facts_that_are_missing_and_folders_that_are_none(folder, tmp_path):
    facts = json.loads((folder/'bundle.json').read_text())
    del facts['checksum']
    (folder/'bundle.json').write_text(json.dumps(facts))
    with refused('checksum', 'bundle.json'): load_bundle(folder)
    (folder/'bundle.json').write_text('[1]')
    with refused(folder/'bundle.json'): load_bundle(folder)
    with refused(tmp_path/'nowhere', 'has no bundle.json'): load_bundle(tmp_path/'nowhere')
    with refused(folder, 'is not empty'): save_bundle(None, folder)

def test_a_bundle_of_another_version_is_loaded_with_a_warning(bundle, data, tmp_path, monkeypatch):
    save_bundle(bundle, tmp_path/'old')
    monkeypatch.setattr('tsynd.deployment.bundle.version', lambda name: '9.9')
    with pytest.warns(UserWarning, match='this is 9.9'): load_bundle(tmp_path/'old')

def test_nothing_is_unpickled(saved, monkeypatch):
    def refuse(*args, **kwargs): raise AssertionError('unpickled')
    for name in ('pickle.load', 'pickle.loads', 'torch.load'): monkeypatch.setattr(name, refuse)
    load_bundle(saved)

def test_numbers_that_cannot_be_meant(bundle, data):
    with refused('refer', 'at most 1', found=2): bundle.predict(data.test.x, refer=2)
    with refused('coverage', found=0): bundle.predict(data.test.x, coverage=0)
    with refused('error', 'one'): bundle.predict(data.test.x, refer=.1, error=.1)
    with refused('images', '(1, 12, 12)'): bundle.predict(data.test.x[..., :8])
    with refused('images', 'at least one'): bundle.predict([])
    with refused('classifier', 'train_classifier'): make_bundle(torch.nn.Flatten(), None, data)


# From the command line

def test_train_and_predict_from_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = [f'--{k.replace("_", "-")}={v}' for k, v in CONFIG.items() if k != 'quick']
    assert main(['train', '--quick', '--arm', 'baseline', *options]) == 0
    made = tmp_path/'runs'/'train-phantom-n16-12px-baseline-seed3-quick'
    assert {p.name for p in made.iterdir()} == {'bundle', 'training.json'}
    assert main(['predict', str(made/'bundle'), 'phantom', '--refer', '0.3']) == 0
    table = pd.read_csv('predictions.csv')
    assert len(table) == 500 and set(table.truth) == {'benign', 'malignant'}
    assert f'{table.refer.sum()} to look at again' in capsys.readouterr().out

@pytest.mark.parametrize('argv, words', [
    (['predict', 'nowhere', 'phantom'], ['nowhere has no bundle.json']),
    (['predict', '{b}', 'nowhere'], ['nowhere does not exist']),
    (['predict', '{b}', 'phantom', '--refer', '2'], ['refer is 2']),
    (['predict', '{b}', 'phantom', '--refer', '.1', '--error', '.1'], ['refer and error']),
    (['predict', '{b}', 'pneumoniamnist', '--root', 'nowhere', '--device', 'tpu'], ['tpu']),
    (['predict', '{b}', 'phantom', '--out', '{b}'], ['a folder']),
    (['train', '--arm', 'tsind', '--quick'], ['arm', 'tsind', 'baseline'])])
def test_wrong_input_is_one_sentence(saved, tmp_path, monkeypatch, capsys, argv, words):
    monkeypatch.chdir(tmp_path)
    assert main([a.format(b=saved) for a in argv]) == 2
    err = capsys.readouterr().err
    assert err.count('\n') == 1 and all(w in err for w in words), err
    assert list(tmp_path.iterdir()) == []

def stopped(*args): raise KeyboardInterrupt

def test_a_training_that_was_stopped_goes_on(tmp_path, monkeypatch):
    c = RunConfig(**CONFIG)
    whole = train(c, tmp_path/'a', progress=False)
    with monkeypatch.context() as m:
        m.setattr('tsynd.experiments.training.make_bundle', stopped)
        with pytest.raises(KeyboardInterrupt, match='goes on'): train(c, tmp_path/'b', progress=False)
        with refused('arm', 'not'): train(replace(c, arm='baseline'), tmp_path/'b', progress=False)
    monkeypatch.setattr('tsynd.experiments.experiment.train_arm', None)     # which is not to be called again
    again = train(c, tmp_path/'b', progress=False)
    assert again.facts == whole.facts
    for f in (tmp_path/'a'/'bundle').iterdir():
        assert f.read_bytes() == (tmp_path/'b'/'bundle'/f.name).read_bytes()

def test_help_loads_nothing_heavy():
    say = ("import sys; from tsynd.arguments import parser; parser(); "
           "print(*{'torch', 'numpy', 'pandas'} & set(sys.modules))")
    out = subprocess.run([sys.executable, '-c', say], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == ''


# The page

EVIL = '"><script>alert(1)</script>& \' $x$'

def page(bundle, table, given, **asked):
    html = str(predictions_html(read_predictions(bundle, table, bundle.rule(**asked)[1]), given))
    assert html.count('<img') == len(re.findall('<img[^>]* alt="[^"]+"', html)) and '<script' not in html
    assert not re.search(r'(src|href)="(?!data:|#)', html)
    return html

def test_the_page_shows_what_is_referred_and_measures_where_the_truth_is_known(bundle, files, tmp_path):
    table = predict_images(bundle, files, refer=.5)
    made = predictions_report(tmp_path/'p.html', table, bundle, files, refer=.5)
    html = made.read_text(encoding='utf-8')
    assert 'broken.png' in html and 'Sensitivity' in html and f'of {table.refer.sum()-1} referred' in html
    assert f'Of 11 images {table.refer.sum()} should be looked at again' in html

@pytest.mark.parametrize('truth, said', [(None, 'No labels were given'), ('lesion', 'lesion'),
                                         (EVIL, 'alert')])
def test_without_known_labels_nothing_is_measured(bundle, data, truth, said):
    table = bundle.predict(data.test.x).assign(path=EVIL)
    html = page(bundle, table if truth is None else table.assign(truth=truth), data.test.x)
    assert said in html and 'Sensitivity' not in html

def test_the_page_of_several_labels_without_an_autoencoder(tmp_path):
    g = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (30, 3, 12, 12), generator=g, dtype=torch.uint8)
    y = torch.rand(30, 3, generator=g).round()
    s = Split(x, y, torch.arange(30))
    mine = ImageData('mine', 'multi-label, binary-class', ['a', 'b', EVIL], s, s, s)
    made = make_bundle(make_classifier(ch=3, n_classes=3).eval(), None, mine)
    truth = ['|'.join(c for c, v in zip(mine.classes, row) if v) for row in y]
    table = made.predict(x).assign(path='x.png', truth=truth, patient=[f'p{i//3}' for i in range(30)])
    html = page(made, table, x)
    assert html.count('Sensitivity') == 3 and 'by patient' in html
    p = read_predictions(made, table, made.rule()[1])
    logits = predict(made.classifier, x)
    assert np.allclose(p.before, logits.sigmoid(), atol=1e-4) and p.truth.equal(y)
    assert np.allclose(p.wrong, ((logits > 0) != (y > 0)).float().mean(1))

def test_a_page_of_nothing_but_unreadable_files(bundle, tmp_path):
    for i in range(25): (tmp_path/f'{i}.png').write_bytes(b'nothing')
    table = predict_images(bundle, tmp_path)
    html = predictions_report(tmp_path/'p.html', table, bundle, tmp_path).read_text()
    assert '25 files could not be read' in html and 'and more' in html
