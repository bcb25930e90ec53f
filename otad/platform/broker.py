# SPDX-License-Identifier: Apache-2.0
"""The MQTT side of the stand-in: what the platform needs of a broker, and a broker that behaves like the real one.

Where it differs from a common broker, because the real platform does:

- whoever connects must prove to be a device (registration.py has the ways); the user name says which, not the client id
- a second CONNECT of a device succeeds and the older connection is closed, without a word
- keep-alive must be 30..1200 s; after 1.5 times that without a packet the connection is closed
- what the platform sends arrives without SUBSCRIBE, with the sender's QoS; SUBSCRIBE is only answered
- a device may publish on its own topics only; anything else is acknowledged and dropped
- of a device that does not ask for a clean session, messages of QoS 1 are kept while it is away, for a week. They and
  those that it has not acknowledged are sent when it is back. Sessions are forgotten when the process ends
- at most 256 KiB in a message (or the connection ends), topics of 128 bytes and 7 levels (or they are foreign), 10
  filters in a SUBSCRIBE and 100 for a device (those behind fail)
- no QoS 2, no wills, no retained messages; MQTT 3.1 and 3.1.1

Written for this purpose: PyPI's amqtt (0.12.1) refuses with CONNACK 5 whatever the reason, lets a CONNECT with a wrong
password evict the device's session, keeps the older connection of a device open and never closes a silent one.
"""

import asyncio
import logging
import ssl
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from otad.platform import mqtt
from otad.platform.credentials import Identity
from otad.platform.faults import Faults
from otad.platform.wire import belongs_to

log = logging.getLogger(__name__)

KEEPALIVE_S: Final = range(30, 1201)
CONNECT_WITHIN_S: Final = 10.0
MAX_UNSENT_BYTES: Final = 4 << 20  # a device that does not read is dropped rather than remembered
SESSION_S: Final = 7 * 24 * 3600.0
MAX_PAYLOAD: Final = 256 << 10
MAX_TOPIC_BYTES: Final = 128
MAX_TOPIC_LEVELS: Final = 7
FILTERS_AT_ONCE: Final = 10
FILTERS: Final = 100

Certificate = Mapping[str, Any]
"""A client's certificate that was verified, as `ssl.SSLSocket.getpeercert` gives it."""


@dataclass(frozen=True, slots=True)
class Admission:
    """The answer to a CONNECT."""

    code: mqtt.Return
    why: str = ""
    identity: Identity | None = None
    """The device that is online from now on; None with `ACCEPTED`: the connection is for registration only."""
    message: tuple[str, bytes] | None = None
    """Topic and payload of what is sent right after CONNACK, unasked."""


class Cloud(Protocol):
    """What a broker asks and tells the platform. No call blocks."""

    @property
    def faults(self) -> Faults: ...

    def admit(self, connect: mqtt.Connect, *, tls: bool, certificate: Certificate | None) -> Admission:
        """Whether this client may come in, and as whom."""
        ...

    def knows(self, identity: Identity) -> bool: ...

    def replaced(self, identity: Identity) -> tuple[str, bytes] | None:
        """What a connection is sent, if anything, before it is closed because its device connected again."""

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
        """Deliver to a device if it is online. Else forget it, unless there is a session to keep it in."""

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
        session_s: float = SESSION_S,
    ) -> None:
        self._host = host
        self._port = port
        self._tls = tls
        self._keepalive_s = keepalive_s
        self._session_s = session_s
        self._server: asyncio.Server | None = None
        self._cloud: Cloud | None = None
        self._connections: set[_Connection] = set()
        self._online: dict[Identity, _Connection] = {}
        self._sessions: dict[Identity, _Session] = {}

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
        connection, session = self._online.get(identity), self._sessions.get(identity)
        packet_id = 0
        if qos and session is not None:
            packet_id = session.keep(topic, payload, is_sent=connection is not None)
        if connection is not None:
            connection.write(mqtt.publish(topic, payload, qos, packet_id))

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
            try:
                self._gone(connection)
            finally:  # also where the platform has a bug: nobody must wait for this connection for ever
                self._connections.discard(connection)
                with suppress(OSError):
                    await writer.wait_closed()
                connection.served.set()

    async def _serve_connection(self, connection: "_Connection") -> None:
        assert self._cloud is not None
        cloud = self._cloud
        async with asyncio.timeout(CONNECT_WITHIN_S):
            packet = await connection.read()
        if not isinstance(packet, mqtt.Connect):
            raise mqtt.Malformed("the first packet is not CONNECT")
        admission = self._admit(cloud, packet, connection.certificate)
        if admission.code is not mqtt.Return.ACCEPTED:
            cloud.refused(packet.username or packet.client_id, admission.code, admission.why)
            connection.write(mqtt.connack(admission.code, packet.level))
            return
        self._welcome(cloud, connection, packet, admission)
        while not connection.ended:
            try:
                async with asyncio.timeout(1.5 * packet.keepalive_s or None):
                    received = await connection.read()
            except TimeoutError:
                connection.end(f"silent for 1.5 times {packet.keepalive_s} s")
                return
            if isinstance(received, mqtt.Disconnect):
                connection.end("said goodbye")
                return
            self._handle(cloud, connection, received)

    def _admit(self, cloud: Cloud, connect: mqtt.Connect, certificate: Certificate | None) -> Admission:
        if connect.level > 4:
            return Admission(mqtt.Return.PROTOCOL, f"protocol level {connect.level}")
        admission = cloud.admit(connect, tls=self._tls is not None, certificate=certificate)
        if (
            admission.identity is not None  # not checked where a device only registers
            and connect.keepalive_s not in self._keepalive_s
            and not cloud.faults.any_keepalive
        ):
            # Which code the real platform gives is not documented; 4 and 5 would read as wrong credentials.
            first, last = self._keepalive_s[0], self._keepalive_s[-1]
            why = f"keep-alive {connect.keepalive_s} s: not within {first}..{last}"
            return Admission(mqtt.Return.IDENTIFIER, why)
        return admission

    def _welcome(self, cloud: Cloud, connection: "_Connection", connect: mqtt.Connect, admission: Admission) -> None:
        identity = admission.identity
        session = None
        if identity is not None:
            if older := self._online.get(identity):
                if farewell := cloud.replaced(identity):
                    older.write(mqtt.publish(*farewell, 0, 0))
                older.end("the device connected again")
                self._gone(older)
            if connect.clean:
                self._sessions.pop(identity, None)
            session = self._sessions.get(identity)
            connection.identity = identity
            connection.session = self._sessions[identity] = session or _Session(is_clean=connect.clean)
            self._online[identity] = connection
        connection.write(mqtt.connack(mqtt.Return.ACCEPTED, connect.level, session=session is not None))
        if admission.message is not None:
            connection.write(mqtt.publish(*admission.message, 0, 0))
        if session is not None:
            for packet in session.resume(self._session_s):
                connection.write(packet)
        if identity is not None:
            cloud.connected(identity)

    def _handle(self, cloud: Cloud, connection: "_Connection", packet: mqtt.Packet) -> None:
        identity, session = connection.identity, connection.session
        match packet:
            case mqtt.Publish(topic, payload, _, packet_id):
                if len(payload) > MAX_PAYLOAD:
                    raise mqtt.Malformed(f"PUBLISH: a payload of {len(payload)} bytes: more than {MAX_PAYLOAD}")
                if packet_id is not None:
                    connection.write(mqtt.puback(packet_id))
                if identity is not None and belongs_to(topic, identity) and _is_short(topic):
                    cloud.received(identity, topic, payload)
                else:
                    cloud.refused(str(identity or "who registers"), 0, f"published on {topic}")
            case mqtt.Subscribe(packet_id, filters):
                suback = mqtt.suback(packet_id, session.subscribe(filters, identity))
                delay_s = cloud.faults.suback_delay_s
                if delay_s > 0:
                    asyncio.get_running_loop().call_later(delay_s, connection.write, suback)
                else:
                    connection.write(suback)
            case mqtt.Unsubscribe(packet_id, filters):
                session.filters.difference_update(filters)
                connection.write(mqtt.unsuback(packet_id))
            case mqtt.Ping():
                connection.write(mqtt.pingresp())
            case mqtt.Puback(packet_id):
                session.kept.pop(packet_id, None)
            case mqtt.Disconnect():
                pass
            case mqtt.Connect():
                raise mqtt.Malformed("a second CONNECT on one connection")

    def _gone(self, connection: "_Connection") -> None:
        identity = connection.identity
        if identity is not None and self._online.get(identity) is connection:
            del self._online[identity]
            if connection.session.is_clean:
                self._sessions.pop(identity, None)
            assert self._cloud is not None
            self._cloud.disconnected(identity, connection.why)


def _may_subscribe(topic_filter: str, identity: Identity | None) -> bool:
    # /ext and /broadcast topics name the device late or not at all; nothing foreign is ever sent there.
    is_own = identity is not None and belongs_to(topic_filter, identity)
    return _is_short(topic_filter) and (is_own or topic_filter.startswith(("/ext/", "/broadcast/")))


def _is_short(topic: str) -> bool:
    return len(topic.encode()) <= MAX_TOPIC_BYTES and topic.count("/") <= MAX_TOPIC_LEVELS


@dataclass(slots=True)
class _Kept:
    """A message of QoS 1 that has not been acknowledged."""

    topic: str
    payload: bytes
    at: float
    is_sent: bool


@dataclass(slots=True)
class _Session:
    """What is known of a client as long as it is connected, and longer if it is not clean (3.1.2.4)."""

    is_clean: bool = True
    filters: set[str] = field(default_factory=set)
    kept: dict[int, _Kept] = field(default_factory=dict)
    """By packet id, oldest first."""
    last_id: int = 0

    def keep(self, topic: str, payload: bytes, *, is_sent: bool) -> int:
        """Remember a message until it is acknowledged; its packet id."""
        self.last_id = self.last_id % 0xFFFF + 1
        self.kept[self.last_id] = _Kept(topic, payload, asyncio.get_running_loop().time(), is_sent)
        return self.last_id

    def resume(self, session_s: float) -> list[bytes]:
        """What is to be sent now that the client is back: all that is not acknowledged, nor older than `session_s`."""
        now = asyncio.get_running_loop().time()
        self.kept = {number: one for number, one in self.kept.items() if now - one.at < session_s}
        packets = [
            mqtt.publish(one.topic, one.payload, 1, number, again=one.is_sent) for number, one in self.kept.items()
        ]
        for one in self.kept.values():
            one.is_sent = True
        return packets

    def subscribe(self, filters: tuple[tuple[str, int], ...], identity: Identity | None) -> list[int]:
        """The return codes of a SUBSCRIBE: the QoS granted, or 0x80."""
        codes: list[int] = []
        for text, qos in filters:
            is_room = len(codes) < FILTERS_AT_ONCE and len(self.filters | {text}) <= FILTERS
            if is_room and _may_subscribe(text, identity):
                self.filters.add(text)
                codes.append(min(qos, 1))
            else:
                codes.append(0x80)
        return codes


class _Connection:
    """One TCP connection, from accept to close."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.identity: Identity | None = None
        self.session = _Session()
        self.ended = False
        self.why = ""
        self.served = asyncio.Event()

    @property
    def certificate(self) -> Certificate | None:
        """The client's, if it has shown one; TLS has verified it then."""
        return self._writer.get_extra_info("peercert") or None

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

    def end(self, why: str) -> None:
        """Close after what has been written; the first reason given is the one that counts."""
        if not self.ended:
            self.ended = True
            self.why = why
            self._writer.close()
