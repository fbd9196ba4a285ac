"""The architecture is as planned: imports run one way, and nothing heavy is loaded before it is needed."""

from __future__ import annotations

import ast
import os
import subprocess
import sys

from conftest import REPOSITORY

PACKAGE = REPOSITORY / "bonecaffe"

LAYERS = [  # each may import from those before it, and from itself
    {"errors"},
    {"files", "trees", "progress", "workers", "recipe", "recipes", "web"},
    {"records"},
    {"run"},
    {"caffe"},
    {"hands"},
    {"prepare"},
    {"network"},
    {"training"},
    {"model"},
    {"predict", "locate"},
    {"evaluation"},
    {"annotate", "export", "studies", "doctor"},
    {"cli", "__main__"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def imports():
    """(file, its layer, imported module) for every import in the package."""
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
    """No layer imports from a later one."""
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
    """Marking and reading hands needs no Caffe."""
    for path, part, name in imports():
        if part == "hands":
            assert not name.startswith(("bonecaffe.caffe", "caffe")), path


def test_marking_needs_no_caffe():
    """The page needs hands and the one function that makes the network's image, nothing else."""
    of_it = {name for _, part, name in imports() if part == "annotate" and name.startswith("bonecaffe.")}
    allowed = {"annotate", "errors", "files", "hands", "prepare", "recipe", "web"}
    assert {name.split(".")[1] for name in of_it} <= allowed
    assert {name for name in of_it if "prepare" in name} == {"bonecaffe.prepare.normalize"}


def test_only_caffe_starts_processes():
    """One package calls Caffe's programs."""
    found = {path.relative_to(PACKAGE).as_posix() for path, _, name in imports() if name == "subprocess"}
    assert found == {"caffe/installation.py", "caffe/programs.py"}


OS_WRITERS = {"open", "fdopen", "replace", "rename", "renames", "unlink", "remove", "link", "symlink", "truncate"}
SHUTIL_WRITERS = {"rmtree", "copy", "copy2", "copyfile", "copyfileobj", "copytree", "move"}
PATH_WRITERS = {"write_text", "write_bytes", "unlink", "rename", "hardlink_to", "symlink_to", "touch"}


def writes(tree: ast.AST):
    """(line, what) for every call in a module that opens a file for writing, or moves or removes one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and any(alias.name == "tempfile" for alias in node.names):
            yield node.lineno, "import tempfile"
        elif isinstance(node, ast.ImportFrom) and node.module in ("os", "shutil", "tempfile"):
            names = {alias.name for alias in node.names}
            if node.module == "tempfile" or names & (OS_WRITERS if node.module == "os" else SHUTIL_WRITERS):
                yield node.lineno, f"from {node.module} import {', '.join(sorted(names))}"
        elif isinstance(node, ast.Call):
            yield from _called(node)


def _called(call: ast.Call):
    function = call.func
    if isinstance(function, ast.Name):
        if function.id == "open" and _writing(call, 1):
            yield call.lineno, "open(…) for writing"
    elif isinstance(function, ast.Attribute):
        owner = function.value.id if isinstance(function.value, ast.Name) else "…"
        name, of_a_path = function.attr, owner not in ("files", "lmdb", "lmdb_package", "os", "shutil")
        if call.args and ast.unparse(call.args[0]) == "os.devnull":
            return
        if (
            (owner == "os" and name in OS_WRITERS)
            or (owner == "shutil" and name in SHUTIL_WRITERS)
            or (of_a_path and name in PATH_WRITERS)
            or (of_a_path and name == "open" and _writing(call, 0))
            or (of_a_path and name == "replace" and len(call.args) == 1 and not call.keywords)  # a text's has two
        ):
            yield call.lineno, f"{owner}.{name}"


def _writing(call: ast.Call, place: int) -> bool:
    """Whether the mode of an open(), its argument at ``place``, lets it write; a computed mode might."""
    for mode in [*call.args[place : place + 1], *(keyword.value for keyword in call.keywords if keyword.arg == "mode")]:
        if isinstance(mode, ast.Constant):
            text = str(mode.value)
            return set(text) <= set("rwaxbt+") and bool(set(text) & set("wax+"))
        return place > 0  # the first argument is usually a path
    return False


def test_writes_are_seen():
    """The search of the next test finds every way to write, move or remove a file, and nothing else."""
    writing = (
        "open(p, 'w')", "open(p, mode='ab')", "open(p, 'r+')", "open(p, mode)", "p.open('x')", "os.open(p, 0)",
        "os.replace(a, b)", "os.unlink(p)", "shutil.rmtree(p)", "shutil.copyfile(a, b)", "p.write_text('')",
        "Path(p).write_bytes(b'')", "p.unlink()", "p.rename(q)", "p.replace(q)", "import tempfile",
        "from tempfile import mkdtemp", "from shutil import move", "from os import rename",
    )  # fmt: skip
    reading = (
        "open(p)", "open(p, 'rb')", "open(p, encoding='utf-8')", "p.open()", "lmdb.open(str(p), readonly=True)",
        "'a'.replace('b', 'c')", "files.write_text(p, '')", "write_text(p, '')", "replace(point, x=1)", "os.stat(p)",
        "PIL.Image.open(file, formats=('PNG',))", "shutil.disk_usage(p)", "moment.replace(tzinfo=None)",
    )  # fmt: skip
    for code in writing:
        assert len(list(writes(ast.parse(code)))) == 1, code
    for code in reading:
        assert not list(writes(ast.parse(code))), code


def test_only_files_writes_files():
    """No module but files.py opens a file for writing, moves one or removes one: it is safe on an untrusted folder."""
    found = {
        path.relative_to(PACKAGE).as_posix(): list(writes(ast.parse(path.read_text())))
        for path in sorted(PACKAGE.rglob("*.py"))
    }
    assert found.pop("files.py")
    found = {path: places for path, places in found.items() if places}
    assert not found


def test_the_builder_needs_only_the_standard_library():
    """scripts/build_caffe.py runs before anything is installed: without site-packages, all that it imports is there.

    So is what bundle_caffe.py imports.
    """
    scripts = REPOSITORY / "scripts"
    code = (
        "import build_caffe, bundle_caffe, sys; "
        "print(*sorted(name for name in sys.modules if name.startswith('bonecaffe')))"
    )
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
        *("bonecaffe", "bonecaffe.caffe", "bonecaffe.caffe.bundle", "bonecaffe.caffe.installation"),
        *("bonecaffe.errors", "bonecaffe.files", "bonecaffe.progress"),
    ]
    for path in (scripts / "build_caffe.py", scripts / "bundle_caffe.py", *sorted((scripts / "builder").glob("*.py"))):
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
    before = os.times()
    subprocess.run([sys.executable, "-m", "bonecaffe", "--help"], capture_output=True, check=True)
    after = os.times()  # CPU time: on a busy machine the wall clock measures other processes
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    assert spent < 5  # a rough bound only; `make bench` measures it


def test_public_names_are_there():
    """What the README imports can be imported."""
    import bonecaffe

    for name in bonecaffe.__all__:
        assert getattr(bonecaffe, name) is not None
