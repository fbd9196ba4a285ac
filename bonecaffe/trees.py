"""YAML and JSON, read into plain values: the one place that sets their limits.

A recipe, a manifest or a file of another tool may come from a stranger. A file that is nested too deeply, expands
without end, or holds a number or text that bonecaffe itself could not write is refused with one sentence that names it.
"""

from __future__ import annotations

import json
import os
from typing import Any

from bonecaffe.errors import BonecaffeError
from bonecaffe.files import read_bytes, read_text

DEEPEST = 64
"""Levels of lists and mappings; files that people and tools write have fewer than ten."""
LONGEST_YAML = 1 << 18
"""Bytes of YAML: a complete recipe has 12,000, and PyYAML needs up to a second for this many."""
_LARGEST_INTEGER = 1 << 64


def read_json(path: str | os.PathLike[str], kind: str, error: type[BonecaffeError]) -> Any:
    """The content of a JSON file of a ``kind`` (`files.LARGEST`); ``error`` naming the file when it is not JSON.

    Raises OSError where it cannot be opened or read.
    """
    return parse_json(read_bytes(path, kind, error), os.fspath(path), error)


def parse_json(content: bytes | str, where: str, error: type[BonecaffeError]) -> Any:
    """The values of a JSON text: objects as dicts, arrays as lists, texts, numbers, bools and None.

    Raises ``error`` in one sentence that begins with ``where``: for text that is not JSON, is nested more than
    `DEEPEST` levels, or holds NaN, half of a surrogate pair, or a number that does not fit into a double or 64 bits.
    Bytes may begin with a byte order mark. A caller that needs another message catches ``error``.

    >>> parse_json(b'{"a": [1, 2.5, null]}', "a.json", BonecaffeError)
    {'a': [1, 2.5, None]}
    >>> parse_json("[NaN]", "a.json", BonecaffeError)
    Traceback (most recent call last):
    bonecaffe.errors.BonecaffeError: a.json: not readable as JSON: NaN is not a number in JSON.
    """
    try:
        tree = json.loads(content, parse_constant=_no_constant, parse_int=_integer, parse_float=_real)
        _check(tree)
    except RecursionError:
        raise error(f"{where}: not readable as JSON: {_TOO_DEEP}.") from None
    except ValueError as cause:
        raise error(f"{where}: not readable as JSON: {_sentence(cause)}.") from None
    return tree


def read_yaml(path: str | os.PathLike[str], error: type[BonecaffeError]) -> Any:
    """The content of a YAML file of settings; ``error`` when it is not YAML, OSError where it cannot be read."""
    return parse_yaml(read_text(path, "settings", error), os.fspath(path), error)


def parse_yaml(text: str, where: str, error: type[BonecaffeError]) -> Any:
    """The values of a YAML text, as PyYAML's safe loader makes them; the limits are those of `parse_json`.

    Aliases (``*name``) are refused: a few lines of them can expand to more values than fit into memory.

    >>> parse_yaml("a: [1, 2.5, ~]", "a.yaml", BonecaffeError)
    {'a': [1, 2.5, None]}
    >>> parse_yaml("a: &x 1\\nb: *x", "a.yaml", BonecaffeError)
    Traceback (most recent call last):
    bonecaffe.errors.BonecaffeError: a.yaml: not readable as YAML: line 2 has an alias (*x). Write the value itself.
    """
    if len(text) > LONGEST_YAML:
        raise error(f"{where}: {len(text) / 1e3:.0f} kB of YAML; more than {LONGEST_YAML / 1e3:.0f} kB are not read.")
    try:
        tree = _load_yaml(text)
        _check(tree)
    except MemoryError:
        raise
    except RecursionError:
        raise error(f"{where}: not readable as YAML: {_TOO_DEEP}.") from None
    except Exception as cause:  # for an odd scalar PyYAML raises KeyError, IndexError, AttributeError, …
        raise error(f"{where}: not readable as YAML: {_sentence(cause)}.") from None
    return tree


_TOO_DEEP = f"nested more than {DEEPEST} levels deep"


def _load_yaml(text: str) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """Without aliases, and no deeper than `DEEPEST`."""

        depth = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                event = self.peek_event()
                raise ValueError(
                    f"line {event.start_mark.line + 1} has an alias (*{event.anchor}). Write the value itself"
                )
            if self.depth > DEEPEST:
                raise ValueError(_TOO_DEEP)
            self.depth += 1
            try:
                return super().compose_node(parent, index)
            finally:
                self.depth -= 1

        def construct_object(self, node: Any, deep: bool = False) -> Any:
            try:
                return super().construct_object(node, deep)
            except yaml.YAMLError:
                raise
            except Exception as cause:
                at = node.start_mark
                shown = f"{node.value[:40]!r} " if isinstance(node.value, str) else ""
                raise ValueError(
                    f"line {at.line + 1}, column {at.column + 1}: {shown}does not fit its type ({_sentence(cause)})"
                ) from None

    return yaml.load(text, Loader)  # a subclass of SafeLoader: only plain values


def _sentence(cause: Exception) -> str:
    """An error's text in one line, cut to a readable length; without PyYAML's name for a text that is in memory."""
    text = " ".join(str(cause).replace(' in "<unicode string>",', " at").split()).rstrip(".") or type(cause).__name__
    return text if len(text) <= 300 else f"{text[:300]} …"


# ---- odd values --------------------------------------------------------------------------------------------------


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number in JSON")


def _integer(digits: str) -> int:
    if len(digits) > 20:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _real(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"the number {digits[:20]} is too large")
    return value


def _check(tree: Any) -> None:
    """ValueError for what bonecaffe could not write again: nested too deep, a huge number, half a character, bytes."""
    level, depth = [tree], 0
    while level:
        if depth > DEEPEST:
            raise ValueError(_TOO_DEEP)
        below: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                below.extend(value)
                below.extend(value.values())
            elif isinstance(value, list | tuple | set):
                below.extend(value)
            elif isinstance(value, str):
                if not value.isascii():
                    _check_text(value)
            elif isinstance(value, int):
                if not -_LARGEST_INTEGER < value < _LARGEST_INTEGER:
                    raise ValueError(f"a number of {value.bit_length()} bits")
            elif isinstance(value, bytes):
                raise ValueError("binary data, where a text or number is needed")
        level, depth = below, depth + 1


def _check_text(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"half of a character ({text[error.start]!a}) in {text[:40]!a}") from None
