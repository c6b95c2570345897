"""What the Python servers of this folder share: their settings, invoices of the real lnd, and HTTP on loopback.

Runs in the environment of the servers, not in that of the tests. Importing it closes the way out: a connection to another machine,
or a look-up of its name, fails and is written to the log as `OUTSIDE`. It also sets the clock ahead where the tests want it so.
"""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import json
import os
import ssl
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request

PRICE_SAT = 10
KEY = os.environ["SERVER_KEY"]
LND_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Invoice:
    payment_request: str
    payment_hash: str


def invoice_now(amount_sat: int, memo: str = "") -> Invoice:
    """Return a new invoice of the lnd, made over REST."""
    request = urllib.request.Request(
        os.environ["LND_REST"] + "/v1/invoices",
        data=json.dumps({"value": str(amount_sat), "memo": memo}).encode(),
        headers={"Grpc-Metadata-macaroon": Path(os.environ["LND_MACAROON"]).read_bytes().hex()},
    )
    context = ssl.create_default_context(cafile=os.environ["LND_CERT"])
    with urllib.request.urlopen(request, timeout=LND_TIMEOUT_S, context=context) as answer:
        made = json.load(answer)
    return Invoice(made["payment_request"], base64.b64decode(made["r_hash"]).hex())


async def invoice(amount_sat: int, memo: str = "") -> Invoice:
    return await asyncio.to_thread(invoice_now, amount_sat, memo)


async def page(request: Request) -> dict[str, str]:
    """Return what is for sale: the request, told back."""
    return {"method": request.method, "path": request.url.path, "body": (await request.body()).decode()}


def serve(make_app: Callable[[], FastAPI]) -> None:
    """Serve the application on the port that the tests chose. It's made in the event loop, which some packages need."""

    async def run() -> None:
        config = uvicorn.Config(make_app(), host="127.0.0.1", port=int(os.environ["SERVER_PORT"]), log_level="warning")
        await uvicorn.Server(config).serve()

    asyncio.run(run())


def _stay_inside(event: str, args: tuple[Any, ...]) -> None:
    if event == "socket.connect":
        host = args[1][0] if isinstance(args[1], tuple) else "localhost"  # else the path of a Unix socket
    elif event == "socket.getaddrinfo":
        host = args[0] or "localhost"
    else:
        return
    if not _is_loopback(host.decode() if isinstance(host, bytes) else str(host)):
        sys.stderr.write(f"OUTSIDE {host}\n")
        raise ConnectionRefusedError(f"{host} is another machine")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


sys.addaudithook(_stay_inside)
_ahead_s, _time = float(os.environ["SERVER_CLOCK_AHEAD_S"]), time.time
time.time = lambda: _time() + _ahead_s  # type: ignore[assignment]
