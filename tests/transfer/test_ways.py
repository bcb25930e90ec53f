# SPDX-License-Identifier: Apache-2.0
"""The same bytes over HTTP and over MQTT: which way is taken when, what is said of it, and that no byte comes twice."""

import asyncio
import logging
import socket
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import replace

import pytest
from transfer_world import (
    BEHIND,
    IMAGE,
    QUICK,
    Answer,
    BlockAnswer,
    Gateway,
    Platform,
    WebServer,
    damaged,
    deployment_of,
    late,
    lost,
    of_another,
    offered,
    part,
    refused,
    right,
    status,
    whole,
)

from otad.cloud.cloud import Nothing
from otad.config import DownloadSettings
from otad.core.model import DEFAULT_MODULE, Notice, PlaceKind, Stream
from otad.errors import Code, UpdateError
from otad.transfer.source import Begin, NoWay, Piece, Waiting
from otad.transfer.sources import Sources
from otad.transfer.ways import Way, Ways

SIZE = len(IMAGE)
FAR = 150_000
STREAM = Stream(100, 1)
NOT_FOUND = status("404 Not Found")
BROKEN = status("502 Bad Gateway")


@pytest.fixture
def platform() -> Platform:
    return Platform()


@pytest.fixture
def blocked() -> Iterator[str]:
    """A URL at which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}/image.bin?auth_key=secret-signature"


def told(gateway: Gateway, url: str = "", stream: Stream | None = STREAM) -> None:
    """The notice that begins the deployment."""
    gateway.deployment = replace(gateway.deployment, notice=replace(gateway.deployment.notice, url=url, stream=stream))


async def bring(
    gateway: Gateway, platform: Platform, limits: DownloadSettings = QUICK, ask_every_s: float = 600
) -> PlaceKind:
    sources = Sources(limits, platform, lambda deployment: deployment.notice, ask_every_s=ask_every_s)
    return await asyncio.wait_for(gateway.download(sources.of(gateway.deployment)), 20)


def complete(gateway: Gateway) -> bool:
    return gateway.places.slot.read_bytes() == IMAGE + BEHIND and "secret" not in gateway.waited_for


def switches(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "otad.transfer.ways"]


# ---------------------------------------------------------------------------------------------- which way


async def test_http_is_preferred(server: WebServer, platform: Platform, gateway: Gateway) -> None:
    told(gateway, server.url())
    server.answers = [part(FAR), BROKEN, BROKEN]
    await bring(gateway, platform)

    assert complete(gateway)
    assert (platform.asked, platform.gets) == ([], 0)
    assert "MQTT" not in gateway.waited_for


async def test_when_http_is_blocked_it_comes_over_mqtt(
    blocked: str, platform: Platform, gateway: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    told(gateway, blocked)
    await bring(gateway, platform)

    assert complete(gateway)
    assert not gateway.deployment.joined
    assert gateway.deployment.fetched == SIZE
    host = blocked.partition("//")[2].partition("/")[0]
    why = f"over MQTT (not over HTTP: {host}: no connection: Connection refused)"
    assert switches(caplog) == [f"the package comes {why} from byte 0 on"]
    assert f"the platform to send a block, {why}" in gateway.waited_for


async def test_blocked_in_the_middle_it_goes_on_over_mqtt_and_no_byte_comes_twice(
    server: WebServer, platform: Platform, gateway: Gateway
) -> None:
    told(gateway, server.url())
    server.answers = [part(FAR), *[BROKEN] * 9]
    await bring(gateway, platform)

    assert complete(gateway)
    assert server.starts == [0, FAR, FAR, FAR]
    assert platform.asked[0][0] == FAR
    assert gateway.deployment.fetched == SIZE
    assert gateway.deployment.joined
    assert gateway.deployment.resumed == 1


async def test_without_a_session_it_goes_back_to_http_and_no_byte_comes_twice(
    server: WebServer, platform: Platform, gateway: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    told(gateway, server.url())
    server.answers = [BROKEN] * 3
    platform.answers = [right, right, *[lost] * 99]
    await bring(gateway, platform)

    assert complete(gateway)
    assert server.starts == [0, 0, 0, 65536]
    assert len(platform.asked) == 5  # two that came and three that did not: what HTTP was is forgotten by then
    assert gateway.deployment.fetched == SIZE
    assert [line.partition(" (")[0] for line in switches(caplog)] == [
        "the package comes over MQTT",
        "the package comes over HTTP",
    ]


async def test_a_way_that_works_is_stayed_with(server: WebServer, platform: Platform, gateway: Gateway) -> None:
    """HTTP is back, and faster; nobody looks, and a few failures of the other are no reason."""
    told(gateway, server.url())
    server.answers = [BROKEN] * 3
    platform.answers = [right, damaged, late, right, lost, lost, right]
    await bring(gateway, platform)

    assert complete(gateway)
    assert len(server.requests) == 3


async def test_a_way_that_works_is_stayed_with_after_another_object(
    server: WebServer, platform: Platform, gateway: Gateway
) -> None:
    told(gateway, server.url())
    server.answers = [BROKEN] * 3
    platform.answers = [right, of_another(10)]
    await bring(gateway, platform)

    assert complete(gateway)
    assert len(server.requests) == 3


@pytest.mark.parametrize("failures", [3, 4, 7, 20])
async def test_neither_way_is_starved(failures: int, server: WebServer, platform: Platform, gateway: Gateway) -> None:
    """Whichever comes back first brings the package, each having had its attempts in the same measure."""
    told(gateway, server.url())
    platform.online = False
    server.answers = [BROKEN] * failures
    await bring(gateway, platform)
    assert complete(gateway)

    server.requests.clear()
    server.answers = [BROKEN] * 999
    gateway.deployment = deployment_of()
    told(gateway, server.url())
    platform.online = True
    platform.answers = [late] * failures
    await bring(gateway, platform)

    assert complete(gateway)
    assert failures <= len(server.requests) <= failures + 3


async def test_between_rounds_it_says_what_is_wrong_with_each(
    blocked: str, platform: Platform, gateway: Gateway
) -> None:
    told(gateway, blocked)
    platform.online = False
    both = asyncio.Event()
    gateway.on_progress = lambda progress: (
        both.set()
        if progress.waits_for.startswith("over HTTP: 127.0.0.1")
        and "; over MQTT: no session with the platform" in progress.waits_for
        and progress.waits_until is not None
        else None
    )
    downloading = asyncio.create_task(bring(gateway, platform))
    await asyncio.wait_for(both.wait(), 10)
    platform.connect()
    await downloading

    assert complete(gateway)


class NobodySource:
    """Nothing comes this way."""

    async def pieces(self, begin: Begin, waits: Callable[[Waiting], None]) -> AsyncGenerator[Piece, None]:
        raise NoWay("nobody")
        yield


async def test_the_pause_between_rounds_grows() -> None:
    async def ask() -> None: ...

    ways = Ways([Way("one", NobodySource(), lambda: True), Way("two", NobodySource(), lambda: True)], ask, 600)
    pauses: list[float] = []
    twice = asyncio.Event()

    def waits(waiting: Waiting) -> None:
        assert (waiting.reason, waiting.until is None) == ("over one: nobody; over two: nobody", False)
        pauses.append((waiting.until or 0) - time.time())
        if len(pauses) == 2:
            twice.set()

    pieces = ways.pieces(Begin(0, 10), waits)
    begun = asyncio.create_task(anext(pieces))
    await asyncio.wait_for(twice.wait(), 10)
    begun.cancel()
    await asyncio.wait([begun])

    assert 0.45 <= pauses[0] <= 1 <= round(pauses[1], 1) <= 2


# ---------------------------------------------------------------------------------------------- what is offered


async def test_what_is_offered_over_mqtt_only_comes_over_mqtt(
    platform: Platform, gateway: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    told(gateway)
    platform.answers = [right, *[lost] * 7]
    await bring(gateway, platform)

    assert complete(gateway)
    assert switches(caplog) == ["the package comes over MQTT (nothing else is offered) from byte 0 on"]


async def test_the_platform_is_asked_for_a_url_before_mqtt_is_given_up(
    server: WebServer, platform: Platform, gateway: Gateway
) -> None:
    told(gateway)
    platform.answers = [right, *[late] * 99]
    platform.offers = [offered(gateway.deployment, url=server.url("/b"), stream=None)]
    await bring(gateway, platform)

    assert complete(gateway)
    assert (server.paths, server.starts) == (["/b"], [32768])
    assert platform.gets == 1


async def test_the_platform_is_asked_for_blocks_before_http_is_given_up(
    blocked: str, platform: Platform, gateway: Gateway
) -> None:
    told(gateway, blocked, stream=None)
    platform.valid = Stream(7, 7)
    platform.offers = [offered(gateway.deployment, url="", stream=platform.valid)]
    await bring(gateway, platform)

    assert complete(gateway)
    assert platform.gets == 1
    assert set(platform.streams) == {Stream(7, 7)}


async def test_the_platform_is_not_asked_for_another_way_all_the_time(
    server: WebServer, platform: Platform, gateway: Gateway
) -> None:
    told(gateway, server.url(), stream=None)
    server.answers = [BROKEN] * 30
    platform.offers = [Nothing(DEFAULT_MODULE)]
    await bring(gateway, platform)

    assert complete(gateway)
    assert platform.gets == 1


async def test_a_platform_out_of_reach_is_asked_as_soon_as_it_is_back(
    server: WebServer, platform: Platform, gateway: Gateway
) -> None:
    told(gateway, server.url(), stream=None)
    platform.online = False
    server.answers = [BROKEN] * 9999
    platform.offers = [offered(gateway.deployment, url="", stream=STREAM)]
    seen = asyncio.Event()
    gateway.on_progress = lambda progress: seen.set() if len(server.requests) > 9 else None
    downloading = asyncio.create_task(bring(gateway, platform))
    await asyncio.wait_for(seen.wait(), 10)
    platform.connect()
    await downloading

    assert complete(gateway)
    assert platform.gets == 1


async def test_a_large_package_is_never_asked_for_in_blocks(
    server: WebServer, platform: Platform, gateway: Gateway
) -> None:
    notice = gateway.deployment.notice
    large = replace(notice, identity=replace(notice.identity, size=(16 << 20) + 1))
    gateway.deployment = replace(gateway.deployment, notice=large)
    told(gateway, server.url())
    server.answers = [BROKEN] * 999
    seen = asyncio.Event()
    gateway.on_progress = lambda progress: seen.set() if len(server.requests) > 12 else None
    downloading = asyncio.create_task(bring(gateway, platform))
    await asyncio.wait_for(seen.wait(), 10)
    downloading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await downloading

    assert (platform.asked, platform.gets) == ([], 0)


async def test_a_large_package_that_is_offered_in_blocks_only_has_no_way(platform: Platform, gateway: Gateway) -> None:
    notice = gateway.deployment.notice
    large = replace(notice, identity=replace(notice.identity, size=(16 << 20) + 1), stream=STREAM)
    gateway.deployment = replace(gateway.deployment, notice=large)
    with pytest.raises(UpdateError, match="neither over HTTP nor MQTT"):
        await bring(gateway, platform)

    assert platform.asked == []


async def test_an_answer_that_names_one_way_does_not_close_the_other(
    server: WebServer, platform: Platform, gateway: Gateway
) -> None:
    told(gateway, server.url(), stream=None)
    server.answers = [status("403 Forbidden"), BROKEN, BROKEN]
    platform.offers = [offered(gateway.deployment, url="", stream=STREAM)]
    platform.answers = [right, *[late] * 999]
    await bring(gateway, platform)

    assert complete(gateway)
    assert server.starts[-1] == 32768


async def test_a_package_that_is_offered_no_way_at_all_fails_after_asking(platform: Platform, gateway: Gateway) -> None:
    told(gateway, stream=None)
    with pytest.raises(UpdateError, match="offers the package neither over HTTP nor MQTT") as caught:
        await bring(gateway, platform)

    assert caught.value.failure.code == Code.UNSUPPORTED
    assert platform.gets == 1


async def test_what_comes_into_the_state_meanwhile_counts(
    blocked: str, server: WebServer, platform: Platform, gateway: Gateway
) -> None:
    told(gateway, blocked, stream=None)
    remembered: list[Notice] = [gateway.deployment.notice]
    platform.offers = [Nothing(DEFAULT_MODULE)]
    seen = asyncio.Event()
    gateway.on_progress = lambda progress: seen.set() if platform.gets else None
    sources = Sources(QUICK, platform, lambda _: remembered[0])
    downloading = asyncio.create_task(gateway.download(sources.of(gateway.deployment)))
    await asyncio.wait_for(seen.wait(), 10)
    remembered[0] = replace(remembered[0], stream=STREAM)
    await asyncio.wait_for(downloading, 20)

    assert complete(gateway)
    assert platform.asked[0] == (0, 32768)


# ---------------------------------------------------------------------------------------------- what is final


@pytest.mark.parametrize(
    "answers",
    [
        [NOT_FOUND] * 99,
        [part(FAR), *[NOT_FOUND] * 99],
        [whole(content=b"<html>log in</html>")] * 99,
        [part(FAR, ETag='"two"'), *[part(FAR, Content_Encoding="gzip")] * 99],
        [status("302 Found", Location="ftp://127.0.0.1/x")] * 99,
    ],
    ids=["lost", "lost_in_the_middle", "log_in", "encoded", "redirect"],
)
async def test_what_is_wrong_for_good_over_http_may_be_right_over_mqtt(
    answers: list[Answer], server: WebServer, platform: Platform, gateway: Gateway
) -> None:
    told(gateway, server.url())
    server.answers = list(answers)
    platform.offers = [offered(gateway.deployment, url=server.url("/b"))]
    await bring(gateway, platform)

    assert complete(gateway)


async def test_a_url_that_a_rule_forbids_leaves_mqtt(server: WebServer, platform: Platform, gateway: Gateway) -> None:
    told(gateway, server.url())
    await bring(gateway, platform, replace(QUICK, allow_http=False))

    assert complete(gateway)
    assert server.requests == []
    assert "plain http needs download.allow_http" in gateway.waited_for


async def test_without_another_way_what_is_final_is_final(
    server: WebServer, platform: Platform, gateway: Gateway
) -> None:
    told(gateway, server.url(), stream=None)
    server.answers = [NOT_FOUND] * 99
    platform.offers = [offered(gateway.deployment, url=server.url("/b"))]
    with pytest.raises(UpdateError, match="404") as caught:
        await bring(gateway, platform)

    assert caught.value.failure.code == Code.HTTP_STATUS
    assert len(server.requests) == 2


async def test_a_no_of_each_way_is_final(server: WebServer, platform: Platform, gateway: Gateway) -> None:
    told(gateway, server.url())
    server.answers = [part(FAR), *[NOT_FOUND] * 99]
    platform.answers = [refused] * 99
    platform.offers = [offered(gateway.deployment, url=server.url("/b"))]
    with pytest.raises(UpdateError, match="404") as caught:
        await bring(gateway, platform)

    assert caught.value.failure.code == Code.HTTP_STATUS
    assert gateway.deployment.checkpoint == 131072


@pytest.mark.parametrize("trouble", [late, lost])
async def test_a_no_of_one_is_not_final_while_the_other_is_only_out_of_reach(
    trouble: BlockAnswer, server: WebServer, platform: Platform, gateway: Gateway
) -> None:
    told(gateway, server.url())
    server.answers = [NOT_FOUND] * 999
    platform.answers = [trouble] * 20
    platform.offers = [offered(gateway.deployment, url=server.url("/b"))]
    await bring(gateway, platform)

    assert complete(gateway)
