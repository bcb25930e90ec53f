# SPDX-License-Identifier: Apache-2.0
"""The configuration file: what is read from it, and that all that is wrong with it is said at once, without raising."""

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import fields
from datetime import date, time
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from otad.config import (
    AVAILABLE_BACKENDS,
    SECTIONS,
    Backend,
    BootSettings,
    CommandVersion,
    Config,
    ControlSettings,
    DeviceSettings,
    DownloadSettings,
    FileVersion,
    Format,
    HealthSettings,
    InstalledVersion,
    InstallerKind,
    Loaded,
    Module,
    MqttSettings,
    MqttVersion,
    OsReleaseVersion,
    Problem,
    RebootSettings,
    SignMethod,
    Slot,
    SlotVersion,
    StateSettings,
    TrustSettings,
    UpdateSettings,
    endpoint,
    load,
    read_secret,
)
from otad.errors import ConfigurationError

EXAMPLE = Path(__file__).parent.parent / "config.example.toml"
# The keys which the example fills in, because a gateway needs them and they have no default.
FILLED_IN = {
    "device.product_key",
    "device.device_name",
    "device.device_secret_file",
    "mqtt.instance",
    "slots.device",
    "slots.bootname",
}
SECRET = "kanarienvogel0123456789"
SOUND = {
    "device.product_key": '"a1B2c3D4e5F"',
    "device.device_name": '"gateway-0001"',
    "device.device_secret": f'"{SECRET}"',
    "mqtt.host": '"broker.example"',
    "slots.a.device": '"a.img"',
    "slots.a.bootname": '"A"',
    "slots.b.device": '"b.img"',
    "slots.b.bootname": '"B"',
    "boot.backend": '"simulated"',
    "boot.directory": '"boot"',
}
Edits = Mapping[str, str | None]  # dotted key to TOML value; None takes the key out


def write(directory: Path, edits: Edits) -> Path:
    """A sound configuration with `edits`, written out as dotted keys."""
    file = directory / "config.toml"
    lines = [f"{key} = {value}" for key, value in {**SOUND, **edits}.items() if value is not None]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    file.chmod(0o640)
    return file


def read(directory: Path, edits: Edits, environ: Mapping[str, str] | None = None) -> Loaded:
    return load(write(directory, edits), environ or {})


def said(loaded: Loaded) -> list[str]:
    """The problems, without the name of the file."""
    prefix = f"{loaded.config.file}: "
    return [str(problem).removeprefix(prefix) for problem in loaded.problems]


# --- what is read


def test_a_sound_file_has_no_problems(tmp_path: Path) -> None:
    loaded = read(tmp_path, {})

    assert loaded == Loaded(
        Config(
            device=DeviceSettings("a1B2c3D4e5F", "gateway-0001", device_secret=SECRET),
            mqtt=MqttSettings(host="broker.example"),
            download=DownloadSettings(),
            update=UpdateSettings(),
            modules={"default": Module()},
            slots={"a": Slot(tmp_path / "a.img", "A"), "b": Slot(tmp_path / "b.img", "B")},
            boot=BootSettings(Backend.SIMULATED, directory=tmp_path / "boot"),
            health=HealthSettings(directory=tmp_path / "health.d"),
            reboot=RebootSettings(command=()),
            trust=TrustSettings(),
            state=StateSettings(),
            control=ControlSettings(),
            file=tmp_path / "config.toml",
        ),
        (),
    )
    assert loaded.can_boot


def test_defaults_are_those_of_the_contract() -> None:
    assert MqttSettings() == MqttSettings(
        instance="",
        region="",
        host="",
        port=8883,
        tls=True,
        ca_file=None,
        keepalive_s=300.0,
        version=MqttVersion.V3_1_1,
        sign_method=SignMethod.HMAC_SHA256,
        ask_interval_s=21600.0,
    )
    assert DownloadSettings() == DownloadSettings(
        rate_limit=None,
        connect_timeout_s=20.0,
        stall_timeout_s=30.0,
        backoff_max_s=300.0,
        ca_file=None,
        proxy="",
        allow_http=False,
        allow_private_hosts=False,
    )
    assert UpdateSettings() == UpdateSettings(tries=3, format=Format.AUTO)
    assert Module() == Module(InstallerKind.SLOTS, OsReleaseVersion("IMAGE_VERSION"))
    assert BootSettings() == BootSettings(Backend.UBOOT, attempts=3, directory=None)
    assert HealthSettings() == HealthSettings(Path("/etc/otad/health.d"), (), 600.0, True, 1800.0)
    assert RebootSettings() == RebootSettings(
        ("systemctl", "reboot"), ("systemctl", "reboot", "--force", "--force"), 3600.0
    )
    assert TrustSettings() == TrustSettings(None, require_signature=False, allow_md5=True)
    assert StateSettings() == StateSettings(Path("/var/lib/otad"))
    assert ControlSettings() == ControlSettings(Path("/run/otad/otad.sock"))


@pytest.mark.parametrize(
    ("key", "written", "value"),
    [
        ("device.client_id", '"00:11:22:33:44:55"', "00:11:22:33:44:55"),
        ("mqtt.host", '"192.0.2.7"', "192.0.2.7"),
        ("mqtt.host", '"2001:db8::7"', "2001:db8::7"),
        ("mqtt.host", '"fe80::1%eth0"', "fe80::1%eth0"),
        ("mqtt.port", "1883", 1883),
        ("mqtt.tls", "false", False),
        ("mqtt.keepalive", '"30 s"', 30.0),
        ("mqtt.keepalive", '"20 min"', 1200.0),
        ("mqtt.keepalive", "90", 90.0),
        ("mqtt.keepalive", "90.5", 90.5),
        ("mqtt.keepalive", '"1 min 30 s"', 90.0),
        ("mqtt.ask_interval", '"2 d"', 172800.0),
        ("mqtt.sign_method", '"hmacmd5"', SignMethod.HMAC_MD5),
        ("mqtt.ca_file", '""', None),
        ("mqtt.ca_file", '"roots.pem"', "{base}/roots.pem"),
        ("mqtt.ca_file", '"/etc/ssl/roots.pem"', "/etc/ssl/roots.pem"),
        ("download.stall_timeout", '"500 ms"', 0.5),
        ("download.rate_limit", '""', None),
        ("download.rate_limit", '"8 MiB"', 8 << 20),
        ("download.rate_limit", '"8MB"', 8_000_000),
        ("download.rate_limit", "524288", 512 << 10),
        ("download.proxy", '"http://user:pass@proxy:3128"', "http://user:pass@proxy:3128"),
        ("update.format", '"raw"', Format.RAW),
        ("health.units", '["app.service", "modem@1.service"]', ("app.service", "modem@1.service")),
        ("health.directory", '"/etc/geprüft"', "/etc/geprüft"),
        ("reboot.command", "[]", ()),
        ("reboot.max_delay", "0", 0.0),
        ("control.socket", '"run/otad.sock"', "{base}/run/otad.sock"),
    ],
)
def test_a_value_is_read(tmp_path: Path, key: str, written: str, value: object) -> None:
    loaded = read(tmp_path, {key: written})

    section, name = key.split(".")
    (field,) = (k.field for s in SECTIONS if s.name == section for k in s.keys if k.name == name)
    got = getattr(getattr(loaded.config, section), field)
    assert loaded.errors == ()  # a file that is named need not be there yet
    assert (str(got) if isinstance(got, Path) else got) == (
        value.format(base=tmp_path) if isinstance(value, str) and isinstance(got, Path) else value
    )


@pytest.mark.parametrize(
    ("written", "source"),
    [
        ("os-release:IMAGE_VERSION", OsReleaseVersion("IMAGE_VERSION")),
        ("file:/etc/version", FileVersion(Path("/etc/version"))),
        ("command:/usr/bin/version", CommandVersion(Path("/usr/bin/version"))),
        ("slot", SlotVersion()),
    ],
)
def test_a_version_source_is_read(tmp_path: Path, written: str, source: object) -> None:
    loaded = read(tmp_path, {"modules.default.version": f'"{written}"'})

    assert (loaded.problems, loaded.config.modules["default"].version) == ((), source)


def test_relative_paths_start_at_the_file_wherever_one_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"modules.default.version": '"file:version"'})
    monkeypatch.chdir(tmp_path)

    config = load("config.toml", {}).config

    assert (config.file, config.boot.directory, config.modules["default"].version) == (
        tmp_path / "config.toml",
        tmp_path / "boot",
        FileVersion(tmp_path / "version"),
    )


def test_links_in_a_device_path_are_kept(tmp_path: Path) -> None:
    (tmp_path / "rootfs-a").symlink_to("a.img")

    assert read(tmp_path, {"slots.a.device": '"rootfs-a"'}).config.slots["a"].device == tmp_path / "rootfs-a"


def test_a_byte_order_mark_and_crlf_are_read(tmp_path: Path) -> None:
    file = write(tmp_path, {})
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))

    assert load(file, {}).problems == ()


# --- what is refused: one key, one line

NAME = "must be 1 to 32 characters of A-Z a-z 0-9 . _ -"
HOST = "must be a host name or address of at most 253 characters, without scheme and port"
SOURCE = "must be os-release:KEY, file:PATH, command:PATH, installed or slot"
COMMAND = 'must be a list of program and arguments, such as ["systemctl", "reboot"]'
WRONG_VALUES = [
    ("device.product_key", "7", "7: must be 1 to 64 letters and digits"),
    ("device.product_key", '""', "missing"),
    ("device.product_key", '"a/b"', '"a/b": must be 1 to 64 letters and digits'),
    ("device.product_key", f'"{"a" * 65}"', f'"{"a" * 57}...": must be 1 to 64 letters and digits'),
    ("device.product_key", '"ａ１Ｂ２"', '"ａ１Ｂ２": must be 1 to 64 letters and digits'),  # full-width
    ("device.device_name", '"gw1"', '"gw1": must be 4 to 32 characters of A-Z a-z 0-9 - _ @ . :'),
    ("device.device_name", '"gateway/+"', '"gateway/+": must be 4 to 32 characters of A-Z a-z 0-9 - _ @ . :'),
    ("device.device_name", '"gate\\nway"', '"gate\\nway": must be 4 to 32 characters of A-Z a-z 0-9 - _ @ . :'),
    ("device.device_name", '"gateway\\u0000"', '"gateway\\x00": must be 4 to 32 characters of A-Z a-z 0-9 - _ @ . :'),
    ("device.device_name", '"\\u202egateway"', '"\\u202egateway": must be 4 to 32 characters of A-Z a-z 0-9 - _ @ . :'),
    ("device.client_id", f'"{"x" * 65}"', f'"{"x" * 57}...": must be 1 to 64 printable characters other than |'),
    ("device.client_id", '"a|securemode=3"', '"a|securemode=3": must be 1 to 64 printable characters other than |'),
    ("device.device_secret", "12345678", "must be printable ASCII of at most 4096 characters"),
    ("device.device_secret", f'"{SECRET}\\n"', "must be printable ASCII of at most 4096 characters"),
    ("device.device_secret", f'"{"s" * 4097}"', "must be printable ASCII of at most 4096 characters"),
    ("mqtt.instance", '"iot 1"', '"iot 1": must be an instance id, such as iot-060a70tq'),
    ("mqtt.instance", '"evil.example/"', '"evil.example/": must be an instance id, such as iot-060a70tq'),
    ("mqtt.region", '"CN"', '"CN": must be a region, such as cn-shanghai'),
    ("mqtt.host", '"mqtts://broker"', f'"mqtts://broker": {HOST}'),
    ("mqtt.host", '"broker:8883"', f'"broker:8883": {HOST}'),
    ("mqtt.host", f'"{"h" * 254}"', f'"{"h" * 57}...": {HOST}'),
    ("mqtt.port", '"8883"', '"8883": must be a whole number between 1 and 65535'),
    ("mqtt.port", "0", "0: must be a whole number between 1 and 65535"),
    ("mqtt.port", "65536", "65536: must be a whole number between 1 and 65535"),
    ("mqtt.port", "8883.0", "8883.0: must be a whole number between 1 and 65535"),
    ("mqtt.port", "true", "true: must be a whole number between 1 and 65535"),
    ("mqtt.port", f"0x{'f' * 9000}", "a very large number: must be a whole number between 1 and 65535"),
    ("mqtt.tls", "1", "1: must be true or false"),
    ("mqtt.tls", '"yes"', '"yes": must be true or false'),
    ("mqtt.ca_file", "3", "3: must be a path"),
    ("mqtt.ca_file", '"ro\\u0000ots"', '"ro\\x00ots": must be a path'),
    ("mqtt.ca_file", f'"{"r" * 4096}"', f'"{"r" * 57}...": must be a path of at most 4095 bytes, counted from /'),
    ("mqtt.keepalive", '"10 s"', "10 s: must be between 30 s and 20 min"),
    ("mqtt.keepalive", '"21 min"', "21 min: must be between 30 s and 20 min"),
    ("mqtt.keepalive", '"-1 min"', "-1 min: must be a number and a unit, such as 15 min"),
    ("mqtt.keepalive", "-300", "-300: must be between 30 s and 20 min"),
    ("mqtt.keepalive", "nan", "nan: must be between 30 s and 20 min"),
    ("mqtt.keepalive", "inf", "inf: must be between 30 s and 20 min"),
    ("mqtt.keepalive", "-inf", "-inf: must be between 30 s and 20 min"),
    ("mqtt.keepalive", "1e300", "1e+300: must be between 30 s and 20 min"),
    ("mqtt.keepalive", f"0x{'f' * 9000}", "a very large number: must be between 30 s and 20 min"),
    ("mqtt.keepalive", "true", 'true: must be a duration between 30 s and 20 min, such as "15 min"'),
    ("mqtt.keepalive", "[300]", 'a list: must be a duration between 30 s and 20 min, such as "15 min"'),
    ("mqtt.keepalive", "{ min = 5 }", 'a section: must be a duration between 30 s and 20 min, such as "15 min"'),
    ("mqtt.keepalive", "00:05:00", '00:05:00: must be a duration between 30 s and 20 min, such as "15 min"'),
    ("mqtt.keepalive", '""', '"": must be a number and a unit, such as 15 min'),
    ("mqtt.keepalive", '"soon"', "soon: must be a number and a unit, such as 15 min"),
    ("mqtt.keepalive", '"5 m"', "5 m: unit must be one of ms, s, min, h, d"),
    ("mqtt.version", '"4"', '"4": must be one of 3.1.1, 5'),
    ("mqtt.version", "5", "5: must be one of 3.1.1, 5"),
    ("mqtt.sign_method", '"sha256"', '"sha256": must be one of hmacsha256, hmacsha1, hmacmd5'),
    ("mqtt.ask_interval", "0", "0: must be between 1 s and 30 d"),
    ("download.rate_limit", "0", "0: must be between 1 KiB and 1 TiB"),
    ("download.rate_limit", "-1", "-1: must be between 1 KiB and 1 TiB"),
    ("download.rate_limit", "1e6", '1000000.0: must be a size between 1 KiB and 1 TiB, such as "8 MiB"'),
    ("download.rate_limit", "false", 'false: must be a size between 1 KiB and 1 TiB, such as "8 MiB"'),
    ("download.rate_limit", '"2 TiB"', "2 TiB: must be between 1 KiB and 1 TiB"),
    ("download.rate_limit", '"8 Mb"', "8 Mb: unit must be one of B, kB, KB, KiB, MB, MiB, GB, GiB, TB, TiB"),
    ("download.connect_timeout", '"0 s"', "0 s: must be between 100 ms and 10 min"),
    ("download.proxy", f'"socks5://u:{SECRET}@proxy"', "must be http://HOST:PORT"),
    ("download.allow_http", '"false"', '"false": must be true or false'),
    ("update.tries", "0", "0: must be a whole number between 1 and 100"),
    ("update.format", '"AUTO"', '"AUTO": must be one of auto, raw'),
    ("modules.default.installer", '"deb"', '"deb": must be one of slots, files, command'),
    ("modules.default.version", "1", f"1: {SOURCE}"),
    ("modules.default.version", '"os-release:"', f'"os-release:": {SOURCE}'),
    ("modules.default.version", '"file:"', f'"file:": {SOURCE}'),
    ("modules.default.version", '"slot:a"', f'"slot:a": {SOURCE}'),
    ("modules.default.version", '"url:x"', f'"url:x": {SOURCE}'),
    ("slots.a.device", '""', '"": must be a path'),
    ("slots.a.device", "1", "1: must be a path"),
    ("slots.a.bootname", '"A;reboot"', f'"A;reboot": {NAME}'),
    ("slots.a.bootname", f'"{"A" * 33}"', f'"{"A" * 33}": {NAME}'),
    ("boot.backend", '"lilo"', '"lilo": must be one of uboot, grub, systemd-boot, raspberrypi, command, simulated'),
    ("boot.attempts", "0", "0: must be a whole number between 1 and 100"),
    ("boot.directory", "[]", "a list: must be a path"),
    ("health.units", '"app.service"', '"app.service": must be a list of systemd units, such as app.service'),
    ("health.units", '["--now"]', "a list: must be a list of systemd units, such as app.service"),
    ("health.units", "[1]", "a list: must be a list of systemd units, such as app.service"),
    ("health.timeout", '"forever"', "forever: must be a number and a unit, such as 15 min"),
    ("reboot.command", '"reboot"', f'"reboot": {COMMAND}'),
    ("reboot.command", '[""]', f'a list: {COMMAND}'),
    ("reboot.command", '["a\\u0000b"]', f'a list: {COMMAND}'),
    ("trust.allow_md5", "0", "0: must be true or false"),
    ("state.directory", '""', '"": must be a path'),
    ("control.socket", f'"/{"s" * 107}"', f'"/{"s" * 56}...": must be a path of at most 107 bytes, counted from /'),
]  # fmt: skip


@pytest.mark.parametrize(("key", "written", "text"), WRONG_VALUES, ids=[f"{k}={v[:20]}" for k, v, _ in WRONG_VALUES])
def test_a_wrong_value_is_named_with_what_would_be_valid(tmp_path: Path, key: str, written: str, text: str) -> None:
    loaded = read(tmp_path, {key: written})

    assert said(loaded) == [f"{key}: {text}"]
    assert all(problem.hint and not problem.unknown_key and not problem.warning for problem in loaded.problems)


def test_a_wrong_value_leaves_its_default(tmp_path: Path) -> None:
    loaded = read(tmp_path, {"mqtt.keepalive": '"10 s"', "health.directory": "1", "modules.default.version": "[]"})

    config = loaded.config
    assert (config.mqtt.keepalive_s, config.health.directory, config.modules) == (
        300.0,
        tmp_path / "health.d",
        {"default": Module()},
    )


def test_a_problem_reads_file_key_reason() -> None:
    problem = Problem(Path("/etc/otad/config.toml"), "mqtt.keepalive", "10 s: must be between 30 s and 20 min")

    assert str(problem) == "/etc/otad/config.toml: mqtt.keepalive: 10 s: must be between 30 s and 20 min"


# --- what is refused: keys that do not go together, that are missing, that nobody knows

TWO_KEYS = [
    ("no product key", {"device.product_key": None}, ["device.product_key: missing"]),
    ("no device name", {"device.device_name": None}, ["device.device_name: missing"]),
    ("no credential", {"device.device_secret": None}, ["device: no credential"]),
    (
        "two credentials",
        {"device.product_secret": '"x"'},
        ["device: more than one credential: device_secret, product_secret"],
    ),
    (
        "a secret and a certificate",
        {"device.certificate_file": '"c.pem"', "device.key_file": '"k.pem"'},
        ["device: more than one credential: device_secret, certificate_file with key_file"],
    ),
    (
        "a certificate without a key",
        {"device.device_secret": None, "device.certificate_file": '"c.pem"'},
        ["device.key_file: missing"],
    ),
    (
        "a key without a certificate",
        {"device.device_secret": None, "device.key_file": '"k.pem"'},
        ["device.certificate_file: missing"],
    ),
    ("no end point", {"mqtt.host": None}, ["mqtt: one of host, instance and region is needed"]),
    (
        "an id of their own that is too long",
        {"device.product_key": f'"{"k" * 40}"', "device.device_name": f'"{"n" * 32}"'},
        ["device.client_id: missing: product_key and device_name make an id of 73 characters, and 64 is the limit"],
    ),
    (
        "a signature without a key",
        {"trust.require_signature": "true"},
        ["trust.require_signature: true without a key"],
    ),
    ("one slot", {"slots.b.device": None, "slots.b.bootname": None}, ["slots: 1 of at least 2"]),
    ("no slots", {key: None for key in SOUND if key.startswith("slots")}, ["slots: 0 of at least 2"]),
    ("a slot without a device", {"slots.b.device": None}, ["slots.b.device: missing"]),
    ("a slot without a bootname", {"slots.b.bootname": None}, ["slots.b.bootname: missing"]),
    ("one device twice", {"slots.b.device": '"sub/../a.img"'}, ["slots.b.device: the same as that of slot a"]),
    ("one bootname twice", {"slots.b.bootname": '"A"'}, ["slots.b.bootname: the same as that of slot a"]),
    (
        "a slot with a strange name",
        {'slots."../c".device': '"c.img"'},
        ['slots."../c": name must be 1 to 32 characters of A-Z a-z 0-9 . _ -'],
    ),
    (
        "a module with a strange name",
        {'modules."m 1".installer': '"slots"'},
        ['modules."m 1": name must be 1 to 64 characters of A-Z a-z 0-9 . _ -'],
    ),
    (
        "several partitions per slot",
        {"slots.a.images.kernel": '"/dev/mmcblk0p1"'},
        ["slots.a.images: reserved for boards with several partitions per slot; not available in this version"],
    ),
    ("no directory on the simulated board", {"boot.directory": None}, ["boot.directory: missing"]),
    ("a backend of later", {"boot.backend": '"grub"'}, ["boot.backend: grub: not available in this version"]),
    ("the default backend", {"boot.backend": None}, ["boot.backend: uboot: not available in this version"]),
    (
        "a slot's version on a real board",
        {"boot.backend": '"grub"', "modules.default.version": '"slot"'},
        [
            'modules.default.version: "slot": only with installer = "slots" and boot.backend = "simulated"',
            "boot.backend: grub: not available in this version",
        ],
    ),
    (
        "files without a directory",
        {"modules.app.installer": '"files"'},
        ['modules.app.directory: missing: installer = "files" needs it'],
    ),
    (
        "a command without a program",
        {"modules.app.installer": '"command"', "modules.app.version": '"file:/v"'},
        ['modules.app.command: missing: installer = "command" needs it'],
    ),
    (
        "a command, and nobody tells its version",
        {"modules.app.installer": '"command"', "modules.app.command": '["/x"]'},
        ["modules.app.version: missing"],
    ),
    (
        "slots, and the system image is files",
        {
            "modules.default.installer": '"files"',
            "modules.default.directory": '"/x"',
            "modules.default.version": '"installed"',
        },
        ["modules: none is made of the slots"],
    ),
    (
        "slots with keys of the others",
        {"modules.default.directory": '"/x"', "modules.default.command": '["/x"]'},
        [
            'modules.default.directory: only with installer = "files"',
            'modules.default.command: not with installer = "slots"',
        ],
    ),
    (
        "an installed version of what is not files",
        {"modules.mcu.installer": '"command"', "modules.mcu.command": '["/x"]', "modules.mcu.version": '"installed"'},
        ['modules.mcu.version: "installed": only with installer = "files"'],
    ),
    (
        "two modules in one directory",
        {
            "modules.x.installer": '"files"',
            "modules.x.directory": '"/x"',
            "modules.y.installer": '"files"',
            "modules.y.directory": '"/x"',
        },
        ["modules.y.directory: the same as that of module x"],
    ),
    (
        "a product secret in the clear",
        {"device.device_secret": None, "device.product_secret": f'"{SECRET}"', "mqtt.tls": "false"},
        ["device.product_secret: needs mqtt.tls = true"],
    ),
    (
        "a certificate in the clear",
        {
            "device.device_secret": None,
            "device.certificate_file": '"c"',
            "device.key_file": '"k"',
            "mqtt.tls": "false",
        },
        ["device.certificate_file: needs mqtt.tls = true"],
    ),
    (
        "a certificate with half a name",
        {
            "device.device_secret": None,
            "device.product_key": None,
            "device.certificate_file": '"c"',
            "device.key_file": '"k"',
        },
        ["device: product_key and device_name go together"],
    ),
    (
        "a certificate at a region, without names",
        {
            "mqtt.host": None,
            "mqtt.region": '"cn-shanghai"',
            "device.device_secret": None,
            "device.product_key": None,
            "device.device_name": None,
            "device.certificate_file": '"c"',
            "device.key_file": '"k"',
        },
        ["mqtt.region: not enough: the end point's name begins with the product key"],
    ),
    (
        "registration over HTTPS, and nowhere to go",
        {"device.device_secret": None, "device.product_secret": f'"{SECRET}"', "device.registration": '"https"'},
        ["device.registration_host: missing: nothing else names it where mqtt.host is an end point of one's own"],
    ),
    (
        "a signature key that is not there",
        {"trust.digestsign_key_file": '"/nonexistent"'},
        ["trust.digestsign_key_file: /nonexistent: No such file or directory"],
    ),
    (
        "a device that is no section",
        {**{key: None for key in SOUND if key.startswith("device")}, "device": "3"},
        ["device: must be a section"],
    ),
    ("an end point that is no section", {"mqtt.host": None, "mqtt": '"x"'}, ["mqtt: must be a section"]),
    (
        "slots that are no section",
        {**{key: None for key in SOUND if key.startswith("slots")}, "slots": "[]"},
        ["slots: must be a section"],
    ),
    ("a slot that is no section", {"slots.c": '"/dev/sda1"'}, ["slots.c: must be a section"]),
    ("a misspelt key", {"mqtt.keep_alive": "60"}, ["mqtt.keep_alive: unknown key, did you mean mqtt.keepalive?"]),
    ("another spelling", {"mqtt.KeepAlive": "60"}, ["mqtt.KeepAlive: unknown key, did you mean mqtt.keepalive?"]),
    ("a key of another section", {"device.socket": "1"}, ["device.socket: unknown key, did you mean control.socket?"]),
    (
        "a key outside its section",
        {"bootname": '"A"'},
        ["bootname: unknown key, did you mean slots.NAME.bootname?"],
    ),
    ("a key in a slot", {"slots.a.devise": '"/x"'}, ["slots.a.devise: unknown key, did you mean slots.a.device?"]),
    ("a key like nothing", {"update.zzz": "1"}, ["update.zzz: unknown key"]),
    ("a section of later", {"policy.window": '"night"'}, ["policy: unknown section"]),
    ("a misspelt section", {"heath.timeout": "1"}, ["heath: unknown section, did you mean health?"]),
    ("a hostile name", {'mqtt."\\u001b[2J\\n"': "1"}, ['mqtt."\\x1b[2J\\n": unknown key']),
]


@pytest.mark.parametrize(("edits", "texts"), [row[1:] for row in TWO_KEYS], ids=[row[0] for row in TWO_KEYS])
def test_what_does_not_go_together_is_said_once(tmp_path: Path, edits: Edits, texts: list[str]) -> None:
    loaded = read(tmp_path, edits)

    assert said(loaded) == texts
    assert all(problem.hint for problem in loaded.problems)


def test_all_problems_are_said_at_once(tmp_path: Path) -> None:
    loaded = read(
        tmp_path,
        {"device.product_key": "1", "mqtt.port": "0", "mqtt.tsl": "true", "slots.b.bootname": '"A"', "state": "1"},
    )

    assert [(problem.key, problem.unknown_key) for problem in loaded.problems] == [
        ("device.product_key", False),
        ("mqtt.tsl", True),
        ("mqtt.port", False),
        ("state", False),
        ("slots.b.bootname", False),
    ]


def test_an_unknown_key_is_no_error_to_a_daemon_after_a_rollback(tmp_path: Path) -> None:
    loaded = read(tmp_path, {"policy.window": '"night"', "mqtt.shiny": "1", "slots.a.shiny": "1", "boot.shiny": "1"})

    assert ([problem.unknown_key for problem in loaded.problems], loaded.errors, loaded.can_boot) == (
        [True] * 4,
        (),
        True,
    )


def test_a_flood_of_unknown_keys_is_cut_short(tmp_path: Path) -> None:
    loaded = read(tmp_path, {f"mqtt.k{n}": "1" for n in range(5000)})

    assert (len(loaded.problems), said(loaded)[-1]) == (51, "mqtt: 4950 more unknown keys")


def test_a_flood_of_slots_is_cut_short(tmp_path: Path) -> None:
    loaded = read(
        tmp_path,
        {f"slots.s{n}.{key}": f'"{n}"' for n in range(500) for key in ("device", "bootname")},
    )

    assert (said(loaded), len(loaded.config.slots)) == (["slots: 502: must be at most 64"], 64)


@pytest.mark.parametrize(
    ("edits", "address"),
    [
        ({"mqtt.instance": '"iot-1"', "mqtt.region": '"cn-shanghai"', "mqtt.port": "1883"}, ("broker.example", 1883)),
        (
            {"mqtt.host": None, "mqtt.instance": '"iot-1"', "mqtt.region": '"cn-shanghai"'},
            ("iot-1.mqtt.iothub.aliyuncs.com", 8883),
        ),
        (
            {"mqtt.host": None, "mqtt.region": '"cn-shanghai"'},
            ("a1B2c3D4e5F.iot-as-mqtt.cn-shanghai.aliyuncs.com", 8883),
        ),
    ],
    ids=["host wins", "then the instance", "then the region"],
)
def test_the_end_point_follows_host_instance_region(tmp_path: Path, edits: Edits, address: tuple[str, int]) -> None:
    loaded = read(tmp_path, edits)

    assert (loaded.problems, endpoint(loaded.config)) == ((), address)


def test_without_any_the_end_point_is_a_configuration_error(tmp_path: Path) -> None:
    config = read(tmp_path, {"mqtt.host": None}).config

    with pytest.raises(ConfigurationError, match="mqtt: none of host, instance and region is set"):
        endpoint(config)


# --- what can still be done with half a configuration


@pytest.mark.parametrize(
    ("edits", "can_boot"),
    [
        ({"device.product_key": None, "mqtt": "1", "mqtt.host": None}, True),
        ({"boot.attempts": '"three"'}, True),
        ({"slots.a.images.kernel": '"/dev/mmcblk0p1"'}, True),
        ({"modules.default.installer": "1", "state.directory": "1"}, True),
        ({"slots.b.bootname": None}, False),
        ({"slots.c.device": '"/dev/sda3"'}, False),
        ({"slots.b.bootname": '"A"'}, False),
        ({"slots.b.device": '"a.img"'}, False),
        ({"slots.b.device": None, "slots.b.bootname": None}, False),
        ({"boot.backend": '"lilo"'}, False),
        ({"boot.backend": '"grub"'}, False),
        ({"boot.directory": None}, False),
        ({"boot.directory": None, "boot.backend": None, "boot": "7"}, False),
    ],
)
def test_marking_good_needs_sound_slots_and_boot_only(tmp_path: Path, edits: Edits, can_boot: bool) -> None:
    loaded = read(tmp_path, edits)

    assert (bool(loaded.errors), loaded.can_boot) == (True, can_boot)


# --- files that are no configuration


def test_a_missing_file_is_a_problem(tmp_path: Path) -> None:
    loaded = load(tmp_path / "none.toml", {})

    assert (said(loaded), loaded.can_boot) == (["No such file or directory"], False)


def test_a_directory_is_a_problem(tmp_path: Path) -> None:
    assert said(load(tmp_path, {})) == ["is a directory"]


def test_a_fifo_is_a_problem_and_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.toml")

    assert said(load(tmp_path / "config.toml", {})) == ["not a regular file"]


def test_a_path_with_a_nul_is_a_problem() -> None:
    assert [problem.text for problem in load("/etc/\0", {}).problems] == ["embedded null byte"]


def test_a_loop_of_links_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "config.toml").symlink_to("config.toml")

    assert said(load(tmp_path / "config.toml", {})) == ["Too many levels of symbolic links"]


def test_an_unreadable_file_is_a_problem() -> None:
    program = (
        "import os, sys\n"
        "from otad.config import load\n"
        "if os.getuid() == 0: os.setuid(65534)\n"  # root may read everything
        "print(*(problem.text for problem in load(sys.argv[1]).problems), sep='|')\n"
    )
    with TemporaryDirectory() as directory:  # not tmp_path: nobody else may enter that one
        Path(directory).chmod(0o711)
        file = write(Path(directory), {})
        file.chmod(0)

        run = subprocess.run([sys.executable, "-c", program, file], capture_output=True, text=True, check=True)

    assert run.stdout == "Permission denied\n"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"[mqtt]\nport = \n", "line 2, column 8: "),
        (b"[mqtt]\nport = 1\nport = 2\n", "line 3, column 9: "),
        (b"[mqtt\n", "line 1, column 6: "),
        (b"[mqtt]\nhost = \"broker", "line 2, column 15: "),
        (b"a = [1,\n", "line 2, column 1: "),
        (b"a\x00b", "line 1, column 2: "),
        (b"PK\x03\x04\x14\x00", "line 1, column 3: "),
        (b"host = \"\xff\"", "byte 8 is not UTF-8"),
        (b"a = " + b"[" * 500_000, "nested too deeply"),
        (b"a = " + b"9" * 5000, "a number has too many digits"),
        (b"#" * ((1 << 20) + 1), "larger than 1 MiB"),
    ],
    ids=lambda value: value[:16] if isinstance(value, bytes) else "",
)  # fmt: skip
def test_what_is_no_toml_is_one_problem_with_its_place(tmp_path: Path, content: bytes, text: str) -> None:
    file = tmp_path / "config.toml"
    file.write_bytes(content)

    loaded = load(file, {})

    (problem,) = said(loaded)
    assert problem.startswith(text)
    assert (loaded.config.slots, loaded.config.mqtt, loaded.can_boot) == ({}, MqttSettings(), False)


def test_a_file_of_just_one_mebibyte_is_read(tmp_path: Path) -> None:
    file = write(tmp_path, {})
    content = file.read_bytes()
    file.write_bytes(content + b"#" * ((1 << 20) - len(content)))

    assert load(file, {}).problems == ()


# --- secrets


@pytest.mark.parametrize("content", [b"s3cret", b"s3cret\n", b" \t\r\n s3cret \r\n\n"])
def test_white_space_around_a_secret_is_no_part_of_it(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "device.secret").write_bytes(content)

    assert read_secret(tmp_path / "device.secret") == "s3cret"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "empty"),
        (b" \n\n", "empty"),
        (b"s\x00ecret", "not printable ASCII"),
        (b"two\nlines", "not printable ASCII"),
        ("schlüssel".encode(), "not printable ASCII"),
        (b"s" * 4097, "larger than 4 KiB"),
    ],
)
def test_what_cannot_be_a_secret_is_refused(tmp_path: Path, content: bytes, text: str) -> None:
    file = tmp_path / "device.secret"
    file.write_bytes(content)
    file.chmod(0o600)

    with pytest.raises(ConfigurationError) as refusal:
        read_secret(file)

    assert refusal.value.problems == (f"{file}: {text}",)
    loaded = read(tmp_path, {"device.device_secret": None, "device.device_secret_file": '"device.secret"'})
    assert said(loaded) == [f"device.device_secret_file: {file}: {text}"]


@pytest.mark.parametrize("key", ["device_secret_file", "product_secret_file"])
def test_a_missing_secret_file_is_a_problem(tmp_path: Path, key: str) -> None:
    loaded = read(tmp_path, {"device.device_secret": None, f"device.{key}": '"none"'})

    assert f"device.{key}: {tmp_path / 'none'}: No such file or directory" in said(loaded)


def test_a_secret_that_everyone_can_read_is_a_warning(tmp_path: Path) -> None:
    file = tmp_path / "device.secret"
    file.write_text(SECRET)
    file.chmod(0o644)

    loaded = read(tmp_path, {"device.device_secret": None, "device.device_secret_file": '"device.secret"'})

    text = f"{file}: can be read by everyone"
    assert loaded.problems == (
        Problem(loaded.config.file, "device.device_secret_file", text, f"chmod o= {file}", warning=True),
    )
    assert loaded.errors == ()


def test_a_secret_in_a_file_that_everyone_can_read_is_a_warning(tmp_path: Path) -> None:
    file = write(tmp_path, {})
    file.chmod(0o644)

    loaded = load(file, {})

    assert (said(loaded), loaded.errors) == (
        ["device.device_secret: stands in a file that can be read by everyone"],
        (),
    )


def test_the_service_manager_may_hold_the_secret(tmp_path: Path) -> None:
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "device.secret").write_text(SECRET)
    (credentials / "device.secret").chmod(0o400)

    loaded = read(tmp_path, {"device.device_secret": None}, {"CREDENTIALS_DIRECTORY": str(credentials)})

    assert (loaded.problems, loaded.config.device.device_secret_file) == ((), credentials / "device.secret")


def test_a_credential_of_the_service_manager_counts_as_one(tmp_path: Path) -> None:
    (tmp_path / "device.secret").write_text(SECRET)

    loaded = read(tmp_path, {}, {"CREDENTIALS_DIRECTORY": str(tmp_path)})

    assert said(loaded) == ["device: more than one credential: device_secret, systemd credential device.secret"]


def test_a_service_without_that_credential_has_none(tmp_path: Path) -> None:
    loaded = read(tmp_path, {"device.device_secret": None}, {"CREDENTIALS_DIRECTORY": str(tmp_path)})

    assert said(loaded) == ["device: no credential"]


@pytest.mark.parametrize(
    "edits",
    [
        {},
        {"device.device_secret": f'"{SECRET}\\u0007"'},
        {"device.device_secret": f'["{SECRET}"]'},
        {"device.device_secret": f'{{ x = "{SECRET}" }}'},
        {"device.product_secret": f'"{SECRET}"'},
        {"download.proxy": f'"ftp://user:{SECRET}@proxy"'},
        {"download.proxy": f'"http://user:{SECRET}@proxy:3128"'},
    ],
)
def test_secrets_appear_in_no_problem_and_no_repr(tmp_path: Path, edits: Edits) -> None:
    loaded = read(tmp_path, edits)

    assert SECRET not in repr(loaded) + " ".join(map(str, loaded.problems))


# --- one description


def test_every_field_is_described_and_every_section_is_in_the_configuration() -> None:
    assert [section.name for section in SECTIONS] == [field.name for field in fields(Config) if field.name != "file"]
    for section in SECTIONS:
        assert [key.field for key in section.keys] == [field.name for field in fields(section.shape)]
        assert all(key.why and key.kind.says for key in section.keys)


def commented(text: str) -> dict[str, tuple[str, str]]:
    """Dotted key to the value as written and the comment above it; slots and modules without their names."""
    found: dict[str, tuple[str, str]] = {}
    section, comment = "", ""
    for line in text.splitlines():
        if match := re.fullmatch(r"\[(\w+)(?:\.(\w+))?\]", line):
            section = "" if match[2] == "b" else match[1]
        elif line.startswith("# "):
            comment += line[1:]
            continue
        elif section and (match := re.fullmatch(r"(\w+) = (.*)", line)):
            assert f"{section}.{match[1]}" not in found, f"{section}.{match[1]} stands there twice"
            found[f"{section}.{match[1]}"] = (match[2], comment.strip())
        comment = ""
    return found


def test_the_example_holds_every_key_with_default_kind_and_reason() -> None:
    expected = {
        f"{section.name}.{key.name}": (
            tomllib.loads(
                f"x = {json.dumps(key.example if f'{section.name}.{key.name}' in FILLED_IN else key.default)}"
            ),
            f"{key.why} ({key.kind.says})",
        )
        for section in SECTIONS
        for key in section.keys
    }

    found = commented(EXAMPLE.read_text())

    assert {key: (tomllib.loads(f"x = {value}"), why) for key, (value, why) in found.items()} == expected


def test_the_example_is_a_configuration(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(EXAMPLE.read_text())
    (tmp_path / "device.secret").write_text(SECRET)
    (tmp_path / "device.secret").chmod(0o600)

    loaded = load(tmp_path / "config.toml", {})

    unavailable = [] if Backend.UBOOT in AVAILABLE_BACKENDS else ["boot.backend"]
    assert [problem.key for problem in loaded.problems] == unavailable
    assert (loaded.config.mqtt, list(loaded.config.slots)) == (MqttSettings(instance="iot-060a70tq"), ["a", "b"])


def test_loading_brings_in_no_network_code() -> None:
    program = "import sys, otad.config; print(sorted({'aiohttp', 'asyncio', 'ssl', 'aiomqtt'} & set(sys.modules)))"

    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert run.stdout == "[]\n"


# --- whatever is in the file

NAMES = [section.name for section in SECTIONS] + [key.name for section in SECTIONS for key in section.keys]
WORDS = st.sampled_from([*NAMES, "a", "b", "images"]) | st.text("ab-_\u202e\x1b\n", max_size=8)
SCALARS = (
    st.booleans()
    | st.integers()
    | st.integers(min_value=1 << 20_000, max_value=1 << 20_001)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["5 min", "8 MiB", "", "slot", "file:", "simulated", "\x00", "/", "5"])
    | st.dates()
    | st.datetimes()
    | st.times()
)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=4))


def toml(value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case int():
            return hex(value) if value > 10**9 else str(value)
        case float():
            return repr(value)
        case str():
            return '"' + "".join(f"\\U{ord(c):08x}" for c in value if not 0xD800 <= ord(c) < 0xE000) + '"'
        case list():
            return f"[{', '.join(map(toml, value))}]"
        case dict():
            return "{" + ", ".join(f"{toml(key)} = {toml(inner)}" for key, inner in value.items()) + "}"
        case date() | time():
            return value.isoformat()
        case _:
            raise AssertionError(value)


def check_loads(directory: Path, content: bytes) -> Loaded:
    file = directory / "fuzzed.toml"
    file.write_bytes(content)
    loaded = load(file, {})
    for problem in loaded.problems:
        assert str(problem).isprintable(), problem
    assert len(repr(loaded.problems)) < 200_000
    return loaded


REPEATED = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@REPEATED
@given(document=st.dictionaries(WORDS, VALUES, max_size=6))
@example(document={"slots": {"a": {"device": 1 << 20_000}}, "mqtt": {"keepalive": 1 << 20_000}})
def test_no_document_makes_loading_raise(tmp_path: Path, document: dict[str, object]) -> None:
    text = "\n".join(f"{toml(key)} = {toml(value)}" for key, value in document.items())
    tomllib.loads(text)  # it is TOML, and so gets past the parser

    loaded = check_loads(tmp_path, text.encode())

    assert loaded.problems, "no such document is a whole configuration"


@REPEATED
@given(content=st.binary(max_size=400) | st.text("[]{}=.\"'#\n\\,ab1-_ \t:T", max_size=400).map(str.encode))
def test_no_bytes_make_loading_raise(tmp_path: Path, content: bytes) -> None:
    assert check_loads(tmp_path, content).problems


@REPEATED
@given(
    at=st.floats(0, 1, exclude_max=True),
    put=st.binary(max_size=4) | st.sampled_from([b'"', b"[", b"]", b"=", b"\n", b"nan", b"{}", b"."]),
    taken=st.integers(0, 30),
)
def test_no_damage_to_a_sound_file_makes_loading_raise(tmp_path: Path, at: float, put: bytes, taken: int) -> None:
    sound = EXAMPLE.read_bytes()
    cut = int(len(sound) * at)

    loaded = check_loads(tmp_path, sound[:cut] + put + sound[cut + taken :])

    assert not loaded.can_boot or len(loaded.config.slots) >= 2


def test_the_system_image_need_not_be_written_down_beside_another_module(tmp_path: Path) -> None:
    app = {"modules.app.installer": '"files"', "modules.app.directory": '"x"'}
    loaded = read(tmp_path, {"modules.default.version": None, **app})

    assert loaded.problems == ()
    assert list(loaded.config.modules) == ["default", "app"]
    assert loaded.config.modules["default"] == Module()
    assert loaded.config.modules["app"].version == InstalledVersion()
    assert loaded.config.needs_slots


def test_without_slots_no_boot_loader_is_needed(tmp_path: Path) -> None:
    without: Edits = {key: None for key in SOUND if key.startswith(("slots", "boot", "modules"))}
    loaded = read(tmp_path, {**without, "modules.app.installer": '"files"', "modules.app.directory": '"x"'})

    assert loaded.problems == ()
    assert loaded.can_boot
    assert not loaded.config.needs_slots


def test_what_is_named_and_without_effect_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "health.d").mkdir()
    for name in ("10-app", "README~", ".hidden", "10-app.dpkg-old"):
        (tmp_path / "health.d" / name).write_text("#!/bin/sh")
    loaded = read(tmp_path, {"mqtt.ca_file": '"roots.pem"', "download.ca_file": '"health.d"'})

    assert said(loaded) == [
        f"mqtt.ca_file: {tmp_path / 'roots.pem'}: No such file or directory",
        f"download.ca_file: {tmp_path / 'health.d'}: is a directory",
        f"health.directory: {tmp_path / 'health.d' / '10-app'}: not executable, so not a health check",
    ]
    assert all(problem.warning for problem in loaded.problems)


def test_the_simulated_board_never_reboots_the_machine_it_is_simulated_on(tmp_path: Path) -> None:
    assert read(tmp_path, {}).config.reboot.command == ()
    assert read(tmp_path, {"reboot.command": '["true"]'}).config.reboot.command == ("true",)
    assert read(tmp_path, {"reboot.command": "[]", "reboot.force_command": "[]"}).problems == ()


def test_an_installer_that_is_none_makes_no_other_problem(tmp_path: Path) -> None:
    docker = {"modules.mcu.installer": '"docker"', "modules.mcu.command": '["/x"]', "modules.mcu.directory": '"y"'}
    assert said(read(tmp_path, docker)) == ['modules.mcu.installer: "docker": must be one of slots, files, command']
