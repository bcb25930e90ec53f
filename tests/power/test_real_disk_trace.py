# SPDX-License-Identifier: Apache-2.0
"""The disk that the sweeps cut does what the real one does: the same calls, in the same order, seen by strace(1).

Without this the sweeps would prove something about a model only.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from otad.durable import Disk, RealDisk, pages
from tests.power.memory_disk import MemoryDisk, Power, Storage

CALLS = (
    "?open,openat,write,pwrite64,fallocate,fsync,fdatasync,?rename,renameat,renameat2,?unlink,unlinkat,?mkdir,mkdirat"
)
LINE = re.compile(r"^(\d+ +)?(?P<call>\w+)\((?P<arguments>.*)\) += (?P<result>-?\d+)")


def use(disk: Disk, directory: Path) -> None:
    """Everything that is done to storage, at least once."""
    state = directory / "state"
    disk.make_directory(state / "staging")
    disk.make_directory(state)
    disk.replace(state / "state.json", b"one")
    disk.replace(state / "state.json", b"two")
    disk.append(state / "history.jsonl", b"first\n")
    disk.append(state / "history.jsonl", b"second\n")
    disk.rename(state / "state.json", state / "state.json.broken")
    disk.remove(state / "state.json.broken")
    disk.remove(state / "state.json.broken")
    for place in (disk.create_place(state / "staging" / "package", 8192), disk.open_place(directory / "slot.img")):
        buffer = pages(8192)
        place.write(0, buffer[:4096])
        place.write(4096, buffer[:4096])
        place.sync()
        place.read_into(0, buffer)
        place.write(0, buffer[:100])
        place.sync()
        place.close()


def on_real_disk(root: Path, directory: Path) -> list[str]:
    """What the kernel was asked for, in the words of `Power.log`."""
    (directory / "slot.img").write_bytes(bytes(8192))
    trace = directory.parent / "trace"
    tracer = ["strace", "-f", "-y", "-qq", "-o", str(trace), "-e", f"trace={CALLS}"]
    use_it = [sys.executable, "-m", "tests.power.test_real_disk_trace", str(directory)]
    subprocess.run([*tracer, *use_it], cwd=root, check=True, timeout=60)
    known = {"slot.img"}
    return [word for line in trace.read_text().splitlines() for word in _words(line, directory, known)]


def _words(line: str, directory: Path, known: set[str]) -> Iterator[str]:
    match = LINE.match(line)
    if match is None or int(match["result"]) < 0 or str(directory) not in match["arguments"]:
        return
    paths = [Path(found) for found in re.findall(rf'["<]({re.escape(str(directory))}[^">]*)[">]', match["arguments"])]
    name = paths[0].name
    match match["call"]:
        case "openat" | "open" if "O_CREAT" in match["arguments"] and name not in known:
            known.add(name)
            yield f"create {name}"
        case "write" | "pwrite64" | "fallocate":
            yield f"write {name}"
        case "fsync" | "fdatasync":
            yield f"fsync {name}{'/' if paths[0].is_dir() else ''}"
        case "rename" | "renameat" | "renameat2":
            known.discard(name)
            yield f"rename {name} {paths[-1].name}"
        case "unlink" | "unlinkat":
            known.discard(name)
            yield f"unlink {name}"
        case "mkdir" | "mkdirat":
            yield f"mkdir {name}"
        case _:
            pass


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_both_disks_do_the_same(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    directory = tmp_path / "gateway"
    directory.mkdir()
    storage, power = Storage(), Power()
    storage.provide_directory(directory)
    storage.provide(directory / "slot.img", bytes(8192))

    use(MemoryDisk(storage, power), directory)
    assert len(power.log) > 30
    assert on_real_disk(pytestconfig.rootpath, directory) == power.log


if __name__ == "__main__":
    use(RealDisk(), Path(sys.argv[1]))
