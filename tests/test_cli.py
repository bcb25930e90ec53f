# SPDX-License-Identifier: Apache-2.0
"""The commands as people and scripts run them: `python -m otad`, against the real server."""

import contextlib
import fcntl
import hashlib
import io
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from otad import __version__
from otad.cli import _Lines, main
from otad.control.server import listen
from otad.control.service import InstallRequest
from otad.core.model import ModuleName
from tests.control.gateway import MIB, NOTICE, Gateway, Served, as_nobody, short_directory

ENVIRONMENT = {"PATH": os.environ["PATH"], "TZ": "UTC", "LANG": "C.UTF-8"}
SHA256 = "cd" * 32


@pytest.fixture
def directory() -> Iterator[Path]:
    with short_directory() as directory:
        yield directory


@pytest.fixture
def daemon(directory: Path) -> Iterator[Served]:
    with Served(directory / "otad.sock") as daemon:
        yield daemon


def otad(*arguments: object, **more: Any) -> subprocess.CompletedProcess[str]:
    environment = ENVIRONMENT | more.pop("environment", {})
    return subprocess.run(
        [sys.executable, "-m", "otad", *map(str, arguments)],
        env=environment,
        text=True,
        timeout=20,
        check=False,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | more,
    )


def started(*arguments: object, **more: Any) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "otad", *map(str, arguments)],
        env=ENVIRONMENT,
        text=True,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | more,
    )


@contextlib.contextmanager
def terminal(*arguments: object, **environment: str) -> Iterator[tuple["subprocess.Popen[str]", Callable[[], str]]]:
    """The command on a terminal of 40 lines, and all that the terminal has been sent so far."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 200, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "otad", *map(str, arguments)],
        env=ENVIRONMENT | {"TERM": "xterm"} | environment,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        text=True,
    )
    os.close(theirs)
    sent = bytearray()

    def read() -> None:
        with contextlib.suppress(OSError):  # EIO: the other end has closed
            while more := os.read(ours, 4096):
                sent.extend(more)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield process, lambda: sent.decode().replace("\r\n", "\n")
        process.wait(10)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        reader.join(5)
        os.close(ours)


def on_terminal(*arguments: object, **environment: str) -> str:
    with terminal(*arguments, **environment) as (process, sent):
        process.wait(10)
    return sent()


def screen(sent: str) -> str:
    """What stands on the terminal after all that: only what a watch uses is understood."""
    lines, row = [""], 0
    for token in re.findall(r"\x1b\[\??\d*[a-zA-Z]|\n|[^\x1b\n]+", sent):
        if token == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif token.endswith("A") and token[0] == "\x1b":
            row -= int(token[2:-1])
            assert row >= 0
        elif token == "\x1b[J":
            lines[row:] = [""]
        elif token[0] != "\x1b":
            lines[row] += token
    return "\n".join(lines)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# ---------------------------------------------------------------------------------------------- exit status


def deploying(gateway: Gateway) -> None:
    gateway.notice()


def refusing(gateway: Gateway) -> None:
    gateway.notice()
    gateway.fail()


def broken(gateway: Gateway) -> None:
    gateway.store_is_broken = True


def nothing(_: Gateway) -> None: ...


EXITS: list[tuple[str, Callable[[Gateway], None], int, str]] = [
    ("status", nothing, 0, ""),
    ("status --json", nothing, 0, ""),
    ("status --watch", nothing, 0, ""),
    ("slots", nothing, 0, ""),
    ("history", refusing, 0, ""),
    ("check", nothing, 0, ""),
    ("cancel", deploying, 0, ""),
    ("retry", refusing, 0, ""),
    ("mark-good", nothing, 0, ""),
    (f"install http://x/p --version 2 --sha256 {SHA256}", nothing, 0, ""),
    ("mark-good", broken, 1, "/boot/variables: Input/output error"),
    ("", nothing, 2, "the following arguments are required: COMMAND"),
    ("dance", nothing, 2, "invalid choice: 'dance'"),
    ("status --verbose", nothing, 2, "unrecognized arguments: --verbose"),
    ("status extra", nothing, 2, "unrecognized arguments: extra"),
    ("stat", nothing, 2, "invalid choice: 'stat'"),
    ("install /no/such/file", nothing, 2, "/no/such/file: No such file or directory"),
    (
        "install pyproject.toml",
        nothing,
        2,
        "--version is missing, and pyproject.toml does not begin with a manifest.json",
    ),
    ("install tests/system --version 2", nothing, 2, "tests/system: Is a directory"),
    ("install http://x/p --sha256 " + SHA256, nothing, 2, "--version is missing, and a URL needs it"),
    ("install /no/such/file --version 2", nothing, 2, "/no/such/file: No such file or directory"),
    ("install / --version 2", nothing, 2, "/: Is a directory"),
    ("install /dev/null --version 2", nothing, 2, "/dev/null: not a file with a package in it"),
    ("install http://x/p --version 2", nothing, 2, "--sha256 is missing, and a URL needs it"),
    (f"install ftp://x/p --version 2 --sha256 {SHA256}", nothing, 2, "ftp://x/p: not something to install from"),
    ("install http://x/p --version 2 --sha256 abc", nothing, 2, "--sha256 abc: not a digest"),
    (f"install http://x/p --version 2/3 --sha256 {SHA256}", nothing, 2, "--version 2/3: not a version"),
    (f"install http://x/p --version 2 --module ! --sha256 {SHA256}", nothing, 2, "--module !: not a module"),
    ("config", nothing, 2, "the following arguments are required: COMMAND"),
    ("config check /no/such/file", nothing, 2, "/no/such/file: No such file or directory"),
    ("board", nothing, 2, "the following arguments are required: COMMAND"),
    ("cancel", nothing, 4, "nothing to cancel: no deployment is under way"),
    ("retry", nothing, 4, "nothing to retry: no package is refused"),
    ("reboot", nothing, 4, "nothing to reboot into: no slot is staged"),
    ("rollback", nothing, 4, "no slot to roll back to: the other slot is not good"),
    (f"install http://x/p --version 3 --sha256 {SHA256}", deploying, 4, "another deployment is under way"),
]


@pytest.mark.parametrize(
    ("command", "before", "status", "says"),
    EXITS,
    ids=[f"{command[:40] or 'nothing'}: {n}" for command, _, n, _ in EXITS],
)
def test_exit_status(daemon: Served, command: str, before: Callable[[Gateway], None], status: int, says: str) -> None:
    daemon.do(lambda: before(daemon.gateway))

    done = otad("--socket", daemon.path, *command.split())

    assert done.returncode == status, done.stderr
    if status == 0:
        assert done.stdout
        assert done.stderr == ""
    else:
        what, hint = done.stderr.splitlines()
        assert says in what
        assert hint.startswith("  ")
        assert done.stdout == ""


def test_3_when_nobody_is_there(directory: Path) -> None:
    path = directory / "otad.sock"

    for reason in ("No such file or directory", "Connection refused"):
        done = otad("--socket", path, "status")

        assert (done.returncode, done.stdout) == (3, "")
        assert done.stderr.splitlines() == [
            f"otad: {path}: {reason}",
            "  the daemon is not running: start it with `systemctl start otad`; --socket PATH names another one",
        ]
        listen(path).close()  # stale from here on


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # fork beside a thread; the child is not long for this world
def test_5_for_who_may_not(daemon: Served) -> None:
    def run(command: str) -> tuple[int, str]:
        """In a fork of this process: nobody may not be allowed to start this Python."""
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as errors:
            return int(main(["--socket", str(daemon.path), command])), errors.getvalue()

    daemon.path.parent.chmod(0o755)
    may_not_connect = as_nobody(lambda: run("status"))
    daemon.path.chmod(0o666)
    may_read = as_nobody(lambda: run("status"))
    may_not_change = as_nobody(lambda: run("cancel"))

    hint = "  use sudo; members of the group otad may read\n"
    assert may_not_connect == str((5, f"otad: {daemon.path}: Permission denied\n{hint}"))
    assert may_read == str((0, ""))
    assert may_not_change == str((5, f"otad: the daemon takes orders only from root\n{hint}"))


def test_version() -> None:
    assert otad("--version").stdout == f"otad {__version__}\n"


def test_every_command_has_help() -> None:
    listed = re.findall(r"^    ([a-z-]+) ", otad("--help").stdout, re.MULTILINE)

    assert " ".join(listed) == (
        "run status check install cancel retry reboot mark-good rollback slots history config demo platform board"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        "--config F status",
        "status --config F",
        "--socket S status",
        "status --socket S",
        "--config /no/such/file --socket S status",
        "--socket /no/such status --socket S",
    ],
)
def test_config_and_socket_go_before_or_after_the_command(daemon: Served, directory: Path, arguments: str) -> None:
    config = directory / "config.toml"
    config.write_text(f'[control]\nsocket = "{daemon.path.name}"\n[nonsense]\n')
    places = {"F": config, "S": daemon.path}

    assert otad(*(places.get(word, word) for word in arguments.split())).returncode == 0


@pytest.mark.parametrize(("content", "says"), [(None, "No such file"), ("[", "line 1")])
def test_a_configuration_that_is_named_must_be_readable(directory: Path, content: str | None, says: str) -> None:
    config = directory / "config.toml"
    if content is not None:
        config.write_text(content)

    done = otad("--config", config, "status")

    assert done.returncode == 2
    assert says in done.stderr.splitlines()[0]


# ---------------------------------------------------------------------------------------------- what is printed


def test_status_on_a_pipe_is_plain(daemon: Served) -> None:
    daemon.do(daemon.gateway.notice)

    shown = otad("--socket", daemon.path, "status").stdout

    assert shown.isascii()
    assert "\x1b" not in shown
    assert shown.splitlines()[-1] == "next: download 512 MiB more"


def test_status_json_is_the_daemons_document(daemon: Served) -> None:
    daemon.do(daemon.gateway.notice)

    assert json.loads(otad("--socket", daemon.path, "status", "--json").stdout) == daemon.gateway.document()


def test_slots_json(daemon: Served) -> None:
    status = daemon.gateway.document()

    assert json.loads(otad("--socket", daemon.path, "slots", "--json").stdout) == {
        "schema": 1,
        "booted": "a",
        "slots": status["slots"],
    }


def test_history_json(daemon: Served) -> None:
    daemon.do(lambda: refusing(daemon.gateway))

    assert json.loads(otad("--socket", daemon.path, "history", "--json").stdout) == {
        "schema": 1,
        "deployments": [daemon.gateway.document()["last"]],
    }


def test_status_on_a_terminal_has_colours_and_glyphs(daemon: Served) -> None:
    shown = on_terminal("--socket", daemon.path, "status")

    assert "\x1b[32m●\x1b[0m a" in shown


@pytest.mark.parametrize(
    ("environment", "has_glyphs"),
    [({"NO_COLOR": "1"}, True), ({"NO_COLOR": "1", "PYTHONIOENCODING": "latin-1"}, False), ({"TERM": "dumb"}, False)],
)
def test_no_color_is_honoured(daemon: Served, environment: dict[str, str], has_glyphs: bool) -> None:
    shown = on_terminal("--socket", daemon.path, "status", **environment)

    assert "\x1b" not in shown
    assert ("●" in shown) is has_glyphs
    assert "booted, primary, good" in shown


def test_a_terminal_without_unicode_gets_question_marks(daemon: Served) -> None:
    daemon.gateway.session = type(daemon.gateway.session)(daemon.gateway.session.state, 0, "Zeitüberschreitung — 超时")

    done = otad("--socket", daemon.path, "status", environment={"PYTHONIOENCODING": "ascii"})

    assert (done.returncode, done.stderr) == (0, "")
    assert "Zeit?berschreitung ? ??" in done.stdout


def test_an_answer_cannot_move_the_cursor(daemon: Served) -> None:
    done = otad("--socket", daemon.path, "install", "/\x1b[2J", "--version", "2")

    assert done.returncode == 2
    assert "\x1b" not in done.stderr


# ---------------------------------------------------------------------------------------------- install


def test_install_of_a_file_brings_its_proof(daemon: Served, directory: Path) -> None:
    content = os.urandom(3 * MIB + 7)
    (directory / "a b.img").write_bytes(content)

    done = otad("--socket", daemon.path, "install", "a b.img", "--version", "2-0-0", cwd=directory)

    assert done.stdout == "installing 2-0-0\n"
    assert daemon.gateway.installed == [
        InstallRequest(
            f"file://{directory}/a%20b.img",
            ModuleName("default"),
            "2-0-0",
            len(content),
            hashlib.sha256(content).hexdigest(),
        )
    ]


def test_install_believes_a_digest_that_is_given(daemon: Served, directory: Path) -> None:
    (directory / "p").write_bytes(b"x")

    otad(
        "--socket", daemon.path, "install", directory / "p", "--version", "2", "--module", "app", "--sha256", "CD" * 32
    )

    assert daemon.gateway.installed == [InstallRequest(f"file://{directory}/p", ModuleName("app"), "2", 1, SHA256)]


def test_install_of_a_url_leaves_the_size_open(daemon: Served) -> None:
    otad("--socket", daemon.path, "install", "https://x/p?q=1", "--version", "2", "--sha256", SHA256)

    assert daemon.gateway.installed == [InstallRequest("https://x/p?q=1", ModuleName("default"), "2", None, SHA256)]


def test_install_shows_how_far_it_has_read_on_a_terminal(daemon: Served, directory: Path) -> None:
    (directory / "p").write_bytes(bytes(3 * MIB))

    shown = on_terminal("--socket", daemon.path, "install", directory / "p", "--version", "2")

    assert "reading p" in shown
    assert "66 %" in shown
    assert shown.endswith("\r\x1b[Kinstalling 2\n")


# ---------------------------------------------------------------------------------------------- watching


def test_a_watch_on_a_pipe_prints_a_line_per_change(daemon: Served) -> None:
    daemon.do(daemon.gateway.notice)
    with started("--socket", daemon.path, "status", "--watch") as watch:
        assert watch.stdout is not None
        assert watch.stdout.readline() == "2-0-0 downloading 0 %; next: download 512 MiB more\n"
        daemon.do(lambda: daemon.gateway.download(70 * MIB))
        assert watch.stdout.readline() == "2-0-0 downloading 13 %; next: download 442 MiB more, about 3 min 41 s\n"
        daemon.do(daemon.gateway.fail)
        rest, errors = watch.communicate(timeout=10)

    assert rest == (
        "2-0-0 failed: example.com: 404 Not Found; next: send 1 report to the platform, then wait for a notice\n"
    )
    assert (watch.returncode, errors) == (0, "")


def test_a_line_is_not_said_twice(capsys: pytest.CaptureFixture[str]) -> None:
    gateway, lines = Gateway(), _Lines()
    gateway.notice()
    for position in (70, 71, 72, 90):
        gateway.download(position * MIB)
        lines.status(gateway.document())

    assert [line.split(";")[0] for line in capsys.readouterr().out.splitlines()] == [
        "2-0-0 downloading 13 %",
        "2-0-0 downloading 17 %",
    ]


def test_a_watch_on_a_terminal_redraws_in_place(daemon: Served) -> None:
    daemon.do(daemon.gateway.notice)
    with terminal("--socket", daemon.path, "status", "--watch", NO_COLOR="1") as (process, sent):
        until(lambda: "download 512 MiB more" in sent())
        daemon.do(lambda: daemon.gateway.download(70 * MIB))
        until(lambda: "next: download 442 MiB more, about 3 min 41 s\n" in sent())
        middle = screen(sent())
        daemon.do(daemon.gateway.fail)
        process.wait(10)

    assert middle.count("next: ") == 1
    assert "━━━━──────────────────────────  13 %  70 MiB of 512 MiB  2 MiB/s" in middle
    assert screen(sent()).count("next: ") == 1
    assert "last        2-0-0 failed: example.com: 404 Not Found" in screen(sent())
    assert "deployment" not in screen(sent())
    assert sent().startswith("\x1b[?7l")
    assert sent().endswith("\x1b[?7h")
    assert process.returncode == 0


def test_a_watch_in_json_prints_documents(daemon: Served) -> None:
    daemon.do(daemon.gateway.notice)
    with started("--socket", daemon.path, "status", "--watch", "--json") as watch:
        assert watch.stdout is not None
        first = json.loads(watch.stdout.readline())
        daemon.do(daemon.gateway.fail)
        last = json.loads(watch.communicate(timeout=10)[0])

    assert first["deployment"]["version"] == NOTICE.identity.version
    assert last == daemon.gateway.document()


def test_a_watch_waits_for_a_daemon_that_restarts(directory: Path) -> None:
    path = directory / "otad.sock"
    gateway = Gateway()
    gateway.notice()
    with Served(path, gateway):
        watch = started("--socket", path, "status", "--watch")
        assert watch.stdout is not None
        assert watch.stdout.readline().startswith("2-0-0 downloading 0 %")
    assert watch.stdout.readline() == "the daemon is gone, perhaps for a reboot: waiting for it to come back\n"
    with Served(path, gateway) as again:
        again.do(lambda: gateway.download(70 * MIB))
        assert watch.stdout.readline().startswith("2-0-0 downloading 13 %")
        again.do(gateway.fail)
        rest, errors = watch.communicate(timeout=10)

    assert rest.startswith("2-0-0 failed")
    assert (watch.returncode, errors) == (0, "")


def test_a_watch_on_a_terminal_says_that_the_daemon_is_gone(directory: Path) -> None:
    path = directory / "otad.sock"
    gateway = Gateway()
    gateway.notice()
    with contextlib.ExitStack() as stack:
        with Served(path, gateway):
            process, sent = stack.enter_context(terminal("--socket", path, "status", "--watch", NO_COLOR="1"))
            until(lambda: "next: " in sent())
        until(lambda: screen(sent()).rstrip().endswith("waiting for it to come back"))
        gateway.fail()
        with Served(path, gateway):
            process.wait(10)

    assert "gone" not in screen(sent())
    assert screen(sent()).count("next: ") == 1


def test_a_watch_of_nobody_ends_at_once(directory: Path) -> None:
    assert otad("--socket", directory / "otad.sock", "status", "--watch").returncode == 3


# ---------------------------------------------------------------------------------------------- being cut short


def test_ctrl_c_is_quiet_and_leaves_the_terminal_in_order(daemon: Served) -> None:
    daemon.do(daemon.gateway.notice)
    with terminal("--socket", daemon.path, "status", "--watch") as (process, sent):
        until(lambda: "512 MiB more" in sent())
        process.send_signal(signal.SIGINT)
        process.wait(10)

    assert process.returncode == 130
    assert sent().endswith("\x1b[?7h")
    assert "Traceback" not in sent()


def test_a_reader_that_has_gone_is_no_error(daemon: Served) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with started("--socket", daemon.path, "status", stdout=writing) as process:
        os.close(writing)
        errors = process.communicate(timeout=10)[1]

    assert errors == ""
    assert process.returncode == 1


def test_a_full_disk_is_no_success(daemon: Served) -> None:
    with open("/dev/full", "w") as full:
        done = otad("--socket", daemon.path, "status", stdout=full)

    assert done.returncode == 1
    assert done.stderr == "otad: output: No space left on device\n  it could not be written\n"


# ---------------------------------------------------------------------------------------------- without a daemon

CONFIG = """
[device]
product_key = "pk"
device_name = "gateway"
device_secret = "secret"
[mqtt]
host = "127.0.0.1"
[modules.default]
version = "slot"
[slots.a]
device = "a.img"
bootname = "A"
[slots.b]
device = "b.img"
bootname = "B"
[boot]
backend = "simulated"
directory = "boot"
[state]
directory = "state"
"""


@pytest.fixture
def board(directory: Path) -> Path:
    config = directory / "config.toml"
    config.write_text(CONFIG)
    config.chmod(0o640)
    (directory / "a.img").write_bytes(b"IMAGE_VERSION=1-0-0\n".ljust(8192, b"\0"))
    (directory / "b.img").write_bytes(bytes(8192))
    return config


def test_config_check_is_content(board: Path) -> None:
    for arguments in (("config", "check", board), ("--config", board, "config", "check")):
        done = otad(*arguments)

        assert (done.returncode, done.stdout, done.stderr) == (0, f"{board}: good\n", "")


def test_config_check_lists_all_problems(board: Path) -> None:
    board.write_text(CONFIG.replace("[mqtt]", "[mqtt]\nprot = 1").replace('"simulated"', '"floppy"'))

    done = otad("config", "check", board)

    assert done.returncode == 2
    assert done.stdout == ""
    assert f"{board}: mqtt.prot: unknown key, did you mean mqtt.port?" in done.stderr
    assert f'{board}: boot.backend: "floppy"' in done.stderr
    assert re.search(r": \d problems$", done.stderr.splitlines()[-1])


def test_config_check_warns_and_is_content(board: Path) -> None:
    board.chmod(0o644)

    done = otad("config", "check", board)

    assert (done.returncode, done.stdout) == (0, f"{board}: good\n")
    assert done.stderr.startswith(f"warning: {board}: device.device_secret")


def test_power_cycle_boots_the_board(board: Path) -> None:
    done = otad("--config", board, "board", "power-cycle")

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "slot a boots 1-0-0 (2 attempts left)\n"


def test_power_cycle_of_a_board_that_does_not_boot(board: Path) -> None:
    (board.parent / "a.img").write_bytes(bytes(8192))

    done = otad("board", "power-cycle", "--config", board)

    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "no slot boots"


def test_power_cycle_is_refused_while_the_daemon_runs(board: Path) -> None:
    state = board.parent / "state"
    state.mkdir()
    descriptor = os.open(state, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        done = otad("board", "power-cycle", "--config", board)
    finally:
        os.close(descriptor)

    assert done.returncode == 4
    assert done.stderr.splitlines()[1] == "  stop the daemon first: power goes for all at once"


def test_power_cycle_wants_a_board(board: Path) -> None:
    board.write_text(CONFIG.replace("[slots.b]", "[slots.'2/3']"))

    done = otad("board", "power-cycle", "--config", board)

    assert done.returncode == 2
    assert "slots" in done.stderr.splitlines()[0]


def test_platform_and_demo_bring_their_own_arguments() -> None:
    assert "add-device" in otad("platform", "--help").stdout
    assert "--json" in otad("demo", "--help").stdout


def test_a_part_that_is_not_there_is_said_so() -> None:
    script = (
        "import sys; from otad.cli import _Lines, main\n"
        "sys.modules['otad.platform.cli'] = None\n"
        "sys.exit(main(['platform', 'jobs']))"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "otad: platform: not installed: import of otad.platform.cli halted; None in sys.modules",
        "  install it with pip install 'otad[demo]'",
    ]


def test_status_starts_without_what_only_the_daemon_needs(daemon: Served) -> None:
    script = (
        "import sys; from otad.cli import _Lines, main\n"
        f"main(['--config', '/no', '--socket', {str(daemon.path)!r}, 'status'])\n"
        "heavy = {'asyncio', 'aiohttp', 'aiomqtt', 'ssl', 'http', 'logging', 'subprocess'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
