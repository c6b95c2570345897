"""What a decent programmer would write in an hour, five times: each test of this folder fails with at least one of them.

A test that no naive way fails guards nothing. With ``ROUTEWEILER_COMPAT_NAIVE=<name>`` the fixtures give one of these in place of
`Routeweiler`; the folder run under each, and the table of what failed:

    python -m tests.support.naive_sessions [names …]

They keep tokens by origin, in a dict that sessions of one ledger path share, and tell each call once, so that what a test asks of
payments, tokens and lines is asked of them as well, and a failure is one of behaviour, not of a missing file.

    adapter   a mounted HTTPAdapter pays and sends again: no net for foreign adapters, no context, no drain, no rewind
    send      `Session.send` pays after it has sent: hooks and caches have seen the 402, redirects are behind
    hook      a response hook, as HTTPDigestAuth's: comes after the user's, is lost with ``session.hooks = …``
    auth      ``session.auth``: the user's own takes its place, prepared requests pass it by
    sticky    the token goes into ``session.headers``: to every origin, and into everything that keeps a request
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import requests
from requests.adapters import HTTPAdapter

from routeweiler_sync import Payment
from routeweiler_sync._core.urls import origin_of
from routeweiler_sync.protocol.challenge import Challenge
from routeweiler_sync.protocol.l402.challenge import parse_challenge
from routeweiler_sync.protocol.l402.credential import authorization

#: Names the implementation that the fixtures give.
VARIABLE = "ROUTEWEILER_COMPAT_NAIVE"
#: Names a JSON list of tests that needn't run.
WITHOUT_VARIABLE = "ROUTEWEILER_COMPAT_WITHOUT"
_MAX_FEE_MSAT = 10_000
#: Of one test: a naive way may well hang.
_TIMEOUT_S = 8


class Wallet:
    """Pays, and remembers tokens by origin. ``lines``: what a trace would tell. ``secrets``: what may be written nowhere."""

    #: By ledger path; the fixtures empty it.
    shared: ClassVar[dict[str, Wallet]] = {}

    def __init__(self) -> None:
        self.tokens: dict[str, tuple[str, Payment]] = {}
        self.lines: list[dict[str, Any]] = []
        self.secrets: list[str] = []

    @classmethod
    def at(cls, ledger: Any) -> Wallet:
        return cls.shared.setdefault(str(ledger), cls())

    def credential(self, url: str) -> str | None:
        held = self.tokens.get(_origin(url))
        return held and held[0]

    def challenge(self, response: requests.Response) -> Challenge | None:
        header = response.headers.get("WWW-Authenticate")
        return parse_challenge(header) if response.status_code == 402 and header else None

    def pay(self, funding: Any, url: str, challenge: Challenge) -> str:
        preimage = funding[0].client.pay_invoice(challenge.invoice.bolt11, max_fee_msat=_MAX_FEE_MSAT)
        credential = authorization(challenge.scheme, challenge.token, preimage)
        payment = Payment(
            payment_hash=challenge.payment_hash.hex(), amount_msat=challenge.invoice.amount_msat, fee_msat=0, reused=False
        )
        self.tokens[_origin(url)] = credential, payment
        self.secrets += [challenge.token, preimage.hex()]
        return credential

    def told(self, response: requests.Response, *, bought: bool) -> requests.Response:
        """Note the call, and hang its payment on the response."""
        authorized = "Authorization" in (response.request.headers or {})
        held = self.tokens.get(_origin(response.request.url or "")) if authorized else None
        payment = None
        if held is not None:
            paid = held[1]
            payment = Payment(
                payment_hash=paid.payment_hash, amount_msat=paid.amount_msat, fee_msat=paid.fee_msat, reused=not bought
            )
        response.payment = payment  # type: ignore[attr-defined]
        self.lines.append({
            "url": response.request.url,
            "method": response.request.method,
            "payment": payment and {"paymentHash": payment.payment_hash, "amountMsat": payment.amount_msat, "reused": not bought},
            "outcome": {"httpStatus": response.status_code},
        })  # fmt: skip
        return response


def _origin(url: str) -> str:
    try:
        return origin_of(url)
    except ValueError:
        return url


class NaiveSession(requests.Session):
    """Takes what `Routeweiler` takes, with names, for the mixins that look at them."""

    def __init__(
        self,
        *,
        funding: Any = (),
        policy: Any = None,
        budget_envelope: Any = None,
        trace_sink: Any = None,
        ledger: Any = None,
        payment_timeout: float = 60.0,
        confirm: Any = None,
        unpayable: str = "raise",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.funding = funding
        self.wallet = Wallet.at(ledger)
        self.begin()

    def begin(self) -> None:
        """What is done to a session."""

    @classmethod
    def wrap(cls, session: requests.Session, **kwargs: Any) -> requests.Session:
        """As Routeweiler.wrap."""
        made = cls(**kwargs)
        made.headers, made.cookies, made.auth = session.headers, session.cookies, session.auth
        made.hooks, made.adapters = session.hooks, session.adapters
        made.begin()
        return made


class NaiveAdapter(HTTPAdapter):
    def __init__(self, funding: Any = (), ledger: Any = None, trace_sink: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.funding, self.wallet = funding, Wallet.at(ledger)

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        request = request.copy()
        credential = self.wallet.credential(request.url or "")
        if credential is not None:
            request.headers["Authorization"] = credential
        response = super().send(request, *args, **kwargs)
        challenge = self.wallet.challenge(response)
        if challenge is None:
            return self.wallet.told(response, bought=False)
        request = request.copy()
        request.headers["Authorization"] = self.wallet.pay(self.funding, request.url or "", challenge)
        paid = super().send(request, *args, **kwargs)
        paid.history.append(response)
        return self.wallet.told(paid, bought=True)


class AdapterSession(NaiveSession):
    def begin(self) -> None:
        for prefix in ("http://", "https://"):
            adapter = NaiveAdapter(funding=self.funding)
            adapter.wallet = self.wallet
            self.mount(prefix, adapter)


class SendSession(NaiveSession):
    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        credential = self.wallet.credential(request.url or "")
        if credential is not None:
            request.headers["Authorization"] = credential
        response = super().send(request, **kwargs)
        challenge = self.wallet.challenge(response)
        if challenge is None:
            return self.wallet.told(response, bought=False)
        again = response.request.copy()
        again.headers["Authorization"] = self.wallet.pay(self.funding, again.url or "", challenge)
        paid = super().send(again, **kwargs)
        paid.history.insert(0, response)
        return self.wallet.told(paid, bought=True)


class HookSession(NaiveSession):
    def begin(self) -> None:
        self.hooks["response"].append(self.answer)

    def answer(self, response: requests.Response, **kwargs: Any) -> requests.Response:
        challenge = self.wallet.challenge(response)
        if challenge is None:
            return self.wallet.told(response, bought=False)
        response.content  # noqa: B018 - as HTTPDigestAuth does: gives the connection back
        response.close()
        again = response.request.copy()
        again.headers["Authorization"] = self.wallet.pay(self.funding, again.url or "", challenge)
        paid = response.connection.send(again, **kwargs)
        paid.history.append(response)
        paid.request = again
        return self.wallet.told(paid, bought=True)

    def prepare_request(self, request: requests.Request) -> requests.PreparedRequest:
        prepared = super().prepare_request(request)
        credential = self.wallet.credential(prepared.url or "")
        if credential is not None:
            prepared.headers["Authorization"] = credential
        return prepared


class AuthSession(NaiveSession):
    def begin(self) -> None:
        self.auth = self.pays

    answer = HookSession.answer

    def pays(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        credential = self.wallet.credential(request.url or "")
        if credential is not None:
            request.headers["Authorization"] = credential
        request.register_hook("response", self.answer)
        return request


class StickySession(NaiveSession):
    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        response = super().send(request, **kwargs)
        challenge = self.wallet.challenge(response)
        if challenge is None:
            return self.wallet.told(response, bought=False)
        self.headers["Authorization"] = self.wallet.pay(self.funding, response.url, challenge)
        request.headers["Authorization"] = self.headers["Authorization"]
        paid = super().send(request, **kwargs)
        paid.history.insert(0, response)
        return self.wallet.told(paid, bought=True)


SESSIONS: dict[str, type[NaiveSession]] = {
    "adapter": AdapterSession,
    "send": SendSession,
    "hook": HookSession,
    "auth": AuthSession,
    "sticky": StickySession,
}


# The table


def left_out() -> set[str]:
    """Return the tests that needn't run, by their id in the table."""
    path = os.environ.get(WITHOUT_VARIABLE)
    return set(json.loads(Path(path).read_text(encoding="utf-8"))) if path else set()


def outcomes(name: str, *arguments: str, without: Iterable[str] = ()) -> dict[str, bool]:
    """Which tests of this folder passed under ``name`` (skipped ones and those of ``without`` are left out), by their id."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        listed = Path(folder) / "without.json"
        listed.write_text(json.dumps(sorted(without)), encoding="utf-8")
        options = [
            "-q",
            "--tb=no",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:randomly",
            f"--timeout={_TIMEOUT_S}",
            f"--junitxml={report}",
        ]
        root = Path(__file__).parents[2]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *options, *(arguments or ("tests/compat",))],
            env=os.environ | {VARIABLE: name, WITHOUT_VARIABLE: str(listed), "PYTHONDONTWRITEBYTECODE": "1"},
            cwd=root,
            capture_output=True,
            text=True,
        )
        if done.returncode not in (0, 1, 5) or not report.exists():  # passed, failed, none left; else they weren't all run
            raise RuntimeError(f"pytest couldn't run the tests under {name}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        cases = ElementTree.parse(report).getroot().iter("testcase")
        found: dict[str, bool] = {}
        for case in cases:
            if case.find("skipped") is None:
                passed = case.find("failure") is None and case.find("error") is None
                test = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"
                found[test] = found.get(test, True) and passed
        return found


def table(names: Iterable[str] = SESSIONS, *arguments: str) -> dict[str, dict[str, bool]]:
    """Test → naive way → passed."""
    names = list(names)
    with ThreadPoolExecutor(2) as threads:
        columns = dict(zip(names, threads.map(lambda name: outcomes(name, *arguments), names), strict=True))
    tests = sorted({test for column in columns.values() for test in column})
    return {test: {name: columns[name][test] for name in names if test in columns[name]} for test in tests}


def passed_by_all(*arguments: str) -> tuple[int, list[str]]:
    """Return how many tests ran, and those that every naive way passes. What one way has failed isn't run with the next."""
    ran: dict[str, bool] = {}
    for name in SESSIONS:
        found = outcomes(name, *arguments, without=[test for test, passed in ran.items() if not passed])
        ran |= {test: ran.get(test, True) and passed for test, passed in found.items()}
    return len(ran), sorted(test for test, passed in ran.items() if passed)


def unguarded(rows: dict[str, dict[str, bool]]) -> list[str]:
    """The tests that every naive way passes."""
    return [test for test, row in rows.items() if all(row.values())]


def main(arguments: list[str]) -> int:
    names = [each for each in arguments if each in SESSIONS] or list(SESSIONS)
    started_s = time.monotonic()
    rows = table(names, *[each for each in arguments if each not in SESSIONS])
    width = max((len(test) for test in rows), default=0)
    print(f"{'':{width}}  {'  '.join(f'{name:>7}' for name in names)}")
    for test, row in rows.items():
        words = ["-" if name not in row else "passed" if row[name] else "failed" for name in names]
        print(f"{test:{width}}  {'  '.join(f'{word:>7}' for word in words)}")
    loose = unguarded(rows)
    print(f"{len(rows)} tests, {len(loose)} that every naive way passes, {time.monotonic() - started_s:.0f} s")
    for test in loose:
        print(f"  {test}")
    return 1 if loose else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
