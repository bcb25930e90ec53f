# SPDX-License-Identifier: Apache-2.0
"""The session with the platform: MQTT 3.1.1 over TLS or TCP, held for ever. The only file on the gateway that knows the
MQTT library.

Rules it keeps:

- Each connection is a new client of the library, so that nothing of an old one is sent again: what we owe the platform
  is remembered elsewhere, and sent anew.
- Messages are taken as they come, with or without SUBSCRIBE: the platform delivers its topics unasked. We subscribe all
  the same, for those that are only compatible, and do not wait for the answer. What is retained, or addressed to
  another device, is not for us.
- Connecting is jittered, backs off exponentially and never exceeds what the platform allows: 5 attempts in a minute.
  Refused credentials wait much longer, because only a person can put them right. The back-off starts over only after a
  minute online, so that two devices with one identity do not throw each other out at full speed.
- A connection is over when nothing, not even an answer to a ping, has been heard for 1.5 times the keep-alive; the
  library would notice after twice as long. The same goes for a publication that is not acknowledged.
- A recurring fault is logged when it starts, when it changes, and when it ends. Credentials are never logged.

Left to others: when to ask and what to report (reporter), what an offer means (core), the connection itself (`link`).

The library is `aiomqtt` 2.5. Worth knowing: it connects in a thread that cannot be canceled (`Link.cut` ends it); it
does not wake a pending `publish` or `__aenter__` when the connection is lost, and forgets a loss that comes together
with the platform's yes (`_unless` watches the link instead); `__aexit__` may raise and so swallow a cancellation
(`_leave` catches that); it acknowledges QoS 1 messages before we have seen them, which is why the platform is asked
again on every connect.
"""

import asyncio
import logging
import random
import ssl
import time
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import aiomqtt
from aiomqtt.exceptions import MqttConnectError

from otad import ids
from otad.cloud import wire
from otad.cloud.cloud import Answer, OfflineError, SessionState, SessionView
from otad.cloud.credentials import ConnectFields
from otad.cloud.link import CLOSED, Link, words
from otad.core.model import DEFAULT_MODULE, ModuleName
from otad.errors import ConfigurationError
from otad.units import format_duration

T = TypeVar("T")

QUEUE_MAX = 16
PACKET_MAX = wire.PAYLOAD_MAX + 1024  # with topic and packet id

log = logging.getLogger(__name__)

# The library logs each lost connection and each full queue as errors. We say it in our words, and once.
_library = logging.getLogger(f"{__name__}.library")
_library.setLevel(logging.CRITICAL)

_NOT_MQTT = "what is sent is not MQTT"

# What it makes of CONNACK's codes 4, 5, 2 and 3.
_BAD_PASSWORD, _NOT_AUTHORIZED, _BAD_CLIENT_ID, _UNAVAILABLE = 134, 135, 133, 136


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast and how patient, in seconds. The defaults are what the platform asks for."""

    first_s: float = 2  # back-off after the first loss; doubles
    max_s: float = 120
    refused_first_s: float = 5 * 60  # the same where the credentials are refused
    refused_max_s: float = 60 * 60
    stable_s: float = 60  # online for so long: the back-off starts over
    window_s: float = 60  # within any time of this length ...
    window_attempts: int = 5  # ... no more attempts than this start
    connect_s: float = 30  # from the first packet to the accepted session
    acknowledge_s: float = 20
    leave_s: float = 2


class Session:
    """The session of one device; `cloud.Cloud` says what its methods promise.

    `fields` is called for each attempt, so that a corrected secret is noticed. `heard` gets every answer, asked or not,
    in the order of arrival, and must not block; `changed` hears that `view` is another. `life` tells this process's
    connections from those of another.
    """

    def __init__(
        self,
        endpoint: tuple[str, int],
        tls: ssl.SSLContext | None,
        keepalive_s: float,
        fields: Callable[[], ConnectFields],
        product_key: str,
        device_name: str,
        heard: Callable[[Answer], None],
        *,
        allow_md5: bool = True,
        changed: Callable[[], None] = lambda: None,
        life: str = "",
        pace: Pace | None = None,
    ) -> None:
        self._endpoint = endpoint
        self._tls = tls
        self._keepalive_s = int(keepalive_s)
        self._fields = fields
        self._topics = wire.Topics.of(product_key, device_name)
        self._heard = heard
        self._allow_md5 = allow_md5
        self._life = life
        self._tell_changed = changed
        self._pace = pace or Pace()

        self._state = SessionState.OFFLINE
        self._since = int(time.time())
        self._reason = "not started"
        self._next_at: float | None = None  # monotonic
        self._changed = asyncio.Event()  # replaced on each change

        self._current: _Connection | None = None
        self._connections = 0
        self._online_at: float | None = None
        self._requests = 0
        self._asks: dict[str, _Ask] = {}

        self._starts: deque[float] = deque(maxlen=self._pace.window_attempts)
        self._losses = 0  # since the last stable connection
        self._refusals = 0
        self._fault = ""  # the last one that was logged, until the session is stable
        self._owes_word = True  # whether the end of that fault is still to be logged
        self._dropped = ""

    @property
    def view(self) -> SessionView:
        return SessionView(self._state, self._since, self._detail())

    @property
    def connection(self) -> int:
        return self._connections

    @property
    def online_at(self) -> float | None:
        return time.monotonic() if self._current else self._online_at

    async def run(self) -> None:
        try:
            while True:
                await asyncio.sleep(max(0.0, (self._next_at or 0.0) - time.monotonic()))
                self._starts.append(time.monotonic())
                self._become(SessionState.CONNECTING, self._reason if self._losses or self._refusals else "")
                try:
                    await self._connect_and_listen()
                except _Refused as refusal:
                    self._back_off(SessionState.REFUSED, str(refusal))
                except _Lost as loss:
                    self._back_off(SessionState.OFFLINE, str(loss))
        finally:
            self._next_at = None
            self._become(SessionState.OFFLINE, "stopped")

    async def connected(self, after: int) -> int:
        while self._current is None or self._current.number <= after:
            await self._changed.wait()
        return self._current.number

    async def lost(self, connection: int) -> None:
        while self._current is not None and self._current.number == connection:
            await self._changed.wait()

    async def ask(self, module: ModuleName, timeout_s: float = 10) -> Answer | None:
        connection = self._online()
        request = self._next_request()
        asked = self._asks[str(request)] = _Ask(module)
        try:
            async with asyncio.timeout(timeout_s):
                await self._publish(connection, self._topics.get, wire.get(request, module))
                await connection.unless_lost(asked.answered.wait())
        except TimeoutError:
            pass  # the answer may be there and the acknowledgement not
        finally:
            del self._asks[str(request)]
        return asked.answer

    async def inform(self, module: ModuleName, version: str) -> None:
        payload = wire.inform(self._next_request(), module, version)
        await self._publish(self._online(), self._topics.inform, payload)

    async def step(self, module: ModuleName, step: int, desc: str) -> None:
        payload = wire.progress(self._next_request(), module, step, desc)
        await self._publish(self._online(), self._topics.progress, payload)

    # One connection.

    async def _connect_and_listen(self) -> None:
        """Hold one connection until it ends, which is always by an exception."""
        try:
            fields = self._fields()
        except ConfigurationError as error:
            raise _Refused(str(error)) from error
        link = Link(self._tls, PACKET_MAX)
        client = _Client(self._endpoint, fields, self._keepalive_s, link, self._pace.connect_s)
        try:
            await self._enter(client, link)
            try:
                await self._listen(_Connection(self._connections + 1, client, link))
            finally:
                await self._leave(client)
        finally:
            await link.close()
            client.hang_up()

    async def _enter(self, client: "_Client", link: Link) -> None:
        too_late = f"no session within {format_duration(self._pace.connect_s)}"
        timer = asyncio.get_running_loop().call_later(self._pace.connect_s, link.cut, too_late)
        try:
            await _unless(link.ended, client.__aenter__())
        except MqttConnectError as error:
            raise _refused(error) from error
        except _EndedError as error:
            raise _Lost(link.fault or _NOT_MQTT) from error
        except aiomqtt.MqttError as error:
            # The library wraps what happened in a text; the exception itself knows more.
            raise _Lost(link.fault or words(error.__context__ or error)) from error
        except ValueError as error:  # a host name that cannot be one
            raise _Lost(f"{self._endpoint[0]}: {error}") from error
        finally:
            timer.cancel()

    async def _listen(self, connection: "_Connection") -> None:
        """Be online until the connection is lost. Raises _Lost."""
        async with asyncio.TaskGroup() as group:
            others = [
                group.create_task(self._subscribe(connection.client), name="session: subscribe"),
                group.create_task(self._watch(connection.link), name="session: watch"),
                group.create_task(self._settle(), name="session: settle"),
            ]
            # SUBSCRIBE leaves before anything that those who wait for the connection now publish.
            self._go_online(connection)
            try:
                await _unless(connection.link.ended, self._hear_all(connection))
            except (_EndedError, aiomqtt.MqttError):
                connection.link.blame(_NOT_MQTT)  # unless the link knows of a better reason
            finally:
                self._go_offline(connection)
                for other in others:
                    other.cancel()
        raise _Lost(self._loss(connection))

    async def _subscribe(self, client: "_Client") -> None:
        try:
            codes = await client.subscribe([(self._topics.upgrade, 1), (self._topics.get_reply, 1)])
        except aiomqtt.MqttError as error:
            log.debug("subscribe: %s", error)  # no harm: the platform delivers unasked
        else:
            log.debug("subscribe: %s", codes)

    async def _watch(self, link: Link) -> None:
        """Cut a connection on which nothing is heard any more: a ping is answered within the keep-alive's half."""
        limit_s = 1.5 * self._keepalive_s
        left_s = limit_s
        while left_s > 0:
            await asyncio.sleep(left_s)
            left_s = link.heard_at + limit_s - time.monotonic()
        link.cut(f"nothing heard for {format_duration(limit_s)}")

    async def _settle(self) -> None:
        await asyncio.sleep(self._pace.stable_s)
        self._losses = self._refusals = 0
        self._fault = ""
        self._say_online()

    async def _leave(self, client: "_Client") -> None:
        """Say DISCONNECT if there is anyone to say it to."""
        client.timeout = self._pace.leave_s
        try:
            await client.__aexit__(None, None, None)
        except aiomqtt.MqttError:
            pass  # it could not be sent: the link is cut next

    # What is heard.

    async def _hear_all(self, connection: "_Connection") -> None:
        """Hear messages until the library says, by an MqttError, that there are no more."""
        async for message in connection.client.messages:
            if len(connection.client.messages) >= QUEUE_MAX - 1:
                self._drop("more than can be listened to: some are lost")
            self._hear(connection, message)

    def _hear(self, connection: "_Connection", message: aiomqtt.Message) -> None:
        topic, payload = message.topic.value, bytes(message.payload)
        try:
            if topic not in (self._topics.upgrade, self._topics.get_reply):
                log.debug("message dropped: %r: not for us", topic)
            elif message.retain:
                self._drop(f"{topic}: retained, and so of unknown age")
            elif topic == self._topics.upgrade:
                self._heard(wire.parse_upgrade(payload, allow_md5=self._allow_md5))
            else:
                self._hear_reply(connection, payload)
        except wire.Unattributable as error:
            self._drop(f"{topic}: {error}")

    def _hear_reply(self, connection: "_Connection", payload: bytes) -> None:
        reply = wire.parse_get_reply(
            payload, f"{self._life}{connection.number}", self._module_asked, allow_md5=self._allow_md5
        )
        if reply.answer is None:
            self._drop(f"{self._topics.get_reply}: {reply.problem}")
        else:
            self._heard(reply.answer)
        if asked := self._ask_of(reply.id):
            asked.answer = reply.answer
            asked.answered.set()

    def _ask_of(self, request: str) -> "_Ask | None":
        """What this is the reply to; the only thing asked, whatever id the reply carries."""
        if request not in self._asks and len(self._asks) == 1:
            return next(iter(self._asks.values()))
        return self._asks.get(request)

    def _module_asked(self, request: str) -> ModuleName:
        asked = self._ask_of(request)
        return asked.module if asked else DEFAULT_MODULE

    def _drop(self, what: str) -> None:
        """Say once what is not listened to, however often it comes."""
        log.log(logging.DEBUG if what == self._dropped else logging.WARNING, "message dropped: %s", what)
        self._dropped = what

    # What is said.

    def _online(self) -> "_Connection":
        if self._current is None:
            raise OfflineError(self._detail() or str(self._state))
        return self._current

    def _next_request(self) -> int:
        self._requests += 1
        return self._requests

    async def _publish(self, connection: "_Connection", topic: str, payload: bytes) -> None:
        """Publish with QoS 1; returns when acknowledged."""
        patience_s = self._pace.acknowledge_s
        try:
            await connection.unless_lost(connection.client.publish(topic, payload, qos=1, timeout=patience_s))
        except aiomqtt.MqttError as error:
            connection.link.cut(f"no acknowledgement within {format_duration(patience_s)}")
            raise OfflineError(connection.link.fault) from error

    # What state we are in.

    def _go_online(self, connection: "_Connection") -> None:
        self._current = connection
        self._connections = connection.number
        self._dropped = ""
        if self._owes_word:
            self._say_online()
        self._become(SessionState.ONLINE, "")

    def _go_offline(self, connection: "_Connection") -> None:
        self._current = None
        self._online_at = connection.link.heard_at
        connection.lost.set()

    def _say_online(self) -> None:
        if self._owes_word:
            log.info("session with %s:%d is up", *self._endpoint, extra={"MESSAGE_ID": ids.SESSION})
        self._owes_word = False

    def _loss(self, connection: "_Connection") -> str:
        fault = connection.link.fault
        if fault == CLOSED and time.monotonic() - connection.began < self._pace.stable_s:
            return f"{fault} soon after connecting; does another device use this identity?"
        return fault

    def _back_off(self, state: SessionState, reason: str) -> None:
        pace = self._pace
        if state is SessionState.REFUSED:
            delay_s = _delay_s(self._refusals, pace.refused_first_s, pace.refused_max_s)
            self._refusals += 1
        else:
            delay_s = _delay_s(self._losses, pace.first_s, pace.max_s)
            self._losses += 1
        self._next_at = time.monotonic() + delay_s
        if len(self._starts) == pace.window_attempts:
            self._next_at = max(self._next_at, self._starts[0] + pace.window_s)
        if reason == self._fault:
            log.debug("session with %s:%d: %s", *self._endpoint, reason)
        else:
            log.warning("session with %s:%d: %s", *self._endpoint, reason, extra={"MESSAGE_ID": ids.SESSION})
            self._owes_word = True
        self._fault = reason
        self._become(state, reason)

    def _become(self, state: SessionState, reason: str) -> None:
        self._state, self._reason, self._since = state, reason, int(time.time())
        self._tell_changed()
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _detail(self) -> str:
        match self._state:
            case SessionState.OFFLINE | SessionState.REFUSED if self._next_at is not None:
                left_s = round(max(0.0, self._next_at - time.monotonic()))
                return f"next attempt in {format_duration(left_s)}: {self._reason}"
            case SessionState.CONNECTING if self._reason:
                return f"last attempt: {self._reason}"
            case _:
                return self._reason


class _Lost(Exception):  # noqa: N818  # the end of a connection is no error here
    """A connection is over, or did not come up, and why."""


class _Refused(_Lost):
    """The platform does not accept who we say we are."""


class _EndedError(Exception):
    """What was waited for did not come before the end of the connection."""


@dataclass(slots=True)
class _Ask:
    """A `firmware/get` under way."""

    module: ModuleName
    answer: Answer | None = None
    answered: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(frozen=True, slots=True)
class _Connection:
    """One connection, from the platform's yes to its end."""

    number: int
    client: "_Client"
    link: Link
    lost: asyncio.Event = field(default_factory=asyncio.Event)
    began: float = field(default_factory=time.monotonic)

    async def unless_lost(self, work: Coroutine[Any, Any, T]) -> T:
        """What `work` gives. Raises OfflineError if the connection is lost before."""
        try:
            return await _unless(self.lost, work)
        except _EndedError as error:
            raise OfflineError(self.link.fault or "session stopped") from error


class _Client(aiomqtt.Client):
    """The library's client for one connection."""

    def __init__(
        self, endpoint: tuple[str, int], fields: ConnectFields, keepalive_s: int, link: Link, connect_s: float
    ) -> None:
        host, port = endpoint
        super().__init__(
            host,
            port,
            username=fields.username,
            password=fields.password,
            identifier=fields.client_id,
            protocol=aiomqtt.ProtocolVersion.V311,
            clean_session=True,
            keepalive=keepalive_s,
            timeout=connect_s,
            max_queued_incoming_messages=QUEUE_MAX,
            tls_context=cast("ssl.SSLContext", link),  # only ever asked for wrap_socket and check_hostname
            logger=_library,
        )
        # 5 s for the TCP connection is too short for a bad cellular link, and the constructor has no name for it.
        self._client.connect_timeout = connect_s
        # It is replaced, unheard, where the loss comes together with the platform's yes.
        self._disconnected.add_done_callback(
            lambda lost: link.cut(_NOT_MQTT) if not lost.cancelled() and lost.exception() else None
        )

    def hang_up(self) -> None:
        """Close a socket whose end the library does not see, having stopped to read: after a topic that is none."""
        self._client.disconnect()
        self._client.loop_write()


def _refused(error: MqttConnectError) -> _Lost:
    """CONNACK's code in words that name the keys of the configuration."""
    code = getattr(error.rc, "value", error.rc)
    if code in (_BAD_PASSWORD, _NOT_AUTHORIZED):
        what = "bad user name or password" if code == _BAD_PASSWORD else "not authorised"
        keys = "device.product_key, device.device_name and the device secret"
        return _Refused(f"{what}: check {keys}, and that the platform has this device enabled")
    if code == _BAD_CLIENT_ID:
        return _Lost("the platform does not accept the client id: check device.client_id")
    if code == _UNAVAILABLE:
        return _Lost("the platform says that it is unavailable")
    return _Lost(f"the platform refuses the connection: {error.rc}")


async def _unless(ended: asyncio.Event, work: Coroutine[Any, Any, T]) -> T:
    """What `work` gives. Raises _EndedError, and cancels it, if `ended` is set before."""
    working = asyncio.ensure_future(work)
    ending = asyncio.ensure_future(ended.wait())
    try:
        await asyncio.wait((working, ending), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            # What the last packet said may still be on its way through the library.
            await asyncio.wait((working,), timeout=0.1)
        if not working.done():
            raise _EndedError
        return working.result()
    finally:
        working.cancel()
        ending.cancel()


def _delay_s(earlier: int, first_s: float, max_s: float) -> float:
    """Back-off after so many earlier ones: doubles from `first_s` to `max_s`, and up to half as much again."""
    base_s = min(first_s * 2.0 ** min(earlier, 30), max_s / 1.5)
    return base_s * random.uniform(1, 1.5)  # noqa: S311  # spreads a fleet, guards nothing
