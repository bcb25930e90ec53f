# SPDX-License-Identifier: Apache-2.0
"""A session that runs, and peers for it that are no brokers."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from otad.cloud.cloud import Answer, Names, SessionState
from otad.cloud.credentials import ConnectFields, connect_fields
from otad.cloud.login import Login
from otad.cloud.session import Pace, Session
from otad.cloud.wire import Topics
from otad.config import DeviceSettings, MqttSettings
from otad.durable import Disk, RealDisk

NAMES = Names("a1", "gw001")
TOPICS = Topics.of("a1", "gw001")
SECRET = "s3cr3t"
DEVICE = DeviceSettings(product_key="a1", device_name="gw001", device_secret=SECRET)
FAST = Pace(
    first_s=0.01, max_s=0.05, refused_first_s=0.01, refused_max_s=0.05, window_s=0.2, connect_s=5, acknowledge_s=5
)
LIMIT_S = 5

Heard = asyncio.Queue[Answer]
Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def fields(secret: str = SECRET) -> ConnectFields:
    return connect_fields("a1", "gw001", secret, secure=False)


class Gateway:
    """A session that runs, and what it has heard."""

    def __init__(
        self,
        port: int,
        host: str = "127.0.0.1",
        *,
        device: DeviceSettings = DEVICE,
        tls: bool = False,
        ca_file: Path | None = None,
        directory: Path = Path("/nowhere"),
        disk: Disk | None = None,
        **more: Any,
    ) -> None:
        self.heard: Heard = asyncio.Queue()
        login = Login(device, MqttSettings(tls=tls, ca_file=ca_file), directory, disk or RealDisk())
        arguments: dict[str, Any] = {"keepalive_s": 60, "heard": self.heard.put_nowait, "pace": FAST, **more}
        self.session = Session((host, port), login, **arguments)

    async def next(self) -> Answer:
        async with asyncio.timeout(LIMIT_S):
            return await self.heard.get()

    async def online(self, after: int = 0) -> int:
        async with asyncio.timeout(LIMIT_S):
            return await self.session.connected(after)

    async def lost(self, connection: int) -> None:
        async with asyncio.timeout(LIMIT_S):
            while self.session.connection == connection and self.session.view.state is SessionState.ONLINE:
                await asyncio.sleep(0.005)

    async def shows(self, state: SessionState, text: str) -> str:
        """Wait for this state with this text in the detail."""
        async with asyncio.timeout(LIMIT_S):
            while self.session.view.state is not state or text not in self.session.view.detail:
                await asyncio.sleep(0.005)
        return self.session.view.detail

    async def stop(self) -> None:
        self.running.cancel()
        await asyncio.wait((self.running,))

    async def __aenter__(self) -> "Gateway":
        self.running = asyncio.create_task(self.session.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        ended_by_itself = self.running.done()
        await self.stop()
        assert not ended_by_itself, self.running.exception()


@asynccontextmanager
async def scripted(script: Script, **more: Any) -> AsyncIterator[int]:
    """A peer that does what `script` says with each connection, then closes it; its port."""
    scripts: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        scripts.add(task)
        try:
            await script(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            scripts.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0, **more)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in list(scripts):
            task.cancel()
        await asyncio.gather(*scripts, return_exceptions=True)


async def packet(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """The next packet: first byte and body."""
    (first,) = await reader.readexactly(1)
    length, shift = 0, 0
    while True:
        (byte,) = await reader.readexactly(1)
        length |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return first, await reader.readexactly(length)


async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, code: int = 0) -> bytes:
    """Answer CONNECT with CONNACK; what CONNECT said."""
    first, body = await packet(reader)
    assert first == 0x10
    writer.write(bytes([0x20, 2, 0, code]))
    return body


async def never(reader: asyncio.StreamReader) -> None:
    """Take everything, and wait until the other side is gone."""
    while await reader.read(65536):
        pass


def publication(topic: bytes, payload: bytes = b"", first: int = 0x30, middle: bytes = b"") -> bytes:
    body = len(topic).to_bytes(2, "big") + topic + middle + payload
    length, left = bytearray(), len(body)
    while left > 127:
        length.append(left & 127 | 128)
        left >>= 7
    return bytes([first, *length, left]) + body


def said_in(connect: bytes) -> tuple[str, str, str]:
    """Client id, user name and password of a CONNECT of MQTT 3.1.1."""
    texts, at = [], 10
    while at < len(connect):
        length = int.from_bytes(connect[at : at + 2], "big")
        texts.append(connect[at + 2 : at + 2 + length].decode())
        at += 2 + length
    client_id, username, password = texts
    return client_id, username, password
