# SPDX-License-Identifier: Apache-2.0
"""The roots that otad ships, and what is said when a certificate is not believed."""

import hashlib
import socket
import ssl
from importlib import resources
from pathlib import Path

import pytest

from otad.cloud.link import Link, default_context, words
from otad.errors import ConfigurationError

# Common name or organisational unit, end of validity, SHA-256 of the certificate.
ROOTS = {
    (
        "Aliyun IoT Root CA",
        "2053",
        "7ca438a3976b5242d231f861499822da85583138273583 6b361e7e9715661676".replace(" ", ""),
    ),
    ("GlobalSign Root CA", "2028", "ebd41040e4bb3ec742c9e381d31ef2a41a48b6685c96e7cef3c1df6cd4331c99"),
    ("GlobalSign Root CA - R6", "2034", "2cabeafe37d06ca22aba7391c0033d25982952c453647349763a3ab5ad6ccf69"),
    ("GlobalSign Root E46", "2046", "cbb9c44d84b8043e1050ea31a69f514955d7bfd2e2c6b49301019ad61d9f5058"),
    ("GlobalSign Root R46", "2046", "4fa3126d8d3a11d1c4855a4f807cbad6cf919d3a5a88b03bea2c6372d93c40c9"),
}


def test_the_roots_are_the_platforms() -> None:
    context = default_context()
    found = set()
    for root, der in zip(context.get_ca_certs(), context.get_ca_certs(binary_form=True), strict=True):
        names = {key: value for part in root["subject"] for key, value in part}  # type: ignore[union-attr, misc]
        name = names["organizationalUnitName"] if names["commonName"] == "GlobalSign" else names["commonName"]
        found.add((name, str(root["notAfter"]).split()[3], hashlib.sha256(der).hexdigest()))

    assert found == ROOTS


def test_each_root_stands_under_its_fingerprint() -> None:
    text = resources.files("otad.cloud").joinpath("roots.pem").read_text("ascii")

    for _, _, digest in ROOTS:
        spelled = ":".join(digest[n : n + 2] for n in range(0, 64, 2)).upper()
        assert f"# SHA-256 {spelled}\n-----BEGIN CERTIFICATE-----" in text


def test_the_context_checks_chain_and_name_and_speaks_no_old_tls() -> None:
    context = default_context()

    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2


def test_a_ca_file_of_ones_own_replaces_the_shipped_roots(tmp_path: Path) -> None:
    shipped = resources.files("otad.cloud").joinpath("roots.pem").read_text("ascii")
    own = tmp_path / "own.pem"
    own.write_text(shipped[: shipped.index("-----END CERTIFICATE-----") + 26])

    assert len(default_context(own).get_ca_certs()) == 1


@pytest.mark.parametrize(
    ("content", "says"), [(None, "no such file or directory"), ("not PEM", "TLS: no certificate or crl found")]
)
def test_a_ca_file_that_is_none_is_named(tmp_path: Path, content: str | None, says: str) -> None:
    file = tmp_path / "own.pem"
    if content is not None:
        file.write_text(content)

    with pytest.raises(ConfigurationError) as caught:
        default_context(file)

    assert caught.value.problems == (f"mqtt.ca_file: {file}: {says}",)


async def test_a_link_that_is_cut_before_it_comes_up_stays_down() -> None:
    ours, theirs = socket.socketpair()
    link = Link(None, 1024)
    link.cut("changed our mind")

    with theirs, pytest.raises(ConnectionAbortedError, match="changed our mind"):
        link.wrap_socket(ours)
    assert ours.fileno() == -1
    await link.close()
    assert not link.ended.is_set()


async def test_a_link_ends_for_both_sides_when_it_is_cut_and_keeps_the_first_reason() -> None:
    ours, theirs = socket.socketpair()
    link = Link(None, 1024)
    wrapped = link.wrap_socket(ours)
    link.cut("first")
    link.cut("second")

    assert link.ended.is_set()
    with theirs:
        assert (wrapped.recv(1), theirs.recv(1), link.fault) == (b"", b"", "first")
    wrapped.close()
    await link.close()
    assert link.closed.is_set()


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (TimeoutError(), "timed out"),
        (ConnectionResetError(104, "Connection reset by peer"), "closed by the platform"),
        (OSError(113, "No route to host"), "no route to host"),
        (socket.gaierror(-2, "Name or service not known"), "name or service not known"),
        (ssl.SSLError(1, "Something else"), "something else"),
        (ValueError(), "ValueError"),
    ],
)
def test_an_error_has_words(error: Exception, says: str) -> None:
    assert words(error) == says
