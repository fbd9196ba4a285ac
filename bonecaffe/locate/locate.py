"""A folder of images in, a table of points out: what was found, and what was not, with the reason."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

from bonecaffe.caffe import nets as engines
from bonecaffe.errors import BonecaffeError, ImageError, LocateError
from bonecaffe.files import followed, held, read_table, read_text, sha256, sha256_file, sweep, table_text, write_text
from bonecaffe.hands import images as hand_images
from bonecaffe.hands.provenance import FoundHand, found_file, read_found, write_found
from bonecaffe.hands.reference_points import COLUMNS, ReferencePoints, lock_file, read_points
from bonecaffe.locate.locator import MODEL, Found, Locator
from bonecaffe.locate.verdict import inside
from bonecaffe.predict import points_for
from bonecaffe.progress import Progress, unseen
from bonecaffe.workers import in_parallel

_SAVE_EACH = 50


def judge(case_id: str, shape: tuple[int, int], found: Found, key: str = "") -> FoundHand:
    """What was found in an image (height, width), as it is kept."""
    height, width = shape
    found = found._replace(shape=shape)
    points = inside(found.points, shape)
    usable = not ReferencePoints(case_id, width, height, points).problems()
    return FoundHand(case_id, width, height, points if usable else None, round(found.confidence, 3), found.verdict, key)


# ---- a worker --------------------------------------------------------------------------------------------------

_locators: dict[str, Locator] = {}


def _work(task: tuple[str, str, str, str, engines.Kind]) -> FoundHand:
    case_id, path, model, key, engine = task
    if model not in _locators:
        os.environ["OMP_NUM_THREADS"] = "1"  # the processes are what runs in parallel
        _locators[model] = Locator(Path(model), engine)
    try:
        image = hand_images.read_image(path)
        return judge(case_id, image.shape, _locators[model].find(image), key)
    except BonecaffeError as error:
        return FoundHand(case_id, 0, 0, None, 0.0, f"unreadable: {error}", key)


def points_of(image: Path, model: Path = MODEL, engine: engines.Kind = "caffe") -> ReferencePoints:
    """The points of one image, when they are sure; ImageError or LocateError with the reason otherwise."""
    pixels = hand_images.read_image(image)
    if str(model) not in _locators:
        _locators[str(model)] = Locator(model, engine)
    result = judge(image.stem, pixels.shape, _locators[str(model)].find(pixels))
    hand = result.hand()
    if not result.sure or hand is None:
        reason = result.verdict.removeprefix("unsure: ")
        raise LocateError(f"{image}: the seven points found are uncertain: {reason}. Mark them, and give --points.")
    return hand


def hands_in(
    images: Sequence[Path], table: Path | None, engine: engines.Kind = "caffe"
) -> tuple[list[tuple[Path, ReferencePoints]], list[str]]:
    """Images with their points, from a table or found, and why others were refused.

    PredictError when an image is not in the table; one whose points are found, but are not sure, is refused.
    """
    if table is not None:
        marked = read_points(table)
        return [(image, points_for(image, marked)) for image in images], []
    hands, refused = [], []
    for image in images:
        try:
            hands.append((image, points_of(image, engine=engine)))
        except (ImageError, LocateError) as error:
            refused.append(str(error))
    return hands, refused


# ---- the stage -------------------------------------------------------------------------------------------------


def locate(
    images: Path,
    table: Path,
    model: Path,
    progress: Progress = unseen,
    jobs: int | None = None,
    engine: engines.Kind = "caffe",
) -> tuple[list[FoundHand], int]:
    """Find the points of every hand in a folder; the folder's results, by id, and how many are new.

    ``table`` gets the hands that are sure, the others as empty rows; `found_file` gets everything. What was found
    before in the same image by the same model is not looked for again, and what was found in another folder stays.
    Raises LocateError rather than write over a table that is not its own work, untouched, or is being marked.
    """

    def busy(holder: str) -> LocateError:
        return LocateError(f"{table}: in use by {holder or 'another program'}. Stop it, or give another --points.")

    table = followed(table)  # a link stays one
    table.parent.mkdir(parents=True, exist_ok=True)
    with held(lock_file(table), "locate", busy):
        for name in (table.name, found_file(table).name):
            sweep(table.parent, name)
        return _locate(images, table, model, progress, jobs, engine)


def _locate(
    images: Path, table: Path, model: Path, progress: Progress, jobs: int | None, engine: engines.Kind
) -> tuple[list[FoundHand], int]:
    files = hand_images.find_images(images)
    model_key = _model_key(model)
    before = read_found(table)
    if table.exists() and not _own_work(table, before):
        raise LocateError(
            f"{table}: is there already and not as locate wrote it: marked by hand, perhaps. "
            "Give another --points, or move it away."
        )
    keys = {case_id: _key(path, model_key) for case_id, path in files.items()}
    results = {case_id: result for case_id, result in before.items() if result.key == keys.get(case_id, result.key)}
    tasks = [
        (case_id, str(path), str(model), keys[case_id], engine)
        for case_id, path in files.items()
        if case_id not in results
    ]
    if tasks:
        Locator(model, engine)  # raises at once when there is none
    workers = min(jobs or len(os.sched_getaffinity(0)), max(1, len(tasks)))
    try:
        with closing(in_parallel(_work, tasks, workers, LocateError)) as found:
            for done, result in enumerate(found, start=1):
                results[result.id] = result
                progress(done, len(tasks))
                if done % _SAVE_EACH == 0:
                    write_found(table, results)
    finally:
        if tasks and results:
            write_found(table, results)
            if table.exists():  # so that it is our own, untouched, when we go on
                write_text(table, _points_text(results))
    text = _points_text(results)
    if not table.exists() or read_text(table, "table", LocateError) != text:
        write_text(table, text, parents=True)
    return [results[case_id] for case_id in sorted(files)], len(tasks)


def _own_work(table: Path, found: Mapping[str, FoundHand]) -> bool:
    """Whether every marked row of a table is what `locate` wrote.

    The table may lack the newest findings, when `locate` was killed.
    """
    for _, row in read_table(table, LocateError).rows():
        result = found.get(row.get("id", ""))
        expected = dict(zip(COLUMNS, result.row(), strict=True)) if result and result.sure else {}
        if any(row.get(column) for column in COLUMNS[1:]) and row != expected:
            return False
    return bool(found)


def _model_key(model: Path) -> str:
    """The hash of both nets; empty where there are none."""
    nets = [model / f"{view}.caffemodel" for view in ("whole", "near")]
    return sha256("".join(map(sha256_file, nets))) if nets[-1].is_file() else ""


def _key(path: Path, model_key: str) -> str:
    status = os.stat(path)
    return sha256(f"{status.st_size} {status.st_mtime_ns} {model_key}")[:16]


def _points_text(results: Mapping[str, FoundHand]) -> str:
    """points.csv: the sure ones; a row without points for the others, as for hands not marked yet."""
    rows = [results[case_id].row() if results[case_id].sure else [case_id, *[""] * 16] for case_id in sorted(results)]
    return table_text(COLUMNS, rows)
