# SPDX-License-Identifier: Apache-2.0
"""How far a work has come: the newest value wins, nothing is saved, nobody is waited for."""

import asyncio
from dataclasses import dataclass

from otad.core.model import DeploymentId


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the work of a deployment is right now. Sizes in bytes, rate in bytes per second."""

    deployment: DeploymentId | None
    bytes: int = 0  # of the package while downloading, of the image while installing
    total: int = 0  # 0: not known
    checked: int = 0  # bytes compared on the medium
    rate: float = 0.0
    resumed: int = 0  # since the last checkpoint
    waits_for: str = ""  # what it waits for, in words; "" while it moves
    waits_until: float | None = None  # time.time() of the next attempt


class Telemetry:
    """The newest progress, and a way to wait for the next one."""

    def __init__(self) -> None:
        self.progress: Progress | None = None
        self._changed = asyncio.Event()

    def publish(self, progress: Progress | None) -> None:
        self.progress = progress
        self.touch()

    def touch(self) -> None:
        """Something a status shows has changed."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def changed(self) -> None:
        """Return at the next publish or touch."""
        await self._changed.wait()
