"""Shared by the tests: phantoms, small recipes, runs prepared and trained on the real Caffe."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pandas
import pytest

from bonecaffe.caffe import programs
from bonecaffe.hands.phantom import dataset
from bonecaffe.prepare import prepare
from bonecaffe.recipe import Recipe
from bonecaffe.run import RunDir

REPOSITORY = Path(__file__).resolve().parent.parent
SAMPLE = REPOSITORY / "data" / "sample"
REAL_HANDS = REPOSITORY.parent / "shared" / "real_hands"

TINY = {
    "network.conv_outputs": (8, 8, 8, 8, 8),
    "network.conv_groups": (1, 1, 1, 1, 1),
    "network.fc_outputs": (16, 16),
    "network.train_batch": 4,
    "network.weight_filler": "msra",
    "network.bias_filler": "zero",
    "network.dropout": 0.0,
    "network.fc8_bias": 100.0,
    "data.train_cases": 8,
    "data.test_cases": 4,
    "solver.type": "Adam",
    "solver.base_lr": 0.001,
    "solver.test_iter": 2,
    "solver.test_interval": 4,
    "solver.display": 1,
    "solver.max_iter": 12,
    "solver.stepsize": 8,
    "solver.snapshot": 4,
    "solver.solver_mode": "CPU",
    "training.initial_weights": "none",
}


def tiny(**changes) -> Recipe:
    """A net that trains in a second; ``solver__max_iter=6`` changes ``solver.max_iter``."""
    values = {**TINY, **{name.replace("__", "."): value for name, value in changes.items()}}
    return Recipe.load("paper").with_values(values, "tests: small enough to train in a second")


@contextlib.contextmanager
def disposition(number: signal.Signals, handler) -> Iterator[None]:
    """Set this process's handling of a signal for the duration of the block."""
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


@pytest.fixture(scope="session", autouse=True)
def makes_own_variables():
    """A make called by a test behaves as at a terminal, although ``make test`` exports its own variables."""
    with pytest.MonkeyPatch.context() as patched:
        for name in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "GNUMAKEFLAGS", "BONECAFFE_MAKE"):
            patched.delenv(name, raising=False)
        yield


@pytest.fixture(scope="session", autouse=True)
def stopping_signals():
    """Ctrl-C and SIGTERM work as usual, here and in all child processes.

    A shell starts a script's background job (``make test &``) with SIGINT ignored, and children inherit that. SIGHUP is
    left alone, so that ``nohup make test`` survives a hang-up.
    """
    with disposition(signal.SIGINT, signal.default_int_handler), disposition(signal.SIGTERM, signal.SIG_DFL):
        yield


@pytest.fixture(scope="session")
def hands(tmp_path_factory) -> Path:
    """Twelve small phantoms in RSNA's layout."""
    out = tmp_path_factory.mktemp("hands") / "data"
    dataset.write(out, 12, seed=5, size=(300, 390))
    return out


@pytest.fixture
def own_hands(hands, tmp_path) -> Path:
    """A copy of them that one test may damage."""
    return Path(shutil.copytree(hands, tmp_path / "data"))


def prepare_run(path: Path, data: Path, recipe: Recipe | None = None, images=("images",), **options) -> RunDir:
    """Prepare a run from a folder of phantoms."""
    run = RunDir(path)
    folders = [data / name for name in images]
    prepare.prepare(run, folders, data / "ages.csv", data / "points.csv", recipe or tiny(), **options)
    return run


def with_recipe(run: RunDir, recipe: Recipe) -> RunDir:
    """The run as if it had been prepared with another recipe for the same images."""
    prepare.adopt(run, recipe)
    return run


@pytest.fixture(scope="session")
def prepared(hands, tmp_path_factory) -> RunDir:
    """A prepared run; tests must not change it."""
    return prepare_run(tmp_path_factory.mktemp("runs") / "prepared", hands)


@pytest.fixture(scope="session")
def trained(hands, tmp_path_factory) -> RunDir:
    """A run trained to its end on the real Caffe; tests must not change it."""
    from bonecaffe.training import train

    run = prepare_run(tmp_path_factory.mktemp("runs") / "trained", hands)
    outcome = train.train(run)
    assert outcome is not None and outcome.state == "finished", outcome
    return run


@pytest.fixture
def own_run(prepared, tmp_path) -> RunDir:
    """A prepared run that one test may change."""
    return RunDir(shutil.copytree(prepared.path, tmp_path / "run"))


@pytest.fixture
def own_trained(trained, tmp_path) -> RunDir:
    """A trained run that one test may change."""
    return RunDir(shutil.copytree(trained.path, tmp_path / "run"))


@pytest.fixture(scope="session")
def real_hands() -> Path:
    """Real radiographs next to the project, for trials; nothing of them is stored."""
    if not (REAL_HANDS / "points.csv").is_file():
        pytest.skip("no folder of real hands next to the project")
    return REAL_HANDS


@contextlib.contextmanager
def small_file_system(folder: Path, size: str) -> Iterator[Path]:
    """A file system of ``size`` mounted on a new folder; the test is skipped where this user may not mount one."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("may not mount a small file system here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


@pytest.fixture(scope="session")
def browser():
    """Debian's chromium, headless, with its own driver; it logs its console and its requests."""
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no chromium with chromedriver here; `make test` installs them where it may")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    window = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield window
    window.quit()


def caffes(run: RunDir) -> list[int]:
    """The Caffe processes that work in a run."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if os.path.samefile(f"/proc/{pid}/cwd", run.path) and os.path.basename(
                os.readlink(f"/proc/{pid}/exe")
            ).startswith("caffe"):
                found.append(int(pid))
    return found


def losses_of_test(run: RunDir) -> tuple[float, float]:
    """The test loss of a trained tiny run: from predictions_test.csv, and as ``caffe test`` reports it."""
    table = pandas.read_csv(run.predictions("test"))
    ours = float(((table.predicted_months - table.boneage_months) ** 2).mean() / 2)
    model = ["-model", run.train_val.name, "-weights", "snapshots/SNAPSHOT_iter_12.caffemodel"]
    output = programs.call("caffe", ["test", *model, "-iterations", "2"], cwd=run.path)
    return ours, float(output.rsplit("Loss: ", 1)[1].split()[0])


def edit_table(path: Path, **cells) -> None:
    """Overwrite cells of the first row of a CSV file."""
    table = pandas.read_csv(path, dtype=str, keep_default_na=False)
    for column, value in cells.items():
        table.loc[0, column] = value
    table.to_csv(path, index=False)
