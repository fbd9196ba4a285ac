"""Killed at seeded moments, in each way, on the real Caffe: nothing unfinished counts as finished, and all resume.

`pytest -s tests/training/test_killed.py` prints the table.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas
import pytest
from conftest import REPOSITORY, caffes, tiny

from bonecaffe.caffe import snapshots
from bonecaffe.run import RunDir
from bonecaffe.training import train

MOMENTS = 10
BLOWS = {  # what is sent to whom
    "SIGINT": ("driver", signal.SIGINT),
    "SIGTERM": ("driver", signal.SIGTERM),
    "SIGKILL of the driver": ("driver", signal.SIGKILL),
    "SIGKILL of Caffe": ("caffe", signal.SIGKILL),
}
IN_TRAINING = tiny(solver__max_iter=60, solver__snapshot=10, solver__test_interval=30)
IN_A_SNAPSHOT = tiny(
    network__fc_outputs=(2048, 2048), solver__max_iter=12, solver__snapshot=3, solver__test_interval=12
)


def start(run: RunDir, *options: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "bonecaffe", "train", str(run), *options]
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}  # two trainings side by side on few cores
    return subprocess.Popen(
        command, cwd=REPOSITORY, env=alone, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def until(condition, seconds: float, pause: float = 0.005):
    """The first true value of a condition; None at the timeout."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(pause)
    return None


def await_moment(run: RunDir, driver: subprocess.Popen, dice: random.Random, where: str) -> None:
    """Wait for the moment to kill: some iteration of the training, or while a file of a snapshot grows."""
    assert until(lambda: caffes(run) or driver.poll() is not None, 300)
    if where == "training":
        begun = f"Iteration {dice.randrange(run.recipe().solver.max_iter - 15)} "
        read = run.caffe_log.read_text
        until(lambda: (run.caffe_log.is_file() and begun in read(errors="replace")) or driver.poll() is not None, 300)
        return
    iteration = dice.choice((3, 6, 9))
    suffix = dice.choice((".caffemodel", ".solverstate"))
    path = run.snapshots / f"SNAPSHOT_iter_{iteration}{suffix}"
    assert until(lambda: path.exists() or driver.poll() is not None, 300, pause=0.0005)
    time.sleep(dice.uniform(0, 0.02))


def strike(run: RunDir, blow: str, where: str, seed: int) -> str:
    """One training, killed and resumed; its outcome in a word."""
    victim, number = BLOWS[blow]
    dice = random.Random(seed)
    driver = start(run)
    await_moment(run, driver, dice, where)
    targets = [driver.pid] if victim == "driver" else caffes(run)
    for pid in targets:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
    output = driver.communicate(timeout=300)[1]
    assert until(lambda: not caffes(run) and not run.holder(), 300), "Caffe trains on unseen"
    state = run.state()
    found = snapshots.find(run.snapshots)
    whole = bool(found) and found[-1].iteration == run.recipe().solver.max_iter and found[-1].flaw() is None
    log = run.caffe_log.read_text(errors="replace") if run.caffe_log.is_file() else ""
    if state == "finished":
        assert whole and "Optimization Done." in log and "stopped early" not in log
        assert driver.returncode in (0, -number), output  # the signal may arrive when all is done and recorded
        assert train.train(run) is None
        became = "finished before"
    else:
        assert state in ("interrupted", "killed", "prepared"), (state, output)
        assert driver.returncode != 0, output
        became = state
        torn = [snapshot for snapshot in found if snapshot.flaw()]
        resumable = snapshots.newest_complete(run.snapshots)
        if torn:
            became += ", a snapshot torn"
        if resumable is None and found:  # the message names the remedy, which is then followed
            refused = subprocess.run(
                [sys.executable, "-m", "bonecaffe", "train", str(run), "--resume"], capture_output=True, text=True
            )
            assert refused.returncode == 1 and "no complete snapshot" in refused.stderr
            shutil.rmtree(run.snapshots)
        again = start(run, *(["--resume"] if resumable else []))
        output = again.communicate(timeout=300)[1]
        assert again.returncode == 0, output
        became += f"; resumed from {resumable.iteration}" if resumable else "; started again"
    assert run.state() == "finished"
    assert run.read().train.iteration == run.recipe().solver.max_iter
    assert snapshots.find(run.snapshots)[-1].flaw() is None
    curve = pandas.read_csv(run.curve)
    expected = list(range(run.recipe().solver.max_iter + 1))
    assert curve[curve.phase == "train"].iteration.tolist() == expected, "the curve has a gap"
    assert [attempt.state for attempt in run.read().train.attempts][-1] == "finished"
    return became


@pytest.mark.parametrize("where", ["training", "snapshot"])
@pytest.mark.parametrize("blow", BLOWS)
def test_killed_at_seeded_moments(prepared, tmp_path, blow, where):
    """Ten moments each: the run reports correctly how it ended, resumes or reports why not, and finishes."""

    def one(number: int) -> str:
        run = RunDir(Path(shutil.copytree(prepared.path, tmp_path / f"run{number}")))
        run.write_recipe(IN_TRAINING if where == "training" else IN_A_SNAPSHOT)
        try:
            return strike(run, blow, where, seed=1000 * list(BLOWS).index(blow) + number)
        finally:
            shutil.rmtree(run.path, ignore_errors=True)

    with ThreadPoolExecutor(2) as pool:
        became = Counter(pool.map(one, range(MOMENTS)))
    for what, count in sorted(became.items()):
        print(f"{blow:22} in {where:9} {count:3} x {what}")
    assert sum(became.values()) == MOMENTS
    assert any(not what.startswith("finished") for what in became), "no moment hit the training"
