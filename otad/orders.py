# SPDX-License-Identifier: Apache-2.0
"""What the control socket asks of the daemon, answered: status, history, and the orders of whoever stands at it.

An order becomes an event, and its answer says what that event did. Why one is refused is decided by the core alone.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

from otad import status
from otad.cloud.cloud import Cloud, Nothing, Offered, OfflineError, SessionState, Unusable
from otad.config import Config, Loaded
from otad.control.service import JSON, InstallRequest, Objection
from otad.coordinator import Coordinator, now
from otad.core.events import (
    CancelRequested,
    MarkGoodRequested,
    RebootRequested,
    RetryRequested,
    RollBackRequested,
)
from otad.core.model import DEFAULT_MODULE, Digest, DigestMethod, Identity, Notice, Origin, Phase, Slot
from otad.core.step import Verdict, objection, verdict, where_back
from otad.core.work import is_on_trial
from otad.errors import Code, UpdateError
from otad.machine import Machine
from otad.offers import Offers
from otad.reporter import Reporter
from otad.store import Store
from otad.telemetry import Telemetry
from otad.threads import in_thread

REACH_S = 10.0
"""So long a person waits for a session that is not there yet."""


class Orders:
    """The `control.service.Service` of the daemon."""

    def __init__(
        self,
        loaded: Loaded,
        machine: Machine,
        cloud: Cloud,
        coordinator: Coordinator,
        offers: Offers,
        reporter: Reporter,
        store: Store,
        telemetry: Telemetry,
        size_of: Callable[[str], Awaitable[int]],
    ) -> None:
        """`size_of` tells how many bytes a URL leads to."""
        self._config: Config = loaded.config
        self._problems = tuple(str(problem) for problem in loaded.problems)
        self._passes_over = str(loaded.errors[0]) if loaded.errors else ""
        self._machine = machine
        self._cloud = cloud
        self._coordinator = coordinator
        self._offers = offers
        self._reporter = reporter
        self._store = store
        self._telemetry = telemetry
        self._size_of = size_of

    async def status(self) -> dict[str, JSON]:
        await self._machine.look(self._coordinator.state)
        loop, device, names = asyncio.get_running_loop(), self._config.device, self._cloud.names
        asks_at = self._reporter.asks_at
        return status.document(
            status.Situation(
                now=time.time(),
                product_key=names.product_key if names else device.product_key,
                device_name=names.device_name if names else device.device_name,
                state=self._coordinator.state,
                session=self._cloud.view,
                board=self._machine.board,
                slots={
                    Slot(name): status.SlotFacts(
                        slot.bootname, str(slot.device), self._machine.slot_versions.get(Slot(name))
                    )
                    for name, slot in self._config.slots.items()
                },
                versions={
                    module: self._machine.versions[module].version if module in self._machine.versions else None
                    for module in self._machine.modules
                },
                system=self._machine.system,
                waiting=self._offers.waiting,
                progress=self._telemetry.progress,
                stuck=self._machine.unseen or self._coordinator.stuck,
                passes_over=self._passes_over,
                asks_at=time.time() + asks_at - loop.time() if asks_at is not None else None,
                problems=(
                    *self._problems,
                    *(
                        f"module {module}: version not known: {found.problem}"
                        for module, found in self._machine.versions.items()
                        if found.version is None and not found.absent
                    ),
                ),
            )
        )

    async def changed(self) -> None:
        await self._telemetry.changed()

    async def history(self) -> list[dict[str, JSON]]:
        try:
            return await in_thread(self._store.history)
        except OSError as error:
            raise UpdateError(Code.MEDIUM, f"history: {error}") from error

    async def check(self) -> str:
        if is_on_trial(self._coordinator.state):
            raise Objection("the booted system is on trial: nothing is asked before it is confirmed")
        await self._reach_platform()
        words: list[str] = []
        for module in self._machine.modules:
            try:
                answer = await self._cloud.ask(module)
            except OfflineError as error:
                detail = self._cloud.view.detail or str(error)
                raise Objection(f"no session with the platform: {detail or self._cloud.view.state}") from error
            name = "" if module == DEFAULT_MODULE else f"module {module}: "
            match answer:
                case None:
                    problem = self._cloud.unanswered or "it does not answer"
                    raise UpdateError(Code.SESSION, f"the platform does not say what it offers: {problem}")
                case Nothing():
                    words.append(f"{name}nothing is offered")
                case Unusable():
                    words.append(f"{name}{answer.version or 'a package'} is offered and refused: {answer.failure}")
                case Offered(notice) if self._offers.why_not(notice):
                    why_not = self._offers.why_not(notice)
                    words.append(f"{name}{notice.identity.version} is offered and refused: {why_not}")
                case Offered(notice, offer):
                    meaning = verdict(self._coordinator.state, await self._offers.noticed(notice, offer))
                    words.append(f"{name}{notice.identity.version} is offered: {_VERDICT_WORDS[meaning]}")
        return "\n".join(words)

    async def _reach_platform(self) -> None:
        """Whoever asks has perhaps just put right what kept us out: that is not waited for by the hour."""
        if self._session() in (SessionState.ONLINE, SessionState.OFF):
            return
        has_begun = False
        self._cloud.hurry()
        try:
            async with asyncio.timeout(REACH_S):
                while (session := self._session()) != SessionState.ONLINE:
                    if has_begun and session != SessionState.CONNECTING:
                        return  # in vain
                    has_begun = has_begun or session == SessionState.CONNECTING
                    await self._telemetry.changed()
        except TimeoutError:
            pass  # status says why

    def _session(self) -> SessionState:
        return self._cloud.view.state

    async def install(self, request: InstallRequest) -> str:
        if self._passes_over:
            raise Objection("the configuration has errors; `otad config check` tells all")
        if request.module not in self._machine.modules:
            known = ", ".join(self._machine.modules)
            raise Objection(f"module {request.module}: not configured; there is {known}")
        size = request.size if request.size is not None else await self._size_of(request.url)
        if size < 1:
            raise UpdateError(Code.CONTENT, "the package is empty")
        identity = Identity(request.module, request.version, size, Digest(DigestMethod.SHA256, request.sha256))
        noticed = await self._offers.noticed(Notice(identity, request.url, Origin.LOCAL), f"local:{time.time_ns()}")
        change = await self._coordinator.submit(noticed)
        meaning = verdict(change.before, noticed)
        if meaning != Verdict.BEGIN:
            raise Objection(f"{request.version}: {_VERDICT_WORDS[meaning]}")
        return f"installing {request.version}; `otad status --watch` follows it"

    async def cancel(self) -> str:
        request = CancelRequested(now())
        change = await self._coordinator.submit(request)
        _object(objection(change.before, request))
        deployment = change.before.deployment
        assert deployment is not None
        version = deployment.notice.identity.version
        if deployment.notice.origin == Origin.PLATFORM:
            return f"{version} canceled; it is refused until `otad retry`"
        return f"{version} canceled"

    async def retry(self) -> str:
        request = RetryRequested(now())
        change = await self._coordinator.submit(request)
        _object(objection(change.before, request))
        lifted = ", ".join(refusal.version or "a malformed package" for refusal in change.before.refusals)
        if is_on_trial(self._coordinator.state):
            return f"no longer refused: {lifted}; the platform is asked when the trial is over"
        try:
            for module in self._machine.modules:
                await self._cloud.ask(module)
        except OfflineError:
            return f"no longer refused: {lifted}; the platform is asked at the next connection"
        return f"no longer refused: {lifted}; the platform has been asked whether it still offers it"

    async def reboot(self) -> str:
        request = RebootRequested(now())
        change = await self._coordinator.submit(request)
        _object(objection(change.before, request))
        assert change.before.deployment is not None
        return f"rebooting into slot {change.before.deployment.target}"

    async def mark_good(self) -> str:
        request = MarkGoodRequested(now())
        change = await self._coordinator.submit(request)
        _object(objection(change.before, request))
        board, deployment = change.before.board, change.before.deployment
        if deployment is not None and deployment.in_place and deployment.phase == Phase.CONFIRMING:
            return f"trusting module {deployment.notice.identity.module}, without its health checks"
        return f"marking slot {board.booted if board else '?'} good"

    async def rollback(self) -> str:
        found = await self._machine.system_version()
        board = await self._machine.current_board()
        request = RollBackRequested(board, self._machine.system or DEFAULT_MODULE, found.version, now())
        change = await self._coordinator.submit(request)
        _object(objection(change.before, request))
        deployment = change.after.deployment
        return f"rolling back {where_back(deployment)}" if deployment else "rolled back"


_VERDICT_WORDS = {
    Verdict.BEGIN: "the upgrade begins",
    Verdict.SUPERSEDE: "the upgrade begins, in the place of the one under way",
    Verdict.SAME: "under way already",
    Verdict.RUNNING: "it runs already",
    Verdict.REFUSED: "refused; `otad retry` lifts it",
    Verdict.TOO_LATE: "too late, the deployment under way must end first",
    Verdict.BUSY: "another deployment is under way; `otad cancel` ends it",
    Verdict.HEARD: "has been honoured already",
    Verdict.NOT_OURS: "not taken, the booted slot is none of otad's",
}


def _object(why: str | None) -> None:
    if why is not None:
        raise Objection(why)
