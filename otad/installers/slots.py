# SPDX-License-Identifier: Apache-2.0
"""A/B slots: prepare the target, open the places, carry a staging file into the target, switch, switch back.

The rules kept here:

- Before the first byte the booted slot is primary, good and has its attempts, and the target is marked bad; both are
  read back. The target stays bad until `activate`.
- The target is opened exclusively, once, and stays open from the first byte to `activate`; never by another path.
- `activate` follows only a check made by this process on that open target.
- Whether a package fits is decided before anything is written or marked, wherever its size is known by then.
"""

import asyncio
import errno
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
from otad.core.model import Board, Deployment, DeploymentId, Slot
from otad.core.step import is_left_by_order
from otad.durable import ALIGNMENT, Disk, Place, pages
from otad.errors import Code, UpdateError
from otad.installers.format import HEAD_BYTES, sniff
from otad.telemetry import Progress
from otad.threads import in_stoppable_thread, in_thread
from otad.units import format_size

CHUNK_BYTES = 1 << 20
SYNC_BYTES = 8 << 20
STAGING_RESERVE_BYTES = 4 << 20
"""Left free beside a staging file, so that the state can always be saved."""

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

    from otad.installers.image import Image

log = logging.getLogger(__name__)


class SlotInstaller:
    """The system image's installer. Also the `Places` of a transfer."""

    def __init__(self, disk: Disk, boot: BootControl, devices: dict[Slot, Path], staging: Path, attempts: int) -> None:
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
        return await in_thread(self._staged, deployment)

    def prove(self, deployment: Deployment) -> None:
        """The open target holds, on its medium, exactly what the notice says."""
        self._proven = deployment.id

    # -- installing

    async def install(self, deployment: Deployment, progress: Callable[[Progress], None]) -> None:
        """Unpack the staging file into the target, and read the target back.

        Safe to run again from the start. When canceled, returns after the chunk in flight has been written.
        """
        loop = asyncio.get_running_loop()

        def tell(value: Progress) -> None:
            loop.call_soon_threadsafe(progress, value)

        await in_stoppable_thread(self._install, deployment, tell)
        self.prove(deployment)

    def _install(self, stop: threading.Event, deployment: Deployment, progress: Callable[[Progress], None]) -> None:
        # Imported here: the archive libraries cost memory that an idle daemon does not need.
        from otad.installers.image import HashingReader, open_image  # noqa: PLC0415

        identity = deployment.notice.identity
        assert identity.digest is not None
        staged = io.BufferedReader(_PlaceFile(self._staged(deployment), identity.size))
        try:
            head = staged.read(HEAD_BYTES)
            reader = HashingReader(staged, identity.digest.method)
            image = open_image(reader, sniff(head), identity.size)
            target = self._target(deployment, image.size)
            written, digest = _write(stop, deployment, target, image, progress)
            reader.drain()
            if reader.hexdigest() != identity.digest.hex:
                raise UpdateError(Code.DIGEST, "staging file: no longer what was checked there")
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

    def tidy(self, deployment: Deployment | None) -> None:
        """Remove the staging files that are not this deployment's."""
        keep = self._staging_file(deployment).name if deployment is not None else None
        for name in self._disk.names(self._staging):
            if name != keep:
                self._disk.remove(self._staging / name)

    # -- opening

    def _staging_file(self, deployment: Deployment) -> Path:
        return self._staging / f"{deployment.id}.package"

    def _staged(self, deployment: Deployment) -> Place:
        path = self._staging_file(deployment)
        if path in self._open:
            return self._open[path]
        size = deployment.notice.identity.size
        there = size  # its space was taken when it was made
        try:
            if deployment.checkpoint == 0:
                there = 0
                self._disk.remove(path)  # worth nothing, and in the way of the space that is needed
            free = self._disk.free_bytes(self._staging)
            if free + there < size + STAGING_RESERVE_BYTES:
                raise UpdateError(
                    Code.SPACE,
                    f"{self._staging}: the package has {format_size(size)} ({size} bytes), free are "
                    f"{format_size(free)} less {format_size(STAGING_RESERVE_BYTES)} reserve",
                )
            self._open[path] = self._disk.create_place(path, size)
        except OSError as error:
            code = Code.SPACE if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else Code.MEDIUM
            raise UpdateError(code, f"{path}: {error.strerror}") from error
        return self._open[path]

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


def too_large(deployment: Deployment, size: int, room: int, at_least: str = "") -> UpdateError:
    """The image is larger than the target; both sizes in bytes."""
    return UpdateError(
        Code.SPACE,
        f"slot {deployment.target}: has {room} bytes ({format_size(room)}), the image {at_least}{size} bytes"
        f" ({format_size(size)})",
    )


class _StoppedError(Exception):
    """The installation was canceled: nobody hears this but the canceled caller."""


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
            raise _StoppedError
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
            raise _StoppedError
        count = min(target.read_into(done, buffer), size - done)
        if count == 0:
            raise UpdateError(Code.MEDIUM, f"slot {deployment.target}: ends at {done} of {size} bytes")
        digest.update(buffer[:count])
        done += count
        progress(Progress(deployment.id, bytes=size, total=size, checked=done))
    if digest.hexdigest() != wanted:
        raise UpdateError(Code.MEDIUM, f"slot {deployment.target}: does not give back what was written")


class _PlaceFile(io.RawIOBase):
    """The first `size` bytes of a place as a file to read, from the medium."""

    def __init__(self, place: Place, size: int) -> None:
        super().__init__()
        self._place = place
        self._size = size
        self._position = 0
        self._window = pages(CHUNK_BYTES)
        self._window_at = 0
        self._window_bytes = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, into: "WriteableBuffer") -> int:
        view = memoryview(into).cast("B")
        begin = self._position - self._window_at
        if not 0 <= begin < self._window_bytes:
            self._window_at = self._position - self._position % ALIGNMENT
            count = self._place.read_into(self._window_at, self._window)
            self._window_bytes = max(0, min(count, self._size - self._window_at))
            begin = self._position - self._window_at
        count = max(0, min(len(view), self._window_bytes - begin))
        view[:count] = self._window[begin : begin + count]
        self._position += count
        return count
