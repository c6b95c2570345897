"""README.md tells no lies: what it says to run is run here, what it shows is what comes out.

``python -m tests.component.test_readme`` puts the demo's output of now into it.
"""

from __future__ import annotations

import inspect
import re
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from routeweiler_sync import errors
from routeweiler_sync.cli.demo import SIX_LINES
from routeweiler_sync.testing import FakeLnd, Paywall
from tests.support.accounts import Books
from tests.support.cli_process import TIMEOUT_S, Command, bare_environ, demo

PATH = Path(__file__).parents[2] / "README.md"
README = PATH.read_text("utf-8")

#: How long the lines that need no node may take, twice, on a machine with much else to do.
PASTED_S_MAX = 60
#: What differs from one demo to the next.
CHANGING = {
    r"127\.0\.0\.1:\d+": "127.0.0.1:PORT",
    r"(?m)^ *(<1|\d+) ms": "TIME",
    r"\b[0-9a-f]{16}…": "HASH",
    r"lnbcrt100n1p\w+…": "INVOICE",
    r"in \d+ min": "in SOME min",
    r"routeweiler-sync \d+\.\d+\.\d+\S*": "routeweiler-sync VERSION",
    r"(?m) +$": "",
}


def block(mark: str) -> str:
    """The fenced block that follows ``<!-- mark -->``."""
    found = re.search(rf"<!-- {re.escape(mark)} -->\n```\w*\n(.*?)```\n", README, re.DOTALL)
    assert found is not None, f"README.md has no block {mark!r}"
    return found[1]


def test_the_bill_says_what_was_paid(tmp_path: Path, lnd: FakeLnd, paywall: Paywall) -> None:
    """Whoever wonders what it cost would find that the lines for it don't run."""
    lnd.fee_msat = 1_000
    ledger_path = tmp_path / "ledger.db"
    program = block("bill").replace("https://example.com/weather", paywall.url)
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=bare_environ(**lnd.environ, ROUTEWEILER_LEDGER=str(ledger_path)),
        cwd=tmp_path,
        capture_output=True,
        encoding="utf-8",
        timeout=TIMEOUT_S,
    )
    assert (done.returncode, done.stderr) == (0, "")
    payment, spent, budget, bill = done.stdout.splitlines()
    assert payment.startswith("Payment(payment_hash=")
    assert spent == "11000"
    assert budget == "<EnvelopeRow 'default': 11 sat spent, 0 sat reserved, 9989 sat left>"
    assert bill == "<Spending: 11 sat in 1 payment, fees 1 sat, 1 origin>"


def test_the_example_runs_and_its_trace_answers_the_query(tmp_path: Path, lnd: FakeLnd, paywall: Paywall, books: Books) -> None:
    """The first lines that anybody copies wouldn't work."""
    lnd.fee_msat = 1_000
    program = block("example")
    for theirs, ours in {'network="bitcoin"': 'network="bitcoin-regtest"', "https://example.com/weather": paywall.url}.items():
        assert program.count(theirs) == 1
        program = program.replace(theirs, ours)
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=bare_environ(**lnd.environ, ROUTEWEILER_LEDGER=str(books.ledger_path)),
        cwd=tmp_path,
        capture_output=True,
        encoding="utf-8",
        timeout=TIMEOUT_S,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(paywall.content.decode())
    assert f"Payment(payment_hash='{lnd.payments[0].payment_hash}', amount_msat=10000, fee_msat=1000" in done.stdout
    assert next(books.ledger.envelopes()).id == "weather"
    books.check()
    with closing(sqlite3.connect(tmp_path / "trace.db")) as trace:
        assert trace.execute(block("query")).fetchall() == [(paywall.base_url, 1, 11.0)]


def test_six_lines_pay_without_a_node(tmp_path: Path) -> None:
    """Who pastes them into an empty folder wouldn't get a page, or would find the test's payments in his own ledger."""
    program = block("first")
    assert [line for line in program.splitlines() if line] == SIX_LINES.splitlines(), "the demo shows the same ones"
    environ = bare_environ(ROUTEWEILER_LEDGER=str(tmp_path / "mine.db"), HOME=str(tmp_path / "home"))
    begun = time.monotonic()
    for _ in range(2):  # it may be pasted again
        done = subprocess.run(
            [sys.executable, "-c", program], env=environ, cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=TIMEOUT_S
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("paid content\n Payment(")
        assert "amount_msat=10000" in done.stdout
    assert time.monotonic() - begun < PASTED_S_MAX
    assert {path.name for path in tmp_path.iterdir()} <= {"first.db", "first.db-wal", "first.db-shm", "first.db.lock"}


def test_the_recipe_tests_a_script(tmp_path: Path) -> None:
    """The question that everybody has before a script may pay; the recipe would pass with a script that doesn't stop."""
    recipe = block("recipe")
    assert len(recipe.splitlines()) <= 12
    (tmp_path / "test_recipe.py").write_text(recipe, "utf-8")
    alone = bare_environ(PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "routeweiler_sync.testing.pytest_plugin", "-p", "no:cacheprovider", "."]
    for after, code in {"": 0, "\n        if number == 2: break": 1}.items():
        script = f"def main(session, url):\n    for number in range(50):\n        session.get(url + f'/page/{{number}}'){after}\n"
        (tmp_path / "my_script.py").write_text(script, "utf-8")
        done = subprocess.run(command, cwd=tmp_path, env=alone, capture_output=True, encoding="utf-8", timeout=TIMEOUT_S)
        assert done.returncode == code, done.stdout


def test_one_line_makes_a_program_pay(lnd: FakeLnd, paywall: Paywall, books: Books) -> None:
    """Whoever changes that line in a script of years finds a 402 in his data, and no word of what is missing."""
    program = block("drop-in").replace("https://example.com/weather", paywall.url) + "print(response.text, end='')"
    environ = {"ROUTEWEILER_LEDGER": str(books.ledger_path), "ROUTEWEILER_TRACE": str(books.trace_path)}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=bare_environ(**lnd.environ, **environ, ROUTEWEILER_BUDGET="20 sat/call"),
        capture_output=True,
        timeout=TIMEOUT_S,
    )
    assert (done.returncode, done.stderr, done.stdout) == (0, b"", paywall.content)
    assert [payment.amount_msat for payment in lnd.payments] == [10_000]
    books.check()


@pytest.mark.slow
def test_the_demo_shows_what_the_readme_shows() -> None:
    """A README whose output is of another time shows what isn't there."""

    def shape(text: str) -> list[str]:
        for pattern, name in CHANGING.items():
            text = re.sub(pattern, name, text)
        return text.strip().splitlines()

    assert shape(block("demo")) == shape(demo(COLUMNS="80", PYTHONIOENCODING="utf-8").stdout)


@pytest.mark.slow
def test_the_macaroon_can_do_what_paying_needs(books: Books, paywall: Paywall, lnd: FakeLnd, tmp_path: Path) -> None:
    """Too narrow, and nobody who follows the README can pay; so they take the admin's."""
    command = Command(tmp_path, lnd, books)
    paths = re.findall(r"uri:(\S+)", block("macaroon"))
    assert len(paths) == 3
    assert command("get", paywall.url, LND_MACAROON_PATH=lnd.bake_macaroon(*paths)) == 0
    for missing in paths:
        if missing.endswith("/TrackPaymentV2"):
            continue  # asked only in doubt
        rest = [path for path in paths if path != missing]
        paywall.revoke_tokens()
        assert command("get", paywall.url, LND_MACAROON_PATH=lnd.bake_macaroon(*rest)) == 3


def test_the_table_of_errors_is_whole_and_true() -> None:
    """Who handles errors by it would take a pending payment for none."""
    told = {}
    for names, spent in re.findall(r"^\| (`.+?) \| `(True|False|None)` \|", README, re.MULTILINE):
        told.update(dict.fromkeys(re.findall(r"`(\w+)`", names), spent))
    public = {
        name: str(error.spent)
        for name, error in inspect.getmembers(errors, inspect.isclass)
        if issubclass(error, errors.RouteweilerError) and error is not errors.RouteweilerError
    }
    assert told == public


@pytest.mark.parametrize("command_line", ["demo", "tests"])
def test_the_set_up_is_one_line_each(command_line: str) -> None:
    """What CI runs from the README, and newcomers copy, is one command."""
    assert len(block(f"command: {command_line}").splitlines()) == 1


def test_names_in_the_readme_are_there() -> None:
    """A name that isn't there is a promise that isn't kept."""
    import routeweiler_sync

    found: dict[str, Any] = {}
    imports, _, expression = block("budget").rpartition("\n\n")
    exec(f"{imports}\nenvelope = {expression}", found)
    assert found["envelope"].per_hour_minor_units == 500
    names = set(re.findall(r"`(LndClient|TraceSink|Ledger|Funding|LightningFundingSource|StaticRate)(?:\.(\w+))?[`(]", README))
    assert len(names) >= 5
    for owner, attribute in names:
        thing = getattr(routeweiler_sync, owner)
        assert not attribute or hasattr(thing, attribute), f"{owner}.{attribute}"


if __name__ == "__main__":
    shown = re.sub(r"(?m) +$", "", demo(COLUMNS="80", PYTHONIOENCODING="utf-8").stdout)
    PATH.write_text(README.replace(block("demo"), shown), "utf-8")
