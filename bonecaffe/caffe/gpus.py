"""The cards of this machine, and whether the Caffe that serves can compute on them; asked before it would die of it."""

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
    """A card: its number, its name, its compute capability (86 for 8.6), its memory in bytes."""

    index: int
    name: str
    capability: int
    memory: int


def cards() -> list[Card]:
    """The cards as Caffe will number them; empty where there is none or they cannot be asked for.

    nvidia-smi lists all, in the order of their slots, which `programs` has Caffe keep; ``CUDA_VISIBLE_DEVICES`` leaves
    some out, and numbers the others anew.
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
        card = next((c for uuid, c in found.items() if wish.strip() == str(c.index) or (wish.startswith("GPU-") and uuid.startswith(wish.strip()))), None)  # fmt: skip
        if card is None:  # CUDA looks no further
            break
        seen.append(replace(card, index=len(seen)))
    return seen


def chosen(wanted: str, there: list[Card]) -> list[Card]:
    """The cards that ``0``, ``0,1`` or ``all`` means, so far as they are there."""
    return there if wanted == "all" else [card for card in there if str(card.index) in wanted.split(",")]


def problem(wanted: str) -> str | None:
    """Why this Caffe cannot compute on the cards wanted (``0``, ``0,1``, ``all``); None when nothing speaks against it."""
    caffe = installation.find()
    if not caffe.has_gpu:
        return (
            f"--gpu {wanted}: this Caffe ({caffe.origin}) was built without GPU support. "
            "Compute on the CPU, or build one with `make caffe GPU=1`."
        )
    if not any(path.exists() for path in _DRIVERS):
        return f"--gpu {wanted}: no NVIDIA driver on this machine. Install it (nvidia-smi then lists the card), or compute on the CPU."
    there = cards()
    if ("," in wanted or (wanted == "all" and len(there) != 1)) and not caffe.has_nccl:
        return f"--gpu {wanted}: several GPUs need a Caffe built with NCCL, and this one ({caffe.origin}) is not. Use one, --gpu 0."
    if there and wanted != "all":
        numbers = {str(card.index) for card in there}
        if lost := [number for number in wanted.split(",") if number not in numbers]:
            return f"--gpu {wanted}: no card {lost[0]}; there are {', '.join(sorted(numbers))}. See nvidia-smi."
    built = [int(number) for number in re.findall(r"\d+", caffe.build.get("gpu", "").rpartition("capability")[2])]
    for card in chosen(wanted, there):
        if built and not _runs_on(card.capability, built):
            return (
                f"--gpu {wanted}: card {card.index} ({card.name}) has compute capability {card.capability / 10}, and this Caffe was "
                f"built for {', '.join(str(number / 10) for number in built)}. Build it anew with `make caffe GPU=1`."
            )
    return None


def _runs_on(capability: int, built: list[int]) -> bool:
    """Machine code serves newer cards of the same generation; the newest is there as PTX too, for all later ones."""
    return capability >= max(built) or any(one <= capability and one // 10 == capability // 10 for one in built)
