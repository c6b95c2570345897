"""``routeweiler-sync schema``: what it says of commands, outputs, exit codes and variables is so."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from routeweiler_sync._core import env_vars
from routeweiler_sync.agents.fetching import MAX_CHARS
from routeweiler_sync.cli import main, output_schemas
from routeweiler_sync.cli.schema import EXIT_CODES, OTHER_EXIT_CODES
from routeweiler_sync.testing import FakeLnd, Paywall
from tests.component.cli.test_help import COMMANDS, help_of
from tests.support.accounts import Books

jsonschema = pytest.importorskip("jsonschema")

#: Set by ``run`` for the programs that it starts, and by nobody else.
INTERNAL = {env_vars.RUN, env_vars.RUN_LIMIT, env_vars.RUN_BILL}


@pytest.fixture(scope="module")
def schema() -> Any:
    done = CliRunner().invoke(main, ["schema"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.fixture
def call(lnd: FakeLnd, books: Books, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run a command in this process, and return what it prints as JSON."""
    ours = {"ROUTEWEILER_LEDGER": str(books.ledger_path), "ROUTEWEILER_TRACE": str(books.trace_path)}
    for name, value in {**lnd.environ, **ours}.items():
        monkeypatch.setenv(name, value)

    def call(*args: str) -> Any:
        done = CliRunner().invoke(main, [*args, "--json"])
        assert done.stdout.strip(), (args, done.output, done.exception)
        return json.loads(done.stdout)

    return call


def test_every_output_is_as_its_schema_says(call: Callable[..., Any], schema: Any, paywall: Paywall, lnd: FakeLnd) -> None:
    """An agent that reads a member which isn't there, or misses one that is, misreads what happened to the money."""
    outputs = {each["name"]: each["output"] for each in schema["commands"] if each["output"] is not None}
    page, checked = paywall.url_for("/page"), set[str]()

    def check(command: str, *args: str) -> Any:
        printed = call(*command.split(), *args)
        jsonschema.validate(printed, outputs[command], format_checker=jsonschema.FormatChecker())
        checked.add(command)
        return printed

    check("payments list")
    assert check("get", "--dry-run", page)["verdict"]["outcome"] == "pay"
    assert check("get", "--max-sats", "1", page)["error"]["spent"] is False
    check("get", page)
    assert check("get", page)["payment"]["reused"]
    check("get", paywall.url_for("/free"))
    check("get", "http://127.0.0.1:9/")
    [paid] = check("payments list")
    check("payments show", paid["paymentHash"])
    check("tokens list")
    for command in ("list", "show", "show default", "show --by agent"):
        name, _, rest = command.partition(" ")
        assert check(f"budget {name}", *rest.split())
    check("budget set", "lab", "--cap", "5", "--currency", "eur")
    check("budget freeze", "lab")
    check("budget thaw", "lab")
    assert check("budget audit")["agrees"]
    assert check("report")["calls"]["all"]
    assert check("doctor")["checks"]
    for wallet in ("lnd", "litd", "lnbits", "nwc"):
        check("bakery", *(("--wallet", wallet) if wallet != "litd" else ("--wallet", wallet, "--sats", "10")))
    check("payments archive", "--before", "400d", "--dry-run")
    check("tokens forget", paid["paymentHash"])
    lnd.hang_next()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["routeweiler_sync.cli.get"], "PAYMENT_TIMEOUT_S", 1.0)
        assert check("get", page)["error"]["spent"] is None
    [unfinished] = check("payments list", "--unfinished")
    check("payments recover")
    check("payments abandon", unfinished["paymentHash"])
    assert checked == outputs.keys()


def test_commands_and_options_are_those_of_the_help(schema: Any) -> None:
    """What --help lists and schema doesn't, an agent never uses; the reverse, it is refused."""
    assert [each["name"] for each in schema["commands"]] == sorted(
        command for command in COMMANDS if command and "Commands:\n" not in help_of(command)
    )
    for command in schema["commands"]:
        jsonschema.Draft202012Validator.check_schema(command["input"])
        if command["output"] is not None:
            jsonschema.Draft202012Validator.check_schema(command["output"])
        shown = help_of(command["name"])
        listed = re.findall(r"^  (-.*?)(?:  |$)", shown.partition("\nOptions:\n")[2], re.MULTILINE)
        flags = {flag for line in listed for flag in re.findall(r"(?<![\w-])--?[A-Za-z][\w-]*", line)} - {"-h", "--help"}
        assert flags == {flag for each in command["input"]["properties"].values() for flag in each["x-flags"]}
        assert ("--json" in flags) == (command["output"] is not None)
        usage = shown.partition("\n\n")[0]
        for name, each in command["input"]["properties"].items():
            if not each["x-flags"]:
                assert name.upper() in usage
        assert "\b" not in command["help"]


def test_exit_codes_and_variables_are_all_told(schema: Any) -> None:
    """A code or a variable that isn't told can't be acted on. Which ones are secret decides what may be logged."""
    told = re.findall(r"(?<!\d)([0-6])  ", help_of("get").partition("Exit codes:")[2].partition("\n\n")[0])
    assert sorted(schema["exitCodes"]) == [*sorted(told), "other"]
    names = {value for value in vars(env_vars).values() if isinstance(value, str) and value.startswith("ROUTEWEILER_")} - INTERNAL
    assert {name for name in names if name not in help_of("get")} == set(), "the help of get leaves some out"
    names = {value for name, value in vars(env_vars).items() if name.isupper() and isinstance(value, str)} - INTERNAL
    assert {each["name"] for each in schema["environment"]} == names
    secret = {each["name"] for each in schema["environment"] if each["secret"]}
    assert secret == {"ROUTEWEILER_LNDCONNECT", "LND_MACAROON_HEX", "LNBITS_ADMIN_KEY", "NWC_URL", "ROUTEWEILER_LEDGER"}


def test_one_command_is_shown_alone() -> None:
    """All commands are many tokens for a model."""
    shown = json.loads(CliRunner().invoke(main, ["schema", "payments", "list"]).stdout)
    assert [each["name"] for each in shown["commands"]] == ["payments list"]
    group = json.loads(CliRunner().invoke(main, ["schema", "tokens"]).stdout)
    assert [each["name"] for each in group["commands"]] == ["tokens forget", "tokens list"]
    assert CliRunner().invoke(main, ["schema", "pay"]).exit_code == 2
    mcp = json.loads(CliRunner().invoke(main, ["schema", "mcp"]).stdout)["mcp"]
    assert mcp["tools"]["fetch"]["output"] == output_schemas.FETCH_OUTPUT
    [max_chars] = [each for each in main.commands["mcp"].params if each.name == "max_chars"]
    assert max_chars.default == MAX_CHARS


@pytest.mark.parametrize("page", ["agents-mcp.md", "agents-shell.md"])
def test_the_pages_for_agents_name_what_there_is(page: str) -> None:
    """An agent does as the page says: a command that is refused, or an exit code that means something else, costs it the way."""
    text = (Path(__file__).parents[3] / "docs" / "how-to" / page).read_text(encoding="utf-8")
    lines = [*re.findall(r"^(?:\$ )?routeweiler-sync (.*)$", text, re.MULTILINE), *re.findall(r"`routeweiler-sync ([^`]*)`", text)]
    assert lines
    for line in lines:
        words = shlex.split(line)
        each: click.Command = main
        while words and isinstance(each, click.Group) and words[0] in each.commands:
            each = each.commands[words.pop(0)]
        assert each is not main, line
        names = {name for parameter in each.params for name in parameter.opts} | {"--help"}
        assert {word for word in words if re.fullmatch(r"--?[a-z][a-z-]*|-[A-Za-z]", word)} <= names, line
    for command in re.findall(r"`((?:budget|payments|tokens) [a-z]+)`", text):
        assert command in COMMANDS
    if page == "agents-mcp.md":
        options = set(re.findall(r"^\| `(--[a-z-]+)", text, re.MULTILINE)) | {"--http"}
        assert options == {name for parameter in main.commands["mcp"].params for name in parameter.opts}
    else:
        told = dict(re.findall(r"^\| ([0-9]|other) \| (.*) \|$", text, re.MULTILINE))
        assert told == {**{str(code.value): meaning for code, meaning in EXIT_CODES.items()}, "other": OTHER_EXIT_CODES}
        decide = {f"`{name}`" for name in (env_vars.BUDGET, env_vars.ENVELOPE, env_vars.LEDGER)}
        assert set(re.findall(r"`ROUTEWEILER_[A-Z]+`", text)) == decide, "these decide on the limits"
