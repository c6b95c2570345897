"""A small world to check the purchase table in: buyers, lnd and the network, every step of which may come in any order.

The decisions are the real ones (`routeweiler_sync.payments.wallet_rules.decide`); the ledger is a double with the transitions of
`Ledger.open_payment`, `count_send` and `change` (`test_wallet_rules_model` holds the two against each other); a buyer does,
one step at a time, what `Checkout` does: write or look, send, wait, put the answer to the table, write what it says.

lnd's rules, from its source: a send of a hash that is unknown or FAILED starts the payment, unless the invoice has expired by lnd's
clock; any other send is refused; the expiry is checked first, and says nothing of an earlier payment; a send may arrive after its
sender has gone, and after a TrackPaymentV2 that said NOT_FOUND; a FAILED may be under way to its buyer while the payment is started
anew.

A wallet that ``promises`` nothing is one whose "failed" and "not found" are FAILED_SO_FAR: it pays each order that reaches it,
also a second one of the same invoice ("twice"), and may settle what it called failed, until the invoice has been expired for long.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from functools import cache
from typing import NamedTuple

from routeweiler_sync.funding.replies import WalletAnswer, WalletReply
from routeweiler_sync.ledger.types import Change, PaymentRow, PaymentState
from routeweiler_sync.payments import wallet_rules
from routeweiler_sync.payments.wallet_rules import NextStep, Step

OPEN, FAILED, SETTLED, RETIRED, DEAD = PaymentState
EPOCH = datetime.fromtimestamp(0, tz=timezone.utc)


class Row(NamedTuple):
    """What the table can see of a row. ``covered``: its amount is reserved or booked."""

    state: PaymentState = OPEN
    ever: int = 1
    unanswered: int = 1
    covered: bool = True

    @property
    def unfinished(self) -> bool:
        return self.state in (OPEN, FAILED)


class Book(NamedTuple):
    """The double of a ledger: the rows of one need, by invoice. Each method is one transaction, and gives the book after it."""

    rows: tuple[Row | None, ...]

    def put(self, i: int, row: Row) -> Book:
        return Book((*self.rows[:i], row, *self.rows[i + 1 :]))

    def live(self) -> int | None:
        """The one row that stands in the way of a new purchase."""
        found = [i for i, row in enumerate(self.rows) if row is not None and row.state in (OPEN, FAILED, SETTLED)]
        assert len(found) <= 1, "the unique index allows one live row a need"
        return found[0] if found else None

    def open_payment(self, i: int) -> tuple[Book, int, bool]:
        """The book, the invoice whose row stands, and whether it is new."""
        if self.rows[i] is not None:
            return self, i, False
        standing = self.live()
        if standing is not None:
            return self, standing, False
        return self.put(i, Row()), i, True

    def count_send(self, i: int) -> Book | None:
        row = self.rows[i]
        if row is None or not row.unfinished:
            return None
        return self.put(i, row._replace(state=OPEN, ever=row.ever + 1, unanswered=row.unanswered + 1))

    def change(self, i: int, change: Change) -> Book:
        row = self.rows[i]
        assert row is not None
        covered = change.state is not DEAD
        return self.put(i, row._replace(state=change.state, unanswered=max(0, row.unanswered - change.answered), covered=covered))


@cache
def seen(row: Row) -> PaymentRow:
    """``row`` as the table takes it."""
    return PaymentRow(
        payment_hash="00" * 32,
        origin="https://api.example",
        scope="s",
        path="/",
        state=row.state,
        amount_msat=1,
        max_fee_msat=0,
        fee_msat=0,
        envelope_id=None,
        node_pubkey="02" * 33,
        network="bitcoin",
        bolt11="lnbc1",
        scheme="L402",
        token="t",
        sends_ever=row.ever,
        sends_unanswered=row.unanswered,
        created_at=EPOCH,
    )


@cache
def decided(row: Row, asked: NextStep, reply: WalletReply, outlived: bool) -> Step:
    """The real table's word. Forgotten by `explore`, so that a patched table is asked anew."""
    answer = WalletAnswer(reply=reply, preimage=b"\0" * 32 if reply is WalletReply.SUCCEEDED else None)
    return wallet_rules.decide(seen(row), asked, answer, outlived=outlived)


class Buyer(NamedTuple):
    """Where a buyer stands in `Checkout`, with which invoice.

    ``idle``: between calls. ``sent``: its order is under way. ``stream``: lnd has begun the payment, and will tell it the end.
    ``ask``: about to ask lnd. ``word``: it has lnd's answer in hand. ``count``: about to count a further send. ``done``: has its
    token, or has given up where the server has no more invoices.
    """

    at: str = "idle"
    i: int = -1
    asked: NextStep | None = None
    reply: WalletReply | None = None
    #: Whether the invoice had been expired for a long time when ``reply`` was asked for.
    outlived: bool = False


IDLE, DONE = Buyer(), Buyer("done")


class World(NamedTuple):
    """The state of everything.

    ``lnd``: per invoice none, flight, paid, failed or twice (paid by two orders). ``late``: orders under way whose sender has gone.
    ``outlived``: expired for a long time. ``promises``: whether the wallet keeps lnd's.

    ``crashes``, ``breaks``, ``refusals``: how many faults are still to come.
    """

    book: Book
    lnd: tuple[str, ...]
    expired: tuple[bool, ...]
    late: tuple[int, ...]
    buyers: tuple[Buyer, ...]
    crashes: int
    breaks: int
    refusals: int
    outlived: tuple[bool, ...]
    promises: bool = True

    @property
    def minted(self) -> int:
        return sum(row is not None for row in self.book.rows)


def start(*, invoices: int, buyers: int, crashes: int, breaks: int, refusals: int, promises: bool = True) -> World:
    return World(
        Book((None,) * invoices),
        ("none",) * invoices,
        (False,) * invoices,
        (0,) * invoices,
        (IDLE,) * buyers,
        crashes,
        breaks,
        refusals,
        (False,) * invoices,
        promises,
    )


def replaced(values: tuple, i: int, value: object) -> tuple:  # type: ignore[type-arg]
    return (*values[:i], value, *values[i + 1 :])


def place(buyer: Buyer) -> tuple[str, int, str, str, bool]:
    return buyer.at, buyer.i, buyer.asked or "", buyer.reply or "", buyer.outlived


def canonical(world: World) -> World:
    """The same world for all that can still happen: buyers are alike, counts end at what the table tells apart."""
    rows = []
    for row in world.book.rows:
        if row is not None:
            row = row._replace(ever=min(row.ever, 2)) if row.unfinished else Row(row.state, 1, 0, row.covered)
        rows.append(row)
    late = tuple(
        0 if expired or (state == "paid" and world.promises) else count
        for count, expired, state in zip(world.late, world.expired, world.lnd, strict=True)
    )
    return world._replace(book=Book(tuple(rows)), late=late, buyers=tuple(sorted(world.buyers, key=place)))


def steps(world: World) -> Iterator[tuple[str, World]]:
    """All that can happen next."""
    for i in range(world.minted):
        if not world.expired[i]:
            yield f"invoice {i} expires", world._replace(expired=replaced(world.expired, i, True))
        elif not world.promises and not world.outlived[i] and world.lnd[i] != "flight":
            yield f"{i} has been expired for long", world._replace(outlived=replaced(world.outlived, i, True))
        if not world.promises and world.lnd[i] == "failed" and not world.outlived[i]:
            yield f"{i} is settled, though it was called failed", world._replace(lnd=replaced(world.lnd, i, "paid"))
        if world.lnd[i] == "flight":
            yield f"{i} is paid", ended(world, i, "paid", WalletReply.SUCCEEDED)
            yield f"{i} fails", ended(world, i, "failed", WalletReply.FAILED)
        if world.late[i] and not world.expired[i] and startable(world, i):
            late = replaced(world.late, i, world.late[i] - 1)
            yield f"a late order starts {i}", world._replace(late=late, lnd=replaced(world.lnd, i, started(world, i)))
    for b, buyer in enumerate(world.buyers):
        for what, after in buyer_steps(world, b, buyer):
            yield f"{what} ({buyer.i})" if buyer.i >= 0 else what, after


def startable(world: World, i: int) -> bool:
    """Whether an order starts a payment now."""
    return world.lnd[i] in ("none", "failed") or not world.promises


def started(world: World, i: int) -> str:
    """What becomes of the invoice's payment by one more order that starts."""
    return "flight" if world.lnd[i] in ("none", "failed") else "twice"


def so_far(world: World, reply: WalletReply) -> WalletReply:
    """What this wallet says where lnd would say ``reply``."""
    unpaid = reply in (WalletReply.FAILED, WalletReply.NOT_FOUND)
    return WalletReply.FAILED_SO_FAR if unpaid and not world.promises else reply


def ended(world: World, i: int, state: str, reply: WalletReply) -> World:
    """lnd's payment ends: whoever follows its stream has the word from now on, whatever lnd does next."""
    told = Buyer("word", i, NextStep.SEND, so_far(world, reply))
    buyers = tuple(told if buyer.at == "stream" and buyer.i == i else buyer for buyer in world.buyers)
    return world._replace(lnd=replaced(world.lnd, i, state), buyers=buyers)


def buyer_steps(world: World, b: int, buyer: Buyer) -> Iterator[tuple[str, World]]:
    at, i = buyer.at, buyer.i

    def go(to: Buyer, **changes: object) -> World:
        return world._replace(buyers=replaced(world.buyers, b, to), **changes)  # type: ignore[arg-type]

    def crashed(**changes: object) -> World:
        return go(IDLE, crashes=world.crashes - 1, **changes)

    if at == "idle":
        yield from called(world, go)
    elif at == "sent":
        if world.expired[i]:
            expired = WalletReply.EXPIRED if world.promises else WalletReply.FAILED_SO_FAR
            yield "refused: expired", go(Buyer("word", i, NextStep.SEND, expired))
        elif startable(world, i):
            yield "lnd starts it", go(Buyer("stream", i), lnd=replaced(world.lnd, i, started(world, i)))
        else:
            yield "refused: exists", go(Buyer("word", i, NextStep.SEND, WalletReply.EXISTS))
        if world.refusals:
            yield "refused before the start", go(Buyer("word", i, NextStep.SEND, WalletReply.REFUSED), refusals=world.refusals - 1)
        late = replaced(world.late, i, world.late[i] + 1)
        if world.breaks:
            yield (
                "break before lnd has it",
                taken(world._replace(late=late, breaks=world.breaks - 1), b, i, NextStep.SEND, WalletReply.UNKNOWN),
            )
        if world.crashes:
            yield "crash before lnd has it", crashed(late=late)
    elif at == "stream":
        if world.breaks:
            yield "break", taken(world._replace(breaks=world.breaks - 1), b, i, NextStep.SEND, WalletReply.UNKNOWN)
        if world.crashes:
            yield "crash", crashed()
    elif at == "ask":
        assert buyer.asked is not None
        reply = {
            "none": WalletReply.NOT_FOUND,
            "flight": WalletReply.IN_FLIGHT,
            "paid": WalletReply.SUCCEEDED,
            "failed": WalletReply.FAILED,
            "twice": WalletReply.SUCCEEDED,
        }[world.lnd[i]]
        reply = so_far(world, reply)
        if reply is WalletReply.IN_FLIGHT:  # changes nothing in a row: that it is heard at once leaves nothing out
            yield "asks: in flight", taken(world, b, i, buyer.asked, reply)
        else:
            yield f"asks: {reply.value}", go(Buyer("word", i, buyer.asked, reply, world.outlived[i]))
        yield "has no more time", go(IDLE)
    elif at == "word":
        assert buyer.asked is not None
        assert buyer.reply is not None
        yield f"takes {buyer.asked.name} {buyer.reply.value}", taken(world, b, i, buyer.asked, buyer.reply, outlived=buyer.outlived)
        if world.crashes and buyer.asked is NextStep.SEND:
            yield "crash with the answer in hand", crashed()
    elif at == "count":
        counted = world.book.count_send(i)
        if counted is None:
            row = world.book.rows[i]
            assert row is not None
            yield "counts no send: ended", go(DONE if row.state is SETTLED else IDLE)
        else:
            yield "counts a send", go(Buyer("sent", i), book=counted)
        yield "has sent often enough", go(IDLE)


def called(world: World, go: Callable[..., World]) -> Iterator[tuple[str, World]]:
    """A call, up to what it finds in the ledger. The server gives a new invoice; one that it repeats has ended, and is given up."""
    live = world.book.live()
    if live is not None:
        row = world.book.rows[live]
        assert row is not None
        yield "finds a row", go(DONE if row.state is SETTLED else Buyer("ask", live, NextStep.TRACK))
    elif world.minted < len(world.lnd):
        book, i, is_new = world.book.open_payment(world.minted)
        assert is_new
        yield "opens", go(Buyer("sent", i), book=book)  # which counts the first send
    else:
        yield "gives up", go(DONE)


def taken(world: World, b: int, i: int, asked: NextStep, reply: WalletReply, *, outlived: bool = False) -> World:
    """`Checkout._take`, and where its act leads."""
    row = world.book.rows[i]
    assert row is not None
    step = decided(row, asked, reply, outlived)
    book = world.book.change(i, step.change)
    act = step.rule.next_step
    if act is NextStep.SEND:
        to = Buyer("count", i)
    elif act is NextStep.HAND_OVER:
        to = DONE
    elif act.asks_wallet:
        to = Buyer("ask", i, NextStep.LAST_LOOK if act is NextStep.LAST_LOOK else NextStep.TRACK)
    else:
        to = IDLE  # the call raises; its user may call again
    return world._replace(book=book, buyers=replaced(world.buyers, b, to))


def faults(world: World) -> set[str]:
    """Promises that are broken in ``world``."""
    paying = [i for i, state in enumerate(world.lnd) if state in ("flight", "paid", "twice")]
    broken = set()
    if len(paying) > 1 or "twice" in world.lnd:
        broken.add("once")
    for i, row in enumerate(world.book.rows):
        if i in paying and (row is None or not row.covered):
            broken.add("covered")
        if row is not None and row.state is SETTLED and world.lnd[i] != "paid":
            broken.add("booked")
    return broken


def is_good_end(world: World) -> bool:
    """Every buyer done, nothing under way, and what was paid is booked with its token."""
    rows = world.book.rows
    return (
        all(buyer == DONE for buyer in world.buyers)
        and "flight" not in world.lnd
        and all(row is not None and row.state is SETTLED for row, state in zip(rows, world.lnd, strict=True) if state == "paid")
    )


class Found(NamedTuple):
    """``broken``: promise → the way to the first world that breaks it."""

    worlds: int
    broken: dict[str, str]


def explore(first: World, *, all_of_it: bool = True) -> Found:
    """Walk every interleaving, breadth first. Without ``all_of_it`` stop at the first promise broken on the way."""
    decided.cache_clear()
    first = canonical(first)
    number = {first: 0}
    came_from: list[tuple[int, str]] = [(-1, "")]
    before: list[list[int]] = [[]]
    good: list[int] = []
    broken: dict[str, str] = {}

    def way_to(at: int, last: str = "") -> str:
        path = [last] if last else []
        while at > 0:
            at, what = came_from[at]
            path.append(what)
        return " → ".join(reversed(path))

    todo = deque([first])
    while todo:
        world = todo.popleft()
        here = number[world]
        for promise in faults(world):
            broken.setdefault(promise, way_to(here))
        if broken and not all_of_it:
            return Found(len(number), broken)
        if is_good_end(world):
            good.append(here)
        try:
            following = list(steps(world))
        except AssertionError as error:  # a pair that the table doesn't know, two live rows
            broken.setdefault(f"asserted: {error}", way_to(here))
            following = []
        for what, after in following:
            after = canonical(after)
            there = number.get(after)
            if there is None:
                there = number[after] = len(number)
                came_from.append((here, what))
                before.append([])
                todo.append(after)
            before[there].append(here)
    reaches_end = [False] * len(number)
    back = deque(good)
    for at in good:
        reaches_end[at] = True
    while back:
        for at in before[back.popleft()]:
            if not reaches_end[at]:
                reaches_end[at] = True
                back.append(at)
    if not all(reaches_end):
        broken["finish"] = way_to(reaches_end.index(False))
    return Found(len(number), broken)
