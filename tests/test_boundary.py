"""The command as a process: a shortage ends in a readable message, and a closed output does not end its work."""

from __future__ import annotations

import itertools
import os
import re
import signal
import subprocess
import sys
import textwrap

import pytest
from conftest import REPOSITORY, small_file_system, tiny

COMMAND = [sys.executable, "-m", "bonecaffe"]


def source(body: str) -> str:
    """A program that is the command, called with a verb ``try`` that does what is in ``body``."""
    return (
        "import errno, os, resource, sys, threading, time, click\n"
        "from bonecaffe.cli.group import main, print_table, progress_bar\n"
        "@main.command('try')\n"
        f"def verb():\n{textwrap.indent(textwrap.dedent(body), '    ')}\n"
        "sys.argv = ['bonecaffe', 'try']\n"
        "main()\n"
    )


def verb_that(body: str, **given) -> subprocess.CompletedProcess[str]:
    """Run it in a separate process."""
    given = {"capture_output": True, "text": True, "cwd": REPOSITORY, "timeout": 60, **given}
    return subprocess.run([sys.executable, "-c", source(body)], check=False, **given)


def shell(line: str, **given) -> subprocess.CompletedProcess[str]:
    """A line of bash; BONECAFFE stands for the command."""
    line = line.replace("BONECAFFE", " ".join(COMMAND))
    given = {"capture_output": True, "text": True, "cwd": REPOSITORY, "timeout": 120, **given}
    return subprocess.run(["bash", "-o", "pipefail", "-c", line], check=False, **given)


# ---- what the machine is short of --------------------------------------------------------------------------------

SHORT = {
    "memory": ("bytearray(1 << 48)", "not enough memory"),
    "memory for an array": ("import numpy; numpy.zeros(1 << 45)", "not enough memory"),
    "memory, as OpenCV puts it": (
        """
        import cv2, numpy
        image = numpy.zeros((20000, 20000), numpy.uint8)
        resource.setrlimit(resource.RLIMIT_AS, (3 << 29, 3 << 29))
        cv2.resize(image, (60000, 60000))
        """,
        "not enough memory",
    ),
    "threads": (
        """
        used = int(open('/proc/self/statm').read().split()[0]) * os.sysconf('SC_PAGE_SIZE')
        resource.setrlimit(resource.RLIMIT_AS, (used + (40 << 20),) * 2)
        while True:
            threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        """,
        "no more processes or threads",
    ),
    "files": (
        """
        resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
        kept = [os.open('/dev/null', os.O_RDONLY) for _ in range(100)]
        """,
        "too many files are open",
    ),
    "files, when it imports": (
        """
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
        import cv2
        """,
        "too many files are open",
    ),
    "files of the whole system": ("raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))", "too many files are open"),
    "memory for a process": ("raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))", "not enough memory"),
    "processes": ("raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))", "no more processes"),
    "room": ("raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))", "the disk is full"),
}


@pytest.mark.parametrize("short", SHORT)
def test_a_shortage_ends_in_a_message(short):
    """Exit 1, one sentence with a remedy, no traceback."""
    body, words = SHORT[short]
    done = verb_that(body)
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("bonecaffe: ") and words in done.stderr and done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr and "bug" not in done.stderr


@pytest.mark.parametrize("limit", [16, 24])
def test_prepare_with_few_files_allowed(hands, tmp_path, limit):
    """With a real `ulimit -n`: all the work with its workers, pipes and databases, or an error message."""
    (tmp_path / "tiny.yaml").write_text(tiny().to_yaml())
    done = shell(
        f"ulimit -n {limit}; BONECAFFE prepare {tmp_path}/run --images {hands}/images --ages {hands}/ages.csv "
        f"--points {hands}/points.csv --recipe {tmp_path}/tiny.yaml --jobs 4"
    )
    assert done.returncode in (0, 1) and "Traceback" not in done.stderr, done.stderr
    if done.returncode:
        assert "oo many" in done.stderr and not (tmp_path / "run").exists()


# ---- outputs that are closed, cut or full ------------------------------------------------------------------------

WORK = """
    with progress_bar("work") as progress:
        for n in range(1, 41):
            progress(n, 40)
    open(os.environ["DONE"], "w").close()
    for n in range(2000):
        click.echo(f"result {n} " + "x" * 60)
    print_table("table", ["a", "b"], [["1", "2"]])
    print("the end")
"""
WAYS = {  # how the outputs are; exit status; what is on standard error in the end, where there is one
    "| head -0": ("PROGRAM 2>ERR | head -0; exit ${PIPESTATUS[0]}", 0, ""),
    "| head -1": ("PROGRAM 2>ERR | head -1; exit ${PIPESTATUS[0]}", 0, ""),
    "2>&1 | head -1": ("PROGRAM 2>&1 | head -1; exit ${PIPESTATUS[0]}", 0, ""),
    "stdout closed": ("PROGRAM 2>ERR >&-", 0, ""),
    "stderr closed": ("PROGRAM 2>&- >/dev/null", 0, ""),
    "stdin closed": ("PROGRAM 2>ERR <&- >/dev/null", 0, ""),
    "all closed": ("PROGRAM 2>&- >&- <&-", 0, ""),
    "stdout full": (
        "PROGRAM 2>ERR >/dev/full",
        1,
        "the work is done, but its output could not be written: No space",
    ),
    "stderr full": ("PROGRAM 2>/dev/full >/dev/null", 0, ""),
    "both full": ("PROGRAM 2>/dev/full >/dev/full", 1, ""),
    "stdout not for writing": ("PROGRAM 2>ERR 1</dev/null", 0, ""),
    "an output without our letters": ("PYTHONIOENCODING=ascii PROGRAM 2>ERR >/dev/null", 0, ""),
}


@pytest.mark.parametrize("way", WAYS)
def test_no_output_ends_the_work(way, tmp_path):
    """The work is done, the display is dropped in silence, and the exit status reports the result."""
    line, code, words = WAYS[way]
    program = tmp_path / "program.py"
    program.write_text(source(WORK))
    line = line.replace("PROGRAM", f"{sys.executable} {program}").replace("ERR", f"{tmp_path}/err")
    done = shell(line, env={**os.environ, "DONE": str(tmp_path / "done")})
    message = (tmp_path / "err").read_text() if (tmp_path / "err").exists() else ""
    assert (tmp_path / "done").exists()
    assert done.returncode == code, message + done.stderr
    for text in (message, done.stderr):
        assert not re.search("Traceback|Exception ignored|Error", text), text
    assert words in message


def test_a_closed_output_is_not_the_next_file(tmp_path):
    """With `>&-`, the first file that is opened would get the number 1, and every print would write into it."""
    body = f"""
        file = open({str(tmp_path / "file")!r}, "w")
        os.system("echo from a program; echo from a program >&2")
        click.echo("a result")
        assert file.fileno() > 2
    """
    done = verb_that(body, capture_output=False, preexec_fn=lambda: os.closerange(0, 3))
    assert done.returncode == 0
    assert (tmp_path / "file").read_text() == ""


@pytest.mark.parametrize("line", ["BONECAFFE --help", "BONECAFFE --version", "BONECAFFE prototxt --verbatim"])
def test_help_to_a_full_disk_and_to_nobody(line):
    full, nobody = shell(f"{line} >/dev/full"), shell(f"{line} | head -0; exit ${{PIPESTATUS[0]}}")
    assert full.returncode == 1 and "could not be written" in full.stderr and full.stderr.count("\n") == 1
    assert nobody.returncode == 0 and nobody.stderr == ""


def test_finished_prepare_is_finished_whoever_reads(hands, tmp_path):
    """The whole verb when nothing reads either output."""
    (tmp_path / "tiny.yaml").write_text(tiny().to_yaml())
    given = f"--images {hands}/images --ages {hands}/ages.csv --points {hands}/points.csv --recipe {tmp_path}/tiny.yaml"
    for number, ending in enumerate(["2>&1 | head -0; exit ${PIPESTATUS[0]}", ">&- 2>&-", ">/dev/null 2>/dev/full"]):
        run = tmp_path / f"run{number}"
        done = shell(f"BONECAFFE prepare {run} {given} {ending}")
        assert done.returncode == 0 and done.stderr == "", done
        assert (run / "train_lmdb" / "data.mdb").is_file()


def test_an_expected_failure_stays_one_when_nobody_reads(tmp_path):
    """The state of the output does not change the result of the work."""
    for ending in (">&- 2>&-", ">/dev/full 2>/dev/full", "2>&1 | head -0; exit ${PIPESTATUS[0]}"):
        done = shell(f"BONECAFFE repro {tmp_path} {ending}")
        assert done.returncode == 1 and done.stderr == ""


def test_piped_progress_gives_the_time_left_in_the_first_seconds():
    """A line at once, the next after two seconds, then at growing intervals; the last one in any case."""
    from bonecaffe.progress import lines

    clock, printed = [100.0], []
    show = lines("prepare", printed.append, lambda: clock[0])
    for done in range(5, 1006):  # a second each; five were done before
        show(done, 1005)
        clock[0] += 1
    assert printed[:4] == [
        "prepare: 5/1005",
        "prepare: 7/1005, 16 min 38 s left",
        "prepare: 10/1005, 16 min 35 s left",
        "prepare: 15/1005, 16 min 30 s left",
    ]
    assert printed[-1] == "prepare: 1005/1005" and len(printed) < 40
    assert max(int(b.split("/")[0][9:]) - int(a.split("/")[0][9:]) for a, b in itertools.pairwise(printed)) <= 61
    printed.clear()
    quick = lines("predict", printed.append, lambda: 0.0)
    for done in range(0, 1001):
        quick(done, 1000)
    assert [line.split("/")[0] for line in printed] == [f"predict: {done}" for done in range(0, 1001, 100)]
    lines("none", printed.append)(0, 0)
    assert printed[-1] == "none: 0/0"


def test_a_display_that_breaks_is_dropped(monkeypatch):
    """Not only because of its output: a bar that cannot start its thread, or fails during the work."""
    from rich.progress import Progress

    from bonecaffe.cli.group import progress_bar

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(Progress, "start", lambda self: 1 / 0)
    with progress_bar("work") as progress:
        progress(1, 2)
    monkeypatch.undo()
    monkeypatch.setattr("click.echo", lambda *given, **named: 1 / 0)
    with progress_bar("work") as progress:
        progress(1, 2)
        progress(2, 2)
    monkeypatch.setattr(sys, "stderr", None)
    with progress_bar("work") as progress:
        progress(1, 2)


@pytest.mark.skipif(sys.platform != "linux", reason="pty")
def test_a_terminal_that_is_closed_does_not_end_the_work(tmp_path):
    """nohup'ed on a terminal that goes away: its output fails with EIO from then on."""
    import pty

    try:
        ours, theirs = pty.openpty()
    except OSError:
        pytest.skip("no pseudo-terminals here (/dev/pts)")
    body = f"""
        with progress_bar("work") as progress:
            progress(1, 3)
            sys.stdin.read()
            for n in range(30):
                progress(2, 3)
                time.sleep(0.02)
        click.echo("done")
        open({str(tmp_path / "done")!r}, "w").close()
    """
    process = subprocess.Popen(
        [sys.executable, "-c", source(body)], cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    os.read(ours, 100)
    os.close(ours)
    process.stdin.close()
    assert process.wait(60) == 0 and (tmp_path / "done").exists()


# ---- bugs --------------------------------------------------------------------------------------------------------


def test_a_bug_is_reported_as_a_bug_in_bonecaffe(tmp_path):
    done = verb_that("{}['key']", env={**os.environ, "TMPDIR": str(tmp_path)})
    assert done.returncode == 3
    (file,) = tmp_path.iterdir()
    assert done.stderr == f"bonecaffe: this is a bug in bonecaffe: KeyError: 'key'. The traceback is in {file}.\n"
    assert "KeyError: 'key'" in file.read_text() and file.read_text().count("Traceback") == 1


BUGS = {
    "recursion": "def again(): again()\nagain()",
    "no text": "class Odd(Exception):\n    def __str__(self): raise ValueError('no text')\nraise Odd",
    "text that is none": "class Odd(Exception):\n    def __str__(self): return 7\nraise Odd",
    "odd letters": "raise ValueError('\\udcff \\x00 \\u2026')",
    "an error of the system that we did not expect": "raise OSError(errno.EINVAL, 'odd')",
    "another error of a thread": "raise RuntimeError('odd')",
}


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("bug", BUGS)
def test_a_bug_exits_3_whatever_it_is(bug, full, tmp_path):
    """With the traceback in a file; on standard error when there is no room for a file."""
    folder = "/nonexistent" if full else str(tmp_path)
    body = BUGS[bug]
    if full:  # nor in /tmp, /var/tmp, or here
        body = f"import tempfile; tempfile.mkstemp = lambda **given: os.open('/nonexistent/file', os.O_CREAT)\n{body}"
    done = verb_that(body, env={**os.environ, "TMPDIR": folder})
    assert done.returncode == 3, done.stderr
    assert done.stderr.startswith("bonecaffe: this is a bug in bonecaffe: ")
    text = done.stderr if full else next(tmp_path.iterdir()).read_text()
    assert "in verb" in text


@pytest.mark.parametrize("ending", ["2>&-", "2>/dev/full", ">&- 2>&-", "2>&1 | head -0; exit ${PIPESTATUS[0]}"])
def test_the_reporter_of_bugs_needs_no_reader(ending, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(source("1 / 0"))
    (tmp_path / "tmp").mkdir()
    done = shell(f"{sys.executable} {program} {ending}", env={**os.environ, "TMPDIR": str(tmp_path / "tmp")})
    assert done.returncode == 3 and done.stderr == ""
    assert "ZeroDivisionError" in next((tmp_path / "tmp").iterdir()).read_text()


def test_a_bug_with_a_full_tmp(tmp_path):
    """A full file system: the traceback is printed, and no empty file is left."""
    with small_file_system(tmp_path / "small", "64k") as folder:
        filler = folder / "filler"
        with open(filler, "wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass
        done = verb_that("1 / 0", env={**os.environ, "TMPDIR": str(folder)})
        left = [path for path in folder.iterdir() if path != filler]
    assert done.returncode == 3 and "ZeroDivisionError" in done.stderr
    if not left:  # where Python found the folder full, it took another
        assert "Traceback" in done.stderr or re.search(r"The traceback is in \S+\.$", done.stderr)
    else:
        pytest.fail(f"left: {left}")


# ---- Ctrl-C ------------------------------------------------------------------------------------------------------

STUCK = {
    "in the work": "time.sleep(60)",
    "in a lock": "lock = threading.Lock(); lock.acquire(); lock.acquire()",
    "in a thread that the end of Python waits for": """
        threading.Thread(target=time.sleep, args=(60,)).start()
        time.sleep(60)
    """,
    "in its own clearing up": """
        try:
            time.sleep(60)
        finally:
            time.sleep(60)
    """,
    "where the interrupt is swallowed": """
        while True:
            try:
                time.sleep(60)
            except BaseException:
                pass
    """,
    "where it becomes another error": """
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            raise ImportError("numpy could not be imported")
    """,
}


@pytest.mark.parametrize("signals", [1, 3])
@pytest.mark.parametrize("stuck", STUCK)
def test_ctrl_c_ends_the_command_whatever_it_does(stuck, signals, tmp_path):
    """Within two seconds (and some, on a busy machine), exit 130, one sentence."""
    body = f"click.echo('begun')\n{textwrap.dedent(STUCK[stuck])}"
    process = subprocess.Popen(
        [sys.executable, "-c", source(body)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    process.stdout.readline()
    for _ in range(signals):
        process.send_signal(signal.SIGINT)
    _, message = process.communicate(timeout=10)
    assert process.returncode == 130, message
    assert message.startswith("bonecaffe: interrupted.") and message.count("\n") == 1


def test_an_ignored_ctrl_c_stays_ignored(tmp_path):
    """Started in the background by a script, the command ignores the script's Ctrl-C."""
    done = verb_that(
        "os.kill(os.getpid(), 2); time.sleep(0.2); click.echo('continues')",
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    assert done.returncode == 0 and done.stdout == "continues\n"


def test_a_python_caller_keeps_its_process():
    """``main([…])`` from Python leaves streams and signals as they are."""
    code = (
        "import signal, sys; from bonecaffe.cli import main; before = (sys.stdout, sys.stderr, signal.getsignal(2))\n"
        "try: main(['--version'])\nexcept SystemExit as end: assert not end.code\n"
        "assert (sys.stdout, sys.stderr, signal.getsignal(2)) == before"
    )
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)


LOST = """
import os, signal, time
from bonecaffe.cli import process

def work():
    os.register_at_fork(after_in_parent=lambda: os.kill(os.getpid(), signal.SIGINT))
    if not os.fork():
        os._exit(0)
    time.sleep(30)

process.run(work)
"""


def test_an_interrupt_that_a_library_swallows_still_ends_the_command():
    """Ctrl-C in code around a fork, where Python drops the exception: a message, no traceback, a prompt end."""
    done = subprocess.run(
        [sys.executable, "-c", LOST],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=25,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert done.returncode == 130 and done.stderr.startswith("bonecaffe: interrupted."), done.stderr
    assert len(done.stderr.splitlines()) == 1
