"""The life of one payment as a table. Whatever decides about money is here, and nothing else is: no I/O, no clock.

    (state of the row, what lnd said) → (state of the row, next act), each with its why
    (what is known of a token, what the server said to it) → what becomes of token and answer, each with its why

`read` turns a node's answer into an `WalletEvent`, given what was asked and how many sends the row counts; `TABLE` says what
follows. `hear` turns a server's answer into what it has `Said`; `SERVER_TABLE` says what follows.
Illegal pairs aren't in the tables: meeting one is a fault of ours, and raises AssertionError before anything is changed.

The rules rest on three facts of lnd (facts as read in its source, and observed):
  - It starts a payment for a hash that it doesn't know or that has FAILED; any other send of the hash it refuses. So sending the
    *same* invoice to the *same* node again is always safe, and sending another one never is while the first may still be made.
  - An order may arrive after its sender's death, and after a TrackPaymentV2 that said NOT_FOUND or FAILED. So a send counts as
    unanswered until lnd has answered that very send.
  - Once lnd says "expired", no send of that invoice can start it any more; whether one has before, TrackPaymentV2 tells.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from ..funding.replies import WalletAnswer, WalletReply
from ..ledger.types import Change, PaymentRow, PaymentState


class NextStep(str, Enum):
    """What to do next for a row."""

    SEND = "send the same invoice to its node (counted first)"
    TRACK = "ask the node for the payment's state"
    FOLLOW = "ask the node, and wait with it until the payment ends"
    LAST_LOOK = "ask once more: lnd's word was that the invoice has expired"
    HAND_OVER = "the token is there: use it"
    RAISE_FAILED = "raise InvoicePaymentError: nothing spent"
    RAISE_EXPIRED = "raise ChallengeExpiredError: nothing spent"
    RAISE_REFUSED = "raise FundingError: nothing spent"
    RAISE_PENDING = "raise PaymentPendingError: not known yet"
    RAISE_MISMATCH = "raise PreimageMismatchError: spent"
    RAISE_AS_ENDED = "raise what the row ended with"

    @property
    def asks_wallet(self) -> bool:
        """Whether the act is one of sending or asking; the others end the purchase."""
        return self in (NextStep.SEND, NextStep.TRACK, NextStep.FOLLOW, NextStep.LAST_LOOK)


class WalletEvent(str, Enum):
    """A node's answer, seen in the light of what was asked and of the sends that the row counts."""

    PAID = "SUCCEEDED, and the preimage fits"
    PAID_WRONG_PREIMAGE = "SUCCEEDED, but the preimage doesn't fit"
    FAILED_FOR_GOOD = "FAILED, and no send is unanswered, or there was but one and lnd knows the hash"
    FAILED_OWN_SEND = "FAILED in answer to this send, while another is unanswered"
    FAILED_SEEN = "FAILED in answer to a question, while a send is unanswered"
    IN_FLIGHT = "IN_FLIGHT or INITIATED"
    EXISTS = "this send was refused: the hash is paid, in flight or just made"
    EXPIRED = "this send was refused: the invoice has expired by lnd's clock"
    REFUSED_ONLY_SEND = "refused before the start, and no other send was ever made"
    REFUSED_BESIDE = "refused before the start, but another send was made"
    NOT_FOUND = "lnd knows no payment of this hash"
    GONE = "expired by lnd's word, and at a last look NOT_FOUND or FAILED"
    SILENCE = "no answer, a broken stream, a deadline, an error that proves nothing"


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One cell of the table."""

    state: PaymentState
    next_step: NextStep
    why: str


_OPEN, _FAILED = PaymentState.OPEN, PaymentState.FAILED
_SETTLED, _RETIRED, _DEAD = PaymentState.SETTLED, PaymentState.RETIRED, PaymentState.DEAD


def _unfinished(state: PaymentState) -> dict[tuple[PaymentState, WalletEvent], Rule]:
    """The rules that ``open`` and ``failed`` share: where nothing is proved, the state stays as it is."""
    return {
        (state, WalletEvent.PAID): Rule(
            state=_SETTLED, next_step=NextStep.HAND_OVER, why="lnd proves that it paid, whoever sent it"
        ),
        (state, WalletEvent.PAID_WRONG_PREIMAGE): Rule(
            state=_SETTLED, next_step=NextStep.RAISE_MISMATCH, why="the money is gone, so it is booked; no token can be made of it"
        ),
        (state, WalletEvent.FAILED_FOR_GOOD): Rule(
            state=_DEAD, next_step=NextStep.RAISE_FAILED, why="every send has arrived and ended, so nothing can start it any more"
        ),
        (state, WalletEvent.FAILED_OWN_SEND): Rule(
            state=_FAILED,
            next_step=NextStep.RAISE_PENDING,
            why="the unanswered send would start it anew: the scope sticks to it",
        ),
        (state, WalletEvent.FAILED_SEEN): Rule(
            state=_FAILED, next_step=NextStep.SEND, why="the same invoice can't be paid twice, and its answer may end the row"
        ),
        (state, WalletEvent.IN_FLIGHT): Rule(state=state, next_step=NextStep.FOLLOW, why="only its end tells"),
        (state, WalletEvent.EXISTS): Rule(
            state=state, next_step=NextStep.FOLLOW, why="this send started nothing; of the other, tracking tells"
        ),
        (state, WalletEvent.EXPIRED): Rule(
            state=state,
            next_step=NextStep.LAST_LOOK,
            why="nothing can start it now; but lnd checks expiry first: it may be paid",
        ),
        (state, WalletEvent.REFUSED_BESIDE): Rule(
            state=state, next_step=NextStep.RAISE_PENDING, why="this send started nothing, which says nothing of the other"
        ),
        (state, WalletEvent.NOT_FOUND): Rule(
            state=state, next_step=NextStep.SEND, why="the unanswered send may still arrive: only the same invoice is safe to send"
        ),
        (state, WalletEvent.GONE): Rule(
            state=_DEAD, next_step=NextStep.RAISE_EXPIRED, why="not paid, and by lnd's own word it can't be any more"
        ),
        (state, WalletEvent.SILENCE): Rule(state=state, next_step=NextStep.TRACK, why="unknown isn't failed: ask"),
    }


def _ended(state: PaymentState, next_step: NextStep, why: str) -> dict[tuple[PaymentState, WalletEvent], Rule]:
    """The rules of a row that someone else has ended meanwhile: its end stands."""
    return {(state, event): Rule(state=state, next_step=next_step, why=why) for event in WalletEvent}


#: (state, event) → what follows. `(open, refused, only send)` is the one rule that ``failed`` doesn't share: a failed row has seen
#: two sends at least.
WALLET_RULES: dict[tuple[PaymentState, WalletEvent], Rule] = {
    **_unfinished(_OPEN),
    **_unfinished(_FAILED),
    (_OPEN, WalletEvent.REFUSED_ONLY_SEND): Rule(
        state=_DEAD, next_step=NextStep.RAISE_REFUSED, why="the only send ever made started nothing, so nothing can be paid"
    ),
    **_ended(_SETTLED, NextStep.HAND_OVER, "another has settled it meanwhile: its token serves us too"),
    **_ended(_RETIRED, NextStep.RAISE_AS_ENDED, "settled and given up meanwhile"),
    **_ended(_DEAD, NextStep.RAISE_AS_ENDED, "ended meanwhile, unpaid; its end is shared"),
    (_DEAD, WalletEvent.PAID): Rule(
        state=_SETTLED,
        next_step=NextStep.HAND_OVER,
        why="the user abandoned it, and it was paid after all: the spend is booked, the token kept",
    ),
    (_DEAD, WalletEvent.PAID_WRONG_PREIMAGE): Rule(
        state=_SETTLED,
        next_step=NextStep.RAISE_MISMATCH,
        why="the user abandoned it, and it was paid after all: the spend is booked",
    ),
}

_PLAIN = {
    WalletReply.SUCCEEDED: WalletEvent.PAID,
    WalletReply.WRONG_PREIMAGE: WalletEvent.PAID_WRONG_PREIMAGE,
    WalletReply.FAILED_FOR_GOOD: WalletEvent.FAILED_FOR_GOOD,
    WalletReply.IN_FLIGHT: WalletEvent.IN_FLIGHT,
    WalletReply.EXISTS: WalletEvent.EXISTS,
    WalletReply.EXPIRED: WalletEvent.EXPIRED,
    WalletReply.NOT_FOUND: WalletEvent.NOT_FOUND,
    WalletReply.UNKNOWN: WalletEvent.SILENCE,
}
#: Words with which lnd has answered a send for good: the send can start nothing later.
_ANSWERS_A_SEND = {
    WalletReply.SUCCEEDED,
    WalletReply.WRONG_PREIMAGE,
    WalletReply.FAILED,
    WalletReply.FAILED_FOR_GOOD,
    WalletReply.EXISTS,
    WalletReply.EXPIRED,
    WalletReply.REFUSED,
}


def read(row: PaymentRow, asked: NextStep, answer: WalletAnswer) -> WalletEvent:
    """What ``answer`` means for ``row`` when ``asked`` was done. ``row`` counts the send that is being answered, if one is."""
    reply = answer.reply
    if asked is not NextStep.SEND and reply in (WalletReply.EXISTS, WalletReply.EXPIRED, WalletReply.REFUSED):
        return WalletEvent.SILENCE  # a question that was refused says nothing of the payment
    if asked is NextStep.SEND and reply is WalletReply.NOT_FOUND:
        return WalletEvent.SILENCE
    if asked is NextStep.LAST_LOOK and reply in (WalletReply.NOT_FOUND, WalletReply.FAILED):
        return WalletEvent.GONE
    if reply is WalletReply.REFUSED:
        return WalletEvent.REFUSED_ONLY_SEND if row.sends_ever == 1 else WalletEvent.REFUSED_BESIDE
    if reply is WalletReply.FAILED:
        others = row.sends_unanswered - answered(asked, answer)
        if row.sends_ever == 1 or others <= 0:
            return WalletEvent.FAILED_FOR_GOOD
        return WalletEvent.FAILED_OWN_SEND if asked is NextStep.SEND else WalletEvent.FAILED_SEEN
    return _PLAIN[reply]


def answered(asked: NextStep, answer: WalletAnswer) -> int:
    """How many sends ``answer`` counts off: the one that it answers, or none."""
    return int(asked is NextStep.SEND and answer.reply in _ANSWERS_A_SEND)


@dataclass(frozen=True, kw_only=True)
class Step:
    """What follows from one answer: the change to write, then the act. ``settles``: it is this answer that ends the row as paid."""

    event: WalletEvent
    rule: Rule
    change: Change
    settles: bool


def decide(row: PaymentRow, asked: NextStep, answer: WalletAnswer) -> Step:
    """The table's word on ``answer``. Pure; AssertionError for a pair that can't be."""
    event = read(row, asked, answer)
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
            fee_msat=answer.fee_msat if paid else 0,
            failure_code=event.name.lower() if ends_badly else None,
            failure_text=answer.reason if ends_badly else None,
        ),
    )
