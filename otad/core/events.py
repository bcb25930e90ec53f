# SPDX-License-Identifier: Apache-2.0
"""What can happen, as values. `at` is the gateway's clock in seconds; the core never reads a clock itself."""

from dataclasses import dataclass

from otad.core.model import Board, BootId, DeploymentId, ModuleName, Notice, PlaceKind
from otad.core.work import Work
from otad.errors import Failure


@dataclass(frozen=True, slots=True)
class Started:
    """The daemon started, on this boot, on a machine that shows this. `version`: evidence of the slots' module."""

    boot_id: BootId
    board: Board
    module: ModuleName
    version: str | None
    at: int


PUSHED = "push:"
"""So begins the `offer` of a message that nobody asked for. Only that comes late: an answer says what holds now."""


@dataclass(frozen=True, slots=True)
class Noticed:
    """A package was offered. Equal `offer` values are the same message heard twice."""

    notice: Notice
    offer: str
    running: str | None  # the module's version by evidence; None where it cannot be read
    tries_allowed: int
    at: int
    in_place: bool = False  # the module is not made of slots


@dataclass(frozen=True, slots=True)
class Rejected:
    """An offer that cannot be carried out as it stands: malformed, or beyond what otad can do.

    `key` is the same for the same offer, with or without a fresh URL.
    """

    key: str
    module: ModuleName
    version: str
    failure: Failure
    offer: str
    at: int


@dataclass(frozen=True, slots=True)
class Checkpointed:
    """`bytes` of the place are durable. `fetched` and `resumed` count since the last checkpoint."""

    work: Work
    place: PlaceKind
    bytes: int
    etag: str
    etag_url: str
    joined: bool
    fetched: int
    resumed: int


@dataclass(frozen=True, slots=True)
class Finished:
    """A work is done. `online`: the platform was reached within the last hour; kept at the switch."""

    work: Work
    at: int
    online: bool = False


@dataclass(frozen=True, slots=True)
class Failed:
    work: Work
    failure: Failure
    at: int


@dataclass(frozen=True, slots=True)
class CancelRequested:
    at: int


@dataclass(frozen=True, slots=True)
class RetryRequested:
    at: int


@dataclass(frozen=True, slots=True)
class RebootRequested:
    at: int


@dataclass(frozen=True, slots=True)
class MarkGoodRequested:
    at: int


@dataclass(frozen=True, slots=True)
class RollBackRequested:
    """Go back to the other slot. `board` as it is now; `module` and `version` are what is booted, by evidence."""

    board: Board
    module: ModuleName
    version: str | None
    at: int


@dataclass(frozen=True, slots=True)
class Delivered:
    """The broker has acknowledged this report, or it was dropped because it no longer has an addressee."""

    serial: int


@dataclass(frozen=True, slots=True)
class Filed:
    """This deployment's line is durable in the history file."""

    id: DeploymentId


Request = CancelRequested | RetryRequested | RebootRequested | MarkGoodRequested | RollBackRequested
Event = Started | Noticed | Rejected | Checkpointed | Finished | Failed | Request | Delivered | Filed
