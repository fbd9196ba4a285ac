"""Every sentence a person reads is plain modern English: retired phrases and names are in no tracked text file.

``python tests/test_language.py`` lists what is left, as FILE:LINE, and the allowance that it would need.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
TEXTS = {".py", ".md", ".yaml", ".yml", ".toml", ".prototxt", ".sh", ".js", ".html", ".jinja", ".css", ".hpp", ".h"}
WITHOUT_SUFFIX = {"Makefile", "LICENSE", "ci/run"}

PHRASES = {
    r"mend(?:s|ed|ing)?": "fix",
    r"anew": "again",
    r"shall": "must, or will",
    r"lies?": "is (where a thing is)",
    r"could not be had": "could not be downloaded",
    r"(?<!make )(?:un)?sure": "confident, uncertain",
    r"(?<!model\s)cards?": "GPU; a model card is called that",
    r"doubles": "duplicates",
    r"slip of the pen": "typo, with the nearest valid name",
    r"told into": "split into",
    r"told (?:apart|from)": "distinguished",
    r"(?:can|cannot|could|may|must|to|should) be told": "is unclear, or cannot be determined",
    r"nobody can": "name what is impossible: no program can, cannot be",
    r"\w+ of ours": "bonecaffe's own, or in bonecaffe",
    r"of one's own": "your own, or its own",
    r"says|said": "reports, shows, contains, message: a program or a file says nothing",
    r"say (?:so|little|nothing|how|what|which|why|whether)": "report, show",
    r"speaks? against": "no problem found",
    r"that serves": "bonecaffe uses the first one it finds, in this order",
    r"(?:go|goes|gone|going|went) on": "continue",
    r"whose it is": "its owner",
    r"whoever": "any reader; or name who it is",
    r"by then": "before that, or then",
    r"thus": "so",
    r"hence": "so",
    r"as it were": "leave it out",
    r"it is so that": "leave it out",
    r"but for(?! example| each| every| all)": "except",
    r"(?:is|are) there already": "already exists",
    r"exists? already": "already exists",
    r"(?:is|are) to be": "must, or will",
    r"the like": "name it",
    r"beside": "next to, or in addition to",
    r"(?:take|takes|taken|took|taking) up": "read, use, update",
    r"marked in part": "partly marked",
    r"heed(?:s|ed|ing)?": "follow, obey",
    r"gives no event": "name what is missing",
    r"in vain": "without a result",
    r"(?-i:(?:Should|Were|Had) (?:it|we|they|the|this|that|a|an)) [^.?]*,": "if: no inverted word order",
}
"""Each retired phrase, as a regular expression of whole words, and what to write instead. A space is any gap."""
NAMES = {"said": "message", "lost": "missing", "told": "message", "heeded": "handled", "wanted": "expected, requested"}
"""Names that no local variable or parameter has, and what to call it."""
KEPT = {
    "IN NO EVENT SHALL": "LICENSE quotes the BSD licence",
    "(0.1: `sure`)": "CHANGELOG.md names a value of version 0.1",
}
"""Exact texts that stay, each with the reason. They are blanked out before the search."""
ALLOWED: dict[str, int] = {}
"""Hits that a file may still have. This list only gets shorter; it is empty when the tree is clean."""


class Hit(NamedTuple):
    """One retired word in a file."""

    file: str
    line: int
    text: str
    instead: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.text!r}; write: {self.instead}"


GAP = r'(?:\s*"\s+f?"\s*|\s+(?:(?:#|//|\*|>)\s*)?)'
"""What may be between two words: white space, a new line of a comment or of a quotation, two adjacent strings."""
SEARCHES = [
    (re.compile(rf"(?<![\w-])(?:{pattern})(?![\w-])", re.IGNORECASE), instead)
    for phrase, instead in PHRASES.items()
    for pattern in [re.sub(r" (?!\))", lambda _: GAP, phrase)]
]


@cache
def tracked() -> tuple[str, ...]:
    """The tracked text files, except this one, which holds the list."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git clone")
    own = Path(__file__).resolve().relative_to(REPOSITORY).as_posix()
    names = (name for name in listed.stdout.split("\0") if name and name != own)
    return tuple(name for name in names if Path(name).suffix in TEXTS or name in WITHOUT_SUFFIX)


def phrases_in(file: str, text: str) -> Iterator[Hit]:
    """The retired phrases of a text."""
    for kept in KEPT:
        text = text.replace(kept, re.sub(r"\S", "_", kept))
    for pattern, instead in SEARCHES:
        for found in pattern.finditer(text):
            yield Hit(file, text.count("\n", 0, found.start()) + 1, " ".join(found[0].split()), instead)


def names_in(file: str, text: str) -> Iterator[Hit]:
    """The retired names of local variables and parameters in a Python module."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.arg):
            name = node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            name = node.id
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar):
            name = node.name or ""
        else:
            continue
        if name in NAMES:
            yield Hit(file, node.lineno, f"name {name}", NAMES[name])


def hits_in(file: str, text: str) -> list[Hit]:
    """All that is retired in a text, by line."""
    names = names_in(file, text) if file.endswith(".py") else ()
    return sorted([*phrases_in(file, text), *names])


@cache
def hits() -> tuple[Hit, ...]:
    """All that is retired in the tree."""
    return tuple(hit for file in tracked() for hit in hits_in(file, (REPOSITORY / file).read_text(encoding="utf-8")))


def test_language_is_plain():
    """No retired phrase or name is in any tracked file, beyond what a file is still allowed."""
    counts = Counter(hit.file for hit in hits())
    over = {file for file, count in counts.items() if count > ALLOWED.get(file, 0)}
    assert not over, "\n" + "\n".join(str(hit) for hit in hits() if hit.file in over)


def test_allowance_names_tracked_files():
    """A file that was removed or renamed has no allowance."""
    assert set(ALLOWED) - set(tracked()) == set()


def test_kept_texts_are_in_the_tree():
    """An exception is removed with its text."""
    tree = "\n".join((REPOSITORY / file).read_text(encoding="utf-8") for file in tracked())
    assert [kept for kept in KEPT if kept not in tree] == []


@pytest.mark.parametrize(
    "text",
    [
        "The file lies in the run.",
        "Polarity cannot\n    be told here.",
        "# the two are told\n# apart",
        'raise Error("it goes "\n    f"on")',
        "Should we fail in the middle, it stops.",
        "A Card of the machine.",
        "They are UNSURE.",
        "What the file says: nothing",
        "All but for one.",
    ],
)
def test_retired_phrases_are_seen(text):
    """In any case, across lines, comments and adjacent strings."""
    assert list(phrases_in("a.md", text))


@pytest.mark.parametrize(
    "text",
    [
        "Make sure that it fails.",
        "IN NO EVENT SHALL the holder",
        "double precision, believes, besides, scorecard, self-said",
        "The recipes should have a reason.",
    ],
)
def test_ordinary_words_are_not(text):
    """Parts of words, kept texts and C++'s double are no hits."""
    assert list(phrases_in("a.md", text)) == []


def test_retired_names_are_seen():
    """As a parameter, an assignment, a loop variable, in a comprehension, a with and an except; not as an attribute."""
    code = "def f(said, *, ok):\n    lost = 1\n    for told in ok: x = [wanted for wanted in ok]\n    (heeded := 2)\n"
    code += "    with ok as said: pass\n    try: pass\n    except E as told: pass\n    return ok.said, said\n"
    names = [hit.text.split()[1] for hit in names_in("a.py", code)]
    assert sorted(names) == ["heeded", "lost", "said", "said", "told", "told", "wanted"]


if __name__ == "__main__":
    for each in hits():
        print(each)
    print("ALLOWED: dict[str, int] = {")
    for name, number in sorted(Counter(hit.file for hit in hits()).items()):
        print(f'    "{name}": {number},')
    print("}")
    sys.exit(bool(hits()))
