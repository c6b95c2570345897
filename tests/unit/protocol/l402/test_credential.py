"""A token goes back as it came, to the origin that issued it, and is seen nowhere else."""

from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import given, settings, strategies as st

from routeweiler_sync._core.urls import MAX_SCOPE_CHARS
from routeweiler_sync.protocol.challenge import Challenge, scope_of
from routeweiler_sync.protocol.l402.challenge import parse_challenge
from routeweiler_sync.protocol.l402.credential import MAX_TOKEN_CHARS, authorization, is_credential, is_sendable, redact
from tests.support.challenge_builders import INVOICE, L402, TOKEN, macaroon, token

PREIMAGE = bytes.fromhex("0123456789abcdef" * 4)


def _challenge(text: str) -> Challenge:
    read = parse_challenge(f'L402 token="{text}", invoice="{INVOICE}"')
    assert read is not None
    return read


@pytest.mark.parametrize("scheme", ["L402", "LSAT"])
def test_the_token_goes_back_verbatim(scheme: str) -> None:
    """If failing: a token that was paid for is refused, for aperture takes only what it gave."""
    for text in (TOKEN, "AGIAJEemVQUTEyNCR0exk7ek90Cg==", "a-b_c", "a,b", "x"):
        assert authorization(scheme, text, PREIMAGE) == f"{scheme} {text}:{PREIMAGE.hex()}"


@pytest.mark.parametrize(
    ("scheme", "text", "preimage"),
    [
        ("Bearer", "SECRET", PREIMAGE),
        ("l402", "SECRET", PREIMAGE),
        ("L402", "", PREIMAGE),
        ("L402", "SEC:RET", PREIMAGE),
        ("L402", "SEC RET", PREIMAGE),
        ("L402", "SECRET\r\nX-Evil: 1", PREIMAGE),
        ("L402", "SECRET\n", PREIMAGE),
        ("L402", 'SEC"RET', PREIMAGE),
        ("L402", "SECRÉT", PREIMAGE),
        ("L402", "SECRET" * MAX_TOKEN_CHARS, PREIMAGE),
        ("L402", "SECRET", PREIMAGE[:-1]),
        ("L402", "SECRET", PREIMAGE + b"\0"),
        ("L402", "SECRET", b""),
    ],
    ids=itertools.count(),
)
def test_a_token_that_cant_be_sent_is_refused_without_being_repeated(scheme: str, text: str, preimage: bytes) -> None:
    """If failing: a token smuggles header lines into the request, or its refusal prints it."""
    with pytest.raises(ValueError) as caught:
        authorization(scheme, text, preimage)
    told = str(caught.value)
    assert "SEC" not in told
    assert PREIMAGE.hex()[:16] not in told


def test_a_credential_is_known_when_seen() -> None:
    """If failing: a pickled request keeps a paid token, or loses a header that is the caller's own."""
    for scheme in ("L402", "LSAT"):
        assert is_credential(authorization(scheme, TOKEN, PREIMAGE))
        assert is_credential(authorization(scheme, TOKEN, PREIMAGE).lower())
    for value in ("", "L402", f"L402 {TOKEN}", f"Basic {TOKEN}:{PREIMAGE.hex()}", f"L402 {TOKEN}:{PREIMAGE.hex()}0", "Bearer a:b"):
        assert not is_credential(value)


@pytest.mark.parametrize(
    "text",
    [
        authorization("L402", TOKEN, PREIMAGE),
        authorization("LSAT", TOKEN, PREIMAGE).swapcase(),
        f"send: b'GET / HTTP/1.1\\r\\nAuthorization: L402 {TOKEN}:{PREIMAGE.hex()}\\r\\n\\r\\n'",
        f'{{"Authorization": "L402 {TOKEN}:{PREIMAGE.hex()}"}}',
        f"L402\t {TOKEN}:{PREIMAGE.hex()[:20]}",
        f"{authorization('L402', TOKEN, PREIMAGE)}, {authorization('LSAT', TOKEN, PREIMAGE)}",
        L402,
        L402.replace('"', "'"),
        L402.replace('"', '\\"'),
        L402.replace('"', ""),
        L402.replace("=", " = ").replace(TOKEN.replace("=", " = "), TOKEN),
    ],
    ids=itertools.count(),
)
def test_no_log_line_shows_a_credential(text: str) -> None:
    """If failing: whoever reads the logs has the paid token."""
    shown = redact(text)
    for secret in (TOKEN, TOKEN.swapcase(), TOKEN[:12], TOKEN[:12].swapcase(), PREIMAGE.hex(), PREIMAGE.hex().upper()):
        assert secret not in shown
    assert "<redacted>" in shown


@pytest.mark.parametrize(
    "text",
    ["", "paid 10 sat by L402 https://pages.example/a:1", "L402: no invoice", "LSAT x:y", "token refused", 'L402 invoice="lnbc1"'],
)
def test_other_text_is_left_alone(text: str) -> None:
    """If failing: logs lose what a reader needs to find a fault."""
    assert redact(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "L402 " * 20_000, "L402 " + "a" * 100_000, "L402" + " \t" * 50_000, "L402 a:" * 20_000, "token=" * 20_000,
        "token" + " " * 100_000, 'macaroon="' * 10_000, "L402 " + "a:" * 50_000, "L402 " + "0" * 50_000 + ":" + "0" * 50_000,
        ("L402 " + "a" * 17_000) * 6,
    ],
    ids=itertools.count(),
)  # fmt: skip
def test_redaction_takes_bounded_time(text: str) -> None:
    """If failing: a long line in a log hangs the program."""
    started = time.process_time()
    redact(text)
    is_credential(text)
    assert time.process_time() - started < 2


@settings(deadline=None)
@given(
    st.text("abcXYZ019+/=-_.~,", min_size=6, max_size=60), st.binary(min_size=32, max_size=32), st.text(" \n\"'{}[],.x", max_size=5)
)
def test_any_credential_is_known_and_hidden(text: str, preimage: bytes, around: str) -> None:
    """If failing: some token's alphabet slips through into logs."""
    value = authorization("L402", text, preimage)
    assert is_sendable(text)
    assert is_credential(value)
    assert redact(f"{around} {value} {around}") == f"{around} L402 <redacted> {around}"


def test_a_tokens_scope_is_its_services_or_else_the_path() -> None:
    """If failing: a token is bought for every path of one service, or offered to another service."""
    with_services = _challenge(token(macaroon(caveats=["services=pages:0,maps:1"])))
    assert scope_of(with_services, "/a") == scope_of(with_services, "/b") == "services=pages:0,maps:1"
    for bare in (_challenge(token(macaroon(caveats=[]))), _challenge(token(macaroon(caveats=["services="]))), _challenge("opaque")):
        assert scope_of(bare, "/a") == "/a"
        assert scope_of(bare, "") == "/"


def test_a_scope_fits_into_any_database_and_stays_apart() -> None:
    """If failing: PostgreSQL refuses the row of a payment (index size, NUL), or two scopes share one token."""
    odd = ["x" * 9000, "x" * 9001, "a\0b", "a\nb", "ä", "x" * (MAX_SCOPE_CHARS - 9), "x" * (MAX_SCOPE_CHARS - 8)]
    services = [scope_of(_challenge(token(macaroon(caveats=[f"services={value}"]))), "/") for value in odd]
    paths = [scope_of(_challenge("opaque"), "/" + value) for value in [*odd, "\ud800"]]
    scopes = services + paths
    assert len(set(scopes)) == len(scopes)
    assert all(len(scope) <= MAX_SCOPE_CHARS and scope.isascii() and scope.isprintable() for scope in scopes)
    assert all(scope.startswith("services=") for scope in services)
    assert not any(scope.startswith("services=") for scope in paths)
