"""The check as a whole: what it was asked for, its work folder, and how a part runs Caffe."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, List

from gpucheck import nets
from gpucheck.programs import Caffe, Ran, Running, environment
from gpucheck.store import State

COMPLETE = {"train": "Optimization Done.", "test": "] Loss: ", "time": "] Total Time: "}
"""By verb of caffe, what its log holds when its work is done."""


@dataclass(frozen=True)
class Options:
    """What the user asked for; ``gpu`` is None with --cpu. Times are in seconds."""

    gpu: str | None
    quick: bool
    data: Path | None = None
    tests: Path | None = None
    torch_python: str | None = None
    limit_s: float = 1800.0

    @property
    def sizes(self) -> nets.Sizes:
        """The net to train."""
        return nets.QUICK if self.quick else nets.PAPER


@dataclass
class Check:
    """One run of the check, as its parts see it."""

    options: Options
    caffe: Caffe
    work: Path
    state: State
    shown: Callable[[str], None]
    _progress_s: float = field(default=0.0)

    @property
    def gpu(self) -> bool:
        """Whether this run is on a GPU."""
        return self.options.gpu is not None

    @property
    def device(self) -> str:
        """The word for it in the report."""
        return "GPU" if self.gpu else "CPU"

    def say(self, text: str) -> None:
        """Show a line now."""
        self.shown(text)

    def progress(self, text: str) -> None:
        """Show a line unless one was shown less than 5 seconds ago."""
        if time.monotonic() - self._progress_s > 5:
            self._progress_s = time.monotonic()
            self.shown(text)

    def run_caffe(
        self,
        arguments: List[str],
        log: str,
        extra: Dict[str, str] | None = None,
        seen: Callable[[str], None] | None = None,
        program: str = "caffe",
    ) -> Ran:
        """Run one of Caffe's programs in the work folder; its log is kept there under this name."""
        command = [self.caffe.program(program), *arguments]
        env, complete = environment(extra), COMPLETE.get(arguments[0], "")
        file = self.work / f"{log}.log"
        ran = Running(command, file, self.options.limit_s, self.work, env, seen, complete=complete).finish()
        if ran.status:
            self.say(f"  caffe {arguments[0]} did its work, but ended with exit status {ran.status}")
        return ran

    def on_device(self) -> List[str]:
        """The option that puts Caffe on this run's device."""
        return ["-gpu", str(self.options.gpu)] if self.gpu else []

    def step(self, name: str, make: Callable[[], Any], files: Any = ()) -> Any:
        """See `State.step`."""
        return self.state.step(name, make, files)


def say(text: str) -> None:
    """A line for the user, on stderr."""
    print(f"gpu-check: {text}", file=sys.stderr, flush=True)
