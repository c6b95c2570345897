"""requests' own test suite, every test of it, with our session and with our names.

The first run makes the suite ready, which pip needs a package index for. Where there is none the tests are skipped and say so;
with ROUTEWEILER_REQUIRE_COMPAT=1, as in CI, they fail instead.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from .requests_suite import FORMS, Form, Run, SuiteUnavailableError, make_ready, rewrite, run

REQUIRE = "ROUTEWEILER_REQUIRE_COMPAT"
#: The suite is made ready, then all forms run at the same time, asleep for most of it: some two minutes on two cores.
TEST_TIMEOUT_S = 1500

#: Why a test may be skipped, in requests' words: what it tests isn't on this system, or not in this urllib3.
SKIPS = ("Test only on Windows", "cStringIO is None", "urllib3 2.0 removed that warning", "urllib3 2.x encodes all strings")
#: requests expects it to fail: it says so of what the method can't do.
XFAILS = {"test_response_iter_lines_reentrant"}
#: The suite has had more than 500 tests for all of the versions that we take.
MIN_PASSED = 500

pytestmark = [pytest.mark.timeout(TEST_TIMEOUT_S), pytest.mark.slow]


@pytest.fixture(scope="module")
def suite() -> Iterator[Callable[[Form], Run]]:
    """What the suite came to in a form."""
    try:
        ready = make_ready()
    except SuiteUnavailableError as error:
        if os.environ.get(REQUIRE) == "1":
            pytest.fail(f"{REQUIRE}=1, but {error}", pytrace=False)
        pytest.skip(str(error))
    with ThreadPoolExecutor(len(FORMS)) as pool:
        runs: dict[Form, Future[Run]] = {form: pool.submit(run, form, ready) for form in FORMS}
        yield lambda form: runs[form].result()


def test_requests_alone_passes_its_own_suite_here(suite: Callable[[Form], Run]) -> None:
    """If tests failed or were skipped without us, the same under our session would be taken for requests' way."""
    plain = suite("plain")
    assert plain.exit_code == 0, plain.output
    assert len(plain.ids("passed")) >= MIN_PASSED
    assert plain.ids("passed", "skipped", "xfailed") == set(plain.outcomes)
    assert [why for why in plain.reasons.values() if why and not any(known in why for known in SKIPS)] == []
    assert {test.rpartition("::")[2] for test in plain.ids("xfailed")} <= XFAILS


@pytest.mark.parametrize("form", ["session", "names"])
def test_requests_suite_passes_with_a_paying_session(suite: Callable[[Form], Run], form: Form) -> None:
    """A program that changes one line would see something other than requests: an error, a header, a redirect, a cookie."""
    ours, plain = suite(form), suite("plain")
    assert ours.exit_code == 0, ours.output
    assert ours.violations == []
    assert {test: outcome for test, outcome in ours.outcomes.items() if outcome != plain.outcomes.get(test)} == {}
    assert set(ours.outcomes) == set(plain.outcomes), "tests were lost"
    assert len(ours.ids("passed")) == len(plain.ids("passed"))
    # Were the suite to run on plain sessions, all of this would be true and mean nothing.
    assert min(ours.counts[what] for what in ("sessions", "sends", "adapter_sends")) > 200, ours.counts
    assert (ours.counts["trace_lines"] > 200) == (form == "names"), "the environment names a trace, for sessions that heed it"


def test_the_suite_imports_our_names_only(suite: Callable[[Form], Run]) -> None:
    """Were an import left as it is, that module's tests would speak of requests itself, and pass."""
    rewritten = suite("names").rewritten
    modules = {test.partition("::")[0] for test in suite("names").outcomes}
    assert modules <= set(rewritten)
    assert rewritten["tests/test_requests.py"] >= 10


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import requests\n", "import routeweiler_sync as requests\n"),
        ("import requests as rq  # noqa\n", "import routeweiler_sync as rq  # noqa\n"),
        ("import requests.adapters\n", "import routeweiler_sync.adapters, routeweiler_sync as requests\n"),
        ("import os, requests; requests.get\n", "import os, routeweiler_sync as requests; requests.get\n"),
        (
            "if 1:\n  from requests.models import (  # é\n    Request, )\n",
            "if 1:\n  from routeweiler_sync.models import (  # é\n    Request, )\n",
        ),
        ('é = "import requests"; from requests import get\n', 'é = "import requests"; from routeweiler_sync import get\n'),
        ("from .requests import get\nimport requests_mock\n", "from .requests import get\nimport requests_mock\n"),
    ],
)
def test_imports_are_rewritten_and_nothing_else(source: str, expected: str) -> None:
    """A rewriting that misses an import, or turns a string, would have the suite test something else than it says."""
    assert rewrite(source) == (expected, int(source != expected))
