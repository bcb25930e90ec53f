# SPDX-License-Identifier: Apache-2.0
"""What the commands of `otad platform` do."""

import argparse
import asyncio
import contextlib
import errno
import ipaddress
import json
import re
import shlex
import signal
import sys
import time
from typing import Any, Final
from urllib.parse import quote

from otad.platform import table
from otad.platform.admin import Client, Impossible, NotRunning, serve_admin
from otad.platform.cli import default_directory
from otad.platform.events import Event, as_json
from otad.platform.faults import Faults
from otad.platform.platform import Platform

DONE, FAILED, USAGE, NOT_RUNNING, REFUSED, INTERRUPTED = 0, 1, 2, 3, 4, 130

KEEP_EVENTS: Final = 10_000
GREETED_DEVICES: Final = 10
"""Of more than these `serve` does not print the configurations."""

_EXITS: Final = {400: USAGE, 409: REFUSED}
_FLAGS: Final = {
    "source_versions": "--source-version",
    "timeout_s": "--timeout",
    "push_rate": "--rate",
    "starts_at": "--start-in",
}
"""What fields of a batch are called here."""


def run_command(args: argparse.Namespace) -> int:
    if args.platform_command == "serve" and args.place is not None:
        args.directory = args.place
    try:
        return asyncio.run(_run(args))
    except NotRunning as error:
        return _error(
            NOT_RUNNING,
            f"{args.directory}: {error}",
            f"start one with {_command(args, 'serve')}, or name another with -d",
        )
    except Impossible as error:
        what = re.sub("|".join(_FLAGS), lambda found: _FLAGS[found[0]], str(error))
        return _error(_EXITS.get(error.status, FAILED), what, error.hint or _hint(args))
    except KeyboardInterrupt:
        return DONE if args.platform_command == "jobs" else INTERRUPTED


async def _run(args: argparse.Namespace) -> int:
    client = Client(args.directory)
    match args.platform_command:
        case "serve":
            return await _serve(args)
        case "add-device":
            body = {"product_key": args.product_key, "device_name": args.device_name}
            device = await client.call("POST", "/devices", {**body, "secret": args.secret, "x509": args.x509})
            print(_configuration(device), end="")
        case "add-product":
            await _add_product(args, client)
        case "add-package":
            return await _add_package(args, client)
        case "push":
            return await _push(args, client)
        case "jobs":
            await _jobs(args, client)
        case "batches":
            found = await client.call("GET", "/batches")
            _show(found, table.batches_table(found["batches"], table.style_of(sys.stdout)), as_json=args.json)
        case "devices":
            await _devices(args, client)
        case "cancel" if args.batch:
            for batch_id in args.ids:
                ended = await client.call("POST", f"/batches/{quote(batch_id, safe='')}/cancel")
                print(_batch_line(ended["batch"]))
        case "cancel" | "confirm" as verb:
            for job_id in args.ids:
                print(table.job_line(await client.call("POST", f"/jobs/{quote(job_id, safe='')}/{verb}")))
        case "misbehave":
            return await _misbehave(args, client)
        case other:
            raise AssertionError(other)
    return DONE


# ------------------------------------------------------------------------------------------------ serve


async def _serve(args: argparse.Namespace) -> int:
    if args.address is None and _is_wildcard(args.host):
        return _error(USAGE, f"--host {args.host}: not an address that devices can connect to", "add --address ADDRESS")
    if args.port is None:
        args.port = 8883 if args.tls else 1883
    try:
        async with contextlib.AsyncExitStack() as stack:
            platform = Platform(
                args.directory,
                host=args.host,
                address=args.address,
                mqtt_port=args.port,
                http_port=args.http_port,
                tls=args.tls,
                keep_events=KEEP_EVENTS,
            )
            await stack.enter_async_context(serve_admin(platform, args.directory))
            await stack.enter_async_context(platform)
            ended = asyncio.Event()
            for number in (signal.SIGINT, signal.SIGTERM):
                asyncio.get_running_loop().add_signal_handler(number, ended.set)
            _greet(args, platform)
            narrator = asyncio.create_task(_narrate(platform, as_lines=args.json), name="narrator")
            stack.callback(narrator.cancel)
            await ended.wait()
    except ValueError as error:
        what, _, remedy = str(error).partition("; ")
        return _error(FAILED, what, remedy or "choose another directory")
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return _error(FAILED, str(error.strerror), "choose other ports: --port 0 --http-port 0 takes any")
        return _error(FAILED, str(error), "choose another directory or --host")
    return DONE


def _greet(args: argparse.Namespace, platform: Platform) -> None:
    """Where devices find the platform, and what to type next."""
    scheme = "https" if args.tls else "http"
    where = f"{platform.address}:{platform.mqtt_port}{' with TLS' if args.tls else ''}"
    lines = [f"MQTT {where} · packages {scheme}://{platform.address}:{platform.http_port} · kept in {args.directory}"]
    if platform.ca_file:
        lines.append(f"devices have to trust {platform.ca_file}: copy it to those on other machines")
    devices = platform.devices
    if len(devices) <= GREETED_DEVICES:
        for device in devices:
            lines += ["", f"# {_place(str(device))}", platform.configuration(device).rstrip()]
            if device.x509 and not args.tls:
                lines.append("# it has a certificate and needs TLS: serve --tls")
    lines += ["", "in another terminal:"]
    name = str(devices[0].identity.device_name) if devices else "gateway-0001"
    if not devices:
        lines.append(f"  {_command(args, 'add-device', 'a1B2c3D4e5F', name)}")
    elif len(devices) > GREETED_DEVICES:
        lines.append(f"  {_command(args, 'devices', name)}")
    version = max(platform.packages.values(), key=lambda package: int(package.id), default=None)
    if version is None:
        lines.append(f"  {_command(args, 'add-package')} FILE --version 2-0-0")
    lines += [
        f"  {_command(args, 'push', name, version.version if version else '2-0-0')}",
        f"  {_command(args, 'jobs', '--watch')}",
        "",
    ]
    print("\n".join(lines), file=sys.stderr if args.json else sys.stdout, flush=True)


async def _narrate(platform: Platform, *, as_lines: bool) -> None:
    async for event in platform.events.follow(from_start=True):
        print(json.dumps(as_json(event)) if as_lines else _event_line(event), flush=True)


def _event_line(event: Event) -> str:
    return f"{time.strftime('%H:%M:%S', time.localtime(event.at))} {table.printable(str(event))}"


# ------------------------------------------------------------------------------------------------ devices, packages


async def _add_product(args: argparse.Namespace, client: Client) -> None:
    body = {"product_key": args.product_key, "secret": args.secret, "registration": not args.no_registration}
    product = await client.call("POST", "/products", body)
    if not product["registration"]:
        print(f"# product {product['product_key']}: its devices may not register")
        return
    print(
        "# a device that registers has this in the place of device_secret\n"
        f"[device]\nproduct_key = {json.dumps(product['product_key'])}\n"
        f"product_secret = {json.dumps(product['secret'])}"
    )


async def _add_package(args: argparse.Namespace, client: Client) -> int:
    for file in args.files:
        if not file.is_file():
            return _error(USAGE, f"{file}: no such file", "give the path of the package")
    body = {
        "files": [str(file.absolute()) for file in args.files],
        "version": args.version,
        "module": args.module,
        "sign_method": "Md5" if args.md5 else "SHA256",
        "tags": dict(args.tag),
        "udi": args.udi,
        "diff": args.diff,
        "signed": args.signed,
        "protocol": args.protocol,
    }
    package = await client.call("POST", "/packages", body)
    method = "MD5" if args.md5 else "SHA-256"
    digest = f"{len(package['files'])} files" if package["files"] else f"{method} {package['sign']}"
    print(f"package {package['version']} ({package['module']}): {package['size']} bytes, {digest}")
    for file in package["files"]:
        print(f"  {table.printable(file['name'])}: {file['size']} bytes, {method} {file['sign']}")
    if package["signing_key"]:
        key_file = args.directory.absolute() / "digestsign.pem"
        key_file.write_text(package["signing_key"])
        print(f"a device checks its signature if it has\n[trust]\ndigestsign_key_file = {json.dumps(str(key_file))}")
    return DONE


async def _devices(args: argparse.Namespace, client: Client) -> None:
    if args.device is not None:
        device = await client.call("GET", f"/devices/{quote(args.device)}")
        print(json.dumps(device) if args.json else _configuration(device).rstrip())
        return
    found = await client.call("GET", "/devices")
    _show(found, table.devices_table(found["devices"], table.style_of(sys.stdout)), as_json=args.json)


def _configuration(device: dict[str, Any]) -> str:
    """A device's configuration with what there is to say about it, as TOML."""
    lines = [f"# {_place(device['device'])}"]
    if device["ca_file"]:
        lines.append(f"# On another machine: copy {device['ca_file']} there and name the copy in ca_file.")
    return "\n".join([*lines, device["configuration"]])


def _place(device: str) -> str:
    return f"{device}: in its configuration, in the place of [device], [mqtt] and [download]"


# ------------------------------------------------------------------------------------------------ jobs


async def _push(args: argparse.Namespace, client: Client) -> int:
    options: dict[str, Any] = {
        "verify": args.verify,
        "overwrite": args.overwrite,
        "need_push": not args.no_push,
        "need_confirm": args.confirm,
        "multi_module": args.multi_module,
        "timeout_s": None if args.timeout is None else 60 * args.timeout,
        "push_rate": args.rate,
        "starts_at": None if args.start_in is None else time.time() + 60 * args.start_in,
        "retry": None if args.retry is None else {"count": args.retry, "interval_s": 60 * args.retry_interval},
    }
    is_product = args.all or args.dynamic is not None
    body = {
        "product": args.target if is_product else None,
        "devices": [] if is_product else [name for name in args.target.split(",") if name],
        "version": args.version,
        "module": args.module,
        "source_versions": args.source_version,
        "dynamic": args.dynamic,
        "options": options,
    }
    made = await client.call("POST", "/batches", body)
    batch = made["batch"]
    if args.dynamic is not None or args.no_wait:
        _show(made, [table.job_line(job) for job in made["jobs"]], as_json=args.json)
        if args.dynamic is not None and not args.json:
            print(f"batch {batch['id']} takes {table.batch_set(batch)}, until")
            print(f"  {_command(args, 'cancel', '--batch', batch['id'])}")
        return DONE
    jobs: dict[str, dict[str, Any]] = {}
    view = _view(as_json=args.json)
    try:
        async with contextlib.aclosing(client.follow(f"/batches/{batch['id']}/watch")) as documents:
            async for document in documents:
                jobs |= {job["id"]: job for job in document["jobs"]}
                view(document, jobs)
    except asyncio.CancelledError:
        if not args.json:
            print(f"batch {batch['id']} goes on; to end it: {_command(args, 'cancel', '--batch', batch['id'])}")
        raise
    if not all(job["ended"] for job in jobs.values()):
        raise NotRunning("the platform has gone, and the jobs wait for it")
    return DONE if all(job["state"] == "SUCCEEDED" for job in jobs.values()) else FAILED


async def _jobs(args: argparse.Namespace, client: Client) -> None:
    if not args.watch:
        found = await client.call("GET", "/jobs")
        _show(found, table.jobs_table(found["jobs"], table.style_of(sys.stdout)), as_json=args.json)
        return
    jobs: dict[str, dict[str, Any]] = {}
    view = _view(as_json=args.json)
    async with contextlib.aclosing(client.follow("/jobs/watch")) as documents:
        async for document in documents:
            jobs |= {job["id"]: job for job in document["jobs"]}
            view(document, jobs)
    raise NotRunning("the platform has gone")


class _Table:
    """Draws all jobs in place at each change."""

    def __init__(self) -> None:
        self._screen = table.Screen()

    def __call__(self, document: dict[str, Any], jobs: dict[str, dict[str, Any]]) -> None:
        self._screen.draw(table.jobs_table(jobs.values(), table.style_of(sys.stdout)))


class _Lines:
    """Prints a line for each job that has changed so that it shows."""

    def __init__(self) -> None:
        self._said: dict[str, str] = {}

    def __call__(self, document: dict[str, Any], jobs: dict[str, dict[str, Any]]) -> None:
        for job in document["jobs"]:
            line = table.job_line(job)
            if self._said.get(job["id"]) != line:
                self._said[job["id"]] = line
                print(line, flush=True)


class _Documents:
    """Prints what has changed, for programs."""

    def __call__(self, document: dict[str, Any], jobs: dict[str, dict[str, Any]]) -> None:
        print(json.dumps(document), flush=True)


def _view(*, as_json: bool) -> _Table | _Lines | _Documents:
    if as_json:
        return _Documents()
    return _Table() if sys.stdout.isatty() else _Lines()


def _batch_line(batch: dict[str, Any]) -> str:
    return table.printable(f"batch {batch['id']}: {table.batch_set(batch)} to {batch['version']}: {batch['state']}")


# ------------------------------------------------------------------------------------------------ the rest


async def _misbehave(args: argparse.Namespace, client: Client) -> int:
    faults = {}
    for text in args.faults:
        name, equals, value = text.partition("=")
        try:
            faults[name] = json.loads(value)
        except ValueError:
            if not equals:
                return _error(USAGE, f"{text!r}: not NAME=VALUE", "for example cut_after=1000000 or rate=null")
            faults[name] = value
    now: dict[str, Any] = await client.call("DELETE" if args.reset else "POST", "/faults", None if args.reset else {})
    if faults:
        now = await client.call("POST", "/faults", faults)
    usual = Faults()
    set_now = {name: value for name, value in now.items() if value != getattr(usual, name)}
    for name, value in (set_now if faults or args.reset else now).items():
        print(f"{name}={json.dumps(value)}" + ("  (set)" if not (faults or args.reset) and name in set_now else ""))
    if not set_now:
        print("nothing goes wrong on purpose")
    return DONE


def _show(document: dict[str, Any], lines: list[str], *, as_json: bool) -> None:
    print(json.dumps(document) if as_json else "\n".join(lines))


def _command(args: argparse.Namespace, *words: str) -> str:
    """What to type for another command on the same platform."""
    verb, *rest = words
    directory = [] if args.directory == default_directory() else ["-d", str(args.directory)]
    return shlex.join(["otad", "platform", verb, *directory, *rest])


def _hint(args: argparse.Namespace) -> str:
    match args.platform_command:
        case "add-device":
            return f"see what there is: {_command(args, 'devices')}"
        case "push" | "add-package" | "add-product" as verb:
            return f"`otad platform {verb} --help` says what there is to choose"
        case _:
            return f"see how things stand: {_command(args, 'jobs')}"


def _is_wildcard(host: str) -> bool:
    try:
        return host == "" or ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def _error(status: int, what: str, remedy: str) -> int:
    print(f"otad platform: {table.printable(what)}", file=sys.stderr)
    print(f"  {table.printable(remedy)}", file=sys.stderr)
    return status
