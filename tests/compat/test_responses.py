"""`responses` takes the place of HTTPAdapter.send: what is mocked is paid for as what is real."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import requests

from routeweiler_sync.testing import FakeLnd, Paywall, add_paywall
from tests.support.compat_walk import walk

from .conftest import PREIMAGE_CHARS, Books, Paying, library

responses = library("responses")

#: requests 2.28 and 2.29 take none newer than 0.23.1.
VERSION = tuple(int(part) for part in metadata.version("responses").split(".")[:3])

URL = "https://api.example"


def challenge(lnd: FakeLnd, token: str = "AGIAJEemVQUTEyNCR0exk7ek90Cg==", msat: int = 10_000) -> str:
    """A hand-written challenge: an opaque token and an invoice."""
    return f'L402 macaroon="{token}", invoice="{lnd.invoice(msat).bolt11}"'


def test_a_mocked_paywall_is_paid_like_a_real_one(session: requests.Session, lnd: FakeLnd, books: Books) -> None:
    """Programs that pay are tested with `responses`: what is mocked must behave as what is there."""
    with responses.RequestsMock() as mock:
        walk(session, add_paywall(mock, URL, lnd), books, base_url=URL)


def test_a_402_written_by_hand(session: requests.Session, lnd: FakeLnd, books: Books) -> None:
    """`responses.add(…, status=402, headers=…)`: the same URL added twice is answered in that order."""
    session.hooks["response"] = [lambda response, **kwargs: response.raise_for_status()]
    with responses.RequestsMock() as mock:
        mock.add("GET", URL + "/page", status=402, headers={"WWW-Authenticate": challenge(lnd)}, json={"error": "pay"})
        mock.add("GET", URL + "/page", json={"page": 1})
        response = session.get(URL + "/page")
        assert response.json() == {"page": 1}
        assert [each.json() for each in response.history] == [{"error": "pay"}]
        assert [call.response.status_code for call in mock.calls] == [402, 200]
        assert [("Authorization" in call.request.headers) for call in mock.calls] == [False, True]
        assert session.get(URL + "/page").payment.reused
    books.once()


@pytest.mark.skipif(VERSION < (0, 24), reason="header_matcher takes no pattern before responses 0.24")
def test_strict_and_ordered_registries(session: requests.Session, lnd: FakeLnd, books: Books) -> None:
    """With an ordered registry each answer is given once: one request too many, or too few, is an error."""
    session.hooks["response"] = [lambda response, **kwargs: response.raise_for_status()]

    def bears_a_token(request: requests.PreparedRequest) -> tuple[bool, str]:
        return re.fullmatch("L402 .+:[0-9a-f]{64}", request.headers.get("Authorization", "")) is not None, "no token"

    with responses.RequestsMock(assert_all_requests_are_fired=True, registry=responses.registries.OrderedRegistry) as mock:
        mock.add("POST", URL + "/page", status=402, headers={"WWW-Authenticate": challenge(lnd)})
        paid = [responses.matchers.json_params_matcher({"a": 1}), bears_a_token]
        mock.add("POST", URL + "/page", json={"paid": 1}, match=paid)
        mock.add("POST", URL + "/page", json={"paid": 2}, match=paid)
        assert session.post(URL + "/page", json={"a": 1}).json() == {"paid": 1}
        assert session.post(URL + "/page", json={"a": 1}).json() == {"paid": 2}
    books.once()


@responses.activate
def test_the_decorator_and_a_callback(session: requests.Session, lnd: FakeLnd, books: Books) -> None:
    """`@responses.activate` and `add_callback` are the library's first examples."""
    session.hooks["response"] = [lambda response, **kwargs: response.raise_for_status()]
    bodies: list[Any] = []

    def answer(request: requests.PreparedRequest) -> tuple[int, dict[str, str], bytes]:
        bodies.append(request.body)
        if "Authorization" in request.headers:
            return 200, {}, b"page"
        return 402, {"WWW-Authenticate": challenge(lnd)}, b""

    responses.add_callback(responses.PUT, re.compile(URL + "/.*"), callback=answer)
    assert session.put(URL + "/page", data=b"body").content == b"page"
    assert session.put(URL + "/page", data=b"body").payment.reused
    assert bodies == [b"body"] * 3
    assert len(responses.calls) == 3
    responses.assert_call_count(URL + "/page", 3)
    books.once()


def test_a_file_whose_place_its_bytes_have_taken(session: requests.Session, lnd: FakeLnd, books: Books, tmp_path: Path) -> None:
    """`responses` swaps a file for its bytes and leaves the position: to rewind those raises, after the payment."""
    path = tmp_path / "body"
    path.write_bytes(b"0123456789")
    session.hooks["response"] = [lambda response, **kwargs: response.raise_for_status()]
    with responses.RequestsMock() as mock, path.open("rb") as file, path.open("rb") as second:
        paywall = add_paywall(mock, URL, lnd)
        file.seek(3)
        assert session.post(URL + "/page", data=file).status_code == 200
        assert session.post(URL + "/page", files={"f": second}).payment.reused
    assert [each.body for each in paywall.requests[:2]] == [b"3456789"] * 2
    assert b"0123456789" in paywall.requests[2].body
    books.once()


def test_what_passes_through_is_paid_on_the_wire(session: requests.Session, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """Passed through by prefix or by `PassthroughResponse`, a page is a real one, with real money."""
    session.hooks["response"] = [lambda response, **kwargs: response.raise_for_status()]
    with responses.RequestsMock() as mock:
        mock.add_passthru(paywall.url_for("/prefix"))
        mock.add(responses.PassthroughResponse("POST", paywall.url_for("/one")))
        first = session.get(paywall.url_for("/prefix/x"))
        assert (first.status_code, [each.status_code for each in first.history]) == (200, [402])
        assert session.post(paywall.url_for("/one"), data=b"body").payment.reused
        with pytest.raises(requests.ConnectionError, match="Connection refused by Responses"):
            session.get(paywall.url_for("/elsewhere"))
    assert [each.body for each in paywall.requests if each.paid] == [b"", b"body"]
    books.once()


def test_retries_as_responses_emulates_them(paying: Paying, lnd: FakeLnd, books: Books) -> None:
    """`responses` reads the adapter's Retry: a 402 on its list must not be asked for until it gives up; a 503 is."""
    from urllib3.util.retry import Retry

    plain = requests.Session()
    plain.mount("https://", paying.adapter(max_retries=Retry(total=3, status_forcelist=[402, 503], backoff_factor=0)))
    with responses.RequestsMock(registry=responses.registries.OrderedRegistry) as mock:
        mock.add("GET", URL + "/page", status=402, headers={"WWW-Authenticate": challenge(lnd)})
        mock.add("GET", URL + "/page", status=503)
        mock.add("GET", URL + "/page", body=b"page")
        response = plain.get(URL + "/page")
        assert (response.content, [each.status_code for each in response.history]) == (b"page", [402])
    plain.close()
    books.once()


def test_a_foreign_adapter_under_responses(session: requests.Session, lnd: FakeLnd, books: Books) -> None:
    """`responses` stands below every HTTPAdapter: the user's own one as well, and the net is needed here too."""
    session.mount("https://", requests.adapters.HTTPAdapter(max_retries=2))
    with responses.RequestsMock() as mock:
        walk(session, add_paywall(mock, URL, lnd), books, base_url=URL)


def test_an_exception_as_body(session: requests.Session, lnd: FakeLnd, books: Books) -> None:
    """`body=ConnectionError()` is how a lost connection is played: on the paid request, the token is kept."""
    session.hooks["response"] = [lambda response, **kwargs: response.raise_for_status()]
    with responses.RequestsMock(registry=responses.registries.OrderedRegistry) as mock:
        mock.add("GET", URL + "/page", status=402, headers={"WWW-Authenticate": challenge(lnd)})
        mock.add("GET", URL + "/page", body=requests.ConnectionError("gone"))
        mock.add("GET", URL + "/page", body=b"page")
        with pytest.raises(requests.ConnectionError, match="gone"):
            session.get(URL + "/page")
        assert session.get(URL + "/page").content == b"page"
    assert len(lnd.payments) == 1
    if len(books.lines) > 1:  # a naive way tells nothing of a call that fails
        books.once()


def test_a_response_callback_sees_each_exchange_once(session: requests.Session, lnd: FakeLnd, books: Books) -> None:
    """`response_callback` is shown what was on the wire; it may change the page, and the page is paid once all the same."""
    seen = []

    def callback(response: requests.Response) -> requests.Response:
        seen.append(response.status_code)
        response.marked = True
        return response

    session.hooks["response"] = [lambda response, **kwargs: response.raise_for_status()]
    with responses.RequestsMock(response_callback=callback) as mock:
        add_paywall(mock, URL, lnd)
        assert session.get(URL + "/page").marked
    assert seen == [402, 200]
    books.once()


@pytest.mark.skipif(VERSION < (0, 25, 3), reason="the recorder loses headers before responses 0.25.3, the challenge among them")
def test_recorded_to_a_file_and_replayed(session: requests.Session, paywall: Paywall, books: Books, tmp_path: Path) -> None:
    """The recorder writes answers down, not requests: no preimage is in its file.

    Replayed, the old 402 costs nothing, and the token that it meets is as good as before.
    """
    from responses._recorder import Recorder

    path = tmp_path / "recorded.yaml"
    session.hooks["response"] = [lambda response, **kwargs: response.raise_for_status()]
    recorder = Recorder()

    @recorder.record(file_path=path)
    def run() -> None:
        session.get(paywall.url)

    run()
    assert b"402" in path.read_bytes()
    books.assert_no_secret_in(path, of=PREIMAGE_CHARS)
    if b"WWW-Authenticate" not in path.read_bytes():
        return  # an older recorder leaves headers out: what it replays asks for nothing
    with responses.RequestsMock(assert_all_requests_are_fired=False) as mock:
        mock._add_from_file(path)
        assert session.get(paywall.url).content == paywall.content
    assert [each.status for each in paywall.requests] == [402, 200]
    assert session.get(paywall.url).payment.reused
    books.once()
