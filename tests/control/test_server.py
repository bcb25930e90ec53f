# SPDX-License-Identifier: Apache-2.0
"""The control socket, as well-behaved and as hostile clients meet it."""

import asyncio
import grp
import json
import os
import pwd
import socket
import stat
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import varlink
from definition import DEFINITION, conform
from gateway import Gateway, Served, as_nobody, served, short_directory
from hypothesis import given
from hypothesis import strategies as st
from varlink import scanner

from otad.cloud.cloud import SessionState, SessionView
from otad.control import server
from otad.control.client import AwayError, Client, FailedError, RefusedError
from otad.control.server import METHODS, READING, UPDATE, VARLINK, Limits, Server, SocketError, listen
from otad.control.service import InstallRequest
from otad.core.model import ModuleName

SHA256 = "cd" * 32
INSTALL = {"url": "https://example.com/p", "version": "3-0-0", "sha256": SHA256}
REQUEST_BYTES = 8192

is_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


class Raw:
    """A client that says what it likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def say(self, content: bytes) -> None:
        self.writer.write(content)
        await self.writer.drain()

    async def ask(self, call: object) -> dict[str, Any]:
        await self.say(json.dumps(call).encode() + b"\0")
        return await self.hear()

    async def hear(self) -> dict[str, Any]:
        async with asyncio.timeout(5):
            reply: dict[str, Any] = json.loads((await self.reader.readuntil(b"\0"))[:-1])
        return reply

    async def is_dropped(self) -> bool:
        """Whether the daemon ends the connection without another word."""
        try:
            async with asyncio.timeout(5):
                return await self.reader.read() == b""
        except ConnectionError:
            return True


@pytest.fixture
def path() -> Iterator[Path]:
    with short_directory() as directory:
        yield directory / "otad.sock"


@pytest.fixture
def gateway() -> Gateway:
    return Gateway()


@pytest.fixture
async def daemon(path: Path, gateway: Gateway) -> AsyncIterator[Path]:
    limits = Limits(
        idle_s=0.5, send_s=0.5, request_bytes=REQUEST_BYTES, connections=4, calls_per_s=10_000, stream_s=0.02
    )
    async with served(path, gateway, limits):
        yield path


@pytest.fixture
async def raw(daemon: Path) -> AsyncIterator[Callable[[], Any]]:
    """Makes clients; afterwards the daemon must still answer a good one."""
    clients: list[Raw] = []

    async def connect() -> Raw:
        clients.append(Raw(*await asyncio.open_unix_connection(daemon, limit=1 << 24)))
        return clients[-1]

    yield connect
    for client in clients:
        client.writer.transport.abort()
    await still_answers(daemon)


async def still_answers(path: Path) -> None:
    """A good client is served, as soon as the bad ones are gone."""
    async with asyncio.timeout(5):
        while True:
            try:
                good = Raw(*await asyncio.open_unix_connection(path))
                reply = await good.ask({"method": "io.otad.Update.GetStatus"})
                good.writer.transport.abort()
            except (ConnectionError, EOFError):
                await asyncio.sleep(0.01)  # still full
            else:
                assert reply["parameters"]["status"]["booted"] == "a"
                return


# ---------------------------------------------------------------------------------------------- PyPI's client


def with_varlink(path: Path, interface: str, what: Callable[[Any], Any]) -> Any:
    with Served(path), varlink.Client(f"unix:{path}") as client, client.open(interface) as connection:
        return what(connection)


def test_varlink_client_finds_who_this_is(path: Path) -> None:
    info = with_varlink(path, VARLINK, lambda connection: connection.GetInfo())

    assert info["product"] == "otad"
    assert info["interfaces"] == [VARLINK, UPDATE]


@pytest.mark.parametrize("interface", [VARLINK, UPDATE])
def test_varlink_client_reads_the_definition(path: Path, interface: str) -> None:
    reply = with_varlink(path, VARLINK, lambda connection: connection.GetInterfaceDescription(interface))
    found = scanner.Interface(reply["description"])

    assert found.name == interface
    assert {name for name, member in found.members.items() if isinstance(member, scanner._Method)} == set(
        METHODS[interface]
    )


def test_varlink_client_reads_the_status(path: Path) -> None:
    status = with_varlink(path, UPDATE, lambda connection: connection.GetStatus())["status"]

    assert status["booted"] == "a"
    assert status["slots"]["b"]["good"] is False


def test_varlink_client_installs_and_is_refused(path: Path) -> None:
    def twice(connection: Any) -> str:
        assert connection.Install(**INSTALL) == {"answer": "installing 3-0-0"}
        with pytest.raises(varlink.VarlinkError) as refused:
            connection.Install(**{**INSTALL, "version": "4-0-0"})
        assert refused.value.error() == "io.otad.Update.Refused"
        reason: str = refused.value.parameters()["reason"]
        return reason

    assert with_varlink(path, UPDATE, twice) == "4-0-0: another deployment is under way; `otad cancel` ends it"


def test_varlink_client_follows_a_download(path: Path) -> None:
    with Served(path) as daemon, varlink.Client(f"unix:{path}") as client, client.open(UPDATE) as connection:
        stream = connection.GetStatus(_more=True)
        assert "deployment" not in next(stream)["status"]  # PyPI's client leaves null out
        daemon.do(daemon.gateway.notice)
        assert next(stream)["status"]["deployment"]["bytes"] == 0
        daemon.do(lambda: daemon.gateway.download(70 << 20))

        assert next(stream)["status"]["deployment"]["bytes"] == 70 << 20


def test_parameters_and_definition_are_the_same() -> None:
    for name, parameters in METHODS[UPDATE].items():
        fields = DEFINITION.members[name].in_type.fields
        assert {field: not isinstance(kind, scanner._Maybe) for field, kind in fields.items()} == {
            field: parameter.required for field, parameter in parameters.items()
        }


# ---------------------------------------------------------------------------------------------- calls


async def test_history_is_what_its_definition_says(raw: Callable[[], Any], gateway: Gateway) -> None:
    gateway.notice()
    gateway.fail()

    (ended,) = (await (await raw()).ask({"method": f"{UPDATE}.GetHistory"}))["parameters"]["deployments"]

    conform("Ended", ended)
    assert (ended["version"], ended["outcome"]) == ("2-0-0", "failed")


async def test_install_arrives_as_it_was_asked_for(raw: Callable[[], Any], gateway: Gateway) -> None:
    more = {"url": "file:///tmp/a%20b", "module": "app", "size": 42}

    reply = await (await raw()).ask({"method": f"{UPDATE}.Install", "parameters": {**INSTALL, **more}})

    assert reply == {"parameters": {"answer": "installing 3-0-0"}}
    assert gateway.installed == [InstallRequest("file:///tmp/a%20b", ModuleName("app"), "3-0-0", 42, SHA256)]


async def test_module_and_size_may_be_left_out_or_null(raw: Callable[[], Any], gateway: Gateway) -> None:
    await (await raw()).ask({"method": f"{UPDATE}.Install", "parameters": {**INSTALL, "module": None}})

    assert gateway.installed == [InstallRequest(INSTALL["url"], ModuleName("default"), "3-0-0", None, SHA256)]


@pytest.mark.parametrize(
    ("method", "answer"),
    [
        ("Check", {"answer": "nothing is offered"}),
        ("Cancel", {"answer": "canceled"}),
        ("MarkGood", {"answer": "marking slot a good"}),
    ],
)
async def test_orders_are_answered_in_words(
    raw: Callable[[], Any], gateway: Gateway, method: str, answer: dict[str, str]
) -> None:
    gateway.notice()

    assert await (await raw()).ask({"method": f"{UPDATE}.{method}"}) == {"parameters": answer}


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("Cancel", "nothing to cancel: no deployment is under way"),
        ("Retry", "nothing to retry: no package is refused"),
        ("Reboot", "nothing to reboot into: no slot is staged"),
        ("RollBack", "no slot to roll back to: the other slot is not good"),
        ("Check", "no session with the platform: connection refused"),
    ],
)
async def test_refused_says_why(raw: Callable[[], Any], gateway: Gateway, method: str, reason: str) -> None:
    gateway.session = SessionView(SessionState.OFFLINE, 0, "connection refused")

    reply = await (await raw()).ask({"method": f"{UPDATE}.{method}"})

    assert reply == {"error": f"{UPDATE}.Refused", "parameters": {"reason": reason}}


async def test_what_the_machine_does_not_do_is_failed(raw: Callable[[], Any], gateway: Gateway) -> None:
    gateway.store_is_broken = True

    reply = await (await raw()).ask({"method": f"{UPDATE}.MarkGood"})

    assert reply == {"error": f"{UPDATE}.Failed", "parameters": {"reason": "/boot/variables: Input/output error"}}


async def test_calls_are_answered_in_their_order(raw: Callable[[], Any]) -> None:
    client = await raw()
    methods = [f"{VARLINK}.GetInfo", f"{UPDATE}.GetHistory", f"{VARLINK}.GetInfo"]

    await client.say(b"".join(json.dumps({"method": method}).encode() + b"\0" for method in methods))

    assert [next(iter((await client.hear())["parameters"])) for _ in methods] == ["vendor", "deployments", "vendor"]


async def test_oneway_is_done_and_not_answered(raw: Callable[[], Any], gateway: Gateway) -> None:
    client = await raw()
    gateway.notice()

    await client.say(json.dumps({"method": f"{UPDATE}.Cancel", "oneway": True}).encode() + b"\0")
    reply = await client.ask({"method": f"{UPDATE}.GetStatus"})

    assert reply["parameters"]["status"]["deployment"] is None
    assert reply["parameters"]["status"]["last"]["outcome"] == "canceled"


async def test_oneway_is_not_answered_by_an_error_either(raw: Callable[[], Any]) -> None:
    client = await raw()

    await client.say(json.dumps({"method": f"{UPDATE}.Cancel", "oneway": True}).encode() + b"\0")

    assert "parameters" in await client.ask({"method": f"{VARLINK}.GetInfo"})


# ---------------------------------------------------------------------------------------------- the stream


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


async def test_the_stream_says_only_what_has_changed(raw: Callable[[], Any], gateway: Gateway) -> None:
    client = await raw()
    first = await client.ask({"method": f"{UPDATE}.GetStatus", "more": True})
    gateway.telemetry.touch()
    await until(lambda: gateway.looks == 2)
    gateway.notice()
    second = await client.hear()

    assert first["continues"]
    assert first["parameters"]["status"]["deployment"] is None
    assert second["continues"]
    assert second["parameters"]["status"]["deployment"]["version"] == "2-0-0"


@pytest.mark.parametrize("turns", range(12))
async def test_no_change_is_missed_whenever_it_comes(path: Path, gateway: Gateway, turns: int) -> None:
    """`turns` of the loop lie between two changes; then nothing changes any more."""
    async with served(path, gateway, Limits(stream_s=0)):
        gateway.notice()
        client = Raw(*await asyncio.open_unix_connection(path))
        await client.ask({"method": f"{UPDATE}.GetStatus", "more": True})
        for position in range(1, 21):
            gateway.download((2 * position - 1) << 20)
            for _ in range(turns):
                await asyncio.sleep(0)
            gateway.download(2 * position << 20)
            while (await client.hear())["parameters"]["status"]["deployment"]["bytes"] != 2 * position << 20:
                pass
        client.writer.transport.abort()


async def test_the_stream_skips_to_the_newest(path: Path, gateway: Gateway) -> None:
    async with served(path, gateway, Limits(stream_s=0.3)):
        gateway.notice()
        client = Raw(*await asyncio.open_unix_connection(path))
        await client.ask({"method": f"{UPDATE}.GetStatus", "more": True})
        began = asyncio.get_running_loop().time()
        for position in range(1, 100):
            gateway.download(position << 20)
            await asyncio.sleep(0)
        status = (await client.hear())["parameters"]["status"]
        client.writer.transport.abort()

    assert status["deployment"]["bytes"] == 99 << 20
    assert asyncio.get_running_loop().time() - began > 0.2


async def test_the_last_change_is_not_lost_while_a_reply_is_sent(raw: Callable[[], Any], gateway: Gateway) -> None:
    client = await raw()
    gateway.padding = "x" * (4 << 20)  # more than the kernel takes: the reply is being sent until we read
    await client.say(json.dumps({"method": f"{UPDATE}.GetStatus", "more": True}).encode() + b"\0")
    await asyncio.sleep(0.05)
    gateway.padding = ""
    gateway.notice()
    first, second = await client.hear(), await client.hear()

    assert first["parameters"]["status"]["deployment"] is None
    assert second["parameters"]["status"]["deployment"]["version"] == "2-0-0"


async def test_who_talks_during_a_stream_is_dropped(raw: Callable[[], Any]) -> None:
    client = await raw()
    await client.ask({"method": f"{UPDATE}.GetStatus", "more": True})

    await client.say(b"x")

    assert await client.is_dropped()


async def test_who_leaves_a_stream_is_not_kept(daemon: Path, gateway: Gateway) -> None:
    for _ in range(20):  # of 4 connections at a time
        client = Raw(*await asyncio.open_unix_connection(daemon))
        await client.ask({"method": f"{UPDATE}.GetStatus", "more": True})
        client.writer.transport.abort()
        await still_answers(daemon)


# ---------------------------------------------------------------------------------------------- bad input


STANDARD_ERRORS: dict[str, tuple[dict[str, Any], str, dict[str, str]]] = {
    "no interface": ({"method": "GetStatus"}, "InterfaceNotFound", {"interface": ""}),
    "empty method": ({"method": ""}, "InterfaceNotFound", {"interface": ""}),
    "unknown interface": ({"method": "org.example.X.Y"}, "InterfaceNotFound", {"interface": "org.example.X"}),
    "unknown method": ({"method": f"{UPDATE}.Explode"}, "MethodNotFound", {"method": f"{UPDATE}.Explode"}),
    "private method": ({"method": f"{UPDATE}.__init__"}, "MethodNotFound", {"method": f"{UPDATE}.__init__"}),
    "lone surrogate": ({"method": f"{UPDATE}.\ud800"}, "MethodNotFound", {"method": f"{UPDATE}.\ud800"}),
    "superfluous parameter": (
        {"method": f"{UPDATE}.GetStatus", "parameters": {"verbose": True}},
        "InvalidParameter",
        {"parameter": "verbose"},
    ),
    "superfluous parameter of a stream": (
        {"method": f"{UPDATE}.GetStatus", "parameters": {"verbose": True}, "more": True},
        "InvalidParameter",
        {"parameter": "verbose"},
    ),
    "definition of nothing": (
        {"method": f"{VARLINK}.GetInterfaceDescription"},
        "InvalidParameter",
        {"parameter": "interface"},
    ),
    "definition of an unknown interface": (
        {"method": f"{VARLINK}.GetInterfaceDescription", "parameters": {"interface": "../../../etc/passwd"}},
        "InterfaceNotFound",
        {"interface": "../../../etc/passwd"},
    ),
}


@pytest.mark.parametrize(("call", "error", "parameters"), STANDARD_ERRORS.values(), ids=STANDARD_ERRORS.keys())
async def test_wrong_calls_get_the_standard_errors(
    raw: Callable[[], Any], call: dict[str, Any], error: str, parameters: dict[str, str]
) -> None:
    client = await raw()

    assert await client.ask(call) == {"error": f"{VARLINK}.{error}", "parameters": parameters}
    assert "parameters" in await client.ask({"method": f"{VARLINK}.GetInfo"})


BAD_PARAMETERS = [
    *(("url", bad) for bad in ("", "/etc/passwd", "ftp://x/y", "http://", "http://a b", "http://\n", "http://é", 7)),
    ("url", "http://" + "x" * 4001),
    *(("version", bad) for bad in ("", "a b", "x" * 65, "1.0\n", "é", 1, True, ["1"], {})),
    *(("module", bad) for bad in ("", "a/b", "x" * 65, 1, [])),
    *(("sha256", bad) for bad in ("", "cd" * 31, "CD" * 32, "zz" * 32, 7, "cd" * 32 + "\n")),
    *(("size", bad) for bad in (0, -1, 1.5, "7", True, 1 << 53, [7])),
]


@pytest.mark.parametrize(("name", "value"), BAD_PARAMETERS)
async def test_a_wrong_parameter_is_named(raw: Callable[[], Any], gateway: Gateway, name: str, value: object) -> None:
    call = {"method": f"{UPDATE}.Install", "parameters": {**INSTALL, name: value}}

    reply = await (await raw()).ask(call)

    assert reply == {"error": f"{VARLINK}.InvalidParameter", "parameters": {"parameter": name}}
    assert gateway.installed == []


@pytest.mark.parametrize("name", ["url", "version", "sha256"])
@pytest.mark.parametrize("absent", [True, False], ids=["missing", "null"])
async def test_a_parameter_that_is_missing_is_named(raw: Callable[[], Any], name: str, absent: bool) -> None:
    parameters = {key: value for key, value in INSTALL.items() if key != name} | ({} if absent else {name: None})

    reply = await (await raw()).ask({"method": f"{UPDATE}.Install", "parameters": parameters})

    assert reply == {"error": f"{VARLINK}.InvalidParameter", "parameters": {"parameter": name}}


GARBAGE = {
    "not JSON": b"hello\0",
    "empty": b"\0",
    "NULs": b"\0" * 4000,
    "binary": bytes(range(1, 256)) + b"\0",
    "not UTF-8": b'{"method":"\xff"}\0',
    "HTTP": b"GET / HTTP/1.1\r\n\r\n\0",
    "an array": b"[]\0",
    "a string": b'"io.otad.Update.GetStatus"\0',
    "null": b"null\0",
    "no method": b"{}\0",
    "method of another type": b'{"method":7}\0',
    "method null": b'{"method":null}\0',
    "parameters an array": b'{"method":"io.otad.Update.GetStatus","parameters":[]}\0',
    "parameters a string": b'{"method":"io.otad.Update.GetStatus","parameters":"x"}\0',
    "more a number": b'{"method":"io.otad.Update.GetStatus","more":1}\0',
    "oneway a string": b'{"method":"io.otad.Update.GetStatus","oneway":"no"}\0',
    "oneway and more": b'{"method":"io.otad.Update.GetStatus","oneway":true,"more":true}\0',
    "upgrade": b'{"method":"io.otad.Update.GetStatus","upgrade":true}\0',
    "deep arrays": b"[" * 4000 + b"\0",
    "deep objects": b'{"a":' * 700 + b"\0",
    "deep parameters": b'{"method":"io.otad.Update.GetStatus","parameters":' + b'{"a":' * 700 + b"\0",
    "a number without end": b'{"method":' + b"9" * 4000 + b"}\0",
    "too long": b'{"method":"' + b"x" * REQUEST_BYTES + b'"}\0',
    "much too long, and without an end": b"x" * 300_000,
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE.keys())
async def test_garbage_ends_its_connection_and_nothing_else(raw: Callable[[], Any], garbage: bytes) -> None:
    client = await raw()
    try:
        await client.say(garbage)
    except ConnectionError:
        pass  # dropped in the middle of it

    assert await client.is_dropped()


async def test_a_request_of_just_the_limit_is_heard(raw: Callable[[], Any]) -> None:
    call = json.dumps({"method": f"{UPDATE}.GetStatus", "x": ""})
    padded = call.replace('""', '"' + "x" * (REQUEST_BYTES - len(call)) + '"')

    assert "parameters" in await (await raw()).ask(json.loads(padded))


async def test_half_a_request_and_leaving_costs_nothing(raw: Callable[[], Any]) -> None:
    client = await raw()
    await client.say(b'{"method":"io.otad.Up')
    client.writer.write_eof()

    assert await client.is_dropped()


async def test_a_half_closed_client_gets_its_reply(raw: Callable[[], Any]) -> None:
    client = await raw()
    await client.say(b'{"method":"io.otad.Update.GetHistory"}\0')
    client.writer.write_eof()

    assert await client.hear() == {"parameters": {"deployments": []}}
    assert await client.is_dropped()


@pytest.mark.parametrize("size", range(50_000, 500_000, 50_000))
async def test_a_half_closed_client_gets_all_of_a_long_reply(
    raw: Callable[[], Any], gateway: Gateway, size: int
) -> None:
    gateway.padding = "x" * size
    client = await raw()
    client.writer.transport.pause_reading()
    await client.say(b'{"method":"io.otad.Update.GetStatus"}\0')
    client.writer.write_eof()
    await until(lambda: gateway.looks > 0)
    await asyncio.sleep(0.01)
    gateway.padding = ""
    client.writer.transport.resume_reading()

    assert (await client.hear())["parameters"]["status"]["padding"] == "x" * size


async def test_a_stream_that_is_cut_off_with_unread_replies_costs_nothing(daemon: Path) -> None:
    """unix(7): closing with unread bytes is an ECONNRESET at the other end."""

    def cut_off() -> None:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(daemon))
            client.sendall(b'{"method":"io.otad.Update.GetStatus","more":true}\0')
            assert client.recv(1, socket.MSG_PEEK)

    for _ in range(5):
        await asyncio.to_thread(cut_off)
        await still_answers(daemon)


async def test_a_silent_client_is_dropped(raw: Callable[[], Any]) -> None:
    assert await (await raw()).is_dropped()


async def test_a_client_that_drips_is_dropped(raw: Callable[[], Any]) -> None:
    client = await raw()
    began = asyncio.get_running_loop().time()
    try:
        for byte in b'{"method":"io.otad.Update.GetStatus", "parameters": {}}':
            await client.say(bytes([byte]))
            await asyncio.sleep(0.05)
    except ConnectionError:
        pass

    assert await client.is_dropped()
    assert asyncio.get_running_loop().time() - began < 2.5


async def test_a_client_that_does_not_read_is_dropped(raw: Callable[[], Any], gateway: Gateway) -> None:
    gateway.padding = "x" * (1 << 20)
    client = await raw()
    client.writer.transport.pause_reading()
    before = len(asyncio.all_tasks())
    try:
        for _ in range(1000):
            await asyncio.wait_for(client.say(b'{"method":"io.otad.Update.GetStatus"}\0' * 100), 0.2)
    except (TimeoutError, ConnectionError):
        pass
    async with asyncio.timeout(5):
        while len(asyncio.all_tasks()) >= before:
            await asyncio.sleep(0.01)
    gateway.padding = ""


async def test_a_stream_that_is_not_read_is_dropped(raw: Callable[[], Any], gateway: Gateway) -> None:
    gateway.padding = "x" * (4 << 20)
    client = await raw()
    before = len(asyncio.all_tasks())
    client.writer.transport.pause_reading()
    await client.say(b'{"method":"io.otad.Update.GetStatus","more":true}\0')
    async with asyncio.timeout(5):
        while len(asyncio.all_tasks()) >= before:
            await asyncio.sleep(0.01)
    gateway.padding = ""


async def test_more_clients_than_allowed_are_turned_away(raw: Callable[[], Any]) -> None:
    clients = [await raw() for _ in range(4)]
    for client in clients:
        await client.ask({"method": f"{VARLINK}.GetInfo"})

    assert await (await raw()).is_dropped()
    assert "parameters" in await clients[0].ask({"method": f"{VARLINK}.GetInfo"})


async def test_a_flood_of_calls_is_slowed_down(path: Path, gateway: Gateway) -> None:
    async with served(path, gateway, Limits(calls_per_s=100, burst=10)):
        client = Raw(*await asyncio.open_unix_connection(path))
        began = asyncio.get_running_loop().time()
        await client.say(b'{"method":"io.otad.Update.GetHistory"}\0' * 40)
        for _ in range(40):
            await client.hear()
        client.writer.transport.abort()

    assert 0.25 < asyncio.get_running_loop().time() - began < 2


async def test_calls_with_a_pause_are_not_slowed_down(path: Path, gateway: Gateway) -> None:
    async with served(path, gateway, Limits(calls_per_s=1, burst=10)):
        client = Raw(*await asyncio.open_unix_connection(path))
        began = asyncio.get_running_loop().time()
        for _ in range(10):
            await client.ask({"method": f"{UPDATE}.GetStatus"})
        client.writer.transport.abort()

    assert asyncio.get_running_loop().time() - began < 0.5


async def test_file_descriptors_that_are_sent_are_not_kept(daemon: Path) -> None:
    def send() -> bytes:
        with socket.socket(socket.AF_UNIX) as client, open("/dev/null", "rb") as null:
            client.connect(str(daemon))
            socket.send_fds(client, [b'{"method":"io.otad.Update.GetHistory"}\0'], [null.fileno()] * 100)
            return client.recv(4096)

    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        assert b"deployments" in await asyncio.to_thread(send)
    await still_answers(daemon)
    assert len(os.listdir("/proc/self/fd")) < before + 10


async def test_a_bug_in_the_daemon_is_not_hidden(path: Path) -> None:
    class Broken(Gateway):
        async def check(self) -> str:
            raise TypeError("a bug")

    running = asyncio.create_task(Server(listen(path), Broken()).run())
    client = Raw(*await asyncio.open_unix_connection(path))
    await client.say(b'{"method":"io.otad.Update.Check"}\0')

    with pytest.raises(ExceptionGroup, match="unhandled errors") as found:
        await asyncio.wait_for(running, 5)
    client.writer.transport.abort()
    assert found.value.subgroup(TypeError) is not None


# ---------------------------------------------------------------------------------------------- who may do what


def call(path: Path, method: str, **parameters: object) -> dict[str, Any]:
    with Client(path, timeout_s=5) as client:
        return client.call(method, **parameters)


@is_root
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # fork beside a thread; the child is not long for this world
def test_a_reader_may_read_and_nothing_else(path: Path) -> None:
    path.parent.chmod(0o755)
    with Served(path) as daemon:
        path.chmod(0o666)  # as if nobody were in the group
        daemon.do(daemon.gateway.notice)

        for method in set(METHODS[UPDATE]) - READING:
            parameters = INSTALL if method == "Install" else {}
            said = as_nobody(lambda: call(path, method, **parameters))  # noqa: B023
            assert said == "DeniedError: the daemon takes orders only from root"
        assert as_nobody(lambda: call(path, "GetStatus")["status"]["deployment"]["version"]) == "2-0-0"
        assert as_nobody(lambda: call(path, "GetHistory")) == "{'deployments': []}"


@is_root
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_who_is_not_in_the_group_may_not_even_connect(path: Path) -> None:
    path.parent.chmod(0o755)
    with Served(path):
        assert as_nobody(lambda: call(path, "GetStatus")) == f"DeniedError: {path}: Permission denied"


@is_root
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_readers_cannot_keep_root_out(path: Path) -> None:
    path.parent.chmod(0o777)
    full, done = path.parent / "full", path.parent / "done"

    def crowd() -> int:
        """How many of 40 are let in; they stay until `done` is there."""
        clients = [socket.socket(socket.AF_UNIX) for _ in range(40)]
        let_in = 0
        for client in clients:
            client.connect(str(path))
            client.settimeout(5)
            try:
                client.sendall(b'{"method":"io.otad.Update.GetHistory"}\0')
                let_in += bool(client.recv(4096))
            except ConnectionError:
                pass
        full.touch()
        appears(done)
        return let_in

    said: list[str] = []
    with Served(path):
        path.chmod(0o666)
        thread = threading.Thread(target=lambda: said.append(as_nobody(crowd)))
        thread.start()
        appears(full)
        answer = call(path, "Check")
        done.touch()
        thread.join(5)

    assert answer == {"answer": "nothing is offered"}
    assert said == ["32"]


def appears(file: Path) -> None:
    deadline = time.monotonic() + 5
    while not file.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_daemons_own_user_gives_orders_unless_it_is_the_services(
    monkeypatch: pytest.MonkeyPatch, path: Path
) -> None:
    """The rule as a table; who asks is the kernel's word (SO_PEERCRED) and tested above."""
    account = pwd.struct_passwd(("otad", "x", 990, 990, "", "/", "/bin/false"))
    monkeypatch.setattr(pwd, "getpwnam", lambda _: account)
    found = {}
    for own in (0, 990, 1000):
        monkeypatch.setattr(os, "geteuid", lambda own=own: own)
        found[own] = server._owner_uids()

    assert found == {0: {0}, 990: {0}, 1000: {0, 1000}}


# ---------------------------------------------------------------------------------------------- the socket


def test_the_socket_is_for_root_and_the_group(path: Path) -> None:
    listening = listen(path)
    mode = path.stat().st_mode
    listening.close()

    try:
        grp.getgrnam("otad")
    except KeyError:
        expected = 0o600
    else:
        expected = 0o660
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == expected


def test_a_stale_socket_is_replaced(path: Path) -> None:
    listen(path).close()

    with listen(path), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_a_living_socket_is_not_replaced(path: Path) -> None:
    with listen(path), pytest.raises(SocketError, match=f"{path}: another daemon listens here"):
        listen(path)


def test_a_living_socket_with_a_full_queue_is_not_replaced(path: Path) -> None:
    with listen(path) as listening:
        listening.listen(0)
        clients = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) for _ in range(5)]
        for client in clients:
            client.connect_ex(str(path))

        with pytest.raises(SocketError, match="another daemon listens here"):
            listen(path)
        for client in clients:
            client.close()


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_what_is_no_socket_is_left_alone(path: Path, kind: str) -> None:
    match kind:
        case "file":
            path.write_text("precious")
        case "directory":
            path.mkdir()
        case _:
            path.symlink_to("/nowhere")

    with pytest.raises(SocketError, match=f"{path}: exists and is not a socket"):
        listen(path)
    assert path.is_symlink() or path.exists()


def test_a_missing_directory_is_named(path: Path) -> None:
    with pytest.raises(SocketError, match="No such file or directory"):
        listen(path.parent / "missing" / "otad.sock")


@is_root
def test_a_directory_in_run_is_made() -> None:
    directory = Path(f"/run/otad-test-{os.getpid()}")
    try:
        with listen(directory / "otad.sock"):
            assert stat.S_IMODE(directory.stat().st_mode) == 0o755
    finally:
        (directory / "otad.sock").unlink(missing_ok=True)
        directory.rmdir()


def test_a_path_that_is_too_long_is_said_so(path: Path) -> None:
    with pytest.raises(SocketError, match="too long"):
        listen(path.parent / ("x" * 120))


async def test_the_socket_is_taken_away_at_the_end(path: Path, gateway: Gateway) -> None:
    async with served(path, gateway):
        await still_answers(path)

    assert not path.exists()


async def test_clients_are_let_go_at_the_end(path: Path, gateway: Gateway) -> None:
    async with served(path, gateway):
        idle, watching = [Raw(*await asyncio.open_unix_connection(path)) for _ in range(2)]
        await watching.ask({"method": f"{UPDATE}.GetStatus", "more": True})

    assert await idle.is_dropped()
    assert await watching.is_dropped()
    for client in (idle, watching):
        client.writer.transport.abort()


# ---------------------------------------------------------------------------------------------- our own client


def test_the_client_says_that_nobody_is_there(path: Path) -> None:
    with pytest.raises(AwayError, match=f"{path}: No such file or directory"):
        Client(path)
    listen(path).close()
    with pytest.raises(AwayError, match=f"{path}: Connection refused"):
        Client(path)


def test_the_client_lets_a_stream_be_silent_for_long(path: Path) -> None:
    with Served(path) as daemon, Client(path, timeout_s=0.2) as client:
        stream = client.stream("GetStatus")
        next(stream)
        timer = threading.Timer(0.4, lambda: daemon.do(daemon.gateway.notice))
        timer.start()

        assert next(stream)["status"]["deployment"]["version"] == "2-0-0"
        timer.join()


def test_the_client_says_what_is_no_socket(path: Path) -> None:
    with pytest.raises(FailedError, match="too long"):
        Client("/" + "x" * 200)


def test_the_client_raises_what_the_daemon_refuses(path: Path) -> None:
    with Served(path), Client(path) as client:
        with pytest.raises(RefusedError, match="no deployment is under way"):
            client.call("Cancel")
        with pytest.raises(FailedError, match="version: not a value that the daemon takes"):
            client.call("Install", url="http://x/", version="", sha256=SHA256)
        with pytest.raises(FailedError, match=r"MethodNotFound: it is of another version"):
            client.call("Dance")


@pytest.mark.parametrize(
    ("reply", "error", "says"),
    [
        (b"", AwayError, "closed the connection"),
        (b'{"parameters":', AwayError, "closed the connection"),
        (b"garbage\0", FailedError, "not a reply"),
        (b"[]\0", FailedError, "not a reply"),
        (b'{"parameters":[1]}\0', FailedError, "not a reply"),
        (b"[" * 100_000 + b"\0", FailedError, "not a reply"),
        (b"\xff\0", FailedError, "not a reply"),
        (b'{"error":7}\0', FailedError, "another version"),
    ],
)
def test_the_client_survives_a_daemon_that_is_none(path: Path, reply: bytes, error: type[Exception], says: str) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        with Client(path, timeout_s=5) as client:
            peer, _ = listening.accept()

            # RST must not overtake the reply: read the call first.
            def answer() -> None:
                peer.recv(4096)
                peer.sendall(reply)
                peer.close()

            thread = threading.Thread(target=answer)
            thread.start()
            with pytest.raises(error, match=says):
                client.call("GetStatus")
            thread.join()


def test_the_client_does_not_wait_for_ever(path: Path) -> None:
    with listen(path), Client(path, timeout_s=0.1) as client, pytest.raises(FailedError, match="no answer within 0 s"):
        client.call("GetStatus")


# ---------------------------------------------------------------------------------------------- anything at all

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.binary(max_size=200) | ANYTHING.map(lambda value: json.dumps(value).encode()))
def test_any_message_is_a_call_or_a_reason_to_drop(message: bytes) -> None:
    try:
        call = server._call(message)
    except server._DropError:
        return
    assert isinstance(call.method, str)


@given(st.dictionaries(st.sampled_from([*METHODS[UPDATE]["Install"], "other"]), ANYTHING))
def test_any_parameters_are_good_or_named(given: dict[str, Any]) -> None:
    """One wrong value among good ones is found, whatever it is."""
    named = None
    checked: dict[str, Any] = {}
    try:
        checked = server._checked(INSTALL | given, METHODS[UPDATE]["Install"])
    except server._ReplyError as error:
        named = error.parameters["parameter"]

    assert named in given or set(INSTALL) <= set(checked)
    assert all(METHODS[UPDATE]["Install"][name].is_valid(value) for name, value in checked.items())
