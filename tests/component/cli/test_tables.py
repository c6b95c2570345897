"""Lists of the command line: what people see on a terminal, what ``awk`` reads in a pipe, and what ``--json`` prints."""

from __future__ import annotations

import inspect
import json
import os
import re
import shlex
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from click.testing import CliRunner

from routeweiler_sync import BudgetExceededError, Ledger, PaymentState
from routeweiler_sync.cli import main
from routeweiler_sync.cli.payments import STATES
from routeweiler_sync.ledger.types import Change
from tests.support.cli_process import TIMEOUT_S, bare_environ, on_terminal, without_styles
from tests.support.ledger_builders import NOON_S, Clock, die, draw, fail, hash_of, intent, limits, preimage, put, settle

posix = pytest.mark.skipif(os.name == "nt", reason="pseudo terminals are POSIX's")

HOSTILE = "a\x1b[2J\x07b\u202ec  d\r\ne"
ESCAPED = r"a\x1b[2J\x07b\u202ec d\r\ne"
WIDE = "天気予報"
#: Styles of rich, and nothing else that a terminal obeys.
_STYLE = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A ledger with a payment in every state, the scopes of hostile and foreign servers, and a budget."""
    path = tmp_path / "ledger.db"
    clock = Clock()
    with closing(Ledger(Ledger.open(path)._store, clock=clock)) as ledger:
        for n in range(8):
            clock.now_s = NOON_S + 3600 * n
            scope = {1: HOSTILE, 2: WIDE, 3: "services=weather:0,rain:1 [bold]red[/bold]"}.get(n, f"scope-{n}")
            origin = "https://api.example" if n % 2 else "http://other.example:8080"
            ledger.open_payment(
                intent(n, scope=scope, origin=origin, amount_msat=10_500 + n), draw(limits("lab", per_day_minor_units=500))
            )
        settle(ledger, 1, fee_msat=1_234)
        settle(ledger, 2)
        ledger.mark(hash_of(2), accepted=True)
        settle(ledger, 3, proved=False)
        settle(ledger, 4)
        ledger.forget(hash_of(4))
        die(ledger, 5)
        fail(ledger, 6)
        put(ledger, hash_of(7), Change(state=PaymentState.DEAD, failure_code="abandoned", failure_text="abandoned by the user"))
    return path


class Said(NamedTuple):
    """How a command ended, and what it wrote."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def output(self) -> str:
        return self.stdout + self.stderr


@pytest.fixture
def run(path: Path) -> Any:
    def run(*args: str, ledger: str | Path | None = None) -> Said:
        apart = {} if "mix_stderr" not in inspect.signature(CliRunner).parameters else {"mix_stderr": False}  # click before 8.2
        runner = CliRunner(**apart, env={"ROUTEWEILER_LEDGER": str(ledger or path), "FORCE_COLOR": "1"})
        result = runner.invoke(main, args)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        said = Said(result.exit_code, result.stdout, result.stderr)
        for n in range(8):
            assert f"token-{n}" not in said.output
            assert preimage(n).hex() not in said.output
        return said

    return run


def facts_of(text: str) -> dict[str, list[str]]:
    """The names and values that a command has printed, a list of lines for each name."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        name, value = re.split(" {2,}", line, maxsplit=1)
        found.setdefault(name, []).append(value)
    return found


LISTS = [("payments", "list"), ("tokens", "list"), ("budget", "list")]


def columns_of(line: str) -> list[str]:
    return re.split(" {2,}", line.strip())


# In a pipe


def test_a_pipe_gets_a_line_a_payment_with_nothing_cut_off(run: Any) -> None:
    """Scripts go by these columns: a hash that is cut off, or a scope of a server that makes a column, breaks them unseen."""
    head, *lines = run("payments", "list").stdout.splitlines()
    assert columns_of(head) == ["CREATED", "STATE", "SAT", "FEE_SAT", "PAYMENT_HASH", "ORIGIN", "SCOPE"]
    cells = [columns_of(line) for line in lines]
    assert [len(each) for each in cells] == [7] * 8
    assert [each[4] for each in cells] == [hash_of(n) for n in range(8)]
    assert [each[1] for each in cells] == ["open", "settled", "settled", "settled", "retired", "dead", "failed", "dead"]
    assert [each[2] for each in cells] == [f"10.50{n}" if n else "10.500" for n in range(8)]
    assert [each[3] for each in cells] == ["-", "1.234", "0", "0", "0", "-", "-", "-"]
    assert cells[1][6] == ESCAPED
    assert cells[2][6] == WIDE
    assert cells[3][6] == "services=weather:0,rain:1 [bold]red[/bold]"
    assert [each[0] for each in cells] == [f"2027-01-15T{n:02d}:00:00Z" for n in range(8)]
    assert sum(float(line.split()[2]) for line in lines) == pytest.approx(84.028), "as awk splits: the first six have no blanks"


@pytest.mark.parametrize("args", [*LISTS, ("payments", "show", hash_of(1)), ("budget", "show", "lab")])
def test_a_pipe_gets_no_escape_codes(run: Any, args: tuple[str, ...]) -> None:
    """FORCE_COLOR is set in many CI systems; a server's own codes would rewrite what the user sees."""
    said = run(*args).output
    assert not [char for char in said if not char.isprintable() and char != "\n"]


@pytest.mark.parametrize("args", LISTS)
def test_the_head_of_a_long_list_ends_quietly(path: Path, args: tuple[str, str]) -> None:
    """A traceback, or 'Broken pipe', after ``| head -1``."""
    process = subprocess.Popen(
        [sys.executable, "-m", "routeweiler_sync", *args, "--json"],
        env=bare_environ(ROUTEWEILER_LEDGER=str(path)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.close()
    _, err = process.communicate(timeout=TIMEOUT_S)
    assert err == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full is Linux's")
def test_a_full_disk_is_said_in_a_sentence(path: Path) -> None:
    """A traceback for a full disk sends people to look for a fault in the ledger."""
    for args in (["payments", "list"], ["payments", "list", "--json"], ["bakery"]):
        with open("/dev/full", "wb") as full:
            done = subprocess.run(
                [sys.executable, "-m", "routeweiler_sync", *args],
                env=bare_environ(ROUTEWEILER_LEDGER=str(path)),
                stdout=full,
                stderr=subprocess.PIPE,
                timeout=TIMEOUT_S,
            )
        assert done.returncode == 1
        assert b"The output can't be written: No space left on device." in done.stderr
        assert b"Traceback" not in done.stderr


# On a terminal


@posix
@pytest.mark.parametrize("columns", [40, 80, 200])
@pytest.mark.parametrize("args", LISTS)
def test_a_terminal_of_any_width_shows_everything(path: Path, args: tuple[str, str], columns: int) -> None:
    """Half of each line behind the edge, or broken by the terminal itself, can't be read."""
    code, said = on_terminal(*args, columns=columns, ROUTEWEILER_LEDGER=str(path))
    assert code == 0
    assert not [char for char in _STYLE.sub("", said) if not char.isprintable() and char != "\n"]
    shown = without_styles(said)
    assert max(map(len, shown.splitlines())) <= columns
    squeezed = re.sub(r"\s", "", shown)
    for text in {"payments": [hash_of(7)[:12], "10.507", "settled"], "tokens": [hash_of(2)[:12]], "budget": ["lab", "500sat/day"]}[
        args[0]
    ]:
        assert text in squeezed


@posix
def test_a_heading_is_broken_between_words_alone(tmp_path: Path) -> None:
    """A column that gets less room than was reckoned shows "scop" and, below it, "e"."""
    with closing(Ledger.open(tmp_path / "ledger.db")) as ledger:
        ledger.open_payment(intent(1, scope="/a", origin="http://127.0.0.1:40315"), draw(limits("lab")))
    _, said = on_terminal("payments", "list", columns=80, ROUTEWEILER_LEDGER=str(tmp_path / "ledger.db"))
    head, _, _ = without_styles(said).partition("─")
    assert sorted(head.split()) == ["created", "fee", "hash", "origin", "payment", "sat", "sat", "scope", "state"]


@posix
def test_what_a_terminal_shows_of_a_hash_is_taken(path: Path, run: Any) -> None:
    """A shortened hash that no command takes is of no use."""
    _, said = on_terminal("payments", "list", columns=200, ROUTEWEILER_LEDGER=str(path))
    (shown,) = re.findall(rf"{hash_of(5)[:8]}\S*", without_styles(said))
    assert len(shown) < 20
    assert hash_of(5) in run("payments", "show", shown).output


@posix
def test_no_color_means_none(path: Path) -> None:
    """NO_COLOR is a promise to people who can't read colours."""
    _, said = on_terminal("payments", "list", columns=120, ROUTEWEILER_LEDGER=str(path), NO_COLOR="1")
    assert not re.findall(r"\x1b\[[0-9;]*3[0-7]", said)


@posix
@pytest.mark.parametrize("encoding", ["ascii", "cp437", "cp1252"])
def test_an_old_code_page_is_enough(path: Path, encoding: str) -> None:
    """A Windows console without UTF-8 would get a traceback for the line below the headings."""
    for args in (("payments", "list"), ("payments", "show", hash_of(2))):
        code, said = on_terminal(*args, columns=100, ROUTEWEILER_LEDGER=str(path), PYTHONIOENCODING=encoding)
        assert code == 0, said
        assert "Traceback" not in said


# JSON


def test_json_is_a_list_of_objects_with_whole_msat(run: Any) -> None:
    """One form for all lists; floats and sats in place of msat lose money in somebody's books."""
    rows = json.loads(run("payments", "list", "--json").stdout)
    assert [row["paymentHash"] for row in rows] == [hash_of(n) for n in range(8)]
    assert [row["amountMsat"] for row in rows] == [10_500 + n for n in range(8)]
    assert [row["spentMsat"] for row in rows] == [0, 11_735, 10_502, 10_503, 10_504, 0, 0, 0]
    assert rows[1]["scope"] == HOSTILE
    assert rows[0]["settledAt"] is None
    (row,) = json.loads(run("budget", "list", "--json").stdout)
    assert (row["settledMsat"], row["reservedMsat"]) == (43_244, 11_500 + 11_506)
    assert row["headroomMsat"] == 500_000 - 43_244 - 23_006
    (one,) = json.loads(run("payments", "show", hash_of(1), "--json").stdout)
    assert one["paymentHash"] == hash_of(1)
    tokens = json.loads(run("tokens", "list", "--json").stdout)
    assert [(row["paymentHash"], row["token"]) for row in tokens] == [
        (hash_of(1), "new"),
        (hash_of(2), "accepted"),
        (hash_of(3), "none"),
    ]


@pytest.mark.parametrize("args", [*LISTS, ("budget", "show"), ("payments", "recover")], ids=" ".join)
def test_before_the_first_purchase_there_is_nothing_and_nothing_is_made(run: Any, tmp_path: Path, args: tuple[str, str]) -> None:
    """The first thing that a new user tries mustn't be an error, nor leave a file that a backup then keeps."""
    nothing = tmp_path / "state" / "ledger.db"
    result = run(*args, ledger=nothing)
    assert (result.exit_code, "nothing was bought yet" in result.stdout, str(nothing) in result.stdout) == (0, True, True)
    result = run(*args, "--json", ledger=nothing)
    assert (result.exit_code, json.loads(result.stdout)) == (0, [])
    assert not nothing.parent.exists()


# Which payments


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--state", "settled"], [1, 2, 3]),
        (["--state", "dead", "--state", "retired"], [4, 5, 7]),
        (["--unfinished"], [0, 6]),
        (["--unfinished", "--state", "dead"], [0, 5, 6, 7]),
        (["--origin", "https://api.example"], [1, 3, 5, 7]),
        (["--origin", "HTTPS://API.example:443/some/page?q"], [1, 3, 5, 7]),
        (["--origin", "api.example"], [1, 3, 5, 7]),
        (["--origin", "*.example:8080"], [0, 2, 4, 6]),
        (["--origin", "nobody.example"], []),
        (["--limit", "3"], [5, 6, 7]),
        (["--limit", "2", "--state", "settled"], [2, 3]),
        (["--limit", "100"], list(range(8))),
        (["--since", "2027-01-15T05:00:00Z"], [5, 6, 7]),
        (["--since", "2027-01-15T07:00+02:00", "--limit", "1"], [7]),
        (["--since", "2027-01-15"], list(range(8))),
        (["--since", "2027-01-16"], []),
    ],
    ids=lambda value: " ".join(value) if value and isinstance(value[0], str) else "",
)
def test_the_payments_that_are_asked_for(run: Any, options: list[str], expected: list[int]) -> None:
    """Who sums up a list that leaves some out, or has others in it, is told wrong."""
    rows = json.loads(run("payments", "list", "--json", *options).stdout)
    assert [row["paymentHash"] for row in rows] == [hash_of(n) for n in expected]
    if not expected:
        assert "nothing was bought" not in run("payments", "list", *options).stdout


def test_how_long_ago_counts_from_now(run: Any) -> None:
    """``--since 7d`` is what people type."""
    far = int((time.time() - NOON_S) / 86_400)
    for text, count in (("1d", 0 if far > 1 else 8), (f"{max(0, far) + 2}d", 8), ("900000h", 8)):
        assert len(json.loads(run("payments", "list", "--json", "--since", text).stdout)) == count


@pytest.mark.parametrize(
    "options",
    [
        *(["--since", text] for text in ("yesterday", "", "7", "2027-13-01", "-7d", "99999999d")),
        *(["--origin", text] for text in ("https://*/x", "")),
        ["--limit", "0"],
        ["--state", "paid"],
    ],
    ids=" ".join,
)
def test_options_that_make_no_sense_are_refused(run: Any, tmp_path: Path, options: list[str]) -> None:
    """A filter that is ignored shows everything, and looks as if that were all there is to it. Also before there is a ledger."""
    assert run("payments", "list", *options).exit_code == 2
    assert run("payments", "list", *options, ledger=tmp_path / "none.db").exit_code == 2


def test_the_names_of_states_are_the_ledgers() -> None:
    """A state that the option doesn't know could never be listed."""
    assert tuple(state.value for state in PaymentState) == STATES


# One payment


@pytest.mark.parametrize(
    ("n", "state", "to_do"),
    [
        (0, "open: not finished", ["payments recover", "fetch the page again", f"payments abandon {hash_of(0)[:16]}"]),
        (1, "settled: paid; the token is kept", ["Fetch the page again", f"tokens forget {hash_of(1)[:16]}"]),
        (2, "settled: paid; the server accepts the token", ["Nothing."]),
        (3, "settled: paid, but the node's proof was wrong", ["whoever runs the node", f"tokens forget {hash_of(3)[:16]}"]),
        (4, "retired: paid; the token was forgotten", ["Nothing."]),
        (5, "dead: not paid, and it can't be paid any more: NO_ROUTE", ["buys anew"]),
        (6, "failed: not finished", ["payments recover", "fetch the page again", "payments abandon"]),
        (7, "dead: abandoned by you", ["payments recover"]),
    ],
)
def test_show_says_what_a_state_means_and_what_to_do(run: Any, n: int, state: str, to_do: list[str]) -> None:
    """A word such as 'failed' makes people pay by hand for what the node then pays as well."""
    facts = facts_of(run("payments", "show", hash_of(n)).stdout)
    assert facts["state"][0].startswith(state)
    assert len(facts["to do"]) == len(to_do)
    for line, text in zip(facts["to do"], to_do, strict=True):
        assert text in line
    assert facts["amount"] == [f"10.50{n} sat" if n else "10.500 sat"]
    assert facts["envelope"] == ["lab"]
    assert ("reserved" in facts) == (n in (0, 6))
    assert ("settled" in facts, "total" in facts) == (n in (1, 2, 3, 4),) * 2
    assert facts["begun"] == [f"2027-01-15 {n:02d}:00:00 UTC"]


def test_show_names_page_fee_and_proof(run: Any, path: Path) -> None:
    """The proof of payment is what a user shows the server's operator. It is asked for in Python, and on no screen."""
    facts = facts_of(run("payments", "show", hash_of(1)).stdout)
    assert facts["page"] == ["https://api.example/pages/1"]
    assert facts["routing fee"] == ["1.234 sat (at most 1 sat was allowed)"]
    assert facts["total"] == ["11.735 sat"]
    assert facts["scope"] == [ESCAPED.replace("c d", "c  d")]
    (proof,) = facts["proof"]
    assert str(path) in proof
    done = subprocess.run(
        [sys.executable, "-c", proof.removeprefix("in Python: ")],
        env=bare_environ(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.stdout.strip() == preimage(1).hex()
    assert "proof" not in facts_of(run("payments", "show", hash_of(0)).stdout)


def test_the_commands_to_copy_name_the_ledger_that_was_named(run: Any, path: Path, tmp_path: Path) -> None:
    """Else what is copied abandons nothing, or a payment of another ledger."""
    facts = facts_of(run("payments", "show", hash_of(0), "--ledger", str(path), ledger=tmp_path / "other.db").stdout)
    for line in (facts["to do"][0], facts["to do"][2]):
        assert line.endswith(f" --ledger {path}")


def alike(path: Path, digits: int) -> tuple[str, str]:
    """The hashes of two further payments in the ledger that begin alike, found by trying."""
    seen: dict[str, int] = {}
    for n in range(100, 1_000_000):
        other = seen.setdefault(hash_of(n)[:digits], n)
        if other != n:
            with closing(Ledger.open(path)) as ledger:
                for each in (other, n):
                    ledger.open_payment(intent(each), draw("lab"))
            return hash_of(other), hash_of(n)
    raise AssertionError("no two hashes are alike")


@pytest.mark.parametrize("command", [("payments", "show"), ("payments", "abandon"), ("tokens", "forget")])
def test_a_payment_is_named_by_the_start_of_its_hash(
    run: Any, path: Path, command: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two payments that begin alike the wrong one must not be abandoned; a mistyped start names none."""
    n = {"show": 5, "abandon": 0, "forget": 1}[command[1]]
    for wrong in (hash_of(n)[:7], "", "zzzzzzzz", hash_of(n) + "0", f"{hash_of(n)[:8]} {hash_of(n)[8:16]}"):
        assert run(*command, wrong).exit_code == 2
    missing = run(*command, "0123456789" * 4)
    assert (missing.exit_code, "0123456789" * 4 in missing.output) == (2, True)
    monkeypatch.setattr("routeweiler_sync.cli.ledgers.HASH_DIGITS_MIN", 4)
    one, other = alike(path, 4)
    ambiguous = run(*command, one[:4])
    assert ambiguous.exit_code == 2
    assert {one, other} <= set(ambiguous.output.split())
    assert "2 payments begin with" in ambiguous.output
    with closing(Ledger.open(path)) as ledger:
        assert {row.state for row in ledger.payments_named(one[:4], 9)} == {PaymentState.OPEN}
    assert run(*command, f" {hash_of(n)[:8].upper()}… ").exit_code == 0


def test_a_secret_in_place_of_a_hash_isnt_repeated(run: Any) -> None:
    """Terminals and CI keep what they show."""
    for secret in ("AgEEbHNhdAJCAAAJ" * 4, "0201036c6e6402f801030a10" * 4):
        result = run("payments", "show", secret)
        assert (result.exit_code, secret in result.output) == (2, False)


# Budgets


def test_limits_are_made_and_changed_one_by_one(run: Any, tmp_path: Path) -> None:
    """A limit that wasn't named must stay: who sets the hour doesn't mean to lift the cap."""
    new = tmp_path / "new.db"
    made = run("budget", "set", "bots", "--cap", "1000", "--per-call", "10", ledger=new)
    assert (made.exit_code, "is made" in made.stdout) == (0, True)
    assert facts_of(made.stdout.split("\n", 1)[1])["limits"] == ["10 sat/call", "1000 sat"]
    changed = run("budget", "set", "bots", "--per-call", "none", "--per-hour", "20", "--per-day", "0", ledger=new)
    assert "is changed" in changed.stdout
    (row,) = json.loads(run("budget", "show", "bots", "--json", ledger=new).stdout)
    assert row["limits"] | {"ttlSeconds": None} == row["limits"]
    assert [row["limits"][name] for name in ("capMinorUnits", "perCallMinorUnits", "perHourMinorUnits", "perDayMinorUnits")] == [
        1000,
        None,
        20,
        0,
    ]
    (row,) = json.loads(run("budget", "set", "dollars", "--currency", "usd", "--per-day", "500", "--json", ledger=new).stdout)
    assert (row["currency"], row["settledMsat"], row["settledMinorUnits"]) == ("usd", None, "0")
    assert "500 usd cents/day" in run("budget", "list", ledger=new).stdout


def test_lowering_below_what_is_spent_is_done_and_said(run: Any, path: Path) -> None:
    """That is how a runaway program is stopped; and who didn't mean that has to hear it."""
    result = run("budget", "set", "lab", "--cap", "5", "--per-day", "66")
    assert result.exit_code == 0
    assert "--cap 5 is below the 66.25 sat that are spent or reserved already" in result.stderr
    assert "--per-day 66 is below" in result.stderr
    facts = facts_of(result.stdout.split("\n", 1)[1])
    assert facts["headroom"] == ["0 sat to spend at this moment"]
    with closing(Ledger.open(path)) as ledger, pytest.raises(BudgetExceededError):
        ledger.open_payment(intent(99, amount_msat=1), draw("lab"))
    assert "below" not in run("budget", "set", "lab", "--cap", "none", "--per-day", "100").stderr


def test_limits_that_others_bring_along_are_said(run: Any) -> None:
    """Who sets the limits of 'default' believes they hold, and the next session without a budget brings the built-in ones."""
    said = run("budget", "set", "default", "--per-day", "10")
    assert "ROUTEWEILER_BUDGET='10 sat/day'" in said.stderr
    assert "50000 sat/day" in said.stderr
    bots = run("budget", "set", "bots", "--per-day", "10")
    assert bots.stderr == ""
    for each in (said, bots):
        assert "for programs that name it by its id and bring no limits of their own:" in each.stdout


@pytest.mark.parametrize(
    "args",
    [
        ["lab"],
        ["lab", "--cap", "-1"],
        ["lab", "--cap", "1.5"],
        ["lab", "--cap", "1e3"],
        ["lab", "--cap", "4000000000001"],
        ["lab", "--cap", "9" * 5000],
        ["lab", "--cap", ""],
        ["lab", "--currency", "usd", "--cap", "1"],
        ["lab", "--currency", "doge", "--cap", "1"],
        ["", "--cap", "1"],
        ["x" * 600, "--cap", "1"],
    ],
    ids=lambda args: " ".join(args)[:40],
)
def test_limits_that_make_no_sense_change_nothing(run: Any, args: list[str]) -> None:
    """A limit that is read otherwise than it was meant is no limit."""
    before = run("budget", "list", "--json").stdout
    assert run("budget", "set", *args).exit_code == 2
    assert run("budget", "list", "--json").stdout == before


def test_freeze_and_thaw_print_the_envelope_as_json(run: Any) -> None:
    """`--json` everywhere."""
    (row,) = json.loads(run("budget", "freeze", "lab", "--json").stdout)
    assert (row["id"], row["frozen"]) == ("lab", True)
    assert "budget thaw lab" in run("budget", "show", "lab").stdout
    (row,) = json.loads(run("budget", "thaw", "lab", "--json").stdout)
    assert row["frozen"] is False


# The bakery


def test_the_bakery_prints_one_command_and_says_the_rest_elsewhere(run: Any) -> None:
    """What is piped to a shell must be the command alone. The page on lnd has the same."""
    result = run("bakery")
    page = Path(__file__).parents[3].joinpath("docs", "how-to", "wallets", "lnd.md").read_text(encoding="utf-8")
    assert f"\n{result.stdout}" in page
    assert len(result.stdout.splitlines()) == 1
    for name in ("LND_GRPC_HOST", "LND_TLS_CERT_PATH", "LND_MACAROON_PATH", "doctor"):
        assert name in result.stderr
    (made,) = json.loads(run("bakery", "--json", "--save-to", "/x y/'p'.macaroon", "--network", "bitcoin-signet").stdout)
    assert shlex.split(made["command"]) == made["argv"]
    assert made["argv"][:5] == ["lncli", "--network=signet", "bakemacaroon", "--save_to", "/x y/'p'.macaroon"]
    assert made["permissions"] == made["argv"][5:]


@pytest.mark.parametrize(
    ("wallet", "options", "said"),
    [
        ("lnd-rest", [], ["LND_REST_URL=https://HOST:8080", "LND_TLS_CERT_PATH", "LND_MACAROON_PATH"]),
        ("litd", ["--sats", "500"], ["chmod 600", "LND_GRPC_HOST=HOST:10009", "LND_MACAROON_PATH=/path/to/payer.macaroon"]),
        ("lnbits", [], ["LNBITS_URL", "LNBITS_ADMIN_KEY", "admin key pays", "wallet for this program alone"]),
        ("nwc", [], ["NWC_URL", "pay_invoice, lookup_invoice, get_info", "budget"]),
        ("nwc", ["--audit", "--balance"], ["pay_invoice, lookup_invoice, get_info, get_balance, list_transactions"]),
    ],
)
def test_the_bakery_says_of_each_wallet_what_key_to_make(run: Any, wallet: str, options: list[str], said: list[str]) -> None:
    """Whoever finds no advice pays with the key that can do everything."""
    result = run("bakery", "--wallet", wallet, *options)
    assert result.exit_code == 0
    for text in (*said, "routeweiler-sync doctor"):
        assert text in result.output
    (made,) = json.loads(run("bakery", "--wallet", wallet, "--json", *options).stdout)
    assert made["wallet"] == wallet
    assert made["steps"]
    assert made["permissions"]
    if made["argv"] is None:
        assert (made["command"], made["saveTo"], result.stderr) == (None, None, "")
    else:
        assert result.stdout == made["command"] + "\n"
        assert shlex.split(made["command"]) == made["argv"]


def test_the_bakery_makes_an_account_of_litd_that_can_be_used_up_and_ends(run: Any) -> None:
    """litcli takes the balance in sats and the end in unix seconds."""
    (made,) = json.loads(run("bakery", "--wallet", "litd", "--sats", "500", "--timeout", "600", "--json").stdout)
    *most, end = made["argv"]
    expected = ["litcli", "accounts", "create", "--balance", "500", "--save_to", "payer.macaroon", "--expiration_date"]
    assert most == expected
    assert abs(int(end) - time.time() - 600) < 60


@pytest.mark.parametrize(
    "options",
    [
        ["--wallet", "litd"],
        ["--wallet", "litd", "--sats", "0"],
        ["--wallet", "litd", "--sats", "5", "--network", "bitcoin"],
        ["--sats", "5"],
        ["--wallet", "nwc", "--save-to", "x.macaroon"],
        ["--wallet", "lnbits", "--timeout", "60"],
        ["--wallet", "eclair"],
        ["--save-to", ""],
        ["--save-to", "a\nb"],
        ["--save-to", "0201036c6e6402f801030a10" * 4],
        ["--ip-address", "localhost"],
        ["--timeout", "0"],
        ["--root-key-id", "0"],
        ["--network", "mainnet"],
    ],
    ids=lambda options: " ".join(options)[:30],
)
def test_a_bakery_order_that_makes_no_sense_is_refused(run: Any, options: list[str]) -> None:
    """A command that goes to a shell unread has to be right; a macaroon given as a path isn't repeated."""
    result = run("bakery", *options)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "0201036c6e64" not in result.output
