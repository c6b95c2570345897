"""A charge opens one request, once: paid for once for each need, presented until it is delivered, and never offered elsewhere.

The need is the request. The paywalls are those of the kit, as aperture, mppx and pympp speak the scheme ``Payment``.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from urllib3.util.retry import Retry

from routeweiler_sync import (
    BudgetEnvelope,
    BudgetExceededError,
    ChallengeExpiredError,
    ChallengeMismatchError,
    Ledger,
    PaymentPendingError,
    PaywallAdapter,
    Policy,
    PolicyRule,
    Routeweiler,
    RuleMatch,
    TokenRefusedError,
    payment_of,
    wrap,
)
from routeweiler_sync.ledger.types import PaymentRow, PaymentState
from routeweiler_sync.paywall import handler
from routeweiler_sync.testing import FakeLnd, Paywall
from tests.support.accounts import Books
from tests.support.http_server import server
from tests.support.ledger_builders import at_once

pytestmark = pytest.mark.timeout(120)

FORMS = ("aperture", "mppx", "mppx-0.11", "pympp")
SINGLE_USE = FORMS[1:]
Make = Callable[..., Routeweiler]
Shop = Callable[..., Paywall]


@pytest.fixture
def shop(lnd: FakeLnd) -> Iterator[Shop]:
    """Opens a paywall that sells charges, pympp's way unless it is told otherwise."""
    opened: list[Paywall] = []

    def make(**options: Any) -> Paywall:
        opened.append(Paywall(lnd, **{"scheme": "Payment", "form": "pympp", "price_msat": 10_000} | options))
        opened[-1].start()
        return opened[-1]

    yield make
    for paywall in opened:
        paywall.stop()


def paid(lnd: FakeLnd) -> int:
    return sum(payment.status == "SUCCEEDED" for payment in lnd.payments)


def charges(books: Books) -> list[tuple[str, bool]]:
    """(state, delivered) of each charge, the oldest first."""
    assert all(row.single_use for row in books.rows)
    return [(row.state.value, row.accepted) for row in books.rows]


def statuses(paywall: Paywall) -> list[int]:
    return [request.status for request in paywall.requests]


# -- one payment, one request -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_each_call_is_a_need_of_its_own(form: str, shop: Shop, either_session: Routeweiler, lnd: FakeLnd, books: Books) -> None:
    """Else the second call would be refused (a used charge), or get what only one was paid for."""
    paywall = shop(form=form)
    for count in (1, 2):
        response = either_session.get(paywall.url)
        payment = payment_of(response)
        assert (response.status_code, response.content) == (200, paywall.content)
        assert payment is not None
        assert (payment.scheme, payment.reused, payment.amount_msat) == ("Payment", False, 10_000)
        assert paid(lnd) == count
    assert statuses(paywall) == [402, 200, 402, 200], "no charge is offered unasked, and none twice"
    assert charges(books) == [("retired", True)] * 2
    assert [row.presenter for row in books.rows] == [None, None]
    books.check()


@pytest.mark.parametrize("other", ["path", "query", "method", "body"])
def test_an_owed_charge_goes_with_its_own_request_alone(other: str, shop: Shop, session: Routeweiler, lnd: FakeLnd) -> None:
    """Else a payment for one request would be used up by another, which its server may refuse."""
    paywall = shop()
    paywall.cut_next("before")
    url = f"{paywall.base_url}/page?a=1"
    with pytest.raises(requests.ConnectionError):
        session.post(url, data=b"one")
    (first,) = {payment.payment_hash for payment in lnd.payments}
    asks: dict[str, Callable[[], requests.Response]] = {
        "path": lambda: session.post(f"{paywall.base_url}/other?a=1", data=b"one"),
        "query": lambda: session.post(f"{paywall.base_url}/page?a=2", data=b"one"),
        "method": lambda: session.put(url, data=b"one"),
        "body": lambda: session.post(url, data=b"two"),
    }
    payment = payment_of(asks[other]())
    assert payment is not None
    assert payment.payment_hash != first
    same = payment_of(session.post(url, data=io.BytesIO(b"one")))
    assert same is not None
    assert (same.payment_hash, same.reused) == (first, True)
    assert paid(lnd) == 2


@pytest.mark.parametrize(("form", "when"), [*((form, "before") for form in FORMS), ("aperture", "after")])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_lost_answer_costs_no_second_payment(
    form: str, when: Any, method: str, shop: Shop, make_session: Make, lnd: FakeLnd, books: Books
) -> None:
    """The connection breaks after paying: a client that pays again has paid twice for one request."""
    paywall = shop(form=form)
    paywall.cut_next(when)
    body = b"order" if method == "POST" else None
    with pytest.raises(requests.ConnectionError):
        make_session().request(method, paywall.url, data=body)
    assert charges(books) == [("settled", False)]
    assert books.rows[0].presenter is None
    assert books.rows[0].failure_text == "no answer came"
    response = make_session().request(method, paywall.url, data=body)
    assert (response.status_code, paid(lnd)) == (200, 1)
    payment = payment_of(response)
    assert payment is not None
    assert payment.reused
    assert charges(books) == [("retired", True)]
    books.check()


def test_a_refused_charge_is_paid_for_once_until_it_is_forgotten(
    shop: Shop, make_session: Make, lnd: FakeLnd, books: Books
) -> None:
    """Else a server that never delivers would be paid with every call."""
    paywall = shop(reoffers=False)
    paywall.faults.refuse_tokens = True
    for _ in range(3):
        with pytest.raises(TokenRefusedError) as caught:
            make_session().get(paywall.url)
        assert (caught.value.spent, caught.value.payment_hash) == (True, books.rows[0].payment_hash)
        assert charges(books) == [("settled", False)]
        assert paid(lnd) == 1
    assert statuses(paywall) == [402, 402] * 3
    books.ledger.forget(books.rows[0].payment_hash)
    paywall.faults.refuse_tokens = False
    assert make_session().get(paywall.url).status_code == 200
    assert paid(lnd) == 2
    books.check()


def test_an_origin_that_refuses_what_it_was_first_paid_for_gets_no_more(shop: Shop, session: Routeweiler, lnd: FakeLnd) -> None:
    """Else a server that never delivers would be paid once for each of its pages."""
    paywall = shop(reoffers=False)
    paywall.faults.refuse_tokens = True
    for path in ("/one", "/two"):
        with pytest.raises(TokenRefusedError):
            session.get(paywall.base_url + path)
    assert paid(lnd) == 1


def test_a_lost_answer_holds_up_its_own_request_alone(shop: Shop, session: Routeweiler, lnd: FakeLnd) -> None:
    """The first answer of a server was lost, and the charge is used up: that says nothing about its other pages."""
    paywall = shop()
    paywall.cut_next("after")
    with pytest.raises(requests.ConnectionError):
        session.get(f"{paywall.base_url}/one")
    with pytest.raises(TokenRefusedError):
        session.get(f"{paywall.base_url}/one")
    assert session.get(f"{paywall.base_url}/two").status_code == 200
    assert paid(lnd) == 2


def test_a_refused_charge_is_delivered_once_the_server_takes_it(shop: Shop, make_session: Make, lnd: FakeLnd, books: Books) -> None:
    """A server that was out of order for a while would keep what it was paid."""
    paywall = shop(reoffers=False)
    paywall.faults.refuse_tokens = 1
    with pytest.raises(TokenRefusedError):
        make_session().get(paywall.url)
    assert make_session().get(paywall.url).status_code == 200
    assert paid(lnd) == 1
    books.check()


@pytest.mark.parametrize("form", SINGLE_USE)
def test_a_lost_answer_that_has_used_the_charge_up_is_told(
    form: str, shop: Shop, make_session: Make, lnd: FakeLnd, books: Books
) -> None:
    """The page was on its way and is lost. Nobody can fetch it again, but nobody may pay for it again unasked either."""
    paywall = shop(form=form)
    paywall.cut_next("after")
    with pytest.raises(requests.ConnectionError):
        make_session().post(paywall.url, data=b"order")
    for _ in range(2):
        with pytest.raises(TokenRefusedError) as caught:
            make_session().post(paywall.url, data=b"order")
        assert caught.value.spent is True
    assert len(paywall.requests) <= 2 + 2 * 3
    assert (paid(lnd), charges(books)) == (1, [("settled", False)])
    books.ledger.forget(books.rows[0].payment_hash)
    assert make_session().post(paywall.url, data=b"order").status_code == 200
    assert paid(lnd) == 2
    books.check()


@pytest.mark.parametrize("form", ["mppx", "mppx-0.11"])
def test_a_paid_invoice_under_a_new_challenge_gets_its_preimage_once(
    form: str, shop: Shop, session: Routeweiler, lnd: FakeLnd, books: Books
) -> None:
    """Servers answer each refusal with a fresh challenge for the paid invoice: taken for a new bill, it can't be paid at all."""
    paywall = shop(form=form)
    paywall.faults.refuse_tokens = 1
    assert session.get(paywall.url).status_code == 200
    refused = 500 if form == "mppx-0.11" else 402
    assert statuses(paywall) == [402, refused, 200]
    assert paid(lnd) == 1
    paywall.faults.refuse_tokens = True
    before = len(paywall.requests)
    with pytest.raises(TokenRefusedError):
        session.get(paywall.url)
    assert len(paywall.requests) == before + 3, "once"
    assert paid(lnd) == 2
    assert charges(books) == [("retired", True), ("settled", False)]


def test_a_refusal_by_the_same_challenge_isnt_answered_again(shop: Shop, make_session: Make, lnd: FakeLnd) -> None:
    """pympp repeats the challenge that was answered: the same credential would be refused again, and again."""
    paywall = shop(form="pympp")
    paywall.faults.refuse_tokens = 1
    with pytest.raises(TokenRefusedError):
        make_session().get(paywall.url)
    assert statuses(paywall) == [402, 402]
    assert make_session().get(paywall.url).status_code == 200
    assert paid(lnd) == 1


@pytest.mark.parametrize("form", ["aperture", "mppx"])
def test_the_invoice_of_a_spent_charge_isnt_paid_again(
    form: str, shop: Shop, make_session: Make, lnd: FakeLnd, books: Books
) -> None:
    """A server repeats an invoice that is paid: lnd would refuse it. Its preimage is presented, for the same request alone."""
    paywall = shop(form=form)
    paywall.faults.repeat_invoice = True
    assert make_session().get(paywall.url).status_code == 200
    if form == "aperture":
        assert make_session().get(paywall.url).status_code == 200
    else:
        with pytest.raises(TokenRefusedError):
            make_session().get(paywall.url)
    with pytest.raises(ChallengeMismatchError) as caught:
        make_session().get(f"{paywall.base_url}/other")
    assert caught.value.spent is False
    assert (len(lnd.orders), charges(books)) == (1, [("retired", True)])
    books.check()


@pytest.mark.parametrize("first", ["delivered", "used up", "forgotten"])
def test_what_helps_against_an_invoice_that_is_repeated_for_ever_is_told(
    first: str, shop: Shop, make_session: Make, lnd: FakeLnd, books: Books
) -> None:
    """To forget what is used up changes nothing: whoever is told to would do it again and again."""
    paywall = shop(form="mppx", receipts="always")
    paywall.faults.repeat_invoice = True
    if first == "used up":
        paywall.answer_next(500)
    assert make_session().get(paywall.url).status_code == (500 if first == "used up" else 200)
    if first == "forgotten":
        books.ledger.forget(books.rows[0].payment_hash)
    for _ in range(2):
        with pytest.raises(TokenRefusedError, match=r"a new invoice.*tell its operator") as caught:
            make_session().get(paywall.url)
        assert "forget(" not in str(caught.value)
        assert "tokens forget" not in caught.value.shell_text
    assert len(lnd.orders) == 1


def test_two_calls_that_get_one_invoice_pay_it_once(shop: Shop, make_session: Make, lnd: FakeLnd, books: Books) -> None:
    """A server hands one invoice to two calls at once: one of them has it, the other is told, and nothing is paid twice."""
    paywall = shop()
    paywall.faults.repeat_invoice = True
    assert make_session().quote("GET", paywall.url) is not None, "from now on, there is an invoice to repeat"

    def ask() -> int | None:
        try:
            return make_session().get(paywall.url).status_code
        except (PaymentPendingError, TokenRefusedError):
            return None

    answers = at_once([ask] * 4)
    assert answers.count(200) == 1
    assert len(lnd.payments) == 1
    books.check()


def test_an_error_without_a_receipt_leaves_the_charge(shop: Shop, make_session: Make, lnd: FakeLnd, books: Books) -> None:
    """A proxy whose server is away answers 502: the payment is as good as before."""
    paywall = shop()
    paywall.answer_next(502, used=False, receipt=False, times=2)
    for _ in range(2):
        response = make_session().post(paywall.url, data=b"order")
        assert response.status_code == 502
        assert payment_of(response) is not None
    assert charges(books) == [("settled", False)]
    assert make_session().post(paywall.url, data=b"order").status_code == 200
    assert paid(lnd) == 1
    books.check()


@pytest.mark.parametrize("status", [403, 404, 409, 429, 500])
def test_an_error_with_a_receipt_spends_the_charge_and_is_told(
    status: int, shop: Shop, session: Routeweiler, lnd: FakeLnd, books: Books, caplog: pytest.LogCaptureFixture
) -> None:
    """The server has used the charge up: presented again it would be refused for ever."""
    paywall = shop(receipts="always")
    paywall.answer_next(status)
    response = session.get(paywall.url)
    assert response.status_code == status
    assert payment_of(response) is not None
    assert charges(books) == [("retired", False)]
    assert f"it answered {status}, with a receipt" in caplog.text
    assert f"status {status}" in (books.rows[0].failure_text or "")
    assert session.get(paywall.url).status_code == 200
    assert paid(lnd) == 2
    books.check()


def test_a_403_is_the_callers_and_keeps_the_charge(shop: Shop, session: Routeweiler, lnd: FakeLnd, books: Books) -> None:
    """Paid, but not allowed: nothing says that the charge is used up, so nothing is paid again."""
    paywall = shop()
    paywall.answer_next(403, used=False, receipt=False)
    assert session.get(paywall.url).status_code == 403
    assert "not allowed" in (books.rows[0].failure_text or "")
    assert session.get(paywall.url).status_code == 200
    assert paid(lnd) == 1


def test_a_receipt_that_cant_be_read_harms_no_delivery(shop: Shop, session: Routeweiler, books: Books) -> None:
    """Else a page that was paid for would be lost over a header that proves nothing."""
    paywall = shop(receipts="junk")
    assert session.get(paywall.url).status_code == 200
    assert charges(books) == [("retired", True)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["session", "foreign adapter", "adapter", "wrap"])
def test_a_form_that_is_encoded_anew_in_each_run_gets_what_it_has_paid_for(
    form: str, kind: str, shop: Shop, make_session: Make, lnd: FakeLnd, tmp_path: Path
) -> None:
    """`requests` makes a new boundary for each form: a charge that is good for one body alone would be lost with its answer."""
    paywall = shop(form=form, digest=True)

    def send() -> requests.Response:
        session: requests.Session = make_session()
        if kind == "foreign adapter":
            session.mount("http://", requests.adapters.HTTPAdapter())
        elif kind == "adapter":
            session = requests.Session()
            session.mount("http://", PaywallAdapter(funding=[lnd.funding()], ledger=tmp_path / "other.db"))
        elif kind == "wrap":
            session = wrap(requests.Session(), funding=[lnd.funding()], ledger=tmp_path / "other.db")
        return session.post(
            paywall.url, files={"a": ("a.txt", b"x\r\n--y--\r\n")}, data={"k": "v"}, headers={"Authorization": "Basic YTpi"}
        )

    paywall.cut_next("before")
    with pytest.raises(requests.ConnectionError):
        send()
    response = send()
    assert (response.status_code, paid(lnd)) == (200, 1)
    assert statuses(paywall) == [402, 402, 0, 402, 402, 200], "one more request, since the first price was for another body"
    first, second, last = (paywall.requests[at] for at in (0, 1, 5))
    assert first.body != second.body == last.body
    for request in (first, last):
        boundary = request.headers["Content-Type"].partition("boundary=")[2]
        assert request.body.endswith(f"--{boundary}--\r\n".encode())
        assert request.body.count(boundary.encode()) == 3
        assert int(request.headers["Content-Length"]) == len(request.body)


def test_a_server_that_goes_on_asking_for_the_first_body_gets_it(session: Routeweiler, lnd: FakeLnd) -> None:
    """It keeps the price that it has named to a client for a while: no body but the first could be paid for."""
    line: list[str] = []
    bodies: list[bytes] = []

    def answer(handler: Any) -> Any:
        bodies.append(handler.body)
        if handler.headers["Authorization"]:
            return (200 if handler.body == bodies[0] else 402), [], b"page"
        if not line:
            invoice = lnd.invoice(10_000)
            asked = {"amount": "10", "currency": "sat", "methodDetails": {"invoice": invoice.bolt11, "network": "regtest"}}
            encoded = base64.urlsafe_b64encode(json.dumps(asked).encode()).decode().rstrip("=")
            digest = base64.b64encode(hashlib.sha256(handler.body).digest()).decode()
            line.append(
                f'Payment id="1", realm="r", method="lightning", intent="charge", request="{encoded}", digest="sha-256=:{digest}:"'
            )
        return 402, [("WWW-Authenticate", line[0])], b""

    with server(answer) as url:
        assert session.post(url, files={"a": b"x"}).status_code == 200
    assert (len(bodies), bodies[0] == bodies[2], bodies[0] == bodies[1], paid(lnd)) == (3, True, False, 1)


@pytest.mark.parametrize("given", [{"files": {"a": b"x"}, "headers": {"Content-MD5": "1"}}, {"data": b"x"}], ids=str)
def test_a_body_that_must_stay_as_it_is_isnt_asked_about_twice(given: dict[str, Any], shop: Shop, session: Routeweiler) -> None:
    """Another boundary would make a signature or digest of the caller's wrong. Each question costs the server an invoice."""
    paywall = shop(digest=True)
    assert session.post(paywall.url, **given).status_code == 200
    assert statuses(paywall) == [402, 200]
    assert paywall.requests[0].body == paywall.requests[1].body


def test_a_form_whose_price_is_for_any_body_is_asked_about_once(shop: Shop, session: Routeweiler) -> None:
    """Each question costs the server an invoice."""
    paywall = shop()
    assert session.quote("POST", paywall.url, files={"a": b"x"}) is not None
    assert session.post(paywall.url, files={"a": b"x"}).status_code == 200
    assert statuses(paywall) == [402, 402, 200]


# -- many at once -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["one session", "a session each"])
def test_calls_for_one_request_at_once_are_needs_of_their_own(
    who: str, shop: Shop, make_session: Make, lnd: FakeLnd, books: Books
) -> None:
    """Shared, one payment would be offered by eight calls, of which seven are refused."""
    paywall = shop()
    one = make_session()
    sessions = [one if who == "one session" else make_session() for _ in range(8)]
    answers = at_once([lambda each=each: each.get(paywall.url) for each in sessions])
    assert [answer.status_code for answer in answers] == [200] * 8
    payments = {payment.payment_hash for answer in answers if (payment := payment_of(answer)) is not None}
    assert (len(payments), paid(lnd)) == (8, 8)
    assert charges(books) == [("retired", True)] * 8
    books.check()


def test_calls_at_once_keep_within_the_budget(shop: Shop, make_session: Make, lnd: FakeLnd, books: Books) -> None:
    """Separate purchases are counted each: else as many calls as there are threads would slip under a cap together."""
    paywall = shop()
    session = make_session(budget_envelope=BudgetEnvelope("small", cap_minor_units=60))

    def ask() -> int | None:
        try:
            return session.get(paywall.url).status_code
        except BudgetExceededError:
            return None

    answers = at_once([ask] * 8)
    assert 3 <= answers.count(200) <= 6
    assert paid(lnd) == answers.count(200)
    books.check()


def test_each_owed_charge_is_presented_by_one_call(shop: Shop, make_session: Make, lnd: FakeLnd, books: Books) -> None:
    """Two calls that present one charge: the server refuses one of them, which has paid for nothing."""
    paywall = shop()
    paywall.cut_next("before", times=4)
    lnd.hang_next(times=4)

    def lose() -> None:
        with pytest.raises(requests.ConnectionError):
            make_session().get(paywall.url)

    def pay_all() -> None:  # at once: else a call would present the charge of one that has ended
        lnd.wait_for(lambda node: len(node.payments) == 4)
        lnd.release()

    at_once([*[lose] * 4, pay_all])
    assert charges(books) == [("settled", False)] * 4
    answers = at_once([lambda: make_session().get(paywall.url)] * 6)
    assert [answer.status_code for answer in answers] == [200] * 6
    payments = [payment for answer in answers if (payment := payment_of(answer)) is not None]
    assert len({payment.payment_hash for payment in payments}) == 6
    assert sorted(payment.reused for payment in payments) == [False] * 2 + [True] * 4
    assert paid(lnd) == 6
    books.check()


def test_an_unfinished_payment_is_finished_before_anything_is_bought(
    shop: Shop, make_session: Make, lnd: FakeLnd, books: Books
) -> None:
    """A call gives up waiting for its wallet. The next one must not pay beside what is still on its way."""
    paywall = shop()
    lnd.hang_next()
    with pytest.raises(PaymentPendingError):
        make_session(payment_timeout=1.5).get(paywall.url)
    with pytest.raises(PaymentPendingError):
        make_session(payment_timeout=1.5).get(paywall.url)
    assert len(lnd.payments) == 1
    lnd.release()
    assert make_session().get(paywall.url).status_code == 200
    assert len(lnd.payments) == len(lnd.orders) == 1
    books.check()


DYING = """
import os, sys
from routeweiler_sync import Funding, LndClient, Routeweiler
from routeweiler_sync.paywall import charges
from routeweiler_sync.ledger.ledger import Ledger
url, ledger, when = sys.argv[1:]
if when == "paid":
    charges.present = lambda *_: os._exit(9)
    from routeweiler_sync.paywall import handler
    handler.present = charges.present
else:
    Ledger.spend_charge = lambda *_, **__: os._exit(9)
Routeweiler(funding=[Funding.lightning_lnd(client=LndClient.from_env(), network="bitcoin-regtest")], ledger=ledger).get(url)
"""


@pytest.mark.parametrize(("form", "when"), [*((form, "paid") for form in FORMS), ("aperture", "answered")])
def test_what_a_dead_process_has_paid_for_is_delivered_by_the_next(
    form: str, when: str, shop: Shop, make_session: Make, lnd: FakeLnd, books: Books
) -> None:
    """kill -9 after paying: the next process must find the charge, although the dead one has claimed it."""
    paywall = shop(form=form)
    died = subprocess.run(
        [sys.executable, "-c", DYING, paywall.url, str(books.ledger_path), when], env={**os.environ, **lnd.environ}, check=False
    )
    assert died.returncode == 9
    assert [(row.state.value, row.presenter is not None) for row in books.rows] == [("settled", True)]
    assert make_session().get(paywall.url).status_code == 200
    assert paid(lnd) == 1
    assert charges(books) == [("retired", True)]
    books.check()


# -- what a call does at most -------------------------------------------------------------------------------------------------


def test_a_call_pays_for_one_charge_over_all_its_redirects(shop: Shop, session: Routeweiler, lnd: FakeLnd) -> None:
    """A server that redirects from one price to the next would empty the budget with one call."""
    paywall = shop(respond=lambda request: (303, {"Location": "/second"}, b"") if request.path == "/first" else (200, {}, b"page"))
    with pytest.raises(TokenRefusedError) as caught:
        session.get(f"{paywall.base_url}/first")
    assert caught.value.spent is True
    assert paid(lnd) == 1
    assert session.get(f"{paywall.base_url}/second").status_code == 200


def test_the_credential_of_a_charge_goes_to_its_origin_alone(shop: Shop, session: Routeweiler, lnd: FakeLnd) -> None:
    """A redirect to another server would hand it a preimage that opens the page."""
    elsewhere = shop()
    to = f"{elsewhere.base_url}/free"
    paywall = shop(header="Payment-Authorization", respond=lambda request: (302, {"Location": to}, b""))
    response = session.get(paywall.url)
    assert response.status_code == 200
    assert not elsewhere.requests[-1].authorized
    assert not {"authorization", "payment-authorization"} & {name.lower() for name in elsewhere.requests[-1].headers}
    assert paid(lnd) == 1


@pytest.mark.parametrize("mounted", ["our adapter", "another's adapter", "a plain session"])
@pytest.mark.parametrize("fault", ["cut", "502"])
def test_no_adapter_sends_a_charge_twice(
    mounted: str, fault: str, shop: Shop, make_session: Make, lnd: FakeLnd, books: Books
) -> None:
    """urllib3 repeats by itself what failed: the second request would be refused, and the first may have had its effect."""
    paywall = shop()
    retries = Retry(total=3, status_forcelist=[502], allowed_methods=None, backoff_factor=0, raise_on_status=False)
    if mounted == "a plain session":
        session = requests.Session()
        session.mount("http://", PaywallAdapter(funding=[lnd.funding()], ledger=books.ledger_path, max_retries=retries))
    else:
        session = make_session()
        kind = PaywallAdapter if mounted == "our adapter" else requests.adapters.HTTPAdapter
        session.mount("http://", kind(max_retries=retries))
    if fault == "cut":
        paywall.cut_next("before")
        with pytest.raises(requests.ConnectionError):
            session.post(paywall.url, data=b"order")
    else:
        paywall.answer_next(502, used=False, receipt=False)
        assert session.post(paywall.url, data=b"order").status_code == 502
    assert len(paywall.requests) == 2
    assert session.post(paywall.url, data=b"order").status_code == 200
    assert paid(lnd) == 1


def test_a_charge_is_never_paid_after_a_token_in_one_call(lnd: FakeLnd, shop: Shop, session: Routeweiler) -> None:
    """From one scheme to the other by itself: paid twice for one page, as clients do that try all that is offered."""
    paywall = shop(scheme=("LSAT", "L402", "Payment"), form="aperture", authscheme="mpp")
    with pytest.raises(TokenRefusedError):
        session.get(paywall.url)
    assert paid(lnd) == 1
    with pytest.raises(TokenRefusedError):
        session.get(paywall.url)
    assert paid(lnd) == 1


def preferring_charges() -> Policy:
    return Policy(rules=[PolicyRule("charges", when=RuleMatch(url_matches="**"), prefer="mpp-lightning")])


def test_a_token_is_never_paid_after_a_charge(lnd: FakeLnd, shop: Shop, make_session: Make, books: Books) -> None:
    """The same the other way round, by other sessions too: the policy of one prefers charges, that of the next tokens."""
    paywall = shop(scheme=("LSAT", "L402", "Payment"), form="aperture", authscheme="l402")
    with pytest.raises(TokenRefusedError):
        make_session(policy=preferring_charges()).get(paywall.url)
    assert charges(books) == [("settled", False)]
    with pytest.raises(TokenRefusedError):
        make_session().get(paywall.url)
    assert paid(lnd) == 1


def test_a_policy_that_prefers_charges_buys_one_for_each_call(lnd: FakeLnd, shop: Shop, make_session: Make, books: Books) -> None:
    """Where both schemes are offered, the user may choose; a token that is refused by then costs no more than its request."""
    paywall = shop(scheme=("LSAT", "L402", "Payment"), form="aperture")
    assert make_session().get(paywall.url).status_code == 200
    session = make_session(policy=preferring_charges())
    assert session.get(paywall.url).status_code == 200, "the token that is there"
    assert paid(lnd) == 1
    paywall.revoke_tokens()
    for count in (2, 3):
        assert session.get(paywall.url).status_code == 200
        assert paid(lnd) == count
    assert [(row.single_use, row.state.value) for row in books.rows] == [(False, "retired"), (True, "retired"), (True, "retired")]
    books.check()


# -- time ---------------------------------------------------------------------------------------------------------------------


def test_a_charge_without_enough_time_isnt_paid(shop: Shop, session: Routeweiler, lnd: FakeLnd, books: Books) -> None:
    """A payment that ends after its challenge buys nothing, although the invoice can be paid for hours."""
    paywall = shop(expires=4)
    with pytest.raises(ChallengeExpiredError) as caught:
        session.get(paywall.url)
    assert caught.value.spent is False
    assert (lnd.orders, books.rows) == ([], [])


def test_the_nodes_own_timeout_ends_before_the_challenge(shop: Shop, session: Routeweiler, lnd: FakeLnd) -> None:
    """Else lnd would go on trying, and pay, after the challenge is dead."""
    paywall = shop(expires=20)
    assert session.get(paywall.url).status_code == 200
    assert lnd.orders[0].timeout_seconds <= 17
    long = shop(expires=600)
    assert session.get(long.url).status_code == 200
    assert lnd.orders[1].timeout_seconds > 30


def test_an_order_isnt_sent_again_when_it_would_be_too_late(
    shop: Shop, make_session: Make, lnd: FakeLnd, books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order of an earlier call is lost. Sent again after the challenge's end, it would pay for nothing."""
    paywall = shop(expires=6)
    lnd.drop_next("before_init", times=None)
    with pytest.raises(PaymentPendingError):
        make_session(payment_timeout=1.5).get(paywall.url)
    lnd.clear_faults()
    orders = len(lnd.orders)
    (row,) = books.rows
    assert row.valid_until is not None
    while time.time() < row.valid_until - 3:
        time.sleep(0.1)
    with pytest.raises(PaymentPendingError) as caught:
        make_session().get(paywall.url)
    assert "isn't time" in str(caught.value)
    assert (len(lnd.orders), len(books.rows)) == (orders, 1)
    books.ledger.forget(row.payment_hash, abandon=True)
    assert make_session().get(shop().url).status_code == 200


def test_a_payment_that_settles_too_late_is_told_as_what_it_is(shop: Shop, make_session: Make, lnd: FakeLnd, books: Books) -> None:
    """The page never comes and the money is gone: the user must know that it was the time."""
    paywall = shop(form="aperture", expires=6)
    lnd.hang_next()
    with pytest.raises(PaymentPendingError):
        make_session(payment_timeout=1.5).get(paywall.url)
    (row,) = books.rows
    assert row.valid_until is not None
    while time.time() < row.valid_until + 1.1:
        time.sleep(0.1)
    lnd.release()
    with pytest.raises(TokenRefusedError, match="after its challenge had expired"):
        make_session().get(paywall.url)
    assert len(lnd.payments) == 1
    books.check()


def test_a_payment_that_settles_too_late_is_delivered_where_the_invoice_is_repeated(
    shop: Shop, make_session: Make, lnd: FakeLnd, books: Books
) -> None:
    """The same at a server that offers the paid invoice anew: its preimage opens the page after all."""
    paywall = shop(form="mppx", expires=6)
    lnd.hang_next()
    with pytest.raises(PaymentPendingError):
        make_session(payment_timeout=1.5).get(paywall.url)
    (row,) = books.rows
    assert row.valid_until is not None
    while time.time() < row.valid_until + 1.1:
        time.sleep(0.1)
    lnd.release()
    assert make_session().get(paywall.url).status_code == 200
    assert len(lnd.payments) == 1
    books.check()


def test_a_challenge_for_another_body_isnt_paid(
    shop: Shop, session: Routeweiler, lnd: FakeLnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The digest says for which body the charge is good: paid with another, it would be refused."""
    paywall = shop(digest=True)
    assert session.post(paywall.url, data=b"order").status_code == 200
    assert session.get(paywall.url).status_code == 200
    monkeypatch.setattr(handler, "content_digest", lambda request: "AAAA")
    with pytest.raises(ChallengeMismatchError) as caught:
        session.post(f"{paywall.base_url}/other", data=b"order")
    assert caught.value.spent is False
    assert paid(lnd) == 2


# -- what is told -------------------------------------------------------------------------------------------------------------


def test_a_quote_says_which_scheme(shop: Shop, session: Routeweiler, paywall: Paywall, lnd: FakeLnd) -> None:
    """A token serves later calls too, a charge one: the same price is another bargain."""
    charge, token = session.quote("GET", shop(expires=60).url), session.quote("GET", paywall.url)
    assert charge is not None
    assert token is not None
    assert (charge.scheme, token.scheme) == ("Payment", "L402")
    assert charge.expires_at.timestamp() < time.time() + 61
    assert lnd.payments == []


def test_a_quote_for_an_owed_charge_is_none(shop: Shop, session: Routeweiler, lnd: FakeLnd) -> None:
    """Nothing would be paid: the call presents what is there."""
    paywall = shop()
    paywall.cut_next("before")
    with pytest.raises(requests.ConnectionError):
        session.get(paywall.url)
    assert session.quote("GET", paywall.url) is None
    assert session.quote("GET", f"{paywall.base_url}/other") is not None


def test_the_preimage_of_a_charge_is_in_no_trace(shop: Shop, session: Routeweiler, books: Books) -> None:
    """It is all that the server asks for: whoever reads it can use the payment first."""
    paywall = shop()
    session.get(paywall.url)
    (row,) = books.rows
    assert row.preimage is not None
    assert row.preimage not in books.trace_path.read_text()
    (line,) = books.lines
    assert (line["selectedRail"], line["challenge"]["scheme"]) == ("mpp-lightning", "Payment")
    assert line["payment"]["proofValue"] is None


def test_no_session_offers_a_charge_unasked(shop: Shop, make_session: Make, lnd: FakeLnd) -> None:
    """A page token of L402 goes along by itself; a charge that did would be used up by whatever the server likes."""
    paywall = shop()
    paywall.cut_next("before")
    session = make_session()
    with pytest.raises(requests.ConnectionError):
        session.get(paywall.url)
    for each in (session, make_session()):
        each.get(f"{paywall.base_url}/free")
        each.head(f"{paywall.base_url}/free/more")
    assert all(not request.paid for request in paywall.requests[2:])
    assert not any(request.authorized for request in paywall.requests[2:])
    assert paid(lnd) == 1


def test_a_rows_state_says_that_it_is_owed(shop: Shop, session: Routeweiler, books: Books) -> None:
    """Programs that look for paid charges without a page find them."""
    paywall = shop()
    paywall.cut_next("before")
    with pytest.raises(requests.ConnectionError):
        session.get(paywall.url)
    (row,) = books.rows
    assert isinstance(row, PaymentRow)
    assert (row.owed, row.single_use, row.state) == (True, True, PaymentState.SETTLED)
    session.get(paywall.url)
    assert not books.rows[0].owed
    assert isinstance(books.ledger, Ledger)
    assert Path(books.ledger_path).exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_forked_in_the_midst_of_a_call_leaves_its_parents_charge_alone(
    shop: Shop, make_session: Make, lnd: FakeLnd, books: Books
) -> None:
    """Both processes end the call. The child must not give up the claim under which its parent presents the charge."""
    paywall = shop()
    pids: list[int] = []
    claimed: list[bool] = []
    present = handler.present

    def forking(*hop: Any) -> requests.Response:
        pid = os.fork()
        if pid == 0:
            hop[0]._presenter.end(hop[0].payer.ledger)
            os._exit(0)
        pids.append(os.waitpid(pid, 0)[1])
        claimed.append(books.rows[0].presenter is not None)
        return present(*hop)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(handler, "present", forking)
        assert make_session().get(paywall.url).status_code == 200
    assert (pids, claimed) == ([0], [True])
    assert paid(lnd) == 1
    books.check()
