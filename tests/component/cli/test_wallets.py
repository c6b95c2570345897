"""The commands over each kind of wallet that the environment can name: `doctor`, `get`, `payments recover` and `budget audit`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from routeweiler_sync.config.wallets import WALLETS
from routeweiler_sync.testing import FakeLnd, Paywall
from tests.support.cli_process import TIMEOUT_S, bare_environ
from tests.support.wallet_environments import NamedWallet, named_wallet

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(params=[wallet.name for wallet in WALLETS])
def wallet(request: pytest.FixtureRequest, lnd: FakeLnd) -> Iterator[NamedWallet]:
    with named_wallet(request.param, lnd) as named:
        yield named


@pytest.fixture
def run(wallet: NamedWallet, tmp_path: Path) -> Run:
    """Runs a command with the wallet's variables; no secret is in what it prints."""
    files = {"ROUTEWEILER_LEDGER": str(tmp_path / "ledger.db"), "ROUTEWEILER_TRACE": str(tmp_path / "trace.jsonl")}

    def run_command(*args: str, **environ: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "routeweiler_sync", *args],
            env=bare_environ(**wallet.environ | files | environ),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )
        for secret in wallet.secrets:
            assert secret not in done.stdout + done.stderr
        return done

    return run_command


@pytest.mark.slow
def test_doctor_buy_recover_and_audit(run: Run, wallet: NamedWallet, lnd: FakeLnd, paywall: Paywall) -> None:
    """A wallet that pays, and whose payments no command can look at, would be a purse without a lid."""
    looked = run("doctor", "--json")
    assert looked.returncode == 0, looked.stdout
    checks = {each["check"]: each for each in json.loads(looked.stdout)["checks"]}
    assert json.loads(looked.stdout)["ready"] is True
    named = [name for name in wallet.environ if name != "ROUTEWEILER_NETWORK"]
    assert all(name in checks["wallet"]["what"] for name in named), checks["wallet"]
    if wallet.name not in ("lnd", "lnd-rest"):  # whose macaroon permits everything here
        assert {each["verdict"] for each in checks.values()} == {"ok"}
    assert {"wallet", "node", "network", "balance"} <= checks.keys()
    assert lnd.payments == []

    bought = run("get", paywall.url)
    assert bought.returncode == 0, bought.stderr
    assert [payment.status for payment in lnd.payments] == ["SUCCEEDED"]
    assert run("payments", "recover").returncode == 0

    audited = run("budget", "audit", "--json")
    assert audited.returncode == 0, audited.stdout + audited.stderr
    outcome = json.loads(audited.stdout)
    assert (outcome["agrees"], outcome["complete"], outcome["nodeCompared"], outcome["traceCompared"]) == (True, True, 1, 1)
    assert outcome["spentMsat"] == lnd.spent_msat


@pytest.mark.slow
def test_the_audit_judges_no_row_by_another_wallet_s_list(run: Run, wallet: NamedWallet, lnd: FakeLnd, paywall: Paywall) -> None:
    """What another wallet has paid isn't in this one's list, and would be taken for lost money."""
    assert run("get", paywall.url).returncode == 0
    with FakeLnd() as other:
        audited = run("budget", "audit", "--json", **other.environ, ROUTEWEILER_WALLET="lnd")
    outcome = json.loads(audited.stdout)
    assert (audited.returncode, outcome["agrees"], outcome["nodeCompared"]) == (0, True, 0)
    assert "From other nodes" in str(outcome["notes"])


def test_doctor_names_a_wallet_that_is_down(run: Run, wallet: NamedWallet) -> None:
    """A look at a wallet ends, whatever the wallet does, and says which one it was."""
    wallet.stop()
    looked = run("doctor", "--json")
    assert looked.returncode == 1
    wrong = [each for each in json.loads(looked.stdout)["checks"] if each["verdict"] == "wrong"]
    assert wrong
    assert all(each["advice"] for each in wrong)
    assert "127.0.0.1" in str(wrong)


def test_doctor_warns_of_other_wallets_that_are_named(run: Run, wallet: NamedWallet) -> None:
    """The money leaves one of them, and the user may mean the other."""
    others = {"LND_GRPC_HOST": "127.0.0.1:1", "NWC_URL": "nostr+walletconnect://" + "1f" * 32, "LNBITS_URL": "https://l.example"}
    named = {name: value for name, value in others.items() if name not in wallet.environ}
    looked = run("doctor", "--json", **named)
    (found,) = (each for each in json.loads(looked.stdout)["checks"] if each["check"] == "wallet")
    if wallet.name == "lnd":
        assert found["verdict"] == "warning"
        assert "LNBITS_URL, NWC_URL would name one too and isn't used" in found["what"]
        assert "ROUTEWEILER_WALLET to lnd or lnbits or nwc" in found["advice"]
    chosen = run("doctor", "--json", **named, ROUTEWEILER_WALLET=wallet.name)
    (found,) = (each for each in json.loads(chosen.stdout)["checks"] if each["check"] == "wallet")
    assert found["verdict"] == "ok"
    assert "chosen by ROUTEWEILER_WALLET" in found["what"]
