"""Installs Alby's service SDK once, into a folder of Node's modules in the cache folder.

Knows the pins (`nwc/package-lock.json`). How the service is run is told in `nwc_server`. `python -m tests.regtest.build` installs
it as well.
"""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from . import installs
from .build import Report, cache_folder

FILES = Path(__file__).parent / "nwc"
PINS = ("package.json", "package-lock.json")


@dataclass(frozen=True, kw_only=True, slots=True)
class NwcRuntime:
    """What the service is run with."""

    node: Path
    node_modules: Path


def nwc_runtime(report: Report = print) -> NwcRuntime:
    """Return what the service is run with, installed first where it isn't there yet (some seconds).

    Raises:
        InstallError: It can't be installed here.
    """
    digest = hashlib.sha256(b"".join((FILES / name).read_bytes() for name in PINS)).hexdigest()
    folder = cache_folder() / "nwc" / digest[:16]
    node = installs.node()
    if not folder.exists():
        with installs.installing("Alby's SDK from npm", folder, report, takes="some seconds") as aside:
            for name in PINS:
                shutil.copy(FILES / name, aside / name)
            installs.node_modules(aside)
    return NwcRuntime(node=node, node_modules=folder / "node_modules")
