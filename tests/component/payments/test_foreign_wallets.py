"""A wallet of a program's own may answer with anything: no token is lost, nothing is booked wrongly, nothing is paid twice."""

from __future__ import annotations

import asyncio
import enum
import gc
import warnings
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import pytest
import requests

from routeweiler_sync import (
    FundingError,
    InvoicePaymentError,
    LightningFundingSource,
    PaymentPendingError,
    PaymentState,
    PaymentStatus,
    PreimageMismatchError,
    RouteweilerError,
)
from routeweiler_sync.funding.replies import WalletAnswer, WalletReply
from routeweiler_sync.funding.wallet import LightningNodeClient, NodeInfo, WalletClient
from routeweiler_sync.testing import FakeLnd, Paywall
from tests.support.accounts import Books

pytestmark = pytest.mark.usefixtures("asks_at_once")

#: The most that routing 10 sat may cost, and what it costs.
MOST_MSAT, FEE_MSAT = 10_000, 1_000
KEY = "02" + "ab" * 32


class Wallet:
    """A client of three methods around the fake node's. ``pay``, ``track`` and ``key`` replace what it returns."""

    def __init__(
        self,
        lnd: FakeLnd,
        *,
        pay: Callable[[bytes], Any] | None = None,
        track: Callable[[PaymentStatus], Any] | None = None,
        key: Any = ...,
    ) -> None:
        self._inner = lnd.client()
        self._pay, self._track, self._key = pay, track, key

    def pay_invoice(self, bolt11: str, *, max_fee_msat: int) -> Any:
        preimage = self._inner.pay_invoice(bolt11, max_fee_msat=max_fee_msat)
        return preimage if self._pay is None else self._pay(preimage)

    def track_payment(self, payment_hash: bytes) -> Any:
        status = self._inner.track_payment(payment_hash)
        return status if self._track is None else self._track(status)

    def get_node_pubkey(self) -> Any:
        return self._inner.get_node_pubkey() if self._key is ... else self._key


class Answering:
    """A `WalletClient` around the fake node's; ``change`` replaces each answer."""

    def __init__(self, lnd: FakeLnd, change: Callable[[WalletAnswer], Any]) -> None:
        self._inner, self._change = lnd.client(), change
        self.check_ready, self.get_info = self._inner.check_ready, self._inner.get_info

    def send(self, bolt11: str, **kwargs: Any) -> Any:
        return self._change(self._inner.send(bolt11, **kwargs))

    def track(self, payment_hash: bytes, **kwargs: Any) -> Any:
        return self._change(self._inner.track(payment_hash, **kwargs))


class Odd:
    """A value whose text and attributes can't be read."""

    def __str__(self) -> str:
        raise RecursionError("no text")

    __repr__ = __str__

    def __getattr__(self, name: str) -> Any:
        raise OverflowError(name)


class State(enum.Enum):
    SUCCEEDED = "succeeded"
    FAILED = "failed"


def source(client: Any, **kwargs: Any) -> LightningFundingSource:
    return LightningFundingSource(client=client, network="bitcoin-regtest", **kwargs)


def raising(error: BaseException) -> Callable[[Any], Any]:
    def do(_: Any) -> Any:
        raise error

    return do


def outcome(call: Callable[[], requests.Response]) -> requests.Response | RouteweilerError:
    """The response, or the error of ours; any other exception fails the test."""
    try:
        return call()
    except RouteweilerError as error:
        return error


def check_found(make_session: Any, paywall: Paywall, lnd: FakeLnd, books: Books, fee_msat: int | None = None) -> None:
    """A sane client on the same ledger uses the token, and the books equal what was paid, or the most that was allowed."""
    response = make_session(funding=[source(Wallet(lnd))]).get(paywall.url)
    assert response.status_code == 200
    (row,) = books.rows
    (payment,) = lnd.payments
    assert (payment.status, payment.sends) == ("SUCCEEDED", 1)
    assert row.preimage is not None
    assert row.fee_msat == payment.fee_msat if fee_msat is None else fee_msat
    (envelope,) = books.ledger.envelopes()
    assert (envelope.reserved_minor_units, envelope.settled_minor_units * 1000) == (0, row.amount_msat + row.fee_msat)


@pytest.mark.parametrize(
    "key",
    [None, "", "02", KEY[:-1], KEY + "0", f" {KEY}", f"{KEY}\n", KEY.encode(), bytes.fromhex(KEY), "0g" * 33, 2**200, Odd(), [KEY]],
    ids=lambda key: f"{type(key).__name__}-{len(str(key)) if not isinstance(key, Odd) else 0}",
)
def test_a_wallet_without_a_key_buys_nothing(key: object, make_session, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """Rows name their node by its key: two wallets without one would be asked about each other's payments."""
    done = outcome(lambda: make_session(funding=[source(Wallet(lnd, key=key))]).get(paywall.url))
    assert isinstance(done, FundingError)
    assert done.spent is False
    assert lnd.orders == []
    assert books.rows == []
    with pytest.raises(FundingError):
        LightningFundingSource.create(Wallet(lnd, key=key), "bitcoin-regtest")
    if key is not None:
        with pytest.raises(ValueError, match="node_pubkey"):
            source(Wallet(lnd), node_pubkey=key)


def test_a_key_in_capitals_is_the_same_key(make_session, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """Two spellings in the ledger would make two nodes of one."""
    wallet = Wallet(lnd, key=lnd.node_pubkey.upper())
    assert LightningFundingSource.create(wallet, "bitcoin-regtest").node_pubkey == lnd.node_pubkey
    assert make_session(funding=[source(wallet, node_pubkey=lnd.node_pubkey)]).get(paywall.url).status_code == 200
    assert books.rows[0].node_pubkey == lnd.node_pubkey


def test_create_raises_none_but_our_errors(lnd: FakeLnd) -> None:
    """Who catches requests' errors would miss a wallet's own."""
    wallet = Wallet(lnd)
    wallet.get_node_pubkey = lambda: raising(UnicodeError("boom"))(None)  # type: ignore[method-assign]
    with pytest.raises(FundingError, match="boom"):
        LightningFundingSource.create(wallet, "bitcoin-regtest")
    with pytest.raises(FundingError, match="get_node_pubkey"):
        LightningFundingSource.create(object(), "bitcoin-regtest")  # type: ignore[arg-type]


ODD_FEES = [
    None, -1, -(2**70), 2**62, 2**63, 10**30, 1.0, 0.5, float("nan"), float("inf"), Decimal(1), Decimal("NaN"), Fraction(1, 3),
    True, False, "1", "", b"1", [1], Odd(), MOST_MSAT + 1,
]  # fmt: skip


@pytest.mark.parametrize("fee", ODD_FEES, ids=lambda fee: type(fee).__name__)
@pytest.mark.parametrize("kind", ["three methods", "wallet client"])
def test_an_unsound_fee_books_the_most_that_was_allowed(
    kind: str, fee: object, make_session, paywall: Paywall, lnd: FakeLnd, books: Books
) -> None:
    """A bare TypeError would leave the paid row open for ever; a fee of -1 would give budget back."""
    lnd.fee_msat = FEE_MSAT
    client: Any = Wallet(lnd, track=lambda status: replace(status, fee_msat=fee))
    if kind == "wallet client":
        client = Answering(lnd, lambda answer: replace(answer, fee_msat=fee))
        assert isinstance(client, WalletClient)
    response = make_session(funding=[source(client)]).get(paywall.url)
    assert response.status_code == 200
    assert response.payment.fee_msat == MOST_MSAT
    assert books.rows[0].fee_msat == MOST_MSAT
    check_found(make_session, paywall, lnd, books, MOST_MSAT)


@pytest.mark.parametrize("fee", [0, 1, 999, MOST_MSAT])
def test_a_sound_fee_is_booked_as_told(fee: int, make_session, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """The budget would drift from the truth otherwise."""
    client = Wallet(lnd, track=lambda status: replace(status, fee_msat=fee))
    assert make_session(funding=[source(client)]).get(paywall.url).payment.fee_msat == fee
    assert books.rows[0].fee_msat == fee


def test_a_wallet_that_charged_more_than_it_was_allowed_is_booked_with_it(
    make_session, paywall, lnd: FakeLnd, books: Books
) -> None:
    """Some wallets take no fee limit. What they say they charged has left, so the budget has to count it."""
    client = Wallet(lnd, track=lambda status: replace(status, fee_msat=2_000))
    assert make_session(funding=[source(client, max_fee_msat=5)]).get(paywall.url).payment.fee_msat == 2_000


@pytest.mark.parametrize("amount", [None, -1, 1.5, 10**30, "10000", Odd()], ids=lambda each: type(each).__name__)
def test_the_amount_is_the_invoices_whatever_the_wallet_says(amount, make_session, paywall, lnd: FakeLnd, books: Books) -> None:
    """The amount comes from the signed invoice and from nowhere else."""
    client = Wallet(lnd, track=lambda status: replace(status, amount_msat=amount))
    assert make_session(funding=[source(client)]).get(paywall.url).payment.amount_msat == 10_000
    check_found(make_session, paywall, lnd, books)


@pytest.mark.parametrize(
    "form", [bytes.hex, lambda raw: raw.hex().upper(), bytearray, memoryview, lambda raw: raw.hex().encode()], ids=range(5)
)
@pytest.mark.parametrize("where", ["paid", "tracked", "both"])
def test_a_preimage_in_another_form_is_read(where: str, form, make_session, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """Most wallets' APIs give hex: a token mustn't be lost for that."""
    pay = form if where != "tracked" else None
    track = (lambda status: replace(status, preimage=form(status.preimage))) if where != "paid" else None
    assert make_session(funding=[source(Wallet(lnd, pay=pay, track=track))]).get(paywall.url).status_code == 200
    check_found(make_session, paywall, lnd, books)


NO_PREIMAGES = [None, b"", b"\1" * 31, b"\1" * 33, "", "11" * 31, "zz" * 32, "\u0661" * 64, 7, Odd(), [1] * 32, {}]


@pytest.mark.parametrize("preimage", NO_PREIMAGES, ids=lambda each: type(each).__name__)
@pytest.mark.parametrize("kind", ["three methods", "wallet client"])
def test_success_without_a_preimage_is_asked_about_again_later(
    kind: str, preimage: object, make_session, paywall: Paywall, lnd: FakeLnd, books: Books
) -> None:
    """Booked as settled, the paid token would be lost; taken for a failure, it would be paid for again."""
    client: Any = Wallet(lnd, pay=lambda _: preimage, track=lambda status: replace(status, preimage=preimage))
    if kind == "wallet client":
        client = Answering(lnd, lambda answer: replace(answer, preimage=preimage))
    session = make_session(funding=[source(client)], payment_timeout=0.6)
    done = outcome(lambda: session.get(paywall.url))
    assert isinstance(done, PaymentPendingError)
    assert done.spent is None
    assert [row.state for row in session.recover()] == [PaymentState.OPEN]
    check_found(make_session, paywall, lnd, books)


def test_a_wrong_preimage_of_32_bytes_is_booked_and_told(make_session, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """The money has left; the user has to hear that there is no token."""
    client = Wallet(lnd, pay=lambda _: b"x" * 32, track=lambda status: replace(status, preimage=b"x" * 32))
    assert isinstance(outcome(lambda: make_session(funding=[source(client)]).get(paywall.url)), PreimageMismatchError)
    assert books.rows[0].fee_msat == MOST_MSAT


ODD_STATUSES: dict[str, Callable[[PaymentStatus], Any]] = {
    "None": lambda _: None,
    "a dict": lambda status: {"state": status.state, "preimage": status.preimage},
    "a tuple": lambda status: (status.state, status.preimage, status.amount_msat, status.fee_msat),
    "a text": lambda status: status.state,
    "unreadable": lambda _: Odd(),
    "no attributes": lambda _: object(),
    "no state": lambda _: PaymentStatus(None),  # type: ignore[arg-type]
    "an enum": lambda _: PaymentStatus(State.FAILED),  # type: ignore[arg-type]
    "capitals": lambda _: PaymentStatus("FAILED"),  # type: ignore[arg-type]
    "another word": lambda _: PaymentStatus("settled"),  # type: ignore[arg-type]
    "a number": lambda _: PaymentStatus(3),  # type: ignore[arg-type]
    "TypeError": raising(TypeError("x")),
    "OverflowError": raising(OverflowError()),
    "UnicodeError": raising(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad")),
    "RecursionError": raising(RecursionError()),
    "StopIteration": raising(StopIteration()),
    "AssertionError": raising(AssertionError()),
    "our failure": raising(InvoicePaymentError("no")),
    "our refusal": raising(FundingError("no")),
    "requests' error": raising(requests.ConnectionError("gone")),
}


@pytest.mark.parametrize("oddity", ODD_STATUSES)
def test_a_status_that_cannot_be_read_proves_nothing(
    oddity: str, make_session, paywall: Paywall, lnd: FakeLnd, books: Books
) -> None:
    """Read as a failure it would free the reservation of a paid row; raised bare it would pass by every handler of ours."""
    client = Wallet(lnd, pay=raising(OSError("lost")), track=ODD_STATUSES[oddity])
    session = make_session(funding=[source(client)], payment_timeout=0.6)
    assert isinstance(outcome(lambda: session.get(paywall.url)), PaymentPendingError)
    assert [row.state for row in session.recover()] == [PaymentState.OPEN]
    check_found(make_session, paywall, lnd, books)


@pytest.mark.parametrize("state", ["succeeded", "SUCCEEDED", "in_flight", "failed", State.SUCCEEDED, None, 1], ids=str)
def test_a_preimage_that_fits_proves_the_payment_whatever_the_state(
    state: object, make_session, paywall: Paywall, lnd: FakeLnd, books: Books
) -> None:
    """Some wallets call a payment within their own walls failed, and give its preimage all the same."""

    def track(status: PaymentStatus) -> Any:
        return SimpleNamespace(state=state, preimage=status.preimage, fee_msat=status.fee_msat)

    client = Wallet(lnd, pay=raising(OSError("lost")), track=track)
    assert make_session(funding=[source(client)]).get(paywall.url).status_code == 200
    check_found(make_session, paywall, lnd, books)


@pytest.mark.parametrize("reason", [None, 7, b"NO_ROUTE", Odd(), "x" * 10_000, "\0\n", "\ud800", ["a"]], ids=range(8))
@pytest.mark.parametrize("kind", ["raised", "raised by a subclass", "wallet client"])
def test_a_failure_with_an_odd_reason_is_a_failure(
    kind, reason, make_session, paywall: Paywall, lnd: FakeLnd, books: Books
) -> None:
    """The reason is only told; a text that can't be stored mustn't keep the row from ending."""

    class MyError(InvoicePaymentError):
        failure_reason = reason  # type: ignore[assignment]

    lnd.fail_next("NO_ROUTE")
    client: Any = Wallet(lnd)
    error = MyError() if kind == "raised by a subclass" else InvoicePaymentError("no", failure_reason=reason)  # type: ignore[arg-type]
    client.pay_invoice = lambda bolt11, *, max_fee_msat: raising(error)(bolt11)
    if kind == "wallet client":
        client = Answering(lnd, lambda answer: replace(answer, reason=reason))
    session = make_session(funding=[source(client)])
    assert isinstance(outcome(lambda: session.get(paywall.url)), InvoicePaymentError)
    assert books.rows[0].state is PaymentState.DEAD
    assert books.ledger.envelope("default").reserved_minor_units == 0


@pytest.mark.parametrize(
    "error",
    [InvoicePaymentError("no", spent=True), InvoicePaymentError("no", spent=None), FundingError("no", spent=None)],
    ids=["paid", "not known", "not known either"],
)
def test_an_error_that_says_that_money_may_have_left_is_no_failure(
    error, make_session, paywall, lnd: FakeLnd, books: Books
) -> None:
    """The class says that nothing was spent, the error itself says otherwise: the reservation stays until the wallet is clear."""
    client = Wallet(lnd, pay=raising(error), track=lambda _: None)
    session = make_session(funding=[source(client)], payment_timeout=0.6)
    assert isinstance(outcome(lambda: session.get(paywall.url)), PaymentPendingError)
    check_found(make_session, paywall, lnd, books)


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError])
@pytest.mark.parametrize("where", ["pay", "track"])
def test_an_interrupt_passes_through_and_loses_nothing(where, interrupt, make_session, paywall, lnd: FakeLnd, books: Books) -> None:
    """Ctrl-C has to end the program; the row does the rest."""
    client = Wallet(lnd, **{where: raising(interrupt())})
    with pytest.raises(interrupt):
        make_session(funding=[source(client)]).get(paywall.url)
    check_found(make_session, paywall, lnd, books)


@pytest.mark.parametrize("error", [TypeError(), OverflowError(), RecursionError(), StopIteration(), RuntimeError("\ud800"), Odd])
@pytest.mark.parametrize("where", ["send", "track"])
def test_a_wallet_client_that_raises_proves_nothing(where, error, make_session, paywall, lnd: FakeLnd, books: Books) -> None:
    """After the intent is written every fault is an outcome that isn't known, and never a bare error of others."""
    client = Answering(lnd, lambda answer: answer)
    inner = client._inner

    def send(bolt11: str, **kwargs: Any) -> Any:
        inner.send(bolt11, **kwargs)
        return error() if error is Odd else raising(error)(bolt11)

    client.send = send  # type: ignore[method-assign]
    if where == "track":
        client.track = lambda payment_hash, **kwargs: error() if error is Odd else raising(error)(payment_hash)  # type: ignore[method-assign]
    done = outcome(lambda: make_session(funding=[source(client)], payment_timeout=0.6).get(paywall.url))
    if where == "track":
        assert isinstance(done, PaymentPendingError)
    check_found(make_session, paywall, lnd, books)


@pytest.mark.parametrize(
    "answer",
    [None, {}, "succeeded", WalletReply.SUCCEEDED, WalletAnswer(reply="dead"), WalletAnswer(reply=None), Odd()],  # type: ignore[arg-type]
    ids=range(7),
)
def test_an_answer_that_is_none_proves_nothing(answer: object, make_session, paywall, lnd: FakeLnd, books: Books) -> None:
    """The table of wallet rules has no line for it: a bare KeyError would be the caller's."""
    client = Answering(lnd, lambda _: answer)
    done = outcome(lambda: make_session(funding=[source(client)], payment_timeout=0.6).get(paywall.url))
    assert isinstance(done, PaymentPendingError)
    check_found(make_session, paywall, lnd, books)


@pytest.mark.parametrize("preimage", [b"x" * 32, None], ids=["wrong", "none"])
def test_a_wallet_client_that_claims_success_is_checked(preimage, make_session, paywall, lnd: FakeLnd, books: Books) -> None:
    """The ledger would meet a preimage that doesn't fit, and raise an AssertionError for a payment that was made."""
    client = Answering(lnd, lambda answer: replace(answer, preimage=preimage))
    done = outcome(lambda: make_session(funding=[source(client)], payment_timeout=0.6).get(paywall.url))
    assert isinstance(done, PreimageMismatchError if preimage else PaymentPendingError)


@pytest.mark.parametrize("where", ["send", "track"])
@pytest.mark.parametrize("reply", WalletReply)
def test_a_preimage_that_fits_proves_the_payment_whatever_the_reply(
    reply: WalletReply, where: str, make_session, paywall: Paywall, lnd: FakeLnd, books: Books
) -> None:
    """A wallet that calls a payment refused, and gives its preimage, has paid: bought again, it would be paid twice."""
    lnd.fee_msat = 500
    client = Answering(lnd, lambda answer: replace(answer, reply=reply))
    if where == "track":
        inner = client._inner

        def send(bolt11: str, **kwargs: Any) -> Any:
            inner.send(bolt11, **kwargs)
            raise OSError("lost")

        client.send = send  # type: ignore[method-assign]
    assert make_session(funding=[source(client)]).get(paywall.url).status_code == 200
    assert [payment.status for payment in lnd.payments] == ["SUCCEEDED"]
    books.check()


@pytest.mark.parametrize("question", ["own_fee_cap_msat", "spendable_msat"])
def test_an_amount_that_nobody_awaits_is_no_amount(question: str, make_session, paywall, lnd: FakeLnd, recwarn) -> None:
    async def ask(*args: Any, **kwargs: Any) -> int:
        return 0

    client = Answering(lnd, lambda answer: answer)
    setattr(client, question, ask)
    with pytest.raises(FundingError, match=question):
        make_session(funding=[source(client), source(client)]).get(paywall.url)
    gc.collect()
    assert not [each for each in recwarn if "never awaited" in str(each.message)]


class AsyncWallet:
    async def pay_invoice(self, bolt11: str, *, max_fee_msat: int) -> bytes:
        return b""

    async def track_payment(self, payment_hash: bytes) -> PaymentStatus:
        return PaymentStatus("failed")

    async def get_node_pubkey(self) -> str:
        return KEY


class HalfAsyncWallet(AsyncWallet):
    def get_node_pubkey(self) -> str:  # type: ignore[override]
        return KEY


class Hidden(HalfAsyncWallet):
    """Methods that return coroutines, though nothing tells that before they are called."""

    def __init__(self) -> None:
        inner = AsyncWallet()
        self.pay_invoice = lambda bolt11, *, max_fee_msat: inner.pay_invoice(bolt11, max_fee_msat=max_fee_msat)  # type: ignore[method-assign]
        self.track_payment = lambda payment_hash: inner.track_payment(payment_hash)  # type: ignore[method-assign]


class Crippled:
    def get_node_pubkey(self) -> str:
        return KEY


class OtherArguments(HalfAsyncWallet):
    def pay_invoice(self, invoice: str) -> bytes:  # type: ignore[override]
        return b""


class AsyncAnswering(Answering):
    async def send(self, bolt11: str, **kwargs: Any) -> Any:
        return None


@pytest.mark.parametrize("made", [AsyncWallet, HalfAsyncWallet, Crippled, OtherArguments, object], ids=lambda made: made.__name__)
def test_a_client_that_cannot_be_called_is_refused_before_anything_is_reserved(made, make_session, paywall, lnd, books) -> None:
    """Found when the payment is ordered, it would leave a row that nobody can end."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        done = outcome(lambda: make_session(funding=[source(made())]).get(paywall.url))
        gc.collect()
    assert isinstance(done, FundingError)
    assert done.spent is False
    assert made.__name__ in str(done)
    assert books.rows == []


def test_an_async_wallet_client_is_refused(make_session, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """Its send() would return a coroutine, and nobody would ever pay."""
    client = AsyncAnswering(lnd, lambda answer: answer)
    done = outcome(lambda: make_session(funding=[source(client)]).get(paywall.url))
    assert isinstance(done, FundingError)
    assert "async send()" in str(done)
    assert books.rows == []


def test_a_coroutine_that_nobody_awaits_is_closed(make_session, paywall: Paywall, lnd: FakeLnd, books: Books, recwarn) -> None:
    """Nothing was paid, but the wrapper may have ordered something first: the row stays until a sane client asks."""
    done = outcome(lambda: make_session(funding=[source(Hidden())], payment_timeout=0.6).get(paywall.url))
    gc.collect()
    assert isinstance(done, PaymentPendingError)
    assert "coroutine" in str(done)
    assert not [each for each in recwarn if "never awaited" in str(each.message)]


def test_a_client_that_changes_its_answers_is_paid_once(make_session, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """In flight, failed, unknown, paid: each in turn, for one payment that was made."""
    words = iter(["in_flight", None, "failed"])

    def track(status: PaymentStatus) -> Any:
        word = next(words, "end")
        return status if word == "end" else PaymentStatus(word)  # type: ignore[arg-type]

    client = Wallet(lnd, pay=raising(OSError("lost")), track=track)
    for _ in range(3):
        outcome(lambda: make_session(funding=[source(client)], payment_timeout=2).get(paywall.url))
    assert len([payment for payment in lnd.payments if payment.status == "SUCCEEDED"]) <= 2


class OwnSource:
    """A funding source of a program's own, whose methods do whatever they are told."""

    network = "bitcoin-regtest"
    max_fee_msat = None

    def __init__(self, lnd: FakeLnd, **does: Any) -> None:
        self._inner = lnd.funding()
        self.__dict__.update(does)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


@pytest.mark.parametrize("ready", [raising(KeyError("x")), lambda _: "", lambda _: None, lambda _: Odd()], ids=range(4))
def test_a_funding_source_that_is_not_ready_is_told(ready, make_session, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """A bare KeyError passes by every handler of ours."""
    done = outcome(lambda: make_session(funding=[OwnSource(lnd, ready=ready)]).get(paywall.url))
    assert isinstance(done, FundingError)
    assert books.rows == []


def test_a_funding_source_that_raises_is_asked_again(make_session, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """Every fault after the intent was written is an outcome that isn't known."""
    inner = lnd.funding()

    def send(bolt11: str, **kwargs: Any) -> Any:
        inner.send(bolt11, **kwargs)
        raise MemoryError("odd")

    own = OwnSource(lnd, send=send, track=lambda *args, **kwargs: Odd())
    done = outcome(lambda: make_session(funding=[own], payment_timeout=0.6).get(paywall.url))
    assert isinstance(done, PaymentPendingError)
    check_found(make_session, paywall, lnd, books)


def test_the_protocols_are_what_these_wallets_are(lnd: FakeLnd) -> None:
    """The tests above would prove nothing of clients that aren't taken for wallets."""
    assert isinstance(Wallet(lnd), LightningNodeClient)
    assert not isinstance(Wallet(lnd), WalletClient)
    assert isinstance(Answering(lnd, lambda answer: answer), WalletClient)
    info = Answering(lnd, lambda answer: answer).get_info()
    assert isinstance(info, NodeInfo)


@pytest.mark.parametrize("info", [None, SimpleNamespace(identity_pubkey=None, network=""), Odd()], ids=range(3))
def test_a_wallet_client_without_an_identity_buys_nothing(info: object, make_session, paywall, lnd: FakeLnd, books: Books) -> None:
    """Its rows couldn't be told apart from another wallet's."""
    client = Answering(lnd, lambda answer: answer)
    client.get_info = lambda **kwargs: info  # type: ignore[method-assign,assignment,return-value]
    assert isinstance(outcome(lambda: make_session(funding=[source(client)]).get(paywall.url)), FundingError)
    assert books.rows == []
