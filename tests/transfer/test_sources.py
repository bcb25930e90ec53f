# SPDX-License-Identifier: Apache-2.0
"""Which source a deployment gets, and which of the platform's answers it believes."""

import asyncio
import logging
from dataclasses import replace
from pathlib import Path

import pytest
from transfer_world import (
    BEHIND,
    IMAGE,
    QUICK,
    Answer,
    Gateway,
    Platform,
    Request,
    WebServer,
    deployment_of,
    offered,
    part,
    refused,
    right,
    status,
)

from otad.cloud.cloud import Answer as Offering
from otad.cloud.cloud import Nothing, Offered, Unusable
from otad.core.model import DEFAULT_MODULE, Deployment, Notice, Origin, PlaceKind, Stream
from otad.errors import Code, Failure, UpdateError
from otad.transfer.sources import Sources, size_of

CLOSED = replace(QUICK, allow_http=False, allow_private_hosts=False)
EXPIRED = status("403 Forbidden")


@pytest.fixture
def platform() -> Platform:
    return Platform()


def local(url: str) -> Deployment:
    deployment = deployment_of(url=url)
    return replace(deployment, notice=replace(deployment.notice, origin=Origin.LOCAL))


async def bring(gateway: Gateway, platform: Platform, limits: object = QUICK) -> PlaceKind:
    sources = Sources(limits, platform, lambda deployment: deployment.notice)  # type: ignore[arg-type]
    return await asyncio.wait_for(gateway.download(sources.of(gateway.deployment)), 20)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "otad.transfer.http"]


# ---------------------------------------------------------------------------------------------- by hand


@pytest.mark.parametrize("name", ["image.bin", "mit Leerzeichen & Ümlaut#?.bin"])
async def test_a_file_that_a_person_names_is_read(
    name: str, tmp_path: Path, platform: Platform, gateway: Gateway
) -> None:
    file = tmp_path / name
    file.write_bytes(IMAGE)
    gateway.deployment = local(file.as_uri())
    await bring(gateway, platform)

    assert gateway.places.slot.read_bytes() == IMAGE + BEHIND
    assert gateway.deployment.fetched == 0
    assert await size_of(file.as_uri(), CLOSED) == len(IMAGE)


async def test_a_url_that_a_person_names_is_fetched_from_any_address_and_the_platform_not_asked(
    server: WebServer, platform: Platform, gateway: Gateway
) -> None:
    gateway.deployment = local(server.url())
    await bring(gateway, platform, CLOSED)
    assert gateway.places.slot.read_bytes() == IMAGE + BEHIND

    server.answers = [EXPIRED]
    gateway.deployment = local(server.url())
    with pytest.raises(UpdateError, match="403") as caught:
        await bring(gateway, platform, CLOSED)
    assert caught.value.failure.code == Code.HTTP_STATUS
    assert platform.gets == 0
    assert await size_of(server.url(), CLOSED) == len(IMAGE)


async def test_the_size_of_a_file_that_is_not_there_cannot_be_told(tmp_path: Path) -> None:
    with pytest.raises(UpdateError, match="No such file") as caught:
        await size_of((tmp_path / "gone").as_uri(), QUICK)

    assert caught.value.failure.code == Code.MEDIUM


async def test_the_platform_s_url_is_held_to_the_rules(server: WebServer, platform: Platform, gateway: Gateway) -> None:
    gateway.deployment = deployment_of(url=server.url())
    with pytest.raises(UpdateError) as caught:
        await bring(gateway, platform, CLOSED)

    assert caught.value.failure.code == Code.URL
    assert server.requests == []


async def test_the_platform_names_no_file_of_ours(tmp_path: Path, platform: Platform, gateway: Gateway) -> None:
    (tmp_path / "image.bin").write_bytes(IMAGE)
    gateway.deployment = deployment_of(url=(tmp_path / "image.bin").as_uri())
    with pytest.raises(UpdateError, match="the scheme must be https") as caught:
        await bring(gateway, platform)

    assert caught.value.failure.code == Code.URL


# ---------------------------------------------------------------------------------------------- a fresh notice


@pytest.mark.parametrize("code", ["400 Bad Request", "403 Forbidden", "404 Not Found"])
async def test_a_url_that_expires_in_the_middle_is_replaced_and_no_byte_comes_twice(
    code: str, server: WebServer, platform: Platform, gateway: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    gateway.deployment = deployment_of(url=server.url())
    server.answers = [part(150_000), status(code)]
    platform.offers = [offered(gateway.deployment, url=server.url("/fresh"))]
    await bring(gateway, platform)

    assert gateway.places.slot.read_bytes() == IMAGE + BEHIND
    assert list(zip(server.paths, server.starts, strict=True))[2:] == [("/fresh", 150_000)]
    assert gateway.deployment.fetched == len(IMAGE)
    assert platform.gets == 1
    origin = server.url().partition("/ota")[0]
    assert said(caplog)[1:] == [
        f"asked for a fresh URL: {origin}/ota/image.bin: {code}",
        f"{origin}/fresh: the fresh URL works; goes on after byte 150000",
    ]


async def test_however_often_urls_are_refused_the_log_says_it_once(
    server: WebServer, platform: Platform, gateway: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    gateway.deployment = deployment_of(url=server.url())
    server.answers = [EXPIRED] * 6
    platform.offers = [
        Nothing(DEFAULT_MODULE),
        offered(gateway.deployment),
        offered(gateway.deployment, url=server.url("/b")),
        offered(gateway.deployment, url=server.url("/c")),
    ]
    await bring(gateway, platform)

    assert [line.partition(": ")[0] for line in said(caplog)] == [
        "asked for a fresh URL",
        server.url("/c").partition("?")[0],
    ]
    assert "secret" not in caplog.text


async def test_the_same_url_that_works_again_is_said_too(
    server: WebServer, platform: Platform, gateway: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    gateway.deployment = deployment_of(url=server.url())
    server.answers = [EXPIRED] * 3
    await bring(gateway, platform)

    assert said(caplog)[1].endswith("/ota/image.bin: goes on after byte 0")
    assert len(said(caplog)) == 2


def of_another_version(deployment: Deployment, url: str) -> Offering:
    identity = replace(deployment.notice.identity, version="3-0-0")
    return Offered(replace(deployment.notice, identity=identity, url=url), "get:1")


def unusable(deployment: Deployment, url: str) -> Offering:
    return Unusable("key", DEFAULT_MODULE, "3-0-0", Failure(Code.MALFORMED, "size"), "get:1")


@pytest.mark.parametrize("answer", [of_another_version, unusable])
async def test_a_url_of_another_package_is_not_used(
    answer: object, server: WebServer, platform: Platform, gateway: Gateway
) -> None:
    gateway.deployment = deployment_of(url=server.url())
    server.answers = [EXPIRED] * 3
    platform.offers = [answer(gateway.deployment, server.url("/another"))]  # type: ignore[operator]
    await bring(gateway, platform)

    assert gateway.places.slot.read_bytes() == IMAGE + BEHIND
    assert set(server.paths) == {"/ota/image.bin"}


async def test_a_fresh_notice_is_asked_for_when_the_session_is_back(
    server: WebServer, platform: Platform, gateway: Gateway
) -> None:
    gateway.deployment = deployment_of(url=server.url())
    platform.online = False
    platform.offers = [offered(gateway.deployment, url=server.url("/fresh"))]

    async def or_connect(served: WebServer, request: Request, writer: asyncio.StreamWriter) -> None:
        if len(served.requests) == 5:
            platform.connect()
        await EXPIRED(served, request, writer)

    answers: list[Answer] = [or_connect] * 5
    server.answers = answers
    await bring(gateway, platform)

    assert server.paths == ["/ota/image.bin"] * 5 + ["/fresh"]


async def test_what_is_remembered_meanwhile_is_newer_than_what_was_answered(
    server: WebServer, platform: Platform, gateway: Gateway
) -> None:
    """A push comes into the state behind an answer's back."""
    gateway.deployment = deployment_of(url=server.url())
    remembered: list[Notice] = [gateway.deployment.notice]
    platform.offers = [offered(gateway.deployment, url=server.url("/answered"))]

    async def and_push(served: WebServer, request: Request, writer: asyncio.StreamWriter) -> None:
        remembered[0] = replace(remembered[0], url=server.url("/pushed"))
        await part(150_000)(served, request, writer)

    server.answers = [EXPIRED, and_push]
    sources = Sources(QUICK, platform, lambda _: remembered[0])
    await asyncio.wait_for(gateway.download(sources.of(gateway.deployment)), 20)

    assert server.paths == ["/ota/image.bin", "/answered", "/pushed"]


async def test_an_answer_without_a_url_leaves_the_old_one(
    server: WebServer, platform: Platform, gateway: Gateway
) -> None:
    gateway.deployment = deployment_of(url=server.url())
    server.answers = [EXPIRED]
    platform.offers = [offered(gateway.deployment, url="", stream=Stream(5, 1))]
    await bring(gateway, platform)

    assert server.paths == ["/ota/image.bin"] * 2
    assert gateway.places.slot.read_bytes() == IMAGE + BEHIND


async def test_numbers_that_are_the_same_again_are_tried_after_a_pause(platform: Platform, gateway: Gateway) -> None:
    gateway.deployment = deployment_of()
    gateway.deployment = replace(gateway.deployment, notice=replace(gateway.deployment.notice, stream=platform.valid))
    platform.offers = [offered(gateway.deployment)]
    platform.answers = [right, refused]
    await bring(gateway, platform)

    assert gateway.places.slot.read_bytes() == IMAGE + BEHIND
    assert [progress.waits_for for progress in gateway.progress if progress.waits_until] == [
        "the block at byte 32768: code 500: file not found, over MQTT (nothing else is offered)"
    ]


async def test_refused_blocks_go_on_with_the_numbers_of_a_fresh_notice(platform: Platform, gateway: Gateway) -> None:
    gateway.deployment = deployment_of()
    gateway.deployment = replace(gateway.deployment, notice=replace(gateway.deployment.notice, stream=platform.valid))
    platform.offers = [offered(gateway.deployment, stream=Stream(200, 1))]
    platform.answers = [right, refused]
    platform.block_bytes_max = 131072
    renewed = asyncio.Event()

    def look(progress: object) -> None:
        if "a fresh notice" in gateway.progress[-1].waits_for and not renewed.is_set():
            platform.valid = Stream(200, 1)
            renewed.set()

    gateway.on_progress = look
    await bring(gateway, platform)

    assert gateway.places.slot.read_bytes() == IMAGE + BEHIND
    assert platform.streams[:3] == [Stream(100, 1), Stream(100, 1), Stream(200, 1)]
    assert platform.gets == 1
