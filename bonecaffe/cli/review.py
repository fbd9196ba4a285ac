"""Verbs that examine runs: sensitivity to the points, verification, repetition, departures."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bonecaffe.cli.group import (
    AGES_IN_MONTHS,
    AGES_IN_YEARS,
    CLAIM,
    DICOM_ID,
    FILE,
    FOLDER,
    IMAGES,
    RUN,
    complain,
    main,
    print_table,
    progress_bar,
)
from bonecaffe.errors import RepeatInterrupted

if TYPE_CHECKING:
    from bonecaffe.hands.cases import AgeUnit
    from bonecaffe.studies.repetition import Repetition, Result


@main.command()
@RUN
@click.option(
    "--images",
    type=FOLDER,
    required=True,
    multiple=True,
    help="Folder of the radiographs that the run was prepared from; can be given more than once.",
)
@click.option("--points", "table", type=FILE, required=True, help="Table of the points that the run was prepared from.")
@click.option(
    "--again",
    type=FILE,
    help="Table of the same hands marked a second time. Points are also moved by the difference of the two tables.",
)
@click.option(
    "--found",
    type=FILE,
    help="Table of other points of the same hands, for example by locate: shows MAD and CCC with them.",
)
@click.option(
    "--percent",
    "percents",
    type=click.FloatRange(0, 50, min_open=True),
    multiple=True,
    help="How far points are moved, in percent of the palm (SD of a coordinate); can be given more than once. "
    "[default: 0.5 1 2 4]",
)
@click.option(
    "--repeats",
    type=click.IntRange(2),
    default=5,
    show_default=True,
    help="Number of times the points of each hand are moved.",
)
@click.option("--split", type=click.Choice(["test", "train"]), default="test", show_default=True, help="Hands to use.")
@click.option("--seed", type=click.IntRange(0), default=2018, show_default=True, help="Seed of the moves.")
@DICOM_ID
def sensitivity(
    run: Path,
    images: tuple[Path, ...],
    table: Path,
    again: Path | None,
    found: Path | None,
    percents: tuple[float, ...],
    repeats: int,
    split: str,
    seed: int,
) -> None:
    """Show how much the predicted age depends on the points.

    Moves the seven points of each hand and measures how far the predicted age moves, in months per percent of the palm.
    Writes sensitivity.json and sensitivity.csv into RUN. No other command can use RUN meanwhile.
    """
    from bonecaffe.evaluation.words import number
    from bonecaffe.hands.reference_points import read_points
    from bonecaffe.run import RunDir
    from bonecaffe.studies import sensitivity as study

    points = read_points(table)
    levels = percents or study.PERCENT
    others = {"found": read_points(found)} if found else {}
    if again:
        others["marked again"] = second = read_points(again)
        error = study.repeat_marking_percent(points, second)
        click.echo(f"repeat-marking error: {error:.2f} % of the palm (SD of a coordinate of one marking)")
        levels = tuple(sorted([*levels, round(error, 3)]))
    with progress_bar("sensitivity") as progress:
        outcome, _ = study.study(RunDir(run), images, points, others, levels, repeats, split, seed, progress)
    print_table(
        f"{run}: {outcome.hands} {split} hands, points moved {outcome.repeats} times each",
        ["points moved by, % of the palm", "mean shift, months", "SD, months", "95 %", "largest", "rectangle IoU"],
        [
            [
                f"{level.percent:g}",
                *(f"{v:.1f}" for v in (level.mean_shift, level.sd, level.p95_shift, level.largest_shift)),
                f"{level.median_iou:.3f}",
            ]
            for level in outcome.levels
        ],
    )
    click.echo(f"{outcome.months_per_percent:.2f} months per percent of the palm")
    for name, a in outcome.against.items():
        cccs = " and ".join("–" if value is None else number(value, 3) for value in (a.ccc_marked, a.ccc_other))
        click.echo(
            f"{name}: {a.hands} hands: MAD {a.mad_marked:.1f} months with the run's own points, "
            f"{a.mad_other:.1f} with these; CCC {cccs}; "
            f"predictions move by {a.mean_shift:.1f} months, rectangle IoU {a.median_iou:.3f}"
        )


@main.command()
@RUN
@click.option(
    "--images",
    type=FOLDER,
    multiple=True,
    help="Folder of the radiographs that the run was prepared from; can be given more than once.",
)
@click.option("--ages", type=FILE, help="Table of ages that the run was prepared from.")
@click.option("--test-ages", type=FILE, help="Table of the test hands, if the run was prepared from one.")
@click.option("--points", type=FILE, help="Table of points that the run was prepared from.")
@click.option("--json", "as_json", is_flag=True, help="Print the links as JSON.")
@DICOM_ID
def verify(
    run: Path, images: tuple[Path, ...], ages: Path | None, test_ages: Path | None, points: Path | None, as_json: bool
) -> None:
    """Check by hashes that a run and its results fit together.

    Each link of the chain from the inputs to the report is checked, and the first broken one is named. Exits 1 if a
    link is broken. The inputs are outside RUN: give their places to have them checked too.
    """
    from bonecaffe.run import RunDir
    from bonecaffe.studies import verify

    with progress_bar("verify") as progress:
        links = verify.verify(RunDir(run), images or None, ages, points, progress, test_ages)
    if as_json:
        click.echo(json.dumps([link._asdict() for link in links], indent=2, ensure_ascii=False))
    else:
        print_table(str(run), ["link", "", "what"], [[link.name, link.state, link.message] for link in links])
    broken = verify.first_broken(links)
    if broken:
        click.echo(f"bonecaffe: {run}: the first broken link is {broken.name}: {broken.message}", err=True)
        raise click.exceptions.Exit(1)
    if not as_json:
        click.echo(f"{run}: every checked link holds")


@main.command()
@click.argument("folder", metavar="[FOLDER]", type=FOLDER, default=Path("runs"))
@click.option("--json", "as_json", is_flag=True, help="Print the runs as JSON.")
def runs(folder: Path, as_json: bool) -> None:
    """List all runs in a folder with their state and results.

    FOLDER is runs unless given. Shows recipe, state, iteration, test MAD and test CCC.
    """
    from bonecaffe.evaluation.words import number
    from bonecaffe.studies.runs import runs_in

    found = runs_in(folder)
    if as_json:
        click.echo(json.dumps([summary._asdict() for summary in found], indent=2, ensure_ascii=False))
        return
    rows = []
    for summary in found:
        figures = ["–", "–", "–"]
        if summary.mad_months is not None and summary.ccc is not None:
            figures = [str(summary.evaluated), f"{summary.mad_months:.1f}", number(summary.ccc, 3)]
        rows.append([summary.run, summary.recipe, summary.state, f"{summary.iteration}/{summary.max_iter}", *figures])
    if not rows:
        click.echo(f"{folder}: no runs found")
        return
    columns = ["run", "recipe", "state", "iteration", "evaluated at", "test MAD, months", "test CCC"]
    print_table(str(folder), columns, rows)


@main.command()
@click.argument("recipe_name", metavar="RECIPE")
@click.option(
    "--out",
    type=FOLDER,
    required=True,
    help="Folder for the runs, one per seed or fold, and for the tables of results.",
)
@click.option("--seeds", type=click.IntRange(2, 1000), help="Number of seeds.  [default: 5]")
@click.option(
    "--folds",
    type=click.IntRange(2, 1000),
    help="Number of folds: cross-validation instead of seeds. Every hand is tested once.",
)
@click.option(
    "--first-seed",
    type=click.IntRange(0),
    default=1,
    show_default=True,
    help="First seed; each next one is higher by 1. With --folds: the seed of the division into folds.",
)
@IMAGES
@click.option("--ages", type=FILE, required=True, help="Table of ages, with any of RSNA's headers.")
@AGES_IN_YEARS
@AGES_IN_MONTHS
@click.option("--points", type=FILE, required=True, help="Table of the seven reference points.")
@click.option(
    "--train", "train_cases", type=click.IntRange(1), help="Number of training hands. [default: the recipe's]"
)
@click.option("--test", "test_cases", type=click.IntRange(1), help="Number of test hands. [default: the recipe's]")
@click.option(
    "--labels",
    type=click.Choice(["whole_months", "round", "exact"]),
    help="What to do with fractional ages, as in prepare.",
)
@click.option("--weights", type=FILE, help="The ImageNet caffemodel that each seed or fold starts from.")
@click.option(
    "--gpu", metavar="0 | 0,1 | all", help="GPUs to train on. [default: GPU 0, if the recipe has solver_mode GPU]"
)
@click.option("--cpu", is_flag=True, help="Train on the CPU, even if the recipe has solver_mode GPU.")
@click.option(
    "--scheduler",
    metavar="ADDRESS",
    help="Dask scheduler, such as tcp://host:8786. [default: this machine, one run after another]",
)
@DICOM_ID
def repeat(
    recipe_name: str,
    out: Path,
    seeds: int | None,
    folds: int | None,
    first_seed: int,
    images: tuple[Path, ...],
    ages: Path,
    ages_in: AgeUnit | None,
    points: Path,
    train_cases: int | None,
    test_cases: int | None,
    labels: str | None,
    weights: Path | None,
    gpu: str | None,
    cpu: bool,
    scheduler: str | None,
) -> None:
    """Repeat a recipe with several seeds, or cross-validate it.

    Reports MAD and CCC with intervals. A seed draws the split and the initial weights; its run is OUT/seed-N. The run
    of a fold is OUT/fold-K. Called again, it continues where it stopped. There are two intervals: one for another seed
    on the same hands, one for the same study on other hands. OUT/predictions.csv holds every test hand.
    """
    from bonecaffe.hands.images import dicom_id
    from bonecaffe.prepare.inputs import giver, with_split
    from bonecaffe.recipe import Recipe
    from bonecaffe.studies import repeat as repeats
    from bonecaffe.studies import results as found
    from bonecaffe.studies.repetition import Repetition
    from bonecaffe.training.display import Display

    if folds is not None:
        _refuse_with_folds({"--seeds": seeds, "--train": train_cases, "--test": test_cases})
    given_by = giver(ages) if folds is None else None
    recipe = with_split(Recipe.load(recipe_name), train_cases, test_cases, None, labels, given_by=given_by)
    plan = Repetition(
        out.absolute(),
        recipe.to_yaml(),
        tuple(folder.absolute() for folder in images),
        ages.absolute(),
        points.absolute(),
        weights.absolute() if weights else None,
        gpu,
        cpu,
        ages_in,
        folds,
        first_seed,
        dicom_id(),
    )
    chosen = list(range(1, folds + 1)) if folds is not None else list(range(first_seed, first_seed + (seeds or 5)))
    results = {result.number: result for result in found.earlier(plan)}
    found.write(
        plan, list(results.values())
    )  # written first, so that another plan cannot continue a seed that is interrupted now
    try:
        with Display("repeat") as display:
            if scheduler:
                coming = repeats.on_cluster(plan, chosen, scheduler, display.say)
            else:
                coming = repeats.in_sequence(plan, chosen, display.show, display.say)
            for done, result in enumerate(coming, start=1):
                results[result.number] = result
                found.write(plan, list(results.values()))
                mad = "–" if result.test_mad is None else f"{result.test_mad:.1f} months"
                state = f"{plan.kind} {result.number}: {result.state}, test MAD {mad}"
                display.say(f"{state} ({done} of {len(chosen)} done)")
    except RepeatInterrupted as error:
        complain(str(error))
        raise click.exceptions.Exit(130) from None
    finally:
        _show_results(plan, list(results.values()))


def _refuse_with_folds(given: dict[str, int | None]) -> None:
    """Raise a usage error for options that cannot be combined with --folds."""
    for option, value in given.items():
        if value is not None:
            why = (
                "Give one of them."
                if option == "--seeds"
                else "Each fold tests its own hands and trains on all others."
            )
            raise click.UsageError(f"--folds and {option} cannot be combined. {why}")


def _show_results(plan: Repetition, results: list[Result]) -> None:
    from bonecaffe.studies import results as found
    from bonecaffe.studies.results import shown, shown_interval

    if not results:
        return
    if plan.folds is None:
        columns = ["figure", "mean", "SD", "lowest", "highest", "another seed, 95 %", "other hands, 95 %", "paper"]
        rows = [
            [
                each.figure.replace("_", " ").replace("mad", "MAD").replace("ccc", "CCC"),
                *(shown(each.figure, v) for v in (each.mean, each.sd, each.lowest, each.highest)),
                shown_interval(each.figure, each.next_seed_95),
                shown_interval(each.figure, each.other_hands_95),
                str(each.paper),
            ]
            for each in found.spreads(results)
        ]
    else:
        columns = ["fold", "hands", "MAD", "CCC", "largest error"]
        rows = [
            [
                str(r.number),
                str(len(r.hands)),
                shown("mad", r.test_mad),
                shown("ccc", r.test_ccc),
                shown("mad", r.test_max),
            ]
            for r in sorted(results, key=lambda result: result.number)
            if r.test_mad is not None and r.test_ccc is not None and r.test_max is not None
        ]
        if w := found.pooled(plan, results):
            figures = shown("mad", w.mad_months), shown("ccc", w.ccc), shown("mad", w.max_error_months)
            rows.append(["all", str(w.cases), *figures])
    print_table(f"{plan.out}: months", columns, rows)
    for line in found.verdict(plan, results):
        click.echo(line)
    click.echo(os.fspath(plan.out / "repeat.csv"))


@main.command()
@RUN
@CLAIM
def repro(run: Path, claim: Path | None) -> None:
    """Show how a run differs from the paper, with the reasons.

    A departure is a value that differs from what the paper states. A choice is a value that the paper does not state.
    Writes departures.json into RUN. While another command is using RUN, they are only shown.
    """
    from bonecaffe.evaluation import claim as claim_file
    from bonecaffe.run import RunDir
    from bonecaffe.studies.repro import comparison_of, write_departures

    folder = RunDir(run)
    recipe, (departures, choices) = comparison_of(folder)
    if claim is not None:
        claim_file.check_target(claim)
    if departures:
        print_table(
            f"{run}: recipe {recipe.name}: departures from what the paper states",
            ["field", "paper", "this run", "reason"],
            [[d.field, str(d.paper), str(d.here), d.reason] for d in departures],
        )
    else:
        click.echo(f"{run}: recipe {recipe.name}: no departures from what the paper states")
    print_table(
        f"{run}: choices, where the paper states nothing",
        ["field", "paper", "bonecaffe's default", "this run", "reason"],
        [
            [c.field, "not stated", "the same" if c.is_default else str(c.default), str(c.here), c.reason]
            for c in choices
        ],
    )
    if claim is not None:
        claim_file.write(folder, claim)
        click.echo(os.fspath(claim))
    write_departures(folder)
