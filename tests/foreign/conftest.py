# SPDX-License-Identifier: Apache-2.0
"""Aliyun's Python SDK, in a virtual environment that is made when it is missing."""

import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.foreign.sdk import Sdk, running

ROOT = Path(__file__).parents[2]
SETTING_UP_S = 100


@pytest.fixture(scope="session")
def sdk_python() -> Path:
    """The interpreter that has the SDK."""
    try:
        made = subprocess.run(
            ["bash", "-c", ". tests/setup.sh && set_up_sdk"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=SETTING_UP_S,
            check=False,
        )
        problem = made.stderr.strip().rpartition("\n")[2] if made.returncode else ""
    except subprocess.TimeoutExpired:
        problem = f"not done after {SETTING_UP_S} s"
    if problem:
        pytest.skip(f"Aliyun's SDK cannot be installed: {problem}")
    return ROOT / ".venv-sdk/bin/python"


@pytest.fixture
async def start_sdk(sdk_python: Path) -> AsyncIterator[Callable[..., Awaitable[Sdk]]]:
    """`await start_sdk(pk=..., dn=..., mqtt={...})` gives an `Sdk`."""
    async with AsyncExitStack() as stack:

        async def start(**options: Any) -> Sdk:
            return await stack.enter_async_context(running(sdk_python, options))

        yield start
