"""Start, watch, stop and resume ``caffe train`` (paper II.3-4).

A run is finished when Caffe exited 0, had not been stopped early, and the snapshot of the last iteration is there
and complete. ``Optimization Done.`` alone says nothing: Caffe prints it after Ctrl-C too.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bonecaffe import __version__, caffe_tools
from bonecaffe.errors import TrainError
from bonecaffe.network import preflight
from bonecaffe.run import SPLITS, RunDir, sha256_file, write_text
from bonecaffe.training import inputs, log, snapshots

Watcher = Callable[["Progress"], None]


@dataclass
class Progress:
    """Where a training stands; handed to the watcher with every event."""

    max_iter: int
    started_at: int  # iteration
    event: log.Event | None = None
    iteration: int = 0
    train_loss: float = math.nan
    test_loss: float = math.nan
    rate: float = math.nan  # learning rate
    iterations_per_s: float = math.nan

    @property
    def eta_s(self) -> float:
        """Seconds to the last iteration at the speed so far; nan before it is known."""
        return (self.max_iter - self.iteration) / self.iterations_per_s if self.iterations_per_s > 0 else math.nan


@dataclass(frozen=True)
class Outcome:
    """How a training ended: ``finished``, ``interrupted``, ``diverged`` or ``died``; and what Caffe said last."""

    state: str
    iteration: int
    why: str
    seconds: float


# ---- the training ----------------------------------------------------------------------------------------------


def train(
    run: RunDir,
    given_weights: Path | None = None,
    gpu: str | None = None,
    cpu: bool = False,
    resume: bool = False,
    watch: Watcher | None = None,
    say: Callable[[str], None] = lambda sentence: None,
) -> Outcome | None:
    """Train a prepared run to the recipe's last iteration; None when that was done already.

    Raises TrainError or CaffeError with the reason when it cannot start; how it ended is the Outcome's to tell.
    """
    recipe, gpu_arguments = inputs.compute_with(run.recipe(), gpu, cpu)
    if "prepare" not in run.manifest() or not all((run.lmdb(split) / "data.mdb").is_file() for split in SPLITS):
        raise TrainError(f"{run}: not prepared. Start with: bonecaffe prepare {run} …")
    if resume and given_weights is not None:
        raise TrainError("--resume goes on from a snapshot; --weights would be ignored. Give one of them.")
    if given_weights is not None:
        recipe = inputs.declare_weights(recipe, given_weights)
    with run.lock("train"):
        before = run.manifest().get("train", {})
        wanted = inputs.intended(run, recipe)
        earlier = snapshots.find(run.snapshots)
        complete = bool(earlier) and earlier[-1].flaw() is None
        if before.get("state") == "finished" and before.get("inputs") == wanted and complete:
            return None
        if earlier and not resume:
            raise TrainError(
                f"{run.snapshots}: holds snapshots up to iteration {earlier[-1].iteration} of an earlier training. "
                f"Go on from there with --resume, or remove {run.snapshots} to start anew."
            )
        snapshot = _to_resume(run, before, wanted, earlier, say) if resume else None
        # nothing was written so far; from here on the run is this training's
        if recipe != run.recipe():
            run.write_recipe(recipe)
        for name in inputs.write_prototxts(run, recipe):
            say(f"{name} was edited by hand and is used as it is")
        if snapshot is not None:
            start = ["--snapshot", os.path.relpath(snapshot.solverstate, run.path)]
            said, started_at = f"resumed from iteration {snapshot.iteration}", snapshot.iteration
        else:
            start, said = inputs.initial_weights(run, recipe, given_weights)
            started_at = 0
        say(said)
        report = preflight.examine(run, inputs.plan(start, gpu_arguments))
        report.raise_if_any(run)
        if report.copied:
            say(f"weights: copied {' '.join(report.copied)}; fresh {' '.join(report.fresh) or 'none'}")
        run.snapshots.mkdir(exist_ok=True)
        if snapshot is None:
            _set_aside(run.caffe_log)
        arguments = command(run, gpu_arguments, start)
        shown = shlex.join(["caffe", *arguments[1:]])
        say(f"in {run}: {shown}")
        facts = {
            "state": "running",
            "inputs": wanted,
            "files": inputs.files_in_use(run),
            "recipe": recipe.to_yaml(),
            "weights_sha256": sha256_file(given_weights) if given_weights else before.get("weights_sha256", ""),
            "attempts": [*before.get("attempts", []), {"command": shown, "start": said, "at": _now()}],
        }
        run.record("train", facts)
        outcome = _drive(run, preflight.max_iter(run), arguments, started_at, watch)
        facts["attempts"][-1].update(
            state=outcome.state, iteration=outcome.iteration, seconds=round(outcome.seconds, 1), why=outcome.why
        )
        facts.update(state=outcome.state, iteration=outcome.iteration, bonecaffe=__version__)
        run.record("train", {**facts, "caffe": caffe_tools.find().build})
        return outcome


def command(run: RunDir, gpu: list[str], start: list[str]) -> list[str]:
    """The paper's command line: ``caffe train --solver solver.prototxt --weights … --gpu 0``, run in the run folder."""
    return [str(caffe_tools.find().program("caffe")), "train", "--solver", run.solver.name, *start, *gpu]


def _to_resume(
    run: RunDir,
    before: dict[str, Any],
    wanted: dict[str, str],
    earlier: list[snapshots.Snapshot],
    say: Callable[[str], None],
) -> snapshots.Snapshot:
    """The newest complete snapshot; TrainError when there is none, or when what it was trained on has changed."""
    trained = before.get("inputs")
    if trained not in (None, wanted):
        changed = ", ".join(name for name in wanted if wanted[name] != trained.get(name))
        raise TrainError(
            f"{run}: {changed} changed since the training that would be resumed. Start anew in another run folder."
        )
    snapshot = snapshots.newest_complete(run.snapshots)
    if snapshot is None:
        raise TrainError(
            f"{run.snapshots}: no complete snapshot to resume from. Remove {run.snapshots} and train anew."
        )
    for newer in earlier:
        if newer.iteration > snapshot.iteration:
            say(f"passed over an incomplete snapshot: {newer.flaw()}")
    return snapshot


def _set_aside(log_file: Path) -> None:
    """Keep the log of an earlier training under another name: caffe.log.1, caffe.log.2, …"""
    if log_file.exists():
        names = (log_file.with_name(f"{log_file.name}.{number}") for number in itertools.count(1))
        log_file.rename(next(name for name in names if not name.exists()))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # Ctrl-C, a scheduler's stop, a closed terminal


@contextlib.contextmanager
def _passing_signals(process: subprocess.Popen[str]) -> Iterator[None]:
    """Pass the first stopping signal to Caffe as SIGINT, so that it snapshots and stops; a second one kills it."""
    count = 0

    def handle(number: int, frame: object) -> None:
        nonlocal count
        count += 1
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGINT if count == 1 else signal.SIGKILL)

    try:
        before = {number: signal.signal(number, handle) for number in _STOPPING}
    except ValueError:  # not the main thread
        before = {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _not_left_behind(process: subprocess.Popen[str]) -> Iterator[None]:
    """Should we fail in the middle (a full disk under the log, say), Caffe is stopped before the run is let go."""
    try:
        yield
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _drive(run: RunDir, max_iter: int, arguments: list[str], started_at: int, watch: Watcher | None) -> Outcome:
    """Run Caffe to its end: log kept whole, events to the watcher, curve.csv renewed at each test."""
    progress = Progress(max_iter, started_at, iteration=started_at)
    began = time.monotonic()
    events: list[log.Event] = _earlier_events(run)
    stopped = diverged = False
    fatal = tail = ""
    with open(run.caffe_log, "a", encoding="utf-8", errors="replace") as kept:
        kept.write(f"# bonecaffe {_now()}: {shlex.join(arguments)}\n")
        kept.flush()
        process = caffe_tools.start(arguments, run.path)
        assert process.stdout is not None

        def lines() -> Iterator[str]:
            nonlocal tail
            for line in process.stdout:
                kept.write(line)
                kept.flush()
                tail = line.strip() or tail
                yield line

        with _passing_signals(process), _not_left_behind(process):
            for event in log.parse(lines()):
                events.append(event)
                stopped |= event.kind == "stopped_early"
                fatal = fatal or (event.text if event.kind == "fatal" else "")
                _note(progress, event, began)
                if event.kind in ("train_loss", "test_output") and not math.isfinite(event.value) and not diverged:
                    diverged = True
                    process.kill()
                if event.kind in ("testing", "snapshot"):
                    _write_curve(run, events)
                if watch:
                    with contextlib.suppress(Exception):  # a broken display never stops a training
                        watch(progress)
            code = process.wait()
    _write_curve(run, events)
    seconds = time.monotonic() - began
    last = next((snapshot for snapshot in snapshots.find(run.snapshots) if snapshot.iteration == max_iter), None)
    if diverged:
        return Outcome(
            "diverged", progress.iteration, "the loss is nan or inf. Lower solver.base_lr in the recipe.", seconds
        )
    if code == 0 and not stopped and last is not None and last.flaw() is None:
        return Outcome("finished", max_iter, "", seconds)
    if stopped:
        newest = snapshots.newest_complete(run.snapshots)
        at = newest.iteration if newest else progress.iteration
        return Outcome("interrupted", at, "stopped early; Caffe wrote a snapshot. Go on with --resume.", seconds)
    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
    return Outcome(
        "died",
        progress.iteration,
        f"caffe train: {how}: {fatal or tail or 'it printed nothing'}. The whole log: {run.caffe_log}",
        seconds,
    )


def _note(progress: Progress, event: log.Event, began: float) -> None:
    progress.event = event
    if event.kind == "train_loss" and event.iteration is not None:
        progress.iteration, progress.train_loss = event.iteration, event.value
        done, seconds = event.iteration - progress.started_at, time.monotonic() - began
        if done > 0:
            progress.iterations_per_s = done / seconds
    elif event.kind == "test_output" and event.text == "loss":
        progress.test_loss = event.value
    elif event.kind == "lr":
        progress.rate = event.value


def _earlier_events(run: RunDir) -> list[log.Event]:
    if not run.caffe_log.is_file():
        return []
    with open(run.caffe_log, encoding="utf-8", errors="replace") as lines:
        return list(log.parse(lines))


def _write_curve(run: RunDir, events: list[log.Event]) -> None:
    out = io.StringIO("iteration,phase,loss,rmse_months\n")
    out.seek(0, io.SEEK_END)
    for point in log.curve(events):
        out.write(f"{point.iteration},{point.phase},{point.loss:.9g},{point.rmse:.6g}\n")
    write_text(run.curve, out.getvalue())
