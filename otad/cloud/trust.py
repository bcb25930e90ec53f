# SPDX-License-Identifier: Apache-2.0
"""Whether a package is the owner's: its `digestsign` against the public key in `trust.digestsign_key_file`.

The platform's "secure upgrade" signs the digest of a package, and nothing else of the notice: the signature is base64
of RSASSA-PKCS1-v1_5 with SHA-256 over the digest's raw bytes, 16 of MD5 or 32 of SHA-256 (so a hash of a hash). What it
does not say: which version, module or device the package is for. Bytes that were signed once are good for ever.

Where a key is configured every digest must have its signature. One way leads to the end of `verify`; all else raises.
"""

import base64
import stat
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from otad.core.model import Digest
from otad.errors import Code, UpdateError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

KEY_BITS_MIN = 2048
_FILE_BYTES_MAX = 64 << 10


class SignatureKey:
    """The public key in a PEM file. The file is read each time: notices are rare, and a corrected one must do."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def verify(self, digest: Digest, signature: str | None) -> None:
        """Return if, and only if, `signature` is this key's for `digest`. Raises UpdateError, SIGNATURE.

        A key that cannot be used is the gateway's fault, and the error names its file.
        """
        # 8 MiB that a daemon without a key, or one that has heard of no package yet, does without.
        from cryptography.exceptions import InvalidSignature  # noqa: PLC0415
        from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15  # noqa: PLC0415
        from cryptography.hazmat.primitives.hashes import SHA256  # noqa: PLC0415

        key = self._key()
        try:
            key.verify(_decoded(signature, (key.key_size + 7) // 8), bytes.fromhex(digest.hex), PKCS1v15(), SHA256())
        except InvalidSignature as error:
            _refuse("not by the key of trust.digestsign_key_file for this digest", error)

    def _key(self) -> "RSAPublicKey":
        from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415
        from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey  # noqa: PLC0415
        from cryptography.hazmat.primitives.serialization import load_pem_public_key  # noqa: PLC0415

        try:
            key = load_pem_public_key(self._content())
        except OSError as error:
            self._blame(error.strerror or str(error), error)
        except (ValueError, UnsupportedAlgorithm) as error:
            self._blame("not a public key in PEM", error)
        if not isinstance(key, RSAPublicKey):
            self._blame("not an RSA key")
        if key.key_size < KEY_BITS_MIN:
            self._blame(f"{key.key_size} bits: must have {KEY_BITS_MIN} at least")
        return key

    def _content(self) -> bytes:
        if not stat.S_ISREG(self._file.stat().st_mode):  # a FIFO would make everything wait
            raise OSError("not a regular file")
        with self._file.open("rb") as file:
            return file.read(_FILE_BYTES_MAX)

    def _blame(self, reason: str, cause: Exception | None = None) -> NoReturn:
        raise UpdateError(Code.SIGNATURE, f"trust.digestsign_key_file: {self._file}: {reason}") from cause


def _decoded(signature: str | None, length: int) -> bytes:
    """The signature's bytes, `length` of them. Raises UpdateError, SIGNATURE."""
    if not signature:
        _refuse("missing: trust.digestsign_key_file asks for one")
    try:
        content = base64.b64decode(signature)
    except ValueError as error:
        _refuse("not base64", error)
    if base64.b64encode(content) != signature.encode():  # letters and bits that decoding passes over
        _refuse("not base64")
    if len(content) != length:
        _refuse(f"{len(content)} bytes: must be {length}, as the key of trust.digestsign_key_file")
    return content


def _refuse(reason: str, cause: Exception | None = None) -> NoReturn:
    raise UpdateError(Code.SIGNATURE, f"digestsign: {reason}") from cause
