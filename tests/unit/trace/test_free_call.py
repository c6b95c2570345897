"""The event of a free call, built as text at once: the same line as its event's, and no program's own code is passed by."""

from __future__ import annotations

import json
import uuid
from datetime import datetime, timezone
from enum import Enum
from http import HTTPStatus
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import requests
from hypothesis import example, given, settings, strategies as st

from routeweiler_sync.paywall.call import CallContext
from routeweiler_sync.trace import TraceEvent, TraceSink
from routeweiler_sync.trace.free_call import _timestamp
from routeweiler_sync.trace.schema import new_id, timestamp
from routeweiler_sync.trace.sink_jsonl import JsonlSink

PLAIN: dict[str, Any] = {
    "agent_id": "agent",
    "session_id": None,
    "envelope_id": "default",
    "policy_hash": None,
    "url": "https://api.example/page?key=hush#part",
    "method": "GET",
    "status": 200,
    "started_s": 1_800_000_000.25,
    "took_s": 0.5,
}


class Kept(JsonlSink):
    """Keeps the texts of events instead of writing them."""

    texts: list[str]
    losses: list[str]

    def _write(self, event_id: str, payload: dict[str, Any], text: str) -> None:
        self.texts.append(text)

    def _warn_of_loss(self, event: str, error: Exception) -> None:
        self.losses.append(type(error).__name__)


def call(sink: object, values: dict[str, Any]) -> None:
    """Begin and end a call that met no challenge."""
    request = requests.PreparedRequest()
    request.method, request.url = values["method"], values["url"]
    labels = {name: values[name] for name in ("agent_id", "session_id", "envelope_id", "policy_hash")}
    payer: Any = SimpleNamespace(trace_sink=sink, **labels)
    moments = [values["started_s"], *[values["started_s"] + values["took_s"]] * 9]
    with patch("time.time", lambda: moments.pop(0)), patch("os.urandom", lambda count: bytes(range(99, 99 + count))):
        context = CallContext(payer, request)
        with context:
            context.response = requests.Response()
            context.response.status_code = values["status"]


def told(values: dict[str, Any], *, at_once: bool, **options: Any) -> tuple[list[str], list[str]]:
    """The texts of the event of a call, and what was lost."""
    sink = Kept("unwritten", **options)
    sink.texts, sink.losses, sink._takes_text = [], [], at_once
    call(sink, values)
    return sink.texts, sink.losses


class Odd(str, Enum):
    GET = "get\u2028"


TEXTS = (
    st.text() | st.text(st.characters(codec=None), max_size=9) | st.sampled_from(["", "\ud800", '"\\\x00\x7f', "\x85\u2028ü€😀"])
)
URLS = TEXTS | st.sampled_from(
    [
        "https://user:hush@api.example/a?b#c",
        "https://api.example/@me?mail=a@b",
        "http://user:hu/sh@api.example/",
        "/path?key=hush",
        "https://api.example#part?key=hush\nmore",
    ]
)
TIMES = st.floats(-10, 4e9) | st.integers(-10, 2_000_000_000) | st.sampled_from([1.9999995, 1_800_000_000.9999998, 253402300799.9])
ANYTHING = st.none() | st.integers() | st.booleans() | st.binary(max_size=3) | st.just(Odd.GET)


@settings(max_examples=200, deadline=None)
@given(
    st.fixed_dictionaries(
        {
            "agent_id": st.none() | TEXTS,
            "session_id": st.none() | TEXTS,
            "envelope_id": st.none() | TEXTS,
            "policy_hash": st.none() | TEXTS,
            "url": URLS,
            "method": TEXTS,
            "status": st.integers(100, 599) | st.sampled_from([402, 399, 400, 10**30]),
            "started_s": TIMES,
            "took_s": st.floats(-1, 1e6),
        }
    ),
    st.booleans(),
    st.sampled_from(["raw", "drop"]),
)
@example({**PLAIN, "url": "https://user:hush@api.example/a?b#c"}, False, "raw")
@example(PLAIN, False, "raw")
@example({**PLAIN, "started_s": 0.0, "took_s": 0.9999999}, True, "raw")
@example({**PLAIN, "started_s": -1.0}, False, "raw")
def test_the_line_is_that_of_its_event(values: dict[str, Any], redact: bool, url_mode: str) -> None:
    """Free calls would have lines of their own kind: another field, another escape, another rounding, or a password in them."""
    options = {"redact": redact, "url_mode": url_mode}
    assert told(values, at_once=True, **options) == told(values, at_once=False, **options)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["agent_id", "envelope_id", "url", "method", "status", "started_s"]), ANYTHING)
@example("status", HTTPStatus.OK)
@example("status", None)
@example("url", b"https://api.example/")
def test_a_value_of_another_kind_is_left_to_the_event(name: str, value: Any) -> None:
    """A program's own request may hold anything: its line would be another one, or its loss would go unnoticed."""
    values = {**PLAIN, name: value}
    if name == "started_s" and not isinstance(value, int):
        return
    assert told(values, at_once=True) == told(values, at_once=False)


def test_a_plain_call_needs_no_event(monkeypatch: pytest.MonkeyPatch) -> None:
    """The line would cost thrice as much, unnoticed."""
    monkeypatch.delattr(TraceEvent, "to_json_dict")
    ((text,), losses) = told(PLAIN, at_once=True)
    assert json.loads(text)["url"] == PLAIN["url"]
    assert losses == []


@given(TIMES)
def test_times_are_those_of_the_schema(moment_s: float) -> None:
    """A line would be some microseconds off, or a second where one is rounded up."""
    for _ in range(2):  # the second time from memory
        assert _timestamp(moment_s) == timestamp(datetime.fromtimestamp(moment_s, tz=timezone.utc))


@given(st.binary(min_size=16, max_size=16))
def test_ids_are_random_uuids(drawn: bytes) -> None:
    """Readers that parse them would fail, or a database would refuse them."""
    with patch("os.urandom", lambda count: drawn[:count]):
        assert new_id() == str(uuid.uuid4()) == str(uuid.UUID(bytes=drawn, version=4))


class Own(JsonlSink):
    """A program's own sink that looks at each event first."""

    def emit(self, event: TraceEvent) -> bool:
        seen.append(event)
        return super().emit(event)


class Around:
    """Another that has a sink of this package behind it, and passes on whatever it doesn't know."""

    def __init__(self, sink: TraceSink) -> None:
        self._sink = sink

    def emit(self, event: TraceEvent) -> bool:
        seen.append(event)
        return self._sink.emit(event)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sink, name)


seen: list[TraceEvent] = []


def of_instance(path: Path, monkeypatch: pytest.MonkeyPatch) -> TraceSink:
    sink = TraceSink.jsonl(path)
    emit = sink.emit
    monkeypatch.setattr(sink, "emit", lambda event: seen.append(event) or emit(event))
    return sink


def of_class(path: Path, monkeypatch: pytest.MonkeyPatch) -> TraceSink:
    emit = TraceSink.emit
    monkeypatch.setattr(TraceSink, "emit", lambda self, event: seen.append(event) or emit(self, event))
    return TraceSink.jsonl(path)


@pytest.mark.parametrize(
    "make",
    [
        lambda path, _: Own(path),
        lambda path, _: Around(TraceSink.jsonl(path)),
        of_instance,
        of_class,
    ],
    ids=["subclass", "wrapper", "patched sink", "patched class"],
)
def test_a_programs_own_code_sees_every_event(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that counts its calls by their events would miss the free ones."""
    seen.clear()
    sink = make(tmp_path / "trace.jsonl", monkeypatch)
    call(sink, PLAIN)
    assert [event.url for event in seen] == [PLAIN["url"]]
    assert len((tmp_path / "trace.jsonl").read_bytes().splitlines()) == 1


def test_a_line_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    """Free calls would be missing in the trace, and nobody would know."""
    folder = tmp_path / "folder"
    folder.touch()
    with pytest.warns(RuntimeWarning, match="trace event [0-9a-f-]{36} is lost"):
        call(TraceSink.jsonl(folder / "trace.jsonl"), PLAIN)
