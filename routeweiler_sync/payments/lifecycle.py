"""Carry one payment's ledger row to its end: send its invoice, ask the wallet, write the result to the ledger.

This module does the steps of `wallet_rules` with the ledger and the wallet. What a reply means is decided in that table alone.
Which row answers a request, and whether a new one may be opened, is left to `checkout`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import tenacity

from .._core import retries
from .._core.deadline import Deadline
from .._core.log import log
from .._core.signals import came_by_signal
from ..errors import BudgetError, FundingError, LedgerError, PolicyDeniedError, RailNotSupportedError, RouteweilerError
from ..funding.client_answers import read_answer, read_error
from ..funding.replies import WalletAnswer, WalletReply
from ..funding.source import LightningFundingSource
from ..ledger.ledger import Ledger
from ..ledger.types import Change, PaymentRow, PaymentState
from ..protocol.invoice import decode_invoice
from . import block_limit, run_bill, wallet_rules
from .checks import Checks, paying_ends_s
from .interrupts import warn_interrupted
from .outcome_errors import (
    TOO_LATE,
    ended_error,
    error_for,
    pending_error,
    repeated_invoice_error,
    unbooked_error,
    unsent_error,
)
from .report_claims import claim, release, this_claimant
from .slow_payments import reported_if_slow
from .tally import Tally, booking, count_payment
from .token import Token
from .types import Purchase, TokenRequest
from .wallet_choice import source_of
from .wallet_rules import OUTLIVED_S, NextStep, Step

#: How often one call sends an invoice again if an earlier send of it is unanswered. More would only add unanswered sends.
MAX_RESENDS = 1
#: How long a call waits for another process to finish its purchase before it asks the wallet itself. Asking is harmless, and the
#: end of this time ends no row.
LEAVE_ALONE_S = 1.0
#: How long a call has at least to ask the wallet about the unfinished payment of an earlier call, however short its own time is.
#: Else calls with a short timeout would never end that payment, each of them giving up before the wallet has answered.
MIN_ASK_S = 2.0
#: An order that must end before a charge expires has at least this long: one second of lnd's, and the client's own margin.
MIN_ORDER_S = 2.0
#: The wallet's replies that say that money has left.
PAID = (WalletReply.SUCCEEDED, WalletReply.WRONG_PREIMAGE)
#: The pauses between two looks at a row, and between two questions to a wallet, in seconds. They are short at first, then grow.
ROW_POLL = tenacity.wait_exponential(multiplier=0.01, max=0.25) + tenacity.wait_random(0, 0.01)
WALLET_POLL = tenacity.wait_exponential(multiplier=0.05, max=1.0) + tenacity.wait_random(0, 0.05)


class PaymentLifecycle:
    """Carries rows to their end for one session, with its ledger, its funding sources and its checks. Thread-safe."""

    def __init__(self, *, ledger: Ledger, funding: Sequence[LightningFundingSource], checks: Checks) -> None:
        self._ledger = ledger
        self._funding = funding
        self._checks = checks

    def purchase_for(self, row: PaymentRow, request: TokenRequest, deadline: Deadline) -> Purchase:
        """Return the purchase for an existing row, finishing it first if needed.

        Raises: ChallengeMismatchError for the row of another origin; PaymentPendingError if the row stays unfinished; else the
        error that the row ended with.
        Money: the invoice of an unfinished row may be sent again.
        """
        self._checks.check_origin(row, request)
        if row.unfinished:
            return self._resolve(row, request, deadline)
        return self._concluded(row, request, repeated=True)

    def carry(
        self, row: PaymentRow, source: LightningFundingSource, step: NextStep, request: TokenRequest, deadline: Deadline
    ) -> Purchase:
        """Do ``step`` and the steps that the table says after it, until one of them ends the purchase. Return the purchase.

        ``source`` is the funding source of the row's own node. ``step`` is SEND for a row that the caller has just opened, whose
        first send is counted already.

        Raises: the error of the last step; PaymentPendingError if there is no outcome before ``deadline``.
        Money: each SEND orders the payment of the row's invoice.
        """
        with reported_if_slow(row):
            return self._carry(row, source, step, request, deadline)

    def _carry(
        self, row: PaymentRow, source: LightningFundingSource, step: NextStep, request: TokenRequest, deadline: Deadline
    ) -> Purchase:
        """Do as `carry`, without the report of a slow payment."""
        try:
            opened_here = step is NextStep.SEND
            resends, counted, started_s, reason = MAX_RESENDS, opened_here, time.monotonic(), None
            while True:
                if step is NextStep.SEND and not counted:
                    if not resends:
                        raise pending_error(row, "its invoice was sent again once, and the outcome still isn't known")
                    resends -= 1
                    counted_row = self._count_resend(row, source, request, opened_here=opened_here)
                    if counted_row is None:  # another caller has ended the row meanwhile
                        return self.purchase_for(self.read_again(row), request, deadline)
                    row = counted_row
                counted, asked_at_s = False, time.time()
                answer = self._ask(row, source, step, deadline)
                reason = answer.reason or reason
                decision, row = self.book(row, step, answer, asked_at_s, request.tallies)
                block_limit.record(request.limits, row)
                run_bill.note_end(row)
                step = decision.rule.next_step
                if not step.asks_wallet:
                    break
                if deadline.passed:
                    last_reply = f" (its last reply: {reason})" if reason else ""
                    raise pending_error(row, f"the node reported no outcome in time{last_reply}")
            if step is NextStep.HAND_OVER and row.preimage is not None:
                latency_ms = int((time.monotonic() - started_s) * 1000)
                return as_purchase(row, bought=decision.settles, settlement_latency_ms=latency_ms if decision.settles else None)
            if step is NextStep.RAISE_PENDING:
                raise pending_error(row, reason or "an earlier send of its invoice is unanswered")
            raise error_for(step, row, reason)
        except BaseException as error:
            release(row.payment_hash)
            if not isinstance(error, RouteweilerError):
                warn_interrupted(row, error)
            raise

    def book(
        self, row: PaymentRow, asked: NextStep, answer: WalletAnswer, asked_at_s: float, tallies: Sequence[Tally] = ()
    ) -> tuple[Step, PaymentRow]:
        """Change the row as the table says for ``answer``, in one transaction. Return the table's `Step` and the changed row.

        ``asked`` is the step that ``answer`` answers, and was begun at ``asked_at_s`` (unix time). The table decides on the row as
        the transaction finds it, which may differ from ``row``. If this settles the payment, ``tallies`` count it.

        Raises: PaymentPendingError if the ledger can't be written. The row stays as it was.
        Money: none moves. A payment that the node has made is booked.
        """
        decisions: list[Step] = []
        outlived = answer.reply is WalletReply.FAILED_SO_FAR and asked_at_s - decode_invoice(row.bolt11).expires_at >= OUTLIVED_S

        def decide(current: PaymentRow) -> Change | None:
            step = wallet_rules.decide(current, asked, answer, outlived=outlived)
            changes_nothing = step.change.state is current.state and not step.change.answered
            return None if changes_nothing else step.change

        def before_commit(current: PaymentRow) -> None:
            decisions[:] = [wallet_rules.decide(current, asked, answer, outlived=outlived)]
            if decisions[0].settles:
                claim(row.payment_hash)  # before the commit, after which other threads see the row settled and unreported

        with booking(self._ledger, row.payment_hash, tallies):
            try:
                after = self._ledger.change(row.payment_hash, decide, before_commit=before_commit, claimant=this_claimant())
            except LedgerError as error:
                committed = self._committed(row, decisions[0]) if decisions else None
                if committed is None:
                    raise unbooked_error(row, error, paid=answer.reply in PAID) from error
                after = committed
            if decisions[0].settles and after.claimant == this_claimant():
                count_payment(tallies, after)
        if decisions[0].settles:
            log.info("payment %s settled, fee %d msat", row.payment_hash, after.fee_msat)
        return decisions[0], after

    def source_of(self, row: PaymentRow, deadline: Deadline) -> tuple[LightningFundingSource | None, FundingError | None]:
        """Return the funding source of the row's own node, else None and the error of a node that couldn't be asked, if any.

        No other node may be asked about the row or be sent its invoice, because each node refuses only its own duplicates.
        """
        return source_of(self._funding, row, deadline)

    def read_again(self, row: PaymentRow) -> PaymentRow:
        """Return ``row``, which was unfinished, as it is in the ledger now.

        Raises: PaymentPendingError if the ledger can't be read, since the payment may be made.
        """
        try:
            return self._ledger.payment(row.payment_hash) or row
        except LedgerError as error:
            raise unbooked_error(row, error, paid=False) from error

    def _resolve(self, row: PaymentRow, request: TokenRequest, deadline: Deadline) -> Purchase:
        """Return the purchase for the unfinished row of another call, after waiting `LEAVE_ALONE_S` for that call to finish it.

        If that wait is in vain, this call carries the row to its end, provided the session has a funding source for the row's node.
        The wait is at most a quarter of the call's time, and `MIN_ASK_S` are left for the wallet in any case.

        Raises: PaymentPendingError if the row stays unfinished; else the error that it ended with.
        Money: the row's invoice may be sent again.
        """
        with reported_if_slow(row):
            return self._resolved(row, request, deadline)

    def _resolved(self, row: PaymentRow, request: TokenRequest, deadline: Deadline) -> Purchase:
        """Do as `_resolve`, without the report of a slow payment."""
        if not row.single_use:  # a charge was claimed before: no other call is about to finish it
            row = self._watch(row, Deadline(min(LEAVE_ALONE_S, deadline.left_s() / 4)))
        if row.unfinished:
            deadline = Deadline(max(deadline.left_s(), MIN_ASK_S))
            source, problem = self.source_of(row, deadline)
            if source is not None:
                return self._carry(row, source, NextStep.TRACK, request, deadline)
            if problem is not None:
                raise pending_error(row, f"its node can't be asked: {problem.brief}") from problem
            row = self._watch(row, deadline)
            if row.unfinished:
                raise pending_error(
                    row,
                    f"only its own node {row.node_pubkey} knows the outcome, and this session has no funding source for that node",
                )
        return self._concluded(row, request, repeated=False)

    def _concluded(self, row: PaymentRow, request: TokenRequest, *, repeated: bool) -> Purchase:
        """Return the purchase of a row that has ended paid, else raise its error. ``repeated``: the server repeats its invoice."""
        block_limit.record(request.limits, row)
        run_bill.note_end(row)
        if row.state is PaymentState.SETTLED:
            return as_purchase(row, bought=False)
        raise repeated_invoice_error(row) if repeated else ended_error(row)

    def _watch(self, row: PaymentRow, deadline: Deadline) -> PaymentRow:
        """Wait until ``row`` has ended or ``deadline`` has passed. Return the row as it is then."""
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_result(lambda seen: seen.unfinished and not deadline.passed),
            wait=ROW_POLL,
            sleep=deadline.pause,
        )
        try:
            return retries.run(retrying, lambda: self.read_again(row))
        except BaseException as error:
            if not isinstance(error, RouteweilerError):
                warn_interrupted(row, error)
            raise

    def _ask(self, row: PaymentRow, source: LightningFundingSource, step: NextStep, deadline: Deadline) -> WalletAnswer:
        """Do ``step`` with the wallet, and return its answer.

        SEND sends the invoice once. Any other step asks, again and again while the reply is UNKNOWN and ``deadline`` hasn't passed.

        Money: SEND orders the payment of the row's invoice.
        """
        payment_hash = bytes.fromhex(row.payment_hash)
        if step is NextStep.SEND:
            timeout_s, ends_s = deadline.left_s(), paying_ends_s(row)
            if ends_s is not None:  # what is paid later opens nothing, so the order must have ended before
                left_s = ends_s - time.time()
                if left_s < MIN_ORDER_S:
                    return WalletAnswer(reply=WalletReply.REFUSED, reason=TOO_LATE)  # it doesn't leave at all
                timeout_s = min(timeout_s, left_s)
            run_bill.note_order(row)
            return answer_of(
                lambda: source.send(row.bolt11, payment_hash=payment_hash, max_fee_msat=row.max_fee_msat, timeout_s=timeout_s),
                payment_hash,
            )
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_result(lambda answer: answer.reply is WalletReply.UNKNOWN and not deadline.passed),
            wait=WALLET_POLL,
            sleep=deadline.pause,
        )
        follows = step is not NextStep.LAST_LOOK
        return retries.run(
            retrying,
            lambda: answer_of(lambda: source.track(payment_hash, timeout_s=deadline.left_s(), follow=follows), payment_hash),
        )

    def _count_resend(
        self, row: PaymentRow, source: LightningFundingSource, request: TokenRequest, *, opened_here: bool
    ) -> PaymentRow | None:
        """Count one more send in ``row``, before it leaves. Return the row as it is then, or None if it has ended meanwhile.

        ``opened_here``: this call opened the row, so its checks have passed already. A payment that another call began is checked
        against this session's policy, fee limit, envelope, blocks and confirm(). Its amount and highest fee count there from now
        on.

        Raises: PaymentPendingError if the send mustn't leave from here. The earlier send may still arrive.
        """
        if not opened_here:
            self._checks.check_resend(row, request, fee_cap_msat=source.fee_cap_msat(row.amount_msat))
        try:
            draw = None if opened_here else self._checks.draw(request)
            with block_limit.reserved(
                request.limits, row.payment_hash, row.amount_msat, row.max_fee_msat, whole=True
            ) as reservation:
                counted = self._ledger.count_send(row.payment_hash, draw)
                if counted is not None:
                    reservation.keep()
            return counted
        except (BudgetError, PolicyDeniedError, RailNotSupportedError) as error:
            raise unsent_error(row, error) from error
        except LedgerError as error:
            raise unbooked_error(row, error, paid=False) from error

    def _committed(self, row: PaymentRow, step: Step) -> PaymentRow | None:
        """Return ``row`` as ``step`` has changed it, or None if the change wasn't committed or that isn't known.

        A commit that failed with an error may have succeeded all the same. Only the ledger knows, so it is read.
        """
        try:
            now = self._ledger.payment(row.payment_hash)
        except LedgerError:
            return None
        return now if now is not None and not now.unfinished and now.state is step.change.state else None


def answer_of(ask: Callable[[], WalletAnswer], payment_hash: bytes) -> WalletAnswer:
    """Return the answer of a funding source, which may be a program's own. An exception, of whatever kind, proves nothing."""
    try:
        return read_answer(ask(), payment_hash)
    except Exception as error:  # the intent is written: every fault from here on is an outcome that isn't known
        if came_by_signal(error):
            raise
        return WalletAnswer(reply=WalletReply.UNKNOWN, reason=read_error(error, payment_hash))


def as_purchase(row: PaymentRow, *, bought: bool, settlement_latency_ms: int | None = None) -> Purchase:
    """Return the purchase of a settled row. ``bought`` and ``settlement_latency_ms`` are as in `Purchase`.

    Raises: PreimageMismatchError if the row has no preimage, and so no token.
    """
    token = Token.of(row)
    if token is None:
        raise error_for(NextStep.RAISE_MISMATCH, row, None)
    return Purchase(token=token, row=row, bought=bought, settlement_latency_ms=settlement_latency_ms)
