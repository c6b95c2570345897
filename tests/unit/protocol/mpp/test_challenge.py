"""A Payment challenge is answered if, and only if, it is a charge over Lightning that agrees with its own invoice."""

from __future__ import annotations

import contextlib
import json
import random
import time
from typing import Any

import pytest
from hypothesis import example, given, settings, strategies as st

from routeweiler_sync.errors import ChallengeMismatchError, ChallengeParseError
from routeweiler_sync.protocol import schemes
from routeweiler_sync.protocol.challenge import Challenge
from routeweiler_sync.protocol.http_auth import MAX_CHALLENGES, MAX_HEADER_CHARS, schemes_offered
from routeweiler_sync.protocol.invoice import decode_invoice
from routeweiler_sync.protocol.mpp import challenge as module
from routeweiler_sync.protocol.mpp.challenge import MAX_CANDIDATES, is_named_alone, names_others, parse_challenge
from routeweiler_sync.protocol.mpp.charge import MAX_REQUEST_CHARS
from routeweiler_sync.protocol.mpp.credential import MAX_CREDENTIAL_CHARS, is_sendable
from tests.support.challenge_builders import L402, LSAT
from tests.unit.protocol.mpp.samples import (
    ALL_LINES,
    EXCHANGES,
    INVOICE,
    PAID,
    PAYMENT_HASH,
    VECTORS,
    charge,
    encoded,
    lines_of,
    request,
)

UNUSABLE = (ChallengeParseError, ChallengeMismatchError)
DIGEST = "X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE="


def parsed(lines: str | list[str]) -> Challenge:
    read = parse_challenge(lines)
    assert read is not None
    return read


@pytest.mark.parametrize("server", EXCHANGES)
def test_the_charge_of_every_server_is_read_as_it_came(server: str) -> None:
    """If failing: what is echoed differs from what was sent, and a paid charge is refused."""
    exchange = EXCHANGES[server]
    for lines in (lines_of(exchange), [", ".join(lines_of(exchange))]):
        read = parsed(lines)
        assert (read.scheme, read.rail, read.reusable) == ("Payment", "mpp-lightning", False)
        assert (read.names_scope, read.names_payment_hash, read.valid_until, read.body_digest) == (None, None, None, None)
        assert read.invoice.amount_msat == 10_000
        assert read.expires_at is not None
        assert read.expires_at < read.invoice.expires_at
        if server in PAID:
            assert json.loads(read.token) == exchange["challenge"]
            assert read.payment_hash.hex() == exchange["invoice_decoded"]["payment_hash"]
            assert read.credential_header == exchange["credential_field"]


def test_the_times_of_servers_are_read_to_the_millisecond() -> None:
    """If failing: an order is sent that may settle after the challenge is dead, or a live one is refused."""
    times = {name: parsed(lines_of(each)).expires_at for name, each in EXCHANGES.items()}
    assert times["aperture_v0.5.0_charge"] == 1795919008
    assert times["mppx_0.3.16_spark_sdk_charge"] == pytest.approx(1795918409.256)
    assert times["pympp_0.16.0_charge"] == pytest.approx(1795918410.336194)


@pytest.mark.parametrize("case", VECTORS["parse"], ids=lambda case: case["name"])
def test_header_fields_are_read_as_servers_mean_them(case: dict[str, Any]) -> None:
    """If failing: a challenge is cut at the wrong place, or one is paid that can't be answered."""
    expected = case["expect"]
    if isinstance(expected, str) and expected.startswith("legacy"):
        assert parse_challenge(case["field"]) is None
        return
    if isinstance(expected, str):
        with pytest.raises(ChallengeParseError):
            parse_challenge(case["field"])
        return
    read = parsed(case["field"])
    echo = json.loads(read.token)
    assert echo["intent"] == expected["payment_intents"][0] == "charge"
    for name in ("id", "realm", "description"):
        assert echo.get(name) == expected.get(name, echo.get(name)).partition(" (Latin-1")[0] if name in expected else True
    if "schemes" in expected:
        assert schemes_offered(case["field"]) == tuple(dict.fromkeys(expected["schemes"]))
    assert "zz" not in echo
    assert f'"{echo["request"]}"' in case["field"] or f"={echo['request']}," in case["field"]


@pytest.mark.parametrize("case", VECTORS["refuse"], ids=lambda case: case["name"])
def test_a_request_that_cant_be_believed_is_refused_before_paying(case: dict[str, Any]) -> None:
    """If failing: a price passes a limit by a false amount, or an invoice is paid that buys nothing."""
    line = charge(request=case["request"])
    if case["name"].startswith("currency BTC"):
        # The amount equals the signed invoice's in satoshi, so that it is clear what the server means.
        assert parsed(line).invoice.amount_msat == 10_000
        return
    contradicts = any(
        each in case["name"]
        for each in ("below", "above", "of another", "mainnet with", "left out (means mainnet)")
    )  # fmt: skip
    with pytest.raises(ChallengeMismatchError if contradicts else ChallengeParseError) as caught:
        parse_challenge(line)
    assert caught.value.spent is False
    assert caught.value.advice
    assert INVOICE not in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"amount": "10000"}, ChallengeMismatchError),  # a server that counts in msat
        ({"amount": "9999999999999999"}, ChallengeMismatchError),
        ({"amount": "99999999999999999"}, ChallengeParseError),
        ({"amount": "010"}, ChallengeParseError),
        ({"amount": "10\n"}, ChallengeParseError),
        ({"amount": "+10"}, ChallengeParseError),
        ({"amount": "１０"}, ChallengeParseError),
        ({"amount": ""}, ChallengeParseError),
        ({"amount": True}, ChallengeParseError),
        ({"amount": ["10"]}, ChallengeParseError),
        ({"currency": "BTC", "amount": "1"}, ChallengeMismatchError),
        ({"currency": "msat"}, ChallengeParseError),
        ({"currency": "SAT "}, ChallengeParseError),
        ({"currency": ["sat"]}, ChallengeParseError),
        ({"methodDetails": "lnbc"}, ChallengeParseError),
        ({"methodDetails": [INVOICE]}, ChallengeParseError),
        ({"details": {"invoice": ""}}, ChallengeParseError),
        ({"details": {"invoice": 7}}, ChallengeParseError),
        ({"details": {"invoice": "lnbc" + INVOICE[6:]}}, ChallengeParseError),
        ({"details": {"paymentHash": ""}}, ChallengeParseError),
        ({"details": {"paymentHash": 7}}, ChallengeParseError),
        ({"details": {"paymentHash": PAYMENT_HASH[:-2]}}, ChallengeParseError),
        ({"details": {"paymentHash": PAYMENT_HASH + "00"}}, ChallengeParseError),
        ({"details": {"network": "signet"}}, ChallengeMismatchError),
        ({"details": {"network": "testnet"}}, ChallengeMismatchError),
        ({"details": {"network": "liquid"}}, ChallengeParseError),
        ({"details": {"network": ""}}, ChallengeParseError),
        ({"details": {"network": 1}}, ChallengeParseError),
    ],
    ids=str,
)
def test_a_request_with_an_odd_value_is_refused(changed: dict[str, Any], expected: type[Exception]) -> None:
    """If failing: a server chooses how its own words are read."""
    with pytest.raises(expected):
        parse_challenge(charge(request=request(**changed)))


@pytest.mark.parametrize(
    "changed",
    [
        {"details": {"paymentHash": None}},
        {"details": {"paymentHash": PAYMENT_HASH.upper()}},
        {"description": "weather", "recipient": "02ab", "externalId": "7"},
        {"_mppx_scope": {"http_method": "GET", "resource": "/weather?q=1"}, "unknown": [1, 2.5, None, {"a": "b"}]},
        {"details": {"later": True}},
    ],
    ids=str,
)
def test_what_a_request_leaves_out_or_adds_is_no_reason_to_refuse(changed: dict[str, Any]) -> None:
    """If failing: servers of another version can't be paid."""
    read = parsed(charge(request=request(**changed)))
    assert (read.payment_hash.hex(), read.invoice) == (PAYMENT_HASH, decode_invoice(INVOICE))


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "=",
        "e30",  # {}
        "bnVsbA",  # null
        "a" * 5,
        "*" * 12,
        "eyJhbW91bnQiOiIx",  # cut
        "/////w",
        encoded('{"amount":"10","amount":"11","currency":"sat"}'),
        encoded("[" * 20_000),
        encoded('{"amount":' + "1" * 30_000 + "}"),
        encoded('{"amount":"\ud83d"}'.encode("utf-8", "surrogatepass").decode("latin-1")),
        "A" * (MAX_REQUEST_CHARS + 1),
    ],
    ids=lambda text: text[:20],
)
def test_a_request_that_isnt_json_is_refused_at_once(bad: str) -> None:
    """If failing: a few bytes keep the payer busy, or raise what no handler of requests' errors catches."""
    begun_s = time.monotonic()
    with pytest.raises(ChallengeParseError):
        parse_challenge(charge(request=bad))
    assert time.monotonic() - begun_s < 2


@pytest.mark.parametrize(
    "line",
    [
        charge(intent="session"),
        charge(intent=None, request=None, invoice=INVOICE),
        charge(method="tempo"),
        charge(method="stripe", intent="session"),
        charge(method="lightning", intent="subscribe"),
        'Payment realm="r", invoice="lnbc1"',
        "Payment",
        "Payment abc==",
        'Basic realm="Payment, method=lightning"',
        f'Basic realm="{charge().replace(chr(34), chr(92) + chr(34))}"',
        "",
        'Payments id="1", method="lightning", intent="charge"',
    ],
)
def test_what_isnt_a_charge_over_lightning_is_no_offer(line: str) -> None:
    """If failing: an answer that another client pays ends in an error here, and not in the response that requests gives."""
    assert parse_challenge(line) is None
    assert is_named_alone([line])
    assert schemes.parse_challenge([line]) is None


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (charge() + ', id="i1"', "twice"),
        (charge() + ', ID="i1"', "twice"),
        (charge() + ', zz="1", ZZ="1"', "twice"),
        (charge(id=None), "no id"),
        (charge(id=""), "no id"),
        (charge(realm=None), "no realm"),
        (charge(request=None), "no request"),
        (charge(request=""), "no request"),
        (charge(intent=None), "no intent"),
        (charge(intent="Charge"), "lower case"),
        (charge(method="LIGHTNING"), "lower case"),
        (charge(header="Authorization"), "header other than"),
        (charge(header="Cookie"), "header other than"),
        (charge(header=""), "header other than"),
        (charge(expires="tomorrow"), "RFC 3339"),
        (charge(expires=""), "RFC 3339"),
        (charge(expires="2026-11-29T02:23:28"), "RFC 3339"),
        (charge(expires="2026-11-29"), "RFC 3339"),
        (charge(expires="2026-02-30T02:23:28Z"), "RFC 3339"),
        (charge(expires="2026-11-29T24:23:28Z"), "RFC 3339"),
        (charge(expires="0000-11-29T02:23:28Z"), "RFC 3339"),
        (charge(expires="0001-01-01T00:00:00+01:00"), "RFC 3339"),
        (charge(expires="２026-11-29T02:23:28Z"), "RFC 3339"),
        (charge(expires="1795919008"), "RFC 3339"),
        (charge(digest=""), "SHA-256"),
        (charge(digest="sha-512=:YWJj:"), "SHA-256"),
        (charge(digest="sha-256=:YWJj:"), "SHA-256"),
        (charge(digest=f"sha-256=:{DIGEST[:-2]}F=:"), "SHA-256"),
        (charge(digest=f"sha-256={DIGEST}, sha-256={'A' * 43}="), "SHA-256"),
        (charge(opaque="x" * MAX_CREDENTIAL_CHARS)[: MAX_HEADER_CHARS - 1] + '"', "above|malformed"),
        (charge(realm="\ud800"), "can't be sent back"),
        (charge() + ', zz="a" b', "malformed"),
        (charge() + ' , id="open', "malformed|twice"),
    ],
)
def test_a_charge_that_cant_be_answered_says_why(line: str, why: str) -> None:
    """If failing: a payment is made whose credential the server can't take, or the server's operator isn't told what to mend."""
    with pytest.raises(ChallengeParseError, match=why) as caught:
        parse_challenge(line)
    assert "operator" in (caught.value.advice or "")
    assert not is_named_alone([line])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-29T02:23:28Z", 1795919008),
        ("2026-11-29t02:23:28z", 1795919008),
        ("2026-11-29T02:23:28.5Z", 1795919008.5),
        ("2026-11-29T02:23:28.147569Z", 1795919008.147569),
        ("2026-11-29T02:23:28.147569123Z", 1795919008.147569),
        ("2026-11-29T03:23:28+01:00", 1795919008),
        ("2026-11-28T20:53:28.050-05:30", 1795919008.05),
        ("2016-12-31T23:59:60Z", 1483228800),
        ("9999-12-31T23:59:59.999Z", 253402300799.999),
    ],
)
def test_every_form_of_a_time_is_read(text: str, expected: float) -> None:
    """If failing: the charges of a server can't be paid on the oldest Python, or are paid when they are dead."""
    assert parsed(charge(expires=text)).expires_at == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    "text",
    [
        f"sha-256=:{DIGEST}:",
        f"sha-256={DIGEST}",
        f"SHA-256=:{DIGEST}:",
        f"sha-256={DIGEST[:-1]}",
        f"sha-512=:YWJj:, sha-256=:{DIGEST}:",
        f"sha-256=:{DIGEST}:, sha-512=:YWJj:",
    ],
)
def test_both_forms_of_a_digest_are_read_and_echoed_as_they_came(text: str) -> None:
    """If failing: a charge for one body is paid for another, or its echo isn't what the server signed."""
    read = parsed(charge(digest=text))
    assert read.body_digest == DIGEST
    assert json.loads(read.token)["digest"] == text


def test_a_digest_in_the_other_alphabet_is_the_same_digest() -> None:
    """If failing: the body's own digest, which is in standard base64, never equals it."""
    plain = "+/" * 21 + "8="
    url_safe = plain.replace("+", "-").replace("/", "_")
    assert parsed(charge(digest=f"sha-256={url_safe}")).body_digest == plain


@pytest.mark.parametrize("header", ["Payment-Authorization", "payment-authorization"])
def test_the_other_header_is_taken_in_any_case_and_echoed_as_it_came(header: str) -> None:
    """If failing: the credential goes into a field that the server doesn't read."""
    read = parsed(charge(header=header))
    assert read.credential_header == schemes.credential_header("Payment", read.token) == "Payment-Authorization"
    assert json.loads(read.token)["header"] == header


@pytest.mark.parametrize("scheme", ["Payment", "payment", "PAYMENT"])
def test_names_are_read_in_any_case_and_sent_with_a_capital(scheme: str) -> None:
    """If failing: servers that compare with regard to case find no credential."""
    read = parsed(charge(scheme).replace("realm=", "REALM=").replace("request=", "Request="))
    assert (read.scheme, read.token) == ("Payment", parsed(charge()).token)


def test_quotes_and_escapes_are_taken_off_before_the_echo() -> None:
    """If failing: a realm goes back escaped, which servers refuse."""
    read = parsed(charge(realm=r"Weather \"pro\", L402 x=1, \\ \a, Payment id=\"x\""))
    assert json.loads(read.token)["realm"] == 'Weather "pro", L402 x=1, \\ a, Payment id="x"'


@pytest.mark.parametrize(
    ("realm", "expected"),
    [
        ("Caf\xe9", "Caf\xe9"),  # Latin-1, as servers on Node send it
        ("Caf\xc3\xa9", "Caf\xe9"),  # UTF-8, as servers in Go send it
        ("\u20ac", "\u20ac"),  # text of a library that has decoded the header itself
        ("a\x01b", "a\x01b"),
    ],
)
def test_text_beyond_ascii_goes_back_as_the_server_wrote_it(realm: str, expected: str) -> None:
    """If failing: the realm in the credential isn't the one that the server signed, and what was paid for is refused."""
    assert json.loads(parsed(charge(realm=realm)).token)["realm"] == expected


def test_of_several_charges_the_first_usable_one_is_answered() -> None:
    """If failing: one broken line keeps a good one from being paid."""
    good, bad, false = charge(id="good"), charge(id=""), charge(request=request(amount="1"))
    for lines in ([bad, good], [false, good], [", ".join([charge(intent="session"), bad, false, good])]):
        assert json.loads(parsed(lines).token)["id"] == "good"
    with pytest.raises(ChallengeMismatchError, match=r"no id.*says 1 sat"):
        parse_challenge([bad, false])
    with pytest.raises(ChallengeParseError):
        parse_challenge([bad] * MAX_CANDIDATES + [good])


def test_the_work_for_a_header_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """If failing: a header costs the payer a signature check for each of its challenges."""
    checked: list[str] = []

    def check(request: str) -> None:
        checked.append(request)
        raise ChallengeParseError("no")

    monkeypatch.setattr(module, "invoice_of", check)
    with pytest.raises(ChallengeParseError):
        parse_challenge([charge()] * 30)
    assert len(checked) == MAX_CANDIDATES


@pytest.mark.parametrize("lines", [["x" * MAX_HEADER_CHARS, charge()], [charge(), "Basic, " * MAX_CHALLENGES]])
def test_an_oversized_header_is_refused_if_it_names_a_charge(lines: list[str]) -> None:
    """If failing: the answer is taken for one that asks for nothing."""
    with pytest.raises(ChallengeParseError, match="above"):
        parse_challenge(lines)
    assert not is_named_alone(lines)
    assert parse_challenge(["x" * (MAX_HEADER_CHARS + 1)]) is None


def test_a_large_charge_is_read_in_no_time() -> None:
    """If failing: reading takes long for texts that pass the bounds."""
    begun_s = time.monotonic()
    read = parsed(charge(description="d" * 20_000, opaque="o" * 20_000))
    assert len(schemes.authorization("Payment", read.token, bytes(32))) <= MAX_CREDENTIAL_CHARS
    parsed(charge(realm='\\"' * 12_000))
    assert time.monotonic() - begun_s < 2


# -- beside L402 ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lines", [ALL_LINES, [", ".join(ALL_LINES)]])
def test_beside_l402_the_preferred_rail_is_answered(lines: list[str]) -> None:
    """If failing: a policy's choice, or the default, isn't what is paid."""
    found = [
        schemes.parse_challenge(lines, prefer) for prefer in (None, "l402", "mpp-lightning", ("mpp-lightning", "l402"), "x402")
    ]
    assert [each and (each.scheme, each.rail) for each in found] == [
        ("L402", "l402"),
        ("L402", "l402"),
        ("Payment", "mpp-lightning"),
        ("Payment", "mpp-lightning"),
        ("L402", "l402"),
    ]
    assert len({each and each.payment_hash for each in found}) == 2


def test_the_order_of_the_lines_isnt_the_servers_choice() -> None:
    """If failing: a server decides by which scheme its customers pay."""
    lines = [charge(), LSAT, charge(intent="session"), L402]
    for _ in range(10):
        random.shuffle(lines)
        first, second = schemes.parse_challenge(lines), schemes.parse_challenge(lines, "mpp-lightning")
        assert first is not None
        assert second is not None
        assert (first.scheme, second.scheme) == ("L402", "Payment")


def test_what_cant_be_used_gives_way_to_the_other_scheme() -> None:
    """If failing: a broken challenge keeps a good one from being paid."""
    bad, false = 'L402 token="a b", invoice="lnbc1"', charge(request=request(amount="1"))
    other = schemes.parse_challenge([bad, charge()])
    assert other is not None
    assert other.scheme == "Payment"
    for broken in (charge(id=""), false):
        other = schemes.parse_challenge([L402, broken], "mpp-lightning")
        assert other is not None
        assert other.scheme == "L402"
    with pytest.raises(ChallengeParseError, match="L402"):
        schemes.parse_challenge([bad, charge(id="")])


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([charge()], False),
        ([charge(intent="session")], True),
        ([L402, charge(method="tempo")], True),
        ([L402, "Payment"], False),
        (['Basic realm="x"', charge()], True),
    ],
)
def test_a_challenge_that_others_answer_is_told_from_ours(lines: list[str], expected: bool) -> None:
    """If failing: a 401 that names another way in is answered with tokens of ours."""
    assert schemes.names_others(lines) is expected
    assert names_others(lines) is (expected and "Basic" not in lines[0])


# -- any bytes ----------------------------------------------------------------------------------------------------------------

_PIECES = st.sampled_from(
    [
        "Payment ",
        "payment\t",
        charge(),
        charge(intent="session"),
        LSAT,
        'id="',
        "id=i1",
        'method="lightning"',
        'intent="charge"',
        "request=",
        request(),
        'realm="r"',
        'expires="2026-11-29T02:23:28.147569Z"',
        f'digest="sha-256=:{DIGEST}:"',
        "header=Payment-Authorization",
        '"',
        "\\",
        ",",
        " ",
        "=",
        "é",
        "\r\n",
        "\0",
        "Basic",
    ]
)


@pytest.mark.slow
@settings(deadline=None, max_examples=300)
@given(
    st.text()
    | st.lists(st.text(), max_size=4)
    | st.lists(_PIECES, max_size=25).map("".join)
    | st.lists(st.lists(_PIECES, max_size=12).map("".join), max_size=3)
    | st.binary().map(lambda raw: 'Payment method="lightning", intent="charge", id="1", realm="' + raw.decode("latin-1"))
)
@example("Payment =")
@example('Payment method="lightning", request="')
def test_any_header_is_a_charge_none_or_an_error_of_ours(lines: str | list[str]) -> None:
    """If failing: a server's odd header raises what no handler of requests' errors catches."""
    assert schemes.names_others(lines if isinstance(lines, list) else [lines]) in (True, False)
    with contextlib.suppress(*UNUSABLE):
        read = parse_challenge(lines)
        assert read is None or (is_sendable(read.token) and read.invoice.amount_msat > 0)


@pytest.mark.slow
@settings(deadline=None, max_examples=200)
@given(
    st.dictionaries(
        st.sampled_from(["amount", "currency", "methodDetails", "x"]),
        st.recursive(
            st.none()
            | st.booleans()
            | st.integers()
            | st.floats()
            | st.text()
            | st.sampled_from(["10", "sat", INVOICE, PAYMENT_HASH]),
            lambda each: (
                st.lists(each, max_size=3)
                | st.dictionaries(st.sampled_from(["invoice", "paymentHash", "network"]), each, max_size=3)
            ),
            max_leaves=5,
        ),
    )
    | st.text()
)
def test_any_request_is_one_that_agrees_with_its_invoice_or_an_error_of_ours(said: object) -> None:
    """If failing: a value of an unexpected kind raises what no handler of requests' errors catches."""
    with contextlib.suppress(*UNUSABLE, UnicodeEncodeError):
        read = parsed(charge(request=encoded(said)))
        assert (read.invoice.amount_msat, read.payment_hash.hex()) == (10_000, PAYMENT_HASH)


@pytest.mark.slow
@settings(deadline=None, max_examples=300)
@given(
    st.sampled_from([lines_of(each) for each in EXCHANGES.values()]),
    st.lists(st.tuples(st.integers(0, 10_000), _PIECES | st.text(max_size=2), st.integers(0, 4)), min_size=1, max_size=4),
)
def test_a_doctored_charge_is_the_same_or_refused(lines: list[str], edits: list[tuple[int, str, int]]) -> None:
    """If failing: a header that was damaged on its way is paid with another amount than the server meant."""
    text = "\n".join(lines)
    for at, new, gone in edits:
        at %= len(text)
        text = text[:at] + new + text[at + gone :]
    with contextlib.suppress(*UNUSABLE):
        read = parse_challenge(text.split("\n"))
        if read is not None:
            assert is_sendable(read.token)
            assert read.invoice.amount_msat == 10_000


@pytest.mark.slow
@settings(deadline=None, max_examples=200)
@given(st.text(alphabet=st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f")), st.booleans())
def test_any_realm_comes_back_as_it_was_meant(realm: str, is_utf8: bool) -> None:
    """If failing: a paid charge is refused, because one character of its echo differs."""
    sent = realm.encode().decode("latin-1") if is_utf8 else realm
    quoted = sent.replace("\\", "\\\\").replace('"', '\\"')
    try:
        meant = sent.encode("latin-1").decode()
    except ValueError:
        meant = realm
    assert json.loads(parsed(charge(realm=quoted)).token)["realm"] == meant
