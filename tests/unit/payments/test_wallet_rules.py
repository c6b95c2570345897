"""Every cell of the purchase table, and every way of reading a node's word.

What the design says is written down here anew, not taken from the code; that the rules as a whole never pay twice is
`test_wallet_rules_model`'s.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from datetime import datetime, timezone

import pytest

from routeweiler_sync.errors import LedgerError, RouteweilerError
from routeweiler_sync.funding.replies import WalletAnswer, WalletReply
from routeweiler_sync.ledger.types import UNFINISHED, PaymentRow, PaymentState
from routeweiler_sync.payments.outcome_errors import error_for, pending_error, unbooked_error
from routeweiler_sync.payments.wallet_rules import WALLET_RULES, NextStep, WalletEvent, answered, decide, read

OPEN, FAILED, SETTLED, RETIRED, DEAD = PaymentState
ASKED = (NextStep.SEND, NextStep.TRACK, NextStep.FOLLOW, NextStep.LAST_LOOK)
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


def answer(reply: WalletReply) -> WalletAnswer:
    proves = reply in (WalletReply.SUCCEEDED, WalletReply.WRONG_PREIMAGE)
    return WalletAnswer(reply=reply, preimage=PREIMAGE if proves else None, fee_msat=7 if proves else 0, reason="NO_ROUTE")


def situations(*states: PaymentState) -> Iterator[tuple[PaymentRow, NextStep, WalletAnswer]]:
    """Every row, question and word that can meet. A send that is being answered is counted; a failed row has seen two sends."""
    for state, asked, reply in itertools.product(states, ASKED, WalletReply):
        for ever in range(2 if state is FAILED else 1, SENDS_MAX + 1):
            for unanswered in range(1 if asked is NextStep.SEND else 0, ever + 1):
                yield row(state, ever, unanswered), asked, answer(reply)


def told(situation: tuple[PaymentRow, NextStep, WalletAnswer]) -> str:
    at, asked, said = situation
    return f"{at.state.value} {at.sends_ever}/{at.sends_unanswered} {asked.name} {said.reply.value}"


# -- reading ----------------------------------------------------------------------------------------------------------------

SAME_FOR_ALL = {
    WalletReply.SUCCEEDED: WalletEvent.PAID,
    WalletReply.WRONG_PREIMAGE: WalletEvent.PAID_WRONG_PREIMAGE,
    WalletReply.FAILED_FOR_GOOD: WalletEvent.FAILED_FOR_GOOD,
    WalletReply.IN_FLIGHT: WalletEvent.IN_FLIGHT,
}


def design_says(at: PaymentRow, asked: NextStep, reply: WalletReply) -> WalletEvent:
    """The design's words on what an answer proves."""
    if reply in SAME_FOR_ALL:
        return SAME_FOR_ALL[reply]
    if reply is WalletReply.UNKNOWN:
        return WalletEvent.SILENCE
    if reply is WalletReply.FAILED_SO_FAR:
        return WalletEvent.SILENCE if asked is NextStep.SEND else WalletEvent.UNPAID_SO_FAR
    only_send = at.sends_ever == 1
    if asked is NextStep.SEND:
        others_unanswered = at.sends_unanswered - 1
        return {
            WalletReply.EXISTS: WalletEvent.EXISTS,
            WalletReply.EXPIRED: WalletEvent.EXPIRED,
            WalletReply.REFUSED: WalletEvent.REFUSED_ONLY_SEND if only_send else WalletEvent.REFUSED_BESIDE,
            WalletReply.FAILED: WalletEvent.FAILED_FOR_GOOD if only_send or not others_unanswered else WalletEvent.FAILED_OWN_SEND,
            WalletReply.NOT_FOUND: WalletEvent.SILENCE,
        }[reply]
    if reply in (WalletReply.EXISTS, WalletReply.EXPIRED, WalletReply.REFUSED):
        return WalletEvent.SILENCE  # the question itself was refused
    if asked is NextStep.LAST_LOOK:
        return WalletEvent.GONE
    if reply is WalletReply.NOT_FOUND:
        return WalletEvent.NOT_FOUND
    return WalletEvent.FAILED_FOR_GOOD if only_send or not at.sends_unanswered else WalletEvent.FAILED_SEEN


def test_every_reply_of_the_wallet_is_handled_as_the_design_says() -> None:
    """Else a word would prove more than it does (paid twice), or less (pending for ever)."""
    for situation in situations(*PaymentState):
        at, asked, said = situation
        assert read(at, asked, said) is design_says(at, asked, said.reply), told(situation)


def test_only_unpaid_so_far_ends_by_the_time_that_has_passed() -> None:
    """Else a timer would end a payment that can still be made; or the row of a wallet without final words would never end."""
    for situation in situations(*PaymentState):
        at, asked, said = situation
        outlived = read(at, asked, said, outlived=True)
        if said.reply is WalletReply.FAILED_SO_FAR and asked is not NextStep.SEND:
            assert outlived is WalletEvent.OUTLIVED, told(situation)
        else:
            assert outlived is read(at, asked, said), told(situation)


def test_what_is_unpaid_so_far_is_never_sent_again() -> None:
    """Else a wallet that doesn't promise to refuse a second order would pay the same invoice twice."""
    for situation in situations(*UNFINISHED):
        if situation[2].reply is WalletReply.FAILED_SO_FAR:
            assert decide(*situation).rule.next_step in (NextStep.TRACK, NextStep.RAISE_PENDING), told(situation)


def test_only_a_sends_own_answer_counts_it_off() -> None:
    """Else a send whose order may still arrive would count as answered."""
    final = {
        WalletReply.SUCCEEDED,
        WalletReply.WRONG_PREIMAGE,
        WalletReply.FAILED,
        WalletReply.FAILED_FOR_GOOD,
        WalletReply.EXISTS,
        WalletReply.EXPIRED,
        WalletReply.REFUSED,
    }
    for asked, reply in itertools.product(ASKED, WalletReply):
        assert answered(asked, answer(reply)) == int(asked is NextStep.SEND and reply in final), (asked, reply)


def test_what_the_model_abstracts_from_makes_no_difference() -> None:
    """Else `test_wallet_rules_model`, which counts sends to two only and takes TRACK for FOLLOW, would miss states."""
    for at, asked, said in situations(*UNFINISHED):
        if at.sends_ever > 2:
            assert read(at, asked, said) is read(row(at.state, 2, at.sends_unanswered), asked, said)
        if asked is NextStep.FOLLOW:
            assert decide(at, asked, said) == decide(at, NextStep.TRACK, said)
    for at, asked, said in situations(SETTLED, RETIRED, DEAD):
        assert decide(at, asked, said).rule == decide(row(at.state, 1, 1), asked, said).rule


# -- the table --------------------------------------------------------------------------------------------------------------


def test_every_situation_has_a_rule_and_every_rule_a_situation() -> None:
    """Else a call would die of an AssertionError while money is under way; or a rule would be there that nothing ever follows."""
    met = {
        (at.state, decide(at, asked, said, outlived=outlived).event)
        for at, asked, said in situations(*PaymentState)
        for outlived in (False, True)
    }
    assert met - {(s, e) for s, e in WALLET_RULES} == set()
    unmet = {(s, e) for s, e in WALLET_RULES} - met
    assert unmet == set()
    missing = set(itertools.product(PaymentState, WalletEvent)) - set(WALLET_RULES)
    assert missing == {(FAILED, WalletEvent.REFUSED_ONLY_SEND)}


def test_a_row_with_one_send_is_dead_not_failed() -> None:
    """Else (failed, refused only send) could be met, which has no rule."""
    for situation in situations(OPEN):
        if situation[0].sends_ever == 1:
            assert decide(*situation).rule.state is not FAILED, told(situation)


def test_an_illegal_pair_is_refused() -> None:
    """Else a fault of ours would be booked as if it were a decision."""
    with pytest.raises(AssertionError):
        decide(row(FAILED, 1, 1), NextStep.SEND, answer(WalletReply.REFUSED))


def test_every_rule_says_why() -> None:
    """Else the next maintainer would take a rule for a whim."""
    assert all(len(rule.why) > 15 for rule in WALLET_RULES.values())


# -- money ------------------------------------------------------------------------------------------------------------------


def test_a_row_dies_of_proof_alone() -> None:
    """Else its need would be free for a new invoice while the old one can still be paid."""
    for situation in situations(OPEN, FAILED):
        at, asked, said = situation
        if decide(*situation).rule.state is not DEAD:
            continue
        others = at.sends_unanswered - answered(asked, said)
        proofs = (
            said.reply is WalletReply.FAILED and asked is not NextStep.LAST_LOOK and (at.sends_ever == 1 or others == 0),
            said.reply is WalletReply.FAILED_FOR_GOOD,
            said.reply is WalletReply.REFUSED and asked is NextStep.SEND and at.sends_ever == 1,
            asked is NextStep.LAST_LOOK and said.reply in (WalletReply.NOT_FOUND, WalletReply.FAILED),
        )
        assert any(proofs), told(situation)


def test_a_row_is_settled_by_the_nodes_word_alone() -> None:
    """Else money would be booked that wasn't spent, or not booked that was."""
    for situation in situations(OPEN, FAILED, DEAD):
        paid = situation[2].reply in (WalletReply.SUCCEEDED, WalletReply.WRONG_PREIMAGE)
        step = decide(*situation)
        assert (step.rule.state is SETTLED) == paid, told(situation)
        assert step.settles == paid, told(situation)


@pytest.mark.parametrize(
    ("state", "ends"), [(SETTLED, {SETTLED}), (RETIRED, {RETIRED}), (DEAD, {DEAD, SETTLED}), (OPEN, {OPEN, FAILED, SETTLED, DEAD})]
)
def test_no_end_is_undone(state: PaymentState, ends: set[PaymentState]) -> None:
    """Else a spend would vanish from the books, or a dead invoice be sent again beside a new one."""
    assert {rule.state for (of, _), rule in WALLET_RULES.items() if of is state} <= ends
    if state not in UNFINISHED:
        assert not any(rule.next_step.asks_wallet for (of, _), rule in WALLET_RULES.items() if of is state)


def test_what_goes_on_stays_unfinished_and_what_ends_says_what_became_of_the_money() -> None:
    """Else a call would tell its user "nothing spent" of money that is gone, or still under way."""
    for (state, event), rule in WALLET_RULES.items():
        if rule.next_step.asks_wallet:
            assert rule.state in UNFINISHED, (state, event)
            continue
        if rule.next_step is NextStep.HAND_OVER:
            assert rule.state is SETTLED, (state, event)
            continue
        spent: bool | None
        if rule.next_step is NextStep.RAISE_PENDING:
            spent = None
        else:
            ended = row(rule.state, 2, 0, failure_code="failed_for_good" if rule.state is DEAD else None)
            error = error_for(rule.next_step, ended, None)
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
        assert step.change.preimage == (PREIMAGE if said.reply is WalletReply.SUCCEEDED else None), told(situation)
        assert step.change.fee_msat == (7 if said.reply in (WalletReply.SUCCEEDED, WalletReply.WRONG_PREIMAGE) else 0), told(
            situation
        )
        ends_badly = at.unfinished and step.rule.state is DEAD
        assert step.change.failure_code == (step.event.name.lower() if ends_badly else None), told(situation)
        assert step.change.failure_text == ("NO_ROUTE" if ends_badly else None), told(situation)


@pytest.mark.parametrize(
    "event", [WalletEvent.FAILED_FOR_GOOD, WalletEvent.GONE, WalletEvent.OUTLIVED, WalletEvent.REFUSED_ONLY_SEND]
)
def test_a_call_that_waited_gets_the_same_outcome(event: WalletEvent) -> None:
    """Else who shares a failed purchase would hear of another failure than the one that bought."""
    first = error_for(
        WALLET_RULES[OPEN, event].next_step, row(DEAD, 1, 0, failure_code=event.name.lower(), failure_text="why"), "why"
    )
    shared = error_for(NextStep.RAISE_AS_ENDED, row(DEAD, 1, 0, failure_code=event.name.lower(), failure_text="why"), None)
    assert type(shared) is type(first)
    assert (shared.args, shared.spent, shared.payment_hash) == (first.args, first.spent, first.payment_hash)


def test_no_error_tells_a_secret() -> None:
    """Else a log of errors would hand out a paid token."""
    acts = [act for act in NextStep if act.name.startswith("RAISE") and act is not NextStep.RAISE_PENDING]
    for act, state in itertools.product(acts, (SETTLED, RETIRED, DEAD)):
        error = error_for(act, row(state, 1, 0, preimage=PREIMAGE.hex()), None)
        assert "t0ken" not in repr(error)
        assert PREIMAGE.hex() not in repr(error)


@pytest.mark.parametrize("step", [NextStep.RAISE_FAILED, NextStep.RAISE_REFUSED])
def test_a_failure_without_a_reason_says_that_there_is_none(step: NextStep) -> None:
    """'failed: None' reads like a fault of this package."""
    error = error_for(step, row(DEAD, 1, 0), None)
    assert "None" not in str(error)
    assert "no reason" in str(error)


def test_what_is_advised_about_a_stuck_payment_can_be_typed_as_it_stands() -> None:
    """A payment that hangs for ever would hold its reservation for ever, unless the user is told how to end it."""
    stuck = row(OPEN, 1, 1)
    error = pending_error(stuck, "the node reported no outcome in time")
    assert f'ledger.forget("{stuck.payment_hash}", abandon=True)' in str(error)
    assert f"routeweiler-sync payments abandon {stuck.payment_hash}" in error.shell_text
    assert "session." not in error.shell_text
    assert "forget" not in error.shell_text
    paid = unbooked_error(stuck, LedgerError("The disk is full."), paid=True)
    assert "abandon" not in str(paid) + paid.shell_text, "the money is spent: an abandoned row would lose the token"
