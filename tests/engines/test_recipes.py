"""The programs of docs/how-to/engines.md: each is run as it stands there, but for server, network and budget."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .fleet import Fleet
from .pools import STOP_S, ray_environ, redis_server
from .shop import NETWORK, page

PAGE = (Path(__file__).parents[2] / "docs/how-to/engines.md").read_text("utf-8")
PAGES, ALLOWED = 8, 5
TIMEOUT_S = 500

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600, func_only=True)]


def block(mark: str, fleet: Fleet) -> str:
    """The program below this mark, for this shop."""
    found = re.search(rf"<!-- {mark} -->\n```python\n(.*?)```", PAGE, re.DOTALL)
    assert found is not None, f"docs/how-to/engines.md has no block {mark!r}"
    return (
        found[1].replace("https://example.com", f"{fleet.shop.url}/{mark.replace(' ', '-')}").replace('"bitcoin"', f'"{NETWORK}"')
    )


@contextlib.contextmanager
def celery_worker(folder: Path) -> Iterator[None]:
    """The workers of the recipe, over a Redis of their own."""
    with redis_server() as os.environ["FLEET_REDIS"]:
        command = [sys.executable, "-m", "celery", "-A", "fleet_celery", "worker", "--concurrency=2", "--loglevel=WARNING"]
        worker = subprocess.Popen(command, cwd=folder, env={**os.environ, "C_FORCE_ROOT": "1"}, stderr=subprocess.DEVNULL)
        try:
            yield
        finally:
            worker.terminate()
            worker.wait(STOP_S)
            del os.environ["FLEET_REDIS"]


@pytest.mark.parametrize("engine", ["dask", "ray", "celery"], indirect=True)
def test_the_recipe_fetches_what_the_budget_allows_and_tells_of_what_it_doesnt(fleet: Fleet, engine: str, tmp_path: Path) -> None:
    """The first lines that anybody copies wouldn't work, or not say what was refused."""
    fleet.allow(ALLOWED)
    (tmp_path / "fleet_tasks.py").write_text(block("tasks", fleet), "utf-8")
    program, workers = engine, contextlib.nullcontext()
    if engine == "celery":
        (tmp_path / "fleet_celery.py").write_text(block("celery", fleet), "utf-8")
        program, workers = "celery client", celery_worker(tmp_path)  # type: ignore[assignment]
    (tmp_path / "program.py").write_text(block(program, fleet), "utf-8")
    with workers:
        # Engines log to stderr, and at their end more than one would like.
        done = subprocess.run(
            [sys.executable, "program.py"],
            cwd=tmp_path,
            env={**os.environ, **ray_environ(), "PYTHONPATH": os.pathsep.join([os.fspath(tmp_path), *sys.path])},
            capture_output=True,
            encoding="utf-8",
            timeout=TIMEOUT_S,
        )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    pages = [line for line in lines if line.startswith("page ")]
    refused = [line for line in lines if line == "refused: Raise the limit."]
    assert len(pages) + len(refused) == PAGES, done.stdout
    assert 1 <= len(pages) <= ALLOWED
    part = program.replace(" ", "-")
    rows = {row.path for row in fleet.rows(part)}
    assert {page(path) for path in rows} == {line.encode() for line in pages}
    fleet.judge(part, [], [])
