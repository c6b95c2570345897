"""Programs that are wrong: a checker has to say so wherever it is told to ignore it, or it calls the comment needless."""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
from __future__ import annotations

from decimal import Decimal

import routeweiler_sync as requests
import routeweiler_sync.api
import routeweiler_sync.sessions
from routeweiler_sync import BudgetEnvelope, Funding, Ledger, LndClient, PaywallAdapter, Routeweiler, install, payment_of, wrap
from routeweiler_sync.adapters import NoSuchAdapter  # type: ignore[attr-defined]
from routeweiler_sync.exceptions import NoSuchError  # type: ignore[attr-defined]
from routeweiler_sync.testing import NoSuchFake  # type: ignore[attr-defined]


class HalfAWallet:
    """Without `track_payment`: nobody could tell what became of a payment."""

    def pay_invoice(self, bolt11: str, *, max_fee_msat: int) -> bytes:
        return b""

    def get_node_pubkey(self) -> str:
        return ""


class WordyRate:
    quality = "wordy"

    def btc_price(self, currency: str) -> str:
        return "much"


def misspelt(client: LndClient) -> None:
    requests.gett("http://localhost")  # type: ignore[attr-defined]
    requests.get("http://localhost", tiemout=3)  # type: ignore[call-arg]
    requests.Sesion()  # type: ignore[attr-defined]
    requests.sessions.Sesion()  # type: ignore[attr-defined]
    requests.api.gett("http://localhost")  # type: ignore[attr-defined]
    routeweiler_sync.api.gett("http://localhost")  # type: ignore[attr-defined]
    routeweiler_sync.sessions.Sesion()  # type: ignore[attr-defined]
    print(requests.exceptions.Timeot)  # type: ignore[attr-defined]
    requests.Session().gett("http://localhost")  # type: ignore[attr-defined]
    Routeweiler(fundign=[])  # type: ignore[call-arg]
    Routeweiler(budget_envelop=None)  # type: ignore[call-arg]
    requests.Session(fundign=[])  # type: ignore[call-arg]
    PaywallAdapter(max_retrys=3)  # type: ignore[call-arg]
    PaywallAdapter(ledgr="ledger.db")  # type: ignore[call-arg]
    wrap(requests.Session(), fundign=[])  # type: ignore[call-arg]
    Routeweiler.wrap(requests.Session(), fundign=[])  # type: ignore[call-arg]
    install(fundign=[])  # type: ignore[call-arg]
    BudgetEnvelope("a", cap_minor_unit=1)  # type: ignore[call-arg]
    Funding.lightning_lnd(client=client, netwerk="bitcoin")  # type: ignore[call-arg]


def of_the_wrong_type(session: Routeweiler, client: LndClient) -> None:
    Routeweiler(funding=client)  # type: ignore[arg-type]
    Routeweiler(payment_timeout="60")  # type: ignore[arg-type]
    Routeweiler(unpayable="pay")  # type: ignore[arg-type]
    Routeweiler(confirm=lambda: True)  # type: ignore[arg-type,misc]
    Routeweiler(fmv_provider=WordyRate())  # type: ignore[arg-type]
    Routeweiler([])  # type: ignore[call-arg]
    requests.Session(ledger=3)  # type: ignore[arg-type]
    PaywallAdapter(pool_maxsize="5")  # type: ignore[arg-type]
    BudgetEnvelope("a", cap_minor_units=Decimal(1))  # type: ignore[arg-type]
    Funding.lightning_lnd(client=HalfAWallet(), network="bitcoin")  # type: ignore[arg-type]
    Funding.lightning(client=HalfAWallet())  # type: ignore[arg-type]
    session.limit(sats="10")  # type: ignore[arg-type]
    session.limit(10)  # type: ignore[call-arg]
    Ledger.open(3)  # type: ignore[arg-type]
    requests.get(3)  # type: ignore[arg-type]


def without_a_look(session: Routeweiler) -> int:
    """What may be None is looked at first."""
    amount: int = payment_of(session.get("http://localhost")).amount_msat  # type: ignore[union-attr]
    amount += session.quote("GET", "http://localhost").amount_msat  # type: ignore[union-attr]
    return amount


__all__ = ["NoSuchAdapter", "NoSuchError", "NoSuchFake"]
