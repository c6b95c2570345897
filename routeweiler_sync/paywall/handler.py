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

from .._core.money import sats
from .._core.urls import origin_at, path_of
from ..errors import LedgerError, RouteweilerError, TokenRefusedError
from ..payments.block_limit import active
from ..payments.first_use import end_first_use
from ..payments.outcome_errors import no_more_tokens_error, overtaken_error, refused_error
from ..payments.token import HeldToken
from ..payments.types import Need
from ..protocol.challenge import scope_of
from ..protocol.http_auth import schemes_offered
from ..protocol.schemes import parse_challenge
from .call import Call, Quoted, quoting, unhook
from .call_record import Account, Payment
from .credentialed import answered, carrying, errors_as_asked, kept_by_caches, refused, superseded, unvaried
from .replay import again, check_replayable, drain, rewind
from .server_rules import MAYBE_REFUSALS, Known, Said, Verdict, Wants, hear, judge, known_of

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
class Exchange:
    """One hop: a request, its answers, and what was offered in between."""

    payer: Payer
    call: Call
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
    doubted: HeldToken | None = None
    asked_bare: bool = False
    #: The token that was given last.
    given: HeldToken | None = None

    @property
    def account(self) -> Account:
        """The call's."""
        return self.call.account

    @property
    def is_cached(self) -> bool:
        """Whether the session writes down what it gets, the history too, as those of requests-cache do. (Not known of others'.)"""
        return self.call.session is None or hasattr(self.call.session, "cache")

    def begin(self, held: HeldToken, *, is_guess: bool) -> requests.Response:
        """Send the request with a token that nobody has asked for yet, and go on from there."""
        self._arrive()
        with errors_as_asked(self.request):
            response = self.send(self._carrying(held))
        return self._handled(response, held, is_guess=is_guess)

    def go_on(self, response: requests.Response, held: HeldToken | None = None, *, is_guess: bool = False) -> requests.Response:
        """The answer that the caller gets, where ``response`` is the one to the request with ``held``, or to the bare one."""
        try:
            self._arrive()
        except ValueError:
            return response  # mounted on a scheme of its own: nothing that could be paid
        return self._handled(response, held, is_guess=is_guess)

    def _arrive(self) -> None:
        url = self.request.url or ""
        self.origin, self.path = origin_at(url), path_of(url)

    def _handled(self, response: requests.Response, held: HeldToken | None, *, is_guess: bool) -> requests.Response:
        self.latest = response
        try:
            return self._settled_with(held, is_guess=is_guess)
        except RouteweilerError as error:
            if self.account.spent_msat and error.spent is False:
                error.spent = True
                told = str(error).replace("Nothing was spent", "Nothing more was spent")
                paid = sats(self.account.spent_msat)
                error.args = (f"{told} (But this call has paid before, {paid} in all: its tokens are kept.)",)
            unpaid = error.spent is False and error.payment_hash is None  # no order was sent for it
            if self.payer.unpayable == "return" and unpaid and self.latest.status_code == 402 and not quoting.get():
                log.warning("%s %s wants to be paid and wasn't: %s", self.request.method, self.origin + self.path, error)
                self.account.noted = error
                return refused(self._finished())
            if error.response is None:
                drain(self.latest)
                error.response = answered(self._finished())
            error.request = self.request
            raise
        finally:
            self._end_first_use()

    def _settled_with(self, held: HeldToken | None, *, is_guess: bool) -> requests.Response:
        """Go on until the server is satisfied or the rules say stop. ``held`` is what the latest request carried, if anything."""
        while True:
            judged = held if not is_guess else None
            need = self._need() if self.latest.status_code in ((402,) if judged is None else (401, 402)) else None
            verdict = self._verdict(held, judged, need)
            if verdict is Verdict.AS_IT_IS:
                return self._finished()
            if judged is not None and verdict in (Verdict.TAKEN, Verdict.NOT_TOLD):
                return self._accepted(judged, taken=verdict is Verdict.TAKEN)
            if verdict is Verdict.WITHDRAW:
                self._withdraw_guess()
                held, is_guess = None, False
                continue
            check_replayable(self.request)
            if judged is not None and verdict is Verdict.GIVE_UP:
                held = self._offer(self._earlier_instead_of(judged))
            elif judged is not None and verdict is Verdict.OFFER_AGAIN:
                self._pause()
                held = self._offer(self._as_others_know(judged) or judged)
            elif judged is not None and verdict is Verdict.ASK_BARE:
                self.doubted, held = judged, self._offer(None)
            else:
                if judged is not None and verdict is Verdict.RETIRE:
                    self._retire(judged)
                if need is not None and quoting.get():
                    drain(self.latest)
                    raise Quoted(self.payer.checkout.quote(need), self._finished())
                held = self._offer(None if need is None else self._wanted(need))  # bare: to be told what it wants now
                is_guess = False

    def _is_paid(self, held: HeldToken, need: Need) -> bool:
        """Whether what refuses ``held`` wants an invoice paid that was paid long ago. Looked at once for each token."""
        if held.payment_hash in self.replayed:
            return False
        self.replayed.add(held.payment_hash)
        row = self.payer.ledger.payment(need.challenge.payment_hash.hex())
        return row is not None and row.settled_at is not None

    def _wanted(self, need: Need) -> HeldToken:
        """The token to offer for ``need``: the one that was held back to ask without it, if it fits; else one from the checkout."""
        doubted, self.doubted = self.doubted, None
        return doubted if doubted is not None and doubted.scope == need.scope else self._token(need)

    def _need(self) -> Need | None:
        """What the latest answer asks for. None where it holds no L402 challenge; ChallengeParseError where that can't be used."""
        lines = _challenge_lines(self.latest)
        challenge = parse_challenge(lines)
        if challenge is None:
            log.info("%s answers %d without an L402 challenge (schemes: %s)", self.origin, self.latest.status_code,
                     ", ".join(schemes_offered(lines)) or "none")  # fmt: skip
            return None
        need = Need(
            url=self.request.url or "",
            origin=self.origin,
            path=self.path,
            scope=scope_of(challenge, self.path),
            challenge=challenge,
            target=self.target,
            spent_in_call_msat=self.account.spent_msat,
            limits=active(self.call.payers),
            still_useful=functools.partial(check_replayable, self.request),
        )
        self.account.met(need)
        return need

    @property
    def target(self) -> str:
        """A digest of path and query: what exactly is asked for, without what a query may hold."""
        return hashlib.sha256((self.request.path_url or "").encode("utf-8", "surrogatepass")).hexdigest()

    def _token(self, need: Need) -> HeldToken:
        """A token that fits ``need``: live, or bought now. At most one is bought in a call."""
        purchase = None
        self._end_first_use()
        may_buy = not self.bought and (need.origin, need.scope) not in self.account.bought_needs
        if self.offers < (MAX_OFFERS_PER_CALL if may_buy else MAX_TOKENS_PER_CALL):
            refused = frozenset(self.refused)
            purchase = self.payer.checkout.token_for(need, refused=refused, may_buy=may_buy, worth_an_offer=self._worth_an_offer)
        if purchase is None:
            raise overtaken_error(need, self.latest.status_code, self.offers) if may_buy else self._no_more_tokens(need)
        self.offers, self.given = self.offers + 1, purchase.held
        self.bought = self.bought or purchase.bought
        if purchase.held.scope != need.scope:
            self.refused.add(purchase.held.payment_hash)  # bought for this target, under another scope: once is enough
        elif purchase.row.target != self.target and purchase.row.created_at.timestamp() >= self.call.started_s - CLOCK_GRAIN_S:
            self.strangers.add(purchase.held.payment_hash)
        self.refused_since_s, self.asked_bare = None, False
        if purchase.bought:
            self.account.bought_needs.add((need.origin, need.scope))
            self.account.bought(purchase, need.url)  # before the retry: whatever becomes of that, the payment is told
            self.payer.book.put(purchase.held, self.path)
        return purchase.held

    def _worth_an_offer(self, row: PaymentRow) -> bool:
        """Whether the token of ``row``, which others have used, may serve here too. (If not, it makes room for one of this call.)

        One that was bought a moment ago and didn't serve tells that tokens here don't fit every target. One that is older may have
        been used up or expired: that tells nothing of its successor, which may serve all.
        """
        if self.offers >= MAX_TOKENS_PER_CALL:
            return False
        return row.target == self.target or not self.strangers & self.over

    def _end_first_use(self) -> None:
        if self.bought and self.given is not None:
            end_first_use(self.given.payment_hash)

    def _no_more_tokens(self, need: Need) -> TokenRefusedError:
        status, payment_hash = self.latest.status_code, None if self.given is None else self.given.payment_hash
        if self.given is not None and payment_hash in self.refused - self.over:
            return refused_error(self.given, status)
        return no_more_tokens_error(self.given, need, status, over=payment_hash in self.over)

    def _offer(self, held: HeldToken | None) -> HeldToken | None:
        """Send again: with ``held``, or bare. Gives ``held`` back."""
        rewind(self.request)
        drain(self.latest)
        self.latest.payment = None  # type: ignore[attr-defined]
        # A hook may have brought it, and answers before it: digest authentication's does.
        self.history += [*self.latest.history, answered(superseded(self.latest, self.request) if self.is_cached else self.latest)]
        self.account.service_started_s = time.time()
        request = self._carrying(held) if held is not None else self._again()
        try:
            with errors_as_asked(self.request):
                self.latest = self.send(request)
        except requests.RequestException as error:
            if held is not None:
                why = judge(self._known_of(held, Said.NO_ANSWER), hear(None, judged=True)).why
                log.warning("%s gave no answer to the token of payment %s (%s): %s", self.origin, held.payment_hash,
                            type(error).__name__, why)  # fmt: skip
            raise
        return held

    def _again(self) -> requests.PreparedRequest:
        request = again(self.request, self.history)
        unhook(request)
        return request

    def _carrying(self, held: HeldToken) -> requests.PreparedRequest:
        if "Authorization" in (self.request.headers or {}):
            self.account.authorization_replaced = True
        request = carrying(self.request, held, self.history)
        unhook(request)
        return request

    def _verdict(self, held: HeldToken | None, judged: HeldToken | None, need: Need | None) -> Verdict:
        """What the latest answer means for ``held``, which the request carried; ``judged`` is the same, unless it was a guess."""
        wants, status = Wants.NOTHING, self.latest.status_code
        if need is not None:
            wants = Wants.SAME if held is not None and need.scope == held.scope else Wants.L402
            if wants is Wants.SAME and judged is not None and self._is_paid(judged, need):
                wants = Wants.PAID
        elif status in (401, 402) and schemes_offered(_challenge_lines(self.latest)):
            wants = Wants.OTHER
        after_402 = any(answer.status_code == 402 for answer in self.history)
        said = hear(status, wants=wants, judged=judged is not None, after_402=after_402)
        unjudged = Known.NONE if held is None else Known.GUESS
        verdict = judge(unjudged if judged is None else self._known_of(judged, said), said).verdict
        self.asked_bare = self.asked_bare or verdict is Verdict.ASK_BARE
        return verdict

    def _known_of(self, held: HeldToken, said: Said) -> Known:
        """What is known of ``held``; the ledger is asked only where the answer may be a refusal: others mean the same for all.

        "Taken before" is what was known when the request left. Of requests that go out together while a settlement lags, some are
        refused and a later one is taken: such a refusal is no reason to give up, and pay for, a token that has just begun to serve.
        """
        taken = held.taken
        if said in MAYBE_REFUSALS:
            now_known = self._as_others_know(held)
            if now_known is None:
                taken = True  # given up by another: its time is over
            elif self.refused_since_s is None or (now_known.taken and not taken):
                self.refused_since_s = time.monotonic()
        offered_s = 0.0 if self.refused_since_s is None else time.monotonic() - self.refused_since_s
        return known_of(
            taken=taken,
            taken_here=self.payer.book.knows_path(held, self.path),
            expired=held.valid_until is not None and time.time() >= held.valid_until,
            asked_bare=self.asked_bare,
            patience_left=offered_s < OFFER_AGAIN_S,
        )

    def _earlier_instead_of(self, held: HeldToken) -> HeldToken:
        """``held`` is to be given up; but a token that was once bought for this very thing may still open it. TokenRefusedError."""
        row = self.payer.ledger.retired(self.origin, held.scope, self.target)
        earlier = None if row is None or row.payment_hash in self.refused else HeldToken.of(row)
        if earlier is None:
            self.account.used(held, self.request.url or "")
            raise refused_error(held, self.latest.status_code)
        self.refused.add(held.payment_hash)
        self.refused_since_s = None
        return earlier

    def _withdraw_guess(self) -> None:
        """Send again without the token that nobody asked for. The caller never hears of it; the path gets no guess any more."""
        drain(self.latest)
        self.payer.book.unwelcome(self.origin, self.path)
        rewind(self.request)
        self.latest = self.send(self._again())

    def _pause(self) -> None:
        assert self.refused_since_s is not None
        offered_s = time.monotonic() - self.refused_since_s
        time.sleep(min(MAX_PAUSE_S, max(MIN_PAUSE_S, offered_s / 2)))

    def _retire(self, held: HeldToken) -> None:
        """The time of ``held`` is over, here at least."""
        self.payer.ledger.retire(held.payment_hash)
        self.payer.book.drop(held)
        self.refused.add(held.payment_hash)
        self.over.add(held.payment_hash)
        self.refused_since_s, self.asked_bare = None, False
        log.info("the token of payment %s is no longer taken by %s", held.payment_hash, self.origin)

    def _as_others_know(self, held: HeldToken) -> HeldToken | None:
        """``held`` as the ledger has it: another thread or process may have seen it taken. None where one has given it up."""
        row = self.payer.ledger.payment(held.payment_hash)
        if row is None or row.state.value != "settled":
            return None
        return HeldToken.of(row) or held

    def _accepted(self, held: HeldToken, *, taken: bool) -> requests.Response:
        """The server's answer to a request that carried ``held``, as the caller gets it."""
        if taken:
            self._note_taken(held)
        return self._finished(self.account.used(held, self.request.url or ""))

    def _note_taken(self, held: HeldToken) -> None:
        ledger, failed = self.payer.ledger, "the ledger can't note that a token was taken: %s"
        known = self.payer.book.knows_path(held, self.path)
        try:  # apart: whether the token may be replaced when it is refused hangs on the first note, and not on the second
            if not held.taken:
                ledger.mark(held.payment_hash, taken=True)
        except LedgerError as error:
            log.warning(failed, error)
        try:
            if not known:
                ledger.learn(self.origin, self.path, held.scope)
        except LedgerError as error:
            log.warning(failed, error)
        if not (held.taken and known):
            self.payer.book.put(replace(held, taken=True), self.path)

    def _finished(self, payment: Payment | None = None) -> requests.Response:
        response = unvaried(kept_by_caches(self.latest) if self.is_cached else self.latest)
        response.history = [*self.history, *response.history]
        response.payment = self.call.payment = payment  # type: ignore[attr-defined]
        if self.history:
            self.account.superseded[id(response)] = list(self.history)
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
