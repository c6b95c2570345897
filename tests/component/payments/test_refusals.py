"""Promise 4: whatever makes a payment useless, or isn't allowed, is found before lnd hears of anything."""

from __future__ import annotations

import time
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
import requests

from routeweiler_sync import (
    BudgetEnvelope,
    BudgetExceededError,
    ChallengeExpiredError,
    ChallengeMismatchError,
    ChallengeParseError,
    EnvelopeFrozenError,
    EnvelopeNotFoundError,
    FmvUnavailableError,
    FundingError,
    InvoicePaymentError,
    LedgerError,
    NoFeasibleRailError,
    NoFundingForRailError,
    PaymentDeclinedError,
    Policy,
    PolicyDeniedError,
    PolicyMaxPerCallExceededError,
    PolicyRule,
    RailNotSupportedError,
    RouteweilerError,
    RuleMatch,
    StaticRate,
)
from routeweiler_sync.testing import FakeLnd, Paywall
from tests.support.accounts import Books
from tests.support.http_server import server


def check_refused(session, url: str, error: type[RouteweilerError], lnd: FakeLnd, **kwargs) -> RouteweilerError:
    """The call raises ``error``, says that nothing was spent, and lnd was never sent an order."""
    with pytest.raises(error) as caught:
        session.request(kwargs.pop("method", "GET"), url, **kwargs)
    assert caught.value.spent is False
    assert isinstance(caught.value, requests.RequestException)
    assert caught.value.response is not None
    assert caught.value.response.status_code == 402
    assert caught.value.request is not None
    assert "othing was spent" in str(caught.value)
    assert lnd.calls["SendPaymentV2"] == 0
    assert lnd.payments == []
    return caught.value


def test_an_expired_invoice_is_refused(session, paywall: Paywall, lnd: FakeLnd) -> None:
    """lnd would refuse it; but only after a row and an order."""
    paywall.faults.expire_invoices = True
    check_refused(session, paywall.url, ChallengeExpiredError, lnd)


def test_an_expired_token_is_not_paid_for(session, paywall: Paywall, lnd: FakeLnd) -> None:
    """The money would buy a token that opens nothing."""
    paywall.service.valid_for_s = -10
    check_refused(session, paywall.url, ChallengeExpiredError, lnd)


def test_a_token_for_another_invoice_is_refused(session, paywall: Paywall, lnd: FakeLnd) -> None:
    """The preimage wouldn't fit the token: paid for nothing."""
    paywall.faults.mismatch = True
    check_refused(session, paywall.url, ChallengeMismatchError, lnd)


@pytest.mark.parametrize("currency", ["bc", "tb"])
def test_an_invoice_of_another_network_is_refused(session, paywall: Paywall, lnd: FakeLnd, currency: str) -> None:
    """Test funding must never be asked for real coins."""
    paywall.faults.currency = currency
    error = check_refused(session, paywall.url, NoFundingForRailError, lnd)
    assert isinstance(error, NoFeasibleRailError)


def test_without_any_funding_nothing_is_paid(make_session, paywall: Paywall, lnd: FakeLnd) -> None:
    """Else whoever wrote Routeweiler() wouldn't learn that only Session takes the wallet from the environment."""
    error = check_refused(make_session(funding=[]), paywall.url, NoFundingForRailError, lnd)
    assert "use routeweiler_sync.Session" in str(error.advice)


def test_an_invoice_without_an_amount_is_refused(session, paywall: Paywall, lnd: FakeLnd) -> None:
    """What it costs can't be bounded (promise 3)."""
    paywall.service.price_msat = None  # type: ignore[assignment]
    check_refused(session, paywall.url, ChallengeParseError, lnd)


def test_a_price_above_the_limit_of_a_call_is_refused(session, paywall: Paywall, lnd: FakeLnd) -> None:
    """The safe default holds where nobody has said anything: 1 000 sat a call."""
    paywall.price = 1_001
    check_refused(session, paywall.url, BudgetExceededError, lnd)
    paywall.price = 1_000
    assert session.get(paywall.url).status_code == 200


def test_the_hourly_limit_and_the_cap_are_kept(make_session, paywall: Paywall, lnd: FakeLnd) -> None:
    """Small prices add up: 3 x 10 sat don't fit under 25."""
    for name in ("per_hour_minor_units", "per_day_minor_units", "cap_minor_units"):
        session = make_session(budget_envelope=BudgetEnvelope(name, **{name: 25}))
        paywall.revoke_tokens()
        paid = 0
        with pytest.raises(BudgetExceededError):
            for _ in range(3):
                assert session.get(paywall.url).status_code == 200
                paid += 1
                paywall.revoke_tokens()
        assert paid == 2


def test_a_frozen_envelope_pays_nothing(session, make_session, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """The hand brake must hold for running sessions."""
    session.get(paywall.url)
    books.ledger.freeze("default")
    paywall.revoke_tokens()
    with pytest.raises(EnvelopeFrozenError):
        session.get(paywall.url)
    assert len(lnd.payments) == 1
    books.ledger.thaw("default")
    assert session.get(paywall.url).status_code == 200


def test_an_envelope_that_isnt_there_is_refused(make_session, paywall: Paywall, lnd: FakeLnd) -> None:
    """A misspelt budget must not become no budget."""
    check_refused(make_session(budget_envelope="misspelt"), paywall.url, EnvelopeNotFoundError, lnd)


def test_origins_and_rails_that_the_envelope_doesnt_allow_are_refused(make_session, paywall: Paywall, lnd: FakeLnd) -> None:
    """A budget for one host must not be spent at another."""
    elsewhere = BudgetEnvelope("elsewhere", allowed_origins_glob=["https://*.example", "api.example:*"])
    check_refused(make_session(budget_envelope=elsewhere), paywall.url, PolicyDeniedError, lnd)
    check_refused(
        make_session(budget_envelope=BudgetEnvelope("rail", allowed_rails=["card"])), paywall.url, RailNotSupportedError, lnd
    )
    here = BudgetEnvelope("here", allowed_origins_glob=["127.0.0.1:*"])
    assert make_session(budget_envelope=here).get(paywall.url).status_code == 200


def test_a_denied_host_is_not_paid_after_a_redirect_either(make_session, paywall: Paywall, lnd: FakeLnd) -> None:
    """The URL that counts is the one that answered 402, not the one that was asked for."""
    policy = Policy(rules=[PolicyRule(name="no", when=RuleMatch(url_matches="*/paid*"), deny=True, reason="not there")])
    session = make_session(policy=policy)
    error = check_refused(session, paywall.url_for("/redirect?to=/paid"), PolicyDeniedError, lnd)
    assert "not there" in str(error)


@pytest.mark.parametrize("is_ours", [True, False])
@pytest.mark.parametrize("path", ["/a/../paid", "/a/%2e%2E/paid", "/a/..%2Fpaid", "//paid", "/%70aid", "/a/..%5cpaid", "/./paid#x"])
def test_a_denied_page_is_not_paid_in_another_spelling(
    make_session, paywall: Paywall, lnd: FakeLnd, path: str, is_ours: bool
) -> None:
    """A server reads them as the page: by the caller's own URL, by a redirect, or by a prepared request."""
    challenge = requests.get(paywall.url).headers["WWW-Authenticate"]

    def answer(handler: Any) -> Any:
        if handler.path == "/go":
            return 302, [("Location", f"http://{handler.headers['Host']}{path}")], b""
        return 402, [("WWW-Authenticate", challenge)], b""

    with server(answer) as base:
        policy = Policy(rules=[PolicyRule(name="no", when=RuleMatch(url_matches=f"{base}/paid"), deny=True)])
        session = make_session(policy=policy)
        if not is_ours:
            session.mount("http://", requests.adapters.HTTPAdapter())
        prepared = session.prepare_request(requests.Request("GET", base))
        prepared.url = base + path
        for call in (lambda: session.get(base + path), lambda: session.get(base + "/go"), lambda: session.send(prepared)):
            with pytest.raises(PolicyDeniedError):
                call()
    assert not lnd.orders


def test_a_price_above_the_policys_limit_is_refused(make_session, paywall: Paywall, lnd: FakeLnd) -> None:
    """A rule's limit is in the policy's currency."""
    rule = PolicyRule(name="cheap", when=RuleMatch(scheme="l402"), max_per_call_minor_units=9)
    check_refused(make_session(policy=Policy(rules=[rule])), paywall.url, PolicyMaxPerCallExceededError, lnd)


def test_a_no_from_confirm_pays_nothing(make_session, paywall: Paywall, lnd: FakeLnd) -> None:
    """A person's no is final; what they were asked about is what would be paid."""
    quotes = []
    session = make_session(confirm=lambda quote: quotes.append(quote))
    check_refused(session, paywall.url, PaymentDeclinedError, lnd)
    (quote,) = quotes
    assert (quote.url, quote.amount_msat, quote.currency, quote.amount_minor_units) == (paywall.url, 10_000, "sat", Decimal(10))
    assert quote.max_fee_msat == 10_000
    assert quote.scope == "services=paywall:0"
    assert quote.expires_at.timestamp() > time.time()
    assert make_session(confirm=lambda quote: True).get(paywall.url).status_code == 200


def test_a_fiat_budget_without_a_rate_pays_nothing(make_session, paywall: Paywall, lnd: FakeLnd) -> None:
    """What can't be converted can't be bounded (promise 3)."""
    envelope = BudgetEnvelope("usd", cap_minor_units=100, cap_currency="usd")
    check_refused(make_session(budget_envelope=envelope), paywall.url, FmvUnavailableError, lnd)

    class Broken:
        quality = "broken"

        def btc_price(self, currency):
            raise OSError("down")

    check_refused(make_session(budget_envelope=envelope, fmv_provider=Broken()), paywall.url, FmvUnavailableError, lnd)
    for nonsense in ("NaN", "Infinity", "0", "-1"):
        session = make_session(budget_envelope=envelope, fmv_provider=StaticRate(nonsense))
        check_refused(session, paywall.url, FmvUnavailableError, lnd)


def test_a_ledger_that_cant_be_used_refuses_the_purchase(make_session, paywall: Paywall, lnd: FakeLnd, tmp_path) -> None:
    """Nothing is paid that isn't on disk first; free traffic doesn't need the ledger."""
    foreign = tmp_path / "foreign.db"
    foreign.write_bytes(b"this is no database, but it is somebody's" * 100)
    before = foreign.read_bytes()
    session = make_session(ledger=foreign)
    assert session.get(paywall.url_for("/free")).status_code == 200
    check_refused(session, paywall.url, LedgerError, lnd)
    assert foreign.read_bytes() == before


@pytest.mark.slow
def test_a_node_that_is_down_or_locked_refuses_the_purchase(
    make_session, session, paywall: Paywall, lnd: FakeLnd, books: Books
) -> None:
    """Not a byte of an order has left: nothing spent, and the next call may buy as if nothing had been."""
    lnd.lock()
    error = check_refused(session, paywall.url, FundingError, lnd)
    assert "unlock" in str(error)
    lnd.unlock()
    lnd.stop()
    check_refused(session, paywall.url, FundingError, lnd)
    lnd.start()
    assert session.get(paywall.url).status_code == 200
    books.check()


def test_a_wrong_node_pubkey_says_so(make_session, paywall: Paywall, lnd: FakeLnd) -> None:
    """A row names its node: with a wrong name it could never be resolved."""
    wrong = "02" + "ab" * 32
    error = check_refused(make_session(funding=[lnd.funding(node_pubkey=wrong)]), paywall.url, FundingError, lnd)
    assert wrong in str(error)
    assert lnd.node_pubkey in str(error)
    right = make_session(funding=[lnd.funding(node_pubkey=lnd.node_pubkey)])
    assert right.get(paywall.url).status_code == 200


def test_unpayable_return_gives_the_402_back(make_session, paywall: Paywall, lnd: FakeLnd, books: Books, caplog) -> None:
    """Programs that handle 402 themselves get the response, the reason is in trace and log."""
    paywall.price = 5_000
    session = make_session(unpayable="return")
    response = session.get(paywall.url)
    assert response.status_code == 402
    assert response.content == b"payment required\n"
    assert lnd.payments == []
    (line,) = books.lines
    assert line["outcome"]["error"]["code"] == "budget_exceeded"
    assert "per_call" in caplog.text


def test_a_refusal_leaves_a_trace_line(make_session, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """Promise 7: every call leaves one line, also the one that was refused."""
    paywall.faults.mismatch = True
    with pytest.raises(ChallengeMismatchError):
        make_session().get(paywall.url)
    (line,) = books.lines
    assert line["payment"] is None
    assert line["outcome"]["error"]["code"] == "challenge_mismatch"
    assert line["outcome"]["httpStatus"] == 402
    assert line["challenge"]["amountMsat"] == 10_000


def test_unpayable_return_doesnt_hide_a_failed_payment(make_session, paywall: Paywall, lnd: FakeLnd) -> None:
    """It is for refusals before paying: here an order was sent."""
    lnd.fail_next()
    with pytest.raises(InvoicePaymentError):
        make_session(unpayable="return").get(paywall.url)


def test_the_default_envelope_can_be_frozen_before_it_has_spent(make_session, paywall: Paywall, books: Books, lnd: FakeLnd) -> None:
    """The hand brake must work before the first accident."""
    books.ledger.freeze("default")
    with pytest.raises(requests.RequestException, match="frozen"):
        make_session().get(paywall.url)
    assert lnd.payments == []


@pytest.fixture
def issue_at(lnd: FakeLnd, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Let the payee issue invoices whose time is so many seconds from now."""
    issue = lnd.invoice

    def at(offset_s: float) -> None:
        created_at = int(time.time() + offset_s)
        monkeypatch.setattr(lnd, "invoice", lambda *args, **kwargs: issue(*args, **kwargs | {"created_at": created_at}))

    return at


def test_a_node_whose_clock_is_ahead_is_told_by_how_much(make_session, paywall: Paywall, lnd: FakeLnd, issue_at) -> None:
    """ "The invoice has expired" of a new invoice: its user would call again for ever, and never look at a clock."""
    lnd.clock_offset_s = 4 * 3_600
    issue_at(0)
    with pytest.raises(ChallengeExpiredError, match=r"this machine's clock is at least 1 hour behind the node's") as caught:
        make_session().get(paywall.url)
    assert caught.value.spent is False
    assert "clock" in (caught.value.advice or "")


def test_an_invoice_that_has_expired_by_this_clock_is_told_in_words(make_session, paywall: Paywall, issue_at) -> None:
    """ "Expired at 1764410411; it is 1764421211" leaves the reader to find out that his clock is three hours ahead."""
    issue_at(-4 * 3_600)
    with pytest.raises(ChallengeExpiredError, match=r"expired 3 hours ago, by this machine's clock, 20\d\d-.* UTC") as caught:
        make_session().get(paywall.url)
    assert "it may be ahead" in (caught.value.advice or "")
