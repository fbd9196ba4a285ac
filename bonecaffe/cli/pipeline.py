"""Verbs of the paper's pipeline: prepare, write the definition files, train, predict, evaluate."""

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
    DICOM_ID,
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
    help="Table of ages, with any of RSNA's headers. A column split (train or test) sets the split. Hands with "
    "the same value in a column group stay on one side of the split.",
)
@click.option("--test-ages", type=FILE, help="Table of the test hands. All hands of --ages are then for training.")
@AGES_IN_YEARS
@AGES_IN_MONTHS
@click.option("--points", type=FILE, required=True, help="Table of the seven reference points.")
@click.option("--recipe", "recipe_name", help="paper, demo, smoke, or a file. [default: the run's, or paper]")
@click.option(
    "--train", "train_cases", type=click.IntRange(1), help="Number of training hands. [default: the recipe's]"
)
@click.option("--test", "test_cases", type=click.IntRange(1), help="Number of test hands. [default: the recipe's]")
@click.option("--seed", type=click.IntRange(0), help="Seed of the split. [default: the recipe's]")
@click.option(
    "--split",
    metavar="drawn | given | 'fold 1 of 5'",
    help="How the hands are split. [default: given if the tables have a split, otherwise the recipe's]",
)
@click.option(
    "--labels",
    type=click.Choice(["whole_months", "round", "exact"]),
    help="What to do with fractional ages: refuse them, round them, or keep them exact in a separate database. "
    "[default: the recipe's]",
)
@click.option(
    "--origin",
    type=click.Choice(["marked", "boxes", "found"]),
    help="Where the points come from: marked by a person, the centres of boxes, or found by locate. "
    "[default: found if the table was made by locate, otherwise the recipe's]",
)
@click.option("--jobs", type=click.IntRange(1), help="Number of processes. [default: one per core]")
@click.option(
    "--check",
    is_flag=True,
    help="Read every radiograph again, even if its size and modification time have not changed.",
)
@DICOM_ID
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
    """Turn images, ages and points into two LMDBs for Caffe.

    Splits the hands into training and test, then crops, equalizes and resizes each one. Called again, it continues
    after an interruption, replaces damaged files, and does nothing if nothing has changed. A failure leaves no
    incomplete files.
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
    what = "prepared" if done.made else "recipe updated" if done.changes else "nothing changed; already prepared"
    click.echo(f"{run}: {what}: {counts}")
    low, high = map("{:g}".format, done.ages_months)
    tables = f"{ages} and {test_ages}" if test_ages else str(ages)
    click.echo(f"{tables}: ages {low} to {high} months{' (the table has years)' if ages_in == 'years' else ''}")
    for remark in done.remarks:
        click.echo(remark)


@main.command()
@click.argument("image", metavar="IMAGE", type=FILE)
@click.option("--out", type=FILE, help="PNG to write: the equalized image.")
@click.option("--table", type=FILE, help="CSV to write: the grey-level table T, with columns level,pixels,output.")
@click.option("--levels", type=click.IntRange(2, 256), default=64, show_default=True, help="Number of grey levels.")
def histeq(image: Path, out: Path | None, table: Path | None, levels: int) -> None:
    """Equalize one image as MATLAB's histeq does.

    Use it to look at the result, or to compare the grey-level table T with MATLAB's. It equalizes the whole image;
    `prepare` equalizes the crop.
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
@click.option("--out", type=FOLDER, help="Folder to write into, instead of a run.")
@click.option("--recipe", "recipe_name", help="With --out: paper, demo, smoke, or a file.")
@click.option(
    "--verbatim",
    is_flag=True,
    help="Print the paper's appendices 1 and 2 word for word, with notes on their misprints.",
)
def prototxt(run: Path | None, out: Path | None, recipe_name: str | None, verbatim: bool) -> None:
    """Write Caffe's definition files for a run or a recipe.

    The files are train_val.prototxt, solver.prototxt and deploy.prototxt.
    """
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
@click.option(
    "--weights", type=FILE, help="The caffemodel that training will start from, exactly as Caffe will read it."
)
@click.option("--snapshot", type=FILE, help="The solverstate that training will continue from.")
@click.option("--gpu", metavar="0 | 0,1 | all", help="GPUs to train on. [default: as in solver.prototxt]")
def preflight(run: Path, weights: Path | None, snapshot: Path | None, gpu: str | None) -> None:
    """Check a run for what Caffe would crash on or get wrong.

    `train` makes the same checks before it starts Caffe. The weights are checked as they are; `train` first removes
    their layer fc8.
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
            f"{run}: no problem found up to layer {report.not_followed}, whose type bonecaffe does not know; "
            "nothing beyond it was checked"
        )
        return
    click.echo(f"{run}: no problem found")


def _absolute(path: Path | None) -> str | None:
    return str(path.absolute()) if path else None


@main.command()
@RUN
@click.option("--weights", type=FILE, help="The ImageNet caffemodel to start from. Its layer fc8 is removed.")
@click.option(
    "--gpu",
    metavar="0 | 0,1 | all",
    help="GPUs to train on. [default: as in the last training; at first GPU 0 if the recipe has solver_mode GPU]",
)
@click.option("--cpu", is_flag=True, help="Train on the CPU, even if the recipe has solver_mode GPU.")
@click.option("--resume", is_flag=True, help="Continue from the newest complete snapshot.")
def train(run: Path, weights: Path | None, gpu: str | None, cpu: bool, resume: bool) -> None:
    """Train the network with `caffe train`.

    Reports whether the training reached the last iteration. Press Ctrl-C once to let Caffe write a snapshot and stop,
    twice to end it at once. Caffe's complete log is RUN/caffe.log.
    """
    from bonecaffe.errors import TrainError
    from bonecaffe.run import RunDir
    from bonecaffe.training.display import Display
    from bonecaffe.training.train import train as run_training

    with Display() as display:
        outcome = run_training(RunDir(run), weights, gpu, cpu, resume, display.show, display.say)
    if outcome is None:
        click.echo(f"{run}: already trained; nothing to do")
        return
    if outcome.state == "interrupted":
        complain(f"{run}: interrupted at iteration {outcome.iteration}: {outcome.why}")
        raise click.exceptions.Exit(130)
    if outcome.state != "finished":
        raise TrainError(f"{run}: {outcome.state} at iteration {outcome.iteration}: {outcome.why}")
    click.echo(f"{run}: finished at iteration {outcome.iteration} after {outcome.seconds:.0f} s")
    if outcome.why:
        click.echo(f"{run}: {outcome.why}")


@main.command()
@click.argument("model", metavar="MODEL", type=FOLDER)
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True, type=click.Path(readable=False, path_type=Path))
@click.option("--points", type=FILE, help="Table of the seven reference points. [default: the locator finds them]")
@LOCATOR
@click.option("--snapshot", type=click.IntRange(0), help="Iteration of the snapshot to use. [default: the last]")
@click.option("--gpu", type=click.IntRange(0), help="GPU to use. [default: the CPU]")
@ENGINE
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line, also for refused images.")
@DICOM_ID
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
    """Print the bone age of each image in months.

    MODEL is a trained run, or a model file that export wrote. A folder as IMAGE means all images in it. Without
    --points, the locator finds the points and refuses an image where they are uncertain. A refused image is listed with
    the reason and does not affect the others; the exit status is then 1. Ages are printed in the order of the images,
    each as soon as it is known.

    Every line of --json has the same keys, with null for a missing value: image, id, months, iteration (of the
    snapshot), points (ulna, radius, phalanx1 to phalanx5, each [x, y] in pixels), points_from ("table" or "found"),
    confidence (of found points, 0 to 1), remarks (a list of sentences), refused (why there is no age).
    """
    from bonecaffe.hands.images import passed_over
    from bonecaffe.locate.locate import hands_in
    from bonecaffe.locate.locator import MODEL
    from bonecaffe.predict import Predictor, Refused, facts

    if points is not None and locator is not None:
        raise click.UsageError("give --points or --locator, not both: --locator finds the points, --points gives them")
    hands = hands_in(images, points, engine, locator or MODEL)
    predictor = Predictor(model, snapshot, gpu, engine=engine)
    for folder in filter(Path.is_dir, images):
        if others := passed_over(folder):
            complain(f"{on_one_line(str(folder))}: not images, ignored: {others}")
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
        if each.error is not None:  # no fault of the hand: reported like an error that ended the command
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
    help="Iteration of the snapshot to predict with. [default: the last]",
)
@click.option("--all", "every", is_flag=True, help="Also measure every snapshot; the report compares them.")
@click.option("--gpu", type=click.IntRange(0), help="GPU to use. [default: the CPU]")
@CLAIM
def evaluate(run: Path, snapshot: int | None, every: bool, gpu: int | None, claim: Path | None) -> None:
    """Measure a trained run and write its report.

    Predicts all training and test hands. Prints MAD, CCC and the largest error next to the paper's values. Writes
    metrics.json, figures/ and report.html into RUN.
    """
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


@main.command()
@RUN
@click.argument("target", metavar="[MODEL.zip]", required=False, type=FILE)
@click.option("--caffe", "folder", type=FOLDER, help="Write deploy file, weights and mean image into this new folder.")
@click.option("--snapshot", type=click.IntRange(0), help="Iteration of the snapshot to export. [default: the last]")
@click.option("--licence", metavar="TEXT", help="Licence of the model, such as CC-BY-4.0.")
@click.option("--card", "text", type=FILE, help="Markdown file: the model card, completed by the authors.")
def export(
    run: Path, target: Path | None, folder: Path | None, snapshot: int | None, licence: str | None, text: Path | None
) -> None:
    """Write a trained model into one file, for use without the run.

    MODEL.zip holds a model card and the figures, the net, also as ONNX, the weights, the mean and the recipe. It holds
    no image, no id and no path. Predict with it like with a run, also without Caffe. ONNX Runtime and Caffe are
    compared first; nothing is written if they disagree. --caffe writes the plain files of Caffe for other tools.
    """
    from bonecaffe.export import export as exports
    from bonecaffe.run import RunDir

    if target is None and folder is None:
        raise click.UsageError("name the file to write, such as model.zip, or a folder with --caffe")
    if target is None and (licence or text):
        raise click.UsageError("--licence and --card are for a model file: name one, such as model.zip")
    if target is not None:
        done = exports.export(RunDir(run), target, snapshot, licence, text)
        size = sum(stored.size for stored in done.contents.members.values())
        click.echo(f"{target}: iteration {done.contents.iteration}, {size / 1e6:.1f} MB, sha256 {done.sha256}")
        click.echo(
            f"ONNX Runtime and Caffe differ by {done.difference:.1g} at most (relative, {exports.PHANTOMS} phantoms)"
        )
        if text is None:
            click.echo(f"{target}: its model card has fields for the authors: complete them, and export with --card")
    if folder is not None:
        for path in exports.export_caffe(RunDir(run), folder, snapshot):
            click.echo(os.fspath(path))


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
