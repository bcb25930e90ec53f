# SPDX-License-Identifier: Apache-2.0
"""A gateway in a few hundred lines, without files, threads or clock: what the core's promises are played against.

`World` plays `step` and `work_for` as the daemon does: save, act, report, in this order. Around it stand a medium, a
boot loader of either kind, and a platform with one job. Each thing that is durable or heard outside (an operation)
passes `World.operation`, where a test may let the power fail, the daemon die, the state file be lost, or somebody ask
for something. So every cut between save, act and result has a number.

The world itself objects (AssertionError) as soon as a promise is broken: a slot with unproven content is tried, the
booted slot is written, no slot boots, the platform hears of a success that is none, or nothing comes to rest.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Protocol, assert_never

from otad.core.events import (
    PUSHED,
    CancelRequested,
    Checkpointed,
    Delivered,
    Event,
    Failed,
    Filed,
    Finished,
    MarkGoodRequested,
    Noticed,
    RebootRequested,
    RetryRequested,
    RollBackRequested,
    Started,
)
from otad.core.model import (
    DEFAULT_MODULE,
    Board,
    BootId,
    Digest,
    DigestMethod,
    Ended,
    Identity,
    Inform,
    Notice,
    Origin,
    Outcome,
    Phase,
    PlaceKind,
    Slot,
    SlotView,
    State,
    Step,
)
from otad.core.step import step
from otad.core.work import Activate, Confirm, Download, Install, MarkGood, Reboot, RollBack, Work, work_for
from otad.errors import Code, Failure

A, B = Slot("a"), Slot("b")
ATTEMPTS = 3
PARTS = 2
"""A package has this many parts, each with its checkpoint."""
OPERATIONS_MAX = 1000


class Temper(StrEnum):
    """How a system behaves once it is written."""

    GOOD = "good"
    DEAD = "dead"  # does not come up
    CRASHES = "crashes"  # comes up, and resets before it is confirmed
    UNHEALTHY = "unhealthy"
    MISLABELED = "mislabeled"  # says another version than the notice
    MUTE = "mute"  # never reaches the platform


@dataclass(frozen=True, slots=True)
class System:
    version: str
    temper: Temper = Temper.GOOD

    @property
    def notice(self) -> Notice:
        digest = Digest(DigestMethod.SHA256, self.version.encode().hex())
        return Notice(Identity(DEFAULT_MODULE, self.version, PARTS, digest), f"https://x/{self.version}")


class Incident(StrEnum):
    """What may happen right before an operation."""

    POWER_CUT = "power cut"
    DEATH = "death"  # the daemon ends and is started again in the same boot
    AMNESIA = "amnesia"  # a power cut, and the state file is lost
    CANCEL = "cancel"
    RETRY = "retry"
    REBOOT = "reboot"
    MARK_GOOD = "mark good"
    ROLL_BACK = "roll back"
    SUPERSEDE = "supersede"
    ECHO = "echo"  # the first message that was pushed comes once more


class Interrupted(Exception):  # noqa: N818 - nothing went wrong in here
    """The daemon is gone; so is the boot, unless it only died."""

    def __init__(self, incident: Incident, into: Slot | None = None) -> None:
        self.incident = incident
        self.into = into


class WorkChanged(Exception):  # noqa: N818
    """The work under way is not wanted any more."""


@dataclass(slots=True)
class Entry:
    """What a boot loader's store holds of a slot."""

    good: bool = True
    attempts: int = ATTEMPTS
    confirmed: bool = True


class Loader(Protocol):
    """The rules of `otad.boot.control`, and `choose`: what happens when the board comes up."""

    tells_confirmed: bool
    primary: Slot
    entries: dict[Slot, Entry]

    def set_primary(self, slot: Slot) -> None: ...
    def mark_good(self, slot: Slot) -> None: ...
    def mark_bad(self, slot: Slot) -> None: ...
    def choose(self, comes_up: Mapping[Slot, bool], into: Slot | None) -> tuple[Slot | None, list[Slot]]:
        """The slot that comes up and all that were tried; `into` is an orderly reboot's argument."""
        ...


@dataclass
class CountingLoader:
    """Counts attempts, also of confirmed slots; refills the last confirmed one when all are used up."""

    tells_confirmed: bool = True
    primary: Slot = A
    last_confirmed: Slot = A
    entries: dict[Slot, Entry] = field(default_factory=lambda: {A: Entry(), B: Entry(confirmed=False)})

    def set_primary(self, slot: Slot) -> None:
        self.primary = slot
        self.entries[slot] = Entry(confirmed=self.entries[slot].confirmed)

    def mark_good(self, slot: Slot) -> None:
        self.entries[slot] = Entry()
        self.last_confirmed = slot

    def mark_bad(self, slot: Slot) -> None:
        self.entries[slot] = Entry(good=False, attempts=0, confirmed=False)

    def choose(self, comes_up: Mapping[Slot, bool], into: Slot | None) -> tuple[Slot | None, list[Slot]]:
        tried: list[Slot] = []
        for _ in range(2):
            for slot in sorted(self.entries, key=lambda slot: slot != self.primary):
                entry = self.entries[slot]
                while entry.good and entry.attempts:
                    entry.attempts -= 1
                    tried.append(slot)
                    if comes_up[slot]:
                        return slot, tried
            self.entries[self.last_confirmed].attempts = ATTEMPTS
        return None, tried


@dataclass
class OneShotLoader:
    """Boots the committed slot, unless an orderly reboot asks for another one, once. Nobody knows what was tried."""

    tells_confirmed: bool = True
    primary: Slot = A
    committed: Slot = A
    entries: dict[Slot, Entry] = field(default_factory=lambda: {A: Entry(), B: Entry(confirmed=False)})

    def set_primary(self, slot: Slot) -> None:
        self.primary = slot
        self.entries[slot] = Entry(confirmed=self.entries[slot].confirmed)

    def mark_good(self, slot: Slot) -> None:
        self.entries[slot] = Entry()
        self.committed = slot

    def mark_bad(self, slot: Slot) -> None:
        self.entries[slot] = Entry(good=False, attempts=0, confirmed=False)
        if slot == self.committed:
            self.committed = self.primary  # the only way not to choose it any more

    def choose(self, comes_up: Mapping[Slot, bool], into: Slot | None) -> tuple[Slot | None, list[Slot]]:
        tried = [slot for slot in (into, self.committed) if slot is not None and self.entries[slot].good]
        return next((slot for slot in tried if comes_up[slot]), None), tried


@dataclass(frozen=True, slots=True)
class Told:
    """One thing that the platform was told."""

    step: int | None
    version: str | None


class World:
    """One gateway, one job, and what happens to them."""

    def __init__(
        self,
        offered: System,
        loader: Loader | None = None,
        *,
        raw: bool = True,
        other: System | None = None,
        incidents: Mapping[int, Incident] | None = None,
    ) -> None:
        """`incidents` by the operation they come before; `raw`: no staging file; `other`: what slot b holds."""
        self.offered = offered
        self.packages = {offered.version: offered}
        self.loader = loader or CountingLoader()
        self.raw = raw
        self.incidents = dict(incidents or {})
        self.operations = 0
        self.saved = State()
        self.state = State()
        self.boots = 0
        self.booted = A
        self.media: dict[Slot, list[System | None]] = {A: [System("1")] * PARTS, B: [other or System("0")] * PARTS}
        self.staging: list[System | None] = [None] * PARTS
        self.proven: Work | None = None
        self.job = "offered"
        self.told: list[Told] = []
        self.ended: list[Ended] = []
        self.asked: list[Incident] = []
        self.offers = 0
        self.lives = 0
        self.pushed: list[Noticed] = []
        self.forgot = False
        self.by_hand = False

    # -- what a test looks at

    @property
    def running(self) -> System:
        system = self.media[self.booted][0]
        assert system is not None
        return system

    @property
    def now(self) -> int:
        return self.operations

    def outcome(self, version: str) -> Outcome | None:
        """How the last deployment of this version ended."""
        return next((ended.outcome for ended in reversed(self.ended) if ended.version == version), None)

    # -- the machine

    def run(self) -> "World":
        """Until nothing is left to do."""
        while True:
            try:
                self.live()
            except Interrupted as end:
                if end.incident != Incident.DEATH:
                    self.power_cycle(end.into)
                if end.incident == Incident.AMNESIA:
                    self.saved, self.forgot = State(), True
            else:
                self.check_rest()
                return self

    def operation(self) -> None:
        self.operations += 1
        assert self.operations < OPERATIONS_MAX, f"does not come to rest: {self.state}"
        incident = self.incidents.pop(self.operations, None)
        match incident:
            case None:
                pass
            case Incident.POWER_CUT | Incident.DEATH | Incident.AMNESIA:
                raise Interrupted(incident)
            case _:
                self.asked.append(incident)

    def power_cycle(self, into: Slot | None = None) -> None:
        self.boots += 1
        comes_up = {slot: parts[0] is not None and parts[0].temper != Temper.DEAD for slot, parts in self.media.items()}
        slot, tried = self.loader.choose(comes_up, into)
        assert all(self.is_whole(slot) for slot in tried), f"unproven content was tried: {tried}"
        assert slot is not None, "no slot boots"
        self.booted = slot

    def is_whole(self, slot: Slot) -> bool:
        return len(set(self.media[slot])) == 1

    def board(self) -> Board:
        views = tuple(
            SlotView(slot, entry.good, entry.attempts, entry.confirmed if self.loader.tells_confirmed else None)
            for slot, entry in self.loader.entries.items()
        )
        return Board(self.booted, self.loader.primary, views)

    # -- the daemon

    def live(self) -> None:
        """One life of the daemon, until it rests or is interrupted."""
        self.state, self.proven, self.asked = self.saved, None, []
        self.lives += 1
        boot_id = BootId(f"boot-{self.boots}")
        self.handle(Started(boot_id, self.board(), DEFAULT_MODULE, self.running.version, self.now))
        while True:
            work = work_for(self.state)
            if work is not None:
                try:
                    event = self.carry_out(work)
                except WorkChanged:
                    continue
                self.handle(event)
            elif self.asked:
                self.answer()
            elif self.job == "offered" and self.state.deployment is None and self.running.temper != Temper.MUTE:
                assert self.offers < 100, "the job is offered for ever"
                self.notice(f"get:{self.lives}" if self.offers else "push:0")
            else:
                return

    def handle(self, event: Event) -> None:
        """Save, then tell what is owed."""
        self.become(step(self.state, event))
        for ended in self.state.unfiled:
            self.operation()
            self.ended.append(ended)
            self.become(step(self.state, Filed(ended.id)))
        for report in self.state.outbox:
            if self.running.temper == Temper.MUTE:
                return
            if isinstance(report, Inform):
                if self.state.deployment is not None and self.state.deployment.phase in (
                    Phase.CONFIRMING,
                    Phase.ROLLING_BACK,
                ):
                    continue
                self.operation()
                self.hear_version(self.running)
            else:
                self.operation()
                if self.is_told(report):
                    self.hear_step(report.step, report.identity)
            self.become(step(self.state, Delivered(report.serial)))

    def is_told(self, report: Step) -> bool:
        """The reporter drops a success of what does not run any more: left by hand before it could be told."""
        was_left = report.identity is not None and report.identity.version != self.running.version
        return not (report.step == 100 and was_left and self.by_hand)

    def become(self, state: State) -> None:
        if state != self.state:
            self.operation()
            self.saved = self.state = state

    def answer(self) -> None:
        """What somebody has asked for in the meantime."""
        while self.asked:
            match self.asked.pop(0):
                case Incident.CANCEL:
                    self.handle(CancelRequested(self.now))
                case Incident.RETRY:
                    self.handle(RetryRequested(self.now))
                case Incident.REBOOT:
                    self.handle(RebootRequested(self.now))
                case Incident.MARK_GOOD:
                    self.by_hand = True
                    self.handle(MarkGoodRequested(self.now))
                case Incident.ROLL_BACK:
                    self.handle(RollBackRequested(self.board(), DEFAULT_MODULE, self.running.version, self.now))
                case Incident.SUPERSEDE:
                    self.offered, self.job = System("3"), "offered"
                    self.packages["3"] = self.offered
                    self.notice(f"push:{self.offers}")
                case Incident.ECHO:
                    for event in self.pushed[:1]:
                        self.handle(replace(event, running=self.running.version, at=self.now))
                case Incident.POWER_CUT | Incident.DEATH | Incident.AMNESIA:
                    raise AssertionError

    def notice(self, offer: str) -> None:
        self.offers += 1
        event = Noticed(self.offered.notice, offer, self.running.version, 3, self.now)
        if offer.startswith(PUSHED):
            self.pushed.append(event)
        self.handle(event)

    # -- the works, each durable act an operation

    def carry_out(self, work: Work) -> Event:
        deployment = self.state.deployment

        def act() -> None:
            self.operation()
            if self.asked:
                self.answer()
                if work_for(self.state) != work:
                    raise WorkChanged

        if isinstance(work, MarkGood):
            act()
            self.mark_good(work.slot)
            return Finished(work, self.now)
        assert deployment is not None
        package = self.packages.get(deployment.notice.identity.version)
        match work:
            case Download():
                place = self.media[deployment.target] if self.raw else self.staging
                if self.raw:
                    self.prepare(deployment.old, deployment.target, act)
                kind = PlaceKind.SLOT if self.raw else PlaceKind.STAGING
                for part in range(deployment.checkpoint, PARTS):
                    act()
                    place[part] = package
                    self.handle(Checkpointed(work, kind, part + 1, "etag", "https://x", False, 1, 0))
                if set(place) != {package}:
                    return Failed(work, Failure(Code.DIGEST, "another digest"), self.now)
                self.proven = work
            case Install():
                self.prepare(deployment.old, deployment.target, act)
                if set(self.staging) != {package}:
                    return Failed(work, Failure(Code.DIGEST, "staging file: another digest"), self.now)
                for part in range(PARTS):
                    act()
                    self.media[deployment.target][part] = package
                self.proven = work
            case Activate():
                assert isinstance(self.proven, Download | Install)
                assert (self.proven.deployment, self.proven.run) == (work.deployment, work.run), "not checked"
                assert set(self.media[deployment.target]) == {package}
                act()
                self.loader.set_primary(deployment.target)
            case Reboot():
                act()
                raise Interrupted(Incident.POWER_CUT, deployment.target)
            case Confirm():
                act()  # checks take their time
                failure = None if deployment.by_hand else self.health(deployment.online_before)
                if failure is not None:
                    return Failed(work, failure, self.now)
                act()
                self.mark_good(deployment.target)
            case RollBack():
                act()
                self.loader.set_primary(deployment.old)
                by_hand = deployment.reason is not None and deployment.reason.code == Code.ROLLED_BACK
                if self.booted != deployment.target or not by_hand or deployment.notice.origin != Origin.RECOVERED:
                    act()
                    self.loader.mark_bad(deployment.target)
                if self.booted == deployment.target:
                    act()
                    raise Interrupted(Incident.POWER_CUT, deployment.old)
            case _:
                assert_never(work)
        return Finished(work, self.now, online=self.running.temper != Temper.MUTE)

    def prepare(self, old: Slot, target: Slot, act: Callable[[], None]) -> None:
        """Before the first byte: the booted slot primary and good, the target bad."""
        assert self.booted == old != target, "the booted slot is about to be written"
        if self.loader.primary != old:
            act()
            self.loader.set_primary(old)
        if not self.loader.entries[old].good or self.loader.entries[old].attempts < ATTEMPTS:
            act()
            self.mark_good(old)
        if self.loader.entries[target].good:
            act()
            self.loader.mark_bad(target)

    def mark_good(self, slot: Slot) -> None:
        system = self.media[slot][0]
        fit = system is not None and system.temper == Temper.GOOD
        assert fit or self.forgot or self.by_hand, f"{system} is marked good"
        self.loader.mark_good(slot)

    def health(self, needs_session: bool) -> Failure | None:
        match self.running.temper:
            case Temper.CRASHES:
                raise Interrupted(Incident.POWER_CUT)
            case Temper.UNHEALTHY:
                return Failure(Code.HEALTH, "health check 10-app: exit status 1")
            case Temper.MISLABELED:
                return Failure(Code.VERSION, "version: the image says 9")
            case Temper.MUTE if needs_session:
                return Failure(Code.SESSION, "session: the platform was not reached")
            case _:
                return None

    # -- the platform

    def hear_step(self, number: int, identity: Identity | None) -> None:
        assert identity is not None
        self.told.append(Told(number, None))
        if number == 100:
            assert self.running.version == identity.version, "100 for a version that does not run"
            assert self.loader.entries[self.booted].confirmed, "100 for a slot that is not confirmed"
        elif identity.version == self.offered.version and self.job == "offered":
            self.job = "failed"

    def hear_version(self, system: System) -> None:
        self.told.append(Told(None, system.version))
        if system.version == self.offered.version and self.job == "offered":
            self.job = "succeeded"

    # -- at rest

    def check_rest(self) -> None:
        """Promises one and four: a good slot is booted, primary and confirmed, and nothing is left to do or to tell."""
        assert self.state == self.saved
        assert self.state.deployment is None
        assert self.state.unfiled == ()
        if self.running.temper != Temper.MUTE:
            assert self.state.outbox == ()
        assert self.booted == self.loader.primary or self.forgot  # who forgot what was activated cannot take it back
        if self.booted not in self.state.tainted:
            assert self.loader.entries[self.booted] == Entry()
        ids = [ended.id for ended in self.ended]
        outcomes = {(ended.id, ended.outcome) for ended in self.ended}
        assert len(set(ids)) == len(outcomes), f"more than one outcome: {outcomes}"
        if self.booted not in self.state.tainted:
            booted = self.booted
            self.power_cycle()
            assert self.booted == booted, "what runs is not what will be booted"
