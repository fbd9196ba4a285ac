"""The GPUs of this machine, and whether the installed Caffe can compute on them; checked before Caffe would abort."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from bonecaffe.caffe import installation, programs

_DRIVERS = (Path("/proc/driver/nvidia/version"), Path("/dev/dxg"))
"""Files that exist where NVIDIA's driver is installed: on Linux, and on Linux under Windows (WSL 2)."""


@dataclass(frozen=True)
class Gpu:
    """A GPU: its number, its name, its compute capability (86 for 8.6), its memory and what of it is free, in bytes.

    ``free`` is the whole memory where the driver does not tell.
    """

    index: int
    name: str
    capability: int
    memory: int
    free: int


def visible() -> list[Gpu]:
    """The GPUs as Caffe will number them; empty where there is none or they cannot be listed.

    nvidia-smi lists all, in the order of their slots; `programs` makes Caffe use the same order.
    ``CUDA_VISIBLE_DEVICES`` hides some, and numbers the others from 0.
    """
    found: dict[str, Gpu] = {}
    for line in programs.nvidia_smi("index,name,compute_cap,memory.total,memory.free,uuid").splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) == 6 and re.fullmatch(r"\d+", parts[0]) and re.fullmatch(r"\d+\.\d", parts[2]):
            memory, free = _bytes(parts[3], 0), _bytes(parts[4], _bytes(parts[3], 0))
            found[parts[5]] = Gpu(int(parts[0]), parts[1], int(parts[2].replace(".", "")), memory, free)
    wishes = os.environ.get("CUDA_VISIBLE_DEVICES")
    if wishes is None:
        return list(found.values())
    seen: list[Gpu] = []
    for wish in wishes.split(","):
        gpu = next((gpu for uuid, gpu in found.items() if _means(wish, uuid, gpu)), None)
        if gpu is None:  # CUDA looks no further
            break
        seen.append(replace(gpu, index=len(seen)))
    return seen


def _bytes(text: str, unknown: int) -> int:
    """Bytes from nvidia-smi's "6144 MiB"; ``unknown`` for "[N/A]"."""
    mebibytes = re.match(r"\d+", text)
    return int(mebibytes[0]) << 20 if mebibytes else unknown


def _means(wish: str, uuid: str, gpu: Gpu) -> bool:
    """Whether an entry of ``CUDA_VISIBLE_DEVICES`` names a GPU: by its number, or by the beginning of its UUID."""
    return wish.strip() == str(gpu.index) or (wish.startswith("GPU-") and uuid.startswith(wish.strip()))


def chosen(wish: str, existing: list[Gpu]) -> list[Gpu]:
    """The existing GPUs among those that ``0``, ``0,1`` or ``all`` means."""
    return existing if wish == "all" else [gpu for gpu in existing if str(gpu.index) in wish.split(",")]


def problem(wish: str) -> str | None:
    """Why this Caffe cannot compute on the requested GPUs (``0``, ``0,1``, ``all``); None when no problem is found."""
    caffe = installation.find()
    if not caffe.has_gpu:
        return (
            f"--gpu {wish}: this Caffe ({caffe.origin}) was built without GPU support. "
            "Compute on the CPU, or build one with `make caffe GPU=1`."
        )
    if not any(path.exists() for path in _DRIVERS):
        return (
            f"--gpu {wish}: no NVIDIA driver on this machine. "
            "Install it (nvidia-smi then lists the GPU), or compute on the CPU."
        )
    existing = visible()
    if ("," in wish or (wish == "all" and count(wish) != 1)) and not caffe.has_nccl:
        return (
            f"--gpu {wish}: several GPUs need a Caffe built with NCCL, but this one ({caffe.origin}) was built "
            "without it. Use one GPU: --gpu 0."
        )
    if existing and wish != "all":
        numbers = {str(gpu.index) for gpu in existing}
        if missing := [number for number in wish.split(",") if number not in numbers]:
            return f"--gpu {wish}: no GPU {missing[0]}; there are {', '.join(sorted(numbers))}. See nvidia-smi."
    built = [int(number) for number in re.findall(r"\d+", caffe.build.get("gpu", "").rpartition("capability")[2])]
    for gpu in chosen(wish, existing):
        if built and not _runs_on(gpu.capability, built):
            return (
                f"--gpu {wish}: GPU {gpu.index} ({gpu.name}) has compute capability {gpu.capability / 10}, "
                f"and this Caffe was built for {', '.join(str(number / 10) for number in built)}. "
                "Build it again with `make caffe GPU=1`."
            )
    return None


def _runs_on(capability: int, built: list[int]) -> bool:
    """Machine code runs on newer GPUs of the same generation; the newest is included as PTX too, for all later ones."""
    return capability >= max(built) or any(one <= capability and one // 10 == capability // 10 for one in built)


def count(wish: str | None) -> int:
    """How many GPUs ``0``, ``0,1`` or ``all`` means; 1 for None, the CPU. Each GPU takes a whole batch.

    ``all`` is what CUDA itself counts: not every GPU that nvidia-smi lists, and a part of one (MIG) as one.
    """
    if wish is None:
        return 1
    found = visible()
    if wish == "all":
        return max(1, programs.cuda_count() or len(found))
    return max(1, len(chosen(wish, found)) if found else len(wish.split(",")))
