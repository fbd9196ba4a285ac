"""The GPUs of this machine, and whether the installed Caffe can compute on them; asked before it would die of it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from bonecaffe.caffe import installation, programs

_DRIVERS = (Path("/proc/driver/nvidia/version"), Path("/dev/dxg"))
"""What NVIDIA's driver leaves on Linux, and under Windows' own Linux."""


@dataclass(frozen=True)
class Card:
    """A GPU: its number, its name, its compute capability (86 for 8.6), its memory in bytes."""

    index: int
    name: str
    capability: int
    memory: int


def cards() -> list[Card]:
    """The GPUs as Caffe will number them; empty where there is none or they cannot be asked for.

    nvidia-smi lists all, in the order of their slots, which `programs` has Caffe keep; ``CUDA_VISIBLE_DEVICES`` leaves
    some out, and numbers the others from 0.
    """
    found: dict[str, Card] = {}
    for line in programs.nvidia_smi("index,name,compute_cap,memory.total,uuid").splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) == 5 and re.fullmatch(r"\d+", parts[0]) and re.fullmatch(r"\d+\.\d", parts[2]):
            mebibytes = re.match(r"\d+", parts[3])
            memory = int(mebibytes[0]) << 20 if mebibytes else 0
            found[parts[4]] = Card(int(parts[0]), parts[1], int(parts[2].replace(".", "")), memory)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return list(found.values())
    seen: list[Card] = []
    for wish in visible.split(","):
        card = next((card for uuid, card in found.items() if _means(wish, uuid, card)), None)
        if card is None:  # CUDA looks no further
            break
        seen.append(replace(card, index=len(seen)))
    return seen


def _means(wish: str, uuid: str, card: Card) -> bool:
    """Whether an entry of ``CUDA_VISIBLE_DEVICES`` names a GPU: by its number, or by the beginning of its UUID."""
    return wish.strip() == str(card.index) or (wish.startswith("GPU-") and uuid.startswith(wish.strip()))


def chosen(wish: str, existing: list[Card]) -> list[Card]:
    """The GPUs that ``0``, ``0,1`` or ``all`` means, as far as they exist."""
    return existing if wish == "all" else [card for card in existing if str(card.index) in wish.split(",")]


def problem(wish: str) -> str | None:
    """Why this Caffe cannot compute on the GPUs asked for (``0``, ``0,1``, ``all``); None when no problem is found."""
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
    existing = cards()
    if ("," in wish or (wish == "all" and len(existing) != 1)) and not caffe.has_nccl:
        return (
            f"--gpu {wish}: several GPUs need a Caffe built with NCCL, and this one ({caffe.origin}) is not. "
            "Use one, --gpu 0."
        )
    if existing and wish != "all":
        numbers = {str(card.index) for card in existing}
        if missing := [number for number in wish.split(",") if number not in numbers]:
            return f"--gpu {wish}: no GPU {missing[0]}; there are {', '.join(sorted(numbers))}. See nvidia-smi."
    built = [int(number) for number in re.findall(r"\d+", caffe.build.get("gpu", "").rpartition("capability")[2])]
    for card in chosen(wish, existing):
        if built and not _runs_on(card.capability, built):
            return (
                f"--gpu {wish}: GPU {card.index} ({card.name}) has compute capability {card.capability / 10}, "
                f"and this Caffe was built for {', '.join(str(number / 10) for number in built)}. "
                "Build it again with `make caffe GPU=1`."
            )
    return None


def _runs_on(capability: int, built: list[int]) -> bool:
    """Machine code serves newer GPUs of the same generation; the newest is there as PTX too, for all later ones."""
    return capability >= max(built) or any(one <= capability and one // 10 == capability // 10 for one in built)


def count(wanted: str | None) -> int:
    """How many GPUs ``0``, ``0,1`` or ``all`` means; 1 for None, the CPU. Each takes a whole batch of its own."""
    if wanted is None:
        return 1
    visible = cards()
    return max(1, len(chosen(wanted, visible)) if visible or wanted == "all" else len(wanted.split(",")))
