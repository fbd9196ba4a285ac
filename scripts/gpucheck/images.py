"""The images of the check: phantoms from `prepare` in one small archive, or drawings made on the spot.

The archive holds grey PNGs of 224 x 224 pixels and Caffe's lists, some 20 MB for 600 phantoms; convert_imageset makes
the LMDBs, of 90 MB, where the check runs.
"""

from __future__ import annotations

import json
import lzma
import os
import random
import re
import struct
import subprocess
import sys
import tarfile
import tempfile
import zlib
from pathlib import Path
from typing import Dict, List

from gpucheck.nets import SIDE_PX
from gpucheck.outcome import CheckError
from gpucheck.store import remove, write

PHANTOMS, DRAWINGS = "bonecaffe's phantoms", "simple drawings (no archive of phantoms was given)"
_MEMBER = re.compile(r"images/[\w-]+\.png|train\.txt|test\.txt|about\.json", re.ASCII)


def pack(out: Path, train: int, test: int, size: str) -> None:
    """Make phantoms with bonecaffe, prepare them, and pack the images that Caffe sees; CheckError when one fails.

    ``size`` is the phantoms' width and height, as ``bonecaffe phantom --size`` takes it.
    """
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as name:
        folder = Path(name)
        hands, run = folder / "phantoms", folder / "run"
        _bonecaffe("phantom", str(hands), "--count", str(train + test), "--size", size, "--seed", "16")
        tables = ["--ages", str(hands / "ages.csv"), "--points", str(hands / "points.csv")]
        counts = ["--train", str(train), "--test", str(test), "--recipe", "paper"]
        _bonecaffe("prepare", str(run), "--images", str(hands / "images"), *tables, *counts)
        about = {"what": PHANTOMS, "train": train, "test": test}
        write(run / "about.json", json.dumps(about))
        part = out.with_name("." + out.name + ".part")
        try:
            with tarfile.open(str(part), "w:xz") as archive:
                members = [run / "about.json", run / "train.txt", run / "test.txt", *sorted((run / "images").iterdir())]
                for path in members:
                    entry = tarfile.TarInfo(str(path.relative_to(run)))  # no owner, no time
                    entry.size = path.stat().st_size
                    with path.open("rb") as file:
                        archive.addfile(entry, file)
            os.replace(str(part), str(out))
        finally:
            remove(part)


def _bonecaffe(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", "bonecaffe", *arguments], check=False)
    if done.returncode:
        raise CheckError(
            f"bonecaffe {arguments[0]} failed with exit status {done.returncode}; see above. `gpu-check prepare` needs "
            "an installed bonecaffe: run `make setup` and use .venv/bin/python."
        )


def unpack(archive: Path, folder: Path) -> Dict[str, object]:
    """Unpack what `pack` wrote; CheckError when it is none. Nothing but its own kinds of files is written."""
    try:
        with tarfile.open(str(archive), "r:xz") as packed:
            for member in packed:
                content = packed.extractfile(member) if member.isfile() else None
                if content is None or not _MEMBER.fullmatch(member.name):
                    raise CheckError(f"{archive}: holds {member.name!r}, which `gpu-check prepare` does not write.")
                target = folder / member.name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content.read())
        about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    except (OSError, EOFError, ValueError, tarfile.TarError, lzma.LZMAError) as error:
        raise CheckError(
            f"{archive}: no archive of `gpu-check prepare` ({error}). Make it again, or leave out --data."
        ) from error
    return dict(about)


def listed(path: Path) -> List[int]:
    """The ages in a list of Caffe's, in its order, months."""
    return [int(line.rpartition(" ")[2]) for line in path.read_text(encoding="utf-8").splitlines()]


# ---- drawings ------------------------------------------------------------------------------------------------------

_NOISE = bytes(value >> 4 for value in range(256))


def draw(folder: Path, train: int, test: int) -> Dict[str, object]:
    """Write drawings whose bars are longer and thicker the older the "hand" is, and lists of them; always the same."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rng = random.Random(2018)
    for name, count in (("train", train), ("test", test)):
        lines = []
        for number in range(count):
            age_months = rng.randrange(12, 229)
            image = f"{name}{number:04d}.png"
            (folder / "images" / image).write_bytes(_png(_drawing(age_months, rng)))
            lines.append(f"{image} {age_months}\n")
        write(folder / f"{name}.txt", "".join(lines))
    return {"what": DRAWINGS, "train": train, "test": test}


def _drawing(age_months: int, rng: random.Random) -> List[bytes]:
    noise = rng.getrandbits(8 * SIDE_PX * SIDE_PX).to_bytes(SIDE_PX * SIDE_PX, "little").translate(_NOISE)
    length, width = 60 + age_months // 2, 6 + age_months // 16
    shift, top = rng.randrange(-8, 9), rng.randrange(10, 30)
    gap = max(0, 12 - age_months // 18)  # the growth plate closes
    rows = []
    for y in range(SIDE_PX):
        row = bytearray(noise[y * SIDE_PX : (y + 1) * SIDE_PX])
        for finger in range(5):
            start = top + abs(2 - finger) * 8
            if start <= y < start + length and not start + length // 2 <= y < start + length // 2 + gap:
                left = 24 + finger * 40 + shift
                row[left : left + width] = bytes(180 + value for value in row[left : left + width])
        rows.append(bytes(row))
    return rows


def _png(rows: List[bytes]) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", len(rows[0]), len(rows), 8, 0, 0, 0, 0)
    lines = zlib.compress(b"".join(b"\0" + row for row in rows), 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", lines) + chunk(b"IEND", b"")
