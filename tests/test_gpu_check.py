"""The check of a GPU build: what needs no GPU, on the real Caffe's CPU. nvidia-smi and PyTorch are stand-ins."""

from __future__ import annotations

import ast
import errno
import getpass
import json
import math
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import time
import zlib
from array import array
from io import BytesIO
from pathlib import Path

import lmdb
import numpy as np
import pytest
from conftest import REPOSITORY
from google.protobuf import text_format

import gpu_check
from bonecaffe.caffe import installation
from bonecaffe.caffe.arithmetic import Arithmetic
from bonecaffe.caffe.programs import caffe_pb2, call
from gpucheck import convolutions, database, images, machine, nets, programs, report, store, training, wire
from gpucheck.check import Check, Options
from gpucheck.outcome import CheckError, Failed, Result

SCRIPT = REPOSITORY / "scripts" / "gpu_check.py"
FILES = [SCRIPT, *sorted((REPOSITORY / "scripts" / "gpucheck").glob("*.py"))]
ON_CPU = ("--cpu", "--quick")


def check(work: Path, *arguments: str, path: Path | None = None, **variables: str):
    """Run the check as a user does, without site-packages: nothing but the standard library may be needed."""
    command = [sys.executable, "-S", "-E", str(SCRIPT), "--work", str(work), "--caffe", str(caffe_root()), *arguments]
    environment = {"PATH": f"{path}:{os.environ['PATH']}" if path else os.environ["PATH"], "OMP_NUM_THREADS": "1"}
    environment.update(variables)
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=240)


def caffe_root() -> Path:
    root = installation.find().root
    if root is None:
        pytest.skip("the installed Caffe has no folder of its own")
    return root


def results(work: Path) -> dict:
    return json.loads((work / "gpu-check.json").read_text())["parts"]


@pytest.fixture
def smi(tmp_path) -> Path:
    """A folder with a program nvidia-smi that lists one GPU, and one more mebibyte in use each time. (A stand-in.)"""
    folder = tmp_path / "smi"
    folder.mkdir()
    program = folder / "nvidia-smi"
    program.write_text(
        "#!/bin/sh\n"
        'case "$1" in *memory.used*) echo x >> "$0.count"; echo "0, $(wc -l < "$0.count")" ;;\n'
        '*) echo "0, NVIDIA H100 80GB HBM3, 9.0, 580.1, 81559, 81004" ;; esac\n'
    )
    program.chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A complete check on the CPU."""
    work = tmp_path_factory.mktemp("gpu-check") / "work"
    done = check(work, *ON_CPU)
    assert done.returncode == 0, done.stderr
    return work


# ---- the whole of it -----------------------------------------------------------------------------------------------


def test_each_part_passes_on_the_cpu(whole):
    """Convolutions, training, predictions and the same seed, by the real Caffe; skipped parts have a reason."""
    parts = results(whole)
    assert list(parts) == [
        *("machine", "own_tests", "convolutions", "train", "predictions", "pycaffe", "repeatable", "speed"),
    ]
    status = {name: part["status"] for name, part in parts.items()}
    assert {status[name] for name in ("machine", "convolutions", "train", "predictions", "repeatable")} == {"ok"}
    assert status["pycaffe"] in ("ok", "skipped")  # it needs modules that are not in the standard library
    train = parts["train"]["figures"]
    assert train["first"]["last_loss"] < train["first"]["first_loss"]
    assert (train["resumed"]["restored"], train["resumed"]["began_at"]) == (True, 12)
    assert train["first"]["images_per_second"] > 0 and train["first"]["memory_peak_mib"] > 10
    assert parts["repeatable"]["figures"]["standard"] == {"equal": True, "largest_difference": 0.0, "layer": ""}
    for quantity in ("output", "input gradient", "weight gradient", "bias gradient"):
        entry = parts["convolutions"]["figures"]["layers"]["conv4"][quantity]
        assert entry["difference"] == 0.0 < entry["bound"] < 2**-12  # TF32 would be over it
    assert 0 < parts["convolutions"]["figures"]["layers"]["conv4"]["cpu_against_exact_sums"] < 1e-5
    assert parts["predictions"]["figures"]["images"] == 12
    for part in parts.values():
        assert part["summary"] and (part["status"] != "skipped" or part["figures"] == {})
    assert "gpu-check: " in (whole / "gpu-check.md").read_text()
    assert not list(whole.glob("*.solverstate"))  # large, and of no more use


def test_the_report_names_nobody(whole):
    """No host, no user, no folder of theirs, in neither file."""
    for name in ("gpu-check.md", "gpu-check.json"):
        text = (whole / name).read_text()
        for private in (socket.gethostname(), getpass.getuser()):
            assert not re.search(rf"\b{re.escape(private)}\b", text), (name, private)
        for folder in (Path.home(), REPOSITORY, whole):
            assert str(folder) not in text or str(folder) == "/"
        assert "UUID" not in text
        assert (whole / name).stat().st_size < 60_000


def test_what_is_ok_is_kept_and_what_failed_is_run_again(whole, tmp_path):
    """The same command again repeats nothing that was ok; a part that failed is run from its beginning."""
    work = tmp_path / "work"
    shutil.copytree(whole, work)
    state = json.loads((work / "state.json").read_text())
    state["parts"]["predictions"]["status"] = "FAILED"
    (work / "state.json").write_text(json.dumps(state))
    done = check(work, *ON_CPU, "--only", "train,predictions,repeatable")
    assert done.returncode == 0, done.stderr
    assert "train: ok before, kept" in done.stderr and "predictions (1 of 1)" in done.stderr
    assert results(work)["predictions"]["status"] == "ok"
    assert json.loads((work / "gpu-check.json").read_text())["complete"]


def test_a_failing_part_does_not_stop_the_others(whole, tmp_path):
    """A Caffe that dies in `caffe test` (a stand-in for that verb) fails that part alone, with its last words."""
    root, work = tmp_path / "caffe", tmp_path / "work"
    (root / "bin").mkdir(parents=True)
    (root / "bin" / "convert_imageset").symlink_to(caffe_root() / "bin" / "convert_imageset")
    caffe = root / "bin" / "caffe"
    fatal = "F1125 10:00:00.000000  7 math_functions.cu:28] Check failed: status == CUBLAS_STATUS_SUCCESS (14 vs. 0)"
    caffe.write_text(
        f'#!/bin/sh\ncase "$1" in test) echo "{fatal}"; exit 134 ;; esac\nexec "{caffe_root()}/bin/caffe" "$@"\n'
    )
    caffe.chmod(0o755)
    done = check(work, *ON_CPU, "--caffe", str(root), "--only", "train,predictions,repeatable")
    assert done.returncode == 1, done.stderr
    parts = results(work)
    assert [parts[name]["status"] for name in ("train", "predictions", "repeatable")] == ["ok", "FAILED", "ok"]
    assert "exit status 134: math_functions.cu:28] Check failed: status == CUBLAS" in parts["predictions"]["summary"]
    assert parts["speed"]["status"] == "not run"
    assert "**not finished**" in (work / "gpu-check.md").read_text()


def test_interrupted_and_resumed(tmp_path):
    """Ctrl-C stops Caffe and leaves a report; the same command continues after the part that was finished."""
    work = tmp_path / "work"
    root = tmp_path / "caffe"
    (root / "bin").mkdir(parents=True)
    (root / "bin" / "convert_imageset").symlink_to(caffe_root() / "bin" / "convert_imageset")
    caffe, slow = root / "bin" / "caffe", tmp_path / "slow"
    slow.touch()
    caffe.write_text(  # a stand-in that hangs at the training as long as a file is there
        f'#!/bin/sh\ncase "$*" in *train.prototxt*) [ -e "{slow}" ] && echo $$ > "{slow}" && sleep 100 ;; esac\n'
        f'exec "{caffe_root()}/bin/caffe" "$@"\n'
    )
    caffe.chmod(0o755)
    command = [
        sys.executable,
        str(SCRIPT),
        "--work",
        str(work),
        "--caffe",
        str(root),
        *ON_CPU,
        "--only",
        "machine,train",
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    for _ in range(600):
        if slow.stat().st_size:
            break
        time.sleep(0.05)
    hanging = int(slow.read_text())
    second = subprocess.run(command, capture_output=True, text=True, check=False)
    assert second.returncode == 1 and "another gpu-check works in it" in second.stderr
    process.send_signal(signal.SIGINT)
    _, shown = process.communicate(timeout=20)
    assert process.returncode == 130 and "continues from here" in shown and "Traceback" not in shown
    assert not Path(f"/proc/{hanging}").exists() or "Z" in Path(f"/proc/{hanging}/stat").read_text().split()[2]
    assert [results(work)[name]["status"] for name in ("machine", "train")] == ["ok", "not run"]
    stored = (work / "data" / "train_lmdb" / "data.mdb").stat().st_mtime_ns
    slow.unlink()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "machine: ok before, kept" in done.stderr and results(work)["train"]["status"] == "ok"
    assert (work / "data" / "train_lmdb" / "data.mdb").stat().st_mtime_ns == stored


def test_results_of_another_caffe_are_not_kept(whole, tmp_path):
    """A work folder is of one Caffe, one device and one archive; a damaged state is as none."""
    work = tmp_path / "work"
    shutil.copytree(whole, work)
    state = json.loads((work / "state.json").read_text())
    state["settings"]["caffe"][1] += 1
    for damaged in (json.dumps(state), "{", '{"parts": []}'):
        (work / "state.json").write_text(damaged)
        done = check(work, *ON_CPU, "--only", "machine")
        assert "they are not used" in done.stderr and "kept" not in done.stderr


# ---- a GPU that is not there ---------------------------------------------------------------------------------------


def test_a_cpu_build_is_named_where_a_gpu_is_wanted(tmp_path, smi):
    """With a GPU and a Caffe for the CPU: one clear sentence, and the GPU is in the report."""
    done = check(tmp_path / "work", "--only", "machine,own_tests", path=smi)
    assert done.returncode == 1
    part = results(tmp_path / "work")["machine"]
    assert part["status"] == "FAILED" and "make caffe GPU=1" in part["summary"]
    assert part["figures"]["gpus"] == [
        {"index": 0, "name": "NVIDIA H100 80GB HBM3", "compute_capability": "9.0", "driver": "580.1"}
        | {"memory_total_mib": 81559, "memory_free_mib": 81004}
    ]
    assert "GPU 0: NVIDIA H100 80GB HBM3, compute capability 9.0" in (tmp_path / "work" / "gpu-check.md").read_text()


@pytest.fixture
def gpu_caffe(tmp_path, smi) -> Path:
    """A Caffe that takes -gpu and computes on the CPU, with a linker that names CUDA's libraries. (Stand-ins.)

    With BONECAFFE_CUDNN=fast it takes another seed each time. It aborts at its exit, as drivers can make it do.
    """
    root = tmp_path / "gpu-caffe"
    (root / "bin").mkdir(parents=True)
    (root / "bin" / "convert_imageset").symlink_to(caffe_root() / "bin" / "convert_imageset")
    caffe = root / "bin" / "caffe"
    caffe.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo caffe version 1.0.0 && exit\n'
        "sed -i 's/solver_mode: GPU/solver_mode: CPU/' *.solver.prototxt train.prototxt twice.prototxt 2>/dev/null\n"
        '[ "$BONECAFFE_CUDNN" = fast ] && sed -i "s/random_seed: .*/random_seed: $$/" twice.prototxt\n'
        f'echo "${{NVIDIA_TF32_OVERRIDE-unset}}:$BONECAFFE_TF32 $*" >> "{tmp_path}/calls"\n'
        'given=0; for word; do shift; case "$given$word" in 0-gpu) given=1; continue ;; 1*) given=0; continue ;; esac\n'
        f'set -- "$@" "$word"; done\n"{caffe_root()}/bin/caffe" "$@"; status=$?\n'
        '[ "$status" = 0 ] && [ "$1" = train ] && echo "driver shutting down" && exit 134\n'
        'exit "$status"\n'
    )
    caffe.chmod(0o755)
    ldd = smi / "ldd"
    ldd.write_text("#!/bin/sh\necho '  libcudart.so.13 => /usr/local/cuda/lib64/libcudart.so.13 (0x00)'\n")
    ldd.chmod(0o755)
    return root


def test_what_is_done_on_a_gpu(tmp_path, smi, gpu_caffe):
    """Each part with -gpu: memory, TF32 and the fast choice for information, an abort at exit after all the work."""
    work = tmp_path / "work"
    done = check(work, "--quick", "--caffe", str(gpu_caffe), path=smi)
    assert done.returncode == 0, done.stderr
    parts = results(work)
    assert parts["machine"]["summary"].startswith("NVIDIA H100 80GB HBM3, compute capability 9.0, driver 580.1")
    assert {parts[name]["status"] for name in ("convolutions", "train", "predictions", "repeatable")} == {"ok"}
    train = parts["train"]["figures"]["first"]
    assert train["exit_status"] == 134 and train["gpu_memory_peak_mib"] >= train["gpu_memory_before_mib"] > 0
    assert "of the GPU's memory" in parts["train"]["summary"]
    figures = parts["repeatable"]["figures"]
    assert figures["standard"]["equal"] and figures["tf32"]["equal"] and not figures["fast"]["equal"]
    assert figures["fast"]["largest_difference"] > 0 and "fast: up to" in parts["repeatable"]["summary"]
    assert parts["convolutions"]["figures"]["layers"]["conv4"]["output"]["tf32"] == 0.0
    calls = (tmp_path / "calls").read_text().splitlines()
    assert {line.split()[0] for line in calls} == {"0:0", "unset:1"}  # TF32 is off unless it is asked for
    on_cpu = [line for line in calls if "-gpu 0" not in line]
    assert [line.split()[1] for line in on_cpu] == ["train", "test"]  # the references
    text = (work / "gpu-check.md").read_text()
    assert "The whole" not in text and "| conv4 | output | 0 | 5e-05 | 0 |" in text and "libcudart.so.13" in text


@pytest.mark.parametrize("tf32", ["0", "1"])
def test_arithmetic_is_as_bonecaffe_sets_it(monkeypatch, tf32):
    """The same variables as in a training, whatever the user's environment chooses."""
    expected = {"NVIDIA_TF32_OVERRIDE": "1", "BONECAFFE_TF32": tf32}
    Arithmetic.read(expected).apply(expected)
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    monkeypatch.setenv("BONECAFFE_TF32", "yes")
    monkeypatch.setenv("BONECAFFE_CUDNN", "fast")
    monkeypatch.setenv("BONECAFFE_CUDNN_EXCLUDE", "forward:6")
    environment = programs.environment({"BONECAFFE_TF32": tf32})
    assert {name: environment[name] for name in environment if "TF32" in name} == expected
    assert programs.environment()["NVIDIA_TF32_OVERRIDE"] == programs.environment()["BONECAFFE_TF32"] == "0"
    assert environment["BONECAFFE_CUDNN"] == "deterministic" and environment["BONECAFFE_CUDNN_EXCLUDE"] == "forward:6"
    assert programs.environment({"BONECAFFE_CUDNN": "fast"})["BONECAFFE_CUDNN"] == "fast"


def test_memory_is_sampled_while_a_part_runs(smi, monkeypatch):
    """The peak, and what was in use before."""
    monkeypatch.setenv("PATH", f"{smi}:/usr/bin:/bin")
    with programs.Memory("0") as memory:
        time.sleep(1.3)
    assert memory.before == 1 and memory.peak >= 2
    with programs.Memory("0") as memory:
        pass
    assert memory.peak is not None
    with programs.Memory("1") as memory:
        pass
    assert memory.before is memory.peak is None


def test_nvidia_smi_of_wsl2_is_found(tmp_path, monkeypatch):
    """It is not on PATH there."""
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(programs, "WSL", str(program))
    assert programs.nvidia_smi() == str(program)
    assert programs.query("index,name") == []


def test_pytorch_is_measured_if_a_python_has_it(whole, tmp_path):
    """--torch-python: a stand-in that answers as a Python with PyTorch would."""
    work, python = tmp_path / "work", tmp_path / "python"
    shutil.copytree(whole, work)
    python.write_text('#!/bin/sh\ncase "$1" in -c) echo 2.11.0 ;; *) echo images_per_second 50 ;; esac\n')
    python.chmod(0o755)
    done = check(work, *ON_CPU, "--only", "speed", "--torch-python", str(python))
    figures = results(work)["speed"]["figures"]
    assert done.returncode == 0, done.stderr
    assert figures["torch_images_per_second"] == 50 and figures["caffe_images_per_second"] > 0
    assert figures["caffe_over_torch"] == pytest.approx(figures["caffe_images_per_second"] / 50)


@pytest.mark.parametrize(
    ("ending", "status", "summary"),
    [
        ("[==========] 3 tests from 1 test case ran. (5 ms total)\n[  PASSED  ] 3 tests.", "ok", "3 of 3 pass"),
        (
            "[==========] 3 tests from 1 test case ran. (5 ms total)\n[  PASSED  ] 2 tests.\n"
            "[  FAILED  ] 1 test, listed below:\n[  FAILED  ] ConvolutionLayerTest/2.TestGroup, where TypeParam = x",
            "FAILED",
            "1 of 3 fail: ConvolutionLayerTest/2.TestGroup",
        ),
        ("F1125 10:00:00.000000  7 syncedmem.hpp:18] Check failed: out of memory", "FAILED", "out of memory"),
    ],
)
def test_caffes_own_tests_are_counted(tmp_path, ending, status, summary):
    """A stand-in for test.testbin, next to a source folder; the real one has no GPU to run on here."""
    (tmp_path / "source" / "src" / "caffe" / "test" / "test_data").mkdir(parents=True)
    program = tmp_path / "build" / "test" / "test.testbin"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/sh\necho '[       OK ] A.B (0 ms)'\ncat <<'END'\n{ending}\nEND\n")
    program.chmod(0o755)
    done = check(tmp_path / "work", *ON_CPU, "--only", "own_tests", "--tests", str(program))
    part = results(tmp_path / "work")["own_tests"]
    assert part["status"] == status and summary in part["summary"], done.stderr


# ---- errors of use -------------------------------------------------------------------------------------------------


def test_errors_of_use_are_one_sentence(tmp_path):
    """Named, with what to do; nothing is written into a folder that holds something else."""
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("mine")
    bad = tmp_path / "bad.tar.xz"
    bad.write_bytes(b"no archive")
    for arguments, message in (
        (("--only", "trian"), "no such part"),
        (("--gpu", "all"), "the number of one GPU"),
        (("--data", str(tmp_path / "none")), "no such file"),
        (("--caffe", str(tmp_path)), "no bin/caffe in it"),
        (("--work", str(full)), "holds other files"),
    ):
        done = check(tmp_path / "work", *arguments)
        assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert [path.name for path in full.iterdir()] == ["mine.txt"]
    done = check(tmp_path / "work", *ON_CPU, "--data", str(bad), "--only", "train")
    assert (
        done.returncode == 1 and "no archive of `gpu-check prepare`" in results(tmp_path / "work")["train"]["summary"]
    )


# ---- its pieces ----------------------------------------------------------------------------------------------------


def test_it_needs_only_the_standard_library_of_python_3_8():
    """The syntax of 3.8, and imports of the standard library and its own modules; PyTorch in the one file for it."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(), feature_version=(3, 8))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            allowed = {*sys.stdlib_module_names, "gpucheck", *(["torch"] if path.name == "torch_speed.py" else [])}
            assert {name.split(".")[0] for name in names} <= allowed, path
            if isinstance(node, ast.Attribute):
                assert node.attr not in ("removeprefix", "removesuffix", "file_digest", "is_relative_to"), path


def test_its_net_is_the_papers():
    """With the stock fillers, the layers of prototxt/paper/train_val.prototxt, parameter by parameter."""
    expected = text_format.Parse(
        (REPOSITORY / "prototxt/paper/train_val.prototxt").read_text(), caffe_pb2().NetParameter()
    )
    sizes = nets.Sizes(stock_fillers=True)
    found = text_format.Parse(nets.train_val(sizes, "train_lmdb", "test_lmdb", 2), caffe_pb2().NetParameter())
    assert found == expected


def test_caffemodels_are_read_and_written():
    """As Caffe's own protocol has them; a cut file is refused."""
    content = wire.caffemodel({"conv": [((2, 1), array("f", [1.5, -2.0])), ((1,), array("f", [0.25]))]})
    net = caffe_pb2().NetParameter.FromString(content)
    assert [list(blob.data) for blob in net.layer[0].blobs] == [[1.5, -2.0], [0.25]]
    assert list(net.layer[0].blobs[0].shape.dim) == [2, 1]
    assert list(wire.numbers(wire.parse(net.SerializeToString())["conv"][0])) == [1.5, -2.0]
    for cut in (content[:-1], b"", b"<html>"):
        with pytest.raises((ValueError, IndexError)):
            wire.parse(cut)


def test_the_largest_difference_of_two_models():
    """Bit for bit, nan included; other shapes are refused."""

    def model(*values: float):
        return {"a": [array("f", [1.0]).tobytes()], "b": [array("f", values).tobytes()]}

    assert wire.largest_difference(model(1, 2), model(1, 2)) == (0.0, "")
    assert wire.largest_difference(model(1, 2), model(1, 2.5)) == (0.5, "b")
    assert math.isnan(wire.largest_difference(model(1, 2), model(1, math.nan))[0])
    with pytest.raises(ValueError, match="different layers"):
        wire.largest_difference(model(1), model(1, 2))


def test_a_wrong_convolution_is_noticed(piece, monkeypatch):
    """A device that rounds as TF32 does, and a CPU that is off from the exact sums, each fail the part."""
    real = convolutions._step

    def off(factor: float, names: tuple[str, ...]):
        def step(check, name, gpu, extra):
            weights = real(check, name, gpu, extra)
            if name in names:
                changed = np.frombuffer(weights["conv4_y"][0], np.float32) * np.float32(factor)
                weights["conv4_y"] = [changed.tobytes()]
            return weights

        return step

    def as_tf32(check, name, gpu, extra):
        start = convolutions._start(nets.GROUPED[1:2], 2)
        if name != "cpu":
            start = {layer: [(shape, cut(values)) for shape, values in blobs] for layer, blobs in start.items()}
        (check.work / "gradients.caffemodel").write_bytes(wire.caffemodel(start))
        return real(check, name, gpu, extra)

    def cut(values):
        """The numbers, rounded to the 11 bits that TF32 keeps of a factor."""
        bits = (np.array(values, np.float32).view(np.uint32) + 0x1000) & ~np.uint32(0x1FFF)
        return array("f", bits.view(np.float32).tolist())

    monkeypatch.setattr(convolutions, "_step", as_tf32)
    with pytest.raises(Failed, match=r"output: 0\.0002.* input gradient: 0\.000[23].* weight gradient: 0\.000[23]"):
        convolutions.compare(piece)
    monkeypatch.setattr(convolutions, "_step", off(1.001, ("cpu", "device-cpu")))
    with pytest.raises(Failed, match="differs from exact sums"):
        convolutions.compare(piece)


def test_the_rate_after_a_resumption_is_not_taken():
    """Caffe counts the iterations of its first display from 0 on."""
    lines = [f"Iteration {200 + 10 * n} ({rate} iter/s, 1s/10 iters), loss = 1" for n, rate in enumerate((99, 3, 2, 2))]
    assert programs.read_log("\n".join(lines)).seconds_per_iteration == 0.5
    assert programs.read_log("\n".join(lines[:1])).seconds_per_iteration is None


def test_a_resumed_training_shows_its_first_loss():
    """Caffe displays each multiple of the display interval: the iteration of the snapshot must be one."""
    for quick in (False, True):
        assert training.ITERATIONS[quick][0] % training.DISPLAY[quick] == 0
        assert training.ITERATIONS[quick][0] % training.ITERATIONS[quick][1] == 0  # and of the test interval


@pytest.fixture
def piece(tmp_path) -> Check:
    """A check on the CPU, of which single parts are called."""
    options, caffe = Options(gpu=None, quick=True), programs.find(str(caffe_root()), tmp_path)
    return Check(options, caffe, tmp_path, store.State(tmp_path, {}), lambda text: None)


def test_a_resumption_that_starts_again_fails(piece, monkeypatch):
    """It must begin at the snapshot's iteration, restored, and near its loss."""
    begun = {"first_loss": 900.0, "last_loss": 100.0, "complete": True, "images_per_second": None}
    data = {"what": "", "made_by": "", "train": 24, "test": 12}
    for resumed, message in (
        ({"began_at": 0, "restored": True, "first_loss": 100.0, "complete": True}, "began at iteration 0, not at 12"),
        ({"began_at": 12, "restored": True, "first_loss": 890.0, "complete": True}, "jumped from 100 to 890"),
        ({"began_at": 12, "restored": True, "first_loss": 99.0, "complete": False}, "Optimization Done"),
    ):
        facts = {"train.begin": begun, "train.resume": resumed, "data": data}
        monkeypatch.setattr(piece.state, "step", lambda name, make, files=(), facts=facts: facts[name])
        with pytest.raises(Failed, match=message):
            training.train(piece)


def test_predictions_that_differ_fail(piece, monkeypatch):
    """By more than a hundredth of a month; nan never passes; other images are no comparison."""
    ages = {"cpu": {"fc8": [99.0, 120.0], "label": [100.0, 118.0]}}
    monkeypatch.setattr(training, "_predict", lambda check, where: ages[where])
    for value, message in ((120.02, "up to 0.02 months"), (math.nan, "up to nan")):
        ages["device"] = {"fc8": [99.0, value], "label": [100.0, 118.0]}
        with pytest.raises(Failed, match=message):
            training.predictions(piece)
    ages["device"] = {"fc8": [99.0, 120.0], "label": [100.0, 117.0]}
    with pytest.raises(Failed, match="different images"):
        training.predictions(piece)
    ages["device"] = {"fc8": [99.005, 120.0], "label": [100.0, 118.0]}
    assert training.predictions(piece).figures["largest_difference_months"] == pytest.approx(0.005)


def test_two_models_of_one_seed_fail(piece, monkeypatch):
    """With the largest difference and its layer."""
    models = iter([{"conv2": [array("f", [1.0]).tobytes()]}, {"conv2": [array("f", [1.25]).tobytes()]}])
    monkeypatch.setattr(training, "databases", lambda check: {"train": 24, "test": 12})
    monkeypatch.setattr(training, "_short", lambda *arguments: next(models))
    with pytest.raises(Failed, match=r"two models: largest difference of a weight 0\.25, in conv2"):
        training.repeatable(piece)


def test_a_full_disk_is_a_sentence(piece):
    """An error of the system names the file; a fault of the check itself is named as one."""

    def full(check):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x/data.mdb")

    result = gpu_check._outcome(gpu_check.Part("train", "", full, (1, 1)), piece)
    assert (result.status, result.summary) == ("FAILED", "x/data.mdb: No space left on device")
    result = gpu_check._outcome(gpu_check.Part("train", "", lambda check: 1 / 0, (1, 1)), piece)
    assert result.summary.startswith("a fault of the check itself: ZeroDivisionError")


def test_which_caffe_is_checked(tmp_path, monkeypatch):
    """The one given, else the bundle next to the script, else the environment's, else PATH; else what to do."""
    for name in ("given", "bundle", "path"):
        (tmp_path / name / "bin").mkdir(parents=True)
        (tmp_path / name / "bin" / "caffe").write_text("#!/bin/sh\n")
        (tmp_path / name / "bin" / "caffe").chmod(0o755)
    (tmp_path / "bundle" / "bundle.json").write_text('{"python": "3.11"}')
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path / "path" / "bin"))
    assert programs.find(str(tmp_path / "given"), tmp_path / "bundle").root == tmp_path / "given"
    assert programs.find("", tmp_path / "bundle").record == {"python": "3.11"}
    assert programs.find(None, tmp_path / "given").bin == tmp_path / "path" / "bin"
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(CheckError, match="Set CAFFE_ROOT"):
        programs.find(None, tmp_path / "given")


def test_a_training_that_does_not_learn_fails():
    """A loss that stays, rises or is no number."""
    for log in ("Iteration 0, loss = 9\nIteration 1, loss = 9", "Iteration 0, loss = 9\nIteration 1, loss = nan", ""):
        facts = training._facts(programs.Ran(log, 1.0, 0), programs.read_log(log), 8)
        assert "does not fall" in training._falls(facts)[0]


def test_a_name_is_scrubbed_wherever_it_stands(monkeypatch):
    """Hosts, users, folders, UUIDs; words that only contain a name stay."""
    monkeypatch.setattr(socket, "gethostname", lambda: "box7.lab.example")
    monkeypatch.setattr(getpass, "getuser", lambda: "ann")
    store._private.cache_clear()
    try:
        assert store.scrubbed(
            {
                "a": [
                    "open(/home/ann/x y/z.png) by ann on box7: channel",
                    "GPU-0a1b2c3d-44 /opt/my-cuda/lib/libcudnn.so.9",
                ]
            }
        ) == {"a": ["open(…/x y/z.png) by USER on HOST: channel", "GPU-UUID …/libcudnn.so.9"]}
    finally:
        store._private.cache_clear()


def test_a_report_is_valid_json_whatever_was_measured(tmp_path):
    """nan and infinity have no place in JSON; a summary may hold what Markdown's tables mean something by."""
    parts = [
        ("machine", "m", None),
        ("convolutions", "c", Result("FAILED", "a | b\nc", {"x": math.nan, "y": [math.inf]})),
    ]
    report.put(tmp_path, parts, {"quick": True, "device": "CPU"}, False)
    text = (tmp_path / "gpu-check.json").read_text()
    assert "NaN" not in text and json.loads(text)["parts"]["convolutions"]["figures"] == {"x": "nan", "y": ["inf"]}
    assert "| c | FAILED | a \\| b c | 0 |" in (tmp_path / "gpu-check.md").read_text()
    assert not list(tmp_path.glob("*.part"))


def test_phantoms_are_packed_and_used(tmp_path):
    """`prepare` makes an archive with bonecaffe; the check trains on what is in it. Another archive is refused."""
    archive = tmp_path / "data.tar.xz"
    command = [sys.executable, str(SCRIPT), "prepare", "--out", str(archive), "--train", "24", "--test", "12"]
    done = subprocess.run(
        [*command, "--size", "300x390"],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # a phantom has at most 42 kB: the 600 of the whole check are to stay below 25 MB
    assert archive.stat().st_size < 36 * 42_000
    done = check(tmp_path / "work", *ON_CPU, "--data", str(archive), "--only", "train")
    assert done.returncode == 0, done.stderr
    figures = results(tmp_path / "work")["train"]["figures"]
    assert (figures["images"], figures["train_images"], figures["test_images"]) == (images.PHANTOMS, 24, 12)
    with tarfile.open(tmp_path / "evil.tar.xz", "w:xz") as packed:
        entry = tarfile.TarInfo("../outside.txt")
        entry.size = 1
        packed.addfile(entry, BytesIO(b"x"))
    with pytest.raises(CheckError, match="does not write"):
        images.unpack(tmp_path / "evil.tar.xz", tmp_path / "folder")
    assert not (tmp_path / "outside.txt").exists()


def test_drawings_are_images_that_caffe_reads(tmp_path):
    """Grey PNGs of 224 x 224, always the same; OpenCV reads them as convert_imageset does."""
    import cv2

    for name in ("one", "two"):
        images.draw(tmp_path / name, 3, 1)
    first, again = (sorted((tmp_path / name / "images").iterdir()) for name in ("one", "two"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]
    assert cv2.imread(str(first[0]), cv2.IMREAD_UNCHANGED).shape == (224, 224)
    assert len(images.listed(tmp_path / "one" / "train.txt")) == 3


def test_an_lmdb_is_written_without_convert_imageset(tmp_path):
    """The records of the real one, byte for byte, over several leaves and with each of PNG's filters."""
    images.draw(tmp_path, 160, 1)
    for number, kind in enumerate((0, 1, 2, 3, 4)):
        path = tmp_path / "images" / f"train{number:04d}.png"
        path.write_bytes(filtered_png(np.random.default_rng(number).integers(0, 256, (224, 224), np.uint8), kind))
    count = database.convert(tmp_path / "images", tmp_path / "train.txt", tmp_path / "ours")
    call("convert_imageset", [f"{tmp_path}/images/", str(tmp_path / "train.txt"), str(tmp_path / "real")])
    ours, real = (records(tmp_path / name) for name in ("ours", "real"))
    assert count == 160 and ours == real
    (tmp_path / "images" / "train0003.png").write_bytes(b"no image")
    with pytest.raises(Failed, match=r"train0003\.png"):
        database.convert(tmp_path / "images", tmp_path / "train.txt", tmp_path / "third")


def test_a_caffe_without_convert_imageset_is_checked_too(tmp_path):
    """As one that was built without OpenCV: it trains on what the script wrote."""
    root = tmp_path / "caffe"
    (root / "bin").mkdir(parents=True)
    (root / "bin" / "caffe").symlink_to(caffe_root() / "bin" / "caffe")
    done = check(tmp_path / "work", *ON_CPU, "--caffe", str(root), "--only", "train,predictions")
    assert done.returncode == 0, done.stderr
    assert results(tmp_path / "work")["train"]["figures"]["lmdb_by"] == "this script"


def records(folder: Path) -> list[tuple[bytes, bytes]]:
    with lmdb.open(str(folder), readonly=True, lock=False) as env, env.begin() as transaction:
        return [(bytes(key), bytes(value)) for key, value in transaction.cursor()]


def filtered_png(pixels: np.ndarray, kind: int) -> bytes:
    """A grey PNG all of whose rows have one filter."""
    wide = np.zeros((225, 225), np.int32)
    wide[1:, 1:] = pixels
    left, up, corner = wide[1:, :-1], wide[:-1, 1:], wide[:-1, :-1]
    guess = left + up - corner
    a, b, c = abs(guess - left), abs(guess - up), abs(guess - corner)
    paeth = np.where((a <= b) & (a <= c), left, np.where(b <= c, up, corner))
    expected = (np.zeros_like(left), left, up, (left + up) // 2, paeth)[kind]
    lines = ((wide[1:, 1:] - expected) % 256).astype(np.uint8)
    packed = zlib.compress(np.insert(lines, 0, kind, axis=1).tobytes())
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", 224, 224, 8, 0, 0, 0, 0)), (b"IDAT", packed), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks
    )


def test_libraries_are_listed_without_folders_of_a_user(tmp_path):
    """A library's file with its version; where it is only as far as it tells nothing of the user."""
    caffe = programs.Caffe(tmp_path, tmp_path / "bin", None, {})
    own = tmp_path / "lib" / "libcudnn.so.9"
    own.parent.mkdir()
    own.with_name("libcudnn.so.9.1.0").touch()
    own.symlink_to("libcudnn.so.9.1.0")
    assert machine._library("libcudnn.so.9", own, caffe) == {
        "name": "libcudnn.so.9",
        "file": "libcudnn.so.9.1.0",
        "from": "this Caffe's folder",
    }
    assert machine._folder(Path("/home/ann/lib")) == "another folder"
    assert machine._folder(Path("/usr/local/cuda-13.0/lib64")) == "/usr/local/cuda-13.0/lib64"
