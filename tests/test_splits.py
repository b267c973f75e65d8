"""Tables that go with their images; splits whose shares and patients can be counted; planted duplicates."""
import io, math, pickle, shutil, warnings
from dataclasses import replace

import numpy as np, pandas as pd, pytest, torch
from hypothesis import given, strategies as st
from PIL import Image
from refused import refused

from tsynd.core import InputError
from tsynd.experiments import run, RunConfig
from tsynd.reports import read_run, run_html
from tsynd.data import (
    check_patients, draw_splits, duplicate_words, factor_table, FACTORS, find_duplicates, ImageData,
    likely_patients, load_data, PARTS, phantom, Split, split_table, stratified_order, subset, subset_order)


def with_table(n=10):
    table = pd.DataFrame(dict(path=[f'{i}.png' for i in range(n)], patient=[i//3 for i in range(n)]))
    return Split(torch.arange(n).view(-1,1,1,1).to(torch.uint8).expand(-1,1,4,4).clone(), torch.arange(n)%2,
                 torch.arange(n), table)


# The table of a split

@pytest.mark.parametrize('pick', [[7,2,2], slice(3, 8), slice(0), slice(None, None, 3), torch.tensor([9,0]),
                                  torch.arange(10) > 6, torch.zeros(0, dtype=torch.int64)], ids=str)
def test_the_rows_of_a_selection_are_those_of_its_images(pick):
    part = with_table().select(pick)
    assert len(part.table) == len(part) and part.table.index.tolist() == list(range(len(part)))
    assert part.table.path.tolist() == [f'{i}.png' for i in part.index.tolist()]
    assert part.x[:,0,0,0].tolist() == part.index.tolist()

def test_what_is_exported_with_a_learner_holds_no_row_of_the_table():
    s = with_table()
    s.table.attrs['root'] = 'images of somebody'
    kept = pickle.dumps(s.new_empty())
    assert b'.png' not in kept and b'somebody' not in kept and len(pickle.loads(kept)) == 0

def test_a_table_of_any_index_gets_the_default_one():
    s = with_table()
    odd = Split(s.x, s.y, s.index, s.table.set_axis(range(5, 15)))
    data = ImageData('made', 'binary-class', ['a','b'], s, odd, s)
    assert data.val.table.equals(s.table) and odd.table.index[0] == 5

@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_factors_are_columns(dtype):
    f = torch.rand(20, 8, dtype=dtype)
    s = Split(torch.zeros(20,1,4,4).byte(), torch.zeros(20).long(), torch.arange(20), factor_table(f))
    assert torch.equal(s.factors, f) and s.factors.dtype == dtype and s.factors.is_contiguous()
    assert torch.equal(s.select([4,1]).factors, f[[4,1]])
    s.table = s.table.assign(patient=3)[['patient', *reversed(FACTORS)]]
    assert torch.equal(s.factors, f)                            # whatever the order of the columns
    s.table = s.table.drop(columns='phase')
    assert s.factors is None and with_table().factors is None

def test_a_subset_of_the_phantom_keeps_its_factors():
    data = phantom(40, 20, 10, size=12)
    small = subset(data, 10)
    assert torch.equal(small.train.factors, data.train.factors[small.train.index])
    small.train.factors.zero_()                                 # a copy, which changes nothing
    assert torch.equal(small.train.factors, data.train.factors[small.train.index])


# Drawn splits

SHARES = [(.6,.2,.2), (.5,.25,.25), (.4,.3,.3), (.8,.1,.1), (.8,.2,0), (1,0,0)]

def made_table(classes, seed, patients=None, mixed=False):
    "So many images of each class, in any order; patients with one to six, of one class or of all"
    rng = np.random.default_rng(seed)
    t = pd.DataFrame(dict(label=rng.permutation(np.repeat([f'c{i}' for i in range(len(classes))], classes))))
    t['path'] = [f'{i}.png' for i in range(len(t))]
    if not patients: return t
    if not mixed: t = t.sort_values('label', kind='stable', ignore_index=True)
    who = np.repeat(np.arange(len(t)), rng.integers(1, 7, len(t)))[:len(t)]
    return t.assign(patient=[f'p{w}' if mixed else f'{c}{w}' for w,c in zip(who, t.label)])

def exact(t, shares):
    return {(c,k): n*s for c,n in t.label.value_counts().items() for k,s in zip(PARTS, shares)}

@given(st.lists(st.integers(9, 60), min_size=1, max_size=4), st.integers(0, 10**6), st.sampled_from(SHARES))
def test_shares_of_a_class_are_within_one_image_of_the_exact(classes, seed, shares):
    t = made_table(classes, seed)
    split = draw_splits(t, seed, shares)
    assert split.index.equals(t.index) and {*split} <= {*PARTS}
    for (c,k),want in exact(t, shares).items():
        assert abs(((t.label == c) & (split == k)).sum() - want) < 1 + 1e-9, (c, k)

@given(st.lists(st.integers(30, 80), min_size=1, max_size=3), st.integers(0, 10**6), st.booleans())
def test_no_patient_is_on_both_sides_for_any_seed(classes, seed, mixed):
    "And where patients have one class, shares are within the images of its largest one"
    t = made_table(classes, seed, patients=True, mixed=mixed)
    try: split = draw_splits(t, seed)
    except InputError as e:
        assert e.field == 'label' and t.groupby('label').patient.nunique().min() < 3
        return
    assert split.groupby(t.patient).nunique().max() == 1
    for (c,k),want in exact(t, (.6,.2,.2)).items():
        largest = 30 if mixed else t[t.label == c].groupby('patient').size().max()
        assert abs(((t.label == c) & (split == k)).sum() - want) < largest + 1e-9, (c, k)

def test_a_split_depends_on_the_seed_alone_and_on_no_order_of_the_parts():
    t = made_table([40,20], 0)
    assert draw_splits(t, 3).equals(draw_splits(t.copy(), 3))
    assert not draw_splits(t, 3).equals(draw_splits(t, 4))
    odd = t.set_axis(range(100, 160))
    assert draw_splits(odd, 3).tolist() == draw_splits(t, 3).tolist() and draw_splits(odd, 3).index[0] == 100
    # each image is in the test set as often as any other
    often = np.mean([draw_splits(t, s) == 'test' for s in range(150)], 0)
    assert often.mean() == pytest.approx(.2) and (abs(often-.2) < 5*(.16/150)**.5).all()

def test_large_patients_are_in_all_parts():
    "In training there would be only large ones, if it were filled first"
    who = [f'{n}.{i}' for n in range(1, 9) for i in range(10) for _ in range(n)]
    t = pd.DataFrame(dict(label='a', patient=who))
    split, size = draw_splits(t), t.groupby('patient').label.transform('size')
    of_five = t[size == 5].groupby(split).patient.nunique()
    assert of_five[['train','val','test']].tolist() == pytest.approx([6,2,2], abs=1.5)

@given(st.integers(30, 100), st.integers(2, 5), st.integers(0, 10**6))
def test_several_labels_are_stratified_too(n, C, seed):
    g = torch.Generator().manual_seed(seed)
    y = (torch.rand(n, C, generator=g) < torch.linspace(.2, .5, C)).float()
    if (y.sum(0) < 3).any(): return
    split = draw_splits(pd.DataFrame(dict(path=[f'{i}.png' for i in range(n)])), seed, y=y)
    for c in range(C):
        has = y[:,c].bool().numpy()
        # the labels hang together, so a few more than one
        for k,s in zip(PARTS, (.6,.2,.2)): assert abs((split[has] == k).sum() - s*has.sum()) <= 1+C, (c, k)

def test_labels_may_be_numbers_and_are_called_by_name():
    "With labels in the table or beside it, and with the names of several"
    t = made_table([20,2], 0)
    y = torch.tensor([int(c[1]) for c in t.label])
    with refused('label', "'c1'"): draw_splits(t, y=y)
    with refused('label', "'1'"): draw_splits(t[['path']], y=y)
    with refused('label', "'rare'"): draw_splits(t, y=y, classes=['often', 'rare'])
    several = torch.stack([1-y, y], 1).float()
    with refused('label', "'rare'"): draw_splits(t, y=several, classes=['often', 'rare'])
    with refused('label', '1 has 2 images'): draw_splits(t, y=several)
    many = made_table([20,9], 0)
    y = torch.tensor([int(c[1]) for c in many.label])
    assert draw_splits(many, 3).equals(draw_splits(many[['path']], 3, y=y))
    assert draw_splits(many, 3).equals(draw_splits(many, 3, y=y, classes=['often', 'rare']))

@pytest.mark.parametrize('few,patients', [(1, None), (2, None), (2, ['a','b']), (5, ['a','a','b','b','b'])])
def test_a_class_that_cannot_be_in_each_part_is_refused(few, patients):
    t = pd.DataFrame(dict(label=['many']*20 + ['few']*few))
    if patients: t['patient'] = [f'm{i}' for i in range(20)] + patients
    with refused('label', "'few'", 'at least 3', found=len({*patients}) if patients else few): draw_splits(t)
    assert (draw_splits(t, shares=(1,0,0)) == 'train').all()

def test_a_class_of_three_has_one_in_each_part():
    t = pd.DataFrame(dict(label=['many']*50 + ['few']*3))
    for seed in range(10): assert {*draw_splits(t, seed)[50:]} == {*PARTS}

@pytest.mark.parametrize('shares', [(.6,.2), (.6,.2,.3), (0,.5,.5), (1.2,-.1,-.1), 'abc', None,
                                    (math.nan,.5,.5)])
def test_shares_have_to_make_one(shares):
    with refused('shares'): draw_splits(made_table([9], 0), shares=shares)

def test_a_table_without_rows_is_refused():
    with refused('table'): draw_splits(pd.DataFrame(dict(label=[])))


# As the table says

def said(parts, **more):
    "A table with these parts, two classes in turn"
    return pd.DataFrame(dict(label=['a','b']*(len(parts)//2), split=parts, **more))

def test_what_the_table_says_of_all_images_stands():
    parts = (['Training']*4 + ['VALID']*2 + [' test ']*2)*3
    assert draw_splits(said(parts), 5).tolist() == (['train']*4 + ['val']*2 + ['test']*2)*3

@pytest.mark.parametrize('blank', ['', None, math.nan, '  '])
def test_where_only_the_test_set_is_named_the_rest_is_drawn(blank):
    t = said(['test']*10 + [blank]*40)
    split = draw_splits(t)
    assert (split[:10] == 'test').all() and split[10:].value_counts().to_dict() == dict(train=30, val=10)
    assert not split.equals(draw_splits(t, 1))

@pytest.mark.parametrize('named,other', [('train','test'), ('train','val')])
def test_a_part_that_is_missing_is_taken_from_training(named, other):
    t = said([named]*40 + [other]*10)
    with pytest.warns(UserWarning, match='has no (val|test)'): split = draw_splits(t)
    assert (split[40:] == other).all() and split[:40].value_counts().to_dict() == {
        'train': 30, 'val' if other == 'test' else 'test': 10}

def test_images_without_a_part_get_the_one_that_is_missing():
    split = draw_splits(said(['train']*10 + ['val']*4 + ['']*6))
    assert split.tolist() == ['train']*10 + ['val']*4 + ['test']*6

def test_a_table_of_test_images_alone_is_left_as_it_is():
    assert (draw_splits(said(['test']*6)) == 'test').all()

def test_a_patient_goes_where_his_other_images_are():
    t = said(['test'] + ['']*23, patient=['x']*4 + [f'p{i}' for i in range(20)])
    for seed in range(5): assert (draw_splits(t, seed)[:4] == 'test').all()

def test_a_word_that_names_no_part_is_refused():
    with refused('split', *PARTS, found='holdout'): draw_splits(said(['train']*3 + ['holdout']))

def test_patients_on_both_sides_are_refused_and_counted():
    t = said(['train','test']*4, patient=['u','u','v','w','x','x','y','z'])
    with refused('patient', "'u'", '1 other', found='u'): draw_splits(t)
    check_patients(t.assign(patient=[f'{i}' for i in range(8)]), t.split)
    check_patients(t.assign(patient=['u','']*4), t.split)              # nobody is known to be the same
    with refused('patient'): check_patients(t, t.split)
    unknown = made_table([10,10], 0).assign(patient=['']*20)
    assert draw_splits(unknown).value_counts().to_dict() == dict(train=12, val=4, test=4)


# What looks like patients

@pytest.mark.parametrize('name', ['PatientID', 'subject', 'pid', 'case_no', 'Study Instance', 'patient_id',
                                  'MRN'])
def test_a_column_that_looks_like_patients_is_named(name):
    t = made_table([15,15], 0)
    with pytest.warns(UserWarning, match=name): draw_splits(t.assign(**{name: [i//3 for i in range(30)]}))

@pytest.mark.parametrize('column', [dict(patient_age=[50,60]*15), dict(pid=range(30)), dict(pid=['same']*30),
                                    dict(scanner=['a','b']*15), dict(steps=[1,2]*15)], ids=str)
def test_other_columns_are_not(column):
    t = made_table([15,15], 0).assign(**column)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        draw_splits(t)

@pytest.mark.parametrize('name,like', [
    (lambda i: f'p{i//3:03}_{i}.png', True), (lambda i: f'ill/person{i//2}_bacteria_{i}.jpeg', True),
    (lambda i: f'IM-{i//4:04}-{i:04}.dcm', True), (lambda i: f'00{i//3}/{i%3}.png', True),
    (lambda i: f'ISIC_{i:07}.jpg', False), (lambda i: f'benign ({i}).png', False),
    (lambda i: f'{i}.png', False), (lambda i: f'train/scan{i}.png', False),
    (lambda i: f'class{i%2}_{i}.png', False), (lambda i: 'a'*(i+1), False)])
def test_names_of_files_that_look_like_patients(name, like):
    t = made_table([15,15], 0).assign(path=[name(i) for i in range(30)])
    assert bool(likely_patients(t)) == like
    if like:
        with pytest.warns(UserWarning, match='file names'): draw_splits(t)
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            draw_splits(t.assign(patient=[f'{i//5}' for i in range(30)]))


# Kept beside a run

def test_a_table_of_splits_can_be_given_back(tmp_path):
    data = ImageData('made', 'binary-class', ['no','yes'], *(with_table() for _ in range(3)))
    for k,part in enumerate(PARTS):
        s = getattr(data, part)
        path = [f'{part}/{i}.png' for i in range(10)]
        s.table = s.table.assign(path=path, patient=s.table.patient+10*k, age=7, KVP=28)
        s.table.attrs['root'] = str(tmp_path/'images')
    small = subset(data, 6)
    t = split_table(small, tmp_path/'runs'/'one')
    assert t.columns.tolist() == ['path','label','patient','split','KVP']      # of the person nothing
    assert t.split.value_counts().to_dict() == {k: len(getattr(small, k)) for k in PARTS}
    assert draw_splits(t).tolist() == t.split.tolist()
    back = [(tmp_path/'runs'/'one'/p).resolve().relative_to(tmp_path/'images').as_posix() for p in t.path]
    assert back == [p for k in PARTS for p in getattr(small, k).table.path]
    assert t.label.tolist() == [data.classes[y] for k in PARTS for y in getattr(small, k).y]
    assert split_table(data).path[0] == 'train/0.png' and split_table(phantom(4, 2, 2, size=12)) is None


# Subsets of patients

@given(st.lists(st.integers(10, 40), min_size=2, max_size=3), st.integers(0, 10**6), st.booleans())
def test_subsets_take_whole_patients_and_are_nested(classes, seed, mixed):
    t = made_table(classes, seed, patients=True, mixed=mixed)
    y = torch.tensor([int(c[1]) for c in t.label])
    s = Split(torch.zeros(len(t),1,4,4).byte(), y, torch.arange(len(t)), t)
    sizes = t.groupby('patient').size()
    before = set()
    for n in sorted({*range(1, len(t), 11), len(t)}):
        i = subset_order(s, seed, n)
        now = {*i.tolist()}
        assert len(now) == len(i) and before <= now
        took = t.patient[i.tolist()].value_counts()
        assert took.to_dict() == sizes[took.index].to_dict()
        assert n - sizes.max() < len(now) <= max(n, sizes.max())
        before = now
    assert subset_order(s, seed).equal(i) and len(i) == len(t)
    if not mixed: # one patient of each class first, then in proportion
        first = [*dict.fromkeys(t.patient[i.tolist()])]
        assert {t.label[t.patient == p].iloc[0] for p in first[:len(classes)]} == {*t.label}

def test_numbers_do_not_change_where_each_patient_has_one_image():
    s = with_table(30)
    s.table = s.table.assign(patient=[f'{i}' for i in range(30)])
    plain = Split(s.x, s.y, s.index)
    for n in (2, 7, 30): assert torch.equal(subset_order(s, 5, n), subset_order(plain, 5, n))
    assert torch.equal(subset_order(plain, 5), stratified_order(s.y, 5))


# Images that are there twice

def saved(x, quality):
    "As a JPEG makes of them"
    def one(im):
        file = io.BytesIO()
        Image.fromarray(im[0].numpy()).save(file, 'JPEG', quality=quality)
        return torch.from_numpy(np.array(Image.open(file)))[None]
    return torch.stack([one(im) for im in x])

@pytest.fixture(scope='module')
def phantoms():
    return phantom(300, 100, 100, size=64, seed=1)

def grained(x):
    g = torch.Generator().manual_seed(0)
    return (x.float() + 2*torch.randn(x.shape, generator=g)).round().clamp(0, 255).byte()

ALTERED = {'equal': lambda x: x, 'brighter': lambda x: (.8*x.float()+40).round().byte(),
           'less contrast': lambda x: (.5*x.float()+20).round().byte(), 'JPEG': lambda x: saved(x, 85),
           'grain': grained,
           'gamma': lambda x: (255*(x/255)**.8).round().byte()}

@pytest.mark.parametrize('how', ALTERED)
def test_planted_duplicates_are_found_and_nothing_else(phantoms, how):
    parts = {k: replace(getattr(phantoms, k), x=getattr(phantoms, k).x.clone()) for k in PARTS}
    want = {('train', 10*i, 'val' if i < 8 else 'test', 5*i) for i in range(16)}
    for _,i,other,j in want: parts[other].x[j] = ALTERED[how](parts['train'].x[i:i+1])[0]
    parts['test'].x[99] = parts['val'].x[98]
    found = find_duplicates(replace(phantoms, **parts))
    got = {*zip(found.part, found.image, found.other_part, found.other_image)}
    assert got == want | {('val',98,'test',99)} and len(found) == len(got)
    assert found.equal.sum() == (len(got) if how == 'equal' else 1)
    assert (found.likeness[found.equal] == 1).all() and found.likeness.is_monotonic_decreasing

def test_phantoms_hold_no_duplicates(phantoms):
    assert not len(find_duplicates(phantoms)) and duplicate_words(find_duplicates(phantoms)) == ''

def test_pairs_are_told_by_path_and_with_their_labels():
    s = with_table()
    s.x = torch.randint(256, (10,1,12,12), generator=torch.Generator().manual_seed(0)).byte()
    other = replace(s, x=255-s.x)
    data = ImageData('made', 'binary-class', ['no','yes'], s, other, other.select([3]))
    found = find_duplicates(data)
    assert len(found) == 1 and found.path[0] == found.other_path[0] == '3.png' and found.label[0] == 'yes'
    assert found.patient[0] == found.other_patient[0] == 1
    assert duplicate_words(found).startswith('1 pair')
    wrong = replace(data, test=replace(data.test, y=torch.tensor([0])))
    assert '1 of them with different labels' in duplicate_words(find_duplicates(wrong))

def test_images_of_one_grey_are_equal_only_where_all_pixels_are():
    x = torch.tensor([10,10,90]).byte().view(-1,1,1,1).expand(-1,1,12,12).clone()
    parts = [Split(x[i:i+1], torch.tensor([0]), torch.tensor([i])) for i in range(3)]
    found = find_duplicates(ImageData('grey', 'binary-class', ['no','yes'], *parts))
    assert found[['part','other_part']].values.tolist() == [['train','val']] and found.equal.all()

def test_public_sets_hold_what_they_are_known_to_hold(medmnist_root):
    data = [load_data(f'{k}mnist', medmnist_root) for k in ('breast','pneumonia')]
    breast, pneumonia = map(find_duplicates, data)
    assert len(breast) > 80 and (breast.label != breast.other_label).any()
    assert len(pneumonia) == 10 and pneumonia.equal.all()


# The table travels

@pytest.fixture(scope='module')
def own(tmp_path_factory):
    "A run on phantoms that have paths and patients, one of them in training and in the test set"
    tmp = tmp_path_factory.mktemp('own')
    data = phantom(24, 8, 8, size=12, seed=2)
    for k in PARTS:
        s, n = getattr(data, k), range(len(getattr(data, k)))
        path, patient = [f'{k}/<{i}>.png' for i in n], [f'{k}{i//2}' for i in n]
        s.table = pd.DataFrame(dict(path=path, patient=patient, age=61))
        s.table.attrs['root'] = str(tmp/'images')
    data.test.x[5] = data.train.x[4]
    c = RunConfig(quick=True, bs=8, ae_steps=3, attack_n=4, T=2, warmup=0, every=1, share=1)
    return data, run(c, tmp/'run', data=data, progress=False), tmp/'run'

def test_a_run_speaks_of_images_by_path_and_patient(own):
    data, result, folder = own
    rows = pd.read_csv(folder/'provenance.csv')
    i = rows.source_index.tolist()
    assert len(rows) and rows.path.tolist() == [f'train/<{k}>.png' for k in i]
    assert rows.patient.tolist() == [f'train{k//2}' for k in i] and 'age' not in rows
    page = str(run_html(read_run(folder), plots={}))
    assert 'train/&lt;' in page and 'train/<' not in page and '1 pair of images' in page

def test_splits_and_duplicates_lie_beside_a_run(own):
    data, result, folder = own
    t = pd.read_csv(folder/'splits.csv')
    assert t.split.value_counts().to_dict() == dict(train=24, val=8, test=8) and [*t] == [
        'path', 'label', 'patient', 'split']
    assert {(folder/p).resolve().parent.parent for p in t.path} == {(folder.parent/'images').resolve()}
    pairs = pd.read_csv(folder/'duplicates.csv')
    assert pairs[['path','other_path','equal']].values.tolist() == [['train/<4>.png', 'test/<5>.png', True]]
    assert '61' not in ''.join((folder/f).read_text() for f in ('splits.csv', 'duplicates.csv'))

def test_the_callback_names_its_sources(own):
    data, result, folder = own
    t = result.learners['tsynd'].tsynd.provenance
    assert t.path.tolist() == [f'train/<{k}>.png' for k in t.source_index] and t.columns[0] == 'source_index'

@pytest.mark.parametrize('column', ['path', 'patient'])
def test_a_path_of_hostile_length_is_refused(own, tmp_path, column):
    folder = shutil.copytree(own[2], tmp_path/'run')
    t = pd.read_csv(folder/'provenance.csv', dtype=str)
    t.assign(**{column: 'x'*2001}).to_csv(folder/'provenance.csv', index=False)
    with refused(column, 'provenance.csv'): read_run(folder)

def test_origins_are_looked_up_by_position_in_the_original_split():
    s = with_table().select([7,2,5])
    assert s.origins(torch.tensor([5,5,7])).values.tolist() == [['5.png',1],['5.png',1],['7.png',2]]
    assert s.origins([2,-1]).isna().values.tolist() == [[False,False],[True,True]]
    assert replace(s, table=None).origins([2,5]).shape == (2,0)
