"""Present a charge: send the request with its credential, once, and do what the server's answer means for it.

A charge opens one request, once. So it goes with the request that it was paid for and with no other, is never sent unasked, and no
adapter repeats it by itself. What an answer means is decided in `server_rules`. Which charge is presented, and whether one is paid
for, is left to `payments.checkout`; what happens before, to `handler`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import requests

from .._core.log import log
from ..errors import ChallengeMismatchError, ChallengeParseError, LedgerError
from ..ledger.server_facts import REFUSED_AT_ONCE
from ..payments import run_bill
from ..payments.outcome_errors import charge_refused_error
from ..protocol.http_auth import schemes_offered
from ..protocol.schemes import names_others, parse_challenge, rail_of, receipt_of
from .credentialed import lost_its_token
from .negotiation import MAX_REQUESTS
from .replay import check_replayable
from .server_rules import ServerAnswer, TokenStatus, Verdict, Wants, judge, read_charge_answer

if TYPE_CHECKING:
    from ..payments.token import Token
    from ..protocol.challenge import Challenge
    from .handler import PaywallHandler


def present(handler: PaywallHandler, charge: Token) -> requests.Response:
    """Present ``charge``, which this call has claimed, with the hop's request. Return the answer that the caller gets.

    If the answer that came before offers the same invoice under a new challenge, the preimage goes under that one.

    Raises: TokenRefusedError if the server refuses it; what `requests` raises if there is no answer. The charge stays in the ledger
    in both cases.
    Money: none moves.
    """
    assert charge.single_use
    assert charge.resource_digest == handler.resource_digest, "a charge is never sent with another request"
    is_anew = False
    fresh = _challenge_in(handler.lines, charge)
    if fresh is not None and _repeats(fresh, charge):
        charge, is_anew = replace(charge, token=fresh.token), True
    while True:
        check_replayable(handler.request)
        try:
            handler.resend(charge)
        except requests.RequestException:
            handler.record.add_reuse(charge, handler.request.url or "")  # so that the trace tells what is owed
            raise
        answer, fresh = _read(handler, charge, is_anew=is_anew)
        verdict = judge(TokenStatus.CHARGE, answer).verdict
        if lost_its_token(handler.latest) and verdict in (Verdict.GIVE_UP, Verdict.PRESENT_ANEW):
            return handler.finished_with(charge)  # an adapter has taken it off, so the answer isn't about it
        if verdict is Verdict.PRESENT_ANEW:
            assert fresh is not None
            charge, is_anew = replace(charge, token=fresh.token), True
            continue
        _note(handler, charge, verdict)
        if verdict is Verdict.GIVE_UP:
            handler.record.add_reuse(charge, handler.request.url or "")
            raise charge_refused_error(charge, handler.latest.status_code, is_spent=_is_spent(handler, charge))
        return handler.finished_with(charge)


def _is_spent(handler: PaywallHandler, charge: Token) -> bool:
    """Return whether the ledger says that ``charge`` has been used up, or forgotten: only its invoice, repeated, brings it up."""
    try:
        return handler.notes.in_ledger(charge) is None
    except LedgerError:
        return False


def _read(handler: PaywallHandler, charge: Token, *, is_anew: bool) -> tuple[ServerAnswer, Challenge | None]:
    """Return what the latest answer is, and the challenge in it that offers the charge's invoice anew, if it does."""
    latest, lines = handler.latest, handler.lines
    fresh = _challenge_in(lines, charge) if latest.status_code >= 400 else None
    repeated = fresh is not None and _repeats(fresh, charge) and not is_anew and handler.negotiation.requests < MAX_REQUESTS
    wants = Wants.NOTHING
    if fresh is not None:
        wants = Wants.CHALLENGE
    elif names_others(lines):
        wants = Wants.OTHER
    receipt = receipt_of(latest.headers)
    # A receipt is no proof, and may say little: it counts unless it names another payment.
    receipted = receipt is not None and (not receipt.reference or receipt.is_for(bytes.fromhex(charge.payment_hash)))
    answer = read_charge_answer(latest.status_code, wants=wants, receipted=receipted, repeated=repeated)
    log.info(
        "%s answers %d to the charge of payment %s: %s (schemes: %s)",
        charge.origin, latest.status_code, charge.payment_hash, answer.name, ", ".join(schemes_offered(lines)) or "none",
    )  # fmt: skip
    return answer, fresh


def _challenge_in(lines: list[str], charge: Token) -> Challenge | None:
    """Return the challenge in ``lines``, of the scheme of ``charge`` if there is one; None if there is none that can be used."""
    try:
        return parse_challenge(lines, prefer=rail_of(charge.scheme))
    except (ChallengeParseError, ChallengeMismatchError):
        return None


def _repeats(fresh: Challenge, charge: Token) -> bool:
    """Return whether ``fresh`` is another challenge than that of ``charge``, for the invoice that it has paid."""
    is_its_invoice = not fresh.reusable and fresh.payment_hash.hex() == charge.payment_hash
    return is_its_invoice and (fresh.scheme, fresh.token) != (charge.scheme, charge.token)


def _note(handler: PaywallHandler, charge: Token, verdict: Verdict) -> None:
    """Write to the ledger what ``verdict`` says about ``charge``. A ledger that can't be written is logged."""
    ledger, status, payment_hash = handler.payer.ledger, handler.latest.status_code, charge.payment_hash
    if verdict is Verdict.SPENT:
        handler.notes.write("that a charge is spent", lambda: ledger.spend_charge(payment_hash, delivered=True))
    elif verdict is Verdict.USED_UP:
        why = f"used up by an answer of status {status}"
        run_bill.note_used_up(payment_hash)
        log.warning(
            "%s has taken payment %s and not delivered: it answered %d, with a receipt. The next call for this request pays anew.",
            charge.origin, payment_hash, status,
        )  # fmt: skip
        handler.notes.write("that a charge is used up", lambda: ledger.spend_charge(payment_hash, delivered=False, why=why))
    elif verdict is Verdict.GIVE_UP:
        why = REFUSED_AT_ONCE if handler.negotiation.bought else "refused by the server"
        handler.notes.write("that a charge was refused", lambda: ledger.note_undelivered(payment_hash, refused=True, why=why))
    elif status >= 400:
        why = "paid, but not allowed (status 403)" if status == 403 else f"answered with status {status}"
        handler.notes.write("that nothing was delivered", lambda: ledger.note_undelivered(payment_hash, refused=False, why=why))
