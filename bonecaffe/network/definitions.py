"""The definition files of a run: train_val, solver, deploy and the mean image; written, compared, bound to a model.

A file that was edited by hand since bonecaffe wrote it is kept and named.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bonecaffe.caffe import environment
from bonecaffe.files import fill, read_bytes, replacing, sha256, sha256_file
from bonecaffe.network import mean, prototxt
from bonecaffe.recipe import Recipe
from bonecaffe.records import Defined, outputs_of
from bonecaffe.run import RunDir


class Definition(NamedTuple):
    """What the definition files of a run will be: texts by path, those edited by hand, and what the mean is made of."""

    texts: dict[Path, str]
    written: dict[Path, str]  # each text as the recipe has it
    edited: list[Path]
    mean: dict[str, str]

    @property
    def generated(self) -> dict[str, str]:
        """The hash of each text as the recipe has it, by name."""
        return {path.name: sha256(text) for path, text in self.written.items()}

    def by_hand(self) -> dict[str, dict[str, tuple[str, str]]]:
        """The files whose content is not the recipe's; of the solver, by field, what the recipe gives and what is.

        Comments, layout and the place of computing do not count.
        """
        found = {}
        for path in self.edited:
            ours, here = self.written[path], self.texts[path]
            fields = _unlike(ours, here) if path.stem == "solver" else {}
            if fields or (path.stem != "solver" and _bare(ours) != _bare(here)):
                found[path.name] = fields
        return found

    def inputs(self, prepared_key: str) -> dict[str, str]:
        """Hashes of what a training with these files depends on. Comments and the place of computing don't count."""
        bare = {path.stem: sha256(_bare(text)) for path, text in self.texts.items()}
        return {"prepare": prepared_key, **bare, "mean": sha256(repr(sorted(self.mean.items())))}


def intend(run: RunDir, recipe: Recipe) -> Definition:
    """What `write` would make of a run's definition files with this recipe; writes nothing."""
    prefix = f"{run.snapshots.name}/{recipe.solver.snapshot_prefix}"
    texts = {
        run.train_val: prototxt.train_val(recipe),
        run.solver: prototxt.solver(recipe, prefix),
        run.deploy: prototxt.deploy(recipe),
    }
    written = dict(texts)
    defined = run.read().prototxt
    edited = []
    for path, text in texts.items():
        ours = {sha256(text)}
        if defined is not None:
            ours |= {defined.generated.get(path.name, ""), defined.intended.get(path.name, "")}
        if path.is_file() and sha256_file(path) not in ours:
            edited.append(path)
            texts[path] = _text_of(path)
    facts = _mean_facts(run, recipe)
    if defined is not None and _same_mean(defined.mean, facts):
        facts = {name: defined.mean[name] for name in facts}
    return Definition(texts, written, edited, facts)


def write(run: RunDir, recipe: Recipe) -> list[str]:
    """Write the definition files of a run and its mean image; a file edited by hand is kept. Return the names kept."""
    with staged(run, recipe) as staging:
        pass
    return staging.edited


class Staging(NamedTuple):
    """Definition files that are written, but not in place yet: their temporary paths, by name; names edited by hand."""

    files: dict[str, Path]
    edited: list[str]


@contextlib.contextmanager
def staged(run: RunDir, recipe: Recipe) -> Iterator[Staging]:
    """Write the definition files and the mean beside their places.

    They are moved there, and recorded, when the block ends well. What is about to be moved is on record before: killed
    in between, a file of ours would be taken for one that was edited by hand.
    """
    plan = intend(run, recipe)
    with contextlib.ExitStack() as stack:
        files = {}
        for path, text in plan.texts.items():
            if path not in plan.edited:
                files[path.name] = temporary = stack.enter_context(replacing(path))
                fill(temporary, [text.encode("utf-8")])
        facts = _stage_mean(run, recipe, plan.mean, files, stack)
        yield Staging(files, [path.name for path in plan.edited])
        if files:
            _record_intended(run, plan.generated)
    run.record(
        Defined(
            inputs={"recipe": sha256(recipe.to_yaml())},
            **outputs_of(run.path, [*plan.texts, run.mean_file] if mean.needs_file(recipe) else plan.texts),
            by=environment.describe(),
            generated=plan.generated,
            mean=facts,
        )
    )


def _record_intended(run: RunDir, generated: dict[str, str]) -> None:
    before = run.read().prototxt
    if before is None:
        before = Defined(inputs={}, outputs={}, by=environment.describe(), generated={}, mean={})
    run.record(before.model_copy(update={"intended": generated}))


def files_in_use(run: RunDir) -> dict[str, str]:
    """Hashes of the two files that prediction needs, as they are in the run; empty for one that is missing."""
    deploy = sha256(_bare(_text_of(run.deploy))) if run.deploy.is_file() else ""
    return {"deploy": deploy, "mean": sha256_file(run.mean_file) if run.mean_file.is_file() else ""}


def _text_of(path: Path) -> str:
    return read_bytes(path, "settings").decode("utf-8", "replace")


def _bare(text: str) -> str:
    """A prototxt without comments, blanks and solver_mode."""
    lines = (re.sub(r"\s+#.*$|^#.*$", "", line).strip() for line in text.splitlines())
    return "\n".join(line for line in lines if line and not line.startswith("solver_mode:"))


_FIELD = re.compile(r"""(\w+)\s*:\s*("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|[^\s#{}]+)""")


def _unlike(ours: str, here: str) -> dict[str, tuple[str, str]]:
    """The fields in which two solvers differ; numbers are compared as numbers."""
    first, second = _fields(ours), _fields(here)
    names = [name for name in {**first, **second} if first.get(name) != second.get(name)]
    return {name: (first.get(name, "not set"), second.get(name, "not set")) for name in names}


def _fields(text: str) -> dict[str, str]:
    found: dict[str, list[str]] = {}
    for name, value in _FIELD.findall(_bare(text)):
        try:
            shown = f"{float(value):.12g}"
        except ValueError:
            shown = value.strip("\"'")
        found.setdefault(name, []).append(shown)
    return {name: ", ".join(values) for name, values in found.items()}


# ---- the mean ----------------------------------------------------------------------------------------------------


def _mean_facts(run: RunDir, recipe: Recipe) -> dict[str, str]:
    """What the run's mean is made of: the recipe's words for it, the images or the file it comes from."""
    facts = {"mean": recipe.network.mean, "words": mean.words(recipe)}
    if recipe.network.mean == "dataset":
        prepared = run.read().prepare
        facts["prepare"] = prepared.key if prepared else ""
    elif given := mean.given_file(recipe):
        facts["given_sha256"] = "" if _has_copy(run, facts) else sha256_file(given) if given.is_file() else ""
    return facts


def _has_copy(run: RunDir, facts: dict[str, str]) -> bool:
    """Whether a run that holds a model holds its copy of the given mean, too: the file outside no longer matters then.

    Before there is a model, a file that changed is taken up.
    """
    defined = run.read().prototxt
    if defined is None or not run.holds_model():
        return False
    if any(defined.mean.get(name) != value for name, value in facts.items()):
        return False
    return run.mean_file.is_file() and sha256_file(run.mean_file) == defined.mean.get("sha256")


def _stage_mean(
    run: RunDir, recipe: Recipe, facts: dict[str, str], files: dict[str, Path], stack: contextlib.ExitStack
) -> dict[str, str]:
    """Have the run's mean image, made again only when what it is made of changed.

    Returns what it is made of, with its hash.
    """
    if not mean.needs_file(recipe):
        return facts
    defined = run.read().prototxt
    before = defined.mean if defined else {}
    if run.mean_file.is_file() and _same_mean(before, facts) and before.get("sha256") == sha256_file(run.mean_file):
        return before
    files[run.mean_file.name] = temporary = stack.enter_context(replacing(run.mean_file))
    mean.write(run, recipe, temporary)
    return {**facts, "sha256": sha256_file(temporary)}


def _same_mean(before: dict[str, str], facts: dict[str, str]) -> bool:
    """Whether the mean is what it was; a given file that is not looked at, or gone, is taken for unchanged."""
    gone = facts.get("given_sha256") == ""
    return all(before.get(name) == value for name, value in facts.items() if not (gone and name == "given_sha256"))
