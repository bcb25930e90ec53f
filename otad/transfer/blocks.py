# SPDX-License-Identifier: Apache-2.0
"""A package in blocks over the session with the platform: for networks that let MQTT through and nothing else.

One block is in flight at a time. Whether an answer belongs to the question, whether it is whole, and how soon the next
may be asked for is the session's affair: what comes from there are bytes from the offset that was asked for, or an
error. What is decided here:

- How much is asked for at once. A block that fails is asked for again at half the size, and after some that came well
  the size doubles; the more often that was in vain, the more must come well first. So a platform, or a link, that does
  not carry large blocks costs a few of them and no more.
- No session, no block in time, a damaged one: back off and go on, for ever; a new session is not slept through.
- The platform refuses: its numbers for the package may be out of date. It is asked for a fresh notice; new numbers are
  tried at once, and whatever follows after a pause.
- Another total than the notice's: the bytes so far are of another object. StartOver, at most twice, as over HTTP.
- Where the package may come another way, three attempts in a row that brought nothing are enough: NoWay.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable

from otad.cloud.cloud import BLOCK_BYTES_MAX, Block, BlockError, OfflineError
from otad.config import DownloadSettings
from otad.errors import Code, UpdateError
from otad.transfer.source import (
    MISMATCHES_MAX,
    PATIENCE,
    Another,
    Begin,
    NoWay,
    Piece,
    Rate,
    StartOver,
    Waiting,
    backoff_s,
)
from otad.units import format_duration

FIRST_BYTES = 32 << 10
LEAST_BYTES = 4 << 10
WELL_BLOCKS = 4
"""So many must come well before a larger one is asked for; twice as many after a failure, half as many once it held."""
WELL_BLOCKS_MAX = 64

log = logging.getLogger(__name__)


class BlockSource:
    """One package over the session with the platform, for one try.

    `fetch` gives the bytes from an offset on, at most so many; it raises OfflineError or BlockError. `fresh` asks for a
    fresh notice, and says whether its numbers are new; `fetch` uses them from then on. `online` returns when there is a
    new session. `another`: see `source.NoWay`.
    """

    def __init__(
        self,
        fetch: Callable[[int, int], Awaitable[Block]],
        fresh: Callable[[], Awaitable[bool]],
        limits: DownloadSettings,
        *,
        online: Callable[[], Awaitable[object]] | None = None,
        another: Another | None = None,
    ) -> None:
        self._fetch, self._fresh, self._limits = fetch, fresh, limits
        self._online, self._another = online, another
        self._rate = Rate(limits.rate_limit)
        self._size = FIRST_BYTES
        self._well, self._well_blocks = 0, WELL_BLOCKS  # blocks that came well, and how many of them let the next grow
        self._grown = True  # up to this size, not down to it
        self._connected = True  # as far as is known; a failure without a session says nothing of the size
        self._attempt = 0  # consecutive ones that brought nothing
        self._refused = False  # and a fresh notice has been asked for since
        self._troubled = False  # the log says so, and has still to say that it is over
        self._mismatches = 0
        self._waits: Callable[[Waiting], None] = lambda _: None

    async def pieces(self, begin: Begin, waits: Callable[[Waiting], None]) -> AsyncGenerator[Piece, None]:
        """See `Source.pieces`. Fails only for what waiting cannot cure."""
        self._waits, self._attempt = waits, 0
        offset, first = begin.offset, True
        while offset < begin.size:
            if first:
                waits(Waiting("the platform to send a block"))
            try:
                block = await self._block(offset, begin.size - offset)
            except OfflineError as trouble:
                if self._connected:
                    self._shrink()
                self._connected = await self._pause(f"no session with the platform: {trouble}", until=self._online)
                first = True
            except BlockError as trouble:
                self._shrink()
                await (self._renew if trouble.refused else self._pause)(f"the block at byte {offset}: {trouble}")
                first = True
            else:
                if block.total not in (None, begin.size):
                    await self._start_over(f"the platform's file has {block.total} bytes, the notice says {begin.size}")
                self._came_well(offset)
                offset += len(block.content)
                await self._rate.keep(len(block.content))
                yield Piece(block.content, len(block.content), first)
                first = False

    async def _block(self, offset: int, left: int) -> Block:
        """The next block; with a rate limit no more than comes in a second, or the least."""
        rate = self._limits.rate_limit
        size = min(self._size, max(rate, LEAST_BYTES)) if rate else self._size
        block = await self._fetch(offset, min(size, left))
        if not 1 <= len(block.content) <= min(size, left):
            raise BlockError(f"has {len(block.content)} bytes, {min(size, left)} were asked for")
        return block

    # ------------------------------------------------------------------------------------------ how much at once

    def _shrink(self) -> None:
        self._size, self._well, self._grown = max(LEAST_BYTES, self._size // 2), 0, False
        if self._attempt == 0:
            self._well_blocks = min(WELL_BLOCKS_MAX, 2 * self._well_blocks)

    def _came_well(self, offset: int) -> None:
        if self._troubled:
            log.info("blocks over MQTT: goes on after byte %d", offset)
        self._attempt, self._refused, self._troubled, self._connected = 0, False, False, True
        self._well += 1
        if self._well >= self._well_blocks and self._size < BLOCK_BYTES_MAX:
            if self._grown:
                self._well_blocks = max(WELL_BLOCKS, self._well_blocks // 2)
            self._size, self._well, self._grown = 2 * self._size, 0, True

    # ------------------------------------------------------------------------------------------ and if there is none

    async def _renew(self, reason: str) -> None:
        again, self._refused = self._refused, True
        if not again:
            log.info("asked for a fresh notice: %s", reason)
            self._troubled = True
        self._waits(Waiting(f"a fresh notice: {reason}"))
        if not await self._fresh() or again:
            await self._pause(reason, refused=True)

    async def _start_over(self, reason: str) -> None:
        self._mismatches += 1
        if self._mismatches > MISMATCHES_MAX:
            raise UpdateError(Code.CONTENT, reason)
        await self._renew(reason)
        raise StartOver(reason)

    async def _pause(
        self, reason: str, *, refused: bool = False, until: Callable[[], Awaitable[object]] | None = None
    ) -> bool:
        """Wait before the next attempt; True if `until` has ended the wait."""
        delay_s = backoff_s(self._attempt, self._limits.backoff_max_s)
        if not self._troubled:
            log.warning("%s; again in %s", reason, format_duration(delay_s))
            self._troubled = True
        self._attempt += 1
        if self._attempt >= PATIENCE and self._another is not None and await self._another():
            raise NoWay(reason, refused=refused)
        self._waits(Waiting(reason, time.time() + delay_s))
        if until is None:
            await asyncio.sleep(delay_s)
            return False
        try:
            async with asyncio.timeout(delay_s):
                await until()
        except TimeoutError:
            return False
        return True
