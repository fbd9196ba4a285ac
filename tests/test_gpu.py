"""GPUs, simulated where there are none: what nvidia-smi is asked, and what is refused before Caffe would abort."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import prepare_run

from bonecaffe.caffe import gpus, installation, programs
from bonecaffe.network import definitions
from bonecaffe.recipe import Recipe
from bonecaffe.records import Launch
from bonecaffe.training import preflight


class GpuCaffe:
    """What a Caffe built with CUDA would report."""

    origin, has_gpu, has_nccl, has_cudnn = "a pretended GPU build", True, True, True
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
        shown = "\n".join(f"{line}, GPU-{number:04}-and-more" for number, line in enumerate(lines))
        program.write_text(f"#!/bin/sh\ncat <<'END'\n{shown}\nEND\nexit {code}\n")
        program.chmod(0o755)

    return lists


def test_gpus_are_read(smi):
    """Number, name, capability, memory; a malformed line or a failing program gives no GPU."""
    smi("0, NVIDIA GeForce GTX 1060 6GB, 6.1, 6144 MiB", "1, NVIDIA RTX A6000, 8.6, 49140 MiB", "No devices were found")
    assert gpus.visible() == [
        gpus.Gpu(0, "NVIDIA GeForce GTX 1060 6GB", 61, 6144 << 20),
        gpus.Gpu(1, "NVIDIA RTX A6000", 86, 49140 << 20),
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
    request.getfixturevalue("smi")("0, small, 8.6, 1100 MiB")
    definitions.write(run, recipe)
    assert not [line for line in preflight.examine(run, Launch()).problems if "memory" in line]
    (problem,) = [line for line in preflight.examine(run, Launch(gpus="0")).problems if "memory" in line]
    batch, steps = int(problem.split("train_batch: ")[1].split()[0]), int(problem.split("iter_size: ")[1].split(",")[0])
    assert batch * steps == 64 * iter_size and f"from {64 * iter_size} images" in problem
