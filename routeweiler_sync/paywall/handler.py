"""One request and the 402s that answer it, up to the answer that the caller gets.

This module sends the request, with and without tokens, and does what the decisions ask for. What an answer means is decided in
`server_rules`, which token is offered next in `negotiation`. Whether and how to pay is left to `payments.checkout`.

Sending again follows `requests.auth.HTTPDigestAuth.handle_401`: the superseded response is drained and closed, goes into
``history``, and the same request goes out again through the same adapter.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import requests

from .._core.credential_headers import authorizes
from .._core.deadline import monotonic_s, patience
from .._core.log import log
from .._core.urls import is_proxied_in_the_clear, leads_to_one_server, origin_at, path_of
from ..errors import RouteweilerError, TokenRefusedError, UnreplayableBodyError
from ..payments.block_limit import active
from ..payments.checks import is_payable
from ..payments.first_use import end_first_use
from ..payments.outcome_errors import further_payment_error, no_more_tokens_error, overtaken_error, refused_error
from ..payments.presenting import Presenter
from ..payments.token import Token
from ..payments.types import Payment, TokenRequest
from ..protocol.challenge import Challenge, scope_of
from ..protocol.http_auth import described, schemes_offered
from ..protocol.schemes import credential_header, is_named_alone, mentions_scheme, names_others, offers, secrets_of
from .call import CallContext, QuoteReady, quoting, remove_hooks
from .call_record import CallRecord
from .charges import present
from .credentialed import (
    drop_credential_if_varied,
    drop_credential_of_other_header,
    droppable,
    errors_with_original_request,
    lost_its_token,
    mark_refused,
    names_a_token,
    other_host_error,
    scrub_cookies,
    scrub_error,
    scrub_for_history,
    scrub_page,
    scrub_redirect,
    tokens_offered,
    with_credential,
)
from .negotiation import MAX_REQUESTS, Negotiation, wants_of
from .replay import again, check_replayable, content_digest, drain, resource_digest, rewind, with_steady_boundary
from .server_rules import ERRORS, MAYBE_REFUSALS, ServerAnswer, TokenStatus, Verdict, Wants, judge, read_answer
from .token_notes import TokenNotes

if TYPE_CHECKING:
    from ..config.payer import Payer

Send = Callable[[requests.PreparedRequest], requests.Response]

#: Methods that change nothing at the server, so that a request may be sent again after a 5xx.
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")


@dataclass
class PaywallHandler:
    """Handles one hop of a call: a request, its answers, and the tokens that were offered in between.

    ``send`` sends a request through the hop's own adapter and its ``proxies``. ``origin`` and ``path`` are those of the request's
    URL.
    """

    payer: Payer
    call: CallContext
    request: requests.PreparedRequest
    send: Send
    proxies: Mapping[str, str] | None = field(default=None, repr=False)  # their URLs may hold passwords
    origin: str = ""
    path: str = ""
    #: The answers that were superseded, oldest first.
    history: list[requests.Response] = field(default_factory=list)
    #: The tokens that were offered by the server or sent to it. An answer may repeat any of them.
    tokens: frozenset[str] = field(default=frozenset(), repr=False)
    #: The newest answer.
    latest: requests.Response = field(init=False, repr=False)  # not there before the first answer
    negotiation: Negotiation = field(init=False, repr=False)
    notes: TokenNotes = field(init=False, repr=False)
    #: What the last challenge of this hop asks for.
    _asked: TokenRequest | None = field(default=None, init=False)
    #: The last 402 of this hop that holds a challenge.
    _priced: requests.Response | None = field(default=None, init=False, repr=False)
    #: How long ``history`` was before tokens were tried on a 401. The caller asked for none of those answers.
    _before_others: int | None = field(default=None, init=False)
    _resource_digest: str | None = field(default=None, init=False)
    #: What the same answer as `_asked` asks for by a scheme that is preferred to that of the token that it refuses.
    _preferred: TokenRequest | None = field(default=None, init=False)
    #: The request as it was before it got a boundary that it has in each run. None if it has got none.
    _before_steady: requests.PreparedRequest | None = field(default=None, init=False, repr=False)
    #: Claims the charges that this hop pays for or presents.
    _presenter: Presenter = field(default_factory=Presenter, init=False, repr=False)

    def __post_init__(self) -> None:
        self.negotiation = Negotiation(call_started_s=self.call.started_s)
        self.notes = TokenNotes(self.payer, self.negotiation, self.origin, self.path)

    @property
    def record(self) -> CallRecord:
        """The record of the call that this hop belongs to."""
        return self.call.record

    @property
    def resource_digest(self) -> str:
        """The digest of the page that the hop requests: method, path with query, body. Made when it is first asked for."""
        # Not a `cached_property`: before Python 3.12 that has a lock, which a fork would leave locked in the child.
        if self._resource_digest is None:
            self._resource_digest = resource_digest(self.request)
        return self._resource_digest

    @property
    def is_cached(self) -> bool:
        """Whether the session may write its responses to a cache, ``history`` included, as a session of requests-cache does.

        True as well where the session isn't known, which is so for an adapter that is mounted on a foreign session.
        """
        return self.call.session is None or hasattr(self.call.session, "cache")

    def send_with_token(self, token: Token, *, is_guess: bool) -> requests.Response:
        """Send the request with a token before any 402 has asked for one. Return the answer that the caller gets.

        Raises: as `handle_response`.
        Money: a payment may be made, if the server asks for one.
        """
        self._set_origin()
        try:
            with errors_with_original_request(self.request):
                response = self.send(self._with_token(token))
        except requests.RequestException:
            if is_guess:  # nobody asked for the token, and it may be what the server doesn't stand
                self.payer.token_cache.note_useless(token, self.path)
            raise
        return self._handled(response, token, is_guess=is_guess)

    def handle_response(
        self, response: requests.Response, token: Token | None = None, *, is_guess: bool = False
    ) -> requests.Response:
        """Return the answer that the caller gets, given that the server has answered the request with ``response``.

        ``token`` is the token that the request was sent with, None if it was sent without one. ``is_guess``: nothing said that the
        page accepts that token.

        Raises: an error of `routeweiler_sync.errors` for a 402 that isn't paid, or a paid token that the server refuses; what
        `requests` raises when the request is sent again.
        Money: a payment may be made, if the server asks for one.
        """
        try:
            self._set_origin()
        except ValueError:
            return response  # the URL isn't an http one (the adapter is mounted on a scheme of its own), so it can't be paid for
        if token is None and not leads_to_one_server(self.request.url or "", self.request.headers):
            return self._left_unpaid(response)
        return self._handled(response, token, is_guess=is_guess)

    def _left_unpaid(self, response: requests.Response) -> requests.Response:
        """Return ``response``, the answer to a request of which isn't clear which server it is for.

        Money: none moves.
        """
        self.latest = response
        if response.status_code != 402 or not mentions_scheme(", ".join(_challenge_lines(response))):
            return self._finished()
        error = self.record.noted = other_host_error(self.origin)
        log.warning("%s %s isn't paid for, its 402 is returned: %s", self.request.method, self.origin + self.path, error)
        return mark_refused(self._droppable(self._finished()))

    def _set_origin(self) -> None:
        """Set origin and path from the request's URL.

        Raises: ValueError if it isn't an http URL.
        """
        url = self.request.url or ""
        self.origin, self.path = self.notes.origin, self.notes.path = origin_at(url), path_of(url)

    def _handled(self, response: requests.Response, token: Token | None, *, is_guess: bool) -> requests.Response:
        """Return the answer that the caller gets. The parameters are those of `handle_response`.

        If the payer's ``unpayable`` is "return", a 402 that was refused before paying is returned. Otherwise the error is raised.
        It gets the hop's request and last response, and what the call has paid on its earlier hops.
        """
        self.latest = response
        try:
            with patience(self.call.patience):
                return self._run(token, is_guess=is_guess)
        except RouteweilerError as error:
            if self.record.spent_msat and error.spent is False:
                error.spent, error.paid_before_msat = True, self.record.spent_msat
            unpaid = error.spent is False and error.payment_hash is None  # without a payment hash, no payment order was sent
            if unpaid:
                self._go_back_to_402()
            if self.payer.unpayable == "return" and unpaid and self.latest.status_code == 402 and not quoting.get():
                log.warning("%s %s isn't paid for, its 402 is returned: %s", self.request.method, self.origin + self.path, error)
                self.record.noted = error
                return mark_refused(self._droppable(self._finished()))
            if error.response is None:
                drain(self.latest)
                error.response = self._droppable(self._finished())
            error.request = self.request
            raise
        finally:
            self._end_first_use()
            self._presenter.end(self.payer.ledger)

    def _go_back_to_402(self) -> None:
        """Make the last 402 with a challenge the hop's latest answer, if there was one: what isn't paid for is what that asks.

        The answer to a token that was offered before one is bought says nothing about the price.
        """
        last = next((at for at, answer in enumerate(self.history) if answer is self._priced), None)
        if last is not None:
            drain(self.latest)
            self.latest, self.history = self.history[last], self.history[:last]

    def _run(self, token: Token | None, *, is_guess: bool) -> requests.Response:
        """Do what the server rules say, answer by answer, until one of them is for the caller. Return that one.

        ``token`` is the token that the latest request was sent with, if any. ``judged`` below is the same token unless it is a
        guess: an answer never counts for or against a guess.
        """
        while True:
            if lost_its_token(self.latest) and not self.negotiation.bought:
                return self._left_unpaid(self.latest)
            judged = token if not is_guess else None
            may_ask = self.latest.status_code in ((402,) if judged is None else (401, 402))
            request = self._parse_challenge(token) if may_ask else None
            if token is None and request is not None and self._asks_with_steady_boundary(request):
                continue
            verdict = self._verdict(token, judged, request)
            if verdict is Verdict.AS_IT_IS:
                return self._finished()
            if token is not None and verdict in (Verdict.ACCEPTED, Verdict.KEEP):
                return self._finish_with_token(token, accepted=verdict is Verdict.ACCEPTED, is_guess=is_guess)
            if token is not None and verdict is Verdict.WITHDRAW:
                self._withdraw_guess(token)
                token, is_guess = None, False
                continue
            if verdict is Verdict.TRY_OTHERS:
                token = self._next_other()
                if token is None:
                    self.history = self.history[: self._before_others]
                    return self._finished()
                self._before_others = len(self.history) if self._before_others is None else self._before_others
                self.resend(token)
                continue
            if judged is not None and verdict is Verdict.ASK_BARE and not self._is_replayable():
                return self._finish_with_token(judged, accepted=False, is_guess=False)
            check_replayable(self.request)
            if judged is not None and verdict is Verdict.GIVE_UP:
                token = self.resend(self._retired_instead_of(judged))
            elif judged is not None and verdict is Verdict.OFFER_AGAIN:
                time.sleep(self.negotiation.pause_s(monotonic_s()))
                token = self.resend(self.notes.in_ledger(judged) or judged, counts=False)
            elif judged is not None and verdict is Verdict.ASK_BARE:
                self.negotiation.hold_back(judged)
                if self.latest.status_code >= 500:
                    self.payer.token_cache.note_error_asked_about(self.origin, self.path)
                token = self.resend(None)
            elif judged is not None and verdict is Verdict.OTHERS_FIRST:
                self.negotiation.note_error(self.latest.status_code)
                self.payer.token_cache.note_useless(judged, self.path)
                asked = self._asked_before()
                other = self._token_to_offer(asked) if asked is not None else self._next_other() if self._asked is None else None
                if other is None and self._asked is None and self.latest.status_code == 401:  # as without a token
                    self.history = self.history[: self._before_others]
                    return self._finished()
                if other is not None and other.single_use:
                    return present(self, other)
                token = self.resend(other)
            else:
                if judged is not None and verdict is Verdict.RETIRE:
                    self.negotiation.note_error(self.latest.status_code)
                    self.notes.retire(judged)
                elif token is not None and request is not None:
                    self.notes.not_for_page(token, request)
                request = request if self._priced is not None else None
                if request is not None and quoting.get():
                    drain(self.latest)
                    answer = QuoteReady(self.payer.checkout.quote(request), self._droppable(self._finished()))
                    answer.request = request
                    raise answer
                request = request or self._asked_before()
                # If there was no challenge, the request goes out without a token, to learn what the server asks for now.
                offered = None if request is None else self._token_to_offer(request)
                if offered is not None and offered.single_use:
                    return present(self, offered)
                token = self.resend(offered)
                is_guess = False

    def _asks_with_steady_boundary(self, request: TokenRequest) -> bool:
        """Send the request again with a boundary that it has in each run, if ``request`` may be answered for this very body alone.

        Return whether `request` has changed: then the latest answer asks for the price of what any run sends. Otherwise a payment
        whose answer is lost could never be presented again. A server that goes on asking for the first body gets that.
        """
        asked, negotiation = self._preferred if self._preferred is not None else request, self.negotiation
        wanted = asked.challenge.body_digest
        if wanted is None or quoting.get() or negotiation.bought or negotiation.requests >= MAX_REQUESTS - 1:
            return False
        if self._before_steady is not None:
            if wanted == asked.body_digest() or wanted != content_digest(self._before_steady):
                return False
            self.request = self._before_steady
            return True
        steady = with_steady_boundary(self.request) if wanted == asked.body_digest() else None
        if steady is None:
            return False
        self._before_steady, self.request = self.request, steady
        self.resend(None)
        return True

    def _asked_before(self) -> TokenRequest | None:
        """Return what the last challenge of this hop asks for, if that may still be bought, else None."""
        asked = self._asked
        return asked if asked is not None and not self.negotiation.bought and is_payable(asked.challenge) else None

    def _is_replayable(self) -> bool:
        """Return whether the request can be sent again."""
        try:
            check_replayable(self.request)
        except UnreplayableBodyError:
            return False
        return True

    def _next_other(self) -> Token | None:
        """Return a live token of the origin to offer for a 401 that names no other way in, or None.

        None too if the request can't be sent again, has a credential of the caller's, or only a quote is wanted.
        """
        if quoting.get() or authorizes(self.request.headers) or not self._is_replayable():
            return None
        others = self.payer.token_cache.others(self.origin, self.path)
        token = next((each for each in others if self.negotiation.is_worth_a_trial(each.payment_hash)), None)
        if token is not None:
            self.negotiation.note_trial(token.payment_hash)
        return token

    def _token_to_offer(self, request: TokenRequest) -> Token:
        """Return the token to offer for ``request``: the one that was held back, if it fits, else one from the checkout.

        Money: a payment may be made.
        """
        held_back = self.negotiation.take_back(request.scope, is_named=request.challenge.names_scope is not None)
        return held_back or self._token_from_checkout(self._preferred if self._preferred is not None else request)

    def _parse_challenge(self, token: Token | None) -> TokenRequest | None:
        """Return what the latest answer, to a request with ``token``, asks for, or None if it holds no L402 challenge.

        A challenge that offers nothing is none if a token was sent, which is refused by it, or if only a HEAD was.

        Raises: ChallengeParseError if it holds one that can't be used.
        """
        lines = self.lines
        is_head = (self.request.method or "").upper() == "HEAD"
        remaining = iter(()) if (token is not None or is_head) and is_named_alone(lines) else offers(lines)
        first = next(remaining, None)
        offered: Iterable[Challenge] = () if first is None else itertools.chain((first,), remaining)
        if token is not None:
            offered = list(offered)
        url, proxied = self.request.url or "", first is not None and is_proxied_in_the_clear(self.request.url or "", self.proxies)
        chosen = challenge = None if first is None else self.payer.checkout.choose(offered, url=url, proxied=proxied)
        if token is not None and chosen is not None and not chosen.reusable:
            # Whether the token is refused shows by what is asked for in its own scheme.
            challenge = next((each for each in offered if each.reusable), chosen)
        if challenge is None:
            log.info("%s answers %d without a challenge that is paid here (schemes: %s)", self.origin, self.latest.status_code,
                     described(lines))  # fmt: skip
            return None
        self.negotiation.resource_digest = self.resource_digest
        token_request = TokenRequest(
            url=self.request.url or "",
            origin=self.origin,
            path=self.path,
            scope=scope_of(challenge, self.path),
            challenge=challenge,
            resource_digest=self.resource_digest,
            spent_in_call_msat=self.record.spent_msat,
            limits=active(self.call.payers),
            tallies=self.call.tallies,
            still_useful=functools.partial(check_replayable, self.request),
            body_digest=functools.partial(content_digest, self.request),
            presenter=self._presenter,
            proxied=proxied,
        )
        self._preferred = None
        if chosen is not None and chosen is not challenge:
            self._preferred = replace(token_request, challenge=chosen, scope=scope_of(chosen, self.path))
        self.record.challenged(self._preferred or token_request)
        self.tokens |= tokens_offered(self.latest) | secrets_of(challenge.scheme, challenge.token)
        self._priced = self.latest if self.latest.status_code == 402 else self._priced
        if self._priced is not None:  # a 401 tells what a token was refused for; nothing is bought before a 402 asks for it
            self._asked, self.notes.asked_scope = token_request, token_request.scope
        self.negotiation.used_up_in_a_row = self.payer.token_cache.used_up_in_a_row(self.origin)
        return token_request

    def _token_from_checkout(self, request: TokenRequest) -> Token:
        """Return a token that fits ``request``: a live one, or one bought now.

        A call buys at most one token for a scope, and at most one for a page. Beside a charge it buys nothing.

        Raises: TokenRefusedError if neither is to be had any more; what `Checkout.token_for` raises.
        Money: a payment may be made.
        """
        negotiation, purchase = self.negotiation, None
        self._end_first_use()
        scope, page = (request.origin, request.scope), (request.origin, request.resource_digest)
        is_beside_a_charge = self.record.bought_charge or (bool(self.record.bought_pages) and not request.challenge.reusable)
        may_buy = not (
            is_beside_a_charge or negotiation.bought or scope in self.record.bought_scopes or page in self.record.bought_pages
        )
        if negotiation.may_offer(may_buy=may_buy):
            purchase = self.payer.checkout.token_for(
                request,
                refused=frozenset(negotiation.refused),
                may_buy=may_buy,
                worth_an_offer=self.notes.is_worth_an_offer,
                worth_a_trial=self.notes.is_worth_a_trial,
            )
        if purchase is None and may_buy:
            raise overtaken_error(request, self.latest.status_code, negotiation.offers)
        if purchase is None and is_beside_a_charge:
            raise further_payment_error(request, self.latest.status_code)
        if purchase is None:
            raise self._no_more_tokens(request)
        if purchase.token.single_use:
            if purchase.bought:
                negotiation.bought = self.record.bought_charge = True
                self.record.add_purchase(purchase, request.url)  # before it is presented, as below
            return purchase.token
        negotiation.note_offer(purchase, request.scope)
        if purchase.bought:
            self.record.bought_scopes.add(scope)
            self.record.bought_pages.add(page)
            self.record.add_purchase(purchase, request.url)  # before the token is sent, so that the payment is reported in any case
            self.payer.token_cache.put(purchase.token, self.path)
            if negotiation.tried:
                self.payer.token_cache.note_vain_trials(self.origin, len(negotiation.tried))
        return purchase.token

    def _droppable(self, response: requests.Response) -> requests.Response:
        """Return ``response``, changed so that its pickle holds none of the tokens of this hop."""
        self.tokens |= tokens_offered(response)
        return droppable(response, self.tokens)

    def _end_first_use(self) -> None:
        """Let other calls use the token that this hop has bought, if it has bought one."""
        bought, token = self.negotiation.bought, self.negotiation.last_offered
        if bought and token is not None:
            end_first_use(token.payment_hash)

    def _no_more_tokens(self, request: TokenRequest) -> TokenRefusedError:
        """Return the error for a server that asks for one more token than this call may offer."""
        status, last, retired = self.latest.status_code, self.negotiation.last_offered, self.negotiation.retired
        if last is not None and last.payment_hash in self.negotiation.refused - retired:
            return refused_error(last, status)
        return no_more_tokens_error(last, request, status, retired=last is not None and last.payment_hash in retired)

    @property
    def lines(self) -> list[str]:
        """The WWW-Authenticate lines of the latest answer."""
        return _challenge_lines(self.latest)

    def finished_with(self, charge: Token) -> requests.Response:
        """Return the latest answer, which is to a request with ``charge``, as the caller gets it."""
        response = self._finished(self.record.add_reuse(charge, self.request.url or ""))
        # An error isn't what was paid for, and servers write the preimage that they don't take into its body.
        if response.status_code < 400:
            return response
        if self.is_cached:
            scrub_error(response, self.tokens)
        return self._droppable(response)

    def resend(self, token: Token | None, *, counts: bool = True) -> Token | None:
        """Send the request again, with ``token`` or without any. Return ``token``.

        ``counts``: the request counts for the most that a hop sends.
        """
        self.negotiation.requests += counts
        rewind(self.request)
        drain(self.latest)
        self.latest.payment = None  # type: ignore[attr-defined]
        # A response hook may have replaced the answer, and left earlier ones in its history: digest authentication's hook does.
        self.history += [
            *self.latest.history,
            self._droppable(scrub_for_history(self.latest, self.request, self.tokens) if self.is_cached else self.latest),
        ]
        self.record.service_started_s = time.time()
        request = self._with_token(token) if token is not None else self._without_token()
        try:
            with errors_with_original_request(self.request):
                self.latest = self.send(request)
        except requests.RequestException as error:
            if token is not None:
                status = TokenStatus.CHARGE if token.single_use else self._status_of(token, ServerAnswer.NO_ANSWER)
                why = judge(status, read_answer(None, judged=True)).why
                log.warning("%s didn't answer the request with the token of payment %s (%s): %s", self.origin, token.payment_hash,
                            type(error).__name__, why)  # fmt: skip
                if not token.accepted:
                    unserved = token.payment_hash
                    self.notes.write(
                        "that nothing was delivered",
                        lambda: self.payer.ledger.note_undelivered(unserved, refused=False, why="no answer came"),
                    )
            raise
        return token

    def _without_token(self) -> requests.PreparedRequest:
        """Return a copy of the request to send without a token."""
        request = again(self.request, self.history)
        remove_hooks(request)
        return request

    def _with_token(self, token: Token) -> requests.PreparedRequest:
        """Return a copy of the request that carries ``token``, which replaces a header of the caller's of the same name."""
        if credential_header(token.scheme, token.token) in (self.request.headers or {}):
            self.record.authorization_replaced = True
        self.tokens |= secrets_of(token.scheme, token.token, token.preimage)
        request = with_credential(self.request, token, self.history)
        if token.single_use:
            request.single_use = True
        remove_hooks(request)
        return request

    def _verdict(self, token: Token | None, judged: Token | None, request: TokenRequest | None) -> Verdict:
        """Return what to do about the latest answer, which is to a request with ``token``.

        ``judged`` is ``token``, or None if that was a guess. ``request`` is what the answer's challenge asks for, None if it holds
        no L402 challenge.
        """
        status = self.latest.status_code
        after_402 = any(answer.status_code == 402 for answer in self.history)
        if judged is not None and read_answer(status, judged=True, after_402=after_402) is ServerAnswer.DELIVERED:
            # The table says the same whatever is known of the token, so nothing of that is looked up.
            return self.negotiation.verdict(ServerAnswer.DELIVERED, TokenStatus.ACCEPTED)
        lines = self.lines if request is None and status in (401, 402) else []
        is_bare = judged is None and status == 401
        wants = wants_of(
            None if request is None else request.scope,
            token,
            # To a request without a token, a 401 that names nothing but L402 says no more than a bare one.
            names_schemes=bool(lines) and (names_others(lines) if is_bare else bool(schemes_offered(lines))),
            is_alone=bool(lines) and not is_bare and is_named_alone(lines),
            is_for_page=judged is not None and judged.payment_hash in self.negotiation.bought_for_this,
        )
        if wants is Wants.SAME and judged is not None and request is not None and self._is_replay(judged, request):
            wants = Wants.PAID
        answer = read_answer(
            status,
            wants=wants,
            judged=judged is not None,
            after_402=after_402,
            is_safe=(self.request.method or "").upper() in SAFE_METHODS,
            may_refuse=judged is None
            or self.negotiation.asked_bare
            or self.payer.token_cache.takes_error_for_refusal(self.origin, self.path, status),
        )
        if judged is not None:
            return self.negotiation.verdict(answer, self._status_of(judged, answer))
        return self.negotiation.verdict(answer, TokenStatus.NONE if token is None else TokenStatus.GUESS)

    def _is_replay(self, token: Token, request: TokenRequest) -> bool:
        """Return whether the answer that refuses ``token`` asks to pay an invoice that the ledger has as paid.

        That is an old answer, from a cassette or a cache. It is looked up once for each token.
        """
        if not self.negotiation.checks_replay(token):
            return False
        row = self.payer.ledger.payment(request.challenge.payment_hash.hex())
        return row is not None and row.settled_at is not None

    def _status_of(self, token: Token, answer: ServerAnswer) -> TokenStatus:
        """Return what is known of ``token``, which isn't a guess. The ledger is read only if ``answer`` may be a refusal."""
        accepted = token.accepted
        if answer in MAYBE_REFUSALS and not self.negotiation.is_on_trial(token):
            accepted = self.negotiation.note_refusal(token, self.notes.in_ledger(token), monotonic_s=monotonic_s())
        return self.negotiation.status_of(
            token,
            accepted=accepted,
            accepted_here=self.payer.token_cache.knows_path(token, self.path),
            now_s=time.time() if answer not in ERRORS else 0.0,  # whether an error refuses a token doesn't depend on its time
            monotonic_s=monotonic_s(),
            is_own_error=answer in (*ERRORS, ServerAnswer.ELSE) and self._is_own_error(),
        )

    def _is_own_error(self) -> bool:
        """Return whether the latest answer, an error to a token on trial, is to be taken for the application's own.

        That is so if such tokens serve the origin, and a token that was bought because of this error met it too. A 5xx to a method
        that isn't safe may have had its effect, so it doesn't take a proof: sent again, the request might have its effect twice.
        Where no token is known to serve a page that it wasn't bought for, and this one is sold, a 5xx is the server's refusal.
        """
        cache, status = self.payer.token_cache, self.latest.status_code
        may_have_had_effect = status >= 500 and (self.request.method or "").upper() not in SAFE_METHODS
        if not cache.has_served_others(self.origin):
            return may_have_had_effect and self._asked is None
        return may_have_had_effect or cache.is_own_error(self.origin, status)

    def _retired_instead_of(self, token: Token) -> Token:
        """Return a retired token to offer in place of ``token``, which isn't offered again in this hop.

        It was bought for this very page, so it may still open it.

        Raises: TokenRefusedError if there is no such token.
        """
        refused = self.negotiation.refused | {token.payment_hash}
        rows = self.payer.ledger.page_tokens(self.origin, self.resource_digest)
        earlier = next((Token.of(row) for row in rows if row.payment_hash not in refused), None)
        if earlier is None:
            self.record.add_reuse(token, self.request.url or "")
            self.notes.write(
                "that a token was refused", lambda: self.payer.ledger.note_undelivered(token.payment_hash, refused=True)
            )
            raise refused_error(token, self.latest.status_code)
        self.negotiation.note_earlier_offer(token)
        return earlier

    def _withdraw_guess(self, token: Token) -> None:
        """Send the request again without the guessed ``token``, and remember that this path doesn't get it again.

        The answer to the guess doesn't go into ``history``: the caller never asked for it.
        """
        drain(self.latest)
        cache, status = self.payer.token_cache, self.latest.status_code
        self.negotiation.requests += 1
        rewind(self.request)
        self.latest = self.send(self._without_token())
        if self.latest.status_code == 402 and cache.has_served_others(self.origin) and cache.is_own_error(self.origin, status):
            return  # the application's own error may have met the token: it is offered again before another is bought
        self.negotiation.note_error(status)
        self.negotiation.tried.add(token.payment_hash)
        cache.note_useless(token, self.path)

    def _finish_with_token(self, token: Token, *, accepted: bool, is_guess: bool) -> requests.Response:
        """Return the latest answer, which is to a request with ``token``, as the caller gets it.

        ``accepted``: the answer shows that the server accepted the token, which is noted first.
        """
        if accepted:
            if self.negotiation.is_on_trial(token):
                self.payer.token_cache.note_trial_served(self.origin)
            if self.notes.accepted(token, untraced=not token.accepted and self.record.is_untraced(token)):
                self.record.note_untraced(token)
        elif self.latest.status_code >= 400 and not is_guess and not token.accepted:
            self.notes.undelivered(token, self.latest.status_code)
        return self._finished(self.record.add_reuse(token, self.request.url or "", is_guess=is_guess))

    def _finished(self, payment: Payment | None = None) -> requests.Response:
        """Return the latest answer as the caller gets it: with the superseded ones in ``history`` and ``payment`` on it."""
        response = drop_credential_if_varied(self.latest)
        if self.is_cached:
            response = drop_credential_of_other_header(scrub_redirect(response), self.request)
        if self.is_cached and self.tokens and response.request is not self.request:
            scrub_cookies(response.request, self.tokens)
        response.history = [*self.history, *response.history]
        response.payment = self.call.payment = payment  # type: ignore[attr-defined]
        if self.tokens and not hasattr(response, "_tokens") and names_a_token(response, self.tokens):
            if self.is_cached and not response.is_redirect:  # what says where a redirect leads is still needed
                scrub_page(response, self.tokens)
            else:
                droppable(response, self.tokens, is_page=True)
        if self.history:
            self.record.superseded[id(response)] = list(self.history)
        return response


def _challenge_lines(response: requests.Response) -> list[str]:
    """Return the WWW-Authenticate lines: separate if urllib3 made the response, else as `requests` has folded them into one."""
    headers = getattr(response.raw, "headers", None)
    getlist = getattr(headers, "getlist", None)
    lines = list(getlist("WWW-Authenticate")) if getlist is not None else []
    if lines:
        return lines
    folded = response.headers.get("WWW-Authenticate")
    return [] if folded is None else [folded]
