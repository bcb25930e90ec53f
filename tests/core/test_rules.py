# SPDX-License-Identifier: Apache-2.0
"""Rules that hold whatever happens in whatever order: results that are late or twice, boards that make no sense.

`test_power_cuts` plays a machine that keeps its own laws; here the machine may say anything. Each history is a list of
small orders, resolved against the state of the moment, so that a failing one shrinks to a short story.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from otad.core.codec import decode, encode
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
    Rejected,
    RetryRequested,
    RollBackRequested,
    Started,
)
from otad.core.model import (
    DEFAULT_MODULE,
    Board,
    BootId,
    Deployment,
    DeploymentId,
    Digest,
    DigestMethod,
    Identity,
    Inform,
    ModuleName,
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
from otad.core.step import (
    ACTIVATIONS_MAX,
    HONOURED_MAX,
    OUTBOX_MAX,
    REFUSALS_MAX,
    UNFILED_MAX,
    Verdict,
    is_before_the_switch,
    objection,
    step,
    verdict,
)
from otad.core.work import Activate, Confirm, Download, Install, MarkGood, Reboot, Work, is_on_trial, work_for
from otad.errors import Code, Failure

A, B, C = Slot("a"), Slot("b"), Slot("c")
SLOTS = (A, B, C)
MODULES = (DEFAULT_MODULE, ModuleName("app"))
Order = Callable[[State, list[Work], int], Event]
"""Gives the event, from the state, the works so far, and the time."""


def identity(number: int) -> Identity:
    module = MODULES[number == 3]
    return Identity(module, f"{number}.0", 100, Digest(DigestMethod.SHA256, f"{number:02x}"))


def some_work(state: State, works: list[Work], back: int) -> Work:
    """The work of the moment, or one of an earlier moment."""
    current = work_for(state)
    if back == 0 and current is not None:
        return current
    return works[-min(back, len(works))] if works else Download(DeploymentId("none"), 1)


slot_views = st.builds(
    SlotView,
    name=st.just(A),
    good=st.booleans(),
    attempts_left=st.integers(0, 3),
    confirmed=st.sampled_from([True, False, None]),
)


@st.composite
def boards(draw: st.DrawFn) -> Board:
    names = SLOTS[: draw(st.sampled_from([2, 2, 2, 2, 1, 3]))]
    views = tuple(replace(draw(slot_views), name=name) for name in names)
    return Board(draw(st.sampled_from([*SLOTS[:2], *SLOTS, None])), draw(st.sampled_from([A, B, None])), views)


failures = st.builds(Failure, st.sampled_from(Code), st.sampled_from(["why", "two\nlines", "", "x" * 2000]))
BACK = st.sampled_from([0, 0, 0, 0, 0, 0, 1, 2, 5])

orders: st.SearchStrategy[Order] = st.one_of(
    st.builds(
        lambda boot, shown: lambda _s, _w, at: Started(BootId(f"boot-{boot}"), shown, DEFAULT_MODULE, "2.0", at),
        st.integers(0, 3),
        boards(),
    ),
    st.builds(  # the other slot came up, as after an orderly switch
        lambda boot, left: (
            lambda s, _w, at: Started(
                BootId(f"boot-{boot}"),
                Board(
                    s.deployment.target if s.deployment else A,
                    B,
                    (SlotView(A, True, 3, True), SlotView(B, True, left, False)),
                ),
                DEFAULT_MODULE,
                "2.0",
                at,
            )
        ),
        st.integers(0, 3),
        st.integers(0, 3),
    ),
    st.builds(
        lambda number, offer, origin, running: (
            lambda _s, _w, at: Noticed(
                Notice(identity(number), f"https://x/{offer}", origin), offer, f"{running}.0", 2, at
            )
        ),
        st.integers(1, 3),
        st.sampled_from(["get:1", "get:2", "push:1", "push:2"]),
        st.sampled_from([Origin.PLATFORM, Origin.PLATFORM, Origin.LOCAL]),
        st.integers(0, 3),
    ),
    st.builds(
        lambda number, module, failure: (
            lambda _s, _w, at: Rejected(f"key {number}", module, "9", failure, f"offer-{number}", at)
        ),
        st.integers(0, 2),
        st.sampled_from(MODULES),
        failures,
    ),
    st.builds(
        lambda back, place, count: (
            lambda s, w, _at: Checkpointed(
                some_work(s, w, back), place, count, "etag", "https://x", count > 50, count, 1
            )
        ),
        BACK,
        st.sampled_from(PlaceKind),
        st.integers(0, 100),
    ),
    st.builds(lambda back, online: lambda s, w, at: Finished(some_work(s, w, back), at, online), BACK, st.booleans()),
    st.builds(lambda back, online: lambda s, w, at: Finished(some_work(s, w, back), at, online), BACK, st.booleans()),
    st.builds(lambda back, failure: lambda s, w, at: Failed(some_work(s, w, back), failure, at), BACK, failures),
    st.builds(  # what the boot loader holds may have changed since the start; what is booted may not
        lambda shown: (
            lambda s, _w, at: RollBackRequested(
                replace(shown, booted=s.board.booted if s.board else None), DEFAULT_MODULE, "2.0", at
            )
        ),
        boards(),
    ),
    st.sampled_from(
        [
            lambda _s, _w, at: CancelRequested(at),
            lambda _s, _w, at: RetryRequested(at),
            lambda _s, _w, at: RebootRequested(at),
            lambda _s, _w, at: MarkGoodRequested(at),
            lambda s, _w, _at: Delivered(s.outbox[0].serial if s.outbox else 99),
            lambda s, _w, _at: Filed(s.unfiled[0].id if s.unfiled else DeploymentId("none")),
        ]
    ),
)


@dataclass
class History:
    """Plays events and checks after each that every rule still holds."""

    state: State = field(default_factory=State)
    works: list[Work] = field(default_factory=list)
    outcomes: dict[DeploymentId, Outcome] = field(default_factory=dict)
    proven: Work | None = None
    heard: set[tuple[str, Identity]] = field(default_factory=set)
    lines: set[DeploymentId] = field(default_factory=set)

    def play(self, event: Event) -> None:
        before, self.state = self.state, step(self.state, event)
        self.check_outcomes(before, event)
        self.check_reports(before, event)
        self.check_offers(before, event)
        self.check_slots()
        self.check_work(before, event)
        self.check_bounds(before)
        assert decode(encode(self.state)) == self.state
        work = work_for(self.state)
        if work is not None and work not in self.works[-1:]:
            self.works.append(work)

    def has_ended(self, before: State) -> bool:
        return self.state.last is not None and self.state.last != before.last

    def check_outcomes(self, before: State, event: Event) -> None:
        """One outcome per deployment, and success only after Confirm or where the board shows it."""
        gone = before.deployment is not None and (
            self.state.deployment is None or self.state.deployment.id != before.deployment.id
        )
        assert gone == self.has_ended(before), "a deployment ends with a line of history, and only then"
        if not gone:
            return
        last = self.state.last
        assert last is not None
        assert before.deployment is not None
        assert last.id == before.deployment.id
        assert last.id not in self.outcomes, "a second outcome"
        self.outcomes[last.id] = last.outcome
        if last.outcome == Outcome.SUCCEEDED:
            assert before.deployment.phase == Phase.CONFIRMING
            target = before.deployment.target
            if isinstance(event, Started):
                shown = event.board.view(target)
                assert event.board.booted == target
                assert shown is not None
                assert shown.confirmed is True
            else:
                assert isinstance(event, Finished)
                assert event.work == Confirm(before.deployment.id, before.deployment.run)
                assert is_on_trial(before)

    def check_reports(self, before: State, event: Event) -> None:
        """What is owed anew: 100 and an inform for success, a negative step otherwise; some owe nothing."""
        owed = [report for report in self.state.outbox if report.serial > before.serial]
        steps = [report for report in owed if isinstance(report, Step)]
        assert len(steps) <= 1
        if self.has_ended(before):
            last = self.state.last
            assert last is not None
            silent = last.origin != Origin.PLATFORM or last.outcome == Outcome.SUPERSEDED
            assert bool(steps) != silent
            for report in steps:
                assert (report.step == 100) == (last.outcome == Outcome.SUCCEEDED)
                assert report.identity is not None
                assert report.module == last.module
            if last.outcome in (Outcome.SUCCEEDED, Outcome.ROLLED_BACK):
                own = [report for report in self.state.outbox if report.module == last.module]
                assert isinstance(own[-1], Inform), "the version comes last"
                assert sum(isinstance(r, Inform) for r in own) == 1, "and nothing tells it before the step"
        else:
            assert all(report.step < 0 for report in steps)
            assert not steps or isinstance(event, Noticed | Rejected)
            modules = {report.module for report in steps}
            assert before.deployment is None or before.deployment.notice.identity.module not in modules, "the wrong job"
            assert not any(isinstance(report, Inform) for report in owed) or isinstance(event, Noticed)

    def check_offers(self, before: State, event: Event) -> None:
        """Nothing refused is begun for the platform; nothing past the switch is replaced or canceled."""
        began = self.state.deployment is not None and (
            before.deployment is None or before.deployment.id != self.state.deployment.id
        )
        if isinstance(event, RetryRequested):
            self.heard.clear()
        if isinstance(event, Noticed):
            assert began == (verdict(before, event) in (Verdict.BEGIN, Verdict.SUPERSEDE))
            message = (event.offer, event.notice.identity)
            if message in self.heard:
                assert replace(self.state, deployment=before.deployment) == before, "a late duplicate changes something"
            if began and event.offer.startswith(PUSHED):
                self.heard.add(message)
            refusal = before.refusal(event.notice.identity.key)
            if began and refusal is not None and event.notice.origin == Origin.PLATFORM:
                assert refusal.lapses is not None
                assert event.at >= refusal.lapses
        elif began:
            assert isinstance(event, Started | RollBackRequested)
        if before.deployment is not None and not is_before_the_switch(before.deployment):
            assert not isinstance(event, Noticed | CancelRequested) or self.state.deployment is not None

    def check_slots(self) -> None:
        """The booted slot is never written or switched to; a refused one is never marked good by idle work."""
        deployment, board, work = self.state.deployment, self.state.board, work_for(self.state)
        if work is None:
            return
        assert board is not None
        assert board.booted is not None, "in a rescue system nothing is done"
        if isinstance(work, Download | Install):
            assert deployment is not None
            assert deployment.target != board.booted
            assert deployment.old == board.booted
        if isinstance(work, Confirm):
            assert is_on_trial(self.state)
        if isinstance(work, MarkGood):
            assert work.slot == board.booted
            assert work.slot not in self.state.tainted
            assert not is_on_trial(self.state)
        if deployment is not None and deployment.phase == Phase.ROLLING_BACK:
            assert deployment.target in self.state.tainted

    def check_work(self, before: State, event: Event) -> None:
        """The switch follows a check by this process and run, and by nothing else."""
        if isinstance(event, Started):
            self.proven = None
        if (
            isinstance(event, Finished)
            and event.work == work_for(before)
            and isinstance(event.work, Download | Install)
        ):
            self.proven = event.work
        if isinstance(event, Finished | Failed | Checkpointed) and event.work != work_for(before):
            assert self.state == before, "a late result changes something"
        if isinstance(
            event, CancelRequested | RetryRequested | RebootRequested | MarkGoodRequested | RollBackRequested
        ):
            assert (objection(before, event) is None) == (self.state != before) or isinstance(event, MarkGoodRequested)
        work = work_for(self.state)
        if isinstance(work, Activate):
            assert isinstance(self.proven, Download | Install)
            assert (self.proven.deployment, self.proven.run) == (work.deployment, work.run)
        if isinstance(work, Reboot):
            assert isinstance(self.proven, Download | Install)
            assert self.proven.deployment == work.deployment
            assert self.state.deployment is not None
            assert self.state.deployment.activations > 0

    def check_bounds(self, before: State) -> None:
        state = self.state
        assert len(state.refusals) <= REFUSALS_MAX
        assert len(state.unfiled) <= UNFILED_MAX
        assert len(state.outbox) <= OUTBOX_MAX + 2
        assert len(state.honoured) <= HONOURED_MAX
        assert len(set(state.honoured)) == len(state.honoured)
        anew = [line.id for line in state.unfiled if line not in before.unfiled]
        assert len(anew) <= 1
        assert not self.lines & set(anew), "a line of history of the same name"
        self.lines |= set(anew)
        assert len({refusal.key for refusal in state.refusals}) == len(state.refusals)
        assert len(set(state.tainted)) == len(state.tainted)
        serials = [report.serial for report in state.outbox]
        assert serials == sorted(set(serials))
        assert state.serial >= max([before.serial, *serials])
        deployment = state.deployment
        if deployment is not None:
            assert deployment.tries <= deployment.tries_allowed
            assert deployment.peak >= deployment.checkpoint
            assert deployment.activations - deployment.untried >= 0
            assert deployment.activations <= ACTIVATIONS_MAX
            assert deployment.switched or deployment.phase not in (Phase.ACTIVATING, Phase.REBOOTING)
            assert deployment.switched or not deployment.untried
            same = before.deployment is not None and before.deployment.id == deployment.id
            if same and before.deployment is not None:
                assert deployment.run >= before.deployment.run
                assert deployment.peak >= before.deployment.peak


@settings(max_examples=600, deadline=None)
@given(st.lists(orders, max_size=60))
def test_no_history_breaks_a_rule(history: list[Order]) -> None:
    played = History()
    for at, order in enumerate(history):
        played.play(order(played.state, played.works, at * 20_000))


@settings(max_examples=600, deadline=None)
@given(st.lists(orders, max_size=40))
def test_no_history_from_a_running_gateway_breaks_a_rule(history: list[Order]) -> None:
    """Begun where most histories of a field gateway begin, so that the later phases are reached."""
    played = History()
    slots = (SlotView(A, True, 3, True), SlotView(B, False, 0, False))
    played.play(Started(BootId("boot-0"), Board(A, A, slots), DEFAULT_MODULE, "0.0", 0))
    played.play(Finished(MarkGood(A, BootId("boot-0")), 0))
    played.play(Noticed(Notice(identity(1), "https://x"), "offer-0", "0.0", 2, 0))
    work = work_for(played.state)
    assert isinstance(work, Download)
    played.play(Checkpointed(work, PlaceKind.SLOT, 100, "", "", False, 100, 0))
    played.play(Finished(work, 0, online=True))
    for at, order in enumerate(history):
        played.play(order(played.state, played.works, at * 20_000))


@settings(max_examples=300, deadline=None)
@given(st.lists(orders, max_size=40), boards())
def test_a_restart_on_the_same_machine_asks_for_the_same_work(history: list[Order], shown: Board) -> None:
    """Believing the machine twice says nothing new: but for the run, which counts starts."""
    played = History()
    for at, order in enumerate(history):
        played.play(order(played.state, played.works, at))
    start = Started(BootId("boot-9"), shown, DEFAULT_MODULE, "2.0", 99)

    once = step(played.state, start)
    assume(not is_marked_good_on_trial(once))  # that says something new: the gate has been passed
    twice = step(once, start)

    assert type(work_for(once)) is type(work_for(twice))
    assert phase_of(once.deployment) == phase_of(twice.deployment)


def is_marked_good_on_trial(state: State) -> bool:
    deployment = state.deployment
    shown = state.board.view(deployment.target) if state.board is not None and deployment is not None else None
    return (
        is_on_trial(state) and phase_of(deployment) == Phase.CONFIRMING and shown is not None and bool(shown.confirmed)
    )


def phase_of(deployment: Deployment | None) -> Phase | None:
    return deployment.phase if deployment is not None else None


@settings(max_examples=300, deadline=None)
@given(st.lists(orders, max_size=40))
def test_every_work_that_goes_well_leads_to_rest(history: list[Order]) -> None:
    """It never sticks: from any state, results, reboots that succeed and nothing else end each deployment soon."""
    played = History()
    for at, order in enumerate(history):
        played.play(order(played.state, played.works, at))
    slots = (SlotView(A, True, 3, True), SlotView(B, True, 3, True))
    booted, boots = A, 100
    played.play(Started(BootId("boot-100"), Board(booted, booted, slots), DEFAULT_MODULE, "0.0", 0))
    for _ in range(20):
        work, deployment = work_for(played.state), played.state.deployment
        if work is None:
            break
        played.play(Finished(work, 0))
        after = played.state.deployment
        if deployment is not None and after is not None and after == deployment and not isinstance(work, MarkGood):
            booted = deployment.target if isinstance(work, Reboot) else deployment.old
            boots += 1
            shown = Board(booted, booted, tuple(replace(view, confirmed=view.name == A) for view in slots))
            played.play(Started(BootId(f"boot-{boots}"), shown, DEFAULT_MODULE, "0.0", 0))

    assert played.state.deployment is None
    assert work_for(played.state) is None
