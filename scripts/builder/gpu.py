"""The GPU part of a build: CUDA's toolkit, the compute capabilities, a compiler that nvcc accepts, cuDNN and NCCL."""

from __future__ import annotations

import os
import platform
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from bonecaffe.errors import CaffeError
from builder.settings import Settings
from builder.steps import ask, say

OLDEST_CUDA = 11
"""Debian's protobuf needs C++17, which nvcc knows from CUDA 11 on."""
NEW_GLIBC, NEEDS_CUDA = "2.43", "13.2"
"""Headers of glibc from this version on (Ubuntu 26.04) are not accepted by an older CUDA; reported, not tried here."""
HOST_COMPILERS = ("g++", "g++-15", "g++-14", "g++-13", "g++-12", "g++-11", "g++-10")
"""The newest first: an old CUDA refuses a new g++."""
ONE_AT_A_TIME = "no NCCL: one GPU at a time"
"""In the summary of a build without NCCL."""


_SEARCHED = ("CMAKE_PREFIX_PATH", "CMAKE_INCLUDE_PATH", "CMAKE_LIBRARY_PATH", "CUDA_LIB_PATH", "CPATH", "LIBRARY_PATH")
"""Environment variables with more folders for CMake and the compilers."""


@dataclass(frozen=True)
class Part:
    """A part of CUDA's toolkit: a header, the possible files of its library, NVIDIA's package for Debian."""

    name: str
    header: str
    libraries: tuple[str, ...]
    package: str


PARTS = (
    Part("CUDA runtime", "cuda_runtime.h", ("libcudart.so", "libcudart_static.a"), "cuda-cudart-dev"),
    Part("cuBLAS", "cublas_v2.h", ("libcublas.so",), "libcublas-dev"),
    Part("cuRAND", "curand.h", ("libcurand.so",), "libcurand-dev"),
)
"""The parts that every GPU build of Caffe needs."""


@dataclass(frozen=True)
class Toolkit:
    """CUDA: its folder, its version, and the compute capabilities it compiles for, lowest first."""

    folder: Path
    version: str
    known: tuple[int, ...]

    @property
    def nvcc(self) -> str:
        """CUDA's compiler."""
        return str(self.folder / "bin" / "nvcc")


@dataclass(frozen=True)
class Architectures:
    """Compute capabilities: the compiled ones, and the one whose PTX the driver of a newer GPU compiles."""

    real: tuple[int, ...]
    virtual: int


@dataclass(frozen=True)
class Library:
    """cuDNN or NCCL: the folder of its headers, and its file."""

    include: Path
    file: Path


@dataclass(frozen=True)
class Gpu:
    """Everything that a build for a GPU depends on."""

    toolkit: Toolkit
    architectures: Architectures
    host_compiler: str
    cudnn: Library | None
    nccl: Library | None

    @property
    def flags(self) -> list[str]:
        """CMake's flags that decide what is built."""
        return [
            "-DCPU_ONLY=OFF",
            "-DCUDA_ARCH_NAME=Manual",
            f"-DCUDA_ARCH_BIN={_listed(self.architectures.real)}",
            f"-DCUDA_ARCH_PTX={self.architectures.virtual}",
            "-DCUDA_PROPAGATE_HOST_FLAGS=OFF",
            "-DCMAKE_POLICY_DEFAULT_CMP0146=OLD",
            f"-DUSE_CUDNN={'ON' if self.cudnn else 'OFF'}",
            f"-DUSE_NCCL={'ON' if self.nccl else 'OFF'}",
        ]

    @property
    def paths(self) -> list[str]:
        """CMake's flags that name this machine's folders."""
        paths = [
            f"-DCUDA_TOOLKIT_ROOT_DIR={self.toolkit.folder}",
            f"-DCUDA_HOST_COMPILER={self.host_compiler}",
            "-DCMAKE_INSTALL_RPATH_USE_LINK_PATH=ON",
        ]
        if self.cudnn:
            paths += [f"-DCUDNN_INCLUDE={self.cudnn.include}", f"-DCUDNN_LIBRARY={self.cudnn.file}"]
        if self.nccl:
            paths += [f"-DNCCL_INCLUDE_DIR={self.nccl.include}", f"-DNCCL_LIBRARIES={self.nccl.file}"]
        return paths

    @property
    def cxx_flags(self) -> list[str]:
        """The C++ compiler's flags: CUDA 13 keeps Thrust's headers in a folder of their own."""
        cccl = self.toolkit.folder / "include" / "cccl"
        return [f"-isystem {cccl}"] if cccl.is_dir() else []

    @property
    def summary(self) -> str:
        """The target of the build, in words."""
        cudnn = f"cuDNN {cudnn_major(self.cudnn.include)}" if self.cudnn else "no cuDNN"
        nccl = "NCCL" if self.nccl else ONE_AT_A_TIME
        return f"CUDA {self.toolkit.version}, {cudnn}, {nccl}; compute capability {_listed(self.architectures.real)}"


def _listed(numbers: tuple[int, ...]) -> str:
    return " ".join(map(str, numbers))


def examine(settings: Settings, work: Path) -> Gpu | None:
    """What this machine has for a GPU build; None for a build for the CPU, CaffeError where a GPU build cannot be."""
    choice = choose_kind(settings)
    say(f"building for a GPU: {choice.reason}" if choice.for_gpu else f"building for the CPU: {choice.reason}")
    if not choice.for_gpu:
        return None
    toolkit = find_toolkit(settings.cuda)
    architectures = choose(capabilities(settings.architectures or _installed_gpus()), toolkit)
    host = host_compiler(toolkit, settings.host_compiler, work)
    check_parts(toolkit)
    cudnn = find_library("cudnn", "cudnn.h", settings.cudnn_root, toolkit.folder) if settings.cudnn else None
    nccl = find_library("nccl", "nccl.h", settings.nccl_root, toolkit.folder) if settings.nccl else None
    gpu = Gpu(toolkit, architectures, host, cudnn, nccl)
    say(f"for a GPU: {gpu.summary}")
    return gpu


@dataclass(frozen=True)
class Choice:
    """Whether Caffe is built for a GPU, and why, in a sentence."""

    for_gpu: bool
    reason: str


def choose_kind(settings: Settings, root: Path = Path("/")) -> Choice:
    """Build for a GPU or for the CPU: as asked, else by what this machine has. ``root`` is /, but in tests.

    A GPU, its driver and a compiler for it are looked for; when one of them is missing, the build is for the CPU, and
    the reason names what is missing.
    """
    if settings.gpu != "auto":
        return Choice(settings.gpu == "1", "as asked for with GPU=" + settings.gpu)
    toolkit = toolkit_folder(settings.cuda, root)
    driver = _driver(root)
    if driver and toolkit:
        return Choice(True, f"{driver} and CUDA in {toolkit} were found; make caffe GPU=0 builds for the CPU")
    if driver:
        return Choice(
            False,
            f"{driver} was found, but no CUDA toolkit (no nvcc on PATH or in /usr/local/cuda). To use the GPU, "
            "install CUDA 11.8, 12 or 13 and run make caffe GPU=1",
        )
    if _has_nvidia_device(root):
        return Choice(False, "this machine has an NVIDIA GPU, but its driver is not installed")
    if toolkit:
        return Choice(False, f"CUDA in {toolkit}, but no NVIDIA driver, was found; make caffe GPU=1 builds for a GPU")
    return Choice(False, "no NVIDIA GPU was found")


def _driver(root: Path) -> str:
    """NVIDIA's driver, in words; empty where there is none. Under WSL2 the driver is Windows' own."""
    if (root / "proc/driver/nvidia/version").exists():
        return "NVIDIA's driver"
    if (root / "dev/dxg").exists() and any((root / "usr/lib/wsl/lib").glob("libcuda.so*")):
        return "NVIDIA's driver of Windows (WSL2)"
    return ""


def _has_nvidia_device(root: Path) -> bool:
    """Whether a display or compute device of NVIDIA's is on the PCI bus."""
    for device in (root / "sys/bus/pci/devices").glob("*"):
        try:
            vendor, kind = (device / "vendor").read_text().strip(), (device / "class").read_text().strip()
        except OSError:
            continue
        if vendor == "0x10de" and kind.startswith("0x03"):
            return True
    return False


# ---- CUDA --------------------------------------------------------------------------------------------------------


def toolkit_folder(asked: str, root: Path = Path("/")) -> str:
    """Where CUDA's toolkit is: the folder asked for, that of the nvcc on PATH, /usr/local/cuda; empty if nowhere."""
    if asked:
        return asked
    if shutil.which("nvcc"):
        return _folder_of_nvcc()
    places = [root / "usr/local/cuda", *sorted((root / "usr/local").glob("cuda-*"), key=_version_in_name, reverse=True)]
    return next((str(place) for place in places if os.access(place / "bin" / "nvcc", os.X_OK)), "")


def _version_in_name(folder: Path) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", folder.name)))


def find_toolkit(folder: str) -> Toolkit:
    """The toolkit in a folder, or without one the toolkit of the nvcc on PATH or in /usr/local/cuda."""
    found = toolkit_folder(folder)
    if not found:
        raise CaffeError(
            "a build for a GPU is asked for, but no nvcc is on PATH or in /usr/local/cuda. Install NVIDIA's CUDA "
            "toolkit (11.8, 12 or 13), or set CUDA_HOME."
        )
    toolkit = Path(found)
    nvcc = toolkit / "bin" / "nvcc"
    if not os.access(nvcc, os.X_OK):
        raise CaffeError(f"{toolkit}: it has no bin/nvcc. Set CUDA_HOME to the toolkit's folder.")
    release = re.search(r"release (\d+)([0-9.]*),", ask([str(nvcc), "--version"]).stdout)
    if release is None:
        raise CaffeError(f"{nvcc} --version prints no release. Set CUDA_HOME to another toolkit's folder.")
    version = release[1] + release[2]
    if int(release[1]) < OLDEST_CUDA:
        raise CaffeError(f"CUDA {version}: 11.8, 12 or 13 is needed, because Debian's protobuf needs C++17.")
    listed = re.findall(r"^compute_(\d+)$", ask([str(nvcc), "--list-gpu-arch"]).stdout, flags=re.MULTILINE)
    if not listed:
        raise CaffeError(f"{nvcc} --list-gpu-arch prints no compute capability. CUDA 11.8, 12 or 13 is needed.")
    return Toolkit(toolkit, version, tuple(sorted(map(int, listed))))


def check_parts(toolkit: Toolkit) -> None:
    """CaffeError when a part of CUDA that Caffe is built with is missing: its header, or its library.

    A toolkit can be installed in parts. If one is missing, CMake stops without naming a remedy, or the compiler fails
    minutes later. This searches the same folders as CMake's FindCUDA.
    """
    multiarch = ask(["gcc", "-print-multiarch"]).stdout.strip()
    named = [Path(folder) for name in _SEARCHED for folder in os.environ.get(name, "").split(os.pathsep) if folder]
    roots = [toolkit.folder, *sorted(toolkit.folder.glob("targets/*")), *named]
    includes = [root / "include" for root in roots] + [*named, Path("/usr/include"), Path("/usr/include", multiarch)]
    libraries = [root / folder for root in roots for folder in ("lib64", "lib", f"lib/{multiarch}")]
    libraries += [*named, Path("/usr/lib", multiarch), Path("/usr/lib64"), Path("/usr/lib"), Path("/usr/local/lib")]
    missing = []
    for part in PARTS:
        lacks = [] if first_with(part.header, includes) else [part.header]
        lacks += [] if any(first_with(name, libraries) for name in part.libraries) else [part.libraries[0]]
        if lacks:
            missing.append(f"{part.name} ({' and '.join(lacks)}; NVIDIA's package {part.package})")
    if missing:
        raise CaffeError(
            f"CUDA {toolkit.version} in {toolkit.folder} is not complete: no {', no '.join(missing)}. Install what is "
            "missing, set CUDA_HOME to a complete toolkit, or build for the CPU: make caffe GPU=0"
        )


def glibc_version() -> str:
    """This system's glibc, such as 2.36; 0 for another C library."""
    return platform.libc_ver()[1] or "0"


def _is_before(version: str, other: str) -> bool:
    """Whether a version is older than another; text would put 2.9 after 2.36.

    >>> _is_before("2.9", "2.36"), _is_before("13.2", "13.2")
    (True, False)
    """
    return [int(part) for part in version.split(".")] < [int(part) for part in other.split(".")]


def _folder_of_nvcc() -> str:
    nvcc = str(shutil.which("nvcc"))
    done = ask([nvcc, "--dryrun", "-x", "cu", "-c", os.devnull])  # nvcc may be a script that starts the real one
    top = re.search(r"^#\$ TOP=(.*)$", done.stdout + done.stderr, flags=re.MULTILINE)
    return os.path.abspath(top[1] if top else os.path.join(os.path.dirname(os.path.realpath(nvcc)), ".."))


def host_compiler(toolkit: Toolkit, asked: str, work: Path) -> str:
    """The first C++ compiler that nvcc accepts: the requested one, then the installed ones, newest first."""
    program = work / "host.cu"
    program.write_text("int main() {}\n", encoding="utf-8")
    reason = "none is installed"
    for name in (asked, *HOST_COMPILERS):
        compiler = shutil.which(name) if name else None
        if compiler is None:
            continue
        options = ["-ccbin", compiler, "-std=c++17", "-Wno-deprecated-gpu-targets"]
        done = ask([toolkit.nvcc, *options, "-c", str(program), "-o", str(work / "host.o")])
        if done.returncode == 0:
            return compiler
        reason = ((done.stdout + done.stderr).strip().splitlines() or ["it prints no reason"])[-1]
    if _is_before(toolkit.version, NEEDS_CUDA) and not _is_before(glibc_version(), NEW_GLIBC):
        raise CaffeError(
            f"CUDA {toolkit.version} does not compile with this system's glibc {glibc_version()}: {reason}. Install "
            f"CUDA {NEEDS_CUDA} or newer."
        )
    raise CaffeError(
        f"CUDA {toolkit.version} accepts none of the C++ compilers here: {reason}. Install an older one "
        "(CUDA 11.8 needs g++-11 or older), or name one: CUDAHOSTCXX=g++-11"
    )


# ---- compute capabilities ----------------------------------------------------------------------------------------


def _installed_gpus() -> str:
    """The compute capabilities of the installed GPUs; nvidia-smi prints a sentence on stdout where there is none."""
    program = shutil.which("nvidia-smi") or "/usr/lib/wsl/lib/nvidia-smi"  # Windows' own, under WSL2
    lines = ask([program, "--query-gpu=compute_cap", "--format=csv,noheader"]).stdout.splitlines()
    return " ".join(line.strip() for line in lines if re.fullmatch(r"\d+\.\d+", line.strip()))


def capabilities(text: str) -> list[int]:
    """Parse a list of compute capabilities; lowest first. CaffeError for an invalid one.

    >>> capabilities("8.9, 86 7.5 86")
    [75, 86, 89]
    """
    words = text.replace(",", " ").split()
    wrong = next((word for word in words if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", word)), None)
    if wrong is not None:
        raise CaffeError(f"CUDA_ARCH: '{wrong}' is not a compute capability. Write them as 86 or 8.6.")
    return sorted({int(word.replace(".", "")) for word in words})


def choose(asked: list[int], toolkit: Toolkit) -> Architectures:
    """Choose what to compile for, to support every requested GPU. CaffeError for a GPU too old for this CUDA.

    A GPU that is too new gets the newest PTX that its driver can compile. If no GPU is requested, the result is the
    oldest compute capability that this CUDA supports: every newer GPU can run it.
    """
    known, cuda = toolkit.known, f"CUDA {toolkit.version}"
    if not asked:
        say(
            f"no GPU found and no CUDA_ARCH given: building for compute capability {known[0]}; the driver of a "
            "newer GPU compiles it at the first start"
        )
        return Architectures(known[:1], known[0])
    if asked[0] < known[0]:
        raise CaffeError(
            f"compute capability {asked[0]}: {cuda} supports {known[0]} and newer. For a GPU this old "
            "(a GTX 1060 is 61), install CUDA 12 or 11.8."
        )
    real, virtual = [], known[0]
    for capability in asked:
        virtual = max(number for number in known if number <= capability)
        if virtual == capability:
            real.append(capability)
        else:
            say(
                f"compute capability {capability} is not known to {cuda}: building for {virtual}; "
                "the driver compiles it for the GPU at the first start"
            )
    return Architectures(tuple(real) or (virtual,), virtual)


# ---- cuDNN and NCCL ----------------------------------------------------------------------------------------------


def find_library(name: str, header: str, root: str, cuda: Path) -> Library | None:
    """A library and its header, in ``root``, CUDA's folder or the system's. None if either is missing."""
    multiarch = ask(["gcc", "-print-multiarch"]).stdout.strip()
    own = [Path(root, "include"), Path(root)] if root else []
    system = [Path("/usr/include"), Path("/usr/include", multiarch), Path("/usr/local/include")]
    include = first_with(header, [*own, cuda / "include", *system])
    own = [Path(root, "lib"), Path(root, "lib64")] if root else []
    system = [Path("/usr/lib", multiarch), Path("/usr/lib"), Path("/usr/local/lib")]
    file = first_with(f"lib{name}.so*", [*own, cuda / "lib64", cuda / "lib", *system])
    return Library(include.parent, file) if include and file else None


def first_with(pattern: str, folders: list[Path]) -> Path | None:
    """The first file that matches a name pattern, in the first folder that has one."""
    return next((path for folder in folders for path in sorted(folder.glob(pattern))), None)


def cudnn_major(include: Path) -> str:
    """cuDNN's major version from its headers; empty for versions before 8, which store it elsewhere."""
    text = "".join(path.read_text(errors="replace") for path in sorted(include.glob("cudnn_version*.h")))
    found = re.search(r"^#define CUDNN_MAJOR *(.*)$", text, flags=re.MULTILINE)
    return found[1] if found else ""
