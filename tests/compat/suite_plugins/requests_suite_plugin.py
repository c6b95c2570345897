"""The pytest plugin that requests' own suite runs under: `requests_suite` loads it with -p in a process of its own.

Knows what is put in the place of what, and keeps the run honest: nothing leaves loopback, no plain session is made behind our
back, and a report tells of every test. Stands alone, for in that process `tests` is the suite's package, not ours.
"""

from __future__ import annotations

import functools
import ipaddress
import json
import os
import socket
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import requests
import requests.sessions

FORM = os.environ["REQUESTS_SUITE_FORM"]
REPORT = Path(os.environ["REQUESTS_SUITE_REPORT"])

#: More connections than any backlog of one takes, whatever the system makes of "one".
MAX_BACKLOG = 64
FULL_AFTER_S = 0.3

outcomes: dict[str, str] = {}
reasons: dict[str, str] = {}
violations: list[str] = []
counts = {"sessions": 0, "sends": 0, "adapter_sends": 0}


def _violation(text: str) -> None:
    test = os.environ.get("PYTEST_CURRENT_TEST", "outside of a test")
    violations.append(f"{test}: {text}")


# -- in the place of what --------------------------------------------------------------------------------------------------------


def _counted(function: Callable[..., Any], count: str) -> Callable[..., Any]:
    @functools.wraps(function)
    def counting(*args: Any, **kwargs: Any) -> Any:
        counts[count] += 1
        return function(*args, **kwargs)

    return counting


def _put_in_place() -> None:
    from routeweiler_sync import PaywallAdapter, Routeweiler

    plain = requests.sessions.Session
    init = plain.__init__

    @functools.wraps(init)
    def watched(self: requests.Session, *args: Any, **kwargs: Any) -> None:
        if isinstance(self, Routeweiler):
            counts["sessions"] += 1
        else:
            _violation(f"a {type(self).__qualname__} was made that isn't a Routeweiler")
        init(self, *args, **kwargs)

    plain.__init__ = watched  # type: ignore[method-assign]
    Routeweiler.send = _counted(Routeweiler.send, "sends")  # type: ignore[method-assign]
    PaywallAdapter.send = _counted(PaywallAdapter.send, "adapter_sends")  # type: ignore[method-assign]
    if FORM == "session":
        requests.Session = requests.sessions.Session = Routeweiler  # type: ignore[misc,assignment]


if FORM != "plain":
    _put_in_place()


# -- what older suites expect of pytest ------------------------------------------------------------------------------------------

_warns = pytest.warns


@functools.wraps(_warns)
def _warns_of_any(expected: Any = Warning, *args: Any, **kwargs: Any) -> Any:
    """`pytest.warns`, which once took None for "just record them"; what is recorded the test then looks at itself."""
    return warnings.catch_warnings(record=True) if expected is None else _warns(expected, *args, **kwargs)


pytest.warns = _warns_of_any  # type: ignore[assignment]


# -- nothing leaves loopback -----------------------------------------------------------------------------------------------------


def _is_local(host: object) -> bool:
    if isinstance(host, (bytes, bytearray)):
        host = host.decode("ascii", "replace")
    if host is None or host in ("", "localhost"):
        return True
    try:
        return ipaddress.ip_address(str(host)).is_loopback
    except ValueError:
        return False


def _is_address(host: object) -> bool:
    with suppress(ValueError):
        ipaddress.ip_address(host.decode("ascii", "replace") if isinstance(host, bytes) else str(host))
        return True
    return False


_getaddrinfo = socket.getaddrinfo


@functools.wraps(_getaddrinfo)
def _local_getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
    """What a resolver says of a name that isn't there, without asking one: the suite only ever looks up names that mustn't be."""
    if not _is_local(host) and not _is_address(host):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    return _getaddrinfo(host, *args, **kwargs)


socket.getaddrinfo = _local_getaddrinfo


def _on_the_way_out(event: str, args: tuple[Any, ...]) -> None:
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        address = args[1]
        bad = isinstance(address, tuple) and not _is_local(address[0])
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        address = args[0]
        bad = not _is_local(address) and not _is_address(address)
    else:
        return
    if bad:
        _violation(f"{event} to {address!r}, which isn't loopback")
        raise RuntimeError(f"requests' suite may not leave loopback: {event} {address!r}")


sys.addaudithook(_on_the_way_out)


class Tarpit:
    """A loopback address where connect() hangs: it listens, accepts nothing, and its backlog is full."""

    def __init__(self) -> None:
        self._sockets = [socket.socket()]
        self._sockets[0].bind(("127.0.0.1", 0))
        self._sockets[0].listen(0)
        for _ in range(MAX_BACKLOG):
            client = socket.socket()
            self._sockets.append(client)
            client.settimeout(FULL_AFTER_S)
            try:
                client.connect(self._sockets[0].getsockname())
            except TimeoutError:
                return
        raise RuntimeError("there is no end to this system's backlog: no connect() hangs")

    @property
    def url(self) -> str:
        """``http://127.0.0.1:port``."""
        return "http://{}:{}".format(*self._sockets[0].getsockname())

    def close(self) -> None:
        """Give the sockets back."""
        for each in self._sockets:
            each.close()


# -- what pytest tells -----------------------------------------------------------------------------------------------------------


def _suite_modules() -> dict[str, ModuleType]:
    return {name: module for name, module in sys.modules.items() if name == "tests" or name.startswith("tests.")}


def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """The modules are imported: what they hold can be looked at, and the unroutable address made local."""
    for item in items:  # skipped for what pytest-xdist does to it, which isn't here
        item.own_markers = [mark for mark in item.own_markers if "under pytest-xdist" not in mark.kwargs.get("reason", "")]
    tarpit = Tarpit()
    config.add_cleanup(tarpit.close)
    replaced = [module for module in _suite_modules().values() if hasattr(module, "TARPIT")]
    for module in replaced:
        module.TARPIT = tarpit.url  # type: ignore[attr-defined]
    if not replaced:
        _violation("no module names the unroutable address TARPIT any more")
    if FORM == "names":
        import routeweiler_sync

        for name, module in _suite_modules().items():
            if getattr(module, "requests", routeweiler_sync) is not routeweiler_sync:
                _violation(f"in {name}, the name `requests` isn't routeweiler_sync")


def _id(report: pytest.TestReport | pytest.CollectReport) -> str:
    """The test's id, the same for all runs: some hold the path of the suite."""
    return report.nodeid.replace(str(Path.cwd()), "SUITE")


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.failed:
        outcomes[_id(report)] = "error"


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    before = outcomes.get(_id(report))
    if report.failed:
        outcomes[_id(report)] = "failed" if report.when == "call" else "error"
    elif report.skipped:
        outcomes[_id(report)] = "xfailed" if hasattr(report, "wasxfail") else "skipped"
        reasons[_id(report)] = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(getattr(report, "wasxfail", ""))
    elif report.when == "call" and before is None:
        outcomes[_id(report)] = "xpassed" if hasattr(report, "wasxfail") else "passed"


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if FORM != "plain" and not (counts["sessions"] and counts["sends"] and counts["adapter_sends"]):
        _violation(f"Routeweiler sessions weren't used: {counts}")
    if violations and session.exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    told = {"outcomes": outcomes, "reasons": reasons, "violations": violations, "counts": counts}
    trace = Path(os.environ["ROUTEWEILER_TRACE"])
    counts["trace_lines"] = len(trace.read_text(encoding="utf-8").splitlines()) if trace.exists() else 0
    REPORT.write_text(json.dumps(told), encoding="utf-8")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for violation in violations:
        terminalreporter.write_line(f"VIOLATION {violation}", red=True)
    if FORM != "plain":
        terminalreporter.write_line(f"Routeweiler: {', '.join(f'{name} {count}' for name, count in counts.items())}")
