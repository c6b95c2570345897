"""What every sink promises, and what only one of them does."""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
import os
import pickle
import sqlite3
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from routeweiler_sync.trace import TraceEvent, TraceSink
from routeweiler_sync.trace.sink_sqlite import TraceSink as TwinsTraceSink
from tests.support.trace_events import HASH, PREIMAGE, failed_event, free_event, paid_event

POSIX = os.name == "posix"


def told(path: Path) -> list[dict[str, Any]]:
    """The events in a file of either kind."""
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_bytes().splitlines()]
    connection = sqlite3.connect(path)
    try:
        return [json.loads(row[0]) for row in connection.execute("SELECT payload FROM trace_events ORDER BY rowid")]
    finally:
        connection.close()


@pytest.fixture(params=["jsonl", "sqlite"])
def make(request: pytest.FixtureRequest, tmp_path: Path):
    """Makes sinks of one kind on one path."""
    path = tmp_path / "folder" / f"trace.{request.param}"
    sinks: list[TraceSink] = []

    def make(**options: Any) -> TraceSink:
        sinks.append(getattr(TraceSink, request.param)(path, **options))
        return sinks[-1]

    yield make
    for sink in sinks:
        sink.close()


Make = Callable[..., TraceSink]


def test_an_event_is_there_when_emit_returns(make: Make):
    """A crash right after a payment would leave no trace of it."""
    sink = make()
    sink.emit(free_event())
    sink.emit(paid_event())
    assert told(sink.path) == [free_event().to_json_dict(), paid_event().to_json_dict()]


@pytest.mark.skipif(not POSIX, reason="modes are POSIX's")
def test_new_files_are_private_and_old_ones_keep_their_mode(make: Make):
    """Others on the machine could read where the money went; or a log shipper would lose access that it was given."""
    sink = make()
    before = os.umask(0)
    try:
        for _ in ("folder and file are made", "the file alone is made"):
            for path in sink.path.parent.glob("*"):
                path.unlink()
            sink.emit(paid_event())
        files = list(sink.path.parent.iterdir())
        assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
        assert sink.path.parent.stat().st_mode & 0o777 == 0o700
    finally:
        os.umask(before)
    sink.close()
    sink.path.chmod(0o640)
    sink.emit(paid_event())
    assert sink.path.stat().st_mode & 0o777 == 0o640


def test_making_a_sink_touches_nothing_and_closing_twice_is_harmless(make: Make):
    """Importing a configuration would litter folders; two sessions that close a shared sink would crash."""
    sink = make()
    sink.close()
    sink.close()
    assert not sink.path.parent.exists()


def test_a_closed_sink_still_takes_events(make: Make):
    """The session that closes a shared sink first would silence the others' traces."""
    sink = make()
    sink.emit(free_event("r1"))
    sink.close()
    sink.emit(free_event("r2"))
    assert [event["requestId"] for event in told(sink.path)] == ["r1", "r2"]


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda sink: pickle.loads(pickle.dumps(sink))])
def test_copies_write_to_the_same_file_with_the_same_redaction(make: Make, copied: Callable[[TraceSink], TraceSink]):
    """A session sent to a worker would lose its trace, or write what its owner wanted left out."""
    sink = make(redact=True, url_mode="drop")
    sink.emit(paid_event("r1"))
    twin = copied(sink)
    assert (twin.path, twin.redact, twin.url_mode) == (sink.path, True, "drop")
    twin.emit(paid_event("r2"))
    twin.close()
    assert [(event["requestId"], event["url"]) for event in told(sink.path)] == [("r1", None), ("r2", None)]


def test_redact_leaves_out_proofs_queries_and_others_words(make: Make):
    """An operator who asked for redaction would ship API keys and proofs of payment to a log service."""
    sink = make(redact=True)
    sink.emit(paid_event())
    sink.emit(failed_event("refused with url: /paid?key=hush"))
    raw = b"".join(path.read_bytes() for path in sink.path.parent.iterdir())
    assert b"hush" not in raw
    assert PREIMAGE.encode() not in raw
    paid, failed = told(sink.path)
    assert paid["url"] == paid["challenge"]["url"] == "https://api.example/paid"
    assert paid["payment"]["proofValue"] is None
    assert paid["challenge"]["description"] is None
    assert (paid["payment"]["paymentHash"], paid["payment"]["amountMsat"]) == (HASH, 10_001)
    assert failed["outcome"]["error"] == {"code": "network_error", "message": None}


def test_dropped_urls_are_nowhere_in_the_file(make: Make):
    """Which pages were bought would stand in the file in spite of url_mode."""
    sink = make(url_mode="drop")
    sink.emit(paid_event())
    sink.emit(failed_event("Failed: https://api.example/paid?x (Max retries exceeded with url: /paid?x (refused))"))
    assert b"/paid" not in b"".join(path.read_bytes() for path in sink.path.parent.iterdir())
    paid, failed = told(sink.path)
    assert paid["url"] is paid["challenge"]["url"] is paid["challenge"]["scope"] is None
    assert paid["payment"]["proofValue"] == PREIMAGE
    assert failed["outcome"]["error"]["message"] == "Failed: <url> (Max retries exceeded with url: <url> (refused))"


def test_a_named_scope_stays_where_urls_are_dropped(make: Make):
    """The services that were paid couldn't be told apart."""
    challenge = dataclasses.replace(paid_event().challenge, scope="weather")
    sink = make(url_mode="drop")
    sink.emit(paid_event(challenge=challenge))
    assert told(sink.path)[0]["challenge"]["scope"] == "weather"


def test_odd_characters_stay_within_one_line_and_come_back(make: Make):
    """A line separator in a URL would cut an event in two; a lone surrogate would lose it."""
    odd = "https://api.example/\u2028\x85\r\n\ud800ü€"
    sink = make()
    sink.emit(free_event(url=odd))
    assert [event["url"] for event in told(sink.path)] == [odd]


def test_a_moved_file_is_made_anew(make: Make):
    """After the logs are rotated, or deleted, events would go to a file that no one can find."""
    sink = make()
    sink.emit(free_event("r1"))
    if not POSIX:
        sink.close()
    for path in sink.path.parent.iterdir():
        path.unlink()
    sink.emit(free_event("r2"))
    assert [event["requestId"] for event in told(sink.path)] == ["r2"]


def test_threads_lose_nothing(make: Make):
    """A session used by many threads would lose traces of payments."""
    sink = make()
    threads = [
        threading.Thread(target=lambda t=t: [sink.emit(free_event(f"{t}-{n}")) for n in range(50)], daemon=True) for t in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert {event["requestId"] for event in told(sink.path)} == {f"{t}-{n}" for t in range(8) for n in range(50)}


class Unwritable:
    """Not JSON, and it may not be asked why."""

    def __repr__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize("event", [free_event(agent_id=Unwritable()), free_event(url=None), None], ids=["value", "url", "none"])
def test_an_event_that_cannot_be_written_raises_nothing(make: Make, event: TraceEvent):
    """A paid response would be lost for its trace."""
    sink = make()
    with pytest.warns(RuntimeWarning, match="is lost"):
        assert sink.emit(event) is False
    assert sink.emit(free_event("after")) is True
    assert [event["requestId"] for event in told(sink.path)] == ["after"]


def test_a_lost_event_warns_once_and_is_logged_each_time(make: Make, caplog: pytest.LogCaptureFixture):
    """Losing traces unnoticed; or a warning for each request of a long night."""
    sink = make()
    sink.path.parent.write_text("a file where the folder should be")
    with warnings.catch_warnings(record=True) as caught, caplog.at_level(logging.WARNING, "routeweiler_sync"):
        warnings.simplefilter("always")
        sink.emit(free_event("r1"))
        sink.emit(paid_event("r2"))
    assert [warning.category for warning in caught] == [RuntimeWarning]
    assert len(caplog.records) == 2
    assert f"r2 of payment {HASH} is lost" in caplog.records[1].getMessage()
    assert PREIMAGE not in caplog.text


def test_a_lost_event_raises_nothing_where_warnings_are_errors(make: Make):
    """Under ``python -W error`` a full disk would lose paid responses."""
    sink = make()
    sink.path.parent.write_text("a file where the folder should be")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sink.emit(free_event())


def test_an_interrupt_gets_through(make: Make, monkeypatch: pytest.MonkeyPatch):
    """Ctrl-C during a write would be swallowed."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    sink = make()
    monkeypatch.setattr(type(sink), "_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sink.emit(free_event())


@pytest.mark.parametrize("mode", ["", "RAW", None])
def test_an_unknown_url_mode_is_refused(make: Make, mode: Any):
    """A typo would write URLs that were to be left out."""
    with pytest.raises(ValueError, match="url_mode"):
        make(url_mode=mode)


def test_a_relative_path_stays_where_it_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A program that changes its folder would scatter its trace."""
    monkeypatch.chdir(tmp_path)
    sink = TraceSink.jsonl("trace.jsonl")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    sink.emit(free_event())
    sink.close()
    assert len(told(tmp_path / "trace.jsonl")) == 1


def test_a_torn_line_swallows_no_event(tmp_path: Path):
    """The first payment after a crash would be glued to half a line, and read by no one."""
    path = tmp_path / "trace.jsonl"
    path.write_bytes(b'{"requestId":"r0"}\n{"requestId":"to')
    sink = TraceSink.jsonl(path)
    sink.emit(free_event("r1"))
    with path.open("ab") as torn_while_open:
        torn_while_open.write(b'{"req')
    sink.emit(free_event("r2"))
    sink.close()
    lines = path.read_bytes().split(b"\n")
    assert [json.loads(lines[at])["requestId"] for at in (0, 2, 4)] == ["r0", "r1", "r2"]
    assert (len(lines), lines[5]) == (6, b"")


def test_the_seeds_query_works_as_it_stands(tmp_path: Path):
    """Programs that read the async twin's trace through SQL would break."""
    sink = TwinsTraceSink.sqlite(tmp_path / "traces.db")
    sink.emit(free_event())
    sink.emit(paid_event())
    conn = sqlite3.connect(tmp_path / "traces.db")
    conn.row_factory = sqlite3.Row
    rows = conn.execute("SELECT * FROM trace_events WHERE selected_rail = 'l402'").fetchall()
    conn.close()
    sink.close()
    assert TwinsTraceSink is TraceSink
    (row,) = rows
    payment = json.loads(row["payload"])["payment"]
    assert (payment["proofValue"], payment["amountNative"], payment["settlementLatencyMs"]) == (PREIMAGE, 11, 42)
    assert set(row.keys()) == {"event_id", "timestamp_start", "selected_rail", "envelope_id", "payment_hash", "payload"}
    assert (row["timestamp_start"], row["envelope_id"], row["payment_hash"]) == ("2026-03-01T12:00:00.123456Z", "default", HASH)


def test_an_event_written_twice_is_told_once(tmp_path: Path):
    """A retried write would count a payment twice."""
    sink = TraceSink.sqlite(tmp_path / "traces.db")
    event = paid_event()
    sink.emit(event)
    sink.emit(event)
    sink.close()
    assert len(told(tmp_path / "traces.db")) == 1


def test_importing_the_trace_imports_no_sqlite():
    """Every `import` of the package would pay for a database that most calls don't use."""
    code = "import sys, routeweiler_sync.trace; raise SystemExit('sqlite3' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
