# SPDX-License-Identifier: Apache-2.0
"""A gateway that lives until its upgrade has come to rest, however often its power fails.

`Board` owns what outlives a life: the storage, the platform with its jobs, the server that counts what it serves. A
life is the real coordinator, worker, reporter, installer, transfer, store and simulated boot loader, wired as the
daemon wires them, on a `MemoryDisk`. It ends by a cut, by the exit that asks for a reboot, by an I/O error, or at rest.
After all but the error the board is switched off and on.

Everything runs in one thread and in virtual time, so that the same cut is the same story each time.

The board objects (`Broken`) at the very operation by which a promise is broken:

- A slot that the boot loader may choose after a cut at this moment holds a whole image, durably.
- A slot is confirmed only if its system is a healthy one.
- Success is told only while the new system runs and is durably confirmed.
- The boot loader's store and the state can always be read.
"""

import asyncio
import hashlib
import json
import random
import selectors
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from otad import evidence
from otad.boot.control import BootControl
from otad.boot.simulated import SimulatedBoot
from otad.cloud.cloud import Answer, Block, Names, Nothing, Offered, OfflineError, SessionState, SessionView
from otad.config import (
    Backend,
    BootSettings,
    Config,
    ControlSettings,
    DeviceSettings,
    DownloadSettings,
    HealthSettings,
    Module,
    MqttSettings,
    RebootSettings,
    SlotVersion,
    StateSettings,
    TrustSettings,
    UpdateSettings,
)
from otad.config import Slot as SlotSettings
from otad.coordinator import CarryOut, Coordinator, now
from otad.core.events import Checkpointed, Noticed, Started
from otad.core.model import (
    DEFAULT_MODULE,
    BootId,
    Deployment,
    Digest,
    DigestMethod,
    Identity,
    ModuleName,
    Notice,
    PlaceKind,
    Slot,
    Stream,
)
from otad.core.model import Board as BoardView
from otad.core.work import Download, work_for
from otad.errors import UpdateError
from otad.evidence import Evidence
from otad.installers.format import Format, sniff
from otad.installers.slots import SlotInstaller
from otad.installers.staging import Staging
from otad.reporter import Reporter
from otad.store import Store
from otad.telemetry import Telemetry
from otad.transfer.download import Checkpoint, Pace, download
from otad.transfer.source import Begin, Piece, Waiting
from otad.worker import RebootByExit, Worker
from tests.power.memory_disk import Fate, Fault, MemoryDisk, Power, PowerCut, Storage

A, B = Slot("a"), Slot("b")
OLDER, OLD, NEW = "0-9-0", "1-0-0", "2-0-0"
PIECE_BYTES = 4096
PACE = Pace(buffer_bytes=8192, buffers=2, check_bytes=8192, checkpoint_bytes=32768, checkpoint_s=1e9, progress_s=0.0)
IN_FLIGHT_BYTES = PACE.buffers * PACE.buffer_bytes + 2 * PIECE_BYTES
LIVES_MAX = 60
ERRORS_MAX = 5
REST_S = 30.0
LIFE_MAX_S = 4 * 3600.0


class Broken(AssertionError):  # noqa: N818
    """A promise was broken."""


class AtRest(Exception):  # noqa: N818
    """Nothing is left to do."""


@dataclass(frozen=True)
class System:
    """An image, the version that is said of it, and whether its checks will pass."""

    version: str
    image: bytes
    package: bytes
    slot_bytes: int
    is_healthy: bool = True

    @property
    def notice(self) -> Notice:
        digest = Digest(DigestMethod.SHA256, hashlib.sha256(self.package).hexdigest())
        identity = Identity(DEFAULT_MODULE, self.version, len(self.package), digest)
        return Notice(identity, f"https://packages/{self.version}")


def image(version: str, size: int = 60_001, label: str | None = None) -> bytes:
    """Bytes of a system that says to be `label`, its version where nothing else is asked for; "" does not boot."""
    says = version if label is None else label
    return f"# {version}\n{'IMAGE_VERSION=' if says else ''}{says}\n".encode() + random.Random(version).randbytes(size)


def raw(version: str = NEW, label: str | None = None, *, is_healthy: bool = True) -> System:
    content = image(version, 100_001, label)
    return System(version, content, content, 160 << 10, is_healthy)


def packed(pack: Callable[[bytes], bytes]) -> System:
    """An image of several chunks in a package that has to be unpacked."""
    content = image(NEW, 50_001) + bytes(1 << 20) + b"the end"
    return System(NEW, content, pack(content), 1200 << 10)


# ---------------------------------------------------------------------------------------------- time and threads


class _Skipping(selectors.SelectSelector):
    """Never waits: when there is nothing to do before a timer, it is that time."""

    skipped = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise Broken("stuck: nothing will ever happen")
        self.skipped += max(0.0, timeout)
        return super().select(0)


class _Here(ThreadPoolExecutor):
    """Does at once, in this thread, what is asked of it."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._clock = _Skipping()
        super().__init__(self._clock)
        self.set_default_executor(_Here(1))

    def time(self) -> float:
        return self._clock.skipped


# ---------------------------------------------------------------------------------------------- the platform


@dataclass
class Platform:
    """Offers a package until its job has ended: by the target's version, a negative step, or a third version."""

    system: System
    source_version: str = OLD
    job: str = "NOTIFIED"
    offers: int = 0

    def answer(self) -> Answer:
        if self.job not in ("NOTIFIED", "IN_PROGRESS"):
            return Nothing(DEFAULT_MODULE)
        self.offers += 1
        return Offered(self.system.notice, f"offer-{self.offers}")

    def again(self) -> None:
        """A new job for the same package."""
        self.job = "NOTIFIED"

    def hear_step(self, step: int) -> None:
        if self.job in ("NOTIFIED", "IN_PROGRESS"):
            self.job = "FAILED" if step < 0 else "IN_PROGRESS"

    def hear_version(self, version: str) -> None:
        if version == self.system.version:
            if self.job in ("NOTIFIED", "IN_PROGRESS"):
                self.job = "SUCCEEDED"
        elif self.job == "IN_PROGRESS" and version != self.source_version:
            self.job = "FAILED"


class Session:
    """A `Cloud` for one life: online from the first moment, and as mortal as the gateway."""

    def __init__(self, board: "Board", heard: Callable[[Answer], None]) -> None:
        self._board, self._heard = board, heard
        self._online = asyncio.Event()
        self.connection = 0
        self.names: Names | None = None
        self.unanswered = ""

    @property
    def view(self) -> SessionView:
        return SessionView(SessionState.ONLINE, 0, "")

    @property
    def online_at(self) -> float | None:
        return time.monotonic() if self.connection else None

    async def run(self) -> None:
        await asyncio.sleep(0.1)
        self.connection = 1
        self._online.set()
        self._hear(self._board.platform.answer())
        await asyncio.Event().wait()

    def hurry(self) -> None:
        """It is always there."""

    async def connected(self, after: int) -> int:
        if after >= 1:
            await asyncio.Event().wait()
        await self._online.wait()
        return 1

    async def ask(self, module: ModuleName, timeout_s: float = 10) -> Answer | None:
        self._board.power.require()
        answer = self._board.platform.answer()
        self._hear(answer)
        return answer

    async def block(self, stream: Stream, offset: int, size: int) -> Block:
        raise OfflineError("this platform has none")

    async def inform(self, module: ModuleName, version: str) -> None:
        self._board.power.operation(f"send version {version}")
        self._board.hears(version=version)
        self._board.power.operation(f"acknowledge version {version}")

    async def step(self, module: ModuleName, step: int, desc: str) -> None:
        self._board.power.operation(f"send step {step}")
        self._board.hears(step=step, desc=desc)
        self._board.power.operation(f"acknowledge step {step}")

    def _hear(self, answer: Answer) -> None:
        if not isinstance(answer, Nothing):
            self._heard(answer)


class Server:
    """A `Source`: the whole package in small pieces, counted."""

    def __init__(self, board: "Board") -> None:
        self._board = board

    async def pieces(self, begin: Begin, waits: Callable[[Waiting], None]) -> AsyncGenerator[Piece, None]:
        package, at, first = self._board.platform.system.package, begin.offset, True
        while at < begin.size:
            await asyncio.sleep(0)
            self._board.power.require()
            content = package[at : at + PIECE_BYTES]
            self._board.served += len(content)
            at += len(content)
            yield Piece(content, len(content), first, "tag", "https://packages")
            first = False


# ---------------------------------------------------------------------------------------------- the board


Disks = Callable[[Storage, Power, Fault | None, Callable[[], None]], MemoryDisk]
Boots = Callable[[SimulatedBoot, "Board"], BootControl]
Carriers = Callable[[CarryOut, "Board", BootControl, SlotInstaller], CarryOut]


@dataclass(frozen=True)
class Parts:
    """The seams at which a test may put something else."""

    disk: Disks = MemoryDisk
    boot: Boots = lambda boot, board: boot
    store: Callable[[MemoryDisk, Path], Store] = Store
    carry_out: Carriers = lambda carry_out, board, boot, installer: carry_out


class Board:
    """One gateway with two slots, slot a running OLD, and a platform that offers it `system`."""

    def __init__(
        self,
        directory: Path,
        system: System,
        *,
        fault: Fault | None = None,
        parts: Parts | None = None,
    ) -> None:
        """`directory` is a real one, for the few facts about devices that are asked of the system itself."""
        self.directory, self.system, self.fault = directory, system, fault
        self.parts = parts or Parts()
        self.platform = Platform(system)
        self.power = Power()
        self.served = 0
        self.endings: list[str] = []
        self.story: list[str] = []  # what was booted, and what the platform heard
        self.devices = {A: directory / "a.img", B: directory / "b.img"}
        for device in self.devices.values():
            device.touch()
        self.storage = Storage()
        for path in (directory, *directory.parents):
            self.storage.provide_directory(path)
        self.images = {OLDER: image(OLDER), OLD: image(OLD), system.version: system.image}
        self.storage.provide(self.devices[A], self.images[OLD].ljust(system.slot_bytes, b"\0"))
        self.storage.provide(self.devices[B], self.images[OLDER].ljust(system.slot_bytes, b"\0"))
        self.variables_file = directory / "boot" / "variables.json"
        self.state_directory = directory / "state"
        self.config = _config(directory, self.devices)
        if fault is not None:
            # Before its first fault it has been in use.
            for path in (self.variables_file.parent, self.state_directory, self.state_directory / "staging"):
                self.storage.provide_directory(path)
            self.boot(MemoryDisk(self.storage, Power())).power_cycle()
        self._looked: dict[Slot, tuple[int, int, str | None]] = {}
        self._parsed: tuple[list[bytes], list[dict[str, Any]]] = ([], [])

    # -- what a test looks at

    @property
    def variables(self) -> dict[str, Any]:
        parsed: dict[str, Any] = json.loads(self.storage.names[self.variables_file].content)
        return parsed

    @property
    def steps(self) -> list[int]:
        return [int(told.split()[1]) for told in self.story if told.startswith("step")]

    @property
    def served_twice(self) -> int:
        return self.served - len(self.system.package)

    def history(self) -> list[dict[str, Any]]:
        return Store(MemoryDisk(self.storage, Power()), self.state_directory).history()

    def holds(self, slot: Slot) -> str | None:
        """The version whose whole image the slot holds durably, with nothing under way; None where it is none's."""
        inode = self.storage.names[self.devices[slot]]
        seen = self._looked.get(slot)
        if seen is None or seen[:2] != (id(inode), inode.changes):
            found = None
            if not inode.pending:
                found = next((name for name, held in self.images.items() if inode.durable.startswith(held)), None)
            seen = self._looked[slot] = (id(inode), inode.changes, found)
        return seen[2]

    # -- promises

    def watch(self) -> None:
        """Asked at each change of the storage: what if the power failed now?"""
        for variables in self._possible_variables():
            for name, entry in variables["slots"].items():
                version = self.holds(Slot(name))
                if entry["good"] and version is None:
                    raise Broken(f"slot {name} may be booted and holds no whole image")
                if entry["confirmed"] and version == self.system.version and not self.system.is_healthy:
                    raise Broken(f"slot {name} is confirmed and not healthy")

    def hears(self, *, step: int | None = None, version: str | None = None, desc: str = "") -> None:
        """The platform hears something; the board knows whether it is true."""
        if step == 100 or version == self.system.version:
            for variables in self._possible_variables():
                booted = variables["booted"]
                if booted is None or self.holds(Slot(booted)) != self.system.version:
                    raise Broken("success told while something else runs")
                if not variables["slots"][booted]["confirmed"]:
                    raise Broken("success told before the slot is durably confirmed")
        if version is not None:
            self.story.append(f"version {version}")
            self.platform.hear_version(version)
        if step is not None:
            self.story.append(f"step {step} {desc}".strip())
            self.platform.hear_step(step)

    def must_be_faulty(self) -> None:
        """Only a storage that takes nothing is a reason to wait for days. It has become a better one by now."""
        if self.fault is None or self.fault.is_healed or not self.fault.for_ever:
            raise Broken("does not come to rest")
        self.fault.is_healed = True

    def _possible_variables(self) -> list[dict[str, Any]]:
        held = self.storage.held(self.variables_file)
        if held != self._parsed[0]:
            try:
                self._parsed = held, [json.loads(content) for content in set(held)]
            except ValueError:
                raise Broken("the boot loader's variables may be unreadable") from None
        return self._parsed[1]

    # -- lives

    def run(self, cuts: "list[tuple[int, Fate]] | None" = None) -> "Board":
        """Live until rest. `cuts` are operations, each counted from the life after the cut before, and their fates."""
        left = list(cuts or [])
        fate: Fate = "none"

        def switch_on() -> None:
            nonlocal fate
            at, fate = left.pop(0) if left else (None, "none")
            self.power.restore(None if at is None else self.power.operations + at)

        switch_on()
        while True:
            try:
                ending = self.live()
            except PowerCut:
                ending = "cut"
            self.endings.append(ending)
            if ending == "rest":
                return self
            if len(self.endings) >= LIVES_MAX:
                raise Broken(f"does not come to rest: {self.endings[-5:]}")
            if ending == "error":
                for inode in self.storage.names.values():
                    inode.is_open = False
                if self.endings[-ERRORS_MAX:] == ["error"] * ERRORS_MAX:
                    self.must_be_faulty()
                continue
            if ending == "cut":
                self.storage.cut(fate)
                switch_on()
            else:
                self.storage.cut("none")  # worse than a reboot is: what otad needs must be durable by then
            while True:
                try:
                    self.boot(MemoryDisk(self.storage, self.power, None, self.watch)).power_cycle()
                    break
                except PowerCut:
                    self.storage.cut(fate)
                    switch_on()
            if self.variables["booted"] is None:
                raise Broken("no slot boots")
            self.story.append(f"boot {self.variables['booted']}")
            if self.fault is None and any(path.name.endswith(".broken") for path in self.storage.names):
                raise Broken("the state could not be read")

    def boot(self, disk: MemoryDisk) -> SimulatedBoot:
        return SimulatedBoot(disk, self.variables_file.parent, self.devices, 3)

    def live(self) -> str:
        """One life, and how it ended."""
        loop = _Loop()
        try:
            return loop.run_until_complete(self._live())
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    async def _live(self) -> str:
        try:
            await self._serve()
        except BaseExceptionGroup as group:
            return self._ending(_leaves(group))
        except (OSError, AtRest) as error:
            return self._ending([error])
        raise AssertionError("a life that ends without a reason")

    def _ending(self, errors: "list[BaseException]") -> str:
        """How the daemon ended; a bug is raised as it is."""
        expected = (AtRest, RebootByExit, OSError, PowerCut)
        for error in errors:
            if not isinstance(error, expected):
                raise error
        if self.power.is_off:
            return "cut"
        if any(isinstance(error, OSError) for error in errors):
            return "error"
        return "exit" if any(isinstance(error, RebootByExit) for error in errors) else "rest"

    async def _serve(self) -> None:
        disk = self.parts.disk(self.storage, self.power, self.fault, self.watch)
        boot = self.parts.boot(self.boot(disk), self)
        store = self.parts.store(disk, self.state_directory)
        telemetry = Telemetry()
        offers: asyncio.Queue[Answer] = asyncio.Queue()
        cloud = Session(self, offers.put_nowait)
        staging = Staging(disk, store.staging)
        installer = SlotInstaller(disk, boot, self.devices, staging, self.config.boot.attempts)

        async def look() -> tuple[BootId, BoardView]:
            while True:
                try:
                    return boot.boot_id(), boot.view()
                except UpdateError:
                    await asyncio.sleep(60)
                    if asyncio.get_running_loop().time() > LIFE_MAX_S:
                        self.must_be_faulty()

        async def running() -> Evidence:
            booted = board.booted
            return await evidence.running_version(SlotVersion(), disk, self.devices[booted] if booted else None)

        async def transfer(deployment: Deployment) -> bool:
            work = Download(deployment.id, deployment.run)

            async def checkpointed(c: Checkpoint) -> None:
                await coordinator.submit(
                    Checkpointed(work, c.place, c.bytes, c.etag, c.etag_url, c.joined, c.fetched, c.resumed)
                )

            kind = await download(
                deployment,
                Server(self),
                installer,
                True,
                checkpointed,
                telemetry.publish,
                is_raw=lambda head: sniff(head) == Format.RAW,
                pace=PACE,
            )
            return kind == PlaceKind.SLOT

        async def farewell() -> None:
            await reporter.farewell()

        def let_go(deployment: Deployment | None) -> None:
            installer.release()
            installer.tidy(deployment)

        async def intake() -> None:
            while True:
                answer = await offers.get()
                assert isinstance(answer, Offered)
                found = await running()
                tries = self.config.update.tries
                await coordinator.submit(Noticed(answer.notice, answer.offer, found.version, tries, now()))
                offers.task_done()

        async def rest() -> None:
            clock = asyncio.get_running_loop().time
            began = since = clock()
            while True:
                state = coordinator.state
                owing = state.deployment or state.outbox or state.unfiled or work_for(state) or coordinator.waiting
                if owing or self.platform.job in ("NOTIFIED", "IN_PROGRESS"):
                    since = clock()
                if clock() - since > REST_S:
                    raise AtRest
                if clock() - began > LIFE_MAX_S:
                    self.must_be_faulty()
                    began = clock()
                await asyncio.sleep(1 + (clock() - began) / 100)

        async def version(deployment: Deployment) -> Evidence:
            return await running()

        worker = Worker(self.config, boot, installer, {}, cloud, telemetry, version, transfer, farewell)
        carry_out = self.parts.carry_out(worker.carry_out, self, boot, installer)
        coordinator = Coordinator(store, store.load(), carry_out, let_go, telemetry)
        modules: dict[ModuleName, Callable[[], Awaitable[Evidence]]] = {DEFAULT_MODULE: running}
        reporter = Reporter(cloud, coordinator, modules, DEFAULT_MODULE, telemetry, offers.join, 6 * 3600)
        boot_id, board = await look()
        first = Started(boot_id, board, DEFAULT_MODULE, (await running()).version, now())
        async with asyncio.TaskGroup() as group:
            group.create_task(coordinator.run(first))
            group.create_task(cloud.run())
            group.create_task(reporter.run())
            group.create_task(intake())
            group.create_task(rest())


def _leaves(group: BaseExceptionGroup[BaseException]) -> "list[BaseException]":
    return [
        leaf
        for error in group.exceptions
        for leaf in (_leaves(error) if isinstance(error, BaseExceptionGroup) else [error])
    ]


def _config(directory: Path, devices: dict[Slot, Path]) -> Config:
    return Config(
        device=DeviceSettings(),
        mqtt=MqttSettings(),
        download=DownloadSettings(),
        update=UpdateSettings(),
        modules={DEFAULT_MODULE: Module(version=SlotVersion())},
        slots={name: SlotSettings(device, name.upper()) for name, device in devices.items()},
        boot=BootSettings(backend=Backend.SIMULATED, directory=directory / "boot"),
        health=HealthSettings(directory=directory / "health.d"),
        reboot=RebootSettings(command=()),
        trust=TrustSettings(),
        state=StateSettings(directory=directory / "state"),
        control=ControlSettings(),
        file=directory / "config.toml",
    )
