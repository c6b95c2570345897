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
from .negotiation import Negotiation, wants_of
from .replay import again, check_replayable, drain, rewind
from .server_rules import MAYBE_REFUSALS, ServerAnswer, TokenStatus, Verdict, Wants, judge, read_answer

if TYPE_CHECKING:
    from ..config.payer import Payer

log = logging.getLogger("routeweiler_sync")

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
    #: Answers that were superseded, the first one first.
    history: list[requests.Response] = field(default_factory=list)
    #: The last answer.
    latest: requests.Response = field(init=False)
    negotiation: Negotiation = field(init=False)

    def __post_init__(self) -> None:
        self.negotiation = Negotiation(resource_digest=_resource_digest(self.request), call_started_s=self.call.started_s)

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
        """Go on until the server is satisfied or the rules say stop. ``token`` is what the latest request carried, if anything."""
        while True:
            judged = token if not is_guess else None
            may_ask = self.latest.status_code in ((402,) if judged is None else (401, 402))
            request = self._parse_challenge() if may_ask else None
            verdict = self._verdict(token, judged, request)
            if verdict is Verdict.AS_IT_IS:
                return self._finished()
            if judged is not None and verdict in (Verdict.ACCEPTED, Verdict.KEEP):
                return self._answered(judged, accepted=verdict is Verdict.ACCEPTED)
            if verdict is Verdict.WITHDRAW:
                self._withdraw_guess()
                token, is_guess = None, False
                continue
            check_replayable(self.request)
            if judged is not None and verdict is Verdict.GIVE_UP:
                token = self._resend(self._earlier_instead_of(judged))
            elif judged is not None and verdict is Verdict.OFFER_AGAIN:
                time.sleep(self.negotiation.pause_s(time.monotonic()))
                token = self._resend(self._as_others_know(judged) or judged)
            elif judged is not None and verdict is Verdict.ASK_BARE:
                self.negotiation.hold_back(judged)
                token = self._resend(None)
            else:
                if judged is not None and verdict is Verdict.RETIRE:
                    self._retire(judged)
                if request is not None and quoting.get():
                    drain(self.latest)
                    raise QuoteReady(self.payer.checkout.quote(request), self._finished())
                # Without a challenge: bare, to learn what the server wants now.
                token = self._resend(None if request is None else self._token_to_offer(request))
                is_guess = False

    def _token_to_offer(self, request: TokenRequest) -> Token:
        """Return the token to offer for ``request``: the one that was held back, if it fits; else one from the checkout."""
        return self.negotiation.take_back(request.scope) or self._token_from_checkout(request)

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
            resource_digest=self.negotiation.resource_digest,
            spent_in_call_msat=self.record.spent_msat,
            limits=active(self.call.payers),
            still_useful=functools.partial(check_replayable, self.request),
        )
        self.record.challenged(token_request)
        return token_request

    def _token_from_checkout(self, request: TokenRequest) -> Token:
        """Return a token that fits ``request``: a live one, or one bought now. At most one is bought in a call."""
        negotiation, purchase = self.negotiation, None
        self._end_first_use()
        may_buy = not negotiation.bought and (request.origin, request.scope) not in self.record.bought_scopes
        if negotiation.may_offer(may_buy=may_buy):
            purchase = self.payer.checkout.token_for(
                request,
                refused=frozenset(negotiation.refused),
                may_buy=may_buy,
                worth_an_offer=negotiation.is_worth_an_offer,
            )
        if purchase is None and may_buy:
            raise overtaken_error(request, self.latest.status_code, negotiation.offers)
        if purchase is None:
            raise self._no_more_tokens(request)
        negotiation.note_offer(purchase, request.scope)
        if purchase.bought:
            self.record.bought_scopes.add((request.origin, request.scope))
            self.record.add_purchase(purchase, request.url)  # before the retry: whatever becomes of that, the payment is reported
            self.payer.token_cache.put(purchase.token, self.path)
        return purchase.token

    def _end_first_use(self) -> None:
        bought, token = self.negotiation.bought, self.negotiation.last_offered
        if bought and token is not None:
            end_first_use(token.payment_hash)

    def _no_more_tokens(self, request: TokenRequest) -> TokenRefusedError:
        """Return the error for a server that wants one more token than this call may offer."""
        status, last, retired = self.latest.status_code, self.negotiation.last_offered, self.negotiation.retired
        if last is not None and last.payment_hash in self.negotiation.refused - retired:
            return refused_error(last, status)
        return no_more_tokens_error(last, request, status, retired=last is not None and last.payment_hash in retired)

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
                why = judge(self._status_of(token, ServerAnswer.NO_ANSWER), read_answer(None, judged=True)).why
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

    def _verdict(self, token: Token | None, judged: Token | None, request: TokenRequest | None) -> Verdict:
        """Return what the latest answer means for ``token``, which went along; ``judged`` is the same, unless it was a guess.

        ``request`` is what the answer's challenge asks for, None where it holds none that can be paid.
        """
        status = self.latest.status_code
        names_schemes = request is None and status in (401, 402) and bool(schemes_offered(_challenge_lines(self.latest)))
        wants = wants_of(None if request is None else request.scope, token, names_schemes=names_schemes)
        if wants is Wants.SAME and judged is not None and request is not None and self._is_replay(judged, request):
            wants = Wants.PAID
        after_402 = any(answer.status_code == 402 for answer in self.history)
        answer = read_answer(status, wants=wants, judged=judged is not None, after_402=after_402)
        if judged is not None:
            return self.negotiation.verdict(answer, self._status_of(judged, answer))
        return self.negotiation.verdict(answer, TokenStatus.NONE if token is None else TokenStatus.GUESS)

    def _is_replay(self, token: Token, request: TokenRequest) -> bool:
        """Return whether the answer that refuses ``token`` wants an invoice paid that was paid long ago."""
        if not self.negotiation.checks_replay(token):
            return False
        row = self.payer.ledger.payment(request.challenge.payment_hash.hex())
        return row is not None and row.settled_at is not None

    def _status_of(self, token: Token, answer: ServerAnswer) -> TokenStatus:
        """Return what is known of ``token``. The ledger is asked only where ``answer`` may be a refusal."""
        accepted = token.accepted
        if answer in MAYBE_REFUSALS:
            accepted = self.negotiation.note_refusal(token, self._as_others_know(token), monotonic_s=time.monotonic())
        return self.negotiation.status_of(
            token,
            accepted=accepted,
            accepted_here=self.payer.token_cache.knows_path(token, self.path),
            now_s=time.time(),
            monotonic_s=time.monotonic(),
        )

    def _earlier_instead_of(self, token: Token) -> Token:
        """Return a retired token that was bought for this very page and may still open it, in place of ``token``, which is given up.

        Raises: TokenRefusedError where there is none.
        """
        row = self.payer.ledger.retired(self.origin, token.scope, self.negotiation.resource_digest)
        earlier = None if row is None or row.payment_hash in self.negotiation.refused else Token.of(row)
        if earlier is None:
            self.record.add_reuse(token, self.request.url or "")
            raise refused_error(token, self.latest.status_code)
        self.negotiation.note_earlier_offer(token)
        return earlier

    def _withdraw_guess(self) -> None:
        """Send again without the token that nobody asked for. The caller never hears of it; the path gets no guess any more."""
        drain(self.latest)
        self.payer.token_cache.rejects_guesses(self.origin, self.path)
        rewind(self.request)
        self.latest = self.send(self._again())

    def _retire(self, token: Token) -> None:
        """Note in ledger, cache and negotiation that the server no longer accepts ``token``."""
        self.payer.ledger.retire(token.payment_hash)
        self.payer.token_cache.drop(token)
        self.negotiation.note_retired(token)
        log.info("the token of payment %s is no longer taken by %s", token.payment_hash, self.origin)

    def _as_others_know(self, token: Token) -> Token | None:
        """``held`` as the ledger has it: another thread or process may have seen it taken. None where one has given it up."""
        row = self.payer.ledger.payment(token.payment_hash)
        if row is None or row.state.value != "settled":
            return None
        return Token.of(row) or token

    def _answered(self, token: Token, *, accepted: bool) -> requests.Response:
        """The server's answer to a request that carried ``held``, as the caller gets it."""
        if accepted:
            self._note_accepted(token)
        return self._finished(self.record.add_reuse(token, self.request.url or ""))

    def _note_accepted(self, token: Token) -> None:
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


def _resource_digest(request: requests.PreparedRequest) -> str:
    """Return a digest of path and query: what exactly is asked for, without keeping what a query may hold."""
    return hashlib.sha256((request.path_url or "").encode("utf-8", "surrogatepass")).hexdigest()


def _challenge_lines(response: requests.Response) -> list[str]:
    """The WWW-Authenticate lines, apart where urllib3 made the response, else as `requests` has folded them."""
    headers = getattr(response.raw, "headers", None)
    getlist = getattr(headers, "getlist", None)
    lines = list(getlist("WWW-Authenticate")) if getlist is not None else []
    if lines:
        return lines
    folded = response.headers.get("WWW-Authenticate")
    return [] if folded is None else [folded]
