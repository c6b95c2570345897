"""Which name a pinned certificate is checked for: the host's, but for a node's own certificate that doesn't hold it."""

from __future__ import annotations

import datetime
from collections.abc import Sequence

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from routeweiler_sync.funding.lnd.certificates import name_to_check, read_certificates
from routeweiler_sync.testing.fake_lnd import _certificate


def _own(*names: str) -> str:
    return _certificate(names)[1].decode()


def _issued(names: Sequence[str]) -> str:
    """A certificate with names whose issuer is another than its owner, and which may itself issue."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.timezone.utc)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "department")]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "company")]))
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    )
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def _name_to_check(pem: str, host: str) -> str | None:
    return name_to_check(read_certificates(pem), host)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "127.0.0.1", "::1", "0:0:0:0:0:0:0:1", "box"])
def test_a_name_that_the_certificate_holds_is_checked_as_it_is(host: str) -> None:
    """Nothing to mend: the ordinary check is the strictest."""
    assert _name_to_check(_own("box", "localhost", "127.0.0.1", "::1"), host) is None


@pytest.mark.parametrize(
    ("names", "checked"),
    [
        (("box", "localhost"), "localhost"),
        (("box",), "box"),
        (("*.box", "a.box"), "a.box"),
        (("*.box",), None),
        (("10.0.0.1",), None),
    ],
)
def test_a_nodes_own_certificate_is_checked_for_a_name_of_its_own(names: tuple[str, ...], checked: str | None) -> None:
    """A forwarded port or a container's alias: the pin proves the node, so that the name may be any that it holds."""
    assert _name_to_check(_own(*names), "elsewhere") == checked


def test_where_the_pin_may_issue_for_others_the_host_is_checked() -> None:
    """An authority's other servers, with a name that it holds, would pass for the node."""
    assert _name_to_check(_issued(["localhost"]), "elsewhere") is None
    assert _name_to_check(_own("localhost") + _own("localhost"), "elsewhere") is None
