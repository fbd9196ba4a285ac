"""What a run is prepared from: ages, points and images, read and checked; the recipe with what the user asked for.

The split into training and test, ``data.split``, is one of three: drawn at random as in the paper, given by the tables
of ages, or one fold of several. A split in the tables is used and declared in the recipe, unless the recipe asks for
another split with a reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bonecaffe.errors import CasesError, ImageError, PointsError, Problems
from bonecaffe.files import quoted
from bonecaffe.hands import ids
from bonecaffe.hands import images as hand_images
from bonecaffe.hands.cases import (
    AgesTable,
    AgeUnit,
    Case,
    fold_split,
    given_split,
    groups_on_both_sides,
    has_split_column,
    looks_like_years,
    range_of,
    read_ages,
    split_cases,
)
from bonecaffe.hands.provenance import count_unmarked
from bonecaffe.hands.reference_points import ReferencePoints, read_points
from bonecaffe.prepare.imageset import check_whole_months
from bonecaffe.recipe import Recipe, fold_of
from bonecaffe.run import SPLITS, RunDir


@dataclass(frozen=True)
class Inputs:
    """The checked inputs of a run: cases of training and test, their points and images; the recipe with this split."""

    recipe: Recipe
    split: dict[str, list[Case]]
    points: dict[str, ReferencePoints]
    images: dict[str, Path]
    left_out: dict[str, int]  # reason -> number of cases
    ages_months: tuple[float, float]  # the lowest and the highest in the table
    ages_in: AgeUnit
    remarks: list[str]  # sentences about what is usable, but perhaps not intended

    def groups(self) -> int | None:
        """How many groups the chosen hands are in; None when none of them is in one."""
        return len({case.group for case in self.chosen()} - {None}) or None

    def chosen(self) -> Iterator[Case]:
        """All cases of both splits, in order."""
        for split in SPLITS:
            yield from self.split[split]


FEWEST = 2
"""Hands of a given side or a fold. The CCC of one hand is undefined: such a run could be trained, but not evaluated."""


# ---- the recipe --------------------------------------------------------------------------------------------------


def recipe_for(run: RunDir, name: str | None) -> Recipe:
    """The recipe of this name or file; without one, the run's own, with edits of recipe.yaml, or the paper's."""
    if name:
        return Recipe.load(name)
    run.check()
    return Recipe.load(run.recipe_file) if run.recipe_file.is_file() else Recipe.load("paper")


def with_split(
    recipe: Recipe,
    train: int | None = None,
    test: int | None = None,
    seed: int | None = None,
    labels: str | None = None,
    split: str | None = None,
    given_by: str | None = None,
) -> Recipe:
    """The recipe with another split or other labels, each declared; the test pass covers each test case once.

    ``given_by`` is what gives the split, if anything does (`giver`). CasesError for numbers or a seed without a draw.
    """
    if split is not None:
        recipe = recipe.with_values({"data.split": split}, f"prepare --split {split}", meant=True)
    recipe = _as_given(recipe, given_by)
    given = {
        "data.labels": (labels, "--labels"),
        "data.train_cases": (train, "--train"),
        "data.test_cases": (test, "--test"),
        "data.split_seed": (seed, "--seed"),
    }
    fixed = {"drawn": (), "given": ("--train", "--test", "--seed")}.get(recipe.data.split, ("--train", "--test"))
    unusable = [option for value, option in given.values() if value is not None and option in fixed]
    if unusable:
        raise CasesError(
            f"{', '.join(unusable)}: not possible, because the split is {recipe.data.split} "
            f"({recipe.source_of('data.split')}). Leave them out, or draw the split with --split drawn."
        )
    for field, (value, option) in given.items():
        if value is not None:
            recipe = recipe.with_values({field: value}, f"prepare {option} {value}")
    return recipe.with_whole_test_pass() if test is not None else recipe


def giver(ages: Path, test_ages: Path | None = None) -> str | None:
    """What gives a split, as the reason in a recipe; None when the tables do not give one."""
    if test_ages is not None:
        return f"{_BY_TABLE}{test_ages.name}"
    return f"{_BY_COLUMN}{ages.name}" if has_split_column(ages) else None


_BY_TABLE, _BY_COLUMN = "--test-ages ", "the column split of "


def _as_given(recipe: Recipe, given_by: str | None) -> Recipe:
    """The recipe with the tables' split, where they give one and the recipe asks for no other.

    A reason that names the tables of an earlier preparation is replaced.
    """
    if given_by is None or (
        recipe.is_meant("data.split") and not recipe.source_of("data.split").startswith((_BY_TABLE, _BY_COLUMN))
    ):
        return recipe
    return recipe.with_values({"data.split": "given"}, given_by, meant=True)


def with_origin(recipe: Recipe, points: Path, origin: str | None = None) -> Recipe:
    """The recipe with the points' origin declared: as stated by the user, or from the files next to the table."""
    if origin is not None:
        return recipe.with_values({"data.points": origin}, f"prepare --origin {origin}")
    if found := count_unmarked(points):
        return recipe.with_values(
            {"data.points": "found"},
            f"{found} hands have points that bonecaffe locate or another program suggested, and nobody moved",
        )
    return recipe


# ---- the tables and images ---------------------------------------------------------------------------------------


def read_inputs(
    images_in: hand_images.Folders,
    ages: Path,
    points: Path,
    recipe: Recipe,
    ages_in: AgeUnit | None = None,
    test_ages: Path | None = None,
) -> Inputs:
    """Read and check the inputs and split the hands; write nothing.

    A case is usable when it is marked. Cases without points are left out and counted. A marked case without an image,
    an image of another size than that of its points, and a fractional age are errors that name the case. So are ages
    that may be years, unless ``ages_in`` gives their unit; an id in both tables of ages; a group on both sides of a
    split. With ``test_ages``, the hands of ``ages`` are for training and those of ``test_ages`` for test.
    """
    recipe = _as_given(recipe, giver(ages, test_ages))
    tables = _read_tables(ages, test_ages, recipe, ages_in)
    cases = [case for table in tables for case in table.cases]
    marked = read_points(points)
    images = hand_images.find_in_all(images_in)
    usable = [case for case in cases if case.id in marked]
    if missing := hand_images.missing((case.id for case in usable), images):
        raise ImageError(
            f"{hand_images.listed_folders(images_in)}: no image for {len(missing)} marked "
            f"case{'s' * (len(missing) > 1)}: {ids.listed(missing, images)}. "
            f"Add the images, or remove the rows from {points}."
        )
    unmarked = [case.id for case in cases if case.id not in marked]
    without_age = marked.keys() - {case.id for case in cases}
    alike = list(ids.nearest(unmarked, without_age))
    needed, why = _needed(recipe)
    if len(usable) < needed:
        first = ids.listed(alike[:1] or unmarked[:1], without_age)
        more = "Mark more hands" if unmarked else "Add more hands"
        remedy = "Write the ids the same way in both tables" if alike else more
        fewer = ", or ask for fewer with --train and --test" if recipe.data.split == "drawn" else ""
        raise CasesError(
            f"{_names(tables)}: {len(cases)} cases, of which {len(usable)} are marked in {points}"
            f"{f'; first without points: {first}' if first else ''}. {why}. {remedy}{fewer}."
        )
    train, test = _split(usable, tables, recipe)
    if recipe.data.labels == "whole_months":
        check_whole_months(usable if recipe.data.split == "drawn" else [*train, *test], _names(tables))
    left_out = {
        "without points": len(unmarked),
        "without an age": len(without_age),
        "without a split": sum(case.split is None for case in usable) if recipe.data.split == "given" else 0,
        "not drawn": len(usable) - len(train) - len(test) if recipe.data.split == "drawn" else 0,
    }
    alike_remark = f"{_names(tables)}: left out, because {points} has no such id: {ids.listed(alike, without_age)}"
    inputs = Inputs(
        _counted(recipe, train, test),
        {"train": train, "test": test},
        marked,
        images,
        {reason: n for reason, n in left_out.items() if n},
        range_of(cases),
        ages_in or "months",
        [*_split_remarks(recipe, train, test), *([alike_remark] if alike else [])],
    )
    _check_sizes(inputs, points)
    return inputs


def _read_tables(ages: Path, test_ages: Path | None, recipe: Recipe, ages_in: AgeUnit | None) -> list[AgesTable]:
    """The tables of ages; each hand on its side when there are two tables, or the split is given; otherwise on none."""
    split = recipe.data.split
    if test_ages is not None and split != "given":
        raise CasesError(
            f"--test-ages {test_ages}: puts each hand on a side, but the recipe's data.split is {split} "
            f"({recipe.source_of('data.split')}). Leave --test-ages out, or add --split given."
        )
    if split == "given" and giver(ages, test_ages) is None:
        raise CasesError(
            f"{ages}: no column split, but the recipe's data.split is given ({recipe.source_of('data.split')}). Add "
            "the column, give --test-ages, or draw the split with --split drawn."
        )
    tables = [
        read_ages(path, ages_in or "months", sides=split == "given" and test_ages is None)
        for path in (ages, test_ages)
        if path is not None
    ]
    for table in tables:
        if ages_in is None and looks_like_years(table.cases):
            raise _may_be_years(Path(table.path), table.cases)
    if test_ages is None:
        return tables
    first, second = tables
    problems = Problems()
    for case_id in first.rows.keys() & second.rows.keys():
        problems.add(f"id {case_id}: row {first.rows[case_id]} of {ages} and row {second.rows[case_id]} of {test_ages}")
    problems.found.sort(key=lambda line: int(line.split(": row ")[1].split()[0]))
    problems.raise_if_any(
        CasesError, f"{test_ages}: hands that are also in {ages}", "Take each out of one of the two tables."
    )
    return [
        replace(first, cases=[replace(case, split="train") for case in first.cases]),
        replace(second, cases=[replace(case, split="test") for case in second.cases]),
    ]


def _names(tables: Sequence[AgesTable]) -> str:
    return " and ".join(table.path for table in tables)


def _needed(recipe: Recipe) -> tuple[int, str]:
    """The smallest number of marked hands for a split, and a sentence that asks for them."""
    data = recipe.data
    if data.split == "drawn":
        needed = data.train_cases + data.test_cases
        return needed, f"{data.train_cases} for training and {data.test_cases} for test are needed"
    if fold := fold_of(data.split):
        return fold.of * FEWEST, f"{fold.of * FEWEST} or more are needed for {data.split}, two per fold"
    return 2 * FEWEST, "Two or more for training and for test are needed"


def _split(usable: list[Case], tables: Sequence[AgesTable], recipe: Recipe) -> tuple[list[Case], list[Case]]:
    """The cases of training and test, as the recipe splits them; CasesError naming the table."""
    data, names = recipe.data, _names(tables)
    if data.split == "given":
        _check_groups(usable, tables)
        train, test = given_split(usable, data.split_seed)
        for side, cases in (("training", train), ("test", test)):
            if len(cases) < FEWEST:
                found = "only one marked hand" if cases else "no marked hand"
                raise CasesError(
                    f"{names}: the given split ({recipe.source_of('data.split')}) has {found} for {side}; the CCC "
                    "needs two. Mark hands of this side, or draw the split with --split drawn."
                )
        return train, test
    try:
        if fold := fold_of(data.split):
            return fold_split(usable, fold.number, fold.of, data.split_seed)
        return split_cases(usable, data.train_cases, data.test_cases, data.split_seed)
    except CasesError as error:
        raise CasesError(f"{names}: {error}") from None


def _check_groups(usable: Sequence[Case], tables: Sequence[AgesTable]) -> None:
    """CasesError that names the rows of groups that a given split has on both sides."""
    places = {case_id: f"row {row} of {table.path}" for table in tables for case_id, row in table.rows.items()}
    problems = Problems()
    for group in groups_on_both_sides(usable):
        by_side = [
            (
                side,
                [f"{places[case.id]} (id {case.id})" for case in usable if (case.group, case.split) == (group, side)],
            )
            for side in SPLITS
        ]
        words = ("training" if side == "train" else side for side, _ in by_side)
        named = (f"{word}: {ids.listed(rows, at_most=3)}" for word, (_, rows) in zip(words, by_side, strict=True))
        problems.add(f"group {quoted(group)} is on both sides: {'; '.join(named)}")
    problems.raise_if_any(
        CasesError,
        _names(tables),
        "A test on a group that is also in the training split is not a test. Put each group on one side.",
    )


def _counted(recipe: Recipe, train: list[Case], test: list[Case]) -> Recipe:
    """The recipe with the numbers of cases of a split that is not drawn, and a test pass over the whole test split."""
    if recipe.data.split == "drawn":
        return recipe
    counts = {"data.train_cases": len(train), "data.test_cases": len(test)}
    return recipe.with_values(counts, f"follows from data.split: {recipe.data.split}").with_whole_test_pass()


def _split_remarks(recipe: Recipe, train: list[Case], test: list[Case]) -> list[str]:
    """Remarks on a split that is not drawn as in the paper, and on groups that were kept together."""
    found = []
    if (split := recipe.data.split) != "drawn":
        why = recipe.source_of("data.split")
        hint = "; --split drawn ignores the column" if why.startswith(_BY_COLUMN) else ""
        found.append(f"the split is {split}, not drawn as in the paper ({why}){hint}")
    if grouped := [case.group for case in (*train, *test) if case.group is not None]:
        found.append(f"{len(grouped)} hands are in {len(set(grouped))} groups, each on one side of the split")
    return found


def _may_be_years(ages: Path, cases: list[Case]) -> CasesError:
    """The error for a table in which no age is above 20."""
    low, high = range_of(cases)
    return CasesError(
        f"{ages}: the ages are {low:g} to {high:g}: months of babies, or years? Give --ages-in-years when they are "
        "years, --ages-in-months when they are months."
    )


def _check_sizes(inputs: Inputs, table: Path) -> None:
    problems = Problems()
    for case in inputs.chosen():
        image, hand = inputs.images[case.id], inputs.points[case.id]
        try:
            width, height = hand_images.image_size(image)
        except ImageError as error:
            problems.add(str(error).rstrip("."))
            continue
        if (width, height) != (hand.width, hand.height):
            problems.add(
                f"{image} is {width} x {height}, but its points (id {case.id}) "
                f"were marked in {hand.width} x {hand.height}"
            )
    problems.raise_if_any(PointsError, str(table), "Correct these images or rows, or remove the rows.")
