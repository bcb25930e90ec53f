# SPDX-License-Identifier: Apache-2.0
"""The packets of MQTT 3.1 and 3.1.1 that the platform speaks, as values: bytes in, values out. No I/O.

Only what the real platform knows: QoS 0 and 1, no will, no retained messages. A will or a retain flag is read past;
QoS 2 is `Malformed`. Section numbers are those of the MQTT 3.1.1 standard (OASIS).
"""

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import assert_never

MAX_REMAINING = 1 << 20  # the platform takes payloads up to 256 KiB; nothing a device sends is larger than this


class Malformed(ValueError):  # noqa: N818
    """Bytes that are not MQTT, or MQTT that the platform does not speak: the connection ends."""


class Return(IntEnum):
    """CONNACK return codes (3.2.2.3)."""

    ACCEPTED = 0
    PROTOCOL = 1
    IDENTIFIER = 2
    UNAVAILABLE = 3
    PASSWORD = 4
    NOT_AUTHORISED = 5


class Kind(IntEnum):
    """Control packet types (2.2.1)."""

    CONNECT = 1
    CONNACK = 2
    PUBLISH = 3
    PUBACK = 4
    SUBSCRIBE = 8
    SUBACK = 9
    UNSUBSCRIBE = 10
    UNSUBACK = 11
    PINGREQ = 12
    PINGRESP = 13
    DISCONNECT = 14


@dataclass(frozen=True, slots=True)
class Connect:
    level: int
    keepalive_s: int
    client_id: str
    username: str
    password: str
    clean: bool = True
    """Nothing of an earlier session is wanted, and nothing of this one is to be kept."""


@dataclass(frozen=True, slots=True)
class Publish:
    topic: str
    payload: bytes
    qos: int
    packet_id: int | None


@dataclass(frozen=True, slots=True)
class Puback:
    packet_id: int


@dataclass(frozen=True, slots=True)
class Subscribe:
    packet_id: int
    filters: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    packet_id: int
    filters: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Ping:
    pass


@dataclass(frozen=True, slots=True)
class Disconnect:
    pass


Packet = Connect | Publish | Puback | Subscribe | Unsubscribe | Ping | Disconnect


def parse(first: int, body: bytes) -> Packet:
    """One packet of a client, from its first byte and what follows the remaining length."""
    try:
        return _parse(first, body)
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise Malformed(f"packet type {first >> 4}: {error}") from error


def remaining_length(size: int) -> bytes:
    """`size` as MQTT writes it: seven bits a byte, lowest first (2.2.3)."""
    encoded = bytearray()
    while True:
        size, low = divmod(size, 128)
        encoded.append(low | (0x80 if size else 0))
        if not size:
            return bytes(encoded)


def connack(code: Return, level: int = 4, *, session: bool = False) -> bytes:
    """CONNACK; for an MQTT 5 client in the only words it understands.

    `session`: one was kept and goes on. MQTT 3.1 has no word for that, its byte is reserved.
    """
    if level >= 5:
        return bytes([Kind.CONNACK << 4, 3, 0, 0x84 if code == Return.PROTOCOL else 0x80 | code, 0])
    return bytes([Kind.CONNACK << 4, 2, int(session and level > 3), code])


def publish(topic: str, payload: bytes, qos: int, packet_id: int, *, again: bool = False) -> bytes:
    """A message to a client; `packet_id` counts only with QoS 1, and so does `again`, the flag DUP."""
    identifier = struct.pack("!H", packet_id) if qos else b""
    flags = qos << 1 | (0x08 if qos and again else 0)
    return _packet(Kind.PUBLISH, flags, _text(topic) + identifier + payload)


def puback(packet_id: int) -> bytes:
    return _packet(Kind.PUBACK, 0, struct.pack("!H", packet_id))


def suback(packet_id: int, codes: list[int]) -> bytes:
    return _packet(Kind.SUBACK, 0, struct.pack("!H", packet_id) + bytes(codes))


def unsuback(packet_id: int) -> bytes:
    return _packet(Kind.UNSUBACK, 0, struct.pack("!H", packet_id))


def pingresp() -> bytes:
    return _packet(Kind.PINGRESP, 0, b"")


def _packet(kind: Kind, flags: int, body: bytes) -> bytes:
    return bytes([kind << 4 | flags]) + remaining_length(len(body)) + body


def _text(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("!H", len(encoded)) + encoded


def _parse(first: int, body: bytes) -> Packet:
    try:
        kind = Kind(first >> 4)
    except ValueError as error:
        raise Malformed(f"packet type {first >> 4}: not one that the platform takes") from error
    cursor = _Cursor(body)
    match kind:
        case Kind.CONNECT:
            return _parse_connect(cursor)
        case Kind.PUBLISH:
            # The flag DUP says nothing new: a device that repeats itself is heard again.
            qos = first >> 1 & 3
            if qos > 1:
                raise Malformed(f"PUBLISH: QoS {qos} is not supported")
            topic = cursor.text()
            packet_id = cursor.number() if qos else None
            return Publish(topic, cursor.rest(), qos, packet_id)
        case Kind.PUBACK:
            return Puback(cursor.number())
        case Kind.SUBSCRIBE:
            packet_id = cursor.number()
            filters: list[tuple[str, int]] = []
            while not cursor.at_end():
                filters.append((cursor.text(), cursor.byte()))
            if not filters:
                raise Malformed("SUBSCRIBE: no topic filter")
            return Subscribe(packet_id, tuple(filters))
        case Kind.UNSUBSCRIBE:
            packet_id = cursor.number()
            unwanted: list[str] = []
            while not cursor.at_end():
                unwanted.append(cursor.text())
            return Unsubscribe(packet_id, tuple(unwanted))
        case Kind.PINGREQ:
            return Ping()
        case Kind.DISCONNECT:
            return Disconnect()
        case Kind.CONNACK | Kind.SUBACK | Kind.UNSUBACK | Kind.PINGRESP:
            raise Malformed(f"{kind.name}: clients do not send it")
        case _:
            assert_never(kind)


def _parse_connect(cursor: "_Cursor") -> Connect:
    name, level, flags, keepalive_s = cursor.text(), cursor.byte(), cursor.byte(), cursor.number()
    if (name, level) not in {("MQIsdp", 3), ("MQTT", 4), ("MQTT", 5)}:
        raise Malformed(f"CONNECT: protocol {name!r} level {level}")
    if level == 5:
        # Its properties come next; it is refused by its level, so nothing after it matters.
        return Connect(level, keepalive_s, "", "", "")
    client_id = cursor.text()
    if flags & 0x04:
        cursor.text()
        cursor.binary()
    username = cursor.text() if flags & 0x80 else ""
    password = cursor.binary().decode() if flags & 0x40 else ""
    return Connect(level, keepalive_s, client_id, username, password, clean=bool(flags & 0x02))


class _Cursor:
    """Reads a packet's fields one after the other."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._at = 0

    def byte(self) -> int:
        self._at += 1
        return self._body[self._at - 1]

    def number(self) -> int:
        (number,) = struct.unpack_from("!H", self._body, self._at)
        self._at += 2
        return int(number)

    def binary(self) -> bytes:
        size = self.number()
        if self._at + size > len(self._body):
            raise Malformed("a field runs past the packet's end")
        self._at += size
        return self._body[self._at - size : self._at]

    def text(self) -> str:
        return self.binary().decode()

    def rest(self) -> bytes:
        return self._body[self._at :]

    def at_end(self) -> bool:
        return self._at >= len(self._body)
