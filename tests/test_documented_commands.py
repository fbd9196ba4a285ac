"""Every command of the first documents runs: in their order, on small phantoms, with the real Caffe in CPU mode.

Only what must be small is replaced (`SMALL`). What cannot run here is listed with the reason (`NOT_RUN`). A line of a
block that is neither a command nor listed fails.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import REPOSITORY, tiny
from foreign import voc

from bonecaffe.hands.phantom import dataset
from bonecaffe.hands.reference_points import read_points

DOCUMENTS = ("README.md", "docs/guide/own-hands.md", "docs/guide/points.md")
NOT_RUN = {
    "make demo": "builds Caffe and takes minutes; it is the pipeline that is run here by its steps",
    "make test": "this test is a part of it",
    "make setup": "installs packages; tests/test_setup.py runs its parts",
    "python scripts/fetch_caffenet.py": "downloads 244 MB",
    "podman build": "scripts/try_container.sh does it, where podman is",
    "alias inside": "as podman build",
    "mkdir -p runs && inside": "as podman build",
    "inside bonecaffe": "as podman build",
    "bonecaffe train-locator": "takes minutes; tests/locate/test_learning.py runs it",
}
"""The beginning of each command that is not run, and the reason."""
NOT_COMMANDS = ("data/images/1001.png ", "data/ages.csv ")
"""The beginning of lines in blocks that show files."""
SMALL = {
    "RECIPE=demo": "RECIPE=small.yaml",
    "TRAIN=30 TEST=15": "TRAIN=8 TEST=4",
    "ORIGIN=boxes": "ORIGIN=boxes RECIPE=small.yaml",
    "~/.cache/bonecaffe/bvlc_reference_caffenet.caffemodel": "weights.caffemodel",
    "path/to/their/xml": "boxes",
    "repeat demo": "repeat small.yaml",
    "--folds 5": "--folds 2",
}
"""Parts of commands, and what they are replaced by here."""
BEFORE = {
    ("README.md", "bonecaffe points import"): "rm data/points*",
    ("README.md", "make train RUN=runs/paper"): "cp runs/mine/snapshots/*_iter_12.caffemodel weights.caffemodel",
    ("docs/guide/own-hands.md", "make locate"): "rm data/points*",
    ("docs/guide/own-hands.md", "make prepare"): "rm -r runs/mine",
    ("docs/guide/points.md", "make annotate"): "rm data/points*",
    ("docs/guide/points.md", "make locate"): "rm -f data/points*",
    ("docs/guide/points.md", "bonecaffe locate"): f"cp -r '{REPOSITORY}/bonecaffe/locate/model' runs/locator",
    ("docs/guide/points.md", "bonecaffe points import"): "mv data/points2.csv .; rm data/points*",
    ("docs/guide/points.md", "bonecaffe points compare"): "cp marked.csv again.csv",
}
"""What a user has done before a command: chosen another way to get the points, or stored a file of that name."""
PROGRAMS = ("make", "bonecaffe", "source", "python")


def lines_of(document: str) -> Iterator[str]:
    """The lines of a document's indented and fenced blocks, joined after a backslash, without comments."""
    text = re.sub(r"\\\n\s*", "", (REPOSITORY / document).read_text(encoding="utf-8"))
    fenced = after_blank = in_block = False
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif fenced or (line.startswith("    ") and (after_blank or in_block)):
            in_block = True
            if command := re.sub(r"\s+# .*", "", line.strip()):
                yield command
        else:
            in_block = in_block and not line.strip()
        after_blank = not line.strip()


def replaced(command: str) -> str:
    """The command as it is run here."""
    for old, new in SMALL.items():
        command = command.replace(old, new)
    return command


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """A folder as after ``make setup``, with twelve phantoms as the user's own hands, and boxes around their bones."""
    folder = tmp_path_factory.mktemp("documented")
    for name, text in (
        ("scripts/setup.sh", "#!/bin/sh\n"),
        (".venv/bin/activate", f"PATH='{folder}/.venv/bin':$PATH\n"),
        (".venv/bin/bonecaffe", f'#!/bin/sh\nexec "{sys.executable}" -m bonecaffe "$@"\n'),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    shutil.copy(REPOSITORY / "Makefile", folder)
    dataset.write(folder / "data", 12, seed=5, size=(400, 520))
    (folder / "data" / "phantoms.json").unlink()
    (folder / "data" / "points.csv").rename(folder / "marked.csv")
    dataset.write(folder / "other", 1, seed=9, size=(400, 520))
    shutil.copy(next((folder / "other" / "images").iterdir()), folder / "hand.png")
    (folder / "boxes").mkdir()
    for hand in read_points(folder / "marked.csv").values():
        (folder / "boxes" / f"{hand.id}.xml").write_text(voc(hand))
    (folder / "small.yaml").write_text(tiny().to_yaml())
    return folder


def run(command: str, folder: Path) -> str:
    """Run a command of a document in an activated environment; its output. The page of `annotate` is left by Ctrl-C."""
    environment = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "BONECAFFE_CACHE") if name in os.environ}
    process = subprocess.Popen(
        ["bash", "-c", f"source .venv/bin/activate; {command}"],
        cwd=folder,
        env={**environment, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    is_page = "annotate" in command.split()[:2]
    output = ""
    for line in process.stdout:
        output += line
        if is_page and "Press Ctrl-C" in line:
            os.killpg(process.pid, signal.SIGINT)
    code = process.wait()
    assert code == 0 or (is_page and "Open http://" in output), f"{command}: exit {code}\n{output}"
    return output


def test_documented_commands_run(clone):
    """In the order of the documents, each on the results of those before it."""
    outputs: dict[str, str] = {}
    done = set()
    for document in DOCUMENTS:
        for command in lines_of(document):
            if command.startswith((*NOT_COMMANDS, *NOT_RUN)):
                continue
            assert command.split()[0] in PROGRAMS, f"{document}: not a command, and not listed: {command}"
            for (where, start), first in BEFORE.items():
                if where == document and command.startswith(start) and (where, start) not in done:
                    done.add((where, start))
                    run(first, clone)
            outputs[f"{document}: {command}"] = run(replaced(command), clone)
    assert done == set(BEFORE)
    shown = "\n".join(outputs.values())
    for promised in ("12 confident", "8 hands for training, 4 for test", "months per percent of the palm"):
        assert promised in shown, promised
    for file in ("runs/mine/report.html", "runs/paper/report.html", "runs/folds/repeat.csv", "points.json"):
        assert (clone / file).is_file(), file
    months = [outputs[key] for key in outputs if "bonecaffe predict" in key]
    assert len(months) == 2 and all(re.search(r"hand\.png\t\d+\.\d months", each) for each in months)


def test_failing_command_is_seen(clone):
    """The exit status of a command counts, also of one that make runs."""
    for command in ("bonecaffe runs --jsn", "make evaluate RUN=runs/nowhere"):
        with pytest.raises(AssertionError, match="exit [12]"):
            run(command, clone)


def test_lists_name_what_is_in_the_documents():
    """A replacement or an exception that no document needs any more is removed."""
    commands = [command for document in DOCUMENTS for command in lines_of(document)]
    assert len(commands) > 30
    for start in (*NOT_RUN, *NOT_COMMANDS):
        assert any(command.startswith(start) for command in commands), start
    for part in SMALL:
        assert any(part in command for command in commands), part


def test_lines_of_blocks_are_found(tmp_path, monkeypatch):
    """Indented and fenced, below an entry of a list too; not the continuation of a paragraph."""
    (tmp_path / "page.md").write_text(
        "1. Do.\n\n       make a  # so\n\n   Then\n      prose\n\n    bonecaffe b \\\n      --c\n\n```sh\nmake d\n```\n"
    )
    monkeypatch.setitem(globals(), "REPOSITORY", tmp_path)
    assert list(lines_of("page.md")) == ["make a", "bonecaffe b --c", "make d"]
