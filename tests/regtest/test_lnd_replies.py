"""What only a real lnd can say is read as what it means: beyond `NodeContract`, which the fake has to keep too.

The fake says what `funding.reading` expects, for both are written from the same reading of lnd; this asks lnd.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from routeweiler_sync.errors import FundingError
from routeweiler_sync.funding.lightning import LndClient
from routeweiler_sync.funding.lnd.node_client import LndNodeClient
from routeweiler_sync.funding.lnd.rest import LndRestClient
from routeweiler_sync.funding.replies import WalletAnswer, WalletReply

from .node import Invoice, Node
from .processes import wait_for
from .world import World

FEE_CAP_MSAT = 10_000
CALL_TIMEOUT_S = 30.0


def client_of(node: Node, macaroon: Path | None = None, *, over: str = "gRPC") -> LndNodeClient:
    if over == "REST":
        url = f"https://{node.rest_address}"
        return LndRestClient(url, macaroon_path=macaroon or node.bake(), tls_cert_path=node.tls_cert_path)
    return LndClient(node.grpc_host, node.grpc_port, macaroon or node.bake(), tls_cert_path=node.tls_cert_path)


@pytest.fixture(params=["gRPC", "REST"])
def over(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def client(world: World, over: str) -> Iterator[LndNodeClient]:
    """The payer, with the least macaroon that a payer needs."""
    with closing(client_of(world.payer, over=over)) as client:
        yield client


def order(client: LndNodeClient, invoice: Invoice, *, fee_cap_msat: int = FEE_CAP_MSAT, text: str | None = None) -> WalletAnswer:
    """Sends an order for `invoice`, or for `text` in its place."""
    payment_hash = bytes.fromhex(invoice.payment_hash)
    return client.send(
        text or invoice.payment_request, payment_hash=payment_hash, max_fee_msat=fee_cap_msat, timeout_s=CALL_TIMEOUT_S
    )


def ask(client: LndNodeClient, invoice: Invoice, *, follow: bool = False) -> WalletAnswer:
    return client.track(bytes.fromhex(invoice.payment_hash), timeout_s=CALL_TIMEOUT_S, follow=follow)


@contextmanager
def in_flight(world: World, client: LndNodeClient, invoice: Invoice) -> Iterator[Callable[[], WalletAnswer]]:
    """An order that hangs in a frozen payee; the callable thaws it and gives the order's answer.

    The HTLC has left for good when this is entered. An lnd that is killed before that, as it may be where the router is frozen, can
    keep the payment IN_FLIGHT for ever.
    """
    world.payee.freeze()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(order, client, invoice)

        def htlc_out() -> bool:
            htlcs = world.router.lncli("listchannels", "--peer", world.payer.pubkey)["channels"][0]["pending_htlcs"]
            return any(htlc["incoming"] for htlc in htlcs)

        def thawed() -> WalletAnswer:
            world.payee.thaw()
            return answer.result(CALL_TIMEOUT_S)

        try:
            wait_for("the HTLC is with the router", htlc_out, watched=[world.payer.daemon])
            assert ask(client, invoice).reply is WalletReply.IN_FLIGHT
            yield thawed
        finally:
            world.payee.thaw()


def test_too_little_money_is_a_failure_that_says_so(world: World, client: LndNodeClient) -> None:
    """Otherwise an empty channel would be an open question, and its reservation stay."""
    answer = order(client, world.payee.add_invoice(9_000_000_000), fee_cap_msat=10**9)
    assert (answer.reply, answer.reason) == (WalletReply.FAILED, "INSUFFICIENT_BALANCE")


@pytest.mark.slow
@pytest.mark.parametrize("end", [Node.kill, Node.stop], ids=["killed", "stopped"])
def test_a_node_that_goes_down_says_nothing_of_the_payment(
    world: World, client: LndNodeClient, end: Callable[[Node], None]
) -> None:
    """Otherwise a restart of lnd in the middle of a payment would read as "not paid", and the next call pay again."""
    invoice = world.payee.add_invoice(10_000)
    with in_flight(world, client, invoice) as thawed:
        followed: list[WalletAnswer] = []
        follower = threading.Thread(target=lambda: followed.append(ask(client, invoice, follow=True)))
        follower.start()
        end(world.payer)
        follower.join(CALL_TIMEOUT_S)
        assert [answer.reply for answer in followed] == [WalletReply.UNKNOWN]
        assert followed[0].reason  # in which words depends on how far lnd had come, and on the question's own connection over REST
        assert order(client, invoice).reply is WalletReply.REFUSED  # nothing listens: not a byte has left
        world.payer.start(wait_for_channels=False)
        assert order(client, invoice).reply is WalletReply.EXISTS
        assert thawed().reply is WalletReply.UNKNOWN
    assert ask(client, invoice, follow=True).reply is WalletReply.SUCCEEDED
    assert len(world.payer.payments_of(invoice.payment_hash)) == 1


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda world: world.payee.add_invoice(0).payment_request, id="no amount"),
        pytest.param(lambda world: "nonsense", id="not bech32"),
        pytest.param(lambda world: mixed_case(world.payee.add_invoice(10_000).payment_request), id="mixed case"),
        pytest.param(lambda world: "lightning:" + world.payee.add_invoice(10_000).payment_request, id="with its URI scheme"),
    ],
)
def test_an_order_that_lnd_refuses_before_its_start_has_spent_nothing(
    world: World, client: LndNodeClient, make: Callable[[World], str]
) -> None:
    """Otherwise an unpayable invoice would hold its reservation, and block its service, for ever."""
    invoice = world.payee.add_invoice(10_000)
    before = len(world.payer.list_payments())
    assert order(client, invoice, text=make(world)).reply is WalletReply.REFUSED
    assert len(world.payer.list_payments()) == before


def mixed_case(text: str) -> str:
    return text[:20].upper() + text[20:]


def other_signature(world: World) -> Path:
    data = bytearray(world.payer.admin_macaroon_path.read_bytes())
    data[-1] ^= 1
    return write(world, bytes(data))


def write(world: World, data: bytes) -> Path:
    path = world.payer.folder / f"{hashlib.sha256(data).hexdigest()[:16]}.macaroon"
    path.write_bytes(data)
    return path


def expired(world: World) -> Path:
    path = world.payer.bake(timeout_s=1)
    time.sleep(1.5)  # nothing to wait for but the clock
    return path


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda world: world.payee.admin_macaroon_path, id="of another node"),
        pytest.param(other_signature, id="other signature"),
        pytest.param(lambda world: write(world, b"\x02\x01junk"), id="junk"),
        pytest.param(lambda world: write(world, b"no macaroon at all"), id="no macaroon"),
        pytest.param(lambda world: world.payer.bake(ip_address="10.9.8.7"), id="bound to another address"),
        pytest.param(expired, id="expired"),
    ],
)
def test_a_macaroon_that_lnd_refuses_has_spent_nothing(world: World, over: str, make: Callable[[World], Path]) -> None:
    """Otherwise a wrong or expired macaroon would leave each call's outcome open, and its reservation and scope held."""
    invoice = world.payee.add_invoice(10_000)
    with closing(client_of(world.payer, make(world), over=over)) as client:
        assert order(client, invoice).reply is WalletReply.REFUSED
        assert ask(client, invoice).reply is WalletReply.UNKNOWN
    assert world.payer.payments_of(invoice.payment_hash) == []


@pytest.mark.slow
def test_an_order_to_a_starting_node_waits_for_it(world: World, client: LndNodeClient) -> None:
    """Otherwise every call during a restart of lnd would fail, or tell the user to unlock a wallet that unlocks itself."""
    invoice = world.payee.add_invoice(10_000)
    world.payer.kill()
    world.payer.daemon.start()
    reasons = []

    def answered() -> WalletAnswer | None:
        answer = order(client, invoice)
        if answer.reply is WalletReply.REFUSED:
            reasons.append(answer.reason)
            return None
        return answer

    wait_for("the order is taken", answered, watched=[world.payer.daemon])
    world.wait_until_payable()
    assert all("nothing listens there" in (reason or "") for reason in reasons), reasons


def test_the_least_macaroon_is_enough_to_pay_and_too_little_to_look_further(world: World, client: LndNodeClient) -> None:
    """Otherwise the line that the library tells its users to bake would be wrong."""
    info = client.get_info()
    assert (info.identity_pubkey, info.network) == (world.payer.pubkey, "bitcoin-regtest")
    assert client.channel_balance().local_msat > 0
    assert len(client.pay_invoice(world.payee.add_invoice(10_000).payment_request, max_fee_msat=FEE_CAP_MSAT)) == 32
    with pytest.raises(FundingError, match="permit"):
        next(iter(client.list_payments()))
