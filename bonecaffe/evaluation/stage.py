"""The evaluate stage: predictions in; metrics.json, figures and report.html out. Needs no Caffe."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from bonecaffe import __version__
from bonecaffe.errors import EvaluateError
from bonecaffe.evaluation import figures, report
from bonecaffe.evaluation.metrics import PAPER, Metrics, measure
from bonecaffe.run import SPLITS, RunDir, sha256_file, write_text


@dataclass(frozen=True)
class Evaluation:
    """The figures of both splits, and the verdict against the paper."""

    iteration: int
    splits: dict[str, Metrics]
    verdict: str


def read_predictions(run: RunDir, split: str):
    """The predictions of a split as a table; EvaluateError naming the file for anything that is not one."""
    import pandas

    path = run.predictions(split)
    try:
        table = pandas.read_csv(path, dtype={"id": str, "male": str})
    except FileNotFoundError:
        raise EvaluateError(f"{path}: not there. Write it with: bonecaffe evaluate {run}") from None
    except (ValueError, OSError) as error:
        raise EvaluateError(f"{path}: not readable as CSV: {error}.") from error
    if list(table.columns) != ["id", "boneage_months", "predicted_months", "male"]:
        raise EvaluateError(f"{path}: the header must be id,boneage_months,predicted_months,male.")
    for column in ("boneage_months", "predicted_months"):
        numbers = pandas.to_numeric(table[column], errors="coerce")
        if not numbers.between(-1e9, 1e9).all():
            row = int((~numbers.between(-1e9, 1e9)).to_numpy().argmax())
            raise EvaluateError(
                f"{path}: row {row + 2} (id {table['id'][row]}): {column} is {table[column][row]!r}, not a finite number of months."
            )
        table[column] = numbers
    if table["id"].duplicated().any():
        raise EvaluateError(f"{path}: the id {table['id'][table['id'].duplicated()].iloc[0]} stands twice.")
    return table


def verdict(recipe_departs: bool, test: Metrics) -> str:
    """One sentence that holds the test split against the paper's 18.9 months and 0.78."""
    paper = PAPER["test"]
    against = (
        f"MAD {test.mad_months:.1f} months (paper {paper['mad_months']}), CCC {test.ccc:.2f} (paper {paper['ccc']})"
    )
    learned = test.mad_months < test.guess_mad_months
    guess = f"answering the mean age for every hand would give {test.guess_mad_months:.1f}"
    if not learned:
        return f"The network has learned nothing: {against}; {guess}."
    if recipe_departs:
        return f"Not a reproduction of the paper, because the recipe departs from it: {against}; {guess}."
    reached = test.mad_months <= paper["mad_months"] * 1.1 and test.ccc >= paper["ccc"] - 0.05
    return f"{'The paper’s figures are reached' if reached else 'The paper’s figures are not reached'}: {against}; {guess}."


def evaluate(run: RunDir) -> Evaluation:
    """Measure a run's predictions, draw its figures, write its report; EvaluateError for what cannot be compared."""
    import pandas

    manifest = run.manifest()
    tables = {split: read_predictions(run, split) for split in SPLITS}
    guess = float(tables["train"]["boneage_months"].mean())
    measured = {
        split: measure(table["boneage_months"], table["predicted_months"], guess) for split, table in tables.items()
    }
    recipe = run.trained_recipe()
    departures = recipe.departures()
    evaluation = Evaluation(
        int(manifest.get("predict", {}).get("iteration", 0)), measured, verdict(bool(departures), measured["test"])
    )
    drawn = {"predicted": figures.predicted_against_true(tables, run.figures / "predicted_against_true.png")}
    if run.curve.is_file():
        curve = pandas.read_csv(run.curve)
        if len(curve):
            drawn["curve"] = figures.error_curve(curve, run.figures / "error_against_iteration.png")
    worst = (
        tables["test"]
        .assign(error=lambda table: (table["predicted_months"] - table["boneage_months"]).abs())
        .nlargest(12, "error")
    )
    shown = [
        (f"{row.boneage_months:.0f} → {row.predicted_months:.0f}", run.image(row.id))
        for row in worst.itertuples()
        if run.image(row.id).is_file()
    ]
    if shown:
        drawn["worst"] = figures.prepared_hands(shown, run.figures / "worst_test_hands.png")
    facts = {
        "iteration": evaluation.iteration,
        "verdict": evaluation.verdict,
        "paper": PAPER,
        "splits": {split: asdict(metrics) for split, metrics in measured.items()},
        "ccc_variance": "over n (Lin 1989)",
    }
    write_text(run.metrics, json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
    write_text(run.report, report.render(run, recipe, departures, evaluation, drawn, manifest))
    run.record(
        "evaluate",
        {
            "metrics_sha256": sha256_file(run.metrics),
            "report_sha256": sha256_file(run.report),
            "bonecaffe": __version__,
        },
    )
    return evaluation
