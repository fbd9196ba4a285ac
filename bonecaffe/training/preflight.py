"""Would Caffe refuse this, or silently do it wrong? Checked before Caffe starts.

Reads what Caffe will read (solver, net, weights, LMDBs, mean, its own build) as it is in the run folder, edits by hand
included, and reports each thing that would make Caffe abort.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bonecaffe.caffe import caffemodel, gpus, lmdb, programs, shapes
from bonecaffe.caffe.arithmetic import Arithmetic
from bonecaffe.caffe.shapes import Shape
from bonecaffe.errors import BonecaffeError, CaffeError, PreflightError, RecipeError, RunError, WeightsError
from bonecaffe.files import read_text
from bonecaffe.network import mean, prototxt
from bonecaffe.records import Launch
from bonecaffe.run import RunDir
from bonecaffe.training import solver as solvers

TRAIN, TEST = 0, 1


CONTEXT_BYTES = 1 << 30
"""What CUDA's context, cuDNN and its workspaces take on a GPU. A guess: up to 1 GB is reported, none was measured."""


@dataclass(frozen=True)
class View:
    """A run as Caffe would see it: its files, some of which may not be in place yet (``staged``, by name)."""

    run: RunDir
    staged: Mapping[str, Path] = field(default_factory=dict)

    def file(self, name: str, whose: str) -> Path:
        """The path of a file that the file ``whose`` names; RunError when it is outside the run."""
        return self.staged.get(name) or self.run.inside(name, whose)

    @property
    def counts(self) -> Mapping[str, int]:
        """How many cases prepare packed, by split; empty before prepare."""
        prepared = self.run.read().prepare
        return {split: count for split, count in prepared.records.items()} if prepared else {}


@dataclass
class Report:
    """What was found. With a problem, Caffe would abort or train wrongly."""

    problems: list[str] = field(default_factory=list)
    copied: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    not_followed: str = ""
    """The first layer of an unknown type; later layers were not checked."""

    def raise_if_any(self, run: RunDir) -> None:
        """Raise PreflightError with every problem, a line each."""
        if self.problems:
            lines = "".join(f"\n  {problem}" for problem in self.problems)
            raise PreflightError(f"{run}: Caffe would not train this as it is:{lines}")


def examine(run: RunDir, launch: Launch | None = None, staged: Mapping[str, Path] | None = None) -> Report:
    """Check everything that ``caffe train`` reads; problems are returned, never raised.

    ``staged`` are files that are written but not in place yet, by name.
    """
    view, launch, report = View(run, staged or {}), launch or Launch(), Report()
    say = report.problems.append  # each check calls it with one problem
    solver = _parse(view.file(run.solver.name, ""), run.solver.name, "SolverParameter", say)
    net_name = _net_name(run, solver)
    net = _parse_named(view, net_name, run.solver.name, say)
    if solver is not None:
        _solver(view, solver, launch, say)
    _hardware(solver, launch, say)
    if net is None:
        return report
    for problem in _unlike_the_recipe(view, net):
        say(f"{Path(net_name).name}: {problem}")
    stored = _databases(view, net, say)
    if solver is not None:
        _test_pass(view, solver, net, say)
    flows = {}
    for phase in (TRAIN, TEST):
        _transforms(view, net, phase, stored, say)
        flows[phase] = shapes.follow(net, phase, {source: shape for source, (shape, _) in stored.items()})
        for problem in flows[phase].problems:
            if f"{Path(net_name).name}: {problem}." not in report.problems:
                say(f"{Path(net_name).name}: {problem}.")
    report.not_followed = flows[TRAIN].unknown or flows[TEST].unknown
    _weights(view, launch, flows[TRAIN], report)
    if solver is not None and flows[TRAIN].complete:
        _room(run, solver, flows[TRAIN], say)
        _memory(solver, flows, launch, say)
    return report


def _net_name(run: RunDir, solver: Any) -> str:
    return solver.net if solver is not None and solver.net else run.train_val.name


def _parse_named(view: View, name: str, whose: str, say: Any) -> Any:
    try:
        path = view.file(name, whose)
    except RunError as error:
        say(str(error))
        return None
    return _parse(path, Path(name).name, "NetParameter", say)


@dataclass(frozen=True)
class Schedule:
    """The schedule of a training, from the files as they are in the run. Iterations, images, bytes."""

    max_iter: int
    test_interval: int
    snapshot_interval: int
    images: int
    """Images per iteration: batch times iter_size."""
    snapshot_bytes: int
    """Of one caffemodel with its solverstate; 0 if unknown."""
    solver: Any

    @property
    def log_interval(self) -> int:
        """The most iterations between two lines of Caffe's log: those of displays, tests or snapshots."""
        intervals = (self.solver.display, self.solver.test_interval, self.solver.snapshot)
        return int(min((interval for interval in intervals if interval > 0), default=self.max_iter))

    def rate_at(self, iteration: int) -> float | None:
        """The learning rate at an iteration, as Caffe computes it; None for a policy other than fixed and step."""
        s = self.solver
        if s.lr_policy == "fixed":
            return s.base_lr
        if s.lr_policy == "step" and s.stepsize > 0:
            return s.base_lr * s.gamma ** (iteration // s.stepsize)
        return None


def schedule(run: RunDir) -> Schedule:
    """The schedule by the solver and net files of a run; PreflightError when they cannot be read."""
    view = View(run)
    problems: list[str] = []
    solver = _parse(run.solver, run.solver.name, "SolverParameter", problems.append)
    net = _parse_named(view, _net_name(run, solver), run.solver.name, problems.append)
    if solver is None or net is None:
        raise PreflightError(problems[0])
    stored = {source: shape for source, (shape, _) in _databases(view, net, problems.append).items()}
    flow = shapes.follow(net, TRAIN, stored)
    batches = [
        layer.data_param.batch_size for layer in net.layer if layer.type == "Data" and shapes.phase_of(layer, TRAIN)
    ]
    return Schedule(
        solver.max_iter,
        solver.test_interval,
        solver.snapshot,
        max(batches, default=1) * max(1, solver.iter_size),
        snapshot_bytes(solver, flow) if flow.complete else 0,
        solver,
    )


# ---- files -----------------------------------------------------------------------------------------------------


def _parse(path: Path, name: str, kind: str, say: Any) -> Any:
    """A prototxt as a protobuf message; if it cannot be read, report why and return None. ``name`` is for errors."""
    from google.protobuf import text_format

    message = getattr(programs.caffe_pb2(), kind)()
    try:
        return text_format.Parse(read_text(path, "settings", PreflightError), message)
    except OSError as error:
        say(f"{name}: {error.strerror}. Write it with: bonecaffe prototxt {path.parent}")
    except PreflightError as error:
        say(str(error))
    except text_format.ParseError as error:
        where = str(error).rstrip(".")
        say(f"{name}: Caffe cannot read it: line {where}. Correct it, or delete it and run bonecaffe prototxt.")
    return None


def _solver(view: View, solver: Any, launch: Launch, say: Any) -> None:
    run = view.run
    for problem in solvers.problems(solver, run.train_val.name):
        say(f"{run.solver.name}: {problem}")
    _snapshot_prefix(view, solver.snapshot_prefix, say)
    if launch.weights is not None and launch.snapshot is not None:
        say("--weights and --snapshot exclude each other: weights start a training, a snapshot resumes one.")
    if launch.snapshot is not None:
        _snapshot(run, launch.snapshot, say)


def _snapshot_prefix(view: View, text: str, say: Any) -> None:
    run = view.run
    try:
        prefix = view.file(text, run.solver.name) if text else run.path
    except RunError as error:
        say(str(error))
        return
    # Caffe writes into the folder that the prefix names; without a prefix, into the solver's own folder
    folder = prefix if prefix.is_dir() or prefix == run.snapshots else prefix.parent
    if folder != run.snapshots and not folder.is_dir():
        say(
            f"{run.solver.name}: snapshot_prefix {text}: there is no folder {folder}; "
            "Caffe would abort at its first snapshot."
        )
    elif folder.is_dir() and not os.access(folder, os.W_OK):
        say(f"{run.solver.name}: snapshot_prefix {text}: {folder} cannot be written to.")
    elif folder != run.snapshots:
        say(
            f"{run.solver.name}: snapshot_prefix {text or 'is missing'}: bonecaffe looks for snapshots only in "
            f'{run.snapshots}. Write snapshot_prefix: "{run.snapshots.name}/SNAPSHOT".'
        )


def _snapshot(run: RunDir, snapshot: str, say: Any) -> None:
    path = run.path / snapshot
    if path.suffix == ".caffemodel":
        say(f"{snapshot}: a caffemodel holds weights, not a solver's state. Resume from its .solverstate file.")
        return
    try:
        caffemodel.solver_state(path)
        learned = caffemodel.learned_net(path)
        if not run.inside(learned, snapshot).is_file():
            say(f"{snapshot}: belongs to {learned}, which is missing. Resume from an older pair.")
    except (WeightsError, RunError) as error:
        say(str(error))


def _databases(view: View, net: Any, say: Any) -> dict[str, tuple[Shape, int]]:
    """Shape and number of records of each LMDB that the net names, by its path as written."""
    found: dict[str, tuple[Shape, int]] = {}
    for layer in net.layer:
        if layer.type != "Data" or layer.data_param.source in found:
            continue
        source = layer.data_param.source
        try:
            found[source] = lmdb.shape_and_count(view.file(source, f"layer {layer.name}"))
        except BonecaffeError as error:
            say(str(error) if isinstance(error, RunError) else f"layer {layer.name}: {error}")
            continue
        listed = _listed(view, Path(source).name)
        if listed is not None and listed != found[source][1]:
            say(
                f"{source}: holds {found[source][1]} records for {listed} listed cases; Caffe would silently train on "
                "those records only. Run prepare again."
            )
    return found


_PIXELS = ("mean_value", "mean_file", "crop_size", "scale", "mirror", "force_color", "force_gray")
_IN_RECIPE = {"mean_value": "network.mean", "mean_file": "network.mean", "mirror": "network.mirror"}
_FILES = ("source", "mean_file", "file_name", "root_folder")
"""Fields in which a net names files that Caffe reads or writes."""


def _unlike_the_recipe(view: View, net: Any) -> Iterator[str]:
    """Inputs of the net that differ from the recipe, which predictions and records follow.

    LMDBs of another run, a mean other than the one that predictions subtract, files that no record names.
    """
    from google.protobuf import text_format

    try:
        recipe, _ = view.run.recipe_as_edited()
    except BonecaffeError:
        return  # no run: there is nothing to compare with
    generated = text_format.Parse(prototxt.train_val(recipe), type(net)())
    for phase, name in ((TRAIN, "TRAIN"), (TEST, "TEST")):
        expected = {tuple(layer.top): layer for layer in generated.layer if _is_data(layer, phase)}
        for layer in net.layer:
            if _is_data(layer, phase) and tuple(layer.top) in expected:
                for problem in _unlike(layer, expected[tuple(layer.top)]):
                    yield f"layer {layer.name} ({name}): {problem}"
    fed = {tuple(layer.top) for layer in generated.layer if layer.type == "Data"}
    for layer in net.layer:
        known = layer.type == "Data" and tuple(layer.top) in fed
        for name, value in () if known else _files_named(layer):
            yield (
                f"layer {layer.name}: {name} {value}: the record of the training would not name it. Remove the layer."
            )


def _is_data(layer: Any, phase: int) -> bool:
    return layer.type == "Data" and shapes.phase_of(layer, phase)


def _unlike(layer: Any, expected: Any) -> Iterator[str]:
    if layer.data_param.source != expected.data_param.source:
        yield (
            f"source {layer.data_param.source or 'is missing'}: not the LMDB that prepare wrote for it, and the record "
            f'of the training would not name it. Write source: "{expected.data_param.source}".'
        )
    for name in _PIXELS:
        value, given = (_shown(getattr(each.transform_param, name)) for each in (layer, expected))
        if value != given:
            field_name = _IN_RECIPE.get(name)
            remedy = f" To train with another value, change {field_name} in recipe.yaml." if field_name else ""
            yield f"{name} is {value}, the recipe has {given}, and predictions follow the recipe. Undo it.{remedy}"


def _shown(value: Any) -> str:
    values = value if isinstance(value, str | bool | int | float) else list(value)
    shown = ", ".join(f"{each:g}" for each in values) if isinstance(values, list) else str(values).lower()
    return shown or "none"


def _files_named(message: Any) -> Iterator[tuple[str, str]]:
    """The files that a layer names, at any depth: field and value."""
    for descriptor, value in message.ListFields():
        if descriptor.name in _FILES:
            yield descriptor.name, str(value)
        elif descriptor.message_type is not None:
            for each in [value] if hasattr(value, "ListFields") else value:
                yield from _files_named(each)


def _listed(view: View, source: str) -> int | None:
    counts, run = view.counts, view.run
    names = {run.lmdb(split).name: split for split in counts} | {run.labels_lmdb(split).name: split for split in counts}
    return counts.get(names.get(source, ""))


def _test_pass(view: View, solver: Any, net: Any, say: Any) -> None:
    run, tests = view.run, view.counts.get("test")
    batches = [
        layer.data_param.batch_size for layer in net.layer if layer.type == "Data" and shapes.phase_of(layer, TEST)
    ]
    if not tests or not batches or not solver.test_iter:
        return
    seen = solver.test_iter[0] * batches[0]
    if seen != tests:
        say(
            f"{run.solver.name}: test_iter {solver.test_iter[0]} x test batch {batches[0]} is {seen} images, "
            f"but there are {tests} test cases: the test loss would not be that of the test set. "
            f"{_whole_pass(tests, batches[0])}"
        )


def _whole_pass(tests: int, batch: int) -> str:
    """The remedy: settings with which a test pass sees each test case once."""
    if batch > 0 and tests % batch == 0:
        return f"Set solver.test_iter: {tests // batch} in the recipe."
    return f"Set network.test_batch: 1 and solver.test_iter: {tests} in the recipe."


def _transforms(view: View, net: Any, phase: int, stored: dict[str, tuple[Shape, int]], say: Any) -> None:
    """Crop and mean of the Data layers, which data_transformer.cpp checks."""
    for layer in net.layer:
        if layer.type != "Data" or not shapes.phase_of(layer, phase) or layer.data_param.source not in stored:
            continue
        (channels, height, width), _ = stored[layer.data_param.source]
        transform, where = layer.transform_param, f"layer {layer.name} ({'TEST' if phase else 'TRAIN'})"
        if layer.data_param.batch_size < 1:
            say(f"{where}: batch_size is {layer.data_param.batch_size}; it must be above 0.")
        if transform.crop_size > min(height, width):
            say(
                f"{where}: crop_size {transform.crop_size} is larger than the images of {height} x {width}. "
                "Remove it: images of 224 need no crop."
            )
        if transform.scale != 1:
            say(f"{where}: scale {transform.scale:g}: predictions use the pixels unscaled. Remove it.")
        if transform.mean_value and transform.HasField("mean_file"):
            say(f"{where}: both mean_value and mean_file are given, but Caffe accepts only one. Remove one.")
        if len(transform.mean_value) not in (0, 1, channels):
            say(
                f"{where}: {len(transform.mean_value)} mean_values for {channels} channels; "
                "give one, or one per channel."
            )
        if transform.HasField("mean_file"):
            try:
                shape = mean.shape_for_caffe(view.file(transform.mean_file, where))
            except (RecipeError, RunError) as error:
                say(f"{where}: {error}")
                continue
            if shape != (channels, height, width):
                say(
                    f"{where}: the mean image is {' x '.join(map(str, shape))}, "
                    f"the images {channels} x {height} x {width}. Use mean: dataset or mean_value."
                )


def _weights(view: View, launch: Launch, flow: shapes.Flow, report: Report) -> None:
    """Which layers Caffe will copy from the weights, start from fillers, or ignore; and which would make it abort."""
    if launch.weights is None or not flow.complete:
        return
    try:
        with caffemodel.Caffemodel(view.staged.get(launch.weights) or view.run.path / launch.weights) as model:
            stored = model.shapes()
    except WeightsError as error:
        report.problems.append(str(error))
        return
    for name, expected in flow.weights.items():
        if name not in stored:
            report.fresh.append(name)
        elif len(stored[name]) != len(expected):
            report.problems.append(
                f"{launch.weights}: layer {name} has {len(stored[name])} blobs of weights, "
                f"the net needs {len(expected)}. Rename the layer, or remove it from the caffemodel."
            )
        else:
            clash = next(
                (
                    (stored_shape, net_shape)
                    for stored_shape, net_shape in zip(stored[name], expected, strict=True)
                    if _squeezed(stored_shape) != _squeezed(net_shape)
                ),
                None,
            )
            if clash:
                in_weights, in_net = (" x ".join(map(str, shape)) for shape in clash)
                report.problems.append(
                    f"{launch.weights}: layer {name} is {in_weights} in the weights and {in_net} in the net; "
                    "Caffe would abort. Rename the layer, or remove it from the caffemodel."
                )
            else:
                report.copied.append(name)
    report.ignored = [name for name in stored if name not in flow.weights]


def _squeezed(shape: Shape) -> Shape:
    """A shape without the leading ones of Caffe's old four-number blobs."""
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return shape


# ---- the machine -----------------------------------------------------------------------------------------------


def _hardware(solver: Any, launch: Launch, say: Any) -> None:
    if launch.gpus is not None:
        if problem := gpus.problem(launch.gpus):
            say(problem)
        try:
            Arithmetic.read()
        except CaffeError as error:
            say(str(error))
        return
    in_solver = solver is not None and solver.HasField("solver_mode") and solver.solver_mode == 1
    device = str(solver.device_id) if in_solver else "0"
    if in_solver and (problem := gpus.problem(device)):
        say(f"{launch.solver} has solver_mode: GPU: {problem.removeprefix(f'--gpu {device}: ')}")


def check_is_for_cpu(run: RunDir, staged: Mapping[str, Path]) -> None:
    """PreflightError for a solver, edited by hand, that asks for a GPU although the record would name the CPU."""
    solver = _parse(
        View(run, staged).file(run.solver.name, ""), run.solver.name, "SolverParameter", lambda problem: None
    )
    if solver is not None and solver.HasField("solver_mode") and solver.solver_mode == solver.GPU:
        raise PreflightError(
            f"{run.solver} has solver_mode: GPU, but the training would be recorded as computed on the CPU. "
            f"Write solver_mode: CPU there, or give --gpu {solver.device_id}."
        )


def _weight_bytes(flow: shapes.Flow) -> int:
    """Bytes of all weights of a net, as float32."""
    return 4 * sum(math.prod(shape) for params in flow.weights.values() for shape in params)


def snapshot_bytes(solver: Any, flow: shapes.Flow) -> int:
    """Bytes of one snapshot: the caffemodel, and its solverstate with the solver's histories.

    With ``snapshot_diff`` the caffemodel also holds the differences of the weights.
    """
    model = _weight_bytes(flow)
    return model * (1 + bool(solver.snapshot_diff) + solvers.STATE_FACTOR.get(solver.type, 1))


def _room(run: RunDir, solver: Any, flow: shapes.Flow, say: Any) -> None:
    one = snapshot_bytes(solver, flow)
    existing = len(list(run.snapshots.glob("*.caffemodel"))) if run.snapshots.is_dir() else 0
    count = max(1, -(-solver.max_iter // solver.snapshot) - existing) if solver.snapshot else 1
    free = shutil.disk_usage(run.path).free
    if free < one * count:
        say(
            f"the disk has {free / 1e6:.0f} MB free, but {count} snapshots of {one / 1e6:.0f} MB will be written; "
            "Caffe would abort while writing one. Free some space, or raise solver.snapshot."
        )


def _memory(solver: Any, flows: dict[int, shapes.Flow], launch: Launch, say: Any) -> None:
    """Compare the memory that training needs with the memory of the GPU or this machine."""
    needed = memory_bytes(solver, flows)
    if launch.gpus is not None or (solver.HasField("solver_mode") and solver.solver_mode == 1):
        chosen = gpus.chosen(launch.gpus or str(solver.device_id), gpus.visible())
        smallest = min(chosen, key=lambda gpu: gpu.free, default=None)
        # a GPU that shares the machine's memory reports none of its own
        available = max(1, smallest.free - CONTEXT_BYTES) if smallest and smallest.memory else 0
        free = smallest.free / 1e9 if smallest else 0.0
        where = f"the GPU has {free:.1f} GB free, of which CUDA itself takes about {CONTEXT_BYTES / 1e9:.1f} GB"
    else:
        available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        where = f"this machine has {available / 1e9:.1f} GB"
    if not available or needed <= available:
        return
    batch = max((shape[0] for name, shape in flows[TRAIN].blobs.items() if name == "data"), default=1)
    fixed = memory_bytes(solver, {**flows, TRAIN: flows[TRAIN]._replace(blobs={})})
    each = sum(2 * 4 * math.prod(shape) for shape in flows[TRAIN].blobs.values()) / batch
    fits = [size for size in range(1, batch) if batch % size == 0 and fixed + size * each <= 0.9 * available]
    steps = max(1, solver.iter_size)
    remedy = "Lower network.train_batch"
    if fits:
        remedy = (
            f"Set network.train_batch: {fits[-1]} and solver.iter_size: {batch // fits[-1] * steps}, "
            f"which still learns from {batch * steps} images per iteration"
        )
    say(f"training would need about {needed / 1e9:.1f} GB of memory, but {where}. {remedy}.")


def memory_bytes(solver: Any, flows: dict[int, shapes.Flow]) -> int:
    """About how many bytes training needs: values and differences of all blobs and weights, and histories."""
    blobs = sum(2 * 4 * math.prod(shape) for flow in flows.values() for shape in flow.blobs.values())
    learned = _weight_bytes(flows[TRAIN])
    return blobs + learned * (2 + solvers.STATE_FACTOR.get(solver.type, 1))
