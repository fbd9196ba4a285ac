"""From DICOM files to ages: as from PNG, under either id, and without a trace of the patient."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from conftest import prepare_run, tiny
from dicoms import EXPLICIT, JPEG_2000, LOSSLESS_1, dicom

from bonecaffe.annotate.marking import Marking
from bonecaffe.cli import main
from bonecaffe.hands.images import decode, dicom_id, dicom_ids, find_images, read_image
from bonecaffe.hands.reference_points import read_points
from bonecaffe.predict import Predictor
from bonecaffe.studies.repetition import Repetition

PATIENT = {
    "PatientName": "Quixotic^Zebediah",
    "PatientID": "QX-998877",
    "PatientBirthDate": "19990307",
    "PatientSex": "F",
    "PatientAge": "077Y",
    "OtherPatientNames": "Zebediahson",
    "PatientComments": "lives in Quixoticville",
    "AccessionNumber": "QX-ACC-55",
    "InstitutionName": "Quixotic Hospital",
    "ReferringPhysicianName": "Quixotic^Doctor",
    "StudyDescription": "Left hand of Zebediah Quixotic",
    "StudyID": "QX-STUDY",
}
TELLTALES = (b"quixotic", b"zebediah", b"qx-", b"19990307", b"077y")


def uid_of(case_id: str) -> str:
    """A UID for a hand."""
    return f"1.2.826.0.1.{case_id}"


def as_dicom(data: Path, out: Path, syntax: str = EXPLICIT, **tags) -> Path:
    """The phantoms in a folder as DICOM files, with a patient; the tables are copied."""
    (out / "images").mkdir(parents=True)
    for name in ("ages.csv", "points.csv"):
        shutil.copy(data / name, out / name)
    for case_id, path in find_images(data / "images").items():
        content = dicom(read_image(path), 8, syntax, SOPInstanceUID=uid_of(case_id), **PATIENT, **tags)
        (out / "images" / f"{case_id}.dcm").write_bytes(content)
    return out


def by_uid(data: Path) -> Path:
    """The tables of a folder with UIDs as ids, and names of files that are of no use."""
    ids = sorted(read_points(data / "points.csv"))
    for table in (data / "ages.csv", data / "points.csv"):
        lines = table.read_text().splitlines()
        table.write_text(
            "\n".join([lines[0], *(f"{uid_of(line.split(',')[0])}{line[4:]}" for line in lines[1:])]) + "\n"
        )
    for number, case_id in enumerate(ids):
        (data / "images" / f"{case_id}.dcm").rename(data / "images" / f"IM{number:04}")
    return data


def run(*words) -> str:
    """What a command prints."""
    done = CliRunner().invoke(main, [str(word) for word in words])
    assert done.exit_code in (0, 1), done.output
    return done.output


@pytest.fixture(scope="module")
def dicoms(hands, tmp_path_factory) -> Path:
    """The phantoms as DICOM files; tests must not change them."""
    return as_dicom(hands, tmp_path_factory.mktemp("dicoms") / "data")


def test_a_run_from_dicom_is_the_run_from_png(prepared, dicoms, tmp_path):
    """The same images for Caffe and the same cases, byte for byte: age and sex come from the table alone."""
    made = prepare_run(tmp_path / "run", dicoms)
    before, after = prepared.read().prepare, made.read().prepare
    images = [name for name in before.outputs if name.startswith("images/")]
    assert len(images) == 12 and all(before.outputs[name] == after.outputs[name] for name in images)
    assert made.cases_file.read_bytes() == prepared.cases_file.read_bytes()


def test_the_same_age_as_from_png(trained, hands):
    """8 bits: the same number. More bits: the pixels of the 16-bit PNG, which are stretched, and nearly the age."""
    predictor = Predictor(trained)
    points, files = read_points(hands / "points.csv"), find_images(hands / "images")
    folder = trained.path.parent / "copies"
    folder.mkdir()
    for case_id in ("1001", "1002", "1003"):
        image = read_image(files[case_id]).astype(int)
        expected = predictor.predict(files[case_id], points[case_id])
        for bits in (8, 12, 16):
            top = (1 << bits) - 1
            stored = image if bits == 8 else np.round(image * (top / 255)).astype(int)
            for polarity in ("MONOCHROME2", "MONOCHROME1"):
                shown = stored if polarity == "MONOCHROME2" else top - stored
                for syntax in (EXPLICIT, LOSSLESS_1, JPEG_2000) if case_id == "1001" else (EXPLICIT,):
                    path = folder / "hand.dcm"
                    path.write_bytes(dicom(shown, bits, syntax, PhotometricInterpretation=polarity))
                    months = predictor.predict(path, points[case_id])
                    if bits == 8:
                        assert months == expected
                    else:
                        png = cv2.imencode(".png", stored.astype(np.uint16))[1].tobytes()
                        assert np.array_equal(read_image(path), decode(png, "a.png"))
                        assert abs(months - expected) < 0.1


def test_nothing_of_the_patient_is_written_or_printed(trained, hands, tmp_path, caplog):
    """In no output, log, table, record or picture of any command, also for files that are refused."""
    data = as_dicom(hands, tmp_path / "data")
    images, points = data / "images", data / "points.csv"
    other = dicom(np.zeros((8, 8), int), **(PATIENT | {"StudyDescription": "Chest of Zebediah Quixotic"}))
    (images / "chest.dcm").write_bytes(other.replace(b"HAND", b"    "))
    (images / "cut.dcm").write_bytes((images / "1001.dcm").read_bytes()[:700])
    broken = (images / "1002.dcm").read_bytes().replace(b"US\x02\x00", b"Qx\x02\x00")
    (images / "broken.dcm").write_bytes(broken)
    colour = dicom(np.zeros((8, 8), int), PhotometricInterpretation="RGB", SamplesPerPixel=3, **PATIENT)
    (images / "colour.dcm").write_bytes(colour)
    made = tmp_path / "made"
    made.mkdir()
    with caplog.at_level(logging.DEBUG):
        outputs = [
            run("prepare", made / "run", "--images", images, "--ages", data / "ages.csv", "--points", points),
            run("locate", images, "--points", made / "found.csv", "--sheet", made / "sheet.png", "--jobs", "1"),
            run("predict", trained.path, images, "--points", points, "--json"),
            run("predict", trained.path, images, "--points", points, "--json", "--dicom-id", "uid"),
            run("points", "check", points, "--images", images, "--sheet", made / "check.png"),
            run("points", "export", points, "--format", "coco", "--images", images, "--out", made / "coco.json"),
            run("predict", trained.path, *(images / f"{name}.dcm" for name in ("chest", "cut", "broken", "colour"))),
            run("histeq", images / "1001.dcm", "--out", made / "equalized.png"),
        ]
    prepare_run(made / "other", data)
    assert "CHEST, by its tag StudyDescription" in outputs[1] and "chest" in outputs[2]
    assert all(words in outputs[1] for words in ("cut off", "a colour DICOM image", "broken: unreadable"))
    texts = {"output": "".join(outputs).encode(), "log": caplog.text.encode()}
    texts |= {str(path): path.read_bytes() for path in made.rglob("*") if path.is_file()}
    assert len(texts) > 20
    for name, text in texts.items():
        for telltale in TELLTALES:
            assert telltale not in text.lower(), (name, telltale)


def test_ids_are_uids_on_request(trained, hands, tmp_path):
    """For each command that takes images; without the option, the same folder is found under its files' names."""
    data = by_uid(as_dicom(hands, tmp_path / "data"))
    images, points, ages = data / "images", data / "points.csv", data / "ages.csv"
    uid = "--dicom-id", "uid"
    lines = [
        json.loads(line)
        for line in run("predict", trained.path, images, "--points", points, "--json", *uid).splitlines()
    ]
    assert [line["id"] for line in lines] == [uid_of(str(number)) for number in range(1001, 1013)]
    assert all(line["refused"] is None for line in lines)
    assert "no points for id IM0000" in run("predict", trained.path, images / "IM0000", "--points", points)
    assert "months" in run("predict", trained.path, images / "IM0000", "--points", points, *uid)
    run("locate", images, "--points", data / "found.csv", "--jobs", "1", *uid)
    found = read_points(data / "found.csv")
    assert len(found) >= 10 and all(case_id.startswith("1.2.826.0.1.") for case_id in found)
    assert "no image" in run("points", "check", points, "--images", images)
    assert "no image" not in run("points", "check", points, "--images", images, *uid)
    names = run("points", "export", points, "--format", "coco", "--images", images, "--out", data / "coco.json", *uid)
    assert "12 hands" in names and "IM0000" in (data / "coco.json").read_text()
    back = run("points", "import", data / "coco.json", "--images", images, "--out", data / "back.csv", *uid)
    assert "12 hands" in back and read_points(data / "back.csv").keys() == read_points(points).keys()
    given = ("--images", images, "--ages", ages, "--points", points)
    (data / "recipe.yaml").write_text(tiny().to_yaml())
    assert "no image for 12" in run("prepare", tmp_path / "run", *given, "--recipe", data / "recipe.yaml")
    assert "prepared: " in run("prepare", tmp_path / "run", *given, "--recipe", data / "recipe.yaml", *uid)
    assert "changed" not in run("verify", tmp_path / "run", *given, *uid)
    assert "no image" in run("verify", tmp_path / "run", *given)
    with dicom_ids("uid"):
        assert uid_of("1001") in Marking(images, data / "new.csv").images
    assert dicom_id() == "name"


def test_repeat_hands_the_choice_to_its_workers(hands, tmp_path):
    """A worker on another machine does not have this command's options; another choice is another study."""
    plan = [
        Repetition(
            tmp_path, tiny().to_yaml(), hands / "images", hands / "ages.csv", hands / "points.csv", dicom_id=kind
        )
        for kind in ("name", "uid")
    ]
    assert plan[0].key() != plan[1].key()
