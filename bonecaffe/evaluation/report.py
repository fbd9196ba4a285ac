"""report.html: one self-contained file that holds a run against the paper."""

from __future__ import annotations

import base64
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bonecaffe import __version__
from bonecaffe.evaluation.metrics import PAPER
from bonecaffe.recipe import Departure, Recipe
from bonecaffe.run import SPLITS, RunDir

if TYPE_CHECKING:
    from bonecaffe.evaluation.stage import Evaluation

CAPTIONS = {
    "curve": (
        "Error against iteration",
        "Root mean squared error in months of the training batch and of the test split, in linear and in log scale, as in the paper’s figure 5.",
    ),
    "predicted": (
        "Predicted against true age",
        "Each mark is one hand; on the dashed line the prediction is the true age.",
    ),
    "worst": (
        "The twelve test hands it was most wrong about",
        "As the network sees them: cropped, equalized, 224 × 224; true → predicted age in months.",
    ),
}


def render(
    run: RunDir,
    recipe: Recipe,
    departures: list[Departure],
    evaluation: Evaluation,
    figures: dict[str, Path],
    manifest: dict[str, Any],
) -> str:
    """The report as HTML; images are inside it, and it asks nothing of any other file or host."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(
        (resources.files("bonecaffe.evaluation") / "report.html.jinja").read_text(encoding="utf-8")
    )
    train = manifest.get("train", {})
    return template.render(
        run=run.path.name,
        recipe=recipe,
        departures=departures,
        evaluation=evaluation,
        splits=SPLITS,
        paper=PAPER,
        figures=[(*CAPTIONS[name], _inline(figures[name])) for name in CAPTIONS if name in figures],
        attempts=train.get("attempts", []),
        state=train.get("state", "unknown"),
        build=train.get("caffe", {}),
        prepare=manifest.get("prepare", {}),
        predict=manifest.get("predict", {}),
        version=__version__,
    )


def _inline(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")
