"""Trace events for the tests of this folder and of the component tests."""

from __future__ import annotations

from datetime import datetime, timezone
from decimal import Decimal
from typing import Any

from routeweiler_sync.trace import TraceChallenge, TraceError, TraceEvent, TraceOutcome, TracePayment

START = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=timezone.utc)
END = datetime(2026, 3, 1, 12, 0, 1, tzinfo=timezone.utc)
HASH = "ab" * 32
PREIMAGE = "cd" * 32


def free_event(request_id: str = "r1", **changes: Any) -> TraceEvent:
    """A call that met no paywall."""
    fields: dict[str, Any] = {
        "request_id": request_id,
        "url": "https://api.example/free",
        "method": "GET",
        "outcome": TraceOutcome(http_status=200, service_delivered=True, service_latency_ms=7),
        "timestamp_start": START,
        "timestamp_end": END,
    }
    return TraceEvent(**{**fields, **changes})


def paid_event(request_id: str = "r2", **changes: Any) -> TraceEvent:
    """A call that paid 10 001 msat and 1 000 msat of fees."""
    fields: dict[str, Any] = {
        "url": "https://api.example/paid?key=hush#part",
        "agent_id": "agent",
        "session_id": "session",
        "envelope_id": "default",
        "policy_hash": "ef" * 32,
        "challenge": TraceChallenge(
            scheme="L402",
            url="https://api.example/paid?key=hush#part",
            amount_msat=10_001,
            network="bitcoin-regtest",
            payment_hash=HASH,
            expires_at=END,
            scope="/paid",
            description="see https://api.example/paid",
        ),
        "selected_rail": "l402",
        "funding_source": "02" + "11" * 32,
        "payment": TracePayment(
            payment_hash=HASH,
            proof_value=PREIMAGE,
            amount_msat=10_001,
            fee_msat=1_000,
            amount_envelope=Decimal("11.001"),
            amount_envelope_currency="sat",
            fmv_quality="exact",
            settlement_latency_ms=42,
        ),
    }
    return free_event(request_id, **{**fields, **changes})


def failed_event(message: str, **changes: Any) -> TraceEvent:
    """A call that ended in an error."""
    return free_event(outcome=TraceOutcome(error=TraceError(code="network_error", message=message)), **changes)
