# SPDX-License-Identifier: Apache-2.0
"""The session against a real broker, and against peers that do what no real broker would."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiomqtt
import pytest

from otad.cloud.cloud import Answer, Nothing, Offered, OfflineError, SessionState, Unusable
from otad.cloud.credentials import ConnectFields, connect_fields
from otad.cloud.link import default_context
from otad.cloud.session import Pace, Session
from otad.cloud.wire import Topics
from otad.core.model import DEFAULT_MODULE, Digest, DigestMethod, Identity, ModuleName, Notice
from otad.errors import Code, ConfigurationError
from tests.broker import Mosquitto, free_port, make_certificate

MCU = ModuleName("MCU")
TOPICS = Topics.of("a1", "gw001")
SECRET = "s3cr3t"
SHA256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
PACKAGE = {"size": 5, "version": "1.1", "url": "https://a/b?auth_key=1", "sign": SHA256, "signMethod": "SHA256"}
NOTICE = Notice(Identity(DEFAULT_MODULE, "1.1", 5, Digest(DigestMethod.SHA256, SHA256)), "https://a/b?auth_key=1")
FAST = Pace(
    first_s=0.01, max_s=0.05, refused_first_s=0.01, refused_max_s=0.05, window_s=0.2, connect_s=5, acknowledge_s=5
)
LIMIT_S = 5

Heard = asyncio.Queue[Answer]
Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def push(id_: Any = 7, **fields: Any) -> bytes:
    return json.dumps({"code": "1000", "data": {**PACKAGE, **fields}, "id": id_}).encode()


def fields(secret: str = SECRET, *, secure: bool = False) -> ConnectFields:
    return connect_fields("a1", "gw001", secret, secure=secure)


class Gateway:
    """A session that runs, and what it has heard."""

    def __init__(self, port: int, host: str = "127.0.0.1", **more: Any) -> None:
        self.heard: Heard = asyncio.Queue()
        arguments: dict[str, Any] = {
            "tls": None,
            "keepalive_s": 60,
            "fields": fields,
            "product_key": "a1",
            "device_name": "gw001",
            "heard": self.heard.put_nowait,
            "pace": FAST,
        }
        self.session = Session((host, port), **{**arguments, **more})

    async def next(self) -> Answer:
        async with asyncio.timeout(LIMIT_S):
            return await self.heard.get()

    async def online(self, after: int = 0) -> int:
        async with asyncio.timeout(LIMIT_S):
            return await self.session.connected(after)

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


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Mosquitto]:
    async with Mosquitto(tmp_path) as running:
        yield running


@asynccontextmanager
async def platform(broker: Mosquitto, answer: Callable[[dict[str, Any]], bytes] | None = None) -> AsyncIterator[Any]:
    """A peer in the platform's role: what it receives goes to a queue, and `firmware/get` is answered."""
    received: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()
    async with aiomqtt.Client("127.0.0.1", broker.port, identifier="platform") as client:

        async def listen() -> None:
            async for message in client.messages:
                payload = bytes(message.payload)
                received.put_nowait((message.topic.value, payload))
                if message.topic.value == TOPICS.get and answer is not None:
                    await client.publish(TOPICS.get_reply, answer(json.loads(payload)))

        for topic in (TOPICS.inform, TOPICS.progress, TOPICS.get):
            await client.subscribe(topic, 1)
        listening = asyncio.create_task(listen())
        client.received = received
        try:
            yield client
        finally:
            listening.cancel()
            await asyncio.wait((listening,))


# What is said.


async def test_an_inform_and_a_step_arrive_and_are_acknowledged(broker: Mosquitto) -> None:
    async with platform(broker) as peer, Gateway(broker.port) as gateway:
        await gateway.online()
        await gateway.session.inform(DEFAULT_MODULE, "1-0-0")
        await gateway.session.step(MCU, -2, "no network")

        assert await peer.received.get() == (TOPICS.inform, b'{"id":"1","params":{"version":"1-0-0"}}')
        expected = b'{"id":"2","params":{"step":"-2","desc":"no network","module":"MCU"}}'
        assert await peer.received.get() == (TOPICS.progress, expected)


async def test_saying_something_offline_is_an_error(broker: Mosquitto) -> None:
    session = Gateway(broker.port).session

    with pytest.raises(OfflineError, match="not started"):
        await session.inform(DEFAULT_MODULE, "1")
    with pytest.raises(OfflineError):
        await session.ask(DEFAULT_MODULE)
    assert (session.connection, session.online_at) == (0, None)


async def test_the_connection_and_its_time_are_known(broker: Mosquitto) -> None:
    async with Gateway(broker.port) as gateway:
        began = time.monotonic()
        assert await gateway.online() == 1

        view = gateway.session.view
        assert (view.state, view.detail) == (SessionState.ONLINE, "")
        assert abs(view.since - time.time()) < 5
        assert gateway.session.connection == 1
        assert gateway.session.online_at is not None
        assert gateway.session.online_at >= began

    assert gateway.session.view.detail == "stopped"
    assert gateway.session.online_at is not None
    assert gateway.session.online_at < time.monotonic()


# Asking.


@pytest.mark.parametrize("reply_id", [str, int, lambda _: "other", lambda _: None])
async def test_an_answer_is_found_by_its_id_or_because_nothing_else_was_asked(
    broker: Mosquitto, reply_id: Callable[[str], Any]
) -> None:
    def answer(request: dict[str, Any]) -> bytes:
        return json.dumps({"id": reply_id(request["id"]), "code": 200, "data": PACKAGE}).encode()

    async with platform(broker, answer) as peer, Gateway(broker.port) as gateway:
        await gateway.online()
        answered = await gateway.session.ask(DEFAULT_MODULE, LIMIT_S)

        assert answered == await gateway.next() == Offered(NOTICE, "get:1")
        expected = b'{"id":"1","version":"1.0","params":{},"method":"thing.ota.firmware.get"}'
        assert await peer.received.get() == (TOPICS.get, expected)


async def test_two_questions_at_once_get_their_own_answers(broker: Mosquitto) -> None:
    def answer(request: dict[str, Any]) -> bytes:
        content = {} if request["params"] else PACKAGE
        return json.dumps({"id": int(request["id"]), "code": 200, "data": content}).encode()

    async with platform(broker, answer), Gateway(broker.port) as gateway:
        await gateway.online()
        answers = await asyncio.gather(gateway.session.ask(MCU, LIMIT_S), gateway.session.ask(DEFAULT_MODULE, LIMIT_S))

        assert answers == [Nothing(MCU), Offered(NOTICE, "get:1")]


async def test_no_answer_is_none_and_so_is_an_error(broker: Mosquitto, caplog: pytest.LogCaptureFixture) -> None:
    def answer(request: dict[str, Any]) -> bytes:
        return b"?" if request["params"] else json.dumps({"id": request["id"], "code": 429, "message": "slow"}).encode()

    async with platform(broker, answer), Gateway(broker.port) as gateway:
        await gateway.online()

        assert await gateway.session.ask(DEFAULT_MODULE, LIMIT_S) is None
        assert await gateway.session.ask(MCU, 0.1) is None
        assert f'message dropped: {TOPICS.get_reply}: code 429: "slow"' in caplog.messages


# Listening.


async def test_notices_are_heard_in_order_and_in_every_dialect(broker: Mosquitto) -> None:
    async with platform(broker) as peer, Gateway(broker.port) as gateway:
        await gateway.online()
        await gateway.session.inform(DEFAULT_MODULE, "1")  # by now the broker has our SUBSCRIBE
        payloads = [
            push(1),
            push("2", signMethod="sha256") + b"\0",
            push(3, sign=SHA256.upper(), size="5"),
            push(4, size=-1),
            push(4),
        ]
        for n, payload in enumerate(payloads):
            await peer.publish(TOPICS.upgrade, payload, qos=n % 2)

        answers = [await gateway.next() for _ in payloads]
        refused = answers.pop(3)
        assert answers == [Offered(NOTICE, f"push:{n}") for n in (1, 2, 3, 4)]
        assert isinstance(refused, Unusable)
        assert refused.failure.code is Code.MALFORMED


async def test_what_is_not_for_us_is_passed_over(broker: Mosquitto, caplog: pytest.LogCaptureFixture) -> None:
    async with platform(broker) as peer:
        await peer.publish(TOPICS.upgrade, push("old"), retain=True, qos=1)
        async with Gateway(broker.port) as gateway:
            await gateway.online()
            await gateway.session.inform(DEFAULT_MODULE, "1")
            await peer.publish(TOPICS.upgrade, b"", qos=1)
            await peer.publish(TOPICS.upgrade.replace("gw001", "gw002"), push("theirs"))
            for _ in range(3):
                await peer.publish(TOPICS.upgrade, b'{"data":{"module":5}}')
            await peer.publish(TOPICS.get_reply, b'{"id":"99","code":200,"data":{}}')
            await peer.publish(TOPICS.upgrade, push("ours"))

            assert await gateway.next() == Nothing(DEFAULT_MODULE)
            assert await gateway.next() == Offered(NOTICE, "push:ours")
    dropped = [text.removeprefix(f"message dropped: {TOPICS.upgrade}: ") for text in caplog.messages if "drop" in text]
    assert dropped[0] == "retained, and so of unknown age"
    assert dropped[1].startswith("not JSON")
    assert dropped[2:] == ["module: 5: must be 1 to 64 of A-Z a-z 0-9 . _ -"]


async def test_an_unasked_answer_is_heard(broker: Mosquitto) -> None:
    async with platform(broker) as peer, Gateway(broker.port) as gateway:
        await gateway.online()
        await gateway.session.inform(DEFAULT_MODULE, "1")
        await peer.publish(TOPICS.get_reply, json.dumps({"id": 1, "code": 200, "data": PACKAGE}))

        assert await gateway.next() == Offered(NOTICE, "get:1")


async def test_md5_is_refused_where_it_is_forbidden(broker: Mosquitto) -> None:
    async with platform(broker) as peer, Gateway(broker.port, allow_md5=False) as gateway:
        await gateway.online()
        await gateway.session.inform(DEFAULT_MODULE, "1")
        await peer.publish(TOPICS.upgrade, push(signMethod="Md5", sign=SHA256[:32]))

        answer = await gateway.next()
        assert isinstance(answer, Unusable)
        assert answer.failure.code is Code.UNSUPPORTED


async def test_a_flood_is_survived(broker: Mosquitto) -> None:
    def answer(request: dict[str, Any]) -> bytes:
        return json.dumps({"id": request["id"], "code": 200, "data": {}}).encode()

    async with platform(broker, answer) as peer, Gateway(broker.port) as gateway:
        await gateway.online()
        await gateway.session.inform(DEFAULT_MODULE, "1")
        for n in range(2000):
            await peer.publish(TOPICS.upgrade, push(n))

        async with asyncio.timeout(LIMIT_S):
            while await gateway.session.ask(MCU, 0.2) is None:
                pass  # the answer was among what got lost
        assert gateway.session.connection == 1
        assert 1 < gateway.heard.qsize() <= 2001


# Losing the connection.


async def test_a_broker_that_goes_and_comes_is_connected_again(
    broker: Mosquitto, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "otad.cloud.session")
    async with Gateway(broker.port) as gateway:
        first = await gateway.online()
        await broker.stop()
        async with asyncio.timeout(LIMIT_S):
            await gateway.session.lost(first)
        detail = await gateway.shows(SessionState.OFFLINE, "connection refused")
        assert detail.startswith("next attempt in ")
        with pytest.raises(OfflineError):
            await gateway.session.step(DEFAULT_MODULE, 1, "")
        await broker.start()

        assert await gateway.online(after=first) == 2
        await gateway.session.inform(DEFAULT_MODULE, "1")
    session = f"session with 127.0.0.1:{broker.port}"
    assert [message for message in caplog.messages if message.startswith("session")] == [
        f"{session} is up",
        f"{session}: closed by the platform soon after connecting; does another device use this identity?",
        f"{session}: connection refused",
        f"{session} is up",
    ]


async def test_a_second_device_with_our_identity_throws_us_out(broker: Mosquitto) -> None:
    async with Gateway(broker.port) as gateway:
        first = await gateway.online()
        async with aiomqtt.Client("127.0.0.1", broker.port, identifier=fields().client_id):
            async with asyncio.timeout(LIMIT_S):
                await gateway.session.lost(first)
            assert "does another device use this identity?" in gateway.session.view.detail

        assert await gateway.online(after=first) == 2


async def test_being_canceled_says_goodbye(broker: Mosquitto) -> None:
    async with Gateway(broker.port) as gateway:
        await gateway.online()
        mark = len(broker.log)
    await broker.logged("Received DISCONNECT from a1.gw001", after=mark)


async def test_a_secret_that_is_refused_is_said_and_read_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    secrets = ["wr0ng"]
    users = {fields().username: fields().password}
    async with (
        Mosquitto(tmp_path, users=users) as broker,
        Gateway(broker.port, fields=lambda: fields(secrets[0])) as gateway,
    ):
        detail = await gateway.shows(SessionState.REFUSED, "device secret")
        assert detail.partition(": ")[2] == (
            "not authorised: check device.product_key, device.device_name and the device secret, and that the platform "
            "has this device enabled"
        )
        secrets[0] = SECRET

        assert await gateway.online() == 1
    for secret in (SECRET, "wr0ng", fields().password, fields("wr0ng").password):
        assert secret not in caplog.text
    assert sum("not authorised" in record.message for record in caplog.records if record.levelname == "WARNING") == 1


async def test_a_secret_that_cannot_be_read_is_said() -> None:
    def unreadable() -> ConnectFields:
        raise ConfigurationError(("device.secret: empty",))

    async with Gateway(free_port(), fields=unreadable) as gateway:
        await gateway.shows(SessionState.REFUSED, "device.secret: empty")


# Peers that are no brokers.


@asynccontextmanager
async def scripted(script: Script) -> AsyncIterator[int]:
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

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
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
    assert len(body) < 128
    return bytes([first, len(body)]) + body


async def test_connect_is_what_the_platform_expects() -> None:
    connects: asyncio.Queue[bytes] = asyncio.Queue()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connects.put_nowait(await accept(reader, writer))
        await never(reader)

    async with scripted(script) as port, Gateway(port, keepalive_s=300.0) as gateway:
        await gateway.online()

        said = [text.encode() for text in (fields().client_id, fields().username, fields().password)]
        body = b"".join(len(text).to_bytes(2, "big") + text for text in said)
        assert connects.get_nowait() == b"\0\x04MQTT\x04\xc2\x01\x2c" + body


@pytest.mark.parametrize(
    ("code", "state", "says"),
    [
        (1, SessionState.OFFLINE, "what is sent is not MQTT"),
        (2, SessionState.OFFLINE, "the platform does not accept the client id: check device.client_id"),
        (3, SessionState.OFFLINE, "the platform says that it is unavailable"),
        (4, SessionState.REFUSED, "bad user name or password: check device.product_key"),
        (5, SessionState.REFUSED, "not authorised: check device.product_key"),
        (77, SessionState.OFFLINE, "the platform refuses the connection: Unspecified error"),
    ],
)
async def test_each_refusal_is_said_in_its_own_words(code: int, state: SessionState, says: str) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await accept(reader, writer, code)
        await never(reader)

    async with scripted(script) as port, Gateway(port, pace=Pace()) as gateway:
        detail = await gateway.shows(state, says)

    wait = "5 min" if state is SessionState.REFUSED else "2 s"
    allowed = {"5 min": range(5, 8), "2 s": range(2, 4)}[wait]
    assert int(detail.removeprefix("next attempt in ").split()[0]) in allowed


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"", "closed by the platform"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n" + b"x" * 60, "what is sent is not MQTT"),
        (b"\x20\x05\x00\x00\x00\x00\x00", "what is sent is not MQTT"),
        (b"\x20\xff\xff\xff\xff\xff\x7f", "what is sent is not MQTT"),
        (b"\x30\xff\xff\xff\x7f", "a packet of 268435455 bytes: more than 263168 are not read"),
    ],
    ids=["nothing", "HTTP", "long CONNACK", "endless length", "a huge packet"],
)
async def test_a_peer_that_is_no_broker_is_said(answer: bytes, says: str) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await packet(reader)
        writer.write(answer)
        if answer:
            await never(reader)

    async with scripted(script) as port, Gateway(port) as gateway:
        await gateway.shows(SessionState.OFFLINE, says)


async def test_a_peer_that_never_answers_is_given_up() -> None:
    gone = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await never(reader)
        gone.set()

    pace = Pace(connect_s=0.2)
    async with scripted(script) as port, Gateway(port, pace=pace) as gateway:
        await gateway.shows(SessionState.OFFLINE, "no session within 200 ms")
        async with asyncio.timeout(LIMIT_S):
            await gone.wait()


async def test_stopping_while_connecting_leaves_no_connection_behind() -> None:
    came, gone = asyncio.Event(), asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await packet(reader)
        came.set()
        await never(reader)
        gone.set()

    async with scripted(script) as port, Gateway(port) as gateway:
        async with asyncio.timeout(LIMIT_S):
            await came.wait()
            gateway.running.cancel()
            await asyncio.wait((gateway.running,))
            await gone.wait()

        assert gateway.running.cancelled()
        gateway.running = asyncio.create_task(asyncio.sleep(60))


async def test_silence_is_noticed_after_one_and_a_half_keep_alives() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await accept(reader, writer)
        await never(reader)

    async with scripted(script) as port, Gateway(port, keepalive_s=1, pace=Pace()) as gateway:
        await gateway.online()
        began = time.monotonic()
        await gateway.shows(SessionState.OFFLINE, "nothing heard for 1.5 s")

        assert 1.3 < time.monotonic() - began < 2


async def test_a_publication_in_flight_ends_with_the_connection() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await accept(reader, writer)
        while (await packet(reader))[0] & 0xF0 != 0x30:
            pass

    async with scripted(script) as port, Gateway(port) as gateway:
        for say in (
            lambda: gateway.session.inform(DEFAULT_MODULE, "1"),
            lambda: gateway.session.ask(DEFAULT_MODULE, LIMIT_S),
        ):
            await gateway.online()
            with pytest.raises(OfflineError, match="closed by the platform"):
                async with asyncio.timeout(LIMIT_S):
                    await say()


async def test_a_publication_that_is_never_acknowledged_ends_the_connection() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await accept(reader, writer)
        await never(reader)

    async with scripted(script) as port, Gateway(port, pace=Pace(acknowledge_s=0.1)) as gateway:
        await gateway.online()
        with pytest.raises(OfflineError, match="no acknowledgement within 100 ms"):
            await gateway.session.inform(DEFAULT_MODULE, "1")

        await gateway.shows(SessionState.OFFLINE, "no acknowledgement within 100 ms")


async def test_a_huge_payload_is_refused_unread() -> None:
    sent = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await accept(reader, writer)
        writer.write(b"\x30\x80\x80\x80\x20")  # 64 MiB
        for _ in range(64):
            writer.write(bytes(1 << 20))
            await writer.drain()
            sent += 1

    async with scripted(script) as port, Gateway(port, pace=Pace()) as gateway:
        await gateway.shows(SessionState.OFFLINE, "a packet of 67108864 bytes: more than 263168 are not read")

    assert sent < 16  # what the sockets' buffers hold


async def test_a_payload_above_the_limit_costs_the_connection_and_no_more(broker: Mosquitto) -> None:
    async with platform(broker) as peer, Gateway(broker.port) as gateway:
        first = await gateway.online()
        await gateway.session.inform(DEFAULT_MODULE, "1")
        await peer.publish(TOPICS.upgrade, bytes(300 << 10))

        await gateway.online(after=first)
        await gateway.session.inform(DEFAULT_MODULE, "1")
        await peer.publish(TOPICS.upgrade, push(1, extData="x" * (250 << 10)))
        assert await gateway.next() == Offered(NOTICE, "push:1")


@pytest.mark.parametrize(
    "hostile",
    [
        publication(b"/ota/#"),
        publication(b"\xff\xfe"),
        publication(b""),
        publication(b"a", first=0x36, middle=b"\0\1"),  # QoS 3
        b"\x30\x01\x00",
        b"\xf0\x00",
        b"\xd0\x05hello",
        b"\x40\x01\x00",
    ],
    ids=["wildcard", "not UTF-8", "no topic", "QoS 3", "cut short", "packet 15", "long PINGRESP", "short PUBACK"],
)
async def test_a_packet_that_breaks_the_protocol_ends_the_connection_only(hostile: bytes) -> None:
    gone = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await accept(reader, writer)
        if not gone.is_set():
            writer.write(hostile)
        await never(reader)
        gone.set()

    async with scripted(script) as port, Gateway(port) as gateway:
        await gateway.online(after=1)
        assert gone.is_set()


@pytest.mark.parametrize(
    "odd",
    [b"\x20\x02\x00\x00", b"\xd0\x00", b"\x40\x02\x00\x63", b"\x90\x03\x00\x63\x01", publication(b"x")],
    ids=["CONNACK again", "PINGRESP", "PUBACK of nothing", "SUBACK of nothing", "a topic of nobody"],
)
async def test_what_is_only_odd_is_survived(odd: bytes) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await accept(reader, writer)
        writer.write(odd)
        topic = TOPICS.get_reply.encode()
        writer.write(publication(topic, b'{"code":200}'))
        await never(reader)

    async with scripted(script) as port, Gateway(port) as gateway:
        assert await gateway.next() == Nothing(DEFAULT_MODULE)
        assert gateway.session.connection == 1


async def test_messages_are_heard_without_subscribe_being_answered() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await accept(reader, writer)
        writer.write(publication(TOPICS.get_reply.encode(), b'{"code":200}'))
        await never(reader)

    async with scripted(script) as port, Gateway(port) as gateway:
        assert await gateway.next() == Nothing(DEFAULT_MODULE)


# How fast.


async def test_attempts_never_exceed_what_the_platform_allows() -> None:
    pace = Pace(first_s=0.001, max_s=0.002, window_s=0.3, window_attempts=5)
    attempts: asyncio.Queue[float] = asyncio.Queue()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        attempts.put_nowait(time.monotonic())

    async with scripted(script) as port, Gateway(port, pace=pace):
        async with asyncio.timeout(LIMIT_S):
            times = [await attempts.get() for _ in range(12)]

    assert all(later - earlier > 0.28 for earlier, later in zip(times, times[5:], strict=False))


async def test_a_stable_connection_starts_the_back_off_over(
    broker: Mosquitto, caplog: pytest.LogCaptureFixture
) -> None:
    pace = Pace(first_s=0.01, max_s=20, stable_s=0.05, window_s=0)
    async with Gateway(broker.port, pace=pace) as gateway:
        for n in range(6):  # without a new start the last wait would be a third of a second, and the sum two of them
            await gateway.online(after=n)
            async with asyncio.timeout(LIMIT_S):
                while gateway.session._losses:
                    await asyncio.sleep(0.005)
            await broker.restart()

        assert await gateway.online(after=6) == 7


@pytest.mark.parametrize(
    ("host", "says"),
    [("nowhere.invalid", ""), ("a" * 64 + ".com", "label"), ("127.0.0.1", "connection refused")],
    ids=["unknown", "impossible", "nobody there"],
)
async def test_a_host_that_is_not_there_is_said(host: str, says: str) -> None:
    async with Gateway(free_port(), host, pace=Pace()) as gateway:
        detail = await gateway.shows(SessionState.OFFLINE, says or "next attempt")

    assert detail.startswith("next attempt in ")


# TLS.


async def test_tls_with_the_right_root_is_a_session(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path)
    async with (
        Mosquitto(tmp_path, certificate=certificate) as broker,
        Gateway(broker.port, "localhost", tls=default_context(certificate.file)) as gateway,
    ):
        await gateway.online()
        await gateway.session.inform(DEFAULT_MODULE, "1")
        mark = len(broker.log)
        await gateway.stop()
        await broker.logged("Received DISCONNECT from a1.gw001", after=mark)
        gateway.running = asyncio.create_task(asyncio.sleep(60))


@pytest.mark.parametrize(
    ("made", "says"),
    [
        ({"host": "other.example"}, "certificate: Hostname mismatch, certificate is not valid for 'localhost'."),
        ({"begins": "20980101000000Z"}, "certificate: certificate is not yet valid; this gateway's clock says 20"),
        ({"ends": "20200102000000Z"}, "certificate: certificate has expired; this gateway's clock says 20"),
    ],
    ids=["other host", "not yet", "no more"],
)
async def test_a_certificate_that_is_not_right_is_said(tmp_path: Path, made: dict[str, str], says: str) -> None:
    certificate = make_certificate(tmp_path, **made)
    async with (
        Mosquitto(tmp_path, certificate=certificate) as broker,
        Gateway(broker.port, "localhost", tls=default_context(certificate.file)) as gateway,
    ):
        await gateway.shows(SessionState.OFFLINE, says)


async def test_a_root_that_is_not_ours_is_said(tmp_path: Path) -> None:
    async with (
        Mosquitto(tmp_path, certificate=make_certificate(tmp_path)) as broker,
        Gateway(broker.port, "localhost", tls=default_context()) as gateway,
    ):
        await gateway.shows(SessionState.OFFLINE, "mqtt.ca_file names the roots to trust")


async def test_a_port_that_does_not_speak_tls_is_said(tmp_path: Path) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await never(reader)

    async with scripted(script) as port, Gateway(port, "localhost", tls=default_context()) as gateway:
        await gateway.shows(SessionState.OFFLINE, "mqtt.port and mqtt.tls do not fit together")


async def test_a_handshake_that_never_ends_is_given_up_and_can_be_stopped() -> None:
    came = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.set()
        await never(reader)

    pace = Pace(connect_s=0.2)
    async with scripted(script) as port, Gateway(port, tls=default_context(), pace=pace) as gateway:
        await gateway.shows(SessionState.OFFLINE, "no session within 200 ms")
    came.clear()
    async with scripted(script) as port, Gateway(port, tls=default_context(), pace=Pace()):
        async with asyncio.timeout(LIMIT_S):
            await came.wait()
