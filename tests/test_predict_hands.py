"""`predict` on many hands: a fault of one hand affects only that hand, and results come in order, as soon as known."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from conftest import edit_table

from bonecaffe import predict as prediction
from bonecaffe.cli import main
from bonecaffe.errors import LocateError, PointsError, RunError
from bonecaffe.evaluation.evaluate import predict_and_evaluate
from bonecaffe.hands import standard_view
from bonecaffe.hands.images import find_images, read_image
from bonecaffe.hands.reference_points import POINT_NAMES, read_points, write_points
from bonecaffe.locate.locate import hands_in
from bonecaffe.locate.locator import MODEL, Locator
from bonecaffe.predict import Hand, HandWarning, Prediction, Predictor, Refused, predict_run

KEYS = ["image", "id", "months", "iteration", "points", "points_from", "confidence", "remarks", "refused"]


def predict(run, *arguments):
    return CliRunner().invoke(main, ["predict", str(run.path), *map(str, arguments)])


def objects(done):
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def noise(tmp_path) -> Path:
    """An image without a hand."""
    path = tmp_path / "noise.png"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 255, (390, 300), np.uint8))
    return path


def row_with(table: Path, case_id: str, change) -> None:
    """Change the row of a hand in a table of points; None removes it."""
    lines = []
    for line in table.read_text().splitlines():
        changed = change(line) if line.startswith(f"{case_id},") else line
        lines += [] if changed is None else changed.split("\n")
    table.write_text("\n".join(lines) + "\n")


def test_a_fault_of_one_hand_affects_only_that_hand(trained, own_hands, tmp_path):
    """Whatever is wrong with a hand with given points, the others have the ages that they have alone."""
    images, table = own_hands / "images", own_hands / "points.csv"
    row_with(table, "1002", lambda line: None)
    cv2.imwrite(str(images / "1003.png"), read_image(images / "1003.png")[:-1])
    (images / "1004.png").write_bytes((images / "1004.png").read_bytes()[:900])
    row_with(table, "1005", lambda line: line.replace(",300,390,", ",300,390,-"))
    row_with(table, "1006", lambda line: f"{line}\n{line}")
    row_with(table, "1007", lambda line: line[: line.rindex(",")] + ",")
    (images / "1008.png").unlink()
    (images / "1009.png").unlink()
    os.mkfifo(images / "1009.png")
    faults = {
        "1002": f"no points for id 1002 in {table}",
        "1003": "the image is 300 x 389, but its points were marked in 300 x 390",
        "1004": "cut off",
        "1005": f"{table}: row 5 (id 1005): ulna at (-",
        "1006": "the id is already in row",
        "1007": "missing phalanx5_y",
        "1008": "No such file",
        "1009": "named pipe",
    }
    asked = [images / f"{number}.png" for number in range(1001, 1013)]
    done = predict(trained, *asked, "--points", table)
    assert done.exit_code == 1 and done.stderr.splitlines()[-1] == "bonecaffe: 8 of 12 images refused"
    predictor, points = Predictor(trained), read_points(table, faulty={})
    good = ["1001", "1010", "1011", "1012"]
    alone = {case_id: predictor.predict(images / f"{case_id}.png", points[case_id]) for case_id in good}
    assert done.stdout.splitlines() == [f"{images / case_id}.png\t{alone[case_id]:.1f} months" for case_id in good]
    for line, (case_id, reason) in zip(done.stderr.splitlines(), faults.items(), strict=False):
        assert f"{case_id}.png: " in line and reason in line and "Traceback" not in line
    found = objects(predict(trained, *asked, "--points", table, "--json"))
    assert [each["id"] for each in found] == [path.stem for path in asked]
    for each in found:
        assert list(each) == KEYS and each["points_from"] == "table" and each["confidence"] is None
        assert (each["refused"] is None) == (each["months"] is not None) == (each["id"] in good)
        assert faults.get(each["id"], "") in (each["refused"] or "")
    assert found[0]["points"] == {
        name: list(point) for name, point in zip(POINT_NAMES, points["1001"].points, strict=True)
    }
    assert found[0]["months"] == round(alone["1001"], 2) and found[0]["iteration"] == 12


def test_a_faulty_row_is_refused_where_the_table_is_meant(own_hands):
    """Only `faulty` separates the rows of a table; a row without an id is an error in any case."""
    table = own_hands / "points.csv"
    row_with(table, "1005", lambda line: line.replace(",300,390,", ",300,390,-"))
    with pytest.raises(PointsError, match=r"row 6 \(id 1005\)"):
        read_points(table)
    faulty: dict[str, str] = {}
    assert "1005" not in read_points(table, faulty=faulty) and list(faulty) == ["1005"]
    row_with(table, "1006", lambda line: line.removeprefix("1006"))
    with pytest.raises(PointsError, match="row 7 .*no id"):
        read_points(table, faulty={})


def test_found_points_are_reported_with_their_confidence(trained, hands, noise, tmp_path):
    """--json of found points; a folder stands for its images; a refused hand has a line with the reason, in order."""
    folder, empty = tmp_path / "folder", tmp_path / "empty"
    folder.mkdir()
    empty.mkdir()
    for case_id in ("1003", "1007"):
        shutil.copy(hands / "images" / f"{case_id}.png", folder)
    done = predict(trained, noise, folder, empty, tmp_path / "none.png", hands / "images" / "1009.png", "--json")
    found = objects(done)
    assert done.exit_code == 1 and [each["id"] for each in found] == ["noise", "1003", "1007", "empty", "none", "1009"]
    locator, predictor = Locator(), Predictor(trained)
    for each in found:
        assert list(each) == KEYS and each["remarks"] == []
        if each["id"].startswith("1"):
            image = read_image(each["image"])
            seen, points = locator.find(image), list(each["points"].values())
            assert each["points_from"] == "found" and each["confidence"] == pytest.approx(seen.confidence, abs=0.001)
            assert np.allclose(points, seen.points, atol=0.051) and each["refused"] is None
            assert each["months"] == pytest.approx(predictor.predict(image, points), abs=0.0051)
        else:
            assert each["months"] is each["points"] is None and each["id"] in each["refused"]
    assert 0 <= found[0]["confidence"] < 0.5 and "uncertain" in found[0]["refused"]


def test_a_given_locator_is_used(trained, hands, tmp_path):
    """--locator: a copy of the locator that comes with bonecaffe gives the same; an incomplete locator is refused."""
    own, image = tmp_path / "own", hands / "images" / "1003.png"
    shutil.copytree(MODEL, own)
    assert predict(trained, image, "--locator", own).stdout == predict(trained, image).stdout != ""
    (own / "near.caffemodel").unlink()
    for arguments in (["predict", trained.path, image], ["locate", hands / "images", "--points", tmp_path / "p.csv"]):
        done = CliRunner().invoke(main, [*map(str, arguments), "--locator", str(own)])
        assert done.exit_code == 1 and f"{own}/near.caffemodel: no such file" in done.output
    with pytest.raises(LocateError, match="no locator here"):
        hands_in([image], locator=tmp_path)
    both = predict(trained, image, "--locator", own, "--points", hands / "points.csv")
    assert both.exit_code == 2 and "give --points or --locator, not both" in both.output


def test_results_come_one_by_one_and_in_batches(trained, hands, monkeypatch):
    """The first age is known before the second image is read. Points of a table go in batches, found ones singly.

    No more hands wait than a batch holds, also where all but the first are refused.
    """
    points, files = read_points(hands / "points.csv"), find_images(hands / "images")
    taken, sizes = [], []

    def given(source, count):
        for number in range(count):
            taken.append(number)
            yield Hand(files["1003"], points["1003"], source)

    predictor = Predictor(trained, batch=4)
    forward = predictor._forward
    monkeypatch.setattr(predictor, "_forward", lambda batch: sizes.append(len(batch)) or forward(batch))
    results = predictor.predict_hands(given("table", 10))
    assert isinstance(next(results), Prediction) and taken == [0]
    assert len(list(results)) == 9 and sizes == [1, 4, 4, 1]
    sizes.clear()
    assert len(list(predictor.predict_hands(given("found", 3)))) == 3 and sizes == [1, 1, 1]

    def refused_in_between():
        yield from given("table", 1)
        yield Refused(files["1003"], "no")
        yield from given("table", 4)

    taken.clear()
    results = predictor.predict_hands(refused_in_between())
    assert isinstance(next(results), Prediction) and isinstance(next(results), Refused) and taken == [0]
    assert len(list(results)) == 4
    taken.clear()

    def mostly_refused():
        yield from given("table", 2)
        for number in range(2, 100):
            taken.append(number)
            yield Refused(files["1003"], "no")

    results = predictor.predict_hands(mostly_refused())
    for done, _ in enumerate(results, start=1):
        assert len(taken) - done < 4
    assert done == 100


def test_a_killed_command_has_printed_what_was_done(trained, hands):
    """SIGKILL in the middle: complete lines, in order, each for a finished hand."""
    images = [str(hands / "images" / f"{number}.png") for number in range(1001, 1013)] * 20
    command = [sys.executable, "-m", "bonecaffe", "predict", str(trained.path), *images, "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        assert process.poll() is None
        process.kill()
    assert [json.loads(line)["image"] for line in lines] == images[:3]


def test_a_bug_in_one_hand_affects_only_that_hand_and_is_reported(trained, hands, monkeypatch, tmp_path):
    """The others are printed; then it is reported like any bug, and a lack of memory has its own message."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    images = [hands / "images" / f"{case_id}.png" for case_id in ("1001", "1003", "1009")]
    find, calls = Locator.find, []

    def fails(self, image):
        calls.append(1)
        if len(calls) % 3 == 2:
            raise error
        return find(self, image)

    monkeypatch.setattr(Locator, "find", fails)
    for error, code, message in (
        (ZeroDivisionError("why"), 3, "this is a bug"),
        (MemoryError(), 1, "not enough memory"),
    ):
        done = predict(trained, *images)
        assert done.exit_code == code and message in done.stderr and done.stdout.count(" months\n") == 2
        assert f"{images[1]}: failed with {type(error).__name__}" in done.stderr


def test_an_age_that_is_no_number_is_refused(trained, hands, monkeypatch):
    """A diverged model: NaN is neither JSON nor an age."""
    points = read_points(hands / "points.csv")
    predictor = Predictor(trained)
    monkeypatch.setattr(predictor, "_forward", lambda batch: [float("nan")] * len(batch))
    (result,) = predictor.predict_hands(hands_in([hands / "images" / "1003.png"], hands / "points.csv"))
    assert isinstance(result, Refused) and "predicts nan" in result.reason and points["1003"]


def test_hostile_names_are_printed_on_one_line(trained, hands, tmp_path):
    """A name that is not UTF-8, or holds a line break, is predicted like others: its line is one line."""
    names = [b"\xff\xfe.png", b"a\n\x1b[31m.png", "é ü.png".encode()]
    images = [os.path.join(os.fsencode(tmp_path), name) for name in names]
    for image in images:
        shutil.copy(hands / "images" / "1003.png", image)
    command = [sys.executable, "-m", "bonecaffe", "predict", str(trained.path)]
    done = subprocess.run([*command, *images], capture_output=True, env={**os.environ, "PYTHONUTF8": "1"}, check=False)
    lines = done.stdout.decode().splitlines()
    assert done.returncode == 0 and len(lines) == 3, done.stderr
    assert r"\udcff\udcfe.png" in lines[0] and r"a\n\x1b[31m.png" in lines[1] and "é ü.png\t" in lines[2]
    json_lines = subprocess.run([*command, *images, "--json"], capture_output=True, check=True).stdout.splitlines()
    assert [os.fsencode(json.loads(line)["image"]) for line in json_lines] == images


def test_all_missing_images_of_a_run_are_named_before_it_is_predicted(own_trained):
    """evaluate: one error names each; the earlier predictions stay complete."""
    predict_run(own_trained)
    before = own_trained.predictions("train").read_bytes(), own_trained.predictions("test").read_bytes()
    edit_table(own_trained.predictions("test"), predicted_months="1")
    edited = own_trained.predictions("test").read_bytes()
    split = own_trained.read().prepare.split
    missing, changed = own_trained.image(split["train"][3]), own_trained.image(split["test"][1])
    missing.unlink()
    changed.write_bytes(changed.read_bytes()[:-20])
    with pytest.raises(RunError) as error:
        predict_run(own_trained)
    for words in ("2 images are", f"{missing.name} (missing)", f"{changed.name} (changed)", "Run prepare again"):
        assert words in str(error.value)
    assert (own_trained.predictions("train").read_bytes(), own_trained.predictions("test").read_bytes()) == (
        before[0],
        edited,
    )
    done = CliRunner().invoke(main, ["evaluate", str(own_trained.path), "--all"])
    assert (
        done.exit_code == 1
        and f"{missing.name} (missing)" in done.output
        and f"{changed.name} (changed)" in done.output
    )


def test_interrupted_between_its_two_tables(own_trained, monkeypatch):
    """Predictions of one snapshot and of another are never measured together: evaluate predicts again."""
    first = predict_run(own_trained, 4)
    write, paths = prediction.write_text, []

    def interrupted(path, text):
        paths.append(path)
        if len(paths) > 1:
            raise KeyboardInterrupt
        write(path, text)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(prediction, "write_text", interrupted)
        predict_run(own_trained, 12)
    torn = [own_trained.predictions(split).read_bytes() for split in ("train", "test")]
    for iteration in (first, 12):
        assert predict_and_evaluate(own_trained, iteration).iteration == iteration
        whole = [own_trained.predictions(split).read_bytes() for split in ("train", "test")]
        assert whole != torn


def test_a_hand_has_one_age_however_it_is_stored(trained, hands, tmp_path):
    """Turned, inverted or both: given the points, the age is the same to the last digit, and the change is declared."""
    marked, image = read_points(hands / "points.csv")["1003"], read_image(hands / "images" / "1003.png")
    files, points = [], []
    for count, inverted in itertools.product(range(4), (False, True)):
        pixels = np.ascontiguousarray(np.rot90(image, count))
        name = f"t{count}{'i' * inverted}"
        cv2.imwrite(str(tmp_path / f"{name}.png"), 255 - pixels if inverted else pixels)
        files.append(tmp_path / f"{name}.png")
        points.append(replace(standard_view.turned(marked, count), id=name))
    write_points(tmp_path / "points.csv", points)
    done = predict(trained, *files, "--points", tmp_path / "points.csv", "--json")
    assert done.exit_code == 0, done.output
    found = objects(done)
    assert len({each["months"] for each in found}) == 1 and len(found) == 8
    for each in found:
        remarks = " ".join(each["remarks"])
        assert ("turned" in remarks) == (not each["id"].startswith("t0")), each
        assert ("bones are dark" in remarks) == each["id"].endswith("i"), each
    assert f"{files[1]}: bones are dark" in done.stderr
    with pytest.warns(HandWarning, match="turned by 180 degrees"):
        Predictor(trained).predict(files[4], points[4])


def test_found_points_follow_the_turn(trained, hands, tmp_path):
    """Also without given points: a hand upside down or inverted has the age that it has upright, within a month."""
    image = read_image(hands / "images" / "1003.png")
    for name, pixels in {"a": image, "b": image[::-1, ::-1], "c": 255 - image}.items():
        cv2.imwrite(str(tmp_path / f"{name}.png"), pixels)
    found = objects(predict(trained, *(tmp_path / f"{name}.png" for name in "abc"), "--json"))
    assert [len(each["remarks"]) for each in found] == [0, 1, 1]
    assert max(each["months"] for each in found) - min(each["months"] for each in found) < 1
