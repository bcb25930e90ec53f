# SPDX-License-Identifier: Apache-2.0
"""A package of several files as one row of bytes: a source for each file, one after the other."""

import contextlib
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import replace

from otad.transfer.source import Begin, Piece, Source, Waiting


class Row:
    """The files' sources in the order of the notice, each with the size of its file.

    What is remembered of an ETag belongs to the file that it came with: `etag_url` carries the file's number, since two
    files may differ in the query part of their URLs alone. StartOver of one file is StartOver of the package.
    """

    def __init__(self, files: Sequence[tuple[int, Source]]) -> None:
        self._files = files

    async def pieces(self, begin: Begin, waits: Callable[[Waiting], None]) -> AsyncGenerator[Piece, None]:
        start = 0
        for number, (size, source) in enumerate(self._files):
            offset, mark = max(0, begin.offset - start), f"#{number}"
            start += size
            if offset >= size:
                continue
            inner = Begin(offset, size)
            if begin.etag_url.endswith(mark):
                inner = replace(inner, etag=begin.etag, etag_url=begin.etag_url.removesuffix(mark))
            async with contextlib.aclosing(source.pieces(inner, waits)) as pieces:
                async for piece in pieces:
                    # The first bytes of a file join nothing: they are as good as those of a package of one file.
                    etag_url = f"{piece.etag_url}{mark}" if piece.etag else ""
                    yield replace(piece, first=piece.first and offset > 0, etag_url=etag_url)
                    offset += len(piece.content)
