# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the transfer's tests: servers on loopback, and a gateway to bring something to."""

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from transfer_world import Gateway, Places, WebServer, deployment_of


@pytest.fixture
def gateway(tmp_path: Path) -> Gateway:
    return Gateway(Places(tmp_path), deployment_of())


@pytest.fixture
async def server() -> AsyncIterator[WebServer]:
    served = WebServer()
    listening = await asyncio.start_server(served.run, "127.0.0.1", 0)
    served.port = listening.sockets[0].getsockname()[1]
    yield served
    served.released.set()
    listening.close()
    await listening.wait_closed()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for localhost, with its key behind it in the same file."""
    directory = tmp_path_factory.mktemp("tls")
    file = directory / "both.pem"
    subprocess.run(
        f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost "
        f"-keyout {directory}/key.pem -out {directory}/cert.pem",
        shell=True,
        check=True,
        capture_output=True,
    )
    file.write_bytes((directory / "cert.pem").read_bytes() + (directory / "key.pem").read_bytes())
    return file


@pytest.fixture
async def tls_server(certificate: Path) -> AsyncIterator[WebServer]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    served = WebServer(tls=context)
    listening = await asyncio.start_server(served.run, "127.0.0.1", 0, ssl=context)
    served.port = listening.sockets[0].getsockname()[1]
    yield served
    served.released.set()
    listening.close()
    await listening.wait_closed()
