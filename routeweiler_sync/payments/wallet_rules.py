"""The life of one payment as a table. Every decision about a payment's money is made here. Pure: no I/O, no clock.

    (state of the ledger row, the wallet's reply) → (new state of the row, next step), each with the reason why

`read` turns a wallet's answer into a `WalletEvent`, given the step that it answers and the number of sends that the row counts.
`WALLET_RULES` has one `Rule` for each pair of state and event, and `decide` looks it up. Pairs that can't occur aren't in the
table: meeting one is a bug of this package, and raises AssertionError before anything is changed.

`lifecycle` does the steps. What a web server's answer means for a token is left to `paywall.server_rules`.

A *send* is one payment order for the row's invoice that leaves for the node (lnd: SendPaymentV2). The row counts each send before
it leaves. Any other request to the node is a *question* about the payment (lnd: TrackPaymentV2).

The rules rest on three facts about lnd, read in its source and observed:
  - lnd starts a payment if it doesn't know the payment hash, or if the payment of that hash has FAILED. It refuses every other send
    of the hash. So it is always safe to send the *same* invoice to the *same* node again. It is never safe to send another invoice
    while the first one may still be paid.
  - A send may arrive after its sender's death, and after a TrackPaymentV2 that replied NOT_FOUND or FAILED. So a send counts as
    unanswered until lnd has answered that very send.
  - Once lnd has replied "expired", no send of that invoice can start the payment any more. An earlier send may have started it:
    TrackPaymentV2 says whether one has.

Other wallets answer in the same words, as far as they keep the same promises. One that may settle what it has called failed, or
that may pay a second order of the same invoice, says FAILED_SO_FAR (see `funding.replies`): its rows are never sent again, and end
unpaid only long after the invoice has expired.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from ..funding.replies import WalletAnswer, WalletReply
from ..funding.wallet import default_fee_cap_msat
from ..ledger.types import Change, PaymentRow, PaymentState


class NextStep(str, Enum):
    """What to do next for a ledger row."""

    SEND = "send the same invoice to the row's node, counting the send first"
    TRACK = "ask the node for the payment's state"
    FOLLOW = "ask the node, and wait until the payment ends"
    LAST_LOOK = "ask the node once more, now that the invoice has expired"
    HAND_OVER = "use the token"
    RAISE_FAILED = "raise InvoicePaymentError: nothing spent"
    RAISE_EXPIRED = "raise ChallengeExpiredError: nothing spent"
    RAISE_REFUSED = "raise FundingError: nothing spent"
    RAISE_PENDING = "raise PaymentPendingError: not known yet"
    RAISE_MISMATCH = "raise PreimageMismatchError: spent"
    RAISE_AS_ENDED = "raise the error that the row ended with"

    @property
    def asks_wallet(self) -> bool:
        """Whether this step sends the invoice or asks about it. Every other step ends the purchase."""
        return self in (NextStep.SEND, NextStep.TRACK, NextStep.FOLLOW, NextStep.LAST_LOOK)


class WalletEvent(str, Enum):
    """What a wallet's answer proves about the payment, given the step that it answers and the sends that the row counts."""

    PAID = "SUCCEEDED, and the preimage fits the payment hash"
    PAID_WRONG_PREIMAGE = "SUCCEEDED, but the preimage doesn't fit the payment hash"
    FAILED_FOR_GOOD = (
        "FAILED, and nothing can start the payment again: no send is unanswered, or the row's only send has reached the node, or "
        "the wallet never starts a failed payment anew"
    )
    FAILED_OWN_SEND = "FAILED in answer to this send, while another send is unanswered"
    FAILED_SEEN = "FAILED in answer to a question, while a send is unanswered"
    IN_FLIGHT = "IN_FLIGHT or INITIATED"
    EXISTS = "this send was refused: a payment of this hash is settled, in flight or just created"
    EXPIRED = "this send was refused: the invoice has expired by the node's clock"
    REFUSED_ONLY_SEND = "this send was refused before the payment started, and it is the only one ever made"
    REFUSED_BESIDE = "this send was refused before the payment started, but another one was made"
    NOT_FOUND = "the node knows no payment of this hash"
    GONE = "the invoice has expired by the node's clock, and the question after that was answered NOT_FOUND or FAILED"
    UNPAID_SO_FAR = (
        "the wallet says that it isn't paid; it may settle it all the same, and doesn't promise to refuse a second order"
    )
    OUTLIVED = "UNPAID_SO_FAR, in answer to a question that was asked long after the invoice had expired"
    SILENCE = "no answer, a broken stream, a deadline, or an error that proves nothing"


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One cell of the table: the row's new state, the next step, and the reason why."""

    state: PaymentState
    next_step: NextStep
    why: str


#: How long an invoice must have been expired before a wallet's "unpaid so far" ends its row, in seconds. A payment that the wallet
#: had started before the expiry has had this long to show as paid or in flight.
OUTLIVED_S = 3600

_OPEN, _FAILED = PaymentState.OPEN, PaymentState.FAILED
_SETTLED, _RETIRED, _DEAD = PaymentState.SETTLED, PaymentState.RETIRED, PaymentState.DEAD


def _unfinished(state: PaymentState) -> dict[tuple[PaymentState, WalletEvent], Rule]:
    """Return the rules that ``open`` and ``failed`` share. Where an event proves nothing, the row keeps its ``state``."""
    return {
        (state, WalletEvent.PAID): Rule(
            state=_SETTLED, next_step=NextStep.HAND_OVER, why="the preimage proves the payment, whoever sent the invoice"
        ),
        (state, WalletEvent.PAID_WRONG_PREIMAGE): Rule(
            state=_SETTLED,
            next_step=NextStep.RAISE_MISMATCH,
            why="the money has left, so the spend is booked; without the preimage there is no token",
        ),
        (state, WalletEvent.FAILED_FOR_GOOD): Rule(
            state=_DEAD, next_step=NextStep.RAISE_FAILED, why="no send can start the payment any more"
        ),
        (state, WalletEvent.FAILED_OWN_SEND): Rule(
            state=_FAILED,
            next_step=NextStep.RAISE_PENDING,
            why="the unanswered send may start the payment again, so nothing else is bought for the scope",
        ),
        (state, WalletEvent.FAILED_SEEN): Rule(
            state=_FAILED,
            next_step=NextStep.SEND,
            why="the same invoice can't be paid twice, and the answer to one more send may end the row",
        ),
        (state, WalletEvent.IN_FLIGHT): Rule(
            state=state, next_step=NextStep.FOLLOW, why="the outcome is known only when the payment ends"
        ),
        (state, WalletEvent.EXISTS): Rule(
            state=state, next_step=NextStep.FOLLOW, why="this send started nothing; tracking shows what became of the other one"
        ),
        (state, WalletEvent.EXPIRED): Rule(
            state=state,
            next_step=NextStep.LAST_LOOK,
            why="no send can start the payment now, but lnd checks expiry before duplicates: it may be paid already",
        ),
        (state, WalletEvent.REFUSED_BESIDE): Rule(
            state=state, next_step=NextStep.RAISE_PENDING, why="this send started nothing, which proves nothing about the other one"
        ),
        (state, WalletEvent.NOT_FOUND): Rule(
            state=state,
            next_step=NextStep.SEND,
            why="an unanswered send may still arrive, so only the same invoice is safe to send",
        ),
        (state, WalletEvent.GONE): Rule(
            state=_DEAD,
            next_step=NextStep.RAISE_EXPIRED,
            why="it isn't paid, and the node refuses every send of an expired invoice",
        ),
        (state, WalletEvent.UNPAID_SO_FAR): Rule(
            state=state,
            next_step=NextStep.RAISE_PENDING,
            why='this wallet\'s "failed" and "not found" aren\'t final, and a second order may be paid too, so nothing is sent',
        ),
        (state, WalletEvent.OUTLIVED): Rule(
            state=_DEAD,
            next_step=NextStep.RAISE_EXPIRED,
            why="no payment of an expired invoice can start, and one that had started before would have ended by now",
        ),
        (state, WalletEvent.SILENCE): Rule(
            state=state, next_step=NextStep.TRACK, why="an unknown outcome isn't a failure, so the node is asked"
        ),
    }


def _ended(state: PaymentState, next_step: NextStep, why: str) -> dict[tuple[PaymentState, WalletEvent], Rule]:
    """Return the rules for a row that another caller has ended meanwhile. The row keeps its ``state`` whatever the event."""
    return {(state, event): Rule(state=state, next_step=next_step, why=why) for event in WalletEvent}


#: (state of the row, event) → rule. (OPEN, REFUSED_ONLY_SEND) is the one rule of ``open`` that ``failed`` doesn't share: a failed
#: row has had at least two sends.
WALLET_RULES: dict[tuple[PaymentState, WalletEvent], Rule] = {
    **_unfinished(_OPEN),
    **_unfinished(_FAILED),
    (_OPEN, WalletEvent.REFUSED_ONLY_SEND): Rule(
        state=_DEAD, next_step=NextStep.RAISE_REFUSED, why="the only send ever made started nothing, so nothing can be paid"
    ),
    **_ended(_SETTLED, NextStep.HAND_OVER, "another caller has settled the row meanwhile, and its token serves here too"),
    **_ended(_RETIRED, NextStep.RAISE_AS_ENDED, "the row was settled meanwhile, and its token then retired"),
    **_ended(_DEAD, NextStep.RAISE_AS_ENDED, "another caller has ended the row meanwhile, unpaid, and its error is shared"),
    (_DEAD, WalletEvent.PAID): Rule(
        state=_SETTLED,
        next_step=NextStep.HAND_OVER,
        why="the user abandoned the row, and the invoice was paid after all: the spend is booked, the token kept",
    ),
    (_DEAD, WalletEvent.PAID_WRONG_PREIMAGE): Rule(
        state=_SETTLED,
        next_step=NextStep.RAISE_MISMATCH,
        why="the user abandoned the row, and the invoice was paid after all: the spend is booked",
    ),
}

#: What a reply proves where `read` has no rule of its own for it.
_DEFAULT_EVENTS = {
    WalletReply.SUCCEEDED: WalletEvent.PAID,
    WalletReply.WRONG_PREIMAGE: WalletEvent.PAID_WRONG_PREIMAGE,
    WalletReply.FAILED_FOR_GOOD: WalletEvent.FAILED_FOR_GOOD,
    WalletReply.IN_FLIGHT: WalletEvent.IN_FLIGHT,
    WalletReply.EXISTS: WalletEvent.EXISTS,
    WalletReply.EXPIRED: WalletEvent.EXPIRED,
    WalletReply.NOT_FOUND: WalletEvent.NOT_FOUND,
    WalletReply.UNKNOWN: WalletEvent.SILENCE,
}
#: Replies that answer a send for good: that send can start nothing later.
_ANSWERS_A_SEND = {
    WalletReply.SUCCEEDED,
    WalletReply.WRONG_PREIMAGE,
    WalletReply.FAILED,
    WalletReply.FAILED_FOR_GOOD,
    WalletReply.EXISTS,
    WalletReply.EXPIRED,
    WalletReply.REFUSED,
}


def read(row: PaymentRow, asked: NextStep, answer: WalletAnswer, *, outlived: bool = False) -> WalletEvent:
    """Return what ``answer`` proves about the payment of ``row``.

    ``asked`` is the step that ``answer`` answers. If it was SEND, ``row`` counts that send already. ``outlived``: when it was
    asked, the row's invoice had been expired for at least `OUTLIVED_S`.
    """
    reply = answer.reply
    if reply is WalletReply.FAILED_SO_FAR:
        if asked is NextStep.SEND:
            return WalletEvent.SILENCE  # the look-up that follows may find more
        return WalletEvent.OUTLIVED if outlived else WalletEvent.UNPAID_SO_FAR
    if asked is not NextStep.SEND and reply in (WalletReply.EXISTS, WalletReply.EXPIRED, WalletReply.REFUSED):
        return WalletEvent.SILENCE  # only the question was refused, which proves nothing about the payment
    if asked is NextStep.SEND and reply is WalletReply.NOT_FOUND:
        return WalletEvent.SILENCE
    if asked is NextStep.LAST_LOOK and reply in (WalletReply.NOT_FOUND, WalletReply.FAILED):
        return WalletEvent.GONE
    if reply is WalletReply.REFUSED:
        return WalletEvent.REFUSED_ONLY_SEND if row.sends_ever == 1 else WalletEvent.REFUSED_BESIDE
    if reply is WalletReply.FAILED:
        others_unanswered = row.sends_unanswered - answered(asked, answer)
        if row.sends_ever == 1 or others_unanswered <= 0:
            return WalletEvent.FAILED_FOR_GOOD
        return WalletEvent.FAILED_OWN_SEND if asked is NextStep.SEND else WalletEvent.FAILED_SEEN
    return _DEFAULT_EVENTS[reply]


def answered(asked: NextStep, answer: WalletAnswer) -> int:
    """Return by how many the row's unanswered sends go down: 1 if ``answer`` answers a send for good, else 0."""
    return int(asked is NextStep.SEND and answer.reply in _ANSWERS_A_SEND)


def fee_to_book(row: PaymentRow, told_msat: object) -> int:
    """Return the routing fee to book for the payment of ``row``, in msat: what the wallet has told, if that can be true.

    Otherwise it is the most that was allowed, so that the limits hold. A wallet that was allowed less may have charged up to what
    wallets allow by default, which is at most the amount itself for small payments; that is a spend like any other.
    """
    believable_msat = max(row.max_fee_msat, row.amount_msat, default_fee_cap_msat(row.amount_msat))
    is_sound = isinstance(told_msat, int) and not isinstance(told_msat, bool) and 0 <= told_msat <= believable_msat
    return int(told_msat) if is_sound and isinstance(told_msat, int) else row.max_fee_msat


@dataclass(frozen=True, kw_only=True)
class Step:
    """What follows from one answer: ``change`` is written to the ledger row, then ``rule.next_step`` is done.

    ``settles`` is True if this answer is the one that takes the row to SETTLED.
    """

    event: WalletEvent
    rule: Rule
    change: Change
    settles: bool


def decide(row: PaymentRow, asked: NextStep, answer: WalletAnswer, *, outlived: bool = False) -> Step:
    """Return what the table says about ``answer``, which answers the step ``asked`` for ``row``. Pure.

    ``outlived`` is as in `read`.

    Raises: AssertionError if the row's state and the event can't occur together.
    """
    event = read(row, asked, answer, outlived=outlived)
    rule = WALLET_RULES.get((row.state, event))
    assert rule is not None, f"no rule for ({row.state.value}, {event.name}): sends {row.sends_ever}/{row.sends_unanswered}"
    paid = event in (WalletEvent.PAID, WalletEvent.PAID_WRONG_PREIMAGE)
    ends_badly = row.unfinished and rule.state is PaymentState.DEAD
    return Step(
        event=event,
        rule=rule,
        settles=rule.state is PaymentState.SETTLED and row.state is not PaymentState.SETTLED,
        change=Change(
            state=rule.state,
            answered=answered(asked, answer),
            preimage=answer.preimage if event is WalletEvent.PAID else None,
            fee_msat=fee_to_book(row, answer.fee_msat) if paid else 0,
            failure_code=event.name.lower() if ends_badly else None,
            failure_text=answer.reason if ends_badly else None,
        ),
    )
