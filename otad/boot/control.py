# SPDX-License-Identifier: Apache-2.0
"""What otad needs of any boot loader.

The four questions (which slot is booted, which is primary, is it good, how many attempts are left) are answered by one
`view`, because the answers are only worth something together. The orders are mark bad, set primary, mark good, and the
argument that a reboot needs. Each returns only when the boot loader's store holds the change and has been read back.

All calls block and raise `UpdateError(Code.BOOT)` with what cannot be read or written, and what to do.
"""

from typing import Protocol

from otad.core.model import Board, BootId, Slot


class BootControl(Protocol):
    def boot_id(self) -> BootId:
        """Another one after every boot."""
        ...

    def view(self) -> Board:
        """What the store holds now. Slots come in the order of the configuration."""
        ...

    def mark_bad(self, slot: Slot) -> None:
        """The slot is never chosen, not even when everything else fails, and no longer confirmed. Primary stays."""
        ...

    def set_primary(self, slot: Slot, attempts: int) -> None:
        """The slot is tried first at the next boot, `attempts` times, and is no longer bad.

        It is confirmed only if it was before; the other slots keep what they have.
        """
        ...

    def mark_good(self, slot: Slot) -> None:
        """The slot is confirmed and has its boot attempts back. Primary does not change."""
        ...

    def reboot_arguments(self, target: Slot) -> list[str]:
        """What must be added to the reboot command to boot the target; usually nothing."""
        ...
