# SPDX-License-Identifier: Apache-2.0
"""TLS as a client, also on a gateway whose clock is wrong, and what to say of a certificate whose dates do not fit.

A gateway that boots in 1970 takes every certificate for one that is not valid yet. OpenSSL compares with the system
clock, and Python cannot pass another one. So while the system clock is before the floor (`otad.clock`) OpenSSL is told
not to look at dates, and nothing else: chain and host's name are verified as ever. What has not ended before the floor
is accepted, for the leaf as for every issuer up to the root; when a certificate begins does not matter, for all that
is known is that it is the floor or later.

That is checked at the end of the handshake, before a byte of ours is sent: in `do_handshake` of the classes that an
SSLContext makes its sockets of (`sslsocket_class`, `sslobject_class`). Whoever uses a context of ours with sockets of
its own making must call it, as paho, asyncio and aiohttp do. It is checked at every clock: where OpenSSL has looked
already it says nothing new, and a clock that is set while a connection comes up leaves no gap.

Known limit: with dates off, OpenSSL may build its chain over an expired issuer where the server sends, or the roots
have, a valid one of the same name and key. Such a server is refused until the clock is right.
"""

import re
import ssl
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

Connection = ssl.SSLSocket | ssl.SSLObject

# X509_V_ERR_..., openssl-verification-options(1)
_UNSPECIFIED = 1
_NOT_YET_VALID = 9
_EXPIRED = 10

_NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME, X509_VERIFY_PARAM_set_flags(3)
_DER = 2  # _ssl.ENCODING_DER
_TIME = re.compile(r"[0-9]{14}Z", re.ASCII)


class DateError(ssl.SSLCertVerificationError):
    """A certificate whose dates do not fit the time; `verify_message` has all that a person needs."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(ssl.SSL_ERROR_SSL, f"certificate verify failed: {message}")
        self.library, self.reason = "SSL", "CERTIFICATE_VERIFY_FAILED"
        self.verify_code, self.verify_message = code, message


def client_context(
    *, cadata: str | None = None, file: Path | None = None, floor: Callable[[], int] | None = None
) -> ssl.SSLContext:
    """TLS 1.2 or later, chain and host's name checked, with the roots in `cadata` (PEM), in `file`, or the system's.

    `floor`, such as `lambda: clock.floor`, is asked anew for each connection and from any thread: it is not earlier
    than that. Without it the system clock is believed. Blocks while it reads roots. Raises OSError, also for a file
    that holds no roots.
    """
    context = _Context(ssl.PROTOCOL_TLS_CLIENT)  # which checks the name
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # A second handshake within the connection would not come past our check.
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.floor = floor
    if cadata is not None or file is not None:
        context.load_verify_locations(cafile=file, cadata=cadata)
    else:
        context.load_default_certs()
    return context


def valid_until(connection: Connection) -> int | None:
    """When the first certificate of the verified chain ends, in seconds since 1970; None if there is no such chain.

    For after the handshake. What the peer says is authenticated no longer than that.
    """
    return min((ends for _, ends in _chain(connection)), default=None)


class _Context(ssl.SSLContext):
    floor: Callable[[], int] | None = None

    def wrap_socket(self, *args: Any, **kwargs: Any) -> ssl.SSLSocket:
        self._look_at_the_clock()
        return super().wrap_socket(*args, **kwargs)

    def wrap_bio(self, *args: Any, **kwargs: Any) -> ssl.SSLObject:
        self._look_at_the_clock()
        return super().wrap_bio(*args, **kwargs)

    def _look_at_the_clock(self) -> None:
        """A connection takes over the flags of its context when it is made."""
        if self.floor is not None and time.time() < self.floor():
            self.verify_flags |= _NO_CHECK_TIME
        else:
            self.verify_flags &= ~_NO_CHECK_TIME


class _Socket(ssl.SSLSocket):
    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except ssl.SSLCertVerificationError as error:
            _explain(self, error)
            raise
        _check(self)


class _Object(ssl.SSLObject):
    def do_handshake(self) -> None:
        try:
            super().do_handshake()
        except ssl.SSLCertVerificationError as error:
            _explain(self, error)
            raise
        _check(self)


_Context.sslsocket_class = _Socket
_Context.sslobject_class = _Object


def _explain(connection: Connection, error: ssl.SSLCertVerificationError) -> None:
    """Raise DateError where it is for its dates that OpenSSL does not accept a certificate."""
    if error.verify_code in (_NOT_YET_VALID, _EXPIRED):
        now = time.time()
        for depth, (begins, ends) in enumerate(_chain(connection)):
            if now < begins if error.verify_code == _NOT_YET_VALID else ends < now:
                said = _words(error.verify_message, connection, depth, begins, ends)
                raise DateError(error.verify_code, said) from error


def _check(connection: Connection) -> None:
    """Raise DateError unless there is a verified chain of which nothing has ended before the floor."""
    floor = _floor(connection)
    if floor is None:
        return
    chain = _chain(connection)
    if not chain:  # as after resuming a TLS session, which nobody of ours does
        raise DateError(_UNSPECIFIED, "no chain whose dates could be looked at")
    for depth, (begins, ends) in enumerate(chain):
        if ends < floor:
            raise DateError(_EXPIRED, _words("certificate has expired", connection, depth, begins, ends))


def _words(reason: str, connection: Connection, depth: int, begins: int, ends: int) -> str:
    now, floor = time.time(), _floor(connection)
    which = f"issuer {depth} of the certificate" if depth else "the certificate"
    said = f"{reason}; this gateway's clock says {_utc(now)}"
    if floor is not None and now < floor:
        return f"{said} and is wrong, for it is {_utc(floor)} or later; {which} ended on {_utc(ends)}"
    known = f"it is {_utc(floor)} or later; " if floor is not None else ""
    return f"{said}; {which} is valid from {_utc(begins)} to {_utc(ends)}; {known}set the clock if it is wrong"


def _floor(connection: Connection) -> int | None:
    context = connection.context
    return context.floor() if isinstance(context, _Context) and context.floor is not None else None


def _chain(connection: Connection) -> list[tuple[int, int]]:
    """When each certificate begins and ends, from the leaf to the root: the verified chain, or as far as it came."""
    if sys.version_info >= (3, 13):
        return [_validity(der) for der in connection.get_verified_chain()]
    found = cast("Any", connection)._sslobj.get_verified_chain()  # noqa: SLF001  # not public before 3.13
    return [_validity(certificate.public_bytes(_DER)) for certificate in found or ()]


def _validity(der: bytes) -> tuple[int, int]:
    """When the certificate begins and ends, in seconds since 1970; what cannot be read ended in 1970.

    RFC 5280 section 4.1: Certificate and TBSCertificate are sequences; in the latter stand the version (tag 0xA0, may
    be missing), serial number, algorithm, issuer, and then the validity, a sequence of two times.
    """
    try:
        _, at, _ = _element(der, 0)
        _, at, _ = _element(der, at)
        for _ in range(4 if der[at] == 0xA0 else 3):
            _, _, at = _element(der, at)
        _, at, _ = _element(der, at)
        kind, begin, end = _element(der, at)
        begins = _time(kind, der[begin:end])
        kind, begin, end = _element(der, end)
        return begins, _time(kind, der[begin:end])
    except (ValueError, IndexError):
        return 0, 0


def _element(der: bytes, at: int) -> tuple[int, int, int]:
    """Tag of the DER element that begins here; where its content begins and ends."""
    kind, length, at = der[at], der[at + 1], at + 2
    if length == 0x80:
        raise ValueError("not DER: no length")
    if length > 0x80:
        count = length - 0x80
        length, at = int.from_bytes(der[at : at + count]), at + count
    return kind, at, at + length


def _time(kind: int, content: bytes) -> int:
    """UTCTime is of the years 1950 to 2049, GeneralizedTime of any; both end with Z. RFC 5280 section 4.1.2.5."""
    text = content.decode("ascii")
    if kind == 0x17:
        text = ("19" if text >= "50" else "20") + text
    elif kind != 0x18:
        raise ValueError("not a time")
    if not _TIME.fullmatch(text):
        raise ValueError("not a time of RFC 5280")
    month, day, hour, minute, second = (int(text[n : n + 2]) for n in range(4, 14, 2))
    return int(datetime(int(text[:4]), month, day, hour, minute, second, tzinfo=UTC).timestamp())


def _utc(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(at))
