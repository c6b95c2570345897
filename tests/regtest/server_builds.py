"""Installs the servers of `servers/` once, into a cache folder: a virtual environment, and a folder of Node's modules.

Knows the pins (`servers/requirements.txt`, `servers/package-lock.json`) and how pip and npm are called. How the servers are run is
told in `real_servers`. `python -m tests.regtest.build` installs them as well.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from .build import ERROR_LINES, BuildError, Report, cache_folder

SERVERS = Path(__file__).parent / "servers"
PINS = ("requirements.txt", "package.json", "package-lock.json")
#: l402kit's least.
PYTHON_LEAST = (3, 11)
#: `fetch`, which next-l402 calls.
NODE_LEAST = 18
INSTALL_TIMEOUT_S = 600.0


class ServersMissingError(BuildError):
    """The servers aren't installed and can't be: Node.js, npm, a newer Python or the network is missing. The text says which."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Runtimes:
    """What the servers are run with."""

    python: Path
    node: Path
    node_modules: Path


def pins() -> str:
    """Return a hash over the pins and the version of Python: it changes with everything that is installed."""
    digest = hashlib.sha256(repr(sys.version_info[:2]).encode())
    for name in PINS:
        digest.update((SERVERS / name).read_bytes())
    return digest.hexdigest()


def runtimes(report: Report = print) -> Runtimes:
    """Return what the servers are run with, installed first where it isn't there yet (half a minute).

    Raises:
        ServersMissingError: It can't be installed here.
    """
    node = _node()
    folder = cache_folder() / "servers" / pins()[:16]
    if not folder.exists():
        _install(folder, report)
    return Runtimes(python=folder / "venv" / "bin" / "python", node=node, node_modules=folder / "node_modules")


def _node() -> Path:
    if sys.version_info < PYTHON_LEAST:
        raise ServersMissingError(f"the servers need Python {'.'.join(map(str, PYTHON_LEAST))}")
    node = shutil.which("node")
    if node is None:
        raise ServersMissingError("Node.js isn't installed, which some of the servers need")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True, timeout=60).stdout.strip()
    if int(version.lstrip("v").split(".")[0]) < NODE_LEAST:
        raise ServersMissingError(f"Node.js is {version}, and the servers need {NODE_LEAST}")
    return Path(node)


def _install(folder: Path, report: Report) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise ServersMissingError("npm isn't installed, which some of the servers need")
    report("installing servers of L402 from PyPI and npm (half a minute the first time)")
    started = time.monotonic()
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Made aside and renamed: a run at the same time never starts half an environment. What is run is `bin/python`, which is a link
    # and can be moved; the other programs of the environment can't.
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="install-") as temporary:
        aside = Path(temporary) / "made"
        aside.mkdir()
        for name in PINS:
            shutil.copy(SERVERS / name, aside / name)
        _run([sys.executable, "-m", "venv", "venv"], aside)
        _run(["venv/bin/python", "-m", "pip", "install", "-q", "--no-deps", "-r", "requirements.txt"], aside)
        # No install scripts: nothing is compiled, and no package fetches anything by itself. The peers that aren't taken are
        # Next.js and React.
        _run([npm, "ci", "--ignore-scripts", "--legacy-peer-deps", "--no-audit", "--no-fund"], aside)
        if not folder.exists():
            aside.rename(folder)
    report(f"installed the servers in {time.monotonic() - started:.0f} s")


def _run(argv: list[str], folder: Path) -> None:
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
        raise ServersMissingError(f"{name}: not within {INSTALL_TIMEOUT_S:.0f} s") from None
    if done.returncode != 0:
        last = "\n".join((done.stdout + done.stderr).splitlines()[-ERROR_LINES:])
        raise ServersMissingError(f"{name} failed with {done.returncode}:\n{last}")
