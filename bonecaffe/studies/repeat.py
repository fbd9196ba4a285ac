"""The same recipe over several seeds of split and initialization, or over the folds of a cross-validation.

Each seed is a separate run, OUT/seed-N, and each fold is OUT/fold-K; a finished one is not run again. They run one
after the other, or with Dask distributed on the workers of a cluster with a shared file system (``pip install
'bonecaffe[cluster]'``). `results` evaluates them, `spread` has the statistics.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

from bonecaffe.caffe import snapshots
from bonecaffe.errors import BonecaffeError, RepeatError, RepeatInterrupted
from bonecaffe.evaluation.evaluate import hands_of, predict_and_evaluate
from bonecaffe.evaluation.predictions import read_predictions
from bonecaffe.files import remove
from bonecaffe.hands.cases import range_of
from bonecaffe.hands.images import dicom_ids
from bonecaffe.network.definitions import intend
from bonecaffe.prepare.outputs import split_of
from bonecaffe.prepare.prepare import prepare
from bonecaffe.records import GivenWeights, State
from bonecaffe.run import RunDir
from bonecaffe.studies.repetition import HandTested, Repetition, Result
from bonecaffe.training.drive import Watcher
from bonecaffe.training.launch import as_launched, departures, given_weights, gpus_for, start_of
from bonecaffe.training.train import train

WAIT_S = 300.0
"""Seconds that a seed waits for the Caffe of a killed worker, which is still writing its snapshot."""
RETRIES = 3
"""How often a cluster retries a seed whose worker was lost."""


def one(
    plan: Repetition, number: int, watch: Watcher | None = None, say: Callable[[str], None] = lambda sentence: None
) -> Result:
    """Prepare, train and evaluate one seed or fold; completed steps are not repeated.

    Raises a BonecaffeError when it cannot be done, or when Caffe died or was killed (a retry may then succeed).
    """
    run = plan.run_of(number)
    if run.path.is_dir():
        with run.lock("repeat", WAIT_S):  # held by the Caffe of a killed worker
            pass
    workers = None if plan.cpu else 1
    recipe = plan.recipe_for(number)
    with dicom_ids(plan.dicom_id):
        prepare(run, plan.images, plan.ages, plan.points, recipe, workers=workers, ages_in=plan.ages_in)
    weights = _check_weights(run, plan)
    if (iteration := _diverged_before(run, plan, weights)) is not None:
        return Result(number=number, state=State.DIVERGED, iteration=iteration)
    if _start_again(run):
        say(f"no complete snapshot in {run.snapshots}; trained again")
    resume = bool(snapshots.find(run.snapshots)) and run.state() is not State.FINISHED
    outcome = train(run, None if resume else plan.weights, plan.gpu, plan.cpu, resume, watch, say)
    if outcome is not None and outcome.state is State.DIVERGED:
        return Result(number=number, state=State.DIVERGED, iteration=outcome.iteration)
    if outcome is not None and outcome.state is State.INTERRUPTED:
        raise RepeatInterrupted(f"{run}: interrupted at iteration {outcome.iteration}. Call repeat again to continue.")
    if outcome is not None and outcome.state is not State.FINISHED:
        raise RepeatError(f"{run}: {outcome.state} at iteration {outcome.iteration}: {outcome.why}")
    with run.lock("evaluate"):
        evaluation = predict_and_evaluate(run)
        hands, outside = _tested(run)
    fit, test = evaluation.splits["train"], evaluation.splits["test"]
    return Result(
        number=number,
        state=State.FINISHED,
        iteration=evaluation.iteration,
        train_mad=fit.mad_months,
        train_ccc=fit.ccc,
        test_mad=test.mad_months,
        test_ccc=test.ccc,
        test_max=test.max_error_months,
        outside=outside,
        phantoms=hands_of(run).phantoms,
        departures=len(departures(run)),
        word=evaluation.verdict.word,
        hands=hands,
    )


def _tested(run: RunDir) -> tuple[tuple[HandTested, ...], int]:
    """The test hands of a run with their predictions, and how many are outside the age range of the training."""
    split = split_of(run)
    predicted = read_predictions(run, "test").set_index("id")["predicted_months"]
    hands = tuple(
        HandTested(case.id, case.boneage_months, float(predicted[case.id]), case.male, case.group)
        for case in split["test"]
    )
    youngest, oldest = range_of(split["train"])
    return hands, sum(not youngest <= hand.boneage_months <= oldest for hand in hands)


def _check_weights(run: RunDir, plan: Repetition) -> GivenWeights | None:
    """The plan's weights, if the run was trained; RepeatError when that training started from other weights."""
    trained = run.read().train
    if trained is None:
        return None
    weights = given_weights(plan.weights) if plan.weights is not None else None
    before, now = (each.sha256 if each else None for each in (trained.weights, weights))
    if before != now:
        started, requested = map(start_of, (trained.weights, weights))
        raise RepeatError(f"{run}: was trained {started}; this repeat would train {requested}. Give another --out.")
    return weights


def _diverged_before(run: RunDir, plan: Repetition, weights: GivenWeights | None) -> int | None:
    """The iteration at which this very training diverged before; None when it did not."""
    trained = run.read().train
    if trained is None or trained.state is not State.DIVERGED:
        return None
    recipe = as_launched(run.recipe(), weights, gpus_for(run.recipe(), plan.gpu, plan.cpu))
    same = intend(run, recipe).inputs(trained.inputs["prepare"]) == trained.inputs
    return trained.iteration if same else None


def _start_again(run: RunDir) -> bool:
    """Remove the snapshots of a run when none of them is complete; return whether any were removed."""
    if not snapshots.find(run.snapshots) or snapshots.newest_complete(run.snapshots) is not None:
        return False
    remove(run.snapshots)
    return True


def in_sequence(
    plan: Repetition,
    numbers: list[int],
    watch: Watcher | None = None,
    say: Callable[[str], None] = lambda sentence: None,
) -> Iterator[Result]:
    """One seed or fold after the other, on this machine."""
    for count, number in enumerate(numbers, start=1):
        say(f"{plan.kind} {number} ({count} of {len(numbers)})")
        yield one(plan, number, watch, say)


def on_cluster(
    plan: Repetition, numbers: list[int], scheduler: str, say: Callable[[str], None] = lambda sentence: None
) -> Iterator[Result]:
    """The seeds or folds on the workers of a Dask cluster, as they finish; another worker retries a lost worker's.

    Raises RepeatError when Dask is not installed, or the scheduler cannot be reached.
    """
    try:
        from distributed import Client, as_completed
    except ImportError:
        raise RepeatError("--scheduler needs Dask distributed: pip install 'bonecaffe[cluster]'.") from None
    try:
        client = Client(scheduler, timeout=30)
    except (OSError, ValueError, TimeoutError) as error:
        raise RepeatError(f"--scheduler {scheduler}: not reached: {error}. Start one with: dask scheduler") from error
    with client:
        say(f"{len(client.scheduler_info()['workers'])} workers at {scheduler}")
        futures = client.map(
            functools.partial(one, plan), numbers, retries=RETRIES, pure=False, key=f"bonecaffe-{plan.kind}"
        )
        try:
            for future in as_completed(futures):
                try:
                    yield future.result()
                except BonecaffeError:
                    raise
                except Exception as error:  # lost workers, another version of Python there, …
                    raise RepeatError(f"--scheduler {scheduler}: {type(error).__name__}: {error}") from error
        finally:
            client.cancel(futures)
