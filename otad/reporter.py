# SPDX-License-Identifier: Apache-2.0
"""Tells the platform what it is owed, in an order in which it cannot be misunderstood.

On every connect: ask `firmware/get`, then the outbox in its order, then the version of each module. While it stands:
the outbox as it grows, progress thinned, and a question whenever a deployment ends and every few hours.

Two rules need care, because a step carries no name of the job it is for:

- A step kept from an earlier session goes out only after the platform has said what it offers now. Any step is dropped
  if the newest offer is another package of its module. A platform that never answers gets the step after all.
- A module is not informed while its deployment is confirming or rolling back, nor from a system that failed its health
  gate or that is none of our slots; and on trial nothing is asked.

Progress is derived from the highest checkpoint, not from bytes in flight, so that it never goes back, not even over a
power cut: 1 to 90 fetch and check, 91 to 98 install, 99 reboot. 100 is an outbox report and belongs to success alone.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from otad import ids
from otad.cloud.cloud import Cloud, Offered, OfflineError
from otad.coordinator import Coordinator
from otad.core.events import Delivered
from otad.core.model import (
    Deployment,
    DeploymentId,
    Ended,
    Identity,
    Inform,
    ModuleName,
    Origin,
    Phase,
    PlaceKind,
    Report,
    State,
    Step,
)
from otad.core.step import short
from otad.core.work import is_on_trial
from otad.evidence import Evidence
from otad.telemetry import Progress, Telemetry

ASK_S = 2.0
ASK_PATIENTLY_S = 10.0
ASK_TRIES = 3
"""Unanswered questions after which a step of an earlier session is sent all the same."""
EVIDENCE_TRIES = 3
EVIDENCE_PAUSE_S = 5.0
"""A version that cannot be read just now may be the last word of an upgrade: it is tried again."""
PROGRESS_PERCENT = 5
PROGRESS_S = 5.0
INFORM_S = 5.0
"""A platform that offers what runs with every inform it gets would be answered without an end, as fast as it goes."""
SILENCE_S = 600.0
"""A wait of this long repeats the step and says what is waited for."""

log = logging.getLogger(__name__)


def progress_step(deployment: Deployment, progress: Progress | None) -> int | None:
    """The step this deployment has reached, 1 to 99; None where the platform is not to hear any."""
    if deployment.notice.origin != Origin.PLATFORM or deployment.phase == Phase.ROLLING_BACK:
        return None
    size = deployment.notice.identity.size
    if deployment.switched or (
        deployment.place == PlaceKind.SLOT and deployment.idle_starts and deployment.peak >= size
    ):
        return 99  # also after a restart with all bytes there: it may have been told
    if deployment.phase == Phase.INSTALLING:
        if deployment.idle_starts:
            return 98  # begun anew after a restart: what had been told before is not known, so nothing lower
        if progress is None or progress.deployment != deployment.id or not progress.total:
            return 91
        return 91 + 7 * min(progress.bytes, progress.total) // progress.total
    return 1 + 89 * deployment.peak // max(1, size)


def silent_modules(state: State, system: ModuleName | None) -> frozenset[ModuleName]:
    """Modules whose version is not to be told now: their deployment is confirming or rolling back.

    Nor is that of `system`, the one that the slots are, when what is booted is none of them, or was refused: told, it
    would end a job as done.
    """
    deployment, board = state.deployment, state.board
    silent: set[ModuleName] = set()
    if system is not None and (board is None or board.booted is None or board.booted in state.tainted):
        silent.add(system)
    if deployment is not None and _is_unproven(deployment):
        silent.add(deployment.notice.identity.module)
        if system is not None and not deployment.in_place:
            silent.add(system)  # the new system's configuration may call it something else
    return frozenset(silent)


def _is_unproven(deployment: Deployment) -> bool:
    """What evidence shows now may be gone again soon. In place it shows already while the switch is being made."""
    if deployment.in_place:
        return deployment.switched
    return deployment.phase in (Phase.CONFIRMING, Phase.ROLLING_BACK)


class Reporter:
    """One task; everything it sends is sent in order."""

    def __init__(
        self,
        cloud: Cloud,
        coordinator: Coordinator,
        modules: Mapping[ModuleName, Callable[[], Awaitable[Evidence]]],
        system: ModuleName | None,
        telemetry: Telemetry,
        offers_taken: Callable[[], Awaitable[None]],
        ask_interval_s: float,
    ) -> None:
        """`modules` reads each module's running version, in the order in which they are informed; `system` is the one
        that the slots are, if any; `offers_taken` returns when the state knows of all offers heard so far."""
        self._cloud = cloud
        self._coordinator = coordinator
        self._modules = modules
        self._system = system
        self._telemetry = telemetry
        self._offers_taken = offers_taken
        self._ask_interval_s = ask_interval_s
        self._clock = asyncio.get_running_loop().time
        self._offered: dict[ModuleName, Identity] = {}  # the newest on this connection
        self.asks_at: float | None = None  # loop time of the next question without a reason, for status
        self._told: tuple[DeploymentId, int] | None = None  # the last step of progress
        self._told_at = 0.0
        self._told_more = asyncio.Event()
        self._unreadable: dict[ModuleName, str] = {}

    async def run(self) -> None:
        """Serve one connection after the other, for ever; none before it is known what runs, and whether on trial."""
        await self._coordinator.begun.wait()
        connection = 0
        while True:
            connection = await self._cloud.connected(after=connection)
            state = self._coordinator.state
            kept = frozenset(report.serial for report in state.outbox if isinstance(report, Step))
            self._offered.clear()
            try:
                await self._serve(_Connection(connection, kept, ended=state.last))
            except OfflineError as error:
                log.debug("connection %s: %s", connection, error)

    def offered(self, identity: Identity) -> None:
        """The platform has offered this package, asked or not: a step of another one would hit a wrong job."""
        self._offered[identity.module] = identity

    async def farewell(self) -> None:
        """Return when step 99 of the deployment under way is acknowledged. Give it a time limit."""
        deployment = self._coordinator.state.deployment
        if deployment is None or progress_step(deployment, None) != 99:
            return
        while self._told != (deployment.id, 99):
            self._told_more.clear()
            await self._told_more.wait()

    async def _serve(self, connection: "_Connection") -> None:
        """Tell whatever is to be told next, until there is nothing; then wait for a change."""
        while True:
            # Registered before looking, so that no change is missed.
            changed = asyncio.ensure_future(self._telemetry.changed())
            try:
                if not await self._tell_next(connection):
                    await asyncio.wait([changed], timeout=self._patience_s(connection))
            finally:
                changed.cancel()

    async def _tell_next(self, connection: "_Connection") -> bool:
        """Tell one thing; False if there is nothing to tell."""
        state = self._coordinator.state
        may_ask = not is_on_trial(state)
        if may_ask and not connection.asked:
            await self._ask(connection, patient=any(r.serial in connection.kept for r in state.outbox))
        elif (report := self._deliverable(connection, state)) is not None:
            await self._deliver(connection, report)
        elif pending := [
            m for m in self._modules if m not in connection.informed | silent_modules(state, self._system)
        ]:
            connection.informed.add(pending[0])
            await self._inform(pending[0])
        elif may_ask and (state.last != connection.ended or self._clock() >= (self.asks_at or 0.0)):
            connection.ended = state.last
            await self._ask(connection, patient=False)
        else:
            return await self._tell_progress(state)
        return True

    def _deliverable(self, connection: "_Connection", state: State) -> Report | None:
        """The first that may be told now. Within a module their order stays; one module does not wait for another."""
        held: set[ModuleName] = set()
        for report in state.outbox:
            if report.module not in held and self._may_deliver(connection, state, report):
                return report
            held.add(report.module)
        return None

    def _may_deliver(self, connection: "_Connection", state: State, report: Report) -> bool:
        match report:
            case Step():
                return connection.asked or report.serial not in connection.kept
            case Inform():
                is_due = self._clock() >= connection.informs_at.get(report.module, 0.0)
                return is_due and report.module not in silent_modules(state, self._system)

    async def _ask(self, connection: "_Connection", *, patient: bool) -> None:
        """Ask what is offered for each module. The answers also go where unasked offers go.

        Patient, because a step of an earlier session depends on it: then several times, and for longer.
        """
        for module in self._modules:
            self._offered.pop(module, None)
            for _ in range(ASK_TRIES if patient else 1):
                answer = await self._cloud.ask(module, ASK_PATIENTLY_S if patient else ASK_S)
                if isinstance(answer, Offered):
                    self.offered(answer.notice.identity)
                if answer is not None:
                    break
            else:
                log.debug("module %s: the platform does not say what it offers", module)
        # A job that is refused already is offered again by the push on connect and by the answer. Heard while its step
        # is still owed, both are answered by that one step.
        await self._offers_taken()
        connection.asked = True
        jitter = random.uniform(0.9, 1.1)  # noqa: S311 - so that a fleet does not ask all at once
        self.asks_at = self._clock() + self._ask_interval_s * jitter
        self._telemetry.touch()

    async def _deliver(self, connection: "_Connection", report: Report) -> None:
        match report:
            case Inform():
                connection.informed.add(report.module)
                connection.informs_at[report.module] = self._clock() + INFORM_S
                await self._inform(report.module)
            case Step():
                connection.informs_at.pop(report.module, None)  # what it is the outcome of changed the version
                why_not = await self._why_not(report)
                if why_not:
                    extra = {"OTAD_MODULE": report.module, "MESSAGE_ID": ids.REPORT_DROPPED}
                    log.warning("step %s of module %s dropped: %s", report.step, report.module, why_not, extra=extra)
                else:
                    await self._cloud.step(report.module, report.step, report.desc)
        await self._coordinator.submit(Delivered(report.serial))

    async def _why_not(self, step: Step) -> str:
        """Why this step no longer has an addressee; "" if it has."""
        if step.identity is None:
            return ""
        offered = self._offered.get(step.module)
        if offered is not None and offered != step.identity:
            return f"it is about {step.identity.version}, and the platform offers {offered.version} now"
        if step.step == 100:
            evidence = await self._evidence(step.module)
            if evidence.version not in (None, step.identity.version):
                return f"{step.identity.version} was confirmed, but {evidence.version} runs now"
        return ""

    async def _inform(self, module: ModuleName) -> None:
        """Tell the version that evidence shows. One that cannot be read is not told; that is said when it begins."""
        evidence = await self._evidence(module)
        for _ in range(EVIDENCE_TRIES - 1):
            if evidence.version is not None or evidence.absent:
                break
            await asyncio.sleep(EVIDENCE_PAUSE_S)
            evidence = await self._evidence(module)
        if evidence.version is not None:
            await self._cloud.inform(module, evidence.version)
        elif self._unreadable.get(module) != evidence.problem:
            level = logging.INFO if evidence.absent else logging.ERROR
            log.log(level, "module %s: version not known, not informed: %s", module, evidence.problem)
        self._unreadable[module] = evidence.problem

    async def _evidence(self, module: ModuleName) -> Evidence:
        """Of a module that is owed a report and has been taken out of the configuration there is none."""
        read = self._modules.get(module)
        return await read() if read is not None else Evidence(None, "not configured on this gateway", absent=True)

    # -- progress

    async def _tell_progress(self, state: State) -> bool:
        deployment = state.deployment
        if deployment is None or state.board is None or state.board.booted is None:
            return False
        reached = progress_step(deployment, self._telemetry.progress)
        if reached is None:
            return False
        told, now = self._told_of(deployment), self._clock()
        if told is None and deployment.phase == Phase.CONFIRMING:
            # 99 was told before the reboot.
            self._told, self._told_at = (deployment.id, reached), now
            return False
        desc = ""
        if told is not None and not self._is_due(reached, told, now):
            if now - self._told_at < SILENCE_S:
                return False
            reached, desc = told, self._waits_for()
        await self._cloud.step(deployment.notice.identity.module, reached, desc)
        self._told, self._told_at = (deployment.id, reached), now
        self._told_more.set()
        return True

    def _told_of(self, deployment: Deployment) -> int | None:
        return self._told[1] if self._told is not None and self._told[0] == deployment.id else None

    def _is_due(self, reached: int, told: int, now: float) -> bool:
        if reached <= told:
            return False
        return reached == 99 or reached - told >= PROGRESS_PERCENT or now - self._told_at >= PROGRESS_S

    def _waits_for(self) -> str:
        progress = self._telemetry.progress
        if progress is None or not progress.waits_for:
            return "still at it"
        return short(f"waits for {progress.waits_for}")

    def _patience_s(self, connection: "_Connection") -> float:
        """How long nothing can become due without a change."""
        now = self._clock()
        informs = [at - now for at in connection.informs_at.values()]
        until = [(self.asks_at if self.asks_at is not None else now + PROGRESS_S) - now, SILENCE_S, *informs]
        deployment = self._coordinator.state.deployment
        if deployment is not None:
            until.append(self._told_at + PROGRESS_S - now)
            until.append(self._told_at + SILENCE_S - now)
        return max(0.1, min(pause for pause in until if pause > 0))


@dataclass(slots=True)
class _Connection:
    """What has been said and heard since this connection stands."""

    number: int
    kept: frozenset[int]  # serials of the steps that are older than this connection
    ended: Ended | None  # the last deployment that had ended when the platform was asked
    asked: bool = False
    informed: set[ModuleName] = field(default_factory=set[ModuleName])
    informs_at: dict[ModuleName, float] = field(default_factory=dict[ModuleName, float])  # not again before, loop time
