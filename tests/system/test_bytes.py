# SPDX-License-Identifier: Apache-2.0
"""The package's bytes, whichever way they come: HTTPS, blocks over MQTT, one after the other, with a signature or not.

What lands is what was offered, nothing but a checkpoint comes twice, and what cannot be believed is never begun.
"""

from pathlib import Path

import pytest

from otad.platform.events import Asked, Progressed
from otad.platform.faults import BlockFault
from otad.platform.jobs import Protocol
from tests.system.world import MIB, JobState, World, new_world

BLOCKS_MAX = 128 << 10


@pytest.mark.parametrize("sign_method", ["Md5", "SHA256"])
async def test_a_package_comes_in_blocks_and_both_digests_are_checked(tmp_path: Path, sign_method: str) -> None:
    async with new_world(tmp_path, slot_bytes=2 * MIB) as world:
        package = world.package("2-0-0", 2 * MIB, protocol=Protocol.MQTT, sign_method=sign_method)
        world.power_on()

        good = await world.ended(world.push(package))
        await world.idle("b")
        world.platform.faults.wrong_digest = True
        bad = await world.ended(
            world.push(world.package("3-0-0", 2 * MIB, protocol=Protocol.MQTT, sign_method=sign_method))
        )

        assert (good.state, bad.state) == (JobState.SUCCEEDED, JobState.FAILED)
        assert "step -3" in (bad.reason or "")
        assert world.slot("b") == world.images["2-0-0"]
        assert world.platform.served(package) == []
        assert (await world.idle("b"))["slots"]["a"]["good"] is False


async def test_blocks_that_are_damaged_late_or_refused_are_asked_for_again(tmp_path: Path) -> None:
    async with new_world(tmp_path, slot_bytes=MIB) as world:
        faults = [BlockFault.CRC, BlockFault.CUT, BlockFault.OTHER, BlockFault.TWICE, BlockFault.LATE, 500, 400]
        package = world.package("2-0-0", MIB, protocol=Protocol.MQTT)
        world.platform.faults.next_blocks = [*faults]
        world.power_on()

        job = await world.ended(world.push(package))

        assert job.state is JobState.SUCCEEDED
        assert world.slot("b") == world.images["2-0-0"]
        assert world.platform.faults.next_blocks == []


async def test_a_power_cut_among_blocks_costs_one_checkpoint_at_most(tmp_path: Path) -> None:
    async with new_world(tmp_path) as world:
        package = world.package("2-0-0", protocol=Protocol.MQTT)
        job = world.push(package)
        world.power_on()
        await world.status(lambda status: (status["deployment"] or {}).get("checkpoint", 0) >= 8 * MIB)

        world.gateway.kill()

        assert (await world.ended(job)).state is JobState.SUCCEEDED
        assert world.slot("b") == world.images["2-0-0"]
        sent = sum(block.sent for block in world.platform.blocks(package))
        assert sent - package.size <= 8 * MIB + BLOCKS_MAX
        assert not [block for block in world.platform.blocks(package)[-10:] if block.start < 8 * MIB]


async def test_where_https_is_blocked_the_same_bytes_come_over_mqtt(tmp_path: Path) -> None:
    async with new_world(tmp_path, slot_bytes=4 * MIB) as world:
        package = world.package("2-0-0", 4 * MIB, protocol=Protocol.BOTH)
        world.platform.faults.cut_after = MIB
        world.platform.faults.cut_times = 1
        world.power_on()
        job = world.push(package)
        await world.until(lambda: world.platform.served(package))
        world.platform.faults.every_status = 503  # nothing more comes this way

        assert (await world.ended(job)).state is JobState.SUCCEEDED
        assert world.slot("b") == world.images["2-0-0"]
        blocks = world.platform.blocks(package)
        assert blocks
        assert world.platform.bytes_sent(package) <= package.size + MIB  # what was in flight on the cut connection
        assert "MQTT" in world.gateway.log.read_text()


async def test_a_url_that_expires_on_the_way_is_asked_for_anew(tmp_path: Path) -> None:
    async with new_world(tmp_path, slot_bytes=8 * MIB) as world:
        package = world.package("2-0-0", 8 * MIB)
        world.platform.faults.url_ttl_s = 1.0
        world.platform.faults.rate = 4 * MIB
        world.platform.faults.cut_after = 5 * MIB
        world.platform.faults.cut_times = 1
        world.power_on()

        job = await world.ended(world.push(package))

        assert job.state is JobState.SUCCEEDED
        statuses = [served.status for served in world.platform.served(package)]
        assert 403 in statuses
        assert statuses[-1] == 206
        assert len(world.platform.events.of(Asked)) >= 2
        assert world.platform.bytes_twice(package) <= 2 * MIB
        assert "auth_key" not in world.gateway.log.read_text()


def signing(world: World) -> None:
    """From now on this gateway asks for the platform's signature."""
    key = world.gateway.directory / "digestsign.pem"
    key.write_text(world.platform.signing_key)
    config = world.gateway.config
    config.write_text(config.read_text() + '\n[trust]\ndigestsign_key_file = "digestsign.pem"\n')


async def test_with_a_key_only_signed_packages_are_begun(tmp_path: Path) -> None:
    async with new_world(tmp_path, slot_bytes=MIB) as world:
        signing(world)
        world.power_on()
        await world.informed("1-0-0")
        unsigned, signed = world.package("2-0-0", MIB), world.package("2-0-1", MIB, signed=True)

        refused = await world.ended(world.push(unsigned))
        world.platform.faults.wrong_signature = True
        forged = await world.ended(world.push(signed))
        world.platform.faults.wrong_signature = False
        accepted = await world.ended(world.push(signed))

        assert [job.state for job in (refused, forged, accepted)] == [
            JobState.FAILED,
            JobState.FAILED,
            JobState.SUCCEEDED,
        ]
        assert [event.step for event in world.platform.events.of(Progressed) if event.step < 0] == [-3, -3]
        assert world.platform.served(unsigned) == []
        assert len(world.platform.served(signed)) == 1


async def test_each_file_of_a_package_needs_its_signature(tmp_path: Path) -> None:
    more = '\n[modules.app]\ninstaller = "files"\ndirectory = "apps"\nversion = "installed"\n'
    async with new_world(tmp_path, slot_bytes=MIB, more=more) as world:
        signing(world)
        (world.gateway.directory / "apps").mkdir()
        paths = [world.directory / "one.bin", world.directory / "two.bin"]
        for path in paths:
            path.write_bytes(path.name.encode() * 1000)
        world.power_on()
        await world.informed("1-0-0")
        signed = world.platform.add_package(paths, "2.0", module="app", signed=True)
        unsigned = world.platform.add_package(paths, "2.1", module="app")

        accepted = await world.ended(world.push(signed))
        refused = await world.ended(world.push(unsigned))

        assert (accepted.state, refused.state) == (JobState.SUCCEEDED, JobState.FAILED)
        assert "step -3" in (refused.reason or "")


async def test_a_package_that_is_not_pushed_is_found_by_asking(tmp_path: Path) -> None:
    async with new_world(tmp_path, slot_bytes=MIB) as world:
        world.power_on()
        await world.informed("1-0-0")
        job = world.push(world.package("2-0-0", MIB), need_push=False)

        status, said = await world.otad("check")

        assert (status, "2-0-0 is offered" in said) == (0, True), said
        assert (await world.ended(job)).state is JobState.SUCCEEDED
