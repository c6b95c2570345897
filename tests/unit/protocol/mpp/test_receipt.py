"""A receipt is read tolerantly, and proves nothing."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given, settings, strategies as st
from requests.structures import CaseInsensitiveDict

from routeweiler_sync.protocol import schemes
from routeweiler_sync.protocol.mpp.receipt import MAX_RECEIPT_CHARS, Receipt, receipt_of
from tests.unit.protocol.mpp.samples import PAID, encoded

HASH = bytes(range(32))


@pytest.mark.parametrize("server", PAID)
def test_the_receipt_of_every_server_is_read(server: str) -> None:
    """If failing: a charge that is used up is offered again, and its refusal is told as an error."""
    exchange = PAID[server]
    name, _, value = exchange["accepted_header_lines"][0].partition(": ")
    expected = exchange["receipt"]
    for headers in ({name: value}, CaseInsensitiveDict({name: value}), {name.upper(): value + "=="}):
        read = schemes.receipt_of(headers)
        assert read is not None
        assert (read.status, read.method, read.reference) == ("success", "lightning", expected["reference"])
        assert (read.timestamp, read.challenge_id) == (expected["timestamp"], expected.get("challengeId"))
        assert read.is_for(bytes.fromhex(exchange["invoice_decoded"]["payment_hash"]))
        assert not read.is_for(HASH)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (encoded({}), Receipt()),
        (encoded({"status": 1, "reference": None, "more": [1]}), Receipt()),
        (encoded({"status": "x" * 1_000, "reference": HASH.hex().upper()}), Receipt(reference=HASH.hex().upper())),
        (f"junk, {encoded({'status': 'success'})}", Receipt(status="success")),
        (f'"{encoded({"reference": ""})}"', Receipt(reference="")),
        (base64.b64encode(b'{"status":"?>?>"}').decode(), Receipt(status="?>?>")),
    ],
)
def test_what_is_odd_in_a_receipt_is_left_out(value: str, expected: Receipt) -> None:
    """If failing: an answer that was paid for and delivered ends in an error."""
    assert receipt_of({"Payment-Receipt": value}) == expected


@pytest.mark.parametrize("value", ["", "junk", "bnVsbA", "W10", encoded("[" * 10_000), "A" * (MAX_RECEIPT_CHARS + 4), "\xff", "é"])
def test_what_cant_be_read_is_no_receipt(value: str) -> None:
    """If failing: a server's error is taken for the delivery of what was paid for."""
    assert receipt_of({"Payment-Receipt": value}) is None


def test_an_answer_without_a_receipt_has_none() -> None:
    """If failing: every answer counts as delivered."""
    assert receipt_of({}) is None
    assert receipt_of(None) is None
    assert receipt_of({"Receipt": encoded({})}) is None


def test_the_hash_is_compared_in_any_case() -> None:
    """If failing: a server that writes hex in capitals seems to answer for another payment."""
    assert Receipt(reference=HASH.hex().upper()).is_for(HASH)
    assert not Receipt(reference="").is_for(HASH)
    assert not Receipt().is_for(HASH)


@pytest.mark.slow
@settings(deadline=None, max_examples=300)
@given(
    st.text()
    | st.binary().map(lambda raw: raw.decode("latin-1"))
    | st.dictionaries(st.text(), st.text()).map(json.dumps).map(encoded)
)
def test_any_header_is_a_receipt_or_none(value: str) -> None:
    """If failing: a header raises out of an answer that was paid for."""
    read = receipt_of({"Payment-Receipt": value})
    assert read is None or isinstance(read, Receipt)
