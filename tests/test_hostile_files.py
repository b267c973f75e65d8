"""Files that lie: whatever is put into a run, a model or a study, the answer is one sentence
that names the file and what is wrong in it, or a result that does not depend on it."""
import copy, io, json, random, struct, zipfile

import numpy as np, pandas as pd, pytest, torch
from safetensors.torch import load_file, save

from refused import refused
from tsynd.core import InputError
from tsynd.experiments import read_study
from tsynd.models import Autoencoder, load_autoencoder, load_classifier, make_classifier, save_model
from tsynd.reports import demo_run, demo_study, read_run, run_html

# JSON as text: Python would not write some of it
NO_NUMBER = ['"x"', '"1e400"', 'true', '[]', '{}', '[1]', '{"a": {"b": 1}}', 'Infinity', '-Infinity',
             '1'+'0'*400, '1e308', '1'+'0'*5000, '-1e308']
HOSTILE = [*NO_NUMBER, 'null', 'NaN', '0', '-1', '3', '0.5', '"\\ud800"', '"a\\u0000b"', '"a\\nb"',
           json.dumps('x'*10**5), '[[1],[2]]', '[null]',
           '['*1000+']'*1000, '{"a":'*1000+'1'+'}'*1000, '['*10**5]


def paths(o, way=()):
    "The way to every entry; of a list the first and the last"
    yield way
    keys = o if isinstance(o, dict) else {0, len(o)-1} if isinstance(o, list) and o else ()
    for k in keys: yield from paths(o[k], (*way, k))

def with_text(o, way, text):
    "`o` as JSON, with `text` at the end of the way"
    if not way: return text
    o = at = copy.deepcopy(o)
    for k in way[:-1]: at = at[k]
    at[way[-1]] = '<here>'
    return json.dumps(o).replace('"<here>"', text)

def answer(call, name):
    "What `call()` raises is one sentence about the file; True if it was refused"
    try: call()
    except InputError as e:
        message = str(e)
        assert name in message and len(message.splitlines()) == 1 and len(message) < 900, message
        assert e.field and (e.field in message or name in e.field), message
        return True
    return False


# A run

@pytest.fixture(scope='module')
def run(tmp_path_factory): return demo_run(tmp_path_factory.mktemp('run')/'x', n=3)

@pytest.fixture
def put(run):
    "Writes a file of the run; afterwards it is what it was"
    before = {f: f.read_bytes() for f in run.iterdir() if f.is_file()}
    def write(name, content):
        (run/name).write_bytes(content.encode() if isinstance(content, str) else content)
    yield write
    for f, content in before.items(): f.write_bytes(content)

def metrics(run): return json.loads((run/'metrics.json').read_text())

def numbers_of(m):
    known = dict(config=('epochs', 'bs', 'lr', 'seed', 'T', 'steps', 'radius', 'weight', 'size', 'subset'),
                 data=('train', 'val', 'test', 'attacked'), autoencoder=('psnr', 'steps'),
                 timing=('total', 'tsynd'))
    yield from ((part, k) for part, names in known.items() for k in names)
    for arm in ('baseline', 'tsynd'):
        yield from (('arms', arm, k) for k in ('optimizer_steps', 'images_seen', 'synthetic_images'))
        for condition in ('clean', 'PGD 1/255'):
            yield from (('arms', arm, 'metrics', condition, k) for k in ('auc', 'accuracy'))
        yield ('arms', arm, 'history', 0, 'train_loss')
    yield ('arms', 'tsynd', 'trace', 0, 'mi_after')
    yield from (('data', 'shape', 1), ('autoencoder', 'latent_shape', 0))

def test_what_is_no_number_is_never_taken_for_one(run, put):
    m, draw = metrics(run), random.Random(0)
    for way in numbers_of(m):
        for text in draw.sample(NO_NUMBER, 4):
            put('metrics.json', with_text(m, way, text))
            with pytest.raises(InputError) as e: read_run(run)
            assert 'metrics.json' in str(e.value)
            if len(text) < 5000: assert e.value.field.startswith('.'.join(map(str, way))), str(e.value)

def test_every_entry_may_be_anything(run, put):
    "A seeded sample; a page comes of what is accepted"
    m = metrics(run)
    tried = random.Random(1).sample([(w, t) for w in dict.fromkeys(paths(m)) for t in HOSTILE], 120)
    refusals = 0
    for way, text in tried:
        put('metrics.json', with_text(m, way, text))
        refusals += answer(lambda: run_html(read_run(run), plots={}), 'metrics.json')
    assert 70 < refusals < 120

def test_an_entry_that_lacks_or_is_too_much(run, put):
    whole = metrics(run)
    for way in random.Random(3).sample([w for w in dict.fromkeys(paths(whole)) if w], 25):
        m = at = copy.deepcopy(whole)
        for k in way[:-1]: at = at[k]
        del at[way[-1]]
        put('metrics.json', json.dumps(m))
        answer(lambda: run_html(read_run(run), plots={}), 'metrics.json')
    put('metrics.json', json.dumps(whole | dict(more=[{}])))
    read_run(run)

@pytest.mark.parametrize('conditions', [
    ['clean', 'clean'], ['clean', 'PGD '+'9'*90+'/255'], ['clean', 'a\nb'], ['clean', 'x'*101],
    ['perturbed']], ids=lambda v: v[-1][:9])
def test_conditions_have_names_of_their_own(run, put, conditions):
    put('metrics.json', json.dumps(metrics(run) | dict(conditions=conditions)))
    assert answer(lambda: read_run(run), 'metrics.json')

@pytest.mark.parametrize('value', ['x', 'inf', '-inf', '1e400', '1'+'0'*400, '-7', 'True', '1+2j', '[1]'],
                         ids=lambda v: v[:5])
def test_a_column_holds_numbers_in_their_range(run, put, value):
    t = pd.read_csv(run/'provenance.csv', dtype=str)
    for column in ('gate', 'distance_latent', 'mi_before', 'mi_after', 'p_after', 'radius'):
        put('provenance.csv', t.assign(**{column: [t[column][0], value, t[column][2]]}).to_csv(index=False))
        with refused(column, 'provenance.csv', 'row 2', found=value): read_run(run)

def test_a_column_that_is_empty_is_unknown_and_one_that_comes_twice_is_refused(run, put):
    t = pd.read_csv(run/'provenance.csv', dtype=str)
    put('provenance.csv', t.assign(mi_before='').to_csv(index=False))
    assert read_run(run).rows.mi_before.isna().all()
    put('provenance.csv', pd.concat([t, t[['gate']]], axis=1).to_csv(index=False))
    with refused('gate', 'two columns'): read_run(run)

STACKS = dict(float=lambda x: x/255, nan=lambda x: x*np.nan, int=lambda x: x.astype(int),
              text=lambda x: x.astype(str), complex=lambda x: x.astype(complex),
              date=lambda x: x.astype('datetime64[s]'), short=lambda x: x[:2], none=lambda x: x[:0],
              scalar=lambda x: np.uint8(3), flat=lambda x: x.reshape(len(x), -1),
              channel=lambda x: x[..., None], colour=lambda x: np.stack([x]*3, -1),
              four=lambda x: np.stack([x]*4, -1),
              thin=lambda x: x[:, :, :1], void=lambda x: x[:, :0], many=lambda x: x[(..., *[None]*20)])

@pytest.mark.parametrize('how', STACKS)
def test_an_array_is_a_stack_of_images_of_the_size_that_the_metrics_state(run, put, how):
    arrays = dict(np.load(run/'synthetic.npz'))
    keys = ['train_images', 'train_source', 'train_reconstruction']
    for names in ([keys[0]], [keys[1]], keys):
        f = io.BytesIO()
        np.savez(f, **arrays | {k: STACKS[how](arrays[k]) for k in names})
        put('synthetic.npz', f.getvalue())
        assert answer(lambda: read_run(run), 'synthetic.npz')

def test_an_archive_whose_members_are_no_arrays(run, put):
    f = io.BytesIO()
    with zipfile.ZipFile(f, 'w') as z:
        for k in np.load(run/'synthetic.npz').files: z.writestr(f'{k}.npy', 'x')
    put('synthetic.npz', f.getvalue())
    assert answer(lambda: read_run(run), 'synthetic.npz')


# A model

@pytest.fixture(scope='module')
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp('model')/'m'
    save_model(path, Autoencoder(width=8), data='x')
    return path

def changed(model, tmp_path, suffix, content):
    for s in ('.json', '.safetensors'):
        new = content.encode() if isinstance(content, str) else content
        (tmp_path/f'm{s}').write_bytes(new if s == suffix else model.with_suffix(s).read_bytes())
    return tmp_path/'m'

def test_a_configuration_may_be_anything(model, tmp_path):
    "and asks for no memory: a width of 10**9 is a network of exabytes"
    facts = json.loads(model.with_suffix('.json').read_text())
    for key in facts['config']:
        for text in [*NO_NUMBER, '-3', '0', '1000000', '1000000000', '9223372036854775808']:
            if key == 'noise' and text[0] in '019-' and len(text) < 20: continue      # a number
            path = changed(model, tmp_path, '.json', with_text(facts, ('config', key), text))
            assert answer(lambda: load_autoencoder(path), 'm'), (key, text)
    for way in [(), ('kind',), ('config',)]:
        for text in HOSTILE:
            path = changed(model, tmp_path, '.json', with_text(facts, way, text))
            assert answer(lambda: load_autoencoder(path), 'm'), (way, text[:20])

def test_a_classifier_of_a_million_classes(tmp_path):
    save_model(tmp_path/'m', make_classifier())
    facts = json.loads((tmp_path/'m.json').read_text())
    for key, value in dict(n_classes=10**12, ch=10**9, p=7, model='x'*10**5).items():
        (tmp_path/'m.json').write_text(json.dumps(facts | dict(config=facts['config'] | {key: value})))
        assert answer(lambda: load_classifier(tmp_path/'m'), 'm'), key

WEIGHTS = dict(gone=lambda x: None, nan=lambda x: x*np.nan, inf=lambda x: x+np.inf, whole=lambda x: x.int(),
               complex=lambda x: x.to(torch.complex64), short=lambda x: x[:1], none=lambda x: x[:0],
               more=lambda x: x[None])

@pytest.mark.parametrize('how', WEIGHTS)
def test_weights_are_finite_and_of_their_shape(model, tmp_path, how):
    w = load_file(model.with_suffix('.safetensors'))
    new = WEIGHTS[how](w['enc.0.0.weight'])
    kept = {k: v for k, v in w.items() if k != 'enc.0.0.weight'}
    content = save(kept if new is None else kept | {'enc.0.0.weight': new.contiguous()})
    with refused('enc.0.0.weight'): load_autoencoder(changed(model, tmp_path, '.safetensors', content))

def test_a_file_of_weights_may_be_anything(model, tmp_path):
    whole = model.with_suffix('.safetensors').read_bytes()
    header = json.dumps({'a': dict(dtype='F32', shape=[10**12], data_offsets=[0, 4*10**12])}).encode()
    deep = b'{"a":'*5000+b'1'+b'}'*5000
    contents = [b'', b'\0', whole[:8], whole[:len(whole)//2], whole[:-1], whole+b'\0',
                struct.pack('<Q', 2**62), *(struct.pack('<Q', len(h))+h for h in (header, deep)),
                save({}), save({'a': torch.zeros(0, 10**9)})]
    for content in contents:
        assert answer(lambda: load_autoencoder(changed(model, tmp_path, '.safetensors', content)), 'm')

def test_a_network_is_made_as_before(model):
    "Building it once more on the meta device draws no random number"
    state = torch.random.get_rng_state()
    Autoencoder(width=8)
    after = torch.random.get_rng_state()
    torch.random.set_rng_state(state)
    load_autoencoder(model)
    assert torch.equal(torch.random.get_rng_state(), after)


# A study

@pytest.fixture(scope='module')
def study(tmp_path_factory):
    return demo_study(tmp_path_factory.mktemp('study')/'s', seeds=1, n=(50,), arms=('baseline', 'mi'))

@pytest.fixture
def line(study):
    "Puts a text in the place of the first record"
    before = (study/'cells.jsonl').read_bytes()
    rest = before.split(b'\n', 1)[1]
    yield lambda text: (study/'cells.jsonl').write_bytes(text.encode()+b'\n'+rest)
    (study/'cells.jsonl').write_bytes(before)

def left_out(study):
    "Was the first record left out, in one line that names it, and the other one not?"
    s = read_study(study)
    assert all(f.isprintable() and 'cells.jsonl, line 1,' in f and len(f) < 1000 for f in s.faults)
    assert len(s.faults) == 4-len(s.cells) < 2
    return len(s.faults)

def first(study): return json.loads((study/'cells.jsonl').read_bytes().split(b'\n', 1)[0])

def test_every_entry_of_a_record_may_be_anything(study, line):
    r = first(study)
    tried = random.Random(2).sample([(w, t) for w in dict.fromkeys(paths(r)) for t in HOSTILE], 120)
    refusals = 0
    for way, text in tried:
        line(with_text(r, way, text))
        refusals += left_out(study)
    assert 60 < refusals < 120

@pytest.mark.parametrize('text', NO_NUMBER, ids=lambda v: v[:9])
def test_a_measure_of_a_record_is_a_number(study, line, text):
    r = first(study)
    for way in (('measures', 'clean', 'auc'), ('measures', 'perturbed', 'accuracy'), ('seconds',), ('seed',)):
        line(with_text(r, way, text))
        assert left_out(study), way

def test_labels_probabilities_and_their_shape_agree(study, line):
    r = first(study)
    wrong = dict(p=[r['p'][:-8], r['p'][:-1], '!!!!', 'é'],
                 y=[r['y'][:-1], [7]*156, [-1]*156, [.5]*156, ['a']*156, [[1], [1, 2]]],
                 shape=[[156, 3], [2, 156], [10**9, 2], [0, 2], [156], []])
    for key, values in wrong.items():
        for v in values:
            line(json.dumps(r | {key: v}))
            assert left_out(study), (key, str(v)[:30])

def test_a_record_is_of_its_cell(study, line):
    r = first(study)
    for key, value in dict(dataset='octmnist', n=100, arm='mi', seed=3).items():
        line(json.dumps(r | {key: value}))
        assert left_out(study), key

def test_a_slip_in_the_configuration_names_the_file(study):
    before = (study/'study.toml').read_text()
    (study/'study.toml').write_text(before.replace('seeds = 1', 'seeds = -1'))
    try:
        with refused('seeds', 'study.toml', found=-1): read_study(study)
    finally: (study/'study.toml').write_text(before)
