# SPDX-License-Identifier: Apache-2.0
"""The connection under the MQTT library: TLS or plain, bounded, watched, and ours to cut.

The library reads a packet of any length into memory (256 MiB by the protocol, and three times that on the way), leaves
its socket open when connecting is canceled or times out, and says little about why a connection ended. It makes its
socket by calling `wrap_socket` of the TLS context it was given. A `Link` is such a context, for one connection, and its
socket

- refuses a packet by the length in its header, before a byte of it is read,
- remembers when something was last heard, and in which words the connection ended,
- can be shut from outside at any time, also from under a thread that is still connecting. The library then sees the
  end of the stream, and closes the socket itself as it would for any lost connection.
"""

import asyncio
import socket
import ssl
import threading
import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

from otad.errors import ConfigurationError
from otad.tls import client_context, valid_until

CLOSED = "closed by the platform"
_AGAIN = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)

# X509_V_ERR_..., openssl-verification-options(1)
_UNKNOWN_ISSUER = (18, 19, 20, 21)


def default_context(ca_file: Path | None = None, floor: Callable[[], int] | None = None) -> ssl.SSLContext:
    """TLS 1.2 or later, the host's name checked, with the roots in `ca_file` or else those that otad ships.

    `floor`: see `tls.client_context`. Raises ConfigurationError.
    """
    try:
        shipped = None if ca_file else resources.files("otad.cloud").joinpath("roots.pem").read_text("ascii")
        return client_context(cadata=shipped, file=ca_file, floor=floor)
    except OSError as error:
        raise ConfigurationError((f"mqtt.ca_file: {ca_file}: {words(error)}",)) from error


def words(error: BaseException) -> str:
    """What a person needs to know of this error of a connection, with what to look at where that is known."""
    match error:
        case ssl.SSLCertVerificationError(verify_code=code) if code in _UNKNOWN_ISSUER:
            return f"certificate: {error.verify_message}; mqtt.ca_file names the roots to trust"
        case ssl.SSLCertVerificationError():  # among them tls.DateError, which says what the clocks say
            return f"certificate: {error.verify_message}"
        case ssl.SSLError(reason="WRONG_VERSION_NUMBER"):
            return "TLS: the answer is not TLS; mqtt.port and mqtt.tls do not fit together"
        case ssl.SSLError(reason=str(reason)):
            return f"TLS: {reason.lower().replace('_', ' ')}"
        case ConnectionResetError() | BrokenPipeError():
            return CLOSED
        case TimeoutError():
            return "timed out"
        case OSError() if error.strerror:
            return error.strerror[0].lower() + error.strerror[1:]
        case _:
            return str(error) or type(error).__name__


class Link:
    """One connection. It stands where the library expects a TLS context."""

    # Otherwise the library would compare the host's name itself, with a function that Python no longer has.
    check_hostname = True

    def __init__(self, tls: ssl.SSLContext | None, packet_max: int) -> None:
        """`tls` None: plain TCP. `packet_max`: bytes after a packet's header; a longer packet ends the connection."""
        self.ended = asyncio.Event()  # nothing more comes
        self.closed = asyncio.Event()  # and nothing is left
        self.fault = ""
        self.heard_at = time.monotonic()
        self.packet_max = packet_max
        self.valid_until: int | None = None  # see `tls.valid_until`; None before the handshake and without TLS
        self._tls = tls
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()  # wrap_socket is called in a thread
        self._socket: _Socket | None = None
        self._is_cut = False

    def wrap_socket(self, raw: socket.socket, server_hostname: str | None = None, **_: Any) -> "_Socket":
        with self._lock:
            try:
                if self._is_cut:
                    raise ConnectionAbortedError(self.fault)
                if self._tls is not None:
                    raw = self._tls.wrap_socket(raw, server_hostname=server_hostname, do_handshake_on_connect=False)
            except BaseException:
                raw.close()
                raise
            self._socket = _Socket(raw, self)
            return self._socket

    def cut(self, reason: str) -> None:
        """End the connection, or keep it from coming up. Returns at once."""
        self.blame(reason)
        with self._lock:
            self._is_cut = True
            if self._socket is not None:
                self._socket.shut()
                self.ended.set()

    async def close(self) -> None:
        """Cut, and give the library the moment it needs to see that and close the socket."""
        self.cut("")
        if self._socket is not None:
            try:
                async with asyncio.timeout(0.2):
                    await self.closed.wait()
            except TimeoutError:
                pass

    def blame(self, reason: str) -> None:
        """Say why the connection ends; the first reason counts, the others follow from it."""
        self.fault = self.fault or reason

    def tell_closed(self) -> None:
        """Set `ended` and `closed`, from any thread."""
        try:
            self._loop.call_soon_threadsafe(self.ended.set)
            self._loop.call_soon_threadsafe(self.closed.set)
        except RuntimeError:
            pass  # the loop is closed: nobody waits


class _Socket:
    """The socket as the library uses it; what is not defined here is the real one's."""

    def __init__(self, real: socket.socket, link: Link) -> None:
        self._real = real
        self._link = link

    def do_handshake(self) -> None:
        """Called where there is no TLS too, and by nobody but the library, once."""
        if isinstance(self._real, ssl.SSLSocket):
            try:
                self._real.do_handshake()
            except OSError as error:
                self._link.blame(words(error))
                self.close()
                raise
            self._link.valid_until = valid_until(self._real)

    def recv(self, size: int) -> bytes:
        # The library asks for all that is missing of a packet at once, so the first call tells its length.
        if size > self._link.packet_max:
            self._link.blame(f"a packet of {size} bytes: more than {self._link.packet_max} are not read")
            raise ConnectionAbortedError(self._link.fault)
        try:
            content = self._real.recv(size)
        except _AGAIN:
            raise
        except OSError as error:
            self._link.blame(words(error))
            raise
        if content:
            self._link.heard_at = time.monotonic()
        else:
            self._link.blame(CLOSED)
        return content

    def send(self, content: bytes) -> int:
        try:
            return self._real.send(content)
        except _AGAIN:
            raise
        except OSError as error:
            self._link.blame(words(error))
            raise

    def shut(self) -> None:
        """Both directions; the descriptor stays, so that whoever watches it sees the end."""
        try:
            # Not SSLSocket's own: that one forgets the TLS state, which another thread may be using.
            socket.socket.shutdown(self._real, socket.SHUT_RDWR)
        except OSError:
            pass  # not connected any more, or closed

    def close(self) -> None:
        self._real.close()
        self._link.tell_closed()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)
