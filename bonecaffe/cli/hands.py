"""Verbs for the input: phantoms, and the seven points marked, imported, checked, found."""

from __future__ import annotations

import json
import os
from contextlib import closing
from pathlib import Path
from typing import Any

import click

from bonecaffe.cli.group import ENGINE, FILE, FOLDER, LOCATOR_OR_MODEL, main, on_one_line, print_table, progress_bar

WORST = 24
"""Hands on the sheet of `points compare`."""


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

    OUT gets ages.csv, points.csv and images/, and phantoms.json, by which `prepare` knows that they are phantoms.
    """
    from bonecaffe.hands.phantom import dataset

    with progress_bar("phantoms") as progress:
        dataset.write(out, count, seed, size, progress)
    click.echo(f"{out}: {count} phantoms; ages.csv, points.csv, images/, phantoms.json")


@main.group(context_settings={"help_option_names": ["-h", "--help"]})
def points() -> None:
    """Bring the seven points in from other tools' files, out into them; check them; compare two markings."""


@points.command("import")
@click.argument("sources", metavar="FILE_OR_FOLDER...", nargs=-1, required=True, type=FOLDER)
@click.option("--out", type=FILE, required=True, help="The points.csv to write. It must not exist yet.")
@click.option(
    "--images",
    type=FOLDER,
    help="The radiographs. Names and sizes come from them; points marked in another size are scaled to theirs.",
)
@click.option(
    "--skip-incomplete", is_flag=True, help="Accept hands whose seven points, or image, are missing: leave them out."
)
def import_points(sources: tuple[Path, ...], out: Path, images: Path | None, skip_incomplete: bool) -> None:
    """Read Pascal VOC boxes, COCO keypoints, labelme, Label Studio, CVAT or our own CSV into a points.csv.

    VOC boxes of bones give the points by their centres: MCP (or MCP and MCPFirst), Radius, Ulna.

    A hand with an error is listed and left out; the others are written, and the command exits 1. What is left out
    for a reason that is no error, such as a task that nobody marked, is counted.
    """
    from bonecaffe.errors import PointsError
    from bonecaffe.hands import formats
    from bonecaffe.hands.reference_points import write_points

    if out.exists():
        raise PointsError(f"{out}: exists already, and is not overwritten. Give another --out, or move it away.")
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
            f"Move {out.name} away before, or give another --out."
        )


@points.command("export")
@click.argument("table", metavar="POINTS", type=FILE)
@click.option("--format", "kind", type=click.Choice(["coco", "labelme", "csv"]), required=True, help="What to write.")
@click.option("--out", type=FOLDER, required=True, help="A file; for labelme a folder, a file each hand.")
@click.option("--images", type=FOLDER, help="The radiographs, whose names are written. [default: each is ID.png]")
def export_points(table: Path, kind: str, out: Path, images: Path | None) -> None:
    """Write a points.csv as COCO keypoints, labelme files, or a tidy points.csv."""
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
        raise PointsError(f"{existing[0]}: exists already, and is not overwritten. Give another --out.")
    if kind == "csv":
        write_points(out, hands.values())
    else:
        with folder_made(out if kind == "labelme" else out.parent):
            for path, content in targets.items():
                write_text(path, json.dumps(content, indent=2) + "\n", parents=True)
    click.echo(f"{out}: {len(hands)} hands")


@points.command("check")
@click.argument("table", metavar="POINTS", type=FILE)
@click.option("--images", type=FOLDER, help="The radiographs: their sizes and how bones look are checked too.")
@click.option("--sheet", type=FILE, help="Write the hands in doubt, with points and rectangle, side by side as a PNG.")
def check_points(table: Path, images: Path | None, sheet: Path | None) -> None:
    """List what is implausible in a table of points.

    Fingers out of order, a crossed forearm, the rectangle's aspect, points on the border, duplicates, a hand that is
    not upright; with --images, dark bones, another size, an image that is missing or unreadable. Exits 1 when a hand is
    in doubt. What cannot be used at all, such as a point outside the image, is an error by itself.
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
@click.option("--json", "as_json", is_flag=True, help="Print every hand as a JSON object a line.")
@click.option("--images", type=FOLDER, help="The radiographs, for --sheet.")
@click.option(
    "--sheet", type=FILE, help="Write the hands that differ most, A's points as dots, B's as crosses, as a PNG."
)
def compare_points(first: Path, second: Path, as_json: bool, images: Path | None, sheet: Path | None) -> None:
    """Show how far two markings of the same hands lie apart: pixels, percent of the palm, overlap of the rectangles.

    The palm is the distance from the middle between ulna and radius to the middle finger's point.
    """
    import numpy

    from bonecaffe.errors import PointsError
    from bonecaffe.hands import agreement
    from bonecaffe.hands.contact_sheet import write_sheet
    from bonecaffe.hands.images import find_images
    from bonecaffe.hands.reference_points import POINT_NAMES, read_points

    if (sheet is None) != (images is None):
        raise click.UsageError("--sheet and --images belong together")
    a, b = read_points(first, guesses=True), read_points(second, guesses=True)
    found = agreement.compare(a, b)
    if sheet is not None and images is not None:
        files = find_images(images)
        worst_first = [hand.id for hand in sorted(found, key=lambda hand: hand.iou) if hand.id in files][:WORST]
        if not worst_first:
            raise PointsError(f"{images}: no image of the hands that both tables hold.")
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
    "--points", "table", type=FILE, required=True, help="The points.csv to write; one that is there is gone on with."
)
@click.option(
    "--suggest", type=FILE, help="Points to be offered, accepted with one key; as `bonecaffe locate` writes them."
)
@click.option("--recipe", "recipe_name", default="paper", show_default=True, help="Whose view of the hand is shown.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Of this machine. [default: any that is free]")
@click.option("--open/--no-open", "show", default=True, help="Open the page in your browser.")
def annotate(images: Path, table: Path, suggest: Path | None, recipe_name: str, port: int, show: bool) -> None:
    """Mark the seven points of the hands in a folder, in your browser: a click a point, on disk at once.

    The page is for this machine alone. Begun again, it opens the first hand that is not complete. A hand that
    `bonecaffe points check` would list is held until you correct or confirm it.
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
            click.echo(f"{images}: no images, passed over: {others}")
        if left_out := marking.left_out:
            named = ids.listed(left_out)
            click.echo(f"{images}: {len(left_out)} images are links that lead out of it, and are not shown: {named}")
        rest = {"partial": "partly marked", "unmarked": "not marked", "skipped": "skipped"}
        counted = ", ".join(f"{states.count(state)} {text}" for state, text in rest.items())
        click.echo(f"{table}: {states.count('done')} of {len(states)} hands done, {counted}")
        click.echo(f"Open {server.address}\nCtrl-C ends it; every click is on disk already.")
        if show and any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")):
            click.launch(server.address)
        server.run()


@main.command()
@click.argument("images", metavar="IMAGES", type=FOLDER)
@click.option(
    "--points", "table", type=FILE, required=True, help="The points.csv to write: the hands found with confidence."
)
@LOCATOR_OR_MODEL
@click.option("--sheet", type=FILE, help="Write the uncertain hands, with the guesses, side by side as a PNG.")
@click.option("--jobs", type=click.IntRange(1), help="Processes. [default: one a core]")
@ENGINE
def locate(images: Path, table: Path, locator: Path | None, sheet: Path | None, jobs: int | None, engine: Any) -> None:
    """Find the seven points of the hands in a folder, without a hand on the mouse.

    Beside POINTS, a file NAME.found.csv holds every image's confidence and verdict, and the guess where it is
    uncertain; `bonecaffe annotate --suggest` offers them for a look. Each hand is stored there as it is done. Called
    again, only new images are looked at. A file that cannot be used is listed, and the others are looked at.
    """
    from bonecaffe.hands.contact_sheet import write_sheet
    from bonecaffe.hands.images import find_images, passed_over
    from bonecaffe.hands.provenance import found_file
    from bonecaffe.locate import locate
    from bonecaffe.locate.locator import MODEL

    with progress_bar("locate") as progress:
        results, new = locate.locate(images, table, locator or MODEL, progress, jobs, engine)
    if others := passed_over(images):
        click.echo(f"{images}: no images, passed over: {others}")
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
        click.echo(f"{sheet}: not written, because there is no guess in doubt to show")
    seen = "nothing changed" if not new else f"{new} looked at"
    counts = f"{len(results) - len(doubtful)} confident, {len(doubtful)} uncertain"
    click.echo(f"{table}: {seen}; {counts}; all in {found_file(table)}")


@main.command("train-locator")
@click.argument("out", metavar="OUT", type=FOLDER)
@click.option("--images", type=FOLDER, help="Your own radiographs, for a locator that knows them.")
@click.option("--points", "table", type=FILE, help="The points that you marked in them.")
@click.option(
    "--from",
    "start",
    type=FOLDER,
    help="A locator to go on from. [default: with --images, the one that comes with bonecaffe; else none]",
)
@click.option("--phantoms", type=click.IntRange(1), help="How many phantoms it learns from.")
@click.option("--iterations", type=click.IntRange(8), help="Of each of the two nets; 32 squares each.")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Of phantoms, variations and nets.")
def train_locator(
    out: Path,
    images: Path | None,
    table: Path | None,
    start: Path | None,
    phantoms: int | None,
    iterations: int | None,
    seed: int,
) -> None:
    """Train the locator's two nets with Caffe, on the CPU.

    They learn from phantoms alone, or from your own marked hands too.

    On two cores: with --images a few minutes, without it an hour and a half; OUT holds 4 GB
    meanwhile. Interrupted, it goes on when called again.
    """
    from bonecaffe.locate import learn

    if (images is None) != (table is None):
        raise click.UsageError("--images and --points belong together")
    learn.train_locator(out, images, table, start, phantoms, iterations, seed, progress_bar, click.echo)
    click.echo(f"{out}: a locator; use it with: bonecaffe locate IMAGES --points POINTS --locator {out}")
