# SPDX-License-Identifier: Apache-2.0
"""The command line: `otad COMMAND`.

Exit status: 0 done · 1 failed · 2 usage or configuration · 3 the daemon is not running · 4 refused in this state (too
late, nothing to do) · 5 not permitted. What is wrong goes to stderr in two lines: what, and what to do about it.

`otad status` is asked often and on slow machines, so each command imports what it needs when it runs.
"""

import argparse
import importlib
import io
import json
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from otad import __version__, render
from otad.control.client import AwayError, Client, ControlError, DeniedError, RefusedError

if TYPE_CHECKING:
    from otad.config import Loaded

DEFAULT_CONFIG = Path("/etc/otad/config.toml")
WATCH_AWAY_S = 600
"""How long a watch waits for a daemon that is gone: a reboot and then some."""


class Exit(IntEnum):
    DONE = 0
    FAILED = 1
    USAGE = 2
    AWAY = 3
    REFUSED = 4
    DENIED = 5
    INTERRUPTED = 130  # what shells expect of Ctrl-C


class CommandError(Exception):
    """A command that ends without having done what it is for."""

    def __init__(self, status: Exit, what: str, hint: str) -> None:
        super().__init__(what)
        self.status = status
        self.what = what
        self.hint = hint


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command in `argv`; its exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that is not UTF-8 gets question marks, not a traceback
    try:
        arguments = _parser().parse_args(argv)
        status = int(arguments.run(arguments))
        _flush()
        return status
    except CommandError as error:
        _say_error(error.what, error.hint)
        return error.status
    except ControlError as error:
        _say_error(str(error), _hint(error))
        return _exit_for(error)
    except BrokenPipeError:
        _abandon_output()  # whoever read it has gone
        return Exit.FAILED
    except OSError as error:
        if error.filename is not None:
            raise  # of a file; what remains is our output
        _abandon_output()
        _say_error(f"output: {error.strerror}", "it could not be written")
        return Exit.FAILED
    except KeyboardInterrupt:
        return Exit.INTERRUPTED


def _flush() -> None:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        _abandon_output()
        raise CommandError(Exit.FAILED, f"output: {error.strerror}", "it could not be written") from error


def _abandon_output() -> None:
    """The interpreter must not try once more to flush it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say_error(what: str, hint: str) -> None:
    sys.stdout.flush()
    print(f"otad: {render.printable(what)}", file=sys.stderr)
    print(f"  {render.printable(hint)}", file=sys.stderr)


def _exit_for(error: ControlError) -> Exit:
    match error:
        case AwayError():
            return Exit.AWAY
        case RefusedError():
            return Exit.REFUSED
        case DeniedError():
            return Exit.DENIED
        case _:
            return Exit.FAILED


def _hint(error: ControlError) -> str:
    match error:
        case AwayError():
            return "the daemon is not running: start it with `systemctl start otad`; --socket PATH names another one"
        case RefusedError():
            return "`otad status` says what is under way and what happens next"
        case DeniedError():
            return "use sudo; members of the group otad may read"
        case _:
            return "`otad status` and `journalctl -u otad` say more"


# ---------------------------------------------------------------------------------------------- the commands


def _run(arguments: argparse.Namespace) -> int:
    run: Callable[[Loaded], int] = _part("otad.daemon").run
    loaded = _loaded(arguments)
    if arguments.socket is not None:
        control = replace(loaded.config.control, socket=Path(os.path.abspath(arguments.socket)))
        loaded = replace(loaded, config=replace(loaded.config, control=control))
    return run(loaded)


def _status(arguments: argparse.Namespace) -> int:
    if arguments.watch:
        return _watch(arguments)
    status = _call(arguments, "GetStatus")["status"]
    print(_json(status) if arguments.json else render.status_text(status, _style(sys.stdout)))
    return Exit.DONE


def _check(arguments: argparse.Namespace) -> int:
    return _order(arguments, "Check")


def _install(arguments: argparse.Namespace) -> int:
    for name in ("version", "module"):
        value = getattr(arguments, name)
        if value is not None and not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", value):
            _usage(f"--{name} {value}: not a {name}", "1 to 64 characters of A-Z a-z 0-9 . _ -")
    sha256 = arguments.sha256.lower() if arguments.sha256 is not None else None
    if sha256 is not None and not re.fullmatch(r"[0-9a-f]{64}", sha256):
        _usage(f"--sha256 {arguments.sha256}: not a digest", "64 hexadecimal digits, as sha256sum prints them")
    url, size = arguments.package, None
    version, module = arguments.version, arguments.module
    if scheme := re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", url):
        if scheme[1].lower() not in ("http", "https"):
            _usage(f"{url}: not something to install from", "give a file, or an http:// or https:// URL")
        if sha256 is None:
            hint = "nothing unproven is booted: give the digest that the package's maker gives, or fetch the file first"
            _usage("--sha256 is missing, and a URL needs it", hint)
        if version is None:
            _usage("--version is missing, and a URL needs it", "give the version that the package brings")
    else:
        file = Path(os.path.abspath(url))
        url = file.as_uri()
        version, module = _as_the_manifest_says(file, version, module)
        sha256, size = _proof(file, sha256)
    return _order(
        arguments,
        "Install",
        url=url,
        version=version,
        module=module or "default",
        sha256=sha256,
        size=size,
    )


def _as_the_manifest_says(file: Path, version: str | None, module: str | None) -> tuple[str, str | None]:
    """Version and module of an archive that says them itself; what is given besides must be the same."""
    from otad.errors import UpdateError
    from otad.installers.manifest import read_manifest

    try:
        manifest = read_manifest(file)
    except OSError as error:
        _usage(f"{file}: {error.strerror}", "give a package, or its URL")
    except UpdateError as error:
        if version is not None:
            return version, module  # what is wrong with the package, its deployment says
        _usage(str(error), "give --version and --module, or put the archive's manifest.json right")
    if manifest is None and version is None:
        _usage(
            f"--version is missing, and {file.name} does not begin with a manifest.json",
            "give the version that the package brings",
        )
    if manifest is None:
        assert version is not None
        return version, module
    for name, given, says in (("version", version, manifest.version), ("module", module, manifest.module)):
        if given is not None and says is not None and given != says:
            _usage(
                f"--{name} {given}: the archive's manifest.json says {says}", f"leave --{name} out, or mend the archive"
            )
    return version or manifest.version, module or manifest.module


def _proof(file: Path, sha256: str | None) -> tuple[str, int]:
    """The file's digest, computed unless it is given, and its size."""
    import hashlib

    try:
        with file.open("rb") as package:
            size = os.fstat(package.fileno()).st_size
            if not file.is_file() or not size:
                _usage(f"{file}: not a file with a package in it", "give a package, or its URL")
            if sha256 is not None:
                return sha256, size
            digest, done, shown = hashlib.sha256(), 0, -1
            style = _style(sys.stderr)
            while chunk := package.read(1 << 20):
                digest.update(chunk)
                done += len(chunk)
                if style.bars and (percent := done * 100 // size) > shown:
                    shown = percent
                    print(f"\rreading {file.name} {render.bar(done, size, style)} {percent} %", end="", file=sys.stderr)
            if style.bars:
                print("\r\x1b[K", end="", file=sys.stderr)
            return digest.hexdigest(), size
    except OSError as error:
        _usage(f"{file}: {error.strerror or error}", "give a file that can be read, or a URL")


def _cancel(arguments: argparse.Namespace) -> int:
    return _order(arguments, "Cancel")


def _retry(arguments: argparse.Namespace) -> int:
    return _order(arguments, "Retry")


def _reboot(arguments: argparse.Namespace) -> int:
    return _order(arguments, "Reboot")


def _mark_good(arguments: argparse.Namespace) -> int:
    return _order(arguments, "MarkGood")


def _rollback(arguments: argparse.Namespace) -> int:
    return _order(arguments, "RollBack")


def _slots(arguments: argparse.Namespace) -> int:
    status = _call(arguments, "GetStatus")["status"]
    if arguments.json:
        print(_json({name: status[name] for name in ("schema", "booted", "slots")}))
    else:
        print(render.slots_text(status, _style(sys.stdout)))
    return Exit.DONE


def _history(arguments: argparse.Namespace) -> int:
    deployments = _call(arguments, "GetHistory")["deployments"]
    if arguments.json:
        print(_json({"schema": 1, "deployments": deployments}))
    else:
        print(render.history_text(deployments, _style(sys.stdout)))
    return Exit.DONE


def _config_check(arguments: argparse.Namespace) -> int:
    loaded = _loaded(arguments)
    for problem in loaded.problems:
        kind = "warning: " if problem.warning else ""
        print(render.printable(f"{kind}{problem}"), file=sys.stderr)
        if problem.hint:
            print(render.printable(f"  {problem.hint}"), file=sys.stderr)
    wrong = sum(not problem.warning for problem in loaded.problems)
    if wrong > 1:
        print(f"{loaded.config.file}: {wrong} problems", file=sys.stderr)
    if wrong:
        return Exit.USAGE
    print(f"{loaded.config.file}: good")
    return Exit.DONE


def _power_cycle(arguments: argparse.Namespace) -> int:
    loaded = _loaded(arguments)
    if not loaded.can_boot:
        problem = next(iter(loaded.errors), None)
        _usage(str(problem or f"{loaded.config.file}: slots: not enough"), "`otad config check` shows all problems")
    simulated = _part("otad.boot.simulated")
    from otad.errors import UpdateError
    from otad.store import InUseError

    try:
        cycled = simulated.power_cycle(loaded.config)
    except InUseError as error:
        raise CommandError(Exit.REFUSED, str(error), "stop the daemon first: power goes for all at once") from error
    except UpdateError as error:
        raise CommandError(Exit.FAILED, str(error), "`otad config check` shows whether slots and boot fit") from error
    for line in cycled.log:
        print(render.printable(line))
    return Exit.FAILED if cycled.slot is None else Exit.DONE


# ---------------------------------------------------------------------------------------------- watching


class _Terminal:
    """Redraws the status in place."""

    def __init__(self, style: render.Style) -> None:
        self._style = style
        self._text = ""
        self._height = 0

    def status(self, status: dict[str, Any]) -> None:
        self._text = render.status_text(status, self._style)
        self._draw(self._text)

    def away(self) -> None:
        self._draw(f"{self._text}\n{_GONE}")

    def _draw(self, text: str) -> None:
        height = os.get_terminal_size(sys.stdout.fileno()).lines or 24
        lines = text.splitlines()[1 - height :]
        up = f"\x1b[{self._height}A" if self._height else ""
        print(f"{up}\x1b[J" + "\n".join(lines), flush=True)
        self._height = len(lines)


class _Lines:
    """Prints a line per change."""

    def __init__(self) -> None:
        self._key: tuple[object, ...] | None = None

    def status(self, status: dict[str, Any]) -> None:
        key = render.change_key(status)
        if key != self._key:
            print(render.change_text(status), flush=True)
        self._key = key

    def away(self) -> None:
        print(_GONE, flush=True)


class _Documents:
    """Prints each document on a line of its own, for programs."""

    def status(self, status: dict[str, Any]) -> None:
        print(json.dumps(status), flush=True)

    def away(self) -> None:
        print(f"otad: {_GONE}", file=sys.stderr, flush=True)


_GONE = "the daemon is gone, perhaps for a reboot: waiting for it to come back"


def _watch(arguments: argparse.Namespace) -> int:
    """Show each status until no deployment is under way, across restarts of the daemon."""
    style = _style(sys.stdout)
    if arguments.json:
        return _follow(arguments, _Documents())
    if not style.bars:
        return _follow(arguments, _Lines())
    try:
        print("\x1b[?7l", end="")  # DECAWM off: a line that is too long must not become two
        return _follow(arguments, _Terminal(style))
    finally:
        print("\x1b[?7h", end="", flush=True)


def _follow(arguments: argparse.Namespace, view: _Terminal | _Lines | _Documents) -> int:
    seen, gives_up = False, None
    while True:
        try:
            with Client(_socket(arguments)) as daemon:
                for reply in daemon.stream("GetStatus"):
                    seen, gives_up = True, None
                    view.status(reply["status"])
                    if reply["status"]["deployment"] is None:
                        return Exit.DONE
        except (AwayError, DeniedError):  # denied: a socket that is being made
            if not seen:
                raise
            if gives_up is None:
                gives_up = time.monotonic() + WATCH_AWAY_S
                view.away()
            elif time.monotonic() > gives_up:
                raise
            time.sleep(0.3)


# ---------------------------------------------------------------------------------------------- what commands share


def _order(arguments: argparse.Namespace, method: str, **parameters: Any) -> int:
    print(render.printable(_call(arguments, method, **parameters)["answer"]))
    return Exit.DONE


def _call(arguments: argparse.Namespace, method: str, **parameters: Any) -> dict[str, Any]:
    with Client(_socket(arguments)) as daemon:
        return daemon.call(method, **parameters)


def _socket(arguments: argparse.Namespace) -> Path:
    """Where the daemon listens. What is wrong with the rest of the configuration is not our business here."""
    if arguments.socket is not None:
        return Path(arguments.socket)
    loaded = _loaded(arguments)
    unreadable = next((problem for problem in loaded.errors if not problem.key), None)
    if unreadable is not None and arguments.config_file is not None:
        _usage(str(unreadable), unreadable.hint)
    return loaded.config.control.socket


def _loaded(arguments: argparse.Namespace) -> "Loaded":
    from otad.config import load

    return load(arguments.config_file or DEFAULT_CONFIG)


def _part(name: str) -> Any:
    """A part of otad that not every installation has."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        what = f"{name.removeprefix('otad.').split('.')[0]}: not installed: {error}"
        raise CommandError(Exit.FAILED, what, "install it with pip install 'otad[demo]'") from error


def _json(document: Any) -> str:
    return json.dumps(document, indent=2)


def _style(stream: Any) -> render.Style:
    """What `stream` can show."""
    if not stream.isatty() or os.environ.get("TERM", "dumb") == "dumb":
        return render.Style()
    is_utf8 = (stream.encoding or "").lower().replace("-", "") == "utf8"
    return render.Style(colours=not os.environ.get("NO_COLOR"), glyphs=is_utf8, bars=True)


def _usage(what: str, hint: str) -> NoReturn:
    raise CommandError(Exit.USAGE, what, hint)


# ---------------------------------------------------------------------------------------------- the command line


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are two lines, and which may take its arguments from elsewhere, when used."""

    def __init__(self, *, part: str | None = None, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, **kwargs)
        self._part = part

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}", file=sys.stderr)
        print(f"  `{self.prog} --help` shows what can be given", file=sys.stderr)
        raise SystemExit(Exit.USAGE)

    def parse_known_args(  # pyright: ignore[reportIncompatibleMethodOverride]  # its overloads say the same
        self, args: Any = None, namespace: Any = None
    ) -> Any:
        if self._part is not None:
            part = _part(self._part)
            part.add_arguments(self)
            self.set_defaults(run=part.run)
            self._part = None
        return super().parse_known_args(args, namespace)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="otad", description="Update daemon for embedded-Linux gateways.")
    parser.add_argument("--version", action="version", version=f"otad {__version__}")
    _add_common(parser, default=None)
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)

    def add(
        name: str, words: str, run: Callable[[argparse.Namespace], int] | None = None, of: Any = commands, **more: Any
    ) -> argparse.ArgumentParser:
        command: argparse.ArgumentParser = of.add_parser(
            name, help=words, description=f"{words[0].upper()}{words[1:]}.", **more
        )
        _add_common(command, default=argparse.SUPPRESS)
        command.set_defaults(run=run)
        return command

    def add_json(command: argparse.ArgumentParser) -> None:
        command.add_argument("--json", action="store_true", help="for programs")

    add("run", "the daemon: what the service starts", _run)
    status = add("status", "what runs, what is happening, what happens next and when", _status)
    add_json(status)
    status.add_argument("--watch", action="store_true", help="go on until the deployment has ended")
    add("check", "ask the platform now", _check)
    install = add("install", "upgrade from a local file or any URL", _install)
    install.add_argument("package", metavar="FILE_OR_URL")
    install.add_argument("--version", metavar="V", help="the version it brings; else as its manifest.json says")
    install.add_argument("--module", metavar="M", help="what it upgrades; else as its manifest.json says, or default")
    install.add_argument("--sha256", metavar="HEX", help="its digest; needed for a URL, computed for a file")
    add("cancel", "end the current deployment and refuse its package", _cancel)
    add("retry", "lift the refusal of packages", _retry)
    add("reboot", "reboot into the staged slot now", _reboot)
    add("mark-good", "confirm the running system by hand", _mark_good)
    add("rollback", "go back to the other slot by hand", _rollback)
    add_json(add("slots", "the slots, and what the boot loader thinks of them", _slots))
    add_json(add("history", "past deployments", _history))
    config = add("config", "the configuration file").add_subparsers(metavar="COMMAND", required=True)
    check = add("check", "all that is wrong with it, and how to put it right", _config_check, of=config)
    check.add_argument("config_file", nargs="?", default=argparse.SUPPRESS, metavar="FILE")
    add("demo", "a whole upgrade on this machine, without root, board or account", part="otad.demo")
    add("platform", "the stand-in for the cloud by itself", part="otad.platform.cli")
    board = add("board", "the simulated board").add_subparsers(metavar="COMMAND", required=True)
    add("power-cycle", "switch it off and on", _power_cycle, of=board)
    return parser


def _add_common(parser: argparse.ArgumentParser, default: str | None) -> None:
    parser.add_argument(
        "--config", dest="config_file", metavar="FILE", default=default, help=f"default: {DEFAULT_CONFIG}"
    )
    parser.add_argument("--socket", metavar="PATH", default=default, help="the daemon's; default: as configured")
