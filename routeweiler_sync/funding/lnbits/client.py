"""A wallet of an LNbits server over HTTP: `LnbitsClient`.

Knows which requests pay, ask and list, and in what order. How LNbits' answers are read is left to `replies`, and the connection to
`http_calls`, which is imported at the first use.

Requests and their meaning: LNbits 1.6, core/views/payment_api.py and core/views/wallet_api.py; first in 1.0.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from ..._core.deadline import Deadline
from ..._core.durations import read_seconds
from ..._core.forks import importing
from ..._core.preload import prepare_to_pay
from ..._core.secret_text import WHERE, kind_of, shown
from ..._core.signals import came_by_signal
from ...errors import FundingError
from ..replies import WalletAnswer, WalletReply, tidy
from ..simple_calls import pay, status_of
from ..variables import made
from ..wallet import NodeInfo, NodePayment, PaymentStatus, derived_identity
from .environment import NAMES, from_environment
from .replies import (
    conclude,
    detail_of,
    fee_of,
    is_outgoing,
    read_list,
    read_lookup,
    read_order,
    rows_of,
    rule_for,
    state_of,
)

if TYPE_CHECKING:
    from ..http_calls import HttpAnswer, HttpCalls

#: Between two look-ups of a payment that is pending. With lnd behind it LNbits itself waits for 30 s in each; other nodes answer
#: at once, and LNbits takes 200 requests a minute unless its admin has set another number.
_POLL_S = 1.0
_PAYMENTS_A_PAGE = 200
_PAGES_MAX = 10_000
#: More rows of one hash than there can be: the payment, and what came in for it in the same wallet.
_ROWS_OF_A_HASH = 5
_KEY = re.compile(r"[!-~]{8,200}")
_FEE_MSAT_MAX = 21_000_000 * 100_000_000 * 1_000

_PAYMENTS, _WALLET = "/api/v1/payments", "/api/v1/wallet"
#: Unlike the plain list it has payments that failed, too.
_LIST = f"{_PAYMENTS}/paginated"
_STATUS = {WalletReply.SUCCEEDED: "SUCCEEDED", WalletReply.FAILED_FOR_GOOD: "FAILED", WalletReply.IN_FLIGHT: "IN_FLIGHT"}
_COPY_KEY = "Copy the admin key of the wallet from LNbits (in the wallet: 'Node URL, API keys and API docs')."


class WrongKeyError(FundingError):
    """LNbits has no wallet with this key, or the key only reads."""


class LnbitsClient:
    """A wallet of an LNbits server, reached over HTTP with the wallet's admin key.

    ``url`` is the server's, as in a browser, for example ``https://lnbits.example``. ``admin_key`` is the key of one wallet that
    pays; its invoice key only reads. ``timeout_seconds`` bounds every call, payments included. While a payment is pending, LNbits
    takes more than 30 seconds to say so, so less than 45 seconds rarely hear what became of it.

    LNbits takes no fee limit with an order: its own (`own_fee_cap_msat`) holds, and a purchase asks for it first.

    The constructor makes no connection. A client is safe to share between threads, and a forked child gets connections of its own.
    A pickled client drops the key. A copy is the same client.

    Raises: ValueError for arguments that can't be right.
    """

    #: Another thread may ask it ahead of a purchase: see `LightningFundingSource.ask_ahead`.
    asked_ahead = True
    #: `get_info` asks what `check_ready` asks: whoever asks for both needs only the one.
    info_proves_ready = True

    def __init__(self, url: str, admin_key: str, *, timeout_seconds: float = 60) -> None:
        from ..http_url import read_wallet_url

        given: object = url
        text = given.strip().rstrip("/").removesuffix("/api/v1") if isinstance(given, str) else url
        self._address = read_wallet_url("url", text)
        #: Where the server is.
        self.url = str(self._address)
        self._admin_key: str | None = _key(admin_key)
        self.timeout_seconds = read_seconds("timeout_seconds", timeout_seconds)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> LnbitsClient:
        """Return a client for the wallet that the environment names (``environ``, by default `os.environ`).

        The variables are ``LNBITS_URL`` and ``LNBITS_ADMIN_KEY``.

        Raises: FundingError that names the variable that is missing or can't be used.
        """
        arguments = from_environment(os.environ if environ is None else environ)
        return made(lambda: cls(**arguments), NAMES)

    # Paying

    def pay_invoice(self, bolt11: str, *, max_fee_msat: int) -> bytes:
        """Pay an invoice and return the 32-byte preimage. A second call for the same invoice pays nothing more.

        Raises: FundingError if LNbits may charge more than ``max_fee_msat``, if nothing was sent, or if LNbits refused the order
        before it began (nothing spent). InvoicePaymentError if the payment has failed (nothing spent). PaymentPendingError if the
        outcome isn't known in time: call again with the same invoice, or ask `track_payment`. PreimageMismatchError if LNbits
        reports success but its preimage doesn't fit (spent).
        Money: the invoice's amount, and at most ``max_fee_msat`` beside it.
        """
        cap_msat = self.own_fee_cap_msat(bolt11, timeout_s=self.timeout_seconds)
        if cap_msat > max_fee_msat:
            raise FundingError(
                f"{self._name} may charge up to {cap_msat} msat for this payment, and max_fee_msat is {max_fee_msat}.",
                advice="Allow that much, or have LNbits' admin lower its fee reserve.",
            )
        sent = pay(self, bolt11, max_fee_msat=max_fee_msat, timeout_s=self.timeout_seconds, wallet="LNbits")
        return sent.payment_preimage

    def send(self, bolt11: str, *, payment_hash: bytes, max_fee_msat: int, timeout_s: float) -> WalletAnswer:
        """Send one payment order, look the hash up unless it has succeeded at once, and return what both say together.

        ``payment_hash`` is the invoice's (32 bytes). Errors are returned as answers, not raised. The reply is REFUSED only if not a
        byte of the order has left, or LNbits refused it before it wrote a row for the hash. An interrupt passes through.
        ``max_fee_msat`` can't be told to LNbits: compare it with `own_fee_cap_msat` before.

        Raises: ValueError if ``max_fee_msat`` is negative.
        Money: the invoice's amount, routing, and LNbits' service fee. After an interrupt LNbits goes on paying.
        """
        if max_fee_msat < 0:
            raise ValueError(f"max_fee_msat is negative: {max_fee_msat}")
        deadline = Deadline(self._bounded(timeout_s))
        try:
            calls = self._calls
            from ..http_calls import HttpCallError, HttpRequest, NotSentError

            request = HttpRequest.of_json("POST", _PAYMENTS, {"out": True, "bolt11": bolt11}, self._headers())
        except FundingError as error:
            return WalletAnswer(reply=WalletReply.REFUSED, reason=error.brief)
        except Exception as error:  # of whatever kind it is, not a byte of the order has left
            if came_by_signal(error):
                raise
            return WalletAnswer(reply=WalletReply.REFUSED, reason=f"the order can't be made: {type(error).__name__}")
        rule = None
        try:
            answer = calls.order(request, timeout_s=deadline.left_s())
            body = self._body(answer)
            sent = read_order(answer.status, body, payment_hash)
            rule = rule_for("pay", answer.status, body)
        except NotSentError as error:
            return WalletAnswer(reply=WalletReply.REFUSED, reason=f"{self._name}: {error.what}; {error.advice}")
        except FundingError as error:  # before the connection was made
            return WalletAnswer(reply=WalletReply.REFUSED, reason=error.brief)
        except HttpCallError as error:
            sent = WalletAnswer(reply=WalletReply.UNKNOWN, reason=f"{self._name}: {error.what}")
        except Exception as error:  # of whatever kind it is, the order may have left
            if came_by_signal(error):
                raise
            sent = WalletAnswer(reply=WalletReply.UNKNOWN, reason=f"the answer can't be read: {type(error).__name__}")
        if sent.reply is WalletReply.SUCCEEDED:
            return sent
        return conclude(sent, rule, self._looked_up(payment_hash, deadline, follow=True))

    # Asking: none of these methods can move money

    def track(self, payment_hash: bytes, *, timeout_s: float, follow: bool) -> WalletAnswer:
        """Look the payment with this hash (32 bytes) up. ``follow`` waits for its end, at most ``timeout_s`` seconds.

        Errors are returned as answers, not raised. UNKNOWN proves nothing at all.
        """
        return self._looked_up(payment_hash, Deadline(self._bounded(timeout_s)), follow=follow)

    def track_payment(self, payment_hash: bytes | str) -> PaymentStatus:
        """Return what LNbits knows now of the payment with this hash (32 bytes or 64 hex digits).

        Raises: FundingError if LNbits can't be asked. PreimageMismatchError if its preimage doesn't fit the payment hash.
        ValueError for a hash of another length.
        """
        return status_of(self, payment_hash, timeout_s=self.timeout_seconds, wallet="LNbits")

    def check_ready(self, timeout_s: float) -> None:
        """Return once LNbits has said that the key is the admin key of one of its wallets.

        Whether LNbits' own node is up can't be asked.

        Raises: FundingError with the cause: no server, no such key, or a key that only reads.
        """
        self._wallet(timeout_s)

    def get_info(self, *, timeout_s: float | None = None) -> NodeInfo:
        """Return the wallet's identity, which is made of its id, and its name. LNbits tells no network.

        Raises: FundingError if LNbits can't be asked, or the key isn't a wallet's admin key.
        """
        wallet = self._wallet(timeout_s)
        return NodeInfo(
            identity_pubkey=derived_identity("lnbits", wallet["id"]),
            alias=tidy(str(wallet.get("name") or "")),
        )

    def get_node_pubkey(self) -> str:
        """Return the wallet's identity, 66 hex digits. Raises: FundingError if LNbits can't be asked."""
        return self.get_info().identity_pubkey

    def own_fee_cap_msat(self, bolt11: str, *, timeout_s: float) -> int:
        """Return the most that LNbits lets the payment of ``bolt11`` cost beside its amount, in msat, its service fee included.

        It is what LNbits' admin has set. No order can lower it.

        Raises: FundingError if LNbits can't be asked.
        """
        query = urlencode({"invoice": bolt11})
        answer = self._asked(f"{_PAYMENTS}/fee-reserve?{query}", timeout_s)
        body = self._body(answer)
        reserve = body.get("fee_reserve") if isinstance(body, dict) else None
        if answer.status == 200 and isinstance(reserve, int) and not isinstance(reserve, bool) and 0 <= reserve <= _FEE_MSAT_MAX:
            return reserve
        raise self._refused(answer, "doesn't say what the payment may cost", "Ask for another invoice, or look at LNbits' log.")

    def spendable_msat(self, *, timeout_s: float) -> int:
        """Return the wallet's balance in msat. A payment needs its amount and `own_fee_cap_msat` of it.

        Raises: FundingError if LNbits can't be asked, or the key isn't a wallet's admin key.
        """
        balance = self._wallet(timeout_s).get("balance")
        if isinstance(balance, bool) or not isinstance(balance, int):
            raise FundingError(
                f"{self._name} doesn't tell the wallet's balance.", advice="Check that the URL is an LNbits server's."
            )
        return balance

    def list_payments(self) -> Iterator[NodePayment]:
        """Yield all payments that left the wallet, failed and unfinished ones too, oldest first. Asks page by page.

        Raises: FundingError if LNbits can't be asked.
        """
        seen: set[str] = set()
        for page in range(_PAGES_MAX):
            query = urlencode(
                {
                    "limit": _PAYMENTS_A_PAGE,
                    "offset": page * _PAYMENTS_A_PAGE,
                    "sortby": "time",
                    "direction": "asc",
                    "amount[lt]": 0,
                }
            )
            answer = self._asked(f"{_LIST}?{query}", None)
            rows = rows_of(self._body(answer))
            if answer.status != 200 or rows is None:
                raise self._refused(answer, "doesn't list the wallet's payments", _COPY_KEY)
            for row in rows:
                key = str(row.get("checking_id")) if isinstance(row, dict) else ""
                if is_outgoing(row) and key not in seen:
                    seen.add(key)
                    yield _listed(row)
            if len(rows) < _PAYMENTS_A_PAGE:
                return

    def close(self) -> None:
        """Close the connections. May be called twice; a later call connects anew. LNbits goes on with payments that have begun."""
        if (calls := self.__dict__.get("_opened")) is not None:
            calls.close()

    def _looked_up(self, payment_hash: bytes, deadline: Deadline, *, follow: bool) -> WalletAnswer:
        """Return what LNbits says of the payment. ``follow``: ask until it has ended or ``deadline`` has passed."""
        try:
            while True:
                answer = self._look(payment_hash, deadline)
                if not follow or answer.reply is not WalletReply.IN_FLIGHT:
                    return answer
                deadline.pause(_POLL_S)
                if deadline.passed:
                    return answer
        except FundingError as error:
            return WalletAnswer(reply=WalletReply.UNKNOWN, reason=error.brief)
        except Exception as error:  # no error, of whatever kind, says anything about the payment
            if came_by_signal(error):
                raise
            return WalletAnswer(reply=WalletReply.UNKNOWN, reason=f"the answer can't be read: {type(error).__name__}")

    def _look(self, payment_hash: bytes, deadline: Deadline) -> WalletAnswer:
        """Ask for the payment's row, then, unless that has ended, let LNbits ask its node (which may take 30 seconds and more).

        The list shows a row at once, and tells a wrong key, which a look-up doesn't.

        Raises: FundingError if there is no key.
        """
        calls = self._calls
        from ..http_calls import HttpCallError, HttpRequest

        def ask(path: str) -> HttpAnswer:
            return calls.ask(HttpRequest(method="GET", path=path, headers=self._headers()), timeout_s=deadline.left_s())

        listed = WalletAnswer(reply=WalletReply.UNKNOWN)
        is_stranger = False
        hash_hex = payment_hash.hex()
        try:
            answer = ask(f"{_LIST}?{urlencode({'payment_hash': hash_hex, 'limit': _ROWS_OF_A_HASH})}")
            listed = read_list(answer.status, self._body(answer), payment_hash)
            is_stranger = answer.status in (401, 403) or (
                answer.status == 404 and detail_of(self._body(answer)) == "Wallet not found."
            )
            if listed.reply in (WalletReply.SUCCEEDED, WalletReply.FAILED_FOR_GOOD):
                return listed
            if deadline.passed:
                return listed if listed.reply is WalletReply.IN_FLIGHT else WalletAnswer(reply=WalletReply.UNKNOWN)
            answer = ask(f"{_PAYMENTS}/{hash_hex}")
        except HttpCallError as error:
            if listed.reply is WalletReply.IN_FLIGHT:
                return listed
            return WalletAnswer(reply=WalletReply.UNKNOWN, reason=f"{self._name}: {error.what}")
        looked_up = read_lookup(answer.status, self._body(answer), payment_hash)
        if looked_up.reply is WalletReply.NOT_FOUND and is_stranger:
            return listed
        if looked_up.reply is WalletReply.UNKNOWN and listed.reply is WalletReply.IN_FLIGHT:
            return listed
        return looked_up

    def _wallet(self, timeout_s: float | None) -> dict[str, Any]:
        """Return what LNbits says about the wallet of the key. Raises: FundingError if the key can't pay."""
        answer = self._asked(_WALLET, timeout_s)
        body = self._body(answer)
        if answer.status != 200 or not isinstance(body, dict) or "balance" not in body:
            raise self._refused(answer, "isn't ready to pay", _COPY_KEY)
        if not isinstance(body.get("id"), str) or not body["id"]:
            raise WrongKeyError(f"{self._name} says that the key is an invoice key, which can read but not pay.", advice=_COPY_KEY)
        return body

    def _refused(self, answer: HttpAnswer, what: str, advice: str) -> FundingError:
        """Return the error for an answer that isn't what was asked for."""
        from ..._core.secret_text import without_secrets

        detail = tidy(without_secrets(detail_of(self._body(answer)))).removesuffix(".")
        if answer.status == 404 and detail == "Wallet not found":
            return WrongKeyError(f"{self._name} knows no wallet with this key.", advice=_COPY_KEY)
        if answer.status == 429:
            return FundingError(
                f"{self._name} gets too many requests ({detail or 'HTTP status 429'}).",
                advice="Wait a minute, or have its admin raise LNBITS_RATE_LIMIT_NO.",
            )
        if not detail or detail == "Not Found":
            return FundingError(
                f"{self._name} answers with HTTP status {answer.status}, and not as LNbits does.",
                advice="Check that the URL is an LNbits server's, as in a browser, without what comes after its host.",
            )
        return FundingError(f"{self._name} {what}: {detail}.", advice=advice)

    def _asked(self, path: str, timeout_s: float | None) -> HttpAnswer:
        """Return the answer to a question. Raises: FundingError if there is none."""
        calls = self._calls
        from ..http_calls import HttpCallError, HttpRequest

        bound_s = self.timeout_seconds if timeout_s is None else self._bounded(timeout_s)
        try:
            return calls.ask(HttpRequest(method="GET", path=path, headers=self._headers()), timeout_s=bound_s)
        except HttpCallError as error:
            advice = f"{error.advice[:1].upper()}{error.advice[1:]}."
            raise FundingError(f"{self._name} can't be asked: {error.what}.", advice=advice) from None

    def _body(self, answer: HttpAnswer) -> Any:
        """Return the JSON of an answer, None if it has none. The key is left out, should the server repeat it."""
        from ..http_calls import read_json

        try:
            body = read_json(answer.body)
            if self._admin_key is None:
                return body
            # Searched for in what was read, as JSON has many spellings of a text.
            text, key = json.dumps(body, ensure_ascii=False), json.dumps(self._admin_key)[1:-1]
            hidden = re.sub(re.escape(key), "<key>", text, flags=re.IGNORECASE)
            return body if hidden == text else read_json(hidden.encode("utf-8", "surrogatepass"))
        except (ValueError, RecursionError):
            return None

    def _headers(self) -> dict[str, str]:
        if self._admin_key is None:
            raise FundingError(
                f"This client of {self._name} was unpickled, and keys aren't pickled, so it can't pay.",
                advice="Make a client in this process, with the admin key.",
            )
        return {"X-Api-Key": self._admin_key}

    @property
    def _name(self) -> str:
        return f"LNbits at {self.url}"

    @property
    def _calls(self) -> HttpCalls:
        if (calls := self.__dict__.get("_opened")) is None:
            prepare_to_pay()
            with importing:
                from ..http_calls import HttpCalls

            # setdefault is atomic: threads that come here at the same time all get the same one.
            calls = self.__dict__.setdefault("_opened", HttpCalls(self._address))
        opened: HttpCalls = calls
        return opened

    def _bounded(self, timeout_s: float) -> float:
        return min(timeout_s, self.timeout_seconds)

    def __repr__(self) -> str:
        return f"LnbitsClient({self.url})"

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_opened"} | {"_admin_key": None}

    def __copy__(self) -> LnbitsClient:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> LnbitsClient:
        return self


def _key(given: object) -> str:
    """Return the admin key in ``given``. Raises: ValueError for what can't be one. Its text never repeats it."""
    if not isinstance(given, str):
        raise ValueError(f"admin_key must be a text, not {shown(given)}")
    text = given.strip()
    if (kind := kind_of(text)) != "a secret":
        raise ValueError(f"admin_key isn't the key of an LNbits wallet: it looks like {kind}, and so isn't shown. {WHERE[kind]}")
    if not _KEY.fullmatch(text) or "://" in text:
        raise ValueError(
            f"admin_key isn't the key of an LNbits wallet, and isn't shown: it has {len(text)} characters, not 32 hex digits"
        )
    return text


def _listed(row: dict[str, Any]) -> NodePayment:
    status = _STATUS.get(state_of(row), "UNKNOWN")
    return NodePayment(
        payment_hash=str(row.get("payment_hash")),
        status=status,
        amount_msat=-row["amount"],
        fee_msat=(fee_of(row) or 0) if status == "SUCCEEDED" else 0,
        failure_reason=None,
        created_at_ns=_unix_ns(row.get("time")),
    )


def _unix_ns(text: Any) -> int:
    """Return the unix time in nanoseconds of a time as LNbits writes it (ISO 8601, UTC), 0 if it can't be read."""
    try:
        time = datetime.fromisoformat(str(text).replace("Z", "+00:00"))
        return int((time if time.tzinfo else time.replace(tzinfo=timezone.utc)).timestamp() * 1_000_000) * 1_000
    except (ValueError, OverflowError, OSError):
        return 0
