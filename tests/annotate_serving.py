"""`bonecaffe annotate` in a separate process, for the tests of its page and of its defences."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path


class Serving:
    """`bonecaffe annotate` in a separate process. ``printed`` is what it has printed up to the address of its page."""

    def __init__(self, images: Path, table: Path, *options: str) -> None:
        command = [
            sys.executable,
            "-u",
            "-m",
            "bonecaffe",
            "annotate",
            str(images),
            "--points",
            str(table),
            "--no-open",
            *options,
        ]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.printed = ""
        for line in self.process.stdout:
            self.printed += line
            if line.startswith("Open "):
                self.address = line.split()[1]
                return
        raise AssertionError(self.printed)

    def kill(self, number=signal.SIGKILL):
        self.process.send_signal(number)
        self.process.wait(60)
