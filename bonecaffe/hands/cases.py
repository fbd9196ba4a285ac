"""Cases from a table of ages, and the seeded split into training and test (paper II.1)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from bonecaffe.errors import CasesError, Problems
from bonecaffe.files import number, number_text, quoted, read_table, table_text, write_text
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

YEARS_AT_MOST = 20
"""A table whose every age is at most this may be in years; ages in months are as low only where all hands are babies'.
Greulich and Pyle's oldest hand is 19 years."""

AgeUnit = Literal["months", "years"]


def read_cases(path: str | Path, unit: AgeUnit = "months") -> list[Case]:
    """Read the ages from any of RSNA's three tables or our own (``id,boneage_months[,male]``).

    ``unit`` is that of the ages; years are made months. Raises CasesError naming the file and every faulty row:
    no id or none that can name an image, a duplicate id, an age that is no number or not between 0 and 300 months, a
    sex that is neither male nor female. A row without an age is refused too.
    """
    table = read_table(path, CasesError)
    id_column, age_column, male_column = _columns(path, table.columns)
    cases: list[Case] = []
    first_row: dict[str, int] = {}
    problems = Problems()
    for row_number, row in table.rows():
        case_id = ids.composed(row[id_column])
        where = f"row {row_number} (id {ids.shown(case_id)})"
        try:
            case = _case(case_id, row[age_column], row[male_column] if male_column else "", unit)
        except ValueError as error:
            problems.add(f"{where}: {error}")
            continue
        if case_id in first_row:
            problems.add(f"{where}: the id stands in row {first_row[case_id]} already")
            continue
        first_row[case_id] = row_number
        cases.append(case)
    problems.raise_if_any(CasesError, str(path), "Fix or delete these rows.")
    if not cases:
        raise CasesError(f"{path}: no cases below the header.")
    return cases


def _columns(path: str | Path, columns: Sequence[str]) -> tuple[str, str, str | None]:
    """The names of the columns of ids, ages and sex (None: there is none) in a table; CasesError when it is none."""
    by_lower: dict[str, str] = {}
    for column in columns:
        if column and column.lower() in by_lower:
            raise CasesError(f"{path}: two columns are called {quoted(column)}, but for capitals. Remove one of them.")
        by_lower[column.lower()] = column
    known = [
        header
        for header in HEADERS
        if all(
            name.lower() in by_lower
            for name in [header.id, header.age] + ([header.male] if header.male_required else [])
        )
    ]
    if not known:
        forms = "; ".join(f"{h.id},{h.age},{h.male} ({h.whose})" for h in HEADERS)
        raise CasesError(f"{path}: the header {quoted(','.join(columns), 200)} is none we know. Known: {forms}.")
    if len(known) > 1:
        ages = " and ".join(by_lower[header.age.lower()] for header in known)
        raise CasesError(f"{path}: more than one column of ages: {ages}. Remove all but the one that counts.")
    (header,) = known
    return by_lower[header.id.lower()], by_lower[header.age.lower()], by_lower.get(header.male.lower())


def _case(case_id: str, age: str, male: str, unit: AgeUnit) -> Case:
    ids.check(case_id)
    if not age:
        raise ValueError("no age")
    try:
        value = number(age)
    except ValueError as error:
        raise ValueError(f"the age is {error} of {unit}") from None
    limit = MONTHS_LIMIT if unit == "months" else MONTHS_LIMIT // 12
    if not 0 <= value <= limit:
        raise ValueError(f"the age is {age}, not between 0 and {limit} {unit}")
    if male.lower() not in _SEX:
        raise ValueError(f"the sex is {quoted(male)}; known are True/False, M/F or nothing")
    return Case(case_id, in_months(value, unit), _SEX[male.lower()])


def in_months(age: float, unit: AgeUnit) -> float:
    """An age in months. Of years, what the product adds to a whole month is taken off.

    >>> in_months(168.9325153, "months"), in_months(7 + 1 / 12, "years"), in_months(4.1, "years")
    (168.9325153, 85.0, 49.2)
    """
    return age if unit == "months" else round(age * 12, 9)


def range_of(cases: Sequence[Case]) -> tuple[float, float]:
    """The lowest and the highest age, in months."""
    ages = [case.boneage_months for case in cases]
    return min(ages), max(ages)


def looks_like_years(cases: Sequence[Case]) -> bool:
    """Whether ages that were read as months may be years: none is above `YEARS_AT_MOST`."""
    return range_of(cases)[1] <= YEARS_AT_MOST


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
    return number_text(months)


def write_cases(
    path: str | Path, cases: Iterable[Case], header: Sequence[str] = ("id", "boneage_months", "male")
) -> None:
    """Write a table of ages, whole or not at all, under our header or another with the same three columns."""
    rows = ([c.id, months_text(c.boneage_months), "" if c.male is None else c.male] for c in cases)
    write_text(Path(path), table_text(header, rows), parents=True)
