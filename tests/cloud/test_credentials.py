# SPDX-License-Identifier: Apache-2.0
"""CONNECT fields, against what the platform's own device SDKs send."""

import pytest

from otad import __version__
from otad.cloud.credentials import ConnectFields, connect_fields
from otad.config import SignMethod


def test_the_password_is_the_c_sdks() -> None:
    fields = connect_fields(
        "a1simpk0001", "gw001", "s3cr3t", SignMethod.HMAC_SHA256, secure=True, timestamp=2524608000000
    )

    assert fields == ConnectFields(
        f"a1simpk0001.gw001|securemode=2,signmethod=hmacsha256,_v=otad-{__version__},timestamp=2524608000000|",
        "gw001&a1simpk0001",
        "EDE4A054B689F3FD4DB174716259EDFBDCF470FD37D10C721382A896D9DCD3A7".lower(),
    )


def test_the_password_is_the_python_sdks() -> None:
    fields = connect_fields(
        "a1simpk0001",
        "gw001",
        "s3cr3t",
        SignMethod.HMAC_SHA1,
        "a1simpk0001&gw001",
        secure=False,
        timestamp=1795435907,
    )

    assert fields == ConnectFields(
        f"a1simpk0001&gw001|securemode=3,signmethod=hmacsha1,_v=otad-{__version__},timestamp=1795435907|",
        "gw001&a1simpk0001",
        "c65a7a431d08a9829c4caee18aed067c1fb26915",
    )


def test_the_clock_plays_no_part_by_default() -> None:
    fields = connect_fields("pk", "gw001", "s3cr3t")

    assert fields.client_id == f"pk.gw001|securemode=2,signmethod=hmacsha256,_v=otad-{__version__}|"


@pytest.mark.parametrize(("method", "digits"), [("hmacmd5", 32), ("hmacsha1", 40), ("hmacsha256", 64)])
def test_each_sign_method_signs(method: str, digits: int) -> None:
    fields = connect_fields("pk", "gw001", "s3cr3t", SignMethod(method))

    assert len(fields.password) == digits
    assert f"signmethod={method}," in fields.client_id


def test_no_secret_is_shown() -> None:
    fields = connect_fields("pk", "gw001", "s3cr3t")

    assert "s3cr3t" not in repr(fields)
    assert fields.password not in repr(fields)
