"""What is done in a round of torture, drawn from a seed: the same seed and round give the same plan.

Pure. When exactly a fault strikes still depends on the machine; what is repeatable are the choices.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

SERVICES = ("service-a", "service-b", "short-lived")
PROCESSES_MAX, THREADS_MAX, CALLS_MAX = 3, 3, 3
#: A purchase takes some 110 ms on a machine at rest, a cold one 50 ms more.
INSTANT_MS_MAX = 250.0
#: What a fault can be aimed at: nothing, the ledger's row is there, lnd lists the payment, lnd has paid, the ledger has booked.
AIMS = ("go", "opened", "in flight", "paid", "settled")
AIMED_DELAY_MS_MAX = 20.0
SECOND_FAULT_MS_MAX = 150.0
#: A purchase moves about so many bytes each way after the connection is made; with the TLS handshake some 3 000.
WIRE_BYTES_MAX = 4_000
FREEZE_S = (0.5, 2.0)
RESTART_DELAY_S_MAX = 0.5
#: An order held longer than others leave a purchase alone (1 s) is overtaken by their questions.
HOLD_S = (0.8, 3.0)
HOLD_ARMED_MS_MAX = 30.0
HOLD_GAP_MS = (50.0, 400.0)
PAYMENT_TIMEOUT_S = (1.0, 5.0)

#: Fault → weight. Those of lnd cost some seconds a round, so they are rarer.
FAULTS = {
    "kill buyers": 40,
    "stop buyers": 10,
    "kill payer": 11,
    "rst": 7,
    "fin": 7,
    "wire freeze": 6,
    "rst at byte": 5,
    "fin at byte": 4,
    "wire freeze at byte": 4,
    "hold order": 5,
    "freeze payer": 4,
    "freeze router": 5,
    "freeze payee": 6,
}
#: Of two faults in one round, the first may be one that makes the second meet a payment in flight.
PAIRS = (
    ("hold order", "kill buyers"),
    ("hold order", "kill buyers"),
    ("freeze payer", "kill buyers"),
    ("freeze payee", "kill payer"),
    ("freeze router", "kill payer"),
    ("freeze payee", "kill buyers"),
    ("freeze payee", "rst"),
    ("freeze router", "stop buyers"),
    ("kill payer", "kill buyers"),
    ("kill buyers", "kill payer"),
    ("rst", "kill buyers"),
    ("wire freeze", "kill payer"),
    ("stop buyers", "kill payer"),
    ("fin", "kill payer"),
    ("kill payer", "rst"),
)
PAIRS_SHARE = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that goes wrong. ``size``: seconds of a freeze or a downtime, bytes for "at byte", the share of buyers hit."""

    kind: str
    size: float

    def __str__(self) -> str:
        if self.kind in ("rst", "fin", "wire freeze"):
            return self.kind
        return f"{self.kind} {self.size:.0f}" if self.kind.endswith("byte") else f"{self.kind} {self.size:.2f}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A round. ``buyers``: for each process the services that its threads buy."""

    name: str
    buyers: tuple[tuple[str, ...], ...]
    calls: int
    warm: bool
    payment_timeout_s: float
    aim: str
    delay_ms: float
    faults: tuple[Fault, ...]
    gap_ms: float
    overlap: bool
    trace: str

    @property
    def services(self) -> list[str]:
        """The needs of the round."""
        return sorted({service for threads in self.buyers for service in threads})

    def __str__(self) -> str:
        buyers = "|".join(
            ",".join(service.replace("service-", "").replace("short-lived", "s") for service in b) for b in self.buyers
        )
        second = f" then, {self.gap_ms:.0f} ms later, {self.faults[1]}" if len(self.faults) > 1 else ""
        flags = " ".join(name for name, on in (("warm", self.warm), ("overlap", self.overlap)) if on)
        return (
            f"[{buyers}]x{self.calls} {flags} {self.payment_timeout_s:.1f} s; {self.aim}+{self.delay_ms:.0f} ms: "
            f"{self.faults[0]}{second}"
        )


def _fault(kind: str, dice: random.Random) -> Fault:
    if kind.endswith("byte"):
        return Fault(kind=kind, size=dice.randint(0, WIRE_BYTES_MAX))
    if kind == "kill buyers":
        return Fault(kind=kind, size=dice.choice((0.34, 0.67, 1.0, 1.0, 1.0)))
    if kind in ("kill payer", "kill wallet"):
        return Fault(kind=kind, size=dice.uniform(0, RESTART_DELAY_S_MAX))
    if kind == "hold order":
        return Fault(kind=kind, size=dice.uniform(*HOLD_S))
    return Fault(kind=kind, size=dice.uniform(*FREEZE_S))


def draw(seed: int, number: int, *, own_process: bool = False) -> Plan:
    """The plan of round ``number`` of ``seed``.

    ``own_process``: the wallet is a program beside the payer's lnd. In every other round it is hit in lnd's place.
    """
    dice = random.Random(f"{seed}:{number}")
    processes = dice.randint(1, PROCESSES_MAX)
    # Few services, so that buyers meet in one scope more often than not.
    services = dice.sample(SERVICES, dice.choice((1, 1, 2)))
    buyers = tuple(tuple(dice.choice(services) for _ in range(dice.randint(1, THREADS_MAX))) for _ in range(processes))
    aim = dice.choice(("go", "go", *AIMS))
    one = (dice.choices(list(FAULTS), weights=list(FAULTS.values()))[0],)
    kinds = dice.choice(PAIRS) if dice.random() < PAIRS_SHARE else one
    if own_process and number % 2:
        kinds = tuple(kind.replace(" payer", " wallet") for kind in kinds)
    holds = "hold order" in kinds  # armed before the order leaves, on a connection that has done its handshake
    aim = "go" if holds else aim
    return Plan(
        name=f"{seed}:{number}",
        buyers=buyers,
        calls=dice.randint(1, CALLS_MAX),
        warm=dice.random() < 0.7 or holds,
        payment_timeout_s=dice.uniform(*PAYMENT_TIMEOUT_S),
        aim=aim,
        delay_ms=dice.uniform(0, HOLD_ARMED_MS_MAX if holds else INSTANT_MS_MAX if aim == "go" else AIMED_DELAY_MS_MAX),
        faults=tuple(_fault(kind, dice) for kind in kinds),
        gap_ms=dice.uniform(*HOLD_GAP_MS) if holds else dice.uniform(0, SECOND_FAULT_MS_MAX),
        overlap=dice.random() < 0.5,
        trace=dice.choice(("jsonl", "sqlite")),
    )
