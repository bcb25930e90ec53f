# SPDX-License-Identifier: Apache-2.0
"""A platform stand-in, a simulated gateway with the real daemon, and ways to wait for what the outside can see."""

import asyncio
import gzip
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from otad.control.client import ControlError
from otad.platform.events import Informed, Progressed
from otad.platform.jobs import Job, JobState, Package
from otad.platform.platform import Device, Platform
from otad.simulation import MIB, Gateway, write_image
from tests.broker import Mosquitto
from tests.system.ways import Way, configuration, in_every_way, new_platform

PATIENCE_S = 40.0
SLOT_BYTES = 16 * MIB


@dataclass
class World:
    """One device at one platform."""

    platform: Platform
    device: Device
    gateway: Gateway
    directory: Path
    mosquitto: Mosquitto | None = None
    board: asyncio.Task[None] | None = None
    images: dict[str, bytes] = field(default_factory=dict)

    # -- the platform's side

    def package(
        self, version: str, size: int = SLOT_BYTES, pack: Callable[[bytes], bytes] | None = None, **options: Any
    ) -> Package:
        """An image of `version` as a package, packed or not; its bytes are kept in `images`."""
        path = write_image(self.directory / f"{version}.img", version, size)
        self.images[version] = path.read_bytes()
        if pack is not None:
            path.write_bytes(pack(self.images[version]))
        return self.platform.add_package(path, version, **options)

    def push(self, package: Package, **options: Any) -> Job:
        return self.platform.push(package, self.device, **options)

    async def ended(self, job: Job) -> Job:
        """The job at its end; what the daemon said last if there is none."""
        ended: Job = await self._or_last_words(self.platform.ended(job, PATIENCE_S))
        return ended

    async def until(self, condition: Callable[[], object]) -> None:
        """Something that the platform sees."""
        await self._or_last_words(self.platform.wait(condition, PATIENCE_S))

    async def informed(self, version: str, times: int = 1) -> None:
        await self.until(lambda: [e.version for e in self.platform.events.of(Informed)].count(version) >= times)

    @property
    def steps(self) -> list[int]:
        return [event.step for event in self.platform.events.of(Progressed)]

    @property
    def told(self) -> list[str]:
        """What the platform was told, in order: steps with their desc, and versions."""
        lines: list[str] = []
        for event in self.platform.events:
            if isinstance(event, Progressed):
                lines.append(f"step {event.step}{': ' + event.desc if event.desc else ''}")
            if isinstance(event, Informed):
                lines.append(f"version {event.version}")
        return lines

    # -- the gateway's side

    def power_on(self) -> None:
        self.board = asyncio.create_task(self.gateway.keep_running(), name="board")

    async def power_off(self) -> None:
        if self.board is not None:
            self.board.cancel()
            await asyncio.wait([self.board])
            if not self.board.cancelled():
                self.board.result()
            self.board = None

    async def status(self, condition: Callable[[dict[str, Any]], object] = lambda status: True) -> dict[str, Any]:
        """The daemon's status, once the condition holds of it."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                status = await asyncio.to_thread(self.gateway.status)
            except ControlError:
                status = None
            if status is not None and condition(status):
                return status
            assert time.monotonic() < deadline, f"status {status}; {self.gateway.last_words()}"
            assert self.board is None or not self.board.done(), self.gateway.last_words()
            await asyncio.sleep(0.02)

    async def phase(self, phase: str) -> dict[str, Any]:
        return await self.status(lambda s: s["deployment"] is not None and s["deployment"]["phase"] == phase)

    async def idle(self, booted: str) -> dict[str, Any]:
        return await self.status(lambda s: s["deployment"] is None and s["booted"] == booted and not s["outbox"])

    async def otad(self, *arguments: str) -> tuple[int, str]:
        """Run a command against the daemon: exit status and all it said."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "otad", "--config", str(self.gateway.config), *arguments),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, "NO_COLOR": "1"},
        )
        output, _ = await process.communicate()
        assert process.returncode is not None
        return process.returncode, output.decode()

    def slot(self, name: str) -> bytes:
        return self.gateway.slots[name].read_bytes()

    async def _or_last_words(self, wait: Any) -> Any:
        waiting = asyncio.ensure_future(wait)
        board = [self.board] if self.board is not None else []
        await asyncio.wait([waiting, *board], return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            waiting.cancel()
            assert self.board is not None
            self.board.result()
        try:
            return waiting.result()
        except TimeoutError as error:
            raise AssertionError(f"{error}; told {self.told}; the daemon: {self.gateway.last_words()}") from error


@asynccontextmanager
async def new_world(
    directory: Path,
    *,
    slot_bytes: int = SLOT_BYTES,
    more: str = "",
    way: Way = Way.EMBEDDED_PLAIN,
    **platform: Any,
) -> AsyncIterator[World]:
    """A platform and a gateway at 1-0-0, switched off. `more` are sections of the gateway's configuration."""
    async with new_platform(way, directory, **platform) as (cloud, mosquitto):
        device = cloud.add_device("a1test", "gateway-0001")
        gateway = Gateway(directory / "gateway")
        gateway.provision(configuration(way, cloud.configuration(device)), "1-0-0", slot_bytes, more)
        world = World(cloud, device, gateway, directory, mosquitto)
        try:
            yield world
        finally:
            await world.power_off()


def gzipped(image: bytes) -> bytes:
    return gzip.compress(image, 1)


__all__ = ["MIB", "JobState", "Way", "World", "gzipped", "in_every_way", "new_world"]
