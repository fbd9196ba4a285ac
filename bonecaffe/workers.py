"""One task a core: worker processes that a Ctrl-C does not clutter and whose death is noticed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from typing import TypeVar

from bonecaffe.errors import BonecaffeError

Progress = Callable[[int, int], None]
"""Told (done, in all) as work goes on."""


def no_progress(done: int, total: int) -> None:
    """For work that nobody watches."""


Task = TypeVar("Task")
Result = TypeVar("Result")


def _prepare_worker() -> None:
    """One thread for OpenCV, because the processes are what runs in parallel; Ctrl-C is for the parent to handle.

    A worker whose parent was killed ends at once, or it would write beside the one that is started anew.
    """
    import cv2

    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _context(module: str) -> ForkServerContext:
    """The server that workers are forked from, with a module imported already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([module, "cv2"])
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"  # or the server takes a folder of our name, where we were called, for us
    try:
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = before
    return context


def in_parallel(
    work: Callable[[Task], Result], tasks: Sequence[Task], workers: int, error: type[BonecaffeError]
) -> Iterator[Result]:
    """The results of ``work`` for each task, in order, as they come.

    Raises ``error`` when a worker process was killed, as a machine short of memory does, instead of waiting for it.
    """
    context = _context(work.__module__)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_prepare_worker)
    try:
        yield from pool.map(work, tasks, chunksize=4)
    except BrokenProcessPool:
        raise error(
            "a worker process was killed, probably for lack of memory. Try again with fewer (--jobs 1)."
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
