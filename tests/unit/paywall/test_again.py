"""The copy of a request that goes out with a token, or once more."""

from __future__ import annotations

from typing import Any

import pytest
import requests
from requests.structures import CaseInsensitiveDict

from routeweiler_sync.paywall.replay import again


class Own(CaseInsensitiveDict):  # type: ignore[type-arg]
    """Headers of a program's own, which know best how they are copied."""

    def copy(self) -> Own:
        return Own({**self, "X-Copied": "yes"})


GIVEN: dict[str, Any] = {
    "those of requests": CaseInsensitiveDict([("X-B", "1"), ("x-a", b"2"), (b"X-C", "3")]),
    "none": CaseInsensitiveDict(),
    "a dict": {"X-B": "1"},
    "a program's own": Own({"X-B": "1"}),
}


@pytest.mark.parametrize("which", GIVEN)
def test_a_copy_has_the_headers_that_a_copy_of_requests_has(which: str) -> None:
    """A header would be lost or spelt in another way, or a token would get onto the caller's own request."""
    request = requests.Request("GET", "http://pages.example/").prepare()
    request.headers = GIVEN[which]
    before, expected = list(GIVEN[which].items()), GIVEN[which].copy()
    made = again(request, [])
    assert type(made.headers) is type(expected)
    assert list(made.headers.items()) == list(expected.items())
    made.headers["Authorization"] = "L402 x:y"
    made.headers.pop("X-B", None)
    assert list(GIVEN[which].items()) == before


def test_a_copy_of_a_request_without_headers_has_some() -> None:
    """A token has nowhere to go else."""
    request = requests.PreparedRequest()
    assert type(again(request, []).headers) is CaseInsensitiveDict
