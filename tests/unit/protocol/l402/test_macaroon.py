"""What is read in a token is what the server wrote there; a token that isn't a macaroon is opaque, never an error."""

from __future__ import annotations

import base64
import itertools
import time

import pytest
from hypothesis import given, settings, strategies as st
from pymacaroons import MACAROON_V2, Macaroon as LibraryMacaroon

from routeweiler_sync.protocol.l402.credential import MAX_TOKEN_CHARS
from routeweiler_sync.protocol.l402.macaroon import Macaroon, parse_macaroon
from tests.support.challenge_builders import PAYMENT_HASH, TOKEN, identifier, macaroon, token

# From the L402 specification, "Server Flow": an opaque token.
_SPEC_TOKEN = "AGIAJEemVQUTEyNCR0exk7ek90Cg=="


def _read(*caveats: str | bytes) -> Macaroon:
    read = parse_macaroon(token(macaroon(caveats=caveats)))
    assert read is not None
    return read


def test_a_macaroon_as_aperture_mints_it_is_read() -> None:
    """If failing: tokens are bought for the wrong scope, or past their expiry, or for another invoice."""
    read = _read("services=pages:0,maps:1", "pages_capabilities=", "pages_valid_until=1700000000")
    assert read.payment_hash == PAYMENT_HASH
    assert read.caveats == (("services", "pages:0,maps:1"), ("pages_capabilities", ""), ("pages_valid_until", "1700000000"))
    assert (read.services, read.valid_until) == ("pages:0,maps:1", 1_700_000_000)


def test_a_macaroon_that_pymacaroons_wrote_is_read() -> None:
    """If failing: the makers of these tests write no real macaroons, so the other tests prove little."""
    made = LibraryMacaroon(location="lsat", identifier=identifier(), key=b"root", version=MACAROON_V2)
    made.add_first_party_caveat("services=pages:0")
    made.add_third_party_caveat("elsewhere", "key", "ticket")
    assert parse_macaroon(made.serialize()) == Macaroon(payment_hash=PAYMENT_HASH, caveats=(("services", "pages:0"),))


def test_any_base64_is_read() -> None:
    """If failing: a mismatched or expired macaroon passes for opaque because its server writes base64 another way."""
    raw = macaroon(ident=identifier(b"\xfb\xff\xbf\xef" * 8), location="a")
    url_safe = base64.urlsafe_b64encode(raw).decode()
    assert "-" in url_safe
    assert "_" in url_safe
    assert "=" in url_safe
    for text in (url_safe, url_safe.rstrip("="), token(raw), token(raw).rstrip("=")):
        read = parse_macaroon(text)
        assert read is not None
        assert read.payment_hash == b"\xfb\xff\xbf\xef" * 8


@pytest.mark.parametrize(
    ("ident", "payment_hash"),
    [
        (identifier(), PAYMENT_HASH),
        (identifier(version=1), None),
        (identifier()[:-1], None),
        (identifier() + b"\0", None),
        (b"", None),
    ],
    ids=itertools.count(),
)
def test_only_a_version_0_identifier_names_a_payment_hash(ident: bytes, payment_hash: bytes | None) -> None:
    """If failing: bytes that mean something else are compared with the invoice, and a good offer is refused."""
    read = parse_macaroon(token(macaroon(ident=ident)))
    assert read is not None
    assert read.payment_hash == payment_hash


@pytest.mark.parametrize(
    ("caveats", "services", "valid_until"),
    [
        ((), None, None),
        (("services=a:0",), "a:0", None),
        (("services=a:0,b:0", "a_valid_until=9", "services=a:0"), "a:0", 9),
        (("services=",), None, None),
        (("services",), None, None),
        (("services=a:0", "services="), None, None),
        (("services=a=b",), "a=b", None),
        ((" services=a:0", "Services=a:0", "services_=a:0"), None, None),
        (("a_valid_until=20", "b_valid_until=10", "valid_until=30"), None, 10),
        (("valid_until=30",), None, 30),
        (("a_valid_until=-1",), None, -1),
        (("a_valid_until=+7",), None, 7),
        (("a_valid_until=soon", "b_valid_until=", "c_valid_until= 5", "d_valid_until=5.0", "e_valid_until=٥"), None, None),
        (("a_valid_until=99999999999999999999", "b_valid_until=9999999999999999999", "c_valid_until=" + "9" * 9000), None, None),
        (("avalid_until=5", "valid_until_x=5"), None, None),
        ((b"\xff\xfe=1", "services=a:0"), "a:0", None),
    ],
)
def test_caveats_are_read_as_the_server_reads_them(
    caveats: tuple[str | bytes, ...], services: str | None, valid_until: int | None
) -> None:
    """If failing: a token is offered where it doesn't fit, or an expired one is paid for."""
    read = _read(*caveats)
    assert (read.services, read.valid_until) == (services, valid_until)


def test_third_party_caveats_leave_it_a_macaroon() -> None:
    """If failing: a discharge caveat's id, which is anyone's bytes, is taken for a condition of the server's."""
    read = parse_macaroon(token(macaroon(third_party=b"services=elsewhere:0")))
    assert read is not None
    assert read.services == "pages:0"
    assert len(read.caveats) == 2


def test_a_version_1_macaroon_is_opaque() -> None:
    """If failing: a format that L402 never mints, and that pymacaroons reads laxly, decides about a purchase."""
    made = LibraryMacaroon(location="lsat", identifier="x" * 66, key=b"root")
    made.add_first_party_caveat("services=pages:0")
    assert parse_macaroon(made.serialize()) is None


def test_no_location_is_needed() -> None:
    """If failing: macaroons of servers that name no location pass for opaque."""
    for location in (None, ""):
        assert parse_macaroon(token(macaroon(location=location))) == parse_macaroon(TOKEN) is not None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "=",
        _SPEC_TOKEN,
        "opaque-token",
        TOKEN + "\n",
        TOKEN + "é",
        " " + TOKEN,
        TOKEN[:20] + " " + TOKEN[20:],
        TOKEN[:20] + "*" + TOKEN[20:],
        TOKEN + "," + TOKEN,
        "A",
        token(macaroon()[:-1]),
        token(macaroon() + b"\0"),
        token(macaroon() + macaroon()),
        token(macaroon(signature=b"\x55" * 31)),
        token(macaroon(signature=b"\x55" * 33)),
        token(b"\x01" + macaroon()[1:]),
        token(b"\x02"),
        token(b"\x02\x00"),
        token(macaroon(location=None).replace(b"\x02\x42", b"\x02\xc2\x00")),
        token(b"\x02" + b"\xff" * 9000),
        token(b"\x02\x01\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f"),
        token(b"0016location lsat\n0010cid\n"),
        token(b"0007cid-001"),
        token(macaroon(caveats=["x" * 90] * 400)),
    ],
    ids=itertools.count(),
)
def test_whatever_is_no_macaroon_is_opaque(text: str) -> None:
    """If failing: an opaque token, which the specification allows, can't be bought; or junk is taken at its word."""
    assert parse_macaroon(text) is None


def test_nothing_secret_is_shown() -> None:
    """If failing: what opens the door once paid stands in a log."""
    shown = repr(parse_macaroon(TOKEN))
    for secret in (b"\x44" * 32, b"\x55" * 32):
        assert repr(secret)[2:-1] not in shown
        assert secret.hex() not in shown
    assert TOKEN not in shown


@pytest.mark.parametrize(
    "raw",
    [
        macaroon(caveats=[""] * 4000),
        macaroon(caveats=["a_valid_until=1"] * 650),
        b"\x02" + b"\xff" * 12_000,
        b"\x02\x02" + b"\xff" * 12_000,
        b"\x02" + b"\x00" * 12_000,
        b"0005 " * 2400,
    ],
    ids=itertools.count(),
)
def test_any_token_is_read_in_bounded_time(raw: bytes) -> None:
    """If failing: one answer of a server keeps a thread busy for as long as the server likes."""
    assert 9000 < len(raw) < MAX_TOKEN_CHARS * 3 // 4
    started = time.process_time()
    parse_macaroon(token(raw))
    assert time.process_time() - started < 3


@settings(deadline=None)
@given(st.text() | st.binary().map(token) | st.binary().map(lambda raw: token(b"\x02" + raw)))
def test_any_text_is_a_macaroon_or_opaque(text: str) -> None:
    """If failing: a server's odd token raises what isn't ours."""
    read = parse_macaroon(text)
    assert read is None or isinstance(read, Macaroon)


@settings(deadline=None, max_examples=300)
@given(st.lists(st.tuples(st.integers(0, 10_000), st.binary(max_size=3), st.integers(0, 3)), min_size=1, max_size=3))
def test_a_doctored_macaroon_is_a_macaroon_or_opaque(edits: list[tuple[int, bytes, int]]) -> None:
    """If failing: a macaroon that was cut or altered on its way raises what isn't ours."""
    raw = macaroon(caveats=("services=a:0", "a_valid_until=5"), third_party=b"id")
    for at, new, gone in edits:
        at %= len(raw)
        raw = raw[:at] + new + raw[at + gone :]
    read = parse_macaroon(token(raw))
    if read is not None:
        assert read.payment_hash is None or len(read.payment_hash) == 32
        assert read.services is None or isinstance(read.services, str)
        assert read.valid_until is None or isinstance(read.valid_until, int)
