"""A study on a real Dask cluster: a scheduler and two workers on this machine, one of which is killed."""
import asyncio, os
from dataclasses import replace

import pytest

from processes import process, wait_for
from refused import refused
from test_study import here, PART, records
from tsynd.cli import main
from tsynd.experiments import cells, dask_executor, run_study, to_toml

distributed = pytest.importorskip('distributed')
pytestmark = pytest.mark.xdist_group('study')


def scheduler(file):
    async def run():
        async with distributed.Scheduler(host='127.0.0.1', port=0, dashboard=False,
                                         scheduler_file=str(file)) as s:
            await s.finished()
    asyncio.run(run())

def worker(file, folder):
    async def run():
        async with distributed.Worker(scheduler_file=str(file), nthreads=1, host='127.0.0.1', dashboard=False,
                                      local_directory=str(folder)) as w:
            await w.finished()
    os.chdir(folder)                    # another working folder than the driver's
    asyncio.run(run())

@pytest.fixture
def cluster(tmp_path):
    "The scheduler's file, and the processes of the workers"
    file, made = tmp_path/'scheduler.json', []
    try:
        made.append(process(scheduler, file))
        wait_for(file.exists)
        for k in 'ab':
            (tmp_path/k).mkdir()
            made.append(process(worker, file, tmp_path/k))
        yield file, made[1:]
    finally:
        for p in reversed(made): p.kill(); p.join()


def test_a_study_on_a_cluster_one_of_whose_workers_is_killed(cluster, tmp_path):
    "The table is that of this process"
    file, workers = cluster
    c = replace(PART, n=[20], seeds=2, keep=['predictions'])
    executor = dask_executor(str(file))
    def watch():
        wait_for(lambda: (tmp_path/'s').exists() and len(records(tmp_path/'s')) >= 1)
        os.kill(workers[0].pid, 9)
    killer = process(watch)
    try: s = run_study(c, tmp_path/'s', progress=False, executor=executor)
    finally: executor.client.close()
    killer.join()
    workers[0].join(10)
    assert not workers[0].is_alive() and workers[1].is_alive()
    assert (s.cells.status == 'done').all() and len(s.cells) == 6
    assert s.results.equals(here(c, tmp_path/'t').results)
    assert all(s.kept(x.id) for x in cells(c))

def test_the_command_runs_on_a_cluster(cluster, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'my.toml').write_text(to_toml(replace(PART, arms=dict(baseline={}, mixup={}), headline=[])))
    assert main(['study', 'my.toml', '--scheduler', str(cluster[0]), '--out', 's']) == 0
    out, err = capfd.readouterr()
    assert (tmp_path/'s'/'report.html').exists() and 'report.html' in out
    assert not [l for l in err.splitlines() if 'tsynd:' in l or 'Traceback' in l], err

@pytest.mark.parametrize('where', ['tcp://127.0.0.1:1', 'nowhere.json', 'ftp://x', '://'])
def test_a_scheduler_that_is_not_there(where, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('tsynd.experiments.executors.TIMEOUT', .5)
    with refused('scheduler', found=where): dask_executor(where)
