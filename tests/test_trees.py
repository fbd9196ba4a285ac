"""YAML and JSON from strangers: plain values, or one sentence at once, whatever they hold."""

from __future__ import annotations

import json
import random
import time

import pytest

from bonecaffe.errors import BonecaffeError, LocateError
from bonecaffe.locate.locator import Locator
from bonecaffe.trees import DEEPEST, LONGEST_YAML, parse_json, parse_yaml

DEEP = "[" * (DEEPEST + 1) + "1" + "]" * (DEEPEST + 1)
ODD_JSON = {
    "deep": DEEP,
    "very deep": "[" * 10**6,
    "deep objects": '{"a":' * 10**5,
    "nan": '{"a": NaN}',
    "infinity": "[-Infinity]",
    "a double too large": "[1e999]",
    "digits": "9" * 10**5,
    "65 bits": str(1 << 64),
    "half a character": r'["\ud800"]',
    "half a character in a key": r'{"\udfff": 1}',
    "empty": "",
    "cut off": '{"a": [1, 2',
    "no text": "\x00",
}
ODD_YAML = {
    "deep": DEEP,
    "very deep": "[" * 10**5,
    "deep mappings": "{a: " * 10**4,
    "deep sequences": "- " * 10**4,
    "deep keys": "? " * 10**4,
    "an alias": "a: &a 1\nb: *a",
    "an alias to itself": "&a [*a]",
    "no such day": "2019-99-99",
    "no timestamp": "!!timestamp x",
    "no bool": "!!bool x",
    "no integer": "!!int ''",
    "no float": "!!float x",
    "digits": "9" * 10**5,
    "hexadecimal digits": "0x" + "f" * 10**5,
    "sixties": "!!int 1" + ":59" * 1000,
    "binary": "!!binary aGk=",
    "an object": "!!python/object:os.system x",
    "a list as a key": "? [a]\n: b",
    "half a character": r'"\ud800"',
    "two documents": "--- a\n--- b",
    "a tab": "\t",
    "too long": "a" * (LONGEST_YAML + 1),
}


@pytest.mark.parametrize(
    ("parse", "text"),
    [(parse_json, text) for text in ODD_JSON.values()] + [(parse_yaml, text) for text in ODD_YAML.values()],
    ids=[f"json, {name}" for name in ODD_JSON] + [f"yaml, {name}" for name in ODD_YAML],
)
def test_odd_content_ends_in_a_sentence(parse, text):
    """The sentence names the file, on one line, and comes at once."""
    began = time.monotonic()
    with pytest.raises(LocateError) as error:
        parse(text, "a file", LocateError)
    assert time.monotonic() - began < 5
    message = str(error.value)
    assert message.startswith("a file: ") and message.endswith(".") and "\n" not in message and len(message) < 500


def test_what_people_and_tools_write_is_read():
    """Numbers to 64 bits, any language, byte order marks, as deep as the limit."""
    tree = {"a": [1, -2.5e300, None, True, "Ünï \U0001f600"], "b": {"c": (1 << 63)}}
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32"):
        assert parse_json(json.dumps(tree, ensure_ascii=False).encode(encoding), "a", BonecaffeError) == tree
    assert parse_yaml(json.dumps(tree, ensure_ascii=False), "a", BonecaffeError) == tree
    deepest = "[" * DEEPEST + "1" + "]" * DEEPEST
    assert parse_yaml(deepest, "a", BonecaffeError) == parse_json(deepest, "a", BonecaffeError)


def test_damaged_content_is_read_or_refused_with_a_message():
    """Bytes changed, removed and repeated, 3,000 times: values, or the requested error."""
    rng = random.Random(13)
    sample = json.dumps({"a": [1, 2.5, "x\u00e9", None], "b": {"c": [True, -1e-9], "d": "\ud83d\ude00"}})
    marks = [*"[]{}:,-?*&!|>'\"%@`#\\ \n\t0x.e~", "!!int ", "!!binary ", "<<: ", "\\ud800", "1e999", "\x85"]
    for _ in range(3000):
        text = list(sample)
        for _ in range(rng.randint(1, 6)):
            at = rng.randrange(len(text))
            text[at : at + rng.randint(0, 3)] = rng.choices(marks, k=rng.randint(0, 3))
        for parse in (parse_json, parse_yaml):
            try:
                parse("".join(text), "a file", LocateError)
            except LocateError as error:
                assert str(error).startswith("a file: ") and "\n" not in str(error)


def test_locator_of_odd_facts_is_refused(tmp_path):
    """Like a folder without a locator, with the remedy."""
    (tmp_path / "locator.json").write_text(DEEP)
    with pytest.raises(LocateError, match="no locator here .*nested more than 64 levels deep.*train-locator"):
        Locator(tmp_path)
