# SPDX-License-Identifier: Apache-2.0
"""Several ways to the same bytes: when one is blocked, the package goes on over another from where it is.

The first way is preferred; one that works is stayed with, for this run of the deployment. A way is left when its source
says NoWay (three attempts that brought nothing) or fails for good (its server has lost the package), and the others are
tried in turn, each with fresh patience, so that none is starved. When all have been tried in vain there is a pause,
ever longer, and all are tried again. Only when each of them has been answered by a no, the package has failed.

A way is tried while the newest notice offers it. Before the last one is given up the platform is asked what it offers
now.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from otad.errors import Code, UpdateError
from otad.transfer.source import FLOWING_BYTES, Begin, NoWay, Piece, Source, Waiting, backoff_s

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Way:
    """A source, by a name for people, and whether the newest notice offers it. Its source may say NoWay."""

    name: str
    source: Source
    offered: Callable[[], bool]


class Ways:
    """One package by several ways, the preferred one first. `ask` asks the platform for the newest notice."""

    def __init__(self, ways: Sequence[Way], ask: Callable[[], Awaitable[object]], backoff_max_s: float) -> None:
        self._ways, self._ask, self._backoff_max_s = ways, ask, backoff_max_s
        self._works = ways[0]  # the last one that brought something
        self._said = ways[0]  # the one that the log names

    async def pieces(self, begin: Begin, waits: Callable[[Waiting], None]) -> AsyncGenerator[Piece, None]:
        """See `Source.pieces`."""
        failed: dict[str, NoWay | UpdateError] = {}  # since bytes flowed, and since the last pause
        rounds = 0
        while begin.offset < begin.size:
            way = await self._choose(failed)
            if way is None:
                await self._pause(failed, rounds, waits)
                failed, rounds = {}, rounds + 1
                continue
            begun_at, why = begin.offset, _why(way, self._ways, failed)
            try:
                async with contextlib.aclosing(way.source.pieces(begin, _told(waits, why))) as pieces:
                    async for piece in pieces:
                        begin = replace(begin, offset=begin.offset + len(piece.content))
                        if piece.etag:
                            begin = replace(begin, etag=piece.etag, etag_url=piece.etag_url)
                        if begin.offset - begun_at >= FLOWING_BYTES or begin.offset == begin.size:
                            self._flows(way, why, begun_at)
                            failed, rounds = {}, 0
                        yield piece
            except (NoWay, UpdateError) as trouble:
                failed[way.name] = trouble

    async def _choose(self, failed: dict[str, NoWay | UpdateError]) -> Way | None:
        """The next way to try; None when all have failed."""
        if (way := self._untried(failed)) is not None:
            return way
        await self._ask()
        if (way := self._untried(failed)) is None and not failed:
            names = " nor ".join(way.name for way in self._ways)
            raise UpdateError(Code.UNSUPPORTED, f"the notice offers the package neither over {names}")
        return way

    def _untried(self, failed: dict[str, NoWay | UpdateError]) -> Way | None:
        ways = sorted(self._ways, key=lambda way: way is not self._works)
        return next((way for way in ways if way.name not in failed and way.offered()), None)

    def _flows(self, way: Way, why: str, offset: int) -> None:
        self._works = way
        if self._said is not way:
            log.info("the package comes %s from byte %d on", why or f"over {way.name}", offset)
            self._said = way

    async def _pause(
        self, failed: dict[str, NoWay | UpdateError], rounds: int, waits: Callable[[Waiting], None]
    ) -> None:
        """Before all are tried again. UpdateError if each of them has been answered by a no."""
        final = [trouble for trouble in failed.values() if isinstance(trouble, UpdateError)]
        if final and all(isinstance(trouble, UpdateError) or trouble.refused for trouble in failed.values()):
            raise final[0]
        delay_s = backoff_s(rounds, self._backoff_max_s)
        waits(Waiting("; ".join(f"over {name}: {trouble}" for name, trouble in failed.items()), time.time() + delay_s))
        await asyncio.sleep(delay_s)


def _why(way: Way, ways: Sequence[Way], failed: dict[str, NoWay | UpdateError]) -> str:
    """Which way it is and why; "" for the preferred one, as long as nothing is said against it."""
    if failed:
        reasons = "; ".join(f"{name}: {trouble}" for name, trouble in failed.items())
        return f"over {way.name} (not over {reasons})"
    if way is ways[0]:
        return ""
    return f"over {way.name}" if ways[0].offered() else f"over {way.name} (nothing else is offered)"


def _told(waits: Callable[[Waiting], None], why: str) -> Callable[[Waiting], None]:
    return (lambda waiting: waits(replace(waiting, reason=f"{waiting.reason}, {why}"))) if why else waits
