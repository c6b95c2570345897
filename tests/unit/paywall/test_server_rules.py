"""Every cell of the server's table, and every way of reading a server's answer.

What the design says is written down here anew, not taken from the code.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from routeweiler_sync.paywall.server_rules import (
    ERRORS,
    MAYBE_REFUSALS,
    SERVER_RULES,
    ServerAnswer,
    TokenStatus,
    Verdict,
    Wants,
    judge,
    read_answer,
    read_charge_answer,
    token_status,
)

JUDGED = [
    known for known in TokenStatus if known not in (TokenStatus.NONE, TokenStatus.GUESS, TokenStatus.TRIAL, TokenStatus.CHARGE)
]
SERVED = [TokenStatus.ACCEPTED, TokenStatus.ELSEWHERE, TokenStatus.DOUBTED, TokenStatus.EXPIRED]
#: What a real HTTP client may meet, 1xx that aren't swallowed and numbers of nobody's standard included.
STATUSES = [None, 100, 103, 200, 201, 202, 204, 206, 299, 300, 301, 302, 303, 304, 307, 308, 399, 400, 401, 402, 403, 404, 405, 409,
            410, 418, 429, 451, 500, 502, 503, 504, 599, 600, 999]  # fmt: skip
FLAGS = ("accepted", "accepted_here", "expired", "asked_bare", "patience_left")
#: By which some servers refuse a token.
TURNED_DOWN = [400, 403, 404, 409, 410]
FAILED = [500, 502, 503, 504, 599]


def answers() -> Iterator[tuple[int | None, Wants, bool, bool]]:
    """(status, what it wants, whether the token is judged, whether a 402 came before): all that can be."""
    for status, wants, judged, after_402 in itertools.product(STATUSES, Wants, [False, True], [False, True]):
        if wants is Wants.PAID and not judged:
            continue  # only the refusal of a token is looked at so closely
        if status == 401 and not judged and wants not in (Wants.OTHER, Wants.NOTHING):
            continue  # it isn't paid, so nobody reads what it offers
        if wants is Wants.NOTHING or status in (401, 402):
            yield status, wants, judged, after_402


def tokens() -> Iterator[dict[str, bool]]:
    """Everything that can be known of a token that is no guess."""
    for values in itertools.product([False, True], repeat=len(FLAGS)):
        yield dict(zip(FLAGS, values, strict=True))


def verdict_on(status: int | None, wants: Wants, *, after_402: bool = False, **token: bool) -> Verdict:
    known = token_status(**token)
    return judge(known, read_answer(status, wants=wants, judged=True, after_402=after_402)).verdict


def design_says(status: int, wants: Wants, *, accepted: bool, accepted_here: bool, expired: bool, asked_bare: bool,
                patience_left: bool) -> Verdict:  # fmt: skip
    """The design's words on a 401 or 402 to a token that is no guess."""
    if wants is Wants.CHALLENGE:
        return Verdict.GET_ONE  # another token is wanted
    if wants is Wants.ALONE:
        status = 401  # L402 with nothing to pay: a refusal, like a bare 401
    if status == 401 and wants is Wants.OTHER:
        return Verdict.KEEP  # a login
    if not accepted:
        if expired:
            return Verdict.RETIRE
        return Verdict.OFFER_AGAIN if patience_left else Verdict.GIVE_UP
    if wants is Wants.PAID:
        return Verdict.OFFER_AGAIN  # an old answer says nothing of it
    if wants is Wants.SAME:
        return Verdict.RETIRE  # accepted before, and asked for anew in so many words
    if expired:
        return Verdict.RETIRE
    if not accepted_here:
        return Verdict.KEEP  # nothing says that this page has ever accepted such a token
    if status == 402:
        return Verdict.KEEP  # an application's own
    return Verdict.RETIRE if asked_bare else Verdict.ASK_BARE


def test_a_page_says_the_same_of_every_token_that_it_may_be_about():
    """`handler` looks up nothing that is known of a token once the page has come: a cell that differs would be passed over."""
    assert {judge(known, ServerAnswer.DELIVERED) for known in [*JUDGED, TokenStatus.TRIAL]} == {
        judge(TokenStatus.ACCEPTED, ServerAnswer.DELIVERED)
    }


@pytest.mark.parametrize(("status", "after_402"), list(itertools.product(STATUSES, [False, True])))
def test_whether_a_page_has_come_depends_on_the_status_and_a_402_before_it_alone(status: int | None, *, after_402: bool):
    """`handler` asks first whether the page has come, before it reads challenges, method and what is known of errors."""
    kinds = {
        read_answer(status, wants=wants, judged=True, after_402=after_402, is_safe=is_safe, may_refuse=may_refuse)
        for wants, is_safe, may_refuse in itertools.product(Wants, [False, True], [False, True])
    }
    is_page = read_answer(status, judged=True, after_402=after_402) is ServerAnswer.DELIVERED
    assert kinds == {ServerAnswer.DELIVERED} if is_page else ServerAnswer.DELIVERED not in kinds


def test_every_answer_to_every_token_has_a_ruling_and_every_ruling_an_answer() -> None:
    """Else a call would die of an AssertionError after paying; or a ruling would be there that nothing ever follows."""
    met = set()
    for status, wants, judged, after_402 in answers():
        said = read_answer(status, wants=wants, judged=judged, after_402=after_402)
        if judged:
            statuses = {token_status(**{**token, "expired": token["expired"] and said not in ERRORS}) for token in tokens()}
            met |= {(known, said) for known in (*statuses, TokenStatus.TRIAL)}
        else:
            met.add((TokenStatus.GUESS, said))
            if wants is not Wants.SAME:  # no token, no scope of its own
                met.add((TokenStatus.NONE, said))
    met |= {(TokenStatus.CHARGE, said) for said in charge_answers()}
    assert met == SERVER_RULES.keys()


def charge_answers() -> Iterator[ServerAnswer]:
    """Everything that a server may answer to a charge."""
    for status in (None, *range(200, 600)):
        for wants in (Wants.NOTHING, Wants.OTHER, Wants.CHALLENGE):
            for receipted, repeated in itertools.product([False, True], repeat=2):
                yield read_charge_answer(status, wants=wants, receipted=receipted, repeated=repeated)


@pytest.mark.parametrize("status", [200, 204, 206, 303, 400, 401, 402, 403, 404, 410, 429, 500, 502, 503])
@pytest.mark.parametrize("wants", [Wants.NOTHING, Wants.OTHER, Wants.CHALLENGE])
@pytest.mark.parametrize("receipted", [False, True])
@pytest.mark.parametrize("repeated", [False, True])
def test_a_charge_is_spent_by_its_page_or_its_receipt_alone(status: int, wants: Wants, *, receipted: bool, repeated: bool) -> None:
    """Else a request would be paid for again that may be served still, or a used charge be presented for ever."""
    answer = read_charge_answer(status, wants=wants, receipted=receipted, repeated=repeated)
    verdict = judge(TokenStatus.CHARGE, answer).verdict
    assert (verdict in (Verdict.SPENT, Verdict.USED_UP)) == (status < 300 or receipted)
    assert (verdict is Verdict.USED_UP) == (status >= 400 and receipted)
    assert (verdict is Verdict.PRESENT_ANEW) == (status >= 400 and repeated and not receipted)
    if status >= 400 and not (receipted or repeated):
        refuses = status == 402 or wants is Wants.CHALLENGE or (status == 401 and wants is Wants.NOTHING)
        assert verdict is (Verdict.GIVE_UP if refuses else Verdict.KEEP)


def test_what_cant_be_raises_before_anything_is_done() -> None:
    """Else a fault of ours would be guessed over, with money at stake."""
    for known, said in itertools.product(TokenStatus, ServerAnswer):
        if (known, said) in SERVER_RULES:
            assert judge(known, said) is SERVER_RULES[known, said]
        else:
            with pytest.raises(AssertionError, match=known.name):
                judge(known, said)
    illegal = {pair for pair in itertools.product(TokenStatus, ServerAnswer) if pair not in SERVER_RULES}
    assert illegal == {
        (TokenStatus.NONE, ServerAnswer.REFUSED),
        *itertools.product((TokenStatus.NONE, TokenStatus.GUESS), (ServerAnswer.REPLAYED,)),
        *itertools.product((TokenStatus.EXPIRED, TokenStatus.UNTIMELY), ERRORS),
        *((TokenStatus.CHARGE, said) for said in (ServerAnswer.REFUSED, ServerAnswer.REPLAYED)),
        *itertools.product(set(TokenStatus) - {TokenStatus.CHARGE}, (ServerAnswer.REPEATED, ServerAnswer.RECEIPTED)),
    }


@pytest.mark.parametrize("status", [401, 402])
def test_a_401_or_402_to_a_token_means_what_the_design_says(status: int) -> None:
    """Else a token whose settlement lags would be thrown away (paid twice), or a used-up one be offered for ever."""
    for token, wants in itertools.product(tokens(), Wants):
        assert verdict_on(status, wants, **token) is design_says(status, wants, **token), (wants, token)


@pytest.mark.parametrize("status", [status for status in STATUSES if status not in (401, 402)])
def test_an_error_costs_a_token_only_where_it_served_and_is_asked_for_anew(status: int | None) -> None:
    """Else a server's fault, or a page that isn't there, would retire a token that was paid for."""
    served = status is not None and 200 <= status < 300
    for token in tokens():
        if token["expired"]:
            continue  # it isn't looked at for an error
        doubted = status in TURNED_DOWN + FAILED and token["accepted"] and token["accepted_here"]
        expected = Verdict.RETIRE if token["asked_bare"] else Verdict.ASK_BARE
        assert verdict_on(status, Wants.NOTHING, **token) is (Verdict.ACCEPTED if served else expected if doubted else Verdict.KEEP)


@pytest.mark.parametrize("status", STATUSES)
def test_an_error_is_about_the_request_where_nothing_else_is_known(status: int | None) -> None:
    """Else a POST that an application failed at is sent twice, and a token is bought at each fault of a server."""
    for is_safe, may_refuse in itertools.product([False, True], repeat=2):
        said = read_answer(status, judged=True, is_safe=is_safe, may_refuse=may_refuse)
        assert (said is ServerAnswer.TURNED_DOWN) == (may_refuse and status in TURNED_DOWN)
        assert (said is ServerAnswer.FAILED) == (may_refuse and is_safe and status in FAILED)


@pytest.mark.parametrize("status", [status for status in STATUSES if status is not None])
def test_a_redirect_says_that_the_token_was_taken_only_where_a_402_came_before(status: int) -> None:
    """Else a maintenance page in front of the paywall takes a token that was never delivered for, and it is bought again."""
    for token in tokens():
        if not (token["expired"] and status in TURNED_DOWN + FAILED):
            verdict = verdict_on(status, Wants.NOTHING, after_402=True, **token)
            assert (verdict is Verdict.ACCEPTED) == (200 <= status < 400), (status, token)


@pytest.mark.parametrize("status", STATUSES)
def test_without_a_token_only_an_l402_challenge_is_answered(status: int | None) -> None:
    """Else free traffic wouldn't be what it is with `requests`."""
    for wants in {402: (Wants.CHALLENGE, Wants.ALONE, Wants.OTHER, Wants.NOTHING), 401: (Wants.OTHER, Wants.NOTHING)}.get(
        status or 0, (Wants.NOTHING,)
    ):
        verdict = judge(TokenStatus.NONE, read_answer(status, wants=wants, judged=False)).verdict
        if wants is Wants.CHALLENGE:
            assert verdict is Verdict.GET_ONE
        elif status == 401 and wants is Wants.NOTHING:
            assert verdict is Verdict.TRY_OTHERS  # nothing is bought
        else:
            assert verdict is Verdict.AS_IT_IS


@pytest.mark.parametrize("status", STATUSES)
def test_a_guess_is_withdrawn_unseen_and_never_judged(status: int | None) -> None:
    """Else a token that nobody asked for would keep the caller from a page, or be given up for a page that it isn't for."""
    for wants in set(Wants) - {Wants.PAID} if status == 402 else (Wants.NOTHING,):
        verdict = judge(TokenStatus.GUESS, read_answer(status, wants=wants, judged=False)).verdict
        if status == 402 and wants in (Wants.SAME, Wants.CHALLENGE):
            assert verdict is Verdict.GET_ONE
        elif status is None or 100 <= status < 200 or 300 <= status < 400:
            assert verdict is Verdict.AS_IT_IS
        else:
            assert verdict is (Verdict.KEEP if status < 300 else Verdict.WITHDRAW)


@pytest.mark.parametrize("status", STATUSES)
def test_a_token_on_trial_is_never_given_up_for_a_page_that_it_isnt_for(status: int | None) -> None:
    """Else a token that opens other pages is thrown away, or offered at a page for seconds that it was never bought for."""
    for wants in Wants if status in (401, 402) else (Wants.NOTHING,):
        verdict = judge(TokenStatus.TRIAL, read_answer(status, wants=wants, judged=True)).verdict
        if wants in (Wants.SAME, Wants.PAID, Wants.CHALLENGE):
            assert verdict is Verdict.GET_ONE
        elif status is None or 100 <= status < 200 or 300 <= status < 400:
            assert verdict is Verdict.KEEP
        else:
            assert verdict is (Verdict.ACCEPTED if status < 300 else Verdict.OTHERS_FIRST)


def test_nothing_is_bought_beside_a_token_that_was_never_taken() -> None:
    """Promise 1: a server that never delivers is paid once for a scope, whatever it says."""
    for said in ServerAnswer:
        for known in (TokenStatus.FRESH, TokenStatus.WAITED):
            ruling = SERVER_RULES.get((known, said))
            if ruling is not None:
                assert ruling.verdict is not Verdict.RETIRE
                assert ruling.verdict is not Verdict.GET_ONE or said is ServerAnswer.PRICED  # which names another scope


def test_only_what_may_refuse_depends_on_what_is_known() -> None:
    """Else the adapter, which asks the ledger for those answers alone, would judge by old knowledge."""
    for said in ServerAnswer:
        verdicts = {SERVER_RULES[known, said].verdict for known in JUDGED if (known, said) in SERVER_RULES}
        assert (len(verdicts) > 1) == (said in (*MAYBE_REFUSALS, *ERRORS)), said


def test_a_token_that_has_served_is_offered_no_second_time_for_a_refusal_in_so_many_words() -> None:
    """Else each call with a used-up token would wait for a settlement that is long over."""
    assert {SERVER_RULES[known, ServerAnswer.REFUSED].verdict for known in SERVED} == {Verdict.RETIRE}


def test_every_ruling_says_why() -> None:
    """Else the next change to it would be a guess."""
    assert all(len(ruling.why) > 10 for ruling in SERVER_RULES.values())
