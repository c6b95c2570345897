"""Every reason to refuse before paying. All are found while nothing has happened yet.

What a challenge itself tells (`check_challenge`), and what a session allows: policy, envelope, funding, rate, confirm (`Checks`).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timezone

from .._core.money import Rate, sats
from ..budgets.fmv import FmvProvider, rate_for
from ..budgets.schema import BudgetEnvelope
from ..errors import (
    BudgetError,
    BudgetExceededError,
    ChallengeExpiredError,
    ChallengeMismatchError,
    EnvelopeFrozenError,
    EnvelopeNotFoundError,
    LedgerError,
    NoFundingForRailError,
    PaymentDeclinedError,
    PolicyDeniedError,
    PolicyMaxPerCallExceededError,
    RailNotSupportedError,
)
from ..funding.source import LightningFundingSource
from ..ledger.envelopes import Draw, check_allowed
from ..ledger.ledger import Ledger
from ..ledger.types import PaymentRow
from ..policy.dsl import Policy
from ..policy.engine import evaluate
from ..protocol.challenge import Challenge
from ..protocol.invoice import Invoice, decode_invoice
from .outcome_errors import unsent_error
from .types import Quote, TokenRequest

#: An invoice that expires sooner than this isn't begun: the payment would race its expiry.
MIN_INVOICE_LIFE_S = 2
#: A token whose own time ends sooner isn't bought: the payment alone takes as long. (Servers do sell tokens that live for seconds.)
MIN_TOKEN_LIFE_S = 1


def check_challenge(challenge: Challenge) -> None:
    """Refuse what could only be paid in vain: a token and an invoice that don't belong together, or one that has expired.

    Raises: ChallengeMismatchError, ChallengeExpiredError. Money: none is spent.
    """
    named, invoice, now_s = challenge.names_payment_hash, challenge.invoice, time.time()
    if named is not None and named != invoice.payment_hash:
        raise ChallengeMismatchError(
            f"The token is for payment hash {named.hex()}, the invoice for {invoice.payment_hash.hex()}: paying would buy nothing.",
            advice="Tell the server's operator.",
        )
    clock = f"it is {int(now_s)} by this machine's clock"
    if now_s + MIN_INVOICE_LIFE_S >= invoice.expires_at:
        raise ChallengeExpiredError(
            f"The invoice {invoice.payment_hash.hex()} has expired, or is about to (at {invoice.expires_at}; {clock}).",
            advice="Call again for a new one; if it repeats, check the clock.",
        )
    if challenge.valid_until is not None and now_s + MIN_TOKEN_LIFE_S >= challenge.valid_until:
        raise ChallengeExpiredError(
            f"The token offered is past its own valid_until, or is about to be (at {challenge.valid_until}; {clock}): paying would "
            "buy nothing.",
            advice="Call again for a new one; if it repeats, check the clock.",
        )


def source_for(funding: Sequence[LightningFundingSource], network: str) -> LightningFundingSource:
    """Return the first funding source for ``network``. Raises: NoFundingForRailError where there is none."""
    for source in funding:
        if source.network == network:
            return source
    have = ", ".join(sorted({s.network for s in funding})) or "none"
    raise NoFundingForRailError(
        f"The invoice is on {network}, and no funding for that network is configured (configured: {have}).",
        advice="Add a funding source for it.",
    )


class Checks:
    """What one session allows. Thread-safe; asks the ledger and the rate's provider, and no node."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        envelope: BudgetEnvelope | str | None,
        policy: Policy | None,
        fmv_provider: FmvProvider | None,
        confirm: Callable[[Quote], bool] | None,
        session_started_s: float,
    ) -> None:
        self._ledger = ledger
        self._envelope = envelope
        self._policy = policy
        self._fmv_provider = fmv_provider
        self._confirm = confirm
        self._session_started_s = session_started_s

    @property
    def asks_confirm(self) -> bool:
        """Whether somebody is asked before each payment."""
        return self._confirm is not None

    def check_allowed(self, request: TokenRequest) -> None:
        """Refuse what the policy or the envelope forbids.

        Raises: PolicyDeniedError, PolicyMaxPerCallExceededError, RailNotSupportedError, EnvelopeNotFoundError.
        """
        self._check_policy(request)
        self._check_envelope(request)

    def check_confirmed(self, quote: Quote) -> None:
        """Ask confirm(), if the session has one.

        Raises: PaymentDeclinedError unless the answer is True: of an async function's answer, or of a "no", `bool` would say yes.
        """
        if self._confirm is None:
            return
        answer: object = self._confirm(quote)
        if answer is not True:
            why = "" if answer is None or answer is False else f" (its answer, a {type(answer).__name__}, isn't True or False)"
            raise PaymentDeclinedError(
                f"Paying {sats(quote.amount_msat)} for {quote.url} was declined by confirm(){why}.",
                advice="",
            )

    def check_origin(self, row: PaymentRow, request: TokenRequest) -> None:
        """Refuse a row that another origin was paid for. Raises: ChallengeMismatchError."""
        if row.origin != request.origin:
            raise ChallengeMismatchError(
                f"{request.origin} offers an invoice for a payment hash that {row.origin} was paid for: its token goes nowhere else, "
                "and paying again would buy nothing.",
                advice="Tell the server's operator, if you trust them.",
            )

    def check_resend(self, row: PaymentRow, request: TokenRequest) -> None:
        """Hold an unfinished payment that another call began against what this session allows.

        Whoever was told no mustn't pay, whoever was told yes before. What is reserved for the row stays as it is.

        Raises: PaymentPendingError, for the earlier order may still be carried out.
        """
        invoice = decode_invoice(row.bolt11)
        request = replace(request, challenge=replace(request.challenge, invoice=invoice))
        try:
            self.check_allowed(request)
            self._check_standing_limits(row, request)
            if self.asks_confirm:
                self.check_confirmed(self.quote(request, invoice, row.max_fee_msat))
        except (PolicyDeniedError, PolicyMaxPerCallExceededError, RailNotSupportedError, BudgetError) as error:
            raise unsent_error(row, error) from error

    def draw(self, request: TokenRequest) -> Draw | None:
        """Return what the purchase draws on, at this moment's rate; None without an envelope. Raises: FmvUnavailableError."""
        if self._envelope is None:
            return None
        return Draw(
            envelope=self._envelope,
            rate=self._rate(),
            session_started_s=self._session_started_s,
            spent_in_call_msat=request.spent_in_call_msat,
        )

    def quote(self, request: TokenRequest, invoice: Invoice, max_fee_msat: int, draw: Draw | None = None) -> Quote:
        """Return the price of ``invoice`` in the budget's currency. Raises: FmvUnavailableError, EnvelopeNotFoundError."""
        rate = draw.rate if draw is not None else self._rate()
        return Quote(
            url=request.url,
            amount_msat=invoice.amount_msat,
            max_fee_msat=max_fee_msat,
            amount_minor_units=rate.minor_units_of(invoice.amount_msat),
            currency=rate.currency,
            scope=request.scope,
            payment_hash=invoice.payment_hash.hex(),
            description=invoice.description,
            expires_at=datetime.fromtimestamp(invoice.expires_at, tz=timezone.utc),
        )

    def _limits(self) -> BudgetEnvelope | None:
        """Return the envelope in force, read from the ledger where only its id was given. Raises: EnvelopeNotFoundError."""
        return self._ledger.envelope(self._envelope).limits if isinstance(self._envelope, str) else self._envelope

    def _rate(self) -> Rate:
        """Return the rate at which the budget counts now. Raises: FmvUnavailableError, EnvelopeNotFoundError."""
        limits = self._limits()
        return Rate(currency="sat") if limits is None else rate_for(limits.cap_currency, self._fmv_provider)

    def _check_policy(self, request: TokenRequest) -> None:
        if self._policy is None:
            return
        invoice, rail = request.challenge.invoice, request.challenge.rail
        verdict = evaluate(self._policy, url=request.url, scheme=request.challenge.scheme, network=invoice.network, rail=rail)
        if verdict.denied:
            raise PolicyDeniedError(
                f"The policy forbids paying {request.origin}: {verdict.reason}.", advice="Change the policy to allow it."
            )
        if verdict.rail != rail:
            raise RailNotSupportedError(
                f"The policy wants {request.origin} paid over {verdict.rail}, and the server was understood to offer {rail} only.",
                advice="Change the policy to allow it.",
            )
        limit = verdict.max_per_call_minor_units
        if limit is not None:
            price_msat = invoice.amount_msat + request.spent_in_call_msat  # a call is a call, over however many redirects
            price = rate_for(self._policy.currency, self._fmv_provider).minor_units_of(price_msat)
            if price > limit:
                raise PolicyMaxPerCallExceededError(
                    f"The price of {price.normalize():f} {self._policy.currency} minor units is above the {limit} that the policy's "
                    f"rule {verdict.rule!r} allows for one call.",
                    advice="Change the policy to allow it.",
                )

    def _check_envelope(self, request: TokenRequest) -> None:
        limits = self._limits()
        if limits is None:
            return
        try:
            check_allowed(limits, request.origin, request.challenge.rail)
        except (PolicyDeniedError, RailNotSupportedError):
            with contextlib.suppress(LedgerError):
                if limits is self._envelope and self._ledger.exists():
                    self._ledger.bring(limits)  # as a purchase would: what it forbids holds for the others too
            raise

    def _check_standing_limits(self, row: PaymentRow, request: TokenRequest) -> None:
        """Hold a payment that is reserved already, maybe in another envelope, against this session's: not frozen, not too much."""
        limits = self._limits()
        if limits is None:
            return
        with contextlib.suppress(EnvelopeNotFoundError):  # nothing has been spent from it
            if self._ledger.envelope(limits.id).frozen:
                raise EnvelopeFrozenError(f"Envelope {limits.id!r} is frozen.", advice="")
        limit_micro = limits.limit_micro("per_call_minor_units")
        most_msat = row.amount_msat + row.max_fee_msat
        if limit_micro is not None and self._rate().micro_of(most_msat + request.spent_in_call_msat) > limit_micro:
            raise BudgetExceededError(
                f"It may cost {sats(most_msat)}, more than envelope {limits.id!r} allows for one call.", advice=""
            )
