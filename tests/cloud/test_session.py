# SPDX-License-Identifier: Apache-2.0
"""The session against a real broker, and against peers that do what no real broker would."""

import asyncio
import json
import logging
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiomqtt
import pytest

from otad.clock import BUILD, Clock
from otad.cloud.cloud import Block, BlockError, Nothing, Offered, OfflineError, SessionState, Unusable
from otad.cloud.session import ASKED_MAX, Pace
from otad.config import DeviceSettings
from otad.core.model import DEFAULT_MODULE, Digest, DigestMethod, Identity, ModuleName, Notice, Stream
from otad.durable import RealDisk
from otad.errors import Code
from tests.broker import Mosquitto, free_port, make_certificate
from tests.cloud.session_world import (
    FAST,
    LIMIT_S,
    SECRET,
    TOPICS,
    Gateway,
    Script,
    accept,
    fields,
    never,
    packet,
    publication,
    scripted,
)

MCU = ModuleName("MCU")
SHA256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
PACKAGE = {"size": 5, "version": "1.1", "url": "https://a/b?auth_key=1", "sign": SHA256, "signMethod": "SHA256"}
NOTICE = Notice(Identity(DEFAULT_MODULE, "1.1", 5, Digest(DigestMethod.SHA256, SHA256)), "https://a/b?auth_key=1")


def push(id_: Any = 7, **fields: Any) -> bytes:
    return json.dumps({"code": "1000", "data": {**PACKAGE, **fields}, "id": id_}).encode()


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


@pytest.fixture
async def withholding(broker: Mosquitto) -> AsyncIterator[tuple[Any, Gateway]]:
    """A peer that answers nothing by itself, and a gateway that has given up asking for MCU: request 1."""
    async with platform(broker) as peer, Gateway(broker.port) as gateway:
        await gateway.online()
        assert await gateway.session.ask(MCU, 0.05) is None
        await peer.received.get()
        yield peer, gateway


def reply(id_: Any, content: dict[str, Any]) -> str:
    return json.dumps({"id": id_, "code": 200, "data": content})


async def test_a_late_answer_is_not_one_to_the_next_question(withholding: tuple[Any, Gateway]) -> None:
    peer, gateway = withholding
    asking = asyncio.create_task(gateway.session.ask(DEFAULT_MODULE, LIMIT_S))
    await peer.received.get()
    await peer.publish(TOPICS.get_reply, reply(1, {}))
    await peer.publish(TOPICS.get_reply, reply("of the platform", PACKAGE))

    assert await gateway.next() == Nothing(MCU)
    assert await asking == await gateway.next() == Offered(NOTICE, "get:1")


async def test_a_late_nothing_is_about_the_module_that_was_asked_for(withholding: tuple[Any, Gateway]) -> None:
    peer, gateway = withholding
    await peer.publish(TOPICS.get_reply, reply("1", {}))

    assert await gateway.next() == Nothing(MCU)


async def test_a_nothing_to_what_is_long_forgotten_is_passed_over(
    withholding: tuple[Any, Gateway], caplog: pytest.LogCaptureFixture
) -> None:
    peer, gateway = withholding
    await asyncio.gather(*(gateway.session.ask(MCU, 0.01) for _ in range(ASKED_MAX)))
    await peer.publish(TOPICS.get_reply, reply("1", {}))
    await peer.publish(TOPICS.get_reply, reply("2", {}))

    assert await gateway.next() == Nothing(MCU)
    assert gateway.heard.empty()
    said = "id 1: nothing is offered, and it is not known any more for what"
    assert f"message dropped: {TOPICS.get_reply}: {said}" in caplog.messages


async def test_no_answer_is_none_and_so_is_an_error(broker: Mosquitto, caplog: pytest.LogCaptureFixture) -> None:
    def answer(request: dict[str, Any]) -> bytes:
        return b"?" if request["params"] else json.dumps({"id": request["id"], "code": 429, "message": "slow"}).encode()

    async with platform(broker, answer), Gateway(broker.port) as gateway:
        await gateway.online()

        assert await gateway.session.ask(DEFAULT_MODULE, LIMIT_S) is None
        assert gateway.session.unanswered == 'code 429: "slow"'
        assert await gateway.session.ask(MCU, 0.1) is None
        assert gateway.session.unanswered == ""
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
        await gateway.lost(first)
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
        f"{session}: closed by the platform",
        f"{session}: connection refused",
        f"{session} is up",
    ]


SUSPECTED = "does another device use this identity? give each gateway a device_name and a credential of its own"


async def test_a_second_device_is_suspected_the_third_time_and_no_sooner(broker: Mosquitto) -> None:
    async with Gateway(broker.port) as gateway:
        said = []
        for n in range(3):
            connection = await gateway.online(after=n)
            async with aiomqtt.Client("127.0.0.1", broker.port, identifier=fields().client_id):
                await gateway.lost(connection)
                said.append((await gateway.shows(SessionState.OFFLINE, "closed by the platform")).partition(": ")[2])

        assert said[:2] == ["closed by the platform"] * 2
        assert said[2].endswith(SUSPECTED)
        await gateway.online(after=3)
        assert gateway.session.view.detail.endswith(SUSPECTED)


async def test_what_lies_between_two_losses_is_no_second_device(broker: Mosquitto) -> None:
    async with Gateway(broker.port) as gateway:
        for n in range(4):
            connection = await gateway.online(after=n)
            await broker.stop()
            await gateway.lost(connection)
            await gateway.shows(SessionState.OFFLINE, "connection refused")
            await broker.start()

        await gateway.online(after=4)
        assert gateway.session.view.detail == ""


async def test_a_suspicion_is_over_when_the_session_holds(broker: Mosquitto) -> None:
    pace = replace(FAST, rival_s=0.3)
    async with Gateway(broker.port, pace=pace) as gateway:
        for n in range(3):
            connection = await gateway.online(after=n)
            async with aiomqtt.Client("127.0.0.1", broker.port, identifier=fields().client_id):
                await gateway.lost(connection)

        await gateway.shows(SessionState.ONLINE, SUSPECTED)
        async with asyncio.timeout(LIMIT_S):
            while gateway.session.view.detail:
                await asyncio.sleep(0.005)
        assert gateway.session.view.state is SessionState.ONLINE


async def test_being_canceled_says_goodbye(broker: Mosquitto) -> None:
    async with Gateway(broker.port) as gateway:
        await gateway.online()
        mark = len(broker.log)
    await broker.logged("Received DISCONNECT from a1.gw001", after=mark)


async def test_a_secret_that_is_refused_is_said_and_read_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    file = tmp_path / "device.secret"
    file.write_text("wr0ng\n")
    device = DeviceSettings(product_key="a1", device_name="gw001", device_secret_file=file)
    users = {fields().username: fields().password}
    async with Mosquitto(tmp_path, users=users) as broker, Gateway(broker.port, device=device) as gateway:
        detail = await gateway.shows(SessionState.REFUSED, "device secret")
        assert detail.partition(": ")[2] == (
            "not authorised: check device.product_key, device.device_name and the device secret, and that the platform "
            "has this device enabled"
        )
        file.write_text(SECRET)

        assert await gateway.online() == 1
    for secret in (SECRET, "wr0ng", fields().password, fields("wr0ng").password):
        assert secret not in caplog.text
    assert sum("not authorised" in record.message for record in caplog.records if record.levelname == "WARNING") == 1


async def test_a_secret_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    file = tmp_path / "device.secret"
    device = DeviceSettings(product_key="a1", device_name="gw001", device_secret_file=file)

    async with Gateway(free_port(), device=device) as gateway:
        await gateway.shows(SessionState.REFUSED, f"{file}: No such file or directory")


# Blocks.

STREAM = Stream(12332, 1)


def crc(content: bytes) -> bytes:
    """CRC-16/ARC, bit by bit."""
    value = 0
    for byte in content:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0xA001 if value & 1 else 0)
    return value.to_bytes(2, "little")


def framed(header: dict[str, Any], content: bytes = b"") -> bytes:
    text = json.dumps(header, separators=(",", ":")).encode()
    return len(text).to_bytes(2, "big") + text + (content + crc(content) if content else b"")


def block_reply(request: dict[str, Any], content: bytes, offset: int | None = None, **more: Any) -> bytes:
    about = {"fileToken": "default", "fileLength": 1 << 20, "bSize": len(content)}
    about["bOffset"] = request["params"]["fileBlock"]["offset"] if offset is None else offset
    return framed({"id": request["id"], "code": 200, "msg": "", "data": about, **more}, content)


@asynccontextmanager
async def file_server(
    broker: Mosquitto, answer: Callable[[dict[str, Any]], list[bytes]]
) -> AsyncIterator[asyncio.Queue[tuple[float, int, dict[str, Any]]]]:
    """A peer that answers requests for blocks; when each came, with which QoS, and what it said."""
    requests: asyncio.Queue[tuple[float, int, dict[str, Any]]] = asyncio.Queue()
    async with aiomqtt.Client("127.0.0.1", broker.port, identifier="files") as client:
        await client.subscribe(TOPICS.download, 1)

        async def serve() -> None:
            async for message in client.messages:
                request = json.loads(bytes(message.payload))
                requests.put_nowait((time.monotonic(), message.qos, request))
                for reply in answer(request):
                    await client.publish(TOPICS.download_reply, reply)

        serving = asyncio.create_task(serve())
        try:
            yield requests
        finally:
            serving.cancel()
            await asyncio.wait((serving,))


@asynccontextmanager
async def fetching(
    broker: Mosquitto, answer: Callable[[dict[str, Any]], list[bytes]], **more: Any
) -> AsyncIterator[tuple[Gateway, asyncio.Queue[tuple[float, int, dict[str, Any]]]]]:
    """A gateway online at a broker at which somebody answers requests for blocks."""
    async with file_server(broker, answer) as requests, Gateway(broker.port, **more) as gateway:
        await gateway.online()
        await gateway.session.inform(DEFAULT_MODULE, "1")  # by now the broker has our SUBSCRIBE
        yield gateway, requests


async def test_a_block_is_asked_for_and_comes(broker: Mosquitto) -> None:
    async with fetching(broker, lambda request: [block_reply(request, b"hello")]) as (gateway, requests):
        assert await gateway.session.block(STREAM, 512, 256) == Block(b"hello", 1 << 20)

        _, qos, request = await requests.get()
        assert qos == 0
        assert request == {
            "id": "2",
            "version": "1.0",
            "params": {
                "fileToken": "default",
                "fileInfo": {"streamId": 12332, "fileId": 1},
                "fileBlock": {"size": 256, "offset": 512},
            },
        }


async def test_the_largest_block_fits(broker: Mosquitto) -> None:
    content = bytes(range(256)) * 512
    async with fetching(broker, lambda request: [block_reply(request, content)]) as (gateway, _):
        assert await gateway.session.block(STREAM, 0, len(content)) == Block(content, 1 << 20)


async def test_only_the_answer_to_the_request_counts(broker: Mosquitto) -> None:
    def answer(request: dict[str, Any]) -> list[bytes]:
        return [
            block_reply(request, b"another offset", 512),
            block_reply({**request, "id": "77"}, b"another request"),
            framed({"id": "77", "code": 500, "msg": "another refusal"}),
            block_reply(request, b"right"),
            block_reply(request, b"a double"),
        ]

    async with fetching(broker, answer) as (gateway, _):
        for offset in (0, 256):
            assert (await gateway.session.block(STREAM, offset, 256)).content == b"right"


async def test_an_answer_without_id_counts(broker: Mosquitto) -> None:
    async with fetching(broker, lambda request: [block_reply({**request, "id": None}, b"right")]) as (gateway, _):
        assert (await gateway.session.block(STREAM, 0, 256)).content == b"right"


@pytest.mark.parametrize(
    ("answer", "refused", "says"),
    [
        (lambda request: block_reply(request, b"hello")[:-1] + b"?", False, "damaged: CRC: "),
        (lambda request: block_reply(request, b"hello")[:-3], False, "damaged: "),
        (lambda _: b"", False, "damaged: "),
        (lambda request: block_reply(request, bytes(257)), False, "damaged: 257 bytes, and 256 were asked for"),
        (
            lambda request: framed({"id": request["id"], "code": 400, "msg": "file size has exceeded the limit 16 MB"}),
            True,
            "the platform refuses the block: code 400: file size has exceeded the limit 16 MB",
        ),
    ],
    ids=["CRC", "cut short", "empty", "too long", "refused"],
)
async def test_a_block_that_cannot_be_used_is_said_at_once(
    broker: Mosquitto, answer: Callable[[dict[str, Any]], bytes], refused: bool, says: str
) -> None:
    async with fetching(broker, lambda request: [answer(request)]) as (gateway, _), asyncio.timeout(LIMIT_S):
        with pytest.raises(BlockError) as caught:
            await gateway.session.block(STREAM, 0, 256)

        assert caught.value.refused is refused
        assert str(caught.value).startswith(says)


async def test_a_block_that_does_not_come_is_given_up_and_the_next_is_asked_for(broker: Mosquitto) -> None:
    def answer(request: dict[str, Any]) -> list[bytes]:
        return [block_reply(request, b"hello")] if request["params"]["fileBlock"]["offset"] else []

    pace = replace(FAST, block_s=0.1)
    async with fetching(broker, answer, pace=pace) as (gateway, _):
        with pytest.raises(BlockError, match="no block within 100 ms") as caught:
            await gateway.session.block(STREAM, 0, 256)
        assert not caught.value.refused
        assert (await gateway.session.block(STREAM, 256, 256)).content == b"hello"


async def test_one_block_is_asked_for_at_a_time_and_not_too_fast(broker: Mosquitto) -> None:
    answered: list[float] = []

    def answer(request: dict[str, Any]) -> list[bytes]:
        answered.append(time.monotonic())
        return [block_reply(request, b"hello")]

    async with fetching(broker, answer, pace=replace(FAST, block_pause_s=0.2)) as (gateway, requests):
        blocks = await asyncio.gather(*(gateway.session.block(STREAM, 256 * n, 256) for n in range(5)))
        times = [(await requests.get())[0] for _ in range(5)]

    assert blocks == [Block(b"hello", 1 << 20)] * 5
    assert all(later - earlier > 0.1 for earlier, later in pairwise(times))
    assert all(asked > done for done, asked in zip(answered, times[1:], strict=False))


async def test_a_block_ends_with_the_connection(broker: Mosquitto) -> None:
    async with fetching(broker, lambda _: []) as (gateway, requests):
        asking = asyncio.create_task(gateway.session.block(STREAM, 0, 256))
        await requests.get()
        await broker.stop()
        with pytest.raises(OfflineError, match="closed by the platform"):
            async with asyncio.timeout(LIMIT_S):
                await asking
        with pytest.raises(OfflineError):
            await gateway.session.block(STREAM, 0, 256)
        await broker.start()


# The time.


@asynccontextmanager
async def asked_the_time(
    tmp_path: Path, answer: Callable[[str], dict[str, Any]], *, tls: bool = True
) -> AsyncIterator[tuple[Gateway, Clock, asyncio.Queue[dict[str, Any]]]]:
    """A gateway that wants to know the time, and what it asks."""
    certificate = make_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.file, certificate.key)
    clock = Clock(RealDisk(), tmp_path)
    asked: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await accept(reader, writer)
        while True:
            first, body = await packet(reader)
            if first & 0xF0 == 0x30 and TOPICS.ntp_request.encode() in body:
                question = json.loads(body[2 + len(TOPICS.ntp_request) :])
                asked.put_nowait(question)
                reply = json.dumps(answer(question["deviceSendTime"])).encode()
                writer.write(publication(TOPICS.ntp_response.encode(), reply))
            elif first & 0xF0 == 0x30:
                at = 2 + int.from_bytes(body[:2], "big")
                writer.write(b"\x40\x02" + body[at : at + 2])

    more: dict[str, Any] = {"tls": True, "ca_file": certificate.file} if tls else {}
    async with (
        scripted(script, **({"ssl": context} if tls else {})) as port,
        Gateway(port, "localhost" if tls else "127.0.0.1", clock=clock, **more) as gateway,
    ):
        await gateway.online()
        yield gateway, clock, asked


SOON = BUILD + 100 * 86400


async def test_the_time_is_asked_and_learned_over_tls(tmp_path: Path) -> None:
    def answer(sent: str) -> dict[str, Any]:
        return {"deviceSendTime": sent, "serverRecvTime": str(SOON * 1000), "serverSendTime": str(SOON * 1000 + 1000)}

    async with asked_the_time(tmp_path, answer) as (_, clock, asked):
        async with asyncio.timeout(LIMIT_S):
            assert abs(int((await asked.get())["deviceSendTime"]) / 1000 - time.time()) < LIMIT_S
            while clock.floor == BUILD:
                await asyncio.sleep(0.005)

    assert clock.floor in (SOON, SOON + 1)  # half a second of the server's, and half of the way
    assert not clock.wants_time


@pytest.mark.parametrize("answer", [{}, {"deviceSendTime": "1", "serverRecvTime": "2"}, {"deviceSendTime": 1}])
async def test_an_answer_to_another_question_tells_no_time(tmp_path: Path, answer: dict[str, Any]) -> None:
    late = {"serverRecvTime": str(SOON * 1000), "serverSendTime": str(SOON * 1000), "deviceSendTime": "1"}
    async with asked_the_time(tmp_path, lambda _: {**late, **answer}) as (gateway, clock, asked):
        async with asyncio.timeout(LIMIT_S):
            await asked.get()
        await gateway.session.inform(DEFAULT_MODULE, "1")

        assert clock.floor == BUILD
        assert clock.wants_time


async def test_whom_nobody_can_vouch_for_is_not_asked_the_time(tmp_path: Path) -> None:
    async with asked_the_time(tmp_path, lambda _: {}, tls=False) as (gateway, _, asked):
        await gateway.session.inform(DEFAULT_MODULE, "1")

        assert asked.empty()


# Complaints.

RIVAL = "another device uses this identity: give each gateway a device_name and a credential of its own"


def complaining(code: int, *, times: int = 1, stays_s: float = 0) -> Script:
    """A peer that complains on /ext/error, and closes the connection."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await accept(reader, writer)
        said = json.dumps({"id": 1, "code": code, "message": "in its words", "data": {}}).encode()
        for _ in range(times):
            writer.write(publication(TOPICS.error.encode(), said))
        await packet(reader)
        await asyncio.sleep(stays_s)

    return script


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (427, RIVAL),
        (527, RIVAL),
        (429, "the platform takes no more messages for now: there were too many"),
        (520, "the platform has lost the session with this device"),
        (521, "this device was deleted on the platform: add it there"),
        (522, "this device is disabled on the platform: enable it there"),
        (6401, "the platform complains: in its words (code 6401)"),
    ],
)
async def test_what_the_platform_complains_of_is_said_once_and_is_the_reason(
    caplog: pytest.LogCaptureFixture, code: int, says: str
) -> None:
    async with scripted(complaining(code, times=3)) as port, Gateway(port) as gateway:
        await gateway.online(after=2)
        await gateway.shows(SessionState.OFFLINE, says)

    assert caplog.messages.count(says) == 1
    assert caplog.messages.count(f"session with 127.0.0.1:{port}: {says}") == 1


async def test_a_complaint_of_long_ago_is_no_reason() -> None:
    async with (
        scripted(complaining(429, stays_s=0.2)) as port,
        Gateway(port, pace=replace(FAST, blame_s=0.1, first_s=1)) as gateway,
    ):
        detail = await gateway.shows(SessionState.OFFLINE, "closed by the platform")

    assert detail.endswith("closed by the platform")


async def test_with_a_second_device_the_back_off_grows_even_if_the_session_holds_for_a_while() -> None:
    times: list[float] = []
    complain = complaining(427, stays_s=0.15)

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        times.append(time.monotonic())
        await complain(reader, writer)

    pace = Pace(first_s=0.05, max_s=5, stable_s=0.05, window_s=0)
    async with scripted(script) as port, Gateway(port, pace=pace) as gateway:
        await gateway.online(after=4)

    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert gaps[3] > 0.15 + 0.4  # the back-off was 0.05 s, 0.1 s, 0.2 s before that, and up to half as much again


# Peers that are no brokers.


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


async def test_all_that_is_heard_is_subscribed_to_in_one_packet() -> None:
    subscribed: asyncio.Queue[bytes] = asyncio.Queue()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await accept(reader, writer)
        first, body = await packet(reader)
        assert first == 0x82
        subscribed.put_nowait(body[2:])
        await never(reader)

    async with scripted(script) as port, Gateway(port) as gateway:
        await gateway.online()
        async with asyncio.timeout(LIMIT_S):
            said = await subscribed.get()

    topics = (TOPICS.upgrade, TOPICS.get_reply, TOPICS.download_reply, TOPICS.error, TOPICS.ntp_response)
    assert said == b"".join(len(topic).to_bytes(2, "big") + topic.encode() + b"\x01" for topic in topics)


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
        Gateway(broker.port, "localhost", tls=True, ca_file=certificate.file) as gateway,
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
        Gateway(broker.port, "localhost", tls=True, ca_file=certificate.file) as gateway,
    ):
        await gateway.shows(SessionState.OFFLINE, says)


async def test_a_root_that_is_not_ours_is_said(tmp_path: Path) -> None:
    async with (
        Mosquitto(tmp_path, certificate=make_certificate(tmp_path)) as broker,
        Gateway(broker.port, "localhost", tls=True) as gateway,
    ):
        await gateway.shows(SessionState.OFFLINE, "mqtt.ca_file names the roots to trust")


async def test_a_port_that_does_not_speak_tls_is_said(tmp_path: Path) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await never(reader)

    async with scripted(script) as port, Gateway(port, "localhost", tls=True) as gateway:
        await gateway.shows(SessionState.OFFLINE, "mqtt.port and mqtt.tls do not fit together")


async def test_a_handshake_that_never_ends_is_given_up_and_can_be_stopped() -> None:
    came = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.set()
        await never(reader)

    pace = Pace(connect_s=0.2)
    async with scripted(script) as port, Gateway(port, tls=True, pace=pace) as gateway:
        await gateway.shows(SessionState.OFFLINE, "no session within 200 ms")
    came.clear()
    async with scripted(script) as port, Gateway(port, tls=True, pace=Pace()):
        async with asyncio.timeout(LIMIT_S):
            await came.wait()
