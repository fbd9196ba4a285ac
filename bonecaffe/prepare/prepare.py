"""The prepare stage: ages, images and points in; normalized images, lists and audited LMDBs out.

Everything is made in ``RUN/.prepare`` and moved into place when the audit has passed. The training hands are packed
while the test hands are normalized. A prepare after an interruption reuses the finished images there; a prepare that
fails leaves the run unchanged. Only this stage writes recipe.yaml.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from bonecaffe.caffe import environment
from bonecaffe.errors import BonecaffeError, PrepareError, RunError
from bonecaffe.files import folder_made, make_folder, remove, sha256, sha256_file, write_text
from bonecaffe.hands.cases import AgeUnit, Case, write_cases
from bonecaffe.hands.images import Folders, folders_of
from bonecaffe.hands.phantom import listed
from bonecaffe.prepare import duplicates, imageset, outputs
from bonecaffe.prepare.inputs import Inputs, read_inputs, with_origin
from bonecaffe.prepare.normalized import PIXELS, Job, NormalizedImage, jobs_of, normalize_all, sources
from bonecaffe.progress import Progress, unseen
from bonecaffe.recipe import Change, Recipe
from bonecaffe.records import Prepared, Source, damaged, digest, outputs_of
from bonecaffe.run import SPLITS, RunDir


class PrepareOutcome(NamedTuple):
    """What prepare did.

    The record; whether images, lists or LMDBs were made; what changed in the recipe; the lowest and the highest age in
    the table, in months; sentences about what may not be intended."""

    record: Prepared
    made: bool
    changes: list[Change]
    ages_months: tuple[float, float]
    remarks: list[str]


class Given(NamedTuple):
    """Where the inputs are: the folders of images; the tables by their names in the record."""

    folders: list[Path]
    tables: dict[str, Path]


def prepare(
    run: RunDir,
    images_in: Folders,
    ages: Path,
    points: Path,
    recipe: Recipe,
    progress: Progress = unseen,
    workers: int | None = None,
    origin: str | None = None,
    ages_in: AgeUnit | None = None,
    check: bool = False,
    test_ages: Path | None = None,
) -> PrepareOutcome:
    """Prepare a run; do nothing when it is already prepared with the same inputs and recipe.

    All earlier outputs in the run are read again, and rewritten where they are damaged. A radiograph with the same size
    and time counts as unchanged, unless ``check`` has it read.

    The images are in one folder or several. With ``test_ages``, a second table, the hands of ``ages`` are for training
    and those of ``test_ages`` for test; otherwise a column ``split`` of ``ages`` decides, unless the recipe asks for
    another split with a reason. ``origin`` is where the points come from (``marked, boxes, found``); without it, points
    that `locate` found or suggested are detected and declared. ``ages_in`` is the unit of the ages; without it they are
    months, and ages that may be years are refused. Raises a BonecaffeError naming the file, row and remedy for bad
    input, and for a change on a run that holds a trained model; nothing incomplete is left behind.
    """
    recipe = with_origin(recipe, Path(points), origin)
    folders = folders_of(images_in)
    tables = {"ages": Path(ages), "points": Path(points)} | ({"test_ages": Path(test_ages)} if test_ages else {})
    inputs = read_inputs(folders, tables["ages"], tables["points"], recipe, ages_in, tables.get("test_ages"))
    given, recipe = Given(folders, tables), inputs.recipe
    with folder_made(run.path), run.lock("prepare"):  # only the owner of the lock removes files below
        record, made, changes, remarks = _prepare(run, inputs, given, recipe, progress, workers, check)
    hashes = {case_id: case.image_sha256 or "" for case_id, case in record.cases.items()}
    return PrepareOutcome(
        record,
        made,
        changes,
        inputs.ages_months,
        inputs.remarks + remarks + outputs.view_remarks(record) + duplicates.remarks(hashes),
    )


def _prepare(
    run: RunDir,
    inputs: Inputs,
    given: Given,
    recipe: Recipe,
    progress: Progress,
    workers: int | None,
    check: bool,
) -> tuple[Prepared, bool, list[Change], list[str]]:
    """The record, whether anything was made, what changed in the recipe, and remarks."""
    before = run.read().prepare
    if check and before is not None:
        before = _without_stats(before)
    jobs = jobs_of(inputs, recipe.preparation, run.work / "images")
    if before is None:
        _check_model_stays(run, inputs, jobs, recipe)
        return _make(run, None, inputs, given, jobs, recipe, progress, workers, check), True, [], []
    known = sources(jobs, before)
    other = [name for name, value in _hashes(inputs, recipe, known).items() if before.inputs.get(name) != value]
    changes = Recipe.parse(before.recipe, f"{run.manifest_file}, prepare.recipe").changes(recipe)
    if run.holds_model() and (other or changes):
        same_hands = set(before.cases) == {job.id for job in jobs}
        named = other if same_hands else [name for name in other if name not in ("points", "images")]
        raise _would_orphan(run, named, changes)
    if other or damaged(run.path, before, read=True):
        return _make(run, before, inputs, given, jobs, recipe, progress, workers, check), True, changes, []
    put_back = []
    if run.holds_model():  # other names and reasons for the same values: those on record are in force
        recipe = Recipe.parse(before.recipe, f"{run.manifest_file}, prepare.recipe")
        if run.recipe_file.is_file() and Recipe.load(run.recipe_file).to_yaml() != before.recipe:
            put_back = [
                f"{run.recipe_file}: names and reasons edited after the training; those of the training are "
                "restored. To use others, prepare another run folder with this recipe"
            ]
    _drop_stale(run, before)
    record, remarks = _renewed(run, adopt(run, recipe), inputs, given, jobs)
    return record, False, changes, put_back + remarks


def _without_stats(before: Prepared) -> Prepared:
    """The record with impossible file times, so that each radiograph is read again."""
    cases = {
        name: case.model_copy(update={"source_stat": (case.source_stat[0], -1)}) for name, case in before.cases.items()
    }
    return before.model_copy(update={"cases": cases})


def _given(inputs: Inputs, given: Given) -> dict[str, Any]:
    """The facts of a record about the tables and the folder as given, whatever was drawn from them."""
    return {
        "sources": {name: Source(name=path.name, sha256=sha256_file(path)) for name, path in given.tables.items()},
        "images_folder": ", ".join(folder.name for folder in given.folders),
        "ages_in": "years" if inputs.ages_in == "years" else None,
        "left_out": inputs.left_out,
        "groups": inputs.groups(),
    }


def _phantoms(given: Given) -> frozenset[str]:
    """The hashes of the phantoms that are listed next to the images and tables."""
    folders = [folder for images in given.folders for folder in (images, images.parent)]
    return listed.known(*folders, *(table.parent for table in given.tables.values()))


def _renewed(
    run: RunDir, record: Prepared, inputs: Inputs, given: Given, jobs: list[Job]
) -> tuple[Prepared, list[str]]:
    """The record with the current tables, and remarks. Rows of other hands may change, even when the run holds a model.

    Otherwise `verify --ages` would always report another table, and no command could correct that.
    """
    now = _given(inputs, given)
    other = [path.name for name, path in given.tables.items() if now["sources"][name] != record.sources.get(name)]
    other += [record.sources[name].name for name in record.sources if name not in given.tables]
    stats = {job.id: job.source_stat for job in jobs}
    cases = {name: case.model_copy(update={"source_stat": stats[name]}) for name, case in record.cases.items()}
    phantoms = _phantoms(given)
    count = sum(case.source_sha256 in phantoms for case in record.cases.values())
    renewed = record.model_copy(update={**now, "cases": cases, "phantoms": count})
    if renewed != record:
        run.record(renewed)
    what = f"{' and '.join(other)}: changed, but not for the hands of this run; the record names the new content"
    return renewed, [what] if other else []


def _check_model_stays(run: RunDir, inputs: Inputs, jobs: list[Job], recipe: Recipe) -> None:
    """Refuse to orphan a model whose preparation is not on record, because prepare was killed while it replaced it."""
    trained = run.read().train
    if trained is None or not run.holds_model():
        return
    hashes = _hashes(inputs, recipe, {job.id: sha256_file(job.source) for job in jobs})
    if digest(hashes) != trained.inputs["prepare"]:
        raise RunError(
            f"{run}: holds a trained model, and its preparation was interrupted while it was repaired. Prepare it with "
            f"the hands, points and recipe that it had, or remove {run.snapshots} to give the model up."
        )


def adopt(run: RunDir, recipe: Recipe) -> Prepared:
    """Store a recipe in a run whose images and LMDBs it does not change."""
    before = outputs.prepared_of(run)
    if not run.recipe_file.is_file() or Recipe.load(run.recipe_file).to_yaml() != recipe.to_yaml():
        run.write_recipe(recipe)
    if recipe.to_yaml() != before.recipe:
        before = before.model_copy(update={"recipe": recipe.to_yaml()})
        run.record(before)
    return before


def _would_orphan(run: RunDir, other: list[str], changes: list[Change]) -> RunError:
    """The refusal to change what a trained model depends on."""
    explained = {"cases": "data.", "settings": "preparation."}
    lines = [str(change) for change in changes]
    lines += [
        f"{name}: {_WORDS[name]}"
        for name in other
        if not any(change.field.startswith(explained.get(name, "?")) for change in changes)
    ]
    return RunError(
        f"{run}: holds a trained model, which would no longer match its preparation. Changed since it was prepared:"
        + "".join(f"\n  {line}" for line in lines)
        + f"\nPrepare another run folder, or remove {run.snapshots} to give the model up."
    )


_WORDS = {
    "cases": "other hands, ages, groups or sides of the split",
    "points": "other points of the same hands",
    "images": "other image files",
    "settings": "other crop, equalization or size",
}


def _hashes(inputs: Inputs, recipe: Recipe, image_hashes: Mapping[str, str]) -> dict[str, str]:
    """Hashes of what a preparation depends on, by name; names and places of files do not matter."""
    chosen = list(inputs.chosen())
    ids = sorted(case.id for case in chosen)
    facts = {
        "cases": [[_facts(case) for case in chosen], len(inputs.split["train"]), recipe.data.labels],
        "points": [asdict(inputs.points[case_id]) for case_id in ids],
        "images": [[case_id, image_hashes[case_id]] for case_id in ids],
        "settings": [PIXELS, recipe.preparation.model_dump()],
    }
    return {name: sha256(json.dumps(fact)) for name, fact in facts.items()}


def _facts(case: Case) -> dict[str, Any]:
    """A case for its hash; columns that its table does not have leave the hash unchanged."""
    return {name: value for name, value in asdict(case).items() if value is not None or name not in ("group", "split")}


def _make(
    run: RunDir,
    before: Prepared | None,
    inputs: Inputs,
    given: Given,
    jobs: list[Job],
    recipe: Recipe,
    progress: Progress,
    workers: int | None,
    check: bool,
) -> Prepared:
    """Make images, lists and LMDBs in the work folder, move them into place, and record them.

    A failure removes the work folder. An earlier refusal does not: after a kill in the swap, the folder holds the files
    of the earlier preparation.
    """
    phantoms = _phantoms(given)
    try:
        _check_space(run, jobs)
        if check:  # the journal of an interrupted prepare is not trusted either
            remove(run.work)
        make_folder(run.work)
        staged = RunDir(run.work)
        normalized = normalize_all(run, before, jobs, len(inputs.split["train"]), progress, workers)
        outcomes, counts = _pack(staged, normalized, inputs, given, recipe)
        write_cases(staged.cases_file, inputs.chosen())
        example = _of_middle_age(inputs.split["train"])
        outputs.write_example(staged, inputs.images[example.id], inputs.points[example.id])
        for stray in set(os.listdir(staged.images)) - {f"{job.id}.png" for job in jobs}:
            remove(staged.images / stray)
        hashes = _hashes(inputs, recipe, {case_id: outcome.source_sha256 for case_id, outcome in outcomes.items()})
        pngs = {f"images/{case_id}.png": outcome.png_sha256 for case_id, outcome in outcomes.items()}
        with _put_back(run, before), outputs.moved_into_place(run, staged):
            run.write_recipe(recipe)
            record = Prepared(
                inputs=hashes,
                **outputs_of(run.path, outputs.files_of(run, outcomes), known=pngs),
                by=environment.describe(),
                recipe=recipe.to_yaml(),
                **_given(inputs, given),
                records=counts,
                split={split: tuple(case.id for case in inputs.split[split]) for split in SPLITS},
                cases={case_id: outcome.case() for case_id, outcome in outcomes.items()},
                phantoms=sum(outcome.source_sha256 in phantoms for outcome in outcomes.values()),
            )
            run.record(record)
        _drop_stale(run, record)
    except Exception:
        remove(run.work)
        raise
    remove(run.work)
    return record


def _drop_stale(run: RunDir, prepared: Prepared) -> None:
    """Remove what was trained, predicted and measured on other images, and its records.

    Otherwise a report would appear to belong to a split that it was not made from. Files are removed first, so that the
    next prepare completes an interrupted removal."""
    manifest = run.read()
    stages = ("train", "predict", "evaluate", "evaluate_all")
    found = {stage: record for stage, record in manifest.records().items() if stage in stages}
    if run.holds_model() or all(
        record.inputs.get("prepare", prepared.key) == prepared.key for record in found.values()
    ):
        return
    kept = {name for stage, record in manifest.records().items() if stage not in found for name in record.outputs}
    for record in found.values():
        for name in record.outputs.keys() - kept:
            remove(run.path / name)
            with contextlib.suppress(OSError):  # the folder of figures, unless something else is in it
                (run.path / name).parent.rmdir()
    run.forget(*found)


@contextlib.contextmanager
def _put_back(run: RunDir, before: Prepared | None) -> Iterator[None]:
    """Record the earlier preparation again, with its recipe, when the new one fails; its files are already restored."""
    try:
        yield
    except BaseException:
        if before is not None:
            with contextlib.suppress(BonecaffeError, OSError):
                run.write_recipe(Recipe.parse(before.recipe, run.recipe_file.name))
                run.record(before)
        raise


def _pack(
    staged: RunDir,
    normalized: Iterator[tuple[str, dict[str, NormalizedImage]]],
    inputs: Inputs,
    given: Given,
    recipe: Recipe,
) -> tuple[dict[str, NormalizedImage], dict[str, int]]:
    """Pack each split as soon as its images are ready, and audit the result: outcomes by id, records by split."""
    outcomes: dict[str, NormalizedImage] = {}
    running: dict[str, imageset.Conversion] = {}
    try:
        for split, finished in normalized:  # the test hands are normalized while the training hands are packed
            outcomes |= finished
            remove(staged.lmdb(split))
            write_text(staged.list_file(split), imageset.list_text(inputs.split[split], recipe.data.labels))
            running[split] = imageset.Conversion(
                staged.images, staged.list_file(split), staged.lmdb(split), recipe.preparation
            )
        hashes = {case_id: outcome.image_sha256 for case_id, outcome in outcomes.items()}
        tables = " or ".join(str(path) for name, path in given.tables.items() if name != "points")
        duplicates.refuse_leaks(hashes, [case.id for case in inputs.split["train"]], tables)
        return outcomes, {split: _audited(staged, split, running[split], inputs, outcomes, recipe) for split in SPLITS}
    finally:
        for conversion in running.values():
            conversion.stop()


def _audited(
    staged: RunDir,
    split: str,
    conversion: imageset.Conversion,
    inputs: Inputs,
    outcomes: dict[str, NormalizedImage],
    recipe: Recipe,
) -> int:
    """Wait for a split's LMDB, write its exact labels where asked for, and audit it; return its number of records."""
    cases = inputs.split[split]
    conversion.finish()
    if recipe.data.labels == "exact":
        remove(staged.labels_lmdb(split))
        imageset.write_labels(staged.labels_lmdb(split), cases)
    hashes = {case.id: outcomes[case.id].pixels_sha256 for case in cases}
    return imageset.audit(staged.lmdb(split), cases, hashes, recipe.preparation)


def _of_middle_age(cases: list[Case]) -> Case:
    return sorted(cases, key=lambda case: (case.boneage_months, case.id))[len(cases) // 2]


def _check_space(run: RunDir, jobs: list[Job]) -> None:
    size = jobs[0].preparation
    needed = len(jobs) * size.height * size.width * 4.2 + 4e6  # three channels in the LMDB, one in the PNG
    free = shutil.disk_usage(run.path).free
    if free < needed:
        raise PrepareError(
            f"{run.path}: the disk is full: {free / 1e6:.0f} MB free, about {needed / 1e6:.0f} MB needed for "
            f"{len(jobs)} images. Make room, or put the run elsewhere."
        )
