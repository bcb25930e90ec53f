# SPDX-License-Identifier: Apache-2.0
"""Sizes and durations: what is understood, what is said, and that what is said is understood."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otad.units import format_duration, format_size, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8 MiB", 8 << 20),
        ("8MB", 8_000_000),
        ("512 KiB", 512 << 10),
        ("1.5 GiB", 3 << 29),
        ("4.35 kB", 4350),
        ("4.35 KB", 4350),
        (" 7 B ", 7),
        ("1.1 KiB", 1126),
        ("4096", 4096),
        ("0", 0),
    ],
)
def test_a_size_is_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("", "must be a number and a unit, such as 8 MiB"),
        ("MiB", "must be a number and a unit, such as 8 MiB"),
        ("-8 MiB", "must be a number and a unit, such as 8 MiB"),
        ("8 MiB 1", "must be a number and a unit, such as 8 MiB"),
        ("1e3", "must be a number and a unit, such as 8 MiB"),
        ("٣ MiB", "must be a number and a unit, such as 8 MiB"),
        ("9" * 100_000, "must be a number and a unit, such as 8 MiB"),
        ("8 Mb", "unit must be one of B, kB, KB, KiB, MB, MiB, GB, GiB, TB, TiB"),
        ("8 m", "unit must be one of B, kB, KB, KiB, MB, MiB, GB, GiB, TB, TiB"),
    ],
)
def test_what_is_no_size_is_refused(text: str, wrong: str) -> None:
    with pytest.raises(ValueError, match=r"^must|^unit") as refusal:
        parse_size(text)

    assert str(refusal.value) == wrong


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("15 min", 900.0),
        ("30 s", 30.0),
        ("1 h", 3600.0),
        ("2 d", 172800.0),
        ("500 ms", 0.5),
        ("7 ms", 0.007),
        ("1.5h", 5400.0),
        ("1 h 30 min", 5400.0),
        ("3 min 40 s", 220.0),
        ("20", 20.0),
        ("0.25", 0.25),
    ],
)
def test_a_duration_is_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("", "must be a number and a unit, such as 15 min"),
        ("soon", "must be a number and a unit, such as 15 min"),
        ("-1 s", "must be a number and a unit, such as 15 min"),
        ("nan", "must be a number and a unit, such as 15 min"),
        ("inf", "must be a number and a unit, such as 15 min"),
        ("1 h 30", "must be a number and a unit, such as 15 min"),
        ("1 " * 50_000, "must be a number and a unit, such as 15 min"),
        ("5 m", "unit must be one of ms, s, min, h, d"),
        ("5 weeks", "unit must be one of ms, s, min, h, d"),
    ],
)
def test_what_is_no_duration_is_refused(text: str, wrong: str) -> None:
    with pytest.raises(ValueError, match=r"^must|^unit") as refusal:
        parse_duration(text)

    assert str(refusal.value) == wrong


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        ((1 << 20) - 1, "1 MiB"),
        (463_470_000, "442 MiB"),
        (5000 << 40, "5000 TiB"),
    ],
)
def test_a_size_is_said_in_its_largest_unit(size: int, text: str) -> None:
    assert format_size(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.007, "7 ms"),
        (0.5, "500 ms"),
        (1.5, "1.5 s"),
        (59.96, "1 min"),
        (220, "3 min 40 s"),
        (3599.9, "1 h"),
        (85_000, "23 h 37 min"),
        (86_399.9, "1 d"),
        (90_061, "1 d 1 h"),
        (-90, "-1 min 30 s"),
        (math.inf, "forever"),
        (math.nan, "forever"),
    ],
)
def test_a_duration_is_said_in_its_two_largest_units(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@given(st.integers(0, 1 << 60))
def test_a_size_said_is_understood_to_a_twentieth(size: int) -> None:
    assert parse_size(format_size(size)) == pytest.approx(size, rel=0.05, abs=1)


@given(st.floats(0.001, 1e9))
def test_a_duration_said_is_understood_to_a_twentieth(seconds: float) -> None:
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds, rel=0.5 if seconds < 0.01 else 0.05)
