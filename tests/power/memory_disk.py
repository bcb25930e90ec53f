# SPDX-License-Identifier: Apache-2.0
"""Storage that forgets: a `Disk` in memory that knows what is durable, and a switch that cuts its power.

Written is not durable. Bytes wait until their file is synced, names until their directory is; at a cut each of them
may have reached the medium or not, a write also in parts, in any order that the rules of POSIX allow. Which, decides a
`Fate`: "none" and "all" are the two ends, a number is the seed of something in between.

`MemoryDisk` does in the order of system calls what `RealDisk` does (`test_real_disk_trace` compares the two). Each
call that changes something is an *operation*: the power can fail at it, when it has been issued and nobody knows
whether it was carried out. Each call at all is an *access*: it can fail with an errno instead.
"""

import copy
import errno
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from otad.durable import Place

Fate = str | int
SECTOR_BYTES = 512


class PowerCut(BaseException):
    """The gateway is off. Whatever still runs gets this at its next operation."""


@dataclass
class Power:
    """The switch: counts operations, and is off from the chosen one on until `restore`."""

    cut_at: int | None = None
    operations: int = 0
    is_off: bool = False
    log: list[str] = field(default_factory=list)

    def operation(self, name: str, effect: Callable[[], None] = lambda: None) -> None:
        """Count one and issue its `effect`, durable or not; PowerCut if nobody will ever hear of it."""
        self.require()
        self.operations += 1
        self.log.append(name)
        effect()
        if self.operations == self.cut_at:
            self.is_off = True
            raise PowerCut(f"{self.operations}: {name}")

    def require(self) -> None:
        if self.is_off:
            raise PowerCut("off")

    def restore(self, next_cut_at: int | None = None) -> None:
        self.is_off, self.cut_at = False, next_cut_at


@dataclass
class Fault:
    """The access with number `at` fails, or all from there on; inactive while `is_healed`."""

    at: int
    number: int = errno.EIO
    for_ever: bool = False
    accesses: int = 0
    is_healed: bool = False
    hit: str = ""

    def access(self, name: str) -> bool:
        """Whether this one fails."""
        if self.is_healed:
            return False
        self.accesses += 1
        fails = self.accesses >= self.at if self.for_ever else self.accesses == self.at
        if fails and not self.hit:
            self.hit = name
        return fails


@dataclass
class Inode:
    """A file's bytes: as a reader sees them, and as the medium holds them; between the two, writes not yet synced."""

    content: bytearray = field(default_factory=bytearray)
    durable: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, bytes]] = field(default_factory=list)
    is_open: bool = False
    changes: int = 0  # whoever looks again can tell whether there is anything new

    def write(self, offset: int, content: bytes) -> None:
        self.changes += 1
        _put(self.content, offset, content)
        self.pending.append((offset, content))

    def sync(self) -> None:
        self.changes += 1
        for offset, content in self.pending:
            _put(self.durable, offset, content)
        self.pending.clear()

    def lose(self) -> None:
        """A failed sync: the kernel has marked the pages clean, and reads the medium when it needs them again."""
        self.changes += 1
        self.content = bytearray(self.durable)
        self.pending.clear()

    def cut(self, fate: random.Random | str) -> None:
        for offset, content in self.pending:
            for at, part in _survivors(offset, content, fate):
                _put(self.durable, at, part)
        self.lose()
        self.is_open = False


def _put(content: bytearray, offset: int, part: bytes) -> None:
    if len(content) < offset:
        content.extend(bytes(offset - len(content)))
    content[offset : offset + len(part)] = part


def _survivors(offset: int, content: bytes, fate: random.Random | str) -> list[tuple[int, bytes]]:
    """What of one unsynced write is on the medium: nothing, all, a beginning, or some of its sectors."""
    if not isinstance(fate, random.Random):
        return [(offset, content)] if fate == "all" else []
    match fate.randrange(4):
        case 0:
            return []
        case 1:
            return [(offset, content)]
        case 2:
            return [(offset, content[: fate.randrange(len(content) + 1)])]
        case _:
            sectors = range(0, len(content), SECTOR_BYTES)
            kept = [at for at in sectors if fate.random() < 0.5]
            return [(offset + at, content[at : at + SECTOR_BYTES]) for at in kept]


Names = dict[Path, Inode]


@dataclass
class Storage:
    """What there is on the medium, and what is only believed to be there. Survives cuts; `MemoryDisk` works on it."""

    names: Names = field(default_factory=dict)
    durable: Names = field(default_factory=dict)
    directories: set[Path] = field(default_factory=set)
    durable_directories: set[Path] = field(default_factory=set)
    pending: dict[Path, list[Callable[[Names, set[Path]], None]]] = field(default_factory=dict)  # by directory
    free: int = 1 << 40

    def provide(self, path: Path, content: bytes = b"") -> None:
        """A file that has always been there."""
        self.names[path] = self.durable[path] = Inode(bytearray(content), bytearray(content))

    def provide_directory(self, path: Path) -> None:
        self.directories.add(path)
        self.durable_directories.add(path)

    def change(self, directory: Path, effect: Callable[[Names, set[Path]], None]) -> None:
        effect(self.names, self.directories)
        self.pending.setdefault(directory, []).append(effect)

    def sync_directory(self, directory: Path) -> None:
        for effect in self.pending.pop(directory, ()):
            effect(self.durable, self.durable_directories)

    def cut(self, fate: Fate) -> None:
        """The power fails: from here on only what `fate` let through was ever there."""
        chooser = random.Random(fate) if isinstance(fate, int) else fate
        for inode in self._inodes():
            inode.cut(chooser)
        for effects in self.pending.values():
            for effect in effects:
                if chooser.random() < 0.5 if isinstance(chooser, random.Random) else chooser == "all":
                    effect(self.durable, self.durable_directories)
        self.pending.clear()
        there = self.durable_directories
        self.directories = {path for path in there if all(up in there for up in path.parents if up.parents)}
        self.durable_directories = set(self.directories)
        self.names = {path: inode for path, inode in self.durable.items() if path.parent in self.directories}
        self.durable = dict(self.names)

    def shut_down(self) -> None:
        """An orderly reboot: everything is written out first."""
        self.cut("all")

    def held(self, path: Path) -> list[bytes]:
        """What a reader may find here after a cut now: without and with all that is not synced."""
        found = []
        for names in (self.durable, self.names):
            inode = names.get(path)
            if inode is not None:
                found += [bytes(inode.durable), bytes(inode.content)]
        return found

    def copy(self) -> "Storage":
        return copy.deepcopy(self)

    def _inodes(self) -> list[Inode]:
        inodes = {id(inode): inode for inode in (*self.names.values(), *self.durable.values())}
        return list(inodes.values())


class MemoryDisk:
    """A `Disk` for one life of the gateway, on a `Storage` that outlives it."""

    def __init__(
        self,
        storage: Storage,
        power: Power,
        fault: Fault | None = None,
        watch: Callable[[], None] = lambda: None,
    ) -> None:
        """`watch` is called whenever what may be found after a cut has changed."""
        self.storage, self.power, self.fault, self.watch = storage, power, fault, watch

    # -- the calls everything else is made of

    def access(self, name: str) -> None:
        self.power.require()
        if self.fault is not None and self.fault.access(name):
            raise OSError(self.fault.number, os.strerror(self.fault.number), name)

    def operation(self, name: str, effect: Callable[[], None]) -> None:
        self.access(name)

        def then() -> None:
            effect()
            self.watch()

        self.power.operation(name, then)

    def lookup(self, path: Path) -> Inode:
        if path not in self.storage.names:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return self.storage.names[path]

    def link(self, path: Path, inode: Inode, name: str = "create") -> None:
        if path.parent not in self.storage.directories:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path.parent))

        def effect(names: Names, directories: set[Path]) -> None:
            names[path] = inode

        self.operation(f"{name} {path.name}", lambda: self.storage.change(path.parent, effect))

    def unlink(self, path: Path) -> None:
        def effect(names: Names, directories: set[Path]) -> None:
            names.pop(path, None)

        self.operation(f"unlink {path.name}", lambda: self.storage.change(path.parent, effect))

    def move(self, old: Path, new: Path) -> None:
        inode = self.lookup(old)

        def effect(names: Names, directories: set[Path]) -> None:
            names.pop(old, None)
            names[new] = inode

        self.operation(f"rename {old.name} {new.name}", lambda: self.storage.change(new.parent, effect))

    def write(self, path: Path, inode: Inode, offset: int, content: bytes) -> None:
        if not content:
            return
        try:
            self.operation(f"write {path.name}", lambda: inode.write(offset, content))
        except OSError:
            inode.write(offset, content[: len(content) // 2])  # a full disk takes what still fits
            raise

    def sync(self, path: Path, inode: Inode) -> None:
        try:
            self.operation(f"fsync {path.name}", inode.sync)
        except OSError:
            inode.lose()
            raise

    def sync_directory(self, path: Path) -> None:
        self.operation(f"fsync {path.name}/", lambda: self.storage.sync_directory(path))

    # -- Disk

    def read(self, path: Path, bytes_max: int) -> bytes:
        self.access(f"read {path.name}")
        return bytes(self.lookup(path).content[: bytes_max + 1])

    def replace(self, path: Path, content: bytes) -> None:
        temporary = path.with_name(path.name + ".tmp")
        if temporary in self.storage.names:
            self.unlink(temporary)
        inode = Inode()
        self.link(temporary, inode)
        self.write(temporary, inode, 0, content)
        self.sync(temporary, inode)
        self.move(temporary, path)
        self.sync_directory(path.parent)

    def append(self, path: Path, content: bytes) -> None:
        if path not in self.storage.names:
            self.replace(path, b"")
        inode = self.lookup(path)
        self.write(path, inode, len(inode.content), content)
        self.sync(path, inode)

    def rename(self, old: Path, new: Path) -> None:
        self.move(old, new)
        self.sync_directory(new.parent)

    def remove(self, path: Path) -> None:
        if path in self.storage.names:
            self.unlink(path)
            self.sync_directory(path.parent)

    def make_directory(self, path: Path) -> None:
        self.access(f"stat {path.name}/")
        if path in self.storage.directories:
            return
        self.make_directory(path.parent)

        def effect(names: Names, directories: set[Path]) -> None:
            directories.add(path)

        def undone(names: Names, directories: set[Path]) -> None:
            directories.discard(path)

        self.operation(f"mkdir {path.name}", lambda: self.storage.change(path.parent, effect))
        try:
            self.sync_directory(path.parent)
        except OSError:
            self.operation(f"rmdir {path.name}", lambda: self.storage.change(path.parent, undone))
            raise

    def names(self, directory: Path) -> list[str]:
        self.access(f"list {directory.name}/")
        return sorted(path.name for path in self.storage.names if path.parent == directory)

    def free_bytes(self, directory: Path) -> int:
        self.access(f"statvfs {directory.name}/")
        held = sum(len(inode.content) for path, inode in self.storage.names.items() if path.parent == directory)
        return self.storage.free - held

    def create_place(self, path: Path, size: int) -> Place:
        if path not in self.storage.names:
            self.link(path, Inode())
        inode = self.lookup(path)
        self._lock(path, inode)
        try:
            self.write(path, inode, len(inode.content), bytes(max(0, size - len(inode.content))))
            self.sync(path, inode)
            self.sync_directory(path.parent)
        except BaseException:
            inode.is_open = False
            raise
        return MemoryPlace(self, path, inode)

    def open_place(self, path: Path, *, write: bool = True) -> Place:
        self.access(f"open {path.name}")
        inode = self.lookup(path)
        if write:
            self._lock(path, inode)
        return MemoryPlace(self, path, inode)

    def _lock(self, path: Path, inode: Inode) -> None:
        if inode.is_open:
            raise OSError(errno.EBUSY, "somebody else writes it", str(path))
        inode.is_open = True


class MemoryPlace:
    """A `Place` in memory."""

    from_medium = True

    def __init__(self, disk: MemoryDisk, path: Path, inode: Inode) -> None:
        self.bytes = len(inode.content)
        self._disk, self._path, self._inode = disk, path, inode

    def write(self, offset: int, content: memoryview) -> None:
        if offset + len(content) > self.bytes:
            raise OSError(errno.ENOSPC, f"{offset + len(content)} bytes: the place has {self.bytes}")
        self._disk.write(self._path, self._inode, offset, bytes(content))

    def sync(self) -> None:
        self._disk.sync(self._path, self._inode)

    def read_into(self, offset: int, buffer: memoryview) -> int:
        self._disk.access(f"pread {self._path.name}")
        part = self._inode.content[offset : offset + len(buffer)]
        buffer[: len(part)] = part
        return len(part)

    def close(self) -> None:
        self._inode.is_open = False
