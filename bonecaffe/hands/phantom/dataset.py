"""Phantoms by number and seed, and a folder of them in RSNA's layout."""

from __future__ import annotations

import contextlib
import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bonecaffe.errors import BonecaffeError
from bonecaffe.files import sha256, write_scratch
from bonecaffe.hands import images
from bonecaffe.hands.cases import Case, write_cases
from bonecaffe.hands.phantom import listed, render, skeleton
from bonecaffe.hands.reference_points import ReferencePoints, write_points
from bonecaffe.progress import Progress, unseen
from bonecaffe.workers import in_parallel

AGES_MONTHS = (12, 228)
RSNA_COLUMNS = ("id", "boneage", "male")


@dataclass(frozen=True)
class Phantom:
    """A synthetic hand: its radiograph, uint8 (height, width), its case and its points."""

    image: images.Image
    case: Case
    points: ReferencePoints


def make(
    seed: int, number: int, size: tuple[int, int] | None = None, age_months: int | None = None, male: bool | None = None
) -> Phantom:
    """The phantom ``number`` of the data set ``seed``; the same arguments give the same bytes.

    ``size`` is (width, height) in pixels, drawn like RSNA's when None; age and sex are drawn when None. Ids begin at
    1001.
    """
    rng, case, hand, view = _lay_out(seed, number, size, age_months, male)
    return Phantom(render.render(hand, view, _look(rng), rng), case, _points(case, hand, view))


def outlines(
    seed: int, number: int, size: tuple[int, int] | None = None, age_months: int | None = None, male: bool | None = None
) -> tuple[Case, ReferencePoints, dict[str, skeleton.Outline]]:
    """Where the bones of the phantom of the same arguments are: by name, outlines (n, 2) in pixels; nothing is drawn.

    An epiphysis that is not fused yet is a bone of its own: ``metacarpal3 epiphysis``.
    """
    _, case, hand, view = _lay_out(seed, number, size, age_months, male)
    return case, _points(case, hand, view), {bone.name: view.px(bone.outline) for bone in hand.bones}


def _lay_out(
    seed: int, number: int, size: tuple[int, int] | None, age_months: int | None, male: bool | None
) -> tuple[np.random.Generator, Case, skeleton.Skeleton, render.View]:
    """A hand and its place on the film, and the generator, from which its look is drawn next."""
    rng = np.random.default_rng([seed, number])
    male_drawn = bool(rng.random() < 0.54)
    age_drawn = int(rng.integers(AGES_MONTHS[0], AGES_MONTHS[1] + 1))
    size_drawn = _size(rng)
    male = male_drawn if male is None else male
    age = age_drawn if age_months is None else age_months
    hand = skeleton.build(age, male, _pose(rng))
    return rng, Case(str(1001 + number), float(age), male), hand, _view(hand, size or size_drawn, rng)


def _points(case: Case, hand: skeleton.Skeleton, view: render.View) -> ReferencePoints:
    points = tuple((round(float(x), 1), round(float(y), 1)) for x, y in view.px(np.array(hand.points)))
    return ReferencePoints(case.id, view.width, view.height, points)


def _size(rng: np.random.Generator) -> tuple[int, int]:
    """Width and height like RSNA's: a median of about 1500 x 2000, between 594 and 2970."""
    height = int(np.clip(rng.lognormal(math.log(1950), 0.22), 800, 2970))
    return max(594, int(height * rng.uniform(0.70, 0.88))), height


def _pose(rng: np.random.Generator) -> skeleton.Pose:
    return skeleton.Pose(
        spread=float(rng.uniform(0.55, 1.75)),
        bends=tuple(float(v) for v in rng.normal(0, 0.035, 5)),
        thumb=float(rng.uniform(-0.18, 0.28)),
        wrist=float(rng.normal(0, 0.10)),
        proportions=rng.normal(1, 0.022, 20),
        slender=float(rng.normal(1, 0.055)),
        plump=float(np.clip(rng.normal(1.0, 0.09), 0.8, 1.3)),
        timing=rng.normal(0, 3.0, len(skeleton.CENTRES)),
    )


def _view(hand: skeleton.Skeleton, size: tuple[int, int], rng: np.random.Generator) -> render.View:
    """Lay the hand on the film: turned, shifted, mostly as large as fits, fingers and both forearm ends inside."""
    width, height = size
    angle = float(rng.normal(0, 0.09) if rng.random() < 0.9 else rng.uniform(-0.5, 0.5))
    mirror = bool(rng.random() < 0.04)
    outline = np.concatenate(
        [line + dx for line, radii in hand.limbs[:5] for dx in (-radii[-1], radii[-1])]
        + [np.array([[-0.75, -1.1], [0.75, -1.1]])]
    )
    turned = render.View(width, height, 1.0, angle, mirror, (0.0, 0.0)).px(outline)
    low, high = turned.min(axis=0), turned.max(axis=0)
    fit = min(width / (high[0] - low[0]), height / (high[1] - low[1]))
    unit = fit * float(rng.uniform(0.72, 0.97) if rng.random() < 0.85 else rng.uniform(0.5, 0.72))
    room = np.array([width, height]) - (high - low) * unit
    at = rng.beta(2.5, 2.5, 2) * room - low * unit
    if rng.random() < 0.7:  # most hands have the forearm near the film's lower edge
        at[1] = 0.85 * room[1] - low[1] * unit
    return render.View(width, height, float(unit), angle, mirror, (float(at[0]), float(at[1])))


def _look(rng: np.random.Generator) -> render.Look:
    dark = rng.random() < 0.10  # underexposed
    base = float(rng.uniform(0.0, 0.03) if rng.random() < 0.66 else rng.uniform(0.06, 0.34))
    contrast = float(rng.uniform(0.16, 0.35) if dark else rng.uniform(0.92, 1.15)) * (1 - 0.7 * base)
    letter = "L" if rng.random() < 0.95 else "R"
    initials = "".join(chr(65 + int(v)) for v in rng.integers(0, 26, int(rng.integers(0, 4))))
    places = tuple(
        (float(rng.uniform(0.08, 0.2) if rng.random() < 0.7 else rng.uniform(0.8, 0.93)), float(rng.uniform(0.1, 0.92)))
        for _ in range(5)
    )
    framed = rng.random() < 0.42
    left, top, right, bottom = (
        float(v)
        for v in (
            rng.uniform(-0.02, 0.05),
            rng.uniform(-0.02, 0.05),
            1 - rng.uniform(-0.02, 0.05),
            1 - rng.uniform(-0.02, 0.04),
        )
    )
    return render.Look(
        contrast=contrast,
        gamma=float(rng.uniform(0.9, 1.7)),
        flesh=float(rng.uniform(0.42, 0.85)),
        bone=float(rng.uniform(1.0, 1.65)),
        base=base,
        haze=float(rng.uniform(0.0, 0.12)),
        noise=float(rng.uniform(0.004, 0.018)),
        blur_px=float(rng.uniform(0.7, 1.2)),
        ceiling=float(rng.uniform(0.9, 1.0)),
        shading=(float(rng.normal(0, 0.025)), float(rng.normal(0, 0.025))),
        frame=(left, top, right, bottom) if framed else None,
        frame_value=float(rng.uniform(0.0, 0.12) if rng.random() < 0.5 else rng.uniform(0.4, 0.95)),
        frame_angle=float(rng.normal(0, 0.008)),
        frame_edge=float(rng.uniform(0, 0.5)),
        marker=(letter, initials) if rng.random() < 0.75 else None,
        marker_at=places,
        marker_angle=float(rng.normal(0, 10) if rng.random() < 0.85 else rng.uniform(-100, 100)),
        marker_size=float(rng.uniform(0.06, 0.10)),
        marker_plate=float(rng.uniform(0.0, 0.12)),
    )


# ---- a folder of them ------------------------------------------------------------------------------------------


def _write_one(task: tuple[int, int, tuple[int, int] | None, str]) -> tuple[Case, ReferencePoints, str]:
    seed, number, size, folder = task
    phantom = make(seed, number, size)
    path = os.path.join(folder, f"{phantom.case.id}.png")
    content = images.encode_png(phantom.image)
    write_scratch(path, content)
    return phantom.case, phantom.points, sha256(content)


def write(
    out: Path,
    count: int,
    seed: int,
    size: tuple[int, int] | None = None,
    progress: Progress = unseen,
) -> None:
    """Write ``ages.csv`` (RSNA's training header), ``points.csv``, ``images/`` of ``count`` phantoms, and
    phantoms.json.

    `prepare` recognizes phantoms by phantoms.json. Raises BonecaffeError when the folder already contains a data set;
    images of an interrupted call are rewritten.
    """
    out = Path(out)
    if (out / "ages.csv").exists() or (out.exists() and not out.is_dir()):
        raise BonecaffeError(f"{out}: already contains a data set. Give another folder, or remove this one.")
    folder = out / "images"
    folder.mkdir(parents=True, exist_ok=True)
    tasks = [(seed, number, size, str(folder)) for number in range(count)]
    made: list[tuple[Case, ReferencePoints, str]] = []
    workers = min(len(os.sched_getaffinity(0)), count)
    with contextlib.closing(in_parallel(_write_one, tasks, workers, BonecaffeError)) as phantoms:
        for phantom in phantoms:
            made.append(phantom)
            progress(len(made), count)
    write_points(out / "points.csv", [points for _, points, _ in made])
    listed.write(out, seed, {case.id: content for case, _, content in made})
    write_cases(out / "ages.csv", [case for case, _, _ in made], RSNA_COLUMNS)
