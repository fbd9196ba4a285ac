"""report.html: a run compared with the paper, in one self-contained file without scripts or requests."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np

from bonecaffe import __version__
from bonecaffe.errors import BonecaffeError
from bonecaffe.evaluation import by_snapshot
from bonecaffe.evaluation.claim_facts import data_named
from bonecaffe.evaluation.groups import FEWEST
from bonecaffe.evaluation.metrics import PAPER, PAPER_CASES
from bonecaffe.evaluation.plots import Plot
from bonecaffe.evaluation.words import between, between_signed, number, percent, signed, unbroken
from bonecaffe.network import outline
from bonecaffe.prepare.outputs import read_prepared, view_remarks
from bonecaffe.recipe import Recipe
from bonecaffe.records import Manifest
from bonecaffe.run import SPLITS, RunDir
from bonecaffe.training.launch import compare, recipe_as_trained

if TYPE_CHECKING:
    import pandas

    from bonecaffe.evaluation.evaluate import Evaluation

CITATION = (
    "Lee JH, Kim KG. Applying Deep Learning in Medical Images: The Case of Bone Age Estimation. "
    "Healthcare Informatics Research 2018;24(1):86–92."
)
DOI = "10.4258/hir.2018.24.1.86"
HANDS_SHOWN, RANDOM_SEED = 12, 2018
SIDE = 224
"""The longer side of a hand's picture, in pixels."""


def render(
    run: RunDir,
    evaluation: Evaluation,
    tables: dict[str, Any],
    plots: list[Plot],
    snapshots: list[dict[str, Any]],
) -> str:
    """The report as HTML. Its images are inside it; it loads nothing from another file or host."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": number, "signed": signed, "percent": percent}
    template = environment.from_string(
        (resources.files("bonecaffe.evaluation") / "report.html.jinja").read_text(encoding="utf-8")
    )
    recipe = recipe_as_trained(run)
    manifest = run.read()
    compared = compare(run, recipe)
    best, last = by_snapshot.best_and_last(snapshots) if snapshots else (None, None)
    page = template.render(
        run=run.path.resolve().name,
        recipe=recipe,
        departures=compared.departures,
        choices=compared.choices,
        evaluation=evaluation,
        comparable=not compared.departures and not (manifest.prepare and manifest.prepare.phantoms),
        today=datetime.now(UTC).date().isoformat(),
        splits=SPLITS,
        paper=PAPER,
        fewest=FEWEST,
        rows=_rows(evaluation),
        plots={plot.name: plot for plot in plots},
        steps=outline.steps(recipe),
        example=_example(run, recipe),
        worst=_hands(run, tables["test"], _worst(tables["test"]), "worst"),
        random=_hands(run, tables["test"], _at_random(tables["test"]), "random"),
        random_seed=RANDOM_SEED,
        citation=CITATION,
        doi=DOI,
        data=_data(run, recipe),
        snapshots=_by_iteration(snapshots),
        best=best,
        last=last,
        snapshot_warning=by_snapshot.WARNING,
        attempts=manifest.train.attempts if manifest.train else (),
        state=run.state(),
        made=_made(manifest),
        prepare=manifest.prepare,
        view_remarks=view_remarks(manifest.prepare) if manifest.prepare else [],
        hashes=_hashes(manifest),
        version=__version__,
    )
    return unbroken(page)


# ---- tables ----------------------------------------------------------------------------------------------------


def _rows(evaluation: Evaluation) -> dict[str, list[tuple[str, str, str, str]]]:
    """For each split: name, this run's figure, its 95 % interval, the paper's figure; "" where there is none."""

    rows = {}
    for split, m in evaluation.splits.items():
        paper, (low, high) = PAPER[split], m.limits_of_agreement_months
        rows[split] = [
            ("hands", str(m.cases), "", str(PAPER_CASES[split])),
            ("MAD, months", number(m.mad_months), between(m.mad_interval_95), str(paper["mad_months"])),
            ("CCC", number(m.ccc, 3), between(m.ccc_interval_95, 3), str(paper["ccc"])),
            ("largest error, months", number(m.max_error_months), "", str(paper["max_error_months"])),
            ("MAD of guessing the mean age", number(m.guess_mad_months), "", ""),
            ("within 12 months", percent(m.within_12_months), "", ""),
            ("within 24 months", percent(m.within_24_months), "", ""),
            ("RMSE, months", number(m.rmse_months), "", ""),
            ("bias, months", signed(m.bias_months), "", ""),
            ("limits of agreement, months", between_signed((low, high)), "", ""),
            ("Pearson’s r", "not defined" if m.pearson_r is None else number(m.pearson_r, 3), "", ""),
            ("CCC, variances over n − 1", number(m.ccc_n_minus_1, 3), "", ""),
        ]
    return rows


def _data(run: RunDir, recipe: Recipe) -> str:
    """Where images, ages and points come from, as recorded; "" for a run without a record of its preparation."""
    if (prepared := run.read().prepare) is None:
        return ""
    sources = prepared.sources
    ages = " and ".join(sources[kind].name for kind in ("ages", "test_ages") if kind in sources)
    points = {"marked": "declared as marked by hand", "boxes": "the centres of boxes", "found": "found by a program"}
    text = f"{data_named(run)}; ages from {ages}; points from {sources['points'].name}"
    made = prepared.phantoms == sum(prepared.records.values())  # a phantom's points are known, not marked
    return text if made else f"{text}, {points[recipe.data.points]}"


def _by_iteration(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry for each snapshot: its iteration, and the row of each split."""
    found: dict[int, dict[str, Any]] = {}
    for row in rows:
        found.setdefault(row["iteration"], {"iteration": row["iteration"]})[row["split"]] = row
    return [entry for entry in found.values() if all(split in entry for split in SPLITS)]


def _made(manifest: Manifest) -> list[tuple[str, str]]:
    """What the model was made with: machine, packages, Caffe."""
    if manifest.train is None or not manifest.train.attempts:
        return []
    by = manifest.train.attempts[-1].by
    host = by.host
    made = [
        ("machine", f"{host.system}, {host.kernel}, {host.cpu}, {host.cores} cores, {host.memory_gb} GB"),
        ("bonecaffe, Python", f"{by.bonecaffe}, {by.python}"),
        ("packages", ", ".join(f"{name} {version}" for name, version in by.packages.items())),
    ]
    if (caffe := by.caffe) is None:
        return made
    facts = {"origin": caffe.origin, **caffe.build}
    made.append(
        ("Caffe", "; ".join(facts[key] for key in ("origin", "commit", "compiler", "blas", "flags") if facts.get(key)))
    )
    gpu = "with CUDA" if caffe.gpu else "CPU only"
    libraries = f"cuDNN {'yes' if caffe.cudnn else 'no'}; NCCL {'yes' if caffe.nccl else 'no'}"
    made.append(("Caffe, GPU", f"{gpu}; {libraries}"))
    if caffe.build.get("edits_sha256"):
        made.append(("Caffe, edits to its source", f"sha256 {caffe.build['edits_sha256']}"))
    return made


def _hashes(manifest: Manifest) -> list[tuple[str, str]]:
    """Name and SHA-256 of every file that the result depends on, except single images."""
    found: list[tuple[str, str]] = []
    if manifest.prepare is not None:
        found += [(source.name, source.sha256) for source in manifest.prepare.sources.values()]
        found += [(name, value) for name, value in manifest.prepare.outputs.items() if not name.startswith("images/")]
    if manifest.train is not None:
        if manifest.train.weights is not None:
            found.append(("weights given", manifest.train.weights.sha256))
        found += manifest.train.outputs.items()
    if manifest.predict is not None:
        found += manifest.predict.outputs.items()
    return found


# ---- pictures --------------------------------------------------------------------------------------------------


def jpeg(image: np.ndarray, side: int, quality: int = 82) -> str:
    """A grey image as a data URL, reduced when its longer side exceeds ``side`` pixels."""
    import cv2

    scale = side / max(image.shape)
    if scale < 1:
        size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    done, content = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done
    return "data:image/jpeg;base64," + base64.b64encode(content.tobytes()).decode("ascii")


def _worst(table: pandas.DataFrame) -> list[int]:
    errors = (table["predicted_months"] - table["boneage_months"]).abs()
    return list(errors.nlargest(HANDS_SHOWN).index)


def _at_random(table: pandas.DataFrame) -> list[int]:
    drawn = np.random.default_rng(RANDOM_SEED).permutation(len(table))[:HANDS_SHOWN]
    return [table.index[i] for i in sorted(drawn)]


def _hands(run: RunDir, table: pandas.DataFrame, chosen: list[int], name: str) -> list[dict[str, Any]]:
    """The chosen rows of a table with their pictures; ``name`` makes their keys unique in the page."""
    hands: list[dict[str, Any]] = []
    for case_id, truth, predicted in zip(
        table["id"][chosen], table["boneage_months"][chosen], table["predicted_months"][chosen], strict=True
    ):
        if run.image(case_id).is_file():
            picture = jpeg(read_prepared(run, case_id), SIDE)
            key = f"{name}-{len(hands) + 1}"
            hands.append({"key": key, "id": case_id, "true": truth, "predicted": predicted, "image": picture})
    return hands


def _example(run: RunDir, recipe: Recipe) -> dict[str, Any] | None:
    """The paper's figures 2 and 3 with a hand of this run; None when the run has none or its files cannot be read."""
    from bonecaffe.hands.images import read_image
    from bonecaffe.hands.reference_points import POINT_NAMES, read_points
    from bonecaffe.prepare.crop import crop
    from bonecaffe.prepare.normalize import equalized_crop, resize

    try:
        image = read_image(run.example / "hand.png")
        hand = next(iter(read_points(run.example / "points.csv").values()))
    except (BonecaffeError, StopIteration):
        return None
    if image.shape != (hand.height, hand.width):
        return None
    settings = recipe.preparation
    equalized = equalized_crop(image, hand, settings)  # prepare keeps it upright
    rectangle = hand.rectangle(settings.margin)
    return {
        "id": hand.id,
        "width": hand.width,
        "height": hand.height,
        "image": jpeg(image, 700),
        "points": [(name.replace("phalanx", ""), x, y) for name, (x, y) in zip(POINT_NAMES, hand.points, strict=True)],
        "rectangle": rectangle,
        "steps": [
            ("crop: the smallest rectangle that contains the points", jpeg(crop(image, rectangle), 420)),
            (f"histeq, {settings.histeq_levels} grey levels", jpeg(equalized, 420)),
            (f"resized to {settings.width} × {settings.height}", jpeg(resize(equalized, settings), 420)),
        ],
    }
