"""Installs Alby's service SDK once, into a folder of Node's modules in the cache folder.

Knows the pins (`nwc/package-lock.json`). How the service is run is told in `nwc_server`. `python -m tests.regtest.build` installs
it as well.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from .build import BuildError, Report, cache_folder
from .server_builds import ServersMissingError, _node, _run

FILES = Path(__file__).parent / "nwc"
PINS = ("package.json", "package-lock.json")


class NwcMissingError(BuildError):
    """The service isn't installed and can't be: Node.js, npm or the network is missing. The text says which."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NwcRuntime:
    """What the service is run with."""

    node: Path
    node_modules: Path


def nwc_runtime(report: Report = print) -> NwcRuntime:
    """Return what the service is run with, installed first where it isn't there yet (some seconds).

    Raises:
        NwcMissingError: It can't be installed here.
    """
    digest = hashlib.sha256(b"".join((FILES / name).read_bytes() for name in PINS)).hexdigest()
    folder = cache_folder() / "nwc" / digest[:16]
    try:
        node = _node()
        if not folder.exists():
            _install(folder, report)
    except ServersMissingError as error:
        raise NwcMissingError(str(error)) from None
    return NwcRuntime(node=node, node_modules=folder / "node_modules")


def _install(folder: Path, report: Report) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise NwcMissingError("npm isn't installed, which Alby's SDK needs")
    report("installing Alby's SDK from npm (some seconds the first time)")
    started = time.monotonic()
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Made aside and renamed: a run at the same time never starts half an environment.
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="install-") as temporary:
        aside = Path(temporary) / "made"
        aside.mkdir()
        for name in PINS:
            shutil.copy(FILES / name, aside / name)
        # No install scripts: nothing is compiled, and no package fetches anything by itself.
        _run([npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"], aside)
        if not folder.exists():
            aside.rename(folder)
    report(f"installed Alby's SDK in {time.monotonic() - started:.0f} s")
