"""Files of every layout and every kind of brokenness; subsets and batches whose counts can be worked out."""
import hashlib, io, math, random, tracemalloc, urllib.error, warnings, zipfile
from contextlib import nullcontext
from dataclasses import replace

import medmnist, numpy as np, pandas as pd, pytest, torch, torchvision
from hypothesis import assume, given, settings, strategies as st
from layouts import NAMES, SIZES, make_arrays, write_npz
from refused import refused

from tsynd.models import classifier_learner
from tsynd.core import check_range, InputError, seeded, TASKS
from tsynd.data import (
    check_classes, factor_table, HOLES, image_dls, ImageData, ImageDL, in_hole, load_data, load_medmnist,
    load_npz, medmnist_info, medmnist_path, phantom, phantom_labels, read_npz, render_phantom, save_npz,
    Split, strata, stratified_order, subset, to_numpy)

MULTI = 'multi-label, binary-class'


def split(n=10, C=2, seed=0, multilabel=False):
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.integers(0, 256, (n,1,4,4), dtype=np.uint8))
    y = (rng.random((n, C)) < .3).astype(np.float32) if multilabel else rng.permutation(np.arange(n)%C)
    y = torch.from_numpy(y)
    return Split(x, y, torch.arange(n)+1000)

def image_data(n=10, C=2, **kwargs):
    multi = kwargs.get('multilabel')
    return ImageData('made', MULTI if multi else 'multi-class', [f'c{i}' for i in range(C)],
                     *(split(n, C, s, multi) for s in range(3)))

def quiet_load(*args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return load_npz(*args, **kwargs)

@pytest.mark.parametrize('task', ['multi-label', 'binary', '', None])
def test_a_task_of_another_name_is_refused(task):
    part = split()
    with refused('task', *TASKS, found=task): ImageData('made', task, ['c0','c1'], part, part, part)
    assert {i['task'] for i in medmnist.INFO.values()} <= set(TASKS)

WRONG = {'16 bits': dict(x=lambda x: x.to(torch.uint16)), 'floats': dict(x=lambda x: x/255),
         'no channel': dict(x=lambda x: x[:,0]), 'channels last': dict(x=lambda x: x.permute(0,2,3,1)),
         'four channels': dict(x=lambda x: x.repeat(1,4,1,1)), 'numpy images': dict(x=lambda x: x.numpy()),
         'numpy labels': dict(y=lambda y: y.numpy()), 'fewer labels': dict(y=lambda y: y[1:]),
         'a column': dict(y=lambda y: y[:,None]), 'from one': dict(y=lambda y: y+1),
         'float labels': dict(y=lambda y: y.float()), 'fewer positions': dict(index=lambda i: i[1:])}

@pytest.mark.parametrize('where', ['train','val','test'])
@pytest.mark.parametrize('what', WRONG)
def test_what_is_put_together_wrongly_is_refused(what, where):
    part = split()
    field = {'x': 'images', 'y': 'labels', 'index': 'index'}[[*WRONG[what]][0]]
    with refused(f'made, {where}: {field}', 'expected'):
        ImageData('made', 'binary-class', ['c0','c1'],
                  **(dict(train=part, val=part, test=part)
                     | {where: replace(part, **{k: f(getattr(part, k)) for k,f in WRONG[what].items()})}))

INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32,
            torch.uint64, torch.bool]

@pytest.mark.parametrize('dtype', INTEGERS, ids=str)
def test_whole_labels_of_every_type_are_taken(dtype):
    part, y = split(), torch.arange(10)%2
    data = ImageData('made', 'binary-class', ['a','b'], replace(part, y=y.to(dtype)), part, part)
    assert data.train.y.dtype == torch.int64 and data.train.y.tolist() == y.tolist()

@pytest.mark.parametrize('dtype', [torch.uint8, torch.int32, torch.bool, torch.float16, torch.float64],
                         ids=str)
def test_zeros_and_ones_of_every_type_are_several_labels(dtype):
    part = split(C=3, multilabel=True)
    data = ImageData('made', MULTI, ['a','b','c'], replace(part, y=part.y.to(dtype)), part, part)
    assert data.train.y.dtype == torch.float32 and torch.equal(data.train.y, part.y)

@pytest.mark.parametrize('y', [torch.eye(2)[torch.arange(10)%2].long(), torch.ones(10, dtype=torch.complex64),
                               torch.full((10,), 2**63, dtype=torch.uint64), torch.zeros(10).double(),
                               [0]*10, None],
                               ids=['one-hot', 'complex', 'too large', 'floats', 'list', 'none'])
def test_labels_that_are_no_class_numbers_are_refused_at_once(y):
    part = split()
    with refused('made, val: labels'):
        ImageData('made', 'binary-class', ['a','b'], part, replace(part, y=y), part)

@pytest.mark.parametrize('names, want', [
    (np.array([1, 2]), ['1','2']), ([1, 2], ['1','2']), ((0., 1.5), ['0.0','1.5']),
    ([True, False], ['True','False']),
    (np.array(['a','b']), ['a','b']), (range(2), ['0','1'])], ids=str)
def test_class_names_may_be_numbers(names, want):
    data = replace(image_data(), classes=names)
    assert data.classes == data.short == want and all(type(c) is str for c in data.classes)

@pytest.mark.parametrize('names', [
    ['a', None], ['a', math.nan], ['a', 10**5000], ['a', ''], ['a', 'b\n'], ['a', 'b'*5000], ['a', b'b'],
    ['a', 'a'], [1, '1'], ['a'], [], 'ab', {'a': 1, 'b': 2}, {'a','b'}, None, 5, [['a'], ['b']]],
    ids=lambda v: str(type(v)))
def test_what_names_no_class_is_refused(names):
    with refused('made: classes') as e: replace(image_data(), classes=names)
    assert len(str(e.value)) < 400

@pytest.mark.parametrize('change, at', [
    (dict(x=torch.zeros(10, 1, 8, 8, dtype=torch.uint8)), 'images'),
    (dict(x=torch.zeros(10, 3, 4, 4).byte()), 'images'),
    (dict(x=torch.zeros(10, 1, 0, 4).byte()), 'images'), (dict(index=None), 'index'),
    (dict(index=[0]*10), 'index'),
    (dict(index=torch.zeros(10)), 'index'), (dict(table=torch.rand(10, 8)), 'table'),
    (dict(table=factor_table(torch.rand(9, 8))), 'table'), (dict(table=[{}]*10), 'table'),
    (dict(table=factor_table(torch.rand(10, 8)+1)), 'table'),
    (dict(table=pd.DataFrame([['a','b']]*10, columns=['path','path'])), 'table'),
    (dict(table=factor_table(torch.zeros(10, 8, dtype=torch.int64))), 'table')])
def test_parts_that_do_not_belong_together_are_refused(change, at):
    data = image_data()
    with refused(f'made, test: {at}'): replace(data, test=replace(data.test, **change))

@pytest.mark.parametrize('part', [None, (1, 2), 'train'], ids=str)
def test_what_is_no_split_is_refused(part):
    with refused('made, val'): replace(image_data(), val=part)

@pytest.mark.parametrize('C, dtype', [(2, np.uint8), (256, np.uint8), (257, np.uint16), (70_000, np.uint32)])
def test_labels_come_back_whatever_the_number_of_classes(tmp_path, C, dtype):
    y = torch.tensor([0, C//2, C-1])
    part = Split(torch.zeros(3, 1, 4, 4, dtype=torch.uint8), y, torch.arange(3))
    save_npz(tmp_path/'many.npz', ImageData('many', 'multi-class', range(C), part, part, part))
    assert read_npz(tmp_path/'many.npz')['test_labels'].dtype == dtype
    info = dict(task='multi-class', label={i: str(i) for i in range(C)}, n_channels=1)
    assert torch.equal(load_npz(tmp_path/'many.npz', info, 'many', 4).test.y, y)


# Parameters and random streams

@pytest.mark.parametrize('value', [3, 3., np.int64(3), np.int32(3), np.float32(3), np.float64(3)],
                         ids=lambda v: type(v).__name__)
def test_numbers_of_every_type_are_numbers(value): check_range('steps', value, lo=1)

@pytest.mark.parametrize('value', ['3', None, float('nan'), float('inf'), -float('inf'), [3]], ids=str)
def test_what_is_no_finite_number_is_refused(value):
    with refused('steps', 'at least 1', found=value): check_range('steps', value, lo=1)

@given(st.integers(-3, 3), st.integers(-3, 3), st.integers(-3, 3), st.booleans())
def test_range_is_what_it_says(value, lo, hi, open_lo):
    fine = (value > lo if open_lo else value >= lo) and value <= hi
    with nullcontext() if fine else refused('it', found=value): check_range('it', value, lo, hi, open_lo)

def test_seeded_covers_all_streams_and_nests_and_survives_exceptions():
    draw = lambda: (random.random(), np.random.rand(), torch.rand(()).item())
    torch.manual_seed(9); np.random.seed(9); random.seed(9)
    expected = [draw() for _ in range(2)]
    torch.manual_seed(9); np.random.seed(9); random.seed(9)
    assert draw() == expected[0]
    with pytest.raises(KeyError):
        with seeded(1):
            a = draw()
            with seeded(1): assert draw() == a
            b = draw()
            raise KeyError
    with seeded(1): assert [draw(), draw()] == [a, b]
    with seeded(2): assert not set(draw()) & set(a)
    assert draw() == expected[1]


# The twelve layouts

def test_there_are_twelve_sets_of_four_tasks():
    assert sorted(medmnist_info()) == sorted(NAMES) and len(NAMES) == 12
    assert {v['task'] for v in medmnist_info().values()} == {
        'binary-class', 'multi-class', 'ordinal-regression', MULTI}

@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('name', NAMES)
def test_every_layout_is_read(tmp_path, name, size):
    path = write_npz(tmp_path, name, size)
    assert path == medmnist_path(name, tmp_path, size)
    with pytest.warns(UserWarning, match='MD5 .* as published'):
        data = load_medmnist(name, tmp_path, size, download=False)
    info, arrays = medmnist.INFO[name], make_arrays(name, size)
    C, ch, multi = len(info['label']), info['n_channels'], info['task'] == MULTI
    assert (data.name, data.task.name, data.n_classes, data.shape, data.task.several) == (
        name, info['task'], C, (ch,size,size), multi)
    assert data.classes == [info['label'][str(i)] for i in range(C)]
    for part,n in zip(('train','val','test'), (40,24,24)):
        s, x, y = getattr(data, part), arrays[f'{part}_images'], arrays[f'{part}_labels']
        assert s.x.shape == (n,ch,size,size) and s.x.dtype == torch.uint8
        assert s.index.tolist() == list(range(n))
        assert np.array_equal(s.x[:,0], x[...,0] if ch==3 else x)
        assert np.array_equal(s.x[:,-1], x[...,-1] if ch==3 else x)
        assert s.y.shape == ((n,C) if multi else (n,))
        assert s.y.dtype == (torch.float32 if multi else torch.int64)
        assert np.array_equal(s.y.numpy(), y if multi else y[:,0])
        assert (s.y.unique().tolist() == [0,1]) if multi else (s.y.unique().tolist() == list(range(C)))
    xb,yb = image_dls(subset(data, 20), bs=8).one_batch()
    assert xb.shape == (6,ch,size,size) and 0 <= xb.min() and xb.max() <= 1 and len(yb) == 6

def test_the_official_files_pass_without_a_warning(medmnist_root):
    for name in ('breastmnist','pneumoniamnist'):
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            data = load_medmnist(name, medmnist_root, download=False)
        n = medmnist.INFO[name]['n_samples']
        assert [len(data.train), len(data.val), len(data.test)] == [n['train'], n['val'], n['test']]
        assert data.md5 == medmnist.INFO[name]['MD5']
        evaluated = medmnist.Evaluator(name, 'test', root=str(medmnist_root)).labels
        assert np.array_equal(data.test.y, evaluated[:,0])

@pytest.mark.parametrize('size', SIZES)
def test_the_published_checksum_of_that_size_needs_no_warning(tmp_path, size):
    path = write_npz(tmp_path, 'breastmnist', size)
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    info = medmnist.INFO['breastmnist'] | {'MD5' if size == 28 else 'MD5_64': md5}
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert load_npz(path, info, 'breastmnist', size).md5 == md5
    info = info | {'MD5': 'a'*32, 'MD5_64': 'b'*32}
    with pytest.warns(UserWarning, match=('a' if size == 28 else 'b')*32):
        load_npz(path, info, 'breastmnist', size)

@pytest.mark.parametrize('name', ['pathmnist','chestmnist','breastmnist'])
def test_what_is_saved_comes_back(tmp_path, name):
    data = quiet_load(write_npz(tmp_path, name), medmnist.INFO[name], name)
    save_npz(tmp_path/'again.npz', data, extra=np.arange(3))
    again = quiet_load(tmp_path/'again.npz', medmnist.INFO[name], name)
    for part in ('train','val','test'):
        a,b = getattr(data, part), getattr(again, part)
        assert torch.equal(a.x, b.x) and torch.equal(a.y, b.y)
    written = read_npz(tmp_path/'again.npz')
    assert written['extra'].tolist() == [0,1,2]
    for k,v in make_arrays(name).items():
        assert np.array_equal(written[k], v) and written[k].dtype == np.uint8

def test_float_images_are_rounded_not_cut():
    x = torch.tensor([0., .4999/255, .5001/255, 254.6/255, 1., 1.2, -.1]).view(-1,1,1,1)
    assert to_numpy(x).ravel().tolist() == [0, 0, 1, 255, 255, 255, 0]

def test_root_comes_from_the_environment(tmp_path, monkeypatch):
    write_npz(tmp_path, 'octmnist')
    monkeypatch.setenv('MEDMNIST_ROOT', str(tmp_path))
    with pytest.warns(UserWarning): assert load_data('octmnist').name == 'octmnist'
    assert medmnist_path('octmnist', tmp_path/'other') == tmp_path/'other'/'octmnist.npz'


# Bad files

def write(path, arrays):
    np.savez_compressed(path, **arrays)
    return path

def change(a, key, f): return a | {key: f(a[key])}

def set_item(value, at=(0,0)):
    def f(y):
        y = y.astype(np.int64); y[at] = value
        return y
    return f

def nan_pixels(x):
    x = x.astype(np.float32)/255; x[0,3:5,0] = np.nan
    return x

BAD = {  # what to change in the arrays of a set: the array at fault, and the values the message must hold
    'missing array': ('breastmnist', lambda a: {k: v for k,v in a.items() if k != 'val_labels'},
                      ['val_labels']),
    'no array at all': ('breastmnist', lambda a: {'x': np.zeros(3)}, ['train_images']),
    'NaN pixels': ('breastmnist', lambda a: change(a, 'train_images', nan_pixels),
                   ['train_images', 'float32', '2 pixels', 'uint8']),
    'float images': ('breastmnist', lambda a: change(a, 'test_images', lambda x: x/255),
                     ['test_images', 'float64', 'uint8']),
    'wrong size': ('breastmnist', lambda a: change(a, 'val_images', lambda x: x[:,:27]),
                   ['val_images', '24×27×28', 'N×28×28 uint8']),
    'a list of rows': ('breastmnist', lambda a: change(a, 'train_images', lambda x: x.reshape(len(x), -1)),
                       ['train_images', '40×784']),
    'colour for grey': ('breastmnist', lambda a: change(a, 'train_images', lambda x: np.stack([x]*3, -1)),
                        ['train_images', '40×28×28×3', 'N×28×28 uint8']),
    'grey for colour': ('pathmnist', lambda a: change(a, 'train_images', lambda x: x[...,0]),
                        ['train_images', '40×28×28', 'N×28×28×3 uint8']),
    'four channels': ('pathmnist', lambda a: change(a, 'train_images', lambda x: x[...,[0,1,2,2]]),
                      ['train_images', '40×28×28×4', 'N×28×28×3 uint8']),
    'channels first': ('pathmnist', lambda a: change(a, 'test_images', lambda x: x.transpose(0,3,1,2)),
                       ['test_images', '24×3×28×28']),
    'empty split': ('breastmnist', lambda a: {k: v[:0] if k[:3]=='val' else v for k,v in a.items()},
                    ['val_images', 'at least one']),
    'label too large': ('breastmnist', lambda a: change(a, 'train_labels', set_item(2)),
                        ['train_labels', '0 to 2', 'expected 0 to 1']),
    'label negative': ('octmnist', lambda a: change(a, 'val_labels', set_item(-1)),
                       ['val_labels', '-1 to 3', 'expected 0 to 3']),
    'label two of several': ('chestmnist', lambda a: change(a, 'test_labels', set_item(2)),
                             ['test_labels', '0 to 2', 'expected 0 to 1']),
    'float labels': ('breastmnist', lambda a: change(a, 'train_labels', lambda y: y*1.),
                     ['train_labels', 'float64', 'integers']),
    'NaN labels': ('breastmnist', lambda a: change(a, 'train_labels', lambda y: y*np.nan),
                   ['train_labels', 'integers']),
    'fewer labels than images': ('breastmnist', lambda a: change(a, 'train_labels', lambda y: y[:-1]),
                                 ['train_labels', '39×1', '40×1']),
    'fewer images than labels': ('chestmnist', lambda a: change(a, 'val_images', lambda x: x[1:]),
                                 ['val_labels', '24×14', '23×14']),
    'one-hot labels': ('breastmnist',
                       lambda a: change(a, 'test_labels', lambda y: np.eye(2, dtype=np.uint8)[y[:,0]]),
                       ['test_labels', '24×2', '24×1']),
    'one of several labels': ('chestmnist', lambda a: change(a, 'train_labels', lambda y: y[:,:1]),
                              ['train_labels', '40×1', '40×14']),
    'labels without a shape': ('breastmnist', lambda a: change(a, 'train_labels', lambda y: y.sum()),
                               ['train_labels', '40×1']),
    'pickled objects': ('breastmnist', lambda a: change(a, 'train_images', lambda x: x.astype(object)),
                        ['train_images', 'object']),
}

@pytest.mark.parametrize('case', BAD)
def test_bad_arrays_get_one_sentence(tmp_path, case):
    name, spoil, (array, *words) = BAD[case]
    path = write(tmp_path/f'{name}.npz', spoil(make_arrays(name)))
    whole = {'missing array': array, 'no array at all': array}
    at = whole.get(case, f'{path}: {array}')
    with refused(at, str(path), *words): quiet_load(path, medmnist.INFO[name], name)

@pytest.mark.parametrize('name,other', [('breastmnist','pathmnist'), ('breastmnist','chestmnist'),
                                        ('chestmnist','breastmnist'), ('breastmnist','octmnist'),
                                        ('pathmnist','organamnist')])
def test_another_set_under_the_name_is_refused(tmp_path, name, other):
    write_npz(tmp_path, other).rename(tmp_path/f'{name}.npz')
    with pytest.raises(InputError) as e: load_medmnist(name, tmp_path, download=False)
    assert e.value.field.startswith(str(tmp_path/f'{name}.npz: '))

def test_another_size_under_the_name_is_refused(tmp_path):
    write_npz(tmp_path, 'breastmnist', 64).rename(tmp_path/'breastmnist.npz')
    with refused(tmp_path/'breastmnist.npz: train_images', 'N×28×28 uint8', found=(40, 64, 64)):
        load_medmnist('breastmnist', tmp_path, download=False)

def test_a_flat_list_of_labels_is_fine(tmp_path):
    a = make_arrays('octmnist')
    flat = {k: v[:,0] if k.endswith('labels') else v for k,v in a.items()}
    data = quiet_load(write(tmp_path/'a.npz', flat), medmnist.INFO['octmnist'], 'octmnist')
    assert np.array_equal(data.train.y, a['train_labels'][:,0])

def npy(a):
    f = io.BytesIO(); np.save(f, a, allow_pickle=True)
    return f.getvalue()

@pytest.mark.parametrize('content', [b'', b'PK', b'no archive', bytes(2000), npy(np.zeros(5)),
                                     npy(np.array([{}])), b'\x80\x04N.'],
                         ids=['empty', 'two bytes', 'text', 'zeros', 'bare array', 'bare object',
                              'bare pickle'])
def test_what_is_no_archive_is_refused(tmp_path, content):
    path = tmp_path/'breastmnist.npz'
    path.write_bytes(content)
    with refused(path, 'download it again'): load_medmnist('breastmnist', tmp_path, download=False)

def test_a_zip_of_something_else_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path/'breastmnist.npz', 'w') as z: z.writestr('train_images', 'hello')
    with refused('train_images', str(tmp_path)): load_medmnist('breastmnist', tmp_path, download=False)

@pytest.fixture(scope='module')
def archive(tmp_path_factory): return write_npz(tmp_path_factory.mktemp('archive'), 'breastmnist', n=(4,4,4))

@given(share=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_refused_wherever_it_ends(archive, share):
    whole, path = archive.read_bytes(), archive.with_name('cut.npz')
    path.write_bytes(whole[:int(share*len(whole))])
    with refused(path): read_npz(path)

@settings(max_examples=300)
@given(place=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255), end=st.booleans())
def test_a_damaged_byte_is_an_input_error_or_harmless(archive, place, value, end):
    whole, path = bytearray(archive.read_bytes()), archive.with_name('damaged.npz')
    # the directory, at the end, is where it hurts
    at = len(whole)-600+int(600*place) if end else int(place*len(whole))
    assume(whole[at] != value)
    whole[at] = value
    path.write_bytes(whole)
    try: quiet_load(path, medmnist.INFO['breastmnist'], 'breastmnist')
    except InputError as e: assert str(path) in str(e)

@pytest.mark.parametrize('at,value', [(8,1), (8,64), (10,255), (6,99)],
                         ids=['encrypted', 'strongly encrypted', 'unknown compression', 'from the future'])
def test_an_archive_of_a_kind_that_cannot_be_read_is_refused(archive, at, value):
    content, path = bytearray(archive.read_bytes()), archive.with_name('odd.npz')
    # in the directory's first entry
    content[content.index(b'PK\x01\x02')+at] = value
    path.write_bytes(content)
    with refused(path): read_npz(path)

def header(shape=(4,), descr='|u1', extra='', version=b'\x01\x00'):
    text = (extra or f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}").encode()
    return b'\x93NUMPY' + version + len(text).to_bytes(2, 'little') + text

HOSTILE = {'terabytes': header('(1000000, 1000, 1000)')+bytes(9),
           'a digit too many': header('(' + '9'*400 + ',)'),
           'negative': header('(-4,)')+bytes(4), 'negative twice': header('(-2, -2)')+bytes(4),
           'too few': header('(5,)')+bytes(4), 'too many': header('(3,)')+bytes(4), 'no header': b'',
           'text': b'hello',
           'nested brackets': header(extra='('*1000+')'*1000), 'nested lists': header(extra='['*4000),
           'a call': header(extra="__import__('os').getcwd()"), 'cut header': header()[:-9],
           'half a dozen': header('6'),
           'a hundred dimensions': header('(' + '1,'*100 + ')')+bytes(1),
           'objects': header('(1,)', '|O')+bytes(8),
           'nothing each': header('(1000000000000,)', '|V0'),
           'fields': header('(1,)', [('a', '<f4')])+bytes(4),
           'times': header('(1,)', '<M8[s]')+bytes(8), 'no type': header('(1,)', '<q9')+bytes(9),
           'of the future': header(version=b'\x09\x00')+bytes(4), 'huge header': header(extra=' '*60_000)}

@pytest.mark.parametrize('store', [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=['stored', 'deflated'])
@pytest.mark.parametrize('what', HOSTILE)
def test_a_header_is_checked_before_there_is_room_for_what_it_promises(tmp_path, what, store):
    path = tmp_path/'breastmnist.npz'
    np.savez(path, **make_arrays('breastmnist', 28, (4,4,4)))
    quiet_load(path, medmnist.INFO['breastmnist'], 'breastmnist')      # all imports are done
    with zipfile.ZipFile(path, 'a', store) as z: z.writestr('train_factors.npy', HOSTILE[what])
    tracemalloc.start()
    with pytest.raises(InputError) as e: quiet_load(path, medmnist.INFO['breastmnist'], 'breastmnist')
    peak = tracemalloc.get_traced_memory()[1]; tracemalloc.stop()
    said = str(e.value)
    assert str(path) in said and len(said) < 400+len(str(path)) and len(said.splitlines()) == 1
    assert peak < 4*path.stat().st_size + 2**21

def test_an_archive_that_would_fill_the_memory_is_refused(tmp_path):
    path = tmp_path/'bomb.npz'
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as z:
        with z.open('train_images.npy', 'w') as f:
            f.write(header(f'({80*2**20},)'))
            for _ in range(80): f.write(bytes(2**20))
    with refused(path, 'would unpack to', str(80*2**20+len(header(f'({80*2**20},)')))): read_npz(path)

@pytest.mark.parametrize('extra',
                         [np.zeros((4,7)), np.zeros((3,8)), np.full((4,8), 2.), np.full((4,8), np.nan),
                                   np.zeros((4,8), int), np.array(5.), np.array(['a']), np.zeros((0,8)),
                                   np.array([{}], dtype=object)], ids=lambda a: f'{a.dtype} {a.shape}')
def test_an_extra_array_is_right_or_refused(tmp_path, extra):
    arrays, info = make_arrays('breastmnist', 28, (4,4,4)), medmnist.INFO['breastmnist']
    path = write(tmp_path/'a.npz', arrays | dict(val_factors=extra))
    with refused(f'{path}: val_factors'): quiet_load(path, info, 'breastmnist')
    # what nobody asks for is not looked at
    path = write(tmp_path/'b.npz', arrays | dict(notes=extra))
    assert quiet_load(path, info, 'breastmnist').val.factors is None

def test_an_array_may_lie_in_another_order(tmp_path):
    arrays = make_arrays('bloodmnist', 28, (8,8,8))
    other = {k: np.asfortranarray(a) if k.endswith('images') else a.astype('>i4') for k,a in arrays.items()}
    other['train_factors'] = np.arange(64).reshape(8, 8).astype('>f4')/64
    data = quiet_load(write(tmp_path/'a.npz', other), medmnist.INFO['bloodmnist'], 'bloodmnist')
    assert np.array_equal(to_numpy(data.test.x), arrays['test_images'])
    assert np.array_equal(data.train.y, arrays['train_labels'][:,0])
    assert torch.equal(data.train.factors, torch.arange(64).view(8, 8)/64)

@pytest.mark.parametrize('change',
                         [dict(task='x'), dict(label=['a','b']), dict(label={'1':'a','2':'b'}),
                          dict(label={}),
                                    dict(n_channels=2), dict(n_channels='1')], ids=str)
def test_what_is_said_of_a_file_is_checked(tmp_path, change):
    path, info = write_npz(tmp_path, 'breastmnist'), medmnist.INFO['breastmnist'] | change
    with refused(*change): quiet_load(path, info, 'mine')

def test_a_file_under_a_name_of_ones_own_is_read(tmp_path):
    path = tmp_path/'own.npz'
    write_npz(tmp_path, 'breastmnist', n=(8,4,4)).rename(path)
    data = load_data(str(path))
    assert (data.name, data.classes, len(data.train)) == ('own', ['0','1'], 8)
    for name in ('mine', 'mine.npz', str(tmp_path/'none')):
        with refused('data set', 'unknown', 'no folder', found=name): load_data(name)


# Missing files

@pytest.mark.parametrize('name,near', [('brestmnist','breastmnist'), ('BreastMNIST','breastmnist'),
                                       ('pneumonia','pneumoniamnist'), ('fantom','phantom'),
                                       ('organmnist','organ'), ('PATHMNIST','pathmnist')])
def test_unknown_names_get_suggestions(name, near):
    with refused('data set', 'did you mean', near, found=name): load_data(name)

def test_a_name_like_no_other_gets_the_list():
    with refused('data set', 'phantom', *NAMES): load_data('%%%')

@pytest.mark.parametrize('name', ['organmnist3d','nodulemnist3d'])
def test_volumes_are_refused(name):
    with refused('data set', found=name): load_data(name)

@pytest.mark.parametrize('size', [0, 32, 27, -28])
def test_unknown_sizes_are_refused(size):
    with refused('size', '28, 64, 128 and 224', found=size): load_medmnist('breastmnist', size=size)

@pytest.mark.parametrize('size', [0, 8, 27, -28])
def test_sizes_that_the_phantom_cannot_have_are_refused(size):
    with refused('size', 'multiple of 4, at least 12', found=size): load_data('phantom', size=size)

@pytest.mark.parametrize('error', [RuntimeError('no'), urllib.error.URLError('no network'),
                                   TimeoutError('slow'), ConnectionResetError('gone')],
                         ids=lambda e: type(e).__name__)
@pytest.mark.parametrize('deep', [False, True])
def test_a_failed_download_leaves_nothing(tmp_path, monkeypatch, error, deep):
    def half(url, root, filename, md5):
        assert medmnist.INFO['breastmnist']['url_64'] == url
        with open(f'{root}/{filename}', 'wb') as f: f.write(b'PK half of it')
        raise error
    monkeypatch.setattr(torchvision.datasets.utils, 'download_url', half)
    root = tmp_path/'a'/'b' if deep else tmp_path
    with refused(root/'breastmnist_64.npz', medmnist.INFO['breastmnist']['url_64'], '--root'):
        load_medmnist('breastmnist', root, 64)
    assert [p for p in tmp_path.rglob('*') if not p.is_dir()] == []
    assert not (root.exists() and list(root.iterdir()))

def test_an_interrupted_download_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(url, root, filename, md5):
        with open(f'{root}/{filename}', 'wb') as f: f.write(b'PK half of it')
        raise KeyboardInterrupt
    monkeypatch.setattr(torchvision.datasets.utils, 'download_url', interrupted)
    # medmnist swallows it
    with pytest.raises((KeyboardInterrupt, InputError)): load_medmnist('breastmnist', tmp_path)
    assert list(tmp_path.iterdir()) == []

def test_a_download_arrives_whole(tmp_path, monkeypatch):
    root, seen = tmp_path/'here', []
    def fetch(url, root, filename, md5):
        assert md5 == medmnist.INFO['bloodmnist']['MD5']
        assert not medmnist_path('bloodmnist', tmp_path/'here').exists()      # it is not written in place
        write_npz(root, 'bloodmnist')
        seen.append(filename)
    monkeypatch.setattr(torchvision.datasets.utils, 'download_url', fetch)
    with pytest.warns(UserWarning, match='MD5'): data = load_medmnist('bloodmnist', root)
    assert len(data.train) == 40 and [p.name for p in root.iterdir()] == ['bloodmnist.npz']
    with pytest.warns(UserWarning, match='MD5'): load_medmnist('bloodmnist', root)
    assert seen == ['bloodmnist.npz']                                          # once

def test_no_download_when_told_not_to(tmp_path, monkeypatch):
    monkeypatch.setattr(torchvision.datasets.utils, 'download_url', lambda *a, **k: pytest.fail('downloaded'))
    with refused(tmp_path/'breastmnist.npz', '--root'):
        load_medmnist('breastmnist', tmp_path, download=False)
    assert list(tmp_path.iterdir()) == []

def test_a_root_whose_name_is_too_long_is_refused(tmp_path):
    root = tmp_path/('x'*300)
    with refused(root/'breastmnist.npz', '--root'): load_medmnist('breastmnist', root)

def test_a_root_that_is_a_file_is_refused(tmp_path):
    (tmp_path/'file').write_text('')
    with refused(tmp_path/'file'/'breastmnist.npz'): load_medmnist('breastmnist', tmp_path/'file')


# The phantom

@given(st.integers(0, 50))
def test_no_seed_puts_an_image_of_a_hole_into_training(seed):
    data = phantom(30, 10, 30, size=12, seed=seed)
    assert (len(data.train), len(data.val), len(data.test)) == (30, 10, 30)
    for s in (data.train, data.val): assert not in_hole(s.factors).any()
    for s in (data.train, data.val, data.test): assert torch.equal(s.y, phantom_labels(s.factors))

@pytest.mark.parametrize('seed', [-1, 1.5])
def test_a_phantom_needs_a_seed_from_0_on(seed):
    for make in (lambda: load_data('phantom', seed=seed), lambda: subset(phantom(), 10, seed=seed)):
        with refused('seed', 'at least 0', found=seed): make()

def test_the_phantom_can_be_rendered_at_every_size_and_has_a_gradient():
    f = torch.rand(3, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    for size in (12, 28, 64):
        x = render_phantom(f, size)
        assert x.shape == (3,1,size,size) and 0 <= x.min() and x.max() <= 1
    g, = torch.autograd.grad(render_phantom(f, 28).sum(), f)
    assert torch.isfinite(g).all() and (g[:,:7].abs().sum(0) > 0).all()
    assert not torch.equal(render_phantom(f, 28, seed=1), render_phantom(f, 28, seed=2))

def test_the_label_rule_is_the_stated_one():
    f = torch.full((4,8), .5); f[:,1] = torch.tensor([0,1,.4,.6]); f[:,3] = torch.tensor([1,0,.6,.4])
    want = [int(.6*a+.4*b > .5) for a,b in zip(f[:,1].tolist(), f[:,3].tolist())]
    assert phantom_labels(f).tolist() == want == [0,1,0,1]

def test_the_test_split_has_images_of_both_holes():
    f = phantom(30, 10, 200, size=12).test.factors
    assert in_hole(f, 'inside').any() and in_hole(f, 'edge').any() and .1 < in_hole(f).float().mean() < .35

def test_holes_of_ones_own():
    mine = {'slab': {'spiculation': (.2,.7)}, 'corner': {'shadow': (.5,1.), 'x': (0.,.5)}}
    f = torch.full((4,8), .1); f[1,1] = .2; f[2,3] = 1; f[3,3],f[3,5] = .9,.6
    assert in_hole(f, 'slab', mine).tolist() == [False,True,False,False]
    assert in_hole(f, 'corner', mine).tolist() == [False,False,True,False]
    assert in_hole(f, holes=mine).tolist() == [False,True,True,False]
    data = phantom(60, 10, 60, size=12, holes=mine)
    for s in (data.train, data.val): assert not in_hole(s.factors, holes=mine).any()
    # and ours instead of the default ones
    assert in_hole(data.test.factors, holes=mine).any() and in_hole(data.train.factors).any()

def test_the_default_holes_are_the_stated_ones():
    assert (phantom(60, 10, 10, size=12).md5 == phantom(60, 10, 10, size=12, holes=HOLES).md5
            != phantom(60, 10, 10, size=12, holes=False).md5)

def test_a_hole_that_leaves_nothing_is_refused():
    with refused('holes'): phantom(60, 10, 10, size=12, holes={'all': {'spiculation': (.01,1.)}})

def test_holes_can_be_filled():
    assert in_hole(phantom(300, 10, 10, size=12, holes=False).train.factors).float().mean() > .1


# Strata and subsets

labellings = st.tuples(st.integers(2, 7), st.integers(0, 80), st.integers(0, 10**6), st.booleans())

def made_labels(C, extra, seed, multilabel):
    rng = np.random.default_rng(seed)
    if multilabel: return torch.from_numpy((rng.random((C+extra, C)) < rng.random(C)*.6).astype(np.float32))
    p = rng.dirichlet(np.ones(C))
    return torch.from_numpy(rng.permutation(np.concatenate([np.arange(C), rng.choice(C, extra, p=p)])))

@given(labellings)
def test_strata_of_several_labels_are_the_rarest_an_image_has(args):
    y = made_labels(*args[:3], True)
    freq = y.sum(0)
    for row,s in zip(y, strata(y).tolist()):
        mine = row.nonzero()[:,0].tolist()
        if mine: assert s in mine and freq[s] == min(freq[i] for i in mine)
        else: assert s == y.shape[1]

@given(labellings)
def test_every_prefix_is_stratified(args):
    y = made_labels(*args)
    order, s = stratified_order(y, args[2]%100), strata(y)
    assert order.sort().values.tolist() == list(range(len(y)))
    present, counts = s.unique(return_counts=True)
    K = len(present)
    assert s[order[:K]].sort().values.tolist() == present.tolist()            # one of each first
    share = counts.double()/len(y)
    for n in range(K, len(y)+1):
        got = torch.stack([(s[order[:n]]==c).sum() for c in present])
        # off by the one-of-each rule at most
        assert (got >= 1).all() and ((got-n*share).abs() <= K).all()
    assert torch.equal(stratified_order(y, 3), stratified_order(y, 3))

@given(labellings, st.integers(0, 20))
def test_subsets_are_nested_and_stratified(args, seed):
    C,extra,made,multi = args
    y = made_labels(*args)
    n = len(y)
    parts = [Split(torch.arange(n).view(-1,1,1,1).to(torch.uint8), y, torch.arange(n)) for _ in range(3)]
    data = ImageData('made', MULTI if multi else 'multi-class', [str(i) for i in range(C)], *parts)
    before = set()
    for k in range(C, n+1, max(1, n//7)):
        try: small = subset(data, k, seed)
        except InputError as e:
            assert multi and e.field == 'subset'
            continue
        assert len(small.train) == len(small.val) == k and len(small.test) == n
        now = set(small.train.index.tolist())
        assert len(now) == k and before <= now
        assert torch.equal(small.train.y, y[small.train.index])
        assert small.train.x.flatten().tolist() == small.train.index.tolist()
        if not multi: assert small.train.y.unique().tolist() == list(range(C))
        before = now

@pytest.mark.parametrize('n', [0, 1, 2, -5, 41, 10**9])
def test_subsets_of_an_impossible_size_are_refused(n):
    # the last two depend on the data set, which is named
    with refused('subset', *(['made'] if n in (2, 41) else []), found=n): subset(image_data(40, 3), n)

def test_validation_is_capped_but_test_is_not():
    data = replace(image_data(40, 2), val=split(7, 2), test=split(90, 2))
    small = subset(data, 20)
    assert (len(small.train), len(small.val), len(small.test)) == (20, 7, 90)

@pytest.mark.parametrize('multi,y', [(False, [0,0,2]), (True, [[1,0,1],[0,0,1]])])
def test_an_absent_class_is_named(multi, y):
    y = torch.tensor(y, dtype=torch.float32 if multi else torch.int64)
    s = Split(torch.zeros(len(y),1,4,4, dtype=torch.uint8), y, torch.arange(len(y)))
    data = ImageData('made', MULTI if multi else 'multi-class', ['one','two','three'], s, s, s)
    for check in (check_classes, image_dls):
        with refused('subset', "'two'") as e: check(data)
        assert "'one'" not in str(e.value) and ("'three'" in str(e.value)) == multi


# Batches

loaders = st.fixed_dictionaries(dict(N=st.integers(1, 40), C=st.integers(1, 5), bs=st.integers(1, 45),
                                     n=st.none() | st.integers(1, 90), seed=st.integers(0, 1000)))

def loader(o, **kwargs):
    C = min(o['C'], o['N'])
    return ImageDL(split(o['N'], C), bs=o['bs'], n=o['n'], seed=o['seed'], **kwargs), C

def epoch(dl):
    "The images' source indices in the order of an epoch, and the sizes of the batches"
    seen, sizes = [], []
    for i,(x,y) in enumerate(dl):
        ids = dl.batch_index(i)
        assert len(ids) == len(x) == len(y)
        pos = ids-1000
        assert torch.equal((x*255).round().byte(), dl.dataset.x[pos]) and torch.equal(y, dl.dataset.y[pos])
        seen += pos.tolist(); sizes.append(len(x))
    return seen, sizes

@given(loaders, st.booleans())
def test_every_image_equally_often_in_an_epoch(o, shuffle):
    dl,_ = loader(o, shuffle=shuffle)
    n = o['n'] or o['N']
    for _ in range(2):
        seen,sizes = epoch(dl)
        counts = np.bincount(seen, minlength=o['N'])
        assert len(seen) == n and counts.max()-counts.min() <= 1
        assert (len(sizes) == len(dl) == math.ceil(n/o['bs']) and max(sizes) <= o['bs']
                and max(sizes)-min(sizes) <= 1)
        if not shuffle: assert seen == [i%o['N'] for i in range(n)]

@given(loaders)
def test_every_class_equally_often_when_balanced(o):
    dl,C = loader(o, shuffle=True, balanced=True)
    n = o['n'] or o['N']
    for _ in range(3):
        seen,_ = epoch(dl)
        classes = np.bincount(dl.dataset.y[seen], minlength=C)
        assert len(seen) == n and classes.max()-classes.min() <= 1
        # and within a class no image is preferred
        for c in range(C):
            mine = np.bincount(seen, minlength=o['N'])[(dl.dataset.y==c).numpy()]
            assert mine.max()-mine.min() <= 1

@given(loaders)
def test_without_shuffling_balance_changes_nothing(o):
    a,b = (epoch(loader(o, shuffle=False, balanced=balanced)[0])[0] for balanced in (True, False))
    assert a == b

@given(loaders, st.booleans(), st.booleans())
def test_uneven_epochs_are_cut_as_by_torch(o, balanced, drop_last):
    n = o['n'] or o['N']
    theirs = [len(b) for b in torch.utils.data.DataLoader(range(n), batch_size=o['bs'], drop_last=drop_last)]
    dl,_ = loader(o, shuffle=True, even=False, balanced=balanced, drop_last=drop_last)
    order,(seen,sizes) = dl.new().get_idxs(),epoch(dl)
    assert sizes == theirs and len(dl) == len(theirs) and seen == order[:len(seen)]

@given(loaders)
def test_even_epochs_know_fastais_drop_last(o):
    n = o['n'] or o['N']
    assert epoch(loader(o, shuffle=True, drop_last=True)[0])[1] == [o['bs']]*(n//o['bs'])

@given(loaders, st.booleans(), st.integers(0, 2**32))
def test_the_order_is_a_function_of_seed_and_epoch(o, balanced, noise):
    first = [epoch(dl)[0] for dl in [loader(o, shuffle=True, balanced=balanced)[0]] for _ in range(3)]
    dl,_ = loader(o, shuffle=True, balanced=balanced)
    second = []
    for _ in range(3):
        with seeded(noise): torch.rand(3), np.random.rand(3); second.append(epoch(dl)[0])
    assert first == second

@pytest.mark.parametrize('bs', [0, -1, 2.5, True], ids=str)
def test_an_impossible_batch_size_is_refused(bs):
    with refused('bs', found=bs): ImageDL(split(40), bs=bs)

def test_epochs_and_seeds_differ():
    orders = [epoch(dl)[0] for s in range(4) for dl in [ImageDL(split(40), bs=8, shuffle=True, seed=s)]
              for _ in range(4)]
    assert len(set(map(tuple, orders))) == 16

def test_several_labels_are_balanced_over_their_strata():
    s = split(60, 4, multilabel=True)
    dl = ImageDL(s, bs=7, shuffle=True, balanced=True, n=100)
    counts = np.unique(strata(s.y)[epoch(dl)[0]], return_counts=True)[1]
    assert counts.max()-counts.min() <= 1 and counts.sum() == 100

@pytest.mark.parametrize('kwargs', [dict(bs=0), dict(bs=-1), dict(bs=float('nan')), dict(bs=2.5),
                                    dict(seed=-1)], ids=str)
def test_impossible_batches_are_refused(kwargs):
    (name, found), = kwargs.items()
    with refused(name, found=found): image_dls(image_data(40), **kwargs).one_batch()

def test_a_batch_larger_than_the_data_is_one_batch():
    assert [len(y) for _,y in image_dls(image_data(40), bs=64).train] == [40]

def test_a_copy_of_the_loader_serves_the_same_images():
    "fastai makes one for `get_preds`"
    dl = ImageDL(split(23), bs=5, shuffle=True, balanced=True, seed=4, classes=['a','b'], even=False)
    plain = dl.new(shuffle=False, drop_last=False)
    assert epoch(plain)[0] == list(range(23)) and plain.classes == ['a','b']
    again = dl.new()
    assert (again.seed, again.balanced, again.shuffle, again.even) == (4, True, True, False)
    assert epoch(again)[0] == epoch(ImageDL(split(23), bs=5, shuffle=True, balanced=True, seed=4))[0]

def test_a_look_at_a_batch_changes_nothing_in_the_middle_of_an_epoch():
    dl,quiet = (ImageDL(split(23), bs=5, shuffle=True, balanced=True, seed=4) for _ in range(2))
    undisturbed = [quiet.batch_index(i) for i,_ in enumerate(quiet)]
    for i,(x,_) in enumerate(dl):
        dl.one_batch()
        assert torch.equal(dl.batch_index(i), undisturbed[i])
        assert torch.equal((x*255).round().byte(), dl.dataset.x[dl.batch_index(i)-1000])

def test_validation_is_served_in_order_and_whole():
    for even,sizes in ((True, [4,5,4,5,5]), (False, [5,5,5,5,3])):
        dls = image_dls(image_data(23), bs=5, seed=3, even=even)
        assert epoch(dls.valid) == (list(range(23)), sizes) and epoch(dls.valid)[0] == list(range(23))
        assert epoch(dls.train)[1] == sizes

def test_two_learners_of_one_seed_see_the_same_batches():
    data = image_data(40, 3)
    seen = lambda learn: [epoch(learn.dls.train)[0] for _ in range(3)]
    one,two,other = (seen(classifier_learner(data, torch.nn.Linear(1, 3), seed=s, bs=9)) for s in (5,5,6))
    assert one == two != other

def test_show_batch_names_one_and_several_labels(monkeypatch):
    import matplotlib; matplotlib.use('Agg')
    for multi in (False, True):
        axs = image_dls(image_data(40, 3, multilabel=multi), bs=4).train.show_batch()
        titles = [a.get_title() for a in np.ravel(axs)]
        assert all(set(t.split(', ')) <= {'c0','c1','c2',''} for t in titles) and any(titles)


def test_titles_fit_whatever_the_reader_has_set():
    "Outside of the book matplotlib's own sizes hold, and its titles are too wide for a small image"
    import matplotlib
    from tsynd.core import show_images, TYPE_SIZE
    with matplotlib.rc_context({'font.size': 20, 'axes.titlesize': 'large'}):
        axs = show_images(torch.zeros(2, 1, 8, 8), titles=['a', 'b\nc'])
    assert [a.title.get_fontsize() for a in axs.ravel()[:2]] == [TYPE_SIZE]*2
