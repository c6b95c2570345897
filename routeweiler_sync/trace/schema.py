"""The trace event: its parts, and their JSON. Writing events to files is left to `routeweiler_sync.trace.sink`.

No field holds a token, a macaroon or a credential, and user:password@ is cut from every URL and message. The preimage
(``proofValue``) is the payer's proof of payment; without the token it opens nothing. That of a charge (the scheme ``Payment``)
would, so it is left out: there the payment hash is the key.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from datetime import datetime, timezone
from decimal import Decimal, localcontext
from typing import Any

from .._core.money import EXACT
from .._core.urls import without_userinfo, without_userinfos


def new_id() -> str:
    """Return a random UUID (version 4) as text, as ``str(uuid.uuid4())`` does, without its object."""
    digits = os.urandom(16).hex()
    variant = "89ab"[int(digits[16], 16) & 3]
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"


def timestamp(moment: datetime) -> str:
    """Return ``moment`` as ISO 8601 in UTC, with microseconds and ``Z``. All have the same length, so that they sort as text.

    A naive datetime counts as local time.
    """
    moment = moment if moment.tzinfo is timezone.utc else moment.astimezone(timezone.utc)
    return f"{moment.isoformat(timespec='microseconds')[:-6]}Z"  # without its +00:00


def _sats(amount_msat: int) -> int:
    """Return whole sats, rounded up."""
    return -(-amount_msat // 1000)


def _number(amount: Decimal | None) -> int | float | str | None:
    """Return a JSON number from which ``Decimal(str(number))`` gives ``amount`` back, or a string if no double can represent it."""
    if amount is None:
        return None
    if not amount.is_finite():
        return str(amount)
    if (whole := int(amount)) == amount:
        return whole
    with localcontext(EXACT):
        return float(amount) if Decimal(repr(float(amount))) == amount else format(amount, "f")


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceChallenge:
    """The challenge of a 402 that the call received. ``url`` is what answered it, ``amount_msat`` the signed invoice's amount."""

    scheme: str
    url: str
    amount_msat: int | None = None
    network: str | None = None
    payment_hash: str | None = None
    expires_at: datetime | None = None
    scope: str | None = None
    description: str | None = None

    def to_json_dict(self) -> dict[str, Any]:
        """Return the ``challenge`` object of the event's JSON."""
        return {
            "scheme": self.scheme,
            "url": without_userinfo(self.url),
            "amountMsat": self.amount_msat,
            "network": self.network,
            "paymentHash": self.payment_hash,
            "expiresAt": None if self.expires_at is None else timestamp(self.expires_at),
            "scope": self.scope,
            "description": self.description,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class TracePayment:
    """The payment that a call made. With ``reused=True``, an earlier payment whose token it used; that adds nothing to any sum.

    ``payment_hash`` and ``proof_value`` are 64 hex digits. ``proof_value`` is the preimage, None if the node's preimage didn't fit,
    and for a charge.
    ``amount_msat`` doesn't include ``fee_msat``. ``amount_envelope`` is what the envelope was charged, in minor units of its
    currency, with up to six decimal places. ``settlement_latency_ms`` is the time from the payment order to the node's final reply.
    """

    payment_hash: str
    proof_value: str | None = field(default=None, repr=False)
    amount_msat: int
    fee_msat: int = 0
    amount_envelope: Decimal | None = None
    amount_envelope_currency: str | None = None
    fmv_quality: str | None = None
    settlement_latency_ms: int | None = None
    reused: bool = False

    def to_json_dict(self) -> dict[str, Any]:
        """Return the ``payment`` object of the event's JSON.

        ``amountNative`` is in whole sats, rounded up; ``amountMsat`` is exact. ``amountEnvelope`` is a JSON number, or a string if
        no double can represent it (above 15 digits). ``Decimal(str(…))`` gives the exact amount from either.
        """
        return {
            "paymentHash": self.payment_hash,
            "proofType": "preimage",
            "proofValue": self.proof_value,
            "amountNative": _sats(self.amount_msat),
            "amountMsat": self.amount_msat,
            "feeMsat": self.fee_msat,
            "amountNativeCurrency": "btc-lightning",
            "amountEnvelope": _number(self.amount_envelope),
            "amountEnvelopeCurrency": self.amount_envelope_currency,
            "fmvQuality": self.fmv_quality,
            "settlementLatencyMs": self.settlement_latency_ms,
            "reused": self.reused,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceError:
    """Why a call failed. ``code`` is stable (`RouteweilerError.code`), ``message`` is for people."""

    code: str
    message: str

    def to_json_dict(self) -> dict[str, Any]:
        """Return the ``error`` object of the outcome's JSON, with user:password@ cut from URLs in the message."""
        return {"code": self.code, "message": without_userinfos(self.message)}


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceOutcome:
    """How a call ended. ``http_status`` is None if there was no response."""

    http_status: int | None = None
    service_delivered: bool = False
    service_latency_ms: int | None = None
    error: TraceError | None = None

    def to_json_dict(self) -> dict[str, Any]:
        """Return the ``outcome`` object of the event's JSON."""
        return {
            "httpStatus": self.http_status,
            "serviceDelivered": self.service_delivered,
            "serviceLatencyMs": self.service_latency_ms,
            "error": None if self.error is None else self.error.to_json_dict(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceEvent:
    """The event of one call; or, with ``parent_request_id``, of a further payment that the call of that request id made.

    ``event_id`` identifies the event: an SQLite sink stores an event only once, even if it is written twice. ``funding_source`` is
    the node's pubkey (hex). ``authorization_replaced``: a token was sent in place of the caller's own ``Authorization``.

    No content of a string makes building an event fail, because a call must not fail because of its trace.
    """

    request_id: str
    url: str
    method: str
    outcome: TraceOutcome
    timestamp_start: datetime
    timestamp_end: datetime
    agent_id: str | None = None
    session_id: str | None = None
    envelope_id: str | None = None
    policy_hash: str | None = None
    challenge: TraceChallenge | None = None
    selected_rail: str | None = None
    funding_source: str | None = None
    payment: TracePayment | None = None
    parent_request_id: str | None = None
    authorization_replaced: bool = False
    event_id: str = field(default_factory=new_id)

    def to_json_dict(self) -> dict[str, Any]:
        """Return the event as it is written: camelCase keys, ready for `json.dumps`.

        ``parentRequestId`` and ``authorizationReplaced`` are left out if they are None or False.
        """
        parent = {} if self.parent_request_id is None else {"parentRequestId": self.parent_request_id}
        replaced = {"authorizationReplaced": True} if self.authorization_replaced else {}
        return {
            "requestId": self.request_id,
            **parent,
            "agentId": self.agent_id,
            "sessionId": self.session_id,
            "envelopeId": self.envelope_id,
            "policyHash": self.policy_hash,
            "url": without_userinfo(self.url),
            "method": self.method,
            **replaced,
            "challenge": None if self.challenge is None else self.challenge.to_json_dict(),
            "selectedRail": self.selected_rail,
            "fundingSource": self.funding_source,
            "payment": None if self.payment is None else self.payment.to_json_dict(),
            "outcome": self.outcome.to_json_dict(),
            "timestampStart": timestamp(self.timestamp_start),
            "timestampEnd": timestamp(self.timestamp_end),
        }
