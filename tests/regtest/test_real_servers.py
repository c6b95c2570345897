"""Buying from servers that others wrote: what is paid at each step is what a careful client would pay there, by lnd's own list.

What came out is also the table of `docs/how-to/servers.md`; see `servers_page`.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable

import pytest

from .real_servers import REAL_SERVERS, REQUESTS_MOST, STEPS, RealServer, Walk, walk
from .server_builds import SERVERS, Runtimes
from .servers_page import check_section, table
from .world import World

Walked = Callable[[RealServer], Walk]


@pytest.fixture(scope="module")
def walked(world: World, runtimes: Runtimes, tmp_path_factory: pytest.TempPathFactory) -> Walked:
    """The walk at a server, made once for all tests of this module."""
    walks: dict[str, Walk] = {}

    def get(server: RealServer) -> Walk:
        if server.name not in walks:
            walks[server.name] = walk(server, runtimes, world, tmp_path_factory.mktemp(server.name))
        return walks[server.name]

    return get


each_server = pytest.mark.parametrize("server", REAL_SERVERS, ids=lambda server: server.name)


@each_server
def test_each_step_costs_what_the_servers_tokens_make_it_cost(server: RealServer, walked: Walked) -> None:
    """A client that pays more often than this wastes its user's money; one that pays less often doesn't get the page."""
    done = walked(server)
    expected = "200" if server.pays else "402"
    seen = [(step.name, step.payments, step.outcome) for step in done.steps]
    wanted = [(name, payments, expected) for name, payments in zip(STEPS, server.payments, strict=True)]
    wire = "\n".join(f"{step.name}: {step.on_the_wire}" for step in done.steps)
    assert seen == wanted, f"{server.why}\n{wire}\n{done.log}"


@each_server
def test_no_step_asks_too_often_or_buys_twice(server: RealServer, walked: Walked) -> None:
    """A server is asked at most eight times a call, whatever it answers, and one call buys one token."""
    for step in walked(server).steps:
        assert len(step.exchanges) <= REQUESTS_MOST, (step.name, step.on_the_wire)
        assert step.payments <= 1, step.name


@each_server
def test_the_ledger_knows_each_payment_of_lnd(server: RealServer, walked: Walked) -> None:
    """Else money was spent that no limit and no report counts."""
    done = walked(server)
    assert done.booked == done.paid


@each_server
def test_no_token_goes_elsewhere_and_no_server_calls_out(server: RealServer, walked: Walked) -> None:
    """Another origin would use the token. A server that reaches another machine isn't the one whose code is tested here."""
    done = walked(server)
    assert done.tokens_elsewhere == 0
    assert done.outside == []


def test_the_guards_of_the_servers_keep_them_on_this_machine(runtimes: Runtimes) -> None:
    """Else the test above would pass for a server that calls home."""
    settings = {"SERVER_KEY": "", "SERVER_CLOCK_AHEAD_S": "0", "PYTHONDONTWRITEBYTECODE": "1"}
    script = "require('net').connect(80, 'example.invalid')"
    for program in (
        [runtimes.node, "--require", SERVERS / "guard.js", "--eval", script],
        [runtimes.python, "-c", "import common, socket; socket.create_connection(('example.invalid', 80))"],
    ):
        done = subprocess.run(
            program, cwd=SERVERS, env={**os.environ, **settings}, capture_output=True, text=True, timeout=60, check=False
        )
        assert "OUTSIDE example.invalid" in done.stderr
        assert done.returncode != 0


def test_the_page_of_servers_tells_what_came_out(walked: Walked) -> None:
    """Else a reader would choose a server, or a budget, by a table of last year."""
    walks = [walked(server) for server in REAL_SERVERS]
    payments = table(
        ["server", "a token opens", "a token that isn't good is refused with", *STEPS],
        [[done.server.package, done.server.tokens, done.server.refuses, *(step.payments for step in done.steps)] for done in walks],
    )
    wire = table(["server", *STEPS], [[done.server.name, *(step.on_the_wire for step in done.steps)] for done in walks])
    check_section("packages", f"Payments at each step:\n\n{payments}\n\nAnswers on the wire:\n\n{wire}")
