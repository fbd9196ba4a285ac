"""phantom: phantoms of 1000 x 1300 made per second."""

from __future__ import annotations

import os

from .workbench import Row, Workbench


def measure(bench: Workbench) -> list[Row]:
    """Images per second; the phantoms are kept for the other parts."""
    seconds = bench.make_phantoms(bench.folder / "data")
    return [Row("phantom", f"{bench.count / seconds:.1f} images/s of 1000 x 1300 on {os.cpu_count()} cores")]
