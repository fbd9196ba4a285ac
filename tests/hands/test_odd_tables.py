"""Damaged and odd tables of ages and points, seeded: refused with a reason, or written and read back equal.

``BONECAFFE_TABLES=10000`` tries that many of each.
"""

from __future__ import annotations

import os
import random
from dataclasses import replace

import pytest

from bonecaffe.errors import CasesError, PointsError
from bonecaffe.hands import ids
from bonecaffe.hands.cases import HEADERS, read_cases, write_cases
from bonecaffe.hands.reference_points import COLUMNS, ReferencePoints, read_points, write_points

TABLES = int(os.environ.get("BONECAFFE_TABLES", "1200"))

ODD_CELLS = [
    *(
        "",
        " ",
        "0",
        "-0",
        "1_2",
        "+12",
        "１２",
        "0x1F",
        "1e2",
        "nan",
        "inf",
        "1,5",
        "1;5",
        "12.50",
        ".5",
        "5.",
        "9" * 400,
    ),
    *("-1", "300", "300.0000001", "1e-7", "0.0000001", "168.9325153", "True", "m", "maybe", '"', '""', "'", "\0", "\t"),
    *(
        "\x0b",
        "\x1c",
        "\x85",
        "\u2028",
        "\u202e",
        "\ufeff",
        "\udcff",
        "\r",
        "\n",
        "a\nb",
        "a\rb",
        "../x",
        "a/b",
        "a\\b",
    ),
    *(".x", " x", "x ", "\xa0x", "\u3000", "x y", "Mu\u0308ller", "M\u00fcller", "x" * 300, "é" * 101, "1001.0", "💀"),
    *("1001.png", "=1+1", "#1", "-x", ",", "a,b", 'a"b', "x" * 140_000, "None", "NA", "null", "12 months", "1 2"),
]
ODD_TEXTS = [
    ",",
    '"',
    "\n",
    "\r\n",
    "\r",
    ";",
    "\t",
    "\0",
    " ",
    "\ufeff",
    "\u2028",
    "\x85",
    "\x0b",
    "e",
    "_",
    "1",
    ".",
    "-",
]
ENCODINGS = ["utf-8"] * 20 + ["utf-8-sig"] * 4 + ["utf-16", "utf-16-le", "latin-1", "cp1252", "utf-32"]


def ages(rng):
    """The rows of a valid table of ages under one of the known headers."""
    header = rng.choice(HEADERS)
    rows = [[header.id, header.age, header.male]]
    for number in range(rng.randrange(1, 8)):
        age = rng.choice([str(rng.randrange(301)), f"{rng.uniform(0, 300):.7f}", repr(rng.uniform(0, 300))])
        rows.append([str(1001 + number), age, rng.choice(["True", "False", "M", "F", ""])])
    return rows


def points(rng):
    """The rows of a valid table of points."""
    rows = [list(COLUMNS)]
    for number in range(rng.randrange(1, 5)):
        width, height = rng.randrange(40, 3000), rng.randrange(40, 3000)
        spots = [[f"{rng.uniform(0, side - 1):.{rng.randrange(4)}f}" for side in (width, height)] for _ in range(7)]
        rows.append([str(1001 + number), str(width), str(height), *(text for spot in spots for text in spot)])
    return rows


def spoiled(rng, rows):
    """A table with up to three things wrong or odd in its cells, rows, text, encoding and bytes."""
    separator, end = rng.choice("," * 40 + ";\t|"), rng.choice(["\n", "\n", "\n", "\r\n", "\r"])
    for _ in range(rng.randrange(3)):
        row = rng.randrange(len(rows))
        cell = rng.randrange(len(rows[row]) or 1)
        what = rng.randrange(8)
        if what < 4 and rows[row]:
            rows[row][cell] = rng.choice(ODD_CELLS)
        elif what == 4:
            rows[row] = rows[row][:cell]
        elif what == 5:
            rows[row] = [*rows[row], *rng.choice([[""], ["", ""], ["5"], ["", "x"]])]
        elif what == 6:
            rows.insert(row, rng.choice([[], [""] * len(rows[row]), list(rows[row])]))
        else:
            rows = [[*cells, ""] for cells in rows]
    quote = rng.random()
    text = end.join(separator.join(_cell(cell, rng.random() < quote) for cell in row) for row in rows)
    text += rng.choice([end, end, end, "", end * 2])
    for _ in range(rng.choice([0, 0, 0, 0, 1, 2])):
        at = rng.randrange(len(text) + 1)
        text = text[:at] + rng.choice(["", *ODD_TEXTS]) + text[at + rng.randrange(3) :]
    content = text.encode(rng.choice(ENCODINGS), "surrogateescape" if "\udcff" in text else "replace")
    damage = rng.randrange(16)
    if damage == 0 and content:
        at = rng.randrange(len(content))
        content = content[:at] + bytes([rng.randrange(256)]) + content[at + 1 :]
    elif damage == 1:
        content = content[: rng.randrange(len(content) + 1)]
    return content


def _cell(text, quote):
    return '"' + text.replace('"', '""') + '"' if quote else text


def encode_fails(rng, rows):
    """Not every odd character is in every encoding; such a table is drawn again."""
    while True:
        try:
            return spoiled(rng, [list(row) for row in rows])
        except UnicodeEncodeError:
            continue


def refused_in_words(path, error):
    """The error names the file, ends in a sentence, and has no control sequences for a terminal."""
    text = str(error.value if hasattr(error, "value") else error)
    assert text.startswith(f"{path}: ") and text.rstrip().endswith(".")
    assert all(character.isprintable() or character == "\n" for character in text), ascii(text)
    assert len(text) < 6000


def accepted(path, block, make, read, refusal):
    """The seeds of a block whose table is read, and what was; neither nearly all nor nearly none, the rest in words."""
    count = 0
    for seed in range(block * TABLES // 4, (block + 1) * TABLES // 4):
        rng = random.Random(seed)
        path.write_bytes(encode_fails(rng, make(rng)))
        try:
            found = read(path)
        except refusal as error:
            refused_in_words(path, error)
            continue
        count += 1
        yield seed, found
    assert 0.15 < count / (TABLES / 4) < 0.85


@pytest.mark.parametrize("block", range(4))
def test_odd_tables_of_ages(tmp_path, block):
    """Ids, ages, sexes: all that is accepted is written and read back."""
    again = tmp_path / "again.csv"
    for seed, cases in accepted(tmp_path / "ages.csv", block, ages, read_cases, CasesError):
        assert all(ids.flaw(case.id) is None and 0 <= case.boneage_months <= 300 for case in cases)
        assert len({case.id for case in cases}) == len(cases)
        write_cases(again, cases)
        assert read_cases(again) == cases, seed


@pytest.mark.parametrize("block", range(4))
def test_odd_tables_of_points(tmp_path, block):
    """All that is accepted is written and read back, to a tenth of a pixel."""
    again = tmp_path / "again.csv"
    for seed, hands in accepted(tmp_path / "points.csv", block, points, read_points, PointsError):
        assert all(ids.flaw(case_id) is None and not hand.problems() for case_id, hand in hands.items())
        write_points(again, hands.values())
        assert read_points(again) == {case_id: in_tenths(hand) for case_id, hand in hands.items()}, seed


def in_tenths(hand: ReferencePoints) -> ReferencePoints:
    """The hand as a table stores it."""
    return replace(hand, points=tuple((float(f"{x:.1f}"), float(f"{y:.1f}")) for x, y in hand.points))
