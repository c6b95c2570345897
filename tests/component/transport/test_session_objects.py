"""A session as a Python object: subclasses, identity, ends, threads, event loops, what is left of it."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import inspect
import os
import pydoc
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from requests.adapters import HTTPAdapter

import routeweiler_sync
from routeweiler_sync import (
    BudgetExceededError,
    PaywallAdapter,
    Routeweiler,
    Session,
    TokenRefusedError,
    TraceSink,
    payment_of,
    wrap,
)
from routeweiler_sync.testing import FakeLnd, Paywall
from tests.support.accounts import Books


@pytest.fixture
def arguments(lnd: FakeLnd, books: Books) -> dict[str, Any]:
    return {"funding": [lnd.funding()], "ledger": books.ledger_path, "trace_sink": TraceSink.jsonl(books.trace_path)}


# What it is


def test_a_paying_session_is_a_requests_session(session: Routeweiler, lnd: FakeLnd) -> None:
    """Programs ask `isinstance`, keep sessions in sets and weak maps, ask ``if session``, and print them: with no secret."""
    assert isinstance(session, requests.Session)
    assert isinstance(session, requests.sessions.SessionRedirectMixin)
    other = copy.copy(session)
    assert (session == session, session == other, session != other) == (True, False, True)
    assert len({session, other, session}) == 2
    assert bool(session)
    assert weakref.ref(session)() is session
    assert weakref.WeakKeyDictionary({session: 1})[session] == 1
    assert {"get", "send", "mount", "quote", "limit", "recover", "adapters"} <= set(dir(session))
    assert set(dir(requests.Session())) <= set(dir(session))
    assert "Routeweiler" in repr(session)


@pytest.mark.parametrize("thing", [Routeweiler, Session, PaywallAdapter, wrap, routeweiler_sync], ids=lambda thing: thing.__name__)
def test_help_tells_of_it(thing: Any) -> None:
    """`help()` walks over everything that has a name: one that can't be looked at breaks it."""
    text = pydoc.render_doc(thing, renderer=pydoc.plaintext)
    assert "pays" in text
    for _, value in inspect.getmembers(thing):
        repr(value)


def test_signatures_are_those_of_requests() -> None:
    """Tools and type checkers look at them: what can be given to a session of `requests` can be given to ours."""
    for name in ("get", "post", "request", "send", "mount", "get_adapter", "prepare_request", "resolve_redirects", "close"):
        theirs, ours = (inspect.signature(getattr(kind, name)) for kind in (requests.Session, Routeweiler))
        variable = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
        if not variable & {parameter.kind for parameter in ours.parameters.values()}:
            assert list(theirs.parameters) == list(ours.parameters), name
    theirs, ours = (inspect.signature(kind.send) for kind in (HTTPAdapter, PaywallAdapter))
    assert [(p.name, p.default) for p in theirs.parameters.values()] == [(p.name, p.default) for p in ours.parameters.values()]


# Subclasses


class Positional(Routeweiler):
    """Arguments of its own, and things done before ours exists."""

    def __init__(self, base_url: str, retries: int = 0, **kwargs: Any) -> None:
        self.base_url = base_url
        self.made: list[str] = []
        super().__init__(**kwargs)
        self.mount("http://", HTTPAdapter(max_retries=retries))
        self.made.append("done")

    def mount(self, prefix: str, adapter: requests.adapters.BaseAdapter) -> None:
        self.made.append(prefix)  # called while requests' __init__ and ours are at it
        super().mount(prefix, adapter)


class Overriding(Routeweiler):
    """All that a subclass may want to have a word in."""

    def __init__(self, **kwargs: Any) -> None:
        self.said: list[str] = []
        super().__init__(**kwargs)

    def request(self, method: str, url: str, *args: Any, **kwargs: Any) -> requests.Response:  # type: ignore[override]
        self.said.append("request")
        kwargs.setdefault("timeout", 30)
        return super().request(method, url, *args, **kwargs)

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        self.said.append("send")
        response = super().send(request, **kwargs)
        assert response.status_code != 402
        return response

    def get_adapter(self, url: str) -> requests.adapters.BaseAdapter:
        self.said.append("get_adapter")
        return super().get_adapter(url)

    def rebuild_auth(self, prepared_request: requests.PreparedRequest, response: requests.Response) -> None:
        self.said.append("rebuild_auth")
        super().rebuild_auth(prepared_request, response)

    def prepare_request(self, request: requests.Request) -> requests.PreparedRequest:
        self.said.append("prepare_request")
        return super().prepare_request(request)


def test_a_subclass_with_arguments_of_its_own(arguments: dict[str, Any], paywall: Paywall, books: Books) -> None:
    """It sets attributes before ours exist, mounts its own adapter, and is given what it takes by position."""
    session = Positional(paywall.base_url, 3, **arguments)
    assert session.made == ["https://", "http://", "https://", "http://", "http://", "done"]
    assert session.get(paywall.url).status_code == 200
    assert session.get(paywall.url).payment.reused
    books.check()


def test_a_subclass_that_overrides_everything(arguments: dict[str, Any], paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """Each of its methods is called as often as in `requests`; to its ``send`` a paid call is one call."""
    session = Overriding(**arguments)
    assert session.get(paywall.url).status_code == 200
    assert session.said == ["request", "prepare_request", "send", *["get_adapter"] * session.said.count("get_adapter")]
    session.said.clear()
    response = session.get(paywall.url_for("/redirect?to=" + paywall.url))
    assert payment_of(response).reused
    assert [word for word in session.said if word != "get_adapter"] == [
        "request", "prepare_request", "send", "rebuild_auth", "send",
    ]  # fmt: skip
    assert len(lnd.payments) == 1
    books.check()


class Asking(Routeweiler):
    """Chooses the adapter itself, one that isn't ours."""

    def get_adapter(self, url: str) -> requests.adapters.BaseAdapter:
        if not hasattr(self, "mine"):
            self.mine = HTTPAdapter()
        return self.mine


class Careful(requests.Session):
    """A company's own: what it mounts bears its time limits, its retries and its certificates."""

    def __init__(self) -> None:
        super().__init__()
        self.mount("http://", Limited())
        self.mount("https://", HTTPAdapter(max_retries=3, pool_maxsize=20))


class Limited(HTTPAdapter):
    """Never waits for ever."""

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        response = super().send(request, *args, **{**kwargs, "timeout": kwargs.get("timeout") or 30})
        response.headers["X-Limited"] = "yes"
        return response


class OfTheirs(Routeweiler, Careful):
    """Both, ours in front."""


class Https(requests.Session):
    """Speaks no plain http."""

    def __init__(self) -> None:
        super().__init__()
        del self.adapters["http://"]


class OnlyHttps(Routeweiler, Https):
    """Both, ours in front."""


def test_adapters_of_a_class_behind_ours_stay(arguments: dict[str, Any], paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """Put ours in their place and time limits, retries, pinned certificates are gone without a word."""
    session = OfTheirs(**arguments)
    assert session.get_adapter("https://").max_retries.total == 3  # type: ignore[attr-defined]
    response = session.get(paywall.url)
    assert (response.status_code, response.headers.get("X-Limited")) == (200, "yes")
    assert payment_of(session.get(paywall.url)).reused
    assert len(lnd.payments) == 1
    books.check()
    with pytest.raises(requests.exceptions.InvalidSchema):
        OnlyHttps(**arguments).get(paywall.url)


def test_adapters_of_a_session_class_that_was_there_stay_when_installed(
    arguments: dict[str, Any], paywall: Paywall, lnd: FakeLnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that has its own class in place of ``requests.Session`` goes on with what that mounts."""
    for module in (requests, requests.sessions):
        monkeypatch.setattr(module, "Session", Careful)
    routeweiler_sync.install(**arguments)
    try:
        response = requests.get(paywall.url)
    finally:
        routeweiler_sync.uninstall()
    assert (response.status_code, response.headers.get("X-Limited")) == (200, "yes")
    assert len(lnd.payments) == 1


class Repeating(Routeweiler):
    """Sends again by itself, as wrappers for unreliable servers do."""

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        for _ in range(3):
            response = super().send(request, **kwargs)
            if response.status_code < 500:
                return response
        return response


def test_an_adapter_that_a_subclass_chooses(arguments: dict[str, Any], paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """`get_adapter` may give whatever it likes: what comes of it is paid, once."""
    session = Asking(**arguments)
    assert session.get(paywall.url).status_code == 200
    assert session.get(paywall.url).payment.reused
    assert len(lnd.payments) == 1
    books.check()


def test_a_subclass_that_sends_again(arguments: dict[str, Any], paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """A 500 on the paid retry isn't paid for a second time by the repetition."""
    session = Repeating(**arguments)
    paywall.answer_next(500, times=2)
    assert session.get(paywall.url).payment.reused
    assert [request.status for request in paywall.requests] == [402, 500, 500, 200]
    assert len(lnd.payments) == 1
    books.check()


class Careless(Routeweiler):
    """Looks at itself before it is made."""

    def __init__(self, **kwargs: Any) -> None:
        with contextlib.suppress(AttributeError):
            self.get("http://127.0.0.1:1/")
        self.seen = (repr(self), bool(self), dir(self))
        super().__init__(**kwargs)


def test_a_session_that_isnt_made_yet(arguments: dict[str, Any], paywall: Paywall) -> None:
    """A look at it, as debuggers take it, neither ends in a recursion nor leaves anything behind."""
    assert Careless(**arguments).get(paywall.url).status_code == 200
    blank = Routeweiler.__new__(Routeweiler)
    assert "Routeweiler" in repr(blank)
    assert not hasattr(blank, "_payer")
    assert not hasattr(blank, "anything")
    for act in (blank.close, lambda: blank.get(paywall.url), lambda: copy.copy(blank)):
        with contextlib.suppress(AttributeError):
            act()
    with pytest.raises(ValueError, match="payment_timeout"):
        Routeweiler(payment_timeout=-1)
    gc.collect()


# Its end


def test_with_and_close(make_session: Callable[..., Routeweiler], paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """Closed twice, used again, used inside an ExitStack: programs do all of that with sessions of `requests`."""
    session = make_session()
    session.close()
    with session as same:
        assert same is session
        assert session.get(paywall.url).status_code == 200
    session.close()
    session.close()
    assert session.get(paywall.url).payment.reused
    with contextlib.ExitStack() as stack:
        inside = stack.enter_context(session)
        stack.callback(inside.close)
        assert inside.get(paywall.url).payment.reused
    paywall.add_service("/other", name="other", price_msat=1_000)
    assert session.get(paywall.url_for("/other")).status_code == 200
    with pytest.raises(ZeroDivisionError), session:
        raise ZeroDivisionError
    assert len(lnd.payments) == 2
    books.check()


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are seen in /proc")
def test_a_closed_session_has_no_file_open(arguments: dict[str, Any], paywall: Paywall, books: Books) -> None:
    """Whoever closes a session may move its files, or unmount what they lie on: also a plain session with our adapter."""
    plain = requests.Session()
    plain.mount("http://", PaywallAdapter(**arguments))
    for session in (Routeweiler(**arguments), plain, wrap(requests.Session(), **arguments)):
        assert session.get(paywall.url).status_code == 200
        session.close()
        links = [os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")]
        assert not [link for link in links if link.startswith(os.fspath(books.ledger_path.parent))]


def test_a_session_that_is_closed_while_another_thread_uses_it(session: Routeweiler, paywall: Paywall, books: Books) -> None:
    """Its calls end as if it hadn't been: with the page, and one payment."""
    paywall.faults.delay_s = 0.05
    with ThreadPoolExecutor(4) as threads:
        calls = [threads.submit(session.get, paywall.url) for _ in range(12)]
        for _ in range(20):
            session.close()
        assert [call.result(60).status_code for call in calls] == [200] * 12
    assert len(books.rows) == 1
    books.check()


LEFT = """
import gc, os, sys, threading, tracemalloc, weakref
tracemalloc.start()
from tests.component.transport.test_pickling import KINDS, fork_arguments
base, ends = sys.argv[1:]

def files():
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0

def one(kind):
    session = kind(**fork_arguments())
    session.get(base + "/paid").raise_for_status()
    session.get(base + "/free").raise_for_status()
    if ends == "closed":
        session.close()
    return weakref.ref(session)

def all_of_them():
    left = [one(kind) for kind in KINDS]
    gc.collect()
    assert not [ref for ref in left if ref() is not None], "a dropped session lives on"
    return files(), threading.active_count()

first = [all_of_them() for _ in range(3)][-1]  # the environment's node and ledger stay for the process
for _ in range(5):
    last = all_of_them()
print(first, last)
assert last == first, (first, last)
"""


@pytest.mark.slow
@pytest.mark.parametrize("ends", ["closed", "dropped"])
def test_nothing_is_left_of_a_session(ends: str, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """A program that makes a session a call would run out of files or threads within the hour."""
    environ = {
        **lnd.environ,
        "ROUTEWEILER_LEDGER": os.fspath(books.ledger_path),
        "ROUTEWEILER_TRACE": os.fspath(books.trace_path),
        "ROUTEWEILER_NETWORK": "bitcoin-regtest",
    }
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error::ResourceWarning", "-c", LEFT, paywall.base_url, ends],
        env=os.environ | environ,
        cwd=Path(__file__).parents[3],
        timeout=120,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "ResourceWarning" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert len(lnd.payments) == 1


CHANGED = """
import gc, os, sys
import routeweiler_sync
url, folder = sys.argv[1:]

def files():
    gc.collect()
    return len(os.listdir("/proc/self/fd"))

seen = []
for number in range(24):
    os.environ["ROUTEWEILER_LEDGER"] = os.path.join(folder, f"{number}.db")
    routeweiler_sync.get(url).raise_for_status()
    seen.append(files())
print(seen)
assert max(seen[12:]) <= max(seen[:12]) + 5, seen
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are seen in /proc")
def test_what_the_environment_named_before_doesnt_stay_open(paywall: Paywall, lnd: FakeLnd, tmp_path: Path) -> None:
    """Tests that set a ledger each, as their fixtures do, would run out of files after some 150 of them."""
    done = subprocess.run(
        [sys.executable, "-c", CHANGED, paywall.url, os.fspath(tmp_path)],
        env=os.environ | lnd.environ | {"ROUTEWEILER_NETWORK": "bitcoin-regtest"},
        cwd=Path(__file__).parents[3],
        timeout=120,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert len(lnd.payments) == 24


# Threads and event loops


def test_many_threads_one_session(session: Routeweiler, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """One buys, all get the page; cookies and headers are one for all, as in `requests`."""
    paywall.respond = lambda request: (200, {"Set-Cookie": f"c{request.query}=1; Path=/"}, b"page\n")
    barrier = threading.Barrier(12)

    def call(number: int) -> requests.Response:
        barrier.wait(30)
        return session.get(f"{paywall.url}?{number}")

    with ThreadPoolExecutor(12) as threads:
        responses = list(threads.map(call, range(12)))
    assert {response.content for response in responses} == {b"page\n"}
    assert [payment_of(response).reused for response in responses].count(False) == 1
    assert {cookie.name for cookie in session.cookies} == {f"c{number}" for number in range(12)}
    assert len(lnd.payments) == 1
    books.check()


def test_a_call_in_a_running_event_loop_pays(session: Routeweiler, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """As in a notebook's cell: the loop runs in this very thread, and waits."""

    async def cell() -> requests.Response:
        assert asyncio.get_running_loop().is_running()
        return session.get(paywall.url)

    assert asyncio.run(cell()).status_code == 200
    assert asyncio.run(cell(), debug=True).payment.reused
    assert len(lnd.payments) == 1
    books.check()


def test_calls_of_an_event_loop_in_threads(session: Routeweiler, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """`asyncio.to_thread` takes the context along: a block's limit holds in there too, and the loop goes on meanwhile."""
    paywall.faults.delay_s = 0.05
    for number in range(4):
        paywall.add_service(f"/{number}", name=str(number), price_msat=10_000)

    async def main() -> tuple[list[Any], list[Any], int, int]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0.005)

        ticking = asyncio.create_task(tick())
        same = await asyncio.gather(*(asyncio.to_thread(session.get, paywall.url) for _ in range(6)))
        with session.limit(sats=25) as limit:
            calls = [asyncio.to_thread(session.get, paywall.url_for(f"/{number}")) for number in range(4)]
            apart = await asyncio.gather(*calls, return_exceptions=True)
        ticking.cancel()
        return same, apart, limit.spent_msat, ticks

    same, apart, spent_msat, ticks = asyncio.run(main())
    assert [payment_of(response).reused for response in same].count(False) == 1
    refused = [each for each in apart if isinstance(each, BudgetExceededError)]
    paid = len(apart) - len(refused)
    assert paid in (1, 2), apart  # while one is under way, what its route may cost is counted
    assert spent_msat == 10_000 * paid
    assert ticks > 10
    assert len(lnd.payments) == 1 + paid
    books.check()


def test_a_coroutine_that_uses_grpcs_own_loop(session: Routeweiler, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """A program may speak gRPC itself, on the same loop, with grpc.aio: the two of them leave each other alone."""
    import grpc

    async def cell() -> requests.Response:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{lnd.port}"):
            return await asyncio.to_thread(session.get, paywall.url)

    assert asyncio.run(cell()).status_code == 200
    assert asyncio.run(cell()).payment.reused
    books.check()


@pytest.mark.slow
def test_an_error_holds_no_session(arguments: dict[str, Any], paywall: Paywall) -> None:
    """Errors are kept, in logs and futures; the session and its connections mustn't be kept with them."""
    session = Routeweiler(**arguments)
    paywall.faults.refuse_tokens = True
    with pytest.raises(TokenRefusedError) as caught:
        session.get(paywall.url)
    kept = caught.value.with_traceback(None)
    del caught
    kept.__context__ = kept.__cause__ = None
    left = weakref.ref(session)
    del session
    gc.collect()
    assert left() is None
    assert kept.response is not None
