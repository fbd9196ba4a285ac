"""The work folder: results so far, files written whole or not at all, one check at a time."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import getpass
import json
import os
import platform
import re
import shutil
import socket
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List

from gpucheck.outcome import CheckError, Result


def write(path: Path, content: str) -> None:
    """Write a text file whole or not at all."""
    handle, name = tempfile.mkstemp(dir=str(path.parent), prefix="." + path.name + ".", suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(content)
        os.chmod(name, 0o644)
        os.replace(name, str(path))
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise


def remove(path: Path) -> None:
    """Remove a file or a folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(str(path))
    else:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold the work folder; CheckError when another check works in it."""
    with open(str(folder / "lock"), "w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise CheckError(
                f"{folder}: another gpu-check works in it. Wait for it, or give another --work."
            ) from error
        yield


class State:
    """Results of parts and steps that are finished, in state.json; those of other settings are dropped."""

    def __init__(self, folder: Path, settings: Dict[str, Any]) -> None:
        self._path = folder / "state.json"
        self._settings = json.loads(json.dumps(settings))
        self.parts: Dict[str, Result] = {}
        self._steps: Dict[str, Any] = {}
        self.dropped = False
        with contextlib.suppress(OSError):
            self._read(self._path.read_text(encoding="utf-8"))

    def _read(self, text: str) -> None:
        try:
            stored = json.loads(text)
            parts = {name: Result(**result) for name, result in stored["parts"].items()}
            settings, steps = stored["settings"], dict(stored["steps"])
        except (ValueError, KeyError, TypeError, AttributeError):
            self.dropped = True
            return
        if settings != self._settings:
            self.dropped = True
            return
        self.parts, self._steps = parts, steps

    def put(self, name: str, result: Result) -> None:
        """Keep a part's result."""
        self.parts[name] = result
        self._write()

    def step(self, name: str, make: Callable[[], Any], files: Any = ()) -> Any:
        """What ``make`` gives, a JSON value; as before when this step is finished and its ``files`` still exist."""
        if name in self._steps and all(Path(file).exists() for file in files):
            return self._steps[name]
        value = make()
        self._steps[name] = json.loads(json.dumps(value))
        self._write()
        return self._steps[name]

    def finished(self) -> List[str]:
        """The names of the finished steps."""
        return list(self._steps)

    def forget(self, prefix: str) -> None:
        """Drop the steps of a part, so that it is run again from its beginning."""
        self._steps = {name: value for name, value in self._steps.items() if not name.startswith(prefix)}

    def _write(self) -> None:
        parts = {name: asdict(result) for name, result in self.parts.items()}
        write(self._path, json.dumps({"settings": self._settings, "parts": parts, "steps": self._steps}, indent=1))


# ---- what a report must not hold -----------------------------------------------------------------------------------


@functools.lru_cache(maxsize=None)
def _private() -> Dict[str, str]:
    """What identifies this machine and its user, and what is written instead; longer texts first."""
    names: Dict[str, str] = {}
    for read, word in ((socket.gethostname, "HOST"), (platform.node, "HOST"), (getpass.getuser, "USER")):
        with contextlib.suppress(Exception):  # getuser raises what its platform likes
            names[read()] = word
    names.update({name.partition(".")[0]: word for name, word in list(names.items()) if word == "HOST"})
    return {name: names[name] for name in sorted(names, key=len, reverse=True) if name}


def scrubbed(value: Any) -> Any:
    """A JSON value without paths outside the system's folders, host and user names, and UUIDs of GPUs.

    A path keeps its last part; only what is under /usr, /lib, /etc, /proc, /dev and /sys stays whole. A host or user
    name is replaced wherever it is a word of its own.

    >>> scrubbed({"log": "open /data/of/someone/x.png failed; /usr/lib/libz.so.1 is there"})
    {'log': 'open …/x.png failed; /usr/lib/libz.so.1 is there'}
    """
    if isinstance(value, dict):
        return {key: scrubbed(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [scrubbed(item) for item in value]
    if not isinstance(value, str):
        return value
    text = re.sub(r"(GPU|MIG)-[0-9a-fA-F]{4,}[-0-9a-fA-F/]*", r"\1-UUID", value)
    text = re.sub(r"(?<![\w.…/])/(?!(?:usr|lib|lib64|etc|proc|dev|sys)/)(?:[^\s/:'\"]+/)+([^\s/:'\"]*)", r"…/\1", text)
    text = re.sub(r"/usr/local/(?:[^\s/:'\"]+/)*([^\s/:'\"]*)", r"…/\1", text)
    for name, word in _private().items():
        text = re.sub(r"(?<![A-Za-z0-9_])" + re.escape(name) + r"(?![A-Za-z0-9_])", word, text)
    return text
