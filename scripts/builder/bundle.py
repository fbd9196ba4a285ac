"""Packing an installed Caffe with the libraries it needs, so that it works wherever it is unpacked.

**What is in it.** Caffe's three programs, pycaffe, every shared library that they need, licences, records. Not in it:
glibc's libraries, which must fit the kernel's loader and the machine's settings, and the GPU driver's, which must fit
the kernel. libpython is in it: libcaffe has Python layers, and a Debian without build packages has no libpython.

**Run paths.** Programs, libcaffe and pycaffe get a relative run path (``$ORIGIN/../lib``) as an RPATH, not a RUNPATH.
An RPATH also serves what the libraries need in turn, so that the distribution's libraries stay byte for byte as they
are. And LD_LIBRARY_PATH, which clusters' modules set, does not override it.

**The same Caffe gives the same archive**: members are sorted, with one owner, time and mode.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import lzma
import os
import platform
import re
import stat
import sys
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bonecaffe import files
from bonecaffe.caffe import bundle, installation
from bonecaffe.errors import CaffeError
from bonecaffe.progress import Progress, unseen
from builder.elf import MAGIC, Elf
from builder.steps import ask

NEVER_PACKED = re.compile(
    r"(ld-linux|linux-vdso|linux-gate)[^/]*\.so[.\d]*|ld64\.so[.\d]*"
    r"|lib(c|m|mvec|dl|rt|pthread|resolv|util|nsl|anl|thread_db|BrokenLocale|c_malloc_debug|nss_\w+)\.so[.\d]*"
    r"|lib(cuda|cudadebugger|nvidia-[\w-]+|nvcuvid|nvoptix|dxcore|d3d12\w*)\.so[.\d]*"
)
"""Libraries of glibc (Debian's package libc6) and of NVIDIA's driver (with WSL's)."""
NVIDIA = re.compile(r"lib(cuda|cublas|cudnn|cufft|cufile|cupti|curand|cusolver|cusparse|nccl|npp|nv)\w*\.so")
"""NVIDIA's libraries may only be passed on unchanged. They find each other in their own folder."""
LOADED_BY_NAME = {"libcudnn": ("libcudnn_*",), "libcudart": ("libnvrtc*", "libnvJitLink*")}
"""Libraries that another one opens by name while a program runs. They are in no list of needed libraries."""
TIME = 1534809600
"""The time of every member: that of Caffe's last commit to its source, 2018-08-21."""
LICENCES = Path("licences")
CAFFE_LICENCE = Path(__file__).with_name("CAFFE_LICENSE")
DOCUMENTS, COMMON = Path("/usr/share/doc"), Path("/usr/share/common-licenses")


@dataclass(frozen=True)
class Member:
    """A file of the bundle: its content, or the file that has it."""

    content: bytes | Path
    executable: bool = False

    @property
    def size(self) -> int:
        """Bytes."""
        return self.content.stat().st_size if isinstance(self.content, Path) else len(self.content)

    def read(self) -> bytes:
        """Its content."""
        return self.content.read_bytes() if isinstance(self.content, Path) else self.content


@dataclass(frozen=True)
class Package:
    """A package of the distribution: its version, its source package's name and version."""

    name: str
    version: str
    source: str

    @property
    def folder(self) -> str:
        """Its folder of documents: its name without the architecture."""
        return self.name.partition(":")[0]

    @property
    def licence(self) -> Path:
        """Debian's file of copyrights and licences."""
        return DOCUMENTS / self.folder / "copyright"


@dataclass
class Contents:
    """What a bundle holds: a path in it, and the file; and its record."""

    key: str
    record: dict[str, object]
    members: dict[str, Member] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The folder's name in the archive."""
        return f"caffe-bundle-{self.key}"

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(member.size for member in self.members.values())


# ---- which libraries ---------------------------------------------------------------------------------------------


def resolved(listing: str) -> dict[str, str | None]:
    """The libraries in ldd's output: a name and its file, None where it was not found.

    >>> resolved("libz.so.1 => /lib/libz.so.1 (0x7f)\\n libx.so => not found\\n /lib64/ld-linux-x86-64.so.2 (0x7f)")
    {'libz.so.1': '/lib/libz.so.1', 'libx.so': None}
    """
    found = re.findall(r"^\s*(\S+) => (not found|/.*?)(?: \(0x[0-9a-f]+\))?$", listing, flags=re.MULTILINE)
    return {name: None if path == "not found" else path for name, path in found}


def libraries(start: Iterable[Path]) -> dict[str, Path]:
    """All libraries that programs and libraries need, but glibc's and the driver's; CaffeError for one not found."""
    found: dict[str, Path] = {}
    waiting = list(start)
    while waiting:
        path = waiting.pop()
        done = ask(["ldd", str(path)])
        if done.returncode:
            raise CaffeError(f"ldd {path} failed: {installation.last_lines(done.stderr + done.stdout)}")
        for name, place in sorted(resolved(done.stdout).items()):
            if NEVER_PACKED.fullmatch(os.path.basename(name)) or name in found:
                continue
            if place is None:
                raise CaffeError(f"{path} needs {name}, which is not found on this machine. Install it, and try again")
            found[name] = Path(place)
            for companion in opened_by(name, Path(place)):
                if companion.name not in found:
                    found[companion.name] = companion
                    waiting.append(companion)
    return found


def opened_by(name: str, path: Path) -> list[Path]:
    """The libraries next to ``path`` that it opens by name while it runs: cuDNN's parts, CUDA's compiler."""
    patterns = LOADED_BY_NAME.get(name.partition(".so")[0], ())
    folders = {path.parent, path.resolve().parent}
    neighbours = {
        library.name: library
        for folder in sorted(folders)
        for pattern in patterns
        for library in sorted(folder.glob(f"{pattern}.so.*"))
    }
    return [library for each, library in sorted(neighbours.items()) if re.search(r"\.so\.\d+(\.\d+)?$", each)]


# ---- packages and licences ---------------------------------------------------------------------------------------


def packages(paths: Iterable[Path]) -> dict[Path, Package]:
    """Which package of the distribution each file is from; files that are from none, or all without dpkg, are left out.

    A file below /usr/lib may be on dpkg's list as below /lib, which is the same folder in a merged /usr.
    """
    names: dict[str, Path] = {}
    for path in paths:
        real = os.path.realpath(path)
        names |= {real: path, real.removeprefix("/usr"): path}
    if not names:
        return {}
    owner: dict[Path, str] = {}
    for line in ask(["dpkg-query", "--search", *sorted(names)]).stdout.splitlines():
        owners, _, file = line.rpartition(": ")
        if file in names and not owners.startswith("diversion"):
            owner[names[file]] = owners.split(", ")[0]
    known = {}
    shown = "--showformat=${binary:Package}\t${Version}\t${source:Package} ${source:Version}\n"
    for line in ask(["dpkg-query", "--show", shown, *sorted(set(owner.values()))]).stdout.splitlines() if owner else ():
        name, version, source = line.split("\t")
        known[name] = known[name.partition(":")[0]] = Package(name, version, source)
    return {path: known[name] for path, name in owner.items() if name in known}


# ---- contents ----------------------------------------------------------------------------------------------------


def gather(caffe: installation.Caffe) -> Contents:
    """What the bundle of a Caffe holds; CaffeError where it cannot be packed."""
    if caffe.bundle:
        raise CaffeError(f"{caffe.root} is an unpacked bundle already: copy its archive, or unset CAFFE_ROOT")
    problem = installation.problem(caffe)
    if problem:
        raise CaffeError(f"this Caffe does not work, so it is not packed: {problem}")
    programs = {f"bin/{name}": caffe.program(name).resolve() for name in installation.PROGRAMS}
    python = {f"lib/python3/dist-packages/caffe/{name}": path for name, path in _pycaffe(caffe.python / "caffe")}
    extensions = [path for path in python.values() if _is_elf(path)]
    found = libraries([*programs.values(), *extensions])
    from_package = packages(found.values())
    members: dict[str, Member] = {}
    altered = []
    for name, path in {**programs, **python, **{f"lib/{name}": path for name, path in found.items()}}.items():
        members[name], is_altered = _member(name, path)
        altered += [name] if is_altered else []
    glibc, needed_by = _glibc_needed(members)
    members |= _licences(set(from_package.values()))
    members[installation.BUILD_RECORD] = Member(_json(caffe.build))
    record = {
        "bundle": bundle.FORMAT,
        "key": _key(caffe, members),
        "origin": caffe.origin,
        "build": caffe.build,
        "machine": platform.machine(),
        "glibc": glibc,
        "glibc_needed_by": needed_by,
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "run_paths_changed": sorted(altered),
        "libraries": [
            _described(f"lib/{name}", members, from_package.get(path)) for name, path in sorted(found.items())
        ],
        "files": {name: member.size for name, member in sorted(members.items())},
    }
    _check_closed(members)
    members[bundle.RECORD] = Member(_json(record))
    return Contents(str(record["key"]), record, dict(sorted(members.items())))


def _pycaffe(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and "__pycache__" not in name.parts:
            yield name.as_posix(), path.resolve()


def _is_elf(path: Path) -> bool:
    with files.open_regular(path) as file:
        return file.read(len(MAGIC)) == MAGIC


def _member(name: str, path: Path) -> tuple[Member, bool]:
    """The member of a file, with a relative run path where it has an absolute one; whether it was changed."""
    is_program = name.startswith("bin/")
    if not _is_elf(path):
        return Member(path), False
    to_libraries = os.path.relpath("lib", os.path.dirname(name))
    run_path = "$ORIGIN" if to_libraries == "." else f"$ORIGIN/{to_libraries}"
    elf = Elf.parse(str(path), path.read_bytes())
    is_library = os.path.dirname(name) == "lib"
    if is_library and (not elf.run_path or (NVIDIA.match(os.path.basename(name)) and run_path in elf.run_path)):
        return Member(path), False
    if elf.run_path == [run_path] and elf.has_strong_run_path:
        return Member(path, is_program), False
    return Member(elf.with_run_path(run_path), is_program), True


def _elves(members: dict[str, Member]) -> Iterator[tuple[str, Elf]]:
    for name, member in members.items():
        content = member.read()
        if content.startswith(MAGIC):
            yield name, Elf.parse(name, content)


def _glibc_needed(members: dict[str, Member]) -> tuple[str, str]:
    """The oldest glibc that has what all files need, and the first file that needs it."""
    needed = {name: elf.glibc() or "2.0" for name, elf in _elves(members)}
    newest = max(needed, key=lambda name: bundle.number(needed[name]))
    return needed[newest], newest


def _check_closed(members: dict[str, Member]) -> None:
    """CaffeError when a file needs a library that is neither in the bundle nor the machine's."""
    for name, elf in _elves(members):
        for library in elf.needed:
            if f"lib/{library}" not in members and not NEVER_PACKED.fullmatch(library):
                raise CaffeError(f"a bug in bonecaffe: {name} needs {library}, which was not packed")


def _described(name: str, members: dict[str, Member], package: Package | None) -> dict[str, object]:
    licence = f"{LICENCES}/{package.folder}/copyright" if package else ""
    if name.startswith("lib/libcaffe.so"):
        licence = f"{LICENCES}/caffe/LICENSE"
    return {
        "file": name,
        "package": package.name if package else None,
        "version": package.version if package else None,
        "source": package.source if package else None,
        "licence": licence if licence in members else None,
        "sha256": files.sha256(members[name].read()),
    }


def _licences(of: set[Package]) -> dict[str, Member]:
    """Caffe's licence, the packages' files of copyrights, and the common licences that these refer to."""
    found = {f"{LICENCES}/caffe/LICENSE": Member(CAFFE_LICENCE)}
    for package in of:
        if package.licence.is_file():
            found[f"{LICENCES}/{package.folder}/copyright"] = Member(package.licence.resolve())
    for path in sorted(COMMON.glob("*")) if COMMON.is_dir() else ():
        if path.is_file() and any(_mentions(member, path.name) for member in found.values()):
            found[f"{LICENCES}/common-licenses/{path.name}"] = Member(path.resolve())
    return found


def _mentions(member: Member, name: str) -> bool:
    return re.search(rb"common-licenses/" + re.escape(name.encode()) + rb"(?![\w-])", member.read()) is not None


def _key(caffe: installation.Caffe, members: dict[str, Member]) -> str:
    """The key of the build where it is one of the cache, else the first 16 digits of what its files hash to."""
    name = caffe.root.name if caffe.root else ""
    if re.fullmatch(r"[0-9a-f]{16}", name):
        return name
    digest = hashlib.sha256()
    for path, member in sorted(members.items()):
        digest.update(f"{path}\0{files.sha256(member.read())}\n".encode())
    return digest.hexdigest()[:16]


def _json(content: object) -> bytes:
    return (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode()


# ---- writing -----------------------------------------------------------------------------------------------------


def write_archive(contents: Contents, folder: Path, preset: int = 6, progress: Progress = unseen) -> Path:
    """Write the archive, whole or not at all; return its path. ``progress`` counts MB before compression."""
    path = folder / f"{contents.name}.tar.xz"
    total = contents.size // files.MEGABYTE
    filters: list[dict[str, int]] = [{"id": lzma.FILTER_LZMA2, "preset": preset}]
    if platform.machine() == "x86_64":
        filters.insert(0, {"id": lzma.FILTER_X86})  # machine code is compressed by a tenth more
    with (
        files.writing(path, parents=True) as file,
        lzma.open(file, "wb", check=lzma.CHECK_CRC64, filters=filters) as compressed,
        tarfile.open(fileobj=compressed, mode="w", format=tarfile.GNU_FORMAT) as archive,
    ):
        done = 0
        for name, member in _in_order(contents):
            seen = functools.partial(_report, progress, done, total)
            archive.addfile(*_entry(contents.name, name, member, seen))
            done += member.size
        progress(total, total)
    return path


def _report(progress: Progress, before: int, total: int, position: int) -> None:
    progress(min((before + position) // files.MEGABYTE, total), total)


class _Watched(io.BytesIO):
    """A file's content that reports how far it was read."""

    def __init__(self, content: bytes, seen: Callable[[int], None]) -> None:
        super().__init__(content)
        self._seen = seen

    def read(self, size: int | None = -1) -> bytes:
        self._seen(self.tell())
        return super().read(size)


def _entry(folder: str, name: str, member: Member, seen: Callable[[int], None]) -> tuple[tarfile.TarInfo, io.BytesIO]:
    entry = tarfile.TarInfo(f"{folder}/{name}")
    content = member.read()
    entry.size, entry.mtime, entry.mode = len(content), TIME, _mode(member)
    return entry, _Watched(content, seen)


def _mode(member: Member) -> int:
    return 0o755 if member.executable else 0o644


def _in_order(contents: Contents) -> Iterator[tuple[str, Member]]:
    """The members by name, but the record first: what an archive holds is known without reading all of it."""
    yield bundle.RECORD, contents.members[bundle.RECORD]
    yield from ((name, member) for name, member in contents.members.items() if name != bundle.RECORD)


def write_folder(contents: Contents, folder: Path) -> None:
    """Write the same files into a folder, as the unpacked archive has them."""
    for name, member in contents.members.items():
        path = folder / name
        with files.writing(path, parents=True) as file:
            file.write(member.read())
        path.chmod(stat.S_IMODE(path.stat().st_mode) | (0o111 if member.executable else 0))
