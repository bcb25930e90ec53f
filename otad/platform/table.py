# SPDX-License-Identifier: Apache-2.0
"""How `otad platform` shows things: tables that fit into the terminal and are redrawn in place, bars, times.

Texts may come from devices: nothing unprintable of them reaches the terminal. Colours and glyphs never carry what the
words do not say.
"""

import os
import shutil
import sys
import time
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TextIO

BAR_CELLS: Final = 20

_COLOURS: Final = {"SUCCEEDED": "32", "IN_PROGRESS": "33", "NOTIFIED": "33", "FAILED": "31", "CANCELED": "2"}


@dataclass(frozen=True, slots=True)
class Style:
    """What the place where a text goes can show."""

    colours: bool = False
    glyphs: bool = False
    bars: bool = False
    width: int | None = None
    """In columns; None: as wide as it takes."""

    def coloured(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.colours and code and text else text


PLAIN: Final = Style()


def style_of(stream: TextIO) -> Style:
    """For a terminal what it can show, for anything else plain text."""
    if not stream.isatty():
        return PLAIN
    encoding = (stream.encoding or "").lower().replace("-", "")
    colours = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return Style(colours, encoding == "utf8", bars=True, width=shutil.get_terminal_size().columns)


def jobs_table(jobs: Iterable[Mapping[str, Any]], style: Style = PLAIN) -> list[str]:
    """The jobs below a head, as lines; a column that says nothing is left out."""
    jobs = list(jobs)
    if not jobs:
        return ["no job yet"]
    columns = {
        "JOB": [job["id"] for job in jobs],
        "BATCH": [job["batch"] for job in jobs],
        "SINCE": [clock(job["created_at"]) for job in jobs],
        "DEVICE": [job["device"] for job in jobs],
        "MODULE": [job["module"] for job in jobs],
        "FROM": [job["source"] or "-" for job in jobs],
        "TO": [job["version"] for job in jobs],
        "STATE": [job["state"] for job in jobs],
        "STEP": [_step(job, style) for job in jobs],
        "": [job_detail(job) for job in jobs],
    }
    if set(columns["MODULE"]) == {"default"}:
        del columns["MODULE"]
    return table(columns, style, colour_by="STATE")


def devices_table(devices: Iterable[Mapping[str, Any]], style: Style = PLAIN) -> list[str]:
    """The devices below a head, as lines."""
    devices = list(devices)
    if not devices:
        return ["no device yet"]
    columns = {
        "DEVICE": [device["device"] for device in devices],
        "LOGIN": ["certificate" if device["x509"] else "secret" for device in devices],
        "SESSION": ["online" if device["online"] else "offline" for device in devices],
        "VERSIONS": [_versions(device["versions"]) for device in devices],
    }
    return table(columns, style)


def batches_table(batches: Iterable[Mapping[str, Any]], style: Style = PLAIN) -> list[str]:
    """The batches below a head, as lines."""
    batches = list(batches)
    if not batches:
        return ["no batch yet"]
    columns = {
        "BATCH": [batch["id"] for batch in batches],
        "SINCE": [clock(batch["created_at"]) for batch in batches],
        "MODULE": [batch["module"] for batch in batches],
        "TO": [batch["version"] for batch in batches],
        "STATE": [batch["state"] for batch in batches],
        "DEVICES": [batch_set(batch) for batch in batches],
        "JOBS": [_counts(batch["jobs"]) for batch in batches],
    }
    return table(columns, style, colour_by="STATE")


def table(columns: Mapping[str, Sequence[str]], style: Style = PLAIN, *, colour_by: str | None = None) -> list[str]:
    """Columns two blanks apart below their heads; what is too long for the terminal is cut off."""
    widths = [max(map(_width, (head, *map(printable, cells)))) for head, cells in columns.items()]
    if style.bars and colour_by is not None:  # redrawn with other states it stays as wide
        at = tuple(columns).index(colour_by)
        widths[at] = max(widths[at], *map(len, _COLOURS))
    lines = [style.coloured(_line(tuple(columns), widths, style), "2")]
    for row in zip(*columns.values(), strict=True):
        line = _line(tuple(map(printable, row)), widths, style)
        if colour_by is not None and (state := row[tuple(columns).index(colour_by)]) in line:
            line = line.replace(state, style.coloured(state, _COLOURS.get(state, "")), 1)
        lines.append(line)
    return lines


def bar(percent: int, style: Style) -> str:
    """How far it is, as a bar of fixed length."""
    if style.glyphs:
        halves = percent * BAR_CELLS * 2 // 100
        full = "━" * (halves // 2) + "╸" * (halves % 2)
        return full + "─" * (BAR_CELLS - len(full))
    return f"[{'#' * (percent * BAR_CELLS // 100):-<{BAR_CELLS}}]"


def job_line(job: Mapping[str, Any]) -> str:
    """How a job stands, on one line."""
    step = f" step {job['step']}" if job["step"] is not None and not job["ended"] else ""
    detail = job_detail(job)
    version = job["version"] if job["module"] == "default" else f"{job['module']} {job['version']}"
    return printable(
        f"job {job['id']}: {job['device']} to {version}: {job['state']}{step}{f': {detail}' if detail else ''}"
    )


def job_detail(job: Mapping[str, Any]) -> str:
    """Why it ended, what it waits for, or what the device said last."""
    waits = f"waits for {job['waits_for']}" if job["waits_for"] else ""
    return "; ".join(filter(None, (job["reason"], waits))) or job["desc"] or ""


def batch_set(batch: Mapping[str, Any]) -> str:
    """Which devices a batch is for."""
    devices = f"product {batch['product']}" if batch["product"] else ", ".join(batch["devices"])
    only = f" at {' or '.join(batch['source_versions'])}" if batch["source_versions"] else ""
    match batch["dynamic"]:
        case None:
            return f"{devices}{only}"
        case 1:
            return f"{devices}{only}, now and later"
        case _:
            return f"{devices}{only}, later"


def printable(text: str) -> str:
    """`text` with every character in it that could move a cursor replaced."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in text)


def clock(at: float) -> str:
    """A time as this machine's clock shows it, with the date unless that is today's."""
    moment, now = time.localtime(at), time.localtime()
    return time.strftime("%H:%M:%S" if moment[:3] == now[:3] else "%Y-%m-%d %H:%M", moment)


class Screen:
    """Lines on the terminal that are drawn anew where they stand."""

    def __init__(self) -> None:
        self._height = 0

    def draw(self, lines: Sequence[str]) -> None:
        """The head and as many of the last lines as there is room for."""
        room = shutil.get_terminal_size().lines - 1
        if len(lines) > room:
            hidden = len(lines) - room + 1
            lines = [lines[0], f"... {hidden} more", *lines[1 + hidden :]]
        up = f"\x1b[{self._height}A" if self._height else ""
        sys.stdout.write(f"{up}\r\x1b[J" + "".join(f"{line}\n" for line in lines))
        sys.stdout.flush()
        self._height = len(lines)


def _line(cells: Sequence[str], widths: Sequence[int], style: Style) -> str:
    text = "  ".join(cell + " " * (width - _width(cell)) for cell, width in zip(cells, widths, strict=True)).rstrip()
    return text if style.width is None else _cut(text, style.width, "…" if style.glyphs else "~")


def _cut(text: str, width: int, mark: str) -> str:
    if _width(text) <= width:
        return text
    while _width(text) > width - 1:
        text = text[:-1]
    return text + mark


def _width(text: str) -> int:
    """In columns of a terminal."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _step(job: Mapping[str, Any], style: Style) -> str:
    step = job["step"]
    if not style.bars:
        return "-" if step is None else str(step)
    if job["state"] == "SUCCEEDED":
        return f"{bar(100, style)} 100 %"
    if step is None or step < 0:
        return "" if step is None else str(step)
    return f"{bar(step, style)} {step:3} %"


def _versions(versions: Mapping[str, str]) -> str:
    named = (version if module == "default" else f"{module} {version}" for module, version in versions.items())
    return ", ".join(named) or "none informed yet"


def _counts(states: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {state}" for state, count in states.items()) or "none"
