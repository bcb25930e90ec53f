# SPDX-License-Identifier: Apache-2.0
"""Everything a web server may do to us, and what is on the medium afterwards."""

import asyncio
import socket
import struct
from dataclasses import dataclass, replace

import pytest
from transfer_world import (
    BEHIND,
    IMAGE,
    QUICK,
    Answer,
    Gateway,
    Request,
    WebServer,
    hang_after,
    head,
    http_source,
    part,
    properly,
    raw,
    status,
    whole,
)

from otad.core.model import PlaceKind
from otad.errors import Code, UpdateError

OTHER = bytes(len(IMAGE))
FAR = 150_000  # bytes before a cut: beyond two checkpoints of the tests' pace


@dataclass(frozen=True)
class Case:
    name: str
    answers: list[Answer]
    fails: Code | None = None
    starts: list[int] | None = None  # the first bytes of all ranges asked for, where they are certain
    resumed: int | None = None
    says: str = ""  # somewhere in the progress, or in the failure
    fresh: tuple[str, ...] = ()  # paths of the URLs that the platform tells when asked
    etag: str = '"one"'
    paths: list[str] | None = None


async def reset(server: WebServer, request: Request, writer: asyncio.StreamWriter) -> None:
    await part(FAR)(server, request, writer)
    await writer.drain()
    handle = writer.get_extra_info("socket")
    handle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def drip(server: WebServer, request: Request, writer: asyncio.StreamWriter) -> None:
    await part(FAR)(server, request, writer)
    for at in range(request.start + FAR, len(IMAGE)):
        writer.write(IMAGE[at : at + 1])
        await writer.drain()
        await asyncio.sleep(0.05)


async def dripping_head(server: WebServer, request: Request, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 206 Partial Content\r\n")
    for at in range(10_000):
        writer.write(f"X-{at}: y\r\n".encode())
        await writer.drain()
        await asyncio.sleep(0.05)


async def endless(server: WebServer, request: Request, writer: asyncio.StreamWriter) -> None:
    writer.write(head("200 OK", Transfer_Encoding="chunked"))
    for at in range(0, 100 * len(IMAGE), 10_000):
        content = (IMAGE[at : at + 10_000]) or b"x" * 10_000
        writer.write(f"{len(content):x}\r\n".encode() + content + b"\r\n")
        await writer.drain()


def etag(value: str) -> Answer:
    return part(FAR, ETag=value)


def moved(to: str, code: int = 302) -> Answer:
    return status(f"{code} Found", Location=to)


def part_of_range(count: int) -> Answer:
    async def answer(server: WebServer, request: Request, writer: asyncio.StreamWriter) -> None:
        end = min(request.start + count, len(IMAGE))
        range_given = f"bytes {request.start}-{end - 1}/{len(IMAGE)}"
        writer.write(head("206 Partial", Content_Length=end - request.start, Content_Range=range_given))
        writer.write(IMAGE[request.start : end])

    return answer


CUT = part(FAR)
CASES = [
    Case("serves_well", [], starts=[0], resumed=0),
    Case("ignores_the_range_at_first", [whole()], starts=[0], resumed=0),
    Case("cuts_once", [CUT], resumed=1, says="connection ended early"),
    Case("cuts_twice", [CUT, part(50_000)], resumed=2),
    Case("cuts_after_the_head", [part(0)], starts=[0, 0], resumed=0),
    Case("cuts_before_the_head", [raw(b"")], starts=[0, 0], resumed=0),
    Case("cuts_within_the_head", [raw(b"HTTP/1.1 206 Par")], starts=[0, 0], resumed=0),
    Case("gives_one_byte_at_a_time", [part(1)] * 5, starts=[0, 1, 2, 3, 4, 5], resumed=5),
    Case("resets", [reset]),
    Case("leaves_out_the_length", [whole(Content_Length=None)], starts=[0]),
    Case("leaves_out_the_length_and_cuts", [whole(FAR, Content_Length=None)], resumed=1),
    Case("sends_more_than_it_says", [whole(content=IMAGE + b"more", Content_Length=len(IMAGE))], starts=[0]),
    Case("sends_more_without_length", [whole(content=IMAGE + b"more" * 9999, Content_Length=None)], starts=[0]),
    Case("sends_without_end", [endless], starts=[0]),
    Case("gives_a_range_beyond_the_end", [part(Content_Length=len(IMAGE) + 4)]),
    Case("gives_the_whole_for_a_range", [CUT, whole()], resumed=1),
    Case("gives_the_whole_and_cuts_before_what_is_new", [CUT, whole(1000), whole(100_000)], resumed=1),
    Case("gives_the_whole_without_length_for_a_range", [CUT, whole(Content_Length=None)], resumed=1),
    Case("gives_a_range_from_0", [CUT, part(Content_Range=f"bytes 0-{len(IMAGE) - 1}/{len(IMAGE)}")], says="begins"),
    Case("does_not_say_which_range", [part(Content_Range=None)], says="does not say which range"),
    Case("talks_nonsense_about_the_range", [part(Content_Range="bytes all/some")], says="does not say which range"),
    Case("sends_many_ranges", [status("206 OK", Content_Type="multipart/byteranges; boundary=x")]),
    Case("does_not_know_the_total", [part(Content_Range=f"bytes 0-{len(IMAGE) - 1}/*")], starts=[0]),
    Case("gives_a_range_in_parts", [part_of_range(100_000)] * 3, starts=[0, 100_000, 200_000, 300_000], resumed=3),
    Case("once_has_another_total", [part(Content_Range="bytes 0-9/10", Content_Length=10)], starts=[0, 0]),
    Case("has_another_total", [part(Content_Range="bytes 0-9/10")] * 9, Code.CONTENT, [0, 0, 0], says="10 bytes"),
    Case("has_another_length", [whole(content=b"<html>log in</html>")] * 9, Code.CONTENT, [0, 0, 0]),
    Case("grows_in_the_middle", [CUT, part(Content_Range="bytes 1-9/10"), properly], resumed=0, says="10 bytes"),
    Case("changes_once", [CUT, etag('"two"'), part(ETag='"two"')], resumed=0, says="has changed"),
    Case("changes_again_and_again", [etag(f'"{n}"') for n in range(9)], Code.CONTENT, says="has changed"),
    Case("weakens_its_etag", [CUT, part(ETag='W/"one"')], resumed=1),
    Case("has_no_etag", [part(FAR, ETag=None), part(ETag=None)], resumed=1),
    Case("has_a_huge_etag", [etag('"' + "x" * 5000 + '"'), etag('"' + "y" * 5000 + '"')]),
    Case("has_an_etag_of_another_alphabet", [etag('"é\x80"')]),
    Case("has_no_such_range_once", [CUT, status("416 Range Not Satisfiable")], says="416"),
    Case("is_shorter_than_what_we_have", [CUT] + [status("416 No", Content_Range="bytes */9")] * 9, Code.CONTENT),
    Case(
        "lets_the_url_expire", [status("403 Forbidden")], starts=[0, 0], fresh=("/b",), paths=["/ota/image.bin", "/b"]
    ),
    Case("lets_the_url_expire_in_the_middle", [CUT, status("403 Forbidden")], fresh=("/b",), resumed=1),
    Case("lets_fresh_urls_expire_too", [status("403 Forbidden")] * 3, fresh=("/b", "/c", "/d"), says="403"),
    Case("refuses_the_same_url_for_a_while", [status("403 Forbidden")] * 4, says="403 Forbidden"),
    Case("does_not_like_the_signature", [status("400 Bad Request")], fresh=("/b",)),
    Case("mislays_the_object_for_a_while", [status("404 Not Found")] * 3, starts=[0] * 4),
    Case("has_lost_the_object", [status("404 Not Found")] * 9, Code.HTTP_STATUS, [0, 0], fresh=("/b",), says="404"),
    Case("expires_and_has_lost", [status("403 No"), status("404 Not Found")], Code.HTTP_STATUS, [0, 0], fresh=("/b",)),
    Case("is_gone", [status("410 Gone")] * 9, Code.HTTP_STATUS, fresh=("/b",), says="410 Gone"),
    Case("wants_a_password", [status("401 Unauthorized")] * 9, Code.HTTP_STATUS, fresh=("/b",)),
    Case("is_overloaded", [status(f"{code} No") for code in (408, 425, 429, 500, 502, 503, 504)], says="503"),
    Case("wants_to_be_left_alone_for_years", [status("503 No", Retry_After="999999999999")]),
    Case("wants_to_be_left_alone_until_long_ago", [status("503 No", Retry_After="Wed, 21 Oct 2015 07:28:00 GMT")]),
    Case("wants_nonsense", [status("429 No", Retry_After="soon"), status("429 No", Retry_After="-5")]),
    Case("stalls_before_the_head", [hang_after(raw(b""))], says="no byte for"),
    Case("stalls_in_the_middle", [hang_after(CUT)], resumed=1, says="no byte for"),
    Case("drips", [drip], resumed=1, says="only"),
    Case("encodes_once", [part(Content_Encoding="gzip")], says="encoded"),
    Case("encodes_always", [part(Content_Encoding="br")] * 9, Code.CONTENT, [0, 0, 0], says="encoded"),
    Case("encodes_as_identity", [part(Content_Encoding="identity")], starts=[0]),
    Case("moves", [moved("/elsewhere?x=%2F"), properly], paths=["/ota/image.bin", "/elsewhere"]),
    Case("moves_three_times", [moved("/1", 301), moved("/2", 303), moved("3", 308), properly], starts=[0] * 4),
    Case("moves_in_circles", [moved("/a", 307)] * 99, Code.URL, [0] * 12, says="more than 3 redirects"),
    Case("moves_to_nowhere", [status("302 Found")] * 99, Code.URL),
    Case("moves_into_our_files", [moved("file:///etc/passwd")] * 9, Code.URL, [0] * 3, says="scheme"),
    Case("moves_to_ftp_once", [moved("ftp://127.0.0.1/x")], says="scheme"),
    Case("moves_with_a_password", [moved("http://me:pw@127.0.0.1/")] * 9, Code.URL, [0] * 3, says="password"),
    Case("moves_to_a_broken_url", [moved("http://[::1")] * 9, Code.URL, [0] * 3),
    Case("has_a_huge_header", [part(X_Huge="x" * 100_000)]),
    Case("has_two_lengths", [raw(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n123456")]),
    Case("has_a_length_and_chunks", [whole(Transfer_Encoding="chunked")]),
    Case("has_a_negative_length", [whole(Content_Length=-5)]),
    Case("is_no_web_server", [raw(b"220 smtp.example ESMTP\r\n"), raw(bytes(range(256)) * 9)]),
    Case("breaks_a_chunk", [raw(head("200 OK", Transfer_Encoding="chunked") + b"5\r\n" + IMAGE[:5] + b"\r\nzz\r\n")]),
    Case("announces_and_then_answers", [raw(b"HTTP/1.1 100 Continue\r\n\r\n")]),
    Case("sets_strange_cookies", [part(Set_Cookie='a="\\;;=\x01, b')]),
    Case("answers_nothing", [status("204 No Content", b""), status("304 Not Modified", b"")], says="204"),
    Case("answers_with_a_strange_number", [status("299 Hm"), status("600 What", b""), status("999 What")]),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_server_that(case: Case, server: WebServer, gateway: Gateway) -> None:
    server.answers, server.etag = list(case.answers), case.etag
    source = http_source(server, fresh=tuple(server.url(path) for path in case.fresh))
    failure = None
    try:
        place = await asyncio.wait_for(gateway.download(source), 20)
    except UpdateError as error:
        failure = error.failure

    slot = gateway.places.slot.read_bytes()
    assert slot[len(IMAGE) :] == BEHIND
    assert "secret" not in gateway.waited_for + str(failure)
    if case.fails is None:
        assert failure is None
        assert place == PlaceKind.SLOT
        assert slot[: len(IMAGE)] == IMAGE
        assert gateway.deployment.checkpoint == len(IMAGE)
        assert gateway.deployment.joined == (gateway.deployment.resumed > 0)
    else:
        assert failure is not None
        assert failure.code == case.fails
        assert gateway.deployment.checkpoint < len(IMAGE)
    if case.starts is not None:
        assert server.starts == case.starts
    if case.resumed is not None:
        assert gateway.deployment.resumed == case.resumed
    if case.paths is not None:
        assert [request.path.partition("?")[0] for request in server.requests] == case.paths
    assert case.says in gateway.waited_for + str(failure)
    for request in server.requests:
        assert request.headers["x-oss-range-behavior"] == "standard"
        assert request.headers["accept-encoding"] == "identity"
        assert request.start >= 0


async def test_server_that_drips_its_head(server: WebServer, gateway: Gateway) -> None:
    """Each line comes in time, the head never: the time for a whole head ends it."""
    server.answers = [dripping_head]

    await asyncio.wait_for(gateway.download(http_source(server, replace(QUICK, connect_timeout_s=0.2))), 20)

    assert "no answer in time" in gateway.waited_for
    assert gateway.places.slot.read_bytes() == IMAGE + BEHIND


async def test_etags_of_two_hosts_are_not_compared(server: WebServer, gateway: Gateway) -> None:
    """localhost and 127.0.0.1 are two names: what one says of an object means nothing at the other."""
    server.answers = [CUT, status("302 Found", Location=server.url("/ota/image.bin", "localhost")), part(ETag='"two"')]

    await asyncio.wait_for(gateway.download(http_source(server)), 20)

    assert gateway.deployment.resumed == 1
    assert gateway.deployment.etag == '"two"'
    assert gateway.deployment.etag_url == f"http://localhost:{server.port}/ota/image.bin"


async def test_nobody_listens_at_first(gateway: Gateway) -> None:
    """A dead network never fails an upgrade: it is waited for, and said so."""
    served = WebServer()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        served.port = probe.getsockname()[1]
    seen = asyncio.Event()
    gateway.on_progress = lambda progress: seen.set() if "no connection" in progress.waits_for else None
    downloading = asyncio.create_task(gateway.download(http_source(served)))
    await asyncio.wait_for(seen.wait(), 5)
    listening = await asyncio.start_server(served.run, "127.0.0.1", served.port)
    await asyncio.wait_for(downloading, 20)
    listening.close()

    assert gateway.places.slot.read_bytes() == IMAGE + BEHIND
    assert any(progress.waits_until is not None for progress in gateway.progress)
