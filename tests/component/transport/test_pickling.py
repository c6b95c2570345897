"""Sessions, responses and errors that are pickled, copied, or taken along into another process."""

from __future__ import annotations

import concurrent.futures
import copy
import functools
import gc
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import requests

import routeweiler_sync
from routeweiler_sync import (
    BudgetEnvelope,
    BudgetExceededError,
    Funding,
    FundingError,
    InvoicePaymentError,
    LedgerError,
    PaymentPendingError,
    PaymentStatus,
    PaywallAdapter,
    Policy,
    Routeweiler,
    RouteweilerError,
    Session,
    StaticRate,
    TokenRefusedError,
    TraceSink,
    UnreplayableBodyError,
    payment_of,
    wrap,
)
from routeweiler_sync.paywall import negotiation
from routeweiler_sync.testing import FakeLnd, Paywall
from tests.support.accounts import Books

PROTOCOLS = range(2, pickle.HIGHEST_PROTOCOL + 1)


class Base(requests.Session):
    """A mixin with arguments and a state of its own, as many projects have one."""

    def __init__(self, base_url: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.base_url = base_url

    def request(self, method: str, url: str, *args: Any, **kwargs: Any) -> requests.Response:  # type: ignore[override]
        return super().request(method, self.base_url + url if url.startswith("/") else url, *args, **kwargs)


class Mixed(Base, Routeweiler):
    """The mixin before ours, and kept in a pickle by the means that `requests` has for it."""

    __attrs__: ClassVar[list[str]] = [*requests.Session.__attrs__, "base_url"]


def paying(**kwargs: Any) -> requests.Session:
    return Routeweiler(**kwargs)


def mixed(**kwargs: Any) -> requests.Session:
    return Mixed("http://127.0.0.1:9", **kwargs)


def of_the_environment(**kwargs: Any) -> requests.Session:
    return Session()


def wrapped(**kwargs: Any) -> requests.Session:
    session = requests.Session()
    session.headers["X-Mine"] = "kept"
    return wrap(session, **kwargs)


def wrapped_other(**kwargs: Any) -> requests.Session:
    return wrap(Base("http://127.0.0.1:9"), **kwargs)


def mounted_by_hand(**kwargs: Any) -> requests.Session:
    session = requests.Session()
    session.mount("http://", PaywallAdapter(**kwargs))
    return session


KINDS = [paying, mixed, of_the_environment, wrapped, wrapped_other, mounted_by_hand]


def pickled_with(protocol: int) -> Callable[[Any], Any]:
    def twin(thing: Any) -> Any:
        return pickle.loads(pickle.dumps(thing, protocol))

    twin.__name__ = f"pickle{protocol}"
    return twin


pickled = pickled_with(pickle.HIGHEST_PROTOCOL)
WAYS = [copy.copy, copy.deepcopy, *map(pickled_with, PROTOCOLS)]


@pytest.fixture
def environ(lnd: FakeLnd, books: Books) -> dict[str, str]:
    """Ledger, trace and node, as the environment has them."""
    return {
        **lnd.environ,
        "ROUTEWEILER_LEDGER": os.fspath(books.ledger_path),
        "ROUTEWEILER_TRACE": os.fspath(books.trace_path),
        "ROUTEWEILER_NETWORK": "bitcoin-regtest",
    }


@pytest.fixture
def arguments(
    lnd: FakeLnd, books: Books, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> dict[str, Any]:
    """Ledger, trace and node, as arguments; in the environment for those alone who look there."""
    if getattr(request.node, "callspec", None) and request.node.callspec.params.get("kind") is of_the_environment:
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
    return {"funding": [lnd.funding()], "ledger": books.ledger_path, "trace_sink": TraceSink.jsonl(books.trace_path)}


# Sessions


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_twin_uses_the_tokens_and_the_budget(
    kind: Callable[..., requests.Session],
    way: Callable[[Any], Any],
    arguments: dict[str, Any],
    paywall: Paywall,
    lnd: FakeLnd,
    books: Books,
) -> None:
    """A worker that was handed a session would pay for what it has already, out of a budget of its own, or wouldn't pay at all."""
    paywall.add_service("/other", name="other", price_msat=7_000)
    session = kind(**arguments)
    session.headers["X-Program"] = "mine"
    assert session.get(paywall.url).status_code == 200
    twin = way(session)
    assert type(twin) is type(session)
    assert twin.headers == session.headers
    response = twin.get(paywall.url)
    assert (response.status_code, payment_of(response).reused) == (200, True)
    response = twin.get(paywall.url_for("/other"))
    assert (response.status_code, payment_of(response).reused, payment_of(response).amount_msat) == (200, False, 7_000)
    assert payment_of(session.get(paywall.url_for("/other"))).reused
    assert [payment.amount_msat for payment in lnd.payments] == [10_000, 7_000]
    (envelope,) = books.ledger.envelopes()
    assert envelope.settled_minor_units == 17
    books.check()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_pickle_before_the_first_use_pays(
    kind: Callable[..., requests.Session], arguments: dict[str, Any], paywall: Paywall, books: Books
) -> None:
    """Sessions are made in the parent and used in the workers alone: nothing was opened when they were pickled."""
    assert pickled(kind(**arguments)).get(paywall.url).status_code == 200
    books.check()


def test_a_state_of_a_mixin_is_kept(arguments: dict[str, Any], paywall: Paywall) -> None:
    """What a subclass names in ``__attrs__`` comes through a pickle with `requests`, and so it must with ours."""
    session = Mixed(paywall.base_url, **arguments)
    for way in WAYS:
        assert way(session).get("/paid").status_code == 200


def test_each_hand_of_a_pickle_of_many_has_one_payer(arguments: dict[str, Any]) -> None:
    """Two payers behind one session would be two budgets of a block, two token books, and a 402 between them."""
    session = pickled(Routeweiler(**arguments))
    assert {id(adapter.payer) for adapter in session.adapters.values()} == {id(session._payer)}
    one, other = pickled([session, session])
    assert one is other


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_twin_shares_the_ledger_that_the_environment_named(
    way: Callable[[Any], Any], lnd: FakeLnd, paywall: Paywall, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it wakes the default may be another file: there it would pay for everything again."""
    monkeypatch.setenv("ROUTEWEILER_LEDGER", os.fspath(tmp_path / "mine.db"))
    session = Routeweiler(funding=[lnd.funding()])
    early = way(session)
    assert session.get(paywall.url).status_code == 200
    monkeypatch.setenv("ROUTEWEILER_LEDGER", os.fspath(tmp_path / "another.db"))
    for twin in (early, way(session)):
        assert payment_of(twin.get(paywall.url)).reused
    assert len(lnd.payments) == 1


@pytest.mark.slow
def test_no_secret_that_was_given_inline_is_in_a_pickle(
    lnd: FakeLnd, arguments: dict[str, Any], paywall: Paywall, books: Books
) -> None:
    """Pickles lie in caches and queues: a macaroon there is a wallet there. The tokens that are paid for serve all the same."""
    macaroon = Path(lnd.macaroon_path).read_bytes()
    funding = [lnd.funding(client=lnd.client(macaroon_hex=macaroon.hex()))]
    paywall.add_service("/other", name="other", price_msat=7_000)
    for kind in (paying, mixed, wrapped, wrapped_other, mounted_by_hand):
        session = kind(**arguments | {"funding": funding})
        assert session.get(paywall.url).status_code == 200
        for protocol in PROTOCOLS:
            data = pickle.dumps(session, protocol)
            assert macaroon.hex().encode() not in data
            assert macaroon not in data
            twin = pickle.loads(data)
            assert payment_of(twin.get(paywall.url)).reused
            with pytest.raises(FundingError, match="isn't pickled") as caught:
                twin.get(paywall.url_for("/other"))
            assert caught.value.spent is False
    assert len(lnd.payments) == 1
    assert copy.deepcopy(session).get(paywall.url_for("/other")).status_code == 200  # within the process it is the same client
    books.check()


def test_the_environments_session_is_made_of_the_environment_where_it_wakes(
    environ: dict[str, str], paywall: Paywall, lnd: FakeLnd, monkeypatch: pytest.MonkeyPatch, books: Books
) -> None:
    """A lndconnect URI holds the macaroon, so it is in no pickle; the worker has the variable itself."""
    for name in environ.keys() - lnd.environ.keys():
        monkeypatch.setenv(name, environ[name])
    monkeypatch.setenv("ROUTEWEILER_LNDCONNECT", lnd.lndconnect_uri)
    session = Session()
    paywall.add_service("/other", name="other", price_msat=7_000)
    assert session.get(paywall.url).status_code == 200
    data = pickle.dumps(session)
    macaroon = Path(lnd.macaroon_path).read_bytes()
    assert macaroon not in data
    assert macaroon.hex().encode() not in data
    assert lnd.lndconnect_uri.partition("macaroon=")[2].encode() not in data
    twin = pickle.loads(data)
    assert payment_of(twin.get(paywall.url)).reused
    assert twin.get(paywall.url_for("/other")).status_code == 200
    books.check()


def test_the_list_of_attributes_is_that_of_requests(arguments: dict[str, Any], paywall: Paywall, lnd: FakeLnd) -> None:
    """Programs copy a session by its ``__attrs__``. To a paying one: it pays with its own payer; the headers are there."""
    assert Routeweiler.__attrs__ == requests.Session.__attrs__
    plain = requests.Session()
    plain.headers["X-Mine"] = "kept"
    session = Routeweiler(**arguments)
    for name in session.__attrs__:
        if name != "adapters":
            setattr(session, name, getattr(plain, name))
    assert session.get(paywall.url).status_code == 200
    assert all(request.headers["X-Mine"] == "kept" for request in paywall.requests)
    other = requests.Session()
    for name in session.__attrs__:
        setattr(other, name, getattr(session, name))
    assert payment_of(other.get(paywall.url)).reused
    assert len(lnd.payments) == 1


# Responses


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, *map(pickled_with, PROTOCOLS)], ids=lambda way: way.__name__)
def test_a_paid_response_with_its_history(session: Routeweiler, paywall: Paywall, lnd: FakeLnd, way: Callable[[Any], Any]) -> None:
    """Responses lie in caches: one that can't be pickled breaks the cache, one with the token in it gives the access away."""
    target = paywall.url_for("/there?q=1")
    paywall.respond = lambda request: (302, {"Location": target}, b"") if request.path == "/paid" else (200, {}, b"there\n")
    streamed = session.get(paywall.url, stream=True)
    for response in (session.get(paywall.url), streamed):
        twin = way(response)
        assert (twin.status_code, twin.content, twin.url) == (200, b"there\n", target)
        assert [hop.status_code for hop in twin.history] == [hop.status_code for hop in response.history]
        assert twin.elapsed == response.elapsed
    assert [hop.status_code for hop in streamed.history] == [402, 302]
    secrets = [secret for row in session._payer.ledger.payments() for secret in (row.token, row.preimage)]
    assert all(len(secret) > 60 for secret in secrets)
    data = pickle.dumps([streamed, streamed.history, streamed.request])
    assert not [secret for secret in secrets if secret.encode() in data]
    unpickled = pickled(streamed)
    assert "Authorization" not in unpickled.request.headers
    assert unpickled.request.url == target
    assert "Authorization" not in unpickled.history[1].request.headers
    assert session.send(unpickled.request).status_code == 200  # with the token attached anew
    assert len(lnd.payments) == 1


def test_a_request_that_carried_a_body_is_pickled_with_it(session: Routeweiler, paywall: Paywall) -> None:
    """What was asked for is in the log that a program keeps by pickling."""
    response = session.post(paywall.url, json={"q": 1})
    twin = pickled(response)
    assert (twin.request.method, twin.request.body, twin.request.url) == ("POST", response.request.body, paywall.url)
    assert twin.request.headers["Content-Type"] == "application/json"


# Errors


def every_error(kind: type[RouteweilerError] = RouteweilerError) -> Iterator[type[RouteweilerError]]:
    yield kind
    for each in kind.__subclasses__():
        yield from every_error(each)


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(every_error()), ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_every_error_is_what_it_was(
    kind: type[RouteweilerError], way: Callable[[Any], Any], session: Routeweiler, paywall: Paywall
) -> None:
    """A process pool hands errors over by pickle: one that fails breaks the pool, one that lost ``spent`` lies about money."""
    response = session.get(paywall.url_for("/free"))
    for spent in (False, True, None):
        error = kind("what happened", payment_hash="ab" * 32, spent=spent, response=response, request=response.request)
        twin = way(error)
        assert type(twin) is kind
        assert (str(twin), twin.args, twin.spent, twin.payment_hash, twin.code) == (
            str(error), error.args, spent, "ab" * 32, kind.code,
        )  # fmt: skip
        assert twin.response.status_code == 200
        assert twin.request.url == response.request.url


def refused(session: Routeweiler, paywall: Paywall) -> None:
    paywall.faults.refuse_tokens = True
    session.get(paywall.url)


def failed(session: Routeweiler, paywall: Paywall) -> None:
    paywall.lnd.fail_next()
    session.get(paywall.url)


def pending(session: Routeweiler, paywall: Paywall) -> None:
    paywall.lnd.hang_next()
    session._payer.payment_timeout_s = 1.0
    session.get(paywall.url)


def too_dear(session: Routeweiler, paywall: Paywall) -> None:
    paywall.price = 5_000
    session.get(paywall.url)


def unreplayable(session: Routeweiler, paywall: Paywall) -> None:
    session.post(paywall.url, data=iter([b"once"]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("act", "kind"),
    [
        (refused, TokenRefusedError),
        (failed, InvoicePaymentError),
        (pending, PaymentPendingError),
        (too_dear, BudgetExceededError),
        (unreplayable, UnreplayableBodyError),
    ],
    ids=lambda value: value.__name__,
)
def test_an_error_as_it_is_raised(
    act: Callable[..., None], kind: type, session: Routeweiler, paywall: Paywall, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the 402 and the request in it, as a worker raises it: and without the token that the request has carried."""
    monkeypatch.setattr(negotiation, "OFFER_AGAIN_S", 0.5)
    with pytest.raises(kind) as caught:
        act(session, paywall)
    error = caught.value
    for protocol in PROTOCOLS:
        data = pickle.dumps(error, protocol)
        twin = pickle.loads(data)
        assert type(twin) is kind
        assert (str(twin), twin.spent, twin.payment_hash) == (str(error), error.spent, error.payment_hash)
        assert twin.response.status_code == error.response.status_code
        assert twin.request.url == error.request.url
        assert vars(twin).keys() == vars(error).keys()
        for row in session._payer.ledger.payments():
            assert row.token.encode() not in data


# Other processes


def fetch(session: requests.Session, url: str) -> tuple[int, bool | None, int]:
    """In a worker: status, whether the token was there already, and the process."""
    response = session.get(url)
    payment = payment_of(response)
    return response.status_code, None if payment is None else payment.reused, os.getpid()


def fetch_response(session: requests.Session, url: str) -> requests.Response:
    return session.get(url)


METHODS = [name for name in ("spawn", "forkserver", "fork") if name in multiprocessing.get_all_start_methods()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "kind"),
    [*((method, paying) for method in METHODS), *(("spawn", kind) for kind in KINDS if kind is not paying)],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_a_pool_of_processes(
    method: str,
    kind: Callable[..., requests.Session],
    arguments: dict[str, Any],
    paywall: Paywall,
    lnd: FakeLnd,
    books: Books,
) -> None:
    """`ProcessPoolExecutor` hands the session over with each job: all jobs share the tokens, and one buys what is missing."""
    paywall.add_service("/other", name="other", price_msat=7_000)
    session = kind(**arguments)
    assert session.get(paywall.url).status_code == 200
    context = multiprocessing.get_context(method)
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
        held = [pool.submit(fetch, session, paywall.url) for _ in range(4)]
        bought = [pool.submit(fetch, session, paywall.url_for("/other")) for _ in range(4)]
        assert [job.result(120)[:2] for job in held] == [(200, True)] * 4
        results = [job.result(120) for job in bought]
        response = pool.submit(fetch_response, session, paywall.url).result(120)
    assert sorted(result[:2] for result in results) == [(200, False)] + [(200, True)] * 3
    assert os.getpid() not in {result[2] for result in results}
    assert (response.status_code, response.content) == (200, paywall.content)
    assert "Authorization" not in response.request.headers
    assert payment_of(session.get(paywall.url_for("/other"))).reused
    assert [payment.amount_msat for payment in lnd.payments] == [10_000, 7_000]
    books.check()


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_an_error_comes_out_of_a_pool(method: str, arguments: dict[str, Any], paywall: Paywall, lnd: FakeLnd) -> None:
    """What a worker was refused is told to the parent as it is, with whether it was paid."""
    envelope = BudgetEnvelope("small", per_call_minor_units=1)
    session = Routeweiler(**arguments | {"budget_envelope": envelope})
    context = multiprocessing.get_context(method)
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool, pytest.raises(BudgetExceededError) as caught:
        pool.submit(fetch, session, paywall.url).result(120)
    assert caught.value.spent is False
    assert caught.value.response.status_code == 402
    assert lnd.payments == []


def in_a_child(session: requests.Session, url: str, told: Any) -> None:
    told.put(fetch(session, url))


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_session_as_a_processs_argument(
    method: str, arguments: dict[str, Any], paywall: Paywall, lnd: FakeLnd, books: Books
) -> None:
    """`multiprocessing.Process(args=(session, …))`, and the parent goes on with it meanwhile."""
    paywall.add_service("/other", name="other", price_msat=7_000)
    session = Routeweiler(**arguments)
    assert session.get(paywall.url).status_code == 200
    context = multiprocessing.get_context(method)
    told = context.Queue()
    child = context.Process(target=in_a_child, args=(session, paywall.url_for("/other"), told))
    child.start()
    assert payment_of(session.get(paywall.url)).reused
    assert told.get(timeout=120)[:2] == (200, False)
    child.join(60)
    assert child.exitcode == 0
    assert payment_of(session.get(paywall.url_for("/other"))).reused
    assert len(lnd.payments) == 2
    books.check()


#: The session has been used, so its connections, ledger and trace are open when the process forks; all of them go on.
FORK = """
import os, sys
from routeweiler_sync import payment_of
from tests.component.transport.test_pickling import FORKED, fork_arguments
kind, base = sys.argv[1:]
session = next(each for each in FORKED if each.__name__ == kind)(**fork_arguments())

def port():
    response = session.get(base + "/free", stream=True)
    connection = getattr(response.raw, "connection", None) or response.raw._connection
    number = connection.sock.getsockname()[1]
    assert response.content  # and the connection is back in the pool
    return number

def reused(path):
    response = session.get(base + path)
    assert response.status_code == 200, response
    return payment_of(response).reused

assert not reused("/paid")
parents = port()
children = []
for number in range(3):
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            assert port() != parents
            assert reused("/paid")
            assert not reused(f"/mine/{number}")
            reused("/ours")
            code = 0
        except BaseException as error:
            print(type(error).__name__, error, file=sys.stderr, flush=True)
        finally:
            os._exit(code)
    children.append(pid)
assert reused("/paid")
reused("/ours")
codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
assert all(reused(f"/mine/{number}") for number in range(3))
sys.exit(max(codes, key=abs))
"""


def fork_arguments() -> dict[str, Any]:
    """A session's arguments of what the environment names, in a process that `FORK` runs in."""
    from routeweiler_sync import Funding, LndClient

    return {
        "funding": [Funding.lightning_lnd(client=LndClient.from_env(), network="bitcoin-regtest")],
        "ledger": os.environ["ROUTEWEILER_LEDGER"],
        "trace_sink": TraceSink.jsonl(os.environ["ROUTEWEILER_TRACE"]),
    }


def with_an_adapter_of_the_users(**kwargs: Any) -> requests.Session:
    session = Routeweiler(**kwargs)
    session.mount("http://", requests.adapters.HTTPAdapter(max_retries=1))
    return session


FORKED = [*KINDS, with_an_adapter_of_the_users]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.parametrize("kind", FORKED, ids=lambda kind: kind.__name__)
def test_a_fork_after_use(
    kind: Callable[..., requests.Session], environ: dict[str, str], paywall: Paywall, lnd: FakeLnd, books: Books
) -> None:
    """Web servers fork their workers when all is loaded and warm. On one connection each would read what another was answered, and
    pay for that.
    """
    for name in ("mine/0", "mine/1", "mine/2", "ours"):
        paywall.add_service(f"/{name}", name=name, price_msat=1_000)
    done = subprocess.run(
        [sys.executable, "-c", FORK, kind.__name__, paywall.base_url],
        env=os.environ | environ,
        cwd=Path(__file__).parents[3],
        timeout=50,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert len(lnd.payments) == 5
    assert {payment.status for payment in lnd.payments} == {"SUCCEEDED"}
    books.check()


@pytest.fixture
def dynamic(lnd: FakeLnd) -> Iterator[Paywall]:
    """A paywall that sells each page by itself."""
    with Paywall(lnd, price_msat=10_000, dynamic=True) as wall:
        yield wall


class Unpicklable:
    """Something with a lock: it can be neither pickled nor deep-copied."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.asked = 0

    def agree(self, quote: object) -> bool:
        self.asked += 1
        return True

    def agree_with(self, answer: bool, quote: object) -> bool:
        return self.agree(quote) and answer


class LockedNode(Unpicklable):
    """A wallet of a program's own."""

    def __init__(self, lnd: FakeLnd) -> None:
        super().__init__()
        self.node = lnd.client()

    def pay_invoice(self, bolt11: str, *, max_fee_msat: int) -> bytes:
        return self.node.pay_invoice(bolt11, max_fee_msat=max_fee_msat)

    def track_payment(self, payment_hash: bytes) -> PaymentStatus:
        return self.node.track_payment(payment_hash)

    def get_node_pubkey(self) -> str:
        return self.node.get_node_pubkey()


class LockedRate(Unpicklable, StaticRate):
    def __init__(self) -> None:
        Unpicklable.__init__(self)
        StaticRate.__init__(self, 60_000)


class LockedPolicy(Policy):
    def __reduce__(self) -> Any:
        raise TypeError("not this one")


class LockedSink(TraceSink):
    def __init__(self) -> None:
        super().__init__("nowhere")

    def emit(self, event: object) -> bool:
        return True

    def _write(self, event_id: str, payload: dict[str, Any], text: str) -> None: ...
    def _close(self) -> None: ...
    def _forget_after_fork(self) -> None: ...
    def __reduce__(self) -> Any:
        raise TypeError("not this one")


def agree(quote: object) -> bool:
    return True


IN_DOLLARS = BudgetEnvelope("usd", cap_minor_units=1_000, cap_currency="usd")
UNPICKLABLE: dict[str, Callable[[FakeLnd], dict[str, Any]]] = {
    "lambda": lambda lnd: {"confirm": lambda quote: True},
    "method": lambda lnd: {"confirm": Unpicklable().agree},
    "partial": lambda lnd: {"confirm": functools.partial(Unpicklable().agree_with, True)},
    "client": lambda lnd: {"funding": [Funding.lightning_lnd(client=LockedNode(lnd), network="bitcoin-regtest")]},
    "provider": lambda lnd: {"fmv_provider": LockedRate(), "budget_envelope": IN_DOLLARS},
    "policy": lambda lnd: {"policy": LockedPolicy([])},
    "trace": lambda lnd: {"trace_sink": LockedSink()},
}
LOST = {"lambda": "confirm", "method": "confirm", "partial": "confirm", "client": "funding", "provider": "fmv_provider"}


@pytest.mark.parametrize("how", ["pickle", "twice", "adapter"])
@pytest.mark.parametrize("part", UNPICKLABLE)
def test_a_session_with_a_part_that_cant_be_pickled_uses_tokens_and_buys_nothing(
    arguments: dict[str, Any], dynamic: Paywall, lnd: FakeLnd, part: str, how: str
) -> None:
    """A worker's copy that buys without asking spends money that nobody agreed to; one that can't be made stops the program."""
    arguments |= UNPICKLABLE[part](lnd)
    session: requests.Session
    if how == "adapter":
        session = requests.Session()
        session.mount("http://", PaywallAdapter(**arguments))
    else:
        session = Routeweiler(**arguments)
    assert session.get(dynamic.url_for("/held")).status_code == 200
    there = pickle.loads(pickle.dumps(session))
    if how == "twice":
        there = pickle.loads(pickle.dumps(there))
    assert there.get(dynamic.url_for("/held")).status_code == 200
    with pytest.raises(FundingError, match=f"{LOST.get(part, part)}.* couldn't be pickled") as refused:
        there.get(dynamic.url_for("/new"))
    assert refused.value.spent is False
    assert len(lnd.orders) == 1
    assert session.get(dynamic.url_for("/new")).status_code == 200, "the original goes on"


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy], ids=["copy", "deepcopy"])
@pytest.mark.parametrize("part", UNPICKLABLE)
def test_a_copy_within_the_process_shares_what_cant_be_copied(
    arguments: dict[str, Any], dynamic: Paywall, lnd: FakeLnd, part: str, way: Callable[[Any], Any]
) -> None:
    """Nothing is lost where nothing is pickled: the copy asks the very same confirm(), and pays by the same wallet."""
    session = Routeweiler(**arguments | UNPICKLABLE[part](lnd))
    there = way(session)
    assert there._payer.confirm is session._payer.confirm
    assert there.get(dynamic.url_for("/new")).status_code == 200
    assert session.get(dynamic.url_for("/new")).status_code == 200
    assert len(lnd.orders) == 1


def test_a_confirm_that_can_be_pickled_is_asked_by_the_copy(arguments: dict[str, Any], dynamic: Paywall, lnd: FakeLnd) -> None:
    """A function of a module goes along."""
    there = pickle.loads(pickle.dumps(Routeweiler(**arguments, confirm=agree)))
    assert there.get(dynamic.url_for("/new")).status_code == 200
    assert there._payer.confirm is agree


def test_a_provider_that_isnt_needed_isnt_missed(arguments: dict[str, Any], dynamic: Paywall) -> None:
    """A budget in sats has no use for a price."""
    there = pickle.loads(pickle.dumps(Routeweiler(**arguments, fmv_provider=LockedRate())))
    assert there.get(dynamic.url_for("/new")).status_code == 200


def test_an_unfinished_payment_isnt_sent_again_without_asking(
    arguments: dict[str, Any], dynamic: Paywall, lnd: FakeLnd, books: Books
) -> None:
    """The order of an earlier run would leave from a copy that has lost its confirm()."""
    session = Routeweiler(**arguments, confirm=lambda quote: True)
    lnd.drop_next("before_init", times=None)
    with pytest.raises(PaymentPendingError):
        session.get(dynamic.url_for("/new"))
    lnd.clear_faults()
    there = pickle.loads(pickle.dumps(session))
    with pytest.raises(PaymentPendingError, match="confirm couldn't be pickled") as pending:
        there.get(dynamic.url_for("/new"))
    assert pending.value.spent is None
    assert "othing was spent" not in str(pending.value)
    assert lnd.payments == []


def test_an_unpickled_session_of_the_environment_remembers_what_it_lost(
    monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], dynamic: Paywall, lnd: FakeLnd
) -> None:
    """It takes its node from the environment where it is unpickled, and mustn't take that for leave to buy unasked."""
    blob = pickle.dumps(Session(ledger=arguments["ledger"], confirm=lambda quote: True))  # no node is named here
    for name, value in lnd.environ.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(FundingError, match="confirm couldn't be pickled"):
        pickle.loads(blob).get(dynamic.url_for("/new"))
    assert lnd.orders == []


def test_the_reason_repeats_nothing_of_the_part(arguments: dict[str, Any], dynamic: Paywall) -> None:
    """The error of a pickle repeats the part's repr, and that may be a key."""

    class Secretive:
        def __call__(self, quote: object) -> bool:
            return True

        def __repr__(self) -> str:
            return "sesame"

    blob = pickle.dumps(Routeweiler(**arguments, confirm=Secretive()))
    with pytest.raises(FundingError) as refused:
        pickle.loads(blob).get(dynamic.url_for("/new"))
    assert "sesame" not in str(refused.value) + repr(blob)


@pytest.mark.parametrize("way", [pickled, copy.copy, copy.deepcopy], ids=["pickle", "copy", "deepcopy"])
@pytest.mark.parametrize("ledger", ["mysql://nowhere", "sqlite:", "~no-such-user-here/ledger.db"])
def test_a_ledger_that_cant_be_is_told_by_the_first_402_not_by_a_copy(
    way: Callable[[Any], Any], ledger: str, paywall: Paywall, lnd: FakeLnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that fetches free pages in a pool of processes would end at the first of them."""
    for name, value in {**lnd.environ, "ROUTEWEILER_NETWORK": "bitcoin-regtest", "ROUTEWEILER_LEDGER": ledger}.items():
        monkeypatch.setenv(name, value)
    twin = way(Session())
    assert twin.get(paywall.url_for("/free")).status_code == 200
    with pytest.raises(LedgerError):
        twin.get(paywall.url)
    assert lnd.payments == []


def test_the_module_is_pickled_by_name() -> None:
    """Sessions and classes are found again by their public path."""
    for name in ("Session", "Routeweiler", "PaywallAdapter", "BudgetEnvelope", "RouteweilerError"):
        assert pickled(getattr(routeweiler_sync, name)) is getattr(routeweiler_sync, name)


def test_a_dropped_session_takes_its_connections_with_it_at_once(arguments: dict[str, Any], paywall: Paywall) -> None:
    """An engine unpickles a session for each task: hundreds of open ledgers and nodes would wait for Python's garbage collector."""
    pickle_of_it = pickle.dumps(Routeweiler(**arguments))
    gc.collect()
    gc.disable()
    try:
        session = pickle.loads(pickle_of_it)
        assert session.get(paywall.url).status_code == 200
        payer = session.adapters["https://"].payer
        parts = [weakref.ref(each) for each in (session, payer, payer.checkout, payer.ledger, payer.funding[0].client)]
        del session, payer
        assert [part() for part in parts] == [None] * len(parts)
    finally:
        gc.enable()


def test_a_purchase_leaves_no_thread_local_to_the_garbage_collector(arguments: dict[str, Any], dynamic: Paywall) -> None:
    """Where the collector meets one in ``sys._current_frames()``, Python 3.11 before 3.11.9 hangs: Dask's workers do that."""
    session = Routeweiler(**arguments)
    session.get(dynamic.url_for("/first"))
    gc.collect()
    before, kept = gc.get_debug(), len(gc.garbage)
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        assert session.get(dynamic.url_for("/second")).status_code == 200
        session.recover()
        gc.collect()
        left = {type(each).__name__ for each in gc.garbage[kept:]}
    finally:
        gc.set_debug(before)
        del gc.garbage[kept:]
    assert [request.paid for request in dynamic.requests] == [False, True] * 2
    assert not left & {"_local", "Retrying", "IterState", "Deadline", "LedgerWait"}
