"""The display of a training: one live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import math
import sys
from typing import TYPE_CHECKING

from bonecaffe.caffe.log import rmse_months
from bonecaffe.progress import Pace, duration
from bonecaffe.training.drive import Standing

if TYPE_CHECKING:
    from rich.live import Live


def describe(progress: Standing) -> str:
    """One line: iteration, errors as RMSE in months, learning rate, images/s, time to the next test and to the end."""

    def months(loss: float) -> str:
        return f"{rmse_months(loss):.1f}" if math.isfinite(loss) else ("-" if math.isnan(loss) else "inf")

    speed = f"  {progress.images_per_s:.1f} images/s" if math.isfinite(progress.images_per_s) else ""
    return (
        f"iteration {progress.iteration}/{progress.max_iter}"
        f"  RMSE train {months(progress.train_loss)}, test {months(progress.test_loss)} months"
        f"  rate {progress.rate:g}{speed}  test in {duration(progress.eta_test_s)}, end in {duration(progress.eta_s)}"
    )


class Display:
    """Shows a training on stderr; use it in a ``with`` block. If nothing can be shown, the training still runs."""

    def __init__(self, verb: str = "train") -> None:
        self._verb = verb
        self._live: Live | None = None
        self._shown = -1
        self._pace = Pace()

    def __enter__(self) -> Display:
        if sys.stderr is not None and sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            live = Live(console=Console(stderr=True), refresh_per_second=4)
            with contextlib.suppress(OSError, RuntimeError):  # no room to write, no thread to draw with: plain lines
                live.start()
                self._live = live
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live is not None:
            with contextlib.suppress(Exception):
                self._live.stop()

    def say(self, sentence: str) -> None:
        """Print a sentence that stays on the screen."""
        with contextlib.suppress(Exception):  # the reader may be gone; the training continues
            if self._live is not None:
                self._live.console.print(sentence, highlight=False, markup=False)
            else:
                print(f"{self._verb}: {sentence}", file=sys.stderr, flush=True)

    def show(self, progress: Standing) -> None:
        """Show the training's progress; without a terminal, at a `Pace` and at each twentieth."""
        event = progress.event
        if self._live is not None:
            with contextlib.suppress(OSError):
                self._live.update(describe(progress))
        elif event is not None and event.kind == "lr":
            if progress.iteration < self._shown:  # another training
                self._shown, self._pace = -1, Pace()
            due = self._shown < 0 or progress.iteration >= min(progress.max_iter, self._shown + progress.max_iter / 20)
            if self._pace.due(anyway=due):
                self._shown = progress.iteration
                self.say(describe(progress))
