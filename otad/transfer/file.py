# SPDX-License-Identifier: Apache-2.0
"""A package in a local file: `otad install FILE`, from a USB stick or a bench."""

import os
import stat
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

from otad.errors import Code, UpdateError
from otad.transfer.source import Begin, Piece, Waiting

PIECE_BYTES = 1 << 20


class FileSource:
    """Reads the file once, in order. A file that is gone or too short ends the try: nobody waits for a USB stick."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def pieces(self, begin: Begin, waits: Callable[[Waiting], None]) -> AsyncGenerator[Piece, None]:
        import aiofiles  # noqa: PLC0415  # the idle daemon does without

        try:
            # O_NONBLOCK: opening a FIFO must not wait for its other end; on a regular file it means nothing.
            async with aiofiles.open(
                self._path, "rb", buffering=0, opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK)
            ) as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    raise UpdateError(Code.CONTENT, f"{self._path}: not a regular file")
                if status.st_size != begin.size:
                    raise UpdateError(
                        Code.CONTENT, f"{self._path}: has {status.st_size} bytes, the notice says {begin.size}"
                    )
                await file.seek(begin.offset)
                offset, first = begin.offset, True
                while offset < begin.size:
                    content = await file.read(min(PIECE_BYTES, begin.size - offset))
                    if not content:
                        raise UpdateError(Code.CONTENT, f"{self._path}: ends at {offset} of {begin.size} bytes")
                    offset += len(content)
                    yield Piece(content, brought=0, first=first)
                    first = False
        except OSError as error:
            raise UpdateError(Code.MEDIUM, f"{self._path}: {error.strerror or error}") from error
