# SPDX-License-Identifier: Apache-2.0
"""Who we are, as MQTT's CONNECT says it: client id, user name, password. Pure.

    client id   {id}|securemode=2,signmethod=hmacsha256,_v=otad-1.0.0|
    user name   {device name}&{product key}
    password    hex(HMAC(secret, "clientId{id}deviceName{device name}productKey{product key}"))

`id` is free; {product key}.{device name} unless the configuration says otherwise. `securemode` is 2 over TLS and 3 over
plain TCP. A `timestamp` would be one more signed value. The platform does not check how fresh it is and does not need
it, and a gateway's clock may be wrong: we send none.

Whoever has only the product's secret registers with it, and is told the device's own. Over HTTPS the same is said in a
form (`registration_form`):

    client id   {device name}.{product key}|random={r},authType=register,securemode=2,signmethod=hmacsha256|
                authType=regnwl where the platform does not know the device beforehand; instanceId where there is one
    password    hex(HMAC(product secret, "deviceName{device name}productKey{product key}random{r}"))

What `regnwl` gives is a client id and a token, which is the password as it stands:

    client id   {client id}|authType=connwl,securemode=-2,_ss=1,ext=3,_v=otad-1.0.0|

Behind an X.509 certificate nothing is signed, and the password is empty; so is the user name as long as we do not know
who we are.
"""

import hmac
from dataclasses import dataclass, field
from urllib.parse import urlencode

from otad import __version__
from otad.cloud.cloud import Names
from otad.config import SignMethod

# What the platform's C SDK always sends: nobody compares it with a clock.
_TIMESTAMP = "2524608000000"


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
    """The fields for this device; `secure` says that the connection is TLS, `client_id` "" is the usual one.

    `timestamp` is for comparing passwords with those of the platform's SDKs, which sign one. otad gives none.
    """
    identifier = client_id or f"{product_key}.{device_name}"
    signed = {"clientId": identifier, "deviceName": device_name, "productKey": product_key}
    parameters = {"securemode": "2" if secure else "3", "signmethod": sign_method.value, "_v": f"otad-{__version__}"}
    if timestamp is not None:
        signed["timestamp"] = parameters["timestamp"] = str(timestamp)
    return ConnectFields(
        client_id=_client_id(identifier, parameters),
        username=f"{device_name}&{product_key}",
        password=_signature(secret, sign_method, signed),
    )


def registration_fields(
    names: Names, product_secret: str, random: str, *, preregistered: bool = True, instance: str = ""
) -> ConnectFields:
    """The fields that ask for a credential; the platform pushes it once it has accepted them."""
    parameters = {
        "random": random,
        "authType": "register" if preregistered else "regnwl",
        "securemode": "2",
        "signmethod": SignMethod.HMAC_SHA256.value,
    }
    if instance:
        parameters["instanceId"] = instance
    return ConnectFields(
        client_id=_client_id(f"{names.device_name}.{names.product_key}", parameters),
        username=f"{names.device_name}&{names.product_key}",
        password=_registration_signature(names, product_secret, random),
    )


def registration_form(names: Names, product_secret: str, random: str) -> bytes:
    """What is posted to register over HTTPS, as application/x-www-form-urlencoded."""
    return urlencode(
        {
            "productKey": names.product_key,
            "deviceName": names.device_name,
            "random": random,
            "sign": _registration_signature(names, product_secret, random),
            "signMethod": SignMethod.HMAC_SHA256.value,
        }
    ).encode()


def token_fields(names: Names, client_id: str, token: str) -> ConnectFields:
    """The fields for a device that has been given a client id and a token."""
    parameters = {"authType": "connwl", "securemode": "-2", "_ss": "1", "ext": "3", "_v": f"otad-{__version__}"}
    return ConnectFields(_client_id(client_id, parameters), f"{names.device_name}&{names.product_key}", token)


def certificate_fields(identifier: str, names: Names | None) -> ConnectFields:
    """The fields behind an X.509 certificate. Without `names` the platform accepts them too, and tells the names."""
    parameters = {"securemode": "2", "signmethod": SignMethod.HMAC_SHA1.value, "timestamp": _TIMESTAMP}
    username = f"{names.device_name}&{names.product_key}" if names else ""
    return ConnectFields(_client_id(identifier, parameters), username, "")


def _client_id(identifier: str, parameters: dict[str, str]) -> str:
    return f"{identifier}|{','.join(f'{key}={value}' for key, value in parameters.items())}|"


def _registration_signature(names: Names, product_secret: str, random: str) -> str:
    signed = {"deviceName": names.device_name, "productKey": names.product_key, "random": random}
    return _signature(product_secret, SignMethod.HMAC_SHA256, signed)


def _signature(secret: str, sign_method: SignMethod, signed: dict[str, str]) -> str:
    content = "".join(key + value for key, value in sorted(signed.items()))
    return hmac.digest(secret.encode(), content.encode(), sign_method.removeprefix("hmac")).hex()
