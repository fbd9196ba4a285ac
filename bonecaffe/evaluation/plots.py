"""The plots of a run: one matplotlib figure each, as PNG for use elsewhere and as SVG for the report.

The report's SVG takes its colours from the page, light or dark. The splits differ in shape and hatching too, so
colour is not needed to distinguish them.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bonecaffe.errors import EvaluateError
from bonecaffe.evaluation.groups import AGE_BANDS
from bonecaffe.evaluation.metrics import limits_of_agreement
from bonecaffe.evaluation.words import signed
from bonecaffe.files import make_folder, read_bytes, writing
from bonecaffe.run import SPLITS, RunDir

if TYPE_CHECKING:  # loaded when something is drawn
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.typing import RcKeyType
    from pandas import DataFrame

INK, TRAIN, TEST = "#1c2126", "#2f6db3", "#c4501e"
COLOUR = {"train": TRAIN, "test": TEST}
MARK = {"train": "o", "test": "D"}
HATCH = {"train": "", "test": "////"}
MANY = 2000
"""A scatter with more marks than this goes into the SVG as pixels."""


class Plot(NamedTuple):
    """A plot for the report."""

    name: str
    title: str
    caption: str
    svg: str


def _axes(xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.9, 3.7), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.15)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


STYLE: dict[RcKeyType, Any] = {
    "axes.unicode_minus": True,
    "font.size": 11,
    "font.family": "sans-serif",
    "svg.fonttype": "none",
    "legend.frameon": False,
    "legend.fontsize": 10,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
    "grid.color": INK,
}


def _curve(curve: DataFrame, scale: str) -> Figure:
    from matplotlib import ticker

    figure, axes = _axes("iteration", f"error: RMSE, months ({scale})")
    lines: tuple[tuple[str, str, dict[str, Any]], ...] = (
        ("train", "training batch", {"linewidth": 0.8, "alpha": 0.8}),
        ("test", "test split", {"linewidth": 1.8, "marker": MARK["test"], "markersize": 3.5}),
    )
    for phase, label, line in lines:
        part = curve[(curve["phase"] == phase) & curve["rmse_months"].gt(0)]
        axes.plot(part["iteration"], part["rmse_months"], color=COLOUR[phase], label=label, **line)
    axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    axes.set_yscale(scale)
    if scale == "linear":
        axes.set_ylim(bottom=0)
    else:
        axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(ticker.NullFormatter())
    axes.legend()
    return figure


def _predicted(table: DataFrame, split: str) -> Figure:
    figure, axes = _axes("true bone age, months", "predicted bone age, months")
    ages = table[["boneage_months", "predicted_months"]].to_numpy()
    low, high = min(0.0, ages.min() * 1.05), ages.max() * 1.05
    axes.plot([low, high], [low, high], color=INK, linewidth=1, linestyle="--", label="identity")
    sexes = {"True": ("s", "male"), "False": ("o", "female")}
    for value in ("False", "True", None):
        mark, label = sexes.get(str(value), ("^", "sex unknown"))
        part = table[table["male"].isna()] if value is None else table[table["male"].astype(str) == value]
        if len(part):
            axes.scatter(
                part["boneage_months"],
                part["predicted_months"],
                s=13,
                marker=mark,
                facecolors=COLOUR[split] if mark == "s" else "none",
                edgecolors=COLOUR[split],
                linewidth=0.9,
                label=label,
                rasterized=len(part) > MANY,
            )
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    axes.legend(loc="upper left")
    return figure


def _bland_altman(table: DataFrame, split: str) -> Figure:
    figure, axes = _axes("mean of true and predicted, months", "predicted − true, months")
    truth, predicted = table["boneage_months"].to_numpy(), table["predicted_months"].to_numpy()
    low, high = limits_of_agreement(truth, predicted)
    axes.scatter(
        (truth + predicted) / 2,
        predicted - truth,
        s=13,
        marker=MARK[split],
        facecolors="none",
        edgecolors=COLOUR[split],
        linewidth=0.9,
        rasterized=len(table) > MANY,
    )
    bias = (low + high) / 2
    lines = ((low, ":", "−1.96 SD"), (bias, "-", "bias"), (high, ":", "+1.96 SD"))
    for value, style, _ in lines:
        axes.axhline(value, color=INK, linewidth=1.2, linestyle=style)
    axes.margins(y=0.12)
    bottom, top = axes.get_ylim()
    apart = max(high - bias, 0.14 * (top - bottom))  # labels of two lines never overlap
    for (value, _, name), y in zip(lines, (bias - apart, bias, bias + apart), strict=True):
        axes.text(1.02, y, f"{name}\n{signed(value)}", va="center", transform=axes.get_yaxis_transform(), fontsize=9.5)
    return figure


def _by_age(tables: Mapping[str, DataFrame]) -> Figure:
    figure, axes = _axes("true bone age, years", "absolute error, months")
    names = [f"{low // 12}–{high // 12}" for low, high in AGE_BANDS[:-1]] + [f"{AGE_BANDS[-1][0] // 12}+"]
    for shift, split in ((-0.2, "train"), (0.2, "test")):
        table = tables[split]
        errors = (table["predicted_months"] - table["boneage_months"]).abs()
        bands = [
            errors[table["boneage_months"].ge(low) & (table["boneage_months"].lt(high) | (high == AGE_BANDS[-1][1]))]
            for low, high in AGE_BANDS
        ]
        at = np.arange(len(bands)) + shift
        means = [band.mean() if len(band) else 0 for band in bands]
        tops = [band.max() if len(band) else np.nan for band in bands]
        axes.bar(at, means, 0.38, facecolor="none", edgecolor=COLOUR[split], hatch=HATCH[split], label=f"{split}: mean")
        axes.plot(at, tops, linestyle="", marker="_", markersize=13, color=COLOUR[split], label=f"{split}: largest")
        for x, mean, band in zip(at, means, bands, strict=True):
            axes.annotate(str(len(band)), (x, mean), (0, 2), textcoords="offset points", ha="center", fontsize=8.5)
    axes.set_xticks(range(len(names)), names)
    axes.set_ylim(0, axes.get_ylim()[1] * 1.25)
    axes.legend(ncols=2, loc="upper center")
    return figure


def _ages(tables: Mapping[str, DataFrame]) -> Figure:
    from matplotlib import ticker

    figure, axes = _axes("true bone age, months", "hands")
    top = max(float(table["boneage_months"].max()) for table in tables.values())
    bins = np.arange(0, top + 24, 12).tolist()
    for split in SPLITS:
        axes.hist(
            tables[split]["boneage_months"],
            bins=bins,
            histtype="step",
            color=COLOUR[split],
            hatch=HATCH[split],
            linewidth=1.4,
            linestyle="-" if split == "train" else "--",
            label=f"{split}: {len(tables[split])} hands",
        )
    axes.yaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    axes.set_ylim(0, axes.get_ylim()[1] * 1.2)  # room for the legend above the lines
    axes.legend(ncols=2, loc="upper center")
    return figure


# ---- all of them -----------------------------------------------------------------------------------------------


def draw_all(run: RunDir, tables: Mapping[str, DataFrame]) -> list[Plot]:
    """Draw every plot of a run into RUN/figures, and return them for the report.

    ``tables`` are the predictions by split.
    """
    import matplotlib

    planned: list[tuple[str, str, str, Callable[[], Figure]]] = []
    if (curve := read_curve(run)) is not None:
        both = "Root mean squared error of the training batch (thin line) and of the test split (line with marks)"
        for scale in ("linear", "log"):
            planned.append(
                (
                    f"error_against_iteration_{scale}",
                    f"Error against iteration, {scale} scale",
                    f"{both}; the paper’s figure 5.",
                    partial(_curve, curve, scale),
                )
            )
    for split in reversed(SPLITS):
        planned.append(
            (
                f"predicted_against_true_{split}",
                f"Predicted against true, {split} split",
                "Each mark is a hand. On the dashed line, the prediction equals the true age.",
                partial(_predicted, tables[split], split),
            )
        )
    for split in reversed(SPLITS):
        planned.append(
            (
                f"bland_altman_{split}",
                f"Bland and Altman, {split} split",
                "Difference against mean. The dotted lines enclose 95 % of normally distributed differences.",
                partial(_bland_altman, tables[split], split),
            )
        )
    planned += [
        (
            "error_by_age",
            "Error by age",
            "Mean (bars) and largest (dashes) absolute error by true age, with the number of hands. Hatched: test.",
            partial(_by_age, tables),
        ),
        (
            "ages",
            "Ages of both splits",
            "Hands per year of true bone age. Dashed and hatched: test.",
            partial(_ages, tables),
        ),
    ]
    plots = []
    make_folder(run.figures)
    with matplotlib.rc_context(STYLE):
        for name, title, caption, draw in planned:
            figure = draw()
            save(figure, run.figures / f"{name}.png")
            plots.append(Plot(name, title, caption, svg(figure, name)))
    return plots


def read_curve(run: RunDir) -> DataFrame | None:
    """The table of curve.csv; None when the file is missing or empty.

    Raises EvaluateError for a file that is not such a table.
    """
    import pandas

    if not run.curve.is_file():
        return None
    try:
        curve = pandas.read_csv(io.BytesIO(read_bytes(run.curve, "table", EvaluateError)))
        numbers = curve[["iteration", "loss", "rmse_months"]].apply(pandas.to_numeric)
    except (ValueError, KeyError) as error:
        raise EvaluateError(f"{run.curve}: not a curve ({error}). Delete it; caffe.log has the same values.") from error
    return curve.assign(**numbers) if "phase" in curve and len(curve) else None


def save(figure: Figure, path: Path) -> Path:
    """Save a figure as PNG; after an error there is no partial file."""
    with writing(path) as file:
        figure.savefig(file, dpi=130, format="png", metadata={"Software": None})
    figure.set_layout_engine("none")  # the layout is done: the SVG reuses it, which is faster
    return path


def svg(figure: Figure, name: str) -> str:
    """A figure as an SVG element inside a page: the page's colours, unique ids, no address of another site."""
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\sxmlns(:xlink)?="[^"]*"', "", text).replace("xlink:href", "href")
    named = set(re.findall(r'(?:href="|url\()#([^")]+)', text))
    text = re.sub(r'\sid="([^"]*)"', lambda found: found[0] if found[1] in named else "", text)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(
        r'<svg [^>]*viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true" focusable="false">', text
    )
    for colour, variable in ((INK, "--ink"), (TRAIN, "--train"), (TEST, "--test")):
        text = text.replace(colour, f"var({variable})")
    return re.sub(r"\s*\n\s*", "\n", text)
