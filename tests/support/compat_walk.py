"""The whole way with a session, as all libraries of this folder must leave it."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import requests

from routeweiler_sync.testing import Paywall
from routeweiler_sync.testing.paywall import PaywallLogic

if TYPE_CHECKING:
    from tests.compat.conftest import Books

OTHER_PRICE_MSAT = 25_000
FILE = b"0123456789"


def walk(
    session: Any,
    paywall: PaywallLogic,
    books: Books,
    *,
    base_url: str | None = None,
    has_history: bool = True,
    asks_first: bool = False,
    file_from: int = 4,
    **kwargs: Any,
) -> None:
    """Free, paid, paid for before, redirected, with a body, and with one that is paid for: two payments, a line for each call.

    A `raise_for_status` hook of the user's, on the session, is there all the time and never sees a 402. ``has_history``: the 402
    hangs on the response that was bought. ``asks_first``: a token may go along only once a 402 has asked for it. ``file_from``:
    where the file stands that is sent. ``kwargs`` go along with each request.
    """
    base_url = base_url if base_url is not None else paywall.base_url if isinstance(paywall, Paywall) else ""
    paywall.add_service("/other", name="other", price_msat=OTHER_PRICE_MSAT)
    seen: list[int] = []

    def hook(response: requests.Response, **kwargs: Any) -> None:
        seen.append(response.status_code)
        response.raise_for_status()

    session.hooks["response"] = [hook]
    calls = len(books.lines)

    def ask(method: str, path: str, **more: Any) -> requests.Response:
        nonlocal calls
        seen.clear()
        response: requests.Response = session.request(method, base_url + path, **kwargs | more)
        assert response.status_code == 200
        assert set(seen) <= {200, 302, 307}, f"the user's hook saw {seen}"
        assert seen, "the user's hook wasn't called"
        calls += 1
        assert len(books.lines) == calls, "not one trace line a call"
        return response

    free = ask("GET", "/free")
    assert (free.content, free.payment, free.history) == (b"free\n", None, [])

    bought = ask("GET", "/paid")
    assert bought.content == paywall.content
    assert (bought.payment.amount_msat, bought.payment.reused) == (10_000, False)
    assert [each.status_code for each in bought.history] == [402] * has_history
    books.once()

    again = ask("GET", "/paid")
    assert (again.content, again.payment.reused) == (paywall.content, True)
    assert [each.status_code for each in again.history] == [402] * asks_first
    redirected = ask("GET", f"/redirect?to={base_url}/paid")
    assert (redirected.content, redirected.payment.reused) == (paywall.content, True)
    assert [each.status_code for each in redirected.history if not (asks_first and each.status_code == 402)] == [302]

    before = len(paywall.requests)
    posted = ask("POST", f"/redirect?status=307&to={base_url}/other/form", data={"a": "1"})
    assert (posted.payment.amount_msat, posted.payment.reused) == (OTHER_PRICE_MSAT, False)
    assert [each.status_code for each in posted.history] == [307, *[402] * has_history]
    file = io.BytesIO(FILE)
    file.seek(file_from)
    ask("PUT", "/other/file", data=file)
    met = [(each.method, each.status, each.body) for each in paywall.requests[before:]]
    assert [each for each in met if each[1] != 402] == [
        ("POST", 307, b"a=1"),
        ("POST", 200, b"a=1"),
        ("PUT", 200, FILE[file_from:]),
    ]
    assert {each[2] for each in met if each[1] == 402} <= {b"a=1", FILE[file_from:]}
    assert len(books.lnd.payments) == 2
    books.check()
