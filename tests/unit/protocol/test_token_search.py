"""A token is found in a server's text however it is quoted, escaped or encoded there, and nothing else is taken for one."""

from __future__ import annotations

import base64
import html
import json
import re
import sys
from urllib.parse import quote

import pytest
from hypothesis import example, given, settings, strategies as st

from routeweiler_sync.protocol import schemes, token_search
from routeweiler_sync.protocol.http_auth import MAX_HEADER_CHARS, described
from routeweiler_sync.protocol.token_search import (
    _REDACTED,
    MIN_TOKEN_CHARS,
    _searched,
    _unescaped,
    holds_token,
    token_of,
    tokens_in,
    without_tokens,
)

RAW = b"\xfb\xff\xfe" + bytes(range(60))
TOKEN = base64.standard_b64encode(RAW).decode() + "=="
OPAQUE = "a-Key.of_somebody/else+1"


def escaped(token: str) -> str:
    return "".join(f"\\u{ord(char):04x}" for char in token)


@pytest.mark.parametrize("token", [TOKEN, OPAQUE])
@pytest.mark.parametrize(
    "written",
    [
        lambda token: json.dumps({"any": token}),
        lambda token: json.dumps(json.dumps({"any": token})),
        lambda token: '{"any": "' + token.replace("/", "\\/") + '"}',
        lambda token: '{"any": "' + escaped(token) + '"}',
        lambda token: "'" + "".join(f"\\x{ord(char):02X}" for char in token) + "'",
        lambda token: f"<any>{html.escape(token)}</any>",
        lambda token: "<any>" + "".join(f"&#{ord(char)};" for char in token) + "</any>",
        lambda token: "<any>" + "".join(f"&#x{ord(char):x};" for char in token) + "</any>",
        lambda token: "any=" + quote(token, safe=""),
        lambda token: "any=" + quote(quote(token, safe=""), safe=""),
        lambda token: "any=" + "".join(f"%{ord(char):02x}" for char in token),
        lambda token: f"any {token[:9]}\r\n  {token[9:]}",
        lambda token: f'"{token[:9]}" "{token[9:]}"',
        lambda token: token.encode("utf-16-le").decode("latin-1"),
        lambda token: token.replace("+", "-").replace("/", "_").rstrip("="),
        lambda token: base64.b64encode(token.encode()).decode(),
        lambda token: token.encode().hex().upper(),
        lambda token: f"xx{token}yy",
    ],
)
def test_a_token_is_found_in_any_writing(written, token: str) -> None:
    """Else it is in a pickle or a cache, and whoever reads that reads the page."""
    text = written(token)
    assert holds_token(text, frozenset({"another", token}))
    assert holds_token(text.encode("latin-1"), frozenset({token}), by_value=True)
    assert token not in without_tokens(text, frozenset({token}))


def test_the_bytes_of_a_token_are_found_in_hex() -> None:
    """A macaroon is shown in hex as well, by lnd's own tools."""
    assert holds_token(f"any {RAW.hex()}", frozenset({base64.b64encode(RAW).decode()}))


WRITTEN = st.sampled_from(
    [
        lambda token: token,
        lambda token: token.lower(),
        lambda token: " ".join(token),
        lambda token: quote(quote(token, safe=""), safe=""),
        lambda token: html.escape(token),
        lambda token: "".join(f"&#{ord(char)};" for char in token),
        lambda token: escaped(token),
        lambda token: base64.b64encode(token.encode("utf-8", "surrogatepass")).decode(),
        lambda token: token.encode("utf-8", "surrogatepass").hex(),
        lambda token: token[1:],
    ]
)
TOKENS = st.text('abC="+-\u0130\u212a', min_size=1, max_size=9) | st.sampled_from(['="="="', "i\u0307" * 3, "kkkkkk", "ab" * 32])


def found_slowly(text: str, tokens: frozenset[str]) -> bool:
    """The same as `holds_token` by value, with every level of every text looked at."""
    for _ in range(4):
        plain = re.sub(r"[\s\0\\\"'=]+", "", text)
        if any(each in form for each in _searched(tokens) for form in (plain, plain.translate(str.maketrans("-_", "+/")))):
            return True
        if any(each in plain.lower() for each in _searched(tokens) if each == each.lower()):
            return True
        text = _unescaped(text)
    return False


def replaced_slowly(text: str, tokens: frozenset[str]) -> str:
    for token in sorted(tokens, key=len, reverse=True):
        text = text.replace(token, _REDACTED) if len(token) >= MIN_TOKEN_CHARS else text
    return _REDACTED if found_slowly(text.replace(_REDACTED, ""), tokens) else text


@settings(max_examples=200, deadline=None)
@given(
    st.lists(TOKENS, max_size=2),
    st.lists(st.tuples(TOKENS, WRITTEN), max_size=2),
    st.sampled_from(["", "x", "https://a/", "\u0130"]),
)
@example(["i\u0307" * 3], [("\u0130" * 3, str.strip)], "")
@example(["abcdef"], [("abcdef", str.strip)], "")
@example(['="="="'], [('="="="', str.strip)], "x")
def test_a_short_text_is_searched_no_less(tokens: list[str], parts, rest: str) -> None:
    """A token in a short URL would get into the trace: a text isn't too short for a token because one way to write it is longer."""
    text, wanted = rest + "".join(written(part) for part, written in parts), frozenset(tokens)
    assert holds_token(text, wanted, by_value=True) == found_slowly(text, wanted)
    assert without_tokens(text, wanted, by_value=True) == replaced_slowly(text, wanted)


@pytest.mark.parametrize(
    "text", ["payment required\n", '{"price": 10, "unit": "sat"}', "", "<p>Pay 10 sat</p>", "token", "a token is needed"]
)
def test_a_text_without_a_token_stays(text: str) -> None:
    """Else the user can't read what the server said."""
    assert not holds_token(text, frozenset({TOKEN, "", "pay"}))
    assert without_tokens(text, frozenset({TOKEN, "pay"})) == text


@pytest.mark.parametrize(
    "text",
    [f'{{"macaroon": "{TOKEN}"}}', f"<token>{TOKEN}</token>", f"L402 {TOKEN}:{'0' * 64}", "macaroon=short"],
)
def test_what_looks_like_a_token_counts_as_one(text: str) -> None:
    """A server may name another token than that of its challenge. The caller's own texts (``by_value``) may look like anything."""
    assert holds_token(text, frozenset())
    assert not holds_token(text, frozenset(), by_value=True)


def test_tokens_are_read_from_headers() -> None:
    """Else nothing is looked for."""
    lines = [
        'LSAT macaroon="one", invoice="lnbc1", L402 token=two, invoice="x", Basic realm="r", token="no"',
        'l402 version="0", macaroon="3"',
    ]
    assert tokens_in(lines) == {"one", "two", "3"}
    assert tokens_in(["x" * 100_000]) == frozenset()
    assert token_of(b"L402 abc=:00ff") == token_of("LSAT abc=:00FF") == {"abc="}
    assert token_of("Basic abc") == token_of(None) == frozenset()


CHARGE, PREIMAGE = '{"id":"1","realm":"r\\u00e9"}', bytes(range(200, 232))
CREDENTIAL = schemes.authorization("Payment", CHARGE, PREIMAGE)


@pytest.mark.parametrize("value", [CREDENTIAL, CREDENTIAL.encode(), f" payment   {CREDENTIAL.split()[1]}== "])
def test_the_secrets_of_a_charge_are_its_preimage_and_its_credential(value: str | bytes) -> None:
    """The challenge is public, and the preimage alone makes another credential of it."""
    secrets = frozenset({PREIMAGE.hex(), CREDENTIAL.split()[1]})
    assert token_of(value) == schemes.secrets_of("Payment", CHARGE, PREIMAGE) == secrets
    assert schemes.secrets_of("Payment", CHARGE) == frozenset()
    assert schemes.secrets_of("Payment", "damaged", PREIMAGE) == {PREIMAGE.hex()}
    assert schemes.secrets_of("L402", TOKEN) == schemes.secrets_of("L402", TOKEN, PREIMAGE) == {TOKEN}


@pytest.mark.parametrize(
    "written",
    [
        PREIMAGE.hex(),
        PREIMAGE.hex().upper(),
        f"Invalid preimage: sha256({PREIMAGE.hex()}) != 00",
        base64.b64encode(PREIMAGE).decode(),
        base64.urlsafe_b64encode(PREIMAGE).decode(),
        json.dumps({"challenge": {}, "payload": {"preimage": PREIMAGE.hex()}}),
        escaped(PREIMAGE.hex()),
        CREDENTIAL,
        quote(CREDENTIAL, safe=""),
        html.escape(CREDENTIAL.split()[1]),
    ],
)
def test_a_charges_secrets_are_found_in_any_writing(written: str) -> None:
    """Servers repeat what they refuse, and a cache of their answers would open the page."""
    assert holds_token(f"x {written} y", token_of(CREDENTIAL), by_value=True)
    assert not holds_token(f"x {CHARGE} y", token_of(CREDENTIAL), by_value=True)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], "none"),
        (["Basic realm=x, Bearer"], "Basic, Bearer"),
        (['Payment id="1", method="lightning", intent="session"'] * 2, "Payment lightning/session"),
        (['Payment method="tempo", intent="charge", Payment method="a b\r\nc", intent="x"'], "Payment tempo/charge, Payment x"),
        (["x" * (MAX_HEADER_CHARS + 1)], "too many to read"),
        (["AgEDbG5kAvgBAwoQ" * 10], "none"),
    ],
)
def test_the_log_names_what_is_asked_for_and_no_value(lines: list[str], expected: str) -> None:
    """A user can't see why a 402 isn't paid, or the log holds what a server put into it."""
    assert described(lines) == expected


def test_every_kind_of_blank_between_the_parts_of_a_token_is_left_out() -> None:
    """A server may wrap a token at any character that some reader takes for a blank."""
    every = "".join(f"a{chr(point)}b" for point in range(sys.maxunicode + 1))
    assert token_search._joined(every) == re.sub(r"[\s\0\\\"'=]+", "", every)
    assert token_search._in_standard_digits(every) == every.translate(str.maketrans("-_", "+/"))
