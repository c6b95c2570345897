"""Which wallet pays for an invoice: the first of its network that answers, is the right one, and can pay.

Finds the wallet and what its fees may be at most. It pays nothing. Whether the cost fits the limits is left to `checks`, `ledger`
and `block_limit`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .._core import env_vars
from .._core.deadline import Deadline
from .._core.money import sats
from .._core.signals import came_by_signal
from ..errors import BudgetExceededError, FundingError, NoFundingForRailError
from ..funding.client_answers import cause_of, close, node_key, read_error, read_msat
from ..funding.source import LightningFundingSource
from ..ledger.types import PaymentRow
from ..protocol.invoice import Invoice


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenWallet:
    """The wallet that shall pay: its source, its identity (66 hex digits), and the most that its fees may be, in msat.

    ``fee_is_fixed``: the wallet doesn't let an order lower that fee. So all of it must fit under the limits, and is reserved.
    """

    source: LightningFundingSource
    node_pubkey: str
    fee_cap_msat: int
    fee_is_fixed: bool


def pays_on(source: LightningFundingSource, network: str) -> bool:
    """Return whether ``source`` is for ``network``, as far as its settings say. One without a network is for any."""
    return source.network is None or source.network == network


def sources_for(funding: Sequence[LightningFundingSource], network: str) -> list[LightningFundingSource]:
    """Return the funding sources for ``network``, in their order, at least one.

    Raises: NoFundingForRailError if there is none.
    """
    sources = [source for source in funding if pays_on(source, network)]
    if sources:
        return sources
    have = ", ".join(sorted({source.network or "any" for source in funding})) or "none"
    raise NoFundingForRailError(
        f"The invoice is on {network}, and no funding for that network is configured (configured: {have}).",
        advice="Add a funding source for that network."
        if funding
        else "Pass funding=, or name a wallet in the environment and use routeweiler_sync.Session, which pays from it. "
        "routeweiler-sync doctor says what is missing.",
        shell_advice=f"Name a node of that network, and set {env_vars.NETWORK} to it or not at all.",
    )


def choose(funding: Sequence[LightningFundingSource], invoice: Invoice, deadline: Deadline) -> ChosenWallet:
    """Return the first wallet of ``funding`` that can pay ``invoice``. Each wallet has its share of the time until ``deadline``.

    What a wallet could spend is asked only where there is another one to turn to. One that doesn't say is taken to have enough.

    Raises: NoFundingForRailError; FundingError if no wallet can be asked or has enough; BudgetExceededError if the only wallet that
    answers may take higher fees than its source allows.
    Money: none moves.
    """
    sources = sources_for(funding, invoice.network)
    problems: list[FundingError | BudgetExceededError] = []
    for n, source in enumerate(sources):
        try:
            return _examined(source, invoice, Deadline(deadline.left_s() / (len(sources) - n)), has_others=len(sources) > 1)
        except (FundingError, BudgetExceededError) as error:
            problems.append(error)
    if len(problems) == 1:
        raise problems[0]
    what = " ".join(f"({n}) {error.what.rstrip('.')}." for n, error in enumerate(problems, 1))
    advice = " ".join(dict.fromkeys(error.advice for error in problems if error.advice))
    kind = BudgetExceededError if all(isinstance(error, BudgetExceededError) for error in problems) else FundingError
    raise kind(f"None of the {len(problems)} wallets for {invoice.network} can pay this. {what}", advice=advice) from problems[0]


def ask_ahead(funding: Sequence[LightningFundingSource], network: str, deadline: Deadline, *, wanted: Callable[[], bool]) -> None:
    """Let the wallet that `choose` asks first be asked already, in another thread, if that can be and it is ``wanted``.

    Money: none moves.
    """
    sources = [source for source in funding if pays_on(source, network)]
    if sources and getattr(sources[0], "can_ask_ahead", False) and wanted():
        sources[0].ask_ahead(deadline.left_s() / len(sources))


def order_follows(source: LightningFundingSource) -> None:
    """Tell ``source``, which may be a program's own, that it was just found ready, and that an order follows at once.

    Money: none moves.
    """
    if (expect := getattr(source, "expect_order", None)) is not None:
        expect()


def node_of(source: LightningFundingSource, timeout_s: float, *, anew: bool = False) -> str:
    """Return the identity of the wallet behind ``source``, which may be a program's own. ``anew``: it is asked now, if it can be.

    Raises: FundingError if it can't be asked, or reports something else than a key.
    Money: none moves.
    """
    try:
        ready = getattr(source, "ready_anew", source.ready) if anew else source.ready
        return node_key(ready(timeout_s))
    except FundingError:
        raise
    except Exception as error:  # foreign code may raise anything
        if came_by_signal(error):
            raise
        what = f"The funding source can't be asked ({read_error(error)})."
        raise FundingError(what, advice="Check that the node is up.") from cause_of(error)


def source_of(
    funding: Sequence[LightningFundingSource], row: PaymentRow, deadline: Deadline
) -> tuple[LightningFundingSource | None, FundingError | None]:
    """Return the source of ``funding`` for the row's own node, else None and the error of a node that couldn't be asked, if any.

    Money: none moves.
    """
    problem: FundingError | None = None
    sources = [source for source in funding if pays_on(source, row.network) and _may_be(source, row.node_pubkey)]
    for n, source in enumerate(sources):
        try:
            if node_of(source, deadline.left_s() / (len(sources) - n), anew=True) == row.node_pubkey:
                return source, None
        except FundingError as error:
            problem = error
    return None, problem


def _may_be(source: LightningFundingSource, node_pubkey: str) -> bool:
    """Return whether the wallet behind ``source`` may have this identity: it isn't known to have another one."""
    known: object = getattr(source, "node_pubkey", None)
    return not isinstance(known, str) or known == node_pubkey


def _examined(source: LightningFundingSource, invoice: Invoice, deadline: Deadline, *, has_others: bool) -> ChosenWallet:
    """Return ``source`` as the wallet that pays, if it can.

    Raises: FundingError; BudgetExceededError if the wallet's own fees may be above what the source allows.
    """
    node_pubkey = node_of(source, deadline.left_s())
    told = getattr(source, "told_network", "")
    if told and told != invoice.network:
        raise FundingError(
            f"The wallet is on {told}, and the invoice is on {invoice.network}.", advice="Add a funding source for that network."
        )
    allowed_msat = source.fee_cap_msat(invoice.amount_msat)
    own_msat = _asked(source, "own_fee_cap_msat", deadline, invoice.bolt11)
    fee_msat = allowed_msat if own_msat is None else own_msat
    if fee_msat > allowed_msat:
        raise BudgetExceededError(
            f"The wallet may take up to {sats(fee_msat)} in fees for a payment of {sats(invoice.amount_msat)}, which no order can "
            f"lower, and {sats(allowed_msat)} are allowed.",
            advice="Give the funding source a higher max_fee_msat, or use another wallet.",
            shell_advice="Use another wallet.",
        )
    if has_others:
        spendable_msat = _asked(source, "spendable_msat", deadline)
        least_msat = invoice.amount_msat + (fee_msat if own_msat is not None else 0)
        if spendable_msat is not None and spendable_msat < least_msat:
            raise FundingError(
                f"The wallet can spend {sats(spendable_msat)}, and {sats(least_msat)} are needed.", advice="Add funds to it."
            )
    return ChosenWallet(source=source, node_pubkey=node_pubkey, fee_cap_msat=fee_msat, fee_is_fixed=own_msat is not None)


def _asked(source: LightningFundingSource, question: str, deadline: Deadline, *args: str) -> int | None:
    """Return the answer of ``source``, which may be a program's own, to a question about msat; None if it has no such question.

    Raises: FundingError if it can't be asked, or answers something else than an amount.
    """
    ask = getattr(source, question, None)
    if ask is None:
        return None
    try:
        value: object = ask(*args, timeout_s=deadline.left_s())
    except FundingError:
        raise
    except Exception as error:  # foreign code may raise anything
        if came_by_signal(error):
            raise
        raise FundingError(
            f"The wallet can't be asked for its {question} ({read_error(error)}).", advice="Check that the wallet is up."
        ) from cause_of(error)
    msat = read_msat(value)
    if value is not None and msat is None:
        close(value)
        raise FundingError(
            f"The wallet's {question} is no whole number of msat from 0 upwards, but of the type {type(value).__name__}.",
            advice="Correct the wallet client.",
        )
    return msat
