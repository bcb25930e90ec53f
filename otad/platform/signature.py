# SPDX-License-Identifier: Apache-2.0
"""Secure upgrade: the key with which the platform signs the digests of packages.

A signature is RSASSA-PKCS1-v1_5 with SHA-256 over the *raw bytes* of a file's digest (16 of MD5, 32 of SHA-256), by a
key of 2048 bits with e = 65537, in base64. It says nothing of version, module or size.

The key is made when it is first needed, and kept in the platform's directory as PKCS#8 in PEM.
"""

import base64
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

BITS = 2048


class SigningKey:
    """The key in `file`, which need not be there yet."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._key: RSAPrivateKey | None = None

    @property
    def public_pem(self) -> str:
        """What the console shows for devices: SubjectPublicKeyInfo in PEM."""
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat  # noqa: PLC0415

        form = PublicFormat.SubjectPublicKeyInfo
        return self._private().public_key().public_bytes(Encoding.PEM, form).decode()

    def sign(self, digest: str) -> str:
        """The signature over a digest in hex, in base64."""
        from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15  # noqa: PLC0415
        from cryptography.hazmat.primitives.hashes import SHA256  # noqa: PLC0415

        return base64.b64encode(self._private().sign(bytes.fromhex(digest), PKCS1v15(), SHA256())).decode()

    def _private(self) -> "RSAPrivateKey":
        if self._key is None:
            self._key = self._load() if self._file.exists() else self._make()
        return self._key

    def _load(self) -> "RSAPrivateKey":
        from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey  # noqa: PLC0415
        from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415

        key = load_pem_private_key(self._file.read_bytes(), password=None)
        if not isinstance(key, RSAPrivateKey):
            raise TypeError(f"{self._file}: not an RSA key")
        return key

    def _make(self) -> "RSAPrivateKey":
        from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key  # noqa: PLC0415
        from cryptography.hazmat.primitives.serialization import (  # noqa: PLC0415
            Encoding,
            NoEncryption,
            PrivateFormat,
        )

        key = generate_private_key(public_exponent=65537, key_size=BITS)
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        new = self._file.with_suffix(".new")
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(pem)
        new.replace(self._file)
        return key
