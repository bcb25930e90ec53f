# SPDX-License-Identifier: Apache-2.0
"""How fast and how small a transfer is, beside others: `python tests/bench/transfer.py [--mib 512] [--runs 5]`.

An image goes over loopback HTTP (nginx) into a slot file, by otad's transfer in a process of its own and by whatever
else is installed, interleaved so that a busy machine is unfair to all alike. CPU is that of the whole process tree,
from a cgroup of its own: `tee >(...)` escapes every other account. Memory is the sum of each process's peak resident
set. What swupdate and mender need (keys, archives) is made in the temporary directory. It prints medians and ratios and
never fails on time; it needs root for the cgroup, and says so where it has to do without.
"""

import argparse
import contextlib
import hashlib
import io
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

MIB = 1 << 20


@dataclass(frozen=True)
class Sample:
    wall_s: float
    cpu_s: float
    peak_bytes: int


@dataclass
class Contender:
    """A command that fetches the image and leaves it durable in the slot file."""

    name: str
    command: Callable[[], list[str]]
    environment: dict[str, str] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    inside: list[Sample] = field(default_factory=list)  # without the start of the process, where it tells
    trouble: str = ""


# ---------------------------------------------------------------------------------------------- measuring


class Account:
    """A cgroup (v1 or v2) for one process tree."""

    def __init__(self) -> None:
        name = f"otad-bench-{os.getpid()}"
        self.directory: Path | None = None
        for root, clock in ((Path("/sys/fs/cgroup/cpuacct"), "cpuacct.usage"), (Path("/sys/fs/cgroup"), "cpu.stat")):
            with contextlib.suppress(OSError):
                directory = root / name
                directory.mkdir(exist_ok=True)
                (directory / clock).read_text()
                self.directory, self._clock = directory, directory / clock
                return

    def close(self) -> None:
        if self.directory is not None:
            with contextlib.suppress(OSError):
                self.directory.rmdir()

    def joined(self, command: list[str]) -> list[str]:
        """The command, that joins before it begins."""
        if self.directory is None:
            return command
        return ["sh", "-c", f'echo $$ > {self.directory}/cgroup.procs && exec "$@"', "sh", *command]

    def cpu_s(self) -> float:
        if self.directory is None:
            times = os.times()
            return times.children_user + times.children_system
        text = self._clock.read_text()
        return int(text) / 1e9 if text[0].isdigit() else int(text.split()[1]) / 1e6

    def peaks(self) -> dict[int, int]:
        """Peak resident bytes of each process alive."""
        if self.directory is None:
            return {}
        found = {}
        for pid in (self.directory / "cgroup.procs").read_text().split():
            with contextlib.suppress(OSError):
                for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                    if line.startswith("VmHWM:"):
                        found[int(pid)] = int(line.split()[1]) * 1024
        return found


def measure(contender: Contender, account: Account) -> Sample:
    peaks: dict[int, int] = {}
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            peaks.update(account.peaks())

    watcher = threading.Thread(target=watch)
    cpu_before, began = account.cpu_s(), time.perf_counter()
    process = subprocess.Popen(
        account.joined(contender.command()),
        env=os.environ | contender.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    watcher.start()
    output, _ = process.communicate()
    wall = time.perf_counter() - began
    over.set()
    watcher.join()
    if process.returncode:
        contender.trouble = output.decode(errors="replace").strip()[-200:] or f"exit status {process.returncode}"
    for line in output.decode(errors="replace").splitlines():
        if line.startswith("measured "):
            wall_s, cpu_s, peak_bytes = line.split()[1:]
            contender.inside.append(Sample(float(wall_s), float(cpu_s), int(peak_bytes)))
            peaks = {0: int(peak_bytes)}  # it knows better than who looked now and then
    return Sample(wall, account.cpu_s() - cpu_before, sum(peaks.values()))


# ---------------------------------------------------------------------------------------------- the server


@contextlib.contextmanager
def nginx(directory: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    configuration = directory / "nginx.conf"
    configuration.write_text(
        f"daemon off; pid {directory}/nginx.pid; error_log {directory}/nginx.log; worker_processes 1; user root;\n"
        f"events {{}}\nhttp {{ access_log off; sendfile on; client_body_temp_path {directory}/b; "
        f"proxy_temp_path {directory}/p; fastcgi_temp_path {directory}/f; uwsgi_temp_path {directory}/u; "
        f"scgi_temp_path {directory}/s; server {{ listen 127.0.0.1:{port}; root {directory}; }} }}\n"
    )
    process = subprocess.Popen(["nginx", "-c", str(configuration)], stderr=subprocess.DEVNULL)
    try:
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.02)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


# ---------------------------------------------------------------------------------------------- contenders


def make_image(path: Path, size: int) -> str:
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for _ in range(size // MIB):
            content = os.urandom(MIB)
            digest.update(content)
            file.write(content)
    return digest.hexdigest()


def wipe(slot: Path, size: int) -> None:
    """Nobody shall find the image there already: mender leaves alone what is right."""
    with slot.open("r+b" if slot.exists() else "wb") as file:
        for _ in range(size // MIB):
            file.write(bytes(MIB))
        file.flush()
        os.fsync(file.fileno())


def child(*arguments: object) -> list[str]:
    return [sys.executable, str(Path(__file__).with_name("transfer_child.py")), *map(str, arguments)]


def contenders(
    directory: Path, url: str, slot: Path, device: str | None, size: int, sha256: str, overrides: list[str]
) -> Iterator[Contender]:
    image = f"{url}/image"
    yield Contender("otad, read back", lambda: child("otad", image, slot, size, sha256, *overrides))
    pipe = (
        f"curl -sS {image} | tee >(openssl dgst -sha256 > {directory}/digest) | "
        f"dd of={slot} bs=1M iflag=fullblock conv=notrunc,fsync status=none; wait; grep -q {sha256} {directory}/digest"
    )
    yield Contender("curl | tee >(openssl) | dd", lambda: ["bash", "-c", pipe])
    yield Contender("aiohttp + aiofiles, 8 KiB", lambda: child("aiofiles", image, slot, sha256))
    if shutil.which("swupdate"):
        yield swupdate(directory, url, slot, sha256)
    if shutil.which("mender") and device:
        yield mender(directory, url, device, sha256)


def swupdate(directory: Path, url: str, slot: Path, sha256: str) -> Contender:
    """Signed and streamed, as Debian builds it. Its raw installer does not sync: sync(1) is part of the work."""
    description, signature = directory / "sw-description", directory / "sw-description.sig"
    description.write_text(
        'software = { version = "2.0.0"; hardware-compatibility: [ "1.0" ]; images: ( { filename = "image"; '
        f'device = "{slot}"; type = "raw"; installed-directly = true; sha256 = "{sha256}"; }} ); }};\n'
    )
    quiet_run(
        f"cd {directory} && openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -days 2 "
        "-subj /CN=bench -addext extendedKeyUsage=emailProtection && openssl cms -sign -in sw-description "
        "-out sw-description.sig -signer cert.pem -inkey key.pem -outform DER -nosmimecap -binary"
    )
    with (directory / "image.swu").open("wb") as archive:
        for path in (description, signature, directory / "image"):
            add_cpio_member(archive, path.name, path)
        add_cpio_member(archive, "TRAILER!!!", None)
    command = f"swupdate -H bench:1.0 -M -m -k {directory}/cert.pem -d '-u {url}/image.swu' && sync {slot}"
    own = directory / "swupdate"  # it clears up there, whoever the files belong to
    own.mkdir()
    return Contender("swupdate; sync", lambda: ["bash", "-c", command], {"TMPDIR": str(own)})


def add_cpio_member(archive: BinaryIO, name: str, path: Path | None) -> None:
    """The "new" ASCII format with checksums, cpio(5)."""
    size, checksum = (path.stat().st_size, 0) if path else (0, 0)
    if path:
        with path.open("rb") as file:
            while content := file.read(MIB):
                checksum += sum(content)
    numbers = (1, 0o100644, 0, 0, 1, 0, size, 0, 0, 0, 0, len(name) + 1, checksum & 0xFFFFFFFF)
    head = b"070702" + b"".join(b"%08X" % number for number in numbers) + name.encode() + b"\0"
    archive.write(head + b"\0" * (-len(head) % 4))
    if path:
        with path.open("rb") as file:
            shutil.copyfileobj(file, archive, MIB)
        archive.write(b"\0" * (-size % 4))


def mender(directory: Path, url: str, device: str, sha256: str) -> Contender:
    """An unsigned rootfs artifact of format 3, into a loop device: it takes nothing else."""
    home = directory / "mender"
    (home / "scripts").mkdir(parents=True)
    (home / "bin").mkdir()
    reads, writes = f'#!/bin/sh\nfor key; do grep "^$key=" {home}/environment; done\n', "#!/bin/sh\ncat > /dev/null\n"
    tools = {"fw_printenv": reads, "grub-mender-grubenv-print": reads}
    for name, text in (tools | {"fw_setenv": writes, "grub-mender-grubenv-set": writes}).items():
        (home / "bin" / name).write_text(text)
        (home / "bin" / name).chmod(0o755)
    variables = "mender_boot_part=2", "upgrade_available=0", "bootcount=0", "mender_uboot_separator=1"
    (home / "environment").write_text("\n".join(variables) + "\n")
    (home / "device_type").write_text("device_type=bench\n")
    root = quiet_run("findmnt -no SOURCE /").strip()
    (home / "mender.conf").write_text(
        json.dumps({"RootfsPartA": root, "RootfsPartB": device, "ServerURL": "https://x"})
    )
    make_mender_artifact(directory / "image.mender", directory / "image", sha256)
    command = (
        "mount -t tmpfs none /etc/mender && echo artifact_name=old > /etc/mender/artifact_info && "
        f"PATH={home}/bin:$PATH && rm -f {home}/mender-store* && "
        f"exec mender --no-syslog -c {home}/mender.conf -b {home}/mender.conf -d {home} install {url}/image.mender"
    )
    return Contender("mender-client (loop device)", lambda: ["unshare", "-m", "bash", "-c", command])


def make_mender_artifact(artifact: Path, image: Path, sha256: str) -> None:
    def tar(*members: tuple[str, bytes]) -> bytes:
        made = io.BytesIO()
        with tarfile.open(fileobj=made, mode="w") as archive:
            for name, content in members:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        return made.getvalue()

    provides = {"rootfs-image.checksum": sha256, "rootfs-image.version": "bench"}
    info = {
        "payloads": [{"type": "rootfs-image"}],
        "artifact_provides": {"artifact_name": "bench"},
        "artifact_depends": {"device_type": ["bench"]},
    }
    kind = {"type": "rootfs-image", "artifact_provides": provides, "clears_artifact_provides": ["rootfs-image.*"]}
    version = json.dumps({"format": "mender", "version": 3}).encode()
    header = tar(("header-info", json.dumps(info).encode()), ("headers/0000/type-info", json.dumps(kind).encode()))
    sums = [(sha256, "data/0000/image"), (hashlib.sha256(header).hexdigest(), "header.tar")]
    sums.append((hashlib.sha256(version).hexdigest(), "version"))
    manifest = "".join(f"{digest}  {name}\n" for digest, name in sums).encode()
    payload = artifact.with_suffix(".tar")
    with tarfile.open(payload, "w") as inner:
        inner.add(image, "image")
    with tarfile.open(artifact, "w") as outer:
        for name, content in (("version", version), ("manifest", manifest), ("header.tar", header)):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            outer.addfile(member, io.BytesIO(content))
        outer.add(payload, "data/0000.tar")
    payload.unlink()


def quiet_run(command: str) -> str:
    return subprocess.run(["bash", "-c", command], check=True, capture_output=True, text=True).stdout


@contextlib.contextmanager
def loop_device(path: Path) -> Iterator[str | None]:
    made = subprocess.run(["losetup", "-f", "--show", str(path)], check=False, capture_output=True, text=True)
    device = made.stdout.strip() or None
    try:
        yield device
    finally:
        if device:
            subprocess.run(["losetup", "-d", device], check=False)


def report(everybody: list[Contender], size: int) -> None:
    def middle(samples: list[Sample], what: str) -> float:
        return statistics.median(getattr(sample, what) for sample in samples)

    ours = everybody[0]
    print(f"{'':36}{'wall s':>8}{'CPU s':>8}{'CPU s/GB':>10}{'peak MiB':>10}{'otad wall':>11}{'otad CPU':>10}")
    rows = [(contender.name, contender.samples, contender.trouble) for contender in everybody]
    rows.insert(1, ("  without the start of its process", ours.inside, ours.trouble))
    for name, samples, trouble in rows:
        if trouble or not samples:
            print(f"{name:36}{trouble}")
            continue
        wall, cpu, peak = (middle(samples, what) for what in ("wall_s", "cpu_s", "peak_bytes"))
        against = ours.inside or ours.samples
        print(
            f"{name:36}{wall:8.2f}{cpu:8.2f}{cpu / size * 1e9:10.2f}{peak / MIB:10.1f}"
            f"{middle(against, 'wall_s') / wall:10.2f}x{middle(against, 'cpu_s') / cpu if cpu else 0:9.2f}x"
        )
    print(
        "Ratios are of otad without the start of its process: a daemon runs already. It does import aiohttp in there."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--mib", type=int, default=512, help="size of the image (512); 1024 for the memory of a 1 GiB image"
    )
    parser.add_argument("--runs", type=int, default=5, help="interleaved runs of each (5)")
    parser.add_argument("--loop", action="store_true", help="into a loop device instead of a file")
    parser.add_argument("--only", default="", help="only those with this in their name, and otad")
    parser.add_argument("--directory", help="on the storage to measure (default: the system's temporary one)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="another Pace or HTTP constant for otad"
    )
    options = parser.parse_args()
    size = options.mib * MIB
    directory = Path(tempfile.mkdtemp(prefix="otad-bench-", dir=options.directory))
    account = Account()
    if account.directory is None:
        print("no cgroup: CPU misses what the shell's children spend, and there is no memory")
    try:
        sha256 = make_image(directory / "image", size)
        wipe(directory / "slot", size)
        with nginx(directory) as url, loop_device(directory / "slot") as device:
            slot = Path(device) if device and options.loop else directory / "slot"
            everybody = [
                contender
                for contender in contenders(directory, url, slot, device, size, sha256, options.set)
                if contender.name.startswith("otad") or options.only in contender.name
            ]
            for _ in range(options.runs):
                for contender in everybody:
                    os.sync()
                    contender.samples.append(measure(contender, account))
                    wipe(directory / "slot", size)
            report(everybody, size)
    finally:
        account.close()
        shutil.rmtree(directory)


if __name__ == "__main__":
    main()
