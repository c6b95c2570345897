"""The price is what the signed invoice says, to the msat, or there is no price and nothing is paid."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import re
import signal
import time
from dataclasses import FrozenInstanceError
from fractions import Fraction

import bolt11
import pytest
from hypothesis import given, settings, strategies as st

from routeweiler_sync.errors import ChallengeParseError
from routeweiler_sync.protocol.invoice import MAX_AMOUNT_MSAT, MAX_EXPIRY_S, MAX_INVOICE_CHARS, Invoice, decode_invoice
from tests.support.challenge_builders import (
    CREATED_AT,
    INVOICE,
    KEY,
    PAYEE,
    PAYMENT_HASH,
    PAYMENT_SECRET,
    D,
    P,
    S,
    invoice,
    number,
    remade,
    taken_apart,
    words,
)
from tests.support.signed_invoices import doctored_invoice, library_reads, signed_invoice

#: How many invoices are read by this package and by the library. ROUTEWEILER_DEEP_TESTS=1 takes minutes.
_HEAD = re.compile(r"ln(?:bcrt|bc|tbs|tb)[1-9][0-9]*[munp]?1[^1]*$")
_COMPARED = 100_000 if os.environ.get("ROUTEWEILER_DEEP_TESTS") == "1" else 150

# From BOLT-11, "Examples" and "Examples of Invalid Invoices".
_SPEC_PAYEE = "03e7156ae33b0a208d0744199163177e909e80176e55d97a2f221ede0f934dd9ad"
_SPEC_HASH = bytes.fromhex("0001020304050607080900010203040506070809000102030405060708090102")
_SPEC_BEANS = (
    "lnbc25m1pvjluezpp5qqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqypqdq5vdhkven9v5sxyetpdeessp5zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3"
    "zyg3zyg3zyg3zyg3zygs9q5sqqqqqqqqqqqqqqqpqsq67gye39hfg3zd8rgc80k32tvy9xk2xunwm5lzexnvpx6fd77en8qaq424dxgt56cag2dpt359k3ssyhetktkpq"
    "h24jqnjyw6uqd08sgptq44qu"
)
# "Including fields which must be ignored": of unknown name, version or length.
_SPEC_FIELDS_TO_SKIP = (
    _SPEC_BEANS[: _SPEC_BEANS.index("67gye39")]
    + "2qrqqq"
    + ("fppn" + "q" * 32)
    + "".join(name + length + "q" * count for name in "phs" for length, count in (("pn", 51), ("p4", 53)))
    + ("np5" + "q" * 52)
    + ("npk" + "q" * 54)
    + "2jxxfsnucm4jf4zwtznpaxphce606fvhvje5x7d4gw7n73994hgs7nteqvenq8a4ml8aqtchv5d9pf7l558889hp4yyrqv6a7zpq9fgpskqhza"
)
_SPEC_REFUSED = {
    (
        "no payment secret (legacy)",
        "payment_secret",
    ): "lnbc2500u1pvjluezpp5qqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqypqdq5xysxxatsyp3k7enxv4jsxqzpuaztrn"
    "wngzn3kdzw5hydlzf03qdgm2hdq27cqv3agm2awhz5se903vruatfhq77w3ls4evs3ch9zw97j25emudupq63nyw24cg27h2rspfj9srp",
    (
        "checksum",
        "Bech32 string is not valid",
    ): "lnbc2500u1pvjluezpp5qqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqypqdpquwpc4curk03c9wlrswe78q4eyqc7d8d0xqzpuyk0sg5g70me"
    "25alkluzd2x62aysf2pyy8edtjeevuv4p2d5p76r4zkmneet7uvyakky2zr4cusd45tftc9c5fh0nnqpnl2jfll544esqchsrnt",
    (
        "no separator",
        "isn't BOLT-11",
    ): "pvjluezpp5qqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqypqdpquwpc4curk03c9wlrswe78q4eyqc7d8d0xqzpuyk0sg5g70me25alklu"
    "zd2x62aysf2pyy8edtjeevuv4p2d5p76r4zkmneet7uvyakky2zr4cusd45tftc9c5fh0nnqpnl2jfll544esqchsrny",
    (
        "signature not recoverable",
        "ValueError",
    ): "lnbc2500u1pvjluezpp5qqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqypqdq5xysxxatsyp3k7enxv4jsxqzpuaxtrnwn"
    "gzn3kdzw5hydlzf03qdgm2hdq27cqv3agm2awhz5se903vruatfhq77w3ls4evs3ch9zw97j25emudupq63nyw24cg27h2rspk28uwq",
    (
        "too short",
        "no amount",
    ): "lnbc1pvjluezpp5qqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqypqdpl2pkx2ctnv5sxxmmwwd5kgetjypeh2ursdae8g6na6hlh",
    (
        "multiplier",
        "malformed",
    ): "lnbc2500x1pvjluezpp5qqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqypqdq5xysxxatsyp3k7enxv4jsxqzpujr6jxr9gq9pv6g46y7d20"
    "jfkegkg4gljz2ea2a3m9lmvvr95tq2s0kvu70u3axgelz3kyvtp2ywwt0y8hkx2869zq5dll9nelr83zzqqpgl2zg",
    (
        "sub-msat",
        "whole number",
    ): "lnbc2500000001p1pvjluezpp5qqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqypqdq5xysxxatsyp3k7enxv4jsxqzpu7hqtk93pkf7sw55rd"
    "v4k9z2vj050rxdr6za9ekfs3nlt5lr89jqpdmxsmlj9urqumg0h9wzpqecw7th56tdms40p2ny9q4ddvjsedzcplva53s",
}


def test_everything_a_payment_is_decided_on_is_read() -> None:
    """If failing: a wrong amount, hash or expiry is what the budget, the ledger and the user see."""
    assert decode_invoice(INVOICE) == Invoice(
        bolt11=INVOICE,
        payment_hash=PAYMENT_HASH,
        amount_msat=10_000,
        network="bitcoin-regtest",
        created_at=CREATED_AT,
        expires_at=CREATED_AT + 3600,
        description="a page",
        payee=PAYEE,
    )


@pytest.mark.parametrize("text", [_SPEC_BEANS, _SPEC_BEANS.upper(), _SPEC_FIELDS_TO_SKIP], ids=["plain", "upper", "fields to skip"])
def test_the_specifications_own_invoices_are_read(text: str) -> None:
    """If failing: invoices that every other wallet pays can't be paid."""
    read = decode_invoice(text)
    assert (read.payment_hash, read.payee, read.description) == (_SPEC_HASH, _SPEC_PAYEE, "coffee beans")
    assert (read.amount_msat, read.network, read.created_at) == (2_500_000_000, "bitcoin", 1496314658)
    assert read.bolt11 == text.lower()


@pytest.mark.parametrize(
    ("reason", "text"), [(reason, text) for (_, reason), text in _SPEC_REFUSED.items()], ids=[name for name, _ in _SPEC_REFUSED]
)
def test_the_specifications_bad_invoices_are_refused(reason: str, text: str) -> None:
    """If failing: what lnd can't pay is reserved for, tried, and fails late."""
    with pytest.raises(ChallengeParseError, match=reason):
        decode_invoice(text)


def test_an_invoice_as_the_library_writes_it_is_read() -> None:
    """If failing: the makers of these tests and the library disagree on the format, so the other tests prove little."""
    tags = bolt11.Tags(
        [
            bolt11.Tag(bolt11.TagChar.payment_hash, PAYMENT_HASH.hex()),
            bolt11.Tag(bolt11.TagChar.payment_secret, PAYMENT_SECRET.hex()),
            bolt11.Tag(bolt11.TagChar.description, "a page"),
        ]
    )
    value = bolt11.Bolt11(currency="bcrt", date=CREATED_AT, tags=tags, amount_msat=bolt11.MilliSatoshi(10_000))
    assert bolt11.encode(value, KEY.to_hex()) == INVOICE


@pytest.mark.parametrize(
    ("head", "amount_msat", "network"),
    [
        ("lnbc1", 100_000_000_000, "bitcoin"),
        ("lnbc21000000", MAX_AMOUNT_MSAT, "bitcoin"),
        ("lnbc1m", 100_000_000, "bitcoin"),
        ("lntb1u", 100_000, "bitcoin-testnet"),
        ("lntbs1n", 100, "bitcoin-signet"),
        ("lnbcrt10p", 1, "bitcoin-regtest"),
        ("lnbc9678785340p", 967_878_534, "bitcoin"),
        ("lnbc21000000000000000000p", MAX_AMOUNT_MSAT, "bitcoin"),
        ("lnbc1234567890123456780p", 123_456_789_012_345_678, "bitcoin"),
    ],
)
def test_amounts_are_exact_and_networks_are_told_apart(head: str, amount_msat: int, network: str) -> None:
    """If failing: a limit is passed by rounding, or test coins are taken for real ones."""
    read = decode_invoice(invoice(head))
    assert (read.amount_msat, read.network) == (amount_msat, network)


@pytest.mark.parametrize(
    "head",
    [
        "lnbc", "lnbcm", "lnbcrt", "lnbc0", "lnbc0n", "lnbc00", "lnbc0100n", "lnbc1p", "lnbc15p", "lnbc2500000001p",
        "lnbc21000001", "lnbc21000000000000000010p", "lnbc99999999999999999999999999999999m", "lnbc10x", "lnbc10nn", "lnbc10n-foo",
        "lnbc-10n", "lnbc+10n", "lnbc1_0n", "lnbc10.5n", "lnsb10n", "lntbx10n", "lnbcrt10k", "lnltc10n", "xnbc10n", "bc10n",
    ],
)  # fmt: skip
def test_what_cannot_be_bounded_is_refused(head: str) -> None:
    """If failing: an invoice without an amount, with two readings of it, or of another coin is paid."""
    with pytest.raises(ChallengeParseError):
        decode_invoice(invoice(head))


@pytest.mark.parametrize(
    "fields",
    [
        (S, D),
        (P, D),
        (P, S),
        (P, S, D, P),
        (("p", [0] * 52), S, D, P),
        (P, S, D, S),
        (P, S, D, D),
        (P, S, D, ("h", [0] * 52)),
        (P, S, D, ("x", [1]), ("x", [2])),
        (("p", P[1][:-1]), S, D),
        ((P[0], [*P[1], 0]), S, D),
        (P, S, ("d", words(b"\xff\xfe"))),
        (P, S, D, ("x", [])),
        (P, S, D, ("x", [31] * 1023)),
        (P, S, D, ("x", number(MAX_EXPIRY_S + 1, 8))),
        (P, S, D, ("n", words(b"\x02" + b"\x01" * 32))),
    ],
    ids=[
        "no hash", "no secret", "no description", "hash twice", "another hash first", "secret twice", "description twice",
        "description and its hash", "expiry twice", "short hash", "long hash", "description not UTF-8", "empty expiry",
        "vast expiry", "expiry beyond a century", "signed by another than n",
    ],
)  # fmt: skip
def test_fields_missing_doubled_or_senseless_are_refused(fields: list[tuple[str, list[int]]]) -> None:
    """If failing: the hash that is paid isn't the one that was compared, or lnd refuses what was already reserved for."""
    with pytest.raises(ChallengeParseError):
        decode_invoice(invoice(fields=fields))


@pytest.mark.parametrize(
    ("fields", "created_at", "expires_at", "description", "payee"),
    [
        ((P, S, D, ("x", number(60, 2))), 0, 60, "a page", PAYEE),
        ((P, S, D, ("x", [0])), 5, 5, "a page", PAYEE),
        ((P, S, D, ("x", number(MAX_EXPIRY_S, 8))), 2**35 - 1, 2**35 - 1 + MAX_EXPIRY_S, "a page", PAYEE),
        ((("d", []), P, S), 1, 3601, "", PAYEE),
        ((P, S, ("h", [1] * 52)), 1, 3601, "", PAYEE),
        ((P, S, ("d", words("ナンセンス 1杯".encode()))), 1, 3601, "ナンセンス 1杯", PAYEE),
        ((P, S, D, ("n", words(bytes.fromhex(PAYEE)))), 1, 3601, "a page", PAYEE),
        ((P, S, D, ("g", [1] * 9), ("g", [])), 1, 3601, "a page", PAYEE),
    ],
)
def test_optional_fields_are_read(
    fields: list[tuple[str, list[int]]], created_at: int, expires_at: int, description: str, payee: str
) -> None:
    """If failing: an expired invoice looks payable, or invoices that lnd itself makes (no memo) are refused."""
    read = decode_invoice(invoice(fields=fields, created_at=created_at))
    assert (read.created_at, read.expires_at, read.description, read.payee) == (created_at, expires_at, description, payee)


@pytest.mark.parametrize(
    "text",
    [
        "", "1", "ln", "lnbc10n1", " " + INVOICE, INVOICE + "\n", "lightning:" + INVOICE, INVOICE[:40].upper() + INVOICE[40:],
        INVOICE.replace("k", "\u212a", 1), INVOICE.upper().replace("K", "\u212a", 1),
        INVOICE + "é", INVOICE[:-1], INVOICE.replace("100n", "900n"), "lnbc10n1" + "q" * 8000,
        invoice(loose=[1, 0]), invoice(loose=[1, 0, 5]), "\0", "\ud800",
    ],
    ids=itertools.count(),
)  # fmt: skip
def test_what_is_no_invoice_is_refused(text: str) -> None:
    """If failing: another error than ours escapes to a caller who handles requests' errors, or doctored text is paid."""
    with pytest.raises(ChallengeParseError):
        decode_invoice(text)


def test_an_altered_invoice_never_pays_the_same_payee() -> None:
    """If failing: whoever sits in between can raise the price, checksum remade, and the payee still gets it."""
    head, data = taken_apart(INVOICE)
    assert decode_invoice(INVOICE).payee == PAYEE
    with contextlib.suppress(ChallengeParseError):
        assert decode_invoice(remade(head.replace("100n", "900n"), data)).payee != PAYEE


def test_the_longest_invoice_costs_a_bounded_time() -> None:
    """If failing: one answer of a server keeps a thread busy for as long as the server likes."""
    count = (MAX_INVOICE_CHARS - len(INVOICE)) // 3
    text = invoice(fields=[P, S, D, *[("r", [])] * count])
    assert MAX_INVOICE_CHARS - 3 < len(text) <= MAX_INVOICE_CHARS
    started = time.process_time()
    decode_invoice(text)
    assert time.process_time() - started < 5
    with pytest.raises(ChallengeParseError):
        decode_invoice(invoice(fields=[P, S, D, *[("r", [])] * (count + 1)]))


def _exact_msat(head: str) -> Fraction:
    amount = head.removeprefix("lnbcrt").removeprefix("lnbc").removeprefix("lntbs").removeprefix("lntb")
    scale = {"m": 10**8, "u": 10**5, "n": 100, "p": Fraction(1, 10)}.get(amount[-1], 10**11)
    return Fraction(amount.rstrip("munp")) * scale


@settings(deadline=None, max_examples=150)
@given(
    st.text()
    | st.text("lnbctrs1munp023456789q", max_size=40)
    | st.sampled_from([INVOICE, _SPEC_BEANS]).flatmap(st.permutations).map("".join)
)
def test_any_text_is_an_invoice_or_a_parse_error(text: str) -> None:
    """If failing: an error that isn't ours reaches the caller."""
    with contextlib.suppress(ChallengeParseError):
        assert isinstance(decode_invoice(text), Invoice)


@pytest.mark.slow
@settings(deadline=None, max_examples=200)
@given(
    head=st.sampled_from(["lnbc", "lntb", "lntbs", "lnbcrt"]).flatmap(
        lambda prefix: st.from_regex(r"[0-9]{1,22}[munp]?", fullmatch=True).map(lambda amount: prefix + amount)
    )
    | st.just("lnbcrt100n"),
    flips=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 31)), max_size=4),
    cut=st.integers(0, 3),
)
def test_a_doctored_invoice_with_its_checksum_remade_is_read_exactly_or_refused(
    head: str, flips: list[tuple[int, int]], cut: int
) -> None:
    """If failing: an amount is rounded somewhere between the text and the budget, or a broken field raises what isn't ours."""
    _, data = taken_apart(INVOICE)
    for at, word in flips:
        data[at % len(data)] = word
    text = remade(head, data[: len(data) - cut])
    try:
        read = decode_invoice(text)
    except ChallengeParseError:
        return
    assert 0 < read.amount_msat == _exact_msat(head)
    assert len(read.payment_hash) == 32
    assert len(read.payee) == 66
    assert read.expires_at >= read.created_at


@pytest.mark.slow
@settings(deadline=None, max_examples=150)
@given(st.lists(st.tuples(st.sampled_from("psdhnxcm9frqyz"), st.lists(st.integers(0, 31), max_size=60)), max_size=6))
def test_any_fields_give_an_invoice_or_a_parse_error(extra: list[tuple[str, list[int]]]) -> None:
    """If failing: a field that a server makes up raises what isn't ours, or replaces the payment hash."""
    with contextlib.suppress(ChallengeParseError):
        assert decode_invoice(invoice(fields=[P, S, D, *extra])).payment_hash == PAYMENT_HASH


def _read(text: str) -> Invoice | None:
    try:
        return decode_invoice(text)
    except ChallengeParseError:
        return None


@pytest.mark.slow
def test_an_invoice_is_read_as_the_library_reads_it() -> None:
    """If failing: another amount, hash, payee or expiry is checked and booked than the one that the node pays."""
    chance = random.Random(11)
    for n in range(_COMPARED):
        text = signed_invoice(chance)
        read = _read(text.upper() if n % 8 == 0 else text)
        assert read is not None, text
        assert read == library_reads(text), text


@pytest.mark.slow
def test_a_doctored_invoice_is_refused_or_read_as_the_library_reads_it() -> None:
    """If failing: what every other wallet refuses is reserved for, or a server finds fields that only this package sees."""
    chance = random.Random(12)
    outcomes = {True: 0, False: 0}
    for _ in range(_COMPARED):
        text = doctored_invoice(chance)
        read, expected = _read(text), library_reads(text)
        outcomes[expected is None] += 1
        # Of the two this package may refuse more: a human-readable part that the library doesn't look at closely.
        if read is not None or (text.isascii() and text.islower() and _HEAD.match(text)):
            assert read == expected, text
    assert min(outcomes.values()) > _COMPARED / 20


def test_an_invoice_that_was_read_is_remembered_and_cannot_be_changed() -> None:
    """If failing: a purchase verifies its signature several times, or one reader changes what the next one pays."""
    read = decode_invoice(INVOICE)
    assert decode_invoice(INVOICE) is read
    with pytest.raises(FrozenInstanceError):
        read.amount_msat = 1  # type: ignore[misc]


def test_refusals_are_not_remembered_and_the_memory_is_bounded() -> None:
    """If failing: a server that sends ever new invoices fills the memory, or a reader gets the error of another call."""
    errors = []
    for _ in range(2):
        with pytest.raises(ChallengeParseError) as caught:
            decode_invoice(INVOICE[:-1])
        errors.append(caught.value)
    assert errors[0] is not errors[1]
    first = decode_invoice(INVOICE)
    for n in range(1, 200):
        decode_invoice(invoice(created_at=CREATED_AT + n))
    again = decode_invoice(INVOICE)
    assert again == first
    assert again is not first


def test_a_programs_time_limit_is_no_fault_of_the_invoice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Taken for one, the limit would be lost, and a sound challenge refused."""

    class TimeLimitError(Exception):
        pass

    def strike(*_: object) -> None:
        raise TimeLimitError

    text = signed_invoice(random.Random(5))
    before = signal.signal(signal.SIGINT, strike)
    try:
        monkeypatch.setattr(bolt11.Signature, "from_signature_data", lambda **_: signal.raise_signal(signal.SIGINT))
        with pytest.raises(TimeLimitError):
            decode_invoice(text)
    finally:
        signal.signal(signal.SIGINT, before)
    monkeypatch.undo()
    assert decode_invoice(text).bolt11 == text
