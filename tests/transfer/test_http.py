# SPDX-License-Identifier: Apache-2.0
"""HTTP beyond a single answer: encryption, proxies, private addresses, rates, and whom a source asks."""

import asyncio
import socket
import ssl
import time
from dataclasses import replace
from pathlib import Path

import pytest
from transfer_world import BEHIND, IMAGE, QUICK, Gateway, Request, WebServer, http_source, part, status

from otad.config import DownloadSettings
from otad.errors import Code, UpdateError
from otad.transfer.http import HttpSource
from otad.transfer.source import Begin, backoff_s

CLOSED = replace(QUICK, allow_http=False, allow_private_hosts=False)


async def says(gateway: Gateway, source: HttpSource, words: str) -> None:
    """Download until the progress says this; then give up."""
    seen = asyncio.Event()
    gateway.on_progress = lambda progress: seen.set() if words in progress.waits_for else None
    downloading = asyncio.create_task(gateway.download(source))
    try:
        await asyncio.wait_for(seen.wait(), 10)
    finally:
        downloading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await downloading


async def test_a_server_with_our_certificate_is_believed(
    tls_server: WebServer, certificate: Path, gateway: Gateway
) -> None:
    tls_server.answers = [part(100_000)]
    source = HttpSource(replace(QUICK, ca_file=certificate), lambda: tls_server.url(host="localhost"))

    await asyncio.wait_for(gateway.download(source), 20)

    assert gateway.places.slot.read_bytes() == IMAGE + BEHIND
    assert gateway.deployment.resumed == 1


async def test_an_unknown_certificate_is_waited_for_and_said(tls_server: WebServer, gateway: Gateway) -> None:
    await says(gateway, HttpSource(QUICK, lambda: tls_server.url(host="localhost")), "certificate is not accepted")

    assert tls_server.requests == []
    assert "the clock says 20" in gateway.waited_for


async def test_a_certificate_for_another_name_is_not_accepted(
    tls_server: WebServer, certificate: Path, gateway: Gateway
) -> None:
    await says(gateway, HttpSource(replace(QUICK, ca_file=certificate), tls_server.url), "certificate is not accepted")

    assert tls_server.requests == []


async def test_roots_that_cannot_be_read_are_said(tls_server: WebServer, tmp_path: Path, gateway: Gateway) -> None:
    source = HttpSource(replace(QUICK, ca_file=tmp_path / "roots.pem"), tls_server.url)

    await says(gateway, source, "roots.pem: No such file")


async def test_an_old_protocol_is_not_spoken(certificate: Path, gateway: Gateway) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    served = WebServer(tls=context)
    listening = await asyncio.start_server(served.run, "127.0.0.1", 0, ssl=context)
    served.port = listening.sockets[0].getsockname()[1]
    source = HttpSource(replace(QUICK, ca_file=certificate), lambda: served.url(host="localhost"))

    await says(gateway, source, "connection: ")  # whose end refuses is up to the two

    assert served.requests == []
    listening.close()


async def test_an_encrypted_server_does_not_lead_to_a_plain_one(
    tls_server: WebServer, server: WebServer, certificate: Path, gateway: Gateway
) -> None:
    tls_server.answers = [status("302 Found", Location=server.url())] * 9
    source = HttpSource(replace(QUICK, ca_file=certificate), lambda: tls_server.url(host="localhost"))

    with pytest.raises(UpdateError, match="not encrypted any more") as caught:
        await asyncio.wait_for(gateway.download(source), 20)

    assert caught.value.failure.code == Code.URL
    assert "secret" not in str(caught.value)
    assert server.requests == []


async def test_a_plain_server_may_lead_to_an_encrypted_one_which_must_prove_itself(
    tls_server: WebServer, server: WebServer, gateway: Gateway
) -> None:
    server.answers = [status("302 Found", Location=tls_server.url(host="localhost"))] * 9

    await says(gateway, http_source(server), "certificate is not accepted")

    assert tls_server.requests == []


@pytest.mark.parametrize(
    "limits", [CLOSED, replace(CLOSED, allow_http=True), replace(CLOSED, allow_private_hosts=True)]
)
async def test_what_is_not_allowed_is_not_even_asked(
    limits: DownloadSettings, server: WebServer, gateway: Gateway
) -> None:
    with pytest.raises(UpdateError, match=r"download\.allow_") as caught:
        await gateway.download(http_source(server, limits))

    assert caught.value.failure.code == Code.URL
    assert server.requests == []
    assert gateway.checkpoints == []


async def test_a_person_at_the_gateway_may_use_any_address(server: WebServer, gateway: Gateway) -> None:
    await gateway.download(HttpSource(CLOSED, server.url, local=True))

    assert gateway.places.slot.read_bytes() == IMAGE + BEHIND


async def test_a_person_at_the_gateway_hears_of_a_404_at_once(server: WebServer, gateway: Gateway) -> None:
    server.answers = [status("404 Not Found")]

    with pytest.raises(UpdateError, match="404 Not Found") as caught:
        await gateway.download(HttpSource(CLOSED, server.url, local=True))

    assert caught.value.failure.code == Code.HTTP_STATUS


async def test_a_name_is_judged_by_the_address_that_is_connected_to(server: WebServer, gateway: Gateway) -> None:
    """A name server may say one thing when asked and another when it matters: only the socket knows."""
    name = socket.gethostname()
    try:
        resolved = socket.gethostbyname(name)
    except OSError:
        resolved = ""
    if not resolved.startswith("127."):
        pytest.skip("this machine's name does not lead to itself")
    source = HttpSource(replace(CLOSED, allow_http=True), lambda: server.url(host=name))

    await says(gateway, source, "is not a public address")

    assert server.requests == []


async def test_the_proxy_is_asked_and_may_be_private(server: WebServer, gateway: Gateway) -> None:
    limits = replace(CLOSED, allow_http=True, proxy=f"http://user:word@127.0.0.1:{server.port}")
    server.answers = [status("407 Proxy Authentication Required"), part(100_000)]
    source = HttpSource(limits, lambda: "http://packages.example/image.bin?auth_key=secret")

    await asyncio.wait_for(gateway.download(source), 20)

    assert gateway.places.slot.read_bytes() == IMAGE + BEHIND
    assert [request.path for request in server.requests] == ["http://packages.example/image.bin?auth_key=secret"] * 3
    assert server.requests[0].headers["proxy-authorization"].startswith("Basic ")


async def test_a_proxy_does_not_lead_to_private_addresses_by_number(server: WebServer, gateway: Gateway) -> None:
    limits = replace(CLOSED, allow_http=True, proxy=f"http://127.0.0.1:{server.port}")

    with pytest.raises(UpdateError, match="allow_private_hosts"):
        await gateway.download(HttpSource(limits, lambda: "http://192.168.0.1/image.bin"))

    assert server.requests == []


async def test_the_environment_has_no_say(server: WebServer, gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")

    await asyncio.wait_for(gateway.download(http_source(server)), 20)

    assert gateway.places.slot.read_bytes() == IMAGE + BEHIND


async def test_the_query_of_a_signed_url_is_sent_as_it_stands(server: WebServer, gateway: Gateway) -> None:
    query = "Expires=1&Signature=a%2Bb%2F%3D&security-token=CAI%7Ex+y,z&&empty"
    path = f"/ota/%e5%9b%bA.bin?{query}"

    await gateway.download(HttpSource(QUICK, lambda: f"http://127.0.0.1:{server.port}{path}"))

    assert server.requests[0].path == path


async def test_a_url_told_in_the_meantime_is_used(server: WebServer, gateway: Gateway) -> None:
    told = [server.url("/old")]

    async def and_tell(served: WebServer, request: Request, writer: asyncio.StreamWriter) -> None:
        told[0] = server.url("/new")
        await part(100_000)(served, request, writer)

    server.answers = [and_tell]

    await asyncio.wait_for(gateway.download(HttpSource(QUICK, lambda: told[0])), 20)

    assert [request.path.partition("?")[0] for request in server.requests] == ["/old", "/new"]


async def test_the_platform_is_asked_again_until_it_knows_a_url(server: WebServer, gateway: Gateway) -> None:
    server.answers = [status("403 Forbidden")] * 3

    await asyncio.wait_for(gateway.download(http_source(server, fresh=(None, None, server.url("/b")))), 20)

    assert [request.path.partition("?")[0] for request in server.requests] == ["/ota/image.bin"] * 3 + ["/b"]


async def test_the_rate_limit_holds(server: WebServer, gateway: Gateway) -> None:
    began = time.monotonic()
    await gateway.download(http_source(server, replace(QUICK, rate_limit=1_000_000)))

    assert time.monotonic() - began >= len(IMAGE) / 1_000_000 * 0.8


async def test_retry_after_is_honoured(server: WebServer, gateway: Gateway) -> None:
    server.answers = [status("503 Slow Down", Retry_After="100")]
    began = time.monotonic()
    await gateway.download(http_source(server, replace(QUICK, backoff_max_s=0.3)))

    assert time.monotonic() - began >= 0.3


@pytest.mark.parametrize("offset", [0, 1, 150_000, len(IMAGE) - 1])
async def test_a_source_begins_where_it_is_told(offset: int, server: WebServer) -> None:
    pieces = [piece async for piece in http_source(server).pieces(Begin(offset, len(IMAGE)), lambda _: None)]

    assert b"".join(piece.content for piece in pieces) == IMAGE[offset:]
    assert [piece.first for piece in pieces] == [True] + [False] * (len(pieces) - 1)
    assert sum(piece.brought for piece in pieces) == len(IMAGE) - offset


def test_the_pause_grows_to_its_limit() -> None:
    assert [2**n * 0.5 <= backoff_s(n, 300) <= 2**n for n in range(9)] == [True] * 9
    assert 150 <= backoff_s(10_000, 300) <= 300
