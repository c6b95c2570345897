"""How a command ends: its exit code, and text that is safe to print on a terminal."""

from __future__ import annotations

from enum import IntEnum

import requests

from .._core.urls import without_userinfos
from ..errors import InvoicePaymentError, RouteweilerError
from ..protocol.schemes import redact


class Exit(IntEnum):
    """Exit codes, the same for all commands."""

    OK = 0
    ERROR = 1  #: network error or HTTP error; this call paid nothing
    USAGE = 2  #: wrong arguments or variables; nothing was sent
    REFUSED = 3  #: refused before paying: nothing spent
    FAILED = 4  #: lnd reported FAILED: nothing spent
    PENDING = 5  #: may be spent; call again
    UNDELIVERED = 6  #: paid, but the page didn't arrive


_MALFORMED = (
    requests.exceptions.MissingSchema,
    requests.exceptions.InvalidSchema,
    requests.exceptions.InvalidURL,
    requests.exceptions.InvalidHeader,
)


def exit_for(error: requests.RequestException, *, paid: bool) -> Exit:
    """Return the exit code for a call that ended with ``error``. ``paid``: the call had paid for something before the error."""
    if isinstance(error, RouteweilerError) and error.spent is None:
        return Exit.PENDING
    if paid or (isinstance(error, RouteweilerError) and error.spent):
        return Exit.UNDELIVERED
    if isinstance(error, InvoicePaymentError):
        return Exit.FAILED
    if isinstance(error, RouteweilerError):
        return Exit.REFUSED
    if isinstance(error, requests.exceptions.InvalidHeader) and error.request is not None:
        return Exit.ERROR  # the request was sent: the header is the server's
    return Exit.USAGE if isinstance(error, _MALFORMED) else Exit.ERROR


def text_of(error: BaseException) -> str:
    """Return the text of ``error`` for a user of the command line: its advice names commands and variables, not Python."""
    return error.shell_text if isinstance(error, RouteweilerError) else without_userinfos(str(error))


def printable(text: object) -> str:
    """Return ``text`` on one line, without credentials and passwords, and with control characters escaped.

    Servers write some of the texts (an invoice's description, for instance), and a terminal would obey their escape codes.
    """
    clean = without_userinfos(redact(str(text)))
    if clean.isprintable():
        return clean
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in clean)
