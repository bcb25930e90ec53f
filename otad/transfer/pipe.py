# SPDX-License-Identifier: Apache-2.0
"""The bounded queue between fetch and write: a few page-aligned buffers that go round.

The fetcher fills the current buffer; a full one goes to the writer and comes back. So memory is flat, and whoever is
faster waits. Buffers end on multiples of their own length within the package, so that all writes are aligned but those
next to a checkpoint made by time. It belongs to one event loop; there is nothing to lock, because nobody waits in the
middle of filling.
"""

import asyncio
from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Chunk:
    """Bytes of the package at `offset`; `buffer` goes back into the pipe when they are written."""

    offset: int
    content: memoryview
    buffer: memoryview


class Pipe:
    """The package's bytes from `offset` on, in order."""

    def __init__(self, offset: int, buffers: list[memoryview]) -> None:
        self._length = len(buffers[0])
        self._free = deque(buffers)
        self._full: deque[Chunk] = deque()
        self._current: memoryview | None = None
        self._begin = offset  # of what is in the current buffer
        self._filled = 0
        self._changed = asyncio.Event()

    async def put(self, content: bytes) -> None:
        """Copy `content` in, waiting for free buffers."""
        rest = memoryview(content)
        while rest:
            if self._current is None:
                while not self._free:
                    await self._change()
                self._current = self._free.popleft()
            room = self._length - self._begin % self._length
            part = rest[: room - self._filled]
            self._current[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            rest = rest[len(part) :]
            if self._filled == room:
                self.flush()
        self._changed.set()

    def flush(self) -> None:
        """Hand over what the current buffer holds, full or not."""
        if self._current is not None and self._filled:
            self._full.append(Chunk(self._begin, self._current[: self._filled], self._current))
            self._begin += self._filled
            self._current, self._filled = None, 0
            self._changed.set()

    async def head(self, count: int) -> bytes:
        """The first `count` bytes, which stay in the pipe. Ask before the first take, and for no more than a buffer."""
        while not self._full and self._filled < count:
            await self._change()
        view = self._full[0].content if self._full else self._current
        return bytes(view[:count]) if view is not None else b""

    async def take(self, timeout_s: float) -> Chunk | None:
        """The next full buffer; after `timeout_s` what there is of it, or None if there is nothing."""
        try:
            async with asyncio.timeout(timeout_s):
                while not self._full:
                    await self._change()
        except TimeoutError:
            self.flush()
        return self._full.popleft() if self._full else None

    def give_back(self, chunk: Chunk) -> None:
        self._free.append(chunk.buffer)
        self._changed.set()

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()
