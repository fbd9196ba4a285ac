"""`make mutants` finds its modules and their tests; the run itself takes too long for `make test`."""

from __future__ import annotations

import tomllib

from conftest import REPOSITORY


def test_modules_tests_and_reasons_exist():
    """Otherwise a module that moved would be missing from the count, unnoticed."""
    settings = tomllib.loads((REPOSITORY / "scripts" / "mutants.toml").read_text(encoding="utf-8"))
    assert len(settings["modules"]) >= 11
    for module, mine in settings["modules"].items():
        assert (REPOSITORY / module).is_file(), module
        for path in mine["tests"]:
            assert not path.endswith(".py") or (REPOSITORY / path).is_file(), path
        source = (REPOSITORY / module).read_text(encoding="utf-8")
        for name in mine.get("only", ()):
            assert f"def {name}(" in source, f"{module}: {name}"
    for entry in settings["equivalent"]:
        assert entry["module"] in settings["modules"] and entry["why"] and entry["was"] != entry["becomes"]
