"""The part of a hand inside the rectangle of the seven points (paper II.1), measured on phantoms, with known bones.

``pytest -s tests/hands/test_rectangle.py`` prints the table. docs/explanation/REPRODUCTION.md states its figures.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from conftest import REPOSITORY

from bonecaffe.hands.phantom import dataset
from bonecaffe.hands.phantom.ossification import CARPALS

SEED, COUNT = 14, 200
PARTS = {
    "carpals": tuple(CARPALS),
    "metacarpal 1": ("metacarpal1", "metacarpal1 epiphysis"),
    "metacarpals 2 to 4": tuple(f"metacarpal{n}{part}" for n in (2, 3, 4) for part in ("", " epiphysis")),
    "metacarpal 5": ("metacarpal5", "metacarpal5 epiphysis"),
    "epiphyses of metacarpals 1 to 4": tuple(f"metacarpal{n} epiphysis" for n in (1, 2, 3, 4)),
    "epiphysis of metacarpal 5": ("metacarpal5 epiphysis",),
    "epiphyses of proximal phalanges 2 to 4": tuple(f"proximal{n} epiphysis" for n in (2, 3, 4)),
    "epiphyses of proximal phalanges 1 and 5": ("proximal1 epiphysis", "proximal5 epiphysis"),
}


def is_inside(outline, rectangle):
    """Which points of an outline (n, 2) are inside, shape (n,)."""
    low, high = (rectangle.left, rectangle.top), (rectangle.right, rectangle.bottom)
    return ((outline >= low) & (outline <= high)).all(axis=1)


@pytest.fixture(scope="module")
def measured():
    """Part -> an array of (age in months, 1 where all of its bones are whole inside, 1 where their centres are)."""
    rows = {part: [] for part in PARTS}
    for number in range(COUNT):
        case, points, bones = dataset.outlines(SEED, number)
        rectangle = points.rectangle()
        for part, names in PARTS.items():
            if present := [bones[name] for name in names if name in bones]:
                whole = all(is_inside(outline, rectangle).all() for outline in present)
                centres = all(is_inside(outline.mean(axis=0, keepdims=True), rectangle).all() for outline in present)
                rows[part].append((case.boneage_months, whole, centres))
    return {part: np.array(row, float) for part, row in rows.items()}


def table_lines(measured):
    """The table of docs/explanation/REPRODUCTION.md, one line per part: whole inside, of all hands and by age."""
    lines = []
    for part, row in measured.items():
        by_age = [row[(low <= row[:, 0]) & (row[:, 0] < high), 1] for low, high in pairwise((0, 60, 120, 180, 240))]
        cells = [f"{row[:, 1].sum():.0f} of {len(row)}", *(f"{100 * share.mean():.0f} %" for share in by_age)]
        lines.append(f"| {part} | {' | '.join(cells)} |")
    return lines


def test_outlines_belong_to_the_phantom_that_is_drawn():
    """Same case and points as the radiograph's; a bone's outline encloses pixels brighter than those around it."""
    import cv2

    phantom = dataset.make(SEED, 3, (500, 650), age_months=120)
    case, points, bones = dataset.outlines(SEED, 3, (500, 650), age_months=120)
    assert (case, points) == (phantom.case, phantom.points)
    inside, around = (np.zeros(phantom.image.shape, np.uint8) for _ in range(2))
    cv2.fillPoly(inside, [np.round(bones["metacarpal3"]).astype(np.int32)], 1)
    around = cv2.dilate(inside, np.ones((9, 9), np.uint8)) - cv2.dilate(inside, np.ones((5, 5), np.uint8))
    assert phantom.image[inside > 0].mean() > phantom.image[around > 0].mean() + 5


def test_rectangle_holds_what_the_document_states(measured):
    """The table in docs/explanation/REPRODUCTION.md, computed again."""
    lines = table_lines(measured)
    print("", *lines, sep="\n")
    text = (REPOSITORY / "docs" / "explanation" / "REPRODUCTION.md").read_text(encoding="utf-8")
    assert "\n".join(lines) in text and f"\n{COUNT} phantoms of 12 to 228 months" in text


def test_no_carpal_or_metacarpal_is_left_out(measured):
    """A bone may be cut by a side, but the centre of every bone is inside, at every age."""
    for part, row in measured.items():
        assert row[:, 2].all(), part
