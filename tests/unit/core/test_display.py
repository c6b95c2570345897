"""Values in one line and as tables: nothing that a server or a program wrote is markup, breaks a line, or is a secret."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone
from decimal import Decimal
from html.parser import HTMLParser
from typing import Any

import pytest

from routeweiler_sync import (
    BudgetEnvelope,
    EnvelopeRow,
    Funding,
    Ledger,
    LndClient,
    Payment,
    PaymentRow,
    PaymentState,
    Quote,
    Routeweiler,
    Spending,
)
from routeweiler_sync._core.display import ROWS_MAX, facts_table, foreign, line, table
from routeweiler_sync._core.money import minor_text
from routeweiler_sync.payments.block_limit import SpendingLimit

HASH = "ab" * 32
SECRET = "0201036c6e640258030a10f1c2e3d4" * 3
NOW = datetime(2026, 3, 1, 12, 0, tzinfo=timezone.utc)
NASTY = "<script>alert('1')</script>&\"\x1b[31m\nsecond line\u202e"


class Seen(HTMLParser):
    """The tags and texts of a table; fails on what isn't closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.tags.append(tag)
        assert [name for name, _ in attrs] in ([], ["class"])

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1] != "style":
            self.texts.append(data)


def quote(**changes: Any) -> Quote:
    values: dict[str, Any] = {
        "url": "https://user:hunter2@api.example/page",
        "amount_msat": 10_000,
        "max_fee_msat": 1_000,
        "amount_minor_units": Decimal("0.6"),
        "currency": "usd",
        "scope": "services=page:0",
        "payment_hash": HASH,
        "description": f"{NASTY} {SECRET}",
        "expires_at": NOW,
    }
    return Quote(**{**values, **changes})


def payment_row(**changes: Any) -> PaymentRow:
    values: dict[str, Any] = {
        "payment_hash": HASH,
        "origin": "https://api.example",
        "scope": NASTY,
        "path": f"/{NASTY}",
        "state": PaymentState.RETIRED,
        "amount_msat": 10_000,
        "max_fee_msat": 1_000,
        "fee_msat": 250,
        "envelope_id": NASTY,
        "node_pubkey": "02" * 33,
        "network": "bitcoin",
        "bolt11": "lnbc1",
        "scheme": "L402",
        "token": SECRET,
        "preimage": SECRET[:64],
        "failure_text": f"refused: {NASTY} {SECRET}",
        "created_at": NOW,
        "settled_at": NOW,
    }
    return PaymentRow(**{**values, **changes})


def envelope_row(**changes: Any) -> EnvelopeRow:
    values: dict[str, Any] = {
        "limits": BudgetEnvelope(f"budget {NASTY}", cap_currency="eur", per_day_minor_units=1_050, ttl_seconds=60),
        "reserved_minor_units": Decimal("0.000001"),
        "settled_minor_units": Decimal(7),
        "grant_settled_minor_units": Decimal(7),
        "used_minor_units": {"per_day_minor_units": Decimal("7.000001")},
        "frozen": True,
        "granted_at": NOW,
    }
    return EnvelopeRow(**{**values, **changes})


VALUES: dict[str, Callable[[], Any]] = {
    "session": lambda: Routeweiler(agent_id=NASTY, budget_envelope=BudgetEnvelope(NASTY, cap_minor_units=5)),
    "session without limit": lambda: Routeweiler(budget_envelope=None, ledger="postgresql://user:hunter2@db.example/l402"),
    "quote": quote,
    "payment": lambda: Payment(payment_hash=HASH, amount_msat=10_000, fee_msat=1, reused=True),
    "envelope": lambda: BudgetEnvelope(NASTY, allowed_origins_glob=["https://<b>.example"], owner_agent_id=NASTY, ttl_seconds=5),
    "envelope row": envelope_row,
    "payment row": payment_row,
    "limit": lambda: SpendingLimit(None, 50_000),
    "spending": lambda: Spending.of_origins({NASTY: Spending(total_msat=11_000, fees_msat=1_000, payments=1, calls=2)}),
    "nothing spent": Spending,
    "ledger": lambda: Ledger.open(f"/nowhere/{NASTY}.db"),
}


@pytest.mark.parametrize("name", VALUES)
def test_a_table_is_escaped_closed_and_without_secrets(name: str) -> None:
    """Else a server's description of an invoice would run in the notebook of whoever looks at it, or a shared one be a leak."""
    text = VALUES[name]()._repr_html_()
    seen = Seen(text)
    assert seen.tags[:4] == ["div", "style", "table", "caption"]
    assert set(seen.tags) <= {"div", "style", "table", "caption", "thead", "tbody", "tr", "th", "td", "p"}
    assert "hunter2" not in text
    assert SECRET[:40] not in text
    assert all(each.isprintable() for each in seen.texts)
    assert "prefers-color-scheme:dark" in text
    assert "data-jp-theme-light=false" in text


@pytest.mark.parametrize("name", VALUES)
def test_a_repr_is_one_short_line_without_secrets(name: str) -> None:
    """Else a log of values would be many screens, or a leak; and a terminal would do what a server wrote."""
    text = repr(VALUES[name]())
    assert text.isprintable()
    assert len(text) < 400
    assert "hunter2" not in text
    assert SECRET[:40] not in text


def test_what_the_lines_say() -> None:
    """A line that doesn't say what it is about is no help."""
    usual = quote(description="weather", url="https://api.example/weather", currency="sat")
    assert repr(usual) == "<Quote: 10 sat, fee at most 1 sat for 'weather', https://api.example/weather>"
    assert repr(quote()).startswith("<Quote: 10 sat (0.006 usd), fee at most 1 sat for ")
    assert " for " not in repr(quote(description=" ")), "some servers write no more into the invoice"
    assert repr(payment_row()) == f"<PaymentRow {HASH[:16]}…: retired, 10 sat, fee 0.250 sat, https://api.example>"
    assert repr(payment_row(settled_at=None, state=PaymentState.OPEN)).endswith("…: open, 10 sat, https://api.example>")
    envelope = BudgetEnvelope("weather", per_call_minor_units=100, allowed_origins_glob=["*.example"])
    assert repr(envelope) == "BudgetEnvelope('weather', allowed_origins_glob=('*.example',), per_call_minor_units=100)"
    assert eval(repr(envelope)) == envelope
    two = Spending.of_origins({each: Spending(total_msat=1_500, fees_msat=500, payments=1, calls=1) for each in ("a", "b")})
    assert repr(two) == "<Spending: 3 sat in 2 payments, fees 1 sat, 2 calls, 2 origins>"
    assert repr(Spending()) == "<Spending: 0 sat in 0 payments, fees 0 sat>"


def test_a_node_is_named_once() -> None:
    """The environment's node may be on any network: named for each, it looks like four nodes."""
    nodes = [LndClient("localhost", port, macaroon_hex="00") for port in (10009, 10010)]
    of_both = [(nodes[0], "bitcoin"), (nodes[0], "bitcoin-signet"), (nodes[1], "bitcoin")]
    session = Routeweiler(funding=[Funding.lightning_lnd(client=node, network=network) for node, network in of_both])
    assert repr(session).startswith("<Routeweiler: LndClient on bitcoin or bitcoin-signet, LndClient on bitcoin; budget ")


def test_a_long_table_is_cut_and_says_so() -> None:
    """Else the spending at a million servers would end the browser."""
    seen = Seen(table("t", [[n, "1 sat"] for n in range(ROWS_MAX + 7)], header=("a", "b")))
    assert seen.tags.count("tr") == ROWS_MAX + 1
    assert "… and 7 more" in seen.texts
    assert "<p>" not in facts_table("t", [("a", "b")])
    assert len(line("x" * 10_000)) < 1_000


def test_a_foreign_text_is_searched_for_secrets() -> None:
    """Else a server could put a token where the user shows it to others."""
    assert SECRET[:40] not in foreign(f"see {SECRET}")
    assert foreign(f"hash: {HASH}", (HASH,)) == f"hash: {HASH}"


@pytest.mark.parametrize(
    ("amount", "currency", "text"),
    [
        (10, "sat", "10 sat"),
        (Decimal("10.500000"), "sat", "10.5 sat"),
        (1_050, "usd", "10.50 usd"),
        (5, "eur", "0.05 eur"),
        (Decimal("0.6"), "gbp", "0.006 gbp"),
        (7, "jpy", "7 jpy"),
        (0, "usd", "0.00 usd"),
        (Decimal("0.000001"), "sat", "0.000001 sat"),
    ],
)
def test_an_amount_is_shown_in_whole_units(amount: Decimal | int, currency: str, text: str) -> None:
    """Else cents would be read as dollars."""
    assert minor_text(amount, currency) == text
