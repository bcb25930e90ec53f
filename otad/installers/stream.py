# SPDX-License-Identifier: Apache-2.0
"""Bytes of a package on their way: hashed as they are read, unpacked as a stream, never trusted.

What is unpacked is what was hashed. `HashingReader` reads the staging file once, forward, and hashes each byte as it
passes; only bytes read that way become bytes of an image or a file. Three formats keep facts elsewhere (zip its
directory at the end, xz its index at the end, zstd a size before each block): those are looked at `aside`, unhashed,
before the pass begins. They decide where in the stream the content lies and whether it is worth beginning, so a lie in
them can only end in a refusal: the checksum, the size and the digest of the pass still have to agree.

Every fault of a package is an UpdateError with Code.FORMAT. An OSError is the medium's and passes through. What no
format shows is a cut exactly between two streams that follow one another; the digest does.

Memory is bounded whatever the package says: a 64 MiB dictionary for xz, a 128 MiB window for zstd, never two zstd
windows, and a few buffers. Time is linear in what is read and what is yielded; whoever wants to stop sooner stops
asking for pieces, or raises in the file's `read`.

Import this module where a package is unpacked, not at start-up: the archive libraries cost a few MiB.
"""

import hashlib
import lzma
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import BinaryIO, TypeAlias, assert_never

from otad.errors import Code, UpdateError
from otad.installers.format import GZIP_MAGIC, XZ_MAGIC, ZSTD_MAGIC, Format, is_zstd_skippable

XZ_DICTIONARY_BYTES = 64 << 20
ZSTD_WINDOW_BYTES = 128 << 20
READ_BYTES = 256 << 10
_PIECE_BYTES = 256 << 10  # the most that gzip and xz unpack at a time
_FIRST_STEP_BYTES = 1 << 10
_PIECES_OF_NOTHING = 1 << 16

Piece: TypeAlias = bytes | memoryview


class HashingReader:
    """The package in a staging file, read once and forward, each byte hashed as it passes."""

    def __init__(self, file: BinaryIO, algorithm: str) -> None:
        """Take over `file`, which holds the package and nothing else, from its first byte."""
        file.seek(0)
        self.bytes_read = 0
        self._file = file
        self._digest = hashlib.new(algorithm, usedforsecurity=False)

    def read(self, count: int) -> bytes:
        """The next bytes, at most `count`; none at the end."""
        piece = self._file.read(count)
        self._digest.update(piece)
        self.bytes_read += len(piece)
        return piece

    @contextmanager
    def aside(self) -> Iterator[BinaryIO]:
        """The file itself, to look elsewhere unhashed; the pass goes on from where it was."""
        position = self._file.tell()
        try:
            yield self._file
        finally:
            self._file.seek(position)

    def stream(self) -> "Stream":
        """What is left, to be read as it is needed."""
        return Stream(iter(lambda: self.read(READ_BYTES), b""))

    def drain(self) -> None:
        """Read what is left, so that the digest is that of the whole package."""
        while self.read(READ_BYTES):
            pass

    def hexdigest(self) -> str:
        """The digest of what has been read so far."""
        return self._digest.hexdigest()


def fault(thing: str, reason: str) -> UpdateError:
    """What is wrong with a package."""
    return UpdateError(Code.FORMAT, f"{thing}: {reason}")


def shown(name: str) -> str:
    """A hostile name made fit for one line of a log: short, and nothing in it that a terminal would obey."""
    return repr(name if len(name) <= 80 else f"{name[:79]}…")


class Stream:
    """Pieces, read forward as bytes, with a way to look ahead."""

    __slots__ = ("_at", "_held", "_pieces", "taken")

    def __init__(self, pieces: Iterable[Piece]) -> None:
        self.taken = 0  # bytes given so far
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
        self.taken += len(part)
        return part

    def back(self, count: int) -> None:
        """Put back the last bytes of what `some` has just given."""
        self._at -= count
        self.taken -= count

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
            part = self.some(min(count, READ_BYTES))
            if not part:
                raise fault(thing, "ends too early")
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
        raise fault("package", "endless parts that hold nothing")


def skip_zeros(stream: Stream, at_most: int | None = None) -> int:
    """Go on to the next byte that is not 0, or until `at_most` zeros have passed; how many there were."""
    zeros = 0
    while (at_most is None or zeros < at_most) and (part := stream.some(READ_BYTES)):
        rest = len(bytes(part).lstrip(b"\0"))
        zeros += len(part) - rest
        if rest:
            stream.back(rest)
            break
    return zeros


def unpack(stream: Stream, format_: Format) -> Iterator[Piece]:
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


def size_aside(file: BinaryIO, format_: Format, package_bytes: int) -> int | None:
    """What a package unpacks to, where it says so beforehand."""
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
ZLIB_DEFLATE = -15  # wbits: deflate and nothing around it


def _gunzip(stream: Stream) -> Iterator[Piece]:
    while True:
        yield from inflate(stream, _ZLIB_GZIP, "gzip")
        padding = skip_zeros(stream)  # gzip(1): what fills up a block of a tape
        following = stream.peek(len(GZIP_MAGIC))
        if not following:
            return
        if padding or following != GZIP_MAGIC:
            raise fault("gzip", "something behind its end")


def inflate(stream: Stream, wbits: int, thing: str) -> Iterator[Piece]:
    """Unpack what zlib understands, up to its own end."""
    inflater = zlib.decompressobj(wbits)
    step = _FIRST_STEP_BYTES
    while not inflater.eof:
        packed = inflater.unconsumed_tail or stream.some(step)
        # What zlib does not use it copies, so a member begins with small steps: many small members stay cheap.
        step = min(2 * step, READ_BYTES)
        try:
            piece = inflater.decompress(packed, _PIECE_BYTES)
        except zlib.error as error:
            raise fault(thing, str(error)) from error
        if not piece and not packed:
            raise fault(thing, "ends too early")
        yield piece
    stream.back(len(inflater.unused_data))


# xz (the .xz file format, version 1.2.1)

_XZ_INDEX_BYTES = 1 << 20
_XZ_MEMORY_BYTES = XZ_DICTIONARY_BYTES + (2 << 20)  # the next larger dictionary there is has 96 MiB


def _unxz(stream: Stream) -> Iterator[Piece]:
    while True:
        unpacker = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY_BYTES)
        step = _FIRST_STEP_BYTES
        while not unpacker.eof:
            packed = stream.some(step) if unpacker.needs_input else b""
            step = min(2 * step, READ_BYTES)
            if unpacker.needs_input and not packed:
                raise fault("xz", "ends too early")
            try:
                piece = unpacker.decompress(packed, _PIECE_BYTES)
            except lzma.LZMAError as error:
                if "limit" in str(error):
                    raise fault("xz", f"dictionary of more than {XZ_DICTIONARY_BYTES >> 20} MiB") from error
                raise fault("xz", str(error)) from error
            except MemoryError as error:
                raise fault("xz", "dictionary larger than this machine's memory") from error
            yield piece
        stream.back(len(unpacker.unused_data))
        # liblzma passes over a check it does not know.
        if not lzma.is_check_supported(unpacker.check):
            raise fault("xz", f"unknown integrity check {unpacker.check}")
        padding = skip_zeros(stream)
        following = stream.peek(len(XZ_MAGIC))
        if padding % 4 or following not in {b"", XZ_MAGIC}:
            raise fault("xz", "something behind its end")
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


def _unzstd(stream: Stream) -> Iterator[Piece]:
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
            raise fault("zstd", "something behind its end")
        try:
            parameters = zstandard.get_frame_parameters(head)
            if parameters.window_size > ZSTD_WINDOW_BYTES:
                raise fault("zstd", f"window of more than {ZSTD_WINDOW_BYTES >> 20} MiB")
            frame = unpacker.decompressobj()
            yield frame.decompress(stream.need(zstandard.frame_header_size(head), "zstd"))
            is_last = False
            while not is_last:
                header = stream.need(3, "zstd")
                is_last, kind, packed_bytes = _zstd_block(header)
                if kind == _ZSTD_RESERVED:
                    raise fault("zstd", "block of a reserved type")
                yield frame.decompress(header + stream.need(packed_bytes, "zstd"))
            if parameters.has_checksum:
                yield frame.decompress(stream.need(4, "zstd"))
        except zstandard.ZstdError as error:
            raise fault("zstd", str(error)) from error
        if not frame.eof:
            raise fault("zstd", "frame without an end")


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
