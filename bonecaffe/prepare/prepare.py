"""The prepare stage: ages, images and points in; normalized images, lists and audited LMDBs out.

Everything is made in ``RUN/.prepare`` and moved into place when the audit has passed. The training hands are packed
while the test hands are normalized. A run that was interrupted
picks up its finished images from there; a run that fails leaves the folder as it was.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from bonecaffe import __version__
from bonecaffe.caffe import environment
from bonecaffe.errors import BonecaffeError, CasesError, ImageError, PointsError, PrepareError, Problems
from bonecaffe.files import make_folder, sha256, sha256_file, write_text
from bonecaffe.hands import images as hand_images
from bonecaffe.hands.cases import Case, read_cases, split_cases, write_cases
from bonecaffe.hands.reference_points import ReferencePoints, read_points
from bonecaffe.prepare import imageset, outputs
from bonecaffe.prepare.normalize import normalize
from bonecaffe.progress import Progress
from bonecaffe.recipe import Preparation, Recipe
from bonecaffe.run import SPLITS, RunDir
from bonecaffe.workers import in_parallel

WORK = ".prepare"
"""Where a prepare works, inside the run."""


@dataclass(frozen=True)
class Job:
    """One image to normalize; small enough to be sent to a worker process."""

    id: str
    source: str
    target: str
    points: ReferencePoints
    preparation: Preparation
    stamp: str  # changes when the source file, its points or the preparation do


@dataclass(frozen=True)
class Outcome:
    """What became of a job: hashes of the source file and of the pixels made, or what was wrong."""

    id: str
    stamp: str
    source_sha256: str = ""
    pixels_sha256: str = ""
    problem: str = ""


@dataclass(frozen=True)
class Inputs:
    """The checked inputs of a run: who is trained on and tested, their points and images."""

    split: dict[str, list[Case]]
    points: dict[str, ReferencePoints]
    images: dict[str, Path]
    left_out: dict[str, int]  # reason -> number of cases

    def chosen(self) -> Iterator[Case]:
        """All cases of both splits, in order."""
        for split in SPLITS:
            yield from self.split[split]


def with_split(
    recipe: Recipe,
    train: int | None,
    test: int | None,
    seed: int | None,
    labels: str | None = None,
    origin: str | None = None,
) -> Recipe:
    """The recipe with another split, labels or origin of the points, each declared; the test pass is fitted to the number of test cases."""
    given = {
        "data.labels": (labels, "--labels"),
        "data.points": (origin, "--origin"),
        "data.train_cases": (train, "--train"),
        "data.test_cases": (test, "--test"),
        "data.split_seed": (seed, "--seed"),
    }
    for field, (value, option) in given.items():
        if value is not None:
            recipe = recipe.with_values({field: value}, f"prepare {option} {value}")
    cases, batch = recipe.data.test_cases, recipe.network.test_batch
    if test is not None and recipe.solver.test_iter * batch != cases:
        batch = batch if cases % batch == 0 else 1
        recipe = recipe.with_values(
            {"network.test_batch": batch, "solver.test_iter": cases // batch}, f"one test pass over {cases} test cases"
        )
    return recipe


def read_inputs(image_folder: Path, ages: Path, points: Path, recipe: Recipe) -> Inputs:
    """Read and check the three inputs and draw the split; write nothing.

    A case is usable when it is marked. Cases without points are left out and counted; a marked case without an
    image, an image of another size than its points say, a fractional age are errors naming the case.
    """
    cases = read_cases(ages)
    marked = read_points(points)
    images = hand_images.find_images(image_folder)
    usable = [case for case in cases if case.id in marked]
    lost = hand_images.missing((case.id for case in usable), images)
    if lost:
        raise ImageError(
            f"{image_folder}: no image for {len(lost)} marked case{'s' * (len(lost) > 1)}: {', '.join(lost[:5])}{' …' * (len(lost) > 5)}. Add the images, or take the rows out of {points}."
        )
    needed = recipe.data.train_cases + recipe.data.test_cases
    if len(usable) < needed:
        unmarked = [case.id for case in cases if case.id not in marked]
        first = f"; first without points: {unmarked[0]}" if unmarked else ""
        raise CasesError(
            f"{ages}: {len(cases)} cases, of which {len(usable)} are marked in {points}{first}. "
            f"{recipe.data.train_cases} for training and {recipe.data.test_cases} for test are needed. Mark more hands, or ask for fewer with --train and --test."
        )
    if recipe.data.labels == "whole_months":
        imageset.check_whole_months(usable)
    train, test = split_cases(usable, recipe.data.train_cases, recipe.data.test_cases, recipe.data.split_seed)
    known = {case.id for case in cases}
    left_out = {
        "without points": len(cases) - len(usable),
        "without an age": len(marked.keys() - known),
        "not drawn": len(usable) - needed,
    }
    inputs = Inputs({"train": train, "test": test}, marked, images, {reason: n for reason, n in left_out.items() if n})
    problems = Problems()
    for case in inputs.chosen():
        try:
            width, height = hand_images.image_size(images[case.id])
        except ImageError as error:
            problems.add(str(error).rstrip("."))
            continue
        hand = marked[case.id]
        if (width, height) != (hand.width, hand.height):
            problems.add(
                f"{images[case.id]} is {width} x {height}, but its points (id {case.id}) were marked in {hand.width} x {hand.height}"
            )
    problems.raise_if_any(PointsError, str(points), "Mend the image or its row, or take the case out of the tables.")
    return inputs


def prepare(
    run: RunDir,
    image_folder: Path,
    ages: Path,
    points: Path,
    recipe: Recipe,
    progress: Progress | None = None,
    workers: int | None = None,
) -> bool:
    """Prepare a run; return False when it stood prepared already with the same inputs and recipe.

    Raises a BonecaffeError naming the file, row and remedy for bad input; nothing half-made is left then.
    """
    inputs = read_inputs(Path(image_folder), Path(ages), Path(points), recipe)
    given = {"images": image_folder, "ages": ages, "points": points}
    with run.lock("prepare"):  # what is removed below is removed by its owner alone
        new = set(os.listdir(run.path)) <= {".lock", WORK}
        try:
            return _prepare(run, inputs, given, recipe, progress, workers)
        except (BonecaffeError, OSError):
            shutil.rmtree(run.path if new else run.path / WORK, ignore_errors=True)
            raise


def _prepare(
    run: RunDir, inputs: Inputs, given: dict[str, Path], recipe: Recipe, progress: Progress | None, workers: int | None
) -> bool:
    work = run.path / WORK
    jobs = _jobs(inputs, recipe, work / "images")
    key = sha256(
        json.dumps(
            [
                __version__,
                [job.stamp for job in jobs],
                [asdict(case) for case in inputs.chosen()],
                len(inputs.split["train"]),
                recipe.preparation.model_dump(),
                recipe.data.labels,
            ]
        )
    )
    if outputs.stands(run, key):
        if "train" in run.manifest():  # what it started from and where it was computed, the training knows
            recipe = recipe.keeping(run.trained_recipe(), ["training.initial_weights", "solver.solver_mode"])
        if run.recipe() != recipe:
            run.write_recipe(recipe)
        return False
    _check_space(run, jobs)
    make_folder(work)
    staged = RunDir(work)
    for split in SPLITS:
        shutil.rmtree(staged.lmdb(split), ignore_errors=True)
        write_text(staged.list_file(split), imageset.list_text(inputs.split[split], recipe.data.labels))
    outcomes: dict[str, Outcome] = {}
    stop = threading.Event()
    with ThreadPoolExecutor(len(SPLITS)) as pool, _set_on_error(stop):
        packing = {}
        for split, finished in _normalize_all(run, work, jobs, len(inputs.split["train"]), progress, workers):
            outcomes |= finished  # the test hands are normalized while the training hands are packed
            packing[split] = pool.submit(_pack, staged, split, inputs.split[split], finished, recipe, stop)
        counts = {split: packing[split].result() for split in SPLITS}
    write_cases(staged.cases_file, inputs.chosen())
    example = _of_middle_age(inputs.split["train"])
    outputs.write_example(staged, inputs.images[example.id], inputs.points[example.id])
    for stray in set(os.listdir(staged.images)) - {f"{job.id}.png" for job in jobs}:
        os.unlink(staged.images / stray)
    facts = {
        "key": key,
        "recipe_sha256": sha256(recipe.to_yaml()),
        "inputs": {
            "ages": _named(given["ages"]),
            "points": _named(given["points"]),
            "images": Path(given["images"]).name,
        },
        "labels": recipe.data.labels,
        "left_out": inputs.left_out,
        "records": counts,
        "split": {split: [case.id for case in inputs.split[split]] for split in SPLITS},
        "by": environment.describe(),
        "cases": {outcome.id: asdict(outcome) for outcome in outcomes.values()},
    }
    outputs.move_into_place(run, staged, recipe, facts)
    return True


@contextlib.contextmanager
def _set_on_error(stop: threading.Event) -> Iterator[None]:
    """End the packing, in its threads, when the block fails or is interrupted, instead of waiting for it."""
    try:
        yield
    except BaseException:
        stop.set()
        raise


def _pack(
    staged: RunDir, split: str, cases: list[Case], outcomes: dict[str, Outcome], recipe: Recipe, stop: threading.Event
) -> int:
    """Pack the normalized images of one split and audit what came of it; return the number of records."""
    imageset.convert(staged.images, staged.list_file(split), staged.lmdb(split), recipe.preparation, stop)
    if recipe.data.labels == "exact":
        shutil.rmtree(staged.labels_lmdb(split), ignore_errors=True)
        imageset.write_labels(staged.labels_lmdb(split), cases)
    hashes = {case_id: outcome.pixels_sha256 for case_id, outcome in outcomes.items()}
    return imageset.audit(staged.lmdb(split), cases, hashes, recipe.preparation, stop)


def _of_middle_age(cases: list[Case]) -> Case:
    return sorted(cases, key=lambda case: (case.boneage_months, case.id))[len(cases) // 2]


def _named(path: Path) -> dict[str, str]:
    return {"name": Path(path).name, "sha256": sha256_file(path)}


def _jobs(inputs: Inputs, recipe: Recipe, folder: Path) -> list[Job]:
    jobs = []
    preparation = recipe.preparation.model_dump()
    for case in inputs.chosen():
        source, points = inputs.images[case.id], inputs.points[case.id]
        about = os.stat(source)
        stamp = sha256(json.dumps([__version__, about.st_size, about.st_mtime_ns, asdict(points), preparation]))
        jobs.append(Job(case.id, str(source), str(folder / f"{case.id}.png"), points, recipe.preparation, stamp))
    return jobs


def _check_space(run: RunDir, jobs: list[Job]) -> None:
    size = jobs[0].preparation
    needed = len(jobs) * size.height * size.width * 4.2 + 4e6  # three channels in the LMDB, one in the PNG
    free = shutil.disk_usage(run.path).free
    if free < needed:
        raise PrepareError(
            f"{run.path}: the disk is full: {free / 1e6:.0f} MB free, about {needed / 1e6:.0f} MB needed for {len(jobs)} images. Make room, or put the run elsewhere."
        )


# ---- images, in parallel ---------------------------------------------------------------------------------------


def _normalize_all(
    run: RunDir, work: Path, jobs: list[Job], train: int, progress: Progress | None, workers: int | None
) -> Iterator[tuple[str, dict[str, Outcome]]]:
    """Normalize every image; yield each split with its outcomes by id as soon as it is whole, training first.

    The first ``train`` jobs are the training split's. Finished images of an earlier or interrupted prepare are taken
    over by hard link. Raises PrepareError naming what is wrong, after a look at every image.
    """
    folder, journal = work / "images", work / "journal.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    earlier = {**_recorded(run), **_journalled(journal)}
    done: dict[str, Outcome] = {}
    todo: list[Job] = []
    for job in jobs:
        outcome = earlier.get(job.id)
        if outcome and outcome.stamp == job.stamp and _take_over(job, outcome, run):
            done[job.id] = outcome
        else:
            todo.append(job)
    problems = Problems()
    splits = {"train": jobs[:train], "test": jobs[train:]}
    with open(journal, "a", encoding="utf-8") as notes, contextlib.closing(_outcomes(todo, workers)) as outcomes:
        for split, members in splits.items():
            for _ in range(sum(job.id not in done for job in members)):  # they come in the order of the jobs
                outcome = next(outcomes)
                if outcome.problem:
                    problems.add(outcome.problem.rstrip("."))
                    continue
                done[outcome.id] = outcome
                notes.write(json.dumps(asdict(outcome)) + "\n")
                notes.flush()
                if progress:
                    progress(len(done), len(jobs))
            if not problems.found:
                yield split, {job.id: done[job.id] for job in members}
    problems.raise_if_any(PrepareError, "images", "Mend these, or take the cases out of the tables.")


def _outcomes(todo: list[Job], workers: int | None) -> Generator[Outcome, None, None]:
    workers = min(workers or len(os.sched_getaffinity(0)), max(1, len(todo)))
    if workers == 1 or len(todo) < 8:
        yield from map(normalize_file, todo)
        return
    yield from in_parallel(normalize_file, todo, workers, PrepareError)


def normalize_file(job: Job) -> Outcome:
    """Read one image, normalize it, write it beside its target and move it into place. Runs in a worker process."""
    try:
        content = Path(job.source).read_bytes()
        image = hand_images.decode(content, job.source)
        normal = normalize(image, job.points, job.preparation)
        part = f"{job.target}.part"
        with open(part, "wb") as file:  # read once, to be packed: not worth the time of compressing it
            file.write(hand_images.encode_png(normal, level=0))
        os.replace(part, job.target)
    except ImageError as error:
        return Outcome(job.id, job.stamp, problem=str(error))
    except (OSError, ValueError) as error:
        return Outcome(job.id, job.stamp, problem=f"{job.source} (id {job.id}): {error}")
    return Outcome(job.id, job.stamp, sha256(content), sha256(normal.tobytes()))


def _recorded(run: RunDir) -> dict[str, Outcome]:
    return {case_id: Outcome(**entry) for case_id, entry in run.manifest().get("prepare", {}).get("cases", {}).items()}


def _journalled(journal: Path) -> dict[str, Outcome]:
    """What an interrupted prepare had finished; a torn last line is passed over."""
    found = {}
    if journal.is_file():
        for line in journal.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                outcome = Outcome(**json.loads(line))
            except (ValueError, TypeError):
                continue
            found[outcome.id] = outcome
    return found


def _take_over(job: Job, outcome: Outcome, run: RunDir) -> bool:
    """Have the finished image of an earlier prepare at the job's target; False when it is gone.

    What lies there already is looked at: a prepare with other points may have been killed between image and journal.
    """
    try:
        if sha256(hand_images.read_image(job.target).tobytes()) == outcome.pixels_sha256:
            return True
        os.unlink(job.target)
    except (ImageError, OSError):
        pass
    try:
        os.link(run.image(job.id), job.target)
    except OSError:
        return False
    return True
