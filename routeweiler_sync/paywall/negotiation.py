"""What one hop has offered and been refused so far, and what follows. Pure: no I/O; clocks and the ledger's facts are passed in.

`server_rules` says what a server's answer to a token means. This module remembers what the table asks about: which tokens were
offered, since when one is refused, whether the server was asked without any. `handler` does what is decided here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .server_rules import ServerAnswer, TokenStatus, Verdict, Wants, judge, token_status

if TYPE_CHECKING:
    from ..ledger.types import PaymentRow
    from ..payments.token import Token
    from ..payments.types import Purchase

#: A token that the server has never accepted is offered again for this long: settlement may lag on the server's side.
OFFER_AGAIN_S = 5.0
#: Tokens that one call offers before it insists on its own: an old one, one that another process bought meanwhile, a new one.
MAX_TOKENS_PER_CALL = 4
#: Tokens that one call offers at all. Only other processes, each with a token that no server has accepted yet, can make it so many.
MAX_OFFERS_PER_CALL = 32
#: Pauses before a token is offered again, growing.
MIN_PAUSE_S, MAX_PAUSE_S = 0.05, 1.0
#: The ledger keeps times in milliseconds, rounded down.
CLOCK_GRAIN_S = 0.001


@dataclass(kw_only=True)
class Negotiation:
    """The state of one hop. ``resource_digest`` is the digest of the page that is asked for, ``call_started_s`` in unix seconds."""

    resource_digest: str
    call_started_s: float
    #: Whether this hop has bought a token.
    bought: bool = False
    #: How many tokens from the checkout were offered.
    offers: int = 0
    #: The token that the checkout gave last.
    last_offered: Token | None = None
    #: Payment hashes of tokens that aren't offered again in this hop.
    refused: set[str] = field(default_factory=set)
    #: Payment hashes of tokens that this hop has retired; all are among ``refused``.
    retired: set[str] = field(default_factory=set)
    #: Payment hashes of tokens that other calls have bought for other pages since this call began.
    bought_for_others: set[str] = field(default_factory=set)
    #: Since when, on the monotonic clock, the token at hand has been refused.
    refused_since_s: float | None = None
    #: Whether the server was asked without a token, to learn what it makes of the one it refused.
    asked_bare: bool = False
    _held_back: Token | None = None
    _replays_checked: set[str] = field(default_factory=set)

    # -- what an answer means -------------------------------------------------------------------------------------------------

    def checks_replay(self, token: Token) -> bool:
        """Return whether to look up if the invoice that refuses ``token`` was paid long ago. True once for each token."""
        if token.payment_hash in self._replays_checked:
            return False
        self._replays_checked.add(token.payment_hash)
        return True

    def verdict(self, answer: ServerAnswer, status: TokenStatus) -> Verdict:
        """Return the table's verdict on ``answer`` to a token of ``status``."""
        verdict = judge(status, answer).verdict
        self.asked_bare = self.asked_bare or verdict is Verdict.ASK_BARE
        return verdict

    def note_refusal(self, token: Token, known_now: Token | None, *, monotonic_s: float) -> bool:
        """Note that an answer may refuse ``token``. Return whether the token counts as accepted before.

        ``known_now`` is the token as the ledger has it, None where another call has retired it: then its time is over. "Accepted
        before" means when the request left. Of requests that go out together while a settlement lags, some are refused and a later
        one is accepted: such a refusal is no reason to give up, and pay for, a token that has just begun to serve.
        """
        if known_now is None:
            return True
        if self.refused_since_s is None or (known_now.accepted and not token.accepted):
            self.refused_since_s = monotonic_s
        return token.accepted

    def status_of(self, token: Token, *, accepted: bool, accepted_here: bool, now_s: float, monotonic_s: float) -> TokenStatus:
        """Return what is known of a token that is no guess; ``accepted_here``: this path has accepted tokens of its scope."""
        return token_status(
            accepted=accepted,
            accepted_here=accepted_here,
            expired=token.valid_until is not None and now_s >= token.valid_until,
            asked_bare=self.asked_bare,
            patience_left=self._refused_for_s(monotonic_s) < OFFER_AGAIN_S,
        )

    # -- what to offer next ---------------------------------------------------------------------------------------------------

    def may_offer(self, *, may_buy: bool) -> bool:
        """Return whether one more token may be offered. More are allowed where it may be this call's own."""
        return self.offers < (MAX_OFFERS_PER_CALL if may_buy else MAX_TOKENS_PER_CALL)

    def is_worth_an_offer(self, row: PaymentRow) -> bool:
        """Return whether to offer a token bought by another call. False once one bought during this call for another page failed here.

        A token that was bought a moment ago and didn't serve shows that tokens here don't fit every page. An older one may have been
        used up or expired, which says nothing of its successor.
        """
        if self.offers >= MAX_TOKENS_PER_CALL:
            return False
        return row.resource_digest == self.resource_digest or not self.bought_for_others & self.retired

    def note_offer(self, purchase: Purchase, scope: str) -> None:
        """Note that the checkout's token for ``scope`` is offered next."""
        token, row = purchase.token, purchase.row
        self.offers, self.last_offered = self.offers + 1, token
        self.bought = self.bought or purchase.bought
        if token.scope != scope:
            self.refused.add(token.payment_hash)  # bought for this page, under another scope: once is enough
        elif row.resource_digest != self.resource_digest and row.created_at.timestamp() >= self.call_started_s - CLOCK_GRAIN_S:
            self.bought_for_others.add(token.payment_hash)
        self._begin_with_another()

    def note_earlier_offer(self, refused: Token) -> None:
        """Note that a token that was once bought for this very page is offered next, in place of ``refused``."""
        self.refused.add(refused.payment_hash)
        self.refused_since_s = None

    def note_retired(self, token: Token) -> None:
        """Note that the server no longer accepts ``token``, here at least."""
        self.refused.add(token.payment_hash)
        self.retired.add(token.payment_hash)
        self._begin_with_another()

    def hold_back(self, token: Token) -> None:
        """Keep ``token``, which was refused without a reason, for one more offer after the server was asked without it."""
        self._held_back = token

    def take_back(self, scope: str) -> Token | None:
        """Return the token that was held back, if it fits ``scope``. It is kept no longer, whether it fits or not."""
        token, self._held_back = self._held_back, None
        return token if token is not None and token.scope == scope else None

    def pause_s(self, monotonic_s: float) -> float:
        """Return how long to wait before the token is offered again, in seconds."""
        assert self.refused_since_s is not None
        return min(MAX_PAUSE_S, max(MIN_PAUSE_S, self._refused_for_s(monotonic_s) / 2))

    def _refused_for_s(self, monotonic_s: float) -> float:
        return 0.0 if self.refused_since_s is None else monotonic_s - self.refused_since_s

    def _begin_with_another(self) -> None:
        self.refused_since_s, self.asked_bare = None, False


def wants_of(scope: str | None, token: Token | None, *, names_schemes: bool) -> Wants:
    """Return what a 401 or 402 asks for.

    ``scope`` is that of its challenge, None where there is none that can be paid; ``token`` went along; ``names_schemes``: the answer
    names any scheme at all.
    """
    if scope is not None:
        return Wants.SAME if token is not None and token.scope == scope else Wants.CHALLENGE
    return Wants.OTHER if names_schemes else Wants.NOTHING
