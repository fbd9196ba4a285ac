"""setup: Caffe built from nothing into an empty cache; `make setup` with nothing changed."""

from __future__ import annotations

import subprocess

from .workbench import REPOSITORY, Row, Workbench, built_caffe, seconds_of


def measure(bench: Workbench) -> list[Row]:
    """Seconds of a build and of a setup with nothing to do."""
    built = seconds_of(lambda: built_caffe(BONECAFFE_CACHE=str(bench.folder / "cache")))
    again = seconds_of(
        lambda: subprocess.run(["scripts/setup.sh"], cwd=REPOSITORY, check=True, capture_output=True),
    )
    return [Row("setup", f"{built:.0f} s for Caffe from nothing, {again:.2f} s with nothing changed")]
