"""The house stands as it was planned: imports run one way, and nothing heavy is loaded before it is needed."""

from __future__ import annotations

import ast
import subprocess
import sys
import time

from conftest import REPOSITORY

PACKAGE = REPOSITORY / "bonecaffe"

LAYERS = [  # each may import from those before it, and from itself; DESIGN's order
    {"errors"},
    {"files", "workers", "recipe", "recipes"},
    {"records"},
    {"run"},
    {"caffe"},
    {"hands"},
    {"prepare"},
    {"network"},
    {"training"},
    {"predict", "locate"},
    {"evaluation"},
    {"annotate", "studies", "doctor"},
    {"cli", "__main__"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def imports():
    """(file, its part of the house, imported module) for every import in the package."""
    for path in sorted(PACKAGE.rglob("*.py")):
        part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = (
                    [f"{node.module}.{alias.name}" for alias in node.names]
                    if node.module == "bonecaffe"
                    else [node.module]
                )
            for name in names:
                yield path, part, name


def test_imports_run_one_way():
    """No part of the house imports from a part that stands after it."""
    seen = 0
    for path, part, name in imports():
        if not name.startswith("bonecaffe.") or part == "__init__":
            continue
        other = name.split(".")[1]
        if other == "__version__":
            continue
        assert RANK[other] <= RANK[part], f"{path}: {part} imports {name}, which stands after it"
        seen += 1
    assert seen > 50


def test_hands_know_no_caffe():
    """What marks and reads hands needs no Caffe."""
    for path, part, name in imports():
        if part == "hands":
            assert not name.startswith(("bonecaffe.caffe", "caffe")), path


def test_marking_needs_no_caffe():
    """The page stands on hands and on the one function that makes what the network sees."""
    of_it = {name for _, part, name in imports() if part == "annotate" and name.startswith("bonecaffe.")}
    assert {name.split(".")[1] for name in of_it} <= {"annotate", "errors", "files", "hands", "prepare", "recipe"}
    assert {name for name in of_it if "prepare" in name} == {"bonecaffe.prepare.normalize"}


def test_only_caffe_starts_processes():
    """One door to Caffe's programs."""
    found = {path.relative_to(PACKAGE).as_posix() for path, _, name in imports() if name == "subprocess"}
    assert found == {"caffe/installation.py", "caffe/programs.py"}


def test_the_builder_needs_only_the_standard_library():
    """scripts/build_caffe.py runs before anything is installed: without site-packages, all that it imports is there."""
    scripts = REPOSITORY / "scripts"
    code = "import build_caffe, sys; print(*sorted(name for name in sys.modules if name.startswith('bonecaffe')))"
    done = subprocess.run(
        [
            str(getattr(sys, "_base_executable", sys.executable)),
            "-I",
            "-S",
            "-c",
            f"import sys; sys.path.insert(0, sys.argv[1]); {code}",
            scripts,
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [
        *("bonecaffe", "bonecaffe.caffe", "bonecaffe.caffe.installation", "bonecaffe.errors", "bonecaffe.files"),
    ]
    for path in (scripts / "build_caffe.py", *sorted((scripts / "builder").glob("*.py"))):
        for node in ast.walk(ast.parse(path.read_text())):  # what is imported within functions too
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert name.split(".")[0] in {*sys.stdlib_module_names, "bonecaffe", "builder", "caffe_edits"}, path


def test_importing_and_help_are_light():
    """`import bonecaffe` and `bonecaffe --help` load neither Caffe nor OpenCV nor matplotlib, and are quick."""
    heavy = "[m for m in ('caffe', 'cv2', 'matplotlib', 'pandas', 'numpy', 'pydantic') if m in sys.modules]"
    for code in (
        "import bonecaffe",
        "from click.testing import CliRunner; from bonecaffe.cli import main; "
        "assert CliRunner().invoke(main, ['--help']).exit_code == 0",
    ):
        done = subprocess.run(
            [sys.executable, "-c", f"import sys; {code}; print({heavy})"], capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == "[]"
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "bonecaffe", "--help"], capture_output=True, check=True)
    assert time.monotonic() - began < 5  # a gross bound only; the figure is `make bench`'s


def test_public_names_are_there():
    """What the README imports can be imported."""
    import bonecaffe

    for name in bonecaffe.__all__:
        assert getattr(bonecaffe, name) is not None
