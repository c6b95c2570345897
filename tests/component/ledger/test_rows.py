"""Rows are for people and programs to look at: what walks over them finds neither token nor preimage. By name they are there."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import io
import json
import pickle
import pprint
from collections.abc import Callable, Iterator
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import rich
from rich.console import Console

from routeweiler_sync.ledger.ledger import Ledger
from routeweiler_sync.ledger.types import EnvelopeRow, PaymentRow
from tests.support.ledger_builders import draw, hash_of, intent, limits, preimage, settle

TOKEN = "AgEEbHNhdAJCAAD_a_macaroon_that_opens_the_page"
PREIMAGE = preimage(1)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger.open(tmp_path / "ledger.db")
    ledger.open_payment(intent(1, token=TOKEN), draw(limits(cap_minor_units=100)))
    settle(ledger, 1, fee_msat=500)
    yield ledger
    ledger.close()


@pytest.fixture
def row(ledger: Ledger) -> PaymentRow:
    (found,) = ledger.payments()
    return found


def in_json(value: object) -> str:
    def default(each: Any) -> Any:
        return vars(each) if hasattr(each, "__dict__") else str(each)

    return json.dumps(value, default=default)


def of_slots(value: object) -> str:
    """As libraries walk that know nothing but Python's own attributes."""
    names = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
    return repr({name: getattr(value, name, None) for name in names})


def inspected(value: object) -> str:
    console = Console(record=True, width=500, file=io.StringIO())
    rich.inspect(value, console=console, all=True, value=True)
    return console.export_text()


WALKS: dict[str, Callable[[Any], str]] = {
    "repr": repr,
    "str": str,
    "format": lambda row: f"{row} {row!r}",
    "dict": lambda row: str(dict(row)),
    "unpacked": lambda row: str({**row}),
    "vars": lambda row: str(vars(row)),
    "asdict": lambda row: str(dataclasses.asdict(row)),
    "astuple": lambda row: str(dataclasses.astuple(row)),
    "fields": lambda row: str([getattr(row, each.name) for each in dataclasses.fields(row)]),
    "annotations": lambda row: str([getattr(row, name) for name in dir(row) if not name.startswith("__")]),
    "getmembers": lambda row: str(inspect.getmembers(row)),
    "pprint": lambda row: pprint.pformat([row, {"row": row}], width=30),
    "json of vars": in_json,
    "json of a dict": lambda row: in_json(dict(row)),
    "pickle": lambda row: str(pickle.dumps(row)),
    "deep pickle": lambda row: str(pickle.dumps([{"row": row}], protocol=2)),
    "slots": of_slots,
    "html": lambda row: row._repr_html_(),
    "rich": inspected,
}


@pytest.mark.parametrize("walk", WALKS)
def test_no_walk_over_a_row_finds_its_secrets(row: PaymentRow, walk: str) -> None:
    """Else a notebook, a log or a table that a user shares would let others use what was paid for."""
    said = WALKS[walk](row)
    for secret in (TOKEN, TOKEN[20:], PREIMAGE.hex(), PREIMAGE.hex()[10:40], repr(PREIMAGE)[2:-1]):
        assert secret not in said
    if walk not in ("slots", "rich"):
        assert hash_of(1)[:16] in said, "the walk has seen nothing"


def test_a_data_frame_of_rows_has_no_secrets(ledger: Ledger) -> None:
    """Else the first thing that a data scientist does with the ledger would put tokens into a notebook."""
    pandas = pytest.importorskip("pandas", reason="pandas isn't installed")
    assert pandas.DataFrame(ledger.envelopes()).settled_minor_units.sum() == Decimal("10.5")
    frame = pandas.DataFrame(ledger.payments())
    assert {"payment_hash", "origin", "amount_msat", "fee_msat", "settled_at"} <= set(frame.columns)
    assert not {"token", "preimage"} & set(frame.columns)
    assert TOKEN not in frame.to_csv() + frame.to_html() + frame.to_json(default_handler=str)
    assert frame.amount_msat.sum() == 10_000


def test_by_name_a_row_gives_them(row: PaymentRow) -> None:
    """Else the package couldn't use its own tokens, nor a user prove a payment."""
    assert (row.token, row.preimage) == (TOKEN, PREIMAGE.hex())
    assert dataclasses.replace(row, path="/other").token == TOKEN
    assert (copy.copy(row).token, copy.deepcopy([row])[0].preimage) == (TOKEN, PREIMAGE.hex())
    with pytest.raises(AttributeError):
        row.token = "another"  # type: ignore[misc]
    for name in ("token", "preimage"):
        with pytest.raises(KeyError):
            row[name]


def test_an_unpickled_row_says_where_its_secrets_are(row: PaymentRow) -> None:
    """Else a worker that got a row would take a missing preimage for one that never was."""
    made = pickle.loads(pickle.dumps(row))
    assert made == row
    assert hash(made) == hash(row)
    assert not hasattr(made, "token")
    with pytest.raises(AttributeError, match=r"session\.ledger\.payment\(row\.payment_hash\)\.preimage"):
        _ = made.preimage


def test_a_row_as_a_dict(ledger: Ledger, row: PaymentRow) -> None:
    """Else everybody would write the list of a row's fields again."""
    assert dict(row) == vars(row) == {each.name: getattr(row, each.name) for each in dataclasses.fields(row)}
    assert (row["origin"], list(row.keys())) == (row.origin, [each.name for each in dataclasses.fields(row)])
    (envelope,) = ledger.envelopes()
    assert dict(envelope)["settled_minor_units"] == Decimal("10.5")


def test_rows_are_short_in_one_line(ledger: Ledger, row: PaymentRow) -> None:
    """Else a list of them fills the screen."""
    (envelope,) = ledger.envelopes()
    assert repr(row) == f"<PaymentRow {hash_of(1)[:16]}…: settled, 10 sat, fee 0.500 sat, {row.origin}>"
    assert repr(envelope) == "<EnvelopeRow 'e': 10.5 sat spent, 0 sat reserved, 89.5 sat left>"
    assert isinstance(row, PaymentRow)
    assert isinstance(envelope, EnvelopeRow)
    assert isinstance(row.created_at, datetime)
