# SPDX-License-Identifier: Apache-2.0
"""The MQTT side of the stand-in: what the platform needs of a broker, and a broker that behaves like the real one.

Where it differs from a common broker, because the real platform does:

- whoever connects must prove the device's secret; the user name, not the client id, says which device it is
- a second CONNECT of a device succeeds and the older connection is closed, without a word
- keep-alive must be 30..1200 s; after 1.5 times that without a packet the connection is closed
- what the platform sends arrives without SUBSCRIBE, with the sender's QoS; SUBSCRIBE is only answered
- a device may publish on its own topics only; anything else is acknowledged and dropped
- no QoS 2, no wills, no retained messages, no stored sessions; MQTT 3.1 and 3.1.1

Written for this purpose: PyPI's amqtt (0.12.1) refuses with CONNACK 5 whatever the reason, lets a CONNECT with a wrong
password evict the device's session, keeps the older connection of a device open and never closes a silent one.
"""

import asyncio
import logging
import ssl
from contextlib import suppress
from typing import Final, Protocol

from otad.platform import mqtt
from otad.platform.credentials import Identity, MalformedLogin, is_proven, parse_login
from otad.platform.wire import belongs_to

log = logging.getLogger(__name__)

KEEPALIVE_S: Final = range(30, 1201)
CONNECT_WITHIN_S: Final = 10.0
MAX_UNSENT_BYTES: Final = 4 << 20  # a device that does not read is dropped rather than remembered


class Cloud(Protocol):
    """What a broker asks and tells the platform. No call blocks."""

    def refusal(self) -> mqtt.Return | None:
        """The code that every CONNECT is to be refused with, or None."""

    def secret_of(self, identity: Identity) -> str | None: ...

    def connected(self, identity: Identity) -> None: ...

    def disconnected(self, identity: Identity, why: str) -> None: ...

    def refused(self, who: str, code: int, why: str) -> None: ...

    def received(self, identity: Identity, topic: str, payload: bytes) -> None: ...


class Broker(Protocol):
    """What the platform needs of a broker. `EmbeddedBroker` is one; `RemoteBroker` makes any other into one."""

    async def start(self, cloud: Cloud) -> None:
        """Accept devices from now on."""

    async def stop(self) -> None:
        """Drop every device and accept none. `start` may follow."""

    def send(self, identity: Identity, topic: str, payload: bytes, qos: int = 0) -> None:
        """Deliver to a device if it is online, else forget it."""

    def kick(self, identity: Identity) -> None:
        """Close the device's connection."""

    @property
    def port(self) -> int: ...


class EmbeddedBroker:
    """A broker inside this process."""

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        tls: ssl.SSLContext | None = None,
        keepalive_s: range = KEEPALIVE_S,
    ) -> None:
        self._host = host
        self._port = port
        self._tls = tls
        self._keepalive_s = keepalive_s
        self._server: asyncio.Server | None = None
        self._cloud: Cloud | None = None
        self._connections: set[_Connection] = set()
        self._online: dict[Identity, _Connection] = {}

    @property
    def port(self) -> int:
        """The port devices connect to; known from the first `start` on, and the same ever after."""
        return self._port

    async def start(self, cloud: Cloud) -> None:
        self._cloud = cloud
        self._server = await asyncio.start_server(self._serve, self._host, self._port, ssl=self._tls)
        self._port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is None:
            return
        self._server.close()
        for connection in tuple(self._connections):
            connection.end("the broker went away")
        while self._connections:
            await asyncio.gather(*(connection.served.wait() for connection in self._connections))
        await self._server.wait_closed()
        self._server = None

    def send(self, identity: Identity, topic: str, payload: bytes, qos: int = 0) -> None:
        if connection := self._online.get(identity):
            connection.publish(topic, payload, qos)

    def kick(self, identity: Identity) -> None:
        if connection := self._online.get(identity):
            connection.end("kicked")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(reader, writer)
        self._connections.add(connection)
        try:
            await self._serve_connection(connection)
        except (mqtt.Malformed, OSError, EOFError, TimeoutError) as error:
            connection.end(str(error) or "the connection broke")
        finally:
            connection.end("disconnected")
            self._gone(connection)
            self._connections.discard(connection)
            with suppress(OSError):
                await writer.wait_closed()
            connection.served.set()

    async def _serve_connection(self, connection: "_Connection") -> None:
        assert self._cloud is not None
        async with asyncio.timeout(CONNECT_WITHIN_S):
            packet = await connection.read()
        if not isinstance(packet, mqtt.Connect):
            raise mqtt.Malformed("the first packet is not CONNECT")
        identity, code, why = self._admit(self._cloud, packet)
        if identity is None:
            self._cloud.refused(packet.username or packet.client_id, code, why)
            connection.write(mqtt.connack(code, packet.level))
            return
        if older := self._online.get(identity):
            older.end("the device connected again")
            self._gone(older)
        connection.identity = identity
        self._online[identity] = connection
        connection.write(mqtt.connack(mqtt.Return.ACCEPTED))
        self._cloud.connected(identity)
        while not connection.ended:
            try:
                async with asyncio.timeout(1.5 * packet.keepalive_s):
                    received = await connection.read()
            except TimeoutError:
                connection.end(f"silent for 1.5 times {packet.keepalive_s} s")
                return
            if isinstance(received, mqtt.Disconnect):
                connection.end("said goodbye")
                return
            self._handle(self._cloud, connection, identity, received)

    def _admit(self, cloud: Cloud, connect: mqtt.Connect) -> tuple[Identity | None, mqtt.Return, str]:
        refusal = cloud.refusal()
        if refusal is not None:
            return None, refusal, "told to refuse"
        if connect.level > 4:
            return None, mqtt.Return.PROTOCOL, f"protocol level {connect.level}"
        if connect.keepalive_s not in self._keepalive_s:
            # Which code the real platform gives is not documented; 4 and 5 would read as wrong credentials.
            return (
                None,
                mqtt.Return.IDENTIFIER,
                f"keep-alive {connect.keepalive_s} s: not within {self._keepalive_s[0]}..{self._keepalive_s[-1]}",
            )
        try:
            login = parse_login(connect.client_id, connect.username, connect.password)
        except MalformedLogin as error:
            return None, mqtt.Return.IDENTIFIER, str(error)
        secret = cloud.secret_of(login.identity)
        if secret is None:
            return None, mqtt.Return.NOT_AUTHORISED, "no such device"
        if not is_proven(login, secret):
            return None, mqtt.Return.PASSWORD, "wrong password"
        return login.identity, mqtt.Return.ACCEPTED, ""

    def _handle(self, cloud: Cloud, connection: "_Connection", identity: Identity, packet: mqtt.Packet) -> None:
        match packet:
            case mqtt.Publish(topic, payload, _, packet_id):
                if packet_id is not None:
                    connection.write(mqtt.puback(packet_id))
                if belongs_to(topic, identity):
                    cloud.received(identity, topic, payload)
                else:
                    cloud.refused(str(identity), 0, f"published on {topic}")
            case mqtt.Subscribe(packet_id, filters):
                codes = [min(qos, 1) if _may_subscribe(text, identity) else 0x80 for text, qos in filters]
                connection.write(mqtt.suback(packet_id, codes))
            case mqtt.Unsubscribe(packet_id):
                connection.write(mqtt.unsuback(packet_id))
            case mqtt.Ping():
                connection.write(mqtt.pingresp())
            case mqtt.Puback() | mqtt.Disconnect():
                pass
            case mqtt.Connect():
                raise mqtt.Malformed("a second CONNECT on one connection")

    def _gone(self, connection: "_Connection") -> None:
        identity = connection.identity
        if identity is not None and self._online.get(identity) is connection:
            del self._online[identity]
            assert self._cloud is not None
            self._cloud.disconnected(identity, connection.why)


def _may_subscribe(topic_filter: str, identity: Identity) -> bool:
    # /ext and /broadcast topics name the device late or not at all; nothing foreign is ever sent there.
    return belongs_to(topic_filter, identity) or topic_filter.startswith(("/ext/", "/broadcast/"))


class _Connection:
    """One TCP connection, from accept to close."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._packet_id = 0
        self.identity: Identity | None = None
        self.ended = False
        self.why = ""
        self.served = asyncio.Event()

    async def read(self) -> mqtt.Packet:
        """The next packet. Raises `EOFError` at the end of the stream, `mqtt.Malformed` on anything else than MQTT."""
        first = (await self._reader.readexactly(1))[0]
        size = 0
        for shift in (0, 7, 14, 21):
            byte = (await self._reader.readexactly(1))[0]
            size |= (byte & 0x7F) << shift
            if not byte & 0x80:
                break
        else:
            raise mqtt.Malformed("remaining length: more than four bytes")
        if size > mqtt.MAX_REMAINING:
            raise mqtt.Malformed(f"packet of {size} bytes: more than {mqtt.MAX_REMAINING}")
        return mqtt.parse(first, await self._reader.readexactly(size))

    def write(self, packet: bytes) -> None:
        if self.ended:
            return
        self._writer.write(packet)
        if self._writer.transport.get_write_buffer_size() > MAX_UNSENT_BYTES:
            self._writer.transport.abort()
            self.end("does not read what it is sent")

    def publish(self, topic: str, payload: bytes, qos: int) -> None:
        if qos:
            self._packet_id = self._packet_id % 0xFFFF + 1
        self.write(mqtt.publish(topic, payload, qos, self._packet_id))

    def end(self, why: str) -> None:
        """Close after what has been written; the first reason given is the one that counts."""
        if not self.ended:
            self.ended = True
            self.why = why
            self._writer.close()
