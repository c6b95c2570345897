"""`LightningFundingSource`: a node, the network it pays on, and what routing may cost. Purchases speak to nodes through it alone.

Turns what a node does - lnd's client in full, any other by the `LightningNodeClient` Protocol - into `WalletAnswer`s. What follows
from an answer is decided in `routeweiler_sync.payments.wallet_rules`.
"""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import dataclass, field
from typing import Any

from ..errors import FundingError, InvoicePaymentError
from ..protocol.invoice import decode_invoice
from .replies import WalletAnswer, WalletReply, tidy
from .wallet import NETWORKS, LightningNodeClient, NotPermittedError, PaymentStatus, WalletClient, default_fee_cap_msat

_POLL_S_MIN, _POLL_S_MAX = 0.1, 2.0


@dataclass(eq=False)
class LightningFundingSource:
    """Pays over Lightning through ``client`` (an `LndClient`, or any `LightningNodeClient`).

    ``network`` is ``bitcoin``, ``bitcoin-testnet``, ``bitcoin-signet`` or ``bitcoin-regtest``. ``node_pubkey`` (66 hex digits) is
    asked for at the first purchase if not given, and checked if given. ``max_fee_msat`` is the most that routing one payment may
    cost; None means max(10 000 msat, 5 % of the amount). Constructing one asks nothing. Raises ValueError.

    A client that isn't an `LndClient` blocks as it does: no deadline of ours reaches into its `pay_invoice`.
    """

    client: LightningNodeClient
    network: str
    node_pubkey: str | None = None
    max_fee_msat: int | None = None
    _asked_in: int | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        fee = self.max_fee_msat
        if fee is not None and (isinstance(fee, bool) or not isinstance(fee, int) or fee < 0):
            raise ValueError(f"max_fee_msat is a whole number of msat, 0 or more, or None, not {fee!r}")
        if self.network not in NETWORKS:
            raise ValueError(f"network is {self.network!r}; it must be one of {', '.join(NETWORKS)}")
        if self.node_pubkey is not None:
            self.node_pubkey = self.node_pubkey.lower()

    @classmethod
    def create(cls, client: LightningNodeClient, network: str, *, max_fee_msat: int | None = None) -> LightningFundingSource:
        """As the constructor, and asks the node for its key. Raises FundingError if it can't be asked."""
        return cls(client=client, network=network, node_pubkey=client.get_node_pubkey(), max_fee_msat=max_fee_msat)

    def fee_cap_msat(self, amount_msat: int) -> int:
        """The most that routing a payment of ``amount_msat`` may cost, in msat."""
        return default_fee_cap_msat(amount_msat) if self.max_fee_msat is None else self.max_fee_msat

    def ready(self, timeout_s: float) -> str:
        """Make sure that the node is up and is the one configured; return its pubkey. Spends nothing.

        Key and network are asked for once a process. Raises FundingError: the node can't be reached, is locked, is another than
        ``node_pubkey``, or is on another network. A macaroon without GetInfo will do where ``node_pubkey`` was given.
        """
        client, deadline = self.client, time.monotonic() + timeout_s
        if isinstance(client, WalletClient):
            client.check_ready(timeout_s)
        if self._asked_in == os.getpid() and self.node_pubkey is not None:
            return self.node_pubkey
        pubkey, network = self._identity(deadline - time.monotonic())
        if self.node_pubkey is not None and pubkey != self.node_pubkey:
            raise FundingError(
                f"the node is {pubkey}, but {self.node_pubkey} is configured.", advice="Correct node_pubkey or the address."
            )
        if network not in ("", self.network):
            raise FundingError(f"the node is on {network}, but the funding is for {self.network}.", advice="Correct network.")
        self.node_pubkey, self._asked_in = pubkey, os.getpid()
        return pubkey

    def send(self, bolt11: str, *, payment_hash: bytes, max_fee_msat: int, timeout_s: float) -> WalletAnswer:
        """Order the node to pay, and wait for the outcome at most ``timeout_s``. Money moves. Any error is an Answer."""
        client = self.client
        if isinstance(client, WalletClient):
            return client.send(bolt11, payment_hash=payment_hash, max_fee_msat=max_fee_msat, timeout_s=timeout_s)
        try:
            preimage = client.pay_invoice(bolt11, max_fee_msat=max_fee_msat)
        except InvoicePaymentError as error:
            return WalletAnswer(reply=WalletReply.FAILED, reason=error.failure_reason or tidy(str(error)))
        except FundingError as error:
            return WalletAnswer(reply=WalletReply.REFUSED, reason=tidy(error.brief))
        except Exception as error:  # noqa: BLE001 - the Protocol: any other exception means that the outcome isn't known
            return WalletAnswer(reply=WalletReply.UNKNOWN, reason=tidy(f"{type(error).__name__}: {error}"))
        if not isinstance(preimage, bytes) or len(preimage) != 32:
            return WalletAnswer(reply=WalletReply.UNKNOWN, reason="the client's pay_invoice didn't return a preimage of 32 bytes")
        return self._paid(bolt11, preimage, payment_hash, max_fee_msat)

    def track(self, payment_hash: bytes, *, timeout_s: float, follow: bool) -> WalletAnswer:
        """Ask the node about a payment; ``follow`` waits for its end, at most ``timeout_s``. Any error is an Answer."""
        client = self.client
        if isinstance(client, WalletClient):
            return client.track(payment_hash, timeout_s=timeout_s, follow=follow)
        import tenacity

        deadline = time.monotonic() + timeout_s
        polling = tenacity.Retrying(
            stop=tenacity.stop_after_delay(timeout_s if follow else 0),
            wait=tenacity.wait_exponential(multiplier=_POLL_S_MIN, max=_POLL_S_MAX),
            retry=tenacity.retry_if_result(lambda answer: answer.reply is WalletReply.IN_FLIGHT),
            sleep=lambda seconds: time.sleep(max(0.0, min(seconds, deadline - time.monotonic()))),
            retry_error_callback=lambda attempt: attempt.outcome.result() if attempt.outcome else None,
        )
        return polling(self._ask, payment_hash)

    def _paid(self, bolt11: str, preimage: bytes, payment_hash: bytes, max_fee_msat: int) -> WalletAnswer:
        if hashlib.sha256(preimage).digest() != payment_hash:
            return WalletAnswer(reply=WalletReply.WRONG_PREIMAGE, preimage=preimage, fee_msat=max_fee_msat)
        if (told := self._ask(payment_hash)).reply is WalletReply.SUCCEEDED:
            return told
        # It is paid, though the client can't tell for how much: the most that it can have cost is booked.
        return WalletAnswer(
            reply=WalletReply.SUCCEEDED,
            preimage=preimage,
            amount_msat=decode_invoice(bolt11).amount_msat,
            fee_msat=max_fee_msat,
            reason=told.reason,
        )

    def _ask(self, payment_hash: bytes) -> WalletAnswer:
        try:
            return _read_status(self.client.track_payment(payment_hash), payment_hash)
        except Exception as error:  # noqa: BLE001 - a client's error, of whatever kind, says nothing about the payment
            return WalletAnswer(reply=WalletReply.UNKNOWN, reason=tidy(f"{type(error).__name__}: {error}"))

    def _identity(self, timeout_s: float) -> tuple[str, str]:
        """The node's pubkey and network; "" for a network that it doesn't tell."""
        client: Any = self.client
        try:
            if isinstance(client, WalletClient):
                info = client.get_info(timeout_s=timeout_s)
                return info.identity_pubkey.lower(), info.network
            return str(client.get_node_pubkey()).lower(), ""
        except FundingError as error:
            if isinstance(error, NotPermittedError) and self.node_pubkey is not None:
                return self.node_pubkey, ""
            raise
        except Exception as error:
            raise FundingError(f"the node can't be asked for its key ({tidy(str(error))}).", advice="Is it up?") from error

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_asked_in": None}


def _read_status(status: PaymentStatus, payment_hash: bytes) -> WalletAnswer:
    match status.state:
        case "succeeded":
            preimage = status.preimage
            fits = isinstance(preimage, bytes) and hashlib.sha256(preimage).digest() == payment_hash
            return WalletAnswer(
                reply=WalletReply.SUCCEEDED if fits else WalletReply.WRONG_PREIMAGE,
                preimage=preimage,
                amount_msat=status.amount_msat,
                fee_msat=status.fee_msat,
            )
        case "failed":
            return WalletAnswer(reply=WalletReply.FAILED, reason=status.failure_reason)
        case "in_flight":
            return WalletAnswer(reply=WalletReply.IN_FLIGHT)
        case "unknown_hash":
            return WalletAnswer(reply=WalletReply.NOT_FOUND)
    return WalletAnswer(reply=WalletReply.UNKNOWN, reason=tidy(f"the client's track_payment said {status.state!r}"))
