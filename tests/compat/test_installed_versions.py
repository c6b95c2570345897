"""One payment with the versions that are installed here: the least that each row of `.ci/matrix` must be able to do.

In a child of its own: only there is the import of everything seen as a user's program sees it.
"""

from __future__ import annotations

import json
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
import trustme

from routeweiler_sync.testing import FakeLnd, Paywall
from tests.support.cli_process import bare_environ

#: Buys, uses the token again, and tells the warnings that our own lines gave rise to.
PROGRAM = """
import json, os, sys, warnings
warnings.simplefilter("always")
told = []
warnings.showwarning = lambda message, category, filename, *rest: told.append((category.__name__, str(message), filename))
import routeweiler_sync
from routeweiler_sync import Funding, LndClient, Routeweiler, TraceSink
url, folder, certificate = sys.argv[1:]
client = LndClient.from_env()
sink = TraceSink.jsonl(os.path.join(folder, "trace.jsonl"))
funding = [Funding.lightning_lnd(client=client, network="bitcoin-regtest")]
with Routeweiler(funding=funding, ledger=os.path.join(folder, "ledger.db"), trace_sink=sink) as session:
    responses = [session.get(url, verify=certificate, timeout=30) for _ in range(2)]
sink.close()
client.close()
ours = os.path.dirname(routeweiler_sync.__file__)
print(json.dumps({
    "statuses": [response.status_code for response in responses],
    "reused": [response.payment.reused for response in responses],
    "warnings": [each for each in told if each[2].startswith(ours)],
}))
"""


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[ssl.SSLContext, Path]:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    return context, tmp_path / "ca.pem"


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_token_is_bought_and_used_again_and_none_of_our_lines_is_warned_about(
    scheme: str, tmp_path: Path, certificate: tuple[ssl.SSLContext, Path]
) -> None:
    """Somebody's versions are within what setup.cfg promises, and nothing can be paid with them; or the next ones will break us."""
    context, authority = certificate
    with FakeLnd() as lnd, Paywall(lnd, ssl_context=context if scheme == "https" else None) as paywall:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, paywall.url, str(tmp_path), str(authority)],
            env=bare_environ(**lnd.environ),
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        assert paywall.url.startswith(f"{scheme}://")
        assert json.loads(done.stdout) == {"statuses": [200, 200], "reused": [False, True], "warnings": []}
        assert [payment.status for payment in lnd.payments] == ["SUCCEEDED"]
        assert len(paywall.requests) == 3  # the 402, the paid retry, the second call with its token
