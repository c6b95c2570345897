"""A program that is instrumented: what it puts around gRPC's channels neither stops a purchase halfway nor raises out of a call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from routeweiler_sync import FundingError, Routeweiler
from routeweiler_sync.funding.replies import WalletReply
from routeweiler_sync.testing import FakeLnd, Paywall
from tests.support.accounts import Books

TIMEOUT_S = 30.0


class Wrapped:
    """A channel around another one, whose calls are made by ``unary`` and ``stream``. It is no `grpc.Channel`, as many aren't."""

    def __init__(self, inner: grpc.Channel, unary: Callable | None, stream: Callable | None) -> None:
        self.inner, self.unary, self.stream = inner, unary, stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        call = self.inner.unary_unary(*args, **kwargs)
        return call if self.unary is None else lambda *a, **k: self.unary(call, *a, **k)  # type: ignore[misc]

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        call = self.inner.unary_stream(*args, **kwargs)
        return call if self.stream is None else lambda *a, **k: self.stream(call, *a, **k)  # type: ignore[misc]


class Hooks(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):
    """Interceptors in the way that grpc documents, which change nothing."""

    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        return continuation(details, request)

    def intercept_unary_stream(self, continuation: Any, details: Any, request: Any) -> Any:
        return continuation(details, request)


class GeneratorHooks(Hooks):
    def intercept_unary_stream(self, continuation: Any, details: Any, request: Any) -> Any:
        yield from continuation(details, request)


class FailingStreamHooks(Hooks):
    def intercept_unary_stream(self, continuation: Any, details: Any, request: Any) -> Any:
        raise AttributeError("'generator' object has no attribute 'code'")


class BareHooks(Hooks):
    """Returns the answer in place of the call, which grpc doesn't expect."""

    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        return continuation(details, request).result()


class CodelessError(grpc.RpcError):
    """An error of a wrapper's own: no code(), no details()."""


def generator(call: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
    yield from call(*args, **kwargs)


def codeless(call: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
    try:
        yield from call(*args, **kwargs)
    except grpc.RpcError as error:
        raise CodelessError from error


def nothing(call: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
    return iter(())


def broken(call: Any, *args: Any, **kwargs: Any) -> Any:
    raise TypeError("stream() got an unexpected keyword argument 'metadata'")


def not_iterable(call: Any, *args: Any, **kwargs: Any) -> Any:
    return 7


def exhausted(call: Any, *args: Any, **kwargs: Any) -> Any:
    raise MemoryError


def with_its_call(call: Any, *args: Any, **kwargs: Any) -> Any:
    return call.with_call(*args, **kwargs)


def as_future(call: Any, *args: Any, **kwargs: Any) -> Any:
    return call.future(*args, **kwargs)


def wrapped(unary: Callable | None = None, stream: Callable | None = None) -> Callable[[grpc.Channel], Any]:
    return lambda channel: Wrapped(channel, unary, stream)


def hooked(hooks: Any) -> Callable[[grpc.Channel], Any]:
    return lambda channel: grpc.intercept_channel(channel, hooks)


BUYS = {
    "generator": wrapped(stream=generator),
    "generator, and unary as a pair": wrapped(stream=generator, unary=with_its_call),
    "unary as a pair": wrapped(unary=with_its_call),
    "unary as a future": wrapped(unary=as_future),
    "interceptors": hooked(Hooks()),
    "generator interceptor": hooked(GeneratorHooks()),
    "twice": lambda channel: Wrapped(grpc.intercept_channel(channel, Hooks(), GeneratorHooks()), None, generator),
}
REFUSES = {
    "stream without code": wrapped(stream=codeless),
    "empty stream": wrapped(stream=nothing),
    "stream raises": wrapped(stream=broken),
    "stream isn't one": wrapped(stream=not_iterable),
    "stream out of memory": wrapped(stream=exhausted),
    "unary raises": wrapped(unary=broken),
    "unary is another thing": wrapped(unary=not_iterable),
    "interceptor raises": hooked(FailingStreamHooks()),
    "interceptor returns the answer": hooked(BareHooks()),
    "no channel": lambda channel: None,
}


@pytest.fixture
def wrap_channels(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[grpc.Channel], Any]], None]:
    real = grpc.secure_channel

    def wrap(make: Callable[[grpc.Channel], Any]) -> None:
        monkeypatch.setattr(grpc, "secure_channel", lambda *args, **kwargs: make(real(*args, **kwargs)))

    return wrap


@pytest.mark.parametrize("way", BUYS)
def test_a_wrapped_channel_pays_once_and_the_payment_is_found_again(
    way: str, wrap_channels: Callable, lnd: FakeLnd, paywall: Paywall, books: Books, make_session: Callable[..., Routeweiler]
) -> None:
    """An AttributeError out of the call would lose a page that is paid, with its reservation held for ever."""
    wrap_channels(BUYS[way])
    session = make_session()
    assert session.get(paywall.url).status_code == 200
    assert session.recover() is not None
    assert [payment.status for payment in lnd.payments] == ["SUCCEEDED"]
    hung = lnd.invoice(10_000)
    lnd.drop_next("after_init")
    client = lnd.client()
    sent = client.send(hung.bolt11, payment_hash=hung.payment_hash, max_fee_msat=0, timeout_s=TIMEOUT_S)
    assert sent.reply is WalletReply.UNKNOWN
    followed = client.track(hung.payment_hash, timeout_s=TIMEOUT_S, follow=True)
    assert (followed.reply, followed.preimage) == (WalletReply.SUCCEEDED, hung.preimage)


@pytest.mark.parametrize("way", REFUSES)
def test_a_channel_that_cannot_work_is_refused_before_anything_is_reserved(
    way: str, wrap_channels: Callable, lnd: FakeLnd, paywall: Paywall, books: Books, make_session: Callable[..., Routeweiler]
) -> None:
    """Found only once the order is out, the row could never end, and its amount would stay reserved."""
    wrap_channels(REFUSES[way])
    with pytest.raises(FundingError, match="gRPC") as caught:
        make_session().get(paywall.url)
    assert caught.value.spent is False
    assert not lnd.orders
    assert all(each.reserved_minor_units == 0 for each in books.ledger.envelopes())


@pytest.mark.parametrize("raised", [AttributeError("code"), MemoryError(), TypeError("x"), CodelessError(), RuntimeError("odd")])
def test_whatever_a_channel_raises_once_the_order_may_have_left_is_an_unknown_outcome(
    raised: Exception, wrap_channels: Callable, lnd: FakeLnd
) -> None:
    """Raised, it would skip the table that knows what to do about a payment whose outcome isn't known."""
    secret = Path(lnd.macaroon_path).read_bytes().hex()

    def breaks_under_the_order(call: Any, request: Any, **kwargs: Any) -> Iterator[Any]:
        if "payment_request" not in request.DESCRIPTOR.fields_by_name:
            yield from call(request, **kwargs)
            return
        for _ in call(request, **kwargs):
            raise type(raised)(*raised.args, secret)

    wrap_channels(wrapped(stream=breaks_under_the_order))
    invoice = lnd.invoice(10_000)
    client = lnd.client()
    sent = client.send(invoice.bolt11, payment_hash=invoice.payment_hash, max_fee_msat=0, timeout_s=TIMEOUT_S)
    assert sent.reply is WalletReply.UNKNOWN
    assert secret not in (sent.reason or "")
    assert client.track(invoice.payment_hash, timeout_s=TIMEOUT_S, follow=True).reply is WalletReply.SUCCEEDED


def test_an_odd_channel_costs_no_question_more_where_nothing_is_wrapped(lnd: FakeLnd) -> None:
    """The check of the streams is for wrapped channels: all others would pay for it at each start."""
    lnd.client().check_ready(TIMEOUT_S)
    assert lnd.calls["TrackPaymentV2"] == 0
