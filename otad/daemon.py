# SPDX-License-Identifier: Apache-2.0
"""The daemon: makes the parts, wires them by hand, and runs their tasks until one of them ends it.

Tasks, by name: coordinator (owns the state), cloud (holds the session), reporter (tells the platform), offers (turns
what was heard into events), control (the socket).

An expected failure never arrives here: it is an event or an answer. What does arrive is a bug or a machine without
storage; the daemon ends with status 1, systemd starts it again, and the state file resumes it.
"""

import asyncio
import contextlib
import ctypes
import logging
import secrets
import signal
import stat
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

from otad import config as configuration
from otad import evidence, log, status
from otad.boot.backend import boot_control
from otad.boot.control import BootControl
from otad.boot.simulated import slot_version
from otad.cloud.cloud import Answer, Cloud, Nothing, Offered, OfflineError, SessionState, Unusable
from otad.cloud.credentials import ConnectFields, connect_fields
from otad.cloud.link import default_context
from otad.cloud.off import Off
from otad.config import Backend, Config, Loaded
from otad.control.server import Server, SocketError, listen
from otad.control.service import JSON, InstallRequest, Objection
from otad.coordinator import Coordinator, now
from otad.core.events import (
    CancelRequested,
    Checkpointed,
    MarkGoodRequested,
    Noticed,
    RebootRequested,
    Rejected,
    RetryRequested,
    RollBackRequested,
    Started,
)
from otad.core.model import (
    DEFAULT_MODULE,
    Board,
    Deployment,
    Digest,
    DigestMethod,
    Identity,
    ModuleName,
    Notice,
    Origin,
    PlaceKind,
    Slot,
    State,
)
from otad.core.step import Verdict, objection, verdict
from otad.core.work import Download, is_on_trial
from otad.durable import Disk, RealDisk
from otad.errors import Code, ConfigurationError, Failure, UpdateError
from otad.evidence import Evidence
from otad.installers.slots import SlotInstaller
from otad.reporter import Reporter
from otad.store import InUseError, Lock, Store
from otad.telemetry import Progress, Telemetry
from otad.threads import in_thread
from otad.units import format_duration
from otad.worker import RebootByExit, Worker

OFFERS_WAITING_MAX = 64
"""Offers heard and not looked at yet; more are dropped: the platform is asked again."""
START_PAUSE_MAX_S = 60.0
FRESH_S = 1.0
"""What was seen of the board is shown for so long, unless the state has changed."""

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


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the machine shows, as of the last look."""

    board: Board | None = None
    versions: Mapping[ModuleName, Evidence] = field(default_factory=dict[ModuleName, Evidence])
    slot_versions: Mapping[Slot, str | None] = field(default_factory=dict[Slot, str | None])
    state: State | None = None
    phase: object = None
    at: float = -FRESH_S  # time.monotonic()


class Daemon:
    """All parts of one gateway's daemon; also what the control socket asks."""

    def __init__(self, loaded: Loaded, disk: Disk) -> None:
        config = loaded.config
        self._config = config
        self._problems = tuple(str(problem) for problem in loaded.problems)
        self._config_errors = bool(loaded.errors)
        self._looking = asyncio.Lock()
        self._unseen = ""  # why it is not known yet what the machine shows
        self._disk = disk
        self._boot: BootControl = boot_control(disk, config)
        self._telemetry = Telemetry()
        self._store = Store(disk, config.state.directory)
        self._devices = {Slot(name): slot.device for name, slot in config.slots.items()}
        self._modules = {ModuleName(name): self._evidence_of(module.version) for name, module in config.modules.items()}
        self._offers: asyncio.Queue[Answer] = asyncio.Queue(OFFERS_WAITING_MAX)
        self._cloud = self._make_cloud(loaded)
        self._installer = SlotInstaller(disk, self._boot, self._devices, self._store.staging, config.boot.attempts)
        self._seen = _Seen()
        worker = Worker(
            config,
            self._boot,
            self._installer,
            self._cloud,
            self._telemetry,
            self._slots_evidence,
            self._transfer,
            self._farewell,
        )
        self._coordinator = Coordinator(
            self._store, self._store.load(), worker.carry_out, self._let_go, self._telemetry
        )
        self._reporter = Reporter(
            self._cloud,
            self._coordinator,
            self._modules,
            self._slots_module,
            self._telemetry,
            self._offers.join,
            config.mqtt.ask_interval_s,
        )

    async def run(self) -> None:
        """Run all tasks; ends by an exception or by being canceled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._listen(), name="control")
            first = await self._look()
            group.create_task(self._coordinator.run(first), name="coordinator")
            group.create_task(self._cloud.run(), name="cloud")
            group.create_task(self._reporter.run(), name="reporter")
            group.create_task(self._intake(), name="offers")

    async def _listen(self) -> None:
        """The control socket. Without one the gateway is still to be marked good and upgraded: it is tried again."""
        pause = 1.0
        while True:
            try:
                server = Server(listen(self._config.control.socket), self)
            except SocketError as error:
                _log.error("control socket: %s; again in %s", error, format_duration(pause))
                await asyncio.sleep(pause)
                pause = min(2 * pause, START_PAUSE_MAX_S)
            else:
                await server.run()

    # -- making

    def _make_cloud(self, loaded: Loaded) -> Cloud:
        errors = [error for error in loaded.errors if error.key.partition(".")[0] in ("", "device", "mqtt")]
        if errors:
            return Off(f"{len(errors)} error{'s' if len(errors) > 1 else ''} in the configuration: {errors[0]}", now())
        from otad.cloud.session import Session  # noqa: PLC0415 - aiomqtt, only where there is a session

        config = loaded.config
        try:
            context = default_context(config.mqtt.ca_file) if config.mqtt.tls else None
            endpoint = configuration.endpoint(config)
        except (ConfigurationError, OSError, ValueError) as error:
            return Off(str(error), now())
        return Session(
            endpoint=endpoint,
            tls=context,
            keepalive_s=config.mqtt.keepalive_s,
            fields=lambda: _connect_fields(config),
            product_key=config.device.product_key,
            device_name=config.device.device_name,
            heard=self._heard,
            allow_md5=config.trust.allow_md5,
            changed=self._telemetry.touch,
            life=f"{secrets.token_hex(4)}.",
        )

    def _evidence_of(self, source: configuration.VersionSource) -> Callable[[], Awaitable[Evidence]]:
        async def read() -> Evidence:
            booted = self._seen.board.booted if self._seen.board else None
            device = self._devices.get(booted) if booted is not None else None
            return await evidence.running_version(source, self._disk, device)

        return read

    @property
    def _slots_module(self) -> ModuleName:
        return next(iter(self._modules), DEFAULT_MODULE)

    async def _slots_evidence(self) -> Evidence:
        return await self._modules[self._slots_module]()

    # -- what the machine shows

    async def _look(self) -> Started:
        """The first event: which boot, which slot, which version. A store that cannot be read is tried again."""
        pause = 1.0
        while True:
            try:
                boot_id = await in_thread(self._boot.boot_id)
                board = await in_thread(self._boot.view)
            except UpdateError as error:
                _log.error("the boot loader's store: %s", error)
                self._unseen = f"the boot loader's store ({error})"
                self._telemetry.publish(
                    Progress(None, waits_for=f"the boot loader's store ({error})", waits_until=time.time() + pause)
                )
                await asyncio.sleep(pause)
                pause = min(pause * 2, START_PAUSE_MAX_S)
            else:
                self._unseen = ""
                self._telemetry.publish(None)
                self._seen = replace(self._seen, board=board)
                found = await self._slots_evidence()
                return Started(boot_id, board, self._slots_module, found.version, now())

    async def _look_again(self) -> None:
        """See the board as it is now; read evidence (maybe a program of the owner) only where it may have changed."""
        async with self._looking:
            await self._look_now()

    async def _look_now(self) -> None:
        state = self._coordinator.state
        if self._seen.state is state and time.monotonic() - self._seen.at < FRESH_S:
            return
        board = self._seen.board
        with contextlib.suppress(UpdateError):
            board = await in_thread(self._boot.view)
        self._seen = replace(self._seen, board=board)  # evidence may need to know which slot is booted
        versions = self._seen.versions
        phase = (state.boot_id, state.deployment.phase if state.deployment else None)
        if phase != self._seen.phase:
            versions = {module: await read() for module, read in self._modules.items()}
        slots = dict.fromkeys(self._devices)
        if self._config.boot.backend == Backend.SIMULATED:
            slots = {slot: await in_thread(slot_version, self._disk, path) for slot, path in self._devices.items()}
        self._seen = _Seen(board, versions, slots, state, phase, time.monotonic())

    # -- offers

    def _heard(self, answer: Answer) -> None:
        try:
            self._offers.put_nowait(answer)
        except asyncio.QueueFull:
            _log.warning("more offers than can be looked at: one dropped")

    async def _intake(self) -> None:
        await self._coordinator.begun.wait()
        while True:
            answer = await self._offers.get()
            event = await self._event_of(answer)
            if event is not None:
                change = await self._coordinator.submit(event)
                if isinstance(event, Noticed) and verdict(change.before, event) != Verdict.HEARD:
                    self._reporter.offered(event.notice.identity)
            self._offers.task_done()

    async def _event_of(self, answer: Answer) -> Noticed | Rejected | None:
        if self._config_errors:
            # Whatever it says, nothing is begun; and nothing is refused, since the fault is the gateway's.
            _log.warning("an offer is passed over: the configuration has errors")
            return None
        match answer:
            case Offered(notice, offer) if notice.identity.module in self._modules:
                return await self._noticed(notice, offer)
            case Offered(notice, offer):
                identity = notice.identity
                failure = Failure(Code.UNSUPPORTED, f"module {identity.module}: not configured on this gateway")
                return Rejected(identity.key, identity.module, identity.version, failure, offer, now())
            case Unusable():
                return Rejected(answer.key, answer.module, answer.version, answer.failure, answer.offer, now())
            case Nothing():
                return None

    async def _noticed(self, notice: Notice, offer: str) -> Noticed:
        running = await self._modules[notice.identity.module]()
        return Noticed(notice, offer, running.version, self._config.update.tries, now())

    # -- work

    async def _transfer(self, deployment: Deployment) -> bool:
        """Bring the package to its place and check it there; True if that is the slot."""
        # Imported here: an idle daemon does without them.
        from otad.installers.format import Format, sniff  # noqa: PLC0415
        from otad.transfer.download import Checkpoint, download  # noqa: PLC0415
        from otad.transfer.file import FileSource  # noqa: PLC0415
        from otad.transfer.http import HttpSource  # noqa: PLC0415
        from otad.transfer.source import Source  # noqa: PLC0415

        if self._config_errors:
            # Nothing new is brought in by halves of a configuration; what is booted is still confirmed or rolled back.
            self._telemetry.publish(Progress(deployment.id, waits_for="the configuration to be put right"))
            await asyncio.Event().wait()
        work = Download(deployment.id, deployment.run)
        local = deployment.notice.origin == Origin.LOCAL
        source: Source
        if local and (path := _local_path(deployment.notice.url)):
            source = FileSource(path)
        else:
            source = HttpSource(
                self._config.download,
                url=lambda: self._url_of(deployment),
                fresh_url=None if local else lambda: self._fresh_url(deployment),
                local=local,
            )

        def checkpointed(checkpoint: Checkpoint) -> None:
            self._coordinator.post(
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
            source,
            self._installer,
            self._config.update.format == configuration.Format.AUTO,
            checkpointed,
            self._telemetry.publish,
            is_raw=lambda head: sniff(head) == Format.RAW,
        )
        return kind == PlaceKind.SLOT

    def _url_of(self, deployment: Deployment) -> str:
        """The newest URL of this package: a fresh one comes as a notice, and so into the state."""
        current = self._coordinator.state.deployment
        return current.notice.url if current is not None and current.id == deployment.id else deployment.notice.url

    async def _fresh_url(self, deployment: Deployment) -> str | None:
        identity = deployment.notice.identity
        try:
            answer = await self._cloud.ask(identity.module)
        except OfflineError:
            return None
        if isinstance(answer, Offered) and answer.notice.identity == identity:
            return answer.notice.url
        return None

    def _let_go(self, deployment: Deployment | None) -> None:
        self._installer.release()
        try:
            self._installer.tidy(deployment)
        except OSError as error:
            _log.warning("staging: %s", error)

    async def _farewell(self) -> None:
        if self._cloud.view.state == SessionState.ONLINE:
            await self._reporter.farewell()

    # -- what the control socket asks

    async def status(self) -> dict[str, JSON]:
        await self._look_again()
        loop = asyncio.get_running_loop()
        asks_at = self._reporter.asks_at
        return status.document(
            status.Situation(
                now=time.time(),
                product_key=self._config.device.product_key,
                device_name=self._config.device.device_name,
                state=self._coordinator.state,
                session=self._cloud.view,
                board=self._seen.board,
                slots={
                    Slot(name): status.SlotFacts(
                        slot.bootname, str(slot.device), self._seen.slot_versions.get(Slot(name))
                    )
                    for name, slot in self._config.slots.items()
                },
                versions={
                    module: self._seen.versions[module].version if module in self._seen.versions else None
                    for module in self._modules
                },
                progress=self._telemetry.progress,
                stuck=self._unseen or self._coordinator.stuck,
                asks_at=time.time() + asks_at - loop.time() if asks_at is not None else None,
                problems=(
                    *self._problems,
                    *(
                        f"module {module}: version not known: {found.problem}"
                        for module, found in self._seen.versions.items()
                        if found.version is None
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
        words: list[str] = []
        for module in self._modules:
            try:
                answer = await self._cloud.ask(module)
            except OfflineError as error:
                detail = self._cloud.view.detail or str(error)
                raise Objection(f"no session with the platform: {detail or self._cloud.view.state}") from error
            name = "" if module == DEFAULT_MODULE else f"module {module}: "
            match answer:
                case None:
                    raise UpdateError(Code.SESSION, "the platform does not answer firmware/get")
                case Nothing():
                    words.append(f"{name}nothing is offered")
                case Unusable():
                    words.append(f"{name}{answer.version or 'a package'} is offered and refused: {answer.failure}")
                case Offered(notice, offer):
                    meaning = verdict(self._coordinator.state, await self._noticed(notice, offer))
                    words.append(f"{name}{notice.identity.version} is offered: {_VERDICT_WORDS[meaning]}")
        return "\n".join(words)

    async def install(self, request: InstallRequest) -> str:
        if self._config_errors:
            raise Objection("the configuration has errors; `otad config check` tells all")
        if request.module not in self._modules:
            known = ", ".join(self._modules)
            raise Objection(f"module {request.module}: not configured; there is {known}")
        size = request.size if request.size is not None else await self._size_of(request.url)
        if size < 1:
            raise UpdateError(Code.CONTENT, "the package is empty")
        identity = Identity(request.module, request.version, size, Digest(DigestMethod.SHA256, request.sha256))
        noticed = await self._noticed(Notice(identity, request.url, Origin.LOCAL), f"local:{time.time_ns()}")
        change = await self._coordinator.submit(noticed)
        meaning = verdict(change.before, noticed)
        if meaning != Verdict.BEGIN:
            raise Objection(f"{request.version}: {_VERDICT_WORDS[meaning]}")
        return f"installing {request.version}; `otad status --watch` follows it"

    async def _size_of(self, url: str) -> int:
        from otad.transfer.http import HttpSource  # noqa: PLC0415

        path = _local_path(url)
        if path is None:
            return await HttpSource(self._config.download, lambda: url, local=True).size()
        try:
            return (await in_thread(path.stat)).st_size
        except OSError as error:
            raise UpdateError(Code.MEDIUM, f"{path}: {error.strerror}") from error

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
            for module in self._modules:
                await self._cloud.ask(module)
        except OfflineError:
            return f"no longer refused: {lifted}; the platform is asked at the next connection"
        return f"no longer refused: {lifted}; the platform has been asked for it"

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
        board = change.before.board
        return f"marking slot {board.booted if board else '?'} good"

    async def rollback(self) -> str:
        found = await self._slots_evidence()
        board = await in_thread(self._boot.view)
        request = RollBackRequested(board, self._slots_module, found.version, now())
        change = await self._coordinator.submit(request)
        _object(objection(change.before, request))
        deployment = change.after.deployment
        return f"rolling back to slot {deployment.old if deployment else '?'}"


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


def _local_path(url: str) -> Path | None:
    parts = urlsplit(url)
    return Path(unquote(parts.path)) if parts.scheme == "file" else None


def _connect_fields(config: Config) -> ConnectFields:
    """Read the secret anew for each connection: it may be put right while the daemon runs."""
    device = config.device
    secret = device.device_secret
    if device.device_secret_file is not None:
        secret = configuration.read_secret(device.device_secret_file)
    return connect_fields(
        device.product_key,
        device.device_name,
        secret,
        config.mqtt.sign_method,
        device.client_id or f"{device.product_key}.{device.device_name}",
        secure=config.mqtt.tls,
    )
