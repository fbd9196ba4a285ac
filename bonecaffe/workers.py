"""One task per core: worker processes that end on request, and whose death is noticed.

bonecaffe has its own small pool because an interrupted command must never hang. The pools of the standard library
(`concurrent.futures`, `multiprocessing.Pool`) and loky keep threads, locks and queues for their workers and join them
without a timeout when the interpreter exits: two Ctrl-C in quick succession made `prepare` hang forever. Here a worker
has one pipe, which the caller reads in its own thread. The pool ends by killing its workers; they hold nothing that
needs cleaning up. If even that is interrupted, a worker whose pipe is closed ends by itself.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
import types
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import connection, forkserver, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from multiprocessing.reduction import ForkingPickler
from typing import Any, TypeVar

from bonecaffe.errors import BonecaffeError

Task = TypeVar("Task")
Result = TypeVar("Result")

_CHUNK = 4
"""Most tasks in a message: several, because a task may take less time than a message."""
_SMALL = 16_384
"""Largest message, in bytes, of which a busy worker's pipe can always hold two."""
_START_S, _END_S = 0.5, 1.0
"""Seconds that an ending pool waits for workers that are being started, and for killed workers."""


def in_parallel(
    work: Callable[[Task], Result], tasks: Sequence[Task], workers: int, error: type[BonecaffeError]
) -> Generator[Result, None, None]:
    """The results of ``work`` for each task, in order, as they come; ``work`` is a function at the top of a module.

    An exception in ``work`` is raised here. Raises ``error`` when a worker process was killed, for example by a machine
    short of memory, instead of waiting for it. The workers end with the iterator. Where the body of a loop over it may
    fail, use ``contextlib.closing``: otherwise they live as long as the traceback.
    """
    if multiprocessing.current_process().daemon:  # such a process may have no children
        yield from map(work, tasks)
        return
    if not tasks:
        return
    pool = _Pool(work, workers)
    try:
        pool.start()
        yield from pool.results(tasks)
    except _WorkerLost:
        raise error(
            "a worker process was killed, probably for lack of memory. Try again with fewer workers (--jobs 1)."
        ) from None
    finally:
        pool.end()


# ---- in the caller's process -------------------------------------------------------------------------------------


class _WorkerLost(Exception):
    """A worker, or the server that workers are forked from, ended unexpectedly."""


@dataclass(frozen=True)
class _Failure:
    """The exception of a task, as a worker sends it."""

    error: BaseException


@dataclass
class _Worker:
    process: ForkServerProcess
    pipe: Connection
    sent: deque[int] = field(default_factory=deque)  # tasks left in each message that is not fully answered


class _Pool:
    """Workers and the tasks they have not answered yet."""

    def __init__(self, work: Callable[[Any], Any], size: int) -> None:
        self._work, self._size = work, size
        self._workers: list[_Worker] = []
        self._starting = threading.Thread(target=self._start, daemon=True)
        self._problem: BaseException | None = None
        self._ended = False

    def start(self) -> None:
        """Start the workers in a thread: a Ctrl-C then interrupts the waiting, never a start half-way."""
        self._starting.start()
        self._starting.join()
        if isinstance(self._problem, (EOFError, ConnectionError)):  # the server that they are forked from was killed
            raise _WorkerLost from self._problem
        if self._problem is not None:
            raise self._problem

    def _start(self) -> None:
        """Runs with SIGINT blocked; the server and the workers inherit that. Only the caller handles Ctrl-C."""
        try:
            resource_tracker.ensure_running()  # multiprocessing's own; starting it ends with SIGINT not blocked
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            context = _context(self._work.__module__)
            while len(self._workers) < self._size and not self._ended:
                _need_files(8)
                caller_end, worker_end = context.Pipe()
                process = context.Process(target=_serve, args=(worker_end, self._work), daemon=True)
                with _main_hidden(self._work):
                    process.start()
                worker_end.close()
                self._workers.append(_Worker(process, caller_end))
        except BaseException as error:  # raised where the pool is used
            self._problem = error
        if self._ended:  # the pool ended meanwhile: whichever of the two is last kills the workers
            self._kill()

    def results(self, tasks: Sequence[Any]) -> Iterator[Any]:
        """The results in the order of the tasks."""
        given, taken = 0, 0
        early: dict[int, Any] = {}  # results whose turn has not come
        while taken < len(tasks):
            for worker in sorted(self._workers, key=lambda worker: len(worker.sent)):  # the idle first
                if given < len(tasks) and len(worker.sent) < 2:
                    given = self._give(worker, tasks, given)
            for pipe in connection.wait([worker.pipe for worker in self._workers]):
                worker = next(worker for worker in self._workers if worker.pipe is pipe)
                number, result = _receive(worker.pipe)
                early[number] = result
                worker.sent[0] -= 1
                if not worker.sent[0]:
                    worker.sent.popleft()
            while taken in early:
                result = early.pop(taken)
                if isinstance(result, _Failure):
                    raise result.error
                yield result
                taken += 1

    def _give(self, worker: _Worker, tasks: Sequence[Any], given: int) -> int:
        """Send a worker some tasks; a second message only when it is so small that sending it cannot block."""
        count = min(_CHUNK, max(1, (len(tasks) - given) // (4 * self._size)))
        message = ForkingPickler.dumps((given, list(tasks[given : given + count])))
        if worker.sent and len(message) > _SMALL:
            return given
        try:
            worker.pipe.send_bytes(message)
        except OSError:
            raise _WorkerLost from None
        worker.sent.append(count)
        return given + count

    def end(self) -> None:
        """Kill the workers; wait for them, but not forever."""
        self._ended = True
        self._kill()
        if self._starting.is_alive():
            self._starting.join(_START_S)
        patience = time.monotonic() + _END_S
        for worker in list(self._workers):
            worker.process.join(max(0.0, patience - time.monotonic()))

    def _kill(self) -> None:
        for worker in list(self._workers):
            if worker.process.is_alive():  # otherwise its process id may belong to another process now
                worker.process.kill()
            worker.pipe.close()


def _receive(pipe: Connection) -> tuple[int, Any]:
    try:
        content = pipe.recv_bytes()
    except (EOFError, OSError):
        raise _WorkerLost from None
    number, result = pickle.loads(content)
    return number, result


def _need_files(count: int) -> None:
    """Raise OSError unless so many more files can be opened.

    A start that fails half-way for lack of files would make the workers' server print a traceback.
    """
    opened: list[int] = []
    try:
        while len(opened) < count:
            opened.append(os.open(os.devnull, os.O_RDONLY))
    finally:
        for number in opened:
            os.close(number)


def _context(module: str) -> ForkServerContext:
    """The context whose server the workers are forked from; the server has ``module`` imported already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([module, "cv2"])
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"  # a folder named bonecaffe here must not be imported instead
    try:
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = before
    return context


_HIDING = threading.Lock()


@contextlib.contextmanager
def _main_hidden(work: Callable[[Any], Any]) -> Iterator[None]:
    """Keep multiprocessing from running the caller's main module again in a worker that is started in the block.

    A worker imports ``work`` by its module's name and needs nothing else. A script without
    ``if __name__ == "__main__"`` would run again in each worker, and a script read from stdin cannot be found again.
    """
    if work.__module__ == "__main__":
        yield
        return
    with _HIDING:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = types.ModuleType("__main__")  # it has neither a spec nor a file
        try:
            yield
        finally:
            sys.modules["__main__"] = main


# ---- in a worker process -----------------------------------------------------------------------------------------


def _serve(pipe: Connection, work: Callable[[Any], Any]) -> None:
    """Answer each message until the pipe is closed. One thread for OpenCV: the processes are what runs in parallel."""
    import cv2

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    cv2.setNumThreads(1)
    try:
        while True:
            first, tasks = pickle.loads(pipe.recv_bytes())
            for number, task in enumerate(tasks, start=first):
                pipe.send_bytes(_answer(number, work, task))
    except (EOFError, OSError):  # the caller is gone, or needs no more results
        os._exit(0)


def _end_with_parent() -> None:
    """End a worker at once when its parent was killed: it would write alongside the workers of the next call."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _answer(number: int, work: Callable[[Any], Any], task: Any) -> Any:
    try:
        return ForkingPickler.dumps((number, work(task)))
    except BaseException as error:
        error.add_note(f"in a worker process:\n{traceback.format_exc()}")
        try:
            message = ForkingPickler.dumps((number, _Failure(error)))
            pickle.loads(message)
            return message
        except Exception:  # an exception that cannot travel
            return ForkingPickler.dumps((number, _Failure(RuntimeError(traceback.format_exc()))))
