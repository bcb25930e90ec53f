# SPDX-License-Identifier: Apache-2.0
"""A/B slots: prepare the target, open the places, carry a staging file into the target, switch, switch back.

The rules kept here:

- Before the first byte the booted slot is primary, good and has its attempts, and the target is marked bad; both are
  read back. The target stays bad until `activate`.
- The target is opened exclusively, once, and stays open from the first byte to `activate`; never by another path.
- `activate` follows only a check made by this process on that open target.
- Whether a package fits is decided before anything is written or marked, wherever its size is known by then.
"""

import hashlib
import io
import logging
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from otad.boot.control import BootControl
from otad.core.model import Board, Deployment, DeploymentId, Digest, Slot
from otad.core.step import is_left_by_order
from otad.durable import Disk, Place, pages
from otad.errors import Code, UpdateError
from otad.installers.format import HEAD_BYTES, sniff
from otad.installers.installer import Stopped, from_thread
from otad.installers.staging import PlaceFile, Staging
from otad.telemetry import Progress
from otad.threads import in_stoppable_thread, in_thread
from otad.units import format_size

CHUNK_BYTES = 1 << 20
SYNC_BYTES = 8 << 20

if TYPE_CHECKING:
    from otad.installers.image import Image
    from otad.installers.stream import HashingReader

log = logging.getLogger(__name__)


class SlotInstaller:
    """The system image's installer. Also the `Places` of a transfer."""

    def __init__(
        self, disk: Disk, boot: BootControl, devices: dict[Slot, Path], staging: Staging, attempts: int
    ) -> None:
        self._disk = disk
        self._boot = boot
        self._devices = devices
        self._staging = staging
        self._attempts = attempts
        self._open: dict[Path, Place] = {}
        self._proven: DeploymentId | None = None

    # -- places of a transfer

    async def open_slot(self, deployment: Deployment) -> Place:
        """The target, for a raw image: prepared and opened. Safe to ask again."""
        return await in_thread(self._target, deployment, deployment.notice.identity.size)

    async def open_staging(self, deployment: Deployment) -> Place:
        """The staging file, with its space taken. What an earlier try left in it is still there."""
        return await self._staging.open(deployment)

    def prove(self, deployment: Deployment) -> None:
        """The open target holds, on its medium, exactly what the notice says."""
        self._proven = deployment.id

    # -- installing

    async def install(self, deployment: Deployment, progress: Callable[[Progress], None]) -> None:
        """Unpack the staging file into the target, and read the target back.

        Safe to run again from the start. When canceled, returns after the chunk in flight has been written.
        """
        staged = await self._staging.open(deployment)
        await in_stoppable_thread(self._install, staged, deployment, from_thread(progress))
        self.prove(deployment)

    def _install(
        self, stop: threading.Event, place: Place, deployment: Deployment, progress: Callable[[Progress], None]
    ) -> None:
        # Imported here: the archive libraries cost memory that an idle daemon does not need.
        from otad.installers.image import open_image  # noqa: PLC0415
        from otad.installers.stream import HashingReader  # noqa: PLC0415

        identity = deployment.notice.identity
        assert identity.digest is not None
        staged = io.BufferedReader(PlaceFile(place, identity.size))
        try:
            head = staged.read(HEAD_BYTES)
            reader = HashingReader(staged, identity.digest.method)
            try:
                image = open_image(reader, sniff(head), identity.size)
                if image.manifest is not None:
                    image.manifest.check_notice(identity)
                target = self._target(deployment, image.size)
                written, digest = _write(stop, deployment, target, image, progress)
            except UpdateError as error:
                if error.failure.code in (Code.FORMAT, Code.SPACE):
                    _require_intact(reader, identity.digest)  # else it is the medium's fault and not the package's
                raise
            _require_intact(reader, identity.digest)
            _read_back(stop, deployment, target, written, digest, progress)
        except OSError as error:
            raise UpdateError(Code.MEDIUM, f"slot {deployment.target}: {error.strerror}") from error

    # -- switching

    async def activate(self, deployment: Deployment) -> None:
        """Make the target primary for the next boot. Only after `prove`, by this process, on this open target."""
        assert self._proven == deployment.id, "activate without a check by this process"
        await in_thread(self._activate, deployment)

    def _activate(self, deployment: Deployment) -> None:
        self._boot.set_primary(deployment.target, self._attempts)
        board = self._boot.view()
        view = board.view(deployment.target)
        if board.primary != deployment.target or view is None or not view.good or view.attempts_left < 1:
            raise UpdateError(Code.BOOT, f"slot {deployment.target}: the boot loader does not hold it as primary")

    async def restore(self, deployment: Deployment) -> None:
        """Make the old slot primary with full attempts, then mark the target bad: the switch undone.

        A confirmed system that is left by order stays good until the other one runs: it is what there is.
        """
        await in_thread(self._restore, deployment)

    def _restore(self, deployment: Deployment) -> None:
        # In this order every state in between boots the old slot.
        self._boot.set_primary(deployment.old, self._attempts)
        board = self._boot.view()
        stays_good = is_left_by_order(deployment) and board.booted == deployment.target
        if not stays_good:
            self._boot.mark_bad(deployment.target)
            board = self._boot.view()
        view = board.view(deployment.target)
        if board.primary != deployment.old or view is None or view.good is not stays_good:
            raise UpdateError(Code.BOOT, f"slot {deployment.old}: the boot loader does not hold it as primary")

    # -- closing

    def release(self) -> None:
        """Close what is open; nothing is proven any more. No transfer and no installation may be running."""
        self._proven = None
        while self._open:
            self._open.popitem()[1].close()
        self._staging.release()

    def tidy(self, deployment: Deployment | None) -> None:
        """Remove the staging files that are not this deployment's."""
        self._staging.tidy(deployment)

    # -- opening

    def _target(self, deployment: Deployment, size: int | None) -> Place:
        """The target prepared and open; `size` of the image where it is known."""
        path = self._devices[deployment.target]
        if path in self._open:
            return self._open[path]
        board = self._boot.view()
        if board.booted != deployment.old:
            raise UpdateError(Code.SLOT, f"slot {deployment.old}: not the booted one, that is {board.booted}")
        self._require_not_running(deployment.target)
        try:
            place = self._disk.open_place(path)
        except OSError as error:
            raise UpdateError(Code.MEDIUM, f"slot {deployment.target}: {path}: {error.strerror}") from error
        try:
            if size is not None and size > place.bytes:
                raise too_large(deployment, size, place.bytes)
            self._prepare(board, deployment)
        except BaseException:
            place.close()
            raise
        if not place.from_medium:
            log.warning("%s: in memory: what is read back proves nothing about a medium", path)
        self._open[path] = place
        return place

    def _require_not_running(self, target: Slot) -> None:
        """Never the running system, by whatever name it goes."""
        try:
            status = os.stat(self._devices[target])
            others = [os.stat(path) for slot, path in self._devices.items() if slot != target]
        except OSError as error:
            raise UpdateError(Code.MEDIUM, f"slot {target}: {error.filename}: {error.strerror}") from error
        if stat.S_ISBLK(status.st_mode) and status.st_rdev == os.stat("/").st_dev:
            raise UpdateError(Code.SLOT, f"slot {target}: {self._devices[target]} is the running root")
        for other in others:
            same_file = (other.st_dev, other.st_ino) == (status.st_dev, status.st_ino)
            same_device = stat.S_ISBLK(status.st_mode) and other.st_rdev == status.st_rdev
            if same_file or same_device:
                raise UpdateError(Code.SLOT, f"slot {target}: {self._devices[target]} is another slot as well")

    def _prepare(self, board: Board, deployment: Deployment) -> None:
        """Old slot primary, good, attempts full; target bad; all read back.

        The target is marked even where it looks bad: a mark that could not be synced looks so too, until the power
        fails. Nothing else is written that is so already.
        """
        old = board.view(deployment.old)
        ready = old is not None and old.good and old.attempts_left >= self._attempts
        if board.primary != deployment.old or not ready:
            # Not mark-good: that the slot is booted does not make it one that has passed its health checks.
            self._boot.set_primary(deployment.old, self._attempts)
        self._boot.mark_bad(deployment.target)
        board = self._boot.view()
        old, target = board.view(deployment.old), board.view(deployment.target)
        ready = old is not None and old.good and old.attempts_left >= self._attempts
        if board.primary != deployment.old or not ready or target is None or target.good:
            raise UpdateError(Code.BOOT, f"slot {deployment.target}: the boot loader does not hold it as bad")


def _require_intact(reader: "HashingReader", digest: Digest) -> None:
    """Read what is left of the staging file. UpdateError DIGEST if it is not what it should be."""
    reader.drain()
    if reader.hexdigest() != digest.hex:
        raise UpdateError(Code.DIGEST, "staging file: no longer what was checked there")


def too_large(deployment: Deployment, size: int, room: int, at_least: str = "") -> UpdateError:
    """The image is larger than the target; both sizes in bytes."""
    return UpdateError(
        Code.SPACE,
        f"slot {deployment.target}: has {room} bytes ({format_size(room)}), the image {at_least}{size} bytes"
        f" ({format_size(size)})",
    )


def _write(
    stop: threading.Event,
    deployment: Deployment,
    target: Place,
    image: "Image",
    progress: Callable[[Progress], None],
) -> tuple[int, str]:
    """Write the image, durably; its size and the SHA-256 of what was written."""
    buffer, digest, written, synced = pages(CHUNK_BYTES), hashlib.sha256(), 0, 0
    for chunk in image.chunks(CHUNK_BYTES):
        if stop.is_set():
            raise Stopped
        if written + len(chunk) > target.bytes:
            raise too_large(deployment, written + len(chunk), target.bytes, "at least ")
        buffer[: len(chunk)] = chunk  # page-aligned, as direct writes want it
        target.write(written, buffer[: len(chunk)])
        digest.update(chunk)
        written += len(chunk)
        if written - synced >= SYNC_BYTES:
            target.sync()
            synced = written
            progress(Progress(deployment.id, bytes=written, total=image.size or 0))
    target.sync()
    return written, digest.hexdigest()


def _read_back(
    stop: threading.Event,
    deployment: Deployment,
    target: Place,
    size: int,
    wanted: str,
    progress: Callable[[Progress], None],
) -> None:
    """Compare what the medium holds with what was written."""
    buffer, digest, done = pages(CHUNK_BYTES), hashlib.sha256(), 0
    while done < size:
        if stop.is_set():
            raise Stopped
        count = min(target.read_into(done, buffer), size - done)
        if count == 0:
            raise UpdateError(Code.MEDIUM, f"slot {deployment.target}: ends at {done} of {size} bytes")
        digest.update(buffer[:count])
        done += count
        progress(Progress(deployment.id, bytes=size, total=size, checked=done))
    if digest.hexdigest() != wanted:
        raise UpdateError(Code.MEDIUM, f"slot {deployment.target}: does not give back what was written")
