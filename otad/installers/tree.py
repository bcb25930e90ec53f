# SPDX-License-Identifier: Apache-2.0
"""A directory made of a package: whole, compared with what the medium gives back, and durable, or not there.

A package is an archive, a file, or several files, each of which becomes a file of its name. The rules kept here, of
which the package is not asked:

- Names are those of the archive, upper and lower case as they are, and stay below the directory. Each part of one has
  at most 255 bytes, all of it 1024, in at most 64 parts, without control characters.
- A symbolic link is relative, and goes up only at its beginning and no further than to the directory. What comes after
  that only leads down, so that no row of links leads out. A hard link is to an earlier file. Nothing lies below a link.
- Files belong to who runs otad; mode 0755 if their owner may run them, else 0644; directories 0755. Other bits, owners
  and times are dropped.
- At most 65536 names, and as many bytes as are free, less a reserve, but not more than 1000 times the package and
  64 MiB.

The order of durability: content and names of the tree, while it is called `.partial`; then its name; then that.
"""

import hashlib
import io
import posixpath
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import assert_never

from otad.core.model import Artifact, Deployment
from otad.durable import Disk, Place, Tree
from otad.errors import Code, UpdateError
from otad.installed import PARTIAL
from otad.installers.archive import LINK_BYTES, Entry, Kind, open_package
from otad.installers.format import HEAD_BYTES, Format, sniff
from otad.installers.installer import Stopped
from otad.installers.manifest import TREE_BOUNDS, Manifest, take_manifest
from otad.installers.staging import RESERVE_BYTES, PlaceFile
from otad.installers.stream import HashingReader, Piece, fault, shown
from otad.telemetry import Progress
from otad.units import format_size

PART_BYTES = 255
NAME_BYTES = 1024
PARTS = 64
RATIO = 1000
BURST_BYTES = 64 << 20
PROGRESS_BYTES = 1 << 20
_BLOCK_BYTES = 4096  # what the smallest file takes on most file systems
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class Package:
    """What is in a deployment's staging file, to be read once; each artifact is hashed as it is read."""

    def __init__(self, deployment: Deployment, place: Place, *, unpack: bool) -> None:
        """Without `unpack` an archive is a file like any other, as are all in a package of several."""
        self._identity = deployment.notice.identity
        self.bytes = self._identity.size
        self.manifest: Manifest | None = None  # an archive's, once its first file has been given
        self._artifacts = deployment.notice.artifacts
        self._place = place
        self._unpack = unpack and len(self._artifacts) == 1
        self._begin = 0  # of the artifact that is being read
        self._reading: tuple[Artifact, HashingReader] | None = None

    @property
    def bytes_read(self) -> int:
        return self._begin + (self._reading[1].bytes_read if self._reading is not None else 0)

    def entries(self) -> Iterator[Entry]:
        """What it is made of. UpdateError DIGEST after the last entry of an artifact that is not what it should be."""
        for artifact in self._artifacts:
            file = io.BufferedReader(PlaceFile(self._place, artifact.size, self._begin))
            format_ = sniff(file.read(HEAD_BYTES)) if self._unpack else Format.RAW
            source = HashingReader(file, artifact.digest.method)
            self._reading = artifact, source
            files = 0
            for entry in open_package(source, format_, artifact.size, TREE_BOUNDS):
                files += entry.kind is Kind.FILE
                if entry.kind is Kind.FILE and files == 1:
                    entry, self.manifest = take_manifest(entry)  # noqa: PLW2901
                    if self.manifest is not None:
                        self.manifest.check_notice(self._identity)
                yield replace(entry, name=entry.name or artifact.name or self._identity.module)
            self.require_intact()
            self._begin, self._reading = self._begin + artifact.size, None

    def require_intact(self) -> None:
        """Read what is left of the artifact that is being read. UpdateError DIGEST if it is not what it should be."""
        if self._reading is None:
            return
        artifact, source = self._reading
        source.drain()
        if source.hexdigest() != artifact.digest.hex:
            name = f"staging file: {shown(artifact.name)}" if artifact.name else "staging file"
            raise UpdateError(Code.DIGEST, f"{name}: no longer what was checked there")


def prove(
    deployment: Deployment, package: Package, stop: threading.Event, progress: Callable[[Progress], None]
) -> None:
    """Read all of the package, and see that it is still what was checked."""
    told = 0
    for entry in package.entries():
        for _ in entry.pieces:
            if stop.is_set():
                raise Stopped
            if package.bytes_read - told >= PROGRESS_BYTES or package.bytes_read == package.bytes:
                told = package.bytes_read
                progress(Progress(deployment.id, bytes=told, total=package.bytes))


def carry(
    disk: Disk,
    deployment: Deployment,
    package: Package,
    directory: Path,
    stop: threading.Event,
    progress: Callable[[Progress], None],
) -> None:
    """Make `directory` of the package, durably; what had that name is removed first.

    UpdateError FORMAT, DIGEST, SPACE or MEDIUM, and Stopped, leave at most what is called `.partial`.
    """
    disk.remove_tree(directory)
    partial = directory.with_name(directory.name + PARTIAL)
    tree = disk.create_tree(partial)
    try:
        room = _Room(directory.parent, disk.free_bytes(directory.parent), package.bytes)
        filling = _Filling(deployment, package, tree, room, stop, progress)
        filling.fill()
        filling.settle()
    except UpdateError as error:
        if error.failure.code in (Code.FORMAT, Code.SPACE):
            package.require_intact()  # else it is the medium's fault and not the package's
        raise
    finally:
        tree.close()
    disk.rename(partial, directory)


def fit(entries: Iterable[Entry]) -> Iterator[Entry]:
    """The entries as they can be made, one after the other, within a directory: with plain names, parents first.

    UpdateError FORMAT for what would not stay within it.
    """
    kinds = {"": Kind.DIRECTORY}
    for entry in entries:
        name = _fit_name(entry.name)
        parts = name.split("/")
        for above in ("/".join(parts[:count]) for count in range(1, len(parts))):
            if above not in kinds:
                kinds[above] = Kind.DIRECTORY
                yield Entry(above, Kind.DIRECTORY)
            elif kinds[above] is not Kind.DIRECTORY:
                raise fault("package", f"{shown(name)} lies below {shown(above)}, which is no directory")
        there = kinds.get(name)
        if there is Kind.DIRECTORY is entry.kind:
            continue  # made already, for what lies in it
        if there is not None:
            raise fault("package", f"name {shown(name)} twice")
        target = ""
        if entry.kind is Kind.LINK:
            target = _fit_target(name, entry.target)
        elif entry.kind is Kind.OTHER_NAME:
            target = _fit_name(entry.target)
            if kinds.get(target) is not Kind.FILE:
                raise fault("package", f"{shown(name)} is a hard link to {shown(target)}, which is no earlier file")
        kinds[name] = Kind.FILE if entry.kind is Kind.OTHER_NAME else entry.kind
        if len(kinds) > TREE_BOUNDS.entries:
            raise fault("package", f"more than {TREE_BOUNDS.entries} entries")
        yield replace(entry, name=name, target=target)


def _fit_name(name: str) -> str:
    """The name as it is made; "" for the directory itself."""
    path = posixpath.normpath(name)
    parts = path.split("/")
    if not name or path.startswith("/") or ".." in name.split("/") or _CONTROL.search(name):
        raise fault("package", f"unsafe name {shown(name)}")
    if _bytes(path) > NAME_BYTES or len(parts) > PARTS or max(map(_bytes, parts)) > PART_BYTES:
        raise fault("package", f"name {shown(name)} is too long")
    return "" if path == "." else path


def _fit_target(name: str, target: str) -> str:
    """Where the link `name` points to, as it is written in the package."""
    parts = target.split("/")
    up = next((number for number, part in enumerate(parts) if part != ".."), len(parts))
    leads_out = target.startswith("/") or ".." in parts[up:] or up > name.count("/")
    if not target or leads_out or _CONTROL.search(target) or _bytes(target) > LINK_BYTES:
        where = f"symbolic link {shown(name)} to {shown(target)}"
        raise fault("package", f"{where}: only straight to what is in the package")
    return target


def _bytes(name: str) -> int:
    return len(name.encode("utf-8", "surrogateescape"))


class _Room:
    """How much may still be written."""

    def __init__(self, directory: Path, free: int, package_bytes: int) -> None:
        self._directory = directory
        self._free = free
        self._package_bytes = package_bytes
        self._taken = 0

    def take(self, count: int) -> None:
        self._taken += count
        if self._taken > RATIO * self._package_bytes + BURST_BYTES:
            raise UpdateError(
                Code.SPACE, f"package: unpacks to more than {RATIO} times its {format_size(self._package_bytes)}"
            )
        if self._taken > self._free - RESERVE_BYTES:
            raise UpdateError(
                Code.SPACE,
                f"{self._directory}: the package unpacks to at least {format_size(self._taken)}, free are "
                f"{format_size(self._free)} less {format_size(RESERVE_BYTES)} reserve",
            )


class _Filling:
    """One tree on its way from a package to the medium."""

    def __init__(
        self,
        deployment: Deployment,
        package: Package,
        tree: Tree,
        room: _Room,
        stop: threading.Event,
        progress: Callable[[Progress], None],
    ) -> None:
        self._deployment, self._package, self._tree, self._room = deployment, package, tree, room
        self._stop, self._progress = stop, progress
        self._written = 0
        self._told = 0  # bytes of the package as of the last progress
        self._digests: dict[str, str] = {}  # SHA-256 of what was written, by file
        self._directories = [""]  # the tree itself

    def fill(self) -> None:
        """Make everything there is in the package; nothing is durable yet."""
        digests: dict[str, str] = {}
        for entry in fit(self._package.entries()):
            self._room.take(_BLOCK_BYTES)
            match entry.kind:
                case Kind.DIRECTORY:
                    self._require_going_on()
                    self._tree.make_directory(entry.name)
                    self._directories.append(entry.name)
                case Kind.FILE:
                    digests[entry.name] = self._digests[entry.name] = self._make_file(entry)
                case Kind.LINK:
                    self._tree.make_link(entry.name, entry.target)
                case Kind.OTHER_NAME:
                    self._tree.make_other_name(entry.name, entry.target)
                    digests[entry.name] = digests[entry.target]
                case _:
                    assert_never(entry.kind)
        if not digests:
            raise fault("package", "holds no file")
        if self._package.manifest is not None:
            self._package.manifest.check(digests)

    def settle(self) -> None:
        """Make it durable, and compare each file with what the medium gives back."""
        checked = 0
        for name, wanted in self._digests.items():
            self._tree.sync(name)
            digest = hashlib.sha256()
            for chunk in self._tree.chunks(name):
                self._require_going_on()
                digest.update(chunk)
                checked += len(chunk)
                self._tell(self._package.bytes, self._package.bytes * checked // max(1, self._written))
            if digest.hexdigest() != wanted:
                raise UpdateError(Code.MEDIUM, f"{shown(name)}: does not give back what was written")
        for name in self._directories:
            self._require_going_on()
            self._tree.sync(name)

    def _make_file(self, entry: Entry) -> str:
        if entry.size is not None:
            self._room.take(entry.size)
        digest = hashlib.sha256()
        self._tree.make_file(entry.name, self._content(entry, digest), executable=entry.executable)
        return digest.hexdigest()

    def _content(self, entry: Entry, digest: "hashlib._Hash") -> Iterator[Piece]:
        done = 0
        for piece in entry.pieces:
            self._require_going_on()
            done += len(piece)
            if entry.size is None:
                self._room.take(len(piece))
            elif done > entry.size:
                raise fault(shown(entry.name), f"unpacks to more than the {entry.size} bytes it claims")
            digest.update(piece)
            yield piece
            self._tell(self._package.bytes_read, 0)
        if entry.size is not None and done < entry.size:
            raise fault(shown(entry.name), f"unpacks to {done} bytes instead of the {entry.size} it claims")
        self._written += done

    def _require_going_on(self) -> None:
        if self._stop.is_set():
            raise Stopped

    def _tell(self, read: int, checked: int) -> None:
        if abs(read + checked - self._told) >= PROGRESS_BYTES or checked == self._package.bytes:
            self._told = read + checked
            self._progress(Progress(self._deployment.id, bytes=read, total=self._package.bytes, checked=checked))
