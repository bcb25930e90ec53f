# SPDX-License-Identifier: Apache-2.0
"""What the commands of `otad platform` do."""

import argparse
import asyncio
import contextlib
import errno
import ipaddress
import json
import signal
import sys
import time
from typing import Any

from otad.platform.admin import Client, Impossible, NotRunning, serve_admin
from otad.platform.events import Event, as_json
from otad.platform.platform import Platform

DONE, FAILED, USAGE, NOT_RUNNING = 0, 1, 2, 3

KEEP_EVENTS = 10_000


def run_command(args: argparse.Namespace) -> int:
    try:
        return asyncio.run(_run(args))
    except NotRunning:
        return _error(
            NOT_RUNNING,
            f"{args.directory}: no platform is served from here",
            f"start one: otad platform serve --directory {args.directory}",
        )
    except Impossible as error:
        return _error(FAILED, str(error), f"see what there is: otad platform jobs --directory {args.directory}")
    except KeyboardInterrupt:
        return FAILED


async def _run(args: argparse.Namespace) -> int:
    client = Client(args.directory)
    match args.platform_command:
        case "serve":
            return await _serve(args)
        case "add-device":
            body = {"product_key": args.product_key, "device_name": args.device_name, "secret": args.secret}
            print((await client.call("POST", "/devices", body))["configuration"], end="")
        case "add-package":
            return await _add_package(args, client)
        case "push":
            return await _push(args, client)
        case "jobs":
            _print_jobs((await client.call("GET", "/jobs"))["jobs"], as_json=args.json)
        case "cancel" | "confirm" as verb:
            job = await client.call("POST", f"/jobs/{args.job}/{verb}")
            print(_job_line(job))
        case "misbehave":
            return await _misbehave(args, client)
        case other:
            raise AssertionError(other)
    return DONE


async def _serve(args: argparse.Namespace) -> int:
    if args.address is None and _is_wildcard(args.host):
        return _error(USAGE, f"--host {args.host}: not an address that devices can connect to", "add --address ADDRESS")
    try:
        async with contextlib.AsyncExitStack() as stack:
            platform = Platform(
                args.directory,
                host=args.host,
                address=args.address,
                mqtt_port=args.mqtt_port,
                http_port=args.http_port,
                keep_events=KEEP_EVENTS,
            )
            await stack.enter_async_context(serve_admin(platform, args.directory))
            await stack.enter_async_context(platform)
            ended = asyncio.Event()
            for number in (signal.SIGINT, signal.SIGTERM):
                asyncio.get_running_loop().add_signal_handler(number, ended.set)
            _greet(args, platform)
            narrator = asyncio.create_task(_narrate(platform, as_lines=args.json), name="narrator")
            await ended.wait()
            narrator.cancel()
            await asyncio.gather(narrator, return_exceptions=True)
    except Impossible as error:
        return _error(FAILED, str(error), "choose another --directory, or use the one that runs")
    except ValueError as error:
        return _error(FAILED, str(error), "choose another --directory")
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return _error(FAILED, str(error.strerror), "choose other ports: --mqtt-port 0 --http-port 0 takes any")
        return _error(FAILED, str(error), "choose another --directory or --host")
    return DONE


def _greet(args: argparse.Namespace, platform: Platform) -> None:
    out = sys.stderr if args.json else sys.stdout
    print(
        f"MQTT {platform.address}:{platform.mqtt_port} · packages http://{platform.address}:{platform.http_port}",
        file=out,
    )
    for device in platform.devices:
        print(f"\n# configuration of {device}\n{platform.configuration(device)}", file=out)
    if not platform.devices:
        print(f"no device yet: otad platform add-device --directory {args.directory} PRODUCT_KEY DEVICE_NAME", file=out)
    out.flush()


async def _narrate(platform: Platform, *, as_lines: bool) -> None:
    async for event in platform.events.follow(from_start=True):
        print(json.dumps(as_json(event)) if as_lines else _event_line(event), flush=True)


async def _add_package(args: argparse.Namespace, client: Client) -> int:
    if not args.file.is_file():
        return _error(USAGE, f"{args.file}: no such file", "give the path of the package")
    body = {
        "file": str(args.file.absolute()),
        "version": args.version,
        "module": args.module,
        "sign_method": args.sign_method,
    }
    package = await client.call("POST", "/packages", body)
    digest = f"{args.sign_method} {package['sign']}"
    print(f"package {package['version']} ({package['module']}): {package['size']} bytes, {digest}")
    return DONE


async def _push(args: argparse.Namespace, client: Client) -> int:
    options: dict[str, Any] = {
        "verify": args.verify,
        "overwrite": args.overwrite,
        "need_push": not args.no_push,
        "need_confirm": args.confirm,
        "multi_module": args.multi_module,
        "timeout_s": None if args.timeout is None else 60 * args.timeout,
        "source_versions": args.source,
    }
    if args.retries is not None:
        options["retry"] = {"count": args.retries, "interval_s": 60 * args.retry_interval}
    body = {"device": args.device, "version": args.version, "module": args.module, "options": options}
    job = await client.call("POST", "/jobs", body)
    if not args.wait:
        print(_job_line(job))
    else:
        async for now in client.watch(job["id"]):
            job = now
            _show_progress(job)
        if not job["ended"]:
            raise NotRunning
    return FAILED if job["state"] in {"FAILED", "CANCELED"} else DONE


def _show_progress(job: dict[str, Any]) -> None:
    """On a terminal one line that changes, else a line for each change."""
    if sys.stdout.isatty():
        step = max(0, job["step"] or 0)
        bar = "#" * (step * 30 // 100)
        line = f"[{bar:<30}] {step:3} %  {_job_line(job)}"
        print(f"\r\x1b[K{line}", end="\n" if job["ended"] else "", flush=True)
    else:
        print(_job_line(job), flush=True)


def _print_jobs(jobs: list[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"jobs": jobs}))
        return
    rows = [("JOB", "DEVICE", "MODULE", "VERSION", "STATE", "STEP", "REASON")]
    for job in jobs:
        step = "" if job["step"] is None else str(job["step"])
        fields = (job["id"], job["device"], job["module"], job["version"], job["state"], step, job["reason"] or "")
        rows.append(fields)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


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
    for name, value in (await client.call("POST", "/faults", faults)).items():
        print(f"{name}={json.dumps(value)}")
    return DONE


def _job_line(job: dict[str, Any]) -> str:
    detail = job["reason"] or job["desc"] or ""
    step = f" step {job['step']}" if job["step"] is not None and not job["ended"] else ""
    return (
        f"job {job['id']}: {job['device']} to {job['version']}: {job['state']}{step}{f': {detail}' if detail else ''}"
    )


def _event_line(event: Event) -> str:
    return f"{time.strftime('%H:%M:%S', time.localtime(event.at))} {event}"


def _is_wildcard(host: str) -> bool:
    try:
        return host == "" or ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def _error(status: int, what: str, remedy: str) -> int:
    print(f"otad platform: {what}", file=sys.stderr)
    print(remedy, file=sys.stderr)
    return status
