"""``python -m routeweiler_sync``: the command line; a file or a folder in a command's place is run."""

import os
import sys

from .cli import main

#: What python is given to run: where there is no such file, python says so.
_PROGRAMS = (".py", ".pyw", ".pyc", ".pyz")

given = sys.argv[1:]
if given and given[0] not in main.commands and (os.path.exists(given[0]) or given[0].endswith(_PROGRAMS)):
    given.insert(0, "run")
main(given, prog_name="routeweiler-sync")
