"""Installs LNbits once, into a virtual environment of its own in the cache folder.

Knows the pins (`lnbits/requirements.txt`) and which Pythons LNbits runs on. How it is run is told in `lnbits_server`.
`python -m tests.regtest.build` installs it as well.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from .build import BuildError, Report, cache_folder
from .server_builds import ServersMissingError, _run

PINS = Path(__file__).parent / "lnbits" / "requirements.txt"
#: LNbits 1.6 runs on 3.10 to 3.12; what is pinned is for these two.
PYTHONS = ((3, 11), (3, 12))


class LnbitsMissingError(BuildError):
    """LNbits isn't installed and can't be: a Python for it or the network is missing. The text says which."""


def lnbits_python(report: Report = print) -> Path:
    """Return the interpreter of the environment with LNbits, installed first where it isn't there yet (a minute).

    Raises:
        LnbitsMissingError: It can't be installed here.
    """
    python = _python()
    version = subprocess.run(
        [python, "-c", "import sys; print(sys.version)"], capture_output=True, text=True, check=True, timeout=60
    )
    digest = hashlib.sha256(version.stdout.encode() + PINS.read_bytes()).hexdigest()
    folder = cache_folder() / "lnbits" / digest[:16]
    if not folder.exists():
        _install(python, folder, report)
    return folder / "venv" / "bin" / "python"


def _python() -> str:
    """Return a Python that LNbits runs on: this one, or one that is found by its name."""
    if sys.version_info[:2] in PYTHONS:
        return sys.executable
    for version in PYTHONS:
        found = shutil.which(f"python{version[0]}.{version[1]}")
        # A shim of pyenv may be there for a Python that isn't.
        if found and subprocess.run([found, "--version"], capture_output=True, check=False, timeout=60).returncode == 0:
            return found
    raise LnbitsMissingError(f"LNbits needs Python {' or '.join('.'.join(map(str, version)) for version in PYTHONS)}")


def _install(python: str, folder: Path, report: Report) -> None:
    report("installing LNbits from PyPI (a minute the first time)")
    started = time.monotonic()
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Made aside and renamed: a run at the same time never starts half an environment. What is run is `bin/python`, which is a link
    # and can be moved; the other programs of the environment can't.
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="install-") as temporary:
        aside = Path(temporary) / "made"
        aside.mkdir()
        try:
            _run([python, "-m", "venv", "venv"], aside)
            _run(["venv/bin/python", "-m", "pip", "install", "-q", "--no-deps", "-r", str(PINS)], aside)
        except ServersMissingError as error:
            raise LnbitsMissingError(str(error)) from None
        if not folder.exists():
            aside.rename(folder)
    report(f"installed LNbits in {time.monotonic() - started:.0f} s")
