"""The price of bitcoin over real sockets: right, fresh, and never a guess; and a budget in dollars from end to end."""

from __future__ import annotations

import copy
import io
import logging
import os
import pickle
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests

from routeweiler_sync import (
    BudgetEnvelope,
    BudgetExceededError,
    CoinGecko,
    FmvProvider,
    FmvUnavailableError,
    Policy,
    PolicyMaxPerCallExceededError,
    PolicyRule,
    Routeweiler,
    RuleMatch,
    Session,
)
from routeweiler_sync.budgets import coingecko, fmv
from routeweiler_sync.testing import FakeLnd, Paywall
from tests.support.accounts import Books
from tests.support.fake_coingecko import Answer, Gecko, cut, put_off, trickle, trickle_head
from tests.support.ledger_builders import at_once

KEY = "CG-abcDEF123"
PRICE = Decimal("50000.123456789012345")


@pytest.fixture
def gecko(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gecko]:
    monkeypatch.setattr(coingecko, "MAX_PAUSE_S", 0.01)
    with Gecko() as server:
        yield server


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Both clocks of the provider, to be set. Its price is always from now, unless a test says otherwise."""
    hands = SimpleNamespace(wall_s=time.time(), steady_s=1_000.0)
    monkeypatch.setattr(coingecko, "time", SimpleNamespace(time=lambda: hands.wall_s, monotonic=lambda: hands.steady_s))
    return hands


def pass_time(clock: SimpleNamespace, seconds: float) -> None:
    clock.wall_s += seconds
    clock.steady_s += seconds


# -- the question and its answer ------------------------------------------------------------------------------------------


def test_the_price_is_what_the_digits_say(gecko: Gecko) -> None:
    """A price that went through a float would round, maybe down."""
    provider = CoinGecko(base_url=gecko.url + "/")
    assert isinstance(provider, FmvProvider)
    assert provider.btc_price("usd") == PRICE
    (path, query, headers) = gecko.asked[0]
    assert path == "/api/v3/simple/price"
    assert query == {"ids": "bitcoin", "vs_currencies": "usd", "precision": "full", "include_last_updated_at": "true"}
    assert not [name for name in headers if name.startswith("x-cg")]
    assert [provider.btc_price(currency) for currency in ("eur", "gbp", "jpy")] == [46_000, Decimal("40000.5"), 7_500_000]


@pytest.mark.parametrize(("pro", "header"), [(False, "x-cg-demo-api-key"), (True, "x-cg-pro-api-key")])
def test_the_key_goes_into_its_header(gecko: Gecko, pro: bool, header: str) -> None:
    """A key in the query would be in every log on the way; in the wrong header it wouldn't count."""
    assert CoinGecko(f"{KEY}\n", pro=pro, base_url=gecko.url).btc_price("usd") == PRICE
    (_, query, headers) = gecko.asked[0]
    assert {name: value for name, value in headers.items() if name.startswith("x-cg")} == {header: KEY}
    assert KEY not in str(query)
    assert CoinGecko(KEY, pro=pro).base_url == f"https://{'pro-' if pro else ''}api.coingecko.com/api/v3"


@pytest.mark.parametrize(
    "arguments",
    [
        {"pro": True},
        {"api_key": ""},
        {"api_key": 5},
        {"api_key": "two words"},
        {"api_key": "line\nbreak"},
        {"api_key": "schlüssel"},
        {"base_url": "ftp://host"},
        {"base_url": "no url"},
        {"base_url": "https://user:word@host"},
        {"max_age_s": 0},
        {"max_age_s": float("nan")},
        {"timeout_s": "5"},
        {"timeout_s": True},
        {"max_age_s": 60, "max_stale_s": 59},
    ],
)
def test_bad_arguments_are_refused_and_not_repeated_in_the_error(arguments: dict[str, Any]) -> None:
    """A slip would be found at the first payment, or the key be told in an error."""
    with pytest.raises(ValueError) as refused:
        CoinGecko(**arguments)
    for secret in ("two words", "line", "schlüssel", "user:word"):
        assert secret not in str(refused.value)


def test_an_unknown_currency_isnt_asked_for(gecko: Gecko) -> None:
    """What no budget counts in would be sent into the world."""
    with pytest.raises(FmvUnavailableError, match="othing was spent"):
        CoinGecko(base_url=gecko.url).btc_price("usd&ids=dogecoin")
    assert gecko.asked == []


# -- fresh, stale, too old ------------------------------------------------------------------------------------------------


def test_a_price_serves_until_its_age_and_not_longer(gecko: Gecko, clock: SimpleNamespace) -> None:
    """Each payment would ask (and soon be refused for asking too much), or a price of yesterday bound today's spending."""
    gecko.now = lambda: clock.wall_s
    provider = CoinGecko(base_url=gecko.url, max_age_s=60)
    provider.btc_price("usd")
    gecko.prices["usd"] = "51000"
    pass_time(clock, 60)
    assert provider.btc_price("usd") == PRICE
    assert len(gecko.asked) == 1
    pass_time(clock, 0.01)
    assert provider.btc_price("usd") == 51_000
    assert len(gecko.asked) == 2


@pytest.mark.parametrize(("wall_s", "steady_s"), [(601, 601), (601, 0), (-1_000, 601)])
def test_a_stale_price_serves_for_a_while_then_nothing_does(
    gecko: Gecko, clock: SimpleNamespace, caplog: pytest.LogCaptureFixture, wall_s: float, steady_s: float
) -> None:
    """An outage would stop all payments at once, or never; a machine that slept would think its price fresh."""
    gecko.now = lambda: clock.wall_s
    provider = CoinGecko(base_url=gecko.url, max_age_s=60, max_stale_s=600)
    provider.btc_price("usd")
    gecko.bad = Answer(500)
    pass_time(clock, 599)
    assert provider.btc_price("usd") == PRICE
    assert "status 500" in caplog.text
    clock.wall_s += wall_s - 599
    clock.steady_s += steady_s - 599
    with pytest.raises(FmvUnavailableError) as refused:
        provider.btc_price("usd")
    assert refused.value.spent is False


def test_a_price_that_was_old_when_it_came_is_refused(gecko: Gecko) -> None:
    """A cache on the way, or CoinGecko in trouble, would keep an old price fresh for ever."""
    provider = CoinGecko(base_url=gecko.url, max_stale_s=600)
    gecko.updated_at = str(int(time.time()) - 700)
    with pytest.raises(FmvUnavailableError, match="s old"):
        provider.btc_price("usd")
    provider = CoinGecko(base_url=gecko.url, max_stale_s=600)
    gecko.updated_at = str(int(time.time()) - 500)
    assert provider.btc_price("usd") == PRICE


def test_its_own_age_counts_for_a_price_that_is_held(gecko: Gecko, clock: SimpleNamespace) -> None:
    """A price would be taken for as young as our asking for it."""
    provider = CoinGecko(base_url=gecko.url, max_age_s=60, max_stale_s=600)
    gecko.updated_at = str(int(clock.wall_s) - 500)
    provider.btc_price("usd")
    gecko.bad = Answer(500)
    pass_time(clock, 90)
    assert provider.btc_price("usd") == PRICE
    pass_time(clock, 20)
    with pytest.raises(FmvUnavailableError):
        provider.btc_price("usd")


@pytest.mark.parametrize(
    "price",
    ["0", "-50000", "NaN", "Infinity", "-Infinity", "null", '"50000"', "true", "[]", "1e400", "1e99999999999999999999", "0.0005",
     "999", "1000000000.01", "5" * 3_000],
)  # fmt: skip
def test_nonsense_is_no_price(gecko: Gecko, price: str) -> None:
    """A price of next to nothing would lift every limit in dollars."""
    gecko.prices["usd"] = price
    provider = CoinGecko(base_url=gecko.url)
    with pytest.raises(FmvUnavailableError) as refused:
        provider.btc_price("usd")
    assert refused.value.spent is False
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"[]", b"{}", b'{"bitcoin": 50000}', b'{"bitcoin": {}}', b'{"bitcoin": {"eur": 50000}}', b"[" * 4_000,
     b'{"status": {"error_code": 429}}', b'{"bitcoin": {"usd": 50000, "last_updated_at": "now"}}',
     b'{"bitcoin": {"usd": 50000, "last_updated_at": 99999999999}}', b'{"bitcoin": {"usd": 50000}}' + b" " * 5_000,
     b'{"bitcoin": {"usd": 50000}}', b'{"bitcoin": {"usd": 50000, "last_updated_at": null}}',
     b'{"bitcoin": {"usd": 50000, "last_updated_at": NaN}}'],
)  # fmt: skip
def test_an_answer_of_another_shape_is_no_price(gecko: Gecko, body: bytes) -> None:
    """An error page, or another API's answer, would crash the call, or be read as a price."""
    gecko.bad = Answer(200, body)
    with pytest.raises(FmvUnavailableError):
        CoinGecko(base_url=gecko.url).btc_price("usd")


@pytest.mark.parametrize("twice", ['"usd": 2000, "usd": 50000', '"usd": 50000, "last_updated_at": 1'])
def test_an_answer_that_says_two_things_is_no_price(gecko: Gecko, twice: str) -> None:
    """Whichever of the two is taken, it may be the wrong one."""
    gecko.bad = Answer(200, f'{{"bitcoin": {{{twice}, "last_updated_at": {int(time.time())}}}}}'.encode())
    with pytest.raises(FmvUnavailableError):
        CoinGecko(base_url=gecko.url).btc_price("usd")


def test_a_price_that_is_held_is_no_longer_fresh_when_it_is_stale(gecko: Gecko, clock: SimpleNamespace) -> None:
    """A price that was old when it came would serve for longer than the user allows."""
    provider = CoinGecko(base_url=gecko.url, max_age_s=60, max_stale_s=100)
    gecko.updated_at = str(int(clock.wall_s) - 80)
    assert provider.btc_price("usd") == PRICE
    gecko.bad = Answer(500)
    pass_time(clock, 15)
    assert provider.btc_price("usd") == PRICE
    assert len(gecko.asked) == 1
    pass_time(clock, 15)  # asked for half a minute ago, and 110 s old
    with pytest.raises(FmvUnavailableError):
        provider.btc_price("usd")


@pytest.mark.parametrize("price", ["24000", "101000"])
def test_an_absurd_jump_isnt_believed_for_an_hour(gecko: Gecko, clock: SimpleNamespace, price: str) -> None:
    """One wrong answer of the API would double what a budget in dollars allows."""
    gecko.now = lambda: clock.wall_s
    provider = CoinGecko(base_url=gecko.url)
    provider.btc_price("usd")
    gecko.prices["usd"] = price
    pass_time(clock, 300)
    assert provider.btc_price("usd") == PRICE
    pass_time(clock, 3_200)
    with pytest.raises(FmvUnavailableError, match="jumped"):
        provider.btc_price("usd")
    pass_time(clock, 200)
    assert provider.btc_price("usd") == Decimal(price)


# -- failures -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "times"),
    [
        (Answer(500), 3),
        (Answer(503, headers={"Retry-After": "0"}), 3),
        (Answer(429), 3),
        (Answer(429, headers={"Retry-After": "60"}), 1),
        (Answer(401), 1),
        (Answer(403), 1),
        (Answer(402), 1),
        (Answer(act=cut), 3),
        (Answer(200, b"<html>"), 3),
    ],
)
def test_what_may_pass_is_asked_again_a_few_times(gecko: Gecko, bad: Answer, times: int) -> None:
    """A hiccup would refuse a payment; or a refusal be met with a storm of questions."""
    gecko.bad = bad
    provider = CoinGecko(base_url=gecko.url)
    with pytest.raises(FmvUnavailableError):
        provider.btc_price("usd")
    assert len(gecko.asked) == times
    with pytest.raises(FmvUnavailableError):  # and then left alone for a moment
        provider.btc_price("eur")
    assert len(gecko.asked) == times


def test_one_failed_request_for_a_price_costs_nothing(gecko: Gecko) -> None:
    """One bad answer would refuse a purchase, though the next answer has the price."""

    def hiccup(handler: Any) -> None:
        gecko.bad = None
        cut(handler)

    gecko.bad = Answer(act=hiccup)
    assert CoinGecko(base_url=gecko.url).btc_price("usd") == PRICE
    assert len(gecko.asked) == 2


def test_a_server_that_wants_rest_is_left_alone_as_long(gecko: Gecko, clock: SimpleNamespace) -> None:
    """Who asks on gets the machine's address blocked."""
    gecko.now = lambda: clock.wall_s
    gecko.bad = Answer(429, headers={"Retry-After": "60"})
    provider = CoinGecko(base_url=gecko.url)
    for _ in range(2):
        with pytest.raises(FmvUnavailableError, match="429"):
            provider.btc_price("usd")
        pass_time(clock, 59)
    assert len(gecko.asked) == 1
    gecko.bad = None
    pass_time(clock, 1)
    assert provider.btc_price("usd") == PRICE


@pytest.mark.slow
@pytest.mark.parametrize("how", [None, trickle, trickle_head, put_off])
def test_a_server_that_takes_its_time_is_given_up(gecko: Gecko, how: Callable[[Any], None] | None) -> None:
    """A call would hang for as long as somebody else's server likes, and with it every thread that needs a price."""
    if how is None:
        gecko.gate.clear()
    else:
        gecko.bad = Answer(act=how)
    began_s = time.monotonic()
    with pytest.raises(FmvUnavailableError):
        CoinGecko(base_url=gecko.url, timeout_s=0.3).btc_price("usd")
    assert time.monotonic() - began_s < 20
    assert len(gecko.asked) == 3


@pytest.mark.parametrize("error", [requests.ConnectionError, requests.exceptions.InvalidProxyURL, ValueError, KeyError])
def test_an_error_that_repeats_a_url_with_a_password_isnt_repeated(
    gecko: Gecko, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    """What libraries put into their errors is up to them, and what we put into ours ends in logs."""

    def fails(*_: Any, **__: Any) -> None:
        raise error("can't reach http://me:s3cret@proxy.example:3128")

    monkeypatch.setattr(requests.Session, "get", fails)
    with pytest.raises(FmvUnavailableError, match=error.__name__) as refused:
        CoinGecko(base_url=gecko.url).btc_price("usd")
    assert "s3cret" not in "".join(traceback.format_exception(refused.value))


@pytest.mark.slow
def test_answers_that_never_end_arent_heaped_up(gecko: Gecko, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that runs for weeks would have a thread and a connection for every answer that it gave up."""
    monkeypatch.setattr(coingecko, "LEAVE_ALONE_S", 0.0)
    gecko.bad = Answer(act=trickle_head)
    provider = CoinGecko(base_url=gecko.url, timeout_s=0.1)
    for _ in range(4):
        with pytest.raises(FmvUnavailableError):
            provider.btc_price("usd")
    assert len(gecko.asked) == coingecko.MAX_GIVEN_UP


def test_nobody_waits_for_ever_to_ask(gecko: Gecko) -> None:
    """All threads of a process ask in turn: one that is stuck would hold up every purchase."""
    provider = CoinGecko(base_url=gecko.url, timeout_s=0.1)
    with coingecko._asking, pytest.raises(FmvUnavailableError, match="too long") as refused:
        provider.btc_price("usd")
    assert refused.value.spent is False
    assert provider.btc_price("usd") == PRICE


@pytest.mark.parametrize(
    "proxy",
    ["http://me:s3cret@pro xy:80", "http://me:s3cret@h:99999", "http://me:s3cret@127.0.0.1:1", "me:s3cret@:x", "http://me:s3cret"],
)
def test_a_proxys_password_appears_in_no_error_or_log(gecko: Gecko, monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    """It would be in the program's log wherever a price can't be had; and no proxy may end a call in an error that isn't ours."""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "HTTPS_PROXY", "all_proxy"):
        monkeypatch.setenv(name, proxy)
    with pytest.raises(FmvUnavailableError) as refused:
        CoinGecko(base_url="http://gecko.invalid", timeout_s=2).btc_price("usd")
    assert "s3cret" not in "".join(traceback.format_exception(refused.value))


def test_an_unreachable_server_gives_no_price(gecko: Gecko) -> None:
    """The caller would get an error of the connection, which no handler for prices catches."""
    with pytest.raises(FmvUnavailableError, match="ConnectionError"):
        CoinGecko(base_url="http://127.0.0.1:1").btc_price("usd")


def test_no_redirect_is_followed(gecko: Gecko) -> None:
    """The key would go along to wherever the answer points: requests strips no header but Authorization."""
    with Gecko() as elsewhere:
        gecko.bad = Answer(302, headers={"Location": elsewhere.url + "/simple/price?vs_currencies=usd"})
        with pytest.raises(FmvUnavailableError, match="302"):
            CoinGecko(KEY, base_url=gecko.url).btc_price("usd")
        assert elsewhere.asked == []


@pytest.mark.parametrize("works", [True, False])
def test_many_threads_ask_once(gecko: Gecko, works: bool) -> None:
    """The API counts questions: sixteen at once would use up the minute's, and after a failure wait for one another."""
    provider = CoinGecko(base_url=gecko.url)
    if not works:
        gecko.bad = Answer(401)
    gecko.gate.clear()
    threading.Timer(0.2, gecko.gate.set).start()

    def ask() -> object:
        try:
            return provider.btc_price("usd")
        except FmvUnavailableError as error:
            return type(error)

    assert set(at_once([ask] * 16)) == {PRICE if works else FmvUnavailableError}
    assert len(gecko.asked) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_in_the_midst_of_a_question_can_ask(gecko: Gecko) -> None:
    """The child would wait for a thread that it doesn't have, for ever."""
    provider = CoinGecko(base_url=gecko.url)
    gecko.gate.clear()
    asking = threading.Thread(target=provider.btc_price, args=("usd",))
    asking.start()
    while not gecko.asked:
        time.sleep(0.01)
    child = os.fork()
    if child == 0:
        os._exit(0 if coingecko._asking.acquire(timeout=5) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    gecko.gate.set()
    asking.join(60)


# -- the provider of a session that was given none ------------------------------------------------------------------------


@pytest.fixture
def default(monkeypatch: pytest.MonkeyPatch, gecko: Gecko) -> Gecko:
    """CoinGecko, as sessions without a provider find it."""
    monkeypatch.setattr(coingecko, "PUBLIC_URL", gecko.url)
    monkeypatch.setattr(fmv, "_default", None)
    return gecko


@pytest.mark.parametrize("currency", ["usd", "eur", "gbp", "jpy"])
def test_a_fiat_budget_asks_coingecko_by_itself(
    default: Gecko, make_session: Callable[..., Routeweiler], paywall: Paywall, books: Books, currency: str
) -> None:
    """A budget in dollars that says nothing of prices would refuse every page; one provider for each session, its rate limit."""
    envelope = BudgetEnvelope(currency, cap_minor_units=1_000, cap_currency=currency)
    session = make_session(budget_envelope=envelope)
    assert default.asked == [], "not before it is needed"
    quote = session.quote("GET", paywall.url)
    assert quote is not None
    assert quote.currency == currency
    assert session.get(paywall.url).status_code == 200
    assert books.lines[-1]["payment"]["fmvQuality"] == "coingecko_simple"
    paywall.add_service("/more", name="more", price_msat=10_000)
    assert make_session(budget_envelope=currency).get(paywall.url_for("/more")).status_code == 200, "an id of the ledger's"
    assert len(default.asked) == 1
    books.check()


def test_a_sat_budget_never_asks_for_a_price(default: Gecko, make_session: Callable[..., Routeweiler], paywall: Paywall) -> None:
    """Whoever counts in sats tells nobody when he pays."""
    assert make_session().get(paywall.url).status_code == 200
    assert fmv._default is None
    assert default.asked == []


def test_the_environments_budget_may_be_in_dollars(
    default: Gecko, monkeypatch: pytest.MonkeyPatch, paywall: Paywall, books: Books, lnd: FakeLnd
) -> None:
    """ROUTEWEILER_BUDGET can't name a provider."""
    for name, value in lnd.environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("ROUTEWEILER_LEDGER", str(books.ledger_path))
    monkeypatch.setenv("ROUTEWEILER_TRACE", str(books.trace_path))
    monkeypatch.setenv("ROUTEWEILER_BUDGET", "50 usd/call")
    with Session() as session:
        assert session.get(paywall.url).status_code == 200
    assert books.lines[0]["payment"]["amountEnvelopeCurrency"] == "usd"


def test_a_policy_in_dollars_asks_coingecko_too(default: Gecko, make_session: Callable[..., Routeweiler], paywall: Paywall) -> None:
    """The price of a page is held against the policy's limit in the policy's currency."""
    rule = PolicyRule("cheap", when=RuleMatch(url_matches="*"), max_per_call_minor_units=50)
    assert make_session(policy=Policy([rule], currency="usd")).get(paywall.url).status_code == 200
    assert len(default.asked) == 1


@pytest.mark.parametrize("how", ["budget", "policy", "quote"])
def test_without_coingecko_a_fiat_budget_refuses_and_names_it(
    make_session: Callable[..., Routeweiler], paywall: Paywall, lnd: FakeLnd, how: str
) -> None:
    """The user hasn't named CoinGecko anywhere: an error about a provider that wasn't given would puzzle."""
    if how == "policy":
        rule = PolicyRule("cheap", when=RuleMatch(url_matches="*"), max_per_call_minor_units=50)
        session = make_session(policy=Policy([rule], currency="eur"))
    else:
        session = make_session(budget_envelope=BudgetEnvelope("usd", cap_minor_units=1_000, cap_currency="usd"))
    with pytest.raises(FmvUnavailableError, match="CoinGecko") as refused:
        session.quote("GET", paywall.url) if how == "quote" else session.get(paywall.url)
    assert refused.value.spent is False
    assert "provider was given" not in str(refused.value)
    assert lnd.orders == []


# -- secrets, copies, other people's patches --------------------------------------------------------------------------------


def test_the_key_appears_in_no_error_log_or_repr(gecko: Gecko, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """Somebody else would ask on the user's account."""
    caplog.set_level(logging.DEBUG)
    provider = CoinGecko(KEY, base_url=gecko.url)
    provider.btc_price("usd")
    gecko.bad = Answer(act=cut)
    session = Routeweiler(fmv_provider=provider, ledger=tmp_path / "ledger.db")
    told = [repr(provider), str(provider), repr(pickle.dumps(provider)), repr(pickle.dumps(session)), caplog.text]
    try:
        provider.btc_price("eur")
    except FmvUnavailableError as error:
        text = io.StringIO()
        traceback.print_exception(error, file=text)
        told += [str(error), repr(error), repr(pickle.dumps(error)), text.getvalue()]
    assert len(told) == 9
    assert not [text for text in told if KEY in text]


def test_a_pickled_one_asks_without_a_key_only_if_it_had_none(gecko: Gecko) -> None:
    """A worker would ask on another plan than was meant, or crash for a lock that can't be pickled."""
    keyed, keyless = (pickle.loads(pickle.dumps(CoinGecko(key, base_url=gecko.url))) for key in (KEY, None))
    assert keyless.btc_price("usd") == PRICE
    with pytest.raises(FmvUnavailableError, match="pickled"):
        keyed.btc_price("usd")
    assert len(gecko.asked) == 1
    provider = CoinGecko(KEY, base_url=gecko.url)
    assert copy.copy(provider) is provider
    assert copy.deepcopy(provider) is provider


def test_a_session_class_put_in_place_of_requests_own_isnt_used(gecko: Gecko, monkeypatch: pytest.MonkeyPatch) -> None:
    """A paying session would pay for the price of its payment, a caching one keep the price for ever."""

    class Patched(requests.Session):
        def __init__(self) -> None:
            raise AssertionError("the patched session was used")

    monkeypatch.setattr(requests, "Session", Patched)
    monkeypatch.setattr(requests.sessions, "Session", Patched)
    assert CoinGecko(base_url=gecko.url).btc_price("usd") == PRICE


# -- from end to end ------------------------------------------------------------------------------------------------------

DOLLARS = BudgetEnvelope("dollars", cap_currency="usd", per_call_minor_units=2, cap_minor_units=3)


def test_a_budget_in_dollars_pays_and_counts(
    make_session: Callable[..., Any], paywall: Paywall, lnd: FakeLnd, books: Books, gecko: Gecko
) -> None:
    """Prices in sat would be read as cents, or a 10-sat call cost a whole one."""
    lnd.fee_msat = 1_000
    session = make_session(budget_envelope=DOLLARS, fmv_provider=CoinGecko(base_url=gecko.url))
    assert session.get(paywall.url).status_code == 200
    (row,) = books.rows
    assert (row.currency, row.btc_price, row.rate_quality) == ("usd", PRICE, "coingecko_simple")
    cents = Decimal(11) * PRICE / 1_000_000  # 11 sat
    assert cents <= row.settled_micro / Decimal(10**6) < cents + Decimal("0.000001")
    payment = books.lines[-1]["payment"]
    assert (payment["fmvQuality"], payment["amountEnvelopeCurrency"]) == ("coingecko_simple", "usd")
    assert Decimal(str(payment["amountEnvelope"])) * 10**6 == row.settled_micro
    paywall.revoke_tokens()
    paywall.price = 41  # 2.05 cents
    with pytest.raises(BudgetExceededError, match="per_call"):
        session.get(paywall.url)
    paywall.price = 38
    assert session.get(paywall.url).status_code == 200
    paywall.revoke_tokens()
    with pytest.raises(BudgetExceededError, match="cap_minor_units"):
        session.get(paywall.url)
    books.check()


def test_a_budget_in_yen_has_no_hundredths(make_session: Callable[..., Any], paywall: Paywall, books: Books, gecko: Gecko) -> None:
    """A limit of one yen would be one of a hundred, or a hundredth."""
    gecko.prices["jpy"] = "10000000"  # 10 sat are a yen
    yen = BudgetEnvelope("yen", cap_currency="jpy", per_call_minor_units=1)
    session = make_session(budget_envelope=yen, fmv_provider=CoinGecko(base_url=gecko.url))
    assert session.get(paywall.url).status_code == 200
    assert books.ledger.envelope("yen").settled_minor_units == 1
    paywall.revoke_tokens()
    paywall.price = 11
    with pytest.raises(BudgetExceededError):
        session.get(paywall.url)


@pytest.mark.parametrize("bad", [Answer(500), Answer(429, headers={"Retry-After": "9"}), Answer(act=cut), Answer(200, b"{}")])
def test_without_a_price_nothing_is_paid(
    make_session: Callable[..., Any], paywall: Paywall, lnd: FakeLnd, books: Books, gecko: Gecko, bad: Answer
) -> None:
    """An outage of CoinGecko would lift the budget; or, once it is over, payments stay refused."""
    provider = CoinGecko(base_url=gecko.url)
    session = make_session(budget_envelope=DOLLARS, fmv_provider=provider)
    gecko.bad = bad
    with pytest.raises(FmvUnavailableError, match="othing was spent") as refused:
        session.get(paywall.url)
    assert refused.value.spent is False
    assert lnd.calls["SendPaymentV2"] == 0
    assert books.rows == []
    gecko.bad, provider._failed = None, ("", 0.0)
    assert session.get(paywall.url).status_code == 200
    books.check()


def test_a_token_that_is_held_needs_no_price(
    make_session: Callable[..., Any], paywall: Paywall, lnd: FakeLnd, gecko: Gecko
) -> None:
    """Pages that are paid for would be out of reach while CoinGecko is."""
    assert make_session(budget_envelope=DOLLARS, fmv_provider=CoinGecko(base_url=gecko.url)).get(paywall.url).ok
    gecko.bad = Answer(500)
    assert make_session(budget_envelope=DOLLARS, fmv_provider=CoinGecko(base_url=gecko.url)).get(paywall.url).ok
    assert len(lnd.payments) == 1


def test_a_policys_limit_in_dollars(make_session: Callable[..., Any], paywall: Paywall, lnd: FakeLnd, gecko: Gecko) -> None:
    """A limit of a cent would be one of a sat, or of nothing."""
    gecko.prices["usd"] = "100000"  # 10 sat are a cent
    policy = Policy([PolicyRule("a cent", when=RuleMatch(url_matches="*"), max_per_call_minor_units=1)], currency="usd")
    session = make_session(policy=policy, fmv_provider=CoinGecko(base_url=gecko.url))
    paywall.price_msat = 10_001
    with pytest.raises(PolicyMaxPerCallExceededError):
        session.get(paywall.url)
    assert lnd.calls["SendPaymentV2"] == 0
    paywall.price_msat = 10_000
    assert session.get(paywall.url).status_code == 200
