# SPDX-License-Identifier: Apache-2.0
"""No boot loader: a gateway on which otad upgrades modules in place and never the system itself.

It shows one slot that is booted, primary and confirmed, and is never another's target: so there is nothing to mark, and
nothing to switch.
"""

from pathlib import Path
from typing import NoReturn

from otad.core.model import Board, BootId, Slot, SlotView
from otad.durable import Disk
from otad.errors import Code, UpdateError

SYSTEM = Slot("system")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class NoSlots:
    """A `BootControl` of a system that is not made of slots."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    def boot_id(self) -> BootId:
        try:
            return BootId(self._disk.read(_BOOT_ID, 64).decode("ascii").strip())
        except (OSError, ValueError) as error:
            raise UpdateError(Code.BOOT, f"{_BOOT_ID}: {error}") from error

    def view(self) -> Board:
        return Board(SYSTEM, SYSTEM, (SlotView(SYSTEM, good=True, attempts_left=1, confirmed=True),))

    def mark_bad(self, slot: Slot) -> None:
        self._refuse(slot)

    def set_primary(self, slot: Slot, attempts: int) -> None:
        del attempts
        self._refuse(slot)

    def mark_good(self, slot: Slot) -> None:
        """It is, and stays so."""
        del slot

    def reboot_arguments(self, target: Slot) -> list[str]:
        self._refuse(target)

    def _refuse(self, slot: Slot) -> NoReturn:
        raise UpdateError(Code.BOOT, f"slot {slot}: no slots are configured, so none can be switched")
