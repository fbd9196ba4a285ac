"""docs/reference: the generated pages are what the script writes now, and nothing is left out of them."""

from __future__ import annotations

import re

import pytest
from click.testing import CliRunner
from conftest import REPOSITORY

import reference
from bonecaffe import Recipe
from bonecaffe.cli import main

FOLDER = REPOSITORY / "docs" / "reference"


@pytest.mark.parametrize("name", ["cli.md", "recipe.md"])
def test_generated_pages_are_up_to_date(name):
    """An option or a field that changed is on its page: `make reference` writes it."""
    assert (FOLDER / name).read_text(encoding="utf-8") == reference.pages()[name], "run make reference"


def test_pages_do_not_depend_on_the_terminal(monkeypatch):
    """The same text in a narrow terminal, in a wide one, and under make."""
    before = reference.pages()
    for columns in ("40", "200"):
        monkeypatch.setenv("COLUMNS", columns)
        monkeypatch.setenv("BONECAFFE_MAKE", "1")
        assert reference.pages() == before


def test_every_verb_is_on_the_page():
    """Groups are followed; what is shown for a verb is what its --help prints, but for the width."""
    text = (FOLDER / "cli.md").read_text(encoding="utf-8")
    headings = re.findall(r"(?m)^#{2,4} (bonecaffe.*)$", text)
    verbs = {f"bonecaffe {name}" for name in main.commands}
    points = {f"bonecaffe points {name}" for name in main.commands["points"].commands}
    assert len(headings) == len(set(headings)) and set(headings) == {"bonecaffe", *verbs, *points}
    for heading in headings:
        printed = CliRunner().invoke(main, [*heading.split()[1:], "--help"], prog_name="bonecaffe").output
        section = text.split(f"# {heading}\n\n```text\n", 1)[1].split("\n```", 1)[0]
        assert words(section) == words(printed), heading


def words(text: str) -> list[str]:
    """A help text without its layout: click shortens the list of commands by the width, so that is left out."""
    return re.sub(r"(?s)\nCommands:.*", "", text).split()


def test_every_field_of_a_recipe_has_a_meaning():
    """Each field has a docstring, which becomes its sentence in recipe.md, and stands there once."""
    text = (FOLDER / "recipe.md").read_text(encoding="utf-8")
    for field in Recipe.load("paper").notes:
        section, name = field.split(".")
        kind = Recipe.model_fields[section].annotation
        assert kind.model_fields[name].description, f"{field} has no docstring"
        assert text.count(f"### {field}\n") == 1


def test_no_line_is_wider_than_120_columns():
    """As everywhere in the repository."""
    for page in FOLDER.glob("*.md"):
        for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
            assert len(line) <= 120, f"{page.name}:{number}"
