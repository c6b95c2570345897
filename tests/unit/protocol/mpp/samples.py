"""Answers of real servers, and challenges made up from them."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

VECTORS: dict[str, Any] = json.loads((Path(__file__).parent / "vectors.json").read_text(encoding="utf-8"))
EXCHANGES: dict[str, Any] = VECTORS["exchanges"]
#: The exchanges that were paid.
PAID = {name: each for name, each in EXCHANGES.items() if "preimage" in each}
APERTURE: dict[str, Any] = EXCHANGES["aperture_v0.5.0_charge"]
REQUEST: dict[str, Any] = json.loads(APERTURE["request_json"])
PREIMAGE: bytes = bytes.fromhex(APERTURE["preimage"])
INVOICE: str = REQUEST["methodDetails"]["invoice"]
PAYMENT_HASH: str = REQUEST["methodDetails"]["paymentHash"]
CREDENTIAL: str = APERTURE["credential"]
#: All lines of a 402 of aperture: LSAT, L402, a charge and a session.
ALL_LINES = [line.partition(": ")[2] for line in VECTORS["aperture_all_lines"]]


def lines_of(exchange: dict[str, Any]) -> list[str]:
    """Return the values of WWW-Authenticate, as requests hands them over."""
    return [line.partition(": ")[2] for line in exchange["challenge_header_lines"]]


def encoded(value: object) -> str:
    """Return ``value`` as JSON in base64url, as a challenge's request."""
    text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), sort_keys=True)
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def request(**changed: Any) -> str:
    """Return aperture's request with other values; None leaves a name out. ``details`` are changes to methodDetails."""
    details = {**REQUEST["methodDetails"], **changed.pop("details", {})}
    said = {**REQUEST, "methodDetails": details, **changed}
    if isinstance(said["methodDetails"], dict):
        said["methodDetails"] = {name: value for name, value in said["methodDetails"].items() if value is not None}
    return encoded({name: value for name, value in said.items() if value is not None})


def charge(scheme: str = "Payment", **changed: str | None) -> str:
    """Return a charge with other parameters than aperture's; None leaves one out."""
    params = {"id": "i1", "realm": "r", "method": "lightning", "intent": "charge", "request": request(), **changed}
    return f"{scheme} " + ", ".join(f'{name}="{value}"' for name, value in params.items() if value is not None)
