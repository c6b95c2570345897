"""A script that is configured by variables alone pays from each kind of wallet, and from the one that was chosen."""

from __future__ import annotations

import copy
import os
import pickle
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from routeweiler_sync import FundingError, Session
from routeweiler_sync._core import env_vars
from routeweiler_sync.config.wallets import WALLETS
from routeweiler_sync.testing import FakeLnd, Paywall
from tests.support.wallet_environments import NamedWallet, named_wallet


@pytest.fixture
def environ(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Sets the variables of a wallet. No others are set, but the ledger's and the trace's."""
    for name in env_vars.PAYER_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ROUTEWEILER_LEDGER", str(tmp_path / "ledger.db"))
    monkeypatch.setenv("ROUTEWEILER_TRACE", str(tmp_path / "trace.jsonl"))

    def set_(variables: dict[str, str]) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_


@pytest.fixture(params=[wallet.name for wallet in WALLETS])
def wallet(request: pytest.FixtureRequest, lnd: FakeLnd) -> Iterator[NamedWallet]:
    """Each wallet of the table in its turn: a new one needs a fake here."""
    with named_wallet(request.param, lnd) as named:
        yield named


def test_a_script_pays_from_the_wallet_that_its_variables_name(
    wallet: NamedWallet, environ, lnd: FakeLnd, paywall: Paywall, tmp_path: Path
) -> None:
    """A legacy script changes its import line, and nothing else."""
    environ(wallet.environ)
    with Session() as session:
        first, again = session.get(paywall.url), session.get(paywall.url)
        texts = repr(session) + str(vars(session)) + session._repr_html_() + pickle.dumps(session).decode("latin-1")
        copied = copy.copy(session).get(paywall.url)
    assert [response.status_code for response in (first, again, copied)] == [200, 200, 200]
    assert [payment.status for payment in lnd.payments] == ["SUCCEEDED"]
    texts += (tmp_path / "trace.jsonl").read_text()
    for secret in wallet.secrets:
        assert secret not in texts


def test_a_pickled_session_pays_as_the_environment_says(wallet: NamedWallet, environ, lnd: FakeLnd, paywall: Paywall) -> None:
    """A pool of workers gets its session so. The key is in the environment, and needn't be in the pickle."""
    environ(wallet.environ)
    with Session() as session:
        data = pickle.dumps(session)
    with pickle.loads(data) as session:
        assert session.get(paywall.url).status_code == 200
    assert len(lnd.payments) == 1


@pytest.mark.parametrize("chosen", [wallet.name for wallet in WALLETS])
def test_of_several_the_chosen_one_pays(chosen: str, environ, paywall: Paywall, lnd: FakeLnd, tmp_path: Path) -> None:
    """Money would leave another wallet than the one that was meant for the script."""
    with ExitStack() as stack:
        nodes = {}
        for name in (wallet.name for wallet in WALLETS):
            node = lnd if name == chosen else stack.enter_context(FakeLnd())
            if name not in ("lnd", "lnd-rest") or name == chosen:
                environ(stack.enter_context(named_wallet(name, node)).environ)
                nodes[name] = node
        environ({"ROUTEWEILER_WALLET": chosen})
        with Session() as session:
            assert session.get(paywall.url).status_code == 200
        assert {name: len(node.payments) for name, node in nodes.items() if node.payments} == {chosen: 1}


def test_a_chosen_wallet_that_isnt_named_stops_payments_and_nothing_else(environ, lnd: FakeLnd, paywall: Paywall) -> None:
    """Free pages need no wallet. And the wallet that is named is not the one that was chosen."""
    environ(dict(lnd.environ) | {"ROUTEWEILER_WALLET": "lnbits"})
    with Session() as session:
        assert session.get(paywall.url_for("/free")).status_code == 200
        with pytest.raises(FundingError, match="ROUTEWEILER_WALLET is lnbits, and no variable names that wallet") as refused:
            session.get(paywall.url)
    assert "LNBITS_URL and LNBITS_ADMIN_KEY" in str(refused.value)
    assert refused.value.spent is False
    assert lnd.orders == []


def test_a_changed_choice_holds_for_later_sessions(environ, lnd: FakeLnd, paywall: Paywall) -> None:
    """A notebook chooses another wallet in a running process."""
    with named_wallet("lnbits", lnd) as lnbits:
        environ({**lnd.environ, **lnbits.environ, "ROUTEWEILER_WALLET": "lnd"})
        with Session() as session:
            assert "LndClient" in repr(session)
        environ({"ROUTEWEILER_WALLET": "lnbits"})
        with Session() as session:
            assert "LnbitsClient" in repr(session)
            assert session.get(paywall.url).status_code == 200
