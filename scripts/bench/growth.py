"""growth: prepare, and a training that sees each image once, at 1, 4 and 16 times the images: time and memory.

convert_imageset holds up to 1,000 records, so its own memory is whole from 4 times on.
"""

from __future__ import annotations

from .workbench import Cost, Row, Workbench, prepared, watched

COPIES = (1, 4, 16)
BATCH = 32


def measure(bench: Workbench) -> list[Row]:
    """Seconds per image, as a ratio to the fewest images, and the peak memory."""
    rows: dict[str, list[Row]] = {"prepare": [], "train": []}
    first: dict[str, float] = {}
    for copies in COPIES:
        count = bench.count // 2 * copies
        for what, (seconds, peak) in _costs(bench, copies, count).items():
            ratio = seconds / count / first.setdefault(what, seconds / count)
            figure = f"{count} images: {seconds:.1f} s, {ratio:.2f} times as long an image as the first; {peak}"
            rows[what].append(Row(f"growth, {what} {copies}x", figure))
    return [*rows["prepare"], *rows["train"]]


def _costs(bench: Workbench, copies: int, count: int) -> dict[str, Cost]:
    """What prepare and train take; the training's one snapshot and one test are its last iteration."""
    data, run = bench.rsna(copies), bench.folder / f"grown{copies}"
    iterations = max(1, count * 4 // 5 // BATCH)
    once = dict.fromkeys(("solver.max_iter", "solver.snapshot", "solver.test_interval"), iterations)
    recipe = bench.recipe(run.name, "demo", once)
    return {"prepare": prepared(run, data, "--recipe", recipe), "train": watched("train", run)}
