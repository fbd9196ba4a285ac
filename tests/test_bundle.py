"""`make caffe-bundle`: packed, unpacked elsewhere and run by itself; what does not fit or is damaged is refused.

The Caffe that is packed is the one of this environment, in CPU mode.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import REPOSITORY, SAMPLE

import bundle_caffe
from bonecaffe.caffe import bundle, installation, programs
from bonecaffe.errors import CaffeError
from builder import boundary
from builder import bundle as packing
from builder.elf import Elf

SCRIPT = [sys.executable, str(REPOSITORY / "scripts" / "bundle_caffe.py")]
HERE = bundle.Machine.this()
TRAINING = """
import sys
from pathlib import Path
from conftest import prepare_run
from bonecaffe.caffe import installation
from bonecaffe.predict import predict_run
from bonecaffe.training import train
run = prepare_run(Path(sys.argv[1]), Path(sys.argv[2]))
state = train.train(run).state
predict_run(run)
print(state, len(run.predictions("test").read_text().splitlines()))
print(installation.find().root)
"""


def environment(**changes):
    """This environment with no Caffe and no library path of its own."""
    without = ("CAFFE_ROOT", "LD_LIBRARY_PATH", "LD_PRELOAD")
    return {**{name: value for name, value in os.environ.items() if name not in without}, **changes}


DOCTOR = ("-c", "from bonecaffe import doctor; print(*doctor._caffe(), sep='\\n')")
"""What doctor's table has of Caffe, without the table's line breaks."""


def refused(root) -> list[str]:
    """What `make setup` and doctor print for a bundle that does not work."""
    setup = run(sys.executable, REPOSITORY / "scripts/build_caffe.py", "--given", CAFFE_ROOT=str(root))
    assert setup.returncode == 1 and setup.stderr.startswith(f"caffe: CAFFE_ROOT={root} does not work: "), setup.stderr
    table = run(sys.executable, *DOCTOR, CAFFE_ROOT=str(root))
    assert table.returncode == 0 and table.stdout.startswith("Finding(what='Caffe', state='missing'")
    return [setup.stderr, table.stdout]


def run(*command, **changes):
    options = {"capture_output": True, "text": True, "check": False, "timeout": 300}
    return subprocess.run([str(word) for word in command], env=environment(**changes), **options)


@pytest.fixture(scope="module")
def caffe():
    """The Caffe that is packed."""
    found = installation.find()
    if found.bundle:
        pytest.skip("this environment's Caffe is a bundle already")
    return found


@pytest.fixture(scope="module")
def contents(caffe):
    return packing.gather(caffe)


@pytest.fixture(scope="module")
def unpacked(contents, tmp_path_factory):
    """The bundle as its archive is unpacked, moved to a folder with a blank in its name."""
    folder = tmp_path_factory.mktemp("bundle")
    packing.write_folder(contents, folder / "first")
    (folder / "moved there").mkdir()
    return (folder / "first").rename(folder / "moved there" / "caffe")


@pytest.fixture
def few(contents):
    """A bundle of its smaller files and one program: all of it takes a minute to compress."""
    kept = {
        name: member
        for name, member in contents.members.items()
        if member.size < 20_000 or name in (bundle.RECORD, "bin/caffe")
    }
    return packing.Contents(contents.key, contents.record, kept)


@pytest.fixture
def copied(unpacked, tmp_path):
    """The bundle, to be changed: its files are links to the unpacked ones, so a test replaces what it changes."""
    return Path(shutil.copytree(unpacked, tmp_path / "copied", copy_function=os.link))


def loaded(trace: Path, root: Path) -> dict[str, set[str]]:
    """The libraries that the dynamic loader initialized, those opened later too, for each program of the bundle."""
    found: dict[str, set[str]] = {}
    for path in trace.parent.glob(f"{trace.name}.*"):
        text = path.read_text(errors="replace")
        program = re.search(r"initialize program: (.+)", text)
        if program and Path(program[1]).is_relative_to(root):
            found.setdefault(Path(program[1]).name, set()).update(re.findall(r"calling init: (.+)", text))
    return found


def foreign(libraries, root: Path) -> list[str]:
    """Those from outside the bundle that are not the C library's."""
    return sorted(
        path
        for path in libraries
        if not os.path.realpath(path).startswith(f"{root}/") and not packing.NEVER_PACKED.fullmatch(Path(path).name)
    )


# ---- it runs -----------------------------------------------------------------------------------------------------


def test_a_training_in_a_bundle_uses_nothing_else(unpacked, tmp_path):
    """Prepared, trained and predicted from; all three programs take every library but glibc's from the bundle."""
    trace = tmp_path / "trace"
    done = run(
        *(sys.executable, "-c", TRAINING, tmp_path / "run", SAMPLE),
        CAFFE_ROOT=str(unpacked),
        PYTHONPATH=f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'tests'}",
        LD_DEBUG="files",
        LD_DEBUG_OUTPUT=str(trace),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-2:] == ["finished 5", str(unpacked)]
    programs = loaded(trace, unpacked)
    assert set(programs) >= {"caffe", "convert_imageset"}
    for program, libraries in programs.items():
        assert len(libraries) > 100, program
        assert foreign(libraries, unpacked) == [], program


def test_png_and_jpeg_are_converted_and_averaged(unpacked, tmp_path):
    """OpenCV, with all that its readers of images need, is in the bundle."""
    image = np.full((8, 8), 50, np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), image)
    cv2.imwrite(str(tmp_path / "b.jpg"), image + 100)
    (tmp_path / "list.txt").write_text("a.png 1\nb.jpg 2\n")
    trace = {"LD_DEBUG": "files", "LD_DEBUG_OUTPUT": str(tmp_path / "trace")}
    trace |= {"GLOG_logtostderr": "1", "GLOG_minloglevel": "0"}  # importing pycaffe in another test made it silent
    made = run(unpacked / "bin/convert_imageset", f"{tmp_path}/", tmp_path / "list.txt", tmp_path / "lmdb", **trace)
    assert made.returncode == 0 and "Processed 2 files" in made.stderr, made.stderr
    mean = run(unpacked / "bin/compute_image_mean", tmp_path / "lmdb", **trace)
    assert "mean_value channel [0]: 100" in mean.stderr, mean.stderr
    programs = loaded(tmp_path / "trace", unpacked)
    assert set(programs) == {"convert_imageset", "compute_image_mean"}
    assert [foreign(libraries, unpacked) for libraries in programs.values()] == [[], []]


def test_pycaffe_of_a_bundle_brings_its_libraries(unpacked):
    """What is mapped after `import caffe`, in addition to what Python and NumPy had mapped before it."""
    code = (
        "import numpy, google.protobuf, six, sys; path = lambda line: line.split(maxsplit=5)[-1].strip()\n"
        "maps = lambda: {path(line) for line in open('/proc/self/maps') if '.so' in line}\n"
        "before = maps(); import caffe; caffe.set_mode_cpu(); print(*sorted(maps() - before), sep='\\n')"
    )
    done = run(sys.executable, "-c", code, PYTHONPATH=str(unpacked / "lib/python3/dist-packages"), GLOG_minloglevel="2")
    assert done.returncode == 0, done.stderr
    mapped = done.stdout.splitlines()
    assert str(unpacked / "lib/libcaffe.so.1.0.0") in mapped and len(mapped) > 100
    of_python = (os.path.realpath(sys.prefix), f"{os.path.realpath(sys.base_prefix)}/lib/python3")
    assert [path for path in foreign(mapped, unpacked) if not os.path.realpath(path).startswith(of_python)] == []


def test_the_library_path_of_another_program_does_no_harm(unpacked, tmp_path):
    """A cluster's modules set LD_LIBRARY_PATH; a run path that it overrides (RUNPATH) would load these."""
    for name in ("libglog.so.1", "libstdc++.so.6", "libopenblas.so.0", "libgfortran.so.5", "libgdal.so.32"):
        (tmp_path / name).write_bytes(b"not a library")
    done = run(unpacked / "bin/caffe", "--version", LD_LIBRARY_PATH=str(tmp_path))
    assert done.returncode == 0 and "version 1.0.0" in done.stdout + done.stderr, done.stderr


def test_the_machines_plugins_of_gdal_are_not_loaded(unpacked, tmp_path, monkeypatch):
    """Looked for in a folder of the machine, they were made for its GDAL; what the user sets is kept."""
    (tmp_path / "gdal_PLUGIN.so").write_bytes(b"not a library")
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((8, 8), np.uint8))
    (tmp_path / "list.txt").write_text("a.png 1\n")
    monkeypatch.setenv("CAFFE_ROOT", str(unpacked))
    arguments = [f"{tmp_path}/", str(tmp_path / "list.txt")]
    monkeypatch.setenv("GDAL_DRIVER_PATH", str(tmp_path))
    if "gdal_PLUGIN.so" not in programs.call("convert_imageset", [*arguments, str(tmp_path / "loaded")]):
        pytest.skip("this OpenCV has no GDAL")
    monkeypatch.delenv("GDAL_DRIVER_PATH")
    assert programs._environment()["GDAL_DRIVER_PATH"] == "disable"
    assert "Processed 1 files" in programs.call("convert_imageset", [*arguments, str(tmp_path / "lmdb")])


def test_setup_takes_a_bundle(unpacked):
    """As `make setup` asks: nothing is built, and no package is looked for."""
    done = run(sys.executable, REPOSITORY / "scripts/build_caffe.py", "--given", CAFFE_ROOT=str(unpacked))
    assert (done.returncode, done.stdout) == (0, f"root={unpacked}\norigin=CAFFE_ROOT\n"), done.stderr


def test_doctor_shows_a_bundle(unpacked):
    done = run(sys.executable, *DOCTOR, CAFFE_ROOT=str(unpacked))
    assert f"a bundle for glibc {installation.at(unpacked, '').bundle.needs.glibc}" in done.stdout, done.stdout


# ---- what is in it -----------------------------------------------------------------------------------------------


def test_the_record_names_what_is_there(unpacked, caffe):
    """Build, Python, glibc; each library with the hash of its file, each file with its size."""
    record = json.loads((unpacked / bundle.RECORD).read_text())
    assert record["build"] == caffe.build and record["python"] == HERE.python
    files = {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*") if path.is_file()}
    assert files == {*record["files"], bundle.RECORD}
    libraries = record["libraries"]
    assert {library["file"] for library in libraries} == {path for path in files if re.fullmatch(r"lib/[^/]+", path)}
    for library in libraries:
        assert library["sha256"] == hashlib.sha256((unpacked / library["file"]).read_bytes()).hexdigest()
        assert library["licence"] is None or library["licence"] in files
    assert (unpacked / "licences/caffe/LICENSE").read_text().startswith("COPYRIGHT")


def test_libraries_have_their_package_and_licence(unpacked):
    """Where dpkg is; and the distribution's libraries are passed on unchanged except their run path."""
    if not shutil.which("dpkg-query"):
        pytest.skip("no dpkg here")
    record = json.loads((unpacked / bundle.RECORD).read_text())
    for library in record["libraries"]:
        if not library["file"].startswith("lib/libcaffe"):
            assert library["package"] and library["version"] and library["source"], library
        assert library["licence"], library
    changed = {name for name in record["run_paths_changed"] if name.startswith("lib/lib")}
    assert changed <= {"lib/libcaffe.so.1.0.0", "lib/libblas.so.3", "lib/liblapack.so.3"}


def test_glibc_needed_is_the_newest_that_any_file_needs(unpacked):
    """Compared with what binutils' objdump reads."""
    if not shutil.which("objdump"):
        pytest.skip("no objdump here")
    elves = [path for path in unpacked.rglob("*") if path.is_file() and path.read_bytes()[:4] == b"\x7fELF"]
    listed = subprocess.run(["objdump", "-p", *elves], capture_output=True, text=True, check=True).stdout
    versions = re.findall(r"GLIBC_(\d+\.\d+)", listed)
    newest = max(versions, key=bundle.number)
    if "GLIBC_ABI_DT_RELR" in listed:
        newest = max(newest, "2.36", key=bundle.number)
    assert installation.at(unpacked, "").bundle.needs.glibc == newest


def test_the_same_caffe_gives_the_same_archive(few, tmp_path):
    """Byte for byte, whatever the umask and the folder."""
    first = packing.write_archive(few, tmp_path / "a", 0)
    before = os.umask(0o077)
    try:
        second = packing.write_archive(few, tmp_path / "b", 0)
    finally:
        os.umask(before)
    assert first.read_bytes() == second.read_bytes()
    names = subprocess.run(["tar", "-tf", first], capture_output=True, text=True, check=True).stdout.splitlines()
    assert names[0] == f"{few.name}/{bundle.RECORD}" and names[1:] == sorted(names[1:])


def test_the_script_writes_an_archive_that_tar_unpacks(few, tmp_path, monkeypatch, capsys):
    """With its progress, what it needs, and its SHA-256; programs stay programs."""
    monkeypatch.setattr(packing, "gather", lambda caffe: few)
    monkeypatch.setattr(boundary.signal, "signal", lambda number, handler: None)
    monkeypatch.setattr(sys, "argv", ["bundle_caffe.py", "--out", str(tmp_path / "out"), "--preset", "0"])
    assert bundle_caffe.main() == 0
    printed = capsys.readouterr()
    (archive,) = (tmp_path / "out").iterdir()
    assert archive.name == f"caffe-bundle-{few.key}.tar.xz"
    assert printed.out == f"{hashlib.sha256(archive.read_bytes()).hexdigest()}  {archive}\n"
    assert re.search(r"MB compressed: \d+/\d+", printed.err) and "needs glibc 2." in printed.err
    subprocess.run(["tar", "-xf", archive, "-C", tmp_path], check=True)
    packing.write_folder(few, tmp_path / "folder")
    for name, member in few.members.items():
        by_tar, written = tmp_path / few.name / name, tmp_path / "folder" / name
        assert by_tar.read_bytes() == written.read_bytes() == member.read()
        assert os.access(by_tar, os.X_OK) == os.access(written, os.X_OK) == name.startswith("bin/")


def test_an_interrupted_packing_leaves_nothing(few, tmp_path, monkeypatch):
    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        packing.write_archive(few, tmp_path, 0, interrupt)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(packing, "gather", lambda caffe: interrupt(0, 0))
    monkeypatch.setattr(boundary.signal, "signal", lambda number, handler: None)
    monkeypatch.setattr(sys, "argv", ["bundle_caffe.py", "--out", str(tmp_path)])
    assert bundle_caffe.main() == boundary.INTERRUPTED


# ---- what does not fit -------------------------------------------------------------------------------------------


def replace_file(path: Path, content: bytes) -> None:
    path.unlink()  # it is a link to the unpacked file
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["lib/libgdal.so.32", "bin/caffe", "lib/python3/dist-packages/caffe/_caffe.so"])
@pytest.mark.parametrize("how", ["gone", "cut off"])
def test_a_damaged_bundle_is_refused(copied, name, how):
    """With the file's name and what to do, by setup and by each command."""
    if not (copied / name).is_file():
        pytest.skip(f"no {name} with this OpenCV")
    size = (copied / name).stat().st_size
    if how == "gone":
        (copied / name).unlink()
    else:
        replace_file(copied / name, b"\x7fELF")
    state = "not there" if how == "gone" else f"4 bytes instead of {size}"
    for message in refused(copied):
        assert f"files are missing or damaged; the first: {name}: {state}. Unpack the archive again" in message


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"{}", b'{"bundle": 1, "files": {}}', b'{"bundle": 1, "files": 3}', b"\xff", b"[" * 99999],
)
def test_a_damaged_record_is_refused(copied, content):
    replace_file(copied / bundle.RECORD, content)
    with pytest.raises(CaffeError, match=r"bundle\.json: .*Unpack the archive again"):
        installation.at(copied, "CAFFE_ROOT")


def changed_record(copied, **values):
    record = json.loads((copied / bundle.RECORD).read_text())
    replace_file(copied / bundle.RECORD, json.dumps({**record, **values}).encode())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"glibc": "99.1"}, f"the bundle needs glibc 99.1 or newer, and this machine has {HERE.glibc}. Make one with"),
        ({"python": "3.7"}, f"s pycaffe is for Python 3.7, and this is Python {HERE.python} ("),
        ({"machine": "aarch64"}, f"the bundle is for aarch64, and this machine is {HERE.processor}. Make one with"),
        ({"bundle": 2}, "made by a newer bonecaffe (format 2; this one reads 1). Update bonecaffe"),
    ],
)
def test_a_bundle_for_another_machine_is_refused(copied, values, message):
    """In one sentence, by `make setup` and by doctor, before a program of it fails to start."""
    changed_record(copied, **values)
    for printed in refused(copied):
        assert message in printed


@pytest.mark.parametrize(
    ("machine", "message"),
    [
        (bundle.Machine("x86_64", "2.36", "3.11"), ""),
        (bundle.Machine("x86_64", "2.41", "3.11"), ""),
        (bundle.Machine("x86_64", "3.0", "3.11"), ""),
        (bundle.Machine("x86_64", "2.9", "3.11"), "needs glibc 2.36 or newer, and this machine has 2.9"),
        (bundle.Machine("x86_64", None, "3.11"), "this machine has another C library"),
        (bundle.Machine("x86_64", "2.36", "3.13"), "for Python 3.11, and this is Python 3.13"),
        (bundle.Machine("aarch64", "2.36", "3.11"), "for x86_64, and this machine is aarch64"),
    ],
)
def test_what_fits_a_machine(machine, message):
    """Version numbers are compared as numbers: glibc 2.9 is older than 2.36."""
    packed = bundle.Bundle(Path("/nowhere"), bundle.Machine("x86_64", "2.36", "3.11"), {})
    problem = packed.misfit(machine)
    assert message in problem and bool(message) == bool(problem)


def test_a_bundle_is_not_packed_again(unpacked, tmp_path):
    """Its libraries' packages and licences are not on record in this machine's dpkg."""
    done = run(*SCRIPT, "--out", tmp_path, CAFFE_ROOT=str(unpacked))
    assert done.returncode == 1 and "is an unpacked bundle already" in done.stderr
    assert list(tmp_path.iterdir()) == []


# ---- libraries ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "packed"),
    [
        *((name, False) for name in ("libc.so.6", "libm.so.6", "libpthread.so.0", "libdl.so.2", "librt.so.1")),
        *((name, False) for name in ("libresolv.so.2", "ld-linux-x86-64.so.2", "linux-vdso.so.1", "libmvec.so.1")),
        *((name, False) for name in ("libcuda.so.1", "libnvidia-ml.so.1", "libnvidia-ptxjitcompiler.so.1")),
        *((name, True) for name in ("libstdc++.so.6", "libgcc_s.so.1", "libgomp.so.1", "libcom_err.so.2")),
        *((name, True) for name in ("libcudart.so.13", "libcublas.so.13", "libcublasLt.so.13", "libcudnn.so.9")),
        *((name, True) for name in ("libnccl.so.2", "libcurl.so.4", "libmd.so.0", "libnsl_extra.so.1", "libcap.so.2")),
    ],
)
def test_what_belongs_to_the_machine_is_not_packed(name, packed):
    """glibc and the driver; the compiler's and CUDA's libraries are packed."""
    assert bool(packing.NEVER_PACKED.fullmatch(name)) != packed


def test_nvidias_libraries_are_known_by_name():
    """Also those without a number in the middle; curl is not one."""
    names = ("cudart", "cublas", "cublasLt", "cudnn", "cudnn_ops", "nccl", "nvrtc", "nvJitLink", "curand", "nppc")
    assert all(packing.NVIDIA.match(f"lib{name}.so.1") for name in names)
    assert not any(packing.NVIDIA.match(f"lib{name}.so.4") for name in ("curl", "curl-gnutls", "ncurses", "glog"))


def test_libraries_that_are_opened_by_name_are_packed(tmp_path):
    """cuDNN's parts are in nobody's list of needed libraries. (Empty stand-ins: this machine may have no cuDNN.)"""
    names = [
        "libcudnn.so.9",
        "libcudnn_ops.so.9",
        "libcudnn_cnn.so.9",
        "libcudnn_cnn.so.9.1.0",
        "libcudnn_x.a",
        "liba.so.9",
    ]
    for name in names:
        (tmp_path / name).touch()
    found = packing.opened_by("libcudnn.so.9", tmp_path / "libcudnn.so.9")
    assert [path.name for path in found] == ["libcudnn_cnn.so.9", "libcudnn_ops.so.9"]
    assert packing.opened_by("liba.so.9", tmp_path / "liba.so.9") == []


def test_a_library_that_is_not_found_is_named(caffe, tmp_path):
    """Before anything is written: the archive would not work anywhere."""
    listing = (
        f"\tliba.so.1 => not found\n\tlibc.so.6 => /lib/libc.so.6 (0x1)\n\tlibb.so => {tmp_path} b/libb.so (0x1)\n"
    )
    assert packing.resolved(listing) == {
        "liba.so.1": None,
        "libc.so.6": "/lib/libc.so.6",
        "libb.so": f"{tmp_path} b/libb.so",
    }
    program = tmp_path / "program"
    content = caffe.program("caffe").read_bytes()
    assert content.count(b"\0libglog.so.") == 1
    program.write_bytes(content.replace(b"\0libglog.so.", b"\0libgone.so."))
    program.chmod(0o755)
    with pytest.raises(CaffeError, match=r"program needs libgone\.so\S*, which is not found"):
        packing.libraries([program])


def test_a_run_path_is_replaced_in_its_place(caffe):
    """And nothing else of the file; where there is no room, nothing is changed."""
    path = caffe.bin / "caffe"
    elf = Elf.parse("caffe", path.read_bytes())
    changed = Elf.parse("caffe", elf.with_run_path("$ORIGIN/../lib"))
    assert changed.run_path == ["$ORIGIN/../lib"] and changed.has_strong_run_path
    assert (changed.needed, changed.versions()) == (elf.needed, elf.versions())
    different = sum(a != b for a, b in zip(elf.content, changed.content, strict=True))
    assert different <= len(":".join(elf.run_path)) + 1
    with pytest.raises(CaffeError, match="has no room for"):
        elf.with_run_path("/a" * 500)
    with pytest.raises(CaffeError, match=r"libz.*has no run path that could be replaced"):
        Elf.parse("libz", Path(caffe.libraries["libz"]).read_bytes()).with_run_path("$ORIGIN")


@pytest.mark.parametrize(
    "content", [b"", b"\x7fELF", b"#!/bin/sh\n", b"\x7fELF\x02\x01" + bytes(20), b"\x7fELF\x01\x01"]
)
def test_what_is_no_program_is_refused(content):
    with pytest.raises(CaffeError, match="a: "):
        Elf.parse("a", content)
