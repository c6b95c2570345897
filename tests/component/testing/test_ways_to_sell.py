"""The paywall sells and refuses as real servers do. It is asked with plain `requests` here, and paid by hand.

What each way lets in and keeps out is asked of the server alone: a test of a client against it is worth no more than that.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import bolt11
import pytest
import requests
import responses
from pymacaroons import MACAROON_V1, MACAROON_V2, Macaroon
from pymacaroons.serializers import BinarySerializer

from routeweiler_sync import LndClient
from routeweiler_sync.testing import FakeLnd, Faults, Paywall, PaywallRequest, add_paywall
from routeweiler_sync.testing._forms import FORMS
from routeweiler_sync.testing._messages import Refusal
from routeweiler_sync.testing.paywall import PaywallLogic, Service

TIMEOUT_S = 30
DOCS = Path(__file__).parents[3] / "docs" / "how-to" / "test-with-the-kit.md"
WAYS_AND_ELSEWHERE: list[tuple[Any, list[tuple[str, str, bytes]], list[tuple[str, str, bytes]]]] = [
    # way, what the token of POST /a?q=1 with the body b"x" opens, and what it doesn't
    ("path", [("GET", "/a", b""), ("POST", "/a?q=2", b"y")], [("POST", "/a/", b"x"), ("GET", "/b", b"")]),
    ("method", [("POST", "/a?q=2", b"y")], [("GET", "/a", b""), ("HEAD", "/a", b""), ("POST", "/b", b"x")]),
    ("query", [("POST", "/a?q=1", b"y")], [("POST", "/a?q=2", b"x"), ("POST", "/a", b"x"), ("GET", "/a?q=1", b"")]),
    ("body", [("POST", "/a?q=2", b"x")], [("POST", "/a?q=1", b"y"), ("PUT", "/a?q=1", b"x"), ("POST", "/b?q=1", b"x")]),
    ("everything", [("GET", "/b/c?d", b""), ("DELETE", "/other/x", b""), ("POST", "/", b"z")], []),
    (lambda request: request.query, [("GET", "/z?q=1", b"")], [("POST", "/a", b"x")]),
    ("nothing", [], [("POST", "/a?q=1", b"x"), ("GET", "/b", b"")]),
]


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
        self, path: str = "/a", credential: str | None = None, *, method: str = "GET", body: bytes = b"", **headers: str
    ) -> requests.Response:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        sent |= {} if credential is None else {"Authorization": credential}
        return requests.request(method, self.base_url + path, headers=sent, data=body, timeout=TIMEOUT_S)

    def pay(self, challenge: requests.Response) -> str:
        """Pay a challenge, in whatever form it comes. Return the credential."""
        line = challenge.headers["WWW-Authenticate"]
        scheme = "L402" if re.search(r"\bL402 ", line) else "LSAT"
        found = line[line.index(f"{scheme} ") :]
        token = re.search(r'(?:macaroon|token)="?([^",\s]+)', found)
        invoice = re.search(r'invoice="?(\w+)', found)
        assert token is not None
        assert invoice is not None
        return f"{scheme} {token[1]}:{self.node.pay_invoice(invoice[1], max_fee_msat=10_000).hex()}"

    def buy(self, path: str = "/a", **how: Any) -> str:
        return self.pay(self.ask(path, **how))

    @property
    def last(self) -> PaywallRequest:
        return self.paywall.requests[-1]


Open = Callable[..., Customer]


@pytest.fixture(params=["socket", "mock"])
def open_shop(request: pytest.FixtureRequest, lnd: FakeLnd, node: LndClient) -> Iterator[Open]:
    """Opens a paywall: a server, or one on a ``responses`` mock."""
    closers: list[Callable[[], Any]] = []

    def opened(**options: Any) -> Customer:
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


# What a token opens


@pytest.mark.parametrize("refuses", [402, 401, 403, 500])
@pytest.mark.parametrize(
    ("way", "opens", "elsewhere"), WAYS_AND_ELSEWHERE, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_token_opens_what_it_was_sold_for_and_nothing_else(
    open_shop: Open, way: Any, opens: list[tuple[str, str, bytes]], elsewhere: list[tuple[str, str, bytes]], refuses: int
) -> None:
    """A client would be proven against a shop that gives more, or less, than the one it names."""
    shop = open_shop(sells=way, refuses=refuses)
    shop.paywall.add_service("/other", name="other", price_msat=1_000, sells=way, refuses=refuses)
    credential = shop.buy("/a?q=1", method="POST", body=b"x")
    payment_hash = payment_hash_of(credential)
    for method, path, body in (*opens, *opens[:1]):
        assert shop.ask(path, credential, method=method, body=body).status_code == 200
        assert (shop.last.paid, shop.last.payment_hash, shop.last.proves, shop.last.refused) == (
            True,
            payment_hash,
            payment_hash,
            None,
        )
    for method, path, body in elsewhere:
        refused = shop.ask(path, credential, method=method, body=body)
        assert (refused.status_code, "WWW-Authenticate" in refused.headers) == (refuses, refuses == 402)
        assert (shop.last.paid, shop.last.payment_hash, shop.last.proves) == (False, None, payment_hash)
        assert (shop.last.refused, shop.last.status, shop.last.authorized) == ("elsewhere", refuses, True)
    if way != "nothing":
        assert shop.ask("/a?q=1", credential, method="POST", body=b"x").status_code == 200


def payment_hash_of(credential: str) -> str:
    return hashlib.sha256(bytes.fromhex(credential[-64:])).hexdigest()


@pytest.mark.parametrize("refuses", [402, 401, 500])
def test_a_single_use_token_opens_one_page(open_shop: Open, refuses: int) -> None:
    """A client that uses tokens twice would never learn that it loses a request by it."""
    shop = open_shop(sells="once", refuses=refuses)
    for path in ("/a", "/b"):
        credential = shop.buy("/a")
        assert [shop.ask(path, credential).status_code for _ in range(3)] == [200, refuses, refuses]
        assert (shop.last.refused, shop.last.proves) == ("used", payment_hash_of(credential))


def test_a_use_counts_when_the_page_was_handled(open_shop: Open) -> None:
    """What is lost with an answer that never came couldn't be told from what is still to be had."""
    shop = open_shop(sells="once")
    credential = shop.buy()
    shop.paywall.cut_next("before")
    with pytest.raises(requests.ConnectionError):
        shop.ask("/a", credential)
    shop.paywall.cut_next("after")
    with pytest.raises(requests.ConnectionError):
        shop.ask("/a", credential)
    assert shop.ask("/a", credential).status_code == 402
    credential = shop.buy()
    shop.paywall.answer_next(503)
    assert [shop.ask("/a", credential).status_code for _ in range(2)] == [503, 402]


def test_a_refused_offer_costs_no_use(open_shop: Open) -> None:
    """A token would be used up by the faults of a test."""
    shop = open_shop(sells="once", refuses=403, faults=Faults(settle_lag=2))
    credential = shop.buy()
    assert [shop.ask("/a", credential).status_code for _ in range(4)] == [403, 403, 200, 403]
    assert [request.refused for request in shop.paywall.requests] == [None, "late", "late", None, "used"]


@pytest.mark.parametrize("refuses", [402, 403])
def test_credit_is_sold_whole_and_spent_by_the_page(open_shop: Open, refuses: int) -> None:
    """Prepaid credit couldn't be tested: neither that it is used up, nor what it costs."""
    shop = open_shop(sells="credit:50", refuses=refuses)
    challenge = shop.ask()
    assert "lnbcrt500n1" in challenge.headers["WWW-Authenticate"]
    credential = shop.pay(challenge)
    assert [shop.ask(f"/{n}", credential).status_code for n in range(6)] == [200] * 5 + [refuses]
    assert shop.last.refused == "used"
    credential = shop.buy()
    shop.paywall.price = 20
    assert [shop.ask("/a", credential).status_code for _ in range(3)] == [200, 200, refuses]
    shop.paywall.price = 10
    assert shop.ask("/a", credential).status_code == 200


def test_many_at_once_share_out_what_was_sold(lnd: FakeLnd, node: LndClient) -> None:
    """A race in the shop would give away pages, and hide a race in the client."""
    with Paywall(lnd, sells="credit:50", refuses=403) as paywall:
        shop = Customer(node, paywall, paywall.base_url)
        credential = shop.buy()
        askers = [threading.Thread(target=shop.ask, args=("/a", credential)) for _ in range(20)]
        for asker in askers:
            asker.start()
        for asker in askers:
            asker.join(TIMEOUT_S)
        assert Counter(request.status for request in paywall.requests) == {402: 1, 200: 5, 403: 15}


def test_instances_have_keys_of_their_own_and_take_turns(open_shop: Open) -> None:
    """A balancer in front of servers that share no keys couldn't be tested."""
    shop = open_shop(sells="instance")
    credential = shop.buy()
    assert [shop.ask("/a", credential).status_code for _ in range(5)] == [402, 402, 200, 402, 402]
    assert [request.instance for request in shop.paywall.requests] == [0, 1, 2, 0, 1, 2]
    assert shop.last.refused == "elsewhere"
    shop.paywall.instance = 0
    assert [shop.ask(path, credential).status_code for path in ("/a", "/b", "/c")] == [200] * 3
    shop.paywall.instance = 2
    second = shop.buy()
    assert [shop.ask("/a", each).status_code for each in (second, credential)] == [200, 402]
    shop.paywall.instance = None
    assert shop.ask("/a").status_code == 402
    assert shop.last.instance == 0
    with pytest.raises(ValueError, match="below 3"):
        shop.paywall.instance = 3


def test_the_number_of_instances_and_how_they_refuse_can_be_set(open_shop: Open) -> None:
    """Only one kind of balancer could be tested."""
    shop = open_shop(sells="instance", instances=2, refuses=401)
    credential = shop.buy()
    assert [shop.ask("/a", credential).status_code for _ in range(4)] == [401, 200, 401, 200]
    assert shop.ask("/free").status_code == 200
    assert shop.last.instance is None


def test_only_the_way_of_a_service_is_told_in_the_token(open_shop: Open) -> None:
    """The client would see what real tokens don't say, and need not find out what they open."""

    def caveats() -> list[bytes]:
        token = re.search('macaroon="([^"]*)"', shop.ask("/a").headers["WWW-Authenticate"])
        assert token is not None
        return [caveat.caveat_id for caveat in BinarySerializer().deserialize_raw(base64.b64decode(token[1])).caveats]

    shop = open_shop()
    assert caveats() == [b"services=paywall:0", b"paywall_capabilities="]
    for way in ("path", "query", "method", "body", "everything", "once", "credit:10", "instance", "nothing"):
        shop.paywall.service.way = way
        assert caveats() == []
    shop.paywall.service.valid_for_s = 60
    assert [caveat.partition(b"=")[0] for caveat in caveats()] == [b"paywall_valid_until"]


def test_services_of_one_paywall_sell_in_ways_of_their_own(open_shop: Open) -> None:
    """A site with more than one kind of door couldn't be tested."""
    shop = open_shop(sells="everything")
    shop.paywall.add_service("/one", name="one", price_msat=3_000, sells="once", refuses=403)
    credential, once = shop.buy(), shop.buy("/one/x")
    assert [shop.ask(path, credential).status_code for path in ("/b", "/one/x")] == [200, 403]
    assert [shop.ask(path, once).status_code for path in ("/b", "/one/y", "/one/y")] == [402, 200, 403]


# How a bad token is refused


@pytest.mark.parametrize(
    ("token", "refuses"),
    [
        *((token, refuses) for token in ("macaroon", "json") for refuses in (402, 401, 403, 500)),
        *(("macaroon-urlsafe", 402), ("macaroon-v1", 403), ("uuid", 402), ("jwt", 404), ("hex", 410), ("opaque", 400)),
    ],
)
def test_every_bad_token_is_refused_in_the_same_way(open_shop: Open, refuses: int, token: Any) -> None:
    """A client's care with refusals would be tested against one kind of token only."""
    shop = open_shop(sells="once", refuses=refuses, token=token)
    shop.paywall.service.valid_for_s = -1
    expired = shop.buy()
    shop.paywall.service.valid_for_s = None
    used = shop.buy()
    assert shop.ask("/a", used).status_code == 200

    def is_refused(reason: str, credential: str) -> None:
        answer = shop.ask("/a", credential)
        assert (answer.status_code, shop.last.refused) == (refuses, reason)
        assert (shop.last.proves is None) == (reason in ("forged", "malformed"))
        if refuses == 402:
            assert shop.ask("/a", shop.pay(answer)).status_code == 200
        else:
            assert "WWW-Authenticate" not in answer.headers
            assert set(answer.json()) == {"error"}

    is_refused("used", used)
    is_refused("expired", expired)
    is_refused("forged", used[:-64] + "0" * 64)
    is_refused("forged", "L402 nobody-sold-this" + used[-65:])
    is_refused("malformed", used[:-1])
    fresh = shop.buy()
    shop.paywall.revoke_tokens()
    is_refused("revoked", fresh)
    assert shop.ask("/a", shop.buy()).status_code == 200


@pytest.mark.parametrize("refuses", [401, 402])
@pytest.mark.parametrize(
    ("words", "line"), [("scheme", "L402"), ("realm", 'L402 realm="paywall"'), ("nothing", None), ("challenge", "invoice")]
)
def test_a_refusal_may_name_the_scheme_alone_or_sell_anew(open_shop: Open, refuses: int, words: Any, line: str | None) -> None:
    """A client that takes each L402 header for a challenge, or each 401 for a dead end, would pass."""
    shop = open_shop(sells="once", refuses=refuses, refuses_with=words)
    credential = shop.buy()
    shop.ask("/a", credential)
    refused = shop.ask("/a", credential)
    assert refused.status_code == refuses
    if line == "invoice":
        assert shop.ask("/a", shop.pay(refused)).status_code == 200
    else:
        assert refused.headers.get("WWW-Authenticate") == line
    assert shop.ask("/a").status_code == 402


def test_the_scheme_alone_is_the_one_that_the_server_names(open_shop: Open) -> None:
    """A server of the old name would speak two languages."""
    shop = open_shop(form="boltwall", refuses=401, refuses_with="scheme")
    assert shop.ask("/a", "LSAT x:" + "0" * 64).headers["WWW-Authenticate"] == "LSAT"


def test_paths_that_sell_no_token_take_one(open_shop: Open) -> None:
    """aperture's paths without invoices, where a client has to know by itself which token to send, couldn't be tested."""
    shop = open_shop(service="maps", skip_invoice_paths=["^/maps/stream"])
    shop.paywall.add_service("/weather", name="weather", price_msat=1_000)
    other, credential = shop.buy("/weather/1"), shop.buy("/maps/1")
    for answer in (shop.ask("/maps/stream/1"), shop.ask("/maps/stream/1", other), shop.ask("/maps/stream/1", "L402 x:y")):
        assert (answer.status_code, "WWW-Authenticate" in answer.headers) == (401, False)
    assert shop.ask("/maps/stream/1", credential).status_code == 200
    assert shop.ask("/maps/stream/1", credential, method="POST").status_code == 200
    assert shop.ask("/maps/2", other).status_code == 402


def test_a_head_may_tell_the_price_only(open_shop: Open) -> None:
    """A client that takes the price for a challenge would pass."""
    shop = open_shop(head="price-only", price_msat=10_001)
    told = shop.ask(method="HEAD")
    assert (told.status_code, told.headers["WWW-Authenticate"], told.headers["X-L402-Price-Sats"]) == (402, "L402 price-only", "11")
    assert shop.ask("/a", shop.buy(), method="HEAD").status_code == 200


def test_a_server_may_wait_to_be_asked_for_a_challenge(open_shop: Open) -> None:
    """Middlewares that sell only to those who say that they can pay couldn't be tested."""
    shop = open_shop(accept_authenticate=402, form="lsat-middleware", refuses=500)
    unasked = shop.ask()
    assert (unasked.status_code, "WWW-Authenticate" in unasked.headers) == (402, False)
    assert "WWW-Authenticate" not in shop.ask(Accept_Authenticate="Basic").headers
    credential = shop.buy(Accept_Authenticate="LSAT")
    assert shop.ask("/a", credential).status_code == 200
    assert shop.ask("/a", credential[:-64] + "0" * 64, Accept_Authenticate="L402").status_code == 500
    shop.paywall.service.accept_authenticate = 200
    assert shop.ask().content == b"free\n"
    assert shop.buy(Accept_Authenticate="L402").startswith("LSAT ")
    shop.paywall.service.refuses = 402
    refused = shop.ask("/a", credential[:-64] + "0" * 64)
    assert (refused.status_code, "WWW-Authenticate" in refused.headers) == (402, False)


# How a challenge is written


@pytest.mark.parametrize(
    ("form", "lines"),
    [
        ("aperture", ['LSAT macaroon="T", invoice="I"', 'L402 macaroon="T", invoice="I"']),
        ("aperture-mpp", ['LSAT macaroon="T", invoice="I"', 'L402 macaroon="T", invoice="I"', "Payment"]),
        ("specification", ['L402 version="0", token="T", invoice="I"']),
        ("boltwall", ['LSAT macaroon="T", invoice="I"']),
        ("l402-js", ['L402 macaroon="T", invoice="I"']),
        ("l402-middleware", ["L402 macaroon=T, invoice=I"]),
        ("l402-python", ['L402 macaroon="T", invoice="I"']),
        ("l402kit", ['L402 macaroon="T", invoice="I"']),
        ("lightning-toll", ['L402 invoice="I", macaroon="T"']),
        ("lsat-middleware", ["LSAT macaroon=T, invoice=I"]),
        ("paygate", ['L402 macaroon="T", invoice="I"']),
        ("pylsat", ['LSAT macaroon="T",invoice="I"']),
        ("simple-l402-server", ["L402 macaroon=T invoice=I"]),
        ("toll-booth", ['L402 macaroon="T", invoice="I"']),
        ("L402 invoice='{invoice}', token={token}, x=1", ["L402 invoice='I', token=T, x=1"]),
    ],
)
def test_a_challenge_is_in_the_servers_own_form(open_shop: Open, form: str, lines: list[str]) -> None:
    """A client that reads but one form would pass."""
    shop = open_shop(form=form, price_msat=10_000)
    challenge = shop.ask()
    found = [
        re.sub(r"(invoice=[\"']?)lnbcrt\w+", r"\1I", re.sub(r'((?:macaroon|token)="?)[\w+/=.-]{36,}', r"\1T", line))
        for line in challenge.raw.headers.getlist("WWW-Authenticate")
    ]
    assert [line.partition(" ")[0] if line.startswith("Payment") else line for line in found] == lines
    if "'" not in form:
        credential = shop.pay(challenge)
        assert shop.ask("/b", credential).status_code == 200
        if not form.startswith("aperture"):  # it reads but its own scheme
            other = ("LSAT" if credential.startswith("L402") else "L402") + credential[4:]
            assert shop.ask("/b", other).status_code == 402
            assert shop.last.refused == "malformed"


def test_each_kind_of_token_is_what_it_says(open_shop: Open) -> None:
    """A client that reads every token as a macaroon, or none, would pass."""
    shop = open_shop()

    def token_of(kind: Any) -> str:
        shop.paywall.service.token = kind
        credential = shop.buy()
        assert shop.ask("/a", credential).status_code == 200
        another = "y" if credential[-70] == "x" else "x"  # not the last character, of which base64 may leave bits unread
        assert shop.ask("/a", credential[:-70] + another + credential[-69:]).status_code == 402
        return credential[5:-65]

    for kind, version in (("macaroon", MACAROON_V2), ("macaroon-urlsafe", MACAROON_V2), ("macaroon-v1", MACAROON_V1)):
        macaroon = Macaroon.deserialize(token_of(kind).replace("+", "-").replace("/", "_"))
        assert macaroon.version == version
        assert macaroon.caveats[0].caveat_id_bytes == b"services=paywall:0"
    assert "exp" in json.loads(base64.b64decode(token_of("json"), validate=True))
    assert uuid.UUID(token_of("uuid")).version == 4
    assert re.fullmatch(r"eyJ[\w-]+\.eyJ[\w-]+\.[\w-]{43}", token_of("jwt"))
    assert re.fullmatch("[0-9a-f]{96}", token_of("hex"))
    assert re.fullmatch(r"[\w-]{32}", token_of("opaque"))
    assert len({token_of(kind) for kind in ("macaroon-v1", "json", "jwt", "hex") for _ in range(2)}) == 8


def test_a_challenge_may_be_in_the_body_too_or_there_alone(open_shop: Open) -> None:
    """A client that pays what stands in a page would pass."""
    shop = open_shop(challenge_in="header and body")
    both = shop.ask()
    told = both.json()
    assert told["macaroon"] in both.headers["WWW-Authenticate"]
    assert told["invoice"] in both.headers["WWW-Authenticate"]
    shop.paywall.service.challenge_in = "body"
    alone = shop.ask()
    assert (alone.status_code, "WWW-Authenticate" in alone.headers, set(alone.json())) == (402, False, {"macaroon", "invoice"})
    shop.paywall.service.form = "l402kit"
    assert set(shop.ask().json()) == {"error", "price_sats", "invoice", "macaroon"}
    shop.paywall.service.challenge_in = "header"
    assert shop.ask().content == b"payment required\n"
    shop.paywall.service.challenge_in = None
    assert shop.ask().json()["price_sats"] == 10


def test_the_payment_scheme_beside_l402_has_an_invoice_of_its_own(open_shop: Open) -> None:
    """A client that pays one offer and presents the other would pass."""
    shop = open_shop(form="aperture-mpp", sells="nothing")
    challenge = shop.ask()
    line = challenge.raw.headers.getlist("WWW-Authenticate")[-1]
    assert re.match(r'Payment id="[\w-]+", realm="paywall", method="lightning", intent="charge", request="[\w-]+"$', line)
    request = line.rpartition('request="')[2][:-1]
    asked = json.loads(base64.urlsafe_b64decode(request + "=" * (-len(request) % 4)))
    assert asked["amount"] == "10"
    assert asked["methodDetails"]["paymentHash"] == bolt11.decode(asked["methodDetails"]["invoice"]).payment_hash
    assert asked["methodDetails"]["invoice"] not in ", ".join(challenge.raw.headers.getlist("WWW-Authenticate")[:2])
    credential = shop.pay(challenge)
    assert [shop.ask(path, credential).status_code for path in ("/a", "/a", "/b")] == [402] * 3


@pytest.mark.parametrize("row", re.findall(r"`(Paywall\(lnd.*\))` \|$", DOCS.read_text(encoding="utf-8"), re.MULTILINE))
def test_each_server_of_the_docs_can_be_opened(lnd: FakeLnd, node: LndClient, row: str) -> None:
    """Whoever copies the line of his server would get an error, or a shop where nothing can be bought."""
    with eval(row, {"Paywall": Paywall, "lnd": lnd}) as paywall:
        shop = Customer(node, paywall, paywall.base_url)
        if paywall.service.way == "instance":
            paywall.instance = 1
        credential = shop.buy(Accept_Authenticate="L402", X_Account="me")
        served = shop.ask("/a", credential, X_Account="me")
        assert served.status_code == (402 if paywall.service.way == "nothing" else 200)


def test_the_docs_list_all_forms_ways_and_reasons() -> None:
    """Nobody would find what isn't listed."""
    text = DOCS.read_text(encoding="utf-8")
    named = [form for form in FORMS if form != "aperture" and f'form="{form}"' not in text]
    assert named == []
    assert [word for word in (*get_args(Refusal), "service", "query", "instance") if f"`{word}`" not in text] == []


# Options


@pytest.mark.parametrize(
    ("options", "listed"),
    [
        (
            {"sells": "pages"},
            "sells must be one of service, path, query, method, body, everything, once, instance, nothing, credit:<sats>",
        ),
        ({"sells": "credit:"}, "credit:<sats>"),
        ({"sells": "credit:0"}, "credit:<sats>"),
        ({"sells": "credit:5"}, "less than one page"),
        ({"sells": None}, "one of service"),
        ({"refuses": 200}, "400 to 599"),
        ({"refuses": "402"}, "400 to 599"),
        ({"refuses": True}, "400 to 599"),
        ({"refuses_with": "L402"}, "challenge, nothing, scheme, realm"),
        ({"form": "apperture"}, "aperture, aperture-mpp, specification, boltwall"),
        ({"form": 'L402 macaroon="{token}"'}, "{invoice}"),
        ({"form": "l402kit", "scheme": ("LSAT",)}, "has its own"),
        ({"token": "cookie"}, "macaroon, macaroon-urlsafe, macaroon-v1, json, uuid, jwt, hex, opaque"),
        ({"challenge_in": "trailer"}, "header, header and body, body"),
        ({"accept_authenticate": True}, "200 to 599"),
        ({"head": "none"}, "challenge, price-only"),
        ({"skip_invoice_paths": "/stream"}, "list of regular expressions"),
        ({"skip_invoice_paths": ["("]}, "list of regular expressions"),
        ({"instances": 0}, "from 1 to 1000"),
        ({"sells": "path", "dynamic": True}, 'sells="service" alone'),
    ],
)
def test_what_cannot_be_is_refused_at_once_with_what_can(lnd: FakeLnd, options: dict[str, Any], listed: str) -> None:
    """A misspelt option would test another server than the one that is meant."""
    with pytest.raises(ValueError, match=re.escape(listed)):
        Paywall(lnd, **options)
    with responses.RequestsMock() as mock, pytest.raises(ValueError, match=re.escape(listed)):
        add_paywall(mock, "https://api.example", lnd, **options)
    paywall = PaywallLogic(lnd)
    with pytest.raises(ValueError, match=re.escape(listed)):
        paywall.add_service("/x", name="x", price_msat=10_000, **options)
    way = {"way": options["sells"]} if "sells" in options else {}
    with pytest.raises(ValueError, match=re.escape(listed)):
        Service(prefix="/", name="x", price_msat=10_000, **way, **{key: options[key] for key in options if key != "sells"})


def test_a_misspelt_option_is_an_error(lnd: FakeLnd) -> None:
    """It would be taken for the default."""
    with pytest.raises(TypeError, match="refusing"):
        Paywall(lnd, refusing=403)  # type: ignore[call-arg]


def test_options_may_change_while_it_runs_and_are_checked_then_too(open_shop: Open) -> None:
    """A server that changes its ways couldn't be tested; or a bad value would show only as a broken connection."""
    shop = open_shop()
    credential = shop.buy()
    with pytest.raises(ValueError, match="one of service"):
        shop.paywall.service.way = "pages"
    assert shop.ask("/a", credential).status_code == 200
    shop.paywall.service.way = "path"
    shop.paywall.service.refuses = 410
    assert shop.ask("/a", credential).status_code == 410
    assert shop.ask("/a", shop.buy()).status_code == 200
