"""Run all benchmarks, write their figures to one file, and the page that shows them.

    python -m benchmarks [--size short|full|tiny] [--install-peers] [--only NAME …] [--check]
    python -m benchmarks --page

The file is ``benchmarks/figures.json``, the page ``docs/reference/speed.md`` (`benchmarks.page`). ``--page`` writes the page alone,
from the file that is there. ``--only`` runs some anew, and leaves the figures of the others as they are.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import measure, page

FIGURES = Path(__file__).parent / "figures.json"
ROOT = Path(__file__).parent.parent
TIMEOUT_S = 1_800


def run_one(arguments: Sequence[str], size: str, more: Sequence[str]) -> dict[str, Any] | None:
    """Run one benchmark. Return its JSON; None if it failed, which it has said."""
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as folder:
        file = Path(folder) / "figures.json"
        command = [sys.executable, "-m", *arguments, "--size", size, "--json", str(file), *more]
        began_s = time.monotonic()
        subprocess.run(command, cwd=ROOT, timeout=TIMEOUT_S, check=False)
        print(f"[{' '.join(arguments)}: {time.monotonic() - began_s:.0f} s]\n", flush=True)
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is wanted. Return the exit code: 1 if a benchmark failed, or with ``--check`` if a goal isn't met."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--size", choices=measure.SIZES, default="short")
    parser.add_argument("--peers", metavar="FOLDER", help="as for benchmarks.purchase")
    parser.add_argument("--install-peers", action="store_true", help="as for benchmarks.purchase")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=[section.name for section in page.SECTIONS])
    parser.add_argument("--check", action="store_true", help="exit 1 if a goal isn't met")
    parser.add_argument("--page", action="store_true", help="run nothing, write the page anew")
    parser.add_argument("--into", type=Path, default=FIGURES, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    found: dict[str, Any] = json.loads(given.into.read_text(encoding="utf-8")) if given.into.exists() else {}
    failed = []
    for section in page.SECTIONS if not given.page else []:
        if given.only and section.name not in given.only:
            continue
        more = ["--peers", given.peers] if given.peers and section.peers else []
        more += ["--install-peers"] if given.install_peers and section.peers else []
        figures = run_one(section.module, given.size, more)
        if figures is None:
            failed.append(section.name)
        else:
            found[section.name] = figures
    given.into.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if given.into == FIGURES:
        page.PAGE.write_text(page.text(found), encoding="utf-8")
    missed = [f"{name}: {figure['name']}" for name, each in found.items() for figure in each["figures"] if figure["met"] is False]
    for line in [*(f"failed: {name}" for name in failed), *(f"goal missed: {line}" for line in missed)]:
        print(line, file=sys.stderr)
    return int(bool(failed) or (given.check and bool(missed)))


if __name__ == "__main__":
    sys.exit(main())
