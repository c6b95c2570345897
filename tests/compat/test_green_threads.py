"""gevent and eventlet: programs whose threads aren't the system's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from routeweiler_sync.testing import FakeLnd, Paywall

from .conftest import Books, Paying, library

#: Arguments: which, base URL, ledger, trace. The environment names the node. Prints what each call came to.
PROGRAM = """
import sys
which, base, ledger, trace = sys.argv[1:]
if which in ("gevent", "gevent, over REST"):
    from gevent import monkey, pool
    monkey.patch_all()
    spawn = pool.Group().spawn
    wait = lambda job: job.get()
elif which == "gevent, told by the user":
    from gevent import monkey, pool
    monkey.patch_all()
    from grpc.experimental.gevent import init_gevent
    init_gevent()
    spawn = pool.Group().spawn
    wait = lambda job: job.get()
else:
    import eventlet
    eventlet.monkey_patch()
    spawn = eventlet.GreenPool().spawn
    wait = lambda job: job.wait()

import json
from routeweiler_sync import Funding, LndClient, LndRestClient, Routeweiler, RouteweilerError, TraceSink

def call(path):
    try:
        response = session.get(base + path, timeout=30)
    except RouteweilerError as error:
        return [type(error).__name__, error.spent, str(error)]
    return [response.status_code, response.payment and response.payment.reused]

client = (LndRestClient if which.endswith("REST") else LndClient).from_env()
funding = Funding.lightning_lnd(client=client, network="bitcoin-regtest")
with Routeweiler(funding=[funding], ledger=ledger, trace_sink=TraceSink.jsonl(trace)) as session:
    came = [call("/free"), call("/paid")]
    jobs = [spawn(call, path) for path in ["/many"] * 6 + ["/one", "/two"]]
    came += [wait(job) for job in jobs]
print(json.dumps(came))
"""


def run(which: str, paywall: Paywall, lnd: FakeLnd, books: Books) -> list[Any]:
    for name in ("many", "one", "two"):
        paywall.add_service(f"/{name}", name=name, price_msat=1_000)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, which, paywall.base_url, books.ledger_path, books.trace_path],
        env=os.environ | (lnd.rest_environ if which.endswith("REST") else lnd.environ),
        timeout=60,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


@pytest.mark.parametrize("which", ["gevent", "gevent, told by the user", "gevent, over REST"])
def test_gevent(which: str, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """gRPC that isn't told of gevent stops the whole process with the order sent: paid for, and nobody there to take the token.

    Over REST, the system's TLS can't wrap gevent's sockets.
    """
    library("gevent")
    free, first, *others = run(which, paywall, lnd, books)
    assert (free, first) == ([200, None], [200, False])
    many, apart = others[:6], others[6:]
    assert sorted(many) == [[200, False]] + [[200, True]] * 5
    assert apart == [[200, False]] * 2
    assert len(lnd.payments) == 4
    books.check()


def test_eventlet(paying: Paying, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """gRPC can't be told of eventlet: what would have to be bought is refused, and what was bought elsewhere serves."""
    pytest.importorskip("eventlet")
    assert not paying().get(paywall.url).payment.reused
    free, held, *others = run("eventlet", paywall, lnd, books)
    assert (free, held) == ([200, None], [200, True])
    assert {(name, spent) for name, spent, _ in others} == {("FundingError", False)}
    assert all("eventlet" in text for _, _, text in others)
    books.once()
