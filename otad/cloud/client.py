# SPDX-License-Identifier: Apache-2.0
"""The MQTT library's client for one connection, with our ends and our words. The only file on the gateway that knows
the library.

A connection comes up, carries messages, and ends; however it ends, it does so as `Lost`, with a reason for a person.
Its socket is a `Link`, which bounds, watches and cuts it. MQTT 3.1.1 or 5 is spoken as told, and nothing is negotiated:
a device that has once spoken 5 cannot go back. Every session is clean, so that nothing of an old one is sent again.

What a server says in MQTT 5 when it ends a connection becomes the reason. A publication that it refuses there ends the
connection too: taken for acknowledged it would be lost.

The library is `aiomqtt` 2.5. Worth knowing: it connects in a thread that cannot be canceled (`Link.cut` ends it); it
does not wake a pending `publish` or `__aenter__` when the connection is lost, and forgets a loss that comes together
with the platform's yes (`unless` watches the link instead); `__aexit__` may raise and so swallow a cancellation
(`_leave` catches that); it acknowledges QoS 1 messages before we have seen them, which is why the platform is asked
again on every connect.
"""

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import aiomqtt
from aiomqtt.exceptions import MqttConnectError

from otad.cloud import wire
from otad.cloud.credentials import ConnectFields
from otad.cloud.link import CLOSED, Link, words
from otad.config import MqttVersion
from otad.units import format_duration

T = TypeVar("T")

QUEUE_MAX = 16
PACKET_MAX = wire.PAYLOAD_MAX + 1024  # with topic and packet id
TAKEN_OVER = "another connection with this identity has taken its place"

log = logging.getLogger(__name__)

# The library logs each lost connection and each full queue as errors. We say it in our words, and once.
_library = logging.getLogger(f"{__name__}.library")
_library.setLevel(logging.CRITICAL)

_NOT_MQTT = "what is sent is not MQTT"
_ONLY_3 = 'a platform without MQTT 5 needs mqtt.version = "3.1.1"'

# Reason codes of MQTT 5 (OASIS, section 2.4). The library makes the same of CONNACK's codes 4, 5, 2 and 3.
_VERSION, _BAD_CLIENT_ID, _BAD_PASSWORD, _NOT_AUTHORIZED, _UNAVAILABLE, _BUSY, _BANNED = range(0x84, 0x8B)
_TAKEN_OVER, _QUOTA, _ADMINISTRATIVE, _RATE = 0x8E, 0x97, 0x98, 0x9F
_REFUSED = {
    _VERSION: f"MQTT 5 is not spoken here: {_ONLY_3}",
    _BAD_PASSWORD: "bad user name or password",
    _NOT_AUTHORIZED: "not authorised",
    _BANNED: "banned by the platform",
}
_NOT_NOW = {
    _BAD_CLIENT_ID: "the platform does not accept the client id: check device.client_id",
    _UNAVAILABLE: "the platform says that it is unavailable",
    _BUSY: "the platform says that it is busy",
    _QUOTA: "the platform says that a quota is exceeded",
    _RATE: "the platform says that this device connects too often",
}
_GOODBYES = {
    0x00: "ended by the platform",
    _TAKEN_OVER: TAKEN_OVER,
    _ADMINISTRATIVE: "ended by the platform's administrator: check that it has this device enabled",
}

# TLS alerts (RFC 8446, section 6.2), as `words` spells them, by which a server refuses the client's certificate.
_CERTIFICATE_ALERTS = (
    "alert bad certificate",
    "alert unsupported certificate",
    "alert certificate revoked",
    "alert certificate expired",
    "alert certificate unknown",
    "alert certificate required",
    "alert unknown ca",
    "alert access denied",
)


class Lost(Exception):  # noqa: N818  # the end of a connection is no error here
    """A connection is over, or did not come up, and why."""


class Refused(Lost):
    """The platform does not accept who we say we are."""

    def __init__(self, reason: str, *, says_all: bool = False) -> None:
        """`says_all`: the reason says what to do, so that no advice on credentials is to follow it."""
        super().__init__(reason)
        self.says_all = says_all


class EndedError(Exception):
    """What was waited for did not come before the end of the connection."""


class NotAcknowledgedError(Exception):
    """A message was not acknowledged in time; the connection has been cut for it."""


@dataclass(frozen=True, slots=True)
class Message:
    """What was heard. `retained`: the broker kept it, nobody says since when."""

    topic: str
    payload: bytes = field(repr=False)
    retained: bool


@asynccontextmanager
async def connected(
    endpoint: tuple[str, int],
    tls: ssl.SSLContext | None,
    fields: ConnectFields,
    keepalive_s: int,
    version: MqttVersion,
    *,
    connect_s: float,
    leave_s: float,
) -> AsyncIterator["Client"]:
    """A connection that the platform has accepted; it is over behind the block. Raises Refused, Lost."""
    link = Link(tls, PACKET_MAX)
    library = _Library(endpoint, fields, keepalive_s, version, link, connect_s)
    try:
        await _enter(library, link, connect_s)
        try:
            yield Client(library, link)
        finally:
            await _leave(library, leave_s)
    finally:
        await link.close()
        library.hang_up()


class Client:
    """One connection, between the platform's yes and its end."""

    def __init__(self, library: "_Library", link: Link) -> None:
        self.link = link
        self._library = library

    @property
    def is_flooded(self) -> bool:
        """More has come than can be kept until it is heard: some of it is lost."""
        return len(self._library.messages) >= QUEUE_MAX - 1

    async def subscribe(self, topics: list[str]) -> None:
        """Subscribe with QoS 1. No harm if that is refused: the platform delivers unasked."""
        try:
            codes = await self._library.subscribe([(topic, 1) for topic in topics])
        except aiomqtt.MqttError as error:
            log.debug("subscribe: %s", error)
        else:
            log.debug("subscribe: %s", codes)

    async def publish(self, topic: str, payload: bytes, qos: int, patience_s: float) -> None:
        """Publish; with QoS 1 returns when acknowledged. Raises NotAcknowledgedError.

        Does not see the end of the connection: see `unless`.
        """
        try:
            await self._library.publish(topic, payload, qos=qos, timeout=patience_s)
        except aiomqtt.MqttError as error:
            self.link.cut(f"no acknowledgement within {format_duration(patience_s)}")
            raise NotAcknowledgedError from error

    async def hear(self, heard: Callable[[Message], None]) -> Lost:
        """Give each message to `heard` until the connection is over; why it is."""
        try:
            await unless(self.link.ended, self._hear_all(heard))
        except (EndedError, aiomqtt.MqttError):
            self.link.blame(_NOT_MQTT)  # unless the link knows of a better reason
        return _lost(self.link)

    async def _hear_all(self, heard: Callable[[Message], None]) -> None:
        """Hear messages until the library says, by an MqttError, that there are no more."""
        async for message in self._library.messages:
            heard(Message(message.topic.value, bytes(message.payload), message.retain))


class _Library(aiomqtt.Client):
    """The library's client."""

    def __init__(
        self,
        endpoint: tuple[str, int],
        fields: ConnectFields,
        keepalive_s: int,
        version: MqttVersion,
        link: Link,
        connect_s: float,
    ) -> None:
        host, port = endpoint
        is_5 = version is MqttVersion.V5
        super().__init__(
            host,
            port,
            username=fields.username,
            password=fields.password,
            identifier=fields.client_id,
            protocol=aiomqtt.ProtocolVersion.V5 if is_5 else aiomqtt.ProtocolVersion.V311,
            clean_session=None if is_5 else True,  # the library's own word for it in MQTT 5 is a clean first start
            keepalive=keepalive_s,
            timeout=connect_s,
            max_queued_incoming_messages=QUEUE_MAX,
            tls_context=cast("ssl.SSLContext", link),  # only ever asked for wrap_socket and check_hostname
            logger=_library,
        )
        self.is_5 = is_5
        self.host = host
        self._link = link
        # 5 s for the TCP connection is too short for a bad cellular link, and the constructor has no name for it.
        self._client.connect_timeout = connect_s
        # It is replaced, unheard, where the loss comes together with the platform's yes.
        self._disconnected.add_done_callback(
            lambda lost: link.cut(_NOT_MQTT) if not lost.cancelled() and lost.exception() else None
        )

    def keep_pinging(self) -> None:
        """Ping as often as configured at least, also where the server names a longer keep-alive, as MQTT 5 allows."""
        self._client._keepalive = min(self._client.keepalive or self._keepalive, self._keepalive)  # noqa: SLF001

    def hang_up(self) -> None:
        """Close a socket whose end the library does not see, having stopped to read: after a topic that is none."""
        self._client.disconnect()
        self._client.loop_write()

    def _on_disconnect(self, client: Any, userdata: Any, flags: Any, reason_code: Any, properties: Any = None) -> None:
        if flags.is_disconnect_packet_from_server:
            said = _GOODBYES.get(reason_code.value, f"ended by the platform: {str(reason_code).lower()}")
            self._link.blame(said)
        super()._on_disconnect(client, userdata, flags, reason_code, properties)

    def _on_publish(self, client: Any, userdata: Any, mid: int, reason_code: Any, properties: Any) -> None:
        if reason_code.is_failure:
            self._link.cut(f"the platform does not take what it is sent: {str(reason_code).lower()}")
        else:
            super()._on_publish(client, userdata, mid, reason_code, properties)


async def unless(ended: asyncio.Event, work: Coroutine[Any, Any, T]) -> T:
    """What `work` gives. Raises EndedError, and cancels it, if `ended` is set before."""
    working = asyncio.ensure_future(work)
    ending = asyncio.ensure_future(ended.wait())
    try:
        await asyncio.wait((working, ending), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            # What the last packet said may still be on its way through the library.
            await asyncio.wait((working,), timeout=0.1)
        if not working.done():
            raise EndedError
        return working.result()
    finally:
        working.cancel()
        ending.cancel()


async def _enter(library: _Library, link: Link, connect_s: float) -> None:
    """Connect, and be accepted. Raises Refused, Lost."""
    too_late = f"no session within {format_duration(connect_s)}"
    timer = asyncio.get_running_loop().call_later(connect_s, link.cut, too_late)
    try:
        await unless(link.ended, library.__aenter__())
    except MqttConnectError as error:
        raise _refused(error) from error
    except EndedError as error:
        link.blame(_NOT_MQTT)
        raise _lost(link, maybe_only_3=library.is_5) from error
    except aiomqtt.MqttError as error:
        # The library wraps what happened in a text; the exception itself knows more.
        link.blame(words(error.__context__ or error))
        raise _lost(link) from error
    except ValueError as error:  # a host name that cannot be one
        raise Lost(f"{library.host}: {error}") from error
    finally:
        timer.cancel()
    library.keep_pinging()


async def _leave(library: _Library, leave_s: float) -> None:
    """Say DISCONNECT if there is anyone to say it to."""
    library.timeout = leave_s
    try:
        await library.__aexit__(None, None, None)
    except aiomqtt.MqttError:
        pass  # it could not be sent: the link is cut next


def _refused(error: MqttConnectError) -> Lost:
    """CONNACK's code in words that name the keys of the configuration, or that advice on credentials can follow."""
    code: int = getattr(error.rc, "value", -1)
    if code in _REFUSED:
        return Refused(_REFUSED[code], says_all=code == _VERSION)
    return Lost(_NOT_NOW.get(code, f"the platform refuses the connection: {error.rc}"))


def _lost(link: Link, *, maybe_only_3: bool = False) -> Lost:
    """Why the connection is over."""
    if link.fault.startswith("TLS: ") and link.fault.endswith(_CERTIFICATE_ALERTS):
        see = "see device.certificate_file and device.key_file"
        return Refused(f"the platform does not accept this gateway's certificate: {link.fault}; {see}", says_all=True)
    if maybe_only_3 and link.fault in (CLOSED, _NOT_MQTT):
        return Lost(f"{link.fault}; {_ONLY_3}")
    return Lost(link.fault)
