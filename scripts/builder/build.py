"""Build Caffe into the cache, and run Caffe's own tests on the result.

A folder of the cache that is named after a key is a finished Caffe. It is moved into place as the last step. A lock
makes a second build of the same key wait.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bonecaffe import files
from bonecaffe.caffe import installation
from bonecaffe.errors import CaffeError
from builder.inputs import SCRIPTS, Inputs
from builder.source import Source
from builder.steps import Steps, say
from caffe_edits import CUDA_HEADER


class Busy(CaffeError):
    """Another process is building the same Caffe."""


@dataclass(frozen=True)
class Build:
    """One Caffe of the cache: its inputs and its folders."""

    source: Source
    inputs: Inputs
    cache: Path

    @property
    def prefix(self) -> Path:
        """The finished Caffe."""
        return self.cache / self.inputs.key

    @property
    def tree(self) -> Path:
        """Source, object files and logs of a finished build. Caffe's own tests need them."""
        return self.cache / f"{self.inputs.key}.tree"

    @property
    def log(self) -> Path:
        """Output of the build's steps. It stays here if the build fails, and is moved into `tree` otherwise."""
        return self.cache / f"{self.inputs.key}.log"

    @property
    def staged(self) -> Path:
        """The unfinished install."""
        return Path(f"{self.tree / 'staging'}{self.prefix}")

    def ensure(self) -> installation.Caffe:
        """The Caffe, built if the cache lacks it. CaffeError when it cannot be built or does not work."""
        with self._locked() as lock:
            return self._ensure(lock)

    def check(self) -> int:
        """Build and run Caffe's own C++ tests; return their exit status."""
        with self._locked() as lock:
            self._ensure(lock)
            if not (self.tree / "build").is_dir():
                self._build(lock)  # does not touch the finished Caffe
                files.remove(self.tree / "staging")
                self._put_log_away()
            say("building Caffe's own C++ tests (about 3 minutes on two cores the first time)")
            steps = Steps(self.tree / "check.log", lock)
            steps.run(["make", "-C", str(self.tree / "build"), _jobs(), "test.testbin"])
            tests = [str(self.tree / "build" / "test" / "test.testbin"), "--gtest_filter=-*GPU*"]
            done = subprocess.run(
                [*tests, "--gtest_shuffle=0", "--gtest_color=no"],
                cwd=self.tree / "source",  # the tests use paths relative to it
                pass_fds=(lock,),
                check=False,
            )
            return done.returncode if done.returncode >= 0 else 128 - done.returncode

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        """Hold this key's lock, and wait while another process holds it."""
        lock_file = self.cache / f"{self.inputs.key}.lock"
        with contextlib.ExitStack() as stack:
            try:
                lock = stack.enter_context(files.held(lock_file, "build", Busy))
            except Busy as holder:
                say(f"another process is building {self.inputs.key} ({holder}); waiting for it")
                lock = stack.enter_context(files.held(lock_file, "build", Busy, wait_s=math.inf))
            yield lock

    def _ensure(self, lock: int) -> installation.Caffe:
        if not self.prefix.is_dir():
            self._build(lock)
            with self._nothing_left():
                self._finish()
            self._put_log_away()
        return installation.at(self.prefix, self.source.origin)

    def _build(self, lock: int) -> None:
        """Build and install into `staged`. A failed build leaves its log; an interrupted one leaves nothing."""
        files.remove(self.tree)
        files.remove(self.log)
        self.tree.mkdir()
        steps = Steps(self.log, lock)
        minutes = "about 4 minutes on two cores, 10 with a GPU" if self.inputs.gpu else "about 4 minutes on two cores"
        say(f"building from {self.source.origin} ({minutes}; log: {steps.log})")
        with self._nothing_left():
            self.source.unpack(self.tree / "source", steps)
            self._compile(steps)

    def _put_log_away(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            files.move(self.log, self.tree / "build.log")

    @contextlib.contextmanager
    def _nothing_left(self) -> Iterator[None]:
        """Remove the tree of a build that fails or is interrupted; the log stays where it failed."""
        try:
            yield
        except BaseException as error:
            shutil.rmtree(self.tree, ignore_errors=True)  # a compiler may still be writing
            if isinstance(error, KeyboardInterrupt):
                files.remove(self.log)
            raise

    def _compile(self, steps: Steps) -> None:
        source, build = self.tree / "source", self.tree / "build"
        steps.run([sys.executable, str(SCRIPTS / "caffe_edits.py"), str(source)])
        build.mkdir()
        steps.run(
            [
                *("cmake", "-S", str(source), "-B", str(build)),
                *self.inputs.cmake_arguments(self.tree, source / CUDA_HEADER),
                f"-DCMAKE_INSTALL_PREFIX={self.prefix}",
                f"-DCMAKE_INSTALL_RPATH={self.prefix}/lib",
            ]
        )
        steps.run(["make", "-C", str(build), _jobs(), "all"])
        steps.run(["cmake", "-P", str(build / "cmake_install.cmake")], DESTDIR=str(self.tree / "staging"))

    def _finish(self) -> None:
        """Move the staged install into place, in one rename; CaffeError, with nothing in place, if it does not work."""
        record = json.dumps(self.inputs.record(self.source.origin), ensure_ascii=False)
        files.write_text(self.staged / installation.BUILD_RECORD, record + "\n")
        os.rename(self.staged, self.prefix)
        files.remove(self.tree / "staging")
        try:
            problem = installation.problem(installation.at(self.prefix, self.source.origin))
            if problem:
                raise CaffeError(f"the Caffe that was built does not work: {problem} (the build's log: {self.log})")
        except BaseException:
            os.rename(self.prefix, self.tree / "refused")  # moved away in one step, then removed with the tree
            raise
        say(f"built into {self.prefix}")


def _jobs() -> str:
    return f"-j{len(os.sched_getaffinity(0))}"
