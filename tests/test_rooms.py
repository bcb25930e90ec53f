# SPDX-License-Identifier: Apache-2.0
"""What may be done in which room, where the import rules cannot see it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import otad

ROOT = Path(otad.__file__).parent
DEVICE_SIDE = sorted(
    path
    for path in ROOT.rglob("*.py")
    if "platform" not in path.relative_to(ROOT).parts and path.name not in ("demo.py", "simulation.py", "durable.py")
)
WRITING_CALLS = {"write_text", "write_bytes", "unlink", "rename", "replace", "mkdir", "rmdir", "truncate"}
WRITING_OS_CALLS = {"open", "write", "pwrite", "rename", "replace", "unlink", "remove", "mkdir", "makedirs", "truncate"}
# What is no durable state: the socket's own file and directory, and /dev/null in the place of a closed pipe.
ALLOWED = {
    ("cli.py", "os.open"),
    ("control/server.py", "unlink"),
    ("control/server.py", "mkdir"),
    ("daemon.py", "unlink"),
}


@pytest.mark.parametrize("path", DEVICE_SIDE, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_the_durable_room_writes_files(path: Path) -> None:
    room = str(path.relative_to(ROOT))

    found = {name for name in _writes(ast.parse(path.read_text())) if (room, name) not in ALLOWED}

    assert found == set()


def test_the_search_finds_what_it_looks_for() -> None:
    code = "open('x', 'w'); p.open('ab'); p.write_bytes(b''); os.pwrite(1, b'', 0); open('x'); dataclasses.replace(y)"
    code += "; os.open(p, os.O_RDONLY); self._disk.rename(a, b)"

    assert _writes(ast.parse(code)) == {"open", "write_bytes", "os.pwrite"}


def test_aiomqtt_has_one_importer_on_the_device_side() -> None:
    importers = {
        str(path.relative_to(ROOT))
        for path in DEVICE_SIDE
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom) and "aiomqtt" in ast.dump(node)
    }

    assert importers == {"cloud/client.py"}


def test_aiohttp_has_one_importer_on_the_device_side() -> None:
    importers = {
        str(path.relative_to(ROOT))
        for path in DEVICE_SIDE
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom) and "'aiohttp" in ast.dump(node)
    }

    assert importers == {"transfer/http.py"}


def _writes(tree: ast.AST) -> set[str]:
    return {name for node in ast.walk(tree) if isinstance(node, ast.Call) for name in _writing(node)}


def _writing(call: ast.Call) -> Iterator[str]:
    """The name of a call that may write a file."""
    match call.func:
        case ast.Name(id="open") | ast.Attribute(attr="open"):
            on_os = isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Name)
            if on_os and call.func.value.id == "os":  # type: ignore[attr-defined]
                if any(flag in ast.dump(call) for flag in ("O_WRONLY", "O_RDWR", "O_CREAT", "O_APPEND", "O_TRUNC")):
                    yield "os.open"
                return
            modes = [*call.args[:2], *(k.value for k in call.keywords if k.arg == "mode")]
            if any(isinstance(m, ast.Constant) and isinstance(m.value, str) and _is_writing(m.value) for m in modes):
                yield "open"
        case ast.Attribute(value=ast.Name(id="os"), attr=name) if name in WRITING_OS_CALLS:
            yield f"os.{name}"
        case ast.Attribute(value=ast.Attribute(attr="_disk") | ast.Name(id="disk")):
            pass  # that is the way it is to be done
        case ast.Attribute(attr=name) if name in WRITING_CALLS - {"replace"}:
            yield name
        case _:
            pass


def _is_writing(mode: str) -> bool:
    return len(mode) <= 3 and bool(set(mode) & set("wax+")) and set(mode) <= set("rwaxbt+")
