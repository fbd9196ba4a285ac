"""GPUs, simulated where there are none: what nvidia-smi is asked, and what is refused before Caffe would abort."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import prepare_run

from bonecaffe import doctor
from bonecaffe.caffe import fatal, gpu_libraries, gpus, installation, programs
from bonecaffe.caffe.arithmetic import Arithmetic
from bonecaffe.errors import CaffeError
from bonecaffe.network import definitions
from bonecaffe.recipe import Recipe
from bonecaffe.records import Attempt, Host, Launch, MadeWith
from bonecaffe.training import launch, preflight


class GpuCaffe:
    """What a Caffe built with CUDA would report."""

    origin, has_gpu, has_nccl, has_cudnn, is_own_build = "a pretended GPU build", True, True, True, True
    libraries, blas = {}, "unknown"
    build = {"gpu": "CUDA 13.0, cuDNN 9; compute capability 75 86"}  # noqa: RUF012


@pytest.fixture
def smi(tmp_path, monkeypatch):
    """Puts a program nvidia-smi on PATH that lists the given GPUs; there is a driver, and a Caffe with CUDA."""
    real = installation.find()
    for name in ("python", "program"):  # everything else is the real Caffe's
        monkeypatch.setattr(GpuCaffe, name, getattr(real, name), raising=False)
    monkeypatch.setattr(installation, "find", lambda: GpuCaffe)
    monkeypatch.setattr(gpus, "_DRIVERS", (Path("/proc"),))
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def lists(*lines, code=0):
        program = tmp_path / "nvidia-smi"
        whole = [
            line if line.count(",") == 4 else f"{line}, {line.rpartition(', ')[2]}" for line in lines
        ]  # all is free
        shown = "\n".join(f"{line}, GPU-{number:04}-and-more" for number, line in enumerate(whole))
        program.write_text(f"#!/bin/sh\ncat <<'END'\n{shown}\nEND\nexit {code}\n")
        program.chmod(0o755)

    return lists


def test_gpus_are_read(smi):
    """Number, name, capability, memory, free memory; a malformed line or a failing program gives no GPU.

    A driver that does not give the free memory counts as all free.
    """
    smi(
        "0, NVIDIA GeForce GTX 1060 6GB, 6.1, 6144 MiB, 5000 MiB",
        "1, NVIDIA RTX A6000, 8.6, 49140 MiB, [N/A]",
        "No devices were found",
    )
    assert gpus.visible() == [
        gpus.Gpu(0, "NVIDIA GeForce GTX 1060 6GB", 61, 6144 << 20, 5000 << 20),
        gpus.Gpu(1, "NVIDIA RTX A6000", 86, 49140 << 20, 49140 << 20),
    ]
    smi("0, x, 8.6, 1 MiB", code=9)
    assert gpus.visible() == []


def test_gpus_are_numbered_as_caffe_numbers_them(smi, monkeypatch):
    """CUDA_VISIBLE_DEVICES hides GPUs and numbers the others from 0; Caffe keeps the order of the slots."""
    smi("0, GTX 1060, 6.1, 6144 MiB", "1, A6000, 8.6, 49140 MiB", "2, L4, 8.9, 23034 MiB")
    for wish, names in (
        ("1", ["A6000"]),
        ("2,0", ["L4", "GTX 1060"]),
        ("GPU-0002", ["L4"]),
        ("", []),
        ("1,7,0", ["A6000"]),
    ):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", wish)
        assert [(each.index, each.name) for each in gpus.visible()] == list(enumerate(names)), wish
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert gpus.problem("0") is None and "no GPU 1" in gpus.problem("1")
    monkeypatch.setattr(GpuCaffe, "has_nccl", False)
    assert gpus.problem("all") is None  # it is one GPU
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    assert programs._environment()["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """Puts a stand-in of CUDA's driver library on the loader's path: it counts a given number of GPUs, or fails."""

    def with_count(count, error=0):
        source = tmp_path / "cuda.c"
        source.write_text(
            f"int cuInit(unsigned flags) {{ return {error}; }}\n"
            f"int cuDeviceGetCount(int *count) {{ *count = {count}; return 0; }}\n"
        )
        subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(tmp_path / "libcuda.so.1"), str(source)], check=True)
        monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))

    return with_count


def test_all_is_what_cuda_counts(smi, driver, monkeypatch):
    """Not what nvidia-smi lists, which knows nothing of parts (MIG). Where CUDA does not answer, the list counts."""
    smi("0, A6000, 8.6, 49140 MiB", "1, A6000, 8.6, 49140 MiB")
    driver(3)
    assert gpus.count("all") == 3 and gpus.count("0,1") == 2 and gpus.count(None) == 1
    driver(1)
    monkeypatch.setattr(GpuCaffe, "has_nccl", False)
    assert gpus.count("all") == 1 and gpus.problem("all") is None
    driver(0, error=100)
    assert gpus.count("all") == 2 and "NCCL" in gpus.problem("all")


def test_a_gpu_that_cannot_be_used_is_refused(smi, monkeypatch):
    """Older than the build, in a gap of it, missing, no driver, no NCCL: with the remedy. PTX runs on a newer one."""
    smi(
        "0, GTX 1060, 6.1, 6144 MiB",
        "1, A100, 8.0, 40960 MiB",
        "2, A6000, 8.6, 49140 MiB",
        "3, B200, 10.0, 180000 MiB",
        "4, L4, 8.9, 23034 MiB",
    )
    assert "compute capability 6.1" in gpus.problem("0") and "built for 7.5, 8.6" in gpus.problem("0")
    assert "compute capability 8.0" in gpus.problem("1")
    assert gpus.problem("2") is None and gpus.problem("3") is None and gpus.problem("4") is None
    assert gpus.problem("2,3") is None
    assert "no GPU 7" in gpus.problem("2,7")
    assert "GPU 0 " in gpus.problem("all")
    monkeypatch.setattr(GpuCaffe, "has_nccl", False)
    assert "NCCL" in gpus.problem("2,3") and gpus.problem("2") is None
    monkeypatch.setattr(gpus, "_DRIVERS", (Path("/nowhere"),))
    assert "no NVIDIA driver" in gpus.problem("2")
    monkeypatch.setattr(GpuCaffe, "has_gpu", False)
    assert "make caffe GPU=1" in gpus.problem("2")


def test_for_a_small_gpu_a_batch_that_fits_is_named(request, hands, tmp_path):
    """The paper's batch of 256 on a GPU of 2 GB: the named batch and iter_size learn from the same number of images."""
    recipe = Recipe.load("paper").with_values(
        {"data.train_cases": 8, "data.test_cases": 4, "network.test_batch": 1, "solver.test_iter": 4},
        "tests: a dozen hands",
    )
    run = prepare_run(tmp_path / "run", hands, recipe)  # by the real Caffe; then one with a GPU is simulated
    request.getfixturevalue("smi")("0, small, 8.6, 2048 MiB")
    definitions.write(run, recipe)
    (problem,) = [line for line in preflight.examine(run, Launch(gpus="0")).problems if "memory" in line]
    assert "the GPU has 2.1 GB" in problem
    batch, steps = int(problem.split("train_batch: ")[1].split()[0]), int(problem.split("iter_size: ")[1].split(",")[0])
    assert batch * steps == 256 and batch >= 4
    smaller = recipe.with_values(
        {"network.train_batch": batch, "solver.iter_size": steps}, "tests: the batch that was named"
    )
    run.write_recipe(smaller)
    definitions.write(run, smaller)
    assert f"iter_size: {steps}" in run.solver.read_text()
    assert not [line for line in preflight.examine(run, Launch(gpus="0")).problems if "memory" in line]
    assert preflight.schedule(run).images == 256


@pytest.mark.parametrize("iter_size", [1, 4])
def test_advice_keeps_the_images_of_a_step(request, hands, tmp_path, iter_size):
    """With an iter_size already; and for a CPU recipe that is trained on a GPU, whose memory then counts."""
    recipe = Recipe.load("paper").with_values(
        {
            "data.train_cases": 8,
            "data.test_cases": 4,
            "network.test_batch": 1,
            "solver.test_iter": 4,
            "network.train_batch": 64,
            "solver.iter_size": iter_size,
            "solver.solver_mode": "CPU",
        },
        "tests: a dozen hands",
    )
    run = prepare_run(tmp_path / "run", hands, recipe)
    request.getfixturevalue("smi")("0, small, 8.6, 2124 MiB")
    definitions.write(run, recipe)
    assert not [line for line in preflight.examine(run, Launch()).problems if "memory" in line]
    (problem,) = [line for line in preflight.examine(run, Launch(gpus="0")).problems if "memory" in line]
    batch, steps = int(problem.split("train_batch: ")[1].split()[0]), int(problem.split("iter_size: ")[1].split(",")[0])
    assert batch * steps == 64 * iter_size and f"from {64 * iter_size} images" in problem


def test_memory_that_others_use_is_not_there(request, hands, tmp_path):
    """What is free counts, less what CUDA itself takes; the message has both figures."""
    recipe = Recipe.load("paper").with_values(
        {"data.train_cases": 8, "data.test_cases": 4, "network.test_batch": 1, "solver.test_iter": 4},
        "tests: a dozen hands",
    )
    run = prepare_run(tmp_path / "run", hands, recipe)
    definitions.write(run, recipe)
    smi = request.getfixturevalue("smi")
    smi("0, large, 8.6, 24576 MiB, 20000 MiB")
    assert not [line for line in preflight.examine(run, Launch(gpus="0")).problems if "memory" in line]
    smi("0, large, 8.6, 24576 MiB, 3000 MiB")
    (message,) = [line for line in preflight.examine(run, Launch(gpus="0")).problems if "memory" in line]
    assert "the GPU has 3.1 GB free, of which CUDA itself takes about 1.1 GB" in message
    smi("0, NVIDIA GB10, 8.6, [N/A], [N/A]")  # it shares the machine's memory: nothing is known, so nothing is refused
    assert not [line for line in preflight.examine(run, Launch(gpus="0")).problems if "memory" in line]


# ---- how a GPU computes --------------------------------------------------------------------------------------------


def environment_with(monkeypatch, **values):
    for name in ("BONECAFFE_TF32", "BONECAFFE_CUDNN", "BONECAFFE_CUDNN_EXCLUDE", "NVIDIA_TF32_OVERRIDE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    return programs._environment()


def test_tf32_is_off_unless_asked_for(monkeypatch):
    """Whatever the user's own variable of CUDA is, because a training records what was used."""
    assert environment_with(monkeypatch)["NVIDIA_TF32_OVERRIDE"] == "0"
    assert environment_with(monkeypatch, NVIDIA_TF32_OVERRIDE="1")["NVIDIA_TF32_OVERRIDE"] == "0"
    assert "NVIDIA_TF32_OVERRIDE" not in environment_with(monkeypatch, BONECAFFE_TF32="1", NVIDIA_TF32_OVERRIDE="0")
    with pytest.raises(CaffeError, match="BONECAFFE_TF32=yes: expected 1"):
        environment_with(monkeypatch, BONECAFFE_TF32="yes")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("BONECAFFE_CUDNN", "slow", "expected fast or deterministic"),
        ("BONECAFFE_CUDNN_EXCLUDE", "forward", "numbers by direction"),
        ("BONECAFFE_CUDNN_EXCLUDE", "forward:6;data:0", "numbers by direction"),
        ("BONECAFFE_CUDNN_EXCLUDE", "backward:1", "numbers by direction"),
    ],
)
def test_wrong_variables_of_cudnn_are_refused(monkeypatch, name, value, words):
    """With the variable, before Caffe starts."""
    with pytest.raises(CaffeError, match=f"{name}=.*{words}"):
        Arithmetic.read({name: value})


def test_openmp_waits_as_the_user_chose(monkeypatch):
    """OMP_WAIT_POLICY and GOMP_SPINCOUNT are two ways to set the same; the user's own is kept."""
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert programs._environment()["GOMP_SPINCOUNT"] == "1000"
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    assert "GOMP_SPINCOUNT" not in programs._environment()


def attempt(start, gpus, arithmetic):
    made = MadeWith(bonecaffe="0", python="3", packages={}, host=HOST, caffe=None)
    return Attempt(
        command="caffe train",
        start="from the fillers",
        at="2026-01-01T00:00:00Z",
        by=made,
        started_at=start,
        gpus=gpus,
        arithmetic=arithmetic,
    )


HOST = Host(system="", kernel="", machine="", cpu="", cores=1, omp_num_threads="", memory_gb=1.0)


@pytest.mark.parametrize(
    ("attempts", "departures", "choice"),
    [
        ([(0, 0, "")], [], None),
        ([(0, 1, "float32; deterministic algorithms")], [], "float32; deterministic algorithms"),
        ([(0, 1, "TF32; fastest algorithms")], ["arithmetic"], "TF32; fastest algorithms"),
        ([(0, 1, "TF32; deterministic algorithms"), (50, 0, "")], ["solver.solver_mode", "arithmetic"], "TF32; det"),
        ([(0, 1, "TF32; deterministic algorithms"), (0, 0, "")], [], None),  # that start led nowhere
    ],
)
def test_arithmetic_is_listed_either_way(attempts, departures, choice):
    """TF32 in any part that led to the model is a departure; cuDNN's algorithms are a choice."""
    trained = SimpleNamespace(attempts=[attempt(*each) for each in attempts])
    assert list(launch._computed(trained, Recipe.load("paper"))) == departures
    rows = launch._arithmetic(trained)
    assert [row.here for row in rows.values() if row.here.startswith(choice or "")] == list(
        row.here for row in rows.values()
    )
    assert bool(rows) == (choice is not None)


@pytest.mark.parametrize(
    ("done", "here", "reason"),
    [
        (["float32; deterministic algorithms"] * 2, "float32; deterministic algorithms", "gives the same model"),
        (
            ["float32; fastest algorithms", "float32; deterministic algorithms"],
            "float32; fastest algorithms, then float32; deterministic algorithms",
            "set in the training's environment",
        ),
        ([Arithmetic().words(own_build=False)], "float32; algorithms of its own choice", "may give another model"),
    ],
)
def test_same_model_is_promised_only_where_all_of_it_is_deterministic(done, here, reason):
    """Every part that led to the model counts, and a Caffe that bonecaffe did not build reads no variable of it."""
    attempts = [attempt(10 * number, 1, arithmetic) for number, arithmetic in enumerate(done)]
    choice = launch._arithmetic(SimpleNamespace(attempts=attempts))["GPU arithmetic"]
    assert choice.here == here and choice.reason.endswith(reason)


def test_caffe_of_another_builder_is_known():
    """Only scripts/build_caffe.py records its edits."""
    caffe = installation.Caffe(Path("bin"), Path("python"), "CAFFE_ROOT")
    assert not caffe.is_own_build and replace(caffe, build={"edits_sha256": "0" * 64}).is_own_build


# ---- what Caffe's last words mean ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("Check failed: error == cudaSuccess (2 vs. 0)  out of memory", "memory is full"),
        (
            "Check failed: error == cudaSuccess (46 vs. 0)  all CUDA-capable devices are busy or unavailable",
            "in use by",
        ),
        (
            "Check failed: error == cudaSuccess (222 vs. 0)  the provided PTX … an unsupported toolchain",
            "newer CUDA than the GPU's driver",
        ),
        ("Check failed: error == cudaSuccess (700 vs. 0)  an illegal memory access was encountered", "make gpu-check"),
        ("Check failed: error == cudaSuccess (702 vs. 0)  the launch timed out and was terminated", "shows the screen"),
        ("Check failed: error == cudaSuccess (719 vs. 0)  unspecified launch failure", "make gpu-check"),
        (
            "Check failed: error == cudaSuccess (803 vs. 0)  system has unsupported display driver",
            "Restart the machine",
        ),
        (
            "Check failed: error == cudaSuccess (804 vs. 0)  forward compatibility was attempted on non supported HW",
            "Restart the machine",
        ),
        (
            "Check failed: error == cudaSuccess (35 vs. 0)  CUDA driver version is insufficient",
            "no usable GPU driver",
        ),
        ("Check failed: error == cudaSuccess (100 vs. 0)  no CUDA-capable device is detected", "no usable GPU driver"),
        ("Check failed: error == cudaSuccess (101 vs. 0)  invalid device ordinal", "no GPU of this number"),
        (
            "Check failed: error == cudaSuccess (209 vs. 0)  no kernel image is available",
            "this GPU's architecture",
        ),
        ("Check failed: status == CUBLAS_STATUS_SUCCESS (3 vs. 0)  CUBLAS_STATUS_ALLOC_FAILED", "memory is full"),
        ("Check failed: status == CUBLAS_STATUS_SUCCESS (1 vs. 0)  CUBLAS_STATUS_NOT_INITIALIZED", "could not start"),
        ("Check failed: status == CUBLAS_STATUS_SUCCESS (13 vs. 0)  CUBLAS_STATUS_EXECUTION_FAILED", "versions"),
        ("Check failed: status == CUDNN_STATUS_SUCCESS (8 vs. 0)  CUDNN_STATUS_EXECUTION_FAILED", "EXCLUDE"),
        ("Check failed: status == CUDNN_STATUS_SUCCESS (9 vs. 0)  CUDNN_STATUS_NOT_SUPPORTED", "EXCLUDE"),
        (
            "Check failed: status == CUDNN_STATUS_SUCCESS (1004 vs. 0)  CUDNN_STATUS_SUBLIBRARY_VERSION_MISMATCH",
            "parts are of different versions",
        ),
        ("Check failed: status == CUDNN_STATUS_SUCCESS (1 vs. 0)  CUDNN_STATUS_NOT_INITIALIZED", "bonecaffe doctor"),
        ("Check failed: result == ncclSuccess (2 vs. 0)  unhandled system error", "Train on one"),
    ],
)
def test_known_errors_of_a_gpu_are_explained(message, words):
    """The codes of CUDA, cuBLAS, cuDNN and NCCL, as Caffe prints them."""
    assert words in fatal.explain(message)


# ---- which libraries are loaded -------------------------------------------------------------------------------------


def test_libraries_of_cuda_are_named_with_their_versions(tmp_path):
    """The file that is loaded in the end; a part of cuDNN with another version on the library path is named."""
    (tmp_path / "lib").mkdir()
    for name in ("libcudnn.so.9.1.0", "libcudnn_ops.so.9.1.0", "libcublas.so.12.8.4.1"):
        (tmp_path / "lib" / name).touch()
    (tmp_path / "lib" / "libcudnn.so.9").symlink_to("libcudnn.so.9.1.0")
    libraries = {
        "libcudnn": str(tmp_path / "lib" / "libcudnn.so.9"),
        "libcublas": str(tmp_path / "lib" / "libcublas.so.12.8.4.1"),
        "libcublasLt": "/x/libcublasLt.so.12",
        "libnccl": "not",  # what ldd prints for one that is not found
    }
    found = {library.name: library for library in gpu_libraries.resolved(libraries)}
    assert found["cuDNN"][1:] == (str(tmp_path / "lib" / "libcudnn.so.9.1.0"), "9.1.0", "")
    assert found["cuBLAS"].version == "12.8.4.1" and found["NCCL"].problem == "not found by the loader"
    assert "CUDA runtime" not in found
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "libcudnn_cnn.so.9.2.0").touch()
    (tmp_path / "other" / "libcudnn_ops.so.9").touch()  # named by its major version alone
    cudnn = gpu_libraries.resolved(libraries, f"/nonexistent:{tmp_path / 'other'}")[1]
    assert "another version" in cudnn.problem and "libcudnn_cnn.so.9.2.0" in cudnn.problem
    assert "libcudnn_ops" not in cudnn.problem


def test_cudnn_of_another_major_version_is_no_problem(tmp_path):
    """Debian's packages of cuDNN 8 and 9 share a folder; cuDNN 9 looks for its parts by names that end in .so.9."""
    for name in ("libcudnn.so.9.1.0", "libcudnn_ops.so.9.1.0", "libcudnn.so.8.9.7", "libcudnn_ops_infer.so.8.9.7"):
        (tmp_path / name).touch()
    (cudnn,) = gpu_libraries.resolved({"libcudnn": str(tmp_path / "libcudnn.so.9.1.0")}, str(tmp_path))
    assert (cudnn.version, cudnn.problem) == ("9.1.0", "")


def test_library_that_is_not_found_has_no_version():
    """ldd prints "not found" in place of its file."""
    assert gpu_libraries.resolved({"libnccl": "not"}) == [("NCCL", "not found", "", "not found by the loader")]


def test_doctor_shows_the_gpus_and_what_is_loaded(smi, tmp_path, monkeypatch):
    """For a GPU build; a CPU build on a machine with a GPU gets the remedy."""
    smi("0, A6000, 8.6, 49140 MiB, 40000 MiB")
    (tmp_path / "libcublas.so.12.8").touch()
    monkeypatch.setattr(GpuCaffe, "libraries", {"libcublas": str(tmp_path / "libcublas.so.12.8")})
    rows = {finding.what: finding for finding in doctor._gpu(GpuCaffe)}
    assert rows["GPU 0"].found == "A6000, compute capability 8.6, 41.9 of 51.5 GB free"
    assert rows["cuBLAS"].found == f"12.8, {tmp_path / 'libcublas.so.12.8'}"
    assert rows["GPU arithmetic"].found == "float32; deterministic algorithms"
    monkeypatch.setattr(GpuCaffe, "has_gpu", False)
    (support, listed) = doctor._gpu(GpuCaffe)
    assert (support.found, support.remedy, listed.what) == ("CPU build", "make caffe GPU=1", "GPU 0")
