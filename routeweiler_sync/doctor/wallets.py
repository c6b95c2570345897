"""Whether the wallet can pay: for every client the questions that all wallets answer, and for lnd those of `lnd_node`.

A wallet of another kind gets a module like `lnd_node`, and an entry in `Examination.findings`. Until then it is asked what a
purchase would ask it.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .._core import env_vars
from .._core.money import MSAT_PER_SAT
from ..errors import FundingError
from ..funding.client_answers import check_methods, node_key, read_msat
from ..funding.replies import WalletAnswer, WalletReply
from ..funding.wallet import WalletClient
from .findings import Finding, TooSlowError, ok, warning, within, wrong, wrong_by

if TYPE_CHECKING:
    from ..funding.lightning import LightningFundingSource

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

    def findings(self) -> Iterator[Finding]:
        """Yield what is found about each wallet."""
        from ..funding.lnd.client import LndClient
        from . import lnd_node

        for client, sources, seen in self._wallets[:_WALLETS_MAX]:
            networks = tuple(dict.fromkeys(source.network for source in sources))
            pinned = next((source.node_pubkey for source in sources if source.node_pubkey is not None), None)
            if isinstance(client, LndClient):
                yield from lnd_node.findings(client, networks, pinned, seen, look_s=self._look_s, now=self._now)
            else:
                yield from self._of_any(client, networks, pinned, seen)

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

    def _of_any(self, client: Any, networks: tuple[str, ...], pinned: str | None, seen: Seen) -> Iterator[Finding]:
        """Ask a wallet of a program's own what a purchase asks it."""
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
        yield ok("node", f"the wallet {name} answers; its key is {short(key)}")
        if pinned is not None and pinned != key:
            yield wrong("key", f"the wallet's key is {short(key)}, but node_pubkey is {short(pinned)}", "Correct node_pubkey.")
            return
        yield from network_findings(network, networks)
        if not is_synced:
            yield warning("sync", f"the wallet {name} says that it isn't synced to the chain", "Wait until it is.")
        seen.key = key
        answer = self.track(key, secrets.token_bytes(32))
        if answer is not None and answer[0].reply is not WalletReply.NOT_FOUND:
            what = f"asked about a payment that was never made, the wallet says {answer[0].reply.value}"
            reason = f" ({answer[0].reason})" if answer[0].reason else ""
            yield warning("rights", f"{what}{reason}", "Correct its track: what became of a payment can't be found out else.")
        yield from self._balance_of(client, seen)

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
        """Look at the balance, if the wallet has the method ``channel_balance``. Neither Protocol asks for it."""
        ask = getattr(client, "channel_balance", None)
        if not callable(ask):
            return
        try:
            balance = read_msat(getattr(within(self._look_s, ask), "local_msat", None))
        except Exception as error:  # noqa: BLE001 - a client may raise anything
            yield warning("balance", f"the balance isn't known ({type(error).__name__})", "Look at the wallet itself.")
            return
        if balance is not None:
            seen.payable_msat = balance
            yield balance_finding(balance)


def network_findings(network: str, wanted: tuple[str, ...]) -> Iterator[Finding]:
    """Yield whether the ``network`` of a wallet is one of those that are ``wanted``. "" if the wallet names none."""
    from ..funding.wallet import NETWORKS

    if not network:
        yield ok("network", f"not told by the wallet; taken to be {', '.join(wanted)}")
    elif network in wanted:
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
