# SPDX-License-Identifier: Apache-2.0
"""`otad demo`: two whole upgrades on this machine, against the platform stand-in. No root, no board, no account.

The first upgrade has its link cut, then its power, and ends with the new version running; the second one ships a
system that fails its health check, and ends with the old version running and the reason at the platform. Only the
board is simulated: broker, web server, daemon, sockets, signals and files are real. The daemon is a process of its
own; cutting the power is SIGKILL and switching the simulated board off and on.

What is printed are the platform's events and the board's, each with its time since the start; the last line has the
figures. The exit status is 1 if anything did not happen as told here.
"""

import argparse
import asyncio
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from otad.control.client import ControlError
from otad.platform.events import Event, Informed, JobChanged, Progressed, Served
from otad.platform.jobs import Job, Package
from otad.platform.platform import Device, Platform
from otad.render import Style, bar
from otad.simulation import MIB, DaemonError, Gateway, write_image
from otad.units import format_size

IMAGE_BYTES = 48 * MIB
BAD_IMAGE_BYTES = 16 * MIB
RATE = 8 * MIB
"""Bytes per second of the pretended network: slow enough to watch, fast enough to wait for."""
CUT_LINK_AT = 14 * MIB
CUT_POWER_AT = 28 * MIB
TWICE_MAX = 2 * (8 + 4) * MIB
"""Two cuts: each may cost one checkpoint and what was in flight."""
PATIENCE_S = 60.0

_HEALTH_CHECK = """
# Is the application up? In this demo the one of version 3-0-0 is not.
if [ "$OTAD_VERSION" = 3-0-0 ]; then
    echo "modem: no answer on /dev/ttyUSB2"
    exit 1
fi
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The demo's own options."""
    parser.add_argument("--json", action="store_true", help="a JSON object per event, the figures last")
    parser.add_argument("--keep", metavar="DIRECTORY", type=Path, help="leave everything in this new directory")


def run(arguments: argparse.Namespace) -> int:
    """Run the demo; 0 if all happened as told."""
    directory = Path(arguments.keep) if arguments.keep else Path(tempfile.mkdtemp(prefix="otad-demo-"))
    if arguments.keep and directory.exists() and any(directory.iterdir()):
        sys.stderr.write(f"otad demo: {directory}: not empty\notad demo: name a new directory, or remove this one\n")
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that what follows is tidied
    try:
        directory.mkdir(parents=True, exist_ok=True)
        return asyncio.run(_Demo(directory, _Stage(as_json=arguments.json)).run())
    except _WrongError as error:
        sys.stderr.write(f"otad demo: {error}\notad demo: run it with --keep DIRECTORY and look at the logs there\n")
        return 1
    finally:
        if not arguments.keep:
            shutil.rmtree(directory, ignore_errors=True)


class _WrongError(Exception):
    """Something did not happen as told."""


class _Stage:
    """What the audience sees."""

    def __init__(self, *, as_json: bool) -> None:
        self._json = as_json
        self._began = time.monotonic()
        self._terminal = sys.stdout.isatty() and not as_json
        self._style = Style(colours="NO_COLOR" not in os.environ, glyphs=True) if self._terminal else Style()
        self._bar_stands = False

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def say(self, who: str, text: str, **facts: Any) -> None:
        if self._json:
            self._line(json.dumps({"seconds": round(self.seconds, 2), "who": who, "text": text, **facts}))
        else:
            self._line(f"{self.seconds:6.1f} s  {who:9} {text}")

    def act(self, title: str) -> None:
        """Begin a part of the story."""
        if self._json:
            self.say("demo", title)
        else:
            self._line(f"\n{self._style.bold(title)}")

    def progress(self, status: dict[str, Any]) -> None:
        """A bar that is redrawn, where there is a terminal to redraw it on."""
        deployment = status["deployment"]
        if not self._terminal or deployment is None or not deployment["total"]:
            return
        part, whole = deployment["bytes"], deployment["total"]
        drawn = bar(part, whole, self._style)
        line = f"{drawn} {format_size(part)} of {format_size(whole)}  {status['next']}"
        sys.stdout.write(f"\r\x1b[K            {line}"[:160])
        sys.stdout.flush()
        self._bar_stands = True

    def figures(self, figures: dict[str, Any]) -> None:
        if self._json:
            self._line(json.dumps(figures))
            return
        twice, size = figures["bytes_twice"], figures["bytes"]
        self.act("What happened")
        for name, text in (
            ("versions", " → ".join(figures["versions"])),
            ("jobs", ", ".join(f"{version} {state}" for version, state in figures["jobs"].items())),
            ("why", figures["rollback_reason"]),
            ("fetched", f"{format_size(size)} for {format_size(IMAGE_BYTES)}, {format_size(twice)} of it twice"),
            ("resumes", str(figures["resumes"])),
            ("time", f"{figures['seconds']} s"),
        ):
            self._line(f"  {name:9} {text}")

    def _line(self, text: str) -> None:
        if self._bar_stands:
            sys.stdout.write("\r\x1b[K")
            self._bar_stands = False
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


class _Demo:
    """One platform, one gateway, two upgrades."""

    def __init__(self, directory: Path, stage: _Stage) -> None:
        self._directory = directory
        self._stage = stage
        self._gateway = Gateway(directory, says=stage.say)
        self._platform = Platform(directory / "platform")
        self._arrived = 0  # bytes of the package, by the gateway's own word

    async def run(self) -> int:
        stage, platform = self._stage, self._platform
        async with platform:
            stage.act("A platform, and a gateway with two slots")
            device = platform.add_device("a1demo", "gateway-0001")
            self._gateway.provision(platform.configuration(device), "1-0-0", IMAGE_BYTES)
            self._gateway.add_health_check("10-app", _HEALTH_CHECK)
            stage.say("gateway", "slot a holds 1-0-0 and is booted, slot b is empty")
            tasks = [
                asyncio.create_task(self._tell(), name="teller"),
                asyncio.create_task(self._watch(), name="watcher"),
                asyncio.create_task(self._gateway.keep_running(), name="gateway"),
            ]
            story = asyncio.create_task(self._story(device), name="story")
            try:
                await asyncio.wait([*tasks, story], return_when=asyncio.FIRST_COMPLETED)
                ended_early = next((task for task in tasks if task.done()), None)
                if ended_early is not None:
                    await ended_early
                stage.figures(await story)
            except (DaemonError, TimeoutError) as error:
                raise _WrongError(str(error)) from error
            finally:
                all_tasks: list[asyncio.Task[Any]] = [*tasks, story]
                for task in all_tasks:
                    task.cancel()
                await asyncio.gather(*all_tasks, return_exceptions=True)
        return 0

    async def _story(self, device: Device) -> dict[str, Any]:
        stage, platform = self._stage, self._platform
        await _true(lambda: platform.versions(device).get("default") == "1-0-0", "1-0-0 informed")

        stage.act("2-0-0 is pushed; on the way the link is cut, then the power")
        package = platform.add_package(self._image("2-0-0", IMAGE_BYTES), "2-0-0")
        platform.faults.rate = RATE
        job = platform.push(package, device)
        await _true(lambda: self._arrived >= CUT_LINK_AT, f"{format_size(CUT_LINK_AT)} fetched")
        stage.say("network", "cut")
        platform.cut_downloads()
        await _true(lambda: self._arrived >= CUT_POWER_AT, f"{format_size(CUT_POWER_AT)} fetched")
        stage.say("power", "cut: the daemon is killed in mid-write")
        self._gateway.kill()
        good = await platform.ended(job, PATIENCE_S)

        stage.act("3-0-0 is pushed; it boots, and fails its health check")
        platform.faults.rate = None
        job = platform.push(platform.add_package(self._image("3-0-0", BAD_IMAGE_BYTES), "3-0-0"), device)
        bad = await platform.ended(job, PATIENCE_S)
        informs = len(platform.events.of(Informed))
        await _true(lambda: len(platform.events.of(Informed)) > informs, "the old version informed after the rollback")
        return self._figures(device, package, {"2-0-0": good, "3-0-0": bad})

    def _image(self, version: str, size: int) -> Path:
        return write_image(self._directory / f"{version}.img", version, size)

    def _figures(self, device: Device, package: Package, jobs: dict[str, Job]) -> dict[str, Any]:
        """What the last line shows; _WrongError if it is not as told."""
        platform = self._platform
        informed = [event.version for event in platform.events.of(Informed)]
        figures: dict[str, Any] = {
            "ok": True,
            "seconds": round(self._stage.seconds, 1),
            "bytes": platform.bytes_sent(package),
            "bytes_twice": platform.bytes_twice(package),
            "resumes": sum(one.start > 0 for one in platform.served(package)),
            "versions": list(dict.fromkeys(informed)),
            "final_version": platform.versions(device)["default"],
            "jobs": {version: str(job.state) for version, job in jobs.items()},
            "rollback_reason": jobs["3-0-0"].reason or "",
        }
        as_told = (
            figures["jobs"] == {"2-0-0": "SUCCEEDED", "3-0-0": "FAILED"}
            and figures["versions"] == ["1-0-0", "2-0-0"]
            and figures["final_version"] == "2-0-0"
            and "no answer on /dev/ttyUSB2" in figures["rollback_reason"]
            and figures["resumes"] >= 2
            and figures["bytes_twice"] <= TWICE_MAX
        )
        if not as_told:
            raise _WrongError(f"not as told: {json.dumps({**figures, 'ok': False})}")
        return figures

    # -- watching

    async def _watch(self) -> None:
        while True:
            try:
                status = await asyncio.to_thread(self._gateway.status)
            except ControlError:
                pass  # it is booting
            else:
                self._stage.progress(status)
                deployment = status["deployment"]
                if deployment is not None and deployment["phase"] == "downloading":
                    self._arrived = deployment["bytes"]
            await asyncio.sleep(0.1)

    async def _tell(self) -> None:
        async for event in self._platform.events.follow(from_start=True):
            if (line := _platform_line(event)) is not None:
                self._stage.say("platform", line, event=type(event).__name__)


def _platform_line(event: Event) -> str | None:
    match event:
        case Informed():
            return f"is told version {event.version}"
        case JobChanged():
            reason = f": {event.reason}" if event.reason else ""
            return f"job of {event.version} is {event.state}{reason}"
        case Progressed() if event.step < 0 or event.desc:
            return f"is told step {event.step}: {event.desc}"
        case Progressed():
            return f"is told step {event.step}"
        case Served():
            cut = "" if event.whole else ", cut short"
            return f"served {format_size(event.sent)} of {event.version} from byte {event.start}{cut}"
        case _:
            return None


async def _true(condition: Any, what: str) -> None:
    """Wait until it holds; TimeoutError says what did not."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {PATIENCE_S:.0f} s")
        await asyncio.sleep(0.05)
