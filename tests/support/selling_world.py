"""The world of `test_state_machine` whose servers sell and refuse tokens as real ones do, and what no call may do there.

After each call the servers' own truth is asked: which of the tokens in the ledger would have opened the page, and why none of them
was used, where one was bought. Which deed comes next is the machine's; nothing is drawn here.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import requests

from routeweiler_sync import PaymentRow, PaymentState, Routeweiler, RouteweilerError, TokenRefusedError
from routeweiler_sync.payments.single_use import CERTAIN, is_single_use
from routeweiler_sync.payments.token_cache import MAX_VAIN_TRIALS
from routeweiler_sync.paywall.negotiation import MAX_REQUESTS, MAX_TOKENS_PER_CALL, MAX_TRIALS
from routeweiler_sync.testing import FakeLnd, PaywallRequest
from routeweiler_sync.testing._messages import Reply

from .state_machine_world import MAX_CALM_CALLS, StateWorld, Wall

#: A path where no token is sold, and one where nothing is asked for.
UNSOLD, FREE = "/unsold", "/free"
PRICE_MSAT = 1_000
#: What a server's application or a proxy before it may answer in place of the page.
ERRORS = (404, 410, 429, 500, 503)


class Seller(Wall):
    """A server that sells and refuses as ``options`` say. ``front`` and ``app`` are errors from before and behind the paywall."""

    def __init__(self, lnd: FakeLnd, *, sells: str, **options: Any) -> None:
        super().__init__(lnd, sells=sells, price_msat=PRICE_MSAT, skip_invoice_paths=[f"^{UNSOLD}"], **options)
        self.front = self.app = 0

    def _reply(
        self, request: PaywallRequest, credential: re.Match[str] | None, lines: Sequence[tuple[str, str]]
    ) -> tuple[Reply, PaywallRequest]:
        if self.front:
            return Reply(status=self.front), replace(request, status=self.front)
        return super()._reply(request, credential, lines)

    def _page(self, request: PaywallRequest) -> Any:
        return (self.app, {}, b"not now\n") if self.app else super()._page(request)

    def grant(self, payment_hash: str) -> Any:
        """What was sold for a payment."""
        return next((each for each in self._grants.values() if each.payment_hash.hex() == payment_hash), None)

    def opens(self, row: PaymentRow, request: PaywallRequest) -> bool:
        """Whether the paywall would let ``request`` in with the token of ``row``."""
        grant = self.grant(row.payment_hash)
        if grant is None or self.faults.refuse_tokens or (self.service.way == "instance" and self.instance is None):
            return False
        late = self._offers.get(grant.payment_hash, 0) < self.faults.settle_lag
        thing = self.service.thing(replace(request, instance=self.instance))
        return grant.reason_against(thing, self.service.price_msat) is None and not (late and row.accepted)

    def end_tokens(self, way: str) -> None:
        """Let all tokens be of no use from now on: ``revoked``, ``expired``, or ``keys``: unknown after a change of keys."""
        with self._changed:
            grants = dict(self._grants)
            for grant in grants.values():
                self.revoked.add(grant.payment_hash.hex())
                grant.revoked, grant.expires_at = way == "revoked" or grant.revoked, 0 if way == "expired" else grant.expires_at
            if way == "keys":
                self._grants.clear()

    def calm_down(self) -> None:
        """As of `Wall`, with its instances taking turns no more."""
        super().calm_down()
        self.front = self.app = 0
        self.faults.settle_lag = 0
        if self.service.way == "instance":
            self.instance = 0


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that calls make."""

    wall: Seller
    method: str
    path: str
    body: bytes = b""

    @property
    def as_seen(self) -> PaywallRequest:
        path, _, query = self.path.partition("?")
        headers: Any = {}
        return PaywallRequest(method=self.method, path=path, query=query, headers=headers, body=self.body)


class SellingWorld(StateWorld):
    """Two servers, each with a way of its own."""

    def __init__(self, folder: Path, ways: Sequence[dict[str, Any]]) -> None:
        self._ways = ways
        #: What sessions have seen, by (session, server): tokens tried on a 402, in vain and with success, and errors paid for.
        self.tried: dict[tuple[int, str], int] = {}
        self.served: set[tuple[int, str]] = set()
        self.misled: set[tuple[int, str, int]] = set()
        self.vain: set[tuple[str, str]] = set()
        #: Sessions that did something unwatched.
        self.unwatched: set[int] = set()
        self._numbers = itertools.count()
        super().__init__(folder, cap_sats=100_000)

    def open_walls(self) -> Sequence[Seller]:
        walls = [self._exit.enter_context(Seller(self.lnd, **way)) for way in self._ways]
        kinds = [
            ("GET", "/a"),
            ("GET", "/b"),
            ("GET", "/c"),
            ("GET", "/a?q=1"),
            ("POST", "/a", b"1"),
            ("POST", "/a", b"2"),
            ("HEAD", "/a"),
        ]
        kinds += [("POST", "/b", b"1"), ("GET", UNSOLD), ("GET", FREE)]
        self.asked = [Asked(wall, *kind) for wall in walls for kind in kinds]
        self.pages = [(each.wall, each.path) for each in self.asked]
        return walls

    def new_session(self, payment_timeout_s: float, *, by_id: bool = False) -> Routeweiler:
        return super().new_session(max(payment_timeout_s, 5.0), by_id=by_id)

    def number_of(self, session: Routeweiler) -> int:
        """A number that no other session has; an id is given again."""
        known: int = vars(session).setdefault("_walk_number", next(self._numbers))
        return known

    def call(self, session: Routeweiler, page: int, *, timeout_s: float = 5.0) -> Any:
        asked = self.asked[page % len(self.asked)]
        try:
            answer: Any = session.request(
                asked.method, asked.wall.url_for(asked.path), data=asked.body or None, timeout=timeout_s, allow_redirects=True
            )
        except requests.RequestException as error:
            answer = error
            if isinstance(error, RouteweilerError):
                self._hear(error, hops=False)
        self.calls += 1
        return answer

    def _hear(self, error: RouteweilerError, *, hops: bool) -> None:
        super()._hear(error, hops=hops)
        if isinstance(error, TokenRefusedError) and error.spent is False:  # it names another page's payment, and tells of this call
            self.said[-1] = replace(self.said[-1], payment_hash=None)

    def unwatch(self) -> None:
        """From now on the sessions know more than this world has seen."""
        self.unwatched |= {self.number_of(session) for session in self.sessions}

    # -- one call, watched ------------------------------------------------------------------------------------------------

    def call_alone(self, session: Routeweiler, page: int, **options: Any) -> Any:
        asked = self.asked[page % len(self.asked)]
        wall, who = asked.wall, (self.number_of(session), asked.wall.base_url)
        before = {row.payment_hash: row for row in self.books.rows if row.origin == wall.base_url}
        good = {key for key, row in before.items() if wall.opens(row, asked.as_seen)}
        single = self._used_up(session, wall)
        seen, offered = len(wall.requests), len(wall.offers)
        answer = self.call(session, page, **options)
        wire, offers = wall.requests[seen:], wall.offers[offered:]
        story = _story(wire, before.values())
        after = {row.payment_hash: row for row in self.books.rows if row.origin == wall.base_url}
        bought = [row for key, row in after.items() if key not in before and row.state is not PaymentState.DEAD]
        assert len(bought) <= 1, f"bought more than one: {story}"
        assert len(wire) - self._repeats(offers, {key for key, row in before.items() if row.accepted}) <= MAX_REQUESTS, (
            f"too many requests: {story}"
        )
        if bought:
            assert any(request.status == 402 for request in wire), f"bought, and no 402 asked for it: {story}"
            self._nothing_undelivered(before, after, bought[0], story)
            errors = {r.status for r in wire if r.payment_hash in good and r.status >= 400} | ({wall.front} - {0})
            for key in sorted(good):
                why = self._why_not(before[key], bought[0], after, asked, who, wire, offers, single)
                assert why or self._may_mislead(who, errors), f"{key[:6]} is good, and was paid for again: {story}"
            self.misled |= {(*who, status) for status in errors if good}
        self._told(answer, wire, bool(bought), before, story)
        if asked.path == UNSOLD and not bought:
            self._unsold_opens(session, answer, asked, before, good, single, who, story)
        self._learn(who, asked, wire, offers, after)
        return answer

    def _nothing_undelivered(self, before: dict[str, Any], after: dict[str, Any], new: PaymentRow, story: str) -> None:
        """What was paid for and never delivered is neither paid for again, nor anything else at a server that never delivers."""
        for key, row in before.items():
            if row.state is not PaymentState.SETTLED or row.accepted or after[key].state is not PaymentState.SETTLED:
                continue
            assert row.resource_digest != new.resource_digest, f"one page is paid twice, and {key[:6]} never served: {story}"
            has_served = any(each.accepted for each in before.values())
            assert has_served or row.failure_code != "refused", f"bought where {key[:6]} was refused, and none has served: {story}"

    def _why_not(
        self, old: PaymentRow, new: PaymentRow, after: dict[str, Any], asked: Asked, who: Any, wire: Any, offers: Any, single: bool
    ) -> str | None:
        """Why a token that would have opened the page wasn't found, by the rules; None if it should have been."""
        live, same_page = old.state is PaymentState.SETTLED, old.resource_digest == new.resource_digest
        if old.payment_hash in self.forgotten | self.abandoned or old.preimage is None:
            return "forgotten"
        if single and old.accepted:
            used = {o.payment_hash for o in asked.wall.offers if o.taken}
            assert len(used) >= CERTAIN, "too few tokens have served for the verdict that they serve once"
            return "single use"
        kinds = len({offer.payment_hash for offer in offers} - {new.payment_hash})
        if kinds >= MAX_TOKENS_PER_CALL or len(wire) >= MAX_REQUESTS:
            return "bounds"
        if live and old.scope == new.scope:
            return None
        if same_page and old.accepted and old.state in (PaymentState.SETTLED, PaymentState.RETIRED):
            return None
        if not (live and old.accepted and new.scope.startswith("/")):
            return "not found by any rule"
        still = [r for r in after.values() if r.state is PaymentState.SETTLED and r.accepted and r.payment_hash != new.payment_hash]
        if max(still, key=lambda row: (row.created_at, row.payment_hash)).payment_hash != old.payment_hash:
            return "not the newest"
        if (old.payment_hash, asked.as_seen.path) in self.vain:
            return "tried there in vain"
        if self._sells_by_path(who, asked.wall):
            return "sells by path"
        return None

    def _sells_by_path(self, who: tuple[int, str], wall: Seller) -> bool:
        if who[0] in self.unwatched:
            session = next(each for each in self.sessions if self.number_of(each) == who[0])
            return session._payer.token_cache.sells_by_path(wall.base_url)
        return self.tried.get(who, 0) >= MAX_VAIN_TRIALS and who not in self.served

    def _may_mislead(self, who: tuple[int, str], errors: set[int]) -> bool:
        """Whether such an error may be taken for a refusal: once, and where no token has shown that it opens other pages too."""
        return bool(errors) and (who not in self.served or bool({(*who, status) for status in errors} - self.misled))

    def _used_up(self, session: Routeweiler, wall: Seller) -> bool:
        counts = {
            session._payer.token_cache.used_up_in_a_row(wall.base_url),
            self.books.ledger.used_up_in_a_row(wall.base_url),
        }
        return any(map(is_single_use, counts))

    def _repeats(self, offers: Sequence[Any], accepted: set[str]) -> int:
        """How many requests only offered a token again that the server hadn't taken, as far as the ledger knows."""
        again, taken, last = 0, set(accepted), None
        for offer in offers:
            again += offer.payment_hash == last and last not in taken
            last = offer.payment_hash
            if offer.taken:
                taken.add(offer.payment_hash)
        return again

    def _told(self, answer: Any, wire: Sequence[PaywallRequest], bought: bool, before: dict[str, Any], story: str) -> None:
        """A page that a token opened says so."""
        if not isinstance(answer, requests.Response) or not wire:
            return
        payment = answer.payment  # type: ignore[attr-defined]
        if answer.ok and wire[-1].paid:
            assert payment is not None, f"a paid page without its payment: {story}"
            assert payment.payment_hash == wire[-1].payment_hash, story
            row = before.get(payment.payment_hash)
            may_tell = bought or row is None or row.unfinished or not row.reported
            assert payment.reused is not bought if bought or not may_tell else True, f"{payment}: {story}"
        if not wire[-1].authorized:
            assert payment is None, f"a payment that opened nothing is told: {story}"

    def _unsold_opens(
        self, session: Any, answer: Any, asked: Asked, before: dict[str, Any], good: set[str], single: bool, who: Any, story: str
    ) -> None:
        """Where no token is sold, those are offered that others have bought."""
        wall = asked.wall
        live = [
            r for r in before.values() if r.state is PaymentState.SETTLED and r.preimage and r.payment_hash not in self.forgotten
        ]
        newest = sorted(live, key=lambda row: row.created_at, reverse=True)[: MAX_TRIALS - 1]
        fits = [r for r in newest if r.payment_hash in good and (r.payment_hash, asked.path) not in self.vain]
        if fits and not single and not wall.front and not wall.app and not self._is_blind(session, wall, fits[0]):
            assert isinstance(answer, requests.Response), story
            assert answer.status_code == 200, f"{fits[0].payment_hash[:6]} would have opened it: {story}"

    def _is_blind(self, session: Routeweiler, wall: Seller, row: PaymentRow) -> bool:
        """Whether the session's memory of the ledger is older than the token, which it needn't read more often than every 10 s."""
        entry = session._payer.token_cache._entry(wall.base_url)
        known = entry.by_scope.get(row.scope)
        return known is None or known.payment_hash != row.payment_hash

    def _learn(self, who: Any, asked: Asked, wire: Sequence[PaywallRequest], offers: Sequence[Any], after: dict[str, Any]) -> None:
        priced, path = False, asked.as_seen.path
        for request in wire:
            row = after.get(request.proves or "")
            if row is not None and request.paid and request.status < 400:
                self.misled = {each for each in self.misled if each[:2] != who}
                if priced and row.path != path:
                    self.served.add(who)
            priced = priced or request.status in (401, 402)
        for key in {offer.payment_hash for offer in offers if not offer.taken}:
            self.vain.add((key, path))
            if key in after and after[key].path != path:
                self.tried[who] = self.tried.get(who, 0) + 1

    # -- where all is well --------------------------------------------------------------------------------------------------

    def _needs_cost_once(self, rows: list[PaymentRow], payments: dict[str, Any]) -> None:
        """Each call was held to it already: what a token opens here isn't what its scope says."""

    def _must_come(self, session: Routeweiler, page: int) -> None:
        asked = self.asked[page % len(self.asked)]
        if asked.path in (UNSOLD, FREE):
            return
        for _ in range(MAX_CALM_CALLS + 2):
            answer = self.call_alone(session, page)
            if isinstance(answer, requests.Response):
                if asked.method == "HEAD" and answer.status_code == 402:
                    return
                if answer.ok:
                    return
                if answer.status_code == asked.wall.service.refuses >= 500:
                    return  # doubted once a minute, and never for a POST: it isn't clear what that did
                if session._payer.token_cache.is_own_error(asked.wall.base_url, answer.status_code):
                    return  # a token that was bought because of this error has met it too
            rows = [row for row in self.books.rows if row.state is PaymentState.SETTLED and row.origin == asked.wall.base_url]
            useless = [row for row in rows if not row.accepted]
            story = _story(asked.wall.requests[-8:], rows)
            assert isinstance(answer, (TokenRefusedError, requests.Response)), f"in a calm world: {answer!r}"
            assert useless, f"in a calm world: {answer!r} {story}"
            for row in useless:
                self.forget(row.payment_hash)
        assert asked.wall.service.way == "nothing", f"the page never came: {answer!r}"


def _story(wire: Sequence[PaywallRequest], rows: Iterable[PaymentRow]) -> str:
    """The call in one line."""
    known = {row.payment_hash: f"({row.scope}, {row.state.value})" for row in rows}
    token = lambda each: "token" if each.authorized else "bare"  # noqa: E731
    return " > ".join(
        f"{each.method} {each.path} {(each.proves or token(each))[:6]}{known.get(each.proves or '', '')}"
        f":{each.status} {each.refused or ''}"
        for each in wire
    )
