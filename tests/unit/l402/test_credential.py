"""A token goes back as it came, to the origin that issued it, and is seen nowhere else."""

from __future__ import annotations

import hashlib
import itertools
import time

import pytest
import requests
from hypothesis import given, settings, strategies as st
from urllib3.util import parse_url

from routeweiler_sync._core.urls import MAX_SCOPE_CHARS, origin_at, origin_of, path_of
from routeweiler_sync.protocol.challenge import Challenge, scope_of
from routeweiler_sync.protocol.l402.challenge import parse_challenge
from routeweiler_sync.protocol.l402.credential import MAX_TOKEN_CHARS, authorization, is_credential, is_sendable, redact

from .makers import INVOICE, L402, TOKEN, macaroon, token

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
def test_what_no_server_takes_is_never_sent_nor_told(scheme: str, text: str, preimage: bytes) -> None:
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


@pytest.mark.parametrize(
    ("url", "origin", "path"),
    [
        ("http://pages.example", "http://pages.example", "/"),
        ("HTTP://Pages.Example:80/A?q=/x#f", "http://pages.example", "/A"),
        ("https://pages.example:443/a/b/", "https://pages.example", "/a/b/"),
        ("https://pages.example:80/", "https://pages.example:80", "/"),
        ("http://pages.example:443?q", "http://pages.example:443", "/"),
        ("http://user:pass@pages.example:8081/", "http://pages.example:8081", "/"),
        ("http://user@evil.example:pass@pages.example/", "http://pages.example", "/"),
        ("http://[2001:DB8::1]:8080/x", "http://[2001:db8::1]:8080", "/x"),
        ("http://[::1]/", "http://[::1]", "/"),
        ("http://127.0.0.1:8081/x%20y", "http://127.0.0.1:8081", "/x%20y"),
        ("http://bücher.example/ü", "http://xn--bcher-kva.example", "/%C3%BC"),
        ("http://pages.example./", "http://pages.example.", "/"),
        ("http://pages.example#@evil.example/", "http://pages.example", "/"),
        ("http://pages.example\\@evil.example/x", "http://pages.example", "/%5C@evil.example/x"),
    ],
)
def test_an_origin_is_where_requests_connects_to(url: str, origin: str, path: str) -> None:
    """If failing: a token goes to a host that never issued it."""
    prepared = requests.Request("GET", url).prepare().url
    assert prepared is not None
    for each in (url, prepared):
        assert (origin_of(each), path_of(each)) == (origin, path)


#: What URLs are made of, and what two readers of one may disagree on.
_PIECES = [
    "/",
    ".",
    "..",
    "//",
    "a",
    "B7",
    "-_~",
    "%2e",
    "%2F",
    "?",
    "#",
    "@",
    ":",
    ":80",
    "\\",
    ";x=1",
    "é",
    " ",
    "\n",
    "[::1]",
    "x.json",
]


@given(st.lists(st.sampled_from(_PIECES), max_size=8), st.sampled_from(["http://", "https://", "HTTP://"]))
@settings(max_examples=2_000)
def test_a_quick_look_at_a_url_sees_what_its_parser_sees(pieces: list[str], scheme: str) -> None:
    """If failing: a path, or an origin, is taken for another, and a token goes along where it wasn't learned."""
    url = scheme + "pages.example" + "".join(pieces)
    for each in (url, url + "/next", scheme + "".join(pieces)):
        try:
            slow = parse_url(each)
            expected = (origin_of(each), _key(slow.path or "/"))
        except ValueError:
            for _ in range(2):
                with pytest.raises(ValueError):
                    origin_at(each), path_of(each)
            continue
        for _ in range(2):  # the second time it is remembered
            assert (origin_at(each), path_of(each)) == expected


def _key(path: str) -> str:
    return path if path.isascii() and path.isprintable() else "sha256:" + hashlib.sha256(path.encode()).hexdigest()


@pytest.mark.parametrize("path", ["/" + "x" * MAX_SCOPE_CHARS, "/" + "x" * 5_000])
def test_a_long_path_is_a_short_key(path: str) -> None:
    """If failing: PostgreSQL can't index what was learned of the path, and that its token was taken is lost with it."""
    key = path_of(f"http://pages.example{path}?q")
    assert key.startswith("sha256:")
    assert len(key) <= MAX_SCOPE_CHARS
    assert key == path_of(f"http://pages.example{path}")
    assert key != path_of(f"http://pages.example{path}y")
    whole = "/" + "x" * (MAX_SCOPE_CHARS - 1)
    assert path_of(f"http://pages.example{whole}") == whole


@pytest.mark.parametrize(
    "url", ["", "/a", "pages.example/a", "ftp://pages.example/", "file:///etc/passwd", "http://", "http:///a", "http://[::1"]
)
def test_what_has_no_origin_is_refused(url: str) -> None:
    """If failing: a token is kept under a key that other URLs share."""
    with pytest.raises(ValueError):
        origin_of(url)
