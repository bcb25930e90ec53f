# SPDX-License-Identifier: Apache-2.0
"""Modules that a program of the owner installs: `PROGRAM install` switches to the new version, `PROGRAM rollback` back.

What the program is told, by its environment: OTAD_MODULE, OTAD_VERSION, OTAD_DEPLOYMENT, OTAD_SIZE (bytes), OTAD_DIGEST
("sha256:HEX"), OTAD_TAGS (the package's tags, one JSON object), OTAD_ATTEMPT (1, 2 ...: the try that status shows), and
OTAD_FILE, the package, as it came and proven; of a package of several files instead OTAD_DIRECTORY, which holds them
under their names. Both are otad's: to be read, and not there any more when the deployment has ended.

What it tells: exit status 0 is done, 75 (EX_TEMPFAIL) asks to be run again a little later, anything else has failed.
`timeout` is for all runs of one order together. A line `progress N`, 0 to 100, moves the progress; the last line is
repeated to who asks why it failed.

Power may fail while it runs, or before it is known that it has ended: then it is run again, from the start, with the
same environment. It must bear that. Whatever it leaves running in its session is ended with it.
"""

import asyncio
import json
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from otad import programs
from otad.core.model import Deployment
from otad.durable import Disk, Place
from otad.errors import Code, UpdateError
from otad.installers.installer import from_thread
from otad.installers.staging import Staging, storage_error
from otad.telemetry import Progress
from otad.threads import in_stoppable_thread
from otad.units import format_duration

EX_TEMPFAIL = 75
ASK_AGAIN_S = 2.0
_PROGRESS = re.compile(r"progress ([0-9]{1,3})")


class CommandInstaller:
    """One module's installer."""

    def __init__(self, staging: Staging, disk: Disk, command: Sequence[str], timeout_s: float) -> None:
        self._staging = staging
        self._disk = disk
        self._command = command
        self._timeout_s = timeout_s

    async def install(self, deployment: Deployment, progress: Callable[[Progress], None]) -> None:
        """Prove once more what the staging file holds; of several files make each one of its own."""
        place = await self._staging.open(deployment)
        await in_stoppable_thread(self._install, place, deployment, from_thread(progress))

    def _install(
        self, stop: threading.Event, place: Place, deployment: Deployment, progress: Callable[[Progress], None]
    ) -> None:
        # Imported here: the archive libraries cost memory that an idle daemon does not need.
        from otad.installers.tree import Package, carry, prove  # noqa: PLC0415

        package = Package(deployment, place, unpack=False)
        try:
            if deployment.notice.files:
                carry(self._disk, deployment, package, self._staging.tree(deployment), stop, progress)
            else:
                prove(deployment, package, stop, progress)
        except OSError as error:
            raise storage_error(str(self._staging.directory), error) from error

    async def activate(self, deployment: Deployment, progress: Callable[[Progress], None]) -> None:
        """Run `PROGRAM install`."""
        await self._order("install", deployment, progress)

    async def restore(self, deployment: Deployment, progress: Callable[[Progress], None]) -> None:
        """Run `PROGRAM rollback`. One that cannot go back says so by its exit status: UpdateError INSTALL."""
        await self._order("rollback", deployment, progress)

    def tidy(self, deployment: Deployment | None) -> None:
        """Nothing: what there is lies in the staging directory."""

    async def _order(self, order: str, deployment: Deployment, progress: Callable[[Progress], None]) -> None:
        environment = self._environment(deployment)
        await carry_out([*self._command, order], deployment, environment, self._timeout_s, progress)

    def _environment(self, deployment: Deployment) -> dict[str, str]:
        notice, digest = deployment.notice, deployment.notice.identity.digest
        several = bool(notice.files)
        return {
            **module_environment(deployment),
            "OTAD_SIZE": str(notice.identity.size),
            "OTAD_DIGEST": f"{digest.method}:{digest.hex}" if digest is not None else "",
            "OTAD_TAGS": json.dumps({tag.key: tag.value for tag in notice.tags}, separators=(",", ":")),
            "OTAD_ATTEMPT": str(deployment.tries + 1),
            "OTAD_FILE": "" if several else str(self._staging.path(deployment)),
            "OTAD_DIRECTORY": str(self._staging.tree(deployment)) if several else "",
        }


def module_environment(deployment: Deployment) -> dict[str, str]:
    """What every program of a module is told."""
    identity = deployment.notice.identity
    return {"OTAD_MODULE": identity.module, "OTAD_VERSION": identity.version, "OTAD_DEPLOYMENT": deployment.id}


async def carry_out(
    command: Sequence[str],
    deployment: Deployment,
    environment: Mapping[str, str],
    timeout_s: float,
    progress: Callable[[Progress], None],
) -> None:
    """Run a program of the owner until it exits with 0; UpdateError INSTALL if it does not."""
    size, percent = deployment.notice.identity.size, 0

    def tell(waits_for: str = "", waits_until: float | None = None) -> None:
        progress(Progress(deployment.id, size * percent // 100, size, waits_for=waits_for, waits_until=waits_until))

    def says(line: str) -> None:
        nonlocal percent
        match = _PROGRESS.fullmatch(line)
        if match is not None and percent != int(match[1]) <= 100:
            percent = int(match[1])
            tell()

    tell()  # what was shown until now was of the installation before
    loop = asyncio.get_running_loop()
    deadline, last = loop.time() + timeout_s, ""
    while (left := deadline - loop.time()) > 0:
        try:
            result = await programs.run(command, left, environment, says=says)
        except OSError as error:
            raise UpdateError(Code.INSTALL, f"{command[0]}: {error.strerror}") from error
        last = f": {result.last_line}"
        if result.status == 0:
            percent = 100
            tell()
            return
        if result.status is None:
            break
        if result.status != EX_TEMPFAIL:
            raise UpdateError(Code.INSTALL, f"{command[0]}: {_ending(result.status)}{last}")
        wait_s = min(ASK_AGAIN_S, max(0.0, deadline - loop.time()))
        tell(f"{Path(command[0]).name}{last}", time.time() + wait_s)
        await asyncio.sleep(wait_s)
    raise UpdateError(Code.INSTALL, f"{command[0]}: not done within {format_duration(timeout_s)}{last}")


def _ending(status: int) -> str:
    return f"exit status {status}" if status >= 0 else f"killed by signal {-status}"
