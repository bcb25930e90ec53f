# SPDX-License-Identifier: Apache-2.0
"""What a package is, told from its first bytes and never from its name.

Apart from `image`, which unpacks it, because every download asks this and most need none of the archive libraries.
"""

import re
import struct
import zlib
from enum import StrEnum

HEAD_BYTES = 512

GZIP_MAGIC = b"\x1f\x8b"
XZ_MAGIC = b"\xfd7zXZ\0"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
ZIP_LOCAL = struct.Struct("<4s5H3L2H")
ZIP_RESERVED_FLAGS = 0xD780
TAR_BLOCK_BYTES = 512
_OCTAL = re.compile(rb"[0-7]{1,7}")


class Format(StrEnum):
    """What a package, or a file in one, can be."""

    RAW = "raw"
    GZIP = "gzip"
    XZ = "xz"
    ZSTD = "zstd"
    ZIP = "zip"
    TAR = "tar"


def sniff(head: bytes) -> Format:
    """What begins with these bytes; `head` is the first HEAD_BYTES, or all there are.

    A magic number alone proves little: boot code may begin with any bytes. The header around it has to be sound too,
    and what is sound for none of the formats is a raw image.
    """
    if _is_gzip(head):
        return Format.GZIP
    if _is_xz(head):
        return Format.XZ
    if _is_zstd(head):
        return Format.ZSTD
    if _is_zip(head):
        return Format.ZIP
    if _is_tar(head):
        return Format.TAR
    return Format.RAW


def _is_gzip(head: bytes) -> bool:
    deflated, reserved_flags = 8, 0xE0
    return len(head) > 10 and head.startswith(GZIP_MAGIC) and head[2] == deflated and not head[3] & reserved_flags


def _is_xz(head: bytes) -> bool:
    flags, checksum = head[6:8], head[8:12]
    return head.startswith(XZ_MAGIC) and checksum == zlib.crc32(flags).to_bytes(4, "little")


def _is_zstd(head: bytes) -> bool:
    if is_zstd_skippable(head):  # pzstd begins with one
        head = head[8 + int.from_bytes(head[4:8], "little") :]
    reserved_flag = 0x08
    return len(head) > 8 and head.startswith(ZSTD_MAGIC) and not head[4] & reserved_flag


def is_zstd_skippable(head: bytes) -> bool:
    return len(head) >= 8 and head[0] & 0xF0 == 0x50 and head[1:4] == b"\x2a\x4d\x18"


def _is_zip(head: bytes) -> bool:
    if head[:4] == b"PK\5\6":  # an empty one, which is then refused in clear words
        return head[4:20] == bytes(16)
    if head[:4] != b"PK\3\4" or len(head) < ZIP_LOCAL.size:
        return False
    _, version, flags, method, *_, name_bytes, _ = ZIP_LOCAL.unpack_from(head)
    name = head[ZIP_LOCAL.size : ZIP_LOCAL.size + name_bytes]
    return version & 0xFF <= 63 and not flags & ZIP_RESERVED_FLAGS and method <= 99 and name != b"" and 0 not in name


def _is_tar(head: bytes) -> bool:
    if head[257:263] not in {b"ustar\0", b"ustar "} or len(head) < TAR_BLOCK_BYTES:
        return False
    field = head[148:156]  # the checksum counts its own field as spaces
    told = field.replace(b"\0", b" ").strip()
    counted = sum(head[:TAR_BLOCK_BYTES]) - sum(field) + 8 * ord(" ")
    return bool(_OCTAL.fullmatch(told)) and int(told, 8) == counted
