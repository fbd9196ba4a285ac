"""Normalize the images of a run in parallel: each only once, also after an interruption or a change of inputs."""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from bonecaffe.errors import BonecaffeError, ImageError, PrepareError, Problems
from bonecaffe.files import link_file, make_folder, open_append, read_bytes, remove, sha256, sha256_file, write_scratch
from bonecaffe.hands import images as hand_images
from bonecaffe.hands.reference_points import ReferencePoints
from bonecaffe.hands.standard_view import Polarity
from bonecaffe.prepare.inputs import Inputs
from bonecaffe.prepare.normalize import normalize_viewed, viewed
from bonecaffe.progress import Progress
from bonecaffe.recipe import Preparation
from bonecaffe.records import Prepared, PreparedCase, is_intact
from bonecaffe.run import RunDir
from bonecaffe.trees import parse_json
from bonecaffe.workers import in_parallel

PIXELS = 2
"""Increased when `normalize` gives other pixels for the same hand."""


@dataclass(frozen=True)
class Job:
    """One image to normalize; small enough to be sent to a worker process."""

    id: str
    source: str
    target: str
    points: ReferencePoints
    preparation: Preparation
    source_stat: tuple[int, int]  # size and time of the source file
    made_from: str  # changes when the points or the preparation do


@dataclass(frozen=True)
class NormalizedImage:
    """The result of a job, or its problem.

    Hashes of the source file, of the pixels and the file made, and of the image as read; how the hand was turned
    upright, and its polarity."""

    id: str
    source_stat: tuple[int, int]
    made_from: str
    source_sha256: str = ""
    pixels_sha256: str = ""
    png_sha256: str = ""
    image_sha256: str = ""
    quarters: int = 0
    polarity: Polarity = Polarity.BRIGHT
    problem: str = ""

    def case(self) -> PreparedCase:
        """As stored in the record."""
        return PreparedCase(
            source_stat=self.source_stat,
            source_sha256=self.source_sha256,
            image_sha256=self.image_sha256 or None,
            pixels_sha256=self.pixels_sha256,
            made_from=self.made_from,
            quarters=self.quarters or None,
            polarity=None if self.polarity == Polarity.BRIGHT else self.polarity,
        )


def jobs_of(inputs: Inputs, preparation: Preparation, folder: Path) -> list[Job]:
    """A job for each chosen case, in order."""
    jobs = []
    settings = preparation.model_dump()
    for case in inputs.chosen():
        source, points = inputs.images[case.id], inputs.points[case.id]
        status = os.stat(source)
        made_from = sha256(json.dumps([PIXELS, asdict(points), settings]))
        target = folder / f"{case.id}.png"
        stat = (status.st_size, status.st_mtime_ns)
        jobs.append(Job(case.id, str(source), str(target), points, preparation, stat, made_from))
    return jobs


def normalize_all(
    run: RunDir, before: Prepared | None, jobs: list[Job], train: int, progress: Progress, workers: int | None
) -> Iterator[tuple[str, dict[str, NormalizedImage]]]:
    """Normalize every image; yield each split with its outcomes by id as soon as it is complete, training first.

    The first ``train`` jobs are the training split's. Finished images of an earlier or interrupted prepare are reused
    by hard link. Raises PrepareError that names all faulty images, after every image was tried.
    """
    make_folder(run.work / "images")
    journal = run.work / "journal.jsonl"
    earlier = {**_recorded(before), **_journalled(journal)}
    done: dict[str, NormalizedImage] = {}
    todo: list[Job] = []
    for job in jobs:
        outcome = earlier.get(job.id)
        if outcome and _same_source(job, outcome) and _take_over(job, outcome, run, before):
            done[job.id] = replace(outcome, source_stat=job.source_stat)
        else:
            todo.append(job)
    problems = Problems()
    splits = {"train": jobs[:train], "test": jobs[train:]}
    with open_append(journal) as notes, closing(_outcomes(todo, workers)) as outcomes:
        for split, members in splits.items():
            for _ in range(sum(job.id not in done for job in members)):  # they come in the order of the jobs
                outcome = next(outcomes)
                if outcome.problem:
                    problems.add(outcome.problem.rstrip("."))
                    continue
                done[outcome.id] = outcome
                notes.write(json.dumps(asdict(outcome)).encode() + b"\n")
                notes.flush()
                progress(len(done), len(jobs))
            if not problems.found:
                yield split, {job.id: done[job.id] for job in members}
    problems.raise_if_any(PrepareError, "images", "Correct these, or remove the cases from the tables.")


def _outcomes(todo: list[Job], workers: int | None) -> Generator[NormalizedImage]:
    workers = min(workers or len(os.sched_getaffinity(0)), max(1, len(todo)))
    if workers == 1 or len(todo) < 8:
        yield from map(normalize_file, todo)
        return
    yield from in_parallel(normalize_file, todo, workers, PrepareError)


def normalize_file(job: Job) -> NormalizedImage:
    """Read one image, normalize it, write it next to its target and move it into place. Runs in a worker process."""
    try:
        content = read_bytes(job.source, "image", ImageError)
        image = hand_images.decode(content, job.source)
        view = viewed(image, job.points)
        normal = normalize_viewed(view, job.preparation)
        png = hand_images.encode_png(normal, level=0)  # read only once, so compression is not worth the time
        write_scratch(job.target, png)
    except ImageError as error:
        return NormalizedImage(job.id, job.source_stat, job.made_from, problem=str(error))
    except (OSError, ValueError) as error:
        return NormalizedImage(job.id, job.source_stat, job.made_from, problem=f"{job.source} (id {job.id}): {error}")
    whole = sha256(f"{image.shape} {sha256(np.ascontiguousarray(image).data)}")
    hashes = sha256(content), sha256(normal.tobytes()), sha256(png), whole
    return NormalizedImage(job.id, job.source_stat, job.made_from, *hashes, view.quarters, view.polarity)


# ---- what was made before ----------------------------------------------------------------------------------------


def _recorded(before: Prepared | None) -> dict[str, NormalizedImage]:
    if before is None:
        return {}
    return {
        case_id: NormalizedImage(
            case_id,
            case.source_stat,
            case.made_from,
            case.source_sha256,
            case.pixels_sha256,
            before.outputs.get(f"images/{case_id}.png", ""),
            case.image_sha256 or "",
            case.quarters or 0,
            Polarity(case.polarity or Polarity.BRIGHT),
        )
        for case_id, case in before.cases.items()
    }


def _journalled(journal: Path) -> dict[str, NormalizedImage]:
    """The results of an interrupted prepare; an incomplete last line is ignored."""
    found = {}
    if journal.is_file():
        for line in read_bytes(journal, "record", PrepareError).decode("utf-8", "replace").splitlines():
            try:
                facts = parse_json(line, journal.name, PrepareError)
                facts |= {"source_stat": tuple(facts["source_stat"]), "polarity": Polarity(facts["polarity"])}
                outcome = NormalizedImage(**facts)
            except (PrepareError, ValueError, TypeError, KeyError):
                continue
            found[outcome.id] = outcome
    return found


def _same_source(job: Job, outcome: NormalizedImage) -> bool:
    """Whether the image and its preparation are unchanged; a file with another time is read to find out."""
    if outcome.made_from != job.made_from:
        return False
    return outcome.source_stat == job.source_stat or source_sha256(job, outcome.case()) == outcome.source_sha256


def source_sha256(job: Job, known: PreparedCase) -> str:
    """The hash of a source file, from the record where its size and time are unchanged; empty when it is unreadable."""
    if known.source_stat == job.source_stat:
        return known.source_sha256
    if known.source_stat[0] != job.source_stat[0]:
        return ""
    try:
        return sha256_file(job.source)
    except (OSError, BonecaffeError):
        return ""


def _take_over(job: Job, outcome: NormalizedImage, run: RunDir, before: Prepared | None) -> bool:
    """Put the finished image of an earlier prepare at the job's target; False when it is missing or changed.

    An existing target is read: a prepare with other points may have been killed between image and journal.
    """
    try:
        if sha256(read_bytes(job.target, "image")) == outcome.png_sha256:
            return True
    except (BonecaffeError, OSError):
        pass
    remove(job.target)
    name = f"images/{job.id}.png"
    if before is None or before.outputs.get(name) != outcome.png_sha256 or not is_intact(run.path, before, name, True):
        return False
    return link_file(run.image(job.id), job.target)


def sources(jobs: list[Job], before: Prepared) -> Mapping[str, str]:
    """The hash of each job's source file where the record knows the case; empty for one that is new or unreadable."""
    known = before.cases
    return {job.id: source_sha256(job, known[job.id]) if job.id in known else "" for job in jobs}
