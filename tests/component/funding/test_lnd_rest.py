"""LndRestClient against a fake lnd, proxies and sockets that break: it says of a payment what is known, and no more."""

from __future__ import annotations

import copy
import os
import pickle
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from routeweiler_sync.errors import FundingError, PaymentPendingError, PreimageMismatchError
from routeweiler_sync.funding.lnd import node_client
from routeweiler_sync.funding.lnd.node_client import LndNodeClient
from routeweiler_sync.funding.lnd.rest import LndRestClient
from routeweiler_sync.funding.lnd.stubs import routeweiler_lnd_pb2 as pb
from routeweiler_sync.funding.replies import WalletAnswer, WalletReply
from routeweiler_sync.testing import FakeInvoice, FakeLnd
from tests.support.faulty_sockets import Proxy, listener, unused_port
from tests.support.http_server import server

AMOUNT_MSAT = 10_000
PATIENCE_S, SLACK_S = 60.0, 10.0


@pytest.fixture
def lnd() -> Iterator[FakeLnd]:
    with FakeLnd() as lnd:
        yield lnd


@pytest.fixture
def client(lnd: FakeLnd) -> LndRestClient:
    return lnd.rest_client()


def send(client: LndNodeClient, invoice: FakeInvoice, timeout_s: float = PATIENCE_S) -> WalletAnswer:
    return client.send(invoice.bolt11, payment_hash=invoice.payment_hash, max_fee_msat=1_000, timeout_s=timeout_s)


def track(client: LndNodeClient, invoice: FakeInvoice, *, follow: bool = True, timeout_s: float = PATIENCE_S) -> WalletAnswer:
    return client.track(invoice.payment_hash, timeout_s=timeout_s, follow=follow)


# What is said of orders that went wrong


@pytest.mark.parametrize("on_connection", ["refused", "frozen", "reset", "closed", "http"])
def test_a_node_that_cannot_be_reached_is_refused_in_time_and_nothing_is_sent(lnd: FakeLnd, on_connection: str) -> None:
    """Not a byte of the order has left: the user may be told that nothing was spent, and soon."""
    invoice, began = lnd.invoice(AMOUNT_MSAT), time.monotonic()
    if on_connection == "refused":
        answer = send(lnd.rest_client(url=f"https://127.0.0.1:{unused_port()}"), invoice, timeout_s=1)
    else:
        with listener(on_connection) as port:
            client = lnd.rest_client(url=f"https://127.0.0.1:{port}")
            answer = send(client, invoice, timeout_s=1)
            assert track(client, invoice, timeout_s=0.5).reply is WalletReply.UNKNOWN
    assert answer.reply is WalletReply.REFUSED, answer
    assert time.monotonic() - began < 2 + SLACK_S


@pytest.mark.parametrize("when", ["before_init", "after_init", "in_flight", "after_paying"])
def test_a_cut_connection_proves_nothing_and_the_hash_tells(lnd: FakeLnd, client: LndRestClient, when: Any) -> None:
    """Read as failed, the page would be paid a second time."""
    invoice = lnd.invoice(AMOUNT_MSAT)
    lnd.drop_next(when)
    assert send(client, invoice).reply is WalletReply.UNKNOWN
    expected = WalletReply.NOT_FOUND if when == "before_init" else WalletReply.SUCCEEDED
    assert track(client, invoice).reply is expected


@pytest.mark.parametrize("status", [502, 503, 504, 500, 404, 429])
@pytest.mark.parametrize("reaches_lnd", [True, False])
def test_a_proxy_s_page_proves_nothing(lnd: FakeLnd, client: LndRestClient, status: int, reaches_lnd: bool) -> None:
    """nginx answers 504 while lnd pays on, and its 404 isn't lnd's "unknown hash"."""
    invoice = lnd.invoice(AMOUNT_MSAT)
    lnd.proxy_page_next(status, reaches_lnd=reaches_lnd)
    answer = send(client, invoice)
    assert answer.reply is WalletReply.UNKNOWN
    assert f"HTTP {status}" in (answer.reason or "")
    if reaches_lnd:
        lnd.wait_for(lambda node: node.settled(invoice.payment_hash))
    assert track(client, invoice).reply is (WalletReply.SUCCEEDED if reaches_lnd else WalletReply.NOT_FOUND)


@pytest.mark.parametrize("path", ["/nowhere", "/v1"])
def test_a_wrong_path_is_not_an_unknown_hash(lnd: FakeLnd, path: str) -> None:
    """lnd's gateway answers both with 404 and code 5. Taken for "unknown", a payment in flight would be sent anew elsewhere."""
    client, invoice = lnd.rest_client(url=lnd.rest_url + path), lnd.invoice(AMOUNT_MSAT)
    assert track(client, invoice).reply is WalletReply.UNKNOWN
    assert send(client, invoice).reply is WalletReply.REFUSED  # its state was asked first, and that path is wrong too
    with pytest.raises(FundingError, match="has no GetInfo at this URL"):
        client.get_info()
    assert lnd.orders == []


@pytest.mark.parametrize(
    ("text", "code", "reply"),
    [
        ("invoice is already paid", "ALREADY_EXISTS", WalletReply.EXISTS),
        ("payment is in transition", "UNKNOWN", WalletReply.EXISTS),
        ("invoice expired. Valid until 2026", "UNKNOWN", WalletReply.EXPIRED),
        ("permission denied", "UNKNOWN", WalletReply.REFUSED),
        ("routerrpc server shutting down", "UNKNOWN", WalletReply.UNKNOWN),
        ("unknown method", "UNIMPLEMENTED", WalletReply.REFUSED),
        ("x", "INVALID_ARGUMENT", WalletReply.UNKNOWN),
        ("connection refused", "UNAVAILABLE", WalletReply.UNKNOWN),
        ("payment isn't initiated", "NOT_FOUND", WalletReply.UNKNOWN),
    ],
)
def test_a_refusal_is_read_as_over_grpc(lnd: FakeLnd, client: LndRestClient, text: str, code: str, reply: WalletReply) -> None:
    """One table for both: a row begun over one may be ended over the other."""
    for each in (client, lnd.client()):
        lnd.refuse_next(text, code=code)
        assert send(each, lnd.invoice(AMOUNT_MSAT)).reply is reply


def test_a_wrong_preimage_is_no_success(lnd: FakeLnd, client: LndRestClient) -> None:
    lnd.wrong_preimage_next()
    invoice = lnd.invoice(AMOUNT_MSAT)
    assert send(client, invoice).reply is WalletReply.WRONG_PREIMAGE
    with pytest.raises(PreimageMismatchError):
        client.track_payment(invoice.payment_hash)


def test_states_between_are_told_and_only_the_end_ends(lnd: FakeLnd, client: LndRestClient) -> None:
    """A preimage in a message that is IN_FLIGHT isn't the end: other parts are still out."""
    lnd.split_next(3)
    lnd.fee_msat = 300
    answer = send(client, lnd.invoice(AMOUNT_MSAT))
    assert (answer.reply, answer.fee_msat) == (WalletReply.SUCCEEDED, 300)


@pytest.mark.slow
def test_a_slow_payment_ends_the_wait_in_time_and_is_followed(lnd: FakeLnd, client: LndRestClient) -> None:
    lnd.hang_next()
    invoice, began = lnd.invoice(AMOUNT_MSAT), time.monotonic()
    assert send(client, invoice, timeout_s=1).reply is WalletReply.UNKNOWN
    assert track(client, invoice, timeout_s=1).reply is WalletReply.IN_FLIGHT
    assert track(client, invoice, follow=False).reply is WalletReply.IN_FLIGHT
    assert time.monotonic() - began < 2 + SLACK_S
    with pytest.raises(PaymentPendingError):
        client.send_payment_sync(invoice.bolt11, timeout_seconds=1)
    threading.Timer(0.2, lnd.release).start()
    assert track(client, invoice).reply is WalletReply.SUCCEEDED
    assert client.pay_invoice(invoice.bolt11, max_fee_msat=0) == invoice.preimage


@pytest.mark.slow
def test_a_frozen_connection_ends_in_time(lnd: FakeLnd) -> None:
    """Frozen in the order's stream: it may have been carried out."""
    proxy = Proxy(lnd.rest_port)
    try:
        client, invoice = lnd.rest_client(url=f"https://127.0.0.1:{proxy.port}"), lnd.invoice(AMOUNT_MSAT)
        lnd.hang_next()
        sender: list[WalletAnswer] = []
        thread = threading.Thread(target=lambda: sender.append(send(client, invoice, timeout_s=2)))
        thread.start()
        lnd.wait_for(lambda node: bool(node.payments))
        proxy.freeze()
        lnd.release()
        thread.join(2 + SLACK_S)
        assert [each.reply for each in sender] == [WalletReply.UNKNOWN]
        assert track(client, invoice).reply is WalletReply.SUCCEEDED  # over a new connection
    finally:
        proxy.close()


def hostile(body: bytes, status: int = 200) -> Any:
    def answer(handler: Any) -> tuple[int, list[tuple[str, str]], bytes]:
        if handler.path.endswith("/v1/state"):
            return 200, [], b'{"state":"SERVER_ACTIVE"}'
        return status, [("Content-Type", "application/json")], body

    return server(answer)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"\n\n\n", b"{}", b"[]", b"null", b'{"result":null}', b'{"result":[]}', b'{"result":{"status":"SUCCEEDED"}}',
        b'{"result":{"status":"SUCCEEDED","payment_preimage":"zz"}}', b'{"result":{"status":{}}}', b'{"result":{"value_msat":"x"}}',
        b'{"result":{"status":99}}', b'{"result":{"fee_msat":1e400,"status":"FAILED"}}', b'{"result":' * 5_000, b"\xff" * 100,
        b'{"result":{"status":"IN_FLIGHT"}}\n{"error":{"code":2,"message":"permission denied"}}',
        b'{"result":{"status":"IN_FLIGHT"}}\n<html>', b'{"result":{"status":"IN_FLIGHT"}}',
    ],
)  # fmt: skip
def test_what_isn_t_lnds_proves_no_payment_and_no_failure(lnd: FakeLnd, body: bytes) -> None:
    """Whatever stands where lnd should, no answer of it may end a row as unpaid or as paid."""
    invoice = lnd.invoice(AMOUNT_MSAT)
    with hostile(body) as url:
        client = LndRestClient(url, macaroon_path=lnd.macaroon_path, timeout_seconds=5)
        proves_nothing = {WalletReply.UNKNOWN, WalletReply.WRONG_PREIMAGE, WalletReply.IN_FLIGHT}
        assert send(client, invoice).reply in proves_nothing - {WalletReply.IN_FLIGHT}
        assert track(client, invoice, follow=False).reply in proves_nothing
        for question in (client.get_info, client.channel_balance, lambda: list(client.list_payments())):
            with pytest.raises(FundingError):
                question()


def test_an_endless_line_is_cut(lnd: FakeLnd, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hostile server could fill the memory."""
    from routeweiler_sync.funding import http_calls

    monkeypatch.setattr(http_calls, "LINE_BYTES_MAX", 10_000)
    with hostile(b'{"result":{"status":"SUCCEEDED","x":"' + b"a" * 100_000 + b'"}}') as url:
        client = LndRestClient(url, macaroon_path=lnd.macaroon_path)
        assert send(client, lnd.invoice(AMOUNT_MSAT)).reply is WalletReply.UNKNOWN


# The wallet's state


def test_a_locked_wallet_refuses_and_says_what_to_do(lnd: FakeLnd, client: LndRestClient) -> None:
    lnd.lock()
    answer = send(client, lnd.invoice(AMOUNT_MSAT))
    assert (answer.reply, "its wallet is locked" in (answer.reason or "")) == (WalletReply.REFUSED, True)
    with pytest.raises(FundingError, match="lncli unlock"):
        client.check_ready(5)
    lnd.set_state("NON_EXISTING")
    with pytest.raises(FundingError, match="lncli create"):
        client.check_ready(5)


def test_a_starting_node_is_waited_for(lnd: FakeLnd, client: LndRestClient) -> None:
    lnd.set_state("UNLOCKED")
    timer = threading.Timer(0.3, lnd.unlock)
    timer.start()
    assert send(client, lnd.invoice(AMOUNT_MSAT)).reply is WalletReply.SUCCEEDED
    timer.join()
    lnd.set_state("RPC_ACTIVE")
    with pytest.raises(FundingError, match="still starting"):
        client.check_ready(0.3)


def test_a_restarted_node_is_found_again(lnd: FakeLnd, client: LndRestClient) -> None:
    """The kept connections have broken with the restart."""
    invoice = lnd.invoice(AMOUNT_MSAT)
    assert send(client, invoice).reply is WalletReply.SUCCEEDED
    lnd.restart()
    assert client.get_info().identity_pubkey == lnd.node_pubkey
    assert send(client, invoice).reply is WalletReply.EXISTS


# Credentials


@pytest.mark.parametrize("form", ["binary", "hex", "base64", "urlsafe base64", "with a line break"])
def test_the_macaroon_s_file_may_have_any_form(lnd: FakeLnd, tmp_path: Path, form: str) -> None:
    import base64

    data = Path(lnd.macaroon_path).read_bytes()
    text = {
        "binary": data, "hex": data.hex().encode(), "base64": base64.b64encode(data),
        "urlsafe base64": base64.urlsafe_b64encode(data), "with a line break": data.hex().encode() + b"\n",
    }[form]  # fmt: skip
    path = tmp_path / "payer.macaroon"
    path.write_bytes(text)
    assert lnd.rest_client(macaroon_path=path).get_node_pubkey() == lnd.node_pubkey


def test_renewed_files_are_read_again(lnd: FakeLnd, tmp_path: Path) -> None:
    """A job renews macaroon and certificate while the program runs: it must go on paying."""
    macaroon, pin = tmp_path / "payer.macaroon", tmp_path / "tls.cert"
    macaroon.write_bytes(Path(lnd.bake_refused_macaroon()).read_bytes())
    pin.write_bytes(trustme.CA().cert_pem.bytes())
    client = lnd.rest_client(macaroon_path=macaroon, tls_cert_path=pin)
    with pytest.raises(FundingError, match="certificate isn't the one pinned"):
        client.get_info()
    pin.write_bytes(Path(lnd.tls_cert_path).read_bytes())
    with pytest.raises(FundingError, match="the node doesn't know the macaroon"):
        client.get_info()
    assert send(client, lnd.invoice(AMOUNT_MSAT)).reply is WalletReply.REFUSED
    macaroon.write_bytes(Path(lnd.macaroon_path).read_bytes())
    assert client.get_info().identity_pubkey == lnd.node_pubkey
    assert send(client, lnd.invoice(AMOUNT_MSAT)).reply is WalletReply.SUCCEEDED


@pytest.mark.parametrize("way", ["path", "PEM", "another name of the node"])
def test_the_certificate_is_pinned(lnd: FakeLnd, way: str) -> None:
    if way == "path":
        client = lnd.rest_client()
    elif way == "PEM":
        client = lnd.rest_client(tls_cert_pem=Path(lnd.tls_cert_path).read_text())
    else:
        with FakeLnd(cert_names=("node.example",)) as other:
            assert other.rest_client().get_node_pubkey() == other.node_pubkey
        return
    assert client.get_node_pubkey() == lnd.node_pubkey


@pytest.mark.parametrize("bundle", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"])
def test_no_bundle_of_the_environment_takes_the_pin_s_place(lnd: FakeLnd, monkeypatch: pytest.MonkeyPatch, bundle: str) -> None:
    """A company's bundle would let its proxy read the macaroon, and lock the node out."""
    stranger = trustme.CA().cert_pem.bytes().decode()
    monkeypatch.setenv(bundle, lnd.tls_cert_path)
    invoice = lnd.invoice(AMOUNT_MSAT)
    assert send(lnd.rest_client(tls_cert_path=None, tls_cert_pem=stranger), invoice).reply is WalletReply.REFUSED
    assert lnd.calls["GetState"] == 0


def test_what_a_node_calls_itself_is_no_secret_and_can_be_printed(lnd: FakeLnd, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is shown on terminals and in logs, and another server than lnd may answer there with what it was sent."""
    macaroon = Path(lnd.macaroon_path).read_bytes().hex()
    told = pb.GetInfoResponse(identity_pubkey=lnd.node_pubkey, alias=f"\x1b[31m{macaroon}", version=macaroon)
    client = lnd.rest_client()
    monkeypatch.setattr(client, "_ask", lambda *_: told)
    info = client.get_info()
    assert macaroon not in repr(info)
    assert info.alias.isprintable()


def test_the_macaroon_is_in_no_text(lnd: FakeLnd) -> None:
    macaroon = Path(lnd.macaroon_path).read_bytes().hex()
    client = lnd.rest_client(macaroon_hex=macaroon)
    lnd.refuse_next(f"you sent {macaroon}")
    answer = send(client, lnd.invoice(AMOUNT_MSAT))
    assert macaroon not in f"{answer!r} {client!r} {client.__getstate__()}"
    assert macaroon.encode() not in pickle.dumps(client)
    assert copy.copy(client) is client is copy.deepcopy(client)
    thawed = pickle.loads(pickle.dumps(client))
    with pytest.raises(FundingError, match="isn't pickled"):
        thawed.get_info()
    by_path = pickle.loads(pickle.dumps(lnd.rest_client()))
    assert by_path.get_node_pubkey() == lnd.node_pubkey


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"url": "http://node.example:8080"}, "must begin with https://"),
        ({"url": "node.example:8080"}, "must begin with https://"),
        ({"url": 8080}, "must be a URL"),
        ({"url": "lndconnect://h?macaroon=AgEDbG5k"}, "lndconnect URI"),
        ({"macaroon_path": None}, "give either macaroon_path or macaroon_hex"),
        ({"macaroon_hex": "00"}, "give either macaroon_path or macaroon_hex"),
        ({"macaroon_path": None, "macaroon_hex": "xyz"}, "isn't hex"),
        ({"tls_cert_path": "a", "tls_cert_pem": "b"}, "not both"),
        ({"timeout_seconds": 0}, "timeout_seconds"),
        ({"timeout_seconds": float("nan")}, "timeout_seconds"),
    ],
)
def test_arguments_that_can_t_be_right_are_refused_at_once(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        LndRestClient(**{"url": "https://127.0.0.1:8080", "macaroon_path": "payer.macaroon"} | arguments)


# Lists, threads, forks


def test_all_pages_of_the_list_are_read(lnd: FakeLnd, client: LndRestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """An audit that saw a part of the list alone would miss payments."""
    monkeypatch.setattr(node_client, "_PAYMENTS_A_PAGE", 4)
    for number in range(9):
        if number == 3:
            lnd.fail_next()
        send(client, lnd.invoice(AMOUNT_MSAT + number))
    listed = list(client.list_payments())
    assert [each.amount_msat for each in listed] == [AMOUNT_MSAT + number for number in range(9)]
    assert [each.status for each in listed].count("FAILED") == 1
    assert listed == list(lnd.client().list_payments())


def test_the_balance_is_told_unless_the_macaroon_forbids_it(lnd: FakeLnd, client: LndRestClient) -> None:
    assert client.spendable_msat(timeout_s=PATIENCE_S) == client.channel_balance().local_msat == 10**12
    least = lnd.rest_client(macaroon_path=lnd.bake_macaroon("/lnrpc.Lightning/GetInfo"))
    with pytest.raises(FundingError, match="doesn't permit ChannelBalance"):
        least.spendable_msat(timeout_s=PATIENCE_S)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_pays(lnd: FakeLnd, client: LndRestClient) -> None:
    """What grpc can't always do."""
    assert client.get_node_pubkey() == lnd.node_pubkey
    invoice = lnd.invoice(AMOUNT_MSAT)
    if (pid := os.fork()) == 0:
        os._exit(0 if send(client, invoice).reply is WalletReply.SUCCEEDED else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert track(client, invoice).reply is WalletReply.SUCCEEDED


def test_making_a_client_imports_and_opens_nothing(lnd: FakeLnd) -> None:
    """A program that only uses held tokens pays nothing for the wallet it might need."""
    import subprocess

    program = (
        "import sys\nfrom routeweiler_sync import LndRestClient\n"
        f"client = LndRestClient({lnd.rest_url!r}, macaroon_path='/nowhere')\n"
        "print([name for name in sys.modules if name in ('grpc', 'google.protobuf') or name.endswith('http_calls')])"
    )
    told = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert told.strip() == "[]"
    assert lnd.calls["GetState"] == 0
