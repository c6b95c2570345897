"""A program that pays, and uses what there is for that: sessions, funding, budget, policy, ledger, trace, errors.

Runs against a wallet and a paywall of whoever calls `main`.
"""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import requests
import requests.adapters

import routeweiler_sync
from routeweiler_sync import (
    BudgetEnvelope,
    CoinGecko,
    EnvelopeRow,
    FmvProvider,
    Funding,
    FundingError,
    InvoicePaymentError,
    Ledger,
    LightningFundingSource,
    LightningNodeClient,
    LnbitsClient,
    LndClient,
    LndRestClient,
    NwcClient,
    PaidResponse,
    Payment,
    PaymentRow,
    PaymentState,
    PaymentStatus,
    PaywallAdapter,
    Policy,
    PolicyRule,
    Quote,
    Routeweiler,
    RouteweilerError,
    RuleMatch,
    Session,
    Spending,
    StaticRate,
    TraceEvent,
    TraceSink,
    WalletClient,
    install,
    payment_of,
    uninstall,
    wrap,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack, assert_type

    from routeweiler_sync.settings import Settings
else:

    def assert_type(value, kind):
        return value


class Wallet:
    """A wallet of the user's own, around one that is there: satisfies `LightningNodeClient` without naming it."""

    def __init__(self, inner: LightningNodeClient) -> None:
        self.inner = inner

    def pay_invoice(self, bolt11: str, *, max_fee_msat: int) -> bytes:
        if not bolt11:
            raise FundingError("no invoice; nothing was spent")
        try:
            return self.inner.pay_invoice(bolt11, max_fee_msat=max_fee_msat)
        except InvoicePaymentError as error:
            assert_type(error.failure_reason, str | None)
            raise InvoicePaymentError("no", failure_reason=error.failure_reason, payment_hash=error.payment_hash) from error

    def track_payment(self, payment_hash: bytes) -> PaymentStatus:
        status = self.inner.track_payment(payment_hash)
        return PaymentStatus(
            state=status.state,
            preimage=status.preimage,
            amount_msat=status.amount_msat,
            fee_msat=status.fee_msat,
            failure_reason=status.failure_reason,
        )

    def get_node_pubkey(self) -> str:
        return self.inner.get_node_pubkey()


class Peg:
    """A rate of the user's own: satisfies `FmvProvider`."""

    quality = "peg"

    def btc_price(self, currency: str) -> Decimal:
        return Decimal(60_000)


class Crawler(Routeweiler):
    """A subclass with arguments of its own, that passes the others on."""

    def __init__(self, agent: str, **settings: Unpack[Settings]) -> None:
        super().__init__(**settings)
        self.headers["User-Agent"] = agent

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        kwargs.setdefault("timeout", 30)
        return super().send(request, **kwargs)


class EnvironmentCrawler(Session):
    """A subclass of what the environment configures."""

    def __init__(self, agent: str, **settings: Unpack[Settings]) -> None:
        super().__init__(**settings)
        self.headers["User-Agent"] = agent


class Retrying:
    """A mixin, in front of the session as mixins are."""

    def __init__(self, *args: Any, tries: int = 3, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tries = tries


class RetryingRouteweiler(Retrying, Routeweiler):
    pass


class NamedAdapter(PaywallAdapter):
    """A user's adapter that pays."""

    def __init__(self, name: str, **kwargs: Any) -> None:
        self.name = name
        super().__init__(**kwargs)


def wants_requests(session: requests.Session, url: str) -> requests.Response:
    """As libraries are written that take a session."""
    return session.get(url, timeout=30)


def wants_adapter(adapter: requests.adapters.HTTPAdapter) -> requests.adapters.BaseAdapter:
    return adapter


def confirmed(quote: Quote) -> bool:
    assert_type(quote.url, str)
    assert_type(quote.amount_msat, int)
    assert_type(quote.max_fee_msat, int)
    assert_type(quote.amount_minor_units, Decimal)
    assert_type(quote.currency, str)
    assert_type(quote.scope, str)
    assert_type(quote.payment_hash, str)
    assert_type(quote.description, str)
    assert_type(quote.expires_at, datetime)
    return quote.amount_msat <= 1_000_000


def policy() -> Policy:
    rules = [
        PolicyRule("not there", when=RuleMatch(url_matches="https://*.denied.test/*"), deny=True, reason="no"),
        PolicyRule(
            "dear", when=RuleMatch(any=[RuleMatch(scheme="L402"), RuleMatch(network="bitcoin")]), max_per_call_minor_units=1000
        ),
        PolicyRule("rail", when=RuleMatch(scheme="LSAT"), prefer=["l402"]),
    ]
    made = Policy(rules=rules, default_rail="l402", currency="sat")
    assert_type(made.policy_hash, str)
    assert_type(made.rules, Sequence[PolicyRule])
    assert_type(Policy.from_dict({"rules": []}), Policy)
    return made


def funding_of(client: LightningNodeClient) -> list[LightningFundingSource]:
    funding = Funding.lightning_lnd(client=Wallet(client), network="bitcoin-regtest", node_pubkey=None, max_fee_msat=None)
    assert_type(funding, LightningFundingSource)
    made = LightningFundingSource.create(client, "bitcoin-regtest", max_fee_msat=10_000)
    assert_type(made, LightningFundingSource)
    return [funding]


def funding_without_a_network(uri: str) -> list[LightningFundingSource]:
    """Of any wallet."""
    made = [
        Funding.lightning(client=LnbitsClient("https://lnbits.example", "key-of-a-wallet", timeout_seconds=45)),
        Funding.lightning(client=LndRestClient("https://localhost:8080", macaroon_path="payer.macaroon", tls_cert_path=Path("c"))),
        Funding.lightning(client=NwcClient(uri), network="bitcoin", max_fee_msat=10_000),
        Funding.lightning(client=LndClient.from_env()),
        Funding.lightning(client=LnbitsClient.from_env()),
        Funding.lightning(client=LndRestClient.from_env()),
        Funding.lightning(client=NwcClient.from_env()),
    ]
    assert_type(made[0], LightningFundingSource)
    wallets: list[WalletClient] = [LndRestClient.from_env(), LnbitsClient.from_env(), NwcClient.from_env(), LndClient.from_env()]
    return made + [Funding.lightning(client=wallet) for wallet in wallets]


def clients() -> list[LndClient]:
    """As they are made; none of these is asked anything."""
    named = LndClient(
        "localhost", grpc_port=10009, macaroon_path=Path("admin.macaroon"), tls_cert_path="tls.cert", timeout_seconds=60
    )
    inline = LndClient("localhost", 10009, macaroon_hex="00", tls_cert_pem="")
    made: list[LndClient] = [named, inline]
    if "ROUTEWEILER_LNDCONNECT" in os.environ:
        made += [LndClient.from_env(), LndClient.from_lndconnect(os.environ["ROUTEWEILER_LNDCONNECT"])]
    return made


def lnd_by_hand(client: LndClient, bolt11: str) -> None:
    """What the client of lnd offers by itself; type-checked only."""
    assert_type(client.pay_invoice(bolt11, max_fee_msat=1), bytes)
    assert_type(client.send_payment_sync(bolt11).payment_preimage, bytes)
    assert_type(client.get_node_pubkey(), str)
    assert_type(client.track_payment(b"").state == "succeeded", bool)
    assert_type(client.get_info().network, str)
    client.close()
    node: LightningNodeClient = client
    assert isinstance(node, LightningNodeClient)


def told(error: RouteweilerError) -> str:
    assert_type(error.spent, bool | None)
    assert_type(error.payment_hash, str | None)
    assert_type(error.code, str)
    match error.spent:
        case True:
            return "spent"
        case False:
            return "not spent"
        case None:
            return "not known yet"


#: Every error there is; each tells what became of the money.
ERRORS: list[type[RouteweilerError]] = [
    routeweiler_sync.BudgetError,
    routeweiler_sync.BudgetExceededError,
    routeweiler_sync.ChallengeExpiredError,
    routeweiler_sync.ChallengeMismatchError,
    routeweiler_sync.ChallengeParseError,
    routeweiler_sync.EnvelopeExpiredError,
    routeweiler_sync.EnvelopeFrozenError,
    routeweiler_sync.EnvelopeNotFoundError,
    routeweiler_sync.FmvUnavailableError,
    routeweiler_sync.FundingError,
    routeweiler_sync.InvoicePaymentError,
    routeweiler_sync.LedgerError,
    routeweiler_sync.NoFeasibleRailError,
    routeweiler_sync.NoFundingForRailError,
    routeweiler_sync.PaymentDeclinedError,
    routeweiler_sync.PaymentPendingError,
    routeweiler_sync.PolicyDeniedError,
    routeweiler_sync.PolicyMaxPerCallExceededError,
    routeweiler_sync.PreimageMismatchError,
    routeweiler_sync.RailNotSupportedError,
    routeweiler_sync.TokenRefusedError,
    routeweiler_sync.UnreplayableBodyError,
]


def paid_by(response: PaidResponse) -> Payment | None:
    """What the verbs return knows its payment."""
    return response.payment


def bill(session: Routeweiler) -> str:
    """What it cost."""
    spending = session.spending()
    assert_type(spending, Spending)
    assert_type(spending.total_msat, int)
    assert_type(spending.fees_msat, int)
    assert_type(spending.payments, int)
    assert_type(spending.calls, int | None)
    assert session.spent_msat == spending.total_msat == sum(each.total_msat for each in spending.by_origin.values())
    budget = session.budget
    assert_type(budget, EnvelopeRow | None)
    assert budget is not None
    assert_type(budget.headroom_minor_units, Decimal | None)
    assert_type(session.ledger, Ledger)
    for since in (None, timedelta(days=1), date(2020, 1, 1), datetime(2020, 1, 1, tzinfo=timezone.utc)):
        assert session.ledger.spending(since=since, until=None, origin=None).payments == spending.payments
    shown = [dict(row) for row in session.ledger.payments()]
    assert all("token" not in row and "preimage" not in row for row in shown)
    return repr(spending)


def books(ledger: Ledger) -> list[PaymentRow]:
    rows: Iterator[PaymentRow] = ledger.payments(state=PaymentState.SETTLED, origin=None)
    paid = [*rows, *ledger.payments(state="open")]
    for row in paid:
        assert_type(row.payment_hash, str)
        assert_type(row.origin, str)
        assert_type(row.scope, str)
        assert_type(row.state, PaymentState)
        assert_type(row.amount_msat, int)
        assert_type(row.fee_msat, int)
        assert_type(row.envelope_id, str | None)
        assert_type(row.created_at, datetime)
        assert_type(row.settled_at, datetime | None)
        assert_type(row.token, str)
        assert_type(row.preimage, str | None)
    for envelope in ledger.envelopes():
        assert_type(envelope, EnvelopeRow)
        assert_type(envelope.limits, BudgetEnvelope)
        assert_type(envelope.reserved_minor_units, Decimal)
        assert_type(envelope.settled_minor_units, Decimal)
        assert_type(ledger.envelope(envelope.id), EnvelopeRow)
        ledger.freeze(envelope.id)
        ledger.thaw(envelope.id)
    return paid


def main(client: LightningNodeClient, url: str, folder: Path) -> None:
    """Buys three tokens at ``url``: the first is forgotten, and so is the second."""
    ledger = Ledger.open(folder / "ledger.db")
    sinks: list[TraceSink] = [
        TraceSink.jsonl(folder / "trace.jsonl", redact=True, url_mode="drop"),
        TraceSink.sqlite(str(folder / "trace.db"), url_mode="raw"),
    ]
    providers: list[FmvProvider | None] = [None, Peg(), StaticRate(60_000), StaticRate({"usd": "60000.5"}), CoinGecko(max_age_s=30)]
    session = Routeweiler(
        funding=funding_of(client),
        policy=policy(),
        budget_envelope=BudgetEnvelope(
            id="program",
            cap_minor_units=10_000,
            cap_currency="sat",
            allowed_rails=("l402",),
            allowed_origins_glob=["http://127.0.0.1:*"],
            ttl_seconds=3600,
            owner_agent_id="agent",
            per_call_minor_units=1_000,
            per_hour_minor_units=None,
            per_day_minor_units=5_000,
        ),
        trace_sink=sinks[0],
        fmv_provider=providers[1],
        agent_id="agent",
        session_id="session",
        ledger=ledger,
        payment_timeout=30,
        confirm=confirmed,
        unpayable="raise",
    )
    with session as same:
        assert_type(same, Routeweiler)
        quote = session.quote("GET", url, headers={"X-One": "1"})
        assert_type(quote, Quote | None)
        with session.limit(sats=1_000) as limit:
            response = wants_requests(session, url)
        assert_type(limit.spent_msat, int)
        payment = payment_of(response)
        assert_type(payment, Payment | None)
        assert payment is not None
        assert quote is not None
        assert (payment.amount_msat, payment.reused) == (quote.amount_msat, False)
        assert limit.spent_msat == payment.amount_msat + payment.fee_msat
        assert_type(session.recover(), list[PaymentRow])
        assert [row.payment_hash for row in books(ledger)] == [payment.payment_hash]
        assert "1 payment" in bill(session)
        ledger.forget(payment.payment_hash, abandon=False)

    settings: Settings = {"funding": funding_of(client), "ledger": folder / "ledger.db", "trace_sink": sinks[1]}
    unlimited: Settings = {**settings, "budget_envelope": None}
    with Crawler("crawler/1", **unlimited) as crawler:
        paid = paid_by(crawler.get(url))
        assert paid is not None
        crawler_ledger = Ledger.open(f"sqlite:///{folder / 'ledger.db'}")
        crawler_ledger.forget(paid.payment_hash)
        crawler_ledger.close()
    with EnvironmentCrawler("crawler/1", **settings) as crawler, RetryingRouteweiler(tries=1, **settings) as retrying:
        assert retrying.tries == 1
        first, second = payment_of(crawler.get(url)), payment_of(retrying.get(url))
        assert first is not None and second is not None  # noqa: PT018  (a user's program)
        assert (first.reused, second.reused) == (False, True)

    plain = requests.Session()
    plain.mount(url, PaywallAdapter(**settings, max_retries=3, pool_maxsize=5))
    plain.mount("https://", wants_adapter(NamedAdapter("mine", funding=(), max_retries=0)))
    assert payment_of(plain.get(url)) is not None
    assert_type(Crawler.wrap(requests.Session(), **settings), Crawler)
    with wrap(requests.Session(), **settings) as wrapped:
        assert_type(wrapped, Routeweiler)
        assert payment_of(wrapped.get(url)) is not None

    with install(**settings) as installed:
        assert payment_of(requests.get(url, timeout=30)) is not None
        assert_type(installed.spent_msat, int)
        assert_type(installed.spending(), Spending)
    install(**settings)
    try:
        assert payment_of(requests.get(url, timeout=30)) is not None
    finally:
        uninstall()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert payment_of(requests.get(url, timeout=30)) is None

    refusing = Routeweiler(funding=funding_of(client), ledger=folder / "other.db", confirm=lambda quote: quote.amount_msat == 0)
    try:
        refusing.get(url)
        became = "paid"
    except RouteweilerError as error:
        assert_type(error.response, requests.Response | None)
        became = told(error)
    finally:
        refusing.close()
    assert became == "not spent"
    assert all(issubclass(error, requests.RequestException) for error in ERRORS)
    assert TraceEvent.__name__ == "TraceEvent"
    assert len(clients()) >= 2
