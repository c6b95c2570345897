"""Lengths of time in words."""

from __future__ import annotations

import pytest

from routeweiler_sync._core.durations import clock_remark, in_words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-5, "less than 2 seconds"),
        (0, "less than 2 seconds"),
        (30, "30 seconds"),
        (60, "1 minute"),
        (90, "90 seconds"),
        (3_600, "1 hour"),
        (5_400, "90 minutes"),
        (3 * 3_600 - 0.5, "3 hours"),
        (86_400, "1 day"),
        (33 * 86_400 - 5_000, "33 days"),
        (10 * 365 * 86_400, "10 years"),
    ],
)
def test_a_length_of_time_is_said_as_people_say_it(seconds: float, words: str) -> None:
    """ "1764410411" and "10799.6 s" leave the reader to count."""
    assert in_words(seconds) == words


@pytest.mark.parametrize(
    ("left_s", "remark"), [(-5, ""), (0, ""), (1, ""), (3 * 3_600, " (this machine's clock is at least 3 hours behind the node's)")]
)
def test_clocks_that_differ_are_told_by_how_much(left_s: float, remark: str) -> None:
    """Without it the user would call again for a new invoice, for ever."""
    assert clock_remark(1_764_410_411 + left_s, 1_764_410_411) == remark
