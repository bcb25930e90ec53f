# SPDX-License-Identifier: Apache-2.0
"""Modules made of files: a directory for each version, and a symbolic link to the one in use.

    DIRECTORY/
      current -> 2.0.0.otad-65a1b2c3-7        the link: what runs
      .current.previous -> 1.0.0.otad-659f..  what it is switched back to
      2.0.0.otad-65a1b2c3-7/                  VERSION.otad-DEPLOYMENT
      1.0.0.otad-659f0e11-4/
      2.1.0.otad-65a1c000-8.partial/          being filled

The link always points to a directory that was made whole and durable before (`tree`), or to where its owner pointed it.
It is switched by renaming a new link over it, after the target of the old one is remembered, durably. So after a power
cut it is the old or the new one, and every step may be repeated.

Only names of the form above are ever removed; never what the link leads to, nor what it would be switched back to,
however that is spelled: the owner may move the link by hand. While it leads to none of these directories nobody knows
what runs: then only `.partial` ones are removed. What else lies in the directory is its owner's.

After each switch, also back, the module's command is run as `command` describes. It is told OTAD_MODULE,
OTAD_DEPLOYMENT, OTAD_DIRECTORY (what the link points to now) and OTAD_VERSION (the version in it, "" where otad has not
installed it); the last two are "" where there was nothing to switch back to.
"""

import errno
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from otad.core.model import Deployment
from otad.durable import Disk, Place, leads_to
from otad.errors import Code, UpdateError
from otad.installed import PARTIAL, directory_name, is_ours, version_in
from otad.installers.command import carry_out, module_environment
from otad.installers.installer import from_thread
from otad.installers.staging import Staging, storage_error
from otad.telemetry import Progress
from otad.threads import in_stoppable_thread, in_thread

DIRECTORY_MODE = 0o755


class FilesInstaller:
    """One module's installer."""

    def __init__(
        self,
        disk: Disk,
        staging: Staging,
        directory: Path,
        link: str,
        command: Sequence[str],
        timeout_s: float,
        format_auto: bool,
    ) -> None:
        """Without `format_auto` an archive is installed as the file it is."""
        self._disk = disk
        self._staging = staging
        self._directory = directory
        self._link = directory / link
        self._previous = directory / f".{link}.previous"
        self._command = command
        self._timeout_s = timeout_s
        self._format_auto = format_auto

    # -- installing

    async def install(self, deployment: Deployment, progress: Callable[[Progress], None]) -> None:
        """Make the new directory, whole and durable. One that the link points to already stays as it is."""
        place = await self._staging.open(deployment)
        await in_stoppable_thread(self._install, place, deployment, from_thread(progress))

    def _install(
        self, stop: threading.Event, place: Place, deployment: Deployment, progress: Callable[[Progress], None]
    ) -> None:
        # Imported here: the archive libraries cost memory that an idle daemon does not need.
        from otad.installers.tree import Package, carry  # noqa: PLC0415

        name = directory_name(deployment)
        try:
            self._disk.make_directory(self._directory, mode=DIRECTORY_MODE)
            if self._target(self._link) == name:
                return  # switched before the power failed: it was whole then, and may be in use now
            package = Package(deployment, place, unpack=self._format_auto)
            carry(self._disk, deployment, package, self._directory / name, stop, progress)
        except OSError as error:
            raise storage_error(str(self._directory), error) from error

    # -- switching

    async def activate(self, deployment: Deployment, progress: Callable[[Progress], None]) -> None:
        """Point the link to what `install` has made, then run the command."""
        target = await in_thread(self._switch, deployment)
        await self._run(deployment, target, progress)

    def _switch(self, deployment: Deployment) -> str:
        name = directory_name(deployment)
        try:
            target = self._target(self._link)
            if target == name:
                self._disk.sync_directory(self._directory)  # what is seen need not be durable
            elif name not in self._disk.names(self._directory):
                raise UpdateError(Code.INSTALL, f"{self._directory / name}: not there")
            else:
                if target is None:
                    self._disk.remove(self._previous)
                else:
                    self._disk.replace_link(self._previous, target)
                self._disk.replace_link(self._link, name)
        except OSError as error:
            raise storage_error(str(self._link), error) from error
        return name

    async def restore(self, deployment: Deployment, progress: Callable[[Progress], None]) -> None:
        """Point the link to what it pointed to before, if it points to this deployment's; then run the command.

        Where there was nothing before, what `install` has made is removed: `tidy` leaves it where there is no link.
        """
        target = await in_thread(self._switch_back, deployment)
        await self._run(deployment, target, progress)
        if target is None:
            await in_thread(self._remove, self._directory / directory_name(deployment))

    def _switch_back(self, deployment: Deployment) -> str | None:
        try:
            target = self._target(self._link)
            if target != directory_name(deployment):
                self._disk.sync_directory(self._directory)
            else:
                target = self._target(self._previous)
                if target is None:
                    self._disk.remove(self._link)
                else:
                    self._disk.replace_link(self._link, target)
        except OSError as error:
            raise storage_error(str(self._link), error) from error
        return target

    def _remove(self, directory: Path) -> None:
        try:
            self._disk.remove_tree(directory)
        except OSError as error:
            raise storage_error(str(directory), error) from error

    def _target(self, link: Path) -> str | None:
        """Which of otad's directories the link leads to; where it is none of them, in its own words; None: no link."""
        try:
            target = self._disk.read_link(link)
        except OSError as error:
            if error.errno == errno.EINVAL:
                raise UpdateError(Code.INSTALL, f"{link}: not a symbolic link, and not otad's to remove") from error
            raise
        if target is None:
            return None
        name = leads_to(self._disk, link)
        return name if name is not None and version_in(name) is not None else target

    async def _run(self, deployment: Deployment, target: str | None, progress: Callable[[Progress], None]) -> None:
        if not self._command:
            return
        environment = {
            **module_environment(deployment),
            "OTAD_VERSION": version_in(target or "") or "",
            "OTAD_DIRECTORY": str(self._directory / target) if target is not None else "",
        }
        await carry_out(self._command, deployment, environment, self._timeout_s, progress)

    # -- tidying

    def tidy(self, deployment: Deployment | None) -> None:
        """Remove the directories of other deployments, but for what runs and what it would be switched back to.

        Where the link does not say what runs, only what was never finished.
        """
        try:
            names = self._disk.names(self._directory)
        except FileNotFoundError:
            return  # nothing has been installed yet
        runs, before = (leads_to(self._disk, link) or "" for link in (self._link, self._previous))
        knows = version_in(runs) is not None and runs in names
        keep = {self._link.name, *(way.partition("/")[0] for way in (runs, before))}
        if deployment is not None:
            keep |= {directory_name(deployment), directory_name(deployment) + PARTIAL}
        for name in names:
            if is_ours(name) and name not in keep and (knows or name.endswith(PARTIAL)):
                self._disk.remove_tree(self._directory / name)
