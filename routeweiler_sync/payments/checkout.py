"""Checkout buys one token: the only door to the money.

It runs the decisions of `routeweiler_sync.payments.wallet_rules` against the ledger and the node. What is bought for which request, and what
the server then says, is the adapter's.

The order of things, none of which may be swapped:
  1. what the challenge itself tells (token and invoice belong together, not expired);
  2. a live token, or an unfinished purchase, of the same need: used, or carried to its end, before anything new is bought;
  3. policy, envelope, funding, node, rate, confirm: every reason to refuse, while nothing has happened yet;
  4. the ledger reserves and writes the intent down, on disk;
  5. the node pays; on any doubt it is asked, never guessed;
  6. the ledger books the spend and keeps the token, in one transaction.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

import tenacity

from .._core.deadline import Deadline
from .._core.money import Rate, sats
from ..budgets.fmv import FmvProvider, rate_for
from ..budgets.schema import BudgetEnvelope
from ..errors import (
    BudgetError,
    BudgetExceededError,
    ChallengeMismatchError,
    EnvelopeFrozenError,
    EnvelopeNotFoundError,
    FundingError,
    LedgerError,
    NoFundingForRailError,
    PaymentDeclinedError,
    PaymentPendingError,
    PolicyDeniedError,
    PolicyMaxPerCallExceededError,
    RailNotSupportedError,
    RouteweilerError,
)
from ..funding.lightning import LightningFundingSource
from ..funding.replies import WalletAnswer, WalletReply
from ..funding.wallet import default_fee_cap_msat
from ..ledger.envelopes import Draw, check_allowed
from ..ledger.ledger import Ledger
from ..ledger.types import Intent, PaymentRow, PaymentState
from ..policy.dsl import Policy
from ..policy.engine import evaluate
from ..protocol.invoice import Invoice, decode_invoice
from . import block_limit, wallet_rules
from .checks import check_challenge
from .first_use import begin_first_use, wait_for_first_use
from .outcome_errors import ended_error, error_for, given_up, pending_error, unbooked_error, unserved_error
from .report_claims import claim, release
from .single_flight import Flight, single_flight
from .token import Token
from .types import Purchase, Quote, TokenRequest
from .wallet_rules import NextStep, Step

log = logging.getLogger("routeweiler_sync")
#: How often one call sends an invoice again whose earlier send is unanswered. More would only add unanswered sends.
MAX_RESENDS = 1
#: How long another process's purchase is left alone before the node is asked about it. It ends nothing; asking is harmless.
LEAVE_ALONE_S = 1.0
#: The node's word for money that has left.
PAID = (WalletReply.SUCCEEDED, WalletReply.WRONG_PREIMAGE)
#: Nodes and ledgers are asked again at these intervals: soon at first, then patiently.
ROW_POLL = tenacity.wait_exponential(multiplier=0.01, max=0.25) + tenacity.wait_random(0, 0.01)
NODE_POLL = tenacity.wait_exponential(multiplier=0.05, max=1.0) + tenacity.wait_random(0, 0.05)


class Checkout:
    """Buys tokens within a budget. Thread-safe; shared by all requests of a session.

    `token_for` may move money, `recover` asks but never sends.
    """

    def __init__(
        self,
        *,
        funding: Sequence[LightningFundingSource],
        ledger: Ledger,
        envelope: BudgetEnvelope | str | None,
        policy: Policy | None = None,
        fmv_provider: FmvProvider | None = None,
        payment_timeout_s: float = 60.0,
        confirm: Callable[[Quote], bool] | None = None,
        session_started_s: float | None = None,
        problem: RouteweilerError | None = None,
    ) -> None:
        self.funding = tuple(funding)
        self.ledger = ledger
        self.envelope = envelope
        self.policy = policy
        self._fmv_provider = fmv_provider
        self._payment_timeout_s = payment_timeout_s
        self._confirm = confirm
        self._problem = problem
        self._session_started_s = time.time() if session_started_s is None else session_started_s

    def token_for(
        self,
        token_request: TokenRequest,
        *,
        refused: frozenset[str] = frozenset(),
        may_buy: bool = True,
        worth_an_offer: Callable[[PaymentRow], bool] = lambda row: True,
    ) -> Purchase | None:
        """The token that ``token_request`` asks for: a live one, one whose purchase is carried to its end, or a new one. May move money.

        ``refused``: payment hashes (hex) of tokens that the server has just refused; they aren't given again. Without ``may_buy``
        nothing new is bought: None where there is nothing to give. ``worth_an_offer``: of a live token that was taken; one that
        isn't is retired before another is bought. A new token is kept for its buyer's first use: `flight.end_first_use` when that
        is over. Raises the errors of the tree; each says what became of the money.
        """
        deadline = Deadline(self._payment_timeout_s)
        with single_flight((self.ledger.url, token_request.origin, token_request.scope), deadline) as flight:
            standing = self._standing(token_request, refused)
            if standing is not None and may_buy and _has_served(standing) and not worth_an_offer(standing):
                self.ledger.retire(standing.payment_hash)
                standing = None
            if standing is not None:
                flight.payment_hash = standing.payment_hash
                return _kept_for_buyer(self._use(standing, token_request, deadline))
            earlier = self.ledger.retired(token_request.origin, token_request.scope, token_request.resource_digest)
            if earlier is not None and earlier.payment_hash not in refused and worth_an_offer(earlier):
                return _as_purchase(earlier, bought=False)  # refused for something else, maybe: asking costs nothing
            if not may_buy:
                return None
            unserved = self._unserved(token_request)
            if unserved is None:
                return _kept_for_buyer(self._buy(token_request, deadline, flight))
            if unserved.payment_hash not in refused:
                return _as_purchase(unserved, bought=False)
        raise unserved_error(unserved, token_request)  # outside: those who wait for the scope may need it for something else

    def quote(self, token_request: TokenRequest) -> Quote | None:
        """What a call for ``token_request`` would pay, or None where the ledger has a token for it. Asks no node and pays nothing.

        Policy and limits aren't asked: what a call may pay is another question. Raises ChallengeExpiredError,
        ChallengeMismatchError, and FmvUnavailableError where the budget's currency has no rate.
        """
        live = self.ledger.live(token_request.origin, token_request.scope) if self.ledger.exists() else []
        standing = live[0] if live else None
        if standing is not None and standing.unfinished:  # a call would carry this one to its end
            return self._quote(token_request, decode_invoice(standing.bolt11), standing.max_fee_msat)
        if standing is not None and (standing.valid_until is None or time.time() < standing.valid_until):
            return None
        check_challenge(token_request.challenge)
        invoice = token_request.challenge.invoice
        source = next((each for each in self.funding if each.network == invoice.network), None)
        fee_cap_msat = default_fee_cap_msat(invoice.amount_msat) if source is None else source.fee_cap_msat(invoice.amount_msat)
        return self._quote(token_request, invoice, fee_cap_msat)

    def recover(self) -> Iterator[PaymentRow]:
        """Ask the node about every unfinished row of its own, and book what it says. Starts no payment. Each row, as it is now.

        One that was abandoned, and that the node has paid after all, is booked too.
        A row whose node can't be asked stays as it is. Raises LedgerError where the ledger can't be read, PaymentPendingError
        where it can't be written: the row stays as it was, ``spent`` says whether the node has paid it; call again once it can.
        """
        deadline = Deadline(self._payment_timeout_s)
        for row in self.ledger.abandoned():
            source, _ = self._source_of(row, deadline)
            if source is not None:
                now = self._take(row, NextStep.TRACK, source.track(_hash(row), timeout_s=deadline.left_s(), follow=False))[1]
                if now.settled_at is not None:
                    yield now
        for row in self.ledger.unfinished():
            source, problem = self._source_of(row, deadline)
            if source is None:
                log.info("payment %s stays unfinished: %s", row.payment_hash, problem or "no funding source has its node")
                yield row
                continue
            answer = source.track(_hash(row), timeout_s=deadline.left_s(), follow=False)
            yield self._take(row, NextStep.TRACK, answer)[1]

    # -- what is there already --------------------------------------------------------------------------------------------

    def _standing(self, token_request: TokenRequest, refused: frozenset[str]) -> PaymentRow | None:
        """The row that answers ``token_request`` or stands in the way of a new purchase, or None."""
        live = self.ledger.live(token_request.origin, token_request.scope)
        if live and wait_for_first_use(live[0].payment_hash):
            live = self.ledger.live(token_request.origin, token_request.scope)
        if live and live[0].payment_hash not in refused:
            return live[0]
        same = self.ledger.payment(token_request.challenge.payment_hash.hex())
        if same is not None and same.payment_hash in refused:
            raise given_up(same)
        return same

    def _unserved(self, token_request: TokenRequest) -> PaymentRow | None:
        """A payment for this very target whose token no server has taken: a server that never delivers gets no second one."""
        row = self.ledger.unserved(token_request.origin, token_request.resource_digest) if token_request.resource_digest else None
        if row is not None and wait_for_first_use(row.payment_hash):
            row = self.ledger.unserved(token_request.origin, token_request.resource_digest)
        return row

    def _use(self, row: PaymentRow, token_request: TokenRequest, deadline: Deadline) -> Purchase:
        """What ``row``, found in the ledger, comes to. One of another origin is none of this server's business."""
        if row.origin != token_request.origin:
            raise ChallengeMismatchError(
                f"{token_request.origin} offers an invoice for a payment hash that {row.origin} was paid for: its token goes nowhere else, "
                "and paying again would buy nothing. Nothing was spent. Tell the server's operator, if you trust them."
            )
        if row.unfinished:
            return self._resolve(row, token_request, deadline)
        block_limit.record(token_request.limits, row)
        if row.state is PaymentState.SETTLED:
            return _as_purchase(row, bought=False)
        raise given_up(row)

    def _resolve(self, row: PaymentRow, token_request: TokenRequest, deadline: Deadline) -> Purchase:
        """Carry another's unfinished purchase to its end: leave it alone for a moment, then ask its node."""
        row = self._watch(row, Deadline(min(LEAVE_ALONE_S, deadline.left_s())))
        if row.unfinished:
            source, problem = self._source_of(row, deadline)
            if source is not None:
                return self._carry(row, source, NextStep.TRACK, token_request, deadline)
            if problem is not None:
                raise pending_error(row, f"its node can't be asked: {problem}") from problem
            row = self._watch(row, deadline)
            if row.unfinished:
                raise pending_error(row, f"only its own node {row.node_pubkey} can tell, and this session hasn't that one")
        block_limit.record(token_request.limits, row)
        if row.state is PaymentState.SETTLED:
            return _as_purchase(row, bought=False)
        raise ended_error(row)

    def _watch(self, row: PaymentRow, deadline: Deadline) -> PaymentRow:
        """Wait until ``row`` has ended or the time is up."""

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_result(lambda seen: seen.unfinished and not deadline.passed),
            wait=ROW_POLL,
        )
        return retrying(lambda: self._now(row))

    def _now(self, row: PaymentRow) -> PaymentRow:
        """``row`` as it is now. PaymentPendingError where the ledger can't tell: it was unfinished, and may be paid."""
        try:
            return self.ledger.payment(row.payment_hash) or row
        except LedgerError as error:
            raise unbooked_error(row, error, paid=False) from error

    # -- a new purchase ---------------------------------------------------------------------------------------------------

    def _buy(self, token_request: TokenRequest, deadline: Deadline, flight: Flight) -> Purchase:
        """Every reason to refuse, then the intent on disk, then the order."""
        check_challenge(token_request.challenge)
        if self._problem is not None:
            raise copy.copy(self._problem)
        invoice = token_request.challenge.invoice
        self._check_policy(token_request)
        self._check_envelope(token_request)
        source = self._source_for(invoice.network)
        node_pubkey = source.ready(deadline.left_s())
        draw = self._draw(token_request)
        payment_hash = token_request.challenge.payment_hash.hex()
        fee_cap_msat = block_limit.reserve(
            token_request.limits, payment_hash, invoice.amount_msat, source.fee_cap_msat(invoice.amount_msat)
        )
        try:
            if self._confirm is not None:
                self._ask_confirm(self._confirm, self._quote(token_request, invoice, fee_cap_msat, draw))
                check_challenge(token_request.challenge)  # a person may take longer to answer than an invoice lives
                deadline = Deadline(self._payment_timeout_s)  # the wallet's time doesn't run while a person thinks
                draw = self._draw(token_request)  # nor does a rate keep for as long
            token_request.still_useful()  # while the node was asked, or a person, the request's body may have been closed
            flight.payment_hash = payment_hash
            row, is_new = self.ledger.open_payment(_intent(token_request, node_pubkey, fee_cap_msat), draw)
        except BaseException:
            block_limit.release(token_request.limits, payment_hash)
            raise
        if not is_new:
            block_limit.release(token_request.limits, payment_hash)
            flight.payment_hash = row.payment_hash
            return self._use(row, token_request, deadline)
        log.info("paying %d msat to %s, payment hash %s", row.amount_msat, row.origin, row.payment_hash)
        return self._carry(row, source, NextStep.SEND, token_request, deadline)

    def _check_policy(self, token_request: TokenRequest) -> None:
        if self.policy is None:
            return
        invoice = token_request.challenge.invoice
        verdict = evaluate(
            self.policy,
            url=token_request.url,
            scheme=token_request.challenge.scheme,
            network=invoice.network,
            rail=token_request.challenge.rail,
        )
        if verdict.denied:
            raise PolicyDeniedError(
                f"The policy forbids paying {token_request.origin}: {verdict.reason}. Nothing was spent. Change the policy to allow it."
            )
        if verdict.rail != token_request.challenge.rail:
            raise RailNotSupportedError(
                f"The policy wants {token_request.origin} paid over {verdict.rail}, and the server was understood to offer {token_request.challenge.rail} only. "
                "Nothing was spent. Change the policy to allow it."
            )
        limit = verdict.max_per_call_minor_units
        if limit is not None:
            price_msat = invoice.amount_msat + token_request.spent_in_call_msat  # a call is a call, over however many redirects
            price = rate_for(self.policy.currency, self._fmv_provider).minor_units_of(price_msat)
            if price > limit:
                raise PolicyMaxPerCallExceededError(
                    f"The price of {price.normalize():f} {self.policy.currency} minor units is above the {limit} that the policy's "
                    f"rule {verdict.rule!r} allows for one call. Nothing was spent. Change the policy to allow it."
                )

    def _check_envelope(self, token_request: TokenRequest) -> None:
        envelope = self.envelope
        if isinstance(envelope, str):
            envelope = self.ledger.envelope(envelope).limits
        if envelope is None:
            return
        try:
            check_allowed(envelope, token_request.origin, token_request.challenge.rail)
        except (PolicyDeniedError, RailNotSupportedError):
            with contextlib.suppress(LedgerError):
                if envelope is self.envelope and self.ledger.exists():
                    self.ledger.bring(envelope)  # as a purchase would: what it forbids holds for the others too
            raise

    def _source_for(self, network: str) -> LightningFundingSource:
        for source in self.funding:
            if source.network == network:
                return source
        have = ", ".join(sorted({s.network for s in self.funding})) or "none"
        raise NoFundingForRailError(
            f"The invoice is on {network}, and no funding for that network is configured (configured: {have}). "
            "Nothing was spent. Add a funding source for it."
        )

    def _rate(self) -> Rate:
        """At what rate the budget counts now. FmvUnavailableError."""
        if self.envelope is None:
            return Rate(currency="sat")
        envelope = self.ledger.envelope(self.envelope).limits if isinstance(self.envelope, str) else self.envelope
        return rate_for(envelope.cap_currency, self._fmv_provider)

    def _draw(self, token_request: TokenRequest) -> Draw | None:
        if self.envelope is None:
            return None
        return Draw(
            envelope=self.envelope,
            rate=self._rate(),
            session_started_s=self._session_started_s,
            spent_in_call_msat=token_request.spent_in_call_msat,
        )

    def _quote(self, token_request: TokenRequest, invoice: Invoice, max_fee_msat: int, draw: Draw | None = None) -> Quote:
        rate = draw.rate if draw is not None else self._rate()
        return Quote(
            url=token_request.url,
            amount_msat=invoice.amount_msat,
            max_fee_msat=max_fee_msat,
            amount_minor_units=rate.minor_units_of(invoice.amount_msat),
            currency=rate.currency,
            scope=token_request.scope,
            payment_hash=invoice.payment_hash.hex(),
            description=invoice.description,
            expires_at=datetime.fromtimestamp(invoice.expires_at, tz=timezone.utc),
        )

    def _ask_confirm(self, confirm: Callable[[Quote], bool], quote: Quote) -> None:
        """PaymentDeclinedError unless the answer is True: of an async function's, or a "no", `bool` would say yes."""
        answer: object = confirm(quote)
        if answer is not True:
            what = "" if answer is None or answer is False else f" (its answer, a {type(answer).__name__}, isn't True or False)"
            raise PaymentDeclinedError(
                f"Paying {sats(quote.amount_msat)} for {quote.url} was declined by confirm(){what}. Nothing was spent."
            )

    # -- the loop that runs the table -------------------------------------------------------------------------------------

    def _carry(
        self, row: PaymentRow, source: LightningFundingSource, next_step: NextStep, token_request: TokenRequest, deadline: Deadline
    ) -> Purchase:
        """Do what the table says until it says what the call ends with. A first SEND has been counted by whoever opened the row."""
        try:
            is_mine = next_step is NextStep.SEND
            resends, counted, started_s, reason = MAX_RESENDS, is_mine, time.monotonic(), None
            while True:
                if next_step is NextStep.SEND and not counted:
                    if not resends:
                        raise pending_error(row, "its order was sent again once, and nothing more is known")
                    resends -= 1
                    if not is_mine:
                        self._check_resend(row, token_request)
                    self._hold_again(row, token_request)
                    again = self._counted_again(row)
                    if again is None:  # ended meanwhile: look at how
                        return self._use(self._now(row), token_request, deadline)
                    row = again
                counted = False
                answer = self._ask(row, source, next_step, deadline)
                reason = answer.reason or reason
                step, row = self._take(row, next_step, answer)
                block_limit.record(token_request.limits, row)
                next_step = step.rule.next_step
                if not next_step.asks_node:
                    break
                if deadline.passed:
                    raise pending_error(row, f"no final word came in time{f' (the last was: {reason})' if reason else ''}")
            if next_step is NextStep.HAND_OVER and row.preimage is not None:
                latency_ms = int((time.monotonic() - started_s) * 1000)
                return _as_purchase(row, bought=step.settles, settlement_latency_ms=latency_ms if step.settles else None)
            if next_step is NextStep.RAISE_PENDING:
                raise pending_error(row, reason or "an earlier order for it is unanswered")
            raise error_for(next_step, row, reason)
        except BaseException:
            release(row.payment_hash)
            raise

    def _ask(self, row: PaymentRow, source: LightningFundingSource, next_step: NextStep, deadline: Deadline) -> WalletAnswer:
        """Send once, or ask until the node says something or the time is up."""
        if next_step is NextStep.SEND:
            return source.send(row.bolt11, payment_hash=_hash(row), max_fee_msat=row.max_fee_msat, timeout_s=deadline.left_s())
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_result(lambda answer: answer.reply is WalletReply.UNKNOWN and not deadline.passed),
            wait=NODE_POLL,
            sleep=lambda pause_s: time.sleep(min(pause_s, deadline.left_s())),
        )
        return retrying(lambda: source.track(_hash(row), timeout_s=deadline.left_s(), follow=next_step is not NextStep.LAST_LOOK))

    def _hold_again(self, row: PaymentRow, token_request: TokenRequest) -> None:
        """An order that leaves again counts for the blocks that it leaves from, whoever sent it first."""
        try:
            block_limit.reserve(token_request.limits, row.payment_hash, row.amount_msat, row.max_fee_msat, whole=True)
        except BudgetExceededError as error:
            raise _unsent_error(row, error) from error

    def _check_resend(self, row: PaymentRow, token_request: TokenRequest) -> None:
        """Whether this session, too, may pay for what another began: who was told no mustn't pay, whoever was told yes before.

        What is reserved for it stays as it is. PaymentPendingError, for the earlier order may still be carried out.
        """
        invoice = decode_invoice(row.bolt11)
        token_request = replace(token_request, challenge=replace(token_request.challenge, invoice=invoice))
        try:
            self._check_policy(token_request)
            self._check_envelope(token_request)
            self._check_standing_limits(row, token_request)
            if self._confirm is not None:
                self._ask_confirm(self._confirm, self._quote(token_request, invoice, row.max_fee_msat))
        except (PolicyDeniedError, PolicyMaxPerCallExceededError, RailNotSupportedError, BudgetError) as error:
            raise _unsent_error(row, error) from error

    def _check_standing_limits(self, row: PaymentRow, token_request: TokenRequest) -> None:
        """The session's envelope on a payment that is reserved already, maybe in another one: not frozen, and not too much."""
        own = self.envelope
        if own is None:
            return
        envelope = self.ledger.envelope(own).limits if isinstance(own, str) else own
        with contextlib.suppress(EnvelopeNotFoundError):  # nothing has been spent from it
            if self.ledger.envelope(envelope.id).frozen:
                raise EnvelopeFrozenError(f"Envelope {envelope.id!r} is frozen. Nothing was spent.")
        limit_micro = envelope.limit_micro("per_call_minor_units")
        most_msat = row.amount_msat + row.max_fee_msat
        if limit_micro is not None and self._rate().micro_of(most_msat + token_request.spent_in_call_msat) > limit_micro:
            raise BudgetExceededError(
                f"It may cost {sats(most_msat)}, more than envelope {envelope.id!r} allows for one call. Nothing was spent."
            )

    def _counted_again(self, row: PaymentRow) -> PaymentRow | None:
        try:
            return self.ledger.count_send(row.payment_hash)
        except EnvelopeFrozenError as error:
            raise _unsent_error(row, error) from error
        except LedgerError as error:
            raise unbooked_error(row, error, paid=False) from error

    def _take(self, row: PaymentRow, asked: NextStep, answer: WalletAnswer) -> tuple[Step, PaymentRow]:
        """Put ``answer`` to the table and book what it says, in one transaction on the row as it is by then."""
        steps: list[Step] = []

        def decide(current: PaymentRow) -> Any:
            steps.append(wallet_rules.decide(current, asked, answer))
            change = steps[-1].change
            if steps[-1].settles:
                claim(row.payment_hash)  # before any other thread can see it settled and untold
            changes_nothing = change.state is current.state and not change.answered
            return None if changes_nothing else change

        try:
            after = self.ledger.change(row.payment_hash, decide)
        except LedgerError as error:
            found = self._committed(row, steps[-1]) if steps else None
            if found is None:
                raise unbooked_error(row, error, paid=answer.reply in PAID) from error
            after = found
        if steps[-1].settles:
            log.info("payment %s settled, fee %d msat", row.payment_hash, after.fee_msat)
        return steps[-1], after

    def _committed(self, row: PaymentRow, step: Step) -> PaymentRow | None:
        """``row`` as booked by ``step``, if it was: a COMMIT that failed may have been one, and only the ledger knows."""
        try:
            now = self.ledger.payment(row.payment_hash)
        except LedgerError:
            return None
        return now if now is not None and not now.unfinished and now.state is step.change.state else None

    def _source_of(self, row: PaymentRow, deadline: Deadline) -> tuple[LightningFundingSource | None, FundingError | None]:
        """The funding source of the row's own node (no other may be asked about it, or sent it), or what kept us from it."""
        problem: FundingError | None = None
        for source in self.funding:
            if source.network != row.network:
                continue
            try:
                if source.ready(deadline.left_s()) == row.node_pubkey:
                    return source, None
            except FundingError as error:
                problem = error
        return None, problem


def _intent(token_request: TokenRequest, node_pubkey: str, fee_cap_msat: int) -> Intent:
    invoice = token_request.challenge.invoice
    return Intent(
        payment_hash=token_request.challenge.payment_hash.hex(),
        origin=token_request.origin,
        scope=token_request.scope,
        path=token_request.path,
        node_pubkey=node_pubkey,
        network=invoice.network,
        bolt11=invoice.bolt11,
        scheme=token_request.challenge.scheme,
        token=token_request.challenge.token,
        amount_msat=invoice.amount_msat,
        fee_cap_msat=fee_cap_msat,
        valid_until=token_request.challenge.valid_until,
        resource_digest=token_request.resource_digest,
    )


def _unsent_error(row: PaymentRow, why: RouteweilerError) -> PaymentPendingError:
    """The order of ``row`` isn't sent again, for the reason that refused it; the one before may still be carried out."""
    reason = str(why).partition(" Nothing was spent")[0]
    return pending_error(row, f"an earlier order for it is unanswered, and it isn't sent again: {reason}")


def _has_served(row: PaymentRow) -> bool:
    return row.state is PaymentState.SETTLED and row.accepted


def _kept_for_buyer(purchase: Purchase) -> Purchase:
    """``purchase``, before anyone who waits for it goes on."""
    if purchase.bought:
        begin_first_use(purchase.token.payment_hash)
    return purchase


def _hash(row: PaymentRow) -> bytes:
    return bytes.fromhex(row.payment_hash)


def _as_purchase(row: PaymentRow, *, bought: bool, settlement_latency_ms: int | None = None) -> Purchase:
    token = Token.of(row)
    if token is None:
        raise error_for(NextStep.RAISE_MISMATCH, row, None)
    return Purchase(token=token, row=row, bought=bought, settlement_latency_ms=settlement_latency_ms)
