"""The figures of a run: error against iteration (the paper's figure 5) and predicted against true age."""

from __future__ import annotations

from pathlib import Path

from bonecaffe.run import replacing

TRAIN, TEST = "#2f6db3", "#d1622b"


def _figure(width: float, height: float):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure, path: Path) -> Path:
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png", metadata={"Software": None})
    return path


def error_curve(curve, path: Path) -> Path:
    """Figure 5: error (RMSE in months) against iteration, in linear and in log scale.

    ``curve`` is a table with the columns iteration, phase (train / test) and rmse_months.
    """
    figure = _figure(9, 3.6)
    for axes, scale in zip(figure.subplots(1, 2), ("linear", "log"), strict=True):
        for phase, colour, line in (
            ("train", TRAIN, {"linewidth": 0.8, "alpha": 0.75}),
            ("test", TEST, {"linewidth": 1.8, "marker": "o", "markersize": 3}),
        ):
            part = curve[(curve["phase"] == phase) & curve["rmse_months"].gt(0)]
            label = "training batch" if phase == "train" else "test split"
            axes.plot(part["iteration"], part["rmse_months"], color=colour, label=label, **line)
        axes.set_yscale(scale)
        axes.set_xlabel("iteration")
        axes.set_ylabel(f"error: RMSE, months ({scale})")
        axes.grid(alpha=0.25, which="both")
        axes.spines[["top", "right"]].set_visible(False)
        if scale == "linear":
            axes.set_ylim(bottom=0)
            axes.legend(frameon=False)
    return _save(figure, path)


def predicted_against_true(splits, path: Path) -> Path:
    """Predicted against true age in months, with the line of identity; ``splits`` maps train / test to tables."""
    figure = _figure(9, 4.6)
    top = max(float(table[["boneage_months", "predicted_months"]].to_numpy().max()) for table in splits.values()) * 1.05
    low = min(0.0, min(float(table["predicted_months"].min()) for table in splits.values()) * 1.05)
    for axes, (split, table) in zip(figure.subplots(1, 2), splits.items(), strict=True):
        axes.plot([low, top], [low, top], color="#777777", linewidth=1, linestyle="--")
        for male, marker, label in ((True, "s", "male"), (False, "o", "female"), (None, "^", "sex unknown")):
            part = table[table["male"].isna()] if male is None else table[table["male"].astype(str) == str(male)]
            if len(part):
                axes.scatter(
                    part["boneage_months"],
                    part["predicted_months"],
                    s=14,
                    marker=marker,
                    color=TRAIN if split == "train" else TEST,
                    alpha=0.65,
                    linewidth=0,
                    label=label,
                )
        axes.set_title(f"{split}: {len(table)} hands", fontsize=11)
        axes.set_xlabel("true bone age, months")
        axes.set_ylabel("predicted bone age, months")
        axes.set_xlim(low, top)
        axes.set_ylim(low, top)
        axes.set_aspect("equal")
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, loc="upper left", fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    return _save(figure, path)


def prepared_hands(images: list[tuple[str, Path]], path: Path) -> Path:
    """A row of normalized hands as the network sees them, each with its caption."""
    from bonecaffe.hands.images import read_image

    figure = _figure(9, 2.1 * -(-len(images) // 6))
    grid = figure.subplots(-(-len(images) // 6), 6, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, (caption, file) in zip(grid.flat, images, strict=False):
        axes.imshow(read_image(file), cmap="gray", vmin=0, vmax=255)
        axes.set_title(caption, fontsize=8)
    return _save(figure, path)


def side_by_side(pictures, path: Path) -> Path:
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
    return _save(figure, path)


def preparation(image, points, recipe, path: Path) -> Path:
    """The pipeline in pictures (figures 2 and 3): image, points and rectangle, crop, equalized, as the network sees it."""
    from bonecaffe.hands.reference_points import POINT_NAMES
    from bonecaffe.prepare.crop import crop
    from bonecaffe.prepare.normalize import equalized_crop, normalize

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
    return _save(figure, path)
