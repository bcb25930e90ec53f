# SPDX-License-Identifier: Apache-2.0
"""What is in a tar or a zip, entry by entry, out of a stream that is read once and forward.

Names lead nowhere outside of the archive, and none stands there twice. Whatever is neither a file, a directory nor a
link of either kind is refused. Where links may point, and whether there may be any, is for those to say who make
something of the entries (`image`, `tree`).
"""

import posixpath
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from stat import S_IFDIR, S_IFLNK, S_IFMT, S_IFREG
from typing import BinaryIO, assert_never

from otad.installers.format import HEAD_BYTES, TAR_BLOCK_BYTES, ZIP_LOCAL, Format, sniff
from otad.installers.stream import (
    READ_BYTES,
    ZLIB_DEFLATE,
    HashingReader,
    Piece,
    Stream,
    fault,
    inflate,
    shown,
    size_aside,
    skip_zeros,
    unpack,
)

LINK_BYTES = 1024


class Kind(Enum):
    """What an entry is."""

    FILE = auto()
    DIRECTORY = auto()
    LINK = auto()  # symbolic
    OTHER_NAME = auto()  # a hard link to an earlier file


@dataclass(frozen=True, slots=True)
class Entry:
    """A name in an archive. The archive goes on once the file's `pieces` have been read.

    `size` is exact where it is known; `target` is where a link points to, in the archive's own words.
    """

    name: str
    kind: Kind
    size: int | None = 0
    target: str = ""
    executable: bool = False
    pieces: Iterator[Piece] = field(default_factory=lambda: iter(()))


@dataclass(frozen=True, slots=True)
class Bounds:
    """How large an archive may be: names in it, and bytes of a zip's directory."""

    entries: int = 1024
    directory_bytes: int = 1 << 20


def open_package(source: HashingReader, format_: Format, package_bytes: int, bounds: Bounds) -> Iterator[Entry]:
    """The entries of a package that begins as `format_`: an archive's, compressed or not; else the one file it is.

    That one has no name. Of something compressed it is what comes out, whatever that is.
    """
    stream = source.stream()
    match format_:
        case Format.TAR:
            return tar_entries(stream, bounds)
        case Format.ZIP:
            with source.aside() as file:
                members = zip_members(file, package_bytes, bounds)
            return zip_entries(stream, members)
        case Format.RAW:
            return iter((_the_file(stream, package_bytes),))
        case Format.GZIP | Format.XZ | Format.ZSTD:
            with source.aside() as file:
                size = size_aside(file, format_, package_bytes)
            content = Stream(unpack(stream, format_))
            if sniff(content.peek(HEAD_BYTES)) is Format.TAR:
                return tar_entries(content, bounds)
            return iter((_the_file(content, size),))
        case _:
            assert_never(format_)


def _the_file(content: Stream, size: int | None) -> Entry:
    # A file by itself comes without modes: what the kernel would run may be run.
    is_program = content.peek(4).startswith((b"\x7fELF", b"#!"))
    return Entry("", Kind.FILE, size, executable=is_program, pieces=iter(lambda: content.some(READ_BYTES), b""))


class _Names:
    """The names in an archive, each allowed once, none leading out of it."""

    def __init__(self, archive: Format, entries: int) -> None:
        self._archive = archive
        self._entries = entries
        self._seen: set[str] = set()

    def add(self, name: str) -> None:
        path = name.replace("\\", "/")
        if not path or path.startswith("/") or "\0" in path or ".." in path.split("/"):
            raise fault(self._archive, f"unsafe name {shown(name)}")
        path = posixpath.normpath(path)
        if path in self._seen:
            raise fault(self._archive, f"name {shown(name)} twice")
        self._seen.add(path)
        if len(self._seen) > self._entries:
            raise fault(self._archive, f"more than {self._entries} entries")


# tar (POSIX.1-2017 pax and ustar; GNU long names)

_TAR_EXTENSION_BYTES = 64 << 10
_TAR_PADDING_BYTES = 16 << 20
_TAR_EXTENSIONS = {tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK}
_TAR_KINDS = {
    tarfile.REGTYPE: Kind.FILE,
    tarfile.AREGTYPE: Kind.FILE,
    tarfile.DIRTYPE: Kind.DIRECTORY,
    tarfile.SYMTYPE: Kind.LINK,
    tarfile.LNKTYPE: Kind.OTHER_NAME,
}
_TAR_REFUSED = {
    tarfile.CHRTYPE: "a device node",
    tarfile.BLKTYPE: "a device node",
    tarfile.FIFOTYPE: "a fifo",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}


def tar_entries(stream: Stream, bounds: Bounds) -> Iterator[Entry]:
    """The entries of a tar, in its order.

    The library reads one header; the walk is ours because the library's own takes a damaged header behind the first
    file for the end, and an extended header of any size into memory.
    """
    names = _Names(Format.TAR, bounds.entries)
    extended: dict[str, str] = {}
    for _ in range(2 * bounds.entries):
        block = stream.need(TAR_BLOCK_BYTES, "tar")
        if not any(block):
            _end_tar(stream)
            return
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise fault("tar", str(error)) from error
        if header.type in _TAR_EXTENSIONS:
            extended |= _tar_extension(stream, header)
            continue
        name = extended.get("path", header.name)
        target = extended.get("linkpath", header.linkname)
        size = _tar_size(extended["size"]) if "size" in extended else header.size
        extended = {}
        names.add(name)
        kind = _TAR_KINDS.get(header.type)
        if kind is None or (kind is not Kind.FILE and size):
            what = _TAR_REFUSED.get(header.type, f"an entry of type {header.type!r}")
            raise fault("tar", f"{shown(name)} is {what}")
        if kind is not Kind.FILE:
            yield Entry(name, kind, target=target)
            continue
        if size < 0:
            raise fault("tar", f"{shown(name)} has a negative size")
        yield Entry(name, kind, size, executable=bool(header.mode & 0o100), pieces=stream.exactly(size, "tar"))
        stream.need(-size % TAR_BLOCK_BYTES, "tar")
    raise fault("tar", f"more than {bounds.entries} entries")


def _end_tar(stream: Stream) -> None:
    # The bound is for zeros that a compressed tar unpacks to without end.
    padding = skip_zeros(stream, at_most=_TAR_PADDING_BYTES)
    if padding < TAR_BLOCK_BYTES:
        raise fault("tar", "ends too early")
    if stream.peek(1):
        raise fault("tar", "something behind its end")


def _tar_extension(stream: Stream, header: tarfile.TarInfo) -> dict[str, str]:
    """What a header that only extends the next one says: path, linkpath and size, as a pax header spells them."""
    if not 0 <= header.size <= _TAR_EXTENSION_BYTES:
        raise fault("tar", f"extended header of {header.size} bytes")
    body = stream.need(header.size, "tar")
    stream.need(-header.size % TAR_BLOCK_BYTES, "tar")
    match header.type:
        case tarfile.GNUTYPE_LONGNAME:
            return {"path": _text(body.split(b"\0", 1)[0])}
        case tarfile.GNUTYPE_LONGLINK:
            return {"linkpath": _text(body.split(b"\0", 1)[0])}
        case tarfile.XGLTYPE:
            if _pax_records(body).keys() & {"path", "linkpath", "size"}:
                raise fault("tar", "one path or size for all entries")
            return {}
        case _:
            return _pax_records(body)


def _pax_records(body: bytes) -> dict[str, str]:
    """Records of the form "LENGTH KEY=VALUE\\n", where LENGTH counts the whole record."""
    records: dict[str, str] = {}
    while body:
        length, blank, _ = body[:8].partition(b" ")
        end = int(length) if length.isdigit() else 0
        key, equals, value = body[len(length) + 1 : end - 1].partition(b"=")
        if not (blank and equals and key) or body[end - 1 : end] != b"\n":
            raise fault("tar", "malformed extended header")
        if key.startswith(b"GNU.sparse."):
            raise fault("tar", "holds a sparse file")
        records[_text(key)] = _text(value)
        body = body[end:]
    return records


def _tar_size(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 20):
        raise fault("tar", f"size {shown(text)} in an extended header")
    return int(text)


def _text(encoded: bytes) -> str:
    return encoded.decode("utf-8", "surrogateescape")


# zip (PKWARE APPNOTE 6.3)

_ZIP_END = struct.Struct("<4s4H2LH")
_ZIP_UTF8_FLAG = 0x800
_ZIP_ENCRYPTED_FLAGS = 0x2041  # encrypted, strongly encrypted, directory masked


class _FrugalFile:
    """A file that gives no more than a directory's worth at a time: the library reads a directory of any size."""

    def __init__(self, file: BinaryIO, bounds: Bounds) -> None:
        self._file = file
        self._bounds = bounds
        self.seek = file.seek
        self.tell = file.tell

    def read(self, count: int = -1) -> bytes:
        if count > self._bounds.directory_bytes:
            raise fault("zip", f"directory of {count} bytes")
        content = self._file.read(count if count >= 0 else self._bounds.directory_bytes)
        if content.count(b"PK\1\2") > self._bounds.entries:  # each takes the library ten times the bytes it has here
            raise fault("zip", f"more than {self._bounds.entries} entries")
        return content


@dataclass(frozen=True, slots=True)
class ZipMember:
    """An entry of a zip's directory, with its name put right, and what it is."""

    name: str
    kind: Kind
    info: zipfile.ZipInfo


def zip_members(file: BinaryIO, package_bytes: int, bounds: Bounds) -> list[ZipMember]:
    """What the directory at the zip's end names, in the order in which it lies in the stream.

    Asked of the directory, because only it knows about links, sizes written behind their file, and further files.
    """
    try:
        with zipfile.ZipFile(_FrugalFile(file, bounds)) as directory:
            entries = directory.infolist()
            comment = directory.comment
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, struct.error) as error:
        raise fault("zip", str(error)) from error
    file.seek(package_bytes - _ZIP_END.size - len(comment))
    signature, disk, directory_disk, *_ = _ZIP_END.unpack(file.read(_ZIP_END.size))
    if signature != b"PK\5\6":
        raise fault("zip", "something behind its end")
    elsewhere = 0xFFFF  # told by the zip64 record, which the library has compared
    if not {disk, directory_disk} <= {0, elsewhere} or any(entry.volume for entry in entries):
        raise fault("zip", "one of several disks")
    names = _Names(Format.ZIP, bounds.entries)
    members: list[ZipMember] = []
    for entry in entries:
        name = _zip_name(entry)
        names.add(name)
        if entry.flag_bits & _ZIP_ENCRYPTED_FLAGS:
            raise fault("zip", f"{shown(name)} is encrypted")
        if entry.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
            raise fault("zip", f"{shown(name)} has compression method {entry.compress_type}, not stored or deflated")
        kind = _zip_kind(entry, name)
        if kind is Kind.DIRECTORY and entry.file_size:
            raise fault("zip", f"directory {shown(name)} has content")
        if kind is Kind.LINK and entry.file_size > LINK_BYTES:
            raise fault("zip", f"link {shown(name)} has {entry.file_size} bytes")
        members.append(ZipMember(name, kind, entry))
    return sorted(members, key=lambda member: member.info.header_offset)


def _zip_name(entry: zipfile.ZipInfo) -> str:
    """The name with "/" between its parts also where the program that made it did not know better."""
    name, unix = entry.orig_filename, 3
    if entry.create_system == unix and not entry.flag_bits & _ZIP_UTF8_FLAG:
        # The library reads code page 437; zip(1) writes the bytes that it finds, unless its locale tells what they are.
        name = name.encode("cp437").decode("utf-8", "surrogateescape")
    return name.replace("\\", "/")


def _zip_kind(entry: zipfile.ZipInfo, name: str) -> Kind:
    is_directory = name.endswith("/")
    match S_IFMT(entry.external_attr >> 16):  # 0 where it was made by a system without such modes
        case 0:
            return Kind.DIRECTORY if is_directory else Kind.FILE
        case kind if kind == S_IFDIR and is_directory:
            return Kind.DIRECTORY
        case kind if kind == S_IFREG and not is_directory:
            return Kind.FILE
        case kind if kind == S_IFLNK and not is_directory:
            return Kind.LINK
        case _:
            raise fault("zip", f"{shown(name)} is neither a file nor a directory nor a link")


def zip_entries(stream: Stream, members: Sequence[ZipMember]) -> Iterator[Entry]:
    """These members out of the stream; what lies before, between and behind them is only read."""
    for member in members:
        if member.kind is Kind.DIRECTORY:
            yield Entry(member.name, member.kind)
            continue
        pieces = _zip_content(stream, member)
        if member.kind is Kind.LINK:
            yield Entry(member.name, member.kind, target=b"".join(pieces).decode("utf-8", "surrogateescape"))
        else:
            is_executable = bool(member.info.external_attr >> 16 & 0o100)
            yield Entry(member.name, member.kind, member.info.file_size, executable=is_executable, pieces=pieces)
    while stream.some(READ_BYTES):
        pass


def _zip_content(stream: Stream, member: ZipMember) -> Iterator[Piece]:
    entry = member.info
    gap = entry.header_offset - stream.taken
    if gap < 0:
        raise fault("zip", f"{shown(member.name)} begins within another file")
    for _ in stream.exactly(gap, "zip"):
        pass
    signature, _, flags, method, *_, name_bytes, extra_bytes = ZIP_LOCAL.unpack(stream.need(ZIP_LOCAL.size, "zip"))
    name = stream.need(name_bytes, "zip")
    named = entry.orig_filename.encode("utf-8" if entry.flag_bits & _ZIP_UTF8_FLAG else "cp437")
    if (signature, method, name) != (b"PK\3\4", entry.compress_type, named) or flags & _ZIP_ENCRYPTED_FLAGS:
        raise fault("zip", f"directory and content disagree about {shown(member.name)}")
    stream.need(extra_bytes, "zip")
    thing = f"zip entry {shown(member.name)}"
    packed = Stream(stream.exactly(entry.compress_size, thing))
    pieces: Iterator[Piece] = (
        iter(lambda: packed.some(READ_BYTES), memoryview(b""))
        if entry.compress_type == zipfile.ZIP_STORED
        else inflate(packed, ZLIB_DEFLATE, thing)
    )
    checksum = size = 0
    for piece in pieces:
        checksum = zlib.crc32(piece, checksum)
        size += len(piece)
        yield piece
    if packed.some(1) or size != entry.file_size:
        raise fault(thing, f"{size} bytes instead of the {entry.file_size} it claims")
    if checksum != entry.CRC:
        raise fault(thing, "checksum differs")
