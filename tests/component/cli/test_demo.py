"""``routeweiler-sync demo``, as a newcomer runs it: a process of its own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from routeweiler_sync.cli import main
from routeweiler_sync.testing import FakeLnd
from tests.support.cli_process import ANY_TOKEN, TIMEOUT_S, bare_environ, demo


def test_the_demo_succeeds_wherever_it_runs(tmp_path: Path) -> None:
    """It is the first thing that anybody runs: behind a proxy, without a home, with an environment of its own, on any code page."""
    (tmp_path / "tmp").mkdir()
    shown = demo(
        TMPDIR=str(tmp_path / "tmp"),
        TEMP=str(tmp_path / "tmp"),
        HOME=str(tmp_path / "no" / "home"),
        PYTHONIOENCODING="ascii",
        ROUTEWEILER_LEDGER=str(tmp_path / "mine.db"),
        ROUTEWEILER_BUDGET="0 sat",
        **dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), "http://127.0.0.1:9"),
    )
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "402 Payment Required" in shown.stdout
    assert "BudgetExceededError" in shown.stdout
    assert "NO  " not in shown.stdout
    assert [path.name for path in tmp_path.rglob("*")] == ["tmp"]


@pytest.mark.slow
@pytest.mark.parametrize("columns", [80, 120])
def test_the_demo_is_plain_and_fits_the_screen(columns: int) -> None:
    """In a file or a narrow window it would be unreadable; and it shows no secret to whom it is shown."""
    shown = demo(COLUMNS=str(columns), PYTHONIOENCODING="utf-8").stdout
    assert "\x1b" not in shown
    assert max(map(len, shown.splitlines())) <= columns
    assert "Authorization: L402 <token>:<preimage>" in shown
    assert ANY_TOKEN.decode() not in shown
    assert not re.search(r"[0-9a-f]{64}", shown)


@pytest.mark.slow
def test_the_demos_colours_can_be_had_and_be_refused() -> None:
    """NO_COLOR is the user's word."""
    assert re.search(r"\x1b\[[0-9;]*3[0-9]m", demo(FORCE_COLOR="1", PYTHONIOENCODING="utf-8").stdout)
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", demo(FORCE_COLOR="1", NO_COLOR="1", PYTHONIOENCODING="utf-8").stdout)


def test_the_demo_fails_where_the_accounts_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """A demo that can't fail shows nothing: here lnd pays more than it says it charged, there it knows of two payments."""
    honest = FakeLnd.spent_msat.fget
    assert honest is not None
    monkeypatch.setattr(FakeLnd, "spent_msat", property(lambda lnd: honest(lnd) + 1))
    told = CliRunner().invoke(main, ["demo"])
    shown = " ".join(told.output.split())
    assert (told.exit_code, "didn't go as described: ledger, budget, trace and node agree" in shown) == (1, True)
    monkeypatch.undo()

    one = FakeLnd.payments.fget
    assert one is not None
    monkeypatch.setattr(FakeLnd, "payments", property(lambda lnd: one(lnd) * 2))
    told = CliRunner().invoke(main, ["demo"])
    assert (told.exit_code, "NO  one order, one payment" in told.output) == (1, True)


def test_the_demo_says_what_it_lacks() -> None:
    """Without the extra, a traceback would be all that a newcomer sees."""
    code = "import sys; sys.modules['cryptography'] = None; from routeweiler_sync.cli import main; main(['demo'])"
    done = subprocess.run(
        [sys.executable, "-c", code], env=bare_environ(), capture_output=True, encoding="utf-8", timeout=TIMEOUT_S
    )
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        'cryptography is missing: the demo needs the extra. Run: pip install "routeweiler-sync[testing]"'
    ]
