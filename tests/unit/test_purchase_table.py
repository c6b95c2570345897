"""Every cell of the purchase table, and every way of reading a node's word.

What the design says is written down here anew, not taken from the code; that the rules as a whole never pay twice is
`test_purchase_model`'s.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from datetime import datetime, timezone

import pytest

from routeweiler_sync.errors import RouteweilerError
from routeweiler_sync.funding.replies import Answer, Word
from routeweiler_sync.ledger.types import UNFINISHED, PaymentRow, PaymentState
from routeweiler_sync.payments.outcome_errors import error_for
from routeweiler_sync.payments.wallet_rules import TABLE, Act, Event, answered, decide, read

OPEN, FAILED, SETTLED, RETIRED, DEAD = PaymentState
ASKED = (Act.SEND, Act.TRACK, Act.FOLLOW, Act.LAST_LOOK)
SENDS_MAX = 4
PREIMAGE = b"\x01" * 32


def row(state: PaymentState, ever: int, unanswered: int, **changes: object) -> PaymentRow:
    values: dict[str, object] = {
        "payment_hash": "72cd6e8422c407fb6d098690f1130b7ded7ec2f7f5e1d30bd9d521f015363793",
        "origin": "https://api.example",
        "scope": "s",
        "path": "/",
        "state": state,
        "amount_msat": 10_000,
        "max_fee_msat": 1_000,
        "fee_msat": 0,
        "envelope_id": None,
        "node_pubkey": "02" * 33,
        "network": "bitcoin-regtest",
        "bolt11": "lnbcrt1",
        "scheme": "L402",
        "token": "t0ken",
        "sends_ever": ever,
        "sends_unanswered": unanswered,
        "created_at": datetime.now(timezone.utc),
    }
    return PaymentRow(**{**values, **changes})  # type: ignore[arg-type]


def answer(word: Word) -> Answer:
    proves = word in (Word.SUCCEEDED, Word.WRONG_PREIMAGE)
    return Answer(word=word, preimage=PREIMAGE if proves else None, fee_msat=7 if proves else 0, reason="NO_ROUTE")


def situations(*states: PaymentState) -> Iterator[tuple[PaymentRow, Act, Answer]]:
    """Every row, question and word that can meet. A send that is being answered is counted; a failed row has seen two sends."""
    for state, asked, word in itertools.product(states, ASKED, Word):
        for ever in range(2 if state is FAILED else 1, SENDS_MAX + 1):
            for unanswered in range(1 if asked is Act.SEND else 0, ever + 1):
                yield row(state, ever, unanswered), asked, answer(word)


def told(situation: tuple[PaymentRow, Act, Answer]) -> str:
    at, asked, said = situation
    return f"{at.state.value} {at.sends_ever}/{at.sends_unanswered} {asked.name} {said.word.value}"


# -- reading ----------------------------------------------------------------------------------------------------------------

SAME_FOR_ALL = {Word.SUCCEEDED: Event.PAID, Word.WRONG_PREIMAGE: Event.PAID_WRONG_PREIMAGE, Word.IN_FLIGHT: Event.IN_FLIGHT}


def design_says(at: PaymentRow, asked: Act, word: Word) -> Event:
    """The design's words on what an answer proves."""
    if word in SAME_FOR_ALL:
        return SAME_FOR_ALL[word]
    if word is Word.UNKNOWN:
        return Event.SILENCE
    only_send = at.sends_ever == 1
    if asked is Act.SEND:
        others_unanswered = at.sends_unanswered - 1
        return {
            Word.EXISTS: Event.EXISTS,
            Word.EXPIRED: Event.EXPIRED,
            Word.REFUSED: Event.REFUSED_ONLY_SEND if only_send else Event.REFUSED_BESIDE,
            Word.FAILED: Event.FAILED_FOR_GOOD if only_send or not others_unanswered else Event.FAILED_OWN_SEND,
            Word.NOT_FOUND: Event.SILENCE,
        }[word]
    if word in (Word.EXISTS, Word.EXPIRED, Word.REFUSED):
        return Event.SILENCE  # the question itself was refused
    if asked is Act.LAST_LOOK:
        return Event.GONE
    if word is Word.NOT_FOUND:
        return Event.NOT_FOUND
    return Event.FAILED_FOR_GOOD if only_send or not at.sends_unanswered else Event.FAILED_SEEN


def test_every_word_is_read_as_the_design_says() -> None:
    """Else a word would prove more than it does (paid twice), or less (pending for ever)."""
    for situation in situations(*PaymentState):
        at, asked, said = situation
        assert read(at, asked, said) is design_says(at, asked, said.word), told(situation)


def test_only_a_sends_own_answer_counts_it_off() -> None:
    """Else a send whose order may still arrive would count as answered."""
    final = {Word.SUCCEEDED, Word.WRONG_PREIMAGE, Word.FAILED, Word.EXISTS, Word.EXPIRED, Word.REFUSED}
    for asked, word in itertools.product(ASKED, Word):
        assert answered(asked, answer(word)) == int(asked is Act.SEND and word in final), (asked, word)


def test_what_the_model_abstracts_from_makes_no_difference() -> None:
    """Else `test_purchase_model`, which counts sends to two only and takes TRACK for FOLLOW, would miss states."""
    for at, asked, said in situations(*UNFINISHED):
        if at.sends_ever > 2:
            assert read(at, asked, said) is read(row(at.state, 2, at.sends_unanswered), asked, said)
        if asked is Act.FOLLOW:
            assert decide(at, asked, said) == decide(at, Act.TRACK, said)
    for at, asked, said in situations(SETTLED, RETIRED, DEAD):
        assert decide(at, asked, said).rule == decide(row(at.state, 1, 1), asked, said).rule


# -- the table --------------------------------------------------------------------------------------------------------------


def test_every_situation_has_a_rule_and_every_rule_a_situation() -> None:
    """Else a call would die of an AssertionError while money is under way; or a rule would be there that nothing ever follows."""
    met = {(at.state, decide(at, asked, said).event) for at, asked, said in situations(*PaymentState)}
    assert met - {(s, e) for s, e in TABLE} == set()
    unmet = {(s, e) for s, e in TABLE} - met
    assert unmet == set()
    missing = set(itertools.product(PaymentState, Event)) - set(TABLE)
    assert missing == {(FAILED, Event.REFUSED_ONLY_SEND)}


def test_a_row_with_one_send_never_fails_half() -> None:
    """Else (failed, refused only send) could be met, which has no rule."""
    for situation in situations(OPEN):
        if situation[0].sends_ever == 1:
            assert decide(*situation).rule.state is not FAILED, told(situation)


def test_an_illegal_pair_is_refused() -> None:
    """Else a fault of ours would be booked as if it were a decision."""
    with pytest.raises(AssertionError):
        decide(row(FAILED, 1, 1), Act.SEND, answer(Word.REFUSED))


def test_every_rule_says_why() -> None:
    """Else the next maintainer would take a rule for a whim."""
    assert all(len(rule.why) > 15 for rule in TABLE.values())


# -- money ------------------------------------------------------------------------------------------------------------------


def test_a_row_dies_of_proof_alone() -> None:
    """Else its need would be free for a new invoice while the old one can still be paid."""
    for situation in situations(OPEN, FAILED):
        at, asked, said = situation
        if decide(*situation).rule.state is not DEAD:
            continue
        others = at.sends_unanswered - answered(asked, said)
        proofs = (
            said.word is Word.FAILED and asked is not Act.LAST_LOOK and (at.sends_ever == 1 or others == 0),
            said.word is Word.REFUSED and asked is Act.SEND and at.sends_ever == 1,
            asked is Act.LAST_LOOK and said.word in (Word.NOT_FOUND, Word.FAILED),
        )
        assert any(proofs), told(situation)


def test_a_row_is_settled_by_the_nodes_word_alone() -> None:
    """Else money would be booked that wasn't spent, or not booked that was."""
    for situation in situations(OPEN, FAILED, DEAD):
        paid = situation[2].word in (Word.SUCCEEDED, Word.WRONG_PREIMAGE)
        step = decide(*situation)
        assert (step.rule.state is SETTLED) == paid, told(situation)
        assert step.settles == paid, told(situation)


@pytest.mark.parametrize(
    ("state", "ends"), [(SETTLED, {SETTLED}), (RETIRED, {RETIRED}), (DEAD, {DEAD, SETTLED}), (OPEN, {OPEN, FAILED, SETTLED, DEAD})]
)
def test_no_end_is_undone(state: PaymentState, ends: set[PaymentState]) -> None:
    """Else a spend would vanish from the books, or a dead invoice be sent again beside a new one."""
    assert {rule.state for (of, _), rule in TABLE.items() if of is state} <= ends
    if state not in UNFINISHED:
        assert not any(rule.act.asks_node for (of, _), rule in TABLE.items() if of is state)


def test_what_goes_on_stays_unfinished_and_what_ends_says_what_became_of_the_money() -> None:
    """Else a call would tell its user "nothing spent" of money that is gone, or still under way."""
    for (state, event), rule in TABLE.items():
        if rule.act.asks_node:
            assert rule.state in UNFINISHED, (state, event)
            continue
        if rule.act is Act.HAND_OVER:
            assert rule.state is SETTLED, (state, event)
            continue
        spent: bool | None
        if rule.act is Act.RAISE_PENDING:
            spent = None
        else:
            ended = row(rule.state, 2, 0, failure_code="failed_for_good" if rule.state is DEAD else None)
            error = error_for(rule.act, ended, None)
            assert isinstance(error, RouteweilerError)
            spent = error.spent
        assert spent is {OPEN: None, FAILED: None, DEAD: False, SETTLED: True, RETIRED: True}[rule.state], (state, event)


def test_the_change_holds_what_the_step_says() -> None:
    """Else a token would be stored without proof, a fee be booked that nobody paid, or an end lose its reason."""
    for situation in situations(*PaymentState):
        at, asked, said = situation
        step = decide(*situation)
        assert step.change.state is step.rule.state
        assert step.change.answered == answered(asked, said)
        assert step.change.preimage == (PREIMAGE if said.word is Word.SUCCEEDED else None), told(situation)
        assert step.change.fee_msat == (7 if said.word in (Word.SUCCEEDED, Word.WRONG_PREIMAGE) else 0), told(situation)
        ends_badly = at.unfinished and step.rule.state is DEAD
        assert step.change.failure_code == (step.event.name.lower() if ends_badly else None), told(situation)
        assert step.change.failure_text == ("NO_ROUTE" if ends_badly else None), told(situation)


@pytest.mark.parametrize("event", [Event.FAILED_FOR_GOOD, Event.GONE, Event.REFUSED_ONLY_SEND])
def test_who_waited_hears_the_same_end(event: Event) -> None:
    """Else who shares a failed purchase would hear of another failure than the one that bought."""
    first = error_for(TABLE[OPEN, event].act, row(DEAD, 1, 0, failure_code=event.name.lower(), failure_text="why"), "why")
    shared = error_for(Act.RAISE_AS_ENDED, row(DEAD, 1, 0, failure_code=event.name.lower(), failure_text="why"), None)
    assert type(shared) is type(first)
    assert (shared.args, shared.spent, shared.payment_hash) == (first.args, first.spent, first.payment_hash)


def test_no_error_tells_a_secret() -> None:
    """Else a log of errors would hand out a paid token."""
    acts = [act for act in Act if act.name.startswith("RAISE") and act is not Act.RAISE_PENDING]
    for act, state in itertools.product(acts, (SETTLED, RETIRED, DEAD)):
        error = error_for(act, row(state, 1, 0, preimage=PREIMAGE.hex()), None)
        assert "t0ken" not in repr(error)
        assert PREIMAGE.hex() not in repr(error)
