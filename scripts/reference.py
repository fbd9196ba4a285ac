#!/usr/bin/env python3
"""Write docs/reference/cli.md from ``--help`` and docs/reference/recipe.md from the recipe's model and paper.yaml.

tests/test_reference.py checks both. Run ``make reference`` after you change an option or a field.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from bonecaffe import Recipe
from bonecaffe.cli import main as bonecaffe
from bonecaffe.files import write_text
from bonecaffe.recipe import stated

REFERENCE = Path(__file__).resolve().parent.parent / "docs" / "reference"
WIDTH = 100
"""Columns of the help texts, for every terminal."""
WIDEST = 120
"""Columns of a line of Markdown."""


def main() -> None:
    """Write both files."""
    for name, text in pages().items():
        write_text(REFERENCE / name, text)
        print(REFERENCE / name)


def pages() -> dict[str, str]:
    """The text of each generated file, by its name."""
    return {"cli.md": cli(), "recipe.md": recipe()}


# ---- the command line --------------------------------------------------------------------------------------------


def cli() -> str:
    """``--help`` of bonecaffe and of every verb, in the order they are used."""
    parts = [
        "# Command line",
        "Generated from `--help` by `make reference`; do not edit. Brackets after an option hold its default and its "
        "range.",
        "Exit status: 0 for success; 1 for an error that you can correct (one refused hand is enough); 2 for a wrong "
        "option; 130 after Ctrl-C; 3 for a bug in bonecaffe, with the traceback in a file.",
    ]
    for level, path, text in helps(bonecaffe, ("bonecaffe",)):
        parts += [f"{'#' * level} {' '.join(path)}", f"```text\n{text}\n```"]
    return joined(parts)


def helps(
    command: click.Command, path: tuple[str, ...], parent: click.Context | None = None
) -> Iterator[tuple[int, tuple[str, ...], str]]:
    """(level of the heading, words of the command, help) of a command and of those below it."""
    context = click.Context(command, parent, info_name=path[-1], terminal_width=WIDTH, **command.context_settings)
    yield min(len(path) + 1, 4), path, "\n".join(line.rstrip() for line in command.get_help(context).splitlines())
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            if below is not None and not below.hidden:
                yield from helps(below, (*path, name), context)


# ---- the recipe --------------------------------------------------------------------------------------------------


def recipe() -> str:
    """Every field of a recipe: meaning, what it takes, the paper's value and its source."""
    paper = Recipe.load("paper")
    schema = Recipe.model_json_schema()
    parts = [
        "# Fields of a recipe",
        "Generated from the model in [recipe.py](../../bonecaffe/recipe.py) and from "
        "[paper.yaml](../../bonecaffe/recipes/paper.yaml) by `make reference`; do not edit. *Paper* is the value of "
        "`paper.yaml` with its source in the paper: another value is a departure. *Not stated* means that the paper "
        "is silent: every value is a choice, and the one shown is the default. A recipe of your own has "
        "`extends: paper` and only the fields that differ, each as `{value: …, reason: …}`.",
    ]
    for section, reference in schema["properties"].items():
        if "$ref" not in reference:
            continue
        model = schema["$defs"][reference["$ref"].rsplit("/", 1)[1]]
        parts += [f"## {section}", model["description"]]
        for name, field in model["properties"].items():
            parts += [f"### {section}.{name}", *_field(paper, f"{section}.{name}", field)]
    return joined(parts)


def _field(paper: Recipe, field: str, schema: dict[str, Any]) -> list[str]:
    source = paper.source_of(field)
    label = "Paper" if stated(field) else "Not stated"
    why = source.removeprefix("not stated").lstrip(";, ")
    lines = [f"- Takes: {takes(schema)}", f"- {label}: `{shown(paper.value_of(field))}` ({why})"]
    meaning = schema.get("description", "").replace("``", "`")
    return [*([meaning] if meaning else []), "\n".join(wrapped(line) for line in lines)]


def takes(schema: dict[str, Any]) -> str:
    """The values that a field takes, in words, from its JSON schema. KeyError for an unknown type of field.

    >>> takes({"type": "integer", "minimum": 1})
    'a whole number, at least 1'
    >>> takes({"enum": ["GPU", "CPU"], "type": "string"})
    '`GPU` or `CPU`'
    """
    if "const" in schema:
        return f"`{shown(schema['const'])}` only"
    if "enum" in schema:
        return " or ".join(f"`{shown(value)}`" for value in schema["enum"])
    if schema["type"] == "array":
        return f"{len(schema['prefixItems'])} values, each {takes(schema['prefixItems'][0])}"
    kind = {"integer": "a whole number", "number": "a number", "boolean": "`true` or `false`", "string": "text"}
    limits = {
        "minimum": "at least {:g}",
        "exclusiveMinimum": "above {:g}",
        "maximum": "at most {:g}",
        "exclusiveMaximum": "below {}",
    }
    words = [kind[schema["type"]], *(words.format(schema[key]) for key, words in limits.items() if key in schema)]
    return ", ".join(words) + (f" that matches `{schema['pattern']}`" if "pattern" in schema else "")


def shown(value: Any) -> str:
    """A value as written in a recipe file.

    >>> shown(0.000003), shown((1.0, True))
    ('0.000003', '[1, true]')
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(shown, value))}]"
    if isinstance(value, float):  # never 3e-06, which YAML reads as text
        return f"{value:.12f}".rstrip("0").rstrip(".")
    return str(value)


# ---- Markdown ----------------------------------------------------------------------------------------------------


def joined(parts: list[str]) -> str:
    """Parts with a blank line between them; prose is wrapped."""
    kept = ("```", "#", "- ")
    return "\n\n".join(part if part.startswith(kept) else wrapped(part) for part in parts) + "\n"


def wrapped(text: str) -> str:
    """A paragraph or an entry of a list in lines of at most `WIDEST` columns."""
    indent = "  " if text.startswith("- ") else ""
    return textwrap.fill(" ".join(text.split()), WIDEST, subsequent_indent=indent, break_long_words=False,
                         break_on_hyphens=False)  # fmt: skip


if __name__ == "__main__":
    main()
