"""Certificates as people hand them over: with marks, comments and keys around them, as DER, as text of text; and what is none."""

from __future__ import annotations

import base64
import contextlib
import datetime
import os
import ssl
from collections.abc import Callable

import pytest

from routeweiler_sync.errors import FundingError
from routeweiler_sync.funding.lightning import LndClient
from routeweiler_sync.funding.lnd.certificates import pem_of, read_certificates
from routeweiler_sync.funding.lnd.endpoint import read_macaroon
from routeweiler_sync.testing.fake_lnd import _certificate

KEY, PEM = _certificate(("box", "localhost", "127.0.0.1", "::1"))
DER = ssl.PEM_cert_to_DER_cert(PEM.decode())

FORMS: dict[str, Callable[[], bytes | str]] = {
    "as it is": lambda: PEM,
    "as text": lambda: PEM.decode(),
    "after a mark": lambda: b"\xef\xbb\xbf" + PEM,
    "text after a mark": lambda: "\ufeff" + PEM.decode(),
    "in UTF-16": lambda: PEM.decode().encode("utf-16"),
    "with CRLF": lambda: PEM.replace(b"\n", b"\r\n"),
    "with CR": lambda: PEM.replace(b"\n", b"\r"),
    "with a comment in another script": lambda: "# Knoten in Zürich, 日本のノード\n" + PEM.decode() + "\n# конец\n",
    "with a comment in an old encoding": lambda: "# Zürich\n".encode("latin-1") + PEM,
    "with a surrogate": lambda: "\udce9\n" + PEM.decode(),
    "with a NUL": lambda: b"\0" + PEM,
    "indented": lambda: b"\n".join(b"    " + line for line in PEM.splitlines()),
    "in one line": lambda: PEM.replace(b"\n", b" "),
    "without newlines": lambda: PEM.replace(b"\n", b""),
    "after its key": lambda: KEY + PEM,
    "before its key": lambda: PEM + KEY,
    "with garbage behind": lambda: PEM + os.urandom(64),
    "of OpenSSL's old name": lambda: PEM.replace(b"CERTIFICATE", b"X509 CERTIFICATE"),
    "as DER": lambda: DER,
    "as DER with garbage behind": lambda: DER + b"\n\n",
    "as base64 of DER": lambda: base64.encodebytes(DER),
    "as base64url of DER": lambda: base64.urlsafe_b64encode(DER).rstrip(b"=").decode(),
    "as base64 of PEM": lambda: base64.b64encode(PEM).decode(),
    "as hex of DER": lambda: DER.hex(),
    "as hex of PEM": lambda: PEM.hex().upper() + "\n",
}


@pytest.mark.parametrize("form", FORMS)
def test_a_certificate_is_read_in_whatever_form_it_comes(form: str) -> None:
    """Editors, consoles and web interfaces each change a file a little; gRPC takes none of it, and says "handshake failed"."""
    (read,) = read_certificates(FORMS[form]())
    assert read.der == DER
    assert pem_of([read]) == PEM
    assert (read.hosts, read.addresses, read.is_self_signed) == (("box", "localhost"), ("127.0.0.1", "::1"), True)
    assert read.not_before < datetime.datetime.now(datetime.timezone.utc) < read.not_after


def test_a_chain_is_read_whole_and_in_order() -> None:
    """A company's authority comes as several certificates."""
    other = _certificate(["other"])[1]
    assert [each.der for each in read_certificates(PEM + b"\n# and\n" + other)] == [DER, ssl.PEM_cert_to_DER_cert(other.decode())]


BAD: dict[str, tuple[bytes | str, str]] = {
    "empty": (b"", "is empty"),
    "blank": (" \n", "is empty"),
    "a mark alone": (b"\xef\xbb\xbf", "is empty"),
    "a key": (KEY, "holds a private key and no certificate"),
    "text": ("hello", "holds no certificate"),
    "hex": ("00ff", "holds no certificate"),
    "a macaroon": (b"\x02\x01\x03lnd\x02", "holds no certificate"),
    "cut off": (PEM[:200], "cut off or damaged"),
    "without its end": (PEM[:-10], "cut off or damaged"),
    "damaged": (PEM[:100] + b"!!" + PEM[102:], "cut off or damaged"),
    "DER cut off": (DER[:200], "holds no certificate"),
    "no DER in it": ("-----BEGIN CERTIFICATE-----\nbm90IG9uZQ==\n-----END CERTIFICATE-----\n", "cut off or damaged"),
    "endless DER": (b"\x30\x84\xff\xff\xff\xff" + DER, "holds no certificate"),
    "nothing but a lone surrogate": ("\ud800", "holds no certificate"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_no_certificate_is_called_what_it_is(what: str) -> None:
    """The message goes into an error, and mustn't repeat a key."""
    source, told = BAD[what]
    with pytest.raises(ValueError, match=told) as caught:
        read_certificates(source)
    assert KEY.splitlines()[1].decode() not in str(caught.value)


@pytest.mark.parametrize("what", BAD)
@pytest.mark.parametrize("is_bytes", [False, True])
def test_a_bad_certificate_given_as_text_is_an_error_of_this_package(what: str, is_bytes: bool) -> None:
    """A bare TypeError out of a GET, with no word about the money."""
    source, _ = BAD[what]
    data = source.encode("utf-8", "surrogatepass") if isinstance(source, str) else source
    client = LndClient("127.0.0.1", 1, macaroon_hex="00")
    client.tls_cert_pem = data if is_bytes else data.decode("latin-1")  # type: ignore[assignment]
    with pytest.raises(FundingError, match=r"certificate.*Nothing was spent") as caught:
        client.check_ready(1)
    assert KEY.splitlines()[1].decode() not in str(caught.value)


def test_a_certificate_cut_off_anywhere_is_an_error_of_its_own_kind() -> None:
    """An IndexError of the reader's would be a bare IndexError out of a GET."""
    for size in range(len(DER)):
        with pytest.raises(ValueError):
            read_certificates(DER[:size])


def test_a_certificate_with_a_wrong_byte_is_read_or_refused() -> None:
    """As above; where the byte is in the key or the signature, the certificate is read, and TLS refuses it."""
    for at in range(len(DER)):
        with contextlib.suppress(ValueError):
            read_certificates(DER[:at] + bytes([DER[at] ^ 0xFF]) + DER[at + 1 :])


@pytest.mark.parametrize(
    ("data", "told"),
    [(b"", "empty"), (b" \n", "empty"), (b"x" * 20_000, "too large"), (PEM, "certificate or a key"), (KEY, "a key")],
)
def test_a_file_that_cannot_be_a_macaroon_is_called_what_it_is(data: bytes, told: str) -> None:
    """lnd would say "cannot determine data format", of a request that needn't have been made."""
    with pytest.raises(ValueError, match=told):
        read_macaroon(data)
