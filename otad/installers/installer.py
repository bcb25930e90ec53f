# SPDX-License-Identifier: Apache-2.0
"""What is needed of an installer whose modules are switched while the system runs: no boot loader, no reboot.

Each of its works may be run again from the start after a power cut at any moment. When canceled, each returns only
after the chunk in flight has been written, or the program that runs has been ended.
"""

import asyncio
from collections.abc import Callable
from typing import Protocol

from otad.core.model import Deployment
from otad.telemetry import Progress


class InPlace(Protocol):
    """One module's installer. UpdateError INSTALL, FORMAT, DIGEST, SPACE or MEDIUM says why something did not work."""

    async def install(self, deployment: Deployment, progress: Callable[[Progress], None]) -> None:
        """Carry the staging file next to what runs: checked and durable when it returns, and not switched to yet."""
        ...

    async def activate(self, deployment: Deployment, progress: Callable[[Progress], None]) -> None:
        """Switch to what `install` has brought."""
        ...

    async def restore(self, deployment: Deployment, progress: Callable[[Progress], None]) -> None:
        """Switch back to what ran before; does no harm where `activate` had not switched yet."""
        ...

    def tidy(self, deployment: Deployment | None) -> None:
        """Remove what other deployments have left, but for what runs and what it would be switched back to."""
        ...


class Stopped(Exception):  # noqa: N818  # nobody hears this but the canceled caller
    """The installation was canceled."""


def from_thread(progress: Callable[[Progress], None]) -> Callable[[Progress], None]:
    """`progress`, to be called from another thread than that of the running loop."""
    loop = asyncio.get_running_loop()

    def tell(value: Progress) -> None:
        loop.call_soon_threadsafe(progress, value)

    return tell
