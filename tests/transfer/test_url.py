# SPDX-License-Identifier: Apache-2.0
"""Which URLs are fetched from, and what of them is shown."""

import ipaddress

import pytest

from otad.errors import Code, UpdateError
from otad.transfer.url import UrlPolicy, etag_url, is_public, public_url

OPEN = UrlPolicy(allow_http=True, allow_private_hosts=True)


@pytest.mark.parametrize(
    "url",
    [
        "https://ota-cn-shanghai.iot-thing.aliyuncs.com/ota/0f/ab.bin?auth_key=1-2-3-4",
        "https://OSS.example:8443/x",
        "https://8.8.8.8/x",
        "https://[2400:3200::1]/x",
        "https://host_with_underscore.example./x",
        "https://example",
    ],
)
def test_a_public_https_url_is_fetched(url: str) -> None:
    UrlPolicy().check(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/x",
        "https://127.0.0.1/x",
        "https://10.1.2.3/x",
        "https://169.254.169.254/latest/meta-data",
        "https://100.64.0.1/x",
        "https://0.0.0.0/x",
        "https://224.0.0.1/x",
        "https://240.0.0.1/x",
        "https://[::1]/x",
        "https://[::]/x",
        "https://[fe80::1]/x",
        "https://[fd00::1]/x",
        "https://[::ffff:127.0.0.1]/x",
        "https://[::ffff:7f00:1]/x",
        "https://[64:ff9b::10.0.0.1]/x",
        "https://[2002:7f00:1::]/x",
        "https://localhost/x",
        "https://LOCALHOST./x",
        "https://db.localhost/x",
    ],
)
def test_what_is_neither_needs_to_be_allowed(url: str) -> None:
    with pytest.raises(UpdateError, match=r"download\.allow_") as caught:
        UrlPolicy().check(url)

    assert caught.value.failure.code == Code.URL
    OPEN.check(url)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "image.bin",
        "/etc/passwd",
        "file:///etc/passwd",
        "ftp://example.com/x",
        "https:///x",
        "https://",
        "https://user@example.com/x",
        "https://user:password@example.com/x",
        "https://@example.com/x",
        "https://example.com:0/x",
        "https://example.com:99999/x",
        "https://example.com:http/x",
        "https://[::1/x",
        "https://[::1]x/",
        "https://x[::1]/",
        "https://[fe80::1%25eth0]/x",
        "https://example.com/\x7f",
        "https://exa mple.com/x",
        "https://example.com/x\r\nHost: evil",
        "https://example.com\\@evil.com/",
        "https://exämple.com/x",
        "https://127.1/x",
        "https://2130706433/x",
        "https://0x7f.0.0.1/x",
        "https://017700000001/x",
        "https://1.2.3.4.5/x",
        "https://" + "a" * 64 + ".example/x",
        "https://" + "a." * 127 + "com/x",
        "https://example..com/x",
        "https://example.com/" + "x" * 5000,
    ],
)
def test_what_is_no_url_is_refused_whatever_is_allowed(url: str) -> None:
    with pytest.raises(UpdateError) as caught:
        OPEN.check(url)

    assert caught.value.failure.code == Code.URL
    assert len(str(caught.value)) < 400
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://h.example/p/x.bin?auth_key=secret", "https://h.example/p/x.bin"),
        ("https://h.example/p#secret", "https://h.example/p"),
        ("https://me:secret@h.example:1/p?x#y", "https://h.example:1/p"),
        ("https://me@secret@h.example/p@2", "https://h.example/p@2"),
        ("https://h.example?secret", "https://h.example"),
        ("no url at all?secret", "no url at all"),
        ("https://h.example/\n\x1b[2J", "https://h.example/??[2J"),
    ],
)
def test_a_url_is_shown_without_its_secrets(url: str, shown: str) -> None:
    assert public_url(url) == shown


def test_an_etag_belongs_to_scheme_host_and_path() -> None:
    assert etag_url("https://H.example/p?one") == etag_url("https://h.example/p?two") == "https://h.example/p"


def test_an_address_that_wraps_a_public_one_is_public() -> None:
    assert is_public(ipaddress.ip_address("::ffff:8.8.8.8"))
    assert is_public(ipaddress.ip_address("64:ff9b::8.8.8.8"))
