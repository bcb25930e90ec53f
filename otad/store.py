# SPDX-License-Identifier: Apache-2.0
"""The state directory: `state.json`, `history.jsonl`, `staging/`, and the lock that keeps a second daemon out.

`state.json` is replaced as a whole before anything acts on it (format: `core.codec`). One that cannot be read is set
aside as `state.json.broken`; then the daemon goes on from what the machine itself shows.

`history.jsonl` has one JSON object per ended deployment, newest last, and is cut to its newer half at 256 KiB. A line
may stand there twice after a power cut between filing and saving; readers take the first of an id. A torn last line is
passed over.
"""

import fcntl
import json
import logging
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from otad.core import codec
from otad.core.model import Ended, State
from otad.durable import Disk

HISTORY_BYTES_MAX = 256 << 10
READ_TRIES = 3

log = logging.getLogger(__name__)


class InUseError(Exception):
    """Another daemon has this state directory."""


def history_entry(ended: Ended) -> dict[str, Any]:
    """A deployment that is over, as the history file, `otad history` and status show it. Times are UTC."""
    return {
        "id": ended.id,
        "module": ended.module,
        "version": ended.version,
        "origin": str(ended.origin),
        "outcome": str(ended.outcome),
        "code": str(ended.failure.code) if ended.failure else None,
        "reason": ended.failure.detail if ended.failure else None,
        "began": utc(ended.began),
        "ended": utc(ended.ended),
        "bytes": ended.bytes,
        "resumed": ended.resumed,
        "tries": ended.tries,
    }


def utc(at: float) -> str:
    """Seconds since 1970 as a date and time in UTC; clocks may be wrong, dates end with the year 9999."""
    return datetime.fromtimestamp(min(max(at, 0), 253402300799), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Store:
    """What the daemon remembers, in one directory that all systems of the gateway mount."""

    def __init__(self, disk: Disk, directory: Path) -> None:
        self._disk = disk
        self._directory = directory
        self._state = directory / "state.json"
        self._history = directory / "history.jsonl"
        self.staging = directory / "staging"

    def load(self) -> State:
        """What was saved last; a fresh State where there is none or none that can be read."""
        self._disk.make_directory(self.staging)
        try:
            return codec.decode(self._read_state())
        except FileNotFoundError:
            return State()
        except (codec.StateError, OSError) as error:
            broken = self._state.with_name(self._state.name + ".broken")
            log.error("%s: %s: set aside as %s; going on from what the machine shows", self._state, error, broken.name)
            self._disk.rename(self._state, broken)
            return State()

    def _read_state(self) -> bytes:
        """A medium that hiccups must not cost the memory, one that is broken here must not stop the daemon for ever."""
        for _ in range(READ_TRIES - 1):
            try:
                return self._disk.read(self._state, codec.BYTES_MAX)
            except FileNotFoundError:
                raise
            except OSError as error:
                log.warning("%s: %s: trying again", self._state, error.strerror)
        return self._disk.read(self._state, codec.BYTES_MAX)

    def save(self, state: State) -> None:
        """Durable when it returns."""
        self._disk.replace(self._state, codec.encode(state))

    def file(self, ended: Ended) -> None:
        """Add this deployment's line to the history, durably."""
        line = json.dumps(history_entry(ended), separators=(",", ":")).encode() + b"\n"
        try:
            content = self._disk.read(self._history, 2 * HISTORY_BYTES_MAX)
        except FileNotFoundError:
            content = b""
        if content and not content.endswith(b"\n"):
            line = b"\n" + line  # the last one is torn
        if len(content) > HISTORY_BYTES_MAX:
            newer = content[len(content) // 2 :]
            self._disk.replace(self._history, newer[newer.find(b"\n") + 1 :] + line)
        else:
            self._disk.append(self._history, line)

    def history(self) -> list[dict[str, Any]]:
        """Ended deployments, oldest first."""
        try:
            content = self._disk.read(self._history, 2 * HISTORY_BYTES_MAX)
        except FileNotFoundError:
            return []
        lines: dict[str, dict[str, Any]] = {}
        for text in content.splitlines():
            try:
                line = json.loads(text)
            except (ValueError, RecursionError):
                continue
            if isinstance(line, dict) and isinstance(line.get("id"), str):
                lines.setdefault(line["id"], line)
        return list(lines.values())


class Lock:
    """Held by the daemon while it runs, so that there is one on a state directory. Ends with the process."""

    def __init__(self, directory: Path) -> None:
        """Raise InUseError if somebody holds it."""
        self._fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._fd)
            raise InUseError(f"{directory}: in use by a running otad") from error

    def release(self) -> None:
        os.close(self._fd)
