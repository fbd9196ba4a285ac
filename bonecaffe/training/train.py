"""Start, watch, stop and resume ``caffe train`` (paper II.3-4): check, write, drive, record.

A run is finished when Caffe exited with 0, was not stopped early, and the snapshot of the last iteration exists and is
complete. ``Optimization Done.`` alone proves nothing: Caffe prints it after Ctrl-C too. A refused training leaves the
run as it was.
"""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bonecaffe.caffe import environment, gpus, installation, snapshots
from bonecaffe.caffe.arithmetic import Arithmetic
from bonecaffe.errors import RunError, TrainError
from bonecaffe.files import make_folder, move, open_append, replacing
from bonecaffe.hands.cases import Case
from bonecaffe.network import definitions
from bonecaffe.prepare import outputs
from bonecaffe.prepare.prepare import adopt
from bonecaffe.recipe import Change, Recipe
from bonecaffe.records import Attempt, GivenWeights, Launch, State, Trained, outputs_of
from bonecaffe.run import RunDir, written_by
from bonecaffe.training import launch as launches
from bonecaffe.training import preflight
from bonecaffe.training.alarms import Alarms, Constant
from bonecaffe.training.drive import Outcome, Say, Watcher, drive, now, silent

__all__ = ["Outcome", "train"]


def train(
    run: RunDir,
    given_weights: Path | None = None,
    gpu: str | None = None,
    cpu: bool = False,
    resume: bool = False,
    watch: Watcher | None = None,
    say: Say = silent,
) -> Outcome | None:
    """Train a prepared run to the recipe's last iteration; None when that was done already.

    Raises TrainError, RunError, PreflightError or CaffeError with the reason when it cannot start; the run is then left
    unchanged. The Outcome reports how the training ended.
    """
    outputs.prepared_of(run)
    with run.lock("train") as lock:
        start = _check(run, given_weights, gpu, cpu, resume, say)
        if start is None:
            return None
        launch, begun = _write(run, start, say)
        return _drive(run, start, launch, begun, lock, watch, say)


# ---- check -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Start:
    """A training that may begin: recipe (as edited, as launched), weights or snapshot, GPUs, and its inputs' hashes."""

    recipe: Recipe
    edits: list[Change]
    launched: Recipe
    weights: GivenWeights | None
    weights_file: Path | None  # None when a snapshot or nothing is started from
    snapshot: snapshots.Snapshot | None
    gpus: str | None
    inputs: dict[str, str]
    edited: dict[str, dict[str, tuple[str, str]]]
    before: Trained | None

    @property
    def started_at(self) -> int:
        """The iteration it resumes from; 0 for a start."""
        return self.snapshot.iteration if self.snapshot else 0


def _check(run: RunDir, given: Path | None, gpu: str | None, cpu: bool, resume: bool, say: Say) -> Start | None:
    """Whether and how a training may begin; None when it is done already. Writes nothing."""
    if resume and given is not None:
        raise TrainError("--resume continues from a snapshot; --weights would be ignored. Give only one of them.")
    recipe, edits = _recipe(run)
    before = run.read().train
    gpus_used = launches.gpus_for(recipe, gpu, cpu, before)
    if changed := outputs.changed(run):
        raise TrainError(f"{run}: {', '.join(changed)}: not as prepare wrote it. Run prepare again to repair it.")
    weights = launches.given_weights(given) if given is not None else before.weights if resume and before else None
    launched = launches.as_launched(recipe, weights, gpus_used)
    plan = definitions.intend(run, launched)
    inputs = plan.inputs(outputs.prepared_of(run).key)
    earlier = snapshots.find(run.snapshots)
    if before and before.state is State.FINISHED and before.inputs == inputs and _complete(earlier, before.iteration):
        if weights is not None and (before.weights is None or before.weights.sha256 != weights.sha256):
            raise TrainError(
                f"{run}: trained already, {launches.start_of(before.weights)}; {given} holds other weights. "
                f"Prepare another run folder for them, or remove {run.snapshots} to discard this model."
            )
        for each in earlier:
            if each.iteration == before.iteration:
                _check_own(run, before, each.caffemodel)
        return None
    if earlier and not resume:
        raise TrainError(
            f"{run.snapshots}: holds snapshots up to iteration {earlier[-1].iteration} of an earlier training. "
            f"Continue it with --resume, or remove {run.snapshots} to start again."
        )
    snapshot = _to_resume(run, before, inputs, earlier, say) if resume else None
    if snapshot is None and given is None:
        launches.check_weights_given(recipe)
    installation.find().program("caffe")
    if snapshot is not None and run.caffe_log.exists():
        open_append(run.caffe_log).close()  # refused here, before anything is written or recorded
    return Start(recipe, edits, launched, weights, given, snapshot, gpus_used, inputs, plan.by_hand(), before)


def _recipe(run: RunDir) -> tuple[Recipe, list[Change]]:
    """The run's recipe, and its edits. Edits that would orphan a model or need another preparation are refused."""
    recipe, edits = run.recipe_as_edited()
    if edits and (run.holds_model() or any(edit.field.startswith(("data.", "preparation.")) for edit in edits)):
        run.recipe()  # raises with what was edited, and the remedy
    return recipe, edits


def _complete(found: list[snapshots.Snapshot], iteration: int) -> bool:
    return bool(found) and found[-1].iteration == iteration and found[-1].flaw() is None


def _to_resume(
    run: RunDir, before: Trained | None, inputs: dict[str, str], earlier: list[snapshots.Snapshot], say: Say
) -> snapshots.Snapshot:
    """The newest complete snapshot; TrainError when there is none, or when what it was trained on has changed."""
    if before is None and earlier:
        raise TrainError(
            f"{run.snapshots}: holds snapshots of a training that is not recorded here, so it is unknown what they "
            "were trained on. Resume in the run that they come from, or move them away and give their caffemodel with "
            "--weights."
        )
    if before is not None and before.inputs != inputs:
        changed = ", ".join(name for name in inputs if inputs[name] != before.inputs.get(name))
        raise TrainError(
            f"{run}: {changed} changed since the training that would be resumed. Start again in another run folder."
        )
    snapshot = snapshots.newest_complete(run.snapshots)
    if snapshot is None and not earlier:
        raise TrainError(f"{run.snapshots}: no complete snapshot to resume from. Train without --resume.")
    if snapshot is None:
        raise TrainError(
            f"{run.snapshots}: no complete snapshot to resume from. Remove {run.snapshots} and train again."
        )
    for each in earlier:
        flaw = each.flaw()
        if flaw and each.iteration > snapshot.iteration:
            say(f"skipped an incomplete snapshot: {flaw}")
        if before is not None and not each.model_flaw():  # at the end all are recorded as its own
            _check_own(run, before, each.caffemodel)
            if not flaw:
                _check_own(run, before, each.solverstate)
    return snapshot


def _check_own(run: RunDir, before: Trained, file: Path) -> None:
    """TrainError for a snapshot's file that the recorded training did not write."""
    if not written_by(run, before, file):
        raise TrainError(f"{file}: not as the recorded training wrote it. Restore it, or move it out of the run.")


# ---- write -------------------------------------------------------------------------------------------------------


def _write(run: RunDir, start: Start, say: Say) -> tuple[Launch, str]:
    """Write what Caffe will read, check it, and move it into place.

    Returns the call, and what it starts from, as text. PreflightError when Caffe would abort or train wrongly; the run
    is then left unchanged.
    """
    with definitions.staged(run, start.launched) as staging, contextlib.ExitStack() as stack:
        for name in staging.edited:
            say(f"{name} was edited by hand and is used unchanged")
        staged = dict(staging.files)
        begun = "from random weights (the fillers of the net), without pretrained ones"
        if start.snapshot is not None:
            begun = f"resumed from iteration {start.snapshot.iteration}"
        elif start.weights_file is not None:
            staged[run.init_weights.name] = temporary = stack.enter_context(replacing(run.init_weights))
            begun = launches.init_weights(start.weights_file, temporary, start.launched)
        say(begun)
        launch = _launch(run, start)
        report = preflight.examine(run, launch, staged)
        report.raise_if_any(run)
        if launch.gpus is None:
            preflight.check_is_for_cpu(run, staged)
        if report.copied:
            say(f"weights: copied {' '.join(report.copied)}; from fillers {' '.join(report.fresh) or 'none'}")
        for edit in start.edits:
            say(f"{run.recipe_file.name} was edited: {edit}")
        adopt(run, start.recipe)
    make_folder(run.snapshots)
    if start.snapshot is None:
        _set_aside(run.caffe_log)
    else:
        _say_rate(run, start.started_at, say)
    return launch, begun


def _launch(run: RunDir, start: Start) -> Launch:
    snapshot = run.name_of(start.snapshot.solverstate) if start.snapshot else None
    weights = run.init_weights.name if start.weights_file is not None else None
    return Launch(weights=weights, snapshot=snapshot, gpus=start.gpus)


def _set_aside(log_file: Path) -> None:
    """Keep the log of an earlier training under another name: caffe.log.1, caffe.log.2, …"""
    if log_file.exists():
        names = (log_file.with_name(f"{log_file.name}.{number}") for number in itertools.count(1))
        move(log_file, next(name for name in names if not name.exists()))


# ---- drive and record --------------------------------------------------------------------------------------------


def _drive(
    run: RunDir, start: Start, launch: Launch, begun: str, lock: int, watch: Watcher | None, say: Say
) -> Outcome:
    """Run Caffe to its end, recorded before and after."""
    say(f"in {run}: {launch}")
    course = launches.schedule(run, launch.gpus)
    by = environment.describe()
    before = start.before
    attempt = Attempt(
        command=str(launch),
        start=begun,
        at=now(),
        by=by,
        started_at=start.started_at,
        gpus=gpus.count(launch.gpus) if launch.gpus is not None else 0,
        arithmetic=Arithmetic.read().words(installation.find().is_own_build) if launch.gpus is not None else "",
    )
    record = Trained(
        inputs=start.inputs,
        **_kept(run, before, start.snapshot),
        by=by,
        state=State.RUNNING,
        iteration=start.started_at,
        weights=start.weights,
        launch=launch,
        files=definitions.files_in_use(run),
        edited=start.edited,
        attempts=(*_ended(before.attempts if before else ()), attempt),
    )
    try:
        run.record(record)
        outcome = drive(run, course, launch, start.started_at, lock, _alarms(run, course), watch, say)
    except BaseException as error:  # Caffe was stopped; record why, then re-raise
        with contextlib.suppress(RunError, OSError):
            died = attempt.model_copy(update={"state": State.DIED, "why": f"the driver failed: {type(error).__name__}"})
            run.record(_with_last(record, died, state=State.DIED, **outputs_of(run.path, _left(run))))
        raise
    ended = attempt.model_copy(
        update={
            "state": outcome.state,
            "iteration": outcome.iteration,
            "seconds": round(outcome.seconds, 1),
            "why": outcome.why,
            "alarms": outcome.alarms,
        }
    )
    try:
        left = outputs_of(run.path, _left(run))
        run.record(_with_last(record, ended, state=outcome.state, iteration=outcome.iteration, **left))
    except OSError as error:
        why = f" ({outcome.why})" if outcome.why else ""
        raise TrainError(
            f"{run}: {outcome.state} at iteration {outcome.iteration}{why}, but this could not be recorded: "
            f"{error.strerror}. The snapshots are kept. Free some space, and record it with: "
            f"bonecaffe train {run} --resume"
        ) from error
    return outcome


def _kept(run: RunDir, before: Trained | None, snapshot: snapshots.Snapshot | None) -> dict[str, Any]:
    """The outputs that remain valid when a training resumes: the snapshots so far, and the initial weights.

    `_to_resume` has checked that they are the run's own. All others will be written again.
    """
    if before is None or snapshot is None:
        return {"outputs": {}, "stamps": {}}
    own = [each for each in snapshots.find(run.snapshots) if each.iteration <= snapshot.iteration and not each.flaw()]
    files = [file for each in own for file in (each.caffemodel, each.solverstate)]
    return outputs_of(run.path, [*files, run.init_weights], before.outputs)


def _with_last(record: Trained, attempt: Attempt, **facts: object) -> Trained:
    return record.model_copy(update={**facts, "attempts": (*record.attempts[:-1], attempt)})


def _say_rate(run: RunDir, iteration: int, say: Say) -> None:
    rate = preflight.schedule(run).rate_at(iteration)
    if rate is not None:
        say(f"learning rate at iteration {iteration}: {rate:g}")


def _ended(attempts: tuple[Attempt, ...]) -> list[Attempt]:
    """Earlier attempts; one without a recorded end was killed together with its driver."""
    killed = {"state": State.KILLED, "why": "the driver was killed, so the end was not recorded"}
    return [attempt if attempt.state is not None else attempt.model_copy(update=killed) for attempt in attempts]


def _alarms(run: RunDir, course: preflight.Schedule) -> Alarms:
    def ages(cases: list[Case]) -> list[float]:
        return [case.boneage_months for case in cases]

    split = outputs.split_of(run)
    patience = max(5 * course.test_interval, course.max_iter // 5)
    constant = Constant.of(ages(split["train"]), ages(split["test"]))
    return Alarms.of_training(constant, patience, run.snapshots, course.snapshot_bytes)


def _left(run: RunDir) -> list[Path]:
    """The files that a training leaves: snapshots, initial weights, log, curve."""
    kept = (path for snapshot in snapshots.find(run.snapshots) for path in (snapshot.caffemodel, snapshot.solverstate))
    return [*kept, run.init_weights, run.caffe_log, run.curve]
