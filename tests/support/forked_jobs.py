"""A process that has everything imported and opens nothing, and forks a child for each job: a death costs milliseconds."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

from routeweiler_sync._core.preload import prepare_to_pay


def serve(do: Callable[..., Any], *, tells_pid: bool = False) -> None:
    """Fork a child for each line of JSON, which has the arguments of ``do``, and answer with its exit code.

    ``tells_pid``: its pid is told before, so that somebody can kill it.
    """
    prepare_to_pay()
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                do(**json.loads(line))
                code = 0
            finally:
                os._exit(code)
        if tells_pid:
            print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
