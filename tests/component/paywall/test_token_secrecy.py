"""Promise 6: a token goes only to the origin that issued it, and is written nowhere but in the ledger."""

from __future__ import annotations

import copy
import logging
import os
import pickle
import stat

import pytest
import requests

from routeweiler_sync import TokenRefusedError, TraceSink
from routeweiler_sync.testing import FakeLnd, Paywall
from tests.support.accounts import Books


def secrets_of(books: Books, lnd: FakeLnd) -> list[str]:
    """What must not be found anywhere: tokens, and the node's macaroon. (The preimage is the payer's proof, and in the trace.)"""
    macaroon = open(lnd.macaroon_path, "rb").read()  # noqa: SIM115
    return [row.token for row in books.rows] + [macaroon.hex()]


@pytest.mark.slow
def test_no_secret_is_in_a_log_a_repr_a_trace_or_a_pickle(
    make_session, paywall: Paywall, lnd: FakeLnd, books: Books, caplog
) -> None:
    """A log that is sent to a vendor, a pickle in a cache, an exception in an issue: each would give the access away."""
    caplog.set_level(logging.DEBUG)
    session = make_session()
    response = session.get(paywall.url)
    again = session.get(paywall.url)
    paywall.faults.refuse_tokens = True
    books.ledger.mark(books.rows[0].payment_hash)
    errors = []
    other = make_session()
    paywall.add_service("/x", name="x", price_msat=1_000)
    with pytest.raises(TokenRefusedError) as caught:
        other.get(paywall.url_for("/x"))
    errors.append(caught.value)
    rows = books.rows
    assert len(rows) == 2
    said = [
        caplog.text,
        books.trace_path.read_text(),
        repr(rows),
        repr(session),
        repr(session.__dict__),
        repr(session._payer.__dict__),
        repr(session._payer.token_cache.token_for_path(rows[0].origin, "/paid")),
        repr(response),
        repr(response.payment),
        repr(again.request),
        repr(list(books.ledger.envelopes())),
        *[f"{error!r} {error} {error.args}" for error in errors],
    ]
    pickles = [pickle.dumps(thing) for thing in (session, response, again, again.request, *errors)]
    pickles += [pickle.dumps(response.history), pickle.dumps(copy.copy(errors[0]))]
    for secret in secrets_of(books, lnd):
        for text in said:
            assert secret not in text
        for data in pickles:
            assert secret.encode() not in data
    preimages = [row.preimage for row in rows]
    for data in pickles:
        assert not any(p.encode() in data for p in preimages)


def test_files_are_the_users_alone(session, paywall: Paywall, books: Books, tmp_path) -> None:
    """A ledger that others can read hands them the tokens."""
    if os.name != "posix":
        pytest.skip("file modes are POSIX")
    session.get(paywall.url)
    sqlite_trace = TraceSink.sqlite(tmp_path / "trace.db")
    session._payer.trace_sink = sqlite_trace
    session.get(paywall.url)
    files = [path for path in tmp_path.iterdir() if path.is_file()]
    assert {path.name for path in files} >= {"ledger.db", "trace.jsonl", "trace.db"}
    for path in files:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_a_token_goes_to_no_other_origin(session, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """Another port is another origin; a redirect there mustn't carry the token along."""
    session.get(paywall.url)
    with Paywall(lnd, service="elsewhere") as other:
        target = other.url_for("/free/page")
        assert session.get(target).status_code == 200
        assert session.get(paywall.url_for(f"/redirect?to={target}")).status_code == 200
        paywall.respond = lambda request: (302, {"Location": target}, b"")
        assert session.get(paywall.url).url == target
        assert not any(request.authorized for request in other.requests)
        assert not any("Authorization" in request.headers for request in other.requests)
        same_port_other_name = paywall.url.replace("127.0.0.1", "localhost")
        before = len(paywall.requests)
        session.get(same_port_other_name)
        assert paywall.requests[before].authorized is False


def test_a_request_of_ours_that_is_sent_again_is_like_any_other(session, paywall: Paywall, lnd: FakeLnd) -> None:
    """`session.send(response.request)` is how programs repeat a call."""
    response = session.get(paywall.url)
    assert "Authorization" in response.request.headers
    assert "Authorization" not in response.request.copy().headers
    assert session.send(response.request).status_code == 200
    assert len(lnd.payments) == 1
    unpickled = pickle.loads(pickle.dumps(response))
    assert unpickled.content == paywall.content
    assert "Authorization" not in unpickled.request.headers


@pytest.mark.parametrize("is_ours", [True, False])
def test_an_error_of_the_network_holds_no_token(session, paywall: Paywall, books: Books, is_ours: bool) -> None:
    """Loggers and error reporters write down `error.request`: on the paid request, and on one that a token was sent along with."""
    if not is_ours:
        session.mount("http://", requests.adapters.HTTPAdapter())
    for _ in range(2):
        paywall.cut_next("after")
        with pytest.raises(requests.ConnectionError) as caught:
            session.post(paywall.url, data=b"body")
        assert caught.value.request.body == b"body"
        assert "Authorization" not in caught.value.request.headers
    assert session.post(paywall.url, data=b"body").payment.reused
    assert len(books.lnd.payments) == 1
    books.check()
