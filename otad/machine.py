# SPDX-License-Identifier: Apache-2.0
"""What the machine shows: which slot is booted, what the boot loader holds, which versions run. Read, never remembered.

A look at the boot loader's store is cheap and shown for a second. Evidence of a version may be a program of the owner,
so it is read again only where it may have changed: at a boot, and when a deployment begins, ends or enters another
phase.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from otad import evidence
from otad.boot.control import BootControl
from otad.boot.simulated import slot_version
from otad.config import Backend, Config, InstallerKind
from otad.coordinator import now
from otad.core.events import Started
from otad.core.model import DEFAULT_MODULE, Board, Deployment, ModuleName, Slot, State
from otad.durable import Disk
from otad.errors import UpdateError
from otad.evidence import Evidence
from otad.telemetry import Progress, Telemetry
from otad.threads import in_thread

LOOK_PAUSE_MAX_S = 60.0
FRESH_S = 1.0
"""What was seen of the board is shown for so long, unless the state has changed."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Seen:
    """As of the last look."""

    board: Board | None = None
    versions: Mapping[ModuleName, Evidence] = field(default_factory=dict[ModuleName, Evidence])
    slot_versions: Mapping[Slot, str | None] = field(default_factory=dict[Slot, str | None])
    state: State | None = None
    phase: object = None
    at: float = -FRESH_S  # time.monotonic()


class Machine:
    """The gateway under us, as far as it can be seen without changing it."""

    def __init__(self, config: Config, disk: Disk, boot: BootControl, telemetry: Telemetry) -> None:
        self.devices = {Slot(name): slot.device for name, slot in config.slots.items()}
        self.modules = {ModuleName(name): module for name, module in config.modules.items()}
        self.unseen = ""  # what must be readable before anything is known
        self._is_simulated = config.boot.backend is Backend.SIMULATED
        self._disk = disk
        self._boot = boot
        self._telemetry = telemetry
        self._looking = asyncio.Lock()
        self._seen = _Seen()

    @property
    def system(self) -> ModuleName | None:
        """The module that the slots are."""
        return next((name for name, module in self.modules.items() if module.installer is InstallerKind.SLOTS), None)

    @property
    def board(self) -> Board | None:
        return self._seen.board

    @property
    def versions(self) -> Mapping[ModuleName, Evidence]:
        return self._seen.versions

    @property
    def slot_versions(self) -> Mapping[Slot, str | None]:
        """What each slot holds, where that can be told without booting it."""
        return self._seen.slot_versions

    async def version(self, name: ModuleName) -> Evidence:
        """The version of this module that runs now, by evidence."""
        module = self.modules.get(name)
        if module is None:
            return Evidence(None, "not configured on this gateway", absent=True)
        booted = self._seen.board.booted if self._seen.board else None
        device = self.devices.get(booted) if booted is not None else None
        return await evidence.running_version(
            module.version, self._disk, device, link=_link(module.directory, module.link)
        )

    async def version_of(self, deployment: Deployment) -> Evidence:
        """Of what this deployment upgrades. The system's own, whatever a new system's configuration calls it."""
        return await (self.version(deployment.notice.identity.module) if deployment.in_place else self.system_version())

    async def system_version(self) -> Evidence:
        system = self.system
        return await self.version(system) if system is not None else Evidence(None, "no module is made of slots")

    async def begin(self) -> Started:
        """The first event: which boot, which slot, which version. A store that cannot be read is tried for ever."""
        pause = 1.0
        while True:
            try:
                boot_id = await in_thread(self._boot.boot_id)
                board = await in_thread(self._boot.view)
            except UpdateError as error:
                _log.error("the boot loader's store: %s", error)
                self.unseen = f"the boot loader's store ({error})"
                self._telemetry.publish(Progress(None, waits_for=self.unseen, waits_until=time.time() + pause))
                await asyncio.sleep(pause)
                pause = min(pause * 2, LOOK_PAUSE_MAX_S)
            else:
                self.unseen = ""
                self._telemetry.publish(None)
                self._seen = replace(self._seen, board=board)
                found = await self.system_version()
                return Started(boot_id, board, self.system or DEFAULT_MODULE, found.version, now())

    async def current_board(self) -> Board:
        """As it is at this moment. Raises UpdateError."""
        return await in_thread(self._boot.view)

    async def look(self, state: State) -> None:
        """See what may have changed since the last look; `state` says whether anything can have."""
        async with self._looking:
            await self._look(state)

    async def _look(self, state: State) -> None:
        if self._seen.state is state and time.monotonic() - self._seen.at < FRESH_S:
            return
        board = self._seen.board
        with contextlib.suppress(UpdateError):
            board = await in_thread(self._boot.view)
        self._seen = replace(self._seen, board=board)  # evidence may need to know which slot is booted
        versions = self._seen.versions
        deployment = state.deployment
        phase = (state.boot_id, state.last, deployment and (deployment.id, deployment.run, deployment.phase))
        if phase != self._seen.phase:
            versions = {name: await self.version(name) for name in self.modules}
        slots: dict[Slot, str | None] = dict.fromkeys(self.devices)
        if self._is_simulated:
            slots = {slot: await in_thread(slot_version, self._disk, path) for slot, path in self.devices.items()}
        self._seen = _Seen(board, versions, slots, state, phase, time.monotonic())


def _link(directory: Path | None, name: str) -> Path | None:
    return directory / name if directory is not None else None
