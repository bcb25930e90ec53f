# SPDX-License-Identifier: Apache-2.0
"""A certificate authority of the stand-in's own, for TLS on a desk or in a test: nothing else should trust it.

    ca.pem      its certificate: what devices take as `ca_file`. It lives 20 years, and is kept across restarts
    ca.key      its key, readable by its owner only
    server.pem  the server's certificate and key, new at each start, for the names that devices know it by

An X.509 device's certificate names it in its subject: O is the product key, CN the device name. The real platform
knows a device by the certificate as a whole; what a subject says there is not documented.

This module loads `cryptography`: import it only where TLS is asked for.
"""

import datetime
import ipaddress
import os
import secrets
import ssl
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from otad.platform.credentials import Identity

LIFE: Final = datetime.timedelta(days=20 * 365)
LEEWAY: Final = datetime.timedelta(days=1)  # for a device whose clock is behind ours


def device_of(certificate: Mapping[str, Any]) -> Identity | None:
    """The device that a verified certificate names, in the form of `getpeercert()`; None if it names none."""
    subject = dict(pair for names in certificate.get("subject", ()) for pair in names)
    product_key, device_name = subject.get("organizationName"), subject.get("commonName")
    return Identity(product_key, device_name) if product_key and device_name else None


class Authority:
    """The authority of one directory; it is made there if there is none."""

    def __init__(self, directory: Path) -> None:
        """Raises ValueError if what is there makes no authority."""
        directory = directory.absolute()
        self.ca_file = directory / "ca.pem"
        self._server_file = directory / "server.pem"
        key_file = directory / "ca.key"
        if not self.ca_file.exists():
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            certificate, key = _make()
            _write(key_file, _key_pem(key))
            _write(self.ca_file, _pem(certificate), mode=0o644)
        hint = "remove ca.pem and ca.key to get new ones"
        try:
            found = serialization.load_pem_private_key(key_file.read_bytes(), None)
            self._certificate = x509.load_pem_x509_certificate(self.ca_file.read_bytes())
        except FileNotFoundError as error:
            raise ValueError(f"{key_file}: missing; {hint}") from error
        except (ValueError, TypeError) as error:
            raise ValueError(f"{directory}: ca.pem or ca.key cannot be read; {hint}") from error
        if not isinstance(found, ec.EllipticCurvePrivateKey) or found.public_key() != self._certificate.public_key():
            raise ValueError(f"{key_file}: not the key of ca.pem; {hint}")
        self._key = found

    def server_context(self, names: Iterable[str], *, asks_devices: bool = False) -> ssl.SSLContext:
        """TLS 1.2 and up for a server that is known by these host names and addresses.

        `asks_devices`: a client may show a certificate of this authority; one of another authority is refused.
        """
        certificate, key = self.issue_server(names)
        _write(self._server_file, certificate + key)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(self._server_file)
        if asks_devices:
            context.verify_mode = ssl.CERT_OPTIONAL
            context.load_verify_locations(self.ca_file)
        return context

    def issue_server(self, names: Iterable[str]) -> tuple[bytes, bytes]:
        """A server's certificate and its key, in PEM; `names` are host names and IP addresses."""
        names = tuple(dict.fromkeys(names))
        alternatives = x509.SubjectAlternativeName([_general_name(name) for name in names])
        return self._issue(_name(CN=names[0][:64]), ExtendedKeyUsageOID.SERVER_AUTH, alternatives)

    def issue_device(self, product_key: str, device_name: str) -> tuple[bytes, bytes]:
        """An X.509 device's certificate and its key, in PEM."""
        return self._issue(_name(O=product_key, CN=device_name), ExtendedKeyUsageOID.CLIENT_AUTH)

    def _issue(
        self, subject: x509.Name, use: x509.ObjectIdentifier, alternatives: x509.SubjectAlternativeName | None = None
    ) -> tuple[bytes, bytes]:
        key = ec.generate_private_key(ec.SECP256R1())
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = (
            _builder(subject, self._certificate.subject, key)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([use]), critical=False)
            .add_extension(authority, critical=False)
        )
        if alternatives is not None:
            builder = builder.add_extension(alternatives, critical=False)
        return _pem(builder.sign(self._key, hashes.SHA256())), _key_pem(key)


def _make() -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """A new authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    # OpenSSL looks for an authority by its name: two of them must not have the same.
    name = _name(O="otad platform, for tests only", CN=f"otad platform {secrets.token_hex(4)}")
    builder = (
        _builder(name, name, key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
    )
    return builder.sign(key, hashes.SHA256()), key


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - LEEWAY)
        .not_valid_after(now + LIFE)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _name(**fields: str) -> x509.Name:
    oids = {"O": NameOID.ORGANIZATION_NAME, "CN": NameOID.COMMON_NAME}
    return x509.Name([x509.NameAttribute(oids[field], value) for field, value in fields.items()])


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _key_usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Under its name it is there as a whole or not at all."""
    new = path.with_name(f"{path.name}.new")
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
        file.write(content)
    new.replace(path)
