"""A trained run as one file that others can use, or as the plain files of Caffe. Reads the run, writes nothing into it.

What leaves the machine is chosen here, member by member: no image, no id of a case, no path. An exported model must
predict what the run predicts: the finished file is read as anyone would read it, computed by ONNX Runtime, and compared
with Caffe on phantoms before it is moved into place.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bonecaffe.caffe import deploy as deploys
from bonecaffe.caffe import nets, onnx_net, programs
from bonecaffe.caffe.caffemodel import Caffemodel, write_blob
from bonecaffe.errors import ModelError
from bonecaffe.evaluation.claim_facts import Facts, facts_of
from bonecaffe.evaluation.predictions import read_predictions
from bonecaffe.evaluation.words import without_folders
from bonecaffe.export.model_card import text_of
from bonecaffe.files import copy_file, folder_made, read_text, replacing, sha256_file, write_bytes, write_text, writing
from bonecaffe.hands.phantom import dataset
from bonecaffe.model import model as models
from bonecaffe.model.model import Contents, Model
from bonecaffe.network import mean
from bonecaffe.predict import model_of
from bonecaffe.prepare.normalize import normalize
from bonecaffe.recipe import Recipe
from bonecaffe.records import Trained
from bonecaffe.run import RunDir
from bonecaffe.training.launch import Comparison, compare

AGREE = 1e-4
"""How far the two engines' months may differ, relative to the larger of Caffe's months and one month."""
PHANTOMS, SEED, SIZE = 5, 17, (300, 390)


class Exported(NamedTuple):
    """A model file that was written: its manifest, its hash, and the largest relative difference of the engines."""

    contents: Contents
    sha256: str
    difference: float


# ---- one file ----------------------------------------------------------------------------------------------------


def export(
    run: RunDir, target: Path, snapshot: int | None = None, licence: str | None = None, own_text: Path | None = None
) -> Exported:
    """Write a model file of a snapshot (default: the last one); whole or not at all.

    ``own_text`` is a model card that the authors completed; without it there is one from the records. Raises ModelError
    when ``target`` is some other file, when the training is not on record, when a net cannot be expressed in ONNX, and
    when ONNX Runtime and Caffe disagree; PredictError and CaffeError as `predict` does.
    """
    _check_target(target)
    if licence is not None and (not licence.strip() or not licence.isprintable() or len(licence) > 200):
        raise ModelError("--licence: give a name or an identifier on one line, such as CC-BY-4.0.")
    programs.import_pycaffe()  # raises at once where there is no Caffe to compare with
    model = model_of(run, snapshot)
    trained = run.read().train
    if trained is None:
        raise ModelError(
            f"{run}: the training is not on record, so no model card can be written. Train it with bonecaffe."
        )
    members = _members(run, model, trained, licence, own_text)
    with folder_made(target.parent), replacing(target) as temporary:
        with writing(temporary) as file:
            contents = models.write(file, members, model.iteration, licence)
        _check_weights(trained, run, model, contents)
        difference = disagreement(model, models.read(temporary).model)
        if not difference <= AGREE:
            raise ModelError(
                f"{run}: ONNX Runtime and Caffe disagree by {difference:.2g} (relative) on {PHANTOMS} phantoms; at "
                f"most {AGREE:g} is accepted. Nothing was written. Please report this."
            )
        digest = sha256_file(temporary)
    return Exported(contents, digest, difference)


def _check_target(target: Path) -> None:
    if target.is_dir():
        raise ModelError(f"{target}: a folder. Name a file, such as {target / 'model.zip'}.")
    if target.exists() and not models.is_one(target):
        raise ModelError(f"{target}: exists, and is not a model file. Name another file, or move it away.")


def _check_weights(trained: Trained, run: RunDir, model: Model, contents: Contents) -> None:
    """ModelError unless the weights that were written are those on record: they might have changed meanwhile."""
    recorded = trained.outputs.get(run.name_of(model.caffemodel))
    if recorded not in (None, contents.members[models.WEIGHTS].sha256):
        raise ModelError(f"{model.caffemodel}: not as the recorded training of {run} wrote it. Restore it.")


def disagreement(ours: Model, exported: Model) -> float:
    """The largest relative difference of months on phantoms: a model by Caffe, an exported one by ONNX Runtime.

    Raises ModelError when the model predicts no finite number.
    """
    hands = [dataset.make(SEED, number, SIZE) for number in range(PHANTOMS)]

    def months(model: Model, engine: nets.Kind) -> NDArray[np.float32]:
        normal = [normalize(hand.image, hand.points, model.recipe.preparation) for hand in hands]
        data = np.stack([image.astype(np.float32)[None] - model.mean for image in normal])
        return nets.make(engine, model.deploy, model.caffemodel).forward(data)

    expected, found = months(ours, "caffe"), months(exported, "onnx")
    if not np.isfinite(expected).all():
        raise ModelError(f"{ours.name}: predicts no finite number. Its training diverged; train it again.")
    return float((np.abs(found - expected) / np.maximum(np.abs(expected), 1)).max())


def _members(
    run: RunDir, model: Model, trained: Trained, licence: str | None, own_text: Path | None
) -> dict[str, bytes | Path]:
    facts, compared = facts_of(run), compare(run)
    measured = facts.measured if facts.measured and facts.measured.iteration == model.iteration else None
    text = _deploy_text(model)
    with Caffemodel(model.caffemodel) as weights:
        onnx = onnx_net.convert(deploys.parse(text, str(model.deploy)), weights, models.WEIGHTS).graph
    recipe = shared_recipe(facts.recipe)
    members: dict[str, bytes | Path] = {
        models.RECIPE: recipe.to_yaml().encode(),
        models.TRAINING: _json(_training(facts, compared, trained, model)),
        models.DEPLOY: text.encode(),
        models.ONNX: onnx,
        models.WEIGHTS: model.caffemodel,
    }
    if mean.needs_file(recipe):
        members[models.MEAN] = run.mean_file
    if measured is not None:
        members[models.METRICS] = _json(asdict(measured))
        members[models.RESIDUALS] = _json(_residuals(run))
    if own_text is not None:
        try:
            members[models.MODEL_CARD] = read_text(own_text, "settings", ModelError).encode()
        except OSError as error:
            raise ModelError(f"--card {own_text}: {error.strerror}.") from None
    else:
        shown = _cleaned_comparison(compared)
        digest = sha256_file(model.caffemodel)
        members[models.MODEL_CARD] = text_of(
            replace(facts, recipe=recipe), shown, model.iteration, measured, licence, digest
        ).encode()
    return members


# ---- what is given to others ------------------------------------------------------------------------------------


def shared_recipe(recipe: Recipe) -> Recipe:
    """A recipe without paths of this machine: in its reasons, and in the file of its mean."""
    if mean.given_file(recipe):
        note = recipe.source_of("network.mean")
        recipe = recipe.with_values({"network.mean": f"file:{mean.FILE}"}, note)
    notes = {
        field: {kind: without_folders(text) for kind, text in note.items()} for field, note in recipe.notes.items()
    }
    head = {"name": without_folders(recipe.name), "description": without_folders(recipe.description)}
    return recipe.model_copy(update={"notes": notes, **head})


def _cleaned_comparison(compared: Comparison) -> Comparison:
    def cleaned(value: Any) -> Any:
        return without_folders(value) if isinstance(value, str) else value

    departures = [type(each)(*map(cleaned, each)) for each in compared.departures]
    choices = [type(each)(*map(cleaned, each)) for each in compared.choices]
    return Comparison(departures, choices)


def _deploy_text(model: Model) -> str:
    """The deploy file, with comments that name no path."""
    lines = read_text(model.deploy, "settings", ModelError).splitlines()
    return "".join(f"{without_folders(line) if line.lstrip().startswith('#') else line}\n" for line in lines)


def _training(facts: Facts, compared: Comparison, trained: Trained, model: Model) -> dict[str, Any]:
    """What the model was trained from and on: `training.json`."""
    shown = _cleaned_comparison(compared)
    by = trained.attempts[-1].by if trained.attempts else trained.by
    return {
        "iteration": model.iteration,
        "state": str(trained.state),
        "started_from": trained.weights.model_dump() if trained.weights else None,
        "launch": {"gpus": trained.launch.gpus, "resumed": trained.launch.snapshot is not None},
        "attempts": len(trained.attempts),
        "edited": {name: {f: list(pair) for f, pair in fields.items()} for name, fields in trained.edited.items()},
        "departures": [each._asdict() for each in shown.departures],
        "choices": [each._asdict() for each in shown.choices],
        "data": {split: part._asdict() for split, part in facts.partitions.items()},
        "phantoms": facts.prepared.phantoms,
        "made_with": {
            "bonecaffe": by.bonecaffe,
            "python": by.python,
            "packages": by.packages,
            "caffe": without_folders(by.caffe.origin) if by.caffe else None,
        },
    }


def _residuals(run: RunDir) -> dict[str, Any]:
    """The test hands' predictions and errors, by predicted age, without ids: for prediction intervals."""
    table = read_predictions(run, "test")
    pairs = zip(table["predicted_months"], table["predicted_months"] - table["boneage_months"], strict=True)
    rows = sorted([round(float(predicted), 4), round(float(error), 4)] for predicted, error in pairs)
    return {"split": "test", "columns": ["predicted_months", "predicted_minus_true_months"], "rows": rows}


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


# ---- Caffe's files -----------------------------------------------------------------------------------------------


def export_caffe(run: RunDir, folder: Path, snapshot: int | None = None) -> list[Path]:
    """Write the deploy file, the weights and the mean image of a snapshot into a new folder, for other tools of Caffe.

    A mean that is numbers is written as an image too. Raises ModelError when the folder holds something already.
    """
    model = model_of(run, snapshot)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ModelError(f"--caffe {folder}: exists, and is not an empty folder. Name a new one.")
    size = (3, model.recipe.preparation.height, model.recipe.preparation.width)
    written = [folder / name for name in (models.DEPLOY, models.WEIGHTS, models.MEAN)]
    with folder_made(folder):
        write_text(written[0], _deploy_text(model))
        copy_file(model.caffemodel, written[1])
        write_bytes(written[2], write_blob(np.broadcast_to(model.mean, size).astype(np.float32)))
    return written
