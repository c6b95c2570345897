"""Outlives a test run that was killed, and kills what it started: no lnd is left behind, whatever ends the run.

Run as a program with a pipe from the test run as its standard input. The lines: `add PGID`, `drop PGID`, `folder PATH`. At the end
of the pipe, which also the death of the run brings, every group that wasn't dropped is killed and the folders are removed.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from contextlib import suppress


def main() -> None:
    groups: set[int] = set()
    folders: list[str] = []
    for line in sys.stdin:
        order, _, what = line.rstrip("\n").partition(" ")
        if order == "add":
            groups.add(int(what))
        elif order == "drop":
            groups.discard(int(what))
        else:
            folders.append(what)
    for group in groups:
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
