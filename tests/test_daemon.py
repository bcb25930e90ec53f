# SPDX-License-Identifier: Apache-2.0
"""What keeps a daemon from starting at all."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from otad.simulation import MIB, Gateway
from tests.test_durable import Loop, loop  # noqa: F401 - a fixture

DEVICE = (
    '[device]\nproduct_key = "a1test"\ndevice_name = "gateway-1"\ndevice_secret = "x"\n[mqtt]\nhost = "127.0.0.1"\n'
)


@pytest.fixture
def mounted(loop: Loop) -> Iterator[Loop]:  # noqa: F811
    loop.mount()
    yield loop
    loop.unmount()


def test_a_state_directory_on_a_slot_is_fatal(tmp_path: Path, mounted: Loop) -> None:
    gateway = Gateway(tmp_path / "gateway")
    gateway.provision(DEVICE, "1-0-0", MIB)
    text = gateway.config.read_text().replace('"b.img"', f'"{mounted.device}"')
    state = mounted.mount_point / "otad"
    gateway.config.write_text(text.replace('directory = "state"', f'directory = "{state}"'))
    ended = subprocess.run(
        [sys.executable, "-m", "otad", "run", "--config", str(gateway.config)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert ended.returncode == 2
    assert f"{state}: lies on slot b" in ended.stderr
    assert "set state.directory to storage that all slots mount" in ended.stderr
