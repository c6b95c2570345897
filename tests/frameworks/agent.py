"""Runs the code that docs/how-to/frameworks.md has for a framework, with a model that follows a script.

    python agent.py FRAMEWORK ROUNDS HEARD

This runs in the environment of the framework. ROUNDS is JSON: a list of rounds, each a list of the arguments of the calls that the
model makes. What the model has heard by the end, as one text, is written to the file HEARD. Only this machine may be contacted.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import socket
import sys
from pathlib import Path
from typing import Any

#: What costs more than the page lets a call spend.
GOLD = re.compile(r'[^"]*/gold')
PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "frameworks.md"


def documented(framework: str) -> str:
    """Return the code of the page for ``framework``."""
    code = PAGE.read_text(encoding="utf-8").partition(f"<!-- code: {framework} -->\n```python\n")[2].partition("```")[0]
    assert code, f"no code for {framework} in {PAGE.name}"
    return code


def stay_on_this_machine() -> None:
    """Refuse connections to other machines, as frameworks make to tell how they are used, and the lookup of their names."""
    connect, look_up = socket.socket.connect, socket.getaddrinfo

    def refuse_unless_local(host: Any) -> None:
        if host not in (None, "127.0.0.1", "::1", "localhost", b"127.0.0.1"):
            sys.stderr.write(f"refused: {host}\n")
            raise ConnectionRefusedError(f"the tests contact this machine only, not {host}")

    def connect_here(self: socket.socket, address: Any) -> None:
        if self.family != getattr(socket, "AF_UNIX", None):
            refuse_unless_local(address[0])
        connect(self, address)

    def look_up_here(host: Any, *args: Any, **kwargs: Any) -> Any:
        refuse_unless_local(host)
        return look_up(host, *args, **kwargs)

    socket.socket.connect = connect_here  # type: ignore[method-assign]
    socket.getaddrinfo = look_up_here


def main(framework: str, rounds: str, heard: str) -> None:
    stay_on_this_machine()
    models = importlib.import_module(f"tests.frameworks.models.{framework}")
    model = models.Scripted(rounds=json.loads(rounds))
    code = documented(framework)
    if framework == "crewai":  # it may keep the answers of tools, and is asked to: those of this one aren't kept
        code = code.replace("tasks=[task])", "tasks=[task], cache=True)")
        assert "cache=True" in code
    program: dict[str, Any] = {"__name__": "__main__", "model": model}
    exec(compile(code, PAGE.name, "exec"), program)
    Path(heard).write_text(model.heard, encoding="utf-8")
    if framework == "smolagents":
        with program["Session"]() as session:
            models.code_against(program["fetch_tool"](session, max_sats_per_call=50), session, GOLD.search(rounds)[0])


if __name__ == "__main__":
    sys.path.extend(json.loads(os.environ["SYS_PATH_OF_TESTS"]))  # after the framework's own: their versions may differ
    main(*sys.argv[1:])
