# SPDX-License-Identifier: Apache-2.0
"""Where the bytes of a package come from: HTTP, blocks over MQTT, a local file; and what may stand between them and
the pipeline: several ways to the same bytes (`ways`), several files in a row (`row`).

A source hides the network: it reconnects, backs off and asks for fresh URLs by itself, and never fails for lack of a
network. What it cannot hide is an object that changed on the server: then everything fetched so far is worth nothing,
and it raises `StartOver`.
"""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

BACKOFF_FIRST_S = 1.0
PATIENCE = 3
"""Attempts in a row without a byte to speak of, before a source looks whether there is another way."""
FLOWING_BYTES = 4096
"""What brought this much ends a series of failures; one byte per connection does not."""
MISMATCHES_MAX = 2
"""Answers per try that are of another object, or break a rule, before the server is taken at its word."""

Another = Callable[[], Awaitable[bool]]
"""Whether the package may come another way; looked for at the platform if need be."""


class StartOver(Exception):  # noqa: N818  # an order, not a fault
    """The bytes so far are of another object: forget them and ask for pieces from byte 0. Says why."""


class NoWay(Exception):  # noqa: N818  # an order as well
    """Nothing comes this way now, and there is another: instead of a long wait. Only of a source asked to say so.

    `refused`: the other end has answered, and says no.
    """

    def __init__(self, reason: str, *, refused: bool = False) -> None:
        super().__init__(reason)
        self.refused = refused


@dataclass(frozen=True, slots=True)
class Begin:
    """Where a source goes on, and what is known of the bytes before that."""

    offset: int
    size: int  # of the whole package
    etag: str = ""
    etag_url: str = ""


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes that follow those of the piece before."""

    content: bytes  # may be empty: brought, and known already
    brought: int  # bytes that came over the network for it
    first: bool = False  # of a response: what follows joins what came before
    etag: str = ""  # the server's name for the object, and who gave it
    etag_url: str = ""


@dataclass(frozen=True, slots=True)
class Waiting:
    """What a source waits for, in words, and until when (time.time())."""

    reason: str
    until: float | None = None


class Source(Protocol):
    """One package's way in."""

    def pieces(self, begin: Begin, waits: Callable[[Waiting], None]) -> AsyncGenerator[Piece, None]:
        """The package's bytes from `begin.offset` on, exactly up to `begin.size`.

        Raises StartOver, or UpdateError for what waiting cannot cure. Close it (`contextlib.aclosing`) when done.
        """
        ...


class Rate:
    """Keeps to so many bytes per second on the average; None: as fast as it goes."""

    def __init__(self, bytes_per_s: int | None) -> None:
        self._bytes_per_s = bytes_per_s
        self._free_at = 0.0  # time.monotonic() from when the next bytes are let in

    async def keep(self, count: int) -> None:
        """Wait for as long as these bytes, which have come, are to take."""
        if self._bytes_per_s:
            now = time.monotonic()
            self._free_at = max(now, self._free_at) + count / self._bytes_per_s
            await asyncio.sleep(self._free_at - now)


def backoff_s(attempt: int, longest_s: float) -> float:
    """Seconds to wait before this attempt (0, 1, 2 ...): 1, 2, 4 ... at most `longest_s`, less up to half of it."""
    return min(longest_s, BACKOFF_FIRST_S * 2.0 ** min(attempt, 32)) * random.uniform(0.5, 1.0)  # noqa: S311
