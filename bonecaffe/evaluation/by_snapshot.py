"""Every snapshot of a run measured in one pass, so that the best and the last are both seen.

Choosing a snapshot by the test split is choosing by the test split: its figure is then no longer a test.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from bonecaffe.caffe.snapshots import find
from bonecaffe.errors import EvaluateError
from bonecaffe.evaluation.metrics import ccc, mad, max_error
from bonecaffe.files import sha256_file, write_text
from bonecaffe.predict import complete_models, predict_snapshots
from bonecaffe.run import RunDir

COLUMNS = ("iteration", "split", "cases", "mad_months", "ccc", "max_error_months")
WARNING = (
    "To choose a snapshot by these test figures is to choose by the test split; the figure chosen is no test then."
)


def read(run: RunDir) -> list[dict[str, Any]]:
    """The rows of metrics_by_snapshot.csv, numbers as numbers, in order; none when it was not made."""
    import pandas

    if not run.by_snapshot.is_file():
        return []
    try:
        table = pandas.read_csv(run.by_snapshot)
    except ValueError as error:
        raise EvaluateError(f"{run.by_snapshot}: not readable as CSV: {error}. Delete it.") from error
    if tuple(table.columns) != COLUMNS or (len(table) and not table["split"].eq("test").any()):
        raise EvaluateError(f"{run.by_snapshot}: not a table of {','.join(COLUMNS)} with a test split. Delete it.")
    return table.to_dict("records")


def current(run: RunDir) -> list[dict[str, Any]]:
    """The rows that belong to the models of the run's training as they lie there now; those of another are left out."""
    known = run.manifest().get("evaluate_all", {})
    if not run.by_snapshot.is_file() or known.get("table") != sha256_file(run.by_snapshot):
        return []
    left = run.manifest().get("train", {}).get("outputs", {})
    here = {str(s.iteration): left.get(str(s.caffemodel.relative_to(run.path))) for s in find(run.snapshots)}
    models = known.get("models", {})
    return [row for row in read(run) if here.get(str(row["iteration"])) == models.get(str(row["iteration"]), "")]


def evaluate_all(run: RunDir, progress: Callable[[int, int], None], gpu: int | None = None) -> list[dict[str, Any]]:
    """Measure every complete snapshot, once: what is known of a model that is still the same file is kept.

    Writes metrics_by_snapshot.csv after each, so that an interrupted pass goes on where it was. Raises PredictError
    when the run holds no model.
    """
    models = complete_models(run)
    hashes = {str(model.iteration): sha256_file(model.caffemodel) for model in models}
    known = run.manifest().get("evaluate_all", {})
    file_stands = run.by_snapshot.is_file() and known.get("table") == sha256_file(run.by_snapshot)
    same = {i for i, model in known.get("models", {}).items() if hashes.get(i) == model} if file_stands else set()
    rows = [row for row in read(run) if str(row["iteration"]) in same] if same else []
    todo = [model for model in models if str(model.iteration) not in same]
    done = {iteration: hashes[iteration] for iteration in same}
    if not todo:
        _keep(run, rows, done)
        return rows
    for model, splits in predict_snapshots(run, todo, progress, gpu):
        for split, (cases, months) in splits.items():
            truth = [case.boneage_months for case in cases]
            try:
                figures = (mad(truth, months), ccc(truth, months), max_error(truth, months))
            except EvaluateError as error:
                raise EvaluateError(f"{model.caffemodel}, {split} split: {error}") from error
            rows.append(dict(zip(COLUMNS, (model.iteration, split, len(cases), *figures), strict=True)))
        rows.sort(key=lambda row: (row["iteration"], row["split"]))
        done[str(model.iteration)] = hashes[str(model.iteration)]
        _keep(run, rows, done)
    return read(run)


def _keep(run: RunDir, rows: list[dict[str, Any]], models: dict[str, str]) -> None:
    """Write the table and remember of which models it speaks."""
    write_text(run.by_snapshot, _csv(rows))
    run.record("evaluate_all", {"models": models, "table": sha256_file(run.by_snapshot)})


def _csv(rows: list[dict[str, Any]]) -> str:
    out = io.StringIO()
    out.write(",".join(COLUMNS) + "\n")
    for row in rows:
        numbers = (f"{row[name]:.6g}" for name in COLUMNS[3:])
        out.write(f"{row['iteration']},{row['split']},{row['cases']},{','.join(numbers)}\n")
    return out.getvalue()


def best_and_last(rows: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The snapshot with the lowest test MAD, and the last one; ``rows`` must not be empty."""
    tests = [row for row in rows if row["split"] == "test"]
    return min(tests, key=lambda row: row["mad_months"]), tests[-1]
