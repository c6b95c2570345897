"""What a pool of every engine keeps, with sessions of ours in its tasks."""

from __future__ import annotations

from .fleet import Fleet
from .pools import Pool

PAGES = 12


class EngineContract:
    """Of the engine that the test file names in ``ENGINE``."""

    def test_a_budget_smaller_than_the_work_is_spent_to_the_last_sat_and_each_refusal_comes_back_whole(
        self, fleet: Fleet, pool: Pool
    ) -> None:
        """Else a pool's tasks would pass the cap together; or who sent them couldn't tell what was spent, and what to do."""
        came_to = fleet.beyond_the_cap(pool, PAGES)
        assert came_to["refused"] > 0

    def test_a_worker_killed_in_mid_payment_loses_nothing_and_its_task_run_again_pays_nothing_twice(
        self, fleet: Fleet, pool: Pool
    ) -> None:
        """Else what the engine does for every task, to run it again where its worker died, would cost the page a second time."""
        assert fleet.with_deaths(pool, PAGES)["bought"] == PAGES
