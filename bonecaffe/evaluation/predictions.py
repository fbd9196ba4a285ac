"""Reads the tables of predictions that `predict` wrote, and checks them against the cases of their split."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from bonecaffe.errors import EvaluateError
from bonecaffe.files import read_bytes
from bonecaffe.hands.cases import Case
from bonecaffe.predict import PREDICTION_COLUMNS
from bonecaffe.run import RunDir

if TYPE_CHECKING:
    import pandas


def read_predictions(run: RunDir, split: str) -> pandas.DataFrame:
    """The predictions of a split as a table; EvaluateError naming file and row for anything else."""
    import pandas

    path = run.predictions(split)
    try:
        table = pandas.read_csv(io.BytesIO(read_bytes(path, "table", EvaluateError)), dtype=str, keep_default_na=False)
    except FileNotFoundError:
        raise EvaluateError(f"{path}: no such file. Write it with: bonecaffe evaluate {run}") from None
    except (ValueError, OSError) as error:
        raise EvaluateError(f"{path}: not readable as CSV: {error}. Evaluate again.") from error
    if tuple(table.columns) != PREDICTION_COLUMNS:
        raise EvaluateError(f"{path}: the header must be {','.join(PREDICTION_COLUMNS)}. Evaluate again.")
    if table["id"].eq("").any():
        raise EvaluateError(f"{path}: row {int(table['id'].eq('').to_numpy().argmax()) + 2}: no id. Evaluate again.")
    table["male"] = table["male"].where(table["male"].isin(["True", "False"]), None)
    for column in ("boneage_months", "predicted_months"):
        numbers = pandas.to_numeric(table[column], errors="coerce")
        if not numbers.between(-1e9, 1e9).all():
            row = int((~numbers.between(-1e9, 1e9)).to_numpy().argmax())
            raise EvaluateError(
                f"{path}: row {row + 2} (id {table['id'][row]}): {column} is {table[column][row]!r}, "
                "not a finite number of months. Evaluate again."
            )
        table[column] = numbers
    if table["id"].duplicated().any():
        twice = table["id"][table["id"].duplicated()].iloc[0]
        first, second = (row + 2 for row in table.index[table["id"] == twice][:2])
        raise EvaluateError(f"{path}: rows {first} and {second} both have the id {twice}. Evaluate again.")
    return table


def check_cases(path: Path, table: pandas.DataFrame, cases: list[Case]) -> None:
    """EvaluateError unless the predictions are for exactly the cases of the split, with their ages."""
    ages = {case.id: case.boneage_months for case in cases}
    ids = set(table["id"])
    for wrong, what in ((ids - ages.keys(), "not a case of this split"), (ages.keys() - ids, "has no prediction")):
        if wrong:
            shown = ", ".join(sorted(wrong)[:5])
            raise EvaluateError(f"{path}: {len(wrong)} id{'s' * (len(wrong) > 1)} ({shown}): {what}. Evaluate again.")
    for row, (case_id, age) in enumerate(zip(table["id"], table["boneage_months"], strict=True)):
        if abs(age - ages[case_id]) > 1e-6:
            raise EvaluateError(
                f"{path}: row {row + 2} (id {case_id}): boneage_months is {age:g}, but cases.csv has "
                f"{ages[case_id]:g}. Evaluate again."
            )
