"""Read ledgers and traces into an `Account`, and return its figures. Which ones is left to the caller."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from .account import Account
from .figures import Envelope, Figures, Source, figures_of

if TYPE_CHECKING:
    from ..ledger.ledger import Ledger

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


@contextmanager
def report_of(
    ledgers: Sequence[Ledger],
    traces: Sequence[str | os.PathLike[str]],
    *,
    since: datetime | None = None,
    until: datetime | None = None,
) -> Iterator[tuple[Account, Callable[[], Figures]]]:
    """Read all ``ledgers`` and ``traces``. Yield the account, and a function that returns its figures.

    Nothing in them is changed, and the ledgers are closed.

    A ledger or trace that is named twice is read once; one that doesn't exist is empty, and isn't created.

    Raises: LedgerError, TraceUnreadableError; sqlite3.Error if the account outgrows the disk for temporary files.
    """
    since_ms, until_ms = (None if each is None else int((each - _EPOCH).total_seconds() * 1000) for each in (since, until))
    sources: list[Source] = []
    envelopes: list[Envelope] = []
    with Account(since_ms, until_ms) as account:
        with _uncollected():
            for name, ledger in {each.url: each for each in ledgers}.items():
                with closing(ledger):
                    missing = not ledger.exists()
                    sources.append(Source(kind="ledger", name=name, missing=missing))
                    if not missing:
                        account.add_ledger(ledger.statement())
                        envelopes.extend(Envelope(ledger=name, row=row) for row in ledger.envelopes())
            for path in {os.path.realpath(os.path.expanduser(each)): each for each in traces}.values():
                missing = not os.path.exists(os.path.expanduser(path))
                sources.append(Source(kind="trace", name=os.fspath(path), missing=missing))
                if not missing:
                    account.add_trace(Path(path).expanduser())
        made_at = datetime.now(timezone.utc)
        yield account, lambda: figures_of(account, sources=sources, envelopes=envelopes, since=since, until=until, made_at=made_at)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Run the block without the cyclic garbage collector: reading makes no cycles, and it would look at each event in vain."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
