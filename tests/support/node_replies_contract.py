"""What a node says, to the letter: `NodeWords` runs for FakeLnd and for the real lnd, so that the fake speaks as lnd does.

`NodeContract` asks through the library, which reads many texts as one word; this asks past it. What the library makes of each of
these texts is told beside it.
"""

from __future__ import annotations

import re
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import bolt11 as bolt11_library
import grpc
import pytest

from routeweiler_sync.funding.lnd.replies import failure_reason, read_error
from routeweiler_sync.funding.lnd.stubs import routeweiler_lnd_pb2 as pb
from routeweiler_sync.funding.replies import WalletReply
from routeweiler_sync.testing._lnd_book import sign_invoice

from .node_contract import AMOUNT_MSAT, FEE_LIMIT_MSAT, PATIENCE_S, SEND, TRACK, ContractNode, payment_hash_of

#: How lnd's end is told to whoever listens to a payment: sometimes by lnd, else by the end of the connection.
END_OF_LND = r"UNKNOWN: routerrpc server shutting down|UNAVAILABLE: .*"
NO_PREIMAGE = "0" * 64


@dataclass(frozen=True, kw_only=True)
class Told:
    """All that a stream said. ``messages``: status, with ``/REASON`` if one is set, with ``+preimage`` if there is one."""

    messages: tuple[str, ...]
    end: str
    last: pb.Payment | None = None


def stream(node: ContractNode, path: str, request: bytes, *, macaroons: tuple[str, ...] | None = None) -> Told:
    """One call on a connection of its own; ``end`` is ``OK`` or ``CODE: text``."""
    messages, last = [], None
    with closing(_channel(node)) as channel:
        call = channel.unary_stream(path, request_serializer=bytes, response_deserializer=pb.Payment.FromString)
        try:
            for last in call(request, timeout=PATIENCE_S, metadata=_metadata(node, macaroons)):
                reason = f"/{failure_reason(last.failure_reason)}" if last.failure_reason else ""
                preimage = "" if last.payment_preimage == NO_PREIMAGE else "+preimage"
                messages.append(pb.Payment.PaymentStatus.Name(last.status) + reason + preimage)
        except grpc.RpcError as error:
            return Told(messages=tuple(messages), end=_end(error), last=last)
    return Told(messages=tuple(messages), end="OK", last=last)


def order(
    node: ContractNode, bolt11: str, *, fee_limit_msat: int = FEE_LIMIT_MSAT, quiet: bool = False, timeout_s: int = 30
) -> Told:
    return stream(node, SEND, request_of(bolt11, fee_limit_msat, quiet, timeout_s).SerializeToString())


def request_of(
    bolt11: str, fee_limit_msat: int = FEE_LIMIT_MSAT, quiet: bool = False, timeout_s: int = 30
) -> pb.SendPaymentRequest:
    return pb.SendPaymentRequest(
        payment_request=bolt11, fee_limit_msat=fee_limit_msat, timeout_seconds=timeout_s, no_inflight_updates=quiet
    )


def track(node: ContractNode, payment_hash: bytes) -> Told:
    return stream(node, TRACK, pb.TrackPaymentRequest(payment_hash=payment_hash).SerializeToString())


def in_background(work: Callable[[], Told]) -> Callable[[], Told]:
    """Starts ``work``; the value waits for its result."""
    done: list[Told] = []
    thread = threading.Thread(target=lambda: done.append(work()), daemon=True)
    thread.start()

    def result() -> Told:
        thread.join(PATIENCE_S)
        assert done, "no answer"
        return done[0]

    return result


def strangers_invoice(amount_msat: int | None = AMOUNT_MSAT, *, currency: str = "bcrt", created_at: int | None = None) -> str:
    """An invoice of a node that nobody knows."""
    return sign_invoice(
        secrets.token_hex(32),
        payment_hash=secrets.token_bytes(32),
        amount_msat=amount_msat,
        memo="",
        expiry_s=3600,
        created_at=int(time.time()) if created_at is None else created_at,
        currency=currency,
    )


LONG_AGO = 1_700_000_000

#: What is asked to be paid, made from a good invoice → lnd's words.
REFUSED_ORDERS: dict[str, tuple[Callable[[str], str], str]] = {
    "nothing": (lambda good: "", "invalid vertex length of 0, want 33"),
    "one letter": (lambda good: "l", "invalid bech32 string length 1"),
    "seven letters": (lambda good: good[:7], "invalid bech32 string length 7"),
    "no separator": (lambda good: "lnbcrt" + "q" * 20, "invalid index of 1"),
    "cut short": (lambda good: good[:-40], r"checksum failed\. Expected [0-9a-z]{6}, got [0-9a-z]{6}\."),
    "one letter wrong": (lambda good: good[:60] + ("q" if good[60] != "q" else "p") + good[61:], r"checksum failed\. .*"),
    "mixed case": (lambda good: good[:20].upper() + good[20:], "string not all lowercase or all uppercase"),
    "a blank in front": (lambda good: " " + good, "invalid character in string: ' '"),
    "a line end": (lambda good: good + "\n", "invalid character in string: '\n'"),
    "beyond ASCII": (lambda good: good[:40] + "é" + good[41:], "invalid character in string: 'Ã'"),
    "no letter of bech32": (
        lambda good: good[:40] + "b" + good[41:],
        "failed converting data to bytes: invalid character not part of charset: 98",
    ),
    "its URI": (lambda good: "lightning:" + good, r"checksum failed\. .*"),
    "too large": (lambda good: good + "q" * 8000, "invoice is too large"),
    "an address": (lambda good: "bcrt1qw508d6qejxtdg4y5r3zarvary0c5xw7kygt080", 'prefix should be "ln"'),
    "on mainnet": (lambda good: strangers_invoice(currency="bc"), "invoice not for current active network 'regtest'"),
    "on testnet": (lambda good: strangers_invoice(currency="tb"), "invoice not for current active network 'regtest'"),
    "on signet": (lambda good: strangers_invoice(currency="tbs"), "invoice not for current active network 'regtest'"),
    "on mainnet, expired": (
        lambda good: strangers_invoice(currency="bc", created_at=LONG_AGO),
        "invoice not for current active network 'regtest'",
    ),
    "no amount": (lambda good: strangers_invoice(None), "amount must be specified when paying a zero amount invoice"),
}
REFUSED_MACAROONS = {
    "none": ((), "expected 1 macaroon, got 0"),
    "two": (("00", "00"), "expected 1 macaroon, got 2"),
    "empty": (("",), "empty macaroon data"),
    "odd": (("abc",), "encoding/hex: odd length hex string"),
    "no hex": (("zz",), r"encoding/hex: invalid byte: U\+007A 'z'"),
    "no macaroon": (("00" * 60,), "cannot determine data format of binary-encoded macaroon"),
    "garbled": (("0201" + "03" * 60,), "unmarshal v2: .*"),
}
REFUSED_OWN_MACAROONS = {
    "root key gone": r"cannot retrieve macaroon: cannot get macaroon: root key with id \d+ doesn't exist",
    "expired": r'caveat "time-before \S+" not satisfied: macaroon has expired',
    "elsewhere": r'caveat "ipaddr \S+" not satisfied: macaroon locked to different IP address',
}


class NodeWords:
    """A node's words. Any two tests may run in any order on one node."""

    @pytest.fixture
    def node(self) -> ContractNode:
        raise NotImplementedError("a subclass gives the node")

    def test_a_success_is_told_in_three_messages(self, node: ContractNode) -> None:
        """Written down, HTLC out, settled: whoever takes the first or second for an end loses the token or pays again."""
        told = order(node, node.make_invoice(AMOUNT_MSAT))
        assert (told.messages, told.end) == (("IN_FLIGHT", "IN_FLIGHT", "SUCCEEDED+preimage"), "OK")
        told = order(node, node.make_invoice(AMOUNT_MSAT), quiet=True)
        assert (told.messages, told.end) == (("SUCCEEDED+preimage",), "OK")

    def test_a_payment_in_parts_tells_the_preimage_before_its_end(self, node: ContractNode) -> None:
        """Only the status tells the end: while parts are in flight the fee isn't whole, and the books wouldn't add up."""
        bolt11 = node.make_invoice(50_000_000)
        told = stream(node, SEND, node.split(bolt11, request_of(bolt11, 100_000)))
        assert told.messages == (*["IN_FLIGHT"] * 4, *["IN_FLIGHT+preimage"] * 2, "SUCCEEDED+preimage")
        assert told.last is not None
        assert told.last.value_msat == 50_000_000

    def test_what_lnd_sees_by_itself_fails_before_an_htlc_leaves(self, node: ContractNode) -> None:
        """Too little money is looked at before the way: a user with an empty channel is told to fill it, not to find a route."""
        too_much = 9_000_000_000_000
        for bolt11, fee_limit_msat, reason in (
            (strangers_invoice(), FEE_LIMIT_MSAT, "NO_ROUTE"),
            (node.make_invoice(AMOUNT_MSAT), 0, "NO_ROUTE"),
            (strangers_invoice(too_much), FEE_LIMIT_MSAT, "INSUFFICIENT_BALANCE"),
            (strangers_invoice(too_much), 0, "INSUFFICIENT_BALANCE"),
        ):
            told = order(node, bolt11, fee_limit_msat=fee_limit_msat)
            assert (told.messages, told.end) == (("IN_FLIGHT", f"FAILED/{reason}"), "OK")
            assert track(node, payment_hash_of(bolt11)).messages == (f"FAILED/{reason}",)

    def test_the_fee_limit_may_be_in_sat(self, node: ContractNode) -> None:
        """Other programs' orders say it so; read as a limit of 0 their payments would fail here and nowhere else."""
        in_sat = pb.SendPaymentRequest(payment_request=node.make_invoice(AMOUNT_MSAT), fee_limit_sat=10, timeout_seconds=30)
        assert stream(node, SEND, in_sat.SerializeToString()).messages[-1] == "SUCCEEDED+preimage"
        in_sat.fee_limit_msat = 10_000
        assert stream(node, SEND, in_sat.SerializeToString()).end == "UNKNOWN: sat and msat arguments are mutually exclusive"

    def test_an_htlc_that_comes_back_is_told_before_the_failure(self, node: ContractNode) -> None:
        """A payee that is gone: NO_ROUTE, or TIMEOUT where the order's time has passed; then the same invoice can be paid."""
        bolt11, late = node.make_invoice(AMOUNT_MSAT), node.make_invoice(AMOUNT_MSAT)
        with node.away():
            told = order(node, bolt11)
            assert told.messages == ("IN_FLIGHT", "IN_FLIGHT", "IN_FLIGHT", "FAILED/NO_ROUTE")
            node.forget_failures()
            with node.hold() as release:
                waiting = in_background(lambda: order(node, late, timeout_s=5))
                _until_in_flight(node, late)
                node.pass_time(6)
                release()
                told = waiting()
            assert told.messages == ("IN_FLIGHT", "IN_FLIGHT", "IN_FLIGHT", "FAILED/TIMEOUT")
        for paid in (bolt11, late):
            assert order(node, paid).messages[-1] == "SUCCEEDED+preimage"

    def test_a_reason_may_be_told_while_still_in_flight(self, node: ContractNode) -> None:
        """The invoice ends on the way: the payee's no is told first, the end after it. Read too early, a shard may still settle."""
        bolt11 = node.make_invoice(AMOUNT_MSAT, expiry_s=5)
        with node.hold() as release:
            waiting = in_background(lambda: order(node, bolt11))
            _until_in_flight(node, bolt11)
            node.expire(bolt11)
            node.pass_time(1)
            release()
            told = waiting()
        reason = "INCORRECT_PAYMENT_DETAILS"
        assert told.messages == ("IN_FLIGHT", "IN_FLIGHT", f"IN_FLIGHT/{reason}", f"FAILED/{reason}")

    @pytest.mark.parametrize("what", REFUSED_ORDERS)
    def test_an_order_that_can_be_no_payment_is_refused(self, node: ContractNode, what: str) -> None:
        """The library has to know these words: else an unpayable invoice holds its reservation, and its scope, for ever."""
        make, text = REFUSED_ORDERS[what]
        bolt11 = make(node.make_invoice(AMOUNT_MSAT))
        _refused(order(node, bolt11), text)

    def test_expired_and_a_negative_fee_limit_are_refused(self, node: ContractNode) -> None:
        """Expiry comes before the amount, and tells until when; no payment starts."""
        for bolt11 in (node.make_expired_invoice(AMOUNT_MSAT), strangers_invoice(None, created_at=LONG_AGO)):
            invoice = bolt11_library.decode(bolt11)
            end = datetime.fromtimestamp(invoice.date + (invoice.expiry or 3600), tz=timezone.utc)
            text = f"invoice expired. Valid until {end:%Y-%m-%d %H:%M:%S} +0000 UTC"
            _refused(order(node, bolt11), re.escape(text), WalletReply.EXPIRED)
        _refused(order(node, node.make_invoice(AMOUNT_MSAT), fee_limit_msat=-1), "amount cannot be negative")
        _refused(order(node, node.make_own_invoice(AMOUNT_MSAT)), "self-payments not allowed")

    def test_upper_case_is_paid_as_lower_case(self, node: ContractNode) -> None:
        """QR codes are upper case: it is the same invoice, and must not be paid twice."""
        bolt11 = node.make_invoice(AMOUNT_MSAT)
        assert order(node, bolt11.upper()).messages[-1] == "SUCCEEDED+preimage"
        assert order(node, bolt11).end == "ALREADY_EXISTS: invoice is already paid"

    def test_a_hash_that_is_there_is_refused_in_three_ways(self, node: ContractNode) -> None:
        """Each means that this order started nothing; the payment's own state is for a track to tell."""
        bolt11 = node.make_invoice(AMOUNT_MSAT)
        with node.hold() as release:
            waiting = in_background(lambda: order(node, bolt11))
            _until_in_flight(node, bolt11)
            assert order(node, bolt11) == Told(messages=(), end="ALREADY_EXISTS: payment is in transition")
            release()
            assert waiting().messages[-1] == "SUCCEEDED+preimage"
        assert order(node, bolt11) == Told(messages=(), end="ALREADY_EXISTS: invoice is already paid")
        raced = node.make_invoice(AMOUNT_MSAT)
        ends = Counter(result().end for result in [in_background(lambda: order(node, raced)) for _ in range(8)])
        assert ends.pop("OK") == 1
        forms = ("payment already exists", "payment is in transition", "invoice is already paid")
        assert set(ends) <= {f"ALREADY_EXISTS: {form}" for form in forms}

    def test_a_question_that_finds_nothing(self, node: ContractNode) -> None:
        """NOT_FOUND of a whole hash alone says that lnd knows no such payment."""
        assert track(node, secrets.token_bytes(32)) == Told(messages=(), end="NOT_FOUND: payment isn't initiated")
        assert track(node, b"\1" * 31) == Told(messages=(), end="UNKNOWN: invalid hash length of 31, want 32")
        told = stream(node, "/routerrpc.Router/SendPaymentV9", b"")
        assert told.end.startswith("UNIMPLEMENTED: ")

    def test_a_failed_payment_that_starts_anew_is_the_youngest(self, node: ContractNode) -> None:
        """One line a hash in lnd's list, but with a new number: an audit that reads on from a number finds it again."""
        bolt11, other = node.make_invoice(AMOUNT_MSAT), node.make_invoice(AMOUNT_MSAT)
        failed = order(node, bolt11, fee_limit_msat=0).last
        assert order(node, other).last is not None
        paid = order(node, bolt11).last
        assert failed is not None
        assert paid is not None
        assert paid.payment_index > failed.payment_index
        assert paid.creation_time_ns > failed.creation_time_ns
        hashes = [payment.payment_hash for payment in node.client.list_payments()]
        mine = [payment_hash for payment_hash in hashes if payment_hash in (paid.payment_hash, payment_hash_of(other).hex())]
        assert mine == [payment_hash_of(other).hex(), paid.payment_hash]

    @pytest.mark.parametrize("what", REFUSED_MACAROONS)
    def test_what_is_no_macaroon_is_refused(self, node: ContractNode, what: str) -> None:
        """Not understood as a refusal, a wrong file would leave each call's outcome open."""
        macaroons, text = REFUSED_MACAROONS[what]
        self._refuses(node, macaroons, text)

    @pytest.mark.parametrize("why", REFUSED_OWN_MACAROONS)
    def test_a_macaroon_whose_time_is_over_is_refused(self, node: ContractNode, why: str) -> None:
        """`lncli deletemacaroonid` is how a stolen macaroon is shut out: its owner's calls then say so, and hold no money."""
        self._refuses(node, (node.refused_macaroon(why),), REFUSED_OWN_MACAROONS[why])

    def _refuses(self, node: ContractNode, macaroons: tuple[str, ...], text: str) -> None:
        request = request_of(node.make_invoice(AMOUNT_MSAT)).SerializeToString()
        _refused(stream(node, SEND, request, macaroons=macaroons), text)
        asked = stream(node, TRACK, pb.TrackPaymentRequest(payment_hash=b"\1" * 32).SerializeToString(), macaroons=macaroons)
        assert re.fullmatch(f"UNKNOWN: {text}", asked.end), asked


def _refused(told: Told, text: str, reply: WalletReply = WalletReply.REFUSED) -> None:
    """lnd's words are these, and the library reads them as what they mean."""
    assert told.messages == ()
    assert re.fullmatch(f"UNKNOWN: {text}", told.end, re.DOTALL), told.end
    code, _, said = told.end.partition(": ")
    assert read_error("send", code, said).reply is reply
    assert read_error("track", code, said).reply is WalletReply.UNKNOWN


def _until_in_flight(node: ContractNode, bolt11: str) -> None:
    """Until the HTLC has left: lnd has then nothing more to say before the end.

    IN_FLIGHT alone says that the payment has been written down. Its no to a second order tells whether there is an HTLC.
    """
    deadline = time.monotonic() + PATIENCE_S
    while node.client.track(payment_hash_of(bolt11), timeout_s=PATIENCE_S, follow=False).reply is not WalletReply.IN_FLIGHT:
        assert time.monotonic() < deadline, "never in flight"
    while (end := order(node, bolt11).end) != "ALREADY_EXISTS: payment is in transition":
        assert end == "ALREADY_EXISTS: payment already exists"
        assert time.monotonic() < deadline, "no HTLC leaves"


def _channel(node: ContractNode) -> grpc.Channel:
    credentials = grpc.ssl_channel_credentials(Path(node.tls_cert_path).read_bytes())
    return grpc.secure_channel(node.address, credentials, options=[("grpc.use_local_subchannel_pool", 1)])


def _metadata(node: ContractNode, macaroons: tuple[str, ...] | None) -> tuple[tuple[str, str], ...]:
    return tuple(("macaroon", value) for value in ((node.macaroon_hex,) if macaroons is None else macaroons))


def _end(error: Any) -> str:
    return f"{error.code().name}: {error.details()}"
