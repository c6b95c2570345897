"""What importing the package imports."""

from __future__ import annotations

import subprocess
import sys


def test_import_is_light() -> None:
    """Everybody who imports the package would pay for grpc (46 ms) and its like, also where nothing is ever paid."""
    loaded = imported_by("routeweiler_sync")
    assert "routeweiler_sync.transport.session" in loaded
    heavy = {"grpc", "google.protobuf", "bolt11", "pymacaroons", "tenacity", "sqlite3", "rich", "click", "platformdirs", "psycopg"}
    heavy |= {"nostr_sdk", "websockets", "routeweiler_sync.funding.lnbits.client", "routeweiler_sync.funding.nwc.client"}
    heavy.add("routeweiler_sync.payments.bill")  # what only the end of a `routeweiler-sync run` reads
    assert not loaded & heavy
    assert not (loaded - imported_by("requests")) & {"signal", "dataclasses", "decimal", "platform", "ctypes", "asyncio", "uuid"}


def imported_by(name: str) -> set[str]:
    command = [sys.executable, "-X", "importtime", "-c", f"import {name}"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return {line.rpartition("|")[2].strip() for line in out.splitlines()}
