# SPDX-License-Identifier: Apache-2.0
"""Where log lines go: to the journal with their fields where there is one, else to standard error.

Fields in use, besides MESSAGE_ID (see `ids`): OTAD_DEPLOYMENT, OTAD_MODULE, OTAD_PHASE, OTAD_SLOT.
"""

import logging
import os
import sys


def set_up(level: int = logging.INFO) -> None:
    """Log to the journal when the service runs under systemd, else to standard error."""
    handler = _journal() or logging.StreamHandler(sys.stderr)
    if isinstance(handler, logging.StreamHandler):
        stamp = "" if "JOURNAL_STREAM" in os.environ else "%(asctime)s "
        handler.setFormatter(logging.Formatter(f"{stamp}%(levelname)-7s %(message)s", "%Y-%m-%d %H:%M:%S"))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.getLogger("asyncio").setLevel(logging.ERROR)


def _journal() -> logging.Handler | None:
    if "JOURNAL_STREAM" not in os.environ:
        return None
    try:
        from systemd.journal import JournalHandler  # noqa: PLC0415  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    handler: logging.Handler = JournalHandler(SYSLOG_IDENTIFIER="otad")
    return handler
