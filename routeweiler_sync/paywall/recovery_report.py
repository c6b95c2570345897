"""The trace events of a recovery: one for each row that it ended, and one for each payment that a crash left unreported.

Which rows a recovery ends is left to `payments.checkout`, how an event is made to `call_record`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._core.log import log
from ..errors import LedgerError
from ..payments.report_claims import claim, is_claimed_here, release_all
from ..payments.token import Token
from .call import current
from .call_record import CallRecord, TokenUse, claim_unreported

if TYPE_CHECKING:
    from ..config.payer import Payer
    from ..ledger.types import PaymentRow


def report_recovered(payer: Payer, rows: list[PaymentRow]) -> None:
    """Write the trace events of a recovery. ``rows`` are the rows that it looked at, as they are now. Never raises."""
    ended = {row.payment_hash: row for row in rows if not row.unfinished}
    settled_here = {each for each in ended if is_claimed_here(each)}  # others may have settled the rest meanwhile
    try:
        ended.update((row.payment_hash, row) for row in payer.ledger.unreported())
    except LedgerError as error:
        log.warning("payments that a crash left unreported can't be looked up: %s", error)
    for row in ended.values():
        record = CallRecord(payer=payer, method="RECOVER", url=row.origin + row.path, agent_id=row.agent_id)
        if row.settled_at is not None:
            if row.reported or not _claim(payer, row, settled_here=row.payment_hash in settled_here):
                continue  # reported, or another call is about to report it
            token = Token.of(row) or Token.unproved(row)
            record.uses.append(TokenUse(token=token, url=record.url, bought=True, reused=False, proof=row.preimage is not None))
        record.finish(None, None)
    if current.get() is None:
        release_all()


def _claim(payer: Payer, row: PaymentRow, *, settled_here: bool) -> bool:
    """Return whether this recovery reports ``row``. What it settled itself (``settled_here``) it has claimed already."""
    if settled_here or not claim(row.payment_hash):
        return settled_here
    try:
        return claim_unreported(payer, row) is not None
    except LedgerError as error:
        log.warning("whether payment %s has been reported can't be looked up: %s", row.payment_hash, error)
        return False
