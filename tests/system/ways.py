# SPDX-License-Identifier: Apache-2.0
"""The ways from a gateway to the platform: over the stand-in's own broker or over Debian's mosquitto, plain or TLS.

    embedded-plain    every test; what it shows of the platform is nearest to the real one
    embedded-tls      MQTT and downloads over TLS, by the platform's own authority
    mosquitto-plain   a broker that nobody here wrote. It differs from the real platform where the real one is odd: what
                      a device has not subscribed to does not reach it, and whoever comes is let in
    mosquitto-tls
    mosquitto-5       the same, spoken to in MQTT 5

A test that is to hold in all of them is marked `in_every_way` and gives `way` to `new_world`. Those are chosen for what
they need of the way: an order and its reports (test_upgrade: the whole upgrade, the rollback), a download that goes on
after a power cut, and a package in blocks over MQTT (test_brokers), a network that goes and comes back with reports
owed, messages that are lost or heard many times, a URL that must be asked for anew (test_network), and messages that
are wrong or secret (test_hostile). What the others test happens on the gateway, behind the way.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest

from otad.platform.broker import Cloud
from otad.platform.ca import Authority
from otad.platform.credentials import Identity
from otad.platform.platform import Platform
from otad.platform.remote import RemoteBroker
from tests.broker import Certificate, Mosquitto


class Way(StrEnum):
    EMBEDDED_PLAIN = "embedded-plain"
    EMBEDDED_TLS = "embedded-tls"
    MOSQUITTO_PLAIN = "mosquitto-plain"
    MOSQUITTO_TLS = "mosquitto-tls"
    MOSQUITTO_5 = "mosquitto-5"

    @property
    def is_mosquitto(self) -> bool:
        return self.startswith("mosquitto")

    @property
    def is_tls(self) -> bool:
        return self.endswith("-tls")


in_every_way = pytest.mark.parametrize("way", Way)


@asynccontextmanager
async def new_platform(way: Way, directory: Path, **options: Any) -> AsyncIterator[tuple[Platform, Mosquitto | None]]:
    """A running platform that is reached this way, and the broker where that is not its own."""
    authority = Authority(directory / "authority") if way.is_tls else None
    if not way.is_mosquitto:
        async with Platform(directory / "platform", tls=authority, **options) as platform:
            yield platform, None
        return
    certificate, tls = None, None
    if authority is not None:
        certificate = Certificate(directory / "mosquitto.crt", directory / "mosquitto.key")
        for file, content in zip(
            (certificate.file, certificate.key), authority.issue_server(["127.0.0.1"]), strict=True
        ):
            file.write_bytes(content)
        tls = ssl.create_default_context(cafile=authority.ca_file)
    async with Mosquitto(directory, certificate=certificate) as mosquitto:
        broker = BehindRelay(mosquitto.port, tls)
        try:
            async with Platform(directory / "platform", broker=broker, tls=authority, **options) as platform:
                yield platform, mosquitto
        finally:
            await broker.leave()


def configuration(way: Way, text: str) -> str:
    """The device's configuration, as the platform tells it, for this way."""
    return text.replace("[mqtt]\n", '[mqtt]\nversion = "5"\n') if way is Way.MOSQUITTO_5 else text


class BehindRelay:
    """A remote broker that devices reach through a relay: that is what is taken away, and the platform stays.

    If the broker itself went, a device could come back before the platform has, and what it says would reach nobody.
    """

    def __init__(self, port: int, tls: ssl.SSLContext | None) -> None:
        self._broker = RemoteBroker("127.0.0.1", port, tls=tls)
        self._relay = _Relay(port)
        self._is_there = False

    @property
    def port(self) -> int:
        return self._relay.port

    async def start(self, cloud: Cloud) -> None:
        if not self._is_there:
            await self._broker.start(cloud)
            self._is_there = True
        await self._relay.open()

    async def stop(self) -> None:
        await self._relay.close()

    async def leave(self) -> None:
        await self._broker.stop()

    def send(self, identity: Identity, topic: str, payload: bytes, qos: int = 0) -> None:
        self._broker.send(identity, topic, payload, qos)

    def kick(self, identity: Identity) -> None:
        self._relay.cut()


class _Relay:
    """Passes on what comes to its port, which stays the same over `close` and `open`."""

    def __init__(self, to: int) -> None:
        self.port = 0
        self._to = to
        self._server: asyncio.Server | None = None
        self._ends: set[asyncio.StreamWriter] = set()
        self._passing: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Returns when no connection is left."""
        if self._server is not None:
            self._server.close()
            self.cut()
            while self._passing:
                await asyncio.wait(self._passing)
            await self._server.wait_closed()
            self._server = None

    def cut(self) -> None:
        for end in self._ends:
            end.transport.abort()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._pass_on(reader, writer), name="relay")
        self._passing.add(task)
        task.add_done_callback(self._passing.discard)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._to)
        ends = {writer, there_writer}
        self._ends |= ends
        try:
            await asyncio.gather(_pump(reader, there_writer), _pump(there_reader, writer))
        finally:
            self._ends -= ends
            for end in ends:
                with suppress(OSError):
                    await end.wait_closed()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while content := await reader.read(1 << 16):
            writer.write(content)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()
