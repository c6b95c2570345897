"""Purchases from the world's aperture through the payer's lnd, and the check that its ledger agrees with lnd's own list."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from routeweiler_sync import BudgetEnvelope, Funding, Ledger, Routeweiler

from .world import World

MakeSession = Callable[..., Routeweiler]


@contextmanager
def sessions(
    make_client: Callable[[int], Any], port: int, *, ledger: Path, envelope: BudgetEnvelope, timeout_s: float
) -> Iterator[MakeSession]:
    """Give a function that makes sessions, each with a client of its own, over ``port`` or the port that it is given.

    Other keyword arguments are Routeweiler's.
    """
    made: list[tuple[Routeweiler, Any]] = []

    def make(port: int = port, **kwargs: Any) -> Routeweiler:
        client = make_client(port)
        arguments: dict[str, Any] = {
            "funding": [Funding.lightning_lnd(client=client, network="bitcoin-regtest")],
            "ledger": ledger,
            "budget_envelope": envelope,
            "payment_timeout": timeout_s,
        }
        made.append((Routeweiler(**arguments | kwargs), client))
        return made[-1][0]

    yield make
    for session, client in made:
        session.close()
        client.close()


def paid(world: World) -> set[str]:
    """The hashes of all that the payer has paid."""
    return {payment["payment_hash"] for payment in world.payer.list_payments() if payment["status"] == "SUCCEEDED"}


def check(world: World, ledger: Ledger, envelope: BudgetEnvelope) -> None:
    """Ledger and lnd agree to the msat, and nothing is left open."""
    rows = {row.payment_hash: row for row in ledger.payments()}
    settled = {key: (row.amount_msat, row.fee_msat) for key, row in rows.items() if row.settled_at is not None}
    assert not [row for row in rows.values() if row.unfinished]
    assert settled == {
        payment["payment_hash"]: (int(payment["value_msat"]), int(payment["fee_msat"]))
        for payment in world.payer.list_payments()
        if payment["status"] == "SUCCEEDED" and payment["payment_hash"] in rows
    }
    used = ledger.envelope(envelope.id)
    assert used.reserved_minor_units == 0
    assert used.settled_minor_units * 1000 == sum(amount + fee for amount, fee in settled.values())
