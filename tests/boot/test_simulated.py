# SPDX-License-Identifier: Apache-2.0
"""The simulated board keeps each rule that is promised of it."""

import json
from pathlib import Path
from typing import Any

import pytest

from otad.boot.simulated import SimulatedBoot, from_config, power_cycle, slot_version
from otad.cli import main
from otad.config import Config, load
from otad.core.model import Board, Slot, SlotView
from otad.durable import RealDisk
from otad.errors import Code, UpdateError
from otad.store import InUseError, Lock

A, B = Slot("a"), Slot("b")
ATTEMPTS = 3
CONFIGURATION = """
[device]
product_key = "a1B2c3D4e5F"
device_name = "gateway-0001"
device_secret = "secret"
[mqtt]
host = "127.0.0.1"
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
[state]
directory = "state"
"""


class World:
    """A board in a directory, with what a test asks of it."""

    def __init__(self, directory: Path) -> None:
        self.file = directory / "config.toml"
        self.file.write_text(CONFIGURATION)
        self.variables_file = directory / "boot" / "variables.json"
        self.slots = {A: directory / "a.img", B: directory / "b.img"}
        self.write(A, "1-0-0")
        self.write(B, "2-0-0")

    @property
    def config(self) -> Config:
        return load(self.file).config

    @property
    def boot(self) -> SimulatedBoot:
        return from_config(RealDisk(), self.config)

    @property
    def variables(self) -> dict[str, Any]:
        parsed: dict[str, Any] = json.loads(self.variables_file.read_text())
        return parsed

    def write(self, slot: Slot, version: str | None) -> None:
        line = f"IMAGE_VERSION={version}\n" if version else ""
        self.slots[slot].write_bytes(b"#!image\n" + line.encode() + bytes(8192))

    def cycle(self) -> Slot | None:
        return power_cycle(self.config).slot

    def attempts(self, slot: Slot) -> int:
        view = self.boot.view().view(slot)
        assert view is not None
        return view.attempts_left


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


# -- slots and their versions


@pytest.mark.parametrize(
    ("content", "version"),
    [
        (b"IMAGE_VERSION=1-0-0\n", "1-0-0"),
        (b"\x7fELF junk\nIMAGE_VERSION=v1.2_3\r\nmore", "v1.2_3"),
        (b"IMAGE_VERSION=1-0-0", "1-0-0"),
        (b"A=1\nIMAGE_VERSION=first\nIMAGE_VERSION=second\n", "first"),
        (b"x" * 4070 + b"\nIMAGE_VERSION=1.0\n", "1.0"),
        (b"x" * 4096 + b"\nIMAGE_VERSION=1.0\n", None),
        (b"x" * 4090 + b"\nIMAGE_VERSION=1.0\n", None),
        (b"x" * 4080 + b"\nIMAGE_VERSION=1.0\n", None),
        (b"OLD_IMAGE_VERSION=1.0\n", None),
        (b"IMAGE_VERSION=\n", None),
        (b"IMAGE_VERSION=1 0\n", None),
        (b"IMAGE_VERSION=" + b"1" * 65 + b"\n", None),
        (b"", None),
    ],
)
def test_a_slots_version_is_the_value_of_a_line_in_its_first_4096_bytes(
    tmp_path: Path, content: bytes, version: str | None
) -> None:
    slot = tmp_path / "slot.img"
    slot.write_bytes(content)

    assert slot_version(RealDisk(), slot) == version


def test_a_version_cut_off_by_the_4096th_byte_is_none(tmp_path: Path) -> None:
    slot = tmp_path / "slot.img"
    slot.write_bytes(b"x" * (4095 - len(b"IMAGE_VERSION=1-0")) + b"\nIMAGE_VERSION=1-0-0\n")

    assert slot_version(RealDisk(), slot) is None


def test_a_slot_that_is_not_there_has_no_version(tmp_path: Path) -> None:
    assert slot_version(RealDisk(), tmp_path / "nothing") is None


# -- first use


def test_a_missing_directory_is_made_on_first_use_with_the_first_slot_booted_and_primary(world: World) -> None:
    board = world.boot.view()

    assert board == Board(A, A, (SlotView(A, True, ATTEMPTS, True), SlotView(B, True, ATTEMPTS, True)))
    assert world.variables_file.exists()


def test_a_slot_without_a_version_is_not_good_on_first_use(world: World) -> None:
    world.write(B, None)

    assert world.boot.view().view(B) == SlotView(B, False, 0, False)


def test_the_boot_id_stays_until_the_next_power_cycle(world: World) -> None:
    first = world.boot.boot_id()

    assert world.boot.boot_id() == first
    assert power_cycle(world.config).boot_id == world.boot.boot_id() != first


def test_a_power_cycle_may_be_the_first_use(world: World) -> None:
    assert world.cycle() == A
    assert world.attempts(A) == ATTEMPTS - 1


# -- power cycles


def test_each_boot_counts_an_attempt_for_a_good_and_confirmed_slot_too(world: World) -> None:
    assert [(world.cycle(), world.attempts(A)) for _ in range(3)] == [(A, 2), (A, 1), (A, 0)]


def test_the_primary_slot_is_taken(world: World) -> None:
    world.boot.set_primary(B, ATTEMPTS)

    assert world.cycle() == B
    assert world.boot.view() == Board(B, B, (SlotView(A, True, 3, True), SlotView(B, True, 2, True)))


def test_when_the_attempts_are_used_up_the_board_falls_back(world: World) -> None:
    world.boot.mark_bad(B)
    world.boot.set_primary(B, ATTEMPTS)

    assert [world.cycle() for _ in range(4)] == [B, B, B, A]
    assert world.boot.view().primary == B


def test_a_slot_without_a_version_does_not_boot_and_uses_up_its_attempts(world: World) -> None:
    world.boot.set_primary(B, ATTEMPTS)
    world.write(B, None)

    cycled = power_cycle(world.config)

    assert cycled.slot == A
    assert world.attempts(B) == 0
    assert cycled.log == (
        "slot b does not boot: no version in it (2 attempts left)",
        "slot b does not boot: no version in it (1 attempts left)",
        "slot b does not boot: no version in it (0 attempts left)",
        "slot a boots 1-0-0 (2 attempts left)",
    )


def test_when_no_good_slot_has_attempts_left_the_last_confirmed_one_is_refilled(world: World) -> None:
    world.boot.mark_good(B)
    world.boot.mark_good(A)
    for _ in range(2 * ATTEMPTS):
        world.cycle()
    assert (world.attempts(A), world.attempts(B)) == (0, 0)

    cycled = power_cycle(world.config)

    assert cycled.slot == A
    assert cycled.log[0] == "no good slot has attempts left: refilled a, the last confirmed"
    assert world.attempts(A) == ATTEMPTS - 1


def test_a_slot_marked_bad_is_never_chosen_not_even_at_last(world: World) -> None:
    world.boot.mark_good(B)
    world.boot.mark_bad(B)

    assert {world.cycle() for _ in range(4 * ATTEMPTS)} == {A}


def test_mark_bad_takes_back_the_confirmation_and_leaves_the_primary(world: World) -> None:
    world.boot.set_primary(B, ATTEMPTS)
    world.boot.mark_good(B)
    world.boot.mark_bad(B)

    assert world.boot.view() == Board(A, B, (SlotView(A, True, 3, True), SlotView(B, False, 0, False)))
    assert world.variables["last_confirmed"] == A


def test_set_primary_gives_attempts_and_does_not_confirm(world: World) -> None:
    world.boot.mark_bad(B)
    world.boot.set_primary(B, 2)

    assert world.boot.view() == Board(A, B, (SlotView(A, True, 3, True), SlotView(B, True, 2, False)))


def test_mark_good_confirms_and_gives_the_attempts_back(world: World) -> None:
    world.cycle()
    world.boot.mark_bad(B)
    world.boot.mark_good(A)
    world.boot.mark_good(B)

    assert world.boot.view() == Board(A, A, (SlotView(A, True, 3, True), SlotView(B, True, 3, True)))


def test_when_both_are_bad_no_slot_boots(world: World) -> None:
    world.boot.mark_bad(A)
    world.boot.mark_bad(B)

    cycled = power_cycle(world.config)

    assert (cycled.slot, cycled.log) == (None, ("no slot boots",))
    assert world.boot.view().booted is None


def test_a_refilled_slot_that_does_not_boot_ends_it(world: World) -> None:
    world.boot.view()
    world.write(A, None)
    world.write(B, None)

    assert world.cycle() is None
    assert (world.attempts(A), world.attempts(B)) == (0, 0)


# -- at the command line


def test_the_command_exits_0_where_a_slot_boots_and_1_where_none_can(world: World) -> None:
    command = ["--config", str(world.file), "board", "power-cycle"]

    assert main(command) == 0
    world.boot.mark_bad(A)
    world.boot.mark_bad(B)
    assert main(command) == 1


def test_it_is_refused_while_the_daemons_lock_is_held(world: World) -> None:
    (world.file.parent / "state").mkdir()
    lock = Lock(world.file.parent / "state")
    before = world.boot.boot_id()

    with pytest.raises(InUseError):
        power_cycle(world.config)
    assert main(["--config", str(world.file), "board", "power-cycle"]) == 4
    assert world.boot.boot_id() == before
    lock.release()
    assert world.cycle() == A


# -- damaged variables


def damaged(**changes: object) -> str:
    entry = {"good": True, "attempts": 3, "confirmed": True}
    plain = {"boot_id": "x", "booted": "a", "primary": "a", "last_confirmed": "a", "slots": {"a": entry, "b": entry}}
    return json.dumps({**plain, **changes})


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "null",
        "[]",
        "[" * 100_000,
        "\x00" * 100,
        "\udcff",
        '{"slots": {}}',
        damaged(slots={"a": {"good": True, "attempts": 3, "confirmed": True}}),
        damaged(slots={"a": {"good": True}, "b": {"good": True}}),
        damaged(slots={name: {"good": 1, "attempts": "3", "confirmed": None} for name in "ab"}),
        damaged(slots=None),
        damaged(slots=["a", "b"]),
        damaged(primary="c"),
        damaged(primary=None),
        damaged(booted="c"),
        damaged(last_confirmed="c"),
        damaged(last_confirmed=["a"]),
        damaged(boot_id=5),
        damaged(more=1),
    ],
)
def test_damaged_variables_are_an_update_error_that_names_file_and_remedy(world: World, content: str) -> None:
    world.variables_file.parent.mkdir()
    world.variables_file.write_text(content, errors="surrogateescape")

    for ask in (world.boot.view, world.boot.boot_id, world.boot.power_cycle, lambda: world.boot.mark_good(A)):
        with pytest.raises(UpdateError) as caught:
            ask()
        assert caught.value.failure.code == Code.BOOT
        assert str(world.variables_file) in str(caught.value)
        assert "remove it to start anew" in str(caught.value)
    assert world.variables_file.read_text(errors="surrogateescape") == content


def test_variables_of_other_slots_than_the_configurations_are_an_update_error(world: World) -> None:
    world.boot.view()
    world.file.write_text(CONFIGURATION.replace("slots.b", "slots.other"))

    with pytest.raises(UpdateError, match="slot b is not in both"):
        world.boot.view()


def test_a_directory_that_cannot_be_written_is_an_update_error(world: World) -> None:
    (world.file.parent / "boot").write_text("a file")

    with pytest.raises(UpdateError, match=r"variables\.json: Not a directory") as caught:
        world.boot.view()
    assert caught.value.failure.code == Code.BOOT
