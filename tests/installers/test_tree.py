# SPDX-License-Identifier: Apache-2.0
"""Archives as real tools and hostile people make them: a directory with what they hold, or a reason and none."""

import io
import os
import shutil
import stat
import struct
import subprocess
import sys
import tarfile
import threading
import tracemalloc
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otad.durable import RealDisk
from otad.errors import Code, UpdateError
from otad.installers.archive import Entry, Kind
from otad.installers.manifest import TREE_BOUNDS
from otad.installers.staging import PlaceFile
from otad.installers.tree import Package, carry, fit
from tests.installers.in_place import FILES, MIB, PACKERS, deployment, ignore, member, read_tree, tar, write, zipped


def unpack(package: bytes, directory: Path) -> Path:
    """What becomes of a package; of one that is refused, nothing but what is called partial."""
    disk = RealDisk()
    place = disk.create_place(directory / "package", len(package))
    try:
        write(place, package)
        new = deployment(package)
        target = directory / "apps" / "new"
        target.parent.mkdir()
        carry(disk, new, Package(new, place, unpack=True), target, threading.Event(), ignore)
    finally:
        place.close()
    assert os.listdir(target.parent) == ["new"]
    return target


def refusal(package: bytes, directory: Path) -> str:
    with pytest.raises(UpdateError) as caught:
        unpack(package, directory)
    assert caught.value.failure.code is Code.FORMAT
    assert set(os.listdir(directory / "apps")) <= {"new.partial"}
    assert caught.value.failure.detail.isprintable()
    assert len(caught.value.failure.detail) < 400
    return caught.value.failure.detail


# What real tools make.

TREE = """
mkdir -p app/bin app/etc/deep app/empty
printf '#!/bin/sh\\n' > app/bin/run; chmod 4755 app/bin/run
printf 'a=1\\n' > app/etc/app.conf; chmod 600 app/etc/app.conf
head -c 300000 /dev/zero > app/etc/deep/zeros; chmod 777 app/etc/deep/zeros; chmod 2777 app/etc/deep
printf 'Grüße' > 'app/a name with spaces and ü'
ln -s ../bin/run app/etc/start; ln -s deep app/etc/link; ln app/bin/run app/bin/same
"""
TOOLS = [
    "tar cf - -C app .",
    "tar cf - --format=ustar -C app .",
    "tar cf - --format=gnu -C app bin etc empty 'a name with spaces and ü'",
    "tar czf - -C app .",
    "tar cJf - -C app .",
    "tar cf - --zstd -C app .",
    "cd app; zip -qry ../x.zip .; cat ../x.zip",
    "cd app; zip -qry0 ../x.zip .; cat ../x.zip",
    "cd app; zip -qry - . | cat",
    "cd app; find . ! -type d | sort -r | zip -qry@ ../x.zip; zip -qry ../x.zip empty; cat ../x.zip",
    "find app ! -type d | sort -r | tar cf - --transform s,^app/,, -T - -C app empty",
]


@pytest.mark.parametrize("command", TOOLS)
def test_a_tree_of_a_real_tool_comes_out_as_it_was_but_for_modes_and_owners(command: str, tmp_path: Path) -> None:
    if shutil.which(command.removeprefix("cd app; ").split()[0]) is None:
        pytest.skip("tool not installed")
    made = subprocess.run(TREE + command, shell=True, cwd=tmp_path, capture_output=True, check=False)
    assert made.returncode == 0, made.stderr
    target = unpack(made.stdout, tmp_path)

    assert read_tree(target) == read_tree(tmp_path / "app")
    assert sorted(os.listdir(target)) == ["a name with spaces and ü", "bin", "empty", "etc"]
    assert (os.readlink(target / "etc/start"), os.readlink(target / "etc/link")) == ("../bin/run", "deep")
    modes = {path: stat.S_IMODE((target / path).stat().st_mode) for path in ("bin/run", "etc/app.conf", "etc/deep", "")}
    assert modes == {"bin/run": 0o755, "etc/app.conf": 0o644, "etc/deep": 0o755, "": 0o755}
    assert (target / "bin/run").stat().st_uid == os.getuid()
    if "tar" in command:
        assert (target / "bin/same").stat().st_ino == (target / "bin/run").stat().st_ino


REFUSED_TOOLS = {
    "mkfifo x; tar cf - x": "tar: 'x' is a fifo",
    "tar cf - -C /dev null": "tar: 'null' is a device node",
    "mkfifo x; echo > y; tar cf - y x": "tar: 'x' is a fifo",
    "tar cPf - /etc/hostname": "tar: unsafe name '/etc/hostname'",
    "ln -s /etc/passwd x; tar cf - x": "symbolic link 'x' to '/etc/passwd': only straight",
    "ln -s /etc/passwd x; zip -qy x.zip x; cat x.zip": "symbolic link 'x' to '/etc/passwd': only straight",
    "mkdir d; tar cf - d": "package: holds no file",
    "echo > x; tar cf - x x": "tar: name 'x' twice",
    "echo > x; tar cf - x; echo": "tar: something behind its end",
    "echo > x; zip -q -P secret x.zip x; cat x.zip": "zip: 'x' is encrypted",
    "truncate -s 9M x; tar cSf - x": "tar: 'x' is a sparse file",
}


@pytest.mark.parametrize(("command", "reason"), REFUSED_TOOLS.items(), ids=REFUSED_TOOLS)
def test_what_is_no_tree_of_files_is_refused(command: str, reason: str, tmp_path: Path) -> None:
    if ("zip" in command) and shutil.which("zip") is None:
        pytest.skip("zip is not installed")
    made = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, check=False)
    (tmp_path / "package").unlink(missing_ok=True)

    assert reason in refusal(made.stdout, tmp_path)


# Names and links.


def fitted(*entries: tuple[str, Kind, str] | tuple[str, Kind]) -> list[tuple[str, Kind, str]]:
    made = [Entry(name, kind, target=target[0] if target else "") for name, kind, *target in entries]
    return [(entry.name, entry.kind, entry.target) for entry in fit(made)]


FILE, DIRECTORY, LINK, OTHER_NAME = Kind.FILE, Kind.DIRECTORY, Kind.LINK, Kind.OTHER_NAME


def test_parents_are_made_before_what_lies_in_them() -> None:
    assert fitted(("./a/b/c", FILE), ("a/b", DIRECTORY), (".", DIRECTORY), ("a/d", FILE)) == [
        ("a", DIRECTORY, ""),
        ("a/b", DIRECTORY, ""),
        ("a/b/c", FILE, ""),
        ("a/d", FILE, ""),
    ]


@pytest.mark.parametrize(
    "name",
    [
        "/x",
        "../x",
        "a/../x",
        "a/..",
        "..",
        "",
        "x\0y",
        "x\ny",
        "a/\x1b[2J",
        "x\x7f",
        "//x",
        "/",
        "./../x",
        "a/b/../../x",
    ],
)
def test_an_unsafe_name_is_refused(name: str) -> None:
    with pytest.raises(UpdateError, match="unsafe name"):
        fitted((name, FILE))


@pytest.mark.parametrize("name", ["x" * 256, "ü" * 128, "/".join(["d" * 200] * 6), "d/" * 64 + "x"])
def test_a_name_that_is_too_long_is_refused(name: str) -> None:
    with pytest.raises(UpdateError, match="is too long"):
        fitted((name, FILE))


@pytest.mark.parametrize("name", ["x" * 255, "d/" * 63 + "x", "a..b", "...", " ", "dev-disk-by\\x2dlabel.device", "A"])
def test_a_name_that_is_only_unusual_is_kept(name: str) -> None:
    assert fitted((name, FILE))[-1] == (name, FILE, "")


@pytest.mark.parametrize(
    "entries",
    [
        (("x", FILE), ("x", FILE)),
        (("x", FILE), ("./x", FILE)),
        (("x", FILE), ("x", DIRECTORY)),
        (("x", DIRECTORY), ("x", LINK, "y")),
        (("x/y", FILE), ("x", FILE)),
        (("x", LINK, "y"), ("x", FILE)),
        ((".", FILE),),
    ],
)
def test_one_name_for_two_things_is_refused(entries: tuple[tuple[str, Kind], ...]) -> None:
    with pytest.raises(UpdateError, match="twice"):
        fitted(*entries)


def test_names_that_differ_in_case_are_two() -> None:
    assert len(fitted(("x", FILE), ("X", FILE))) == 2


@pytest.mark.parametrize("above", [FILE, LINK])
def test_nothing_lies_below_what_is_no_directory(above: Kind) -> None:
    with pytest.raises(UpdateError, match="'x/y/z' lies below 'x', which is no directory"):
        fitted(("x", above, "a"), ("x/y/z", FILE))


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("x", "/etc"),
        ("x", ".."),
        ("x", "../x"),
        ("a/x", "../../b"),
        ("a/x", "../.."),
        ("a/x", "b/../../.."),
        ("a/x", "b/.."),
        ("a/x", "./.."),
        ("x", ""),
        ("x", "y\nz"),
        ("x", "y" * 1025),
    ],
)
def test_a_symbolic_link_that_may_lead_out_is_refused(name: str, target: str) -> None:
    with pytest.raises(UpdateError, match="only straight to what is in the package"):
        fitted((name, LINK, target))


@pytest.mark.parametrize(
    ("name", "target"), [("x", "y"), ("a/x", "../y"), ("a/b/x", "../../c/d"), ("a/x", ".."), ("x", ".")]
)
def test_a_symbolic_link_within_is_kept(name: str, target: str) -> None:
    assert fitted((name, LINK, target))[-1] == (name, LINK, target)


def test_a_row_of_links_does_not_lead_out(tmp_path: Path) -> None:
    """Each of them stays within by itself; together they would not, if one could go up behind another."""
    up = member("p/q/r/root", tarfile.SYMTYPE, "../../..")
    out = member("p/q/r/out", tarfile.SYMTYPE, "root/../..")

    assert "'p/q/r/out' to 'root/../..'" in refusal(tar(FILES, up, out), tmp_path)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "b", "a/b", "a/a", "b/a", "a/b/a", "a/b/b"]),
            st.lists(st.sampled_from(["a", "b", "..", "."]), min_size=1, max_size=5).map("/".join),
        ),
        max_size=6,
    )
)
@settings(max_examples=300, deadline=None)
def test_no_tree_of_links_leads_out(links: list[tuple[str, str]]) -> None:
    made: dict[str, tuple[Kind, str]] = {"": (DIRECTORY, "")}
    try:
        for entry in fit(Entry(name, LINK, target=target) for name, target in links):
            made[entry.name] = (entry.kind, entry.target)
    except UpdateError:
        pass
    for name in made:
        assert _resolved(made, name.split("/"), 0) is not None


def _resolved(made: dict[str, tuple[Kind, str]], parts: list[str], depth: int) -> str | None:
    """Where the kernel would end, below the tree; None if outside of it. Loops and what is not there end inside."""
    at: list[str] = []
    while parts:
        part, *parts = parts
        if part in ("", "."):
            continue
        if part == "..":
            if not at:
                return None
            at.pop()
            continue
        kind, target = made.get("/".join([*at, part]), (FILE, ""))
        if kind is LINK:
            depth += 1
            if depth > 40:
                return "loop"
            parts = target.split("/") + parts
        else:
            at.append(part)
    return "/".join(at)


@pytest.mark.parametrize("target", ["../outside", "/etc/passwd", "later", "d", "l", "gone", ""])
def test_a_hard_link_to_anything_but_an_earlier_file_is_refused(target: str) -> None:
    with pytest.raises(UpdateError):
        fitted(("d", DIRECTORY), ("l", LINK, "d"), ("x", OTHER_NAME, target), ("later", FILE))


def test_a_hard_link_may_be_linked_to_again() -> None:
    entries = fitted(("a", FILE), ("d/b", OTHER_NAME, "./a"), ("c", OTHER_NAME, "d/b"))

    assert entries[-1] == ("c", OTHER_NAME, "d/b")


def test_more_entries_than_an_application_needs_are_refused() -> None:
    with pytest.raises(UpdateError, match="more than 65536 entries"):
        fitted(*((f"d{number}/x", FILE) for number in range(TREE_BOUNDS.entries // 2 + 1)))


def test_many_files_are_no_problem(tmp_path: Path) -> None:
    files = {f"d{number % 7}/{number}": b"" for number in range(3000)}

    assert read_tree(unpack(zipped(files), tmp_path)) == files


@pytest.mark.parametrize("format_", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_names_and_targets_are_kept_whole(format_: int, tmp_path: Path) -> None:
    name, target = "n" * 120 + "/" + "m" * 120, "t" * 150
    links = member("link", tarfile.SYMTYPE, target), member("same", tarfile.LNKTYPE, name)
    root = unpack(tar({name: b"content"}, *links, format_=format_), tmp_path)

    assert os.readlink(root / "link") == target
    assert (root / "same").read_bytes() == (root / name).read_bytes() == b"content"


# Zips.


def test_a_zip_whose_directory_has_another_order_is_read_in_its_own(tmp_path: Path) -> None:
    package = io.BytesIO()
    with zipfile.ZipFile(package, "w") as archive:
        for name in ("first", "second", "third"):
            archive.writestr(name, name)
        archive.filelist.reverse()

    assert read_tree(unpack(package.getvalue(), tmp_path)) == {
        name: name.encode() for name in ("first", "second", "third")
    }


def test_a_zip_with_backslashes_for_slashes_is_understood(tmp_path: Path) -> None:
    assert read_tree(unpack(zipped({"dir\\file": b"1", "dir\\sub\\other": b"2"}), tmp_path)) == {
        "dir/file": b"1",
        "dir/sub/other": b"2",
    }


def test_a_zip_whose_files_lie_within_each_other_is_refused(tmp_path: Path) -> None:
    package = bytearray(zipped({"a": b"1" * 100, "b": b"2" * 100}, zipfile.ZIP_STORED))
    second = package.rindex(b"PK\1\2")
    package[second + 42 : second + 46] = struct.pack("<L", 20)

    assert refusal(bytes(package), tmp_path) == "zip: 'b' begins within another file"


def test_a_zip_directory_of_very_many_entries_takes_no_memory(tmp_path: Path) -> None:
    header = zipped({"a": b""})[:31]
    entry = zipped({"a": b""})[31:78]
    count = 300_000
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, count * len(entry), len(header), 0)
    package = header + entry * count + end
    tracemalloc.start()
    try:
        found = refusal(package, tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert found == "zip: more than 65536 entries"
    assert peak < 64 * MIB


def test_a_zip_that_unpacks_to_more_than_it_claims_is_refused_there(tmp_path: Path) -> None:
    package = bytearray(zipped({"a": bytes(8 * MIB)}))
    entry = package.index(b"PK\1\2")
    package[entry + 24 : entry + 28] = struct.pack("<L", 1000)

    assert refusal(bytes(package), tmp_path) == "'a': unpacks to more than the 1000 bytes it claims"
    assert (tmp_path / "apps/new.partial/a").stat().st_size <= 1000


def test_a_zip_of_another_system_has_no_modes(tmp_path: Path) -> None:
    package = io.BytesIO()
    with zipfile.ZipFile(package, "w") as archive:
        info = zipfile.ZipInfo("a")
        info.create_system, info.external_attr = 0, 0x20
        archive.writestr(info, b"content")

    assert (unpack(package.getvalue(), tmp_path) / "a").stat().st_mode & 0o7777 == 0o644


@pytest.mark.parametrize("mode", [stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK])
def test_a_zip_with_something_else_is_refused(mode: int, tmp_path: Path) -> None:
    package = io.BytesIO()
    with zipfile.ZipFile(package, "w") as archive:
        info = zipfile.ZipInfo("a")
        info.external_attr = (mode | 0o644) << 16
        archive.writestr(info, b"")

    assert refusal(package.getvalue(), tmp_path) == "zip: 'a' is neither a file nor a directory nor a link"


# Damage.

PACKAGES = {name: pack({"d/a": b"otad" * 50, "d/b": os.urandom(90)}) for name, pack in PACKERS.items()}


@settings(max_examples=int(os.environ.get("OTAD_FUZZ_EXAMPLES", "300")), deadline=None, database=None)
@given(st.sampled_from(sorted(PACKAGES)), st.data())
def test_a_damaged_archive_raises_nothing_but_an_update_error(name: str, data: st.DataObject) -> None:
    package = bytearray(PACKAGES[name])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(package) - 1))
        new = data.draw(st.binary(min_size=1, max_size=8))
        package[at : at + data.draw(st.integers(0, 8))] = new
    try:
        names = [entry.name for entry in fit(entries_of(bytes(package)))]
    except UpdateError as error:
        names, refused = [], error.failure.code
    else:
        refused = Code.FORMAT
    assert refused is Code.FORMAT
    assert not [name for name in names if name.startswith("/") or ".." in name.split("/")]


def entries_of(package: bytes) -> "list[Entry]":
    new = deployment(package)
    found = []
    for entry in Package(new, MemoryPlace(package), unpack=True).entries():
        found.append(Entry(entry.name, entry.kind, entry.size, entry.target, entry.executable))
        for _ in entry.pieces:
            pass
    return found


class MemoryPlace:
    """A place that holds these bytes."""

    from_medium = True

    def __init__(self, content: bytes) -> None:
        self.bytes, self._content = len(content), content

    def write(self, offset: int, content: memoryview) -> None:
        raise AssertionError("only to be read")

    def sync(self) -> None:
        pass

    def read_into(self, offset: int, buffer: memoryview) -> int:
        part = self._content[offset : offset + len(buffer)]
        buffer[: len(part)] = part
        return len(part)

    def close(self) -> None:
        pass


# Ranges of a place.


@pytest.mark.parametrize(
    ("begin", "size"), [(0, 10), (1, 4095), (4095, 2), (5000, 2 * MIB), (MIB, MIB), (3 * MIB - 1, 1)]
)
def test_a_part_of_a_place_reads_as_a_file(begin: int, size: int) -> None:
    content = os.urandom(3 * MIB)
    file = io.BufferedReader(PlaceFile(MemoryPlace(content), size, begin))

    assert file.read() == content[begin : begin + size]
    assert (file.seek(0, 2), file.tell()) == (size, size)
    assert (file.seek(-1, 2), file.read()) == (size - 1, content[begin + size - 1 : begin + size])
    assert (file.seek(0), file.read(4)) == (0, content[begin : begin + min(4, size)])


# Memory.

_MEASURE = """
import sys, threading
from pathlib import Path
from otad.durable import RealDisk
from otad.installers.tree import Package, carry
from tests.installers.in_place import deployment, ignore

def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])

directory = Path(sys.argv[1])
new = deployment((directory / "package").read_bytes())
place = RealDisk().open_place(directory / "package")
before = peak()
carry(RealDisk(), new, Package(new, place, unpack=True), directory / "new", threading.Event(), ignore)
print(peak() - before)
"""


@pytest.mark.parametrize("kind", ["tar.gz", "zip"])
def test_memory_does_not_grow_with_what_is_unpacked(kind: str, tmp_path: Path, pytestconfig: pytest.Config) -> None:
    files = {f"d{number % 20}/{number}": os.urandom(1000) * 200 for number in range(200)}
    (tmp_path / "package").write_bytes(PACKERS[kind](files))
    command = [sys.executable, "-c", _MEASURE, str(tmp_path)]
    ran = subprocess.run(command, cwd=pytestconfig.rootpath, capture_output=True, text=True, check=False)

    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) < 12 * 1024
