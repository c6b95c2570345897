"""`LightningFundingSource`: a wallet, its network, and what routing may cost. A purchase reaches a wallet only through this class.

Turns what a wallet does into `WalletAnswer`s. A `WalletClient` (lnd's client is one) answers in them itself; any other client is
called through the `LightningNodeClient` Protocol. What follows from an answer for the money is decided in
`routeweiler_sync.payments.wallet_rules`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from .._core import env_vars, retries
from .._core.deadline import Deadline, monotonic_s
from .._core.secret_text import shown
from .._core.signals import came_by_signal
from ..errors import FundingError, InvoicePaymentError
from ..protocol.invoice import decode_invoice
from .client_answers import (
    cause_of,
    check_methods,
    close,
    node_key,
    read_answer,
    read_error,
    read_preimage,
    read_reason,
    read_status,
    sound_key,
)
from .replies import WalletAnswer, WalletReply, preimage_fits
from .wallet import (
    NETWORKS,
    BalanceWallet,
    FixedFeeWallet,
    LightningNodeClient,
    NotPermittedError,
    WalletClient,
    default_fee_cap_msat,
)
from .worker_calls import BegunCall, SilentError, WorkerCall

#: How long `LightningFundingSource.create` waits for the node's key, in seconds.
CREATE_S_MAX = 60.0
#: The largest limit of a fee, in msat: every bitcoin that there can be.
MAX_FEE_MSAT = 21_000_000 * 100_000_000 * 1_000
#: For so long the answer of a wallet counts that was asked ahead of its purchase.
AHEAD_S = 1.0
# A wallet that was asked ahead and has said nothing so long after its time never will.
_SILENCE_S = 1.0
# How long to wait between two questions to a client that can't follow a payment by itself.
_POLL_S_MIN, _POLL_S_MAX = 0.1, 2.0


@dataclass(eq=False)
class LightningFundingSource:
    """A source of money for payments over Lightning: ``client`` is an `LndClient`, or any `LightningNodeClient`.

    ``network`` is ``bitcoin``, ``bitcoin-testnet``, ``bitcoin-signet`` or ``bitcoin-regtest``; None means the one that the wallet
    reports, and any if it reports none. ``node_pubkey`` (66 hex digits) is the node's key. If it is None, the node is asked for it
    at the first purchase; if it is given, the node's key must be the same.
    ``max_fee_msat`` is the most that routing one payment may cost; None means max(10 000 msat, 5 % of the amount). The constructor
    doesn't ask the node.

    A client that isn't a `WalletClient` may block for as long as it likes: its `pay_invoice` can't be given a deadline.

    Raises: ValueError for an unknown network, a ``max_fee_msat`` that isn't a whole number of msat from 0 upwards, or a
    ``node_pubkey`` that isn't a string of 66 hex digits.
    """

    client: LightningNodeClient | WalletClient
    network: str | None
    node_pubkey: str | None = None
    max_fee_msat: int | None = None
    # Id of the process that has asked the node for its key. A forked child and an unpickled copy ask again.
    _asked_in: int | None = field(default=None, init=False, repr=False)
    # What `ready` would find, being asked in another thread.
    _ahead: _AskedAhead | None = field(default=None, init=False, repr=False)
    #: The network that the wallet has reported; "" if it was not asked yet, or reports none.
    told_network: str = field(default="", init=False, repr=False)

    def __post_init__(self) -> None:
        fee = self.max_fee_msat
        if fee is not None and (isinstance(fee, bool) or not isinstance(fee, int) or not 0 <= fee <= MAX_FEE_MSAT):
            raise ValueError(f"max_fee_msat must be a whole number of msat from 0 to {MAX_FEE_MSAT}, or None, not {shown(fee)}")
        if self.network is not None and self.network not in NETWORKS:
            raise ValueError(f"network must be one of {', '.join(NETWORKS)}, not {shown(self.network)}")
        if self.node_pubkey is not None:
            given, self.node_pubkey = self.node_pubkey, sound_key(self.node_pubkey)
            if self.node_pubkey is None:
                raise ValueError(f"node_pubkey must be a string of 66 hex digits, or None, not {shown(given)}")

    @classmethod
    def create(
        cls, client: LightningNodeClient | WalletClient, network: str | None, *, max_fee_msat: int | None = None
    ) -> LightningFundingSource:
        """Return a funding source whose ``node_pubkey`` is the key that the node reports. Otherwise as the constructor.

        Raises: FundingError if the node can't be asked, or doesn't report a key.
        """
        source = cls(client=client, network=network, max_fee_msat=max_fee_msat)
        with _ours_alone("The node can't be asked for its key"):
            if hasattr(client, "get_node_pubkey") or not isinstance(client, WalletClient):
                check_methods(client, is_wallet=False, only=("get_node_pubkey",))
                source.node_pubkey = node_key(client.get_node_pubkey())
            else:
                source.node_pubkey = source._identity(CREATE_S_MAX)[0]
        return source

    def fee_cap_msat(self, amount_msat: int) -> int:
        """Return the most that routing a payment of ``amount_msat`` may cost, in msat."""
        return default_fee_cap_msat(amount_msat) if self.max_fee_msat is None else self.max_fee_msat

    def ready(self, timeout_s: float) -> str:
        """Return the node's public key, once the node is up and known to be the configured one.

        A `WalletClient` is asked each time whether it is ready, and has ``timeout_s`` seconds for all its answers; any other client
        may block for longer. Key and network are asked for once per process. A macaroon that doesn't permit GetInfo is enough if
        ``node_pubkey`` was given, which is then taken for the node's key.

        Raises: FundingError if the node can't be reached, is locked, has another key than ``node_pubkey`` or is on another network.
        Money: none moves.
        """
        deadline = monotonic_s() + timeout_s
        ahead = self.__dict__.pop("_ahead", None)  # one step, so that no other thread takes it too
        pubkey: str | None = None if ahead is None else ahead.pubkey(deadline)
        return pubkey if pubkey is not None else self._ready(max(deadline - monotonic_s(), 0.0))

    @property
    def can_ask_ahead(self) -> bool:
        """Whether `ready` would be the first question to the wallet in this process, and another thread may ask it.

        That isn't known of programs' own clients, nor of their subclasses of this package's. One thread asks at a time: calls that
        fail at once, one after the other, would each leave a thread that waits for a silent wallet.
        """
        if type(self) is not LightningFundingSource or "asked_ahead" not in vars(type(self.client)):
            return False
        ahead = self._ahead
        return self._asked_in != os.getpid() and (ahead is None or not ahead.is_pending)

    def ask_ahead(self, timeout_s: float) -> None:
        """Begin to ask the wallet what `ready` is about to ask, in another thread.

        What the client imports is imported here: a fork waits for that, and must not come while the caller makes its ledger. If
        that fails, or no thread can be started, nothing is asked ahead, and `ready` says what is wrong.

        Money: none moves.
        """
        try:
            if (prepare := getattr(self.client, "prepare", None)) is not None:
                prepare()
            self._ahead = _AskedAhead(self, timeout_s)
        except Exception as error:  # an import may raise anything, and no thread may be left
            if came_by_signal(error):
                raise

    def _ready(self, timeout_s: float) -> str:
        """Do as `ready`, in this thread."""
        client, deadline = self.client, monotonic_s() + timeout_s
        knows_node = self._asked_in == os.getpid() and self.node_pubkey is not None
        with _ours_alone("The wallet can't be asked whether it is ready"):
            is_wallet = isinstance(client, WalletClient)
            if not knows_node:
                check_methods(client, is_wallet=is_wallet)
            # A subclass may check more than the class whose answers are known.
            tells_by_info = self.node_pubkey is None and "info_proves_ready" in vars(type(client))
            if isinstance(client, WalletClient) and not tells_by_info:
                close(client.check_ready(timeout_s))  # type: ignore[func-returns-value]
        if knows_node and self.node_pubkey is not None:
            return self.node_pubkey
        pubkey, network = self._identity(deadline - monotonic_s())
        if self.node_pubkey is not None and pubkey != self.node_pubkey:
            raise FundingError(
                f"The node's key is {pubkey}, but node_pubkey is {self.node_pubkey}.",
                advice="Correct node_pubkey, or the node's address.",
            )
        if self.network is not None and network not in ("", self.network):
            raise FundingError(
                f"The node is on {network}, but the funding source is for {self.network}.",
                advice="Correct the argument network.",
                shell_advice=f"Name a node that is on {self.network}, and set {env_vars.NETWORK} to it or not at all.",
            )
        self.node_pubkey, self.told_network, self._asked_in = pubkey, network, os.getpid()
        return pubkey

    def ready_anew(self, timeout_s: float) -> str:
        """Return the node's public key as `ready` does, but ask the node for it even if it is known.

        For an unfinished payment: another node may stand at the same address by now, and would pay its invoice once more.

        Raises: FundingError as `ready`; also if the node's key has changed.
        Money: none moves.
        """
        self._asked_in = None
        return self._ready(timeout_s)

    def expect_order(self) -> None:
        """Let the next order rely on the answer that `ready` has just got, where the wallet would be asked a second time.

        Money: none moves.
        """
        if (expect := getattr(self.client, "expect_order", None)) is not None:
            try:
                expect()
            except Exception as error:  # then the wallet is asked a second time
                if came_by_signal(error):
                    raise

    def own_fee_cap_msat(self, bolt11: str, *, timeout_s: float) -> int | None:
        """Return the most that the wallet itself lets the payment of ``bolt11`` cost beside its amount, in msat.

        None: the ``max_fee_msat`` of an order holds, as with every wallet that isn't a `FixedFeeWallet`.

        Raises: FundingError if the wallet can't be asked.
        Money: none moves.
        """
        client: object = self.client
        if not isinstance(client, FixedFeeWallet):
            return None
        with _ours_alone("The wallet can't be asked for its fees"):
            return client.own_fee_cap_msat(bolt11, timeout_s=timeout_s)

    def spendable_msat(self, *, timeout_s: float) -> int | None:
        """Return the most that the wallet could pay now, in msat; None if it isn't a `BalanceWallet`, or doesn't say.

        Raises: FundingError if the wallet can't be asked.
        Money: none moves.
        """
        client: object = self.client
        if not isinstance(client, BalanceWallet):
            return None
        with _ours_alone("The wallet can't be asked for its balance"):
            try:
                return client.spendable_msat(timeout_s=timeout_s)
            except NotPermittedError:
                return None

    def send(self, bolt11: str, *, payment_hash: bytes, max_fee_msat: int, timeout_s: float) -> WalletAnswer:
        """Order the node to pay ``bolt11``, and wait at most ``timeout_s`` seconds for the outcome.

        ``payment_hash`` is the invoice's (32 bytes). Routing may cost at most ``max_fee_msat``. A client's errors are returned as
        answers, not raised.

        Money: the invoice's amount and the routing fee.
        """
        client = self.client
        try:
            if isinstance(client, WalletClient):
                sent = client.send(bolt11, payment_hash=payment_hash, max_fee_msat=max_fee_msat, timeout_s=timeout_s)
                return read_answer(sent, payment_hash)
            preimage: object = client.pay_invoice(bolt11, max_fee_msat=max_fee_msat)
        except Exception as error:  # a client may raise anything
            if came_by_signal(error):
                raise
            return self._failure(error, payment_hash)
        try:
            return self._paid(bolt11, preimage, payment_hash, max_fee_msat)
        except Exception as error:  # what a client returned may raise anything when it is read
            if came_by_signal(error):
                raise
            return WalletAnswer(reply=WalletReply.UNKNOWN, reason=read_error(error, payment_hash))

    def track(self, payment_hash: bytes, *, timeout_s: float, follow: bool) -> WalletAnswer:
        """Ask the node about the payment with this hash (32 bytes); ``follow`` waits for its end, at most ``timeout_s`` seconds.

        A client's errors are returned as answers, not raised.

        Money: none moves.
        """
        client = self.client
        try:
            if isinstance(client, WalletClient):
                return read_answer(client.track(payment_hash, timeout_s=timeout_s, follow=follow), payment_hash)
        except Exception as error:  # no error of a client, of whatever kind, says anything about the payment
            if came_by_signal(error):
                raise
            return WalletAnswer(reply=WalletReply.UNKNOWN, reason=read_error(error, payment_hash))
        import tenacity

        deadline = Deadline(timeout_s if follow else 0)
        polling = tenacity.Retrying(
            stop=lambda attempt: deadline.passed,
            wait=tenacity.wait_exponential(multiplier=_POLL_S_MIN, max=_POLL_S_MAX),
            retry=tenacity.retry_if_result(lambda answer: answer.reply is WalletReply.IN_FLIGHT),
            sleep=deadline.pause,
            retry_error_callback=lambda attempt: attempt.outcome.result() if attempt.outcome else None,
        )
        return retries.run(polling, lambda: self._ask(payment_hash))

    def _failure(self, error: Exception, payment_hash: bytes) -> WalletAnswer:
        """Return the answer that the exception of a payment order amounts to. By the Protocols, only two of them prove anything.

        A subclass of theirs may have attributes of any kind, so reading them may fail; then the outcome isn't known.
        """
        reason, keep = read_error(error, payment_hash), (payment_hash.hex(),)
        unknown = WalletAnswer(reply=WalletReply.UNKNOWN, reason=reason)
        if isinstance(self.client, WalletClient) or not isinstance(error, (InvoicePaymentError, FundingError)):
            return unknown
        try:
            if error.spent is not False:
                return unknown
            if isinstance(error, InvoicePaymentError):
                told = read_reason(error.failure_reason, keep) or read_reason(error.brief, keep)
                return WalletAnswer(reply=WalletReply.FAILED, reason=told or reason)
            return WalletAnswer(reply=WalletReply.REFUSED, reason=read_reason(error.brief, keep) or reason)
        except Exception:  # noqa: BLE001 - an attribute of a subclass may raise anything
            return unknown

    def _paid(self, bolt11: str, returned: object, payment_hash: bytes, max_fee_msat: int) -> WalletAnswer:
        """Return the answer for what `pay_invoice` has returned, which may be a preimage that fits or not, or anything else.

        `pay_invoice` doesn't return the routing fee, so the node is asked for it.
        """
        preimage = read_preimage(returned, payment_hash)
        if preimage is None:
            close(returned)
            reason = f"the client's pay_invoice returned a {type(returned).__name__} that isn't a preimage of 32 bytes"
            return WalletAnswer(reply=WalletReply.UNKNOWN, reason=reason)
        if not preimage_fits(preimage, payment_hash):
            return WalletAnswer(reply=WalletReply.WRONG_PREIMAGE, preimage=preimage, fee_msat=max_fee_msat)
        if (tracked := self._ask(payment_hash)).reply is WalletReply.SUCCEEDED:
            return tracked
        # The preimage proves the payment, but the fee isn't known. So the most that it can have cost is booked, to keep the limits.
        return WalletAnswer(
            reply=WalletReply.SUCCEEDED,
            preimage=preimage,
            amount_msat=decode_invoice(bolt11).amount_msat,
            fee_msat=max_fee_msat,
            reason=tracked.reason,
        )

    def _ask(self, payment_hash: bytes) -> WalletAnswer:
        try:
            client: Any = self.client
            return read_status(client.track_payment(payment_hash), payment_hash)
        except Exception as error:  # no error of a client, of whatever kind, says anything about the payment
            if came_by_signal(error):
                raise
            return WalletAnswer(reply=WalletReply.UNKNOWN, reason=read_error(error, payment_hash))

    def _identity(self, timeout_s: float) -> tuple[str, str]:
        """Return the node's public key and network. The network is "" if it can't be found out.

        If the macaroon doesn't permit GetInfo and ``node_pubkey`` was given, that key is returned.

        Raises: FundingError if the node can't be asked.
        """
        client: Any = self.client
        try:
            with _ours_alone("The node can't be asked for its key"):
                if isinstance(client, WalletClient):
                    info = client.get_info(timeout_s=timeout_s)
                    network: object = getattr(info, "network", "")
                    key = node_key(info.identity_pubkey if hasattr(info, "identity_pubkey") else info)
                    return key, (read_reason(network) or "") if isinstance(network, str) else ""
                return node_key(client.get_node_pubkey()), ""
        except NotPermittedError:
            if self.node_pubkey is not None:
                return self.node_pubkey, ""
            raise

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_asked_in": None, "_ahead": None}


class _AskedAhead:
    """What `LightningFundingSource.ready` finds, being asked in a worker thread."""

    def __init__(self, source: LightningFundingSource, timeout_s: float) -> None:
        #: When the answer came, and until when the question is asked, on the monotonic clock.
        self._answered_s: float | None = None
        self._until_s = monotonic_s() + timeout_s

        def ask(_: WorkerCall[str]) -> str:
            try:
                return source._ready(timeout_s)
            finally:
                self._answered_s = monotonic_s()

        self._call = BegunCall(ask, timeout_s=timeout_s + _SILENCE_S)

    @property
    def is_pending(self) -> bool:
        """Whether a thread of this process still waits for the answer."""
        return self._call.is_own and self._answered_s is None

    def pubkey(self, until_s: float) -> str | None:
        """Wait for the answer until ``until_s``, and return it; None if there is none, or it came too long ago.

        The question may be another call's, whose session has more time than this one, or less: then its failure proves nothing.

        Raises: FundingError as `LightningFundingSource.ready`.
        """
        if not self._call.is_own:
            return None
        try:
            pubkey = self._call.result(until_s + _SILENCE_S)
        except SilentError:
            return None
        except FundingError:
            if self._is_fresh() and self._until_s >= until_s - _SILENCE_S:
                raise
            return None
        return pubkey if self._is_fresh() else None

    def _is_fresh(self) -> bool:
        return self._answered_s is not None and monotonic_s() - self._answered_s < AHEAD_S


@contextmanager
def _ours_alone(what: str) -> Iterator[None]:
    """Turn any exception of a wallet client but FundingError into a FundingError that begins with ``what``.

    Money: for questions alone, which can't spend any.
    """
    try:
        yield
    except FundingError:
        raise
    except Exception as error:  # a client may raise anything
        if came_by_signal(error):
            raise
        why = read_reason(error) or type(error).__name__
        raise FundingError(f"{what} ({why}).", advice="Check that the node is up.") from cause_of(error)
