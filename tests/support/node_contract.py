"""What lnd says and does beyond the promises of every wallet: one class of tests, for FakeLnd and for the real lnd.

What a purchase relies on in any wallet is left to `wallet_contract`, which is run for both of them too.

A subclass gives the fixture ``node``, a `ContractNode`, and is named ``Test…``. What a node can't do (`ContractNode.abilities`) is
skipped by name.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import pytest

from routeweiler_sync.errors import FundingError, InvoicePaymentError, PaymentPendingError
from routeweiler_sync.funding import Funding
from routeweiler_sync.funding.lnd.node_client import LndNodeClient
from routeweiler_sync.funding.lnd.stubs import routeweiler_lnd_pb2 as pb
from routeweiler_sync.funding.replies import WalletAnswer, WalletReply
from routeweiler_sync.funding.wallet import NodePayment

#: Generous: a real payment takes 0.1 s, and a machine may be slow.
PATIENCE_S = 60.0
POLL_S = 0.05
AMOUNT_MSAT = 21_000
FEE_LIMIT_MSAT = 50_000


class ContractNode(Protocol):
    """A paying node whose payments go over one hop that charges, and what a test may do to it."""

    #: A client with a macaroon for everything.
    client: LndNodeClient
    #: Where its gRPC server listens, ``host:port``, with its certificate and a macaroon for everything.
    address: str
    tls_cert_path: str
    macaroon_hex: str
    #: What ``hold`` and ``self_invoice`` need may be lacking: a subset of {"hold", "self_payment", "bake"}.
    abilities: frozenset[str]
    #: The routing fee of a payment of AMOUNT_MSAT, above 0.
    fee_msat: int

    def make_invoice(self, amount_msat: int, *, expiry_s: int = 3600) -> str:
        """An invoice of the payee."""
        ...

    def make_expired_invoice(self, amount_msat: int) -> str:
        """An invoice of the payee that has expired by the paying node's clock."""
        ...

    def make_own_invoice(self, amount_msat: int) -> str:
        """An invoice of the paying node itself (ability ``self_payment``)."""
        ...

    def expire(self, bolt11: str) -> None:
        """Return when this invoice has expired by the paying node's clock."""
        ...

    def pass_time(self, seconds: float) -> None:
        """Return when so much time has passed by the paying node's clock."""
        ...

    def client_with(self, **kwargs: Any) -> LndNodeClient:
        """A client of the same node with other arguments, e.g. ``macaroon_hex=``."""
        ...

    def client_permitted(self, *paths: str) -> LndNodeClient:
        """A client whose macaroon permits these method paths alone (ability ``bake``)."""
        ...

    def hold(self) -> AbstractContextManager[Callable[[], None]]:
        """Inside, payments that start stay in flight; calling the value, or leaving, lets them go on (ability ``hold``)."""
        ...

    def away(self) -> AbstractContextManager[None]:
        """Inside, the payee is gone, and only the last hop knows."""
        ...

    def forget_failures(self) -> None:
        """Make the node try again a way that has just failed, which it avoids for a while."""
        ...

    def split(self, bolt11: str, request: pb.SendPaymentRequest) -> bytes:
        """``request`` on the wire, so made that the payment goes out in three parts."""
        ...

    def refused_macaroon(self, why: str) -> str:
        """A macaroon (hex) of this node that it takes no more: ``root key gone``, ``expired`` or ``elsewhere``."""
        ...


SEND = "/routerrpc.Router/SendPaymentV2"
TRACK = "/routerrpc.Router/TrackPaymentV2"


class NodeContract:
    """The promises of a node. Any two tests may run in any order on one node."""

    @pytest.fixture
    def node(self) -> ContractNode:
        raise NotImplementedError("a subclass gives the node")

    def test_the_same_invoice_is_never_paid_twice(self, node: ContractNode) -> None:
        """Everything rests on this: on any doubt the same invoice is sent again."""
        bolt11 = node.make_invoice(AMOUNT_MSAT)
        first = _send(node.client, bolt11)
        assert _send(node.client, bolt11).reply is WalletReply.EXISTS
        again = _track(node.client, bolt11)
        assert (again.reply, again.preimage, again.fee_msat) == (WalletReply.SUCCEEDED, first.preimage, node.fee_msat)
        assert node.client.pay_invoice(bolt11, max_fee_msat=FEE_LIMIT_MSAT) == first.preimage
        assert [p.status for p in _payments(node.client, bolt11)] == ["SUCCEEDED"]

    def test_many_at_once_pay_one_invoice_once(self, node: ContractNode) -> None:
        """Threads and machines may send the same invoice at the same instant."""
        bolt11 = node.make_invoice(AMOUNT_MSAT)
        barrier, answers = threading.Barrier(6), []

        def send() -> None:
            barrier.wait()
            answers.append(_send(node.client, bolt11))

        _run_all([send] * 6)
        words = sorted(answer.reply.value for answer in answers)
        assert words == [WalletReply.EXISTS.value] * 5 + [WalletReply.SUCCEEDED.value]
        assert [p.status for p in _payments(node.client, bolt11)] == ["SUCCEEDED"]

    def test_an_expired_invoice_is_not_started(self, node: ContractNode) -> None:
        """lnd's "expired" ends a row: it must not be confused with a failure, nor leave a payment behind."""
        bolt11 = node.make_expired_invoice(AMOUNT_MSAT)
        assert _send(node.client, bolt11).reply is WalletReply.EXPIRED
        assert _track(node.client, bolt11).reply is WalletReply.NOT_FOUND
        with pytest.raises(FundingError, match="Nothing was spent"):
            node.client.pay_invoice(bolt11, max_fee_msat=FEE_LIMIT_MSAT)

    def test_expired_says_nothing_about_an_earlier_payment(self, node: ContractNode) -> None:
        """Paid, then expired: read as "not paid", the token would be lost and another bought."""
        bolt11 = node.make_invoice(AMOUNT_MSAT, expiry_s=3)
        paid = _send(node.client, bolt11)
        assert paid.reply is WalletReply.SUCCEEDED, paid
        node.expire(bolt11)
        assert _send(node.client, bolt11).reply is WalletReply.EXPIRED
        assert _track(node.client, bolt11).reply is WalletReply.SUCCEEDED
        assert node.client.pay_invoice(bolt11, max_fee_msat=FEE_LIMIT_MSAT) == paid.preimage

    @pytest.mark.parametrize("spoil", ["checksum", "short", "other network"])
    def test_an_invalid_invoice_is_refused_before_the_start(self, node: ContractNode, spoil: str) -> None:
        """Not understood as a refusal, a bad invoice would block its scope for ever."""
        good = node.make_invoice(AMOUNT_MSAT)
        bolt11 = {
            "checksum": good[:-1] + ("q" if good[-1] != "q" else "p"),
            "short": good[:7],
            "other network": MAINNET_INVOICE,
        }[spoil]
        answer = _send(node.client, bolt11, payment_hash_of(good))
        assert answer.reply is WalletReply.REFUSED, answer
        assert _track(node.client, good).reply is WalletReply.NOT_FOUND

    def test_an_invoice_of_ones_own_is_refused_before_the_start(self, node: ContractNode) -> None:
        """A paywall in front of one's own node: nothing is spent, and the user is told so."""
        _needs(node, "self_payment")
        bolt11 = node.make_own_invoice(AMOUNT_MSAT)
        assert _send(node.client, bolt11).reply is WalletReply.REFUSED
        assert _track(node.client, bolt11).reply is WalletReply.NOT_FOUND

    @pytest.mark.parametrize("macaroon_hex", ["00" * 60, "0201" + "03" * 60], ids=["no macaroon", "garbled"])
    def test_a_wrong_macaroon_is_refused_and_told_without_the_macaroon(self, node: ContractNode, macaroon_hex: str) -> None:
        """The refusal ends the row as unspent; the text goes to a log, where no macaroon may be."""
        bolt11 = node.make_invoice(AMOUNT_MSAT)
        stranger = node.client_with(macaroon_path=None, macaroon_hex=macaroon_hex)
        answer = _send(stranger, bolt11)
        assert answer.reply is WalletReply.REFUSED, answer
        assert macaroon_hex not in repr(answer)
        assert _track(stranger, bolt11).reply is WalletReply.UNKNOWN
        with pytest.raises(FundingError) as caught:
            stranger.get_info()
        assert macaroon_hex not in str(caught.value)
        assert _track(node.client, bolt11).reply is WalletReply.NOT_FOUND

    def test_a_macaroon_for_paying_alone_pays(self, node: ContractNode) -> None:
        """Least privilege: paying needs two calls. GetInfo is asked only where no key is configured."""
        _needs(node, "bake")
        pubkey = node.client.get_node_pubkey()
        payer = node.client_permitted(SEND, TRACK)
        with pytest.raises(FundingError, match="doesn't permit GetInfo"):
            payer.get_info()
        source = Funding.lightning_lnd(client=payer, network="bitcoin-regtest", node_pubkey=pubkey)
        assert source.ready(PATIENCE_S) == pubkey
        bolt11 = node.make_invoice(AMOUNT_MSAT)
        key = payment_hash_of(bolt11)
        sent = source.send(bolt11, payment_hash=key, max_fee_msat=FEE_LIMIT_MSAT, timeout_s=PATIENCE_S)
        assert sent.reply is WalletReply.SUCCEEDED, sent
        assert source.track(key, timeout_s=PATIENCE_S, follow=True).reply is WalletReply.SUCCEEDED

    def test_a_macaroon_without_the_right_to_pay_is_refused(self, node: ContractNode) -> None:
        """A read-only macaroon is the commonest mistake: it must be told, not leave a row open."""
        _needs(node, "bake")
        bolt11 = node.make_invoice(AMOUNT_MSAT)
        answer = _send(node.client_permitted("/lnrpc.Lightning/GetInfo", TRACK), bolt11)
        assert answer.reply is WalletReply.REFUSED, answer
        assert "permission denied" in (answer.reason or "")

    def test_too_low_a_fee_limit_fails_and_the_same_invoice_is_paid_with_a_higher_one(self, node: ContractNode) -> None:
        """A fee above the limit must not be paid; and a FAILED payment starts anew when sent again."""
        bolt11 = node.make_invoice(AMOUNT_MSAT)
        answer = _send(node.client, bolt11, max_fee_msat=node.fee_msat - 1)
        assert (answer.reply, answer.reason) == (WalletReply.FAILED, "NO_ROUTE")
        tracked = _track(node.client, bolt11)
        assert (tracked.reply, tracked.reason) == (WalletReply.FAILED, "NO_ROUTE")
        with pytest.raises(InvoicePaymentError) as caught:
            node.client.pay_invoice(bolt11, max_fee_msat=0)
        assert (caught.value.failure_reason, caught.value.spent) == ("NO_ROUTE", False)
        answer = _send(node.client, bolt11, max_fee_msat=node.fee_msat)
        assert (answer.reply, answer.fee_msat) == (WalletReply.SUCCEEDED, node.fee_msat)

    @pytest.mark.slow
    def test_a_payment_in_flight_is_told_and_followed_to_its_end(self, node: ContractNode) -> None:
        """The first message tells a node at work from a dead one; following brings the token without a second purchase."""
        _needs(node, "hold")
        bolt11 = node.make_invoice(AMOUNT_MSAT)
        key, followed = payment_hash_of(bolt11), []
        with node.hold() as release:
            assert _send(node.client, bolt11, timeout_s=2).reply is WalletReply.UNKNOWN
            assert node.client.track(key, timeout_s=PATIENCE_S, follow=False).reply is WalletReply.IN_FLIGHT
            assert node.client.track(key, timeout_s=1, follow=True).reply is WalletReply.IN_FLIGHT
            assert node.client.track_payment(key).state == "in_flight"
            assert _send(node.client, bolt11).reply is WalletReply.EXISTS
            with pytest.raises(PaymentPendingError) as caught:
                node.client.send_payment_sync(bolt11, max_fee_msat=FEE_LIMIT_MSAT, timeout_seconds=2)
            assert caught.value.spent is None
            follower = threading.Thread(target=lambda: followed.append(_track(node.client, bolt11)))
            follower.start()
            release()
            follower.join(PATIENCE_S)
        assert [answer.reply for answer in followed] == [WalletReply.SUCCEEDED]

    def test_a_client_that_leaves_does_not_stop_its_payment(self, node: ContractNode) -> None:
        """So a broken stream proves nothing, and only the hash tells what became of the money."""
        _needs(node, "hold")
        bolt11 = node.make_invoice(AMOUNT_MSAT)
        leaver, answers = node.client_with(), []
        with node.hold():
            sender = threading.Thread(target=lambda: answers.append(_send(leaver, bolt11)))
            sender.start()
            _until(lambda: _track(node.client, bolt11, follow=False).reply is WalletReply.IN_FLIGHT)
            leaver.close()
            sender.join(PATIENCE_S)
        assert [answer.reply for answer in answers] == [WalletReply.UNKNOWN]
        assert _track(node.client, bolt11).reply is WalletReply.SUCCEEDED

    def test_the_node_tells_who_it_is(self, node: ContractNode) -> None:
        """The ledger's rows name the node, and invoices are checked against its network."""
        info = node.client.get_info()
        assert len(bytes.fromhex(info.identity_pubkey)) == 33
        assert node.client.get_node_pubkey() == info.identity_pubkey
        assert (info.network, info.synced_to_chain) == ("bitcoin-regtest", True)
        assert info.num_active_channels >= 1
        source = Funding.lightning_lnd(client=node.client, network="bitcoin-regtest")
        assert source.ready(PATIENCE_S) == info.identity_pubkey == source.node_pubkey
        with pytest.raises(FundingError, match="Nothing was spent"):
            Funding.lightning_lnd(client=node.client, network="bitcoin").ready(PATIENCE_S)

    def test_the_nodes_own_list_agrees_with_what_was_told(self, node: ContractNode) -> None:
        """The audit compares the ledger with this list: what it shows must be what the sends said."""
        paid, failed = node.make_invoice(AMOUNT_MSAT), node.make_invoice(AMOUNT_MSAT)
        answer = _send(node.client, paid)
        _send(node.client, failed, max_fee_msat=0)
        [listed] = _payments(node.client, paid)
        assert (listed.status, listed.amount_msat, listed.fee_msat) == ("SUCCEEDED", answer.amount_msat, answer.fee_msat)
        [listed] = _payments(node.client, failed)
        assert (listed.status, listed.failure_reason) == ("FAILED", "NO_ROUTE")

    def test_paying_moves_the_amount_and_the_fee(self, node: ContractNode) -> None:
        """What leaves the channels is what is booked."""
        before = node.client.channel_balance().local_msat
        answer = _send(node.client, node.make_invoice(AMOUNT_MSAT))
        spent = answer.amount_msat + answer.fee_msat
        # The channel's own state settles a moment after the payment has.
        _until(lambda: before - node.client.channel_balance().local_msat == spent)


#: The example of BOLT 11 for 2 500 µBTC on mainnet: a good invoice on another network.
MAINNET_INVOICE = (
    "lnbc2500u1pvjluezsp5zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zygspp5qqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqypq"
    "dq5xysxxatsyp3k7enxv4jsxqzpu9qrsgquk0rl77nj30yxdy8j9vdx85fkpmdla2087ne0xh8nhedh8w27kyke0lp53ut353s06fv3qfegext0eh0ymjpf39tuven09s"
    "am30g4vgpfna3rh"
)


def payment_hash_of(bolt11: str) -> bytes:
    """Read independently of the library under test."""
    import bolt11 as library

    return bytes.fromhex(library.decode(bolt11).payment_hash)


def _send(
    client: LndNodeClient,
    bolt11: str,
    payment_hash: bytes | None = None,
    *,
    max_fee_msat: int = FEE_LIMIT_MSAT,
    timeout_s: float = PATIENCE_S,
) -> WalletAnswer:
    key = payment_hash_of(bolt11) if payment_hash is None else payment_hash
    return client.send(bolt11, payment_hash=key, max_fee_msat=max_fee_msat, timeout_s=timeout_s)


def _track(client: LndNodeClient, bolt11: str, *, follow: bool = True) -> WalletAnswer:
    return client.track(payment_hash_of(bolt11), timeout_s=PATIENCE_S, follow=follow)


def _payments(client: LndNodeClient, bolt11: str) -> list[NodePayment]:
    key = payment_hash_of(bolt11).hex()
    return [payment for payment in client.list_payments() if payment.payment_hash == key]


def _needs(node: ContractNode, ability: str) -> None:
    if ability not in node.abilities:
        pytest.skip(f"this node can't be made to: {ability}")


def _until(predicate: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not predicate():
        assert time.monotonic() < deadline, "it never came to be so"
        time.sleep(POLL_S)


def _run_all(works: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
