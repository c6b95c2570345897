"""``get --verbose``: each request with its answer, and what happens about payments, line by line on stderr.

No line holds a token, a preimage or a password.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import requests
from requests.adapters import HTTPAdapter

from .._core.credential_headers import CREDENTIAL_HEADERS
from ..protocol.schemes import is_credential
from ..transport.adapter import PaywallAdapter

if TYPE_CHECKING:
    from ..config.payer import Payer

Say = Callable[[str], object]


class _TellingAdapter(HTTPAdapter):
    """Says what goes over the wire."""

    say: Say

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        """Send ``request`` as `HTTPAdapter` does."""
        sent = {name: str(request.headers[name]) for name in CREDENTIAL_HEADERS if request.headers.get(name)}
        told = [
            "a token" if is_credential(value) else f"{'an' if name[0] == 'A' else 'a'} {name} header"
            for name, value in sent.items()
        ]
        credential = "".join(f", with {each}" for each in told)
        part = f", {request.headers['Range']!s}" if "Range" in request.headers else ""
        self.say(f"> {request.method} {request.url}{credential}{part}")
        started_s = time.monotonic()
        try:
            response = super().send(request, *args, **kwargs)
        except requests.RequestException as error:
            self.say(f"< {type(error).__name__}")
            raise
        took_ms = (time.monotonic() - started_s) * 1000
        self.say(f"< HTTP {response.status_code} {response.reason or ''} ({took_ms:.0f} ms)")
        return response


class TellingAdapter(PaywallAdapter, _TellingAdapter):
    """A `PaywallAdapter` that says what goes over the wire, the requests with tokens too."""

    def __init__(self, payer: Payer, say: Say) -> None:
        super().__init__(payer)
        self.say = say


class LogHandler(logging.Handler):
    """Says what the package logs."""

    def __init__(self, say: Say) -> None:
        super().__init__(logging.INFO)
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        """Say the message of ``record``."""
        self._say(f"* {record.getMessage()}")


def tell(session: requests.Session, payer: Payer, say: Say) -> None:
    """Let ``session``, which pays by ``payer``, say what it sends and gets, and what is logged about payments."""
    for prefix in ("https://", "http://"):
        session.mount(prefix, TellingAdapter(payer, say))
    logger = logging.getLogger("routeweiler_sync")
    logger.addHandler(LogHandler(say))
    logger.setLevel(logging.INFO)
