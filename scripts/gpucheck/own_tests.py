"""Part 2: Caffe's own C++ tests, those of the GPU among them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Dict, List

from gpucheck import programs
from gpucheck.check import Check
from gpucheck.outcome import Failed, Result, Skip
from gpucheck.programs import Running

_DATA = Path("src") / "caffe" / "test" / "test_data"
"""The tests name their data from the source folder."""


def run(check: Check) -> Result:
    """Run test.testbin: --tests, or the one in the build tree next to this Caffe."""
    program = check.options.tests or _beside(check)
    if program is None:
        raise Skip("there is no test.testbin. `make caffe-check` builds it; --tests gives the path of one")
    if not program.is_file():
        raise Failed(f"{program.name}: no such file; --tests takes the path of test.testbin")
    folder = next((folder for folder in _sources(program) if (folder / _DATA).is_dir()), None)
    if folder is None:
        raise Failed(f"{program.name}: its source folder, with {_DATA}, is not near it")
    arguments = ["--gtest_color=no", "--gtest_shuffle=0"]
    if not check.gpu:
        arguments.append("--gtest_filter=-*GPU*")
    else:
        arguments.append(str(check.options.gpu))  # test_caffe_main.cpp takes the GPU's number
    seen = 0

    def show(line: str) -> None:
        nonlocal seen
        if line.startswith(("[       OK ]", "[  FAILED  ]")):
            seen += 1
            check.progress(f"  {seen} tests")

    command = [str(program), *arguments]
    log, limit = check.work / "own-tests.log", check.options.limit_s
    ran = Running(command, log, limit, folder, programs.environment(), show, any_status=True).finish()
    passed = re.search(r"^\[  PASSED  \] (\d+) test", ran.output, re.MULTILINE)
    total = re.search(r"^\[==========\] (\d+) tests? from \d+ test (?:case|suite)s? ran", ran.output, re.MULTILINE)
    names: List[str] = sorted(set(re.findall(r"^\[  FAILED  \] (\S+?),? (?:\(|where)", ran.output, re.MULTILINE)))
    figures: Dict[str, Any] = {
        "passed": int(passed.group(1)) if passed else 0,
        "ran": int(total.group(1)) if total else None,
        "failed": names[:50],
    }
    if total is None:
        raise Failed(f"the tests did not end: {programs.last_words(ran.output)}", figures)
    if names or figures["passed"] != figures["ran"]:
        raise Failed(f"{figures['ran'] - figures['passed']} of {figures['ran']} fail: {', '.join(names[:3])}", figures)
    return Result("ok", f"{figures['passed']} of {figures['ran']} pass", figures)


def _beside(check: Check) -> Path | None:
    root = check.caffe.root
    if root is None:
        return None
    places = (root.with_name(root.name + ".tree") / "build", root / "build")
    return next(
        (place / "test" / "test.testbin" for place in places if (place / "test" / "test.testbin").is_file()), None
    )


def _sources(program: Path) -> List[Path]:
    parents = list(program.absolute().parents)[:4]
    return [*parents, *(parent / "source" for parent in parents)]
