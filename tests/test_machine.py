"""What setup finds on a machine, and what it does there: faked os-release, programs, GPUs; nothing is installed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from conftest import REPOSITORY

from bonecaffe.errors import CaffeError
from builder import download, gpu
from builder.settings import Settings

SYSTEMS = {
    "debian 12": 'ID=debian\nVERSION_ID="12"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n',
    "debian sid": 'ID=debian\nPRETTY_NAME="Debian GNU/Linux forky/sid"\n',
    "ubuntu 22.04": 'ID=ubuntu\nID_LIKE=debian\nVERSION_ID="22.04"\nPRETTY_NAME="Ubuntu 22.04.5 LTS"\n',
    "ubuntu 24.04": 'ID=ubuntu\nID_LIKE=debian\nVERSION_ID="24.04"\nPRETTY_NAME="Ubuntu 24.04.2 LTS"\n',
    "ubuntu 26.04": 'ID=ubuntu\nID_LIKE=debian\nVERSION_ID="26.04"\nPRETTY_NAME="Ubuntu 26.04 LTS"\n',
    "mint 22": 'ID=linuxmint\nID_LIKE="ubuntu debian"\nVERSION_ID="22"\nPRETTY_NAME="Linux Mint 22"\n',
    "fedora 43": 'ID=fedora\nVERSION_ID=43\nPRETTY_NAME="Fedora Linux 43 (Workstation Edition)"\n',
    "arch": 'ID=arch\nPRETTY_NAME="Arch Linux"\n',
    "macos": "",
}
SHELL_NEEDS = ("bash", "sh", "uname", "grep", "sed", "head", "tail", "mktemp", "rm", "env", "cat")


class Machine:
    """A pretended machine: its files below `root`, and no programs on PATH but the shell's and those put there."""

    def __init__(self, folder: Path, system: str) -> None:
        self.root, self.bin = folder / "root", folder / "bin"
        self.bin.mkdir(parents=True)
        (self.root / "etc").mkdir(parents=True)
        if SYSTEMS[system]:
            (self.root / "etc" / "os-release").write_text(SYSTEMS[system])
        for name in SHELL_NEEDS:
            (self.bin / name).symlink_to(str(shutil.which(name)))
        self.program("uname", "echo Darwin")
        self.program("id", "echo 1000")
        if "debian" in SYSTEMS[system]:
            self.apt(offered=["g++", "python3", "libboost-system-dev"])

    def program(self, name: str, script: str) -> None:
        path = self.bin / name
        path.unlink(missing_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def python(self, name: str, version: str) -> None:
        self.program(name, f"echo {version}")

    def apt(self, offered: list[str], installed: tuple[str, ...] = ()) -> None:
        """Stand-ins: what they were asked for is appended to `asked`."""
        self.program("apt-get", f'echo "apt-get $*" >> {self.bin}/asked')
        self.program("apt-cache", f'case \' {" ".join(offered)} \' in *" $3 "*) echo "Package: $3" ;; esac')
        self.program(
            "dpkg-query",
            f"case ' {' '.join(installed)} ' in *\" $4 \"*) echo 'install ok installed' ;; *) exit 1 ;; esac",
        )

    @property
    def asked(self) -> list[str]:
        path = self.bin / "asked"
        return path.read_text().splitlines() if path.exists() else []

    def run(self, script: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-c", f"set -euo pipefail; . {REPOSITORY}/scripts/machine.sh; {script}"],
            env={
                "PATH": str(self.bin),
                "BONECAFFE_PRETENDED_ROOT": str(self.root),
                "TMPDIR": str(self.bin),
                **environment,
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            start_new_session=True,  # no terminal at which sudo could ask
        )


@pytest.fixture
def machine(tmp_path):
    """Makes a pretended machine of a system."""
    return lambda system: Machine(tmp_path / system.replace(" ", "-"), system)


@pytest.mark.parametrize("system", SYSTEMS)
def test_system_is_recognized(machine, system):
    """Its name for messages; whether its packages are Debian's; Ubuntu before 24.04 is refused in one sentence."""
    pretended = machine(system)
    name = pretended.run("name_of_system").stdout
    assert name == (SYSTEMS[system].rpartition("PRETTY_NAME=")[2].strip().strip('"') or "Darwin")
    assert pretended.run("is_debian").returncode == int("debian" not in SYSTEMS[system])
    refused = pretended.run("refuse_old_ubuntu")
    if system == "ubuntu 22.04":
        assert refused.returncode == 1 and refused.stdout.count("\n") == 1
        assert "Ubuntu 22.04.5 LTS is too old" in refused.stdout and "docs/guide/containers.md" in refused.stdout
    else:
        assert (refused.returncode, refused.stdout) == (0, "")


def test_python_is_the_distributions_for_a_build(machine, tmp_path):
    """A newer one on PATH cannot be built for; without a build it can be used. One that is too old is named."""
    pretended = machine("debian 12")
    (pretended.root / "usr" / "bin").mkdir(parents=True)
    (pretended.root / "usr" / "bin" / "python3").symlink_to(pretended.bin / "old")
    pretended.python("old", "3.9")
    pretended.python("python3.13", "3.13")
    done = pretended.run("choose_python build")
    assert done.returncode == 1 and "no Python 3.11 or newer (/usr/bin/python3 is 3.9)" in done.stderr
    assert pretended.run("choose_python").stdout == f"{pretended.bin}/python3.13\n"
    assert pretended.run("choose_python build", PYTHON="python3.13").stdout == f"{pretended.bin}/python3.13\n"
    pretended.python("old", "3.11")
    assert pretended.run("choose_python build").stdout == f"{pretended.root}/usr/bin/python3\n"


def test_python_is_the_one_that_a_given_caffe_was_built_for(machine, tmp_path):
    """An older record and a newer Python: only the same version can import that pycaffe."""
    pretended = machine("fedora 43")
    pretended.python("python3", "3.14")
    caffe = tmp_path / "caffe"
    caffe.mkdir()
    (caffe / "bonecaffe-build.json").write_text('{"commit": "x", "python": "3.12", "gpu": "none"}\n')
    done = pretended.run("choose_python", CAFFE_ROOT=str(caffe))
    assert done.returncode == 1 and "built for Python 3.12, and there is no python3.12" in done.stderr
    pretended.python("python3.12", "3.12")
    assert pretended.run("choose_python", CAFFE_ROOT=str(caffe)).stdout == f"{pretended.bin}/python3.12\n"
    (caffe / "bonecaffe-build.json").unlink()
    assert pretended.run("choose_python", CAFFE_ROOT=str(caffe)).stdout == f"{pretended.bin}/python3\n"


INSTALL = "packages g++ 'libboost-system-dev?' python3"


def test_packages_are_those_that_apt_offers(machine):
    """A package that a later release no longer has is left out; apt's lists are renewed first."""
    pretended = machine("debian sid")
    pretended.program("id", "echo 0")
    done = pretended.run(INSTALL)
    assert done.returncode == 0, done.stdout
    assert pretended.asked[-1].endswith("--no-install-recommends g++ python3 libboost-system-dev")
    assert pretended.asked[0] == "apt-get update"
    pretended = machine("ubuntu 26.04")
    pretended.program("id", "echo 0")
    pretended.apt(offered=["g++", "python3"])
    assert pretended.run(INSTALL).returncode == 0
    assert pretended.asked[-1].endswith("--no-install-recommends g++ python3")


def test_nothing_is_asked_of_apt_when_all_is_installed(machine):
    """Not even its lists, where one package is of another release."""
    pretended = machine("debian sid")
    pretended.apt(offered=[], installed=("g++", "python3"))
    assert pretended.run(INSTALL).returncode == 0 and pretended.asked == []


def test_package_that_is_not_offered_is_named(machine):
    """Status 2, and nothing is installed."""
    pretended = machine("mint 22")
    pretended.program("id", "echo 0")
    pretended.apt(offered=["g++"])
    done = pretended.run(INSTALL)
    assert (done.returncode, done.stdout) == (2, "setup: Linux Mint 22 offers no package python3\n")
    assert pretended.asked == ["apt-get update"]


def test_user_without_rights_gets_the_command(machine):
    """No sudo; a sudo that wants a password where there is no terminal. One without a password is used."""
    pretended = machine("ubuntu 24.04")
    for sudo in (None, "exit 1"):
        if sudo:
            pretended.program("sudo", sudo)
        done = pretended.run(INSTALL)
        assert done.returncode == 1 and pretended.asked == []
        assert "apt-get install --no-install-recommends g++ python3 libboost-system-dev" in done.stdout
    pretended.apt(offered=["g++", "python3"])  # as Debian sid
    assert "libboost-system-dev" not in pretended.run(INSTALL).stdout
    pretended.program("sudo", '[ "$1" != -n ] || shift; "$@"')
    assert pretended.run(INSTALL).returncode == 0
    assert "install -y -o DPkg::Lock::Timeout=300" in pretended.asked[-1]  # automatic upgrades are waited for


def test_sudo_asks_for_the_password_at_a_terminal(machine):
    """It refuses to work without one (-n), and is given the terminal."""
    pretended = machine("debian 12")
    pretended.program("sudo", f'echo "$*" >> {pretended.bin}/sudo-asked; [ "$1" != -n ]')
    terminal = f"python3 -c 'import pty, sys; pty.spawn([\"bash\", \"-c\", sys.argv[1]])' '{'{}'}'"
    script = f"set -euo pipefail; . {REPOSITORY}/scripts/machine.sh; packages g++"
    done = subprocess.run(
        terminal.format(script),
        shell=True,
        env={"PATH": f"{pretended.bin}:{os.environ['PATH']}", "BONECAFFE_PRETENDED_ROOT": str(pretended.root)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "sudo asks for your password" in done.stdout
    asked = (pretended.bin / "sudo-asked").read_text().splitlines()
    assert asked[:3] == ["-n true", "-v", "apt-get update"] and "apt-get install" in asked[3]


def test_apts_failure_shows_its_last_lines(machine):
    """And where the whole log is."""
    pretended = machine("debian 12")
    pretended.program("id", "echo 0")
    pretended.program("apt-get", "[ $1 = update ] || { echo 'E: no space left'; exit 100; }")
    done = pretended.run(INSTALL)
    assert done.returncode == 1 and "E: no space left" in done.stdout and "the whole log: " in done.stdout


def test_setup_says_what_serves_on_another_system(tmp_path):
    """Fedora, without CAFFE_ROOT: one message with the three ways, and nothing made."""
    copy = tmp_path / "copy"
    shutil.copytree(REPOSITORY / "scripts", copy / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "requirements.txt"):
        shutil.copy(REPOSITORY / name, copy)
    pretended = Machine(tmp_path / "fedora", "fedora 43")
    for name in ("dirname", "sha256sum"):
        (pretended.bin / name).symlink_to(str(shutil.which(name)))
    done = subprocess.run(
        ["bash", str(copy / "scripts" / "setup.sh")],
        env={"PATH": str(pretended.bin), "BONECAFFE_PRETENDED_ROOT": str(pretended.root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and done.stderr == ""
    for word in ("Fedora Linux 43", "CAFFE_ROOT", "docs/guide/containers.md", "--engine onnx"):
        assert word in done.stdout
    assert not (copy / ".venv").exists()


@pytest.fixture
def set_up(tmp_path):
    """Runs a copy of setup.sh with a .venv whose Python is a stand-in; returns the output, and the Python's calls."""
    copy, pretended = tmp_path / "copy", Machine(tmp_path / "fedora", "fedora 43")
    shutil.copytree(REPOSITORY / "scripts", copy / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "requirements.txt"):
        shutil.copy(REPOSITORY / name, copy)
    for name in ("dirname", "sha256sum", "mkdir"):
        (pretended.bin / name).symlink_to(str(shutil.which(name)))
    python, notes = copy / ".venv" / "bin" / "python", copy / "notes"
    python.parent.mkdir(parents=True)
    python.write_text(
        f'#!/bin/sh\necho "$CUDA_ARCH $*" >> {notes}\n'
        'case "$*" in *cv2*) exit "${cv2:-0}" ;; *installation.find*) exit 0 ;; esac\necho 3.11\n'
    )
    python.chmod(0o755)
    (copy / ".venv" / "bin" / "bonecaffe").symlink_to("python")

    def run(*arguments, **environment):
        notes.unlink(missing_ok=True)
        given = {
            "PATH": str(pretended.bin),
            "BONECAFFE_PRETENDED_ROOT": str(pretended.root),
            "CAFFE_ROOT": "/opt/caffe",
        }
        done = subprocess.run(
            ["bash", str(copy / "scripts" / "setup.sh"), *arguments],
            env={**given, "PYTHON": str(python), **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout, notes.read_text().splitlines()

    return run


def test_setup_that_was_done_does_nothing(set_up):
    """What a GPU build was made for is kept until the next `make caffe`: `make train` does not build again."""
    assert "ready after" in set_up("caffe", CUDA_ARCH="75 86")[0]
    for _ in range(2):
        output, notes = set_up()
        assert output == "" and len(notes) == 1 and notes[0].startswith("75 86 -c from bonecaffe.caffe import")
    assert "ready after" in set_up(CUDA_ARCH="89")[0] and set_up()[0] == ""
    assert all(note.startswith(" ") for note in set_up("caffe")[1])  # none is asked for: those of the GPUs here
    assert set_up()[0] == ""


def test_opencv_on_a_bare_system_is_the_one_without_windows(set_up):
    """opencv-python does not import without X's libraries: in the container, and on clusters without root."""
    output, notes = set_up(cv2="1")
    assert "opencv-python-headless 3.11 takes its place" in output
    assert any(note.endswith("--force-reinstall --no-deps opencv-python-headless==3.11") for note in notes)
    assert "headless" not in set_up("caffe")[0]


# ---- CPU or GPU ----------------------------------------------------------------------------------------------------


def put(path, text=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def linux(tmp_path, monkeypatch):
    """A root without a GPU, and a PATH without nvcc."""
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    root = tmp_path / "root"
    root.mkdir()
    return root


def with_cuda(root, name="cuda"):
    put(root / "usr/local" / name / "bin/nvcc", "#!/bin/sh\n").chmod(0o755)


def with_driver(root):
    put(root / "proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14\n")


def with_wsl(root):
    put(root / "dev/dxg")
    put(root / "usr/lib/wsl/lib/libcuda.so.1")


def with_device(root, kind="0x030200"):
    put(root / "sys/bus/pci/devices/0000:01:00.0/vendor", "0x10de\n")
    put(root / "sys/bus/pci/devices/0000:01:00.0/class", f"{kind}\n")


@pytest.mark.parametrize(
    ("found", "for_gpu", "words"),
    [
        ([], False, "no NVIDIA GPU was found"),
        ([with_driver, with_cuda], True, "NVIDIA's driver and CUDA in .*/usr/local/cuda were found"),
        ([with_wsl, with_cuda], True, r"driver of Windows \(WSL2\) and CUDA"),
        ([with_driver], False, "NVIDIA's driver was found, but no CUDA toolkit .* install CUDA .* make caffe GPU=1"),
        ([with_wsl], False, r"\(WSL2\) was found, but no CUDA toolkit"),
        ([with_device], False, "has an NVIDIA GPU, but its driver is not installed"),
        ([with_device, with_cuda], False, "its driver is not installed"),
        ([with_cuda], False, "but no NVIDIA driver, was found"),
        ([lambda root: with_device(root, "0x040300")], False, "no NVIDIA GPU was found"),  # its sound device alone
        ([lambda root: put(root / "dev/dxg")], False, "no NVIDIA GPU was found"),  # WSL2 without an NVIDIA driver
    ],
)
def test_kind_of_build_is_chosen_and_said(linux, found, for_gpu, words):
    """By driver, device and compiler; never for the CPU in silence when there is a GPU."""
    for make in found:
        make(linux)
    choice = gpu.choose_kind(Settings.read({}), linux)
    assert choice.for_gpu is for_gpu
    assert re.search(words, choice.reason), choice.reason


def test_kind_of_build_is_as_asked(linux):
    """Whatever is found."""
    with_driver(linux)
    with_cuda(linux)
    assert not gpu.choose_kind(Settings.read({"BONECAFFE_GPU": "0"}), linux).for_gpu
    assert gpu.choose_kind(Settings.read({"BONECAFFE_GPU": "1"}), Path("/nonexistent")).for_gpu


def test_newest_toolkit_in_usr_local_is_found(linux):
    """Versions are compared as numbers; the plain name first."""
    for name in ("cuda-9.2", "cuda-12.8", "cuda-12.10"):
        with_cuda(linux, name)
    assert gpu.toolkit_folder("", linux) == str(linux / "usr/local/cuda-12.10")
    with_cuda(linux)
    assert gpu.toolkit_folder("", linux) == str(linux / "usr/local/cuda")
    assert gpu.toolkit_folder("/opt/cuda", linux) == "/opt/cuda"


def test_old_cuda_with_a_new_glibc_is_explained(tmp_path, monkeypatch):
    """Ubuntu 26.04: CUDA 13.0's headers and glibc 2.43's contradict each other."""
    put(tmp_path / "bin/nvcc", "#!/bin/sh\necho 'error: exception specification is incompatible'; exit 1\n").chmod(
        0o755
    )
    monkeypatch.setattr(gpu, "glibc_version", lambda: "2.43")
    with pytest.raises(
        CaffeError, match=r"CUDA 13\.0 does not compile with .* glibc 2\.43: .*Install CUDA 13\.2 or newer"
    ):
        gpu.host_compiler(gpu.Toolkit(tmp_path, "13.0", (75,)), "", tmp_path)
    monkeypatch.setattr(gpu, "glibc_version", lambda: "2.39")
    with pytest.raises(CaffeError, match="accepts none of the C"):
        gpu.host_compiler(gpu.Toolkit(tmp_path, "13.0", (75,)), "", tmp_path)


# ---- downloads -----------------------------------------------------------------------------------------------------

CONTENT = bytes(range(256)) * 4000


class Server(BaseHTTPRequestHandler):
    """Serves CONTENT; `breaks` answers stop in the middle, `continues` tells whether it can start in the middle."""

    breaks, continues, ranges = 0, True, []

    def do_GET(self) -> None:
        """Answer; note the range that was asked for."""
        cls = type(self)
        asked = self.headers.get("Range")
        cls.ranges.append(asked)
        start = int(asked[6:-1]) if asked and cls.continues else 0
        if self.path != "/file":
            return self.send_error(404)
        if start >= len(CONTENT):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        rest = CONTENT[start:]
        if cls.breaks:
            cls.breaks -= 1
            rest = rest[: len(rest) // 2]
        self.wfile.write(rest)
        return None

    def log_message(self, *arguments: object) -> None:
        """Nothing."""


@pytest.fixture
def server():
    """A server on this machine, and its handler's class."""
    handler = type("Handler", (Server,), {"ranges": []})
    running = HTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}", handler
    running.shutdown()
    running.server_close()


def whole(path):
    return "" if path.read_bytes() == CONTENT else "another content"


def test_download_continues_where_it_broke_off(server, tmp_path):
    """In the same call after a broken connection, and in a later one; only the rest is asked for."""
    address, handler = server
    handler.breaks = 1
    download.download(f"{address}/file", tmp_path / "a", whole)
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert handler.ranges == [None, f"bytes={len(CONTENT) // 2}-"]
    (tmp_path / "b.part").write_bytes(CONTENT[:1000])
    download.download(f"{address}/file", tmp_path / "b", whole)
    assert handler.ranges[-1] == "bytes=1000-" and whole(tmp_path / "b") == ""
    (tmp_path / "c.part").write_bytes(CONTENT)  # complete, but stopped before it was moved
    download.download(f"{address}/file", tmp_path / "c", whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]


def test_download_from_a_server_that_cannot_continue_starts_again(server, tmp_path):
    """The two parts are not glued together."""
    address, handler = server
    handler.continues = False
    (tmp_path / "a.part").write_bytes(b"x" * 1000)
    download.download(f"{address}/file", tmp_path / "a", whole)
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_wrong_or_missing_file_leaves_nothing_at_its_place(server, tmp_path):
    """Another content is deleted; what has arrived before a connection is lost for good is kept for the next time."""
    address, handler = server
    (tmp_path / "a.part").write_bytes(b"x" * 1000)
    with pytest.raises(download.DownloadError, match=r"/file: another content"):
        download.download(f"{address}/file", tmp_path / "a", whole)
    with pytest.raises(download.DownloadError, match="the server answers 404"):
        download.download(f"{address}/other", tmp_path / "a", whole)
    assert list(tmp_path.iterdir()) == []
    handler.breaks = 99
    with pytest.raises(download.DownloadError):
        download.download(f"{address}/file", tmp_path / "a", whole)
    assert [path.name for path in tmp_path.iterdir()] == ["a.part"]
    handler.breaks = 0
    download.download(f"{address}/file", tmp_path / "a", whole)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
