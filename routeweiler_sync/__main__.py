"""The command line, as ``routeweiler-sync`` or ``python -m routeweiler_sync``.

A file or folder where a command would stand is run as by ``run``, in the second form.
"""

import os
import sys
from typing import NoReturn

from ._core import early_stop

#: Endings of programs. Something with such an ending is run even if there is no such file: python then reports that.
_PROGRAMS = (".py", ".pyw", ".pyc", ".pyz")


def start() -> NoReturn:
    """Run the command in the arguments, and end the process with its exit code."""
    from .cli import main, stop_signal

    stop_signal.is_process = True
    early_stop.end()
    given = sys.argv[1:]
    may_be_program = __name__ == "__main__" and given and given[0] not in main.commands
    if may_be_program and (os.path.exists(given[0]) or given[0].endswith(_PROGRAMS)):
        given.insert(0, "run")
    sys.exit(main(given, prog_name="routeweiler-sync"))


if __name__ == "__main__":
    start()
