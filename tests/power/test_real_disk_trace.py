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
    "?open,openat,write,pwrite64,fallocate,fsync,fdatasync,?rename,renameat,renameat2,?unlink,unlinkat,?mkdir,mkdirat,"
    "?rmdir,?symlink,symlinkat,?link,linkat"
)
NAMED = re.compile(r'(?:(?:AT_FDCWD|\d+)(?:<(?P<directory>[^>]*)>)?, )?"(?P<name>[^"]*)"')
OPEN = re.compile(r"^\d+<(?P<path>[^>]*)>")
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
    for _ in range(2):  # the second time there is something to be removed
        tree = disk.create_tree(directory / "tree.partial")
        tree.make_directory("sub")
        tree.make_directory("sub/below")
        tree.make_file("sub/below/file", (b"one", b"two"))
        tree.make_file("program", (b"#!",), executable=True)
        tree.make_file("empty", ())
        tree.make_link("sub/to", "below/file")
        tree.make_other_name("same", "sub/below/file")
        for name in ("sub/below/file", "program", "", "sub", "sub/below"):
            tree.sync(name)
        assert b"".join(tree.chunks("same")) == b"onetwo"
        tree.close()
    disk.rename(directory / "tree.partial", directory / "tree")
    disk.replace_link(directory / "current", "tree")
    disk.replace_link(directory / "current", "other")
    assert disk.read_link(directory / "current") == "other"
    assert disk.read_link(directory / "nothing") is None
    disk.sync_directory(directory)
    disk.remove_tree(directory / "tree")
    disk.remove_tree(directory / "tree")
    disk.remove_tree(directory / "current")


def on_real_disk(root: Path, directory: Path) -> list[str]:
    """What the kernel was asked for, in the words of `Power.log`."""
    (directory / "slot.img").write_bytes(bytes(8192))
    trace = directory.parent / "trace"
    tracer = ["strace", "-f", "-y", "-qq", "-o", str(trace), "-e", f"trace={CALLS}"]
    use_it = [sys.executable, "-m", "tests.power.test_real_disk_trace", str(directory)]
    subprocess.run([*tracer, *use_it], cwd=root, check=True, timeout=60)
    known, directories = {"slot.img"}, {directory.name}
    lines = trace.read_text().splitlines()
    return [word for line in lines for word in _words(line, directory, known, directories)]


def _words(line: str, directory: Path, known: set[str], directories: set[str]) -> Iterator[str]:
    """`known` are the files there are by now, and `directories` what has been one."""
    match = LINE.match(line)
    if match is None or int(match["result"]) < 0 or str(directory) not in match["arguments"]:
        return
    call, arguments = match["call"], match["arguments"]
    if (is_open := OPEN.match(arguments)) is not None and call in (
        "write",
        "pwrite64",
        "fallocate",
        "fsync",
        "fdatasync",
    ):
        name = Path(is_open["path"]).name
        is_sync = call in ("fsync", "fdatasync")
        yield f"{'fsync' if is_sync else 'write'} {name}{'/' if name in directories else ''}"
        return
    names = [Path(found["directory"] or "/", found["name"]).name for found in NAMED.finditer(arguments)]
    name = names[0]
    match call:
        case "openat" | "open" if "O_CREAT" in arguments and name not in known:
            known.add(name)
            yield f"create {name}"
        case "rename" | "renameat" | "renameat2":
            known.discard(name)
            yield f"rename {name} {names[-1]}"
        case "rmdir" | "unlink" | "unlinkat":
            known.discard(name)
            yield f"{'rmdir' if call == 'rmdir' or 'AT_REMOVEDIR' in arguments else 'unlink'} {name}"
        case "mkdir" | "mkdirat":
            directories.add(name)
            yield f"mkdir {name}"
        case "symlink" | "symlinkat":
            yield f"symlink {names[-1]}"
        case "link" | "linkat":
            yield f"link {names[-1]}"
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
