"""Which tokens one hop has offered so far, which were refused, and what to offer next. Pure: no I/O.

The caller passes in the time and what it has read in the ledger. What a server's answer to a token means is decided in
`server_rules`. This module remembers the facts that those rules ask about: which tokens were offered, how long the present one has
been refused, whether the server was asked without any token. `handler` does what is decided here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..payments.single_use import is_single_use
from .server_rules import ServerAnswer, TokenStatus, Verdict, Wants, judge, token_status

if TYPE_CHECKING:
    from ..ledger.types import PaymentRow
    from ..payments.token import Token
    from ..payments.types import Purchase

#: A token that the server has never accepted is offered again for this long: settlement may lag on the server's side.
OFFER_AGAIN_S = 5.0
#: A token that the server has never accepted is offered at most this many times in a row: a program's clock may stand still.
MAX_OFFERS_OF_ONE = 20
#: After this many tokens, a call offers no more tokens of others, only one that it buys itself. Four leaves room for an old token,
#: one that another process bought meanwhile, and a new one.
MAX_TOKENS_PER_CALL = 4
#: The most requests that a hop sends on its way to a page, the purchase's own included. Offering a token again that the server has
#: never accepted isn't counted: it is paid for, and nothing else may be bought.
MAX_REQUESTS = 8
#: The most tokens that are offered for a page on which nothing says that it accepts them.
MAX_TRIALS = 4
#: The most tokens that one call offers. So many occur only if other processes keep buying tokens that no server has accepted yet.
MAX_OFFERS_PER_CALL = 32
#: The shortest and the longest pause before a token is offered again. Pauses grow.
MIN_PAUSE_S, MAX_PAUSE_S = 0.05, 1.0
#: The ledger keeps times in whole milliseconds, rounded down, so a time read from it may lie this much too early.
CLOCK_GRAIN_S = 0.001


@dataclass(kw_only=True)
class Negotiation:
    """The state of one hop.

    ``call_started_s`` is the time when the call began, in unix seconds. ``resource_digest`` is the digest of the page that is
    requested (method, path with query, body). It is needed, and set, once a challenge has been read.
    """

    call_started_s: float
    resource_digest: str = ""
    #: Whether this hop has bought a token.
    bought: bool = False
    #: How many tokens from the checkout were offered.
    offers: int = 0
    #: The token that the checkout returned last.
    last_offered: Token | None = None
    #: Payment hashes of tokens that aren't offered again in this hop.
    refused: set[str] = field(default_factory=set)
    #: Payment hashes of tokens that this hop has retired; all are among ``refused``.
    retired: set[str] = field(default_factory=set)
    #: Payment hashes of tokens that other calls have bought for other pages since this call began.
    bought_for_others: set[str] = field(default_factory=set)
    #: Payment hashes of tokens that were bought for this very page and that no server has accepted yet. Whatever scope a refusal of
    #: one of them names, it is about that token: one page is bought once.
    bought_for_this: set[str] = field(default_factory=set)
    #: Payment hashes of tokens that have opened this very page before.
    served_here: set[str] = field(default_factory=set)
    #: When the present token was first refused, on the monotonic clock. None if it hasn't been refused.
    refused_since_s: float | None = None
    #: How often the present token has been refused.
    refusals: int = 0
    #: Whether the server was asked without a token, to learn what it meant when it refused the present one.
    asked_bare: bool = False
    #: How many requests were sent, without those that only offer a token again.
    requests: int = 1
    #: How many tokens of the origin in a row were used up. See `payments.single_use`.
    used_up_in_a_row: int = 0
    #: Payment hashes of tokens that were offered though nothing said that this page accepts them.
    tried: set[str] = field(default_factory=set)
    #: The payment hash of a token that had served once, and was refused in this hop for the page that it had been bought for.
    used_up: str | None = None
    #: The statuses of the errors for which this hop went on to other tokens: 404 or 500, for instance.
    errors: set[int] = field(default_factory=set)
    #: The payment hash of the present token, if nothing says that this page accepts it.
    _on_trial: str | None = None
    #: The refused token that is to be offered once more, after the server was asked without it.
    _held_back: Token | None = None
    #: Payment hashes of tokens for which a replayed invoice was looked up already.
    _replays_checked: set[str] = field(default_factory=set)

    # -- what an answer means -------------------------------------------------------------------------------------------------

    def checks_replay(self, token: Token) -> bool:
        """Return whether to look up if the answer that refuses ``token`` repeats a paid invoice. True once for each token."""
        if token.payment_hash in self._replays_checked:
            return False
        self._replays_checked.add(token.payment_hash)
        return True

    def verdict(self, answer: ServerAnswer, status: TokenStatus) -> Verdict:
        """Return the verdict of the server rules on ``answer`` to a token of ``status``, and remember if it is ASK_BARE."""
        verdict = judge(status, answer).verdict
        self.asked_bare = self.asked_bare or verdict is Verdict.ASK_BARE
        return verdict

    def note_error(self, status: int) -> None:
        """Note that this hop goes on to another token after an answer of HTTP status ``status``. A 401 or 402 is no error."""
        if status >= 400 and status not in (401, 402):
            self.errors.add(status)

    def note_refusal(self, token: Token, in_ledger: Token | None, *, monotonic_s: float) -> bool:
        """Note that an answer may refuse ``token``. Return whether the token counts as accepted before.

        ``in_ledger`` is the token as the ledger has it now. It is None if another call has retired the token: the result is True
        then, and the token can be replaced.

        "Accepted before" means before the request left, for this reason:
          1. Two calls send the same new token while its settlement lags on the server's side.
          2. The server refuses the first request, and then accepts the second. The second call notes that in the ledger.
          3. The first call handles its refusal. If the token counted as accepted before, this call would retire it and buy another,
             although the token has just begun to serve. So the call offers the token again, with new patience.
        """
        if in_ledger is None:
            return True
        if self.refused_since_s is None or (in_ledger.accepted and not token.accepted):
            self.refused_since_s = monotonic_s
        self.refusals += 1
        return token.accepted

    def status_of(
        self, token: Token, *, accepted: bool, accepted_here: bool, now_s: float, monotonic_s: float, is_own_error: bool = False
    ) -> TokenStatus:
        """Return what is known of a token that isn't a guess.

        ``accepted``: the server has accepted it before, by `note_refusal`. ``accepted_here``: this path has accepted tokens of its
        scope. ``now_s`` is in unix seconds, ``monotonic_s`` on the monotonic clock. ``is_own_error``: the answer is an error of the
        application behind the paywall, so a token that was tried has passed that, as one that is known to serve the origin.
        """
        if token.payment_hash == self._on_trial:
            return TokenStatus.ELSEWHERE if is_own_error else TokenStatus.TRIAL
        return token_status(
            accepted=accepted,
            accepted_here=accepted_here or token.payment_hash in self.served_here,
            expired=token.valid_until is not None and now_s >= token.valid_until,
            asked_bare=self.asked_bare,
            patience_left=self._refused_for_s(monotonic_s) < OFFER_AGAIN_S and self.refusals < MAX_OFFERS_OF_ONE,
        )

    # -- what to offer next ---------------------------------------------------------------------------------------------------

    def may_offer(self, *, may_buy: bool) -> bool:
        """Return whether one more token may be offered. More tokens are allowed if this call may still buy one (``may_buy``)."""
        return self.offers < (MAX_OFFERS_PER_CALL if may_buy else MAX_TOKENS_PER_CALL)

    def _seems_used_up(self, row: PaymentRow) -> bool:
        """Return whether the token of ``row`` has served once, at an origin whose tokens serve once."""
        return row.accepted and not row.accepted_again and is_single_use(self.used_up_in_a_row)

    def shows_single_use(self, row: PaymentRow) -> bool:
        """Return whether ``row`` is for this very page, and offering its token would show if that too has served for good."""
        return row.state.value == "settled" and row.resource_digest == self.resource_digest and self._seems_used_up(row)

    def is_worth_an_offer(self, row: PaymentRow, *, shows_it: bool = False) -> bool:
        """Return whether to offer the token of ``row``, which another call has bought.

        False if tokens here serve once, and this one has, unless ``shows_it``: no token of this page was ever used up. Else true if
        it was bought for this very page. Else False once a token that was bought during this call for another page has failed here:
        it was new, so its failure shows that tokens here don't open every page. An older token may have been used up or expired,
        which says nothing about the next one. False in any case after `MAX_TOKENS_PER_CALL` offers.
        """
        if self.offers >= MAX_TOKENS_PER_CALL or (self._seems_used_up(row) and not shows_it):
            return False
        if row.state.value == "retired" and not self.may_try():
            return False
        return row.resource_digest == self.resource_digest or not self.bought_for_others & self.retired

    def may_try(self) -> bool:
        """Return whether a token that may be of no use can still be offered, so that one can be bought and offered after it."""
        return self.requests + 2 <= MAX_REQUESTS

    def is_worth_a_trial(self, payment_hash: str) -> bool:
        """Return whether to offer a token although nothing says that this page accepts it."""
        untried = payment_hash not in self.tried and payment_hash not in self.refused
        return untried and len(self.tried) < MAX_TRIALS and not is_single_use(self.used_up_in_a_row) and self.may_try()

    def note_trial(self, payment_hash: str) -> None:
        """Note that a token is offered next although nothing says that this page accepts it."""
        self.tried.add(payment_hash)
        self._on_trial = payment_hash
        self._start_next_token()

    def is_on_trial(self, token: Token) -> bool:
        """Return whether ``token`` is the one that `note_trial` was called for last, and no other was offered since."""
        return token.payment_hash == self._on_trial

    def note_offer(self, purchase: Purchase, scope: str) -> None:
        """Note that the token of ``purchase`` is offered next. ``scope`` is the scope of the challenge that it answers."""
        token, row = purchase.token, purchase.row
        self.offers, self.last_offered = self.offers + 1, token
        self.bought = self.bought or purchase.bought
        if purchase.on_trial:
            self.note_trial(token.payment_hash)
            return
        self._on_trial = None
        is_for_this_page = row.resource_digest == self.resource_digest
        if is_for_this_page and row.accepted:
            self.served_here.add(token.payment_hash)
        if is_for_this_page and not row.accepted:
            self.bought_for_this.add(token.payment_hash)
        elif token.scope != scope:
            self.refused.add(token.payment_hash)  # it was bought for this page but for another scope, so one offer is enough
        elif not is_for_this_page and row.created_at.timestamp() >= self.call_started_s - CLOCK_GRAIN_S:
            self.bought_for_others.add(token.payment_hash)
        self._start_next_token()
        # The challenge that a retired token answers came to a request without a token, so the server needn't be asked that again.
        # The same holds for one that has probably served for good.
        self.asked_bare = row.state.value == "retired" or self._seems_used_up(row)

    def note_earlier_offer(self, refused: Token) -> None:
        """Note that a retired token is offered next, in place of ``refused``. It was bought for this very page."""
        self.refused.add(refused.payment_hash)
        self.refused_since_s, self.refusals = None, 0

    def note_retired(self, token: Token) -> None:
        """Note that ``token`` is retired, since the server no longer accepts it, at least not for this page."""
        self.refused.add(token.payment_hash)
        self.retired.add(token.payment_hash)
        self._start_next_token()

    def hold_back(self, token: Token) -> None:
        """Keep ``token``, which was refused without a reason, to offer it once more after the server was asked without it."""
        self._held_back = token

    def take_back(self, scope: str, *, is_named: bool = True) -> Token | None:
        """Return the token that was held back if it is one for ``scope``, else None. It is no longer held back in either case.

        ``is_named``: the challenge names the scope. Otherwise it is only the path, and any token that has opened it is one for it.
        """
        token, self._held_back = self._held_back, None
        return token if token is not None and (token.scope == scope or not is_named) else None

    def pause_s(self, monotonic_s: float) -> float:
        """Return how long to wait before the token is offered again, in seconds; the shortest pause if none was refused."""
        return min(MAX_PAUSE_S, max(MIN_PAUSE_S, self._refused_for_s(monotonic_s) / 2))

    def _refused_for_s(self, monotonic_s: float) -> float:
        """Return for how long the present token has been refused, in seconds; 0 if it hasn't been."""
        return 0.0 if self.refused_since_s is None else monotonic_s - self.refused_since_s

    def _start_next_token(self) -> None:
        """Forget what was noted about the present token: another one is offered next."""
        self.refused_since_s, self.refusals, self.asked_bare = None, 0, False


def wants_of(
    scope: str | None, token: Token | None, *, names_schemes: bool, is_alone: bool = False, is_for_page: bool = False
) -> Wants:
    """Return what a 401 or 402 asks for.

    ``scope`` is the scope of its L402 challenge, None if it holds none. ``token`` is the token that was sent, if any.
    ``names_schemes``: the answer names some authentication scheme. ``is_alone``: it names L402, with nothing that could be paid.
    ``is_for_page``: the token was bought for this very page, and no server has accepted it yet, so any challenge refuses it.
    """
    if is_alone:
        return Wants.ALONE
    if scope is not None:
        return Wants.SAME if token is not None and (token.scope == scope or is_for_page) else Wants.CHALLENGE
    return Wants.OTHER if names_schemes else Wants.NOTHING
