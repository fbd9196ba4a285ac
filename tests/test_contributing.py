"""The contributor kit: its links work, its forms and settings can be read, the changelog follows its format."""

from __future__ import annotations

import re
import tomllib

import pytest
import yaml
from conftest import REPOSITORY

KIT = [
    *("CONTRIBUTING.md", "RELEASING.md", "CHANGELOG.md", ".editorconfig", ".pre-commit-config.yaml"),
    *(path.relative_to(REPOSITORY).as_posix() for path in sorted((REPOSITORY / ".github").rglob("*.*"))),
    *(path.relative_to(REPOSITORY).as_posix() for path in sorted((REPOSITORY / "docs" / "reference").glob("*.md"))),
]
MAKEFILE = (REPOSITORY / "Makefile").read_text(encoding="utf-8")


def read(name: str) -> str:
    """A file of the repository."""
    return (REPOSITORY / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", KIT)
def test_lines_fit(name):
    """At most 120 characters a line, and a newline at the end."""
    text = read(name)
    assert text.endswith("\n")
    assert not [line for line in text.splitlines() if len(line) > 120]


@pytest.mark.parametrize("name", [name for name in KIT if name.endswith(".md")])
def test_links_and_names_exist(name):
    """Links, files of the repository and make targets that a document names exist."""
    text = read(name)
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if "://" not in target:
            assert ((REPOSITORY / name).parent / target.split("#")[0]).exists(), target
    for target in re.findall(r"(?m)(?:`|^    |&& )make ([a-z][a-z -]*)", text):
        for word in target.split():
            assert re.search(rf"(?m)^{word}:", MAKEFILE), f"make {word}"
    if name in ("CONTRIBUTING.md", "RELEASING.md"):
        for path in re.findall(r"[\w-]+/[\w./-]*\w\.(?:py|md|sh|yaml)\b", text):
            places = [REPOSITORY / folder / path for folder in ("", "bonecaffe", "tests")]
            assert "NAME" in path or any(place.exists() for place in places), path


def test_hooks_are_those_of_make_lint():
    """The pre-commit hooks use .venv and do what `make lint` does, with the same versions of the tools."""
    repos = {repo["repo"]: repo["hooks"] for repo in yaml.safe_load(read(".pre-commit-config.yaml"))["repos"]}
    hooks = {hook["id"]: hook for hook in repos.pop("local")}
    assert list(repos) == ["https://github.com/pre-commit/pre-commit-hooks"]
    assert {"ruff", "ruff-format", "mypy", "reference"} == hooks.keys()
    needed = " ".join(tomllib.loads(read("pyproject.toml"))["project"]["optional-dependencies"]["lint"])
    for hook in hooks.values():
        program = hook["entry"].split()[0]
        assert program.startswith(".venv/bin/") and hook["language"] == "system"
        assert program.endswith("python") or program.rsplit("/", 1)[1] in needed
    triggers = re.compile(hooks["reference"]["files"])
    assert all(map(triggers.search, ("bonecaffe/cli/pipeline.py", "bonecaffe/recipe.py", "docs/reference/cli.md")))
    assert not triggers.search("bonecaffe/run.py")


def test_issue_forms():
    """They can be read, ask for doctor's output and the records of a run, and warn about images of patients."""
    forms = [path for path in (REPOSITORY / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config"]
    assert len(forms) == 2
    for path in forms:
        text = path.read_text(encoding="utf-8")
        form = yaml.safe_load(text)
        assert {"name", "description", "body"} <= form.keys()
        assert form["body"][0]["type"] == "markdown" and "images of patients" in form["body"][0]["attributes"]["value"]
        fields = [field for field in form["body"] if field["type"] != "markdown"]
        assert len({field["id"] for field in fields}) == len(fields) and all(f["attributes"]["label"] for f in fields)
        for needed in ("bonecaffe doctor", "manifest.json", "caffe.log"):
            assert needed in text, f"{path.name}: {needed}"


def test_changelog_keeps_its_form():
    """Versions from the newest down; in each, sections of the four kinds in order, with a list and no line twice."""
    text = read("CHANGELOG.md")
    versions = re.split(r"(?m)^## ", text)[1:]
    numbers = [tuple(map(int, re.match(r"\[?(\d+)\.(\d+)\.(\d+)", version).groups())) for version in versions]
    assert numbers and numbers == sorted(numbers, reverse=True)
    kinds = ["Added", "Changed", "Fixed", "Removed"]
    for version in versions:
        found = re.findall(r"(?m)^### (.*)$", version)
        assert found == [kind for kind in kinds if kind in found] and found, version[:20]
        for section in re.split(r"(?m)^### ", version)[1:]:
            assert re.search(r"(?m)^- \S", section)
    entries = re.findall(r"(?m)^- (.*)$", text)
    assert len(entries) == len(set(entries))


def test_image_holds_nothing_of_a_user():
    """docker and podman both read this file, and its folders are those that git ignores, with their own exceptions."""
    left_out = read(".dockerignore").splitlines()
    assert {".git", ".venv", "runs", "data/*"} <= set(left_out) and not (REPOSITORY / ".containerignore").exists()
    kept = {line.strip("!/") for line in read(".gitignore").splitlines() if line.startswith("!/data/")}
    assert {line.strip("!/") for line in left_out if line.startswith("!")} == kept


CACHE = "~/.cache/bonecaffe"


@pytest.mark.parametrize("name", ["ci.yml", "nightly.yml"])
def test_workflows_run_what_a_person_runs(name):
    """Their commands are make targets, except a container's git and make; each job has a system and steps."""
    jobs = yaml.safe_load(read(f".github/workflows/{name}"))["jobs"]
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    for command in commands:
        target = re.fullmatch(r"make ([a-z-]+)", command)
        assert target or command.endswith("install -y --no-install-recommends git make ca-certificates"), command
        assert not target or re.search(rf"(?m)^{target[1]}:", MAKEFILE), command
    assert {"ci.yml": "make smoke", "nightly.yml": "make test"}[name] in commands
    assert all(job["runs-on"] == "ubuntu-24.04" for job in jobs.values())
    # Caffe's own folder below home, in a container too, where ${{ github.workspace }} is still the host's folder
    steps = [step for job in jobs.values() for step in job["steps"]]
    assert {step["with"]["path"] for step in steps if step.get("uses", "").startswith("actions/cache")} <= {CACHE}
    assert "github.workspace" not in read(f".github/workflows/{name}")
