"""What a hop writes down about tokens, in the ledger, the token cache and its negotiation, and what it looks up there.

`handler` calls this once it knows what an answer means. That is decided in `server_rules` and `negotiation`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .._core.deadline import patience
from .._core.log import log
from ..errors import LedgerError
from ..ledger.server_facts import USED_UP
from ..payments.single_use import USED_UP_WITHIN_S, is_single_use
from ..payments.token import Token

if TYPE_CHECKING:
    from ..config.payer import Payer
    from ..ledger.types import PaymentRow
    from ..payments.types import TokenRequest
    from .negotiation import Negotiation

#: The longest wait for the ledger to note that a token has served once more, which only helps to know the server better.
NOTE_AGAIN_WAIT_S = 0.1


@dataclass
class TokenNotes:
    """The notes of one hop to ``path`` of ``origin``."""

    payer: Payer
    negotiation: Negotiation
    origin: str
    path: str
    #: The scope that the last challenge of the hop asks for, None before the first one.
    asked_scope: str | None = None

    def is_worth_an_offer(self, row: PaymentRow) -> bool:
        """Return whether to offer the token of ``row``, which another call has bought.

        That an origin's tokens serve once is known from some of its pages. Each further page has to show it once itself: it may
        sell tokens that go on to serve, beside a page that doesn't.
        """
        shows_it = self.negotiation.shows_single_use(row) and all(
            other.state.value == "settled" for other in self.payer.ledger.page_tokens(self.origin, self.negotiation.resource_digest)
        )
        return self.negotiation.is_worth_an_offer(row, shows_it=shows_it)

    def is_worth_a_trial(self, row: PaymentRow) -> bool:
        """Return whether to offer the token of ``row``, which has opened another page of the origin, before one is bought."""
        cache = self.payer.token_cache
        if cache.is_useless(row, self.path) or cache.sells_by_path(self.origin):
            return False
        return self.negotiation.is_worth_a_trial(row.payment_hash)

    def in_ledger(self, token: Token) -> Token | None:
        """Return ``token`` as the ledger has it now, or None if another call has retired it.

        Another thread or process may have noted meanwhile that the server accepted it.
        """
        row = self.payer.ledger.payment(token.payment_hash)
        if row is None or row.state.value != "settled":
            return None
        return Token.of(row) or token

    def not_for_page(self, token: Token, request: TokenRequest) -> None:
        """Note that the server asks for another token than ``token``, which isn't tried again for this page.

        Does nothing if it asks for one of the token's own scope: then that token, which was a guess so far, is offered in earnest.
        """
        if token.scope != request.scope:
            self.negotiation.tried.add(token.payment_hash)
            self.payer.token_cache.note_useless(token, self.path)

    def accepted(self, token: Token, *, untraced: bool = False) -> bool:
        """Write to ledger and token cache that the server has accepted ``token``, and that this path accepts tokens of its scope.

        ``untraced``: the payment is this call's, which has no trace. Return whether that is noted too, with the first acceptance.

        A ledger that can't be written is logged: the caller gets the page all the same.
        """
        ledger, cache = self.payer.ledger, self.payer.token_cache
        knows_path = cache.knows_path(token, self.path)
        cache.note_served(token)
        # Separate writes: only the first one decides whether the token may be replaced when it is refused.
        noted = False
        if not token.accepted:
            noted = untraced & self.write(
                "that a token was accepted",
                lambda: ledger.mark(token.payment_hash, accepted=True, reported=untraced, traced=not untraced),
            )
            if self.negotiation.bought:
                self._note_bought_served()
        elif not token.accepted_again and cache.note_again(token):  # of many threads, one writes
            with patience(NOTE_AGAIN_WAIT_S):
                self.write("that a token serves again", lambda: ledger.mark(token.payment_hash, accepted=True))
        if not knows_path:
            self.write("what a path needs", lambda: ledger.learn(self.origin, self.path, token.scope))
        if not (token.accepted and knows_path):
            reported = token.reported or noted
            cache.put(replace(token, accepted=True, accepted_again=token.accepted, reported=reported), self.path)
        return noted

    def _note_bought_served(self) -> None:
        """Note what it says about the origin's tokens that one had to be bought, and that it has opened the page."""
        negotiation, cache = self.negotiation, self.payer.token_cache
        for status in negotiation.errors:
            self._note_own_error(status, is_own=False)
        used_up = negotiation.used_up
        if used_up is not None or is_single_use(negotiation.used_up_in_a_row):
            cache.note_used_up(self.origin)
            self.write("that a token was used up", lambda: self.payer.ledger.note_used_up(self.origin, used_up))

    def undelivered(self, token: Token, status: int) -> None:
        """Note that ``token``, which is paid for and was never accepted, got an error in place of the page.

        If it was bought because another token had got the same error: so that wasn't about the token, and the next isn't either.
        """
        payment_hash = token.payment_hash
        self.write("that nothing was delivered", lambda: self.payer.ledger.note_undelivered(payment_hash, refused=False))
        if self.negotiation.bought and status in self.negotiation.errors:
            self._note_own_error(status, is_own=True)
            self._unlearn()

    def _note_own_error(self, status: int, *, is_own: bool) -> None:
        """Note whether errors of ``status`` are the application's own, as a token has shown that was bought because of one."""
        self.payer.token_cache.note_own_error(self.origin, status, is_own=is_own)
        self.write("what an error means", lambda: self.payer.ledger.note_own_error(self.origin, status, is_own=is_own))

    def retire(self, token: Token) -> None:
        """Write to ledger, token cache and negotiation that the server no longer accepts ``token``.

        A token of another scope, which has opened this page too, is only no longer used for it: it may still open others.
        """
        negotiation, ledger = self.negotiation, self.payer.ledger
        is_for_page = token.payment_hash in negotiation.served_here | negotiation.bought_for_this
        if self.asked_scope is not None and token.scope != self.asked_scope and not is_for_page:
            negotiation.tried.add(token.payment_hash)
            negotiation.note_retired(token)
            self._unlearn()
            return
        row = ledger.payment(token.payment_hash)
        if row is not None and _is_used_up(row, self.negotiation.resource_digest):
            negotiation.used_up = token.payment_hash
        if row is not None:  # else it was moved to an archive, long past its own time
            ledger.retire(token.payment_hash)
        self.payer.token_cache.drop(token)
        negotiation.note_retired(token)
        log.info("the token of payment %s is retired: %s no longer accepts it", token.payment_hash, self.origin)

    def _unlearn(self) -> None:
        """Forget which scope this path needs."""
        self.payer.token_cache.unlearn(self.origin, self.path)
        self.write("what a path needs", lambda: self.payer.ledger.unlearn(self.origin, self.path))

    def write(self, what: str, note: Callable[[], object]) -> bool:
        """Call ``note``, which writes ``what`` to the ledger. If it can't be written, that is logged, and the call goes on.

        Return whether it was written.
        """
        try:
            note()
        except LedgerError as error:
            log.warning("the ledger can't note %s: %s", what, error)
            return False
        return True


def _is_used_up(row: PaymentRow, resource_digest: str) -> bool:
    """Return whether the token of ``row``, refused for the page of ``resource_digest``, seems to have been for a single use.

    False if it was counted as one before.
    """
    if not row.accepted or row.accepted_again or row.resource_digest != resource_digest or row.failure_text == USED_UP:
        return False
    now_s = time.time()
    soon = row.settled_at is not None and now_s - row.settled_at.timestamp() <= USED_UP_WITHIN_S
    return soon and not (row.valid_until is not None and now_s >= row.valid_until)
