"""One trace file, many processes: whole lines, none lost, whoever is killed, forked or stopped."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from routeweiler_sync.trace import TraceSink
from tests.support.trace_events import free_event, paid_event

PROCESSES, THREADS, EVENTS = 8, 4, 25
RACES = 20
PATIENCE_S = 60
SPAWN = multiprocessing.get_context("spawn")


def make(path: Path) -> TraceSink:
    return TraceSink.jsonl(path) if path.suffix == ".jsonl" else TraceSink.sqlite(path)


def request_ids(path: Path) -> list[str]:
    """The ids in the file, in order; anything but whole JSON raises."""
    if path.suffix == ".jsonl":
        return [json.loads(line)["requestId"] for line in path.read_bytes().splitlines()]
    connection = sqlite3.connect(path, timeout=30)
    try:
        return [json.loads(row[0])["requestId"] for row in connection.execute("SELECT payload FROM trace_events ORDER BY rowid")]
    finally:
        connection.close()


def write_from_threads(sink: TraceSink, process: int, barrier: Any) -> None:
    def write(thread: int) -> None:
        for n in range(EVENTS):
            size = 40_000 if n % 5 == 0 else 10
            sink.emit(paid_event(f"{process}-{thread}-{n}", url="https://api.example/" + "x" * size))

    barrier.wait(PATIENCE_S)
    threads = [threading.Thread(target=write, args=(thread,)) for thread in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sink.close()


@pytest.fixture(params=["jsonl", "sqlite"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / f"trace.{request.param}"


@pytest.mark.slow
def test_many_processes_and_threads_lose_nothing_and_never_interleave(path: Path):
    """Workers that share a trace would shred each other's lines: the audit of what was spent would be unreadable."""
    barrier = SPAWN.Barrier(PROCESSES)
    writers = [SPAWN.Process(target=write_from_threads, args=(make(path), n, barrier)) for n in range(PROCESSES)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(PATIENCE_S)
    assert [writer.exitcode for writer in writers] == [0] * PROCESSES
    expected = {f"{p}-{t}-{n}" for p in range(PROCESSES) for t in range(THREADS) for n in range(EVENTS)}
    told = request_ids(path)
    assert len(told) == len(expected)
    assert set(told) == expected


def write_first_events(folder: Path, process: int, barrier: Any) -> None:
    for n in range(RACES):
        sink = TraceSink.sqlite(folder / f"{n}.sqlite")
        barrier.wait(PATIENCE_S)
        sink.emit(free_event(str(process)))
        sink.close()


@pytest.mark.slow
def test_processes_that_race_to_make_the_database_lose_no_event(tmp_path: Path):
    """When a fleet of workers starts, "database is locked" would swallow the first traces."""
    barrier = SPAWN.Barrier(PROCESSES)
    writers = [SPAWN.Process(target=write_first_events, args=(tmp_path, n, barrier)) for n in range(PROCESSES)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(PATIENCE_S)
    assert [sorted(request_ids(tmp_path / f"{n}.sqlite")) for n in range(RACES)] == [[str(n) for n in range(PROCESSES)]] * RACES


def write_for_ever(sink: TraceSink) -> None:
    n = 0
    while True:
        sink.emit(paid_event(f"victim-{n}", url="https://api.example/" + "x" * 200_000))
        n += 1


def test_a_killed_writer_leaves_a_file_that_others_read_and_write(path: Path):
    """After a crash in the midst of a write, the trace would be unreadable, or the next run's events lost in it."""
    survivor = make(path)
    for n in range(3):
        victim = SPAWN.Process(target=write_for_ever, args=(make(path),))
        victim.start()
        wait_until(lambda: path.exists() and path.stat().st_size > 0 and any("victim" in told for told in readable_ids(path)))
        victim.kill()
        victim.join(PATIENCE_S)
        survivor.emit(free_event(f"after-{n}"))
    survivor.close()
    told = readable_ids(path)
    assert [request_id for request_id in told if request_id.startswith("after")] == ["after-0", "after-1", "after-2"]


def readable_ids(path: Path) -> list[str]:
    """As a patient reader sees the file: a killed writer's torn line is skipped."""
    if path.suffix != ".jsonl":
        return request_ids(path) if has_table(path) else []
    told = []
    for line in path.read_bytes().splitlines():
        try:
            told.append(json.loads(line)["requestId"])
        except ValueError:
            continue
    return told


def has_table(path: Path) -> bool:
    connection = sqlite3.connect(path, timeout=30)
    try:
        return connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'trace_events'").fetchone() == (1,)
    finally:
        connection.close()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


SURVIVORS, KILLS = 3, 8
#: Longer than a page of the system's: a write of such a line may be cut short when its process is killed.
LONG = "https://api.example/" + "x" * 30_000


def write_until(sink: TraceSink, name: str, done: Any, written: Path) -> None:
    """Write lines, some of them long; note each in ``written`` once the sink has said that it is written."""
    with written.open("a") as noted:
        n = 0
        while not done.is_set():
            if sink.emit(free_event(f"{name}-{n}", url=LONG if n % 7 == 0 else "https://api.example/")):
                noted.write(f"{name}-{n}\n")
            n += 1


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="an open file can't be moved here")
def test_writers_that_are_killed_and_logs_that_are_rotated_cost_nobody_a_line(tmp_path: Path):
    """A line that is glued to what a killed process has left is read by nobody, though its writer was told that it is written."""
    path, done = tmp_path / "trace.jsonl", SPAWN.Event()

    def start(name: str) -> Any:
        writer = SPAWN.Process(target=write_until, args=(make(path), name, done, tmp_path / f"{name}.txt"), daemon=True)
        writer.start()
        return writer

    survivors = [start(f"survivor{n}") for n in range(SURVIVORS)]
    wait_until(lambda: path.exists())
    for n in range(KILLS):
        victim = start(f"victim{n}")
        wait_until(lambda n=n: (tmp_path / f"victim{n}.txt").exists())
        time.sleep(random.random() / 20)  # in the midst of anything
        victim.kill()
        victim.join(PATIENCE_S)
        size = path.stat().st_size
        wait_until(lambda size=size: path.stat().st_size > size)  # the survivors go on behind what it left
        path.rename(tmp_path / f"rotated{n}.jsonl")
        wait_until(lambda: path.exists())
    done.set()
    for writer in survivors:
        writer.join(PATIENCE_S)
    told, torn = set[str](), 0
    for file in (path, *tmp_path.glob("rotated*.jsonl")):
        for line in file.read_bytes().split(b"\n"):
            try:
                told.add(json.loads(line)["requestId"])
            except ValueError:
                torn += bool(line)
                begin = b'{"requestId":"victim'
                assert begin.startswith(line[: len(begin)]), "more than what a killed process has left"
    written = {name for n in range(SURVIVORS) for name in (tmp_path / f"survivor{n}.txt").read_text().split()}
    assert len(written) > 100
    assert written <= told
    assert torn <= KILLS


@pytest.mark.skipif(os.name == "nt", reason="there are no limits here")
def test_a_disk_that_was_full_leaves_half_a_line_and_costs_no_later_one(tmp_path: Path):
    """The first line after somebody has made room would be glued to the half of the last one."""
    code = """
import json, resource, signal, sys, warnings
from pathlib import Path
from routeweiler_sync.trace import TraceSink
from tests.support.trace_events import free_event
warnings.simplefilter("ignore")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
path = Path(sys.argv[1])
sink = TraceSink.jsonl(path)
assert sink.emit(free_event("r1"))
for name in ("r2", "r3"):
    room = path.stat().st_size + 100
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
    assert not sink.emit(free_event("lost"))
    assert path.stat().st_size == room, "as much of the line as there was room for"
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert sink.emit(free_event(name))
"""
    path = tmp_path / "trace.jsonl"
    done = subprocess.run([sys.executable, "-c", code, str(path)], timeout=PATIENCE_S, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = path.read_bytes().split(b"\n")
    assert [json.loads(lines[at])["requestId"] for at in (0, 2, 4)] == ["r1", "r2", "r3"]
    assert lines[1] == lines[3] == lines[0].replace(b"r1", b"lost")[:100]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_fork_in_the_midst_of_writes_neither_hangs_nor_loses(path: Path):
    """A pre-forking web server's workers would hang on a lock that a thread of the parent held, or share its SQLite connection."""
    code = f"""
import os, signal, threading
from pathlib import Path
from tests.component.trace.test_concurrent_writers import make
from tests.support.trace_events import free_event
signal.alarm({PATIENCE_S})
sink = make(Path({str(path)!r}))
done = threading.Event()
def write():
    n = 0
    while not done.is_set():
        sink.emit(free_event(f"parent-{{n}}"))
        n += 1
threads = [threading.Thread(target=write) for _ in range(4)]
[thread.start() for thread in threads]
children = []
for n in range(20):
    child = os.fork()
    if child == 0:
        signal.alarm({PATIENCE_S})
        sink.emit(free_event(f"child-{{n}}"))
        sink.close()
        os._exit(0)
    children.append(child)
codes = [os.waitpid(child, 0)[1] for child in children]
done.set()
[thread.join() for thread in threads]
sink.emit(free_event("last"))
sink.close()
raise SystemExit(any(codes))
"""
    ended = subprocess.run([sys.executable, "-W", "ignore", "-c", code], timeout=2 * PATIENCE_S, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
    told = request_ids(path)
    assert {f"child-{n}" for n in range(20)} | {"last"} <= set(told)
    assert len([request_id for request_id in told if request_id.startswith("child")]) == 20


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="a process can't be stopped here")
def test_a_stopped_writer_stops_no_one_else(tmp_path: Path):
    """A process frozen under a debugger would hang every paying process on the machine."""
    path = tmp_path / "trace.jsonl"
    TraceSink.jsonl(path).emit(free_event("first"))
    code = f"import fcntl, time; f = open({str(path)!r}); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"held\n"
            holder.send_signal(signal.SIGSTOP)
            sink = make(path)
            started = time.monotonic()
            sink.emit(free_event("second"))
            assert time.monotonic() - started < PATIENCE_S / 4
            sink.close()
        finally:
            holder.kill()
    assert request_ids(path) == ["first", "second"]


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="modes are POSIX's")
def test_a_read_only_folder_warns_once_and_raises_nothing(path: Path):
    """A container with a read-only disk would lose paid responses, or fill its log with warnings."""
    path.parent.chmod(0o500)
    code = f"""
import os, sys, warnings
from pathlib import Path
from tests.component.trace.test_concurrent_writers import make
from tests.support.trace_events import free_event
if os.geteuid() == 0:
    os.setuid(65534)  # root writes everywhere
warnings.simplefilter("always")
sink = make(Path({str(path)!r}))
with warnings.catch_warnings(record=True) as caught:
    sink.emit(free_event())
    sink.emit(free_event())
print([warning.category.__name__ for warning in caught])
"""
    path.parent.parent.chmod(0o755)
    try:
        ended = subprocess.run([sys.executable, "-c", code], timeout=PATIENCE_S, capture_output=True, text=True)
    finally:
        path.parent.chmod(0o700)
    assert (ended.returncode, ended.stdout) == (0, "['RuntimeWarning']\n"), ended.stderr
    assert not path.exists()
