# SPDX-License-Identifier: Apache-2.0
"""TLS at a wrong clock: who is believed, who is not, and that nothing is said before that is clear.

The tests cannot set the system's clock back. So the floor is in the future: ten years from now the system's clock is
as far behind as one of 2016 is today. The last test does set it, for one process, where Debian's faketime is installed.
"""

import asyncio
import os
import select
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import aiomqtt
import pytest
from aiohttp import web

from otad.cloud.link import Link, default_context
from otad.config import DownloadSettings
from otad.errors import UpdateError
from otad.tls import client_context, valid_until
from otad.transfer.http import HttpSource
from tests.broker import Certificate, Mosquitto, free_port

LIMIT_S = 10
NOW = int(time.time())
YEAR_S = 365 * 86400
FLOOR = NOW + 10 * YEAR_S
FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)


def at(years: float) -> int:
    """So many years from now, in seconds since 1970."""
    return NOW + int(years * YEAR_S)


def day(years: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(at(years)))


def issue(
    directory: Path,
    name: str,
    begins: int,
    ends: int,
    by: Certificate | None = None,
    host: str | None = None,
) -> Certificate:
    """A certificate of somebody who may sign others, or of `host`; without `by` a root. Times since 1970."""
    file, key, request = (directory / f"{name}{suffix}" for suffix in (".crt", ".key", ".csr"))
    configuration = directory / f"{name}.cnf"
    what = f"subjectAltName=DNS:{host}\n" if host else "basicConstraints=critical,CA:TRUE\n"
    configuration.write_text(
        f"[ca]\ndefault_ca=c\n[c]\ndatabase={directory / name}.index\nrand_serial=yes\nnew_certs_dir={directory}\n"
        f"default_md=sha256\npolicy=p\nx509_extensions=e\n[p]\ncommonName=supplied\n[e]\n{what}"
    )
    (directory / f"{name}.index").write_text("")
    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", f"/CN={name}"]
    openssl("req", *new_key, "-keyout", str(key), "-out", str(request))
    signer = ["-keyfile", str(by.key), "-cert", str(by.file)] if by else ["-selfsign", "-keyfile", str(key)]
    # From 2050 on X.509 spells years with four digits.
    dates = [time.strftime("%Y%m%d%H%M%SZ", time.gmtime(moment)) for moment in (begins, ends)]
    openssl(
        *("ca", "-batch", "-notext", "-config", str(configuration), *signer, "-in", str(request), "-out", str(file)),
        *("-startdate", dates[0], "-enddate", dates[1]),
    )
    return Certificate(file, key)


def openssl(*words: str) -> None:
    done = subprocess.run(("openssl", *words), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@dataclass(frozen=True)
class Chain:
    """Server, intermediate and root; each may be given as the years from now when it begins and ends."""

    root: Path
    served: Path  # certificate, intermediate and key, as a server wants them

    @property
    def certificate(self) -> Certificate:
        return Certificate(self.served, self.served)


Years = tuple[float, float]
LONG: Years = (-1, 30)


@pytest.fixture
def chain(tmp_path: Path) -> Callable[..., Chain]:
    def make(leaf: Years = LONG, intermediate: Years = LONG, root: Years = LONG, host: str = "localhost") -> Chain:
        top = issue(tmp_path, "root", at(root[0]), at(root[1]))
        middle = issue(tmp_path, "intermediate", at(intermediate[0]), at(intermediate[1]), top)
        end = issue(tmp_path, "server", at(leaf[0]), at(leaf[1]), middle, host)
        served = tmp_path / "served.pem"
        served.write_text("".join(file.read_text() for file in (end.file, middle.file, end.key)))
        return Chain(top.file, served)

    return make


# A server that writes down what it hears, and four ways to speak to it: as paho does, as a socket that never blocks, in
# small pieces, and as asyncio and aiohttp do.


@dataclass
class Served:
    port: int = 0
    heard: bytes = b""
    ended: asyncio.Event = field(default_factory=asyncio.Event)


@asynccontextmanager
async def serving(chain: Chain, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> AsyncIterator[Served]:
    served = Served()

    async def run(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(LIMIT_S):
                while said := await reader.read(100):
                    served.heard += said
                    writer.write(said)
        except OSError:
            pass  # the other side does not believe us
        writer.close()
        served.ended.set()

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = version
    context.load_cert_chain(chain.served)
    listening = await asyncio.start_server(run, "127.0.0.1", 0, ssl=context)
    served.port = listening.sockets[0].getsockname()[1]
    async with listening:
        yield served


def speak(context: ssl.SSLContext, port: int) -> int | None:
    with (
        socket.create_connection(("127.0.0.1", port), LIMIT_S) as raw,
        context.wrap_socket(raw, server_hostname="localhost") as connection,
    ):
        connection.sendall(b"hello")
        assert connection.recv(100) == b"hello"
        return valid_until(connection)


def speak_without_blocking(context: ssl.SSLContext, port: int) -> int | None:
    with (
        socket.create_connection(("127.0.0.1", port), LIMIT_S) as raw,
        context.wrap_socket(raw, server_hostname="localhost", do_handshake_on_connect=False) as connection,
    ):
        connection.setblocking(False)
        while True:
            try:
                connection.do_handshake()
                break
            except ssl.SSLWantReadError:
                select.select([connection], [], [], LIMIT_S)
            except ssl.SSLWantWriteError:
                select.select([], [connection], [], LIMIT_S)
        connection.setblocking(True)
        connection.sendall(b"hello")
        assert connection.recv(100) == b"hello"
        return valid_until(connection)


def speak_in_pieces(context: ssl.SSLContext, port: int) -> int | None:
    """Through memory, with the server's answer coming in a hundred bytes at a time."""
    coming, going = ssl.MemoryBIO(), ssl.MemoryBIO()
    connection = context.wrap_bio(coming, going, server_hostname="localhost")
    with socket.create_connection(("127.0.0.1", port), LIMIT_S) as raw:

        def patiently(call: Callable[[], bytes | None]) -> tuple[bytes | None, int]:
            waits = 0
            while True:
                try:
                    return call(), waits
                except ssl.SSLWantReadError:
                    raw.sendall(going.read())
                    coming.write(raw.recv(100))
                    waits += 1

        _, waits = patiently(connection.do_handshake)
        assert waits > 5
        connection.write(b"hello")
        assert patiently(lambda: connection.read(100))[0] == b"hello"
        return valid_until(connection)


async def speak_as_asyncio(context: ssl.SSLContext, port: int) -> int | None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="localhost")
    try:
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        return valid_until(writer.get_extra_info("ssl_object"))
    finally:
        writer.close()
        await writer.wait_closed()


WAYS = {"blocking": speak, "without blocking": speak_without_blocking, "in pieces": speak_in_pieces}
ALL_WAYS = [*WAYS, "asyncio"]


async def speak_in(way: str, context: ssl.SSLContext, port: int) -> int | None:
    async with asyncio.timeout(LIMIT_S):
        if way == "asyncio":
            return await speak_as_asyncio(context, port)
        return await asyncio.to_thread(WAYS[way], context, port)


async def refusal(way: str, context: ssl.SSLContext, served: Served) -> ssl.SSLCertVerificationError:
    """Why the server is not believed; that it heard nothing of us is checked too."""
    with pytest.raises(ssl.SSLCertVerificationError) as caught:
        await speak_in(way, context, served.port)
    assert served.heard == b""
    return caught.value


# Behind the floor.


@pytest.mark.parametrize("way", ALL_WAYS)
@pytest.mark.parametrize(
    "made",
    [
        {},
        {"leaf": (-1, 10.1)},
        {"leaf": (5, 20)},
        {"leaf": (15, 20)},
        {"leaf": (5, 20), "intermediate": (4, 40), "root": (3, 60)},
    ],
    ids=["long", "until a moment after", "begins before", "begins after", "all begin before"],
)
async def test_what_has_not_ended_before_the_floor_is_believed(
    chain: Callable[..., Chain], made: dict[str, Years], way: str
) -> None:
    made_chain = chain(**made)
    context = client_context(file=made_chain.root, floor=lambda: FLOOR)
    async with serving(made_chain) as served:
        await speak_in(way, context, served.port)

    assert served.heard == b"hello"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
@pytest.mark.parametrize("way", ALL_WAYS)
@pytest.mark.parametrize(
    ("made", "says"),
    [
        ({"leaf": (-1, 1)}, f"the certificate ended on {day(1)}"),
        ({"leaf": (-2, -1)}, f"the certificate ended on {day(-1)}"),
        ({"intermediate": (-1, 9.9)}, f"issuer 1 of the certificate ended on {day(9.9)}"),
        ({"root": (-1, 1)}, f"issuer 2 of the certificate ended on {day(1)}"),
    ],
    ids=["which OpenSSL would take", "long over", "the intermediate", "the root"],
)
async def test_what_ended_before_the_floor_is_not_believed(
    chain: Callable[..., Chain], made: dict[str, Years], says: str, way: str, version: ssl.TLSVersion
) -> None:
    made_chain = chain(**made)
    context = client_context(file=made_chain.root, floor=lambda: FLOOR)
    async with serving(made_chain, version) as served:
        error = await refusal(way, context, served)

    assert error.verify_code == 10
    assert error.reason == "CERTIFICATE_VERIFY_FAILED"
    today = time.strftime("%Y-%m-%d", time.gmtime())
    assert error.verify_message.startswith(f"certificate has expired; this gateway's clock says {today} ")
    assert f"and is wrong, for it is {day(10)} " in error.verify_message
    assert says in error.verify_message


@pytest.mark.parametrize("way", ALL_WAYS)
async def test_the_certificates_last_second_counts(chain: Callable[..., Chain], way: str) -> None:
    made = chain(leaf=(-1, 20))
    floor = at(20)
    context = client_context(file=made.root, floor=lambda: floor)
    async with serving(made) as served:
        await speak_in(way, context, served.port)
        served.heard = b""
        floor += 1
        await refusal(way, context, served)


@pytest.mark.parametrize("way", ALL_WAYS)
async def test_another_host_is_not_believed_behind_the_floor(chain: Callable[..., Chain], way: str) -> None:
    made = chain(host="other.example")
    async with serving(made) as served:
        error = await refusal(way, client_context(file=made.root, floor=lambda: FLOOR), served)

    assert error.verify_message == "Hostname mismatch, certificate is not valid for 'localhost'."


@pytest.mark.parametrize("way", ALL_WAYS)
async def test_an_unknown_issuer_is_not_believed_behind_the_floor(chain: Callable[..., Chain], way: str) -> None:
    async with serving(chain()) as served:
        error = await refusal(way, default_context(floor=lambda: FLOOR), served)

    assert error.verify_code in (19, 20)


async def test_a_resumed_session_brings_no_chain_and_is_not_believed(chain: Callable[..., Chain]) -> None:
    made = chain()
    context = client_context(file=made.root, floor=lambda: FLOOR)

    def resume(port: int) -> None:
        address = ("127.0.0.1", port)
        with (
            socket.create_connection(address, LIMIT_S) as raw,
            context.wrap_socket(raw, server_hostname="localhost") as first,
        ):
            kept = first.session
        with socket.create_connection(address, LIMIT_S) as raw:
            context.wrap_socket(raw, server_hostname="localhost", session=kept)

    async with serving(made, ssl.TLSVersion.TLSv1_2) as served:
        with pytest.raises(ssl.SSLCertVerificationError) as caught:
            await asyncio.to_thread(resume, served.port)

    assert caught.value.verify_message == "no chain whose dates could be looked at"


def test_a_second_handshake_which_nobody_would_look_at_is_not_made(chain: Callable[..., Chain]) -> None:
    made, port = chain(), free_port()
    command = ("openssl", "s_server", "-tls1_2", "-accept", str(port), "-cert_chain", made.served, "-cert", made.served)
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdin is not None
    assert server.stdout is not None
    try:
        while "ACCEPT" not in server.stdout.readline():
            assert server.poll() is None
        context = client_context(file=made.root, floor=lambda: FLOOR)
        with (
            socket.create_connection(("127.0.0.1", port), 3) as raw,
            context.wrap_socket(raw, server_hostname="localhost") as connection,
        ):
            server.stdin.write("R\n")  # which makes it ask for one
            server.stdin.flush()
            with pytest.raises(ssl.SSLError, match="handshake failure"):
                connection.recv(1)
    finally:
        server.kill()
        server.communicate()


# At a clock that may be right.


@pytest.mark.parametrize("way", ALL_WAYS)
@pytest.mark.parametrize("floor", [None, at(-1)], ids=["no floor", "floor"])
@pytest.mark.parametrize(
    ("made", "code", "says"),
    [
        ({"leaf": (1, 2)}, 9, ["certificate is not yet valid; ", f"; the certificate is valid from {day(1)} "]),
        ({"leaf": (-2, -0.5)}, 10, ["certificate has expired; ", " UTC to " + day(-0.5)]),
        ({"intermediate": (-2, -0.5)}, 10, ["; issuer 1 of the certificate is valid from "]),
        ({"leaf": (1, 2), "root": (-3, -2)}, 10, [f"; issuer 2 of the certificate is valid from {day(-3)} "]),
    ],
    ids=["not yet", "no more", "the intermediate", "one each"],
)
async def test_dates_that_do_not_fit_the_clock_are_explained(
    chain: Callable[..., Chain], made: dict[str, Years], code: int, says: list[str], floor: int | None, way: str
) -> None:
    made_chain = chain(**made)
    context = client_context(file=made_chain.root, floor=None if floor is None else lambda: floor)
    async with serving(made_chain) as served:
        error = await refusal(way, context, served)

    assert error.verify_code == code
    today = time.strftime("%Y-%m-%d", time.gmtime())
    known = [f"; it is {day(-1)} "] if floor else []
    for part in [*says, *known, f"; this gateway's clock says {today} ", "; set the clock if it is wrong"]:
        assert part in error.verify_message


@pytest.mark.parametrize("way", ALL_WAYS)
async def test_each_connection_looks_at_the_clock_anew(chain: Callable[..., Chain], way: str) -> None:
    made = chain(leaf=(5, 20))
    floor = FLOOR
    context = client_context(file=made.root, floor=lambda: floor)
    async with serving(made) as served:
        await speak_in(way, context, served.port)
        served.heard = b""
        floor = at(-1)  # somebody has set the clock
        error = await refusal(way, context, served)
        assert error.verify_code == 9
        floor = FLOOR
        await speak_in(way, context, served.port)


@pytest.mark.parametrize("way", ALL_WAYS)
async def test_a_clock_set_between_making_and_shaking_hands_leaves_no_gap(
    chain: Callable[..., Chain], way: str
) -> None:
    made = chain(leaf=(-1, 1))
    asked: list[int] = []

    def floor() -> int:
        asked.append(at(-1) if not asked else FLOOR)  # OpenSSL has looked at the dates, and saw nothing amiss
        return asked[-1]

    async with serving(made) as served:
        error = await refusal(way, client_context(file=made.root, floor=floor), served)

    assert error.verify_code == 10


@pytest.mark.parametrize("way", ALL_WAYS)
@pytest.mark.parametrize(
    ("made", "ends"),
    [
        ({"leaf": (-1, 3)}, 3),
        ({"leaf": (-1, 3), "intermediate": (-1, 2)}, 2),
        ({"root": (-1, 1)}, 1),
        ({"leaf": (-1, 900), "intermediate": (-1, 901), "root": (-80, 902)}, 900),
    ],
    ids=["leaf", "intermediate", "root", "beyond 2050"],
)
async def test_the_first_end_in_the_chain_is_known(
    chain: Callable[..., Chain], made: dict[str, Years], ends: float, way: str
) -> None:
    made_chain = chain(**made)
    async with serving(made_chain) as served:
        found = await speak_in(way, client_context(file=made_chain.root), served.port)

    assert found == at(ends)


# The session and the download.


async def mqtt(chain: Chain, broker: Mosquitto, floor: Callable[[], int] | None) -> Link:
    """A link that a session was opened on and closed again, or that says in `fault` why it was not."""
    link = Link(default_context(chain.root, floor), 1024)
    client = aiomqtt.Client("localhost", broker.port, tls_context=cast("ssl.SSLContext", link), timeout=LIMIT_S)
    try:
        async with client:
            await client.publish("said", b"hello", qos=1)
    except aiomqtt.MqttError:
        pass
    await link.close()
    return link


async def test_a_session_comes_up_behind_the_floor_and_knows_how_long_it_is_authenticated(
    chain: Callable[..., Chain], tmp_path: Path
) -> None:
    made = chain(leaf=(5, 20))
    async with Mosquitto(tmp_path, certificate=made.certificate) as broker:
        link = await mqtt(made, broker, lambda: FLOOR)
        await broker.logged("Received PUBLISH")

    assert link.valid_until == at(20)


async def test_no_session_comes_up_with_what_ended_before_the_floor(
    chain: Callable[..., Chain], tmp_path: Path
) -> None:
    made = chain(leaf=(-1, 1))
    async with Mosquitto(tmp_path, certificate=made.certificate) as broker:
        link = await mqtt(made, broker, lambda: FLOOR)
        await broker.logged("New connection from")
        await broker.stop()

    assert not [line for line in broker.log if "connected from" in line or "PUBLISH" in line]
    assert link.fault.startswith("certificate: certificate has expired; this gateway's clock says 20")
    assert link.fault.endswith(" UTC")
    assert f" or later; the certificate ended on {day(1)} " in link.fault
    assert link.valid_until is None


async def test_a_session_at_a_clock_that_is_ahead_says_that_it_may_be(
    chain: Callable[..., Chain], tmp_path: Path
) -> None:
    made = chain(leaf=(-2, -0.5))
    async with Mosquitto(tmp_path, certificate=made.certificate) as broker:
        link = await mqtt(made, broker, lambda: at(-1))

    assert link.fault.startswith("certificate: certificate has expired; this gateway's clock says 20")
    assert link.fault.endswith(
        f"; it is {day(-1)} {time.strftime('%H:%M', time.gmtime(NOW))} UTC or later; set the clock if it is wrong"
    )


async def test_without_tls_nothing_is_known_of_the_time(tmp_path: Path) -> None:
    async with Mosquitto(tmp_path) as broker:
        link = Link(None, 1024)
        async with aiomqtt.Client("localhost", broker.port, tls_context=cast("ssl.SSLContext", link)):
            pass
        await link.close()

    assert link.valid_until is None


@asynccontextmanager
async def packages(chain: Chain) -> AsyncIterator[tuple[str, list[str]]]:
    """The URL of a package of five bytes on an aiohttp server, and the requests that came."""
    requests: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        requests.append(request.path)
        return web.Response(body=b"hello")

    application = web.Application()
    application.router.add_get("/image.bin", answer)
    runner = web.AppRunner(application)
    await runner.setup()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain.served)
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    try:
        yield f"https://localhost:{runner.addresses[0][1]}/image.bin", requests
    finally:
        await runner.cleanup()


async def test_a_package_comes_behind_the_floor(chain: Callable[..., Chain]) -> None:
    made = chain(leaf=(5, 20))
    async with packages(made) as (url, _):
        limits = DownloadSettings(ca_file=made.root)

        assert await HttpSource(limits, lambda: url, local=True, floor=lambda: FLOOR).size() == 5


@pytest.mark.parametrize(
    ("leaf", "floor", "says"),
    [
        ((-1, 1), FLOOR, f" or later; the certificate ended on {day(1)} "),
        ((-2, -0.5), at(-1), "; set the clock if it is wrong"),
        ((5, 20), None, "; set the clock if it is wrong"),
    ],
    ids=["behind", "ahead", "no floor"],
)
async def test_no_package_comes_from_who_is_not_believed(
    chain: Callable[..., Chain], leaf: Years, floor: int | None, says: str
) -> None:
    made = chain(leaf=leaf)
    async with packages(made) as (url, requests):
        source = HttpSource(
            DownloadSettings(ca_file=made.root), lambda: url, local=True, floor=None if floor is None else lambda: floor
        )
        with pytest.raises(UpdateError) as caught:
            await source.size()

    assert "its certificate is not accepted: certificate " in str(caught.value)
    assert str(caught.value).count("clock says 20") == 1
    assert says in str(caught.value)
    assert requests == []


async def test_session_and_download_trust_different_roots(
    chain: Callable[..., Chain], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = chain()
    monkeypatch.setenv("SSL_CERT_FILE", str(made.root))  # where OpenSSL finds the system's
    async with packages(made) as (url, _), Mosquitto(tmp_path, certificate=made.certificate) as broker:
        link = Link(default_context(), 1024)
        with pytest.raises(aiomqtt.MqttError):
            await aiomqtt.Client("localhost", broker.port, tls_context=cast("ssl.SSLContext", link)).__aenter__()
        await link.close()

        assert link.fault.endswith("mqtt.ca_file names the roots to trust")
        assert await HttpSource(DownloadSettings(), lambda: url, local=True).size() == 5


# The real thing, for one process.


@pytest.mark.skipif(FAKETIME is None, reason="faketime is not installed")
@pytest.mark.parametrize(
    ("clock", "says"),
    [
        ("1970-01-01 00:00:07", ""),
        ("2020-02-02 02:02:02", ""),
        ("2093-01-01 00:00:00", "this gateway's clock says 2093-01-01 "),
    ],
)
async def test_a_gateway_that_boots_at_a_wrong_time(chain: Callable[..., Chain], clock: str, says: str) -> None:
    made = chain(leaf=(-1, 3))
    program = (
        "import socket, sys; from pathlib import Path; from otad.cloud.link import words\n"
        "from otad.clock import BUILD; from otad.tls import client_context, valid_until\n"
        "context = client_context(file=Path(sys.argv[1]), floor=lambda: BUILD)\n"
        "raw = socket.create_connection(('127.0.0.1', int(sys.argv[2])))\n"
        "try:\n"
        "    connection = context.wrap_socket(raw, server_hostname='localhost')\n"
        "    connection.sendall(b'hello'); assert connection.recv(5) == b'hello'; print(valid_until(connection))\n"
        "except OSError as error:\n"
        "    print(words(error))\n"
    )
    wrong = {
        **os.environ,
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME": f"@{clock}",
        "DONT_FAKE_MONOTONIC": "1",
        "TZ": "UTC",
    }
    async with serving(made) as served:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", program, str(made.root), str(served.port)), env=wrong, stdout=subprocess.PIPE
        )
        said, _ = await asyncio.wait_for(process.communicate(), LIMIT_S)

    assert says in said.decode() if says else said.decode() == f"{at(3)}\n"
