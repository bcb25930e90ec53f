# SPDX-License-Identifier: Apache-2.0
"""Who we are to the platform, and how we come to know it: what each attempt is to say.

A device secret is all there is to say. Whoever has only the product's secret, or a certificate that the configuration
does not name, is told by the platform who he is. That takes an attempt of its own: an introduction, over MQTT, or a
registration over HTTPS. What is told is stored before it is used, in `identity.json` of the state directory:

    {"schema": 1, "obtained_for": "secret of a1B2c3D4e5F/gateway-0001",
     "product_key": "a1B2c3D4e5F", "device_name": "gateway-0001", "device_secret": "..."}

    obtained_for    with another configuration this is not ours to use; one of
                      secret of {product key}/{device name}      device_secret is there
                      token of {product key}/{device name}       client_id and device_token are there
                      names of certificate {SHA-256 of it}       product_key and device_name say it all

A file that is damaged, or of another configuration, is passed over and replaced by the next one that is obtained; its
removal makes the gateway register anew. How the secret was obtained, over MQTT or HTTPS, plays no part: it is the
device's, and an activated device would be given no other.

Where the platform refuses what was stored, as after a reset in the console, the next attempt asks to be told anew, and
whatever comes of that, the one after it uses what is stored then. Each refusal is followed by the session's long wait.

Files are read anew for each attempt, since whatever is wrong with them may be put right while the daemon runs. Nothing
here waits for the network; the calls block on files.
"""

import base64
import hashlib
import json
import logging
import re
import secrets
import ssl
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, assert_never

from otad import ids
from otad.cloud import registration, wire
from otad.cloud.cloud import Names
from otad.cloud.credentials import (
    ConnectFields,
    certificate_fields,
    connect_fields,
    registration_fields,
    registration_form,
    token_fields,
)
from otad.cloud.link import default_context, words
from otad.config import DeviceSettings, MqttSettings, Registration, read_secret
from otad.durable import Disk
from otad.errors import ConfigurationError

FILE = "identity.json"
BYTES_MAX = 16 << 10
PEM_BYTES_MAX = 64 << 10
SCHEMA = 1

log = logging.getLogger(__name__)

_ENABLED = "that the platform has this device enabled"
_OF_SECRET = f"check device.product_key, device.device_name and the device secret, and {_ENABLED}"
_OF_STORED = f"check {_ENABLED}; if it was reset there, the next attempt registers it anew"
_OF_CERTIFICATE = f"check device.certificate_file, that the platform knows this certificate, and {_ENABLED}"
_OF_REGISTRATION = (
    "registration: check device.product_key, device.device_name and the product secret, and in the console that "
    "dynamic registration is switched on for the product, and that "
)
_OF_REGISTERED = "it has the device and never activated it: one that was activated must be reset there first"
_OF_UNREGISTERED = "the instance allows it for devices that it does not know beforehand"


@dataclass(frozen=True, slots=True)
class Connect:
    """Hold a session. `hint` is what to do where the platform refuses."""

    fields: ConnectFields
    names: Names
    tls: ssl.SSLContext | None
    hint: str


@dataclass(frozen=True, slots=True)
class Introduce:
    """Connect, wait until we are told on `topic` who we are, and leave. What is told is kept for this `purpose`."""

    fields: ConnectFields
    topic: str
    tls: ssl.SSLContext | None
    hint: str
    purpose: str


@dataclass(frozen=True, slots=True)
class Register:
    """Be told over HTTPS."""

    endpoint: tuple[str, int]
    form: bytes = field(repr=False)  # signed
    tls: ssl.SSLContext
    purpose: str


@dataclass(frozen=True, slots=True)
class Obtained:
    """Who the platform says we are, and by what we prove it: a secret, a client id and token, or a certificate."""

    names: Names
    device_secret: str = field(default="", repr=False)
    client_id: str = ""
    device_token: str = field(default="", repr=False)


class Login:
    """Who one gateway is, by its configuration and by what it was told."""

    def __init__(
        self,
        device: DeviceSettings,
        mqtt: MqttSettings,
        directory: Path,
        disk: Disk,
        floor: Callable[[], int] | None = None,
    ) -> None:
        """`directory` is that of the state; `floor` see `tls.client_context`."""
        self._device = device
        self._mqtt = mqtt
        self._file = directory / FILE
        self._disk = disk
        self._floor = floor
        self._names = Names(device.product_key, device.device_name) if device.product_key else None
        self._stored: tuple[str, Obtained] | None = None  # with the purpose it was obtained for
        self._is_read = False
        self._is_refused = False
        self._fault = ""

    def next(self) -> Connect | Introduce | Register:
        """What the next attempt is to say. Raises ConfigurationError."""
        device = self._device
        if device.certificate_file is not None and device.key_file is not None:
            return self._with_certificate(device.certificate_file, device.key_file)
        assert self._names is not None, "the configuration cannot do without names where there is no certificate"
        if device.product_secret or device.product_secret_file:
            return self._with_product_secret(self._names)
        secret = _secret(device.device_secret, device.device_secret_file)
        return Connect(self._signed(self._names, secret), self._names, self._tls(), _OF_SECRET)

    def refused(self) -> None:
        """The platform does not accept the Connect that `next` gave."""
        self._is_refused = True

    def learn(self, who: Introduce | Register, told: bytes) -> Names:
        """Store who we are, as we were told when we said `who`; durable when it returns.

        Raises registration's Refused and Lost, wire.Unattributable, OSError.
        """
        obtained = self._understand(who, told)
        if self._names not in (None, obtained.names):
            raise wire.Unattributable("another device's identity")
        self._disk.replace(self._file, _encode(who.purpose, obtained))
        self._stored, self._is_read = (who.purpose, obtained), True
        log.info("the platform has told who we are: %s", obtained.names, extra={"MESSAGE_ID": ids.SESSION})
        return obtained.names

    def _with_product_secret(self, names: Names) -> Connect | Introduce | Register:
        device, way = self._device, self._device.registration
        purpose = f"{'token' if way is Registration.MQTT_TOKEN else 'secret'} of {names}"
        if obtained := self._known(purpose):
            if way is Registration.MQTT_TOKEN:
                fields = token_fields(names, obtained.client_id, obtained.device_token)
            else:
                fields = self._signed(names, obtained.device_secret)
            return Connect(fields, names, self._tls(), _OF_STORED)
        secret = _secret(device.product_secret, device.product_secret_file)
        random = str(secrets.randbelow(10**10))
        match way:
            case Registration.MQTT:
                fields = registration_fields(names, secret, random, instance=self._mqtt.instance)
                hint = _OF_REGISTRATION + _OF_REGISTERED
                return Introduce(fields, wire.REGISTER_TOPIC, self._tls(), hint, purpose)
            case Registration.MQTT_TOKEN:
                fields = registration_fields(names, secret, random, preregistered=False, instance=self._mqtt.instance)
                hint = _OF_REGISTRATION + _OF_UNREGISTERED
                return Introduce(fields, wire.REGISTER_UNKNOWN_TOPIC, self._tls(), hint, purpose)
            case Registration.HTTPS:
                form = registration_form(names, secret, random)
                return Register(self._registration_endpoint(), form, self._public_tls(), purpose)
            case _:
                assert_never(way)

    def _with_certificate(self, certificate: Path, key: Path) -> Connect | Introduce:
        tls = default_context(self._mqtt.ca_file, self._floor)
        fingerprint = self._load(tls, certificate, key)
        purpose = f"names of certificate {fingerprint}"
        obtained = self._known(purpose) if self._names is None else None
        names = obtained.names if obtained else self._names
        own = self._device.client_id or (f"{names.product_key}.{names.device_name}" if names else fingerprint[:32])
        fields = certificate_fields(own, names)
        if names is None:
            return Introduce(fields, wire.IDENTITY_TOPIC, tls, _OF_CERTIFICATE, purpose)
        return Connect(fields, names, tls, _OF_CERTIFICATE)

    def _load(self, tls: ssl.SSLContext, certificate: Path, key: Path) -> str:
        """Show this certificate on connections of `tls`; its fingerprint. Raises ConfigurationError."""
        der = _der(self._pem("device.certificate_file", certificate, "CERTIFICATE"))
        self._pem("device.key_file", key, "PRIVATE KEY", "([A-Z]+ )?")
        try:
            tls.load_cert_chain(certificate, key, _no_password)
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                raise ConfigurationError((f"device.key_file: {key}: not the key of {certificate}",)) from error
            said = f"device.certificate_file, device.key_file: {certificate}, {key}: {words(error)}"
            raise ConfigurationError((said,)) from error
        except (OSError, ValueError) as error:
            raise ConfigurationError((f"device.key_file: {key}: {words(error)}",)) from error
        return hashlib.sha256(der).hexdigest()

    def _pem(self, name: str, path: Path, what: str, kind: str = "") -> str:
        """What the PEM file holds, from the first of these on; `kind` is what may be in front of `what`, a pattern."""
        try:
            if not stat.S_ISREG(path.stat().st_mode):  # a FIFO would make everything wait
                raise ConfigurationError((f"{name}: {path}: not a regular file",))
            content = self._disk.read(path, PEM_BYTES_MAX).decode("ascii", errors="replace")
        except OSError as error:
            raise ConfigurationError((f"{name}: {path}: {words(error)}",)) from error
        found = re.search(f"^-----BEGIN {kind}{what}-----", content, re.MULTILINE)
        if len(content) > PEM_BYTES_MAX or found is None:
            raise ConfigurationError((f"{name}: {path}: no {what.lower()} in PEM (-----BEGIN {what}-----)",))
        return content[found.start() :]

    def _signed(self, names: Names, secret: str) -> ConnectFields:
        mqtt, device = self._mqtt, self._device
        return connect_fields(
            names.product_key, names.device_name, secret, mqtt.sign_method, device.client_id, secure=mqtt.tls
        )

    def _tls(self) -> ssl.SSLContext | None:
        return default_context(self._mqtt.ca_file, self._floor) if self._mqtt.tls else None

    def _public_tls(self) -> ssl.SSLContext:
        """For the registration's end point, whose certificate is of a public authority, or of one's own."""
        context = default_context(self._mqtt.ca_file, self._floor)
        context.load_default_certs()
        return context

    def _registration_endpoint(self) -> tuple[str, int]:
        mqtt = self._mqtt
        if own := self._device.registration_host:
            host, _, port = own.partition(":")
            return host, int(port or 443)
        if mqtt.region:
            return f"iot-auth.{mqtt.region}.aliyuncs.com", 443
        return f"{mqtt.instance}.auth.iothub.aliyuncs.com", 443

    def _understand(self, who: Introduce | Register, told: bytes) -> Obtained:
        if isinstance(who, Introduce) and who.topic == wire.IDENTITY_TOPIC:
            return Obtained(Names(*wire.parse_identity(told)))
        if isinstance(who, Introduce) and who.topic == wire.REGISTER_UNKNOWN_TOPIC:
            token = wire.parse_token(told)
            return Obtained(self._named(token), client_id=token.client_id, device_token=token.device_token)
        try:
            given = wire.parse_registered(told) if isinstance(who, Introduce) else wire.parse_registration_answer(told)
        except wire.RegistrationRefused as refusal:
            raise registration.meaning(refusal.code, refusal.message) from refusal
        return Obtained(self._named(given), given.device_secret)

    def _named(self, given: wire.Registered | wire.Token) -> Names:
        """The platform need not repeat the names that it was told."""
        ours = self._names or Names("", "")
        return Names(given.product_key or ours.product_key, given.device_name or ours.device_name)

    def _known(self, purpose: str) -> Obtained | None:
        """What is stored for this purpose; None, once, where it has just been refused."""
        if not self._is_read:
            self._read()
        if self._stored is None or self._stored[0] != purpose:
            return None
        if self._is_refused:
            self._is_refused = False
            return None
        return self._stored[1]

    def _read(self) -> None:
        fault = ""
        try:
            self._stored, self._is_read = _decode(self._disk.read(self._file, BYTES_MAX)), True
        except FileNotFoundError:
            self._is_read = True
        except ValueError as error:
            fault, self._is_read = str(error), True
        except OSError as error:
            fault = words(error)  # it may pass: the next attempt reads again
        if fault and fault != self._fault:
            log.warning("%s: %s: passed over", self._file, fault)
        self._fault = fault


def _secret(inline: str, file: Path | None) -> str:
    return inline if file is None else read_secret(file)


def _no_password() -> NoReturn:
    """Without this OpenSSL would ask at the terminal."""
    raise ValueError("encrypted: otad needs a key without a passphrase")


def _der(pem: str) -> bytes:
    """The certificate that the text begins with."""
    try:
        return base64.b64decode(pem[len(ssl.PEM_HEADER) : max(0, pem.find(ssl.PEM_FOOTER))])
    except ValueError:
        return pem.encode()  # it will not load


def _encode(purpose: str, obtained: Obtained) -> bytes:
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "obtained_for": purpose,
        "product_key": obtained.names.product_key,
        "device_name": obtained.names.device_name,
    }
    for name in _CREDENTIALS:
        if value := getattr(obtained, name):
            document[name] = value
    return json.dumps(document).encode() + b"\n"


def _decode(content: bytes) -> tuple[str, Obtained]:
    """Purpose, and what was obtained for it. Raises ValueError, whose text shows nothing of what is secret."""
    if len(content) > BYTES_MAX:
        raise ValueError(f"more than {BYTES_MAX} bytes")
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError("not JSON") from error
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise ValueError(f"not of schema {SCHEMA}")
    values = {name: document.get(name, "") for name in ("obtained_for", "product_key", "device_name", *_CREDENTIALS)}
    for name, value in values.items():
        if not isinstance(value, str) or not value.isprintable():
            raise ValueError(f"{name}: damaged")
    purpose, product_key, device_name, *credentials = values.values()
    if not re.fullmatch("[A-Za-z0-9]{1,64}", product_key) or not re.fullmatch("[A-Za-z0-9_.:@-]{1,64}", device_name):
        raise ValueError("product_key, device_name: damaged")
    has = tuple(name for name, value in zip(_CREDENTIALS, credentials, strict=True) if value)
    if has != _NEEDS.get(purpose.partition(" ")[0]):
        raise ValueError("obtained_for: damaged")
    return purpose, Obtained(Names(product_key, device_name), *credentials)


_CREDENTIALS = ("device_secret", "client_id", "device_token")
_NEEDS = {"secret": ("device_secret",), "token": ("client_id", "device_token"), "names": ()}
