"""The event's JSON: the names, the units, and what must never be in it."""

from __future__ import annotations

import dataclasses
import json
import pickle
from datetime import datetime, timedelta, timezone
from decimal import Decimal

import pytest
from hypothesis import example, given, strategies as st

from routeweiler_sync.trace import TracePayment
from routeweiler_sync.trace.schema import _number, timestamp, without_userinfo
from tests.support.trace_events import HASH, PREIMAGE, failed_event, free_event, paid_event


def test_a_paid_call_tells_every_field_of_the_documented_event():
    """Programs written against the documented JSON would miss a field, or read a sum in the wrong unit."""
    assert paid_event(parent_request_id="r1").to_json_dict() == {
        "requestId": "r2",
        "parentRequestId": "r1",
        "agentId": "agent",
        "sessionId": "session",
        "envelopeId": "default",
        "policyHash": "ef" * 32,
        "url": "https://api.example/paid?key=hush#part",
        "method": "GET",
        "challenge": {
            "scheme": "L402",
            "url": "https://api.example/paid?key=hush#part",
            "amountMsat": 10_001,
            "network": "bitcoin-regtest",
            "paymentHash": HASH,
            "expiresAt": "2026-03-01T12:00:01.000000Z",
            "scope": "/paid",
            "description": "see https://api.example/paid",
        },
        "selectedRail": "l402",
        "fundingSource": "02" + "11" * 32,
        "payment": {
            "paymentHash": HASH,
            "proofType": "preimage",
            "proofValue": PREIMAGE,
            "amountNative": 11,
            "amountMsat": 10_001,
            "feeMsat": 1_000,
            "amountNativeCurrency": "btc-lightning",
            "amountEnvelope": 11.001,
            "amountEnvelopeCurrency": "sat",
            "fmvQuality": "exact",
            "settlementLatencyMs": 42,
            "reused": False,
        },
        "outcome": {"httpStatus": 200, "serviceDelivered": True, "serviceLatencyMs": 7, "error": None},
        "timestampStart": "2026-03-01T12:00:00.123456Z",
        "timestampEnd": "2026-03-01T12:00:01.000000Z",
    }


def test_a_free_call_tells_null_where_there_was_nothing():
    """A reader that asks for ``payment`` of a free call would meet a KeyError."""
    event = free_event().to_json_dict()
    absent = ["agentId", "sessionId", "envelopeId", "policyHash", "challenge", "selectedRail", "fundingSource", "payment"]
    assert {name: event[name] for name in absent} == dict.fromkeys(absent)
    assert "parentRequestId" not in event


@pytest.mark.parametrize(("amount_msat", "sats"), [(0, 0), (1, 1), (999, 1), (1_000, 1), (1_001, 2), (10_000, 10)])
def test_sats_are_rounded_up(amount_msat: int, sats: int):
    """A sum of sats rounded down would tell less than was spent."""
    payment = TracePayment(payment_hash=HASH, amount_msat=amount_msat)
    assert payment.to_json_dict()["amountNative"] == sats


@pytest.mark.parametrize("amount", ["0", "10", "0.000001", "0.1", "2.512345", "123456789.123456", "4000000000000.000001"])
def test_no_digit_of_the_envelopes_amount_is_lost_in_json(amount: str):
    """The trace wouldn't add up with the ledger."""
    payment = TracePayment(payment_hash=HASH, amount_msat=1, amount_envelope=Decimal(amount), amount_envelope_currency="usd")
    told = json.loads(json.dumps(payment.to_json_dict()))["amountEnvelope"]
    assert Decimal(str(told)) == Decimal(amount)
    assert isinstance(told, (int, float)) or len(amount) > 16


def test_timestamps_are_utc_and_sort_as_text():
    """Reports sort and filter by the text; a local time among them would fall out of order."""
    east = timezone(timedelta(hours=9))
    assert timestamp(datetime(2026, 3, 1, 9, 0, tzinfo=east)) == "2026-03-01T00:00:00.000000Z"
    moments = [datetime(2026, 3, 1, 0, 0, second, micro, tzinfo=timezone.utc) for second in (0, 1) for micro in (0, 1, 100_000)]
    assert [timestamp(moment) for moment in moments] == sorted(timestamp(moment) for moment in moments)


ZONES = st.none() | st.just(timezone.utc) | st.integers(-1_439, 1_439).map(lambda minutes: timezone(timedelta(minutes=minutes)))


@given(st.datetimes(datetime(1971, 1, 1), datetime(2500, 1, 1)), ZONES)  # noqa: DTZ001  (the zone is drawn)
def test_every_time_is_the_same_moment_in_utc(naive: datetime, zone: timezone | None):
    """A line would tell another moment, or one in a form of its own."""
    moment = naive.replace(tzinfo=zone)
    assert timestamp(moment) == moment.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


@given(st.decimals(allow_nan=False, allow_infinity=False, places=6) | st.decimals(allow_nan=False, allow_infinity=False))
@example(Decimal("-0.0"))
@example(Decimal("1E+30"))
@example(Decimal("4000000000000.000001"))
def test_every_amount_is_told_exactly_and_whole_ones_as_integers(amount: Decimal):
    """A sum over the trace would be off by what a double can't hold, or a reader would meet a fraction of nothing."""
    told = _number(amount)
    assert Decimal(str(told)) == amount
    assert isinstance(told, int) == (amount % 1 == 0 if amount.adjusted() < 25 else amount.as_tuple().exponent >= 0)


@pytest.mark.parametrize("text", ["NaN", "Infinity"])
def test_no_amount_makes_an_event_fail(text: str):
    """What isn't a number would cost the line of a payment."""
    assert _number(Decimal(text)) == text


@pytest.mark.parametrize(
    ("url", "written"),
    [
        ("https://user:hush@api.example/a@b?c=d@e", "https://api.example/a@b?c=d@e"),
        ("https://hush@api.example", "https://api.example"),
        (" https://user:hush@api.example/", " https://api.example/"),
        ("https://user:hu@sh@api.example:8443/", "https://api.example:8443/"),
        ("https://user:hush@[::1]:80/", "https://[::1]:80/"),
        ("user:hush@api.example/x", "api.example/x"),
        ("//user:hush@api.example/x", "//api.example/x"),
        ("http://user:hu/sh@api.example/", "http://api.example/"),
        ("http://user:h#ush@api.example/", "http://api.example/"),
        ("https://api.example/users/@me", "https://api.example/users/@me"),
        ("https://api.example:8080/users/@me?mail=a@b", "https://api.example:8080/users/@me?mail=a@b"),
        ("https://[::1]/@me", "https://[::1]/@me"),
        ("", ""),
    ],
)
def test_a_password_in_a_url_is_never_written(url: str, written: str):
    """Passwords of other services would lie in a log file."""
    assert without_userinfo(url) == written
    assert free_event(url=url).to_json_dict()["url"] == written
    challenge = dataclasses.replace(paid_event().challenge, url=url)
    assert paid_event(challenge=challenge).to_json_dict()["challenge"]["url"] == written
    assert "hush" not in failed_event(f"Failed to parse: {url}").to_json_dict()["outcome"]["error"]["message"] or "://" not in url


def test_the_preimage_is_in_no_repr():
    """A debug log of events would hold proofs of payment in clear."""
    assert PREIMAGE not in repr(paid_event())


def test_events_are_values_that_travel():
    """Process pools hand events over by pickle."""
    event = paid_event()
    assert pickle.loads(pickle.dumps(event)) == event
    assert free_event().event_id != free_event().event_id
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.url = "https://other.example"
