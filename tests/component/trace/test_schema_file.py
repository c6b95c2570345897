"""The JSON Schema in docs/reference is that of the events that are really written."""

from __future__ import annotations

import copy
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import requests

from routeweiler_sync import (
    BudgetExceededError,
    PaymentPendingError,
    Policy,
    PolicyRule,
    PreimageMismatchError,
    RuleMatch,
    TraceSink,
)
from routeweiler_sync.testing import FakeLnd, Paywall
from tests.support.accounts import Books
from tests.support.trace_schema import SCHEMA, check, faults

jsonschema = pytest.importorskip("jsonschema")

#: No server that can be paid leaves these out, and every event has them.
NEVER_NULL = {f"challenge.{name}" for name in ("amountMsat", "network", "paymentHash", "expiresAt")}


def _walked(event: dict[str, Any], path: str = "") -> Iterator[tuple[str, bool]]:
    """Yield each field of an event by its path, and whether it is null."""
    for name, value in event.items():
        if isinstance(value, dict):
            yield path + name, False
            yield from _walked(value, f"{name}.")
        else:
            yield path + name, value is None


def _fields(schema: dict[str, Any]) -> Iterator[tuple[str, bool]]:
    """Yield each field of the schema by its path, and whether it may be null."""
    for prefix, part in {"": schema, **{f"{name}.": part for name, part in schema["$defs"].items()}}.items():
        for name, said in part["properties"].items():
            kinds = {"null"} & {each.get("type") for each in said.get("anyOf", ())} or "null" in said.get("type", ())
            yield prefix + name, bool(kinds) or None in said.get("enum", ())


def test_every_kind_of_event_is_as_the_schema_says(
    make_session, paywall: Paywall, lnd: FakeLnd, books: Books, tmp_path: Path
) -> None:
    """Who checks traces by it would throw away good events; or would build on a field that is never there."""
    forms = {"plain.jsonl": {}, "redacted.jsonl": {"redact": True}, "dropped.jsonl": {"url_mode": "drop"}}
    policy = Policy(rules=[PolicyRule("all", when=RuleMatch(scheme="L402"))])
    lnd.fee_msat = 1_000
    for name, options in forms.items():
        sink = TraceSink.jsonl(tmp_path / name, **options)
        labelled = make_session(trace_sink=sink, agent_id="agent", session_id="session", policy=policy)
        unlimited = make_session(trace_sink=sink, budget_envelope=None)
        unlimited.get(paywall.url_for("/free"))
        labelled.get(paywall.url, headers={"Authorization": "Basic dXNlcjpwYXNz"})  # paid
        make_session(trace_sink=sink).get(paywall.url)  # a token is used
        with Paywall(lnd, scheme="Payment") as charging:
            unlimited.get(charging.url)
        with Paywall(lnd) as second, Paywall(lnd, respond=lambda _: (302, {"Location": second.url}, b"")) as first:
            labelled.get(first.url)  # two payments in one call
        with Paywall(lnd, price_msat=2_000_000) as dear, pytest.raises(BudgetExceededError):
            make_session(trace_sink=sink).get(dear.url)
        with Paywall(lnd) as other:
            lnd.wrong_preimage_next()
            with pytest.raises(PreimageMismatchError):
                labelled.get(other.url)
        with Paywall(lnd) as slow:
            lnd.hang_next()
            with pytest.raises(PaymentPendingError):
                make_session(trace_sink=sink, payment_timeout=1.0).get(slow.url)
            lnd.release()
            assert labelled.recover()
        with pytest.raises(requests.ConnectionError):
            unlimited.get("http://127.0.0.1:1/")
        paywall.revoke_tokens()
    make_session(trace_sink=TraceSink.sqlite(tmp_path / "trace.db")).get(paywall.url)

    events = {name: [json.loads(line) for line in (tmp_path / name).read_text("utf-8").splitlines()] for name in forms}
    for written in events.values():
        check(written)
    with closing(sqlite3.connect(tmp_path / "trace.db")) as trace:
        check(json.loads(payload) for (payload,) in trace.execute("SELECT payload FROM trace_events"))
    every = [event for written in events.values() for event in written]
    assert {event["method"] for event in every} == {"GET", "RECOVER"}
    seen = {each for event in every for each in _walked(event)}
    known = dict(_fields(json.loads(SCHEMA.read_text("utf-8"))))
    assert {path for path, is_null in seen if not is_null} == set(known), "each field is written with a value, and no other"
    nulls = {path for path, is_null in seen if is_null}
    assert {path for path, may_be_null in known.items() if may_be_null} - nulls == NEVER_NULL


@pytest.mark.parametrize(
    ("place", "change"),
    [
        ((), {"newField": 1}),
        (("payment",), {"amountMsat": 10.5}),
        (("payment",), {"paymentHash": "ab"}),
        (("payment",), {"proofType": "receipt"}),
        (("outcome",), {"httpStatus": "200"}),
        (("challenge",), {"scheme": "Basic"}),
        ((), {"timestampStart": "2026-03-01 12:00:00"}),
        ((), {"selectedRail": "card"}),
    ],
)
def test_the_schema_finds_what_is_wrong(
    session, paywall: Paywall, books: Books, place: tuple[str, ...], change: dict[str, Any]
) -> None:
    """A schema that lets everything pass is worth nothing."""
    session.get(paywall.url)
    (event,) = books.lines
    assert faults(event) == []
    wrong = copy.deepcopy(event)
    part = wrong
    for name in place:
        part = part[name]
    part.update(change)
    assert len(faults(wrong)) == 1
    for name in event:
        assert faults({key: value for key, value in event.items() if key != name}), f"{name} isn't required"
