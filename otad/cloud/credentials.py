# SPDX-License-Identifier: Apache-2.0
"""Who we are, as MQTT's CONNECT says it: client id, user name, and a password signed with the device secret.

    client id   {id}|securemode=2,signmethod=hmacsha256,_v=otad-1.0.0|
    user name   {device name}&{product key}
    password    hex(HMAC(secret, "clientId{id}deviceName{device name}productKey{product key}"))

`id` is free; {product key}.{device name} unless the configuration says otherwise. `securemode` is 2 over TLS and 3 over
plain TCP. A `timestamp` would be one more signed value. The platform does not check how fresh it is and does not need
it, and a gateway's clock may be wrong: we send none.
"""

import hmac
from dataclasses import dataclass, field

from otad import __version__
from otad.config import SignMethod


@dataclass(frozen=True, slots=True)
class ConnectFields:
    """What goes into CONNECT. The password is as good as the secret until that is changed, and stays out of `repr`."""

    client_id: str
    username: str
    password: str = field(repr=False)


def connect_fields(
    product_key: str,
    device_name: str,
    secret: str,
    sign_method: SignMethod = SignMethod.HMAC_SHA256,
    client_id: str = "",
    *,
    secure: bool = True,
    timestamp: int | None = None,
) -> ConnectFields:
    """The fields for this device; `secure` says that the connection is TLS, `client_id` "" is the usual one."""
    identifier = client_id or f"{product_key}.{device_name}"
    signed = {"clientId": identifier, "deviceName": device_name, "productKey": product_key}
    parameters = {"securemode": "2" if secure else "3", "signmethod": sign_method.value, "_v": f"otad-{__version__}"}
    if timestamp is not None:
        signed["timestamp"] = parameters["timestamp"] = str(timestamp)
    content = "".join(key + value for key, value in sorted(signed.items()))
    extension = ",".join(f"{key}={value}" for key, value in parameters.items())
    return ConnectFields(
        client_id=f"{identifier}|{extension}|",
        username=f"{device_name}&{product_key}",
        password=hmac.digest(secret.encode(), content.encode(), sign_method.removeprefix("hmac")).hex(),
    )
