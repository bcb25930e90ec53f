# SPDX-License-Identifier: Apache-2.0
"""No platform: a session that never stands, for a gateway whose configuration does not allow one."""

import asyncio

from otad.cloud.cloud import Answer, Block, Names, OfflineError, SessionState, SessionView
from otad.core.model import ModuleName, Stream


class Off:
    """A `Cloud` that is not there; `why` is what status shows."""

    connection = 0
    online_at: float | None = None
    names: Names | None = None
    unanswered = ""

    def __init__(self, why: str, since: int) -> None:
        self.view = SessionView(SessionState.OFF, since, why)

    async def run(self) -> None:
        await asyncio.Event().wait()

    def hurry(self) -> None:
        """There is nothing to attempt."""

    async def connected(self, after: int) -> int:
        del after
        await asyncio.Event().wait()
        raise AssertionError("nobody sets this event")

    async def ask(self, module: ModuleName, timeout_s: float = 10) -> Answer | None:
        del module, timeout_s
        raise OfflineError(self.view.detail)

    async def block(self, stream: Stream, offset: int, size: int) -> Block:
        del stream, offset, size
        raise OfflineError(self.view.detail)

    async def inform(self, module: ModuleName, version: str) -> None:
        del module, version
        raise OfflineError(self.view.detail)

    async def step(self, module: ModuleName, step: int, desc: str) -> None:
        del module, step, desc
        raise OfflineError(self.view.detail)
