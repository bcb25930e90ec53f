# SPDX-License-Identifier: Apache-2.0
"""The one room for durable I/O: every write that matters after a power cut goes through a `Disk`.

State file, history, slots, staging files, trees of files, and the variables of boot loaders that otad writes itself: no
other module of the gateway side opens a file for writing (a test checks it). So a test can count the operations, cut at
each of them, and let go of whatever was not synced.

All calls block; run them in a thread (`threads.in_thread`) where that matters. OSError passes through to whoever can
say what it means. A failed sync is never repeated on the same descriptor: the kernel has forgotten the lost pages by
then and would say yes.
"""

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import stat
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

ALIGNMENT = 4096
"""What O_DIRECT asks of offsets, lengths and buffers on every device that otad knows."""
_BLKGETSIZE64 = 0x80081272
_READ_BYTES = 256 << 10
_LINKS_MAX = 40  # as many as the kernel follows: path_resolution(7)
_TMPFS_MAGIC, _RAMFS_MAGIC = 0x01021994, 0x858458F6


class Place(Protocol):
    """An open slot or staging file. Offsets and lengths are bytes; only the last write may be unaligned."""

    bytes: int  # what fits
    from_medium: bool  # a read after `sync` comes from the medium, not from memory

    def write(self, offset: int, content: memoryview) -> None:
        """Write all of it. Not durable before `sync` returns."""
        ...

    def sync(self) -> None:
        """Everything written so far is durable."""
        ...

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Fill from the medium; the number of bytes read, less than asked only at the end of the place.

        `buffer` begins on a page and is a multiple of ALIGNMENT long (see `pages`), as is `offset`.
        """
        ...

    def close(self) -> None: ...


class Tree(Protocol):
    """A directory that is being filled. Nothing in it is durable before `sync` has returned for it.

    Names are relative to it, with "/" between their parts; what a name lies in has been made before, and nothing has
    that name yet (FileExistsError). No symbolic link is followed, neither one that is in the tree nor one that somebody
    else puts there.
    """

    def make_directory(self, name: str) -> None: ...

    def make_file(self, name: str, chunks: Iterable[bytes | memoryview], *, executable: bool = False) -> None:
        """A file with this content, which all may read, and only we write."""
        ...

    def make_link(self, name: str, target: str) -> None:
        """A symbolic link to `target`, which is not looked at."""
        ...

    def make_other_name(self, name: str, file: str) -> None:
        """`name` is the same file as `file` (a hard link)."""
        ...

    def sync(self, name: str) -> None:
        """A file's content, or a directory's names, are durable; "" is the tree itself."""
        ...

    def chunks(self, name: str) -> Iterator[bytes]:
        """A file's content, after `sync` from the medium."""
        ...

    def close(self) -> None: ...


class Disk(Protocol):
    """What otad does to storage. Paths are absolute; symbolic links are never followed when writing."""

    def read(self, path: Path, bytes_max: int) -> bytes:
        """At most `bytes_max` + 1 bytes, so that a caller sees that there is more. FileNotFoundError if missing."""
        ...

    def replace(self, path: Path, content: bytes) -> None:
        """The file has this content, mode 0600, durably; after a power cut it is the old or the new one whole."""
        ...

    def append(self, path: Path, content: bytes) -> None:
        """`content` is at the end of the file, durably. A cut may leave a part of it as the last line."""
        ...

    def rename(self, old: Path, new: Path) -> None: ...

    def remove(self, path: Path) -> None:
        """The file is gone, durably; it may have been gone before."""
        ...

    def make_directory(self, path: Path, *, mode: int = 0o700) -> None:
        """The directory exists, with its parents, of this mode where it is made now."""
        ...

    def sync_directory(self, path: Path) -> None:
        """What its names are now is durable: for what an earlier process may have left half done."""
        ...

    def names(self, directory: Path) -> list[str]: ...

    def read_link(self, path: Path) -> str | None:
        """Where the symbolic link points; None if nothing is there, OSError EINVAL if it is something else."""
        ...

    def replace_link(self, path: Path, target: str) -> None:
        """The symbolic link points to `target`, durably; after a power cut it is the old or the new one."""
        ...

    def create_tree(self, path: Path) -> Tree:
        """An empty directory, which all may read; whatever had this name is gone."""
        ...

    def remove_tree(self, path: Path) -> None:
        """The directory is gone with all that was in it, durably; it may have been gone before, or no directory.

        A cut may leave a part of it.
        """
        ...

    def free_bytes(self, directory: Path) -> int: ...

    def create_place(self, path: Path, size: int) -> Place:
        """A file of `size` bytes for a package, its space taken now; what an earlier one left in it stays."""
        ...

    def open_place(self, path: Path, *, write: bool = True) -> Place:
        """A slot: a block device or an existing file, opened exclusively when it is to be written.

        OSError EBUSY: it is mounted, or somebody else writes it.
        """
        ...


def leads_to(disk: Disk, link: Path) -> str | None:
    """What a symbolic link leads to in the end, as a name in the link's own directory, there or not; "a/b" is below it.

    However it is spelled, and by whatever links. None where that lies elsewhere, or nowhere, or `link` is none.
    """
    directory = _end_of(disk, link.parent)
    end = _end_of(disk, link)
    if directory is None or end is None or end == directory / link.name or directory not in end.parents:
        return None
    return str(end.relative_to(directory))


def _end_of(disk: Disk, path: Path) -> Path | None:
    """Where an absolute path leads to without any symbolic link in it; None where they go round in circles."""
    end, left, links = Path("/"), [*reversed(path.parts[1:])], 0
    while left:
        part = left.pop()
        if part == "..":
            end = end.parent
            continue
        try:
            target = disk.read_link(end / part)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTDIR):
                raise
            target = None  # no link
        if target is None:
            end /= part
            continue
        links += 1
        if links > _LINKS_MAX:
            return None
        if target.startswith("/"):
            end = Path("/")
        left += reversed([part for part in target.split("/") if part not in ("", ".")])
    return end


def pages(size: int) -> memoryview:
    """A zeroed buffer that begins on a page, as O_DIRECT wants it; freed with its last view."""
    return memoryview(mmap.mmap(-1, size))


class RealDisk:
    """The gateway's storage."""

    def read(self, path: Path, bytes_max: int) -> bytes:
        with path.open("rb") as file:
            return file.read(bytes_max + 1)

    def replace(self, path: Path, content: bytes) -> None:
        temporary = path.with_name(path.name + ".tmp")
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            _write_all(fd, content)
            os.fsync(fd)
        finally:
            os.close(fd)
        temporary.rename(path)
        _sync_directory(path.parent)

    def append(self, path: Path, content: bytes) -> None:
        if not path.exists():
            self.replace(path, b"")
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            _write_all(fd, content)
            os.fsync(fd)
        finally:
            os.close(fd)

    def rename(self, old: Path, new: Path) -> None:
        old.rename(new)
        _sync_directory(new.parent)

    def remove(self, path: Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
            _sync_directory(path.parent)

    def make_directory(self, path: Path, *, mode: int = 0o700) -> None:
        if path.is_dir():
            return
        self.make_directory(path.parent, mode=mode)
        path.mkdir(mode=mode, exist_ok=True)
        try:
            _sync_directory(path.parent)
        except OSError:
            path.rmdir()  # or the next try would find it and take it for durable
            raise

    def sync_directory(self, path: Path) -> None:
        _sync_directory(path)

    def names(self, directory: Path) -> list[str]:
        return sorted(os.listdir(directory))

    def read_link(self, path: Path) -> str | None:
        try:
            return os.readlink(path)
        except FileNotFoundError:
            return None

    def replace_link(self, path: Path, target: str) -> None:
        temporary = path.with_name(path.name + ".tmp")
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        os.symlink(target, temporary)
        temporary.rename(path)
        _sync_directory(path.parent)

    def create_tree(self, path: Path) -> Tree:
        self.remove_tree(path)
        path.mkdir(mode=0o755)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        os.fchmod(fd, 0o755)  # whatever the umask
        return _OpenTree(fd)

    def remove_tree(self, path: Path) -> None:
        if not os.path.lexists(path):
            return
        parent = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _remove_tree(parent, path.name)
            os.fsync(parent)
        finally:
            os.close(parent)

    def free_bytes(self, directory: Path) -> int:
        counts = os.statvfs(directory)
        return counts.f_bavail * counts.f_frsize

    def create_place(self, path: Path, size: int) -> Place:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            _lock(fd, path)
            if os.fstat(fd).st_size != size:
                os.ftruncate(fd, size)
            if size:
                os.posix_fallocate(fd, 0, size)
            os.fsync(fd)
            _sync_directory(path.parent)
        except BaseException:
            os.close(fd)
            raise
        return _OpenPlace(fd, size, writable=True)

    def open_place(self, path: Path, *, write: bool = True) -> Place:
        # O_EXCL without O_CREAT: a block device that is mounted says EBUSY, and cannot be mounted while we hold it.
        flags = os.O_RDWR | os.O_EXCL if write else os.O_RDONLY
        fd = os.open(path, flags | os.O_CLOEXEC)
        try:
            status = os.fstat(fd)
            if stat.S_ISBLK(status.st_mode):
                size = _device_bytes(fd)
            elif stat.S_ISREG(status.st_mode):
                size = status.st_size
                if write:
                    _lock(fd, path)
            else:
                raise OSError(errno.EINVAL, "neither a block device nor a regular file", str(path))
        except BaseException:
            os.close(fd)
            raise
        return _OpenPlace(fd, size, writable=write)


class _OpenPlace:
    """Two descriptors on one inode: O_DIRECT for whole pages, the page cache for an unaligned end.

    Direct transfers halve time and processor use, leave the page cache to the applications, and make a read after a
    write what it claims to be. Where the file system has no O_DIRECT, fdatasync and DONTNEED come before each read.
    """

    def __init__(self, fd: int, size: int, *, writable: bool) -> None:
        self.bytes = size
        self._fd = fd
        self._direct: int | None = None
        memory_only = _is_in_memory(fd)
        self.from_medium = not memory_only
        if not memory_only:
            mode = os.O_RDWR if writable else os.O_RDONLY
            with contextlib.suppress(OSError):  # EINVAL: a file system without it
                self._direct = os.open(f"/proc/self/fd/{fd}", mode | os.O_DIRECT | os.O_CLOEXEC)

    def write(self, offset: int, content: memoryview) -> None:
        if offset + len(content) > self.bytes:
            raise OSError(errno.ENOSPC, f"{offset + len(content)} bytes: the place has {self.bytes}")
        whole = len(content) - len(content) % ALIGNMENT
        if self._direct is None or offset % ALIGNMENT or not _is_aligned(content):
            whole = 0
        if whole:
            _pwrite_all(self._direct or 0, content[:whole], offset)
        if whole < len(content):
            _pwrite_all(self._fd, content[whole:], offset + whole)

    def sync(self) -> None:
        os.fdatasync(self._fd)

    def read_into(self, offset: int, buffer: memoryview) -> int:
        fd = self._direct
        if fd is None:
            fd = self._fd
            os.posix_fadvise(fd, offset, len(buffer), os.POSIX_FADV_DONTNEED)
        done = 0
        while done < len(buffer):
            count = os.preadv(fd, [buffer[done:]], offset + done)
            done += count
            if count == 0 or done % ALIGNMENT:
                break  # the end of the place
        return done

    def close(self) -> None:
        if self._direct is not None:
            os.close(self._direct)
        os.close(self._fd)


class _OpenTree:
    """Each name is looked up part by part from the descriptor of the tree, so that no link leads out of it."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def make_directory(self, name: str) -> None:
        with self._parent(name) as (parent, last):
            os.mkdir(last, 0o755, dir_fd=parent)
            with _opened(last, os.O_RDONLY | os.O_DIRECTORY, parent) as fd:
                os.fchmod(fd, 0o755)

    def make_file(self, name: str, chunks: Iterable[bytes | memoryview], *, executable: bool = False) -> None:
        with (
            self._parent(name) as (parent, last),
            _opened(last, os.O_WRONLY | os.O_CREAT | os.O_EXCL, parent) as fd,
        ):
            for chunk in chunks:
                _write_all(fd, chunk)
            os.fchmod(fd, 0o755 if executable else 0o644)

    def make_link(self, name: str, target: str) -> None:
        with self._parent(name) as (parent, last):
            os.symlink(target, last, dir_fd=parent)

    def make_other_name(self, name: str, file: str) -> None:
        with self._parent(file) as (source, file_last), self._parent(name) as (parent, last):
            os.link(file_last, last, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)

    def sync(self, name: str) -> None:
        with self._parent(name) as (parent, last), _opened(last, os.O_RDONLY | os.O_NONBLOCK, parent) as fd:
            os.fsync(fd)

    def chunks(self, name: str) -> Iterator[bytes]:
        with self._parent(name) as (parent, last), _opened(last, os.O_RDONLY | os.O_NONBLOCK, parent) as fd:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            while chunk := os.read(fd, _READ_BYTES):
                yield chunk

    def close(self) -> None:
        os.close(self._fd)

    @contextlib.contextmanager
    def _parent(self, name: str) -> Iterator[tuple[int, str]]:
        """The directory that `name` lies in, open, and the name's last part; of "" the tree and itself."""
        *parts, last = name.split("/")
        with contextlib.ExitStack() as stack:
            fd = self._fd
            for part in parts:
                fd = stack.enter_context(_opened(part, os.O_PATH | os.O_DIRECTORY, fd))
            yield fd, last or "."


@contextlib.contextmanager
def _opened(name: str, flags: int, directory: int) -> Iterator[int]:
    fd = os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=directory)
    try:
        yield fd
    finally:
        os.close(fd)


def _remove_tree(directory: int, name: str) -> None:
    with contextlib.suppress(IsADirectoryError):
        os.unlink(name, dir_fd=directory)
        return
    with _opened(name, os.O_RDONLY | os.O_DIRECTORY, directory) as fd:
        for inner in sorted(os.listdir(fd)):
            _remove_tree(fd, inner)
    os.rmdir(name, dir_fd=directory)


def _write_all(fd: int, content: bytes | memoryview) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view) :]


def _pwrite_all(fd: int, content: memoryview, offset: int) -> None:
    while content:
        count = os.pwrite(fd, content, offset)
        content, offset = content[count:], offset + count


def _is_aligned(content: memoryview) -> bool:
    if content.readonly:
        return False
    return ctypes.addressof(ctypes.c_char.from_buffer(content)) % ALIGNMENT == 0 if len(content) else False


def _lock(fd: int, path: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise OSError(errno.EBUSY, "somebody else writes it", str(path)) from error


def _device_bytes(fd: int) -> int:
    answer = fcntl.ioctl(fd, _BLKGETSIZE64, b"\0" * 8)
    return int(struct.unpack("Q", answer)[0])


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _is_in_memory(fd: int) -> bool:
    """It lies on a tmpfs or ramfs, where a read proves nothing about a medium."""
    found = ctypes.create_string_buffer(512)  # statfs(2): larger than the structure on any architecture
    if stat.S_ISBLK(os.fstat(fd).st_mode) or ctypes.CDLL(None).fstatfs(fd, found) != 0:
        return False
    kind = ctypes.c_long.from_buffer(found).value & 0xFFFFFFFF  # f_type comes first
    return kind in (_TMPFS_MAGIC, _RAMFS_MAGIC)
