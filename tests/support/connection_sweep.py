"""A sweep of one purchase's connection to lnd: cut or frozen after each of many bytes, and what must hold each time.

The same for FakeLnd (`tests.component`) and the real lnd (`tests.regtest`), which say what was paid.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

from routeweiler_sync import ChallengeExpiredError, Ledger, PaymentPendingError, Routeweiler, RouteweilerError

from .tcp_relay import Way, Wire
from .wallet_market import long_after

SEED = 4
#: The connection's last bytes may differ by some from purchase to purchase (TLS, varints): the sweep goes a little further.
BEYOND = 1.02


def offsets(total_bytes: int, points: int, *, seed: str) -> list[int]:
    """From 0 to the end in even steps, begun somewhere in the first; 0 itself is always among them."""
    stride = max(int(total_bytes * BEYOND) // points, 1)
    start = random.Random(seed).randrange(1, stride + 1)
    return [0, *range(start, int(total_bytes * BEYOND), stride)]


def whole_purchase(wire: Wire, session: Routeweiler, url: str) -> dict[Way, int]:
    """How many bytes go each way while a purchase over a new connection goes well."""
    before = Counter(wire.passed)
    assert session.get(url).status_code == 200
    return dict(Counter(wire.passed) - before)


def sweep(
    wire: Wire,
    *,
    how: str,
    way: Way,
    at_bytes: list[int],
    new_session: Callable[[], Routeweiler],
    healthy: Callable[[], Routeweiler],
    ledger: Ledger,
    url: str,
    paid: Callable[[], set[str]],
    sends_again: bool = True,
) -> Counter[str]:
    """Buys ``url`` once an offset, by a session of its own over ``wire`` that is struck there, then by a ``healthy`` one.

    ``paid`` asks the node for the hashes of all settled payments. ``sends_again`` is `ContractWallet.sends_again`: without it, an
    order that was lost stays pending, until its invoice has long expired. Returns how often the struck call ended in which way.
    """
    outcomes: Counter[str] = Counter()
    for offset in at_bytes:
        where = f"{how} after {offset} bytes {way}"
        before = paid()
        error: RouteweilerError | None = None
        wire.arm(offset, how, way)
        with new_session() as session:
            try:
                assert session.get(url).status_code == 200, where
            except RouteweilerError as caught:
                error = caught
        assert len(paid() - before) <= 1, where
        wire.strike("rst")  # disarms, and ends what is frozen
        with healthy() as session:  # a new one: a session remembers the tokens it has met, forgotten or not
            lost = not sends_again and isinstance(error, PaymentPendingError) and _is_lost(session, url)
            assert session.get(url).status_code == 200, where
        (bought,) = paid() - before
        if error is not None:
            assert error.spent is (None if isinstance(error, PaymentPendingError) else False), (where, error)
            # Pending is the payment that the later call finds; "nothing spent" is one that is never made.
            assert (error.payment_hash == bought) is (error.spent is None and not lost), (where, error)
        outcomes["page" if error is None else type(error).__name__] += 1
        ledger.forget(bought)
    return outcomes


def _is_lost(session: Routeweiler, url: str) -> bool:
    """Whether the order never came, so that the row ends by time alone; it has ended then."""
    try:
        session.get(url)
    except PaymentPendingError:
        with long_after(), suppress(ChallengeExpiredError):
            session.get(url)
        return True
    return False
