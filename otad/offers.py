# SPDX-License-Identifier: Apache-2.0
"""What the platform offers, asked or not, on its way to becoming an event.

Only here it is known what this gateway is made of: a package for a module that is not configured, or of a shape that
the module's installer cannot take, is refused before anything begins.
"""

import asyncio
import logging
from collections.abc import Callable

from otad.cloud.cloud import Answer, Nothing, Offered, Unusable
from otad.config import InstallerKind
from otad.coordinator import Coordinator, now
from otad.core.events import Noticed, Rejected
from otad.core.model import Identity, ModuleName, Notice
from otad.core.step import Verdict, verdict
from otad.errors import Code, Failure
from otad.machine import Machine

WAITING_MAX = 64
"""Offers heard and not looked at yet; more are dropped: the platform is asked again."""

_log = logging.getLogger(__name__)


class Offers:
    """One task that takes offers in the order in which they came."""

    def __init__(
        self,
        machine: Machine,
        tries: int,
        *,
        passed_over: bool,
    ) -> None:
        """`tries` a package has; `passed_over`: the configuration has errors, so that nothing is begun, and nothing
        refused: the fault is the gateway's."""
        self.waiting: dict[ModuleName, str] = {}  # versions that wait until the deployment under way has ended
        self._machine = machine
        self._tries = tries
        self._passed_over = passed_over
        self._queue: asyncio.Queue[Answer] = asyncio.Queue(WAITING_MAX)

    def hear(self, answer: Answer) -> None:
        """Queue what was heard; never blocks."""
        try:
            self._queue.put_nowait(answer)
        except asyncio.QueueFull:
            _log.warning("more offers than can be looked at: one dropped")

    async def taken(self) -> None:
        """Return when the state knows of all that has been heard so far."""
        await self._queue.join()

    async def run(self, coordinator: Coordinator, offered: Callable[[Identity], None]) -> None:
        """Make events of what is heard, for ever; none before it is known what runs. `offered` hears of each one."""
        await coordinator.begun.wait()
        while True:
            answer = await self._queue.get()
            event = await self._event_of(answer)
            if event is not None:
                change = await coordinator.submit(event)
                if isinstance(event, Noticed):
                    meaning = verdict(change.before, event)
                    self._remember(event.notice.identity, meaning)
                    if meaning != Verdict.HEARD:
                        offered(event.notice.identity)
            self._queue.task_done()

    async def noticed(self, notice: Notice, offer: str) -> Noticed:
        """This notice as an event. The module must be configured."""
        module = notice.identity.module
        running = await self._machine.version(module)
        in_place = self._machine.modules[module].installer is not InstallerKind.SLOTS
        return Noticed(notice, offer, running.version, self._tries, now(), in_place=in_place)

    def _remember(self, identity: Identity, meaning: Verdict) -> None:
        if meaning in (Verdict.BUSY, Verdict.TOO_LATE):
            self.waiting[identity.module] = identity.version
        else:
            self.waiting.pop(identity.module, None)

    async def _event_of(self, answer: Answer) -> Noticed | Rejected | None:
        if self._passed_over:
            _log.warning("an offer is passed over: the configuration has errors")
            return None
        match answer:
            case Offered(notice, offer):
                why_not = self.why_not(notice)
                if not why_not:
                    return await self.noticed(notice, offer)
                identity = notice.identity
                failure = Failure(Code.UNSUPPORTED, why_not)
                key = f"unconfigured:{identity.key}"  # not the package's own: configured, it is as good as any
                return Rejected(key, identity.module, identity.version, failure, offer, now())
            case Unusable():
                return Rejected(answer.key, answer.module, answer.version, answer.failure, answer.offer, now())
            case Nothing(module):
                self.waiting.pop(module, None)
                return None

    def why_not(self, notice: Notice) -> str:
        """Why this gateway cannot carry it out at all; "" if it can."""
        module = self._machine.modules.get(notice.identity.module)
        if module is None:
            return f"module {notice.identity.module}: not configured on this gateway"
        if notice.files and module.installer is InstallerKind.SLOTS:
            return (
                f"files: {len(notice.files)} of them, and module {notice.identity.module} takes one image for its slot"
            )
        return ""
