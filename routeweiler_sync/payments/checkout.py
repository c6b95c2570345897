"""Checkout buys one token: the only door to the money.

The order of things, none of which may be swapped:
  1. what the challenge itself tells (token and invoice belong together, not expired);
  2. a live token, or an unfinished purchase, for the same request: used, or carried to its end, before anything new is bought;
  3. policy, envelope, funding, node, rate, confirm: every reason to refuse, while nothing has happened yet;
  4. the ledger reserves and writes the intent down, on disk;
  5. the wallet pays; on any doubt it is asked, never guessed;
  6. the ledger books the spend and keeps the token, in one transaction.

The reasons to refuse are in `checks`, steps 5 and 6 in `lifecycle`. What is bought for which request, and what the server then says
of it, is `paywall`'s.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Iterator, Sequence

from .._core.deadline import Deadline
from ..budgets.fmv import FmvProvider
from ..budgets.schema import BudgetEnvelope
from ..errors import RouteweilerError
from ..funding.source import LightningFundingSource
from ..funding.wallet import default_fee_cap_msat
from ..ledger.ledger import Ledger
from ..ledger.types import Intent, PaymentRow, PaymentState
from ..policy.dsl import Policy
from ..protocol.invoice import decode_invoice
from . import block_limit
from .checks import Checks, check_challenge, source_for
from .first_use import begin_first_use, wait_for_first_use
from .lifecycle import PaymentLifecycle, as_purchase
from .outcome_errors import repeated_invoice_error, unserved_error
from .single_flight import Flight, single_flight
from .types import Purchase, Quote, TokenRequest
from .wallet_rules import NextStep

log = logging.getLogger("routeweiler_sync")


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
        self._payment_timeout_s = payment_timeout_s
        self._problem = problem
        self._checks = Checks(
            ledger=ledger,
            envelope=envelope,
            policy=policy,
            fmv_provider=fmv_provider,
            confirm=confirm,
            session_started_s=time.time() if session_started_s is None else session_started_s,
        )
        self._lifecycle = PaymentLifecycle(ledger=ledger, funding=self.funding, checks=self._checks)

    def token_for(
        self,
        request: TokenRequest,
        *,
        refused: frozenset[str] = frozenset(),
        may_buy: bool = True,
        worth_an_offer: Callable[[PaymentRow], bool] = lambda row: True,
    ) -> Purchase | None:
        """Return the token for ``request``: a live one, one whose purchase is carried to its end, or a new one.

        ``refused``: payment hashes (hex) of tokens that the server has just refused; they aren't returned again. Without
        ``may_buy`` nothing new is bought: None where there is nothing to return. ``worth_an_offer`` is asked about a live token
        that the server has accepted before; if it says no, that token is retired and another may be bought. A new token is kept for
        its buyer's first use: call `first_use.end_first_use` when that is over.

        Raises: an error of `routeweiler_sync.errors`, each of which says what became of the money.
        Money: a payment may be made.
        """
        deadline = Deadline(self._payment_timeout_s)
        with single_flight((self.ledger.url, request.origin, request.scope), deadline) as flight:
            standing = self._standing(request, refused)
            if standing is not None and may_buy and _has_served(standing) and not worth_an_offer(standing):
                self.ledger.retire(standing.payment_hash)
                standing = None
            if standing is not None:
                flight.payment_hash = standing.payment_hash
                return _kept_for_buyer(self._lifecycle.purchase_for(standing, request, deadline))
            earlier = self.ledger.retired(request.origin, request.scope, request.resource_digest)
            if earlier is not None and earlier.payment_hash not in refused and worth_an_offer(earlier):
                return as_purchase(earlier, bought=False)  # refused for something else, maybe: asking costs nothing
            if not may_buy:
                return None
            unserved = self._unserved(request)
            if unserved is None:
                return _kept_for_buyer(self._buy(request, deadline, flight))
            if unserved.payment_hash not in refused:
                return as_purchase(unserved, bought=False)
        raise unserved_error(unserved, request)  # outside: those who wait for the scope may want it for something else

    def quote(self, request: TokenRequest) -> Quote | None:
        """Return what a call for ``request`` would pay, or None where the ledger has a token for it.

        Policy and limits aren't asked: what a call may pay is another question. No node is asked.

        Raises: ChallengeExpiredError, ChallengeMismatchError, and FmvUnavailableError where the budget's currency has no rate.
        Money: none moves.
        """
        live = self.ledger.live(request.origin, request.scope) if self.ledger.exists() else []
        standing = live[0] if live else None
        if standing is not None and standing.unfinished:  # a call would carry this one to its end
            return self._checks.quote(request, decode_invoice(standing.bolt11), standing.max_fee_msat)
        if standing is not None and (standing.valid_until is None or time.time() < standing.valid_until):
            return None
        check_challenge(request.challenge)
        invoice = request.challenge.invoice
        source = next((each for each in self.funding if each.network == invoice.network), None)
        fee_cap_msat = default_fee_cap_msat(invoice.amount_msat) if source is None else source.fee_cap_msat(invoice.amount_msat)
        return self._checks.quote(request, invoice, fee_cap_msat)

    def recover(self) -> Iterator[PaymentRow]:
        """Ask the node about every unfinished row of its own, book what it says, and yield each row as it is now.

        A row that was abandoned, and that the node has paid after all, is booked too. A row whose node can't be asked stays as it
        is.

        Raises: LedgerError where the ledger can't be read. PaymentPendingError where it can't be written: the row stays as it was,
        ``spent`` says whether the node has paid it; call again once it can be.
        Money: no payment is started.
        """
        deadline = Deadline(self._payment_timeout_s)
        for row in self.ledger.abandoned():
            now = self._look_at(row, deadline)
            if now is not None and now.settled_at is not None:
                yield now
        for row in self.ledger.unfinished():
            yield self._look_at(row, deadline) or row

    def _look_at(self, row: PaymentRow, deadline: Deadline) -> PaymentRow | None:
        """Ask the row's node once, and book what it says. Return the row as it is now, or None where its node can't be asked."""
        source, problem = self._lifecycle.source_of(row, deadline)
        if source is None:
            log.info("payment %s stays as it is: %s", row.payment_hash, problem or "no funding source has its node")
            return None
        answer = source.track(bytes.fromhex(row.payment_hash), timeout_s=deadline.left_s(), follow=False)
        return self._lifecycle.book(row, NextStep.TRACK, answer)[1]

    def _standing(self, request: TokenRequest, refused: frozenset[str]) -> PaymentRow | None:
        """Return the row that answers ``request`` or stands in the way of a new purchase, or None."""
        live = self.ledger.live(request.origin, request.scope)
        if live and wait_for_first_use(live[0].payment_hash):
            live = self.ledger.live(request.origin, request.scope)
        if live and live[0].payment_hash not in refused:
            return live[0]
        same = self.ledger.payment(request.challenge.payment_hash.hex())
        if same is not None and same.payment_hash in refused:
            raise repeated_invoice_error(same)
        return same

    def _unserved(self, request: TokenRequest) -> PaymentRow | None:
        """Return a payment for this very page whose token the server has never accepted: it gets no second one."""
        row = self.ledger.unserved(request.origin, request.resource_digest) if request.resource_digest else None
        if row is not None and wait_for_first_use(row.payment_hash):
            row = self.ledger.unserved(request.origin, request.resource_digest)
        return row

    def _buy(self, request: TokenRequest, deadline: Deadline, flight: Flight) -> Purchase:
        """Look for every reason to refuse, put the intent on disk, then order the payment."""
        check_challenge(request.challenge)
        if self._problem is not None:
            raise copy.copy(self._problem)
        self._checks.check_allowed(request)
        invoice = request.challenge.invoice
        source = source_for(self.funding, invoice.network)
        node_pubkey = source.ready(deadline.left_s())
        draw = self._checks.draw(request)
        payment_hash = request.challenge.payment_hash.hex()
        most_fee_msat = source.fee_cap_msat(invoice.amount_msat)
        with block_limit.reserved(request.limits, payment_hash, invoice.amount_msat, most_fee_msat) as reservation:
            if self._checks.asks_confirm:
                self._checks.check_confirmed(self._checks.quote(request, invoice, reservation.fee_cap_msat, draw))
                check_challenge(request.challenge)  # a person may take longer to answer than an invoice lives
                deadline = Deadline(self._payment_timeout_s)  # the wallet's time doesn't run while a person thinks
                draw = self._checks.draw(request)  # nor does a rate keep for as long
            request.still_useful()  # while the node was asked, or a person, the request's body may have been closed
            flight.payment_hash = payment_hash
            row, is_new = self.ledger.open_payment(_intent(request, node_pubkey, reservation.fee_cap_msat), draw)
            if is_new:
                reservation.keep()
        if not is_new:
            flight.payment_hash = row.payment_hash
            return self._lifecycle.purchase_for(row, request, deadline)
        log.info("paying %d msat to %s, payment hash %s", row.amount_msat, row.origin, row.payment_hash)
        return self._lifecycle.carry(row, source, NextStep.SEND, request, deadline)


def _intent(request: TokenRequest, node_pubkey: str, fee_cap_msat: int) -> Intent:
    challenge, invoice = request.challenge, request.challenge.invoice
    return Intent(
        payment_hash=challenge.payment_hash.hex(),
        origin=request.origin,
        scope=request.scope,
        path=request.path,
        node_pubkey=node_pubkey,
        network=invoice.network,
        bolt11=invoice.bolt11,
        scheme=challenge.scheme,
        token=challenge.token,
        amount_msat=invoice.amount_msat,
        fee_cap_msat=fee_cap_msat,
        valid_until=challenge.valid_until,
        resource_digest=request.resource_digest,
    )


def _has_served(row: PaymentRow) -> bool:
    return row.state is PaymentState.SETTLED and row.accepted


def _kept_for_buyer(purchase: Purchase) -> Purchase:
    """Keep a new token for its buyer's first use, before anyone who waits for it goes on."""
    if purchase.bought:
        begin_first_use(purchase.token.payment_hash)
    return purchase
