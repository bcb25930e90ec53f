# SPDX-License-Identifier: Apache-2.0
"""The session with the platform: MQTT over TLS or TCP, held for ever.

Rules it keeps:

- Each connection is a new client of the library, so that nothing of an old one is sent again: what we owe the platform
  is remembered elsewhere, and sent anew.
- Messages are taken as they come, with or without SUBSCRIBE: the platform delivers its topics unasked. We subscribe all
  the same, for those that are only compatible, and do not wait for the answer. What is retained, or addressed to
  another device, is not for us.
- Connecting is jittered, backs off exponentially and never exceeds what the platform allows: 5 attempts in a minute.
  Refused credentials wait much longer, because only a person can put them right. The back-off starts over only after a
  minute online, so that two devices with one identity do not throw each other out at full speed; where there certainly
  are two, only after ten.
- Being told who we are (`login`) is an attempt like any other, on a connection that serves nothing else. It is not
  subscribed for: of such a connection the platform expects nothing.
- That another device uses our identity is said where the platform says so, or where it closes the connection soon after
  connecting three times in a row. Once may be anything.
- A connection is over when nothing, not even an answer to a ping, has been heard for 1.5 times the keep-alive; the
  library would notice after twice as long. The same goes for a publication that is not acknowledged.
- A recurring fault is logged when it starts, when it changes, and when it ends. Credentials are never logged.

Left to others: when to ask and what to report (reporter), what an offer means (core), who we are (`login`), the library
(`client`), the connection itself (`link`).
"""

import asyncio
import logging
import math
import random
import time
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar

from otad import ids
from otad.clock import Clock
from otad.cloud import registration, wire
from otad.cloud.client import (
    TAKEN_OVER,
    Client,
    EndedError,
    Lost,
    Message,
    NotAcknowledgedError,
    Refused,
    connected,
    unless,
)
from otad.cloud.cloud import Answer, Block, BlockError, Names, OfflineError, SessionState, SessionView
from otad.cloud.link import CLOSED, words
from otad.cloud.login import Connect, Introduce, Login, Register
from otad.config import MqttVersion
from otad.core.model import DEFAULT_MODULE, ModuleName, Stream
from otad.errors import ConfigurationError
from otad.threads import in_thread
from otad.units import format_duration

T = TypeVar("T")

ASKED_MAX = 64
"""Of so many questions it is remembered which module they were about, should the answer come late."""
SOON_CLOSED_MAX = 3
"""So many connections in a row closed soon after connecting, and there is another device."""

log = logging.getLogger(__name__)

_OWN_IDENTITY = "give each gateway a device_name and a credential of its own"
_RIVAL = f"another device uses this identity: {_OWN_IDENTITY}"
_SUSPECTED = f"{CLOSED} soon after connecting, again and again: does another device use this identity? {_OWN_IDENTITY}"

# The codes of the topic /ext/error.
_ERRORS = {
    427: _RIVAL,
    429: "the platform takes no more messages for now: there were too many",
    520: "the platform has lost the session with this device",
    521: "this device was deleted on the platform: add it there",
    522: "this device is disabled on the platform: enable it there",
    527: _RIVAL,
}


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast and how patient, in seconds. The defaults are what the platform asks for."""

    first_s: float = 2  # back-off after the first loss; doubles
    max_s: float = 120
    refused_first_s: float = 5 * 60  # the same where the credentials are refused
    refused_max_s: float = 60 * 60
    stable_s: float = 60  # online for so long: the back-off starts over
    rival_s: float = 10 * 60  # the same after another device has taken our place
    window_s: float = 60  # within any time of this length ...
    window_attempts: int = 5  # ... no more attempts than this start
    connect_s: float = 30  # from the first packet to the accepted session
    told_s: float = 10  # from there until we are told who we are
    acknowledge_s: float = 20
    block_s: float = 10  # from asking for a block to its arrival
    block_pause_s: float = 0.04  # between two requests at least: 30 messages a second are allowed, and others speak too
    blame_s: float = 10  # what the platform complained of so shortly before the end is its reason
    leave_s: float = 2


class Session:
    """The session of one device; `cloud.Cloud` says what its methods promise.

    `login` is asked for each attempt, so that a corrected secret is noticed. `heard` gets every answer, asked or not,
    in the order of arrival, and must not block; `changed` hears that `view` is another. `clock` is told the time of an
    authenticated platform. `life` tells this process's connections from those of another.
    """

    def __init__(
        self,
        endpoint: tuple[str, int],
        login: Login,
        keepalive_s: float,
        heard: Callable[[Answer], None],
        *,
        version: MqttVersion = MqttVersion.V3_1_1,
        allow_md5: bool = True,
        verify: wire.Verify | None = None,
        clock: Clock | None = None,
        changed: Callable[[], None] = lambda: None,
        life: str = "",
        pace: Pace | None = None,
    ) -> None:
        self.names: Names | None = None
        """Whose session it is, or was last; None before the first. A certificate's names are known only then."""
        self.unanswered = ""
        self._endpoint = endpoint
        self._login = login
        self._keepalive_s = int(keepalive_s)
        self._heard = heard
        self._version = version
        self._allow_md5 = allow_md5
        self._verify = verify
        self._clock = clock
        self._life = life
        self._tell_changed = changed
        self._pace = pace or Pace()

        self._state = SessionState.OFFLINE
        self._since = int(time.time())
        self._reason = "not started"
        self._next_at: float | None = None  # monotonic
        self._changed = asyncio.Event()  # replaced on each change
        self._hurried = asyncio.Event()

        self._current: _Connection | None = None
        self._connections = 0
        self._online_at: float | None = None
        self._requests = 0
        self._asks: dict[str, _Ask] = {}  # those that are waited for, by their request
        self._asked: dict[str, ModuleName] = {}  # the last ones, waited for or not
        self._one_block = asyncio.Lock()
        self._wanted: _Wanted | None = None
        self._next_block_at = 0.0  # monotonic

        self._starts: deque[float] = deque(maxlen=self._pace.window_attempts)
        self._losses = 0  # since the last stable connection
        self._refusals = 0
        self._soon_closed = 0  # in a row
        self._rival = ""  # what shows that another device uses our identity
        self._fault = ""  # the last one that was logged, until the session is stable
        self._owes_word = True  # whether the end of that fault is still to be logged
        self._dropped = ""
        self._complaint = ""  # the last one that was logged

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
                await self._until_the_next()
                self._starts.append(time.monotonic())
                self._become(SessionState.CONNECTING, self._reason if self._losses or self._refusals else "")
                connections = self._connections
                try:
                    names = await self._attempt()
                except Refused as refusal:
                    self._back_off(SessionState.REFUSED, str(refusal))
                except Lost as loss:
                    self._back_off(SessionState.OFFLINE, str(loss))
                else:
                    self._next_at = self._not_before(0)
                    self._become(SessionState.OFFLINE, f"the platform knows us as {names}")
                if connections == self._connections:
                    self._soon_closed = 0  # whoever does not get online was not thrown out
        finally:
            self._next_at = None
            self._become(SessionState.OFFLINE, "stopped")

    def hurry(self) -> None:
        if self._next_at is not None and self._current is None:
            self._next_at = min(self._next_at, self._not_before(0))
            self._hurried.set()

    async def _until_the_next(self) -> None:
        """Until the next attempt is due; somebody may hurry it meanwhile."""
        while (left_s := (self._next_at or 0.0) - time.monotonic()) > 0:
            self._hurried.clear()
            try:
                async with asyncio.timeout(left_s):
                    await self._hurried.wait()
            except TimeoutError:
                pass

    async def connected(self, after: int) -> int:
        while self._current is None or self._current.number <= after:
            await self._changed.wait()
        return self._current.number

    async def ask(self, module: ModuleName, timeout_s: float = 10) -> Answer | None:
        connection = self._online()
        request = self._next_request()
        asked = self._asks[str(request)] = _Ask()
        self._asked[str(request)] = module
        while len(self._asked) > ASKED_MAX:
            del self._asked[next(iter(self._asked))]
        try:
            async with asyncio.timeout(timeout_s):
                await self._publish(connection, connection.topics.get, wire.get(request, module))
                await connection.unless_lost(asked.answered.wait())
        except TimeoutError:
            pass  # the answer may be there and the acknowledgement not
        finally:
            del self._asks[str(request)]
        self.unanswered = asked.problem
        return asked.answer

    async def block(self, stream: Stream, offset: int, size: int) -> Block:
        async with self._one_block:
            await asyncio.sleep(self._next_block_at - time.monotonic())
            connection = self._online()
            request = self._next_request()
            wanted = self._wanted = _Wanted(str(request), offset, size)
            self._next_block_at = time.monotonic() + self._pace.block_pause_s
            try:
                async with asyncio.timeout(self._pace.block_s):
                    payload = wire.file_request(request, stream, offset, size)
                    # QoS 0: the block itself acknowledges the request, and QoS 1 is allowed a third as often.
                    await self._publish(connection, connection.topics.download, payload, qos=0)
                    await connection.unless_lost(wanted.answered.wait())
            except TimeoutError as error:
                raise BlockError(f"no block within {format_duration(self._pace.block_s)}") from error
            finally:
                self._wanted = None
        if isinstance(wanted.answer, BlockError):
            raise wanted.answer
        assert wanted.answer is not None
        return wanted.answer

    async def inform(self, module: ModuleName, version: str) -> None:
        payload = wire.inform(self._next_request(), module, version)
        connection = self._online()
        await self._publish(connection, connection.topics.inform, payload)

    async def step(self, module: ModuleName, step: int, desc: str) -> None:
        payload = wire.progress(self._next_request(), module, step, desc)
        connection = self._online()
        await self._publish(connection, connection.topics.progress, payload)

    # One attempt.

    async def _attempt(self) -> Names:
        """Hold one connection until it ends, which is by Lost or Refused; or be told who we are."""
        try:
            who = await in_thread(self._login.next)
        except ConfigurationError as error:
            raise Refused(str(error)) from error
        if isinstance(who, Connect):
            try:
                await self._connect_and_listen(who)
            except Refused as refusal:
                self._login.refused()
                raise _advised(refusal, who.hint) from refusal
        return await self._be_told(who)

    async def _connect_and_listen(self, who: Connect) -> NoReturn:
        async with self._connect(who) as client:
            await self._listen(_Connection(self._connections + 1, client, who.names))

    async def _be_told(self, who: Introduce | Register) -> Names:
        """Hear who we are, and store it. Raises Refused, Lost."""
        if isinstance(who, Introduce):
            told, source = await self._introduce(who), who.topic
        else:
            told, source = await registration.post(who.endpoint, who.form, who.tls), who.endpoint[0]
        try:
            return await in_thread(self._login.learn, who, told)
        except wire.Unattributable as error:
            raise Lost(f"{source}: {error}") from error
        except OSError as error:
            raise Lost(f"what the platform told us cannot be stored: {words(error)}") from error

    async def _introduce(self, who: Introduce) -> bytes:
        told: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        def heard(message: Message) -> None:
            if message.topic == who.topic and not told.done():
                told.set_result(message.payload)

        try:
            async with self._connect(who) as client, asyncio.timeout(self._pace.told_s):
                hearing = asyncio.ensure_future(client.hear(heard))
                try:
                    await asyncio.wait((told, hearing), return_when=asyncio.FIRST_COMPLETED)
                    if not told.done():
                        raise hearing.result()
                    return told.result()
                finally:
                    hearing.cancel()
        except TimeoutError as error:
            raise Lost(f"{who.topic}: nothing within {format_duration(self._pace.told_s)}") from error
        except Refused as refusal:
            raise _advised(refusal, who.hint) from refusal

    def _connect(self, who: Connect | Introduce) -> AbstractAsyncContextManager[Client]:
        pace = self._pace
        return connected(
            self._endpoint,
            who.tls,
            who.fields,
            self._keepalive_s,
            self._version,
            connect_s=pace.connect_s,
            leave_s=pace.leave_s,
        )

    # One connection.

    async def _listen(self, connection: "_Connection") -> NoReturn:
        """Be online until the connection is lost. Raises Lost."""
        client = connection.client
        async with asyncio.TaskGroup() as group:
            others = [
                group.create_task(client.subscribe(connection.heard_topics), name="session: subscribe"),
                group.create_task(self._watch(connection), name="session: watch"),
                group.create_task(self._settle(), name="session: settle"),
                group.create_task(self._learn_time(connection), name="session: time"),
            ]
            # SUBSCRIBE leaves before anything that those who wait for the connection now publish.
            self._go_online(connection)
            try:
                ended = await client.hear(lambda message: self._hear(connection, message))
            finally:
                self._go_offline(connection)
                for other in others:
                    other.cancel()
        raise self._loss(connection, ended)

    async def _watch(self, connection: "_Connection") -> None:
        """Cut a connection on which nothing is heard any more: a ping is answered within the keep-alive's half."""
        link = connection.client.link
        limit_s = 1.5 * self._keepalive_s
        left_s = limit_s
        while left_s > 0:
            await asyncio.sleep(left_s)
            left_s = link.heard_at + limit_s - time.monotonic()
        link.cut(f"nothing heard for {format_duration(limit_s)}")

    async def _settle(self) -> None:
        await asyncio.sleep(self._pace.rival_s if self._rival else self._pace.stable_s)
        self._losses = self._refusals = self._soon_closed = 0
        self._fault = self._complaint = ""
        self._say_online()
        if self._rival:
            self._rival = ""
            self._become(SessionState.ONLINE, "")

    async def _learn_time(self, connection: "_Connection") -> None:
        """Ask for the time where somebody wants to know it, and what is answered can be believed."""
        valid_until = connection.client.link.valid_until
        if self._clock is None or not self._clock.wants_time or valid_until is None:
            return
        question = connection.time = _TimeQuestion()
        try:
            payload = wire.ntp_request(question.sent_ms)
            await self._publish(connection, connection.topics.ntp_request, payload, qos=0)
        except OfflineError:
            return  # asked again on the next connection
        await question.answered.wait()
        await in_thread(self._clock.learned, question.now_s, valid_until)

    # What is heard.

    def _hear(self, connection: "_Connection", message: Message) -> None:
        if connection.client.is_flooded:
            self._drop("more than can be listened to: some are lost")
        topics, topic, payload = connection.topics, message.topic, message.payload
        try:
            if topic not in connection.heard_topics:
                log.debug("message dropped: %r: not for us", topic)
            elif message.retained:
                self._drop(f"{topic}: retained, and so of unknown age")
            elif topic == topics.upgrade:
                self._heard(wire.parse_upgrade(payload, allow_md5=self._allow_md5, verify=self._verify))
            elif topic == topics.get_reply:
                self._hear_reply(connection, payload)
            elif topic == topics.download_reply:
                self._hear_block(payload)
            elif topic == topics.error:
                self._hear_complaint(connection, payload)
            elif connection.time is not None:
                connection.time.hear(*wire.parse_ntp(payload))
        except wire.Unattributable as error:
            self._drop(f"{topic}: {error}")

    def _hear_reply(self, connection: "_Connection", payload: bytes) -> None:
        reply = wire.parse_get_reply(
            payload,
            f"{self._life}{connection.number}",
            self._module_asked,
            allow_md5=self._allow_md5,
            verify=self._verify,
        )
        if reply.answer is None:
            self._drop(f"{connection.topics.get_reply}: {reply.problem}")
        else:
            self._heard(reply.answer)
        if asked := self._asks.get(self._request_of(reply.id)):
            asked.answer, asked.problem = reply.answer, reply.problem
            asked.answered.set()

    def _request_of(self, reply: str) -> str:
        """The request that a reply of this id is to. Where no request had this id, it is to the only one open.

        A reply to a request that is given up must not pass for one to the next: that may be about another module.
        """
        if len(self._asks) == 1 and not self._was_sent(reply):
            return next(iter(self._asks))
        return reply

    def _was_sent(self, request: str) -> bool:
        return request.isdecimal() and 1 <= int(request) <= self._requests

    def _module_asked(self, reply: str) -> ModuleName:
        request = self._request_of(reply)
        if request not in self._asked and self._was_sent(request):
            raise wire.Unattributable(f"id {request}: nothing is offered, and it is not known any more for what")
        return self._asked.get(request, DEFAULT_MODULE)

    def _hear_block(self, payload: bytes) -> None:
        if self._wanted is None:
            log.debug("a block that nobody waits for")
            return
        try:
            reply = wire.parse_block(payload)
        except wire.Unattributable as error:
            self._wanted.settle(BlockError(f"damaged: {error}"))
        else:
            self._wanted.hear(reply)

    def _hear_complaint(self, connection: "_Connection", payload: bytes) -> None:
        code, said = wire.parse_error(payload)
        complaint = _ERRORS.get(code or 0, f"the platform complains: {said} (code {code})")
        log.log(logging.DEBUG if complaint == self._complaint else logging.WARNING, "%s", complaint)
        self._complaint = connection.complaint = complaint
        connection.complained_at = time.monotonic()

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

    async def _publish(self, connection: "_Connection", topic: str, payload: bytes, qos: int = 1) -> None:
        """Publish; with QoS 1 returns when acknowledged. Raises OfflineError."""
        try:
            await connection.unless_lost(connection.client.publish(topic, payload, qos, self._pace.acknowledge_s))
        except NotAcknowledgedError as error:
            raise OfflineError(connection.client.link.fault) from error

    # What state we are in.

    def _go_online(self, connection: "_Connection") -> None:
        self._current = connection
        self._connections = connection.number
        self.names = connection.names
        self._dropped = ""
        if self._owes_word:
            self._say_online()
        self._become(SessionState.ONLINE, self._rival)

    def _go_offline(self, connection: "_Connection") -> None:
        self._current = None
        self._online_at = connection.client.link.heard_at
        connection.lost.set()

    def _say_online(self) -> None:
        if self._owes_word:
            log.info("session with %s:%d is up", *self._endpoint, extra={"MESSAGE_ID": ids.SESSION})
        self._owes_word = False

    def _loss(self, connection: "_Connection", ended: Lost) -> Lost:
        """Why the connection is over, for those who know what it was like."""
        reason, now = str(ended), time.monotonic()
        if reason == TAKEN_OVER:
            reason = _RIVAL
        elif now - connection.complained_at < self._pace.blame_s:
            reason = connection.complaint
        was_soon_closed = reason == CLOSED and now - connection.began < self._pace.stable_s
        self._soon_closed = self._soon_closed + 1 if was_soon_closed else 0
        if self._soon_closed >= SOON_CLOSED_MAX:
            reason = _SUSPECTED
        if reason in (_RIVAL, _SUSPECTED):
            self._rival = reason
        return Lost(reason)

    def _back_off(self, state: SessionState, reason: str) -> None:
        pace = self._pace
        if state is SessionState.REFUSED:
            delay_s = _delay_s(self._refusals, pace.refused_first_s, pace.refused_max_s)
            self._refusals += 1
        else:
            delay_s = _delay_s(self._losses, pace.first_s, pace.max_s)
            self._losses += 1
        self._next_at = self._not_before(delay_s)
        if reason == self._fault:
            log.debug("session with %s:%d: %s", *self._endpoint, reason)
        else:
            log.warning("session with %s:%d: %s", *self._endpoint, reason, extra={"MESSAGE_ID": ids.SESSION})
            self._owes_word = True
        self._fault = reason
        self._become(state, reason)

    def _not_before(self, delay_s: float) -> float:
        """When the next attempt may start, at least so much from now (monotonic)."""
        pace, soonest = self._pace, time.monotonic() + delay_s
        return max(soonest, self._starts[0] + pace.window_s) if len(self._starts) == pace.window_attempts else soonest

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


@dataclass(slots=True)
class _Ask:
    """A `firmware/get` under way."""

    answer: Answer | None = None
    problem: str = ""  # what the platform says instead of an answer
    answered: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(slots=True)
class _Wanted:
    """The block that is waited for."""

    id: str
    offset: int
    size: int
    answer: Block | BlockError | None = None
    answered: asyncio.Event = field(default_factory=asyncio.Event)

    def hear(self, reply: wire.BlockReply) -> None:
        """Take it if it is the one: late ones and doubles come too, when a question was asked again."""
        if reply.id not in ("", self.id):
            log.debug("a block that nobody waits for any more")
        elif reply.code != 200:
            self.settle(BlockError(f"the platform refuses the block: code {reply.code}: {reply.message}", refused=True))
        elif reply.offset != self.offset:
            log.debug("a block of another offset")
        elif len(reply.content) > self.size:
            self.settle(BlockError(f"damaged: {len(reply.content)} bytes, and {self.size} were asked for"))
        else:
            self.settle(Block(reply.content, reply.total))

    def settle(self, answer: Block | BlockError) -> None:
        self.answer = answer
        self.answered.set()


@dataclass(slots=True)
class _TimeQuestion:
    """What time it is, asked once."""

    sent_ms: int = field(default_factory=lambda: round(time.time() * 1000))
    asked_at: float = field(default_factory=time.monotonic)
    now_s: float = 0
    answered: asyncio.Event = field(default_factory=asyncio.Event)

    def hear(self, sent_ms: int, received_ms: int, answered_ms: int) -> None:
        """Take the answer, if it is one to this question: half of the way there and back is added."""
        if sent_ms == self.sent_ms and not self.answered.is_set():
            # Protocol section 5. Our clock may be set meanwhile; what has passed is asked of the other one.
            passed_ms = (time.monotonic() - self.asked_at) * 1000
            self.now_s = (received_ms + answered_ms + passed_ms) / 2000
            self.answered.set()


@dataclass(slots=True)
class _Connection:
    """One connection, from the platform's yes to its end."""

    number: int
    client: Client
    names: Names
    topics: wire.Topics = field(init=False)
    lost: asyncio.Event = field(default_factory=asyncio.Event)
    began: float = field(default_factory=time.monotonic)
    complaint: str = ""  # the platform's last one
    complained_at: float = -math.inf
    time: _TimeQuestion | None = None

    def __post_init__(self) -> None:
        self.topics = wire.Topics.of(self.names.product_key, self.names.device_name)

    @property
    def heard_topics(self) -> list[str]:
        """At most 10 may stand in one SUBSCRIBE."""
        topics = self.topics
        return [topics.upgrade, topics.get_reply, topics.download_reply, topics.error, topics.ntp_response]

    async def unless_lost(self, work: Coroutine[Any, Any, T]) -> T:
        """What `work` gives. Raises OfflineError if the connection is lost before."""
        try:
            return await unless(self.lost, work)
        except EndedError as error:
            raise OfflineError(self.client.link.fault or "session stopped") from error


def _advised(refusal: Refused, hint: str) -> Refused:
    return refusal if refusal.says_all else Refused(f"{refusal}: {hint}")


def _delay_s(earlier: int, first_s: float, max_s: float) -> float:
    """Back-off after so many earlier ones: doubles from `first_s` to `max_s`, and up to half as much again."""
    base_s = min(first_s * 2.0 ** min(earlier, 30), max_s / 1.5)
    return base_s * random.uniform(1, 1.5)  # noqa: S311  # spreads a fleet, guards nothing
