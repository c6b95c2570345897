"""Whether a wallet of LNbits can pay: the server, the kind of the key, the balance, what the server lets a payment cost.

Whether LNbits' own node is up can't be asked: LNbits tells that to nobody but its admin.

Money: none moves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from ..errors import FundingError
from ..funding.lnbits.client import WrongKeyError
from ..funding.replies import WalletReply
from ..funding.wallet import default_fee_cap_msat
from .findings import Finding, TooSlowError, ok, warning, within, wrong, wrong_by
from .wallets import Seen, looked, lookup_finding, network_findings, short, whole_sats

if TYPE_CHECKING:
    from ..funding.lnbits.client import LnbitsClient

#: An invoice for 10 sat, which nobody has issued, and which expired in 2020: LNbits says for it what a payment may cost.
_SAMPLE = (
    "lnbc100n1p04uyqqpp5qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqdqzyqsp5npt807exvuj2amecrq08kxatmxqng45"
    "qec3q05l74t6ktxsda6mqxqzpucqzzs9qyysgqp8dd6d7e8n33s2getyl4dkj6lp7mwqaf5wgqudr84jhsa0z708c4xmzg8gzuug8wqg7rtazy"
    "p2sjch6zjtw4t4mt4qxyx66wdjspymqqwyu7zv"
)
_SAMPLE_MSAT = 10_000


def findings(
    client: LnbitsClient, networks: tuple[str, ...], pinned: str | None, seen: Seen, *, look_s: float, now: Callable[[], float]
) -> Iterator[Finding]:
    """Yield what is found about the wallet of ``client``, and fill ``seen``. Ends at the first fault on which the rest depends.

    ``networks`` are those that the session would pay on, ``pinned`` is the identity that the wallet must have.
    """
    try:
        info = within(look_s * 2, lambda: client.get_info(timeout_s=look_s))
    except WrongKeyError as error:
        yield ok("node", f"LNbits at {client.url} answers")
        yield wrong_by("key", error)
        return
    except FundingError as error:
        yield wrong_by("node", error)
        return
    except TooSlowError as error:
        yield wrong("node", f"LNbits at {client.url} can't be asked: {error}", "Check that it is up and can be reached from here.")
        return
    yield ok("node", f"LNbits at {client.url} answers")
    if pinned is not None and pinned != info.identity_pubkey:
        told = f"the wallet's identity is {short(info.identity_pubkey)}, but node_pubkey is {short(pinned)}"
        yield wrong("key", told, "Correct node_pubkey, or use the key of the other wallet.")
        return
    yield ok("key", f"the admin key of the wallet {info.alias!r}, identity {short(info.identity_pubkey)}")
    yield from network_findings("", networks)
    seen.key = info.identity_pubkey
    yield from looked((_lookup, _balance, _fees), client, seen, look_s, name="LNbits", place="LNbits' log")


def _lookup(client: LnbitsClient, seen: Seen, look_s: float) -> Finding:
    return lookup_finding(client, look_s, good=WalletReply.NOT_FOUND, name="LNbits", advice=" Look at LNbits' log.")


def _balance(client: LnbitsClient, seen: Seen, look_s: float) -> Finding:
    balance_msat = client.spendable_msat(timeout_s=look_s)
    seen.payable_msat = balance_msat
    if balance_msat <= 0:
        return wrong(
            "balance", "the wallet is empty: nothing can be paid", "Pay an invoice of this wallet, which LNbits makes for you."
        )
    return ok("balance", f"{whole_sats(balance_msat)} in the wallet")


def _fees(client: LnbitsClient, seen: Seen, look_s: float) -> Finding:
    cap_msat, allowed_msat = client.own_fee_cap_msat(_SAMPLE, timeout_s=look_s), default_fee_cap_msat(_SAMPLE_MSAT)
    told = f"a payment of {whole_sats(_SAMPLE_MSAT)} may cost up to {cap_msat} msat beside it, which LNbits' admin has set"
    if cap_msat <= allowed_msat:
        return ok("fees", told)
    more = f"{told}, and {allowed_msat} msat are allowed by default: such payments are refused"
    return warning("fees", more, "Have its admin lower LNBITS_RESERVE_FEE_MIN, or give the funding source a higher max_fee_msat.")
