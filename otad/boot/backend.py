# SPDX-License-Identifier: Apache-2.0
"""From the configuration's word to the boot loader behind it."""

from otad.boot import simulated
from otad.boot.control import BootControl
from otad.boot.none import NoSlots
from otad.config import Backend, Config
from otad.durable import Disk


def boot_control(disk: Disk, config: Config) -> BootControl:
    """The configured boot loader. `config` has been checked: the backend is one of those available."""
    if not config.needs_slots:
        return NoSlots(disk)
    match config.boot.backend:
        case Backend.SIMULATED:
            return simulated.from_config(disk, config)
        case _:
            raise AssertionError(config.boot.backend)
