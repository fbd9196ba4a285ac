"""From a folder of images to a table of points: those that were found, and the reason where none were."""

from __future__ import annotations

import os
import traceback
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from bonecaffe.caffe import nets as engines
from bonecaffe.errors import BonecaffeError, ImageError, LocateError, PredictError
from bonecaffe.files import (
    cut_unfinished_line,
    followed,
    held,
    read_table,
    read_text,
    sha256,
    sha256_file,
    sweep,
    table_text,
    write_text,
)
from bonecaffe.hands import images as hand_images
from bonecaffe.hands.provenance import FoundHand, appending_found, found_file, read_found, write_found
from bonecaffe.hands.reference_points import COLUMNS, ReferencePoints, lock_file, read_points
from bonecaffe.hands.standard_view import Polarity, polarity_of, polarity_remarks, quarters, turn_remarks
from bonecaffe.locate.locator import MODEL, Found, Locator
from bonecaffe.locate.verdict import CONFIDENT, inside
from bonecaffe.predict import Hand, Refused, points_for, refusal
from bonecaffe.progress import Progress, unseen
from bonecaffe.workers import in_parallel

FINDS = 4
"""Increased when the same nets find other points in the same image, or the wording of a verdict changes: earlier
results are then discarded."""


def judge(
    case_id: str, shape: tuple[int, int], found: Found, key: str = "", image: hand_images.Image | None = None
) -> FoundHand:
    """The result for an image (height, width), as it is stored; with the image, its polarity is judged too."""
    height, width = shape
    found = found._replace(shape=shape)
    points = inside(found.points, shape)
    usable = not ReferencePoints(case_id, width, height, points).problems()
    verdict, remarks = found.verdict, turn_remarks(quarters(points)) if usable else []
    if usable and image is not None and verdict == CONFIDENT:
        polarity = polarity_of(image, points)
        if polarity in (Polarity.DOUBTFUL, Polarity.UNSEEN):
            verdict = f"uncertain: {polarity_remarks(polarity)[0]}"
        else:
            remarks += polarity_remarks(polarity)
    confidence = round(found.confidence, 3)
    return FoundHand(case_id, width, height, points if usable else None, confidence, verdict, key, "; ".join(remarks))


# ---- hands to be predicted --------------------------------------------------------------------------------------


def find_hand(image: Path, locator: Locator) -> Hand | Refused:
    """A radiograph with its points found, or why it is refused: unreadable, or the points are uncertain."""
    try:
        pixels = hand_images.read_image(image)
        result = judge(hand_images.id_of(image), pixels.shape, locator.find(pixels), image=pixels)
    except Exception as error:
        return refusal(image, error, "found")
    points = result.hand()
    if result.confident and points is not None:
        return Hand(image, points, "found", result.confidence, pixels=pixels)
    reason = result.verdict.removeprefix("uncertain: ")
    uncertain = LocateError(f"{image}: the seven points found are uncertain: {reason}. Mark them, and give --points.")
    return refusal(image, uncertain, "found", result.confidence)


def hands_in(
    images: Iterable[Path], table: Path | None = None, engine: engines.Kind | None = None, locator: Path = MODEL
) -> Iterator[Hand | Refused]:
    """Images with their points, from a table or found, one after the other; a folder means all images in it.

    An image that cannot be read, is not in the table, or whose points are uncertain is refused; the others are not
    affected. Errors that concern all of them are raised at once: PointsError for a table that cannot be read,
    LocateError when ``locator`` is not a locator, CaffeError when the engine is not installed.
    """
    if table is None:
        finder = Locator(locator, engine)
        return (each if isinstance(each, Refused) else find_hand(each, finder) for each in _each_image(images))
    faulty: dict[str, str] = {}
    marked = read_points(table, faulty=faulty)
    return (
        each if isinstance(each, Refused) else _marked_hand(each, table, marked, faulty) for each in _each_image(images)
    )


def _each_image(images: Iterable[Path]) -> Iterator[Path | Refused]:
    for image in images:
        if not os.path.isdir(image):
            yield image
            continue
        refused: dict[Path, str] = {}
        try:
            yield from hand_images.find_images(image, refused).values()
        except ImageError as error:
            yield refusal(image, error)
        yield from (Refused(path, reason) for path, reason in refused.items())


def _marked_hand(
    image: Path, table: Path, marked: Mapping[str, ReferencePoints], faulty: Mapping[str, str]
) -> Hand | Refused:
    try:
        if (fault := faulty.get(hand_images.id_of(image))) is not None:
            return Refused(image, f"{image}: {fault}", "table")
        return Hand(image, points_for(image, marked, table), "table")
    except (ImageError, PredictError) as error:
        return refusal(image, error, "table")


# ---- a worker --------------------------------------------------------------------------------------------------

_locators: dict[tuple[str, engines.Kind | None], Locator] = {}


class _Task(NamedTuple):
    id: str
    path: str
    model: str
    key: str
    engine: engines.Kind | None


_CV2_NO_MEMORY = -4
"""OpenCV's code of the error that it raises for lack of memory."""


class _Failed(NamedTuple):
    """A failure of a worker that the image did not cause: a bug, or a lack of memory."""

    id: str
    error: str
    trace: str
    memory: bool


def _work(task: _Task) -> FoundHand | _Failed:
    made = (task.model, task.engine)
    if made not in _locators:
        os.environ["OMP_NUM_THREADS"] = "1"  # the processes are what runs in parallel
        _locators[made] = Locator(Path(task.model), task.engine)
    try:
        image = hand_images.read_image(task.path)
        return judge(task.id, image.shape, _locators[made].find(image), task.key, image)
    except BonecaffeError as error:
        return _unreadable(task.id, str(error), task.key)
    except Exception as error:  # this affects only this image
        memory = isinstance(error, MemoryError) or getattr(error, "code", 0) == _CV2_NO_MEMORY
        return _Failed(task.id, f"{type(error).__name__}: {error}", traceback.format_exc(), memory)


def _unreadable(case_id: str, reason: str, key: str) -> FoundHand:
    return FoundHand(case_id, 0, 0, None, 0.0, f"unreadable: {' '.join(reason.split())}", key)


class _WorkerKilled(LocateError):
    """A worker process died."""


_KILLS_AT_MOST = 3
"""Workers lost in a row without a single result. After that, the machine is the cause, not the images."""


def _looked_at(tasks: Sequence[_Task], workers: int) -> Generator[FoundHand | _Failed, None, None]:
    """What is found for each task, in order.

    An image that kills its worker, for example through a bug in a decoder, does not affect the others: the remaining
    images are tried by one worker, and the image that kills this one too is left out.
    """
    done = kills = 0
    at_once = workers
    while done < len(tasks):
        try:
            with closing(in_parallel(_work, tasks[done:], at_once, _WorkerKilled)) as found:
                for result in found:
                    done, kills = done + 1, 0
                    yield result
        except _WorkerKilled:
            if kills == _KILLS_AT_MOST:
                raise
            kills += 1
            if at_once > 1:
                at_once = 1
                continue
            reason = "the process that looked at it was killed, through lack of memory or a bug in a library"
            yield _unreadable(tasks[done].id, reason, "")  # without a key, so that it is tried again next time
            done, at_once = done + 1, workers


# ---- the stage -------------------------------------------------------------------------------------------------


def locate(
    images: Path,
    table: Path,
    model: Path,
    progress: Progress = unseen,
    jobs: int | None = None,
    engine: engines.Kind | None = None,
) -> tuple[list[FoundHand], int]:
    """Find the points of every hand in a folder; the folder's results, by id, and how many are new.

    ``table`` gets the hands found with confidence, the others as empty rows; `found_file` gets all. Earlier results of
    the same model for an unchanged image are kept, and so are those of images in other folders. Raises LocateError, and
    does not overwrite the table, when `locate` did not write it, when it was changed since, or when it is in use.
    """

    def busy(holder: str) -> LocateError:
        return LocateError(f"{table}: in use by {holder or 'another program'}. Stop it, or give another --points.")

    table = followed(table)  # a link stays a link
    table.parent.mkdir(parents=True, exist_ok=True)
    with held(lock_file(table), "locate", busy):
        for name in (table.name, found_file(table).name):
            sweep(table.parent, name)
        return _locate(images, table, model, progress, jobs, engine)


def _locate(
    images: Path, table: Path, model: Path, progress: Progress, jobs: int | None, engine: engines.Kind | None
) -> tuple[list[FoundHand], int]:
    refused: dict[Path, str] = {}
    files = hand_images.find_images(images, refused)
    if not files:
        raise LocateError(f"{images}: no image here has a name that can be used. {next(iter(refused.values()))}")
    unnamed = [_unreadable(ascii(path.name)[1:-1], reason, "") for path, reason in refused.items()]
    model_key = _model_key(model)
    cut_unfinished_line(found_file(table))
    before = read_found(table)
    if table.exists() and not _own_work(table, before):
        raise LocateError(
            f"{table}: already exists and is not as locate wrote it; perhaps it was marked by hand. "
            "Give another --points, or move it away."
        )
    keys = {case_id: _key(path, model_key) for case_id, path in files.items()}
    results = {case_id: result for case_id, result in before.items() if result.key == keys.get(case_id, result.key)}
    tasks = [
        _Task(case_id, str(path), str(model), keys[case_id], engine)
        for case_id, path in files.items()
        if case_id not in results
    ]
    failed = _look(tasks, table, model, results, progress, jobs, engine) if tasks else []
    _write_points(table, results)
    if failed:
        raise _failure(failed[0], files[failed[0].id])
    return [*(results[case_id] for case_id in sorted(files)), *unnamed], len(tasks)


def _look(
    tasks: Sequence[_Task],
    table: Path,
    model: Path,
    results: dict[str, FoundHand],
    progress: Progress,
    jobs: int | None,
    engine: engines.Kind | None,
) -> list[_Failed]:
    """Do the tasks: each hand is added to the results and stored as soon as it is done. Returns the failures.

    At any moment, every marked row of the table is also in `found_file`, so that after a kill the table is still
    recognized as written by `locate` (`_own_work`).
    """
    Locator(model, engine)  # raises at once when there is no locator
    if table.exists():
        _write_points(table, results)
    write_found(table, results)
    workers = min(jobs or len(os.sched_getaffinity(0)), len(tasks))
    failed: list[_Failed] = []
    try:
        with appending_found(table) as store, closing(_looked_at(tasks, workers)) as found:
            for done, result in enumerate(found, start=1):
                if isinstance(result, _Failed):
                    failed.append(result)
                else:
                    results[result.id] = result
                    store(result)
                progress(done, len(tasks))
    finally:
        write_found(table, results)
        if table.exists():
            _write_points(table, results)
    return failed


def _failure(failed: _Failed, image: Path) -> Exception:
    """The error to raise for a failure, after everything else is stored."""
    error = MemoryError(str(image)) if failed.memory else RuntimeError(f"{image}: {failed.error}")
    error.add_note(f"in a worker process:\n{failed.trace}")
    return error


def _own_work(table: Path, found: Mapping[str, FoundHand]) -> bool:
    """Whether every marked row of a table is what `locate` wrote.

    The table may lack the newest findings, when `locate` was killed.
    """
    for _, row in read_table(table, LocateError).rows():
        result = found.get(row.get("id", ""))
        expected = dict(zip(COLUMNS, result.row(), strict=True)) if result and result.confident else {}
        if any(row.get(column) for column in COLUMNS[1:]) and row != expected:
            return False
    return found_file(table).exists()


def _model_key(model: Path) -> str:
    """The hash of both nets; empty where there are none."""
    nets = [model / f"{view}.caffemodel" for view in ("whole", "near")]
    return sha256("".join(map(sha256_file, nets))) if nets[-1].is_file() else ""


def _key(path: Path, model_key: str) -> str:
    """A key that changes with the image or the model; empty for a broken link, or an image that no longer exists."""
    try:
        status = os.stat(path)
    except OSError:
        return ""
    return sha256(f"{FINDS} {status.st_size} {status.st_mtime_ns} {model_key}")[:16]


def _write_points(table: Path, results: Mapping[str, FoundHand]) -> None:
    """Write points.csv, unless it is up to date."""
    text = _points_text(results)
    if not table.exists() or read_text(table, "table", LocateError) != text:
        write_text(table, text, parents=True)


def _points_text(results: Mapping[str, FoundHand]) -> str:
    """points.csv: the confident hands; a row without points for the others, as for hands that are not marked yet."""
    rows = [
        results[case_id].row() if results[case_id].confident else [case_id, *[""] * 16] for case_id in sorted(results)
    ]
    return table_text(COLUMNS, rows)
