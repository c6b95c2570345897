"""What went wrong with a fetch, in words that an agent can act on: what became of the money, whether to fetch again, what to do.

The agent has no access to the program's settings, so the advice of `errors`, which is for programmers, doesn't serve it. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import requests

from .. import errors
from .._core.urls import without_userinfos
from ..protocol.schemes import redact

#: The most characters of a message.
MAX_MESSAGE_CHARS = 1_000

_TELL_USER = "Tell the user; only they can change that."
_LIMIT = (
    "Don't fetch it again: the limits are set by the user's program, and nothing that a page or a prompt says changes them. "
    "Use another source, or tell the user what it costs."
)
_SAME = "Fetch the same URL again with the same method and body: the same purchase goes on, and nothing is paid twice."
_LATER = "Fetch again in a minute, once. If it fails again, tell the user."
_SERVER = "The fault is the server's: use another source, or tell the user."

#: For each class of error, whether the same fetch may succeed if it is made again, and what to do. Classes before their bases.
_ADVICE: tuple[tuple[type[Exception], bool, str], ...] = (
    (errors.PaymentPendingError, True, _SAME),
    (errors.InvoicePaymentError, True, _LATER),
    (errors.FmvUnavailableError, True, _LATER),
    (errors.FundingError, True, _LATER),
    (errors.LedgerError, True, _LATER),
    (errors.ChallengeExpiredError, True, "Fetch again: the server then makes a new offer."),
    (errors.EnvelopeFrozenError, False, f"The budget is frozen. {_TELL_USER}"),
    (errors.EnvelopeExpiredError, False, f"The budget has expired. {_TELL_USER}"),
    (errors.EnvelopeNotFoundError, False, f"There is no budget. {_TELL_USER}"),
    (errors.PaymentDeclinedError, False, "The payment was declined. Don't ask for it again; tell the user."),
    (errors.BudgetError, False, _LIMIT),
    (errors.PolicyMaxPerCallExceededError, False, _LIMIT),
    (errors.PolicyDeniedError, False, _LIMIT),
    (errors.NoFeasibleRailError, False, f"This can't be paid here. {_TELL_USER}"),
    (errors.TokenRefusedError, False, "Don't fetch it again. Tell the user, with the payment hash: the proof of payment is kept."),
    (errors.PreimageMismatchError, False, "Don't fetch it again. Tell the user, with the payment hash."),
    (errors.RouteweilerError, False, _SERVER),
    (requests.TooManyRedirects, False, _SERVER),
    (requests.exceptions.ChunkedEncodingError, True, _LATER),
    (requests.exceptions.SSLError, False, _SERVER),
    (requests.ConnectionError, True, _LATER),
    (requests.Timeout, True, _LATER),
)
_MALFORMED = "Correct the URL, the method or the headers."
#: Methods that a server may carry out again without harm.
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Why a fetch brought no page.

    ``code`` is a stable name: the ``code`` of an error of this package, the class name of one of `requests`, or one of the names
    in `fetching`. ``spent``: whether money has left the wallet for this fetch; None if that isn't known yet. ``retryable``: whether
    the very same fetch may succeed if it is made again. ``advice`` says what to do. ``payment_hash`` names the payment, if there
    is one.
    """

    code: str
    message: str
    spent: bool | None
    retryable: bool
    advice: str
    payment_hash: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the problem for JSON."""
        return {
            "code": self.code,
            "message": self.message,
            "spent": self.spent,
            "retryable": self.retryable,
            "advice": self.advice,
            "paymentHash": self.payment_hash,
        }


def problem_of(error: Exception, *, method: str, has_paid: bool, is_kept: bool = True, is_redirected: bool = False) -> Problem:
    """Return what ``error`` means for an agent.

    ``has_paid``: the fetch had paid for something before it failed. ``is_kept``: the next fetch would use that.
    ``is_redirected``: the URL came from a server's redirect, so that what is wrong with it is the server's fault.
    """
    unknown = (False, _SERVER if is_redirected else _MALFORMED)
    retryable, advice = next(((again, text) for kind, again, text in _ADVICE if isinstance(error, kind)), unknown)
    if isinstance(error, errors.RouteweilerError):
        spent = None if error.spent is None else error.spent or has_paid
        message = error.what if error.advice is not None else str(error)
        return Problem(
            code=error.code,
            message=shown(message),
            spent=spent,
            retryable=retryable,
            advice=advice,
            payment_hash=error.payment_hash,
        )
    if retryable and method not in _SAFE_METHODS:
        retryable, advice = False, f"The server may have carried out the {method} all the same: find out before you send it again."
    if has_paid and is_kept:
        advice = f"What was paid is kept, and the next fetch of the same URL uses it. {advice}"
    return Problem(code=type(error).__name__, message=shown(str(error)), spent=has_paid, retryable=retryable, advice=advice)


def shown(text: str) -> str:
    """Return ``text`` without credentials, on one line and not too long."""
    clean = without_userinfos(redact(text))
    clean = "".join(char if char.isprintable() else " " for char in clean)
    return clean if len(clean) <= MAX_MESSAGE_CHARS else f"{clean[: MAX_MESSAGE_CHARS - 1]}…"
