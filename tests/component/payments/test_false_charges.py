"""A charge that contradicts itself, or can't be answered, is refused before lnd hears of anything."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from routeweiler_sync import ChallengeMismatchError, ChallengeParseError, RouteweilerError
from routeweiler_sync.testing import FakeLnd
from tests.support.accounts import Books
from tests.support.http_server import server


def _line(lnd: FakeLnd, *, details: dict[str, Any] | None = None, request: dict[str, Any] | None = None, **params: str) -> str:
    """Return a charge of 10 sat with other values than the true ones; None leaves one of methodDetails out."""
    invoice = lnd.invoice(10_000)
    inner = {"invoice": invoice.bolt11, "paymentHash": invoice.payment_hash.hex(), "network": "regtest", **(details or {})}
    said = {
        "amount": "10",
        "currency": "sat",
        "methodDetails": {name: value for name, value in inner.items() if value is not None},
        **(request or {}),
    }
    encoded = base64.urlsafe_b64encode(json.dumps(said).encode()).decode().rstrip("=")
    all_params = {"id": "1", "realm": "r", "method": "lightning", "intent": "charge", "request": encoded, **params}
    return "Payment " + ", ".join(f'{name}="{value}"' for name, value in all_params.items())


FALSE: dict[str, tuple[dict[str, Any], type[RouteweilerError]]] = {
    "amount below": ({"request": {"amount": "1"}}, ChallengeMismatchError),
    "amount above": ({"request": {"amount": "11"}}, ChallengeMismatchError),
    "amount in msat": ({"request": {"amount": "10000"}}, ChallengeMismatchError),
    "another's hash": ({"details": {"paymentHash": "ab" * 32}}, ChallengeMismatchError),
    "another network": ({"details": {"network": "mainnet"}}, ChallengeMismatchError),
    "no network": ({"details": {"network": None}}, ChallengeMismatchError),
    "amount zero": ({"request": {"amount": "0"}}, ChallengeParseError),
    "amount a number": ({"request": {"amount": 10}}, ChallengeParseError),
    "dollars": ({"request": {"currency": "usd"}}, ChallengeParseError),
    "no invoice": ({"details": {"invoice": None}}, ChallengeParseError),
    "no id": ({"id": ""}, ChallengeParseError),
    "another header": ({"header": "Cookie"}, ChallengeParseError),
    "no time": ({"expires": "soon"}, ChallengeParseError),
}


@pytest.mark.parametrize("name", FALSE)
def test_a_false_charge_is_refused_and_nothing_is_spent(make_session, lnd: FakeLnd, books: Books, name: str) -> None:
    """If failing: a server gets more than its word, or is paid for what it can't deliver."""
    changed, error = FALSE[name]
    with server(lambda handler: (402, [("WWW-Authenticate", _line(lnd, **changed))], b"pay")) as url:
        session = make_session()
        for ask in (session.get, lambda url: session.quote("GET", url)):
            with pytest.raises(error) as caught:
                ask(url)
            assert caught.value.spent is False
            assert caught.value.response is not None
            assert "Nothing was spent" in str(caught.value)
        assert make_session(unpayable="return").get(url).content == b"pay"
    assert lnd.payments == []
    assert books.rows == []
    assert [line["outcome"]["error"]["code"] for line in books.lines if line["outcome"]["error"]] == [error.code] * 3


def test_beside_a_false_charge_l402_is_paid(make_session, lnd: FakeLnd) -> None:
    """If failing: a server's fault in the scheme that isn't wanted costs it its customers."""

    def answer(handler: Any) -> Any:
        if handler.headers["Authorization"]:
            return 200, [], b"page"
        l402 = f'L402 token="{base64.b64encode(b"x" * 40).decode()}", invoice="{lnd.invoice(5_000).bolt11}"'
        return 402, [("WWW-Authenticate", _line(lnd, request={"amount": "1"})), ("WWW-Authenticate", l402)], b""

    with server(answer) as url:
        assert make_session().get(url).content == b"page"
    assert [payment.amount_msat for payment in lnd.payments] == [5_000]
