"""What `repeat` repeats, and the result of each seed or fold."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, model_validator

from bonecaffe.errors import RepeatError
from bonecaffe.files import sha256, sha256_file
from bonecaffe.hands.cases import AgeUnit
from bonecaffe.hands.images import DicomId
from bonecaffe.recipe import Departure, Fold, Recipe
from bonecaffe.records import CaseId, Count, Finite, Frozen, State
from bonecaffe.run import RunDir
from bonecaffe.studies.spread import Figure, Measured, measured

Kind = Literal["seed", "fold"]
SEEDED = ("data.split_seed", "solver.random_seed")
"""The fields that differ between seeds."""


@dataclass(frozen=True)
class Repetition:
    """What is repeated, over seeds or over folds; paths are absolute, so that every worker finds them."""

    out: Path
    recipe: str  # YAML, complete
    images: Path | tuple[Path, ...]
    ages: Path
    points: Path
    weights: Path | None = None
    gpu: str | None = None
    cpu: bool = False
    ages_in: AgeUnit | None = None
    folds: int | None = None
    """Number of folds of a cross-validation; None: seeds."""
    split_seed: int = 1
    """Seed of the assignment to folds; over seeds, each has its own."""
    dicom_id: DicomId = "name"
    """The id of DICOM images, which a worker of a cluster cannot take from the command."""

    @property
    def kind(self) -> Kind:
        """Whether the parts are seeds or folds."""
        return "seed" if self.folds is None else "fold"

    def run_of(self, number: int) -> RunDir:
        """The run of a seed, or of a fold, counted from 1."""
        return RunDir(self.out / f"{self.kind}-{number}")

    def base(self) -> Recipe:
        """The recipe that is repeated."""
        return Recipe.parse(self.recipe, "the recipe to repeat")

    def recipe_for(self, number: int) -> Recipe:
        """The recipe of a seed or fold. All folds start from the same weights; a seed changes weights and split."""
        if self.folds is None:
            values = dict.fromkeys(SEEDED, number)
            return self.base().with_values(values, f"repeat: seed {number} of split and initialization")
        fold = {"data.split": str(Fold(number, self.folds))}
        recipe = self.base().with_values(fold, f"repeat --folds {self.folds}: every hand is tested once", meant=True)
        return recipe.with_values({"data.split_seed": self.split_seed}, "repeat: seed of the assignment to folds")

    def departures(self) -> list[Departure]:
        """Where this study departs from the paper's; seeds are choices, not departures."""
        return self.recipe_for(1).departures()

    def key(self) -> str:
        """What is repeated, as a hash of recipe, ages, points, weights and folds; the files' paths do not count."""
        files = (self.ages, self.points, *([self.weights] if self.weights else []))
        try:
            years = ["ages in years"] if self.ages_in == "years" else []
            folds = [f"{self.folds} folds, seed {self.split_seed}"] if self.folds is not None else []
            uids = ["DICOM images by UID"] if self.dicom_id == "uid" else []
            return sha256("".join([self.recipe, *map(sha256_file, files), *years, *folds, *uids]))
        except OSError as error:
            raise RepeatError(f"{error.filename}: {error.strerror}.") from error


class HandTested(NamedTuple):
    """One test hand; ages in months."""

    id: CaseId
    boneage_months: Finite
    predicted_months: Finite
    male: bool | None = None
    group: str | None = None

    @property
    def unit(self) -> str:
        """The unit that was drawn: the hand, or its group."""
        return f"hand {self.id}" if self.group is None else f"group {self.group}"


Mad = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Ccc = Annotated[float, Field(ge=-1.000001, le=1.000001, allow_inf_nan=False)]


class Result(Frozen):
    """The result of a seed or fold; figures in months, None unless it finished."""

    number: Count
    state: State
    iteration: Count
    train_mad: Mad | None = None
    train_ccc: Ccc | None = None
    test_mad: Mad | None = None
    test_ccc: Ccc | None = None
    test_max: Mad | None = None
    outside: Count = 0
    """Test hands that are younger or older than all hands of their training."""
    phantoms: Count = 0
    """How many of its hands, of both splits, are phantoms."""
    departures: Count = 0
    """Number of fields in which its run departs from the paper, by recipe, launch and edited files."""
    word: str = ""
    """The verdict on its run."""
    hands: tuple[HandTested, ...] = ()
    """The test hands with their predictions, from which the sampling error is estimated."""

    @model_validator(mode="after")
    def _whole(self) -> Result:
        figures = (self.train_mad, self.train_ccc, self.test_mad, self.test_ccc, self.test_max)
        if self.finished and (None in figures or not self.hands):
            raise ValueError("finished, but without figures or hands")
        if len({hand.id for hand in self.hands}) < len(self.hands):
            raise ValueError("a hand is listed twice")
        return self

    @property
    def finished(self) -> bool:
        """Whether it finished and has figures."""
        return self.state is State.FINISHED

    def measured(self, figure: Figure) -> Measured | None:
        """The test's MAD or CCC with its sampling error; None where that cannot be estimated."""
        return measured_of(figure, self.hands)


def measured_of(figure: Figure, hands: tuple[HandTested, ...] | list[HandTested]) -> Measured | None:
    """MAD or CCC of some hands, with its sampling error."""
    return measured(
        figure,
        [hand.unit for hand in hands],
        [hand.boneage_months for hand in hands],
        [hand.predicted_months for hand in hands],
    )
