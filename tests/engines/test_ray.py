"""Ray: a session in the object store, and one for each process."""

from __future__ import annotations

import pytest

from .fleet import Fleet
from .pools import Pool, RayPool

ENGINE = "ray"
PAGES = 12

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600, func_only=True)]


def test_a_budget_smaller_than_the_work_is_spent_to_the_last_sat_and_each_refusal_comes_back_whole(
    fleet: Fleet, pool: Pool
) -> None:
    """Else a pool's tasks would pass the cap together; or who sent them couldn't tell what was spent, and what to do."""
    came_to = fleet.beyond_the_cap(pool, PAGES)
    assert came_to["refused"] > 0


def test_a_worker_killed_in_mid_payment_loses_nothing_and_its_task_run_again_pays_nothing_twice(fleet: Fleet, pool: Pool) -> None:
    """Else what the engine does for every task, to run it again where its worker died, would cost the page a second time."""
    assert fleet.with_deaths(pool, PAGES)["bought"] == PAGES


def test_a_cancelled_task_leaves_its_payment_to_whoever_wants_the_page_next(fleet: Fleet, pool: RayPool) -> None:
    """Else what was being paid would be paid again, or its page never come."""
    fleet.allow(1)
    (url,) = fleet.urls("cancel", 1)
    fleet.shop.hang_next()
    reference = pool._fetch_here.remote(url)
    fleet.shop.wait_hanging()
    pool.ray.cancel(reference)
    outcome = pool._asked(reference).outcome()
    fleet.shop.release()
    assert isinstance(outcome, pool.ray.exceptions.TaskCancelledError), repr(outcome)
    assert len(fleet.judge("cancel", [url], [task.outcome() for task in pool.own([url])])) == 1
