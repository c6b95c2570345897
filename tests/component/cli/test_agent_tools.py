"""The tools of ``routeweiler-sync mcp`` by themselves: where they may go, what they write, and what their errors tell an agent."""

from __future__ import annotations

import contextlib
import json
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from routeweiler_sync.agents import folder as folders
from routeweiler_sync.cli import main, output_schemas as schemas
from routeweiler_sync.cli.agent_tools import Options, Question, Tools
from routeweiler_sync.cli.outcome import Exit
from routeweiler_sync.testing import FakeLnd, Paywall
from tests.support.accounts import Books
from tests.support.http_server import server

jsonschema = pytest.importorskip("jsonschema")


@pytest.fixture
def make(lnd: FakeLnd, books: Books, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Tools]]:
    """Tools with these options, on the test's ledger and node."""
    ours = {"ROUTEWEILER_LEDGER": str(books.ledger_path), "ROUTEWEILER_TRACE": str(books.trace_path)}
    for name, value in {**lnd.environ, **ours}.items():
        monkeypatch.setenv(name, value)
    made: list[Tools] = []

    def make(**options: Any) -> Tools:
        made.append(Tools(Options(**options)))
        return made[-1]

    yield make
    for each in made:
        each.close()


def fetched(tools: Tools, url: str, **arguments: Any) -> dict[str, Any]:
    found = tools.fetch({"url": url, **arguments})
    assert isinstance(found, dict)
    jsonschema.validate(found, schemas.FETCH_OUTPUT)
    return found


def test_a_page_goes_to_a_new_file_in_the_folder_and_nowhere_else(
    make: Callable[..., Tools], paywall: Paywall, tmp_path: Path, lnd: FakeLnd
) -> None:
    """A page may tell the agent to write to ~/.bashrc. What can't be written is refused before it is paid for."""
    folder, outside = tmp_path / "downloads", tmp_path / "outside"
    folder.mkdir()
    (folder / "there").write_text("mine")
    (folder / "link").symlink_to(outside)
    tools = make(folder=str(folder))
    for name in ("../outside", str(outside), "there", "link", ".hidden", "a/b", "nul", "con.txt", "a.", "", "a\0b", "a\\b", "c:a"):
        refused = fetched(tools, paywall.url_for("/page"), save_as=name)
        assert (refused["error"]["code"], refused["error"]["spent"]) == ("bad_argument", False), name
    assert not lnd.orders
    assert not paywall.requests
    saved = fetched(tools, paywall.url_for("/page"), save_as="page.txt")
    assert (saved["file"], saved["text"], saved["error"]) == (str(folder.resolve() / "page.txt"), None, None)
    assert (folder / "page.txt").read_bytes() == b"paid content\n"
    assert sorted(each.name for each in folder.iterdir()) == ["link", "page.txt", "there"]
    assert (folder / "there").read_text() == "mine"
    assert not outside.exists()
    assert make().fetch({"url": paywall.url_for("/page"), "save_as": "x"})["error"]["code"] == "bad_argument"  # type: ignore[index]
    with pytest.raises(folders.FolderError):
        make(folder=str(outside))


def test_a_file_that_does_not_arrive_whole_is_not_left_behind(
    make: Callable[..., Tools], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a page under its name looks like the page."""
    monkeypatch.setattr(folders, "FILE_BYTES_MAX", 10)
    with server(lambda it: (200, [], b"x" * 11)) as url:
        found = fetched(make(folder=str(tmp_path)), url, save_as="page")
    assert found["error"]["spent"] is False
    assert not [each for each in tmp_path.iterdir() if "page" in each.name]


def test_only_the_allowed_origins_are_asked_for_anything(make: Callable[..., Tools], paywall: Paywall) -> None:
    """A redirect to the cloud's metadata, or to the router, would else be followed on the agent's behalf."""
    asked: list[str] = []

    def inner(it: Any) -> Any:
        asked.append(it.path)
        return 200, [], b"internal"

    with server(inner) as secret, server(lambda it: (302, [("Location", f"{secret}/metadata")], b"")) as open_:
        tools = make(origins=(open_, paywall.base_url))
        for url in (f"{secret}/metadata", f"{open_}/page"):
            found = fetched(tools, url)
            assert (found["error"]["code"], found["error"]["spent"], found["error"]["retryable"]) == (
                "origin_not_allowed",
                False,
                False,
            )
            assert tools.quote({"url": url})["error"]["code"] == "origin_not_allowed"
    assert not asked
    assert fetched(tools, paywall.url_for("/page"))["status"] == 200


def test_the_agent_gets_none_of_the_users_passwords_and_no_other_agents_cookies(
    make: Callable[..., Tools], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user's netrc would open the user's pages to whoever writes into a page; a shared cookie, another agent's."""
    sent: list[Any] = []

    def answer(it: Any) -> Any:
        sent.append(it.headers)
        location = [("Location", "/after")] if it.path == "/before" else []
        return (302 if location else 200), [("Set-Cookie", "session=1"), *location], b"ok"

    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password mine\n")
    monkeypatch.setenv("NETRC", str(netrc))
    tools = make()
    with server(answer) as url:
        fetched(tools, f"{url}/before")
        fetched(tools, f"{url}/own", headers={"Authorization": "Bearer own"}, body={"a": 1})
        for name in ("Host", "content-length", "Proxy-Authorization", "Transfer-Encoding"):
            assert fetched(tools, url, headers={name: "1"})["error"]["code"].startswith("bad_")
    assert [each.get("Authorization") for each in sent] == [None, None, "Bearer own"]
    assert [each.get("Cookie") for each in sent] == [None, "session=1", None], "a cookie serves within its call, on redirects"
    assert sent[-1]["Content-Type"] == "application/json"


def test_errors_say_what_became_of_the_money_and_whether_to_call_again(
    make: Callable[..., Tools], paywall: Paywall, lnd: FakeLnd, books: Books
) -> None:
    """An agent that can't tell 'never' from 'later' gives up on what it has paid for, or asks for ever."""
    tools, page = make(max_sats_per_call=1_000), paywall.url_for("/page")

    def error(url: str, **arguments: Any) -> tuple[str, bool | None, bool]:
        found = fetched(tools, url, **arguments)["error"]
        assert found["message"]
        assert found["advice"]
        return found["code"], found["spent"], found["retryable"]

    assert error(page, max_sats=1) == ("budget_exceeded", False, False)
    assert error("page") == ("MissingSchema", False, False)
    assert error("ftp://example.com/") == ("InvalidSchema", False, False)
    assert error("http://127.0.0.1:9/") == ("ConnectionError", False, True)
    lnd.fail_next()
    assert error(page) == ("invoice_payment_failed", False, True)
    paywall.cut_next()
    assert error(page)[1:] == (True, True)
    assert fetched(tools, page)["text"] == "paid content\n"
    assert len([each for each in lnd.payments if each.status == "SUCCEEDED"]) == 1
    books.check()


def test_no_option_and_no_argument_raises_another_limit(
    make: Callable[..., Tools], lnd: FakeLnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tightest of all limits holds: of the server, of the call, of the budget, and the agent's own."""
    lnd.fee_msat = 0
    monkeypatch.setenv("ROUTEWEILER_BUDGET", "25 sat")
    with Paywall(lnd, price_msat=10_000, sells="path") as shop:
        for options, arguments in (({"max_sats": 9}, {}), ({"max_sats_per_call": 9}, {}), ({}, {"max_sats": 9})):
            with contextlib.closing(Tools(Options(**options))) as tools:
                refused = fetched(tools, shop.url_for("/a"), **{"max_sats": 10_000, **arguments})
                assert refused["error"]["code"] == "budget_exceeded"
                assert tools.quote({"url": shop.url_for("/a"), **arguments})["error"]["code"] == "budget_exceeded"
        tools = make(max_sats=10_000, max_sats_per_call=10_000)
        assert [fetched(tools, shop.url_for(f"/{each}"), max_sats=10_000)["status"] for each in "abc"] == [200, 200, 402]
        found = fetched(tools, shop.url_for("/c"))
        assert found["leftMsat"] == 5_000
        assert fetched(tools, shop.url_for("/a"))["payment"]["reused"]
    assert lnd.spent_msat == 20_000
    for schema, output in (
        (schemas.BUDGET_OUTPUT, tools.budget({})),
        (schemas.PAYMENTS_OUTPUT, tools.payments({"limit": 1})),
        (schemas.PAYMENTS_OUTPUT, tools.payments({"origin": "nonsense"})),
        (schemas.SPENDING_OUTPUT, tools.spending()),
        (schemas.FETCH_OUTPUT, tools.quote({"url": shop.url_for("/a")})),
    ):
        jsonschema.validate(json.loads(json.dumps(output)), schema)
    assert tools.payments({"limit": 1})["more"]
    assert len(tools.payments({"unfinished": True})["payments"]) == 0


def test_a_price_that_rises_after_the_users_consent_is_asked_about_anew(
    make: Callable[..., Tools], paywall: Paywall, lnd: FakeLnd
) -> None:
    """A server that sees the question answered could else take whatever the limits allow."""
    tools, page = make(confirm=True), {"url": paywall.url_for("/page")}
    asked = tools.fetch(page, can_ask=True)
    assert isinstance(asked, Question)
    paywall.price_msat = 500_000
    dearer = tools.fetch(page, [asked.approval], can_ask=True)
    assert isinstance(dearer, Question)
    assert "500 sat" in dearer.text
    assert fetched(tools, page["url"])["error"]["code"] == "payment_declined"
    assert not lnd.orders
    paid = tools.fetch(page, [asked.approval, dearer.approval])
    assert isinstance(paid, dict)
    assert paid["spentMsat"] == lnd.spent_msat >= 500_000


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--allow-origin", "https://example.com/page"], Exit.USAGE, "--allow-origin: 'https://example.com/page' has a path"),
        (["--folder", "no-such-folder"], Exit.USAGE, "there is no folder no-such-folder"),
        (["--max-sats", "-1"], Exit.USAGE, "--max-sats"),
        ([], Exit.ERROR, "pip install 'routeweiler-sync[mcp]'"),
    ],
)
def test_a_server_that_cannot_be_started_says_what_to_change(
    options: list[str], code: Exit, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client shows this to a user who has just written its settings, or nothing at all."""
    has_extra = types.ModuleType("mcp_server") if options else None
    monkeypatch.setitem(sys.modules, "routeweiler_sync.cli.mcp_server", has_extra)  # type: ignore[arg-type]
    monkeypatch.delattr("routeweiler_sync.cli.mcp_server", raising=False)
    done = CliRunner().invoke(main, ["mcp", *options])
    assert done.exit_code == code
    assert said in done.output
    assert not done.stdout


def asked_until_answered(tools: Tools, url: str) -> tuple[dict[str, Any], list[Question]]:
    """The result of a fetch whose user agrees to all payments, and what was asked."""
    questions: list[Question] = []
    found = tools.fetch({"url": url}, can_ask=True)
    while isinstance(found, Question) and len(questions) < 5:
        questions.append(found)
        found = tools.fetch({"url": url}, [*found.approvals, found.approval], spent_msat=found.spent_msat, can_ask=True)
    assert isinstance(found, dict)
    return found, questions


def test_the_questions_of_one_call_do_not_raise_its_limit(make: Callable[..., Tools], lnd: FakeLnd) -> None:
    """Each page leads to the next, which asks for money: after each question the call's limit would begin anew."""
    lnd.fee_msat = 0
    with contextlib.ExitStack() as stack:
        url = None
        for number in range(3):
            to: dict[str, Any] = {} if url is None else {"respond": lambda request, url=url: (302, {"Location": url}, b"")}
            shop = stack.enter_context(Paywall(lnd, price_msat=18_000, service=f"s{number}", **to))
            url = shop.url
        found, questions = asked_until_answered(make(max_sats_per_call=50, confirm=True), str(url))
    assert lnd.spent_msat == found["spentMsat"] == 36_000
    assert (found["error"]["code"], found["error"]["spent"]) == ("budget_exceeded", True)
    assert len(questions) == 2
    assert "has paid 18 sat already" in questions[1].text


def test_an_agreement_serves_once_in_a_call_of_several_questions(make: Callable[..., Tools], lnd: FakeLnd) -> None:
    """A payment for one answer is gone when the call is made again for its second question: the user agreed to one."""
    with Paywall(lnd, service="second") as second:
        respond = lambda request: (302, {"Location": second.url}, b"")  # noqa: E731 - an option
        with Paywall(lnd, sells="once", respond=respond) as first:
            tools = make(confirm=True)
            _, questions = asked_until_answered(tools, first.url)
    agreed = [each.approval.url for each in questions]
    assert len(lnd.payments) <= len(agreed)
    assert sum(each.approval.most_msat for each in questions) >= lnd.spent_msat


def test_whole_numbers_may_be_written_as_json_has_them(make: Callable[..., Tools], paywall: Paywall) -> None:
    """20.0 is an integer by JSON Schema: the tool would fail, and say that it doesn't know whether money was spent."""
    tools = make()
    assert fetched(tools, paywall.url, max_sats=1.0)["error"]["code"] == "budget_exceeded"
    assert fetched(tools, paywall.url, max_sats=1e300)["status"] == 200
    assert len(tools.payments({"limit": 1.0})["payments"]) == 1


def test_a_name_that_another_call_is_about_to_use_is_refused_before_paying(
    make: Callable[..., Tools], paywall: Paywall, lnd: FakeLnd, tmp_path: Path
) -> None:
    """Both would pay, and one would have no file to write its page to."""
    tools = make(folder=str(tmp_path))
    assert tools.folder is not None
    with tools.folder.taken("Page.txt"):
        refused = fetched(tools, paywall.url, save_as="page.TXT")
    assert (refused["error"]["code"], refused["error"]["spent"]) == ("bad_argument", False)
    assert not lnd.orders
    assert fetched(tools, paywall.url, save_as="page.TXT")["status"] == 200
