# SPDX-License-Identifier: Apache-2.0
"""Whole upgrades, from the notice to the confirmed version, as platform, medium and boot loader see them."""

import io
import lzma
import tarfile
import zipfile
from pathlib import Path

import pytest
import zstandard

from tests.system.world import MIB, JobState, Way, gzipped, in_every_way, new_world


@in_every_way
async def test_an_upgrade_is_reported_only_after_the_new_system_has_run(tmp_path: Path, way: Way) -> None:
    async with new_world(tmp_path, way=way) as world:
        world.power_on()
        await world.informed("1-0-0")
        package = world.package("2-0-0")
        job = await world.ended(world.push(package))
        status = await world.idle("b")

        assert job.state == JobState.SUCCEEDED
        assert world.told[0] == "version 1-0-0"
        assert world.told[-2:] == ["step 100", "version 2-0-0"]
        assert world.steps == sorted(world.steps)
        assert 99 in world.steps
        assert world.slot("b") == world.images["2-0-0"]
        assert world.platform.bytes_sent(package) == package.size
        assert world.gateway.exits == [0]
        assert status["slots"]["b"] == {
            **status["slots"]["b"],
            "good": True,
            "primary": True,
            "attempts_left": 3,
            "version": "2-0-0",
        }


async def test_the_target_is_bad_from_the_first_byte_on(tmp_path: Path) -> None:
    async with new_world(tmp_path) as world:
        world.platform.faults.rate = 4 * MIB
        world.power_on()
        await world.informed("1-0-0")
        world.push(world.package("2-0-0"))
        status = await world.status(lambda s: s["deployment"] and s["deployment"]["bytes"] > 0)
        await world.power_off()
        cycled = world.gateway.power_cycle()

        assert status["slots"]["b"]["good"] is False
        assert cycled.slot == "a"


async def test_a_compressed_image_goes_through_staging(tmp_path: Path) -> None:
    async with new_world(tmp_path) as world:
        world.power_on()
        await world.informed("1-0-0")
        job = await world.ended(world.push(world.package("2-0-0", 9 * MIB + 4321, gzipped)))
        await world.idle("b")

        assert job.state == JobState.SUCCEEDED
        assert world.slot("b")[: 9 * MIB + 4321] == world.images["2-0-0"]
        assert list((world.gateway.directory / "state" / "staging").iterdir()) == []


@in_every_way
async def test_a_system_that_fails_its_health_check_is_rolled_back_and_refused(tmp_path: Path, way: Way) -> None:
    async with new_world(tmp_path, way=way) as world:
        world.gateway.add_health_check(
            "10-app", '[ "$OTAD_VERSION" != 2-0-0 ] || { echo "modem: no answer"; exit 1; }\n'
        )
        world.power_on()
        await world.informed("1-0-0")
        package = world.package("2-0-0")
        job = await world.ended(world.push(package))
        await world.informed("1-0-0", times=2)
        again = await world.ended(world.push(package))
        status = await world.idle("a")

        reason = "health check 10-app: exit status 1: modem: no answer"
        assert (job.state, again.state) == (JobState.FAILED, JobState.FAILED)
        assert world.told.index(f"step -1: {reason}") < len(world.told) - world.told[::-1].index("version 1-0-0") - 1
        assert "step 100" not in world.told
        assert "version 2-0-0" not in world.told
        assert status["slots"]["a"]["primary"] is True
        assert status["slots"]["b"]["good"] is False
        assert status["refused"][0]["version"] == "2-0-0"
        assert world.gateway.exits == [0, 0]


async def test_an_image_that_says_another_version_than_the_notice_is_rolled_back(tmp_path: Path) -> None:
    async with new_world(tmp_path) as world:
        world.power_on()
        await world.informed("1-0-0")
        world.package("2.0.0")
        package = world.platform.add_package(tmp_path / "2.0.0.img", "2-0-0")
        job = await world.ended(world.push(package))

        assert job.state == JobState.FAILED
        assert "step -1: version: the image says 2.0.0, the notice says 2-0-0" in world.told


async def test_a_system_that_does_not_come_up_is_fallen_back_from_and_refused(tmp_path: Path) -> None:
    async with new_world(tmp_path) as world:
        world.power_on()
        await world.informed("1-0-0")
        dead = tmp_path / "dead.img"
        dead.write_bytes(b"\0" * (8 * MIB))
        job = await world.ended(world.push(world.platform.add_package(dead, "2-0-0")))
        status = await world.idle("a")

        assert job.state == JobState.FAILED
        assert "step -1: slot b did not come up; the boot loader returned to a" in world.told
        assert status["slots"]["b"]["good"] is False
        assert status["slots"]["a"] == {**status["slots"]["a"], "primary": True, "attempts_left": 3}


@pytest.mark.parametrize("size", [SIZE := 17 * MIB], ids=["larger than the slot"])
async def test_an_image_that_does_not_fit_is_refused_before_the_first_byte(tmp_path: Path, size: int) -> None:
    async with new_world(tmp_path) as world:
        world.power_on()
        await world.informed("1-0-0")
        job = await world.ended(world.push(world.package("2-0-0", size)))
        status = await world.idle("a")

        assert job.state == JobState.FAILED
        step = next(line for line in world.told if line.startswith("step -4"))
        assert "16777216" in step
        assert "17825792" in step
        assert status["slots"]["b"]["good"] is False  # it never held a system
        assert world.slot("b") == b"\0" * (16 * MIB)


@pytest.mark.parametrize("kind", ["xz", "zstd", "zip", "tar", "tar.gz"])
async def test_an_image_is_found_in_what_it_was_packed_in(tmp_path: Path, kind: str) -> None:
    def pack(image: bytes) -> bytes:
        packed = io.BytesIO()
        match kind:
            case "xz":
                return lzma.compress(image, preset=0)
            case "zstd":
                return zstandard.compress(image)
            case "zip":
                with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
                    archive.writestr("rootfs.img", image)
            case _:
                with tarfile.open(fileobj=packed, mode="w:gz" if kind == "tar.gz" else "w") as archive:
                    member = tarfile.TarInfo("rootfs.img")
                    member.size = len(image)
                    archive.addfile(member, io.BytesIO(image))
        return packed.getvalue()

    async with new_world(tmp_path, slot_bytes=4 * MIB) as world:
        world.power_on()
        await world.informed("1-0-0")
        job = await world.ended(world.push(world.package("2-0-0", 4 * MIB - 77, pack)))

        assert job.state == JobState.SUCCEEDED
        assert world.slot("b") == world.images["2-0-0"] + bytes(77)


async def test_an_image_that_unpacks_to_more_than_the_slot_ends_at_its_end(tmp_path: Path) -> None:
    async with new_world(tmp_path, slot_bytes=4 * MIB) as world:
        world.power_on()
        await world.informed("1-0-0")
        job = await world.ended(world.push(world.package("2-0-0", 6 * MIB, gzipped)))
        status = await world.idle("a")

        assert job.state == JobState.FAILED
        step = next(line for line in world.told if line.startswith("step -4"))
        assert "has 4194304 bytes" in step
        assert "at least" in step
        assert status["slots"]["b"]["good"] is False
