"""Whether the tokens of an origin serve once, by how many of them were used up in a row. Pure: no I/O.

Nothing in L402 says how often a token serves, so it is learned: a token that has served once and is refused for the same page at
once was used up, or revoked, or another instance of the server was asked. So the verdict needs several in a row, is given up when a
token serves twice, and is checked from time to time: where it is wrong, each call pays for what an earlier one has paid for.

The count is in the ledger (`Ledger.note_used_up`), so other sessions know too.
"""

from __future__ import annotations

#: After so many tokens in a row that were used up, the origin counts as selling tokens for a single use: a token that has served
#: isn't offered again. Where three instances behind a balancer don't share their keys, the first one's token serves before that.
CERTAIN = 3
#: At such an origin, a token is offered a second time for one purchase in so many, in case the verdict is wrong.
CHECKED_EVERY = 16
#: A token counts as used up only if it is refused so soon after it was paid for, in seconds. Later it may have expired.
USED_UP_WITHIN_S = 60.0


def is_single_use(used_up_in_a_row: int) -> bool:
    """Return whether no token of the origin that has served is offered again."""
    return used_up_in_a_row >= CERTAIN and used_up_in_a_row % CHECKED_EVERY != 0
