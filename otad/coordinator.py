# SPDX-License-Identifier: Apache-2.0
"""The one place where events become state and state becomes running work.

    event -> state = step(state, event) -> saved -> work_for(state) is made so

Nothing acts on a state that is not durable. Work is started, kept, or canceled and waited for; it reports by events on
the same queue. While the state directory cannot be written nothing is begun: the save is repeated, and status says so.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from otad import narration
from otad.core.events import Event, Failed, Filed, Finished
from otad.core.model import Deployment, State
from otad.core.step import step
from otad.core.work import Work, work_for
from otad.errors import UpdateError
from otad.store import Store
from otad.telemetry import Telemetry
from otad.threads import in_thread
from otad.units import format_duration

SAVE_PAUSE_MAX_S = 60.0
FILE_AGAIN_S = 600.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Change:
    """What an event did."""

    before: State
    after: State


_NO_RUN = ("", 0)  # before the first: that one tidies what is left

CarryOut = Callable[[Work, Deployment | None], Awaitable[bool]]
"""Do this work; True if the platform was reached within the last hour. UpdateError is an expected failure."""


class Coordinator:
    """Owns the state. Everybody else reads it, and changes it by submitting events."""

    def __init__(
        self,
        store: Store,
        state: State,
        carry_out: CarryOut,
        let_go: Callable[[Deployment | None], None],
        telemetry: Telemetry,
    ) -> None:
        """`let_go` closes what works of an earlier run have open, and tidies; it gets the deployment that remains."""
        self.state = state
        self.begun = asyncio.Event()  # the machine has been believed: until then the state is only a memory
        self.stuck = ""  # what a save waits for, in words
        self._store = store
        self._carry_out = carry_out
        self._let_go = let_go
        self._telemetry = telemetry
        self._queue: asyncio.Queue[tuple[Event, asyncio.Future[Change] | None]] = asyncio.Queue()
        self._work: Work | None = None
        self._task: asyncio.Task[None] | None = None
        self._run: tuple[str, int] | None = _NO_RUN

    @property
    def waiting(self) -> int:
        """Events not handled yet."""
        return self._queue.qsize()

    def post(self, event: Event) -> None:
        """Queue an event."""
        self._queue.put_nowait((event, None))

    async def submit(self, event: Event) -> Change:
        """Queue an event and wait for what it did."""
        done: asyncio.Future[Change] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait((event, done))
        return await done

    async def run(self, first: Event) -> None:
        """Handle `first`, then whatever comes, for ever."""
        async with asyncio.TaskGroup() as group:
            await self.handle(first, group)
            self.begun.set()
            while True:
                try:
                    async with asyncio.timeout(FILE_AGAIN_S if self.state.unfiled else None):
                        event, done = await self._queue.get()
                except TimeoutError:
                    await self._file()
                    continue
                change = await self.handle(event, group)
                if done is not None and not done.done():
                    done.set_result(change)

    async def handle(self, event: Event, group: asyncio.TaskGroup) -> Change:
        """One event: step, save, make the work so."""
        before = self.state
        await self._become(step(before, event))
        narration.tell(before, self.state, event)
        await self._make_it_so(group)
        await self._file()
        return Change(before, self.state)

    async def _file(self) -> None:
        """Lines of history that wait for it. A history that cannot be written holds up nothing else."""
        for ended in self.state.unfiled:
            try:
                await in_thread(self._store.file, ended)
            except OSError as error:
                log.error("history: %s; tried again later", error)
                break
            await self._become(step(self.state, Filed(ended.id)))

    async def _become(self, state: State) -> None:
        if state == self.state:
            return
        pause = 1.0
        while True:
            try:
                await in_thread(self._store.save, state)
                break
            except OSError as error:
                # Nothing may be begun that would not be remembered. It is said, and tried for ever.
                self.stuck = f"the state directory ({error.strerror or error})"
                log.error("state: not saved: %s; again in %s", error, format_duration(pause))
                self._telemetry.touch()
                await asyncio.sleep(pause)
                pause = min(2 * pause, SAVE_PAUSE_MAX_S)
        self.stuck = ""
        self.state = state
        self._telemetry.touch()

    async def _make_it_so(self, group: asyncio.TaskGroup) -> None:
        wanted = work_for(self.state)
        if wanted == self._work and self._run != _NO_RUN:
            return
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task])
        self._task, self._work = None, wanted
        deployment = self.state.deployment
        run = (deployment.id, deployment.run) if deployment is not None else None
        if run != self._run:
            # What an earlier run had open or had checked is not this one's.
            self._telemetry.publish(None)
            await in_thread(self._let_go, deployment)
            self._run = run
        if wanted is not None:
            name = f"work: {type(wanted).__name__}"
            self._task = group.create_task(self._perform(wanted, deployment), name=name)

    async def _perform(self, work: Work, deployment: Deployment | None) -> None:
        try:
            online = await self._carry_out(work, deployment)
        except UpdateError as error:
            self.post(Failed(work, error.failure, now()))
        else:
            self.post(Finished(work, now(), online))


def now() -> int:
    """The gateway's clock, in whole seconds."""
    return int(time.time())
