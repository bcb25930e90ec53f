# SPDX-License-Identifier: Apache-2.0
"""Which URLs and addresses otad fetches from, and how a URL may be shown.

The platform's URLs carry a signature in their query part: it is never edited, never logged, never part of an error.
A notice comes from outside, so by default only https is fetched, and only from public addresses: a gateway must not
become somebody's way into the network it stands in. Names are judged by the address that is connected to.
"""

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from otad.errors import Code, UpdateError

URL_CHARACTERS_MAX = 4096
# Narrow, so that every parser on the way to the socket sees the same host.
_AUTHORITY = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_PRINTABLE = re.compile(r"[!-~]+")
# Forms of an IPv4 address that only libc understands (127.1, 0x7f.1, 2130706433): their last label begins a number.
_NUMBER_AT_THE_END = re.compile(r"(?:.*\.)?(?:[0-9]+|0[xX][0-9A-Fa-f]*)\.?")
_NAME = re.compile(r"(?=.{1,253}\Z)(?:[A-Za-z0-9_-]{1,63}\.)*[A-Za-z0-9_-]{1,63}\.?")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


@dataclass(frozen=True, slots=True)
class UrlPolicy:
    """What is allowed beyond https to public addresses."""

    allow_http: bool = False
    allow_private_hosts: bool = False

    def check(self, url: str) -> None:
        """UpdateError(URL) if a rule forbids to fetch this; the network is not asked."""
        split = _split(url)
        shown = public_url(url)
        if split.scheme not in ("https", "http"):
            raise UpdateError(Code.URL, f"{shown}: the scheme must be https")
        if split.scheme == "http" and not self.allow_http:
            raise UpdateError(Code.URL, f"{shown}: plain http needs download.allow_http")
        host = split.hostname or ""
        if objection := self.objection(host):
            raise UpdateError(Code.URL, f"{shown}: {objection}")

    def objection(self, host: str) -> str | None:
        """Why this host or address is not connected to; None for a name, which says nothing yet."""
        try:
            address = ipaddress.ip_address(host.partition("%")[0])  # a socket adds the interface
        except ValueError:
            if _NUMBER_AT_THE_END.fullmatch(host) or not _NAME.fullmatch(host):
                return "the host is neither a name nor an address"
            name = host.lower().rstrip(".")
            local = name == "localhost" or name.endswith(".localhost")
            return f"{host} needs download.allow_private_hosts" if local and not self.allow_private_hosts else None
        if self.allow_private_hosts or is_public(address):
            return None
        return f"{host} is not a public address and needs download.allow_private_hosts"


def public_url(url: str) -> str:
    """The URL as it may be shown: without query, fragment, user and password."""
    text = re.split(r"[?#]", url, maxsplit=1)[0]
    scheme, separator, rest = text.partition("//")
    authority, slash, path = rest.partition("/")
    shown = f"{scheme}{separator}{authority.rpartition('@')[2]}{slash}{path}"
    return "".join(character if character.isprintable() else "?" for character in shown[:200])


def etag_url(url: str) -> str:
    """Scheme, host and path: what an ETag belongs to."""
    split = urlsplit(url)
    return f"{split.scheme}://{split.netloc.lower()}{split.path}"


def is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Reached over the Internet; an IPv6 address that only wraps an IPv4 one is judged by that."""
    if isinstance(address, ipaddress.IPv6Address):
        wrapped = address.ipv4_mapped or address.sixtofour
        if wrapped is None and address in _NAT64:
            wrapped = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if wrapped is not None:
            return is_public(wrapped)
        if address.is_site_local:
            return False
    return address.is_global and not address.is_multicast and not address.is_reserved


def _split(url: str) -> SplitResult:
    """The parts of a URL that can be one; UpdateError(URL) if it cannot."""
    shown = public_url(url)
    if len(url) > URL_CHARACTERS_MAX or not _PRINTABLE.fullmatch(url) or "\\" in url:
        raise UpdateError(Code.URL, f"{shown}: not a URL of at most {URL_CHARACTERS_MAX} printable ASCII characters")
    try:
        split = urlsplit(url)
        if split.port == 0:
            raise ValueError("port 0")
    except ValueError as error:
        raise UpdateError(Code.URL, f"{shown}: host and port make no sense") from error
    if "@" in split.netloc:
        raise UpdateError(Code.URL, f"{shown}: user and password in a URL are refused")
    if split.scheme in ("http", "https") and not _AUTHORITY.fullmatch(split.netloc):
        raise UpdateError(Code.URL, f"{shown}: host and port make no sense")
    return split
