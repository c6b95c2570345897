"""What the environment says, and above all what it must not be taken to say."""

from __future__ import annotations

from pathlib import Path

import pytest

from routeweiler_sync._core import env_vars
from routeweiler_sync.budgets.schema import SAFE_DEFAULT, BudgetEnvelope
from routeweiler_sync.config import env_settings, environment
from routeweiler_sync.trace import TraceSink


def budget(text: str) -> BudgetEnvelope | None:
    return env_settings.budget({"ROUTEWEILER_BUDGET": text})


def test_unset_means_the_safe_default() -> None:
    """Else a script that says nothing of a budget would spend without one."""
    for environ in ({}, {"ROUTEWEILER_BUDGET": ""}, {"ROUTEWEILER_BUDGET": "  "}):
        assert env_settings.budget(environ) == SAFE_DEFAULT
    assert (SAFE_DEFAULT.id, SAFE_DEFAULT.cap_currency, SAFE_DEFAULT.cap_minor_units) == ("default", "sat", None)
    limits = (SAFE_DEFAULT.per_call_minor_units, SAFE_DEFAULT.per_hour_minor_units, SAFE_DEFAULT.per_day_minor_units)
    assert limits == (1_000, 10_000, 50_000)


@pytest.mark.parametrize("text", ["none", "None", " NONE "])
def test_no_limit_takes_so_many_words(text: str) -> None:
    """Else the one way to have no limit wouldn't work, or others would."""
    assert budget(text) is None


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("1000 sat/call, 50000 sat/day", {"per_call_minor_units": 1_000, "per_day_minor_units": 50_000}),
        ("1000 SAT / Call ,500 sat/HOUR", {"per_call_minor_units": 1_000, "per_hour_minor_units": 500}),
        ("700sat", {"cap_minor_units": 700}),
        ("0 sat", {"cap_minor_units": 0}),
        ("5 sat/call,6 sat/hour,7 sat/day,8 sat", dict(zip(("per_call", "per_hour", "per_day", "cap"), (5, 6, 7, 8), strict=True))),
    ],
)
def test_limits_are_read(text: str, limits: dict[str, int]) -> None:
    """Else a limit would be another than the user wrote: a day's for a call, or none at all."""
    named = {name if name.endswith("_units") else f"{name}_minor_units": value for name, value in limits.items()}
    assert budget(text) == BudgetEnvelope("default", **named)  # type: ignore[arg-type]


@pytest.mark.parametrize("currency", ["usd", "eur", "gbp", "jpy"])
def test_a_fiat_budget_is_an_envelope_of_its_own(currency: str) -> None:
    """Else changing the currency would find the totals of the other one, and be refused for ever."""
    assert budget(f"50 {currency}/call") == BudgetEnvelope(f"default-{currency}", cap_currency=currency, per_call_minor_units=50)


@pytest.mark.parametrize(
    "text",
    [
        "1000",
        "9" * 5_000 + " sat",
        "sat",
        "1000 sat/week",
        "1000 sats/call",
        "1000 btc",
        "1000 xyz/call",
        "-5 sat/call",
        "1.5 sat/call",
        "1_000 sat/call",
        "1,000 sat/call",
        "1e3 sat/call",
        "1000 sat/call,",
        ",",
        "1000 sat/call; 5 sat/day",
        "1000 sat/call 5 sat/day",
        "1000 sat/call, 1000 sat/call",
        "1000 sat/call, 5 usd/day",
        "none, 5 sat/call",
        "no limit",
        "unlimited",
        "99999999999999999999 sat/day",
        "$5/day",
    ],
)
def test_a_budget_that_is_not_understood_is_no_budget_at_all(text: str) -> None:
    """Else a typing error would become a budget without limits, or with another than was meant."""
    with pytest.raises(ValueError, match=r"^ROUTEWEILER_BUDGET: "):
        budget(text)


def test_the_ledger_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Else programs that are to share a budget would each have their own."""
    assert env_settings.ledger_url({"ROUTEWEILER_LEDGER": "sqlite:///x.db"}) == "sqlite:///x.db"
    monkeypatch.setattr("platformdirs.user_state_dir", lambda *args, **kwargs: str(tmp_path))
    for environ in ({}, {"ROUTEWEILER_LEDGER": ""}):
        assert env_settings.ledger_url(environ) == str(tmp_path / "ledger.db")
    monkeypatch.setenv("ROUTEWEILER_LEDGER", "elsewhere.db")
    assert env_settings.ledger_url() == "elsewhere.db"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "kind"), [("t.db", "sqlite"), ("t.sqlite", "sqlite"), ("t.sqlite3", "sqlite"), ("t.jsonl", "jsonl"), ("t", "jsonl")]
)
def test_the_trace_is_of_the_kind_its_name_says(name: str, kind: str, tmp_path: Path) -> None:
    """Else a report would look for its lines in a database, or for its table in a text."""
    sink = env_settings.trace_sink({"ROUTEWEILER_TRACE": str(tmp_path / name)})
    assert sink is not None
    assert type(sink) is type(getattr(TraceSink, kind)(tmp_path / "other"))
    sink.close()
    assert env_settings.trace_sink({}) is None
    assert env_settings.trace_sink({"ROUTEWEILER_TRACE": ""}) is None


@pytest.mark.parametrize(
    ("environ", "named"),
    [
        ({"LND_GRPC_HOST": "lnd:1", "ROUTEWEILER_BUDGET": "x"}, ["ROUTEWEILER_BUDGET", "LND_MACAROON_PATH"]),
        ({"LND_GRPC_HOST": "lnd:1", "ROUTEWEILER_NETWORK": "mars"}, ["LND_MACAROON_PATH", "ROUTEWEILER_NETWORK", "mars"]),
        (
            {"LND_GRPC_HOST": "lnd:1", "ROUTEWEILER_NETWORK": "mars", "ROUTEWEILER_BUDGET": "5 usd, 5 sat"},
            ["LND_MACAROON_PATH", "ROUTEWEILER_NETWORK", "ROUTEWEILER_BUDGET"],
        ),
        ({"ROUTEWEILER_LNDCONNECT": "lnd://x", "ROUTEWEILER_NETWORK": "mars"}, ["lndconnect", "ROUTEWEILER_NETWORK"]),
    ],
)
def test_every_variable_that_cant_be_used_is_named_at_once(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], named: list[str]
) -> None:
    """Who mends one variable would learn of the next only when a page is to be paid for again."""
    for name in env_vars.PAYER_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    found, problem = environment.settings()
    assert problem is not None
    assert problem.spent is False
    assert all(name in str(problem) for name in named), str(problem)
    assert str(problem).count("Nothing was spent") == 1
    assert "budget_envelope" in found or "ROUTEWEILER_BUDGET" in named


def test_an_envelope_of_the_ledger_and_an_agent_are_named_by_variables() -> None:
    """Else an agent that is a command would spend from another budget than its own, or as nobody."""
    assert env_settings.budget({"ROUTEWEILER_ENVELOPE": " scout "}) == "scout"
    assert env_settings.agent_id({"ROUTEWEILER_AGENT": "scout"}) == "scout"
    assert env_settings.agent_id({"ROUTEWEILER_AGENT": " "}) is None
    for environ in (
        {"ROUTEWEILER_ENVELOPE": "scout", "ROUTEWEILER_BUDGET": "none"},
        {"ROUTEWEILER_ENVELOPE": "x" * 513},
        {"ROUTEWEILER_ENVELOPE": "https://user:s3cret@host"},
    ):
        with pytest.raises(ValueError, match="ROUTEWEILER_ENVELOPE") as refused:
            env_settings.budget(environ)
        assert "s3cret" not in str(refused.value)
    with pytest.raises(ValueError, match="ROUTEWEILER_AGENT"):
        env_settings.agent_id({"ROUTEWEILER_AGENT": "a\ud800"})
