# SPDX-License-Identifier: Apache-2.0
"""Packages in blocks over MQTT, fetched by a client that reads the binary answers by itself."""

import json
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiomqtt
import pytest
from conftest import IMAGE, Gateway, login

from otad.platform import blocks, wire
from otad.platform.events import BlockServed, Misunderstood
from otad.platform.faults import BlockFault
from otad.platform.jobs import Package, Protocol
from otad.platform.platform import Device, Platform

Connect = Callable[..., Awaitable[Gateway]]

SIZE = len(IMAGE)
REQUEST = "/sys/{device}/thing/file/download"
REPLY = "/sys/{device}/thing/file/download_reply"
# As the C SDK writes it, which is no JSON.
C_SDK = '{"id":"%d","version":"1.0","params":{"fileToken":"default","fileInfo":{"streamId":%d,"fileId":1,},"fileBlock":{"size":%d,"offset":%d}}}'  # noqa: E501


@dataclass
class Answer:
    """An answer as a device takes it apart. `crc` is None where nothing is behind the content."""

    header: dict[str, Any]
    content: bytes
    crc: int | None

    @classmethod
    def parse(cls, payload: bytes) -> "Answer":
        (length,) = struct.unpack_from(">H", payload)
        header, rest = json.loads(payload[2 : 2 + length]), payload[2 + length :]
        if not rest:
            return cls(header, b"", None)
        return cls(header, rest[:-2], struct.unpack("<H", rest[-2:])[0])


class Fetching:
    """A device that has heard of a stream."""

    def __init__(self, gateway: Gateway, stream: int) -> None:
        self.gateway = gateway
        self.stream = stream
        self._requests = 0

    async def ask(self, offset: int, size: int = 1000, stream: int | None = None) -> None:
        self._requests += 1
        await self.gateway.say(REQUEST, C_SDK % (self._requests, stream or self.stream, size, offset), qos=0)

    async def answer(self) -> Answer:
        topic, payload = await self.gateway.hear()
        assert topic == REPLY
        return Answer.parse(payload)

    async def fetch(self, offset: int, size: int = 1000) -> Answer:
        await self.ask(offset, size)
        return await self.answer()


@pytest.fixture
def package(platform: Platform, tmp_path: Path) -> Package:
    (tmp_path / "image").write_bytes(IMAGE)
    return platform.add_package(tmp_path / "image", "2-0-0", protocol=Protocol.MQTT)


@pytest.fixture
async def fetching(platform: Platform, device: Device, package: Package, connect: Connect) -> Fetching:
    gateway = await connect()
    platform.push(package, device)
    return Fetching(gateway, await noticed(gateway))


async def noticed(gateway: Gateway) -> int:
    _, payload = await gateway.hear()
    return int(json.loads(payload)["data"]["streamId"])


def crc16(content: bytes) -> int:
    """CRC-16/ARC, bit by bit."""
    crc = 0
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0xA001 if crc & 1 else 0)
    return crc


async def test_a_package_is_fetched_block_by_block(
    platform: Platform, package: Package, fetching: Fetching, device: Device
) -> None:
    content, sizes = b"", []
    while len(content) < SIZE:
        answer = await fetching.fetch(len(content), 40_000)
        assert answer.crc == crc16(answer.content)
        content += answer.content
        sizes.append(len(answer.content))

    assert content == IMAGE
    assert sizes == [40_000, 40_000, SIZE - 80_000]
    assert [(one.start, one.sent, one.code) for one in platform.blocks(package)] == [
        (0, 40_000, 200),
        (40_000, 40_000, 200),
        (80_000, SIZE - 80_000, 200),
    ]
    assert platform.bytes_sent(package) == SIZE
    assert platform.bytes_twice(package) == 0
    assert str(platform.blocks(package)[0]) == (f"{device}: asks for 40000 bytes from 0 of 2-0-0, is sent 40000 (200)")


async def test_the_header_byte_by_byte(fetching: Fetching) -> None:
    await fetching.ask(512, 256)
    _, payload = await fetching.gateway.hear()
    text = (
        b'{"id":"1","code":200,"msg":"success",'
        b'"data":{"fileToken":"default","fileLength":%d,"bSize":256,"bOffset":512}}' % SIZE
    )

    assert payload == struct.pack(">H", len(text)) + text + IMAGE[512:768] + struct.pack("<H", crc16(IMAGE[512:768]))


async def test_the_token_is_optional_and_the_id_comes_back_as_it_was(fetching: Fetching) -> None:
    params = {"fileInfo": {"streamId": fetching.stream, "fileId": 1}, "fileBlock": {"size": 256, "offset": 0}}
    await fetching.gateway.say(REQUEST, json.dumps({"id": 9, "params": params}))

    answer = await fetching.answer()
    assert answer.header == {
        "id": 9,
        "code": 200,
        "msg": "success",
        "data": {"fileLength": SIZE, "bSize": 256, "bOffset": 0},
    }


async def test_blocks_come_to_those_who_have_subscribed_as_well(fetching: Fetching) -> None:
    await fetching.gateway.client.subscribe(REPLY.replace("{device}", fetching.gateway.names))
    await fetching.ask(0)

    assert (await fetching.answer()).content == IMAGE[:1000]


@pytest.mark.parametrize("size", [256, 131_072])
async def test_the_ends_of_the_sizes(fetching: Fetching, size: int) -> None:
    assert (await fetching.fetch(0, size)).content == IMAGE[:size]


async def test_the_last_block_may_be_small(fetching: Fetching) -> None:
    assert (await fetching.fetch(SIZE - 1, 1)).content == IMAGE[-1:]
    assert (await fetching.fetch(SIZE - 7, 100)).content == IMAGE[-7:]


@pytest.mark.parametrize(
    ("offset", "size", "says"),
    [
        (0, 255, "size 255: not within 256..131072"),
        (0, 131_073, "size 131073: not within 256..131072"),
        (SIZE - 200, 0, "size 0: not within 256..131072"),
        (SIZE, 256, f"offset {SIZE}: not within 0..{SIZE - 1}"),
        (-1, 256, f"offset -1: not within 0..{SIZE - 1}"),
    ],
)
async def test_numbers_out_of_their_range(fetching: Fetching, offset: int, size: int, says: str) -> None:
    answer = await fetching.fetch(offset, size)

    assert answer == Answer({"id": "1", "code": 460, "msg": says}, b"", None)


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({}, 400),
        ({"fileInfo": {"streamId": "?", "fileId": 1}, "fileBlock": {"size": 256, "offset": 0}}, 400),
        ({"fileInfo": [], "fileBlock": 7}, 400),
    ],
    ids=["nothing", "no number", "no object"],
)
async def test_a_request_without_a_stream(fetching: Fetching, params: dict[str, Any], code: int) -> None:
    await fetching.gateway.say(REQUEST, json.dumps({"id": "1", "params": params}))

    assert (await fetching.answer()).header["code"] == code


@pytest.mark.parametrize("block", [{}, {"size": 256}, {"offset": 0}, {"size": "many", "offset": None}])
async def test_a_request_without_its_numbers(fetching: Fetching, block: dict[str, Any]) -> None:
    params = {"fileInfo": {"streamId": fetching.stream, "fileId": 1}, "fileBlock": block}
    await fetching.gateway.say(REQUEST, json.dumps({"id": "1", "params": params}))

    assert (await fetching.answer()).header["code"] == 460


async def test_a_file_that_the_stream_does_not_have(fetching: Fetching) -> None:
    await fetching.gateway.say(REQUEST, (C_SDK % (1, fetching.stream, 256, 0)).replace('"fileId":1', '"fileId":2'))

    assert (await fetching.answer()).header == {"id": "1", "code": 400, "msg": "fileId 2 does not exist"}


async def test_a_request_that_is_no_request(platform: Platform, fetching: Fetching) -> None:
    await fetching.gateway.say(REQUEST, "?")
    await fetching.ask(0)

    assert (await fetching.answer()).header["code"] == 200
    assert len(platform.events.of(Misunderstood)) == 1


async def test_each_notice_has_a_stream_of_its_own_and_all_are_good(fetching: Fetching) -> None:
    await fetching.gateway.ask()
    another = await noticed(fetching.gateway)
    await fetching.ask(0)
    await fetching.ask(0, stream=another)

    assert another != fetching.stream
    assert [(await fetching.answer()).content for _ in range(2)] == [IMAGE[:1000]] * 2


async def test_a_stream_ends_with_its_job(fetching: Fetching, platform: Platform) -> None:
    await fetching.gateway.inform("2-0-0")
    await platform.ended("1")

    answer = await fetching.fetch(0)
    assert answer.header == {"id": "1", "code": 400, "msg": f"streamId {fetching.stream} does not exist"}


async def test_a_stream_ends_with_its_package(platform: Platform, package: Package, fetching: Fetching) -> None:
    platform.delete_package(package)

    assert (await fetching.fetch(0)).header["code"] == 400


async def test_a_stream_of_another_device(platform: Platform, fetching: Fetching) -> None:
    other = platform.add_device("a1B2c3", "gateway-2")
    async with aiomqtt.Client("127.0.0.1", platform.mqtt_port, **login(other)) as client:
        gateway = Gateway(client, other)
        answer = await Fetching(gateway, fetching.stream).fetch(0)

    assert answer.header["code"] == 400
    assert [(one.package, one.sent) for one in platform.events.of(BlockServed)] == [("", 0)]


async def test_a_file_that_is_too_large(platform: Platform, fetching: Fetching) -> None:
    platform.faults.size_delta = (16 << 20) - SIZE
    assert (await fetching.fetch(0)).content == IMAGE[:1000]
    platform.faults.size_delta += 1

    answer = await fetching.fetch(0)
    assert answer == Answer({"id": "2", "code": 500, "msg": "file size has exceeded the limit 16 MB"}, b"", None)


def test_the_check_sum_is_the_one_that_was_proven() -> None:
    assert blocks.crc16(b"123456789") == crc16(b"123456789") == 0xBB3D


def test_streams_are_not_those_of_an_earlier_run() -> None:
    first, second = blocks.Streams(), blocks.Streams()

    assert len({one.open("1") for one in (first, second) for _ in range(100)}) == 200


@pytest.mark.parametrize(
    ("offset", "size", "span"),
    [(0, 1000, (0, 1000)), (99, 131_072, (99, 1)), (0, 256, (0, 100)), (50, 50, (50, 50)), (50, 49, None)],
)
def test_what_of_a_small_file_is_in_a_block(offset: int, size: int, span: tuple[int, int] | None) -> None:
    ask = wire.AskBlock("1", None, 1, wire.FILE_ID, size, offset)
    total = 1000 if span == (0, 1000) else 100
    if span is None:
        with pytest.raises(blocks.Unanswerable):
            blocks.span_of(ask, total)
    else:
        assert blocks.span_of(ask, total) == blocks.Span(*span)


# Misbehaviour.


async def test_a_wrong_check_sum(platform: Platform, fetching: Fetching) -> None:
    platform.faults.next_blocks = [BlockFault.CRC]
    spoiled, good = await fetching.fetch(0), await fetching.fetch(0)

    assert spoiled.content == good.content == IMAGE[:1000]
    assert spoiled.crc != crc16(IMAGE[:1000])
    assert good.crc == crc16(IMAGE[:1000])


async def test_a_byte_less(platform: Platform, fetching: Fetching) -> None:
    platform.faults.next_blocks = [BlockFault.CUT]
    lengths = []
    for _ in range(2):
        await fetching.ask(0)
        _, payload = await fetching.gateway.hear()
        lengths.append(len(payload))

    assert lengths[0] == lengths[1] - 1


async def test_no_answer(platform: Platform, package: Package, fetching: Fetching) -> None:
    platform.faults.next_blocks = [BlockFault.LOST]
    await fetching.ask(0)
    await fetching.ask(1000)

    assert (await fetching.answer()).header["data"]["bOffset"] == 1000
    assert [(one.sent, one.code) for one in platform.blocks(package)] == [(0, 0), (1000, 200)]


async def test_an_error_code(platform: Platform, fetching: Fetching) -> None:
    platform.faults.next_blocks = [429]

    assert (await fetching.fetch(0)).header == {"id": "1", "code": 429, "msg": "told to refuse"}
    assert (await fetching.fetch(0)).header["code"] == 200


async def test_a_late_duplicate(platform: Platform, fetching: Fetching) -> None:
    platform.faults.next_blocks = [BlockFault.TWICE]
    first = await fetching.fetch(0)
    await fetching.ask(1000)
    second, again = await fetching.answer(), await fetching.answer()

    assert second.header["data"]["bOffset"] == 1000
    assert again == first


async def test_out_of_order(platform: Platform, fetching: Fetching) -> None:
    platform.faults.next_blocks = [BlockFault.LATE]
    await fetching.ask(0)
    await fetching.ask(1000)

    offsets = [(await fetching.answer()).header["data"]["bOffset"] for _ in range(2)]
    assert offsets == [1000, 0]


async def test_another_block_than_asked(platform: Platform, fetching: Fetching) -> None:
    platform.faults.next_blocks = [BlockFault.OTHER]
    answer = await fetching.fetch(0)

    assert answer.header["data"]["bOffset"] == 1000
    assert answer.content == IMAGE[1000:2000]
    assert answer.crc == crc16(answer.content)


async def test_every_block(platform: Platform, fetching: Fetching) -> None:
    platform.faults.every_block = BlockFault.CRC
    answers = [await fetching.fetch(0) for _ in range(3)]
    platform.faults.every_block = None

    assert all(answer.crc != crc16(answer.content) for answer in answers)
    assert (await fetching.fetch(0)).crc == crc16(IMAGE[:1000])


async def test_a_wrong_byte_has_a_right_check_sum(platform: Platform, fetching: Fetching) -> None:
    platform.faults.corrupt_at = 1500
    answer = await fetching.fetch(1000)

    assert [at for at, byte in enumerate(answer.content) if byte != IMAGE[1000 + at]] == [500]
    assert answer.crc == crc16(answer.content)


async def test_what_was_held_back_is_forgotten_with_the_connection(
    platform: Platform, fetching: Fetching, connect: Connect
) -> None:
    platform.faults.next_blocks = [BlockFault.LATE]
    await fetching.ask(0)
    await platform.wait(lambda: platform.events.of(BlockServed))
    again = await connect()
    stream = await noticed(again)
    device = Fetching(again, stream)
    await device.ask(1000)
    await device.ask(2000)

    assert [(await device.answer()).header["data"]["bOffset"] for _ in range(2)] == [1000, 2000]
