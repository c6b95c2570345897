"""Celery: a session pickled into each message, and one that the worker had used before it forked."""

from __future__ import annotations

import pytest

from .contract import EngineContract
from .fleet import Fleet
from .pools import CeleryPool

ENGINE = "celery"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600, func_only=True)]


class TestCelery(EngineContract):
    pass


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
