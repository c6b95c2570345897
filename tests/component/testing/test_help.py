"""The kit explains itself where people look: in ``help()``, in signatures, and in the text of an assertion that fails."""

from __future__ import annotations

import inspect
import os
import pydoc
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import requests
import responses

from routeweiler_sync import Routeweiler, testing
from routeweiler_sync.testing import FakeLnd, Faults, Paywall, PaywallRequest, add_paywall, pytest_plugin
from tests.support.accounts import Books

TIMEOUT_S = 120
#: What the recipes leave out: their imports, and the program under test.
PRELUDE = """
import os, subprocess, sys
import pytest, responses
from routeweiler_sync import BudgetExceededError, PaymentPendingError, Routeweiler
from routeweiler_sync.testing import FakeLnd, Paywall, add_paywall

def my_program(session, url):
    session.get(url).raise_for_status()
"""
SCRIPT = "import requests, sys\nfor number in range(50):\n    requests.get(f'{sys.argv[1]}/page/{number}').raise_for_status()\n"


def page() -> str:
    return pydoc.plain(pydoc.render_doc(testing))


def pytest_run(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the tests in ``folder`` as their author would. Where the package is installed, pytest loads the plugin by itself."""
    alone = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(Path(testing.__file__).parents[2])}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "routeweiler_sync.testing.pytest_plugin", "-p", "no:cacheprovider", "."]
    return subprocess.run(command, cwd=folder, env=alone, capture_output=True, text=True, timeout=TIMEOUT_S)


@pytest.mark.slow
def test_the_recipes_of_the_help_page_work(tmp_path: Path) -> None:
    """Recipes are copied as they stand."""
    recipes = [textwrap.dedent(block) for block in re.findall(r"(?m)^(?: {4}.*\n+)+", testing.__doc__ or "")]
    tests = [recipe for recipe in recipes if recipe.startswith("def test_")]
    (loose,) = [recipe for recipe in recipes if recipe.startswith("with ")]
    assert len(tests) == 5
    loose_test = "def test_without_pytest(tmp_path, monkeypatch, capsys):\n    monkeypatch.chdir(tmp_path)\n"
    loose_test += textwrap.indent(loose, "    ") + "    assert capsys.readouterr().out == 'paid content\\n\\n'\n"
    (tmp_path / "test_recipes.py").write_text("\n".join([PRELUDE, *tests, loose_test]), "utf-8")
    (tmp_path / "my_script.py").write_text(SCRIPT, "utf-8")
    done = pytest_run(tmp_path)
    assert done.returncode == 0, done.stdout
    assert "6 passed" in done.stdout


def test_help_names_fixtures_classes_and_faults() -> None:
    """Who types ``help(routeweiler_sync.testing)`` would see a list of private modules."""
    text = page()
    fixtures = re.findall(r"^@pytest.fixture\ndef (\w+)", inspect.getsource(pytest_plugin), re.MULTILINE)
    assert sorted(fixtures) == ["fake_lnd", "paying_session", "paywall"]
    for name in fixtures:
        assert f"``{name}``" in text
    for name in testing.__all__:
        assert name in text
    assert "class FakeLnd(" in text
    assert "class Paywall(" in text
    told = testing.__doc__ or ""
    for fault in (name for name in vars(FakeLnd) if name.endswith("_next") and name not in ("split_next", "wrong_preimage_next")):
        assert f"``{fault}``" in told
    assert set(testing.__all__) <= set(dir(testing)), "completion in a notebook finds them"


def test_every_argument_of_a_paywall_is_explained_with_its_default() -> None:
    """``**options`` in a signature sends its reader to the source."""
    explained = Paywall.__doc__ or ""
    shown = dict(inspect.signature(Paywall).parameters)
    for name, parameter in shown.items():
        assert parameter.kind is not inspect.Parameter.VAR_KEYWORD
        if parameter.default is inspect.Parameter.empty:
            assert f"- ``{name}``: " in explained
            continue
        (default,) = re.findall(rf"``{name}=(.+?)``", explained)
        assert eval(default.replace("\\\\", "\\")) == parameter.default, name
    on_a_mock = {name for name in inspect.signature(add_paywall).parameters if name not in ("mock", "url")}
    assert on_a_mock == set(shown) - {"ssl_context"}
    service = {name for name in inspect.signature(Paywall.add_service).parameters if name not in ("self", "prefix", "name")}
    assert service == set(shown) - {"lnd", "ssl_context", "service", "content", "respond", "faults"}
    faults = inspect.getdoc(Faults) or ""
    assert all(f"- ``{name}``: " in faults for name in inspect.signature(Faults).parameters)


def test_paid_for_tells_what_was_paid_for(lnd: FakeLnd, paywall: Paywall, session: Routeweiler) -> None:
    """A test that counts requests by hand takes a 402 for a sale."""
    assert not paywall.paid_for("/a b")
    requests.get(paywall.url_for("/a%20b"), timeout=TIMEOUT_S)
    assert not paywall.paid_for("/a b")
    for query in ("", "?x=1", "?x=2"):
        session.get(paywall.url_for("/a%20b" + query))
    session.get(paywall.url_for("/free"))
    assert len(lnd.payments) == 1
    assert [request.query for request in paywall.paid_for("/a%20b")] == ["", "x=1", "x=2"]
    assert paywall.paid_for(paywall.url_for("/a%20b")) == paywall.paid_for("/a%20b")
    assert [request.query for request in paywall.paid_for("/a%20b?x=2")] == ["x=2"]
    assert not paywall.paid_for("/a%20b?")[1:]
    assert not paywall.paid_for("/a")
    assert not paywall.paid_for("/free"), "what costs nothing isn't paid for"
    assert isinstance(paywall.paid_for("/a%20b")[0], PaywallRequest)


def test_paid_for_refuses_what_it_cant_judge(paywall: Paywall) -> None:
    """``assert not paywall.paid_for("archive")`` would hold for ever, for want of a slash."""
    for page in ("archive", "", paywall.base_url.replace("127.0.0.1", "localhost") + "/paid"):
        with pytest.raises(ValueError, match=r"another server|begins with a slash"):
            paywall.paid_for(page)


def test_paid_for_works_on_a_mock(lnd: FakeLnd, session: Routeweiler) -> None:
    with responses.RequestsMock() as mock:
        api = add_paywall(mock, "https://api.example", lnd)
        session.get("https://api.example/weather")
    assert len(api.paid_for("/weather")) == len(api.paid_for("https://api.example/weather")) == 1
    assert not api.paid_for("/")


@pytest.mark.parametrize(("amount_msat", "fee_msat", "sat"), [(10_000, 0, 10), (10_001, 0, 11), (10_000, 1, 11), (9_500, 500, 10)])
def test_spent_sat_rounds_up(lnd: FakeLnd, amount_msat: int, fee_msat: int, sat: int) -> None:
    """A limit that was passed by a fraction of a sat was passed."""
    assert lnd.spent_sat == 0
    lnd.fee_msat = fee_msat
    lnd.client().pay_invoice(lnd.invoice(amount_msat).bolt11, max_fee_msat=1_000)
    assert (lnd.spent_msat, lnd.spent_sat) == (amount_msat + fee_msat, sat)


FAILING = """
def test_spent(fake_lnd, paying_session, paywall):
    paying_session.get(paywall.url)
    fake_lnd.fail_next()
    assert fake_lnd.spent_sat == 20

def test_paid(paywall, paying_session):
    paying_session.get(paywall.url_for("/free"))
    assert paywall.paid_for("/weather")

def test_not_paid(paywall, paying_session):
    paying_session.get(paywall.url)
    assert not paywall.paid_for("/paid")

def test_statuses(paywall, paying_session):
    paying_session.get(paywall.url)
    assert len(paywall.requests) == 1
"""


@pytest.mark.slow
def test_an_assertion_that_fails_says_what_happened(tmp_path: Path) -> None:
    """``assert []`` and an object's address say nothing."""
    (tmp_path / "test_failing.py").write_text(FAILING, "utf-8")
    done = pytest_run(tmp_path)
    assert "4 failed" in done.stdout
    for text in (
        ": 1 SUCCEEDED, spent 10 sat>.spent_sat",
        "</weather wasn't paid for: the paywall had 1 request: GET /free 200>",
        "</paid was paid for in 1 request, with 1 payment>",
        ": 2 requests, the last: GET /paid 402, GET /paid 200>.requests",
    ):
        assert text in done.stdout


def test_texts_stay_short_and_hold_no_secret(lnd: FakeLnd, paywall: Paywall, session: Routeweiler, books: Books) -> None:
    """A failed assertion's text goes to the log of a CI that others read; pytest cuts longer texts in the middle."""
    for number in range(30):
        session.get(paywall.url_for(f"/page/{number}"))
    (row,) = books.rows
    for text in map(repr, (lnd, paywall, paywall.paid_for("/page/1"), paywall.paid_for("/none"))):
        assert len(text) < 240
        for secret in (row.token, row.preimage):
            assert secret not in text
