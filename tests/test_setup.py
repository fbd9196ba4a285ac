"""Finding and building Caffe: what is refused, what is used, and that nothing half-built looks finished or stays."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
from conftest import REPOSITORY

import caffe_edits
from bonecaffe import files
from bonecaffe.caffe import installation
from bonecaffe.errors import CaffeError
from bonecaffe.files import cache_folder

BUILD = [sys.executable, str(REPOSITORY / "scripts" / "build_caffe.py")]
SOURCES = cache_folder() / "caffe" / "source"


def without_caffe():
    """The environment, with no Caffe and no source named in it."""
    return {name: value for name, value in os.environ.items() if name not in ("CAFFE_ROOT", "CAFFE_SOURCE")}


def build(*arguments, timeout=600, **environment):
    return subprocess.run(
        [*BUILD, *arguments],
        env={**without_caffe(), **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def test_an_edit_fits_exactly_once_or_stops(tmp_path):
    """Found once: applied. Applied already: left alone. Found twice or not at all: this is another Caffe."""
    edit = caffe_edits.Edit("a.cpp", "old(1, 2)", "old(1)", "because")
    path = tmp_path / "a.cpp"
    path.write_text("x = old(1, 2);\n")
    assert caffe_edits.apply_edits(tmp_path, [edit])[0].startswith("edited")
    assert path.read_text() == "x = old(1);\n"
    assert caffe_edits.apply_edits(tmp_path, [edit])[0].startswith("already")
    for text in ("old(1, 2) old(1, 2)", "nothing", "old(1) old(1)"):
        path.write_text(text)
        with pytest.raises(SystemExit, match=r"a\.cpp"):
            caffe_edits.apply_edits(tmp_path, [edit])
        assert path.read_text() == text
    path.unlink()
    with pytest.raises(SystemExit, match="not there"):
        caffe_edits.apply_edits(tmp_path, [edit])


def test_edits_fit_the_upstream_source(tmp_path):
    """Every edit fits BVLC's own tarball once, and a second pass changes nothing."""
    tarballs = sorted(SOURCES.glob("*.tar.gz"))
    if not tarballs:
        pytest.skip("Caffe was not built here from source")
    shutil.unpack_archive(tarballs[0], tmp_path)
    source = tmp_path if (tmp_path / "CMakeLists.txt").is_file() else next(tmp_path.iterdir())
    assert all(line.startswith("edited") for line in caffe_edits.apply_edits(source))
    assert all(line.startswith("already") for line in caffe_edits.apply_edits(source))


def test_pycaffe_starts_without_scikit_image_and_reads_images_with_it(tmp_path):
    """`import caffe` loads no scikit-image; caffe.io, which wants it, still reads and resizes."""
    if "flags" not in installation.find().build:
        pytest.skip("a Caffe that was not built here")
    image = np.arange(256, dtype=np.uint8).reshape(16, 16)
    cv2.imwrite(str(tmp_path / "image.png"), image)
    code = (
        "import sys; from bonecaffe.caffe import programs; caffe = programs.import_pycaffe()\n"
        "assert 'skimage' not in sys.modules and 'scipy.ndimage' not in sys.modules\n"
        "grey = caffe.io.load_image(sys.argv[1], color=False); small = caffe.io.resize_image(grey, (8, 8))\n"
        "four = caffe.io.resize_image(grey.repeat(4, 2), (8, 8))\n"
        "print(grey.shape, round(float(grey.max()), 3), small.shape, four.shape)"
    )
    output = subprocess.check_output([sys.executable, "-c", code, str(tmp_path / "image.png")], text=True)
    assert output == "(16, 16, 1) 1.0 (8, 8, 1) (8, 8, 4)\n"


def test_caffe_root_that_does_not_work_is_refused(tmp_path):
    """A Caffe that the user names is not ignored silently; the missing part is named."""
    done = build(CAFFE_ROOT=str(tmp_path))
    assert done.returncode == 1 and "does not work: no bin/caffe" in done.stderr
    (tmp_path / "bin").mkdir()
    for program in installation.PROGRAMS:
        (tmp_path / "bin" / program).write_text("#!/bin/sh\n")
        (tmp_path / "bin" / program).chmod(0o755)
    assert "no pycaffe" in build(CAFFE_ROOT=str(tmp_path)).stderr
    (tmp_path / "python" / "caffe").mkdir(parents=True)
    (tmp_path / "python" / "caffe" / "__init__.py").write_text("raise ImportError('built for another Python')\n")
    for arguments in ([], ["--given"]):
        done = build(*arguments, CAFFE_ROOT=str(tmp_path))
        assert done.returncode == 1 and done.stdout == ""
        assert "does not import into" in done.stderr and "built for another Python" in done.stderr


def test_existing_install_is_used():
    """CAFFE_ROOT with programs and a pycaffe that imports: used unchanged, and reported."""
    root = installation.find().root
    if root is None:
        pytest.skip("Caffe is on PATH here")
    done = build(CAFFE_ROOT=str(root))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"root={root}", "origin=CAFFE_ROOT"]
    assert build("--given", CAFFE_ROOT=str(root)).stdout == done.stdout


def test_programs_on_path_are_used_only_with_their_own_pycaffe(tmp_path):
    """The pycaffe that `make setup` added to this environment's path for another Caffe does not count."""
    caffe = installation.find()
    if caffe.root is None or not installation.PTH.is_file():
        pytest.skip("Caffe is on PATH here")
    path = f"{caffe.bin}:{os.environ['PATH']}"
    alone = build("--given", PATH=path)
    assert (alone.returncode, alone.stdout) == (0, "") and "looking further" in alone.stderr
    both = build("--given", PATH=path, PYTHONPATH=str(caffe.python))
    assert both.stdout.splitlines() == ["root=PATH", "origin=programs on PATH"], both.stderr


def test_the_note_and_the_path_of_an_environment(tmp_path, monkeypatch):
    """Written as JSON, whatever the text; read back by `find`; a Caffe on PATH leaves no pycaffe behind."""
    caffe = installation.find()
    monkeypatch.delenv("CAFFE_ROOT", raising=False)
    monkeypatch.setattr(installation, "NOTE", tmp_path / "share" / "bonecaffe" / "caffe.json")
    monkeypatch.setattr(installation, "PTH", tmp_path / "site" / "bonecaffe-pycaffe.pth")
    folder = tmp_path / 'a "quoted" \\ folder'
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "caffe").symlink_to(caffe.program("caffe"))
    (folder / "python").symlink_to(caffe.python)
    installation.write_note(installation.at(folder, 'found "there"'))
    assert json.loads(installation.NOTE.read_text()) == {"root": str(folder), "origin": 'found "there"'}
    assert installation.PTH.read_text() == f"{folder / 'python'}\n"
    found = installation.find()
    assert (found.root, found.origin, found.python) == (folder, 'found "there"', folder / "python")
    installation.write_note(installation.Caffe(caffe.bin, caffe.python, "programs on PATH"))
    assert json.loads(installation.NOTE.read_text())["root"] == "PATH" and not installation.PTH.exists()


def test_source_that_is_none_is_refused(tmp_path):
    """A folder that is not Caffe's source, and a path that does not exist."""
    assert "not Caffe's source" in build(CAFFE_SOURCE=str(tmp_path)).stderr
    assert "no such folder or tarball" in build(CAFFE_SOURCE=str(tmp_path / "none")).stderr


def test_interrupted_build_leaves_nothing_that_looks_finished(tmp_path):
    """Killed in the middle: no finished folder, and the lock is free again."""
    tarballs = sorted(SOURCES.glob("*.tar.gz"))
    if not tarballs:
        pytest.skip("Caffe was not built here from source")
    process = started_build(tarballs[0], tmp_path)
    lock = next((tmp_path / "caffe").glob("*.lock"))
    assert files.holder(lock) == f"bonecaffe build, process {process.pid}"
    waiting = started_build(tarballs[0], tmp_path, stderr=subprocess.PIPE)
    assert any(b"another process is building" in line for line in waiting.stderr)
    waiting.kill()
    waiting.communicate()
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    finished = [path.name for path in (tmp_path / "caffe").iterdir() if len(path.name) == 16 and path.is_dir()]
    assert finished == []
    with files.held(lock, "test", CaffeError, wait_s=120):
        pass


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_build_leaves_nothing_half_made(tmp_path, number):
    """Ctrl-C, or a SIGTERM to the builder alone: exit 130 soon, its compilers ended, no folder but the downloads'."""
    tarballs = sorted(SOURCES.glob("*.tar.gz"))
    if not tarballs:
        pytest.skip("Caffe was not built here from source")
    process = started_build(tarballs[0], tmp_path, "CMakeFiles", stderr=subprocess.PIPE)
    began = time.monotonic()
    os.killpg(process.pid, number) if number == signal.SIGINT else os.kill(process.pid, number)
    _, stderr = process.communicate(timeout=60)
    assert time.monotonic() - began < 20
    assert process.returncode == 130 and b"Traceback" not in stderr, stderr.decode()
    assert [path.name for path in (tmp_path / "caffe").iterdir() if not path.name.endswith(".lock")] == ["source"]
    while True:  # until the last compiler has ended
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            break
        assert time.monotonic() - began < 60
        time.sleep(0.1)


def started_build(source, cache, until="CMakeCache.txt", stderr=subprocess.DEVNULL):
    """A build in its own process group, in which CMake has made ``until``; or one that waits for such a build."""
    process = subprocess.Popen(
        BUILD,
        env={**without_caffe(), "CAFFE_SOURCE": str(source), "BONECAFFE_CACHE": str(cache)},
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        start_new_session=True,
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 300
    while not list((cache / "caffe").glob(f"*.tree/build/{until}")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    return process


def test_no_address_and_no_path_of_a_machine_is_committed():
    """The mirror is read from the machine's own configuration; nothing names a registry."""
    for path in [
        *REPOSITORY.glob("scripts/**/*"),
        REPOSITORY / "Makefile",
        REPOSITORY / "requirements.txt",
        *REPOSITORY.glob("bonecaffe/**/*.py"),
    ]:
        text = path.read_text(errors="replace") if path.is_file() else ""
        for word in ("deb.debian" + ".org", "pypi" + ".org", "/ro" + "ot/", "/ho" + "me/"):
            assert word not in text, f"{path}: {word}"


@pytest.fixture
def pretended_cuda(tmp_path):
    """A folder with an nvcc that reports a version and architectures, but cannot compile."""

    def make(version, architectures, accepts=False):
        nvcc = tmp_path / "cuda" / "bin" / "nvcc"
        nvcc.parent.mkdir(parents=True, exist_ok=True)
        listed = "\\n".join(f"compute_{one}" for one in architectures)
        nvcc.write_text(
            f"#!/bin/sh\ncase $1 in --version) echo 'Cuda compilation tools, release {version}, V{version}.1';; "
            f"--list-gpu-arch) printf '{listed}\\n';; -ccbin) echo 'unsupported GNU version!' >&2; "
            f"exit {int(not accepts)};; "
            "esac\n"
        )
        nvcc.chmod(0o755)
        return {"BONECAFFE_GPU": "1", "CUDA_HOME": str(tmp_path / "cuda")}

    return make


@pytest.mark.skipif(not list(SOURCES.glob("*.tar.gz")), reason="Caffe was not built here from source")
def test_gpu_builds_that_cannot_be_are_refused(pretended_cuda, tmp_path):
    """CUDA too old; a GPU too old for it, with the remedy; no architecture; no nvcc; an invalid setting."""
    tarball = {
        "CAFFE_SOURCE": str(sorted(SOURCES.glob("*.tar.gz"))[0]),
        "BONECAFFE_CACHE": str(tmp_path / "cache"),
    }

    def refused(**environment):
        done = build(**tarball, **environment)
        assert done.returncode == 1 and not list((tmp_path / "cache").glob("caffe/*.tree")), done.stderr
        return done.stderr

    assert "CUDA 10.2: 11.8, 12 or 13 is needed" in refused(**pretended_cuda("10.2", [30]))
    today = pretended_cuda("13.0", [75, 86, 120])
    message = refused(**today, CUDA_ARCH="6.1")
    assert "compute capability 61: CUDA 13.0 supports 75 and newer" in message and "install CUDA 12 or 11.8" in message
    assert "'ampere' is not a compute capability" in refused(**today, CUDA_ARCH="ampere")
    smi = tmp_path / "bin" / "nvidia-smi"
    smi.parent.mkdir()
    smi.write_text("#!/bin/sh\necho 'No devices were found'\n")
    smi.chmod(0o755)
    message = refused(**today, PATH=f"{smi.parent}:{os.environ['PATH']}")
    assert "no GPU found and no CUDA_ARCH given: building for compute capability 75" in message
    assert "accepts none of the C++ compilers here: unsupported GNU version!" in message and "CUDAHOSTCXX" in message
    message = refused(**pretended_cuda("13.0", [75], accepts=True))
    assert "is not complete: no " in message and "cuBLAS (cublas_v2.h and libcublas.so" in message
    assert "cmake" not in message.lower()
    assert "it has no bin/nvcc" in refused(BONECAFFE_GPU="1", CUDA_HOME=str(tmp_path))
    assert "1 builds for a GPU, 0 for the CPU" in refused(BONECAFFE_GPU="yes")
