"""The command line: verbs, each one call. Nothing heavy is imported before a verb runs."""

from __future__ import annotations

import errno
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from bonecaffe import __version__
from bonecaffe.errors import BonecaffeError, RepeatInterrupted

_DISK = {
    errno.ENOSPC: "the disk is full; make room and try again",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "not permitted",
}


class _Boundary(click.Group):
    """Expected failures exit 1 with their sentence, Ctrl-C exits 130, a bug exits 3 with its traceback in a file."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BonecaffeError as error:
            click.echo(f"bonecaffe: {error}", err=True)
            ctx.exit(1)
        except KeyboardInterrupt:
            click.echo(
                "bonecaffe: interrupted. prepare and repeat pick up where they stopped when called again, train with --resume.",
                err=True,
            )
            ctx.exit(130)
        except OSError as error:
            if error.errno not in _DISK and not error.filename:
                _report_bug(ctx)
            where = f"{error.filename}: " if error.filename else ""
            click.echo(f"bonecaffe: {where}{_DISK.get(error.errno, error.strerror)}.", err=True)
            ctx.exit(1)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception:
            _report_bug(ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # in the order of the work, not of the alphabet


def _report_bug(ctx: click.Context) -> None:
    with tempfile.NamedTemporaryFile(
        "w", prefix="bonecaffe-bug-", suffix=".txt", delete=False, encoding="utf-8"
    ) as file:
        file.write(f"bonecaffe {__version__}\n{' '.join(sys.argv)}\n{traceback.format_exc()}")
    click.echo(
        f"bonecaffe: this is a bug of ours: {traceback.format_exc().strip().splitlines()[-1]}. The traceback is in {file.name}.",
        err=True,
    )
    ctx.exit(3)


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar with an ETA on a terminal; a line at each tenth elsewhere."""
    if not sys.stderr.isatty():
        last = -1

        def line(done: int, total: int) -> None:
            nonlocal last
            if done * 10 // total > last:
                last = done * 10 // total
                click.echo(f"{what}: {done}/{total}", err=True)

        yield line
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    ) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title), title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    Console(width=None if sys.stdout.isatty() else 120).print(table)


RUN = click.argument("run", metavar="RUN", type=click.Path(file_okay=False, path_type=Path))
FILE = click.Path(dir_okay=False, path_type=Path)
FOLDER = click.Path(path_type=Path)


@click.group(cls=_Boundary, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="bonecaffe")
def main() -> None:
    """Bone age from hand radiographs: Lee & Kim's 2018 Caffe pipeline, as printed or with declared departures.

    RUN is a folder, such as runs/paper; every stage reads there what the stage before wrote. The order of the work:
    prepare, train, evaluate; then predict. Nothing here is a medical device.
    """


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def doctor(as_json: bool) -> None:
    """Show what is installed, and what is missing with the command that mends it.

    Exits 1 when a run could not work.
    """
    from bonecaffe import doctor as examination

    findings = examination.examine()
    if as_json:
        click.echo(json.dumps([finding._asdict() for finding in findings], indent=2))
    else:
        _table(
            "bonecaffe doctor",
            ["", "what", "found", "remedy"],
            [[finding.mark, finding.what, finding.found, finding.remedy] for finding in findings],
        )
    if any(finding.state == "missing" for finding in findings):
        raise click.exceptions.Exit(1)


def _size(ctx: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    try:
        width, height = (int(part) for part in value.lower().split("x"))
    except ValueError:
        raise click.BadParameter("give WIDTHxHEIGHT, such as 1000x1300") from None
    if not (200 <= width <= 4000 and 200 <= height <= 4000):
        raise click.BadParameter("sides of 200 to 4000 pixels are possible")
    return width, height


@main.command()
@click.argument("out", metavar="OUT", type=FOLDER)
@click.option("--count", type=click.IntRange(1, 99999), default=600, show_default=True, help="How many hands.")
@click.option(
    "--seed", type=click.IntRange(0), default=2018, show_default=True, help="The same seed gives the same bytes."
)
@click.option("--size", callback=_size, help="WIDTHxHEIGHT of every image. [default: sizes like RSNA's]")
def phantom(out: Path, count: int, seed: int, size: tuple[int, int] | None) -> None:
    """Write synthetic hands with known age and points into OUT, in RSNA's own layout.

    OUT gets ages.csv, points.csv and images/.
    """
    from bonecaffe.hands.phantom import dataset

    with _progress("phantoms") as progress:
        dataset.write(out, count, seed, size, progress)
    click.echo(f"{out}: {count} phantoms; ages.csv, points.csv, images/")


@main.group(context_settings={"help_option_names": ["-h", "--help"]})
def points() -> None:
    """Bring the seven points in from other tools' files, out into them; check them; compare two markings."""


@points.command("import")
@click.argument("sources", metavar="FILE_OR_FOLDER...", nargs=-1, required=True, type=FOLDER)
@click.option("--out", type=FILE, required=True, help="The points.csv to write. It must not be there yet.")
@click.option("--images", type=FOLDER, help="The radiographs: points marked in another size are scaled to theirs.")
def import_points(sources: tuple[Path, ...], out: Path, images: Path | None) -> None:
    """Read Pascal VOC boxes, COCO keypoints, labelme, Label Studio, CVAT or our own CSV into a points.csv.

    VOC boxes of bones give the points by their centres: MCP (or MCP and MCPFirst), Radius, Ulna.
    """
    from bonecaffe.errors import PointsError
    from bonecaffe.hands import foreign
    from bonecaffe.hands.reference_points import write_points

    if out.exists():
        raise PointsError(f"{out}: is there already, and is not written over. Give another --out, or move it away.")
    hands = foreign.read(sources, images)
    write_points(out, hands)
    click.echo(f"{out}: {len(hands)} hands")


@points.command("export")
@click.argument("table", metavar="POINTS", type=FILE)
@click.option("--format", "kind", type=click.Choice(["coco", "labelme", "csv"]), required=True, help="What to write.")
@click.option("--out", type=FOLDER, required=True, help="A file; for labelme a folder, a file each hand.")
def export_points(table: Path, kind: str, out: Path) -> None:
    """Write a points.csv as COCO keypoints, labelme files, or a tidy points.csv."""
    from bonecaffe.errors import PointsError
    from bonecaffe.hands import foreign
    from bonecaffe.hands.reference_points import read_points, write_points
    from bonecaffe.run import write_text

    hands = read_points(table)
    if kind == "labelme":
        targets = {out / f"{hand.id}.json": foreign.labelme(hand) for hand in hands.values()}
    else:
        targets = {out: foreign.coco(hands.values())}
    there = [path for path in targets if path.exists()]
    if there:
        raise PointsError(f"{there[0]}: is there already, and is not written over. Give another --out.")
    if kind == "csv":
        write_points(out, hands.values())
    else:
        for path, content in targets.items():
            write_text(path, json.dumps(content, indent=2) + "\n")
    click.echo(f"{out}: {len(hands)} hands")


@points.command("check")
@click.argument("table", metavar="POINTS", type=FILE)
@click.option("--images", type=FOLDER, help="The radiographs, for --sheet.")
@click.option("--sheet", type=FILE, help="Write the hands in doubt, with points and rectangle, side by side as a PNG.")
def check_points(table: Path, images: Path | None, sheet: Path | None) -> None:
    """List what is implausible: fingers out of order, a crossed forearm, the rectangle's aspect, points on the border, doubles.

    Exits 1 when a hand is in doubt. What cannot be used at all, such as a point outside the image, is an error by itself.
    """
    from bonecaffe.errors import PointsError
    from bonecaffe.hands import plausibility
    from bonecaffe.hands.images import find_images, missing
    from bonecaffe.hands.reference_points import read_points

    if (sheet is None) != (images is None):
        raise click.UsageError("--sheet and --images belong together")
    hands = read_points(table)
    found = plausibility.all_doubts(hands)
    for case_id, said in found.items():
        click.echo(f"{case_id}: {'; '.join(said)}")
    if sheet is not None and images is not None and found:
        files = find_images(images)
        if lost := missing(found, files):
            raise PointsError(f"{images}: no image of {', '.join(lost[:5])}, so there is no sheet of them.")
        plausibility.write_overlay(sheet, [hands[case_id] for case_id in found], files)
        click.echo(sheet)
    click.echo(f"{table}: {len(hands)} hands, {len(found)} in doubt")
    if found:
        raise click.exceptions.Exit(1)


@points.command("compare")
@click.argument("first", metavar="A", type=FILE)
@click.argument("second", metavar="B", type=FILE)
@click.option("--json", "as_json", is_flag=True, help="Print every hand as a JSON object a line.")
def compare_points(first: Path, second: Path, as_json: bool) -> None:
    """Show how far two markings of the same hands lie apart: pixels, percent of the palm, overlap of the rectangles.

    The palm is the distance from the middle between ulna and radius to the middle finger's point.
    """
    import numpy

    from bonecaffe.hands import agreement
    from bonecaffe.hands.reference_points import POINT_NAMES, read_points

    found = agreement.compare(read_points(first), read_points(second))
    if as_json:
        for hand in found:
            click.echo(json.dumps(hand._asdict()))
        return
    pixels, percent = (numpy.array([getattr(hand, name) for hand in found]) for name in ("pixels", "percent"))
    rows = [
        [name, *(f"{value:.1f}" for value in (numpy.median(pixels[:, i]), pixels[:, i].max(), numpy.median(percent[:, i]), percent[:, i].max()))]
        for i, name in enumerate(POINT_NAMES)
    ]  # fmt: skip
    columns = ["point", "median, pixels", "largest", "median, % of the palm", "largest"]
    _table(f"{len(found)} hands, marked twice", columns, rows)
    overlaps = numpy.array([hand.iou for hand in found])
    worst = min(found, key=lambda hand: hand.iou)
    click.echo(
        f"overlap of the rectangles (IoU): median {numpy.median(overlaps):.3f}, smallest {worst.iou:.3f} (id {worst.id})"
    )


@main.command()
@RUN
@click.option("--images", type=FOLDER, required=True, help="Folder of the radiographs, named by id.")
@click.option("--ages", type=FILE, required=True, help="Table of ages, with any of RSNA's headers.")
@click.option("--points", type=FILE, required=True, help="Table of the seven reference points.")
@click.option("--recipe", "recipe_name", help="paper, demo, smoke, or a file. [default: the run's own, else paper]")
@click.option("--train", "train_cases", type=click.IntRange(1), help="Cases for training. [default: the recipe's]")
@click.option("--test", "test_cases", type=click.IntRange(1), help="Cases for test. [default: the recipe's]")
@click.option("--seed", type=click.IntRange(0), help="Seed of the split. [default: the recipe's]")
@click.option(
    "--labels",
    type=click.Choice(["whole_months", "round", "exact"]),
    help="What to do with fractional ages: refuse, round, or keep in a database of their own. [default: the recipe's]",
)
@click.option("--jobs", type=click.IntRange(1), help="Processes. [default: one a core]")
def prepare(
    run: Path,
    images: Path,
    ages: Path,
    points: Path,
    recipe_name: str | None,
    train_cases: int | None,
    test_cases: int | None,
    seed: int | None,
    labels: str | None,
    jobs: int | None,
) -> None:
    """Split, crop, equalize, resize and pack the hands into two audited LMDBs.

    Fails without leaving anything half-made; picks up where it was interrupted; does nothing when nothing changed.
    """
    from bonecaffe.prepare import stage
    from bonecaffe.recipe import Recipe
    from bonecaffe.run import RunDir

    folder = RunDir(run)
    recipe = (
        Recipe.load(recipe_name)
        if recipe_name
        else (folder.recipe() if folder.recipe_file.is_file() else Recipe.load("paper"))
    )
    recipe = stage.with_split(recipe, train_cases, test_cases, seed, labels)
    with _progress("prepare") as progress:
        changed = stage.prepare(folder, images, ages, points, recipe, progress, jobs)
    facts = folder.manifest()["prepare"]
    left_out = "".join(f", {count} {reason}" for reason, count in facts["left_out"].items())
    counts = f"{facts['records']['train']} hands for training, {facts['records']['test']} for test{left_out}"
    click.echo(f"{run}: {'prepared' if changed else 'nothing changed; prepared already'}: {counts}")


@main.command()
@click.argument("image", metavar="IMAGE", type=FILE)
@click.option("--out", type=FILE, help="Write the equalized image here, as PNG.")
@click.option("--table", type=FILE, help="Write the grey-level table T here, as CSV: level,pixels,output.")
@click.option("--levels", type=click.IntRange(2, 256), default=64, show_default=True, help="Number of grey levels.")
def histeq(image: Path, out: Path | None, table: Path | None, levels: int) -> None:
    """Equalize an image by the rule of MATLAB's histeq, to look at it or to compare its table T with MATLAB's.

    The whole image is equalized; `prepare` equalizes the crop.
    """
    from bonecaffe.hands.images import encode_png, read_image
    from bonecaffe.prepare import histeq as equalization
    from bonecaffe.run import write_bytes, write_text

    if out is None and table is None:
        raise click.UsageError("give --out, --table, or both")
    pixels = read_image(image)
    if table is not None:
        write_text(table, equalization.table_text(equalization.histogram(pixels), levels))
        click.echo(table)
    if out is not None:
        write_bytes(out, encode_png(equalization.histeq(pixels, levels)))
        click.echo(out)


@main.command()
@click.argument("run", metavar="[RUN]", type=click.Path(file_okay=False, path_type=Path), required=False)
@click.option("--out", type=FOLDER, help="A folder to write into, instead of a run.")
@click.option("--recipe", "recipe_name", help="With --out: paper, demo, smoke, or a file.")
@click.option("--verbatim", is_flag=True, help="Print appendices 1 and 2 as the paper has them, misprints named.")
def prototxt(run: Path | None, out: Path | None, recipe_name: str | None, verbatim: bool) -> None:
    """Write train_val, solver and deploy .prototxt for a run, or for a recipe into --out."""
    from bonecaffe.network import appendices
    from bonecaffe.network import prototxt as definitions
    from bonecaffe.recipe import Recipe
    from bonecaffe.run import RunDir
    from bonecaffe.training import inputs

    if verbatim:
        click.echo(appendices.text(), nl=False)
        return
    if (run is None) == (out is None):
        raise click.UsageError("give a RUN, or --out DIR with --recipe R")
    if out is not None:
        for path in definitions.write(out, Recipe.load(recipe_name or "paper")):
            click.echo(path)
        return
    folder = RunDir(run)
    with folder.lock("prototxt"):
        kept = inputs.write_prototxts(folder, folder.recipe())
    for path in (folder.train_val, folder.solver, folder.deploy):
        click.echo(f"{path}{' (edited by hand; kept)' if path.name in kept else ''}")


@main.command()
@RUN
@click.option("--weights", type=FILE, help="The caffemodel that training shall start from, as Caffe would get it.")
@click.option("--snapshot", type=FILE, help="The solverstate that training shall go on from.")
@click.option("--gpu", metavar="0 | 0,1 | all", help="GPUs to train on. [default: as the solver says]")
def preflight(run: Path, weights: Path | None, snapshot: Path | None, gpu: str | None) -> None:
    """Name what Caffe would die of, or silently do wrong, before it is asked.

    `train` does this by itself. WEIGHTS are taken as they are: `train` takes their fc8 out first.
    """
    from bonecaffe.network import preflight as checks
    from bonecaffe.run import RunDir

    folder = RunDir(run)
    folder.recipe()
    absolute = [path.absolute() if path else None for path in (weights, snapshot)]
    report = checks.examine(folder, checks.Plan(*absolute, gpu))
    for what, layers in (("copied", report.copied), ("fresh", report.fresh), ("ignored", report.ignored)):
        if layers:
            click.echo(f"weights {what}: {' '.join(layers)}")
    report.raise_if_any(folder)
    if report.not_followed:
        click.echo(
            f"{run}: nothing found up to layer {report.not_followed}, whose type is not known here; beyond it nothing was looked at"
        )
        return
    click.echo(f"{run}: nothing found that Caffe would refuse")


@main.command()
@RUN
@click.option("--weights", type=FILE, help="The ImageNet caffemodel; its fc8 is taken out.")
@click.option("--gpu", metavar="0 | 0,1 | all", help="GPUs to train on. [default: 0, when the recipe says GPU]")
@click.option("--cpu", is_flag=True, help="Train on the CPU whatever the recipe says.")
@click.option("--resume", is_flag=True, help="Go on from the newest complete snapshot.")
def train(run: Path, weights: Path | None, gpu: str | None, cpu: bool, resume: bool) -> None:
    """Drive `caffe train` to the last iteration, and say truly whether it got there.

    Ctrl-C once lets Caffe write a snapshot and stop; twice ends it at once. The whole log is kept in RUN/caffe.log.
    """
    from bonecaffe.errors import TrainError
    from bonecaffe.run import RunDir
    from bonecaffe.training import train as training
    from bonecaffe.training.display import Display

    with Display() as display:
        outcome = training.train(RunDir(run), weights, gpu, cpu, resume, display.show, display.say)
    if outcome is None:
        click.echo(f"{run}: trained already; nothing to do")
        return
    if outcome.state == "interrupted":
        click.echo(f"{run}: interrupted at iteration {outcome.iteration}: {outcome.why}", err=True)
        raise click.exceptions.Exit(130)
    if outcome.state != "finished":
        raise TrainError(f"{run}: {outcome.state} at iteration {outcome.iteration}: {outcome.why}")
    click.echo(f"{run}: finished at iteration {outcome.iteration} after {outcome.seconds:.0f} s")


@main.command()
@click.argument("model", metavar="MODEL", type=click.Path(file_okay=False, path_type=Path))
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True, type=FILE)
@click.option("--points", type=FILE, required=True, help="Table of the seven reference points.")
@click.option("--snapshot", type=click.IntRange(0), help="Iteration of the snapshot. [default: the last]")
@click.option("--gpu", type=click.IntRange(0), help="GPU to compute on. [default: the CPU]")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object a line.")
def predict(
    model: Path, images: tuple[Path, ...], points: Path, snapshot: int | None, gpu: int | None, as_json: bool
) -> None:
    """Print the bone age in months of each IMAGE, one line each. MODEL is a run."""
    from bonecaffe.hands.reference_points import read_points
    from bonecaffe.predict import Predictor, points_for

    table = read_points(points)
    hands = [(image, points_for(image, table)) for image in images]
    predictor = Predictor(model, snapshot, gpu)
    for image, months in zip(images, predictor.predict_many(hands), strict=True):
        if as_json:
            click.echo(
                json.dumps(
                    {
                        "image": str(image),
                        "id": image.stem,
                        "months": round(months, 2),
                        "iteration": predictor.snapshot.iteration,
                    }
                )
            )
        else:
            click.echo(f"{image}\t{months:.1f} months")


@main.command()
@RUN
@click.option("--snapshot", type=click.IntRange(0), help="Iteration of the snapshot. [default: the last]")
@click.option(
    "--all", "every", is_flag=True, help="Measure every snapshot too; the report shows them beside each other."
)
@click.option("--gpu", type=click.IntRange(0), help="GPU to compute on. [default: the CPU]")
def evaluate(run: Path, snapshot: int | None, every: bool, gpu: int | None) -> None:
    """Predict both splits; print MAD, CCC and maximum beside the paper's; write figures and report.html."""
    from bonecaffe.evaluation import by_snapshot, stage
    from bonecaffe.predict import predict_run
    from bonecaffe.run import RunDir

    folder = RunDir(run)
    folder.recipe()
    rows = []
    with folder.lock("evaluate"):
        if every:
            with _progress("every snapshot") as progress:
                rows = by_snapshot.evaluate_all(folder, progress, gpu)
        with _progress("predict") as progress:
            predict_run(folder, snapshot, progress, gpu)
        evaluation = stage.evaluate(folder)
    if rows:
        _show_snapshots(run, rows)
    _show_evaluation(run, evaluation)
    click.echo(os.fspath(folder.report))


def _show_evaluation(run: Path, evaluation: Any) -> None:
    from bonecaffe.evaluation.metrics import PAPER

    def interval(pair: tuple[float, float] | None, digits: int) -> str:
        return f"{pair[0]:.{digits}f} to {pair[1]:.{digits}f}" if pair else "not defined"

    rows = []
    for split, metrics in evaluation.splits.items():
        paper = PAPER[split]
        rows.append([
            split, str(metrics.cases), f"{metrics.mad_months:.1f} ({paper['mad_months']})", interval(metrics.mad_interval_95, 1),
            f"{metrics.ccc:.2f} ({paper['ccc']})", interval(metrics.ccc_interval_95, 2),
            f"{metrics.max_error_months:.1f} ({paper['max_error_months']})", f"{metrics.guess_mad_months:.1f}",
        ])  # fmt: skip
    _table(
        f"{run}, iteration {evaluation.iteration}: months (paper)",
        ["split", "hands", "MAD", "95 %", "CCC", "95 %", "maximum", "MAD of guessing the mean"],
        rows,
    )
    for split, metrics in evaluation.splits.items():
        for note in metrics.notes:
            click.echo(f"{split}: {note}")
    click.echo(evaluation.verdict)


def _show_snapshots(run: Path, rows: list[dict[str, Any]]) -> None:
    from bonecaffe.evaluation import by_snapshot

    best, last = by_snapshot.best_and_last(rows)
    marks = (
        {best["iteration"]: "lowest", last["iteration"]: "last"}
        if best is not last
        else {last["iteration"]: "lowest, last"}
    )
    _table(
        f"{run}: every snapshot",
        ["iteration", "split", "MAD", "CCC", "maximum", ""],
        [
            [str(row["iteration"]), row["split"], f"{row['mad_months']:.1f}", f"{row['ccc']:.3f}", f"{row['max_error_months']:.1f}",
             marks.get(row["iteration"], "") if row["split"] == "test" else ""]
            for row in rows
        ],
    )  # fmt: skip
    click.echo(by_snapshot.WARNING)


@main.command()
@RUN
@click.option("--images", type=FOLDER, help="The folder of radiographs that the run was prepared from.")
@click.option("--ages", type=FILE, help="The table of ages that the run was prepared from.")
@click.option("--points", type=FILE, help="The table of points that the run was prepared from.")
@click.option("--json", "as_json", is_flag=True, help="Print the links as JSON.")
def verify(run: Path, images: Path | None, ages: Path | None, points: Path | None, as_json: bool) -> None:
    """Recompute the hashes of a run, from its inputs to its report, and name the first link that broke.

    Exits 1 when one did. The inputs lie outside the run; they are looked at when they are given.
    """
    from bonecaffe import evidence
    from bonecaffe.run import RunDir

    with _progress("verify") as progress:
        links = evidence.verify(RunDir(run), images, ages, points, progress)
    if as_json:
        click.echo(json.dumps([link._asdict() for link in links], indent=2, ensure_ascii=False))
    else:
        _table(str(run), ["link", "", "what"], [[link.name, link.state, link.said] for link in links])
    broken = evidence.first_broken(links)
    if broken:
        click.echo(f"bonecaffe: {run}: the first link that broke: {broken.name}: {broken.said}", err=True)
        raise click.exceptions.Exit(1)
    if not as_json:
        click.echo(f"{run}: every link looked at holds")


@main.command()
@click.argument("folder", metavar="[FOLDER]", type=FOLDER, default=Path("runs"))
@click.option("--json", "as_json", is_flag=True, help="Print the runs as JSON.")
def runs(folder: Path, as_json: bool) -> None:
    """List the runs in FOLDER (runs): recipe, state, iteration, test MAD and CCC."""
    from bonecaffe import evidence

    found = evidence.runs_in(folder)
    if as_json:
        click.echo(json.dumps([summary._asdict() for summary in found], indent=2, ensure_ascii=False))
        return
    rows = []
    for summary in found:
        figures = ["–", "–", "–"]
        if summary.mad_months is not None and summary.ccc is not None:
            figures = [str(summary.evaluated), f"{summary.mad_months:.1f}", f"{summary.ccc:.3f}"]
        rows.append([summary.run, summary.recipe, summary.state, f"{summary.iteration}/{summary.max_iter}", *figures])
    if not rows:
        click.echo(f"{folder}: no runs here")
        return
    columns = ["run", "recipe", "state", "iteration", "evaluated at", "test MAD, months", "test CCC"]
    _table(str(folder), columns, rows)


@main.command()
@click.argument("recipe_name", metavar="RECIPE")
@click.option(
    "--out", type=FOLDER, required=True, help="Folder for the runs, one a seed, and for repeat.csv and repeat.json."
)
@click.option("--seeds", type=click.IntRange(2, 1000), default=5, show_default=True, help="How many seeds.")
@click.option("--first-seed", type=click.IntRange(0), default=1, show_default=True, help="The first; then one by one.")
@click.option("--images", type=FOLDER, required=True, help="Folder of the radiographs, named by id.")
@click.option("--ages", type=FILE, required=True, help="Table of ages, with any of RSNA's headers.")
@click.option("--points", type=FILE, required=True, help="Table of the seven reference points.")
@click.option("--train", "train_cases", type=click.IntRange(1), help="Cases for training. [default: the recipe's]")
@click.option("--test", "test_cases", type=click.IntRange(1), help="Cases for test. [default: the recipe's]")
@click.option("--labels", type=click.Choice(["whole_months", "round", "exact"]), help="As for prepare.")
@click.option("--weights", type=FILE, help="The ImageNet caffemodel that each seed starts from.")
@click.option("--gpu", metavar="0 | 0,1 | all", help="GPUs to train on. [default: 0, when the recipe says GPU]")
@click.option("--cpu", is_flag=True, help="Train on the CPU whatever the recipe says.")
@click.option(
    "--scheduler", metavar="ADDRESS", help="A Dask scheduler, such as tcp://host:8786. [default: here, in sequence]"
)
def repeat(
    recipe_name: str,
    out: Path,
    seeds: int,
    first_seed: int,
    images: Path,
    ages: Path,
    points: Path,
    train_cases: int | None,
    test_cases: int | None,
    labels: str | None,
    weights: Path | None,
    gpu: str | None,
    cpu: bool,
    scheduler: str | None,
) -> None:
    """Run RECIPE over several seeds of split and initialization; report the spread of MAD and CCC.

    Each seed is a run, OUT/seed-N. Called again, it goes on where it stopped.
    """
    from bonecaffe import repeat as repeats
    from bonecaffe.prepare.stage import with_split
    from bonecaffe.recipe import Recipe
    from bonecaffe.training.display import Display

    recipe = with_split(Recipe.load(recipe_name), train_cases, test_cases, None, labels)
    weights = weights.absolute() if weights else None
    paths = (path.absolute() for path in (images, ages, points))
    plan = repeats.Plan(out.absolute(), recipe.to_yaml(), *paths, weights, gpu, cpu)
    chosen = list(range(first_seed, first_seed + seeds))
    results = {result.seed: result for result in repeats.earlier(out, plan)}
    try:
        with Display("repeat") as display:
            if scheduler:
                coming = repeats.on_cluster(plan, chosen, scheduler, display.say)
            else:
                coming = repeats.in_sequence(plan, chosen, display.show, display.say)
            for done, result in enumerate(coming, start=1):
                results[result.seed] = result
                repeats.write(out, plan, list(results.values()))
                mad = "–" if result.test_mad is None else f"{result.test_mad:.1f} months"
                display.say(f"seed {result.seed}: {result.state}, test MAD {mad} ({done} of {seeds} done)")
    except RepeatInterrupted as error:
        click.echo(f"bonecaffe: {error}", err=True)
        raise click.exceptions.Exit(130) from None
    finally:
        _show_spread(out, list(results.values()))


def _show_spread(out: Path, results: list[Any]) -> None:
    from bonecaffe import repeat as repeats

    if not results:
        return
    _table(
        f"{out}: months (paper)",
        ["figure", "mean", "SD", "lowest", "highest", "paper"],
        [
            [s.figure.replace("_", " "), *(f"{v:.3g}" for v in (s.mean, s.sd, s.lowest, s.highest)), str(s.paper)]
            for s in repeats.spreads(results)
        ],
    )
    click.echo(repeats.verdict(results))
    click.echo(os.fspath(out / "repeat.csv"))


@main.command()
@RUN
def repro(run: Path) -> None:
    """Show how a run departs from the paper, field by field, with the reason; write departures.json."""
    from bonecaffe.run import RunDir, write_text

    folder = RunDir(run)
    recipe = folder.trained_recipe()
    departures = recipe.departures()
    content = {"recipe": recipe.name, "departures": [departure._asdict() for departure in departures]}
    write_text(folder.departures, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    if not departures:
        click.echo(f"{run}: departs from the paper in no field")
        return
    _table(
        f"{run}: recipe {recipe.name}",
        ["field", "paper", "this run", "reason"],
        [[d.field, str(d.paper), str(d.here), d.reason] for d in departures],
    )
