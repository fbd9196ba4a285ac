"""What the documents name exists: links, anchors, files, commands, options, targets, error messages."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import pytest
from conftest import REPOSITORY

from bonecaffe.cli import main

DOCUMENTS = [
    *sorted(REPOSITORY.glob("*.md")),
    REPOSITORY / "data" / "README.md",
    *sorted((REPOSITORY / "docs").rglob("*.md")),
]
CURRENT = [path for path in DOCUMENTS if path.name != "CHANGELOG.md"]  # it names what used to exist
MAKEFILE = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
OF_OTHERS = {  # options that the documents name, of programs other than bonecaffe
    *("--solver", "--weights", "--snapshot", "--gpu"),  # caffe train
    *("--no-install-recommends", "--nthreads", "--upgrade", "--constraint"),  # apt-get, dask worker, pip
    *("--times", "--sex"),  # scripts/simulate_statistics.py
    "--url",  # scripts/fetch_caffenet.py
    *("--rm", "--user", "--userns", "--build-arg", "--device", "--gpus", "--network"),  # podman, docker
    *("--data", "--torch-python", "--out"),  # scripts/gpu_check.py
}
OF_CAFFE = {"all", "runtest"}  # targets of Caffe's own Makefile, which the paper names


def name_of(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


def without_code(text: str) -> str:
    """Markdown without fenced blocks and code spans, whose brackets are not links."""
    return re.sub(r"`[^`]*`", "", re.sub(r"(?ms)^ *```.*?^ *```", "", text))


def anchors_of(path: Path) -> set[str]:
    """The anchors that GitHub gives to a document's headings."""
    found: set[str] = set()
    text = re.sub(r"(?ms)^ *```.*?^ *```", "", path.read_text(encoding="utf-8"))
    for heading in re.findall(r"(?m)^#+ +(.+?) *$", text):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        number = sum(each == slug or re.fullmatch(rf"{re.escape(slug)}-\d+", each) is not None for each in found)
        found.add(f"{slug}-{number}" if number else slug)
    return found


def flaws_of_links(document: Path) -> list[str]:
    """Broken relative links of a document, and links without a text."""
    flaws = []
    for label, target in re.findall(r"\[([^\]]*)\]\(([^)\s]+)\)", without_code(document.read_text(encoding="utf-8"))):
        place, _, anchor = target.partition("#")
        linked = document.parent / place if place else document
        if "://" not in target:
            if not linked.exists():
                flaws.append(f"{target}: no such file")
            elif anchor and anchor not in anchors_of(linked):
                flaws.append(f"{target}: no such heading")
        if not label and f"![]({target})" in document.read_text(encoding="utf-8"):
            flaws.append(f"{target}: a picture without a text")
    return flaws


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_links_lead_somewhere(document):
    """Every relative link, anchor and picture exists; every picture has a text."""
    assert flaws_of_links(document) == []
    for label, _ in re.findall(r"\[([^\]]*)\]\(([^)]+)\)", without_code(document.read_text(encoding="utf-8"))):
        assert label


def test_broken_links_are_seen(tmp_path):
    """A missing file and a missing heading; both are ignored in code."""
    page = tmp_path / "page.md"
    page.write_text("# The page\n\n[a](b.md) [c](#the-page) [d](page.md#no) ![e](f.png) `[x](y.md)` [g](https://h.i)\n")
    assert flaws_of_links(page) == ["b.md: no such file", "page.md#no: no such heading", "f.png: no such file"]


def test_readme_is_a_first_page():
    """At most 120 lines. Their length is checked with that of all others."""
    assert len((REPOSITORY / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


def long_lines(text: str) -> list[str]:
    """Lines of more than 120 characters, with their numbers. A line may be longer if it is nothing but an address."""
    lines = enumerate(text.splitlines(), 1)
    return [f"{n}: {line}" for n, line in lines if len(line) > 120 and not re.fullmatch(r"\W*https?://\S+", line)]


def test_lines_are_short():
    """At most 120 characters in every Markdown and Python file, tables included."""
    code = [
        path for folder in ("bonecaffe", "scripts", "tests") for path in sorted((REPOSITORY / folder).rglob("*.py"))
    ]
    assert len(code) > 200
    files = [*DOCUMENTS, *sorted((REPOSITORY / ".github").rglob("*.md")), *code]
    assert {name_of(path): long for path in files if (long := long_lines(path.read_text(encoding="utf-8")))} == {}


def test_long_lines_are_found():
    """Prose, a row of a table and a line of code; characters count, not bytes, and a bare address may be longer."""
    address = "https://example.org/" + "a" * 120
    text = "\n".join(["é" * 120, "b" * 121, f"| {'c' * 120} |", f"[d]({address})", address, f"  <{address}>"])
    assert [line.partition(":")[0] for line in long_lines(text)] == ["2", "3", "4"]


def test_index_names_every_document():
    """docs/README.md links each page below docs/."""
    index = (REPOSITORY / "docs" / "README.md").read_text(encoding="utf-8")
    linked = {(REPOSITORY / "docs" / target).resolve() for target in re.findall(r"\]\(([^)#]+)", index)}
    pages = {path.resolve() for path in (REPOSITORY / "docs").rglob("*.md")}
    assert pages - linked == {(REPOSITORY / "docs" / "README.md").resolve()}


# ---- commands ----------------------------------------------------------------------------------------------------


def code_in(text: str) -> Iterator[str]:
    """The code of a document: lines of blocks, joined after a backslash, and code spans."""
    text = re.sub(r"\\\n\s*", " ", text)
    fenced = False
    prose = []
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            yield line.strip()
        else:
            prose.append(line)
    yield from (" ".join(span.split()) for span in re.findall(r"`([^`]+)`", "\n".join(prose)))


def commands_in(text: str) -> Iterator[list[str]]:
    """The calls of bonecaffe and make in a document's code, as words."""
    for code in code_in(text):
        for part in re.split(r"\s[#|]\s|;\s|&&|\s#", code):
            if re.match(r"(\S*/)?bonecaffe\s|make\s", part.strip()):
                words = shlex.split(part.replace("…", "x"))
                yield [Path(words[0]).name, *words[1:]]


def flaw_of(words: list[str]) -> str | None:
    """The part of a call of bonecaffe or make that does not exist; None where all parts exist."""
    if words[0] == "make":
        for word in words[1:]:
            name, is_variable, _ = word.partition("=")
            if is_variable and name not in variables_of_make():
                return f"make has no variable {name}"
            if not is_variable and word not in OF_CAFFE and not re.search(rf"(?m)^{re.escape(word)}:", MAKEFILE):
                return f"make has no target {word}"
        return None
    command: click.Command = main
    words = words[1:]
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        if words[0] not in command.commands:
            return None if words[0] == "VERB" else f"no verb {words[0]}"
        command, words = command.commands[words[0]], words[1:]
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    given = (word.partition("=")[0] for word in words if word.startswith("--"))
    return next((f"{command.name} has no option {word}" for word in given if word not in {*known, "--help"}), None)


@cache
def variables_of_make() -> frozenset[str]:
    """The variables that a user may give to the Makefile."""
    given = re.search(r"(?s)^GIVEN := (.*?)[^\\]\n", MAKEFILE, re.MULTILINE)
    assert given
    return frozenset(given[0].replace("\\", " ").split()[2:])


@pytest.mark.parametrize("document", CURRENT, ids=name_of)
def test_commands_exist(document):
    """Each `bonecaffe …` and `make …` in the documents names a verb, options, a target and variables that exist."""
    text = document.read_text(encoding="utf-8")
    assert [(words, flaw) for words in commands_in(text) if (flaw := flaw_of(words))] == []


def test_wrong_commands_are_seen():
    """A verb, an option, a target and a variable that do not exist, in a block and in a span."""
    text = (
        "Run `bonecaffe trian runs/x` and `make train RNU=x`.\n\n"
        "    .venv/bin/bonecaffe train x \\\n      --wieghts y\n"
        "    bonecaffe points imprt x  # a typo\n    make trian\n    make train RUN=x\n    bonecaffe points check x\n"
    )
    flaws = [flaw for words in commands_in(text) if (flaw := flaw_of(words))]
    assert sorted(flaws) == [
        "make has no target trian",
        "make has no variable RNU",
        "no verb imprt",
        "no verb trian",
        "train has no option --wieghts",
    ]


def options_of(command: click.Command) -> set[str]:
    """The options of a command and of all its subcommands."""
    below = command.commands.values() if isinstance(command, click.Group) else ()
    own = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    return own.union(*(options_of(each) for each in below))


@pytest.mark.parametrize("document", CURRENT, ids=name_of)
def test_options_in_prose_exist(document):
    """An option that the prose names belongs to some verb, or to a program that is listed here."""
    spans = (code for code in code_in(document.read_text(encoding="utf-8")) if code.startswith("--"))
    named = {word for span in spans for word in re.findall(r"(?<!\S)--[a-z][a-z-]*", span)}
    assert named - options_of(main) - OF_OTHERS - {"--help"} == set()


def test_documented_work_is_shown():
    """The commands of the README and the guide are not few; a pattern that matches nothing would pass."""
    shown = [words for path in CURRENT for words in commands_in(path.read_text(encoding="utf-8"))]
    assert len(shown) > 60
    assert {words[1] for words in shown if words[0] == "bonecaffe" and len(words) > 1} >= {*main.commands}


# ---- messages ----------------------------------------------------------------------------------------------------


def messages() -> list[str]:
    """The strings in the code, with … for each value."""
    found = []
    for folder in ("bonecaffe", "scripts"):
        for path in (REPOSITORY / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    parts = (each.value if isinstance(each, ast.Constant) else "…" for each in node.values)
                    found.append("".join(map(str, parts)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    for name in ("setup.sh", "machine.sh"):
        text = (REPOSITORY / "scripts" / name).read_text(encoding="utf-8")
        found.append(text.replace("$fewest", re.findall(r'(?m)^fewest="(.*?)"', text)[0] if "$fewest" in text else ""))
    return found


def test_troubleshooting_quotes_real_messages():
    """Each message at the head of an entry is in the code: the same words in the same order, with … for values."""
    page = (REPOSITORY / "docs" / "guide" / "troubleshooting.md").read_text(encoding="utf-8")
    heads = re.findall(r"(?m)^\*\*.+$", page)
    quotes = [quote for head in heads for quote in re.findall(r"`([^`]+)`", head) if " " in quote]
    assert len(quotes) > 50
    texts = messages()
    missing = []
    for quote in quotes:
        pieces = (re.escape(piece.strip(" :.")) for piece in quote.split("…") if piece.strip(" :."))
        pattern = re.compile(r".*?".join(pieces), re.DOTALL)
        if not any(pattern.search(text) for text in texts):
            missing.append(quote)
    assert missing == []


# ---- the rest ----------------------------------------------------------------------------------------------------


def test_make_help_lists_every_target():
    """`make help` is read from the Makefile; every target has its line."""
    makefile = (REPOSITORY / "Makefile").read_text()
    for target in re.findall(r"(?m)^([a-z-]+):", makefile):
        assert re.search(rf"(?m)^{target}: .*## \S", makefile), target


def test_nothing_real_is_in_the_repository():
    """No real radiograph, by its bytes, among the images that are tracked."""
    import hashlib

    real = REPOSITORY.parent / "shared" / "real_hands" / "images"
    known = {hashlib.sha256(path.read_bytes()).hexdigest() for path in real.glob("*.png")} if real.is_dir() else set()
    images = [*(REPOSITORY / "data").rglob("*.png"), *(REPOSITORY / "docs").glob("*.png")]
    assert len(images) >= 14
    for path in images:
        assert hashlib.sha256(path.read_bytes()).hexdigest() not in known
