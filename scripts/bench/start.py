"""start: how long `import bonecaffe` and `bonecaffe --help` take, against a bare interpreter."""

from __future__ import annotations

import subprocess
import sys

from .workbench import Row, Workbench, best


def measure(bench: Workbench) -> list[Row]:
    """Seconds from the start of the process to its end, the best of five."""
    bare, imported, helped = (
        _python("-c", ""),
        _python("-c", "import bonecaffe"),
        _python("-m", "bonecaffe", "--help"),
    )
    return [
        Row("import bonecaffe", f"{imported:.3f} s (a bare interpreter {bare:.3f} s)"),
        Row("bonecaffe --help", f"{helped:.3f} s"),
    ]


def _python(*arguments: str) -> float:
    return best(lambda: subprocess.run([sys.executable, *arguments], check=True, capture_output=True))
