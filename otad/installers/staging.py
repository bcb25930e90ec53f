# SPDX-License-Identifier: Apache-2.0
"""The staging file: where a package lands that is not a slot's image as it stands.

One file for each deployment, `ID.package`, in a directory that all systems of the gateway mount. Its space is taken
when it is made, so that a transfer ends for want of space before it begins. A package of several files lies in it as
one row of bytes; where a program wants them one by one they are put into `ID.files` beside it.
"""

import errno
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

from otad.core.model import Deployment
from otad.durable import ALIGNMENT, Disk, Place, pages
from otad.errors import Code, UpdateError
from otad.threads import in_thread
from otad.units import format_size

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

RESERVE_BYTES = 4 << 20
"""Left free beside what otad writes, so that the state can always be saved."""
WINDOW_BYTES = 1 << 20


class Staging:
    """The staging files. The one that is open is the deployment's; it stays open until `release`."""

    def __init__(self, disk: Disk, directory: Path) -> None:
        self.directory = directory
        self._disk = disk
        self._open: dict[Path, Place] = {}

    def path(self, deployment: Deployment) -> Path:
        """This deployment's staging file."""
        return self.directory / f"{deployment.id}.package"

    def tree(self, deployment: Deployment) -> Path:
        """Where the files of a package of several may be put, each under its name."""
        return self.directory / f"{deployment.id}.files"

    async def open(self, deployment: Deployment) -> Place:
        """The staging file, with its space taken. Asked again it is the same one.

        What is in it up to the deployment's checkpoint is still there. UpdateError SPACE, MEDIUM.
        """
        return await in_thread(self._opened, deployment)

    def release(self) -> None:
        """Close what is open. No transfer and no installation may be running."""
        while self._open:
            self._open.popitem()[1].close()

    def tidy(self, deployment: Deployment | None) -> None:
        """Remove everything that is not this deployment's."""
        keep = {self.path(deployment), self.tree(deployment)} if deployment is not None else set[Path]()
        for name in self._disk.names(self.directory):
            if self.directory / name not in keep:
                self._disk.remove_tree(self.directory / name)

    def _opened(self, deployment: Deployment) -> Place:
        path = self.path(deployment)
        if path in self._open:
            return self._open[path]
        size = deployment.notice.identity.size
        there = size  # its space was taken when it was made
        try:
            if deployment.checkpoint == 0:
                there = 0
                self._disk.remove(path)  # worth nothing, and in the way of the space that is needed
            free = self._disk.free_bytes(self.directory)
            if free + there < size + RESERVE_BYTES:
                raise UpdateError(
                    Code.SPACE,
                    f"{self.directory}: the package has {format_size(size)} ({size} bytes), free are "
                    f"{format_size(free)} less {format_size(RESERVE_BYTES)} reserve",
                )
            self._open[path] = self._disk.create_place(path, size)
        except OSError as error:
            raise storage_error(str(path), error) from error
        return self._open[path]


def storage_error(thing: str, error: OSError) -> UpdateError:
    """What a storage said, as the failure it is: SPACE or MEDIUM."""
    code = Code.SPACE if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else Code.MEDIUM
    return UpdateError(code, f"{thing}: {error.strerror or error}")


class PlaceFile(io.RawIOBase):
    """`size` bytes of a place, from its byte `begin` on, as a file to read from the medium."""

    def __init__(self, place: Place, size: int, begin: int = 0) -> None:
        super().__init__()
        self._place = place
        self._begin = begin
        self._end = begin + size
        self._position = begin
        self._window = pages(WINDOW_BYTES)
        self._window_at = 0
        self._window_bytes = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position - self._begin

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: self._begin, os.SEEK_CUR: self._position, os.SEEK_END: self._end}[whence]
        self._position = max(self._begin, base + offset)
        return self.tell()

    def readinto(self, into: "WriteableBuffer") -> int:
        view = memoryview(into).cast("B")
        begin = self._position - self._window_at
        if not 0 <= begin < self._window_bytes:
            self._window_at = self._position - self._position % ALIGNMENT
            count = self._place.read_into(self._window_at, self._window)
            self._window_bytes = max(0, min(count, self._end - self._window_at))
            begin = self._position - self._window_at
        count = max(0, min(len(view), self._window_bytes - begin))
        view[:count] = self._window[begin : begin + count]
        self._position += count
        return count
