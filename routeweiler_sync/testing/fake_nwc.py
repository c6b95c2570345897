"""`FakeNwc`: a wallet behind Nostr Wallet Connect to test against: relays and a wallet service on 127.0.0.1, with faults on demand.

A `FakeLnd` does the paying, with its own faults. What the wallet's service says, when it lies and when it is silent is here; the
relay is left to `_nostr_relay`, the rules by which payments start and end to `_lnd_book`.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal
from urllib.parse import quote
from weakref import WeakSet

from .._core.money import sats
from ..funding.lightning import Funding, LightningFundingSource
from ..funding.lnd.stubs import routeweiler_lnd_pb2 as pb
from ..funding.nwc.client import NwcClient
from ._lnd_book import Entry, FakeOrder, OrderError
from ._nostr_relay import SWALLOW, Relay
from .fake_lnd import FakeLnd

__all__ = ["FakeNwc"]

METHODS = ("pay_invoice", "lookup_invoice", "get_info", "get_balance", "list_transactions")
_INFO, _REQUEST, _RESPONSE = 13194, 23194, 23195
_WAKE_S = 0.5
_PAGE_MAX = 50


@dataclass(frozen=True, kw_only=True, slots=True)
class NwcRequest:
    """A request that reached the wallet: NIP-47's method, the id of its event, and how it was encrypted."""

    method: str
    id: str
    nip44: bool
    expires_at: int | None = None
    params: dict[str, Any] = field(default_factory=dict, repr=False)


class _WalletError(Exception):
    """An error of NIP-47: code and text."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(code, text)
        self.code, self.text = code, text


class _SilentError(Exception):
    """The wallet says nothing to this request."""


class FakeNwc:
    """A wallet of NWC that runs inside ``with``, over a running `FakeLnd` that pays for it.

        with FakeLnd() as lnd, FakeNwc(lnd) as wallet:
            invoice = lnd.invoice(10_000)
            wallet.client().pay_invoice(invoice.bolt11, max_fee_msat=10_000)

    ``relays`` is how many relays its URI names; the wallet listens on all of them. ``methods`` are the requests that the connection
    may make. ``nip44`` False: the wallet reads NIP-04 alone. Needs the extra ``nwc`` beside ``testing``.

    The faults named ``…_next`` strike the next payment order, or the next ``times`` orders; with ``times=None`` all, until
    `clear_faults`. The faults of the `FakeLnd` act too: a hanging payment hangs here, and one that drops an order loses it.
    """

    def __init__(self, lnd: FakeLnd, *, relays: int = 1, nip44: bool = True, methods: Sequence[str] = METHODS) -> None:
        import nostr_sdk

        self._sdk: Any = nostr_sdk
        self.lnd = lnd
        self.methods = tuple(methods)
        self.nip44 = nip44
        #: Whether payments tell ``fees_paid``: in the answer to the order, and in look-ups.
        self.tells_fees = True
        self.looks_up_fees = True
        #: The network that get_info tells; None: it tells none.
        self.network: str | None = "regtest"
        #: What the wallet has been asked, in order of arrival.
        self.requests: list[NwcRequest] = []
        self.relays = [Relay() for _ in range(relays)]
        self._keys = nostr_sdk.Keys.generate()
        self._client_keys = nostr_sdk.Keys.generate()
        self.wallet_key: str = self._keys.public_key().to_hex()
        self.client_key: str = self._client_keys.public_key().to_hex()
        self._lock = threading.RLock()
        self._planned: dict[str, tuple[int | None, Any]] = {}
        self._seen: set[str] = set()
        self._told_failed: set[str] = set()
        self._late: list[dict[str, Any]] = []
        self._run = 0  # which start of the service this is; 0 while it is down
        self._runs = 0
        self._clients: WeakSet[NwcClient] = WeakSet()
        for relay in self.relays:
            relay.gate, relay.heard = self._gate, self._heard

    def __repr__(self) -> str:
        asked = Counter(request.method for request in self.requests)
        told = ", ".join(f"{count} {method}" for method, count in sorted(asked.items())) or "no requests"
        return f"<FakeNwc {self.wallet_key[:8]}…: {told}, spent {sats(self.lnd.spent_msat)}>"

    # Start and stop

    def __enter__(self) -> FakeNwc:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for client in list(self._clients):
            client.close()
        self.stop()

    def start(self) -> None:
        """Start the relays and the service, or what of them is down. Ports and keys stay the same."""
        for relay in self.relays:
            relay.start()
        self.start_service()

    def stop(self) -> None:
        """Stop relays and service at once, as killed processes end. Payments in flight stay in flight."""
        self.stop_service()
        for relay in self.relays:
            relay.stop()

    def restart(self) -> None:
        """Stop and start everything."""
        self.stop()
        self.start()

    def start_service(self) -> None:
        """Start the wallet's service, and publish its info event."""
        with self._lock:
            if self._run:
                return
            self._runs += 1
            self._run = self._runs
        for relay in self.relays:
            relay.publish(self._info_event())

    def stop_service(self) -> None:
        """Stop the wallet's service: requests get no answer, nor do those that it is working on. Relays go on."""
        with self._lock:
            self._run = 0
        with self.lnd._book.changed:
            self.lnd._book.changed.notify_all()

    # Address and clients

    @property
    def secret(self) -> str:
        """The client's private key, 64 hex digits, as it stands in `uri`."""
        secret: str = self._client_keys.secret_key().to_hex()
        return secret

    @property
    def uri(self) -> str:
        """The connection's URI. It contains the secret."""
        relays = "".join(f"relay={quote(relay.url, safe='')}&" for relay in self.relays)
        return f"nostr+walletconnect://{self.wallet_key}?{relays}secret={self.secret}"

    @property
    def environ(self) -> dict[str, str]:
        """The environment variable that names this wallet, for a program under test that runs as a process of its own."""
        return {"NWC_URL": self.uri}

    def client(self, **kwargs: Any) -> NwcClient:
        """Return a client of this wallet; ``kwargs`` are arguments of `NwcClient`, and replace those set here."""
        client = NwcClient(**{"uri": self.uri} | kwargs)
        self._clients.add(client)
        return client

    def funding(self, **kwargs: Any) -> LightningFundingSource:
        """Return a funding source on this wallet; ``kwargs`` are arguments of `Funding.lightning`, and replace those set here."""
        arguments: dict[str, Any] = {"network": "bitcoin-regtest"}
        if "client" not in kwargs:
            arguments["client"] = self.client()
        return Funding.lightning(**arguments | kwargs)

    # Faults

    def refuse_next(self, code: str, text: str = "", *, times: int | None = 1) -> None:
        """Answer an order with this error of NIP-47 before anything has begun."""
        self._plan("refuse", (code, text), times)

    def fail_next(
        self, code: str = "PAYMENT_FAILED", text: str = "no route", *, settles_later: bool = False, times: int | None = 1
    ) -> None:
        """Let a payment start, and answer the order with this error; look-ups say "failed".

        ``settles_later``: it isn't over at all, and is paid at `settle_failed`.
        """
        self._plan("fail", (code, text, settles_later), times)

    def settle_failed(self) -> None:
        """Pay what `fail_next` with ``settles_later`` has called failed; look-ups say so from now on."""
        with self.lnd._book.changed:
            for payment_hash in list(self._told_failed):
                entry = self.lnd._book.entries.get(bytes.fromhex(payment_hash))
                if entry is not None and entry.attempt.hang:
                    self.lnd._book.finish(entry, now=self.lnd._now())
                    self._told_failed.discard(payment_hash)

    def drop_next(self, what: Literal["answer", "order"], *, times: int | None = 1) -> None:
        """Lose an order on its way to the wallet, though its relay has accepted it; or the answer to one, which is carried out."""
        if what not in ("answer", "order"):
            raise ValueError(f"what is 'answer' or 'order', not {what!r}")
        self._plan(f"drop {what}", True, times)

    def late_next(self, *, times: int | None = 1) -> None:
        """Keep the answer to an order back until `deliver_answers`."""
        self._plan("late", True, times)

    def deliver_answers(self) -> None:
        """Publish the answers that `late_next` has kept back."""
        with self._lock:
            late, self._late = self._late, []
        for event in late:
            self._publish(event)

    def duplicate_next(self, *, times: int | None = 1) -> None:
        """Let the relay deliver an order twice, to a wallet that handles it twice."""
        self._plan("duplicate", True, times)

    def forge_next(self, *, times: int | None = 1) -> None:
        """Publish forged answers to an order before the true one: by a stranger, with a wrong signature, to another request."""
        self._plan("forge", True, times)

    def refuse_at_relay_next(self, text: str, *, times: int | None = 1) -> None:
        """Let the relay refuse an order with ``["OK", id, false, text]``."""
        self._plan("relay", text, times)

    def clear_faults(self) -> None:
        """Cancel all planned faults."""
        with self._lock:
            self._planned.clear()

    def _plan(self, kind: str, value: Any, times: int | None) -> None:
        with self._lock:
            self._planned[kind] = (times, value)

    def _take(self, kind: str) -> Any:
        with self._lock:
            times, value = self._planned.get(kind, (0, None))
            if times is not None:
                if times <= 1:
                    self._planned.pop(kind, None)
                else:
                    self._planned[kind] = (times - 1, value)
            return value

    # The relay's side

    def _gate(self, event: dict[str, Any]) -> str | None:
        """Return what the relay makes of an event that a client publishes; see `Relay`."""
        if event["kind"] != _REQUEST or self._read(event)["method"] != "pay_invoice":
            return None
        if (text := self._take("relay")) is not None:
            return str(text)
        return SWALLOW if self._take("drop order") else None

    def _heard(self, event: dict[str, Any]) -> None:
        run = self._run
        if event["kind"] != _REQUEST or ["p", self.wallet_key] not in event["tags"] or not run:
            return
        asked = self._read(event)
        is_order = asked["method"] == "pay_invoice"
        times = 2 if is_order and self._take("duplicate") else 1
        with self._lock:
            if event["id"] in self._seen:
                return
            self._seen.add(event["id"])
        for _ in range(times):
            threading.Thread(target=self._handle, args=(event, asked, run), daemon=True).start()

    # The wallet's side

    def _handle(self, event: dict[str, Any], asked: dict[str, Any], run: int) -> None:
        method, params, nip44 = asked["method"], asked.get("params") or {}, "?iv=" not in event["content"]
        ends = [int(tag[1]) for tag in event["tags"] if tag[0] == "expiration"]
        with self._lock:
            request = NwcRequest(
                method=method, id=event["id"], nip44=nip44, expires_at=ends[0] if ends else None, params=dict(params)
            )
            self.requests.append(request)
        is_order = method == "pay_invoice"
        try:
            if event["pubkey"] != self.client_key:
                return  # a service listens to the keys that it knows
            if nip44 and not self.nip44:
                raise _WalletError("UNSUPPORTED_ENCRYPTION", "nip04 only")
            if method not in self.methods:
                raise _WalletError("RESTRICTED" if method in METHODS else "NOT_IMPLEMENTED", f"{method} isn't permitted")
            answer = {"result": getattr(self, f"_{method}")(params, run)}
        except _WalletError as error:
            answer = {"error": {"code": error.code, "message": error.text}}
        except _SilentError:
            return
        if self._run != run:
            return  # the process was killed meanwhile
        response = self._response(event, {"result_type": method, "error": None, "result": None} | answer, nip44=nip44)
        if is_order and self._take("drop answer"):
            return
        if is_order and self._take("forge"):
            for forged in self._forged(event, nip44=nip44):
                self._publish(forged)
        if is_order and self._take("late"):
            with self._lock:
                self._late.append(response)
            return
        self._publish(response)

    def _get_info(self, params: dict[str, Any], run: int) -> dict[str, Any]:
        named = {} if self.network is None else {"network": self.network}
        return {"alias": "fake wallet", "pubkey": self.lnd.node_pubkey, "block_height": 446, "methods": list(self.methods)} | named

    def _get_balance(self, params: dict[str, Any], run: int) -> dict[str, Any]:
        with self.lnd._book.changed:
            return {"balance": self.lnd._book.balance_msat}

    def _pay_invoice(self, params: dict[str, Any], run: int) -> dict[str, Any]:
        book, text = self.lnd._book, str(params.get("invoice"))
        with book.changed:
            if (refusal := self._take("refuse")) is not None:
                raise _WalletError(*refusal)
            try:
                invoice = book.check_order(text, 0, self.lnd._now())
            except OrderError as error:
                raise _WalletError("INTERNAL", error.text) from None
            key, amount_msat = bytes.fromhex(invoice.payment_hash), int(invoice.amount_msat)
            known = book.entries.get(key)
            if known is not None and known.payment.status == "SUCCEEDED":
                raise _WalletError("INTERNAL", "this invoice has already been paid")
            if known is not None and known.payment.status == "IN_FLIGHT":
                raise _WalletError("INTERNAL", "there is already a payment pending for this invoice")
            limit_msat = max(10_000, -(-amount_msat // 100))
            if amount_msat + limit_msat > book.balance_msat:
                raise _WalletError("INSUFFICIENT_BALANCE", "Insufficient balance remaining to make the requested payment")
            faults = self.lnd._faults
            book.orders.append(FakeOrder(bolt11=text, fee_limit_msat=limit_msat, timeout_seconds=60))
            if (refusal := faults.take("refuse")) is not None:
                raise _WalletError("INTERNAL", f"rpc error: code = Unknown desc = {refusal[1]}")
            drop = faults.take("drop")
            if drop == "before_init":
                raise _SilentError
            order = pb.SendPaymentRequest(payment_request=text, fee_limit_msat=limit_msat, timeout_seconds=60)
            attempt = self.lnd._service._attempt(order)
            failure = self._take("fail")
            if failure is not None:
                attempt.hang = attempt.hang or failure[2]
                attempt.fail = None if failure[2] else "NO_ROUTE"
            entry, _ = book.init_payment(invoice, text, attempt)
            book.run(entry, now=self.lnd._now())
            if failure is not None:
                self._told_failed.add(entry.payment.payment_hash)
                raise _WalletError(*failure[:2])
            if drop is not None:
                raise _SilentError
            while entry.payment.status == "IN_FLIGHT":
                if self._run != run or not threading.main_thread().is_alive():
                    raise _SilentError
                book.changed.wait(_WAKE_S)
            if entry.payment.status == "FAILED":
                raise _WalletError("PAYMENT_FAILED", f"payment failed: {entry.payment.failure_reason}")
            fees = {"fees_paid": entry.payment.fee_msat} if self.tells_fees else {}
            return {"preimage": entry.messages[-1].payment_preimage} | fees

    def _lookup_invoice(self, params: dict[str, Any], run: int) -> dict[str, Any]:
        with self.lnd._book.changed:
            entry = self.lnd._book.entries.get(bytes.fromhex(str(params.get("payment_hash"))))
            if entry is None:
                raise _WalletError("NOT_FOUND", "The transaction requested was not found")
            return self._transaction(entry)

    def _list_transactions(self, params: dict[str, Any], run: int) -> dict[str, Any]:
        begin, most = int(params.get("offset") or 0), min(int(params.get("limit") or _PAGE_MAX), _PAGE_MAX)
        with self.lnd._book.changed:
            newest_first = [self._transaction(entry) for entry in reversed(self.lnd._book.entries.values())]
        if not params.get("unpaid"):
            newest_first = [each for each in newest_first if each["state"] == "settled"]
        return {"transactions": [] if params.get("type") == "incoming" else newest_first[begin : begin + most]}

    def _transaction(self, entry: Entry) -> dict[str, Any]:
        payment, created_at = entry.payment, entry.created_ns // 10**9
        state = {"SUCCEEDED": "settled", "FAILED": "failed", "IN_FLIGHT": "pending"}[payment.status]
        if payment.payment_hash in self._told_failed and state == "pending":
            state = "failed"
        told: dict[str, Any] = {
            "type": "outgoing",
            "state": state,
            "invoice": entry.bolt11,
            "payment_hash": payment.payment_hash,
            "amount": payment.amount_msat,
            "created_at": created_at,
        }
        if state == "settled":
            told |= {"preimage": entry.messages[-1].payment_preimage, "settled_at": created_at}
            if self.looks_up_fees:
                told["fees_paid"] = payment.fee_msat
        return told

    # Events

    def _publish(self, event: dict[str, Any]) -> None:
        for relay in self.relays:
            relay.publish(event)

    def _read(self, event: dict[str, Any]) -> dict[str, Any]:
        """Return the request in an event of any client."""
        author = self._sdk.PublicKey.parse(event["pubkey"])
        open_ = self._sdk.nip04_decrypt if "?iv=" in event["content"] else self._sdk.nip44_decrypt
        try:
            said = json.loads(open_(self._keys.secret_key(), author, event["content"]))
        except (self._sdk.NostrSdkError, ValueError):
            return {"method": "?"}
        return said if isinstance(said, dict) else {"method": "?"}

    def _info_event(self) -> dict[str, Any]:
        ways = [["encryption", "nip44_v2 nip04"]] if self.nip44 else []
        return self._signed(self._keys, _INFO, " ".join(self.methods), ways)

    def _response(
        self, event: dict[str, Any], said: dict[str, Any], *, nip44: bool, keys: Any = None, about: str | None = None
    ) -> dict[str, Any]:
        keys, client = keys or self._keys, self._sdk.PublicKey.parse(event["pubkey"])
        text = json.dumps(said)
        if nip44:
            content = self._sdk.nip44_encrypt(keys.secret_key(), client, text, self._sdk.Nip44Version.V2)
        else:
            content = self._sdk.nip04_encrypt(keys.secret_key(), client, text)
        return self._signed(keys, _RESPONSE, content, [["p", event["pubkey"]], ["e", about or event["id"]]])

    def _forged(self, event: dict[str, Any], *, nip44: bool) -> list[dict[str, Any]]:
        """Return answers to ``event`` that the wallet has not given."""
        lie = {"result_type": "pay_invoice", "error": {"code": "QUOTA_EXCEEDED", "message": "forged"}, "result": None}
        stranger = self._sdk.Keys.generate()
        own = self._response(event, lie, nip44=nip44)
        by_stranger = self._response(event, lie, nip44=nip44, keys=stranger)
        return [
            by_stranger,
            by_stranger | {"pubkey": self.wallet_key},  # in the wallet's name, with another's signature
            own | {"sig": own["sig"][:-2] + ("00" if own["sig"][-2:] != "00" else "11")},
            own | {"content": by_stranger["content"]},
            self._response(event, lie, nip44=nip44, about="0" * 64),
            own | {"tags": [["p", self.wallet_key], ["e", event["id"]]]},
        ]

    def _signed(self, keys: Any, kind: int, content: str, tags: list[list[str]]) -> dict[str, Any]:
        sdk = self._sdk
        builder = sdk.EventBuilder(sdk.Kind(kind), content).tags([sdk.Tag.parse(tag) for tag in tags])
        unsigned = builder.custom_created_at(sdk.Timestamp.from_secs(int(time.time()))).finalize_unsigned(keys.public_key())
        event: dict[str, Any] = json.loads(keys.sign_event(unsigned).as_json())
        return event
