"""Installs the agents' frameworks once, into virtual environments of their own in the cache folder.

Two environments, because CrewAI wants other versions of what the others need. Their pins leave out what the tests don't load, such
as the databases of vectors that CrewAI can use. `python -m tests.regtest.build` installs both (450 MB).
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from tests.regtest import installs
from tests.regtest.build import Report, cache_folder
from tests.regtest.installs import InstallError

PINS = Path(__file__).parent / "pins"
#: What is pinned has wheels for these. The environments are made for the Python that runs the tests: what our own package needs is
#: taken from there.
PYTHONS = ((3, 11), (3, 12), (3, 13))
#: Each framework's environment.
FRAMEWORKS = {
    "crewai": "crewai",
    "langchain": "frameworks",
    "openai_agents": "frameworks",
    "pydantic_ai": "frameworks",
    "smolagents": "frameworks",
}


def python_with(framework: str, report: Report = print) -> Path:
    """Return the interpreter of the environment with ``framework``, installed first where it isn't there yet (half a minute).

    Raises: InstallError if it can't be installed here.
    """
    if sys.version_info[:2] not in PYTHONS:
        raise InstallError("the frameworks' pins are for Python 3.11 to 3.13")
    environment = FRAMEWORKS[framework]
    pins = PINS / f"{environment}.txt"
    digest = hashlib.sha256(sys.version.encode() + pins.read_bytes()).hexdigest()
    folder = cache_folder() / "agents" / f"{environment}-{digest[:16]}"
    if not folder.exists():
        with installs.installing(f"{environment} for agents from PyPI", folder, report, takes="half a minute") as aside:
            installs.venv(sys.executable, pins, aside, "--no-compile")  # the tests load a small part
    return folder / "venv" / "bin" / "python"
