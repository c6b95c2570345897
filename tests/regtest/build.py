"""Builds the real lnd, lncli, btcd, btcctl and aperture, once, into a cache folder.

Knows the versions (pinned by `tools/*/go.mod` and `go.sum`), how Go is called and where the binaries are kept. What they are run
with is told in `world`. `python -m tests.regtest.build` builds without running a test, on a Python with nothing installed, and
installs the servers of `server_builds` and the other programs that tests need.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

TOOLS = Path(__file__).parent / "tools"
#: Two modules, for the dependency graphs of lnd and aperture clash. A module each and not `go install pkg@version`, for lnd's
#: go.mod has replace lines, which only a main module may give.
PACKAGES = {
    "lnd": (
        "github.com/lightningnetwork/lnd/cmd/lnd",
        "github.com/lightningnetwork/lnd/cmd/lncli",
        "github.com/btcsuite/btcd",
        "github.com/btcsuite/btcd/cmd/btcctl",
    ),
    "aperture": ("github.com/lightninglabs/aperture/cmd/aperture",),
}
STAMP = "versions.sha256"
BUILD_TIMEOUT_S = 1800.0
PROGRESS_EVERY_S = 15.0
ERROR_LINES = 30

Report = Callable[[str], None]


class BuildError(RuntimeError):
    """The binaries couldn't be built; the text holds the end of Go's output."""


class GoMissingError(BuildError):
    """There is no Go to build with, and no binaries are there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Binaries:
    """Paths of the programs that make a world."""

    lnd: Path
    lncli: Path
    btcd: Path
    btcctl: Path
    aperture: Path

    @classmethod
    def in_folder(cls, folder: Path) -> Binaries | None:
        """The binaries of `folder`, or None where one is missing."""
        paths = {name: folder / name for name in cls.__slots__}
        return cls(**paths) if all(os.access(path, os.X_OK) for path in paths.values()) else None


def versions() -> str:
    """A hash over the go.mod and go.sum files: it changes with every version that is pinned."""
    digest = hashlib.sha256()
    for module in sorted(PACKAGES):
        for name in ("go.mod", "go.sum"):
            digest.update((TOOLS / module / name).read_bytes())
    return digest.hexdigest()


def binaries(report: Report = print) -> Binaries:
    """The binaries, built first where they aren't there yet (some 7 minutes on two cores, seconds with a warm Go cache).

    They lie in `$ROUTEWEILER_REGTEST_BIN` if that is set, else in the user's cache folder under `versions()`. Binaries that
    somebody put into `$ROUTEWEILER_REGTEST_BIN` by hand are taken as they are; what was built there for other versions is built
    again. Raises GoMissingError or BuildError.
    """
    chosen = os.environ.get("ROUTEWEILER_REGTEST_BIN")
    folder = Path(chosen) if chosen else cache_folder() / versions()[:16]
    stamp = folder / STAMP
    found = Binaries.in_folder(folder)
    if found and (stamp.read_text() == versions() if stamp.exists() else bool(chosen)):
        return found
    go = shutil.which("go")
    if go is None:
        raise GoMissingError(f"Go isn't installed, and {folder} lacks some of lnd, lncli, btcd, btcctl, aperture")
    folder.mkdir(parents=True, exist_ok=True)
    # Built aside and moved in one by one: a run at the same time never starts half a binary.
    with tempfile.TemporaryDirectory(dir=folder, prefix="build-") as aside:
        for module, packages in PACKAGES.items():
            _build(go, module, packages, Path(aside), report)
        for binary in Path(aside).iterdir():
            binary.replace(folder / binary.name)
    stamp.write_text(versions())
    built = Binaries.in_folder(folder)
    if built is None:
        raise BuildError(f"Go ended well, but {folder} lacks a binary")
    return built


def cache_folder() -> Path:
    """Return the folder of all that the tests with real programs have built and installed."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "routeweiler-sync" / "regtest"


def _build(go: str, module: str, packages: tuple[str, ...], target: Path, report: Report) -> None:
    names = ", ".join(package.rpartition("/")[2] for package in packages)
    report(f"building {names} with Go (minutes the first time)")
    started = time.monotonic()
    with subprocess.Popen(
        [go, "build", "-v", "-trimpath", "-o", f"{target}{os.sep}", *packages],
        cwd=TOOLS / module,
        env={**os.environ, "CGO_ENABLED": "0", "GOWORK": "off"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        guard = threading.Timer(BUILD_TIMEOUT_S, process.kill)
        guard.daemon = True
        guard.start()
        try:
            lines = _follow(process, report)
        except BaseException:
            process.kill()
            raise
        finally:
            guard.cancel()
    elapsed_s = time.monotonic() - started
    if process.returncode != 0:
        last = "\n".join(lines[-ERROR_LINES:])
        raise BuildError(f"go build of {names} failed with {process.returncode} after {elapsed_s:.0f} s:\n{last}")
    report(f"built {names} in {elapsed_s:.0f} s")


def _follow(process: subprocess.Popen[str], report: Report) -> list[str]:
    assert process.stderr is not None
    lines: list[str] = []
    told = time.monotonic()
    for line in process.stderr:
        lines.append(line.rstrip())
        if time.monotonic() - told > PROGRESS_EVERY_S:
            told = time.monotonic()
            report(f"  {len(lines)} packages, now {lines[-1]}")
    return lines


if __name__ == "__main__":
    from tests.frameworks.builds import FRAMEWORKS, python_with

    from .lnbits_builds import lnbits_python
    from .nwc_builds import nwc_runtime
    from .server_builds import runtimes

    print(binaries())
    print(runtimes())
    print(lnbits_python())
    print(nwc_runtime())
    for framework in FRAMEWORKS:
        print(python_with(framework))
