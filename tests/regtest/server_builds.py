"""Installs the servers of `servers/` once, into a cache folder: a virtual environment, and a folder of Node's modules.

Knows the pins (`servers/requirements.txt`, `servers/package-lock.json`). How pip and npm are called is told in `installs`, how the
servers are run in `real_servers`. `python -m tests.regtest.build` installs them as well.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from . import installs
from .build import Report, cache_folder
from .installs import InstallError

SERVERS = Path(__file__).parent / "servers"
PINS = ("requirements.txt", "package.json", "package-lock.json")
#: l402kit's least.
PYTHON_LEAST = (3, 11)


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
        InstallError: It can't be installed here.
    """
    if sys.version_info < PYTHON_LEAST:
        raise InstallError(f"the servers need Python {'.'.join(map(str, PYTHON_LEAST))}")
    node = installs.node()
    folder = cache_folder() / "servers" / pins()[:16]
    if not folder.exists():
        with installs.installing("servers of L402 from PyPI and npm", folder, report, takes="half a minute") as aside:
            for name in PINS:
                shutil.copy(SERVERS / name, aside / name)
            installs.venv(sys.executable, SERVERS / "requirements.txt", aside)
            installs.node_modules(aside, "--legacy-peer-deps")  # the peers that aren't taken are Next.js and React
    return Runtimes(python=folder / "venv" / "bin" / "python", node=node, node_modules=folder / "node_modules")
