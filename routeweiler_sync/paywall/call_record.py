"""What a call has to account for: the tokens that it used, what it paid, and the trace lines that tell of it.

Made where there is something to tell; a free call without a trace has none.
"""

from __future__ import annotations

import logging
import time
import uuid
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING

import requests

from ..errors import LedgerError, PreimageMismatchError, RouteweilerError
from ..payments.report_claims import claim, release
from ..payments.token import Token
from ..payments.types import Payment
from ..protocol.schemes import rail_of, redact
from ..trace.schema import TraceChallenge, TraceError, TraceEvent, TraceOutcome, TracePayment

if TYPE_CHECKING:
    from ..config.payer import Payer
    from ..payments.types import Purchase, TokenRequest

log = logging.getLogger("routeweiler_sync")

#: An error text goes into the trace up to this length.
MAX_MESSAGE_CHARS = 2_000


@dataclass(kw_only=True)
class TokenUse:
    """A token that a hop of the call used. ``bought``: this call ended its payment. ``reused``: it adds nothing to any sum."""

    token: Token
    url: str
    bought: bool
    reused: bool
    challenge: TraceChallenge | None = None
    settlement_latency_ms: int | None = None
    proof: bool = True


@dataclass(kw_only=True)
class CallRecord:
    """What a call has met so far, and the trace lines that it ends with."""

    payer: Payer
    method: str
    url: str
    started_s: float = field(default_factory=time.time)
    challenge: TraceChallenge | None = None
    uses: list[TokenUse] = field(default_factory=list)
    service_started_s: float | None = None
    noted: RouteweilerError | None = None
    #: Responses that were superseded on the way to one of the call's, by that one's id.
    superseded: dict[int, list[requests.Response]] = field(default_factory=dict)
    #: What the call has bought, as (origin, scope): nothing is bought twice in it, over however many redirects.
    bought_scopes: set[tuple[str, str]] = field(default_factory=set)
    #: Set where a token of ours went out in the place of the caller's own Authorization.
    authorization_replaced: bool = False

    def challenged(self, token_request: TokenRequest) -> None:
        """A hop answered with a challenge."""
        invoice = token_request.challenge.invoice
        self.challenge = TraceChallenge(
            scheme=token_request.challenge.scheme,
            url=token_request.url,
            amount_msat=invoice.amount_msat,
            network=invoice.network,
            payment_hash=invoice.payment_hash.hex(),
            expires_at=datetime.fromtimestamp(invoice.expires_at, tz=timezone.utc),
            scope=token_request.scope,
            description=invoice.description,
        )

    def add_purchase(self, purchase: Purchase, url: str) -> Payment:
        """A hop got a token from the checkout. Its payment is told by this call if this call ended it."""
        return self._add_use(purchase.token, url, bought=purchase.bought, latency_ms=purchase.settlement_latency_ms)

    def add_reuse(self, token: Token, url: str) -> Payment:
        """A hop used a token that had been there. If no trace has told of its payment (a crash came between), this call does."""
        return self._add_use(token, url, bought=False, latency_ms=None)

    def _add_use(self, token: Token, url: str, *, bought: bool, latency_ms: int | None) -> Payment:
        for use in self.uses:
            if use.token.payment_hash == token.payment_hash:
                return _as_payment(use)
        tells = bought or (not token.reported and self._claims_unreported(token))
        use = TokenUse(
            token=token, url=url, bought=bought, reused=not tells, challenge=self.challenge, settlement_latency_ms=latency_ms
        )
        self.uses.append(use)
        return _as_payment(use)

    def _claims_unreported(self, token: Token) -> bool:
        """Whether nobody has told of ``held``'s payment, nor is about to: then this call does."""
        if not claim(token.payment_hash):
            return False
        try:
            row = self.payer.ledger.payment(token.payment_hash)  # what is in memory may be old
        except LedgerError as error:  # the page is there, and goes to the caller; the next call that uses the token tells of it
            log.warning("whether payment %s has been told can't be looked up: %s", token.payment_hash, error)
            release(token.payment_hash)
            return False
        if row is not None and row.reported:
            release(token.payment_hash)
            self.payer.token_cache.note(token, reported=True)
            return False
        return True

    @property
    def spent_msat(self) -> int:
        """What the call has paid so far, fees included."""
        return sum(use.token.amount_msat + use.token.fee_msat for use in self.uses if use.bought)

    def complete_history(self, response: requests.Response) -> None:
        """Put each hop's 402s before it into ``response.history``: `requests` writes that anew, even if it follows no redirect."""
        if not self.superseded:
            return
        known = {id(each) for each in response.history}
        history: list[requests.Response] = []
        for hop in [*response.history, response]:
            history += [each for each in self.superseded.get(id(hop), ()) if id(each) not in known]
            history += [hop] if hop is not response else []
        response.history = history

    def finish(self, response: requests.Response | None, error: BaseException | None) -> None:
        """Write the trace line, then note in the ledger that the payment has been told. Raises nothing: the call comes first."""
        try:
            if not self._write_events(response, error or self.noted):
                return  # the trace has warned; the next call that uses the token tells of its payment
            for use in self.uses:
                if not use.reused and not use.token.reported:
                    self._note_reported(use.token)
            if isinstance(error, PreimageMismatchError) and error.payment_hash is not None and self.payer.trace_sink is None:
                self.payer.ledger.mark(
                    error.payment_hash, reported=True
                )  # with a sink it is among the uses, if this call reports it
        except Exception as problem:  # noqa: BLE001  (the call, its payment and its response matter more than its trace)
            log.warning(
                "a call's trace, or the note that its payment has been told, is lost; it may be told once more: %s", problem
            )
        finally:
            for use in self.uses:
                if not use.reused:
                    release(use.token.payment_hash)
            if isinstance(error, RouteweilerError) and error.payment_hash is not None:
                release(error.payment_hash)

    def _write_events(self, response: requests.Response | None, error: BaseException | None) -> bool:
        """Write the lines; whether all were written (also where no trace is wanted)."""
        sink = self.payer.trace_sink
        written = [sink is None or sink.emit(event) is not False for event in (self._events(response, error) if sink else ())]
        return all(written)

    def _note_reported(self, token: Token) -> None:
        self.payer.ledger.mark(token.payment_hash, reported=True)
        self.payer.token_cache.note(token, reported=True)

    def _events(self, response: requests.Response | None, error: BaseException | None) -> list[TraceEvent]:
        """The call's own line, and one for each payment after the first."""
        if isinstance(error, PreimageMismatchError):
            self._report_unproved(error)
        paid = [use for use in self.uses if not use.reused]
        main = paid[0] if paid else (self.uses[0] if self.uses else None)
        request_id = str(uuid.uuid4())
        events = [self._event(request_id, None, main, self.url, response, error)]
        events += [self._event(str(uuid.uuid4()), request_id, use, use.url, response, error) for use in paid[1:]]
        return events

    def _report_unproved(self, error: PreimageMismatchError) -> None:
        """A payment that was booked but gave no token moved money all the same."""
        payment_hash = error.payment_hash or ""
        if any(use.token.payment_hash == payment_hash for use in self.uses) or not claim(payment_hash):
            return
        row = self.payer.ledger.payment(payment_hash)  # behind the claim: another may have told of it, and let go, just now
        if row is None or row.settled_at is None or row.reported:
            release(payment_hash)
            return
        token = Token.unproved(row)
        url = self.url if self.challenge is None else self.challenge.url
        self.uses.append(TokenUse(token=token, url=url, bought=True, reused=False, challenge=self.challenge, proof=False))

    def _event(
        self,
        request_id: str,
        parent: str | None,
        use: TokenUse | None,
        url: str,
        response: requests.Response | None,
        error: BaseException | None,
    ) -> TraceEvent:
        now_s = time.time()
        answer = response if response is not None else getattr(error, "response", None)
        began_s = self.service_started_s if self.service_started_s is not None else self.started_s
        challenge = use.challenge if use is not None and use.challenge is not None else self.challenge
        return TraceEvent(
            request_id=request_id,
            parent_request_id=parent,
            agent_id=self.payer.agent_id,
            session_id=self.payer.session_id,
            envelope_id=self.payer.envelope_id,
            policy_hash=self.payer.policy_hash,
            url=url,
            method=self.method,
            authorization_replaced=self.authorization_replaced,
            challenge=challenge,
            selected_rail=_rail(challenge, use),
            funding_source=None if use is None else use.token.node_pubkey,
            payment=None if use is None else _trace_payment(use),
            outcome=TraceOutcome(
                http_status=None if answer is None else answer.status_code,
                service_delivered=response is not None and response.status_code < 400,
                service_latency_ms=None if response is None else int((now_s - began_s) * 1000),
                error=None if error is None else _trace_error(error),
            ),
            timestamp_start=datetime.fromtimestamp(self.started_s, tz=timezone.utc),
            timestamp_end=datetime.fromtimestamp(now_s, tz=timezone.utc),
        )


def _rail(challenge: TraceChallenge | None, use: TokenUse | None) -> str | None:
    """Return the rail of the token that was used, else of the challenge that was met; None where there was neither."""
    if use is not None:
        return rail_of(use.token.scheme)
    return None if challenge is None else rail_of(challenge.scheme)


def _as_payment(use: TokenUse) -> Payment:
    token = use.token
    return Payment(payment_hash=token.payment_hash, amount_msat=token.amount_msat, fee_msat=token.fee_msat, reused=not use.bought)


def _trace_payment(use: TokenUse) -> TracePayment:
    token = use.token
    return TracePayment(
        payment_hash=token.payment_hash,
        proof_value=token.preimage.hex() if use.proof else None,
        amount_msat=token.amount_msat,
        fee_msat=token.fee_msat,
        amount_envelope=token.amount_minor_units,
        amount_envelope_currency=token.currency,
        fmv_quality=token.rate_quality,
        settlement_latency_ms=use.settlement_latency_ms,
        reused=use.reused,
    )


def _trace_error(error: BaseException) -> TraceError:
    code = error.code if isinstance(error, RouteweilerError) else type(error).__name__
    return TraceError(code=code, message=redact(str(error))[:MAX_MESSAGE_CHARS])
