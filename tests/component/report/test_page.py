"""The HTML page in a real Chromium: its figures are read back, and nothing is cut off, overlaps, runs or is fetched."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from routeweiler_sync import InvoicePaymentError, Ledger, Routeweiler
from routeweiler_sync.report import figures as report_figures
from routeweiler_sync.testing import FakeLnd, Paywall
from routeweiler_sync.trace import TraceChallenge, TraceError, TraceOutcome, TracePayment
from tests.support.accounts import Books
from tests.support.browser import Browser
from tests.support.cli_process import NO_NODE, Command
from tests.support.ledger_builders import draw, hash_of, intent, limits, settle
from tests.support.trace_events import START, paid_event

pytestmark = pytest.mark.slow

LOOKS = [(1200, "light"), (1200, "dark"), (375, "light"), (375, "dark")]
#: Markup, escape codes, a reversed text, half a character, a credential, a URL with a password and a key, a formula.
HOSTILE = (
    "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>\"'{{ 7 * 7 }} $x^2$ "
    "\x1b[31m \u202egnirts \x00 \ud800 "
    "https://user:hunter2@host.example/x?key=hush Authorization: L402 AgEEbHNhdAJCAAAbYXJiaXRyYXJ5bG9uZ21hY2Fyb29u:" + "ab" * 32
)


@pytest.fixture
def page(tmp_path: Path) -> Path:
    return tmp_path / "report.html"


def shown(number: str) -> str:
    """A number as a program reads it from the page's text."""
    return re.sub(r"\s", " ", number).strip()


def test_figures_read_back_from_the_page_are_those_of_lnd(
    command: Command, session: Routeweiler, lnd: FakeLnd, books: Books, browser: Browser, page: Path
) -> None:
    """What a reader sees, and what a reader's program finds, is what left the node's channels."""
    with Paywall(lnd, price_msat=1_234_567, dynamic=True) as wall:
        session._payer.envelope = None
        for number in range(9):
            lnd.fee_msat = 1_000 * (number % 3)
            session.get(wall.url_for(f"/page/{number}"))
        lnd.fail_next()
        with pytest.raises(InvoicePaymentError):
            session.get(wall.url_for("/fails"))
    books.ledger.freeze("default")
    assert command("report", "--html", str(page)) == 0
    assert command.out.decode().startswith(f"Wrote {page}: 9 payments, ")
    hashes = {each.payment_hash for each in lnd.payments if each.status == "SUCCEEDED"}
    for width, scheme in LOOKS:
        browser.open(page, width=width, scheme=scheme)
        assert browser.faults() == []
        assert browser.value("spent") == lnd.spent_msat
        assert shown(browser.text("[data-figure=spent]")) == f"{lnd.spent_msat / 1000:.3f} sat"
        assert browser.value("fees") == sum(each.fee_msat for each in lnd.payments if each.status == "SUCCEEDED")
        assert (browser.value("payments"), browser.value("calls"), browser.value("failed")) == (9, 10, 1)
        rows = browser.run("return [...document.querySelectorAll('#payments tr[data-hash]')].map(each => ({...each.dataset}))")
        assert {each["hash"] for each in rows} == hashes
        assert sum(int(each["spent"]) for each in rows) == lnd.spent_msat
        bars = browser.run(
            "return [...document.querySelectorAll('figure svg')].filter(each => each.getClientRects().length).length"
        )
        assert bars == 2, "each plot once: for a wide page, or for a narrow one"
    assert "(frozen)" in browser.text("#budgets")


@pytest.mark.parametrize("what", ["empty", "empty since", "hostile", "large", "damaged amounts"])
def test_pages_of_all_kinds_are_whole_in_every_look(
    what: str, command: Command, browser: Browser, page: Path, tmp_path: Path, write_trace: Callable[..., Path]
) -> None:
    """Nothing is cut off at 375 pixels, no label covers another, nothing runs and nothing is fetched."""
    sources: list[str] = []
    if what == "empty since":
        sources = ["--trace", str(write_trace(paid_event())), "--since", "2030-01-01"]
    elif what == "hostile":
        sources = hostile_sources(tmp_path, write_trace)
    elif what == "large":
        events = [bought(n, timestamp_end=START + timedelta(hours=7 * n)) for n in range(1, 400)]
        sources = ["--trace", str(write_trace(*events))]
    elif what == "damaged amounts":
        events = [bought(n, amount_msat=2**62 - 1, timestamp_end=START + timedelta(days=100_000 * n)) for n in range(1, 20)]
        sources = ["--trace", str(write_trace(*events))]
    assert command("report", "--html", str(page), *sources, ROUTEWEILER_TRACE="") == 0, command.err
    for width, scheme in LOOKS:
        browser.open(page, width=width, scheme=scheme)
        assert browser.faults() == []
        assert browser.run("return [window.hacked === undefined, document.scripts.length, document.images.length]") == [True, 0, 0]
    if what.startswith("empty"):
        assert "Nothing was bought" in browser.text("[data-figure=empty]")
    if what == "hostile":
        assert "<script>window.hacked = 1</script>" in browser.text("body")
    if what == "large":
        assert "The newest 100 of 399 payments" in browser.text("#payments")
        assert browser.run("return document.querySelectorAll('#payments tbody tr').length") == report_figures.NEWEST_SHOWN


def test_no_secret_is_on_the_page_or_in_the_csv(
    command: Command, page: Path, tmp_path: Path, write_trace: Callable[..., Path]
) -> None:
    """The page is sent around: no token, preimage, password or key of a URL may be in it."""
    sources = hostile_sources(tmp_path, write_trace)
    sheet = tmp_path / "report.csv"
    pytest.importorskip("matplotlib")
    assert command("report", "--html", str(page), "--csv", str(sheet), *sources) == 0
    assert command("report", "--json", *sources) == 0
    for text in (page.read_text(encoding="utf-8"), sheet.read_text(encoding="utf-8"), command.out.decode()):
        assert not [each for each in ("hunter2", "hush", "AgEEbHNhdAJC", "ab" * 32, "token-", "lnbcrt") if each in text]
        assert not [each for each in text if not each.isprintable() and each not in "\r\n"]


def test_dark_and_light_differ_and_can_be_read(
    command: Command, browser: Browser, page: Path, write_trace: Callable[..., Path]
) -> None:
    """The plots take the page's colours: a black axis on a dark page would be lost."""
    assert command("report", "--html", str(page), "--trace", str(write_trace(bought(1)))) == 0
    seen = []
    for scheme in ("light", "dark"):
        browser.open(page, scheme=scheme)
        background, text = browser.colour("body", "backgroundColor"), browser.colour(".wide svg text", "fill")
        bar = browser.run(
            "return [...document.querySelectorAll('.wide svg path')].map(each => getComputedStyle(each).fill)"
            ".find(each => each.startsWith('rgb') && !each.includes(', 0)') && each !== 'rgb(0, 0, 0)')"
        )
        assert contrast(background, text) > 7
        assert contrast(background, bar) > 3
        assert contrast(background, browser.colour("th", "color")) > 4.5
        seen.append((background, text, bar))
    assert not set(seen[0]) & set(seen[1])


def test_the_page_can_be_printed_from_a_dark_desktop(
    command: Command, browser: Browser, page: Path, write_trace: Callable[..., Path]
) -> None:
    """White on white would come out of the printer otherwise."""
    assert command("report", "--html", str(page), "--trace", str(write_trace(bought(1)))) == 0
    browser.open(page, scheme="dark")
    browser._driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"media": "print", "features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    )
    try:
        assert contrast("rgb(255, 255, 255)", browser.colour("body", "color")) > 7
        assert contrast("rgb(255, 255, 255)", browser.colour(".wide svg text", "fill")) > 7
    finally:
        browser._driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})


def test_the_same_figures_make_the_same_page(
    command: Command, page: Path, tmp_path: Path, write_trace: Callable[..., Path]
) -> None:
    """So that two reports can be compared; and ids of one plot don't appear in another, or clips would fall on the wrong one."""
    pytest.importorskip("matplotlib")
    trace, again = str(write_trace(bought(1), bought(2))), tmp_path / "again.html"
    for file in (page, again):
        assert command("report", "--html", str(file), "--trace", trace) == 0
    made = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC")
    assert made.sub("", page.read_text()) == made.sub("", again.read_text())
    ids = re.findall(r'\bid="([^"]+)"', page.read_text())
    assert len(ids) == len(set(ids))


def test_a_missing_extra_is_named_and_nothing_else_needs_it(command: Command, page: Path, tmp_path: Path) -> None:
    """The base package comes without matplotlib: whoever wants the page hears which extra brings it."""
    for name in ("jinja2", "matplotlib"):
        blocked = tmp_path / f"without-{name}"
        blocked.mkdir()
        (blocked / "sitecustomize.py").write_text(
            "import importlib.util, sys\n"
            "find = importlib.util.find_spec\n"
            f"importlib.util.find_spec = lambda name, *rest: None if name == {name!r} else find(name, *rest)\n"
            f"sys.modules[{name!r}] = None\n"
        )
        path = f"{blocked}:{command.environ()['PYTHONPATH']}"
        assert command("report", "--html", str(page), PYTHONPATH=path) == 1
        assert "pip install 'routeweiler-sync[report]'" in command.err.decode()
        assert not page.exists()
        assert command("report", "--csv", str(tmp_path / "report.csv"), PYTHONPATH=path, **NO_NODE) == 0
        assert command("report", PYTHONPATH=path) == 0


def bought(n: int, *, amount_msat: int = 10_000, **changes: Any) -> Any:
    payment = TracePayment(payment_hash=hash_of(n), amount_msat=amount_msat, fee_msat=1_000, settlement_latency_ms=n * n)
    url = f"https://a-server-with-a-long-name{n % 40}.example/and/a/long/path/to/a/page/{n}"
    challenge = TraceChallenge(scheme="L402", url=url, network="bitcoin", description=f"page {n}")
    return paid_event(f"bought-{n}", **{"payment": payment, "challenge": challenge, **changes})


def hostile_sources(folder: Path, write_trace: Callable[..., Path]) -> list[str]:
    """A ledger and a trace whose every text is `HOSTILE`, as far as such a text gets there."""
    ledger = Ledger.open(folder / "hostile.db")
    text = HOSTILE.replace("\x00", "").replace("\ud800", "")
    for n in (101, 102, 103):
        ledger.open_payment(intent(n, origin=text, path=text, token="token-secret"), draw(limits(text[:100])))
    settle(ledger, 101)
    ledger.change(hash_of(102), lambda row: dead(text))
    ledger.close()
    event = bought(1).to_json_dict()
    event["url"] = event["challenge"]["url"] = f"https://host.example/{HOSTILE}"
    event["envelopeId"] = event["fundingSource"] = event["challenge"]["network"] = event["challenge"]["description"] = HOSTILE
    event["payment"]["fmvQuality"] = HOSTILE
    failed = bought(2, outcome=TraceOutcome(error=TraceError(code=HOSTILE, message=HOSTILE))).to_json_dict()
    failed["outcome"]["error"] = {"code": HOSTILE, "message": HOSTILE}
    return ["--ledger", str(folder / "hostile.db"), "--trace", str(write_trace(event, failed, "{torn"))]


def dead(text: str) -> Any:
    from routeweiler_sync.ledger.types import Change, PaymentState

    return Change(state=PaymentState.DEAD, answered=1, failure_code=text, failure_text=text)


def contrast(one: str, two: str) -> float:
    """The contrast of two colours, 1 to 21 (https://www.w3.org/TR/WCAG21/#dfn-contrast-ratio)."""

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    high, low = sorted((luminance(one), luminance(two)), reverse=True)
    return (high + 0.05) / (low + 0.05)
