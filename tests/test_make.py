"""The Makefile: a user's values reach the command unchanged; errors under make name the make variable."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

from bonecaffe.cli import main, make

MAKEFILE = REPOSITORY / "Makefile"
ODD = [
    "a b",
    "two  blanks",
    'a "quoted" name',
    "it's",
    "`id`",
    "a;b&c|d<e>f*?[g]{h}~#!\\",
    "-x",
    "$HOME $(HOME) ${HOME} $x",
    "é ü",
]
OF_TARGET = {  # which variables a target passes on, each as one word after its option
    "annotate": {"IMAGES": "", "POINTS": "--points", "SUGGEST": "--suggest", "DICOM_ID": "--dicom-id"},
    "locate": {"IMAGES": "", "POINTS": "--points", "SHEET": "--sheet", "DICOM_ID": "--dicom-id"},
    "prepare": {
        "RUN": "",
        **{
            name: f"--{name.lower()}"
            for name in ("IMAGES", "AGES", "POINTS", "RECIPE", "TRAIN", "TEST", "SEED", "SPLIT", "LABELS", "ORIGIN")
        },
        "TEST_AGES": "--test-ages",
        "DICOM_ID": "--dicom-id",
    },
    "train": {"RUN": "", "WEIGHTS": "--weights", "GPU": "--gpu"},
    "evaluate": {"RUN": ""},
    "predict": {"RUN": "", "POINTS": "--points", "DICOM_ID": "--dicom-id"},
    "demo": {"DEMO": ""},
    "gpu-check": {"GPU": "--gpu"},
}


@pytest.fixture
def clone(tmp_path) -> Path:
    """A folder with the Makefile, and programs that print the words they were called with. (Stand-ins.)"""
    folder = tmp_path / "clone"
    for name, script in (
        (
            "scripts/setup.sh",
            'printf "GPU <%s> FAST <%s> SOURCE <%s>\\n" "$BONECAFFE_GPU" "$BONECAFFE_FAST" "$CAFFE_SOURCE"',
        ),
        ("scripts/sweep_tests.sh", 'printf "%s\\n" "$@"'),
        (".venv/bin/bonecaffe", '[ "$BONECAFFE_MAKE" = 1 ] && printf "%s\\0" "$@" && printf "\\n\\0"'),
        (".venv/bin/python", 'printf "%s\\0" "$@"'),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    shutil.copy(MAKEFILE, folder)
    return folder


def made(clone, *arguments, **environment) -> list[str]:
    """The words that the programs were called with."""
    clean = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG", "LC_ALL")}
    done = subprocess.run(
        ["make", "--silent", *arguments],
        cwd=clone,
        env={**clean, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split("SOURCE <>\n", 1)[1].split("\0")


@pytest.mark.parametrize("value", ODD)
@pytest.mark.parametrize("target", OF_TARGET)
def test_every_value_reaches_the_command_as_it_is(clone, target, value):
    """Blanks, quotes, $ and other characters special to a shell or make; on the command line and in the environment."""
    variables = OF_TARGET[target]
    other = {name: f"{value}{number}" for number, name in enumerate(variables)}
    for given, environment in (([f"{name}={text}" for name, text in other.items()], {}), ([], other)):
        if environment and target == "demo":
            continue  # the demo's folder, which `make clean` removes, is not taken from the environment
        words = made(clone, target, *given, **environment)
        for name, option in variables.items():
            if option:
                assert words[words.index(option) + 1] == other[name], (name, words)
            else:
                assert other[name] in words, (name, words)


def test_two_dollars_are_one(clone):
    """As everywhere in make, so both ways of writing a dollar work."""
    assert "a $b" in made(clone, "evaluate", "RUN=a $$b")
    assert "a $b" in made(clone, "evaluate", "RUN=a $b")


def test_switches_and_lists(clone):
    """GPU=cpu, RESUME=1, FULL=1, ONLY with several words; what is not given is not passed on."""
    assert made(clone, "train", "GPU=cpu", "RESUME=1")[:4] == ["train", "runs/paper", "--cpu", "--resume"]
    assert made(clone, "train")[:3] == ["train", "runs/paper", "\n"]
    assert made(clone, "train", GPU="0,1")[2:4] == ["--gpu", "0,1"]
    script = "scripts/gpu_check.py"
    assert made(clone, "gpu-check", "GPU=cpu")[:5] == [script, "--work", "runs/gpu-check", "--cpu", "--quick"]
    words = made(clone, "gpu-check")  # the phantoms are made first
    assert words[:4] == [script, "prepare", "--out", "runs/gpu-check-data.tar.xz"] and "--gpu" not in words
    assert words[4:9] == [script, "--work", "runs/gpu-check", "--data", "runs/gpu-check-data.tar.xz"]
    (clone / "runs" / "gpu-check-data.tar.xz").touch()
    assert "prepare" not in made(clone, "gpu-check", "GPU=1")
    assert made(clone, "bench", "ONLY=prepare it's")[:4] == ["-m", "scripts.bench", "prepare", "it's"]
    done = subprocess.run(
        ["make", "caffe", 'GPU=a "b"', "FAST=it's", "CAFFE_SOURCE=c $d"],
        cwd=clone,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == 'GPU <a "b"> FAST <it\'s> SOURCE <c $d>\n'


def test_images_to_predict_are_one_file_or_several(clone):
    """A file with blanks by its name; several as in a shell: blanks between, patterns, quotes."""
    for name in ("a b.png", "c.png", "it's.png"):
        (clone / name).touch()

    def images(given):
        words = made(clone, "predict", f"IMAGES={given}", "RUN=r")
        return words[2 : words.index("\n")]

    assert images("a b.png") == ["a b.png"] and images("it's.png") == ["it's.png"]
    assert images("c.png a.png") == ["c.png", "a.png"]
    assert images("*.png") == ["a b.png", "c.png", "it's.png"]
    assert images("'a b.png' c.png") == ["a b.png", "c.png"] == images('"a b.png" c.png')
    assert images("none.png") == ["none.png"]


def test_folders_to_prepare_are_one_or_several(clone):
    """A folder with blanks by its name; several as in a shell, if all exist; else the whole text, for the error."""
    for name in ("a b", "c", "it's", "d"):
        (clone / name).mkdir()

    def folders(given):
        words = made(clone, "prepare", f"IMAGES={given}", "RUN=r", "AGES=a")
        given_words = words[2 : words.index("--ages")]
        assert set(given_words[::2]) == {"--images"}
        return given_words[1::2]

    assert folders("a b") == ["a b"] and folders("it's") == ["it's"] and folders("c") == ["c"]
    assert folders("c d") == ["c", "d"] and folders("?") == ["c", "d"]
    assert folders("'a b' c") == ["a b", "c"] == folders('"a b" c')
    assert folders("c none") == ["c none"] and folders("none") == ["none"]
    touched = clone / "touched"
    for harmful in (f"c `touch {touched}`", f"c; touch {touched}", f'"c" "`touch {touched}`"', f"c 'd' > {touched}"):
        assert folders(harmful) == [harmful] and not touched.exists()


def test_dry_run_shows_what_would_be_called(clone):
    """`make -n`: the values are in it, and each line is one of the shell."""
    shown = subprocess.check_output(["make", "-n", "clean", "DEMO=it's a demo"], cwd=clone, text=True)
    assert shlex.split(shown) == ["rm", "-rf", "--", "it's a demo", "it's a demo-data"]


def test_a_variable_that_no_target_reads_is_refused(clone):
    """A typo would otherwise be ignored: `make train GPUS=0` would start on the CPU. The environment may hold any."""
    done = subprocess.run(
        ["make", "-n", "train", "RUN=a b", "GPUS=0"], cwd=clone, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "no target reads GPUS;" in done.stderr and not done.stdout
    assert subprocess.check_output(["make", "-n", "clean"], cwd=clone, env={**os.environ, "GPUS": "0"})


def test_clean_removes_the_demo_alone(clone):
    """Whatever its name."""
    for name in ("a demo", "a demo-data", "demo", "a"):
        (clone / name).mkdir()
    subprocess.run(["make", "clean", "DEMO=a demo"], cwd=clone, check=True, capture_output=True)
    assert {"demo", "a"} <= {path.name for path in clone.iterdir()} and not (clone / "a demo").exists()


# ---- errors under make -------------------------------------------------------------------------------------------


def test_every_option_that_make_passes_on_has_its_variable():
    """And is an option of a verb; and every variable of the Makefile that is one is explained."""
    text = MAKEFILE.read_text()
    passed = dict(re.findall(r"\$\(call option,(--[a-z-]+),([A-Z_]+)\)", text))
    passed |= dict(re.findall(r"(--[a-z-]+) \$\(call quoted,([A-Z]+)\)", text.split("annotate: setup")[1]))
    assert len(passed) >= 13
    assert {option: f"{name}=" for option, name in passed.items()}.items() <= make.VARIABLES.items()
    assert 'for each do set -- "$$@" --images "$$each"' in text  # several folders, by a loop
    not_so = {"--images", "--cpu", "--resume", "--ages-in-years", "--ages-in-months"}
    assert set(make.VARIABLES) - set(passed) == not_so
    options = {name for verb in main.commands.values() for one in verb.params for name in one.opts}
    assert set(make.VARIABLES) <= options


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["train", "{run}"], 1, "WEIGHTS= for --weights"),
        (["train", "{run}", "--cpu", "--gpu", "0"], 1, "GPU=cpu for --cpu, GPU= for --gpu"),
        (["predict", "{run}"], 2, ""),
        (["prepare", "{run}"], 2, "IMAGES= for --images"),
        (["prepare", "{run}", "--train", "x", "--images", "a"], 2, "TRAIN= for --train"),
        (["evaluate", "{run}/none"], 1, "RUN= for another run"),
        (["runs", "{run}/none"], 1, ""),
    ],
)
def test_errors_under_make_name_the_variable(prepared, tmp_path, arguments, code, expected, monkeypatch):
    """Together with the option, which documentation and Python callers use; without make the option alone."""
    run = shutil.copytree(prepared.path, tmp_path / "run")
    recipe = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(recipe.replace("value: none, reason", "value: given, reason"))
    command = [sys.executable, "-m", "bonecaffe", *(argument.replace("{run}", str(run)) for argument in arguments)]
    monkeypatch.delenv(make.IS_UNDER_MAKE, raising=False)
    alone = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False)
    monkeypatch.setenv(make.IS_UNDER_MAKE, "1")
    under = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert alone.returncode == under.returncode == code, alone.stderr
    assert "nder make" not in alone.stderr
    if expected:
        assert under.stderr.rstrip().endswith(f"{expected}.") and alone.stderr.strip() in under.stderr
    else:
        assert under.stderr == alone.stderr


@pytest.mark.parametrize("way", ["environment", "command line"])
def test_python_of_the_user_reaches_setup(clone, way):
    """`PYTHON` names the Python for .venv; the targets call the one in .venv."""
    (clone / "scripts" / "setup.sh").write_text('#!/bin/sh\necho "PYTHON <$PYTHON>"; echo "SOURCE <>"\n')
    arguments = (["PYTHON=/opt/py thon"], {}) if way == "command line" else ([], {"PYTHON": "/opt/py thon"})
    done = subprocess.run(
        ["make", "--silent", "setup", *arguments[0]],
        cwd=clone,
        env={"PATH": os.environ["PATH"], **arguments[1]},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "PYTHON </opt/py thon>" in done.stdout
    assert "-m" in made(clone, "smoke", *arguments[0], **arguments[1])
