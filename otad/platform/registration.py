# SPDX-License-Identifier: Apache-2.0
"""Who may come in, and how a device without a secret of its own gets one: dynamic registration.

A product whose switch is on lets its devices in by the product's secret, once:

- `register` (MQTT or HTTPS): the device was made known before. It gets a new device secret each time, and only the
  last one is good; no more once the device is activated, that is has logged in, until `reset` (the API's ResetThing).
- `regnwl` (MQTT): the device becomes known by this. It gets a client id and a token, with which it logs in from then
  on (`connwl`); at most 5 times for a device name, all of them good.

Over MQTT the answer is pushed right after CONNACK on `/ext/register` or `/ext/regnwl`, and the connection is good for
nothing else. It needs TLS. A refusal is a CONNACK code: 2 for what has not the right form, 4 for a wrong signature, 5
for everything else. Over HTTPS:

    POST /auth/register/device   productKey=..&deviceName=..&random=..&sign=..&signMethod=hmacsha256   (form-encoded)
    {"code":200,"data":{"productKey":"..","deviceName":"..","deviceSecret":".."},"message":"success"}
    {"code":6289,"message":".."}         460 a parameter, 6292 signMethod, 6250 no such product, 6288 switched off,
                                         6600 the signature, 6100 no such device, 6289 activated

Kept in `registration.json` beside `platform.json`, which has the device secrets:

    {"products": [{"key": "..", "secret": "..", "registration": true}], "activated": [{"product_key", "device_name"}],
     "tokens": [{"product_key": "..", "device_name": "..", "client_id": "..", "token": ".."}]}
"""

import hmac
import json
import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from aiohttp import web

from otad.platform import mqtt, wire
from otad.platform.broker import Admission
from otad.platform.credentials import (
    DIGESTS,
    Identity,
    Login,
    MalformedLogin,
    is_of_product,
    is_proven,
    parse_login,
)

TOKENS_PER_NAME: Final = 5
PATH: Final = "/auth/register/device"


@dataclass(frozen=True, slots=True)
class Product:
    key: str
    secret: str
    registration: bool
    """Whether devices may register by the product's secret."""


@dataclass(frozen=True, slots=True)
class Token:
    """What `regnwl` gives instead of a device secret."""

    client_id: str
    token: str


class Unregistered(Exception):  # noqa: N818
    """A registration that is refused, in the platform's own codes."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"code {code}: {message}")
        self.code = code
        self.message = message


class Registry:
    """The products of a platform, and who may come in.

    `secrets_of` are the devices' secrets, shared with whoever keeps them; `add_device` makes a device known (ValueError
    where its names are none) and `keep` writes them down; `registered` is told of each registration and its way.
    """

    def __init__(
        self,
        directory: Path,
        secrets_of: dict[Identity, str],
        add_device: Callable[[Identity], None],
        keep: Callable[[], None],
        registered: Callable[[Identity, str], None],
    ) -> None:
        self.products: dict[str, Product] = {}
        self.tokens: dict[Identity, list[Token]] = {}
        self._activated: set[Identity] = set()
        self._path = directory / "registration.json"
        self._secrets = secrets_of
        self._add_device = add_device
        self._keep = keep
        self._registered = registered
        self._load()

    def put(self, product: Product) -> None:
        """Make a product known, or another one than it was."""
        self.products[product.key] = product
        self._save()

    def activate(self, device: Identity) -> None:
        """The device has come in."""
        if device not in self._activated:
            self._activated.add(device)
            self._save()

    def is_activated(self, device: Identity) -> bool:
        return device in self._activated

    def reset(self, device: Identity) -> None:
        """The device may register again; its tokens are good no more."""
        self._activated.discard(device)
        self.tokens.pop(device, None)
        self._save()

    def admit(self, connect: mqtt.Connect, certified: Identity | None, *, registers: bool) -> Admission:
        """The answer to a CONNECT. `certified` is whom the client's certificate names, `registers` whether a device
        may register on this connection."""
        if certified is not None and connect.username in {"", "&"} and not connect.password:
            return self._admit_certified(certified, tells_names=True)
        try:
            login = parse_login(connect.client_id, connect.username, connect.password)
        except MalformedLogin as error:
            return Admission(mqtt.Return.IDENTIFIER, str(error))
        match login.auth_type:
            case "register" | "regnwl":
                return self._admit_registering(login, registers=registers)
            case "connwl":
                return self._admit_token(login)
            case "":
                pass
            case other:
                return Admission(mqtt.Return.IDENTIFIER, f"authType {other!r}")
        if certified is not None and not connect.password:
            if certified == login.identity:
                return self._admit_certified(certified, tells_names=False)
            return Admission(mqtt.Return.NOT_AUTHORISED, f"the certificate is that of {certified}")
        secret = self._secrets.get(login.identity)
        if secret is None:
            return Admission(mqtt.Return.NOT_AUTHORISED, "no such device")
        if not is_proven(login, secret):
            return Admission(mqtt.Return.PASSWORD, "wrong password")
        return Admission(mqtt.Return.ACCEPTED, identity=login.identity)

    def issue_secret(self, device: Identity, random: str, sign_method: str, sign: str, way: str) -> str:
        """A new secret for a device that is known and not activated. Raises `Unregistered`."""
        self._check(device, random, sign_method, sign)
        if device not in self._secrets:
            raise Unregistered(6100, "device not found")
        if device in self._activated:
            raise Unregistered(6289, "device is already activated")
        self._secrets[device] = secrets.token_hex(16)
        self._keep()
        self._registered(device, way)
        return self._secrets[device]

    def issue_token(self, device: Identity, random: str, sign_method: str, sign: str) -> Token:
        """A client id and a token for a device that need not be known. Raises `Unregistered`."""
        self._check(device, random, sign_method, sign)
        if device not in self._secrets:
            try:
                self._add_device(device)
            except ValueError as error:
                raise Unregistered(460, str(error)) from error
        tokens = self.tokens.setdefault(device, [])
        if len(tokens) >= TOKENS_PER_NAME:
            raise Unregistered(6289, f"{TOKENS_PER_NAME} devices have this name already")
        token = Token(secrets.token_hex(16), secrets.token_hex(32))
        tokens.append(token)
        self._save()
        self._registered(device, "regnwl")
        return token

    async def serve(self, request: web.Request) -> web.Response:
        """Registration over HTTPS. What is refused is a 200 as well, with its code in the body."""
        form = {name: str(value) for name, value in (await request.post()).items()}
        try:
            answer = self._registration(form)
        except Unregistered as error:
            answer = {"code": error.code, "message": error.message}
        return web.Response(body=wire.to_json(answer), content_type="application/json", charset="utf-8")

    def _registration(self, form: Mapping[str, str]) -> dict[str, Any]:
        for name in ("productKey", "deviceName", "random", "sign", "signMethod"):
            if not form.get(name):
                raise Unregistered(460, f"request parameter error: {name}")
        device = Identity(form["productKey"], form["deviceName"])
        secret = self.issue_secret(device, form["random"], form["signMethod"].lower(), form["sign"], "https")
        return {"code": 200, "data": {**wire.names(device), "deviceSecret": secret}, "message": "success"}

    def _check(self, device: Identity, random: str, sign_method: str, sign: str) -> None:
        """Raise `Unregistered` unless the product's secret was known to whoever signed, and its switch is on."""
        if sign_method not in DIGESTS:
            raise Unregistered(6292, f"signMethod {sign_method}: not supported")
        product = self.products.get(device.product_key)
        if product is None and all(known.product_key != device.product_key for known in self._secrets):
            raise Unregistered(6250, "product not found")
        if product is None or not product.registration:
            raise Unregistered(6288, "dynamic registration is off")
        if not is_of_product(device, random, sign_method, sign, product.secret):
            raise Unregistered(6600, "the signature is wrong")

    def _admit_registering(self, login: Login, *, registers: bool) -> Admission:
        if not login.random:
            return Admission(mqtt.Return.IDENTIFIER, f"authType={login.auth_type} without random")
        if not registers:
            return Admission(mqtt.Return.NOT_AUTHORISED, "registration without TLS")
        device, proof = login.identity, (login.random, login.sign_method, login.password)
        try:
            if login.auth_type == "register":
                given = {"deviceSecret": self.issue_secret(device, *proof, "register")}
            else:
                token = self.issue_token(device, *proof)
                given = {"clientId": token.client_id, "deviceToken": token.token}
        except Unregistered as error:
            code = mqtt.Return.PASSWORD if error.code == 6600 else mqtt.Return.NOT_AUTHORISED
            return Admission(code, str(error))
        message = (f"/ext/{login.auth_type}", wire.to_json({**wire.names(device), **given}))
        return Admission(mqtt.Return.ACCEPTED, message=message)

    def _admit_token(self, login: Login) -> Admission:
        tokens = self.tokens.get(login.identity)
        if not tokens:
            return Admission(mqtt.Return.NOT_AUTHORISED, "no token was issued for this device")
        for token in tokens:
            if token.client_id == login.client_id:
                if hmac.compare_digest(token.token.encode(), login.password.encode()):
                    return Admission(mqtt.Return.ACCEPTED, identity=login.identity)
                return Admission(mqtt.Return.PASSWORD, "wrong token")
        return Admission(mqtt.Return.NOT_AUTHORISED, f"client id {login.client_id!r}: not one that was issued")

    def _admit_certified(self, device: Identity, *, tells_names: bool) -> Admission:
        if device not in self._secrets:
            return Admission(mqtt.Return.NOT_AUTHORISED, f"the certificate is that of {device}: no such device")
        message = ("/ext/auth/identity/response", wire.to_json(wire.names(device))) if tells_names else None
        return Admission(mqtt.Return.ACCEPTED, identity=device, message=message)

    def _load(self) -> None:
        try:
            document = json.loads(self._path.read_bytes())
        except FileNotFoundError:
            return
        self.products = {one["key"]: Product(**one) for one in document["products"]}
        self._activated = {Identity(**one) for one in document["activated"]}
        for one in document["tokens"]:
            device = Identity(one["product_key"], one["device_name"])
            self.tokens.setdefault(device, []).append(Token(one["client_id"], one["token"]))

    def _save(self) -> None:
        document = {
            "products": [asdict(product) for product in self.products.values()],
            "activated": [asdict(device) for device in sorted(self._activated)],
            "tokens": [
                {**asdict(device), **asdict(token)} for device, tokens in self.tokens.items() for token in tokens
            ],
        }
        new = self._path.with_suffix(".new")
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            json.dump(document, file, ensure_ascii=False, indent=1)
        new.replace(self._path)
