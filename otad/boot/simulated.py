# SPDX-License-Identifier: Apache-2.0
"""A board that is not there: slots are regular files, the boot loader's variables one JSON file.

It serves the demo, the tests and a desk, and it keeps every rule that a real boot loader keeps for otad: boot attempts
are counted for confirmed slots too; a slot marked bad is never chosen; when no good slot has attempts left the last
confirmed one is refilled and booted. `power_cycle` is what switching the board off and on does.

`variables.json` in `boot.directory`, replaced durably as a whole:

    {"boot_id": "6f0c…", "booted": "a", "primary": "b", "last_confirmed": "a",
     "slots": {"a": {"good": true, "attempts": 3, "confirmed": true}, "b": {…}}}

A slot boots if it has a version: the value of the line `IMAGE_VERSION=` within its first 4096 bytes.
"""

import json
import re
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from otad.config import Config
from otad.core.model import Board, BootId, Slot, SlotView
from otad.durable import Disk, RealDisk
from otad.errors import Code, UpdateError
from otad.store import Lock

VERSION_BYTES = 4096
VARIABLES_BYTES_MAX = 64 << 10
_VERSION_LINE = re.compile(rb"^IMAGE_VERSION=([A-Za-z0-9._-]{1,64})\r?$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class PowerCycled:
    """What the board did: the slot that came up (None: none can), and each thing that was tried."""

    slot: Slot | None
    boot_id: BootId
    log: tuple[str, ...]


@dataclass(slots=True)
class _SlotVariables:
    good: bool
    attempts: int
    confirmed: bool


@dataclass(slots=True)
class _Variables:
    boot_id: str
    booted: str | None
    primary: str
    last_confirmed: str | None
    slots: dict[str, _SlotVariables]


def slot_version(disk: Disk, device: Path) -> str | None:
    """The version that the slot's content says; None where it says none."""
    try:
        head = disk.read(device, VERSION_BYTES)
    except OSError:
        return None
    if len(head) > VERSION_BYTES:
        head = head[: head.rfind(b"\n") + 1]  # a line that goes on behind it would be another version
    found = _VERSION_LINE.search(head)
    return found[1].decode() if found else None


class SimulatedBoot:
    """The boot loader's side of the simulated board; a `BootControl`."""

    def __init__(self, disk: Disk, directory: Path, devices: dict[Slot, Path], attempts: int) -> None:
        self._disk = disk
        self._file = directory / "variables.json"
        self._devices = devices
        self._attempts = attempts

    def boot_id(self) -> BootId:
        return BootId(self._load().boot_id)

    def view(self) -> Board:
        variables = self._load()
        booted = variables.booted
        return Board(
            booted=Slot(booted) if booted is not None and booted in self._devices else None,
            primary=Slot(variables.primary),
            slots=tuple(
                SlotView(slot, entry.good, entry.attempts, entry.confirmed)
                for slot, entry in ((slot, variables.slots[slot]) for slot in self._devices)
            ),
        )

    def mark_bad(self, slot: Slot) -> None:
        variables = self._load()
        variables.slots[slot] = _SlotVariables(good=False, attempts=0, confirmed=False)
        if variables.last_confirmed == slot:
            confirmed = (name for name, entry in variables.slots.items() if entry.confirmed)
            variables.last_confirmed = next(confirmed, None)
        self._save(variables)

    def set_primary(self, slot: Slot, attempts: int) -> None:
        variables = self._load()
        variables.primary = slot
        variables.slots[slot].good = True
        variables.slots[slot].attempts = attempts
        self._save(variables)

    def mark_good(self, slot: Slot) -> None:
        variables = self._load()
        variables.slots[slot] = _SlotVariables(good=True, attempts=self._attempts, confirmed=True)
        variables.last_confirmed = slot
        self._save(variables)

    def reboot_arguments(self, target: Slot) -> list[str]:
        del target  # the choice is in the variables
        return []

    def power_cycle(self) -> PowerCycled:
        """Switch the board off and on: a new boot id, and the slot that comes up."""
        variables = self._load()
        variables.boot_id = str(uuid.uuid4())
        variables.booted = None
        log: list[str] = []
        refilled = False
        while variables.booted is None:
            slot = self._choice(variables)
            if slot is None:
                slot = variables.last_confirmed
                if slot is None or refilled:
                    log.append("no slot boots")
                    break
                refilled = True
                variables.slots[slot].attempts = self._attempts
                log.append(f"no good slot has attempts left: refilled {slot}, the last confirmed")
            variables.slots[slot].attempts -= 1
            version = slot_version(self._disk, self._devices[Slot(slot)])
            left = f"{variables.slots[slot].attempts} attempts left"
            if version is None:
                log.append(f"slot {slot} does not boot: no version in it ({left})")
            else:
                log.append(f"slot {slot} boots {version} ({left})")
                variables.booted = slot
        self._save(variables)
        booted = Slot(variables.booted) if variables.booted is not None else None
        return PowerCycled(booted, BootId(variables.boot_id), tuple(log))

    def _choice(self, variables: _Variables) -> str | None:
        order = [variables.primary, *(slot for slot in self._devices if slot != variables.primary)]
        return next((s for s in order if variables.slots[s].good and variables.slots[s].attempts > 0), None)

    def _load(self) -> _Variables:
        try:
            content = self._disk.read(self._file, VARIABLES_BYTES_MAX)
        except FileNotFoundError:
            return self._first_use()
        except OSError as error:
            raise UpdateError(Code.BOOT, f"{self._file}: {error.strerror}") from error
        try:
            variables = _parsed(json.loads(content))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise UpdateError(
                Code.BOOT, f"{self._file}: not the simulated board's variables ({error!r}); remove it to start anew"
            ) from error
        if strangers := sorted(self._devices.keys() ^ variables.slots.keys()):
            raise UpdateError(
                Code.BOOT,
                f"{self._file}: slot {strangers[0]} is not in both it and the configuration; remove it to start anew",
            )
        return variables

    def _first_use(self) -> _Variables:
        """The first slot of the configuration is booted and primary; slots with a version are good, attempts full."""
        slots: dict[str, _SlotVariables] = {}
        for slot, device in self._devices.items():
            good = slot_version(self._disk, device) is not None
            slots[slot] = _SlotVariables(good=good, attempts=self._attempts if good else 0, confirmed=good)
        first = next(iter(self._devices))
        confirmed = first if slots[first].confirmed else None
        variables = _Variables(str(uuid.uuid4()), first, first, confirmed, slots)
        self._save(variables)
        return variables

    def _save(self, variables: _Variables) -> None:
        plain = {
            "boot_id": variables.boot_id,
            "booted": variables.booted,
            "primary": variables.primary,
            "last_confirmed": variables.last_confirmed,
            "slots": {
                name: {"good": entry.good, "attempts": entry.attempts, "confirmed": entry.confirmed}
                for name, entry in variables.slots.items()
            },
        }
        try:
            self._disk.make_directory(self._file.parent)
            self._disk.replace(self._file, json.dumps(plain, indent=1).encode() + b"\n")
        except OSError as error:
            raise UpdateError(Code.BOOT, f"{self._file}: {error.strerror}") from error


def _parsed(plain: Any) -> _Variables:
    """ValueError, TypeError, KeyError or AttributeError for what `_save` has not written."""
    slots = {name: _SlotVariables(**entry) for name, entry in plain["slots"].items()}
    variables = _Variables(**{**plain, "slots": slots})
    for name, entry in slots.items():
        if (type(entry.good), type(entry.attempts), type(entry.confirmed)) != (bool, int, bool):
            raise TypeError(f"slot {name}")
    if type(variables.boot_id) is not str or variables.primary not in slots:
        raise ValueError("boot_id or primary")
    if not {variables.booted, variables.last_confirmed} <= {None, *slots}:
        raise ValueError("booted or last_confirmed")
    return variables


def from_config(disk: Disk, config: Config) -> SimulatedBoot:
    assert config.boot.directory is not None  # the configuration has checked it
    devices = {Slot(name): slot.device for name, slot in config.slots.items()}
    return SimulatedBoot(disk, config.boot.directory, devices, config.boot.attempts)


def power_cycle(config: Config) -> PowerCycled:
    """What switching the configured board off and on does. InUseError while the daemon runs on it."""
    disk = RealDisk()
    disk.make_directory(config.state.directory)
    lock = Lock(config.state.directory)
    try:
        return from_config(disk, config).power_cycle()
    finally:
        lock.release()
