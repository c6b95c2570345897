"""The paywall is a measure for the client: it must be as strict as aperture, and its faults must be the ones that are meant.

It is asked with plain `requests` here, and paid by hand.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bolt11
import pytest
import requests
import responses
from pymacaroons import Macaroon
from pymacaroons.serializers import BinarySerializer

from routeweiler_sync.testing import FakeLnd, Faults, Paywall, PaywallRequest, add_paywall
from routeweiler_sync.testing.paywall import Page

TIMEOUT_S = 30


@pytest.fixture(scope="module")
def lnd() -> Iterator[FakeLnd]:
    with FakeLnd() as lnd:
        yield lnd


@pytest.fixture
def paywall(lnd: FakeLnd) -> Iterator[Paywall]:
    with Paywall(lnd) as paywall:
        yield paywall


def get(url: str, authorization: str | None = None, **options: Any) -> requests.Response:
    headers = {} if authorization is None else {"Authorization": authorization}
    return requests.request(options.pop("method", "GET"), url, headers=headers, timeout=TIMEOUT_S, **options)


def offer(response: requests.Response, scheme: str = "L402") -> tuple[str, str]:
    """Token and invoice of a challenge."""
    assert response.status_code == 402
    found = re.search(
        scheme + r' (?:version="0", )?(?:macaroon|token)="([^"]*)", invoice="([^"]*)"', response.headers["WWW-Authenticate"]
    )
    assert found is not None
    return found[1], found[2]


def buy(lnd: FakeLnd, url: str, scheme: str = "L402") -> str:
    """Pay what ``url`` asks; the credential."""
    token, invoice = offer(get(url), scheme)
    return f"{scheme} {token}:{lnd.client().pay_invoice(invoice, max_fee_msat=10_000).hex()}"


def statuses(paywall: Paywall) -> list[int]:
    return [request.status for request in paywall.requests]


# As aperture


def test_the_challenge_is_apertures_to_the_byte(lnd: FakeLnd, paywall: Paywall):
    """The client would be proven against a server that doesn't exist."""
    with socket.create_connection(paywall.base_url.removeprefix("http://").split(":"), timeout=TIMEOUT_S) as connection:
        connection.sendall(b"GET /paid HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        raw = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = raw.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    offers = [line for line in lines if line.startswith("WWW-Authenticate: ")]
    found = [re.fullmatch(r'WWW-Authenticate: (\w+) (macaroon="(.*)", invoice="(lnbcrt.*)")', line) for line in offers]
    assert [match[1] for match in found] == ["LSAT", "L402"]
    assert found[0][2] == found[1][2]
    assert status.startswith("HTTP/1.1 402 ")
    assert "Cache-Control: no-store" in lines
    assert body == b"payment required\n"

    invoice = bolt11.decode(found[0][4])
    macaroon = BinarySerializer().deserialize_raw(base64.b64decode(found[0][3], validate=True))
    version, payment_hash, _ = struct.unpack(">H32s32s", macaroon.identifier_bytes)
    assert (version, payment_hash.hex(), invoice.amount_msat) == (0, invoice.payment_hash, 10_000)
    assert [caveat.caveat_id for caveat in macaroon.caveats] == [b"services=paywall:0", b"paywall_capabilities="]


@pytest.mark.parametrize("scheme", ["L402", "LSAT"])
def test_a_paid_token_opens_every_path_of_its_service(lnd: FakeLnd, paywall: Paywall, scheme: str):
    """Paying wouldn't buy anything."""
    credential = buy(lnd, paywall.url, scheme)
    assert [get(url, credential).content for url in (paywall.url, paywall.url_for("/else?x=1"))] == [b"paid content\n"] * 2
    assert statuses(paywall) == [402, 200, 200]


def test_an_unpaid_invoice_opens_nothing_even_with_its_preimage(lnd: FakeLnd):
    """A client that sends a preimage before the payment has settled would pass here, and fail with aperture."""

    class Leaky:
        settled = lnd.settled

        def invoice(self, amount_msat: int, **options: Any) -> Any:
            return lnd.invoice(amount_msat, preimage=b"\x07" * 32, **options)

    with Paywall(Leaky()) as paywall:
        token, invoice = offer(get(paywall.url))
        credential = f"L402 {token}:{'07' * 32}"
        assert get(paywall.url, credential).status_code == 402
        lnd.client().pay_invoice(invoice, max_fee_msat=10_000)
        assert get(paywall.url, credential).status_code == 200


def rewritten(credential: str, change: Callable[[Macaroon], Any]) -> str:
    scheme, token, preimage = re.fullmatch("(.*) (.*):(.*)", credential).groups()
    macaroon = BinarySerializer().deserialize_raw(base64.b64decode(token))
    change(macaroon)
    return f"{scheme} {base64.b64encode(BinarySerializer().serialize_raw(macaroon)).decode()}:{preimage}"


def set_identifier(macaroon: Macaroon) -> None:
    macaroon.identifier = b"\x00\x01" + macaroon.identifier_bytes[2:]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda c: c[:-1] + ("0" if c[-1] != "0" else "1"),
        lambda c: c[:-1],
        lambda c: c[:-64] + "F" + c[-63:],
        lambda c: c.replace("=:", ":") if "=:" in c else c.replace(":", "=:"),
        lambda c: c + ",",
        lambda c: c.replace("L402 ", "L402  "),
        lambda c: c.replace("L402 ", "l402 "),
        lambda c: c.replace("L402 ", "Bearer "),
        lambda c: "L402 " + base64.b64encode(b"\x02junk").decode() + c[-65:],
        lambda c: "L402 " + base64.b64encode(base64.b64decode(c[5:-65]) + b"junk").decode() + c[-65:],
        lambda c: rewritten(c, set_identifier),
        lambda c: rewritten(c, lambda m: m.caveats.pop()),
        lambda c: rewritten(c, lambda m: m.add_first_party_caveat("services=other:0")),
        lambda c: rewritten(c, lambda m: m.add_first_party_caveat("paywall_valid_until=1")),
        lambda c: rewritten(c, lambda m: m.add_first_party_caveat("paywall_valid_until=soon")),
    ],
)
def test_a_spoilt_credential_gets_a_fresh_challenge(lnd: FakeLnd, paywall: Paywall, spoil: Callable[[str], str]):
    """A client that mangles tokens would pass here, and lose its money with aperture."""
    credential = buy(lnd, paywall.url)
    spoilt = spoil(credential)
    assert spoilt != credential
    assert offer(get(paywall.url, spoilt))[0] not in credential
    assert not paywall.requests[-1].paid
    assert get(paywall.url, credential).status_code == 200


def test_a_url_safe_token_is_refused(lnd: FakeLnd, paywall: Paywall):
    """A client that writes the macaroon anew in pymacaroons's alphabet would pass here; aperture refuses it."""
    for _ in range(200):
        credential = buy(lnd, paywall.url)
        if re.search("[+/]", credential):
            break
    else:
        pytest.fail("no token with + or / came")
    assert get(paywall.url, credential.replace("+", "-").replace("/", "_")).status_code == 402
    assert get(paywall.url, credential).status_code == 200


def test_an_attenuated_token_is_still_good(lnd: FakeLnd, paywall: Paywall):
    """A stricter server than aperture would hide what clients may do: narrow a token before they hand it on."""
    credential = buy(lnd, paywall.url)
    for caveat in ("services=paywall:0", f"paywall_valid_until={int(time.time()) + 1_000}", "unknown=thing"):
        credential = rewritten(credential, lambda m, caveat=caveat: m.add_first_party_caveat(caveat))
        assert get(paywall.url, credential).status_code == 200


def test_the_last_authorization_line_counts(lnd: FakeLnd, paywall: Paywall):
    """A client that adds its credential beside another would pass or fail by luck."""
    credential = buy(lnd, paywall.url)

    def ask(*lines: str) -> int:
        sent = [("Host", "x"), *(("Authorization", line) for line in lines)]
        return paywall.answer("GET", "/paid", sent, b"").status

    assert ask("Basic eDp5", credential) == 200
    assert ask(credential, "Basic eDp5") == 402


def test_tokens_of_another_service_and_expired_ones_are_refused(lnd: FakeLnd, paywall: Paywall):
    """A client that mixes services up, or holds on to expired tokens, would pass here."""
    paywall.add_service("/other", name="other", price_msat=20_000)
    paywall.add_service("/brief", name="brief", price_msat=1_000, valid_for_s=-1)
    paywall.add_service("/lasting", name="lasting", price_msat=1_000, valid_for_s=1_000)
    assert bolt11.decode(offer(get(paywall.url_for("/other/page")))[1]).amount_msat == 20_000
    credential = buy(lnd, paywall.url)
    assert get(paywall.url_for("/others"), credential).status_code == 200
    assert get(paywall.url_for("/other"), credential).status_code == 402
    assert get(paywall.url_for("/brief"), buy(lnd, paywall.url_for("/brief"))).status_code == 402
    assert get(paywall.url_for("/lasting"), buy(lnd, paywall.url_for("/lasting"))).status_code == 200


def test_a_dynamic_token_opens_one_exact_path(lnd: FakeLnd, paywall: Paywall):
    """A client that offers it elsewhere would never be told no."""
    paywall.add_service("/priced", name="priced", price_msat=1_000, dynamic=True, valid_for_s=5)
    credential = buy(lnd, paywall.url_for("/priced/a?x=1"))
    macaroon = BinarySerializer().deserialize_raw(base64.b64decode(credential[5:-65]))
    assert [caveat.caveat_id for caveat in macaroon.caveats] == [b"services=priced/priced/a:0"]
    assert get(paywall.url_for("/priced/a?x=2"), credential).status_code == 200
    assert get(paywall.url_for("/priced/b"), credential).status_code == 402


def test_the_price_can_change_at_any_time(paywall: Paywall):
    """Tests of surges and limits would test nothing."""
    paywall.price = 77
    assert bolt11.decode(offer(get(paywall.url))[1]).amount_msat == 77_000
    paywall.price_msat = 1_001
    assert (paywall.price, bolt11.decode(offer(get(paywall.url))[1]).amount_msat) == (2, 1_001)


def test_revoked_tokens_are_refused(lnd: FakeLnd, paywall: Paywall):
    """A client's way with a revoked token couldn't be tested."""
    credential = buy(lnd, paywall.url)
    paywall.revoke_tokens()
    assert get(paywall.url, credential).status_code == 402


# What isn't sold


def test_free_pages_redirects_and_options_cost_nothing(paywall: Paywall):
    """Tests of free traffic would meet the paywall."""
    assert get(paywall.url_for("/free")).content == get(paywall.url_for("/free/x")).content == b"free\n"
    moved = get(paywall.url_for("/redirect?to=/paid&status=307"), allow_redirects=False)
    assert (moved.status_code, moved.headers["Location"]) == (307, "/paid")
    assert get(paywall.url_for("/redirect?to=" + paywall.url_for("/free"))).content == b"free\n"
    assert get(paywall.url, method="OPTIONS").status_code == 200
    assert get(paywall.url_for("/freedom")).status_code == 402


# What it tells


def test_requests_are_told_with_everything_but_the_credential(lnd: FakeLnd, paywall: Paywall):
    """A test couldn't see what was sent; or a failing test would print tokens."""
    credential = buy(lnd, paywall.url)
    requests.post(paywall.url + "?q=1", data=b"abc", headers={"Authorization": credential, "X-One": "1"}, timeout=TIMEOUT_S)
    requests.post(paywall.url, data=iter([b"ab", b"c" * 70_000]), auth=("x", "y"), timeout=TIMEOUT_S)
    free, paid, other = paywall.requests
    assert (free.authorized, free.paid, free.scheme, free.payment_hash) == (False, False, None, None)
    assert (paid.method, paid.path, paid.query, paid.body, paid.status) == ("POST", "/paid", "q=1", b"abc", 200)
    assert (paid.authorized, paid.paid, paid.scheme) == (True, True, "L402")
    assert paid.payment_hash == hashlib.sha256(bytes.fromhex(credential[-64:])).hexdigest()
    assert (paid.headers["x-one"], "Authorization" in paid.headers) == ("1", False)
    assert credential[5:] not in repr(paid) + str(paid.headers)
    assert (other.body, other.headers["Authorization"], other.authorized) == (
        b"ab" + b"c" * 70_000,
        "Basic eDp5",
        False,
    )


def test_waiting_ends_with_the_request_or_in_an_error(paywall: Paywall):
    """Tests would sleep instead, or hang."""
    asker = threading.Thread(target=get, args=(paywall.url,))
    asker.start()
    paywall.wait_for(lambda: statuses(paywall) == [402])
    asker.join()
    with pytest.raises(TimeoutError):
        paywall.wait_for(lambda: False, timeout_s=0.01)


def test_the_paid_page_can_be_anything(lnd: FakeLnd, paywall: Paywall):
    """Only one kind of program could be tested."""
    credential = buy(lnd, paywall.url)
    paywall.content = b"other"
    assert get(paywall.url, credential).content == b"other"

    def respond(request: PaywallRequest) -> tuple[int, dict[str, str], bytes]:
        return 201, {"Content-Type": "application/json"}, json.dumps([request.path, request.paid]).encode()

    paywall.respond = respond
    page = get(paywall.url_for("/x"), credential)
    assert (page.status_code, page.json(), page.headers["Content-Type"]) == (201, ["/x", True], "application/json")
    paywall.respond = lambda request: (204, {}, b"")
    assert get(paywall.url, credential).status_code == 204
    assert get(paywall.url, credential, method="HEAD").status_code == 204


# Faults


def test_tokens_are_refused_so_many_times_or_for_ever(lnd: FakeLnd, paywall: Paywall):
    """The client's patience with a refused token couldn't be tested."""
    credential = buy(lnd, paywall.url)
    paywall.faults.refuse_tokens = 2
    assert [get(paywall.url, credential).status_code for _ in range(3)] == [402, 402, 200]
    paywall.faults.refuse_tokens = True
    assert [get(paywall.url, credential).status_code for _ in range(4)] == [402] * 4
    paywall.faults.bare_401 = True
    refused = get(paywall.url, credential)
    assert (refused.status_code, "WWW-Authenticate" in refused.headers, get(paywall.url).status_code) == (401, False, 402)


def test_a_server_that_hears_late_of_the_settlement(lnd: FakeLnd, paywall: Paywall):
    """The client's patience right after a payment couldn't be tested."""
    paywall.faults.settle_lag = 2
    for _ in range(2):
        credential = buy(lnd, paywall.url)
        assert [get(paywall.url, credential).status_code for _ in range(4)] == [402, 402, 200, 200]


def test_challenges_that_must_not_be_paid(lnd: FakeLnd):
    """What the client has to find before it pays would never be put before it."""
    with Paywall(lnd, faults=Faults(expire_invoices=True, currency="bc")) as paywall:
        invoice = bolt11.decode(offer(get(paywall.url))[1])
        assert invoice.has_expired()
        assert (invoice.currency, invoice.amount_msat) == ("bc", 10_000)
        paywall.faults = Faults(mismatch=True)
        token, text = offer(get(paywall.url))
        assert (
            BinarySerializer().deserialize_raw(base64.b64decode(token)).identifier_bytes[2:34].hex()
            != bolt11.decode(text).payment_hash
        )
        assert not bolt11.decode(text).has_expired()


def test_a_repeated_challenge_is_the_same_for_each_service(paywall: Paywall):
    """A cache in front of the server, which makes the client meet an invoice twice, couldn't be tested."""
    paywall.add_service("/other", name="other", price_msat=1_000)
    paywall.faults.repeat_invoice = True
    first, other, again = (offer(get(paywall.url_for(path))) for path in ("/a", "/other", "/b"))
    assert first == again != other
    paywall.faults.repeat_invoice = False
    assert offer(get(paywall.url)) != first


def test_other_spellings_of_the_challenge(lnd: FakeLnd):
    """Clients that know but one spelling would pass."""
    with Paywall(lnd, scheme=("LSAT",), faults=Faults(opaque_tokens=True, token_param="token")) as paywall:
        line = get(paywall.url).headers["WWW-Authenticate"]
        assert re.fullmatch(r'LSAT version="0", token="[\w-]{32}", invoice="lnbcrt\w+"', line)
        credential = buy(lnd, paywall.url, "LSAT")
        assert get(paywall.url, credential).status_code == 200
        paywall.add_service("/other", name="other", price_msat=1_000)
        assert get(paywall.url_for("/other"), credential).status_code == 402
        assert get(paywall.url, credential[:-64] + "00" * 32).status_code == 402


def test_paid_answers_can_be_cut_or_replaced_and_free_ones_never_are(lnd: FakeLnd, paywall: Paywall):
    """What happens to the money when the paid answer is lost couldn't be tested."""
    handled: list[str] = []
    paywall.respond = lambda request: (handled.append(request.path), (200, {}, b"handled"))[1]
    credential = buy(lnd, paywall.url)
    paywall.cut_next("before")
    paywall.cut_next("after")
    paywall.answer_next(429, headers={"Retry-After": "1"}, times=2)
    assert get(paywall.url).status_code == 402
    for handled_so_far in ([], []):
        with pytest.raises(requests.ConnectionError):
            get(paywall.url, credential)
        assert handled == handled_so_far
    limited = get(paywall.url, credential)
    assert (limited.status_code, limited.headers["Retry-After"]) == (429, "1")
    assert get(paywall.url, credential).content == b"handled"
    paywall.cut_next("after")
    with pytest.raises(requests.ConnectionError):
        get(paywall.url, credential)
    assert handled == ["/paid"] * 2
    assert statuses(paywall) == [402, 402, 0, 429, 429, 200, 200]


def test_a_fault_at_an_unknown_moment_is_refused(lnd: FakeLnd, paywall: Paywall):
    """A misspelt moment would be another one, or none: the test would pass without what it is about."""
    with pytest.raises(ValueError, match="before, after, not 'during'"):
        paywall.cut_next("during")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="after_paying, not 'after'"):
        lnd.drop_next("after")  # type: ignore[arg-type]
    assert get(paywall.url, buy(lnd, paywall.url)).status_code == 200


def test_an_endless_402_does_not_end(paywall: Paywall):
    """A client that reads whatever comes would fill the memory only in the wild."""
    paywall.faults.endless_402 = True
    with requests.get(paywall.url, stream=True, timeout=TIMEOUT_S) as response:
        assert response.status_code == 402
        body = response.iter_content(65536)
        assert sum(len(next(body)) for _ in range(50)) > 1_000_000
    paywall.faults.endless_402 = False
    assert get(paywall.url).content == b"payment required\n"


def test_a_delay_holds_the_answer_back_and_stopping_does_not_wait_for_it(lnd: FakeLnd):
    """Timeouts couldn't be tested, or each such test would take as long as the delay."""
    paywall = Paywall(lnd)
    paywall.start()
    try:
        paywall.faults.delay_s = 600
        with pytest.raises(requests.ReadTimeout):
            requests.get(paywall.url, timeout=0.2)
    finally:
        started = time.monotonic()
        paywall.stop()
    assert time.monotonic() - started < TIMEOUT_S


# The server


def test_a_connection_is_kept_and_answers_come_at_once(paywall: Paywall):
    """Every benchmark would measure the paywall: 40 ms a call, where header and body go out apart."""
    with requests.Session() as session:
        session.get(paywall.url_for("/free"), timeout=TIMEOUT_S)
        took = []
        for _ in range(30):
            started = time.perf_counter()
            session.get(paywall.url_for("/free"), timeout=TIMEOUT_S)
            took.append(time.perf_counter() - started)
        pools = session.get_adapter(paywall.url).poolmanager.pools
        (pool,) = [pools[key] for key in pools.keys()]  # noqa: SIM118 - urllib3's container has no iterator
        assert (pool.num_connections, pool.num_requests) == (1, 31)
        assert sorted(took)[15] < 0.03


def test_a_restart_keeps_the_port_and_drops_connections(lnd: FakeLnd, paywall: Paywall):
    """A server that goes down and comes back couldn't be tested."""
    credential = buy(lnd, paywall.url)
    with requests.Session() as session:
        session.get(paywall.url_for("/free"), timeout=TIMEOUT_S)
        paywall.stop()
        with pytest.raises(requests.ConnectionError):
            session.get(paywall.url_for("/free"), timeout=TIMEOUT_S)
        paywall.start()
        assert session.get(paywall.url_for("/free"), timeout=TIMEOUT_S).status_code == 200
    assert get(paywall.url, credential).status_code == 200


def test_stopping_closes_idle_connections(lnd: FakeLnd):
    """Clients would wait on a server that is gone; each test would leave a thread behind."""
    with Paywall(lnd) as paywall:
        connection = socket.create_connection(paywall.base_url.removeprefix("http://").split(":"), timeout=TIMEOUT_S)
        connection.sendall(b"OPTIONS / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
    with connection:
        assert connection.recv(1) == b""


def test_many_at_once_each_get_a_challenge_of_their_own(paywall: Paywall):
    """Tests of many threads would fail for the paywall's sake."""
    tokens: list[str] = []
    askers = [threading.Thread(target=lambda: tokens.append(offer(get(paywall.url))[0])) for _ in range(40)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join(TIMEOUT_S)
    assert len(set(tokens)) == len(paywall.requests) == 40


def test_the_server_asks_no_dns(lnd: FakeLnd, monkeypatch: pytest.MonkeyPatch):
    """On a machine without a resolver each test would wait for it."""

    def asked(*_: object) -> str:
        raise AssertionError("asked the DNS")

    monkeypatch.setattr(socket, "getfqdn", asked)
    monkeypatch.setattr(socket, "gethostbyaddr", asked)
    with Paywall(lnd) as paywall:
        assert get(paywall.url).status_code == 402


@pytest.mark.parametrize(("error", "told"), [(PermissionError(13, "not yours"), True), (ConnectionResetError(), False)])
def test_a_fault_of_the_kit_is_told_and_a_client_that_left_isnt(
    lnd: FakeLnd, paywall: Paywall, capfd: pytest.CaptureFixture[str], error: OSError, told: bool
) -> None:
    """Else a test that fails for want of a right, or of files, shows but a connection that breaks, and nobody finds out why."""

    def respond(request: PaywallRequest) -> Page:
        raise error

    paywall.respond = respond
    credential = buy(lnd, paywall.url)
    with pytest.raises(requests.ConnectionError):
        get(paywall.url, credential)
    assert (type(error).__name__ in capfd.readouterr().err) is told


def test_it_serves_https(lnd: FakeLnd, tmp_path: Path):
    """That http and https are two origins couldn't be tested."""
    trustme = pytest.importorskip("trustme")
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with Paywall(lnd, ssl_context=context) as paywall:
        assert paywall.url.startswith("https://127.0.0.1:")
        assert get(paywall.url, verify=str(tmp_path / "ca.pem")).status_code == 402


# Without a socket


def test_a_mocked_paywall_behaves_the_same(lnd: FakeLnd):
    """A program's own tests with ``responses`` would meet another paywall than the real one."""
    with responses.RequestsMock() as mock:
        paywall = add_paywall(mock, "https://api.example/", lnd, price_msat=5_000)
        challenge = get("https://api.example/a?b=c")
        assert [line.split()[0] for line in challenge.raw.headers.getlist("WWW-Authenticate")] == ["LSAT", "L402"]
        assert bolt11.decode(offer(challenge)[1]).amount_msat == 5_000
        credential = buy(lnd, "https://api.example")
        paid = requests.post("https://api.example/a", data={"x": "y"}, headers={"Authorization": credential}, timeout=TIMEOUT_S)
        assert paid.content == b"paid content\n"
        assert (paywall.requests[-1].method, paywall.requests[-1].body, paywall.requests[0].query) == ("POST", b"x=y", "b=c")
        paywall.cut_next("after")
        with pytest.raises(requests.ConnectionError, match="cut"):
            get("https://api.example/a", credential)
        for elsewhere in ("https://api.example.evil/", "http://api.example/"):
            with pytest.raises(requests.ConnectionError, match="Connection refused by Responses"):
                get(elsewhere)


# For pytest


@pytest.mark.slow
def test_the_plugins_fixtures_pay(tmp_path: Path):
    """Those who test their programs with the fixtures would find them broken."""
    (tmp_path / "test_program.py").write_text(
        "def test_it(paying_session, paywall, fake_lnd, tmp_path):\n"
        "    assert paying_session.get(paywall.url).content == b'paid content\\n'\n"
        "    assert [request.paid for request in paywall.requests] == [False, True]\n"
        "    assert len(fake_lnd.payments) == 1\n"
        "    assert (tmp_path / 'ledger.db').exists()\n"
        "    assert (tmp_path / 'trace.jsonl').read_text().count('\\n') == 1\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "routeweiler_sync.testing.pytest_plugin", "-p", "no:cacheprovider"]
    alone = {
        **os.environ,
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }  # where the package is installed, pytest loads the plugin by itself
    ended = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, timeout=300, env=alone)
    assert ended.returncode == 0, ended.stdout


def test_the_plugin_is_light():
    """Every pytest run on the machine would pay for gRPC, and fail where the extra isn't installed."""
    code = "import sys, routeweiler_sync.testing.pytest_plugin; raise SystemExit(bool({'grpc', 'cryptography'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
