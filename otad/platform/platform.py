# SPDX-License-Identifier: Apache-2.0
"""The whole stand-in, in one process:

    async with Platform(directory) as platform:
        device = platform.add_device("a1B2c3D4e5F", "gateway-0001")
        package = platform.add_package(image, "2-0-0")
        job = platform.push(package, device)
        await platform.wait(lambda: platform.job(job).state.is_final, timeout=30)

`directory` keeps devices, packages and jobs; opened again, the platform goes on with them. `platform.faults` may be
changed at any time. Everything runs on the event loop that entered the context; nothing is safe to call from another
thread but `add_package_slowly`, which does its reading in one.
"""

import asyncio
import json
import secrets
import ssl
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Final, Self, TypedDict, Unpack

from otad.platform.broker import Broker, EmbeddedBroker
from otad.platform.credentials import Identity
from otad.platform.events import EventLog, Served
from otad.platform.faults import Faults
from otad.platform.files import FileServer, bytes_twice
from otad.platform.jobs import DEFAULT_MODULE, Effect, Job, Jobs, Options, Package, Retry, SignMethod
from otad.platform.service import Service
from otad.platform.store import Kept, Store

IDLE_S: Final = 3600.0  # how long the timer sleeps with nothing due; any change wakes it


@dataclass(frozen=True, slots=True)
class Device:
    identity: Identity
    secret: str

    def __str__(self) -> str:
        return str(self.identity)


class JobOptions(TypedDict, total=False):
    """The fields of `Options`, as keywords."""

    verify: bool
    need_push: bool
    need_confirm: bool
    timeout_s: float | None
    overwrite: bool
    multi_module: bool
    source_versions: tuple[str, ...]
    retry: Retry | None


class Platform:
    """A stand-in for the cloud. It listens on `host`; devices are told `address`, or else the same.

    Ports given as 0 are chosen freely; `mqtt_port` and `http_port` say inside the context which they are.
    """

    def __init__(
        self,
        directory: Path,
        *,
        host: str = "127.0.0.1",
        address: str | None = None,
        mqtt_port: int = 0,
        http_port: int = 0,
        broker: Broker | None = None,
        faults: Faults | None = None,
        tls: ssl.SSLContext | None = None,
        url_ttl_s: float = 24 * 3600.0,
        keep_events: int | None = None,
    ) -> None:
        self.faults = faults or Faults()
        self.events = EventLog(keep=keep_events)
        self.address = address or host
        self._tls = tls
        self._store = Store(directory)
        self._kept: Kept = self._store.open()
        self._service = Service(self, self.faults, self.events)
        self._service.secrets = self._kept.secrets
        self._service.jobs.restore(
            {identity: self._kept.versions.get(identity, {}) for identity in self._kept.secrets},
            self._kept.jobs,
        )
        self._broker: Broker = broker or EmbeddedBroker(host, mqtt_port, tls=tls)
        self._files = FileServer(
            self.faults,
            self.events.append,
            self.now,
            key=self._kept.key,
            host=host,
            address=self.address,
            port=http_port,
            url_ttl_s=url_ttl_s,
            tls=tls,
        )
        for package in self._kept.packages.values():
            self._files.add(package)
        self._package_ids = max(map(int, self._kept.packages), default=0)
        self._later: set[asyncio.TimerHandle] = set()
        self._running = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await self._files.start()
            stack.push_async_callback(self._files.stop)
            await self._broker.start(self._service)
            stack.push_async_callback(self._broker.stop)
            timer = asyncio.create_task(self._keep_time(), name="platform timer")
            stack.push_async_callback(_ended, timer)
            stack.callback(self._forget_later)
            self._running = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._running.aclose()

    # What an operator does.

    def add_device(self, product_key: str, device_name: str, secret: str | None = None) -> Device:
        """Make a device known; without `secret` it gets a fresh one. Raises ValueError if it is known already."""
        identity = Identity(product_key, device_name)
        if identity in self._kept.secrets:
            raise ValueError(f"device {identity}: exists already")
        self._kept.secrets[identity] = secret or secrets.token_hex(16)
        self._service.jobs.add_device(identity)
        self.keep()
        return self.device(identity)

    def add_package(
        self,
        path: Path,
        version: str,
        module: str = DEFAULT_MODULE,
        sign_method: SignMethod | str = SignMethod.SHA256,
    ) -> Package:
        """Upload a file. It is copied and hashed before this returns."""
        return self._add(self._store.take_in(self._next_package_id(), path, version, module, SignMethod(sign_method)))

    async def add_package_slowly(self, path: Path, version: str, module: str, sign_method: SignMethod) -> Package:
        """The same while devices are being served."""
        package_id = self._next_package_id()
        package = await asyncio.to_thread(self._store.take_in, package_id, path, version, module, sign_method)
        return self._add(package)

    def delete_package(self, package: Package) -> None:
        """The file is not served any more; jobs go on as they are."""
        self._files.remove(package)

    def push(self, package: Package, device: Device | Identity, **options: Unpack[JobOptions]) -> Job:
        """Start a job for one device; `Options` says which keywords there are."""
        return self.push_batch(package, [device], **options)[0]

    def push_batch(
        self, package: Package, devices: Iterable[Device | Identity], **options: Unpack[JobOptions]
    ) -> list[Job]:
        """Start a job for each of these devices."""
        before = len(self.jobs)
        identities = [_identity(device) for device in devices]
        self._carry_out(self._service.jobs.create(package, identities, Options(**options), self.now()))
        return list(self.jobs.values())[before:]

    def confirm(self, job: Job | str) -> None:
        """Raises ValueError unless the job waits for confirmation."""
        self._carry_out(self._service.jobs.confirm(_job_id(job), self.now()))

    def cancel(self, job: Job | str) -> None:
        """Raises ValueError if the job has ended."""
        self._carry_out(self._service.jobs.cancel(_job_id(job), self.now()))

    # What can be seen.

    @property
    def mqtt_port(self) -> int:
        return self._broker.port

    @property
    def http_port(self) -> int:
        return self._files.port

    @property
    def devices(self) -> list[Device]:
        return [Device(identity, secret) for identity, secret in self._kept.secrets.items()]

    @property
    def packages(self) -> Mapping[str, Package]:
        return MappingProxyType(self._kept.packages)

    @property
    def jobs(self) -> Mapping[str, Job]:
        """All jobs by id, oldest first, as they are now."""
        return self._service.jobs.jobs

    def job(self, job: Job | str) -> Job:
        """The job as it is now."""
        return self.jobs[_job_id(job)]

    def device(self, identity: Identity) -> Device:
        return Device(identity, self._kept.secrets[identity])

    def is_online(self, device: Device | Identity) -> bool:
        return self._service.jobs.devices[_identity(device)].online

    def versions(self, device: Device | Identity) -> dict[str, str]:
        """What the device has informed, by module."""
        return dict(self._service.jobs.devices[_identity(device)].versions)

    def served(self, package: Package) -> list[Served]:
        """The requests for this package so far."""
        return [one for one in self.events.of(Served) if one.package == package.id]

    def bytes_sent(self, package: Package) -> int:
        return sum(one.sent for one in self.served(package))

    def bytes_twice(self, package: Package) -> int:
        """How many bytes of the package were sent that had been sent before."""
        return bytes_twice(self.served(package))

    async def wait(self, condition: Callable[[], object], timeout: float | None = 10.0) -> None:
        """Return once `condition()` is true; it is looked at after every change. Raises TimeoutError."""
        await self.events.wait(condition, timeout)

    async def ended(self, job: Job | str, timeout: float = 60.0) -> Job:
        """The job once it has ended. Raises TimeoutError."""
        await self.wait(lambda: self.job(job).state.is_final, timeout)
        return self.job(job)

    def url(self, package: Package) -> str:
        """A download URL, signed now."""
        return self._files.url(package)

    def configuration(self, device: Device) -> str:
        """What belongs into the configuration of this device, as TOML."""
        return (
            "[device]\n"
            f"product_key = {json.dumps(device.identity.product_key)}\n"
            f"device_name = {json.dumps(device.identity.device_name)}\n"
            f"device_secret = {json.dumps(device.secret)}\n"
            "\n[mqtt]\n"
            f"host = {json.dumps(self.address)}\n"
            f"port = {self.mqtt_port}\n"
            f"tls = {'true' if self._tls else 'false'}\n"
            "\n[download]\n"
            f"allow_http = {'false' if self._tls else 'true'}\n"
            "allow_private_hosts = true\n"
        )

    # What goes wrong at a moment. What goes wrong for a while is in `faults`.

    def kick(self, device: Device | Identity) -> None:
        """Close the device's MQTT connection."""
        self._broker.kick(_identity(device))

    def cut_downloads(self) -> None:
        """Close every HTTP connection on which a body is being sent."""
        self._files.cut()

    async def take_broker_away(self) -> None:
        """Drop every device; connecting is refused by the kernel until `bring_broker_back`."""
        await self._broker.stop()

    async def bring_broker_back(self) -> None:
        """The broker listens again, on the same port."""
        await self._broker.start(self._service)

    # What the service needs around it.

    def now(self) -> float:
        return time.time()

    def send(self, device: Identity, topic: str, payload: bytes, qos: int) -> None:
        """Send any message to a device that is online."""
        self._broker.send(device, topic, payload, qos)

    def later(self, delay_s: float, call: Callable[[], None]) -> None:
        def run() -> None:
            self._later.discard(handle)
            call()

        handle = asyncio.get_running_loop().call_later(delay_s, run)
        self._later.add(handle)

    def keep(self) -> None:
        """Write what is to survive a restart."""
        jobs = self._service.jobs
        self._kept.versions = {identity: known.versions for identity, known in jobs.devices.items()}
        self._kept.jobs = list(jobs.jobs.values())
        self._store.save(self._kept)

    def _carry_out(self, effects: list[Effect]) -> None:
        self._service.carry_out(effects)
        self.events.stir()

    def _add(self, package: Package) -> Package:
        self._kept.packages[package.id] = package
        self._files.add(package)
        self.keep()
        return package

    def _next_package_id(self) -> str:
        self._package_ids += 1
        return str(self._package_ids)

    def _forget_later(self) -> None:
        for handle in self._later:
            handle.cancel()
        self._later.clear()

    async def _keep_time(self) -> None:
        jobs = self._service.jobs
        while True:
            due = jobs.next_due()
            wait_s = IDLE_S if due is None else max(0.0, due - self.now())
            try:
                await self.events.wait(partial(_is_new, jobs, due), wait_s)
            except TimeoutError:
                self._carry_out(jobs.due(self.now()))


def _is_new(jobs: Jobs, due: float | None) -> bool:
    return jobs.next_due() != due


def _identity(device: Device | Identity) -> Identity:
    return device.identity if isinstance(device, Device) else device


def _job_id(job: Job | str) -> str:
    return job if isinstance(job, str) else job.id


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
