"""The same recipe over several seeds of split and initialization, to tell a difference from the paper from luck.

Each seed is a run of its own, OUT/seed-N, and does nothing that stands done already. Seeds are run one after the
other, or by Dask distributed on the workers of a cluster that share the file system (``pip install
'bonecaffe[cluster]'``).
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from bonecaffe.caffe import snapshots
from bonecaffe.errors import BonecaffeError, RepeatError, RepeatInterrupted
from bonecaffe.evaluation.evaluate import predict_and_evaluate
from bonecaffe.evaluation.metrics import PAPER
from bonecaffe.files import remove, sha256, sha256_file, table_text, write_text
from bonecaffe.hands.cases import AgeUnit
from bonecaffe.network.definitions import intend
from bonecaffe.prepare.prepare import prepare
from bonecaffe.recipe import Recipe
from bonecaffe.records import GivenWeights, State
from bonecaffe.run import RunDir
from bonecaffe.training.drive import Watcher
from bonecaffe.training.launch import as_launched, given_weights, gpus_for, start_of
from bonecaffe.training.train import train
from bonecaffe.trees import read_json

WAIT_S = 300.0
"""How long a seed waits for a Caffe that a killed worker left finishing its snapshot."""
RETRIES = 3
"""How often a cluster tries a seed again whose worker was lost."""


@dataclass(frozen=True)
class Repetition:
    """What is repeated; paths are absolute, so that every worker finds them."""

    out: Path
    recipe: str  # YAML, complete
    images: Path
    ages: Path
    points: Path
    weights: Path | None = None
    gpu: str | None = None
    cpu: bool = False
    ages_in: AgeUnit | None = None

    def recipe_for(self, seed: int) -> Recipe:
        """The recipe of a seed."""
        return Recipe.parse(self.recipe, "the recipe to repeat").with_values(
            {"data.split_seed": seed, "solver.random_seed": seed}, f"repeat: seed {seed} of split and initialization"
        )

    def key(self) -> str:
        """What is repeated, as a hash: recipe, ages, points and weights, wherever they lie."""
        files = (self.ages, self.points, *([self.weights] if self.weights else []))
        try:
            years = ["ages in years"] if self.ages_in == "years" else []
            return sha256("".join([self.recipe, *map(sha256_file, files), *years]))
        except OSError as error:
            raise RepeatError(f"{error.filename}: {error.strerror}.") from error


@dataclass(frozen=True)
class Result:
    """What became of a seed; figures in months, None unless it finished."""

    seed: int
    state: str
    iteration: int
    train_mad: float | None = None
    train_ccc: float | None = None
    test_mad: float | None = None
    test_ccc: float | None = None
    test_max: float | None = None


def one(
    plan: Repetition, seed: int, watch: Watcher | None = None, say: Callable[[str], None] = lambda sentence: None
) -> Result:
    """Prepare, train and evaluate one seed, from wherever it stands.

    Raises a BonecaffeError when it cannot be done, or when Caffe died or was killed (it may be tried again).
    """
    run = RunDir(plan.out / f"seed-{seed}")
    if run.path.is_dir():
        with run.lock("repeat", WAIT_S):  # of a Caffe that a killed worker left
            pass
    workers = None if plan.cpu else 1
    prepare(run, plan.images, plan.ages, plan.points, plan.recipe_for(seed), workers=workers, ages_in=plan.ages_in)
    weights = _check_weights(run, plan)
    if (iteration := _diverged_before(run, plan, weights)) is not None:
        return Result(seed, State.DIVERGED, iteration)
    if _start_again(run):
        say(f"no complete snapshot in {run.snapshots}; trained again")
    resume = bool(snapshots.find(run.snapshots)) and run.state() is not State.FINISHED
    outcome = train(run, None if resume else plan.weights, plan.gpu, plan.cpu, resume, watch, say)
    if outcome is not None and outcome.state is State.DIVERGED:
        return Result(seed, State.DIVERGED, outcome.iteration)
    if outcome is not None and outcome.state is State.INTERRUPTED:
        raise RepeatInterrupted(f"{run}: interrupted at iteration {outcome.iteration}. Call repeat again to go on.")
    if outcome is not None and outcome.state is not State.FINISHED:
        raise RepeatError(f"{run}: {outcome.state} at iteration {outcome.iteration}: {outcome.why}")
    with run.lock("evaluate"):
        evaluation = predict_and_evaluate(run)
    fit, test = evaluation.splits["train"], evaluation.splits["test"]
    return Result(
        seed,
        State.FINISHED,
        evaluation.iteration,
        fit.mad_months,
        fit.ccc,
        test.mad_months,
        test.ccc,
        test.max_error_months,
    )


def _check_weights(run: RunDir, plan: Repetition) -> GivenWeights | None:
    """The plan's weights, where there is a training; RepeatError when it started from others: seeds of two kinds."""
    trained = run.read().train
    if trained is None:
        return None
    weights = given_weights(plan.weights) if plan.weights is not None else None
    before, now = (each.sha256 if each else None for each in (trained.weights, weights))
    if before != now:
        started, asked = map(start_of, (trained.weights, weights))
        raise RepeatError(f"{run}: was trained {started}, and is asked for {asked}. Give another --out.")
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
    """Remove the snapshots of a run when none of them is complete; whether there were any."""
    if not snapshots.find(run.snapshots) or snapshots.newest_complete(run.snapshots) is not None:
        return False
    remove(run.snapshots)
    return True


def in_sequence(
    plan: Repetition, seeds: list[int], watch: Watcher | None = None, say: Callable[[str], None] = lambda sentence: None
) -> Iterator[Result]:
    """One seed after the other, here."""
    for number, seed in enumerate(seeds, start=1):
        say(f"seed {seed} ({number} of {len(seeds)})")
        yield one(plan, seed, watch, say)


def on_cluster(
    plan: Repetition, seeds: list[int], scheduler: str, say: Callable[[str], None] = lambda sentence: None
) -> Iterator[Result]:
    """The seeds on the workers of a Dask cluster, as they finish; a lost worker's seed goes on with another.

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
        futures = client.map(functools.partial(one, plan), seeds, retries=RETRIES, pure=False, key="bonecaffe-seed")
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


# ---- the spread ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spread:
    """A figure over the seeds: mean, standard deviation (over n - 1), extremes, and where one more run would lie."""

    figure: str
    seeds: int
    mean: float
    sd: float
    lowest: float
    highest: float
    next_run_95: tuple[float, float] | None
    """The 95 % prediction interval for a single further run, were runs normal; None for fewer than three seeds."""
    paper: float

    @property
    def told_from_luck(self) -> bool | None:
        """Whether the paper's figure lies outside of that interval; None where there is none."""
        return None if self.next_run_95 is None else not self.next_run_95[0] <= self.paper <= self.next_run_95[1]


_FIGURES = {
    "test_mad": PAPER["test"]["mad_months"],
    "test_ccc": PAPER["test"]["ccc"],
    "train_mad": PAPER["train"]["mad_months"],
    "train_ccc": PAPER["train"]["ccc"],
}


def spreads(results: list[Result]) -> list[Spread]:
    """The spread of MAD and CCC over the seeds that finished; none when fewer than two did."""
    import numpy as np
    from scipy import stats

    done = [result for result in results if result.state == State.FINISHED]
    if len(done) < 2:
        return []
    found = []
    for figure, paper in _FIGURES.items():
        values = np.array([getattr(result, figure) for result in done], float)
        mean, sd, n = float(values.mean()), float(values.std(ddof=1)), len(values)
        half = float(stats.t.ppf(0.975, n - 1)) * sd * math.sqrt(1 + 1 / n)
        around = (mean - half, mean + half) if n >= 3 else None
        found.append(Spread(figure, n, mean, sd, float(values.min()), float(values.max()), around, paper))
    return found


def earlier(out: Path, plan: Repetition) -> list[Result]:
    """The results that OUT/repeat.json holds; RepeatError when they are of another recipe or data, or not readable."""
    path, remedy = out / "repeat.json", "Remove it, or give another --out"
    try:
        facts = read_json(path, "record", RepeatError)
        same, results = facts["plan"] == plan.key(), TypeAdapter(list[Result]).validate_python(facts["results"])
    except FileNotFoundError:
        return []
    except RepeatError as error:
        raise RepeatError(f"{error} {remedy}.") from None
    except (ValidationError, KeyError, TypeError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
        place = ".".join(map(str, ("results", *first["loc"])))
        raise RepeatError(f"{path}: not as bonecaffe writes it ({place}: {first['msg']}). {remedy}.") from None
    if not same and (results or any(out.glob("seed-*"))):
        raise RepeatError(f"{path}: holds repeats of another recipe, ages, points or weights. Give another --out.")
    return results


def write(out: Path, plan: Repetition, results: list[Result]) -> None:
    """Write OUT/repeat.csv and OUT/repeat.json, by seed."""
    results = sorted(results, key=lambda result: result.seed)
    columns = [field.name for field in fields(Result)]
    rows = ([_cell(getattr(result, column)) for column in columns] for result in results)
    write_text(out / "repeat.csv", table_text(columns, rows), parents=True)
    facts: dict[str, Any] = {
        "plan": plan.key(),
        "results": [asdict(result) for result in results],
        "spread": [{**asdict(spread), "told_from_luck": spread.told_from_luck} for spread in spreads(results)],
        "note": "a seed changes split, initial weights and the order of images together; "
        "the interval takes runs for normal",
    }
    write_text(out / "repeat.json", json.dumps(facts, indent=2) + "\n")


def _cell(value: object) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def verdict(results: list[Result]) -> str:
    """What the repeats say of the paper's test MAD, in a sentence."""
    spread = next((spread for spread in spreads(results) if spread.figure == "test_mad"), None)
    lost = sum(result.state != State.FINISHED for result in results)
    diverged = f"; {lost} of {len(results)} seeds diverged and are not in it" if lost else ""
    if spread is None:
        return f"Fewer than two seeds finished: there is no spread to speak of{diverged}."
    summary = (
        f"Test MAD over {spread.seeds} seeds: {spread.mean:.1f} ± {spread.sd:.1f} months, "
        f"{spread.lowest:.1f} to {spread.highest:.1f}{diverged}."
    )
    if spread.next_run_95 is None:
        return f"{summary} Three seeds are needed to say where another run would lie."
    low, high = spread.next_run_95
    where = "lies outside: the difference is more than luck of the seed" if spread.told_from_luck else "lies within"
    return (
        f"{summary} Another run would lie between {low:.1f} and {high:.1f} (95 %); the paper’s {spread.paper} {where}."
    )
