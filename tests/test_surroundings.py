"""Nothing is lost to the surroundings: disks, links, streams, letters, somebody's settings of matplotlib,
and files in the working folder that have the name of a module."""
import errno, io, json, os, subprocess, sys
from importlib.util import find_spec
from pathlib import Path

import matplotlib, pytest

import tsynd
from refused import refused
from tsynd.cli import main
from tsynd.core import (
    in_letters_of, InputError, make_folder, Steady, steady_streams, system_errors, write_whole)
from tsynd.experiments import append, Processes, read_records
from tsynd.reports import demo_run, Plot, read_run, robustness_plot, write_report

REFUSALS = [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.ENAMETOOLONG, errno.EIO]


# Disks

@pytest.mark.parametrize('number', REFUSALS, ids=errno.errorcode.get)
@pytest.mark.parametrize('step', ['os.fsync', 'os.replace'])
def test_what_was_there_stays_when_the_system_refuses(tmp_path, monkeypatch, number, step):
    (tmp_path/'a').write_text('before')
    def refuse(*args): raise OSError(number, os.strerror(number))
    monkeypatch.setattr(step, refuse)
    with refused(tmp_path/'a', found=os.strerror(number)): write_whole(tmp_path/'a', b'after')
    assert [(f.name, f.read_text()) for f in tmp_path.iterdir()] == [('a', 'before')]

def test_a_file_that_is_written_is_whole_and_has_the_mode_of_all_files(tmp_path):
    for content in (b'one', b'two'): write_whole(tmp_path/'a', content)
    (tmp_path/'b').touch()
    assert (tmp_path/'a').read_bytes() == b'two' and sorted(f.name for f in tmp_path.iterdir()) == ['a', 'b']
    assert (tmp_path/'a').stat().st_mode == (tmp_path/'b').stat().st_mode

def test_an_error_of_ours_is_none_of_the_system(tmp_path):
    with pytest.raises(OSError, match='a bug') as e, system_errors(tmp_path): raise OSError('a bug of ours')
    assert not isinstance(e.value, InputError)

def test_names_that_are_too_long_and_a_device_that_is_full(tmp_path):
    with refused(tmp_path/('x'*300), 'too long'): write_whole(tmp_path/('x'*300), b'')
    with refused('here', 'No space'), system_errors('here'), open('/dev/full', 'w') as f: f.write('x')

@pytest.mark.parametrize('number', REFUSALS, ids=errno.errorcode.get)
def test_the_command_tells_it_in_one_line_wherever_it_happens(tmp_path, monkeypatch, capsys, number):
    def refuse(*args): raise OSError(number, os.strerror(number), '/somewhere')
    monkeypatch.setattr('tsynd.reports.write_report', refuse)
    assert main(['report', str(tmp_path)]) == 2
    assert capsys.readouterr().err == f'tsynd: /somewhere cannot be used ({os.strerror(number)})\n'


# Links

@pytest.fixture
def theirs(tmp_path):
    (tmp_path/'theirs').write_text('of somebody else')
    yield tmp_path/'theirs'
    assert (tmp_path/'theirs').read_text() == 'of somebody else'

@pytest.mark.parametrize('name', ['report.html', '.report.html.part', 'figures/training.png'])
def test_a_link_among_our_files_is_replaced(tmp_path, theirs, monkeypatch, name):
    monkeypatch.setattr(Plot, 'png', lambda self, dpi=100: ONE_DOT)
    folder = demo_run(tmp_path/'x', n=2)
    (folder/'figures').mkdir()
    (folder/name).symlink_to(theirs)
    page = write_report(folder)
    assert page.read_text().startswith('<!doctype html>') and not (folder/name).is_symlink()
    assert not [*folder.rglob('.*')]

ONE_DOT = io.BytesIO()
matplotlib.image.imsave(ONE_DOT, [[0., 1.]], format='png')
ONE_DOT = ONE_DOT.getvalue()

def test_a_folder_that_is_a_link_is_refused(tmp_path):
    folder = demo_run(tmp_path/'x', n=2)
    (tmp_path/'other').mkdir()
    for to in ('other', 'nowhere'):
        (folder/'figures').symlink_to(tmp_path/to)
        with refused(folder/'figures', 'symbolic link'): write_report(folder)
        (folder/'figures').unlink()
    assert not [*(tmp_path/'other').iterdir()] and not (tmp_path/'nowhere').exists()
    (tmp_path/'file').touch()
    with refused(tmp_path/'file', 'exists'): make_folder(tmp_path/'file')

def test_records_are_never_written_through_a_link(tmp_path):
    "A link to the records of another study becomes a file of our own, with all that it led to"
    def failed(arm):
        return dict(id=f'phantom-9-0-{arm}', dataset='phantom', n=9, seed=0, arm=arm, status='failed')
    old = tmp_path/'old.jsonl'
    old.write_text(json.dumps(failed('a'))+'\n')
    (tmp_path/'s').mkdir()
    (tmp_path/'s'/'cells.jsonl').symlink_to(old)
    append(tmp_path/'s', failed('b'))
    assert [r['arm'] for r in read_records(tmp_path/'s')[0].values()] == ['a', 'b']
    assert old.read_text() == json.dumps(failed('a'))+'\n'


# Streams and letters

class Broken(io.StringIO):
    def __init__(self, error): super().__init__(); self.error = error
    def write(self, text): raise self.error

@pytest.mark.parametrize('error, status', [(BrokenPipeError(32, 'Broken pipe'), 0), (ValueError('closed'), 0),
                                           (OSError(28, 'No space left on device'), 2)], ids=str)
def test_a_reader_that_is_gone_does_not_matter_and_a_loss_is_told(monkeypatch, error, status):
    err = io.StringIO()
    monkeypatch.setattr(sys, 'stdout', Broken(error)); monkeypatch.setattr(sys, 'stderr', err)
    assert main(['--version']) == status == 2*err.getvalue().count('No space left on device')

def test_a_terminal_of_few_letters(monkeypatch):
    raw = io.BytesIO()
    stream = Steady(io.TextIOWrapper(raw, encoding='ascii'))
    print('28×28 – Krähe \ud800', file=stream, flush=True)
    assert raw.getvalue() == b'28x28 - Kr\\xe4he \\ud800\n' and stream.fault is None
    assert in_letters_of('utf-8', '28×28 – Krähe') == '28×28 – Krähe'

def test_streams_are_given_back():
    before = sys.stdout, sys.stderr
    with pytest.raises(KeyboardInterrupt), steady_streams(): raise KeyboardInterrupt
    assert (sys.stdout, sys.stderr) == before

@pytest.mark.parametrize('closed', ['>&-', '2>&-', '<&- >&- 2>&-', '> /dev/full', '| true', '2>&1 | true'])
def test_help_into_what_is_closed_full_or_gone(tmp_path, closed):
    "Python itself would say `Exception ignored`, or leave with status 120"
    call = f"'{sys.executable}' -c 'import sys; from tsynd.cli import main; sys.exit(main([\"--help\"]))'"
    if '|' in closed: call = f'({call} 2>err; echo $? > status) {closed[-6:]}'
    else: call = f"({call} {'' if '2>' in closed else '2>err'} {closed}); echo $? > status"
    env = os.environ | dict(PYTHONPATH=str(Path(tsynd.__file__).parents[1]))
    subprocess.run(call, shell=True, cwd=tmp_path, env=env, check=True, stdout=subprocess.DEVNULL)
    said = (tmp_path/'err').read_text() if (tmp_path/'err').exists() else ''
    assert int((tmp_path/'status').read_text()) == (2 if 'full' in closed else 0)
    assert said == ('tsynd: standard output cannot be written (No space left on device)\n'*('full' in closed))

def test_a_file_never_gets_the_number_of_a_closed_stream(tmp_path):
    code = ('import os; from tsynd.core import steady_streams\n'
            'with steady_streams():\n'
            '    f = open("model", "w"); os.write(2, b"a message"); f.write("weights"); f.close()')
    env = os.environ | dict(PYTHONPATH=str(Path(tsynd.__file__).parents[1]))
    subprocess.run(f"'{sys.executable}' -c '{code}' <&- >&- 2>&-", shell=True, cwd=tmp_path, env=env)
    assert (tmp_path/'model').read_text() == 'weights'


# Somebody's matplotlib, and somebody's files

def test_figures_need_nothing_that_a_matplotlibrc_asks_for(tmp_path):
    run = read_run(demo_run(tmp_path/'x', n=2))
    plain = robustness_plot(run).png(30)
    asked = {'text.usetex': True, 'font.family': 'Nowhere', 'savefig.bbox': 'tight',
             'savefig.transparent': True, 'mathtext.fontset': 'custom', 'path.sketch': (5, 100, 2)}
    with matplotlib.rc_context(asked): assert robustness_plot(run).png(30) == plain

@pytest.mark.parametrize('rc, backend', [('backend: qtagg\ntext.usetex: True\n', 'nonsense'),
                                         ('nonsense\n: :\n', 'tkagg')])
def test_the_command_asks_for_no_window(tmp_path, rc, backend):
    (tmp_path/'matplotlibrc').write_text(rc)
    code = ('from tsynd.core import files_only; files_only(); import os, matplotlib; '
            'print(matplotlib.get_backend().lower(), os.environ["MPLBACKEND"])')
    env = os.environ | dict(PYTHONPATH=str(Path(tsynd.__file__).parents[1]), MPLBACKEND=backend)
    res = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert (res.returncode, res.stdout, res.stderr) == (0, f'agg {backend}\n', '')

def test_a_damaged_matplotlibrc_is_named(tmp_path):
    (tmp_path/'matplotlibrc').write_bytes(b'\xff\xfe\n')
    code = 'import sys; from tsynd.cli import main; sys.exit(main(["report", "x"]))'
    env = os.environ | dict(PYTHONPATH=str(Path(tsynd.__file__).parents[1]))
    res = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert res.returncode == 2 and res.stderr.startswith('tsynd: matplotlib cannot be loaded')
    assert 'matplotlibrc' in res.stderr and res.stderr.count('\n') == 1

def test_workers_take_modules_of_python_and_not_of_the_working_folder(tmp_path, monkeypatch, capfd):
    for name in ('numbers', 'random', 'types', 'socket'):
        (tmp_path/f'{name}.py').write_text('raise SystemExit("of the working folder")')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'path', [p for p in sys.path if p])
    with Processes(1) as pool: found = pool.submit(find_spec, 'numbers').result()
    assert found.origin == find_spec('numbers').origin and capfd.readouterr().err == ''
