"""The records, checked by hand: what is refused, hashes computed independently, what counts as current."""

from __future__ import annotations

import hashlib
import json
import os

import pytest
from pydantic import ValidationError

from bonecaffe import records
from bonecaffe.errors import RunError
from bonecaffe.records import (
    Attempt,
    CaffeBuild,
    Defined,
    Evaluated,
    Host,
    Launch,
    MadeWith,
    Manifest,
    Predicted,
    Prepared,
    PreparedCase,
    Record,
    Source,
    State,
    Trained,
    damaged,
    digest,
    is_current,
    is_intact,
    outputs_of,
    parse_manifest,
    seal,
)

A, B, C = ("a" * 64, "b" * 64, "0123456789abcdef" * 4)
HOST = {
    "system": "Debian 12",
    "kernel": "6.1",
    "machine": "x86_64",
    "cpu": "a CPU",
    "cores": 2,
    "omp_num_threads": "",
    "memory_gb": 8.0,
}
BY = {"bonecaffe": "0.2", "python": "3.11", "packages": {"numpy": "2"}, "host": HOST, "caffe": None}
FROM = {name: A for name in ("cases", "points", "images", "settings")}
CASE = {"source_stat": [1, 2], "source_sha256": A, "pixels_sha256": B, "made_from": C}
PREPARED = {
    "inputs": FROM,
    "outputs": {"cases.csv": A},
    "by": BY,
    "recipe": "name: paper\n",
    "sources": {"ages": {"name": "ages.csv", "sha256": A}, "points": {"name": "points.csv", "sha256": B}},
    "images_folder": "images",
    "left_out": {},
    "records": {"train": 2, "test": 1},
    "split": {"train": ["1", "2"], "test": ["3"]},
    "cases": {"1": CASE, "2": CASE, "3": CASE},
}


def evaluated(**changes) -> Evaluated:
    return Evaluated(**{"inputs": {"predict": A}, "outputs": {}, "by": BY, **changes})


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_prepared_as_it_is_written_is_read():
    """The example that the cases below damage."""
    assert Prepared(**PREPARED).split["test"] == ("3",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": {"train": ["1", "2"]}, "records": {"train": 2}}, "split and the number of records"),
        ({"records": {"train": 2, "test": 2}}, "split and the number of records"),
        ({"records": {"train": 3, "test": 1}}, "split and the number of records"),
        ({"cases": {"1": CASE, "2": CASE}}, "split and the cases"),
        ({"cases": {"1": CASE, "2": CASE, "3": CASE, "4": CASE}}, "split and the cases"),
        ({"sources": {"ages": PREPARED["sources"]["ages"]}}, "points"),
        ({"sources": {"points": PREPARED["sources"]["points"]}}, "ages"),
        ({"outputs": {"../a": A}}, "a path inside the run"),
        ({"outputs": {"/etc/passwd": A}}, "a path inside the run"),
        ({"outputs": {"a": "A" * 64}}, "pattern"),
        ({"outputs": {"a": "a" * 63}}, "pattern"),
        ({"outputs": {"a": "a" * 65}}, "pattern"),
        ({"left_out": {"no points": -1}}, "greater than or equal to 0"),
        ({"left_out": {"no points": 10**12 + 1}}, "less than or equal to 1000000000000"),
        ({"more": 1}, "[Ee]xtra"),
    ],
)
def test_damaged_preparation_is_refused(change, message):
    """Each with the message of its own rule."""
    with pytest.raises(ValidationError, match=message):
        Prepared(**{**PREPARED, **change})


def test_counts_reach_from_nothing_to_a_million_millions():
    """Both ends are valid."""
    left_out = {"no points": 0, "no image": 10**12}
    assert Prepared(**{**PREPARED, "left_out": left_out}).left_out == left_out


@pytest.mark.parametrize("case_id", ["", "a/b", "a\\b", ".a", "..", "/a"])
def test_id_that_names_no_file_is_refused(case_id):
    """It becomes the name of an image in the run."""
    damaged_facts = {
        **PREPARED,
        "split": {"train": ["1", case_id], "test": ["3"]},
        "cases": {"1": CASE, case_id: CASE, "3": CASE},
    }
    with pytest.raises(ValidationError, match="a plain name is needed"):
        Prepared(**damaged_facts)


def test_nan_and_inf_are_refused():
    """They are neither a memory size nor a time."""
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValidationError, match="finite"):
            Host(**{**HOST, "memory_gb": value})
        with pytest.raises(ValidationError, match="finite"):
            Attempt(command="c", start="s", at="t", by=BY, seconds=value)


def test_records_never_change():
    """So the sealed content stays the same."""
    for record in (Prepared(**PREPARED), Launch(), MadeWith(**BY), PreparedCase(**CASE), Source(name="a", sha256=A)):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(record, next(iter(type(record).model_fields)), None)


# ---- how Caffe is called ---------------------------------------------------------------------------------------------


def test_launch_as_a_command_line():
    """The words of Caffe's own usage; a name with a blank is quoted in the text."""
    assert Launch().arguments() == ["train", "--solver", "solver.prototxt"]
    again = Launch(snapshot="snapshots/S iter_4.solverstate", gpus="0,1")
    assert again.argv("/opt/caffe")[:1] == ["/opt/caffe"] and again.argv("/opt/caffe")[1:] == again.arguments()
    assert str(again) == "caffe train --solver solver.prototxt --snapshot 'snapshots/S iter_4.solverstate' --gpu 0,1"


def test_launch_starts_from_one_thing():
    """Weights or a snapshot."""
    with pytest.raises(ValidationError, match="exclude each other"):
        Launch(weights="a", snapshot="b")
    for gpus in ("", "x", "0,", ",0", "0 1", "alll", "all,0", "-1"):
        with pytest.raises(ValidationError, match="pattern"):
            Launch(gpus=gpus)
    assert Launch(gpus="12,3").gpus == "12,3" and Launch(gpus="all").gpus == "all"


def test_launch_as_a_user_asks_for_it():
    """An invalid launch is refused with the option's name, or with the options that exclude each other."""
    assert Launch.of("w", None, "0,1") == Launch(weights="w", gpus="0,1")
    with pytest.raises(RunError, match=r"^--gpu 0;1: give 0, or several such as 0,1, or all\.$"):
        Launch.of("w", None, "0;1")
    with pytest.raises(
        RunError, match=r"^--weights and --snapshot exclude each other: weights start a training, a snapshot"
    ):
        Launch.of("w", "s", "0")


def test_records_without_what_they_depend_on_are_refused():
    """A training needs all five inputs and both files; predictions need what was prepared."""
    five = {name: A for name in ("prepare", "train_val", "solver", "deploy", "mean")}
    facts = {"outputs": {}, "by": BY, "state": "finished", "iteration": 4, "launch": Launch(), "attempts": ()}
    files = {"deploy": A, "mean": ""}
    assert Trained(inputs=five, files=files, **facts)
    for name in five:
        with pytest.raises(ValidationError, match=f"{name} missing"):
            Trained(inputs={other: A for other in five if other != name}, files=files, **facts)
    for name in files:
        with pytest.raises(ValidationError, match=f"{name} missing"):
            Trained(inputs=five, files={other: A for other in files if other != name}, **facts)
    with pytest.raises(ValidationError, match="prepare missing"):
        Predicted(inputs={}, outputs={}, by=BY, iteration=4)


# ---- hashes ----------------------------------------------------------------------------------------------------------


def test_digest_depends_on_names_and_values_alone():
    """SHA-256 of the JSON, names sorted, written out here by hand."""
    by_hand = hashlib.sha256('{"a": "1", "ä": "2"}'.encode()).hexdigest()
    assert digest({"ä": "2", "a": "1"}) == digest({"a": "1", "ä": "2"}) == by_hand
    assert Prepared(**PREPARED).key == digest(FROM) != digest({**FROM, "cases": B})


def test_seal_is_the_hash_of_the_record_without_empty_fields():
    """None is not written, so it is not sealed; the rest is in sorted order, in UTF-8."""
    written = {
        "iteration": 4,
        "inputs": {"prepare": A},
        "outputs": {"a": A, "b": B},
        "stamps": {"a": [3, 4]},
        "by": {**BY, "python": "3.11 ü"},
    }
    del written["by"]["caffe"]
    record = Predicted(**{**written, "by": {**written["by"], "caffe": None}})
    plain = json.dumps(written, sort_keys=True, ensure_ascii=False)
    assert "ü" in plain and seal(record) == hashlib.sha256(plain.encode()).hexdigest()


# ---- the manifest ----------------------------------------------------------------------------------------------------


def test_manifest_is_read_as_it_was_written():
    """A round trip; the records in the order of the pipeline; readable text, one field per line, a final line break."""
    prepared = Prepared(**{**PREPARED, "images_folder": "Röntgen"})
    manifest = Manifest().with_record(evaluated()).with_record(prepared)
    assert list(manifest.records()) == ["prepare", "evaluate"]
    text = manifest.to_json()
    assert '"Röntgen"' in text and '\n  "version": 2' in text and text.endswith("}\n") and "null" not in text
    assert parse_manifest(text.encode(), "m") == manifest
    assert manifest.seals == {"prepare": seal(prepared), "evaluate": seal(evaluated())}


def test_training_without_given_weights_and_without_caffe_is_read_back():
    """None is not written, so it is not required either."""
    by = {**BY, "caffe": None}
    attempt = Attempt(command="caffe train", start="the fillers", at="2026-11-25T04:00:00+00:00", by=by)
    trained = Trained(
        inputs={name: A for name in ("prepare", "train_val", "solver", "deploy", "mean")},
        outputs={"snapshots/SNAPSHOT_iter_4.caffemodel": A},
        by=by,
        state="finished",
        iteration=4,
        weights=None,
        launch=Launch(),
        files={"deploy": A, "mean": ""},
        attempts=(attempt,),
    )
    read = parse_manifest(Manifest().with_record(trained).to_json().encode(), "m")
    assert read.train == trained and read.seals == {"train": seal(trained)}


def test_record_is_replaced_and_dropped_with_its_seal():
    """The others stay."""
    manifest = Manifest().with_record(Prepared(**PREPARED)).with_record(evaluated())
    other = evaluated(inputs={"predict": B})
    assert manifest.with_record(other).seals["evaluate"] == seal(other) != manifest.seals["evaluate"]
    left = manifest.without(["evaluate", "train"])
    assert list(left.records()) == list(left.seals) == ["prepare"] and left.evaluate is None
    assert list(manifest.records()) == ["prepare", "evaluate"]  # a copy was changed


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not readable as JSON"),
        (b"{", "not readable as JSON"),
        (b"\xff\xfe\x00", "not readable as JSON"),
        (b"[" * 100_000, "not readable as JSON"),
        (b"[]", "a manifest of another version of bonecaffe"),
        (b"{}", "a manifest of bonecaffe 0.1"),
        (b'{"version": 1}', "a manifest of another version of bonecaffe"),
        (b'{"version": 3}', "a manifest of another version of bonecaffe"),
        (b'{"version": 2, "seals": 3}', r"not as bonecaffe writes it \(seals: "),
        (b'{"version": 2, "predict": {"outputs": {"a": 3}}}', r"\(predict\.inputs: Field required\)"),
    ],
)
def test_invalid_manifest_is_refused_in_a_sentence(content, message):
    """The file, the problem, the remedy."""
    with pytest.raises(RunError, match=rf"^m\.json: .*{message}.*Prepare the run again in another folder"):
        parse_manifest(content, "m.json")
    assert parse_manifest(b'{"version": 2}', "m.json") == Manifest()


def test_states_are_words():
    """The same in a manifest and for people."""
    assert State("finished") is State.FINISHED and str(State.MODEL_GONE) == "last model gone"


def test_attempt_and_build_are_complete():
    """Exactly the fields that are written."""
    attempt = Attempt(command="caffe train", start="the fillers", at="2026-11-25T04:00:00+00:00", by=BY)
    assert (attempt.state, attempt.iteration, attempt.seconds, attempt.why, attempt.alarms) == (
        None,
        None,
        None,
        "",
        (),
    )
    build = {
        "origin": "Debian",
        "build": {},
        "blas_file": "",
        "gpu": False,
        "cudnn": False,
        "nccl": False,
        "binaries": {"caffe": A},
    }
    assert CaffeBuild(**build).binaries == {"caffe": A}
    defined = Defined(inputs={}, outputs={}, by=BY, generated={"solver.prototxt": A}, mean={"mean": "none"})
    assert defined.stage == "prototxt" and defined.stamps == {}


# ---- is it still so? -------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path):
    """A run with one output of three bytes, and its record."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a").write_bytes(b"abc")
    outputs = outputs_of(tmp_path, [tmp_path / "sub" / "a", tmp_path / "gone"])
    return tmp_path, evaluated(**outputs)


ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
"""SHA-256 of "abc" (FIPS 180-2)."""


def test_outputs_are_recorded_with_hash_size_and_time(run):
    """A missing file is not recorded; a file with a known hash is not read."""
    path, record = run
    stat = (path / "sub" / "a").stat()
    assert record.outputs == {"sub/a": ABC} and record.stamps == {"sub/a": (3, stat.st_mtime_ns)}
    known = outputs_of(path, [path / "sub" / "a", path / "gone", path / "sub"][:2], {"sub/a": B, "x": C})
    assert known["outputs"] == {"sub/a": B}
    (path / "b").write_bytes(b"")
    both = outputs_of(path, [path / "gone", path / "b", path / "sub" / "a"], {"sub/a": B})
    assert list(both["outputs"]) == ["b", "sub/a"] and both["outputs"]["b"] != B


def test_current_means_the_same_inputs_and_every_output(run):
    """Another input, no record, a missing file: not current."""
    path, record = run
    assert is_current(path, record, {"predict": A})
    assert not is_current(path, None, {"predict": A})
    assert not is_current(path, record, {"predict": B})
    assert not is_current(path, record, {})
    (path / "sub" / "a").unlink()
    assert not is_current(path, record, {"predict": A})
    assert damaged(path, record) == ["sub/a"] and damaged(path, record, []) == []


def test_changed_output_is_noticed(run):
    """By its content where size or time differ; a file that was only touched is unchanged."""
    path, record = run
    file = path / "sub" / "a"
    at = file.stat().st_mtime_ns
    os.utime(file, ns=(0, 0))
    assert is_intact(path, record, "sub/a")
    file.write_bytes(b"abd")
    os.utime(file, ns=(at + 1, at + 1))
    assert not is_intact(path, record, "sub/a")
    file.write_bytes(b"abcd")
    os.utime(file, ns=(at, at))
    assert not is_intact(path, record, "sub/a")
    file.unlink()
    file.mkdir()
    assert not is_intact(path, record, "sub/a")


def test_a_large_output_of_the_recorded_size_and_time_is_not_read(run, monkeypatch):
    """This makes the check of a large run quick: 'abd' with the time of 'abc' passes, unless ``read`` is set."""
    path, record = run
    file = path / "sub" / "a"
    at = file.stat().st_mtime_ns
    file.write_bytes(b"abd")
    os.utime(file, ns=(at, at))
    assert not is_intact(path, record, "sub/a")  # small: read in any case
    monkeypatch.setattr(records, "TRUSTED_FROM", 3)
    assert is_intact(path, record, "sub/a") and damaged(path, record) == []
    assert not is_intact(path, record, "sub/a", read=True)
    assert damaged(path, record, read=True) == ["sub/a"]
    monkeypatch.setattr(records, "TRUSTED_FROM", 4)
    assert not is_intact(path, record, "sub/a")
    assert not is_intact(path, record.model_copy(update={"stamps": {}}), "sub/a")
    assert isinstance(record, Record)
