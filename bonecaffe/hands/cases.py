"""Cases from a table of ages, and the seeded split into training and test (paper II.1)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bonecaffe.errors import CasesError, Problems
from bonecaffe.files import read_table, table_text, write_text
from bonecaffe.hands import ids


@dataclass(frozen=True)
class Case:
    """One hand: its id, its bone age in months, its sex where known."""

    id: str
    boneage_months: float
    male: bool | None = None


@dataclass(frozen=True)
class _Header:
    """A table's names for the three things we read."""

    id: str
    age: str
    male: str
    whose: str
    male_required: bool = True


HEADERS = (
    _Header("id", "boneage", "male", "RSNA training"),
    _Header("Image ID", "Bone Age (months)", "male", "RSNA validation"),
    _Header("Case ID", "Ground truth bone age (months)", "Sex", "RSNA test"),
    _Header("id", "boneage_months", "male", "bonecaffe", male_required=False),
)

_SEX = {
    "true": True,
    "m": True,
    "male": True,
    "1": True,
    "false": False,
    "f": False,
    "female": False,
    "0": False,
    "": None,
}

MONTHS_LIMIT = 300
"""No bone age is above this; the atlas of Greulich and Pyle ends at 228 months."""


def read_cases(path: str | Path) -> list[Case]:
    """Read the ages from any of RSNA's three tables or our own (``id,boneage_months[,male]``).

    Raises CasesError naming the file and every faulty row: no id, a duplicate id, an age that is no number or
    not between 0 and 300 months, a sex that is neither male nor female. A row without an age is refused too.
    """
    table = read_table(path, CasesError)
    by_lower = {column.lower(): column for column in table.columns}
    for header in HEADERS:
        needed = [header.id, header.age] + ([header.male] if header.male_required else [])
        if all(name.lower() in by_lower for name in needed):
            break
    else:
        known = "; ".join(f"{h.id},{h.age},{h.male} ({h.whose})" for h in HEADERS)
        raise CasesError(f"{path}: the header {','.join(table.columns)} is none we know. Known: {known}.")
    id_column, age_column, male_column = (
        by_lower[header.id.lower()],
        by_lower[header.age.lower()],
        by_lower.get(header.male.lower()),
    )
    cases: list[Case] = []
    first_row: dict[str, int] = {}
    problems = Problems()
    for number, row in table.rows():
        case_id = row[id_column]
        where = f"row {number} (id {ids.shown(case_id)})"
        try:
            case = _case(case_id, row[age_column], row[male_column] if male_column else "")
        except ValueError as error:
            problems.add(f"{where}: {error}")
            continue
        if case_id in first_row:
            problems.add(f"{where}: the id stands in row {first_row[case_id]} already")
            continue
        first_row[case_id] = number
        cases.append(case)
    problems.raise_if_any(CasesError, str(path), "Fix or delete these rows.")
    if not cases:
        raise CasesError(f"{path}: no cases below the header.")
    return cases


def _case(case_id: str, age: str, male: str) -> Case:
    ids.check(case_id)
    if not age:
        raise ValueError("no age")
    try:
        months = float(age)
    except ValueError:
        raise ValueError(f"the age is {age!r}, not a number of months") from None
    if not (math.isfinite(months) and 0 <= months <= MONTHS_LIMIT):
        raise ValueError(f"the age is {age}, not between 0 and {MONTHS_LIMIT} months")
    if male.lower() not in _SEX:
        raise ValueError(f"the sex is {male!r}; known are True/False, M/F or nothing")
    return Case(case_id, months, _SEX[male.lower()])


def split_cases(cases: Sequence[Case], train: int, test: int, seed: int) -> tuple[list[Case], list[Case]]:
    """Draw ``train`` and ``test`` cases at random, without overlap, in the order in which Caffe reads them.

    The draw depends on the set of ids and the seed alone (NumPy's PCG64), not on the order of the table.
    Raises CasesError when there are too few cases.
    """
    if train + test > len(cases):
        raise CasesError(
            f"{len(cases)} cases are usable, but {train} for training and {test} for test are {train + test}. "
            "Add cases, or ask for fewer with --train and --test."
        )
    ordered = sorted(cases, key=lambda case: case.id)
    drawn = [ordered[i] for i in np.random.default_rng(seed).permutation(len(ordered))]
    return drawn[:train], drawn[train : train + test]


def months_text(months: float) -> str:
    """An age as written in a table, every digit kept: ``126``, ``168.9325153``."""
    return repr(float(months)).removesuffix(".0")


def write_cases(
    path: str | Path, cases: Iterable[Case], header: Sequence[str] = ("id", "boneage_months", "male")
) -> None:
    """Write a table of ages, whole or not at all, under our header or another with the same three columns."""
    rows = ([c.id, months_text(c.boneage_months), "" if c.male is None else c.male] for c in cases)
    write_text(Path(path), table_text(header, rows), parents=True)
