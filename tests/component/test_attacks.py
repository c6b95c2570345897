"""What a hostile server, a hasty caller or an odd machine may try. Each of these once worked."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from routeweiler_sync import (
    BudgetEnvelope,
    BudgetExceededError,
    ChallengeMismatchError,
    InvoicePaymentError,
    Ledger,
    LedgerError,
    PaymentDeclinedError,
    PaywallAdapter,
    Policy,
    PolicyMaxPerCallExceededError,
    PolicyRule,
    Routeweiler,
    RuleMatch,
    TokenRefusedError,
    UnreplayableBodyError,
)
from routeweiler_sync.paywall import call_record as account
from routeweiler_sync.testing import FakeLnd, Paywall
from routeweiler_sync.testing._paywall_logic import PaywallRequest

from .conftest import Books


@contextlib.contextmanager
def server(answer: Any) -> Iterator[str]:
    """An HTTP server of one function: ``answer(handler) -> (status, header lines, body)``. Gives its URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def reply(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, lines, body = answer(self)
            self.send_response(status)
            for name, value in lines:
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = reply

        def log_message(self, *args: object) -> None:
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{running.server_port}"
    finally:
        running.shutdown()
        running.server_close()


def invoice_on(payment_hash: str) -> str:
    """Anybody can sign an invoice on a payment hash that they have seen."""
    import time

    import bolt11
    from bolt11.models.tags import Tag, TagChar, Tags

    tags = Tags([Tag(TagChar.payment_hash, payment_hash), Tag(TagChar.payment_secret, "11" * 32), Tag(TagChar.description, "x")])
    invoice = bolt11.Bolt11(currency="bcrt", amount_msat=bolt11.MilliSatoshi(1_000), date=int(time.time()), tags=tags)
    return bolt11.encode(invoice, "42" * 32)


# -- promise 6 ----------------------------------------------------------------------------------------------------------------


def test_a_server_that_repeats_anothers_payment_hash_gets_no_token(session, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """With an invoice on a hash that it has merely seen, any server could ask for the token of another: it opens their door."""
    session.get(paywall.url)
    seen: list[str | None] = []

    def evil(handler: Any) -> Any:
        seen.append(handler.headers.get("Authorization"))
        challenge = f'L402 token="x", invoice="{invoice_on(books.rows[0].payment_hash)}"'
        return 402, [("WWW-Authenticate", challenge)], b""

    with server(evil) as url, pytest.raises(ChallengeMismatchError) as caught:
        session.get(url)
    assert caught.value.spent is False
    assert seen == [None]
    books.check()


def test_nor_the_order_of_an_unfinished_one(make_session, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """As above, while the payment is still in flight."""
    lnd.hang_next()
    with pytest.raises(requests.RequestException):
        make_session(payment_timeout=1).get(paywall.url)
    challenge = f'L402 token="x", invoice="{invoice_on(books.rows[0].payment_hash)}"'
    with server(lambda handler: (402, [("WWW-Authenticate", challenge)], b"")) as url, pytest.raises(ChallengeMismatchError):
        make_session(payment_timeout=5).get(url)
    lnd.release()


# -- promises 1 and 2 ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        (401, {"WWW-Authenticate": 'Basic realm="shop"'}, b"log in"),
        (402, {}, b"quota used up"),
        (402, {"WWW-Authenticate": 'Payment id="1", method="card"'}, b""),
    ],
)
def test_an_answer_that_isnt_about_the_token_doesnt_cost_it(session, paywall: Paywall, lnd: FakeLnd, books: Books, answer) -> None:
    """The application behind the paywall has 401s and 402s of its own: each would throw a good token away and buy another."""
    session.get(paywall.url)
    paywall.answer_next(answer[0], headers=answer[1], body=answer[2])
    response = session.get(paywall.url)
    assert (response.status_code, response.content) == (answer[0], answer[2])
    assert session.get(paywall.url).status_code == 200
    assert len(lnd.payments) == 1
    books.check()


def test_a_bare_401_is_doubted_before_anything_is_bought(session, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """A 401 without a word may be about the token or not: the same token is offered once more."""
    session.get(paywall.url)
    paywall.answer_next(401)
    response = session.get(paywall.url)
    assert response.status_code == 200
    assert response.payment.reused
    assert len(lnd.payments) == 1
    books.check()


def test_two_things_under_one_scope_are_each_bought_once(make_session, lnd: FakeLnd, books: Books) -> None:
    """Tokens that open ?id=1 or ?id=2 are both of the path's scope: to retire one for the other would pay for every call."""
    invoices: dict[str, Any] = {}

    def shop(handler: Any) -> Any:
        item = handler.path
        _, _, credential = (handler.headers.get("Authorization") or "").partition(" ")
        token, _, preimage = credential.partition(":")
        known = invoices.get(token)
        if known is not None and known[0] == item and known[1].preimage.hex() == preimage:
            return 200, [], item.encode()
        invoice = lnd.invoice(1_000)
        token = f"token-{len(invoices)}"
        invoices[token] = (item, invoice)
        return 402, [("WWW-Authenticate", f'L402 token="{token}", invoice="{invoice.bolt11}"')], b""

    with server(shop) as url:
        session = make_session()
        for number in (1, 2, 1, 2, 3, 1):
            assert session.get(f"{url}/item?id={number}").content == f"/item?id={number}".encode()
        assert make_session().get(f"{url}/item?id=2").status_code == 200
    assert sum(payment.status == "SUCCEEDED" for payment in lnd.payments) == 3
    books.check()


def test_a_forgotten_token_isnt_offered_again(session, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """Who forgets a token means it."""
    session.get(paywall.url)
    books.ledger.forget(books.rows[0].payment_hash)
    fresh = Routeweiler(funding=[lnd.funding()], ledger=books.ledger_path)
    assert not fresh.get(paywall.url).payment.reused
    assert len(lnd.payments) == 2


# -- promise 3 ----------------------------------------------------------------------------------------------------------------


def test_a_chain_of_redirects_is_one_call(make_session, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """Five paid pages that lead to one another would spend five times what a call may."""
    for number in range(5):
        paywall.add_service(f"/{number}", name=f"page-{number}", price_msat=10_000)

    def respond(request: PaywallRequest) -> Any:
        number = int(request.path.strip("/"))
        return (302, {"Location": f"/{number + 1}"}, b"") if number < 4 else (200, {}, b"end")

    paywall.respond = respond
    session = make_session(budget_envelope=BudgetEnvelope("tight", per_call_minor_units=25))
    with pytest.raises(BudgetExceededError) as caught:
        session.get(paywall.url_for("/0"))
    assert caught.value.spent is True  # this call has paid for two pages
    assert "20 sat" in str(caught.value)
    assert lnd.spent_msat == 20_000
    books.check()


# -- promises 4 and 5 ---------------------------------------------------------------------------------------------------------


def test_a_body_that_only_says_it_can_seek(session, paywall: Paywall, lnd: FakeLnd) -> None:
    """Found after the payment it would be a bare OSError, and the money gone."""

    class Pipe(io.BytesIO):
        sought = 0

        def seek(self, *args: int) -> int:
            if self.sought >= 2 and args[0] == 0 and len(args) == 1 and self.read(1) == b"":
                raise OSError("Illegal seek")
            self.sought += 1
            return super().seek(*args)

    with pytest.raises(UnreplayableBodyError):
        session.post(paywall.url, data=Pipe(b"body"))
    assert lnd.payments == []


@pytest.mark.parametrize("status", [400, 401, 403])
def test_a_post_is_never_sent_twice_for_a_guess(session, paywall: Paywall, lnd: FakeLnd, status: int) -> None:
    """The origin's only token goes along to pages that may be free; an order that is refused must not be placed again."""
    session.get(paywall.url)
    paywall.add_service("/orders", name="orders", price_msat=1_000)
    seen = []
    with server(lambda handler: (seen.append(handler.headers.get("Authorization")), (status, [], b"no"))[1]) as url:
        host = url
        book = session._payer.token_cache
        held = book.token_for_path(paywall.base_url, "/paid")[0]
        import dataclasses

        book.put(dataclasses.replace(held, origin=host))
        assert session.post(host + "/orders", data=b"order").status_code == status
        assert seen == [None]
        assert session.get(host + "/orders").status_code == status
        assert [s is None for s in seen] == [True, False, True]


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


def test_common_adapter_idioms_still_pay(make_session, paywall: Paywall, lnd: FakeLnd) -> None:
    """`Retry` with 402 in its list would answer the 402 itself; an adapter without a payer is given the session's."""
    session = make_session()
    retry = Retry(3, status_forcelist=[402, 503], allowed_methods=None)
    session.mount("http://", PaywallAdapter(max_retries=retry))
    assert session.get(paywall.url).status_code == 200
    assert retry.status_forcelist == [402, 503]
    assert session.get_adapter(paywall.url).max_retries.status_forcelist == {503}
    plain = HTTPAdapter()
    session.mount("http://", plain)
    assert session.get_adapter(paywall.url) is plain


def test_a_prepared_request_with_nothing_in_it(session, paywall: Paywall) -> None:
    """requests sends a PreparedRequest that was filled by hand."""
    session.get(paywall.url)
    request = requests.PreparedRequest()
    request.method, request.url = "GET", paywall.url
    assert requests.Session().send(request).status_code == 402
    assert session.send(request).status_code == 200


def test_cookies_of_the_402_reach_the_retry(session, lnd: FakeLnd) -> None:
    """A load balancer's cookie on the 402 says which server knows of the invoice."""
    cookies = []

    def sticky(handler: Any) -> Any:
        cookies.append(handler.headers.get("Cookie"))
        if "Authorization" in handler.headers:
            return 200, [], b""
        invoice = lnd.invoice(1_000)
        return 402, [("WWW-Authenticate", f'L402 token="t", invoice="{invoice.bolt11}"'), ("Set-Cookie", "sid=2")], b""

    with server(sticky) as url:
        session.cookies.set("a", "1")
        session.get(url)
        assert cookies[0] == "a=1"
        assert set(cookies[1].split("; ")) == {"a=1", "sid=2"}


# -- promise 7 ----------------------------------------------------------------------------------------------------------------


def test_a_payment_is_told_once_however_many_wait_for_it(make_session, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """Each of them found it settled and untold, and told it again."""
    session = make_session()
    for _ in range(8):
        paywall.revoke_tokens()
        together = threading.Barrier(6)

        def call(_: int, together: threading.Barrier = together) -> int:
            together.wait()
            return session.get(paywall.url).status_code

        with ThreadPoolExecutor(6) as pool:
            assert set(pool.map(call, range(6))) == {200}
    told = [p["paymentHash"] for line in books.lines if (p := line["payment"]) and not p["reused"]]
    assert len(told) == len(set(told)) == len(lnd.payments)
    books.check()


def test_a_call_in_a_hook_is_a_call_of_its_own(session, paywall: Paywall, books: Books) -> None:
    """`head()` never follows redirects, and was taken for a redirect of the call whose hook it was in."""
    nested = []

    def hook(response: requests.Response, **kwargs: object) -> None:
        if not nested:
            nested.append(None)
            nested[0] = session.head(paywall.url)

    session.get(paywall.url_for("/free"), hooks={"response": hook})
    assert nested[0].status_code == 200
    assert sorted((line["method"], line["payment"] is not None) for line in books.lines) == [("GET", False), ("HEAD", True)]
    assert all("parentRequestId" not in line for line in books.lines)
    books.check()


def test_the_402s_are_in_history_after_redirects_too(session, paywall: Paywall) -> None:
    """What was paid on the way can be seen from the response."""
    response = session.get(paywall.url_for("/redirect?to=/paid"))
    assert [each.status_code for each in response.history] == [302, 402]
    assert all(hasattr(each, "payment") for each in response.history)


def test_a_trace_that_breaks_loses_no_response(make_session, paywall: Paywall, caplog) -> None:
    """The page has been paid for."""

    class Broken:
        def emit(self, event: object) -> bool:
            raise RuntimeError("broken")

        def close(self) -> None:
            pass

    assert make_session(trace_sink=Broken()).get(paywall.url).status_code == 200
    assert "broken" in caplog.text


# -- bad input, and the machine -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad",
    [
        {"trace_sink": 5},
        {"budget_envelope": 1_000},
        {"policy": {"rules": []}},
        {"funding": "node"},
        {"confirm": "yes"},
        {"fmv_provider": 60_000},
        {"payment_timeout": float("inf")},
        {"payment_timeout": "60"},
    ],
)
def test_an_argument_that_cant_be_is_told_at_once(make_session, bad: dict[str, Any]) -> None:
    """Found at the first 402, or after a payment, it loses what was bought."""
    with pytest.raises(ValueError, match=next(iter(bad))):
        make_session(**bad)


def test_a_client_is_no_funding_source_and_a_source_no_list(make_session, lnd: FakeLnd) -> None:
    """The two likeliest mistakes."""
    with pytest.raises(ValueError, match="lightning_lnd"):
        make_session(funding=[lnd.client()])
    with pytest.raises(ValueError, match="lightning_lnd"):
        make_session(funding=lnd.funding())
    for fee in (1.5, -1, "1", True):
        with pytest.raises(ValueError, match="max_fee_msat"):
            lnd.funding(max_fee_msat=fee)
    with pytest.raises(ValueError, match="timeout_seconds"):
        lnd.client(timeout_seconds=float("inf"))


def test_a_ledger_that_cant_be_is_told_at_once(tmp_path: Path, monkeypatch) -> None:
    """And a relative one is of the folder where the session was made."""
    for bad in (123, "", ":memory:", "redis://x", "~nobody-of-this-name/ledger.db"):
        with pytest.raises(LedgerError):
            Routeweiler(ledger=bad)  # type: ignore[arg-type]
    monkeypatch.chdir(tmp_path)
    session = Routeweiler(ledger="here.db")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert session._payer.ledger.url == Ledger.open(tmp_path / "here.db").url


def test_a_path_is_a_trace_and_a_uuid_an_id(make_session, paywall: Paywall, books: Books, tmp_path: Path) -> None:
    """What a user of requests types first."""
    session_id = uuid.uuid4()
    make_session(trace_sink=str(books.trace_path), session_id=session_id).get(paywall.url)
    assert books.lines[0]["sessionId"] == str(session_id)


def test_closing_one_session_leaves_the_others_their_node(make_session, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """Sessions of a worker pool share a client; each closes when its job is done."""
    shared = lnd.funding()
    paywall.add_service("/job", name="job", price_msat=1_000, dynamic=True)

    def job(number: int) -> int:
        with Routeweiler(funding=[shared], ledger=books.ledger_path) as session:
            return session.get(paywall.url_for(f"/job/{number}")).status_code

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(job, range(24))) == {200}
    books.check()


def test_confirm_that_asks_for_its_own_page(make_session, paywall: Paywall, lnd: FakeLnd) -> None:
    """It waited for itself for a minute, and then said that money may be spent."""
    errors = []

    def confirm(quote: object) -> bool:
        with pytest.raises(PaymentDeclinedError) as caught:
            session.get(paywall.url)
        errors.append(caught.value)
        return True

    session = make_session(confirm=confirm)
    assert session.get(paywall.url).status_code == 200
    assert errors[0].spent is False
    assert len(lnd.payments) == 1


def test_unpayable_return_doesnt_hide_a_failed_payment(make_session, paywall: Paywall, lnd: FakeLnd) -> None:
    """It is for refusals before paying: here an order was sent."""
    lnd.fail_next()
    with pytest.raises(InvoicePaymentError):
        make_session(unpayable="return").get(paywall.url)


def test_a_plain_session_with_the_adapter_unpickles(make_session, paywall: Paywall) -> None:
    """Without its payer it is a plain HTTPAdapter."""
    import pickle

    plain = requests.Session()
    plain.mount("http://", PaywallAdapter(make_session()._payer))
    assert pickle.loads(pickle.dumps(plain)).get(paywall.url).status_code == 402


def test_the_default_envelope_can_be_frozen_before_it_has_spent(make_session, paywall: Paywall, books: Books, lnd: FakeLnd) -> None:
    """The hand brake must work before the first accident."""
    books.ledger.freeze("default")
    with pytest.raises(requests.RequestException, match="frozen"):
        make_session().get(paywall.url)
    assert lnd.payments == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system doesn't fork")
def test_a_fork_while_another_thread_makes_the_first_payment(paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """A module that is being imported at the fork stays locked in the child: its first payment would hang for ever."""
    code = """
import os, sys, threading, time
from routeweiler_sync import Funding, LndClient, Routeweiler
url, ledger, wait_s = sys.argv[1:]
session = Routeweiler(funding=[Funding.lightning_lnd(client=LndClient.from_env(), network="bitcoin-regtest")], ledger=ledger)
thread = threading.Thread(target=session.get, args=(url,))
thread.start()
time.sleep(float(wait_s))
pid = os.fork()
if pid == 0:
    os._exit(0 if session.get(url, timeout=20).status_code == 200 else 1)
end = time.monotonic() + 60
while time.monotonic() < end:
    done, status = os.waitpid(pid, os.WNOHANG)
    if done:
        break
    time.sleep(0.05)
else:
    os.kill(pid, 9)
    sys.exit(2)
thread.join()
sys.exit(os.waitstatus_to_exitcode(status))
"""
    for wait_s in ("0.02", "0.05", "0.12", "0.25"):
        done = subprocess.run(
            [sys.executable, "-c", code, paywall.url, f"{books.ledger_path}.{wait_s}", wait_s],
            env={**os.environ, **lnd.environ},
            timeout=100,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, (wait_s, done.stderr)


def test_a_server_whose_every_402_is_of_another_scope_is_paid_once_a_call(session, lnd: FakeLnd, books: Books) -> None:
    """It can have a new purchase from every call, as any price is the server's to name; but not two from one."""

    def restless(handler: Any) -> Any:
        invoice = lnd.invoice(1_000)
        from routeweiler_sync.testing._paywall_logic import mint

        token = mint(os.urandom(32), os.urandom(32), invoice.payment_hash, [f"services=s{len(lnd.payments)}-{uuid.uuid4()}:0"])
        return 402, [("WWW-Authenticate", f'L402 macaroon="{token}", invoice="{invoice.bolt11}"')], b""

    with server(restless) as url, pytest.raises(TokenRefusedError) as caught:
        session.get(url)
    assert caught.value.payment_hash == lnd.payments[0].payment_hash
    assert len(lnd.payments) == 1
    books.check()


# -- the second round ---------------------------------------------------------------------------------------------------------


def test_a_chain_of_redirects_buys_one_token_of_a_scope(make_session, lnd: FakeLnd, books: Books) -> None:
    """402, paid, redirected to itself, 402 of the same scope, …: each hop is new, but the call is one. It bought 31 tokens."""
    from routeweiler_sync.testing._paywall_logic import mint

    def circle(handler: Any) -> Any:
        if "Authorization" in handler.headers and not handler.headers["Authorization"].endswith(state.get("spent", "-")):
            state["spent"] = handler.headers["Authorization"][-64:]
            return 302, [("Location", handler.path)], b""
        invoice = lnd.invoice(1_000)
        token = mint(os.urandom(32), os.urandom(32), invoice.payment_hash, ["services=s:0"])
        return 402, [("WWW-Authenticate", f'L402 macaroon="{token}", invoice="{invoice.bolt11}"')], b""

    state: dict[str, str] = {}
    with server(circle) as url, pytest.raises(requests.RequestException):
        make_session(budget_envelope=None).get(url)
    assert len(lnd.payments) == 1
    books.check()


def test_a_redirect_in_front_of_the_paywall_takes_no_token(session, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """A maintenance page answers everybody with 302: the token that the paywall refuses hasn't been taken by that."""
    paywall.faults.refuse_tokens = True
    with pytest.raises(TokenRefusedError):
        session.get(paywall.url)
    for _ in range(2):
        paywall.faults.refuse_tokens = False
        paywall.answer_next(302, headers={"Location": paywall.url_for("/free")})
        assert session.get(paywall.url).status_code == 200
        paywall.faults.refuse_tokens = True
        with pytest.raises(TokenRefusedError):
            session.get(paywall.url)
    assert len(lnd.payments) == 1
    books.check()


def test_a_login_behind_the_paywall_costs_no_token(session, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """/me wants a login and says 401 without a word: as refusals of the token they cost a purchase each time."""
    paywall.respond = lambda request: (401, {}, b"log in") if request.path == "/me" else (200, {}, b"ok")
    for _ in range(3):
        assert session.get(paywall.url_for("/ok")).status_code == 200
        assert session.get(paywall.url_for("/me")).status_code == 401
    assert len(lnd.payments) == 1
    books.check()


def test_a_policys_limit_holds_over_redirects(make_session, paywall: Paywall, lnd: FakeLnd) -> None:
    """As the envelope's does."""
    for number in range(3):
        paywall.add_service(f"/{number}", name=f"page-{number}", price_msat=10_000)
    paywall.respond = lambda request: (302, {"Location": f"/{int(request.path.strip('/')) + 1}"}, b"")
    rule = PolicyRule(name="cheap", when=RuleMatch(scheme="L402"), max_per_call_minor_units=15)
    with pytest.raises(PolicyMaxPerCallExceededError):
        make_session(policy=Policy(rules=[rule])).get(paywall.url_for("/0"))
    assert lnd.spent_msat == 10_000


def test_a_waiter_hears_of_its_own_money_only(make_session, paywall: Paywall, lnd: FakeLnd) -> None:
    """The buyer has paid on the hop before, and its error says so; those who wait for the same page have paid nothing."""
    paywall.add_service("/next", name="next", price_msat=1_000)
    paywall.respond = lambda request: (302, {"Location": "/next"}, b"") if request.path == "/first" else (200, {}, b"")
    session = make_session()
    lnd.hang_next()
    with ThreadPoolExecutor(2) as pool:
        buyer = pool.submit(session.get, paywall.url_for("/first"))
        lnd.wait_for(lambda node: len(node.payments) == 1)
        lnd.hang_next()
        lnd.release()
        lnd.wait_for(lambda node: len(node.payments) == 2)
        waiter = pool.submit(session.get, paywall.url_for("/next"))
        paywall.wait_for(lambda: sum(request.path == "/next" for request in paywall.requests) == 2)
        lnd.release(fail="NO_ROUTE")
        errors = [buyer.exception(60), waiter.exception(60)]
    assert isinstance(errors[0], InvoicePaymentError)
    assert errors[0].spent is True
    if errors[1] is not None:  # else it came a moment later, and bought
        assert isinstance(errors[1], InvoicePaymentError)
        assert errors[1].spent is False
        assert "has paid before" not in str(errors[1])


def test_a_wrong_preimage_is_told_once(session, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """It moved money, once, however many waited for it."""
    lnd.wrong_preimage_next()
    together = threading.Barrier(8)

    def call(_: int) -> BaseException | None:
        together.wait()
        with pytest.raises(requests.RequestException) as caught:
            session.get(paywall.url)
        return caught.value

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(call, range(8)))
    told = [p["paymentHash"] for line in books.lines if (p := line["payment"]) and not p["reused"]]
    assert len(told) == 1
    books.check()


def test_nor_is_it_told_by_one_who_comes_as_another_has_just_told(
    session, paywall: Paywall, lnd, books: Books, monkeypatch
) -> None:
    """Looking before claiming leaves a moment in which another tells of it and lets go."""
    lnd.wrong_preimage_next()
    claim = account.claim

    def after_another(payment_hash: str) -> bool:
        books.ledger.mark(payment_hash, reported=True)
        return claim(payment_hash)

    monkeypatch.setattr(account, "claim", after_another)
    with pytest.raises(requests.RequestException):
        session.get(paywall.url)
    assert [line["payment"] for line in books.lines] == [None]


def test_a_recovery_that_breaks_off_tells_of_what_it_ended(
    make_session, paywall: Paywall, lnd: FakeLnd, books: Books, monkeypatch
) -> None:
    """The second row's ledger write fails: the first row's payment must be told all the same, and by nobody else."""
    paywall.add_service("/two", name="two", price_msat=2_000)
    lnd.hang_next(times=2)
    session = make_session(payment_timeout=1)
    for path in ("/one", "/two"):
        with pytest.raises(requests.RequestException):
            session.get(paywall.url_for(path))
    lnd.release()
    change = Ledger.change
    calls = []

    def full(self: Ledger, *args: Any, **how: Any) -> Any:
        calls.append(args)
        if len(calls) == 2:
            raise LedgerError("disk full")
        return change(self, *args, **how)

    monkeypatch.setattr(Ledger, "change", full)
    with pytest.raises(requests.RequestException):
        make_session().recover()
    monkeypatch.setattr(Ledger, "change", change)
    assert len([line for line in books.lines if line["payment"] and not line["payment"]["reused"]]) == 1
    make_session().recover()
    books.check()


def test_a_withdrawn_guess_leaves_no_mark(session, paywall: Paywall, lnd: FakeLnd) -> None:
    """A free page that doesn't like the token answers as it does without it, and is asked once the next time."""
    session.get(paywall.url)
    seen = []

    def shy(handler: Any) -> Any:
        seen.append("Authorization" in handler.headers)
        return (403 if seen[-1] else 200), [], b"free"

    with server(shy) as url:
        import dataclasses

        held = session._payer.token_cache.token_for_path(paywall.base_url, "/paid")[0]
        session._payer.token_cache.put(dataclasses.replace(held, origin=url))
        for _ in range(2):
            response = session.get(url + "/page")
            assert (response.status_code, response.history) == (200, [])
    assert seen == [True, False, False]


def test_a_copy_doesnt_take_over_its_originals_adapter(make_session, paywall: Paywall, lnd: FakeLnd) -> None:
    """A session with a budget of nothing, whose adapter another session shares, must not begin to pay from that one's."""
    import copy

    poor = make_session(budget_envelope=BudgetEnvelope("nothing", per_call_minor_units=0))
    rich = make_session()
    rich.adapters = poor.adapters
    copy.copy(rich)
    with pytest.raises(BudgetExceededError):
        poor.get(paywall.url)
    assert lnd.payments == []


def test_a_sink_that_says_nothing_has_written(make_session, paywall: Paywall, books: Books) -> None:
    """A sink of one's own may return None: that isn't "not written"."""

    class Silent:
        def emit(self, event: object) -> None:
            events.append(event)

        def close(self) -> None:
            pass

    events: list[Any] = []
    session = make_session(trace_sink=Silent())
    session.get(paywall.url)
    make_session(trace_sink=Silent()).get(paywall.url)
    assert [event.payment.reused for event in events] == [False, True]


def test_arguments_in_unusual_clothes(make_session, paywall: Paywall, lnd: FakeLnd) -> None:
    """Generators, Decimals and a subclass with a field of its own mean what they say."""
    import dataclasses
    from decimal import Decimal

    envelope = BudgetEnvelope("globs", allowed_origins_glob=(glob for glob in ("127.0.0.1:*",)))  # type: ignore[arg-type]
    assert envelope.allowed_origins_glob == ("127.0.0.1:*",)
    with pytest.raises(ValueError, match="allowed_origins_glob"):
        BudgetEnvelope("none", allowed_origins_glob=None)  # type: ignore[arg-type]

    @dataclasses.dataclass(frozen=True)
    class Team(BudgetEnvelope):
        team: str = "ours"

    session = make_session(budget_envelope=Team("team", per_call_minor_units=100), payment_timeout=Decimal(30))
    assert session.get(paywall.url).status_code == 200


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system doesn't fork")
def test_forks_while_threads_make_sessions(lnd: FakeLnd, tmp_path: Path) -> None:
    """Locks that a fork takes in one order and a thread in another stop the whole process."""
    code = """
import os, sys, threading, time
from routeweiler_sync import Routeweiler
stop = threading.Event()
def work(number):
    while not stop.is_set():
        Routeweiler(ledger=f"{sys.argv[1]}/{number}.db").recover()
threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(4)]
for thread in threads:
    thread.start()
for _ in range(60):
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    time.sleep(0.005)
stop.set()
for thread in threads:
    thread.join()
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], timeout=100, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
