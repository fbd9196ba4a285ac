"""docs/reference: the generated pages are what the script writes now, and they are complete."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import REPOSITORY, tiny

import bonecaffe
import reference
from bonecaffe import Recipe
from bonecaffe.cli import main
from bonecaffe.records import STAGES
from bonecaffe.run import SPLITS, RunDir

FOLDER = REPOSITORY / "docs" / "reference"


@pytest.mark.parametrize("name", ["cli.md", "recipe.md"])
def test_generated_pages_are_up_to_date(name):
    """A changed option or field is on its page: `make reference` writes it."""
    assert (FOLDER / name).read_text(encoding="utf-8") == reference.pages()[name], "run make reference"


def test_pages_do_not_depend_on_the_terminal(monkeypatch):
    """The same text in a narrow terminal, in a wide one, and under make."""
    before = reference.pages()
    for columns in ("40", "200"):
        monkeypatch.setenv("COLUMNS", columns)
        monkeypatch.setenv("BONECAFFE_MAKE", "1")
        assert reference.pages() == before


def test_every_verb_is_on_the_page():
    """Groups are followed; the page shows for a verb what its --help prints, except for the width."""
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
    """Each field has a docstring, which becomes its sentence in recipe.md and appears there once."""
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


def test_files_of_a_run_are_named(trained):
    """Each path that RunDir knows, each file of a trained run and each record is on the page."""
    text = (FOLDER / "run-files.md").read_text(encoding="utf-8")
    run = RunDir("run")
    known = [value for value in vars(run).values() if isinstance(value, Path)]
    known += [of(split) for of in (run.list_file, run.lmdb, run.labels_lmdb, run.predictions) for split in SPLITS]
    names = {path.relative_to(run.path).as_posix() for path in known if path != run.path}
    assert len(names) > 25
    names |= {path.name for path in trained.path.iterdir()}
    assert not [name for name in sorted(names) if not re.search(rf"`{re.escape(name)}[/`]", text)]
    assert not [stage for stage in STAGES if f"| `{stage}` |" not in text]


def test_python_page_runs(hands, tmp_path, monkeypatch):
    """Its examples, from data to a prediction, do what they show; every public name is in its table."""
    text = (FOLDER / "python.md").read_text(encoding="utf-8")
    assert {name for name in bonecaffe.__all__ if name != "__version__"} <= set(re.findall(r"`(\w+)`", text))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    Path("data").symlink_to(hands)
    Path("mine.yaml").write_text(tiny().to_yaml(), encoding="utf-8")
    first = min(path.stem for path in (hands / "images").iterdir())
    code = "\n".join(re.findall(r"(?s)```python\n(.*?)```", text)).replace("1001", first)
    test = doctest.DocTestParser().get_doctest(code, {}, "python.md", None, 0)
    printed: list[str] = []
    result = doctest.DocTestRunner(verbose=False).run(test, out=printed.append)
    assert result.attempted > 20 and not result.failed, "".join(printed)
