# SPDX-License-Identifier: Apache-2.0
"""The floor: a moment that is certainly past, for gateways that boot with a wrong clock.

It is the later of the date of this otad and a time that was learned in an authenticated session. While the system
clock is before it, certificates are held against the floor instead (`otad.tls`). The floor only ever moves forward. It
is believed from nobody but a peer whose certificates were verified, and not beyond the end of those, nor beyond
FLOOR_MAX. otad does not set the system's clock.

A learned floor is kept in `clock.json` of the state directory, replaced when it has moved by a day or more:

    {"schema": 1, "floor": 1795651200, "utc": "2026-11-26T00:00:00Z"}

`utc` says the same for a person, and must say the same, or the file counts as damaged. Without a file that can be read
the floor is the date of this otad; removing the file makes the gateway forget what it learned.
"""

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path

from otad.durable import Disk

# The package build may put its SOURCE_DATE_EPOCH here: the later, the fewer expired certificates pass at a wrong clock.
BUILD = 1795651200  # 2026-11-26T00:00:00Z
FLOOR_MAX = BUILD + 20 * 31557600
"""No time after this is believed, whoever says it: twenty years after the build."""
DAY_S = 86400

SCHEMA = 1
BYTES_MAX = 4096

log = logging.getLogger(__name__)


class Clock:
    """What is known of the time. `floor` may be read from any thread; the blocking methods say so."""

    def __init__(
        self,
        disk: Disk,
        directory: Path,
        *,
        system: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Touches nothing; before `load` the floor is the date of this otad."""
        self._disk = disk
        self._file = directory / "clock.json"
        self._system, self._monotonic = system, monotonic
        self._floor = self._saved = BUILD
        self._heard_at: float | None = None  # monotonic, of the last time we were told

    @property
    def floor(self) -> int:
        """Seconds since 1970, UTC: it is not earlier than this."""
        return self._floor

    @property
    def wants_time(self) -> bool:
        """Whether to ask the platform for the time: it has told none in this process for a day."""
        return self._heard_at is None or self._monotonic() - self._heard_at >= DAY_S

    def load(self) -> None:
        """Read the saved floor; says in the journal if it is damaged, and if the system clock is behind. Blocks."""
        try:
            self._saved = self._floor = max(BUILD, _parse(self._disk.read(self._file, BYTES_MAX)))
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            log.warning("%s: %s: going on from the date of this otad, %s", self._file, reason, _utc(BUILD))
        if self._system() < self._floor:
            log.warning(
                "the system clock says %s and is wrong: it is %s or later; certificates are held against that",
                _utc(self._system()),
                _utc(self._floor),
            )

    def learned(self, now_s: float, valid_until_s: int | None) -> None:
        """Move the floor for being told, in an authenticated session, that it is `now_s`; or leave it.

        `valid_until_s`: what `tls.valid_until` says of that very session; None, as without TLS, means that nothing is
        believed. Nor is a time after it: one of the two is wrong then. Blocks while it saves; a floor that cannot be
        saved counts until the end of the process.
        """
        if valid_until_s is None:
            return
        self._heard_at = self._monotonic()
        if not self._floor < now_s <= min(valid_until_s, FLOOR_MAX):
            return
        self._floor = int(now_s)
        if self._floor - self._saved >= DAY_S:
            try:
                self._disk.replace(self._file, _text(self._floor))
                self._saved = self._floor
            except OSError as error:
                log.warning("%s: %s: the time that was learned is not kept", self._file, error.strerror)


def _text(floor: int) -> bytes:
    return json.dumps({"schema": SCHEMA, "floor": floor, "utc": _utc(floor)}).encode() + b"\n"


def _parse(content: bytes) -> int:
    """The floor in the file. Raises ValueError, whose text says what is wrong."""
    if len(content) > BYTES_MAX:
        raise ValueError(f"more than {BYTES_MAX} bytes")
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError("not JSON") from error
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise ValueError(f"not of schema {SCHEMA}")
    floor = document.get("floor")
    if type(floor) is not int or not 0 <= floor <= FLOOR_MAX or document.get("utc") != _utc(floor):
        raise ValueError("damaged")
    return floor


def _utc(at: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))
