"""The paywall speaks the scheme ``Payment`` as real servers do. It is asked with plain `requests` here, and paid by hand."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import responses

from routeweiler_sync import LndClient
from routeweiler_sync.testing import FakeLnd, Faults, Paywall, PaywallRequest, add_paywall
from routeweiler_sync.testing._payment import PAYMENT_FORMS
from routeweiler_sync.testing.paywall import PaywallLogic
from tests.support.payment_by_hand import Bought, lines, payment_lines, unpadded

TIMEOUT_S = 30
FORMS = tuple(PAYMENT_FORMS)
DOCS = Path(__file__).parents[3] / "docs" / "how-to" / "test-with-the-kit.md"
SINGLE_USE = ("mppx", "mppx-0.11", "pympp")
ID = r"[\w-]{43}"
B64 = r"[\w-]+"
SECONDS = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"
LINES = {
    "aperture": rf'Payment id="{ID}", realm="weather", method="lightning", intent="charge", request="{B64}", expires="{SECONDS}"',
    "mppx": rf'Payment id="{ID}", realm="weather", method="lightning", intent="charge", request="{B64}", '
    r'description="the \\"best\\", of \\\\all", expires="[\d-]+T[\d:]+\.\d{3}Z"',
    "pympp": rf'Payment id="{ID}", realm="weather", method="lightning", intent="charge", request="{B64}", '
    rf'expires="[\d-]+T[\d:]+\.\d{{6}}Z", description="the \\"best\\", of \\\\all", opaque="{B64}"',
}
DESCRIPTION = 'the "best", of \\all'


@pytest.fixture(scope="module")
def lnd() -> Iterator[FakeLnd]:
    with FakeLnd() as lnd:
        yield lnd


@pytest.fixture(scope="module")
def node(lnd: FakeLnd) -> Iterator[LndClient]:
    client = lnd.client()
    yield client
    client.close()


class Customer:
    """Asks a paywall by hand."""

    def __init__(self, node: LndClient, paywall: PaywallLogic, base_url: str) -> None:
        self.node, self.paywall, self.base_url = node, paywall, base_url

    def ask(
        self,
        path: str = "/a",
        credential: str | None = None,
        *,
        method: str = "GET",
        body: bytes = b"",
        field: str = "Authorization",
    ) -> requests.Response:
        sent = {} if credential is None else {field: credential}
        return requests.request(method, self.base_url + path, headers=sent, data=body, timeout=TIMEOUT_S)

    def offered(self, path: str = "/a", **how: Any) -> Bought:
        return Bought(payment_lines(self.ask(path, **how))[0])

    def buy(self, path: str = "/a", **how: Any) -> Bought:
        return Bought(payment_lines(self.ask(path, **how))[0], self.pay)

    def pay(self, invoice: str) -> bytes:
        return self.node.pay_invoice(invoice, max_fee_msat=10_000)

    @property
    def last(self) -> PaywallRequest:
        return self.paywall.requests[-1]


Open = Callable[..., Customer]


@pytest.fixture(params=["socket", "mock"])
def open_shop(request: pytest.FixtureRequest, lnd: FakeLnd, node: LndClient) -> Iterator[Open]:
    """Opens a paywall: a server, or one on a ``responses`` mock."""
    closers: list[Callable[[], Any]] = []

    def opened(**options: Any) -> Customer:
        options = {"scheme": "Payment", "service": "weather"} | options
        if request.param == "socket":
            server = Paywall(lnd, **options)
            server.start()
            customer = Customer(node, server, server.base_url)
            closers.append(server.stop)
        else:
            mock = responses.RequestsMock(assert_all_requests_are_fired=False)
            mock.start()
            closers.append(lambda: mock.stop(allow_assert=False))
            customer = Customer(node, add_paywall(mock, "https://api.example", lnd, **options), "https://api.example")
        return customer

    yield opened
    for close in closers:
        close()


# How it asks


@pytest.mark.parametrize("form", FORMS)
def test_a_challenge_is_in_the_servers_own_form(open_shop: Open, form: str) -> None:
    """A client would be proven against a server that nobody runs."""
    shop = open_shop(form=form, description=None if form == "aperture" else DESCRIPTION)
    answer = shop.ask("/a?q=1")
    assert (answer.status_code, answer.headers["Content-Type"], answer.headers["Cache-Control"]) == (
        402,
        "application/problem+json",
        "no-store",
    )
    (line,) = lines(answer)
    assert re.fullmatch(LINES[form.removesuffix("-0.11")], line), line
    offered = Bought(line)
    wanted = {"amount": "10", "currency": "sat"}
    wanted |= {"_mppx_scope": {"http_method": "GET", "resource": "/a", "query": "q=1"}} if form == "pympp" else {}
    details = offered.request.pop("methodDetails")
    assert offered.request == wanted
    assert details["network"] == "regtest"
    assert re.fullmatch("[0-9a-f]{64}", details["paymentHash"])
    assert answer.json()["type"] == "https://paymentauth.org/problems/payment-required"
    assert answer.json().get("challengeId") == (None if form == "aperture" else offered.echo["id"])


def test_aperture_offers_payment_beside_l402_with_an_invoice_of_its_own(open_shop: Open) -> None:
    """A client that pays one and presents the other would pass."""
    shop = open_shop(scheme=("LSAT", "L402", "Payment"), intents=("charge", "session"))
    told = lines(shop.ask())
    assert [each.partition(" ")[0] for each in told] == ["LSAT", "L402", "Payment", "Payment"]
    charge, session = Bought(told[2]), Bought(told[3])
    assert charge.invoice not in told[1]
    assert session.echo["intent"] == "session"
    assert (session.request["depositAmount"], session.request["amount"]) == ("200", "10")


def test_mppx_writes_its_challenges_into_one_line(open_shop: Open) -> None:
    """A parser that takes a line for a challenge would pass."""
    (line,) = lines(open_shop(form="mppx", intents=("charge", "session")).ask())
    assert line.count("Payment id=") == 2


@pytest.mark.parametrize(
    ("life_s", "expires"),
    [(math.inf, None), (-5, r"\d{4}-.*Z"), (5, r"\d{4}-.*Z")],
)
def test_a_challenge_lives_as_long_as_the_option_says(open_shop: Open, life_s: float, expires: str | None) -> None:
    """A client that pays for a dead challenge would pass."""
    shop = open_shop(form="mppx", expires=life_s)
    bought = shop.buy()
    assert ("expires" in bought.echo) == (expires is not None)
    answer = shop.ask("/a", bought.credential())
    assert answer.status_code == (402 if life_s < 0 else 200)
    if life_s < 0:
        assert shop.last.refused == "expired"
        fresh = Bought(payment_lines(answer)[0])
        assert fresh.echo["request"] == bought.echo["request"]
        assert answer.json()["type"].endswith("/payment-expired")


@pytest.mark.parametrize("false", [{"amount": "1"}, {"paymentHash": "ab" * 32}, {"network": None}, {"currency": "usd"}])
def test_what_a_challenge_declares_can_be_false(open_shop: Open, false: dict[str, Any]) -> None:
    """A client that believes the declared amount would pass."""
    offered = open_shop(faults=Faults(false_request=false)).offered()
    told = offered.request | offered.request["methodDetails"]
    assert {name: told.get(name) for name in false} == false


# What is taken


def test_apertures_payment_opens_everything_again_and_again(open_shop: Open) -> None:
    """A client that throws a good payment away would pass, or one that counts on it."""
    shop = open_shop()
    credential = shop.buy().credential()
    for method, path in [("GET", "/a"), ("GET", "/a"), ("POST", "/b?x"), ("HEAD", "/c")]:
        answer = shop.ask(path, credential, method=method)
        assert answer.status_code == 200
        assert answer.headers["Cache-Control"] == "private"
        assert shop.last.scheme == "Payment"
    receipt = json.loads(unpadded(answer.headers["Payment-Receipt"]))
    assert list(receipt) == ["status", "method", "timestamp", "reference", "challengeId"]
    assert receipt["reference"] == shop.last.payment_hash


@pytest.mark.parametrize("form", SINGLE_USE)
def test_others_take_a_payment_once_and_offer_the_same_invoice_then(open_shop: Open, form: str) -> None:
    """A client that takes this for a new bill pays again."""
    shop = open_shop(form=form)
    bought = shop.buy()
    first = shop.ask("/a", bought.credential())
    assert first.status_code == 200
    receipt = json.loads(unpadded(first.headers["Payment-Receipt"]))
    assert list(receipt) == ["method", "reference", "status", "timestamp"]
    second = shop.ask("/a", bought.credential())
    assert second.status_code == (500 if form == "mppx-0.11" else 402)
    assert (shop.last.refused, shop.last.proves, shop.last.paid) == ("used", shop.last.proves, False)
    fresh = Bought(payment_lines(second)[0])
    assert fresh.echo["request"] == bought.echo["request"]
    assert fresh.echo["id"] != bought.echo["id"] or fresh.echo == bought.echo
    assert "Payment-Receipt" not in second.headers
    fresh.preimage = bought.preimage
    assert shop.ask("/a", fresh.credential()).status_code == second.status_code
    assert shop.offered().invoice != bought.invoice


@pytest.mark.parametrize("form", SINGLE_USE)
def test_a_refusal_may_offer_a_new_invoice(open_shop: Open, form: str) -> None:
    """The drafts know no offer of the same one."""
    shop = open_shop(form=form, reoffers=False)
    bought = shop.buy()
    shop.ask("/a", bought.credential())
    assert Bought(payment_lines(shop.ask("/a", bought.credential()))[0]).invoice != bought.invoice


@pytest.mark.parametrize(("method", "path"), [("GET", "/b?x=1"), ("GET", "/a?x=2"), ("POST", "/a?x=1")])
def test_pympp_binds_a_payment_to_what_was_asked(open_shop: Open, method: str, path: str) -> None:
    """A client that presents it elsewhere would pass, and lose nothing by it."""
    shop = open_shop(form="pympp")
    bought = shop.buy("/a?x=1")
    answer = shop.ask(path, bought.credential(), method=method)
    assert (answer.status_code, shop.last.refused) == (402, "elsewhere")
    assert Bought(payment_lines(answer)[0]).invoice != bought.invoice
    assert shop.ask("/a?x=1", bought.credential()).status_code == 200


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("altered", ["id", "realm", "request", "expires"])
def test_an_altered_echo_is_refused_and_uses_nothing_up(open_shop: Open, form: str, altered: str) -> None:
    """A client that writes a challenge anew, instead of echoing it, would pass."""
    shop = open_shop(form=form)
    bought = shop.buy()
    spoilt: dict[str, str | None] = {altered: None if altered == "expires" else bought.echo[altered] + "="}
    answer = shop.ask("/a", bought.credential(**spoilt))
    assert (answer.status_code, shop.last.refused) == (402, "forged")
    name = "invalid-challenge" if form.startswith("mppx") else "payment-required"
    assert answer.json()["type"].endswith(f"/{name}")
    assert shop.ask("/a", bought.credential(description=None)).status_code == 200


@pytest.mark.parametrize("form", FORMS)
def test_a_wrong_preimage_and_an_unpaid_invoice_are_refused(open_shop: Open, form: str) -> None:
    """A client that guesses would pass."""
    shop = open_shop(form=form)
    status = 500 if form == "mppx-0.11" else 402
    bought = shop.buy()
    assert shop.ask("/a", bought.credential(preimage="11" * 32)).status_code == status
    assert shop.last.refused == "forged"
    assert shop.ask("/a", "Payment %%%").status_code == 402
    assert shop.last.refused == "malformed" or form != "aperture"
    assert shop.ask("/a", bought.credential()).status_code == 200


@pytest.mark.parametrize("way", [True, "colons", "bare"])
@pytest.mark.parametrize("form", ["mppx", "pympp"])
def test_a_digest_binds_the_body(open_shop: Open, form: str, way: Any) -> None:
    """A client that pays for another body than it sends would pass."""
    shop = open_shop(form=form, digest=way)
    bought = shop.buy(method="POST", body=b"one")
    told = base64.standard_b64encode(hashlib.sha256(b"one").digest()).decode()
    assert bought.echo["digest"] == (f"sha-256=:{told}:" if way == "colons" else f"sha-256={told}")
    assert shop.ask("/a", bought.credential(), method="POST", body=b"two").status_code == 402
    assert shop.ask("/a", bought.credential(digest=None), method="POST", body=b"one").status_code == 402
    assert shop.ask("/a", bought.credential(), method="POST", body=b"one").status_code == 200


def test_the_credential_may_go_into_a_field_of_its_own(open_shop: Open) -> None:
    """A client that always sends Authorization would pass."""
    shop = open_shop(form="pympp", header="Payment-Authorization")
    bought = shop.buy()
    assert bought.echo["header"] == "Payment-Authorization"
    assert shop.ask("/a", bought.credential()).status_code == 402
    assert shop.ask("/a", bought.credential(header=None), field="Payment-Authorization").status_code == 402
    assert shop.ask("/a", bought.credential(), field="Payment-Authorization").status_code == 200
    assert "Payment-Authorization" not in shop.last.headers


@pytest.mark.parametrize("spelled", ["payment", "Basic eA=="])
def test_aperture_reads_the_scheme_as_it_is_written(open_shop: Open, spelled: str) -> None:
    """A client that writes it in small letters would pass."""
    shop = open_shop()
    credential = shop.buy().credential()
    spoilt = credential.replace("Payment", "payment") if spelled == "payment" else f"{spelled}, {credential}"
    assert shop.ask("/a", spoilt).status_code == 402
    assert shop.ask("/a", credential).status_code == 200


@pytest.mark.parametrize(
    ("authscheme", "l402", "payment"), [("l402", 200, 402), ("mpp", 402, 200), ("l402+mpp", 200, 200), (None, 200, 200)]
)
def test_aperture_offers_both_and_takes_what_its_authscheme_names(
    open_shop: Open, node: LndClient, authscheme: Any, l402: int, payment: int
) -> None:
    """A client that believes an offer, and then pays the next one too, would pass."""
    shop = open_shop(scheme=("LSAT", "L402", "Payment"), authscheme=authscheme)
    told = lines(shop.ask())
    found = re.match(r'L402 macaroon="([^"]+)", invoice="([^"]+)"', told[1])
    assert found is not None
    token = f"L402 {found[1]}:{node.pay_invoice(found[2], max_fee_msat=10_000).hex()}"
    assert shop.ask("/a", token).status_code == l402
    assert (shop.last.proves is not None, shop.last.scheme) == (True, "L402")
    assert shop.ask("/a", Bought(told[2], shop.pay).credential()).status_code == payment
    assert (shop.last.proves is not None, shop.last.scheme) == (True, "Payment")


@pytest.mark.parametrize("row", re.findall(r"`(Paywall\(lnd.*Payment.*?\))` \| ", DOCS.read_text(encoding="utf-8")))
def test_each_server_of_the_docs_can_be_opened(lnd: FakeLnd, node: LndClient, row: str) -> None:
    """A reader would copy a line that doesn't run."""
    with eval(row, {"Paywall": Paywall, "lnd": lnd}) as paywall:
        shop = Customer(node, paywall, paywall.base_url)
        assert shop.ask("/a", shop.buy().credential()).status_code == 200


def test_the_docs_list_all_forms() -> None:
    """Nobody would find what isn't listed."""
    text = DOCS.read_text(encoding="utf-8")
    assert [form for form in FORMS if form != "aperture" and f'form="{form}"' not in text] == []


# What goes wrong


@pytest.mark.parametrize("form", SINGLE_USE)
def test_a_cut_before_the_page_uses_nothing_up_and_one_after_it_does(open_shop: Open, form: str) -> None:
    """A test of a lost answer would prove the opposite."""
    shop = open_shop(form=form)
    before, after = shop.buy(), shop.buy()
    for bought, when, status in ((before, "before", 200), (after, "after", 500 if form == "mppx-0.11" else 402)):
        shop.paywall.cut_next(when)  # type: ignore[arg-type]
        with pytest.raises(requests.ConnectionError):
            shop.ask("/a", bought.credential())
        assert shop.ask("/a", bought.credential()).status_code == status


@pytest.mark.parametrize("form", FORMS)
def test_a_proxy_in_front_uses_nothing_up_and_has_no_receipt(open_shop: Open, form: str) -> None:
    """A client that throws a good payment away on a 502 would pass."""
    shop = open_shop(form=form)
    credential = shop.buy().credential()
    shop.paywall.answer_next(502, used=False, receipt=False)
    answer = shop.ask("/a", credential)
    assert (answer.status_code, "Payment-Receipt" in answer.headers) == (502, False)
    assert shop.ask("/a", credential).status_code == 200


@pytest.mark.parametrize(
    ("form", "receipts", "told"),
    [("mppx", None, True), ("aperture", None, True), ("pympp", None, False), ("pympp", "always", True), ("mppx", "never", False)],
)
def test_a_page_that_fails_has_a_receipt_where_the_server_gives_one(open_shop: Open, form: str, receipts: Any, told: bool) -> None:
    """With one, the payment is used up, though nothing was delivered."""
    shop = open_shop(form=form, receipts=receipts)
    shop.paywall.answer_next(500)
    answer = shop.ask("/a", shop.buy().credential())
    assert (answer.status_code, "Payment-Receipt" in answer.headers) == (500, told)


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        ({"refuses": 401}, 401, []),
        ({"refuses": 403}, 403, []),
        ({"refuses": 402, "refuses_with": "nothing"}, 402, []),
        ({"refuses": 401, "refuses_with": "scheme"}, 401, ["Payment"]),
    ],
)
def test_a_payment_may_be_refused_in_other_ways(open_shop: Open, options: Any, status: int, words: list[str]) -> None:
    """Servers exist that do each of these."""
    shop = open_shop(form="mppx", **options)
    bought = shop.buy()
    shop.ask("/a", bought.credential())
    answer = shop.ask("/a", bought.credential())
    assert (answer.status_code, lines(answer)) == (status, words)
    assert answer.json()["status"] == status


def test_faults_of_tokens_strike_payments_too(open_shop: Open) -> None:
    """A server that hears late of a settlement would not be tested."""
    shop = open_shop(form="mppx", faults=Faults(settle_lag=1))
    bought = shop.buy()
    assert [shop.ask("/a", bought.credential()).status_code for _ in range(2)] == [402, 200]
    again = shop.buy()
    shop.paywall.revoke_tokens()
    shop.paywall.faults.settle_lag = 0
    assert shop.ask("/a", again.credential()).status_code == 402
    assert shop.last.refused == "revoked"
    shop.paywall.faults.repeat_invoice = True
    assert shop.offered().invoice == shop.offered().invoice


def test_of_many_at_once_one_gets_the_page(lnd: FakeLnd, node: LndClient) -> None:
    """A race in the kit would hide one in a client."""
    with Paywall(lnd, scheme="Payment", form="mppx") as paywall:
        shop = Customer(node, paywall, paywall.base_url)
        credential = shop.buy().credential()
        threads = [threading.Thread(target=shop.ask, args=("/a", credential)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert Counter(request.status for request in paywall.requests[1:]) == {200: 1, 402: 7}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"form": "mppx", "scheme": ("L402", "Payment")}, "has its own"),
        ({"sells": "path"}, "told by the form"),
        ({"scheme": "payment"}, "MPP is Payment"),
        ({"scheme": ("L402", "MPP")}, "MPP is Payment"),
        ({"expires": "soon"}, "math.inf"),
        ({"digest": "md5"}, "colons, bare"),
        ({"header": "Host"}, "Payment-Authorization or None"),
        ({"intents": ("subscription",)}, "charge, session"),
        ({"authscheme": "both"}, "l402, mpp, l402[+]mpp"),
        ({"receipts": "some"}, "always, delivered, never, junk"),
    ],
)
def test_an_option_that_isnt_possible_is_refused(lnd: FakeLnd, options: Any, told: str) -> None:
    """A misspelt option would test nothing."""
    with pytest.raises(ValueError, match=told):
        Paywall(lnd, **({"scheme": "Payment"} | options))
