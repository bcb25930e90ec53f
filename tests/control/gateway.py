# SPDX-License-Identifier: Apache-2.0
"""A gateway for the tests of control socket and command line: the real core and status, without machine and platform.

It does what the daemon does with an order, as far as `step` decides it; works never run by themselves.
"""

import asyncio
import contextlib
import os
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from datetime import UTC
from pathlib import Path

from otad.cloud.cloud import SessionState, SessionView
from otad.control.server import Limits, Server, listen
from otad.control.service import JSON, InstallRequest, Objection
from otad.core.events import (
    CancelRequested,
    Checkpointed,
    Failed,
    MarkGoodRequested,
    Noticed,
    RebootRequested,
    Request,
    RetryRequested,
    RollBackRequested,
    Started,
)
from otad.core.model import (
    DEFAULT_MODULE,
    Board,
    BootId,
    Digest,
    DigestMethod,
    Identity,
    Notice,
    Origin,
    PlaceKind,
    Slot,
    SlotView,
    State,
)
from otad.core.step import Verdict, objection, step, verdict
from otad.core.work import work_for
from otad.errors import Code, Failure, UpdateError
from otad.status import Situation, SlotFacts, document
from otad.store import history_entry
from otad.telemetry import Progress, Telemetry

MIB = 1 << 20
NOW = 1795428900  # 2026-11-23 10:15:00 UTC
A, B = Slot("a"), Slot("b")
BOARD = Board(A, A, (SlotView(A, True, 3, True), SlotView(B, False, 0, False)))
NOTICE = Notice(
    Identity(DEFAULT_MODULE, "2-0-0", 512 * MIB, Digest(DigestMethod.SHA256, "ab" * 32)),
    "https://example.com/2-0-0?signature=secret",
)


def started() -> State:
    """A gateway that has just booted into slot a, with nothing to do."""
    state = step(State(), Started(BootId("one"), BOARD, DEFAULT_MODULE, "1-0-0", NOW))
    return replace(state, settled=state.boot_id)


def situation(state: State | None = None, **more: object) -> Situation:
    """A gateway in this state, online."""
    state = started() if state is None else state
    facts = {
        A: SlotFacts("A", "/dev/disk/by-partlabel/rootfs-a", "1-0-0"),
        B: SlotFacts("B", "/dev/disk/by-partlabel/rootfs-b", None),
    }
    usual = Situation(
        now=NOW,
        product_key="a1B2c3D4e5F",
        device_name="gateway-0001",
        state=state,
        session=SessionView(SessionState.ONLINE, NOW, ""),
        board=state.board,
        slots=facts,
        versions={DEFAULT_MODULE: "1-0-0"},
        system=DEFAULT_MODULE,
        asks_at=NOW + 13800,
        zone=UTC,
    )
    return replace(usual, **more)  # type: ignore[arg-type]


class Gateway:
    """A Service. Its methods are to be called in the server's loop."""

    def __init__(self) -> None:
        self.state = started()
        self.telemetry = Telemetry()
        self.session = SessionView(SessionState.ONLINE, NOW, "")
        self.installed: list[InstallRequest] = []
        self.padding = ""
        self.looks = 0  # how often the status was asked for
        self.store_is_broken = False

    # -- what happens to it

    def notice(self) -> None:
        self._take(step(self.state, Noticed(NOTICE, "offer", "1-0-0", 3, NOW)))

    def download(self, position: int) -> None:
        """`position` bytes have come, those up to the last 8 MiB are durable."""
        work, checkpoint = work_for(self.state), position // (8 * MIB) * (8 * MIB)
        deployment = self.state.deployment
        assert work is not None
        assert deployment is not None
        fetched = checkpoint - deployment.checkpoint
        self.state = step(self.state, Checkpointed(work, PlaceKind.SLOT, checkpoint, "e", "u", False, fetched, 0))
        self.telemetry.publish(Progress(deployment.id, position, 512 * MIB, checkpoint, 2 * MIB))

    def fail(self) -> None:
        work = work_for(self.state)
        assert work is not None
        self._take(step(self.state, Failed(work, Failure(Code.HTTP_STATUS, "example.com: 404 Not Found"), NOW)))

    def _take(self, state: State) -> None:
        self.state = state
        self.telemetry.touch()

    # -- what is asked of it

    async def status(self) -> dict[str, JSON]:
        self.looks += 1
        return self.document()

    def document(self) -> dict[str, JSON]:
        progress = self.telemetry.progress
        status = document(situation(self.state, session=self.session, progress=progress))
        return {**status, "padding": self.padding} if self.padding else status

    async def changed(self) -> None:
        await self.telemetry.changed()

    async def history(self) -> list[dict[str, JSON]]:
        return [history_entry(self.state.last)] if self.state.last else []

    async def check(self) -> str:
        if self.session.state is not SessionState.ONLINE:
            raise Objection("no session with the platform: connection refused")
        return "nothing is offered"

    async def install(self, request: InstallRequest) -> str:
        self.installed.append(request)
        size = request.size or 1
        identity = Identity(request.module, request.version, size, Digest(DigestMethod.SHA256, request.sha256))
        noticed = Noticed(Notice(identity, request.url, Origin.LOCAL), "local", "1-0-0", 3, NOW)
        if verdict(self.state, noticed) is not Verdict.BEGIN:
            raise Objection(f"{request.version}: another deployment is under way; `otad cancel` ends it")
        self._take(step(self.state, noticed))
        return f"installing {request.version}"

    async def cancel(self) -> str:
        return self._order(CancelRequested(NOW), "canceled")

    async def retry(self) -> str:
        return self._order(RetryRequested(NOW), "no longer refused")

    async def reboot(self) -> str:
        return self._order(RebootRequested(NOW), "rebooting")

    async def mark_good(self) -> str:
        if self.store_is_broken:
            raise UpdateError(Code.BOOT, "/boot/variables: Input/output error")
        return self._order(MarkGoodRequested(NOW), "marking slot a good")

    async def rollback(self) -> str:
        assert self.state.board is not None
        return self._order(RollBackRequested(self.state.board, DEFAULT_MODULE, "1-0-0", NOW), "rolling back")

    def _order(self, request: Request, words: str) -> str:
        if why := objection(self.state, request):
            raise Objection(why)
        self._take(step(self.state, request))
        return words


@contextlib.contextmanager
def short_directory() -> Iterator[Path]:
    """Socket paths have room for 107 bytes; pytest's own directories are longer than that on some machines."""
    with tempfile.TemporaryDirectory(prefix="otad-") as directory:
        yield Path(directory)


@contextlib.asynccontextmanager
async def served(path: Path, gateway: Gateway, limits: Limits | None = None) -> AsyncIterator[None]:
    """The gateway on its socket, in this loop. A bug in the server fails the test."""
    server = asyncio.create_task(Server(listen(path), gateway, limits).run())
    try:
        yield
        assert not server.done()
    finally:
        server.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await server


class Served:
    """The gateway on its socket, in a thread, for tests that run the command line."""

    def __init__(self, path: Path, gateway: Gateway | None = None) -> None:
        self.path = path
        self.gateway = gateway or Gateway()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def __enter__(self) -> "Served":
        self._thread.start()
        assert self._ready.wait(5)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(5)
        assert not self._thread.is_alive()

    def do(self, what: Callable[[], None]) -> None:
        """Let something happen to the gateway; returns when it has."""
        done = threading.Event()
        self._loop.call_soon_threadsafe(lambda: (what(), done.set()))
        assert done.wait(5)

    async def _run(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        async with served(self.path, self.gateway):
            self._ready.set()
            await self._stop.wait()


def as_nobody(what: Callable[[], object]) -> str:
    """What `what` says when the user nobody does it, in a process of its own."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            said = str(what())
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said
