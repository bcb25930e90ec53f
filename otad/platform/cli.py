# SPDX-License-Identifier: Apache-2.0
"""The arguments of `otad platform`. What the commands do is in `commands`, which is loaded only when one is run."""

import argparse
from pathlib import Path


def add_arguments(subparser: argparse.ArgumentParser) -> None:
    """Give `otad platform` its commands."""
    commands = subparser.add_subparsers(dest="platform_command", required=True, metavar="COMMAND")

    serve = _add(commands, "serve", "play the cloud, in the foreground, until interrupted")
    serve.add_argument("--host", default="127.0.0.1", help="listen on this address (default: %(default)s)")
    serve.add_argument("--address", help="what devices are told to connect to (default: the host)")
    serve.add_argument("--mqtt-port", type=int, default=1883, metavar="PORT", help="0: any (default: %(default)s)")
    serve.add_argument("--http-port", type=int, default=8070, metavar="PORT", help="0: any (default: %(default)s)")
    serve.add_argument("--json", action="store_true", help="one JSON object per event")

    device = _add(commands, "add-device", "make a device known; prints its configuration")
    device.add_argument("product_key")
    device.add_argument("device_name")
    device.add_argument("--secret", help="default: a fresh one")

    package = _add(commands, "add-package", "upload a package")
    package.add_argument("file", type=Path)
    package.add_argument("version")
    package.add_argument("--module", default="default")
    package.add_argument("--sign-method", choices=("SHA256", "Md5"), default="SHA256")

    push = _add(commands, "push", "upgrade a device")
    push.add_argument("device", help="PRODUCT_KEY/DEVICE_NAME, or the device name alone")
    push.add_argument("version")
    push.add_argument("--module", default="default")
    push.add_argument("--wait", action="store_true", help="show progress until the job has ended; exit 1 if it failed")
    push.add_argument("--verify", action="store_true", help="a trial of the package before the batch")
    push.add_argument("--overwrite", action="store_true", help="replace the device's unfinished job")
    push.add_argument("--no-push", action="store_true", help="the device has to ask")
    push.add_argument("--confirm", action="store_true", help="wait for `otad platform confirm`")
    push.add_argument("--multi-module", action="store_true", help="one unfinished job for each module")
    push.add_argument("--timeout", type=float, metavar="MINUTES", help="from the first progress")
    push.add_argument(
        "--source", action="append", default=[], metavar="VERSION", help="meant for this version; repeatable"
    )
    push.add_argument("--retries", type=int, metavar="N", help="after a failure; needs --source")
    push.add_argument("--retry-interval", type=float, default=0.0, metavar="MINUTES", help="default: 0")

    jobs = _add(commands, "jobs", "list the jobs")
    jobs.add_argument("--json", action="store_true")

    for name, text in (
        ("cancel", "end a job; the device is not told"),
        ("confirm", "agree to a job that waits for it"),
    ):
        _add(commands, name, text).add_argument("job")

    misbehave = _add(commands, "misbehave", "show or set the switches to misbehave")
    misbehave.add_argument(
        "faults", nargs="*", metavar="NAME=VALUE", help="VALUE is JSON: cut_after=1000000, rate=null"
    )


def run(args: argparse.Namespace) -> int:
    """Carry the command out. Exit status: 0 done, 1 failed, 2 usage, 3 no platform is served."""
    # Loads an HTTP server and client; `otad` itself must stay light.
    from otad.platform.commands import run_command  # noqa: PLC0415

    return run_command(args)


def _add(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, text: str
) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=text)
    command.add_argument(
        "--directory",
        type=Path,
        default=Path("otad-platform"),
        help="where the platform keeps its devices, packages and jobs (default: ./%(default)s)",
    )
    return command
