# SPDX-License-Identifier: Apache-2.0
"""Where the bytes of a package come from: HTTP today, a local file, blocks over MQTT tomorrow.

A source hides the network: it reconnects, backs off and asks for fresh URLs by itself, and never fails for lack of a
network. What it cannot hide is an object that changed on the server: then everything fetched so far is worth nothing,
and it raises `StartOver`.
"""

import random
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Protocol

BACKOFF_FIRST_S = 1.0


class StartOver(Exception):  # noqa: N818  # an order, not a fault
    """The bytes so far are of another object: forget them and ask for pieces from byte 0. Says why."""


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


def backoff_s(attempt: int, longest_s: float) -> float:
    """Seconds to wait before this attempt (0, 1, 2 ...): 1, 2, 4 ... at most `longest_s`, less up to half of it."""
    return min(longest_s, BACKOFF_FIRST_S * 2.0 ** min(attempt, 32)) * random.uniform(0.5, 1.0)  # noqa: S311
