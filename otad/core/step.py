# SPDX-License-Identifier: Apache-2.0
"""The only place where state changes: `step(state, event) -> State`, pure and total.

Whatever affects a transition is in this file. Rules that compete are decided here once:

- A result whose work is not the current one is late and changes nothing.
- Up to and including `installing` a deployment can be canceled or superseded; from `activating` on it is too late,
  because once the target is primary any power cut upgrades.
- At a start the machine is believed over memory. After `activating` the only questions are: which slot runs, and does
  the boot loader hold it as confirmed?

  | running | boot store | phase | means |
  |---|---|---|---|
  | old | old | downloading, installing | cut before the switch: go on |
  | old | target bad | activating | cut before the switch: check again, activate |
  | old | target, attempts left | activating, rebooting | switched, not booted: check again, activate, at most twice |
  | old | attempts used up | activating, rebooting | fell back: mark target bad, report, refuse |
  | old | anything | confirming | the same: it has run, and restarted unconfirmed |
  | target | trial | any of these | on trial (power may fail between "set primary" and the save) |
  | target | confirmed | confirming | cut during confirm: finish the bookkeeping |

  A check that is made again after a switch stands in `downloading` or `installing`, `switched`: until its work has
  marked the target bad, the boot loader may still boot it. So it is read by this table, too.

- Success is step 100 and then the inform, and only after mark-good. A rollback is over, and is reported, only when the
  old slot is seen booted: the negative step first, then the inform.
- A system that is left by hand, with no package as the reason, stays good in the store until the other one runs. If
  that one does not come up it is the one rolled back, and what was left is as trusted as it was before.
- A deployment in place has neither slots nor a reboot: activating is its switch, and confirming follows at once. What
  it has brought is proven by the process that switches; so after a restart it is carried in again before the switch is
  repeated. Confirming it has as many starts as a system has boots: what ends the gateway each time is taken back. A
  rollback that ends it each time is given up.
- At most one outcome per deployment. Superseded says nothing: its step could hit the job that replaced it. A local
  deployment only informs in the end.
"""

from dataclasses import replace
from enum import StrEnum
from typing import assert_never

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
    Request,
    RetryRequested,
    RollBackRequested,
    Started,
)
from otad.core.model import (
    DEFAULT_MODULE,
    DESC_CHARACTERS,
    NO_SLOT,
    Board,
    Deployment,
    DeploymentId,
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
    State,
    Step,
)
from otad.core.work import MarkGood, is_on_trial, is_unconfirmed, work_for
from otad.errors import Code, Failure

ACTIVATIONS_MAX = 2
"""A target that did not come up is activated once more where nobody can know whether it was tried."""
TRIAL_STARTS_MAX = 3
"""Starts in which something that was switched in place may still be on trial: it may be what ends them."""
ROLL_BACK_STARTS_MAX = 10
"""Starts of a rollback in place; each comes after a longer pause."""
REFUSALS_MAX = 16
OUTBOX_MAX = 64
"""Beyond this no more refusals are answered: only a flood of bad offers gets there."""
UNFILED_MAX = 64
HONOURED_MAX = 16
DETAIL_CHARACTERS = 500
"""Of a failure's detail no more is kept: many of them must fit into a state file that can be read back."""
SESSION_ROLLBACKS_MAX = 3
"""The first rollback for lack of a session and two more, a day apart."""
DAY_S = 86400

CURABLE = frozenset({Code.DIGEST, Code.CONTENT, Code.MEDIUM, Code.BOOT, Code.INSTALL, Code.UNKNOWN})
"""Failures of download or install that count as a try. The others would be the same the next time."""


def step(state: State, event: Event) -> State:
    """The state after this event."""
    match event:
        case Started():
            return _started(state, event)
        case Noticed():
            return _noticed(state, event)
        case Rejected():
            return _rejected(state, event)
        case Checkpointed():
            return _checkpointed(state, event)
        case Finished():
            return _finished(state, event)
        case Failed():
            return _failed(state, event)
        case CancelRequested() | RetryRequested() | RebootRequested() | MarkGoodRequested() | RollBackRequested():
            return _requested(state, event)
        case Delivered():
            return replace(state, outbox=tuple(r for r in state.outbox if r.serial != event.serial))
        case Filed():
            return replace(state, unfiled=tuple(e for e in state.unfiled if e.id != event.id))
        case _:
            assert_never(event)


# ---------------------------------------------------------------------------------------------- start


def _started(state: State, event: Started) -> State:
    """Believe the machine: what does it say of the deployment that memory knows?"""
    same_boot = state.boot_id == event.boot_id
    known = state.known
    state = replace(state, boot_id=event.boot_id, board=event.board)
    booted = event.board.booted
    if booted is None:
        return state
    state = replace(state, known=True)
    deployment = state.deployment
    if deployment is None:
        return _recovered(state, event, booted, known)
    # Every start is a new run: what an earlier process had opened or checked, this one has not.
    deployment = replace(deployment, run=deployment.run + 1)
    if deployment.in_place:
        return _started_in_place(state, deployment, event, booted, known)
    match deployment.phase:
        case Phase.DOWNLOADING | Phase.INSTALLING if is_before_the_switch(deployment):
            return _started_before_the_switch(state, deployment, event, booted)
        case Phase.DOWNLOADING | Phase.INSTALLING | Phase.ACTIVATING | Phase.REBOOTING | Phase.CONFIRMING:
            return _started_after_the_switch(state, deployment, event, booted, same_boot)
        case Phase.ROLLING_BACK if not same_boot and _was_left_in_vain(deployment, event.board):
            return _stayed(state, deployment, booted)
        case Phase.ROLLING_BACK:
            return replace(state, deployment=replace(deployment, idle_starts=deployment.idle_starts + 1))
        case _:
            assert_never(deployment.phase)


def _started_before_the_switch(state: State, deployment: Deployment, event: Started, booted: Slot) -> State:
    if booted == deployment.target:
        reason = Failure(Code.SLOT, f"slot {booted} was booted by other means while it was being written")
        # Says nothing to the platform, which offers the package again. Memory does not vouch for what runs now.
        return _recovered(_end(state, deployment, Outcome.SUPERSEDED, reason, event.at), event, booted, known=False)
    return replace(state, deployment=_gone_on(replace(deployment, old=booted)))


def _started_in_place(state: State, deployment: Deployment, event: Started, booted: Slot, known: bool) -> State:
    """The switch, and what proves it, are safe to repeat; what an earlier process had carried in is not believed."""
    if not deployment.switched:
        # A system that came up by other means is proven first; the package is offered again.
        reason = Failure(Code.SLOT, f"slot {booted} was booted by other means and must pass its health checks first")
        ended = _end(state, deployment, Outcome.SUPERSEDED, reason, event.at)
        recovered = _recovered(ended, event, booted, known)
        return recovered if recovered.deployment else replace(state, deployment=_gone_on(deployment))
    starts = deployment.idle_starts + 1
    module = deployment.notice.identity.module
    match deployment.phase:
        case Phase.CONFIRMING if starts >= TRIAL_STARTS_MAX and not deployment.by_hand:
            detail = f"module {module}: restarted {starts} times before it was confirmed"
            return _rolling_back(state, deployment, Failure(Code.FELL_BACK, detail), event.at)
        case Phase.ROLLING_BACK if starts >= ROLL_BACK_STARTS_MAX:
            detail = f"module {module}: the way back was interrupted {starts} times"
            return _stays_switched(state, deployment, Failure(Code.INSTALL, detail), event.at)
        case Phase.CONFIRMING | Phase.ROLLING_BACK:
            return replace(state, deployment=replace(deployment, idle_starts=starts))
        case _:
            return replace(state, deployment=_gone_on(_check_again(deployment)))


def _gone_on(deployment: Deployment) -> Deployment:
    """After a restart the place is checked again, so an installation begins anew from its staging file."""
    return replace(
        deployment,
        resumed=deployment.resumed + (deployment.checkpoint > 0),
        joined=deployment.checkpoint > 0,
        idle_starts=deployment.idle_starts + 1,
    )


def _started_after_the_switch(
    state: State, deployment: Deployment, event: Started, booted: Slot, same_boot: bool
) -> State:
    target, phase = event.board.view(deployment.target), deployment.phase
    if booted == deployment.target:
        if target is not None and target.confirmed and phase == Phase.CONFIRMING:
            return _succeeded(state, deployment, event.at)
        return replace(state, deployment=replace(deployment, phase=Phase.CONFIRMING, on_trial=True, reason=None))
    deployment = replace(deployment, old=booted)  # of three slots the third may have come up
    if phase == Phase.CONFIRMING:
        return _rolling_back(state, deployment, _fell_back(deployment), event.at)
    is_bad = target is not None and not target.good
    if is_bad and phase != Phase.REBOOTING:  # not switched, or no longer
        activations = deployment.activations - deployment.untried
        not_switched = replace(deployment, switched=False, activations=activations, untried=False)
        return replace(state, deployment=_check_again(not_switched))
    if same_boot:
        return replace(state, deployment=_check_again(deployment))
    deployment = replace(deployment, untried=False)
    used_up = target is None or is_bad or target.attempts_left == 0
    if used_up or deployment.activations >= ACTIVATIONS_MAX:
        return _rolling_back(state, deployment, _fell_back(deployment), event.at)
    return replace(state, deployment=_check_again(deployment))


def _check_again(deployment: Deployment) -> Deployment:
    """Back to the phase that proves what the medium holds; it fetches nothing that is there."""
    if deployment.phase in (Phase.DOWNLOADING, Phase.INSTALLING):
        return _gone_on(deployment)
    phase = Phase.INSTALLING if deployment.place == PlaceKind.STAGING else Phase.DOWNLOADING
    return replace(deployment, phase=phase)


def _fell_back(deployment: Deployment) -> Failure:
    if deployment.on_trial:
        detail = f"slot {deployment.target} ran but restarted before it was confirmed; back on {deployment.old}"
    else:
        detail = f"slot {deployment.target} did not come up; the boot loader returned to {deployment.old}"
    return Failure(Code.FELL_BACK, detail)


def is_left_by_order(deployment: Deployment) -> bool:
    """A rollback that no package is the reason of: what is left stays good until the other slot has come up."""
    by_hand = deployment.reason is not None and deployment.reason.code == Code.ROLLED_BACK
    return by_hand and deployment.notice.origin == Origin.RECOVERED


def _was_left_in_vain(deployment: Deployment, board: Board) -> bool:
    """The slot that was to be left by order is booted again.

    If the power failed before the other slot was primary it has not been tried: then it is gone on with, once.
    """
    tried = board.primary == deployment.old or deployment.idle_starts > 0
    return is_left_by_order(deployment) and board.booted == deployment.target and tried


def _stayed(state: State, deployment: Deployment, booted: Slot) -> State:
    """The system that was to be left is what there is. If it was confirmed, it still is; if not, it stays unconfirmed.

    Now the other slot is rolled back: the store is put right as after any slot that did not come up.
    """
    reason = Failure(Code.FELL_BACK, f"slot {deployment.old} did not come up; staying on {booted}")
    turned = replace(deployment, old=booted, target=deployment.old, on_trial=False, reason=reason)
    state = _tainted(replace(state, deployment=turned), turned.target)
    if deployment.on_trial:
        return state
    return replace(state, tainted=tuple(slot for slot in state.tainted if slot != booted))


def _recovered(state: State, event: Started, booted: Slot, known: bool) -> State:
    """A booted slot that the boot loader does not hold as confirmed passes the health gate first.

    Whoever made it primary, it was not a deployment that we know of. Boot loaders that keep no such record (`confirmed`
    is None) are asked to prove the slot only where there is no memory at all.
    """
    view, other = event.board.view(booted), event.board.other(booted)
    if view is None or other is None or booted in state.tainted:
        return state
    if view.confirmed or (view.confirmed is None and known):
        return state
    return _begin_recovered(state, event.module, event.version, booted, other, Phase.CONFIRMING, None, event.at)


def _begin_recovered(
    state: State,
    module: ModuleName,
    version: str | None,
    target: Slot,
    old: Slot,
    phase: Phase,
    reason: Failure | None,
    at: int,
) -> State:
    serial = state.serial + 1
    notice = Notice(Identity(module, version or "", 0, None), "", Origin.RECOVERED)
    deployment = Deployment(
        id=_deployment_id(serial, at),
        notice=notice,
        phase=phase,
        old=old,
        target=target,
        began=at,
        tries_allowed=1,
        on_trial=phase == Phase.CONFIRMING or target in state.tainted,
        reason=reason,
    )
    return replace(state, serial=serial, deployment=deployment)


def _deployment_id(serial: int, at: int) -> DeploymentId:
    """Unique also after the state was lost and the serial began anew."""
    return DeploymentId(f"{at:x}-{serial}")


# ---------------------------------------------------------------------------------------------- offers


class Verdict(StrEnum):
    """What an offer means to this state."""

    BEGIN = "begin"
    SUPERSEDE = "supersede"  # begin, in the place of the one under way
    SAME = "same"  # under way already
    RUNNING = "running"  # this version runs already: answered by an inform
    REFUSED = "refused"  # answered by the step that refused it
    TOO_LATE = "too_late"  # another one is past the point of no return; asked for again when it ends
    BUSY = "busy"  # another one is under way that must not be disturbed; asked for again when it ends
    HEARD = "heard"  # the same message again, late: it has been honoured
    NOT_OURS = "not_ours"  # the booted slot is none of ours, or there is no second one


def verdict(state: State, event: Noticed) -> Verdict:
    """What `step` makes of this offer: for the log, and for who asks."""
    identity, current = event.notice.identity, state.deployment
    if current is not None and current.notice.identity == identity:
        return Verdict.SAME
    if _honour(event) in state.honoured:
        return Verdict.HEARD
    if current is not None and current.notice.identity.module != identity.module:
        return Verdict.BUSY
    if current is not None and not is_before_the_switch(current):
        return Verdict.TOO_LATE
    refusal = state.refusal(identity.key)
    is_left = event.in_place and refusal is not None  # it may run because it could not be taken back
    if event.running == identity.version and not is_left:
        return Verdict.RUNNING
    if refusal is not None and not _has_lapsed(refusal, event.at) and event.notice.origin == Origin.PLATFORM:
        # A step would hit the job of the deployment under way; it is offered again afterwards.
        return Verdict.REFUSED if current is None else Verdict.BUSY
    if state.board is None or state.board.booted is None:
        return Verdict.NOT_OURS
    if not event.in_place and state.board.other(state.board.booted) is None:
        return Verdict.NOT_OURS
    if current is not None:
        both_from_the_platform = current.notice.origin == event.notice.origin == Origin.PLATFORM
        return Verdict.SUPERSEDE if both_from_the_platform else Verdict.BUSY
    return Verdict.BEGIN


def is_before_the_switch(deployment: Deployment) -> bool:
    """It can still be canceled or superseded: the boot loader does not hold the target as primary."""
    return deployment.phase in (Phase.DOWNLOADING, Phase.INSTALLING) and not deployment.switched


def _honour(event: Noticed) -> str:
    """What makes a late duplicate known: message and package, since some platforms number all messages alike."""
    return f"{event.offer} {event.notice.identity.key}"


def _has_lapsed(refusal: Refusal, at: int) -> bool:
    return refusal.lapses is not None and at >= refusal.lapses


def _noticed(state: State, event: Noticed) -> State:
    current, meaning = state.deployment, verdict(state, event)
    match meaning:
        case Verdict.SAME:
            assert current is not None
            if current.notice.origin != event.notice.origin:
                return state  # the same package by another way: each has rules of its own for its URL
            fresh = _refreshed(current.notice, event.notice)
            return replace(state, deployment=replace(current, notice=fresh))
        case Verdict.RUNNING:
            return _owe_inform(state, event.notice.identity.module)
        case Verdict.REFUSED:
            refusal = state.refusal(event.notice.identity.key)
            assert refusal is not None
            return _answer_refused(state, refusal, event.offer, event.notice.identity)
        case Verdict.SUPERSEDE:
            assert current is not None
            reason = Failure(Code.CANCELED, f"superseded by {event.notice.identity.version}")
            return _begin(_end(state, current, Outcome.SUPERSEDED, reason, event.at), event)
        case Verdict.BEGIN:
            return _begin(state, event)
        case Verdict.TOO_LATE | Verdict.BUSY | Verdict.HEARD | Verdict.NOT_OURS:
            return state
        case _:
            assert_never(meaning)


def _refreshed(notice: Notice, newer: Notice) -> Notice:
    """The newest way to the same bytes. One that the newer message does not name may still be open."""
    return replace(newer, url=newer.url or notice.url, stream=newer.stream or notice.stream)


def _begin(state: State, event: Noticed) -> State:
    assert state.board is not None
    assert state.board.booted is not None
    old, target = state.board.booted, state.board.other(state.board.booted)
    if event.in_place:
        old = target = NO_SLOT
    assert target is not None
    serial = state.serial + 1
    deployment = Deployment(
        id=_deployment_id(serial, event.at),
        notice=event.notice,
        phase=Phase.DOWNLOADING,
        old=old,
        target=target,
        began=event.at,
        tries_allowed=event.tries_allowed,
    )
    honours = (_honour(event),) if event.offer.startswith(PUSHED) else ()
    honoured = (*state.honoured, *honours)[-HONOURED_MAX:]
    return replace(state, serial=serial, deployment=deployment, honoured=honoured)


def _rejected(state: State, event: Rejected) -> State:
    current = state.deployment
    if current is not None and current.notice.identity.module == event.module:
        return state  # a step would hit the job of the deployment under way; it is offered again afterwards
    refusal = state.refusal(event.key)
    if refusal is None:
        failure = _kept(event.failure)
        desc = short(str(failure))
        refusal = Refusal(event.key, event.module, event.version, step_for(failure), desc, failure, event.at)
        state = _with_refusal(replace(state, serial=state.serial + 1), refusal)
        state = _filed(state, _never_begun(state, event, failure))
    return _answer_refused(state, refusal, event.offer, None)


def _answer_refused(state: State, refusal: Refusal, offer: str, identity: Identity | None) -> State:
    """Repeat the refusal's step, once per offer: the job behind a new offer may be a new one."""
    if refusal.answered == offer:
        return state
    state = _with_refusal(state, replace(refusal, answered=offer))
    owed = any(
        isinstance(report, Step)
        and (report.module, report.identity, report.desc) == (refusal.module, identity, refusal.desc)
        for report in state.outbox
    )
    if owed or len(state.outbox) >= OUTBOX_MAX:
        return state
    return _owe_step(state, refusal.module, refusal.step, refusal.desc, identity)


def _with_refusal(state: State, refusal: Refusal) -> State:
    """Remember it. When there are too many the oldest goes, but offers that could not be carried out go first."""
    others = [r for r in state.refusals if r.key != refusal.key]
    if len(others) >= REFUSALS_MAX:
        cheap = (r for r in others if r.failure.code in (Code.MALFORMED, Code.UNSUPPORTED))
        others.remove(next(cheap, others[0]))
    return replace(state, refusals=(*others, refusal))


def _never_begun(state: State, event: Rejected, failure: Failure) -> Ended:
    return Ended(
        id=_deployment_id(state.serial, event.at),
        module=event.module,
        version=event.version,
        origin=Origin.PLATFORM,
        outcome=Outcome.REFUSED,
        failure=failure,
        began=event.at,
        ended=event.at,
        bytes=0,
        resumed=0,
        tries=0,
    )


# ---------------------------------------------------------------------------------------------- results


def _checkpointed(state: State, event: Checkpointed) -> State:
    deployment = state.deployment
    if deployment is None or event.work != work_for(state):
        return state
    return replace(
        state,
        deployment=replace(
            deployment,
            place=event.place,
            checkpoint=event.bytes,
            peak=max(deployment.peak, event.bytes),
            etag=event.etag,
            etag_url=event.etag_url,
            joined=event.joined,
            fetched=deployment.fetched + event.fetched,
            resumed=deployment.resumed + event.resumed,
            idle_starts=0 if event.bytes > deployment.checkpoint else deployment.idle_starts,
        ),
    )


def _finished(state: State, event: Finished) -> State:
    if event.work != work_for(state):
        return state
    if isinstance(event.work, MarkGood):
        return replace(state, settled=event.work.boot_id)
    deployment = state.deployment
    assert deployment is not None
    match deployment.phase:
        case Phase.DOWNLOADING if deployment.place == PlaceKind.STAGING:
            return replace(state, deployment=replace(deployment, phase=Phase.INSTALLING))
        case Phase.DOWNLOADING | Phase.INSTALLING:
            # Counted before the switch, and what the trial must know: a switch whose result is lost still counts.
            return replace(
                state,
                deployment=replace(
                    deployment,
                    phase=Phase.ACTIVATING,
                    switched=True,
                    activations=deployment.activations + (not deployment.untried),
                    untried=True,
                    online_before=deployment.online_before or event.online,
                    reason=None,
                ),
            )
        case Phase.ACTIVATING if deployment.in_place:
            confirming = replace(deployment, phase=Phase.CONFIRMING, on_trial=True, idle_starts=0)
            return replace(state, deployment=confirming)
        case Phase.ACTIVATING:
            online = deployment.online_before or event.online
            return replace(state, deployment=replace(deployment, phase=Phase.REBOOTING, online_before=online))
        case Phase.REBOOTING:
            return state  # a reboot ends with the process, not with a result
        case Phase.CONFIRMING if deployment.in_place:
            return _succeeded(state, deployment, event.at)
        case Phase.CONFIRMING:
            return _succeeded(replace(state, settled=state.boot_id), deployment, event.at)
        case Phase.ROLLING_BACK:
            return _rolled_back(state, deployment, event.at)
        case _:
            assert_never(deployment.phase)


def _failed(state: State, event: Failed) -> State:
    deployment = state.deployment
    if deployment is None or event.work != work_for(state) or isinstance(event.work, MarkGood):
        return state
    failure = _kept(event.failure)
    match deployment.phase:
        case Phase.DOWNLOADING | Phase.INSTALLING:
            return _failed_before_the_switch(state, deployment, failure, event.at)
        case Phase.ACTIVATING if deployment.in_place:
            return _failed_before_the_switch(state, _check_again(deployment), failure, event.at)
        case Phase.ACTIVATING | Phase.REBOOTING:
            return _rolling_back(state, deployment, failure, event.at)
        case Phase.CONFIRMING:
            assert state.board is not None
            if deployment.in_place or _can_return(state.board, deployment):
                return _rolling_back(state, deployment, failure, event.at)
            return _nowhere_to_go(state, deployment, failure, event.at)
        case Phase.ROLLING_BACK:
            if deployment.in_place:
                return _stays_switched(state, deployment, failure, event.at)
            # The store takes nothing. The attempts bring the old slot back; if it runs already, say so and end.
            return _rolled_back(state, deployment, event.at)
        case _:
            assert_never(deployment.phase)


def _failed_before_the_switch(state: State, deployment: Deployment, failure: Failure, at: int) -> State:
    if failure.code == Code.DIGEST and deployment.joined and not deployment.repeated:
        # Bytes of several responses may be of several packages: that is not the package's fault yet.
        again = replace(_from_zero(deployment), run=deployment.run + 1, repeated=True, reason=failure)
        return replace(state, deployment=again)
    tries = deployment.tries + 1
    deployment = replace(deployment, tries=tries, reason=failure)
    if failure.code in CURABLE and tries < deployment.tries_allowed:
        if failure.code in (Code.DIGEST, Code.CONTENT):
            deployment = _from_zero(deployment)
        return replace(state, deployment=replace(deployment, run=deployment.run + 1))
    if deployment.switched:
        return _rolling_back(state, deployment, failure, at)  # the boot loader may hold the target as primary
    if deployment.notice.origin == Origin.PLATFORM:  # a bad USB stick says nothing about the package
        state = _refuse(state, deployment, failure, at)
    return _end(state, deployment, Outcome.FAILED, failure, at, step_for(failure))


def _from_zero(deployment: Deployment) -> Deployment:
    return replace(
        deployment,
        phase=Phase.DOWNLOADING,
        place=None,
        checkpoint=0,
        etag="",
        etag_url="",
        joined=False,
    )


def _rolling_back(state: State, deployment: Deployment, reason: Failure, at: int) -> State:
    starts = 0 if deployment.in_place else deployment.idle_starts
    rolling = replace(deployment, phase=Phase.ROLLING_BACK, run=deployment.run + 1, reason=reason, idle_starts=starts)
    return replace(_condemned(state, deployment, reason, at), deployment=rolling)


def _condemned(state: State, deployment: Deployment, reason: Failure, at: int) -> State:
    """Refused from this moment on, across reboots: a power cut must not make it acceptable."""
    if deployment.notice.identity.digest is not None:
        state = _refuse(state, deployment, reason, at)
    return state if deployment.in_place else _tainted(state, deployment.target)


def _tainted(state: State, slot: Slot) -> State:
    return replace(state, tainted=(*(other for other in state.tainted if other != slot), slot))


def _can_return(board: Board, deployment: Deployment) -> bool:
    """The old slot is known to boot: our memory or the boot loader's says that it has. Else it may be an empty one."""
    old = board.view(deployment.old)
    remembered = deployment.notice.origin != Origin.RECOVERED
    return old is not None and old.good and (remembered or old.confirmed is True)


def _nowhere_to_go(state: State, deployment: Deployment, failure: Failure, at: int) -> State:
    """Unhealthy, and no slot to return to: stay, unconfirmed, and say so. The boot attempts have the last word."""
    state = _condemned(state, deployment, failure, at)
    return _end(state, deployment, Outcome.FAILED, failure, at, step_for(failure))


def _rolled_back(state: State, deployment: Deployment, at: int) -> State:
    """The boot loader holds the old slot. If the old slot also runs, that is the end; else the reboot is awaited."""
    if is_on_trial(state):
        return state
    reason = deployment.reason or Failure(Code.UNKNOWN, "rolled back")
    never_ran = not deployment.on_trial and reason.code not in (Code.FELL_BACK, Code.ROLLED_BACK)
    stayed = not deployment.on_trial and (deployment.notice.origin, reason.code) == (Origin.RECOVERED, Code.FELL_BACK)
    outcome = Outcome.FAILED if never_ran or stayed else Outcome.ROLLED_BACK
    state = _end(state, deployment, outcome, reason, at, step_for(reason))
    return _owe_inform(state, deployment.notice.identity.module)


def _stays_switched(state: State, deployment: Deployment, failure: Failure, at: int) -> State:
    """The installer cannot go back: what there is stays, and both reasons are told."""
    reason = deployment.reason or Failure(Code.UNKNOWN, "rolled back")
    both = replace(reason, detail=f"{reason}; and the way back failed: {failure}")
    state = _end(state, deployment, Outcome.FAILED, _kept(both), at, step_for(both))
    return _owe_inform(state, deployment.notice.identity.module)


def _succeeded(state: State, deployment: Deployment, at: int) -> State:
    """The new system has run, is healthy and is marked good: now, and only now, 100 and then the inform."""
    if deployment.notice.origin == Origin.PLATFORM:
        state = _owe_step(state, deployment.notice.identity.module, 100, "", deployment.notice.identity)
    state = _owe_inform(state, deployment.notice.identity.module)
    module, version = deployment.notice.identity.module, deployment.notice.identity.version
    state = replace(
        state,
        tainted=tuple(slot for slot in state.tainted if slot != deployment.target),
        # Whichever package of this version it was that was refused: this version is trusted now.
        refusals=tuple(r for r in state.refusals if (r.module, r.version) != (module, version)),
    )
    return _end(state, deployment, Outcome.SUCCEEDED, None, at)


# ---------------------------------------------------------------------------------------------- requests


def objection(state: State, request: Request) -> str | None:
    """Why this request changes nothing, in words for who asked; None if it is carried out."""
    deployment = state.deployment
    match request:
        case CancelRequested():
            if deployment is None:
                return "nothing to cancel: no deployment is under way"
            if not is_before_the_switch(deployment):
                return f"too late: {deployment.notice.identity.version} is {deployment.phase}, the switch has begun"
            return None
        case RetryRequested():
            return None if state.refusals else "nothing to retry: no package is refused"
        case RebootRequested():
            if deployment is not None and deployment.phase == Phase.REBOOTING:
                return None
            return "nothing to reboot into: no slot is staged"
        case MarkGoodRequested():
            if state.board is None or state.board.booted is None:
                return "nothing to mark good: the booted slot is none of otad's"
            if deployment is not None and deployment.phase == Phase.ROLLING_BACK:
                return f"too late: rolling back {where_back(deployment)}"
            return None
        case RollBackRequested():
            return _objection_to_roll_back(state, request.board)
        case _:
            assert_never(request)


def _objection_to_roll_back(state: State, board: Board) -> str | None:
    deployment = state.deployment
    if board.booted is None:
        return "nothing to roll back: the booted slot is none of otad's"
    if deployment is not None:
        if is_before_the_switch(deployment):
            return "nothing to roll back: the new system has not been activated; `otad cancel` ends the deployment"
        if deployment.phase == Phase.ROLLING_BACK:
            return f"nothing to do: rolling back {where_back(deployment)} already"
        if deployment.in_place or deployment.phase != Phase.CONFIRMING or _can_return(board, deployment):
            return None
    other = deployment.old if deployment is not None else board.other(board.booted)
    view = board.view(other) if other is not None else None
    if view is None or not view.good or view.confirmed is False:
        return "no slot to roll back to: the other slot is not good"
    return None


def where_back(deployment: Deployment) -> str:
    """What a rollback of this deployment goes back to, in words to go behind "rolling back"."""
    return f"module {deployment.notice.identity.module}" if deployment.in_place else f"to slot {deployment.old}"


def _requested(state: State, request: Request) -> State:
    if objection(state, request) is not None:
        return state
    deployment = state.deployment
    match request:
        case CancelRequested():
            assert deployment is not None
            failure = Failure(Code.CANCELED, "canceled on the gateway; `otad retry` lifts the refusal")
            if deployment.notice.origin == Origin.PLATFORM:
                state = _refuse(state, deployment, failure, request.at)
            return _end(state, deployment, Outcome.CANCELED, failure, request.at, step_for(failure))
        case RetryRequested():
            # Whatever message it comes by. A slot stays tainted: only mark-good clears it.
            return replace(state, refusals=(), honoured=())
        case RebootRequested():
            assert deployment is not None
            return replace(state, deployment=replace(deployment, run=deployment.run + 1))
        case MarkGoodRequested():
            if deployment is not None and deployment.phase == Phase.CONFIRMING:
                by_hand = replace(deployment, by_hand=True, run=deployment.run + 1)
                return replace(state, deployment=by_hand)
            booted = state.board.booted if state.board else None
            return replace(state, settled=None, tainted=tuple(s for s in state.tainted if s != booted))
        case RollBackRequested():
            failure = Failure(Code.ROLLED_BACK, "rolled back on the gateway by hand")
            if deployment is not None:
                return _rolling_back(state, deployment, failure, request.at)
            booted = request.board.booted
            assert booted is not None
            other = request.board.other(booted)
            assert other is not None
            state = _begin_recovered(
                state,
                request.module,
                request.version,
                booted,
                other,
                Phase.ROLLING_BACK,
                failure,
                request.at,
            )
            return _tainted(state, booted)
        case _:
            assert_never(request)


# ---------------------------------------------------------------------------------------------- what we owe


def short(text: str) -> str:
    """`text` on one line and within what the platform takes."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= DESC_CHARACTERS else line[: DESC_CHARACTERS - 1] + "…"


def _kept(failure: Failure) -> Failure:
    return replace(failure, detail=failure.detail[:DETAIL_CHARACTERS])


def step_for(failure: Failure) -> int:
    """The platform's number for it: -2 download, -3 verification, -4 writing, -1 anything else."""
    match failure.code:
        case Code.HTTP_STATUS | Code.URL | Code.CONTENT:
            return -2
        case Code.DIGEST | Code.SIGNATURE:
            return -3
        case Code.FORMAT | Code.SPACE | Code.MEDIUM | Code.SLOT | Code.INSTALL:
            return -4
        case _:
            return -1


def _owe_step(state: State, module: ModuleName, number: int, desc: str, identity: Identity | None) -> State:
    serial = state.serial + 1
    owed = Step(serial, module, number, desc, identity)
    return replace(state, serial=serial, outbox=(*state.outbox, owed))


def _owe_inform(state: State, module: ModuleName) -> State:
    last = next((r for r in reversed(state.outbox) if r.module == module), None)
    if isinstance(last, Inform):
        return state
    # One owed from before would tell today's version ahead of the step that must come first; the last one tells it all.
    kept = tuple(r for r in state.outbox if not (isinstance(r, Inform) and r.module == module))
    serial = state.serial + 1
    return replace(state, serial=serial, outbox=(*kept, Inform(serial, module)))


def _refuse(state: State, deployment: Deployment, failure: Failure, at: int) -> State:
    identity = deployment.notice.identity
    times, lapses = 1, None
    if failure.code == Code.SESSION:
        earlier = state.refusal(identity.key)
        times = earlier.times + 1 if earlier is not None and earlier.failure.code == Code.SESSION else 1
        lapses = at + DAY_S if times < SESSION_ROLLBACKS_MAX else None
    if failure.code in (Code.BOOT, Code.UNSUPPORTED):
        lapses = at + DAY_S  # the gateway's fault, not the package's; a pause, so that the slot is not worn out
    refusal = Refusal(
        key=identity.key,
        module=identity.module,
        version=identity.version,
        step=step_for(failure),
        desc=short(str(failure)),
        failure=failure,
        at=at,
        times=times,
        lapses=lapses,
    )
    return _with_refusal(state, refusal)


def _end(
    state: State,
    deployment: Deployment,
    outcome: Outcome,
    failure: Failure | None,
    at: int,
    number: int | None = None,
) -> State:
    """End the deployment; `number` is the negative step that says so, sent to the platform if it ordered it."""
    identity, origin = deployment.notice.identity, deployment.notice.origin
    ended = Ended(
        id=deployment.id,
        module=identity.module,
        version=identity.version,
        origin=origin,
        outcome=outcome,
        failure=failure,
        began=deployment.began,
        ended=at,
        bytes=deployment.fetched,
        resumed=deployment.resumed,
        tries=deployment.tries,
    )
    state = _filed(replace(state, deployment=None, last=ended), ended)
    if number is not None and origin == Origin.PLATFORM:
        state = _owe_step(state, identity.module, number, short(str(failure)), identity)
    return _recovered_late(state, at) if deployment.in_place and deployment.switched else state


def _recovered_late(state: State, at: int) -> State:
    """A system that came up by other means had to wait for a switch in place to end; now it is proven."""
    assert state.board is not None
    booted = state.board.booted
    if booted is None or not is_unconfirmed(state.board) or state.settled == state.boot_id:
        return state
    other = state.board.other(booted)
    if other is None or booted in state.tainted:
        return state
    return _begin_recovered(state, DEFAULT_MODULE, None, booted, other, Phase.CONFIRMING, None, at)


def _filed(state: State, ended: Ended) -> State:
    """It waits for its line of history."""
    return replace(state, unfiled=(*state.unfiled, ended)[-UNFILED_MAX:])
