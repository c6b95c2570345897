"""What a call has to account for: the tokens that it used, the payments that it made, and the trace events that it writes.

A record is made when there is something to account for. A free call without a trace sink has none. Which call of a process reports
a payment is decided in `payments.report_claims`; how an event is written is left to `trace`.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING

import requests

from .._core.log import log
from .._core.urls import without_userinfo, without_userinfos
from ..errors import LedgerError, PreimageMismatchError, RouteweilerError
from ..ledger.ledger import CLAIM_S
from ..payments.report_claims import claim, claim_in, release, this_claimant
from ..payments.token import Token
from ..payments.types import Payment
from ..protocol.schemes import rail_of, redact, secrets_of
from ..trace.schema import TraceChallenge, TraceError, TraceEvent, TraceOutcome, TracePayment, new_id

if TYPE_CHECKING:
    from ..config.payer import Payer
    from ..ledger.types import PaymentRow
    from ..payments.types import Purchase, TokenRequest

#: An error text in the trace is cut after this many characters.
MAX_MESSAGE_CHARS = 2_000


@dataclass(kw_only=True)
class TokenUse:
    """A token that a hop of the call used.

    ``bought``: this call carried the token's payment to its end. ``reused``: the call doesn't report the payment, so that the trace
    event adds nothing to any sum. ``proof``: there is a preimage. ``settlement_latency_ms`` is how long this call took to settle
    the payment, None if it didn't settle it. ``is_guess``: the token went along though nobody had asked for one, so it isn't known
    whether it opened the page.
    """

    token: Token
    url: str
    bought: bool
    reused: bool
    challenge: TraceChallenge | None = None
    settlement_latency_ms: int | None = None
    proof: bool = True
    is_guess: bool = False


@dataclass(kw_only=True)
class CallRecord:
    """What a call has met and done so far: its challenge, its tokens, its payments. `finish` writes it to the trace.

    ``service_started_s`` is the time when a request was last sent again, in unix seconds; None if none was.
    """

    payer: Payer
    method: str
    url: str
    started_s: float = field(default_factory=time.time)
    challenge: TraceChallenge | None = None
    uses: list[TokenUse] = field(default_factory=list)
    service_started_s: float | None = None
    #: The error of a 402 that the caller got as a response, since the payer's ``unpayable`` is "return". The trace shows it.
    noted: RouteweilerError | None = None
    #: For each response of the call, by its id: the responses that were superseded before it in the same hop.
    superseded: dict[int, list[requests.Response]] = field(default_factory=dict)
    #: The (origin, scope) pairs that the call has bought tokens for. It buys none of them twice, over however many redirects.
    bought_scopes: set[tuple[str, str]] = field(default_factory=set)
    #: The (origin, digest) pairs of the pages that the call has bought tokens for. It buys for none of them twice either.
    bought_pages: set[tuple[str, str]] = field(default_factory=set)
    #: Whether the call has paid for a charge. Then it pays for nothing else.
    bought_charge: bool = False
    #: The agent whose call it was, if that isn't the payer's: a recovery reports what another agent has begun.
    agent_id: str | None = None
    #: True once a token was sent in place of the caller's own Authorization header.
    authorization_replaced: bool = False
    _started_monotonic_s: float = field(default_factory=time.monotonic)
    #: The process that began the call. After a fork in its midst, two processes finish it.
    _pid: int = field(default_factory=os.getpid)

    def challenged(self, token_request: TokenRequest) -> None:
        """Note the challenge that a hop was answered with. The trace shows the last one."""
        invoice = token_request.challenge.invoice
        self.challenge = TraceChallenge(
            scheme=token_request.challenge.scheme,
            url=without_userinfo(token_request.url),
            amount_msat=invoice.amount_msat,
            network=invoice.network,
            payment_hash=invoice.payment_hash.hex(),
            expires_at=datetime.fromtimestamp(_ends_s(token_request), tz=timezone.utc),
            scope=token_request.scope,
            description=invoice.description,
        )

    def add_purchase(self, purchase: Purchase, url: str) -> Payment:
        """Add the token of ``purchase``, which the checkout returned for a hop to ``url``. Return its payment.

        The call reports the payment if it carried the payment to its end (``purchase.bought``), or if no trace has reported it yet.
        """
        return self._add_use(purchase.token, url, bought=purchase.bought, latency_ms=purchase.settlement_latency_ms)

    def add_reuse(self, token: Token, url: str, *, is_guess: bool = False) -> Payment:
        """Add ``token``, which an earlier call bought and a hop to ``url`` used, as a guess or not. Return its payment.

        If no trace has reported the payment, because a crash came before, this call reports it.
        """
        return self._add_use(token, url, bought=False, latency_ms=None, is_guess=is_guess)

    def _add_use(self, token: Token, url: str, *, bought: bool, latency_ms: int | None, is_guess: bool = False) -> Payment:
        """Add a use of ``token``, unless the call has used it before, and return its payment."""
        for use in self.uses:
            if use.token.payment_hash == token.payment_hash:
                return _as_payment(use)
        reports = bought or (not token.reported and self._claim_if_unreported(token))
        use = TokenUse(
            token=token,
            url=without_userinfo(url),
            bought=bought,
            reused=not reports,
            challenge=self.challenge,
            settlement_latency_ms=latency_ms,
            is_guess=is_guess,
        )
        self.uses.append(use)
        return _as_payment(use)

    def is_untraced(self, token: Token) -> bool:
        """Return whether this call has paid for ``token`` and has no trace, so that none will report the payment."""
        return self.payer.trace_sink is None and any(
            use.bought and not use.reused and use.token.payment_hash == token.payment_hash for use in self.uses
        )

    def note_untraced(self, token: Token) -> None:
        """Note that the ledger has it already that no trace will report the payment of ``token``."""
        for use in self.uses:
            if use.token.payment_hash == token.payment_hash:
                use.token = replace(use.token, reported=True)

    def _claim_if_unreported(self, token: Token) -> bool:
        """Claim to report the payment of ``token``. Return False if it is reported, or another call is about to report it."""
        if not claim(token.payment_hash):
            return False
        try:
            row = self.payer.ledger.payment(token.payment_hash)  # ``token`` may be older than what the ledger says
            if row is not None and not row.reported:
                row = claim_unreported(self.payer, row)
                if row is not None:
                    return True
        except LedgerError as error:  # the caller gets the page all the same; the next call that uses the token reports the payment
            log.warning("whether payment %s has been reported can't be looked up: %s", token.payment_hash, error)
            row = None
        release(token.payment_hash)
        if row is not None:
            self.payer.token_cache.note(token, reported=True)
        return False

    @property
    def spent_msat(self) -> int:
        """What the call has paid so far, routing fees included, in msat."""
        return sum(use.token.amount_msat + use.token.fee_msat for use in self.uses if use.bought)

    def complete_history(self, response: requests.Response) -> None:
        """Put the superseded 402s of each hop into ``response.history``, before that hop's response.

        `requests` sets ``history`` anew at the end of a call, even if it follows no redirect, so it is completed here.
        """
        if not self.superseded:
            return
        listed = {id(each) for each in response.history}
        history: list[requests.Response] = []
        for hop_response in [*response.history, response]:
            history += [each for each in self.superseded.get(id(hop_response), ()) if id(each) not in listed]
            history += [hop_response] if hop_response is not response else []
        response.history = history

    def finish(self, response: requests.Response | None, error: BaseException | None) -> None:
        """Write the call's trace events, note in the ledger that its payments are reported, and release its claims.

        ``response`` and ``error`` are what the call ended with. Raises nothing: the call matters more than its trace.
        """
        try:
            self._renew_claims()
            if not self._write_events(response, error or self.noted):
                self._release_in_ledger()  # the sink has warned; the next call that uses a token reports its payment
                return
            for use in self.uses:
                if not use.reused and not use.token.reported:
                    self._note_reported(use.token)
            if isinstance(error, PreimageMismatchError) and error.payment_hash is not None and self.payer.trace_sink is None:
                # Without a sink there are no events, so `_report_unproved` hasn't added this payment to the uses.
                self.payer.ledger.mark(error.payment_hash, reported=True, traced=False)
        except Exception as problem:  # noqa: BLE001  (the call, its payment and its response matter more than its trace)
            log.warning(
                "a call's trace event, or the note that its payment is reported, is lost; it may be reported once more: %s", problem
            )
        finally:
            for use in self.uses:
                if not use.reused:
                    release(use.token.payment_hash)
            if isinstance(error, RouteweilerError) and error.payment_hash is not None:
                release(error.payment_hash)

    def _renew_claims(self) -> None:
        """Make sure that this call may still report its payments.

        After a very long call, another one may have taken that over. After a fork, the parent process may have the claim.
        """
        reporting = [use for use in self.uses if not use.reused]
        if not reporting:
            return
        is_recent = max(time.time() - self.started_s, time.monotonic() - self._started_monotonic_s) < CLAIM_S / 2
        if is_recent and os.getpid() == self._pid:
            return
        for use in reporting:
            if self.payer.ledger.claim_report(use.token.payment_hash, this_claimant()) is None:
                use.reused = True

    def _release_in_ledger(self) -> None:
        """Let any process report this call's payments, which this call couldn't."""
        for use in self.uses:
            if not use.reused:
                self.payer.ledger.release_report(use.token.payment_hash, this_claimant())

    def _write_events(self, response: requests.Response | None, error: BaseException | None) -> bool:
        """Write the trace events. Return True if all were written or there is no trace sink."""
        sink = self.payer.trace_sink
        written = [sink is None or sink.emit(event) is not False for event in (self._events(response, error) if sink else ())]
        return all(written)

    def _note_reported(self, token: Token) -> None:
        """Write to ledger and token cache that the payment of ``token`` is reported."""
        sink = self.payer.trace_sink
        traced = sink is not None and getattr(sink, "keeps_events", True)  # a program's own sink may not have it
        self.payer.ledger.mark(token.payment_hash, reported=True, traced=traced)
        self.payer.token_cache.note(token, reported=True)

    def _events(self, response: requests.Response | None, error: BaseException | None) -> list[TraceEvent]:
        """Return the call's own event, and a further one for each payment after the first."""
        if isinstance(error, PreimageMismatchError):
            self._report_unproved(error)
        paid = [use for use in self.uses if not use.reused]
        main = paid[0] if paid else (self.uses[0] if self.uses else None)
        request_id = new_id()
        events = [self._event(request_id, None, main, self.url, response, error)]
        events += [self._event(new_id(), request_id, use, use.url, response, error) for use in paid[1:]]
        return events

    def _report_unproved(self, error: PreimageMismatchError) -> None:
        """Add a payment that was booked without a preimage, so that it is reported: it moved money, though it gave no token.

        Does nothing if the payment is reported already, or another call is about to report it.
        """
        payment_hash = error.payment_hash or ""
        if any(use.token.payment_hash == payment_hash for use in self.uses) or not claim(payment_hash):
            return
        # Read after the claim: a moment ago, another call may have reported the payment and released its own claim.
        row = self.payer.ledger.payment(payment_hash)
        if row is not None and row.settled_at is not None and not row.reported:
            row = claim_unreported(self.payer, row)
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
        if challenge is not None:
            challenge = replace(challenge, url=self._without_tokens(challenge.url))
        return TraceEvent(
            request_id=request_id,
            parent_request_id=parent,
            agent_id=self.payer.agent_id if self.agent_id is None else self.agent_id,
            session_id=self.payer.session_id,
            envelope_id=self.payer.envelope_id,
            policy_hash=self.payer.policy_hash,
            url=self._without_tokens(without_userinfo(url)),
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
                error=None if error is None else self._trace_error(error),
            ),
            timestamp_start=datetime.fromtimestamp(self.started_s, tz=timezone.utc),
            timestamp_end=datetime.fromtimestamp(now_s, tz=timezone.utc),
        )

    def _trace_error(self, error: BaseException) -> TraceError:
        code = error.code if isinstance(error, RouteweilerError) else type(error).__name__
        message = without_userinfos(redact(self._without_tokens(str(error))))
        return TraceError(code=code, message=message[:MAX_MESSAGE_CHARS])

    def _without_tokens(self, text: str) -> str:
        """Return ``text`` without the call's tokens, which a server may have put into a redirect's URL."""
        if not self.uses:
            return text
        from ..protocol.token_search import without_tokens

        used = [use.token for use in self.uses if use.proof]
        tokens = frozenset().union(*(secrets_of(token.scheme, token.token, token.preimage) for token in used))
        return without_tokens(text, tokens, by_value=True) if tokens else text


def claim_unreported(payer: Payer, row: PaymentRow) -> PaymentRow | None:
    """Claim in the ledger to report ``row``, which another call has settled and not reported. Return the row, or None.

    None means that another process is about to report it, or that it is reported: the call that settled it may have died between
    writing its event and noting that in the ledger, so the trace is asked.

    Raises: LedgerError.
    """
    claimed_row = claim_in(payer.ledger, row)
    reports = getattr(payer.trace_sink, "reports", None)  # a program's own sink may not have it
    if claimed_row is None or reports is None:
        return claimed_row
    try:
        if not reports(row.payment_hash):
            return claimed_row
    except Exception as error:  # noqa: BLE001 - a program's own sink may raise anything
        log.warning("whether the trace reports payment %s can't be asked: %s", row.payment_hash, error)
        return claimed_row
    payer.ledger.mark(row.payment_hash, reported=True)
    return None


def _ends_s(request: TokenRequest) -> float:
    """Return the unix time in seconds after which the challenge of ``request`` can't be paid any more."""
    challenge = request.challenge
    is_sooner = challenge.expires_at is not None and challenge.expires_at < challenge.invoice.expires_at
    return challenge.expires_at if is_sooner and challenge.expires_at is not None else challenge.invoice.expires_at


def _rail(challenge: TraceChallenge | None, use: TokenUse | None) -> str | None:
    """Return the rail of the token that was used, else the rail of the challenge; None if there was neither.

    A token that went along as a guess answered no challenge, so no rail was selected for it.
    """
    if use is not None and not use.is_guess:
        return rail_of(use.token.scheme)
    return None if challenge is None else rail_of(challenge.scheme)


def _as_payment(use: TokenUse) -> Payment:
    token = use.token
    return Payment(
        payment_hash=token.payment_hash,
        amount_msat=token.amount_msat,
        fee_msat=token.fee_msat,
        reused=not use.bought,
        scheme=token.scheme,
    )


def _trace_payment(use: TokenUse) -> TracePayment:
    token = use.token
    return TracePayment(
        payment_hash=token.payment_hash,
        # The preimage of a charge is a secret: it is all that the server asks for.
        proof_value=token.preimage.hex() if use.proof and not token.single_use else None,
        amount_msat=token.amount_msat,
        fee_msat=token.fee_msat,
        amount_envelope=token.amount_minor_units,
        amount_envelope_currency=token.currency,
        fmv_quality=token.rate_quality,
        settlement_latency_ms=use.settlement_latency_ms,
        reused=use.reused,
    )
