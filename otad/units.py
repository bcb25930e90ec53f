# SPDX-License-Identifier: Apache-2.0
"""Sizes and durations as people write and read them.

Sizes are whole bytes, durations seconds. What the `format_` functions say, the `parse_` functions understand.
A bare number is bytes or seconds. `m` and `Mb` are not units here: minute or month, bit or byte, nobody can tell.
"""

import math
import re

SIZE_UNITS = {
    "B": 1,
    "kB": 10**3,
    "KB": 10**3,
    "KiB": 2**10,
    "MB": 10**6,
    "MiB": 2**20,
    "GB": 10**9,
    "GiB": 2**30,
    "TB": 10**12,
    "TiB": 2**40,
}
DURATION_UNITS = {"ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def parse_size(text: str) -> int:
    """Bytes in `text`, such as "8 MiB", "8MB" or "512", rounded down; ValueError says what is wrong with it."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError("must be a number and a unit, such as 8 MiB")
    number, unit = match.groups()
    if unit and unit not in SIZE_UNITS:
        raise ValueError(f"unit must be one of {', '.join(SIZE_UNITS)}")
    whole, _, fraction = number.partition(".")
    scale: int = 10 ** len(fraction)
    return int(whole + fraction) * SIZE_UNITS[unit or "B"] // scale


def parse_duration(text: str) -> float:
    """Seconds in `text`, such as "15 min", "500 ms", "1 h 30 min" or "20"; ValueError says what is wrong with it."""
    if _NUMBER.fullmatch(text):
        return float(text)
    if not _DURATION.fullmatch(text):
        raise ValueError("must be a number and a unit, such as 15 min")
    seconds = 0.0
    for number, unit in _PART.findall(text):
        if unit not in DURATION_UNITS:
            raise ValueError(f"unit must be one of {', '.join(DURATION_UNITS)}")
        # Multiplying by 0.001 would make 7 ms a little more than 0.007 s.
        seconds += float(number) / 1000 if unit == "ms" else float(number) * DURATION_UNITS[unit]
    return seconds


def format_size(size: int) -> str:
    """`size` bytes for a person, to three digits or so: "0 B", "1.5 KiB", "442 MiB"."""
    number, unit = float(size), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if round(abs(number)) < 1024:
            break
        number, unit = number / 1024, larger
    short = f"{number:.1f}" if abs(number) < 10 else f"{number:.0f}"
    return f"{short.removesuffix('.0')} {unit}"


def format_duration(seconds: float) -> str:
    """`seconds` for a person, in its two largest units: "500 ms", "1.5 s", "3 min 40 s", "2 d"."""
    if not math.isfinite(seconds):
        return "forever"
    if seconds < 0:
        return f"-{format_duration(-seconds)}"
    if round(seconds, 1) < 1:
        return f"{seconds * 1000:.0f} ms" if seconds else "0 s"
    if round(seconds, 1) < 60:
        return f"{seconds:.1f}".removesuffix(".0") + " s"
    # Rounded to the smaller unit before it is split, or 59 min 59.9 s would become 59 min 60 s.
    if (rounded := round(seconds)) < 3600:
        return _pair(rounded, "min", 60, "s")
    if (rounded := round(seconds / 60)) < 24 * 60:
        return _pair(rounded, "h", 60, "min")
    return _pair(round(seconds / 3600), "d", 24, "h")


def _pair(count: int, unit: str, length: int, smaller: str) -> str:
    large, small = divmod(count, length)
    return f"{large} {unit} {small} {smaller}" if small else f"{large} {unit}"


_NUMBER = re.compile(r"\s*[0-9]{1,15}(?:\.[0-9]{1,9})?\s*")
_SIZE = re.compile(r"\s*([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([A-Za-z]{0,8})\s*")
_PART = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([A-Za-z]{1,8})")
_DURATION = re.compile(rf"\s*(?:{_PART.pattern}\s*)+")
