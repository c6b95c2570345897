"""A trace that can't be written now, or mustn't be: no call waits for it for long, and none loses its page or its payment."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from routeweiler_sync import Routeweiler
from routeweiler_sync._core import files
from routeweiler_sync.testing import FakeLnd, Paywall
from routeweiler_sync.trace import TraceSink, sink as sink_module, sink_jsonl
from tests.support.trace_events import free_event, paid_event

if os.name == "nt":
    pytest.skip("pipes with a name and file locks are POSIX's", allow_module_level=True)
import fcntl

pytestmark = [pytest.mark.timeout(120), pytest.mark.filterwarnings("ignore:trace event:RuntimeWarning")]
#: What an event waits here at most. The real wait is some seconds.
WAIT_S = 0.5
#: On top of what is promised, for a busy machine. A trace that is waited for without a bound takes longer than any.
SLACK_S = 30.0
#: The same where waits could add up: less than so many threads would wait one after another.
THREADS, THREADS_SLACK_S = 50, 15.0
PATIENCE_S = 60


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sink_module, "WAIT_S_MAX", WAIT_S)
    monkeypatch.setattr(sink_jsonl, "LOCK_TIMEOUT_S", WAIT_S / 2)


def full(path: Path) -> Callable[[], None]:
    """A named pipe that is full, whose reader doesn't read. Return what ends that."""
    os.mkfifo(path, 0o600)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    for size in (4_096, 1):
        with contextlib.suppress(BlockingIOError):
            while os.write(writer, b"x" * size):
                pass
    os.close(writer)

    def drain() -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(reader, 65_536):
                pass

    return drain


def without_reader(path: Path) -> Callable[[], None]:
    os.mkfifo(path, 0o600)
    return lambda: _opened.append(os.open(path, os.O_RDONLY | os.O_NONBLOCK))


_opened: list[int] = []


def with_flock(path: Path) -> Callable[[], None]:
    """A file that another program has locked."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    return lambda: os.close(fd)


def with_sqlite_lock(path: Path, begin: str) -> Callable[[], None]:
    sink = TraceSink.sqlite(path)
    sink.emit(free_event("before"))
    sink.close()
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute(begin)
    return other.close


def new_with_sqlite_lock(path: Path) -> Callable[[], None]:
    path.touch(mode=0o600)
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    return other.close


STALLS: dict[str, tuple[str, Callable[[Path], Callable[[], None]]]] = {
    "full pipe": ("trace.jsonl", full),
    "pipe without a reader": ("trace.jsonl", without_reader),
    "locked file": ("trace.jsonl", with_flock),
    "locked database": ("trace.db", lambda path: with_sqlite_lock(path, "BEGIN IMMEDIATE")),
    "exclusively locked database": ("trace.db", lambda path: with_sqlite_lock(path, "BEGIN EXCLUSIVE")),
    "locked new database": ("trace.db", new_with_sqlite_lock),
}


@pytest.fixture(params=STALLS.values(), ids=STALLS)
def stall(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[TraceSink, Callable[[], None]]]:
    """A stalled trace, and what ends the stall."""
    name, make = request.param
    end = make(tmp_path / name)
    sink = TraceSink.jsonl(tmp_path / name) if name.endswith("jsonl") else TraceSink.sqlite(tmp_path / name)
    yield sink, end
    sink.close()
    with contextlib.suppress(OSError):
        end()
    while _opened:
        os.close(_opened.pop())


@contextlib.contextmanager
def within(limit_s: float, slack_s: float = SLACK_S) -> Iterator[None]:
    began_s = time.monotonic()
    yield
    assert time.monotonic() - began_s < limit_s + slack_s


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a test in which an event must not give up, however busy the machine is."""
    monkeypatch.setattr(sink_module, "WAIT_S_MAX", PATIENCE_S)
    monkeypatch.setattr(sink_jsonl, "LOCK_TIMEOUT_S", PATIENCE_S)


def test_a_call_gets_its_page_while_the_trace_is_stalled(
    make_session: Callable[..., Routeweiler], paywall: Paywall, lnd: FakeLnd, stall: tuple[TraceSink, Callable[[], None]]
) -> None:
    """The page that was paid for would be lost, or the program would hang for ever with the page in its hand."""
    sink, end = stall
    session = make_session(trace_sink=sink)
    with within(WAIT_S):
        assert session.get(paywall.url, timeout=PATIENCE_S).status_code == 200
    with within(WAIT_S):
        for _ in range(5):
            assert session.get(paywall.url_for("/free"), timeout=PATIENCE_S).status_code == 200
    end()
    assert session.get(paywall.url).status_code == 200
    assert len(lnd.payments) == 1


def test_the_waits_of_threads_dont_add_up(
    make_session: Callable[..., Routeweiler], paywall: Paywall, stall: tuple[TraceSink, Callable[[], None]]
) -> None:
    """All threads would wait for one another, the last of them for minutes."""
    sink, _ = stall
    session = make_session(trace_sink=sink)
    with within(WAIT_S, THREADS_SLACK_S), ThreadPoolExecutor(THREADS) as pool:
        for call in [pool.submit(session.get, paywall.url_for("/free"), timeout=PATIENCE_S) for _ in range(THREADS)]:
            assert call.result(PATIENCE_S).status_code == 200


def test_the_waits_of_questions_dont_add_up(tmp_path: Path) -> None:
    """A program that uses many tokens whose payments no event reports yet asks the trace about each."""
    path = tmp_path / "trace.db"
    sink = TraceSink.sqlite(path)
    assert sink.emit(free_event())
    unlock = with_sqlite_lock(path, "BEGIN EXCLUSIVE")
    sink.close()
    assert not sink.emit(free_event("r2"))
    with within(6 * sink_module.STUCK_WAIT_S_MAX):
        assert [sink.reports("ab" * 32) for _ in range(6)] == [False] * 6
    unlock()


def test_a_stall_that_ends_is_forgotten(stall: tuple[TraceSink, Callable[[], None]]) -> None:
    """After one bad minute all later events would be lost, or wait in vain."""
    sink, end = stall
    sink.emit(free_event("lost or late"))
    end()
    assert sink.emit(free_event("after")) is True
    assert sink.emit(free_event("after that")) is True


def test_a_loss_is_told_once_and_logged_each_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Lines would be missing and nobody would know; or a long night would fill the screen."""
    without_reader(tmp_path / "trace.jsonl")
    sink = TraceSink.jsonl(tmp_path / "trace.jsonl")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            assert sink.emit(free_event()) is False
    (told,) = caught
    assert "nobody reads from it" in str(told.message)
    assert str(sink.path) in str(told.message)
    assert len([record for record in caplog.records if "is lost" in record.getMessage()]) == 3


@pytest.mark.usefixtures("patient")
def test_a_locked_trace_doesnt_hold_up_another_one(tmp_path: Path) -> None:
    """The trace of one session would stop those of all others."""
    end = with_sqlite_lock(tmp_path / "locked.db", "BEGIN IMMEDIATE")
    locked, free = TraceSink.sqlite(tmp_path / "locked.db"), TraceSink.sqlite(tmp_path / "free.db")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(locked.emit, free_event())
        for number in range(20):
            assert free.emit(free_event(str(number))) is True
        assert not waiting.done()
        end()
        assert waiting.result(PATIENCE_S) is True


@pytest.mark.usefixtures("patient")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_fork_doesnt_wait_for_a_locked_trace(tmp_path: Path) -> None:
    """A server that forks a worker for each request would stand still."""
    end = with_sqlite_lock(tmp_path / "locked.db", "BEGIN IMMEDIATE")
    sink = TraceSink.sqlite(tmp_path / "locked.db")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(sink.emit, free_event())
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        assert not waiting.done()
        end()
        assert waiting.result(PATIENCE_S) is True


def test_a_thread_that_hangs_in_a_write_holds_up_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a dead network disk one thread is lost; the others would be with it."""
    sink = TraceSink.jsonl(tmp_path / "trace.jsonl")
    hangs, goes_on = threading.Event(), threading.Event()
    write = type(sink)._write

    def hang(self: TraceSink, *event: Any) -> None:
        if event[0] == "hangs":
            hangs.set()
            assert goes_on.wait(PATIENCE_S)
        write(self, *event)

    monkeypatch.setattr(type(sink), "_write", hang)
    with ThreadPoolExecutor(9) as pool:
        hanging = pool.submit(sink.emit, free_event(event_id="hangs"))
        assert hangs.wait(PATIENCE_S)
        with within(WAIT_S):
            assert [each.result(PATIENCE_S) for each in [pool.submit(sink.emit, free_event()) for _ in range(8)]] == [False] * 8
        with within(WAIT_S):
            sink.close()
        goes_on.set()
        assert hanging.result(PATIENCE_S) is True
    assert sink.emit(free_event()) is True


# -- pipes and devices ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("patient")
def test_a_pipe_gets_whole_lines(tmp_path: Path) -> None:
    """A log collector behind the pipe would read halves of two lines as one."""
    path = tmp_path / "trace.jsonl"
    os.mkfifo(path, 0o600)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(path.read_bytes()), daemon=True)
    reader.start()
    sinks = [TraceSink.jsonl(path) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        sent = [
            pool.submit(
                sinks[thread].emit, paid_event(f"{thread}-{n}", url="https://a.example/" + "x" * (60_000 if n % 4 == 0 else 9))
            )
            for n in range(20)
            for thread in range(4)
        ]
        assert all(each.result(PATIENCE_S) for each in sent)
    for sink in sinks:
        sink.close()
    reader.join(PATIENCE_S)
    ids = [json.loads(line)["requestId"] for line in got[0].splitlines()]
    assert sorted(ids) == sorted(f"{thread}-{n}" for thread in range(4) for n in range(20))


def test_a_line_that_stayed_incomplete_is_ended_before_the_next(tmp_path: Path) -> None:
    """The next line, perhaps that of a payment, would be glued to half a line, and read by nobody."""
    path = tmp_path / "trace.jsonl"
    os.mkfifo(path, 0o600)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    sink = TraceSink.jsonl(path)
    assert sink.emit(free_event("first")) is True
    assert sink.emit(free_event("torn", url="https://a.example/" + "x" * 300_000)) is False
    got = bytearray()
    with contextlib.suppress(BlockingIOError):
        while piece := os.read(reader, 65_536):
            got += piece
    assert sink.emit(paid_event("next")) is True
    got += os.read(reader, 65_536)
    os.close(reader)
    first, torn, after = got.splitlines()
    assert json.loads(first)["requestId"] == "first"
    assert b'"torn"' in torn
    assert json.loads(after)["requestId"] == "next"


def test_a_reader_that_comes_again_gets_the_next_line(tmp_path: Path) -> None:
    """A log collector that is started again would get nothing any more."""
    path = tmp_path / "trace.jsonl"
    os.mkfifo(path, 0o600)
    sink = TraceSink.jsonl(path)
    for name in ("r1", "r2", "r3"):
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        assert sink.emit(free_event(name)) is True
        assert json.loads(os.read(reader, 65_536))["requestId"] == name
        os.close(reader)


def test_a_reader_that_went_doesnt_end_a_program_that_dies_of_sigpipe(tmp_path: Path) -> None:
    """A command-line program that restores SIGPIPE would die with the paid page in its hand."""
    code = """
import os, signal, sys, warnings
warnings.simplefilter("ignore")
from routeweiler_sync.trace import TraceSink
from tests.support.trace_events import free_event
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
os.mkfifo(sys.argv[1], 0o600)
reader = os.open(sys.argv[1], os.O_RDONLY | os.O_NONBLOCK)
sink = TraceSink.jsonl(sys.argv[1])
assert sink.emit(free_event()) is True
os.close(reader)
assert sink.emit(free_event()) is False
assert signal.SIGPIPE not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
print("alive")
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "trace.jsonl")], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1"])
@pytest.mark.parametrize("into", ["pipe", "file"])
def test_the_programs_own_output_can_be_the_trace(tmp_path: Path, name: str, into: str) -> None:
    """A container that logs to its output would have no trace; or a warning about a file that its user has opened."""
    if not os.path.exists(name):
        pytest.skip(f"there is no {name} here")
    code = """
import sys, warnings
warnings.simplefilter("error")
from routeweiler_sync.trace import TraceSink
from tests.support.trace_events import free_event
sink = TraceSink.jsonl(sys.argv[1])
assert sink.emit(free_event("r1")) and sink.emit(free_event("r2"))
"""
    before = os.umask(0)
    try:
        with (tmp_path / "out").open("wb") as out:
            done = subprocess.run(
                [sys.executable, "-c", code, name],
                stdout=subprocess.PIPE if into == "pipe" else out,
                stderr=subprocess.PIPE,
                timeout=PATIENCE_S,
                check=False,
            )
    finally:
        os.umask(before)
    assert (done.returncode, done.stderr) == (0, b"")
    lines = (done.stdout or (tmp_path / "out").read_bytes()).splitlines()
    assert [json.loads(line)["requestId"] for line in lines] == ["r1", "r2"]


def test_devices_are_written_as_they_are() -> None:
    """A trace that is to go nowhere would break something, or a full disk would raise."""
    assert TraceSink.jsonl("/dev/null").emit(free_event()) is True
    if os.path.exists("/dev/full"):
        assert TraceSink.jsonl("/dev/full").emit(free_event()) is False


def test_a_terminal_that_was_stopped_is_waited_for_briefly() -> None:
    """Ctrl-S in the terminal that shows the trace would stop the program."""
    master, terminal = os.openpty()
    sink = TraceSink.jsonl(os.ttyname(terminal))
    with within(WAIT_S):
        written = [sink.emit(free_event(url="https://a.example/" + "x" * 20_000)) for _ in range(5)]
    assert not written[-1]
    sink.close()
    os.close(master)
    os.close(terminal)


# -- within a write ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["jsonl", "sqlite"])
def test_a_signal_handler_that_calls_in_the_midst_of_a_write_loses_nothing(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The handler's line would be written into the other one; or the thread would wait for itself."""
    path = tmp_path / f"trace.{kind}"
    sink: TraceSink = getattr(TraceSink, kind)(path)
    handled: list[bool] = []
    monkeypatch.setattr(files, "_warned", set())
    before = signal.signal(signal.SIGUSR1, lambda *_: handled.append(sink.emit(free_event(f"handler {len(handled)}"))))
    write = type(sink)._write
    steps = 0

    def tracer(frame: Any, event: str, _: object) -> Any:
        nonlocal steps
        if event == "line" and "trace" in frame.f_code.co_filename and not handling:
            steps += 1
            handling.append(True)
            os.kill(os.getpid(), signal.SIGUSR1)
            handling.clear()
        return tracer

    handling: list[bool] = []

    def stepped(self: TraceSink, *event: Any) -> None:
        if self is not sink or handling:
            return write(self, *event)
        sys.settrace(tracer)
        try:
            return write(self, *event)
        finally:
            sys.settrace(None)

    monkeypatch.setattr(type(sink), "_write", stepped)
    try:
        for number in range(3):
            with within(WAIT_S):
                assert sink.emit(free_event(f"main {number}")) is True
    finally:
        signal.signal(signal.SIGUSR1, before)
    sink.close()
    assert steps > 5
    assert all(handled)
    if kind == "jsonl":
        told = [json.loads(line)["requestId"] for line in path.read_bytes().splitlines()]
    else:
        with contextlib.closing(sqlite3.connect(path)) as database:
            told = [json.loads(text)["requestId"] for (text,) in database.execute("SELECT payload FROM trace_events")]
    assert sorted(told) == sorted([f"main {number}" for number in range(3)] + [f"handler {n}" for n in range(len(handled))])


# -- files that mustn't be written, and names that no file has -----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["jsonl", "sqlite"])
def test_a_trace_that_every_user_can_write_is_not_written(
    make_session: Callable[..., Routeweiler], paywall: Paywall, lnd: FakeLnd, tmp_path: Path, kind: str
) -> None:
    """What it says of payments could be anybody's word; but for that no page may be lost."""
    path = tmp_path / "trace"
    path.touch()
    path.chmod(0o666)
    session = make_session(trace_sink=getattr(TraceSink, kind)(path))
    with pytest.warns(RuntimeWarning, match=f"chmod 600 {path}"):
        assert session.get(paywall.url).status_code == 200
    assert path.stat().st_size == 0
    path.chmod(0o600)
    assert session.get(paywall.url).status_code == 200
    assert path.stat().st_size > 0
    assert len(lnd.payments) == 1


@pytest.mark.parametrize("kind", ["jsonl", "sqlite"])
def test_a_trace_that_others_can_read_is_written_and_told(tmp_path: Path, kind: str) -> None:
    """A log shipper that may read it would get nothing; or everybody could read it unnoticed."""
    path = tmp_path / "trace"
    path.touch()
    path.chmod(0o644)
    sink = getattr(TraceSink, kind)(path)
    with pytest.warns(RuntimeWarning, match=f"{path} isn't private"):
        assert sink.emit(free_event()) is True
    sink.close()


@pytest.mark.parametrize("kind", ["jsonl", "sqlite"])
@pytest.mark.parametrize("links", [1, 3])
def test_a_trace_behind_dangling_links_is_private(tmp_path: Path, kind: str, links: int) -> None:
    """A link that says where the trace lies would make it public."""
    target = tmp_path / "logs" / "made" / "trace"
    for number in range(links):
        link = tmp_path / f"link-{number}"
        link.symlink_to(target)
        target = link
    before = os.umask(0o022)
    try:
        sink = getattr(TraceSink, kind)(target)
        assert sink.emit(free_event()) is True
        assert {each.stat().st_mode & 0o777 for each in (tmp_path / "logs" / "made").iterdir()} == {0o600}
        sink.close()
    finally:
        os.umask(before)


def test_a_database_with_two_names_is_not_written(tmp_path: Path) -> None:
    """Under each name SQLite keeps another log, and the file is damaged."""
    sink = TraceSink.sqlite(tmp_path / "trace.db")
    assert sink.emit(free_event("r1")) is True
    sink.close()
    os.link(tmp_path / "trace.db", tmp_path / "other.db")
    with pytest.warns(RuntimeWarning, match="2 names"):
        assert TraceSink.sqlite(tmp_path / "other.db").emit(free_event("r2")) is False


@pytest.mark.parametrize("lost", ["-wal", "-shm"])
def test_a_database_that_lost_a_file_beside_it_loses_no_event(tmp_path: Path, lost: str) -> None:
    """Events would go to a log without a name, and be gone when the program ends."""
    path = tmp_path / "trace.db"
    sink = TraceSink.sqlite(path)
    assert sink.emit(free_event("r1")) is True
    Path(f"{path}{lost}").unlink()
    assert sink.emit(free_event("r2")) is True
    with contextlib.closing(sqlite3.connect(path)) as other:
        assert other.execute("SELECT count(*) FROM trace_events").fetchone() == (2,)
    sink.close()


NAMES = {
    "a folder": ".",
    "NUL": "a\0b",
    "half a character": "a\ud800b",
    "odd bytes": os.fsdecode(b"a\xff/b"),
    "too long": "x" * 5_000,
    "below a file": __file__ + "/trace",
    "below /dev/null": "/dev/null/trace",
}


@pytest.mark.parametrize("kind", ["jsonl", "sqlite", "path"])
@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_name_that_no_trace_can_have_costs_no_page(
    make_session: Callable[..., Routeweiler],
    paywall: Paywall,
    tmp_path: Path,
    kind: str,
    name: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A bare ValueError would come out of a GET, after the payment."""
    path = os.path.join(tmp_path, name)
    session = make_session(trace_sink=path if kind == "path" else getattr(TraceSink, kind)(path))
    assert session.get(paywall.url).status_code == 200
    if name != NAMES["odd bytes"]:
        assert "is lost" in caplog.text
    caplog.text.encode()
