# SPDX-License-Identifier: Apache-2.0
"""The real disk: files that are replaced whole, places that give back what the medium holds."""

import contextlib
import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from otad.durable import ALIGNMENT, RealDisk, Tree, pages

MIB = 1 << 20


@pytest.fixture
def disk() -> RealDisk:
    return RealDisk()


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


def filled(size: int, seed: int = 1) -> memoryview:
    """`size` bytes that are nowhere alike, in a buffer that begins on a page."""
    buffer = pages(-(-size // ALIGNMENT) * ALIGNMENT)
    content = (bytes(range(seed, 251)) * (size // (251 - seed) + 1))[:size]
    buffer[:size] = content
    return buffer[:size]


# -- files


def test_reads_a_byte_more_than_it_may_so_that_the_caller_sees_there_is_more(disk: RealDisk, tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_bytes(b"123456")

    assert disk.read(path, 4) == b"12345"
    assert disk.read(path, 6) == b"123456"


def test_a_missing_file_is_no_other_error(disk: RealDisk, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        disk.read(tmp_path / "state.json", 10)


def test_a_replaced_file_has_the_content_and_is_private(disk: RealDisk, tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    disk.replace(path, b"one")
    path.chmod(0o644)
    disk.replace(path, b"two")

    assert (path.read_bytes(), mode(path)) == (b"two", 0o600)
    assert os.listdir(tmp_path) == ["state.json"]


def test_whoever_reads_while_a_file_is_replaced_sees_the_old_one_whole(disk: RealDisk, tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    disk.replace(path, b"old" * 1000)
    with path.open("rb") as reader:
        disk.replace(path, b"new")

        assert reader.read() == b"old" * 1000


def test_what_a_cut_left_of_an_earlier_replacement_is_no_obstacle(disk: RealDisk, tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    (tmp_path / "state.json.tmp").write_bytes(b"half a st")
    disk.replace(path, b"whole")

    assert path.read_bytes() == b"whole"
    assert os.listdir(tmp_path) == ["state.json"]


@pytest.mark.parametrize("name", ["state.json", "state.json.tmp"])
def test_a_symbolic_link_is_replaced_and_never_followed(disk: RealDisk, tmp_path: Path, name: str) -> None:
    victim = tmp_path / "shadow"
    victim.write_bytes(b"secret")
    (tmp_path / name).symlink_to(victim)
    disk.replace(tmp_path / "state.json", b"state")

    assert victim.read_bytes() == b"secret"
    assert (tmp_path / "state.json").read_bytes() == b"state"
    assert not (tmp_path / "state.json").is_symlink()


def test_a_replacement_that_does_not_fit_leaves_the_old_file(tmp_path: Path) -> None:
    """A process of its own runs into its file size limit, as into a full disk."""
    program = """
import resource, signal, sys
from pathlib import Path
from otad.durable import RealDisk
path = Path(sys.argv[1])
RealDisk().replace(path, b"old")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
limits = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
try:
    RealDisk().replace(path, b"n" * 8192)
except OSError as error:
    print(error.errno, path.read_bytes().decode())
resource.setrlimit(resource.RLIMIT_FSIZE, limits)
"""
    command = [sys.executable, "-c", program, str(tmp_path / "state.json")]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)

    assert ran.stdout.split() == [str(errno.EFBIG), "old"]


def test_appends_at_the_end_of_a_private_file(disk: RealDisk, tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    disk.append(path, b"one\n")
    disk.append(path, b"two\n")

    assert (path.read_bytes(), mode(path)) == (b"one\ntwo\n", 0o600)


def test_does_not_append_through_a_symbolic_link(disk: RealDisk, tmp_path: Path) -> None:
    victim = tmp_path / "shadow"
    victim.write_bytes(b"secret")
    (tmp_path / "history.jsonl").symlink_to(victim)

    with pytest.raises(OSError, match="symbolic links") as caught:
        disk.append(tmp_path / "history.jsonl", b"line\n")
    assert caught.value.errno == errno.ELOOP
    assert victim.read_bytes() == b"secret"


def test_makes_directories_with_their_parents_for_nobody_else(disk: RealDisk, tmp_path: Path) -> None:
    disk.make_directory(tmp_path / "lib" / "otad" / "staging")
    disk.make_directory(tmp_path / "lib" / "otad" / "staging")

    assert [mode(tmp_path / "lib" / "otad"), mode(tmp_path / "lib" / "otad" / "staging")] == [0o700, 0o700]


def test_lists_renames_and_removes(disk: RealDisk, tmp_path: Path) -> None:
    for name in ("b", "a"):
        disk.replace(tmp_path / name, b"")
    disk.rename(tmp_path / "a", tmp_path / "c")
    disk.remove(tmp_path / "b")
    disk.remove(tmp_path / "b")

    assert disk.names(tmp_path) == ["c"]


def test_says_how_much_is_free(disk: RealDisk, tmp_path: Path) -> None:
    assert 0 < disk.free_bytes(tmp_path) < 1 << 60


# -- links and trees


def test_a_link_is_made_replaced_and_read(disk: RealDisk, tmp_path: Path) -> None:
    link = tmp_path / "current"
    assert disk.read_link(link) is None
    for target in ("one", "two/three", "/four"):
        (tmp_path / "current.tmp").touch()  # what a cut left of an earlier one
        disk.replace_link(link, target)

        assert disk.read_link(link) == target
        assert os.listdir(tmp_path) == ["current"]


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch], ids=["directory", "file"])
def test_what_is_no_link_is_not_read_as_one(disk: RealDisk, tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "current")

    with pytest.raises(OSError, match="Invalid argument"):
        disk.read_link(tmp_path / "current")


def test_a_directory_is_made_of_the_mode_that_is_asked_for(disk: RealDisk, tmp_path: Path) -> None:
    disk.make_directory(tmp_path / "lib" / "app", mode=0o755)

    assert [mode(tmp_path / "lib"), mode(tmp_path / "lib" / "app")] == [0o755, 0o755]


@pytest.fixture
def tree(disk: RealDisk, tmp_path: Path) -> Iterator[Tree]:
    made = disk.create_tree(tmp_path / "tree")
    yield made
    made.close()


def test_a_tree_holds_what_was_put_into_it(tree: Tree, tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        tree.make_directory("bin")
        tree.make_directory("bin/deep")
        tree.make_file("bin/deep/run", (b"#!", memoryview(b"/bin/sh"), b""), executable=True)
        tree.make_file("text", iter(()))
        tree.make_link("bin/link", "deep/run")
        tree.make_other_name("same", "bin/deep/run")
    finally:
        os.umask(before)
    for name in ("bin/deep/run", "text", "bin/deep", "bin", ""):
        tree.sync(name)

    root = tmp_path / "tree"
    assert (root / "same").read_bytes() == b"".join(tree.chunks("same")) == b"#!/bin/sh"
    assert os.readlink(root / "bin/link") == "deep/run"
    assert (root / "same").stat().st_ino == (root / "bin/deep/run").stat().st_ino
    assert [mode(root / name) for name in ("", "bin", "bin/deep/run", "text")] == [0o755, 0o755, 0o755, 0o644]


@pytest.mark.parametrize("name", ["taken", "dangling"])
def test_a_name_in_a_tree_is_taken_once(tree: Tree, name: str) -> None:
    tree.make_file("taken", (b"first",))
    tree.make_link("dangling", "nowhere")
    for make in (
        lambda: tree.make_file(name, (b"second",)),
        lambda: tree.make_directory(name),
        lambda: tree.make_link(name, "x"),
        lambda: tree.make_other_name(name, "taken"),
    ):
        with pytest.raises(FileExistsError):
            make()
    assert b"".join(tree.chunks("taken")) == b"first"


@pytest.mark.parametrize("name", ["out/new", "out/sub/new", "sub/out/new"])
def test_nothing_is_made_behind_a_symbolic_link(tree: Tree, tmp_path: Path, name: str) -> None:
    """Whoever puts it there, and whenever: an archive, or somebody who may write to the directory as well."""
    outside = tmp_path / "outside"
    (outside / "sub").mkdir(parents=True)
    (outside / "file").write_bytes(b"secret")
    tree.make_directory("sub")
    (tmp_path / "tree" / "out").symlink_to(outside)
    (tmp_path / "tree" / "sub" / "out").symlink_to(outside)
    (tmp_path / "tree" / "file").symlink_to(outside / "file")

    for make in (
        lambda: tree.make_file(name, (b"x",)),
        lambda: tree.make_directory(name),
        lambda: tree.make_link(name, "x"),
        lambda: tree.make_other_name("new", name.replace("new", "file")),
        lambda: tree.make_file("file", (b"x",)),
        lambda: tree.sync("file"),
        lambda: list(tree.chunks("file")),
    ):
        with pytest.raises(OSError):  # noqa: PT011 - ELOOP, ENOTDIR or EEXIST
            make()
    assert sorted(os.listdir(outside)) == ["file", "sub"]
    assert os.listdir(outside / "sub") == []
    assert (outside / "file").read_bytes() == b"secret"


def test_a_directory_that_is_exchanged_for_a_link_while_it_is_filled_leads_nowhere(tree: Tree, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "tree").rename(tmp_path / "moved")
    (tmp_path / "tree").symlink_to(outside)
    tree.make_file("new", (b"x",))

    assert os.listdir(outside) == []
    assert os.listdir(tmp_path / "moved") == ["new"]


def test_a_new_tree_takes_the_place_of_whatever_was_there(disk: RealDisk, tmp_path: Path) -> None:
    path, outside = tmp_path / "tree", tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    for make in (
        lambda: path.symlink_to(outside),
        path.touch,
        lambda: (path / "sub" / "deep").mkdir(parents=True),
    ):
        disk.remove_tree(path)
        make()
        disk.create_tree(path).close()

        assert (path.is_symlink(), os.listdir(path), os.listdir(outside)) == (False, [], ["kept"])


def test_a_tree_is_removed_and_what_its_links_point_to_is_not(disk: RealDisk, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    path = tmp_path / "tree"
    (path / "sub" / "deep").mkdir(parents=True)
    (path / "sub" / "file").write_bytes(b"x")
    (path / "sub" / "out").symlink_to(outside)
    os.mkfifo(path / "fifo")
    disk.remove_tree(path)
    disk.remove_tree(path)

    assert os.listdir(tmp_path) == ["outside"]
    assert os.listdir(outside) == ["kept"]


def test_a_tree_leaves_no_descriptor_open(disk: RealDisk, tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    made = disk.create_tree(tmp_path / "tree")
    for number in range(20):
        made.make_directory("d/" * number + "d")
        made.make_file("d/" * number + "file", (b"x",))
        made.sync("d/" * number + "file")
        assert list(made.chunks("d/" * number + "file")) == [b"x"]
        with contextlib.suppress(OSError):
            made.make_file("none/file", ())
    made.close()
    disk.remove_tree(tmp_path / "tree")

    assert len(os.listdir("/proc/self/fd")) == before


# -- places


@pytest.fixture
def slot(tmp_path: Path) -> Path:
    """A slot of 1 MiB and a bit, full of an older image."""
    path = tmp_path / "slot"
    path.write_bytes(b"\xee" * (MIB + 512))
    return path


@pytest.mark.parametrize("size", [1, 511, 4095, 4096, 4097, 65536, 65536 + 4096 + 17, MIB + 512])
def test_a_place_gives_back_what_was_written_and_keeps_what_lies_behind(disk: RealDisk, slot: Path, size: int) -> None:
    content = filled(size)
    place = disk.open_place(slot)
    place.write(0, content)
    place.sync()
    buffer = pages(2 * MIB)
    count = place.read_into(0, buffer)
    place.close()

    assert count == place.bytes == MIB + 512
    assert buffer[:size] == content
    assert bytes(buffer[size:count]) == b"\xee" * (count - size)
    assert slot.read_bytes() == bytes(content) + b"\xee" * (MIB + 512 - size)


def test_chunks_and_their_unaligned_tail_meet_without_a_seam(disk: RealDisk, slot: Path) -> None:
    content = filled(3 * 65536 + 1000)
    place = disk.open_place(slot)
    for offset in range(0, len(content), 65536):
        place.write(offset, content[offset : offset + 65536])
        place.sync()
    place.close()

    assert slot.read_bytes()[: len(content)] == content


def test_a_buffer_that_is_not_aligned_is_written_all_the_same(disk: RealDisk, slot: Path) -> None:
    place = disk.open_place(slot)
    place.write(0, filled(20_001)[1:])
    place.write(20_000, memoryview(b"read-only bytes"))
    place.write(100, memoryview(b""))
    place.sync()
    place.close()

    assert slot.read_bytes()[:20_015] == bytes(filled(20_001)[1:]) + b"read-only bytes"


def test_an_offset_that_is_not_aligned_is_written_all_the_same(disk: RealDisk, slot: Path) -> None:
    place = disk.open_place(slot)
    place.write(0, filled(8192))
    place.write(100, filled(8192, seed=7))
    place.sync()
    buffer = pages(16384)
    place.read_into(0, buffer)
    place.close()

    assert bytes(buffer[:8292]) == bytes(filled(100)) + bytes(filled(8192, seed=7))


def test_reads_from_the_middle_and_only_up_to_the_end(disk: RealDisk, slot: Path) -> None:
    place = disk.open_place(slot)
    place.write(0, filled(MIB))
    place.sync()
    buffer = pages(65536)

    assert place.read_into(65536, buffer) == 65536
    assert buffer == filled(MIB)[65536:131072]
    assert place.read_into(MIB, buffer) == 512
    assert place.read_into(MIB + 4096, buffer) == 0
    place.close()


def test_a_range_read_before_it_was_written_is_read_anew(disk: RealDisk, slot: Path) -> None:
    place = disk.open_place(slot)
    buffer = pages(4096)
    place.read_into(0, buffer)
    place.write(0, filled(1000))
    place.sync()
    place.read_into(0, buffer)
    place.close()

    assert buffer[:1000] == filled(1000)


def test_nothing_is_written_behind_the_end(disk: RealDisk, slot: Path) -> None:
    place = disk.open_place(slot)
    with pytest.raises(OSError, match="the place has") as caught:
        place.write(MIB, filled(513))
    place.close()

    assert caught.value.errno == errno.ENOSPC
    assert slot.read_bytes() == b"\xee" * (MIB + 512)


def test_a_slot_that_another_process_writes_is_busy(disk: RealDisk, slot: Path) -> None:
    program = (
        "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen([sys.executable, "-c", program, str(slot)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdin is not None
    assert other.stdout is not None
    try:
        other.stdout.readline()

        with pytest.raises(OSError, match="somebody else writes it") as caught:
            disk.open_place(slot)
        assert caught.value.errno == errno.EBUSY
        disk.open_place(slot, write=False).close()
    finally:
        other.stdin.close()
        other.wait(10)
        other.stdout.close()

    disk.open_place(slot).close()


def test_a_place_is_opened_once(disk: RealDisk, slot: Path) -> None:
    first = disk.open_place(slot)
    with pytest.raises(OSError, match="somebody else writes it"):
        disk.open_place(slot)
    first.close()

    disk.open_place(slot).close()


def test_a_place_opened_to_read_takes_no_bytes(disk: RealDisk, slot: Path) -> None:
    place = disk.open_place(slot, write=False)
    with pytest.raises(OSError, match="Bad file descriptor"):
        place.write(0, filled(4096))
    place.close()


@pytest.mark.parametrize("kind", ["directory", "device", "missing"])
def test_what_is_no_slot_is_not_opened(disk: RealDisk, tmp_path: Path, kind: str) -> None:
    path = {"directory": tmp_path, "device": Path("/dev/null"), "missing": tmp_path / "nothing"}[kind]
    wanted = {"directory": errno.EISDIR, "device": errno.EINVAL, "missing": errno.ENOENT}[kind]

    with pytest.raises(OSError) as caught:  # noqa: PT011 - the number is the message
        disk.open_place(path)
    assert caught.value.errno == wanted


def test_a_refused_place_leaves_no_descriptor_open(disk: RealDisk, slot: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    held = disk.open_place(slot)
    for path in (slot, Path("/dev/null")):
        with contextlib.suppress(OSError):
            disk.open_place(path)
    held.close()

    assert len(os.listdir("/proc/self/fd")) == before


def test_a_staging_file_has_its_space_taken_and_is_private(disk: RealDisk, tmp_path: Path) -> None:
    path = tmp_path / "1.package"
    place = disk.create_place(path, MIB + 5)
    status = path.stat()
    place.close()

    assert (place.bytes, status.st_size, mode(path)) == (MIB + 5, MIB + 5, 0o600)
    assert status.st_blocks * 512 >= MIB


def test_a_staging_file_keeps_what_an_earlier_try_left(disk: RealDisk, tmp_path: Path) -> None:
    path = tmp_path / "1.package"
    place = disk.create_place(path, 10_000)
    place.write(0, filled(6000))
    place.sync()
    place.close()
    disk.create_place(path, 10_000).close()

    assert path.read_bytes() == bytes(filled(6000)) + bytes(4000)


def test_an_empty_staging_file_is_one(disk: RealDisk, tmp_path: Path) -> None:
    place = disk.create_place(tmp_path / "1.package", 0)

    assert place.read_into(0, pages(4096)) == 0
    place.close()


def test_a_staging_file_is_not_made_through_a_symbolic_link(disk: RealDisk, tmp_path: Path) -> None:
    victim = tmp_path / "shadow"
    victim.write_bytes(b"secret")
    (tmp_path / "1.package").symlink_to(victim)

    with pytest.raises(OSError, match="symbolic links"):
        disk.create_place(tmp_path / "1.package", 10)
    assert victim.read_bytes() == b"secret"


def test_a_staging_file_in_use_is_busy(disk: RealDisk, tmp_path: Path) -> None:
    place = disk.create_place(tmp_path / "1.package", 10)
    with pytest.raises(OSError, match="somebody else writes it"):
        disk.create_place(tmp_path / "1.package", 10)
    place.close()


def test_a_file_system_in_memory_is_no_medium(disk: RealDisk) -> None:
    if not os.access("/dev/shm", os.W_OK):
        pytest.skip("/dev/shm is not writable")
    path = Path(f"/dev/shm/otad-test-{os.getpid()}")
    try:
        place = disk.create_place(path, 10_000)
        place.write(0, filled(9000))
        place.sync()
        buffer = pages(12288)
        count = place.read_into(0, buffer)
        place.close()
    finally:
        path.unlink(missing_ok=True)

    assert not place.from_medium
    assert (count, bytes(buffer[:9000])) == (10_000, bytes(filled(9000)))


# -- real devices and full file systems, where we may


class Loop:
    """A loop device on a file of 4 MiB, with a file system on it."""

    def __init__(self, directory: Path) -> None:
        self.image = directory / "disk.img"
        self.image.write_bytes(bytes(4 * MIB))
        self.mount_point = directory / "mnt"
        self.mount_point.mkdir()
        run("mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-m", "0", str(self.image))
        self.device = Path(run("losetup", "--find", "--show", str(self.image)).strip())

    def mount(self) -> None:
        run("mount", str(self.device), str(self.mount_point))

    def unmount(self) -> None:
        run("umount", str(self.mount_point))

    def close(self) -> None:
        with contextlib.suppress(subprocess.CalledProcessError):
            self.unmount()
        run("losetup", "--detach", str(self.device))


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Loop]:
    if os.geteuid() != 0:
        pytest.skip("only root makes loop devices")
    try:
        device = Loop(tmp_path)
    except (subprocess.CalledProcessError, FileNotFoundError) as error:
        pytest.skip(f"no loop device here: {error}")
    try:
        yield device
    finally:
        device.close()


def test_a_mounted_device_is_busy_and_an_open_one_cannot_be_mounted(disk: RealDisk, loop: Loop) -> None:
    loop.mount()
    with pytest.raises(OSError, match="busy") as caught:
        disk.open_place(loop.device)
    assert caught.value.errno == errno.EBUSY
    loop.unmount()

    place = disk.open_place(loop.device)
    with pytest.raises(subprocess.CalledProcessError):
        loop.mount()
    place.close()


def test_a_device_gives_back_what_was_written_and_keeps_what_lies_behind(disk: RealDisk, loop: Loop) -> None:
    before = loop.image.read_bytes()
    content = filled(MIB + 100_001)
    place = disk.open_place(loop.device)
    place.write(0, content[:MIB])
    place.write(MIB, content[MIB:])
    place.sync()
    buffer = pages(2 * MIB)
    count = place.read_into(0, buffer)
    place.close()

    assert (place.bytes, place.from_medium, count) == (4 * MIB, True, 2 * MIB)
    assert buffer[: len(content)] == content
    assert loop.image.read_bytes() == bytes(content) + before[len(content) :]


def test_a_full_file_system_says_so_and_keeps_the_old_state(disk: RealDisk, loop: Loop) -> None:
    loop.mount()
    state = loop.mount_point / "state.json"
    disk.replace(state, b"old")

    with pytest.raises(OSError, match="No space left") as caught:
        disk.create_place(loop.mount_point / "1.package", 8 * MIB)
    assert caught.value.errno == errno.ENOSPC
    disk.remove(loop.mount_point / "1.package")

    filler = disk.create_place(loop.mount_point / "filler", disk.free_bytes(loop.mount_point) - 16384)
    filler.close()
    with pytest.raises(OSError, match="No space left"):
        disk.replace(state, bytes(MIB))
    assert state.read_bytes() == b"old"

    disk.replace(state, b"new")
    assert state.read_bytes() == b"new"
    loop.unmount()
