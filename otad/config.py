# SPDX-License-Identifier: Apache-2.0
"""The configuration file: what may stand in it, and what it says.

The settings classes below are the one description of the format. Each field names its kind (type, range, choices), its
default as one would write it, and why one would set it; reading, suggestions for unknown keys, the manual page and the
check of `config.example.toml` all come from `SECTIONS`. A field is called as its key, with `_s` where the key is a
duration.

The file is TOML, UTF-8, at most 1 MiB. Sizes may be written "8 MiB" and durations "15 min"; relative paths are relative
to the file; "" means not set wherever it is the default.

`load` never raises for what the file contains. Whatever is wrong leaves its default and becomes a `Problem`, so that a
daemon with half a configuration can still mark good, confirm and roll back. Secrets never appear in problems or in a
settings object's repr. This module only reads.
"""

# ruff: noqa: RUF009  # _key() is a dataclasses.field() that also says what the file may hold

import os
import re
import stat
import tomllib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, TypeAlias

from otad.errors import ConfigurationError
from otad.units import format_duration, format_size, parse_duration, parse_size

DEFAULT_FILE = Path("/etc/otad/config.toml")
MAX_FILE_BYTES = 1 << 20
MAX_SECRET_BYTES = 4096
_PATH_BYTES = 4095  # limits.h: PATH_MAX, without the NUL
CREDENTIAL = "device.secret"  # the name under which the service may be given the device secret (systemd.exec(5))


class SignMethod(StrEnum):
    """How the password is signed."""

    HMAC_SHA256 = "hmacsha256"
    HMAC_SHA1 = "hmacsha1"
    HMAC_MD5 = "hmacmd5"


class MqttVersion(StrEnum):
    """Which MQTT is spoken."""

    V3_1_1 = "3.1.1"
    V5 = "5"


class Registration(StrEnum):
    """How a device that has only its product's secret gets one of its own."""

    MQTT = "mqtt"  # registered with the platform beforehand: a device secret
    MQTT_TOKEN = "mqtt-token"  # noqa: S105  # not registered beforehand: a client id and a token
    HTTPS = "https"  # as mqtt, by another way


class Format(StrEnum):
    """Whether packages are unpacked."""

    AUTO = "auto"
    RAW = "raw"


class InstallerKind(StrEnum):
    """What a module is made of."""

    SLOTS = "slots"
    FILES = "files"
    COMMAND = "command"


class Backend(StrEnum):
    """The boot loaders."""

    UBOOT = "uboot"
    GRUB = "grub"
    SYSTEMD_BOOT = "systemd-boot"
    RASPBERRYPI = "raspberrypi"
    COMMAND = "command"
    SIMULATED = "simulated"


# The file's format is ahead of the program: what is listed in the enumerations and not here is refused by name.
AVAILABLE_BACKENDS = (Backend.SIMULATED,)


@dataclass(frozen=True, slots=True)
class OsReleaseVersion:
    """A module's version is the value of `key` in os-release(5)."""

    key: str


@dataclass(frozen=True, slots=True)
class FileVersion:
    """A module's version is what `path` holds."""

    path: Path


@dataclass(frozen=True, slots=True)
class CommandVersion:
    """A module's version is what `path` prints."""

    path: Path


@dataclass(frozen=True, slots=True)
class SlotVersion:
    """A module's version stands in the booted slot itself (simulated board)."""


@dataclass(frozen=True, slots=True)
class InstalledVersion:
    """A module's version is that of the directory to which its link points (installer `files`)."""


VersionSource: TypeAlias = OsReleaseVersion | FileVersion | CommandVersion | SlotVersion | InstalledVersion


class Kind(Protocol):
    """What a key's value may be."""

    @property
    def says(self) -> str:
        """What is valid, to go behind "must be"."""
        ...

    def parse(self, value: object, base: Path) -> object:
        """`value` as the program uses it; ValueError says what would be valid. Paths are relative to `base`."""
        ...


@dataclass(frozen=True, slots=True)
class Text:
    """A string that matches `pattern` as a whole."""

    pattern: str
    says: str

    def parse(self, value: object, base: Path) -> str:
        if not isinstance(value, str) or not re.fullmatch(self.pattern, value, re.ASCII):
            raise ValueError(f"must be {self.says}")
        return value


@dataclass(frozen=True, slots=True)
class Choice:
    """One of a closed set of words."""

    words: type[StrEnum]

    @property
    def says(self) -> str:
        return f"one of {', '.join(self.words)}"

    def parse(self, value: object, base: Path) -> StrEnum:
        if not isinstance(value, str) or value not in set(self.words):
            raise ValueError(f"must be {self.says}")
        return self.words(value)


@dataclass(frozen=True, slots=True)
class Flag:
    """Yes or no."""

    says: str = "true or false"

    def parse(self, value: object, base: Path) -> bool:
        if not isinstance(value, bool):
            raise ValueError(f"must be {self.says}")  # noqa: TRY004  # one exception for all that is wrong with a value
        return value


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole number from `low` to `high`."""

    low: int
    high: int

    @property
    def says(self) -> str:
        return f"a whole number between {self.low} and {self.high}"

    def parse(self, value: object, base: Path) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not self.low <= value <= self.high:
            raise ValueError(f"must be {self.says}")
        return value


@dataclass(frozen=True, slots=True)
class Duration:
    """Seconds from `low_s` to `high_s`; a bare number is seconds."""

    low_s: float
    high_s: float

    @property
    def says(self) -> str:
        return f"a duration between {format_duration(self.low_s)} and {format_duration(self.high_s)}"

    def parse(self, value: object, base: Path) -> float:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError(f'must be {self.says}, such as "15 min"')  # noqa: TRY004
        seconds = parse_duration(value) if isinstance(value, str) else value
        if not self.low_s <= seconds <= self.high_s:  # NaN is not between anything
            raise ValueError(f"must be between {format_duration(self.low_s)} and {format_duration(self.high_s)}")
        return float(seconds)


@dataclass(frozen=True, slots=True)
class Size:
    """Bytes from `low` to `high`; a bare number is bytes."""

    low: int
    high: int

    @property
    def says(self) -> str:
        return f"a size between {format_size(self.low)} and {format_size(self.high)}"

    def parse(self, value: object, base: Path) -> int:
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise ValueError(f'must be {self.says}, such as "8 MiB"')  # noqa: TRY004
        size = parse_size(value) if isinstance(value, str) else value
        if not self.low <= size <= self.high:
            raise ValueError(f"must be between {format_size(self.low)} and {format_size(self.high)}")
        return size


@dataclass(frozen=True, slots=True)
class File:
    """A path, made absolute. Links are not followed: those in /dev/disk move while the system runs."""

    limit: int = _PATH_BYTES

    @property
    def says(self) -> str:
        return "a path" if self.limit == _PATH_BYTES else f"a path of at most {self.limit} bytes"

    def parse(self, value: object, base: Path) -> Path:
        if not isinstance(value, str) or not value or not value.isprintable():
            raise ValueError(f"must be {self.says}")
        path = base / value
        if len(str(path).encode(errors="surrogateescape")) > self.limit:
            raise ValueError(f"must be a path of at most {self.limit} bytes, counted from /")
        return path


@dataclass(frozen=True, slots=True)
class Words:
    """A list of strings that match `pattern`."""

    pattern: str
    says: str

    def parse(self, value: object, base: Path) -> tuple[str, ...]:
        if not isinstance(value, list) or len(value) > 64:
            raise ValueError(f"must be {self.says}")
        return tuple(Text(self.pattern, self.says).parse(word, base) for word in value)


@dataclass(frozen=True, slots=True)
class Command:
    """A program and its arguments. A program with a slash in its name is a path, any other is looked for in PATH."""

    says: str = 'a list of program and arguments, such as ["systemctl", "reboot"]'

    def parse(self, value: object, base: Path) -> tuple[str, ...]:
        words = Words(r"[^\x00-\x1f\x7f]{1,4095}", self.says).parse(value, base)
        if words and "/" in words[0]:
            return (str(base / words[0]), *words[1:])
        return words


@dataclass(frozen=True, slots=True)
class Version:
    """Where the version of a module is read."""

    says: str = "os-release:KEY, file:PATH, command:PATH, installed or slot"

    def parse(self, value: object, base: Path) -> VersionSource:
        scheme, colon, rest = value.partition(":") if isinstance(value, str) else ("", "", "")
        match scheme:
            case "os-release" if re.fullmatch(r"[A-Z][A-Z0-9_]{0,63}", rest):
                return OsReleaseVersion(rest)
            case "file" if rest:
                return FileVersion(File().parse(rest, base))
            case "command" if rest:
                return CommandVersion(File().parse(rest, base))
            case "installed" if not colon:
                return InstalledVersion()
            case "slot" if not colon:
                return SlotVersion()
            case _:
                raise ValueError(f"must be {self.says}")


Default: TypeAlias = str | int | bool | list[str] | None


@dataclass(frozen=True, slots=True)
class Key:
    """One key of the file: everything there is to say about it."""

    kind: Kind
    default: Default  # as it would be written; None: there is none
    why: str
    example: str = ""  # a value to show where the default shows nothing
    required: bool = False
    secret: bool = False
    name: str = ""  # in the file
    field: str = ""  # in the settings class

    def parse(self, value: object, base: Path) -> object:
        if value == "" == self.default and not self.required:
            return self.value_of_default(base)
        return self.kind.parse(value, base)

    def value_of_default(self, base: Path) -> object:
        if self.default == "":
            return "" if isinstance(self.kind, Text) else None
        return self.kind.parse(self.default, base)


def _key(kind: Kind, default: Default, why: str, **more: Any) -> Any:
    key = Key(kind, default, why, **more)
    if default is None:
        return field(metadata={"key": key})
    return field(default=key.value_of_default(DEFAULT_FILE.parent), repr=not key.secret, metadata={"key": key})


# systemctl must not take a unit, nor a program its first argument, for an option; nobody means a control character.
_UNITS = Words(r"[A-Za-z0-9:_.\\@][A-Za-z0-9:_.\\@-]{0,254}", "a list of systemd units, such as app.service")
_COMMAND = Command()
_SECRET = Text(r"[!-~]([ -~]{0,4094}[!-~])?", "printable ASCII of at most 4096 characters")
_HOST = Text(
    r"(?=.{1,253}\Z)([A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?\.?|(?=.*:.*:)[0-9A-Fa-f:.]+(%[\w.-]{1,15})?)",
    "a host name or address of at most 253 characters, without scheme and port",
)
_HOST_PORT = Text(
    r"(?=.{1,253}(:|\Z))[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?(:[0-9]{1,5})?", "HOST or HOST:PORT, without scheme"
)
_PROXY = Text(r"https?://[!-.0-~]{1,1000}/?", "http://HOST:PORT")
_NAME_32 = Text(r"[A-Za-z0-9._-]{1,32}", "1 to 32 characters of A-Z a-z 0-9 . _ -")
_LINK = Text(r"(?!\.{1,2}\Z)[A-Za-z0-9._-]{1,64}", "a file name: 1 to 64 characters of A-Z a-z 0-9 . _ -")
_NAME_64 = Text(r"[A-Za-z0-9._-]{1,64}", "1 to 64 characters of A-Z a-z 0-9 . _ -")


@dataclass(frozen=True, slots=True)
class DeviceSettings:
    """Who this gateway is, and how it proves it. Exactly one credential is needed."""

    product_key: str = _key(
        Text(r"[A-Za-z0-9]{1,64}", "1 to 64 letters and digits"),
        "",
        "the product, as the console shows it; an X.509 certificate tells it by itself",
        example="a1B2c3D4e5F",
    )
    device_name: str = _key(
        Text(r"[A-Za-z0-9_.:@-]{4,32}", "4 to 32 characters of A-Z a-z 0-9 - _ @ . :"),
        "",
        "the device, as the console shows it; an X.509 certificate tells it by itself",
        example="gateway-0001",
    )
    client_id: str = _key(
        Text(r"[!-{}~]{1,64}", "1 to 64 printable characters other than |"),
        "",
        "MQTT client id; not set: PRODUCT_KEY.DEVICE_NAME",
    )
    device_secret: str = _key(_SECRET, "", "the credential itself; better kept in a file of its own", secret=True)
    device_secret_file: Path | None = _key(
        File(), "", "credential: file with the device secret", example="device.secret"
    )
    product_secret: str = _key(_SECRET, "", "credential for dynamic registration; better in a file", secret=True)
    product_secret_file: Path | None = _key(File(), "", "credential for dynamic registration: file with the secret")
    registration: Registration = _key(
        Choice(Registration),
        "mqtt",
        "with a product secret: mqtt or https where the console knows this device already, else mqtt-token",
    )
    registration_host: str = _key(
        _HOST_PORT, "", "https registration: its end point; not set: that of the instance or region"
    )
    certificate_file: Path | None = _key(File(), "", "credential: X.509 certificate (PEM), with key_file")
    key_file: Path | None = _key(File(), "", "the certificate's private key, PEM")


@dataclass(frozen=True, slots=True)
class MqttSettings:
    """The platform's end point and the session with it. One of host, instance and region is needed."""

    instance: str = _key(
        Text(r"[A-Za-z0-9]([A-Za-z0-9_-]{0,62}[A-Za-z0-9])?", "an instance id, such as iot-060a70tq"),
        "",
        "enterprise or new public instance: {instance}.mqtt.iothub.aliyuncs.com",
        example="iot-060a70tq",
    )
    region: str = _key(
        Text(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?", "a region, such as cn-shanghai"),
        "",
        "old public instance: {product_key}.iot-as-mqtt.{region}.aliyuncs.com",
    )
    host: str = _key(_HOST, "", "any compatible end point; wins over both")
    port: int = _key(Whole(1, 65535), 8883, "the end point's port")
    tls: bool = _key(Flag(), True, "false sends everything in the clear; for a test bench only")
    ca_file: Path | None = _key(File(), "", "roots (PEM) to trust; not set: the roots that otad ships")
    keepalive_s: float = _key(Duration(30, 20 * 60), "5 min", "silence after which broker and gateway ping")
    version: MqttVersion = _key(
        Choice(MqttVersion), "3.1.1", "never negotiated; a device that once used 5 can't go back"
    )
    sign_method: SignMethod = _key(
        Choice(SignMethod), "hmacsha256", "how the password is signed; all three are accepted"
    )
    ask_interval_s: float = _key(
        Duration(1, 30 * 86400), "6 h", "asking for an upgrade without a notice, jittered: notices can get lost"
    )


@dataclass(frozen=True, slots=True)
class DownloadSettings:
    """Fetching packages."""

    rate_limit: int | None = _key(
        Size(1024, 1 << 40), "", "size per second; not set: as fast as it goes", example="2 MiB"
    )
    connect_timeout_s: float = _key(Duration(0.1, 600), "20 s", "until a connection stands")
    stall_timeout_s: float = _key(Duration(0.1, 3600), "30 s", "no byte for this long: reconnect and go on")
    backoff_max_s: float = _key(Duration(0.1, 86400), "5 min", "longest wait between two attempts on a dead network")
    ca_file: Path | None = _key(File(), "", "roots (PEM) to trust; not set: the system's")
    proxy: str = _key(_PROXY, "", "goes between; exempt from allow_private_hosts", secret=True)  # may hold a password
    allow_http: bool = _key(Flag(), False, "plain http:// in the platform's URLs (otad install is not bound by this)")
    allow_private_hosts: bool = _key(Flag(), False, "loopback, link-local and private ranges in the platform's URLs")


@dataclass(frozen=True, slots=True)
class UpdateSettings:
    """Carrying out an upgrade."""

    tries: int = _key(Whole(1, 100), 3, "digest or install failures before a package is refused")
    format: Format = _key(Choice(Format), "auto", "auto tells from the first bytes; raw never unpacks")


@dataclass(frozen=True, slots=True)
class Module:
    """What the platform upgrades separately; `default` is the system image."""

    installer: InstallerKind = _key(Choice(InstallerKind), "slots", "what the module is made of")
    version: VersionSource = _key(
        Version(), "os-release:IMAGE_VERSION", "where the running version is read; files: installed, if not set"
    )
    directory: Path | None = _key(
        File(), "", "files only, and needed there: holds a directory for each version, and the link to the current one"
    )
    link: str = _key(_LINK, "current", "files only: the link's name in directory")
    command: tuple[str, ...] = _key(
        _COMMAND,
        [],
        "command only, and needed there: the program that installs; with files: run after each switch, also back",
    )
    timeout_s: float = _key(Duration(1, 86400), "30 min", "after this command is ended, and has failed")


@dataclass(frozen=True, slots=True)
class Slot:
    """One of the places a system boots from; at least two are needed."""

    device: Path = _key(
        File(),
        None,
        "the partition; a regular file on the simulated board",
        example="/dev/disk/by-partlabel/rootfs-a",
        required=True,
    )
    bootname: str = _key(_NAME_32, None, "the slot's name in the boot loader", example="A", required=True)


@dataclass(frozen=True, slots=True)
class BootSettings:
    """The boot loader."""

    backend: Backend = _key(Choice(Backend), "uboot", "which boot loader chooses the slot")
    attempts: int = _key(Whole(1, 100), 3, "boots a new system has to prove itself before the boot loader falls back")
    directory: Path | None = _key(
        File(), "", "simulated only, and needed there: where the boot loader's variables live"
    )


@dataclass(frozen=True, slots=True)
class HealthSettings:
    """What a new system must show before it is trusted."""

    directory: Path = _key(File(), "health.d", "executables; all must exit 0, and 75 means ask again")
    units: tuple[str, ...] = _key(_UNITS, [], "systemd units that must be active")
    timeout_s: float = _key(Duration(0.1, 86400), "10 min", "until all checks have passed")
    require_session: bool = _key(Flag(), True, "the new system must reach the platform, if the old one just could")
    session_timeout_s: float = _key(Duration(0.1, 7 * 86400), "30 min", "a regional outage must not roll a fleet back")


@dataclass(frozen=True, slots=True)
class RebootSettings:
    """Switching over."""

    command: tuple[str, ...] = _key(
        _COMMAND, ["systemctl", "reboot"], "how to reboot; []: exit and let others do it (simulated board: if not set)"
    )
    force_command: tuple[str, ...] = _key(
        _COMMAND, ["systemctl", "reboot", "--force", "--force"], "when command has been tried and nothing happened"
    )
    max_delay_s: float = _key(Duration(0, 7 * 86400), "1 h", "how long a shutdown inhibitor may hold before activating")


@dataclass(frozen=True, slots=True)
class TrustSettings:
    """Which packages are believed."""

    digestsign_key_file: Path | None = _key(
        File(), "", "public key (PEM) of the platform's secure upgrade; once set, a signature is mandatory"
    )
    require_signature: bool = _key(Flag(), False, "true without a key is a configuration error")
    allow_md5: bool = _key(Flag(), True, "the platform's classic digest; SHA-256 is better")


@dataclass(frozen=True, slots=True)
class StateSettings:
    """What must survive."""

    directory: Path = _key(File(), "/var/lib/otad", "on storage that all slots mount, never on a slot")


@dataclass(frozen=True, slots=True)
class ControlSettings:
    """How `otad status` and the others reach the daemon."""

    # unix(7): sun_path has room for 107 bytes and a NUL.
    socket: Path = _key(File(107), "/run/otad/otad.sock", "the socket the daemon listens on")


@dataclass(frozen=True, slots=True)
class Config:
    """The whole configuration. `file` is where it was read; all paths are absolute."""

    device: DeviceSettings
    mqtt: MqttSettings
    download: DownloadSettings
    update: UpdateSettings
    modules: Mapping[str, Module]
    slots: Mapping[str, Slot]  # in the order of the file
    boot: BootSettings
    health: HealthSettings
    reboot: RebootSettings
    trust: TrustSettings
    state: StateSettings
    control: ControlSettings
    file: Path

    @property
    def needs_slots(self) -> bool:
        """Whether there are slots here, or should be; else no boot loader is asked for anything."""
        return bool(self.slots) or any(module.installer is InstallerKind.SLOTS for module in self.modules.values())


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, where, and what to do about it."""

    file: Path
    key: str  # dotted; "" for the file as a whole
    text: str
    hint: str = ""
    unknown_key: bool = False  # an error to `config check`, a warning to `run`
    warning: bool = False  # works, and should be put right all the same

    def __str__(self) -> str:
        return ": ".join(part for part in (str(self.file), self.key, self.text) if part)


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a file says, with defaults where it says nothing that could be used, and all that is wrong with it."""

    config: Config
    problems: tuple[Problem, ...]

    @property
    def errors(self) -> tuple[Problem, ...]:
        """The problems with which nothing new may be installed: neither warnings nor unknown keys."""
        return tuple(problem for problem in self.problems if not (problem.warning or problem.unknown_key))

    @property
    def can_boot(self) -> bool:
        """Whether [slots] and [boot] are sound enough to mark good, confirm and roll back."""
        enough = len(self.config.slots) >= 2 or not self.config.needs_slots
        return enough and not any(map(_concerns_boot, self.errors))


@dataclass(frozen=True, slots=True)
class Section:
    """One section of the file; a `named` one is a family: [slots.a], [slots.b]."""

    name: str
    shape: type
    names: Text | None = None
    reserved: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def keys(self) -> tuple[Key, ...]:
        return keys_of(self.shape)


SECTIONS = (
    Section("device", DeviceSettings),
    Section("mqtt", MqttSettings),
    Section("download", DownloadSettings),
    Section("update", UpdateSettings),
    Section("modules", Module, names=_NAME_64),
    Section(
        "slots",
        Slot,
        names=_NAME_32,
        reserved={"images": "reserved for boards with several partitions per slot; not available in this version"},
    ),
    Section("boot", BootSettings),
    Section("health", HealthSettings),
    Section("reboot", RebootSettings),
    Section("trust", TrustSettings),
    Section("state", StateSettings),
    Section("control", ControlSettings),
)


def load(path: Path | str, environ: Mapping[str, str] = os.environ) -> Loaded:
    """What the file at `path` says, and all that is wrong with it. Raises nothing for what the file is or contains.

    `environ` is where systemd says which credentials the service was given.
    """
    file = Path(os.path.abspath(path))
    reading = _Reading(file)
    document = reading.document()
    if document is None:
        # Of a file that cannot be read, only that is worth saying: not that each key in it is missing.
        return Loaded(_Reading(file).config({}), tuple(reading.problems))
    config = reading.config(document)
    device = reading.credential(config.device, environ)
    reading.check(config)
    return Loaded(replace(config, device=device), tuple(reading.problems))


def keys_of(shape: type) -> tuple[Key, ...]:
    """The keys of a settings class, in its order."""
    return tuple(
        replace(
            key, name=each.name.removesuffix("_s") if isinstance(key.kind, Duration) else each.name, field=each.name
        )
        for each in fields(shape)
        for key in (each.metadata["key"],)
    )


def endpoint(config: Config) -> tuple[str, int]:
    """Host and port of the platform; ConfigurationError where nothing names one."""
    mqtt = config.mqtt
    if mqtt.host:
        return mqtt.host, mqtt.port
    if mqtt.instance:
        return f"{mqtt.instance}.mqtt.iothub.aliyuncs.com", mqtt.port
    if mqtt.region:
        return f"{config.device.product_key}.iot-as-mqtt.{mqtt.region}.aliyuncs.com", mqtt.port
    raise ConfigurationError((f"{config.file}: mqtt: none of {_ENDPOINTS} is set",))


def read_secret(path: Path) -> str:
    """The secret in the file at `path`, without the white space around it; ConfigurationError where there is none."""
    try:
        return _secret(path)[0]
    except ValueError as error:
        raise ConfigurationError((f"{path}: {error}",)) from error


_ENDPOINTS = "host, instance and region"
_MAX_UNKNOWN = 50  # per section: finding the nearest name is slow, and nobody reads on
_MAX_FAMILY = 64


class _Reading:
    """One file being read: collects the problems on the way."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.problems: list[Problem] = []
        self.is_exposed = False

    def document(self) -> dict[str, Any] | None:
        """The file as TOML, or None and a problem."""
        try:
            content, self.is_exposed = _content(self.file, MAX_FILE_BYTES)
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            self._add("", f"byte {error.start} is not UTF-8", "save the file as UTF-8")
            return None
        except ValueError as error:
            self._add("", str(error), "--config FILE names another; config.example.toml shows what one looks like")
            return None
        try:
            return tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            self._add("", _with_position(str(error), text), "strings need quotes; keys and sections may appear once")
        except RecursionError:
            self._add("", "nested too deeply", "no key has lists in lists")
        except ValueError:  # int() has a limit of its own, which tomllib lets through
            self._add("", "a number has too many digits", "look for a number longer than 4300 digits")
        return None

    def config(self, document: Mapping[str, Any]) -> Config:
        """`document` as a configuration; what cannot be used leaves its default."""
        self._strangers("", document, [section.name for section in SECTIONS], {})
        values: dict[str, Any] = {}
        for section in SECTIONS:
            table = self._table(section.name, document.get(section.name, {}))
            if section.names is None:
                values[section.name] = self._settings(section.name, section, table)
            else:
                values[section.name] = self._family(section, section.names, table)
        values["modules"] = self._modules(values["modules"], document)
        values["reboot"] = self._reboot(values["reboot"], values["boot"], document)
        for family in ("modules", "slots"):
            values[family] = MappingProxyType(values[family])
        return Config(**values, file=self.file)

    def _reboot(self, reboot: RebootSettings, boot: BootSettings, document: Mapping[str, Any]) -> RebootSettings:
        """On the simulated board nothing is rebooted unless it is written down: the machine is somebody's own."""
        table: Any = document.get("reboot")
        is_told = isinstance(table, dict) and "command" in table
        return replace(reboot, command=()) if boot.backend is Backend.SIMULATED and not is_told else reboot

    def _modules(self, modules: Mapping[str, Module], document: Mapping[str, Any]) -> dict[str, Module]:
        """With the system image, which need not be written down, and with the defaults that the installer decides."""
        has_slots = "slots" in document or not modules
        if has_slots and not any(module.installer is InstallerKind.SLOTS for module in modules.values()):
            modules = {"default": Module(), **modules}
        tables: Any = document.get("modules")
        tables = tables if isinstance(tables, dict) else {}
        made: dict[str, Module] = {}
        for name, module in modules.items():
            made[name] = module
            if name in tables and "version" not in tables[name] and module.installer is not InstallerKind.SLOTS:
                if module.installer is InstallerKind.FILES:
                    made[name] = replace(module, version=InstalledVersion())
                else:
                    hint = 'write for example version = "command:/usr/lib/app/version": only its owner can tell'
                    self._add(f"modules.{name}.version", "missing", hint)
        return made

    def credential(self, device: DeviceSettings, environ: Mapping[str, str]) -> DeviceSettings:
        """`device` with exactly one credential, or a problem."""
        if self._is_wrong("device"):
            return device
        present = {name for name in _CREDENTIALS if getattr(device, name) or self._is_wrong(f"device.{name}")}
        sources = [name for name in _CREDENTIALS if name in present and name not in _CERTIFICATE]
        if certificate := present & _CERTIFICATE:
            sources.append("certificate_file with key_file")
            for name in sorted(_CERTIFICATE - certificate):
                self._add(f"device.{name}", "missing", "certificate_file and key_file go together")
        if directory := environ.get("CREDENTIALS_DIRECTORY"):
            given = Path(os.path.abspath(directory), CREDENTIAL)
            if os.path.lexists(given):
                sources.append(f"systemd credential {CREDENTIAL}")
                if len(sources) == 1:
                    device = replace(device, device_secret_file=given)
        self._check_secrets(device)
        if not sources:
            self._add(
                "device",
                "no credential",
                f'write for example device_secret_file = "{CREDENTIAL}", or give the service the systemd credential '
                f"{CREDENTIAL} (which only the service itself sees)",
            )
        if len(sources) > 1:
            self._add("device", f"more than one credential: {', '.join(sources)}", "keep one of them")
        return device

    def check(self, config: Config) -> None:
        """What keys must be to each other, and what this version cannot do yet."""
        self._check_end_point(config)
        self._check_slots(config)
        boot = config.boot
        if boot.backend is Backend.SIMULATED and boot.directory is None and not self._is_wrong("boot.directory"):
            self._add("boot.directory", "missing", 'the simulated backend needs one, for example directory = "boot"')
        self._check_modules(config)
        trust = config.trust
        if (
            trust.require_signature
            and trust.digestsign_key_file is None
            and not self._is_wrong("trust.digestsign_key_file")
        ):
            hint = "set trust.digestsign_key_file, the public key that the console shows for secure upgrade"
            self._add("trust.require_signature", "true without a key", hint)
        if trust.digestsign_key_file is not None:
            try:
                content, _ = _content(trust.digestsign_key_file, MAX_SECRET_BYTES)
                if b"-----BEGIN PUBLIC KEY-----" not in content:
                    raise ValueError("not a public key in PEM")
            except ValueError as error:
                hint = "save there what the console shows, between its lines BEGIN PUBLIC KEY and END PUBLIC KEY"
                self._add("trust.digestsign_key_file", f"{trust.digestsign_key_file}: {error}", hint)
        if config.reboot.command and not config.reboot.force_command and not self._is_wrong("reboot.force_command"):
            self._add("reboot.force_command", "must not be empty", 'write for example ["reboot", "-f"]')
        self._check_credential(config)
        self._check_files(config)
        if config.needs_slots:
            self._check_available("boot.backend", boot.backend, AVAILABLE_BACKENDS)

    def _check_credential(self, config: Config) -> None:
        """Each credential with what it needs besides."""
        device, mqtt = config.device, config.mqtt
        has_certificate = bool(device.certificate_file or device.key_file)
        for key in (key for key in keys_of(DeviceSettings) if key.name in ("product_key", "device_name")):
            is_needed = not (has_certificate or getattr(device, key.field) or self._is_wrong(f"device.{key.name}"))
            if is_needed and not self._is_wrong("device"):
                self._add(f"device.{key.name}", "missing", _hint(key))
        if bool(device.product_key) != bool(device.device_name) and has_certificate:
            hint = "set both or none of them: the platform tells the names of a certificate"
            self._add("device", "product_key and device_name go together", hint)
        registers = bool(device.product_secret or device.product_secret_file)
        if (registers or has_certificate) and not mqtt.tls:
            what = "device.product_secret" if registers else "device.certificate_file"
            self._add(what, "needs mqtt.tls = true", "without TLS the secret, or who we are, is anybody's to read")
        is_https = registers and device.registration is Registration.HTTPS
        if is_https and not (device.registration_host or mqtt.instance or mqtt.region):
            hint = 'write for example registration_host = "iot-auth.cn-shanghai.aliyuncs.com"'
            self._add(
                "device.registration_host",
                "missing: nothing else names it where mqtt.host is an end point of one's own",
                hint,
            )

    def _check_files(self, config: Config) -> None:
        """What is named and not there, or there and without effect. It may still come: warnings."""
        for key, path in (("mqtt.ca_file", config.mqtt.ca_file), ("download.ca_file", config.download.ca_file)):
            if path is not None:
                try:
                    _content(path, MAX_FILE_BYTES)
                except ValueError as error:
                    self._add(key, f"{path}: {error}", "name a file with certificates in PEM", warning=True)
        directory = config.health.directory
        try:
            names = sorted(os.listdir(directory))
        except OSError:
            names = []
        for name in names:
            path = directory / name
            is_check = os.path.isfile(path) and not (name.startswith(".") or name.endswith("~") or ".dpkg-" in name)
            if is_check and not os.access(path, os.X_OK):
                text = f"{path}: not executable, so not a health check"
                self._add("health.directory", text, f"chmod +x {path}, or move it away", warning=True)

    def _check_modules(self, config: Config) -> None:
        """Each module with what its installer needs, and nothing that only another one reads."""
        if config.slots and not any(module.installer is InstallerKind.SLOTS for module in config.modules.values()):
            hint = 'give one module installer = "slots", or remove [slots]: then no boot loader is asked for anything'
            self._add("modules", "none is made of the slots", hint)
        is_simulated = config.boot.backend is Backend.SIMULATED or self._is_wrong("boot.backend")
        first: dict[Path, str] = {}
        for name, module in config.modules.items():
            path, kind = f"modules.{name}", module.installer
            if self._is_wrong(f"{path}.installer"):
                continue  # what it needs is not known
            if module.version == SlotVersion() and not (is_simulated and kind is InstallerKind.SLOTS):
                text = '"slot": only with installer = "slots" and boot.backend = "simulated"'
                self._add(f"{path}.version", text, f"write for example {_VERSION_EXAMPLE}")
            if module.version == InstalledVersion() and kind is not InstallerKind.FILES:
                text = '"installed": only with installer = "files"'
                self._add(f"{path}.version", text, f"write for example {_VERSION_EXAMPLE}")
            needed = {InstallerKind.FILES: "directory", InstallerKind.COMMAND: "command"}.get(kind)
            if needed and not getattr(module, needed) and not self._is_wrong(f"{path}.{needed}"):
                example = {"directory": f'"/var/lib/{name}"', "command": f'["/usr/lib/{name}/install"]'}[needed]
                self._add(
                    f"{path}.{needed}",
                    f'missing: installer = "{kind}" needs it',
                    f"write for example {needed} = {example}",
                )
            if module.directory is not None and kind is not InstallerKind.FILES:
                self._add(f"{path}.directory", 'only with installer = "files"', "remove it")
            if module.command and kind is InstallerKind.SLOTS:
                self._add(f"{path}.command", 'not with installer = "slots"', "remove it")
            if module.directory is not None:
                other = first.setdefault(module.directory, name)
                if other != name:
                    text = f"the same as that of module {other}"
                    self._add(f"{path}.directory", text, "each module has a directory of its own")

    def _check_end_point(self, config: Config) -> None:
        device, mqtt = config.device, config.mqtt
        if not (mqtt.host or mqtt.instance or mqtt.region) and not any(
            self._is_wrong(f"mqtt.{name}") for name in ("host", "instance", "region")
        ):
            self._add("mqtt", f"one of {_ENDPOINTS} is needed", 'write for example instance = "iot-060a70tq"')
        if mqtt.region and not (mqtt.host or mqtt.instance or device.product_key or self._is_wrong("device")):
            hint = "set device.product_key too, or mqtt.host"
            self._add("mqtt.region", "not enough: the end point's name begins with the product key", hint)
        own = f"{device.product_key}.{device.device_name}"
        if not device.client_id and len(own) > 64 and not self._is_wrong("device.client_id"):
            text = f"missing: product_key and device_name make an id of {len(own)} characters, and 64 is the limit"
            self._add("device.client_id", text, "set an id of your own, such as the serial number")

    def _check_slots(self, config: Config) -> None:
        slots = config.slots
        images = [
            name
            for name, module in config.modules.items()
            if module.installer is InstallerKind.SLOTS and not self._is_wrong(f"modules.{name}.installer")
        ]
        for name in images[1:]:
            text = f"slots: module {images[0]} is the system image already"
            self._add(f"modules.{name}.installer", text, "there is one pair of slots, and so one such module")
        needed = bool(images)
        if needed and len(slots) < 2 and not self._is_wrong("slots", within=True):
            self._add(
                "slots", f"{len(slots)} of at least 2", "write [slots.a] and [slots.b], each with device and bootname"
            )
        identities: dict[str, Callable[[Slot], str]] = {
            "device": lambda slot: os.path.realpath(slot.device),
            "bootname": lambda slot: slot.bootname,
        }
        for what, same in identities.items():
            first: dict[str, str] = {}
            for name, slot in slots.items():
                other = first.setdefault(same(slot), name)
                if other != name:
                    key = f"slots.{name}.{what}"
                    self._add(key, f"the same as that of slot {other}", f"each slot has a {what} of its own")

    def _check_available(self, key: str, value: StrEnum, available: Collection[StrEnum]) -> None:
        if value not in available and not self._is_wrong(key):
            self._add(key, f"{value}: not available in this version", f"available: {', '.join(available)}")

    def _check_secrets(self, device: DeviceSettings) -> None:
        """Secrets are there, and not for everyone to read."""
        for name in ("device_secret_file", "product_secret_file"):
            path: Path | None = getattr(device, name)
            if path is None:
                continue
            try:
                _, is_exposed = _secret(path)
            except ValueError as error:
                self._add(f"device.{name}", f"{path}: {error}", "the file holds the secret and nothing else")
                continue
            if is_exposed:
                text = f"{path}: can be read by everyone"
                self._add(f"device.{name}", text, f"chmod o= {path}", warning=True)
        for name in ("device_secret", "product_secret"):
            if self.is_exposed and getattr(device, name):
                text = "stands in a file that can be read by everyone"
                self._add(f"device.{name}", text, f"chmod o= {self.file}", warning=True)

    def _family(self, section: Section, names: Text, table: Mapping[str, Any]) -> dict[str, Any]:
        """The sections of a family that are complete."""
        if len(table) > _MAX_FAMILY:
            self._add(section.name, f"{len(table)}: must be at most {_MAX_FAMILY}", "remove the others")
        members: dict[str, Any] = {}
        for name in list(table)[:_MAX_FAMILY]:
            path = f"{section.name}.{_shown_name(name)}"
            if not re.fullmatch(names.pattern, name, re.ASCII):
                self._add(path, f"name must be {names.says}", f"rename it, for example to [{section.name}.a]")
            elif isinstance(table[name], dict):
                member = self._settings(path, section, table[name])
                if member is not None:
                    members[name] = member
            else:
                self._table(path, table[name])
        return members

    def _settings(self, path: str, section: Section, table: Mapping[str, Any]) -> Any:
        """An instance of the section's class; None where a key is needed, wrong or missing, and has no default."""
        keys = section.keys
        self._strangers(path, table, [key.name for key in keys], section.reserved)
        values: dict[str, Any] = {}
        is_complete = True
        for key in keys:
            if key.name in table:
                try:
                    values[key.field] = key.parse(table[key.name], self.file.parent)
                    continue
                except ValueError as error:
                    shown = "" if key.secret else f"{_shown(table[key.name], key.kind)}: "
                    self._add(f"{path}.{key.name}", f"{shown}{error}", _hint(key))
            elif key.required and not self._is_wrong(path):
                self._add(f"{path}.{key.name}", "missing", _hint(key))
            if key.default is None:
                is_complete = False
            else:
                values[key.field] = key.value_of_default(self.file.parent)
        return section.shape(**values) if is_complete else None

    def _table(self, path: str, value: object) -> Mapping[str, Any]:
        if isinstance(value, dict):
            return value
        self._add(path, "must be a section", f"write [{path}] on a line of its own, and its keys below")
        return {}

    def _strangers(
        self, path: str, table: Mapping[str, Any], names: Collection[str], reserved: Mapping[str, str]
    ) -> None:
        """A problem for each key that is not one of `names`."""
        prefix = f"{path}." if path else ""
        strangers = [name for name in table if name not in names]
        for name in strangers[:_MAX_UNKNOWN]:
            key = f"{prefix}{_shown_name(name)}"
            if name in reserved:
                self._add(key, reserved[name], "remove it")
                continue
            what = "unknown section" if isinstance(table[name], dict) else "unknown key"
            if nearest := _nearest(name, prefix, names):
                self._add(key, f"{what}, did you mean {nearest}?", "rename or remove it", unknown_key=True)
            else:
                hint = f"remove it; {f'[{path}]' if path else 'the file'} has {', '.join(names)}"
                self._add(key, what, hint, unknown_key=True)
        if len(strangers) > _MAX_UNKNOWN:
            self._add(path, f"{len(strangers) - _MAX_UNKNOWN} more unknown keys", "remove them", unknown_key=True)

    def _is_wrong(self, key: str, within: bool = False) -> bool:
        """Whether `key`, or a section around it, already has an error, so that what follows from it needs no other."""
        return any(
            problem.key == key or key.startswith(f"{problem.key}.") or (within and problem.key.startswith(f"{key}."))
            for problem in self.problems
            if not (problem.unknown_key or problem.warning)
        )

    def _add(self, key: str, text: str, hint: str, *, unknown_key: bool = False, warning: bool = False) -> None:
        self.problems.append(Problem(self.file, key, text, hint, unknown_key, warning))


_CERTIFICATE = frozenset({"certificate_file", "key_file"})
_CREDENTIALS = (
    "device_secret_file",
    "device_secret",
    "product_secret_file",
    "product_secret",
    "certificate_file",
    "key_file",
)
_VERSION_EXAMPLE = 'version = "os-release:IMAGE_VERSION"'


def _content(path: Path, limit: int) -> tuple[bytes, bool]:
    """What the regular file at `path` holds, and whether everyone may read it; ValueError says why not."""
    try:
        # O_NONBLOCK: opening a FIFO would otherwise wait for somebody to write.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
        try:
            mode = os.fstat(descriptor).st_mode
            if stat.S_ISDIR(mode):
                raise ValueError("is a directory")
            if not stat.S_ISREG(mode):
                raise ValueError("not a regular file")
            content = b""
            while len(content) <= limit and (more := os.read(descriptor, limit + 1 - len(content))):
                content += more
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ValueError(error.strerror) from error
    if len(content) > limit:
        raise ValueError(f"larger than {format_size(limit)}")
    return content, bool(mode & stat.S_IROTH)


def _secret(path: Path) -> tuple[str, bool]:
    """The secret in the file at `path`, and whether everyone may read it; ValueError says why not."""
    content, is_exposed = _content(path, MAX_SECRET_BYTES)
    secret = content.strip()
    if not secret:
        raise ValueError("empty")
    if not all(0x20 <= byte < 0x7F for byte in secret):
        raise ValueError("not printable ASCII")
    return secret.decode("ascii"), is_exposed


def _with_position(message: str, text: str) -> str:
    """tomllib's message with line and column in front, for the end of the file too."""
    match = re.fullmatch(r"(.*) \(at (?:line (\d+), column (\d+)|end of document)\)", message, re.DOTALL)
    if match is None:
        return message
    what, line, column = match.groups()
    if line is None:
        line, column = text.count("\n") + 1, len(text) - text.rfind("\n")
    return f"line {line}, column {column}: {what}"


def _shown(value: object, kind: Kind) -> str:
    """`value` for a message: short, in one line, and never a whole list or section."""
    match value:
        case str():
            short = _printable(value)
            return short if isinstance(kind, Duration | Size) and short else f'"{short}"'
        case bool():
            return str(value).lower()
        case int() if abs(value) > 10**20:  # Python refuses to print very long ones
            return "a very large number"
        case list():
            return "a list"
        case dict():
            return "a section"
        case _:
            return str(value)


def _shown_name(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name) else f'"{_printable(name)}"'


def _printable(text: str) -> str:
    short = text if len(text) <= 60 else f"{text[:57]}..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in short)


def _hint(key: Key) -> str:
    if key.example:
        return f'write for example {key.name} = "{key.example}"'
    return f"write for example {key.name} = {_toml(key.default)}" if key.default != "" else "see otad.toml(5)"


def _toml(value: Default) -> str:
    match value:
        case bool():
            return str(value).lower()
        case list():
            return f"[{', '.join(map(_toml, value))}]"
        case str():
            return f'"{value}"'
        case _:
            return str(value)


def _nearest(name: str, prefix: str, names: Collection[str]) -> str:
    """The valid key that was probably meant by `name`, dotted; "" if nothing comes near."""
    close = [prefix + near for near in get_close_matches(name[:64].lower(), names, 1)]
    elsewhere = [
        f"{section.name}{'.NAME' if section.names else ''}.{name}"
        for section in SECTIONS
        if any(key.name == name for key in section.keys)
    ]
    # A key above all sections has lost its section; in a section it is more likely to be misspelt.
    candidates = close + elsewhere if prefix else elsewhere + close
    return candidates[0] if candidates else ""


def _concerns_boot(problem: Problem) -> bool:
    if problem.key.endswith(".images"):
        return False  # the slot itself can be booted and marked all the same
    return problem.key in {"slots", "boot", "boot.backend", "boot.directory"} or problem.key.startswith("slots.")
