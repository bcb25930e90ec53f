# SPDX-License-Identifier: Apache-2.0
"""The daemon: makes the parts, wires them by hand, and runs their tasks until one of them ends it.

Tasks, by name: coordinator (owns the state), cloud (holds the session), reporter (tells the platform), offers (turns
what was heard into events), control (the socket, whose questions `orders` answers).

An expected failure never arrives here: it is an event or an answer. What does arrive is a bug or a machine without
storage; the daemon ends with status 1, systemd starts it again, and the state file resumes it.
"""

import asyncio
import contextlib
import ctypes
import logging
import signal
import stat
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from otad import config as configuration
from otad import log
from otad.boot.backend import boot_control
from otad.clock import Clock
from otad.cloud.cloud import SessionState
from otad.cloud.make import make_cloud
from otad.config import Config, Loaded
from otad.control.server import Server, SocketError, listen
from otad.coordinator import Coordinator
from otad.core.events import Checkpointed
from otad.core.model import Deployment, Notice, PlaceKind
from otad.core.work import Download
from otad.durable import Disk, RealDisk
from otad.installers.make import installers
from otad.installers.slots import SlotInstaller
from otad.installers.staging import Staging
from otad.machine import Machine
from otad.offers import Offers
from otad.orders import Orders
from otad.reporter import Reporter
from otad.store import InUseError, Lock, Store
from otad.telemetry import Telemetry
from otad.units import format_duration
from otad.worker import RebootByExit, Worker

START_PAUSE_MAX_S = 60.0

_log = logging.getLogger(__name__)


def run(loaded: Loaded) -> int:
    """Run the daemon to its end; the exit status."""
    log.set_up()
    _share_one_arena()
    for problem in loaded.problems:
        _log.log(logging.WARNING if problem not in loaded.errors else logging.ERROR, "%s", problem)
    if not loaded.can_boot:
        _log.error("[slots] and [boot] are not usable: nothing can be done; `otad config check` tells all")
        return 2
    disk = RealDisk()
    directory = loaded.config.state.directory
    try:
        disk.make_directory(directory)
        if slot := _slot_that_holds(directory, loaded.config):
            _log.error("%s: lies on slot %s: the next upgrade would take the memory of it away", directory, slot)
            _log.error("set state.directory to storage that all slots mount")
            return 2
        lock = Lock(directory)
    except InUseError as error:
        _log.error("%s", error)
        return 4
    except OSError as error:
        _log.error("%s: %s", directory, error.strerror)
        return 1
    try:
        return asyncio.run(_serve(loaded, disk))
    finally:
        lock.release()


def _slot_that_holds(directory: Path, config: Config) -> str | None:
    """The slot whose file system this directory lies on."""
    device = directory.stat().st_dev
    for name, slot in config.slots.items():
        with contextlib.suppress(OSError):  # a slot that is not there is another matter
            status = slot.device.stat()
            if stat.S_ISBLK(status.st_mode) and status.st_rdev == device:
                return name
    return None


def _share_one_arena() -> None:
    """mallopt(3): glibc gives each thread an arena of its own. One for all is 1 MiB less, and no slower here."""
    m_arena_max = -8
    with contextlib.suppress(AttributeError):  # other C libraries have neither arenas nor this
        ctypes.CDLL(None).mallopt(m_arena_max, 1)


async def _serve(loaded: Loaded, disk: Disk) -> int:
    """Until the gateway is to be rebooted by whoever runs us, or a signal asks us to stop."""
    try:
        daemon = Daemon(loaded, disk)
    except OSError as error:
        _log.error("state: %s", error)
        return 1
    main = asyncio.current_task()
    assert main is not None
    stopped = asyncio.Event()

    def stop() -> None:
        stopped.set()
        main.cancel()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    exit_status = 0
    try:
        await daemon.run()
    except* RebootByExit:
        _log.info("the boot loader's store is set: ending, so that the gateway can be rebooted")
    except* OSError as group:
        for leaf in _leaves(group):
            _log.error("%s: %s", type(leaf).__name__, leaf, exc_info=leaf)
        exit_status = 1
    except* asyncio.CancelledError:
        if not stopped.is_set():
            raise
    return exit_status


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


class Daemon:
    """All parts of one gateway's daemon, wired."""

    def __init__(self, loaded: Loaded, disk: Disk) -> None:
        config = loaded.config
        self._config = config
        self._config_errors = bool(loaded.errors)
        self._telemetry = Telemetry()
        self._store = Store(disk, config.state.directory)
        self._clock = Clock(disk, config.state.directory)
        self._clock.load()
        boot = boot_control(disk, config)
        self._machine = Machine(config, disk, boot, self._telemetry)
        staging = Staging(disk, self._store.staging)
        self._slots = SlotInstaller(disk, boot, self._machine.devices, staging, config.boot.attempts)
        self._installers = installers(config, disk, staging)
        self._offers = Offers(self._machine, config.update.tries, passed_over=self._config_errors)
        self._cloud = make_cloud(loaded, disk, self._offers.hear, self._telemetry.touch, self._clock)
        worker = Worker(
            config,
            boot,
            self._slots,
            self._installers,
            self._cloud,
            self._telemetry,
            self._machine.version_of,
            self._transfer,
            self._farewell,
            holds=self._config_errors,
        )
        self._coordinator = Coordinator(
            self._store, self._store.load(), worker.carry_out, self._let_go, self._telemetry
        )
        self._reporter = Reporter(
            self._cloud,
            self._coordinator,
            {module: partial(self._machine.version, module) for module in self._machine.modules},
            self._machine.system,
            self._telemetry,
            self._offers.taken,
            config.mqtt.ask_interval_s,
        )
        self._orders = Orders(
            loaded,
            self._machine,
            self._cloud,
            self._coordinator,
            self._offers,
            self._reporter,
            self._store,
            self._telemetry,
            self._size_of,
        )

    async def run(self) -> None:
        """Run all tasks; ends by an exception or by being canceled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._listen(), name="control")
            first = await self._machine.begin()
            group.create_task(self._coordinator.run(first), name="coordinator")
            group.create_task(self._cloud.run(), name="cloud")
            group.create_task(self._reporter.run(), name="reporter")
            group.create_task(self._offers.run(self._coordinator, self._reporter.offered), name="offers")

    async def _listen(self) -> None:
        """The control socket. Without one the gateway is still to be marked good and upgraded: it is tried again."""
        pause = 1.0
        while True:
            try:
                server = Server(listen(self._config.control.socket), self._orders)
            except SocketError as error:
                _log.error("control socket: %s; again in %s", error, format_duration(pause))
                await asyncio.sleep(pause)
                pause = min(2 * pause, START_PAUSE_MAX_S)
            else:
                await server.run()

    # -- work

    async def _transfer(self, deployment: Deployment) -> bool:
        """Bring the package to its place and check it there; True if that is the slot."""
        # Imported here: an idle daemon does without them.
        from otad.installers.format import Format, sniff  # noqa: PLC0415
        from otad.transfer.download import Checkpoint, download  # noqa: PLC0415
        from otad.transfer.sources import Sources  # noqa: PLC0415

        work = Download(deployment.id, deployment.run)

        async def checkpointed(checkpoint: Checkpoint) -> None:
            await self._coordinator.submit(
                Checkpointed(
                    work,
                    checkpoint.place,
                    checkpoint.bytes,
                    checkpoint.etag,
                    checkpoint.etag_url,
                    checkpoint.joined,
                    checkpoint.fetched,
                    checkpoint.resumed,
                )
            )

        kind = await download(
            deployment,
            Sources(self._config.download, self._cloud, self._newest, self._floor).of(deployment),
            self._slots,
            self._config.update.format == configuration.Format.AUTO,
            checkpointed,
            self._telemetry.publish,
            is_raw=lambda head: sniff(head) == Format.RAW,
        )
        return kind == PlaceKind.SLOT

    def _newest(self, deployment: Deployment) -> Notice:
        """This package's newest notice, with URLs that are still good: each comes into the state."""
        current = self._coordinator.state.deployment
        return current.notice if current is not None and current.id == deployment.id else deployment.notice

    def _floor(self) -> int:
        """No certificate that ended before this moment is believed, whatever the system's clock says."""
        return self._clock.floor

    def _let_go(self, deployment: Deployment | None) -> None:
        self._slots.release()
        tidying = {"staging": partial(self._slots.tidy, deployment)}
        for module, installer in self._installers.items():
            is_its = deployment is not None and deployment.notice.identity.module == module
            tidying[f"module {module}"] = partial(installer.tidy, deployment if is_its else None)
        for where, tidy in tidying.items():
            try:
                tidy()
            except OSError as error:
                _log.warning("%s: leftovers of earlier deployments: %s", where, error)

    async def _farewell(self) -> None:
        if self._cloud.view.state == SessionState.ONLINE:
            await self._reporter.farewell()

    # -- what an order needs to know

    async def _size_of(self, url: str) -> int:
        from otad.transfer.sources import size_of  # noqa: PLC0415

        return await size_of(url, self._config.download, self._floor)
