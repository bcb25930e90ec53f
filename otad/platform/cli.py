# SPDX-License-Identifier: Apache-2.0
"""The arguments of `otad platform`. What the commands do is in `commands`, which is loaded only when one is run."""

import argparse
import os
from pathlib import Path
from typing import Final

DIRECTORY_VARIABLE: Final = "OTAD_PLATFORM"
DEFAULT_DIRECTORY: Final = Path("otad-platform")


def add_arguments(subparser: argparse.ArgumentParser) -> None:
    """Give `otad platform` its commands."""
    commands = subparser.add_subparsers(dest="platform_command", required=True, metavar="COMMAND")

    serve = _add(commands, "serve", "play the cloud, in the foreground, until interrupted")
    serve.add_argument("place", nargs="?", type=Path, metavar="DIRECTORY", help="the same as --directory")
    serve.add_argument("--tls", action="store_true", help="MQTT and packages over TLS, by an authority of its own")
    serve.add_argument("--host", default="127.0.0.1", help="listen on this address (default: %(default)s)")
    serve.add_argument("--address", help="what devices are told to connect to (default: the host)")
    serve.add_argument("--port", type=_port, metavar="PORT", help="MQTT; 0: any (default: 1883, with TLS 8883)")
    serve.add_argument(
        "--http-port", type=_port, default=8070, metavar="PORT", help="packages; 0: any (default: %(default)s)"
    )
    serve.add_argument("--json", action="store_true", help="one JSON object per event")

    device = _add(commands, "add-device", "make a device known; prints its configuration")
    device.add_argument("product_key")
    device.add_argument("device_name")
    credential = device.add_mutually_exclusive_group()
    credential.add_argument("--secret", help="its device secret (default: a fresh one)")
    credential.add_argument("--x509", action="store_true", help="it logs in by a certificate; needs serve --tls")

    product = _add(commands, "add-product", "a product whose devices may register by its secret")
    product.add_argument("product_key")
    product.add_argument("--secret", help="its product secret (default: a fresh one)")
    product.add_argument("--no-registration", action="store_true", help="turn dynamic registration off")

    package = _add(commands, "add-package", "upload a package of one file, or of several")
    package.add_argument("files", nargs="+", type=Path, metavar="FILE")
    package.add_argument("--version", required=True, metavar="V", help="the version that it brings")
    package.add_argument("--module", default="default", metavar="M", help="what it upgrades (default: %(default)s)")
    package.add_argument("--md5", action="store_true", help="the classic digest, rather than SHA-256")
    package.add_argument(
        "--tag", action="append", default=[], type=_tag, metavar="K=V", help="goes with the notice; repeatable"
    )
    package.add_argument("--udi", default="", metavar="TEXT", help="user-defined text that goes with the notice")
    package.add_argument("--diff", action="store_true", help="differential: only for the source versions of its push")
    package.add_argument("--signed", action="store_true", help="secure upgrade: the notice carries a signature")
    package.add_argument(
        "--protocol", choices=("https", "mqtt", "both"), default="https", help="how to fetch it (default: %(default)s)"
    )

    push = _add(commands, "push", "upgrade devices, and watch them until they have ended")
    push.add_argument("target", metavar="DEVICE", help="its name or PRODUCT_KEY/NAME; several with commas between")
    push.add_argument("version", metavar="VERSION", help="of the package")
    push.add_argument("--module", default="default", metavar="M", help="of the package (default: %(default)s)")
    which = push.add_argument_group("which devices")
    which.add_argument("--all", action="store_true", help="DEVICE is a product key: all of its devices")
    which.add_argument(
        "--source-version", action="append", default=[], metavar="V", help="only those that informed it; repeatable"
    )
    which.add_argument(
        "--dynamic",
        type=int,
        choices=(1, 2),
        help="DEVICE is a product key: 1: its devices now and later, 2: those that inform a version from now on",
    )
    how = push.add_argument_group("how")
    how.add_argument("--verify", action="store_true", help="a trial of the package before it goes to many")
    how.add_argument("--no-push", action="store_true", help="devices have to ask")
    how.add_argument("--confirm", action="store_true", help="wait for `otad platform confirm`")
    how.add_argument("--overwrite", action="store_true", help="replace an unfinished job, unless it is in progress")
    how.add_argument("--multi-module", action="store_true", help="one unfinished job for each module")
    how.add_argument("--timeout", type=_minutes, metavar="MINUTES", help="from the first progress")
    how.add_argument(
        "--retry", type=int, choices=(1, 2, 5), help="times after a failure; needs --source-version"
    )  # fmt: skip
    how.add_argument(
        "--retry-interval", type=int, choices=(0, 10, 30, 60, 1440), default=0, help="minutes (default: %(default)s)"
    )
    how.add_argument("--rate", type=int, metavar="N", help="tell so many devices per minute, 10 to 10000")
    how.add_argument("--start-in", type=_minutes, metavar="MINUTES", help="tell nobody before")
    push.add_argument("--no-wait", action="store_true", help="don't watch")
    push.add_argument("--json", action="store_true", help="one JSON object per change")

    jobs = _add(commands, "jobs", "the jobs, and how they stand")
    jobs.add_argument("--watch", action="store_true", help="go on until interrupted")
    jobs.add_argument("--json", action="store_true", help="for programs")
    _add(commands, "batches", "the batches").add_argument("--json", action="store_true", help="for programs")
    devices = _add(commands, "devices", "the devices, or the configuration of one")
    devices.add_argument("device", nargs="?", help="print what belongs into its configuration")
    devices.add_argument("--json", action="store_true", help="for programs")

    cancel = _add(commands, "cancel", "end jobs, or whole batches; devices are not told")
    cancel.add_argument("ids", nargs="+", metavar="JOB")
    cancel.add_argument("--batch", action="store_true", help="JOB is a batch")
    confirm = _add(commands, "confirm", "agree to jobs that wait for it")
    confirm.add_argument("ids", nargs="+", metavar="JOB")

    misbehave = _add(commands, "misbehave", "show or set the switches to misbehave")
    misbehave.add_argument(
        "faults",
        nargs="*",
        metavar="NAME=VALUE",
        help="VALUE is JSON: cut_after=1000000, rate=null; none: show them all",
    )
    misbehave.add_argument("--reset", action="store_true", help="first, everything as it should be")


def default_directory() -> Path:
    """The platform that commands are for which name none."""
    return Path(os.environ.get(DIRECTORY_VARIABLE) or DEFAULT_DIRECTORY)


def run(args: argparse.Namespace) -> int:
    """Carry the command out. Exit status: as for all of `otad`; 3 is that no platform is served."""
    # Loads an HTTP server and client; `otad` itself must stay light.
    from otad.platform.commands import run_command  # noqa: PLC0415

    return run_command(args)


def _add(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, text: str
) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    command.add_argument(
        "-d",
        "--directory",
        type=Path,
        default=default_directory(),
        metavar="DIRECTORY",
        help=f"where the platform keeps all it knows (default: ${DIRECTORY_VARIABLE}, else ./{DEFAULT_DIRECTORY})",
    )
    return command


def _port(text: str) -> int:
    number = int(text)
    if not 0 <= number < 65536:
        raise argparse.ArgumentTypeError(f"{text}: not a port, 0 to 65535")
    return number


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0.0
    if not 0 < minutes <= 1_000_000:
        raise argparse.ArgumentTypeError(f"{text}: not a number of minutes")
    return minutes


def _tag(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text}: not KEY=VALUE")
    return key, value
