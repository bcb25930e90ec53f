# SPDX-License-Identifier: Apache-2.0
"""Packages as real tools and hostile people make them: the right bytes come out, or an UpdateError."""

import gzip
import hashlib
import io
import lzma
import os
import random
import shutil
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from otad.errors import Code, UpdateError
from otad.installers.format import HEAD_BYTES, Format, sniff
from otad.installers.image import Image, open_image
from otad.installers.stream import HashingReader

MIB = 1 << 20
_RANDOM = random.Random(20261123)
IMAGE = _RANDOM.randbytes(150_001) + bytes(900_000) + b"otad" * 100_000
SMALL = _RANDOM.randbytes(90) + bytes(2000) + b"otad" * 5


def opened(package: bytes, format_: Format | None = None) -> Image:
    reader = HashingReader(io.BytesIO(package), "sha256")
    return open_image(reader, format_ or sniff(package[:HEAD_BYTES]), len(package))


def unpacked(package: bytes, format_: Format | None = None) -> bytes:
    """What the package holds; asserts that all of it has been hashed, as every caller relies on."""
    reader = HashingReader(io.BytesIO(package), "sha256")
    image = open_image(reader, format_ or sniff(package[:HEAD_BYTES]), len(package))
    content = b"".join(image.chunks(64 << 10))
    assert reader.hexdigest() == hashlib.sha256(package).hexdigest()
    assert image.size in {None, len(content)}
    return content


def refusal(package: bytes, format_: Format | None = None) -> str:
    with pytest.raises(UpdateError) as caught:
        unpacked(package, format_)
    assert caught.value.failure.code is Code.FORMAT
    return caught.value.failure.detail


def zstd(content: bytes, *, size: bool = True, checksum: bool = True) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=checksum, write_content_size=size).compress(content)


def tar(*files: tuple[str, bytes], format_: int = tarfile.PAX_FORMAT) -> bytes:
    package = io.BytesIO()
    with tarfile.open(fileobj=package, mode="w", format=format_) as archive:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return package.getvalue()


def tar_with(member: tarfile.TarInfo) -> bytes:
    package = io.BytesIO()
    with tarfile.open(fileobj=package, mode="w") as archive:
        archive.addfile(member)
        good = tarfile.TarInfo("rootfs.img")
        good.size = len(SMALL)
        archive.addfile(good, io.BytesIO(SMALL))
    return package.getvalue()


def zipped(*files: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    package = io.BytesIO()
    with zipfile.ZipFile(package, "w", method) as archive:
        for name, content in files:
            archive.writestr(name, content)
    return package.getvalue()


# What real tools make.


@dataclass(frozen=True, slots=True)
class Tool:
    """A shell command that prints the package made of the file rootfs.img."""

    command: str
    format: Format
    size_is_known: bool

    def package(self, directory: Path) -> bytes:
        program = self.command.split()[0]
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
        made = subprocess.run(self.command, shell=True, cwd=directory, capture_output=True, check=False)
        assert made.returncode == 0, made.stderr
        return made.stdout


TOOLS = [
    Tool("cat rootfs.img", Format.RAW, size_is_known=True),
    Tool("gzip -9c rootfs.img", Format.GZIP, size_is_known=False),
    Tool("gzip -c rootfs.img; head -c 5000 /dev/zero", Format.GZIP, size_is_known=False),
    Tool(
        "head -c 999999 rootfs.img | gzip -c; tail -c +1000000 rootfs.img | gzip -1c", Format.GZIP, size_is_known=False
    ),
    Tool("xz -c rootfs.img", Format.XZ, size_is_known=True),
    Tool("xz -9ec rootfs.img", Format.XZ, size_is_known=True),
    Tool("xz -0c --block-size=100000 --check=sha256 -T2 rootfs.img", Format.XZ, size_is_known=True),
    Tool("xz -0c --check=none rootfs.img", Format.XZ, size_is_known=True),
    Tool("xz -0c --x86 --lzma2=dict=64MiB rootfs.img", Format.XZ, size_is_known=True),
    Tool("xz -0c rootfs.img; head -c 512 /dev/zero", Format.XZ, size_is_known=False),
    Tool(
        "head -c 9 rootfs.img | xz -c; head -c 8 /dev/zero; tail -c +10 rootfs.img | xz -c",
        Format.XZ,
        size_is_known=False,
    ),
    Tool("zstd -qc rootfs.img", Format.ZSTD, size_is_known=True),
    Tool("zstd -qc --no-check -T2 -B256KiB rootfs.img", Format.ZSTD, size_is_known=True),
    Tool("cat rootfs.img | zstd -qc --no-content-size", Format.ZSTD, size_is_known=False),
    Tool("zstd -qc -1 --ultra --long=27 rootfs.img", Format.ZSTD, size_is_known=True),
    Tool("cat rootfs.img | zstd -qc -1 --long=27", Format.ZSTD, size_is_known=False),
    Tool("head -c 9 rootfs.img | zstd -qc; tail -c +10 rootfs.img | zstd -qc", Format.ZSTD, size_is_known=False),
    Tool("pzstd -qc -p 2 rootfs.img", Format.ZSTD, size_is_known=False),
    Tool("zip -q x.zip rootfs.img; cat x.zip", Format.ZIP, size_is_known=True),
    Tool("zip -q0 x.zip rootfs.img; cat x.zip", Format.ZIP, size_is_known=True),
    Tool("zip -q - rootfs.img | cat", Format.ZIP, size_is_known=True),
    Tool("zip -q -fd x.zip rootfs.img; cat x.zip", Format.ZIP, size_is_known=True),
    Tool("zip -qfz x.zip rootfs.img; cat x.zip", Format.ZIP, size_is_known=True),
    Tool(
        "mkdir d; cp rootfs.img d; zip -qr x.zip d; echo hello | zip -qz x.zip; cat x.zip",
        Format.ZIP,
        size_is_known=True,
    ),
    Tool("tar cf - rootfs.img", Format.TAR, size_is_known=True),
    Tool("tar cf - --format=ustar ./rootfs.img", Format.TAR, size_is_known=True),
    Tool("tar cf - --format=pax -b 64 rootfs.img", Format.TAR, size_is_known=True),
    Tool("mkdir d; mv rootfs.img d; tar cf - d", Format.TAR, size_is_known=True),
    Tool("tar cf - --transform s/^/$(printf %0200d 0)/ rootfs.img", Format.TAR, size_is_known=True),
    Tool("tar czf - rootfs.img", Format.GZIP, size_is_known=True),
    Tool("tar cJf - rootfs.img", Format.XZ, size_is_known=True),
    Tool("tar cf - --zstd rootfs.img", Format.ZSTD, size_is_known=True),
    Tool("xz -0 rootfs.img; zip -q0 x.zip rootfs.img.xz; cat x.zip", Format.ZIP, size_is_known=False),
    Tool("zstd -q --rm rootfs.img; tar cf - rootfs.img.zst", Format.TAR, size_is_known=False),
    Tool("gzip rootfs.img; tar cJf - rootfs.img.gz", Format.XZ, size_is_known=False),
]


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.command)
def test_the_image_of_a_real_tools_package_comes_out_whole(tool: Tool, tmp_path: Path) -> None:
    (tmp_path / "rootfs.img").write_bytes(IMAGE)

    package = tool.package(tmp_path)

    assert sniff(package[:HEAD_BYTES]) is tool.format
    assert opened(package).size == (len(IMAGE) if tool.size_is_known else None)
    assert unpacked(package) == IMAGE


REFUSED_TOOLS = [
    (Tool("xz -0c --lzma2=preset=0,dict=128MiB rootfs.img", Format.XZ, True), "xz: dictionary of more than 64 MiB"),
    (Tool("cat rootfs.img | zstd -qc -1 --long=28", Format.ZSTD, True), "zstd: window of more than 128 MiB"),
    (Tool("zip -q -P secret x.zip rootfs.img; cat x.zip", Format.ZIP, True), "zip: 'rootfs.img' is encrypted"),
    (Tool("ln -s rootfs.img x; zip -qy x.zip x; cat x.zip", Format.ZIP, True), "zip: 'x' is a symbolic link"),
    (
        Tool("cat rootfs.img | zip -q x.zip -; cat x.zip", Format.ZIP, True),
        "zip: '-' is neither a file nor a directory",
    ),
    (Tool("zip -q -Z bzip2 x.zip rootfs.img; cat x.zip", Format.ZIP, True), "has compression method 12, not stored"),
    (
        Tool("touch x; zip -q x.zip rootfs.img x; cat x.zip", Format.ZIP, True),
        "more than one file: 'rootfs.img' and 'x'",
    ),
    (Tool("touch x; tar cf - rootfs.img x", Format.TAR, True), "tar: holds more than one file: 'rootfs.img' and 'x'"),
    (Tool("ln -s rootfs.img x; tar cf - x rootfs.img", Format.TAR, True), "tar: 'x' is a symbolic link"),
    (Tool("ln rootfs.img x; tar cf - rootfs.img x", Format.TAR, True), "tar: 'x' is a hard link"),
    (Tool("mkfifo x; tar cf - x rootfs.img", Format.TAR, True), "tar: 'x' is a fifo"),
    (Tool("tar cPf - $PWD/rootfs.img", Format.TAR, True), "tar: unsafe name '/"),
    (Tool("truncate -s 9M x; tar cSf - x", Format.TAR, True), "tar: 'x' is a sparse file"),
    (Tool("truncate -s 9M x; tar cSf - --format=pax x", Format.TAR, True), "tar: holds a sparse file"),
    (Tool("tar cf - rootfs.img | tar cf - -C /dev null", Format.TAR, True), "tar: 'null' is a device node"),
    (Tool("tar cf - rootfs.img | head -c 9999", Format.TAR, True), "tar: ends too early"),
    (Tool("mkdir d; tar cf - d", Format.TAR, True), "tar: holds no file"),
    (Tool("mkdir d; zip -qr x.zip d; cat x.zip", Format.ZIP, True), "zip: holds no file"),
    (Tool("gzip -c rootfs.img | gzip -c", Format.GZIP, True), "gzip: holds gzip, neither an image nor a tar"),
    (Tool("zip -q - rootfs.img | xz -c", Format.XZ, True), "xz: holds zip, neither an image nor a tar"),
    (Tool("tar cf x rootfs.img; tar cf - x", Format.TAR, True), "tar entry 'x': a tar in a tar"),
    (Tool("tar czf x rootfs.img; tar cf - x", Format.TAR, True), "tar entry 'x': holds tar, not an image"),
    (Tool("zstd -qfo x rootfs.img; tar cf - --zstd x", Format.ZSTD, True), "zstd within zstd: needs two windows"),
    (Tool("gzip -c rootfs.img; echo", Format.GZIP, True), "gzip: something behind its end"),
    (Tool("gzip -c rootfs.img; head -c 9 /dev/zero; echo", Format.GZIP, True), "gzip: something behind its end"),
    (Tool("xz -0c rootfs.img; head -c 3 /dev/zero", Format.XZ, True), "xz: something behind its end"),
    (Tool("xz -0c rootfs.img; echo", Format.XZ, True), "xz: something behind its end"),
    (Tool("zstd -qc rootfs.img; echo", Format.ZSTD, True), "zstd: something behind its end"),
    (Tool("zip -q - rootfs.img; echo", Format.ZIP, True), "zip: something behind its end"),
    (Tool("tar cf - rootfs.img; echo", Format.TAR, True), "tar: something behind its end"),
    (Tool("cat /dev/null | gzip -c", Format.GZIP, True), "gzip image: empty"),
]


@pytest.mark.parametrize(("tool", "reason"), REFUSED_TOOLS, ids=[tool.command for tool, _ in REFUSED_TOOLS])
def test_a_real_tools_package_that_is_no_image_is_refused(tool: Tool, reason: str, tmp_path: Path) -> None:
    (tmp_path / "rootfs.img").write_bytes(IMAGE)

    package = tool.package(tmp_path)

    assert sniff(package[:HEAD_BYTES]) is tool.format
    assert reason in refusal(package)


# What a package is, is told from its bytes.


def with_bad_crc(header: bytes) -> bytes:
    return header[:8] + bytes(4) + header[12:]


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"\x1f\x8b",
        b"\x1f\x8b\x08",
        b"\x1f\x8b\x07" + bytes(509),
        b"\x1f\x8b\x08\xe0" + bytes(508),
        b"\xfd7zXZ\0",
        with_bad_crc(lzma.compress(SMALL)),
        b"\x28\xb5\x2f\xfd",
        b"\x28\xb5\x2f\xfd\x08" + bytes(507),
        b"\x50\x2a\x4d\x18\x04\0\0\0" + bytes(500),
        b"PK\3\4",
        b"PK\3\4" + bytes(508),
        b"PK\3\4" + b"\xff" * 508,
        bytes(257) + b"ustar\0" + bytes(249),
        tar(("a", b""))[:511],
        b"\xeb\x3c\x90" + bytes(507) + b"\x55\xaa",
        SMALL,
    ],
    ids=lambda head: head[:9].hex() or "empty",
)
def test_a_magic_number_alone_makes_no_format(head: bytes) -> None:
    assert sniff(head) is Format.RAW


def test_a_raw_image_is_handed_on_as_it_is() -> None:
    assert unpacked(b"\x1f\x8b", Format.RAW) == b"\x1f\x8b"
    assert refusal(b"", Format.RAW) == "raw image: empty"


def test_chunks_are_whole_except_the_last() -> None:
    chunks = list(opened(zstd(IMAGE)).chunks(1 << 18))

    assert {len(chunk) for chunk in chunks[:-1]} == {1 << 18}
    assert b"".join(chunks) == IMAGE


# Archives made by hand.


@pytest.mark.parametrize("name", ["../rootfs.img", "a/../../b", "/rootfs.img", "..", "\\rootfs.img", "a\\..\\b"])
def test_an_archive_with_a_name_that_leads_out_of_it_is_refused(name: str) -> None:
    assert "unsafe name" in refusal(tar((name, SMALL)))
    assert "unsafe name" in refusal(zipped((name, SMALL)))


def test_a_zip_name_with_a_nul_is_refused() -> None:
    package = zipped(("rootfs.img", SMALL)).replace(b"rootfs.img", b"rootfs\0img")

    assert refusal(package, Format.ZIP) == "zip: unsafe name 'rootfs\\x00img'"


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_twice_is_refused() -> None:
    assert "name './a' twice" in refusal(tar(("a", SMALL), ("./a", SMALL)))
    assert "name 'a' twice" in refusal(zipped(("a", SMALL), ("a", SMALL)))


def test_a_hostile_name_is_made_harmless_and_short_in_messages() -> None:
    detail = refusal(tar(("a\n\x1b[2J\u202e" + 100 * "b", SMALL), ("c", b"")))

    assert detail.isprintable()
    assert len(detail) < 200


def test_more_entries_than_a_package_needs_are_refused() -> None:
    many = [(f"{number}/", b"") for number in range(1025)]

    assert refusal(zipped(*many)) == "zip: more than 1024 entries"
    package = io.BytesIO()
    with tarfile.open(fileobj=package, mode="w") as archive:
        for name, _ in many:
            member = tarfile.TarInfo(name)
            member.type = tarfile.DIRTYPE
            archive.addfile(member)
    assert refusal(package.getvalue()) == "tar: more than 1024 entries"


def test_a_zip_directory_larger_than_memory_is_refused() -> None:
    package = zipped(("rootfs.img", bytes(2 * MIB)), method=zipfile.ZIP_STORED)
    end = package.index(b"PK\5\6")
    claim = struct.pack("<LL", 2 * MIB, 0)

    assert refusal(package[: end + 12] + claim + package[end + 20 :]) == f"zip: directory of {2 * MIB} bytes"


@pytest.mark.parametrize("field", [4, 6])
def test_a_zip_of_several_disks_is_refused(field: int) -> None:
    package = bytearray(zipped(("rootfs.img", SMALL)))
    package[package.index(b"PK\5\6") + field] = 1

    assert refusal(bytes(package)) == "zip: one of several disks"


@pytest.mark.parametrize("offset", [24, 20], ids=["size", "packed size"])
@pytest.mark.parametrize("claim", [0, 1, len(SMALL) - 1, len(SMALL) + 1, 2**31])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_whose_sizes_lie_is_refused(offset: int, claim: int, method: int) -> None:
    package = bytearray(zipped(("rootfs.img", SMALL), method=method))
    entry = package.index(b"PK\1\2")
    package[entry + offset : entry + offset + 4] = struct.pack("<L", claim)

    assert refusal(bytes(package))


def test_a_zip_whose_checksum_differs_is_refused() -> None:
    package = zipped(("rootfs.img", SMALL), method=zipfile.ZIP_STORED).replace(b"otad", b"otaD")

    assert refusal(package) == "zip entry 'rootfs.img': checksum differs"


def test_a_zip_whose_directory_names_another_file_is_refused() -> None:
    package = zipped(("rootfs.img", SMALL)).replace(b"rootfs.img", b"kernel.img", 1)

    assert refusal(package) == "zip: directory and content disagree about 'rootfs.img'"


def test_an_empty_zip_is_refused_as_a_zip() -> None:
    assert refusal(zipped()) == "zip: holds no file"


def test_a_zip_made_without_seeking_is_unpacked() -> None:
    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

    package = Pipe()
    with zipfile.ZipFile(package, "w", zipfile.ZIP_STORED) as archive, archive.open("a", "w", force_zip64=True) as file:
        file.write(IMAGE)

    assert unpacked(package.getvalue()) == IMAGE


@pytest.mark.parametrize(
    ("type_", "reason"),
    [
        (tarfile.BLKTYPE, "is a device node"),
        (tarfile.CHRTYPE, "is a device node"),
        (tarfile.CONTTYPE, "is an entry of type b'7'"),
        (b"V", "is an entry of type b'V'"),
        (b"M", "is an entry of type b'M'"),
        (b"D", "is an entry of type b'D'"),
    ],
)
def test_a_tar_entry_that_is_no_file_is_refused(type_: bytes, reason: str) -> None:
    member = tarfile.TarInfo("x")
    member.type = type_

    assert reason in refusal(tar_with(member))


def tar_header(name: bytes, size: bytes, type_: bytes = b"0") -> bytes:
    fields = name.ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + size.ljust(12, b"\0") + b"00000000000\0"
    rest = (type_ + bytes(100) + b"ustar\x0000").ljust(512 - 156, b"\0")
    checksum = sum(fields) + 8 * 32 + sum(rest)
    return fields + b"%06o\0 " % checksum + rest


@pytest.mark.parametrize(
    "package",
    [
        tar_header(b"a", b"\xff" * 12) + bytes(1024),
        tar_header(b"a", b"-7") + bytes(1024),
        tar_header(b"a", b"\x80" + b"\xff" * 11) + bytes(1024),
        tar_header(b"a", b"77777777777") + bytes(1024),
        tar_header(b"x", b"77777777777", b"x") + bytes(1024),
        tar_header(b"x", b"\xff" * 12, b"L") + bytes(1024),
        tar_header(b"x", b"13", b"x") + b"11 size=-1\n".ljust(512, b"\0") + tar_header(b"a", b"0") + bytes(1024),
        tar_header(b"x", b"15", b"x") + b"13 size=9999\n".ljust(512, b"\0") + tar_header(b"a", b"4") + bytes(1536),
        tar_header(b"x", b"13", b"x") + b"99 size=99\n".ljust(512, b"\0") + tar_header(b"a", b"4") + bytes(1536),
        tar_header(b"x", b"12", b"g") + b"10 path=a\n".ljust(512, b"\0") + tar_header(b"b", b"4") + bytes(1536),
        tar_header(b"x", b"0", b"x") * 3000 + bytes(1024),
        tar_header(b"a", b"4") + bytes(512),
        tar_header(b"a", b"4") + bytes(1024),
        tar_header(b"d", b"4", b"5") + bytes(1536),
        bytes(1024),
        b"",
    ],
    ids=zlib.crc32,
)
def test_a_malformed_tar_is_refused(package: bytes) -> None:
    assert refusal(package, Format.TAR)


def test_a_link_with_a_long_target_is_refused_as_a_link() -> None:
    member = tarfile.TarInfo("x")
    member.type = tarfile.SYMTYPE
    member.linkname = "y" * 200
    package = io.BytesIO()
    with tarfile.open(fileobj=package, mode="w", format=tarfile.GNU_FORMAT) as archive:
        archive.addfile(member)

    assert refusal(package.getvalue()) == "tar: 'x' is a symbolic link"


def test_a_comment_for_all_entries_of_a_tar_is_no_harm() -> None:
    package = io.BytesIO()
    with tarfile.open(fileobj=package, mode="w", pax_headers={"comment": "0123abc"}) as archive:
        member = tarfile.TarInfo("rootfs.img")
        member.size = len(SMALL)
        archive.addfile(member, io.BytesIO(SMALL))

    assert unpacked(package.getvalue()) == SMALL


def test_a_damaged_header_is_not_taken_for_the_end_of_a_tar() -> None:
    package = bytearray(tar(("rootfs.img", SMALL), ("second", SMALL)))
    package[package.index(b"second")] ^= 1

    assert refusal(bytes(package)) == "tar: bad checksum"


# Damage.


def packages() -> dict[str, tuple[Format, bytes]]:
    return {
        "gzip": (Format.GZIP, gzip.compress(SMALL)),
        "gzip twice": (Format.GZIP, gzip.compress(SMALL[:50]) + gzip.compress(SMALL[50:]) + bytes(9)),
        "xz": (Format.XZ, lzma.compress(SMALL)),
        "xz twice": (Format.XZ, lzma.compress(SMALL[:50]) + bytes(8) + lzma.compress(SMALL[50:])),
        "zstd": (Format.ZSTD, zstd(SMALL)),
        "zstd unknown size": (Format.ZSTD, zstd(SMALL, size=False)),
        "zip": (Format.ZIP, zipped(("d/", b""), ("d/rootfs.img", SMALL))),
        "zip stored": (Format.ZIP, zipped(("rootfs.img", SMALL), method=zipfile.ZIP_STORED)),
        "zip of zstd": (Format.ZIP, zipped(("a.zst", zstd(SMALL)), method=zipfile.ZIP_STORED)),
        "tar.gz": (Format.GZIP, gzip.compress(tar(("rootfs.img", SMALL)))),
        "tar.gz of xz": (Format.GZIP, gzip.compress(tar(("é" * 99, lzma.compress(SMALL))))),
        "tar": (Format.TAR, tar(("é" * 99, SMALL))),
        "tar of gzip": (Format.TAR, tar(("x" * 150, gzip.compress(SMALL)), format_=tarfile.GNU_FORMAT)),
    }


PACKAGES = packages()
# Where two streams follow one another, a cut between them leaves a sound package: only the digest tells.
# A bare tar has no checksum over what it holds, and the package's digest is what protects it.
CHECKED_PACKAGES = {name: value for name, value in PACKAGES.items() if name != "tar"}


def content_or_refusal(package: bytes, format_: Format) -> bytes | None:
    try:
        return unpacked(package, format_)
    except UpdateError as error:
        refused = error.failure.code
    assert refused is Code.FORMAT
    return None


@pytest.mark.parametrize("name", [name for name in PACKAGES if "twice" not in name])
def test_a_package_cut_anywhere_is_never_a_short_image(name: str) -> None:
    format_, package = PACKAGES[name]

    contents = [content_or_refusal(package[:length], format_) for length in range(0, len(package), 5)]

    assert set(contents) <= {None, SMALL}
    assert None in contents


@pytest.mark.parametrize("name", CHECKED_PACKAGES)
def test_a_package_with_one_byte_changed_gives_the_right_bytes_or_none(name: str) -> None:
    format_, package = PACKAGES[name]
    contents = set()
    for at in [*range(0, len(package), 7), *range(max(0, len(package) - 120), len(package)), *range(120)]:
        for change in (0x01, 0xFF):
            damaged = bytearray(package)
            damaged[at % len(package)] ^= change
            contents.add(content_or_refusal(bytes(damaged), format_))

    assert contents <= {None, SMALL}
    assert None in contents


@st.composite
def damaged_packages(draw: st.DrawFn) -> tuple[Format, bytes]:
    """A package after a few changes of any length, sometimes put together from two."""
    format_, package = draw(st.sampled_from(list(PACKAGES.values())))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(package)))
        change = draw(st.sampled_from(["replace", "insert", "delete", "cut", "splice", "number"]))
        match change:
            case "replace":
                new = draw(st.binary(min_size=1, max_size=8))
                package = package[:at] + new + package[at + len(new) :]
            case "insert":
                package = package[:at] + draw(st.binary(max_size=64)) + package[at:]
            case "delete":
                package = package[:at] + package[at + draw(st.integers(1, 64)) :]
            case "cut":
                package = package[:at]
            case "splice":
                package = package[:at] + draw(st.sampled_from(list(PACKAGES.values())))[1][at:]
            case "number":
                number = draw(st.sampled_from([0, 1, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1]))
                new = number.to_bytes(8, "little")[: draw(st.sampled_from([2, 4, 8]))]
                package = package[:at] + new + package[at + len(new) :]
            case _:
                raise AssertionError(change)
    return format_, package


@settings(max_examples=int(os.environ.get("OTAD_FUZZ_EXAMPLES", "400")), deadline=2000, database=None)
@given(damaged_packages())
def test_a_hostile_package_raises_nothing_but_an_update_error(damaged: tuple[Format, bytes]) -> None:
    format_, package = damaged

    content_or_refusal(package, format_)
    content_or_refusal(package, sniff(package[:HEAD_BYTES]))


@settings(max_examples=100, deadline=2000, database=None)
@given(
    st.sampled_from(list(Format)), st.sampled_from(list(PACKAGES.values())), st.integers(0, 40), st.binary(max_size=600)
)
def test_a_sound_beginning_with_anything_behind_it_raises_nothing_else(
    format_: Format, package: tuple[Format, bytes], length: int, rest: bytes
) -> None:
    content_or_refusal(package[1][:length] + rest, format_)


def test_an_xz_check_that_nobody_knows_is_refused() -> None:
    package = bytearray(lzma.compress(SMALL, check=lzma.CHECK_CRC32))
    for flags, checksum in ((slice(6, 8), slice(8, 12)), (slice(-4, -2), slice(-12, -8))):
        package[flags] = b"\0\2"  # reserved, four bytes long like CRC32
        covered = package[flags] if flags.start == 6 else package[-8:-2]
        package[checksum] = zlib.crc32(covered).to_bytes(4, "little")

    assert refusal(bytes(package)) == "xz: unknown integrity check 2"


def test_a_zstd_frame_that_needs_a_dictionary_is_refused() -> None:
    dictionary_7 = b"\x28\xb5\x2f\xfd\x01\x00\x07"

    assert "dictionary" in refusal(dictionary_7 + b"\x21\0\0" + b"otad").lower()


def test_a_package_whose_length_on_the_medium_differs_is_refused() -> None:
    reader = HashingReader(io.BytesIO(SMALL), "sha256")

    with pytest.raises(UpdateError, match="package: 2110 bytes instead of 2111"):
        open_image(reader, Format.RAW, len(SMALL) + 1)


# Bombs and endless parts.


def test_a_zip_bomb_ends_at_the_size_it_claims() -> None:
    package = bytearray(zipped(("rootfs.img", bytes(64 * MIB))))
    entry = package.index(b"PK\1\2")
    package[entry + 24 : entry + 28] = struct.pack("<L", MIB)
    chunks = opened(bytes(package)).chunks()

    assert next(chunks) == bytes(MIB)
    with pytest.raises(UpdateError, match="more than the 1048576 bytes it claims"):
        next(chunks)


def test_zeros_without_end_behind_a_tar_are_refused() -> None:
    package = gzip.compress(tar(("rootfs.img", SMALL)) + bytes(17 * MIB), 1)

    assert refusal(package) == "tar: something behind its end"


@pytest.mark.parametrize(
    ("format_", "nothing"),
    [
        (Format.GZIP, gzip.compress(b"")),
        (Format.XZ, lzma.compress(b"")),
        (Format.ZSTD, b"\x50\x2a\x4d\x18" + bytes(4)),
    ],
)
def test_parts_that_hold_nothing_are_not_read_for_ever(format_: Format, nothing: bytes) -> None:
    assert refusal(nothing * 100_000, format_) == "package: endless parts that hold nothing"


_MEASURE = """
import sys
from otad.installers.format import HEAD_BYTES, sniff
from otad.installers.image import open_image
from otad.installers.stream import HashingReader

def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])

path, limit = sys.argv[1], int(sys.argv[2])
with open(path, "rb") as file:
    head = file.read(HEAD_BYTES)
    size = file.seek(0, 2)
    before, seen = peak(), 0
    for chunk in open_image(HashingReader(file, "sha256"), sniff(head), size).chunks():
        seen += len(chunk)
        if seen >= limit:
            break
print(seen, peak() - before)
"""


def measured(package: bytes, directory: Path, limit: int) -> tuple[int, float]:
    """Bytes read, and MiB by which the peak of resident memory grew, in a process of its own."""
    path = directory / "package"
    path.write_bytes(package)
    printed = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(path), str(limit)], capture_output=True, check=True, text=True
    ).stdout
    seen, grown_kib = map(int, printed.split())
    return seen, grown_kib / 1024


def gzip_bomb(gib: int = 1) -> bytes:
    """One member of zeros, put together from equal pieces because compressing them takes seconds."""
    header = gzip.compress(b"")[:10]
    piece = bytes(16 * MIB)
    packer = zlib.compressobj(1, wbits=-15)
    packed = packer.compress(piece) + packer.flush(zlib.Z_FULL_FLUSH)
    checksum = 0
    for _ in range(64 * gib):
        checksum = zlib.crc32(piece, checksum)
    return header + 64 * gib * packed + packer.flush() + struct.pack("<LL", checksum, gib << 30 & 0xFFFFFFFF)


def zstd_bomb() -> bytes:
    packer = zstandard.ZstdCompressor(level=1).compressobj()
    return b"".join(packer.compress(bytes(MIB)) for _ in range(1024)) + packer.flush()


@pytest.mark.parametrize(
    ("bomb", "limit", "most_mib"),
    [
        (gzip_bomb, 1 << 30, 16),
        (lambda: lzma.compress(bytes(4 * MIB), preset=0) * 256, 256 * MIB, 16),
        (zstd_bomb, 1 << 30, 24),
        (lambda: zipped(("a", gzip_bomb())), 64 * MIB, 24),
    ],
    ids=["gzip", "xz", "zstd", "gzip in zip"],
)
def test_a_bomb_of_a_gibibyte_costs_little_memory(
    bomb: Callable[[], bytes], limit: int, most_mib: int, tmp_path: Path
) -> None:
    seen, grown_mib = measured(bomb(), tmp_path, limit)

    assert seen == limit
    assert grown_mib < most_mib


WINDOW_OF_128_MIB = b"\x28\xb5\x2f\xfd\0" + bytes([27 - 10 << 3])  # the beginning of a zstd frame
RAW_BLOCK = (128 * 1024 << 3).to_bytes(3, "little") + bytes(128 * 1024)
REPEATED_BLOCK = (128 * 1024 << 3 | 1 << 1).to_bytes(3, "little") + b"z"  # turns 4 bytes into 128 KiB


def test_the_largest_windows_together_stay_below_200_mib(tmp_path: Path) -> None:
    """The dearest package there can be: a window of 128 MiB in a tar in xz with a dictionary of 64 MiB."""
    frame = WINDOW_OF_128_MIB + RAW_BLOCK * 8 * 66 + REPEATED_BLOCK * 8 * 70
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 64 * MIB}]
    package = lzma.compress(tar(("rootfs.img.zst", frame)), filters=filters)

    seen, grown_mib = measured(package, tmp_path, 135 * MIB)

    assert seen == 135 * MIB
    assert 185 < grown_mib < 205


def test_a_block_never_unpacks_to_more_than_a_chunk_at_a_time(tmp_path: Path) -> None:
    seen, grown_mib = measured(WINDOW_OF_128_MIB + REPEATED_BLOCK * 4096, tmp_path, 500 * MIB)

    assert seen == 500 * MIB
    assert grown_mib < 145


# The reader.


def test_the_digest_covers_what_was_read_and_nothing_else() -> None:
    file = io.BytesIO(IMAGE)
    file.read(HEAD_BYTES)
    reader = HashingReader(file, "md5")

    reader.read(1000)
    with reader.aside() as beside:
        beside.seek(5)
        beside.read(77)

    assert reader.hexdigest() == hashlib.md5(IMAGE[:1000]).hexdigest()
    reader.drain()
    assert reader.hexdigest() == hashlib.md5(IMAGE).hexdigest()


def test_a_medium_that_gives_no_bytes_is_not_the_packages_fault() -> None:
    class Broken(io.BytesIO):
        def read(self, count: int | None = -1, /) -> bytes:
            if self.tell() > 1000:
                raise OSError(5, "Input/output error")
            return super().read(min(count or 0, 600))

    reader = HashingReader(Broken(gzip.compress(IMAGE)), "sha256")

    with pytest.raises(OSError, match="Input/output error"):
        list(open_image(reader, Format.GZIP, len(gzip.compress(IMAGE))).chunks())
