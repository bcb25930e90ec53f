# SPDX-License-Identifier: Apache-2.0
"""The whole stand-in, in one process:

    async with Platform(directory) as platform:
        device = platform.add_device("a1B2c3D4e5F", "gateway-0001")
        package = platform.add_package(image, "2-0-0")
        job = platform.push(package, device)
        await platform.wait(lambda: platform.job(job).state.is_final, timeout=30)

`directory` keeps devices, packages, batches and jobs, and with `tls=True` a certificate authority; opened again, the
platform goes on with them. `platform.faults` may be changed at any time. Everything runs on the event loop that entered
the context; nothing is safe to call from another thread but `add_package_slowly`, which does its reading in one.
"""

import asyncio
import ipaddress
import json
import re
import secrets
import ssl
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Final, Self, TypedDict, Unpack

from aiohttp import web

from otad.platform import registration
from otad.platform.broker import Broker, Certificate, EmbeddedBroker
from otad.platform.credentials import Identity
from otad.platform.events import BlockServed, EventLog, Registered, Served
from otad.platform.faults import Faults
from otad.platform.files import FileServer, bytes_twice, zipped
from otad.platform.jobs import (
    DEFAULT_MODULE,
    Batch,
    BatchState,
    Dynamic,
    Effect,
    Job,
    Jobs,
    Options,
    Package,
    PackageFile,
    Retry,
    Selection,
    SignMethod,
)
from otad.platform.registration import Product, Registry
from otad.platform.service import Service
from otad.platform.signature import SigningKey
from otad.platform.store import Kept, PackageOptions, Store

if TYPE_CHECKING:
    from otad.platform.ca import Authority

PRODUCT_KEY_FORM: Final = re.compile(r"[A-Za-z0-9]{1,64}")
DEVICE_NAME_FORM: Final = re.compile(r"[A-Za-z0-9_.:@-]{1,64}")

IDLE_S: Final = 3600.0  # how long the timer sleeps with nothing due; any change wakes it


@dataclass(frozen=True, slots=True)
class Device:
    identity: Identity
    secret: str
    x509: bool = False
    """It is to be configured with a certificate of the platform's authority."""

    def __str__(self) -> str:
        return str(self.identity)


class BatchOptions(TypedDict, total=False):
    """The fields of `Options`, as keywords, without those that say which devices."""

    verify: bool
    need_push: bool
    need_confirm: bool
    timeout_s: float | None
    overwrite: bool
    multi_module: bool
    retry: Retry | None
    push_rate: int | None
    starts_at: float | None


class JobOptions(BatchOptions, total=False):
    """The fields of `Options`, as keywords."""

    source_versions: tuple[str, ...]


class Platform:
    """A stand-in for the cloud. It listens on `host`; devices are told `address`, or else the same.

    Ports given as 0 are chosen freely; `mqtt_port` and `http_port` say inside the context which they are. `tls`: True
    for an authority of the platform's own, made in its directory; or an `Authority`; or a server's context as it is.
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
        tls: "bool | ssl.SSLContext | Authority | None" = None,
        url_ttl_s: float = 24 * 3600.0,
        keep_events: int | None = None,
    ) -> None:
        self.faults = faults or Faults()
        self.events = EventLog(keep=keep_events)
        self.address = address or host
        self._store = Store(directory)
        self._kept: Kept = self._store.open()
        self._authority: Authority | None = None
        mqtt_tls = http_tls = tls if isinstance(tls, ssl.SSLContext) else None
        if tls and not isinstance(tls, ssl.SSLContext):
            self._authority = _open_authority(directory) if tls is True else tls
            names = [name for name in (self.address, host) if not _is_wildcard(name)] + ["localhost", "127.0.0.1"]
            mqtt_tls = self._authority.server_context(names, asks_devices=True)
            http_tls = self._authority.server_context(names)
        self._tls = mqtt_tls
        self._registry = Registry(directory, self._kept.secrets, self._add_registered, self.keep, self._note_registered)
        self._signing_key = SigningKey(directory / "digestsign.key")
        self._service = Service(self, self.faults, self.events, self._registry)
        self._service.jobs.restore(
            {identity: self._kept.versions.get(identity, {}) for identity in self._kept.secrets},
            self._kept.jobs,
            self._kept.batches,
        )
        self._broker: Broker = broker or EmbeddedBroker(host, mqtt_port, tls=mqtt_tls)
        self._files = FileServer(
            self.faults,
            self.events.append,
            self.now,
            key=self._kept.key,
            host=host,
            address=self.address,
            port=http_port,
            url_ttl_s=url_ttl_s,
            tls=http_tls,
            routes=[web.post(registration.PATH, self._registry.serve)],
        )
        for package in self._kept.packages.values():
            self._files.add(package)
        self._package_ids = max(map(int, self._kept.packages), default=0)
        self._later: set[asyncio.TimerHandle] = set()
        self._keeping: asyncio.Handle | None = None
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
        self._write()

    # What an operator does.

    def add_device(
        self, product_key: str, device_name: str, secret: str | None = None, *, x509: bool = False
    ) -> Device:
        """Make a device known; without `secret` it gets a fresh one, with `x509` also a certificate to log in by.

        Raises ValueError if it is known already.
        """
        identity = Identity(product_key, device_name)
        if not PRODUCT_KEY_FORM.fullmatch(product_key):
            raise ValueError(f"product key {product_key!r}: not 1 to 64 letters and digits")
        if not DEVICE_NAME_FORM.fullmatch(device_name):
            raise ValueError(f"device name {device_name!r}: not 1 to 64 letters, digits, - _ . : @")
        if identity in self._kept.secrets:
            raise ValueError(f"device {identity}: exists already")
        if x509:
            if self._authority is None:
                raise ValueError("x509: needs a platform with TLS and an authority of its own")
            self._store.keep_certificate(identity, *self._authority.issue_device(product_key, device_name))
            self._kept.x509.add(identity)
        self._kept.secrets[identity] = secret or secrets.token_hex(16)
        self._service.jobs.add_device(identity)
        self.keep()
        return self.device(identity)

    def add_product(self, product_key: str, secret: str | None = None, *, registration: bool = True) -> Product:
        """Make a product known by whose secret devices may register, or change it.

        Without `secret` it keeps its own, or gets a fresh one. `registration` is the switch in the console.
        """
        known = self._registry.products.get(product_key)
        product = Product(product_key, secret or (known.secret if known else secrets.token_hex(8)), registration)
        self._registry.put(product)
        return product

    def reset_device(self, device: Device | Identity) -> None:
        """The API's ResetThing: a device that is activated may register again."""
        self._registry.reset(_identity(device))

    def add_package(
        self,
        path: Path | Sequence[Path],
        version: str,
        module: str = DEFAULT_MODULE,
        sign_method: SignMethod | str = SignMethod.SHA256,
        **options: Unpack[PackageOptions],
    ) -> Package:
        """Upload a file, or several. They are copied and hashed before this returns.

        Raises ValueError where `options` do not go together; OSError.
        """
        paths = [path] if isinstance(path, Path) else path
        package_id = self._next_package_id()
        return self._add(
            self._store.take_in(package_id, paths, version, module, SignMethod(sign_method), **options)
        )  # fmt: skip

    async def add_package_slowly(
        self,
        paths: Sequence[Path],
        version: str,
        module: str,
        sign_method: SignMethod,
        **options: Unpack[PackageOptions],
    ) -> Package:
        """The same while devices are being served."""
        take_in = partial(self._store.take_in, **options)
        package_id = self._next_package_id()
        return self._add(await asyncio.to_thread(take_in, package_id, paths, version, module, sign_method))

    def delete_package(self, package: Package) -> None:
        """The file is not served any more; jobs go on as they are."""
        self._files.remove(package)
        self._service.deleted.add(package.id)

    def push(self, package: Package, device: Device | Identity, **options: Unpack[JobOptions]) -> Job:
        """Start a job for one device, whatever it runs; `Options` says which keywords there are."""
        return self.push_batch(package, [device], **options)[0]

    def push_batch(
        self, package: Package, devices: Iterable[Device | Identity], **options: Unpack[JobOptions]
    ) -> list[Job]:
        """Start a job for each of these devices, whatever they run."""
        selection = Selection(devices=tuple(map(_identity, devices)))
        return self.jobs_of(self._start(package, selection, Options(**options)))

    def batch(
        self,
        package: Package,
        devices: Iterable[Device | Identity] | None = None,
        product: str | None = None,
        source_versions: Iterable[str] = (),
        dynamic: int | None = None,
        **options: Unpack[BatchOptions],
    ) -> Batch:
        """Start a batch for these devices, or for those of a product.

        `source_versions`: only devices that have informed one of them. `dynamic` 1: those that fit now and later, 2:
        only later. Raises ValueError where things do not go together, or a static batch would have no device.
        """
        versions = tuple(source_versions)
        selection = Selection(
            tuple(map(_identity, devices or ())), product, versions, None if dynamic is None else Dynamic(dynamic)
        )
        return self._start(package, selection, Options(source_versions=versions, **options))

    def cancel_batch(self, batch: Batch | str) -> None:
        """It makes no more jobs, and its unfinished ones are cancelled. Raises ValueError if it has ended."""
        batch_id = batch if isinstance(batch, str) else batch.id
        self._carry_out(self._service.jobs.cancel_batch(batch_id, self.now()))
        self.keep()

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
        return [self.device(identity) for identity in self._kept.secrets]

    @property
    def products(self) -> Mapping[str, Product]:
        """Those with a secret of their own, by key."""
        return MappingProxyType(self._registry.products)

    @property
    def packages(self) -> Mapping[str, Package]:
        return MappingProxyType(self._kept.packages)

    @property
    def jobs(self) -> Mapping[str, Job]:
        """All jobs by id, oldest first, as they are now."""
        return self._service.jobs.jobs

    @property
    def batches(self) -> Mapping[str, Batch]:
        """All batches by id, oldest first, as they are now."""
        return self._service.jobs.batches

    def batch_state(self, batch: Batch | str) -> BatchState:
        return self._service.jobs.batch_state(batch if isinstance(batch, str) else batch.id)

    def jobs_of(self, batch: Batch | str) -> list[Job]:
        """The batch's jobs so far, as they are now."""
        batch_id = batch if isinstance(batch, str) else batch.id
        return [job for job in self.jobs.values() if job.batch == batch_id]

    def waits_for(self, job: Job | str) -> str | None:
        """What the job waits for, in words for people; None if for nothing, or for what the device does."""
        return self._service.jobs.waits_for(self.job(job))

    def job(self, job: Job | str) -> Job:
        """The job as it is now."""
        return self.jobs[_job_id(job)]

    def device(self, identity: Identity) -> Device:
        return Device(identity, self._kept.secrets[identity], identity in self._kept.x509)

    def is_online(self, device: Device | Identity) -> bool:
        return self._service.jobs.devices[_identity(device)].online

    def versions(self, device: Device | Identity) -> dict[str, str]:
        """What the device has informed, by module."""
        return dict(self._service.jobs.devices[_identity(device)].versions)

    def served(self, package: Package) -> list[Served]:
        """The requests for this package so far."""
        return [one for one in self.events.of(Served) if one.package == package.id]

    def blocks(self, package: Package) -> list[BlockServed]:
        """The requests for blocks of this package over MQTT so far."""
        return [one for one in self.events.of(BlockServed) if one.package == package.id]

    def bytes_sent(self, package: Package) -> int:
        return sum(one.sent for one in self.served(package)) + sum(one.sent for one in self.blocks(package))

    def bytes_twice(self, package: Package) -> int:
        """How many bytes of the package were sent that had been sent before, one way or the other."""
        return bytes_twice((*self.served(package), *self.blocks(package)))

    async def wait(self, condition: Callable[[], object], timeout: float | None = 10.0) -> None:
        """Return once `condition()` is true; it is looked at after every change. Raises TimeoutError."""
        await self.events.wait(condition, timeout)

    async def ended(self, job: Job | str, timeout: float = 60.0) -> Job:
        """The job once it has ended. Raises TimeoutError."""
        await self.wait(lambda: self.job(job).state.is_final, timeout)
        return self.job(job)

    def url(self, package: Package, file: PackageFile | None = None) -> str:
        """A download URL of the package, or of one of its several files, signed now."""
        return self._files.url(package, file)

    def url_of(self, path: str) -> str:
        """Where the file server answers for `path`, such as `registration.PATH`."""
        return f"{self._files.base}{path}"

    @property
    def signing_key(self) -> str:
        """The public key of secure upgrade, PEM: what `trust.digestsign_key_file` of a device has to hold."""
        return self._signing_key.public_pem

    @property
    def ca_file(self) -> Path | None:
        """What devices have to trust, where the platform has an authority of its own."""
        return self._authority.ca_file if self._authority else None

    def configuration(self, device: Device) -> str:
        """What belongs into the configuration of this device, as TOML."""
        ca_line = f"ca_file = {json.dumps(str(self.ca_file))}\n" if self.ca_file else ""
        if device.x509:
            certificate, key = self._store.certificate_files(device.identity)
            credential = f"certificate_file = {json.dumps(str(certificate))}\nkey_file = {json.dumps(str(key))}\n"
        else:
            credential = f"device_secret = {json.dumps(device.secret)}\n"
        return (
            "[device]\n"
            f"product_key = {json.dumps(device.identity.product_key)}\n"
            f"device_name = {json.dumps(device.identity.device_name)}\n"
            f"{credential}"
            "\n[mqtt]\n"
            f"host = {json.dumps(self.address)}\n"
            f"port = {self.mqtt_port}\n"
            f"tls = {'true' if self._tls else 'false'}\n"
            f"{ca_line}"
            "\n[download]\n"
            f"allow_http = {'false' if self._tls else 'true'}\n"
            "allow_private_hosts = true\n"
            f"{ca_line}"
        )

    # What goes wrong at a moment. What goes wrong for a while is in `faults`.

    def kick(self, device: Device | Identity) -> None:
        """Close the device's MQTT connection."""
        self._broker.kick(_identity(device))

    def send_error(self, device: Device | Identity, code: int, message: str) -> None:
        """Tell the device of its session on `/ext/error`, for example 427 or 520."""
        identity = _identity(device)
        self.send(identity, *self._service.error(identity, code, message), 0)

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
        """Send any message to a device that is online, or (QoS 1) has left a session behind."""
        self._broker.send(device, topic, payload, qos)

    def sign(self, digest: str) -> str:
        return self._signing_key.sign(digest)

    def zipped(self, package: Package) -> Package:
        archive = zipped(package)
        self._files.add(archive)
        return archive

    def certified(self, certificate: Certificate) -> Identity | None:
        from otad.platform.ca import device_of  # noqa: PLC0415

        return device_of(certificate)

    def later(self, delay_s: float, call: Callable[[], None]) -> None:
        def run() -> None:
            self._later.discard(handle)
            call()

        handle = asyncio.get_running_loop().call_later(delay_s, run)
        self._later.add(handle)

    def keep(self) -> None:
        """Write what is to survive a restart, when all is done that is being done: a batch changes much at once."""
        if self._keeping is not None:
            return
        try:
            self._keeping = asyncio.get_running_loop().call_soon(self._write)
        except RuntimeError:  # outside of a loop
            self._write()

    def _write(self) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
            self._keeping = None
        jobs = self._service.jobs
        self._kept.versions = {identity: known.versions for identity, known in jobs.devices.items()}
        self._kept.batches = list(jobs.batches.values())
        self._kept.jobs = list(jobs.jobs.values())
        self._store.save(self._kept)

    def _start(self, package: Package, selection: Selection, options: Options) -> Batch:
        batch, effects = self._service.jobs.start(package, selection, options, self.now())
        self._carry_out(effects)
        self.keep()
        return batch

    def _carry_out(self, effects: list[Effect]) -> None:
        self._service.carry_out(effects)
        self.events.stir()

    def _add(self, package: Package) -> Package:
        self._kept.packages[package.id] = package
        self._files.add(package)
        self.keep()
        return package

    def _add_registered(self, device: Identity) -> None:
        self.add_device(device.product_key, device.device_name)

    def _note_registered(self, device: Identity, way: str) -> None:
        self.events.append(Registered(self.now(), device, way))

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


def _open_authority(directory: Path) -> "Authority":
    """Raises ValueError, with what to do."""
    try:
        from otad.platform.ca import Authority  # noqa: PLC0415
    except ImportError as error:
        raise ValueError("TLS: needs the library cryptography; pip install cryptography") from error
    return Authority(directory)


def _is_wildcard(host: str) -> bool:
    try:
        return host == "" or ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


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
