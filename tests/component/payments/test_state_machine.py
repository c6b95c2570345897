"""Promises 1 to 3, 6 and 7, walked at random: sessions, threads, deaths, and faults of node, network and server in any order.

`Purchases` is about faults, `Sales` about servers that sell and refuse tokens in other ways than aperture (`selling_world`).
`state_machine_world` is the world and says what must be true of it after each step; here is what may happen next. The mutants at
the end show that the world's eyes are open. ROUTEWEILER_DEEP_TESTS=1 walks for an hour; pytest's --hypothesis-seed picks the walks.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from hypothesis import HealthCheck, event, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from routeweiler_sync import InvoicePaymentError, PaymentPendingError
from routeweiler_sync.funding.replies import WalletReply
from routeweiler_sync.ledger import envelopes
from routeweiler_sync.ledger.lookups import Found
from routeweiler_sync.payments import lifecycle, wallet_rules
from routeweiler_sync.payments.wallet_rules import WalletEvent
from routeweiler_sync.paywall.token_notes import TokenNotes
from tests.support.selling_world import ERRORS, SellingWorld
from tests.support.state_machine_world import StateWorld

from .test_crash_points import INTENT, QUESTION, REFUSAL as REFUSED

pytestmark = pytest.mark.model

DEEP = "ROUTEWEILER_DEEP_TESTS" in os.environ
EXAMPLES, STEPS = (1_500, 60) if DEEP else (25, 25)
#: The walks past servers with ways of their own are longer and fewer.
SALES, SALES_STEPS = (1_500, 60) if DEEP else (12, 30)
SENT = "lnd SendPaymentV2: sent"

sessions = st.integers(0, 7)
pages = st.integers(0, 8)
walls = st.integers(0, 1)
beginnings = st.sampled_from([None, INTENT, SENT, QUESTION])

NODE_FAULTS = {
    "hang": lambda lnd: lnd.hang_next(),
    "orphan": lambda lnd: lnd.orphan_next(),
    "fail": lambda lnd: lnd.fail_next("NO_ROUTE"),
    "fail twice": lambda lnd: lnd.fail_next("TIMEOUT", times=2),
    "drop before_init": lambda lnd: lnd.drop_next("before_init"),
    "drop after_init": lambda lnd: lnd.drop_next("after_init"),
    "drop in_flight": lambda lnd: lnd.drop_next("in_flight"),
    "drop after_paying": lambda lnd: lnd.drop_next("after_paying"),
    "wrong preimage": lambda lnd: lnd.wrong_preimage_next(),
    "permission denied": lambda lnd: lnd.refuse_next("permission denied"),
    "internal error": lambda lnd: lnd.refuse_next("something went wrong", code="INTERNAL"),
    "hold": lambda lnd: lnd.hold_orders(),
    "lock": lambda lnd: lnd.lock(),
    "unlock": lambda lnd: lnd.unlock(),
    "starting": lambda lnd: lnd.set_state("UNLOCKED"),
    "fee": lambda lnd: setattr(lnd, "fee_msat", 1_234),
    "dear": lambda lnd: setattr(lnd, "fee_msat", 50_000),
    "free": lambda lnd: setattr(lnd, "fee_msat", 0),
    "clock ahead": lambda lnd: setattr(lnd, "clock_offset_s", 7_200),
    "clock right": lambda lnd: setattr(lnd, "clock_offset_s", 0),
    "clear": lambda lnd: lnd.clear_faults(),
}
#: Those that bite at the next order.
BAD_DAYS = [
    "hang", "fail", "fail twice", "drop before_init", "drop after_init", "drop in_flight", "drop after_paying",
    "wrong preimage", "permission denied", "internal error", "hold",
]  # fmt: skip
WALL_FAULTS = {
    "revoke": lambda wall: wall.revoke_tokens(),
    "cut before": lambda wall: wall.cut_next("before"),
    "cut after": lambda wall: wall.cut_next("after"),
    "401": lambda wall: wall.answer_next(401),
    "403": lambda wall: wall.answer_next(403),
    "429": lambda wall: wall.answer_next(429, times=2),
    "503": lambda wall: wall.answer_next(503),
    "slow": lambda wall: setattr(wall, "slow", 1),
    "refuse": lambda wall: setattr(wall.faults, "refuse_tokens", True),
    "refuse once": lambda wall: setattr(wall.faults, "refuse_tokens", 1),
    "take": lambda wall: setattr(wall.faults, "refuse_tokens", 0),
    "lag": lambda wall: setattr(wall.faults, "settle_lag", 2),
    "bare 401": lambda wall: setattr(wall.faults, "bare_401", True),
    "expired invoices": lambda wall: setattr(wall.faults, "expire_invoices", True),
    "another network": lambda wall: setattr(wall.faults, "currency", "bc"),
    "mismatch": lambda wall: setattr(wall.faults, "mismatch", True),
    "repeat": lambda wall: setattr(wall.faults, "repeat_invoice", True),
    "token=": lambda wall: setattr(wall.faults, "token_param", "token"),
    "down": lambda wall: wall.stop(),
    "calm": lambda wall: wall.calm_down(),
}


class Purchases(RuleBasedStateMachine):
    """What may happen next. No rule has a precondition: what can't be done at the moment does nothing."""

    @initialize(
        wanted=st.lists(pages, min_size=1, max_size=3),
        cap_sats=st.sampled_from([15, 25, 60]),
        fee_msat=st.sampled_from([0, 1_234]),
    )
    def begin(self, wanted: list[int], cap_sats: int, fee_msat: int) -> None:
        self.wanted = wanted  # a walk that wants few pages meets the same payment again and again
        self.folder = Path(tempfile.mkdtemp(prefix="state-"))
        self.world = StateWorld(self.folder, cap_sats=cap_sats)
        self.world.lnd.fee_msat = fee_msat

    @rule(payment_timeout_s=st.sampled_from([0.3, 0.6, 2.0]), by_id=st.booleans())
    def a_session_is_made(self, payment_timeout_s: float, by_id: bool) -> None:
        self.world.new_session(payment_timeout_s, by_id=by_id)

    @rule(number=sessions)
    def a_session_is_closed(self, number: int) -> None:
        self.world.close_session(number)

    @rule(number=sessions)
    def a_session_is_closed_and_used_again(self, number: int) -> None:
        self._session(number).close()

    @rule(number=sessions, page=pages)
    def a_call(self, number: int, page: int) -> None:
        self._note(self.world.call_alone(self._session(number), self._page(page)))

    @rule(number=sessions, page=pages, fault=st.sampled_from(BAD_DAYS), times=st.integers(1, 2), lost=st.booleans())
    def a_bad_day(self, number: int, page: int, fault: str, times: int, lost: bool) -> None:
        """``lost``: an earlier order is still on its way, and its sender is dead."""
        if lost:
            self.world.dies(self._page(page), 1, storm=True, since=SENT)
        NODE_FAULTS[fault](self.world.lnd)
        for _ in range(times):
            self._note(self.world.call_alone(self._session(number), self._page(page)))

    @rule(number=sessions, page=pages)
    def a_hasty_call(self, number: int, page: int) -> None:
        self.world.pages[self._page(page)][0].slow = 1
        self._note(self.world.call_alone(self._session(number), self._page(page), timeout_s=0.1))

    @rule(
        callers=st.lists(st.tuples(sessions, pages), min_size=2, max_size=6),
        meanwhile=st.sampled_from(["nothing", "restart", "deliver", "release", "fail", "revoke", "forget", "recover"]),
    )
    def a_crowd(self, callers: list[tuple[int, int]], meanwhile: str) -> None:
        world = self.world
        deeds: dict[str, Any] = {
            "nothing": lambda: None,
            "restart": lambda: None if world.down else world.lnd.restart(),
            "deliver": world.deliver,
            "release": world.lnd.release,
            "fail": lambda: world.lnd.release(fail="NO_ROUTE"),
            "revoke": world.walls[0].revoke_tokens,
            "forget": lambda: world.forget_any(0),
            "recover": lambda: self._session(0).recover(),
        }
        for answer in world.crowd(callers, deeds[meanwhile]):
            self._note(answer)

    @rule(page=pages, times=st.integers(2, 5), number=sessions)
    def a_crowd_that_wants_one_page(self, page: int, times: int, number: int) -> None:
        for answer in self.world.crowd([(number + n, self._page(page)) for n in range(times)], lambda: None):
            self._note(answer)

    @rule(page=pages, at=st.integers(1, 30), storm=st.booleans(), since=beginnings)
    def a_process_dies(self, page: int, at: int, storm: bool, since: str | None) -> None:
        event(f"died: {self.world.dies(self._page(page), at, storm=storm, since=since)}")

    @rule(page=pages, at=st.integers(1, 30), storm=st.booleans(), since=beginnings)
    def ctrl_c(self, page: int, at: int, storm: bool, since: str | None) -> None:
        event(f"interrupted: {self.world.interrupted(self._page(page), at, storm=storm, since=since)}")

    @rule(fault=st.sampled_from(sorted(NODE_FAULTS)))
    def the_node_goes_wrong(self, fault: str) -> None:
        NODE_FAULTS[fault](self.world.lnd)

    @rule(wall=walls, fault=st.sampled_from(sorted(WALL_FAULTS)))
    def a_server_goes_wrong(self, wall: int, fault: str) -> None:
        WALL_FAULTS[fault](self.world.walls[wall])

    @rule(wall=walls, price_msat=st.sampled_from([1, 999, 8_000, 30_000]))
    def a_price_changes(self, wall: int, price_msat: int) -> None:
        self.world.walls[wall].price_msat = price_msat

    @rule()
    def the_node_restarts(self) -> None:
        self.world.set_down(True)
        self.world.set_down(False)

    @rule(down=st.booleans())
    def the_node_goes_down_or_up(self, down: bool) -> None:
        self.world.set_down(down)

    @rule(fail=st.sampled_from([None, "NO_ROUTE"]))
    def what_hangs_ends(self, fail: str | None) -> None:
        self.world.lnd.release(fail=fail)

    @rule()
    def late_orders_arrive(self) -> None:
        self.world.deliver()

    @rule(number=sessions)
    def a_recovery(self, number: int) -> None:
        self.world.recover(self._session(number))

    @rule(number=sessions)
    def the_user_forgets_a_token(self, number: int) -> None:
        self.world.forget_any(number)

    @rule()
    def the_user_abandons_what_the_node_never_ends(self) -> None:
        self.world.abandon_orphans()

    @rule(frozen=st.booleans())
    def the_budget_is_frozen_or_thawed(self, frozen: bool) -> None:
        self.world.set_frozen(frozen)

    @rule(by_sats=st.integers(1, 50))
    def the_budget_is_raised(self, by_sats: int) -> None:
        self.world.raise_cap(by_sats)

    @rule(wanted=st.lists(pages, max_size=3), release_fails=st.booleans())
    def all_is_calm_for_a_while(self, wanted: list[int], release_fails: bool) -> None:
        self.world.calm(wanted, release_fails=release_fails)

    @rule(wait=st.sampled_from([False] * 9 + [True]))
    def short_lived_tokens_expire(self, wait: bool) -> None:
        if wait:
            self.world.wait_out()

    @invariant()
    def all_accounts_agree(self) -> None:
        self.world.agree()

    def teardown(self) -> None:
        try:
            self.world.end()
        finally:
            self.world.close()
            shutil.rmtree(self.folder, ignore_errors=True)

    def _page(self, page: int) -> int:
        return self.wanted[page % len(self.wanted)]

    def _session(self, number: int) -> Any:
        return self.world.sessions[number % len(self.world.sessions)]

    def _note(self, answer: requests.Response | requests.RequestException) -> None:
        event(type(answer).__name__ if isinstance(answer, Exception) else str(answer.status_code))


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600 if DEEP else 900)
def test_no_walk_breaks_a_promise() -> None:
    """Else some order of faults that nobody thought of pays twice, loses a token, overspends, or tells its caller a lie."""
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Purchases,
        settings=settings(max_examples=EXAMPLES, stateful_step_count=STEPS, suppress_health_check=list(HealthCheck)),
    )


# -- servers that sell and refuse tokens as real ones do ------------------------------------------------------------------------

#: How a server sells, how it refuses, and how it writes its tokens. An unusual form names other schemes than aperture's.
SELLS = ["service", "path", "everything", "once", "credit:3", "method", "query", "body", "instance", "nothing"]
REFUSALS = [
    {"refuses": 402}, {"refuses": 401}, {"refuses": 401, "refuses_with": "scheme"}, {"refuses": 401, "refuses_with": "challenge"},
    {"refuses": 401, "refuses_with": "realm"}, {"refuses": 402, "refuses_with": "scheme"},
    *({"refuses": status} for status in (400, 403, 404, 409, 410, 500, 503)),
]  # fmt: skip
ways = st.builds(
    lambda sells, refuses, token, head: {"sells": sells, "token": token, "head": head, **refuses},
    st.sampled_from(SELLS),
    st.sampled_from(REFUSALS),
    st.sampled_from([None, "json", "macaroon-v1"]),
    st.sampled_from(["challenge", "price-only"]),
)
asked = st.integers(0, 19)
#: Pages of the first server: most walks are about it.
asked_of_one = st.integers(0, 9)


class Sales(RuleBasedStateMachine):
    """As `Purchases`, with a wallet that is well, and servers with ways of their own. `SellingWorld` judges each call."""

    @initialize(ways=st.tuples(ways, ways), wanted=st.lists(asked | asked_of_one, min_size=1, max_size=5))
    def begin(self, ways: tuple[dict[str, Any], ...], wanted: list[int]) -> None:
        self.wanted = wanted
        self.folder = Path(tempfile.mkdtemp(prefix="state-"))
        self.world = SellingWorld(self.folder, ways)

    @rule(number=sessions, pages=st.lists(asked_of_one, min_size=1, max_size=4))
    def calls(self, number: int, pages: list[int]) -> None:
        for page in pages:
            answer = self.world.call_alone(self._session(number), self._page(page))
            event(type(answer).__name__ if isinstance(answer, Exception) else str(answer.status_code))

    @rule(number=sessions, page=asked)
    def a_call_for_any_page(self, number: int, page: int) -> None:
        self.world.call_alone(self._session(number), page)

    @rule(by_id=st.booleans())
    def a_session_is_made(self, by_id: bool) -> None:
        self.world.new_session(5.0, by_id=by_id)

    @rule(number=sessions)
    def a_session_is_closed(self, number: int) -> None:
        self.world.close_session(number)

    @rule(wall=walls, way=st.sampled_from(["revoked", "expired", "keys"]))
    def tokens_end(self, wall: int, way: str) -> None:
        self.world.walls[wall].end_tokens(way)

    @rule(wall=walls, lag=st.sampled_from([0, 0, 1, 2]))
    def settlements_lag(self, wall: int, lag: int) -> None:
        self.world.walls[wall].faults.settle_lag = lag

    @rule(wall=walls, status=st.sampled_from([0, *ERRORS]))
    def the_application_fails_for_a_while(self, wall: int, status: int) -> None:
        self.world.walls[wall].app = status

    @rule(wall=walls, status=st.sampled_from([0, 0, 403, 503]))
    def something_fails_in_front_of_the_paywall(self, wall: int, status: int) -> None:
        self.world.walls[wall].front = status

    @rule(wall=walls)
    def all_is_well_again(self, wall: int) -> None:
        self.world.walls[wall].front = self.world.walls[wall].app = 0

    @rule(wall=walls, instance=st.sampled_from([None, 0, 1, 2]))
    def another_instance_answers(self, wall: int, instance: int | None) -> None:
        if self.world.walls[wall].service.way == "instance":
            self.world.walls[wall].instance = instance

    @rule(wall=walls, when=st.sampled_from(["before", "after"]))
    def a_connection_is_cut(self, wall: int, when: Any) -> None:
        self.world.walls[wall].cut_next(when)

    @rule(number=sessions)
    def the_user_forgets_a_token(self, number: int) -> None:
        self.world.forget_any(number)

    @rule(callers=st.lists(st.tuples(sessions, asked_of_one), min_size=2, max_size=4))
    def several_calls_at_once(self, callers: list[tuple[int, int]]) -> None:
        self.world.unwatch()
        self.world.crowd([(session, self._page(page)) for session, page in callers], lambda: None)

    @rule(page=asked_of_one, at=st.integers(1, 40), since=st.sampled_from([None, INTENT, REFUSED]))
    def a_process_dies(self, page: int, at: int, since: str | None) -> None:
        event(f"died: {self.world.dies(self._page(page), at, storm=False, since=since)}")

    @rule(number=sessions)
    def a_recovery(self, number: int) -> None:
        self.world.recover(self._session(number))

    @rule(wanted=st.lists(asked, max_size=3))
    def all_is_calm_for_a_while(self, wanted: list[int]) -> None:
        self.world.calm(wanted, release_fails=False)

    @invariant()
    def all_accounts_agree(self) -> None:
        self.world.agree()

    def teardown(self) -> None:
        try:
            self.world.end()
        finally:
            self.world.close()
            shutil.rmtree(self.folder, ignore_errors=True)

    def _page(self, page: int) -> int:
        return self.wanted[page % len(self.wanted)]

    def _session(self, number: int) -> Any:
        return self.world.sessions[number % len(self.world.sessions)]


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600 if DEEP else 900)
def test_no_walk_pays_for_what_is_still_good() -> None:
    """Else some server's way to sell, met in some order, costs its users each page anew."""
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Sales,
        settings=settings(max_examples=SALES, stateful_step_count=SALES_STEPS, suppress_health_check=list(HealthCheck)),
    )


# -- the world's eyes: it must see what a walk is there to find ------------------------------------------------------------------


@pytest.fixture
def world(tmp_path: Path) -> Iterator[StateWorld]:
    made = StateWorld(tmp_path)
    yield made
    made.close()


def test_an_order_that_pays_beside_a_final_failed_is_seen(world: StateWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bug of all peers: FAILED is believed while another order of the same invoice is still on its way."""
    read = wallet_rules.read

    def believing(row: Any, asked: Any, answer: Any, **outlived: bool) -> WalletEvent:
        return WalletEvent.FAILED_FOR_GOOD if answer.reply is WalletReply.FAILED else read(row, asked, answer, **outlived)

    monkeypatch.setattr(wallet_rules, "read", believing)
    world.dies(0, 1, storm=True, since=SENT)
    world.lnd.fail_next()
    assert isinstance(world.call(world.sessions[0], 0), InvoicePaymentError)
    world.agree()
    world.deliver()
    with pytest.raises(AssertionError, match="dead, but SUCCEEDED"):
        world.agree()


def test_a_lie_about_the_money_is_seen(world: StateWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller who is told that nothing was spent goes and pays elsewhere."""
    monkeypatch.setattr(PaymentPendingError, "spent", False)
    world.lnd.hang_next()
    assert isinstance(world.call(world.sessions[0], 0), PaymentPendingError)
    with pytest.raises(AssertionError, match="told as not spent"):
        world.agree()


def test_a_limit_that_is_passed_is_seen(world: StateWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """A budget that doesn't hold is none."""
    monkeypatch.setattr(envelopes, "fit", lambda tx, envelope, draw, intent, now_s: (0, draw.rate.micro_of(intent.amount_msat)))
    world.walls[0].price_msat = (world.cap_sats + 1) * 1_000
    world.call(world.sessions[0], 0)
    with pytest.raises(AssertionError, match="more is reserved and spent"):
        world.agree()


def test_a_good_token_that_is_replaced_is_seen(world: StateWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each token given up without need costs its price again."""
    monkeypatch.setattr(TokenNotes, "in_ledger", lambda self, held: None)
    world.walls[0].faults.settle_lag = 1
    world.call(world.sessions[0], 0)
    world.call(world.sessions[0], 0)
    with pytest.raises(AssertionError, match="was bought again"):
        world.agree()


def test_a_secret_in_an_error_is_seen(world: StateWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors end up in logs and in other people's inboxes."""
    pending = lifecycle.pending_error
    monkeypatch.setattr(lifecycle, "pending_error", lambda row, why: pending(row, f"{why} {row.token}"))
    world.lnd.hang_next()
    world.call(world.sessions[0], 0)
    with pytest.raises(AssertionError, match="a secret is in an error"):
        world.agree()


def _sells(tmp_path: Path, **way: Any) -> Iterator[SellingWorld]:
    made = SellingWorld(tmp_path, [way, {"sells": "path"}])
    yield made
    made.close()


@pytest.fixture
def shop_of_everything(tmp_path: Path) -> Iterator[SellingWorld]:
    yield from _sells(tmp_path, sells="everything", token="json")


@pytest.fixture
def shop_of_methods(tmp_path: Path) -> Iterator[SellingWorld]:
    yield from _sells(tmp_path, sells="method")


GET_A, POST_A, POST_B = 0, 4, 7


def test_a_token_that_would_have_opened_another_page_is_seen(
    shop_of_everything: SellingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that pays for each path where one token opens all."""
    monkeypatch.setattr(TokenNotes, "is_worth_a_trial", lambda self, row: False)
    world = shop_of_everything
    world.call_alone(world.sessions[0], GET_A)
    with pytest.raises(AssertionError, match="is good, and was paid for again"):
        world.call_alone(world.sessions[0], POST_B)


def test_a_page_that_is_paid_again_each_time_is_seen(shop_of_methods: SellingWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """GET and POST of one path have a token each, and one throws away the other's."""
    monkeypatch.setattr(Found, "page_tokens", [])
    world = shop_of_methods
    world.call_alone(world.sessions[0], GET_A)
    world.call_alone(world.sessions[0], POST_A)
    with pytest.raises(AssertionError, match="is good, and was paid for again"):
        world.call_alone(world.sessions[0], GET_A)


def test_a_purchase_for_what_was_never_delivered_is_seen(shop_of_everything: SellingWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that never takes a token is paid for page after page."""
    monkeypatch.setattr(Found, "undelivered", None)
    world = shop_of_everything
    world.walls[0].faults.refuse_tokens = True
    world.call_alone(world.sessions[0], GET_A)
    with pytest.raises(AssertionError, match="and none has served"):
        world.call_alone(world.sessions[0], POST_B)
