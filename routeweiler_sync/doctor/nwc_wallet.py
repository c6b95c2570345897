"""Whether a wallet of Nostr Wallet Connect can pay: its relays, whether it answers, what the connection may do, the balance.

A relay that answers says nothing of the wallet behind it, so each is named by itself.

Money: none moves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from ..errors import FundingError
from ..funding.nwc import rights
from ..funding.nwc.link import place_of
from ..funding.nwc.replies import OWN_FEE_MSAT_MIN, OWN_FEE_PERCENT, own_fee_cap_msat
from ..funding.replies import WalletReply
from ..funding.wallet import default_fee_cap_msat
from .findings import Finding, TooSlowError, ok, warning, within, wrong, wrong_by
from .wallets import Seen, looked, lookup_finding, network_findings, short, whole_sats

if TYPE_CHECKING:
    from ..funding.nwc.client import NwcClient

#: A usual amount, for which the wallet's own limit is compared with the default one.
_SAMPLE_MSAT = 10_000


def findings(
    client: NwcClient, networks: tuple[str, ...], pinned: str | None, seen: Seen, *, look_s: float, now: Callable[[], float]
) -> Iterator[Finding]:
    """Yield what is found about the wallet of ``client``, and fill ``seen``. Ends at the first fault on which the rest depends.

    ``networks`` are those that the session would pay on, ``pinned`` is the identity that the wallet must have.
    """
    name = f"the wallet {client.wallet_key[:8]}…"
    try:
        faults = within(look_s * 2, lambda: client.relay_faults(timeout_s=look_s))
    except FundingError as error:
        yield wrong_by("node", error)
        return
    except TooSlowError as error:
        faults = dict.fromkeys(client.relays, f"no relay could be asked: {error}")
    for url, fault in faults.items():
        if fault is None:
            yield ok("relay", f"{place_of(url)} can be reached")
        else:
            report = wrong if all(faults.values()) else warning
            yield report("relay", fault, "Check the relay's address and this machine's network; the wallet names its relays.")
    if all(faults.values()):
        return
    try:
        info = within(look_s * 2, lambda: client.get_info(timeout_s=look_s))
        methods = within(look_s * 2, lambda: client.get_methods(timeout_s=look_s))
    except FundingError as error:
        yield wrong_by("node", error)
        return
    except TooSlowError as error:
        yield wrong("node", f"{name} can't be asked: {error}", "Check that the wallet itself is running: its relay is.")
        return
    named = f", {info.alias}" if info.alias else ""
    yield ok("node", f"{name}{named} answers; its identity here is {short(info.identity_pubkey)}")
    if pinned is not None and pinned != info.identity_pubkey:
        told = f"the wallet's identity is {short(info.identity_pubkey)}, but node_pubkey is {short(pinned)}"
        yield wrong("key", told, "Correct node_pubkey, or use the other connection's URI.")
        return
    yield from network_findings(info.network, networks)
    seen.key = info.identity_pubkey
    yield _rights(methods)
    yield from looked((_lookup, _balance), client, seen, look_s, name=name, place="the wallet itself")
    yield _fees()


def _rights(methods: frozenset[str]) -> Finding:
    """Return what the connection may do: it has all that paying needs."""
    needed = {*rights.PAYING, rights.BALANCE, rights.LIST_PAYMENTS}
    more = sorted(methods - needed - {"get_info"} - {each for each in methods if "notification" in each})
    has = f"the connection permits {' and '.join(each for each in rights.PAYING if each in methods)}"
    if spending := [each for each in more if each.startswith(("pay_", "multi_pay", "make_", "sign_"))]:
        what = f"{has}, and more than paying needs: {', '.join(spending)}"
        return warning("rights", what, "Make a connection that permits no more, and give it a budget.")
    if more:
        return ok(
            "rights",
            f"{has}, and more than paying needs: {', '.join(more)}",
            "If you like, make a connection that permits no more.",
        )
    return ok("rights", has)


def _lookup(client: NwcClient, seen: Seen, look_s: float) -> Finding:
    return lookup_finding(client, look_s, good=WalletReply.FAILED_SO_FAR, name="the wallet")


def _balance(client: NwcClient, seen: Seen, look_s: float) -> Finding:
    balance_msat = client.spendable_msat(timeout_s=look_s)
    if balance_msat is None:
        advice = "To have it checked, make a connection that permits get_balance."
        return warning("balance", "the balance isn't known: the connection doesn't permit get_balance", advice)
    seen.payable_msat = balance_msat
    if balance_msat <= 0:
        return wrong("balance", "the wallet is empty: nothing can be paid", "Put some money into it.")
    return ok("balance", f"{whole_sats(balance_msat)} in the wallet; the connection's budget may be smaller")


def _fees() -> Finding:
    cap_msat, allowed_msat = own_fee_cap_msat(_SAMPLE_MSAT), default_fee_cap_msat(_SAMPLE_MSAT)
    rule = f"the larger of {whole_sats(OWN_FEE_MSAT_MIN)} and {OWN_FEE_PERCENT} %"
    assert cap_msat <= allowed_msat  # else no payment would be allowed by default
    return ok("fees", f"no order can limit them: {rule} is taken for the wallet's own limit, and reserved")
