# SPDX-License-Identifier: Apache-2.0
"""An MQTT client that shows every byte: for what an ordinary one hides, such as flags, packet ids and order.

async with RawClient(platform.mqtt_port) as client:
    assert await client.connect(**login(device)) == (False, 0)
    message = await client.message()
"""

import asyncio
import ssl
import struct
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from otad.platform.mqtt import remaining_length

WITHIN_S = 5


@dataclass(frozen=True)
class Message:
    """A PUBLISH; `packet_id` 0 with QoS 0."""

    topic: str
    payload: bytes
    qos: int = 0
    packet_id: int = 0
    again: bool = False


class RawClient:
    """One connection. Nothing is answered by itself."""

    def __init__(self, port: int, tls: ssl.SSLContext | None = None) -> None:
        self._port = port
        self._tls = tls

    async def __aenter__(self) -> Self:
        name = "localhost" if self._tls else None
        self._reader, self._writer = await asyncio.open_connection(
            "127.0.0.1", self._port, ssl=self._tls, server_hostname=name
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()

    async def connect(
        self, identifier: str, username: str, password: str, keepalive: int = 60, *, clean: bool = True, level: int = 4
    ) -> tuple[bool, int]:
        """Send CONNECT; what CONNACK says: whether a session goes on, and the code."""
        name = b"\x00\x04MQTT" if level == 4 else b"\x00\x06MQIsdp"
        flags = 0xC0 | (2 if clean else 0)
        body = name + struct.pack("!BBH", level, flags, keepalive)
        self.send(0x10, body + b"".join(map(_text, (identifier, username, password))))
        first, answer = await self.packet()
        assert first == 0x20
        session, code = answer
        return bool(session), code

    def publish(self, topic: str, payload: bytes, packet_id: int = 0) -> None:
        identifier = struct.pack("!H", packet_id) if packet_id else b""
        self.send(0x32 if packet_id else 0x30, _text(topic) + identifier + payload)

    def subscribe(self, *filters: str) -> None:
        self.send(0x82, b"\x00\x01" + b"".join(_text(text) + b"\x01" for text in filters))

    def acknowledge(self, message: Message) -> None:
        self.send(0x40, struct.pack("!H", message.packet_id))

    def send(self, first: int, body: bytes = b"") -> None:
        self._writer.write(bytes([first]) + remaining_length(len(body)) + body)

    async def packet(self) -> tuple[int, bytes]:
        """The next packet: its first byte, and what is behind its length."""
        async with asyncio.timeout(WITHIN_S):
            first = (await self._reader.readexactly(1))[0]
            size = shift = 0
            while True:
                byte = (await self._reader.readexactly(1))[0]
                size |= (byte & 0x7F) << shift
                shift += 7
                if not byte & 0x80:
                    return first, await self._reader.readexactly(size)

    async def message(self) -> Message:
        """The next packet, which must be a PUBLISH."""
        first, body = await self.packet()
        assert first >> 4 == 3, (first, body)
        qos = first >> 1 & 3
        end = 2 + int.from_bytes(body[:2])
        packet_id = int.from_bytes(body[end : end + 2]) if qos else 0
        payload = body[end + 2 :] if qos else body[end:]
        return Message(body[2:end].decode(), payload, qos, packet_id, again=bool(first & 8))

    async def pong(self) -> None:
        """Send PINGREQ; return once PINGRESP is the next packet: all that was to come before has come."""
        self.send(0xC0)
        assert await self.packet() == (0xD0, b"")

    async def is_closed(self) -> bool:
        """Wait for the end; whether nothing came before it."""
        async with asyncio.timeout(WITHIN_S):
            return await self._reader.read() == b""


def _text(text: str) -> bytes:
    return struct.pack("!H", len(text.encode())) + text.encode()
