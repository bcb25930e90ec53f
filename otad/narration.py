# SPDX-License-Identifier: Apache-2.0
"""What the journal says of the coordinator's doings: one line per step, in words for 3 a.m."""

import logging

from otad import ids
from otad.core.events import Event, Noticed, Rejected, Started
from otad.core.model import DEFAULT_MODULE, Deployment, Ended, ModuleName, Outcome, Phase, State
from otad.core.step import Verdict, verdict
from otad.units import format_duration, format_size

log = logging.getLogger("otad")


def tell(before: State, after: State, event: Event) -> None:
    """Say what this event changed, if anybody wants to know."""
    if isinstance(event, Started):
        _tell_start(after, event)
    if isinstance(event, Noticed):
        _tell_offer(before, event)
    if isinstance(event, Rejected) and before != after:
        log.warning(
            "package %s refused: %s",
            event.version or "without a version",
            event.failure,
            extra={"OTAD_MODULE": event.module, "MESSAGE_ID": ids.REFUSED},
        )
    if after.last is not None and after.last != before.last:
        _tell_end(after.last)
    if after.deployment is not None:
        _tell_deployment(before.deployment, after.deployment)


def _tell_start(state: State, event: Started) -> None:
    board = event.board
    if board.booted is None:
        log.warning("the booted slot is none of otad's: nothing is written or marked until one is")
    elif board.booted in state.tainted and state.deployment is None:
        log.error(
            "slot %s is booted and holds a refused package: not marked good; `otad mark-good` accepts it", board.booted
        )
    log.info(
        "started: slot %s booted, version %s",
        board.booted or "none of ours",
        event.version or "unknown",
        extra={"OTAD_SLOT": board.booted or "", "MESSAGE_ID": ids.STARTED},
    )


def _tell_offer(before: State, event: Noticed) -> None:
    identity = event.notice.identity
    name = _name(identity.module, identity.version)
    extra = {"OTAD_MODULE": identity.module, "MESSAGE_ID": ids.NOTICED}
    match verdict(before, event):
        case Verdict.BEGIN | Verdict.SUPERSEDE:
            log.info("package %s offered, %s", name, format_size(identity.size), extra=extra)
        case Verdict.SAME:
            log.debug("package %s offered: under way already", name, extra=extra)
        case Verdict.HEARD:
            log.debug("package %s offered: the same message again", name, extra=extra)
        case Verdict.RUNNING:
            log.info("package %s offered: it runs already", name, extra=extra)
        case Verdict.REFUSED:
            log.warning("package %s offered: refused; `otad retry` lifts it", name, extra=extra)
        case Verdict.TOO_LATE | Verdict.BUSY:
            log.info("package %s offered: waits until the deployment under way has ended", name, extra=extra)
        case Verdict.NOT_OURS:
            log.warning("package %s offered: not taken, the booted slot is none of otad's", name, extra=extra)


def _tell_deployment(before: Deployment | None, after: Deployment) -> None:
    extra = {
        "OTAD_DEPLOYMENT": after.id,
        "OTAD_MODULE": after.notice.identity.module,
        "OTAD_PHASE": str(after.phase),
        "OTAD_SLOT": after.target,
    }
    same = before is not None and before.id == after.id
    if before is not None and same and after.reason is not None and after.reason != before.reason:
        log.warning("%s: %s", _name(*_what(after)), after.reason, extra={**extra, "MESSAGE_ID": ids.TRY_FAILED})
    if before is None or not same or before.phase != after.phase:
        log.info("%s", _phase_words(after), extra={**extra, "MESSAGE_ID": ids.PHASE})


def _what(deployment: Deployment) -> tuple[ModuleName, str]:
    return deployment.notice.identity.module, deployment.notice.identity.version


def _name(module: ModuleName, version: str) -> str:
    """A package in a line of the log. A system that was found without memory may have no version."""
    shown = version or "the system found here"
    return shown if module == DEFAULT_MODULE else f"{module} {shown}"


def _phase_words(deployment: Deployment) -> str:
    module, number = _what(deployment)
    version = _name(module, number)
    where = f"module {module}" if deployment.in_place else f"slot {deployment.target}"
    match deployment.phase:
        case Phase.DOWNLOADING:
            return f"{version}: downloading for {where}"
        case Phase.INSTALLING:
            return f"{version}: installing into {where}"
        case Phase.ACTIVATING if deployment.in_place:
            return f"{version}: checked; switching {where} to it"
        case Phase.CONFIRMING if deployment.in_place:
            return f"{version}: {where} is switched; checking its version and health"
        case Phase.ROLLING_BACK if deployment.in_place:
            return f"{version}: rolling back {where}"
        case Phase.ACTIVATING:
            return f"{version}: checked; activating slot {deployment.target}"
        case Phase.REBOOTING:
            return f"{version}: slot {deployment.target} is primary; rebooting"
        case Phase.CONFIRMING:
            return f"{version}: slot {deployment.target} is booted, on trial"
        case Phase.ROLLING_BACK:
            return f"{version}: rolling back to slot {deployment.old}"


def _tell_end(ended: Ended) -> None:
    wanted = ended.outcome in (Outcome.SUCCEEDED, Outcome.SUPERSEDED, Outcome.CANCELED)
    level = logging.INFO if wanted else logging.ERROR
    log.log(
        level,
        "%s: %s after %s%s",
        _name(ended.module, ended.version),
        ended.outcome,
        format_duration(max(0, ended.ended - ended.began)),
        f": {ended.failure}" if ended.failure else "",
        extra={"OTAD_DEPLOYMENT": ended.id, "OTAD_MODULE": ended.module, "MESSAGE_ID": ids.ENDED},
    )
