"""OpenTelemetry and truststore: libraries that change what gRPC and ssl are for the whole program."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from routeweiler_sync.testing import FakeLnd, Paywall

from .conftest import library

#: Arguments: URL, path of the ledger. The environment names the node.
PROGRAM = """
import sys
{change}
from routeweiler_sync import Funding, Ledger, LndClient, Routeweiler
funding = [Funding.lightning_lnd(client=LndClient.from_env(), network="bitcoin-regtest")]
with Routeweiler(funding=funding, ledger=sys.argv[2], payment_timeout=20) as session:
    print(session.get(sys.argv[1]).status_code)
    session.recover()
print(sum(int(each.reserved_minor_units) for each in Ledger.open(sys.argv[2]).envelopes()))
"""
OPENTELEMETRY = """
from opentelemetry.instrumentation.grpc import GrpcInstrumentorClient
GrpcInstrumentorClient().instrument()
"""
TRUSTSTORE = """
import truststore
truststore.inject_into_ssl()
"""


def bought(change: str, lnd: FakeLnd, paywall: Paywall, folder: Path) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(change=change), paywall.url, str(folder / "ledger.db")],
        env={**os.environ, **lnd.environ},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.slow
def test_a_program_under_opentelemetry_buys_and_recovers(lnd: FakeLnd, paywall: Paywall, tmp_path: Path) -> None:
    """`opentelemetry-instrument` wraps every channel: the streams of such a program are plain generators."""
    library("opentelemetry.instrumentation.grpc")
    assert bought(OPENTELEMETRY, lnd, paywall, tmp_path) == ["200", "0"]
    assert [payment.status for payment in lnd.payments] == ["SUCCEEDED"]


@pytest.mark.slow
def test_a_program_under_truststore_buys(lnd: FakeLnd, paywall: Paywall, tmp_path: Path) -> None:
    """It puts another class in the place of ssl.SSLContext: the pinned certificate is read all the same."""
    library("truststore")
    assert bought(TRUSTSTORE, lnd, paywall, tmp_path) == ["200", "0"]


@pytest.mark.slow
def test_under_truststore_an_error_still_names_its_cause(lnd: FakeLnd, tmp_path: Path) -> None:
    """The look at a node's certificate goes through ssl, too."""
    library("truststore")
    code = TRUSTSTORE + "from routeweiler_sync import LndClient\nLndClient.from_env().get_info()"
    with FakeLnd() as other:
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, **lnd.environ, "LND_TLS_CERT_PATH": other.tls_cert_path},
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert "isn't the one pinned" in done.stderr
