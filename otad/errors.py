# SPDX-License-Identifier: Apache-2.0
"""What can go wrong with an update, as values.

An expected failure is an `UpdateError` that carries a `Failure`: one stable word that servers and tests know, and a
detail for a person. A bug is not an `UpdateError`; nobody catches it, the daemon ends and the state file resumes it.
"""

from dataclasses import dataclass
from enum import StrEnum


class Code(StrEnum):
    """The stable words. Words are only ever added: servers, scripts and state files know them."""

    HTTP_STATUS = "http_status"  # the server answered, and waiting does not cure the answer
    URL = "url"  # a URL that otad does not fetch from, by rule
    CONTENT = "content"  # the server's bytes are not those of the notice (another size, another object)
    DIGEST = "digest"  # what the medium holds is not what the notice says
    FORMAT = "format"  # a package that cannot be unpacked
    SPACE = "space"  # a slot or staging area that is too small
    MEDIUM = "medium"  # a medium that does not take or give back bytes
    SLOT = "slot"  # a target that must not be written
    BOOT = "boot"  # the boot loader's store cannot be read or written
    INSTALL = "install"  # an installer other than the slots said no
    VERSION = "version"  # the new system says another version than the notice
    HEALTH = "health"  # a health check said no
    SESSION = "session"  # the new system does not reach the platform
    FELL_BACK = "fell_back"  # the boot loader returned to the old slot by itself
    SIGNATURE = "signature"  # a notice whose signature is missing or wrong
    UNSUPPORTED = "unsupported"  # a notice otad understands and cannot carry out
    MALFORMED = "malformed"  # a notice with a field that is wrong
    CANCELED = "canceled"  # ended by hand
    ROLLED_BACK = "rolled_back"  # returned to the old slot by hand
    UNKNOWN = "unknown"  # a word of a newer otad, read back after a rollback

    @classmethod
    def _missing_(cls, value: object) -> "Code":
        return cls.UNKNOWN


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an update did not go on: `code` for programs, `detail` (what, where, why) for a person."""

    code: Code
    detail: str

    def __str__(self) -> str:
        return self.detail


class UpdateError(Exception):
    """An expected failure of an update."""

    def __init__(self, code: Code, detail: str) -> None:
        super().__init__(detail)
        self.failure = Failure(code, detail)


class ConfigurationError(Exception):
    """A configuration that cannot be used; `problems` has a line for each."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems
