"""Images of one's own: each trap of real files is made here, and read as meant, or refused in a sentence."""
import io, json, os, pickle, threading, warnings
from contextlib import redirect_stdout
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np, pandas as pd, pytest, torch
from cheap import cheap
from PIL import Image
from refused import refused
from tifffile import imwrite      # comes with scikit-image

from tsynd.cli import default_out, main
from tsynd.core import InputError
from tsynd.data import (
    acquisition, data_name, decide, find_images, is_dicom, load_data, pixel_kind, Preparation, prepare,
    read_dicom, read_picture, read_pixels, subset, to_numpy)
from tsynd.experiments import (
    cell_data, cells, check_config, check_machine, data_checksum, prepare_data, RunConfig, source_data,
    StudyConfig)
from tsynd.reports import python_lines

G = np.random.default_rng(0)
GREY = G.integers(0, 256, (12, 16), dtype=np.uint8)
COLOUR = G.integers(0, 256, (12, 16, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp('cache')
    monkeypatch.setenv('TSYND_CACHE', str(folder))
    return folder

def put(path, pixels=GREY, **how): # a picture
    path.parent.mkdir(parents=True, exist_ok=True)
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(path, **how)
    return path

def drawn(folder, n=24, size=16, classes=('a', 'b'), suffix='.png'): # class folders; brighter where b
    for i in range(n):
        x = G.integers(0, 100, (size, size), dtype=np.uint8) + 100*(i % len(classes) == 1)
        put(folder/classes[i % len(classes)]/f'x{i}{suffix}', x.astype(np.uint8))
    return folder

def table_of(folder, rows, name='table.csv', **how):
    pd.DataFrame(rows).to_csv(folder/name, index=False, **how)
    return folder/name

def said(f, *args, **kwargs): # (result, warnings)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        result = f(*args, **kwargs)
    return result, [str(w.message) for w in caught]


# Pictures

@pytest.mark.parametrize('suffix', ['png', 'tif'])
def test_bits_are_kept(tmp_path, suffix):
    deep = G.integers(0, 2**16, (12, 16), dtype=np.uint16)
    for a in (GREY, deep, COLOUR):
        read = read_picture(put(tmp_path/f'x.{suffix}', a))
        assert read.dtype == a.dtype and np.array_equal(read, a)

def test_a_jpeg_is_read_and_grey_in_fact_is_grey(tmp_path):
    smooth = np.tile(np.arange(0, 256, 8, dtype=np.uint8), (32, 1))
    grey, rgb = put(tmp_path/'g.jpg', smooth), put(tmp_path/'c.jpg', Image.fromarray(smooth).convert('RGB'))
    assert read_picture(grey).ndim == 2 and read_picture(rgb).ndim == 3
    assert abs(read_picture(grey).astype(int)-smooth).max() < 12
    assert decide([grey, rgb], 1).channels == 1
    assert decide([grey, put(tmp_path/'real.jpg', COLOUR)], 1).channels == 3

@pytest.mark.parametrize('mode', ['P', 'RGBA', 'LA', 'RGB', '1', 'CMYK'])
def test_modes_become_grey_or_colour(tmp_path, mode):
    image = Image.fromarray(np.where(GREY > 127, 255, 0).astype(np.uint8)).convert(mode)
    a = read_picture(put(tmp_path/('x.jpg' if mode == 'CMYK' else 'x.png'), image, **(
        dict(quality=100, subsampling=0) if mode == 'CMYK' else {})))
    a = a if a.ndim == 2 else a.mean(-1)
    assert abs(a - np.where(GREY > 127, 255, 0)).max() < (40 if mode == 'CMYK' else 1)

def test_a_palette_is_written_out_and_what_is_transparent_is_black(tmp_path):
    palette = Image.fromarray(COLOUR).quantize(200)
    assert np.array_equal(read_picture(put(tmp_path/'p.png', palette)), np.asarray(palette.convert('RGB')))
    alpha = np.dstack([COLOUR, np.where(GREY > 127, 255, 0).astype(np.uint8)])
    a = read_picture(put(tmp_path/'a.png', alpha))
    assert np.array_equal(a, COLOUR*(GREY > 127)[...,None])
    clear = put(tmp_path/'t.png', palette, transparency=0)
    assert (read_picture(clear)[np.asarray(palette) == 0] == 0).all()

@pytest.mark.parametrize('orientation, turn', [
    (3, lambda a: np.rot90(a, 2)), (6, lambda a: np.rot90(a, -1)), (8, np.rot90), (2, np.fliplr)])
def test_a_picture_is_turned_upright(tmp_path, orientation, turn):
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(read_picture(put(tmp_path/'x.png', GREY, exif=exif)), turn(GREY))
    deep = GREY.astype(np.uint16)*200
    assert np.array_equal(read_picture(put(tmp_path/'x.tif', deep, exif=exif)), turn(deep))

@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_white_may_be_zero(tmp_path, dtype):
    imwrite(tmp_path/'x.tif', GREY.astype(dtype), photometric='miniswhite')
    assert np.array_equal(read_picture(tmp_path/'x.tif'), np.iinfo(dtype).max-GREY.astype(dtype))

def test_numbers_below_zero_are_floats(tmp_path):
    a = np.array([[-5., 2.5], [1000., 0.]], dtype=np.float32)
    assert np.array_equal(read_picture(put(tmp_path/'x.tif', a)), a)
    with refused(tmp_path/'n.tif', 'NaN'): read_picture(put(tmp_path/'n.tif', a*np.nan))

def test_pages_need_a_choice(tmp_path):
    pages = [Image.fromarray(GREY), Image.fromarray(255-GREY)]
    path = put(tmp_path/'x.tif', pages[0], save_all=True, append_images=pages[1:])
    with refused('frame', 'holds 2 images', '0 to 1'): read_picture(path)
    assert np.array_equal(read_picture(path, frame=1), 255-GREY)
    with refused('frame', found=2): read_picture(path, frame=2)
    with refused('frame'): read_picture(path, frame=-1)
    one = put(tmp_path/'one.png')
    assert np.array_equal(read_picture(one, frame=0), GREY)
    with refused('frame'): read_picture(one, frame=1)

def broken(path, how):
    data = put(path).read_bytes()
    path.write_bytes(dict(cut=data[:-40], text=b'hello', empty=b'', eps=b'%!PS-Adobe-3.0 EPSF-3.0\n')[how])
    return path

@pytest.mark.parametrize('how', ['cut', 'text', 'empty', 'eps'])
def test_a_damaged_picture_is_named(tmp_path, how):
    path = broken(tmp_path/'x.png', how)
    with refused(path, 'cannot be read'): read_pixels(path)
    with refused(tmp_path/'none.png', 'No such file'): read_pixels(tmp_path/'none.png')


# DICOM

@pytest.fixture
def dicom():
    pydicom = pytest.importorskip('pydicom', reason="needs pydicom: pip install 'tsynd[dicom]'")
    from pydicom.data import get_testdata_file
    def get(name, path=None, **changes):
        "One of pydicom's own real files, or a copy of it with other values"
        file = Path(get_testdata_file(name, download=False))
        if path is None: return file
        ds = pydicom.dcmread(file)
        for k, v in changes.items():
            if v is None: delattr(ds, k)
            else: setattr(ds, k, v)
        ds.save_as(path)
        return path
    get.module = pydicom
    return get

def test_a_ct_is_in_hounsfield_units(dicom):
    stored = dicom.module.dcmread(dicom('CT_small.dcm'))
    assert np.array_equal(read_dicom(dicom('CT_small.dcm')),
                          stored.pixel_array*float(stored.RescaleSlope) + float(stored.RescaleIntercept))

@pytest.mark.parametrize('c', [40, 0])
@pytest.mark.parametrize('function', ['LINEAR', 'LINEAR_EXACT', 'SIGMOID'])
def test_a_window_is_that_of_the_standard(dicom, tmp_path, function, c):
    path = dicom('CT_small.dcm', tmp_path/'x.dcm', WindowCenter=c, WindowWidth=400, VOILUTFunction=function)
    x, w = read_dicom(dicom('CT_small.dcm')).astype(float), 400
    want = dict(LINEAR=((x-(c-.5))/(w-1)+.5).clip(0, 1), LINEAR_EXACT=((x-c)/w+.5).clip(0, 1),
                SIGMOID=1/(1+np.exp(-4*(x-c)/w)))[function]
    assert read_dicom(path).dtype == np.uint8 and abs(read_dicom(path) - 255*want).max() <= .51

def test_a_table_comes_before_a_window(dicom, tmp_path):
    Dataset, Sequence = dicom.module.Dataset, dicom.module.Sequence
    lut = Dataset()
    lut.LUTDescriptor, lut.LUTData = [4096, -1024, 16], [65535-16*i for i in range(4096)]     # falls
    path = tmp_path/'x.dcm'
    ds = dicom.module.dcmread(dicom('CT_small.dcm'))
    ds.VOILUTSequence, ds.WindowCenter, ds.WindowWidth = Sequence([lut]), 40, 400
    ds.VOILUTSequence[0]['LUTDescriptor'].VR = 'SS'
    ds.VOILUTSequence[0]['LUTData'].VR = 'US'
    ds.save_as(path)
    want = 255/65535*(65535-16*(read_dicom(dicom('CT_small.dcm'))+1024))
    assert abs(read_dicom(path)-want).max() <= .51

def test_monochrome1_is_inverted(dicom, tmp_path):
    for name in ('examples_overlay.dcm', 'CT_small.dcm', 'JPGExtended.dcm'):
        try: a = read_dicom(dicom(name)).astype(float)
        except InputError: continue                 # a plugin that is not there
        negative = dicom(name, tmp_path/'x.dcm', PhotometricInterpretation='MONOCHROME1')
        assert np.corrcoef(a.ravel(), read_dicom(negative).astype(float).ravel())[0,1] == pytest.approx(-1)

def test_colours_are_rgb(dicom):
    reference = read_dicom(dicom('SC_rgb_rle.dcm'))             # bars of pure colours
    assert np.array_equal(read_dicom(dicom('SC_rgb_rle_16bit.dcm')), reference)
    for name in ('SC_rgb_dcmtk_+eb+cy+np.dcm', 'SC_ybr_full_422_uncompressed.dcm', 'SC_rgb_jpeg_dcmtk.dcm'):
        assert abs(read_dicom(dicom(name)).astype(int)-reference).mean() < 6
    palette = dicom('examples_palette.dcm')
    assert read_dicom(palette).shape[-1] == 3 and read_dicom(palette).dtype == np.uint8

def test_frames_need_a_choice(dicom):
    film = dicom('SC_rgb_rle_2frame.dcm')
    with refused('frame', 'holds 2 images'): read_dicom(film)
    stored = dicom.module.dcmread(film).pixel_array
    assert all(np.array_equal(read_dicom(film, frame=i), stored[i]) for i in range(2))

def test_each_frame_may_have_a_window(dicom, tmp_path):
    Dataset, Sequence = dicom.module.Dataset, dicom.module.Sequence
    def group(center):
        window, frame = Dataset(), Dataset()
        window.WindowCenter, window.WindowWidth = center, 100000
        frame.FrameVOILUTSequence = Sequence([window])
        return frame
    ds = dicom.module.dcmread(dicom('rtdose.dcm'))
    ds.PerFrameFunctionalGroupsSequence = Sequence([group(800000 + 10000*i) for i in range(15)])
    ds.save_as(tmp_path/'x.dcm')
    for i in (0, 9):
        want = ((ds.pixel_array[i]-(800000+10000*i-.5))/99999+.5).clip(0, 1)*255
        assert abs(read_dicom(tmp_path/'x.dcm', frame=i)-want).max() <= .51

def test_a_missing_plugin_is_named(dicom, monkeypatch):
    from pydicom.pixels.decoders.base import Decoder
    monkeypatch.setattr(Decoder, 'is_available', property(lambda self: False))
    for name, package in (('MR_small_jp2klossless.dcm', 'pylibjpeg-openjpeg'),
                          ('JPEGLSNearLossless_08.dcm', 'pylibjpeg-libjpeg')):
        with refused(dicom(name), 'pip install', package): read_dicom(dicom(name))

def test_without_pydicom_the_extra_is_named(tmp_path, monkeypatch):
    (tmp_path/'x.dcm').write_bytes(b'x')
    monkeypatch.setitem(__import__('sys').modules, 'pydicom', None)
    with refused(tmp_path/'x.dcm', "pip install 'tsynd[dicom]'"): read_pixels(tmp_path/'x.dcm')

@pytest.mark.parametrize('name', ['MR_truncated.dcm', 'rtplan.dcm', 'badVR.dcm', 'no_meta.dcm'])
def test_what_is_no_image_is_refused(dicom, name):
    with refused(dicom(name), 'cannot be read'): read_dicom(dicom(name))

def test_a_dicom_file_is_known_by_its_content(dicom, tmp_path):
    for name in ('1.2.840.113', 'IM0001'):
        (tmp_path/name).write_bytes(dicom('CT_small.dcm').read_bytes())
        assert is_dicom(tmp_path/name) and read_pixels(tmp_path/name).shape == (128, 128)
    (tmp_path/'notes').write_text('hello')
    assert not is_dicom(tmp_path/'notes')

def test_the_head_tells_what_the_pixels_are(dicom):
    for name in ('examples_overlay.dcm', 'CT_small.dcm', 'examples_palette.dcm', 'image_dfl.dcm',
                 'liver_1frame.dcm', 'MR_small.dcm', 'SC_rgb_rle.dcm', 'rtdose_1frame.dcm'):
        a = read_dicom(dicom(name))
        kind = 'colour' if a.ndim == 3 else 'grey' if a.dtype == np.uint8 else 'deep'
        assert pixel_kind(dicom(name)) == kind, name

def test_nothing_about_the_patient_is_copied(dicom, tmp_path):
    secret = 'Doe^Jane^7301'
    (tmp_path/'set').mkdir()
    for i in range(18):
        shift = (np.arange(16384, dtype=np.int16).reshape(128, 128) % (50+100*(i % 2)) + 7*i).tobytes()
        path = tmp_path/'set'/f'{i}.dcm'
        dicom('CT_small.dcm', path, PatientName=secret, PatientID=secret, ReferringPhysicianName=secret,
              StudyDescription=secret, PixelData=shift)
    table_of(tmp_path/'set', [dict(path=f'{i}.dcm', label='ab'[i % 2]) for i in range(18)])
    data, _ = said(load_data, tmp_path/'set'/'table.csv', size=12, acquisition='Manufacturer,KVP')
    assert {*data.train.table.Manufacturer} == {'GE MEDICAL SYSTEMS'} and {*data.train.table.KVP} == {'120'}
    assert secret not in data.train.table.to_csv() + json.dumps(asdict(data.prep)) + repr(data)
    kept = b''.join(f.read_bytes() for f in Path(os.environ['TSYND_CACHE']).iterdir())
    assert b'Doe' not in kept
    for name in ('PatientName', 'PatientID', 'PatientBirthDate', 'StudyDescription', 'AccessionNumber'):
        with refused(name): acquisition(tmp_path/'set'/'0.dcm', name)


# Folders

def test_thumbnails_and_hidden_files_are_left_out_and_told(tmp_path):
    drawn(tmp_path, 4)
    for name in ('a/.x0.png', 'a/thumb_x0.png', 'b/x1_thumbnail.png', 'thumbs/x.png', '.cache/x.png',
                 '__MACOSX/a/x0.png'): put(tmp_path/name)
    (tmp_path/'a'/'Thumbs.db').write_bytes(b'x')
    (tmp_path/'notes.txt').write_text('x')
    table, told = said(find_images, tmp_path)
    assert table.path.tolist() == ['a/x0.png', 'a/x2.png', 'b/x1.png', 'b/x3.png']
    assert table.label.tolist() == ['a', 'a', 'b', 'b']
    assert len(told) == 1 and all(w in told[0] for w in ('2 hidden', '2 thumbnails', '1 no images'))
    assert said(find_images, drawn(tmp_path/'clean', 4))[1] == []

@pytest.mark.parametrize('names', [('train', 'val', 'test'), ('training', 'validation', 'testing'),
                                   ('Train', 'valid', 'Test')])
def test_splits_above_the_classes(tmp_path, names):
    for k in names: drawn(tmp_path/k, 6)
    data = load_data(tmp_path, size=12)
    for k, s in zip(names, (data.train, data.val, data.test)):
        assert len(s) == 6 and all(p.startswith(f'{k}/') for p in s.table.path)
    assert data.classes == ['a', 'b']

def test_folders_that_make_no_sense_are_refused(tmp_path):
    drawn(tmp_path, 4)
    put(tmp_path/'loose.png')
    with refused(tmp_path, 'loose.png', 'class folders'): find_images(tmp_path)
    (tmp_path/'loose.png').unlink()
    drawn(tmp_path/'train', 4)
    with refused(tmp_path, 'train'): find_images(tmp_path)
    (tmp_path/'empty').mkdir()
    with refused(tmp_path/'empty', 'holds no image'): find_images(tmp_path/'empty')
    with refused(tmp_path/'train'/'a', 'no labels'): load_data(tmp_path/'train'/'a')
    with refused(tmp_path/'up', "'inner' only", 'one too high'):
        load_data(drawn(tmp_path/'up'/'inner', 4).parent)

def test_images_to_be_predicted_need_no_label(tmp_path):
    put(tmp_path/'x.png'), put(tmp_path/'y.png')
    for path, n in ((tmp_path, 2), (tmp_path/'x.png', 1)):
        table = find_images(path)
        assert len(table) == n and table.label.isna().all() and table.attrs['root'] == str(tmp_path)

def test_a_folder_that_holds_itself_ends(tmp_path):
    (drawn(tmp_path, 4)/'a'/'again').symlink_to(tmp_path)
    assert len(find_images(tmp_path)) == 4


# Tables

def listed(tmp_path, n=24, **columns):
    drawn(tmp_path, n)
    return [dict(path=f"{'ab'[i % 2]}/x{i}.png", label='ab'[i % 2]) | {k: v(i) for k, v in columns.items()}
            for i in range(n)]

@pytest.mark.parametrize('how', [
    dict(), dict(sep=';'), dict(sep='\t', name='table.tsv'), dict(encoding='utf-8-sig')], ids=str)
def test_tables_of_many_programs(tmp_path, how):
    names = 'Befund "x", groß', 'NA'
    rows = listed(tmp_path, 6, label=lambda i: names[i % 2], patient=lambda i: f'00{i}', age=lambda i: i)
    table = find_images(table_of(tmp_path, rows, **how))
    assert table.label.tolist() == [*names]*3
    assert table.patient.tolist() == [f'00{i}' for i in range(6)] and table.age.tolist() == [*range(6)]

def test_parquet(tmp_path):
    pytest.importorskip('pyarrow', reason='needs pyarrow')
    rows = listed(tmp_path, 6, label=lambda i: i % 2+1)
    pd.DataFrame(rows).to_parquet(tmp_path/'t.parquet')
    assert find_images(tmp_path/'t.parquet').label.tolist() == ['1', '2']*3

@pytest.mark.parametrize('names', [('0', '1'), ('1', '2'), ('1.0', '2.0'), ('True', 'False'), ('9', '10')])
def test_labels_that_are_numbers(tmp_path, names):
    rows = listed(tmp_path, label=lambda i: names[i % 2])
    data, _ = said(load_data, table_of(tmp_path, rows), size=12)
    plain = [{'True': '1', 'False': '0'}.get(n, n.split('.')[0]) for n in names]
    assert data.classes == sorted(plain, key=int)
    for s in (data.train, data.val, data.test):
        assert [data.classes[y] for y in s.y] == s.table.label.tolist()

def test_columns_by_option_and_the_rest_travels(tmp_path):
    rows = [dict(file=r['path'], dx=r['label'], pid=i//2, label='other', site='S')
            for i, r in enumerate(listed(tmp_path))]
    columns = dict(path_column='file', label_column='dx', patient_column='pid')
    data, told = said(load_data, table_of(tmp_path, rows), size=12, **columns)
    assert told == [] and data.classes == ['a', 'b']
    tables = [s.table for s in (data.train, data.val, data.test)]
    t = pd.concat(tables)
    assert {*t.site} == {'S'} and {*t.label_in_table} == {'other'}
    assert sorted(t.patient.astype(int)) == [i//2 for i in range(24)]
    assert sum(len({*s.patient}) for s in tables) == 12
    for name in ('label', 'path', 'patient'):
        with refused('nope', 'file, dx'):
            find_images(tmp_path/'table.csv', **columns | {f'{name}_column': 'nope'})
    with refused('path', 'file, dx'): find_images(tmp_path/'table.csv')

def test_a_patient_column_that_nobody_named_is_told(tmp_path):
    rows = listed(tmp_path, pid=lambda i: i//3)
    assert any('pid' in w for w in said(load_data, table_of(tmp_path, rows), size=12)[1])

def test_splits_of_the_table(tmp_path):
    rows = listed(tmp_path, split=lambda i: ('train', 'train', 'Validation', 'test')[i//2 % 4])
    data = load_data(table_of(tmp_path, rows), size=12)
    assert [len(s) for s in (data.train, data.val, data.test)] == [12, 6, 6]
    assert data.val.index.tolist() == [i for i in range(24) if i//2 % 4 == 2]
    table_of(tmp_path, [r | dict(split='later') for r in rows])
    with refused('split', 'later'): load_data(tmp_path/'table.csv', size=12)

def test_several_labels(tmp_path):
    rows = listed(tmp_path, n1=lambda i: i % 2, n2=lambda i: int(i % 3 == 0), findings=lambda i: '; '.join(
        [*(['n1'] if i % 2 else []), *(['n2'] if i % 3 == 0 else [])]))
    path = table_of(tmp_path, rows)
    marks, cells = (said(load_data, path, size=12, **k)[0] for k in (
        dict(label_columns='n1,n2'), dict(label_column='findings', separator=';')))
    for d in (marks, cells):
        assert d.classes == ['n1', 'n2'] and d.task.several
        for s in (d.train, d.val, d.test):
            assert s.y.tolist() == [[i % 2, int(i % 3 == 0)] for i in s.index.tolist()]
    with refused('label', "'a'", '0 or 1'): find_images(path, label_columns='n1,label')

def test_names_without_suffix_and_of_another_system(tmp_path):
    rows = listed(tmp_path, 6)
    def spoilt(r): return r | dict(path=r['path'].removesuffix('.png').replace('/', '\\'))
    path = table_of(tmp_path, map(spoilt, rows))
    assert find_images(path).path.tolist() == [r['path'] for r in rows]
    put(tmp_path/'a'/'x0.jpg')
    with refused('a\\x0', 'x0.jpg and x0.png'): find_images(path)

def test_missing_files_are_one_sentence(tmp_path):
    rows = listed(tmp_path, 6)
    for i in (1, 3): (tmp_path/rows[i]['path']).unlink()
    path = table_of(tmp_path, rows)
    with refused(path, '2 of the 6 images', '--skip-unreadable', found='b/x1.png'): find_images(path)
    table, told = said(find_images, path, skip_unreadable=True)
    assert len(table) == 4 and '2 of the 6' in told[0]
    (tmp_path/'elsewhere').mkdir()
    os.rename(path, tmp_path/'elsewhere'/'table.csv')
    moved = tmp_path/'elsewhere'/'table.csv'
    assert len(said(find_images, moved, root=tmp_path, skip_unreadable=True)[0]) == 4

@pytest.mark.parametrize('text, field', [
    ('', 'table.csv'), ('path,label\n', 'table.csv'), ('path,label\n,a\n', 'table.csv: row 1'),
    ('path,label\na/x0.png,a\na/x0.png,b\n', 'table.csv'), (b'path,label\n\xff\xfe,a\n', 'table.csv')])
def test_a_table_that_cannot_be_is_refused(tmp_path, text, field):
    drawn(tmp_path, 2)
    (tmp_path/'table.csv').write_bytes(text if isinstance(text, bytes) else text.encode())
    with refused(tmp_path/field): find_images(tmp_path/'table.csv')

def test_images_without_a_label_are_counted(tmp_path):
    rows = listed(tmp_path)
    for i in (3, 4): rows[i]['label'] = ''
    path = table_of(tmp_path, rows)
    with refused(path, 'no label for 2 of 24', rows[3]['path'], found=2): load_data(path, size=12)


# Preparing

def test_sizes_and_shapes():
    x = torch.arange(200.)[None].expand(100, -1).byte().numpy()                # a ramp, 100×200
    cut, padded = (Preparation(20, 1, how)(x)[0].float() for how in ('crop', 'pad'))
    assert (cut[10] - (50 + 5*(torch.arange(20)+.5) - .5)).abs().max() < 1.5
    assert padded[:5].max() == 0 and padded[15:].max() == 0
    assert (padded[10] - (10*(torch.arange(20)+.5) - .5)).abs().max() < 2.5
    checker = (np.indices((80, 80)).sum(0) % 2*255).astype(np.uint8)
    assert (Preparation(20)(checker).float()-127.5).abs().max() < 2            # antialiased
    for shape in ((1, 300), (300, 1), (5, 5)):
        for how in ('crop', 'pad'):
            assert Preparation(12, 3, how)(np.zeros(shape, np.uint8)).shape == (3, 12, 12)

def test_black_and_white_are_those_of_the_training_images(tmp_path):
    deep = [(G.random((20, 20))*1000 + 5000).astype(np.uint16) for _ in range(6)]
    deep[4:] = [a+30000 for a in deep[4:]]
    paths = [put(tmp_path/f'{i}.png', a) for i, a in enumerate(deep)]
    prep = decide(paths, 4)
    assert prep.lo == pytest.approx(5000, abs=15) and prep.hi == pytest.approx(6000, abs=15)
    exact = Preparation(20, 1, 'crop', 5000, 6000)(deep[0])[0].numpy()
    assert exact == pytest.approx((deep[0]-5000.)*.255, abs=.51)
    assert (prep(deep[5]) == 255).all()
    assert (decide([put(tmp_path/'g.png')], 1).lo, decide([tmp_path/'g.png'], 1).hi) == (0, 255)

def test_bytes_among_deep_images_stay_what_they_are():
    prep = Preparation(12, 1, 'crop', 100, 50000)
    assert torch.equal(prep(GREY[:12,:12])[0], torch.from_numpy(GREY[:12,:12]))

def test_a_set_with_one_image_in_colour_is_in_colour(tmp_path):
    for i in range(5): put(tmp_path/f'{i}.png', np.repeat(GREY[...,None], 3, 2))
    names = [f'{i}.png' for i in range(5)]
    assert prepare(tmp_path, names, 5)[0].shape == (5, 1, 28, 28)
    put(tmp_path/'3.png', COLOUR)
    x = prepare(tmp_path, names, 2)[0]
    assert x.shape == (5, 3, 28, 28) and torch.equal(x[0,0], x[0,2]) and not torch.equal(x[3,0], x[3,2])

def test_the_second_time_nothing_is_decoded(tmp_path, monkeypatch, cache):
    drawn(tmp_path)
    first, _ = said(load_data, tmp_path, size=12)
    def refuse(*args): raise AssertionError('decoded again')
    with monkeypatch.context() as m:
        m.setattr('tsynd.data.preparing.read_pixels', refuse)
        again, _ = said(load_data, tmp_path, size=12)
        assert torch.equal(first.train.x, again.train.x)
        assert (first.md5, first.prep) == (again.md5, again.prep)
        for change in (dict(size=16), dict(size=12, resize='pad')):
            with pytest.raises(AssertionError): said(load_data, tmp_path, **change)
        put(tmp_path/'a'/'x0.png', np.zeros((9, 9), np.uint8))                 # a file has changed
        with pytest.raises(AssertionError): said(load_data, tmp_path, size=12)
    changed = said(load_data, tmp_path, size=12)[0]
    assert changed.md5 != first.md5
    for damage in ('{', '{}', '{"preparation": {}, "images": 1, "unreadable": {}, "md5": ""}'):
        for f in cache.glob('*.json'): f.write_text(damage)
        assert said(load_data, tmp_path, size=12)[0].md5 == changed.md5

def test_images_are_mapped_and_the_file_stays_as_it_is(tmp_path, cache):
    drawn(tmp_path)
    data, _ = said(load_data, tmp_path, size=12)
    file, = cache.glob('*.npy')
    before = file.read_bytes()
    assert data.train.x.untyped_storage().data_ptr() == data.test.x.untyped_storage().data_ptr()   # one map
    data.train.x[0] = 7
    assert file.read_bytes() == before and (data.train.x[0] == 7).all()
    maps = Path('/proc/self/maps')
    if maps.exists(): assert file.name in maps.read_text()

def test_what_is_exported_holds_no_pixel(tmp_path):
    "Parts of a set are views of one map, and a view is pickled with all that it looks at"
    data, _ = said(load_data, drawn(tmp_path), size=28)
    assert len(pickle.dumps(data.train.new_empty())) < 3000 < data.train.x.numel()

def test_two_at_once_prepare_once(tmp_path, monkeypatch):
    drawn(tmp_path, 12)
    names = [p.relative_to(tmp_path).as_posix() for p in sorted(tmp_path.rglob('*.png'))]
    made, got = [], []
    def read(*args): made.append(args); return read_pixels(*args)
    monkeypatch.setattr('tsynd.data.preparing.read_pixels', read)
    def work(): got.append(prepare(tmp_path, names, 12, progress=False)[0])
    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert len(made) == 12 and len(got) == 4 and all(torch.equal(x, got[0]) for x in got)

def test_stopped_while_preparing_leaves_nothing_half(tmp_path, cache):
    drawn(tmp_path, 12)
    names = [p.relative_to(tmp_path).as_posix() for p in sorted(tmp_path.rglob('*.png'))]
    def stop(done, total):
        if done == 5: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): prepare(tmp_path, names, 12, progress=stop)
    assert not [*cache.glob('*.npy')]
    x = prepare(tmp_path, names, 12, progress=False)[0]
    assert torch.equal(x[7], Preparation()(read_pixels(tmp_path/names[7])))

def test_unreadable_files_are_one_sentence_or_left_out(tmp_path):
    drawn(tmp_path)
    for i, how in ((3, 'cut'), (8, 'text')): broken(tmp_path/'ab'[i % 2]/f'x{i}.png', how)
    with pytest.raises(InputError, match='2 of 24 images.*--skip-unreadable') as e:
        said(load_data, tmp_path, size=12)
    assert e.value.field in ('a/x8.png', 'b/x3.png') and e.value.field in str(e.value)
    data, told = said(load_data, tmp_path, size=12, skip_unreadable=True)
    parts = data.train, data.val, data.test
    assert sum(map(len, parts)) == 22 and any('2 of 24' in w for w in told)
    for s in parts:
        for x, y, p in zip(s.x, s.y, s.table.path):
            assert torch.equal(x, data.prep(read_pixels(tmp_path/p))) and data.classes[y] == p[0]

def test_what_could_not_be_read_is_tried_again(tmp_path, monkeypatch):
    "A plugin may have been installed since"
    drawn(tmp_path)
    def missing(path, frame):
        if Path(path).name == 'x3.png': raise InputError(f'{path} needs a plugin', path)
        return read_pixels(path, frame)
    with monkeypatch.context() as m:
        m.setattr('tsynd.data.preparing.read_pixels', missing)
        for _ in range(2):
            with pytest.raises(InputError, match='1 of 24 images.*needs a plugin'):
                said(load_data, tmp_path, size=12)
    data, _ = said(load_data, tmp_path, size=12)
    assert sum(map(len, (data.train, data.val, data.test))) == 24

def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path/'file').write_text('')
    monkeypatch.setenv('TSYND_CACHE', str(tmp_path/'file'/'x'))
    with refused(tmp_path/'file'/'x', 'TSYND_CACHE'): said(load_data, drawn(tmp_path/'d'), size=12)


# Loading

def test_images_and_rows_stay_together(tmp_path):
    data, _ = said(load_data, drawn(tmp_path, 30), size=16, seed=3)
    assert data.shape == (1, 16, 16) and sum(len(s) for s in (data.train, data.val, data.test)) == 30
    for s in (data.train, data.val, data.test):
        for x, y, p in zip(s.x, s.y, s.table.path):
            assert np.array_equal(x[0], np.asarray(Image.open(tmp_path/p))) and data.classes[y] == p[0]
    again, _ = said(load_data, tmp_path, size=16, seed=3)
    other, _ = said(load_data, tmp_path, size=16, seed=4)
    assert data.test.table.equals(again.test.table) and not data.test.table.equals(other.test.table)

@pytest.mark.parametrize('several', [False, True])
def test_an_npz_under_any_name(tmp_path, several):
    labels = np.eye(3, dtype=np.uint8)[[0, 1, 2, 0]] if several else np.array([[0], [1], [2], [0]])
    parts = 'train', 'val', 'test'
    y = {f'{k}_labels': labels for k in parts}
    images = {f'{k}_images': G.integers(0, 256, (4, 24, 24, 3), dtype=np.uint8) for k in parts}
    np.savez(tmp_path/'any.npz', **images, **y)
    data = load_data(tmp_path/'any.npz', size=24)
    assert (data.name, data.classes, data.task.several) == ('any', ['0', '1', '2'], several)
    assert np.array_equal(to_numpy(data.val.x), images['val_images'])
    assert load_data(tmp_path/'any.npz', size=12, class_names='u, v,w').classes == ['u', 'v', 'w']
    with refused('class_names', '3 classes'): load_data(tmp_path/'any.npz', size=24, class_names='u,v')
    small = load_data(tmp_path/'any.npz', size=12)
    assert torch.equal(small.test.x[1], small.prep(images['test_images'][1]))

def test_a_known_set_is_not_to_be_read_in_another_way():
    with refused('label_column', 'phantom'): load_data('phantom', label_column='dx')
    with refused('resize', './phantom'): load_data('phantom', resize='pad')

def test_what_a_path_is_called(tmp_path):
    for path, name in (('x/my set.csv', 'my set'), ('x/folder/', 'folder'), ('x/v1.5', 'v1.5'),
                       ('.', 'images'), ('..', 'images'), ('phantom', 'phantom'), ('a/b.npz', 'b')):
        assert data_name(path) == name
    assert default_out(dataset='x/my set.csv') == Path('runs/my-set-mi-seed0')
    assert default_out(dataset='../..') == Path('runs/images-mi-seed0')

def test_a_study_takes_paths(tmp_path):
    rows = [dict(r, pid=i//2) for i, r in enumerate(listed(tmp_path, 36))]
    c = StudyConfig('s', [str(table_of(tmp_path, rows)), 'phantom'], [8], 1, dict(baseline={}), size=12,
                    patient_column='pid')
    assert check_config(c) and [x.dataset for x in cells(c)] == ['table', 'phantom']
    data, held = cell_data(c, cells(c)[0])
    assert data.name == 'table' and held.table.patient.notna().all()
    assert cell_data(c, cells(c)[1])[0].name == 'phantom'
    with refused('datasets'): check_config(replace(c, datasets=['a/x.csv', 'b/x.csv']))
    with refused('data set', './mine'): check_config(replace(c, datasets=['mine']))
    check_config(gone := replace(c, datasets=['./gone']))         # a study can be read without its images
    with refused('data set', './gone'): check_machine(gone)

def test_seeds_of_a_study_draw_patients_and_fixed_test_images_stay(tmp_path):
    rows = [dict(r, patient=f'p{i//2}') for i, r in enumerate(listed(tmp_path, 48))]
    fixed = [dict(r, split='test' if i//2 % 4 == 0 else 'train') for i, r in enumerate(rows)]
    c = StudyConfig('s', ['x'], [8], 4, dict(baseline={}), size=12)
    for some, kinds in ((rows, 4), (fixed, 1)):
        mine = replace(c, datasets=[str(table_of(tmp_path, some))])
        drawn = [source_data(mine, cell) for cell in cells(mine)]
        assert len({frozenset(d.test.table.path) for d in drawn}) == kinds
        assert len({frozenset(d.train.table.path) for d in drawn}) == 4
        assert len({data_checksum(d) for d in drawn}) == 1
        for d in drawn:
            parts = [{*s.table.patient} for s in (d.train, d.val, d.test)]
            assert sum(map(len, parts)) == len(set.union(*parts)) == 24

def test_python_repeats_what_a_run_has_read(tmp_path):
    path = table_of(tmp_path, [dict(file=r['path'], dx=r['label']) for r in listed(tmp_path)])
    c = RunConfig(dataset=str(path), size=12, seed=5, path_column='file', label_column='dx', subset=8)
    line = next(l for l in python_lines(asdict(c)).splitlines() if l.startswith('data ='))
    again = said(eval, line.removeprefix('data = '), dict(load_data=load_data, subset=subset))[0]
    data = said(prepare_data, c)[0]
    assert torch.equal(data.train.x, again.train.x) and torch.equal(data.test.index, again.test.index)

def test_a_run_of_ones_own_images(tmp_path, monkeypatch):
    monkeypatch.chdir(drawn(tmp_path/'mine', 40, 20).parent)
    with redirect_stdout(io.StringIO()) as out, cheap():
        assert main(['run', 'mine', '--quick', '--size', '12', '--out', 'r']) == 0
    m = json.loads(Path('r/metrics.json').read_text())
    assert m['config']['dataset'] == './mine' and m['data']['classes'] == ['a', 'b']
    assert 'to 12 pixels' in m['data']['preparation'] and 'to 12 pixels' in out.getvalue()
    assert 'to 12 pixels' in Path('r/report.html').read_text(encoding='utf-8')
    data, again = said(load_data, 'mine', size=12)[0], load_data('r/splits.csv', size=12)
    for k in ('train', 'val', 'test'):           # the splits given back, and the same images in them
        one, other = ({Path(p).name: x for p, x in zip(s.table.path, s.x)}
                      for s in (getattr(data, k), getattr(again, k)))
        assert one.keys() == other.keys() and all(torch.equal(x, other[k]) for k, x in one.items())
