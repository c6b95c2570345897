"""A client of the scheme ``Payment`` without the library: it reads a challenge, pays it, and presents what a test wants."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable

import requests

Pay = Callable[[str], bytes]


class Bought:
    """A challenge, and the preimage that it was paid with, if it was."""

    def __init__(self, line: str, pay: Pay | None = None) -> None:
        found = re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', line)
        assert len({name for name, _ in found}) == len(found)
        self.echo = {name: re.sub(r"\\(.)", r"\1", value) for name, value in found}
        self.request = json.loads(unpadded(self.echo["request"]))
        self.invoice = self.request["methodDetails"]["invoice"] if self.echo["intent"] == "charge" else None
        self.preimage = b"" if pay is None else pay(self.invoice)

    def credential(self, *, preimage: str | None = None, **altered: str | None) -> str:
        """Return the value of ``Authorization``. ``altered`` has parameters that are echoed otherwise; None leaves one out."""
        echo = {name: value for name, value in (self.echo | altered).items() if value is not None}
        told = {"challenge": echo, "payload": {"preimage": self.preimage.hex() if preimage is None else preimage}}
        raw = json.dumps(told, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        return "Payment " + base64.urlsafe_b64encode(raw).decode().rstrip("=")

    def under(self, fresh: Bought) -> str:
        """Return the credential for a fresh challenge with this preimage."""
        return fresh.credential(preimage=self.preimage.hex())


def unpadded(text: str) -> bytes:
    """Return the bytes of base64url without padding."""
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def lines(answer: requests.Response) -> list[str]:
    """Return the values of ``WWW-Authenticate``, one for each line."""
    return list(answer.raw.headers.getlist("WWW-Authenticate"))


def payment_lines(answer: requests.Response) -> list[str]:
    """Return the lines that begin with a challenge of the scheme."""
    return [each for each in lines(answer) if each.startswith("Payment ")]
