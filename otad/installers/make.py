# SPDX-License-Identifier: Apache-2.0
"""From the configuration's words to the installers behind them."""

from otad.config import Config, Format, InstallerKind
from otad.core.model import ModuleName
from otad.durable import Disk
from otad.installers.command import CommandInstaller
from otad.installers.files import FilesInstaller
from otad.installers.installer import InPlace
from otad.installers.staging import Staging


def installers(config: Config, disk: Disk, staging: Staging) -> dict[ModuleName, InPlace]:
    """The installer of each module that is switched while the system runs. `config` has been checked."""
    made: dict[ModuleName, InPlace] = {}
    for name, module in config.modules.items():
        match module.installer:
            case InstallerKind.FILES if module.directory is not None:
                made[ModuleName(name)] = FilesInstaller(
                    disk,
                    staging,
                    module.directory,
                    module.link,
                    module.command,
                    module.timeout_s,
                    config.update.format is Format.AUTO,
                )
            case InstallerKind.COMMAND if module.command:
                made[ModuleName(name)] = CommandInstaller(staging, disk, module.command, module.timeout_s)
            case _:
                pass  # of slots; or wrong in the configuration, which lets nothing begin
    return made
