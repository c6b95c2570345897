"""Buy one token. Every payment that is begun or continued goes through this module.

The steps of a purchase, whose order must not change:
  1. Look for a live token or an unfinished purchase for the same request. The token is used, the purchase is carried to its end,
     before anything new is bought.
  2. Check the challenge itself: token and invoice belong together and haven't expired.
  3. Check policy, envelope, funding, node, exchange rate and confirm(): every reason to refuse, before anything has happened.
  4. Reserve the cost and write the intent to the ledger, on disk.
  5. Let the wallet pay. If the outcome is in doubt, the wallet is asked; it is never guessed.
  6. Book the spend and store the token in the ledger, in one transaction.

The reasons to refuse are in `checks`, steps 5 and 6 in `lifecycle`. Which token a request needs, and what the server's answer to it
means, is left to `paywall`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from .._core.deadline import Deadline
from .._core.log import log
from ..budgets.fmv import FmvProvider
from ..budgets.schema import BudgetEnvelope
from ..errors import RouteweilerError
from ..funding.source import LightningFundingSource
from ..funding.wallet import default_fee_cap_msat
from ..ledger.ledger import FORGOTTEN, Ledger
from ..ledger.lookups import Found
from ..ledger.server_facts import REFUSED
from ..ledger.types import Intent, PaymentRow, PaymentState
from ..policy.dsl import Policy
from ..protocol.challenge import Challenge
from ..protocol.invoice import Invoice, decode_invoice
from . import block_limit
from .checks import Checks, check_challenge, check_transport, valid_until_of
from .first_use import begin_first_use, wait_for_first_use
from .lifecycle import MIN_ASK_S, PaymentLifecycle, answer_of, as_purchase
from .outcome_errors import (
    crowded_error,
    refused_charge_error,
    repeated_invoice_error,
    same_invoice_error,
    undelivered_error,
    unserved_error,
    used_invoice_error,
)
from .presenting import is_free
from .single_flight import Flight, single_flight
from .tally import Tally
from .types import Purchase, Quote, Rehearsal, TokenRequest
from .wallet_choice import ask_ahead, choose, order_follows, pays_on, sources_for
from .wallet_rules import NextStep

#: How often a call looks for a charge that is owed, since others have become free before it could buy its own.
MAX_LOOKS = 8


class Checkout:
    """Buys tokens within a budget. Thread-safe. One checkout serves all requests of a session.

    ``problem`` is an error of the configuration that forbids new purchases: it is raised when a token would be bought.
    ``session_started_s`` is in unix seconds; None means now. ``agent_id`` is whose purchases they are.

    Money: `token_for` may pay. `recover` asks the node but never sends an invoice. `quote` asks no node.
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
        agent_id: str | None = None,
        problem: RouteweilerError | None = None,
    ) -> None:
        self.funding = tuple(funding)
        self.ledger = ledger
        self._payment_timeout_s = payment_timeout_s
        self._checks = Checks(
            ledger=ledger,
            envelope=envelope,
            policy=policy,
            fmv_provider=fmv_provider,
            confirm=confirm,
            session_started_s=time.time() if session_started_s is None else session_started_s,
            agent_id=agent_id,
            problem=problem,
        )
        self._lifecycle = PaymentLifecycle(ledger=ledger, funding=self.funding, checks=self._checks)

    def token_for(
        self,
        request: TokenRequest,
        *,
        refused: frozenset[str] = frozenset(),
        may_buy: bool = True,
        worth_an_offer: Callable[[PaymentRow], bool] = lambda row: True,
        worth_a_trial: Callable[[PaymentRow], bool] = lambda row: False,
    ) -> Purchase | None:
        """Return a token for ``request``: a live one, one whose purchase is carried to its end now, or a new one.

        ``refused`` are the payment hashes (hex) of tokens that the server has just refused: they aren't returned again. Without
        ``may_buy`` nothing new is bought, and the result is None if there is nothing else to return.

        ``worth_an_offer`` is called with the row of a live token that the server has accepted before. If it returns False, that
        token is retired and another may be bought. It is also called with the row of a retired token, which is returned only if it
        returns True. ``worth_a_trial`` is called, if the challenge doesn't say what its token opens, with the row of the newest
        token that the origin has accepted for another page. If it returns True, that token is returned before one is bought.

        A new token is reserved for its buyer: call `first_use.end_first_use` after the token's first use.

        Raises: an error of `routeweiler_sync.errors`, each of which says what became of the money.
        Money: a payment may be made.
        """
        deadline = Deadline(self._payment_timeout_s)
        if may_buy:
            # In a new ledger no token can be found. To make one takes as long as to ask a wallet for the first time.
            network = request.challenge.invoice.network
            ask_ahead(self.funding, network, deadline, wanted=lambda: not self.ledger.exists() and self._checks.may_allow(request))
        if not request.challenge.reusable:
            return self._charge_for(request, refused, deadline, may_buy=may_buy)
        with self._flight(request, deadline) as flight:
            found = self._look(request)
            found = self._after_first_use(found.live, found, request)
            existing = self._existing_row(found, request, refused)
            if existing is not None and may_buy and _has_served(existing) and not worth_an_offer(existing):
                self.ledger.retire(existing.payment_hash)
                existing, found = None, self._look(request)
            if existing is not None and not _belongs_elsewhere(existing, request):
                flight.payment_hash = existing.payment_hash
                return _reserved_for_buyer(self._lifecycle.purchase_for(existing, request, deadline))
            found = self._after_first_use(found.standing, found, request)
            standing = found.standing
            is_usable = standing is not None and standing.payment_hash not in refused and (may_buy or not standing.unfinished)
            if existing is not None:
                # The page's own payment opens it for certain, and nothing else is bought for it anyway.
                row = standing if standing is not None and is_usable else existing
                flight.payment_hash = row.payment_hash
                return _reserved_for_buyer(self._lifecycle.purchase_for(row, request, deadline))
            tokens = found.page_tokens
            for earlier in tokens:  # another page may have refused them, and offering one costs nothing
                if earlier.payment_hash not in refused and worth_an_offer(earlier):
                    return as_purchase(earlier, bought=False)
            if standing is not None and is_usable:
                flight.payment_hash = standing.payment_hash
                return _reserved_for_buyer(self._lifecycle.purchase_for(standing, request, deadline))
            if not may_buy:
                return None
            if standing is None and request.challenge.names_scope is None:
                other = self.ledger.newest_accepted(request.origin)
                if other is not None and other.payment_hash not in refused and worth_a_trial(other):
                    return replace(as_purchase(other, bought=False), on_trial=True)
            useless = None if standing is not None else found.undelivered
            if standing is None and useless is None:
                owed = self._owed_charge(found, request, deadline)
                if owed is not None:
                    return owed
                return _reserved_for_buyer(self._buy(request, deadline, flight, tokens))
        # Raised outside the flight: callers that wait for the same scope may want it for another page, which isn't concerned.
        if standing is not None:
            raise unserved_error(standing, request)
        assert useless is not None
        raise undelivered_error(useless, request)

    def choose(self, offers: Iterable[Challenge], *, url: str, proxied: bool = False) -> Challenge | None:
        """Return the challenge to answer, of those that the 402 of ``url`` makes: see `Checks.choose`."""
        return self._checks.choose(offers, url=url, proxied=proxied)

    def quote(self, request: TokenRequest) -> Quote | None:
        """Return what a call for ``request`` would pay, or None if the ledger has a token for it.

        Policy and limits aren't checked, so a call may be refused all the same. No node is asked.

        Raises: ChallengeExpiredError, ChallengeMismatchError; FmvUnavailableError if the budget's currency has no exchange rate.
        Money: none moves.
        """
        for existing in _rows_for_quote(self._look(request), request) if self.ledger.exists() else ():
            if existing.unfinished:  # a call would carry this purchase to its end
                return self._checks.quote(request, decode_invoice(existing.bolt11), existing.max_fee_msat)
            if _is_timely(existing):
                return None
        check_challenge(request.challenge)
        invoice = request.challenge.invoice
        return self._checks.quote(request, invoice, self._fee_cap_msat(invoice))

    def rehearse(self, request: TokenRequest) -> Rehearsal:
        """Return what `token_for` would do for ``request``, without doing it. No node and no confirm() is asked.

        Raises: FmvUnavailableError if the budget's currency has no exchange rate; LedgerError.
        Money: none moves, and none is reserved.
        """
        trial, found = None, Found({})
        if self.ledger.exists():
            found = self._look(request)
            same_invoice = found.same_invoice
            for row in (*_rows_for_quote(found, request), *([same_invoice] if same_invoice is not None else [])):
                if row.single_use and row.resource_digest != request.resource_digest:
                    continue  # it is for another request, and the call would be refused
                if row.unfinished:
                    return Rehearsal(unfinished=row)
                if row.state is PaymentState.SETTLED and _is_timely(row):
                    return Rehearsal(token=row)
            reusable = request.challenge.reusable
            trial = next(iter(found.page_tokens), None) if reusable else None
            if trial is None and reusable and request.challenge.names_scope is None:
                trial = self.ledger.newest_accepted(request.origin)
        invoice, envelope, refusal = request.challenge.invoice, None, None
        fee_cap_msat = self._fee_cap_msat(invoice)
        draw = self._checks.draw(request)
        try:
            check_challenge(request.challenge)
            useless = found.undelivered
            if useless is not None:
                raise undelivered_error(useless, request)
            self._checks.check_allowed(request)
            sources_for(self.funding, invoice.network)
            payment_hash = request.challenge.payment_hash.hex()
            with block_limit.reserved(request.limits, payment_hash, invoice.amount_msat, fee_cap_msat) as reservation:
                fee_cap_msat = reservation.fee_cap_msat
                if draw is not None:
                    fee_cap_msat, envelope = self.ledger.rehearse(self._intent(request, "", fee_cap_msat, ()), draw)
        except RouteweilerError as error:
            refusal = error
        quote = self._checks.quote(request, invoice, fee_cap_msat, draw)
        return Rehearsal(quote=quote, refusal=refusal, envelope=envelope, trial=trial)

    def _fee_cap_msat(self, invoice: Invoice) -> int:
        """Return the most that routing may cost, in msat, as the settings say. No wallet is asked for a limit of its own."""
        source = next((each for each in self.funding if pays_on(each, invoice.network)), None)
        return default_fee_cap_msat(invoice.amount_msat) if source is None else source.fee_cap_msat(invoice.amount_msat)

    def recover(self, tallies: Sequence[Tally] = ()) -> Iterator[PaymentRow]:
        """Ask each unfinished row's node about its payment, change the row by the reply, and yield the row as it is now.

        An abandoned row that its node has paid after all is booked and yielded too. A row whose node can't be asked stays as it is.
        ``tallies`` count the payments that are booked.

        Raises: LedgerError if the ledger can't be read. PaymentPendingError if it can't be written: the row stays as it was, and
        ``spent`` says whether the node has paid it. Call again once the ledger can be written.
        Money: no payment is started. A payment that a node has made is booked.
        """
        deadline = Deadline(max(self._payment_timeout_s, MIN_ASK_S))
        for row in self.ledger.abandoned():
            changed = self._ask_once(row, deadline, tallies)
            if changed is not None and changed.settled_at is not None:
                yield changed
        for row in self.ledger.unfinished():
            yield self._ask_once(row, deadline, tallies) or row

    def _ask_once(self, row: PaymentRow, deadline: Deadline, tallies: Sequence[Tally]) -> PaymentRow | None:
        """Ask the row's node once, and change the row by its reply. Return the row, or None if its node can't be asked."""
        source, problem = self._lifecycle.source_of(row, deadline)
        if source is None:
            log.info("payment %s stays as it is: %s", row.payment_hash, problem or "no funding source is for its node")
            return None
        payment_hash, asked_at_s = bytes.fromhex(row.payment_hash), time.time()
        answer = answer_of(lambda: source.track(payment_hash, timeout_s=deadline.left_s(), follow=False), payment_hash)
        return self._lifecycle.book(row, NextStep.TRACK, answer, asked_at_s, tallies)[1]

    def _look(self, request: TokenRequest) -> Found:
        """Return what the ledger has for ``request`` now."""
        payment_hash = request.challenge.payment_hash.hex()
        return self.ledger.found(
            origin=request.origin, scope=request.scope, resource_digest=request.resource_digest, payment_hash=payment_hash
        )

    def _after_first_use(self, row: PaymentRow | None, found: Found, request: TokenRequest) -> Found:
        """Wait until the buyer of ``row``, a row of ``found``, has used its token. Return what the ledger has then."""
        return self._look(request) if row is not None and wait_for_first_use(row.payment_hash) else found

    def _existing_row(self, found: Found, request: TokenRequest, refused: frozenset[str]) -> PaymentRow | None:
        """Return the row that must be used or finished before anything is bought for ``request``, or None.

        It is a live or unfinished row of the request's scope, else a row of the very invoice that the server offers. ``refused``
        are the payment hashes (hex) of rows that aren't returned.

        Raises: the error that the row of that very invoice ended with, if it is among ``refused``. The server repeats an invoice
        then.
        """
        live = found.live
        if live is not None and live.payment_hash not in refused:
            return live
        same_invoice = found.same_invoice
        if same_invoice is not None and same_invoice.payment_hash in refused:
            raise repeated_invoice_error(same_invoice)
        if same_invoice is not None and same_invoice.single_use:
            return self._repeated_charge(same_invoice, request)
        return same_invoice

    def _charge_for(self, request: TokenRequest, refused: frozenset[str], deadline: Deadline, *, may_buy: bool) -> Purchase | None:
        """Return the charge to present for ``request``: one that is owed, else a new one. The parameters are those of `token_for`.

        No other call's purchase is waited for or shared: each call pays for its own request. A charge that is returned is claimed.

        Raises: as `token_for`.
        Money: a payment may be made.
        """
        for _ in range(MAX_LOOKS):
            found = self._look(request)
            repeated = found.same_invoice
            if repeated is not None:
                row = self._repeated_charge(repeated, request)
                if may_buy or not row.unfinished:
                    return (
                        self._lifecycle.purchase_for(row, request, deadline) if row.unfinished else as_purchase(row, bought=False)
                    )
            owed = self._owed_charge(found, request, deadline, may_pay=may_buy)
            if owed is not None:
                return owed
            found = self._after_first_use(found.standing, found, request)
            standing = found.standing
            if standing is not None and standing.payment_hash not in refused and (may_buy or not standing.unfinished):
                return _reserved_for_buyer(self._lifecycle.purchase_for(standing, request, deadline))
            if not may_buy:
                return None
            if standing is not None:
                raise unserved_error(standing, request)
            useless = found.undelivered
            if useless is not None:
                raise undelivered_error(useless, request)
            purchase = self._buy(request, deadline, Flight(), ())
            if purchase is not None:
                return purchase
        raise crowded_error(request)

    def _repeated_charge(self, row: PaymentRow, request: TokenRequest) -> PaymentRow:
        """Return ``row``, whose invoice the server offers again, if it is a charge for this very request, and claim it.

        Its preimage is presented under the new challenge, even if it is spent: nothing is paid for that.

        Raises: ChallengeMismatchError if it was paid for something else; PaymentPendingError if another call has claimed it; the
        error that it ended with.
        """
        self._checks.check_origin(row, request)
        if not row.single_use or row.resource_digest != request.resource_digest:
            raise used_invoice_error(row, request)
        if row.state is PaymentState.DEAD or row.failure_code == FORGOTTEN:
            raise repeated_invoice_error(row)
        if row.state is PaymentState.RETIRED:
            return row
        check_transport(row.scheme, request.url, request.proxied)
        claimed = request.presenter.claim(self.ledger, row)
        if claimed is None:
            raise same_invoice_error(row)
        return claimed

    def _owed_charge(self, found: Found, request: TokenRequest, deadline: Deadline, *, may_pay: bool = True) -> Purchase | None:
        """Claim a charge of ``found`` that is owed for ``request``, and return it; None if there is none.

        An unfinished one is finished first, if it ``may_pay``. Those that other calls pay for or present right now aren't touched.

        Raises: TokenRefusedError if another call presents one that the server has refused: nothing is bought beside it. The error
        that an unfinished one ends with.
        Money: the invoice of an unfinished one may be sent again.
        """
        refused: PaymentRow | None = None
        for row in _charges(found):
            if row.unfinished and not may_pay:
                continue
            check_transport(row.scheme, request.url, request.proxied)
            claimed = request.presenter.claim(self.ledger, row)
            if claimed is not None:
                return self._lifecycle.purchase_for(claimed, request, deadline)
            refused = row if row.failure_code == REFUSED else refused
        if refused is not None:
            raise refused_charge_error(refused, request)
        return None

    @contextlib.contextmanager
    def _flight(self, request: TokenRequest, deadline: Deadline) -> Iterator[Flight]:
        """Be the only call of this process that buys for the page of ``request``, and the only one that buys for its scope.

        The page comes first in every call, so that no two calls wait for each other. Raises: as `single_flight`.
        """
        with contextlib.ExitStack() as flights:
            page = None
            if request.resource_digest:
                key = (self.ledger.url, request.origin, f"page {request.resource_digest}")
                page = flights.enter_context(single_flight(key, deadline, shown=f"the page {request.path}"))
            flight = flights.enter_context(single_flight((self.ledger.url, request.origin, request.scope), deadline, around=page))
            yield flight

    def _buy(self, request: TokenRequest, deadline: Deadline, flight: Flight, tokens: Sequence[PaymentRow]) -> Purchase | None:
        """Do steps 2 to 6 of the module's docstring. Return the purchase.

        ``tokens`` are the rows of this page's tokens, none of which is worth an offer. For a charge, the result is None if another
        one has become free meanwhile, which must be presented first.

        Raises: as `token_for`.
        Money: a payment may be made.
        """
        check_challenge(request.challenge)
        self._checks.check_allowed(request)
        invoice = request.challenge.invoice
        wallet = choose(self.funding, invoice, deadline)
        draw = self._checks.draw(request)
        payment_hash = request.challenge.payment_hash.hex()
        with block_limit.reserved(
            request.limits, payment_hash, invoice.amount_msat, wallet.fee_cap_msat, whole=wallet.fee_is_fixed
        ) as reservation:
            if self._checks.asks_confirm:
                self._checks.check_confirmed(self._checks.quote(request, invoice, reservation.fee_cap_msat, draw))
                # A person may take minutes to answer, so what depends on the time is done anew.
                check_challenge(request.challenge)  # the invoice may have expired
                deadline = Deadline(self._payment_timeout_s)  # the wait for a person doesn't count as time of the wallet
                draw = self._checks.draw(request)  # the exchange rate may have changed
            else:
                order_follows(wallet.source)
            request.still_useful()  # the request's body may have been closed while the node or a person was asked
            flight.payment_hash = payment_hash
            intent = self._intent(request, wallet.node_pubkey, reservation.fee_cap_msat, tokens, fee_is_fixed=wallet.fee_is_fixed)
            if intent.single_use:
                request.presenter.holds(payment_hash)
            row, is_new = self.ledger.open_payment(intent, draw)
            if is_new:
                reservation.keep()
        if not is_new and intent.single_use:
            return None
        if not is_new:
            flight.payment_hash = row.payment_hash
            return self._lifecycle.purchase_for(row, request, deadline)
        log.info("paying %d msat to %s, payment hash %s", row.amount_msat, row.origin, row.payment_hash)
        return self._lifecycle.carry(row, wallet.source, NextStep.SEND, request, deadline)

    def _intent(
        self,
        request: TokenRequest,
        node_pubkey: str,
        fee_cap_msat: int,
        tokens: Sequence[PaymentRow],
        *,
        fee_is_fixed: bool = False,
    ) -> Intent:
        """Return what the ledger writes about the purchase before the invoice is sent."""
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
            fee_is_fixed=fee_is_fixed,
            valid_until=valid_until_of(challenge),
            single_use=not challenge.reusable,
            presenter=None if challenge.reusable else request.presenter.name,
            resource_digest=request.resource_digest,
            known_tokens=tuple(row.payment_hash for row in tokens),
            agent_id=self._checks.agent_id,
        )


def _charges(found: Found) -> list[PaymentRow]:
    """Return the charges of ``found`` that are unfinished or owed: paid, then unfinished, then refused ones."""
    return sorted(found.owed, key=lambda row: (row.failure_code == REFUSED, row.unfinished))


def _rows_for_quote(found: Found, request: TokenRequest) -> list[PaymentRow]:
    """Return the rows of ``found`` that a call for ``request`` would use before it bought anything."""
    charges = [row for row in _charges(found) if is_free(row)]
    standing, live = found.standing, found.live if request.challenge.reusable else None
    if standing is None:
        return charges if live is None else [live, *charges]
    if not request.challenge.reusable:
        return [*charges, standing]
    return [standing] if live is None else [standing, live] if _belongs_elsewhere(live, request) else [live, standing]


def _is_timely(row: PaymentRow) -> bool:
    """Return whether what ``row`` has bought isn't past its own time. A charge that is owed is presented even then."""
    return row.owed or row.valid_until is None or time.time() < row.valid_until


def _belongs_elsewhere(row: PaymentRow, request: TokenRequest) -> bool:
    """Return whether ``row`` was begun for another page than that of ``request``, and no server has accepted its token yet."""
    not_served = row.unfinished or (row.state is PaymentState.SETTLED and not row.accepted)
    return not_served and row.resource_digest != request.resource_digest


def _has_served(row: PaymentRow) -> bool:
    """Return whether ``row`` has a live token that the server has accepted before."""
    return row.state is PaymentState.SETTLED and row.accepted


def _reserved_for_buyer(purchase: Purchase | None) -> Purchase | None:
    """Reserve a new token for its buyer's first use. Return ``purchase``.

    Called inside the flight, so before any caller that waits for the purchase goes on.
    """
    if purchase is not None and purchase.bought:
        begin_first_use(purchase.token.payment_hash)
    return purchase
