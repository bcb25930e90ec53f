# SPDX-License-Identifier: Apache-2.0
"""How the commands of `otad platform` reach the platform that `serve` runs: HTTP with JSON on a unix socket.

The socket is `admin.sock` in the platform's directory, which only its owner can enter.

    POST /devices   {"product_key", "device_name", "secret"?}      201 {"device", "configuration"}
    POST /packages  {"file", "version", "module", "sign_method"}   201 {"package", "version", "module", "size", "sign"}
    POST /jobs      {"device", "version", "module", "options"}     201 a job
    GET  /jobs                                                     200 {"jobs": [a job, ...]}
    GET  /jobs/ID/watch                                            200 a job per line, at each change, until it ends
    POST /jobs/ID/cancel, /jobs/ID/confirm                         200 a job
    POST /faults    {"name": value, ...}                           200 {"name": value, ...}, all of them

What cannot be done is answered with 409 and {"error": "..."}.
"""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any, Final

import aiohttp
from aiohttp import web

from otad.platform.faults import Faults
from otad.platform.jobs import Job, Package, Retry, SignMethod
from otad.platform.mqtt import Return
from otad.platform.platform import Device, Platform

SOCKET: Final = "admin.sock"

Json = Any


class NotRunning(Exception):  # noqa: N818
    """No `serve` runs on this directory."""


class Impossible(Exception):  # noqa: N818
    """What was asked for cannot be done; the text says why."""


def job_document(job: Job) -> dict[str, Json]:
    """A job as the commands show it."""
    last = job.log[-1] if job.log else None
    return {
        "id": job.id,
        "device": str(job.device),
        "module": job.package.module,
        "version": job.package.version,
        "source": job.source,
        "state": job.state.value,
        "reason": job.reason,
        "step": last.step if last else None,
        "desc": last.desc if last else None,
        "created_at": job.created_at,
        "ended_at": job.ended_at,
        "ended": job.state.is_final,
        "log": [asdict(step) for step in job.log],
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
        raise Impossible(f"{directory}: another platform is served from here")
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

    async def watch(self, job_id: str) -> AsyncIterator[dict[str, Json]]:
        """The job now and at each change, until it has ended."""
        async with self._request("GET", f"/jobs/{job_id}/watch") as answer:
            async for line in answer.content:
                yield json.loads(line)

    @asynccontextmanager
    async def _request(self, method: str, path: str, body: Json = None) -> AsyncIterator[aiohttp.ClientResponse]:
        connector = aiohttp.UnixConnector(str(self._path))
        timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            try:
                async with session.request(method, f"http://platform{path}", json=body) as answer:
                    if answer.status >= 400:
                        raise Impossible((await answer.json())["error"])
                    yield answer
            except aiohttp.ClientConnectorError as error:
                raise NotRunning(str(self._path)) from error
            except aiohttp.ClientError as error:
                raise NotRunning(f"{self._path}: the platform went away: {error}") from error


Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


def _application(platform: Platform) -> web.Application:
    async def add_device(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        device = platform.add_device(body["product_key"], body["device_name"], body.get("secret"))
        configuration = platform.configuration(device)
        return web.json_response({"device": str(device), "configuration": configuration}, status=201)

    async def add_package(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        package = await platform.add_package_slowly(
            Path(body["file"]), body["version"], body["module"], SignMethod(body["sign_method"])
        )
        return web.json_response(
            {
                "package": package.id,
                "version": package.version,
                "module": package.module,
                "size": package.size,
                "sign": package.sign,
            },
            status=201,
        )

    async def push(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        options = dict(body["options"])
        if options.get("retry"):
            options["retry"] = Retry(**options["retry"])
        if "source_versions" in options:
            options["source_versions"] = tuple(options["source_versions"])
        package = _find_package(platform, body["version"], body["module"])
        job = platform.push(package, _find_device(platform, body["device"]), **options)
        return web.json_response(job_document(job), status=201)

    async def list_jobs(_: web.Request) -> web.StreamResponse:
        return web.json_response({"jobs": [job_document(job) for job in platform.jobs.values()]})

    async def cancel(request: web.Request) -> web.StreamResponse:
        platform.cancel(_find_job(platform, request))
        return web.json_response(job_document(_find_job(platform, request)))

    async def confirm(request: web.Request) -> web.StreamResponse:
        platform.confirm(_find_job(platform, request))
        return web.json_response(job_document(_find_job(platform, request)))

    async def watch(request: web.Request) -> web.StreamResponse:
        job = _find_job(platform, request)
        answer = web.StreamResponse()
        await answer.prepare(request)
        await answer.write(_line(job))
        while not job.state.is_final:
            await platform.wait(partial(_has_changed, platform, job), timeout=None)
            job = platform.job(job)
            await answer.write(_line(job))
        return answer

    async def set_faults(request: web.Request) -> web.StreamResponse:
        for name, value in (await request.json()).items():
            _set_fault(platform.faults, name, value)
        return web.json_response({name: getattr(platform.faults, name) for name in _SETTABLE})

    app = web.Application(middlewares=[_explained])
    app.add_routes(
        [
            web.post("/devices", add_device),
            web.post("/packages", add_package),
            web.post("/jobs", push),
            web.get("/jobs", list_jobs),
            web.get("/jobs/{id}/watch", watch),
            web.post("/jobs/{id}/cancel", cancel),
            web.post("/jobs/{id}/confirm", confirm),
            web.post("/faults", set_faults),
        ]
    )
    return app


@web.middleware
async def _explained(request: web.Request, handler: Answer) -> web.StreamResponse:  # aiohttp's word
    try:
        return await handler(request)
    except (ValueError, OSError) as error:
        text = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)
        return web.json_response({"error": text}, status=409)


def _find_device(platform: Platform, name: str) -> Device:
    """By `product_key/device_name`, or by the device name where that is enough."""
    found = [device for device in platform.devices if name in {str(device), device.identity.device_name}]
    match found:
        case [device]:
            return device
        case []:
            raise ValueError(f"device {name!r}: not known; there is {_list(platform.devices)}")
        case _:
            raise ValueError(f"device {name!r}: which of {_list(found)}")


def _find_package(platform: Platform, version: str, module: str) -> Package:
    """The newest of this version."""
    packages = list(platform.packages.values())
    for package in reversed(packages):
        if (package.version, package.module) == (version, module):
            return package
    known = _list([f"{package.version} ({package.module})" for package in packages])
    raise ValueError(f"package {version!r} of module {module!r}: not known; there is {known}")


def _find_job(platform: Platform, request: web.Request) -> Job:
    job_id = request.match_info["id"]
    if job_id not in platform.jobs:
        raise ValueError(f"job {job_id!r}: not known; there is {_list(list(platform.jobs))}")
    return platform.jobs[job_id]


_SETTABLE: Final = tuple(fault.name for fault in fields(Faults) if fault.name != "edit_notice")


def _set_fault(faults: Faults, name: str, value: Json) -> None:
    if name not in _SETTABLE:
        raise ValueError(f"fault {name!r}: not known; there is {_list(list(_SETTABLE))}")
    setattr(faults, name, Return(value) if name == "connack" and value is not None else value)


def _has_changed(platform: Platform, job: Job) -> bool:
    return platform.job(job) != job


def _list(names: list[Device] | list[str]) -> str:
    return ", ".join(str(name) for name in names) or "none yet"


def _line(job: Job) -> bytes:
    return json.dumps(job_document(job)).encode() + b"\n"
