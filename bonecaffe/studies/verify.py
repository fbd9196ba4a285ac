"""A run as evidence: recompute every hash in its records and report the first broken link."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from bonecaffe.caffe import environment
from bonecaffe.errors import BonecaffeError, RunError
from bonecaffe.evaluation.evaluate import measure_tables
from bonecaffe.evaluation.predictions import read_predictions
from bonecaffe.files import read_text, sha256, sha256_file
from bonecaffe.hands.images import Folders, find_in_all, read_image
from bonecaffe.network import definitions
from bonecaffe.prepare import outputs
from bonecaffe.progress import Progress, unseen
from bonecaffe.recipe import Recipe
from bonecaffe.records import Manifest, Prepared, Record, State, Trained, is_intact, seal
from bonecaffe.run import SPLITS, RunDir
from bonecaffe.studies import repro
from bonecaffe.training import launch
from bonecaffe.trees import read_json

HOLDS, BROKEN, OTHER, UNCHECKED = "holds", "BROKEN", "differs", "not checked"


class Link(NamedTuple):
    """One link of the chain. ``state``: holds, BROKEN, differs (not a fault of the run), not checked."""

    name: str
    state: str
    message: str


Check = Iterator[str]
"""The problems of a link, as text; none when it holds."""


def _nothing(run: RunDir) -> Check:
    return iter(())


def verify(
    run: RunDir,
    images: Folders | None = None,
    ages: Path | None = None,
    points: Path | None = None,
    progress: Progress = unseen,
    test_ages: Path | None = None,
) -> list[Link]:
    """Recompute the chain from the inputs to the report, in order. RunError when the folder holds no run.

    The inputs are outside the run; they are checked where their paths are given.
    """
    manifest = run.read()
    prepared, trained = manifest.prepare, manifest.train
    if prepared is None:
        raise RunError(f"{run}: no manifest of a prepared run here, so there is nothing to verify. Name a run folder.")

    if test_ages is not None and "test_ages" not in prepared.sources:
        raise RunError(f"{run}: was prepared without --test-ages. Leave that option out.")

    def given(name: str, check: Check | None) -> Link:
        return Link(name, UNCHECKED, f"outside the run; give --{name}") if check is None else _link(name, check)

    def table(name: str, path: Path | None) -> Link:
        return given(name, _same(path, prepared.sources[name.replace("-", "_")].sha256) if path else None)

    def recorded(name: str, record: Record | None, stage: str, check: Callable[[], Check]) -> Link:
        return _link(name, check()) if record else Link(name, UNCHECKED, f"{stage} has not been done")

    def chained(name: str, record: Record | None, stage: str, check: Callable[[RunDir], Check] = _nothing) -> Link:
        return recorded(name, record, stage, lambda: _chained(run, manifest, record, check))

    return [
        _link("manifest", _seals(manifest)),
        table("ages", ages),
        *([table("test-ages", test_ages)] if "test_ages" in prepared.sources else []),
        table("points", points),
        given("images", _sources(prepared, images) if images else None),
        _link("split", _split(run, prepared)),
        _link("recipe", _recipe(run, prepared)),
        _link("prepared images", _images(run, prepared, progress)),
        _link("LMDBs and lists", _outputs(run, prepared, lambda name: not name.startswith("images/"))),
        recorded("definition files", trained, "train", lambda: _definitions(run, prepared, trained)),
        _caffe(trained),
        recorded("snapshots, log, curve", trained, "train", lambda: _trained(run, trained)),
        chained("predictions", manifest.predict, "predict"),
        chained("metrics", manifest.evaluate, "evaluate", _metrics),
        chained("every snapshot's metrics", manifest.evaluate_all, "evaluate_all"),
        recorded("figures and report", manifest.evaluate, "evaluate", lambda: _shown(run, manifest)),
    ]


_REMEDIES = {
    "ages": "prepare again with this table: it reports what changed, or updates its record",
    "test-ages": "prepare again with this table: it reports what changed, or updates its record",
    "points": "prepare again with this table: it reports what changed, or updates its record",
    "images": "prepare again with --check: it reports what changed, or makes the run's images again",
    "split": "run bonecaffe prepare again to repair it",
    "prepared images": "run bonecaffe prepare again to repair them",
    "LMDBs and lists": "run bonecaffe prepare again to repair them",
}
"""The remedy for a broken link, where a command can help."""


def _link(name: str, check: Check) -> Link:
    try:
        wrong = list(check)
    except (BonecaffeError, OSError, TypeError, ValueError, KeyError, AttributeError) as error:
        wrong = [f"cannot be recomputed: {error}"]
    more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
    remedy = f". {_REMEDIES[name].capitalize()}" if wrong and name in _REMEDIES else ""
    return Link(name, BROKEN if wrong else HOLDS, "; ".join(wrong[:3]) + more + remedy)


def first_broken(links: list[Link]) -> Link | None:
    """The first broken link; None when every checked link holds."""
    return next((link for link in links if link.state == BROKEN), None)


# ---- of every record ---------------------------------------------------------------------------------------------


def _seals(manifest: Manifest) -> Check:
    records = manifest.records()
    for stage, record in records.items():
        if manifest.seals.get(stage) != seal(record):
            yield f"manifest.json: the record of {stage} was changed after it was written"
    for stage in manifest.seals.keys() - records.keys():
        yield f"manifest.json: the record of {stage} was removed"


def _same(path: Path, expected: str) -> Check:
    try:
        if sha256_file(path) != expected:
            yield f"{path.name}: not the file that was recorded"
    except FileNotFoundError:
        yield f"{path.name}: missing"


def _outputs(run: RunDir, record: Record, chosen: Callable[[str], bool] = lambda name: True) -> Check:
    """Each file that a stage left, read again."""
    for name in filter(chosen, record.outputs):
        try:
            if sha256_file(run.path / name) != record.outputs[name]:
                yield f"{name}: not the file that was recorded"
        except FileNotFoundError:
            yield f"{name}: missing"


def _inputs(manifest: Manifest, record: Record) -> Check:
    """Compare what a stage read with what the stages before it wrote."""
    before = dict[str, str]()
    for stage, earlier in manifest.records().items():
        if stage == record.stage:
            break
        before |= earlier.outputs
    if manifest.prepare is not None:
        before["prepare"] = manifest.prepare.key
    for name, expected in record.inputs.items():
        if before.get(name) != expected:
            yield f"{record.stage}: {_BEFORE.get(name, f'{name}: not the one that the stages before it wrote')}"


_BEFORE = {"prepare": "made from an earlier preparation of the images"}


def _chained(run: RunDir, manifest: Manifest, record: Record | None, check: Callable[[RunDir], Check]) -> Check:
    assert record is not None
    yield from _inputs(manifest, record)
    yield from _outputs(run, record, lambda name: name != run.report.name and not name.startswith(run.figures.name))
    yield from check(run)


# ---- of prepare --------------------------------------------------------------------------------------------------


def _sources(prepared: Prepared, folders: Folders) -> Check:
    found = find_in_all(folders)
    for case_id, case in prepared.cases.items():
        if case_id not in found:
            yield f"{case_id}: no image"
        else:
            yield from _same(found[case_id], case.source_sha256)


def _split(run: RunDir, prepared: Prepared) -> Check:
    """The tables of the split hold the cases that were drawn."""
    lists = {run.list_file(split): [f"{case_id}.png" for case_id in prepared.split[split]] for split in SPLITS}
    for path, expected in lists.items():
        listed = [line.rsplit(" ", 1)[0] for line in read_text(path, "table", RunError).splitlines()]
        if listed != expected:
            yield f"{path.name}: not the cases that were drawn"
    yield from _outputs(run, prepared, lambda name: name == run.cases_file.name)
    for split, cases in outputs.split_of(run).items():
        if tuple(case.id for case in cases) != prepared.split[split]:
            yield f"{run.cases_file.name}: not the {split} cases that were drawn"


def _recipe(run: RunDir, prepared: Prepared) -> Check:
    recipe, changes = run.recipe_as_edited()
    if changes:
        yield f"recipe.yaml: not the recipe of prepare: {'; '.join(map(str, changes))}"
    if run.departures.is_file():
        written = read_json(run.departures, "record", RunError)
        trained = run.read().train
        launched = launch.as_launched(recipe, trained.weights, trained.launch.gpus) if trained else recipe
        if written != repro.facts(launched, launch.compare(run, launched)):
            yield "departures.json: not the departures of the run; run bonecaffe repro again"


def _images(run: RunDir, prepared: Prepared, progress: Progress) -> Check:
    """Each prepared image: its file, as a prediction compares it, and its decoded pixels."""
    for number, (case_id, case) in enumerate(prepared.cases.items(), start=1):
        path = run.image(case_id)
        if not path.is_file():
            yield f"images/{path.name}: missing"
        elif sha256(read_image(path).tobytes()) != case.pixels_sha256:
            yield f"images/{path.name}: its pixels changed"
        elif not is_intact(run.path, prepared, run.name_of(path), read=True):
            yield f"images/{path.name}: another file with the same pixels"
        progress(number, len(prepared.cases))


# ---- of the training ---------------------------------------------------------------------------------------------


def _definitions(run: RunDir, prepared: Prepared, trained: Trained | None) -> Check:
    assert trained is not None
    recipe = launch.as_launched(Recipe.parse(prepared.recipe, "the recipe"), trained.weights, trained.launch.gpus)
    now = definitions.intend(run, recipe).inputs(prepared.key)
    words = {"prepare": "the images were prepared again", "mean": "the mean changed"}
    for name, then in trained.inputs.items():
        if now.get(name) != then:
            yield words.get(name, f"{name}.prototxt: not the file that was trained")
    in_use = definitions.files_in_use(run)
    for name, path in (("deploy", run.deploy), ("mean", run.mean_file)):
        if in_use[name] != trained.files[name]:
            yield f"{path.name}: not the file that was trained with"


def _caffe(trained: Trained | None) -> Link:
    """Compare this Caffe with the one that trained: a difference is not a fault of the run, but worth knowing."""
    name = "Caffe and packages"
    if trained is None or not trained.attempts:
        return Link(name, UNCHECKED, "no training recorded them")
    then, now = trained.attempts[-1].by, environment.describe()
    differs = [
        f"{package} {version} then, {now.packages.get(package)} now"
        for package, version in then.packages.items()
        if now.packages.get(package) != version
    ]
    if now.caffe is None:
        differs.insert(0, "no Caffe is installed here")
    elif then.caffe is None or then.caffe.binaries != now.caffe.binaries:
        differs.insert(0, "trained with a Caffe other than the one installed here")
    return Link(name, OTHER if differs else HOLDS, "; ".join(differs))


def _trained(run: RunDir, trained: Trained | None) -> Check:
    assert trained is not None
    if trained.state is State.RUNNING:
        yield "train: its end was not recorded"
    yield from _outputs(run, trained)


# ---- of the evaluation -------------------------------------------------------------------------------------------


def _metrics(run: RunDir) -> Check:
    """Every figure of both splits, computed again from the predictions."""
    written = read_json(run.metrics, "record", RunError)["splits"]
    tables = {split: read_predictions(run, split) for split in SPLITS}
    for split, metrics in measure_tables(run, tables, 0).splits.items():
        for name, value in json.loads(json.dumps(asdict(metrics))).items():
            if not _alike(value, written[split].get(name)):
                yield f"metrics.json: {split} {name} is {written[split].get(name)}, recomputed {value}"


def _alike(a: Any, b: Any) -> bool:
    """Whether two values are the same, numbers to nine digits: another machine may differ in the last digits."""
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_alike, a, b))
    if isinstance(a, float) and isinstance(b, float | int):
        return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-9)
    return bool(a == b)


def _shown(run: RunDir, manifest: Manifest) -> Check:
    assert manifest.evaluate is not None
    shown: Iterable[str] = (run.report.name, run.figures.name)
    yield from _outputs(run, manifest.evaluate, lambda name: name.split("/")[0] in shown)
