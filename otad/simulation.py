# SPDX-License-Identifier: Apache-2.0
"""A whole gateway on this machine, for the demo and the system tests: slots in files, a daemon process, a power switch.

The daemon is the real `otad run`, a process of its own with `reboot.command = []`: when it ends with status 0 the
board is switched off and on and the daemon is started again, as a gateway would do it. `cut_power` is SIGKILL in
whatever the daemon is doing, then the same.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from otad.boot.simulated import PowerCycled, power_cycle
from otad.config import load
from otad.control.client import Client

MIB = 1 << 20

_CONFIGURATION = """
[modules.default]
version = "slot"

[slots.a]
device = "a.img"
bootname = "A"

[slots.b]
device = "b.img"
bootname = "B"

[boot]
backend = "simulated"
directory = "boot"

[reboot]
command = []

[state]
directory = "state"

[control]
socket = "otad.sock"
"""


class DaemonError(Exception):
    """The daemon ended as it should not."""


def write_image(path: Path, version: str, size: int) -> Path:
    """An image of `size` bytes that the simulated board boots as `version`; the rest of it cannot be compressed."""
    head = f"# a system image\nIMAGE_VERSION={version}\n".encode()
    with path.open("wb") as file:
        file.write(head)
        left = size - len(head)
        while left > 0:
            left -= file.write(os.urandom(min(left, MIB)))
    return path


class Gateway:
    """One gateway in one directory."""

    def __init__(self, directory: Path, says: Callable[[str, str], None] = lambda who, what: None) -> None:
        """`says` is told what the board does: who, and what."""
        self.directory = directory
        self.config = directory / "config.toml"
        self.slots = {"a": directory / "a.img", "b": directory / "b.img"}
        self.log = directory / "daemon.log"
        self.exits: list[int] = []  # the daemon's exit statuses so far
        self._says = says
        self._process: asyncio.subprocess.Process | None = None

    def provision(self, device: str, version: str, slot_bytes: int, more: str = "") -> None:
        """Slot a holds `version`, slot b nothing. `device` and `more` are sections of the configuration."""
        self.directory.mkdir(parents=True, exist_ok=True)
        write_image(self.slots["a"], version, slot_bytes)
        with self.slots["b"].open("wb") as empty:
            empty.truncate(slot_bytes)
        self.config.touch(mode=0o600)  # the secret stands in it
        self.config.write_text(device + _CONFIGURATION + more)

    def add_health_check(self, name: str, script: str) -> None:
        """An executable of the health directory, in the language of sh."""
        check = self.directory / "health.d" / name
        check.parent.mkdir(exist_ok=True)
        check.write_text("#!/bin/sh\n" + script)
        check.chmod(0o755)

    async def start(self) -> None:
        """Start the daemon."""
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "otad", "--config", str(self.config), "run"), stdout=log, stderr=log
            )

    async def ended(self) -> int:
        """The daemon's exit status, once it has ended."""
        assert self._process is not None
        return await self._process.wait()

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send the daemon a signal, if it still runs."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)

    async def keep_running(self) -> None:
        """Be the board: start the daemon, and whenever it has ended, switch off and on and start it again.

        For ever, or until it ends with a status that is neither 0 nor SIGKILL: DaemonError.
        """
        try:
            while True:
                await self.start()
                status = await self.ended()
                self.exits.append(status)
                if status not in (0, -signal.SIGKILL):
                    raise DaemonError(f"the daemon ended with status {status}: {self.last_words()}")
                self._says("gateway", "reboots" if status == 0 else "starts again")
                for line in self.power_cycle().log:
                    self._says("board", line)
        finally:
            await self.stop()

    async def stop(self) -> None:
        """Stop the daemon as systemd does."""
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
            await self._process.wait()

    def power_cycle(self) -> PowerCycled:
        """Switch the board off and on; the daemon must not be running."""
        return power_cycle(load(self.config).config)

    def status(self) -> dict[str, Any]:
        """What the daemon says of itself. ControlError where it does not answer."""
        with Client(self.directory / "otad.sock", timeout_s=5) as client:
            status: dict[str, Any] = client.call("GetStatus")["status"]
            return status

    def last_words(self) -> str:
        """The end of the daemon's log."""
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return " | ".join(lines[-3:])
