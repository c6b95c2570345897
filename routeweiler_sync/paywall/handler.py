"""Exchange: what one request and a paywall say to each other, up to the answer that the caller gets.

Which token is offered, the challenge, the retry, the server's word on the token. Whether and how to pay is the checkout's. The
retry follows `requests.auth.HTTPDigestAuth.handle_401`: the refused response is drained and closed, goes into ``history``, and the
same request goes out again through the same adapter.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import requests

from .._core.urls import origin_at, path_of
from ..errors import LedgerError, RouteweilerError, TokenRefusedError
from ..payments.block_limit import active
from ..payments.first_use import end_first_use
from ..payments.outcome_errors import no_more_tokens_error, overtaken_error, refused_error
from ..payments.token import Token
from ..payments.types import Payment, TokenRequest
from ..protocol.challenge import scope_of
from ..protocol.http_auth import schemes_offered
from ..protocol.schemes import parse_challenge
from .call import CallContext, QuoteReady, quoting, remove_hooks
from .call_record import CallRecord
from .credentialed import (
    drop_credential_if_varied,
    droppable,
    errors_with_original_request,
    mark_refused,
    scrub_for_history,
    scrub_redirect,
    with_credential,
)
from .replay import again, check_replayable, drain, rewind
from .server_rules import MAYBE_REFUSALS, ServerAnswer, TokenStatus, Verdict, Wants, judge, read_answer, token_status

if TYPE_CHECKING:
    from ..config.payer import Payer
    from ..ledger.types import PaymentRow

log = logging.getLogger("routeweiler_sync")

#: A token that the server has never taken is offered again for this long: settlement may lag on the server's side.
OFFER_AGAIN_S = 5.0
#: Tokens that one call offers before it insists on its own: an old one, one that another process bought meanwhile, a new one.
MAX_TOKENS_PER_CALL = 4
#: Tokens that it offers at all. Only other processes, each with a token that no server has taken yet, keep it from its own so long.
MAX_OFFERS_PER_CALL = 32
MIN_PAUSE_S, MAX_PAUSE_S = 0.05, 1.0
#: The ledger keeps times in milliseconds, rounded down.
CLOCK_GRAIN_S = 0.001

Send = Callable[[requests.PreparedRequest], requests.Response]


@dataclass
class PaywallHandler:
    """One hop: a request, its answers, and what was offered in between."""

    payer: Payer
    call: CallContext
    request: requests.PreparedRequest
    send: Send
    origin: str = ""
    path: str = ""
    history: list[requests.Response] = field(default_factory=list)
    #: Payment hashes of tokens that aren't offered again in this hop; those of them that it has retired.
    refused: set[str] = field(default_factory=set)
    over: set[str] = field(default_factory=set)
    #: Payment hashes of tokens that other calls have bought for other targets, since this one began.
    strangers: set[str] = field(default_factory=set)
    bought: bool = False
    refused_since_s: float | None = None
    offers: int = 0
    #: Payment hashes of tokens whose refusal was looked at: whether it is an old answer.
    replayed: set[str] = field(default_factory=set)
    latest: requests.Response = field(init=False)
    #: A token that was refused without a word why: offered once more after the server was asked bare.
    doubted: Token | None = None
    asked_bare: bool = False
    #: The token that was given last.
    given: Token | None = None

    @property
    def record(self) -> CallRecord:
        """The call's."""
        return self.call.record

    @property
    def is_cached(self) -> bool:
        """Whether the session writes down what it gets, the history too, as those of requests-cache do. (Not known of others'.)"""
        return self.call.session is None or hasattr(self.call.session, "cache")

    def send_with_token(self, token: Token, *, is_guess: bool) -> requests.Response:
        """Send the request with a token that nobody has asked for yet, and go on from there."""
        self._set_origin()
        with errors_with_original_request(self.request):
            response = self.send(self._carrying(token))
        return self._handled(response, token, is_guess=is_guess)

    def handle_response(
        self, response: requests.Response, token: Token | None = None, *, is_guess: bool = False
    ) -> requests.Response:
        """The answer that the caller gets, where ``response`` is the one to the request with ``held``, or to the bare one."""
        try:
            self._set_origin()
        except ValueError:
            return response  # mounted on a scheme of its own: nothing that could be paid
        return self._handled(response, token, is_guess=is_guess)

    def _set_origin(self) -> None:
        url = self.request.url or ""
        self.origin, self.path = origin_at(url), path_of(url)

    def _handled(self, response: requests.Response, token: Token | None, *, is_guess: bool) -> requests.Response:
        self.latest = response
        try:
            return self._run(token, is_guess=is_guess)
        except RouteweilerError as error:
            if self.record.spent_msat and error.spent is False:
                error.spent, error.paid_before_msat = True, self.record.spent_msat
            unpaid = error.spent is False and error.payment_hash is None  # no order was sent for it
            if self.payer.unpayable == "return" and unpaid and self.latest.status_code == 402 and not quoting.get():
                log.warning("%s %s wants to be paid and wasn't: %s", self.request.method, self.origin + self.path, error)
                self.record.noted = error
                return mark_refused(self._finished())
            if error.response is None:
                drain(self.latest)
                error.response = droppable(self._finished())
            error.request = self.request
            raise
        finally:
            self._end_first_use()

    def _run(self, token: Token | None, *, is_guess: bool) -> requests.Response:
        """Go on until the server is satisfied or the rules say stop. ``held`` is what the latest request carried, if anything."""
        while True:
            judged = token if not is_guess else None
            token_request = (
                self._parse_challenge() if self.latest.status_code in ((402,) if judged is None else (401, 402)) else None
            )
            verdict = self._verdict(token, judged, token_request)
            if verdict is Verdict.AS_IT_IS:
                return self._finished()
            if judged is not None and verdict in (Verdict.TAKEN, Verdict.NOT_TOLD):
                return self._accepted(judged, accepted=verdict is Verdict.TAKEN)
            if verdict is Verdict.WITHDRAW:
                self._withdraw_guess()
                token, is_guess = None, False
                continue
            check_replayable(self.request)
            if judged is not None and verdict is Verdict.GIVE_UP:
                token = self._resend(self._earlier_instead_of(judged))
            elif judged is not None and verdict is Verdict.OFFER_AGAIN:
                self._pause()
                token = self._resend(self._as_others_know(judged) or judged)
            elif judged is not None and verdict is Verdict.ASK_BARE:
                self.doubted, token = judged, self._resend(None)
            else:
                if judged is not None and verdict is Verdict.RETIRE:
                    self._retire(judged)
                if token_request is not None and quoting.get():
                    drain(self.latest)
                    raise QuoteReady(self.payer.checkout.quote(token_request), self._finished())
                token = self._resend(
                    None if token_request is None else self._token_to_offer(token_request)
                )  # bare: to be told what it wants now
                is_guess = False

    def _is_paid(self, token: Token, token_request: TokenRequest) -> bool:
        """Whether what refuses ``held`` wants an invoice paid that was paid long ago. Looked at once for each token."""
        if token.payment_hash in self.replayed:
            return False
        self.replayed.add(token.payment_hash)
        row = self.payer.ledger.payment(token_request.challenge.payment_hash.hex())
        return row is not None and row.settled_at is not None

    def _token_to_offer(self, token_request: TokenRequest) -> Token:
        """The token to offer for ``token_request``: the one that was held back to ask without it, if it fits; else one from the
        checkout."""
        doubted, self.doubted = self.doubted, None
        return doubted if doubted is not None and doubted.scope == token_request.scope else self._token(token_request)

    def _parse_challenge(self) -> TokenRequest | None:
        """What the latest answer asks for. None where it holds no L402 challenge; ChallengeParseError where that can't be used."""
        lines = _challenge_lines(self.latest)
        challenge = parse_challenge(lines)
        if challenge is None:
            log.info("%s answers %d without an L402 challenge (schemes: %s)", self.origin, self.latest.status_code,
                     ", ".join(schemes_offered(lines)) or "none")  # fmt: skip
            return None
        token_request = TokenRequest(
            url=self.request.url or "",
            origin=self.origin,
            path=self.path,
            scope=scope_of(challenge, self.path),
            challenge=challenge,
            resource_digest=self.resource_digest,
            spent_in_call_msat=self.record.spent_msat,
            limits=active(self.call.payers),
            still_useful=functools.partial(check_replayable, self.request),
        )
        self.record.challenged(token_request)
        return token_request

    @property
    def resource_digest(self) -> str:
        """A digest of path and query: what exactly is asked for, without what a query may hold."""
        return hashlib.sha256((self.request.path_url or "").encode("utf-8", "surrogatepass")).hexdigest()

    def _token(self, token_request: TokenRequest) -> Token:
        """A token that fits ``token_request``: live, or bought now. At most one is bought in a call."""
        purchase = None
        self._end_first_use()
        may_buy = not self.bought and (token_request.origin, token_request.scope) not in self.record.bought_needs
        if self.offers < (MAX_OFFERS_PER_CALL if may_buy else MAX_TOKENS_PER_CALL):
            refused = frozenset(self.refused)
            purchase = self.payer.checkout.token_for(
                token_request, refused=refused, may_buy=may_buy, worth_an_offer=self._worth_an_offer
            )
        if purchase is None:
            raise (
                overtaken_error(token_request, self.latest.status_code, self.offers)
                if may_buy
                else self._no_more_tokens(token_request)
            )
        self.offers, self.given = self.offers + 1, purchase.token
        self.bought = self.bought or purchase.bought
        if purchase.token.scope != token_request.scope:
            self.refused.add(purchase.token.payment_hash)  # bought for this target, under another scope: once is enough
        elif (
            purchase.row.resource_digest != self.resource_digest
            and purchase.row.created_at.timestamp() >= self.call.started_s - CLOCK_GRAIN_S
        ):
            self.strangers.add(purchase.token.payment_hash)
        self.refused_since_s, self.asked_bare = None, False
        if purchase.bought:
            self.record.bought_needs.add((token_request.origin, token_request.scope))
            self.record.add_purchase(purchase, token_request.url)  # before the retry: whatever becomes of that, the payment is told
            self.payer.token_cache.put(purchase.token, self.path)
        return purchase.token

    def _worth_an_offer(self, row: PaymentRow) -> bool:
        """Whether the token of ``row``, which others have used, may serve here too. (If not, it makes room for one of this call.)

        One that was bought a moment ago and didn't serve tells that tokens here don't fit every target. One that is older may have
        been used up or expired: that tells nothing of its successor, which may serve all.
        """
        if self.offers >= MAX_TOKENS_PER_CALL:
            return False
        return row.resource_digest == self.resource_digest or not self.strangers & self.over

    def _end_first_use(self) -> None:
        if self.bought and self.given is not None:
            end_first_use(self.given.payment_hash)

    def _no_more_tokens(self, token_request: TokenRequest) -> TokenRefusedError:
        status, payment_hash = self.latest.status_code, None if self.given is None else self.given.payment_hash
        if self.given is not None and payment_hash in self.refused - self.over:
            return refused_error(self.given, status)
        return no_more_tokens_error(self.given, token_request, status, retired=payment_hash in self.over)

    def _resend(self, token: Token | None) -> Token | None:
        """Send again: with ``held``, or bare. Gives ``held`` back."""
        rewind(self.request)
        drain(self.latest)
        self.latest.payment = None  # type: ignore[attr-defined]
        # A hook may have brought it, and answers before it: digest authentication's does.
        self.history += [
            *self.latest.history,
            droppable(scrub_for_history(self.latest, self.request) if self.is_cached else self.latest),
        ]
        self.record.service_started_s = time.time()
        request = self._carrying(token) if token is not None else self._again()
        try:
            with errors_with_original_request(self.request):
                self.latest = self.send(request)
        except requests.RequestException as error:
            if token is not None:
                why = judge(self._known_of(token, ServerAnswer.NO_ANSWER), read_answer(None, judged=True)).why
                log.warning("%s gave no answer to the token of payment %s (%s): %s", self.origin, token.payment_hash,
                            type(error).__name__, why)  # fmt: skip
            raise
        return token

    def _again(self) -> requests.PreparedRequest:
        request = again(self.request, self.history)
        remove_hooks(request)
        return request

    def _carrying(self, token: Token) -> requests.PreparedRequest:
        if "Authorization" in (self.request.headers or {}):
            self.record.authorization_replaced = True
        request = with_credential(self.request, token, self.history)
        remove_hooks(request)
        return request

    def _verdict(self, token: Token | None, judged: Token | None, token_request: TokenRequest | None) -> Verdict:
        """What the latest answer means for ``held``, which the request carried; ``judged`` is the same, unless it was a guess."""
        wants, status = Wants.NOTHING, self.latest.status_code
        if token_request is not None:
            wants = Wants.SAME if token is not None and token_request.scope == token.scope else Wants.L402
            if wants is Wants.SAME and judged is not None and self._is_paid(judged, token_request):
                wants = Wants.PAID
        elif status in (401, 402) and schemes_offered(_challenge_lines(self.latest)):
            wants = Wants.OTHER
        after_402 = any(answer.status_code == 402 for answer in self.history)
        said = read_answer(status, wants=wants, judged=judged is not None, after_402=after_402)
        unjudged = TokenStatus.NONE if token is None else TokenStatus.GUESS
        verdict = judge(unjudged if judged is None else self._known_of(judged, said), said).verdict
        self.asked_bare = self.asked_bare or verdict is Verdict.ASK_BARE
        return verdict

    def _known_of(self, token: Token, said: ServerAnswer) -> TokenStatus:
        """What is known of ``held``; the ledger is asked only where the answer may be a refusal: others mean the same for all.

        "Taken before" is what was known when the request left. Of requests that go out together while a settlement lags, some are
        refused and a later one is taken: such a refusal is no reason to give up, and pay for, a token that has just begun to serve.
        """
        taken = token.accepted
        if said in MAYBE_REFUSALS:
            now_known = self._as_others_know(token)
            if now_known is None:
                taken = True  # given up by another: its time is over
            elif self.refused_since_s is None or (now_known.accepted and not taken):
                self.refused_since_s = time.monotonic()
        offered_s = 0.0 if self.refused_since_s is None else time.monotonic() - self.refused_since_s
        return token_status(
            accepted=taken,
            accepted_here=self.payer.token_cache.knows_path(token, self.path),
            expired=token.valid_until is not None and time.time() >= token.valid_until,
            asked_bare=self.asked_bare,
            patience_left=offered_s < OFFER_AGAIN_S,
        )

    def _earlier_instead_of(self, token: Token) -> Token:
        """``held`` is to be given up; but a token that was once bought for this very thing may still open it. TokenRefusedError."""
        row = self.payer.ledger.retired(self.origin, token.scope, self.resource_digest)
        earlier = None if row is None or row.payment_hash in self.refused else Token.of(row)
        if earlier is None:
            self.record.add_reuse(token, self.request.url or "")
            raise refused_error(token, self.latest.status_code)
        self.refused.add(token.payment_hash)
        self.refused_since_s = None
        return earlier

    def _withdraw_guess(self) -> None:
        """Send again without the token that nobody asked for. The caller never hears of it; the path gets no guess any more."""
        drain(self.latest)
        self.payer.token_cache.rejects_guesses(self.origin, self.path)
        rewind(self.request)
        self.latest = self.send(self._again())

    def _pause(self) -> None:
        assert self.refused_since_s is not None
        offered_s = time.monotonic() - self.refused_since_s
        time.sleep(min(MAX_PAUSE_S, max(MIN_PAUSE_S, offered_s / 2)))

    def _retire(self, token: Token) -> None:
        """The time of ``held`` is over, here at least."""
        self.payer.ledger.retire(token.payment_hash)
        self.payer.token_cache.drop(token)
        self.refused.add(token.payment_hash)
        self.over.add(token.payment_hash)
        self.refused_since_s, self.asked_bare = None, False
        log.info("the token of payment %s is no longer taken by %s", token.payment_hash, self.origin)

    def _as_others_know(self, token: Token) -> Token | None:
        """``held`` as the ledger has it: another thread or process may have seen it taken. None where one has given it up."""
        row = self.payer.ledger.payment(token.payment_hash)
        if row is None or row.state.value != "settled":
            return None
        return Token.of(row) or token

    def _accepted(self, token: Token, *, accepted: bool) -> requests.Response:
        """The server's answer to a request that carried ``held``, as the caller gets it."""
        if accepted:
            self._note_taken(token)
        return self._finished(self.record.add_reuse(token, self.request.url or ""))

    def _note_taken(self, token: Token) -> None:
        ledger, failed = self.payer.ledger, "the ledger can't note that a token was taken: %s"
        known = self.payer.token_cache.knows_path(token, self.path)
        try:  # apart: whether the token may be replaced when it is refused hangs on the first note, and not on the second
            if not token.accepted:
                ledger.mark(token.payment_hash, accepted=True)
        except LedgerError as error:
            log.warning(failed, error)
        try:
            if not known:
                ledger.learn(self.origin, self.path, token.scope)
        except LedgerError as error:
            log.warning(failed, error)
        if not (token.accepted and known):
            self.payer.token_cache.put(replace(token, accepted=True), self.path)

    def _finished(self, payment: Payment | None = None) -> requests.Response:
        response = drop_credential_if_varied(scrub_redirect(self.latest) if self.is_cached else self.latest)
        response.history = [*self.history, *response.history]
        response.payment = self.call.payment = payment  # type: ignore[attr-defined]
        if self.history:
            self.record.superseded[id(response)] = list(self.history)
        return response


def _challenge_lines(response: requests.Response) -> list[str]:
    """The WWW-Authenticate lines, apart where urllib3 made the response, else as `requests` has folded them."""
    headers = getattr(response.raw, "headers", None)
    getlist = getattr(headers, "getlist", None)
    lines = list(getlist("WWW-Authenticate")) if getlist is not None else []
    if lines:
        return lines
    folded = response.headers.get("WWW-Authenticate")
    return [] if folded is None else [folded]
