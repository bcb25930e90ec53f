# SPDX-License-Identifier: Apache-2.0
"""CONNECT fields, against what the platform's own device SDKs send."""

from typing import Any

import pytest

from otad import __version__
from otad.cloud.credentials import (
    ConnectFields,
    Names,
    certificate_fields,
    connect_fields,
    registration_fields,
    registration_form,
    token_fields,
)
from otad.config import SignMethod

NAMES = Names("a1simpk0001", "gw001")
# printf deviceNamegw001productKeya1simpk0001random1234567 | openssl dgst -sha256 -hmac ps3cr3t
SIGNATURE = "109d17f9878254f4987d094f5e32f5d35677d0c529caee082ff3f0ae301a6e08"


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


@pytest.mark.parametrize(
    ("more", "client_id"),
    [
        ({}, "gw001.a1simpk0001|random=1234567,authType=register,securemode=2,signmethod=hmacsha256|"),
        (
            {"preregistered": False, "instance": "i1"},
            "gw001.a1simpk0001|random=1234567,authType=regnwl,securemode=2,signmethod=hmacsha256,instanceId=i1|",
        ),
    ],
    ids=["register", "regnwl"],
)
def test_a_registration_is_signed_with_the_products_secret(more: dict[str, Any], client_id: str) -> None:
    fields = registration_fields(NAMES, "ps3cr3t", "1234567", **more)

    assert fields == ConnectFields(client_id, "gw001&a1simpk0001", SIGNATURE)


def test_a_registration_over_https_says_the_same_in_a_form() -> None:
    form = registration_form(Names("a1simpk0001", "gw@1"), "ps3cr3t", "1")

    # printf 'deviceNamegw@1productKeya1simpk0001random1' | openssl dgst -sha256 -hmac ps3cr3t
    sign = "b2998b9849cf9b7d1c3c909fdd1b073a0c3c16afe8d8f067b80441f3469104d6"
    expected = f"productKey=a1simpk0001&deviceName=gw%401&random=1&sign={sign}&signMethod=hmacsha256"
    assert form.decode() == expected


def test_a_token_is_the_password_as_it_stands() -> None:
    fields = token_fields(NAMES, "Kq7", "t0ken")

    client_id = f"Kq7|authType=connwl,securemode=-2,_ss=1,ext=3,_v=otad-{__version__}|"
    assert fields == ConnectFields(client_id, "gw001&a1simpk0001", "t0ken")
    assert "t0ken" not in repr(fields)


@pytest.mark.parametrize(("names", "username"), [(None, ""), (NAMES, "gw001&a1simpk0001")])
def test_behind_a_certificate_nothing_is_signed(names: Names | None, username: str) -> None:
    fields = certificate_fields("id", names)

    client_id = "id|securemode=2,signmethod=hmacsha1,timestamp=2524608000000|"
    assert fields == ConnectFields(client_id, username, "")
