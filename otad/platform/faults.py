# SPDX-License-Identifier: Apache-2.0
"""Switches that make the stand-in misbehave, as the real world does. All may be changed at any time.

What a switch cannot express, because it happens at a moment, is a method of `Platform`: `kick`, `cut_link`,
`take_broker_away`, `bring_broker_back`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from otad.platform.mqtt import Return


@dataclass(slots=True)
class Faults:
    # The file server's bodies.
    cut_after: int | None = None
    """Close the connection after this many bytes of a body."""
    cut_times: int | None = None
    """How many bodies are cut; None: every one."""
    rate: float | None = None
    """Bytes per second; small values make a drip."""
    stall_after: int | None = None
    """Send nothing more after this many bytes of a body, and keep the connection open, until this is None again."""
    size_delta: int = 0
    """The object is this much longer (zeros) or shorter than the notice says."""
    corrupt_at: int | None = None
    """The object's byte at this offset is another one."""

    # Its answers.
    next_statuses: list[int] = field(default_factory=list)
    """The next requests are answered with these (403, 404, 416, 500, 503 ...), one each."""
    every_status: int | None = None
    ignore_range: bool = False
    """200 and the whole object, whatever the range."""
    range_shift: int = 0
    """A 206 says and sends a start that is this much off."""
    etag: str | None = None
    """Instead of the object's own."""
    redirect_to: str | None = None
    gzip: bool = False
    """Content-Encoding: gzip, the whole object."""

    # Notices and replies.
    wrong_digest: bool = False
    wrong_size: int | None = None
    sign_method_text: str | None = None
    """Instead of `Md5` or `SHA256`."""
    notice_code: int | str = "1000"
    notice_id_as_text: bool = False
    trailing_nul: bool = False
    edit_notice: Callable[[dict[str, Any]], None] | None = None
    """Changes a notice or reply as it likes, before it is sent."""
    notice_qos: int = 0
    pushes: int = 1
    """How often each notice is sent; 0: it is lost."""
    push_delay_s: float = 0.0
    no_reply: bool = False
    """`firmware/get` is not answered."""

    # The broker.
    connack: Return | None = None
    """Every CONNECT is refused with this code."""
