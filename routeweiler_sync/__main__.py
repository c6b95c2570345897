"""``python -m routeweiler_sync``: the command line."""

from .cli import main

main(prog_name="routeweiler-sync")
