# SPDX-License-Identifier: Apache-2.0
"""What otad needs of a platform. Aliyun's is `session.Session`; another one must be able to fit behind this."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from otad.core.model import ModuleName, Notice, Stream
from otad.errors import Failure


class OfflineError(Exception):
    """There is no session, or it ended before the platform acknowledged."""


@dataclass(frozen=True, slots=True)
class Names:
    """The two names that make a device one."""

    product_key: str
    device_name: str

    def __str__(self) -> str:
        return f"{self.product_key}/{self.device_name}"


BLOCK_BYTES_MAX = 128 << 10
"""No platform is asked for a larger block."""
BLOCKS_BYTES_MAX = 16 << 20
"""Nor does it give a larger package in blocks."""


class BlockError(Exception):
    """No usable block came: none in time, a damaged one, or the platform refuses it. Says why; asking again may help.

    `refused`: the platform has answered, and says no. The numbers may be out of date: a fresh notice brings new ones.
    """

    def __init__(self, reason: str, *, refused: bool = False) -> None:
        super().__init__(reason)
        self.refused = refused


@dataclass(frozen=True, slots=True)
class Block:
    """Bytes of a file, from the offset that was asked for. `total` is the length of the whole, where it is said."""

    content: bytes
    total: int | None


@dataclass(frozen=True, slots=True)
class Offered:
    """A package is offered. Equal `offer` values are the same message heard twice."""

    notice: Notice
    offer: str


@dataclass(frozen=True, slots=True)
class Unusable:
    """An offer that cannot be carried out as it stands, and why.

    `key` is the same for the same offer with or without a fresh URL. `version` is "" where the offer has none.
    """

    key: str
    module: ModuleName
    version: str
    failure: Failure
    offer: str


@dataclass(frozen=True, slots=True)
class Nothing:
    """Nothing is offered. It does not mean that a deployment under way was canceled."""

    module: ModuleName


Answer = Offered | Unusable | Nothing


class SessionState(StrEnum):
    CONNECTING = "connecting"
    ONLINE = "online"
    OFFLINE = "offline"  # waiting for the next attempt; `detail` says why and when
    REFUSED = "refused"  # the platform does not accept the credentials
    OFF = "off"  # there is nothing to connect to: see `detail`


@dataclass(frozen=True, slots=True)
class SessionView:
    """The session as status shows it; `since` in seconds since 1970."""

    state: SessionState
    since: int
    detail: str


class Cloud(Protocol):
    """A session with a platform. What it hears, asked or unasked, goes to the `heard` callback it was made with."""

    @property
    def view(self) -> SessionView: ...

    @property
    def names(self) -> Names | None:
        """Whose session it is, or was last; None before the first. A certificate's names are known only then."""
        ...

    @property
    def connection(self) -> int:
        """Counts the connections of this process; 0 before the first."""
        ...

    @property
    def online_at(self) -> float | None:
        """time.monotonic() of the last moment the session was up; None if never in this process."""
        ...

    @property
    def unanswered(self) -> str:
        """What the platform said to the last `ask` that ended, instead of an answer; "" where it gave one, or nothing.

        It is that of one's own `ask` until one waits again.
        """
        ...

    async def run(self) -> None:
        """Hold the session for ever: connect, listen, reconnect with back-off. Ends only by being canceled."""
        ...

    def hurry(self) -> None:
        """Somebody waits: make the next attempt as soon as the platform's limits allow, not when it is due."""
        ...

    async def connected(self, after: int) -> int:
        """Wait until online with a connection number above `after`; that number."""
        ...

    async def ask(self, module: ModuleName, timeout_s: float = 10) -> Answer | None:
        """Ask what is offered for this module. None: no answer in time, or see `unanswered`. Raises OfflineError."""
        ...

    async def block(self, stream: Stream, offset: int, size: int) -> Block:
        """At most `size` bytes (256 to 131072; fewer at the end) of a package over the session, one block at a time.

        Raises OfflineError, BlockError.
        """
        ...

    async def inform(self, module: ModuleName, version: str) -> None:
        """Tell the version; returns when acknowledged. Raises OfflineError."""
        ...

    async def step(self, module: ModuleName, step: int, desc: str) -> None:
        """Tell a step; returns when acknowledged. Raises OfflineError."""
        ...
