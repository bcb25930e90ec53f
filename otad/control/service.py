# SPDX-License-Identifier: Apache-2.0
"""What the control socket asks of the daemon: the daemon is one, and so is what the socket's tests talk to.

Orders return words for the person who gave them: what was done, and what happens next.
"""

from dataclasses import dataclass
from typing import Protocol, TypeAlias

from otad.core.model import ModuleName

JSON: TypeAlias = dict[str, "JSON"] | list["JSON"] | str | int | float | bool | None


class Objection(Exception):  # noqa: N818  # not an error: the answer is no
    """An order that is refused in this state; the text says why."""


@dataclass(frozen=True, slots=True)
class InstallRequest:
    """`otad install`: a package from a local file (file://) or any server. `size` in bytes, where it is known."""

    url: str
    module: ModuleName
    version: str
    size: int | None
    sha256: str  # lower case


class Service(Protocol):
    """What can be asked of the daemon.

    Each order raises `Objection` where the state does not allow it, and `UpdateError` where the machine does not.
    """

    async def status(self) -> dict[str, JSON]:
        """The document of `otad status --json`."""
        ...

    async def changed(self) -> None:
        """Return when the status may have changed since the call began."""
        ...

    async def history(self) -> list[dict[str, JSON]]:
        """Past deployments, the oldest first."""
        ...

    async def check(self) -> str:
        """Ask the platform now; its answer in words."""
        ...

    async def install(self, request: InstallRequest) -> str: ...

    async def cancel(self) -> str: ...

    async def retry(self) -> str: ...

    async def reboot(self) -> str: ...

    async def mark_good(self) -> str: ...

    async def rollback(self) -> str: ...
