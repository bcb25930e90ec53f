# SPDX-License-Identifier: Apache-2.0
"""The status document: what runs, what is happening, and what happens next and when.

`document` makes what `otad status --json` shows from a `Situation`, and `next_words` its last line, which has an answer
in every state: what is done now, or what is waited for and until when. Both are pure. Times in the document are UTC;
clock times in `next` are the gateway's own, and absolute, so that a status only changes when something happens.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, tzinfo
from typing import assert_never

from otad import __version__
from otad.cloud.cloud import SessionState, SessionView
from otad.control.service import JSON
from otad.core.model import Board, Deployment, ModuleName, Phase, PlaceKind, Refusal, Slot, State
from otad.core.work import wants_mark_good
from otad.store import history_entry, utc
from otad.telemetry import Progress
from otad.units import format_duration, format_size

SCHEMA = 1
_LAST_SECOND = 253402128000  # shortly before the year 10000: clocks may be wrong, dates end there


@dataclass(frozen=True, slots=True)
class SlotFacts:
    """What is known of a slot without the boot loader. `version`: where it can be read without booting the slot."""

    bootname: str
    device: str
    version: str | None


@dataclass(frozen=True, slots=True)
class Situation:
    """All that a status is made from. Times are seconds since 1970 by the gateway's clock.

    `progress` is that of the work that runs. Its `waits_for` goes behind "wait for", its `waits_until` is the next
    attempt's time; while confirming, the time at which the check counts as failed.
    """

    now: float
    product_key: str
    device_name: str
    state: State
    session: SessionView
    board: Board | None  # the boot loader's store as it is now; None where it cannot be read
    slots: Mapping[Slot, SlotFacts]  # in the order of the configuration
    versions: Mapping[ModuleName, str | None]  # by evidence
    system: ModuleName | None = None  # the module that the slots are
    waiting: Mapping[ModuleName, str] = field(default_factory=dict[ModuleName, str])  # versions offered and not begun
    progress: Progress | None = None
    asks_at: float | None = None  # when the platform is asked next without a notice
    problems: tuple[str, ...] = ()
    stuck: str = ""  # what everything waits for; "" usually
    passes_over: str = ""  # why no package is taken; "" usually
    zone: tzinfo | None = None  # of the clock times in `next`; None: the gateway's

    @property
    def booted(self) -> Slot | None:
        board = self.board or self.state.board
        return board.booted if board is not None else None


def document(situation: Situation) -> dict[str, JSON]:
    """The status; its keys are described in io.otad.Update.varlink."""
    state, session = situation.state, situation.session
    return {
        "schema": SCHEMA,
        "otad_version": __version__,
        "device": {"product_key": situation.product_key, "device_name": situation.device_name},
        "session": {"state": str(session.state), "since": utc(session.since), "detail": session.detail},
        "booted": situation.booted,
        "slots": {name: _slot(situation, name, facts) for name, facts in situation.slots.items()},
        "modules": {module: {"version": version} for module, version in situation.versions.items()},
        "deployment": _deployment(state.deployment, _progress(situation)) if state.deployment else None,
        "waiting": {str(module): version for module, version in situation.waiting.items()},
        "refused": [_refusal(refusal) for refusal in state.refusals],
        "last": history_entry(state.last) if state.last else None,
        "outbox": len(state.outbox),
        "problems": [*situation.problems],
        "next": next_words(situation),
    }


def _slot(situation: Situation, name: Slot, facts: SlotFacts) -> dict[str, JSON]:
    board, version = situation.board, facts.version
    if version is None and name == situation.booted and situation.system is not None:
        version = situation.versions.get(situation.system)
    view = board.view(name) if board is not None else None
    return {
        "bootname": facts.bootname,
        "device": facts.device,
        "good": view.good if view else None,
        "primary": board is not None and board.primary == name,
        "attempts_left": view.attempts_left if view else None,
        "confirmed": view.confirmed if view else None,
        "version": version,
    }


def _deployment(deployment: Deployment, progress: Progress) -> dict[str, JSON]:
    return {
        "id": deployment.id,
        "module": deployment.notice.identity.module,
        "version": deployment.notice.identity.version,
        "phase": str(deployment.phase),
        "target": deployment.target or None,
        "since": utc(deployment.began),
        "bytes": progress.bytes,
        "total": progress.total,
        "checked": progress.checked,
        "checkpoint": deployment.checkpoint,
        "rate": round(progress.rate),
        "resumed": deployment.resumed + progress.resumed,
        "attempt": deployment.tries + 1,
        "waits_for": progress.waits_for,
        "waits_until": utc(progress.waits_until) if progress.waits_until is not None else None,
        "reason": deployment.reason.detail if deployment.reason else None,
        "held": None,
    }


def _refusal(refusal: Refusal) -> dict[str, JSON]:
    return {
        "module": refusal.module,
        "version": refusal.version,
        "reason": refusal.failure.detail,
        "since": utc(refusal.at),
        "lapses": utc(refusal.lapses) if refusal.lapses is not None else None,
    }


def _progress(situation: Situation) -> Progress:
    """How far the deployment is: by its work's own word, or by what is remembered until the work has spoken."""
    deployment, progress = situation.state.deployment, situation.progress
    assert deployment is not None
    size = deployment.notice.identity.size
    if progress is None or progress.deployment != deployment.id:
        progress = Progress(deployment.id, bytes=deployment.checkpoint if deployment.phase is Phase.DOWNLOADING else 0)
    match deployment.phase:
        case Phase.DOWNLOADING:
            return replace(progress, total=progress.total or size)
        case Phase.INSTALLING:
            return progress  # of the image, whose size is not the package's
        case Phase.ACTIVATING if deployment.in_place:
            return progress  # as the program that installs it says
        case Phase.ACTIVATING | Phase.REBOOTING | Phase.CONFIRMING | Phase.ROLLING_BACK:
            return replace(progress, bytes=size, total=size, rate=0.0)
        case _:
            assert_never(deployment.phase)


# ---------------------------------------------------------------------------------------------- what happens next


def next_words(situation: Situation) -> str:
    """What happens next, and when; if nothing does, what it takes."""
    state = situation.state
    if situation.stuck:
        return f"wait for {situation.stuck}, then go on"
    if state.board is None and situation.board is None:
        return _then(_waiting(situation, situation.progress), "find out which slot is booted")
    if situation.booted is None:
        slots = " or ".join(situation.slots)
        return f"nothing until slot {slots} is booted: this system runs from none of them, and nothing is written"
    first = ""
    if wants_mark_good(state):
        waiting = _waiting(situation, situation.progress)
        first = f"{_then(waiting, f'mark slot {situation.booted} good')}, then "
    if state.deployment is not None:
        others = "".join(f"; then {version} of module {module}" for module, version in situation.waiting.items())
        return first + _deployment_words(situation, state.deployment) + others
    if situation.booted in state.tainted:
        first = f"slot {situation.booted} stays unconfirmed, its package was refused (`otad mark-good` trusts it); "
    return first + _idle_words(situation)


def _deployment_words(situation: Situation, deployment: Deployment) -> str:
    progress = _progress(situation)
    waiting = _waiting(situation, progress)
    target, old = f"slot {deployment.target}", f"slot {deployment.old}"
    if deployment.in_place:
        target = f"module {deployment.notice.identity.module}"
    match deployment.phase:
        case Phase.ACTIVATING if deployment.in_place:
            told = progress.total and progress.bytes
            done = f" ({100 * progress.bytes // progress.total} % done)" if told else ""
            return _then(waiting, f"switch {target} to it{done}, then check its version and health")
        case Phase.CONFIRMING if deployment.in_place and progress.waits_for:
            until = f" until {_clock(situation, progress.waits_until)}" if progress.waits_until is not None else ""
            return f"wait for {progress.waits_for}{until}, then trust {target}, or roll it back"
        case Phase.CONFIRMING if deployment.in_place:
            return f"check the version and the health of {target}; if they are wrong, roll it back"
        case Phase.ROLLING_BACK if deployment.in_place:
            return _then(waiting, f"bring back what {target} had before, then report it")
        case Phase.DOWNLOADING:
            after = f"install it to {target}" if deployment.place is PlaceKind.STAGING else f"activate {target}"
            return _then(waiting, _transfer_words("download", "", progress, after))
        case Phase.INSTALLING:
            return _then(waiting, _transfer_words("write", f" to {target}", progress, "activate it"))
        case Phase.ACTIVATING:
            return _then(waiting, f"make {target} primary, then reboot")
        case Phase.REBOOTING:
            return waiting or f"reboot into {target}"
        case Phase.CONFIRMING if deployment.by_hand:
            return f"mark {target} good, by hand"
        case Phase.CONFIRMING if progress.waits_for:
            until = f" until {_clock(situation, progress.waits_until)}" if progress.waits_until is not None else ""
            return f"wait for {progress.waits_for}{until}, then mark {target} good, or roll back to {old}"
        case Phase.CONFIRMING:
            return f"check the version and the health of {target}, then mark it good, or roll back to {old}"
        case Phase.ROLLING_BACK if situation.booted == deployment.target:
            return waiting or f"make {old} primary and reboot into it"
        case Phase.ROLLING_BACK:
            return _then(waiting, f"mark {target} bad, then report the rollback")
        case _:
            assert_never(deployment.phase)


def _transfer_words(verb: str, where: str, progress: Progress, after: str) -> str:
    if not progress.total:
        return f"{verb} on{where}, {format_size(progress.bytes)} so far, then {after}"
    more = progress.total - progress.bytes
    if more > 0:
        about = f", about {format_duration(round(more / progress.rate))}" if progress.rate >= 1 else ""
        return f"{verb} {format_size(more)} more{where}{about}"
    unchecked = progress.total - progress.checked
    return f"check {format_size(unchecked)} more on the medium, then {after}" if unchecked > 0 else after


def _idle_words(situation: Situation) -> str:
    session, owed = situation.session, _reports(len(situation.state.outbox))
    match session.state:
        case SessionState.ONLINE if situation.passes_over:
            return f"nothing: no package is taken until this is put right: {situation.passes_over}"
        case SessionState.ONLINE if owed:
            return f"send {owed} to the platform, then wait for a notice"
        case SessionState.ONLINE:
            asks = f", asks again at {_clock(situation, situation.asks_at)}" if situation.asks_at is not None else ""
            return f"nothing to do: waits for a notice{asks}"
        case SessionState.CONNECTING:
            return _then("connect to the platform", f"send {owed}" if owed else "ask for an upgrade")
        case SessionState.OFFLINE:
            return f"connect to the platform again: {session.detail}" + (f"; {owed} to send" if owed else "")
        case SessionState.REFUSED:
            return f"nothing until this is put right (credentials or trust): {session.detail}"
        case SessionState.OFF if situation.problems:
            return f"nothing until this is put right: {situation.problems[0]}"
        case SessionState.OFF:
            return f"nothing to do, there is no platform to ask: {session.detail}"
        case _:
            assert_never(session.state)


def _waiting(situation: Situation, progress: Progress | None) -> str:
    if progress is None or not progress.waits_for:
        return ""
    until = progress.waits_until
    return f"wait for {progress.waits_for}" + (
        f", next attempt at {_clock(situation, until)}" if until is not None else ""
    )


def _then(first: str, second: str) -> str:
    return f"{first}, then {second}" if first else second


def _reports(count: int) -> str:
    match count:
        case 0:
            return ""
        case 1:
            return "1 report"
        case _:
            return f"{count} reports"


def _clock(situation: Situation, at: float) -> str:
    """`at` as a clock on the wall shows it, with a date if it is not today's or tonight's."""
    away = abs(at - situation.now)
    form = "%H:%M:%S" if away < 600 else "%H:%M" if away < 20 * 3600 else "%Y-%m-%d %H:%M"
    return datetime.fromtimestamp(min(max(at, 0), _LAST_SECOND), UTC).astimezone(situation.zone).strftime(form)
