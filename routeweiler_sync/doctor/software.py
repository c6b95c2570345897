"""The versions of Python and of the libraries, and whether those work that paying needs."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Iterator
from importlib import metadata

from .._version import VERSION
from .findings import Finding, ok, wrong

#: By package: the oldest version that works, the first newer one that doesn't, and why. As in setup.cfg; a test compares them.
NEEDS: dict[str, tuple[str, str | None]] = {
    "requests": ("2.28", None),
    "urllib3": ("1.26.5", None),
    "grpcio": ("1.60", None),
    "protobuf": ("4.25", None),
    "bolt11": ("2.1.1", None),
    "bitstring": ("4.2.2", "5"),
    "pymacaroons": ("0.13.0", None),
    "tenacity": ("8.2", None),
    "platformdirs": ("3.0", None),
    "click": ("8.0", None),
    "rich": ("13.0", None),
}
#: grpcio needs another oldest version from this Python on.
GRPCIO_ON_NEW_PYTHONS = ((3, 13), "1.66.2")
PYTHON_MIN = (3, 10)
#: Why a version is known to be bad, where that isn't just its age.
_WHY = {"bitstring": "bolt11 can't read invoices with it"}
#: A signed invoice of BOLT 11's examples: if it can be read, the libraries that read invoices work.
INVOICE = (
    "lnbc2500u1pvjluezsp5zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zygspp5qqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqypqdq5xysxxatsyp3k7"
    "enxv4jsxqzpu9qrsgquk0rl77nj30yxdy8j9vdx85fkpmdla2087ne0xh8nhedh8w27kyke0lp53ut353s06fv3qfegext0eh0ymjpf39tuven09sam30g4vgpfna3rh"
)


def findings() -> Iterator[Finding]:
    """Yield what is found about Python and the libraries."""
    python = f"{platform.python_implementation()} {platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.version_info < PYTHON_MIN:
        yield wrong("python", f"{python} is too old", f"Use Python {'.'.join(map(str, PYTHON_MIN))} or newer.")
    else:
        yield ok("python", f"{python}; routeweiler-sync {VERSION}")
    installed = {name: _version(name) for name in NEEDS}
    bad = list(_bad(installed))
    works = _fault()
    shown = ", ".join(f"{name} {version or 'missing'}" for name, version in installed.items())
    if bad:
        needs = " ".join(f"'{_requirement(name)}'" for name, _ in bad)
        yield wrong("libraries", "; ".join(why for _, why in bad), f"Run: {_pip()} install {needs}")
    elif works is not None:
        yield wrong("libraries", works, f"Run: {_pip()} install --force-reinstall {' '.join(NEEDS)}")
    else:
        yield ok("libraries", shown)


def _bad(installed: dict[str, str | None]) -> Iterator[tuple[str, str]]:
    """Yield the packages that are missing, too old or known to be bad, each with a sentence about it."""
    for name, version in installed.items():
        low, high = _bounds(name)
        if version is None:
            yield name, f"{name} is missing"
        elif _number(version) < _number(low):
            yield name, f"{name} {version} is too old: {low} is needed"
        elif high is not None and _number(version) >= _number(high):
            yield name, f"{name} {version} doesn't work: {_WHY.get(name, f'it must be older than {high}')}"


def _bounds(name: str) -> tuple[str, str | None]:
    low, high = NEEDS[name]
    since, newer = GRPCIO_ON_NEW_PYTHONS
    return (newer if name == "grpcio" and sys.version_info >= since else low), high


def _requirement(name: str) -> str:
    low, high = _bounds(name)
    return f"{name}>={low}" + (f",<{high}" if high else "")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _number(version: str) -> tuple[int, ...]:
    """Return the numbers of a version up to its first letter: pre-releases count as what they lead to."""
    found = re.match(r"\d+(?:\.\d+)*", version)
    numbers = tuple(int(part) for part in found[0].split(".")) if found else ()
    return (*numbers, 0, 0, 0)[: max(3, len(numbers))]


def _fault() -> str | None:
    """Return why the libraries that paying needs don't work; None if they do."""
    try:
        from .._core.preload import prepare_to_pay
        from ..protocol.invoice import decode_invoice

        prepare_to_pay()
        decode_invoice(INVOICE)
    except Exception as error:  # noqa: BLE001 - a broken library may raise anything
        return f"what paying needs doesn't work: {type(error).__name__}: {error}"[:300]
    return None


def _pip() -> str:
    return "python -m pip"
