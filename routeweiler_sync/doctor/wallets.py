"""Whether the wallet can pay: the questions that all wallets answer, or those of a module that knows the kind of wallet.

A kind of wallet whose faults deserve names of their own gets a module like `lnd_node`, and a line in `_MODULES`. Any other is asked
what a purchase would ask it.
"""

from __future__ import annotations

import importlib
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .._core import env_vars
from .._core.money import MSAT_PER_SAT
from ..config.wallets import class_of
from ..errors import FundingError
from ..funding.client_answers import check_methods, node_key, read_msat
from ..funding.replies import WalletAnswer, WalletReply
from ..funding.wallet import WalletClient, is_derived
from ..protocol.invoice import decode_invoice
from .findings import Finding, TooSlowError, ok, warning, within, wrong, wrong_by
from .software import INVOICE

if TYPE_CHECKING:
    from ..funding.lightning import LightningFundingSource

#: The modules of this folder that know a kind of wallet, by the client's class below `funding`. Each has a function ``findings``.
_MODULES = {
    "lnbits.client.LnbitsClient": "lnbits_wallet",
    "lnd.client.LndClient": "lnd_node",
    "lnd.rest.LndRestClient": "lnd_node",
    "nwc.client.NwcClient": "nwc_wallet",
}
#: How many wallets of one session are looked at.
_WALLETS_MAX = 8


@dataclass(slots=True, kw_only=True)
class Seen:
    """What was found out of one wallet, for the checks that come after it.

    ``key`` is its public key if it answers. ``payable_msat`` is what it could pay at most, as far as that is known. ``htlcs`` are
    the payment hashes for which it has an HTLC out, None if that isn't known.
    """

    key: str | None = None
    payable_msat: int | None = None
    htlcs: frozenset[str] | None = None


class Examination:
    """Looks at the wallets of ``sources``. Afterwards it can be asked about single payments (`track`).

    ``from_environment``: the sources are those of one node, one for each network that it may be on.
    """

    def __init__(
        self,
        sources: Sequence[LightningFundingSource],
        *,
        from_environment: bool,
        look_s: float,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._look_s, self._now, self._from_environment = look_s, now, from_environment
        self._wallets: list[tuple[Any, list[LightningFundingSource], Seen]] = []
        for source in sources:
            same = next((each for each in self._wallets if each[0] is source.client), None)
            if same is None:
                self._wallets.append((source.client, [source], Seen()))
            else:
                same[1].append(source)

    @property
    def payable_msat(self) -> int | None:
        """The most that one of the wallets could pay at once, in msat; None if no wallet could be asked."""
        return max((seen.payable_msat for _, _, seen in self._wallets if seen.payable_msat is not None), default=None)

    @property
    def has_channels(self) -> bool:
        """Whether the wallet that could pay most is a node, as far as its identity says (`derived_identity`)."""
        keys = [seen.key or "" for _, _, seen in self._wallets if seen.payable_msat == self.payable_msat]
        return not any(map(is_derived, keys))

    def findings(self) -> Iterator[Finding]:
        """Yield what is found about each wallet."""
        for client, sources, seen in self._wallets[:_WALLETS_MAX]:
            networks = tuple(dict.fromkeys(source.network for source in sources if source.network is not None))
            pinned = next((source.node_pubkey for source in sources if source.node_pubkey is not None), None)
            module = _MODULES.get(class_of(client) or "")
            if module is None:
                yield from self._of_any(client, sources, networks, pinned, seen)
            else:
                findings = importlib.import_module(f".{module}", __package__).findings
                yield from findings(client, networks, pinned, seen, look_s=self._look_s, now=self._now)

    def has(self, key: str) -> bool | None:
        """Return whether one of the wallets has this public key; None if not all of them could be asked."""
        if any(seen.key == key for _, _, seen in self._wallets):
            return True
        return None if any(seen.key is None for _, _, seen in self._wallets) else False

    def track(self, key: str, payment_hash: bytes) -> tuple[WalletAnswer, frozenset[str] | None] | None:
        """Return what the wallet with this key knows of a payment, and for which payments it has HTLCs out. None if there is none.

        Money: none moves.
        """
        found = next((each for each in self._wallets if each[2].key == key), None)
        if found is None:
            return None
        source = found[1][0]
        try:
            return within(self._look_s, lambda: source.track(payment_hash, timeout_s=self._look_s, follow=False)), found[2].htlcs
        except TooSlowError as error:
            return WalletAnswer(reply=WalletReply.UNKNOWN, reason=str(error)), None

    def _of_any(
        self,
        client: Any,
        sources: Sequence[LightningFundingSource],
        networks: tuple[str, ...],
        pinned: str | None,
        seen: Seen,
    ) -> Iterator[Finding]:
        """Ask a wallet of any kind what a purchase asks it."""
        name, is_wallet = type(client).__name__, isinstance(client, WalletClient)
        try:
            check_methods(client, is_wallet=is_wallet)
            info = within(self._look_s * 2, lambda: self._identity(client, is_wallet))
        except FundingError as error:
            yield wrong_by("node", error)
            return
        except TooSlowError as error:
            yield wrong("node", f"the wallet {name} can't be asked: {error}", "Check that it is up and can be reached from here.")
            return
        except Exception as error:  # noqa: BLE001 - a client may raise anything
            yield wrong("node", f"the wallet {name} raised {type(error).__name__}: {error}"[:300], "Correct the wallet client.")
            return
        key, network, is_synced = info
        is_node = not is_derived(key)
        yield ok("node", f"the wallet {name} answers; its {'key' if is_node else 'identity here'} is {short(key)}")
        if pinned is not None and pinned != key:
            yield wrong("key", f"the wallet's key is {short(key)}, but node_pubkey is {short(pinned)}", "Correct node_pubkey.")
            return
        yield from network_findings(network, networks)
        if not is_synced:
            yield warning("sync", f"the wallet {name} says that it isn't synced to the chain", "Wait until it is.")
        seen.key = key
        answer = self.track(key, secrets.token_bytes(32))
        if answer is not None and answer[0].reply not in (WalletReply.NOT_FOUND, WalletReply.FAILED_SO_FAR):
            what = f"asked about a payment that was never made, the wallet says {answer[0].reply.value}"
            reason = f" ({answer[0].reason})" if answer[0].reason else ""
            yield warning("rights", f"{what}{reason}", "Correct its track: what became of a payment can't be found out else.")
        yield from self._balance_of(client, seen)
        yield from self._fees_of(client, sources[0])

    @staticmethod
    def _identity(client: Any, is_wallet: bool) -> tuple[str, str, bool]:
        """Return the wallet's public key, its network ("" if it names none), and whether it is synced, as far as it says."""
        if not is_wallet:
            return node_key(client.get_node_pubkey()), "", True
        client.check_ready(1.0)
        info = client.get_info(timeout_s=None)
        network = getattr(info, "network", "")
        is_synced = getattr(info, "synced_to_chain", True) is not False
        return node_key(getattr(info, "identity_pubkey", info)), network if isinstance(network, str) else "", is_synced

    def _balance_of(self, client: Any, seen: Seen) -> Iterator[Finding]:
        """Look at what the wallet could spend, if it has the method ``spendable_msat`` or ``channel_balance``."""
        spendable, channels = (getattr(client, name, None) for name in ("spendable_msat", "channel_balance"))
        try:
            if callable(spendable):
                balance = read_msat(within(self._look_s * 2, lambda: spendable(timeout_s=self._look_s)))
            elif callable(channels):
                balance = read_msat(getattr(within(self._look_s, channels), "local_msat", None))
            else:
                return
        except Exception as error:  # noqa: BLE001 - a client may raise anything
            yield warning("balance", f"the balance isn't known ({type(error).__name__})", "Look at the wallet itself.")
            return
        if balance is None:
            return
        seen.payable_msat = balance
        if callable(spendable) and balance <= 0:
            yield wrong("balance", "the wallet is empty: nothing can be paid", "Put some money into it.")
        elif callable(spendable):
            yield ok("balance", f"{whole_sats(balance)} to spend")
        else:
            yield balance_finding(balance)

    def _fees_of(self, client: Any, source: LightningFundingSource) -> Iterator[Finding]:
        """Look at the limit that the wallet itself sets on fees, if it has the method ``own_fee_cap_msat``.

        It is asked about an invoice of `software`, long expired, which a wallet may refuse to look at.
        """
        ask = getattr(client, "own_fee_cap_msat", None)
        if not callable(ask):
            return
        amount_msat = decode_invoice(INVOICE).amount_msat
        try:
            cap = read_msat(within(self._look_s * 2, lambda: ask(INVOICE, timeout_s=self._look_s)))
        except Exception:  # noqa: BLE001 - a client may raise anything, and the invoice is expired
            return
        if cap is None:
            return
        limit = source.fee_cap_msat(amount_msat)
        said = f"for {whole_sats(amount_msat)} the wallet lets routing cost up to {whole_sats(cap)}, and no order can lower that"
        if cap > limit:
            what = f"{said}: more than the {whole_sats(limit)} that this session allows, so such a payment is refused"
            yield warning("fees", what, "Lower the wallet's own limit, or allow more by max_fee_msat.")
        else:
            yield ok("fees", said)


def looked(
    looks: Sequence[Callable[[Any, Seen, float], Finding]], client: Any, seen: Seen, look_s: float, *, name: str, place: str
) -> Iterator[Finding]:
    """Yield what each of ``looks`` finds about ``client``, a wallet that is called ``name``. One that can't look spoils no other.

    A look's finding is called as its function is, without the underscore. ``place`` is where to look for the reason.
    """
    for look in looks:
        check = look.__name__.strip("_")
        try:
            yield within(look_s * 2, lambda look=look: look(client, seen, look_s))  # type: ignore[misc]
        except FundingError as error:
            yield warning(check, error.what.rstrip("."), error.advice or f"Look at {place}.")
        except TooSlowError as error:
            yield warning(check, f"{name} gave no answer: {error}", f"Look at {place}.")


def lookup_finding(client: WalletClient, look_s: float, *, good: WalletReply, name: str, advice: str = "") -> Finding:
    """Ask ``client`` about a payment that was never made. ``good`` is what such a wallet says if it can be asked at all."""
    answer = client.track(secrets.token_bytes(32), timeout_s=look_s, follow=False)
    if answer.reply is good:
        return ok("lookup", "payments can be looked up")
    told = f"asked about a payment that was never made, {name} says {answer.reply.value} ({answer.reason})"
    return warning("lookup", told, f"Without an answer to that, what became of a payment can't be found out.{advice}")


def network_findings(network: str, wanted: tuple[str, ...]) -> Iterator[Finding]:
    """Yield whether the ``network`` of a wallet is one of those that are ``wanted``. "" if the wallet names none."""
    from ..funding.wallet import NETWORKS

    if not network:
        taken = wanted[0] if len(wanted) == 1 else f"that of each invoice; {env_vars.NETWORK} names one"
        yield ok("network", f"not told by the wallet; taken to be {taken}")
    elif network in (wanted or NETWORKS):
        yield ok("network", network)
    elif network not in NETWORKS:
        yield wrong("network", f"the node is on {network}, for which nothing can be paid", f"Use a node on {', '.join(NETWORKS)}.")
    else:
        advice = f"Set {env_vars.NETWORK} to {network} or not at all, or name a node that is on {', '.join(wanted)}."
        yield wrong("network", f"the node is on {network}, but {', '.join(wanted)} is wanted", advice)


def balance_finding(local_msat: int) -> Finding:
    """Return the finding about an outbound balance."""
    if local_msat <= 0:
        advice = "Open a channel to another node, or get paid: only what is on this side of a channel can be spent."
        return wrong("balance", "no outbound balance: nothing can be paid", advice)
    return ok("balance", f"{whole_sats(local_msat)} outbound")


def address_of(client: object) -> str:
    """Return where a client's wallet is, as the end of a sentence without a secret."""
    endpoint = getattr(client, "_endpoint", None)
    address = getattr(endpoint, "address", None)
    return f"at {address}" if isinstance(address, str) else f"as {client!r}"


def whole_sats(msat: int) -> str:
    """Return an amount in whole sats, rounded down."""
    return f"{msat // MSAT_PER_SAT} sat"


def short(key: str) -> str:
    """Return the beginning and the end of a public key."""
    return f"{key[:10]}…{key[-6:]}"
