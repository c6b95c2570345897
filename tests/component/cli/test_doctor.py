"""``routeweiler-sync doctor`` as a user runs it: what it prints, where, and its exit code."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from routeweiler_sync.funding.lnd import rights
from routeweiler_sync.testing import FakeLnd
from tests.support.accounts import Books
from tests.support.cli_process import NO_NODE, Command

CHECKS = (
    "python", "libraries", "wallet", "proxies", "node", "certificate", "state", "macaroon", "rights", "version", "network", "sync",
    "clock", "channels", "balance", "trace", "ledger", "budget", "payable",
)  # fmt: skip


@pytest.fixture
def command(tmp_path: Path, lnd: FakeLnd, books: Books) -> Command:
    return Command(tmp_path, lnd, books)


@pytest.fixture
def payer(lnd: FakeLnd) -> str:
    return lnd.bake_macaroon(*rights.PAYING, rights.BALANCE)


def test_in_a_pipe_each_check_is_one_line(command: Command, payer: str) -> None:
    """``doctor | grep wrong`` must give whole sentences."""
    assert command("doctor", LND_MACAROON_PATH=payer) == 0
    *lines, summary = command.out.decode().splitlines()
    assert [tuple(line.split()[:2]) for line in lines] == [("ok", check) for check in CHECKS]
    assert summary == "Ready to pay."
    assert command.err == b""
    assert list(command.folder.iterdir()) == []


def test_something_wrong_is_exit_1_and_says_what_to_do(command: Command) -> None:
    """A script that starts a job must be able to ask first."""
    assert command("doctor", **NO_NODE) == 1
    *lines, summary = command.out.decode().splitlines()
    (wrong,) = (line for line in lines if line.startswith("wrong"))
    assert re.match(r"wrong +wallet +the environment names no wallet .*\. Set ROUTEWEILER_LNDCONNECT to", wrong)
    assert summary == "1 thing is wrong. What depends on that wasn't looked at."


def test_a_warning_is_exit_0(command: Command) -> None:
    """The macaroon of an admin pays as well."""
    assert command("doctor") == 0
    assert command.out.decode().splitlines()[-1] == "Ready to pay. 1 warning."


def test_json_has_the_same(command: Command, payer: str) -> None:
    """Monitoring reads it."""
    assert command("doctor", "--json", LND_MACAROON_PATH=payer) == 0
    found = command.json
    assert (found["ready"], [each["check"] for each in found["checks"]]) == (True, list(CHECKS))
    assert {tuple(each) for each in found["checks"]} == {("check", "verdict", "what", "advice")}
    assert all(each["advice"] is None for each in found["checks"])
    command.lnd.lock()
    assert command("doctor", "--json", LND_MACAROON_PATH=payer) == 1
    found = json.loads(command.out)
    assert found["ready"] is False
    (wrong,) = (each for each in found["checks"] if each["verdict"] == "wrong")
    assert (wrong["check"], "lncli unlock" in wrong["advice"]) == ("state", True)


def test_texts_of_the_node_can_not_command_the_terminal(command: Command, payer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An alias is whatever the node's owner likes."""
    from routeweiler_sync.testing._lnd_service import Service

    real = Service._get_info

    def answer(self: Service, *args: object) -> object:
        made = real(self, *args)  # type: ignore[arg-type]
        made.alias = "\x1b[2J\x07evil\nwrong    node"
        return made

    monkeypatch.setattr(Service, "_get_info", answer)
    command.lnd.restart()
    assert command("doctor", LND_MACAROON_PATH=payer) == 0  # and `Command` has looked for escape codes
    assert len(command.out.splitlines()) == len(CHECKS) + 1
    assert b"evil" in command.out


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
@pytest.mark.parametrize("columns", [40, 80, 120])
def test_on_a_terminal_every_line_fits(command: Command, columns: int) -> None:
    """On a phone, over ssh, a line that is broken by the terminal can't be read."""
    from tests.support.terminal import Terminal

    argv = [sys.executable, "-m", "routeweiler_sync", "doctor"]
    with Terminal(argv, command.environ(LND_MACAROON_PATH="/nowhere"), command.folder, on=("out", "err"), columns=columns) as run:
        assert run.wait() == 1
        text = run.text
    assert re.search(r"\x1b\[[0-9;]*mwrong", text), "in a colour"
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text).replace("\r", "")
    assert max(map(len, plain.splitlines())) <= columns
    assert "the macaroon file /nowhere can't be read" in " ".join(plain.split())


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
def test_no_color_is_heeded(command: Command) -> None:
    """Some can't read colours, and some terminals can't show them."""
    from tests.support.terminal import Terminal

    environ = command.environ(NO_COLOR="1", **NO_NODE)
    with Terminal([sys.executable, "-m", "routeweiler_sync", "doctor"], environ, command.folder, on=("out", "err")) as run:
        assert run.wait() == 1
        assert not re.search(r"\x1b\[(?:\d+;)*3\d", run.text)
