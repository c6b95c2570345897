"""Every reason to refuse before paying. Each is found before any money can move.

`check_challenge` checks what the challenge itself says. `Checks` holds what one session allows: policy, envelope, exchange rate,
confirm(). Which wallet can pay is left to `wallet_choice`. The order of the checks is left to `checkout`. Limits that depend on
what was spent before are left to `ledger.envelopes` and `block_limit`, which check and reserve in one step.
"""

from __future__ import annotations

import contextlib
import copy
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import datetime, timezone

from .._core import env_vars
from .._core.durations import in_words
from .._core.money import Rate, plain, sats
from .._core.secret_text import shown
from .._core.urls import is_in_the_clear, origin_at, without_userinfo
from ..budgets.fmv import FmvProvider, rate_for
from ..budgets.schema import BudgetEnvelope
from ..errors import (
    BudgetError,
    BudgetExceededError,
    ChallengeExpiredError,
    ChallengeMismatchError,
    EnvelopeNotFoundError,
    FundingError,
    LedgerError,
    PaymentDeclinedError,
    PolicyDeniedError,
    PolicyMaxPerCallExceededError,
    RailNotSupportedError,
    RouteweilerError,
)
from ..ledger.envelopes import Draw, check_allowed, frozen
from ..ledger.ledger import Ledger
from ..ledger.types import EnvelopeRow, PaymentRow
from ..policy.dsl import Policy
from ..policy.engine import evaluate
from ..protocol.challenge import Challenge
from ..protocol.invoice import Invoice, decode_invoice
from ..protocol.schemes import is_reusable
from .outcome_errors import unsent_error
from .types import Quote, TokenRequest

#: No payment is begun for an invoice that expires sooner than this: the payment would race the expiry.
MIN_INVOICE_LIFE_S = 2
#: What is left of a charge's time for presenting it: its payment must have ended so long before it expires.
PRESENT_MARGIN_S = 2.0
#: No payment of a charge is begun that has less time than this: lnd counts its timeout in whole seconds.
MIN_CHARGE_S = 3.0
#: An invoice that expired so long ago, by this machine's clock, has expired by any clock.
SURELY_EXPIRED_S = 60.0
#: No token is bought that expires sooner than this: the payment alone takes as long. Servers do sell tokens that live for seconds.
MIN_TOKEN_LIFE_S = 1


def is_payable(challenge: Challenge) -> bool:
    """Return whether `check_challenge` accepts ``challenge``."""
    try:
        check_challenge(challenge)
    except (ChallengeMismatchError, ChallengeExpiredError):
        return False
    return True


def check_challenge(challenge: Challenge) -> None:
    """Refuse a challenge whose payment would buy nothing.

    Raises: ChallengeMismatchError if token and invoice don't belong together; ChallengeExpiredError if one of them has expired or
    is about to.
    Money: none is spent.
    """
    named, invoice, now_s = challenge.names_payment_hash, challenge.invoice, time.time()
    if named is not None and named != invoice.payment_hash:
        raise ChallengeMismatchError(
            f"The token is for payment hash {named.hex()}, and the invoice is for {invoice.payment_hash.hex()}: paying would buy "
            "nothing.",
            advice="Report this to the server's operator.",
        )
    clock = f"by this machine's clock, {datetime.fromtimestamp(now_s, timezone.utc):%Y-%m-%d %H:%M:%S} UTC"
    if now_s + MIN_INVOICE_LIFE_S >= invoice.expires_at:
        raise ChallengeExpiredError(
            f"The invoice {invoice.payment_hash.hex()} {_end(invoice.expires_at - now_s)}, {clock}.",
            advice=f"Call again for a new invoice. If the error repeats, {_AHEAD}",
        )
    if not challenge.reusable and now_s + MIN_CHARGE_S > _charge_ends_s(challenge) - PRESENT_MARGIN_S:
        raise ChallengeExpiredError(
            f"The challenge with invoice {invoice.payment_hash.hex()} {_end(_charge_ends_s(challenge) - now_s)}, {clock}.",
            advice=f"Call again for a new challenge. If the error repeats, {_AHEAD}",
        )
    if challenge.valid_until is not None and now_s + MIN_TOKEN_LIFE_S >= challenge.valid_until:
        raise ChallengeExpiredError(
            f"The offered token {_end(challenge.valid_until - now_s)} by its own valid_until, {clock}: paying would buy nothing.",
            advice=f"Call again for a new token. If the error repeats, {_AHEAD}",
        )


def check_transport(scheme: str, url: str, proxied: bool = False) -> None:
    """Refuse to buy or present over plain http what one payment opens once: whoever reads the credential can use it first.

    This machine's own addresses are allowed unless the request is ``proxied``, which is by another machine; all are if the variable
    `env_vars.ALLOW_HTTP_PAYMENT` says so.

    Raises: PolicyDeniedError.
    """
    if not _may_travel(scheme, url, proxied=proxied):
        way = "plain http, through the proxy of another machine" if proxied else "plain http"
        instead = "List the server in NO_PROXY if it is on this machine" if proxied else "Use https if the server has it"
        raise PolicyDeniedError(
            f"{origin_at(url)} wants to be paid by the scheme {scheme} over {way}. Others on the way could read the credential and "
            "use it first.",
            advice=f"{instead}. Where the network is trusted, set {env_vars.ALLOW_HTTP_PAYMENT}=1.",
        )


def _may_travel(scheme: str, url: str, *, proxied: bool) -> bool:
    allowed = os.environ.get(env_vars.ALLOW_HTTP_PAYMENT, "").strip().lower()
    return is_reusable(scheme) or allowed in ("1", "true", "yes", "on") or not (proxied or is_in_the_clear(url))


def check_body(request: TokenRequest) -> None:
    """Refuse a challenge that is for another body than the request's.

    Raises: ChallengeMismatchError.
    Money: none is spent.
    """
    wanted = request.challenge.body_digest
    if wanted is not None and wanted != request.body_digest():
        raise ChallengeMismatchError(
            f"{request.origin} asks to be paid for another request: the digest in its challenge isn't that of the body that was "
            "sent, so paying would buy nothing.",
            advice="Report this to the server's operator.",
        )


def valid_until_of(challenge: Challenge) -> int | None:
    """Return until when what ``challenge`` sells can be used, in whole unix seconds; None if nothing says so."""
    return challenge.valid_until if challenge.reusable else int(_charge_ends_s(challenge))


def _charge_ends_s(challenge: Challenge) -> float:
    """Return the unix time in seconds after which nobody takes the payment or the credential of a charge any more."""
    ends_s = float(challenge.invoice.expires_at)
    return ends_s if challenge.expires_at is None else min(ends_s, challenge.expires_at)


def paying_ends_s(row: PaymentRow) -> float | None:
    """Return the unix time by which an order for ``row`` must have ended, for what it pays for to be of use; None if any will do.

    An invoice that has surely expired may be sent at any time: the node's word that it has ends the row.
    """
    if not row.single_use or row.valid_until is None:
        return None
    if time.time() > decode_invoice(row.bolt11).expires_at + SURELY_EXPIRED_S:
        return None
    return row.valid_until - PRESENT_MARGIN_S


#: A server that sells what has expired has another time than this machine.
_AHEAD = "check this machine's clock: it may be ahead by that much or more."


def _end(left_s: float) -> str:
    """Return in words when a thing ends that has ``left_s`` seconds left: below 0, it has ended."""
    if left_s > 0:
        return f"expires in {in_words(left_s)}, before it could be paid for"
    return f"expired {in_words(-left_s)} ago"


class Checks:
    """The checks of one session, made from its policy, envelope and confirm(). Thread-safe.

    ``problem`` is an error of the configuration that forbids to pay at all.

    They read the ledger and ask the provider of exchange rates, but no node.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        envelope: BudgetEnvelope | str | None,
        policy: Policy | None,
        fmv_provider: FmvProvider | None,
        confirm: Callable[[Quote], bool] | None,
        session_started_s: float,
        agent_id: str | None = None,
        problem: RouteweilerError | None = None,
    ) -> None:
        self._problem = problem
        self._ledger = ledger
        self._envelope = envelope
        self._policy = policy
        self._fmv_provider = fmv_provider
        self._confirm = confirm
        self._session_started_s = session_started_s
        self.agent_id = agent_id

    @property
    def asks_confirm(self) -> bool:
        """Whether the session has a confirm(), which is asked before each payment."""
        return self._confirm is not None

    def choose(self, offers: Iterable[Challenge], *, url: str, proxied: bool = False) -> Challenge | None:
        """Return the challenge to answer, of those that the 402 of ``url`` makes; None if there is none.

        It is the first that can be paid and that policy and envelope allow, by the policy's order of rails. If none is, it is the
        first: what forbids it is found when it is checked. ``offers`` is read no further than needed, and the ledger only if there
        are several. ``proxied`` is as in `check_transport`.

        Raises: what ``offers`` raises.
        """
        remaining = iter(offers)
        first = next(remaining, None)
        if first is None:
            return None
        if self._policy is None and self._is_brought_whole and is_payable(first) and self._is_rail_allowed(first):
            return first
        others = tuple(remaining)
        return min((first, *others), key=lambda each: self._rank(each, url, proxied=proxied)) if others else first

    def _rank(self, challenge: Challenge, url: str, *, proxied: bool) -> tuple[bool, bool, bool, int]:
        """Return how well ``challenge`` suits: the least is the best."""
        place, allowed = 0, self._is_rail_allowed(challenge)
        if self._policy is not None:
            network, rail = challenge.invoice.network, challenge.rail
            verdict = evaluate(self._policy, url=url, scheme=challenge.scheme, network=network, rail=rail)
            place, allowed = verdict.place, allowed and not verdict.denied and verdict.rail == rail
        return not is_payable(challenge), not allowed, not _may_travel(challenge.scheme, url, proxied=proxied), place

    @property
    def _is_brought_whole(self) -> bool:
        """Whether the envelope, and all that it is said to lie in, were given with their limits: none is named by its id alone."""
        outermost: BudgetEnvelope | str | None = self._envelope
        while isinstance(outermost, BudgetEnvelope):
            outermost = outermost.parent
        return outermost is None

    def _is_rail_allowed(self, challenge: Challenge) -> bool:
        """Return whether the envelope, and all that it lies in, allow the rail of ``challenge``.

        Those that can't be read are told of by `check_allowed`, or where the payment is opened.
        """
        given: BudgetEnvelope | str | None = self._envelope
        while isinstance(given, BudgetEnvelope):
            if challenge.rail not in given.allowed_rails:
                return False
            given = given.parent
        if given is None:
            return True
        row: EnvelopeRow | None
        try:
            row = self._ledger.envelope(given)
        except (EnvelopeNotFoundError, LedgerError):
            return True
        while row is not None and challenge.rail in row.limits.allowed_rails:
            row = row.parent
        return row is None

    def may_allow(self, request: TokenRequest) -> bool:
        """Return whether nothing forbids to pay for ``request`` that is known without ledger, exchange rate and wallet."""
        limits = self._envelope
        if self._problem is not None or isinstance(limits, str):
            return False
        if any(self._rank(request.challenge, request.url, proxied=request.proxied)[:3]):
            return False
        try:
            check_body(request)
            if limits is not None:
                check_allowed(limits, request.origin, request.challenge.rail)
        except (ChallengeMismatchError, PolicyDeniedError, RailNotSupportedError):
            return False
        return True

    def check_allowed(self, request: TokenRequest) -> None:
        """Refuse what the configuration, the policy or the envelope forbids, whatever was spent before.

        Raises: PolicyDeniedError, PolicyMaxPerCallExceededError, RailNotSupportedError, EnvelopeNotFoundError; FmvUnavailableError
        if the policy has a limit in a currency without a rate. The configuration's own error, if it has one.
        """
        if self._problem is not None:
            raise copy.copy(self._problem)
        check_transport(request.challenge.scheme, request.url, request.proxied)
        check_body(request)
        self._check_policy(request)
        self._check_envelope(request)

    def check_confirmed(self, quote: Quote) -> None:
        """Ask confirm(), if the session has one.

        Raises: PaymentDeclinedError unless the answer is True itself. Other values don't count as yes: the coroutine of an async
        function and the string "no" are true as well.
        """
        if self._confirm is None:
            return
        answer: object = self._confirm(quote)
        if answer is not True:
            why = "" if answer is None or answer is False else f" (its answer, a {type(answer).__name__}, isn't True or False)"
            raise PaymentDeclinedError(
                f"confirm() declined to pay {sats(quote.amount_msat)} for {quote.url}{why}.",
                advice="Nothing is to be done, if that was meant. To pay, confirm must return True itself.",
            )

    def check_origin(self, row: PaymentRow, request: TokenRequest) -> None:
        """Refuse the row of a payment to another origin: its token goes only to the origin that issued it.

        Raises: ChallengeMismatchError.
        """
        if row.origin != request.origin:
            raise ChallengeMismatchError(
                f"{request.origin} offers an invoice that was paid to {row.origin} already: the token of that payment goes to no "
                "other server, and paying again would buy nothing.",
                advice="Report this to the server's operator, if you trust them.",
            )

    def check_resend(self, row: PaymentRow, request: TokenRequest, *, fee_cap_msat: int) -> None:
        """Check an unfinished payment of another call against what this session allows, before its invoice is sent again.

        A session that may not pay doesn't send the invoice, even if another session was allowed to. ``fee_cap_msat`` is the most
        that routing may cost from this session's wallet. The limits of the envelope are checked where the send is counted.

        Raises: PaymentPendingError if this session doesn't allow the payment. The earlier send may still arrive.
        """
        invoice = decode_invoice(row.bolt11)
        request = replace(request, challenge=replace(request.challenge, invoice=invoice))
        try:
            self.check_allowed(request)
            if row.max_fee_msat > fee_cap_msat:
                raise BudgetExceededError(
                    f"Its routing may cost {sats(row.max_fee_msat)}, more than the {sats(fee_cap_msat)} that this session allows.",
                    advice="Give the funding source a higher max_fee_msat.",
                )
            self._check_standing_limits(row, request)
            if self.asks_confirm:
                self.check_confirmed(self.quote(request, invoice, row.max_fee_msat))
        except (PolicyDeniedError, PolicyMaxPerCallExceededError, RailNotSupportedError, BudgetError, FundingError) as error:
            raise unsent_error(row, error) from error

    def draw(self, request: TokenRequest) -> Draw | None:
        """Return the draw on the envelope for the purchase, at the present exchange rate; None without an envelope.

        Raises: FmvUnavailableError, EnvelopeNotFoundError.
        """
        if self._envelope is None:
            return None
        return Draw(
            envelope=self._envelope,
            rate=self._rate(),
            session_started_s=self._session_started_s,
            spent_in_call_msat=request.spent_in_call_msat,
            agent_id=self.agent_id,
        )

    def quote(self, request: TokenRequest, invoice: Invoice, max_fee_msat: int, draw: Draw | None = None) -> Quote:
        """Return the quote for ``invoice`` in the budget's currency, at the rate of ``draw`` or else at the present one.

        ``max_fee_msat`` is the most that routing may cost.

        Raises: FmvUnavailableError, EnvelopeNotFoundError.
        """
        rate = draw.rate if draw is not None else self._rate()
        is_asked = invoice is request.challenge.invoice and not request.challenge.reusable
        ends_s = _charge_ends_s(request.challenge) if is_asked else invoice.expires_at
        return Quote(
            url=without_userinfo(request.url),
            amount_msat=invoice.amount_msat,
            max_fee_msat=max_fee_msat,
            amount_minor_units=rate.minor_units_of(invoice.amount_msat),
            currency=rate.currency,
            scope=request.scope,
            payment_hash=invoice.payment_hash.hex(),
            description=invoice.description,
            expires_at=datetime.fromtimestamp(ends_s, tz=timezone.utc),
            scheme=request.challenge.scheme,
        )

    def _limits(self) -> BudgetEnvelope | None:
        """Return the envelope in force, or None without one. If only its id was given, it is read from the ledger.

        Raises: EnvelopeNotFoundError.
        """
        return self._ledger.envelope(self._envelope).limits if isinstance(self._envelope, str) else self._envelope

    def _rate(self) -> Rate:
        """Return the present exchange rate of the budget's currency.

        Raises: FmvUnavailableError, EnvelopeNotFoundError.
        """
        limits = self._limits()
        return Rate(currency="sat") if limits is None else rate_for(limits.cap_currency, self._fmv_provider)

    def _check_policy(self, request: TokenRequest) -> None:
        """Refuse what the policy forbids: the URL, the rail, or a price above its limit for one call."""
        if self._policy is None:
            return
        invoice, rail = request.challenge.invoice, request.challenge.rail
        verdict = evaluate(self._policy, url=request.url, scheme=request.challenge.scheme, network=invoice.network, rail=rail)
        if verdict.denied:
            raise PolicyDeniedError(
                f"The policy forbids paying {request.origin}: {verdict.reason}.", advice="Change the policy to allow this payment."
            )
        if verdict.rail != rail:
            raise RailNotSupportedError(
                f"The policy wants {request.origin} to be paid by {verdict.rail}, and the server's challenge is for {rail}.",
                advice="Change the policy to allow this payment.",
            )
        limit = verdict.max_per_call_minor_units
        if limit is not None:
            price_msat = invoice.amount_msat + request.spent_in_call_msat  # the limit is for the call, with all its redirects
            price = rate_for(self._policy.currency, self._fmv_provider).minor_units_of(price_msat)
            if price > limit:
                raise PolicyMaxPerCallExceededError(
                    f"The price of {plain(price)} {self._policy.currency} minor units is above the {limit} that the "
                    f"policy's rule {shown(verdict.rule)} allows for one call.",
                    advice="Change the policy to allow this payment.",
                )

    def _check_envelope(self, request: TokenRequest) -> None:
        """Refuse an origin or rail that the envelope doesn't allow."""
        limits = self._limits()
        if limits is None:
            return
        try:
            given: BudgetEnvelope | str | None = limits
            while isinstance(given, BudgetEnvelope):  # one that is named by its id is read when the payment is opened
                check_allowed(given, request.origin, request.challenge.rail)
                given = given.parent
        except (PolicyDeniedError, RailNotSupportedError):
            with contextlib.suppress(LedgerError):
                if limits is self._envelope and self._ledger.exists():
                    self._ledger.bring(limits)  # as a purchase would do: other sessions must see the changed envelope too
            raise

    def _check_standing_limits(self, row: PaymentRow, request: TokenRequest) -> None:
        """Check a payment that is reserved already, perhaps in another envelope, against this session's envelope.

        Raises: EnvelopeFrozenError; BudgetExceededError if it may cost more than the envelope allows for one call.
        """
        limits = self._limits()
        if limits is None:
            return
        with contextlib.suppress(EnvelopeNotFoundError):  # it isn't in the ledger yet, so it can't be frozen
            if (frozen_id := self._ledger.envelope(limits.id).frozen_id) is not None:
                raise frozen(frozen_id)
        limit_micro = limits.limit_micro("per_call_minor_units")
        most_msat = row.amount_msat + row.max_fee_msat
        if limit_micro is not None and self._rate().micro_of(most_msat + request.spent_in_call_msat) > limit_micro:
            raise BudgetExceededError(
                f"The payment may cost {sats(most_msat)}, more than envelope {shown(limits.id)} allows for one call.", advice=""
            )
