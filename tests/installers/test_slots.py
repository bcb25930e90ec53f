# SPDX-License-Identifier: Apache-2.0
"""Slots are prepared, written, read back, switched and switched back, and nothing happens to a slot before its turn."""

import asyncio
import fcntl
import functools
import gzip
import hashlib
import io
import lzma
import os
import random
import tarfile
import threading
import zipfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import zstandard

from otad.boot.simulated import SimulatedBoot
from otad.core.model import (
    DEFAULT_MODULE,
    Board,
    Deployment,
    DeploymentId,
    Digest,
    DigestMethod,
    Identity,
    Notice,
    Phase,
    PlaceKind,
    Slot,
    SlotView,
)
from otad.durable import Place, RealDisk, pages
from otad.errors import Code, Failure, UpdateError
from otad.installers.slots import SlotInstaller
from otad.installers.staging import RESERVE_BYTES, Staging
from otad.telemetry import Progress

A, B = Slot("a"), Slot("b")
MIB = 1 << 20
SLOT_BYTES = 4 * MIB
OLD = b"IMAGE_VERSION=1-0-0\n".ljust(SLOT_BYTES, b"o")
OLDER = b"IMAGE_VERSION=0-9-0\n".ljust(SLOT_BYTES, b"r")
IMAGE = b"IMAGE_VERSION=2-0-0\n" + random.Random(1).randbytes(MIB + 4321) + bytes(MIB)
FULL, BAD = SlotView(A, True, 3, True), SlotView(B, False, 0, False)


class Boot(SimulatedBoot):
    """Writes down its orders, and can be deaf to one of them."""

    def listen(self, deaf_to: str = "") -> "Boot":
        self.orders: list[str] = []
        self.deaf_to = deaf_to
        return self

    def mark_bad(self, slot: Slot) -> None:
        self.orders.append(f"bad {slot}")
        if self.deaf_to != "mark_bad":
            super().mark_bad(slot)

    def mark_good(self, slot: Slot) -> None:
        self.orders.append(f"good {slot}")
        if self.deaf_to != "mark_good":
            super().mark_good(slot)

    def set_primary(self, slot: Slot, attempts: int) -> None:
        self.orders.append(f"primary {slot} {attempts}")
        if self.deaf_to != "set_primary":
            super().set_primary(slot, attempts)


class Disk(RealDisk):
    """A real one with as much room as a test says, that counts what is asked of its places."""

    def __init__(self) -> None:
        self.free = 1 << 40
        self.touched: Callable[[str, Path], None] = lambda what, path: None

    def free_bytes(self, directory: Path) -> int:
        return self.free

    def open_place(self, path: Path, *, write: bool = True) -> Place:
        return _Watched(super().open_place(path, write=write), functools.partial(self._touch, path))

    def _touch(self, path: Path, what: str) -> None:
        self.touched(what, path)


class _Watched:
    def __init__(self, place: Place, touched: Callable[[str], None]) -> None:
        self._place, self._touched = place, touched
        self.bytes, self.from_medium = place.bytes, place.from_medium

    def write(self, offset: int, content: memoryview) -> None:
        self._touched("write")
        self._place.write(offset, content)

    def sync(self) -> None:
        self._place.sync()

    def read_into(self, offset: int, buffer: memoryview) -> int:
        self._touched("read")
        return self._place.read_into(offset, buffer)

    def close(self) -> None:
        self._place.close()


class World:
    """Two slots in files, a boot loader, and an installer."""

    def __init__(self, directory: Path) -> None:
        self.devices = {A: directory / "a.img", B: directory / "b.img"}
        self.devices[A].write_bytes(OLD)
        self.devices[B].write_bytes(OLDER)
        self.staging = directory / "staging"
        self.staging.mkdir()
        self.disk = Disk()
        self.boot = Boot(self.disk, directory / "boot", self.devices, 3).listen()
        self.boot.view()
        self.progress: list[Progress] = []
        self.installer = self.new_installer()

    def new_installer(self) -> SlotInstaller:
        return SlotInstaller(self.disk, self.boot, self.devices, Staging(self.disk, self.staging), 3)

    def restart(self) -> None:
        """A new process: the old one's descriptors are gone."""
        self.installer.release()
        self.installer = self.new_installer()

    def deployment(self, package: bytes, checkpoint: int = 0, **changes: str) -> Deployment:
        digest = Digest(DigestMethod.SHA256, hashlib.sha256(package).hexdigest())
        return Deployment(
            id=DeploymentId("1"),
            notice=Notice(Identity(DEFAULT_MODULE, "2-0-0", len(package), digest), "https://x"),
            phase=Phase.DOWNLOADING,
            old=Slot(changes.get("old", A)),
            target=Slot(changes.get("target", B)),
            began=0,
            tries_allowed=3,
            place=PlaceKind.STAGING,
            checkpoint=checkpoint,
        )

    async def stage(self, package: bytes) -> Deployment:
        """The package in its staging file, as a transfer leaves it."""
        place = await self.installer.open_staging(self.deployment(package))
        write(place, package)
        return self.deployment(package, checkpoint=len(package))

    async def install(self, deployment: Deployment) -> None:
        await self.installer.install(deployment, self.progress.append)

    def untouched(self) -> bool:
        return (self.devices[A].read_bytes(), self.devices[B].read_bytes()) == (OLD, OLDER)

    def holds(self, image: bytes) -> bool:
        """The target begins with the image, and what lies behind it has been left alone."""
        return self.devices[B].read_bytes() == image + OLDER[len(image) :]


def write(place: Place, content: bytes) -> None:
    buffer = pages(MIB)
    for at in range(0, len(content), MIB):
        part = content[at : at + MIB]
        buffer[: len(part)] = part
        place.write(at, buffer[: len(part)])
    place.sync()


async def failure(work: Awaitable[object]) -> Failure:
    with pytest.raises(UpdateError) as caught:
        await work
    return caught.value.failure


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


# -- preparing the target


async def test_the_target_is_bad_before_the_first_byte(world: World) -> None:
    await world.installer.open_slot(world.deployment(IMAGE))

    assert world.boot.orders == ["bad b"]
    assert world.boot.view() == Board(A, A, (FULL, BAD))
    assert world.untouched()


async def test_the_booted_slot_becomes_primary_and_gets_its_attempts_first(world: World) -> None:
    world.boot.set_primary(B, 3)
    world.boot.power_cycle()
    world.boot.set_primary(A, 1)
    world.boot.power_cycle()
    world.boot.set_primary(B, 3)
    world.boot.listen()

    await world.installer.open_slot(world.deployment(IMAGE))
    assert world.boot.orders == ["primary a 3", "bad b"]
    assert world.boot.view() == Board(A, A, (FULL, BAD))


async def test_used_attempts_of_the_booted_slot_are_given_back_first(world: World) -> None:
    world.boot.power_cycle()
    await world.installer.open_slot(world.deployment(IMAGE))

    assert world.boot.orders == ["primary a 3", "bad b"]
    assert world.boot.view() == Board(A, A, (FULL, BAD))


async def test_a_target_that_looks_bad_is_marked_again_by_each_process(world: World) -> None:
    for _ in range(2):
        world.restart()
        await world.installer.open_slot(world.deployment(IMAGE))

    assert world.boot.orders == ["bad b", "bad b"]


async def test_a_boot_loader_that_does_not_take_the_mark_is_found_out(world: World) -> None:
    world.boot.listen(deaf_to="mark_bad")

    found = await failure(world.installer.open_slot(world.deployment(IMAGE)))
    assert found == Failure(Code.BOOT, "slot b: the boot loader does not hold it as bad")
    assert world.untouched()


async def test_a_boot_loader_that_does_not_take_the_primary_is_found_out(world: World) -> None:
    world.boot.set_primary(B, 3)
    world.boot.listen(deaf_to="set_primary")

    assert (await failure(world.installer.open_slot(world.deployment(IMAGE)))).code == Code.BOOT
    assert world.untouched()


async def test_a_booted_slot_that_was_never_confirmed_is_not_confirmed_by_the_way(world: World) -> None:
    world.boot.mark_bad(A)
    world.boot.set_primary(A, 1)

    await world.installer.open_slot(world.deployment(IMAGE))
    assert world.boot.view() == Board(A, A, (SlotView(A, True, 3, False), BAD))


async def test_asking_again_gives_the_same_place(world: World) -> None:
    deployment = world.deployment(IMAGE)

    assert await world.installer.open_slot(deployment) is await world.installer.open_slot(deployment)
    assert world.boot.orders == ["bad b"]


# -- what must not be written


async def test_a_slot_too_small_is_refused_before_anything_is_marked(world: World) -> None:
    found = await failure(world.installer.open_slot(world.deployment(bytes(SLOT_BYTES + 1))))

    assert found.code == Code.SPACE
    assert f"has {SLOT_BYTES} bytes" in found.detail
    assert f"the image {SLOT_BYTES + 1} bytes" in found.detail
    assert world.boot.orders == []
    assert world.untouched()


async def test_an_image_of_exactly_the_slots_size_fits(world: World) -> None:
    assert (await world.installer.open_slot(world.deployment(bytes(SLOT_BYTES)))).bytes == SLOT_BYTES


async def test_a_target_that_is_booted_is_refused(world: World) -> None:
    found = await failure(world.installer.open_slot(world.deployment(IMAGE, old=B, target=A)))

    assert found == Failure(Code.SLOT, "slot b: not the booted one, that is a")
    assert (world.boot.orders, world.untouched()) == ([], True)


@pytest.mark.parametrize("link", [os.symlink, os.link])
async def test_a_target_that_is_another_slots_file_is_refused(world: World, link: Callable[[Path, Path], None]) -> None:
    world.devices[B].unlink()
    link(world.devices[A], world.devices[B])

    found = await failure(world.installer.open_slot(world.deployment(IMAGE)))
    assert found == Failure(Code.SLOT, f"slot b: {world.devices[B]} is another slot as well")
    assert world.boot.orders == []
    assert world.devices[A].read_bytes() == OLD


async def test_a_target_that_is_not_there_is_refused(world: World) -> None:
    world.devices[B].unlink()

    found = await failure(world.installer.open_slot(world.deployment(IMAGE)))
    assert found == Failure(Code.MEDIUM, f"slot b: {world.devices[B]}: No such file or directory")
    assert world.boot.orders == []


async def test_a_target_that_somebody_else_writes_is_refused(world: World) -> None:
    with world.devices[B].open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)

        found = await failure(world.installer.open_slot(world.deployment(IMAGE)))
    assert found == Failure(Code.MEDIUM, f"slot b: {world.devices[B]}: somebody else writes it")
    assert world.boot.orders == []


async def test_an_open_target_is_nobody_elses_until_it_is_released(world: World) -> None:
    await world.installer.open_slot(world.deployment(IMAGE))

    assert (await failure(world.new_installer().open_slot(world.deployment(IMAGE)))).code == Code.MEDIUM
    world.installer.release()
    await world.new_installer().open_slot(world.deployment(IMAGE))


# -- the staging file


async def test_the_staging_file_has_its_space_taken(world: World) -> None:
    place = await world.installer.open_staging(world.deployment(IMAGE))
    (file,) = world.staging.iterdir()

    assert place.bytes == file.stat().st_size == len(IMAGE)
    assert file.stat().st_blocks * 512 >= len(IMAGE)
    assert file.stat().st_mode & 0o777 == 0o600


async def test_staging_keeps_a_reserve_for_the_state(world: World) -> None:
    world.disk.free = len(IMAGE) + RESERVE_BYTES - 1

    found = await failure(world.installer.open_staging(world.deployment(IMAGE)))
    assert found.code == Code.SPACE
    assert f"({len(IMAGE)} bytes)" in found.detail
    assert list(world.staging.iterdir()) == []
    assert world.boot.orders == []


async def test_a_package_that_just_fits_is_staged(world: World) -> None:
    world.disk.free = len(IMAGE) + RESERVE_BYTES

    await world.installer.open_staging(world.deployment(IMAGE))


async def test_going_on_needs_no_more_space_and_finds_what_is_there(world: World) -> None:
    deployment = await world.stage(IMAGE)
    world.restart()
    world.disk.free = RESERVE_BYTES

    place = await world.installer.open_staging(deployment)
    buffer = pages(MIB)
    assert place.read_into(0, buffer) == MIB
    assert bytes(buffer) == IMAGE[:MIB]


async def test_beginning_anew_does_not_count_the_file_that_is_there_already(world: World) -> None:
    await world.stage(IMAGE)
    world.restart()

    class Room(Disk):
        """As much as there is without any staging file."""

        def free_bytes(self, directory: Path) -> int:
            taken = sum(file.stat().st_size for file in directory.iterdir())
            return len(IMAGE) + RESERVE_BYTES - taken

    world.disk = Room()
    world.installer = world.new_installer()
    await world.installer.open_staging(world.deployment(IMAGE, checkpoint=0))


async def test_tidying_removes_all_staging_files_but_the_deployments(world: World) -> None:
    deployment = await world.stage(IMAGE)
    (world.staging / "older.package").write_bytes(b"x")

    world.installer.tidy(deployment)
    assert [file.name for file in world.staging.iterdir()] == ["1.package"]
    world.installer.tidy(None)
    assert list(world.staging.iterdir()) == []


# -- installing


def zipped(image: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("rootfs.img", image)
    return file.getvalue()


def tarred(image: bytes, mode: str = "w", manifest: bytes | None = None) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in (("manifest.json", manifest), ("rootfs.img", image)):
            if content is not None:
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    return file.getvalue()


PACKAGES: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "xz": lzma.compress,
    "zstd": zstandard.ZstdCompressor().compress,
    "zstd without a size": zstandard.ZstdCompressor(write_content_size=False).compress,
    "zip": zipped,
    "tar": tarred,
    "tar.gz": functools.partial(tarred, mode="w:gz"),
}
SIZE_KNOWN = ("xz", "zstd", "tar", "tar.gz", "zip")


@pytest.mark.parametrize("pack", PACKAGES.values(), ids=PACKAGES.keys())
async def test_a_package_becomes_the_slots_image(world: World, pack: Callable[[bytes], bytes]) -> None:
    deployment = await world.stage(pack(IMAGE))
    await world.install(deployment)

    assert world.holds(IMAGE)
    assert world.devices[A].read_bytes() == OLD
    assert world.boot.view() == Board(A, A, (FULL, BAD))
    await asyncio.sleep(0)
    assert world.progress[-1] == Progress(deployment.id, bytes=len(IMAGE), total=len(IMAGE), checked=len(IMAGE))


async def test_an_installation_begins_anew_after_a_restart(world: World) -> None:
    deployment = await world.stage(gzip.compress(IMAGE))
    await world.install(deployment)
    world.restart()
    await world.install(deployment)

    assert world.holds(IMAGE)


@pytest.mark.parametrize("name", PACKAGES)
async def test_an_image_too_large_for_the_slot_is_refused_with_both_sizes(world: World, name: str) -> None:
    image = IMAGE + bytes(3 * MIB)
    deployment = await world.stage(PACKAGES[name](image))

    found = await failure(world.install(deployment))
    assert found.code == Code.SPACE
    assert f"has {SLOT_BYTES} bytes (4 MiB)" in found.detail
    assert world.devices[A].read_bytes() == OLD
    if name in SIZE_KNOWN:
        assert f"the image {len(image)} bytes" in found.detail
        assert (world.boot.orders, world.untouched()) == ([], True)
    else:
        assert f"the image at least {5 * MIB} bytes" in found.detail
        assert world.boot.view() == Board(A, A, (FULL, BAD))


async def test_a_package_that_is_damaged_in_itself_leaves_the_slot_bad(world: World) -> None:
    package = bytearray(gzip.compress(IMAGE))
    package[-5] ^= 1
    deployment = await world.stage(bytes(package))

    assert (await failure(world.install(deployment))).code == Code.FORMAT
    assert world.boot.view() == Board(A, A, (FULL, BAD))


@pytest.mark.parametrize("at", [0.001, 0.5, 0.999])
async def test_a_staging_file_that_has_changed_since_is_found_out(world: World, at: float) -> None:
    package = gzip.compress(IMAGE, compresslevel=0)
    deployment = await world.stage(package)
    file = world.staging / "1.package"
    position = 64 + int(at * (len(package) - 128))
    with file.open("r+b") as staged:
        staged.seek(position)
        byte = staged.read(1)
        staged.seek(position)
        staged.write(bytes([byte[0] ^ 1]))

    found = await failure(world.install(deployment))
    assert found == Failure(Code.DIGEST, "staging file: no longer what was checked there")
    assert world.boot.view() == Board(A, A, (FULL, BAD))
    with pytest.raises(AssertionError, match="without a check"):
        await world.installer.activate(deployment)


@pytest.mark.parametrize("name", ["zip", "tar", "xz"])
async def test_a_staging_file_that_is_no_package_any_more_is_the_mediums_fault(world: World, name: str) -> None:
    package = PACKAGES[name](IMAGE)
    deployment = await world.stage(package)
    file = world.staging / "1.package"
    file.write_bytes(package[:300] + bytes(len(package) - 300))

    found = await failure(world.install(deployment))
    assert found == Failure(Code.DIGEST, "staging file: no longer what was checked there")


async def test_a_staging_file_that_only_now_is_too_large_is_the_mediums_fault(world: World) -> None:
    changed = gzip.compress(bytes(SLOT_BYTES + MIB))
    deployment = await world.stage(bytes(len(changed)))
    (world.staging / "1.package").write_bytes(changed)

    found = await failure(world.install(deployment))
    assert found == Failure(Code.DIGEST, "staging file: no longer what was checked there")


@pytest.mark.parametrize(
    ("manifest", "reason"),
    [
        (b'{"version": "9.9"}', "says version 9.9, the notice says 2-0-0"),
        (b'{"version": "2-0-0", "module": "app"}', "says module app, the notice says default"),
    ],
)
async def test_a_manifest_of_something_else_is_refused_before_anything_is_marked(
    world: World, manifest: bytes, reason: str
) -> None:
    deployment = await world.stage(tarred(gzip.compress(IMAGE), manifest=manifest))

    assert await failure(world.install(deployment)) == Failure(Code.FORMAT, f"manifest.json: {reason}")
    assert (world.boot.orders, world.untouched()) == ([], True)


async def test_a_manifest_of_what_was_announced_is_taken(world: World) -> None:
    manifest = b'{"version": "2-0-0", "module": "default"}'
    await world.install(await world.stage(tarred(IMAGE, manifest=manifest)))

    assert world.holds(IMAGE)


async def test_another_valid_package_in_the_staging_file_is_found_out_by_the_digest(world: World) -> None:
    right, other = tarred(IMAGE), tarred(b"x" + IMAGE[1:])
    deployment = await world.stage(right)
    (world.staging / "1.package").write_bytes(other)

    found = await failure(world.install(deployment))
    assert found == Failure(Code.DIGEST, "staging file: no longer what was checked there")
    assert world.boot.view() == Board(A, A, (FULL, BAD))


async def test_a_slot_that_does_not_give_back_what_was_written_is_found_out(world: World) -> None:
    deployment = await world.stage(gzip.compress(IMAGE))

    def spoil(what: str, path: Path) -> None:
        if what == "read":
            with path.open("r+b") as slot:
                slot.seek(MIB)
                slot.write(b"spoiled")

    world.disk.touched = spoil
    found = await failure(world.install(deployment))
    assert found == Failure(Code.MEDIUM, "slot b: does not give back what was written")


async def test_a_medium_that_fails_is_a_failure_of_the_medium(world: World) -> None:
    deployment = await world.stage(gzip.compress(IMAGE))

    def fail(what: str, path: Path) -> None:
        raise OSError(5, "Input/output error")

    world.disk.touched = fail
    assert await failure(world.install(deployment)) == Failure(Code.MEDIUM, "slot b: Input/output error")


async def test_a_canceled_installation_returns_after_the_chunk_in_flight(world: World) -> None:
    deployment = await world.stage(gzip.compress(IMAGE))
    loop = asyncio.get_running_loop()
    begun, written = asyncio.Event(), list[str]()
    may_go_on = threading.Event()

    def hold(what: str, path: Path) -> None:
        loop.call_soon_threadsafe(begun.set)
        assert may_go_on.wait(10)
        written.append(what)

    world.disk.touched = hold
    installing = asyncio.create_task(world.install(deployment))
    async with asyncio.timeout(10):
        await begun.wait()
    installing.cancel()
    done, _ = await asyncio.wait([installing], timeout=0.1)
    assert not done, "it returned while a chunk was being written"

    may_go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await installing
    assert written == ["write"]
    assert world.boot.view() == Board(A, A, (FULL, BAD))
    with pytest.raises(AssertionError, match="without a check"):
        await world.installer.activate(deployment)


# -- switching


async def test_a_proven_target_becomes_primary_with_fresh_attempts(world: World) -> None:
    deployment = await world.stage(gzip.compress(IMAGE))
    await world.install(deployment)
    await world.installer.activate(deployment)

    assert world.boot.view() == Board(A, B, (FULL, SlotView(B, True, 3, False)))


async def test_only_what_this_process_has_proven_is_activated(world: World) -> None:
    deployment = await world.stage(gzip.compress(IMAGE))
    with pytest.raises(AssertionError, match="without a check"):
        await world.installer.activate(deployment)
    await world.install(deployment)
    world.restart()

    with pytest.raises(AssertionError, match="without a check"):
        await world.installer.activate(deployment)
    assert world.boot.view() == Board(A, A, (FULL, BAD))


async def test_what_was_released_is_proven_no_more(world: World) -> None:
    deployment = await world.stage(gzip.compress(IMAGE))
    await world.install(deployment)
    world.installer.release()

    with pytest.raises(AssertionError, match="without a check"):
        await world.installer.activate(deployment)


async def test_a_switch_that_the_boot_loader_does_not_take_is_found_out(world: World) -> None:
    deployment = await world.stage(gzip.compress(IMAGE))
    await world.install(deployment)
    world.boot.listen(deaf_to="set_primary")

    found = await failure(world.installer.activate(deployment))
    assert found == Failure(Code.BOOT, "slot b: the boot loader does not hold it as primary")


async def test_restoring_makes_the_old_slot_primary_and_then_the_target_bad(world: World) -> None:
    deployment = await world.stage(gzip.compress(IMAGE))
    await world.install(deployment)
    await world.installer.activate(deployment)
    world.boot.power_cycle()
    world.boot.listen()

    await world.installer.restore(deployment)
    assert world.boot.orders == ["primary a 3", "bad b"]
    assert world.boot.view() == Board(B, A, (FULL, BAD))
    assert world.boot.power_cycle().slot == A


@pytest.mark.parametrize("deaf_to", ["set_primary", "mark_bad"])
async def test_a_restore_that_the_boot_loader_does_not_take_is_found_out(world: World, deaf_to: str) -> None:
    deployment = await world.stage(gzip.compress(IMAGE))
    await world.install(deployment)
    await world.installer.activate(deployment)
    world.boot.listen(deaf_to)

    assert (await failure(world.installer.restore(deployment))).code == Code.BOOT
