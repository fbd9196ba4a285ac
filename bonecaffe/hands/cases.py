"""Cases from a table of ages, and their split into training and test: drawn (paper II.1), given, or in folds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from bonecaffe.errors import CasesError, Problems
from bonecaffe.files import number, number_text, quoted, read_table, table_text, write_text
from bonecaffe.hands import ids

Side = Literal["train", "test"]


@dataclass(frozen=True)
class Case:
    """One hand: its id, its bone age in months, its sex where known.

    Hands of one ``group``, such as those of one child, must be on the same side of a split; None: a group of its own.
    ``split`` is the side that the table gives; None: not given.
    """

    id: str
    boneage_months: float
    male: bool | None = None
    group: str | None = None
    split: Side | None = None


@dataclass(frozen=True)
class AgesTable:
    """The cases of a table of ages, and the row of each id in the file, where the header is row 1."""

    path: str
    cases: list[Case]
    rows: dict[str, int]


@dataclass(frozen=True)
class _Header:
    """The column names of one kind of table, and where such tables come from."""

    id: str
    age: str
    male: str
    source: str
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

_SIDES: dict[str, Side | None] = {"train": "train", "training": "train", "test": "test", "testing": "test", "": None}

MONTHS_LIMIT = 300
"""No bone age is above this; the atlas of Greulich and Pyle ends at 228 months."""

YEARS_AT_MOST = 20
"""A table may be in years when no age is above this: in months, all hands would be those of babies. The oldest hand in
Greulich and Pyle is 19 years."""

AgeUnit = Literal["months", "years"]


def read_cases(path: str | Path, unit: AgeUnit = "months") -> list[Case]:
    """The cases of `read_ages`."""
    return read_ages(path, unit).cases


def read_ages(path: str | Path, unit: AgeUnit = "months", sides: bool = True) -> AgesTable:
    """Read the ages from any of RSNA's three tables or bonecaffe's own (``id,boneage_months[,male]``).

    Any of them may have the columns ``group`` and ``split``, in upper or lower case. ``unit`` is that of the ages;
    years are converted to months. Without ``sides`` the column ``split`` is ignored.

    Raises CasesError naming the file and every faulty row: an id that is missing or cannot be the name of an image, a
    duplicate id, an age that is not a number or not between 0 and 300 months, a sex that is neither male nor female, a
    split that is neither training nor test. A row without an age is an error too, and so is a column ``split`` that is
    empty in every row.
    """
    table = read_table(path, CasesError)
    columns = _columns(path, table.columns)
    if not sides:
        columns = columns._replace(split=None)
    cases: list[Case] = []
    first_row: dict[str, int] = {}
    problems = Problems()
    remedy = "Fix or delete these rows."
    for row_number, row in table.rows():
        case_id = ids.composed(row[columns.id])
        where = f"row {row_number} (id {ids.shown(case_id)})"
        age, male, group, split = (row[name] if name else "" for name in columns[1:])
        try:
            case = _case(case_id, age, male, group, split, unit)
        except ValueError as error:
            problems.add(f"{where}: {error}")
            if split.lower() not in _SIDES:
                remedy = "Fix or delete these rows; --split drawn ignores the column split."
            continue
        if case_id in first_row:
            problems.add(f"{where}: the id is already in row {first_row[case_id]}")
            continue
        first_row[case_id] = row_number
        cases.append(case)
    problems.raise_if_any(CasesError, str(path), remedy)
    if not cases:
        raise CasesError(f"{path}: no cases below the header.")
    if columns.split and not any(case.split for case in cases):
        raise CasesError(
            f"{path}: the column {columns.split} is empty in all {len(cases)} rows. Write train or test there, or "
            "remove the column; --split drawn ignores it."
        )
    return AgesTable(str(path), cases, first_row)


def has_split_column(path: str | Path) -> bool:
    """Whether a table of ages has the column ``split``; CasesError when it is not a table of ages."""
    return _columns(path, read_table(path, CasesError).columns).split is not None


class _Columns(NamedTuple):
    """The names in a table of the columns that are read; None: the table has no such column."""

    id: str
    age: str
    male: str | None
    group: str | None
    split: str | None


def _columns(path: str | Path, columns: Sequence[str]) -> _Columns:
    """The names of the columns in a table; CasesError when it is not a table of ages."""
    by_lower: dict[str, str] = {}
    for column in columns:
        if column and column.lower() in by_lower:
            raise CasesError(f"{path}: two columns are called {quoted(column)} (case is ignored). Remove one of them.")
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
        if "ulna_x" in by_lower:
            raise CasesError(f"{path}: a table of points, not of ages. Give it with --points.")
        forms = "; ".join(f"{h.id},{h.age},{h.male} ({h.source})" for h in HEADERS)
        raise CasesError(
            f"{path}: unknown header {quoted(','.join(columns), 200)}. Known headers: {forms}. Rename the columns."
        )
    if len(known) > 1:
        ages = " and ".join(by_lower[header.age.lower()] for header in known)
        raise CasesError(f"{path}: more than one column of ages: {ages}. Keep only one of them.")
    (header,) = known
    male, group, split = (by_lower.get(name) for name in (header.male.lower(), "group", "split"))
    return _Columns(by_lower[header.id.lower()], by_lower[header.age.lower()], male, group, split)


def _case(case_id: str, age: str, male: str, group: str, split: str, unit: AgeUnit) -> Case:
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
        raise ValueError(f"the sex is {quoted(male)}; use True/False, M/F, or leave it empty")
    if split.lower() not in _SIDES:
        raise ValueError(f"the split is {quoted(split)}; use train, test, or leave it empty for an unused hand")
    return Case(case_id, in_months(value, unit), _SEX[male.lower()], ids.composed(group) or None, _SIDES[split.lower()])


def in_months(age: float, unit: AgeUnit) -> float:
    """An age in months. The product of years and 12 is rounded to 9 digits, so that whole months stay whole.

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


# ---- the split ---------------------------------------------------------------------------------------------------


def split_cases(cases: Sequence[Case], train: int, test: int, seed: int) -> tuple[list[Case], list[Case]]:
    """Draw ``train`` and ``test`` cases at random, without overlap, in the order in which Caffe will read them.

    Whole groups are drawn. The draw depends only on the set of ids, the groups and the seed (NumPy's PCG64), not on the
    order of the table. Raises CasesError when there are too few cases, or when no choice of whole groups gives these
    numbers; the error names the nearest numbers that are possible.
    """
    if train + test > len(cases):
        raise CasesError(
            f"{len(cases)} cases are usable, but {train} for training and {test} for test are {train + test}. "
            "Add cases, or ask for fewer with --train and --test."
        )
    units = _shuffled(cases, seed)
    if (first := _add_up(units, train)) is not None:
        trained, rest = first
        if (second := _add_up(rest, test)) is not None:
            return _flat(trained), _flat(second[0])
    return _both_sides(units, train, test)


def given_split(cases: Iterable[Case], seed: int) -> tuple[list[Case], list[Case]]:
    """Split the cases by their ``split``, in a seeded order; cases without one are left out.

    Caffe reads in this order, and a table may be sorted by age. CasesError when a group is on both sides.

    >>> given_split([Case("1", 9, split="test"), Case("2", 9), Case("3", 9, split="train")], 2018)[1]
    [Case(id='1', boneage_months=9, male=None, group=None, split='test')]
    """
    ordered = _flat(_shuffled([case for case in cases if case.split], seed))
    if both := groups_on_both_sides(ordered):
        raise CasesError(f"groups on both sides of the split: {', '.join(map(quoted, both))}.")
    return [case for case in ordered if case.split == "train"], [case for case in ordered if case.split == "test"]


def groups_on_both_sides(cases: Iterable[Case]) -> list[str]:
    """The groups with hands on both sides of a given split, in the order of the cases."""
    sides: dict[str, set[Side]] = {}
    for case in cases:
        if case.group is not None and case.split is not None:
            sides.setdefault(case.group, set()).add(case.split)
    return [group for group, found in sides.items() if len(found) > 1]


def folds(cases: Sequence[Case], count: int, seed: int) -> list[list[Case]]:
    """Deal all cases into ``count`` folds of nearly equal size, whole groups together, at random (NumPy's PCG64).

    The folds depend on the set of ids, the groups, the count and the seed. Without groups their sizes differ by at most
    one. Raises CasesError when there are fewer hands, or groups, than folds.
    """
    units = _shuffled(cases, seed)
    if count > len(units):
        what = "groups" if any(case.group is not None for case in cases) else "hands"
        raise CasesError(f"{count} folds need {count} {what} or more; {len(units)} are usable. Ask for fewer folds.")
    dealt: list[list[Case]] = [[] for _ in range(count)]
    for unit in sorted(units, key=len, reverse=True):  # the largest first: the small ones level the folds
        min(dealt, key=len).extend(unit)
    return dealt


def fold_split(cases: Sequence[Case], fold: int, count: int, seed: int) -> tuple[list[Case], list[Case]]:
    """The cases of fold number ``fold`` (from 1) for test, those of all other folds for training; training first.

    >>> cases = [Case(str(n), 9.0) for n in range(5)]
    >>> sorted(case.id for fold in (1, 2) for case in fold_split(cases, fold, 2, seed=7)[1])
    ['0', '1', '2', '3', '4']
    """
    test = {case.id for case in folds(cases, count, seed)[fold - 1]}
    ordered = _flat(_shuffled(cases, seed))
    return [case for case in ordered if case.id not in test], [case for case in ordered if case.id in test]


_Unit = list[Case]
"""Cases that stay together: a group, or one hand without a group."""


def _units(cases: Iterable[Case]) -> list[_Unit]:
    """The groups, and the hands without one, in the order of their first ids."""
    found: dict[tuple[str, str], _Unit] = {}
    for case in sorted(cases, key=lambda case: case.id):
        found.setdefault(("id", case.id) if case.group is None else ("group", case.group), []).append(case)
    return list(found.values())


def _shuffled(cases: Iterable[Case], seed: int) -> list[_Unit]:
    units = _units(cases)
    return [units[i] for i in np.random.default_rng(seed).permutation(len(units))]


def _flat(units: Iterable[_Unit]) -> list[Case]:
    return [case for unit in units for case in unit]


def _add_up(units: Sequence[_Unit], count: int) -> tuple[list[_Unit], list[_Unit]] | None:
    """The first units that together hold ``count`` cases, and the other units; None when no choice of units does.

    A unit is skipped when no choice of later units gives the rest of the number.
    """
    within = (1 << (count + 1)) - 1
    reachable = [1]  # bit n of entry i: the last i units can hold n cases
    for unit in reversed(units):
        reachable.append((reachable[-1] | reachable[-1] << len(unit)) & within)
    if not reachable.pop() >> count & 1:
        return None
    taken: list[_Unit] = []
    others: list[_Unit] = []
    for unit in units:
        after = reachable.pop()
        if len(unit) <= count and after >> (count - len(unit)) & 1:
            taken.append(unit)
            count -= len(unit)
        else:
            others.append(unit)
    return taken, others


def _both_sides(units: Sequence[_Unit], train: int, test: int) -> tuple[list[Case], list[Case]]:
    """`split_cases` when the first choice for training leaves no whole groups for the test: try every choice.

    Which numbers are possible depends only on the sizes of the groups, so they are computed size by size.
    """
    sizes = Counter(map(len, units))
    beyond = max(sizes)
    within = (1 << (test + beyond + 1)) - 1
    rows = [1] + [0] * (train + beyond)  # bit b of row a: a cases for training and b for test are possible
    layers = []
    for size, many in sizes.items():
        layers.append((size, many, rows))
        for _ in range(many):
            more = [row | row << size & within for row in rows]
            for a in range(size, len(rows)):
                more[a] |= rows[a - size]
            if more == rows:
                break
            rows = more
    if not rows[train] >> test & 1:
        raise CasesError(_not_whole(units, rows, train, test))
    a, b = train, test
    places: dict[int, tuple[int, int]] = {}
    for size, many, before in reversed(layers):
        x, y = next(
            (x, y)
            for x in range(min(many, a // size) + 1)
            for y in range(min(many - x, b // size) + 1)
            if before[a - x * size] >> (b - y * size) & 1
        )
        places[size] = x, y
        a, b = a - x * size, b - y * size
    return _placed(units, places)


def _placed(units: Iterable[_Unit], places: Mapping[int, tuple[int, int]]) -> tuple[list[Case], list[Case]]:
    """Of each size, take the first units for training and the next for test, as many as ``places`` gives."""
    trained: list[Case] = []
    tested: list[Case] = []
    seen: Counter[int] = Counter()
    for unit in units:
        for_training, for_test = places[len(unit)]
        place = seen[len(unit)]
        seen[len(unit)] += 1
        if place < for_training:
            trained += unit
        elif place < for_training + for_test:
            tested += unit
    return trained, tested


def _not_whole(units: Sequence[_Unit], rows: Sequence[int], train: int, test: int) -> str:
    """The error message when no choice of whole groups gives these numbers, with the nearest that are possible."""
    near = [
        (abs(a - train) + abs(b - test), abs(a - train), a, b)
        for a, row in enumerate(rows)
        for b in range(row.bit_length())
        if a and b and row >> b & 1
    ]
    nearest = "; the nearest possible numbers are --train {} --test {}".format(*min(near)[2:]) if near else ""
    return (
        f"{train} for training and {test} for test cannot be drawn in whole groups: the column group "
        f"puts {sum(map(len, units))} hands into {len(units)} groups of up to {max(map(len, units))}{nearest}. If the "
        "column does not mark hands that belong together, rename it."
    )


# ---- writing -----------------------------------------------------------------------------------------------------


def months_text(months: float) -> str:
    """An age as written in a table, with every digit: ``126``, ``168.9325153``."""
    return number_text(months)


def write_cases(
    path: str | Path, cases: Iterable[Case], header: Sequence[str] = ("id", "boneage_months", "male")
) -> None:
    """Write a table of ages, whole or not at all, with bonecaffe's header or another for the same three columns.

    The columns ``group`` and ``split`` follow where a case has them.
    """
    cases = list(cases)
    more = [name for name in ("group", "split") if any(getattr(case, name) for case in cases)]
    rows = (
        [
            case.id,
            months_text(case.boneage_months),
            "" if case.male is None else case.male,
            *(getattr(case, name) or "" for name in more),
        ]
        for case in cases
    )
    write_text(Path(path), table_text([*header, *more], rows), parents=True)
