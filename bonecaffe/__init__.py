"""bonecaffe: Lee & Kim's 2018 bone-age pipeline on real Caffe.

    from bonecaffe import ccc, Locator, mad, Predictor, Recipe

The names are loaded when first used, so that ``import bonecaffe`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.2.0.dev0"

_HOMES = {
    "Predictor": "bonecaffe.predict",
    "Locator": "bonecaffe.locate.locator",
    "Recipe": "bonecaffe.recipe",
    "RunDir": "bonecaffe.run",
    "BonecaffeError": "bonecaffe.errors",
    "histeq": "bonecaffe.prepare.histeq",
    "mad": "bonecaffe.evaluation.metrics",
    "ccc": "bonecaffe.evaluation.metrics",
}

__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'bonecaffe' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
