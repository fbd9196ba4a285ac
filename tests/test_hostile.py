"""A run folder from a stranger: links, paths that lead out, special files, fake records. Nothing outside is touched."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys

import pytest
from click.testing import CliRunner

from bonecaffe.cli import main
from bonecaffe.evaluation.evaluate import predict_and_evaluate
from bonecaffe.network import definitions
from bonecaffe.records import STAGES, Manifest, parse_manifest
from bonecaffe.run import RunDir


@pytest.fixture(scope="module")
def whole(trained, tmp_path_factory) -> RunDir:
    """A run with all its stages done; tests must not change it."""
    run = RunDir(shutil.copytree(trained.path, tmp_path_factory.mktemp("whole") / "run"))
    predict_and_evaluate(run)
    return run


@pytest.fixture
def stranger(whole, tmp_path) -> RunDir:
    """A copy that a stranger may have changed."""
    return RunDir(shutil.copytree(whole.path, tmp_path / "stranger"))


@pytest.fixture
def victim(tmp_path):
    """A folder with someone's files, outside the run."""
    folder = tmp_path / "victim"
    (folder / "images").mkdir(parents=True)
    for name in ("file.txt", "images/1001.png", "journal.jsonl", "data.mdb", "SNAPSHOT_iter_12.caffemodel"):
        (folder / name).write_text(f"{name}: somebody's own")
    return folder


def state(folder):
    """Every file below a folder with its bytes, time and number of names."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        found[str(path)] = (path.read_bytes() if path.is_file() else None, status.st_mtime_ns, status.st_nlink)
    return found


OPENED: list[str] = []
"""Paths that were opened while `watched` is on, as Python reports them."""
watching = False


def _audit(event, arguments):
    if watching and event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
        OPENED.append(os.path.realpath(os.fsdecode(arguments[0])))


sys.addaudithook(_audit)


def commands(run, hands):
    """Every verb that works on a run, as a user calls it."""
    path, images, points = str(run.path), f"--images={hands / 'images'}", f"--points={hands / 'points.csv'}"
    image = str(next((hands / "images").glob("*.png")))
    yield ["runs", str(run.path.parent)]
    yield ["verify", path]
    yield ["predict", path, image, points]
    yield ["repro", path]
    yield ["preflight", path]
    yield ["prototxt", path]
    yield ["evaluate", path, "--all"]
    yield ["sensitivity", path, images, points, "--repeats=2", "--percent=1"]
    yield ["train", path, "--resume"]
    yield ["train", path]
    yield ["prepare", path, images, f"--ages={hands / 'ages.csv'}", points]


def untouched(run, hands, victim, allowed=(0, 1)):
    """Call every verb; the victim's files are neither opened nor changed, nothing hangs, no bug is reported."""
    global watching
    before = state(victim)

    def hangs(*_):
        raise TimeoutError("it hangs")

    previous = signal.signal(signal.SIGALRM, hangs)
    codes = {}
    try:
        for command in commands(run, hands):
            OPENED.clear()
            watching = True
            signal.alarm(60)
            result = CliRunner().invoke(main, command)
            signal.alarm(0)
            watching = False
            assert result.exit_code in allowed, (command, result.output)
            assert not [path for path in OPENED if path.startswith(f"{victim}{os.sep}")], command
            assert state(victim) == before, command
            codes[command[0]] = result.exit_code
    finally:
        watching = False
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    return codes


FILE, FOLDER = "file.txt", "."
LINKS = {
    ".lock": FILE,
    "manifest.json": FILE,
    "recipe.yaml": FILE,
    "cases.csv": FILE,
    "train.txt": FILE,
    "train_lmdb": FOLDER,
    "train_lmdb/data.mdb": "data.mdb",
    "train_lmdb/lock.mdb": FILE,
    "test_labels_lmdb": FOLDER,
    "images": "images",
    "images/1001.png": "images/1001.png",
    "images/extra.png": FILE,
    "example": FOLDER,
    "example/hand.png": FILE,
    "train_val.prototxt": FILE,
    "solver.prototxt": FILE,
    "deploy.prototxt": FILE,
    "mean.binaryproto": FILE,
    "init.caffemodel": FILE,
    "caffe.log": FILE,
    "caffe.log.1": FILE,
    "curve.csv": FILE,
    "snapshots": FOLDER,
    "snapshots/SNAPSHOT_iter_12.caffemodel": "SNAPSHOT_iter_12.caffemodel",
    "snapshots/SNAPSHOT_iter_12.solverstate": FILE,
    "predictions_test.csv": FILE,
    "metrics.json": FILE,
    "metrics_by_snapshot.csv": FILE,
    "figures": FOLDER,
    "figures/ages.png": FILE,
    "report.html": FILE,
    "departures.json": FILE,
    "sensitivity.json": FILE,
    "sensitivity.csv": FILE,
    ".prepare": FOLDER,
    ".prepare/images": "images",
    ".prepare/journal.jsonl": "journal.jsonl",
    ".prepare/train_lmdb": FOLDER,
}


@pytest.mark.parametrize("name", LINKS)
def test_a_link_inside_a_run_is_not_followed(stranger, hands, victim, name):
    """Anywhere in the run: refused by name, its target neither read nor changed."""
    path = stranger.path / name
    path.parent.mkdir(exist_ok=True)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.symlink_to(victim / LINKS[name])
    codes = untouched(stranger, hands, victim)
    assert codes["train"] == codes["prepare"] == codes["verify"] == 1
    shown = CliRunner().invoke(main, ["train", str(stranger.path)]).output
    assert str(path) in shown and "a link" in shown


PIPED = (
    "manifest.json recipe.yaml caffe.log .lock images/1001.png solver.prototxt snapshots/SNAPSHOT_iter_12.caffemodel"
)


@pytest.mark.parametrize("name", PIPED.split())
def test_a_named_pipe_inside_a_run_is_refused(stranger, hands, victim, name):
    """Opening it would block forever."""
    (stranger.path / name).unlink(missing_ok=True)
    os.mkfifo(stranger.path / name)
    codes = untouched(stranger, hands, victim)
    assert codes["train"] == codes["prepare"] == 1


@pytest.mark.parametrize("linked", ["run", "parent"])
def test_the_run_itself_may_be_a_link(stranger, hands, tmp_path, linked):
    """People keep runs on a scratch disk."""
    if linked == "run":
        (tmp_path / "link").symlink_to(stranger.path)
        path = tmp_path / "link"
    else:
        (tmp_path / "link").symlink_to(tmp_path)
        path = tmp_path / "link" / "stranger"
    for command in (["verify", str(path)], ["evaluate", str(path)], ["train", str(path)]):
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 0, result.output


def rename(tree, old, new):
    """The manifest with one path renamed everywhere."""
    return json.loads(json.dumps(tree).replace(json.dumps(old), json.dumps(new)))


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../victim/file.txt", "snapshots/../../victim/file.txt", "a//b", "", "\0"]
)
def test_a_record_that_names_a_path_outside_is_refused(stranger, hands, victim, path):
    """Neither hashed nor read."""
    tree = json.loads(stranger.manifest_file.read_text())
    stranger.manifest_file.write_text(json.dumps(rename(tree, "metrics.json", path)))
    codes = untouched(stranger, hands, victim)
    assert codes["verify"] == codes["prepare"] == 1


@pytest.mark.parametrize("named", [["pipe"], ["link"], ["folder/file.txt"]])
def test_a_record_that_names_a_pipe_or_link_does_not_hang(stranger, hands, victim, named):
    """A file that has only the name of an output: checked, never waited for, never followed."""
    os.mkfifo(stranger.path / "pipe")
    (stranger.path / "link").symlink_to(victim / "file.txt")
    (stranger.path / "folder").symlink_to(victim)
    for name in named:
        tree = json.loads(stranger.manifest_file.read_text())
        tree["evaluate"]["outputs"][name] = "0" * 64
        tree["prepare"]["outputs"][name] = "0" * 64
        stranger.manifest_file.write_text(json.dumps(tree))
    assert untouched(stranger, hands, victim)["verify"] == 1


@pytest.mark.parametrize("case_id", ["../../victim/images/1001", "/etc/passwd", ".lock", "a\\b"])
def test_a_record_that_names_a_case_outside_is_refused(stranger, hands, victim, case_id):
    """An id becomes a file's name."""
    tree = json.loads(stranger.manifest_file.read_text())
    first = tree["prepare"]["split"]["test"][0]
    stranger.manifest_file.write_text(json.dumps(rename(tree, first, case_id)))
    assert untouched(stranger, hands, victim)["verify"] == 1


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


OUTWARD = {
    "net": ("solver.prototxt", '"train_val.prototxt"', '"../victim/file.txt"'),
    "net, absolute": ("solver.prototxt", '"train_val.prototxt"', '"{victim}/file.txt"'),
    "snapshot_prefix": ("solver.prototxt", '"snapshots/SNAPSHOT"', '"../victim/SNAPSHOT"'),
    "source": ("train_val.prototxt", '"train_lmdb"', '"../victim"'),
    "mean_file": ("train_val.prototxt", "mean_value: 104\n", 'mean_file: "../victim/file.txt"\n'),
    "recipe's net": ("recipe.yaml", "value: train_val.prototxt", "value: ../victim/file.txt"),
    "recipe's snapshot_prefix": ("recipe.yaml", "value: SNAPSHOT", "value: ../../victim/SNAPSHOT"),
}


@pytest.mark.parametrize("where", OUTWARD)
def test_a_definition_that_leads_out_is_refused(stranger, hands, victim, where):
    """Caffe would read or write there."""
    name, old, new = OUTWARD[where]
    edit(stranger.path / name, old, new.format(victim=victim))
    shutil.rmtree(stranger.snapshots)
    codes = untouched(stranger, hands, victim)
    assert codes["preflight"] == codes["train"] == 1


# ---- records made up -------------------------------------------------------------------------------------------------

TEXTS = ["", "x", "../..", "\ud800", "0" * 64]
VALUES = [None, True, -1, 0, 10**30, 1.5, float("nan"), *TEXTS, [], [None], {}, {"a": {}}, {"": 1}]


def places(tree, at=()):
    """Every place in a JSON tree."""
    yield at
    children = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, child in children:
        yield from places(child, (*at, key))


def fuzzed(tree, random_):
    """A copy with one to three places changed, removed, or added to."""
    tree = json.loads(json.dumps(tree))
    for _ in range(random_.randint(1, 3)):
        found = [at for at in places(tree) if at]
        if not found:
            return random_.choice(VALUES)
        *parents, last = random_.choice(found)
        holder = tree
        for key in parents:
            holder = holder[key]
        what = random_.random()
        if what < 0.25:
            del holder[last]
        elif what < 0.35 and isinstance(holder, dict):
            holder[random_.choice(["x", "../x", "", "/etc/passwd"])] = random_.choice(VALUES)
        else:
            holder[last] = random_.choice(VALUES)
    return tree


def test_fuzzed_records_are_read_or_refused_with_a_message(whole):
    """Two thousand manifests, changed at random: a valid one, or an error message."""
    from bonecaffe.errors import RunError

    tree, random_ = json.loads(whole.manifest_file.read_text()), random.Random(2018)
    refused = 0
    for _ in range(2000):
        content = json.dumps(fuzzed(tree, random_)).encode("utf-8", "surrogatepass")
        try:
            assert isinstance(parse_manifest(content, "manifest.json"), Manifest)
        except RunError as error:
            refused += 1
            assert "\n" not in str(error) and len(str(error)) < 400
    assert 1000 < refused < 2000


@pytest.mark.parametrize("seed", range(40))
def test_fuzzed_records_never_end_in_a_bug(stranger, hands, victim, seed):
    """The commands on forty of them: an error message, or the work is done; never exit 3."""
    tree, random_ = json.loads(stranger.manifest_file.read_text()), random.Random(seed)
    stranger.manifest_file.write_text(json.dumps(fuzzed(tree, random_)), encoding="utf-8", errors="surrogatepass")
    untouched(stranger, hands, victim)


HAND_MADE = {
    "empty": b"",
    "a list": b"[]",
    "a number": b"7",
    "null": b"null",
    "deep": b"[" * 100_000,
    "deep object": b'{"version": 2, "prepare": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_001,
    "binary": bytes(range(256)),
    "0.1's": b'{"prepare": {"key": "x", "records": {"train": 8, "test": 4}}, "seals": {}}',
    "a later one": b'{"version": 3}',
    "version as text": b'{"version": "2"}',
    "nothing recorded": b'{"version": 2}',
    "nan": b'{"version": NaN}',
    "huge": b'{"version": ' + b"9" * 10_000 + b"}",
}


@pytest.mark.parametrize("content", HAND_MADE.values(), ids=HAND_MADE)
def test_a_manifest_that_is_none_is_refused_in_one_sentence(stranger, hands, victim, content):
    """Of another version or another structure: one sentence with the remedy."""
    stranger.manifest_file.write_bytes(content)
    shown = CliRunner().invoke(main, ["verify", str(stranger.path)])
    assert shown.exit_code == 1 and len(shown.output.strip().splitlines()) == 1
    untouched(stranger, hands, victim)


def test_every_stage_has_a_record():
    """The stages are the manifest's fields."""
    assert set(STAGES) == set(Manifest.model_fields) - {"version", "seals"}


# ---- one parse a command ---------------------------------------------------------------------------------------------


def test_a_command_parses_the_manifest_once(stranger, hands, monkeypatch):
    """Counted, for every verb on a run, those that record among them."""
    from bonecaffe import run as run_module

    parses = []

    def counted(content, where):
        parses.append(where)
        return parse_manifest(content, where)

    monkeypatch.setattr(run_module, "parse_manifest", counted)
    for command in commands(stranger, hands):
        parses.clear()
        CliRunner().invoke(main, command)
        assert len(parses) <= 1, (command, len(parses))
    shutil.rmtree(stranger.snapshots)
    parses.clear()
    assert CliRunner().invoke(main, ["train", str(stranger.path)]).exit_code == 0
    assert len(parses) == 1


@pytest.mark.parametrize("deep", [False, True])
def test_a_link_that_a_definition_names_is_not_followed(own_run, prepared, deep):
    """Caffe would read or write the link's target: here, another run's LMDB."""
    definitions.write(own_run, own_run.recipe())
    name = "deep/foreign" if deep else "foreign"
    (own_run.path / name).parent.mkdir(exist_ok=True)
    target = own_run.path / ("deep" if deep else name)
    if deep:
        target.rmdir()
        target.symlink_to(prepared.path)
        name = "deep/train_lmdb"
    else:
        target.symlink_to(prepared.lmdb("train"))
    text = own_run.train_val.read_text()
    own_run.train_val.write_text(text.replace('"train_lmdb"', f'"{name}"'))
    done = CliRunner().invoke(main, ["train", str(own_run.path), "--cpu"])
    assert done.exit_code == 1 and "is a link and may lead out of the run" in done.output, done.output
