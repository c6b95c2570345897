"""routeweiler_sync: a `requests.Session` that pays for what it fetches.

Where a server answers 402 with an L402 challenge, the session pays the Lightning invoice through your own LND node, within a
budget, leaves a trace, and hands back a plain `requests.Response`.

    from routeweiler_sync import Funding, LndClient, Routeweiler

    client = LndClient.from_env()
    with Routeweiler(funding=[Funding.lightning_lnd(client=client, network="bitcoin")]) as session:
        response = session.get("https://example.com/paid")

What only paying needs (grpc, bolt11, pymacaroons, tenacity, sqlite3) is imported on the first 402, not here.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from .adapter import PaywallAdapter
from .budgets.schema import BudgetEnvelope, EnvelopeRow, PaymentRow, PaymentState
from .call import Payment, payment_of
from .client import Routeweiler
from .errors import (
    BudgetError,
    BudgetExceededError,
    ChallengeExpiredError,
    ChallengeMismatchError,
    ChallengeParseError,
    EnvelopeExpiredError,
    EnvelopeFrozenError,
    EnvelopeNotFoundError,
    FmvUnavailableError,
    FundingError,
    InvoicePaymentError,
    LedgerError,
    NoFeasibleRailError,
    NoFundingForRailError,
    PaymentDeclinedError,
    PaymentPendingError,
    PolicyDeniedError,
    PolicyMaxPerCallExceededError,
    PreimageMismatchError,
    RailNotSupportedError,
    RouteweilerError,
    TokenRefusedError,
    UnreplayableBodyError,
)
from .forks import importing as _importing

if TYPE_CHECKING:
    from .budgets.coingecko import CoinGecko
    from .budgets.fmv import FmvProvider, StaticRate
    from .budgets.ledger import Ledger
    from .checkout import Quote
    from .funding import Funding
    from .funding.lightning import LightningFundingSource, LightningNodeClient, LndClient, PaymentStatus
    from .policy.dsl import Policy, PolicyRule, RuleMatch
    from .trace.schema import TraceEvent
    from .trace.sink import TraceSink

__version__ = "0.1.0"

#: Names whose modules are imported when they are first asked for.
_LAZY = {
    "CoinGecko": "budgets.coingecko",
    "FmvProvider": "budgets.fmv",
    "StaticRate": "budgets.fmv",
    "Ledger": "budgets.ledger",
    "Quote": "checkout",
    "Funding": "funding",
    "LightningFundingSource": "funding.lightning",
    "LightningNodeClient": "funding.lightning",
    "LndClient": "funding.lightning",
    "PaymentStatus": "funding.lightning",
    "Policy": "policy.dsl",
    "PolicyRule": "policy.dsl",
    "RuleMatch": "policy.dsl",
    "TraceEvent": "trace.schema",
    "TraceSink": "trace.sink",
}


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with _importing:
        value = getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})


__all__ = [
    "BudgetEnvelope",
    "BudgetError",
    "BudgetExceededError",
    "ChallengeExpiredError",
    "ChallengeMismatchError",
    "ChallengeParseError",
    "CoinGecko",
    "EnvelopeExpiredError",
    "EnvelopeFrozenError",
    "EnvelopeNotFoundError",
    "EnvelopeRow",
    "FmvProvider",
    "FmvUnavailableError",
    "Funding",
    "FundingError",
    "InvoicePaymentError",
    "Ledger",
    "LedgerError",
    "LightningFundingSource",
    "LightningNodeClient",
    "LndClient",
    "NoFeasibleRailError",
    "NoFundingForRailError",
    "Payment",
    "PaymentDeclinedError",
    "PaymentPendingError",
    "PaymentRow",
    "PaymentState",
    "PaymentStatus",
    "PaywallAdapter",
    "Policy",
    "PolicyDeniedError",
    "PolicyMaxPerCallExceededError",
    "PolicyRule",
    "PreimageMismatchError",
    "Quote",
    "RailNotSupportedError",
    "Routeweiler",
    "RouteweilerError",
    "RuleMatch",
    "StaticRate",
    "TokenRefusedError",
    "TraceEvent",
    "TraceSink",
    "UnreplayableBodyError",
    "payment_of",
]
