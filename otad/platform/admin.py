# SPDX-License-Identifier: Apache-2.0
"""How the commands of `otad platform` reach the platform that `serve` runs: HTTP with JSON on a unix socket.

The socket is `admin.sock` in the platform's directory, which only its owner can enter.

    POST /devices   {"product_key", "device_name", "secret"?, "x509"?}    201 a device with its "configuration"
    GET  /devices                                                         200 {"devices": [a device, ...]}
    GET  /devices/PRODUCT_KEY/DEVICE_NAME, or the name alone              200 a device with its "configuration"
    POST /products  {"product_key", "secret"?, "registration"?}           201 {"product_key", "secret", "registration"}
    POST /packages  {"files", "version", "module", "sign_method", "tags", "udi", "diff", "signed", "protocol"}
                                                                          201 a package
    POST /batches   {"devices" or "product", "version", "module", "source_versions", "dynamic", "options"}
                                                                          201 {"batch": a batch, "jobs": [a job, ...]}
    GET  /batches                                                         200 {"batches": [a batch, ...]}
    GET  /batches/ID/watch   200 {"batch", "jobs"} per line: all its jobs, then those that change, until it ends
    POST /batches/ID/cancel                                               200 {"batch", "jobs"}
    GET  /jobs                                                            200 {"jobs": [a job, ...]}
    GET  /jobs/watch         200 {"jobs"} per line: all jobs, then those that change, without end
    POST /jobs/ID/cancel, /jobs/ID/confirm                                200 a job
    POST /faults    {"name": value, ...}                                  200 {"name": value, ...}, all of them
    DELETE /faults                                                        200 the same, each as it is by default

What cannot be is answered with {"error", "hint"?}: 400 what was asked makes no sense here, 409 not as things stand, 500
the machine does not let us.
"""

import asyncio
import json
import os
import re
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, fields
from enum import Enum
from pathlib import Path
from types import NoneType
from typing import Any, Final, get_args, get_origin, get_type_hints

import aiohttp
from aiohttp import web

from otad.platform.faults import Faults
from otad.platform.jobs import Batch, BatchState, Job, Package, Protocol, Refused, Retry, SignMethod
from otad.platform.platform import Device, Platform

SOCKET: Final = "admin.sock"
SHOWN_NAMES: Final = 20

DEVICE_NAME_FORM: Final = re.compile(r"[A-Za-z0-9_.:@-]{4,32}")

Json = Any


class NotRunning(Exception):  # noqa: N818
    """No `serve` runs on this directory."""


class Impossible(Exception):  # noqa: N818
    """What was asked for cannot be done; the text says why, `hint` what to do, if more than the usual is known."""

    def __init__(self, text: str, status: int, hint: str = "") -> None:
        super().__init__(text)
        self.status = status
        self.hint = hint


class Unknown(ValueError):  # noqa: N818
    """There is nothing of that name."""

    def __init__(self, text: str, hint: str) -> None:
        super().__init__(text)
        self.hint = hint


def job_document(platform: Platform, job: Job) -> dict[str, Json]:
    """A job as the commands show it."""
    last = job.log[-1] if job.log else None
    return {
        "id": job.id,
        "batch": job.batch,
        "device": str(job.device),
        "module": job.package.module,
        "version": job.package.version,
        "source": job.source,
        "state": job.state.value,
        "waits_for": platform.waits_for(job),
        "reason": job.reason,
        "step": last.step if last else None,
        "desc": last.desc if last else None,
        "created_at": job.created_at,
        "ended_at": job.ended_at,
        "ended": job.state.is_final,
        "log": [asdict(step) for step in job.log],
    }


def batch_document(platform: Platform, batch: Batch) -> dict[str, Json]:
    """A batch as the commands show it."""
    selection = batch.selection
    return {
        "id": batch.id,
        "module": batch.package.module,
        "version": batch.package.version,
        "product": selection.product,
        "devices": [str(device) for device in selection.devices],
        "source_versions": list(selection.source_versions),
        "dynamic": selection.dynamic and selection.dynamic.value,
        "state": platform.batch_state(batch).value,
        "created_at": batch.created_at,
        "jobs": Counter(job.state.value for job in platform.jobs_of(batch)),
    }


def device_document(platform: Platform, device: Device) -> dict[str, Json]:
    """A device as the commands show it, without its secret."""
    return {
        "device": str(device),
        "x509": device.x509,
        "online": platform.is_online(device),
        "versions": platform.versions(device),
    }


@asynccontextmanager
async def serve_admin(platform: Platform, directory: Path) -> AsyncIterator[None]:
    """Answer the other commands within this context. Raises `Impossible` if another `serve` does."""
    path = directory / SOCKET
    try:
        _, writer = await asyncio.open_unix_connection(path)
    except OSError:
        path.unlink(missing_ok=True)
    else:
        writer.close()
        hint = "choose another directory, or use the one that runs"
        raise Impossible(f"{directory}: another platform is served from here", 409, hint)
    runner = web.AppRunner(_application(platform), access_log=None, handler_cancellation=True, shutdown_timeout=0.2)
    await runner.setup()
    mask = os.umask(0o177)
    try:
        await web.UnixSite(runner, str(path)).start()
    finally:
        os.umask(mask)
    try:
        yield
    finally:
        await runner.cleanup()
        path.unlink(missing_ok=True)


class Client:
    """The other end, for one command."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / SOCKET

    async def call(self, method: str, path: str, body: Json = None) -> Json:
        """Raises `NotRunning` or `Impossible`."""
        async with self._request(method, path, body) as answer:
            return await answer.json()

    async def follow(self, path: str) -> AsyncGenerator[dict[str, Json], None]:
        """The documents of a `watch` as they come."""
        async with self._request("GET", path) as answer:
            line = b""
            async for chunk in answer.content.iter_any():
                *lines, line = (line + chunk).split(b"\n")
                for one in lines:
                    yield json.loads(one)

    @asynccontextmanager
    async def _request(self, method: str, path: str, body: Json = None) -> AsyncIterator[aiohttp.ClientResponse]:
        connector = aiohttp.UnixConnector(str(self._path))
        timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            try:
                async with session.request(method, f"http://platform{path}", json=body) as answer:
                    if answer.status >= 400:
                        why = await answer.json()
                        raise Impossible(why["error"], answer.status, why.get("hint", ""))
                    yield answer
            except aiohttp.ClientConnectorError as error:
                raise NotRunning("no platform is served from here") from error
            except aiohttp.ClientError as error:
                raise NotRunning("the platform has gone") from error


Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


def _application(platform: Platform) -> web.Application:
    async def add_device(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        name = body["device_name"]
        if not DEVICE_NAME_FORM.fullmatch(name):
            raise ValueError(f"device name {name!r}: not 4 to 32 letters, digits, - _ . : @")
        device = platform.add_device(body["product_key"], name, body.get("secret"), x509=body.get("x509", False))
        return web.json_response(described(device), status=201)

    async def list_devices(_: web.Request) -> web.StreamResponse:
        return web.json_response({"devices": [device_document(platform, device) for device in platform.devices]})

    async def show_device(request: web.Request) -> web.StreamResponse:
        return web.json_response(described(_find_device(platform, request.match_info["name"])))

    def described(device: Device) -> Json:
        ca_file = str(platform.ca_file) if platform.ca_file else None
        configuration = platform.configuration(device)
        return {**device_document(platform, device), "configuration": configuration, "ca_file": ca_file}

    async def add_product(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        product = platform.add_product(
            body["product_key"], body.get("secret"), registration=body.get("registration", True)
        )
        document = {"product_key": product.key, "secret": product.secret, "registration": product.registration}
        return web.json_response(document, status=201)

    async def add_package(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        package = await platform.add_package_slowly(
            [Path(file) for file in body["files"]],
            body["version"],
            body["module"],
            SignMethod(body["sign_method"]),
            tags=body["tags"],
            udi=body["udi"],
            diff=body["diff"],
            signed=body["signed"],
            protocol=Protocol(body["protocol"]),
        )
        return web.json_response(
            {
                "package": package.id,
                "version": package.version,
                "module": package.module,
                "size": package.size,
                "sign": package.sign,
                "files": [{"name": one.name, "size": one.size, "sign": one.sign} for one in package.files],
                "signing_key": platform.signing_key if package.signed else None,
            },
            status=201,
        )

    async def start_batch(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        options = dict(body["options"])
        if options.get("retry"):
            options["retry"] = Retry(**options["retry"])
        batch = platform.batch(
            _find_package(platform, body["version"], body["module"]),
            [_find_device(platform, name) for name in body.get("devices", [])],
            _find_product(platform, body.get("product")),
            body["source_versions"],
            body["dynamic"],
            **options,
        )
        return web.json_response(with_jobs(batch), status=201)

    async def list_batches(_: web.Request) -> web.StreamResponse:
        return web.json_response({"batches": [batch_document(platform, one) for one in platform.batches.values()]})

    async def cancel_batch(request: web.Request) -> web.StreamResponse:
        batch = _find_batch(platform, request)
        platform.cancel_batch(batch)
        return web.json_response(with_jobs(batch))

    def with_jobs(batch: Batch) -> Json:
        jobs = platform.jobs_of(batch)
        return {"batch": batch_document(platform, batch), "jobs": [job_document(platform, job) for job in jobs]}

    async def watch_batch(request: web.Request) -> web.StreamResponse:
        batch = _find_batch(platform, request)
        answer = web.StreamResponse()
        await answer.prepare(request)
        shown: dict[str, Json] = {}
        while True:
            changed = _changed(platform, platform.jobs_of(batch), shown)
            await answer.write(_line({"batch": batch_document(platform, batch), "jobs": changed}))
            if platform.batch_state(batch) in {BatchState.COMPLETED, BatchState.CANCELED}:
                return answer
            await platform.wait(lambda: _has_changed(platform, platform.jobs_of(batch), shown), timeout=None)

    async def watch_jobs(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        shown: dict[str, Json] = {}
        while True:
            await answer.write(_line({"jobs": _changed(platform, platform.jobs.values(), shown)}))
            await platform.wait(lambda: _has_changed(platform, platform.jobs.values(), shown), timeout=None)

    async def list_jobs(_: web.Request) -> web.StreamResponse:
        return web.json_response({"jobs": [job_document(platform, job) for job in platform.jobs.values()]})

    async def cancel(request: web.Request) -> web.StreamResponse:
        platform.cancel(_find_job(platform, request))
        return web.json_response(job_document(platform, _find_job(platform, request)))

    async def confirm(request: web.Request) -> web.StreamResponse:
        platform.confirm(_find_job(platform, request))
        return web.json_response(job_document(platform, _find_job(platform, request)))

    async def set_faults(request: web.Request) -> web.StreamResponse:
        asked = {name: _fault(name, value) for name, value in (await request.json()).items()}
        for name, value in asked.items():
            setattr(platform.faults, name, value)
        return web.json_response({name: getattr(platform.faults, name) for name in _SETTABLE})

    async def clear_faults(_: web.Request) -> web.StreamResponse:
        for name in _SETTABLE:
            setattr(platform.faults, name, getattr(Faults(), name))
        return web.json_response({name: getattr(platform.faults, name) for name in _SETTABLE})

    app = web.Application(middlewares=[_explained])
    app.add_routes(
        [
            web.post("/devices", add_device),
            web.get("/devices", list_devices),
            web.get("/devices/{name:.+}", show_device),
            web.post("/products", add_product),
            web.post("/packages", add_package),
            web.post("/batches", start_batch),
            web.get("/batches", list_batches),
            web.get("/batches/{id}/watch", watch_batch),
            web.post("/batches/{id}/cancel", cancel_batch),
            web.get("/jobs", list_jobs),
            web.get("/jobs/watch", watch_jobs),
            web.post("/jobs/{id}/cancel", cancel),
            web.post("/jobs/{id}/confirm", confirm),
            web.post("/faults", set_faults),
            web.delete("/faults", clear_faults),
        ]
    )
    return app


@web.middleware
async def _explained(request: web.Request, handler: Answer) -> web.StreamResponse:  # aiohttp's word
    try:
        return await handler(request)
    except Unknown as error:
        return web.json_response({"error": str(error), "hint": error.hint}, status=400)
    except ValueError as error:
        return web.json_response({"error": str(error)}, status=409 if isinstance(error, Refused) else 400)
    except OSError as error:
        return web.json_response({"error": f"{error.filename}: {error.strerror}"}, status=500)


def _find_device(platform: Platform, name: str) -> Device:
    """By `product_key/device_name`, or by the device name where that is enough."""
    found = [device for device in platform.devices if name in {str(device), device.identity.device_name}]
    match found:
        case [device]:
            return device
        case []:
            raise Unknown(f"device {name!r}: not known", f"there is {_list(map(str, platform.devices))}")
        case _:
            raise Unknown(f"device {name!r}: there is more than one", f"give one of {_list(map(str, found))}")


def _find_product(platform: Platform, product_key: str | None) -> str | None:
    """As it is, if there is such a product or a device of it."""
    known = {*platform.products, *(device.identity.product_key for device in platform.devices)}
    if product_key is not None and product_key not in known:
        raise Unknown(f"product {product_key!r}: not known", f"there is {_list(sorted(known))}")
    return product_key


def _find_package(platform: Platform, version: str, module: str) -> Package:
    """The newest of this version."""
    packages = list(platform.packages.values())
    for package in reversed(packages):
        if (package.version, package.module) == (version, module):
            return package
    known = _list(dict.fromkeys(f"{package.version} ({package.module})" for package in packages))
    raise Unknown(f"package {version!r} of module {module!r}: not known", f"there is {known}")


def _find_job(platform: Platform, request: web.Request) -> Job:
    job_id = request.match_info["id"]
    if job_id not in platform.jobs:
        raise Unknown(f"job {job_id!r}: not known", f"there is {_list(platform.jobs)}")
    return platform.jobs[job_id]


def _find_batch(platform: Platform, request: web.Request) -> Batch:
    batch_id = request.match_info["id"]
    if batch_id not in platform.batches:
        raise Unknown(f"batch {batch_id!r}: not known", f"there is {_list(platform.batches)}")
    return platform.batches[batch_id]


_SETTABLE: Final = tuple(fault.name for fault in fields(Faults) if fault.name != "edit_notice")
_KINDS: Final = get_type_hints(Faults)
_WORDS: Final = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", NoneType: "null"}


def _fault(name: str, value: Json) -> Any:
    """The value as `Faults` has it."""
    if name not in _SETTABLE:
        raise Unknown(f"fault {name!r}: not known", f"there is {_list(_SETTABLE)}")
    try:
        return _of_kind(value, _KINDS[name])
    except ValueError as error:
        said = f"fault {name}: {json.dumps(value)}: not one of its values"
        raise Unknown(said, f"it takes {_said(_KINDS[name])}") from error


def _of_kind(value: Json, kind: Any) -> Any:
    """The value as one of this type; raises ValueError."""
    kinds = get_args(kind)
    if get_origin(kind) is list:
        if isinstance(value, list):
            return [_of_kind(one, kinds[0]) for one in value]
    elif kinds:
        for one in kinds:
            with suppress(ValueError):
                return _of_kind(value, one)
    elif issubclass(kind, Enum):
        if not isinstance(value, bool):
            return kind(value)
    elif type(value) is kind or (kind is float and type(value) is int):
        return value
    raise ValueError(value)


def _said(kind: Any) -> str:
    """What fits a type, in words."""
    kinds = get_args(kind)
    if get_origin(kind) is list:
        return f"a list of {_said(kinds[0])}"
    if kinds:
        return ", ".join(map(_said, kinds))
    return ", ".join(str(one.value) for one in kind) if issubclass(kind, Enum) else _WORDS[kind]


def _changed(platform: Platform, jobs: Iterable[Job], shown: dict[str, Json]) -> list[Json]:
    """The documents of the jobs that are new or other than `shown`, which is brought up to date."""
    changed = []
    for job in jobs:
        if shown.get(job.id) != (now := (job, platform.waits_for(job))):
            shown[job.id] = now
            changed.append(job_document(platform, job))
    return changed


def _has_changed(platform: Platform, jobs: Iterable[Job], shown: dict[str, Json]) -> bool:
    return any(shown.get(job.id) != (job, platform.waits_for(job)) for job in jobs)


def _list(names: Iterable[str]) -> str:
    """The names, or the last ones of many."""
    names = list(names)
    more = len(names) - SHOWN_NAMES
    return ", ".join([*([f"{more} more"] if more > 0 else []), *names[-SHOWN_NAMES:]]) or "none yet"


def _line(document: Json) -> bytes:
    return json.dumps(document).encode() + b"\n"
