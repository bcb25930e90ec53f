# SPDX-License-Identifier: Apache-2.0
"""Everything a web server may do to us: what is on the medium afterwards, what it cost, and what is told of it."""

import asyncio
import socket
import struct
from dataclasses import dataclass, replace
from pathlib import Path

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
from otad.core.step import step_for
from otad.errors import Code, UpdateError
from otad.transfer.http import HttpSource

OTHER = bytes(len(IMAGE))
MEMORY_BYTES_MAX = 16 << 20  # of the gateway and the server together
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
    step: int = -2  # what the platform is told in the end


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


def for_ever(begin: bytes, more: bytes) -> Answer:
    """As fast as it goes, until nobody listens any more."""

    async def answer(server: WebServer, request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(begin)
        while True:
            writer.write(more * (64_000 // len(more)))
            await writer.drain()

    return answer


def ranged(content_range: str) -> Answer:
    return part(Content_Range=content_range)


def chunked(*chunks: bytes) -> Answer:
    """A whole answer whose body is these bytes, as they stand."""
    return raw(head("200 OK", Transfer_Encoding="chunked") + b"".join(chunks))


def chunk(content: bytes, extension: bytes = b"") -> bytes:
    return f"{len(content):x}".encode() + extension + b"\r\n" + content + b"\r\n"


def garbage(**headers: object) -> Answer:
    """As many bytes as were asked for, under headers that are right but for these; and none of the image's."""

    async def answer(server: WebServer, request: Request, writer: asyncio.StreamWriter) -> None:
        total = len(server.content)
        right = {"Content_Length": total, "Content_Range": f"bytes 0-{total - 1}/{total}"}
        writer.write(head("206 Partial Content", **(right | headers)) + bytes(total))

    return answer


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
    # -- ranges
    Case("gives_a_negative_range", [ranged("bytes -5-9/300007")], says="does not say which range"),
    Case("gives_a_negative_total", [ranged("bytes 0-9/-300007")], says="does not say which range"),
    Case("gives_a_huge_range", [ranged(f"bytes 0-{'9' * 30}/{'9' * 30}")], says="does not say which range"),
    Case("gives_a_huge_start", [ranged("bytes 999999999999999999-999999999999999999/300007")], says="instead of 0"),
    Case("gives_a_huge_total", [ranged("bytes 0-300006/999999999999999999")], starts=[0, 0], says="the notice says"),
    Case("gives_a_total_of_nothing", [ranged("bytes 0-300006/0")] * 9, Code.CONTENT, says="has 0 bytes"),
    Case("gives_a_range_backwards", [ranged("bytes 300006-0/300007")], says="begins at byte 300006"),
    Case("counts_in_other_units", [ranged("octets 0-300006/300007")], says="does not say which range"),
    Case("counts_in_other_digits", [ranged("bytes ０-9/300007")], says="does not say which range"),
    Case("gives_two_ranges_in_one", [ranged("bytes 0-9/300007, 0-9/300007")], says="does not say which range"),
    Case("gives_the_range_in_capitals", [ranged("BYTES  0-300006/300007")], starts=[0]),
    Case("begins_one_byte_too_late", [CUT, ranged(f"bytes {FAR + 1}-300006/300007")], says=f"instead of {FAR}"),
    Case("has_another_total_in_the_middle", [CUT, ranged(f"bytes {FAR}-9/300008")], starts=[0, FAR, 0], resumed=0),
    Case("knows_the_total_and_no_range", [status("416 No", Content_Range="bytes */300007")] * 4, starts=[0] * 5),
    Case("has_another_total_and_no_range", [status("416 No", Content_Range="bytes */1")] * 9, Code.CONTENT, [0] * 3),
    Case("sends_many_ranges_as_one", [garbage(Content_Type="multipart/byteranges; boundary=x")], Code.DIGEST, step=-3),
    Case("sends_other_bytes_of_the_right_number", [garbage()], Code.DIGEST, [0], step=-3),
    # -- lengths
    Case("has_a_length_with_a_sign", [whole(Content_Length="+300007")], says="not HTTP"),
    Case("has_a_length_with_letters", [whole(Content_Length="0x493E7")], says="not HTTP"),
    Case("has_a_huge_length", [whole(Content_Length="9" * 30)], says="not HTTP"),
    Case("has_a_length_beyond_all_media", [whole(Content_Length="9" * 18)], says="the notice says"),
    Case("has_two_lengths_in_one", [whole(Content_Length="300007, 300007")], says="not HTTP"),
    Case("has_no_length_at_all", [whole(Content_Length="")]),
    Case("has_a_length_of_nothing", [whole(content=b"")] * 9, Code.CONTENT, [0] * 3, says="has 0 bytes"),
    Case(
        "promises_a_range_and_sends_nothing", [part(0, Content_Length=0)] * 3, starts=[0] * 4, says="ended its answer"
    ),
    Case("sends_another_answer_behind", [whole(content=IMAGE + head("200 OK") + OTHER, Content_Length=len(IMAGE))]),
    # -- chunks
    Case("has_a_chunk_of_a_huge_size", [chunked(b"FFFFFFFFFFFFFFFFF\r\n", IMAGE)]),
    Case("has_a_chunk_of_a_negative_size", [chunked(b"-5\r\n", IMAGE)]),
    Case("has_a_chunk_without_a_size", [chunked(b"\r\n", IMAGE)]),
    Case("has_a_long_word_about_a_chunk", [chunked(chunk(IMAGE, b";x=" + b"y" * 100_000))]),
    Case("forgets_the_last_chunk", [chunked(chunk(IMAGE))]),
    Case("has_a_chunk_that_is_too_short", [chunked(b"ffff\r\n", IMAGE[:100])], resumed=1),
    Case(
        "talks_for_ever_about_a_chunk",
        [for_ever(head("200 OK", Transfer_Encoding="chunked") + b"5;", b"x")],
        says="only 0 bytes in",
    ),
    Case(
        "talks_for_ever_about_a_later_chunk",
        [for_ever(head("200 OK", Transfer_Encoding="chunked") + chunk(IMAGE[:FAR]) + b"5;", b"x")],
        resumed=1,
        says="only 0 bytes in",
    ),
    Case("sends_trailers_for_ever", [for_ever(head("200 OK", Transfer_Encoding="chunked") + b"0\r\n", b"X: y\r\n")]),
    Case("sends_empty_chunks_of_many_bytes", [chunked(*[chunk(IMAGE[at : at + 1]) for at in range(5000)])]),
    Case("encodes_the_transfer", [part(Transfer_Encoding="gzip", Content_Length=None)]),
    # -- encodings
    Case("encodes_in_capitals", [part(Content_Encoding="GZIP")], says="encoded"),
    Case("encodes_twice", [part(Content_Encoding="identity, gzip")], says="encoded"),
    Case("encodes_in_a_way_unheard_of", [whole(Content_Encoding="x-secret")] * 9, Code.CONTENT, [0] * 3),
    Case("encodes_in_no_way", [whole(Content_Encoding="")], starts=[0]),
    # -- redirects
    Case("moves_without_saying_where", [status(f"{c} Moved") for c in (301, 303, 307, 308)], starts=[0] * 5),
    Case("moves_to_a_long_url", [moved("/" + "x" * 5000)] * 9, Code.URL, [0] * 3, says="not a URL of at most 4096"),
    Case("moves_to_an_endless_url", [for_ever(b"HTTP/1.1 302 Found\r\nLocation: /", b"x")], says="not HTTP"),
    Case("moves_into_a_script", [moved("javascript:alert(1)")] * 9, Code.URL, [0] * 3, says="scheme"),
    Case("moves_to_nobody", [moved("http://127.0.0.1:1/x")], says="127.0.0.1:1: no connection"),
    Case("moves_to_port_0", [moved("http://127.0.0.1:0/x")] * 9, Code.URL, [0] * 3, says="host and port"),
    Case("moves_to_two_hosts", [moved("http://127.0.0.1\\@example.org/")] * 9, Code.URL, [0] * 3),
    Case("moves_to_a_url_with_spaces", [moved("http://127.0.0.1/a b")] * 9, Code.URL, [0] * 3),
    Case("moves_and_says_no", [moved("/gone"), status("404 Not Found")] * 9, Code.HTTP_STATUS, fresh=("/b",)),
    # -- what may come before an answer
    Case(
        "greets_many_times_and_answers", [raw(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" * 5000 + head("503 No"))]
    ),
    Case("greets_for_ever", [for_ever(b"", b"HTTP/1.1 100 Continue\r\n\r\n")], says="no answer in time"),
    Case("wants_to_talk_otherwise", [status("101 Switching Protocols", b"", Upgrade="h2c", Connection="Upgrade")]),
    Case("has_headers_without_end", [for_ever(b"HTTP/1.1 206 OK\r\n", b"X-Y: z\r\n")], says="not HTTP"),
    Case("has_a_header_without_end", [for_ever(b"HTTP/1.1 206 OK\r\nX: ", b"y")], says="not HTTP"),
    Case("has_a_status_line_without_end", [for_ever(b"HTTP/1.1 206 ", b"O")], says="not HTTP"),
    Case("has_a_thousand_cookies", [part(**{f"X_{n}": "y" for n in range(1000)})], says="not HTTP"),
    Case("breaks_a_header", [raw(b"HTTP/1.1 206 OK\r\nno colon here\r\n\r\n")], says="not HTTP"),
    Case("hides_a_zero_in_a_header", [part(X_Y="a\0b")], says="not HTTP"),
    Case("speaks_another_version", [raw(b"HTTP/9.9 200 OK\r\n\r\n"), raw(b"ICY 200 OK\r\n\r\n")], says="not HTTP"),
    Case(
        "has_a_status_of_letters", [raw(b"HTTP/1.1 2x0 OK\r\n\r\n"), raw(b"HTTP/1.1 -206 OK\r\n\r\n")], says="not HTTP"
    ),
    Case("ends_its_lines_otherwise", [raw(b"HTTP/1.1 503 No\nContent-Length: 0\n\n")]),
    # -- what else there is to say no with
    Case("wants_the_request_otherwise", [status("412 No"), status("417 No")], Code.HTTP_STATUS, fresh=("/b",)),
    Case("wants_money", [status("402 Payment Required")] * 2, Code.HTTP_STATUS, fresh=("/b",), says="402"),
    Case("may_not_say_why", [status("451 Unavailable")] * 2, Code.HTTP_STATUS, fresh=("/b",), says="451"),
    Case("is_a_teapot_for_a_while", [status("418 I'm a teapot")], fresh=("/b",), paths=["/ota/image.bin", "/b"]),
    Case("lets_nobody_into_its_network", [status("511 Network Authentication Required"), status("599 No")], says="511"),
    Case("resets_the_content", [status("205 Reset Content", b""), status("203 Hm"), status("207 Hm")], says="205"),
    Case("offers_a_choice", [status("300 Multiple Choices"), status("305 Use Proxy"), status("306 No")], says="300"),
    Case("says_no_with_an_endless_page", [for_ever(head("403 Forbidden"), b"<p>no</p>")], fresh=("/b",), says="403"),
    Case("says_no_in_strange_letters", [raw(b"HTTP/1.1 503 \x1b[2J\xff\xfe\r\nContent-Length: 0\r\n\r\n")]),
    Case("answers_with_a_strange_number", [status("299 Hm"), status("600 What", b""), status("999 What")]),
]


def resident_bytes() -> int:
    """What this process, server and gateway, holds in memory. The peak is counted from here on, see proc(5)."""
    import aiohttp  # noqa: F401  # what a first download brings in is not what a server has done

    Path("/proc/self/clear_refs").write_text("5")
    return _memory("VmRSS")


def peak_bytes() -> int:
    return _memory("VmHWM")


def _memory(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_server_that(case: Case, server: WebServer, gateway: Gateway) -> None:
    server.answers, server.etag = list(case.answers), case.etag
    source = http_source(server, fresh=tuple(server.url(path) for path in case.fresh))
    failure, resident = None, resident_bytes()
    try:
        place = await asyncio.wait_for(gateway.download(source), 20)
    except UpdateError as error:
        failure = error.failure

    assert peak_bytes() - resident <= MEMORY_BYTES_MAX
    slot = gateway.places.slot.read_bytes()
    assert slot[len(IMAGE) :] == BEHIND
    assert "secret" not in gateway.waited_for + str(failure)
    assert gateway.waited_for.replace("\n", "").isprintable()
    if case.fails is None:
        assert failure is None
        assert place == PlaceKind.SLOT
        assert slot[: len(IMAGE)] == IMAGE
        assert gateway.deployment.checkpoint == len(IMAGE)
        assert gateway.deployment.joined == (gateway.deployment.resumed > 0)
    else:
        assert failure is not None
        assert (failure.code, step_for(failure)) == (case.fails, case.step)
        if case.fails == Code.DIGEST:
            assert slot[: len(IMAGE)] == OTHER
        else:
            came = next((at for at, (is_, of) in enumerate(zip(slot, IMAGE, strict=False)) if is_ != of), len(IMAGE))
            assert slot[came : len(IMAGE)] == b"\xee" * (len(IMAGE) - came)
            assert gateway.deployment.checkpoint <= came < len(IMAGE)
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


PRIVATE = [
    "http://192.168.0.1/x",
    "http://10.0.0.1/x",
    "http://127.0.0.1/x",
    "http://127.1/x",
    "http://2130706433/x",
    "http://0x7f.1/x",
    "http://0/x",
    "http://169.254.169.254/latest/meta-data/",
    "http://[::1]/x",
    "http://[::ffff:10.0.0.1]/x",
    "http://[fe80::1]/x",
    "http://[64:ff9b::a00:1]/x",
    "http://localhost/x",
    "http://sub.localhost./x",
    "//10.0.0.1/x",
]


@pytest.mark.parametrize("target", PRIVATE)
async def test_server_that_leads_into_our_network(target: str, server: WebServer, gateway: Gateway) -> None:
    """It is asked by way of a proxy, so that it can have a public name; and the proxy is never asked for the other."""
    limits = replace(QUICK, allow_private_hosts=False, proxy=f"http://127.0.0.1:{server.port}")
    server.answers = [moved(target)] * 9

    with pytest.raises(UpdateError) as caught:
        await asyncio.wait_for(gateway.download(HttpSource(limits, lambda: "http://packages.example/image.bin")), 20)

    assert (caught.value.failure.code, step_for(caught.value.failure)) == (Code.URL, -2)
    assert set(server.paths) == {"http://packages.example/image.bin"}
    assert gateway.checkpoints == []


async def test_an_object_of_which_nothing_came_has_not_changed(server: WebServer, gateway: Gateway) -> None:
    """Machines behind one name give their own ETags: one that gave no byte does not make the next another object."""
    server.answers = [part(0, ETag=f'"{n}"') for n in range(9)]

    await asyncio.wait_for(gateway.download(http_source(server)), 20)

    assert "has changed" not in gateway.waited_for
    assert gateway.deployment.etag == '"one"'


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
