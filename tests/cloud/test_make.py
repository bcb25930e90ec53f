# SPDX-License-Identifier: Apache-2.0
"""From a configuration to a session, or to none."""

from pathlib import Path

import pytest

from otad import config
from otad.cloud.cloud import Cloud, SessionState
from otad.cloud.make import make_cloud
from otad.cloud.off import Off
from otad.cloud.session import Session
from otad.durable import RealDisk

SOUND = """
[device]
product_key = "a1"
device_name = "gw001"
device_secret = "s3cr3t"
[mqtt]
host = "127.0.0.1"
port = 1
tls = false
[modules.default]
installer = "command"
command = ["true"]
version = "file:version"
"""


def made(directory: Path, text: str) -> Cloud:
    file = directory / "config.toml"
    file.write_text(text)
    file.chmod(0o600)
    return make_cloud(config.load(file, {}), RealDisk(), lambda _: None, lambda: None)


async def test_a_sound_configuration_makes_a_session(tmp_path: Path) -> None:
    session = made(tmp_path, SOUND)

    assert isinstance(session, Session)
    assert session.view.state is SessionState.OFFLINE
    assert session.names is None


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('device_name = "gw001"\n', "", "config.toml: device.device_name: missing"),
        ("port = 1\n", "port = 0\n", "config.toml: mqtt.port: 0: must be a whole number between 1 and 65535"),
        ("[device]\n", "[device\n", "config.toml: line 2"),
    ],
)
async def test_without_knowing_whom_to_talk_to_there_is_none(tmp_path: Path, old: str, new: str, says: str) -> None:
    cloud = made(tmp_path, SOUND.replace(old, new))

    assert isinstance(cloud, Off)
    assert (cloud.view.state, cloud.names) == (SessionState.OFF, None)
    assert cloud.view.detail.startswith("1 error in the configuration: ")
    assert says in cloud.view.detail


async def test_other_errors_do_not_keep_it_from_making_one(tmp_path: Path) -> None:
    assert isinstance(made(tmp_path, SOUND + "[health]\ntimeout = 0\n"), Session)
