"""One hop's memory of what it offered and was refused, and the next step. Clocks and rows are made up; nothing is sent."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone

import pytest

from routeweiler_sync.ledger.types import PaymentRow, PaymentState
from routeweiler_sync.payments.token import Token
from routeweiler_sync.payments.types import Purchase
from routeweiler_sync.paywall.negotiation import (
    CLOCK_GRAIN_S,
    MAX_OFFERS_PER_CALL,
    MAX_PAUSE_S,
    MAX_REQUESTS,
    MAX_TOKENS_PER_CALL,
    MIN_PAUSE_S,
    OFFER_AGAIN_S,
    Negotiation,
    wants_of,
)
from routeweiler_sync.paywall.server_rules import ServerAnswer, TokenStatus, Verdict, Wants

SCOPE, PAGE = "pages", "digest of the page"
#: When the call began, in unix seconds; and some moment on the monotonic clock.
STARTED_S, MOMENT_S = 1_000.0, 50.0


def row_of(number: int, *, page: str = PAGE, created_s: float = STARTED_S - 60, scope: str = SCOPE) -> PaymentRow:
    """A paid row: bought for ``page``, a minute before the call unless told otherwise."""
    return PaymentRow(
        payment_hash=f"{number:064x}",
        origin="https://shop.example",
        scope=scope,
        path="/page",
        state=PaymentState.SETTLED,
        amount_msat=10_000,
        max_fee_msat=1_000,
        fee_msat=0,
        envelope_id="default",
        node_pubkey="02" + "11" * 32,
        network="bitcoin-regtest",
        bolt11="lnbcrt1",
        scheme="L402",
        token=f"token-{number}",
        preimage="ab" * 32,
        resource_digest=page,
        created_at=datetime.fromtimestamp(created_s, timezone.utc),
    )


def token_of(row: PaymentRow) -> Token:
    token = Token.of(row)
    assert token is not None
    return token


def purchase_of(row: PaymentRow, *, bought: bool = False) -> Purchase:
    return Purchase(token=token_of(row), row=row, bought=bought)


@pytest.fixture
def hop() -> Negotiation:
    return Negotiation(resource_digest=PAGE, call_started_s=STARTED_S)


def status(
    hop: Negotiation, token: Token, *, monotonic_s: float = MOMENT_S, now_s: float = STARTED_S, here: bool = True
) -> TokenStatus:
    return hop.status_of(token, accepted=token.accepted, accepted_here=here, now_s=now_s, monotonic_s=monotonic_s)


# -- patience ------------------------------------------------------------------------------------------------------------------


def test_patience_runs_from_the_first_refusal_by_the_clock_that_is_passed_in(hop: Negotiation) -> None:
    """Started anew by each refusal, it would never end, and the call would hang at a server that never delivers."""
    token = token_of(row_of(1))
    assert status(hop, token, monotonic_s=MOMENT_S + 1_000) is TokenStatus.FRESH  # nobody has refused it yet
    for later_s in (0.0, 1.0, 4.0):
        assert hop.note_refusal(token, token, monotonic_s=MOMENT_S + later_s) is False
    assert status(hop, token, monotonic_s=MOMENT_S + OFFER_AGAIN_S - 0.001) is TokenStatus.FRESH
    assert status(hop, token, monotonic_s=MOMENT_S + OFFER_AGAIN_S) is TokenStatus.WAITED


def test_another_token_gets_patience_of_its_own(hop: Negotiation) -> None:
    """Else the second token of a call would be given up at its first refusal: paid for, and no time for its settlement."""
    hop.note_refusal(token_of(row_of(1)), token_of(row_of(1)), monotonic_s=MOMENT_S)
    late_s = MOMENT_S + 2 * OFFER_AGAIN_S
    second = row_of(2)
    hop.note_offer(purchase_of(second), SCOPE)
    assert hop.refused_since_s is None
    hop.note_refusal(token_of(second), token_of(second), monotonic_s=late_s)
    assert status(hop, token_of(second), monotonic_s=late_s + 1) is TokenStatus.FRESH


def test_an_earlier_token_of_this_page_gets_patience_of_its_own_too(hop: Negotiation) -> None:
    """The old proof of a paid page would be given up at once, and its server would be paid a second time."""
    refused = token_of(row_of(1))
    hop.note_refusal(refused, refused, monotonic_s=MOMENT_S)
    hop.note_earlier_offer(refused)
    assert hop.refused_since_s is None
    assert refused.payment_hash in hop.refused
    assert refused.payment_hash not in hop.retired


def test_a_token_that_another_call_was_served_with_meanwhile_is_waited_for_anew(hop: Negotiation) -> None:
    """The refusal left before the settlement arrived. Given up now, a token that has just begun to serve is bought again."""
    token = token_of(row_of(1))
    hop.note_refusal(token, token, monotonic_s=MOMENT_S)
    served = replace(token, accepted=True)
    late_s = MOMENT_S + OFFER_AGAIN_S
    assert hop.note_refusal(token, served, monotonic_s=late_s) is False, "it hadn't been accepted when this request left"
    assert status(hop, token, monotonic_s=late_s + 1) is TokenStatus.FRESH


def test_a_token_that_was_accepted_before_the_request_left_is_refused_for_good(hop: Negotiation) -> None:
    """Offered again and again, a token that is used up would keep each call waiting for five seconds before it buys anew."""
    token = replace(token_of(row_of(1)), accepted=True)
    assert hop.note_refusal(token, token, monotonic_s=MOMENT_S) is True


def test_a_token_that_another_call_retired_counts_as_accepted_and_starts_no_wait(hop: Negotiation) -> None:
    """The server is done with it. To wait for its settlement would keep the call from the new token that is there already."""
    assert hop.note_refusal(token_of(row_of(1)), None, monotonic_s=MOMENT_S) is True
    assert hop.refused_since_s is None


@pytest.mark.parametrize(
    ("refused_for_s", "pause_s"), [(0.0, MIN_PAUSE_S), (0.08, MIN_PAUSE_S), (0.5, 0.25), (1.0, 0.5), (4.0, MAX_PAUSE_S)]
)
def test_pauses_grow_with_the_wait_between_two_bounds(hop: Negotiation, refused_for_s: float, pause_s: float) -> None:
    """Without the lower bound the server is hammered; without the upper one the page comes seconds after its settlement."""
    token = token_of(row_of(1))
    hop.note_refusal(token, token, monotonic_s=MOMENT_S)
    assert hop.pause_s(MOMENT_S + refused_for_s) == pytest.approx(pause_s)


# -- what is known of a token --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("now_s", "known"), [(1_099.9, TokenStatus.ACCEPTED), (1_100.0, TokenStatus.EXPIRED)])
def test_a_token_expires_at_its_own_second(hop: Negotiation, now_s: float, known: TokenStatus) -> None:
    """Judged by the wrong clock or a second late, an expired token is offered until the call gives up."""
    token = replace(token_of(row_of(1)), accepted=True, valid_until=1_100)
    assert status(hop, token, now_s=now_s) is known


def test_a_token_without_an_end_never_expires(hop: Negotiation) -> None:
    """Most servers name no end: to take that for an end would throw each token away after one call."""
    assert status(hop, replace(token_of(row_of(1)), accepted=True), now_s=1e12) is TokenStatus.ACCEPTED


def test_once_the_server_was_asked_without_the_token_it_is_doubted(hop: Negotiation) -> None:
    """Forgotten, the server would be asked without a token over and over, and the call would never end."""
    token = replace(token_of(row_of(1)), accepted=True)
    known = status(hop, token)
    assert known is TokenStatus.ACCEPTED
    assert hop.verdict(ServerAnswer.BARE_401, known) is Verdict.ASK_BARE
    assert hop.asked_bare
    assert status(hop, token) is TokenStatus.DOUBTED
    assert hop.verdict(ServerAnswer.BARE_401, TokenStatus.DOUBTED) is Verdict.RETIRE
    assert hop.asked_bare, "an answer to the same token doesn't make it trusted again"


@pytest.mark.parametrize("what", ["offered", "retired"])
def test_the_doubt_ends_with_its_token(hop: Negotiation, what: str) -> None:
    """Carried over to the next token, it would retire a fresh one at the first 401 that a login page answers."""
    hop.asked_bare = True
    if what == "offered":
        hop.note_offer(purchase_of(row_of(2)), SCOPE)
    else:
        hop.note_retired(token_of(row_of(1)))
    assert not hop.asked_bare


def test_the_invoice_of_a_refusal_is_looked_up_once_for_each_token(hop: Negotiation) -> None:
    """A server that repeats an old answer for ever would otherwise be believed for ever, and the token never retired."""
    first, second = token_of(row_of(1)), token_of(row_of(2))
    assert [hop.checks_replay(token) for token in (first, first, second, first, second)] == [True, False, True, False, False]


# -- bounds --------------------------------------------------------------------------------------------------------------------


def test_a_call_offers_only_so_many_tokens(hop: Negotiation) -> None:
    """A hostile server names another scope each time, and other workers feed it tokens: the call would never end."""
    seen = []
    for number in range(MAX_OFFERS_PER_CALL):
        seen.append((hop.may_offer(may_buy=False), hop.may_offer(may_buy=True)))
        hop.note_offer(purchase_of(row_of(number)), SCOPE)
    assert seen == [(number < MAX_TOKENS_PER_CALL, True) for number in range(MAX_OFFERS_PER_CALL)]
    assert not hop.may_offer(may_buy=False)
    assert not hop.may_offer(may_buy=True)
    assert hop.offers == MAX_OFFERS_PER_CALL


def test_after_so_many_tokens_others_are_no_longer_worth_an_offer(hop: Negotiation) -> None:
    """Among many workers there is always another fresh token: a call that tries them all never comes to buy its own."""
    for number in range(MAX_TOKENS_PER_CALL):
        assert hop.is_worth_an_offer(row_of(99))
        hop.note_offer(purchase_of(row_of(number)), SCOPE)
    assert not hop.is_worth_an_offer(row_of(99))


# -- whose token is worth an offer ---------------------------------------------------------------------------------------------


def test_where_a_new_token_for_another_page_failed_no_further_one_is_tried(hop: Negotiation) -> None:
    """The server sells page by page. Each of a crowd would try the tokens of all others before it buys its own."""
    theirs = row_of(1, page="another page", created_s=STARTED_S + 1)
    hop.note_offer(purchase_of(theirs), SCOPE)
    assert hop.is_worth_an_offer(row_of(2, page="a third page")), "offered isn't failed yet"
    hop.note_retired(token_of(theirs))
    assert not hop.is_worth_an_offer(row_of(2, page="a third page", created_s=STARTED_S + 2))
    assert hop.is_worth_an_offer(row_of(3)), "one that was bought for this page is"


def test_an_old_token_for_another_page_that_failed_says_nothing_of_its_successor(hop: Negotiation) -> None:
    """It may have been used up. To buy one's own at once would have a crowd pay once each where one new token serves all."""
    old = row_of(1, page="another page", created_s=STARTED_S - 1)
    hop.note_offer(purchase_of(old), SCOPE)
    hop.note_retired(token_of(old))
    assert hop.bought_for_others == set()
    assert hop.is_worth_an_offer(row_of(2, page="a third page"))


@pytest.mark.parametrize(("before_s", "is_new"), [(CLOCK_GRAIN_S, True), (3 * CLOCK_GRAIN_S, False)])
def test_a_row_of_the_calls_own_millisecond_is_new(hop: Negotiation, before_s: float, is_new: bool) -> None:
    """The ledger rounds down to milliseconds: what a neighbour bought in this very one would pass for old, and be tried in vain."""
    row = row_of(1, page="another page", created_s=STARTED_S - before_s)
    hop.note_offer(purchase_of(row), SCOPE)
    assert hop.bought_for_others == ({row.payment_hash} if is_new else set())


def test_a_token_for_this_very_page_is_never_counted_as_bought_for_another(hop: Negotiation) -> None:
    """Its refusal says nothing about pages: counted so, it would keep the call from good tokens, and have it pay."""
    row = row_of(1, created_s=STARTED_S + 1)
    hop.note_offer(purchase_of(row), SCOPE)
    hop.note_retired(token_of(row))
    assert hop.is_worth_an_offer(row_of(2, page="another page", created_s=STARTED_S + 2))


def test_a_token_under_another_scope_is_offered_once(hop: Negotiation) -> None:
    """The server names a new scope with each 402: the same token would be offered to it again and again."""
    row = row_of(1, scope="yesterday's scope", page="another page", created_s=STARTED_S + 1)
    hop.note_offer(purchase_of(row), SCOPE)
    assert hop.refused == {row.payment_hash}
    assert hop.bought_for_others == set(), "it says nothing of the tokens of this scope"
    assert hop.last_offered == token_of(row)


def test_a_hop_that_has_bought_remembers_it_whatever_comes_next(hop: Negotiation) -> None:
    """Forgotten once the next token is offered, one call would buy twice."""
    hop.note_offer(purchase_of(row_of(1), bought=True), SCOPE)
    hop.note_offer(purchase_of(row_of(2), bought=False), SCOPE)
    hop.note_retired(token_of(row_of(1)))
    assert hop.bought


def test_what_was_retired_isnt_offered_again_in_the_hop(hop: Negotiation) -> None:
    """The checkout would give out the same token once more, and the hop would turn in a circle."""
    token = token_of(row_of(1))
    hop.note_refusal(token, token, monotonic_s=MOMENT_S)
    hop.note_retired(token)
    assert hop.refused == hop.retired == {token.payment_hash}
    assert hop.refused_since_s is None


def test_a_token_that_was_held_back_is_taken_back_once(hop: Negotiation) -> None:
    """Given back each time, a token that the server doesn't want any more is offered without end."""
    token = token_of(row_of(1))
    assert hop.take_back(SCOPE) is None
    hop.hold_back(token)
    assert hop.take_back(SCOPE) == token
    assert hop.take_back(SCOPE) is None


def test_a_token_that_was_held_back_is_given_up_where_another_scope_is_asked_for(hop: Negotiation) -> None:
    """Kept for later, a token would come back at a page that it was never meant for."""
    hop.hold_back(token_of(row_of(1)))
    assert hop.take_back("another scope") is None
    assert hop.take_back(SCOPE) is None


def test_any_token_that_served_here_is_taken_back_where_no_scope_is_named(hop: Negotiation) -> None:
    """Else a token for the whole server is replaced after a single error, since it was bought for another path."""
    hop.hold_back(token_of(row_of(1)))
    assert hop.take_back("/another path", is_named=False) == token_of(row_of(1))


def test_a_trial_is_made_once_for_each_token_and_four_times_at_most(hop: Negotiation) -> None:
    """Else a page costs a request for each token that was ever bought at its origin."""
    for number in range(1, 5):
        token = token_of(row_of(number))
        assert hop.is_worth_a_trial(token.payment_hash)
        hop.note_trial(token.payment_hash)
        assert hop.is_on_trial(token)
        assert not hop.is_worth_a_trial(token.payment_hash)
        assert hop.status_of(token, accepted=True, accepted_here=True, now_s=0, monotonic_s=MOMENT_S) is TokenStatus.TRIAL
    assert not hop.is_worth_a_trial(token_of(row_of(5)).payment_hash)


def test_a_trial_ends_with_the_next_offer(hop: Negotiation) -> None:
    """Else a bought token would be passed over like one that nothing is known of, and another be bought."""
    row = row_of(1)
    hop.note_trial(row.payment_hash)
    hop.note_offer(purchase_of(row), SCOPE)
    assert not hop.is_on_trial(token_of(row))
    assert hop.status_of(token_of(row), accepted=False, accepted_here=False, now_s=0, monotonic_s=MOMENT_S) is TokenStatus.FRESH


def test_what_may_be_of_no_use_leaves_two_requests_for_the_purchase(hop: Negotiation) -> None:
    """Else a call asks more often than eight times, or has nothing left for the token that it buys."""
    for hop.requests in range(1, MAX_REQUESTS + 2):
        assert hop.may_try() == (hop.requests + 2 <= MAX_REQUESTS)
        assert hop.is_worth_a_trial("ab" * 32) == hop.may_try()
        assert hop.is_worth_an_offer(replace(row_of(1), state=PaymentState.RETIRED)) == hop.may_try()
        assert hop.is_worth_an_offer(row_of(1)), "a live token of the scope is offered in any case, else it would be replaced"


@pytest.mark.parametrize("used_up", range(40))
def test_where_tokens_serve_once_none_is_offered_twice(hop: Negotiation, used_up: int) -> None:
    """Else each call carries its used-up tokens around; or a wrong verdict is never noticed."""
    hop.used_up_in_a_row = used_up
    offered = used_up < 3 or used_up % 16 == 0
    assert hop.is_worth_an_offer(replace(row_of(1), accepted=True)) == offered
    assert hop.is_worth_a_trial("ab" * 32) == offered
    assert hop.is_worth_an_offer(row_of(1)), "it hasn't served yet"


def test_hops_share_nothing() -> None:
    """With one set for all hops, a token that was refused anywhere would be refused everywhere, and paid for again."""
    one, other = (Negotiation(resource_digest=PAGE, call_started_s=STARTED_S) for _ in range(2))
    one.note_retired(token_of(row_of(1)))
    one.checks_replay(token_of(row_of(1)))
    assert (other.refused, other.retired, other.bought_for_others) == (set(), set(), set())
    assert other.checks_replay(token_of(row_of(1)))


# -- what an answer asks for ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scope", "has_token", "names_schemes", "wants"),
    [
        (SCOPE, True, True, Wants.SAME),
        ("another scope", True, True, Wants.CHALLENGE),
        (SCOPE, False, True, Wants.CHALLENGE),
        (None, True, True, Wants.OTHER),
        (None, False, True, Wants.OTHER),
        (None, True, False, Wants.NOTHING),
        (None, False, False, Wants.NOTHING),
    ],
)
def test_what_a_refusal_asks_for(scope: str | None, has_token: bool, names_schemes: bool, wants: Wants) -> None:
    """Read as a refusal of the token, a login or another page's price costs a good token and a second payment."""
    assert wants_of(scope, token_of(row_of(1)) if has_token else None, names_schemes=names_schemes) is wants
