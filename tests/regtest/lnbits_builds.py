"""Installs LNbits once, into a virtual environment of its own in the cache folder.

Knows the pins (`lnbits/requirements.txt`) and which Pythons LNbits runs on. How it is run is told in `lnbits_server`.
`python -m tests.regtest.build` installs it as well.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from . import installs
from .build import Report, cache_folder
from .installs import InstallError

PINS = Path(__file__).parent / "lnbits" / "requirements.txt"
#: LNbits 1.6 runs on 3.10 to 3.12; what is pinned is for these two.
PYTHONS = ((3, 11), (3, 12))


def lnbits_python(report: Report = print) -> Path:
    """Return the interpreter of the environment with LNbits, installed first where it isn't there yet (a minute).

    Raises:
        InstallError: It can't be installed here.
    """
    python = _python()
    version = subprocess.run(
        [python, "-c", "import sys; print(sys.version)"], capture_output=True, text=True, check=True, timeout=60
    )
    digest = hashlib.sha256(version.stdout.encode() + PINS.read_bytes()).hexdigest()
    folder = cache_folder() / "lnbits" / digest[:16]
    if not folder.exists():
        with installs.installing("LNbits from PyPI", folder, report, takes="a minute") as aside:
            installs.venv(python, PINS, aside)
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
    raise InstallError(f"LNbits needs Python {' or '.join('.'.join(map(str, version)) for version in PYTHONS)}")
