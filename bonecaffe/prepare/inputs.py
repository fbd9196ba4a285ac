"""What a run is prepared from: ages, points and images, read and checked; the recipe with what the user asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bonecaffe.errors import CasesError, ImageError, PointsError, Problems
from bonecaffe.hands import ids
from bonecaffe.hands import images as hand_images
from bonecaffe.hands.cases import AgeUnit, Case, looks_like_years, range_of, read_cases, split_cases
from bonecaffe.hands.provenance import count_unmarked
from bonecaffe.hands.reference_points import ReferencePoints, read_points
from bonecaffe.prepare.imageset import check_whole_months
from bonecaffe.recipe import Recipe
from bonecaffe.run import SPLITS, RunDir


@dataclass(frozen=True)
class Inputs:
    """The checked inputs of a run: who is trained on and tested, their points and images."""

    split: dict[str, list[Case]]
    points: dict[str, ReferencePoints]
    images: dict[str, Path]
    left_out: dict[str, int]  # reason -> number of cases
    ages_months: tuple[float, float]  # the lowest and the highest in the table
    ages_in: AgeUnit
    remarks: list[str]  # sentences about what is usable, but may not be meant

    def chosen(self) -> Iterator[Case]:
        """All cases of both splits, in order."""
        for split in SPLITS:
            yield from self.split[split]


# ---- the recipe --------------------------------------------------------------------------------------------------


def recipe_for(run: RunDir, name: str | None) -> Recipe:
    """The recipe of this name or file; without one, the run's own, edits of recipe.yaml included; else the paper's."""
    if name:
        return Recipe.load(name)
    run.check()
    return Recipe.load(run.recipe_file) if run.recipe_file.is_file() else Recipe.load("paper")


def with_split(
    recipe: Recipe, train: int | None, test: int | None, seed: int | None, labels: str | None = None
) -> Recipe:
    """The recipe with another split or other labels, each declared; the test pass covers each test case once."""
    given = {
        "data.labels": (labels, "--labels"),
        "data.train_cases": (train, "--train"),
        "data.test_cases": (test, "--test"),
        "data.split_seed": (seed, "--seed"),
    }
    for field, (value, option) in given.items():
        if value is not None:
            recipe = recipe.with_values({field: value}, f"prepare {option} {value}")
    return recipe.with_whole_test_pass() if test is not None else recipe


def with_origin(recipe: Recipe, points: Path, origin: str | None = None) -> Recipe:
    """The recipe with the points' origin declared: as the user states it, else as the files beside the table tell."""
    if origin is not None:
        return recipe.with_values({"data.points": origin}, f"prepare --origin {origin}")
    if found := count_unmarked(points):
        return recipe.with_values(
            {"data.points": "found"},
            f"{found} hands have points that bonecaffe locate or another program suggested, and nobody moved",
        )
    return recipe


# ---- the tables and images ---------------------------------------------------------------------------------------


def read_inputs(image_folder: Path, ages: Path, points: Path, recipe: Recipe, ages_in: AgeUnit | None = None) -> Inputs:
    """Read and check the three inputs and draw the split; write nothing.

    A case is usable when it is marked. Cases without points are left out and counted; a marked case without an
    image, an image of another size than its points have, a fractional age are errors naming the case. So are ages that
    may be years, unless ``ages_in`` states what they are.
    """
    cases = read_cases(ages, ages_in or "months")
    if ages_in is None and looks_like_years(cases):
        raise _may_be_years(ages, cases)
    marked = read_points(points)
    images = hand_images.find_images(image_folder)
    usable = [case for case in cases if case.id in marked]
    if missing := hand_images.missing((case.id for case in usable), images):
        raise ImageError(
            f"{image_folder}: no image for {len(missing)} marked case{'s' * (len(missing) > 1)}: "
            f"{ids.listed(missing, images)}. "
            f"Add the images, or take the rows out of {points}."
        )
    needed = recipe.data.train_cases + recipe.data.test_cases
    unmarked = [case.id for case in cases if case.id not in marked]
    without_age = marked.keys() - {case.id for case in cases}
    alike = list(ids.nearest(unmarked, without_age))
    if len(usable) < needed:
        first = ids.listed(alike[:1] or unmarked[:1], without_age)
        remedy = "Write the ids alike in both tables" if alike else "Mark more hands"
        raise CasesError(
            f"{ages}: {len(cases)} cases, of which {len(usable)} are marked in {points}"
            f"{f'; first without points: {first}' if first else ''}. "
            f"{recipe.data.train_cases} for training and {recipe.data.test_cases} for test are needed. "
            f"{remedy}, or ask for fewer with --train and --test."
        )
    if recipe.data.labels == "whole_months":
        check_whole_months(usable)
    train, test = split_cases(usable, recipe.data.train_cases, recipe.data.test_cases, recipe.data.split_seed)
    left_out = {
        "without points": len(unmarked),
        "without an age": len(without_age),
        "not drawn": len(usable) - needed,
    }
    inputs = Inputs(
        {"train": train, "test": test},
        marked,
        images,
        {reason: n for reason, n in left_out.items() if n},
        range_of(cases),
        ages_in or "months",
        [f"{ages}: left out, because {points} has no such id: {ids.listed(alike, without_age)}"] if alike else [],
    )
    _check_sizes(inputs, points)
    return inputs


def _may_be_years(ages: Path, cases: list[Case]) -> CasesError:
    """The question that no age above 20 raises."""
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
    problems.raise_if_any(PointsError, str(table), "Correct the image or its row, or take the case out of the tables.")
