# SPDX-License-Identifier: Apache-2.0
"""Every transition, as one table: before, event, after. The ids read as the rules."""

from dataclasses import replace
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
    RebootRequested,
    Rejected,
    Request,
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
    Report,
    Slot,
    SlotView,
    State,
    Step,
)
from otad.core.step import (
    DAY_S,
    DETAIL_CHARACTERS,
    HONOURED_MAX,
    OUTBOX_MAX,
    REFUSALS_MAX,
    UNFILED_MAX,
    Verdict,
    objection,
    short,
    step,
    step_for,
    verdict,
)
from otad.core.work import Activate, Confirm, Download, Install, MarkGood, Reboot, RollBack, work_for
from otad.errors import Code, Failure

A, B, C = Slot("a"), Slot("b"), Slot("c")
BOOT, NEXT_BOOT = BootId("boot-1"), BootId("boot-2")
APP = ModuleName("app")
ID = DeploymentId("64-1")
NOW = 200

TWO = Identity(DEFAULT_MODULE, "2.0", 1000, Digest(DigestMethod.SHA256, "22"))
THREE = Identity(DEFAULT_MODULE, "3.0", 1000, Digest(DigestMethod.SHA256, "33"))
OF_APP = Identity(APP, "7", 10, Digest(DigestMethod.MD5, "77"))
UNREMEMBERED = Identity(DEFAULT_MODULE, "2.0", 0, None)

HEALTH = Failure(Code.HEALTH, "health check 10-app: exit status 1")
DIGEST = Failure(Code.DIGEST, "the slot does not hold what the notice says")
MEDIUM = Failure(Code.MEDIUM, "slot b: input/output error")
CONTENT = Failure(Code.CONTENT, "another object")
SPACE = Failure(Code.SPACE, "slot b: too small")
BOOT_STORE = Failure(Code.BOOT, "fw_setenv: exit status 1")
SESSION = Failure(Code.SESSION, "session: not reached")
CANCELED = Failure(Code.CANCELED, "canceled on the gateway; `otad retry` lifts the refusal")
BY_HAND = Failure(Code.ROLLED_BACK, "rolled back on the gateway by hand")
NOT_UP = Failure(Code.FELL_BACK, "slot b did not come up; the boot loader returned to a")
RESTARTED = Failure(Code.FELL_BACK, "slot b ran but restarted before it was confirmed; back on a")


def view(slot: Slot, good: bool = True, left: int = 3, confirmed: bool | None = True) -> SlotView:
    return SlotView(slot, good, left, confirmed)


GOOD_A, GOOD_B = view(A), view(B)
BAD = view(B, False, 0, False)
FRESH = view(B, True, 3, False)
USED_UP = view(B, True, 0, False)


def board(booted: Slot | None = A, primary: Slot = A, a: SlotView = GOOD_A, b: SlotView = GOOD_B) -> Board:
    return Board(booted, primary, (a, b))


def at_rest(**members: Any) -> State:
    """Slot a runs, its idle work is done, nothing is under way."""
    return replace(State(known=True, serial=1, boot_id=BOOT, board=board(), settled=BOOT), **members)


def deployed(phase: Phase = Phase.DOWNLOADING, origin: Origin = Origin.PLATFORM, **members: Any) -> Deployment:
    """Past the switch, as the rows that count an activation are, the boot loader may hold the target."""
    identity = members.pop("identity", TWO)
    switched = members.get("activations", 0) > 0
    untried = switched and phase in (Phase.ACTIVATING, Phase.REBOOTING)
    base = Deployment(ID, Notice(identity, "https://x/2", origin), phase, A, B, 100, 3)
    return replace(base, **{"switched": switched, "untried": untried, **members})


def under_way(phase: Phase = Phase.DOWNLOADING, origin: Origin = Origin.PLATFORM, **members: Any) -> State:
    """Slot a runs, a deployment to b is in this phase."""
    return at_rest(deployment=deployed(phase, origin, **members))


def on_trial(phase: Phase = Phase.CONFIRMING, origin: Origin = Origin.PLATFORM, **members: Any) -> State:
    """Slot b runs, on trial."""
    slots = members.pop("board", board(B, B, b=FRESH))
    members = {"activations": 1, "on_trial": True, "place": PlaceKind.SLOT, **members}
    return at_rest(board=slots, settled=None, deployment=deployed(phase, origin, **members))


def recovered(target: Slot = B, phase: Phase = Phase.CONFIRMING, **members: Any) -> Deployment:
    """What is made of a system found without memory."""
    old = A if target == B else B
    notice = Notice(UNREMEMBERED, "", Origin.RECOVERED)
    members = {"on_trial": phase == Phase.CONFIRMING, **members}
    return Deployment(DeploymentId("c8-2"), notice, phase, old, target, NOW, 1, **members)


def changed(state: State, **members: Any) -> State:
    """The same state with this in its deployment."""
    assert state.deployment is not None
    return replace(state, deployment=replace(state.deployment, **members))


def ended(state: State, outcome: Outcome, failure: Failure | None, *reports: Report, **members: Any) -> State:
    """The state after its deployment has ended like this, owing these reports."""
    deployment = state.deployment
    assert deployment is not None
    identity = deployment.notice.identity
    line = Ended(
        id=deployment.id,
        module=identity.module,
        version=identity.version,
        origin=deployment.notice.origin,
        outcome=outcome,
        failure=failure,
        began=deployment.began,
        ended=NOW,
        bytes=deployment.fetched,
        resumed=deployment.resumed,
        tries=deployment.tries,
    )
    return replace(
        state,
        deployment=None,
        last=line,
        unfiled=(*state.unfiled, line),
        outbox=(*state.outbox, *reports),
        serial=state.serial + len(reports),
        **members,
    )


def refused(failure: Failure, number: int, identity: Identity = TWO, **members: Any) -> Refusal:
    if failure.code == Code.BOOT:  # the gateway's fault: a pause
        members = {"lapses": NOW + 86400, **members}
    return Refusal(identity.key, identity.module, identity.version, number, failure.detail, failure, NOW, **members)


def started(slots: Board, boot_id: BootId = NEXT_BOOT) -> Started:
    return Started(boot_id, slots, DEFAULT_MODULE, "2.0", NOW)


def noticed(
    identity: Identity = TWO, origin: Origin = Origin.PLATFORM, running: str | None = "1.0", offer: str = "get:1"
) -> Noticed:
    return Noticed(Notice(identity, "https://x/fresh", origin), offer, running, 3, NOW)


def roll_back(slots: Board | None = None, version: str | None = "2.0") -> RollBackRequested:
    """On the gateway as it is now: if not said otherwise, at rest on slot a."""
    return RollBackRequested(slots or board(), DEFAULT_MODULE, version, NOW)


def restarted(state: State, event: Started, **members: Any) -> State:
    """The same deployment as a new run on what the machine shows."""
    assert state.deployment is not None
    run = state.deployment.run + 1
    return changed(replace(state, boot_id=event.boot_id, board=event.board), **{"run": run, **members})


def begun(state: State, identity: Identity = TWO, origin: Origin = Origin.PLATFORM) -> State:
    serial = state.serial + 1
    id_ = DeploymentId(f"c8-{serial}")
    deployment = Deployment(id_, Notice(identity, "https://x/fresh", origin), Phase.DOWNLOADING, A, B, NOW, 3)
    return replace(state, serial=serial, deployment=deployment)


def failed_step(serial: int, number: int, failure: Failure, identity: Identity = TWO) -> Step:
    return Step(serial, identity.module, number, failure.detail, identity)


DOWNLOAD, INSTALL, ACTIVATE = Download(ID, 1), Install(ID, 1), Activate(ID, 1)
REBOOT, CONFIRM, ROLL_BACK = Reboot(ID, 1), Confirm(ID, 1), RollBack(ID, 1)
SLOT: dict[str, Any] = {"place": PlaceKind.SLOT, "checkpoint": 1000, "peak": 1000}
STAGED: dict[str, Any] = {"place": PlaceKind.STAGING, "checkpoint": 1000, "peak": 1000}
GONE_ON: dict[str, Any] = {"idle_starts": 1, "resumed": 1, "joined": True}
FROM_ZERO: dict[str, Any] = {
    "phase": Phase.DOWNLOADING,
    "place": None,
    "checkpoint": 0,
    "etag": "",
    "etag_url": "",
    "joined": False,
}
INFORM = Inform(2, DEFAULT_MODULE)


def rolling_back(state: State, failure: Failure, number: int = -1, **members: Any) -> State:
    assert state.deployment is not None
    identity = state.deployment.notice.identity
    members = {"run": state.deployment.run + 1, **members}
    rolling = changed(state, phase=Phase.ROLLING_BACK, reason=failure, **members)
    refusals = (refused(failure, number),) if identity.digest is not None else ()
    return replace(rolling, refusals=refusals, tainted=(B,))


def fell_back(state: State, event: Started, failure: Failure) -> State:
    assert state.deployment is not None
    return rolling_back(restarted(state, event, untried=False), failure, run=state.deployment.run + 2)


def row(name: str, before: State, event: Event, after: State) -> Any:
    return pytest.param(before, event, after, id=name)


def unchanged(name: str, state: State, event: Event) -> Any:
    return row(name, state, event, state)


OLD_RUNS = started(board(b=FRESH, primary=B))
OLD_RUNS_TARGET_BAD = started(board(b=BAD))
OLD_RUNS_USED_UP = started(board(b=USED_UP, primary=B))
ON_TRIAL = started(board(B, B, b=view(B, True, 2, False)))
CONFIRMED = started(board(B, B))
RESCUE = started(board(None))
BOOTED_BY_OTHER_MEANS = Failure(Code.SLOT, "slot b was booted by other means while it was being written")
CANNOT_TELL = board(B, B, view(A, confirmed=None), view(B, confirmed=None))
STAYED = Failure(Code.FELL_BACK, "slot a did not come up; staying on b")


def left_by_hand(slots: Board | None = None, **members: Any) -> State:
    """Slot b runs, and is left by hand, with no package as the reason."""
    deployment = recovered(phase=Phase.ROLLING_BACK, reason=BY_HAND, **members)
    return at_rest(serial=2, board=slots or board(B, B), tainted=(A, B), deployment=deployment)


def stayed(state: State, event: Started) -> State:
    """The slot that did not come up is now the one to be marked bad."""
    return replace(restarted(state, event, old=B, target=A, reason=STAYED), tainted=(A,))


def gate(state: State, slots: Board) -> State:
    """The booted slot b has to pass the health gate, with nothing remembered of how it came there."""
    serial = state.serial + 1
    deployment = replace(recovered(), id=DeploymentId(f"c8-{serial}"))
    return replace(state, serial=serial, boot_id=NEXT_BOOT, board=slots, deployment=deployment)


STARTS = [
    row(
        "first start on a confirmed slot: nothing to prove",
        State(),
        started(board(b=BAD)),
        State(known=True, boot_id=NEXT_BOOT, board=board(b=BAD)),
    ),
    row(
        "first start on a slot that is not confirmed: the health gate",
        State(serial=1),
        started(board(B, B, b=FRESH)),
        State(True, 2, NEXT_BOOT, board(B, B, b=FRESH), deployment=recovered()),
    ),
    row(
        "first start where the boot loader cannot tell: the health gate",
        State(serial=1),
        started(board(a=view(A, confirmed=None))),
        State(True, 2, NEXT_BOOT, board(a=view(A, confirmed=None)), deployment=recovered(A)),
    ),
    row(
        "later start where the boot loader cannot tell: memory knows of no deployment, so it is trusted",
        at_rest(),
        started(board(a=view(A, confirmed=None))),
        at_rest(boot_id=NEXT_BOOT, board=board(a=view(A, confirmed=None))),
    ),
    row(
        "start on a slot that somebody else made primary: the health gate",
        at_rest(),
        started(board(B, B, b=FRESH)),
        at_rest(serial=2, boot_id=NEXT_BOOT, board=board(B, B, b=FRESH), deployment=recovered()),
    ),
    row(
        "start on a tainted slot: neither trusted nor tried again",
        at_rest(tainted=(B,)),
        started(board(B, B, b=FRESH)),
        at_rest(boot_id=NEXT_BOOT, board=board(B, B, b=FRESH), tainted=(B,)),
    ),
    row(
        "start where there is no other slot: nothing to go back to, so no gate",
        State(),
        started(Board(B, B, (FRESH,))),
        State(known=True, boot_id=NEXT_BOOT, board=Board(B, B, (FRESH,))),
    ),
    row(
        "first start in a rescue system: still no memory",
        State(),
        RESCUE,
        State(known=False, boot_id=NEXT_BOOT, board=board(None)),
    ),
    row(
        "start in a rescue system: the deployment waits as it is",
        under_way(Phase.REBOOTING, activations=1),
        RESCUE,
        replace(under_way(Phase.REBOOTING, activations=1), boot_id=NEXT_BOOT, board=board(None)),
    ),
    row(
        "cut while downloading, nothing durable: go on",
        under_way(),
        OLD_RUNS_TARGET_BAD,
        restarted(under_way(), OLD_RUNS_TARGET_BAD, idle_starts=1),
    ),
    row(
        "cut while downloading: go on, and what is there is joined",
        under_way(**SLOT),
        OLD_RUNS_TARGET_BAD,
        restarted(under_way(**SLOT), OLD_RUNS_TARGET_BAD, **GONE_ON),
    ),
    row(
        "cut while installing: begin again from the staging file",
        under_way(Phase.INSTALLING, **STAGED),
        OLD_RUNS_TARGET_BAD,
        restarted(under_way(Phase.INSTALLING, **STAGED), OLD_RUNS_TARGET_BAD, **GONE_ON),
    ),
    row(
        "target booted by other means while downloading: superseded without a step, and the health gate",
        under_way(**SLOT),
        ON_TRIAL,
        gate(ended(restarted(under_way(**SLOT), ON_TRIAL), Outcome.SUPERSEDED, BOOTED_BY_OTHER_MEANS), ON_TRIAL.board),
    ),
    row(
        "target booted by other means while installing, and the boot loader cannot tell: the health gate all the same",
        under_way(Phase.INSTALLING, **STAGED),
        started(CANNOT_TELL),
        gate(ended(under_way(Phase.INSTALLING, **STAGED), Outcome.SUPERSEDED, BOOTED_BY_OTHER_MEANS), CANNOT_TELL),
    ),
    row(
        "target booted by other means and confirmed: superseded without a step, and nothing to prove",
        under_way(),
        CONFIRMED,
        ended(restarted(under_way(), CONFIRMED), Outcome.SUPERSEDED, BOOTED_BY_OTHER_MEANS),
    ),
    row(
        "a third slot booted while downloading: that is the old one now",
        under_way(),
        started(Board(C, C, (view(A), BAD, view(C)))),
        restarted(under_way(), started(Board(C, C, (view(A), BAD, view(C)))), old=C, idle_starts=1),
    ),
    row(
        "old, target bad, activating: cut before the switch, so it does not count",
        under_way(Phase.ACTIVATING, activations=1, **SLOT),
        OLD_RUNS_TARGET_BAD,
        restarted(under_way(**SLOT), OLD_RUNS_TARGET_BAD),
    ),
    row(
        "old, target bad, activating, same boot: the same",
        under_way(Phase.ACTIVATING, activations=1, **STAGED),
        started(board(b=BAD), BOOT),
        restarted(under_way(Phase.INSTALLING, **STAGED), started(board(b=BAD), BOOT)),
    ),
    row(
        "old, target bad, activating the second time: only that one does not count",
        under_way(Phase.ACTIVATING, activations=2, **SLOT),
        OLD_RUNS_TARGET_BAD,
        restarted(under_way(activations=1, switched=False, **SLOT), OLD_RUNS_TARGET_BAD),
    ),
    row(
        "old, target primary with attempts, activating: switched, not booted: check again",
        under_way(Phase.ACTIVATING, activations=1, **SLOT),
        OLD_RUNS,
        restarted(under_way(activations=1, **SLOT), OLD_RUNS),
    ),
    row(
        "old, target primary with attempts, rebooting: check the staging file and the slot again",
        under_way(Phase.REBOOTING, activations=1, **STAGED),
        OLD_RUNS,
        restarted(under_way(Phase.INSTALLING, activations=1, **STAGED), OLD_RUNS),
    ),
    row(
        "old, target primary with attempts, activated twice: fell back",
        under_way(Phase.REBOOTING, activations=2, **SLOT),
        OLD_RUNS,
        fell_back(under_way(Phase.REBOOTING, activations=2, **SLOT), OLD_RUNS, NOT_UP),
    ),
    row(
        "old, rebooting, same boot: the daemon died, check again; what no boot has tried will not count twice",
        under_way(Phase.REBOOTING, activations=2, **SLOT),
        started(board(b=FRESH), BOOT),
        restarted(under_way(activations=2, untried=True, **SLOT), started(board(b=FRESH), BOOT)),
    ),
    row(
        "old, activating, same boot: the same",
        under_way(Phase.ACTIVATING, activations=1, **STAGED),
        started(board(b=FRESH), BOOT),
        restarted(under_way(Phase.INSTALLING, activations=1, untried=True, **STAGED), started(board(b=FRESH), BOOT)),
    ),
    row(
        "old, rebooting, same boot, target bad: somebody meddles; check again, it may still be held",
        under_way(Phase.REBOOTING, activations=1, **SLOT),
        started(board(b=BAD), BOOT),
        restarted(under_way(activations=1, untried=True, **SLOT), started(board(b=BAD), BOOT)),
    ),
    row(
        "old, attempts used up, rebooting: fell back",
        under_way(Phase.REBOOTING, activations=1),
        OLD_RUNS_USED_UP,
        fell_back(under_way(Phase.REBOOTING, activations=1), OLD_RUNS_USED_UP, NOT_UP),
    ),
    row(
        "old, attempts used up, activating: the switch was made before its save; fell back",
        under_way(Phase.ACTIVATING, activations=1),
        OLD_RUNS_USED_UP,
        fell_back(under_way(Phase.ACTIVATING, activations=1), OLD_RUNS_USED_UP, NOT_UP),
    ),
    row(
        "old, target bad, rebooting: somebody has given it up; fell back",
        under_way(Phase.REBOOTING, activations=1),
        OLD_RUNS_TARGET_BAD,
        fell_back(under_way(Phase.REBOOTING, activations=1), OLD_RUNS_TARGET_BAD, NOT_UP),
    ),
    row(
        "old, no such target any more, rebooting: fell back",
        under_way(Phase.REBOOTING, activations=1),
        started(Board(A, A, (view(A),))),
        fell_back(under_way(Phase.REBOOTING, activations=1), started(Board(A, A, (view(A),))), NOT_UP),
    ),
    row(
        "a third slot booted, activating, target bad: that is the old one now",
        under_way(Phase.ACTIVATING, activations=1, **SLOT),
        started(Board(C, C, (view(A), BAD, view(C)))),
        restarted(under_way(**SLOT), started(Board(C, C, (view(A), BAD, view(C)))), old=C),
    ),
    row(
        "old, confirming: it ran and restarted unconfirmed, whatever attempts are left",
        on_trial(),
        OLD_RUNS,
        fell_back(on_trial(), OLD_RUNS, RESTARTED),
    ),
    row(
        "old, checking again, target withdrawn already: go on, and it can be canceled again",
        under_way(activations=1, **SLOT),
        OLD_RUNS_TARGET_BAD,
        restarted(under_way(activations=1, switched=False, **SLOT), OLD_RUNS_TARGET_BAD, **GONE_ON),
    ),
    row(
        "old, checking again, target withdrawn before any boot could try it: it does not count",
        under_way(activations=1, untried=True, **SLOT),
        OLD_RUNS_TARGET_BAD,
        restarted(under_way(**SLOT), OLD_RUNS_TARGET_BAD, **GONE_ON),
    ),
    row(
        "old, checking again after the daemon died, and now another boot: it may have tried, so it counts",
        under_way(activations=1, untried=True, **SLOT),
        OLD_RUNS,
        restarted(under_way(activations=1, **SLOT), OLD_RUNS, **GONE_ON),
    ),
    row(
        "old, checking again after the daemon died with the second switch, and now another boot: fell back",
        under_way(activations=2, untried=True, **SLOT),
        OLD_RUNS,
        fell_back(under_way(activations=2, **SLOT), OLD_RUNS, NOT_UP),
    ),
    row(
        "old, withdrawn after a switch that counts, going on: it is before the switch",
        under_way(activations=1, switched=False, **SLOT),
        OLD_RUNS_TARGET_BAD,
        restarted(under_way(activations=1, switched=False, **SLOT), OLD_RUNS_TARGET_BAD, **GONE_ON),
    ),
    row(
        "old, checking again, target not withdrawn yet: go on",
        under_way(Phase.INSTALLING, activations=1, **STAGED),
        OLD_RUNS,
        restarted(under_way(Phase.INSTALLING, activations=1, **STAGED), OLD_RUNS, **GONE_ON),
    ),
    row(
        "old, checking again, attempts used up: it was tried after all; fell back",
        under_way(activations=1, **SLOT),
        OLD_RUNS_USED_UP,
        fell_back(under_way(activations=1, **SLOT), OLD_RUNS_USED_UP, NOT_UP),
    ),
    row(
        "target booted while checking again: on trial, and never written over",
        under_way(activations=1, **SLOT),
        ON_TRIAL,
        restarted(under_way(activations=1, **SLOT), ON_TRIAL, phase=Phase.CONFIRMING, on_trial=True),
    ),
    row(
        "target booted, activating: power failed between switch and save; on trial",
        under_way(Phase.ACTIVATING, activations=1, reason=MEDIUM),
        ON_TRIAL,
        restarted(
            under_way(Phase.ACTIVATING, activations=1), ON_TRIAL, phase=Phase.CONFIRMING, on_trial=True, reason=None
        ),
    ),
    row(
        "target booted, rebooting: on trial",
        under_way(Phase.REBOOTING, activations=1),
        ON_TRIAL,
        restarted(under_way(Phase.REBOOTING, activations=1), ON_TRIAL, phase=Phase.CONFIRMING, on_trial=True),
    ),
    row(
        "target booted and confirmed, rebooting: still has to pass the health gate",
        under_way(Phase.REBOOTING, activations=1),
        CONFIRMED,
        restarted(under_way(Phase.REBOOTING, activations=1), CONFIRMED, phase=Phase.CONFIRMING, on_trial=True),
    ),
    row(
        "target booted, not confirmed, confirming: still on trial",
        on_trial(by_hand=True),
        ON_TRIAL,
        restarted(on_trial(by_hand=True), ON_TRIAL),
    ),
    row(
        "target booted and confirmed, confirming: cut during confirm, finish the bookkeeping",
        on_trial(),
        CONFIRMED,
        ended(
            restarted(on_trial(), CONFIRMED),
            Outcome.SUCCEEDED,
            None,
            Step(2, DEFAULT_MODULE, 100, "", TWO),
            Inform(3, DEFAULT_MODULE),
        ),
    ),
    row(
        "rolling back, target still booted: again, and count it",
        on_trial(Phase.ROLLING_BACK, reason=HEALTH),
        ON_TRIAL,
        restarted(on_trial(Phase.ROLLING_BACK, reason=HEALTH), ON_TRIAL, idle_starts=1),
    ),
    row(
        "rolling back, old slot booted: the store is still to be put right",
        on_trial(Phase.ROLLING_BACK, reason=HEALTH),
        OLD_RUNS_TARGET_BAD,
        restarted(on_trial(Phase.ROLLING_BACK, reason=HEALTH), OLD_RUNS_TARGET_BAD, idle_starts=1),
    ),
    row(
        "left by hand, the other slot did not come up: that one is rolled back in turn, and the booted one is good",
        left_by_hand(),
        started(board(B, A)),
        stayed(left_by_hand(), started(board(B, A))),
    ),
    row(
        "the same where the boot loader cannot tell: memory knows that it was at rest",
        left_by_hand(CANNOT_TELL),
        started(replace(CANNOT_TELL, primary=A)),
        stayed(left_by_hand(), started(replace(CANNOT_TELL, primary=A))),
    ),
    row(
        "left by hand unconfirmed, the other slot did not come up: the same, but the booted one stays unconfirmed",
        left_by_hand(CANNOT_TELL, on_trial=True),
        started(replace(CANNOT_TELL, primary=A)),
        replace(stayed(left_by_hand(), started(replace(CANNOT_TELL, primary=A))), tainted=(B, A)),
    ),
    row(
        "left by hand, the power failed before the other slot was primary: go on",
        left_by_hand(),
        CONFIRMED,
        restarted(left_by_hand(), CONFIRMED, idle_starts=1),
    ),
    row(
        "left by hand, the other slot still not primary, for the second time: the boot loader does not want it",
        left_by_hand(idle_starts=1),
        CONFIRMED,
        stayed(left_by_hand(idle_starts=1), CONFIRMED),
    ),
    row(
        "left by hand and stayed, the store not yet put right: go on with that",
        stayed(left_by_hand(), started(board(B, A))),
        CONFIRMED,
        restarted(stayed(left_by_hand(), started(board(B, A))), CONFIRMED, idle_starts=1),
    ),
    row(
        "left by hand, the daemon died before the reboot: go on",
        left_by_hand(),
        started(board(B, A), BOOT),
        restarted(left_by_hand(), started(board(B, A), BOOT), idle_starts=1),
    ),
    row(
        "left by hand, the other slot runs: the store is still to be put right",
        left_by_hand(),
        started(board()),
        restarted(left_by_hand(), started(board()), idle_starts=1),
    ),
    row(
        "left for a failed health check without memory, still booted: it is never stayed with",
        changed(left_by_hand(), reason=HEALTH),
        started(board(B, A)),
        restarted(changed(left_by_hand(), reason=HEALTH), started(board(B, A)), idle_starts=1),
    ),
    row(
        "a package left by hand on trial, still booted: it is never stayed with",
        on_trial(Phase.ROLLING_BACK, reason=BY_HAND),
        started(board(B, A, b=FRESH)),
        restarted(on_trial(Phase.ROLLING_BACK, reason=BY_HAND), started(board(B, A, b=FRESH)), idle_starts=1),
    ),
]

REFUSED = at_rest(refusals=(refused(HEALTH, -1),))
LAPSED = at_rest(refusals=(refused(SESSION, -1, lapses=NOW),))
ANSWERED = at_rest(refusals=(refused(HEALTH, -1, answered="get:1"),))
HONOURED = f"push:1 {TWO.key}"
FULL = tuple(Inform(n, ModuleName(f"m{n}")) for n in range(OUTBOX_MAX))
MALFORMED = Failure(Code.MALFORMED, "size: -1")
REJECTED = Rejected("key", DEFAULT_MODULE, "9", MALFORMED, "offer-1", NOW)
REJECTION = Refusal("key", DEFAULT_MODULE, "9", -1, "size: -1", MALFORMED, NOW, answered="offer-1")


def never_begun(serial: int, module: ModuleName = DEFAULT_MODULE) -> Ended:
    """The line of history of an offer that was refused as it came."""
    id_ = DeploymentId(f"c8-{serial}")
    return Ended(id_, module, "9", Origin.PLATFORM, Outcome.REFUSED, MALFORMED, NOW, NOW, 0, 0, 0)


OFFERS = [
    row("an offer at rest: begin", at_rest(), noticed(), begun(at_rest())),
    row(
        "the running version: an inform and nothing else",
        at_rest(),
        noticed(running="2.0"),
        at_rest(serial=2, outbox=(INFORM,)),
    ),
    row(
        "the running version, informed already: once is enough",
        at_rest(outbox=(INFORM,)),
        noticed(running="2.0"),
        at_rest(outbox=(INFORM,)),
    ),
    row(
        "the running version, while a step is owed: the inform comes after it",
        at_rest(serial=3, outbox=(INFORM, failed_step(3, -1, HEALTH))),
        noticed(running="2.0"),
        at_rest(serial=4, outbox=(failed_step(3, -1, HEALTH), Inform(4, DEFAULT_MODULE))),
    ),
    row(
        "the running version, while another is downloaded: an inform and nothing else",
        under_way(),
        noticed(THREE, running="3.0"),
        replace(under_way(), serial=2, outbox=(INFORM,)),
    ),
    row(
        "the one under way: only its URL is new", under_way(), noticed(), changed(under_way(), notice=noticed().notice)
    ),
    unchanged("the one under way, offered by the platform too: stays local", under_way(origin=Origin.LOCAL), noticed()),
    unchanged(
        "the one under way, installed by hand too: stays the platform's", under_way(), noticed(origin=Origin.LOCAL)
    ),
    row(
        "another one before the switch: superseded, without a step",
        under_way(Phase.INSTALLING, **STAGED),
        noticed(THREE),
        begun(
            ended(
                under_way(Phase.INSTALLING, **STAGED),
                Outcome.SUPERSEDED,
                Failure(Code.CANCELED, "superseded by 3.0"),
            ),
            THREE,
        ),
    ),
    unchanged("another one once activating: too late", under_way(Phase.ACTIVATING, activations=1), noticed(THREE)),
    unchanged("another one while checking again after a switch: too late", under_way(activations=1), noticed(THREE)),
    unchanged("another one on trial: too late", on_trial(), noticed(THREE)),
    unchanged("another module's: busy", under_way(), noticed(OF_APP)),
    unchanged("a local one during the platform's: busy", under_way(), noticed(THREE, Origin.LOCAL)),
    unchanged("the platform's during a local one: busy", under_way(origin=Origin.LOCAL), noticed(THREE)),
    row(
        "a refused one: its step again, word for word",
        REFUSED,
        noticed(),
        replace(ANSWERED, serial=2, outbox=(failed_step(2, -1, HEALTH),)),
    ),
    unchanged("a refused one, the same message twice: answered once", ANSWERED, noticed()),
    row(
        "a refused one, its step still owed: not twice",
        replace(REFUSED, outbox=(failed_step(1, -1, HEALTH),)),
        noticed(),
        replace(ANSWERED, outbox=(failed_step(1, -1, HEALTH),)),
    ),
    row(
        "a refused one, the outbox full: unanswered",
        replace(REFUSED, outbox=FULL),
        noticed(),
        replace(ANSWERED, outbox=FULL),
    ),
    row("a refused one, by hand: begin", REFUSED, noticed(origin=Origin.LOCAL), begun(REFUSED, origin=Origin.LOCAL)),
    row("a refused one, a day after it lacked a session: begin", LAPSED, noticed(), begun(LAPSED)),
    unchanged(
        "a refused one while another is downloaded: later, its step would hit the wrong job",
        replace(under_way(), refusals=(refused(HEALTH, -1, THREE),)),
        noticed(THREE),
    ),
    row(
        "a refused one by hand while another is downloaded: busy",
        replace(under_way(), refusals=(refused(HEALTH, -1, THREE),)),
        noticed(THREE, Origin.LOCAL),
        replace(under_way(), refusals=(refused(HEALTH, -1, THREE),)),
    ),
    row(
        "a pushed offer at rest: begin, and remember the message",
        at_rest(),
        noticed(offer="push:1"),
        begun(at_rest(honoured=(HONOURED,))),
    ),
    unchanged(
        "the same message again, late: it has been honoured", at_rest(honoured=(HONOURED,)), noticed(offer="push:1")
    ),
    unchanged(
        "the same message again, its package refused by now: no answer",
        replace(REFUSED, honoured=(HONOURED,)),
        noticed(offer="push:1"),
    ),
    unchanged(
        "the same message again, its package runs by now: no inform",
        at_rest(honoured=(HONOURED,)),
        noticed(offer="push:1", running="2.0"),
    ),
    unchanged(
        "the same message again, another package has replaced its own: not superseded in turn",
        replace(under_way(identity=THREE), honoured=(HONOURED,)),
        noticed(offer="push:1"),
    ),
    row(
        "the same message again, its package is under way: only its URL is new",
        replace(under_way(), honoured=(HONOURED,)),
        noticed(offer="push:1"),
        changed(replace(under_way(), honoured=(HONOURED,)), notice=noticed().notice),
    ),
    row(
        "the same package in another message: begin",
        at_rest(honoured=(HONOURED,)),
        noticed(offer="push:2"),
        begun(at_rest(honoured=(HONOURED, f"push:2 {TWO.key}"))),
    ),
    row(
        "another package in a message of the same number: begin",
        at_rest(honoured=(HONOURED,)),
        noticed(THREE, offer="push:1"),
        begun(at_rest(honoured=(HONOURED, f"push:1 {THREE.key}")), THREE),
    ),
    row(
        "the same package as an answer: begin, for an answer says what holds now",
        at_rest(honoured=(HONOURED,)),
        noticed(offer="get:1"),
        begun(at_rest(honoured=(HONOURED,))),
    ),
    unchanged("in a rescue system: not ours", at_rest(board=board(None)), noticed()),
    unchanged(
        "in a rescue system, another one is under way: not ours",
        replace(under_way(), board=board(None)),
        noticed(THREE),
    ),
    unchanged("with one slot: not ours", at_rest(board=Board(A, A, (view(A),))), noticed()),
    unchanged("before the first start: not ours", State(), noticed()),
    row(
        "an unusable offer: refused with a step",
        at_rest(),
        REJECTED,
        at_rest(
            serial=3,
            refusals=(REJECTION,),
            outbox=(Step(3, DEFAULT_MODULE, -1, "size: -1", None),),
            unfiled=(never_begun(2),),
        ),
    ),
    unchanged("an unusable offer, the same message twice: answered once", at_rest(refusals=(REJECTION,)), REJECTED),
    row(
        "an unusable offer in a new message: the same step again",
        at_rest(refusals=(REJECTION,)),
        replace(REJECTED, offer="offer-2", failure=HEALTH),
        at_rest(
            serial=2,
            refusals=(replace(REJECTION, answered="offer-2"),),
            outbox=(Step(2, DEFAULT_MODULE, -1, "size: -1", None),),
        ),
    ),
    unchanged(
        "an unusable offer for the module under way: later, its step would hit the wrong job", under_way(), REJECTED
    ),
    row(
        "an unusable offer for another module: refused with a step",
        under_way(),
        replace(REJECTED, module=APP),
        replace(
            under_way(),
            serial=3,
            refusals=(replace(REJECTION, module=APP),),
            outbox=(Step(3, APP, -1, "size: -1", None),),
            unfiled=(never_begun(2, APP),),
        ),
    ),
]

CHECKPOINT = Checkpointed(DOWNLOAD, PlaceKind.SLOT, 400, "e", "https://x/2", True, 400, 1)
AFTER_CHECKPOINT: dict[str, Any] = {
    "place": PlaceKind.SLOT,
    "checkpoint": 400,
    "peak": 400,
    "etag": "e",
    "etag_url": "https://x/2",
    "joined": True,
    "fetched": 400,
    "resumed": 1,
}
SUCCESS = (Step(2, DEFAULT_MODULE, 100, "", TWO), Inform(3, DEFAULT_MODULE))

RESULTS = [
    row("a checkpoint", under_way(idle_starts=4), CHECKPOINT, under_way(**AFTER_CHECKPOINT)),
    row(
        "a checkpoint that is no progress: the idle starts stand, the peak too",
        under_way(idle_starts=4, checkpoint=500, peak=900),
        CHECKPOINT,
        under_way(idle_starts=4, **{**AFTER_CHECKPOINT, "peak": 900}),
    ),
    unchanged("a checkpoint of an earlier run: late", under_way(run=2), CHECKPOINT),
    unchanged("a checkpoint after the end: late", at_rest(), CHECKPOINT),
    row("marked good: settled for this boot", at_rest(settled=None), Finished(MarkGood(A, BOOT), NOW), at_rest()),
    unchanged("marked good in an earlier boot: late", at_rest(settled=None), Finished(MarkGood(A, NEXT_BOOT), NOW)),
    unchanged("not marked good: it is still owed", at_rest(settled=None), Failed(MarkGood(A, BOOT), BOOT_STORE, NOW)),
    row(
        "downloaded to the slot: activate, counted before the switch",
        under_way(reason=MEDIUM, **SLOT),
        Finished(DOWNLOAD, NOW, online=True),
        under_way(Phase.ACTIVATING, activations=1, online_before=True, **SLOT),
    ),
    row(
        "downloaded to the staging file: install",
        under_way(**STAGED),
        Finished(DOWNLOAD, NOW),
        under_way(Phase.INSTALLING, **STAGED),
    ),
    row(
        "installed: activate, counted before the switch",
        under_way(Phase.INSTALLING, activations=1, online_before=True, **STAGED),
        Finished(INSTALL, NOW),
        under_way(Phase.ACTIVATING, activations=2, online_before=True, **STAGED),
    ),
    row(
        "checked again after the daemon died between switch and reboot: activate, counted already",
        under_way(activations=1, untried=True, **SLOT),
        Finished(DOWNLOAD, NOW),
        under_way(Phase.ACTIVATING, activations=1, **SLOT),
    ),
    row(
        "activated: reboot",
        under_way(Phase.ACTIVATING, activations=1),
        Finished(ACTIVATE, NOW, online=True),
        under_way(Phase.REBOOTING, activations=1, online_before=True),
    ),
    row(
        "activated, offline by now: the session an hour ago counts",
        under_way(Phase.ACTIVATING, activations=1, online_before=True),
        Finished(ACTIVATE, NOW),
        under_way(Phase.REBOOTING, activations=1, online_before=True),
    ),
    unchanged("a reboot has no result", under_way(Phase.REBOOTING), Finished(REBOOT, NOW)),
    row(
        "confirmed: 100, then the inform; the taint and the refusal are gone",
        replace(on_trial(fetched=900, resumed=2), tainted=(A, B), refusals=(refused(SESSION, -1),)),
        Finished(CONFIRM, NOW),
        ended(
            on_trial(fetched=900, resumed=2),
            Outcome.SUCCEEDED,
            None,
            *SUCCESS,
            settled=BOOT,
            tainted=(A,),
        ),
    ),
    row(
        "confirmed, with an inform owed from before: that one would come ahead of 100, so it goes",
        replace(on_trial(), serial=3, outbox=(Inform(2, DEFAULT_MODULE), Inform(3, APP))),
        Finished(CONFIRM, NOW),
        ended(
            replace(on_trial(), serial=3, outbox=(Inform(3, APP),)),
            Outcome.SUCCEEDED,
            None,
            Step(4, DEFAULT_MODULE, 100, "", TWO),
            Inform(5, DEFAULT_MODULE),
            settled=BOOT,
        ),
    ),
    row(
        "confirmed, a local one: only the inform",
        on_trial(origin=Origin.LOCAL),
        Finished(CONFIRM, NOW),
        ended(on_trial(origin=Origin.LOCAL), Outcome.SUCCEEDED, None, INFORM, settled=BOOT),
    ),
    unchanged("confirmed by an earlier run: late", on_trial(run=2), Finished(CONFIRM, NOW)),
    unchanged("a result of another deployment: late", under_way(), Finished(Download(DeploymentId("64-0"), 1), NOW)),
    unchanged("a failure of an earlier run: late", under_way(run=2), Failed(DOWNLOAD, DIGEST, NOW)),
    unchanged("a failure after the end: late", at_rest(), Failed(DOWNLOAD, DIGEST, NOW)),
    row(
        "another digest, bytes of several responses: once from zero, not counted",
        under_way(joined=True, place=PlaceKind.SLOT, checkpoint=1000),
        Failed(DOWNLOAD, DIGEST, NOW),
        under_way(repeated=True, run=2, reason=DIGEST),
    ),
    row(
        "another digest, repeated already: from zero, and it counts",
        under_way(joined=True, repeated=True, place=PlaceKind.SLOT, checkpoint=1000),
        Failed(DOWNLOAD, DIGEST, NOW),
        under_way(repeated=True, run=2, tries=1, reason=DIGEST),
    ),
    row(
        "other content while installing: from zero",
        under_way(Phase.INSTALLING, **STAGED),
        Failed(INSTALL, CONTENT, NOW),
        under_way(run=2, tries=1, peak=1000, reason=CONTENT),
    ),
    row(
        "a medium that hiccups: again with what is there",
        under_way(Phase.INSTALLING, **STAGED),
        Failed(INSTALL, MEDIUM, NOW),
        under_way(Phase.INSTALLING, run=2, tries=1, reason=MEDIUM, **STAGED),
    ),
    row(
        "the last try: refused, -3",
        under_way(tries=2, fetched=3000),
        Failed(DOWNLOAD, DIGEST, NOW),
        ended(
            under_way(tries=3, fetched=3000),
            Outcome.FAILED,
            DIGEST,
            failed_step(2, -3, DIGEST),
            refusals=(refused(DIGEST, -3),),
        ),
    ),
    row(
        "what trying again does not cure: refused at once, -4",
        under_way(),
        Failed(DOWNLOAD, SPACE, NOW),
        ended(under_way(tries=1), Outcome.FAILED, SPACE, failed_step(2, -4, SPACE), refusals=(refused(SPACE, -4),)),
    ),
    row(
        "the same for a local one: no step, and the platform's package of this identity is not refused for it",
        under_way(origin=Origin.LOCAL),
        Failed(DOWNLOAD, SPACE, NOW),
        ended(under_way(origin=Origin.LOCAL, tries=1), Outcome.FAILED, SPACE),
    ),
    row(
        "the last try of a check after a switch: roll back, the target may be primary",
        under_way(tries=2, activations=1),
        Failed(DOWNLOAD, DIGEST, NOW),
        rolling_back(under_way(tries=3, activations=1), DIGEST, -3),
    ),
    row(
        "the last try after a switch that has been withdrawn: refused, -3",
        under_way(tries=2, activations=1, switched=False),
        Failed(DOWNLOAD, DIGEST, NOW),
        ended(
            under_way(tries=3, activations=1, switched=False),
            Outcome.FAILED,
            DIGEST,
            failed_step(2, -3, DIGEST),
            refusals=(refused(DIGEST, -3),),
        ),
    ),
    row(
        "not activated: roll back",
        under_way(Phase.ACTIVATING, activations=1),
        Failed(ACTIVATE, BOOT_STORE, NOW),
        rolling_back(under_way(Phase.ACTIVATING, activations=1), BOOT_STORE),
    ),
    row(
        "not rebooted: roll back",
        under_way(Phase.REBOOTING, activations=1),
        Failed(REBOOT, BOOT_STORE, NOW),
        rolling_back(under_way(Phase.REBOOTING, activations=1), BOOT_STORE),
    ),
    row(
        "unhealthy: refused at once, and roll back",
        on_trial(),
        Failed(CONFIRM, HEALTH, NOW),
        rolling_back(on_trial(), HEALTH),
    ),
    row(
        "unhealthy, and the old slot is bad: stay unconfirmed, refuse, -1",
        on_trial(board=board(B, B, view(A, False, 0, False), FRESH)),
        Failed(CONFIRM, HEALTH, NOW),
        ended(
            on_trial(board=board(B, B, view(A, False, 0, False), FRESH)),
            Outcome.FAILED,
            HEALTH,
            failed_step(2, -1, HEALTH),
            refusals=(refused(HEALTH, -1),),
            tainted=(B,),
        ),
    ),
    row(
        "unhealthy without memory, the other slot is confirmed: roll back, nothing to refuse",
        at_rest(board=board(B, B, b=FRESH), settled=None, deployment=recovered()),
        Failed(Confirm(DeploymentId("c8-2"), 1), HEALTH, NOW),
        rolling_back(at_rest(board=board(B, B, b=FRESH), settled=None, deployment=recovered()), HEALTH),
    ),
    row(
        "unhealthy without memory, nobody knows whether the other slot holds a system: stay",
        at_rest(board=board(B, B, view(A, confirmed=None), FRESH), settled=None, deployment=recovered()),
        Failed(Confirm(DeploymentId("c8-2"), 1), HEALTH, NOW),
        ended(
            at_rest(board=board(B, B, view(A, confirmed=None), FRESH), settled=None, deployment=recovered()),
            Outcome.FAILED,
            HEALTH,
            tainted=(B,),
        ),
    ),
    row(
        "no session, the first time: refused for a day",
        on_trial(),
        Failed(CONFIRM, SESSION, NOW),
        replace(rolling_back(on_trial(), SESSION), refusals=(refused(SESSION, -1, lapses=NOW + DAY_S),)),
    ),
    row(
        "no session, the second time: refused for a day",
        replace(on_trial(), refusals=(refused(SESSION, -1),)),
        Failed(CONFIRM, SESSION, NOW),
        replace(rolling_back(on_trial(), SESSION), refusals=(refused(SESSION, -1, times=2, lapses=NOW + DAY_S),)),
    ),
    row(
        "no session, the third time: refused",
        replace(on_trial(), refusals=(refused(SESSION, -1, times=2),)),
        Failed(CONFIRM, SESSION, NOW),
        replace(rolling_back(on_trial(), SESSION), refusals=(refused(SESSION, -1, times=3),)),
    ),
    row(
        "no session after an earlier rollback for another reason: counts anew",
        replace(on_trial(), refusals=(refused(HEALTH, -1),)),
        Failed(CONFIRM, SESSION, NOW),
        replace(rolling_back(on_trial(), SESSION), refusals=(refused(SESSION, -1, lapses=NOW + DAY_S),)),
    ),
    unchanged(
        "rolled back, the target still runs: the reboot is awaited",
        on_trial(Phase.ROLLING_BACK, reason=HEALTH),
        Finished(ROLL_BACK, NOW),
    ),
    unchanged(
        "not rolled back, the target still runs: the boot attempts decide",
        on_trial(Phase.ROLLING_BACK, reason=HEALTH),
        Failed(ROLL_BACK, BOOT_STORE, NOW),
    ),
    row(
        "rolled back, the old slot runs: the negative step, then the inform",
        under_way(Phase.ROLLING_BACK, on_trial=True, reason=HEALTH),
        Finished(ROLL_BACK, NOW),
        ended(
            under_way(Phase.ROLLING_BACK, on_trial=True, reason=HEALTH),
            Outcome.ROLLED_BACK,
            HEALTH,
            failed_step(2, -1, HEALTH),
            Inform(3, DEFAULT_MODULE),
        ),
    ),
    row(
        "rolled back after a fall-back before anybody saw it run: rolled back all the same",
        under_way(Phase.ROLLING_BACK, reason=NOT_UP),
        Finished(ROLL_BACK, NOW),
        ended(
            under_way(Phase.ROLLING_BACK, reason=NOT_UP),
            Outcome.ROLLED_BACK,
            NOT_UP,
            failed_step(2, -1, NOT_UP),
            Inform(3, DEFAULT_MODULE),
        ),
    ),
    row(
        "rolled back, and the target never ran: failed",
        under_way(Phase.ROLLING_BACK, origin=Origin.LOCAL, reason=BOOT_STORE),
        Finished(ROLL_BACK, NOW),
        ended(
            under_way(Phase.ROLLING_BACK, origin=Origin.LOCAL, reason=BOOT_STORE), Outcome.FAILED, BOOT_STORE, INFORM
        ),
    ),
    row(
        "rolled back in turn a slot that did not come up, by hand: failed",
        stayed(left_by_hand(), started(board(B, A), BOOT)),
        Finished(RollBack(DeploymentId("c8-2"), 2), NOW),
        ended(stayed(left_by_hand(), started(board(B, A), BOOT)), Outcome.FAILED, STAYED, Inform(3, DEFAULT_MODULE)),
    ),
    row(
        "left by hand, the other slot runs: rolled back",
        replace(left_by_hand(), board=board(A, A)),
        Finished(RollBack(DeploymentId("c8-2"), 1), NOW),
        ended(replace(left_by_hand(), board=board(A, A)), Outcome.ROLLED_BACK, BY_HAND, Inform(3, DEFAULT_MODULE)),
    ),
    row(
        "found on trial without memory, restarted, and the old slot runs: rolled back",
        changed(replace(left_by_hand(), board=board(A, A)), reason=RESTARTED, on_trial=True),
        Finished(RollBack(DeploymentId("c8-2"), 1), NOW),
        ended(replace(left_by_hand(), board=board(A, A)), Outcome.ROLLED_BACK, RESTARTED, Inform(3, DEFAULT_MODULE)),
    ),
    row(
        "rolled back, the reason forgotten: rolled back",
        under_way(Phase.ROLLING_BACK, origin=Origin.LOCAL, on_trial=True),
        Finished(ROLL_BACK, NOW),
        ended(
            under_way(Phase.ROLLING_BACK, origin=Origin.LOCAL),
            Outcome.ROLLED_BACK,
            Failure(Code.UNKNOWN, "rolled back"),
            INFORM,
        ),
    ),
    row(
        "the store takes no rollback, but the old slot runs: end and say so",
        under_way(Phase.ROLLING_BACK, on_trial=True, reason=HEALTH),
        Failed(ROLL_BACK, BOOT_STORE, NOW),
        ended(
            under_way(Phase.ROLLING_BACK, on_trial=True, reason=HEALTH),
            Outcome.ROLLED_BACK,
            HEALTH,
            failed_step(2, -1, HEALTH),
            Inform(3, DEFAULT_MODULE),
        ),
    ),
    row(
        "delivered: owed no more",
        at_rest(outbox=(INFORM, Inform(3, APP))),
        Delivered(2),
        at_rest(outbox=(Inform(3, APP),)),
    ),
    unchanged("delivered twice", at_rest(outbox=(INFORM,)), Delivered(1)),
    row(
        "filed: the history has it",
        ended(under_way(), Outcome.SUPERSEDED, None),
        Filed(ID),
        replace(ended(under_way(), Outcome.SUPERSEDED, None), unfiled=()),
    ),
]

REQUESTS = [
    row(
        "cancel before the switch: -1, and refused until retry",
        under_way(),
        CancelRequested(NOW),
        ended(under_way(), Outcome.CANCELED, CANCELED, failed_step(2, -1, CANCELED), refusals=(refused(CANCELED, -1),)),
    ),
    row(
        "cancel a local one: no step, no refusal",
        under_way(origin=Origin.LOCAL),
        CancelRequested(NOW),
        ended(under_way(origin=Origin.LOCAL), Outcome.CANCELED, CANCELED),
    ),
    row(
        "cancel before the first start",
        replace(under_way(origin=Origin.LOCAL), board=None),
        CancelRequested(NOW),
        replace(ended(under_way(origin=Origin.LOCAL), Outcome.CANCELED, CANCELED), board=None),
    ),
    unchanged("cancel at rest", at_rest(), CancelRequested(NOW)),
    unchanged("cancel once activating", under_way(Phase.ACTIVATING, activations=1), CancelRequested(NOW)),
    unchanged("cancel while checking again after a switch", under_way(activations=1), CancelRequested(NOW)),
    row(
        "cancel after a switch that has been withdrawn: -1, and refused until retry",
        under_way(activations=1, switched=False),
        CancelRequested(NOW),
        ended(under_way(), Outcome.CANCELED, CANCELED, failed_step(2, -1, CANCELED), refusals=(refused(CANCELED, -1),)),
    ),
    row(
        "retry: no refusal is left, and no message counts as heard; the taint is left",
        replace(REFUSED, tainted=(B,), honoured=(HONOURED,)),
        RetryRequested(NOW),
        at_rest(tainted=(B,)),
    ),
    unchanged("retry when nothing is refused", at_rest(), RetryRequested(NOW)),
    row(
        "reboot now: another run of it",
        under_way(Phase.REBOOTING),
        RebootRequested(NOW),
        under_way(Phase.REBOOTING, run=2),
    ),
    unchanged("reboot when nothing is staged", under_way(), RebootRequested(NOW)),
    unchanged("reboot at rest", at_rest(), RebootRequested(NOW)),
    row(
        "mark good on trial: stands for the health checks",
        on_trial(),
        MarkGoodRequested(NOW),
        changed(on_trial(), by_hand=True, run=2),
    ),
    row(
        "mark good a tainted slot: idle work may do it now",
        at_rest(board=board(B, B, b=FRESH), tainted=(A, B)),
        MarkGoodRequested(NOW),
        at_rest(board=board(B, B, b=FRESH), tainted=(A,), settled=None),
    ),
    row(
        "mark good while downloading: the booted slot, once more",
        under_way(),
        MarkGoodRequested(NOW),
        replace(under_way(), settled=None),
    ),
    unchanged("mark good while rolling back", on_trial(Phase.ROLLING_BACK), MarkGoodRequested(NOW)),
    unchanged("mark good in a rescue system", at_rest(board=board(None)), MarkGoodRequested(NOW)),
    unchanged("mark good before the first start", State(), MarkGoodRequested(NOW)),
    row(
        "roll back on trial",
        on_trial(),
        roll_back(board(B, B, b=FRESH)),
        rolling_back(on_trial(), BY_HAND),
    ),
    row(
        "roll back before the reboot",
        under_way(Phase.REBOOTING, activations=1),
        roll_back(board(A, B, b=FRESH)),
        rolling_back(under_way(Phase.REBOOTING, activations=1), BY_HAND),
    ),
    row(
        "roll back at rest: to the other slot, which is confirmed; this one is tainted",
        at_rest(board=board(B, B), tainted=(A,)),
        roll_back(board(B, B)),
        at_rest(
            serial=2,
            board=board(B, B),
            tainted=(A, B),
            deployment=recovered(phase=Phase.ROLLING_BACK, reason=BY_HAND),
        ),
    ),
    row(
        "roll back at rest from a tainted slot: should it be booted again, it is not trusted",
        at_rest(board=board(B, B, b=FRESH), tainted=(B, A)),
        roll_back(board(B, B, b=FRESH)),
        at_rest(
            serial=2,
            board=board(B, B, b=FRESH),
            tainted=(A, B),
            deployment=recovered(phase=Phase.ROLLING_BACK, reason=BY_HAND, on_trial=True),
        ),
    ),
    row(
        "roll back at rest: the board as it is now counts, not as it was at the start",
        at_rest(board=board(B, B, view(A, False, 0, False))),
        roll_back(board(B, B)),
        at_rest(
            serial=2,
            board=board(B, B, view(A, False, 0, False)),
            tainted=(B,),
            deployment=recovered(phase=Phase.ROLLING_BACK, reason=BY_HAND),
        ),
    ),
    row(
        "roll back without memory, the boot loader cannot tell: the owner decides",
        at_rest(board=board(B, B, view(A, confirmed=None), FRESH), deployment=recovered()),
        roll_back(board(B, B, view(A, confirmed=None), FRESH)),
        rolling_back(at_rest(board=board(B, B, view(A, confirmed=None), FRESH), deployment=recovered()), BY_HAND),
    ),
    unchanged(
        "roll back on trial to a bad slot",
        on_trial(board=board(B, B, view(A, False, 0, False), FRESH)),
        roll_back(board(B, B, view(A, False, 0, False), FRESH)),
    ),
    unchanged(
        "roll back on trial to a slot that has become bad since the start",
        on_trial(),
        roll_back(board(B, B, view(A, False, 0, False), FRESH)),
    ),
    unchanged("roll back before the switch", under_way(), roll_back()),
    unchanged("roll back twice", on_trial(Phase.ROLLING_BACK), roll_back(board(B, B, b=FRESH))),
    unchanged("roll back to a bad slot", at_rest(board=board(b=BAD)), roll_back(board(b=BAD))),
    unchanged("roll back to a slot that has become bad since the start", at_rest(), roll_back(board(b=BAD))),
    unchanged("roll back to a slot never confirmed", at_rest(board=board(b=FRESH)), roll_back(board(b=FRESH))),
    unchanged("roll back with one slot", at_rest(), roll_back(Board(A, A, (view(A),)))),
    unchanged("roll back in a rescue system", at_rest(board=board(None)), roll_back(board(None), None)),
]


@pytest.mark.parametrize(("before", "event", "after"), [*STARTS, *OFFERS, *RESULTS, *REQUESTS])
def test_transition(before: State, event: Event, after: State) -> None:
    assert step(before, event) == after


def test_after_a_cancel_nobody_goes_back_to_the_slot_that_was_being_written() -> None:
    canceled = step(under_way(), CancelRequested(NOW))

    assert objection(canceled, roll_back(board(b=BAD))) is not None
    assert objection(canceled, roll_back()) is None, "nothing had been written yet"


def test_canceled_and_retried_within_one_connection_a_package_begins_again() -> None:
    offer = noticed(offer="get:3")
    state = step(step(step(at_rest(), offer), CancelRequested(NOW)), RetryRequested(NOW))

    assert verdict(state, offer) == Verdict.BEGIN


def test_canceled_and_retried_a_package_begins_again_by_the_very_message() -> None:
    offer = noticed(offer="push:3")
    canceled = step(step(at_rest(), offer), CancelRequested(NOW))

    assert verdict(canceled, offer) == Verdict.HEARD
    assert verdict(step(canceled, RetryRequested(NOW)), offer) == Verdict.BEGIN


def test_a_late_duplicate_of_a_replaced_package_replaces_nothing() -> None:
    first, second = noticed(offer="push:1"), noticed(THREE, offer="push:2")
    replaced = step(step(at_rest(), first), second)

    assert step(replaced, first) == replaced


def test_the_messages_that_count_as_heard_are_bounded() -> None:
    state = at_rest()
    for number in range(HONOURED_MAX + 1):
        state = step(state, noticed(replace(TWO, version=str(number)), offer=f"push:{number}"))

    assert len(state.honoured) == HONOURED_MAX
    assert state.honoured[-1].startswith(f"push:{HONOURED_MAX} ")


def switched(state: State) -> State:
    """Checked and activated: the reboot is next."""
    for _ in range(2):
        work = work_for(state)
        assert work is not None
        state = step(state, Finished(work, NOW))
    assert phase_of(state) == Phase.REBOOTING
    return state


def phase_of(state: State) -> Phase | None:
    return state.deployment.phase if state.deployment is not None else None


@pytest.mark.parametrize("dies", [False, True], ids=["", "and the daemon is started once more on the way down"])
def test_a_switch_that_is_made_twice_in_vain_is_a_fall_back(dies: bool) -> None:
    """One-shot boot flags: nobody knows whether the target was tried."""
    state = under_way(**SLOT)
    for boot_id in (BootId("boot-2"), BootId("boot-3")):
        assert phase_of(state) == Phase.DOWNLOADING
        state = switched(state)
        if dies:
            assert state.boot_id is not None
            state = step(state, replace(OLD_RUNS, boot_id=state.boot_id))
        state = replace(step(state, replace(OLD_RUNS, boot_id=boot_id)), settled=boot_id)

    assert state.deployment is not None
    assert (state.deployment.phase, state.deployment.reason) == (Phase.ROLLING_BACK, NOT_UP)


def test_a_daemon_that_dies_between_switch_and_reboot_uses_up_no_activation() -> None:
    state = under_way(**SLOT)
    for _ in range(5):
        state = step(switched(state), replace(OLD_RUNS, boot_id=BOOT))
        state = step(state, replace(OLD_RUNS, boot_id=BOOT))  # and again while it checks

    assert phase_of(state) == Phase.DOWNLOADING
    assert phase_of(step(switched(state), OLD_RUNS)) == Phase.DOWNLOADING


def test_the_oldest_refusal_gives_way_to_a_new_one() -> None:
    state = at_rest()
    for number in range(REFUSALS_MAX + 1):
        state = step(state, replace(REJECTED, key=f"key {number}"))

    assert [refusal.key for refusal in state.refusals] == [f"key {n}" for n in range(1, REFUSALS_MAX + 1)]


@pytest.mark.parametrize("code", [Code.MALFORMED, Code.UNSUPPORTED])
def test_a_refused_package_gives_way_only_when_there_is_no_unusable_offer_to_forget(code: Code) -> None:
    def of(number: int, failure: Failure) -> Refusal:
        return replace(REJECTION, key=f"{number}", failure=failure)

    unusable = Failure(code, "size: -1")
    rest = tuple(of(number, HEALTH) for number in range(REFUSALS_MAX - 3))
    state = at_rest(refusals=(of(97, HEALTH), of(98, unusable), of(99, unusable), *rest))

    forgotten = [{"97", "98", "99"}]
    for number in range(3):
        state = step(changed(replace(under_way(), refusals=state.refusals)), Failed(DOWNLOAD, SPACE, NOW))
        state = replace(
            state, refusals=tuple(replace(r, key=f"new {number}") if r.key == TWO.key else r for r in state.refusals)
        )
        forgotten.append(forgotten[0] & {refusal.key for refusal in state.refusals})

    assert forgotten[1:] == [{"97", "99"}, {"97"}, set()]
    assert len(state.refusals) == REFUSALS_MAX


def test_offers_that_are_refused_within_one_second_have_lines_of_their_own() -> None:
    """Also where the outbox is full, and beside the deployment that began in that second."""
    state = replace(step(at_rest(), noticed(OF_APP)), outbox=FULL)
    for number in range(3):
        state = step(state, replace(REJECTED, key=f"key {number}"))

    assert state.deployment is not None
    assert len({state.deployment.id, *(line.id for line in state.unfiled)}) == 4


def test_an_offer_that_is_refused_as_it_comes_is_not_the_last_deployment() -> None:
    before = ended(under_way(), Outcome.CANCELED, CANCELED)

    assert step(before, REJECTED).last == before.last


def test_history_that_cannot_be_filed_is_bounded() -> None:
    state = at_rest()
    for number in range(UNFILED_MAX + 2):
        identity = replace(TWO, version=str(number))
        state = step(state, noticed(identity))

    assert len(state.unfiled) == UNFILED_MAX


def test_a_long_detail_is_cut_before_it_is_kept() -> None:
    state = step(under_way(), Failed(DOWNLOAD, Failure(Code.SPACE, "x" * 100_000), NOW))

    assert state.last is not None
    assert state.last.failure == Failure(Code.SPACE, "x" * DETAIL_CHARACTERS)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("as it is", "as it is"),
        ("one\nline\tonly\x00 \u202e!", "one line only !"),
        ("x" * 128, "x" * 128),
        ("x" * 129, "x" * 127 + "…"),
    ],
)
def test_what_the_platform_reads_is_one_line_that_fits(text: str, wanted: str) -> None:
    assert short(text) == wanted


@pytest.mark.parametrize("code", Code)
def test_each_code_has_the_platforms_number(code: Code) -> None:
    download = {Code.HTTP_STATUS, Code.URL, Code.CONTENT}
    writing = {Code.FORMAT, Code.SPACE, Code.MEDIUM, Code.SLOT, Code.INSTALL}
    wanted = -2 if code in download else -3 if code in {Code.DIGEST, Code.SIGNATURE} else -4 if code in writing else -1

    assert step_for(Failure(code, "")) == wanted


@pytest.mark.parametrize(
    ("state", "offer", "wanted"),
    [
        (at_rest(), noticed(), Verdict.BEGIN),
        (under_way(), noticed(THREE), Verdict.SUPERSEDE),
        (under_way(), noticed(), Verdict.SAME),
        (at_rest(), noticed(running="2.0"), Verdict.RUNNING),
        (at_rest(honoured=(HONOURED,)), noticed(offer="push:1"), Verdict.HEARD),
        (replace(under_way(), refusals=(refused(HEALTH, -1, THREE),)), noticed(THREE), Verdict.BUSY),
        (replace(on_trial(), refusals=(refused(HEALTH, -1, THREE),)), noticed(THREE), Verdict.TOO_LATE),
        (REFUSED, noticed(), Verdict.REFUSED),
        (on_trial(), noticed(THREE), Verdict.TOO_LATE),
        (under_way(), noticed(OF_APP), Verdict.BUSY),
        (State(), noticed(), Verdict.NOT_OURS),
    ],
)
def test_the_log_and_who_asks_hear_what_an_offer_means(state: State, offer: Noticed, wanted: Verdict) -> None:
    assert verdict(state, offer) == wanted


@pytest.mark.parametrize(
    ("state", "request_", "words"),
    [
        (under_way(), CancelRequested(NOW), None),
        (at_rest(), CancelRequested(NOW), "nothing to cancel: no deployment is under way"),
        (on_trial(), CancelRequested(NOW), "too late: 2.0 is confirming, the switch has begun"),
        (REFUSED, RetryRequested(NOW), None),
        (at_rest(), RetryRequested(NOW), "nothing to retry: no package is refused"),
        (under_way(Phase.REBOOTING), RebootRequested(NOW), None),
        (at_rest(), RebootRequested(NOW), "nothing to reboot into: no slot is staged"),
        (at_rest(), MarkGoodRequested(NOW), None),
        (State(), MarkGoodRequested(NOW), "nothing to mark good: the booted slot is none of otad's"),
        (on_trial(Phase.ROLLING_BACK), MarkGoodRequested(NOW), "too late: rolling back to slot a"),
        (at_rest(), roll_back(), None),
        (
            at_rest(),
            roll_back(board(None)),
            "nothing to roll back: the booted slot is none of otad's",
        ),
        (
            under_way(),
            roll_back(),
            "nothing to roll back: the new system has not been activated; `otad cancel` ends the deployment",
        ),
        (
            on_trial(Phase.ROLLING_BACK),
            roll_back(board(B, B, b=FRESH)),
            "nothing to do: rolling back to slot a already",
        ),
        (
            at_rest(),
            roll_back(board(b=BAD)),
            "no slot to roll back to: the other slot is not good",
        ),
    ],
)
def test_who_asks_for_what_cannot_be_hears_why(state: State, request_: Request, words: str | None) -> None:
    assert objection(state, request_) == words
