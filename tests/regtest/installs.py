"""Installs programs from PyPI and npm once, each into a folder of the cache. What is installed is left to the callers."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .build import ERROR_LINES, BuildError, Report

INSTALL_TIMEOUT_S = 600.0
#: `fetch`, which next-l402 calls.
NODE_LEAST = 18


class InstallError(BuildError):
    """A program isn't installed and can't be: Node.js, npm, a Python for it or the network is missing. The text says which."""


@contextmanager
def installing(what: str, folder: Path, report: Report, *, takes: str) -> Iterator[Path]:
    """Give an empty folder to install ``what`` in. At the end of the block it becomes ``folder``.

    It is made aside and renamed: a run at the same time never starts half an environment. What is run of a virtual environment is
    ``bin/python``, which is a link and can be moved; the other programs of the environment can't.
    """
    report(f"installing {what} ({takes} the first time)")
    started = time.monotonic()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="install-") as temporary:
        aside = Path(temporary) / "made"
        aside.mkdir()
        yield aside
        if not folder.exists():
            aside.rename(folder)
    report(f"installed {what} in {time.monotonic() - started:.0f} s")


def venv(python: str, requirements: Path, folder: Path, *options: str) -> None:
    """Make a virtual environment ``venv`` in ``folder``, with what is pinned in ``requirements`` and nothing else.

    ``options`` are pip's.

    Raises: InstallError.
    """
    run([python, "-m", "venv", "venv"], folder)
    run(["venv/bin/python", "-m", "pip", "install", "-q", "--no-deps", *options, "-r", str(requirements)], folder)


def node() -> Path:
    """Return Node.js. Raises: InstallError if there is none, or it is too old."""
    found = shutil.which("node")
    if found is None:
        raise InstallError("Node.js isn't installed, which some of the programs need")
    version = subprocess.run([found, "--version"], capture_output=True, text=True, check=True, timeout=60).stdout.strip()
    if int(version.lstrip("v").split(".")[0]) < NODE_LEAST:
        raise InstallError(f"Node.js is {version}, and the programs need {NODE_LEAST}")
    return Path(found)


def node_modules(folder: Path, *options: str) -> None:
    """Install what ``package-lock.json`` in ``folder`` pins.

    No install scripts: nothing is compiled, and no package fetches anything by itself.

    Raises: InstallError.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise InstallError("npm isn't installed, which some of the programs need")
    run([npm, "ci", "--ignore-scripts", *options, "--no-audit", "--no-fund"], folder)


def run(argv: list[str], folder: Path) -> None:
    """Run a command in ``folder``. Raises: InstallError, with the end of its output."""
    name = " ".join(argv[:3])
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    try:
        done = subprocess.run(
            argv,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=INSTALL_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise InstallError(f"{name}: not within {INSTALL_TIMEOUT_S:.0f} s") from None
    if done.returncode != 0:
        last = "\n".join((done.stdout + done.stderr).splitlines()[-ERROR_LINES:])
        raise InstallError(f"{name} failed with {done.returncode}:\n{last}")
