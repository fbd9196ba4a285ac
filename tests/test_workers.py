"""The pool: results in order, failures as they were raised, no worker left behind whatever happens."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from bonecaffe.errors import ImageError, LocateError
from bonecaffe.workers import in_parallel

REPOSITORY = Path(__file__).resolve().parent.parent  # not from conftest, which is slow to import in a worker

pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")


def square(number: int) -> int:
    time.sleep(0.02 * (number % 3))  # the later ones are done before the earlier ones
    return number * number


def sized(count: int) -> bytes:
    return bytes(count)


def length(content: bytes) -> int:
    return len(content)


def fail_at_seven(number: int) -> int:
    if number == 7:
        raise ImageError("seven.png: not an image.")
    return number


class Untransportable(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(one + two)


def fail_untransportably(number: int) -> int:
    raise Untransportable(number, 1)


def own_number(task: float) -> int:
    time.sleep(task)
    return os.getpid()


def own_facts(task: int) -> tuple[int, str, bool]:
    import cv2

    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    return cv2.getNumThreads(), multiprocessing.current_process().name, ignored


def die(task: int) -> int:
    if task == 9:
        os.kill(os.getpid(), signal.SIGKILL)
    return task


def gone(pid: int, within_s: float = 10) -> bool:
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        try:
            with open(f"/proc/{pid}/stat") as file:
                if file.read().rsplit(") ", 1)[1][0] in "ZX":
                    return True
        except OSError:
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize(("count", "workers"), [(1, 3), (7, 1), (60, 3)])
def test_results_come_in_order(count, workers):
    assert list(in_parallel(square, range(count), workers, LocateError)) == [n * n for n in range(count)]


def test_no_tasks_need_no_worker():
    assert list(in_parallel(square, [], 2, LocateError)) == []


def test_large_tasks_and_results_do_not_block_each_other():
    """More than a pipe holds, in both directions."""
    assert [len(result) for result in in_parallel(sized, [3_000_000] * 12, 2, LocateError)] == [3_000_000] * 12
    assert list(in_parallel(length, [bytes(1_000_000)] * 12, 2, LocateError)) == [1_000_000] * 12


def test_results_come_while_others_are_made():
    began = time.monotonic()
    with contextlib.closing(in_parallel(own_number, [0.0, *[30.0] * 3], 2, LocateError)) as results:
        next(results)
        assert time.monotonic() - began < 25


def test_a_failure_is_raised_as_it_was_where_its_turn_is():
    """With the traceback of the worker as a note; results before it arrive."""
    seen = []
    with pytest.raises(ImageError) as caught:
        for result in in_parallel(fail_at_seven, range(20), 2, LocateError):
            seen.append(result)
    assert str(caught.value) == "seven.png: not an image." and seen == [*range(7)]
    assert "fail_at_seven" in "".join(caught.value.__notes__)
    with pytest.raises(RuntimeError, match="Untransportable: 4"):
        list(in_parallel(fail_untransportably, [3], 1, LocateError))


def test_a_killed_worker_is_an_error():
    with pytest.raises(LocateError, match="a worker process was killed"):
        list(in_parallel(die, range(40), 2, LocateError))


def test_workers_leave_ctrl_c_to_the_caller_and_use_one_thread():
    threads, name, ignored = next(in_parallel(own_facts, [0], 1, LocateError))
    assert threads == 1 and ignored and name != "MainProcess"


@pytest.mark.parametrize("how", ["all taken", "closed", "failed", "thrown away"])
def test_workers_end_with_the_iterator(how):
    results = in_parallel(own_number, [0.0] * (1 if how == "all taken" else 50), 2, LocateError)
    pid = next(results)
    assert pid != os.getpid()
    if how == "all taken":
        assert list(results) == []
    elif how == "failed":
        with pytest.raises(ZeroDivisionError):
            results.throw(ZeroDivisionError())
    elif how == "closed":
        results.close()
    del results
    assert gone(pid)
    assert not [child for child in multiprocessing.active_children() if child.pid == pid]


def test_it_works_in_a_thread_that_is_not_the_main_one():
    """As in a worker of Dask."""
    results: list[list[int]] = []
    thread = threading.Thread(target=lambda: results.append(list(in_parallel(square, range(20), 2, LocateError))))
    thread.start()
    thread.join(60)
    assert results == [[n * n for n in range(20)]]


CALLER = """
import os, sys, time
sys.path.insert(0, "tests")
import test_workers
from bonecaffe.errors import LocateError
from bonecaffe.workers import in_parallel

if __name__ == "__main__":
    results = in_parallel(test_workers.own_number, [0.0, 0.0, *[float(sys.argv[1])] * 9], 2, LocateError)
    print(next(results), next(results), flush=True)
    {body}
"""


def call(body: str, seconds: float, **given) -> subprocess.Popen[str]:
    code = CALLER.format(body=body)
    return subprocess.Popen(
        [sys.executable, "-c", code, str(seconds)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        **given,
    )


@pytest.mark.parametrize("busy", [True, False])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_their_caller(number, busy):
    """Caller killed, during a task or while they wait for one: they do not write alongside the next call."""
    process = call("next(results)" if busy else "time.sleep(60)", 60 if busy else 0)
    workers = [int(pid) for pid in process.stdout.readline().split()]
    time.sleep(0.2)
    process.send_signal(number)
    assert process.wait(20) == -number
    assert all(gone(pid) for pid in workers)
    process.communicate()


def test_a_python_caller_is_interrupted_twice():
    """Without the command line's handling of Ctrl-C: the interpreter ends without waiting for a worker."""
    for pause in (0.0, 0.01):
        process = call("next(results)", 60, start_new_session=True)
        workers = [int(pid) for pid in process.stdout.readline().split()]
        time.sleep(0.1)
        began = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(pause)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=20)
        assert process.returncode in (1, 130, -signal.SIGINT) and time.monotonic() - began < 10
        assert all(gone(pid) for pid in workers)


def test_a_process_that_may_have_no_children_does_the_work_itself():
    """A daemonic process, such as a worker under Dask's nanny."""
    code = (
        "import multiprocessing as m, sys; sys.path.insert(0, 'tests'); import test_workers as t; "
        "m.current_process()._config['daemon'] = True; "
        "print(list(t.in_parallel(t.square, [1, 2, 3], 2, t.LocateError)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[1, 4, 9]"


SCRIPT = """
import math
from bonecaffe.errors import ImageError
from bonecaffe.workers import in_parallel
print("begun", flush=True)
print(list(in_parallel(math.factorial, range(20), 2, ImageError)) == [math.factorial(n) for n in range(20)])
import __main__
print(__main__.in_parallel is in_parallel)
"""


@pytest.mark.parametrize("how", ["file", "stdin", "module", "command"])
def test_a_script_without_a_main_guard_runs_once(tmp_path, how):
    """The workers do not run it again, however it was started."""
    (tmp_path / "script.py").write_text(SCRIPT)
    arguments = {"file": ["script.py"], "stdin": ["-"], "module": ["-m", "script"], "command": ["-c", SCRIPT]}[how]
    paths = {**os.environ, "PYTHONPATH": f"{REPOSITORY}"}
    done = subprocess.run(
        [sys.executable, *arguments],
        input=SCRIPT if how == "stdin" else "",
        cwd=tmp_path,
        env=paths,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "begun\nTrue\nTrue\n", "")
