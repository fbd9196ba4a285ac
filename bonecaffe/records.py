"""What each stage records in ``manifest.json``: one frozen model per stage, validated when read.

A record names what its stage read (`Record.inputs`, by name), the files it left in the run (`Record.outputs`, by path)
and the stage's facts. A stage reads the records of the stages before it. The manifest keeps them under the names of the
verbs: ``prepare, prototxt, train, predict, evaluate, evaluate_all``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from bonecaffe.errors import BonecaffeError, RunError
from bonecaffe.files import is_inside, sha256, sha256_file
from bonecaffe.trees import parse_json

VERSION: Literal[2] = 2
"""Version of the manifest's format. bonecaffe 0.1 wrote version 1, without a number."""


def _inside(path: str) -> str:
    if not is_inside(path):
        raise ValueError("a path inside the run is needed")
    return path


def _plain_name(name: str) -> str:
    if not is_inside(name) or "/" in name or "\\" in name or name.startswith("."):
        raise ValueError("a plain name is needed")
    return name


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
RunPath = Annotated[str, AfterValidator(_inside)]
"""The path of a file in the run, relative to it."""
CaseId = Annotated[str, AfterValidator(_plain_name)]
Count = Annotated[int, Field(ge=0, le=10**12)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Frozen(BaseModel):
    """A record, or a part of one."""

    model_config = ConfigDict(frozen=True, extra="forbid")


# ---- versions and machine ----------------------------------------------------------------------------------------


class Host(Frozen):
    """The kind of machine, without its name. Memory in GB."""

    system: str
    kernel: str
    machine: str
    cpu: str
    cores: Count
    omp_num_threads: str
    memory_gb: Finite


class CaffeBuild(Frozen):
    """The Caffe that was used: where it came from, how it was built, the hashes of its binaries."""

    origin: str
    build: dict[str, str]
    blas_file: str
    gpu: bool
    cudnn: bool
    nccl: bool
    binaries: dict[str, Sha256]


class MadeWith(Frozen):
    """Versions of bonecaffe, Python and packages, the machine, and Caffe (None: there was none)."""

    bonecaffe: str
    python: str
    packages: dict[str, str]
    host: Host
    caffe: CaffeBuild | None = None


# ---- how Caffe is called -----------------------------------------------------------------------------------------


class GivenWeights(Frozen):
    """The weights that a training started from: the file's name, its hash, whether it is BVLC's ImageNet file."""

    name: str
    sha256: Sha256
    imagenet: bool


class Launch(Frozen):
    """A call of ``caffe train``: what it starts from, and where it is computed. Paths are as Caffe gets them.

    At most one of ``weights`` and ``snapshot`` is given; with neither, the weights come from the fillers. ``gpus`` is
    ``0``, ``0,1`` or ``all``; None leaves it to the solver's ``solver_mode``.

    >>> Launch(weights="init.caffemodel", gpus="0").arguments()
    ['train', '--solver', 'solver.prototxt', '--weights', 'init.caffemodel', '--gpu', '0']
    """

    weights: str | None = None
    snapshot: str | None = None
    gpus: Annotated[str, Field(pattern=r"^(all|\d+(,\d+)*)$")] | None = None
    solver: str = "solver.prototxt"

    @classmethod
    def of(cls, weights: str | None, snapshot: str | None, gpus: str | None) -> Launch:
        """The launch that a user asks for; RunError with a readable reason when it is invalid."""
        try:
            return cls(weights=weights, snapshot=snapshot, gpus=gpus)
        except ValidationError as error:
            first = error.errors()[0]
            if first["loc"] == ("gpus",):
                raise RunError(f"--gpu {gpus}: give 0, or several such as 0,1, or all.") from None
            raise RunError(f"{first['msg'].removeprefix('Value error, ')}.") from None

    @model_validator(mode="after")
    def _one_start(self) -> Launch:
        if self.weights is not None and self.snapshot is not None:
            raise ValueError(
                "--weights and --snapshot exclude each other: weights start a training, a snapshot resumes one"
            )
        return self

    def arguments(self) -> list[str]:
        """What follows ``caffe`` on its command line."""
        optional = (("--weights", self.weights), ("--snapshot", self.snapshot), ("--gpu", self.gpus))
        given = [word for option, value in optional if value is not None for word in (option, value)]
        return ["train", "--solver", self.solver, *given]

    def argv(self, program: str | os.PathLike[str]) -> list[str]:
        """The whole command line, for the ``caffe`` at ``program``."""
        return [os.fspath(program), *self.arguments()]

    def __str__(self) -> str:
        import shlex

        return shlex.join(["caffe", *self.arguments()])


def _need(entries: Mapping[str, object], *names: str) -> None:
    missing = [name for name in names if name not in entries]
    if missing:
        raise ValueError(f"{', '.join(missing)} missing")


# ---- the stages --------------------------------------------------------------------------------------------------


class Record(Frozen):
    """What every stage records. ``stamps`` are size and time of the outputs when they were recorded: where they still
    match, a large file counts as unchanged and is not read (`is_intact`)."""

    stage: ClassVar[str]

    inputs: dict[str, Sha256]
    outputs: dict[RunPath, Sha256]
    stamps: dict[RunPath, tuple[int, int]] = {}
    by: MadeWith


class Source(Frozen):
    """A file that a user gave: its name and hash."""

    name: str
    sha256: Sha256


class PreparedCase(Frozen):
    """One hand: size and time of its source file; hashes of that file, of the image in it, of the prepared pixels, and
    of points and settings; how it was turned or inverted to be upright with bright bones."""

    source_stat: tuple[int, int]
    source_sha256: Sha256
    image_sha256: Sha256 | None = None
    """None in runs that were prepared before this hash was recorded."""
    pixels_sha256: Sha256
    made_from: Sha256
    quarters: Annotated[int, Field(ge=1, le=3)] | None = None
    """Quarter turns counter-clockwise before the crop."""
    polarity: Annotated[str, Field(pattern="^(dark|unseen)$")] | None = None
    """Dark: the image was inverted before the crop. Unseen: no hand could be seen at the points."""


PREPARED_FROM = ("cases", "points", "images", "settings")
"""What a preparation depends on: the names of its inputs."""


class Prepared(Record):
    """The prepare stage: the recipe, the split, and each hand's image."""

    stage: ClassVar[str] = "prepare"

    recipe: str
    """The recipe as YAML, complete."""
    sources: dict[str, Source]
    """The tables: ``ages``, ``points``, and ``test_ages`` where the test hands have a table of their own."""
    images_folder: str
    """The folder's name; for several folders, their names separated by commas."""
    ages_in: Literal["years"] | None = None
    """The unit of the table of ages, where the user stated that it is not months."""
    left_out: dict[str, Count]
    groups: Annotated[int, Field(ge=1)] | None = None
    """How many groups the hands are in; a group is never split. None: the table of ages has no groups."""
    records: dict[str, Count]
    split: dict[str, tuple[CaseId, ...]]
    cases: dict[CaseId, PreparedCase]
    phantoms: Count = 0
    """How many of the hands are phantoms, by the list that `phantom` writes into their folder."""

    @model_validator(mode="after")
    def _whole(self) -> Prepared:
        if set(self.split) != {"train", "test"} or self.records != {s: len(ids) for s, ids in self.split.items()}:
            raise ValueError("the split and the number of records do not agree")
        if {case_id for ids in self.split.values() for case_id in ids} != set(self.cases):
            raise ValueError("the split and the cases do not agree")
        _need(self.sources, "ages", "points")
        _need(self.inputs, *PREPARED_FROM)
        return self

    @property
    def key(self) -> Sha256:
        """What was prepared, as one hash; a model is bound to the hash it was trained with."""
        return digest(self.inputs)


class Defined(Record):
    """The definition files as they are in the run, and as they would be without edits by hand."""

    stage: ClassVar[str] = "prototxt"

    generated: dict[RunPath, Sha256]
    """The hash of each file's text as bonecaffe writes it; a file of another hash was edited by hand."""
    intended: dict[RunPath, Sha256] = {}
    """The same for files that were about to be moved into place; empty once they are in place."""
    mean: dict[str, str]
    """Where the mean comes from: the recipe's setting, and the images or the file."""


class State(StrEnum):
    """The state of a run, or how its last training ended."""

    EMPTY = "empty"
    PREPARED = "prepared"
    RUNNING = "running"
    TRAINING = "training"
    FINISHED = "finished"
    INTERRUPTED = "interrupted"
    DIVERGED = "diverged"
    DIED = "died"
    KILLED = "killed"
    MODEL_GONE = "last model gone"


class Attempt(Frozen):
    """One call of Caffe, and how it ended; ``state`` is None until its end is recorded."""

    command: str
    start: str
    at: str
    by: MadeWith
    state: State | None = None
    started_at: Count | None = None
    """The iteration of the snapshot that it resumed from; 0 for a start."""
    gpus: Count | None = None
    """How many GPUs computed it, each with a whole batch; 0: the CPU."""
    arithmetic: str = ""
    """How a GPU computed: TF32 or float32, and which of cuDNN's algorithms; empty for the CPU."""
    iteration: Count | None = None
    seconds: Finite | None = None
    why: str = ""
    alarms: tuple[str, ...] = ()


class Trained(Record):
    """The training: how it first started, how it ended, and each attempt."""

    stage: ClassVar[str] = "train"

    state: State
    iteration: Count
    weights: GivenWeights | None = None
    """What the first attempt started from; None: from the fillers."""
    launch: Launch
    """The last call."""
    files: dict[str, str]
    """Hashes of the files that prediction needs; for the mean, empty when there is no mean image."""
    edited: dict[RunPath, dict[str, tuple[str, str]]] = {}
    """Definition files that were edited by hand; for the solver, by field, the recipe's value and the one used."""
    attempts: tuple[Attempt, ...]

    @model_validator(mode="after")
    def _whole(self) -> Trained:
        _need(self.inputs, "prepare", "train_val", "solver", "deploy", "mean")
        _need(self.files, "deploy", "mean")
        return self


class Predicted(Record):
    """The predictions for both splits, by the model of one snapshot."""

    stage: ClassVar[str] = "predict"

    iteration: Count

    @model_validator(mode="after")
    def _whole(self) -> Predicted:
        _need(self.inputs, "prepare")
        return self


class Evaluated(Record):
    """Metrics, figures and report of the predictions."""

    stage: ClassVar[str] = "evaluate"


class Surveyed(Record):
    """Every snapshot measured; its inputs are the models, by iteration."""

    stage: ClassVar[str] = "evaluate_all"


class Manifest(Frozen):
    """All records of a run. ``seals`` are their hashes, which reveal an edit of the file."""

    version: Literal[2] = VERSION
    prepare: Prepared | None = None
    prototxt: Defined | None = None
    train: Trained | None = None
    predict: Predicted | None = None
    evaluate: Evaluated | None = None
    evaluate_all: Surveyed | None = None
    seals: dict[str, str] = {}

    def records(self) -> dict[str, Record]:
        """The existing records, by stage, in the order of the pipeline."""
        found = {name: getattr(self, name) for name in STAGES}
        return {name: record for name, record in found.items() if record is not None}

    def is_evaluated(self) -> bool:
        """Whether the recorded evaluation belongs to these images, this training's model and these predictions."""
        prepared, trained, predicted, evaluated = self.prepare, self.train, self.predict, self.evaluate
        if prepared is None or trained is None or predicted is None or evaluated is None:
            return False
        models = predicted.inputs.items() - {("prepare", prepared.key)}
        return (
            evaluated.inputs == predicted.outputs
            and predicted.inputs["prepare"] == prepared.key
            and models <= trained.outputs.items()
        )

    def with_record(self, record: Record) -> Manifest:
        """A copy with a stage's record under its seal."""
        seals = {**self.seals, record.stage: seal(record)}
        return self.model_copy(update={record.stage: record, "seals": seals})

    def without(self, stages: Iterable[str]) -> Manifest:
        """A copy without the records of some stages."""
        dropped = set(stages)
        seals = {stage: value for stage, value in self.seals.items() if stage not in dropped}
        return self.model_copy(update={**dict.fromkeys(dropped), "seals": seals})

    def to_json(self) -> str:
        """The text of ``manifest.json``."""
        return json.dumps(self.model_dump(mode="json", exclude_none=True), indent=2, ensure_ascii=False) + "\n"


STAGES = ("prepare", "prototxt", "train", "predict", "evaluate", "evaluate_all")


def parse_manifest(content: bytes, where: str) -> Manifest:
    """The manifest in the bytes of ``manifest.json``; RunError when it is not one, or of another version."""
    remedy = "Prepare the run again in another folder"
    try:
        tree = parse_json(content, where, RunError)
    except RunError as error:
        raise RunError(f"{error} {remedy}.") from None
    version = tree.get("version") if isinstance(tree, dict) else None
    if version != VERSION:
        of = "bonecaffe 0.1" if isinstance(tree, dict) and "version" not in tree else "another version of bonecaffe"
        raise RunError(f"{where}: a manifest of {of}, which this version does not read. {remedy}, or use that version.")
    try:
        return Manifest.model_validate(tree)
    except (ValidationError, RecursionError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": "nested too deeply"}
        place = ".".join(map(str, first["loc"])) or "it"
        raise RunError(f"{where}: not as bonecaffe writes it ({place}: {first['msg']}). {remedy}.") from None


def seal(record: Record) -> Sha256:
    """The hash of a record."""
    return sha256(json.dumps(record.model_dump(mode="json", exclude_none=True), sort_keys=True, ensure_ascii=False))


def digest(facts: Mapping[str, str]) -> Sha256:
    """Names and values as one hash, whatever their order."""
    return sha256(json.dumps(dict(facts), sort_keys=True, ensure_ascii=False))


# ---- is it still current? ----------------------------------------------------------------------------------------


def is_current(run: Path, record: Record | None, inputs: Mapping[str, str]) -> bool:
    """Whether a stage is done already: recorded with these very inputs, and all its outputs exist unchanged."""
    return record is not None and dict(record.inputs) == dict(inputs) and not damaged(run, record)


def damaged(run: Path, record: Record, names: Iterable[str] | None = None, read: bool = False) -> list[str]:
    """Which outputs of a record (those in ``names``, or all) are missing or changed; see `is_intact`."""
    return [name for name in (record.outputs if names is None else names) if not is_intact(run, record, name, read)]


TRUSTED_FROM = 1_000_000
"""From this size in bytes, a file with the recorded size and time counts as unchanged. Reading a smaller one takes a
millisecond."""


def is_intact(run: Path, record: Record, name: str, read: bool = False) -> bool:
    """Whether an output exists and is unchanged.

    A large file whose size and time are as recorded is not read, unless ``read`` asks for it: damage on the disk, or a
    changed file copied with its old time (``cp -a``), keeps both.
    """
    path = os.path.join(run, name)
    try:
        status = os.lstat(path)
        stamp = status.st_size, status.st_mtime_ns
        if not read and status.st_size >= TRUSTED_FROM and record.stamps.get(name) == stamp:
            return True
        return sha256_file(path) == record.outputs[name]
    except (OSError, BonecaffeError):
        return False


def outputs_of(run: Path, paths: Iterable[Path], known: Mapping[str, str] | None = None) -> dict[str, Any]:
    """``outputs`` and ``stamps`` for a record, of the files that exist; ``known`` are hashes that are known already."""
    outputs: dict[str, str] = {}
    stamps: dict[str, tuple[int, int]] = {}
    for path in paths:
        try:
            status = os.stat(path)
        except FileNotFoundError:
            continue
        name = path.relative_to(run).as_posix()
        outputs[name] = (known or {}).get(name) or sha256_file(path)
        stamps[name] = status.st_size, status.st_mtime_ns
    return {"outputs": outputs, "stamps": stamps}
