"""Purchases to put into a ledger: intents, draws and the words that end them. The n-th payment's preimage is the number n."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from routeweiler_sync._core.money import Rate
from routeweiler_sync.budgets.schema import BudgetEnvelope
from routeweiler_sync.ledger.envelopes import Draw
from routeweiler_sync.ledger.ledger import Ledger
from routeweiler_sync.ledger.types import Change, Intent, PaymentRow, PaymentState

T = TypeVar("T")

ORIGIN = "https://api.example"
SAT = Rate(currency="sat")
#: A moment that lies at the beginning of a bucket, an hour and a day.
NOON_S = 1_800_000_000.0 // 86_400 * 86_400
#: Generous: a slow machine mustn't look like a deadlock.
PATIENCE_S = 120


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self, now_s: float = NOON_S) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


def preimage(n: int) -> bytes:
    return n.to_bytes(32, "big")


def hash_of(n: int) -> str:
    return hashlib.sha256(preimage(n)).hexdigest()


def intent(n: int, *, amount_msat: int = 10_000, fee_cap_msat: int = 1_000, scope: str | None = None, **changes: Any) -> Intent:
    """The n-th purchase: of a need of its own, unless ``scope`` says otherwise."""
    values: dict[str, Any] = {
        "payment_hash": hash_of(n),
        "origin": ORIGIN,
        "scope": f"scope-{n}" if scope is None else scope,
        "path": f"/pages/{n}",
        "node_pubkey": "02" * 33,
        "network": "bitcoin-regtest",
        "bolt11": f"lnbcrt{n}",
        "scheme": "L402",
        "token": f"token-{n}",
        "amount_msat": amount_msat,
        "fee_cap_msat": fee_cap_msat,
    }
    return Intent(**{**values, **changes})


def draw(envelope: BudgetEnvelope | str, *, rate: Rate = SAT, session_started_s: float = NOON_S) -> Draw:
    return Draw(envelope=envelope, rate=rate, session_started_s=session_started_s)


def limits(id: str = "e", /, **values: Any) -> BudgetEnvelope:
    return BudgetEnvelope(id, **values)


def put(ledger: Ledger, payment_hash: str, change: Change) -> PaymentRow:
    return ledger.change(payment_hash, lambda row: change)


def settle(ledger: Ledger, n: int, *, fee_msat: int = 0, proved: bool = True) -> PaymentRow:
    return put(
        ledger,
        hash_of(n),
        Change(state=PaymentState.SETTLED, answered=1, preimage=preimage(n) if proved else None, fee_msat=fee_msat),
    )


def die(ledger: Ledger, n: int) -> PaymentRow:
    end = Change(state=PaymentState.DEAD, answered=1, failure_code="failed_for_good", failure_text="NO_ROUTE")
    return put(ledger, hash_of(n), end)


def fail(ledger: Ledger, n: int) -> PaymentRow:
    return put(ledger, hash_of(n), Change(state=PaymentState.FAILED))


def held_msat(ledger: Ledger, id: str = "e") -> tuple[int, int]:
    """What a sat envelope has (reserved, settled), in msat."""
    row = ledger.envelope(id)
    reserved, settled = row.reserved_minor_units * 1000, row.settled_minor_units * 1000
    assert reserved == int(reserved)
    assert settled == int(settled)
    return int(reserved), int(settled)


def at_once(tasks: Sequence[Callable[[], T]]) -> list[T]:
    """Run each task in a thread of its own, all starting together; their results in order. Raises what one of them raised."""
    results: list[Any] = [None] * len(tasks)
    errors: list[BaseException] = []
    start = threading.Barrier(len(tasks))

    def run(at: int) -> None:
        try:
            start.wait(PATIENCE_S)
            results[at] = tasks[at]()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(at,), daemon=True) for at in range(len(tasks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), "a thread hangs"
    if errors:
        raise errors[0]
    return results
