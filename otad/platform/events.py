# SPDX-License-Identifier: Apache-2.0
"""What happened at the platform, as values: for timelines, for tests, for the log of `otad platform serve`."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar, overload

from otad.platform.credentials import Identity
from otad.platform.jobs import DEFAULT_MODULE, JobState


@dataclass(frozen=True, slots=True)
class Connected:
    at: float
    device: Identity

    def __str__(self) -> str:
        return f"{self.device}: connected"


@dataclass(frozen=True, slots=True)
class Disconnected:
    at: float
    device: Identity
    why: str

    def __str__(self) -> str:
        return f"{self.device}: disconnected: {self.why}"


@dataclass(frozen=True, slots=True)
class Refused:
    """A CONNECT answered with `code`, or (code 0) a message that was dropped."""

    at: float
    who: str
    code: int
    why: str

    def __str__(self) -> str:
        return f"{self.who}: refused{f' with {self.code}' if self.code else ''}: {self.why}"


@dataclass(frozen=True, slots=True)
class Informed:
    at: float
    device: Identity
    module: str
    version: str

    def __str__(self) -> str:
        return f"{self.device}: informs version {self.version}{_of(self.module)}"


@dataclass(frozen=True, slots=True)
class Progressed:
    at: float
    device: Identity
    module: str
    step: int
    desc: str

    def __str__(self) -> str:
        return f"{self.device}: step {self.step}{_of(self.module)}{f': {self.desc}' if self.desc else ''}"


@dataclass(frozen=True, slots=True)
class Asked:
    """`firmware/get`; `offered` is the version in the answer, or None."""

    at: float
    device: Identity
    module: str
    offered: str | None

    def __str__(self) -> str:
        return f"{self.device}: asks{_of(self.module)}, is offered {self.offered or 'nothing'}"


@dataclass(frozen=True, slots=True)
class Notified:
    """A notice was sent."""

    at: float
    device: Identity
    job: str
    module: str
    version: str

    def __str__(self) -> str:
        return f"{self.device}: is sent the notice of {self.version}{_of(self.module)}, job {self.job}"


@dataclass(frozen=True, slots=True)
class JobChanged:
    """A job is new (`was` is None) or has another state than before."""

    at: float
    device: Identity
    job: str
    module: str
    version: str
    was: JobState | None
    state: JobState
    reason: str | None

    def __str__(self) -> str:
        reason = f": {self.reason}" if self.reason else ""
        return f"{self.device}: job {self.job} ({self.version}{_of(self.module)}) is {self.state}{reason}"


@dataclass(frozen=True, slots=True)
class Served:
    """A request to the file server has ended, in whatever way."""

    at: float
    package: str
    version: str
    range: str | None
    status: int
    start: int
    sent: int
    whole: bool
    """Whether all that the answer promised was sent."""
    headers: dict[str, str]
    """The request's, names in lower case."""
    file: str = ""
    """Which of a package's several files it was about."""

    def __str__(self) -> str:
        name = f"{self.version}{f' {self.file}' if self.file else ''}"
        wanted = self.range or "the whole"
        end = "" if self.whole else ", cut short"
        return f"{name}: served {self.sent} bytes from {self.start} ({wanted}: {self.status}){end}"


@dataclass(frozen=True, slots=True)
class BlockServed:
    """A request for a block over MQTT was answered, or not (code 0)."""

    at: float
    device: Identity
    package: str
    """Empty where the request was for nothing that the device may have."""
    version: str
    start: int
    size: int
    """What was asked for, in bytes; what came is `sent`."""
    sent: int
    code: int

    def __str__(self) -> str:
        what = f"asks for {self.size} bytes from {self.start}{f' of {self.version}' if self.version else ''}"
        return f"{self.device}: {what}, is sent {self.sent} ({self.code or 'no answer'})"


@dataclass(frozen=True, slots=True)
class Registered:
    """A device got credentials: a secret, or (`way` regnwl) a client id and a token."""

    at: float
    device: Identity
    way: str
    """`register`, `regnwl` or `https`."""

    def __str__(self) -> str:
        return f"{self.device}: registered by {self.way}"


@dataclass(frozen=True, slots=True)
class TimeAsked:
    at: float
    device: Identity

    def __str__(self) -> str:
        return f"{self.device}: asks for the time"


@dataclass(frozen=True, slots=True)
class Misunderstood:
    """A message that made no sense, or on a topic that the stand-in does not know."""

    at: float
    device: Identity
    topic: str
    why: str

    def __str__(self) -> str:
        return f"{self.device}: message on {self.topic}: {self.why}"


Event = (
    Connected
    | Disconnected
    | Refused
    | Registered
    | Informed
    | Progressed
    | Asked
    | Notified
    | JobChanged
    | Served
    | BlockServed
    | TimeAsked
    | Misunderstood
)


E = TypeVar("E", bound=Event)


def as_json(event: Event) -> dict[str, Any]:
    """The event as a JSON object, with its kind as `event` and the device as text."""
    fields = asdict(event)
    if "device" in fields:
        fields["device"] = str(Identity(**fields["device"]))
    return {"event": type(event).__name__, **fields}


class EventLog(Sequence[Event]):
    """All events so far, oldest first, and those to come. Also wakes whoever waits for a condition."""

    def __init__(self, *, keep: int | None = None) -> None:
        self._events: list[Event] = []
        self._dropped = 0
        self._keep = keep
        self._stirred = asyncio.Event()

    def append(self, event: Event) -> None:
        self._events.append(event)
        if self._keep is not None and len(self._events) > 2 * self._keep:
            self._dropped += len(self._events) - self._keep
            del self._events[: -self._keep]
        self.stir()

    def stir(self) -> None:
        """Wake whoever waits: something has changed that is no event."""
        self._stirred.set()
        self._stirred = asyncio.Event()

    async def wait(self, condition: Callable[[], object], timeout: float | None) -> None:
        """Return once `condition()` is true; it is looked at after every change. Raises TimeoutError.

        The condition is cheap and has no effects: it is asked often.
        """
        try:
            async with asyncio.timeout(timeout):
                while not condition():
                    await self._stirred.wait()
        except TimeoutError:
            last = "; ".join(str(event) for event in self._events[-5:]) or "nothing has happened"
            raise TimeoutError(f"not so within {timeout:g} s. Last: {last}") from None

    def follow(self, *, from_start: bool = False) -> AsyncGenerator[Event, None]:
        """Every event from now on (or from the first one kept), without end."""
        return self._from(self._dropped if from_start else self._dropped + len(self._events))

    async def _from(self, at: int) -> AsyncGenerator[Event, None]:
        while True:
            at = max(at, self._dropped)
            while at < self._dropped + len(self._events):
                yield self._events[at - self._dropped]
                at += 1
            await self._stirred.wait()

    def of(self, kind: type[E]) -> list[E]:
        """The events of one kind."""
        return [event for event in self._events if isinstance(event, kind)]

    def __len__(self) -> int:
        return len(self._events)

    def __iter__(self) -> Iterator[Event]:
        return iter(tuple(self._events))

    @overload
    def __getitem__(self, index: int) -> Event: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Event]: ...
    def __getitem__(self, index: int | slice) -> Event | Sequence[Event]:
        return self._events[index]


def _of(module: str) -> str:
    return "" if module == DEFAULT_MODULE else f" of module {module}"
