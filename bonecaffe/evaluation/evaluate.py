"""The evaluate stage: predictions in; metrics.json, figures and report.html out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from bonecaffe.caffe import environment
from bonecaffe.errors import EvaluateError
from bonecaffe.evaluation import by_snapshot, plots, report
from bonecaffe.evaluation.groups import BySex, Group, by_sex, groups
from bonecaffe.evaluation.metrics import PAPER, Metrics, measure
from bonecaffe.evaluation.predictions import check_cases, read_predictions
from bonecaffe.evaluation.verdict import Hands, Verdict, judge
from bonecaffe.files import sha256_file, write_text
from bonecaffe.predict import predict_run
from bonecaffe.prepare.outputs import prepared_of, split_of
from bonecaffe.progress import Progress, unseen
from bonecaffe.records import Evaluated, outputs_of
from bonecaffe.run import SPLITS, RunDir
from bonecaffe.training.launch import departures

if TYPE_CHECKING:
    import pandas

Tables = Mapping[str, "pandas.DataFrame"]
"""The predictions of both splits, by split."""


@dataclass(frozen=True)
class Evaluation:
    """The figures of both splits (of all hands, by group, boys against girls) and the verdict against the paper."""

    iteration: int
    splits: dict[str, Metrics]
    groups: dict[str, list[Group]]
    sex: dict[str, BySex]
    verdict: Verdict


def predict_and_evaluate(
    run: RunDir, snapshot: int | None = None, progress: Progress = unseen, gpu: int | None = None
) -> Evaluation:
    """Predict both splits of a run, and evaluate them. The caller holds the run's lock (`RunDir.lock`)."""
    predict_run(run, snapshot, progress, gpu)
    return evaluate(run)


def evaluate(run: RunDir) -> Evaluation:
    """Measure a run's predictions, draw its figures and write its report.

    Raises EvaluateError for predictions that are not those of the run's cases, or that cannot be measured.
    """
    tables = {split: read_predictions(run, split) for split in SPLITS}
    for split, cases in split_of(run).items():
        check_cases(run.predictions(split), tables[split], cases)
    manifest = run.read()
    evaluation = measure_tables(run, tables, manifest.predict.iteration if manifest.predict else 0)
    facts = {
        "iteration": evaluation.iteration,
        "verdict": str(evaluation.verdict),
        "verdict_word": evaluation.verdict.word,
        "against_paper": [asdict(difference) for difference in evaluation.verdict.differences],
        "paper": PAPER,
        "splits": {split: asdict(metrics) for split, metrics in evaluation.splits.items()},
        "groups": {split: [asdict(group) for group in found] for split, found in evaluation.groups.items()},
        "sex": {split: asdict(found) for split, found in evaluation.sex.items()},
        "ccc_variance": "ccc: over n (Lin 1989); ccc_n_minus_1: over n - 1",
        "intervals": "95 %; MAD: Student's t on its logarithm; CCC: on Fisher's z, jackknife; "
        "see docs/explanation/STATISTICS.md",
    }
    write_text(run.metrics, json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
    drawn = plots.draw_all(run, tables)
    write_text(run.report, report.render(run, evaluation, tables, drawn, by_snapshot.current(run)))
    figures = [run.figures / f"{plot.name}.png" for plot in drawn]
    run.record(
        Evaluated(
            inputs={run.predictions(split).name: sha256_file(run.predictions(split)) for split in SPLITS},
            **outputs_of(run.path, [run.metrics, *figures, run.report]),
            by=environment.describe(),
        )
    )
    return evaluation


def measure_tables(run: RunDir, tables: Tables, iteration: int) -> Evaluation:
    """The figures of both splits, from their tables of predictions."""
    guess = float(tables["train"]["boneage_months"].mean())
    columns = {
        split: (table["boneage_months"], table["predicted_months"], _male(table)) for split, table in tables.items()
    }
    measured = {}
    for split, (truth, predicted, _) in columns.items():
        try:
            measured[split] = measure(truth, predicted, guess)
        except EvaluateError as error:
            raise EvaluateError(f"{run.predictions(split)}: {error}") from error
    by_group = {split: groups(*given) for split, given in columns.items()}
    sexes = {split: by_sex(*given) for split, given in columns.items()}
    found = judge(measured, hands_of(run), len(departures(run)))
    return Evaluation(iteration, measured, by_group, sexes, found)


def hands_of(run: RunDir) -> Hands:
    """The hands that a run was trained and tested on, by its record; RunError when it is not prepared."""
    prepared = prepared_of(run)
    counts = prepared.records
    tables = [source.name for name, source in prepared.sources.items() if name != "points"]
    return Hands(counts["train"], counts["test"], prepared.phantoms, " and ".join(tables))


def _male(table: pandas.DataFrame) -> list[bool | None]:
    return [{"True": True, "False": False}.get(str(value)) for value in table["male"]]
