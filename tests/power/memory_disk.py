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
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from otad.durable import Place, Tree

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


@dataclass
class Link:
    """A symbolic link: there with its name, or not at all."""

    target: str


@dataclass(eq=False)
class Directory:
    """Names as they are looked up, and as the medium holds them; between the two, changes not yet synced."""

    names: "Names" = field(default_factory=dict)
    durable: "Names" = field(default_factory=dict)
    pending: "list[Change]" = field(default_factory=list)

    def change(self, effect: "Change") -> None:
        effect(self.names)
        self.pending.append(effect)

    def sync(self) -> None:
        for effect in self.pending:
            effect(self.durable)
        self.pending.clear()

    def cut(self, fate: random.Random | str) -> None:
        for effect in self.pending:
            if fate.random() < 0.5 if isinstance(fate, random.Random) else fate == "all":
                effect(self.durable)
        self.pending.clear()
        self.names = dict(self.durable)


Node = Inode | Link | Directory
Names = dict[str, Node]
Change = Callable[[Names], None]


@dataclass
class Storage:
    """What there is on the medium, and what is only believed to be there. Survives cuts; `MemoryDisk` works on it."""

    root: Directory = field(default_factory=Directory)
    free: int = 1 << 40

    def provide(self, path: Path, content: bytes = b"") -> None:
        """A file that has always been there."""
        directory = self.provide_directory(path.parent)
        directory.names[path.name] = directory.durable[path.name] = Inode(bytearray(content), bytearray(content))

    def provide_directory(self, path: Path) -> Directory:
        if path == path.parent:
            return self.root
        above, there = self.provide_directory(path.parent), self.find(path)
        if isinstance(there, Directory):
            return there
        made = above.names[path.name] = above.durable[path.name] = Directory()
        return made

    def find(self, path: Path, *, durable: bool = False) -> Node | None:
        """What has this name, by default as it is looked up."""
        node: Node | None = self.root
        for part in path.parts[1:]:
            if not isinstance(node, Directory):
                return None
            node = (node.durable if durable else node.names).get(part)
        return node

    def directory(self, path: Path) -> Directory:
        node = self.find(path)
        if not isinstance(node, Directory):
            number = errno.ENOENT if node is None else errno.ENOTDIR
            raise OSError(number, os.strerror(number), str(path))
        return node

    @property
    def names(self) -> "Files":
        """The files by their paths."""
        return Files(self)

    def cut(self, fate: Fate) -> None:
        """The power fails: from here on only what `fate` let through was ever there."""
        chooser = random.Random(fate) if isinstance(fate, int) else fate
        for node in _reachable(self.root):
            if not isinstance(node, Link):
                node.cut(chooser)

    def shut_down(self) -> None:
        """An orderly reboot: everything is written out first."""
        self.cut("all")

    def held(self, path: Path) -> list[bytes]:
        """What a reader may find here after a cut now: without and with all that is not synced."""
        found = []
        for node in (self.find(path, durable=True), self.find(path)):
            if isinstance(node, Inode):
                found += [bytes(node.durable), bytes(node.content)]
        return found

    def copy(self) -> "Storage":
        return copy.deepcopy(self)


class Files(Mapping[Path, Inode]):
    """The files of a storage, as they are looked up."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def __getitem__(self, path: Path) -> Inode:
        node = self._storage.find(path)
        if not isinstance(node, Inode):
            raise KeyError(path)
        return node

    def __iter__(self) -> Iterator[Path]:
        return _file_paths(Path("/"), self._storage.root)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _file_paths(path: Path, directory: Directory) -> Iterator[Path]:
    for name, node in directory.names.items():
        if isinstance(node, Directory):
            yield from _file_paths(path / name, node)
        elif isinstance(node, Inode):
            yield path / name


def _reachable(root: Directory) -> list[Node]:
    """Everything that has a name or had one that is still on the medium, once each."""
    nodes: dict[int, Node] = {id(root): root}
    left: list[Directory] = [root]
    while left:
        directory = left.pop()
        for node in (*directory.names.values(), *directory.durable.values()):
            if id(node) not in nodes:
                nodes[id(node)] = node
                if isinstance(node, Directory):
                    left.append(node)
    return list(nodes.values())


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
        node = self.storage.find(path)
        if not isinstance(node, Inode):
            number = {Directory: errno.EISDIR, Link: errno.ELOOP}.get(type(node), errno.ENOENT)
            raise OSError(number, os.strerror(number), str(path))
        return node

    def link(self, path: Path, node: Node, name: str = "create") -> None:
        directory = self.storage.directory(path.parent)
        if path.name in directory.names:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))

        def effect(names: Names) -> None:
            names[path.name] = node

        self.operation(f"{name} {path.name}", lambda: directory.change(effect))

    def unlink(self, path: Path, name: str = "unlink") -> None:
        directory = self.storage.directory(path.parent)

        def effect(names: Names) -> None:
            names.pop(path.name, None)

        self.operation(f"{name} {path.name}", lambda: directory.change(effect))

    def move(self, old: Path, new: Path) -> None:
        assert old.parent == new.parent, "a rename from one directory into another is two changes"
        directory = self.storage.directory(old.parent)
        node = directory.names.get(old.name)
        if node is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(old))
        there = directory.names.get(new.name)
        if isinstance(there, Directory) and (there.names or not isinstance(node, Directory)):
            number = errno.ENOTEMPTY if isinstance(node, Directory) else errno.EISDIR
            raise OSError(number, os.strerror(number), str(new))

        def effect(names: Names) -> None:
            names.pop(old.name, None)
            names[new.name] = node

        self.operation(f"rename {old.name} {new.name}", lambda: directory.change(effect))

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
        self.operation(f"fsync {path.name}/", self.storage.directory(path).sync)

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
        if self.storage.find(path) is not None:
            self.unlink(path)
            self.sync_directory(path.parent)

    def make_directory(self, path: Path, *, mode: int = 0o700) -> None:
        self.access(f"stat {path.name}/")
        if isinstance(self.storage.find(path), Directory):
            return
        self.make_directory(path.parent, mode=mode)
        self.link(path, Directory(), "mkdir")
        try:
            self.sync_directory(path.parent)
        except OSError:
            self.unlink(path, "rmdir")
            raise

    def names(self, directory: Path) -> list[str]:
        self.access(f"list {directory.name}/")
        return sorted(self.storage.directory(directory).names)

    def read_link(self, path: Path) -> str | None:
        self.access(f"readlink {path.name}")
        node = self.storage.find(path)
        if node is not None and not isinstance(node, Link):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), str(path))
        return node.target if node is not None else None

    def replace_link(self, path: Path, target: str) -> None:
        temporary = path.with_name(path.name + ".tmp")
        if self.storage.find(temporary) is not None:
            self.unlink(temporary)
        self.link(temporary, Link(target), "symlink")
        self.move(temporary, path)
        self.sync_directory(path.parent)

    def create_tree(self, path: Path) -> Tree:
        self.remove_tree(path)
        self.link(path, Directory(), "mkdir")
        return MemoryTree(self, path)

    def remove_tree(self, path: Path) -> None:
        if self.storage.find(path) is not None:
            self._remove_tree(path)
            self.sync_directory(path.parent)

    def _remove_tree(self, path: Path) -> None:
        node = self.storage.find(path)
        if not isinstance(node, Directory):
            self.unlink(path)
            return
        for name in sorted(node.names):
            self._remove_tree(path / name)
        self.unlink(path, "rmdir")

    def free_bytes(self, directory: Path) -> int:
        self.access(f"statvfs {directory.name}/")
        held = sum(len(inode.content) for path, inode in self.storage.names.items() if directory in path.parents)
        return self.storage.free - held

    def create_place(self, path: Path, size: int) -> Place:
        if self.storage.find(path) is None:
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


class MemoryTree:
    """A `Tree` in memory."""

    def __init__(self, disk: MemoryDisk, path: Path) -> None:
        self._disk, self._path = disk, path

    def make_directory(self, name: str) -> None:
        self._disk.link(self._path / name, Directory(), "mkdir")

    def make_file(self, name: str, chunks: Iterable[bytes | memoryview], *, executable: bool = False) -> None:
        path, inode, offset = self._path / name, Inode(), 0
        self._disk.link(path, inode)
        for chunk in chunks:
            self._disk.write(path, inode, offset, bytes(chunk))
            offset += len(chunk)

    def make_link(self, name: str, target: str) -> None:
        self._disk.link(self._path / name, Link(target), "symlink")

    def make_other_name(self, name: str, file: str) -> None:
        self._disk.link(self._path / name, self._disk.lookup(self._path / file), "link")

    def sync(self, name: str) -> None:
        path = self._path / name
        if isinstance(self._disk.storage.find(path), Directory):
            self._disk.sync_directory(path)
        else:
            self._disk.sync(path, self._disk.lookup(path))

    def chunks(self, name: str) -> Iterator[bytes]:
        self._disk.access(f"read {name}")
        yield bytes(self._disk.lookup(self._path / name).content)

    def close(self) -> None:
        pass
