"""Verbs of the paper's pipeline: prepare, the definition files, train, predict, evaluate."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bonecaffe.cli.group import (
    AGES_IN_MONTHS,
    AGES_IN_YEARS,
    CLAIM,
    ENGINE,
    FILE,
    FOLDER,
    IMAGES,
    LOCATOR,
    RUN,
    complain,
    main,
    on_one_line,
    print_table,
    progress_bar,
)

if TYPE_CHECKING:
    from bonecaffe.hands.cases import AgeUnit


@main.command()
@RUN
@IMAGES
@click.option(
    "--ages",
    type=FILE,
    required=True,
    help="Table of ages, with any of RSNA's headers; a column split (train, test) gives the split, and hands of one "
    "group in a column group are kept on one side.",
)
@click.option("--test-ages", type=FILE, help="Table of the test hands; those of --ages are all for training.")
@AGES_IN_YEARS
@AGES_IN_MONTHS
@click.option("--points", type=FILE, required=True, help="Table of the seven reference points.")
@click.option("--recipe", "recipe_name", help="paper, demo, smoke, or a file. [default: the run's own, else paper]")
@click.option("--train", "train_cases", type=click.IntRange(1), help="Cases for training. [default: the recipe's]")
@click.option("--test", "test_cases", type=click.IntRange(1), help="Cases for test. [default: the recipe's]")
@click.option("--seed", type=click.IntRange(0), help="Seed of the split. [default: the recipe's]")
@click.option(
    "--split",
    metavar="drawn | given | 'fold 1 of 5'",
    help="How hands are split. [default: given, where the tables give it; else the recipe's]",
)
@click.option(
    "--labels",
    type=click.Choice(["whole_months", "round", "exact"]),
    help="What to do with fractional ages: refuse, round, or keep in a database of their own. [default: the recipe's]",
)
@click.option(
    "--origin",
    type=click.Choice(["marked", "boxes", "found"]),
    help="Where the points come from: a hand, the centres of boxes, locate. "
    "[default: seen, for locate's; else the recipe's]",
)
@click.option("--jobs", type=click.IntRange(1), help="Processes. [default: one a core]")
@click.option("--check", is_flag=True, help="Read every radiograph again, also where its size and time are as before.")
def prepare(
    run: Path,
    images: tuple[Path, ...],
    ages: Path,
    test_ages: Path | None,
    ages_in: AgeUnit | None,
    points: Path,
    recipe_name: str | None,
    train_cases: int | None,
    test_cases: int | None,
    seed: int | None,
    split: str | None,
    labels: str | None,
    origin: str | None,
    jobs: int | None,
    check: bool,
) -> None:
    """Split, crop, equalize, resize and pack the hands into two audited LMDBs.

    Fails without leaving anything half-made; picks up where it was interrupted; does nothing when nothing changed.
    Run again, it reads what it left and makes again what is damaged.
    """
    from bonecaffe.prepare import prepare
    from bonecaffe.prepare.inputs import giver, recipe_for, with_split
    from bonecaffe.run import RunDir

    folder = RunDir(run)
    given_by = giver(ages, test_ages)
    recipe = with_split(recipe_for(folder, recipe_name), train_cases, test_cases, seed, labels, split, given_by)
    with progress_bar("prepare") as progress:
        done = prepare.prepare(folder, images, ages, points, recipe, progress, jobs, origin, ages_in, check, test_ages)
    record = done.record
    left_out = "".join(f", {count} {reason}" for reason, count in record.left_out.items())
    counts = f"{record.records['train']} hands for training, {record.records['test']} for test{left_out}"
    for change in done.changes:
        click.echo(f"{run}: recipe: {change}")
    what = "prepared" if done.made else "recipe taken up" if done.changes else "nothing changed; prepared already"
    click.echo(f"{run}: {what}: {counts}")
    low, high = map("{:g}".format, done.ages_months)
    tables = f"{ages} and {test_ages}" if test_ages else str(ages)
    click.echo(f"{tables}: ages {low} to {high} months{' (the table has years)' if ages_in == 'years' else ''}")
    for remark in done.remarks:
        click.echo(remark)


@main.command()
@click.argument("image", metavar="IMAGE", type=FILE)
@click.option("--out", type=FILE, help="Write the equalized image here, as PNG.")
@click.option("--table", type=FILE, help="Write the grey-level table T here, as CSV: level,pixels,output.")
@click.option("--levels", type=click.IntRange(2, 256), default=64, show_default=True, help="Number of grey levels.")
def histeq(image: Path, out: Path | None, table: Path | None, levels: int) -> None:
    """Equalize an image by the rule of MATLAB's histeq, to look at it or to compare its table T with MATLAB's.

    The whole image is equalized; `prepare` equalizes the crop.
    """
    from bonecaffe.files import write_bytes, write_text
    from bonecaffe.hands.images import encode_png, read_image
    from bonecaffe.prepare import histeq as equalization

    if out is None and table is None:
        raise click.UsageError("give --out, --table, or both")
    pixels = read_image(image)
    if table is not None:
        write_text(table, equalization.transform_text(equalization.histogram(pixels), levels), parents=True)
        click.echo(table)
    if out is not None:
        write_bytes(out, encode_png(equalization.histeq(pixels, levels)), parents=True)
        click.echo(out)


@main.command()
@click.argument("run", metavar="[RUN]", type=click.Path(file_okay=False, path_type=Path), required=False)
@click.option("--out", type=FOLDER, help="A folder to write into, instead of a run.")
@click.option("--recipe", "recipe_name", help="With --out: paper, demo, smoke, or a file.")
@click.option("--verbatim", is_flag=True, help="Print appendices 1 and 2 as the paper has them, misprints named.")
def prototxt(run: Path | None, out: Path | None, recipe_name: str | None, verbatim: bool) -> None:
    """Write train_val, solver and deploy .prototxt for a run, or for a recipe into --out."""
    from bonecaffe.network import appendices, definitions
    from bonecaffe.network import prototxt as texts
    from bonecaffe.recipe import Recipe
    from bonecaffe.run import RunDir
    from bonecaffe.training.launch import recipe_as_trained

    if verbatim:
        click.echo(appendices.text(), nl=False)
        return
    if (run is None) == (out is None):
        raise click.UsageError("give a RUN, or --out DIR with --recipe R")
    if run is None:
        for path in texts.write(out or Path(), Recipe.load(recipe_name or "paper")):
            click.echo(path)
        return
    folder = RunDir(run)
    folder.recipe()
    with folder.lock("prototxt"):
        kept = definitions.write(folder, recipe_as_trained(folder))
    for path in (folder.train_val, folder.solver, folder.deploy):
        click.echo(f"{path}{' (edited by hand; kept)' if path.name in kept else ''}")


@main.command()
@RUN
@click.option("--weights", type=FILE, help="The caffemodel that training will start from, as Caffe would get it.")
@click.option("--snapshot", type=FILE, help="The solverstate that training will continue from.")
@click.option("--gpu", metavar="0 | 0,1 | all", help="GPUs to train on. [default: as the solver has it]")
def preflight(run: Path, weights: Path | None, snapshot: Path | None, gpu: str | None) -> None:
    """Name what Caffe would die of, or silently do wrong, before it is asked.

    `train` does this by itself. WEIGHTS are taken as they are: `train` takes their fc8 out first.
    """
    from bonecaffe.records import Launch
    from bonecaffe.run import RunDir
    from bonecaffe.training import preflight as checks

    folder = RunDir(run)
    folder.recipe()
    report = checks.examine(folder, Launch.of(_absolute(weights), _absolute(snapshot), gpu))
    for what, layers in (("copied", report.copied), ("fresh", report.fresh), ("ignored", report.ignored)):
        if layers:
            click.echo(f"weights {what}: {' '.join(layers)}")
    report.raise_if_any(folder)
    if report.not_followed:
        click.echo(
            f"{run}: no problem found up to layer {report.not_followed}, whose type is not known here; "
            "nothing beyond it was checked"
        )
        return
    click.echo(f"{run}: nothing found that Caffe would refuse")


def _absolute(path: Path | None) -> str | None:
    return str(path.absolute()) if path else None


@main.command()
@RUN
@click.option("--weights", type=FILE, help="The ImageNet caffemodel; its fc8 is taken out.")
@click.option(
    "--gpu",
    metavar="0 | 0,1 | all",
    help="GPUs to train on. [default: as it was trained before, else 0 when the recipe has GPU]",
)
@click.option("--cpu", is_flag=True, help="Train on the CPU, whatever the recipe has.")
@click.option("--resume", is_flag=True, help="Go on from the newest complete snapshot.")
def train(run: Path, weights: Path | None, gpu: str | None, cpu: bool, resume: bool) -> None:
    """Drive `caffe train` to the last iteration, and say truly whether it got there.

    Ctrl-C once lets Caffe write a snapshot and stop; twice ends it at once. The whole log is kept in RUN/caffe.log.
    """
    from bonecaffe.errors import TrainError
    from bonecaffe.run import RunDir
    from bonecaffe.training.display import Display
    from bonecaffe.training.train import train as run_training

    with Display() as display:
        outcome = run_training(RunDir(run), weights, gpu, cpu, resume, display.show, display.say)
    if outcome is None:
        click.echo(f"{run}: trained already; nothing to do")
        return
    if outcome.state == "interrupted":
        complain(f"{run}: interrupted at iteration {outcome.iteration}: {outcome.why}")
        raise click.exceptions.Exit(130)
    if outcome.state != "finished":
        raise TrainError(f"{run}: {outcome.state} at iteration {outcome.iteration}: {outcome.why}")
    click.echo(f"{run}: finished at iteration {outcome.iteration} after {outcome.seconds:.0f} s")


@main.command()
@click.argument("model", metavar="MODEL", type=click.Path(file_okay=False, path_type=Path))
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True, type=FOLDER)
@click.option("--points", type=FILE, help="Table of the seven reference points. [default: found by locate]")
@LOCATOR
@click.option("--snapshot", type=click.IntRange(0), help="Iteration of the snapshot. [default: the last]")
@click.option("--gpu", type=click.IntRange(0), help="GPU to compute on. [default: the CPU]")
@ENGINE
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object a line, for refused images too.")
def predict(
    model: Path,
    images: tuple[Path, ...],
    points: Path | None,
    locator: Path | None,
    snapshot: int | None,
    gpu: int | None,
    engine: Any,
    as_json: bool,
) -> None:
    """Print the bone age in months of each IMAGE, one line each. MODEL is a run.

    An IMAGE that is a folder stands for all images in it. Without --points they are found, and an image whose points
    are uncertain is refused. A refused image costs the others nothing: it is listed with its reason, and the exit
    status is 1. Ages are printed in the order of the images, each as soon as it is known.

    Every line of --json has the same keys, null where there is no value: image, id, months, iteration (of the
    snapshot), points (ulna, radius, phalanx1 to phalanx5, each [x, y] in pixels), points_from ("table" or "found"),
    confidence (of found points, 0 to 1), remarks (a list of sentences), refused (the reason why there is no age).
    """
    from bonecaffe.hands.images import passed_over
    from bonecaffe.locate.locate import hands_in
    from bonecaffe.locate.locator import MODEL
    from bonecaffe.predict import Predictor, Refused, facts

    if points is not None and locator is not None:
        raise click.UsageError("--locator finds the points, --points gives them: leave one out")
    hands = hands_in(images, points, engine, locator or MODEL)
    predictor = Predictor(model, snapshot, gpu, engine=engine)
    for folder in filter(Path.is_dir, images):
        if others := passed_over(folder):
            complain(f"{on_one_line(str(folder))}: no images, passed over: {others}")
    count, refused = 0, []
    for result in predictor.predict_hands(hands):
        count += 1
        if as_json:
            click.echo(json.dumps(facts(result)))
        elif not isinstance(result, Refused):
            click.echo(f"{on_one_line(str(result.hand.image))}\t{result.months:.1f} months")
        if isinstance(result, Refused):
            refused.append(result)
            complain(on_one_line(result.reason))
        else:
            for remark in result.hand.remarks:
                complain(on_one_line(f"{result.hand.image}: {remark}"))
    for each in refused:
        if each.error is not None:  # not the hand's fault: reported as it would be if it had ended the command
            raise each.error
    if refused:
        if count > 1:
            complain(f"{len(refused)} of {count} images refused")
        raise click.exceptions.Exit(1)


@main.command()
@RUN
@click.option(
    "--snapshot",
    type=click.IntRange(0),
    help="Iteration of the snapshot that predictions and report are made from. [default: the last]",
)
@click.option(
    "--all", "every", is_flag=True, help="Measure every snapshot too; the report shows them beside each other."
)
@click.option("--gpu", type=click.IntRange(0), help="GPU to compute on. [default: the CPU]")
@CLAIM
def evaluate(run: Path, snapshot: int | None, every: bool, gpu: int | None, claim: Path | None) -> None:
    """Predict both splits; print MAD, CCC and maximum beside the paper's; write figures and report.html."""
    from bonecaffe.evaluation import by_snapshot
    from bonecaffe.evaluation import claim as claim_file
    from bonecaffe.evaluation.evaluate import predict_and_evaluate
    from bonecaffe.run import RunDir

    folder = RunDir(run)
    folder.recipe()
    if claim is not None:
        claim_file.check_target(claim)
    rows = []
    with folder.lock("evaluate"):
        if every:
            with progress_bar("every snapshot") as progress:
                rows = by_snapshot.evaluate_all(folder, progress, gpu)
        with progress_bar("predict") as progress:
            evaluation = predict_and_evaluate(folder, snapshot, progress, gpu)
    if rows:
        _show_snapshots(run, rows)
    _show_evaluation(run, evaluation)
    click.echo(os.fspath(folder.report))
    if claim is not None:
        claim_file.write(folder, claim)
        click.echo(os.fspath(claim))


def _show_evaluation(run: Path, evaluation: Any) -> None:
    from bonecaffe.evaluation.metrics import PAPER
    from bonecaffe.evaluation.words import between, number

    rows = []
    for split, metrics in evaluation.splits.items():
        paper = PAPER[split]
        rows.append(
            [
                split,
                str(metrics.cases),
                f"{metrics.mad_months:.1f} ({paper['mad_months']})",
                between(metrics.mad_interval_95, 1, "not defined"),
                f"{number(metrics.ccc, 2)} ({paper['ccc']})",
                between(metrics.ccc_interval_95, 2, "not defined"),
                f"{metrics.max_error_months:.1f} ({paper['max_error_months']})",
                f"{metrics.guess_mad_months:.1f}",
            ]
        )
    print_table(
        f"{run}, iteration {evaluation.iteration}: months (paper)",
        ["split", "hands", "MAD", "95 %", "CCC", "95 %", "maximum", "MAD of guessing the mean"],
        rows,
    )
    for split, metrics in evaluation.splits.items():
        for note in metrics.notes:
            click.echo(f"{split}: {note}")
    click.echo(evaluation.verdict.sentence)
    for remark in evaluation.verdict.remarks:
        click.echo(remark)
    click.echo(f"test: {evaluation.sex['test'].verdict}")


def _show_snapshots(run: Path, rows: list[dict[str, Any]]) -> None:
    from bonecaffe.evaluation import by_snapshot
    from bonecaffe.evaluation.words import number

    best, last = by_snapshot.best_and_last(rows)
    marks = (
        {best["iteration"]: "lowest", last["iteration"]: "last"}
        if best is not last
        else {last["iteration"]: "lowest, last"}
    )
    print_table(
        f"{run}: every snapshot",
        ["iteration", "split", "MAD", "CCC", "maximum", ""],
        [
            [
                str(row["iteration"]),
                row["split"],
                f"{row['mad_months']:.1f}",
                number(row["ccc"], 3),
                f"{row['max_error_months']:.1f}",
                marks.get(row["iteration"], "") if row["split"] == "test" else "",
            ]
            for row in rows
        ],
    )
    click.echo(by_snapshot.WARNING)
