"""What a session is given: refused at once where it can't be, taken as meant where it can."""

from __future__ import annotations

import uuid
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from routeweiler_sync import (
    BudgetEnvelope,
    Ledger,
    LedgerError,
    PaywallAdapter,
    Routeweiler,
    Session,
)
from routeweiler_sync.testing import FakeLnd, Paywall
from tests.support.accounts import Books


@pytest.mark.parametrize(
    "bad",
    [
        {"trace_sink": 5},
        {"budget_envelope": 1_000},
        {"policy": {"rules": []}},
        {"funding": "node"},
        {"funding": [None]},
        {"confirm": "yes"},
        {"fmv_provider": 60_000},
        {"payment_timeout": float("inf")},
        {"payment_timeout": "60"},
        {"payment_timeout": 10**400},
        {"payment_timeout": Decimal("NaN")},
        {"payment_timeout": Decimal("sNaN")},
    ],
)
def test_an_impossible_argument_is_refused_at_construction(make_session, bad: dict[str, Any]) -> None:
    """Found at the first 402, or after a payment, it loses what was bought."""
    with pytest.raises(ValueError, match=next(iter(bad))):
        make_session(**bad)


def test_a_client_is_no_funding_source_and_a_source_no_list(make_session, lnd: FakeLnd) -> None:
    """The two likeliest mistakes."""
    with pytest.raises(ValueError, match="lightning_lnd"):
        make_session(funding=[lnd.client()])
    with pytest.raises(ValueError, match="lightning_lnd"):
        make_session(funding=lnd.funding())
    for fee in (1.5, -1, "1", True):
        with pytest.raises(ValueError, match="max_fee_msat"):
            lnd.funding(max_fee_msat=fee)
    with pytest.raises(ValueError, match="timeout_seconds"):
        lnd.client(timeout_seconds=float("inf"))


def test_an_impossible_ledger_is_refused_at_construction(tmp_path: Path, monkeypatch) -> None:
    """And a relative one is of the folder where the session was made."""
    for bad in (123, "", ":memory:", "redis://x", "~nobody-of-this-name/ledger.db"):
        with pytest.raises(LedgerError):
            Routeweiler(ledger=bad)  # type: ignore[arg-type]
    monkeypatch.chdir(tmp_path)
    session = Routeweiler(ledger="here.db")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert session._payer.ledger.url == Ledger.open(tmp_path / "here.db").url


def test_a_path_is_a_trace_and_a_uuid_an_id(make_session, paywall: Paywall, books: Books, tmp_path: Path) -> None:
    """What a user of requests types first."""
    session_id = uuid.uuid4()
    make_session(trace_sink=str(books.trace_path), session_id=session_id).get(paywall.url)
    assert books.lines[0]["sessionId"] == str(session_id)


def test_arguments_of_unusual_types_are_accepted(make_session, paywall: Paywall, lnd: FakeLnd) -> None:
    """Generators, Decimals and a subclass with a field of its own mean what they say."""
    import dataclasses

    envelope = BudgetEnvelope("globs", allowed_origins_glob=(glob for glob in ("127.0.0.1:*",)))  # type: ignore[arg-type]
    assert envelope.allowed_origins_glob == ("127.0.0.1:*",)
    with pytest.raises(ValueError, match="allowed_origins_glob"):
        BudgetEnvelope("none", allowed_origins_glob=None)  # type: ignore[arg-type]

    @dataclasses.dataclass(frozen=True)
    class Team(BudgetEnvelope):
        team: str = "ours"

    session = make_session(budget_envelope=Team("team", per_call_minor_units=100), payment_timeout=Decimal(30))
    assert session.get(paywall.url).status_code == 200


def test_bad_arguments_are_refused_at_construction(make_session) -> None:
    """Bad input gets a clear error before money moves."""
    with pytest.raises(ValueError, match="payment_timeout"):
        make_session(payment_timeout=0)
    with pytest.raises(ValueError, match="unpayable"):
        make_session(unpayable="ignore")
    with pytest.raises(TypeError):
        make_session(budget="misspelt")
    for bad in ({"per_call_minor_units": -1}, {"cap_currency": "doge"}, {"per_call_minor_units": 1.5}, {"allowed_rails": "l402"}):
        with pytest.raises(ValueError, match="envelope"):
            BudgetEnvelope("x", **bad)


def test_arguments_of_a_wrong_type_are_refused_at_construction() -> None:
    """A misspelled limit would be no limit."""
    with pytest.raises(TypeError):
        Routeweiler(budget="10 sat")
    with pytest.raises(TypeError):
        Routeweiler([])  # type: ignore[misc]
    with pytest.raises(TypeError):
        Session(budget_envelop=None)
    with pytest.raises(TypeError):
        PaywallAdapter(fundings=[])
