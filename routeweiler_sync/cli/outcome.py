"""How a command ends: its exit code, and text that is fit for a terminal."""

from __future__ import annotations

from enum import IntEnum

import requests

from ..errors import InvoicePaymentError, RouteweilerError
from ..protocol.schemes import redact


class Exit(IntEnum):
    """Exit codes, the same for all commands."""

    OK = 0
    ERROR = 1  #: the network's or the server's fault; nothing was paid by this call
    USAGE = 2
    REFUSED = 3  #: refused before paying: nothing spent
    FAILED = 4  #: lnd's word is FAILED: nothing spent
    PENDING = 5  #: may be spent; call again
    UNDELIVERED = 6  #: paid, but the page didn't come


_MALFORMED = (
    requests.exceptions.MissingSchema,
    requests.exceptions.InvalidSchema,
    requests.exceptions.InvalidURL,
    requests.exceptions.InvalidHeader,
)


def exit_for(error: requests.RequestException, *, paid: bool) -> Exit:
    """The exit code of a call that ended with ``error``; ``paid``: it had paid for something before."""
    if isinstance(error, RouteweilerError) and error.spent is None:
        return Exit.PENDING
    if paid or (isinstance(error, RouteweilerError) and error.spent):
        return Exit.UNDELIVERED
    if isinstance(error, InvoicePaymentError):
        return Exit.FAILED
    if isinstance(error, RouteweilerError):
        return Exit.REFUSED
    return Exit.USAGE if isinstance(error, _MALFORMED) else Exit.ERROR


def printable(text: object) -> str:
    """``text`` on one line, without credentials, and without what would make a terminal do something: servers write texts too."""
    escaped = (char if char.isprintable() else char.encode("unicode_escape").decode() for char in redact(str(text)))
    return "".join(escaped)
