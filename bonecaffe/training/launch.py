"""What a training depends on: definition files, mean, weights, where it is computed; written, hashed, compared."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from pathlib import Path

from bonecaffe.caffe import caffemodel, gpus
from bonecaffe.errors import CaffeError, TrainError
from bonecaffe.files import sha256, sha256_file, write_text
from bonecaffe.network import mean, prototxt
from bonecaffe.recipe import Recipe
from bonecaffe.run import RunDir
from bonecaffe.training import preflight

STOCK_SHA1 = "4c8d77deb20ea792f84eb5e6d0a11ca0a8660a46"
"""BVLC's bvlc_reference_caffenet.caffemodel, the paper's ImageNet caffemodel."""


# ---- definition files ------------------------------------------------------------------------------------------


def _texts(run: RunDir, recipe: Recipe) -> dict[Path, str]:
    """What the three files shall hold: the recipe's, or an edit by hand that was made since we wrote them."""
    prefix = f"{run.snapshots.name}/{recipe.solver.snapshot_prefix}"
    return {
        run.train_val: prototxt.train_val(recipe),
        run.solver: prototxt.solver(recipe, prefix),
        run.deploy: prototxt.deploy(recipe),
    }


def _edited(run: RunDir, texts: dict[Path, str]) -> list[Path]:
    written = run.manifest().get("prototxt", {})
    return [
        path
        for path, text in texts.items()
        if path.is_file() and sha256_file(path) not in (written.get(path.name), sha256(text))
    ]


def write_prototxts(run: RunDir, recipe: Recipe) -> list[str]:
    """Write the three files of a run, and its mean image; a file edited by hand is kept. Return the names kept."""
    texts = _texts(run, recipe)
    kept = _edited(run, texts)
    before = run.manifest().get("prototxt", {}).get("mean", {})
    facts = _write_mean(run, recipe, before)
    for path, text in texts.items():
        if path not in kept:
            write_text(path, text)
    run.record("prototxt", {**{path.name: sha256(text) for path, text in texts.items()}, "mean": facts})
    return [path.name for path in kept]


def _mean_facts(run: RunDir, recipe: Recipe) -> dict[str, str]:
    """What the run's mean is made of: the recipe's words for it, the images or the file it comes from."""
    facts = {"mean": recipe.network.mean, "words": mean.words(recipe)}
    if recipe.network.mean == "dataset":
        facts["prepare"] = prepared_key(run)
    elif given := mean.given_file(recipe):
        facts["given_sha256"] = sha256_file(given) if given.is_file() else ""
    return facts


def _write_mean(run: RunDir, recipe: Recipe, before: dict[str, str]) -> dict[str, str]:
    """Have the run's mean image in place, made anew only when what it is made of changed."""
    facts = _mean_facts(run, recipe)
    if not mean.needs_file(recipe):
        return facts
    if not (
        run.mean_file.is_file() and _same_mean(before, facts) and before.get("sha256") == sha256_file(run.mean_file)
    ):
        mean.write(run, recipe)
        return {**facts, "sha256": sha256_file(run.mean_file)}
    return before


def _same_mean(before: dict[str, str], facts: dict[str, str]) -> bool:
    """Whether the mean is what it was; a given file that is gone since is taken for unchanged: the run has its copy."""
    gone = facts.get("given_sha256") == ""
    return all(before.get(name) == value for name, value in facts.items() if not (gone and name == "given_sha256"))


def prepared_key(run: RunDir) -> str:
    """What the run was prepared from, as one hash; empty when it was not."""
    return run.manifest().get("prepare", {}).get("key", "")


def intended(run: RunDir, recipe: Recipe) -> dict[str, str]:
    """Hashes of what a training with this recipe would depend on, before anything is written.

    Comments don't count, nor does where it is computed: Caffe goes on from a GPU's snapshot on the CPU.
    """
    texts = _texts(run, recipe)
    for path in _edited(run, texts):
        texts[path] = path.read_text(encoding="utf-8", errors="replace")
    before, facts = run.manifest().get("prototxt", {}).get("mean", {}), _mean_facts(run, recipe)
    if before and _same_mean(before, facts):
        facts = {name: before[name] for name in facts}
    said = {path.stem: sha256(_bare(text)) for path, text in texts.items()}
    return {"prepare": prepared_key(run), **said, "mean": sha256(repr(sorted(facts.items())))}


def files_in_use(run: RunDir) -> dict[str, str]:
    """Hashes of the two files that prediction will need again, as they lie in the run."""
    deploy = sha256(_bare(run.deploy.read_text(encoding="utf-8", errors="replace"))) if run.deploy.is_file() else ""
    return {"deploy": deploy, "mean": sha256_file(run.mean_file) if run.mean_file.is_file() else ""}


def _bare(text: str) -> str:
    """A prototxt without comments, blanks and solver_mode."""
    lines = (re.sub(r"\s+#.*$|^#.*$", "", line).strip() for line in text.splitlines())
    return "\n".join(line for line in lines if line and not line.startswith("solver_mode:"))


# ---- where and from what ---------------------------------------------------------------------------------------


def compute_with(recipe: Recipe, gpu: str | None, cpu: bool) -> tuple[Recipe, list[str]]:
    """The recipe with the solver mode asked for, and Caffe's ``--gpu`` argument.

    Raises CaffeError when a GPU is wanted of a build without one.
    """
    if cpu and gpu is not None:
        raise TrainError("--cpu and --gpu exclude each other.")
    if cpu:
        recipe = recipe.with_values({"solver.solver_mode": "CPU"}, "train --cpu: computed without a GPU")
    elif gpu is not None:
        recipe = recipe.with_values({"solver.solver_mode": "GPU"}, f"train --gpu {gpu}")
    if recipe.solver.solver_mode == "CPU":
        return recipe, []
    gpu = gpu if gpu is not None else "0"
    if problem := gpus.problem(gpu):
        raise CaffeError(problem)
    return recipe, ["--gpu", gpu]


def declare_weights(recipe: Recipe, given: Path) -> Recipe:
    """The recipe saying which weights it starts from: the paper's ImageNet weights by their sha1, or others."""
    try:
        with open(given, "rb") as file:
            stock = hashlib.file_digest(file, "sha1").hexdigest() == STOCK_SHA1
    except OSError as error:
        raise TrainError(f"{given}: {error.strerror}: no weights to start from.") from error
    if stock:
        return recipe.with_values(
            {"training.initial_weights": "imagenet"}, f"train --weights {given.name}: BVLC's file"
        )
    reason = f"train --weights {given.name}: not BVLC's ImageNet weights, by its sha1"
    return recipe.with_values({"training.initial_weights": "given"}, reason)


def initial_weights(run: RunDir, recipe: Recipe, given: Path | None) -> tuple[list[str], str]:
    """Write init.caffemodel when weights are given; Caffe's ``--weights`` argument and what was done."""
    if given is None:
        if recipe.training.initial_weights != "none":
            raise TrainError(
                f"the recipe starts from pretrained weights ({recipe.training.initial_weights}; paper II.3), and no "
                "--weights were given. Fetch the ImageNet weights with scripts/fetch_caffenet.py and give the file, "
                "or use a recipe with training.initial_weights: none."
            )
        return [], "from the fillers, without pretrained weights"
    net = recipe.network
    said = caffemodel.initial_weights(given, run.init_weights, net.fc8_name, (net.fc8_outputs, net.fc_outputs[1]))
    return ["--weights", run.init_weights.name], said


def plan(start: list[str], gpu: list[str]) -> preflight.Plan:
    """What preflight is to look at, from Caffe's arguments."""
    given = {option.removeprefix("--"): value for option, value in zip(*[iter([*start, *gpu])] * 2, strict=True)}
    paths = {name: Path(given[name]) for name in ("weights", "snapshot") if name in given}
    return preflight.Plan(gpu=given.get("gpu"), **paths)


def schedule(run: RunDir, gpu: list[str]) -> preflight.Schedule:
    """The course of the training; with several GPUs each of them takes a whole batch."""
    said = preflight.schedule(run)
    cards = gpu[1] if gpu else "0"
    known = Path("/proc/driver/nvidia/gpus")
    count = len(list(known.iterdir())) if cards == "all" and known.is_dir() else len(cards.split(","))
    return replace(said, images=said.images * max(1, count))
