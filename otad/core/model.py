# SPDX-License-Identifier: Apache-2.0
"""What otad remembers: one frozen `State`, saved before anything acts on it.

The state is a hint; the boot loader's store and the medium are the truth. Each start therefore feeds what the machine
shows (`events.Started`) to `step` before anything else happens. All values here are right by construction: they were
parsed at the edge, by `otad.cloud`, `otad.config` or `core.codec`.

Times are whole seconds since 1970 by the gateway's clock. They may be wrong; nothing but history and the pause after a
rollback for lack of a session depends on them.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import NewType

from otad.errors import Failure

ModuleName = NewType("ModuleName", str)
Slot = NewType("Slot", str)
BootId = NewType("BootId", str)
DeploymentId = NewType("DeploymentId", str)

DEFAULT_MODULE = ModuleName("default")
NO_SLOT = Slot("")
"""Stands for both slots of a deployment in place: of a module that is switched while the system runs."""
DESC_CHARACTERS = 128
"""The platform takes no longer text with a step."""


class DigestMethod(StrEnum):
    MD5 = "md5"
    SHA256 = "sha256"


@dataclass(frozen=True, slots=True)
class Digest:
    """A digest of a whole package; `hex` is lower case."""

    method: DigestMethod
    hex: str


@dataclass(frozen=True, slots=True)
class Identity:
    """What makes two offers the same package. Never the URL: that one expires and is signed anew each time.

    `digest` is None, and `size` 0, only for a system found on trial without any memory of how it came there.
    """

    module: ModuleName
    version: str
    size: int
    digest: Digest | None

    @property
    def key(self) -> str:
        """The identity as one string, for the list of refusals."""
        digest = f"{self.digest.method}:{self.digest.hex}" if self.digest else "-"
        return f"{self.module}|{self.version}|{self.size}|{digest}"


class Origin(StrEnum):
    """Who ordered a deployment: it decides what the platform is told."""

    PLATFORM = "platform"
    LOCAL = "local"  # `otad install`: the platform only hears the version in the end
    RECOVERED = "recovered"  # found on trial without memory, or rolled back by hand


@dataclass(frozen=True, slots=True)
class Artifact:
    """One file of a package. `url` may carry a signature: never log it whole."""

    name: str  # "" for the only one
    size: int
    digest: Digest
    url: str


@dataclass(frozen=True, slots=True)
class Stream:
    """The numbers under which the platform gives the package in blocks over MQTT. New ones come with each message."""

    stream_id: int
    file_id: int


@dataclass(frozen=True, slots=True)
class Tag:
    """A word the operator gave the package (`extData`). Never policy: nothing that otad decides depends on it."""

    key: str
    value: str


@dataclass(frozen=True, slots=True)
class Notice:
    """The platform's order, or `otad install`'s, as parsed. `url` may carry a signature: never log it whole.

    A package of several files is one row of bytes, in the order of `files`: its identity's size is the sum of theirs
    and its digest stands for all of theirs (`cloud.wire` says how). `url` is "" then, and also where the package comes
    over MQTT only.
    """

    identity: Identity
    url: str
    origin: Origin = Origin.PLATFORM
    files: tuple[Artifact, ...] = ()
    stream: Stream | None = None
    tags: tuple[Tag, ...] = ()

    @property
    def artifacts(self) -> tuple[Artifact, ...]:
        """The files of this package, one or several. A notice without a digest has none."""
        if self.files or self.identity.digest is None:
            return self.files
        return (Artifact("", self.identity.size, self.identity.digest, self.url),)


class Phase(StrEnum):
    DOWNLOADING = "downloading"
    INSTALLING = "installing"
    ACTIVATING = "activating"
    REBOOTING = "rebooting"
    CONFIRMING = "confirming"
    ROLLING_BACK = "rolling_back"


class Outcome(StrEnum):
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"
    SUPERSEDED = "superseded"
    ROLLED_BACK = "rolled_back"
    REFUSED = "refused"


class PlaceKind(StrEnum):
    """Where an artifact's bytes land."""

    SLOT = "slot"
    STAGING = "staging"


@dataclass(frozen=True, slots=True)
class Deployment:
    """One notice being carried out."""

    id: DeploymentId
    notice: Notice
    phase: Phase
    old: Slot
    target: Slot
    began: int
    tries_allowed: int
    run: int = 1  # counts the works of this deployment, so that results of an earlier one are known as late
    tries: int = 0  # digest or install failures so far
    place: PlaceKind | None = None  # None until the first bytes have told what the package is
    checkpoint: int = 0  # bytes of the place known durable
    peak: int = 0  # the highest checkpoint ever: progress is never taken back
    etag: str = ""  # the server's name for the bytes before the checkpoint
    etag_url: str = ""  # scheme, host and path that gave it: an ETag means nothing elsewhere
    joined: bool = False  # the bytes before the checkpoint come from more than one response
    repeated: bool = False  # a digest mismatch of joined bytes has been repeated from byte 0
    fetched: int = 0  # bytes brought over the network, for history
    resumed: int = 0  # times the transfer went on from what was there, for status and history
    idle_starts: int = 0  # resumes: starts since the last new checkpoint
    switched: bool = False  # the boot loader may hold the target as primary
    activations: int = 0  # switches that a boot may have tried; counted before the switch
    untried: bool = False  # there was no boot since the last of them
    on_trial: bool = False  # the target has been seen booted, not yet confirmed
    online_before: bool = False  # the old system had a session in the hour before the reboot
    by_hand: bool = False  # `otad mark-good` stands for the health checks
    reason: Failure | None = None  # the last failure, and why we are rolling back

    @property
    def in_place(self) -> bool:
        """The module is none of the slots: neither boot loader nor reboot is part of this."""
        return self.target == NO_SLOT


@dataclass(frozen=True, slots=True)
class SlotView:
    """What the boot loader holds of a slot.

    `good`: it may be chosen; False only after mark-bad. `confirmed`: marked good since it was last marked bad; None
    where the boot loader's store cannot tell.
    """

    name: Slot
    good: bool
    attempts_left: int
    confirmed: bool | None


@dataclass(frozen=True, slots=True)
class Board:
    """What the machine shows, read at each start. `booted` is None in a rescue or network root."""

    booted: Slot | None
    primary: Slot | None
    slots: tuple[SlotView, ...]

    def view(self, slot: Slot) -> SlotView | None:
        return next((view for view in self.slots if view.name == slot), None)

    def other(self, slot: Slot) -> Slot | None:
        """The first slot that is not this one."""
        return next((view.name for view in self.slots if view.name != slot), None)


@dataclass(frozen=True, slots=True)
class Step:
    """A step we owe the platform: 100, or -1 to -4 with a reason. `identity` is None for a malformed notice."""

    serial: int
    module: ModuleName
    step: int
    desc: str
    identity: Identity | None


@dataclass(frozen=True, slots=True)
class Inform:
    """A version we owe the platform. Which one is read from evidence when it is sent, never remembered."""

    serial: int
    module: ModuleName


Report = Step | Inform


@dataclass(frozen=True, slots=True)
class Refusal:
    """A package that is not tried again until `otad retry`; `desc` is repeated word for word when it is offered."""

    key: str
    module: ModuleName
    version: str
    step: int
    desc: str
    failure: Failure
    at: int
    answered: str = ""  # the last offer that was answered: a duplicate of it is not
    times: int = 1  # rollbacks for lack of a session so far
    lapses: int | None = None  # when it may be tried again; None: never by itself


@dataclass(frozen=True, slots=True)
class Ended:
    """A deployment's line of history."""

    id: DeploymentId
    module: ModuleName
    version: str
    origin: Origin
    outcome: Outcome
    failure: Failure | None
    began: int
    ended: int
    bytes: int
    resumed: int
    tries: int


@dataclass(frozen=True, slots=True)
class State:
    """All that is remembered. A fresh one (`known` False) means: no memory, ask the machine."""

    known: bool = False
    serial: int = 0  # the last number given to a deployment or a report
    boot_id: BootId | None = None
    board: Board | None = None
    settled: BootId | None = None  # the boot whose idle work is done
    deployment: Deployment | None = None
    outbox: tuple[Report, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    tainted: tuple[Slot, ...] = ()  # slots that hold a refused package: never marked good by idle work
    honoured: tuple[str, ...] = ()  # pushed offers that began a deployment: a late duplicate begins none
    unfiled: tuple[Ended, ...] = ()  # ended, and not yet in the history file
    last: Ended | None = None

    def refusal(self, key: str) -> Refusal | None:
        return next((refusal for refusal in self.refusals if refusal.key == key), None)
