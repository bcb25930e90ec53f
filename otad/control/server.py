# SPDX-License-Identifier: Apache-2.0
"""The daemon's end of the control socket: Varlink over a unix stream socket.

A message is a JSON object ended by a NUL byte (varlink.org). A call is `{"method", "parameters", "oneway", "more"}`, a
reply `{"parameters", "continues"}` or `{"error", "parameters"}`; each connection's calls are answered in their order.
The two interfaces are defined by the `.varlink` files beside this one.

Who may connect may read: that is the socket's mode. Orders need root, or the uid the daemon runs as where that is not
the service's own user. The two kinds of client have their connections and calls apart, so that no reader can keep root
out. A message that is no call ends its connection; so do silence, slowness and not reading. Nothing a client does is
kept beyond its connection, and no client is waited for.
"""

import asyncio
import errno
import grp
import json
import logging
import os
import pwd
import re
import socket
import stat
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from otad import __version__
from otad.control.service import JSON, InstallRequest, Objection, Service
from otad.core.model import DEFAULT_MODULE, ModuleName
from otad.errors import UpdateError

log = logging.getLogger(__name__)

ACCOUNT = "otad"
"""The group that may read, and the service's user, which may not give orders."""
UPDATE = "io.otad.Update"
VARLINK = "org.varlink.service"
READING = frozenset({"GetStatus", "GetHistory"})
"""The methods of UPDATE that change nothing."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What clients may use. `connections` and the calls are for each of the two kinds of client."""

    connections: int = 32
    request_bytes: int = 64 << 10
    calls_per_s: float = 50
    burst: int = 100  # calls that come at once
    idle_s: float = 60  # until a call is there in full
    send_s: float = 10  # until a client has read its reply
    stream_s: float = 0.2  # between two replies of a stream


class SocketError(Exception):
    """A control socket that cannot be opened, and why."""


def listen(path: Path) -> socket.socket:
    """The socket at `path`, which takes connections from now on. Raises SocketError.

    A stale socket is replaced; one that a daemon listens on, or a file of another kind, is not.
    """
    try:
        _make_run_directory(path.parent)
        _remove_stale(path)
        return _bound(path)
    except OSError as error:
        raise SocketError(f"{path}: {error.strerror or error}") from error


def _make_run_directory(directory: Path) -> None:
    """Directories in /run are gone after a boot; any other one is somebody's to make."""
    if directory.parent in (Path("/run"), Path("/var/run")) and not directory.exists():
        directory.mkdir(mode=0o755, exist_ok=True)


def _remove_stale(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise SocketError(f"{path}: exists and is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        result = probe.connect_ex(str(path))
    if result != errno.ECONNREFUSED:
        raise SocketError(f"{path}: another daemon listens here")
    path.unlink(missing_ok=True)


def _bound(path: Path) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        previous = os.umask(0o177)
        try:
            listening.bind(str(path))
        finally:
            os.umask(previous)
        _give_to_group(path)
        listening.listen(64)
    except OSError:
        listening.close()
        raise
    return listening


def _give_to_group(path: Path) -> None:
    try:
        os.chown(path, -1, grp.getgrnam(ACCOUNT).gr_gid)
    except (KeyError, PermissionError):
        return  # no such group, or not ours to give: 0600
    path.chmod(0o660)


class Server:
    """Answers the clients of one listening socket."""

    def __init__(self, listening: socket.socket, service: Service, limits: Limits | None = None) -> None:
        self._listening = listening
        self._service = service
        self._limits = limits or Limits()
        self._owners, self._readers = _Share(self._limits), _Share(self._limits)
        self._owner_uids = _owner_uids()
        self._clients = asyncio.TaskGroup()

    async def run(self) -> None:
        """Answer clients for ever; ends by being canceled, and takes the socket away."""
        async with self._clients:
            server = await asyncio.start_unix_server(
                self._accept, sock=self._listening, limit=self._limits.request_bytes
            )
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                self._close(server)

    def _close(self, server: asyncio.Server) -> None:
        # In this order: as long as we listen, no other daemon takes the place of our socket.
        Path(self._listening.getsockname()).unlink(missing_ok=True)
        server.close()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pid, uid = _peer(writer)
        client = _Client(reader, writer, pid, uid, may_change=uid in self._owner_uids)
        share = self._owners if client.may_change else self._readers
        if share.connections >= self._limits.connections:
            writer.transport.abort()
            return
        share.connections += 1
        self._clients.create_task(self._converse(client, share), name=f"control client {pid}")

    async def _converse(self, client: "_Client", share: "_Share") -> None:
        # With a mark of 0, `drain` waits until the kernel has it all: at most one reply is ever held in memory.
        client.writer.transport.set_write_buffer_limits(high=0)
        try:
            while True:
                message = await self._receive(client)
                await asyncio.sleep(share.delay_s())
                await self._answer(client, _call(message))
        except _DropError as reason:
            log.debug("control client %d (uid %d) dropped: %s", client.pid, client.uid, reason)
        finally:
            share.connections -= 1
            client.writer.transport.abort()

    async def _receive(self, client: "_Client") -> bytes:
        try:
            async with asyncio.timeout(self._limits.idle_s):
                return (await client.reader.readuntil(b"\0"))[:-1]
        except (EOFError, ConnectionError) as error:
            raise _DropError("it left") from error
        except TimeoutError as error:
            raise _DropError("silent, or slow to write") from error
        except asyncio.LimitOverrunError as error:
            raise _DropError(f"a request of more than {self._limits.request_bytes} bytes") from error

    async def _send(self, client: "_Client", reply: dict[str, JSON]) -> None:
        client.writer.write(json.dumps(reply, separators=(",", ":")).encode() + b"\0")
        try:
            async with asyncio.timeout(self._limits.send_s):
                await client.writer.drain()
        except ConnectionError as error:
            raise _DropError("it left") from error
        except TimeoutError as error:
            raise _DropError("it does not read") from error

    async def _answer(self, client: "_Client", call: "_Call") -> None:
        if call.method == f"{UPDATE}.GetStatus" and call.more and not call.parameters:
            await self._stream(client)
            return
        try:
            reply: dict[str, JSON] = {"parameters": await self._reply(client, call)}
        except _ReplyError as error:
            reply = {"error": error.name, "parameters": error.parameters}
        except Objection as objection:
            reply = {"error": f"{UPDATE}.Refused", "parameters": {"reason": str(objection)}}
        except UpdateError as error:
            reply = {"error": f"{UPDATE}.Failed", "parameters": {"reason": str(error.failure)}}
        if not call.oneway:
            await self._send(client, reply)

    async def _stream(self, client: "_Client") -> None:
        """Send the status whenever it has changed, until the client leaves. What it says meanwhile ends the stream."""
        sent: dict[str, JSON] | None = None
        left = self._clients.create_task(_left(client.reader), name=f"control client {client.pid} leaves")
        try:
            while not left.done():
                changed = self._clients.create_task(self._service.changed(), name="status changes")
                try:
                    await asyncio.sleep(0)  # `changed` waits from here on: nothing is missed while we send
                    status = await self._service.status()
                    if status != sent:
                        await self._send(client, {"parameters": {"status": status}, "continues": True})
                        sent = status
                    await asyncio.wait((changed, left), return_when=asyncio.FIRST_COMPLETED)
                finally:
                    changed.cancel()
                await asyncio.wait((left,), timeout=self._limits.stream_s)
        finally:
            left.cancel()
        raise _DropError("the stream is over")

    async def _reply(self, client: "_Client", call: "_Call") -> dict[str, JSON]:
        interface, _, method = call.method.rpartition(".")
        if interface not in (UPDATE, VARLINK):
            raise _ReplyError("InterfaceNotFound", interface=interface)
        if method not in METHODS[interface]:
            raise _ReplyError("MethodNotFound", method=call.method)
        parameters = _checked(call.parameters, METHODS[interface][method])
        if interface == VARLINK:
            return _varlink(method, parameters)
        if method in READING:
            return await self._read(method)
        if not client.may_change:
            raise _ReplyError("PermissionDenied")
        log.info("%s asked for by uid %d (pid %d)", method, client.uid, client.pid)
        return {"answer": await self._order(method, parameters)}

    async def _read(self, method: str) -> dict[str, JSON]:
        if method == "GetStatus":
            return {"status": await self._service.status()}
        return {"deployments": [*await self._service.history()]}

    async def _order(self, method: str, parameters: dict[str, Any]) -> str:
        match method:
            case "Check":
                return await self._service.check()
            case "Install":
                return await self._service.install(
                    InstallRequest(
                        url=parameters["url"],
                        module=ModuleName(parameters.get("module", DEFAULT_MODULE)),
                        version=parameters["version"],
                        size=parameters.get("size"),
                        sha256=parameters["sha256"],
                    )
                )
            case "Cancel":
                return await self._service.cancel()
            case "Retry":
                return await self._service.retry()
            case "Reboot":
                return await self._service.reboot()
            case "MarkGood":
                return await self._service.mark_good()
            case "RollBack":
                return await self._service.rollback()
            case _:
                raise AssertionError(method)


@dataclass(slots=True)
class _Share:
    """What all clients of one kind use together."""

    limits: Limits
    connections: int = 0
    due: float = 0.0  # when the last call was due, at the full rate

    def delay_s(self) -> float:
        """How long the call that has just come must wait for its turn."""
        now, interval = asyncio.get_running_loop().time(), 1 / self.limits.calls_per_s
        self.due = max(self.due + interval, now - self.limits.burst * interval)
        return max(0.0, self.due - now)


@dataclass(frozen=True, slots=True)
class _Client:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    pid: int
    uid: int
    may_change: bool


def _peer(writer: asyncio.StreamWriter) -> tuple[int, int]:
    """Process and user at the other end, as they were when it connected (unix(7), SO_PEERCRED)."""
    layout = struct.Struct("3i")
    credentials = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, layout.size)
    pid, uid, _ = layout.unpack(credentials)
    return pid, uid


def _owner_uids() -> frozenset[int]:
    """Who may give orders. Not the service's own user: its other processes would be able to."""
    own = os.geteuid()
    try:
        is_service = own == pwd.getpwnam(ACCOUNT).pw_uid
    except KeyError:
        is_service = False
    return frozenset({0} if is_service else {0, own})


async def _left(reader: asyncio.StreamReader) -> None:
    """Return when the client closes its end, or says anything."""
    try:
        await reader.read(1)
    except ConnectionError:
        pass


@dataclass(frozen=True, slots=True)
class _Call:
    method: str
    parameters: dict[str, Any]
    oneway: bool
    more: bool


class _DropError(Exception):
    """A connection is over, and why."""


class _ReplyError(Exception):
    """One of the standard errors, as the reply to a call."""

    def __init__(self, name: str, **parameters: JSON) -> None:
        super().__init__(name)
        self.name = f"{VARLINK}.{name}"
        self.parameters = parameters


def _call(message: bytes) -> _Call:
    try:
        call = json.loads(message.decode())
    except (ValueError, RecursionError) as error:
        raise _DropError("a request that is not JSON") from error
    if not isinstance(call, dict):
        raise _DropError("a request that is not an object")
    method, parameters = call.get("method"), call.get("parameters")
    oneway, more = call.get("oneway") or False, call.get("more") or False
    if not isinstance(method, str) or not isinstance(parameters, dict | None):
        raise _DropError("a request without a method, or with parameters that are no object")
    if not isinstance(oneway, bool) or not isinstance(more, bool) or (oneway and more) or call.get("upgrade"):
        raise _DropError("flags that cannot be honoured")
    return _Call(method, parameters or {}, oneway, more)


@dataclass(frozen=True, slots=True)
class Parameter:
    """What a method takes under one name."""

    is_valid: Callable[[Any], bool]
    required: bool = True


def _text(pattern: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and re.fullmatch(pattern, value, re.ASCII) is not None


def _is_size(value: object) -> bool:
    return type(value) is int and 0 < value < 1 << 53  # what survives in every JSON reader


_NAME = _text(r"[A-Za-z0-9._-]{1,64}")
METHODS: dict[str, dict[str, dict[str, Parameter]]] = {
    VARLINK: {
        "GetInfo": {},
        "GetInterfaceDescription": {"interface": Parameter(lambda value: isinstance(value, str))},
    },
    UPDATE: {
        "GetStatus": {},
        "GetHistory": {},
        "Check": {},
        "Install": {
            "url": Parameter(_text(r"(?:https?|file)://[!-~]{1,4000}")),
            "version": Parameter(_NAME),
            "sha256": Parameter(_text(r"[0-9a-f]{64}")),
            "module": Parameter(_NAME, required=False),
            "size": Parameter(_is_size, required=False),
        },
        "Cancel": {},
        "Retry": {},
        "Reboot": {},
        "MarkGood": {},
        "RollBack": {},
    },
}
"""The parameters of each method; what may be null may also be absent."""


def _checked(given: dict[str, Any], parameters: dict[str, Parameter]) -> dict[str, Any]:
    """Those that are given and not null; InvalidParameter names the first one that is wrong."""
    for name in given:
        if name not in parameters:
            raise _ReplyError("InvalidParameter", parameter=name)
    present = {name: value for name, value in given.items() if value is not None}
    for name, parameter in parameters.items():
        if not parameter.is_valid(present[name]) if name in present else parameter.required:
            raise _ReplyError("InvalidParameter", parameter=name)
    return present


def _varlink(method: str, parameters: dict[str, Any]) -> dict[str, JSON]:
    if method == "GetInfo":
        return {"vendor": "otad", "product": "otad", "version": __version__, "url": "", "interfaces": [VARLINK, UPDATE]}
    interface = parameters["interface"]
    if interface not in METHODS:
        raise _ReplyError("InterfaceNotFound", interface=interface)
    return {"description": (Path(__file__).parent / f"{interface}.varlink").read_text("utf-8")}
