"""A wallet that is reached over relays by Nostr Wallet Connect (NIP-47): `NwcClient`.

Knows which requests pay, ask and track, in what order, and over which relay. A request over one relay is left to `talk`, and what
an answer means to `replies`. All of it runs in worker threads (`worker_calls`), each with a connection of its own, which it puts
back for the next one.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar

from ..._core import env_vars
from ..._core.deadline import Deadline, monotonic_s
from ..._core.durations import read_seconds
from ...errors import ChallengeParseError, FundingError
from ...protocol.invoice import decode_invoice
from ..replies import WalletAnswer, WalletReply, tidy
from ..simple_calls import pay, status_of
from ..wallet import NodeInfo, NodePayment, NotPermittedError, PaymentStatus, derived_identity, network_of
from ..worker_calls import NoThreadError, SilentError, WorkerCall, result_of
from . import library, replies, rights
from .environment import from_environment
from .events import Keyring, Request, WalletNotes
from .link import Link, LinkError, place_of
from .talk import NoAnswerError, RelayRefusedError, answer_to, ask, leave, publish, wallet_notes
from .uri import parse_uri

_Result = TypeVar("_Result")

TIMEOUT_S_MAX = 7 * 86_400
#: How long an order's answer may take before the wallet is asked about the payment, in seconds; then twice as long, up to the last.
LOOK_AFTER_S, LOOK_S_MAX = 4.0, 30.0
#: A wallet that has answered over a connection this short a time ago isn't asked again before an order, in seconds.
READY_S = 10.0
#: How long a wallet may take to say that it is there, in seconds. Its service is down if it doesn't.
HELLO_S_MAX = 20.0
#: How long one question about a payment may take, in seconds; more are asked while there is time.
QUESTION_S_MAX = 20.0
#: How long the wallet may take to tell the fee of a payment whose preimage it has sent, in seconds.
FEE_S_MAX = 5.0
#: A connection that was idle for longer isn't used again, in seconds; relays drop them about then.
IDLE_S_MAX = 50.0
#: A connection that was idle for longer must answer a ping first, in seconds. So must one on which anything has come: its end, too.
PING_AFTER_S = 1.0
#: How many idle connections are kept.
IDLE_LINKS_MAX = 8
#: The wait between two questions about a payment in flight, in seconds.
_POLL_S_MIN, _POLL_S_MAX = 0.2, 2.0
#: The wait before a look-up is repeated that the wallet has refused, in seconds. It may take few requests a second.
_LOOK_AGAIN_S = 1.0
#: This part of a call's time, and at most so many seconds, is left for the answer to come out of its thread.
_MARGIN_PART, _MARGIN_S_MAX = 0.1, 0.3
#: How long the wallet may take for one page of its list of payments, in seconds.
PAGE_S_MAX = 10.0
_PAYMENTS_A_PAGE, _PAGES_MAX = 50, 20_000
_METHODS_MAX = 64
#: What an order's permit allows. A relay that has had the order may have passed it on, whatever it says.
_FIRST, _AGAIN = "to send the order, once", "to send it over another relay"
#: Look-ups that show a payment, which an order must have started.
_UNDER_WAY = frozenset({WalletReply.SUCCEEDED, WalletReply.WRONG_PREIMAGE, WalletReply.IN_FLIGHT})


class _TooLateError(Exception):
    """The caller no longer waits, so the order mustn't leave any more."""


class _StaleError(LinkError):
    """A connection that was idle has ended meanwhile. A new one may work."""


class _UnreachableError(Exception):
    """The wallet answers over no relay."""

    def __init__(self, reasons: list[str]) -> None:
        super().__init__()
        self.reasons = reasons


class _Forked:
    """What a client has open, for one process: idle connections, by relay, and the keys that nostr-sdk holds."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.idle: deque[Link] = deque()
        self.keyring: Keyring | None = None
        #: The relay over which the wallet has answered last.
        self.preferred: str | None = None
        #: Whether the wallet has said that it reads NIP-44. A relay that hides its info event can't talk it out of that.
        self.nip44 = False


class NwcClient:
    """A wallet behind Nostr Wallet Connect, by its connection's URI ``nostr+walletconnect://…?relay=wss://…&secret=…``.

    Several ``relay=`` are tried in turn. ``timeout_seconds`` bounds every call, payments included. The wallet must offer
    pay_invoice and lookup_invoice. Its fees can't be limited by an order: see `own_fee_cap_msat`.

    The constructor makes no connection. A client is safe to share between threads and forked processes. A pickled client drops the
    secret, and then refuses to pay. A copy is the same client. Needs the extra ``nwc``.

    Raises: ValueError for a URI that can't be right. Its text doesn't repeat the secret.
    """

    def __init__(self, uri: str, *, timeout_seconds: float = 60) -> None:
        read = parse_uri(uri)
        self.wallet_key = read.wallet_key
        self.relays = read.relays
        self.timeout_seconds = read_seconds("timeout_seconds", timeout_seconds, TIMEOUT_S_MAX)
        self._secret: str | None = read.secret
        self._open: _Forked | None = None

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
        permit = [_FIRST]

        def order(deadline: float, use: Callable[[Link], Link]) -> WalletAnswer:
            return self._order(bolt11, payment_hash, permit, deadline, use)

        try:
            answer = self._work(order, timeout_s)
        except Exception as error:  # noqa: BLE001 - of whatever kind, the permit shows whether the order may have left
            reason = error.brief if isinstance(error, FundingError) else f"the answer can't be read: {type(error).__name__}"
            try:
                left = permit.pop()  # taken here, it can't be taken any more before the order leaves
            except IndexError:
                left = None
            return WalletAnswer(reply=WalletReply.REFUSED if left == _FIRST else WalletReply.UNKNOWN, reason=reason)
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
            answer = self._asked_once(payment_hash, min(deadline.left_s(), QUESTION_S_MAX))
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
            return self._work(lambda deadline, use: self._look_up(payment_hash, deadline, use), timeout_s)
        except FundingError as error:
            return WalletAnswer(reply=WalletReply.UNKNOWN, reason=error.brief)
        except Exception as error:  # noqa: BLE001 - no error, of whatever kind, says anything about the payment
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
        self._work(lambda deadline, use: self._put_back(self._ready_link(deadline, use)), timeout_s)

    def get_info(self, *, timeout_s: float | None = None) -> NodeInfo:
        """Return the wallet's identity, made from the two keys of the connection, and its network if it tells one.

        Raises: FundingError if the wallet can't be asked, or lacks pay_invoice or lookup_invoice.
        """

        def look(deadline: float, use: Callable[[Link], Link]) -> NodeInfo:
            link = self._ready_link(deadline, use, asks=True)
            info = link.notes.get("info") or {}
            self._put_back(link)
            alias, network = info.get("alias"), info.get("network")
            return NodeInfo(
                identity_pubkey=derived_identity("nwc", self.wallet_key + self._keyring().own_key),
                alias=tidy(alias) if isinstance(alias, str) else "",
                network=_network(network),
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

        def look(deadline: float, use: Callable[[Link], Link]) -> frozenset[str]:
            link = self._ready_link(deadline, use, asks=True)
            methods: frozenset[str] = link.notes["methods"]
            self._put_back(link)
            return methods

        return self._work(look, self.timeout_seconds if timeout_s is None else timeout_s)

    def relay_faults(self, *, timeout_s: float) -> dict[str, str | None]:
        """Return for each relay why it can't be reached; None if it can. Whether the wallet is there is another question.

        Raises: FundingError if that can't be found out.
        """

        def look(deadline: float, use: Callable[[Link], Link]) -> dict[str, str | None]:
            faults: dict[str, str | None] = {}
            for place, url in enumerate(self.relays):
                now = monotonic_s()
                try:
                    self._put_back(use(self._take(url, now + (deadline - now) / (len(self.relays) - place))))
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
            if page is None or known.issuperset(names := set(map(_name_of, page))):
                return  # nothing, or nothing new: a wallet that doesn't know offsets sends the same page again
            known |= names
            offset += len(page)
            for payment in map(_payment, page):
                # A payment that begins meanwhile moves the others to the next page.
                if payment is not None and payment.payment_hash not in seen:
                    seen.add(payment.payment_hash)
                    yield payment

    def close(self) -> None:
        """Close the idle connections. May be called twice; a later call connects anew."""
        opened, self._open = self._open, None
        if opened is not None and opened.pid == os.getpid():
            while opened.idle:
                with suppress(IndexError):
                    opened.idle.popleft().close()

    # In worker threads

    def _order(
        self, bolt11: str, payment_hash: bytes, permit: list[str], deadline: float, use: Callable[[Link], Link]
    ) -> WalletAnswer:
        """Publish one order, and return what is known of it then. Whoever has taken ``permit`` may send it."""
        taken = False

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
                link = self._ready_link(deadline, use, without=tried)
            except _UnreachableError as error:
                found = self._found(payment_hash, deadline, use, "; ".join(reasons)) if was_offered else None
                return found or _refused("; ".join([*reasons, *error.reasons]) or "no time is left")
            tried.add(link.url)
            try:
                if request is None:  # its id doesn't change with the relay: a wallet handles one event once
                    lives_s = max(deadline - monotonic_s(), 1.0)
                    nip44 = self._speaks_nip44(link)
                    request = self._keyring().request("pay_invoice", {"invoice": bolt11}, nip44=nip44, lives_s=lives_s)
                publish(link, self._keyring(), request, deadline, before_sending=take_permit)
                return self._outcome(link, request, payment_hash, deadline, use)
            except _TooLateError:
                self._put_back(link)
                return _refused("no time was left to send the order")
            except (RelayRefusedError, LinkError) as error:
                link.close()
                has_left = error.sent if isinstance(error, LinkError) else not error.never_arrived
                if has_left:
                    return WalletAnswer(reply=WalletReply.UNKNOWN, reason=error.reason)
                if taken:  # and given back, for nobody has the order
                    was_offered = was_offered or isinstance(error, RelayRefusedError)
                    taken, permit[:] = False, [_AGAIN if was_offered else _FIRST]
                if link.is_used and isinstance(error, LinkError):
                    tried.discard(link.url)  # it was idle, and has ended meanwhile: a new connection may work
                else:
                    reasons.append(error.reason)

    def _found(self, payment_hash: bytes, deadline: float, use: Callable[[Link], Link], refusals: str) -> WalletAnswer | None:
        """Return what is known of an order that relays have refused; None if the wallet says that it has no such payment."""
        try:
            answer = self._look_up(payment_hash, min(deadline, monotonic_s() + FEE_S_MAX), use)
        except _UnreachableError:
            return WalletAnswer(reply=WalletReply.UNKNOWN, reason=tidy(f"{refusals}; and the wallet can't be asked about it"))
        return None if replies.knows_none(answer) else answer

    def _outcome(
        self, link: Link, request: Request, payment_hash: bytes, deadline: float, use: Callable[[Link], Link]
    ) -> WalletAnswer:
        """Wait for the answer to a published order, and return what it proves.

        Relays keep no answers, so one that was lost never comes. Where it is late, the wallet is asked about the payment.

        Raises: LinkError. RelayRefusedError, if the relay refuses the order before anything else.
        """
        wait_s, found = LOOK_AFTER_S, None
        while True:
            try:
                response = answer_to(link, self._keyring(), request, min(deadline, monotonic_s() + wait_s))
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
                return self._checked(replies.read_pay(response, payment_hash), payment_hash, link, deadline, use)
            wait_s = min(2 * wait_s, LOOK_S_MAX)
            try:
                looked = self._ask(
                    link, "lookup_invoice", {"payment_hash": payment_hash.hex()}, min(deadline, monotonic_s() + wait_s)
                )
            except NoAnswerError:
                continue
            except (LinkError, RelayRefusedError) as error:
                link.close()
                return found or WalletAnswer(reply=WalletReply.UNKNOWN, reason=error.reason)
            answer = replies.read_lookup(looked, payment_hash)
            if answer.reply in _UNDER_WAY - {WalletReply.IN_FLIGHT}:
                leave(link, request, deadline)
                self._put_back(link)
                return answer
            found = answer if answer.reply is WalletReply.IN_FLIGHT else None

    def _checked(
        self, told: WalletAnswer, payment_hash: bytes, link: Link, deadline: float, use: Callable[[Link], Link]
    ) -> WalletAnswer:
        """Return what the wallet's answer to an order proves, once it was asked about the payment where that can tell more."""
        link.notes["heard_at"] = monotonic_s()
        if told.reply is WalletReply.SUCCEEDED:
            if told.fee_msat is not None:
                self._put_back(link)
                return told
            deadline = min(deadline, monotonic_s() + FEE_S_MAX)
        if told.reply is WalletReply.EXISTS:
            self._put_back(link)
            return told
        until = min(deadline, monotonic_s() + QUESTION_S_MAX)
        params = {"payment_hash": payment_hash.hex()}
        try:
            found = replies.read_lookup(self._ask(link, "lookup_invoice", params, until), payment_hash)
            while replies.proves_too_little(told, found) and until - monotonic_s() > 2 * _LOOK_AGAIN_S:
                time.sleep(_LOOK_AGAIN_S)
                found = replies.read_lookup(self._ask(link, "lookup_invoice", params, until), payment_hash)
        except (LinkError, RelayRefusedError, NoAnswerError):
            link.abandon()
            if told.reply is not WalletReply.REFUSED:
                return told
            # The order may have been delivered twice, and its first copy be under way: a refusal alone proves nothing.
            try:
                return replies.combined(told, self._look_up(payment_hash, deadline, use))
            except _UnreachableError:
                reason = tidy(f"{told.reason}; and the wallet can't be asked about it")
                return WalletAnswer(reply=WalletReply.UNKNOWN, reason=reason)
        self._put_back(link)
        return replies.combined(told, found)

    def _look_up(self, payment_hash: bytes, deadline: float, use: Callable[[Link], Link]) -> WalletAnswer:
        response = self._ask_any("lookup_invoice", {"payment_hash": payment_hash.hex()}, deadline, use)
        return replies.read_lookup(response, payment_hash)

    def _ready_link(
        self, deadline: float, use: Callable[[Link], Link], *, asks: bool = False, without: set[str] | None = None
    ) -> Link:
        """Return a connection over which the wallet has just answered. ``asks``: it is asked now, even if it has lately.

        ``without`` are relays that aren't tried.

        Raises: _UnreachableError. FundingError if the wallet answers, and can't be used.
        """
        deadline = min(deadline, monotonic_s() + HELLO_S_MAX)

        def hello(link: Link, until: float) -> Link:
            heard_at = link.notes.get("heard_at")
            if asks or heard_at is None or monotonic_s() - heard_at > READY_S:
                self._hello(link, until)
            return link

        return self._over_relays(hello, deadline, use, without or set())

    def _hello(self, link: Link, deadline: float) -> None:
        """Ask the wallet what it can do. Raises: as `ask`. FundingError if it can't be used."""
        notes = wallet_notes(link, self._keyring(), deadline)
        response = self._ask(link, "get_info", {}, deadline)
        error = replies.error_of(response)
        methods: frozenset[str] = notes.methods
        if error is None:
            link.notes["info"] = result = response["result"]
            told = result.get("methods")
            if isinstance(told, list):
                methods = frozenset(each for each in told[:_METHODS_MAX] if isinstance(each, str))
        elif error[0] == "UNAUTHORIZED" or error[0] not in replies.NOT_PERMITTED:
            raise FundingError(
                f"The wallet doesn't say what this connection may do ({replies.reason_of(error)}).",
                advice="Look in the wallet whether the connection still exists and hasn't expired, or make a new one.",
            )
        missing = [name for name in rights.NEEDED if name not in methods]
        if missing:
            what = " and ".join(missing)
            raise FundingError(
                f"The wallet doesn't permit {what} over this connection, which paying needs.",
                advice=f"Make a connection in the wallet that permits {' and '.join(rights.NEEDED)}.",
            )
        link.notes["methods"], link.notes["heard_at"] = methods, monotonic_s()

    def _ask_any(self, method: str, params: dict[str, Any], deadline: float, use: Callable[[Link], Link]) -> dict[str, Any]:
        """Ask the wallet a question, over one relay after the other, and return its answer. Raises: _UnreachableError."""

        def question(link: Link, until: float) -> dict[str, Any]:
            response = self._ask(link, method, params, until)
            link.notes["heard_at"] = monotonic_s()
            self._put_back(link)
            return response

        return self._over_relays(question, deadline, use, set())

    def _ask(self, link: Link, method: str, params: dict[str, Any], deadline: float) -> dict[str, Any]:
        wallet_notes(link, self._keyring(), deadline)
        lives_s = max(deadline - monotonic_s(), 1.0)
        request = self._keyring().request(method, params, nip44=self._speaks_nip44(link), lives_s=lives_s)
        return ask(link, self._keyring(), request, deadline)

    def _over_relays(
        self, do: Callable[[Link, float], _Result], deadline: float, use: Callable[[Link], Link], without: set[str]
    ) -> _Result:
        """Do something that is harmless to repeat over one relay after the other, until it succeeds. The time is shared among them.

        Raises: _UnreachableError. FundingError.
        """
        state, reasons = self._state(), list[str]()
        relays = [url for url in self.relays if url not in without]
        relays.sort(key=lambda url: url != state.preferred)
        for place, url in enumerate(relays):
            now = monotonic_s()
            until = now + (deadline - now) / (len(relays) - place)
            try:
                try:
                    result = self._over(use(self._take(url, until)), do, until)
                except _StaleError:
                    result = self._over(use(Link(url, until)), do, until)
            except (LinkError, RelayRefusedError, NoAnswerError) as error:
                reasons.append(error.reason)
                continue
            state.preferred = url
            return result
        raise _UnreachableError(reasons)

    def _over(self, link: Link, do: Callable[[Link, float], _Result], deadline: float) -> _Result:
        """Do something over ``link``, and close it if that fails. Raises: _StaleError if it was idle, and has ended meanwhile."""
        try:
            return do(link, deadline)
        except LinkError as error:
            link.abandon()
            if link.is_used:
                raise _StaleError(error.reason) from None
            raise
        except BaseException:
            link.close()
            raise

    def _take(self, url: str, deadline: float) -> Link:
        """Return an idle connection to the relay that still works, or a new one. Raises: LinkError."""
        idle = self._state().idle
        for _ in range(len(idle)):
            try:
                link = idle.pop()
            except IndexError:
                break
            idle_s = monotonic_s() - link.heard_at
            if link.url != url:
                idle.appendleft(link)
            elif idle_s <= IDLE_S_MAX and ((idle_s <= PING_AFTER_S and not link.has_news()) or link.is_alive(deadline)):
                return link
            else:
                link.abandon()
        return Link(url, deadline)

    def _put_back(self, link: Link) -> None:
        idle, link.is_used = self._state().idle, True
        idle.append(link)
        while len(idle) > IDLE_LINKS_MAX:
            with suppress(IndexError):
                idle.popleft().close()

    def _speaks_nip44(self, link: Link) -> bool:
        notes, state = link.notes.get("wallet"), self._state()
        if isinstance(notes, WalletNotes) and notes.found:
            state.nip44 = notes.nip44
        return state.nip44

    def _keyring(self) -> Keyring:
        state = self._state()
        if state.keyring is None:
            assert self._secret is not None  # see _check_usable
            state.keyring = Keyring(self._secret, self.wallet_key)
        return state.keyring

    def _state(self) -> _Forked:
        """What is open in this process. A forked child begins anew: the connections are its parent's."""
        state = self._open
        if state is None or state.pid != os.getpid():
            state = self._open = _Forked()
        return state

    # In the caller's thread

    def _check_usable(self) -> None:
        """Import what is needed. Raises: FundingError if that isn't installed, or this client has lost its secret."""
        if self._secret is None:
            raise FundingError(
                "This wallet client was unpickled, and the secret of its URI isn't pickled.",
                advice="Make it anew: NwcClient(uri), or set NWC_URL.",
            )
        library.nostr()
        library.websocket()

    def _work(self, do: Callable[[float, Callable[[Link], Link]], _Result], timeout_s: float) -> _Result:
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
        except _UnreachableError as error:
            raise FundingError(
                f"The wallet can't be reached: {'; '.join(error.reasons) or 'no time is left'}.",
                advice="Check that the wallet is running and still has this connection, and that its relays can be reached.",
            ) from None

    def _result(self, method: str, params: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        response = self._work(lambda deadline, use: self._ask_any(method, params, deadline, use), timeout_s)
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

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_secret": None, "_open": None}

    def __copy__(self) -> NwcClient:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> NwcClient:
        return self


def _refused(reason: str) -> WalletAnswer:
    return WalletAnswer(reply=WalletReply.REFUSED, reason=tidy(f"the order didn't reach the wallet: {reason}"))


def _network(told: object) -> str:
    """Return this package's name of the network that a wallet tells, "" for none."""
    if not isinstance(told, str) or not (name := tidy(told).lower()):
        return ""
    return "bitcoin" if name == "bitcoin" else network_of(name)


def _name_of(told: object) -> str:
    """Return what tells an entry of list_transactions from another one."""
    return f"{told.get('type')} {told.get('payment_hash')}" if isinstance(told, dict) else "nothing"


def _payment(told: object) -> NodePayment | None:
    """Return an entry of list_transactions; None for one that isn't an outgoing payment, or can't be read."""
    if not isinstance(told, dict) or told.get("type") == "incoming":
        return None
    payment_hash, status = told.get("payment_hash"), replies.status_of(told)
    if not isinstance(payment_hash, str) or len(payment_hash) != 64 or status is None:
        return None
    created_at = told.get("created_at")
    return NodePayment(
        payment_hash=payment_hash.lower(),
        status=status,
        amount_msat=replies.msat_of(told.get("amount")) or 0,
        fee_msat=replies.msat_of(told.get("fees_paid")) or 0,
        failure_reason=None,
        created_at_ns=created_at * 1_000_000_000 if isinstance(created_at, int) else 0,
    )
