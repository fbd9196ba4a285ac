"""The settings of a run: a frozen, validated model read from YAML, and how it departs from the paper.

In a recipe file every field is ``{value: …, source: …}`` or ``{value: …, reason: …}``. ``paper.yaml`` states
all fields with their source. Any other recipe has ``extends: paper`` and holds only what differs, each with
the reason for it. A difference without a reason is refused, and so is a field the paper's recipe does not have.

A difference in a field that the paper states is a *departure*. Where the paper is silent (its source in
``paper.yaml`` begins with "not stated"), every value is a *choice*, ``paper.yaml``'s own included.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from bonecaffe.errors import RecipeError
from bonecaffe.files import read_text
from bonecaffe.trees import parse_yaml

Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")]
"""The name of a file in the run, without a folder."""
Rate = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Fold(NamedTuple):
    """One fold of several: its hands are tested, the others are trained on. Counted from 1."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"fold {self.number} of {self.of}"


def fold_of(split: str) -> Fold | None:
    """The fold that a recipe's ``data.split`` names; None when it is ``drawn`` or ``given``.

    >>> fold_of("fold 2 of 5"), fold_of("drawn")
    (Fold(number=2, of=5), None)
    """
    found = re.fullmatch(r"fold ([1-9]\d{0,5}) of ([1-9]\d{0,5})", split, re.ASCII)
    return Fold(int(found[1]), int(found[2])) if found else None


def _split(split: str) -> str:
    fold = fold_of(split)
    if split not in ("drawn", "given") and (fold is None or fold.of < 2 or fold.number > fold.of):
        folds = "a fold such as fold 1 of 5, up to fold 5 of 5"
        raise ValueError(f"{_short(repr(split))} is not a split; write drawn, given, or {folds}")
    return split


class _Frozen(BaseModel):
    # the docstrings of the fields are their descriptions in docs/reference/recipe.md
    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, use_attribute_docstrings=True)


class Data(_Frozen):
    """Which cases, and how they are split into training and test (paper II.1)."""

    train_cases: Count
    """How many hands are trained on."""
    test_cases: Count
    """How many hands are tested on."""
    split: Annotated[str, AfterValidator(_split)]
    """``drawn``; ``given`` by the tables of ages; or one fold of a cross-validation, such as ``fold 2 of 5``."""
    split_seed: Seed
    """Seed of the random draw."""
    labels: Literal["whole_months", "round", "exact"]
    """How ages become labels: ``whole_months`` refuses a fractional age, ``round`` rounds it, ``exact`` keeps it in a
    separate database. Evaluation always uses the exact ages."""
    points: Literal["marked", "boxes", "found"]
    """Where the reference points come from: marked by hand, the centres of boxes, or found by ``bonecaffe locate``."""


class Preparation(_Frozen):
    """From a hand to the image that Caffe packs (paper II.1)."""

    margin: Annotated[float, Field(ge=0, le=1)]
    """How far each side of the rectangle is moved outward, as a fraction of its width or height."""
    equalization: Literal["matlab_histeq"]
    """How grey levels are spread after the crop; docs/explanation/HISTEQ.md has the rule."""
    histeq_levels: Annotated[int, Field(ge=2, le=256)]
    """The number of grey levels that ``histeq`` maps to: its second argument in MATLAB."""
    height: Count
    """Height of the image that the network gets, in pixels."""
    width: Count
    """Width of the image that the network gets, in pixels."""


class Network(_Frozen):
    """CaffeNet with a regression head (paper II.3, appendix 1)."""

    name: str
    """The net's name in the definition files."""
    train_batch: Count
    """Images in a training batch."""
    test_batch: Count
    """Images in a test batch."""
    mirror: bool
    """Whether Caffe mirrors training images at random."""
    mean: Annotated[str, Field(pattern=r"^(imagenet_values|none|dataset|file:.+)$")]
    """What is subtracted from the pixels: ``imagenet_values`` takes ``mean_value``, ``dataset`` the mean image of the
    training images, ``file:NAME`` your own binaryproto, ``none`` nothing."""
    mean_value: tuple[float, float, float]
    """Blue, green and red, in grey levels of 0 to 255; used when ``mean`` is ``imagenet_values``."""
    conv_outputs: tuple[Count, Count, Count, Count, Count]
    """Outputs (channels) of conv1 to conv5."""
    conv_groups: tuple[Count, Count, Count, Count, Count]
    """Groups of conv1 to conv5."""
    conv1_stride: Count
    """Stride of conv1, in pixels."""
    fc_outputs: tuple[Count, Count]
    """Outputs of fc6 and fc7."""
    weight_filler: Literal["stock", "msra", "xavier"]
    """How weights are initialized where none are copied: ``stock`` uses the Gaussians of the CaffeNet file."""
    bias_filler: Literal["stock", "zero"]
    """How biases are initialized where none are copied: ``stock`` uses the constants of the CaffeNet file."""
    dropout: Annotated[float, Field(ge=0, lt=1)]
    """Share of the outputs of fc6 and fc7 that is dropped in training."""
    fc8_name: str
    """Name of the last layer. Caffe copies weights by name."""
    fc8_outputs: Count
    """Outputs of the last layer: one, the age in months."""
    fc8_lr_mult: tuple[Rate, Rate]
    """Factors on the learning rate for the last layer's weights and bias."""
    fc8_decay_mult: tuple[Rate, Rate]
    """Factors on the weight decay for the last layer's weights and bias."""
    fc8_weight_std: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    """Standard deviation of the Gaussian that initializes the last layer's weights."""
    fc8_bias: float
    """Initial value of the last layer's bias, in months."""
    loss: Literal["EuclideanLoss"]
    """Layer of the loss: half the mean squared error of a batch, in squared months."""


class Solver(_Frozen):
    """The training schedule (paper II.4, appendix 2)."""

    net: Literal["train_val.prototxt"]
    """The file that bonecaffe writes, checks and records."""
    type: Literal["SGD", "Nesterov", "Adam"]
    """Caffe's solver."""
    test_iter: Count
    """Batches in a test pass. Fitted to ``data.test_cases`` unless a recipe states it."""
    test_interval: Count
    """Iterations between test passes."""
    base_lr: Rate
    """Learning rate at the start."""
    lr_policy: Literal["step", "fixed"]
    """``step`` multiplies the learning rate by ``gamma`` every ``stepsize`` iterations; ``fixed`` keeps it."""
    gamma: Rate
    """Factor on the learning rate at each step."""
    stepsize: Count
    """Iterations between steps of the learning rate."""
    display: Count
    """Iterations between lines with the loss in the log."""
    max_iter: Count
    """Iterations of the whole training."""
    iter_size: Count
    """Batches whose gradients make one step of the solver."""
    momentum: Rate
    """Momentum; Adam's first decay rate."""
    weight_decay: Rate
    """Weight decay (L2)."""
    snapshot: Count
    """Iterations between snapshots."""
    snapshot_prefix: FileName
    """How the snapshots' file names begin."""
    solver_mode: Literal["GPU", "CPU"]
    """Where the training is computed, unless ``train --gpu`` or ``--cpu`` is given."""
    random_seed: Seed
    """Caffe's seed: of the weights that start at random, of dropout and of mirroring."""


class Training(_Frozen):
    """The initial weights (paper II.3)."""

    initial_weights: Literal["imagenet", "given", "none"]
    """What the training starts from: CaffeNet's ImageNet weights, other weights (``train --weights``), or none."""


NOT_STATED = "not stated"
"""How the source of a field begins in ``paper.yaml`` when the paper does not state its value."""


class Departure(NamedTuple):
    """One field that the paper states, and that has another value here."""

    field: str
    paper: Any
    here: Any
    reason: str


class Choice(NamedTuple):
    """One field that the paper does not state: the value of ``paper.yaml``, the value here, and why."""

    field: str
    default: Any
    here: Any
    reason: str

    @property
    def is_default(self) -> bool:
        """Whether the value is that of ``paper.yaml``."""
        return bool(self.default == self.here)


class Change(NamedTuple):
    """One field whose value differs between two recipes."""

    field: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.field}: {self.before} before, {self.after} now"


class Recipe(_Frozen):
    """A validated recipe: values by section, with the source or the reason of each field.

    >>> paper = Recipe.load("paper")
    >>> paper.solver.max_iter, paper.source_of("solver.max_iter")
    (3000, 'appendix 2')
    >>> paper.departures()
    []
    """

    name: str
    description: str
    data: Data
    preparation: Preparation
    network: Network
    solver: Solver
    training: Training
    notes: dict[str, dict[str, str]] = Field(repr=False)

    @classmethod
    def load(cls, name_or_path: str | Path) -> Recipe:
        """Read a recipe by its name (``paper``, ``demo``, ``smoke``) or from a file.

        Raises RecipeError, naming the file and the field, for anything that is not a valid recipe.
        """
        where = str(name_or_path)
        resolved = _resolve(_find(name_or_path), seen=())
        recipe = _build(resolved.fields, resolved.head, where)
        return recipe.with_whole_test_pass(resolved.batch_stated) if resolved.fits_test_pass else recipe

    @classmethod
    def parse(cls, text: str, where: str) -> Recipe:
        """Read a recipe from what `to_yaml` wrote; ``where`` is for errors."""
        fields, head = _fields_of(_tree(text, where), Path(where))
        return _build(fields, head, where)

    @staticmethod
    def names() -> list[str]:
        """The recipes that come with bonecaffe."""
        folder = resources.files("bonecaffe") / "recipes"
        return sorted(entry.name[: -len(".yaml")] for entry in folder.iterdir() if entry.name.endswith(".yaml"))

    def with_whole_test_pass(self, keep_batch: bool = False) -> Recipe:
        """A copy whose test pass sees each test case once: ``solver.test_iter`` fitted to ``data.test_cases``.

        Where the test batch does not divide the cases, it becomes 1; with ``keep_batch`` nothing is changed then.
        """
        cases, batch = self.data.test_cases, self.network.test_batch
        if self.solver.test_iter * batch == cases or (keep_batch and cases % batch):
            return self
        batch = batch if cases % batch == 0 else 1
        values = {"network.test_batch": batch, "solver.test_iter": cases // batch}
        return self.with_values(values, f"one test pass over {cases} test cases")

    def with_values(self, values: dict[str, Any], reason: str, meant: bool = False) -> Recipe:
        """A copy with other values, ``{"data.split_seed": 7}``, each departing from the paper for ``reason``.

        A field that has the value already keeps its note, unless the value is ``meant``: then the reason shows that it
        was chosen on purpose (`is_meant`).
        """
        fields = self._fields()
        for dotted, value in values.items():
            if dotted not in fields:
                raise RecipeError(f"recipe {self.name}: no field {dotted}")
            if meant or _plain(fields[dotted]["value"]) != _plain(value):
                fields[dotted] = {"value": value, "reason": reason}
        return _build(fields, {"name": self.name, "description": self.description}, self.name)

    def changes(self, later: Recipe) -> list[Change]:
        """The fields whose values differ in a later recipe, in order; reasons and names do not count."""
        mine, theirs = self._fields(), later._fields()
        return [
            Change(field, mine[field]["value"], theirs[field]["value"])
            for field in mine
            if mine[field]["value"] != theirs[field]["value"]
        ]

    def departures(self) -> list[Departure]:
        """The fields that the paper states and that differ in this recipe, in the paper's order."""
        mine = self._fields()
        return [
            Departure(field, entry["value"], mine[field]["value"], mine[field].get("reason", "no reason given"))
            for field, entry in _paper().items()
            if _is_stated(entry) and entry["value"] != mine[field]["value"]
        ]

    def choices(self) -> list[Choice]:
        """The fields that the paper does not state, with this recipe's values, in the paper's order."""
        mine = self._fields()
        found = []
        for field, entry in _paper().items():
            if not _is_stated(entry):
                here = mine[field]["value"]
                why = entry["source"] if entry["value"] == here else mine[field].get("reason", "no reason given")
                reason = why.removeprefix(NOT_STATED).lstrip(";, ")
                found.append(Choice(field, entry["value"], here, reason))
        return found

    def source_of(self, field: str) -> str:
        """Where a field's value comes from: the paper's section, or the reason for departing from it."""
        note = self.notes[field]
        return note.get("source") or note["reason"]

    def is_meant(self, field: str) -> bool:
        """Whether a field's value was chosen with a reason, even if it is the paper's; False for a default."""
        return "reason" in self.notes[field]

    def value_of(self, field: str) -> Any:
        """The value of ``section.field``."""
        section, _, name = field.partition(".")
        return getattr(getattr(self, section), name)

    def to_yaml(self) -> str:
        """All fields with their notes, in the form that `load` reads."""
        tree: dict[str, Any] = {"name": self.name, "description": self.description}
        for dotted, entry in self._fields().items():
            section, _, field = dotted.partition(".")
            tree.setdefault(section, {})[field] = entry
        return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=110, default_flow_style=None)

    def _fields(self) -> dict[str, dict[str, Any]]:
        return {field: {"value": _plain(self.value_of(field)), **note} for field, note in self.notes.items()}


def stated(field: str) -> bool:
    """Whether the paper states the value of ``section.field``; False for a field that no recipe has."""
    entry = _paper().get(field)
    return entry is not None and _is_stated(entry)


def _is_stated(entry: Mapping[str, Any]) -> bool:
    return not entry["source"].startswith(NOT_STATED)


@functools.cache
def _paper() -> Mapping[str, Mapping[str, Any]]:
    """The fields of ``paper.yaml``, with value and source."""
    return Recipe.load("paper")._fields()


_HEAD = ("name", "description", "extends")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _find(name_or_path: str | Path, extending: Path | None = None) -> Path:
    """The file of a recipe: by name, if it comes with bonecaffe; else by path, from here or from another recipe."""
    text = str(name_or_path)
    if text in Recipe.names():
        return Path(str(resources.files("bonecaffe") / "recipes" / f"{text}.yaml"))
    path = Path(text) if extending is None else extending.parent / text
    try:
        if path.is_file():
            return path
    except OSError as error:  # a name that is too long, a folder that may not be searched
        raise RecipeError(f"recipe {_short(text)}: {error.strerror}.") from None
    where = "recipe" if extending is None else f"{extending}: extends"
    typo = _nearest(text, Recipe.names())
    raise RecipeError(f"{where} {_short(text)}: neither a file nor one of {', '.join(Recipe.names())}{typo}.")


def _short(text: str) -> str:
    """A user's text, shortened for an error."""
    return text if len(text) <= 100 else f"{text[:100]} …"


class _Resolved(NamedTuple):
    """A recipe file combined with those it extends."""

    fields: dict[str, dict[str, Any]]
    head: dict[str, str]
    fits_test_pass: bool = False
    """Whether the file changes the test cases or their batch, but not ``test_iter``, which follows from them."""
    batch_stated: bool = False


def _resolve(path: Path, seen: tuple[Path, ...]) -> _Resolved:
    """The fields of a recipe file combined with those it extends, and its head."""
    if path.resolve() in seen:
        raise RecipeError(f"recipe {path}: it extends itself.")
    tree = _read(path)
    own, head = _fields_of(tree, path)
    if "extends" not in tree:
        _check_complete(own, path)
        return _Resolved(own, head)
    below = _resolve(_find(str(tree["extends"]), extending=path), (*seen, path.resolve()))
    for dotted, entry in own.items():
        if "reason" not in entry:
            raise RecipeError(f"{path}: {dotted} departs without a reason. Write {{value: …, reason: …}}.")
    batch_stated = "network.test_batch" in own
    fits = "solver.test_iter" not in own and (below.fits_test_pass or batch_stated or "data.test_cases" in own)
    return _Resolved({**below.fields, **own}, head, fits, batch_stated or below.batch_stated)


def _sections() -> dict[str, type[BaseModel]]:
    """The sections of a recipe, by name."""
    kinds = {name: field.annotation for name, field in Recipe.model_fields.items()}
    return {name: kind for name, kind in kinds.items() if isinstance(kind, type) and issubclass(kind, _Frozen)}


def _all_fields() -> list[str]:
    """The fields of a recipe, ``section.field``, in order."""
    return [f"{section}.{field}" for section, kind in _sections().items() for field in kind.model_fields]


def _nearest(name: str, valid: Iterable[str]) -> str:
    """The end of an error about a wrong name: the nearest valid one, if there is one."""
    near = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    return f"; perhaps a typo for {near[0]}" if near else ""


def _check_complete(own: dict[str, dict[str, Any]], path: Path) -> None:
    """RecipeError, in one sentence, for a file that extends no other and lacks fields."""
    missing = [field for field in _all_fields() if field not in own]
    if missing:
        shown = f"{', '.join(missing[:3])}{', …' if len(missing) > 3 else ''}"
        raise RecipeError(
            f"{path}: {len(missing)} of {len(_all_fields())} fields are missing: {shown}. A recipe that changes some "
            "fields of another begins with the line: extends: paper"
        )


def _fields_of(tree: dict[str, Any], path: Path) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """A file's own fields by ``section.field``, and its head."""
    own: dict[str, dict[str, Any]] = {}
    sections, known = _sections(), _all_fields()
    for section, entries in tree.items():
        if section in _HEAD:
            if not isinstance(entries, str | int | float):
                raise RecipeError(f"{path}: {section} must be one line of text.")
            continue
        if section not in sections:
            typo = _nearest(str(section), [*_HEAD, *sections])
            raise RecipeError(f"{path}: no section {_short(str(section))} in a recipe{typo}.")
        if not isinstance(entries, dict):
            raise RecipeError(f"{path}: {section} must hold fields, each {{value: …, reason: …}}.")
        for field, entry in entries.items():
            dotted = f"{section}.{field}"
            if dotted not in known:
                raise RecipeError(f"{path}: no field {_short(dotted)} in a recipe{_nearest(dotted, known)}.")
            own[dotted] = _entry(path, dotted, entry)
    name, description = (
        _one_line(str(tree.get(key, default))) for key, default in (("name", path.stem), ("description", ""))
    )
    return own, {"name": name, "description": description}


def _one_line(text: str) -> str:
    """A text without line breaks: it is printed in comments of prototxts."""
    return " ".join(text.split())


def _read(path: Path) -> dict[str, Any]:
    try:
        text = read_text(path, "settings", RecipeError)
    except OSError as error:
        raise RecipeError(f"{path}: not readable: {error.strerror}.") from error
    return _tree(text, str(path))


def _tree(text: str, where: str) -> dict[str, Any]:
    tree = parse_yaml(text, where, RecipeError)
    if not isinstance(tree, dict):
        raise RecipeError(f"{where}: a recipe must be a mapping of sections.")
    return tree


def _entry(path: Path, dotted: str, entry: Any) -> dict[str, Any]:
    keys = ("value", "source", "reason")
    if not isinstance(entry, dict) or "value" not in entry or not set(entry) <= set(keys):
        odd = [str(key) for key in entry if key not in keys] if isinstance(entry, dict) else []
        typo = f": {_short(odd[0])}{_nearest(odd[0], keys)}" if odd else ""
        raise RecipeError(
            f"{path}: {dotted} must be written {{value: …, reason: …}}; it is {_short(repr(entry))}{typo}."
        )
    note = entry.get("reason") or entry.get("source")
    if not isinstance(note, str) or not note.strip():
        raise RecipeError(f"{path}: {dotted} departs without a reason. Write {{value: …, reason: …}}.")
    return {key: value if key == "value" else _one_line(str(value)) for key, value in entry.items()}


def _flaw(found: Mapping[str, object]) -> str:
    """What is wrong with a field's value, after the field's name: pydantic's error in plain words, with the value."""
    message = str(found["msg"])
    if not message.startswith("Input should be "):
        return f": {message.removeprefix('Value error, ')}"
    expected = re.split(", (?:unable|got) ", message.removeprefix("Input should be "))[0]
    expected = expected.replace("a valid integer", "a whole number").replace("a valid ", "a ")
    return f" must be {expected}, not {_short(repr(found['input']))}"


def _build(fields: dict[str, dict[str, Any]], head: dict[str, str], where: str) -> Recipe:
    tree: dict[str, Any] = dict(head)
    notes: dict[str, dict[str, str]] = {}
    for dotted, entry in fields.items():
        section, _, field = dotted.partition(".")
        tree.setdefault(section, {})[field] = entry["value"]
        notes[dotted] = {key: entry[key] for key in ("source", "reason") if key in entry}
    try:
        return Recipe.model_validate({**tree, "notes": notes})
    except ValidationError as error:
        found = error.errors()
        problems = "; ".join(f"{'.'.join(map(str, each['loc']))}{_flaw(each)}" for each in found[:5])
        more = f"; and {len(found) - 5} more" if len(found) > 5 else ""
        raise RecipeError(f"recipe {where}: {problems}{more}.") from error
