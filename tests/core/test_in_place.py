# SPDX-License-Identifier: Apache-2.0
"""Modules that are switched while the system runs: the rules, and every interruption at every operation.

`Gateway` plays `step` and `work_for` for a module with a link between an old and a new content, as the daemon does:
save, act, report. It objects by itself where unproven content is switched to, or where the platform hears of a version
that may still be taken back.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

import pytest

from otad.core.events import (
    CancelRequested,
    Checkpointed,
    Delivered,
    Event,
    Failed,
    Filed,
    Finished,
    MarkGoodRequested,
    Noticed,
    RollBackRequested,
    Started,
)
from otad.core.model import (
    DEFAULT_MODULE,
    NO_SLOT,
    Artifact,
    Board,
    BootId,
    Deployment,
    DeploymentId,
    Digest,
    DigestMethod,
    Ended,
    Identity,
    Inform,
    ModuleName,
    Notice,
    Origin,
    Outcome,
    Phase,
    PlaceKind,
    Refusal,
    Slot,
    SlotView,
    State,
    Step,
    Stream,
)
from otad.core.step import Verdict, objection, step, verdict
from otad.core.work import Activate, Confirm, Download, Install, MarkGood, RollBack, Work, wants_mark_good, work_for
from otad.errors import Code, Failure

APP = ModuleName("app")
A, B = Slot("a"), Slot("b")
BOARD = Board(A, A, (SlotView(A, True, 3, True), SlotView(B, True, 3, True)))
TWO = Identity(APP, "2", 2, Digest(DigestMethod.SHA256, "22"))
NOTICE = Notice(TWO, "https://x/2")
BOOT = BootId("boot-0")
UNHEALTHY = Failure(Code.HEALTH, "health check app: exit status 1")
SAYS_NO = Failure(Code.INSTALL, "install: exit status 3")


def offered(notice: Notice = NOTICE, running: str | None = "1", offer: str = "get:1", at: int = 0) -> Noticed:
    return Noticed(notice, offer, running, 3, at, in_place=True)


def at_rest(**members: Any) -> State:
    return replace(State(known=True, serial=1, boot_id=BOOT, board=BOARD, settled=BOOT), **members)


def under_way(phase: Phase, **members: Any) -> State:
    base = Deployment(DeploymentId("1"), NOTICE, phase, NO_SLOT, NO_SLOT, 0, 3, place=PlaceKind.STAGING, checkpoint=2)
    switched = phase in (Phase.ACTIVATING, Phase.CONFIRMING, Phase.ROLLING_BACK)
    on_trial = phase == Phase.CONFIRMING
    return at_rest(deployment=replace(base, **{"switched": switched, "on_trial": on_trial, **members}))


def the(state: State) -> Deployment:
    assert state.deployment is not None
    return state.deployment


@dataclass
class Gateway:
    """One module. `cuts`: operations right before which the daemon ends."""

    cuts: frozenset[int] = frozenset()
    healthy: bool = True
    label: str = "2"
    switch_fails: int = 0
    goes_back: bool = True
    operations: int = 0
    saved: State = field(default_factory=State)
    state: State = field(default_factory=State)
    staged: int = 0
    carried: Work | None = None  # the installation that this process has proven
    current: str = "1"
    before: str = "1"
    told: list[str] = field(default_factory=list)
    ended: list[Ended] = field(default_factory=list)
    job: str = "offered"

    class Cut(Exception):  # noqa: N818
        pass

    def operation(self) -> None:
        self.operations += 1
        assert self.operations < 300, f"does not come to rest: {self.state}"
        if self.operations in self.cuts:
            raise self.Cut

    def run(self) -> "Gateway":
        while True:
            try:
                self.live()
            except self.Cut:
                continue
            assert self.state.outbox == ()
            assert self.state.unfiled == ()
            return self

    def live(self) -> None:
        self.state, self.carried = self.saved, None
        self.handle(Started(BOOT, BOARD, DEFAULT_MODULE, "system", self.operations))
        while (work := work_for(self.state)) is not None or self.job == "offered":
            if work is not None:
                self.handle(self.carry_out(work))
            else:
                self.handle(offered(running=self.current, at=self.operations))

    def handle(self, event: Event) -> None:
        self.become(step(self.state, event))
        for line in self.state.unfiled:
            self.operation()
            if line not in self.ended:
                self.ended.append(line)
            self.become(step(self.state, Filed(line.id)))
        for report in self.state.outbox:
            deployment = self.state.deployment
            self.operation()
            if isinstance(report, Inform):
                assert deployment is None or not deployment.switched, "a version that may be taken back"
                self.told.append(self.current)
                if self.current == "2" and self.job == "offered":
                    self.job = "succeeded"
            else:
                self.told.append(f"step {report.step}")
                if report.step < 0:
                    self.job = "failed"
            self.become(step(self.state, Delivered(report.serial)))

    def become(self, state: State) -> None:
        if state != self.state:
            self.operation()
            self.saved = self.state = state

    def carry_out(self, work: Work) -> Event:
        at = self.operations
        match work:
            case MarkGood():
                self.operation()
            case Download():
                for part in range(the(self.state).checkpoint, 2):
                    self.operation()
                    self.staged = part + 1
                    self.handle(Checkpointed(work, PlaceKind.STAGING, self.staged, "", "", False, 1, 0))
            case Install():
                assert self.staged == 2, "installed before all of it was there"
                self.operation()
                self.carried = work
            case Activate():
                assert self.carried == Install(work.deployment, work.run), "switched to what is not proven"
                if self.current != "2":
                    self.before = self.current
                self.operation()
                if self.switch_fails:
                    self.switch_fails -= 1
                    return Failed(work, SAYS_NO, at)
                self.current = "2"
            case Confirm():
                if self.label != "2":
                    return Failed(work, Failure(Code.VERSION, "version: the module says 3"), at)
                if not self.healthy:
                    return Failed(work, UNHEALTHY, at)
            case RollBack():
                if not self.goes_back:
                    return Failed(work, Failure(Code.INSTALL, "rollback: exit status 1"), at)
                self.operation()
                self.current = self.before
            case _:
                raise AssertionError(work)
        return Finished(work, self.operations)


def all_cuts(make: Callable[[frozenset[int]], Gateway]) -> list[Gateway]:
    """Undisturbed, with one cut at each operation, and with two."""
    undisturbed = make(frozenset()).run()
    numbers = range(1, undisturbed.operations + 1)
    cuts = [frozenset(c) for c in [(), *((n,) for n in numbers), *combinations(range(1, numbers[-1] + 8), 2)]]
    assert len(cuts) > 100
    return [make(each).run() for each in cuts]


def test_a_good_package_arrives_through_interruptions_at_any_two_operations() -> None:
    for gateway in all_cuts(Gateway):
        told = [line for line in gateway.told if line != "1"]
        assert gateway.current == "2"
        assert gateway.job == "succeeded"
        assert [line.outcome for line in gateway.ended] == [Outcome.SUCCEEDED]
        assert set(told) == {"step 100", "2"}
        assert told.index("2") > told.index("step 100")


@pytest.mark.parametrize("fault", [{"healthy": False}, {"label": "3"}, {"switch_fails": 3}], ids=str)
def test_a_bad_package_is_taken_back_through_interruptions_at_any_two_operations(fault: dict[str, Any]) -> None:
    for gateway in all_cuts(lambda cuts: Gateway(cuts, **fault)):
        if gateway.current == "2":  # a switch that fails a while is repeated after each start
            assert "switch_fails" in fault
            continue
        assert gateway.current == "1"
        assert gateway.job == "failed"
        assert "2" not in gateway.told
        assert gateway.told[-1] == "1"
        assert {line for line in gateway.told if line != "1"} == {"step -4" if "switch_fails" in fault else "step -1"}
        assert [refusal.key for refusal in gateway.state.refusals] == [TWO.key]
        wanted = Outcome.FAILED if "switch_fails" in fault else Outcome.ROLLED_BACK
        assert [line.outcome for line in gateway.ended] == [wanted]


def test_an_installer_that_cannot_go_back_ends_the_deployment_with_both_reasons() -> None:
    gateway = Gateway(healthy=False, goes_back=False).run()

    (line,) = gateway.ended
    assert gateway.told[-2:] == ["step -1", "2"]
    assert (gateway.job, gateway.current, line.outcome) == ("failed", "2", Outcome.FAILED)
    assert line.failure is not None
    assert "exit status 1; and the way back failed: rollback" in line.failure.detail


def test_a_switch_that_fails_twice_succeeds_at_the_third_try() -> None:
    gateway = Gateway(switch_fails=2).run()

    assert (gateway.current, gateway.job, gateway.ended[0].tries) == ("2", "succeeded", 2)


def test_a_module_begins_without_a_second_slot_and_never_marks_or_reboots() -> None:
    one = Board(A, A, (SlotView(A, True, 1, True),))
    state = step(at_rest(board=one), offered())

    assert (the(state).old, the(state).target, the(state).in_place) == (NO_SLOT, NO_SLOT, True)
    assert isinstance(work_for(state), Download)
    assert verdict(at_rest(board=one), replace(offered(), in_place=False)) == Verdict.NOT_OURS
    assert verdict(at_rest(board=replace(BOARD, booted=None)), offered()) == Verdict.NOT_OURS


@pytest.mark.parametrize("phase", [Phase.DOWNLOADING, Phase.INSTALLING])
def test_it_can_be_canceled_until_the_switch(phase: Phase) -> None:
    state = step(under_way(phase), CancelRequested(9))

    assert state.deployment is None
    assert [report.step for report in state.outbox if isinstance(report, Step)] == [-1]


@pytest.mark.parametrize("phase", [Phase.ACTIVATING, Phase.CONFIRMING])
def test_then_it_is_too_late_to_cancel_and_can_be_rolled_back(phase: Phase) -> None:
    assert "too late" in (objection(under_way(phase), CancelRequested(9)) or "")
    state = step(under_way(phase), RollBackRequested(BOARD, DEFAULT_MODULE, "system", 9))

    assert isinstance(work_for(state), RollBack)
    assert state.tainted == ()


def test_mark_good_by_hand_stands_for_its_checks_and_leaves_the_slots_alone() -> None:
    state = step(under_way(Phase.CONFIRMING), MarkGoodRequested(9))

    assert the(state).by_hand
    done = step(state, Finished(Confirm(the(state).id, the(state).run), 10))
    assert done.deployment is None
    assert done.settled == BOOT


def test_after_a_restart_what_was_carried_in_is_carried_in_again() -> None:
    state = step(under_way(Phase.ACTIVATING), Started(BOOT, BOARD, DEFAULT_MODULE, "system", 5))

    assert (the(state).phase, the(state).switched, the(state).idle_starts) == (Phase.INSTALLING, True, 1)


UNCONFIRMED = Board(B, B, (SlotView(A, True, 3, True), SlotView(B, True, 2, False)))


@pytest.mark.parametrize("phase", [Phase.DOWNLOADING, Phase.INSTALLING])
def test_a_system_that_came_up_by_other_means_is_proven_first(phase: Phase) -> None:
    state = step(under_way(phase), Started(BootId("boot-1"), UNCONFIRMED, DEFAULT_MODULE, "9", 5))

    assert the(state).notice.origin == Origin.RECOVERED
    assert the(state).target == B
    assert state.last is not None
    assert state.last.outcome == Outcome.SUPERSEDED


@pytest.mark.parametrize("phase", [Phase.ACTIVATING, Phase.CONFIRMING, Phase.ROLLING_BACK])
def test_a_switch_that_has_begun_ends_before_such_a_system_is_proven(phase: Phase) -> None:
    state = step(under_way(phase), Started(BootId("boot-1"), UNCONFIRMED, DEFAULT_MODULE, "9", 5))

    assert the(state).in_place
    assert not wants_mark_good(state)
    work = RollBack(the(state).id, the(state).run)
    ended = step(replace(state, deployment=replace(the(state), phase=Phase.ROLLING_BACK)), Finished(work, 6))
    assert (the(ended).notice.origin, the(ended).phase) == (Origin.RECOVERED, Phase.CONFIRMING)
    assert (the(ended).target, the(ended).old) == (B, A)
    assert ended.last is not None
    assert ended.last.outcome != Outcome.SUPERSEDED
    # Not where nothing can be proven: no way back, or a slot that was refused.
    alone = replace(UNCONFIRMED, slots=UNCONFIRMED.slots[1:])
    for spoilt in (replace(state, board=alone), replace(state, tainted=(B,))):
        rolling = replace(spoilt, deployment=replace(the(state), phase=Phase.ROLLING_BACK))
        assert step(rolling, Finished(work, 6)).deployment is None


def test_what_ends_the_gateway_while_on_trial_is_taken_back() -> None:
    state = under_way(Phase.CONFIRMING)
    for _ in range(2):
        state = step(state, Started(BOOT, BOARD, DEFAULT_MODULE, "system", 5))
        assert the(state).phase == Phase.CONFIRMING
    assert the(step(state, MarkGoodRequested(6))).by_hand
    by_hand = step(step(state, MarkGoodRequested(6)), Started(BOOT, BOARD, DEFAULT_MODULE, "system", 7))
    assert the(by_hand).phase == Phase.CONFIRMING

    state = step(state, Started(BOOT, BOARD, DEFAULT_MODULE, "system", 5))

    assert the(state).phase == Phase.ROLLING_BACK
    assert the(state).reason == Failure(Code.FELL_BACK, "module app: restarted 3 times before it was confirmed")
    assert [refusal.key for refusal in state.refusals] == [TWO.key]


def test_a_way_back_that_ends_the_gateway_is_given_up() -> None:
    state = under_way(Phase.ROLLING_BACK, reason=UNHEALTHY)
    for _ in range(9):
        state = step(state, Started(BOOT, BOARD, DEFAULT_MODULE, "system", 5))
        assert the(state).phase == Phase.ROLLING_BACK

    state = step(state, Started(BOOT, BOARD, DEFAULT_MODULE, "system", 5))

    assert state.deployment is None
    assert [report.step for report in state.outbox if isinstance(report, Step)] == [-1]


def test_what_could_not_be_taken_back_is_not_taken_for_a_success_when_it_is_offered_again() -> None:
    refused = step(under_way(Phase.CONFIRMING), Failed(Confirm(DeploymentId("1"), 1), UNHEALTHY, 4))
    left = step(refused, Failed(RollBack(DeploymentId("1"), 2), SAYS_NO, 5))

    assert verdict(replace(left, outbox=()), offered(running="2", offer="get:9")) == Verdict.REFUSED
    assert verdict(at_rest(), offered(running="2", offer="get:9")) == Verdict.RUNNING


def test_a_version_that_is_trusted_takes_every_refusal_of_it_along_and_no_other() -> None:
    kept = Refusal("app|3", APP, "3", -1, "sick", UNHEALTHY, 1)
    others = (
        Refusal("unconfigured:app|2", APP, "2", -1, "no", SAYS_NO, 1),
        Refusal("app|2|md5", APP, "2", -3, "x", UNHEALTHY, 1),
    )
    elsewhere = Refusal("default|2", DEFAULT_MODULE, "2", -1, "sick", UNHEALTHY, 1)
    state = replace(under_way(Phase.CONFIRMING), refusals=(kept, *others, elsewhere))

    done = step(state, Finished(Confirm(DeploymentId("1"), 1), 9))

    assert done.refusals == (kept, elsewhere)


def test_a_module_that_was_taken_out_of_the_configuration_is_refused_for_a_day() -> None:
    state = step(
        under_way(Phase.INSTALLING, tries=2),
        Failed(Install(DeploymentId("1"), 1), Failure(Code.UNSUPPORTED, "module app: not configured any more"), 5),
    )

    assert state.deployment is None
    assert [refusal.lapses for refusal in state.refusals] == [5 + 86400]


def test_a_program_that_installs_is_not_interrupted_to_mark_a_slot_good() -> None:
    state = step(under_way(Phase.ACTIVATING), MarkGoodRequested(9))

    assert isinstance(work_for(state), Activate)
    assert isinstance(work_for(replace(state, deployment=None)), MarkGood)


def test_another_modules_package_waits_its_turn() -> None:
    system = Notice(Identity(DEFAULT_MODULE, "3", 9, Digest(DigestMethod.SHA256, "33")), "https://x/3")

    assert verdict(under_way(Phase.DOWNLOADING), Noticed(system, "get:2", "1", 3, 0)) == Verdict.BUSY


def test_a_newer_message_keeps_the_way_that_it_does_not_name() -> None:
    over_mqtt = replace(NOTICE, url="", stream=Stream(7, 1))
    state = step(under_way(Phase.DOWNLOADING), offered(over_mqtt, offer="get:2"))

    assert the(state).notice == replace(NOTICE, stream=Stream(7, 1))
    again = step(state, offered(replace(NOTICE, url="https://x/fresh"), offer="get:3"))
    assert the(again).notice == replace(NOTICE, url="https://x/fresh", stream=Stream(7, 1))


def test_a_notice_tells_its_files() -> None:
    digest = Digest(DigestMethod.MD5, "00")
    files = (Artifact("a", 1, digest, "https://x/a"), Artifact("b", 2, digest, "https://x/b"))

    assert TWO.digest is not None
    assert NOTICE.artifacts == (Artifact("", 2, TWO.digest, "https://x/2"),)
    assert replace(NOTICE, url="", files=files).artifacts == files
    assert Notice(Identity(APP, "", 0, None), "", Origin.RECOVERED).artifacts == ()
