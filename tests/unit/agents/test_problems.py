"""What each error means for an agent."""

from __future__ import annotations

import pytest
import requests

from routeweiler_sync import errors
from routeweiler_sync.agents.problems import MAX_MESSAGE_CHARS, problem_of


def kinds(of: type[errors.RouteweilerError] = errors.RouteweilerError) -> list[type[errors.RouteweilerError]]:
    own = [each for each in of.__subclasses__() if each.__module__ == errors.__name__]
    return [of, *(kind for each in own for kind in kinds(each))]


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("has_paid", [False, True])
def test_each_error_says_what_became_of_the_money_and_what_an_agent_can_do(
    kind: type[errors.RouteweilerError], has_paid: bool
) -> None:
    """An agent can't call `session.recover()`, and would invent something else."""
    error = kind("It happened.", advice="Call session.recover(), or set ROUTEWEILER_BUDGET.", payment_hash="ab" * 32)
    found = problem_of(error, method="GET", has_paid=has_paid)
    assert (found.code, found.message, found.payment_hash) == (kind.code, "It happened.", "ab" * 32)
    assert found.spent == (None if error.spent is None else error.spent or has_paid)
    assert found.advice
    assert "session" not in found.advice
    assert "ROUTEWEILER" not in found.advice
    assert found.advice != "Correct the URL, the method or the headers."
    if found.spent is None:
        assert found.retryable  # only the same call brings such a payment to its end


@pytest.mark.parametrize(
    ("error", "method", "retryable"),
    [
        (requests.ConnectionError("gone"), "GET", True),
        (requests.ReadTimeout("slow"), "GET", True),
        (requests.ConnectionError("gone"), "POST", False),
        (requests.ReadTimeout("slow"), "DELETE", False),
        (requests.TooManyRedirects("round"), "GET", False),
        (requests.exceptions.SSLError("false certificate"), "GET", False),
        (requests.exceptions.InvalidURL("what?"), "GET", False),
        (ValueError("what?"), "GET", False),
    ],
)
def test_only_what_can_be_repeated_without_harm_is_called_retryable(error: Exception, method: str, retryable: bool) -> None:
    """A POST that was carried out would be sent twice."""
    for has_paid in (False, True):
        found = problem_of(error, method=method, has_paid=has_paid)
        assert (found.retryable, found.spent, found.code) == (retryable, has_paid, type(error).__name__)
        assert ("What was paid is kept" in found.advice) == has_paid


def test_a_message_is_one_line_and_holds_no_password() -> None:
    """Messages go to models, and to their providers."""
    error = requests.ConnectionError("http://me:secret@host.example/ \x1b[31m failed\n" + "x" * 5_000)
    message = problem_of(error, method="GET", has_paid=False).message
    assert "secret" not in message
    assert message.isprintable()
    assert len(message) == MAX_MESSAGE_CHARS
