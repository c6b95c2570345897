"""The tree of errors. Each error says what happened, whether money was spent, and what to do next.

    RouteweilerError(requests.RequestException)          .response .request .spent: False | True | None (not known yet)
    ├─ NoFeasibleRailError                               nothing here can pay this: no funding for its network, no rail, …
    │  ├─ NoFundingForRailError
    │  └─ RailNotSupportedError
    ├─ ChallengeParseError
    ├─ ChallengeExpiredError
    ├─ ChallengeMismatchError
    ├─ UnreplayableBodyError
    ├─ PolicyDeniedError
    ├─ PolicyMaxPerCallExceededError
    ├─ BudgetError
    │  ├─ BudgetExceededError
    │  ├─ EnvelopeNotFoundError
    │  ├─ EnvelopeFrozenError
    │  ├─ EnvelopeExpiredError
    │  ├─ FmvUnavailableError
    │  └─ PaymentDeclinedError
    ├─ FundingError                                      no order to pay was carried out: nothing spent
    ├─ LedgerError                                       before the payment: nothing spent
    ├─ InvoicePaymentError                               lnd reports FAILED: nothing spent
    ├─ PaymentPendingError                               may be spent: the row is unfinished
    ├─ TokenRefusedError                                 spent: the row keeps the proof
    └─ PreimageMismatchError                             spent: the row keeps the proof

`RequestException` is an `OSError`: an ``except OSError`` around this package's own I/O would catch these too. Where an error is
raised is left to the modules that raise it; the texts at the end of a purchase are in `payments.outcome_errors`.
"""

from __future__ import annotations

from collections.abc import Callable
from types import EllipsisType
from typing import Any, ClassVar, TypedDict

import requests

from ._core.urls import without_userinfos


def _meant(error: Any) -> Any:
    """Return the error that ``error`` stands for, or else itself.

    Ray raises an error of a class of its own, made from Ray's class and from ours, and ours is its ``cause``.
    """
    cause = getattr(error, "__dict__", {}).get("cause")
    return cause if isinstance(cause, RouteweilerError) and isinstance(error, type(cause)) else error


class _ComputedText:
    """A text of an error, made each time it is read. An attribute of the same name that a program's subclass sets wins over it."""

    def __init__(self, make: Callable[[Any], str]) -> None:
        self._make = make
        self.__doc__ = make.__doc__

    def __get__(self, error: Any, owner: object = None) -> str:
        return self._make(_meant(error))


class _Fact:
    """What is known of every error of a class; an instance's own attribute wins over it."""

    def __init__(self, known: Any) -> None:
        self._known = known

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, error: Any, owner: object = None) -> Any:
        meant = _meant(error)
        return self._known if meant is error else getattr(meant, self._name)


def _fact(known: Any) -> Any:
    """Return a `_Fact`, which for type checkers is whatever the attribute is annotated with."""
    return _Fact(known)


class Advice(TypedDict):
    """What to do next, in Python and on the command line: two arguments of `RouteweilerError`."""

    advice: str
    shell_advice: str


class RouteweilerError(requests.RequestException):
    """The root of all errors of this package; a `requests.RequestException`, so that handlers for `requests` catch it too.

    The text of an error has three parts, in this order: ``what`` happened (the first argument), a sentence about the money, and
    ``advice``, what to do next. The sentence is made from ``spent`` by `money_sentence`, and nowhere else. An error that is made
    without ``advice``, by a wallet of your own for instance, has ``what`` alone as its text, unless its call had paid before.
    ``shell_advice`` is the advice for the command line, where it differs: it names commands, options and variables, not Python.

    ``spent`` says whether money has left the wallet: False (none has and, by this call, none will), True, or None if that isn't
    known yet and only the node can say. ``payment_hash`` (64 hex digits) names the ledger row, if there is one. ``code`` is a
    stable name of the kind of error, as the trace writes it. ``paid_before_msat`` is what the same call had paid before this
    happened, fees included.
    """

    #: The sentence for ``spent`` False. A class whose errors may concern earlier payments limits it to this call.
    _NOTHING_SPENT: ClassVar[str] = "Nothing was spent."
    #: What is known about the money for every error of the class. An instance may know more.
    spent: bool | None = _fact(False)
    #: The stable name that the trace writes.
    code: ClassVar[str] = "routeweiler_error"
    #: The payment hash that the error is about, in hex; None if there is none.
    payment_hash: str | None = _fact(None)
    #: What to do next; None if the text is ``what`` alone.
    advice: str | None = _fact(None)
    #: What to do next for a user of the command line; None if ``advice`` serves there too.
    shell_advice: str | None = _fact(None)
    #: What the call had paid before, in msat, fees included.
    paid_before_msat: int = _fact(0)

    def __init__(
        self,
        *args: Any,
        advice: str | None = None,
        shell_advice: str | None = None,
        payment_hash: str | None = None,
        spent: bool | EllipsisType | None = ...,
        **kwargs: Any,
    ) -> None:
        # A text may name a URL that the program made, with user:password@ in it. Errors are logged.
        super().__init__(*(without_userinfos(each) if isinstance(each, str) else each for each in args), **kwargs)
        if advice is not None:
            self.advice = without_userinfos(advice)
        if shell_advice is not None:
            self.shell_advice = without_userinfos(shell_advice)
        if payment_hash is not None:
            self.payment_hash = payment_hash
        if spent is not ...:
            self.spent = spent

    def __copy__(self) -> RouteweilerError:
        # tblib, which Dask brings, has its own way to copy errors, and its copies share their attributes with the first.
        reduced: Any = self.__reduce__()
        make, args, *state = reduced
        twin: RouteweilerError = make(*args)
        vars(twin).update(*state)
        return twin

    @_ComputedText
    def what(self) -> str:
        """What happened, without the sentence about the money and without the advice."""
        return self._happened()

    @_ComputedText
    def money_sentence(self) -> str:
        """The sentence that says what became of the money."""
        if self.paid_before_msat:
            from ._core.money import sats  # here: decimal and fractions would make each import of the package slower

            return f"Nothing more was spent; this call has paid {sats(self.paid_before_msat)} before, and its tokens are kept."
        if self.spent is None:
            return "Whether money was spent isn't known yet."
        return "The money is spent." if self.spent else self._NOTHING_SPENT

    @_ComputedText
    def brief(self) -> str:
        """What happened and what to do, for a longer text that has its own sentence about the money."""
        what = self._happened()
        return f"{what.rstrip('.')} ({self.advice.rstrip('.')})" if self.advice else what

    @_ComputedText
    def shell_text(self) -> str:
        """The text of the error as the command line prints it: with ``shell_advice`` in place of ``advice``."""
        if self.shell_advice is None or type(self).__str__ is not RouteweilerError.__str__:
            return str(self)
        return self._text(self.shell_advice)

    def _happened(self) -> str:
        """Return what happened, also where a subclass of a program makes its text in a ``__str__`` of its own."""
        if type(self).__str__ is not RouteweilerError.__str__:
            return str(self)
        return super().__str__()

    def __str__(self) -> str:
        return self._text(self.advice)

    def _text(self, advice: str | None) -> str:
        """Return the error's text with ``advice`` at its end."""
        what = super().__str__()
        if self.advice is None and not self.paid_before_msat:
            return what
        ended = what if not what or what.endswith((".", "!", "?")) else f"{what}."
        return " ".join(part for part in (ended, self.money_sentence, advice) if part)


class NoFeasibleRailError(RouteweilerError):
    """The server asks for a payment that nothing configured here can make: nothing spent.

    What to do: Configure a wallet for the network of the invoice. ``error.response`` is the 402, and
    ``session.quote(method, url)`` has the price.
    """

    code = "no_feasible_rail"


class NoFundingForRailError(NoFeasibleRailError):
    """No funding source is configured for the invoice's network: nothing spent.

    What to do: Give the session a wallet on that network, or correct ``ROUTEWEILER_NETWORK``. ``routeweiler-sync doctor`` names
    the network that the wallet is on.
    """

    code = "no_funding_for_rail"


class RailNotSupportedError(NoFeasibleRailError):
    """The envelope or policy doesn't allow this rail: nothing spent.

    What to do: Add the rail (``l402`` or ``mpp-lightning``) to the envelope's ``allowed_rails``, or change the policy's
    ``prefer``.
    """

    code = "rail_not_supported"


class ChallengeParseError(RouteweilerError):
    """The 402 has a challenge of L402, LSAT or Payment that can't be used (malformed, false signature, …): nothing spent.

    What to do: Call again. If it happens again, the server is at fault: report the error's text to its operator.
    """

    code = "challenge_parse_error"


class ChallengeExpiredError(RouteweilerError):
    """The invoice, or the token that it would buy, has expired: nothing spent.

    What to do: Call again: the server makes a new invoice. If it happens again, look at this machine's clock
    (``routeweiler-sync doctor``).
    """

    code = "challenge_expired"


class ChallengeMismatchError(RouteweilerError):
    """The challenge contradicts its own invoice (payment hash; of a charge also amount and network): nothing spent.

    What to do: Don't pay by hand either: that would buy nothing. Report it to the server's operator. If the text names a
    ``Host`` header, leave that header out.
    """

    code = "challenge_mismatch"


class UnreplayableBodyError(RouteweilerError):
    """The request's body can be sent only once, so a payment would buy nothing: nothing spent.

    The text says what to pass instead. A body that can't be kept, such as an endless stream, can go to a path that has been paid
    for before, perhaps by a GET: then the token goes along when the body is first sent. ``spent`` is True if the body was lost
    while the node paid: the token is kept, and the next call uses it.

    What to do: Pass bytes, text or a seekable file as the body.
    """

    code = "unreplayable_body"


class PolicyDeniedError(RouteweilerError):
    """A rule of the policy forbids paying this URL: nothing spent.

    What to do: Change the policy if this URL may be paid. If the text speaks of plain http, use https, or set
    ``ROUTEWEILER_ALLOW_HTTP_PAYMENT=1`` on a network that you trust.
    """

    code = "policy_denied"


class PolicyMaxPerCallExceededError(RouteweilerError):
    """The price is above what a rule of the policy allows for one call: nothing spent.

    What to do: Raise ``max_per_call_minor_units`` of the rule that the text names, or do without the page.
    """

    code = "policy_max_per_call_exceeded"


class BudgetError(RouteweilerError):
    """The budget doesn't allow this payment: nothing spent.

    What to do: Correct ``ROUTEWEILER_BUDGET`` if the text names it. Else see the class of the error.
    """

    code = "budget_error"


class BudgetExceededError(BudgetError):
    """A limit of the envelope, or of a ``limit()`` block, would be passed: nothing spent.

    What to do: Raise the limit that the text names, or wait until the hour or the day has moved on. ``routeweiler-sync budget
    list`` shows limits, spends and what is left. Routing counts too.
    """

    code = "budget_exceeded"


class EnvelopeNotFoundError(BudgetError):
    """The ledger holds no envelope of this id: nothing spent.

    What to do: Correct the id, or make the envelope: ``routeweiler-sync budget set ID``. Look whether the session uses the
    ledger that you mean.
    """

    code = "envelope_not_found"


class EnvelopeFrozenError(BudgetError):
    """The envelope was frozen by hand: nothing spent.

    What to do: Ask whoever froze it. ``routeweiler-sync budget thaw ID`` allows payments from it again.
    """

    code = "envelope_frozen"


class EnvelopeExpiredError(BudgetError):
    """The envelope's grant (``ttl_seconds``) has ended: nothing spent.

    What to do: Make a new session with the envelope: that grants it anew.
    """

    code = "envelope_expired"


class FmvUnavailableError(BudgetError):
    """There is no exchange rate for the envelope's currency, so the price can't be checked against it: nothing spent.

    What to do: Call again later, use an envelope in sat, or give the session another ``fmv_provider``.
    """

    code = "fmv_unavailable"


class PaymentDeclinedError(BudgetError):
    """``confirm`` refused the payment: nothing spent.

    What to do: Nothing, if that was meant. ``confirm`` must return True itself: other values that count as true don't count as
    yes.
    """

    code = "payment_declined"


class FundingError(RouteweilerError):
    """The node can't be reached, is locked, or refuses the macaroon, and no order to pay was carried out: nothing spent.

    What to do: Do what the text says, then call again. ``routeweiler-sync doctor`` looks at everything that paying needs.
    """

    code = "funding_error"


class LedgerError(RouteweilerError):
    """The ledger can't be read or written, and no order to pay has left: nothing spent by this call.

    What to do: Mend what the text names (disk, rights, database), then call again. Don't delete the ledger: it holds the tokens
    that are paid for. Free pages, and pages whose token is in memory, work meanwhile.
    """

    code = "ledger_error"
    _NOTHING_SPENT = "Nothing was spent by this call."


class InvoicePaymentError(RouteweilerError):
    """The payment failed, as lnd reports: nothing spent.

    ``failure_reason`` is lnd's ``PaymentFailureReason`` without its prefix, e.g. ``NO_ROUTE``, ``TIMEOUT``,
    ``INSUFFICIENT_BALANCE``, ``INCORRECT_PAYMENT_DETAILS``.

    What to do: Remove the cause (a channel, a balance), then call again: the server makes a new invoice.
    """

    code = "invoice_payment_failed"
    failure_reason: str | None = _fact(None)

    def __init__(self, *args: Any, failure_reason: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if failure_reason is not None:
            self.failure_reason = failure_reason


class PaymentPendingError(RouteweilerError):
    """The outcome of a payment isn't known yet, or isn't booked: the money may be spent.

    ``spent`` is True if the node reports the payment as made and the ledger can't be written. The ledger row keeps everything that
    is needed, and the node keeps the preimage.

    What to do: Call again: the same purchase goes on, and nothing is paid twice. Or ask the node by ``session.recover()``, from
    the shell by ``routeweiler-sync payments recover``. Don't pay the page again by other means.
    """

    code = "payment_pending"
    spent = _fact(None)


class TokenRefusedError(RouteweilerError):
    """The invoice is paid but the server doesn't accept the token: spent. The ledger row keeps token and preimage.

    ``spent`` is False, and ``payment_hash`` None, if the server accepted none of the tokens that other calls had bought, and this
    call bought nothing.

    What to do: Call again if ``spent`` is False. Else ask the server's operator, with the payment hash as proof, or call
    ``session.ledger.forget(error.payment_hash)``: the next call then buys anew.
    """

    code = "token_refused"
    _NOTHING_SPENT = "Nothing was spent by this call."
    spent = _fact(True)


class PreimageMismatchError(RouteweilerError):
    """The node reports a payment as made, but its preimage doesn't fit the payment hash: spent, and booked, but without a token.

    What to do: Ask the node's operator for the preimage. ``session.ledger.forget(error.payment_hash)`` lets the next call buy anew.
    """

    code = "preimage_mismatch"
    spent = _fact(True)
