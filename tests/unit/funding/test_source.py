"""A funding source turns whatever a wallet does into words that are safe to act on."""

from __future__ import annotations

import hashlib
import pickle
import time

import pytest

from routeweiler_sync.errors import FundingError, InvoicePaymentError, PaymentPendingError
from routeweiler_sync.funding import Funding
from routeweiler_sync.funding.lightning import LightningFundingSource, LightningNodeClient, LndClient, PaymentStatus
from routeweiler_sync.funding.replies import WalletAnswer, WalletReply
from routeweiler_sync.funding.wallet import NodeInfo, NotPermittedError
from routeweiler_sync.testing._lnd_book import sign_invoice

PREIMAGE = b"\x05" * 32
HASH = hashlib.sha256(PREIMAGE).digest()
KEY = "02" + "ab" * 32
INVOICE = sign_invoice(
    "11" * 32, payment_hash=HASH, amount_msat=12_345, memo="", expiry_s=60, created_at=int(time.time()), currency="bcrt"
)


class Wallet:
    """A third-party node client: what it does is given; exceptions are raised."""

    def __init__(self, pay: object = PREIMAGE, statuses: tuple[object, ...] = (), key: object = KEY) -> None:
        self.pay, self.statuses, self.key = pay, list(statuses), key
        self.asked = 0

    def pay_invoice(self, bolt11: str, *, max_fee_msat: int) -> bytes:
        return self._do(self.pay)

    def track_payment(self, payment_hash: bytes) -> PaymentStatus:
        self.asked += 1
        return self._do(self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0])

    def get_node_pubkey(self) -> str:
        return self._do(self.key)

    @staticmethod
    def _do(what):
        if isinstance(what, BaseException):
            raise what
        return what


def _source(wallet: object, **kwargs: object) -> LightningFundingSource:
    return Funding.lightning_lnd(client=wallet, network="bitcoin-regtest", **kwargs)  # type: ignore[arg-type]


def _send(wallet: Wallet) -> WalletAnswer:
    return _source(wallet).send(INVOICE, payment_hash=HASH, max_fee_msat=77, timeout_s=5)


PAID = PaymentStatus("succeeded", PREIMAGE, 12_345, 9)


def test_three_methods_make_a_wallet() -> None:
    """Whoever has another node than lnd has to write these, and no more."""
    assert isinstance(Wallet(), LightningNodeClient)
    assert isinstance(LndClient("h", macaroon_hex="00"), LightningNodeClient)


def test_a_payment_is_booked_with_the_fee_that_the_wallet_tells() -> None:
    """The Protocol's pay_invoice returns the preimage alone; without the fee the budget would drift from the truth."""
    answer = _send(Wallet(statuses=(PAID,)))
    assert (answer.reply, answer.preimage, answer.amount_msat, answer.fee_msat) == (WalletReply.SUCCEEDED, PREIMAGE, 12_345, 9)


@pytest.mark.parametrize("status", [OSError("gone"), PaymentStatus("unknown_hash"), PaymentStatus("succeeded", b"x" * 32, 1, 1)])
def test_a_fee_that_is_not_told_is_booked_at_its_most(status: object) -> None:
    """A preimage that fits proves the payment; to book less than it may have cost would overspend the budget."""
    answer = _send(Wallet(statuses=(status,)))
    assert (answer.reply, answer.preimage, answer.amount_msat, answer.fee_msat) == (WalletReply.SUCCEEDED, PREIMAGE, 12_345, 77)


@pytest.mark.parametrize(
    ("outcome", "reply"),
    [
        (InvoicePaymentError("no", failure_reason="NO_ROUTE"), WalletReply.FAILED),
        (FundingError("locked"), WalletReply.REFUSED),
        (PaymentPendingError("?"), WalletReply.UNKNOWN),
        (TimeoutError(), WalletReply.UNKNOWN),
        (OSError("reset"), WalletReply.UNKNOWN),
        (RuntimeError(), WalletReply.UNKNOWN),
        (None, WalletReply.UNKNOWN),
        (PREIMAGE.hex(), WalletReply.SUCCEEDED),
        (bytearray(PREIMAGE), WalletReply.SUCCEEDED),
        (b"x".hex() * 32, WalletReply.UNKNOWN),
        (InvoicePaymentError("no", spent=None), WalletReply.UNKNOWN),
        (FundingError("lost", spent=True), WalletReply.UNKNOWN),
        (PREIMAGE[:-1], WalletReply.UNKNOWN),
        (b"x" * 32, WalletReply.WRONG_PREIMAGE),
    ],
)
def test_what_a_wallet_does_is_taken_for_no_more_than_it_proves(outcome: object, reply: WalletReply) -> None:
    """An unexpected exception after the money has left, read as "not paid", pays twice."""
    answer = _send(Wallet(pay=outcome, statuses=(PAID,)))
    assert answer.reply is reply
    assert answer.reason == "NO_ROUTE" or reply is not WalletReply.FAILED


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_is_never_swallowed(interrupt: type[BaseException]) -> None:
    """Ctrl-C during a payment has to end the program; the row in the ledger does the rest."""
    with pytest.raises(interrupt):
        _send(Wallet(pay=interrupt()))


@pytest.mark.parametrize(
    ("status", "reply"),
    [
        (PAID, WalletReply.SUCCEEDED),
        (PaymentStatus("succeeded", b"x" * 32), WalletReply.WRONG_PREIMAGE),
        (PaymentStatus("succeeded"), WalletReply.UNKNOWN),
        (PaymentStatus("succeeded", PREIMAGE[:-1]), WalletReply.UNKNOWN),
        (PaymentStatus("succeeded", PREIMAGE.hex()), WalletReply.SUCCEEDED),  # type: ignore[arg-type]
        (PaymentStatus("FAILED"), WalletReply.UNKNOWN),  # type: ignore[arg-type]
        (PaymentStatus("failed", failure_reason="TIMEOUT"), WalletReply.FAILED),
        (PaymentStatus("in_flight"), WalletReply.IN_FLIGHT),
        (PaymentStatus("unknown_hash"), WalletReply.NOT_FOUND),
        (PaymentStatus("settled"), WalletReply.UNKNOWN),  # type: ignore[arg-type]
        (None, WalletReply.UNKNOWN),
        (OSError(), WalletReply.UNKNOWN),
        (InvoicePaymentError("?"), WalletReply.UNKNOWN),
        (FundingError("?"), WalletReply.UNKNOWN),
    ],
)
def test_tracking_reads_each_status(status: object, reply: WalletReply) -> None:
    """FAILED or NOT_FOUND made of an error would free a reservation whose payment still runs."""
    assert _source(Wallet(statuses=(status,))).track(HASH, timeout_s=1, follow=False).reply is reply


def test_following_polls_until_the_payment_ends() -> None:
    """A payment that takes a while must not be left pending when its end is a moment away."""
    wallet = Wallet(statuses=(PaymentStatus("in_flight"), PaymentStatus("in_flight"), PAID))
    assert _source(wallet).track(HASH, timeout_s=30, follow=True).reply is WalletReply.SUCCEEDED
    assert wallet.asked == 3


def test_following_ends_with_the_deadline() -> None:
    """An HTLC may stay out for days; the caller's payment_timeout still holds."""
    wallet = Wallet(statuses=(PaymentStatus("in_flight"),))
    before = time.monotonic()
    assert _source(wallet).track(HASH, timeout_s=0.3, follow=True).reply is WalletReply.IN_FLIGHT
    assert time.monotonic() - before < 5
    assert wallet.asked > 1


def test_the_fee_cap_is_the_configured_one_or_the_default() -> None:
    """0 is a choice (free routes only), not "nothing configured"."""
    assert _source(Wallet()).fee_cap_msat(1_000_000) == 50_000
    assert _source(Wallet(), max_fee_msat=3).fee_cap_msat(1_000_000) == 3
    assert _source(Wallet(), max_fee_msat=0).fee_cap_msat(1_000_000) == 0


@pytest.mark.parametrize("wrong", [{"network": "mainnet"}, {"network": "regtest"}, {"max_fee_msat": -1}])
def test_arguments_that_cannot_be_meant_are_refused(wrong: dict) -> None:
    """A network misspelt would refuse every invoice, later and elsewhere."""
    with pytest.raises(ValueError):
        Funding.lightning_lnd(**{"client": Wallet(), "network": "bitcoin"} | wrong)


def test_create_asks_the_node_for_its_key() -> None:
    """The twin's factory, without await."""
    source = LightningFundingSource.create(Wallet(), "bitcoin", max_fee_msat=5)
    assert (source.node_pubkey, source.max_fee_msat, source.network) == (KEY, 5, "bitcoin")


def test_ready_learns_the_key_once() -> None:
    """Each row of the ledger names its node; asking before every payment would double the calls."""
    wallet = Wallet()
    source = _source(wallet)
    assert source.ready(1) == KEY
    assert source.node_pubkey == KEY
    wallet.key = OSError()
    assert source.ready(1) == KEY


def test_ready_refuses_another_node_than_the_one_configured() -> None:
    """lnd's refusal of duplicates holds on one node alone: another node would pay the same invoice a second time."""
    other = "03" + "cd" * 32
    source = _source(Wallet(), node_pubkey=other)
    with pytest.raises(FundingError, match="Nothing was spent") as caught:
        source.ready(1)
    assert KEY in str(caught.value)
    assert other in str(caught.value)
    assert _source(Wallet(), node_pubkey=KEY.upper()).ready(1) == KEY


def test_ready_turns_any_error_of_a_wallet_into_ours() -> None:
    """Callers catch requests' errors; a wallet's own would pass them by."""
    with pytest.raises(FundingError, match=r"boom.*Nothing was spent"):
        _source(Wallet(key=RuntimeError("boom"))).ready(1)


def test_an_unpickled_source_asks_again_and_compares() -> None:
    """The pickle may wake on a machine whose paths lead to another node."""
    source = _source(Wallet())
    source.ready(1)
    again = pickle.loads(pickle.dumps(source))
    again.client.key = "03" + "cd" * 32
    with pytest.raises(FundingError):
        again.ready(1)


class Lnd(LndClient):
    """An lnd client whose answers are given, to test what `ready` makes of them."""

    def __init__(self, info: NodeInfo | Exception) -> None:
        super().__init__("h", macaroon_hex="00")
        self.info = info

    def check_ready(self, timeout_s: float) -> None:
        pass

    def get_info(self, *, timeout_s: float | None = None) -> NodeInfo:
        if isinstance(self.info, Exception):
            raise self.info
        return self.info


def _info(network: str) -> NodeInfo:
    return NodeInfo(
        identity_pubkey=KEY, alias="", version="", network=network, synced_to_chain=True, block_height=1, num_active_channels=1
    )


def test_ready_refuses_a_node_on_another_network() -> None:
    """Testnet prices would be paid in bitcoin."""
    assert _source(Lnd(_info("bitcoin-regtest"))).ready(1) == KEY
    assert _source(Lnd(_info(""))).ready(1) == KEY
    with pytest.raises(FundingError, match=r"on bitcoin, but .* bitcoin-regtest\. Nothing was spent"):
        _source(Lnd(_info("bitcoin"))).ready(1)


def test_a_macaroon_that_may_only_pay_will_do_if_the_key_is_configured() -> None:
    """Least privilege must not need more rights than paying does."""
    denied = NotPermittedError("no GetInfo")
    assert _source(Lnd(denied), node_pubkey=KEY).ready(1) == KEY
    with pytest.raises(FundingError, match="no GetInfo"):
        _source(Lnd(denied)).ready(1)
    with pytest.raises(FundingError, match="unreachable"):
        _source(Lnd(FundingError("unreachable")), node_pubkey=KEY).ready(1)
