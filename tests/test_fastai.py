"""fastai around a training: predictions leave it alone, its tools and its loaders work with ours."""
import matplotlib; matplotlib.use('Agg')
import numpy as np, pandas as pd, pytest, torch
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders, Datasets
from fastai.data.load import DataLoader, SkipItemException
from fastai.data.transforms import Categorize, IntToFloatTensor, Normalize, ToTensor, parent_label
from fastai.interpret import ClassificationInterpretation, Interpretation
from fastai.learner import Learner, load_learner
from fastai.losses import CrossEntropyLossFlat
from fastai.vision import learner as vision_learner
from fastai.vision.augment import RandomErasing, Resize, aug_transforms
from fastai.vision.core import PILImageBW
from fastai.vision.data import ImageDataLoaders
from hypothesis import given, settings, strategies as st
from PIL import Image
from refused import refused
from torch import nn

from tsynd.core import InputError, seeded
from tsynd.data import ImageData, ImageDL, Split, as_image_data, image_data, image_dls, phantom, sources
from tsynd.experiments import BatchOrder, Witness
from tsynd.robustness import AdversarialTraining
from tsynd.models import (
    Autoencoder, TrainingCallback, autoencoder_learner, classifier_learner, train_autoencoder,
    train_classifier)
from tsynd.targeting import BF16, LatentBank, TSynD


def tiny(C=2, ch=1):
    with seeded(0): return nn.Sequential(nn.Conv2d(ch, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Dropout(.5),
                                         nn.Linear(100, C))

def quiet(learn, f, *args, **kwargs):
    with learn.no_bar(), learn.no_logging(): return f(*args, **kwargs)

def tsynd(ae, **kwargs):
    return TSynD(ae, **dict(dict(T=2, share=1., every=1, warmup=0, gate=0.), **kwargs))

@pytest.fixture(scope='module')
def data(): return phantom(24, 10, 6, size=12)

@pytest.fixture(scope='module')
def ae():
    with seeded(0): return Autoencoder(width=4).eval()

@pytest.fixture(scope='module')
def folder(tmp_path_factory, data):
    "The images of `data` as files; also a table of them"
    root,rows = tmp_path_factory.mktemp('files'),[]
    for part,split in (('train', data.train), ('valid', data.val)):
        for i,(x,y) in enumerate(zip(split.x, split.y)):
            f = root/part/f'c{int(y)}'/f'c{int(y)}_{i:03d}.png'
            f.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(x[0].numpy()).save(f)
            rows.append((f.relative_to(root).as_posix(), f'c{int(y)}', part == 'valid'))
    return root, pd.DataFrame(rows, columns=['name','label','held'])


# What belongs to a training survives inference

INFERENCE = {
    'validate': lambda l: l.validate(), 'on the training images': lambda l: l.validate(ds_idx=0),
    'get_preds': lambda l: l.get_preds(), 'of a loader': lambda l: l.get_preds(dl=l.dls.train),
    'predict': lambda l: l.predict(l.dls.valid.dataset.x[0]), 'show_results': lambda l: l.show_results(),
    'summary': lambda l: l.summary(), 'top losses': lambda l: Interpretation.from_learner(l).top_losses(2),
    'tta': lambda l: pytest.raises(InputError, l.tta)}

def trained(data, ae, between=lambda learn: None):
    "Two fits with something between them; whoever keeps anything is there"
    with seeded(3):
        cbs = [tsynd(ae), AdversarialTraining(steps=1), BatchOrder(), Witness(), BF16()]
        learn = classifier_learner(data, tiny(), bs=12, cbs=cbs)
        quiet(learn, learn.fit, 1, 1e-2)
        before = found(learn)
        quiet(learn, between, learn)
        after = found(learn)
    with seeded(4):
        quiet(learn, learn.fit, 1, 1e-2)
    return before, after, (found(learn), [p.detach().clone() for p in learn.model.parameters()])

def found(learn):
    t = learn.tsynd
    return (t.count, t.n_images, t.history, t.provenance.to_numpy().tolist(), t.images.x.sum().item(),
            learn.adversarial_training.n_images, learn.batch_order.checksum, learn.witness.checksum,
            learn.dls.train.epoch, learn.dls.train.epoch_idxs.tolist(), vars(learn.model).get('forward'))

@pytest.fixture(scope='module')
def plain(data, ae): return trained(data, ae)[2]

@pytest.mark.parametrize('name', INFERENCE)
def test_what_a_training_found_survives_inference(data, ae, plain, name):
    before, after, later = trained(data, ae, INFERENCE[name])
    assert after == before and before[0] == 2
    assert later[0] == plain[0] and all(map(torch.equal, later[1], plain[1]))

def test_a_search_for_a_learning_rate_leaves_what_was_found(data, ae):
    def look(learn): assert learn.lr_find(num_it=4, show_plot=False).valley > 0
    before, after, later = trained(data, ae, look)
    assert after[:8] == before[:8] and after[-1] is None            # the loader has dealt batches meanwhile
    assert later[0][0] == 2 and len(later[0][2]) == len(before[2])  # and the next training begins anew

def test_inference_within_a_fit_does_not_begin_or_end_it(data, ae):
    "As a callback does it that measures on other images before each validation"
    class Measures(Callback):
        def __init__(self, on): self.on = on
        def after_train(self):
            if self.on: self.learn.get_preds(); self.learn.validate(ds_idx=0)
    class Wrapped(Callback):
        "Is the model in bfloat16 in each training batch?"
        run_valid, seen = False, ()
        def after_pred(self): self.seen += ('forward' in vars(self.model),)
    def run(on):
        learn = classifier_learner(data, tiny(), bs=8, cbs=[BatchOrder(), BF16(), tsynd(ae), Wrapped(),
                                                            Measures(on)])
        with seeded(1): quiet(learn, learn.fit, 3)
        return learn, (learn.tsynd.count, learn.batch_order.checksum, learn.wrapped.seen,
                       learn.tsynd.provenance.source_index.tolist())
    (_,with_),(learn,without) = run(True), run(False)
    assert with_ == without and without[0] == 9 and without[2] == (True,)*9
    assert not vars(learn.model).get('forward')

def test_a_callback_of_trainings_hears_of_nothing_else(data):
    class All(TrainingCallback):
        heard = ()
        def __call__(self, name): return super().__call__(name)
        def before_fit(self): self.heard += ('before_fit',)
        def before_epoch(self): self.heard += ('before_epoch',)
        def before_train(self): self.heard += ('before_train',)
        def before_batch(self): self.heard += ('before_batch',)
        def before_validate(self): self.heard += ('before_validate',)
        def after_fit(self): self.heard += ('after_fit',)
    learn = classifier_learner(data, tiny(), bs=24, cbs=All())
    quiet(learn, learn.validate); quiet(learn, learn.get_preds); quiet(learn, learn.fit, 0)
    assert learn.all.heard == ()
    quiet(learn, learn.fit, 1); quiet(learn, learn.validate)
    epoch = 'before_epoch','before_train','before_batch','before_validate'
    assert learn.all.heard == ('before_fit', *epoch, 'after_fit')
    quiet(learn, learn.fit, 3, start_epoch=1)
    assert learn.all.heard[6:] == ('before_fit', *epoch, *epoch, 'after_fit')

@given(st.lists(st.sampled_from(['epoch','look','predict','order']), max_size=8))
@settings(max_examples=30, deadline=None)
def test_only_trainings_move_the_order_on(events):
    dl,quiet = (ImageDL(SPLIT, bs=4, shuffle=True, seed=5) for _ in range(2))
    for e in events:
        if e == 'epoch': assert read(dl) == read(quiet)
        elif e == 'look': dl.one_batch()
        elif e == 'order': dl.get_idxs()
        else:
            with torch.no_grad(): read(dl)
    assert read(dl) == read(quiet)

SPLIT = Split(torch.arange(10, dtype=torch.uint8).view(10,1,1,1), torch.arange(10)%2, torch.arange(10))

def read(dl): return [b[0].flatten().tolist() for b in dl]


# fastai's tools on our own learners

@pytest.fixture(scope='module')
def learn(data):
    return train_classifier(data, tiny(), epochs=2, bs=8)

def test_predict_gives_name_number_and_probabilities(learn, data):
    want = quiet(learn, learn.get_preds)[0]
    for i in range(3):
        x = data.val.x[i]
        for item in (x, x/255, Image.fromarray(x[0].numpy()), x[0].numpy()):
            name,number,p = quiet(learn, learn.predict, item)
            torch.testing.assert_close(p, want[i])
            assert name == data.classes[number] and int(number) == int(want[i].argmax())

@pytest.mark.parametrize('item', ['a.png', torch.zeros(1, 8, 12), torch.zeros(3, 12, 12),
                                  np.zeros((4, 4)), None],
                         ids=['path','size','colour','array','none'])
def test_predict_says_which_images_it_takes(learn, item):
    with refused('image', '(1, 12, 12)'): quiet(learn, learn.predict, item)

def test_predict_refuses_floats_beyond_the_range(learn, data):
    with refused('images'): quiet(learn, learn.predict, data.val.x[0].float())

def test_interpretation_finds_the_images_of_the_highest_losses(learn, data, monkeypatch):
    interp = quiet(learn, Interpretation.from_learner, learn)
    p,y = quiet(learn, learn.get_preds)
    losses = -p[range(len(y)),y].log()
    values,where,items = interp.top_losses(3, items=True)
    torch.testing.assert_close(values, losses.topk(3).values)
    assert [i.index.item() for i in items] == data.val.index[where].tolist()
    x,preds,targets,decoded,_ = quiet(learn, lambda: interp[where])
    assert torch.equal(x, data.val.batch(where)[0]) and torch.equal(targets, data.val.y[where])
    axs = []
    monkeypatch.setattr(vision_learner, 'get_grid', lambda n, **kw: axs.extend(grid(n)) or axs)
    quiet(learn, interp.plot_top_losses, 3)
    want = [f'{data.classes[int(p[i].argmax())]}/{data.classes[int(y[i])]}' for i in where]
    assert [a.get_title().split(' / ')[0] for a in axs] == want

def grid(n):
    import matplotlib.pyplot as plt
    return np.ravel(plt.subplots(1, n)[1])

def test_the_confusion_matrix_is_that_of_the_predictions(learn, data):
    interp = quiet(learn, ClassificationInterpretation.from_learner, learn)
    p,y = quiet(learn, learn.get_preds)
    want = np.zeros((2, 2), int)
    np.add.at(want, (y.numpy(), p.argmax(1).numpy()), 1)
    assert (quiet(learn, interp.confusion_matrix) == want).all() and list(interp.vocab) == data.classes

def test_results_are_shown_with_both_names(learn, data, monkeypatch):
    seen = []
    monkeypatch.setattr('tsynd.data.loaders.show_images',
                        lambda x, titles, **kw: seen.extend(zip(x, titles)))
    quiet(learn, learn.show_results, max_n=4)
    with torch.no_grad(): found = learn.model(torch.stack([x for x,_ in seen])).argmax(1)
    assert len(seen) == 4
    for (x,title),k in zip(seen, found):
        true = next(int(y) for o,y in zip(data.val.x, data.val.y) if torch.equal((x*255).round().byte(), o))
        assert title.split('\n') == [data.short[true], data.short[k]]

def test_an_exported_learner_predicts(learn, data, tmp_path):
    learn.path,want = tmp_path,quiet(learn, learn.get_preds)[0]
    learn.export('it.pkl')
    again = load_learner(tmp_path/'it.pkl')
    name,number,p = quiet(again, again.predict, data.val.x[1])
    torch.testing.assert_close(p, want[1]); assert name == data.classes[number]

def test_several_labels_have_several_names(data):
    y = torch.stack([data.train.y, 1-data.train.y, data.train.y], 1).float()
    parts = [Split(data.train.x, y, data.train.index)]*3
    many = ImageData('many', 'multi-label, binary-class', ['a, or so','b','c'], *parts)
    learn = train_classifier(many, tiny(3), epochs=1, bs=8)
    names,found,p = quiet(learn, learn.predict, many.val.x[0])
    assert list(names) == [n for n,q in zip(many.classes, p) if q > .5]
    assert found.tolist() == (p > .5).tolist()
    quiet(learn, learn.show_results)
    assert learn.dls.valid.decode_batch(learn.dls.valid.one_batch())[0][1] == [
        n for n,v in zip(many.classes, y[0]) if v]

def test_tta_says_that_nothing_varies(learn):
    with refused('tta', 'get_preds'): quiet(learn, learn.tta)


# Items that are skipped

class Skips:
    "Items of their own number; some are skipped, in some epochs only"
    def __init__(self, n, bad): self.n,self.bad = n,bad
    def __len__(self): return self.n
    def __getitem__(self, i):
        if i in self.bad: raise SkipItemException
        return torch.full((1,), i)

def named(dl):
    "What each batch holds, and what the sources say"
    noted,rows = sources(dl),[]
    noted.start()
    for i,x in enumerate(dl):
        if i == 0: noted.begin()
        index = noted.index(i)
        rows.append((x.flatten().tolist(), None if index is None else index.tolist()))
    noted.close()
    return rows

@given(st.integers(1, 20), st.integers(1, 7), st.sets(st.integers(0, 19)), st.booleans(), st.booleans())
@settings(max_examples=60, deadline=None)
def test_every_batch_is_named_whatever_is_skipped(n, bs, bad, shuffle, drop_last):
    dl = DataLoader(Skips(n, bad), bs=bs, shuffle=shuffle, drop_last=drop_last)
    plain = DataLoader(Skips(n, bad), bs=bs, shuffle=shuffle, drop_last=drop_last)
    dl.rng.seed(1); plain.rng.seed(1)
    rows = named(dl)
    assert [x for x,_ in rows] == [x.flatten().tolist() for x in plain]     # nothing else is changed
    assert all(x == index for x,index in rows)

def test_an_item_that_is_none_is_skipped_too():
    dl = DataLoader(list(range(9)), bs=2,
                    after_item=lambda i: None if i in (1, 4) else torch.full((1,), i))
    assert named(dl) == [([0,2],)*2, ([3,5],)*2, ([6,7],)*2, ([8],)*2]

def test_a_look_at_another_batch_in_between_does_not_matter():
    dl,noted = DataLoader(Skips(12, {2,7}), bs=3, shuffle=True),None
    noted = sources(dl)
    for i,x in enumerate(dl):
        if i == 0: noted.begin()
        dl.one_batch()
        assert noted.index(i).tolist() == x.flatten().tolist()

@pytest.mark.parametrize('bad', [(), (3,)])
def test_workers_name_all_or_nothing(bad):
    rows = named(DataLoader(Skips(20, bad), bs=4, num_workers=2))
    assert len(rows) == 5 and all(index is None if bad else index == x for x,index in rows[-3:])
    assert all(index is None or index == x for x,index in rows)

def test_a_file_that_cannot_be_read_takes_no_name_from_the_others(folder, ae):
    root,_ = folder
    files = sorted((root/'train').rglob('*.png'))
    def open_(f):
        if f == files[3]: raise SkipItemException
        return PILImageBW.create(f)
    dss = Datasets(files, [[open_], [parent_label, Categorize()]], splits=[range(24), range(4)])
    dls = dss.dataloaders(bs=8, num_workers=0, device='cpu', after_item=[ToTensor()],
                          after_batch=[IntToFloatTensor()])
    learn = Learner(dls, tiny(), loss_func=CrossEntropyLossFlat(), cbs=tsynd(ae))
    quiet(learn, learn.fit, 2)
    t = learn.tsynd
    assert len(t.last_epoch) == 16 and t.provenance.source_index.tolist() == t.last_epoch.index.tolist()
    for x,i in zip(t.last_epoch.source, t.last_epoch.index):
        assert np.array_equal((x[0]*255).round().byte().numpy(), np.array(Image.open(files[i])))


# An ImageData from DataLoaders

def files(root): return sorted(root.rglob('*.png'))

def from_folder(root, table, **kw):
    return ImageDataLoaders.from_folder(root, train='train', valid='valid', **kw)
def from_df(root, table, **kw):
    return ImageDataLoaders.from_df(table, root, fn_col='name', label_col='label', valid_col='held', **kw)
def from_name_func(root, table, **kw):
    return ImageDataLoaders.from_name_func(root, files(root), lambda f: str(f)[:2], seed=1, **kw)
def from_name_re(root, table, **kw):
    return ImageDataLoaders.from_name_re(root, files(root), r'(c\d)_\d+.png', seed=1, **kw)
def from_lists(root, table, **kw):
    names = [root/n for n in table.name]
    return ImageDataLoaders.from_lists(root, names, list(table.label), seed=1, **kw)
def from_path_func(root, table, **kw):
    return ImageDataLoaders.from_path_func(root, files(root), lambda f: f.parent.name, seed=1, **kw)

def file_of(root, dl, i):
    "Whatever the items are"
    item = dl.items.iloc[i] if hasattr(dl.items, 'iloc') else dl.items[i]
    return root/(item['name'] if hasattr(item, 'keys') else item[0] if isinstance(item, tuple) else item)

@pytest.mark.parametrize('changed', [False, True])
@pytest.mark.parametrize('make', [from_folder, from_df, from_name_func, from_name_re, from_lists,
                                  from_path_func],
                         ids=lambda f: f.__name__)
def test_image_data_reads_what_fastai_serves(folder, make, changed):
    "each image once, as it is in its file: not augmented, not normalised, none of them twice"
    root,table = folder
    tfms = [*aug_transforms(), Normalize.from_stats([.4978], [.2479], cuda=False), RandomErasing(p=1.)]
    with seeded(0):
        dls = make(root, table, bs=7, num_workers=0, device='cpu', img_cls=PILImageBW,
                   item_tfms=[Resize(12, 'squash')] if changed else None,
                   batch_tfms=tfms if changed else None)
        mine = image_data(dls)
    assert mine.classes == ['c0','c1'] and mine.task.name == 'binary-class' and len(mine.test) == 0
    assert len(mine.train)+len(mine.val) == 34
    for part,dl in ((mine.train, dls.train), (mine.val, dls.valid)):
        assert part.index.tolist() == list(range(len(dl.dataset)))
        for x,y,i in zip(part.x, part.y, part.index.tolist()):
            f = file_of(root, dl, i)
            assert np.array_equal(x[0].numpy(), np.array(Image.open(f))) and mine.classes[y] == f.parent.name
    x,_ = dls.train.one_batch()                                             # still augmented
    if changed: assert not any((x[0].as_subclass(torch.Tensor)*.2479+.4978-o/255).abs().max() < .01
                               for o in mine.train.x)

def test_test_images_are_those_that_are_given(folder, data):
    root,table = folder
    dls = from_folder(root, table, bs=8, num_workers=0, device='cpu', img_cls=PILImageBW)
    files = dls.valid.items[2:6]
    want = torch.stack([torch.from_numpy(np.array(Image.open(f))) for f in files])[:,None]
    for test in (list(files), Split(want, torch.zeros(4).long(), torch.arange(4))):
        mine = image_data(dls, test=test)
        assert torch.equal(mine.test.x, want) and len(mine.val) == 10
    three = DataLoaders(dls.train, dls.valid, dls.test_dl(list(files), with_labels=True), device='cpu')
    assert torch.equal(image_data(three).test.x, want)
    assert image_data(three, test=dls.valid.items[:1]).test.x.shape == (1,1,12,12)

@pytest.mark.parametrize('kind', ['pairs','torch','ours','bytes'])
def test_image_data_of_other_loaders(data, kind):
    x,y = data.train.x[:10],data.train.y[:10]
    if kind == 'ours':
        again = image_data(image_dls(data))
        assert again.train is data.train and again.val is data.val and again.classes == data.classes
        return
    items = list(zip(x if kind == 'bytes' else x/255, y))
    make = torch.utils.data.DataLoader if kind == 'torch' else DataLoader
    mine = image_data(DataLoaders(make(items, 4, shuffle=True), make(items[:3], 4)))
    assert torch.equal(mine.train.x, x) and torch.equal(mine.train.y, y) and len(mine.val) == 3
    assert mine.classes == ['0','1']

def test_an_item_that_is_skipped_keeps_its_place_free(data):
    items = list(zip(data.train.x/255, data.train.y))
    def item(i):
        if i in (2, 5): raise SkipItemException
        return items[i]
    mine = image_data(DataLoaders(*[DataLoader(items, bs=4, create_item=item)]*2))
    assert mine.train.index.tolist() == [i for i in range(24) if i not in (2, 5)]
    assert torch.equal(mine.train.x, data.train.x[mine.train.index])

@pytest.mark.parametrize('items,field', [([(torch.full((1,8,8), 3.), 0)]*4, 'images'),
                                         ([(torch.zeros(1,8,8), .5)]*4, 'mine: labels'),
                                         ([(torch.zeros(1,8,8),)*3]*4, 'batches'),
                                         ([], 'training loader')], ids=['range','numbers','three','none'])
def test_what_cannot_be_read_is_said(items, field):
    dl = DataLoader(items, bs=2)
    with refused(field): image_data(DataLoaders(dl, dl))

def test_an_autoencoder_trains_on_dataloaders_as_on_their_images(folder):
    root,table = folder
    dls = from_folder(root, table, bs=8, num_workers=0, device='cpu', img_cls=PILImageBW,
                      batch_tfms=Normalize.from_stats([.5], [.2], cuda=False))
    one,other = (train_autoencoder(d, steps=3, bs=8, width=4) for d in (dls, image_data(dls)))
    assert all(map(torch.equal, one.parameters(), other.parameters()))
    assert len(autoencoder_learner(dls, one, 3).dls.valid.dataset) == 10

@pytest.mark.parametrize('train', [train_autoencoder, train_classifier, as_image_data])
def test_data_of_another_kind_is_refused_in_one_sentence(train, data):
    with refused('data', 'ImageData'): train(data.train)
    with refused('data', 'ImageData'): train([1])

def test_a_classifier_on_dataloaders_is_told_where_to_go(data):
    for f in (train_classifier, lambda d: classifier_learner(d, tiny())):
        with refused('data', 'image_data', found='DataLoaders'): f(image_dls(data))


# Memory

def latents(bank): return 0 if bank.z is None else bank.z.nbytes+bank.z0.nbytes+bank.mark.nbytes

@pytest.mark.parametrize('mb', [0, .002, .01, .02, 1])
def test_a_bank_keeps_to_its_size_and_what_is_in_it_stays(ae, mb):
    x = torch.rand(40, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    i,bank = torch.arange(40),LatentBank(mb=mb)
    with torch.no_grad(): z = ae.encode(x)
    each = 4*(2*z[0].numel()+4)
    fit = min(40, int(1e6*mb/each))
    for epoch in range(3):
        for k in range(0, 40, 8):
            z0,start = bank.recall(ae, x[k:k+8], i[k:k+8])
            torch.testing.assert_close(z0, z[k:k+8])
            rows = i[k:k+8] < fit
            torch.testing.assert_close(start[~rows], z[k:k+8][~rows])
            if epoch: torch.testing.assert_close(start[rows], z[k:k+8][rows]+epoch)
            bank.store(i[k:k+8], z[k:k+8]+epoch+1)
            assert latents(bank) <= 1e6*mb + each                              # and a row that stays empty
    assert sorted(bank.rows) == list(range(fit)) and bank.encoded == 40+2*(40-fit)

@pytest.mark.parametrize('p', [1., .5])
def test_a_bank_gives_up_where_every_image_is_new_each_time(ae, p):
    g = torch.Generator().manual_seed(0)
    x,i,bank = torch.rand(40, 1, 12, 12, generator=g),torch.arange(40),LatentBank()
    for _ in range(4):
        new = torch.rand(40, 1, 1, 1, generator=g) < p
        seen = torch.where(new, torch.rand(40, 1, 12, 12, generator=g), x)
        z0,start = bank.recall(ae, seen, i)
        torch.testing.assert_close(z0, ae.encode(seen))
        if p == 1: assert torch.equal(z0, start)
        bank.store(i, z0+1)
    assert (bank.encoded == 160 and not bank.rows and latents(bank) < 1e4 if p == 1 else
            bank.encoded < 160 and len(bank.rows) == 40)

def test_the_bank_is_empty_after_the_training(data, ae):
    class During(Callback):
        def after_epoch(self):
            bank = self.learn.tsynd.bank
            self.rows,self.bytes = len(bank.rows),latents(bank)
    learn = classifier_learner(data, tiny(), bs=8, balanced=False, cbs=[tsynd(ae), During()])
    quiet(learn, learn.fit, 2)
    bank = learn.tsynd.bank
    assert learn.during.rows == 24 and learn.during.bytes > 1e4 and latents(bank) == 0 and not bank.rows
    assert bank.encoded == 24

def test_a_small_bank_changes_the_starts_only(data, ae):
    def run(**kwargs):
        with seeded(2):
            learn = classifier_learner(data, tiny(), bs=8, cbs=tsynd(ae, weight=0., **kwargs))
            quiet(learn, learn.fit, 2, 1e-2)
        return learn.tsynd
    none,cold = run(bank_mb=0),run(warm=False)
    assert torch.equal(none.images.x, cold.images.x) and not torch.equal(none.images.x, run().images.x)
    assert none.bank.encoded == 48 and cold.bank.encoded < 48

def kept(data, ae, **kwargs):
    with seeded(2):
        learn = classifier_learner(data, tiny(), bs=8, cbs=tsynd(ae, **kwargs))
        quiet(learn, learn.fit, 1, 1e-2)
    return learn.tsynd, [p.detach() for p in learn.model.parameters()]

@pytest.fixture(scope='module')
def unbounded(data, ae): return kept(data, ae)

@pytest.mark.parametrize('mb', [0, .004, .02, 1])
def test_pictures_are_bounded_and_provenance_is_of_all(data, ae, unbounded, mb):
    (t,weights),(full,same) = kept(data, ae, keep_mb=mb),unbounded
    each = full.last_epoch.megabytes/24
    fit = min(24, sum(min(8, int((mb-k*each)/each+1e-9)) for k in (0, 8, 16) if mb > k*each))
    assert t.provenance.equals(full.provenance) and len(t.provenance) == 24
    assert all(map(torch.equal, weights, same))
    if fit:
        assert len(t.last_epoch) == fit and t.last_epoch.megabytes <= mb+1e-6
        assert torch.equal(t.last_epoch.x, full.last_epoch.x[:fit])
        assert t.last_epoch is t.last_epoch                                    # no copy for each look
    else:
        for f in (lambda: t.last_epoch, lambda: t.images, t.show):
            with refused('keep_mb'): f()

@pytest.mark.parametrize('name', ['keep_mb', 'bank_mb'])
def test_impossible_bounds_are_refused(ae, name):
    for value in (-1, float('inf'), '1 GB'):
        with refused(name, found=value): TSynD(ae, **{name: value})
