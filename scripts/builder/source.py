"""Caffe's source at upstream's COMMIT, from wherever this machine can have it, or the user's own.

Every path gives the same tree (compared with the upstream commit, file by file), and `TREE_SHA256` proves it after the
unpacking. So a build does not depend on the path, and one that closes later is no loss.
"""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bonecaffe import files
from bonecaffe.errors import BonecaffeError, CaffeError
from builder.download import download
from builder.settings import Settings
from builder.steps import Steps, ask, say

COMMIT = "99bd99795dcdf0b1d3086a8d67ab1782a8a08383"
TREE_SHA256 = "ac773979b13f4dad5bac4912a04829b22c79bdfcd0858003c0465c7c80dd3ad2"
"""`tree_sha256` of Caffe's source at COMMIT."""
UPSTREAM = "https://github.com/BVLC/caffe"
TARBALL = f"{UPSTREAM}/archive/{COMMIT}.tar.gz"
CACHED = f"caffe-{COMMIT[:9]}.tar.gz"
"""The name in the cache of a tarball of the source, wherever it came from."""


@dataclass(frozen=True)
class Archive:
    """A distribution's archive that has Caffe's source package: its ``Origin`` in apt, a release, a section, a version.

    The package's tarball is upstream's tree. apt checks its signatures by ``keyring``; we check the tree.
    """

    origin: str
    release: str
    section: str
    version: str
    keyring: str

    @property
    def words(self) -> str:
        """What the user is told."""
        return f"{self.origin} {self.release}'s source package"


ARCHIVES = (
    Archive(
        "Debian",
        "bullseye",
        "main",
        "1.0.0+git20180821.99bd997-8",
        "/usr/share/keyrings/debian-archive-keyring.gpg",
    ),
    Archive(
        "Ubuntu",
        "focal",
        "universe",
        "1.0.0+git20180821.99bd997-5build3",
        "/usr/share/keyrings/ubuntu-archive-keyring.gpg",
    ),
)
"""Those that still carry it."""
ORIGINAL = "caffe_1.0.0+git20180821.99bd997.orig.tar.gz"
"""Upstream's tarball, as both archives name it."""

BUILT_FROM = ("CMakeLists.txt", "cmake", "include", "src", "python", "tools")
"""The parts of a source folder that a build reads. These files determine the key."""
COPIED = (*BUILT_FROM, "examples", "scripts", "models", "data", "matlab", "docs")
"""The parts of a source folder that are copied. Results of its own builds are not."""


@dataclass(frozen=True)
class Source:
    """A source of Caffe: where it comes from, in words; the checksum of its content; its path."""

    origin: str
    sha256: str
    path: Path

    def unpack(self, target: Path, steps: Steps) -> None:
        """Make the folder ``target`` and put the source into it."""
        raise NotImplementedError


class Folder(Source):
    """The user's source folder. It is copied and not changed."""

    def unpack(self, target: Path, steps: Steps) -> None:
        """See `Source.unpack`."""
        target.mkdir()
        for name in COPIED:
            if (self.path / name).is_dir():
                shutil.copytree(self.path / name, target / name, symlinks=True)
            elif (self.path / name).is_file():
                shutil.copy2(self.path / name, target / name)


class Tarball(Source):
    """A tarball, whether or not it holds everything in one folder of its own."""

    def unpack(self, target: Path, steps: Steps) -> None:
        """See `Source.unpack`."""
        unpack(self.path, target)
        if tree_sha256(target) != self.sha256:
            raise CaffeError(f"{self.path} has changed since it was examined. Run this again.")


def unpack(tarball: Path, target: Path) -> None:
    """Unpack Caffe's tarball into a new folder ``target``; CaffeError when it is not a readable tarball."""
    target.mkdir(parents=True)
    if ask(["tar", "-xf", str(tarball), "-C", str(target)]).returncode:
        raise CaffeError(f"{tarball}: not a readable tarball")
    folders = [folder for folder in target.iterdir() if folder.is_dir()]
    if not (target / "CMakeLists.txt").is_file() and len(folders) == 1:
        outer = target.rename(target.with_name(target.name + ".outer"))
        (outer / folders[0].name).rename(target)
        shutil.rmtree(outer)


def find_source(settings: Settings, cache: Path, work: Path) -> Source:
    """The source to build from: CAFFE_SOURCE, the cache, an archive of the distribution, else upstream.

    ``cache`` keeps what is downloaded, ``work`` is a folder for what is not kept. CaffeError when there is none, with
    what was tried.
    """
    if settings.source:
        return _given(Path(settings.source), work / "given")
    cached = cache / CACHED
    if not cached.is_file() or not _is_upstream(cached, work / "cached"):
        origin = _fetch(cached, work)
        say(f"Caffe's source: {origin}")
        return Tarball(f"{origin}, upstream {COMMIT[:9]}", TREE_SHA256, cached)
    return Tarball(f"upstream {COMMIT[:9]}, from the cache", TREE_SHA256, cached)


def _fetch(cached: Path, work: Path) -> str:
    """Put a tarball of upstream's tree into the cache and return where it came from; CaffeError if no way works."""
    failures = []
    for number, (words, fetch) in enumerate(_ways(work)):
        try:
            tarball = fetch()
            if not _is_upstream(tarball, work / f"tree{number}"):
                raise CaffeError(f"another tree than upstream's at {COMMIT[:9]}")
        except BonecaffeError as error:
            failures.append(f"{words}: {error}")
            continue
        files.move(tarball, cached)
        return words
    tried = "\n".join(f"  {line}" for failure in failures for line in failure.splitlines())
    raise CaffeError(
        f"Caffe's source could not be downloaded:\n{tried}\nGive it with CAFFE_SOURCE=folder-or-tarball (for example "
        f"{TARBALL}, downloaded elsewhere), or an installed Caffe with CAFFE_ROOT."
    )


def _given(path: Path, scratch: Path) -> Source:
    """The user's own source; ``scratch`` is a folder to unpack a tarball into."""
    if path.is_dir():
        _check(path, path)
        sha256 = tree_sha256(path)
        return Folder(_given_words(sha256), sha256, path.absolute())
    if not path.is_file():
        raise CaffeError(f"CAFFE_SOURCE={path}: no such folder or tarball.")
    try:
        unpack(path, scratch)
    except CaffeError:
        raise CaffeError(f"CAFFE_SOURCE={path}: not a readable tarball.") from None
    _check(path, scratch)
    sha256 = tree_sha256(scratch)
    shutil.rmtree(scratch)
    return Tarball(_given_words(sha256), sha256, path.absolute())


def _given_words(sha256: str) -> str:
    return f"CAFFE_SOURCE, {'upstream' if sha256 == TREE_SHA256 else 'another tree than'} {COMMIT[:9]}"


def _check(path: Path, folder: Path) -> None:
    if not (folder / "src" / "caffe" / "proto" / "caffe.proto").is_file():
        raise CaffeError(f"CAFFE_SOURCE={path} has no src/caffe/proto/caffe.proto: not Caffe's source.")


def tree_sha256(folder: Path) -> str:
    """One checksum of all files that a build reads: the sha256 of sha256sum's lines, sorted by path."""
    paths = sorted(_regular_files(folder), key=os.fsencode)
    return files.sha256("".join(f"{files.sha256_file(folder / path)}  {path}\n" for path in paths))


def _regular_files(folder: Path) -> Iterator[str]:
    for name in BUILT_FROM:
        top = folder / name
        found = [top] if not top.is_dir() else [Path(at, file) for at, _, inside in os.walk(top) for file in inside]
        for path in found:
            if path.suffix != ".pyc" and path.is_file() and not path.is_symlink():
                yield os.fspath(path.relative_to(folder))


# ---- ways to upstream's tarball ----------------------------------------------------------------------------------


def _ways(work: Path) -> Iterator[tuple[str, Callable[[], Path]]]:
    """What this machine can try, in order: words for it, and a function that fetches a tarball into ``work``."""
    for archive in ARCHIVES:
        for address in _addresses(archive.origin):
            yield archive.words, partial(_from_archive, archive, address, work)
    yield f"upstream's tarball, {COMMIT[:9]}", partial(_from_upstream, work)
    if shutil.which("git"):
        yield f"a git clone of {UPSTREAM}, {COMMIT[:9]}", partial(_from_git, work)


def _from_archive(archive: Archive, address: str, work: Path) -> Path:
    """The source package's tarball, by apt, which checks its signature."""
    fetched = work / f"fetch-{archive.origin}"
    fetched.mkdir(exist_ok=True)
    apt = ["apt-get", *_isolated(archive, address, work / f"apt-{archive.origin}")]
    for command in ([*apt, "update"], [*apt, "source", "--download-only", f"caffe={archive.version}"]):
        done = ask(command, cwd=fetched)
        if done.returncode:
            errors = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith(("E:", "Err:"))]
            raise CaffeError("; ".join(errors[-2:]) or f"apt-get failed with exit status {done.returncode}")
    return fetched / ORIGINAL


def _from_upstream(work: Path) -> Path:
    """The tarball of the commit."""
    target = work / "upstream.tar.gz"
    download(TARBALL, target, lambda path: "" if tarfile.is_tarfile(path) else "not a tarball")
    return target


def _from_git(work: Path) -> Path:
    """The commit alone, without its history."""
    clone, target = work / "clone", work / "clone.tar.gz"
    for command in (
        ["init", "--quiet"],
        ["fetch", "--quiet", "--depth", "1", f"{UPSTREAM}.git", COMMIT],
        ["archive", "--format=tar.gz", "-o", str(target), "FETCH_HEAD"],
    ):
        clone.mkdir(exist_ok=True)
        done = ask(["git", "-C", str(clone), *command])
        if done.returncode:
            raise CaffeError((done.stderr.strip().splitlines() or [f"git {command[0]} failed"])[-1])
    return target


def _is_upstream(tarball: Path, scratch: Path) -> bool:
    """Whether a tarball holds exactly upstream's tree; ``scratch`` is a folder to unpack into."""
    try:
        unpack(tarball, scratch)
    except CaffeError:
        return False
    try:
        return tree_sha256(scratch) == TREE_SHA256
    finally:
        shutil.rmtree(scratch)


def _addresses(origin: str) -> list[str]:
    """The addresses of a distribution's main archive, from the machine's own apt configuration; none on another."""
    done = ask(["apt-get", "indextargets", "--format", "$(ORIGIN)|$(REPO_URI)|$(COMPONENT)", "Created-By: Packages"])
    rows = [line.split("|") for line in done.stdout.splitlines()]
    return list(
        dict.fromkeys(
            row[1]
            for row in rows
            if len(row) == 3 and row[0] == origin and row[2] == "main" and "security" not in row[1]
        )
    )


def _isolated(archive: Archive, address: str, apt: Path) -> list[str]:
    """Options that have apt-get use this one source and leave the machine's own lists alone."""
    for folder in ("lists/partial", "archives/partial"):
        (apt / folder).mkdir(parents=True, exist_ok=True)
    line = f"deb-src [signed-by={archive.keyring}] {address} {archive.release} {archive.section}\n"
    files.write_text(apt / "sources.list", line)
    options = {
        "Dir::Etc::sourcelist": apt / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State::lists": apt / "lists",
        "Dir::Cache": apt,
        "APT::Sandbox::User": "",
        "Acquire::Retries": 2,
    }
    return [part for name, value in options.items() for part in ("-o", f"{name}={value}")]
