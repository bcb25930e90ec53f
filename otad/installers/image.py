# SPDX-License-Identifier: Apache-2.0
"""What image a package holds: told from the bytes, unpacked as a stream, never trusted.

A package is a raw image, an image compressed with gzip, xz or zstd, or a zip or tar (itself compressed or not) that
holds exactly one file, and that file is the image, compressed once more or not. A manifest may come before it
(`manifest`). Everything else is refused.

Every fault of a package is an UpdateError with Code.FORMAT, for some only after the last chunk (a checksum, a second
file in a tar): an image is whole when `chunks` has ended, not before. What is promised about memory, time and hashing
is said in `stream`.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import assert_never

from otad.errors import UpdateError
from otad.installers.archive import Bounds, Entry, Kind, tar_entries, zip_entries, zip_members
from otad.installers.format import HEAD_BYTES, Format, sniff
from otad.installers.manifest import Manifest, is_manifest, take_manifest
from otad.installers.stream import HashingReader, Piece, Stream, fault, shown, size_aside, unpack

BOUNDS = Bounds(entries=1024, directory_bytes=1 << 20)


@dataclass(frozen=True, slots=True)
class Image:
    """The one image of a package: `name` for messages, `size` unpacked where known beforehand, else None.

    Of what the package's manifest says only `files` is checked here.
    """

    name: str
    size: int | None
    _content: "Stream"
    manifest: Manifest | None = None

    def chunks(self, chunk_bytes: int = 1 << 20) -> Iterator[bytes]:
        """The image's bytes, once: chunks of exactly `chunk_bytes`, only the last one shorter.

        Ends only after everything has been checked, and after the package has been read to its end.
        """
        done = 0
        while chunk := self._content.take(chunk_bytes):
            done += len(chunk)
            if self.size is not None and done > self.size:
                raise fault(self.name, f"unpacks to more than the {self.size} bytes it claims")
            yield chunk
        if self.size is not None and done < self.size:
            raise fault(self.name, f"unpacks to {done} bytes instead of the {self.size} it claims")
        if not done:
            raise fault(self.name, "empty")


def open_image(source: HashingReader, format: Format, package_bytes: int) -> Image:  # noqa: A002
    """Find the image in a package of `package_bytes` that begins as `format`.

    Reads only as far as the image's first bytes. Seeks, by `source.aside`, for zip, xz and zstd.
    """
    with source.aside() as file:
        held = file.seek(0, 2)
    if held != package_bytes:
        raise fault("package", f"{held} bytes instead of {package_bytes}")
    stream = source.stream()
    match format:
        case Format.RAW:
            return Image("raw image", package_bytes, stream)
        case Format.TAR:
            return _image_in_archive(format, tar_entries(stream, BOUNDS), packed_as=Format.RAW)
        case Format.ZIP:
            with source.aside() as file:
                members = zip_members(file, package_bytes, BOUNDS)
            _require_one_file([Entry(member.name, member.kind) for member in members])
            return _image_in_archive(format, zip_entries(stream, members), packed_as=Format.RAW)
        case Format.GZIP | Format.XZ | Format.ZSTD:
            with source.aside() as file:
                size = size_aside(file, format, package_bytes)
            return _image_in_compressed(format, Stream(unpack(stream, format)), size)
        case _:
            assert_never(format)


def _image_in_compressed(packed_as: Format, content: Stream, size: int | None) -> Image:
    inner = sniff(content.peek(HEAD_BYTES))
    match inner:
        case Format.RAW:
            return Image(f"{packed_as} image", size, content)
        case Format.TAR:
            return _image_in_archive(Format.TAR, tar_entries(content, BOUNDS), packed_as)
        case Format.GZIP | Format.XZ | Format.ZSTD | Format.ZIP:
            raise fault(packed_as, f"holds {inner}, neither an image nor a tar")
        case _:
            assert_never(inner)


def _require_one_file(entries: list[Entry]) -> None:
    """What a zip's directory tells before anything is written."""
    files = [entry.name for entry in _files(Format.ZIP, iter(entries))]
    if files and is_manifest(files[0]):
        del files[0]
    if len(files) > 1:
        raise _more_than_one(Format.ZIP, *files[:2])


def _image_in_archive(archive: Format, entries: Iterator[Entry], packed_as: Format) -> Image:
    files = _files(archive, entries)
    file, manifest = next(files, None), None
    if file is not None:
        file, manifest = take_manifest(file)
    if manifest is not None:
        file = next(files, None)
    if file is None:
        raise fault(archive, "holds no file")
    name = f"{archive} entry {shown(file.name)}"
    content = Stream(_pieces_of_the_only_file(archive, file, files, manifest))
    inner = sniff(content.peek(HEAD_BYTES))
    match inner:
        case Format.RAW:
            return Image(name, file.size, content, manifest)
        case Format.TAR | Format.ZIP:
            raise fault(name, f"a {inner} in a {archive}")
        case Format.GZIP | Format.XZ | Format.ZSTD:
            if inner is packed_as is Format.ZSTD:
                raise fault(name, "zstd within zstd: needs two windows of memory")
            content = Stream(unpack(content, inner))
        case _:
            assert_never(inner)
    innermost = sniff(content.peek(HEAD_BYTES))
    if innermost is not Format.RAW:
        raise fault(name, f"holds {innermost}, not an image")
    return Image(name, None, content, manifest)


def _files(archive: Format, entries: Iterator[Entry]) -> Iterator[Entry]:
    """The files; directories are passed over, links refused."""
    for entry in entries:
        match entry.kind:
            case Kind.FILE:
                yield entry
            case Kind.DIRECTORY:
                pass
            case Kind.LINK:
                raise fault(archive, f"{shown(entry.name)} is a symbolic link")
            case Kind.OTHER_NAME:
                raise fault(archive, f"{shown(entry.name)} is a hard link")
            case _:
                assert_never(entry.kind)


def _pieces_of_the_only_file(
    archive: Format, file: Entry, others: Iterator[Entry], manifest: Manifest | None
) -> Iterator[Piece]:
    digest = hashlib.sha256()
    for piece in file.pieces:
        if manifest is not None:
            digest.update(piece)
        yield piece
    for other in others:
        raise _more_than_one(archive, file.name, other.name)
    if manifest is not None:
        manifest.check({file.name: digest.hexdigest()})


def _more_than_one(archive: Format, name: str, other: str) -> UpdateError:
    return fault(archive, f"holds more than one file: {shown(name)} and {shown(other)}")
