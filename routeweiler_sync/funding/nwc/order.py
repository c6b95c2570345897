"""The order of one payment, in its worker thread: published once, and its outcome found out.

Knows when an order may leave, over which relay it may be repeated, and when the wallet is asked about the payment. What an answer
proves is left to `replies`, connections and questions to `relays`, and the caller, who may leave at any moment, to `client`.

The permit makes sure that no order leaves once the caller was told that none has. It is a list of one item, which the caller and
the worker thread share: whoever pops the item decides, and both may try at the same moment. It is a list, and not a class of its
own, because an interrupt of the caller can't come between the steps of ``pop`` or ``clear``.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from ..._core.deadline import monotonic_s
from ..replies import WalletAnswer, WalletReply, tidy
from . import relays, replies
from .events import Request
from .link import Link, LinkError
from .relays import RelayPool, UnreachableError, Use
from .talk import NoAnswerError, RelayRefusedError, answer_to, leave, publish

#: How long an order's answer may take before the wallet is asked about the payment, in seconds; then twice as long, up to the last.
LOOK_AFTER_S, LOOK_S_MAX = 4.0, 30.0
#: How long the wallet may take to tell the fee of a payment whose preimage it has sent, in seconds.
FEE_S_MAX = 5.0
#: The wait before a look-up is repeated that the wallet has refused, in seconds. It may take few requests a second.
_LOOK_AGAIN_S = 1.0
#: What an order's permit allows. A relay that has had the order may have passed it on, whatever it says.
FIRST, AGAIN = "to send the order, once", "to send it over another relay"
#: Look-ups that show a payment, which an order must have started.
_UNDER_WAY = frozenset({WalletReply.SUCCEEDED, WalletReply.WRONG_PREIMAGE, WalletReply.IN_FLIGHT})


class _TooLateError(Exception):
    """The caller no longer waits, so the order mustn't leave any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """The order to pay ``bolt11``, whose payment hash is ``payment_hash`` (32 bytes), until ``deadline`` (monotonic clock).

    ``permit`` is ``[FIRST]`` at first: see the module. ``use`` is passed each connection.
    """

    pool: RelayPool
    bolt11: str
    payment_hash: bytes
    permit: list[str]
    deadline: float
    use: Use

    def run(self) -> WalletAnswer:
        """Publish the order once, and return what is known of it then. Whoever has taken ``permit`` may send it.

        Raises: FundingError if the wallet answers, and can't be used. Whatever is raised, the permit shows whether the order
        may have left.
        Money: the invoice's amount, and at most the wallet's own fee limit.
        """
        permit, deadline, taken = self.permit, self.deadline, False

        def take_permit() -> None:
            nonlocal taken
            try:
                permit.pop()
            except IndexError:
                raise _TooLateError from None
            taken = True

        request: Request | None = None
        reasons: list[str] = []
        tried: set[str] = set()
        was_offered = False
        while True:
            try:
                link = self.pool.ready_link(deadline, self.use, without=tried)
            except UnreachableError as error:
                found = self._found("; ".join(reasons)) if was_offered else None
                return found or _refused("; ".join([*reasons, *error.reasons]) or "no time is left")
            tried.add(link.url)
            try:
                if request is None:  # its id doesn't change with the relay: a wallet handles one event once
                    lives_s = max(deadline - monotonic_s(), 1.0)
                    nip44 = self.pool.speaks_nip44(link)
                    request = self.pool.keyring().request("pay_invoice", {"invoice": self.bolt11}, nip44=nip44, lives_s=lives_s)
                publish(link, self.pool.keyring(), request, deadline, before_sending=take_permit)
                return self._outcome(link, request)
            except _TooLateError:
                self.pool.put_back(link)
                return _refused("no time was left to send the order")
            except (RelayRefusedError, LinkError) as error:
                link.close()
                has_left = error.sent if isinstance(error, LinkError) else not error.never_arrived
                if has_left:
                    return WalletAnswer(reply=WalletReply.UNKNOWN, reason=error.reason)
                if taken:  # and given back, for nobody has the order
                    was_offered = was_offered or isinstance(error, RelayRefusedError)
                    taken, permit[:] = False, [AGAIN if was_offered else FIRST]
                if link.is_used and isinstance(error, LinkError):
                    tried.discard(link.url)  # it was idle, and has ended meanwhile: a new connection may work
                else:
                    reasons.append(error.reason)

    def _found(self, refusals: str) -> WalletAnswer | None:
        """Return what is known of an order that relays have refused; None if the wallet says that it has no such payment."""
        try:
            answer = self.pool.look_up(self.payment_hash, min(self.deadline, monotonic_s() + FEE_S_MAX), self.use)
        except UnreachableError:
            return WalletAnswer(reply=WalletReply.UNKNOWN, reason=tidy(f"{refusals}; and the wallet can't be asked about it"))
        return None if replies.knows_none(answer) else answer

    def _outcome(self, link: Link, request: Request) -> WalletAnswer:
        """Wait for the answer to a published order, and return what it proves.

        Relays keep no answers, so one that was lost never comes. Where it is late, the wallet is asked about the payment.

        Raises: LinkError. RelayRefusedError, if the relay refuses the order before anything else.
        """
        deadline, wait_s, found = self.deadline, LOOK_AFTER_S, None
        while True:
            try:
                response = answer_to(link, self.pool.keyring(), request, min(deadline, monotonic_s() + wait_s))
            except NoAnswerError as error:
                if monotonic_s() >= deadline:
                    link.close()
                    return found or WalletAnswer(reply=WalletReply.UNKNOWN, reason=error.reason)
            except RelayRefusedError as error:
                if wait_s == LOOK_AFTER_S:
                    raise
                link.close()
                return found or WalletAnswer(reply=WalletReply.UNKNOWN, reason=error.reason)
            else:
                leave(link, request, deadline)
                return self._checked(replies.read_pay(response, self.payment_hash), link)
            wait_s = min(2 * wait_s, LOOK_S_MAX)
            try:
                looked = self.pool.ask(
                    link, "lookup_invoice", {"payment_hash": self.payment_hash.hex()}, min(deadline, monotonic_s() + wait_s)
                )
            except NoAnswerError:
                continue
            except (LinkError, RelayRefusedError) as error:
                link.close()
                return found or WalletAnswer(reply=WalletReply.UNKNOWN, reason=error.reason)
            answer = replies.read_lookup(looked, self.payment_hash)
            if answer.reply in _UNDER_WAY - {WalletReply.IN_FLIGHT}:
                leave(link, request, deadline)
                self.pool.put_back(link)
                return answer
            found = answer if answer.reply is WalletReply.IN_FLIGHT else None

    def _checked(self, told: WalletAnswer, link: Link) -> WalletAnswer:
        """Return what the wallet's answer to an order proves, once it was asked about the payment where that can tell more."""
        deadline = self.deadline
        link.notes["heard_at"] = monotonic_s()
        if told.reply is WalletReply.SUCCEEDED:
            if told.fee_msat is not None:
                self.pool.put_back(link)
                return told
            deadline = min(deadline, monotonic_s() + FEE_S_MAX)
        if told.reply is WalletReply.EXISTS:
            self.pool.put_back(link)
            return told
        until = min(deadline, monotonic_s() + relays.QUESTION_S_MAX)
        params = {"payment_hash": self.payment_hash.hex()}
        try:
            found = replies.read_lookup(self.pool.ask(link, "lookup_invoice", params, until), self.payment_hash)
            while replies.proves_too_little(told, found) and until - monotonic_s() > 2 * _LOOK_AGAIN_S:
                time.sleep(_LOOK_AGAIN_S)
                found = replies.read_lookup(self.pool.ask(link, "lookup_invoice", params, until), self.payment_hash)
        except (LinkError, RelayRefusedError, NoAnswerError):
            link.abandon()
            if told.reply is not WalletReply.REFUSED:
                return told
            # The order may have been delivered twice, and its first copy be under way: a refusal alone proves nothing.
            try:
                return replies.combined(told, self.pool.look_up(self.payment_hash, deadline, self.use))
            except UnreachableError:
                reason = tidy(f"{told.reason}; and the wallet can't be asked about it")
                return WalletAnswer(reply=WalletReply.UNKNOWN, reason=reason)
        self.pool.put_back(link)
        return replies.combined(told, found)


def _refused(reason: str) -> WalletAnswer:
    return WalletAnswer(reply=WalletReply.REFUSED, reason=tidy(f"the order didn't reach the wallet: {reason}"))
