# SPDX-License-Identifier: Apache-2.0
"""Debian's mosquitto as a broker for tests, on a port of its own.

    async with Mosquitto(tmp_path, users={"gw001&a1": "secret"}) as broker:
        ... "127.0.0.1", broker.port ...
        await broker.restart()
        await broker.logged("DISCONNECT from")

Without `users` everyone may connect. Nothing is waited for by sleeping: mosquitto says in its log when it is up, and
what it has received.
"""

import asyncio
import os
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

PROGRAM = "/usr/sbin/mosquitto"


@dataclass(frozen=True)
class Certificate:
    """A self-signed certificate, its own root."""

    file: Path
    key: Path


def make_certificate(
    directory: Path,
    host: str = "localhost",
    *,
    begins: str = "20200101000000Z",
    ends: str = "20991231235959Z",
    name: str = "server",
) -> Certificate:
    """A certificate for `host`, valid between the two moments."""
    file, key, request = (directory / f"{name}{suffix}" for suffix in (".crt", ".key", ".csr"))
    configuration = directory / f"{name}.cnf"
    configuration.write_text(
        f"[ca]\ndefault_ca=c\n[c]\ndatabase={directory / name}.index\nserial={directory / name}.serial\n"
        f"new_certs_dir={directory}\ndefault_md=sha256\npolicy=p\nx509_extensions=e\n[p]\ncommonName=supplied\n"
        f"[e]\nsubjectAltName=DNS:{host}\nbasicConstraints=CA:TRUE\n"
    )
    (directory / f"{name}.index").write_text("")
    (directory / f"{name}.serial").write_text(f"{int.from_bytes(os.urandom(8), 'big') | 1 << 63:X}\n")
    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    _run("openssl", "req", *new_key, "-subj", f"/CN={host}", "-keyout", str(key), "-out", str(request))
    _run(
        *("openssl", "ca", "-batch", "-notext", "-config", str(configuration), "-selfsign", "-keyfile", str(key)),
        *("-in", str(request), "-out", str(file), "-startdate", begins, "-enddate", ends),
    )
    return Certificate(file, key)


def free_port() -> int:
    """A port on which nobody listens just now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


class Mosquitto:
    """A mosquitto process; the port stays the same over `stop` and `start`."""

    def __init__(
        self, directory: Path, *, users: Mapping[str, str] | None = None, certificate: Certificate | None = None
    ) -> None:
        self.port = free_port()
        self.log: list[str] = []
        self._directory = directory
        self._users = users
        self._certificate = certificate
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._more = asyncio.Event()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Returns when connections are accepted."""
        mark = len(self.log)
        self._process = await asyncio.create_subprocess_exec(
            PROGRAM, "-c", str(self._configuration()), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        self._reading = asyncio.create_task(self._read(self._process), name="mosquitto's log")
        await self.logged(" running", after=mark)

    async def stop(self) -> None:
        """Returns when the process is gone, and with it all connections."""
        if self._process is None or self._reading is None:
            return
        if self._process.returncode is None:
            self._process.kill()  # SIGTERM is lost on a mosquitto that has only just said that it is running
        await self._process.wait()
        await self._reading
        self._process = self._reading = None

    async def restart(self) -> None:
        await self.stop()
        await self.start()

    async def logged(self, text: str, after: int = 0, timeout_s: float = 5) -> str:
        """Wait for a line of the log with `text` in it, behind the first `after` lines; that line."""
        async with asyncio.timeout(timeout_s):
            while True:
                for line in self.log[after:]:
                    if text in line:
                        return line
                assert self._reading is None or not self._reading.done(), "\n".join(self.log)
                self._more.clear()
                await self._more.wait()

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        async for line in process.stderr:
            self.log.append(line.decode(errors="replace").rstrip())
            self._more.set()
        self._more.set()

    def _configuration(self) -> Path:
        lines = [
            f"listener {self.port} 127.0.0.1",
            f"allow_anonymous {'false' if self._users is not None else 'true'}",
            "log_dest stderr",
            "log_type all",
            "max_keepalive 65535",
        ]
        if os.geteuid() == 0:
            lines.append("user root")  # or it could not read the files below
        if self._users is not None:
            passwords = self._directory / "mosquitto.passwords"
            passwords.unlink(missing_ok=True)
            passwords.touch(0o600)
            for user, password in self._users.items():
                _run("mosquitto_passwd", "-b", str(passwords), user, password)
            lines.append(f"password_file {passwords}")
        if self._certificate is not None:
            lines += [f"certfile {self._certificate.file}", f"keyfile {self._certificate.key}"]
        file = self._directory / "mosquitto.conf"
        file.write_text("\n".join(lines) + "\n")
        return file


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command[0]}: {done.stderr}"
