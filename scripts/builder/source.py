"""Caffe's source: the user's own, Debian's source package, or a git clone.

Debian bullseye's source package equals BVLC/caffe at COMMIT (compared file by file); apt checks its signatures.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bonecaffe import files
from bonecaffe.errors import CaffeError
from builder.settings import Settings
from builder.steps import Steps, ask, say

COMMIT = "99bd99795dcdf0b1d3086a8d67ab1782a8a08383"
VERSION = "1.0.0+git20180821.99bd997-8"
DSC = f"caffe_{VERSION}.dsc"
SHA256 = {
    "caffe_1.0.0+git20180821.99bd997.orig.tar.gz": "e0eb3f06794f7402c77b7dec8e8480273ee1a1bb192e9122b621a69d4147ad0c",
    f"caffe_{VERSION}.debian.tar.xz": "07cf073227494a6b07234e40cb5df91db566616593eef9baafdc4d06ad159f21",
}
"""The package's tarballs and their expected checksums."""
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
UPSTREAM = "https://github.com/BVLC/caffe.git"

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


class DebianPackage(Source):
    """Debian's source package; its patches are applied."""

    def unpack(self, target: Path, steps: Steps) -> None:
        """See `Source.unpack`."""
        steps.run(["dpkg-source", "--no-check", "-x", str(self.path / DSC), str(target)])


class Clone(Source):
    """A git clone of BVLC/caffe, made when it is unpacked."""

    def unpack(self, target: Path, steps: Steps) -> None:
        """See `Source.unpack`."""
        try:
            steps.run(["git", "clone", "--quiet", UPSTREAM, str(target)])
            steps.run(["git", "-C", str(target), "checkout", "--quiet", COMMIT])
        except CaffeError as error:
            raise CaffeError(
                f"{error}\ncaffe: Caffe's source could not be downloaded. Give one with "
                "CAFFE_SOURCE=folder-or-tarball, or an installed Caffe with CAFFE_ROOT."
            ) from None


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
    """The user's tarball. Its files may or may not be in one top folder."""

    def unpack(self, target: Path, steps: Steps) -> None:
        """See `Source.unpack`."""
        target.mkdir()
        if ask(["tar", "-xf", str(self.path), "-C", str(target)]).returncode:
            raise CaffeError(f"CAFFE_SOURCE={self.path}: not a readable tarball.")
        folders = [folder for folder in target.iterdir() if folder.is_dir()]
        if not (target / "CMakeLists.txt").is_file() and len(folders) == 1:
            outer = target.rename(target.with_name(target.name + ".outer"))
            (outer / folders[0].name).rename(target)
            shutil.rmtree(outer)
        _check(self.path, target)


def find_source(settings: Settings, cache: Path, work: Path) -> Source:
    """The source to build from: CAFFE_SOURCE, or Debian's package, or a git clone. CaffeError when there is none.

    ``cache`` is the folder for downloads, ``work`` a folder for temporary files.
    """
    if settings.source:
        return _given(Path(settings.source))
    if _fetch_package(cache, work):
        return DebianPackage(
            f"Debian bullseye's source package, upstream {COMMIT[:9]}", "+".join(SHA256.values()), cache
        )
    if not shutil.which("git"):
        raise CaffeError(
            "no source of Caffe: Debian's package could not be downloaded, and git is missing for a clone. "
            "Install git, or give a source with CAFFE_SOURCE."
        )
    say("using a git clone of BVLC/caffe instead")
    return Clone(f"git clone of BVLC/caffe, {COMMIT[:9]}", COMMIT, Path())


def _given(path: Path) -> Source:
    if path.is_dir():
        _check(path, path)
        return Folder("CAFFE_SOURCE", tree_sha256(path), path.absolute())
    if path.is_file():
        return Tarball("CAFFE_SOURCE", files.sha256_file(path), path.absolute())
    raise CaffeError(f"CAFFE_SOURCE={path}: no such folder or tarball.")


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


# ---- Debian's package --------------------------------------------------------------------------------------------


def _fetch_package(cache: Path, work: Path) -> bool:
    """Put Debian's source package into the cache. apt checks its signatures, this its checksums. False on failure."""
    if _is_complete(cache):
        return True
    if not shutil.which("apt-get"):
        return False
    fetched, answers = work / "fetch", ""
    fetched.mkdir()
    for address in _addresses():
        apt = ["apt-get", *_isolated(address, work)]
        for command in ([*apt, "update"], [*apt, "source", "--download-only", f"caffe={VERSION}"]):
            done = ask(command, cwd=fetched)
            answers += done.stdout + done.stderr
            if done.returncode:
                break
        if _is_complete(fetched):
            for path in fetched.iterdir():
                path.replace(cache / path.name)
            return True
    say("Debian bullseye's source package of Caffe could not be downloaded:")
    for line in answers.splitlines()[-4:] or ["no address of a Debian archive in apt's sources"]:
        say(f"  {line}")
    return False


def _is_complete(folder: Path) -> bool:
    paths = {folder / name: sha256 for name, sha256 in SHA256.items()}
    return (folder / DSC).is_file() and all(
        path.is_file() and files.sha256_file(path) == sha256 for path, sha256 in paths.items()
    )


def _addresses() -> list[str]:
    """The addresses of Debian's main archive, from the machine's own apt configuration."""
    done = ask(["apt-get", "indextargets", "--format", "$(REPO_URI) $(COMPONENT)", "Created-By: Packages"])
    pairs = [line.split() for line in done.stdout.splitlines()]
    return list(
        dict.fromkeys(pair[0] for pair in pairs if len(pair) == 2 and pair[1] == "main" and "security" not in pair[0])
    )


def _isolated(address: str, work: Path) -> list[str]:
    """Options that make apt-get use one given source and leave the machine's own lists alone."""
    apt = work / "apt"
    for folder in ("lists/partial", "archives/partial"):
        (apt / folder).mkdir(parents=True, exist_ok=True)
    files.write_text(apt / "sources.list", f"deb-src [signed-by={KEYRING}] {address} bullseye main\n")
    options = {
        "Dir::Etc::sourcelist": apt / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State::lists": apt / "lists",
        "Dir::Cache": apt,
        "APT::Sandbox::User": "",
        "Acquire::Retries": 2,
    }
    return [part for name, value in options.items() for part in ("-o", f"{name}={value}")]
