"""A wallet that is reached over relays by Nostr Wallet Connect (NIP-47): `NwcClient`.

Knows what callers may ask of the wallet, in their threads: arguments, time limits, errors, and the permit of an order that a caller
no longer waits for. What pays and asks runs in worker threads (`worker_calls`): the order of a payment is left to `order`, the
connections and questions to `relays`, which also drops the secret from a pickle, and what an answer means to `replies`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from ..._core import env_vars
from ..._core.deadline import Deadline, monotonic_s
from ..._core.durations import read_seconds
from ..._core.signals import came_by_signal
from ...errors import ChallengeParseError, FundingError
from ...protocol.invoice import decode_invoice
from ..replies import WalletAnswer, WalletReply, tidy
from ..simple_calls import pay, status_of
from ..wallet import NodeInfo, NodePayment, NotPermittedError, PaymentStatus, derived_identity
from ..worker_calls import NoThreadError, SilentError, WorkerCall, result_of
from . import library, relays, replies
from .environment import from_environment
from .link import Link, LinkError, place_of
from .order import FIRST, Order
from .relays import RelayPool, UnreachableError, Use
from .uri import parse_uri

_Result = TypeVar("_Result")

#: The wait between two questions about a payment in flight, in seconds.
_POLL_S_MIN, _POLL_S_MAX = 0.2, 2.0
#: This part of a call's time, and at most so many seconds, is left for the answer to come out of its thread.
_MARGIN_PART, _MARGIN_S_MAX = 0.1, 0.3
#: How long the wallet may take for one page of its list of payments, in seconds.
PAGE_S_MAX = 10.0
_PAYMENTS_A_PAGE, _PAGES_MAX = 50, 20_000


class NwcClient:
    """A wallet behind Nostr Wallet Connect, by its connection's URI ``nostr+walletconnect://…?relay=wss://…&secret=…``.

    Several ``relay=`` are tried in turn. ``timeout_seconds`` bounds every call, payments included. The wallet must offer
    pay_invoice and lookup_invoice. Its fees can't be limited by an order: see `own_fee_cap_msat`.

    The constructor makes no connection. A client is safe to share between threads and forked processes. A pickled client drops the
    secret, and then refuses to pay. A copy is the same client. Needs the extra ``nwc``.

    Raises: ValueError for a URI that can't be right. Its text doesn't repeat the secret.
    """

    #: Another thread may ask it ahead of a purchase: see `LightningFundingSource.ask_ahead`.
    asked_ahead = True
    #: `get_info` asks what `check_ready` asks: whoever asks for both needs only the one.
    info_proves_ready = True

    def __init__(self, uri: str, *, timeout_seconds: float = 60) -> None:
        read = parse_uri(uri)
        self.wallet_key = read.wallet_key
        self.relays = read.relays
        self.timeout_seconds = read_seconds("timeout_seconds", timeout_seconds)
        self._pool = RelayPool(read.relays, wallet_key=read.wallet_key, secret=read.secret)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> NwcClient:
        """Return a client for the wallet whose URI is in ``NWC_URL`` (of ``environ``, by default `os.environ`).

        Raises: FundingError if it isn't set, or can't be used.
        """
        try:
            return cls(from_environment(os.environ if environ is None else environ))
        except ValueError as error:
            raise FundingError(f"{env_vars.NWC_URL} can't be used: {error}.", advice="Copy it again from the wallet.") from None

    # Paying

    def pay_invoice(self, bolt11: str, *, max_fee_msat: int) -> bytes:
        """Pay an invoice and return the 32-byte preimage. Don't call it twice for one invoice: some wallets would pay twice.

        ``max_fee_msat`` must be at least the wallet's own limit, see `own_fee_cap_msat`.

        Raises: FundingError if nothing was sent, or the wallet refused the order before it began (nothing spent).
        PaymentPendingError if the outcome isn't known in time, or the wallet says "failed" and may take it back: ask
        `track_payment`. PreimageMismatchError if the wallet reports success but its preimage doesn't fit (spent).
        Money: the invoice's amount, and at most ``max_fee_msat`` for routing.
        """
        paid = pay(
            self,
            bolt11,
            max_fee_msat=max_fee_msat,
            timeout_s=self.timeout_seconds,
            wallet="the wallet",
            refuses_seconds=False,
        )
        return paid.payment_preimage

    def send(self, bolt11: str, *, payment_hash: bytes, max_fee_msat: int, timeout_s: float) -> WalletAnswer:
        """Order the payment of ``bolt11``, and wait at most ``timeout_s`` seconds for the outcome. Errors are answers.

        The order is published once, over the relay at which the wallet has just answered. The reply is REFUSED only if the order
        hasn't left, or if the wallet, or each relay that had the order, has refused it and the wallet knows no such payment.
        ``max_fee_msat`` below the wallet's own limit (`own_fee_cap_msat`) is refused, because no order can lower that.

        Money: the invoice's amount, and at most the wallet's own fee limit. After an interrupt the wallet goes on paying.
        """
        if max_fee_msat < 0:
            raise ValueError(f"max_fee_msat is negative: {max_fee_msat}")
        try:
            invoice = decode_invoice(bolt11)
        except ChallengeParseError as error:
            return WalletAnswer(reply=WalletReply.REFUSED, reason=f"the order can't be made: {error.brief}")
        if invoice.payment_hash != payment_hash:
            return WalletAnswer(reply=WalletReply.REFUSED, reason="the invoice has another payment hash")
        own_cap_msat = replies.own_fee_cap_msat(invoice.amount_msat)
        if max_fee_msat < own_cap_msat:
            what = f"the wallet may let routing cost {own_cap_msat} msat, which no order can lower"
            return WalletAnswer(reply=WalletReply.REFUSED, reason=f"{what}, and {max_fee_msat} msat are allowed")
        permit = [FIRST]

        def order(deadline: float, use: Use) -> WalletAnswer:
            return Order(pool=self._pool, bolt11=bolt11, payment_hash=payment_hash, permit=permit, deadline=deadline, use=use).run()

        try:
            answer = self._work(order, timeout_s)
        except Exception as error:  # of whatever kind, the permit shows whether the order may have left
            if came_by_signal(error):
                raise
            reason = error.brief if isinstance(error, FundingError) else f"the answer can't be read: {type(error).__name__}"
            try:
                left = permit.pop()  # taken here, it can't be taken any more before the order leaves
            except IndexError:
                left = None
            return WalletAnswer(reply=WalletReply.REFUSED if left == FIRST else WalletReply.UNKNOWN, reason=reason)
        finally:
            permit.clear()  # after an interrupt too
        if answer.reply in (WalletReply.SUCCEEDED, WalletReply.WRONG_PREIMAGE) and not answer.amount_msat:
            return replace(answer, amount_msat=invoice.amount_msat)
        return answer

    def own_fee_cap_msat(self, bolt11: str, *, timeout_s: float) -> int | None:
        """Return the most that the wallet lets the payment of ``bolt11`` cost: max(10 000 msat, 1 % of the amount).

        That is Alby Hub's rule. NIP-47 has no way to ask for it or to change it. The wallet isn't asked.

        Raises: FundingError for an invoice that can't be read.
        Money: none moves.
        """
        try:
            return replies.own_fee_cap_msat(decode_invoice(bolt11).amount_msat)
        except ChallengeParseError as error:
            raise FundingError(f"This isn't a BOLT-11 invoice that can be paid: {error}.", advice="Ask for another one.") from error

    # Asking: none of these methods can move money

    def track(self, payment_hash: bytes, *, timeout_s: float, follow: bool) -> WalletAnswer:
        """Ask the wallet about the payment with this hash (32 bytes), within ``timeout_s`` seconds. Errors are answers.

        ``follow``: ask again and again while it is in flight, or while the wallet can't be asked.
        """
        deadline, wait_s = Deadline(min(timeout_s, self.timeout_seconds)), _POLL_S_MIN
        last: WalletAnswer | None = None
        while True:
            try:
                self._check_usable()
            except FundingError as error:
                return WalletAnswer(reply=WalletReply.UNKNOWN, reason=error.brief)
            answer = self._asked_once(payment_hash, min(deadline.left_s(), relays.QUESTION_S_MAX))
            if answer.reply is WalletReply.IN_FLIGHT:
                last = answer
            elif answer.reply is not WalletReply.UNKNOWN:
                return answer
            if not follow or deadline.left_s() <= wait_s:
                return last or answer
            deadline.pause(wait_s)
            wait_s = min(2 * wait_s, _POLL_S_MAX)

    def _asked_once(self, payment_hash: bytes, timeout_s: float) -> WalletAnswer:
        try:
            return self._work(lambda deadline, use: self._pool.look_up(payment_hash, deadline, use), timeout_s)
        except FundingError as error:
            return WalletAnswer(reply=WalletReply.UNKNOWN, reason=error.brief)
        except Exception as error:  # no error, of whatever kind, says anything about the payment
            if came_by_signal(error):
                raise
            return WalletAnswer(reply=WalletReply.UNKNOWN, reason=f"the answer can't be read: {type(error).__name__}")

    def track_payment(self, payment_hash: bytes | str) -> PaymentStatus:
        """Return what the wallet knows now of the payment with this hash (32 bytes or 64 hex digits).

        A failure is told as in flight, with its reason, because the wallet may take it back.

        Raises: FundingError if the wallet can't be asked. PreimageMismatchError if its preimage doesn't fit the payment hash.
        ValueError for a hash of another length.
        """
        return status_of(self, payment_hash, timeout_s=self.timeout_seconds, wallet="the wallet")

    def check_ready(self, timeout_s: float) -> None:
        """Return once the wallet has answered, and is known to have the methods that paying needs.

        A wallet that has answered a few seconds ago isn't asked again.

        Raises: FundingError with the cause.
        """
        self._work(lambda deadline, use: self._pool.put_back(self._pool.ready_link(deadline, use)), timeout_s)

    def get_info(self, *, timeout_s: float | None = None) -> NodeInfo:
        """Return the wallet's identity, made from the two keys of the connection, and its network if it tells one.

        Raises: FundingError if the wallet can't be asked, or lacks pay_invoice or lookup_invoice.
        """

        def look(deadline: float, use: Use) -> NodeInfo:
            link = self._pool.ready_link(deadline, use, asks=True)
            info = link.notes.get("info") or {}
            self._pool.put_back(link)
            alias, network = info.get("alias"), info.get("network")
            return NodeInfo(
                identity_pubkey=derived_identity("nwc", self.wallet_key + self._pool.keyring().own_key),
                alias=tidy(alias) if isinstance(alias, str) else "",
                network=replies.network_name(network),
                block_height=height if isinstance(height := info.get("block_height"), int) else 0,
            )

        return self._work(look, self.timeout_seconds if timeout_s is None else timeout_s)

    def get_node_pubkey(self) -> str:
        """Return the wallet's identity, 66 hex digits. Raises: FundingError if the wallet can't be asked."""
        return self.get_info().identity_pubkey

    def get_methods(self, *, timeout_s: float | None = None) -> frozenset[str]:
        """Return the names of the requests that this connection may make, as the wallet tells them.

        Raises: FundingError if the wallet can't be asked.
        """

        def look(deadline: float, use: Use) -> frozenset[str]:
            link = self._pool.ready_link(deadline, use, asks=True)
            methods: frozenset[str] = link.notes["methods"]
            self._pool.put_back(link)
            return methods

        return self._work(look, self.timeout_seconds if timeout_s is None else timeout_s)

    def relay_faults(self, *, timeout_s: float) -> dict[str, str | None]:
        """Return for each relay why it can't be reached; None if it can. Whether the wallet is there is another question.

        Raises: FundingError if that can't be found out.
        """

        def look(deadline: float, use: Use) -> dict[str, str | None]:
            faults: dict[str, str | None] = {}
            for place, url in enumerate(self.relays):
                now = monotonic_s()
                try:
                    self._pool.put_back(use(self._pool.take(url, now + (deadline - now) / (len(self.relays) - place))))
                    faults[url] = None
                except LinkError as error:
                    faults[url] = error.reason
            return faults

        return self._work(look, timeout_s)

    def spendable_msat(self, *, timeout_s: float) -> int | None:
        """Return the wallet's balance in msat; None if the connection may not ask. A budget of the connection may be smaller.

        Raises: FundingError if the wallet can't be asked.
        """
        try:
            result = self._result("get_balance", {}, timeout_s)
        except NotPermittedError:
            return None
        return replies.msat_of(result.get("balance"))

    def list_payments(self) -> Iterator[NodePayment]:
        """Yield the outgoing payments that the wallet knows, newest first. Asks page by page.

        Raises: FundingError if the wallet can't be asked, or doesn't permit this connection to ask.
        """
        seen: set[str] = set()
        known: set[str] = set()
        offset = 0
        for _ in range(_PAGES_MAX):
            params = {"type": "outgoing", "unpaid": True, "limit": _PAYMENTS_A_PAGE, "offset": offset}
            page = self._result("list_transactions", params, PAGE_S_MAX).get("transactions")
            if not isinstance(page, list | None):
                raise FundingError("The wallet's list of payments can't be read.", advice="Look at the wallet itself.")
            if page is None or known.issuperset(names := set(map(replies.entry_name, page))):
                return  # nothing, or nothing new: a wallet that doesn't know offsets sends the same page again
            known |= names
            offset += len(page)
            for payment in map(replies.payment_of, page):
                # A payment that begins meanwhile moves the others to the next page.
                if payment is not None and payment.payment_hash not in seen:
                    seen.add(payment.payment_hash)
                    yield payment

    def close(self) -> None:
        """Close the idle connections. May be called twice; a later call connects anew."""
        self._pool.close()

    # In the caller's thread

    def _check_usable(self) -> None:
        """Import what is needed. Raises: FundingError if that isn't installed, or this client has lost its secret."""
        if not self._pool.has_secret:
            raise FundingError(
                "This wallet client was unpickled, and the secret of its URI isn't pickled.",
                advice="Make it anew: NwcClient(uri), or set NWC_URL.",
            )
        library.nostr()
        library.websocket()

    def _work(self, do: Callable[[float, Use], _Result], timeout_s: float) -> _Result:
        """Run ``do`` in a worker thread. It is given its deadline, and is to pass each connection that it uses to the function.

        Raises: FundingError. Whatever else ``do`` raises.
        """
        timeout_s = min(timeout_s, self.timeout_seconds)
        self._check_usable()
        deadline = monotonic_s() + timeout_s - min(timeout_s * _MARGIN_PART, _MARGIN_S_MAX)

        def run(call: WorkerCall[_Result]) -> _Result:
            used: list[Link] = []

            def use(link: Link) -> Link:
                used[:] = [link]
                return link

            call.cancel = lambda: list(map(Link.abandon, list(used)))
            return do(deadline, use)

        try:
            return result_of(run, timeout_s=max(timeout_s, 0.0))
        except NoThreadError:
            raise FundingError("The system can't start another thread.", advice="End some of the program's threads.") from None
        except SilentError:
            raise FundingError("The wallet can't be asked in time.", advice="Look whether its relays can be reached.") from None
        except UnreachableError as error:
            raise FundingError(
                f"The wallet can't be reached: {'; '.join(error.reasons) or 'no time is left'}.",
                advice="Check that the wallet is running and still has this connection, and that its relays can be reached.",
            ) from None

    def _result(self, method: str, params: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        response = self._work(lambda deadline, use: self._pool.ask_any(method, params, deadline, use), timeout_s)
        error = replies.error_of(response)
        if error is None:
            result: dict[str, Any] = response["result"]
            return result
        kind = NotPermittedError if error[0] in replies.NOT_PERMITTED else FundingError
        raise kind(
            f"The wallet doesn't answer {method}: {replies.reason_of(error)}.",
            advice=f"Make a connection in the wallet that permits {method}." if kind is NotPermittedError else "Try again.",
        )

    def __repr__(self) -> str:
        return f"NwcClient({self.wallet_key[:8]}… over {', '.join(map(place_of, self.relays))})"

    def __copy__(self) -> NwcClient:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> NwcClient:
        return self
