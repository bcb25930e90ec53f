# SPDX-License-Identifier: Apache-2.0
"""What image a package holds: told from the bytes, unpacked as a stream, never trusted.

A package is a raw image, an image compressed with gzip, xz or zstd, or a zip or tar (itself compressed or not) that
holds exactly one file, and that file is the image, compressed once more or not. Everything else is refused.

What is unpacked is what was hashed. `HashingReader` reads the staging file once, forward, and hashes each byte as it
passes; only bytes read that way become bytes of an image. Three formats keep facts elsewhere (zip its directory at the
end, xz its index at the end, zstd a size before each block): those are looked at `aside`, unhashed, before the pass
begins. They decide where in the stream the image lies and whether it is worth beginning, so a lie in them can only end
in a refusal: the checksum, the size and the digest of the pass still have to agree.

Every fault of a package is an UpdateError with Code.FORMAT, for some only after the last chunk (a checksum, a second
file in a tar): an image is whole when `chunks` has ended, not before. An OSError is the medium's and passes through.
What no format shows is a cut exactly between two streams that follow one another; the digest does.

Memory is bounded whatever the package says: a 64 MiB dictionary for xz, a 128 MiB window for zstd, never two zstd
windows, and a few buffers. Time is linear in what is read and what is yielded; whoever wants to stop sooner stops
asking for chunks, or raises in the file's `read`.

Import this module where a package is unpacked, not at start-up: the archive libraries cost a few MiB.
"""

import hashlib
import lzma
import posixpath
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from stat import S_IFDIR, S_IFMT, S_IFREG
from typing import BinaryIO, TypeAlias, assert_never

from otad.errors import Code, UpdateError
from otad.installers.format import (
    GZIP_MAGIC,
    HEAD_BYTES,
    TAR_BLOCK_BYTES,
    XZ_MAGIC,
    ZIP_LOCAL,
    ZSTD_MAGIC,
    Format,
    is_zstd_skippable,
    sniff,
)

XZ_DICTIONARY_BYTES = 64 << 20
ZSTD_WINDOW_BYTES = 128 << 20
ARCHIVE_ENTRIES = 1024


class HashingReader:
    """The package in a staging file, read once and forward, each byte hashed as it passes."""

    def __init__(self, file: BinaryIO, algorithm: str) -> None:
        """Take over `file`, which holds the package and nothing else, from its first byte."""
        file.seek(0)
        self._file = file
        self._digest = hashlib.new(algorithm)

    def read(self, count: int) -> bytes:
        """The next bytes, at most `count`; none at the end."""
        piece = self._file.read(count)
        self._digest.update(piece)
        return piece

    @contextmanager
    def aside(self) -> Iterator[BinaryIO]:
        """The file itself, to look elsewhere unhashed; the pass goes on from where it was."""
        position = self._file.tell()
        try:
            yield self._file
        finally:
            self._file.seek(position)

    def drain(self) -> None:
        """Read what is left, so that the digest is that of the whole package."""
        while self.read(_READ_BYTES):
            pass

    def hexdigest(self) -> str:
        """The digest of what has been read so far."""
        return self._digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Image:
    """The one image of a package: `name` for messages, `size` unpacked where known beforehand, else None."""

    name: str
    size: int | None
    _content: "_Stream"

    def chunks(self, chunk_bytes: int = 1 << 20) -> Iterator[bytes]:
        """The image's bytes, once: chunks of exactly `chunk_bytes`, only the last one shorter.

        Ends only after everything has been checked, and after the package has been read to its end.
        """
        done = 0
        while chunk := self._content.take(chunk_bytes):
            done += len(chunk)
            if self.size is not None and done > self.size:
                raise _fault(self.name, f"unpacks to more than the {self.size} bytes it claims")
            yield chunk
        if self.size is not None and done < self.size:
            raise _fault(self.name, f"unpacks to {done} bytes instead of the {self.size} it claims")
        if not done:
            raise _fault(self.name, "empty")


def open_image(source: HashingReader, format: Format, package_bytes: int) -> Image:  # noqa: A002
    """Find the image in a package of `package_bytes` that begins as `format`.

    Reads only as far as the image's first bytes. Seeks, by `source.aside`, for zip, xz and zstd.
    """
    with source.aside() as file:
        held = file.seek(0, 2)
    if held != package_bytes:
        raise _fault("package", f"{held} bytes instead of {package_bytes}")
    stream = _Stream(iter(lambda: source.read(_READ_BYTES), b""))
    match format:
        case Format.RAW:
            return Image("raw image", package_bytes, stream)
        case Format.TAR:
            return _image_in_archive(format, _tar_files(stream), packed_as=Format.RAW)
        case Format.ZIP:
            with source.aside() as file:
                entry = _zip_entry(file, package_bytes)
            return _image_in_archive(format, _zip_files(stream, entry), packed_as=Format.RAW)
        case Format.GZIP | Format.XZ | Format.ZSTD:
            with source.aside() as file:
                size = _size_aside(file, format, package_bytes)
            return _image_in_compressed(format, _Stream(_unpack(stream, format)), size)
        case _:
            assert_never(format)


# What the formats are put together from.

_READ_BYTES = 256 << 10
_PIECE_BYTES = 256 << 10  # the most that gzip and xz unpack at a time
_FIRST_STEP_BYTES = 1 << 10
_PIECES_OF_NOTHING = 1 << 16

_Piece: TypeAlias = bytes | memoryview


def _fault(thing: str, reason: str) -> UpdateError:
    return UpdateError(Code.FORMAT, f"{thing}: {reason}")


class _Stream:
    """Pieces, read forward as bytes, with a way to look ahead."""

    __slots__ = ("_at", "_held", "_pieces")

    def __init__(self, pieces: Iterable[_Piece]) -> None:
        self._pieces = iter(pieces)
        self._held = memoryview(b"")
        self._at = 0

    def some(self, count: int) -> memoryview:
        """At least one byte and at most `count`, whatever is cheapest; none at the end."""
        if self._at == len(self._held):
            self._held = self._next()
            self._at = 0
        part = self._held[self._at : self._at + count]
        self._at += len(part)
        return part

    def back(self, count: int) -> None:
        """Put back the last bytes of what `some` has just given."""
        self._at -= count

    def peek(self, count: int) -> bytes:
        """The next `count` bytes, or all that are left, which stay."""
        if len(self._held) - self._at < count:
            joined = bytearray(self._held[self._at :])
            while len(joined) < count and (piece := self._next()):
                joined += piece
            self._held = memoryview(bytes(joined))
            self._at = 0
        return bytes(self._held[self._at : self._at + count])

    def take(self, count: int) -> bytes:
        """The next `count` bytes, or all that are left."""
        taken = bytearray()
        while len(taken) < count and (part := self.some(count - len(taken))):
            taken += part
        return bytes(taken)

    def exactly(self, count: int, thing: str) -> Iterator[memoryview]:
        """The next `count` bytes, piece by piece; an end before that is `thing`'s fault."""
        while count:
            part = self.some(min(count, _READ_BYTES))
            if not part:
                raise _fault(thing, "ends too early")
            count -= len(part)
            yield part

    def need(self, count: int, thing: str) -> bytes:
        """The next `count` bytes at once; an end before that is `thing`'s fault."""
        return b"".join(self.exactly(count, thing))

    def _next(self) -> memoryview:
        for _ in range(_PIECES_OF_NOTHING):
            piece = next(self._pieces, None)
            if piece is None:
                return memoryview(b"")
            if piece:
                return memoryview(piece)
        # Empty members, frames and blocks are allowed, but a gigabyte of them would keep us busy for hours.
        raise _fault("package", "endless parts that hold nothing")


@dataclass(frozen=True, slots=True)
class _File:
    """A file in an archive; the archive goes on once `pieces` have been read."""

    name: str
    size: int
    pieces: Iterator[_Piece]


def _image_in_compressed(packed_as: Format, content: _Stream, size: int | None) -> Image:
    inner = sniff(content.peek(HEAD_BYTES))
    match inner:
        case Format.RAW:
            return Image(f"{packed_as} image", size, content)
        case Format.TAR:
            return _image_in_archive(Format.TAR, _tar_files(content), packed_as)
        case Format.GZIP | Format.XZ | Format.ZSTD | Format.ZIP:
            raise _fault(packed_as, f"holds {inner}, neither an image nor a tar")
        case _:
            assert_never(inner)


def _image_in_archive(archive: Format, files: Iterator[_File], packed_as: Format) -> Image:
    file = next(files, None)
    if file is None:
        raise _fault(archive, "holds no file")
    name = f"{archive} entry {_shown(file.name)}"
    content = _Stream(_pieces_of_the_only_file(archive, file, files))
    inner = sniff(content.peek(HEAD_BYTES))
    match inner:
        case Format.RAW:
            return Image(name, file.size, content)
        case Format.TAR | Format.ZIP:
            raise _fault(name, f"a {inner} in a {archive}")
        case Format.GZIP | Format.XZ | Format.ZSTD:
            if inner is packed_as is Format.ZSTD:
                raise _fault(name, "zstd within zstd: needs two windows of memory")
            content = _Stream(_unpack(content, inner))
        case _:
            assert_never(inner)
    innermost = sniff(content.peek(HEAD_BYTES))
    if innermost is not Format.RAW:
        raise _fault(name, f"holds {innermost}, not an image")
    return Image(name, None, content)


def _pieces_of_the_only_file(archive: Format, file: _File, others: Iterator[_File]) -> Iterator[_Piece]:
    yield from file.pieces
    for other in others:
        raise _fault(archive, f"holds more than one file: {_shown(file.name)} and {_shown(other.name)}")


def _shown(name: str) -> str:
    """A hostile name made fit for one line of a log: short, and nothing in it that a terminal would obey."""
    return repr(name if len(name) <= 80 else f"{name[:79]}…")


class _Names:
    """The names in an archive, each allowed once, none leading out of it.

    No path is ever made of them; an archive that tries this is refused as a whole.
    """

    def __init__(self, archive: Format) -> None:
        self._archive = archive
        self._seen: set[str] = set()

    def add(self, name: str) -> None:
        path = name.replace("\\", "/")
        if not path or path.startswith("/") or "\0" in path or ".." in path.split("/"):
            raise _fault(self._archive, f"unsafe name {_shown(name)}")
        path = posixpath.normpath(path)
        if path in self._seen:
            raise _fault(self._archive, f"name {_shown(name)} twice")
        self._seen.add(path)
        if len(self._seen) > ARCHIVE_ENTRIES:
            raise _fault(self._archive, f"more than {ARCHIVE_ENTRIES} entries")


def _skip_zeros(stream: _Stream, at_most: int | None = None) -> int:
    """Go on to the next byte that is not 0, or until `at_most` zeros have passed; how many there were."""
    zeros = 0
    while (at_most is None or zeros < at_most) and (part := stream.some(_READ_BYTES)):
        rest = len(bytes(part).lstrip(b"\0"))
        zeros += len(part) - rest
        if rest:
            stream.back(rest)
            break
    return zeros


def _unpack(stream: _Stream, format_: Format) -> Iterator[_Piece]:
    """Unpack to the end of the stream, with every member, checksum and padding."""
    match format_:
        case Format.GZIP:
            return _gunzip(stream)
        case Format.XZ:
            return _unxz(stream)
        case Format.ZSTD:
            return _unzstd(stream)
        case Format.RAW | Format.ZIP | Format.TAR:
            raise AssertionError(format_)
        case _:
            assert_never(format_)


def _size_aside(file: BinaryIO, format_: Format, package_bytes: int) -> int | None:
    match format_:
        case Format.XZ:
            return _xz_size(file, package_bytes)
        case Format.ZSTD:
            return _zstd_size(file, package_bytes)
        case Format.GZIP | Format.RAW | Format.ZIP | Format.TAR:
            return None  # gzip's own size field counts modulo 4 GiB, and for the last member only
        case _:
            assert_never(format_)


# gzip (RFC 1952) and deflate (RFC 1951)

_ZLIB_GZIP = 31  # wbits: a gzip member with its header and trailer
_ZLIB_DEFLATE = -15  # wbits: deflate and nothing around it


def _gunzip(stream: _Stream) -> Iterator[_Piece]:
    while True:
        yield from _inflate(stream, _ZLIB_GZIP, "gzip")
        padding = _skip_zeros(stream)  # gzip(1): what fills up a block of a tape
        following = stream.peek(len(GZIP_MAGIC))
        if not following:
            return
        if padding or following != GZIP_MAGIC:
            raise _fault("gzip", "something behind its end")


def _inflate(stream: _Stream, wbits: int, thing: str) -> Iterator[_Piece]:
    inflater = zlib.decompressobj(wbits)
    step = _FIRST_STEP_BYTES
    while not inflater.eof:
        packed = inflater.unconsumed_tail or stream.some(step)
        # What zlib does not use it copies, so a member begins with small steps: many small members stay cheap.
        step = min(2 * step, _READ_BYTES)
        try:
            piece = inflater.decompress(packed, _PIECE_BYTES)
        except zlib.error as error:
            raise _fault(thing, str(error)) from error
        if not piece and not packed:
            raise _fault(thing, "ends too early")
        yield piece
    stream.back(len(inflater.unused_data))


# xz (the .xz file format, version 1.2.1)

_XZ_INDEX_BYTES = 1 << 20
_XZ_MEMORY_BYTES = XZ_DICTIONARY_BYTES + (2 << 20)  # the next larger dictionary there is has 96 MiB


def _unxz(stream: _Stream) -> Iterator[_Piece]:
    while True:
        unpacker = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY_BYTES)
        step = _FIRST_STEP_BYTES
        while not unpacker.eof:
            packed = stream.some(step) if unpacker.needs_input else b""
            step = min(2 * step, _READ_BYTES)
            if unpacker.needs_input and not packed:
                raise _fault("xz", "ends too early")
            try:
                piece = unpacker.decompress(packed, _PIECE_BYTES)
            except lzma.LZMAError as error:
                if "limit" in str(error):
                    raise _fault("xz", f"dictionary of more than {XZ_DICTIONARY_BYTES >> 20} MiB") from error
                raise _fault("xz", str(error)) from error
            except MemoryError as error:
                raise _fault("xz", "dictionary larger than this machine's memory") from error
            yield piece
        stream.back(len(unpacker.unused_data))
        # liblzma passes over a check it does not know.
        if not lzma.is_check_supported(unpacker.check):
            raise _fault("xz", f"unknown integrity check {unpacker.check}")
        padding = _skip_zeros(stream)
        following = stream.peek(len(XZ_MAGIC))
        if padding % 4 or following not in {b"", XZ_MAGIC}:
            raise _fault("xz", "something behind its end")
        if not following:
            return


def _xz_size(file: BinaryIO, package_bytes: int) -> int | None:
    """The sum of the index, if the package is one stream whose index has a bearable size, else None."""
    file.seek(max(0, package_bytes - 12))
    footer = file.read(12)
    index_bytes = 4 * (int.from_bytes(footer[4:8], "little") + 1)
    if footer[10:] != b"YZ" or index_bytes > min(_XZ_INDEX_BYTES, package_bytes - 24):
        return None
    file.seek(package_bytes - 12 - index_bytes)
    index = file.read(index_bytes)
    if zlib.crc32(index[:-4]).to_bytes(4, "little") != index[-4:] or index[0] != 0:
        return None
    numbers = _xz_numbers(index[1:-4])
    records = next(numbers, 0)
    packed = size = 0
    for _ in range(min(records, index_bytes)):
        packed += -(-next(numbers, 0) // 4) * 4
        size += next(numbers, 0)
    is_one_stream = 12 + packed + index_bytes + 12 == package_bytes
    return size if is_one_stream else None


def _xz_numbers(encoded: bytes) -> Iterator[int]:
    """Multibyte integers: seven bits a byte, the lowest first, the top bit set in all but the last."""
    number = shift = 0
    for byte in encoded:
        number |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80 or shift >= 63:
            yield number
            number = shift = 0


# zstd (RFC 8878)

_ZSTD_HEADER_BYTES = 18
_ZSTD_BLOCKS = 1 << 17
_ZSTD_REPEATED, _ZSTD_RESERVED = 1, 3  # block types


def _unzstd(stream: _Stream) -> Iterator[_Piece]:
    """Feed the library one block at a time: a block unpacks to at most 128 KiB, while the library sets no bound."""
    import zstandard  # noqa: PLC0415

    unpacker = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES)
    while head := stream.peek(_ZSTD_HEADER_BYTES):
        if is_zstd_skippable(head):
            stream.need(4, "zstd")
            for _ in stream.exactly(int.from_bytes(stream.need(4, "zstd"), "little"), "zstd"):
                pass
            yield b""
            continue
        if not ZSTD_MAGIC.startswith(head[:4]):
            raise _fault("zstd", "something behind its end")
        try:
            parameters = zstandard.get_frame_parameters(head)
            if parameters.window_size > ZSTD_WINDOW_BYTES:
                raise _fault("zstd", f"window of more than {ZSTD_WINDOW_BYTES >> 20} MiB")
            frame = unpacker.decompressobj()
            yield frame.decompress(stream.need(zstandard.frame_header_size(head), "zstd"))
            is_last = False
            while not is_last:
                header = stream.need(3, "zstd")
                is_last, kind, packed_bytes = _zstd_block(header)
                if kind == _ZSTD_RESERVED:
                    raise _fault("zstd", "block of a reserved type")
                yield frame.decompress(header + stream.need(packed_bytes, "zstd"))
            if parameters.has_checksum:
                yield frame.decompress(stream.need(4, "zstd"))
        except zstandard.ZstdError as error:
            raise _fault("zstd", str(error)) from error
        if not frame.eof:
            raise _fault("zstd", "frame without an end")


def _zstd_block(header: bytes) -> tuple[bool, int, int]:
    """Of a block: is it the frame's last, its type, how many bytes follow."""
    word = int.from_bytes(header, "little")
    kind = word >> 1 & 3
    return bool(word & 1), kind, 1 if kind == _ZSTD_REPEATED else word >> 3


def _zstd_size(file: BinaryIO, package_bytes: int) -> int | None:
    """The content size that the frame states, if it does and is the only one, of bearable size; else None."""
    import zstandard  # noqa: PLC0415

    file.seek(0)
    head = file.read(_ZSTD_HEADER_BYTES)
    try:
        parameters = zstandard.get_frame_parameters(head)
        file.seek(zstandard.frame_header_size(head))
    except zstandard.ZstdError:
        return None
    if parameters.content_size == zstandard.CONTENTSIZE_UNKNOWN:
        return None
    for _ in range(_ZSTD_BLOCKS):
        is_last, _, packed_bytes = _zstd_block(file.read(3))
        end = file.seek(packed_bytes, 1)
        if is_last:
            is_one_frame = end + 4 * parameters.has_checksum == package_bytes
            return parameters.content_size if is_one_frame else None
    return None


# tar (POSIX.1-2017 pax and ustar; GNU long names)

_TAR_EXTENSION_BYTES = 64 << 10
_TAR_PADDING_BYTES = 16 << 20
_TAR_EXTENSIONS = {tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK}
_TAR_REFUSED = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a device node",
    tarfile.BLKTYPE: "a device node",
    tarfile.FIFOTYPE: "a fifo",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}


def _tar_files(stream: _Stream) -> Iterator[_File]:
    """The files of a tar that holds nothing else but directories.

    The library reads one header; the walk is ours because the library's own takes a damaged header behind the first
    file for the end, and an extended header of any size into memory.
    """
    names = _Names(Format.TAR)
    extended: dict[str, str] = {}
    for _ in range(2 * ARCHIVE_ENTRIES):
        block = stream.need(TAR_BLOCK_BYTES, "tar")
        if not any(block):
            _end_tar(stream)
            return
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise _fault("tar", str(error)) from error
        if header.type in _TAR_EXTENSIONS:
            extended |= _tar_extension(stream, header)
            continue
        name = extended.get("path", header.name)
        size = _tar_size(extended["size"]) if "size" in extended else header.size
        extended = {}
        names.add(name)
        if header.type == tarfile.DIRTYPE and size == 0:
            continue
        if header.type not in {tarfile.REGTYPE, tarfile.AREGTYPE}:
            what = _TAR_REFUSED.get(header.type, f"an entry of type {header.type!r}")
            raise _fault("tar", f"{_shown(name)} is {what}")
        if size < 0:
            raise _fault("tar", f"{_shown(name)} has a negative size")
        yield _File(name, size, stream.exactly(size, "tar"))
        stream.need(-size % TAR_BLOCK_BYTES, "tar")
    raise _fault("tar", f"more than {ARCHIVE_ENTRIES} entries")


def _end_tar(stream: _Stream) -> None:
    # The bound is for zeros that a compressed tar unpacks to without end.
    padding = _skip_zeros(stream, at_most=_TAR_PADDING_BYTES)
    if padding < TAR_BLOCK_BYTES:
        raise _fault("tar", "ends too early")
    if stream.peek(1):
        raise _fault("tar", "something behind its end")


def _tar_extension(stream: _Stream, header: tarfile.TarInfo) -> dict[str, str]:
    """What a header that only extends the next one says: its path and size, as a pax header spells them."""
    if not 0 <= header.size <= _TAR_EXTENSION_BYTES:
        raise _fault("tar", f"extended header of {header.size} bytes")
    body = stream.need(header.size, "tar")
    stream.need(-header.size % TAR_BLOCK_BYTES, "tar")
    match header.type:
        case tarfile.GNUTYPE_LONGNAME:
            return {"path": _text(body.split(b"\0", 1)[0])}
        case tarfile.GNUTYPE_LONGLINK:
            return {}  # only links have one, and they are refused
        case tarfile.XGLTYPE:
            if _pax_records(body).keys() & {"path", "size"}:
                raise _fault("tar", "one path or size for all entries")
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
            raise _fault("tar", "malformed extended header")
        if key.startswith(b"GNU.sparse."):
            raise _fault("tar", "holds a sparse file")
        records[_text(key)] = _text(value)
        body = body[end:]
    return records


def _tar_size(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 20):
        raise _fault("tar", f"size {_shown(text)} in an extended header")
    return int(text)


def _text(encoded: bytes) -> str:
    return encoded.decode("utf-8", "surrogateescape")


# zip (PKWARE APPNOTE 6.3)

_ZIP_DIRECTORY_BYTES = 1 << 20
_ZIP_END = struct.Struct("<4s4H2LH")
_ZIP_ENCRYPTED_FLAGS = 0x2041  # encrypted, strongly encrypted, directory masked


class _FrugalFile:
    """A file that gives no more than a directory's worth at a time: the library reads a directory of any size."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek = file.seek
        self.tell = file.tell

    def read(self, count: int = -1) -> bytes:
        if count > _ZIP_DIRECTORY_BYTES:
            raise _fault("zip", f"directory of {count} bytes")
        return self._file.read(count if count >= 0 else _ZIP_DIRECTORY_BYTES)


def _zip_entry(file: BinaryIO, package_bytes: int) -> zipfile.ZipInfo:
    """The one file that the directory at the zip's end names.

    Asked of the directory, because only it knows about links, sizes written behind their file, and further files.
    """
    try:
        with zipfile.ZipFile(_FrugalFile(file)) as directory:
            entries = directory.infolist()
            comment = directory.comment
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, struct.error) as error:
        raise _fault("zip", str(error)) from error
    file.seek(package_bytes - _ZIP_END.size - len(comment))
    signature, disk, directory_disk, *_ = _ZIP_END.unpack(file.read(_ZIP_END.size))
    if signature != b"PK\5\6":
        raise _fault("zip", "something behind its end")
    elsewhere = 0xFFFF  # told by the zip64 record, which the library has compared
    if not {disk, directory_disk} <= {0, elsewhere} or any(entry.volume for entry in entries):
        raise _fault("zip", "one of several disks")
    names = _Names(Format.ZIP)
    files: list[zipfile.ZipInfo] = []
    for entry in entries:
        name = entry.orig_filename
        names.add(name)
        is_directory = name.endswith("/")
        if S_IFMT(entry.external_attr >> 16) not in {0, S_IFDIR if is_directory else S_IFREG}:
            raise _fault("zip", f"{_shown(name)} is neither a file nor a directory")
        if entry.flag_bits & _ZIP_ENCRYPTED_FLAGS:
            raise _fault("zip", f"{_shown(name)} is encrypted")
        if entry.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
            raise _fault("zip", f"{_shown(name)} has compression method {entry.compress_type}, not stored or deflated")
        if not is_directory:
            files.append(entry)
        elif entry.file_size:
            raise _fault("zip", f"directory {_shown(name)} has content")
    if not files:
        raise _fault("zip", "holds no file")
    if len(files) > 1:
        one, another = (_shown(entry.orig_filename) for entry in files[:2])
        raise _fault("zip", f"holds more than one file: {one} and {another}")
    return files[0]


def _zip_files(stream: _Stream, entry: zipfile.ZipInfo) -> Iterator[_File]:
    """That file, out of the stream; what lies before and behind it is only read."""
    if entry.header_offset < 0:
        raise _fault("zip", "file before the first byte")
    for _ in stream.exactly(entry.header_offset, "zip"):
        pass
    signature, _, flags, method, *_, name_bytes, extra_bytes = ZIP_LOCAL.unpack(stream.need(ZIP_LOCAL.size, "zip"))
    name = stream.need(name_bytes, "zip")
    named = entry.orig_filename.encode("utf-8" if entry.flag_bits & 0x800 else "cp437")
    if (signature, method, name) != (b"PK\3\4", entry.compress_type, named) or flags & _ZIP_ENCRYPTED_FLAGS:
        raise _fault("zip", f"directory and content disagree about {_shown(entry.orig_filename)}")
    stream.need(extra_bytes, "zip")
    yield _File(entry.orig_filename, entry.file_size, _zip_content(stream, entry))
    while stream.some(_READ_BYTES):
        pass


def _zip_content(stream: _Stream, entry: zipfile.ZipInfo) -> Iterator[_Piece]:
    thing = f"zip entry {_shown(entry.orig_filename)}"
    packed = _Stream(stream.exactly(entry.compress_size, thing))
    pieces: Iterator[_Piece] = (
        iter(lambda: packed.some(_READ_BYTES), memoryview(b""))
        if entry.compress_type == zipfile.ZIP_STORED
        else _inflate(packed, _ZLIB_DEFLATE, thing)
    )
    checksum = size = 0
    for piece in pieces:
        checksum = zlib.crc32(piece, checksum)
        size += len(piece)
        yield piece
    if packed.some(1) or size != entry.file_size:
        raise _fault(thing, f"{size} bytes instead of the {entry.file_size} it claims")
    if checksum != entry.CRC:
        raise _fault(thing, "checksum differs")
