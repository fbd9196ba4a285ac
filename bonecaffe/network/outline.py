"""An outline of the network for people: each step of CaffeNet with the size of its output (paper, figure 4)."""

from __future__ import annotations

import math
from typing import NamedTuple

from bonecaffe.network import prototxt
from bonecaffe.recipe import Recipe


class Step(NamedTuple):
    """A layer with weights or pooling: name, what it does, and channels, height, width of its output."""

    name: str
    does: str
    channels: int
    height: int
    width: int

    @property
    def size(self) -> str:
        """The size of its output, as text."""
        return (
            f"{self.channels}" if self.height == self.width == 1 else f"{self.channels} × {self.height} × {self.width}"
        )


def steps(recipe: Recipe) -> list[Step]:
    """The steps from the image to the months. ReLU, LRN and dropout change no size and belong to the step before.

    >>> [step.size for step in steps(Recipe.load("paper")) if step.name in ("data", "pool5", "fc8")]
    ['3 × 224 × 224', '256 × 6 × 6', '1']
    """
    high, wide = recipe.preparation.height, recipe.preparation.width
    found = [Step("data", "hand, less the mean", 3, high, wide)]
    for layer in prototxt.layers(recipe):
        of = dict(layer)
        name, kind = str(of["name"]), of["type"]
        if kind == "Convolution":
            p = _numbers(of["convolution_param"])
            k, s, pad = p["kernel_size"], p.get("stride", 1), p.get("pad", 0)
            high, wide = ((side + 2 * pad - k) // s + 1 for side in (high, wide))
            does = f"{k} × {k} convolution" + (f", every {s}th pixel" if s > 1 else "")
            found.append(Step(name, does, p["num_output"], high, wide))
        elif kind == "Pooling":
            p = _numbers(of["pooling_param"])
            high, wide = (math.ceil((side - p["kernel_size"]) / p["stride"]) + 1 for side in (high, wide))
            does = f"largest of {p['kernel_size']} × {p['kernel_size']}"
            found.append(Step(name, does, found[-1].channels, high, wide))
        elif kind == "InnerProduct":
            high = wide = 1
            found.append(Step(name, "fully connected", _numbers(of["inner_product_param"])["num_output"], 1, 1))
    return found


def _numbers(message: prototxt.Value) -> dict[str, int]:
    """The whole numbers among a layer's parameters, by field."""
    fields = message if isinstance(message, prototxt.Block) else ()
    return {field: value for field, value in fields if isinstance(value, int)}
