"""Start, watch, stop and resume ``caffe train`` (paper II.3-4).

A run is finished when Caffe exited 0, had not been stopped early, and the snapshot of the last iteration is there
and complete. ``Optimization Done.`` alone says nothing: Caffe prints it after Ctrl-C too.
"""

from __future__ import annotations

import contextlib
import io
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

from bonecaffe import __version__, caffe_tools
from bonecaffe.errors import CaffeError, TrainError
from bonecaffe.network import mean, preflight, prototxt, weights
from bonecaffe.recipe import Recipe
from bonecaffe.run import SPLITS, RunDir, sha256, sha256_file, write_text
from bonecaffe.training import log, snapshots

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


# ---- before it starts ------------------------------------------------------------------------------------------


def write_prototxts(run: RunDir, recipe: Recipe) -> list[str]:
    """Write the three files of a run; a file edited by hand since we wrote it is kept. Return the names kept."""
    written = run.manifest().get("prototxt", {})
    texts = {
        run.train_val: prototxt.train_val(recipe),
        run.solver: prototxt.solver(recipe, f"{run.snapshots.name}/{recipe.solver.snapshot_prefix}"),
        run.deploy: prototxt.deploy(recipe),
    }
    kept = [
        path.name
        for path in texts
        if path.is_file() and sha256_file(path) not in (written.get(path.name), sha256(texts[path]))
    ]
    for path, content in texts.items():
        if path.name not in kept:
            write_text(path, content)
    facts = {path.name: sha256(content) for path, content in texts.items()}
    run.record("prototxt", {**facts, "mean": _write_mean(run, recipe, written.get("mean", {}))})
    return kept


def _write_mean(run: RunDir, recipe: Recipe, before: dict[str, str]) -> dict[str, str]:
    """Have the run's mean image in place, made anew only when the recipe's mean or the images changed."""
    facts = {"mean": recipe.network.mean, "words": mean.words(recipe), "prepare": _prepared_key(run)}
    if not mean.needs_file(recipe):
        return facts
    stands = run.mean_file.is_file() and before == {**facts, "sha256": sha256_file(run.mean_file)}
    if not stands or recipe.network.mean != "dataset":
        mean.write(run, recipe)
    return {**facts, "sha256": sha256_file(run.mean_file)}


def _prepared_key(run: RunDir) -> str:
    return run.manifest().get("prepare", {}).get("key", "")


def compute_with(run: RunDir, recipe: Recipe, gpu: str | None, cpu: bool) -> tuple[Recipe, list[str]]:
    """The recipe with the solver mode asked for, and Caffe's ``--gpu`` argument.

    Raises CaffeError when a GPU is wanted of a build without one.
    """
    if cpu and gpu is not None:
        raise TrainError("--cpu and --gpu exclude each other.")
    if cpu:
        recipe = recipe.with_values({"solver.solver_mode": "CPU"}, "train --cpu: computed without a GPU")
    elif gpu is not None:
        recipe = recipe.with_values({"solver.solver_mode": "GPU"}, f"train --gpu {gpu}")
    if recipe.solver.solver_mode == "CPU":
        return recipe, []
    gpu = gpu if gpu is not None else "0"
    if problem := preflight.gpu_problem(gpu):
        raise CaffeError(problem)
    return recipe, ["--gpu", gpu]


def _initial_weights(run: RunDir, recipe: Recipe, given: Path | None) -> tuple[list[str], str]:
    """Write init.caffemodel when weights are given; Caffe's ``--weights`` argument and what was done."""
    if given is None:
        if recipe.training.initial_weights == "imagenet":
            raise TrainError(
                "the recipe starts from the ImageNet weights (paper II.3), and no --weights were given. Fetch them with "
                "scripts/fetch_caffenet.py and give the file, or use a recipe with training.initial_weights: none."
            )
        return [], "from the fillers, without pretrained weights"
    net = recipe.network
    said = weights.initial_weights(given, run.init_weights, net.fc8_name, (net.fc8_outputs, net.fc_outputs[1]))
    return ["--weights", run.init_weights.name], said


def _plan(start: list[str], gpu: list[str]) -> preflight.Plan:
    given = {option.removeprefix("--"): value for option, value in zip(*[iter([*start, *gpu])] * 2, strict=True)}
    paths = {name: Path(given[name]) for name in ("weights", "snapshot") if name in given}
    return preflight.Plan(gpu=given.get("gpu"), **paths)


def command(run: RunDir, gpu: list[str], start: list[str]) -> list[str]:
    """The paper's command line: ``caffe train --solver solver.prototxt --weights … --gpu 0``, run in the run folder."""
    return [str(caffe_tools.find().program("caffe")), "train", "--solver", run.solver.name, *start, *gpu]


def _state_of_inputs(run: RunDir) -> dict[str, str]:
    """Hashes of what a training depends on, for `train` to tell whether it stands."""
    files = {"train_val": run.train_val, "solver": run.solver}
    return {"prepare": _prepared_key(run), **{name: sha256_file(path) for name, path in files.items()}}


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
    recipe, gpu_arguments = compute_with(run, run.recipe(), gpu, cpu)
    if "prepare" not in run.manifest() or not all((run.lmdb(split) / "data.mdb").is_file() for split in SPLITS):
        raise TrainError(f"{run}: not prepared. Start with: bonecaffe prepare {run} …")
    if given_weights is not None and not given_weights.is_file():
        raise TrainError(f"{given_weights}: no such file of weights.")
    with run.lock("train"):
        if recipe != run.recipe():
            run.write_recipe(recipe)
        for name in write_prototxts(run, recipe):
            say(f"{name} was edited by hand and is used as it is")
        inputs = _state_of_inputs(run)
        before = run.manifest().get("train", {})
        earlier = snapshots.find(run.snapshots)
        if (
            before.get("state") == "finished"
            and before.get("inputs") == inputs
            and earlier
            and earlier[-1].flaw() is None
        ):
            return None
        if earlier and not resume:
            raise TrainError(
                f"{run.snapshots}: holds snapshots up to iteration {earlier[-1].iteration} of an earlier training. "
                f"Go on from there with --resume, or remove {run.snapshots} and {run.caffe_log.name} to start anew."
            )
        if resume:
            if before.get("inputs") not in (None, inputs):
                changed = ", ".join(name for name in inputs if inputs[name] != before["inputs"].get(name))
                raise TrainError(
                    f"{run}: {changed} changed since the training that would be resumed. Start anew in another run folder."
                )
            snapshot = snapshots.newest_complete(run.snapshots)
            if snapshot is None:
                raise TrainError(
                    f"{run.snapshots}: no complete snapshot to resume from. Remove {run.snapshots} and train anew."
                )
            start, said, started_at = (
                ["--snapshot", os.path.relpath(snapshot.solverstate, run.path)],
                f"resumed from iteration {snapshot.iteration}",
                snapshot.iteration,
            )
            for newer in earlier:
                if newer.iteration > snapshot.iteration:
                    say(f"passed over an incomplete snapshot: {newer.flaw()}")
        else:
            start, said = _initial_weights(run, recipe, given_weights)
            started_at = 0
        say(said)
        report = preflight.examine(run, _plan(start, gpu_arguments))
        report.raise_if_any(run)
        if report.copied:
            say(f"weights: copied {' '.join(report.copied)}; fresh {' '.join(report.fresh) or 'none'}")
        run.snapshots.mkdir(exist_ok=True)
        arguments = command(run, gpu_arguments, start)
        say(f"in {run}: {shlex.join(['caffe', *arguments[1:]])}")
        facts = {
            "state": "running",
            "inputs": inputs,
            "attempts": [
                *before.get("attempts", []),
                {"command": shlex.join(["caffe", *arguments[1:]]), "start": said, "at": _now()},
            ],
        }
        run.record("train", facts)
        outcome = _drive(run, recipe, arguments, started_at, watch)
        facts["attempts"][-1].update(
            state=outcome.state, iteration=outcome.iteration, seconds=round(outcome.seconds, 1), why=outcome.why
        )
        run.record(
            "train",
            {
                **facts,
                "state": outcome.state,
                "iteration": outcome.iteration,
                "bonecaffe": __version__,
                "caffe": caffe_tools.find().build,
            },
        )
        return outcome


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@contextlib.contextmanager
def _passing_signals(process: subprocess.Popen[str]) -> Iterator[None]:
    """Pass the first SIGINT or SIGTERM to Caffe as SIGINT, so that it snapshots and stops; a second one kills it."""
    count = 0

    def handle(number: int, frame: object) -> None:
        nonlocal count
        count += 1
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGINT if count == 1 else signal.SIGKILL)

    try:
        before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread
        before = {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _drive(run: RunDir, recipe: Recipe, arguments: list[str], started_at: int, watch: Watcher | None) -> Outcome:
    """Run Caffe to its end: log kept whole, events to the watcher, curve.csv renewed at each test."""
    progress = Progress(recipe.solver.max_iter, started_at, iteration=started_at)
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

        with _passing_signals(process):
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
    last = next(
        (snapshot for snapshot in snapshots.find(run.snapshots) if snapshot.iteration == recipe.solver.max_iter), None
    )
    if diverged:
        return Outcome(
            "diverged", progress.iteration, "the loss is nan or inf. Lower solver.base_lr in the recipe.", seconds
        )
    if code == 0 and not stopped and last is not None and last.flaw() is None:
        return Outcome("finished", recipe.solver.max_iter, "", seconds)
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
