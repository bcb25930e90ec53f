# SPDX-License-Identifier: Apache-2.0
"""Makes the cloud that a configuration asks for."""

import secrets
import time
from collections.abc import Callable

from otad import config as configuration
from otad.clock import Clock
from otad.cloud.cloud import Answer, Cloud
from otad.cloud.off import Off
from otad.config import Loaded
from otad.durable import Disk
from otad.errors import ConfigurationError


def make_cloud(
    loaded: Loaded,
    disk: Disk,
    heard: Callable[[Answer], None],
    changed: Callable[[], None],
    clock: Clock | None = None,
) -> Cloud:
    """The session of this gateway, or `Off` where the configuration does not allow one.

    `heard`, `changed`: see `session.Session`. `clock` must have been loaded.
    """
    errors = [error for error in loaded.errors if error.key.partition(".")[0] in ("", "device", "mqtt")]
    if errors:
        return _off(f"{len(errors)} error{'s' if len(errors) > 1 else ''} in the configuration: {errors[0]}")
    config = loaded.config
    try:
        endpoint = configuration.endpoint(config)
    except ConfigurationError as error:
        return _off(str(error))
    # Imported here, with aiomqtt: only where there is a session.
    from otad.cloud.login import Login  # noqa: PLC0415
    from otad.cloud.session import Session  # noqa: PLC0415
    from otad.cloud.trust import SignatureKey  # noqa: PLC0415

    key = config.trust.digestsign_key_file
    return Session(
        endpoint,
        Login(config.device, config.mqtt, config.state.directory, disk, floor=(lambda: clock.floor) if clock else None),
        config.mqtt.keepalive_s,
        heard,
        version=config.mqtt.version,
        allow_md5=config.trust.allow_md5,
        verify=SignatureKey(key).verify if key else None,
        clock=clock,
        changed=changed,
        life=f"{secrets.token_hex(4)}.",
    )


def _off(why: str) -> Off:
    return Off(why, int(time.time()))
