"""gpu-check.md and gpu-check.json: what passed, what failed, the figures. No names of hosts and users, no own paths."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Dict, List, Tuple

from gpucheck.outcome import FAILED, OK, SKIPPED, Result
from gpucheck.store import scrubbed, write

SCHEMA = 1
"""Raised when a key of gpu-check.json changes its meaning or goes; docs/guide/gpu.md lists them."""


def put(folder: Path, parts: List[Tuple[str, str, Result | None]], settings: Dict[str, Any], complete: bool) -> None:
    """Write both files. ``parts`` are (name, title, result), the result None where a part has not run."""
    results = {
        name: {
            "title": title,
            "status": result.status if result else "not run",
            "summary": result.summary if result else "",
            "seconds": round(result.seconds, 1) if result else 0.0,
            "figures": result.figures if result else {},
        }
        for name, title, result in parts
    }
    counts = {status: sum(part["status"] == status for part in results.values()) for status in (OK, FAILED, SKIPPED)}
    content = {"schema": SCHEMA, "complete": complete, "settings": settings, "counts": counts, "parts": results}
    content = scrubbed(_finite(content))
    write(folder / "gpu-check.json", json.dumps(content, indent=1, allow_nan=False) + "\n")
    write(folder / "gpu-check.md", _markdown(content))


def _finite(value: Any) -> Any:
    """A value of JSON, which has no nan and no infinity: they become texts."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _markdown(content: Dict[str, Any]) -> str:
    parts, settings, counts = content["parts"], content["settings"], content["counts"]
    size = "The quick check" if settings["quick"] else "The whole check"
    state = "" if content["complete"] else "; **not finished**"
    lines = [
        f"# gpu-check: {counts[OK]} ok, {counts[FAILED]} failed, {counts[SKIPPED]} skipped",
        "",
        f"{size} on the {settings['device']}{state}.",
        "",
        "| part | | result | s |",
        "|---|---|---|---|",
    ]
    for part in parts.values():
        lines.append(f"| {part['title']} | {part['status']} | {_cell(part['summary'])} | {part['seconds']:.0f} |")
    here = parts["machine"]["figures"]
    lines += _machine(here) if here else []
    lines += _convolutions(parts["convolutions"]["figures"])
    return "\n".join(lines) + "\n"


def _machine(here: Dict[str, Any]) -> List[str]:
    system, caffe = here["system"], here["caffe"]
    lines = ["", "## Machine", ""]
    for gpu in here["gpus"]:
        lines.append(
            f"- GPU {gpu['index']}: {gpu['name']}, compute capability {gpu['compute_capability']}, driver "
            f"{gpu['driver']}, {gpu['memory_free_mib']} of {gpu['memory_total_mib']} MiB free"
        )
    cpu = system.get("cpu", "unknown")
    lines.append(f"- CPU: {cpu}, {system['cores']} cores, {system.get('memory_mib', 'unknown')} MiB")
    wsl = ", WSL2" if system["wsl"] else ""
    lines.append(f"- {system.get('system', 'unknown system')}{wsl}, kernel {system['kernel']}, {system['libc']}")
    lines.append(f"- Python {system['python']}")
    build = ", ".join(f"{key} {caffe[key]}" for key in ("version", "gpu", "blas", "compiler", "built") if key in caffe)
    lines.append(f"- Caffe: {build}")
    files = [f"{library['file'] or library['name'] + ' not found'}" for library in here["libraries"]]
    lines.append(f"- libraries: {', '.join(files) or 'none listed'}")
    return lines


def _convolutions(figures: Dict[str, Any]) -> List[str]:
    if not figures.get("layers"):
        return []
    lines = ["", "## Grouped convolutions, relative differences from the CPU", ""]
    lines += ["| layer | quantity | difference | bound | with TF32 |", "|---|---|---|---|---|"]
    for layer, entries in figures["layers"].items():
        for quantity, entry in entries.items():
            if isinstance(entry, dict):
                cells = [_figure(entry.get(key)) for key in ("difference", "bound", "tf32")]
                lines.append(f"| {layer} | {quantity} | {' | '.join(cells)} |")
    return [*lines, "", f"The bound: {figures['bound']}."]


def _figure(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else f"{value:.2g}"
