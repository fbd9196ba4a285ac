"""Verbs for the input: make phantoms; mark, import, check and find the seven points."""

from __future__ import annotations

import json
import os
from contextlib import closing
from pathlib import Path
from typing import Any

import click

from bonecaffe.cli.group import (
    DICOM_ID,
    ENGINE,
    FILE,
    FOLDER,
    LOCATOR_OR_MODEL,
    main,
    on_one_line,
    print_table,
    progress_bar,
)

WORST = 24
"""Number of hands on the sheet of `points compare`."""


def _size(ctx: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    try:
        width, height = (int(part) for part in value.lower().split("x"))
    except ValueError:
        raise click.BadParameter("give WIDTHxHEIGHT, such as 1000x1300") from None
    if not (200 <= width <= 4000 and 200 <= height <= 4000):
        raise click.BadParameter("width and height must each be 200 to 4000 pixels")
    return width, height


@main.command()
@click.argument("out", metavar="OUT", type=FOLDER)
@click.option("--count", type=click.IntRange(1, 99999), default=600, show_default=True, help="Number of hands.")
@click.option(
    "--seed", type=click.IntRange(0), default=2018, show_default=True, help="The same seed gives the same bytes."
)
@click.option("--size", callback=_size, help="WIDTHxHEIGHT of every image. [default: sizes like RSNA's]")
def phantom(out: Path, count: int, seed: int, size: tuple[int, int] | None) -> None:
    """Draw synthetic hands with known ages and points.

    OUT is the folder to make, in the layout of RSNA's data: ages.csv, points.csv and images/. It also gets
    phantoms.json, which tells `prepare` that the hands are synthetic.
    """
    from bonecaffe.hands.phantom import dataset

    with progress_bar("phantoms") as progress:
        dataset.write(out, count, seed, size, progress)
    click.echo(f"{out}: {count} phantoms; ages.csv, points.csv, images/, phantoms.json")


@main.group(context_settings={"help_option_names": ["-h", "--help"]})
def points() -> None:
    """Import, export, check and compare tables of points."""


@points.command("import")
@click.argument("sources", metavar="FILE_OR_FOLDER...", nargs=-1, required=True, type=FOLDER)
@click.option("--out", type=FILE, required=True, help="The points.csv to write. It must not exist.")
@click.option(
    "--images",
    type=FOLDER,
    help="The radiographs. Names and sizes come from them; points marked at another size are scaled to theirs.",
)
@click.option(
    "--skip-incomplete", is_flag=True, help="Leave out hands that lack a point or an image, without an error."
)
@DICOM_ID
def import_points(sources: tuple[Path, ...], out: Path, images: Path | None, skip_incomplete: bool) -> None:
    """Make a points.csv from another tool's files.

    Formats: Pascal VOC boxes, COCO keypoints, labelme, Label Studio, CVAT, and the CSV of bonecaffe. With VOC, the
    points are the centres of the boxes named MCP (or MCP and MCPFirst), Radius and Ulna.

    A hand with an error is listed and left out; the others are written, and the command exits 1. A hand that is left
    out for a reason that is not an error, such as a task without marks, is only counted.
    """
    from bonecaffe.errors import PointsError
    from bonecaffe.hands import formats
    from bonecaffe.hands.reference_points import write_points

    if out.exists():
        raise PointsError(f"{out}: already exists and is not overwritten. Give another --out, or move it away.")
    imported = formats.read(sources, images, skip_incomplete)
    write_points(out, imported.hands)
    errors = imported.errors
    for error in errors:
        click.echo(f"not imported: {error}", err=True)
    for one in imported.skipped:
        click.echo(f"left out: {one}")
    for note in imported.noted():
        click.echo(note)
    if counts := imported.counts():
        click.echo(f"left out: {counts}")
    click.echo(f"{out}: {len(imported.hands)} hand{'' if len(imported.hands) == 1 else 's'}")
    if errors:
        raise PointsError(
            f"{out}: {len(errors)} could not be imported, listed above. {imported.remedy} "
            f"Move {out.name} away first, or give another --out."
        )


@points.command("export")
@click.argument("table", metavar="POINTS", type=FILE)
@click.option("--format", "kind", type=click.Choice(["coco", "labelme", "csv"]), required=True, help="Format to write.")
@click.option(
    "--out", type=FOLDER, required=True, help="File to write; for labelme a folder, with one file for each hand."
)
@click.option("--images", type=FOLDER, help="The radiographs, for their file names. [default: ID.png]")
@DICOM_ID
def export_points(table: Path, kind: str, out: Path, images: Path | None) -> None:
    """Write a points.csv in another tool's format.

    Formats: COCO keypoints, labelme, or a points.csv without empty rows and extra columns."""
    from bonecaffe.errors import PointsError
    from bonecaffe.files import folder_made, write_text
    from bonecaffe.hands import ids
    from bonecaffe.hands.formats import coco, labelme
    from bonecaffe.hands.images import find_images, missing
    from bonecaffe.hands.reference_points import read_points, write_points

    hands = read_points(table)
    names: dict[str, str] | None = None
    if images is not None:
        found = find_images(images)
        if without := missing(hands, found):
            raise PointsError(f"{images}: no image of {len(without)} hands in {table}: {ids.listed(without)}.")
        names = {hand_id: found[hand_id].name for hand_id in hands}
    if kind == "labelme":
        targets = {
            out / f"{hand.id}.json": labelme.tree(hand, names[hand.id] if names else None) for hand in hands.values()
        }
    else:
        targets = {out: coco.tree(hands.values(), names)}
    existing = [path for path in targets if path.exists()]
    if existing:
        raise PointsError(f"{existing[0]}: already exists and is not overwritten. Give another --out.")
    if kind == "csv":
        write_points(out, hands.values())
    else:
        with folder_made(out if kind == "labelme" else out.parent):
            for path, content in targets.items():
                write_text(path, json.dumps(content, indent=2) + "\n", parents=True)
    click.echo(f"{out}: {len(hands)} hands")


@points.command("check")
@click.argument("table", metavar="POINTS", type=FILE)
@click.option(
    "--images", type=FOLDER, help="The radiographs: their sizes and the brightness of the bones are checked too."
)
@click.option("--sheet", type=FILE, help="PNG to write: the hands in doubt side by side, with points and rectangle.")
@DICOM_ID
def check_points(table: Path, images: Path | None, sheet: Path | None) -> None:
    """List implausible points in a table.

    Checks for fingers out of order, ulna and radius swapped, a rectangle of unusual shape, points on the border,
    duplicates, and a hand that is not upright. With --images also for dark bones, a different image size, and an image
    that is missing or unreadable. Exits 1 if a hand is in doubt. A point that cannot be used at all, such as one
    outside the image, is an error.
    """
    from bonecaffe.hands import plausibility
    from bonecaffe.hands.contact_sheet import write_sheet
    from bonecaffe.hands.images import find_images
    from bonecaffe.hands.reference_points import read_points

    if sheet is not None and images is None:
        raise click.UsageError("--sheet needs --images")
    hands = read_points(table)
    files = {}
    if images is None:
        found = plausibility.all_doubts(hands)
    else:
        files = find_images(images)
        with progress_bar("check") as progress:
            found = plausibility.all_doubts(hands, files, progress)
    for case_id, doubts in sorted(found.items()):
        click.echo(f"{case_id}: {'; '.join(doubts)}")
    shown = [case_id for case_id in sorted(found) if case_id in files]
    if sheet is not None and shown:
        captions = {case_id: "; ".join(found[case_id]) for case_id in shown}
        write_sheet(sheet, [hands[case_id] for case_id in shown], files, captions)
        click.echo(sheet)
    elif sheet is not None:
        click.echo(f"{sheet}: not written, because no hand with an image is in doubt")
    click.echo(f"{table}: {len(hands)} hands, {len(found)} in doubt")
    if found:
        raise click.exceptions.Exit(1)


@points.command("compare")
@click.argument("first", metavar="A", type=FILE)
@click.argument("second", metavar="B", type=FILE)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line, one for each hand.")
@click.option("--images", type=FOLDER, help="The radiographs, needed for --sheet.")
@click.option(
    "--sheet", type=FILE, help="PNG to write: the hands that differ most, A's points as dots, B's as crosses."
)
@DICOM_ID
def compare_points(first: Path, second: Path, as_json: bool, images: Path | None, sheet: Path | None) -> None:
    """Show the differences between two markings of the same hands.

    In pixels, in percent of the palm, and as the overlap of the rectangles. The palm is the distance from the middle
    between ulna and radius to the middle finger's point.
    """
    import numpy

    from bonecaffe.errors import PointsError
    from bonecaffe.hands import agreement
    from bonecaffe.hands.contact_sheet import write_sheet
    from bonecaffe.hands.images import find_images
    from bonecaffe.hands.reference_points import POINT_NAMES, read_points

    if (sheet is None) != (images is None):
        raise click.UsageError("give --sheet and --images together, or neither")
    a, b = read_points(first, guesses=True), read_points(second, guesses=True)
    found = agreement.compare(a, b)
    if sheet is not None and images is not None:
        files = find_images(images)
        worst_first = [hand.id for hand in sorted(found, key=lambda hand: hand.iou) if hand.id in files][:WORST]
        if not worst_first:
            raise PointsError(f"{images}: no image of any hand that is in both tables.")
        captions = {
            hand.id: f"IoU {hand.iou:.3f}; {numpy.mean(hand.pixels):.1f} pixels apart, "
            f"{numpy.mean(hand.percent):.1f} % of the palm"
            for hand in found
        }
        write_sheet(sheet, [a[case_id] for case_id in worst_first], files, captions, others=b)
    if as_json:
        for hand in found:
            click.echo(json.dumps(hand._asdict()))
        return
    pixels, percent = (numpy.array([getattr(hand, name) for hand in found]) for name in ("pixels", "percent"))
    figures = zip(numpy.median(pixels, 0), pixels.max(0), numpy.median(percent, 0), percent.max(0), strict=True)
    rows = [[name, *(f"{value:.1f}" for value in row)] for name, row in zip(POINT_NAMES, figures, strict=True)]
    columns = ["point", "median, pixels", "largest", "median, % of the palm", "largest"]
    print_table(f"{len(found)} hands, marked twice", columns, rows)
    overlaps = numpy.array([hand.iou for hand in found])
    worst = min(found, key=lambda hand: hand.iou)
    click.echo(
        f"overlap of the rectangles (IoU): median {numpy.median(overlaps):.3f}, "
        f"smallest {worst.iou:.3f} (id {worst.id})"
    )


@main.command()
@click.argument("images", metavar="IMAGES", type=FOLDER)
@click.option(
    "--points", "table", type=FILE, required=True, help="The points.csv to write; an existing one is continued."
)
@click.option(
    "--suggest",
    type=FILE,
    help="Table of suggested points, such as `bonecaffe locate` writes. One key accepts a point.",
)
@click.option(
    "--recipe", "recipe_name", default="paper", show_default=True, help="Recipe whose crop and contrast the page shows."
)
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Port of the page. [default: a free one]")
@click.option("--open/--no-open", "show", default=True, help="Open the page in your browser.")
@DICOM_ID
def annotate(images: Path, table: Path, suggest: Path | None, recipe_name: str, port: int, show: bool) -> None:
    """Mark the seven points of each hand in your browser.

    IMAGES is a folder of radiographs. One click marks a point, and every click is saved at once. Only this machine can
    open the page. Started again, it opens the first hand that is not complete. The page does not leave a hand that
    `bonecaffe points check` would list until you correct or confirm it.
    """
    from bonecaffe.annotate.marking import opened
    from bonecaffe.annotate.server import Server
    from bonecaffe.hands import ids
    from bonecaffe.hands.images import passed_over
    from bonecaffe.hands.reference_points import read_points
    from bonecaffe.recipe import Recipe

    suggestions = read_points(suggest, guesses=True) if suggest else None
    with (
        opened(images, table, suggestions) as marking,
        closing(Server(marking, Recipe.load(recipe_name).preparation, port)) as server,
    ):
        states = [marks.state for _, marks in marking.all()]
        if others := passed_over(images):
            click.echo(f"{images}: not images, ignored: {others}")
        if left_out := marking.left_out:
            named = ids.listed(left_out)
            click.echo(f"{images}: {len(left_out)} images are links to files outside it and are not shown: {named}")
        rest = {"partial": "partly marked", "unmarked": "not marked", "skipped": "skipped"}
        counted = ", ".join(f"{states.count(state)} {text}" for state, text in rest.items())
        click.echo(f"{table}: {states.count('done')} of {len(states)} hands done, {counted}")
        click.echo(f"Open {server.address}\nPress Ctrl-C to stop. Every click is saved at once.")
        if show and any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")):
            click.launch(server.address)
        server.run()


@main.command()
@click.argument("images", metavar="IMAGES", type=FOLDER)
@click.option(
    "--points",
    "table",
    type=FILE,
    required=True,
    help="The points.csv to write. It gets the hands found with confidence.",
)
@LOCATOR_OR_MODEL
@click.option("--sheet", type=FILE, help="PNG to write: the uncertain hands side by side, with the guessed points.")
@click.option("--jobs", type=click.IntRange(1), help="Number of processes. [default: one per core]")
@ENGINE
@DICOM_ID
def locate(images: Path, table: Path, locator: Path | None, sheet: Path | None, jobs: int | None, engine: Any) -> None:
    """Find the seven points of each hand automatically.

    IMAGES is a folder of radiographs. The table of --points gets the hands found with confidence. Next to it, a file
    NAME.found.csv gets every hand with its confidence, verdict and points, each saved as soon as it is done. Correct
    the uncertain ones with `bonecaffe annotate --suggest NAME.found.csv`. Called again, the command processes only new
    images. A file that cannot be used is listed, and the others are still processed.
    """
    from bonecaffe.hands.contact_sheet import write_sheet
    from bonecaffe.hands.images import find_images, passed_over
    from bonecaffe.hands.provenance import found_file
    from bonecaffe.locate import locate
    from bonecaffe.locate.locator import MODEL

    with progress_bar("locate") as progress:
        results, new = locate.locate(images, table, locator or MODEL, progress, jobs, engine)
    if others := passed_over(images):
        click.echo(f"{images}: not images, ignored: {others}")
    doubtful = [result for result in results if not result.confident]
    for result in doubtful:
        click.echo(on_one_line(f"{result.id}: {result.verdict}"))
    for result in results:
        if result.confident and result.remarks:
            click.echo(on_one_line(f"{result.id}: {result.remarks}"))
    guesses = [hand for result in doubtful if (hand := result.hand())]
    if sheet is not None and guesses:
        captions = {result.id: f"{result.verdict} (confidence {result.confidence:.2f})" for result in doubtful}
        write_sheet(sheet, guesses, find_images(images, {}), captions)
        click.echo(sheet)
    elif sheet is not None:
        click.echo(f"{sheet}: not written, because no uncertain hand has guessed points")
    seen = "nothing changed" if not new else f"{new} processed"
    counts = f"{len(results) - len(doubtful)} confident, {len(doubtful)} uncertain"
    click.echo(f"{table}: {seen}; {counts}; all in {found_file(table)}")


@main.command("train-locator")
@click.argument("out", metavar="OUT", type=FOLDER)
@click.option("--images", type=FOLDER, help="Folder of your own radiographs, to learn from as well.")
@click.option("--points", "table", type=FILE, help="Table of the points that you marked in them.")
@click.option(
    "--from",
    "start",
    type=FOLDER,
    help="A locator to start from. [default: with --images the one in bonecaffe, otherwise none]",
)
@click.option("--phantoms", type=click.IntRange(1), help="Number of phantoms to learn from.")
@click.option(
    "--iterations", type=click.IntRange(8), help="Iterations for each of the two nets; each uses 32 image squares."
)
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=1,
    show_default=True,
    help="Seed of phantoms, variations and initial weights.",
)
@DICOM_ID
def train_locator(
    out: Path,
    images: Path | None,
    table: Path | None,
    start: Path | None,
    phantoms: int | None,
    iterations: int | None,
    seed: int,
) -> None:
    """Train a locator, on phantoms or on your own hands too.

    A locator is two nets that `locate` finds the points with. Caffe trains them on the CPU. On two cores this takes a
    few minutes with --images, and an hour and a half without. OUT, the folder to make, needs 4 GB meanwhile. After an
    interruption, the same command continues.
    """
    from bonecaffe.locate import learn

    if (images is None) != (table is None):
        raise click.UsageError("give --images and --points together, or neither")
    learn.train_locator(out, images, table, start, phantoms, iterations, seed, progress_bar, click.echo)
    click.echo(f"{out}: the locator is trained; use it with: bonecaffe locate IMAGES --points POINTS --locator {out}")
