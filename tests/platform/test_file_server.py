# SPDX-License-Identifier: Apache-2.0
"""The file server over real HTTP: object storage's ways with ranges, signatures, and every way to misbehave."""

import asyncio
import gzip
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiohttp
import pytest
from conftest import IMAGE
from yarl import URL

from otad.platform.events import Served
from otad.platform.files import Span, bytes_twice, span_of
from otad.platform.jobs import Package
from otad.platform.platform import Platform

SIZE = len(IMAGE)
STANDARD = {"x-oss-range-behavior": "standard"}


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        yield session


@pytest.mark.parametrize(
    ("range_text", "plain", "standard"),
    [
        (None, Span(200, 0, 1000), Span(200, 0, 1000)),
        ("bytes=0-", Span(206, 0, 1000), Span(206, 0, 1000)),
        ("bytes=0-999", Span(206, 0, 1000), Span(206, 0, 1000)),
        ("bytes=400-", Span(206, 400, 1000), Span(206, 400, 1000)),
        ("bytes=5-5", Span(206, 5, 6), Span(206, 5, 6)),
        ("bytes=-1", Span(206, 999, 1000), Span(206, 999, 1000)),
        ("bytes=0-1000", Span(200, 0, 1000), Span(206, 0, 1000)),
        ("bytes=1000-", Span(200, 0, 1000), Span(416, 0, 0)),
        ("bytes=1000-2000", Span(200, 0, 1000), Span(416, 0, 0)),
        ("bytes=-2000", Span(200, 0, 1000), Span(206, 0, 1000)),
        ("byte=0-499", Span(200, 0, 1000), Span(200, 0, 1000)),
        ("bytes=9-5", Span(200, 0, 1000), Span(200, 0, 1000)),
        ("bytes=0-1,5-6", Span(200, 0, 1000), Span(416, 0, 0)),
        ("bytes=-", Span(200, 0, 1000), Span(416, 0, 0)),
        (f"bytes=0-{'9' * 30}", Span(200, 0, 1000), Span(206, 0, 1000)),
        (f"bytes={'9' * 5000}-", Span(200, 0, 1000), Span(416, 0, 0)),
        (f"bytes=0-{'9' * 5000}", Span(200, 0, 1000), Span(416, 0, 0)),
        (f"bytes=-{'9' * 5000}", Span(200, 0, 1000), Span(416, 0, 0)),
        ("bytes=٣-", Span(200, 0, 1000), Span(416, 0, 0)),
    ],
)
def test_ranges_are_answered_as_by_object_storage(range_text: str | None, plain: Span, standard: Span) -> None:
    assert span_of(range_text, 1000, standard=False) == plain
    assert span_of(range_text, 1000, standard=True) == standard


async def test_the_whole_object(platform: Platform, package: Package, http: aiohttp.ClientSession) -> None:
    async with http.get(platform.url(package)) as answer:
        assert await answer.read() == IMAGE
        assert answer.status == 200
        assert answer.headers["Content-Length"] == str(SIZE)
        assert answer.headers["ETag"] == f'"{package.etag}"'


async def test_a_range(platform: Platform, package: Package, http: aiohttp.ClientSession) -> None:
    async with http.get(platform.url(package), headers={"Range": "bytes=100-"}) as answer:
        assert await answer.read() == IMAGE[100:]
        assert answer.status == 206
        assert answer.headers["Content-Range"] == f"bytes 100-{SIZE - 1}/{SIZE}"


async def test_a_range_beyond_the_end(platform: Platform, package: Package, http: aiohttp.ClientSession) -> None:
    headers = {"Range": f"bytes={SIZE}-"}
    async with http.get(platform.url(package), headers=headers) as answer:
        assert answer.status == 200
    async with http.get(platform.url(package), headers={**headers, **STANDARD}) as answer:
        assert answer.status == 416
        assert answer.headers["Content-Range"] == f"bytes */{SIZE}"
        assert "<Code>InvalidRange</Code>" in await answer.text()


def test_urls_have_the_form_of_the_cdn(platform: Platform, package: Package) -> None:
    form = rf"http://127\.0\.0\.1:{platform.http_port}/ota/[0-9a-f]{{32}}/1\.bin"
    url, another = platform.url(package), platform.url(package)

    assert re.fullmatch(form + r"\?auth_key=\d{10}-[0-9a-f]+-0-[0-9a-f]{32}", url)
    assert url != another


@pytest.mark.parametrize("spoil", [lambda u: u[:-1], lambda u: u + "0", lambda u: u.partition("?")[0]])
async def test_a_url_that_is_not_signed(
    platform: Platform, package: Package, http: aiohttp.ClientSession, spoil: "type[str]"
) -> None:
    async with http.get(spoil(platform.url(package))) as answer:
        assert answer.status == 403
        assert "X-Tengine-Error" in answer.headers
        assert "<Code>AccessDenied</Code>" in await answer.text()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda url: url.partition("?")[0], "no url arg auth_key"),
        (lambda url: f"{url}0", "invalid md5hash"),
        (lambda url: url.replace("auth_key=1", "auth_key=2"), "invalid md5hash"),
    ],
    ids=["no key", "another hash", "another time"],
)
async def test_the_cdn_says_in_a_header_why(
    platform: Platform, package: Package, http: aiohttp.ClientSession, spoil: Callable[[str], str], says: str
) -> None:
    async with http.get(spoil(platform.url(package))) as answer:
        assert (answer.status, answer.headers["Server"]) == (403, "Tengine")
        assert answer.headers["X-Tengine-Error"] == f"denied by req auth: {says}"


async def test_a_url_that_has_expired(tmp_path: Path, http: aiohttp.ClientSession) -> None:
    (tmp_path / "image").write_bytes(IMAGE)
    async with Platform(tmp_path / "platform", url_ttl_s=0) as platform:
        package = platform.add_package(tmp_path / "image", "2-0-0")
        async with http.get(platform.url(package)) as answer:
            assert answer.status == 403
            assert answer.headers["X-Tengine-Error"] == "denied by req auth: expired timestamp"


async def test_a_package_that_was_deleted(platform: Platform, package: Package, http: aiohttp.ClientSession) -> None:
    url = platform.url(package)
    platform.delete_package(package)
    async with http.get(url) as answer:
        assert answer.status == 404
        text = await answer.text()
        assert "<Code>NoSuchKey</Code>" in text
        assert f"<Key>{url.partition('?')[0].split('/', 3)[3]}</Key>" in text


async def test_every_request_is_recorded(platform: Platform, package: Package, http: aiohttp.ClientSession) -> None:
    platform.faults.cut_after, platform.faults.cut_times = 60_000, 1
    async with http.get(platform.url(package)) as answer:
        with pytest.raises(aiohttp.ClientPayloadError):
            await answer.read()
    async with http.get(platform.url(package), headers={"Range": "bytes=50000-"}) as answer:
        await answer.read()
    await platform.wait(lambda: len(platform.served(package)) == 2)

    first, second = platform.served(package)
    assert (first.range, first.status, first.start, first.sent, first.whole) == (None, 200, 0, 60_000, False)
    assert (second.range, second.status, second.start, second.sent) == ("bytes=50000-", 206, 50_000, SIZE - 50_000)
    assert second.headers["range"] == "bytes=50000-"
    assert platform.bytes_sent(package) == SIZE + 10_000
    assert platform.bytes_twice(package) == 10_000


@pytest.mark.parametrize(
    ("spans", "twice"),
    [
        ([], 0),
        ([(0, 10), (10, 10)], 0),
        ([(0, 10), (5, 10)], 5),
        ([(0, 10), (0, 10), (0, 10)], 20),
        ([(0, 100), (10, 20), (20, 20)], 40),
        ([(50, 10), (0, 0), (0, 10)], 0),
    ],
)
def test_bytes_twice(spans: list[tuple[int, int]], twice: int) -> None:
    served = [Served(0, "1", "2", None, 206, start, sent, True, {}) for start, sent in spans]

    assert bytes_twice(served) == twice


# Misbehaviour.


@pytest.mark.parametrize("after", [0, 1, 65_536, 100_000])
async def test_cut(platform: Platform, package: Package, http: aiohttp.ClientSession, after: int) -> None:
    platform.faults.cut_after = after
    for _ in range(2):
        received = b""
        async with http.get(platform.url(package)) as answer:
            try:
                while chunk := await answer.content.readany():
                    received += chunk
            except aiohttp.ClientPayloadError:
                pass
        assert received == IMAGE[:after]


async def test_cut_all_downloads_now(platform: Platform, package: Package, http: aiohttp.ClientSession) -> None:
    platform.faults.stall_after = 1000
    async with http.get(platform.url(package)) as answer:
        await answer.content.readexactly(1000)
        platform.cut_downloads()
        with pytest.raises(aiohttp.ClientPayloadError):
            await answer.read()
    await platform.wait(lambda: platform.served(package))

    assert platform.bytes_sent(package) == 1000


async def test_stall_and_go_on(platform: Platform, package: Package, http: aiohttp.ClientSession) -> None:
    platform.faults.stall_after = 1000
    async with http.get(platform.url(package)) as answer:
        start = await answer.content.readexactly(1000)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await answer.content.readany()
        platform.faults.stall_after = None
        assert start + await answer.read() == IMAGE


async def test_slow(platform: Platform, package: Package, http: aiohttp.ClientSession) -> None:
    platform.faults.rate = SIZE * 4
    begun = asyncio.get_running_loop().time()
    async with http.get(platform.url(package)) as answer:
        await answer.read()

    assert 0.2 < asyncio.get_running_loop().time() - begun < 2


async def test_200_for_a_range(platform: Platform, package: Package, http: aiohttp.ClientSession) -> None:
    platform.faults.ignore_range = True
    async with http.get(platform.url(package), headers={"Range": "bytes=100-"}) as answer:
        assert (answer.status, await answer.read()) == (200, IMAGE)


async def test_another_start_than_asked(platform: Platform, package: Package, http: aiohttp.ClientSession) -> None:
    platform.faults.range_shift = -10
    async with http.get(platform.url(package), headers={"Range": "bytes=100-"}) as answer:
        assert answer.headers["Content-Range"] == f"bytes 90-{SIZE - 1}/{SIZE}"
        assert await answer.read() == IMAGE[90:]


async def test_another_etag(platform: Platform, package: Package, http: aiohttp.ClientSession) -> None:
    platform.faults.etag = "0123"
    async with http.get(platform.url(package)) as answer:
        assert answer.headers["ETag"] == '"0123"'


@pytest.mark.parametrize("delta", [-1000, 1000])
async def test_another_size(platform: Platform, package: Package, http: aiohttp.ClientSession, delta: int) -> None:
    platform.faults.size_delta = delta
    async with http.get(platform.url(package), headers={"Range": "bytes=100-"}) as answer:
        assert answer.headers["Content-Range"] == f"bytes 100-{SIZE + delta - 1}/{SIZE + delta}"
        assert len(await answer.read()) == SIZE + delta - 100


async def test_a_wrong_byte(platform: Platform, package: Package, http: aiohttp.ClientSession) -> None:
    platform.faults.corrupt_at = 70_000
    async with http.get(platform.url(package), headers={"Range": "bytes=65000-"}) as answer:
        received = await answer.read()

    assert [at for at, byte in enumerate(received) if byte != IMAGE[65_000 + at]] == [5_000]


async def test_the_next_answers(platform: Platform, package: Package, http: aiohttp.ClientSession) -> None:
    platform.faults.next_statuses = [403, 404, 503]
    seen = []
    for _ in range(4):
        async with http.get(platform.url(package)) as answer:
            seen.append(answer.status)

    assert seen == [403, 404, 503, 200]


async def test_urls_live_as_long_as_they_are_told_to(
    platform: Platform, package: Package, http: aiohttp.ClientSession
) -> None:
    url = platform.url(package)
    platform.faults.url_ttl_s = 0
    async with http.get(url) as answer:
        assert answer.status == 403
    platform.faults.url_ttl_s = 60
    async with http.get(url) as answer:
        assert answer.status == 200


async def test_urls_of_object_storage(platform: Platform, package: Package, http: aiohttp.ClientSession) -> None:
    platform.faults.oss_urls = True
    url = platform.url(package)
    names = [pair.partition("=")[0] for pair in url.partition("?")[2].split("&")]
    async with http.get(URL(url, encoded=True), headers={"Range": "bytes=100-"}) as answer:
        assert await answer.read() == IMAGE[100:]

    assert len(url) > 900
    assert names == ["Expires", "OSSAccessKeyId", "Signature", "security-token"]


async def test_object_storage_says_in_xml_that_a_url_has_expired(
    platform: Platform, package: Package, http: aiohttp.ClientSession
) -> None:
    platform.faults.oss_urls = True
    platform.faults.url_ttl_s = 0
    async with http.get(URL(platform.url(package), encoded=True)) as answer:
        assert answer.status == 403
        assert "X-Tengine-Error" not in answer.headers
        assert (answer.headers["Server"], answer.content_type) == ("AliyunOSS", "application/xml")
        text = await answer.text()
        request_id = answer.headers["x-oss-request-id"]

    time = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
    assert re.fullmatch(
        '<\\?xml version="1.0" encoding="UTF-8"\\?>\n<Error>\n'
        "  <Code>AccessDenied</Code>\n  <Message>Request has expired.</Message>\n"
        rf"  <RequestId>{request_id}</RequestId>\n  <HostId>127\.0\.0\.1:{platform.http_port}</HostId>\n"
        rf"  <Expires>{time}</Expires>\n  <ServerTime>{time}</ServerTime>\n"
        "  <EC>0002-00000069</EC>\n</Error>\n",
        text,
    )


@pytest.mark.parametrize(
    "spoil",
    [
        lambda url: url.replace("Expires=1", "Expires=2"),
        lambda url: re.sub("Signature=[^&]*", "Signature=x", url),
        lambda url: url[:-3] + "AAA",
    ],
    ids=["time", "signature", "token"],
)
async def test_object_storage_does_not_take_a_changed_url(
    platform: Platform, package: Package, http: aiohttp.ClientSession, spoil: Callable[[str], str]
) -> None:
    platform.faults.oss_urls = True
    async with http.get(URL(spoil(platform.url(package)), encoded=True)) as answer:
        assert answer.status == 403
        assert "<Code>SignatureDoesNotMatch</Code>" in await answer.text()


@pytest.mark.parametrize(
    ("status", "oss", "code"),
    [
        (403, True, "AccessDenied"),
        (403, False, "AccessDenied"),
        (404, True, "NoSuchKey"),
        (503, True, "ServiceUnavailable"),
    ],
)
async def test_an_answer_by_order_has_the_form_of_the_one_who_answers(
    platform: Platform, package: Package, http: aiohttp.ClientSession, status: int, oss: bool, code: str
) -> None:
    platform.faults.oss_urls = oss
    platform.faults.next_statuses = [status]
    async with http.get(URL(platform.url(package), encoded=True)) as answer:
        assert answer.status == status
        assert f"<Code>{code}</Code>" in await answer.text()
        assert ("X-Tengine-Error" in answer.headers) is (status == 403 and not oss)


async def test_a_redirect(platform: Platform, package: Package, http: aiohttp.ClientSession) -> None:
    platform.faults.redirect_to = "http://192.0.2.1/"
    async with http.get(platform.url(package), allow_redirects=False) as answer:
        assert (answer.status, answer.headers["Location"]) == (302, "http://192.0.2.1/")


async def test_a_body_in_gzip(platform: Platform, package: Package, http: aiohttp.ClientSession) -> None:
    platform.faults.gzip = True
    async with http.get(platform.url(package)) as answer:
        assert answer.headers["Content-Encoding"] == "gzip"
        assert gzip.decompress(await answer.read()) == IMAGE
