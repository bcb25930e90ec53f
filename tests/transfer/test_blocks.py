# SPDX-License-Identifier: Apache-2.0
"""Blocks over MQTT: how much is asked for, what is done where none comes, and what is fetched twice."""

import asyncio
import contextlib
import itertools
import logging
import random
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transfer_world import (
    BEHIND,
    IMAGE,
    QUICK,
    SMALL,
    BlockAnswer,
    Gateway,
    Places,
    Platform,
    block_source,
    bytes_of,
    damaged,
    deployment_of,
    late,
    lost,
    of_another,
    refused,
    right,
)

from otad.cloud.cloud import Block
from otad.core.model import DigestMethod, PlaceKind, Stream
from otad.errors import Code, UpdateError
from otad.transfer.source import Begin

SIZE = len(IMAGE)
KIB = 1024
PATIENT = replace(QUICK, backoff_max_s=600)  # a pause that would outlast the test


@pytest.fixture
def platform() -> Platform:
    return Platform()


async def bring(gateway: Gateway, platform: Platform, **options: object) -> PlaceKind:
    return await asyncio.wait_for(gateway.download(block_source(platform, **options)), 20)  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------- how much at once


async def test_blocks_follow_each_other_to_the_last_byte(platform: Platform, gateway: Gateway) -> None:
    await bring(gateway, platform)

    assert gateway.places.slot.read_bytes() == IMAGE + BEHIND
    assert platform.asked[0] == (0, 32 * KIB)
    ends = [0, *itertools.accumulate(size for _, size in platform.asked)]
    assert [offset for offset, _ in platform.asked] == ends[:-1]
    assert ends[-1] == SIZE
    assert (gateway.deployment.fetched, gateway.deployment.resumed, gateway.deployment.joined) == (SIZE, 0, False)


async def test_blocks_grow_while_all_is_well_to_what_the_platform_gives(platform: Platform, gateway: Gateway) -> None:
    platform.content = random.Random(2).randbytes(1_500_001)
    gateway.deployment = deployment_of(platform.content)
    gateway.places.slot.write_bytes(bytes(len(platform.content)))
    await bring(gateway, platform)

    sizes = [size // KIB for _, size in platform.asked]
    assert sizes[:10] == [32] * 4 + [64] * 4 + [128] * 2
    assert set(sizes[10:-1]) == {128}


async def test_blocks_shrink_while_they_fail_and_not_below_4_kib(platform: Platform, gateway: Gateway) -> None:
    platform.answers = [late] * 6
    await bring(gateway, platform)

    assert [size // KIB for _, size in platform.asked[:7]] == [32, 16, 8, 4, 4, 4, 4]
    assert {offset for offset, _ in platform.asked[:7]} == {0}


@pytest.mark.parametrize("most", [4 * KIB, 5 * KIB, 40_000])
async def test_a_platform_of_small_blocks_is_found_out_and_not_tried_for_ever(
    most: int, platform: Platform, gateway: Gateway
) -> None:
    platform.block_bytes_max = most
    platform.content = random.Random(3).randbytes(2_000_000)
    gateway.deployment = deployment_of(platform.content)
    gateway.places.slot.write_bytes(bytes(len(platform.content)))
    await bring(gateway, platform)

    assert gateway.places.slot.read_bytes() == platform.content
    assert sum(size > most for _, size in platform.asked) <= 12
    assert len(platform.asked) <= 2_000_000 / (4 * KIB) + 24


async def test_without_a_session_blocks_do_not_shrink(platform: Platform, gateway: Gateway) -> None:
    """By a half when it was lost, for that may have been the block's fault; the rest says nothing of blocks."""
    platform.answers = [right, *[lost] * 9]
    await bring(gateway, platform)

    assert [size // KIB for _, size in platform.asked[:12]] == [32, 32, *[16] * 10]


async def test_one_lost_block_costs_the_others_little(platform: Platform, gateway: Gateway) -> None:
    """Down by a half, and up again after eight: not for ever at the pace of the worst moment."""
    platform.answers = [right] * 2 + [late]
    await bring(gateway, platform)

    assert [size // KIB for _, size in platform.asked[:12]] == [32] * 3 + [16] * 8 + [32]


async def test_a_shorter_block_than_asked_for_is_as_good(platform: Platform, gateway: Gateway) -> None:
    platform.answers = [bytes_of(300), bytes_of(1), right]
    await bring(gateway, platform)

    assert [offset for offset, _ in platform.asked[:4]] == [0, 300, 301, 301 + 32 * KIB]
    assert gateway.deployment.resumed == 0


@pytest.mark.parametrize("size", [1, 255, 256, 257, 32 * KIB, 32 * KIB + 1, 128 * KIB + 255])
async def test_any_size_fits(size: int, platform: Platform, gateway: Gateway) -> None:
    """The platform asserts that only the last block is smaller than its least."""
    platform.content = IMAGE[:size]
    gateway.deployment = deployment_of(platform.content)
    gateway.places.slot.write_bytes(bytes(size) + BEHIND)
    await bring(gateway, platform)

    assert gateway.places.slot.read_bytes() == IMAGE[:size] + BEHIND


@pytest.mark.parametrize("offset", [0, 1, 150_000, SIZE - 1])
async def test_a_source_begins_where_it_is_told(offset: int, platform: Platform) -> None:
    pieces = [piece async for piece in block_source(platform).pieces(Begin(offset, SIZE), lambda _: None)]

    assert b"".join(piece.content for piece in pieces) == IMAGE[offset:]
    assert [piece.first for piece in pieces] == [True] + [False] * (len(pieces) - 1)
    assert sum(piece.brought for piece in pieces) == SIZE - offset
    assert {piece.etag for piece in pieces} == {""}


# ---------------------------------------------------------------------------------------------- how fast


async def test_the_rate_limit_holds_also_from_moment_to_moment(platform: Platform, gateway: Gateway) -> None:
    began = time.monotonic()
    await bring(gateway, platform, limits=replace(QUICK, rate_limit=300_000))

    assert time.monotonic() - began >= SIZE / 300_000 * 0.9
    platform.asked.clear()
    gateway.deployment = deployment_of(IMAGE[:3000])
    platform.content = IMAGE[:3000]
    await bring(gateway, platform, limits=replace(QUICK, rate_limit=10_000))
    assert platform.asked == [(0, 3000)]


async def test_a_slow_rate_asks_for_small_blocks(platform: Platform) -> None:
    """A block of 32 KiB at 5 kB/s would be a burst, and 6 s of nothing."""
    source = block_source(platform, replace(QUICK, rate_limit=5000))
    pieces = source.pieces(Begin(0, SIZE), lambda _: None)
    piece = await anext(pieces)
    await pieces.aclose()

    assert len(piece.content) == 5000


# ---------------------------------------------------------------------------------------------- when none comes


@dataclass(frozen=True)
class Case:
    name: str
    answers: list[BlockAnswer]
    fails: Code | None = None
    says: str = ""
    resumed: int | None = None
    starts: list[int] | None = None


CASES = [
    Case("gives_all", [], resumed=0),
    Case("damages_the_first", [damaged], resumed=0, says="byte 0: is damaged"),
    Case("damages_one_in_the_middle", [right, right, damaged], resumed=1, says="byte 65536: is damaged"),
    Case("damages_many", [right, *[damaged] * 9, right, damaged], resumed=2),
    Case("does_not_answer", [right, late, late], resumed=1, says="none within 10 s"),
    Case("throws_us_out", [right, lost], resumed=1, says="no session with the platform: closed by the platform"),
    Case("refuses_for_a_while", [right, *[refused] * 5], resumed=1, says="a fresh notice: the block at byte 32768"),
    Case("gives_nothing", [right, bytes_of(0)], resumed=1, says="has 0 bytes, 32768 were asked for"),
    Case("gives_more_than_asked", [bytes_of(40_000)], resumed=0, says="has 40000 bytes, 32768 were asked for"),
    Case("once_has_another_total", [of_another(10)], starts=[0, 0], says="has 10 bytes, the notice says 300007"),
    Case("is_another_file_in_the_middle", [right, of_another(SIZE + 1)], starts=[0, 32768, 0], resumed=0),
    Case("has_another_total", [of_another(10)] * 9, Code.CONTENT, "has 10 bytes", starts=[0, 0, 0]),
    Case("has_a_total_of_nothing", [of_another(0)] * 9, Code.CONTENT, "has 0 bytes", starts=[0, 0, 0]),
    Case("fails_in_every_way", [damaged, late, lost, refused, bytes_of(0), right] * 4, resumed=3),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_platform_that(case: Case, platform: Platform, gateway: Gateway) -> None:
    platform.answers = list(case.answers)
    failure = None
    try:
        place = await bring(gateway, platform)
    except UpdateError as error:
        failure = error.failure

    slot = gateway.places.slot.read_bytes()
    assert slot[SIZE:] == BEHIND
    if case.fails is None:
        assert failure is None
        assert place == PlaceKind.SLOT
        assert slot[:SIZE] == IMAGE
        assert gateway.deployment.joined == (gateway.deployment.resumed > 0)
    else:
        assert failure is not None
        assert failure.code == case.fails
        assert slot[:SIZE] == b"\xee" * SIZE
    if case.resumed is not None:
        assert gateway.deployment.resumed == case.resumed
    if case.starts is not None:
        assert [offset for offset, _ in platform.asked[: len(case.starts)]] == case.starts
    assert case.says in gateway.waited_for + str(failure)


@pytest.mark.parametrize("method", DigestMethod)
async def test_both_digests_are_proven(method: DigestMethod, platform: Platform, gateway: Gateway) -> None:
    gateway.deployment = deployment_of(method=method)
    await bring(gateway, platform)

    gateway.deployment = deployment_of(IMAGE[:-1] + b"?", method)
    with pytest.raises(UpdateError) as caught:
        await bring(gateway, platform)
    assert caught.value.failure.code == Code.DIGEST


async def test_a_platform_that_does_not_tell_the_total_is_believed_by_the_digest(
    platform: Platform, gateway: Gateway
) -> None:
    async def silent(platform: Platform, offset: int, size: int) -> Block:
        return Block(platform.content[offset : offset + size], None)

    platform.answers = [silent] * 99
    await bring(gateway, platform)

    assert gateway.places.slot.read_bytes() == IMAGE + BEHIND


async def test_a_new_session_is_not_slept_through(platform: Platform, gateway: Gateway) -> None:
    seen = asyncio.Event()
    gateway.on_progress = lambda progress: seen.set() if progress.waits_until is not None else None
    platform.online = False
    downloading = asyncio.create_task(bring(gateway, platform, limits=PATIENT))
    for _ in range(12):  # sessions that are lost at once: by then the pause is more than an hour
        platform.answers = [lost] * 12
        await asyncio.wait_for(seen.wait(), 10)
        seen.clear()
        platform.connect()
    platform.answers = []
    platform.connect()
    await downloading

    assert "no session with the platform: the network is unreachable" in gateway.waited_for
    assert gateway.places.slot.read_bytes() == IMAGE + BEHIND


async def test_new_numbers_are_tried_at_once(platform: Platform, gateway: Gateway) -> None:
    async def and_forget(platform: Platform, offset: int, size: int) -> Block:
        platform.valid = Stream(200, 7)
        return await refused(platform, offset, size)

    platform.answers = [right, and_forget]
    await bring(gateway, platform, limits=PATIENT)

    assert platform.gets == 1
    assert platform.streams == [Stream(100, 1)] * 2 + [Stream(200, 7)] * (len(platform.streams) - 2)
    assert all(progress.waits_until is None for progress in gateway.progress)


async def test_numbers_that_are_new_each_time_and_refused_are_not_asked_for_at_full_speed(
    platform: Platform, gateway: Gateway
) -> None:
    async def and_change(platform: Platform, offset: int, size: int) -> Block:
        platform.valid = Stream(platform.valid.stream_id + 1, 1)
        return await refused(platform, offset, size)

    platform.answers = [and_change] * 99
    paused = asyncio.Event()
    gateway.on_progress = lambda progress: paused.set() if progress.waits_until is not None else None
    downloading = asyncio.create_task(bring(gateway, platform, limits=PATIENT))
    await asyncio.wait_for(paused.wait(), 10)
    downloading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await downloading

    assert platform.gets == 2


async def test_the_log_has_a_line_when_it_starts_and_one_when_it_ends(
    platform: Platform, gateway: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    platform.answers = [right, *[damaged] * 5, *[late] * 5, right, right, *[refused] * 5]
    await bring(gateway, platform)

    said = [record.getMessage() for record in caplog.records if record.name == "otad.transfer.blocks"]
    assert [line.partition("; again")[0] for line in said] == [
        "the block at byte 32768: is damaged",
        "blocks over MQTT: goes on after byte 32768",
        "asked for a fresh notice: the block at byte 40960: code 500: file not found",
        "blocks over MQTT: goes on after byte 40960",
    ]


async def test_a_cancellation_ends_the_wait_for_a_block(platform: Platform, gateway: Gateway) -> None:
    waiting = asyncio.Event()

    async def never(platform: Platform, offset: int, size: int) -> Block:
        waiting.set()
        await asyncio.Event().wait()
        raise AssertionError

    platform.answers = [right, never]
    downloading = asyncio.create_task(bring(gateway, platform))
    await asyncio.wait_for(waiting.wait(), 10)
    downloading.cancel()
    await asyncio.wait([downloading], timeout=10)

    assert downloading.cancelled()
    assert platform.in_flight == 0


# ---------------------------------------------------------------------------------------------- again and again


def cut_from(stop_at: int, cut: asyncio.Event) -> BlockAnswer:
    """The power is cut while a block from behind this byte is on its way."""

    async def answer(platform: Platform, offset: int, size: int) -> Block:
        if offset >= stop_at:
            cut.set()
            await asyncio.Event().wait()
        return await right(platform, offset, size)

    return answer


@pytest.mark.parametrize("seed", range(6))
async def test_cut_anywhere_it_goes_on_by_offset_and_fetches_little_twice(
    seed: int, platform: Platform, gateway: Gateway
) -> None:
    """At most one checkpoint and what was in flight, for each cut; the memory of the process is lost each time."""
    chance, cuts = random.Random(seed), 0
    in_flight = SMALL.buffer_bytes * (SMALL.buffers + 1) + 128 * KIB
    while gateway.deployment.checkpoint < SIZE:
        stop_at = gateway.deployment.checkpoint + chance.randrange(1, 120_000)
        asked_before, cut = len(platform.asked), asyncio.Event()
        platform.answers = [cut_from(stop_at, cut)] * 99
        downloading = asyncio.create_task(gateway.download(block_source(platform)))
        cutting = asyncio.create_task(cut.wait())
        await asyncio.wait([downloading, cutting], timeout=10, return_when=asyncio.FIRST_COMPLETED)
        cutting.cancel()
        downloading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await downloading
        cuts += 1
        first, last = platform.asked[asked_before], platform.asked[-1]
        assert sum(last) - gateway.deployment.checkpoint <= SMALL.checkpoint_bytes + in_flight
        assert first[0] <= stop_at

    assert cuts >= 2
    assert gateway.places.slot.read_bytes() == IMAGE + BEHIND
    fetched = sum(size for _, size in platform.asked)
    assert fetched - SIZE <= (cuts - 1) * (SMALL.checkpoint_bytes + in_flight)
    assert gateway.deployment.joined


ANSWERS: list[BlockAnswer] = [
    right, damaged, late, lost, refused, bytes_of(0), bytes_of(1), bytes_of(5000), bytes_of(200_000)
]  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(answers=st.lists(st.sampled_from(ANSWERS), max_size=20), stops=st.lists(st.integers(1, SIZE - 1), max_size=3))
def test_whatever_happened_the_slot_holds_the_image_and_nothing_else_is_touched(
    answers: list[BlockAnswer], stops: list[int], tmp_path: Path
) -> None:
    async def go() -> Gateway:
        gateway, platform = Gateway(Places(tmp_path), deployment_of()), Platform(answers=list(answers))

        for stop_at in sorted(stops):
            downloading = asyncio.create_task(gateway.download(block_source(platform)))
            gateway.on_progress = lambda progress, stop_at=stop_at, it=downloading: (  # type: ignore[misc]
                it.cancel() if progress.bytes >= stop_at else None
            )
            with contextlib.suppress(asyncio.CancelledError):
                await downloading
        gateway.on_progress = lambda progress: None
        await bring(gateway, platform)
        return gateway

    gateway = asyncio.run(go())

    assert gateway.places.slot.read_bytes() == IMAGE + BEHIND
    assert gateway.deployment.checkpoint == SIZE
