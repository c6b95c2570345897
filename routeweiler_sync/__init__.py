"""routeweiler_sync: a `requests.Session` that pays for what it fetches.

If a server answers 402 with an L402 challenge, the session pays the Lightning invoice from your own wallet (lnd, LNbits, or one
with Nostr Wallet Connect), within a budget, writes a trace line, and returns a plain `requests.Response`.

    from routeweiler_sync import Funding, LndClient, Routeweiler

    client = LndClient.from_env()
    with Routeweiler(funding=[Funding.lightning_lnd(client=client, network="bitcoin")]) as session:
        response = session.get("https://example.com/paid")

A program that uses `requests` changes one line instead. The node and the budget are then in the environment:

    import routeweiler_sync as requests

    response = requests.get("https://example.com/paid")

This module has everything that `requests` has. All are the same objects, except ``Session``, ``session``, ``request`` and the
verbs, which pay. ``__version__``, ``__title__`` and the like are those of `requests`; for the version of this package ask
``importlib.metadata``.

What only paying needs (grpc, bolt11, pymacaroons, tenacity) is imported on the first 402, not here, and sqlite3 when a ledger is
first opened. Most public names are imported when they are first used.
"""

from __future__ import annotations

from ._core import early_stop as _early_stop  # isort: skip  # noqa: F401 - about the imports that follow

import importlib
from typing import TYPE_CHECKING, Any

import requests
from requests import (
    ConnectionError as ConnectionError,
    ConnectTimeout as ConnectTimeout,
    HTTPError as HTTPError,
    JSONDecodeError as JSONDecodeError,
    PreparedRequest as PreparedRequest,
    ReadTimeout as ReadTimeout,
    Request as Request,
    RequestException as RequestException,
    Response as Response,
    Timeout as Timeout,
    TooManyRedirects as TooManyRedirects,
    URLRequired as URLRequired,
    adapters as adapters,
    auth as auth,
    certs as certs,
    codes as codes,
    compat as compat,
    cookies as cookies,
    exceptions as exceptions,
    hooks as hooks,
    models as models,
    status_codes as status_codes,
    structures as structures,
    utils as utils,
)

from . import api as api, sessions as sessions
from .__version__ import (
    __author__ as __author__,
    __author_email__ as __author_email__,
    __build__ as __build__,
    __cake__ as __cake__,
    __copyright__ as __copyright__,
    __description__ as __description__,
    __license__ as __license__,
    __title__ as __title__,
    __url__ as __url__,
    __version__ as __version__,
)
from ._core.forks import importing as _importing
from .api import delete, get, head, options, patch, post, put, request
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
from .paywall.call import payment_of
from .sessions import Session, session
from .transport.adapter import PaywallAdapter
from .transport.response import PaidResponse
from .transport.session import Routeweiler, wrap

if TYPE_CHECKING:
    from requests import check_compatibility as check_compatibility, help as help
    from requests.exceptions import FileModeWarning as FileModeWarning

    from . import packages as packages
    from .budgets.coingecko import CoinGecko
    from .budgets.fmv import FmvProvider, StaticRate
    from .budgets.schema import BudgetEnvelope
    from .funding import Funding
    from .funding.lightning import LightningFundingSource, LightningNodeClient, PaymentStatus
    from .funding.lnbits.client import LnbitsClient
    from .funding.lnd.client import LndClient
    from .funding.lnd.rest import LndRestClient
    from .funding.nwc.client import NwcClient
    from .funding.replies import WalletAnswer, WalletReply
    from .funding.wallet import WalletClient
    from .ledger.ledger import Ledger
    from .ledger.spending import Spending
    from .ledger.types import EnvelopeRow, PaymentRow, PaymentState
    from .patching import install, uninstall
    from .payments.types import Payment, Quote
    from .policy.dsl import Policy, PolicyRule, RuleMatch
    from .trace.schema import TraceEvent
    from .trace.sink import TraceSink
else:
    from requests import packages

#: Public names, each with the module that is imported when the name is first used.
_LAZY = {
    "BudgetEnvelope": "budgets.schema",
    "CoinGecko": "budgets.coingecko",
    "EnvelopeRow": "ledger.types",
    "FmvProvider": "budgets.fmv",
    "StaticRate": "budgets.fmv",
    "Ledger": "ledger.ledger",
    "Payment": "payments.types",
    "PaymentRow": "ledger.types",
    "PaymentState": "ledger.types",
    "Quote": "payments.types",
    "Spending": "ledger.spending",
    "Funding": "funding.lightning",
    "LightningFundingSource": "funding.lightning",
    "LightningNodeClient": "funding.lightning",
    "LndClient": "funding.lightning",
    "LndRestClient": "funding.lightning",
    "LnbitsClient": "funding.lightning",
    "NwcClient": "funding.lightning",
    "PaymentStatus": "funding.lightning",
    "Policy": "policy.dsl",
    "PolicyRule": "policy.dsl",
    "RuleMatch": "policy.dsl",
    "TraceEvent": "trace.schema",
    "TraceSink": "trace.sink",
    "WalletAnswer": "funding.replies",
    "WalletClient": "funding.wallet",
    "WalletReply": "funding.replies",
    "install": "patching",
    "uninstall": "patching",
}


if not TYPE_CHECKING:  # with a __getattr__ here, a type checker would accept any misspelt name

    def __getattr__(name: str) -> Any:
        if name in _LAZY:
            with _importing:
                value = getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
        elif name == "help":  # `requests` itself imports it only when it is used
            return importlib.import_module(f"{__name__}.help")
        elif not name.startswith("_") and hasattr(requests, name):
            return getattr(requests, name)  # also names that aren't meant to be public: programs use them
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
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
    "ConnectTimeout",
    "ConnectionError",
    "EnvelopeExpiredError",
    "EnvelopeFrozenError",
    "EnvelopeNotFoundError",
    "EnvelopeRow",
    "FmvProvider",
    "FmvUnavailableError",
    "Funding",
    "FundingError",
    "HTTPError",
    "InvoicePaymentError",
    "JSONDecodeError",
    "Ledger",
    "LedgerError",
    "LightningFundingSource",
    "LightningNodeClient",
    "LnbitsClient",
    "LndClient",
    "LndRestClient",
    "NoFeasibleRailError",
    "NoFundingForRailError",
    "NwcClient",
    "PaidResponse",
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
    "PreparedRequest",
    "Quote",
    "RailNotSupportedError",
    "ReadTimeout",
    "Request",
    "RequestException",
    "Response",
    "Routeweiler",
    "RouteweilerError",
    "RuleMatch",
    "Session",
    "Spending",
    "StaticRate",
    "Timeout",
    "TokenRefusedError",
    "TooManyRedirects",
    "TraceEvent",
    "TraceSink",
    "URLRequired",
    "UnreplayableBodyError",
    "WalletAnswer",
    "WalletClient",
    "WalletReply",
    "codes",
    "delete",
    "get",
    "head",
    "install",
    "options",
    "packages",
    "patch",
    "payment_of",
    "post",
    "put",
    "request",
    "session",
    "uninstall",
    "utils",
    "wrap",
]
