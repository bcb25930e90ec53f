# SPDX-License-Identifier: Apache-2.0
"""Which source a deployment's package comes from, and what the platform is asked meanwhile.

A person at the gateway names a file or a URL. The platform's notice offers the package over HTTP, in blocks over MQTT,
or both; each file of a package of several has a URL of its own. A notice grows old: URLs expire, and block numbers are
made anew for each message. So no source is given a URL, but the way to the newest one; and what the platform answers is
used only if it is the same package.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

from otad.cloud.cloud import BLOCKS_BYTES_MAX, Block, BlockError, Cloud, Offered, OfflineError
from otad.config import DownloadSettings
from otad.core.model import Deployment, Notice, Origin
from otad.errors import Code, UpdateError
from otad.threads import in_thread
from otad.transfer.blocks import BlockSource
from otad.transfer.file import FileSource
from otad.transfer.http import HttpSource
from otad.transfer.row import Row
from otad.transfer.source import Source
from otad.transfer.ways import Way, Ways

ASK_EVERY_S = 300.0
"""Not more often than this the platform is asked whether it offers another way by now."""


class Sources:
    """Makes the source of each deployment.

    `newest` gives the deployment's notice as it is remembered now. `floor`: see `tls.client_context`.
    """

    def __init__(
        self,
        limits: DownloadSettings,
        cloud: Cloud,
        newest: Callable[[Deployment], Notice],
        floor: Callable[[], int] | None = None,
        *,
        ask_every_s: float = ASK_EVERY_S,
    ) -> None:
        self._limits, self._cloud, self._newest, self._floor = limits, cloud, newest, floor
        self._ask_every_s = ask_every_s

    def of(self, deployment: Deployment) -> Source:
        """The source of this package, for one try."""
        notice = deployment.notice
        if notice.origin == Origin.LOCAL:
            path = local_path(notice.url)
            if path is not None:
                return FileSource(path)
            return HttpSource(self._limits, lambda: notice.url, local=True, floor=self._floor)
        offer = _Offer(deployment, self._cloud, lambda: self._newest(deployment), self._ask_every_s)
        if notice.files:
            return Row([(file.size, self._file(offer, number)) for number, file in enumerate(notice.files)])
        http = HttpSource(
            self._limits,
            offer.url,
            offer.fresh_url,
            floor=self._floor,
            another=(lambda: offer.asked_for(offer.in_blocks)) if offer.fits_blocks else None,
        )
        blocks = BlockSource(
            offer.block,
            offer.fresh_stream,
            self._limits,
            online=lambda: self._cloud.connected(self._cloud.connection),
            another=lambda: offer.asked_for(offer.over_http),
        )
        ways = Way("HTTP", http, offer.over_http), Way("MQTT", blocks, offer.in_blocks)
        return Ways(ways, offer.ask_again, self._limits.backoff_max_s)

    def _file(self, offer: "_Offer", number: int) -> Source:
        return HttpSource(self._limits, lambda: offer.url(number), lambda: offer.fresh_url(number), floor=self._floor)


async def size_of(url: str, limits: DownloadSettings, floor: Callable[[], int] | None = None) -> int:
    """How many bytes a URL leads to that a person at the gateway gave, file: or http(s):. Raises UpdateError."""
    path = local_path(url)
    if path is None:
        return await HttpSource(limits, lambda: url, local=True, floor=floor).size()
    try:
        return (await in_thread(path.stat)).st_size
    except OSError as error:
        raise UpdateError(Code.MEDIUM, f"{path}: {error.strerror}") from error


def local_path(url: str) -> Path | None:
    """The path that a file: URL names; None for any other."""
    parts = urlsplit(url)
    return Path(unquote(parts.path)) if parts.scheme == "file" else None


class _Offer:
    """What the platform offers for one deployment: the notice that is remembered, or an answer on its way there."""

    def __init__(
        self, deployment: Deployment, cloud: Cloud, remembered: Callable[[], Notice], ask_every_s: float
    ) -> None:
        self._identity, self._cloud = deployment.notice.identity, cloud
        self._remembered, self._seen = remembered, remembered()
        self._answer: Notice | None = None
        self._ask_every_s, self._ask_at = ask_every_s, 0.0  # time.monotonic()

    @property
    def notice(self) -> Notice:
        """The newest."""
        remembered = self._remembered()
        if remembered != self._seen:
            self._seen, self._answer = remembered, None
        return self._answer or self._seen

    # ------------------------------------------------------------------------------------------ over HTTP

    def over_http(self) -> bool:
        return bool(self.url())

    def url(self, number: int | None = None) -> str:
        """The newest URL, of the package or of a file of it."""
        return _url(self.notice, number)

    async def fresh_url(self, number: int | None = None) -> str | None:
        notice = await self._ask()
        return _url(notice, number) if notice is not None else None

    # ------------------------------------------------------------------------------------------ in blocks

    @property
    def fits_blocks(self) -> bool:
        return self._identity.size <= BLOCKS_BYTES_MAX

    def in_blocks(self) -> bool:
        return self.fits_blocks and self.notice.stream is not None

    async def block(self, offset: int, size: int) -> Block:
        stream = self.notice.stream
        if stream is None:
            raise BlockError("the notice does not offer the package over MQTT any more", refused=True)
        return await self._cloud.block(stream, offset, size)

    async def fresh_stream(self) -> bool:
        before = self.notice.stream
        notice = await self._ask()
        return notice is not None and notice.stream is not None and notice.stream != before

    # ------------------------------------------------------------------------------------------ asking

    async def asked_for(self, offered: Callable[[], bool]) -> bool:
        """Whether this way is offered; if not, after asking for it."""
        if not offered():
            await self.ask_again()
        return offered()

    async def ask_again(self) -> None:
        """Ask what is offered now, but not all the time."""
        if time.monotonic() >= self._ask_at:
            self._ask_at = time.monotonic() + self._ask_every_s
            await self._ask()

    async def _ask(self) -> Notice | None:
        """A fresh notice of the same package; None while there is none to be had."""
        try:
            answer = await self._cloud.ask(self._identity.module)
        except OfflineError:
            self._ask_at = 0.0
            return None
        if not isinstance(answer, Offered) or answer.notice.identity != self._identity:
            return None
        known, newer = self.notice, answer.notice  # what is remembered by now is older than the answer
        # A way that the newer message does not name may still be open.
        self._answer = replace(newer, url=newer.url or known.url, stream=newer.stream or known.stream)
        return self._answer


def _url(notice: Notice, number: int | None) -> str:
    if number is None:
        return notice.url
    return notice.files[number].url if number < len(notice.files) else ""
