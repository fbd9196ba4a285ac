"""The definition files of a run: train_val, solver, deploy and the mean image. Writes them and compares them.

A file that was edited by hand since bonecaffe wrote it is kept and reported.
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
    """The definition files as they will be: texts by path, the files edited by hand, and where the mean comes from."""

    texts: dict[Path, str]
    written: dict[Path, str]  # each text as the recipe gives it
    edited: list[Path]
    mean: dict[str, str]

    @property
    def generated(self) -> dict[str, str]:
        """The hash of each text as the recipe gives it, by name."""
        return {path.name: sha256(text) for path, text in self.written.items()}

    def by_hand(self) -> dict[str, dict[str, tuple[str, str]]]:
        """The files whose content is not the recipe's; for the solver, by field, the recipe's value and the file's.

        Comments, layout and ``solver_mode`` do not count.
        """
        found = {}
        for path in self.edited:
            expected, found_here = self.written[path], self.texts[path]
            fields = _unlike(expected, found_here) if path.stem == "solver" else {}
            if fields or (path.stem != "solver" and _bare(expected) != _bare(found_here)):
                found[path.name] = fields
        return found

    def inputs(self, prepared_key: str) -> dict[str, str]:
        """Hashes of what a training with these files depends on. Comments and ``solver_mode`` do not count."""
        bare = {path.stem: sha256(_bare(text)) for path, text in self.texts.items()}
        return {"prepare": prepared_key, **bare, "mean": sha256(repr(sorted(self.mean.items())))}


def intend(run: RunDir, recipe: Recipe) -> Definition:
    """The definition files that `write` would write with this recipe; writes nothing."""
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
        own = {sha256(text)}
        if defined is not None:
            own |= {defined.generated.get(path.name, ""), defined.intended.get(path.name, "")}
        if path.is_file() and sha256_file(path) not in own:
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
    """Definition files that are written, but not in place yet: temporary paths by name, and names edited by hand."""

    files: dict[str, Path]
    edited: list[str]


@contextlib.contextmanager
def staged(run: RunDir, recipe: Recipe) -> Iterator[Staging]:
    """Write the definition files and the mean under temporary names.

    They are moved into place and recorded if the block succeeds. The files that are about to be moved are recorded
    first: if the process is killed in between, they must not count as edited by hand.
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
    """Hashes of the two files that prediction needs, as they are in the run; empty for a missing file."""
    deploy = sha256(_bare(_text_of(run.deploy))) if run.deploy.is_file() else ""
    return {"deploy": deploy, "mean": sha256_file(run.mean_file) if run.mean_file.is_file() else ""}


def _text_of(path: Path) -> str:
    return read_bytes(path, "settings").decode("utf-8", "replace")


def _bare(text: str) -> str:
    """A prototxt without comments, blanks and solver_mode."""
    lines = (re.sub(r"\s+#.*$|^#.*$", "", line).strip() for line in text.splitlines())
    return "\n".join(line for line in lines if line and not line.startswith("solver_mode:"))


_FIELD = re.compile(r"""(\w+)\s*:\s*("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|[^\s#{}]+)""")


def _unlike(expected: str, found: str) -> dict[str, tuple[str, str]]:
    """The fields in which two solvers differ; numbers are compared as numbers."""
    first, second = _fields(expected), _fields(found)
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
    """Where the run's mean comes from: the recipe's setting, and the images or the file."""
    facts = {"mean": recipe.network.mean, "words": mean.words(recipe)}
    if recipe.network.mean == "dataset":
        prepared = run.read().prepare
        facts["prepare"] = prepared.key if prepared else ""
    elif given := mean.given_file(recipe):
        facts["given_sha256"] = "" if _has_copy(run, facts) else sha256_file(given) if given.is_file() else ""
    return facts


def _has_copy(run: RunDir, facts: dict[str, str]) -> bool:
    """Whether a run that holds a model also holds its copy of the given mean: the file outside then no longer matters.

    Before there is a model, a changed file is read again.
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
    """Write the run's mean image, but only when its source changed.

    Returns where it comes from, with its hash.
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
    """Whether the mean is unchanged; a given file that was not read, or is missing, counts as unchanged."""
    gone = facts.get("given_sha256") == ""
    return all(before.get(name) == value for name, value in facts.items() if not (gone and name == "given_sha256"))
