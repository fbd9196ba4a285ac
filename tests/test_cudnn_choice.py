"""cuDNN's algorithms (scripts/caffe_cuda.h): which one is taken of what cuDNN lists, and how often cuDNN is asked.

A real list needs a GPU. The header is compiled against a stand-in for cuDNN, tests/pretended_cudnn, whose lists are
scripted here.
"""

from __future__ import annotations

import os
import re
import subprocess
from typing import NamedTuple

import pytest
from conftest import REPOSITORY

PRETENDED = REPOSITORY / "tests" / "pretended_cudnn"
VARIABLES = ("BONECAFFE_CUDNN", "BONECAFFE_CUDNN_EXCLUDE", "BONECAFFE_TF32", "GLOG_minloglevel")
LIMIT = 8 << 20
"""Caffe's, in bytes."""
WORKS, NOT_SUPPORTED = 0, 3000
DEFAULT, TENSOR_OP, CONVERSION, FMA = range(4)
FALLBACK = {"forward": 0, "filter": 1, "data": 1}


class Listed(NamedTuple):
    """An algorithm as cuDNN lists it."""

    algorithm: int
    status: int = WORKS
    memory: int = 0
    deterministic: int = 1
    math: int = DEFAULT


def lists(*algorithms: Listed, status: int = 0) -> str:
    return f"list {status} " + " ".join(str(number) for listed in algorithms for number in listed)


@pytest.fixture(scope="module")
def chooser(tmp_path_factory):
    """Runs commands (see choose.cpp) in a fresh process; gives its exit status, lines and stderr."""
    program = tmp_path_factory.mktemp("choose") / "choose"
    subprocess.run(
        [
            *("g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-DUSE_CUDNN", "-pthread"),
            *("-I", str(PRETENDED), "-I", str(REPOSITORY), str(PRETENDED / "choose.cpp"), "-o", str(program)),
        ],
        check=True,
    )
    clean = {name: value for name, value in os.environ.items() if name not in VARIABLES}

    def run(*commands: str, **variables: str) -> tuple[int, list[str], str]:
        done = subprocess.run(
            [str(program)],
            input="\n".join(commands) + "\n",
            env={**clean, **variables},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.returncode, done.stdout.splitlines(), done.stderr

    return run


@pytest.fixture
def chosen(chooser):
    """The number of the algorithm that is taken of a list, and what is written to stderr."""

    def choose(direction: str, *algorithms: Listed, sizes: str = "", status: int = 0, **variables: str):
        code, lines, stderr = chooser(
            f"sizes {sizes}", lists(*algorithms, status=status), f"ask {direction}", **variables
        )
        assert code == 0, stderr
        success, algorithm, _ = lines[0].split()
        assert success == "0"
        return int(algorithm), stderr

    return choose


DIRECTIONS = pytest.mark.parametrize("direction", ["forward", "filter", "data"])


@DIRECTIONS
def test_the_first_that_works_and_fits_is_taken(chosen, direction):
    """In cuDNN's order, the fastest first; the log names the choice by its number, by which it can be excluded."""
    algorithm, stderr = chosen(
        direction, Listed(5, NOT_SUPPORTED), Listed(4, memory=LIMIT + 1), Listed(3, memory=LIMIT), Listed(1)
    )
    assert algorithm == 3
    assert stderr == f"cuDNN: {direction} of 256x48x27x27 by 128x48x5x5, pad 2x2, stride 1x1: algorithm 3\n"


UNUSABLE = {
    "empty": ((), {}),
    "only NOT_SUPPORTED": ((Listed(0, NOT_SUPPORTED), Listed(4, NOT_SUPPORTED)), {}),
    "over the limit": ((Listed(4, memory=LIMIT + 1),), {}),
    "of a tensor core": ((Listed(1, math=TENSOR_OP), Listed(0, math=CONVERSION)), {}),
    "unknown numbers": ((Listed(8), Listed(-1)), {}),
    "cuDNN fails": ((Listed(4),), {"status": NOT_SUPPORTED}),
}


@DIRECTIONS
@pytest.mark.parametrize(("algorithms", "how"), UNUSABLE.values(), ids=UNUSABLE.keys())
def test_nothing_usable_is_a_warning_and_not_an_abort(chosen, direction, algorithms, how):
    """IMPLICIT_GEMM forward and algorithm 1 backward are taken; one line names the layer's shape."""
    algorithm, stderr = chosen(direction, *algorithms, **how)
    assert algorithm == FALLBACK[direction]
    assert stderr.count("\n") == 1
    assert f"warning: {direction} of 256x48x27x27 by 128x48x5x5, pad 2x2, stride 1x1: none of" in stderr
    assert f"within {LIMIT} bytes" in stderr and f"taking algorithm {algorithm}" in stderr


@DIRECTIONS
def test_without_a_list_the_workspace_decides(chosen, direction):
    """An algorithm that cuDNN refuses, or that wants too much, is passed over."""
    assert chosen(direction, sizes=f"0 {NOT_SUPPORTED} 0 1 {WORKS} {LIMIT + 1} 4 {WORKS} 100")[0] == 4


@pytest.mark.parametrize(
    ("direction", "excluded", "algorithm"),
    [("filter", "filter:1", 0), ("data", "data:1", 0), ("forward", "forward:0", 1), ("data", "data:0,1", 2)],
)
def test_the_fallback_respects_exclusions(chosen, direction, excluded, algorithm):
    """Backward algorithm 0 when 1 is excluded."""
    assert chosen(direction, BONECAFFE_CUDNN_EXCLUDE=excluded)[0] == algorithm


@DIRECTIONS
def test_deterministic_algorithms_come_first(chosen, direction):
    """Even if they are slower, unless BONECAFFE_CUDNN=fast. Without any, another is taken with a warning."""
    atomic, steady = Listed(0, deterministic=0), Listed(1)
    for variables, algorithm in (({}, 1), ({"BONECAFFE_CUDNN": "deterministic"}, 1), ({"BONECAFFE_CUDNN": "fast"}, 0)):
        found, stderr = chosen(direction, atomic, steady, **variables)
        assert found == algorithm and "warning" not in stderr
    found, stderr = chosen(direction, atomic, Listed(3, deterministic=0), steady._replace(memory=LIMIT + 1))
    assert found == 0 and "algorithm 0 is not deterministic" in stderr
    assert "warning" not in chosen(direction, atomic, BONECAFFE_CUDNN="fast")[1]


@DIRECTIONS
def test_tensor_cores_are_used_with_tf32_only(chooser, direction):
    """The descriptor gets the math type that is asked for, each time; half precision is never chosen."""
    everything = (Listed(5, math=CONVERSION), Listed(4, math=TENSOR_OP), Listed(3, math=FMA), Listed(1, math=DEFAULT))
    for variables, algorithm, math in (
        ({}, 3, FMA),
        ({"BONECAFFE_TF32": "0"}, 3, FMA),
        ({"BONECAFFE_TF32": "1"}, 4, TENSOR_OP),
    ):
        _, lines, _ = chooser(lists(*everything), f"ask {direction}", f"ask {direction}", **variables)
        assert lines == [f"0 {algorithm} {math}"] * 2


def test_excluded_algorithms_are_not_taken(chosen):
    """By number and direction; the others of that number stay."""
    excluded = "forward:6 filter:0,3  data:0"
    for direction, algorithms, algorithm in (
        ("forward", (6, 3, 0), 3),
        ("filter", (3, 0, 6), 6),
        ("data", (0, 3), 3),
    ):
        listed = [Listed(number) for number in algorithms]
        assert chosen(direction, *listed, BONECAFFE_CUDNN_EXCLUDE=excluded)[0] == algorithm


@pytest.mark.parametrize(
    ("name", "text", "evidence"),
    [
        ("BONECAFFE_CUDNN", "fastest", "fastest: expected fast or deterministic"),
        ("BONECAFFE_TF32", "yes", "yes: expected 1"),
        ("BONECAFFE_CUDNN_EXCLUDE", "backward:1", "'backward:1': expected forward:, filter: or data:"),
        ("BONECAFFE_CUDNN_EXCLUDE", "forward:1 6", "'6': expected forward:, filter: or data:"),
        ("BONECAFFE_CUDNN_EXCLUDE", "forward", "'forward': expected forward:, filter: or data:"),
        ("BONECAFFE_CUDNN_EXCLUDE", "forward:", "'forward:': algorithms of forward are 0 to 7"),
        ("BONECAFFE_CUDNN_EXCLUDE", "filter:0,", "'filter:0,': algorithms of filter are 0 to 6"),
        ("BONECAFFE_CUDNN_EXCLUDE", "filter:0,,1", "'filter:0,,1': algorithms of filter are 0 to 6"),
        ("BONECAFFE_CUDNN_EXCLUDE", "data:6", "'data:6': algorithms of data are 0 to 5"),
        ("BONECAFFE_CUDNN_EXCLUDE", "data:-1", "'data:-1': algorithms of data are 0 to 5"),
        ("BONECAFFE_CUDNN_EXCLUDE", "data:4294967296", "'data:4294967296': algorithms of data are 0 to 5"),
        ("BONECAFFE_CUDNN_EXCLUDE", "data:0,1,2,3,4,5", "leaves no algorithm of data"),
    ],
)
def test_a_wrong_variable_is_one_error_with_its_name(chooser, name, text, evidence):
    """Exit 1 before anything is computed, without a core dump, and an example of what is right."""
    code, lines, stderr = chooser(lists(Listed(1)), "ask forward", **{name: text}, GLOG_minloglevel="3")
    assert (code, lines) == (1, [])
    assert stderr.startswith(f"cuDNN: {name}") and evidence in stderr and stderr.count("\n") == 1


def test_cudnn_is_asked_once_per_shape(chooser):
    """Each change of what the answer depends on asks once more; going back does not. Warnings come once, too."""
    ask = ["ask forward", "ask filter", "ask data"]
    commands = [lists(Listed(4)), *ask * 15, "asked"]
    places = {"n": 2, "c": 3, "h": 13, "k": 96, "kernel": 3, "pad": 1, "stride": 2, "limit": 0, "device": 1}
    for name, value in places.items():
        commands += [f"set {name} {value}", *ask * 2, "asked"]
    commands += ["set device 0", "set n 256", "set c 48", "set h 27", "set k 128", "set kernel 5", "set pad 2"]
    commands += ["set stride 1", f"set limit {LIMIT}", *ask, "asked"]
    _, lines, _ = chooser(*commands)
    assert [line for line in lines if line.count(" ") == 1] == [f"{3 * (i + 1)} 0" for i in range(10)] + ["30 0"]
    _, lines, stderr = chooser(lists(), *ask * 15, "asked")
    assert lines[-1].startswith("3 ") and stderr.count("warning") == 3


def test_an_answer_stays_though_the_list_changes(chooser):
    """Which is how the same training takes the same algorithm in each iteration."""
    _, lines, _ = chooser(lists(Listed(4)), "ask data", lists(Listed(1)), "ask data")
    assert lines == [f"0 4 {FMA}"] * 2


def test_threads_get_one_answer(chooser):
    """One thread per GPU asks at the same time."""
    _, lines, stderr = chooser(lists(Listed(4)), "threads 16", "asked")
    assert lines == [f"0 4 {FMA}"] * 16 + ["1 0"] and stderr.count("\n") == 1


def test_a_broken_descriptor_is_reported_to_caffe(chooser):
    """cuDNN's own status, which Caffe's check then prints; no list is asked for."""
    assert chooser("set n 0", lists(Listed(4)), "ask forward", "asked")[1] == [f"2000 -1 {FMA}", "0 0"]


def test_choices_are_shown_where_caffe_logs(chooser):
    """Not in pycaffe under bonecaffe (level 2); at level 1 warnings are left."""
    for level, shown in (("0", 2), ("1", 1), ("2", 0)):
        _, _, stderr = chooser(lists(Listed(4)), "ask data", lists(), "ask filter", GLOG_minloglevel=level)
        assert stderr.count("\n") == shown


def test_every_variable_is_documented():
    """In docs/guide/gpu.md, the one place."""
    names = set(re.findall(r"BONECAFFE_[A-Z0-9_]+", (REPOSITORY / "scripts" / "caffe_cuda.h").read_text()))
    guide = (REPOSITORY / "docs" / "guide" / "gpu.md").read_text()
    assert names == {"BONECAFFE_CUDNN", "BONECAFFE_CUDNN_EXCLUDE", "BONECAFFE_TF32"}
    assert all(f"`{name}" in guide for name in names)
