# SPDX-License-Identifier: Apache-2.0
"""Packages in blocks over MQTT: which requests are answered, and the answer's form.

    +0            uint16, big-endian     J, the length of the JSON
    +2            J bytes                {"id":"4","code":200,"msg":"success","data":
                                          {"fileToken":"default","fileLength":61234,"bSize":5120,"bOffset":0}}
    +2+J          bSize bytes            of the file
    +2+J+bSize    uint16, little-endian  CRC-16/ARC over these bytes only

`id` and `fileToken` come back as they came; without a token there is none. A block has 256 to 131072 bytes, fewer only
at the end of the file; what is asked for beyond that end is left out. A file has at most 16 MiB. A request that cannot
be met is answered by the JSON alone, with another code and without `data`: 460 for a number that is missing or out of
its range, 400 for a stream that is none (any more), 500 for a file that is too large (the documents show the text, but
none of the codes).

Each notice has a stream of its own; all streams of a job are good until the job ends.
"""

import secrets
import struct
from dataclasses import dataclass
from typing import Any, Final

from otad.platform.wire import FILE_ID, AskBlock, to_json

BLOCK_BYTES: Final = range(256, 131_072 + 1)
MAX_FILE_BYTES: Final = 16 << 20


class Streams:
    """The numbers under which files are given out. They are forgotten when the platform ends."""

    def __init__(self) -> None:
        self._next = 1_000_000 + secrets.randbelow(1_000_000)  # not those of an earlier run
        self._jobs: dict[int, str] = {}

    def open(self, job_id: str) -> int:
        """A new stream for this job's package."""
        self._next += 1
        self._jobs[self._next] = job_id
        return self._next

    def job(self, stream_id: int | None) -> str | None:
        """The job of a stream, or None."""
        return None if stream_id is None else self._jobs.get(stream_id)


@dataclass(frozen=True, slots=True)
class Span:
    """Which bytes of the file an answer holds."""

    start: int
    size: int


class Unanswerable(Exception):  # noqa: N818
    """A request that gets a code and a text instead of a block."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"code {code}: {message}")
        self.code = code
        self.message = message


def span_of(ask: AskBlock, file_bytes: int) -> Span:
    """The bytes that a request for a block of a file of this size obtains. Raises `Unanswerable`."""
    if file_bytes > MAX_FILE_BYTES:
        raise Unanswerable(500, "file size has exceeded the limit 16 MB")
    if ask.file_id != FILE_ID:
        raise Unanswerable(400, f"fileId {ask.file_id} does not exist")
    offset, size = ask.offset, ask.size
    if offset is None or not 0 <= offset < file_bytes:
        raise Unanswerable(460, f"offset {offset}: not within 0..{file_bytes - 1}")
    rest = file_bytes - offset
    if size is None or not 1 <= size < BLOCK_BYTES.stop or (size < BLOCK_BYTES.start and size < rest):
        raise Unanswerable(460, f"size {size}: not within {BLOCK_BYTES[0]}..{BLOCK_BYTES[-1]}")
    return Span(offset, min(size, rest))


def block(ask: AskBlock, span: Span, content: bytes, file_bytes: int, *, crc_off: int = 0) -> bytes:
    """The answer that holds `content`, the bytes of `span`. `crc_off` other than 0 spoils the check sum."""
    token = {} if ask.token is None else {"fileToken": ask.token}
    data = {**token, "fileLength": file_bytes, "bSize": span.size, "bOffset": span.start}
    header = _header({"id": ask.request_id, "code": 200, "msg": "success", "data": data})
    return header + content + struct.pack("<H", crc16(content) ^ crc_off)


def refusal(ask: AskBlock, code: int, message: str) -> bytes:
    """The answer without a block."""
    return _header({"id": ask.request_id, "code": code, "msg": message})


def crc16(content: bytes) -> int:
    """CRC-16/ARC: polynomial 0x8005 reflected, from 0; of b"123456789" it is 0xBB3D."""
    crc = 0
    for byte in content:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 0xFF]
    return crc


def _row(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (0xA001 if byte & 1 else 0)
    return byte


_TABLE: Final = tuple(_row(byte) for byte in range(256))


def _header(message: dict[str, Any]) -> bytes:
    text = to_json(message)
    return struct.pack(">H", len(text)) + text
