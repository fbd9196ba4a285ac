"""The parts of scripts/build_caffe.py: settings, key, compute capabilities, compilers, libraries, sources, steps.

nvcc and nvidia-smi are stand-ins here, because a machine need not have them, and no machine has all versions.
"""

from __future__ import annotations

import os
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from bonecaffe.errors import CaffeError
from builder import gpu, inputs, source
from builder.build import Build
from builder.settings import Settings
from builder.steps import Steps

PYTHON = inputs.Python("3.11", "/include", "/libpython.so", "/numpy", "2")
CUDA = gpu.Toolkit(Path("/cuda"), "13.0", (75, 80, 86, 89, 120))


def some_inputs(**changes):
    values = {
        "source_sha256": "source",
        "edits_sha256": "edits",
        "cuda_header_sha256": "header",
        "python": PYTHON,
        "parallel": True,
        "gpu": None,
        "compiler": "12.2.0",
        "machine": "x86_64",
        "libraries": "libopenblas-dev 0.3.21+ds-4",
    }
    return inputs.Inputs(**{**values, **changes})


def a_gpu(**changes):
    values = {
        "toolkit": CUDA,
        "architectures": gpu.Architectures((75, 86), 86),
        "host_compiler": "/usr/bin/g++",
        "cudnn": None,
        "nccl": None,
    }
    return gpu.Gpu(**{**values, **changes})


# ---- settings ----------------------------------------------------------------------------------------------------


def test_settings_not_set_or_set_to_nothing_are_the_defaults():
    """`make` exports its variables empty; CUDA's and NCCL's second names count too."""
    assert Settings.read({"CUDA_HOME": "", "BONECAFFE_GPU": "", "BONECAFFE_FAST": ""}) == Settings.read({})
    settings = Settings.read({})
    assert (settings.gpu, settings.parallel, settings.cudnn, settings.nccl) == ("auto", True, True, True)
    settings = Settings.read({"BONECAFFE_FAST": "0", "CUDNN": "0", "NCCL": "0", "NCCL_DIR": "/n", "CUDA_PATH": "/c"})
    assert not settings.parallel and not settings.cudnn and not settings.nccl
    assert (settings.nccl_root, settings.cuda) == ("/n", "/c")


@pytest.mark.parametrize("name", ["BONECAFFE_GPU", "BONECAFFE_FAST"])
def test_settings_that_are_none_are_refused(name):
    """With the make variable in the message."""
    with pytest.raises(CaffeError, match=f"{name}=yes .make caffe {name[-4:].strip('_')}"):
        Settings.read({name: "yes"})


# ---- the key -----------------------------------------------------------------------------------------------------


def test_keys_of_version_0_1_stay_valid():
    """As version 0.1's shell script made them, with printf and sha256sum."""
    flags = (
        "-DCMAKE_BUILD_TYPE=Release -DCPU_ONLY=ON -DUSE_OPENMP=ON -DUSE_LEVELDB=OFF -DBUILD_docs=OFF -DBUILD_python=ON "
        "-DBUILD_python_layer=ON -DBLAS=Open -Dpython_version=3.11 -DCMAKE_POLICY_VERSION_MINIMUM=3.5"
    )
    lines = ["source", "edits", flags, "12.2.0", "x86_64", "3.11 numpy2", "libopenblas-dev 0.3.21+ds-4"]
    assert some_inputs().key == by_shell(lines)
    cuda_flags = (
        "-DCPU_ONLY=OFF -DCUDA_ARCH_NAME=Manual -DCUDA_ARCH_BIN=75 86 -DCUDA_ARCH_PTX=86 "
        "-DCUDA_PROPAGATE_HOST_FLAGS=OFF -DCMAKE_POLICY_DEFAULT_CMP0146=OLD -DUSE_CUDNN=OFF -DUSE_NCCL=OFF"
    )
    lines[2] = flags.replace("-DCPU_ONLY=ON", cuda_flags).replace("OPENMP=ON", "OPENMP=OFF")
    lines += ["CUDA 13.0, no cuDNN, no NCCL: one GPU at a time; compute capability 75 86"]
    lines += [
        "-DCUDA_TOOLKIT_ROOT_DIR=/cuda -DCUDA_HOST_COMPILER=/usr/bin/g++ -DCMAKE_INSTALL_RPATH_USE_LINK_PATH=ON",
        "header  -",
    ]
    assert some_inputs(gpu=a_gpu(), parallel=False).key == by_shell(lines)


def by_shell(lines):
    command = ["sh", "-c", "printf '%s\\n' \"$@\" | sha256sum | cut -c1-16", "sh", *lines]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_every_input_makes_another_key():
    """Each input of a build."""
    changed = [
        {"source_sha256": "another"},
        {"edits_sha256": "another"},
        {"parallel": False},
        {"compiler": "13.1.0"},
        {"machine": "aarch64"},
        {"libraries": ""},
        {"python": inputs.Python("3.13", "/include", "/libpython.so", "/numpy", "2")},
        {"python": inputs.Python("3.11", "/include", "/libpython.so", "/numpy", "1")},
        {"gpu": a_gpu()},
        {"gpu": a_gpu(), "cuda_header_sha256": "another"},
        {"gpu": a_gpu(architectures=gpu.Architectures((75,), 75))},
        {"gpu": a_gpu(host_compiler="/usr/bin/g++-11")},
        {"gpu": a_gpu(toolkit=gpu.Toolkit(Path("/cuda"), "12.8", (75, 86)))},
        {"gpu": a_gpu(cudnn=gpu.Library(Path("/include"), Path("/lib/libcudnn.so")))},
        {"gpu": a_gpu(nccl=gpu.Library(Path("/include"), Path("/lib/libnccl.so")))},
    ]
    keys = [some_inputs(**changes).key for changes in [{}, *changed]]
    assert len(set(keys)) == len(keys)
    assert some_inputs(cuda_header_sha256="another").key == some_inputs().key  # a build for the CPU does not include it


def test_cmake_is_given_the_flags():
    """The C++ flags of a fast build, and the header that every file of a GPU build includes."""
    without_path = "-ffile-prefix-map=/t=caffe"
    fast = some_inputs().cmake_arguments(Path("/t"), Path("/h"))
    assert f"-DCMAKE_CXX_FLAGS={without_path} {inputs.PARALLEL_CXX_FLAGS}" in fast and "-DCPU_ONLY=ON" in fast
    slow = some_inputs(parallel=False).cmake_arguments(Path("/t"), Path("/h"))
    assert f"-DCMAKE_CXX_FLAGS={without_path}" in slow
    cuda = some_inputs(parallel=False, gpu=a_gpu()).cmake_arguments(Path("/t"), Path("/h"))
    assert f"-DCMAKE_CXX_FLAGS={without_path} -include /h" in cuda
    assert "-DCUDA_NVCC_FLAGS=-std=c++17;-O3;-Wno-deprecated-gpu-targets;-include;/h" in cuda


def test_the_record_of_a_build_keeps_its_fields():
    """Manifests and `doctor` read them."""
    record = some_inputs().record("a source")
    assert list(record) == [
        *("source", "source_sha256", "commit", "edits_sha256", "flags", "compiler", "python", "blas", "gpu", "built"),
    ]
    assert (record["source"], record["compiler"], record["gpu"]) == ("a source", "g++ 12.2.0", "none")


# ---- the GPU -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "real", "virtual"),
    [
        ("", (75,), 75),  # no GPU here: the oldest, which all newer drivers compile for themselves
        ("8.6", (86,), 86),
        ("89,7.5 86 86", (75, 86, 89), 89),
        ("87", (86,), 86),  # unknown: its driver compiles the newest that it can
        ("75 125", (75,), 120),
        ("100 120", (120,), 120),
        ("120 12.1", (120,), 120),
    ],
)
def test_compute_capabilities_are_chosen(asked, real, virtual):
    """Every GPU asked for has its code, or PTX of its generation or older."""
    assert gpu.choose(gpu.capabilities(asked), CUDA) == gpu.Architectures(real, virtual)


def test_compute_capabilities_that_cannot_be_are_refused():
    """A word that is not a capability; a GPU too old, even together with newer ones."""
    with pytest.raises(CaffeError, match=r"CUDA_ARCH: '8\.6\+PTX' is not a compute capability"):
        gpu.capabilities("8.6+PTX")
    with pytest.raises(CaffeError, match="compute capability 61: CUDA 13.0 supports 75"):
        gpu.choose([61, 86], CUDA)


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Puts stand-ins of programs first on PATH."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def put(name, script, where=folder):
        where.mkdir(parents=True, exist_ok=True)
        (where / name).write_text(f"#!/bin/sh\n{script}\n")
        (where / name).chmod(0o755)

    return put


NVCC = """case $1 in
  --version) echo 'Cuda compilation tools, release 12.8, V12.8.93' ;;
  --list-gpu-arch) printf 'compute_%s\\n' 100 50 100a 61 ;;
  --dryrun) echo '#$ TOP={top}' >&2 ;;
  -ccbin) case $2 in *{accepts}) ;; *) echo 'unsupported GNU version! gcc versions later than 12' >&2; exit 1 ;; esac ;;
esac"""


def test_toolkit_is_found_through_the_nvcc_on_path(programs, tmp_path):
    """nvcc may be a script that starts the real one elsewhere; the older compiler that it accepts is found."""
    nvcc = NVCC.format(top=tmp_path / "cuda" / "bin" / "..", accepts="/g++-11")
    programs("nvcc", nvcc)
    programs("nvcc", nvcc, tmp_path / "cuda" / "bin")
    for name in gpu.HOST_COMPILERS:
        programs(name, "exit 0")
    toolkit = gpu.find_toolkit("")
    assert toolkit == gpu.Toolkit(tmp_path / "cuda", "12.8", (50, 61, 100))
    assert gpu.host_compiler(toolkit, "", tmp_path) == str(tmp_path / "programs" / "g++-11")
    programs("my-g++-11", "exit 0")
    assert gpu.host_compiler(toolkit, "my-g++-11", tmp_path).endswith("/g++-11")  # not by that name: refused, not used
    programs("nvcc", NVCC.format(top="", accepts="/my-c++"), tmp_path / "cuda" / "bin")
    programs("my-c++", "exit 0")
    assert gpu.host_compiler(toolkit, "my-c++", tmp_path).endswith("/my-c++")
    with pytest.raises(CaffeError, match="unsupported GNU version! gcc versions later than 12"):
        gpu.host_compiler(toolkit, "", tmp_path)


def x_named(part):
    return replace(part, header=f"x{part.header}", libraries=tuple(f"x{name}" for name in part.libraries))


def test_a_toolkit_without_a_part_is_refused_by_its_name(tmp_path, monkeypatch):
    """Header and library of each: named with the package; found in the folders of every kind of install."""
    for name in gpu._SEARCHED:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(gpu, "PARTS", [x_named(part) for part in gpu.PARTS])  # so that the machine's own do not count
    toolkit = replace(CUDA, folder=tmp_path)

    def put(*paths):
        for path in paths:
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).touch()

    with pytest.raises(CaffeError, match="no CUDA runtime .*no cuBLAS .*no cuRAND .*make caffe GPU=0"):
        gpu.check_parts(toolkit)
    put("include/xcuda_runtime.h", "lib64/xlibcudart_static.a", "include/xcurand.h", "lib64/xlibcurand.so")
    put("targets/x86_64-linux/include/xcublas_v2.h", "targets/x86_64-linux/lib/xlibcublas.so.12")
    with pytest.raises(CaffeError) as error:
        gpu.check_parts(toolkit)
    message = str(error.value)
    assert f"in {tmp_path} is not complete: no cuBLAS (xlibcublas.so; NVIDIA's package libcublas-dev)" in message
    assert "cuRAND" not in message and "runtime" not in message
    put("targets/x86_64-linux/lib/xlibcublas.so")
    gpu.check_parts(toolkit)
    (tmp_path / "targets/x86_64-linux/lib/xlibcublas.so").rename(tmp_path / "xlibcublas.so")
    monkeypatch.setenv("CUDA_LIB_PATH", str(tmp_path))
    gpu.check_parts(toolkit)


def test_installed_gpus_are_read(programs, monkeypatch):
    """One line per GPU; nvidia-smi prints a sentence on stdout where there is none, and may be missing."""
    programs("nvidia-smi", "printf '8.6\\n6.1\\n8.6\\n'")
    assert gpu.capabilities(gpu._installed_gpus()) == [61, 86]
    programs("nvidia-smi", "echo 'No devices were found'")
    assert gpu._installed_gpus() == ""
    monkeypatch.setenv("PATH", "/nonexistent")
    assert gpu._installed_gpus() == ""


def test_cudnn_and_nccl_are_found_with_header_and_library(tmp_path):
    """In the given folder, then in CUDA's; a header without a library, or the reverse, does not count."""
    cuda, own = tmp_path / "cuda", tmp_path / "own"
    for folder in (cuda / "include", cuda / "lib64", own / "include", own / "lib"):
        folder.mkdir(parents=True)
    assert gpu.find_library("nonesuch", "nonesuch.h", str(own), cuda) is None
    for name in ("libnonesuch.so.9", "libnonesuch.so"):
        (cuda / "lib64" / name).touch()
    assert gpu.find_library("nonesuch", "nonesuch.h", str(own), cuda) is None
    (cuda / "include" / "nonesuch.h").touch()
    in_cuda = gpu.Library(cuda / "include", cuda / "lib64" / "libnonesuch.so")
    assert gpu.find_library("nonesuch", "nonesuch.h", "", cuda) == in_cuda
    (own / "include" / "nonesuch.h").touch()
    (own / "lib" / "libnonesuch.so.8").touch()
    assert gpu.find_library("nonesuch", "nonesuch.h", str(own), cuda) == gpu.Library(
        own / "include", own / "lib" / "libnonesuch.so.8"
    )


def test_summary_of_a_gpu_build(tmp_path):
    """Since cuDNN 8, its version is in a separate header."""
    library = gpu.Library(tmp_path, tmp_path / "libcudnn.so")
    (tmp_path / "cudnn_version.h").write_text("#define CUDNN_MAJOR 9\n#define CUDNN_MINOR 1\n")
    assert a_gpu(cudnn=library, nccl=library).summary == "CUDA 13.0, cuDNN 9, NCCL; compute capability 75 86"
    assert a_gpu().summary == "CUDA 13.0, no cuDNN, no NCCL: one GPU at a time; compute capability 75 86"


# ---- sources -----------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """A folder that has the shape of Caffe's source."""
    root = tmp_path / "caffe-master"
    for name in (
        "CMakeLists.txt",
        "src/caffe/proto/caffe.proto",
        "include/a.hpp",
        "python/caffe/__init__.py",
        "docs/x",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    (root / "build").mkdir()
    (root / "build" / "object.o").touch()
    return root


@pytest.fixture
def steps(tmp_path):
    """Steps with a log and an open file in place of a lock."""
    with open(tmp_path / "lock", "w") as lock:
        yield Steps(tmp_path / "build.log", lock.fileno())


def given(path, scratch=Path("/nonexistent")):
    return source.find_source(Settings.read({"CAFFE_SOURCE": str(path)}), Path("/nonexistent"), scratch)


def test_a_source_folder_is_copied_without_its_own_build(folder, steps, tmp_path):
    """Its key is the one of version 0.1 (find, sort and sha256sum). It changes with the files that a build reads."""
    (folder / "python" / "caffe" / "a.pyc").touch()
    (folder / "src" / "link.cpp").symlink_to(folder / "CMakeLists.txt")
    found = given(folder)
    shell = (
        "find CMakeLists.txt include src python -type f ! -name '*.pyc' -print0 | LC_ALL=C sort -z | "
        "xargs -0 sha256sum | sha256sum | cut -c1-64"
    )
    assert found.sha256 == subprocess.check_output(shell, shell=True, cwd=folder, text=True).strip()
    found.unpack(tmp_path / "source", steps)
    assert (tmp_path / "source" / "docs" / "x").is_file() and not (tmp_path / "source" / "build").exists()
    (folder / "docs" / "x").write_text("changed")
    assert given(folder).sha256 == found.sha256
    (folder / "include" / "a.hpp").write_text("changed")
    assert given(folder).sha256 != found.sha256


@pytest.mark.parametrize("inside", ["caffe-master", "."])
def test_a_tarball_is_unpacked_with_or_without_a_folder_of_its_own(folder, steps, tmp_path, inside):
    """GitHub's tarball has one, Debian's has none."""
    with tarfile.open(tmp_path / "caffe.tar.gz", "w:gz") as archive:
        archive.add(folder, arcname=inside)
    (tmp_path / "work").mkdir()
    found = given(tmp_path / "caffe.tar.gz", tmp_path / "work")
    assert found.sha256 == given(folder).sha256 and "another tree than 99bd99795" in found.origin
    assert list((tmp_path / "work").iterdir()) == []
    found.unpack(tmp_path / "source", steps)
    assert (tmp_path / "source" / "src" / "caffe" / "proto" / "caffe.proto").is_file()
    assert sorted(path.name for path in tmp_path.glob("source*")) == ["source"]


def test_a_tarball_that_is_none_or_of_something_else_is_refused(tmp_path):
    """Named as the user named it."""
    (tmp_path / "page.tar.gz").write_text("<html>")
    with pytest.raises(CaffeError, match=r"CAFFE_SOURCE=.*page\.tar\.gz: not a readable tarball"):
        given(tmp_path / "page.tar.gz", tmp_path / "work" / "a")
    with tarfile.open(tmp_path / "other.tar", "w") as archive:
        archive.add(__file__, arcname="other/test.py")
    with pytest.raises(CaffeError, match=r"other\.tar has no src.*not Caffe's source"):
        given(tmp_path / "other.tar", tmp_path / "work" / "b")


def test_tarball_that_changes_before_it_is_unpacked_is_refused(folder, steps, tmp_path):
    """Its key was made of another tree."""
    with tarfile.open(tmp_path / "caffe.tar.gz", "w:gz") as archive:
        archive.add(folder, arcname="caffe")
    (tmp_path / "work").mkdir()
    found = given(tmp_path / "caffe.tar.gz", tmp_path / "work")
    (folder / "include" / "a.hpp").write_text("changed")
    with tarfile.open(tmp_path / "caffe.tar.gz", "w:gz") as archive:
        archive.add(folder, arcname="caffe")
    with pytest.raises(CaffeError, match="has changed since it was examined"):
        found.unpack(tmp_path / "source", steps)


def test_an_archives_address_is_read_from_apt(programs):
    """The main archive's of this distribution, once, without the security archive's; none on another distribution."""
    programs(
        "apt-get",
        "printf '%s\\n' 'Debian|http://a/debian/|main' 'Debian|http://a/debian/|main' "
        "'Debian|http://a/debian/|contrib' 'Debian|http://a/debian-security/|main' "
        "'Else|http://c/|main' 'Debian|http://b/debian/|main'",
    )
    assert source._addresses("Debian") == ["http://a/debian/", "http://b/debian/"]
    assert source._addresses("Ubuntu") == []


@pytest.fixture
def upstream(folder, tmp_path, monkeypatch):
    """Pretends that ``folder`` is upstream's tree. Gives a function that looks for it, with a tarball of it."""
    tarball = tmp_path / "served" / source.ORIGINAL
    tarball.parent.mkdir()
    with tarfile.open(tarball, "w:gz") as archive:
        archive.add(folder, arcname=".")
    monkeypatch.setattr(source, "TREE_SHA256", source.tree_sha256(folder))
    monkeypatch.setattr(source, "TARBALL", "http://127.0.0.1:1/nothing")  # no server there
    (tmp_path / "cache").mkdir()

    def find():
        work = tmp_path / f"work{len(list(tmp_path.glob('work*')))}"
        work.mkdir()
        return source.find_source(Settings.read({}), tmp_path / "cache", work)

    find.tarball = tarball
    return find


APT = """case $1 in
  indextargets) echo '{origin}|http://a/|main'; exit ;;
  -o) ;;
esac
case $* in
  *update*) ;;
  *"source --download-only caffe={version}") {answer} ;;
  *) echo "E: asked for something else: $*" >&2; exit 100 ;;
esac"""


@pytest.mark.parametrize("number", range(len(source.ARCHIVES)))
def test_source_comes_from_the_distributions_own_archive(upstream, programs, number, capfd):
    """Debian's or Ubuntu's, by apt; it is checked, kept in the cache, and its origin reported. Both give one build."""
    archive = source.ARCHIVES[number]
    answer = f"cp {upstream.tarball} ."
    programs("apt-get", APT.format(origin=archive.origin, version=archive.version, answer=answer))
    found = upstream()
    assert found.origin == f"{archive.origin} {archive.release}'s source package, upstream 99bd99795"
    assert f"{archive.origin} {archive.release}" in capfd.readouterr().err
    assert found.sha256 == source.TREE_SHA256
    programs("apt-get", "echo 'E: nobody asks' >&2; exit 100")
    again = upstream()
    assert (again.origin, again.sha256) == ("upstream 99bd99795, from the cache", found.sha256)


def test_source_that_the_archive_has_no_more_comes_from_upstream(upstream, programs, tmp_path, monkeypatch, capfd):
    """The archive's error is not shown when another way works; a damaged tarball in the cache is replaced."""
    archive = source.ARCHIVES[0]
    programs(
        "apt-get",
        APT.format(origin=archive.origin, version=archive.version, answer="echo 'E: no longer there' >&2; exit 100"),
    )
    (tmp_path / "cache" / source.CACHED).write_text("damaged")
    monkeypatch.setattr(source, "TARBALL", upstream.tarball.as_uri())
    found = upstream()
    assert found.origin == "upstream's tarball, 99bd99795, upstream 99bd99795"
    assert "no longer there" not in capfd.readouterr().err


def test_source_comes_from_git_as_the_last(upstream, programs, folder, tmp_path, monkeypatch):
    """One commit, without its history."""
    programs("apt-get", "exit 1")
    git = ["git", "-C", str(folder), "-c", "user.name=x", "-c", "user.email=x"]
    for command in (["init", "-q"], ["add", "-f", "-A"], ["commit", "-q", "-m", "x"]):
        subprocess.run([*git, *command], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    folder.rename(tmp_path / "caffe.git")
    monkeypatch.setattr(source, "COMMIT", commit)
    monkeypatch.setattr(source, "UPSTREAM", str(tmp_path / "caffe"))
    assert upstream().origin.startswith("a git clone of ")


def test_without_any_way_each_is_named_with_its_reason(upstream, programs, tmp_path, monkeypatch):
    """Another tree than upstream's is a reason too; the remedy is CAFFE_SOURCE or CAFFE_ROOT."""
    archive = source.ARCHIVES[0]
    (upstream.tarball.parent / "x").write_text("x")
    with tarfile.open(upstream.tarball, "w:gz") as changed:
        changed.add(__file__, arcname="caffe/include/x")
        changed.add(__file__, arcname="caffe/CMakeLists.txt")
    answer = f"cp {upstream.tarball} ."
    programs("apt-get", APT.format(origin=archive.origin, version=archive.version, answer=answer))
    programs("git", "echo 'fatal: no route' >&2; exit 128")
    with pytest.raises(CaffeError) as error:
        upstream()
    message = str(error.value)
    assert "Debian bullseye's source package: another tree than upstream's at 99bd99795" in message
    assert "upstream's tarball, 99bd99795: " in message and "fatal: no route" in message
    assert "CAFFE_SOURCE" in message and "CAFFE_ROOT" in message
    assert list((tmp_path / "cache").iterdir()) == []


# ---- steps -------------------------------------------------------------------------------------------------------


def test_a_step_reports_each_tenth_and_keeps_its_output(steps, capfd):
    """make's percentages come in any order; the log has every line."""
    steps.run(
        ["sh", "-c", "for i in 0 3 12 11 15 40 38 100; do printf '[%3d%%] Building\\n' $i; done; echo $NAME"], NAME="x"
    )
    assert capfd.readouterr().err.splitlines() == [f"caffe: {done} %" for done in (0, 10, 40, 100)]
    assert len(steps.log.read_text().splitlines()) == 9 and steps.log.read_text().endswith("x\n")


def test_a_failed_step_shows_the_end_of_the_log(steps):
    """And the command, and where the whole log is."""
    with pytest.raises(CaffeError) as failure:
        steps.run(["sh", "-c", "seq 100; echo 'fatal error: no such header' >&2; exit 2"])
    lines = str(failure.value).splitlines()
    assert lines[0].startswith("failed: sh -c") and lines[-2] == "fatal error: no such header" and len(lines) == 32
    assert lines[-1] == f"caffe: the whole log: {steps.log}"


# ---- the build ---------------------------------------------------------------------------------------------------


class PretendedBuild(Build):
    """Compiles nothing: its install is a folder of the right shape, whose pycaffe is ``PYCAFFE``."""

    PYCAFFE = ""

    def _build(self, lock):
        put_caffe(self.staged, self.PYCAFFE)


class BrokenBuild(PretendedBuild):
    """One whose pycaffe does not import."""

    PYCAFFE = "raise ImportError('undefined symbol')"


def put_caffe(root, pycaffe):
    for program in ("caffe", "convert_imageset", "compute_image_mean"):
        (root / "bin").mkdir(parents=True, exist_ok=True)
        (root / "bin" / program).write_text("#!/bin/sh\n")
        (root / "bin" / program).chmod(0o755)
    (root / "python" / "caffe").mkdir(parents=True)
    (root / "python" / "caffe" / "__init__.py").write_text(pycaffe + "\n")


A_SOURCE = source.Source('a "quoted" source', "source", Path())


def test_a_finished_build_is_moved_into_place_and_used_again(tmp_path, capfd):
    """With its record, as JSON; the second call builds nothing."""
    build = PretendedBuild(A_SOURCE, some_inputs(), tmp_path)
    caffe = build.ensure()
    assert (caffe.root, caffe.origin) == (tmp_path / some_inputs().key, A_SOURCE.origin)
    assert caffe.build["source"] == A_SOURCE.origin and caffe.build["edits_sha256"] == "edits"
    assert "built into" in capfd.readouterr().err and not (build.tree / "staging").exists()
    assert build.ensure() == caffe and capfd.readouterr().err == ""


def test_a_build_that_does_not_work_is_not_left_in_place(tmp_path):
    """Neither a finished Caffe nor its tree is left; the log is named."""
    build = BrokenBuild(A_SOURCE, some_inputs(), tmp_path)
    with pytest.raises(CaffeError, match=f"that was built does not work: .*undefined symbol.*log: {build.log}"):
        build.ensure()
    assert [path.name for path in tmp_path.iterdir()] == [f"{some_inputs().key}.lock"]


@pytest.mark.parametrize("step", ["cmake -S", "make"])
def test_a_failed_build_leaves_its_log_alone(tmp_path, programs, monkeypatch, step):
    """No tree, whichever step fails; the error names the log, and the next build that works takes its place."""
    programs("cmake", f'echo "cmake $*"; case "cmake $*" in "{step}"*) exit 1;; esac')
    programs("make", 'echo "[ 50%] fatal error: no such header"; exit 1')
    (tmp_path / "caffe_edits.py").touch()  # nothing to edit
    monkeypatch.setattr("builder.build.SCRIPTS", tmp_path)
    cache = tmp_path / "cache"
    cache.mkdir()
    build = Build(GivenSource("a source", "source", Path()), some_inputs(), cache)
    with pytest.raises(CaffeError, match=f"the whole log: {build.log}"):
        build.ensure()
    assert sorted(path.name for path in cache.iterdir()) == [f"{build.inputs.key}.lock", f"{build.inputs.key}.log"]
    assert "cmake -S" in build.log.read_text()
    install = f'mkdir -p "$DESTDIR/{cache}"; cp -r {tmp_path}/made "$DESTDIR/{build.prefix}"'
    programs("cmake", f"echo again; case $1 in -P) {install};; esac")
    programs("make", "exit 0")
    put_caffe(tmp_path / "made", "")
    build.ensure()
    log = (build.tree / "build.log").read_text()
    assert "again" in log and "fatal error" not in log and not build.log.exists()


class GivenSource(source.Source):
    """A source without files."""

    def unpack(self, target, steps):
        target.mkdir()


def test_caffes_own_tests_run_in_its_source_folder(tmp_path, programs, capfd):
    """Their data paths start there; GPU tests are left out; the result is their exit status."""
    programs("make", 'echo "[ 50%] $*"')
    build = PretendedBuild(A_SOURCE, some_inputs(), tmp_path / "cache")
    put_caffe(build.prefix, "")
    (build.tree / "source").mkdir(parents=True)
    programs("test.testbin", 'echo "$PWD $*"; exit 3', build.tree / "build" / "test")
    assert build.check() == 3
    out, err = capfd.readouterr()
    assert out == f"{build.tree / 'source'} --gtest_filter=-*GPU* --gtest_shuffle=0 --gtest_color=no\n"
    assert "caffe: 50 %" in err and "test.testbin" in (build.tree / "check.log").read_text()
