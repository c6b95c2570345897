"""The life of one payment as a table. Whatever decides about money is here, and nothing else is: no I/O, no clock.

    (state of the row, what lnd said) → (state of the row, next act), each with its why
    (what is known of a token, what the server said to it) → what becomes of token and answer, each with its why

`read` turns a node's answer into an `Event`, given what was asked and how many sends the row counts; `TABLE` says what follows.
`hear` turns a server's answer into what it has `Said`; `SERVER_TABLE` says what follows.
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

from ..funding.replies import Answer, Word
from ..ledger.types import Change, PaymentRow, PaymentState


class Act(str, Enum):
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
    def asks_node(self) -> bool:
        """Whether the act is one of sending or asking; the others end the purchase."""
        return self in (Act.SEND, Act.TRACK, Act.FOLLOW, Act.LAST_LOOK)


class Event(str, Enum):
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
    act: Act
    why: str


_OPEN, _FAILED = PaymentState.OPEN, PaymentState.FAILED
_SETTLED, _RETIRED, _DEAD = PaymentState.SETTLED, PaymentState.RETIRED, PaymentState.DEAD


def _unfinished(state: PaymentState) -> dict[tuple[PaymentState, Event], Rule]:
    """The rules that ``open`` and ``failed`` share: where nothing is proved, the state stays as it is."""
    return {
        (state, Event.PAID): Rule(state=_SETTLED, act=Act.HAND_OVER, why="lnd proves that it paid, whoever sent it"),
        (state, Event.PAID_WRONG_PREIMAGE): Rule(
            state=_SETTLED, act=Act.RAISE_MISMATCH, why="the money is gone, so it is booked; no token can be made of it"
        ),
        (state, Event.FAILED_FOR_GOOD): Rule(
            state=_DEAD, act=Act.RAISE_FAILED, why="every send has arrived and ended, so nothing can start it any more"
        ),
        (state, Event.FAILED_OWN_SEND): Rule(
            state=_FAILED,
            act=Act.RAISE_PENDING,
            why="the unanswered send would start it anew: the scope sticks to it",
        ),
        (state, Event.FAILED_SEEN): Rule(
            state=_FAILED, act=Act.SEND, why="the same invoice can't be paid twice, and its answer may end the row"
        ),
        (state, Event.IN_FLIGHT): Rule(state=state, act=Act.FOLLOW, why="only its end tells"),
        (state, Event.EXISTS): Rule(state=state, act=Act.FOLLOW, why="this send started nothing; of the other, tracking tells"),
        (state, Event.EXPIRED): Rule(
            state=state,
            act=Act.LAST_LOOK,
            why="nothing can start it now; but lnd checks expiry first: it may be paid",
        ),
        (state, Event.REFUSED_BESIDE): Rule(
            state=state, act=Act.RAISE_PENDING, why="this send started nothing, which says nothing of the other"
        ),
        (state, Event.NOT_FOUND): Rule(
            state=state, act=Act.SEND, why="the unanswered send may still arrive: only the same invoice is safe to send"
        ),
        (state, Event.GONE): Rule(state=_DEAD, act=Act.RAISE_EXPIRED, why="not paid, and by lnd's own word it can't be any more"),
        (state, Event.SILENCE): Rule(state=state, act=Act.TRACK, why="unknown isn't failed: ask"),
    }


def _ended(state: PaymentState, act: Act, why: str) -> dict[tuple[PaymentState, Event], Rule]:
    """The rules of a row that someone else has ended meanwhile: its end stands."""
    return {(state, event): Rule(state=state, act=act, why=why) for event in Event}


#: (state, event) → what follows. `(open, refused, only send)` is the one rule that ``failed`` doesn't share: a failed row has seen
#: two sends at least.
TABLE: dict[tuple[PaymentState, Event], Rule] = {
    **_unfinished(_OPEN),
    **_unfinished(_FAILED),
    (_OPEN, Event.REFUSED_ONLY_SEND): Rule(
        state=_DEAD, act=Act.RAISE_REFUSED, why="the only send ever made started nothing, so nothing can be paid"
    ),
    **_ended(_SETTLED, Act.HAND_OVER, "another has settled it meanwhile: its token serves us too"),
    **_ended(_RETIRED, Act.RAISE_AS_ENDED, "settled and given up meanwhile"),
    **_ended(_DEAD, Act.RAISE_AS_ENDED, "ended meanwhile, unpaid; its end is shared"),
    (_DEAD, Event.PAID): Rule(
        state=_SETTLED,
        act=Act.HAND_OVER,
        why="the user abandoned it, and it was paid after all: the spend is booked, the token kept",
    ),
    (_DEAD, Event.PAID_WRONG_PREIMAGE): Rule(
        state=_SETTLED, act=Act.RAISE_MISMATCH, why="the user abandoned it, and it was paid after all: the spend is booked"
    ),
}

_PLAIN = {
    Word.SUCCEEDED: Event.PAID,
    Word.WRONG_PREIMAGE: Event.PAID_WRONG_PREIMAGE,
    Word.IN_FLIGHT: Event.IN_FLIGHT,
    Word.EXISTS: Event.EXISTS,
    Word.EXPIRED: Event.EXPIRED,
    Word.NOT_FOUND: Event.NOT_FOUND,
    Word.UNKNOWN: Event.SILENCE,
}
#: Words with which lnd has answered a send for good: the send can start nothing later.
_ANSWERS_A_SEND = {Word.SUCCEEDED, Word.WRONG_PREIMAGE, Word.FAILED, Word.EXISTS, Word.EXPIRED, Word.REFUSED}


def read(row: PaymentRow, asked: Act, answer: Answer) -> Event:
    """What ``answer`` means for ``row`` when ``asked`` was done. ``row`` counts the send that is being answered, if one is."""
    word = answer.word
    if asked is not Act.SEND and word in (Word.EXISTS, Word.EXPIRED, Word.REFUSED):
        return Event.SILENCE  # a question that was refused says nothing of the payment
    if asked is Act.SEND and word is Word.NOT_FOUND:
        return Event.SILENCE
    if asked is Act.LAST_LOOK and word in (Word.NOT_FOUND, Word.FAILED):
        return Event.GONE
    if word is Word.REFUSED:
        return Event.REFUSED_ONLY_SEND if row.sends_ever == 1 else Event.REFUSED_BESIDE
    if word is Word.FAILED:
        others = row.sends_unanswered - answered(asked, answer)
        if row.sends_ever == 1 or others <= 0:
            return Event.FAILED_FOR_GOOD
        return Event.FAILED_OWN_SEND if asked is Act.SEND else Event.FAILED_SEEN
    return _PLAIN[word]


def answered(asked: Act, answer: Answer) -> int:
    """How many sends ``answer`` counts off: the one that it answers, or none."""
    return int(asked is Act.SEND and answer.word in _ANSWERS_A_SEND)


@dataclass(frozen=True, kw_only=True)
class Step:
    """What follows from one answer: the change to write, then the act. ``settles``: it is this answer that ends the row as paid."""

    event: Event
    rule: Rule
    change: Change
    settles: bool


def decide(row: PaymentRow, asked: Act, answer: Answer) -> Step:
    """The table's word on ``answer``. Pure; AssertionError for a pair that can't be."""
    event = read(row, asked, answer)
    rule = TABLE.get((row.state, event))
    assert rule is not None, f"no rule for ({row.state.value}, {event.name}): sends {row.sends_ever}/{row.sends_unanswered}"
    paid = event in (Event.PAID, Event.PAID_WRONG_PREIMAGE)
    ends_badly = row.unfinished and rule.state is PaymentState.DEAD
    return Step(
        event=event,
        rule=rule,
        settles=rule.state is PaymentState.SETTLED and row.state is not PaymentState.SETTLED,
        change=Change(
            state=rule.state,
            answered=answered(asked, answer),
            preimage=answer.preimage if event is Event.PAID else None,
            fee_msat=answer.fee_msat if paid else 0,
            failure_code=event.name.lower() if ends_badly else None,
            failure_text=answer.reason if ends_badly else None,
        ),
    )
