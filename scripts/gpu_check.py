#!/usr/bin/env python3
"""Checks that Caffe computes on this machine's GPU what it computes on the CPU, and how fast; leaves a report.

    gpu_check.py [--gpu 0] [--data gpu-check-data.tar.xz] [--work gpu-check]    the check, about ten minutes
    gpu_check.py --cpu --quick                                                  its parts on the CPU, in a minute
    gpu_check.py prepare [--out gpu-check-data.tar.xz]                          the phantoms for it; needs bonecaffe

Python 3.8 or newer and nothing else, so that it runs next to an unpacked Caffe (CAFFE_ROOT) where nothing can be
installed. Interrupted or failed, the same command continues where it stopped: parts that are ok are kept. Exit status 0
when no part fails, 1 when one does or the check cannot start, 130 when it was interrupted.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Tuple

if sys.version_info < (3, 8):  # the check runs with whatever Python is there
    sys.exit("gpu-check: needs Python 3.8 or newer")

from gpucheck import convolutions, images, machine, own_tests, programs, report, training
from gpucheck.check import Check, Options, say
from gpucheck.outcome import FAILED, OK, SKIPPED, CheckError, Failed, Result, Skip
from gpucheck.store import State, held, remove, scrubbed

VERSION = 1
"""Raised when results of an older script must not be kept."""


class Part(NamedTuple):
    """A part of the check; ``seconds`` is about how long it takes on a GPU, and with --cpu --quick."""

    name: str
    title: str
    run: Callable[[Check], Result]
    seconds: Tuple[int, int]


PARTS = (
    Part("machine", "what is here", machine.examine, (3, 1)),
    Part("own_tests", "Caffe's own C++ tests", own_tests.run, (180, 60)),
    Part("convolutions", "grouped convolutions against the CPU", convolutions.compare, (25, 4)),
    Part("train", "training, and its resumption", training.train, (180, 8)),
    Part("predictions", "predictions of CPU and GPU", training.predictions, (30, 3)),
    Part("pycaffe", "predictions by pycaffe", training.pycaffe, (20, 3)),
    Part("repeatable", "the same seed twice", training.repeatable, (120, 4)),
    Part("speed", "speed against PyTorch", training.speed, (60, 10)),
)


def main(arguments: List[str] | None = None) -> int:
    """Run the command; return its exit status."""
    signal.signal(signal.SIGTERM, _interrupt)
    options = _parser().parse_args(arguments)
    try:
        if options.verb == "prepare":
            images.pack(Path(options.out).absolute(), options.train, options.test, options.size)
            say(f"{options.out}: {os.path.getsize(options.out) / 1e6:.1f} MB. Give it to gpu-check as --data.")
            return 0
        return _check(options)
    except CheckError as error:
        say(str(error))
        return 1
    except OSError as error:
        say(f"{error.filename or 'the work folder'}: {error.strerror}")
        return 1
    except KeyboardInterrupt:
        say("interrupted. The same command continues from here.")
        return 130


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gpu-check", description=(__doc__ or "").partition("\n")[0], formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("verb", nargs="?", choices=("run", "prepare"), default="run", help="default: run")
    device = parser.add_mutually_exclusive_group()
    device.add_argument(
        "--gpu", default="0", metavar="N", help="the GPU to check, as nvidia-smi numbers it (default: 0)"
    )
    device.add_argument("--cpu", action="store_true", help="the CPU in place of the GPU: checks the check itself")
    parser.add_argument("--quick", action="store_true", help="a narrow net and few images")
    parser.add_argument(
        "--caffe", metavar="FOLDER", help="the Caffe to check (default: CAFFE_ROOT, else the installed one)"
    )
    parser.add_argument("--data", metavar="FILE", help="the archive of prepare (default: simple drawings)")
    parser.add_argument("--work", metavar="FOLDER", default="gpu-check", help="results and report (default: gpu-check)")
    parser.add_argument("--tests", metavar="FILE", help="Caffe's test.testbin (default: the one of this Caffe's build)")
    parser.add_argument("--torch-python", metavar="FILE", help="a Python that has PyTorch (default: this one)")
    parser.add_argument("--only", metavar="PART,…", help="these parts: " + ", ".join(part.name for part in PARTS))
    parser.add_argument(
        "--limit", type=float, default=1800, metavar="S", help="longest run of one program (default: 1800)"
    )
    parser.add_argument("--fresh", action="store_true", help="drop the work folder's earlier results")
    parser.add_argument("--out", metavar="FILE", default="gpu-check-data.tar.xz", help="prepare: the archive to write")
    parser.add_argument(
        "--train", type=int, default=400, metavar="N", help="prepare: images for training (default: 400)"
    )
    parser.add_argument("--test", type=int, default=200, metavar="N", help="prepare: images for test (default: 200)")
    parser.add_argument("--size", default="700x910", help="prepare: the phantoms' size (default: 700x910)")
    return parser


def _check(given: argparse.Namespace) -> int:
    parts = _chosen(given.only)
    options = Options(
        gpu=None if given.cpu else _gpu(given.gpu),
        quick=given.quick,
        data=_file(given.data, "--data"),
        tests=_file(given.tests, "--tests"),
        torch_python=given.torch_python,
        limit_s=given.limit,
    )
    caffe = programs.find(given.caffe or os.environ.get("CAFFE_ROOT"), Path(__file__).absolute().parent.parent)
    work = Path(given.work).absolute()
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "lock").exists() and any(work.iterdir()):
        raise CheckError(f"{work}: holds other files. Give an empty or a new folder by --work.")
    settings: Dict[str, Any] = {
        "version": VERSION,
        "device": "CPU" if given.cpu else "GPU",
        "gpu": options.gpu,
        "quick": options.quick,
        "caffe": caffe.identity,
        "data": [options.data.stat().st_size, int(options.data.stat().st_mtime)] if options.data else None,
    }
    with held(work):
        if given.fresh:
            for path in work.iterdir():
                if path.name != "lock":
                    remove(path)
        state = State(work, settings)
        if state.dropped:
            say("the work folder's earlier results are of another Caffe, device or data, or damaged; they are not used")
        return _run(Check(options, caffe, work, state, say), parts, settings)


def _chosen(only: str | None) -> List[Part]:
    if only is None:
        return list(PARTS)
    names = [name.strip() for name in only.split(",") if name.strip()]
    known = {part.name: part for part in PARTS}
    for name in names:
        if name not in known:
            raise CheckError(f"--only {name}: no such part. There are {', '.join(known)}.")
    return [part for part in PARTS if part.name in names]


def _gpu(number: str) -> str:
    if not (number.isascii() and number.isdigit()):
        raise CheckError(f"--gpu {number}: takes the number of one GPU, such as 0. nvidia-smi lists them.")
    return number


def _file(given: str | None, option: str) -> Path | None:
    if given is None:
        return None
    path = Path(given).absolute()
    if not path.is_file():
        raise CheckError(f"{option} {given}: no such file.")
    return path


def _run(check: Check, parts: List[Part], settings: Dict[str, Any]) -> int:
    shown = {key: settings[key] for key in ("version", "device", "gpu", "quick")}
    complete = False

    def put() -> None:
        rows = [(part.name, _title(part, check), check.state.parts.get(part.name)) for part in PARTS]
        report.put(check.work, rows, shown, complete)

    left = [part for part in parts if getattr(check.state.parts.get(part.name), "status", None) != OK]
    for part in parts:
        if part not in left:
            say(f"{part.name}: ok before, kept")
    try:
        for number, part in enumerate(left):
            seconds = sum(each.seconds[check.options.quick] for each in left[number:])
            say(f"{part.name} ({number + 1} of {len(left)}): {_title(part, check)}; about {_time(seconds)} left")
            before = check.state.parts.get(part.name)
            if before is not None and before.status == FAILED:
                check.state.forget(part.name)
            check.state.put(part.name, _outcome(part, check))
            result = check.state.parts[part.name]
            say(f"{part.name}: {result.status}: {scrubbed(result.summary)}")
        complete = all(part.name in check.state.parts for part in PARTS)
    finally:
        put()
        say(f"report: {check.work / 'gpu-check.md'} and gpu-check.json")
    return 1 if any(check.state.parts[part.name].status == FAILED for part in parts) else 0


def _title(part: Part, check: Check) -> str:
    return part.title if check.gpu else part.title.replace("CPU and GPU", "the CPU, twice")


def _outcome(part: Part, check: Check) -> Result:
    """A part's result; whatever goes wrong in it is its own failure, and the check continues."""
    started = time.monotonic()
    try:
        result = part.run(check)
    except Skip as reason:
        result = Result(SKIPPED, str(reason))
    except (Failed, CheckError) as reason:
        result = Result(FAILED, str(reason), getattr(reason, "figures", {}))
    except OSError as error:  # a full disk, a folder that may not be written
        result = Result(FAILED, f"{error.filename or 'the work folder'}: {error.strerror or error}")
    except Exception as error:  # a fault of the check itself must not hide the other parts
        result = Result(FAILED, f"a fault of the check itself: {type(error).__name__}: {error}")
    result.seconds = time.monotonic() - started
    return result


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


if __name__ == "__main__":
    sys.exit(main())
