"""Dask: a session pickled into each task, and one that the threads of a process share."""

from __future__ import annotations

import pytest

from . import jobs
from .contract import EngineContract
from .fleet import Fleet
from .pools import DaskPool

ENGINE = "dask"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600, func_only=True)]


class TestDask(EngineContract):
    pass


def test_a_cluster_that_is_closed_in_mid_payment_leaves_it_to_whoever_wants_the_page_next(fleet: Fleet) -> None:
    """Else what was being paid when the work was called off would be paid again, or its page never come."""
    fleet.allow(1)
    (url,) = fleet.urls("closed", 1)
    fleet.shop.hang_next()
    with DaskPool.make() as closing:
        closing.own([url])
        fleet.shop.wait_hanging()
    fleet.shop.release()
    with jobs.new_session() as session:
        assert len(fleet.judge("closed", [url], [jobs.fetch(session, url)])) == 1


def test_a_session_with_a_function_that_only_cloudpickle_can_hold_buys_after_dasks_pickling(fleet: Fleet) -> None:
    """Else a session with a lambda as ``confirm`` would refuse to buy in a worker, though Dask can send lambdas."""
    from distributed.protocol.pickle import dumps, loads

    fleet.allow(1)
    (url,) = fleet.urls("lambda", 1)
    with jobs.new_session(confirm=lambda quote: True) as session, loads(dumps(session)) as there:
        assert len(fleet.judge("lambda", [url], [jobs.fetch(there, url)])) == 1
