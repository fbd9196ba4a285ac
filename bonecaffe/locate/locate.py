"""A folder of images in, a table of points out: what was found, how sure it is, and what was not found, with the reason."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bonecaffe.caffe import nets as engines
from bonecaffe.errors import BonecaffeError, LocateError
from bonecaffe.files import held, read_table, sha256, sha256_file, table_text, write_text
from bonecaffe.hands import images as hand_images
from bonecaffe.hands.reference_points import COLUMNS, POINT_NAMES, ReferencePoints, coordinate_text, lock_file
from bonecaffe.locate.locator import MODEL, Found, Locator, palm
from bonecaffe.progress import Progress, unseen
from bonecaffe.workers import in_parallel

FOUND_COLUMNS = (*COLUMNS, "confidence", "verdict", "key")
_SAVE_EACH = 50
_OUTSIDE = 0.02
"""Of the image's height: a point found further outside is said to be cut off."""
_AT_BORDER = 0.10
"""Of the palm: a point found nearer to the border than this may be cut off; the nets have not learnt to look beyond it."""


@dataclass(frozen=True)
class Result:
    """One image: the points (a guess where the verdict is not ``sure``; none where it cannot be read), the confidence, the verdict."""

    id: str
    width: int
    height: int
    points: tuple[tuple[float, float], ...] | None
    confidence: float
    verdict: str
    key: str

    @property
    def sure(self) -> bool:
        """Whether the points are good enough to be used unseen."""
        return self.verdict == "sure"

    def hand(self) -> ReferencePoints | None:
        """The points as points.csv has them; None when there are none."""
        return ReferencePoints(self.id, self.width, self.height, self.points) if self.points else None


def judge(case_id: str, shape: tuple[int, int], found: Found, key: str = "") -> Result:
    """What to say of what was found in an image (height, width)."""
    height, width = shape
    x, y = found.points[:, 0], found.points[:, 1]
    beyond = np.maximum.reduce([-x, -y, x - (width - 1), y - (height - 1)])
    outermost = POINT_NAMES[int(beyond.argmax())]
    inside = np.stack([np.clip(x, 0, width - 1), np.clip(y, 0, height - 1)], axis=1)
    points = tuple((round(float(a), 1), round(float(b), 1)) for a, b in inside)
    hand = ReferencePoints(case_id, width, height, points)
    if found.confidence < 0.5:
        verdict = "unsure: looks at it from several sides disagree; perhaps not a hand, or not as one lies on a film"
    elif beyond.max() > _OUTSIDE * height:
        verdict = f"cut off: {outermost} would lie outside the image"
    elif beyond.max() > -_AT_BORDER * palm(found.points):
        verdict = f"unsure: {outermost} lies at the image's border; perhaps the hand is cut off there"
    elif hand.problems():
        verdict = f"unsure: {hand.problems()[0]}"
    else:
        verdict = "sure"
    return Result(
        case_id, width, height, points if not hand.problems() else None, round(found.confidence, 3), verdict, key
    )


# ---- a worker --------------------------------------------------------------------------------------------------

_locators: dict[str, Locator] = {}


def _work(task: tuple[str, str, str, str, engines.Kind]) -> Result:
    case_id, path, model, key, engine = task
    if model not in _locators:
        os.environ["OMP_NUM_THREADS"] = "1"  # the processes are what runs in parallel
        _locators[model] = Locator(Path(model), engine)
    try:
        image = hand_images.read_image(path)
        return judge(case_id, image.shape, _locators[model].find(image), key)
    except BonecaffeError as error:
        return Result(case_id, 0, 0, None, 0.0, f"unreadable: {error}", key)


def points_of(image: Path, model: Path = MODEL, engine: engines.Kind = "caffe") -> ReferencePoints:
    """The points of one image, when they are sure; ImageError or LocateError with the reason otherwise."""
    pixels = hand_images.read_image(image)
    if str(model) not in _locators:
        _locators[str(model)] = Locator(model, engine)
    result = judge(image.stem, pixels.shape, _locators[str(model)].find(pixels))
    hand = result.hand()
    if not result.sure or hand is None:
        raise LocateError(f"{image}: the seven points found are not sure: {result.verdict.removeprefix('unsure: ')}. Mark them, and give --points.")  # fmt: skip
    return hand


# ---- the stage -------------------------------------------------------------------------------------------------


def found_file(table: Path) -> Path:
    """Where all that was found lies beside the points: confidences, verdicts, guesses."""
    return table.with_name(f"{table.stem}.found.csv")


def locate(
    images: Path,
    table: Path,
    model: Path,
    progress: Progress = unseen,
    jobs: int | None = None,
    engine: engines.Kind = "caffe",
) -> tuple[list[Result], int]:
    """Find the points of every hand in a folder; the folder's results, by id, and how many are new.

    ``table`` gets the hands that are sure, the others as empty rows; `found_file` gets everything. What was found
    before in the same image by the same model is not looked for again, and what was found in another folder stays.
    Raises LocateError rather than write over a table that is not its own work, untouched, or is being marked.
    """

    def busy(holder: str) -> LocateError:
        return LocateError(f"{table}: in use by {holder or 'another program'}. Stop it, or give another --points.")

    table.parent.mkdir(parents=True, exist_ok=True)
    with held(lock_file(table), "locate", busy):
        return _locate(images, table, model, progress, jobs, engine)


def _locate(
    images: Path, table: Path, model: Path, progress: Progress, jobs: int | None, engine: engines.Kind
) -> tuple[list[Result], int]:
    files = hand_images.find_images(images)
    model_key = sha256("".join(sha256_file(model / f"{view}.caffemodel") for view in ("whole", "near"))) if (model / "near.caffemodel").is_file() else ""  # fmt: skip
    before = _read(found_file(table))
    if table.exists() and not _own_work(table, before):
        raise LocateError(
            f"{table}: is there already and not as locate wrote it: marked by hand, perhaps. Give another --points, or move it away."
        )
    keys = {case_id: _key(path, model_key) for case_id, path in files.items()}
    results = {case_id: result for case_id, result in before.items() if result.key == keys.get(case_id, result.key)}
    tasks = [
        (case_id, str(path), str(model), keys[case_id], engine)
        for case_id, path in files.items()
        if case_id not in results
    ]
    if tasks:
        Locator(model, engine)  # says at once when there is none
    workers = min(jobs or len(os.sched_getaffinity(0)), max(1, len(tasks)))
    try:
        with closing(in_parallel(_work, tasks, workers, LocateError)) as found:
            for done, result in enumerate(found, start=1):
                results[result.id] = result
                progress(done, len(tasks))
                if done % _SAVE_EACH == 0:
                    _write(found_file(table), results)
    finally:
        if tasks and results:
            _write(found_file(table), results)
            if table.exists():  # so that it is our own, untouched, when we go on
                write_text(table, _points_text(results))
    text = _points_text(results)
    if not table.exists() or table.read_text(encoding="utf-8") != text:
        write_text(table, text, parents=True)
    return [results[case_id] for case_id in sorted(files)], len(tasks)


def _own_work(table: Path, found: Mapping[str, Result]) -> bool:
    """Whether every marked row of a table is what `locate` wrote; it may lack what was found since, should it have been killed."""
    for _, row in read_table(table, LocateError).rows():
        result = found.get(row.get("id", ""))
        expected = dict(zip(COLUMNS, _row(result), strict=True)) if result and result.sure else {}
        if any(row.get(column) for column in COLUMNS[1:]) and row != expected:
            return False
    return bool(found)


def located(table: Path) -> int:
    """How many hands of a table have the very points that `locate` found and wrote beside it; 0 when it wrote none."""
    found = _read(found_file(table))
    if not found or not table.is_file():
        return 0
    rows = {row["id"]: row for _, row in read_table(table, LocateError).rows() if "id" in row}
    wanted = {
        case_id: dict(zip(COLUMNS, _row(result), strict=True)) for case_id, result in found.items() if result.sure
    }
    return sum(rows.get(case_id) == row for case_id, row in wanted.items())


def _key(path: Path, model_key: str) -> str:
    about = os.stat(path)
    return sha256(f"{about.st_size} {about.st_mtime_ns} {model_key}")[:16]


def _row(result: Result) -> list[str]:
    coordinates = [coordinate_text(value) for point in result.points or () for value in point]
    return [result.id, str(result.width or ""), str(result.height or ""), *(coordinates or [""] * 14)]


def _points_text(results: Mapping[str, Result]) -> str:
    """points.csv: the sure ones; a row without points for the others, as for hands not marked yet."""
    rows = [_row(results[case_id]) if results[case_id].sure else [case_id, *[""] * 16] for case_id in sorted(results)]
    return table_text(COLUMNS, rows)


def _write(path: Path, results: Mapping[str, Result]) -> None:
    rows = [[*_row(r), f"{r.confidence:.3f}", r.verdict, r.key] for _, r in sorted(results.items())]
    write_text(path, table_text(FOUND_COLUMNS, rows), parents=True)


def _read(path: Path) -> dict[str, Result]:
    """What was found before; nothing when there is no such file."""
    if not path.is_file():
        return {}
    results = {}
    for number, row in read_table(path, LocateError).rows():
        try:
            values = [row[column] for column in COLUMNS[3:]]
            pairs = (
                tuple((float(x), float(y)) for x, y in zip(values[::2], values[1::2], strict=True))
                if values[0]
                else None
            )
            size = int(row["width"] or 0), int(row["height"] or 0)
            results[row["id"]] = Result(row["id"], *size, pairs, float(row["confidence"]), row["verdict"], row["key"])
        except (KeyError, ValueError) as error:
            raise LocateError(
                f"{path}: row {number}: not as locate writes it ({error}). Remove the file; it is made anew."
            ) from None
    return results
