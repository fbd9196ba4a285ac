"""Measures every snapshot of a run in one pass, so that the best and the last can be compared.

A snapshot that is chosen by its test figures has no test any more: the test split was used to choose it.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from bonecaffe.caffe import environment
from bonecaffe.caffe.snapshots import find
from bonecaffe.errors import EvaluateError
from bonecaffe.evaluation.metrics import ccc, mad, max_error
from bonecaffe.files import read_bytes, sha256_file, table_text, write_text
from bonecaffe.predict import complete_models, predict_snapshots
from bonecaffe.progress import Progress
from bonecaffe.records import Surveyed, is_intact, outputs_of
from bonecaffe.run import RunDir

COLUMNS = ("iteration", "split", "cases", "mad_months", "ccc", "max_error_months")
WARNING = "Do not choose a snapshot by these figures: the test split would then no longer be a test."


def read(run: RunDir) -> list[dict[str, Any]]:
    """The rows of metrics_by_snapshot.csv in order, with numbers as numbers; none when the file is missing."""
    import pandas

    if not run.by_snapshot.is_file():
        return []
    try:
        table = pandas.read_csv(io.BytesIO(read_bytes(run.by_snapshot, "table", EvaluateError)))
    except ValueError as error:
        raise EvaluateError(f"{run.by_snapshot}: not readable as CSV: {error}. Delete it.") from error
    if tuple(table.columns) != COLUMNS or (len(table) and not table["split"].eq("test").any()):
        raise EvaluateError(f"{run.by_snapshot}: not a table of {','.join(COLUMNS)} with a test split. Delete it.")
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def _known(run: RunDir) -> Mapping[str, str]:
    """The hashes of the models that the table was measured from, by path; none when the table is not as recorded."""
    surveyed = run.read().evaluate_all
    name = run.by_snapshot.name
    return surveyed.inputs if surveyed and name in surveyed.outputs and is_intact(run.path, surveyed, name) else {}


def current(run: RunDir) -> list[dict[str, Any]]:
    """The rows for the models of the run's training as they are now, without rows for other models."""
    trained = run.read().train
    known = _known(run)
    if not known or trained is None:
        return []
    names = {snapshot.iteration: run.name_of(snapshot.caffemodel) for snapshot in find(run.snapshots)}
    same = {i for i, name in names.items() if name in known and trained.outputs.get(name) == known[name]}
    return [row for row in read(run) if row["iteration"] in same]


def evaluate_all(run: RunDir, progress: Progress, gpu: int | None = None) -> list[dict[str, Any]]:
    """Measure every complete snapshot once. Rows are kept for models whose files have not changed.

    Writes metrics_by_snapshot.csv after each snapshot, so that an interrupted pass continues where it stopped. Raises
    PredictError when the run has no model.
    """
    models = {run.name_of(model.caffemodel): model for model in complete_models(run)}
    hashes = {name: sha256_file(model.caffemodel) for name, model in models.items()}
    known = _known(run)
    done = {name: hashes[name] for name in models if known.get(name) == hashes[name]}
    kept = {models[name].iteration for name in done}
    rows = [row for row in read(run) if row["iteration"] in kept] if kept else []
    todo = [model for name, model in models.items() if name not in done]
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
        name = run.name_of(model.caffemodel)
        done[name] = hashes[name]
        _keep(run, rows, done)
    return read(run)


def _keep(run: RunDir, rows: list[dict[str, Any]], models: dict[str, str]) -> None:
    """Write the table, and record which models it is about."""
    write_text(run.by_snapshot, _csv(rows))
    run.record(Surveyed(inputs=models, **outputs_of(run.path, [run.by_snapshot]), by=environment.describe()))


def _csv(rows: list[dict[str, Any]]) -> str:
    return table_text(
        COLUMNS, ([*(row[name] for name in COLUMNS[:3]), *(f"{row[name]:.6g}" for name in COLUMNS[3:])] for row in rows)
    )


def best_and_last(rows: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The snapshot with the lowest test MAD, and the last one; ``rows`` must not be empty."""
    tests = [row for row in rows if row["split"] == "test"]
    return min(tests, key=lambda row: row["mad_months"]), tests[-1]
