"""Edits of Caffe's source (scripts/caffe_edits.py, caffe_parallel.py), run by themselves: CMake's and the program's."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from conftest import REPOSITORY

import caffe_edits
import caffe_parallel
from bonecaffe import files
from bonecaffe.caffe import installation, programs
from builder import inputs

# ---- versions in cmake/Cuda.cmake ----------------------------------------------------------------------------------


def passage(text: str) -> caffe_edits.Edit:
    """The one edit of Cuda.cmake whose old form has this text."""
    (found,) = [edit for edit in caffe_edits.EDITS if edit.file == caffe_edits.CUDA_CMAKE and text in edit.old]
    return found


def cmake(tmp_path: Path, script: str) -> tuple[int, str]:
    """Run a CMake script; its exit status and what it printed."""
    path = tmp_path / "script.cmake"
    path.write_text("cmake_minimum_required(VERSION 3.18)\n" + script)
    done = subprocess.run(["cmake", "-P", str(path)], capture_output=True, text=True, check=False, timeout=60)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("major", "accepted"),
    [("", False), ("2", False), ("3", True), ("7", True), ("9", True), ("10", True), ("12", True)],
)
def test_cudnn_10_is_not_older_than_3(tmp_path, major, accepted):
    """Caffe compared the two as text."""
    edit = passage("cuDNNVersionIncompatible")
    rest = '      message(FATAL_ERROR "cuDNN version >3 is required.")\n    endif()\n'
    code, output = cmake(tmp_path, f'set(CUDNN_VERSION_MAJOR "{major}")\n{edit.new}{rest}')
    assert (code == 0) == accepted and ("is required" in output) != accepted


@pytest.mark.parametrize(
    ("cuda", "asked", "compiled"),
    [
        ("13.0", "75;90;120", "75;90;120"),
        ("12.8", "120", "120"),
        ("13.0", "20;21(20);120", "120"),
        ("9.0", "20;21(20);50;61", "50;61"),
        ("8.0", "20;21(20);50", "20;21(20);50"),
        ("13.0", "", ""),
    ],
)
def test_the_capability_20_is_left_out_and_120_is_not(tmp_path, cuda, asked, compiled):
    """CUDA 9 dropped capability 2.0. As text, CUDA 13 was older than 9, and 120 without 20 was 1."""
    edit = passage("iscudaolderthan90")
    script = (
        f'set(CUDA_VERSION "{cuda}")\nset(__cuda_arch_bin "{asked}")\n{edit.new}message("[${{__cuda_arch_bin}}]")\n'
    )
    assert cmake(tmp_path, script) == (0, f"[{compiled}]\n")


@pytest.mark.parametrize(
    ("found", "capabilities"),
    [("2.1", "2.1(2.0)"), ("2.1 6.1", "2.1(2.0) 6.1"), ("12.1", "12.1"), ("6.1 12.1 2.1", "6.1 12.1 2.1(2.0)")],
)
def test_the_capability_21_is_not_found_in_121(tmp_path, found, capabilities):
    """The capabilities that CMake finds by itself are a list with spaces."""
    edit = passage('"2.1(2.0)"')
    assert cmake(tmp_path, f'set(__nvcc_out "{found}")\n{edit.new}message("${{__nvcc_out}}")\n') == (
        0,
        f"{capabilities}\n",
    )


# ---- `caffe` started directly ------------------------------------------------------------------------------------

MAIN = """
#include <cstdio>

int main(int argc, char** argv) {
#ifdef BONECAFFE_WAIT_BRIEFLY
  wait_briefly(argv);
#endif
  for (int i = 0; i < argc; ++i) printf("[%s]", argv[i]);
  printf(" %s %d\\n", getenv("GOMP_SPINCOUNT") ? getenv("GOMP_SPINCOUNT") : "unset", static_cast<int>(getpid()));
  fflush(stdout);
  if (getenv("WAIT")) pause();
}
"""
STAND_IN = "#include <cstdlib>\n#include <unistd.h>\n" + caffe_parallel.WAIT_BRIEFLY + MAIN


def clean() -> dict[str, str]:
    return {name: text for name, text in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """The passage in a small program that prints its arguments, the variable and its id: with OpenMP and without."""
    folder = tmp_path_factory.mktemp("program")
    (folder / "main.cpp").write_text(STAND_IN)
    built = {}
    for name, flags in (("caffe", ["-DBONECAFFE_WAIT_BRIEFLY"]), ("plain", [])):
        built[name] = folder / name
        subprocess.run(
            ["g++", "-Wall", "-Werror", *flags, str(folder / "main.cpp"), "-o", str(built[name])], check=True
        )
    return built


def output_of(*command: object, **variables: str) -> str:
    environment = {**clean(), **variables}
    return subprocess.check_output([str(part) for part in command], env=environment, text=True, timeout=20)


def test_the_program_starts_itself_once_more(compiled):
    """With the same arguments, process id and name, and the value that bonecaffe sets."""
    value = programs.UNLESS_SET["GOMP_SPINCOUNT"]
    process = subprocess.Popen(
        ["caffe", "two words", ""],
        executable=compiled["caffe"],
        env={**clean(), "WAIT": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == f"[caffe][two words][] {value} {process.pid}\n"
        assert Path(f"/proc/{process.pid}/comm").read_text() == "caffe\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == -signal.SIGINT
    finally:
        process.kill()
        process.stdout.close()


@pytest.mark.parametrize(("name", "shown"), [("GOMP_SPINCOUNT", "7"), ("OMP_WAIT_POLICY", "unset")])
def test_what_the_user_set_stays(compiled, name, shown):
    """Either variable decides how long OpenMP's threads wait."""
    assert f" {shown} " in output_of(compiled["caffe"], **{name: "7" if shown == "7" else "active"})


def test_a_build_with_caffes_own_loops_is_as_it_was(compiled):
    """FAST=0 defines nothing, so the passage is empty; only the build with OpenMP defines it."""
    assert " unset " in output_of(compiled["plain"])
    (edit,) = [edit for edit in caffe_parallel.EDITS if edit[0] == caffe_parallel.PROGRAM_BUILD]
    assert "if(USE_OPENMP)\n      target_compile_definitions(${name} PRIVATE BONECAFFE_WAIT_BRIEFLY)" in edit[2]


def test_a_program_without_its_file_goes_on(compiled, tmp_path):
    """Removed or moved while it starts, or without /proc, it has no path; it is slower then, and does not end."""
    program = shutil.copy(compiled["caffe"], tmp_path / "caffe")
    source = tmp_path / "gone.c"
    source.write_text("#include <sys/types.h>\nssize_t readlink(const char *a, char *b, size_t c) { return -1; }\n")
    subprocess.run(["gcc", "-shared", "-fPIC", str(source), "-o", str(tmp_path / "gone.so")], check=True)
    assert " unset " in output_of(program, LD_PRELOAD=str(tmp_path / "gone.so"))
    descriptor = os.open(program, os.O_RDONLY)
    try:
        os.unlink(program)
        done = subprocess.run(
            ["caffe"],
            executable=f"/proc/self/fd/{descriptor}",
            pass_fds=[descriptor],
            env=clean(),
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    finally:
        os.close(descriptor)
    assert done.stdout.startswith("[caffe] unset ")


def test_a_program_started_by_the_loader_goes_on(compiled):
    """/proc/self/exe is then the loader, which takes no arguments of Caffe's; a relocated Caffe may start like this."""
    shown = output_of("readelf", "-l", compiled["caffe"])
    loader = shown.split("interpreter: ")[1].split("]")[0]
    assert output_of(loader, compiled["caffe"], "train").startswith(f"[{compiled['caffe']}][train] ")


NET = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 4 dim: 3 dim: 224 dim: 224 } } }
layer {
  name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 32 kernel_size: 5 weight_filler { type: "xavier" } }
}
"""


def test_a_running_caffe_has_the_variable(tmp_path):
    """The real program, started by hand as the paper does: /proc shows what libgomp read. SIGINT ends it."""
    caffe = installation.find()
    current = files.sha256(b"".join((REPOSITORY / "scripts" / name).read_bytes() for name in inputs.EDITS))
    if caffe.build.get("edits_sha256") != current:
        pytest.skip("a Caffe that was not built here with these edits")
    (tmp_path / "net.prototxt").write_text(NET)
    command = [str(caffe.program("caffe")), "time", "-model", "net.prototxt", "-iterations", "100000"]
    log = tmp_path / "log"
    parallel = "-DUSE_OPENMP=ON" in caffe.build["flags"]
    with log.open("wb") as stderr:
        process = subprocess.Popen(command, cwd=tmp_path, env=clean(), stderr=stderr, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while "Forward" not in log.read_text() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert process.poll() is None, log.read_text()
        environment = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
        assert (b"GOMP_SPINCOUNT=1000" in environment) == parallel
        assert Path(f"/proc/{process.pid}/comm").read_text() == "caffe\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == -signal.SIGINT
    finally:
        process.kill()
