"""Preflight: the real Caffe does abort (or train wrongly), and preflight reports it first; good runs pass."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

import lmdb
import numpy as np
import pytest
from conftest import prepare_run, small_file_system, tiny, with_recipe

from bonecaffe.caffe import installation, log, programs, shapes, snapshots
from bonecaffe.errors import BonecaffeError, PreflightError
from bonecaffe.network import definitions
from bonecaffe.recipe import Recipe
from bonecaffe.records import Launch
from bonecaffe.run import RunDir
from bonecaffe.training import preflight, train

SHORT = {"solver__max_iter": 2, "solver__snapshot": 2, "solver__test_interval": 2}


@pytest.fixture
def ready(own_trained) -> RunDir:
    """A good run of two iterations, with prototxts, and with the weights and solverstate of an earlier training."""
    with_recipe(own_trained, tiny(**SHORT))
    definitions.write(own_trained, own_trained.recipe())
    old = own_trained.path / "old"
    own_trained.snapshots.rename(old)
    own_trained.snapshots.mkdir()
    shutil.copy(old / "SNAPSHOT_iter_4.caffemodel", own_trained.path / "pre.caffemodel")
    return own_trained


def caffe_train(run, plan, extra=()):
    """Run the real Caffe; return its exit status and its output."""
    command = [str(installation.find().program("caffe")), "train", "-solver", "solver.prototxt"]
    command += ["-weights", str(plan.weights)] if plan.weights else []
    command += ["-snapshot", str(plan.snapshot)] if plan.snapshot else []
    command += ["-gpu", plan.gpus] if plan.gpus else []
    done = subprocess.run(
        [*command, *extra],
        cwd=run.path,
        env={**os.environ, "GLOG_logtostderr": "1", "GLOG_minloglevel": "0"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return done.returncode, done.stderr


def edit(path, old, new, count=1):
    text = path.read_text()
    assert old in text, old
    path.write_text(text.replace(old, new, count))


def absolute(run, plan):
    """The same launch with absolute paths, as a user gives them."""
    given = {name: getattr(plan, name) for name in ("weights", "snapshot")}
    return plan.model_copy(update={name: str(run.path / path) for name, path in given.items() if path})


PLAIN, WEIGHTS = Launch(), Launch(weights="pre.caffemodel")


def crop(run):
    edit(run.train_val, "mirror: true", "mirror: true\n    crop_size: 227")
    return PLAIN


def write_mean(run, name, shape):
    blob = programs.caffe_pb2().BlobProto(num=1, channels=shape[0], height=shape[1], width=shape[2])
    blob.data.extend(np.zeros(int(np.prod(shape)), np.float32))
    (run.path / name).write_bytes(blob.SerializeToString())
    text = re.sub(r" +mean_value: \d+\n", "", run.train_val.read_text())
    run.train_val.write_text(
        text.replace("mirror: true", f'mirror: true\n    mean_file: "{name}"').replace(
            "mirror: false", f'mirror: false\n    mean_file: "{name}"'
        )
    )


def mean_size(run):
    write_mean(run, "imagenet_mean.binaryproto", (3, 256, 256))
    return PLAIN


def mean_missing(run):
    write_mean(run, "m.binaryproto", (3, 224, 224))
    (run.path / "m.binaryproto").unlink()
    return PLAIN


def mean_twice(run):
    edit(run.train_val, "mean_value: 104\n", 'mean_value: 104\n    mean_file: "m.binaryproto"\n')
    return PLAIN


def mean_two_values(run):
    edit(run.train_val, "    mean_value: 104\n", "")
    return PLAIN


def fc8_clash(run):
    edit(run.train_val, "num_output: 1\n", "num_output: 1000\n")
    edit(run.train_val, 'bottom: "label"', 'bottom: "fc8"')
    return WEIGHTS


def stock_fc8(run):
    model = programs.caffe_pb2().NetParameter.FromString((run.path / "pre.caffemodel").read_bytes())
    for layer in model.layer:
        if layer.name == "fc8":
            layer.blobs[0].shape.dim[:] = [1000, 16]
            layer.blobs[0].data[:] = [0.0] * 16000
            layer.blobs[1].shape.dim[:] = [1000]
            layer.blobs[1].data[:] = [0.0] * 1000
    (run.path / "pre.caffemodel").write_bytes(model.SerializeToString())
    return WEIGHTS


def fc6_input(run):

    text = run.train_val.read_text()
    start = text.index('name: "pool5"')
    run.train_val.write_text(text[:start] + text[start:].replace("stride: 2", "stride: 3", 1))
    return WEIGHTS


def lmdb_missing(run):
    shutil.rmtree(run.lmdb("train"))
    return PLAIN


def lmdb_empty(run):
    shutil.rmtree(run.lmdb("train"))
    lmdb.open(str(run.lmdb("train")), map_size=1 << 20).close()
    return PLAIN


def outputs_clash(run):
    edit(run.train_val, "num_output: 1\n", "num_output: 2\n")
    return PLAIN


def gpu_wanted(run):
    if installation.find().has_gpu:
        pytest.skip("this Caffe has a GPU build")
    return Launch(gpus="0")


def gpus_wanted(run):
    if installation.find().has_gpu:
        pytest.skip("this Caffe has a GPU build")
    return Launch(gpus="0,1")


def weights_and_snapshot(run):
    return Launch.model_construct(weights="pre.caffemodel", snapshot="old/SNAPSHOT_iter_4.solverstate", gpus=None)


def model_as_snapshot(run):
    return Launch(snapshot="pre.caffemodel")


def state_without_model(run):
    state = programs.caffe_pb2().SolverState.FromString((run.path / "old" / "SNAPSHOT_iter_4.solverstate").read_bytes())
    assert not (run.path / state.learned_net).exists()
    return Launch(snapshot="old/SNAPSHOT_iter_4.solverstate")


def prefix_nowhere(run):
    edit(run.solver, '"snapshots/SNAPSHOT"', '"nowhere/SNAPSHOT"')
    return PLAIN


def net_missing(run):
    edit(run.solver, '"train_val.prototxt"', '"train_vall.prototxt"')
    return PLAIN


def unknown_field(run):
    edit(run.train_val, "num_output: 1\n", "num_outputs: 1\n")
    return PLAIN


def appendix_1_as_printed(run):
    from bonecaffe.network.appendices import APPENDIX_1

    text = run.train_val.read_text()
    run.train_val.write_text(text[: text.index('layer {\n  name: "fc8"')] + APPENDIX_1)
    return PLAIN


def unknown_bottom(run):
    edit(run.train_val, 'bottom: "fc7"\n  top: "fc8"', 'bottom: "fc77"\n  top: "fc8"')
    return PLAIN


def policy_unknown(run):
    edit(run.solver, '"step"', '"steps"')
    return PLAIN


def weights_cut(run):
    path = run.path / "pre.caffemodel"
    path.write_bytes(path.read_bytes()[:5000])
    return WEIGHTS


def weights_a_page(run):
    (run.path / "pre.caffemodel").write_text("<!DOCTYPE html><html><body>Not found</body></html>")
    return WEIGHTS


def state_cut(run):
    path = run.path / "old" / "SNAPSHOT_iter_4.solverstate"
    path.write_bytes(path.read_bytes()[:-100])
    return Launch(snapshot="old/SNAPSHOT_iter_4.solverstate")


NO_COPY = "Cannot copy param 0 weights from layer "
DEADLY = {  # misconfiguration: (how Caffe reports it, how preflight does)
    crop: ("crop_size|Check failed", "crop_size 227 is larger than the images of 224 x 224"),
    mean_size: ("Check failed", "mean image is 3 x 256 x 256, the images 3 x 224 x 224"),
    mean_missing: ("File not found|Check failed", "m.binaryproto: No such file"),
    mean_twice: ("Check failed|Cannot specify", "both mean_value and mean_file"),
    mean_two_values: ("Specify either 1 mean_value", "2 mean_values for 3 channels"),
    stock_fc8: (NO_COPY + "'fc8'", "layer fc8 is 1000 x 16 in the weights and 1 x 16 in the net"),
    fc8_clash: (NO_COPY + "'fc8'", "layer fc8 is 1 x 16 in the weights and 1000 x 16 in the net"),
    fc6_input: (NO_COPY + "'fc6'", "layer fc6 is 16 x 288 in the weights and 16 x 200 in the net"),
    lmdb_missing: ("No such file|mdb_status", "train_lmdb: no LMDB in this folder"),
    lmdb_empty: ("", "train_lmdb: the LMDB is empty"),
    outputs_clash: ("Inputs must have the same dimension", "fc8 gives 2 numbers per image and label 1"),
    gpu_wanted: ("Cannot use GPU in CPU-only Caffe", "built without GPU support"),
    gpus_wanted: ("Cannot use GPU in CPU-only Caffe", "built without GPU support"),
    weights_and_snapshot: ("not both|Give a snapshot", "exclude each other"),
    model_as_snapshot: ("Check failed|Unknown|parse", "a caffemodel holds weights, not a solver's state"),
    state_without_model: ("File not found|Check failed", "which is missing"),
    prefix_nowhere: ("Check failed|Cannot write|snapshot prefix", "there is no folder"),
    net_missing: ("File not found|Check failed", "train_vall.prototxt: No such file"),
    unknown_field: ("num_outputs", 'no field named "num_outputs"'),
    appendix_1_as_printed: ("Error parsing|Failed to parse", "Caffe cannot read it: line"),
    unknown_bottom: ("Unknown bottom blob 'fc77'", "no earlier layer makes its bottom fc77"),
    policy_unknown: ("Unknown learning rate policy", "not one that Caffe knows"),
    weights_cut: ("Check failed|Failed to parse", "pre.caffemodel: cut off"),
    state_cut: ("Check failed|Failed to parse|parse", "cut off, or not a solverstate"),
}


@pytest.mark.parametrize("misconfigure", DEADLY, ids=lambda function: function.__name__)
def test_caffe_dies_and_preflight_reports_it(ready, misconfigure):
    """One line that a user understands, before Caffe's own."""
    theirs, ours = DEADLY[misconfigure]
    plan = misconfigure(ready)
    plan = absolute(ready, plan)
    report = preflight.examine(ready, plan)
    reported = [problem for problem in report.problems if ours in problem]
    assert reported, report.problems
    assert "\n" not in reported[0]
    code, output = caffe_train(ready, plan)
    assert code != 0, output
    assert re.search(theirs, output), output


def test_web_page_as_weights_is_silent_and_preflight_reports_it(ready):
    """Caffe takes a page saved as .caffemodel for weights without layers, starts from the fillers, and exits 0."""
    plan = weights_a_page(ready)
    plan = absolute(ready, plan)
    assert any("an HTML page, not a caffemodel" in problem for problem in preflight.examine(ready, plan).problems)
    code, output = caffe_train(ready, plan)
    assert code == 0 and "Finetuning from" in output


def test_short_lmdb_is_silently_trained_on_and_preflight_reports_it(ready):
    """Caffe starts over at the end of what is there, and exits 0."""
    with lmdb.open(str(ready.lmdb("train")), map_size=1 << 30) as environment, environment.begin(write=True) as writer:
        writer.delete(next(iter(writer.cursor()))[0])
    assert any(
        "train_lmdb: holds 7 records for 8 listed cases" in problem for problem in preflight.examine(ready).problems
    )
    assert caffe_train(ready, PLAIN)[0] == 0


def test_wrong_test_pass_is_silent_and_preflight_reports_it(ready):
    """test_iter x batch unlike the test set: Caffe averages over something else, and exits 0."""
    edit(ready.solver, "test_iter: 2", "test_iter: 3")
    assert any(
        "test_iter 3 x test batch 2 is 6 images, but there are 4 test cases" in problem
        for problem in preflight.examine(ready).problems
    )
    assert caffe_train(ready, PLAIN)[0] == 0


def line(text):
    """Adds a line to the solver."""
    return lambda run: run.solver.write_text(run.solver.read_text() + text + "\n")


def setting(name, value):
    """Changes a field of the solver."""
    return lambda run: run.solver.write_text(
        re.sub(rf'^{name}: ("[^"]*"|[^\s#]+)', f"{name}: {value}", run.solver.read_text(), flags=re.MULTILINE)
    )


def both(*edits):
    return lambda run: [edit(run) for edit in edits]


def another_net(run):
    shutil.copy(run.train_val, run.path / "other.prototxt")
    setting("net", '"other.prototxt"')(run)


def prefix_into(folder, prefix):
    def make(run):
        (run.path / folder).mkdir(exist_ok=True)
        setting("snapshot_prefix", f'"{prefix}"')(run)

    return make


NO_SNAPSHOT = "no complete snapshot in snapshots/"
NO_LOSS = "no loss in the log"
UNNOTICED = ""  # Caffe trains, but the record differs from what it did
SOLVERS = {  # a solver: (how Caffe ends, what is missing from its output, how preflight reports it)
    "hdf5": (line("snapshot_format: HDF5"), 0, NO_SNAPSHOT, "snapshot_format HDF5: bonecaffe reads"),
    "hdf5 by number": (line("snapshot_format: 0"), 0, NO_SNAPSHOT, "snapshot_format HDF5"),
    "no last snapshot": (
        both(line("snapshot_after_train: false"), setting("snapshot", 3)),
        0,
        NO_SNAPSHOT,
        "snapshot_after_train: false, and max_iter 2 is not a multiple of snapshot 3",
    ),
    "no snapshot at all": (
        both(line("snapshot_after_train: false"), setting("snapshot", 0)),
        0,
        NO_SNAPSHOT,
        "the last iteration would leave no snapshot",
    ),
    "prefix in the run": (
        setting("snapshot_prefix", '"SNAPSHOT"'),
        0,
        NO_SNAPSHOT,
        '. Write snapshot_prefix: "snapshots/SNAPSHOT"',
    ),
    "prefix elsewhere": (prefix_into("other", "other/S"), 0, NO_SNAPSHOT, "snapshot_prefix other/S: bonecaffe looks"),
    "prefix a folder": (prefix_into("other", "other"), 0, NO_SNAPSHOT, "snapshot_prefix other: bonecaffe looks"),
    "prefix below": (prefix_into("snapshots/a", "snapshots/a/S"), 0, NO_SNAPSHOT, "snapshots/a/S: bonecaffe looks"),
    "nothing to do": (setting("max_iter", 0), 0, NO_SNAPSHOT, "max_iter is 0"),
    "no display": (setting("display", 0), 0, NO_LOSS, "display is 0"),
    "loss of nan": (line("iter_size: 0"), 0, NO_LOSS, "iter_size is 0"),
    "two test passes": (line("test_iter: 2"), 0, UNNOTICED, "2 lines of test_iter"),
    "weights": (line('weights: "pre.caffemodel"'), 0, UNNOTICED, "weights: the record"),
    "another net": (another_net, 0, UNNOTICED, "named by net: other.prototxt; bonecaffe checks"),
    "train_net": (
        both(setting("net", '""'), setting("test_iter", 2), lambda run: edit(run.solver, "net:", "train_net:")),
        1,
        UNNOTICED,
        "named by train_net",
    ),
    "stages": (
        line('train_state { stage: "a" }'),
        0,
        UNNOTICED,
        "train_state: bonecaffe does not follow layers by level or stage",
    ),
    "old type": (line("solver_type: SGD"), 1, UNNOTICED, "solver_type is the old name"),
    "no such type": (setting("type", '"Adamm"'), 1, UNNOTICED, "type 'Adamm' is not one that Caffe knows"),
    "AdaGrad": (setting("type", '"AdaGrad"'), 1, UNNOTICED, "type AdaGrad with momentum 0.9"),
    "RMSProp": (
        both(setting("type", '"RMSProp"'), setting("momentum", 0), line("rms_decay: 1")),
        1,
        UNNOTICED,
        "rms_decay 1",
    ),
    "regularization": (line('regularization_type: "L3"'), 1, UNNOTICED, "regularization_type 'L3'"),
    "average": (line("average_loss: 0"), 1, UNNOTICED, "average_loss is 0"),
    "no test interval": (setting("test_interval", 0), 1, UNNOTICED, "test_iter with test_interval 0"),
    "no step": (setting("stepsize", 0), 1, UNNOTICED, "needs a stepsize above 0"),
}


@pytest.mark.parametrize("case", SOLVERS)
def test_solver_that_bonecaffe_would_misread_is_refused(ready, case):
    """Caffe aborts, or trains to its end without the output that bonecaffe needs: no snapshot, no loss."""
    change, status, missing, ours = SOLVERS[case]
    change(ready)
    problems = [problem for problem in preflight.examine(ready).problems if ours in problem]
    assert len(problems) == 1 and problems[0].startswith("solver.prototxt: ") and problems[0].endswith(".")
    code, output = caffe_train(ready, PLAIN)
    assert (code == 0) == (status == 0), output
    if missing == NO_SNAPSHOT:
        assert not [one for one in snapshots.find(ready.snapshots) if one.iteration == 2 and one.flaw() is None]
    elif missing == NO_LOSS:
        assert not [event for event in log.parse(output.splitlines()) if event.kind == "train_loss" and event.value > 0]


@pytest.mark.parametrize(
    "change",
    [
        setting("snapshot", 0),
        line("test_initialization: false"),
        line("debug_info: true"),
        line("layer_wise_reduce: false"),
        line("device_id: 3"),
        line("average_loss: 2"),
        line("test_compute_loss: true"),
        line("snapshot_diff: true"),
        line("snapshot_format: BINARYPROTO"),
        line("clip_gradients: 1"),
        setting("random_seed", -1),
        setting("display", -1),
        setting("snapshot_prefix", '"snapshots"'),
        both(setting("type", '"AdaGrad"'), setting("momentum", 0)),
        both(setting("type", '"RMSProp"'), setting("momentum", 0)),
        setting("type", '"AdaDelta"'),
        both(line("snapshot_after_train: false"), setting("snapshot", 2)),
        lambda run: edit(run.solver, "test_iter:", "#"),
    ],
    ids=lambda change: "",
)
def test_solver_that_bonecaffe_reads_correctly_is_accepted(ready, change):
    """These change the training or its log, but bonecaffe reads what Caffe did: losses, a complete last snapshot."""
    change(ready)
    assert preflight.examine(ready).problems == []
    code, output = caffe_train(ready, PLAIN)
    assert code == 0, output
    last = snapshots.find(ready.snapshots)[-1]
    assert last.iteration == 2 and last.flaw() is None
    events = list(log.parse(output.splitlines()))
    assert [event.iteration for event in events if event.kind == "train_loss"] == [0, 1, 2]
    assert len([event for event in events if event.kind == "lr"]) == 2


def test_the_gpu_of_the_solver_is_the_one_that_is_checked(ready, monkeypatch):
    """Without --gpu Caffe uses device_id. (The GPUs are simulated.)"""
    monkeypatch.setattr(preflight.gpus, "problem", lambda wish: f"--gpu {wish}: there is no such GPU.")
    both(setting("solver_mode", "GPU"), line("device_id: 3"))(ready)
    assert "solver.prototxt has solver_mode: GPU: there is no such GPU." in preflight.examine(ready).problems
    monkeypatch.setattr(preflight.gpus, "problem", lambda wish: "" if wish == "3" else "another GPU")
    assert not [problem for problem in preflight.examine(ready).problems if "GPU" in problem]
    with pytest.raises(PreflightError, match=r"solver_mode: GPU, but the .* on the CPU.*or give --gpu 3\."):
        train.train(ready, cpu=True)


def test_scaled_pixels_are_refused(ready):
    """Caffe would train on them, but predictions would use other pixels."""
    edit(ready.train_val, "mirror: true", "mirror: true\n    scale: 0.00390625")
    assert any("scale 0.00390625" in problem for problem in preflight.examine(ready).problems)


def transform(old, new):
    return lambda run: edit(run.train_val, old, new)


def another_mean_file(run):
    write_mean(run, "m.binaryproto", (3, 224, 224))


def another_lmdb(run):
    shutil.copytree(run.lmdb("train"), run.path / "other_lmdb")
    edit(run.train_val, '"train_lmdb"', '"other_lmdb"')


def the_training_images_as_test(run):
    edit(run.train_val, '"test_lmdb"', '"train_lmdb"')


def a_layer_that_writes(run):
    run.train_val.write_text(
        run.train_val.read_text()
        + 'layer { name: "out" type: "HDF5Output" bottom: "fc8" bottom: "label"'
        + ' hdf5_output_param { file_name: "o.h5" } }'
    )


FED = {
    "mean": (
        transform("mean_value: 104", "mean_value: 10"),
        "mean_value is 10, 117, 123, the recipe has 104, 117, 123",
    ),
    "no mean": (
        lambda run: run.train_val.write_text(re.sub(r" +mean_value: \d+\n", "", run.train_val.read_text())),
        "layer data (TEST): mean_value is none, the recipe has 104, 117, 123",
    ),
    "mean file": (another_mean_file, "layer data (TRAIN): mean_file is m.binaryproto, the recipe has none"),
    "mirror": (transform("mirror: true", "mirror: false"), "mirror is false, the recipe has true"),
    "crop": (transform("mirror: true", "mirror: true\n    crop_size: 200"), "crop_size is 200, the recipe has 0"),
    "grey": (
        transform("mirror: true", "mirror: true\n    force_gray: true"),
        "force_gray is true, the recipe has false",
    ),
    "LMDB": (another_lmdb, "source other_lmdb: not the LMDB that prepare wrote for it"),
    "split": (
        the_training_images_as_test,
        "layer data (TEST): source train_lmdb: not the LMDB that prepare wrote for it",
    ),
    "output": (a_layer_that_writes, "layer out: file_name o.h5: the record of the training would not name it"),
}


@pytest.mark.parametrize("case", FED)
def test_inputs_of_the_net_that_differ_from_the_recipe_are_refused(ready, case):
    """Caffe would train on them, but predictions and records would follow the recipe."""
    change, ours = FED[case]
    change(ready)
    problems = [problem for problem in preflight.examine(ready).problems if ours in problem]
    assert problems and all(problem.startswith("train_val.prototxt: layer ") for problem in problems)


def test_error_about_the_test_pass_names_the_right_number(ready):
    """The recipe's field and its value; one image at a time where the batch does not divide the cases."""
    setting("test_iter", 3)(ready)
    assert any(
        problem.endswith("Set solver.test_iter: 2 in the recipe.") for problem in preflight.examine(ready).problems
    )
    text = ready.train_val.read_text()
    ready.train_val.write_text(text.replace("batch_size: 2", "batch_size: 3"))
    assert any(
        "Set network.test_batch: 1 and solver.test_iter: 4" in problem for problem in preflight.examine(ready).problems
    )


def test_snapshots_in_hdf5_are_named(ready):
    """As weights and as a state to resume from; and a run that holds some holds a model."""
    line("snapshot_format: HDF5")(ready)
    assert caffe_train(ready, PLAIN)[0] == 0
    name = "snapshots/SNAPSHOT_iter_2"
    assert ready.holds_model()
    for launch in (Launch(weights=f"{name}.caffemodel.h5"), Launch(snapshot=f"{name}.solverstate.h5")):
        problems = preflight.examine(ready, launch).problems
        assert any(f"{name}.{'caffemodel' if launch.weights else 'solverstate'}.h5: a" in p for p in problems), problems
        assert any("in HDF5, which bonecaffe does not read" in problem for problem in problems)


@pytest.mark.parametrize("dims", [(3, 224, 224), (1, 1, 3, 224, 224)])
def test_mean_of_other_dimensions_kills_caffe_and_preflight_reports_it(ready, dims):
    """Caffe counts dimensions from the front; so does preflight."""
    write_mean(ready, "m.binaryproto", (3, 224, 224))
    blob = programs.caffe_pb2().BlobProto(data=[0.0] * (3 * 224 * 224))
    blob.shape.dim.extend(dims)
    (ready.path / "m.binaryproto").write_bytes(blob.SerializeToString())
    expected = "the mean image is 224 x 224 x 1" if len(dims) == 3 else "a mean image of 5 dimensions"
    assert any(expected in problem for problem in preflight.examine(ready).problems)
    assert caffe_train(ready, PLAIN)[0] != 0


def test_full_disk_kills_caffe_at_its_snapshot_and_preflight_reports_it(hands, tmp_path):
    """The future snapshots do not fit."""
    with small_file_system(tmp_path / "small", "6m") as small:
        run = prepare_run(small / "run", hands, tiny(**SHORT, network__fc_outputs=(2048, 64), data__train_cases=4))
        definitions.write(run, run.recipe())
        run.snapshots.mkdir()
        assert any("MB free, but 1 snapshots of" in problem for problem in preflight.examine(run).problems)
        with pytest.raises(BonecaffeError, match="MB free"):
            train.train(run)
        code, _ = caffe_train(run, PLAIN)
        assert code != 0 or not all(snapshot.flaw() is None for snapshot in snapshots.find(run.snapshots))


def test_memory_is_foreseen(ready, monkeypatch):
    """A batch that this machine cannot hold: reported with both figures. (The test does not exhaust the memory.)"""
    edit(ready.train_val, "batch_size: 4", "batch_size: 40000")
    problems = preflight.examine(ready).problems
    assert any(re.search(r"training would need about [\d.]+ GB of memory", problem) for problem in problems)


@pytest.mark.parametrize("plan", [PLAIN, Launch(weights="pre.caffemodel")], ids=["plain", "weights"])
def test_no_alarm_on_a_good_run(ready, plan):
    """What Caffe trains to its end, preflight passes."""
    plan = absolute(ready, plan)
    report = preflight.examine(ready, plan)
    assert report.problems == []
    if plan.weights:
        assert report.copied == ["conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"]
        assert report.fresh == report.ignored == []
    code, output = caffe_train(ready, plan)
    assert code == 0, output


def test_no_alarm_on_a_resume(ready):
    """A complete pair."""
    (ready.path / "old").rename(ready.path / "older")
    shutil.copytree(ready.path / "older", ready.snapshots, dirs_exist_ok=True)
    plan = Launch(snapshot=str(ready.snapshots / "SNAPSHOT_iter_4.solverstate"))
    assert preflight.examine(ready, plan).problems == []


@pytest.mark.parametrize("name", ["paper", "demo", "smoke"])
def test_no_alarm_on_the_recipes_but_the_gpu(name, hands, tmp_path):
    """The three recipes on a dozen hands; only the paper's has a problem: it needs a GPU."""
    values = {"data.train_cases": 8, "data.test_cases": 4, "solver.test_iter": 2}
    run = prepare_run(tmp_path / "run", hands, Recipe.load(name).with_values(values, "tests: a dozen hands"))
    definitions.write(run, run.recipe())
    problems = preflight.examine(run).problems
    assert [problem for problem in problems if "GPU" not in problem] == []
    assert len(problems) == (1 if name == "paper" and not installation.find().has_gpu else 0)


@pytest.mark.parametrize("name", ["paper", "demo"])
def test_shapes_are_those_of_caffe(name, tmp_path):
    """Every blob and weight of deploy, as the real Caffe lays them out."""
    from google.protobuf import text_format

    from bonecaffe.network import prototxt

    caffe = programs.import_pycaffe()
    prototxt.write(tmp_path, Recipe.load(name))
    net = caffe.Net(str(tmp_path / "deploy.prototxt"), caffe.TEST)
    parsed = text_format.Parse((tmp_path / "deploy.prototxt").read_text(), programs.caffe_pb2().NetParameter())
    flow = shapes.follow(parsed, 1, {})
    assert flow.complete and flow.problems == []
    assert flow.blobs == {blob: tuple(value.data.shape) for blob, value in net.blobs.items()}
    assert flow.weights == {layer: [tuple(blob.data.shape) for blob in blobs] for layer, blobs in net.params.items()}


def test_train_asks_preflight(own_run):
    """`train` refuses what preflight refuses, before Caffe is started."""
    definitions.write(own_run, own_run.recipe())
    crop(own_run)
    with pytest.raises(BonecaffeError, match="crop_size 227"):
        train.train(own_run)
    assert not own_run.caffe_log.exists()


def test_unknown_layer_is_reported(ready):
    """After a layer of an unknown type nothing is checked, and the report states that."""
    edit(ready.train_val, 'type: "LRN"', 'type: "Reduction"')
    report = preflight.examine(ready)
    assert report.not_followed == "norm1 (Reduction)"


@pytest.mark.parametrize(
    "old, new",
    [
        ("kernel_size: 5", "kernel_size: 5\n    group: 0"),
        ("stride: 4", "stride: 0"),
        ('  bottom: "label"\n', ""),
        ('bottom: "fc6"\n  top: "fc7"', 'top: "fc7"'),
    ],
)
def test_nonsense_is_a_problem_not_a_bug(ready, old, new):
    """Zero groups, zero stride, a missing bottom: an error message."""
    edit(ready.train_val, old, new)
    assert any("do not fit" in problem or "groups" in problem for problem in preflight.examine(ready).problems)
