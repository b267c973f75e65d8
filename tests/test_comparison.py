"""Runs side by side, and figures and tables as files."""
import io, json
from contextlib import redirect_stderr, redirect_stdout

import pandas as pd
import pytest
from refused import refused

from tsynd.cli import main
from tsynd.reports import (
    auc_plot, compare_arms, compare_runs, comparison_html, comparison_plot, demo_run, demo_study,
    differing_settings, read_run, read_runs, study_report, synthesised, write_comparison, write_report)


def run(folder, change=lambda m: None, **kwargs):
    demo_run(folder, **kwargs)
    m = json.loads((folder/'metrics.json').read_text())
    change(m)
    (folder/'metrics.json').write_text(json.dumps(m))
    return folder

@pytest.fixture
def two(tmp_path): return [run(tmp_path/'a'), run(tmp_path/'b', lambda m: m['config'].update(radius=.7))]

def said(*argv):
    out,err = io.StringIO(),io.StringIO()
    with redirect_stdout(out), redirect_stderr(err): code = main([str(a) for a in argv])
    return code, out.getvalue(), err.getvalue()


def test_every_number_is_that_of_its_run(two):
    runs = read_runs(two)
    table = compare_runs(runs)
    for name,f in zip(runs, two):
        own = table[table.run == name].drop(columns='run').reset_index(drop=True)
        pd.testing.assert_frame_equal(own, compare_arms(read_run(f)))
    assert differing_settings(runs).values.tolist() == [['radius', runs['a'].m['config']['radius'], .7]]

def test_a_run_that_synthesised_nothing_is_not_compared(two):
    def idle(m): m['arms']['tsynd']['trace'] = [dict(step=0, gate=.01, mi_before=.1, mi_after=.2)]
    runs = read_runs([run(two[0].parent/'idle', idle), two[1]])
    made = synthesised(runs).set_index('run')
    assert made.kept['idle'] == .01 and 'kept 1.0 %' in made.nothing['idle'] and made.nothing['b'] == ''
    points = compare_runs(runs).set_index('run').points
    assert points['idle'].isna().all() and points['b'].notna().sum() == 14
    assert 'idle 0.836, nothing synthesised' in comparison_plot(runs).alt
    page = comparison_html(runs)
    assert page.count('>nothing synthesised<') == 14 and 'lower the gate' in page

def test_runs_of_one_name_go_by_their_folders(tmp_path):
    folders = [run(tmp_path/k/'run') for k in 'xy']
    assert list(read_runs(folders)) == [f.as_posix() for f in folders]

@pytest.mark.parametrize('key,value', [('name', 'other'), ('classes', ['x','y']), ('task', 'multi-class')])
def test_runs_on_other_data_are_refused_and_nothing_is_written(two, key, value):
    m = json.loads((two[1]/'metrics.json').read_text())
    m['data'][key] = value
    (two[1]/'metrics.json').write_text(json.dumps(m))
    with refused(key): write_comparison(two)
    assert not (two[0].parent/'comparison').exists()

def test_other_images_are_told(two):
    page = write_comparison(two).read_text()
    m = json.loads((two[1]/'metrics.json').read_text())
    m['data']['md5'] = 'another'
    (two[1]/'metrics.json').write_text(json.dumps(m))
    assert 'same images (their checksums differ)' not in page
    assert 'same images (their checksums differ)' in write_comparison(two).read_text()

def test_names_of_runs_are_text_on_the_page(tmp_path):
    page = write_comparison([run(tmp_path/'<b>one'), run(tmp_path/'two')]).read_text()
    assert '<b>one' not in page and '&lt;b&gt;one' in page

def test_a_run_is_not_written_over(two):
    before = (two[0]/'metrics.json').read_bytes()
    with refused('out'): write_comparison(two, two[0])
    assert (two[0]/'metrics.json').read_bytes() == before and not (two[0]/'report.html').exists()

def test_what_is_exported_is_the_same_each_time(two):
    def exported(): return {f.name: f.read_bytes() for f in two[0].parent.glob('comparison/*/*')}
    write_comparison(two, formats=['csv','pdf','svg']); first = exported()
    write_comparison(two, formats=['csv','pdf','svg'])
    assert first == exported() and {'comparison.pdf','comparison.svg','results.csv','settings.csv'} < {*first}
    assert first['comparison.pdf'].startswith(b'%PDF') and b'<svg' in first['comparison.svg']

def test_run_and_study_are_exported(two, tmp_path, monkeypatch):
    monkeypatch.setattr('tsynd.reports.study.STUDY_PLOTS', {'auc': auc_plot})
    write_report(two[0], ['csv'])
    pd.testing.assert_frame_equal(pd.read_csv(two[0]/'tables'/'results.csv'), compare_arms(read_run(two[0])))
    study = demo_study(tmp_path/'study')
    study_report(study, ['csv','svg'])
    tables = {f.stem: len(pd.read_csv(f)) for f in (study/'tables').iterdir()}
    # two data sets, two sizes, five arms, ten seeds, one cell failed
    assert tables == dict(cells=200, results=199*47, averages=2*2*5*47, differences=2*2*4*47, costs=10,
                          synthesis=20, families=2*5*3, classes=2*5*2, arms=5, headline=12)
    assert (study/'figures'/'auc.svg').exists()

def test_the_command(two, tmp_path):
    code,out,_ = said('report', *two, '--out', tmp_path/'page', '--format', 'csv, pdf')
    assert code == 0 and out.strip() == str(tmp_path/'page'/'report.html')
    assert (tmp_path/'page'/'figures'/'comparison.pdf').exists()

@pytest.mark.parametrize('argv,word', [(['--format', 'doc'], 'format'), (['--out', 'x'], 'out')])
def test_the_command_refuses_in_one_line(two, argv, word):
    code,_,err = said('report', two[0], *argv)
    assert code == 2 and word in err and err.count('\n') == 1
