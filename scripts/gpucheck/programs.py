"""Caffe's programs: where they are, running one with a limit, a log and progress; the content of a training's log."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, List, Sequence

from gpucheck.outcome import CheckError, Failed

WSL = "/usr/lib/wsl/lib/nvidia-smi"


@dataclass(frozen=True)
class Caffe:
    """An installed Caffe: its folder (None: on PATH), its programs, its pycaffe, the records next to it."""

    root: Path | None
    bin: Path
    python: Path | None
    record: Dict[str, Any]

    def program(self, name: str) -> str:
        """The path of one of its programs."""
        return str(self.bin / name)

    @property
    def converts(self) -> bool:
        """Whether it has convert_imageset, which a Caffe without OpenCV has not."""
        return os.access(self.program("convert_imageset"), os.X_OK)

    @property
    def identity(self) -> List[Any]:
        """What tells this Caffe from another, or from itself after it was built again."""
        stat = (self.bin / "caffe").stat()
        return [str(self.bin), stat.st_size, int(stat.st_mtime)]


def find(given: str | None, here: Path) -> Caffe:
    """The Caffe to check: ``given`` (CAFFE_ROOT), else one next to the script, the environment's own, or PATH.

    CheckError with the remedy when there is none.
    """
    if given:
        return _at(Path(given).absolute())
    if (here / "bin" / "caffe").is_file() and (here / "bundle.json").is_file():
        return _at(here)
    noted = _json(Path(sys.prefix) / "share" / "bonecaffe" / "caffe.json").get("root")
    if isinstance(noted, str) and noted != "PATH":
        return _at(Path(noted))
    on_path = shutil.which("caffe")
    if on_path:
        return Caffe(None, Path(on_path).parent, None, {})
    raise CheckError(
        "no Caffe found: CAFFE_ROOT is not set, there is none next to this script or on PATH. Set CAFFE_ROOT to an "
        "unpacked or installed Caffe, the folder that has bin/caffe, or run `make setup`."
    )


def _at(root: Path) -> Caffe:
    folders = [folder for folder in (root / "bin", root / "build" / "tools", root) if (folder / "caffe").is_file()]
    if not folders:
        raise CheckError(f"{root}: no bin/caffe in it. Set CAFFE_ROOT to the folder of an unpacked or installed Caffe.")
    if not os.access(str(folders[0] / "caffe"), os.X_OK):
        raise CheckError(f"{folders[0] / 'caffe'}: no program. Unpack or build this Caffe again.")
    pythons = [root / "python", *sorted(root.glob("lib/python3*/*-packages"))]
    python = next((folder for folder in pythons if (folder / "caffe" / "__init__.py").is_file()), None)
    record = {**_json(root / "bonecaffe-build.json"), **_json(root / "bundle.json")}
    return Caffe(root, folders[0], python, record)


def _json(path: Path) -> Dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def nvidia_smi() -> str | None:
    """The path of nvidia-smi; None when there is none. WSL2 keeps it off PATH."""
    return shutil.which("nvidia-smi") or (WSL if os.access(WSL, os.X_OK) else None)


def query(fields: str) -> List[List[str]]:
    """The answer of nvidia-smi, a list for each GPU; empty when it gives none."""
    program = nvidia_smi()
    if program is None:
        return []
    try:
        done = subprocess.run(
            [program, "--query-gpu=" + fields, "--format=csv,noheader,nounits"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    if done.returncode:
        return []
    rows = [[cell.strip() for cell in line.split(",")] for line in done.stdout.decode("utf-8", "replace").splitlines()]
    return [row for row in rows if len(row) == len(fields.split(","))]


def environment(extra: Dict[str, str] | None = None) -> Dict[str, str]:
    """What Caffe's programs run in: as bonecaffe starts them, with its defaults unless ``extra`` changes them.

    The check compares the defaults with TF32 and with the fastest algorithms. So the user's own choice of them, in the
    environment, does not count. BONECAFFE_CUDNN_EXCLUDE does: it is what a GPU needs whose algorithm fails.
    """
    standard = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "GOMP_SPINCOUNT": "1000"}
    log = {"GLOG_logtostderr": "1", "GLOG_minloglevel": "0"}
    default = {"BONECAFFE_TF32": "0", "BONECAFFE_CUDNN": "deterministic"}
    together = {**standard, **os.environ, **log, **default, **(extra or {})}
    together.pop("NVIDIA_TF32_OVERRIDE", None)  # as in bonecaffe/caffe/arithmetic.py
    if together["BONECAFFE_TF32"] != "1":
        together["NVIDIA_TF32_OVERRIDE"] = "0"
    return together


@dataclass
class Ran:
    """A finished program: its output, how long it took, the most memory it held in RAM, bytes, and its exit status."""

    output: str
    seconds: float
    memory_bytes: int
    status: int = 0


@dataclass
class Running:
    """A program to run: its command, where, its log file, its limit in seconds, what each line is shown to.

    Any exit status is accepted with ``any_status``, or where the output holds ``complete``: a Caffe on a GPU can abort
    at its exit ("driver shutting down") when all its work is done (BVLC/caffe#5416).
    """

    command: Sequence[str]
    log: Path
    limit_s: float
    cwd: Path | None = None
    environment: Dict[str, str] = field(default_factory=dict)
    seen: Callable[[str], None] | None = None
    any_status: bool = False
    complete: str = ""

    def finish(self) -> Ran:
        """Run it to its end; Failed with its last words when it fails or takes longer than its limit."""
        started = time.monotonic()
        lines: List[str] = []
        libc = ctypes.CDLL(None)
        try:
            process = subprocess.Popen(
                list(self.command),
                cwd=str(self.cwd) if self.cwd else None,
                env=self.environment or environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=lambda: libc.prctl(1, signal.SIGKILL),  # it ends when we are killed
            )
        except OSError as error:
            raise Failed(f"{self.command[0]}: cannot be started: {error.strerror}") from error
        late = threading.Event()

        def end() -> None:
            late.set()
            _kill(process)

        timer = threading.Timer(self.limit_s, end)
        timer.daemon = True
        timer.start()
        try:
            assert process.stdout is not None
            with open(str(self.log), "w", encoding="utf-8") as log:
                for raw in process.stdout:
                    line = raw.decode("utf-8", "replace").rstrip("\n")
                    log.write(line + "\n")
                    lines.append(line)
                    if self.seen:
                        self.seen(line)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = -(status & 0x7F) if status & 0x7F else status >> 8
        except BaseException:
            _kill(process)
            process.wait()
            raise
        finally:
            timer.cancel()
            if process.stdout:
                process.stdout.close()
        output = "\n".join(lines)
        name = os.path.basename(str(self.command[0]))
        if late.is_set():
            raise Failed(f"{name} had not ended after {self.limit_s:.0f} s and was stopped: {last_words(output)}")
        accepted = self.any_status or (self.complete and self.complete in output)
        if process.returncode and not accepted:
            raise Failed(f"{name} ended with exit status {process.returncode}: {last_words(output)}")
        return Ran(output, time.monotonic() - started, usage.ru_maxrss * 1024, process.returncode)


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def last_words(output: str) -> str:
    """The line that tells why a program ended: glog's fatal one, else the last."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    fatal = [line for line in lines if re.match(r"F\d{4,8} ", line)]
    line = (fatal or lines or ["it printed nothing"])[0 if fatal else -1]
    return re.sub(r"^[A-Z]\d{4,8} [\d:.]+ +\d+ ", "", line)[:400]


class Memory:
    """Samples what a GPU has in use while a block runs, MiB: ``peak`` above what was in use ``before``."""

    def __init__(self, gpu: str | None) -> None:
        self.before: float | None = None
        self.peak: float | None = None
        self._gpu = gpu
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Memory:
        if self._gpu is not None:
            self.before = self._used()
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(25)

    def _used(self) -> float | None:
        for index, used in query("index,memory.used"):
            if index == self._gpu and re.fullmatch(r"[\d.]+", used):
                return float(used)
        return None

    def _sample(self) -> None:
        while True:  # at least once, however short the block
            used = self._used()
            if used is not None:
                self.peak = max(used, self.peak or 0.0)
            if self._stop.wait(0.5):
                return


# ---- the content of a training's log -----------------------------------------------------------------------------

_NUMBER = r"([-+]?(?:nan|inf|\d+\.?\d*(?:e[-+]?\d+)?))"
_LOSS = re.compile(r"Iteration (\d+)(?: \(([\d.e+-]+) iter/s, [^)]*\))?, loss = " + _NUMBER, re.IGNORECASE)
_TEST = re.compile(r"Test net output #\d+: loss = " + _NUMBER, re.IGNORECASE)
_BATCH = re.compile(r"Batch \d+, (\w+) = " + _NUMBER, re.IGNORECASE)


@dataclass
class Log:
    """A training's losses by iteration, its speed at each display, its last test loss, and whether it is complete."""

    losses: Dict[int, float]
    rates: List[float]
    test_loss: float | None
    restored: bool
    complete: bool

    @property
    def seconds_per_iteration(self) -> float | None:
        """The median of the displays after the first two; None when it was too short.

        The first has no iterations, or after a resumption counts all from 0 on; the second has the start in it.
        """
        rates = sorted(rate for rate in (self.rates[2:] or self.rates[1:]) if rate > 0)
        return 1 / rates[len(rates) // 2] if rates else None


def read_log(output: str) -> Log:
    """A log of ``caffe train``.

    >>> read_log("Iteration 0, loss = 9\\nIteration 20 (4 iter/s, 5s/20 iters), loss = -nan").losses
    {0: 9.0, 20: nan}
    """
    losses, rates = {}, []
    for number, rate, value in _LOSS.findall(output):
        losses[int(number)] = float(value)
        if rate:
            rates.append(float(rate))
    tests = _TEST.findall(output)
    complete = "Optimization Done" in output and "Optimization stopped early" not in output
    return Log(losses, rates, float(tests[-1]) if tests else None, "Resuming from " in output, complete)


def read_batches(output: str) -> Dict[str, List[float]]:
    """What ``caffe test`` logs of each batch: by output, its values in order.

    >>> read_batches("Batch 0, fc8 = 99.5\\nBatch 0, label = 101\\nLoss: 0\\nBatch 1, fc8 = 1e+02")
    {'fc8': [99.5, 100.0], 'label': [101.0]}
    """
    values: Dict[str, List[float]] = {}
    for name, value in _BATCH.findall(output):
        values.setdefault(name, []).append(float(value))
    return values
