"""Ray: a session in the object store, and one for each process."""

from __future__ import annotations

import pytest

from .contract import EngineContract
from .fleet import Fleet
from .pools import RayPool

ENGINE = "ray"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600, func_only=True)]


class TestRay(EngineContract):
    pass


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
