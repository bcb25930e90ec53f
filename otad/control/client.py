# SPDX-License-Identifier: Apache-2.0
"""The other end of the control socket, for the command line: one call after another, and a stream.

It starts fast: nothing is imported but json and socket. What can come back from a call are four exceptions, one for
each exit status that a command can have for it.
"""

import json
import os
import socket
from collections.abc import Iterator
from types import TracebackType
from typing import Any

INTERFACE = "io.otad.Update"
REPLY_BYTES_MAX = 16 << 20


class ControlError(Exception):
    """A call without a result."""


class AwayError(ControlError):
    """Nobody answers on the socket."""


class RefusedError(ControlError):
    """The daemon does not do this in its present state."""


class DeniedError(ControlError):
    """This user may not do that."""


class FailedError(ControlError):
    """The daemon tried, or could not make sense of the call."""


class Client:
    """One connection to the daemon. Raises AwayError, DeniedError or FailedError where there can be none."""

    def __init__(self, path: str | os.PathLike[str], timeout_s: float = 60) -> None:
        self._path = os.fspath(path)
        self._received = bytearray()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout_s)
        try:
            self._socket.connect(self._path)
        except OSError as error:
            self._socket.close()
            text = f"{self._path}: {error.strerror or error}"
            if isinstance(error, FileNotFoundError | ConnectionRefusedError):
                raise AwayError(text) from error
            if isinstance(error, PermissionError):
                raise DeniedError(text) from error
            raise FailedError(text) from error

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The reply's parameters. Parameters that are None are left out."""
        self._send(method, parameters)
        reply, _ = self._reply()
        return reply

    def stream(self, method: str) -> Iterator[dict[str, Any]]:
        """The parameters of each reply, for as long as they come: from the second one on, silence is no error."""
        self._send(method, {}, more=True)
        continues = True
        while continues:
            reply, continues = self._reply()
            self._socket.settimeout(None)
            yield reply

    def _send(self, method: str, parameters: dict[str, Any], **flags: bool) -> None:
        given = {name: value for name, value in parameters.items() if value is not None}
        call = {"method": f"{INTERFACE}.{method}", "parameters": given, **flags}
        try:
            self._socket.sendall(json.dumps(call).encode() + b"\0")
        except OSError as error:
            raise AwayError(f"{self._path}: {error.strerror or error}") from error

    def _reply(self) -> tuple[dict[str, Any], bool]:
        try:
            reply = json.loads(self._message())
        except (ValueError, RecursionError) as error:
            raise FailedError(f"{self._path}: not a reply: {error}") from error
        parameters = reply.get("parameters") or {} if isinstance(reply, dict) else None
        if not isinstance(parameters, dict):
            raise FailedError(f"{self._path}: not a reply")
        if reply.get("error") is not None:
            raise _error(str(reply["error"]), parameters)
        return parameters, bool(reply.get("continues"))

    def _message(self) -> bytes:
        while True:
            message, end, rest = self._received.partition(b"\0")
            if end:
                self._received = rest
                return bytes(message)
            if len(self._received) > REPLY_BYTES_MAX:
                raise FailedError(f"{self._path}: a reply of more than {REPLY_BYTES_MAX} bytes")
            try:
                more = self._socket.recv(1 << 16)
            except TimeoutError as error:
                raise FailedError(f"{self._path}: no answer within {self._socket.gettimeout():.0f} s") from error
            except OSError as error:
                raise AwayError(f"{self._path}: {error.strerror or error}") from error
            if not more:
                raise AwayError(f"{self._path}: the daemon closed the connection")
            self._received += more


def _error(name: str, parameters: dict[str, Any]) -> ControlError:
    match name:
        case "io.otad.Update.Refused":
            return RefusedError(str(parameters.get("reason")))
        case "io.otad.Update.Failed":
            return FailedError(str(parameters.get("reason")))
        case "org.varlink.service.PermissionDenied":
            return DeniedError("the daemon takes orders only from root")
        case "org.varlink.service.InvalidParameter":
            return FailedError(f"{parameters.get('parameter')}: not a value that the daemon takes")
        case _:
            return FailedError(f"the daemon answers {name}: it is of another version")
