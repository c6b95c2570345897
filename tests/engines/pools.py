"""The engines, each as a `Pool` of two workers on this machine: everything on 127.0.0.1, and gone with its ``with`` block."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol
from unittest.mock import patch

from routeweiler_sync import Routeweiler

from . import jobs

WORKERS = 2
START_S, RESULT_S, STOP_S = 60.0, 600.0, 30.0
#: What Ray is given for its object store; the least that it takes is 75 MB.
RAY_STORE_BYTES = 80 * 1024 * 1024


class Task(Protocol):
    """A task that the pool has been given."""

    def outcome(self) -> Any:
        """Wait for it, and return what it returned, or the exception that it raised, as the engine hands it over."""


class Pool(Protocol):
    """An engine that runs."""

    #: A page fetched by a session that the caller made, and the engine pickled.
    def pickled(self, session: Routeweiler, urls: Sequence[str]) -> list[Task]: ...

    #: A page fetched by a session that the worker made itself.
    def own(self, urls: Sequence[str]) -> list[Task]: ...


class Asked:
    """A task, as a function that waits for its result."""

    def __init__(self, result: Callable[[], Any]) -> None:
        self._result = result

    def outcome(self) -> Any:
        try:
            return self._result()
        except Exception as error:  # whatever the engine raises is the outcome
            return error


class DaskPool:
    """Two processes with two threads each. A session is pickled into each task; or a process's threads share one."""

    def __init__(self, client: Any) -> None:
        self.client = client

    @classmethod
    @contextlib.contextmanager
    def make(cls) -> Iterator[DaskPool]:
        import dask
        from distributed import Client, LocalCluster

        folder = tempfile.mkdtemp(prefix="rw-dask-")
        timeouts = {"connect": START_S, "tcp": RESULT_S}  # generous: a busy machine mustn't look like a network that is down
        try:
            with (
                dask.config.set({"temporary-directory": folder, "distributed.comm.timeouts": timeouts}),
                LocalCluster(
                    n_workers=WORKERS, threads_per_worker=2, processes=True, host="127.0.0.1", dashboard_address="127.0.0.1:0"
                ) as cluster,
                Client(cluster, timeout=START_S) as client,
            ):
                yield cls(client)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def pickled(self, session: Routeweiler, urls: Sequence[str]) -> list[Task]:
        return [self._asked(future) for future in self.client.map(jobs.fetch, [session] * len(urls), urls, pure=False)]

    def own(self, urls: Sequence[str]) -> list[Task]:
        return [self._asked(future) for future in self.client.map(jobs.fetch_here, urls, pure=False)]

    def _asked(self, future: Any) -> Asked:
        return Asked(lambda: future.result(timeout=RESULT_S))


class RayPool:
    """Two processes that run a task at a time. A session is pickled once, into the object store, and unpickled by each task."""

    def __init__(self, ray: Any) -> None:
        self.ray = ray
        self._fetch, self._fetch_here = ray.remote(jobs.fetch), ray.remote(jobs.fetch_here)

    @classmethod
    @contextlib.contextmanager
    def make(cls) -> Iterator[RayPool]:
        folder = tempfile.mkdtemp(prefix="rw-ray-")  # not pytest's: a socket's path has at most 107 characters
        try:
            with patch.dict(os.environ, ray_environ()):
                import ray

                ray.init(
                    num_cpus=WORKERS,
                    include_dashboard=False,
                    configure_logging=False,
                    log_to_driver=False,
                    object_store_memory=RAY_STORE_BYTES,
                    _node_ip_address="127.0.0.1",
                    _temp_dir=folder,
                )
                try:
                    yield cls(ray)
                finally:
                    ray.shutdown()
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def pickled(self, session: Routeweiler, urls: Sequence[str]) -> list[Task]:
        stored = self.ray.put(session)
        return [self._asked(self._fetch.remote(stored, url)) for url in urls]

    def own(self, urls: Sequence[str]) -> list[Task]:
        return [self._asked(self._fetch_here.remote(url)) for url in urls]

    def _asked(self, reference: Any) -> Asked:
        return Asked(lambda: self.ray.get(reference, timeout=RESULT_S))


class CeleryPool:
    """A worker of two forked processes, with Redis for tasks and results."""

    def __init__(self, tasks: Any, worker: subprocess.Popen[bytes], log: Path) -> None:
        self.tasks, self.worker, self.log = tasks, worker, log

    @classmethod
    @contextlib.contextmanager
    def make(cls) -> Iterator[CeleryPool]:
        with redis_server() as url, tempfile.TemporaryDirectory(prefix="rw-celery-") as folder:
            from . import celery_tasks

            os.environ[celery_tasks.BROKER] = url
            celery_tasks.app.conf.update(broker_url=url, result_backend=url)
            log = Path(folder, "log")
            command = [sys.executable, "-m", "celery", "-A", "tests.engines.celery_tasks", "worker", "--loglevel=WARNING"]
            command += [f"--concurrency={WORKERS}", "--without-gossip", "--without-mingle", "--without-heartbeat"]
            with log.open("wb") as out:
                # In a process group of its own: Ctrl-C is for the tests, which then stop it themselves.
                # Celery doesn't unpickle as root unless told so, and root runs these tests in containers.
                environ = {**os.environ, "C_FORCE_ROOT": "1"}
                worker = subprocess.Popen(command, env=environ, stdout=out, stderr=out, start_new_session=True)
            try:
                _until(lambda: celery_tasks.app.control.ping(timeout=0.5) or _ended(worker, log))
                yield cls(celery_tasks, worker, log)
            finally:
                worker.send_signal(signal.SIGTERM)
                try:
                    worker.wait(STOP_S)
                finally:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(worker.pid, signal.SIGKILL)
                    worker.wait()
                    celery_tasks.app.close()

    def pickled(self, session: Routeweiler, urls: Sequence[str]) -> list[Task]:
        return [self._asked(self.tasks.fetch.delay(session, url)) for url in urls]

    def own(self, urls: Sequence[str]) -> list[Task]:
        return [self._asked(self.tasks.fetch_here.delay(url)) for url in urls]

    def _asked(self, result: Any) -> Asked:
        return Asked(lambda: result.get(timeout=RESULT_S))


POOLS: dict[str, Any] = {"dask": DaskPool, "ray": RayPool, "celery": CeleryPool}


def ray_environ() -> dict[str, str]:
    """Variables of Ray for a test: it listens on 127.0.0.1 alone, tells nobody that it is used, and writes no token to the home."""
    return {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }


@contextlib.contextmanager
def redis_server() -> Iterator[str]:
    """The URL of a Redis that keeps nothing on disk."""
    program = shutil.which("redis-server")
    if program is None:
        raise ImportError("redis-server isn't installed (apt-get install redis-server)")
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="rw-redis-") as folder:
        command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", folder]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
        try:
            _until(lambda: _answers(port))
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            server.terminate()
            server.wait(STOP_S)


def _until(holds: Callable[[], object]) -> None:
    """Wait until ``holds``. An OSError means not yet."""
    until = time.monotonic() + START_S
    while True:
        with contextlib.suppress(OSError):
            if holds():
                return
        if time.monotonic() > until:
            raise TimeoutError("an engine doesn't start")
        time.sleep(0.05)


def _answers(port: int) -> bool:
    socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
    return True


def _ended(process: subprocess.Popen[bytes], log: Path) -> bool:
    """False while it runs. Raises what it said if it has ended."""
    if process.poll() is not None:
        raise RuntimeError(f"the worker ended with {process.returncode}: {log.read_text(errors='replace')[-2_000:]}")
    return False
