"""The command line as its users meet it: complete help, clear errors, exit codes."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import REPOSITORY, edit_table, tiny

from bonecaffe import __version__
from bonecaffe.cli import main

VERBS = list(main.commands)


def bonecaffe(*arguments, code=0):
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exit_code == code, done.output
    return done


@pytest.mark.parametrize("verb", VERBS)
def test_help_is_complete(verb):
    """The help of every verb has a sentence for it and for each of its options."""
    output = bonecaffe(verb, "--help").output
    assert len(output.splitlines()[2].strip()) > 20
    for parameter in main.commands[verb].params:
        if parameter.param_type_name == "option" and parameter.name != "help":
            assert parameter.help, f"{verb} {parameter.name}"


def test_readme_names_every_verb_and_target():
    """Users find each command in the README or in the index of documents; these name no command that does not exist."""
    readme = (REPOSITORY / "README.md").read_text() + (REPOSITORY / "docs" / "README.md").read_text()
    makefile = (REPOSITORY / "Makefile").read_text()
    for verb in VERBS:
        assert f"bonecaffe {verb}" in readme or f"make {verb}" in readme, verb
    for target in re.findall(r"`?make ([a-z-]+)", readme):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    promised = re.findall(r"(?m)(?:bin/|`|^ +)bonecaffe ([a-z-]+)", readme)
    assert len(promised) > 5
    for verb in promised:
        assert verb in VERBS, verb


def test_the_whole_work_by_command(hands, tmp_path):
    """prepare, prototxt, train, evaluate, predict, repro: each once, by its command."""
    run = tmp_path / "run"
    (tmp_path / "tiny.yaml").write_text(tiny(solver__max_iter=4).to_yaml())
    data = ("--images", hands / "images", "--ages", hands / "ages.csv", "--points", hands / "points.csv")
    assert (
        "8 hands for training, 4 for test"
        in bonecaffe("prepare", run, *data, "--recipe", tmp_path / "tiny.yaml").output
    )
    assert "nothing changed" in bonecaffe("prepare", run, *data).output
    assert "train_val.prototxt" in bonecaffe("prototxt", run).output
    assert "finished at iteration 4" in bonecaffe("train", run).output
    assert "already trained" in bonecaffe("train", run).output
    output = bonecaffe("evaluate", run).output
    assert "18.9" in output and output.strip().endswith("report.html")
    image = sorted((hands / "images").glob("*.png"))[0]
    line = bonecaffe("predict", run, image, "--points", hands / "points.csv").output
    assert re.fullmatch(r".*1001\.png\t-?\d+\.\d months\n", line)
    facts = json.loads(bonecaffe("predict", run, image, "--points", hands / "points.csv", "--json").output)
    assert facts["id"] == "1001" and f"{facts['months']:.1f} months" in line
    assert "solver.max_iter" in bonecaffe("repro", run).output


def test_split_options_are_declared_departures(hands, tmp_path):
    """--train, --test and --seed change the recipe of the run, with the reason; the test pass is fitted."""
    run = tmp_path / "run"
    bonecaffe(
        "prepare",
        run,
        "--images",
        hands / "images",
        "--ages",
        hands / "ages.csv",
        "--points",
        hands / "points.csv",
        "--train",
        5,
        "--test",
        3,
        "--seed",
        9,
    )
    output = bonecaffe("repro", run).output
    assert "prepare --train 5" in output and "prepare --seed 9" in output and "solver.test_iter" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "{tmp}/none"], "not a prepared run"),
        (["evaluate", "{tmp}/none"], "no such folder, so this is not a prepared run"),
        (["repro", "{tmp}/none"], "not a prepared run"),
        (["prototxt", "--out", "{tmp}/p", "--recipe", "none"], "neither a file nor one of"),
        (
            ["prepare", "{tmp}/run", "--images", "{tmp}", "--ages", "{tmp}/none.csv", "--points", "{tmp}/none.csv"],
            "no such file",
        ),
        (["predict", "{tmp}/none", "{tmp}/a.png", "--points", "{tmp}/none.csv"], "no such file"),
    ],
)
def test_expected_failures_exit_1_with_a_sentence(arguments, message, tmp_path):
    """No traceback, nothing made."""
    done = bonecaffe(*[argument.replace("{tmp}", str(tmp_path)) for argument in arguments], code=1)
    assert message in done.output and "Traceback" not in done.output
    assert list(tmp_path.iterdir()) == []


def test_bad_row_by_command(own_hands, tmp_path):
    """The file, the row and the remedy reach the user."""
    edit_table(own_hands / "ages.csv", boneage="126.5")
    done = bonecaffe(
        "prepare",
        tmp_path / "run",
        "--images",
        own_hands / "images",
        "--ages",
        own_hands / "ages.csv",
        "--points",
        own_hands / "points.csv",
        "--recipe",
        "smoke",
        code=1,
    )
    assert "1001 (126.5)" in done.output and not (tmp_path / "run").exists()


def test_a_bug_exits_3_with_its_traceback_in_a_file(monkeypatch, tmp_path):
    """A bug in bonecaffe is distinguished from what the user can fix."""
    from bonecaffe.run import RunDir

    def broken(self):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(RunDir, "recipe", broken)
    done = bonecaffe("repro", tmp_path, code=3)
    path = re.search(r"The traceback is in (\S+)\.$", done.output.strip()).group(1)
    with open(path) as file:
        assert "ZeroDivisionError: a bug" in file.read()


def test_doctor_finds_what_is_here():
    """Exit 0 on a machine where these tests run; every finding has a state; JSON for scripts."""
    findings = json.loads(bonecaffe("doctor", "--json").output)
    assert {"Caffe", "convert_imageset", "pycaffe", "BLAS"} <= {finding["what"] for finding in findings}
    assert not [finding for finding in findings if finding["state"] == "missing"]
    assert "1.0.0" in bonecaffe("doctor").output


def test_doctor_names_the_optional_part_for_dicom(monkeypatch):
    """Absent is not missing: most runs need none of it."""
    from bonecaffe.caffe import environment
    from bonecaffe.doctor import examine

    found = {each.what: each for each in examine()}["DICOM"]
    assert found.state == "ok" and "pydicom" in found.found
    version_of = environment.version_of
    monkeypatch.setattr(environment, "version_of", lambda name: None if name == "pylibjpeg" else version_of(name))
    found = {each.what: each for each in examine()}["DICOM"]
    assert found.state == "absent" and found.found == "not installed: pylibjpeg" and "[dicom]" in found.remedy


def test_doctor_exits_1_without_caffe(monkeypatch, tmp_path):
    """And names the command that fixes it."""
    from bonecaffe.caffe import installation

    monkeypatch.setenv("CAFFE_ROOT", str(tmp_path))
    done = bonecaffe("doctor", code=1)
    assert "make setup" in done.output
    monkeypatch.delenv("CAFFE_ROOT")
    monkeypatch.setattr(installation, "NOTE", tmp_path / "none.json")
    monkeypatch.setattr(installation.shutil, "which", lambda name: None)
    assert "make setup" in bonecaffe("doctor", code=1).output


def test_doctor_sees_a_package_that_does_not_import(tmp_path):
    """opencv-python on a system without X's libraries: installed, and of no use. (A stand-in module.)"""
    (tmp_path / "cv2.py").write_text("raise ImportError('libxcb.so.1: cannot open shared object file')\n")
    done = subprocess.run(
        [sys.executable, "-m", "bonecaffe", "doctor", "--json"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{REPOSITORY}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and done.stderr == ""
    (missing,) = (finding for finding in json.loads(done.stdout) if finding["state"] == "missing")
    assert missing["what"] == "opencv-python" and "does not import: libxcb.so.1: cannot open" in missing["found"]
    assert "pip install --force-reinstall --no-deps opencv-python-headless==" in missing["remedy"]


def test_predict_one_script(trained, hands):
    """scripts/predict_one.py: one radiograph, one number."""
    image = sorted((hands / "images").glob("*.png"))[0]
    done = subprocess.run(
        [sys.executable, REPOSITORY / "scripts" / "predict_one.py", trained.path, image, hands / "points.csv"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"-?\d+\.\d\n", done.stdout)


def test_fetch_script_fails_with_a_message(tmp_path):
    """Without a network: one sentence, exit 1, no partial file; a wrong file is refused by its sha1."""
    command = [
        sys.executable,
        str(REPOSITORY / "scripts" / "fetch_caffenet.py"),
        "--out",
        str(tmp_path / "w.caffemodel"),
        "--url",
    ]
    (tmp_path / "wrong").write_bytes(b"not the weights")
    for url, message in (
        ("http://127.0.0.1:9/none", "could not be downloaded"),
        ((tmp_path / "wrong").as_uri(), "sha1"),
    ):
        done = subprocess.run([*command, url], capture_output=True, text=True, check=False)
        assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr
        assert not (tmp_path / "w.caffemodel").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["wrong"]


def test_fetch_script_keeps_the_right_file(tmp_path, monkeypatch, capsys):
    """The right file goes into a folder that is made for it, and is not downloaded again."""
    spec = importlib.util.spec_from_file_location("fetch_caffenet", REPOSITORY / "scripts" / "fetch_caffenet.py")
    fetch = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fetch)
    content = bytes(range(256)) * 10_000  # several pieces
    (tmp_path / "source").write_bytes(content)
    monkeypatch.setattr(fetch, "STOCK_SHA1", hashlib.sha1(content).hexdigest())
    out = tmp_path / "cache" / "w.caffemodel"
    for url in ((tmp_path / "source").as_uri(), "http://127.0.0.1:9/none"):
        monkeypatch.setattr(sys, "argv", ["fetch_caffenet.py", "--out", str(out), "--url", url])
        assert fetch.main() == 0
        assert capsys.readouterr() == (f"{out}\n", "")
        assert out.read_bytes() == content
    assert [path.name for path in out.parent.iterdir()] == ["w.caffemodel"]


def test_the_package_is_found_from_the_parent_of_its_clone(tmp_path):
    """There, a folder bonecaffe is in the current one, which Python looks into first; it is no package."""
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert settings["package-dir"] == {"": "."}  # what the form of an editable install depends on
    if list(Path(sysconfig.get_path("purelib")).glob("__editable___bonecaffe*_finder.py")):
        pytest.skip("installed before that was so; `make setup` installs it again")
    (tmp_path / "bonecaffe" / "bonecaffe").mkdir(parents=True)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    for command in (
        ["-c", "import bonecaffe; bonecaffe.Predictor; print(bonecaffe.__version__)"],
        ["-m", "bonecaffe", "--version"],
    ):
        done = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert __version__ in done.stdout


def test_a_folder_of_our_name_where_it_is_called(tmp_path):
    """The current folder holds a clone named bonecaffe; worker processes must not take it for the package."""
    (tmp_path / "bonecaffe").mkdir()
    program = shutil.which("bonecaffe", path=str(Path(sys.executable).parent))
    command = [program, "phantom", "out", "--count", "9", "--size", "200x260"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "out" / "images").iterdir())) == 9
