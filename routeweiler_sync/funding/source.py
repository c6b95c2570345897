"""`LightningFundingSource`: a wallet, its network, and what routing may cost. A purchase reaches a wallet only through this class.

Turns what a wallet does into `WalletAnswer`s. A `WalletClient` (lnd's client is one) answers in them itself; any other client is
called through the `LightningNodeClient` Protocol. What follows from an answer for the money is decided in
`routeweiler_sync.payments.wallet_rules`.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from typing import Any

from .._core import env_vars
from ..errors import FundingError, InvoicePaymentError
from ..protocol.invoice import decode_invoice
from .replies import WalletAnswer, WalletReply, preimage_fits, tidy
from .wallet import NETWORKS, LightningNodeClient, NotPermittedError, PaymentStatus, WalletClient, default_fee_cap_msat

# How long to wait between two questions to a client that can't follow a payment by itself.
_POLL_S_MIN, _POLL_S_MAX = 0.1, 2.0


@dataclass(eq=False)
class LightningFundingSource:
    """A source of money for payments over Lightning: ``client`` is an `LndClient`, or any `LightningNodeClient`.

    ``network`` is ``bitcoin``, ``bitcoin-testnet``, ``bitcoin-signet`` or ``bitcoin-regtest``. ``node_pubkey`` (66 hex digits) is
    the node's key. If it is None, the node is asked for it at the first purchase; if it is given, the node's key must be the same.
    ``max_fee_msat`` is the most that routing one payment may cost; None means max(10 000 msat, 5 % of the amount). The constructor
    doesn't ask the node.

    A client that isn't a `WalletClient` may block for as long as it likes: its `pay_invoice` can't be given a deadline.

    Raises: ValueError for an unknown network, or a ``max_fee_msat`` that isn't a whole number of msat from 0 upwards.
    """

    client: LightningNodeClient
    network: str
    node_pubkey: str | None = None
    max_fee_msat: int | None = None
    # Id of the process that has asked the node for its key. A forked child and an unpickled copy ask again.
    _asked_in: int | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        fee = self.max_fee_msat
        if fee is not None and (isinstance(fee, bool) or not isinstance(fee, int) or fee < 0):
            raise ValueError(f"max_fee_msat must be a whole number of msat, 0 or more, or None, not {fee!r}")
        if self.network not in NETWORKS:
            raise ValueError(f"network must be one of {', '.join(NETWORKS)}, not {self.network!r}")
        if self.node_pubkey is not None:
            self.node_pubkey = self.node_pubkey.lower()

    @classmethod
    def create(cls, client: LightningNodeClient, network: str, *, max_fee_msat: int | None = None) -> LightningFundingSource:
        """Return a funding source whose ``node_pubkey`` is the key that the node reports. Otherwise as the constructor.

        Raises: FundingError if lnd can't be asked. Any other client's exception is raised as it is.
        """
        return cls(client=client, network=network, node_pubkey=client.get_node_pubkey(), max_fee_msat=max_fee_msat)

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
        client, deadline = self.client, time.monotonic() + timeout_s
        if isinstance(client, WalletClient):
            client.check_ready(timeout_s)
        if self._asked_in == os.getpid() and self.node_pubkey is not None:
            return self.node_pubkey
        pubkey, network = self._identity(deadline - time.monotonic())
        if self.node_pubkey is not None and pubkey != self.node_pubkey:
            raise FundingError(
                f"The node's key is {pubkey}, but node_pubkey is {self.node_pubkey}.",
                advice="Correct node_pubkey, or the node's address.",
            )
        if network not in ("", self.network):
            raise FundingError(
                f"The node is on {network}, but the funding source is for {self.network}.",
                advice="Correct the argument network.",
                shell_advice=f"Name a node that is on {self.network}, and set {env_vars.NETWORK} to it or not at all.",
            )
        self.node_pubkey, self._asked_in = pubkey, os.getpid()
        return pubkey

    def send(self, bolt11: str, *, payment_hash: bytes, max_fee_msat: int, timeout_s: float) -> WalletAnswer:
        """Order the node to pay ``bolt11``, and wait at most ``timeout_s`` seconds for the outcome.

        ``payment_hash`` is the invoice's (32 bytes). Routing may cost at most ``max_fee_msat``. A client's errors are returned as
        answers, not raised.

        Money: the invoice's amount and the routing fee.
        """
        client = self.client
        if isinstance(client, WalletClient):
            return client.send(bolt11, payment_hash=payment_hash, max_fee_msat=max_fee_msat, timeout_s=timeout_s)
        try:
            preimage = client.pay_invoice(bolt11, max_fee_msat=max_fee_msat)
        except InvoicePaymentError as error:
            return WalletAnswer(reply=WalletReply.FAILED, reason=error.failure_reason or tidy(error.brief))
        except FundingError as error:
            return WalletAnswer(reply=WalletReply.REFUSED, reason=tidy(error.brief))
        except Exception as error:  # noqa: BLE001 - by the Protocol, any other exception leaves the outcome unknown
            return WalletAnswer(reply=WalletReply.UNKNOWN, reason=tidy(f"{type(error).__name__}: {error}"))
        if not isinstance(preimage, bytes) or len(preimage) != 32:
            return WalletAnswer(reply=WalletReply.UNKNOWN, reason="the client's pay_invoice didn't return a preimage of 32 bytes")
        return self._paid(bolt11, preimage, payment_hash, max_fee_msat)

    def track(self, payment_hash: bytes, *, timeout_s: float, follow: bool) -> WalletAnswer:
        """Ask the node about the payment with this hash (32 bytes); ``follow`` waits for its end, at most ``timeout_s`` seconds.

        A client's errors are returned as answers, not raised.

        Money: none moves.
        """
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
        """Return the answer for a ``preimage`` that `pay_invoice` returned: 32 bytes, not yet compared with ``payment_hash``.

        `pay_invoice` doesn't return the routing fee, so the node is asked for it.
        """
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
            return _read_status(self.client.track_payment(payment_hash), payment_hash)
        except Exception as error:  # noqa: BLE001 - no error of a client, of whatever kind, says anything about the payment
            return WalletAnswer(reply=WalletReply.UNKNOWN, reason=tidy(f"{type(error).__name__}: {error}"))

    def _identity(self, timeout_s: float) -> tuple[str, str]:
        """Return the node's public key and network. The network is "" if it can't be found out.

        If the macaroon doesn't permit GetInfo and ``node_pubkey`` was given, that key is returned.

        Raises: FundingError if the node can't be asked.
        """
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
            raise FundingError(
                f"The node can't be asked for its key ({tidy(str(error))}).", advice="Check that the node is up."
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_asked_in": None}


def _read_status(status: PaymentStatus, payment_hash: bytes) -> WalletAnswer:
    match status.state:
        case "succeeded":
            fits = preimage_fits(status.preimage, payment_hash)
            return WalletAnswer(
                reply=WalletReply.SUCCEEDED if fits else WalletReply.WRONG_PREIMAGE,
                preimage=status.preimage,
                amount_msat=status.amount_msat,
                fee_msat=status.fee_msat,
            )
        case "failed":
            return WalletAnswer(reply=WalletReply.FAILED, reason=status.failure_reason)
        case "in_flight":
            return WalletAnswer(reply=WalletReply.IN_FLIGHT)
        case "unknown_hash":
            return WalletAnswer(reply=WalletReply.NOT_FOUND)
    return WalletAnswer(reply=WalletReply.UNKNOWN, reason=tidy(f"the client's track_payment returned the state {status.state!r}"))
