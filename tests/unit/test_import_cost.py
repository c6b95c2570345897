"""What importing the package imports."""

from __future__ import annotations

import subprocess
import sys


def test_import_is_light() -> None:
    """Everybody who imports the package would pay for grpc (46 ms) and its like, also where nothing is ever paid."""
    out = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "import routeweiler_sync"], capture_output=True, text=True, check=True
    ).stderr
    loaded = {line.rpartition("|")[2].strip() for line in out.splitlines()}
    assert "routeweiler_sync.transport.session" in loaded
    heavy = {"grpc", "google.protobuf", "bolt11", "pymacaroons", "tenacity", "sqlite3", "rich", "click", "platformdirs", "psycopg"}
    heavy |= {"nostr_sdk", "websockets", "routeweiler_sync.funding.lnbits.client", "routeweiler_sync.funding.nwc.client"}
    assert not loaded & heavy
