"""The display: one line with all the values; plain lines without a terminal; it never stops the training."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
from conftest import REPOSITORY, tiny

from bonecaffe.caffe.log import Event
from bonecaffe.progress import Pace
from bonecaffe.training import display as display_module
from bonecaffe.training import train
from bonecaffe.training.display import Display, describe
from bonecaffe.training.drive import Standing


def some_progress() -> Standing:
    progress = Standing(3000, 0, test_interval=100, images=256)
    for event, now in (
        (Event("test_output", 0, 2000.0, "loss"), 0.0),
        (Event("train_loss", 0, 2000.0), 10.0),
        (Event("lr", 0, 3e-6), 10.0),
        (Event("train_loss", 40, 200.0), 30.0),
    ):
        progress.note(event, now)
    return progress


def test_line_holds_every_value():
    """Iteration, both errors in months, rate, images/s, time to the next test and to the end; computed by hand."""
    progress = some_progress()
    assert progress.iterations_per_s == 2 and progress.images_per_s == 512
    assert progress.eta_test_s == 30 and progress.eta_s == 1480
    line = describe(progress)
    assert line == (
        "iteration 40/3000  RMSE train 20.0, test 63.2 months  rate 3e-06  512.0 images/s  "
        "test in 30 s, end in 24 min 40 s"
    )


def test_last_test_is_at_the_end():
    """Between the last interval and the end, the next test is the one after training."""
    progress = Standing(3010, 3000, test_interval=100, images=1, iteration=3000, iterations_per_s=1.0)
    assert progress.eta_test_s == progress.eta_s == 10
    assert math.isnan(Standing(10, 0).eta_test_s)
    assert "?" in describe(Standing(10, 0))


def test_plain_lines_elsewhere(capsys):
    """No terminal: a line at each twentieth, none in between."""
    progress = some_progress()
    with Display() as display:
        for iteration in range(0, 601, 20):
            progress.note(Event("train_loss", iteration, 100.0), 30.0 + iteration)
            progress.note(Event("lr", iteration, 1e-3), 30.0 + iteration)
            display.show(progress)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[2] for line in lines] == ["0/3000", "160/3000", "320/3000", "480/3000"]
    assert not any("\x1b" in line for line in lines)


def test_plain_lines_come_in_the_first_seconds(capsys, monkeypatch):
    """Without waiting for a twentieth, which may take hours; with the time to the end."""
    clock = [0.0]
    monkeypatch.setattr(display_module, "Pace", lambda: Pace(lambda: clock[0]))
    progress = Standing(10**6, 0, images=1)
    with Display() as display:
        for iteration in range(0, 200):
            clock[0] = float(iteration)
            progress.note(Event("train_loss", iteration, 100.0), clock[0])
            progress.note(Event("lr", iteration, 1e-3), clock[0])
            display.show(progress)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[2].split("/")[0] for line in lines] == [
        "0",
        "2",
        "5",
        "10",
        "17",
        "28",
        "44",
        "67",
        "102",
        "154",
    ]
    assert all("end in 277 h" in line for line in lines[1:])


def test_broken_display_never_stops_a_training(own_run):
    """A watcher and a `say` that raise: Caffe continues to the end."""

    def broken(progress):
        raise RuntimeError("no screen")

    assert train.train(own_run, watch=broken).state == "finished"


def test_closed_pipe_never_stops_a_training(own_run):
    """`bonecaffe train … 2>&1 | head -1`: the reader ends, the training continues."""
    own_run.write_recipe(tiny(solver__max_iter=30, solver__snapshot=30, solver__test_interval=30))
    command = [sys.executable, "-m", "bonecaffe", "train", str(own_run)]
    driver = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    driver.stdout.readline()
    driver.stdout.close()
    driver.wait(60)
    assert own_run.state() == "finished"


@pytest.mark.skipif(sys.platform != "linux", reason="pty")
def test_live_line_on_a_terminal(own_run):
    """On a terminal the line is redrawn in place, and the outcome stays."""
    import os
    import pty

    try:
        pid, terminal = pty.fork()
    except OSError:
        pytest.skip("no pseudo-terminals here (/dev/pts)")
    if pid == 0:
        os.chdir(REPOSITORY)
        os.environ["COLUMNS"] = "160"
        os.execv(sys.executable, [sys.executable, "-m", "bonecaffe", "train", str(own_run)])
    output = b""
    while True:
        try:
            chunk = os.read(terminal, 4096)
        except OSError:
            break
        if not chunk:
            break
        output += chunk
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert b"images/s" in output and b"\x1b[" in output and b"finished at iteration 12" in output
