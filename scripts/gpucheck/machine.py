"""Part 1: what is here. Names of GPUs, versions of driver and libraries, the build of Caffe, CPU, system, Python."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any, Dict, List

from gpucheck import programs
from gpucheck.check import Check
from gpucheck.outcome import Failed, Result
from gpucheck.programs import Caffe

LIBRARIES = re.compile(r"lib(cuda|cudart|cublas|cublasLt|curand|cudnn\w*|nccl|openblas|blas|mkl_rt|atlas)\.so\S*")
_CUDNN = "libcudnn*.so.*"


def examine(check: Check) -> Result:
    """Everything that this part finds; Failed when a GPU is wanted and none, no driver or a CPU build is found."""
    libraries = resolved(check.caffe)
    figures: Dict[str, Any] = {
        "gpus": gpus(),
        "libraries": libraries,
        "caffe": {**build_record(check.caffe), "version": _version(check)},
        "system": system(),
    }
    built_for_gpu = any(library["name"].startswith("libcudart") or "cublas" in library["name"] for library in libraries)
    figures["caffe_built_for_gpu"] = built_for_gpu
    missing = [library["name"] for library in libraries if library["file"] is None]
    if missing:
        raise Failed(f"bin/caffe finds no {', '.join(missing)}. Set LD_LIBRARY_PATH, or build Caffe here.", figures)
    if not check.gpu:
        return Result(
            "ok", f"the CPU was asked for; {_counted(figures['gpus'])}; Caffe for {_kind(built_for_gpu)}", figures
        )
    if not built_for_gpu:
        raise Failed("this Caffe was built for the CPU. Build one with `make caffe GPU=1`, or give --cpu.", figures)
    if not figures["gpus"]:
        raise Failed("nvidia-smi lists no GPU, or is missing. Is NVIDIA's driver installed?", figures)
    if all(str(gpu["index"]) != check.options.gpu for gpu in figures["gpus"]):
        raise Failed(f"there is no GPU {check.options.gpu}; {_counted(figures['gpus'])}.", figures)
    gpu = next(gpu for gpu in figures["gpus"] if str(gpu["index"]) == check.options.gpu)
    summary = f"{gpu['name']}, compute capability {gpu['compute_capability']}, driver {gpu['driver']}, "
    return Result("ok", summary + f"{gpu['memory_free_mib']} of {gpu['memory_total_mib']} MiB free", figures)


def _kind(for_gpu: bool) -> str:
    return "GPUs" if for_gpu else "the CPU"


def _counted(found: List[Dict[str, Any]]) -> str:
    names = ", ".join(f"{gpu['index']} ({gpu['name']})" for gpu in found)
    return f"nvidia-smi lists GPU {names}" if found else "nvidia-smi lists no GPU"


def gpus() -> List[Dict[str, Any]]:
    """The GPUs that nvidia-smi lists; memory in MiB. No serial numbers and UUIDs are asked for."""
    keys = ("index", "name", "compute_capability", "driver", "memory_total_mib", "memory_free_mib")
    rows = programs.query("index,name,compute_cap,driver_version,memory.total,memory.free")
    return [{key: _number(cell) for key, cell in zip(keys, row)} for row in rows]


def _number(cell: str) -> Any:
    return int(cell) if cell.isdigit() else cell


def resolved(caffe: Caffe) -> List[Dict[str, Any]]:
    """The CUDA and BLAS libraries that bin/caffe resolves: name, file with its version, maker.

    cuDNN 9 loads its sub-libraries by itself, so those next to libcudnn are listed too: mixed versions do not work.
    """
    try:
        done = subprocess.run(
            ["ldd", caffe.program("caffe")], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False
        )
    except OSError:
        return []
    found: Dict[str, Dict[str, Any]] = {}
    for name, path in re.findall(
        r"^\s*(\S+) => (/\S+|not found)", done.stdout.decode("utf-8", "replace"), re.MULTILINE
    ):
        if not LIBRARIES.fullmatch(name) and path != "not found":
            continue
        found[name] = _library(name, None if path == "not found" else Path(path), caffe)
        if name.startswith("libcudnn.") and path != "not found":
            for file in sorted(Path(path).parent.glob(_CUDNN)):
                if file.name not in found and file.name.count(".") == 2:  # libcudnn_ops.so.9, not …so.9.1.0
                    found[file.name] = _library(file.name, file, caffe)
    return [found[name] for name in sorted(found)]


def _library(name: str, path: Path | None, caffe: Caffe) -> Dict[str, Any]:
    if path is None:
        return {"name": name, "file": None, "from": "not found"}
    real = Path(os.path.realpath(str(path)))
    own = caffe.root is not None and os.path.realpath(str(caffe.root)) in map(str, real.parents)
    return {"name": name, "file": real.name, "from": "this Caffe's folder" if own else _folder(real.parent)}


def _folder(folder: Path) -> str:
    """A system's folder by its name; any other only as what it is."""
    text = str(folder)
    if re.match(r"/(usr/lib|lib|lib64|usr/local/cuda)", text):
        return text
    return "a Python package" if "site-packages" in text or "dist-packages" in text else "another folder"


def build_record(caffe: Caffe) -> Dict[str, Any]:
    """Short facts of the build's records; lists, such as the bundle's libraries, are left out."""
    short = (str, int, float, bool)
    return {key: value for key, value in caffe.record.items() if isinstance(value, short) and len(str(value)) < 1000}


def _version(check: Check) -> str:
    ran = check.run_caffe(["--version"], "version")
    found = re.search(r"version (\S+)", ran.output)
    return found.group(1) if found else "unknown"


def system() -> Dict[str, Any]:
    """CPU, memory, system, Python; WSL2 is named."""
    facts: Dict[str, Any] = {
        "python": platform.python_version(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "libc": " ".join(platform.libc_ver()),
        "cores": len(os.sched_getaffinity(0)),
        "wsl": Path("/dev/dxg").exists(),
    }
    for path, pattern, key in (
        ("/etc/os-release", r'^PRETTY_NAME="?([^"\n]+)', "system"),
        ("/proc/cpuinfo", r"^model name\s*:\s*(.+)$", "cpu"),
        ("/proc/meminfo", r"^MemTotal:\s*(\d+)", "memory_mib"),
    ):
        with contextlib.suppress(OSError):
            found = re.search(pattern, Path(path).read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
            if found:
                facts[key] = int(found.group(1)) // 1024 if key == "memory_mib" else found.group(1).strip()
    return facts
