"""Read what a wallet client of a program's own returns, whatever it is, into values that are safe to act on.

A client is foreign code: it may return None, other types, or a coroutine, and its attributes may raise. Nothing here believes more
than is proved: a payment is made only if the preimage fits, and what can't be read is UNKNOWN. How a client is called is left to
`source`, and what follows from an answer for the money to `routeweiler_sync.payments.wallet_rules`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Container
from contextlib import suppress
from types import CoroutineType
from typing import Any

from .._core.secret_text import may_be_secret, shown, without_secrets
from ..errors import FundingError
from .replies import WalletAnswer, WalletReply, preimage_fits, tidy

#: The methods of the two Protocols, with arguments as a purchase gives them.
_NODE_CALLS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "pay_invoice": (("",), {"max_fee_msat": 0}),
    "track_payment": ((b"",), {}),
    "get_node_pubkey": ((), {}),
}
_WALLET_CALLS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "send": (("",), {"payment_hash": b"", "max_fee_msat": 0, "timeout_s": 1.0}),
    "track": ((b"",), {"timeout_s": 1.0, "follow": False}),
    "check_ready": ((1.0,), {}),
    "get_info": ((), {"timeout_s": 1.0}),
}
_KEY = re.compile(r"[0-9a-f]{66}")
_HASH_BYTES = 32


def check_methods(client: Any, *, is_wallet: bool, only: Container[str] | None = None) -> None:
    """Check that ``client`` has the methods that a purchase calls, and that they can be called so. ``is_wallet``: a `WalletClient`.

    ``only`` names the methods to check; None means all.

    A fault found only once the payment is ordered would leave its ledger row without an outcome.

    Raises: FundingError.
    Money: none moves; nothing is called.
    """
    for name, (args, kwargs) in (_WALLET_CALLS if is_wallet else _NODE_CALLS).items():
        if only is not None and name not in only:
            continue
        try:
            method = getattr(client, name)
        except Exception as error:
            raise _unfit(client, f"has no {name}() ({type(error).__name__})") from error
        if not callable(method):
            raise _unfit(client, f"has no {name}(), but a {type(method).__name__} of that name")
        if _is_async(method) or _is_async(vars(type(method)).get("__call__")):
            raise _unfit(client, f"has an async {name}(), which nobody awaits here")
        with suppress(ValueError):  # a function written in C may have no signature
            try:
                inspect.signature(method).bind(*args, **kwargs)
            except TypeError as error:
                raise _unfit(client, f"has a {name}() that takes other arguments ({tidy(str(error))})") from error


def sound_key(key: object) -> str | None:
    """Return a node's public key in lower case, or None if ``key`` isn't a string of 66 hex digits."""
    text = str.__str__(key).lower() if isinstance(key, str) else ""
    return text if _KEY.fullmatch(text) else None


def node_key(key: object) -> str:
    """Return the public key that a client reports, in lower case. Each ledger row names it.

    Raises: FundingError if ``key`` isn't a string of 66 hex digits. Rows of two wallets couldn't be told apart then.
    """
    sound = sound_key(key)
    if sound is None:
        what = shown(key) if isinstance(key, (str, bytes, int, type(None))) else f"an object of the type {type(key).__name__}"
        close(key)
        raise FundingError(
            f"The wallet reports {what} as its node's public key, which must be a string of 66 hex digits.",
            advice="Correct the wallet client: ledger rows name the node by its key.",
        )
    return sound


def read_answer(answer: object, payment_hash: bytes) -> WalletAnswer:
    """Return the `WalletAnswer` that a `WalletClient` has returned, with only what it proves.

    A preimage that fits proves the payment, whatever else the answer says.
    """
    if not isinstance(answer, WalletAnswer) or not isinstance(answer.reply, WalletReply):
        return _unread("wallet client", answer)
    reason, reply = read_reason(answer.reason, (payment_hash.hex(),)), answer.reply
    preimage, fee_msat = read_preimage(answer.preimage, payment_hash), read_msat(answer.fee_msat)
    if preimage_fits(preimage, payment_hash):
        if reply not in (WalletReply.SUCCEEDED, WalletReply.WRONG_PREIMAGE):
            fee_msat = fee_msat or None  # 0 is what an answer says that tells no fee
        reply = WalletReply.SUCCEEDED
    elif reply is WalletReply.SUCCEEDED:
        if preimage is None:
            return WalletAnswer(reply=WalletReply.UNKNOWN, reason="the wallet client reports success without a preimage")
        reply = WalletReply.WRONG_PREIMAGE
    if reply in (WalletReply.SUCCEEDED, WalletReply.WRONG_PREIMAGE):
        amount_msat = read_msat(answer.amount_msat) or 0
        return WalletAnswer(reply=reply, preimage=preimage, amount_msat=amount_msat, fee_msat=fee_msat, reason=reason)
    return WalletAnswer(reply=reply, reason=reason)


def read_status(status: object, payment_hash: bytes) -> WalletAnswer:
    """Return the answer that the ``status`` from `LightningNodeClient.track_payment` amounts to.

    A preimage that fits proves the payment, whatever else the status says. Success without a preimage of 32 bytes proves nothing
    yet: the node is asked again later. `PaymentStatus` may be replaced by another object with the same attributes.
    """
    state: object = getattr(status, "state", None)
    preimage = read_preimage(getattr(status, "preimage", None), payment_hash)
    if preimage_fits(preimage, payment_hash) or (preimage is not None and _is(state, "succeeded")):
        return WalletAnswer(
            reply=WalletReply.SUCCEEDED if preimage_fits(preimage, payment_hash) else WalletReply.WRONG_PREIMAGE,
            preimage=preimage,
            amount_msat=read_msat(getattr(status, "amount_msat", 0)) or 0,
            fee_msat=read_msat(getattr(status, "fee_msat", None)),
        )
    if _is(state, "succeeded"):
        return WalletAnswer(
            reply=WalletReply.UNKNOWN, reason="the client's track_payment reports success without a preimage of 32 bytes"
        )
    if _is(state, "failed"):
        return WalletAnswer(
            reply=WalletReply.FAILED, reason=read_reason(getattr(status, "failure_reason", None), (payment_hash.hex(),))
        )
    if _is(state, "in_flight"):
        return WalletAnswer(reply=WalletReply.IN_FLIGHT)
    if _is(state, "unknown_hash"):
        return WalletAnswer(reply=WalletReply.NOT_FOUND)
    if not hasattr(status, "state"):
        return _unread("client's track_payment", status)
    what = shown(state) if isinstance(state, (str, int, type(None))) else f"a {type(state).__name__}"
    return WalletAnswer(reply=WalletReply.UNKNOWN, reason=tidy(f"the client's track_payment returned the state {what}"))


def read_preimage(value: object, payment_hash: bytes) -> bytes | None:
    """Return the preimage in ``value``: its 32 bytes, or None if it has none.

    Besides bytes, other forms are read (bytearray, memoryview, hex) if the preimage in them fits ``payment_hash``.
    """
    found: bytes | None = None
    if isinstance(value, (bytes, bytearray, memoryview)):
        found = bytes(value)
    if isinstance(found, bytes) and len(found) == _HASH_BYTES:
        return found
    text = value if isinstance(value, str) else found.decode("latin-1") if found is not None else ""
    if len(text) == 2 * _HASH_BYTES and text.isascii():
        with suppress(ValueError):
            found = bytes.fromhex(text)
            return found if preimage_fits(found, payment_hash) else None
    return None


def read_msat(value: object) -> int | None:
    """Return ``value``, an amount in msat; None if it isn't a whole number of msat from 0 upwards."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        return None
    return int(value)


def read_reason(value: object, keep: tuple[str, ...] = ()) -> str | None:
    """Return a wallet's reason as one line without what may be a secret. ``keep`` are texts in it that are none."""
    if value is None:
        return None
    try:
        text = str.__str__(value) if isinstance(value, str) else str(value)
        return tidy(without_secrets(text, keep)) or None
    except Exception:  # noqa: BLE001 - an object of a program's own may raise anything
        return f"a {type(value).__name__} that can't be read"


def read_error(error: BaseException, payment_hash: bytes = b"") -> str:
    """Return a client's exception as one line without what may be a secret."""
    text = read_reason(error, (payment_hash.hex(),))
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def cause_of(error: Exception) -> Exception | None:
    """Return ``error`` as the cause of an error of this package, or None if its text may hold a secret."""
    try:
        return None if may_be_secret(str(error)) else error
    except Exception:  # noqa: BLE001 - an object of a program's own may raise anything
        return None


def close(value: object) -> None:
    """Close ``value`` if it is a coroutine, which nobody awaits."""
    if isinstance(value, CoroutineType):
        with suppress(Exception):
            value.close()


def _unread(who: str, value: object) -> WalletAnswer:
    close(value)
    hint = ", which nobody awaits here" if inspect.isawaitable(value) else ""
    return WalletAnswer(reply=WalletReply.UNKNOWN, reason=f"the {who} returned an object of the type {type(value).__name__}{hint}")


def _is(state: object, name: str) -> bool:
    return isinstance(state, str) and str.__eq__(state, name) is True


def _is_async(method: object) -> bool:
    return inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method)


def _unfit(client: object, cause: str) -> FundingError:
    return FundingError(
        f"The wallet client {type(client).__name__} {cause}.",
        advice="Give a client with the methods of LightningNodeClient, as functions that return when the work is done.",
    )
