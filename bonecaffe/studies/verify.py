"""A run as evidence: recompute every hash that its manifest holds and name the first link that broke; list runs."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from bonecaffe.caffe import environment
from bonecaffe.errors import BonecaffeError, RunError
from bonecaffe.files import sha256, sha256_file
from bonecaffe.prepare import outputs
from bonecaffe.recipe import Recipe
from bonecaffe.run import SPLITS, RunDir, seal
from bonecaffe.training import train

HOLDS, BROKEN, OTHER, UNSEEN = "holds", "BROKEN", "differs", "not looked at"


class Link(NamedTuple):
    """One link of the chain. ``state``: holds, BROKEN, differs (no fault of the run), not looked at."""

    name: str
    state: str
    said: str


Check = Iterator[str]
"""What a link finds wrong, in words; nothing when it holds."""


def verify(
    run: RunDir,
    images: Path | None = None,
    ages: Path | None = None,
    points: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Link]:
    """Recompute the chain from the inputs to the report, in order. RunError when the folder holds no run.

    The inputs lie outside the run; they are looked at where their places are given.
    """
    manifest = run.manifest()
    if "prepare" not in manifest:
        raise RunError(f"{run}: no manifest of a prepared run here, so there is nothing to verify.")
    stages: list[tuple[str, str, Callable[[], Check]]] = [
        ("manifest", "", lambda: _seals(manifest)),
        ("ages", "prepare", lambda: _input(manifest, "ages", ages)),
        ("points", "prepare", lambda: _input(manifest, "points", points)),
        ("images", "prepare", lambda: _sources(manifest, images)),
        ("split", "prepare", lambda: _split(run, manifest)),
        ("recipe", "prepare", lambda: _recipe(run, manifest)),
        ("prepared images", "prepare", lambda: _prepared(run, manifest, progress)),
        ("LMDBs and lists", "prepare", lambda: _packed(run, manifest)),
        ("definition files", "train", lambda: _definitions(run, manifest)),
        ("snapshots, log, curve", "train", lambda: _trained(run, manifest)),
        ("predictions", "predict", lambda: _predicted(run, manifest)),
        ("metrics", "evaluate", lambda: _measured(run, manifest)),
        ("every snapshot's metrics", "evaluate_all", lambda: _by_snapshot(run, manifest)),
        ("figures and report", "evaluate", lambda: _shown(run, manifest)),
    ]
    given = {"ages": ages, "points": points, "images": images}
    links = []
    for name, stage, check in stages:
        if name in given and given[name] is None:
            links.append(Link(name, UNSEEN, f"outside the run; give --{name}"))
        elif name == "manifest" and "seals" not in manifest:
            links.append(Link(name, UNSEEN, "its records bear no seals"))
        elif stage and stage not in manifest:
            links.append(Link(name, UNSEEN, f"{stage} has not been done"))
        else:
            links.append(_link(name, check))
        if name == "definition files":
            links.append(_caffe(manifest.get("train", {}).get("attempts")))
    return links


def _link(name: str, check: Callable[[], Check]) -> Link:
    try:
        wrong = list(check())
    except KeyError as error:
        wrong = [f"the manifest does not record {error.args[0]!r}"]
    except (BonecaffeError, OSError, TypeError, ValueError, AttributeError) as error:
        wrong = [f"cannot be recomputed: {error}"]
    more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
    return Link(name, BROKEN if wrong else HOLDS, "; ".join(wrong[:3]) + more)


def first_broken(links: list[Link]) -> Link | None:
    """The first link that does not hold; None when all do that were looked at."""
    return next((link for link in links if link.state == BROKEN), None)


# ---- the links -------------------------------------------------------------------------------------------------


def _same(path: Path, expected: str) -> Check:
    if not path.is_file():
        yield f"{path.name}: gone"
    elif sha256_file(path) != expected:
        yield f"{path.name}: not the file that was recorded"


def _seals(manifest: dict[str, Any]) -> Check:
    seals = manifest.get("seals", {})
    for stage, facts in manifest.items():
        if stage != "seals" and seals.get(stage) != seal(facts):
            yield f"manifest.json: the record of {stage} was changed after it was written"
    for stage in seals.keys() - manifest.keys():
        yield f"manifest.json: the record of {stage} was taken out"


def _input(manifest: dict[str, Any], name: str, path: Path | None) -> Check:
    assert path is not None
    if not path.is_file():
        yield f"{path}: no such file"
    else:
        yield from _same(path, manifest["prepare"]["inputs"][name]["sha256"])


def _sources(manifest: dict[str, Any], folder: Path | None) -> Check:
    from bonecaffe.hands.images import find_images

    assert folder is not None
    found = find_images(folder)
    for case_id, facts in manifest["prepare"]["cases"].items():
        if case_id not in found:
            yield f"{case_id}: no image"
        else:
            yield from _same(found[case_id], facts["source_sha256"])


def _split(run: RunDir, manifest: dict[str, Any]) -> Check:
    recorded = manifest["prepare"]["split"]
    for split, cases in outputs.split_of(run).items():
        if [case.id for case in cases] != recorded[split]:
            yield f"{run.cases_file.name}: not the {split} cases that were drawn"
        listed = [line.split(" ")[0] for line in run.list_file(split).read_text(encoding="utf-8").splitlines()]
        if listed != [f"{case_id}.png" for case_id in recorded[split]]:
            yield f"{run.list_file(split).name}: not the {split} cases that were drawn"


def _recipe(run: RunDir, manifest: dict[str, Any]) -> Check:
    recipe = run.recipe()
    trained = manifest.get("train", {}).get("recipe")
    if trained is not None:
        if recipe != Recipe.parse(trained, "the recipe of the training"):
            yield "recipe.yaml: not the recipe of the training"
    elif sha256(recipe.to_yaml()) != manifest["prepare"]["recipe_sha256"]:
        yield "recipe.yaml: not the recipe of prepare"
    if run.departures.is_file():
        said = json.loads(run.departures.read_text(encoding="utf-8"))["departures"]
        if said != json.loads(json.dumps([departure._asdict() for departure in recipe.departures()])):
            yield "departures.json: not the departures of the recipe; run bonecaffe repro again"


def _prepared(run: RunDir, manifest: dict[str, Any], progress: Callable[[int, int], None]) -> Check:
    from bonecaffe.hands.images import read_image

    cases = manifest["prepare"]["cases"]
    for number, (case_id, facts) in enumerate(cases.items(), start=1):
        path = run.image(case_id)
        if not path.is_file():
            yield f"images/{path.name}: gone"
        elif sha256(read_image(path).tobytes()) != facts["pixels_sha256"]:
            yield f"images/{path.name}: other pixels"
        progress(number, len(cases))


def _packed(run: RunDir, manifest: dict[str, Any]) -> Check:
    for name, facts in manifest["prepare"]["files"].items():
        path = run.path / name
        if not path.is_file() or sha256_file(path) != facts["sha256"]:
            yield f"{name}: {'not as prepare wrote it' if path.is_file() else 'gone'}"


def _definitions(run: RunDir, manifest: dict[str, Any]) -> Check:
    from bonecaffe.training import launch

    now, then = launch.intended(run, run.trained_recipe()), manifest["train"]["inputs"]
    for name in then:
        if now[name] != then[name]:
            what = {"prepare": "the images were prepared anew", "mean": "the mean is another"}
            yield what.get(name, f"{name}.prototxt: not what was trained")
    in_use = launch.files_in_use(run)
    for name, path in (("deploy", run.deploy), ("mean", run.mean_file)):
        if in_use[name] != manifest["train"]["files"][name]:
            yield f"{path.name}: not what was trained with"


def _caffe(attempts: Any) -> Link:
    """This Caffe against the one that trained: another one is no fault of the run, but worth knowing."""
    name = "Caffe and packages"
    then = attempts[-1].get("by") if isinstance(attempts, list) and attempts else None
    if not isinstance(then, dict) or not isinstance(then.get("caffe"), dict):
        return Link(name, UNSEEN, "no training recorded them")
    now, packages = environment.describe(), then.get("packages") or {}
    differs = [
        f"{package} {version} then, {now['packages'].get(package)} now"
        for package, version in packages.items()
        if now["packages"].get(package) != version
    ]
    if now["caffe"].get("missing"):
        differs.insert(0, "no Caffe is installed here")
    elif then["caffe"].get("binaries") != now["caffe"]["binaries"]:
        differs.insert(0, "trained with another Caffe than is installed here")
    return Link(name, OTHER if differs else HOLDS, "; ".join(differs))


def _trained(run: RunDir, manifest: dict[str, Any]) -> Check:
    facts = manifest["train"]
    if facts["state"] == "running":
        yield "train: its end was not recorded"
    for name, expected in facts.get("outputs", {}).items():
        path = run.path / name
        if not path.is_file() or sha256_file(path) != expected:
            yield f"{name}: {'not the file that was recorded' if path.is_file() else 'gone'}"


def _predicted(run: RunDir, manifest: dict[str, Any]) -> Check:
    facts = manifest["predict"]
    models = manifest.get("train", {}).get("outputs", {})
    named = [model for name, model in models.items() if name.endswith(f"_iter_{facts['iteration']}.caffemodel")]
    if facts["caffemodel_sha256"] not in named:
        yield f"the predictions were made by a model of iteration {facts['iteration']} that this training did not leave"
    if facts["prepare"] != manifest["prepare"]["key"]:
        yield "the predictions are of images prepared before"
    for split in SPLITS:
        yield from _same(run.predictions(split), facts["predictions"][split])


def _measured(run: RunDir, manifest: dict[str, Any]) -> Check:
    from bonecaffe.evaluation import evaluate

    facts = manifest["evaluate"]
    for split in SPLITS:
        if facts["predictions"][split] != manifest.get("predict", {}).get("predictions", {}).get(split):
            yield f"predictions_{split}.csv were made anew since; evaluate again"
    yield from _same(run.metrics, facts["metrics"])
    said = json.loads(run.metrics.read_text(encoding="utf-8"))["splits"]
    tables = {split: evaluate.read_predictions(run, split) for split in SPLITS}
    for split, metrics in evaluate.measure_tables(run, tables, 0).splits.items():
        for name, value in json.loads(json.dumps(asdict(metrics))).items():
            if not _alike(value, said[split].get(name)):
                yield f"metrics.json: {split} {name} is {said[split].get(name)}, recomputed {value}"


def _alike(a: Any, b: Any) -> bool:
    """The same, numbers to nine digits: another machine may differ in the last."""
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_alike, a, b))
    if isinstance(a, float) and isinstance(b, float | int):
        return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-9)
    return a == b


def _by_snapshot(run: RunDir, manifest: dict[str, Any]) -> Check:
    facts = manifest["evaluate_all"]
    models = manifest.get("train", {}).get("outputs", {}).values()
    for iteration, model in facts["models"].items():
        if model not in models:
            yield f"iteration {iteration}: measured from a model that this training did not leave"
    yield from _same(run.by_snapshot, facts["table"])


def _shown(run: RunDir, manifest: dict[str, Any]) -> Check:
    facts = manifest["evaluate"]
    for name, expected in facts["figures"].items():
        yield from _same(run.figures / name, expected)
    yield from _same(run.report, facts["report"])


# ---- many runs -------------------------------------------------------------------------------------------------


class Summary(NamedTuple):
    """A run in a line. The iteration reached of how many; the test figures, None when not evaluated."""

    run: str
    recipe: str
    state: str
    iteration: int
    max_iter: int
    evaluated: int | None
    mad_months: float | None
    ccc: float | None


DEPTH = 3
"""How many folders deep runs are looked for: runs/NAME, and runs/NAME/seed-1 of a repeat."""


def runs_in(folder: Path) -> list[Summary]:
    """The runs in a folder, by name; RunError when there is no such folder."""
    if not folder.is_dir():
        raise RunError(f"{folder}: no such folder of runs.")
    found = []
    for parent, folders, files in os.walk(folder):
        here = Path(parent)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if "recipe.yaml" in files and "manifest.json" in files:
            folders.clear()
            found.append(_summary(RunDir(here), str(here.relative_to(folder)) if here != folder else here.name))
        elif len(here.relative_to(folder).parts) >= DEPTH:
            folders.clear()
    return found


def _summary(run: RunDir, name: str) -> Summary:
    try:
        recipe = run.trained_recipe()
        manifest = run.manifest()
        state = train.state(run)
        iteration = max(int(manifest.get("train", {}).get("iteration", 0)), _last_of_curve(run))
    except (BonecaffeError, ValueError, TypeError, KeyError, AttributeError) as error:
        return Summary(name, "?", f"unreadable: {error}", 0, 0, None, None, None)
    try:
        predicted = manifest["predict"]
        if predicted["caffemodel_sha256"] not in manifest["train"]["outputs"].values():
            raise ValueError("of another training")
        if manifest["evaluate"]["predictions"] != predicted["predictions"]:
            raise ValueError("of other predictions")
        metrics = json.loads(run.metrics.read_text(encoding="utf-8"))
        test = metrics["splits"]["test"]
        figures = int(metrics["iteration"]), float(test["mad_months"]), float(test["ccc"])
    except (OSError, ValueError, KeyError, TypeError):
        figures = None, None, None
    return Summary(name, recipe.name, state, iteration, recipe.solver.max_iter, *figures)


def _last_of_curve(run: RunDir) -> int:
    try:
        last = run.curve.read_text(encoding="utf-8").splitlines()[-1]
        return int(last.split(",")[0])
    except (OSError, ValueError, IndexError):
        return 0
