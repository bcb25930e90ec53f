# SPDX-License-Identifier: Apache-2.0
"""CONNECT's three strings, against signatures that Aliyun's own SDKs were seen to make."""

import pytest

from otad.platform.credentials import (
    Identity,
    Login,
    MalformedLogin,
    expected_password,
    is_proven,
    parse_login,
)

C_SDK = (
    "a1simpk0001.gw001|timestamp=2524608000000,_ss=1,_v=sdk-c-4.2.0,securemode=3,signmethod=hmacsha256,ext=3,|",
    "gw001&a1simpk0001",
    "EDE4A054B689F3FD4DB174716259EDFBDCF470FD37D10C721382A896D9DCD3A7",
)
PYTHON_SDK = (
    "a1simpk0001&gw001|securemode=3,signmethod=hmacsha1,timestamp=1795435907,_ss=1,lan=Python,ext=1,_v=1.2.13|",
    "gw001&a1simpk0001",
    "c65a7a431d08a9829c4caee18aed067c1fb26915",
)


@pytest.mark.parametrize("connect", [C_SDK, PYTHON_SDK], ids=["C SDK 4.2", "Python SDK 1.2.13"])
def test_the_sdks_own_passwords_are_proof(connect: tuple[str, str, str]) -> None:
    login = parse_login(*connect)

    assert login.identity == Identity("a1simpk0001", "gw001")
    assert is_proven(login, "s3cr3t")
    assert not is_proven(login, "s3cr3T")


def test_the_timestamp_is_signed_only_if_present() -> None:
    names = Login(Identity("pk", "dn"), "id", "hmacmd5", None, "")

    assert expected_password(names, "x") != expected_password(
        Login(names.identity, names.client_id, names.sign_method, "", ""), "x"
    )


def test_without_signmethod_it_is_md5() -> None:
    assert parse_login("id|securemode=3|", "dn&pk", "").sign_method == "hmacmd5"


@pytest.mark.parametrize(
    ("client_id", "username"),
    [
        ("id", "dn&pk"),
        ("id|securemode=3", "dn&pk"),
        ("|securemode=3|", "dn&pk"),
        ("id|securemode|", "dn&pk"),
        ("id|signmethod=hmacsha512|", "dn&pk"),
        ("x" * 65 + "|securemode=3|", "dn&pk"),
        ("id|securemode=3|", "dn"),
        ("id|securemode=3|", "&pk"),
        ("id|securemode=3|", ""),
    ],
)
def test_a_login_in_another_form_is_malformed(client_id: str, username: str) -> None:
    with pytest.raises(MalformedLogin):
        parse_login(client_id, username, "")
