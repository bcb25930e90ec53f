# SPDX-License-Identifier: Apache-2.0
"""Switches that make the stand-in misbehave, as the real world does. All may be changed at any time.

What a switch cannot express, because it happens at a moment, is a method of `Platform`: `kick`, `send_error`,
`cut_downloads`, `take_broker_away`, `bring_broker_back`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from otad.platform.mqtt import Return


class BlockFault(StrEnum):
    """What may happen to the answer to a request for a block. Those after `OTHER` come when they may be unexpected."""

    LOST = "lost"  # there is none
    CRC = "crc"  # its check sum is another one
    CUT = "cut"  # its last byte is missing
    OTHER = "other"  # it holds the block behind the one asked for, and says so
    TWICE = "twice"  # it comes once more, after the answer to the next request
    LATE = "late"  # it comes only after the answer to the next request


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
    url_ttl_s: float | None = None
    """Seconds for which URLs are good, counted from their issue; None: as the platform was told."""
    oss_urls: bool = False
    """URLs of object storage itself, with a security token in them: more than 900 characters. Errors have its form."""
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
    push_on_inform: bool = False
    """A notice that had no answer yet is sent again at each inform, not only when the device comes online."""
    no_reply: bool = False
    """`firmware/get` is not answered."""
    no_signature: bool = False
    """`digestsign` is missing where it should be."""
    wrong_signature: bool = False
    """`digestsign` is one over another digest."""
    zip_files: bool = False
    """A package of several files comes as one, a ZIP archive of them."""

    # Blocks over MQTT.
    next_blocks: list[BlockFault | int] = field(default_factory=list)
    """What happens to the next answers, one each; a number: that error code instead of a block."""
    every_block: BlockFault | int | None = None

    # The broker.
    connack: Return | None = None
    """Every CONNECT is refused with this code."""
    any_keepalive: bool = False
    """Keep-alive is not checked at CONNECT; 0 turns it off."""
    connects_per_minute: int | None = None
    """More CONNECTs of a device are refused with code 3. The real platform is said to allow 5."""
    uplinks_per_s: int | None = None
    """More messages of a device are dropped; `firmware/get` is answered with 429. The real one is said to allow 30."""
    suback_delay_s: float = 0.0
    """What is pushed within this time after a SUBSCRIBE arrives before its SUBACK."""
    error_on_takeover: bool = False
    """A connection is told (code 427) before it is closed because its device connected again."""

    # Registration and time.
    register_without_tls: bool = False
    """Dynamic registration over MQTT also where the broker has no TLS."""
    ntp_shift_s: float = 0.0
    """How far the times given are ahead."""
    no_ntp: bool = False
    """Nobody is told the time."""
