"""`requests` that pays as the environment says: the verbs, `Session`, `install`, `wrap`, `PaywallAdapter` mounted by hand."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from requests.adapters import HTTPAdapter

import routeweiler_sync
from routeweiler_sync import (
    BudgetError,
    BudgetExceededError,
    FundingError,
    Ledger,
    NoFundingForRailError,
    PaywallAdapter,
    Routeweiler,
    Session,
    payment_of,
)
from routeweiler_sync._core import env_vars
from routeweiler_sync.config import environment
from routeweiler_sync.testing import FakeLnd, Paywall
from routeweiler_sync.transport import adapter
from tests.support.accounts import Books

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")


@pytest.fixture
def environ(lnd: FakeLnd, books: Books, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """The environment names the test's node, ledger and trace, and no other."""
    for name in env_vars.PAYER_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in lnd.environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("ROUTEWEILER_LEDGER", str(books.ledger_path))
    monkeypatch.setenv("ROUTEWEILER_TRACE", str(books.trace_path))
    yield monkeypatch
    routeweiler_sync.uninstall()
    for payer in environment._payers.values():
        payer.close()
    environment._payers.clear()


@pytest.fixture
def nowhere(environ: pytest.MonkeyPatch, lnd: FakeLnd, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment names no node."""
    for name in lnd.environ:
        environ.delenv(name, raising=False)
    monkeypatch.setattr(adapter, "_warned", [])


@pytest.mark.usefixtures("nowhere")
def test_where_warnings_are_errors_the_402_is_returned_all_the_same(paywall: Paywall, caplog: pytest.LogCaptureFixture) -> None:
    """`python -W error` makes an exception of each warning. The request was sent, and its answer would be lost."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Session().get(paywall.url).status_code == 402
    assert "no node is configured" in caplog.text


VERBS = ["get", "options", "head", "post", "put", "patch", "delete"]


@pytest.mark.usefixtures("environ")
@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_pays(verb: str, paywall: Paywall, books: Books) -> None:
    """One line changed, and the page is there."""
    response = getattr(routeweiler_sync, verb)(paywall.url)
    assert type(response) is requests.Response
    assert response.status_code == 200
    if verb != "options":  # which a paywall like aperture lets through
        payment = payment_of(response)
        assert payment is not None
        assert not payment.reused
        assert len(response.history) == 1
        assert routeweiler_sync.request(verb.upper(), paywall.url).payment.reused  # type: ignore[attr-defined]
    books.check()


@pytest.mark.slow
@pytest.mark.usefixtures("environ")
def test_a_loop_makes_node_and_ledger_but_once(
    paywall: Paywall, lnd: FakeLnd, books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`requests.get` in a loop makes a session each time: a TLS handshake with the node and a ledger opened for each page."""
    for number in range(20):
        paywall.add_service(f"/{number}", name=f"s{number}", price_msat=1_000)
        assert routeweiler_sync.get(paywall.url_for(f"/{number}")).status_code == 200
    looks: list[str] = []
    look = Ledger.live
    monkeypatch.setattr(Ledger, "live", lambda self, origin, *scope: looks.append(origin) or look(self, origin, *scope))
    for number in range(20):
        assert routeweiler_sync.get(paywall.url_for(f"/{number}")).history == []
    assert not looks  # nor are the tokens looked up each time
    assert lnd.calls["SendPaymentV2"] == 20
    assert lnd.calls["GetInfo"] <= len(environment.networks())
    assert len(environment._payers) == 1
    assert len(books.lines) == 40
    books.check()


@pytest.mark.usefixtures("environ")
def test_sessions_of_a_process_share_tokens_and_one_that_closes_closes_nothing(
    paywall: Paywall, lnd: FakeLnd, books: Books
) -> None:
    """Else each worker of a pool buys, or the one that is done first takes the ledger from the others."""
    with Session() as first, Session() as second:
        assert not first.get(paywall.url).payment.reused  # type: ignore[attr-defined]
        first.close()
        assert second.get(paywall.url).payment.reused  # type: ignore[attr-defined]
        assert len(second.get(paywall.url).history) == 0  # the token goes along
    with ThreadPoolExecutor(8) as pool:
        paywall.add_service("/other", name="other", price_msat=1_000)
        barrier = threading.Barrier(8)

        def one(_: int) -> bool:
            barrier.wait(30)
            return bool(routeweiler_sync.get(paywall.url_for("/other")).payment.reused)  # type: ignore[attr-defined]

        assert sorted(pool.map(one, range(8))) == [False] + [True] * 7
    assert len(lnd.payments) == 2
    books.check()


def test_the_environments_budget_holds(environ: pytest.MonkeyPatch, paywall: Paywall, lnd: FakeLnd) -> None:
    """Read once, and for all; another value makes another budget, at once."""
    environ.setenv("ROUTEWEILER_BUDGET", "5 sat/call")
    with pytest.raises(BudgetExceededError):
        routeweiler_sync.get(paywall.url)
    environ.setenv("ROUTEWEILER_BUDGET", "50 sat/call")
    assert routeweiler_sync.get(paywall.url).status_code == 200
    assert len(lnd.payments) == 1


WRONG: list[tuple[str, str, type[Exception], str]] = [
    ("ROUTEWEILER_BUDGET", "a lot", BudgetError, "ROUTEWEILER_BUDGET"),
    ("ROUTEWEILER_BUDGET", "-1 sat/call", BudgetError, "ROUTEWEILER_BUDGET"),
    ("ROUTEWEILER_NETWORK", "mainnet", FundingError, "ROUTEWEILER_NETWORK"),
    ("ROUTEWEILER_LNDCONNECT", "lndconnect://nowhere", FundingError, "lndconnect"),
    ("LND_MACAROON_PATH", "", FundingError, "LND_MACAROON_PATH"),
]


@pytest.mark.parametrize(("name", "value", "kind", "said"), WRONG)
def test_what_is_wrong_with_a_variable_is_told_where_it_would_cost(
    environ: pytest.MonkeyPatch, paywall: Paywall, lnd: FakeLnd, name: str, value: str, kind: type[Exception], said: str
) -> None:
    """Free traffic needs none of them; and a budget that isn't understood must not become no budget."""
    environ.setenv(name, value)
    assert routeweiler_sync.get(paywall.url_for("/free")).status_code == 200
    for session in (Session(), Session(confirm=lambda quote: True)):
        with session, pytest.raises(kind, match=said) as caught:
            session.get(paywall.url)
        assert caught.value.spent is False  # type: ignore[attr-defined]
        assert isinstance(caught.value, requests.RequestException)
    assert lnd.calls["SendPaymentV2"] == 0


@pytest.mark.usefixtures("nowhere")
def test_without_a_node_it_is_requests_with_one_warning(paywall: Paywall, books: Books) -> None:
    """A script whose import line has changed must not break on a machine without a node."""
    ways: list[Any] = [routeweiler_sync, Session(), routeweiler_sync.session()]
    plain = requests.Session()
    plain.mount("http://", PaywallAdapter())
    foreign = Session()
    foreign.mount("http://", HTTPAdapter())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for way in (*ways, plain, foreign):
            assert way.get(paywall.url_for("/free")).status_code == 200
        assert not caught
        for way in (*ways, plain, foreign):
            response = way.get(paywall.url)
            assert (response.status_code, response.history, payment_of(response)) == (402, [], None)
            assert "L402" in response.headers["WWW-Authenticate"]
    (told,) = caught
    assert "no node is configured" in str(told.message)
    assert told.filename == __file__  # the line of the program that asked for the page
    assert "nothing was spent" in str(told.message)
    quote = Session().quote("GET", paywall.url)
    assert quote is not None
    assert quote.amount_msat == 10_000
    assert not books.ledger_path.exists() or not books.rows


@pytest.mark.usefixtures("nowhere")
def test_what_is_given_by_name_holds_without_an_environment(paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """`Session(funding=…)` is a session that pays, on the environment's ledger."""
    with Session(funding=[lnd.funding()], budget_envelope=None) as session:
        assert session.get(paywall.url).status_code == 200
    assert [row.envelope_id for row in books.rows] == [None]
    books.check()


@pytest.mark.usefixtures("environ")
def test_install_reaches_what_is_named_later_and_uninstall_gives_it_back(paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """Once installed, libraries that use `requests` pay; and a test that uninstalls must leave nothing behind."""
    before = (requests.Session, requests.sessions.Session, requests.session, requests.get)
    early, bound_get = requests.Session(), requests.get
    routeweiler_sync.install()
    routeweiler_sync.install()  # again: no second layer
    assert not requests.get(paywall.url).payment.reused  # type: ignore[attr-defined]
    assert bound_get(paywall.url).payment.reused  # type: ignore[attr-defined]

    class Derived(requests.Session):
        pass

    for session in (requests.Session(), requests.session(), requests.sessions.Session(), Derived()):
        assert isinstance(session, Routeweiler)
        assert session.get(paywall.url).payment.reused  # type: ignore[attr-defined]
    late = requests.Session()
    assert early.get(paywall.url).status_code == 402
    routeweiler_sync.uninstall()
    routeweiler_sync.uninstall()
    assert (requests.Session, requests.sessions.Session, requests.session, requests.get) == before
    assert requests.get(paywall.url).status_code == 402
    assert late.get(paywall.url).status_code == 200  # as documented
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert Derived().get(paywall.url).status_code == 402  # derived from what is no longer installed
    assert len(lnd.payments) == 1
    books.check()


@pytest.mark.usefixtures("environ")
def test_uninstall_leaves_what_another_has_put_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache or a mock that came after us is its owner's to take away."""

    class Theirs(requests.Session):
        pass

    for module in (requests, requests.sessions):
        monkeypatch.setattr(module, "Session", module.Session)  # put back at the end
    routeweiler_sync.install()
    requests.Session = requests.sessions.Session = Theirs  # type: ignore[misc]
    routeweiler_sync.uninstall()
    assert requests.Session is requests.sessions.Session is Theirs


@pytest.mark.usefixtures("environ")
def test_install_takes_routeweilers_arguments(paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """Limits given there hold for whoever uses `requests`; what can't be is told at once, and nothing is installed."""
    with pytest.raises(ValueError, match="payment_timeout"):
        routeweiler_sync.install(payment_timeout=-1)
    assert not issubclass(requests.Session, Routeweiler)
    asked: list[int] = []
    routeweiler_sync.install(confirm=lambda quote: asked.append(quote.amount_msat) is None, agent_id="script")
    assert requests.get(paywall.url).status_code == 200
    assert asked == [10_000]
    assert {line["agentId"] for line in books.lines} == {"script"}
    books.check()


NODE_VARIABLES = ("LND_GRPC_HOST", "LND_TLS_CERT_PATH", "LND_MACAROON_PATH")
POLAR_VARIABLES = ("POLAR_LND_HOST", "POLAR_LND_TLS_CERT", "POLAR_LND_MACAROON")


def name_node(environ: pytest.MonkeyPatch, lnd: FakeLnd, way: str) -> None:
    """Name the node in one of the environment's ways."""
    values = {name: lnd.environ[name] for name in NODE_VARIABLES}
    for name in lnd.environ:
        environ.delenv(name)
    if way == "polar":
        values = dict(zip(POLAR_VARIABLES, values.values(), strict=True))
    elif way == "lndconnect":
        values = {"ROUTEWEILER_LNDCONNECT": lnd.lndconnect_uri}
    for name, value in values.items():
        environ.setenv(name, value)


@pytest.mark.parametrize("by", [routeweiler_sync.wrap, Routeweiler.wrap, Session.wrap], ids=["wrap", "Routeweiler", "Session"])
@pytest.mark.parametrize("way", ["paths", "polar", "lndconnect"])
def test_wrap_without_a_wallet_pays_as_the_environment_says(
    by: Any, way: str, environ: pytest.MonkeyPatch, lnd: FakeLnd, paywall: Paywall, books: Books
) -> None:
    """Sessions that libraries make would stay unpaid though the environment says with what to pay."""
    name_node(environ, lnd, way)
    with by(requests.Session()) as session:
        assert session.get(paywall.url).status_code == 200
    assert len(books.lines) == 1
    books.check()


def test_wrap_takes_the_environments_budget_and_a_setting_of_its_own(
    environ: pytest.MonkeyPatch, lnd: FakeLnd, paywall: Paywall, books: Books
) -> None:
    """Only what is given takes the place of what the environment says."""
    environ.setenv("ROUTEWEILER_BUDGET", "9 sat/call")
    with pytest.raises(BudgetExceededError, match="per_call_minor_units=9"):
        routeweiler_sync.wrap(requests.Session(), agent_id="me").get(paywall.url)
    assert books.lines[0]["agentId"] == "me"
    assert routeweiler_sync.wrap(requests.Session(), budget_envelope=None).get(paywall.url).status_code == 200


def test_wrap_with_no_wallet_given_in_so_many_words_pays_nothing(
    environ: pytest.MonkeyPatch, lnd: FakeLnd, paywall: Paywall, books: Books
) -> None:
    """``funding=()`` says that nothing is to be paid, whatever the environment names."""
    with pytest.raises(NoFundingForRailError):
        routeweiler_sync.wrap(requests.Session(), funding=()).get(paywall.url)
    assert lnd.orders == []


def test_wrap_where_no_node_is_named_is_plain_requests(nowhere: None, paywall: Paywall) -> None:
    """As with a `Session`: a 402 comes back as it is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        assert routeweiler_sync.wrap(requests.Session()).get(paywall.url).status_code == 402


class Named(requests.Session):
    """One of a library's own kind."""

    def request(self, *args: Any, **kwargs: Any) -> requests.Response:
        response = super().request(*args, **kwargs)
        response.headers["X-Named"] = "yes"
        return response


@pytest.mark.parametrize("kind", [requests.Session, Named])
def test_wrap_shares_what_a_session_has_and_leaves_it_alone(
    kind: type[requests.Session], lnd: FakeLnd, paywall: Paywall, books: Books
) -> None:
    """A session that a library has made, with its login and its retries: whoever pays for it sends what it would send."""
    original = kind()
    original.headers["X-Own"] = "1"
    original.cookies["own"] = "2"
    mine = HTTPAdapter(max_retries=3)
    original.mount("http://127.0.0.1", mine)
    seen: list[int] = []
    original.hooks["response"].append(lambda response, **kwargs: seen.append(response.status_code))
    wrapped = routeweiler_sync.wrap(original, funding=[lnd.funding()], ledger=books.ledger_path, trace_sink=books.trace_path)
    assert isinstance(wrapped, Routeweiler)
    assert isinstance(wrapped, kind)
    for name in ("adapters", "headers", "cookies", "hooks", "params", "proxies"):
        assert getattr(wrapped, name) is getattr(original, name), name
    response = wrapped.get(paywall.url)
    assert not response.payment.reused  # type: ignore[attr-defined]
    assert seen == [200]
    for request in paywall.requests:
        assert (request.headers["X-Own"], request.headers["Cookie"]) == ("1", "own=2")
    assert ("X-Named" in response.headers) == (kind is Named)
    assert response.connection is mine
    assert original.get(paywall.url).status_code == 402
    with pytest.raises(ValueError, match="pays already"):
        routeweiler_sync.wrap(wrapped, funding=[lnd.funding()])
    wrapped.close()
    assert len(lnd.payments) == 1
    books.check()


def test_the_adapter_on_a_plain_session(lnd: FakeLnd, paywall: Paywall, books: Books) -> None:
    """Paid pages at one prefix, all else as ever."""
    plain = requests.Session()
    paying = PaywallAdapter(
        funding=[lnd.funding()], ledger=books.ledger_path, trace_sink=books.trace_path, max_retries=2, pool_maxsize=4
    )
    assert paying.max_retries.total == 2
    plain.mount(paywall.base_url + "/paid", paying)
    assert plain.get(paywall.url).payment.amount_msat == 10_000  # type: ignore[attr-defined]
    assert plain.get(paywall.url).payment.reused  # type: ignore[attr-defined]
    assert plain.get(paywall.url_for("/elsewhere")).status_code == 402
    assert plain.get(paywall.url_for("/redirect?to=/paid")).history[0].status_code == 302
    with pytest.raises(BudgetExceededError):  # the safe default holds
        paywall.service.price_msat = 2_000_000
        paywall.revoke_tokens()
        plain.get(paywall.url)
    with pytest.raises(ValueError, match="payment_timeout"):
        PaywallAdapter(payment_timeout=0)
    paying.close()
    assert len(lnd.payments) == 1
    books.check()


@pytest.mark.usefixtures("environ")
def test_the_adapter_without_arguments_pays_as_the_environment_says(paywall: Paywall, books: Books) -> None:
    """It is mounted, and would be no more than an HTTPAdapter: nobody would know why nothing is paid."""
    plain = requests.Session()
    plain.mount("http://", PaywallAdapter())
    assert plain.get(paywall.url).status_code == 200
    books.check()


@pytest.mark.slow
def test_a_process_ends_without_a_word(lnd: FakeLnd, paywall: Paywall, books: Books) -> None:
    """What is shared by a process must be closed at its end: -X dev tells of each file that isn't."""
    program = f"import routeweiler_sync as requests; [requests.get({paywall.url!r}) for _ in range(3)]; requests.Session()"
    environ = {
        **os.environ,
        **lnd.environ,
        "ROUTEWEILER_LEDGER": str(books.ledger_path),
        "ROUTEWEILER_TRACE": str(books.trace_path),
    }
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error::ResourceWarning", "-c", program], env=environ, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "")
    assert "Warning" not in done.stderr, done.stderr
    books.check()


@pytest.mark.slow
def test_a_ledger_without_a_home(paywall: Paywall, lnd: FakeLnd, tmp_path: Path) -> None:
    """In a container with a made-up user there is no state folder: free pages come, and what would cost says what to do."""
    program = (
        "import routeweiler_sync as requests, sys\n"
        "assert requests.get(sys.argv[1] + '/free').status_code == 200\n"
        "try:\n    requests.get(sys.argv[1] + '/paid')\n"
        "except requests.RequestException as error:\n    print(type(error).__name__, error.spent)\n"
    )
    ledger = tmp_path / "file" / "ledger.db"
    (tmp_path / "file").write_text("no folder")
    done = subprocess.run(
        [sys.executable, "-c", program, paywall.base_url],
        env={**os.environ, **lnd.environ, "ROUTEWEILER_LEDGER": str(ledger)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "LedgerError False"), done.stderr
    assert lnd.calls["SendPaymentV2"] == 0


def test_free_traffic_needs_no_home(paywall: Paywall, tmp_path: Path) -> None:
    """In a container with a made-up user there is no home and no state folder: pages that cost nothing must come all the same."""
    code = "import sys, routeweiler_sync as r; print(r.Routeweiler().get(sys.argv[1]).status_code)"
    if os.name != "posix":
        pytest.skip("homes are told otherwise here")
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o000)
    for home in ("", str(locked)):
        env = {**os.environ, "HOME": home, "XDG_STATE_HOME": str(locked / "state")}
        done = subprocess.run([sys.executable, "-c", code, paywall.url_for("/free")], env=env, capture_output=True, text=True)
        assert done.stdout == "200\n", done.stderr
    locked.chmod(0o700)
