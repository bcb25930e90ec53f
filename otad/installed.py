# SPDX-License-Identifier: Apache-2.0
"""How the directories are called that the installer of files puts beside each other, `VERSION.otad-DEPLOYMENT`.

The name says whose a directory is and what is in it: only what has such a name is ever removed, and the version that
runs is that of the name to which the link points.
"""

import re

from otad.core.model import Deployment

PARTIAL = ".partial"
"""What a directory's name ends with while it is being filled."""
_NAME = re.compile(r"([A-Za-z0-9._-]{1,64})\.otad-[0-9a-f-]{1,40}(\.partial)?")


def directory_name(deployment: Deployment) -> str:
    """The name of what this deployment installs."""
    return f"{deployment.notice.identity.version}.otad-{deployment.id}"


def is_ours(name: str) -> bool:
    """Made by otad, whole or in part."""
    return _NAME.fullmatch(name) is not None


def version_in(name: str) -> str | None:
    """The version that a directory of this name holds; None where it is none of ours, or was never finished."""
    match = _NAME.fullmatch(name)
    return match[1] if match is not None and match[2] is None else None
