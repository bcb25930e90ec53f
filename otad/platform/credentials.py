# SPDX-License-Identifier: Apache-2.0
"""Who a device says it is, and whether it can prove it: the platform's side of CONNECT.

    clientId = <id>|key=value,key=value|        unknown keys are tolerated
    username = {deviceName}&{productKey}
    password = hex(HMAC_signmethod(deviceSecret, content)), compared without regard to case
    content  = key+value of clientId (only the <id>), deviceName, productKey and, where the client id names one,
               timestamp, in the keys' alphabetical order, without separators

A device that has no secret of its own yet says so by `authType` in its client id, and is known by its product:

    register, regnwl  password = hex(HMAC_signmethod(productSecret, content)) over deviceName, productKey and random
    connwl            password = the token that regnwl gave, verbatim

Written from the platform's documents and independent of otad's device side, so that an error in one shows in the other.
"""

import hmac
from dataclasses import dataclass
from typing import Final

DIGESTS: Final = {"hmacmd5": "md5", "hmacsha1": "sha1", "hmacsha256": "sha256"}


@dataclass(frozen=True, slots=True, order=True)
class Identity:
    """The two names that make a device one."""

    product_key: str
    device_name: str

    def __str__(self) -> str:
        return f"{self.product_key}/{self.device_name}"


@dataclass(frozen=True, slots=True)
class Login:
    """What a CONNECT claims."""

    identity: Identity
    client_id: str
    """Only the part before the bars."""
    sign_method: str
    timestamp: str | None
    password: str
    auth_type: str = ""
    random: str = ""


class MalformedLogin(ValueError):  # noqa: N818 - it is a login that is malformed
    """A client id or user name that is not in the platform's form."""


def parse_login(client_id: str, username: str, password: str) -> Login:
    """Read a CONNECT's three strings; raises `MalformedLogin`."""
    name, bar, rest = client_id.partition("|")
    if not name or not bar or not rest.endswith("|"):
        raise MalformedLogin(f"client id {client_id!r}: not of the form id|key=value,...|")
    if len(name) > 64:
        raise MalformedLogin(f"client id {name!r}: longer than 64 characters")
    parameters: dict[str, str] = {}
    for pair in filter(None, rest[:-1].split(",")):
        key, equals, value = pair.partition("=")
        if not equals:
            raise MalformedLogin(f"client id {client_id!r}: {pair!r} is not key=value")
        parameters[key] = value
    device_name, ampersand, product_key = username.partition("&")
    if not ampersand or not device_name or not product_key:
        raise MalformedLogin(f"user name {username!r}: not of the form deviceName&productKey")
    sign_method = parameters.get("signmethod", "hmacmd5").lower()
    if sign_method not in DIGESTS:
        raise MalformedLogin(f"signmethod {sign_method!r}: not one of {', '.join(DIGESTS)}")
    return Login(
        Identity(product_key, device_name),
        name,
        sign_method,
        parameters.get("timestamp"),
        password,
        parameters.get("authType", ""),
        parameters.get("random", ""),
    )


def expected_password(login: Login, secret: str) -> str:
    """The password that this login must carry, in lower case."""
    signed = {
        "clientId": login.client_id,
        "deviceName": login.identity.device_name,
        "productKey": login.identity.product_key,
    }
    if login.timestamp is not None:
        signed["timestamp"] = login.timestamp
    return _hmac(signed, login.sign_method, secret)


def is_proven(login: Login, secret: str) -> bool:
    """Whether the login's password was made with `secret`."""
    return _is_same(login.password, expected_password(login, secret))


def registration_sign(identity: Identity, random: str, sign_method: str, product_secret: str) -> str:
    """What proves that a device is of a product, in lower case: a password over MQTT, `sign` over HTTPS."""
    signed = {"deviceName": identity.device_name, "productKey": identity.product_key, "random": random}
    return _hmac(signed, sign_method, product_secret)


def is_of_product(identity: Identity, random: str, sign_method: str, sign: str, product_secret: str) -> bool:
    """Whether `sign` was made with `product_secret`."""
    return _is_same(sign, registration_sign(identity, random, sign_method, product_secret))


def _hmac(signed: dict[str, str], sign_method: str, secret: str) -> str:
    content = "".join(key + signed[key] for key in sorted(signed))
    return hmac.new(secret.encode(), content.encode(), DIGESTS[sign_method]).hexdigest()


def _is_same(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.lower().encode(), expected.encode())
