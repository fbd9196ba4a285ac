#!/usr/bin/env python3
"""Change the pure modules, one place at a time, and check whether their tests notice: `make mutants [ONLY=crop]`.

Cosmic Ray makes the changes, in one copy of the working tree per core. Each mutant's tests run in a fork of a process
that has already imported pytest and the libraries. That takes a third of the time of a new process. mutants.toml holds
the modules, their tests, the kinds of change, and the survivors that no test can kill, each with the reason. Exits 1 if
less than 90 % of a module's mutants are killed, or if one survives without a reason.
"""

from __future__ import annotations

import ast
import gc
import importlib
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

from cosmic_ray.commands import init
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator
from cosmic_ray.work_db import use_db
from cosmic_ray.work_item import MutationSpec

REPOSITORY = Path(__file__).resolve().parent.parent
KILLED_AT_LEAST = 0.9
PYTEST = [
    *("-x", "-q", "--hypothesis-profile=mutants", "-p", "_hypothesis_pytestplugin"),
    *("-p", "no:cacheprovider", "-p", "no:unraisableexception", "-p", "no:threadexception"),
]
WARM = """pytest _pytest.pytester _hypothesis_pytestplugin hypothesis.strategies hypothesis.internal.conjecture.engine
    numpy cv2 pandas scipy.stats pydantic google.protobuf.text_format yaml"""
"""What every test needs, or its fixtures."""


@dataclass
class Result:
    """The outcome for the mutants of a module. A survivor is its place and the line before and after."""

    module: str
    mutants: int = 0
    killed: int = 0
    timeouts: int = 0
    survivors: list[tuple[int, str, str]] = field(default_factory=list)

    def add(self, found: str, line: int, was: str, becomes: str) -> None:
        """Count a mutant by the result of its tests."""
        if found == "impossible":
            return
        self.mutants += 1
        self.killed += found != "passed"
        self.timeouts += found == "timeout"
        if found == "passed":
            self.survivors.append((line, was, becomes))


def copy_of_the_tree(target: Path) -> Path:
    """The tracked files, and the untracked ones that git does not ignore."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listed, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout.split("\0"):
        if name and (REPOSITORY / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, target / name)
    return target


def annotation_spans(source: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Where annotations begin and end, as (line, column): `int | None` computes nothing."""
    found = []
    for node in ast.walk(ast.parse(source)):
        for name in ("annotation", "returns"):
            note = getattr(node, name, None)
            if isinstance(note, ast.expr):
                assert note.end_lineno is not None and note.end_col_offset is not None
                found.append(((note.lineno, note.col_offset), (note.end_lineno, note.end_col_offset)))
    return found


def chosen(module: str, settings: dict[str, Any], session: Path) -> list[MutationSpec]:
    """The mutants of a module: of the configured operators and definitions, outside annotations."""
    operators = re.compile("core/(" + "|".join(settings["operators"]) + ")$")
    only = settings["modules"][module].get("only")
    notes = annotation_spans((REPOSITORY / module).read_text(encoding="utf-8"))
    with use_db(str(session)) as database:
        init([Path(module)], database, {})
        found = [item.mutations[0] for item in database.work_items]
    return [
        spec
        for spec in found
        if operators.match(spec.operator_name)
        and (only is None or spec.definition_name in only)
        and not any(begin <= tuple(spec.start_pos) < end for begin, end in notes)
    ]


# ---- in a worker, whose working folder is its own copy of the tree -------------------------------------------------


def enter(trees: Queue[str]) -> None:
    """Make a process ready to run mutants."""
    tree = trees.get()
    os.chdir(tree)
    sys.path.insert(0, tree)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    for name in WARM.split():
        importlib.import_module(name)
    from hypothesis import Phase, settings

    once_is_enough = (Phase.explicit, Phase.generate)  # no search for a smaller example of a failure
    settings.register_profile("mutants", settings.get_profile("ci"), phases=once_is_enough)
    gc.collect()
    gc.freeze()


def outcome(tests: list[str], timeout_s: int) -> str:
    """Run tests on the tree as it is now: ``passed``, ``failed`` or ``timeout``."""
    child = os.fork()
    if child == 0:
        signal.alarm(timeout_s)
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nowhere, stream)
        status = 99
        try:
            import pytest

            status = int(pytest.main([*PYTEST, *tests]))
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == -signal.SIGALRM:
        return "timeout"
    return "passed" if status == 0 else "failed"


_warmed: set[str] = set()


def try_mutant(spec: MutationSpec | None, module: str, tests: list[str], timeout_s: int) -> tuple[str, str, str]:
    """What the tests find of a mutant, and its line before and after; without a mutant, of the module as it is.

    ``impossible``: Cosmic Ray cannot make the change.
    """
    path = Path(module)
    source = path.read_text(encoding="utf-8")
    tests = [*tests, module]
    unchanged = ""
    if spec is None or module not in _warmed:
        sys.dont_write_bytecode = False  # compiles unchanged modules only once
        unchanged = outcome(tests, timeout_s)
        sys.dont_write_bytecode = True
        _warmed.add(module)
    if spec is None:
        return unchanged, "", ""
    for compiled in path.parent.glob(f"__pycache__/{path.stem}.*"):  # Python could use it for the mutant
        compiled.unlink()
    try:
        mutant = mutate_code(source, get_operator(spec.operator_name)(**spec.operator_args), spec.occurrence)
    except AttributeError:  # Cosmic Ray 8.7 fails at `except (pandas.errors.ParserError, ...)`
        return "impossible", "", ""
    try:
        path.write_text(mutant, encoding="utf-8")
        found = outcome(tests, timeout_s)
    finally:
        path.write_text(source, encoding="utf-8")
    pairs = zip(source.splitlines(), mutant.splitlines(), strict=False)
    was, becomes = next(((a.strip(), b.strip()) for a, b in pairs if a != b), ("", "its last lines are gone"))
    return found, was, becomes


# ---- the whole -----------------------------------------------------------------------------------------------------


def report(results: list[Result], equivalent: list[dict[str, str]]) -> int:
    """Print the table and the survivors; 1 when too many survive, or one without a reason."""
    unused = {number: entry for number, entry in enumerate(equivalent)}
    failed = False
    print(f"{'module':<40} {'mutants':>8} {'killed':>8} {'share':>7} {'timeouts':>9} {'survivors':>10}")
    for of in [*results, _total(results)]:
        share = of.killed / max(1, of.mutants)
        failed |= share < KILLED_AT_LEAST
        counts = f"{of.mutants:>8} {of.killed:>8} {share:>7.1%} {of.timeouts:>9} {len(of.survivors):>10}"
        print(f"{of.module:<40} {counts}")
    for of in results:
        for line, was, becomes in sorted(of.survivors):
            found = next((n for n, entry in enumerate(equivalent) if _explains(entry, of.module, was, becomes)), None)
            why = "NO REASON GIVEN"
            if found is None:
                failed = True
            else:
                unused.pop(found, None)
                why = equivalent[found]["why"]
            print(f"\n{of.module}:{line}\n  - {was}\n  + {becomes}\n  {why}")
    modules = {of.module for of in results}
    for entry in unused.values():
        if entry["module"] in modules:
            print(f"\nmutants.toml explains a survivor that does not exist: {entry['module']}: {entry['becomes']}")
    return int(failed)


def _explains(entry: dict[str, str], module: str, was: str, becomes: str) -> bool:
    """Whether a reason in mutants.toml, for a line or a part of one, is about this survivor."""
    return entry["module"] == module and was.replace(entry["was"], entry["becomes"]) == becomes


def _total(results: list[Result]) -> Result:
    return Result(
        "all",
        sum(of.mutants for of in results),
        sum(of.killed for of in results),
        sum(of.timeouts for of in results),
        [survivor for of in results for survivor in of.survivors],
    )


def main(only: list[str]) -> int:
    """Run the modules whose path contains one of the words in ``only``; all if it is empty."""
    settings = tomllib.loads((REPOSITORY / "scripts" / "mutants.toml").read_text(encoding="utf-8"))
    modules = {m: of for m, of in settings["modules"].items() if not only or any(word in m for word in only)}
    results = {module: Result(module) for module in modules}
    cores = len(os.sched_getaffinity(0))
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        trees = context.Queue()
        for number in range(cores):
            trees.put(str(copy_of_the_tree(Path(folder) / str(number))))
        os.chdir(REPOSITORY)
        with ProcessPoolExecutor(cores, context, enter, (trees,)) as pool:

            def start(spec: MutationSpec | None, module: str) -> Future[tuple[str, str, str]]:
                return pool.submit(try_mutant, spec, module, modules[module]["tests"], settings["timeout_s"])

            for module, first in [(module, start(None, module)) for module in modules]:
                if first.result()[0] != "passed":
                    raise SystemExit(f"mutants: the tests of {module} fail without any change")
            session = Path(folder) / "session.sqlite"
            begun = [(m, spec, start(spec, m)) for m in modules for spec in chosen(m, settings, session)]
            for number, (module, spec, future) in enumerate(begun, start=1):
                found, was, becomes = future.result()
                results[module].add(found, spec.start_pos[0], was, becomes)
                if number % 50 == 0:
                    print(f"mutants: {number} of {len(begun)}", file=sys.stderr, flush=True)
    return report(list(results.values()), settings.get("equivalent", []))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
