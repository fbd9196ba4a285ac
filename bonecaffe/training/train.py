"""Start, watch, stop and resume ``caffe train`` (paper II.3-4).

A run is finished when Caffe exited 0, had not been stopped early, and the snapshot of the last iteration is there
and complete. ``Optimization Done.`` alone says nothing: Caffe prints it after Ctrl-C too.
"""

from __future__ import annotations

import itertools
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bonecaffe.caffe import environment, installation, snapshots
from bonecaffe.errors import TrainError
from bonecaffe.files import sha256_file
from bonecaffe.hands.cases import Case
from bonecaffe.prepare import outputs
from bonecaffe.run import SPLITS, RunDir
from bonecaffe.training import launch, preflight
from bonecaffe.training.alarms import Alarms, Constant
from bonecaffe.training.drive import Outcome, Progress, Watcher, drive, now

__all__ = ["Outcome", "Progress", "Watcher", "state", "train"]


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
    recipe, gpu_arguments = launch.compute_with(run.recipe(), gpu, cpu)
    if "prepare" not in run.manifest() or not all((run.lmdb(split) / "data.mdb").is_file() for split in SPLITS):
        raise TrainError(f"{run}: not prepared. Start with: bonecaffe prepare {run} …")
    if resume and given_weights is not None:
        raise TrainError("--resume goes on from a snapshot; --weights would be ignored. Give one of them.")
    if given_weights is not None:
        recipe = launch.declare_weights(recipe, given_weights)
    with run.lock("train") as lock:
        if spoiled := outputs.changed(run):
            raise TrainError(f"{run}: {', '.join(spoiled)}: not as prepare wrote it. Run prepare again.")
        before = run.manifest().get("train", {})
        wanted = launch.intended(run, recipe)
        earlier = snapshots.find(run.snapshots)
        complete = bool(earlier) and earlier[-1].iteration == before.get("iteration") and earlier[-1].flaw() is None
        if before.get("state") == "finished" and before.get("inputs") == wanted and complete:
            return None
        if earlier and not resume:
            raise TrainError(
                f"{run.snapshots}: holds snapshots up to iteration {earlier[-1].iteration} of an earlier training. "
                f"Go on from there with --resume, or remove {run.snapshots} to start anew."
            )
        snapshot = _to_resume(run, before, wanted, earlier, say) if resume else None
        if snapshot is not None:
            recipe = recipe.keeping(run.trained_recipe(), ["training.initial_weights"])
        # nothing was written so far; from here on the run is this training's
        if recipe != run.recipe():
            run.write_recipe(recipe)
        for name in launch.write_prototxts(run, recipe):
            say(f"{name} was edited by hand and is used as it is")
        if snapshot is not None:
            start = ["--snapshot", os.path.relpath(snapshot.solverstate, run.path)]
            said, started_at = f"resumed from iteration {snapshot.iteration}", snapshot.iteration
            _say_rate(run, started_at, say)
        else:
            start, said = launch.initial_weights(run, recipe, given_weights)
            started_at = 0
        say(said)
        report = preflight.examine(run, launch.plan(start, gpu_arguments))
        report.raise_if_any(run)
        if report.copied:
            say(f"weights: copied {' '.join(report.copied)}; fresh {' '.join(report.fresh) or 'none'}")
        run.snapshots.mkdir(exist_ok=True)
        if snapshot is None:
            _set_aside(run.caffe_log)
        arguments = command(run, gpu_arguments, start)
        shown = shlex.join(["caffe", *arguments[1:]])
        say(f"in {run}: {shown}")
        schedule = launch.schedule(run, gpu_arguments)
        attempt = {"command": shown, "start": said, "at": now(), "by": environment.describe()}
        facts = {
            "state": "running",
            "inputs": wanted,
            "files": launch.files_in_use(run),
            "recipe": recipe.to_yaml(),
            "outputs": before.get("outputs", {}),
            "weights_sha256": sha256_file(given_weights) if given_weights else before.get("weights_sha256", ""),
            "attempts": [*_ended(before.get("attempts", [])), attempt],
        }
        run.record("train", facts)
        try:
            outcome = drive(run, schedule, arguments, started_at, lock, _alarms(run, schedule), watch, say)
        except BaseException as error:  # Caffe was stopped; say by what before it goes on
            attempt.update(state="died", why=f"the driver failed: {type(error).__name__}")
            run.record("train", {**facts, "state": "died", "iteration": started_at})
            raise
        attempt.update(
            state=outcome.state,
            iteration=outcome.iteration,
            seconds=round(outcome.seconds, 1),
            why=outcome.why,
            alarms=list(outcome.alarms),
        )
        facts.update(state=outcome.state, iteration=outcome.iteration, outputs=_left_behind(run))
        run.record("train", facts)
        return outcome


def state(run: RunDir) -> str:
    """Where a run stands: ``empty``, ``prepared``, ``training``, or how its last training ended.

    A training that was recorded as running while nothing holds the run was killed, and its driver with it.
    """
    manifest = run.manifest()
    facts = manifest.get("train", {})
    said = facts.get("state")
    if said == "running":
        return "training" if run.holder().startswith("bonecaffe train") else "killed"
    if said == "finished" and facts.get("iteration") not in {s.iteration for s in snapshots.find(run.snapshots)}:
        return "last model gone"
    return said or ("prepared" if "prepare" in manifest else "empty")


def command(run: RunDir, gpu: list[str], start: list[str]) -> list[str]:
    """The paper's command line: ``caffe train --solver solver.prototxt --weights … --gpu 0``, run in the run folder."""
    return [str(installation.find().program("caffe")), "train", "--solver", run.solver.name, *start, *gpu]


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


def _say_rate(run: RunDir, iteration: int, say: Callable[[str], None]) -> None:
    rate = preflight.schedule(run).rate_at(iteration)
    if rate is not None:
        say(f"learning rate in force at iteration {iteration}: {rate:g}")


def _ended(attempts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Earlier attempts; one whose end nobody recorded was killed together with its driver."""
    unseen = {"state": "killed", "why": "the driver was killed; nobody saw the end"}
    return [attempt if "state" in attempt else {**attempt, **unseen} for attempt in attempts]


def _alarms(run: RunDir, schedule: preflight.Schedule) -> Alarms:
    def ages(cases: list[Case]) -> list[float]:
        return [case.boneage_months for case in cases]

    split = outputs.split_of(run)
    patience = max(5 * schedule.test_interval, schedule.max_iter // 5)
    constant = Constant.of(ages(split["train"]), ages(split["test"]))
    return Alarms.of_training(constant, patience, run.snapshots, schedule.snapshot_bytes)


def _left_behind(run: RunDir) -> dict[str, str]:
    """Hashes of what the training left behind: snapshots, initial weights, log, curve."""
    kept = (path for snapshot in snapshots.find(run.snapshots) for path in (snapshot.caffemodel, snapshot.solverstate))
    files = [*kept, run.init_weights, run.caffe_log, run.curve]
    return {str(path.relative_to(run.path)): sha256_file(path) for path in files if path.is_file()}
