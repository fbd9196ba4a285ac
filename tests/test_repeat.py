"""repeat: the same recipe over seeds, in sequence and on a cluster, interrupted and gone on with; the spread."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pandas
import pytest
from click.testing import CliRunner
from conftest import caffes, tiny

from bonecaffe.cli import main
from bonecaffe.errors import RepeatError, RepeatInterrupted
from bonecaffe.files import write_text
from bonecaffe.run import RunDir
from bonecaffe.studies import repeat, verify
from bonecaffe.training.launch import recipe_as_trained


def plan_for(out, hands, **changes) -> repeat.Repetition:
    return repeat.Repetition(
        out, tiny(**changes).to_yaml(), hands / "images", hands / "ages.csv", hands / "points.csv", cpu=True
    )


def test_repeat_by_command(hands, tmp_path):
    """Three seeds: three runs with different splits and models; table, CSV, JSON; called again it does nothing."""
    recipe = tmp_path / "tiny.yaml"
    write_text(recipe, tiny().to_yaml())
    out = tmp_path / "out"
    data = [f"--images={hands / 'images'}", f"--ages={hands / 'ages.csv'}", f"--points={hands / 'points.csv'}"]
    command = ["repeat", str(recipe), "--out", str(out), "--seeds", "3", *data, "--cpu"]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    table = pandas.read_csv(out / "repeat.csv")
    assert table.seed.tolist() == [1, 2, 3] and set(table.state) == {"finished"}
    assert len({RunDir(out / f"seed-{seed}").list_file("test").read_text() for seed in (1, 2, 3)}) == 3
    facts = json.loads((out / "repeat.json").read_text())
    spread = {entry["figure"]: entry for entry in facts["spread"]}
    assert spread["test_mad"]["mean"] == pytest.approx(table.test_mad.mean(), abs=1e-3)
    assert spread["test_mad"]["sd"] == pytest.approx(table.test_mad.std(), abs=1e-3)
    assert spread["test_mad"]["paper"] == 18.9
    assert "over 3 seeds" in done.output
    log = (out / "seed-2" / "caffe.log").read_bytes()
    assert CliRunner().invoke(main, command).exit_code == 0
    assert (out / "seed-2" / "caffe.log").read_bytes() == log
    links = verify.verify(RunDir(out / "seed-2"))
    assert verify.first_broken(links) is None, links
    assert any(
        d.field == "data.split_seed" and "seed 2" in d.reason for d in RunDir(out / "seed-2").recipe().departures()
    )


def test_an_interrupted_first_seed_is_not_gone_on_with_by_another_plan(hands, tmp_path, monkeypatch):
    """The plan is on record before the first seed; a call that made nothing binds nobody."""
    out = tmp_path / "out"
    data = [f"--images={hands / 'images'}", f"--ages={hands / 'ages.csv'}", f"--points={hands / 'points.csv'}"]

    def command(name, **changes):
        write_text(tmp_path / f"{name}.yaml", tiny(**changes).to_yaml())
        return ["repeat", str(tmp_path / f"{name}.yaml"), "--out", str(out), "--seeds", "2", *data, "--cpu"]

    def refused(*arguments):
        raise RepeatError("no such data")

    def interrupted(plan, seed, watch, say):
        (out / f"seed-{seed}").mkdir()
        raise RepeatInterrupted("stopped in seed 1")

    monkeypatch.setattr(repeat, "one", refused)
    assert CliRunner().invoke(main, command("first", solver__base_lr=0.5)).exit_code == 1
    monkeypatch.setattr(repeat, "one", interrupted)
    assert CliRunner().invoke(main, command("second")).exit_code == 130
    done = CliRunner().invoke(main, command("third", solver__base_lr=0.1))
    assert done.exit_code == 1 and "repeats of another recipe" in done.output


def test_more_seeds_are_added_and_another_plan_refused(hands, tmp_path):
    """Seeds 1 to 2, then 3: the table holds all three; another recipe into the same folder is refused."""
    plan = plan_for(tmp_path, hands)
    results = [repeat.Result(n, "finished", 12, 6.0, 0.98, 18.0 + n, 0.8, 60.0) for n in (1, 2)]
    repeat.write(tmp_path, plan, results)
    assert repeat.earlier(tmp_path, plan) == results
    with pytest.raises(RepeatError, match="another recipe"):
        repeat.earlier(tmp_path, plan_for(tmp_path, hands, solver__max_iter=7))
    text = (tmp_path / "repeat.json").read_text()
    for odd, expected in (
        ("{", "not readable as JSON: .* Remove it, or give another --out"),
        ("[]", "not as bonecaffe writes it"),
        (text.replace('"test_mad": 19.0', '"test_mad": "x"'), r"results.0.test_mad: .*valid number.* Remove it"),
        (text.replace('"results": [', '"results": [1, '), "results.0: "),
        (text.replace('"test_mad": 19.0', '"test_mad": NaN'), "NaN is no number"),
    ):
        assert odd != text
        (tmp_path / "repeat.json").write_text(odd)
        with pytest.raises(RepeatError, match=expected) as error:
            repeat.earlier(tmp_path, plan)
        assert "\n" not in str(error.value)


def test_weights_stay_declared_when_it_goes_on(hands, trained, tmp_path):
    """Started from given weights, interrupted, called again: the record still says what it started from."""
    weights = trained.snapshots / "SNAPSHOT_iter_12.caffemodel"
    long = {"solver__max_iter": 300, "solver__snapshot": 100, "solver__test_interval": 300}
    plan = replace(plan_for(tmp_path, hands, **long), weights=weights)

    def stop(progress):
        if progress.iteration >= 5 and not told:
            told.append(os.kill(os.getpid(), signal.SIGINT))

    told = []
    with pytest.raises(RepeatInterrupted):
        repeat.one(plan, 1, stop)
    for _ in range(2):
        assert repeat.one(plan, 1).state == "finished"
        run = RunDir(tmp_path / "seed-1")
        assert recipe_as_trained(run).training.initial_weights == "given"
        assert verify.first_broken(verify.verify(run)) is None


def test_interrupted_seed_goes_on(hands, tmp_path):
    """Ctrl-C in a seed: an error that says so; the next call resumes it."""
    plan = plan_for(tmp_path, hands, solver__max_iter=300, solver__snapshot=100, solver__test_interval=150)

    def stop(progress):
        if progress.iteration >= 5 and not told:
            told.append(os.kill(os.getpid(), signal.SIGINT))

    told = []
    with pytest.raises(RepeatInterrupted, match="Call repeat again"):
        repeat.one(plan, 1, stop)
    assert repeat.one(plan, 1).state == "finished"
    assert [a.state for a in RunDir(tmp_path / "seed-1").read().train.attempts] == [
        "interrupted",
        "finished",
    ]


def test_diverged_seed_is_counted_not_averaged(hands, tmp_path):
    """nan in one seed: stated, and left out of the spread."""
    plan = plan_for(tmp_path, hands, solver__type="SGD", solver__base_lr=10.0)
    result = repeat.one(plan, 1)
    assert result.state == "diverged" and result.test_mad is None
    log = (tmp_path / "seed-1" / "caffe.log").read_bytes()
    assert repeat.one(plan, 1) == result and (tmp_path / "seed-1" / "caffe.log").read_bytes() == log
    results = [
        result,
        *(repeat.Result(n, "finished", 12, 6.0, 0.98, mad, 0.8, 60.0) for n, mad in ((2, 18.0), (3, 20.0))),
    ]
    assert "1 of 3 seeds diverged" in repeat.verdict(results)
    repeat.write(tmp_path, plan, results)
    assert pandas.read_csv(tmp_path / "repeat.csv").test_mad.isna().tolist() == [True, False, False]


def test_spread_tells_luck_from_difference():
    """A prediction interval for one more run, by Student's t: worked out by hand for three seeds."""
    results = [repeat.Result(n, "finished", 12, 6.0, 0.9, mad, 0.8, 60.0) for n, mad in enumerate((18.0, 19.0, 20.0))]
    spread = next(s for s in repeat.spreads(results) if s.figure == "test_mad")
    half = 4.302652729749464 * statistics.stdev((18, 19, 20)) * (4 / 3) ** 0.5  # t of 97.5 %, 2 degrees of freedom
    assert spread.next_run_95 == pytest.approx((19 - half, 19 + half))
    assert spread.told_from_luck is False and "lies within" in repeat.verdict(results)
    far = [repeat.Result(n, "finished", 12, 6.0, 0.9, mad, 0.8, 60.0) for n, mad in enumerate((9.0, 9.1, 9.2))]
    assert "more than luck" in repeat.verdict(far)
    assert repeat.spreads(far[:1]) == [] and repeat.spreads(far[:2])[0].next_run_95 is None


# ---- a cluster -------------------------------------------------------------------------------------------------


@contextmanager
def cluster(workers: int):
    """A Dask scheduler and workers, processes of their own on the loopback; yields the address."""
    pytest.importorskip("distributed")
    env = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(*arguments):
        command = [sys.executable, "-m", "distributed.cli." + arguments[0], *arguments[1:]]
        return subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    scheduler = start("dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard")
    address = None
    for line in scheduler.stderr:
        if "Scheduler at:" in line:
            address = line.split()[-1]
            break
    assert address
    processes = [scheduler]
    try:
        for _ in range(workers):
            processes.append(start("dask_worker", address, "--no-nanny", "--nthreads", "1", "--no-dashboard"))
        yield address, processes[1:]
    finally:
        for process in reversed(processes):
            process.kill()
            process.communicate()


def test_cluster_loses_a_worker_and_completes(hands, tmp_path):
    """Two workers, three seeds; one is killed while it trains: its seed goes on with the other, to the end."""
    plan = plan_for(tmp_path, hands, solver__max_iter=150, solver__snapshot=30, solver__test_interval=50)
    with cluster(2) as (address, workers):
        coming = repeat.on_cluster(plan, [1, 2, 3], address)
        results, failed = [], []

        def collect():
            try:
                results.extend(coming)
            except Exception as error:
                failed.append(error)

        thread = threading.Thread(target=collect)
        thread.start()
        deadline = time.monotonic() + 300
        at_work = []
        while not at_work and time.monotonic() < deadline:
            runs = [RunDir(tmp_path / f"seed-{seed}") for seed in (1, 2, 3)]
            at_work = [pid for run in runs if run.curve.is_file() for pid in caffes(run)]
            time.sleep(0.02)
        parent = int(Path(f"/proc/{at_work[0]}/stat").read_text().rsplit(")", 1)[1].split()[1])
        assert parent in [worker.pid for worker in workers]
        os.kill(parent, signal.SIGKILL)
        thread.join(600)
    assert not failed and not thread.is_alive(), failed
    assert sorted(result.seed for result in results) == [1, 2, 3]
    assert {result.state for result in results} == {"finished"} and {result.iteration for result in results} == {150}
    attempts = [len(RunDir(tmp_path / f"seed-{seed}").read().train.attempts) for seed in (1, 2, 3)]
    assert max(attempts) == 2, attempts  # the killed worker's


def test_scheduler_not_reached(hands, tmp_path, monkeypatch):
    """No scheduler there, no Dask: said with the remedy."""
    pytest.importorskip("distributed")
    import distributed

    real = distributed.Client
    monkeypatch.setattr(distributed, "Client", lambda address, timeout: real(address, timeout=1))
    with pytest.raises(RepeatError, match="not reached"):
        list(repeat.on_cluster(plan_for(tmp_path, hands), [1, 2], "tcp://127.0.0.1:9"))
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(RepeatError, match=r"bonecaffe\[cluster\]"):
        list(repeat.on_cluster(plan_for(tmp_path, hands), [1, 2], "tcp://127.0.0.1:9"))
