# SPDX-License-Identifier: Apache-2.0
"""The health gate: is the system that was just booted good enough to keep?

Checks are the executables of one directory, in the order of their names, and systemd units that must be active. Exit
status 0 passes, 75 (EX_TEMPFAIL) means "ask again", anything else fails at once. All of them share one time limit. The
failure names the check and repeats the last line it said, for the person who reads it at the platform.
"""

import asyncio
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from otad import programs
from otad.config import HealthSettings
from otad.errors import Code, UpdateError
from otad.units import format_duration

EX_TEMPFAIL = 75
ASK_AGAIN_S = 2.0

log = logging.getLogger(__name__)


async def check(settings: HealthSettings, environment: Mapping[str, str], says: Callable[[str, float], None]) -> None:
    """Return when every check has passed; UpdateError(HEALTH) with the first that did not.

    `says` is told in words what is waited for, and for how many seconds at most.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + settings.timeout_s
    for path in _executables(settings.directory):
        await _pass([str(path)], f"health check {path.name}", environment, deadline, settings, says)
    for unit in settings.units:
        command = ["systemctl", "is-active", unit]
        await _pass(command, f"unit {unit}", environment, deadline, settings, says, asks_again=True)


def _executables(directory: Path) -> list[Path]:
    """What run-parts would run: no hidden files, no editors' or dpkg's leftovers, nothing that is not executable."""
    try:
        names = sorted(os.listdir(directory))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UpdateError(Code.HEALTH, f"{directory}: {error.strerror}") from error
    chosen: list[Path] = []
    for name in names:
        path = directory / name
        if name.startswith(".") or name.endswith("~") or ".dpkg-" in name or not os.path.isfile(path):
            continue
        if not os.access(path, os.X_OK):
            log.warning("%s: not executable, so not a health check", path)
            continue
        chosen.append(path)
    return chosen


async def _pass(
    command: list[str],
    name: str,
    environment: Mapping[str, str],
    deadline: float,
    settings: HealthSettings,
    says: Callable[[str, float], None],
    *,
    asks_again: bool = False,
) -> None:
    loop = asyncio.get_running_loop()
    last = ""
    while (left := deadline - loop.time()) > 0:
        says(f"{name}{last}", left)
        try:
            result = await programs.run(command, left, environment)
        except OSError as error:
            raise UpdateError(Code.HEALTH, f"{name}: {error.strerror}") from error
        last = f": {result.last_line}"
        if result.status == 0:
            return
        if result.status is None:
            break
        # A unit that is not active yet may still start; only a failed one is final.
        temporary = asks_again and result.last_line != "failed"
        if result.status != EX_TEMPFAIL and not temporary:
            raise UpdateError(Code.HEALTH, f"{name}: {_ending(result.status)}{last}")
        await asyncio.sleep(max(0.0, min(ASK_AGAIN_S, deadline - loop.time())))
    raise UpdateError(Code.HEALTH, f"{name}: not passed within {format_duration(settings.timeout_s)}{last}")


def _ending(status: int) -> str:
    return f"exit status {status}" if status >= 0 else f"killed by signal {-status}"
