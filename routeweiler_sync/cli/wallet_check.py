"""What the environment's wallet says about one unfinished payment, before ``payments abandon`` ends it.

Money: none moves. The wallet is only asked, and nothing is booked: that is left to ``payments recover``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._core.deadline import Deadline
from ..config import environment
from ..errors import FundingError, LedgerError
from .ledgers import command_text

if TYPE_CHECKING:
    from ..funding.replies import WalletAnswer
    from ..ledger.types import PaymentRow

#: How long to wait for the wallet, in seconds. A user may abandon a payment because the wallet doesn't answer any more.
ASK_S = 10.0


def warning_before_abandoning(row: PaymentRow, ledger: str | None) -> str | None:
    """Ask the wallet that the payment of ``row`` was ordered from, and return a warning for the user, or None.

    ``ledger`` is the ``--ledger`` that was given, for the command to copy.

    Raises: LedgerError if the wallet has paid it: then it may not be abandoned.
    """
    from ..funding.replies import WalletReply

    recover = command_text("payments", "recover", ledger=ledger)
    later = f"If it is paid after all, {recover} books it, and if the page was bought anew before, it is paid twice."
    answer = _answer(row)
    if isinstance(answer, str):
        return f"The wallet wasn't asked about payment {row.payment_hash}: {answer}. {later}"
    match answer.reply:
        case WalletReply.SUCCEEDED | WalletReply.WRONG_PREIMAGE:
            raise LedgerError(
                f"Payment {row.payment_hash} is paid, as its wallet says, so it wasn't abandoned. To book it: {recover}",
                payment_hash=row.payment_hash,
            )
        case WalletReply.FAILED | WalletReply.FAILED_FOR_GOOD:
            return None
        case WalletReply.IN_FLIGHT:
            return f"The wallet still has it under way: payment {row.payment_hash} may yet be made. {later}"
        case WalletReply.NOT_FOUND | WalletReply.FAILED_SO_FAR:
            return f"The wallet says that payment {row.payment_hash} isn't paid, but an order may be on its way. {later}"
    why = f" ({answer.reason})" if answer.reason else ""
    return f"The wallet didn't say what became of payment {row.payment_hash}{why}. {later}"


def _answer(row: PaymentRow) -> WalletAnswer | str:
    """Return the answer of the row's own wallet, or why it wasn't asked, as a clause."""
    from ..payments.lifecycle import answer_of
    from ..payments.wallet_choice import source_of

    deadline = Deadline(ASK_S)
    try:
        source, problem = source_of(environment.node(), row, deadline)
    except FundingError as error:
        return error.what.rstrip(".")
    except ValueError as error:  # an unknown network
        return str(error).rstrip(".")
    if source is None:
        return "the environment names another wallet than its own" if problem is None else problem.what.rstrip(".")
    payment_hash = bytes.fromhex(row.payment_hash)
    return answer_of(lambda: source.track(payment_hash, timeout_s=deadline.left_s(), follow=False), payment_hash)
