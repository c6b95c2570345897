"""``python -m routeweiler_sync``: the command line. A file or folder where a command would stand is run as by ``run``."""

import os
import sys

from .cli import main

#: Endings of programs. Something with such an ending is run even if there is no such file: python then reports that.
_PROGRAMS = (".py", ".pyw", ".pyc", ".pyz")

given = sys.argv[1:]
if given and given[0] not in main.commands and (os.path.exists(given[0]) or given[0].endswith(_PROGRAMS)):
    given.insert(0, "run")
main(given, prog_name="routeweiler-sync")
