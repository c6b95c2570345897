"""A process that forks while another of its threads makes its first payment: the child pays as well."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from routeweiler_sync.testing import FakeLnd, Paywall
from tests.support.accounts import Books

pytestmark = [pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here"), pytest.mark.slow]

#: Argument ``name``: the main thread forks when the other is in the midst of importing that module. Without one, all are printed.
CODE = """
import os, sys, threading, time
import requests, routeweiler_sync
url, folder, name = sys.argv[1:]
ours = ("routeweiler_sync", "bolt11", "pymacaroons", "tenacity", "sqlite3", "grpc")
midst, forked, begun = threading.Event(), threading.Event(), []

class Watcher:
    def find_spec(self, module, path=None, target=None):
        if threading.current_thread() is not threading.main_thread() and module.split(".")[0] in ours:
            begun.append(module)
            if module == name:
                midst.set()
                forked.wait(0.3)  # a fork that is kept from falling into this comes after it
        return None

def make():
    from routeweiler_sync import Funding, LndClient, Routeweiler, TraceSink
    funding = [Funding.lightning_lnd(client=LndClient.from_env(), network="bitcoin-regtest")]
    return Routeweiler(funding=funding, ledger=folder + "/ledger.db", trace_sink=TraceSink.sqlite(folder + "/trace.db"))

def pay():
    with make() as session:
        session.get(url).raise_for_status()

sys.meta_path.insert(0, Watcher())
thread = threading.Thread(target=pay)
thread.start()
if not name:
    thread.join()
    print(*begun)
    sys.exit()
assert midst.wait(60)
pid = os.fork()
if pid == 0:
    try:
        pay()
    except BaseException as error:
        print(type(error), error, file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)
forked.set()
end = time.monotonic() + 40
while time.monotonic() < end:
    done, status = os.waitpid(pid, os.WNOHANG)
    if done:
        break
    time.sleep(0.02)
else:
    os.kill(pid, 9)
    sys.exit("the child hangs")
thread.join()
sys.exit(os.waitstatus_to_exitcode(status))
"""


def run(lnd: FakeLnd, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", CODE, *map(str, arguments)],
        env={**os.environ, **lnd.environ},
        timeout=120,
        capture_output=True,
        text=True,
    )


def test_a_fork_in_the_midst_of_any_import(paywall: Paywall, lnd: FakeLnd, books: Books, tmp_path_factory) -> None:
    """A module that is being imported at the fork stays locked in the child: its first payment would hang for ever."""
    listing = run(lnd, paywall.url, books.ledger_path.parent, "")
    assert listing.returncode == 0, listing.stderr
    modules = listing.stdout.split()
    assert {"routeweiler_sync.payments.checkout", "routeweiler_sync.trace.schema", "grpc", "sqlite3"} <= set(modules), modules
    ours = [name for name in modules if name.startswith("routeweiler_sync")]
    theirs = [name for name in modules if "." not in name]
    for name in [*ours[::2], *theirs]:
        done = run(lnd, paywall.url, tmp_path_factory.mktemp("fork"), name)
        assert (done.returncode, done.stderr) == (0, ""), name
    assert {row.status for row in lnd.payments} == {"SUCCEEDED"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system doesn't fork")
def test_forks_while_threads_make_sessions(lnd: FakeLnd, tmp_path: Path) -> None:
    """Locks that a fork takes in one order and a thread in another stop the whole process."""
    code = """
import os, sys, threading, time
from routeweiler_sync import Routeweiler
stop = threading.Event()
def work(number):
    while not stop.is_set():
        Routeweiler(ledger=f"{sys.argv[1]}/{number}.db").recover()
threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(4)]
for thread in threads:
    thread.start()
for _ in range(60):
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    time.sleep(0.005)
stop.set()
for thread in threads:
    thread.join()
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], timeout=100, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
