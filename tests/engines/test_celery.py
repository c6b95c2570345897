"""Celery: a session pickled into each message, and one that the worker had used before it forked."""

from __future__ import annotations

import pytest

from .fleet import Fleet
from .pools import CeleryPool, Pool

ENGINE = "celery"
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


def test_a_soft_time_limit_in_mid_payment_ends_the_task_and_not_the_payment(fleet: Fleet, pool: CeleryPool) -> None:
    """Else the task would wait on until Celery kills its process, without the time to clean up that the limit is there for."""
    from celery.exceptions import SoftTimeLimitExceeded

    fleet.allow(1)
    (url,) = fleet.urls("limit", 1)
    fleet.shop.hang_next()
    limited = pool.tasks.fetch_here.apply_async((url,), soft_time_limit=2)
    outcome = pool._asked(limited).outcome()
    fleet.shop.release()
    assert isinstance(outcome, SoftTimeLimitExceeded), repr(outcome)
    assert len(fleet.judge("limit", [url], [task.outcome() for task in pool.own([url])])) == 1
