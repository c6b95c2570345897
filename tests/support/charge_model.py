"""A small world to check the two tables in for charges: callers of one request, lnd, the network and a server that takes each once.

The decisions are the real ones (`payments.wallet_rules.decide`, `paywall.server_rules.judge`); the ledger is a double with the
transitions of `Ledger.open_payment`, `claim_charge`, `release_charge` and `spend_charge`. A caller wants one answer, and calls
until it has it, or is told that what it paid for is refused. It may die at any step: then its claims are over, as on one machine.

lnd's rules are those of `purchase_model`. A challenge ends before its invoice expires: then this package sends no order any more,
although lnd would still carry out one that is under way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

from routeweiler_sync.funding.replies import WalletReply
from routeweiler_sync.ledger.types import PaymentState
from routeweiler_sync.payments.wallet_rules import NextStep
from routeweiler_sync.paywall import server_rules
from routeweiler_sync.paywall.server_rules import TokenStatus, Verdict, Wants, read_charge_answer

from .purchase_model import Row, decided

OPEN, FAILED, SETTLED, RETIRED, DEAD = PaymentState
NOBODY = -1


class Charge(NamedTuple):
    """A row, and all the world knows of its invoice.

    ``owner``: the caller that has claimed it. ``refused``: the row says so. ``lnd``: none, flight, paid or failed. ``late``: orders
    under way whose senders have gone. ``ended``: the challenge has; ``expired``: the invoice has. ``served``: the server has used
    it up by an answer.
    """

    row: Row = Row()
    owner: int = NOBODY
    refused: bool = False
    lnd: str = "none"
    late: int = 0
    ended: bool = False
    expired: bool = False
    served: bool = False


class Caller(NamedTuple):
    """``idle``, ``sent``, ``stream``, ``ask``, ``word``, ``count`` as in `purchase_model`.

    ``present``: the request with the charge is under way; ``answer``: its answer is there. ``page``: it has its
    page. ``told``: it was told that the charge is refused.
    """

    at: str = "idle"
    i: int = NOBODY
    asked: NextStep | None = None
    reply: WalletReply | None = None
    status: int | None = None


IDLE, PAGE, TOLD = Caller(), Caller("page"), Caller("told")


class World(NamedTuple):
    """``charges``: those that were offered so far. ``left``: how many more the server may offer. The rest: faults still to come."""

    charges: tuple[Charge, ...]
    left: int
    callers: tuple[Caller, ...]
    crashes: int
    breaks: int
    errors: int


def start(*, callers: int, offers: int, crashes: int, breaks: int, errors: int) -> World:
    return World((), offers, (IDLE,) * callers, crashes, breaks, errors)


def replaced(values: tuple, i: int, value: object) -> tuple:  # type: ignore[type-arg]
    return (*values[:i], value, *values[i + 1 :])


def put(world: World, i: int, **changes: object) -> World:
    return world._replace(charges=replaced(world.charges, i, world.charges[i]._replace(**changes)))  # type: ignore[arg-type]


def steps(world: World) -> Iterator[tuple[str, World]]:
    """All that can happen next."""
    for i, charge in enumerate(world.charges):
        if not charge.ended:
            yield f"challenge {i} ends", put(world, i, ended=True)
        elif not charge.expired:
            yield f"invoice {i} expires", put(world, i, expired=True)
        if charge.lnd == "flight":
            for state, reply in (("paid", WalletReply.SUCCEEDED), ("failed", WalletReply.FAILED)):
                told = Caller("word", i, NextStep.SEND, reply)
                callers = tuple(told if each.at == "stream" and each.i == i else each for each in world.callers)
                yield f"{i} is {state}", put(world._replace(callers=callers), i, lnd=state)
        if charge.late and not charge.expired and charge.lnd in ("none", "failed"):
            yield f"a late order starts {i}", put(world, i, late=charge.late - 1, lnd="flight")
    for c, caller in enumerate(world.callers):
        for what, after in caller_steps(world, c, caller):
            yield f"caller {c} {what}" + (f" ({caller.i})" if caller.i >= 0 else ""), after


def caller_steps(world: World, c: int, caller: Caller) -> Iterator[tuple[str, World]]:
    at, i = caller.at, caller.i

    def go(to: Caller, on: World = world, **changes: object) -> World:
        after = on._replace(callers=replaced(on.callers, c, to))
        if to in (IDLE, PAGE, TOLD) and i >= 0 and after.charges[i].owner == c:
            changes["owner"] = NOBODY  # the call is over, one way or the other
        return put(after, i, **changes) if changes else after

    def lost(**changes: object) -> Iterator[tuple[str, World]]:
        if world.crashes:
            yield "dies", go(IDLE, world._replace(crashes=world.crashes - 1), **changes)

    if at == "idle":
        yield from called(world, c)
        return
    if at in ("page", "told"):
        return
    charge = world.charges[i]
    if at == "sent":
        if charge.expired:
            yield "is refused: expired", go(Caller("word", i, NextStep.SEND, WalletReply.EXPIRED))
        elif charge.lnd in ("none", "failed"):
            yield "lnd starts it", go(Caller("stream", i), lnd="flight")
        else:
            yield "is refused: exists", go(Caller("word", i, NextStep.SEND, WalletReply.EXISTS))
        if world.breaks:
            broken = put(world._replace(breaks=world.breaks - 1), i, late=charge.late + 1)
            yield "breaks before lnd has it", taken(broken, c, i, NextStep.SEND, WalletReply.UNKNOWN)
        yield from lost(late=charge.late + 1)
    elif at == "stream":
        if world.breaks:
            yield "breaks", taken(world._replace(breaks=world.breaks - 1), c, i, NextStep.SEND, WalletReply.UNKNOWN)
        yield from lost()
    elif at == "ask":
        assert caller.asked is not None
        replies = {"none": WalletReply.NOT_FOUND, "paid": WalletReply.SUCCEEDED, "failed": WalletReply.FAILED}
        if charge.lnd in replies:
            yield "asks", go(Caller("word", i, caller.asked, replies[charge.lnd]))
        yield "has no more time", go(IDLE)
    elif at == "word":
        assert caller.asked is not None
        assert caller.reply is not None
        yield f"takes {caller.asked.name} {caller.reply.value}", taken(world, c, i, caller.asked, caller.reply)
        yield from lost()
    elif at == "count":
        if charge.ended and not charge.expired:
            yield "is too late to send", go(IDLE)
        else:
            row = charge.row
            yield (
                "counts a send",
                go(Caller("sent", i), row=row._replace(state=OPEN, ever=row.ever + 1, unanswered=row.unanswered + 1)),
            )
            yield "has sent often enough", go(IDLE)
    elif at == "present":
        if charge.served or charge.ended:
            yield "is refused", go(Caller("answer", i, status=402))
        else:
            yield "is served", go(Caller("answer", i, status=200), served=True)
        if world.errors:
            yield "meets an error", go(Caller("answer", i, status=502), world._replace(errors=world.errors - 1))
        if world.breaks:
            fewer = world._replace(breaks=world.breaks - 1)
            yield "breaks before the server has it", go(IDLE, fewer)
            if not charge.ended:
                yield "breaks after the server has it", go(IDLE, fewer, served=True)
        yield from lost()
    elif at == "answer":
        yield f"judges {caller.status}", judged(world, c, i, caller.status)
        yield from lost()


def called(world: World, c: int) -> Iterator[tuple[str, World]]:
    """A call, up to what it finds in the ledger: `Checkout._charge_for`."""

    def go(to: Caller, on: World = world) -> World:
        return on._replace(callers=replaced(on.callers, c, to))

    order = sorted(owed(world), key=lambda i: (world.charges[i].refused, world.charges[i].row.unfinished, i))
    for i in order:
        charge = world.charges[i]
        if claimable(charge):
            to = Caller("ask", i, NextStep.TRACK) if charge.row.unfinished else Caller("present", i)
            yield "claims what is owed", go(to, put(world, i, owner=c))
            return
    if any(world.charges[i].refused for i in order):
        yield "finds a refused one", go(TOLD)
    elif world.left:
        opened = world._replace(charges=(*world.charges, Charge(owner=c)), left=world.left - 1)
        yield "opens", go(Caller("sent", len(world.charges)), opened)
    else:
        yield "gives up", go(TOLD)


def owed(world: World) -> list[int]:
    """What `Ledger.owed` returns."""
    return [i for i, charge in enumerate(world.charges) if charge.row.state in (OPEN, FAILED, SETTLED)]


def claimable(charge: Charge) -> bool:
    """What `Ledger.claim_charge` gives away."""
    return charge.owner == NOBODY


def taken(world: World, c: int, i: int, asked: NextStep, reply: WalletReply) -> World:
    """`PaymentLifecycle._carry`, and where its step leads."""
    charge = world.charges[i]
    step = decided(charge.row, asked, reply, False)
    row = charge.row._replace(
        state=step.change.state,
        unanswered=max(0, charge.row.unanswered - step.change.answered),
        covered=step.change.state is not DEAD,
    )
    act = step.rule.next_step
    if act is NextStep.SEND:
        to = Caller("count", i)
    elif act is NextStep.HAND_OVER:
        to = Caller("present", i)
    elif act.asks_wallet:
        to = Caller("ask", i, NextStep.LAST_LOOK if act is NextStep.LAST_LOOK else NextStep.TRACK)
    else:
        to = IDLE  # the call raises; its user may call again
    owner = NOBODY if to == IDLE else charge.owner
    return put(world._replace(callers=replaced(world.callers, c, to)), i, row=row, owner=owner)


@cache
def verdict_of(status: int | None) -> Verdict:
    """The real table's word. Forgotten by `explore`."""
    wants = Wants.CHALLENGE if status == 402 else Wants.NOTHING
    return server_rules.judge(TokenStatus.CHARGE, read_charge_answer(status, wants=wants)).verdict


def judged(world: World, c: int, i: int, status: int | None) -> World:
    """`paywall.charges.present`, from the answer on."""
    verdict, charge = verdict_of(status), world.charges[i]
    to, row, refused = IDLE, charge.row, charge.refused
    if verdict in (Verdict.SPENT, Verdict.USED_UP):
        to, row = (PAGE if status == 200 else IDLE), row._replace(state=RETIRED)
    elif verdict is Verdict.GIVE_UP:
        to, refused = TOLD, True
    return put(world._replace(callers=replaced(world.callers, c, to)), i, row=row, refused=refused, owner=NOBODY)


def faults(world: World) -> set[str]:
    """Promises that are broken in ``world``."""
    broken = set()
    paid = [charge for charge in world.charges if charge.lnd in ("flight", "paid")]
    if len(paid) > len(world.callers):
        broken.add("once")  # more payments than needs
    if any(not charge.row.covered for charge in paid):
        broken.add("covered")
    if any(charge.row.state in (SETTLED, RETIRED) and charge.lnd != "paid" for charge in world.charges):
        broken.add("booked")
    if any(charge.row.state is RETIRED and not charge.served for charge in world.charges):
        broken.add("delivered")  # noted as spent, and the server has never had it
    busy = [caller.i for caller in world.callers if caller.i >= 0]
    if len(busy) != len(set(busy)):
        broken.add("one call")
    if sum(caller == PAGE for caller in world.callers) > sum(charge.served for charge in world.charges):
        broken.add("one answer")
    return broken


def is_good_end(world: World) -> bool:
    """Every caller has its page or was told; nothing is under way; what was paid and not delivered is still there."""
    return (
        all(caller in (PAGE, TOLD) for caller in world.callers)
        and all(charge.lnd != "flight" for charge in world.charges)
        and all(charge.lnd != "paid" or charge.row.state in (SETTLED, RETIRED) for charge in world.charges)
    )


def canonical(world: World) -> World:
    """The same world for all that can still happen."""
    charges = []
    for charge in world.charges:
        row = charge.row
        row = row._replace(ever=min(row.ever, 2)) if row.unfinished else Row(row.state, 1, 0, row.covered)
        late = 0 if charge.expired or charge.lnd == "paid" else charge.late
        charges.append(charge._replace(row=row, late=late))
    return world._replace(charges=tuple(charges))


def explore(first: World, *, all_of_it: bool = True, most: int = 2_000_000) -> tuple[int, dict[str, str]]:
    """Walk every interleaving. Return how many worlds there are, and the way to the first that breaks each promise."""
    decided.cache_clear()
    verdict_of.cache_clear()
    number, came_from, before, good = {first: 0}, [(-1, "")], [[]], []  # type: ignore[var-annotated]
    broken: dict[str, str] = {}

    def way_to(at: int) -> str:
        path = []
        while at > 0:
            at, what = came_from[at]
            path.append(what)
        return " → ".join(reversed(path))

    todo = deque([first])
    while todo and len(number) < most:
        world = todo.popleft()
        here = number[world]
        for promise in faults(world):
            broken.setdefault(promise, way_to(here))
        if broken and not all_of_it:
            return len(number), broken
        if is_good_end(world):
            good.append(here)
        for what, after in steps(world):
            after = canonical(after)
            there = number.get(after)
            if there is None:
                there = number[after] = len(number)
                came_from.append((here, what))
                before.append([])
                todo.append(after)
            before[there].append(here)
    assert not todo, "the world is larger than it should be"
    reaches, back = set(good), deque(good)
    while back:
        for at in before[back.popleft()]:
            if at not in reaches:
                reaches.add(at)
                back.append(at)
    stuck = next((at for at in range(len(number)) if at not in reaches), None)
    if stuck is not None:
        broken["finish"] = way_to(stuck)
    return len(number), broken
