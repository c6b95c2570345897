"""A user's tests of a program that pays, with the testing kit; and the module paths that the async twin has too."""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from routeweiler_sync import PaidResponse, Payment, Routeweiler, payment_of
from routeweiler_sync.budgets.schema import BudgetEnvelope
from routeweiler_sync.funding import Funding
from routeweiler_sync.funding.lightning import LightningFundingSource, LndClient
from routeweiler_sync.policy.dsl import Policy, PolicyRule, RuleMatch
from routeweiler_sync.testing import FakeLnd, FakePayment, Paywall, PaywallRequest, add_paywall
from routeweiler_sync.trace.schema import TraceEvent
from routeweiler_sync.trace.sink_jsonl import JsonlSink
from routeweiler_sync.trace.sink_sqlite import TraceSink

if TYPE_CHECKING:
    from typing_extensions import assert_type
else:

    def assert_type(value, kind):
        return value


class Counting(JsonlSink):
    """A sink of the user's own."""

    seen = 0

    def emit(self, event: TraceEvent) -> bool:
        self.seen += 1
        return super().emit(event)


def test_my_program(paying_session: Routeweiler, paywall: Paywall, fake_lnd: FakeLnd) -> None:
    """With the fixtures of the kit's plugin."""
    response = paying_session.get(paywall.url)
    assert_type(response, PaidResponse)
    assert_type(response.payment, Payment | None)
    payment = payment_of(response)
    assert payment is not None
    assert payment.amount_msat == 10_000
    assert_type(paywall.requests, list[PaywallRequest])
    assert_type(fake_lnd.payments, list[FakePayment])
    assert [request.status for request in paywall.requests] == [402, 200]
    assert len(fake_lnd.payments) == 1


def main(folder: Path) -> None:
    with FakeLnd() as lnd, Paywall(lnd, price_msat=10_000) as paywall:
        client = lnd.client()
        assert_type(client, LndClient)
        assert_type(lnd.funding(), LightningFundingSource)
        lnd.fail_next("NO_ROUTE")
        lnd.clear_faults()
        funding = Funding.lightning_lnd(client=client, network="bitcoin-regtest")
        sink = Counting(folder / "trace.jsonl")
        with Routeweiler(
            funding=[funding],
            ledger=folder / "ledger.db",
            trace_sink=sink,
            budget_envelope=BudgetEnvelope("kit", per_call_minor_units=100),
            policy=Policy(rules=[PolicyRule("all", when=RuleMatch(scheme="L402"))]),
        ) as session:
            test_my_program(session, paywall, lnd)
        assert sink.seen == 1
        assert isinstance(sink, TraceSink)
        client.close()
        for server in (
            Paywall(lnd, form="l402kit", sells="once", refuses=401, price_msat=10_000),
            Paywall(lnd, sells=lambda request: request.headers.get("X-Account"), refuses_with="scheme", token="uuid"),
        ):
            assert_type(server.instance, int | None)
            server.add_service("/x", name="x", price_msat=1_000, sells="credit:50", challenge_in="body", head="price-only")
            assert_type([request.refused is None and request.proves is None for request in server.requests], list[bool])
    assert callable(add_paywall)
