"""Pictures of hands and what is done to them: the pipeline step by step, equalizations side by side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from bonecaffe.evaluation.plots import TRAIN, save
from bonecaffe.hands.images import Image
from bonecaffe.hands.reference_points import POINT_NAMES, ReferencePoints
from bonecaffe.prepare.crop import crop
from bonecaffe.prepare.normalize import equalized_crop, normalize
from bonecaffe.recipe import Recipe

if TYPE_CHECKING:  # loaded when something is drawn
    from matplotlib.figure import Figure


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def side_by_side(pictures: Mapping[str, Image], path: Path) -> Path:
    """Grey images under their titles, each with its histogram below; ``pictures`` maps titles to uint8 arrays."""
    figure = _figure(2.5 * len(pictures), 3.8)
    above, below = figure.subplots(2, len(pictures), height_ratios=(3, 1))
    for (title, picture), image_axes, axes in zip(pictures.items(), above, below, strict=True):
        image_axes.imshow(picture, cmap="gray", vmin=0, vmax=255)
        image_axes.set_title(title, fontsize=9)
        image_axes.axis("off")
        axes.hist(picture.ravel(), bins=256, range=(0, 256), color=TRAIN)
        axes.set_yticks([])
        axes.set_xticks([0, 255])
        axes.spines[["top", "right", "left"]].set_visible(False)
    return save(figure, path)


def preparation(image: Image, points: ReferencePoints, recipe: Recipe, path: Path) -> Path:
    """The pipeline in pictures (figures 2 and 3): image, points, rectangle, crop, equalized, as the network sees it."""
    settings = recipe.preparation
    rectangle = points.rectangle(settings.margin)
    steps = [
        (f"radiograph, {points.width} × {points.height}", image),
        ("seven reference points", image),
        (f"crop, {rectangle.width} × {rectangle.height}", crop(image, rectangle)),
        (f"histeq, {settings.histeq_levels} levels", equalized_crop(image, points, settings)),
        (f"resized, {settings.width} × {settings.height}", normalize(image, points, settings)),
    ]
    figure = _figure(12, 3.4)
    grid = figure.subplots(1, len(steps))
    for axes, (title, picture) in zip(grid, steps, strict=True):
        axes.imshow(picture, cmap="gray", vmin=0, vmax=255)
        axes.set_title(title, fontsize=9)
        axes.axis("off")
    for name, (x, y) in zip(POINT_NAMES, points.points, strict=True):
        grid[1].plot(x, y, "o", color="#ff9a3c", markersize=4, markeredgecolor="black", markeredgewidth=0.5)
        offset = (-6, 0) if name == "ulna" else (6, 0)
        align = "right" if name == "ulna" else "left"
        label = name.replace("phalanx", "")
        grid[1].annotate(
            label, (x, y), offset, textcoords="offset points", color="#ffb870", fontsize=7, ha=align, va="center"
        )
    left, top = [rectangle.left, rectangle.right], [rectangle.top, rectangle.bottom]
    corners_x, corners_y = [left[0], left[1], left[1], left[0], left[0]], [top[0], top[0], top[1], top[1], top[0]]
    grid[1].plot(corners_x, corners_y, color="#5fb0ff", linewidth=1.2)
    return save(figure, path)
