"""The page of troubles has each verdict of `doctor`, with its cure, and none that `doctor` doesn't give."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[3]
PACKAGE = ROOT / "routeweiler_sync"
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
#: A shorter piece of a text could stand anywhere.
PIECE_CHARS_MIN = 8
#: What doctor's functions that make a finding are called, and the verdict that they give. `report` gives either.
VERDICTS = {"warning": ("warning",), "wrong": ("wrong",), "report": ("warning", "wrong"), "wrong_by": ("wrong",)}
#: The modules that read what the environment says of wallet, ledger and budget, and what the files hold that it names: doctor gives
#: the errors of these as they are.
READERS = (
    "_core/files.py",
    "config/env_settings.py",
    "config/wallets.py",
    "funding/http_url.py",
    "funding/lnbits/environment.py",
    "funding/lnd/certificates.py",
    "funding/lnd/endpoint.py",
    "funding/lnd/environment.py",
    "funding/lnd/lndconnect.py",
    "funding/lnd/readiness.py",
    "funding/nwc/environment.py",
    "funding/nwc/library.py",
    "funding/nwc/uri.py",
    "funding/variables.py",
    "ledger/postgres/url.py",
)
#: Errors of these modules that doctor doesn't give.
NOT_GIVEN = {
    "No wallet is configured",  # doctor has found that before
    "No node is configured",
    "its macaroon was given inline, and such a macaroon isn't pickled",  # not by variables
    "the TLS certificate that was given can't be used",  # told with the reason, which the page has
    "not so many elements",  # caught: the certificate is damaged
    "no length",
    "uri must be a text",  # variables are texts
    "must be a URL, not",
    "is deleted faster than it can be opened",  # only where somebody deletes the file all the time
}


class Verdict(NamedTuple):
    """A verdict of doctor's: ``check`` is empty where several share the line of code, ``text`` has … for what differs."""

    check: str
    verdict: str
    text: str
    where: str


def text_of(node: ast.expr | None) -> str:
    """Return a literal text, with … for what is filled in; empty for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(each) or "…" for each in node.values)
    return ""


def assigned(function: ast.FunctionDef, name: str, before: int) -> str:
    """Return the text that a function has last given ``name``, in the lines up to ``before``."""
    found = []
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and node.lineno <= before:
            for target in node.targets:
                pairs = [(target, node.value)]
                if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                    pairs = list(zip(target.elts, node.value.elts, strict=True))
                found += [(node.lineno, text_of(value)) for each, value in pairs if isinstance(each, ast.Name) and each.id == name]
    return max(found)[1] if found else ""


def verdicts() -> Iterator[Verdict]:
    """Yield each warning and each wrong of doctor's modules, as the code has it."""
    for path in sorted((PACKAGE / "doctor").glob("*.py")):
        functions = [each for each in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(each, ast.FunctionDef)]
        for function in functions:
            for call in ast.walk(function):
                if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in VERDICTS:
                    check, text = text_of(call.args[0]), text_of(call.args[1])
                    if isinstance(call.args[1], ast.Name):
                        text = assigned(function, call.args[1].id, call.lineno)
                    for verdict in VERDICTS[call.func.id]:
                        yield Verdict(check, verdict, text, f"{path.name}:{call.lineno}")


def causes() -> Iterator[str]:
    """Yield why lnd can't be reached, or refuses: doctor gives these as wrong, each below what is at fault."""
    tree = ast.parse((PACKAGE / "funding" / "lnd" / "causes.py").read_text("utf-8"))
    for function in (each for each in ast.walk(tree) if isinstance(each, ast.FunctionDef)):
        for call in ast.walk(function):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "Cause":
                (what,) = (each.value for each in call.keywords if each.arg == "what")
                yield assigned(function, what.id, call.lineno) if isinstance(what, ast.Name) else text_of(what)


def reasons() -> Iterator[str]:
    """Yield the texts of the errors that the modules in `READERS` make."""
    for name in READERS:
        tree = ast.parse((PACKAGE / name).read_text("utf-8"))
        for function in (each for each in ast.walk(tree) if isinstance(each, ast.FunctionDef)):
            for call in ast.walk(function):
                if isinstance(call, ast.Call) and call.args and ast.unparse(call.func).endswith(("Error", ".error")):
                    what = call.args[0]
                    yield assigned(function, what.id, call.lineno) if isinstance(what, ast.Name) else text_of(what)


def pieces(text: str) -> list[str]:
    """Return the parts of a text that don't differ from time to time, without what stands around them."""
    found = [each.strip(" .,:;()") for each in re.split("…|: ", text)]
    return [each for each in found if len(each) >= PIECE_CHARS_MIN]


@cache
def entries() -> list[tuple[str, str, str]]:
    """Return what the page has: the section, the verdict and the text of each entry."""
    found = []
    for section in re.split(r"(?m)^## ", PAGE)[1:]:
        title, _, body = section.partition("\n")
        found += [(title, verdict, text) for verdict, text in re.findall(r'(?m)^- \*\*(\w+)\*\* "(.*)"\\$', body)]
    return found


def is_told(check: str, verdict: str, text: str) -> bool:
    """Return whether the page has an entry with all pieces of ``text``, in the section of the check if that is known."""
    wanted = pieces(text)
    return any(
        given == verdict and check in ("", section) and all(each in told for each in wanted) for section, given, told in entries()
    )


def test_each_verdict_of_doctor_has_its_cure() -> None:
    """Whoever looks for what doctor says finds nothing, and asks for help that is already written."""
    known = list(verdicts())
    assert len(known) > 70, "the search of the code has lost its way"
    assert [each for each in known if not is_told(each.check, each.verdict, each.text)] == []
    assert [text for text in causes() if pieces(text) and not is_told("", "wrong", text)] == []


def test_each_fault_of_a_variable_or_file_has_its_cure() -> None:
    """These are what a newcomer meets first."""
    known = {max(found, key=len) for text in reasons() if (found := pieces(text))}
    assert len(known) > 40, "the search of the code has lost its way"
    assert sorted(text for text in known if text not in PAGE) == sorted(known & NOT_GIVEN)
    assert known >= NOT_GIVEN


def test_the_page_has_no_verdict_that_doctor_does_not_give() -> None:
    """A cure for what can't happen any more, under words that have changed, helps nobody."""
    texts = []
    for path in PACKAGE.rglob("*.py"):
        texts += [text_of(node) for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.expr)]
    said = "\n".join(texts)
    assert [piece for *_, text in entries() for piece in pieces(text) if piece not in said] == []
    assert {section for section, *_ in entries()} >= {each.check for each in verdicts() if each.check}


def test_what_the_wallet_says_of_an_unfinished_payment_has_its_cure() -> None:
    """That line is where money hangs."""
    tree = ast.parse((PACKAGE / "doctor" / "ledger_file.py").read_text("utf-8"))
    (function,) = (each for each in ast.walk(tree) if isinstance(each, ast.FunctionDef) and each.name == "_outcome")
    said = [
        text_of(each.value.elts[0])
        for each in ast.walk(function)
        if isinstance(each, ast.Return) and isinstance(each.value, ast.Tuple)
    ]
    said = [text for text in said if text] + [assigned(function, "what", 10_000)]
    assert len(said) >= 8
    assert [text for text in said if not all(piece in PAGE for piece in pieces(text))] == []
