"""requests' own test suite, run in three forms: as it is, with `Routeweiler` in place of `Session`, and with our module's names.

    python -m tests.compat.requests_suite --form plain|session|names [pytest's arguments, e.g. -k cookies]

``plain``: what requests itself passes here, to compare with. ``session``: every session that is made, by whomever, is a
`Routeweiler`. ``names``: the suite's own ``import requests`` says ``import routeweiler_sync as requests``.

The suite is in requests' source distribution, which pip fetches; that and a virtual environment for it, with this checkout and
the requests (and all that requests and we stand on) of the running interpreter, are made once under `.build`. Knows how that is
made and how the suite is called; what is put in the place of what, and what makes a run honest, is `requests_suite_plugin`'s.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Literal

Form = Literal["plain", "session", "names"]
FORMS: tuple[Form, ...] = ("plain", "session", "names")

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parents[1]
BUILD = HERE / ".build"
PLUGINS = HERE / "suite_plugins"
#: What the suite itself wants, by its requirements-dev.txt; the older suites run with these as well.
NEEDS = ("pytest>=8,<10", "pytest-httpbin==2.1.0", "httpbin~=0.10.0", "pytest-mock", "trustme", "PySocks")
#: The suites before 2.32 have httpbin redirect to ``http://localhost:-1``, which a newer Werkzeug refuses to say.
NEEDS_BEFORE_2_32 = ("Flask<2.3", "Werkzeug<2.3")
#: Where a source distribution has requests itself.
SOURCES = ("src/", "requests/")
PIP_TIMEOUT_S = 600.0
#: The suite sleeps for 80 seconds, and computes for three.
SUITE_TIMEOUT_S = 600.0
ERROR_LINES = 30


class SuiteError(RuntimeError):
    """The suite couldn't be made ready or didn't come to its end; the text holds the end of the output."""


class SuiteUnavailableError(SuiteError):
    """pip can't fetch the suite: no index, or no such source distribution in it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ready:
    """An environment that the suite can run in, and the suite."""

    python: Path
    suite: Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What a run of the suite came to. ``outcomes``: test id to passed, failed, error, skipped, xfailed or xpassed."""

    form: Form
    exit_code: int
    outcomes: dict[str, str]
    #: Why a test was skipped or was expected to fail.
    reasons: dict[str, str]
    #: What makes the run void: traffic beyond loopback, a plain session, no session of ours.
    violations: list[str]
    #: Sessions made, requests sent through them, requests sent by their adapters.
    counts: dict[str, int]
    #: Import statements that were rewritten, by file.
    rewritten: dict[str, int]
    output: str = field(repr=False)

    def ids(self, *outcomes: str) -> set[str]:
        """The tests that came to one of ``outcomes``."""
        return {test for test, outcome in self.outcomes.items() if outcome in outcomes}


# -- making ready ----------------------------------------------------------------------------------------------------------------


def pins() -> list[str]:
    """This interpreter's versions of all that this package stands on, requests among them, as pip's constraints."""
    found: dict[str, str] = {}
    todo = ["requests", "routeweiler-sync"]
    while todo:
        name = re.sub(r"[-_.]+", "-", todo.pop()).lower()
        if name in found:
            continue
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # wanted on other systems only
        found[name] = distribution.version
        todo += [re.split(r"[^\w.-]", wanted, maxsplit=1)[0] for wanted in distribution.requires or () if "extra ==" not in wanted]
    found.pop("routeweiler-sync", None)
    return [f"{name}=={version}" for name, version in sorted(found.items())]


def make_ready() -> Ready:
    """The environment and the suite, made first where they aren't there yet (half a minute). SuiteError."""
    constraints = pins()
    version = metadata.version("requests")
    metadata_file = (CHECKOUT / "setup.cfg").read_text(encoding="utf-8")
    needs = NEEDS if tuple(map(int, version.split(".")[:2])) >= (2, 32) else (*NEEDS, *NEEDS_BEFORE_2_32)
    parts = [*constraints, *needs, metadata_file, str(CHECKOUT), sys.version, os.path.realpath(sys.executable)]
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
    folder = BUILD / f"requests-{version}-py{sys.version_info[0]}{sys.version_info[1]}-{key}"
    if not folder.exists():
        BUILD.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=BUILD, prefix="making-") as aside:
            made = Path(aside) / "made"
            _make(made, version, constraints, needs)
            try:
                made.rename(folder)
            except OSError:
                if not folder.exists():  # else another run was faster, and what it made is as good
                    raise
    return _ready_in(folder)


def _ready_in(folder: Path) -> Ready:
    scripts = "Scripts" if os.name == "nt" else "bin"
    return Ready(python=folder / "env" / scripts / "python", suite=folder / "suite")


def _make(folder: Path, version: str, constraints: Sequence[str], needs: Sequence[str]) -> None:
    folder.mkdir()
    sdist = folder / "sdist"
    try:
        _run(sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", "requests", "-d", str(sdist),
             f"requests=={version}")  # fmt: skip
    except SuiteError as error:
        raise SuiteUnavailableError(f"pip can't fetch the source distribution of requests {version}: {error}") from None
    _unpack(sdist, folder / "suite")
    _run(sys.executable, "-m", "venv", str(folder / "env"))
    pinned = folder / "constraints.txt"
    pinned.write_text("\n".join(constraints), encoding="utf-8")
    _run(str(_ready_in(folder).python), "-m", "pip", "install", "-q", "-c", str(pinned), "-e", str(CHECKOUT), *needs)


def _unpack(sdist: Path, suite: Path) -> None:
    """The tests and what they read; not the sources, for the installed requests is to be tested."""
    (archive,) = sdist.glob("requests-*.tar.gz")
    suite.mkdir()
    with tarfile.open(archive) as packed:
        for member in packed.getmembers():
            inside = member.name.partition("/")[2]
            target = (suite / inside).resolve()
            content = packed.extractfile(member) if member.isfile() else None
            if content is None or inside.startswith(SOURCES) or not target.is_relative_to(suite.resolve()):
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content.read())


def _run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PIP_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise SuiteError(f"{' '.join(command)} took more than {PIP_TIMEOUT_S:.0f} s") from error
    if done.returncode != 0:
        raise SuiteError(f"{' '.join(command)} ended with {done.returncode}:\n{_last_lines(done.stdout + done.stderr)}")


def _last_lines(output: str) -> str:
    return "\n".join(output.splitlines()[-ERROR_LINES:])


# -- rewriting -------------------------------------------------------------------------------------------------------------------


def _is_requests(module: str | None) -> bool:
    return module is not None and module.partition(".")[0] == "requests"


def _imports(source: str) -> Iterator[ast.Import | ast.ImportFrom]:
    """The statements of ``source`` that import requests or something in it, last first."""
    found = [
        node
        for node in ast.walk(ast.parse(source))
        if (isinstance(node, ast.Import) and any(_is_requests(alias.name) for alias in node.names))
        or (isinstance(node, ast.ImportFrom) and node.level == 0 and _is_requests(node.module))
    ]
    yield from sorted(found, key=lambda node: (node.lineno, node.col_offset), reverse=True)


def _renamed(alias: ast.alias) -> list[ast.alias]:
    """``alias``, of an import statement, with our module in the place of requests; the same name is bound."""
    if not _is_requests(alias.name):
        return [alias]
    ours = "routeweiler_sync" + alias.name.removeprefix("requests")
    if alias.asname or alias.name == "requests":
        return [ast.alias(ours, alias.asname or "requests")]
    return [ast.alias(ours), ast.alias("routeweiler_sync", "requests")]  # `import requests.adapters` binds `requests`


def rewrite(source: str) -> tuple[str, int]:
    """``source`` with each import of requests made one of routeweiler_sync, and how many statements that were.

    Nothing else changes, not even a line number.
    """
    lines = source.encode().splitlines(keepends=True)
    count = 0
    for node in _imports(source):
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        first, last = node.lineno - 1, node.end_lineno - 1
        before, after = lines[first][: node.col_offset], lines[last][node.end_col_offset :]
        text = b"".join(lines[first : last + 1])[node.col_offset : -len(after) or None]
        if isinstance(node, ast.ImportFrom):
            new = re.sub(rb"\Afrom(\s+)requests\b", rb"from\1routeweiler_sync", text)
        else:
            statement = ast.Import([ours for alias in node.names for ours in _renamed(alias)])
            new = ast.unparse(statement).encode() + b"\\\n" * text.count(b"\n")
        assert new != text
        lines[first : last + 1] = (before + new + after).splitlines(keepends=True)
        count += 1
    rewritten = b"".join(lines).decode()
    assert not list(_imports(rewritten))
    return rewritten, count


def _rewrite_all(suite: Path) -> dict[str, int]:
    counts = {}
    for path in sorted((suite / "tests").rglob("*.py")):
        rewritten, count = rewrite(path.read_text(encoding="utf-8"))
        if count:
            path.write_text(rewritten, encoding="utf-8")
            counts[path.relative_to(suite).as_posix()] = count
    return counts


# -- running ---------------------------------------------------------------------------------------------------------------------


def run(form: Form, ready: Ready, *arguments: str) -> Run:
    """The whole suite in ``form``, or what pytest's ``arguments`` leave of it. SuiteError where it doesn't come to an end."""
    with tempfile.TemporaryDirectory(prefix=f"requests-suite-{form}-") as folder:
        suite, report, home = Path(folder) / "suite", Path(folder) / "report.json", Path(folder) / "home"
        (home / "tmp").mkdir(parents=True)
        shutil.copytree(ready.suite, suite, symlinks=True)
        rewritten = _rewrite_all(suite) if form == "names" else {}
        command = [
            str(ready.python),
            "-m",
            "pytest",
            "-p",
            "requests_suite_plugin",
            "-p",
            "no:cacheprovider",
            "-ra",
            "--color=no",
            "tests",
        ]
        try:
            done = subprocess.run(
                [*command, *arguments],
                cwd=suite,
                env=_environ(form, report, home),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                text=True,
                encoding="utf-8",
                errors="replace",
                timeout=SUITE_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            output = error.stdout.decode("utf-8", "replace") if isinstance(error.stdout, bytes) else error.stdout or ""
            raise SuiteError(f"The suite ({form}) took more than {SUITE_TIMEOUT_S:.0f} s:\n{_last_lines(output)}") from error
        if not report.exists():
            raise SuiteError(f"The suite ({form}) ended with {done.returncode} and told nothing:\n{_last_lines(done.stdout)}")
        told = json.loads(report.read_text(encoding="utf-8"))
    return Run(form=form, exit_code=done.returncode, rewritten=rewritten, output=done.stdout, **told)


def _environ(form: Form, report: Path, home: Path) -> dict[str, str]:
    """The environment of a run: no proxy or netrc of the user's; ledger and trace go with the run, and the node is never asked."""
    foreign = re.compile(r"(ROUTEWEILER|LND|POLAR|PYTEST|REQUESTS|CURL)_.*|PYTHONPATH|NETRC|(\w+_)?PROXY", re.IGNORECASE)
    return {
        **{name: value for name, value in os.environ.items() if not foreign.fullmatch(name)},
        "HOME": str(home),
        "USERPROFILE": str(home),
        # Of its own, for requests unpacks files into it under names that don't tell one run's from another's.
        **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(home / "tmp")),
        "PYTHONPATH": str(PLUGINS),
        "PYTHONDONTWRITEBYTECODE": "1",
        "ROUTEWEILER_LEDGER": str(home / "ledger.db"),
        "ROUTEWEILER_TRACE": str(home / "trace.jsonl"),
        "LND_GRPC_HOST": "127.0.0.1:1",
        "LND_MACAROON_PATH": str(home / "readonly.macaroon"),
        "REQUESTS_SUITE_FORM": form,
        "REQUESTS_SUITE_REPORT": str(report),
    }


def main() -> int:
    """Run one form, print what pytest prints, end with its exit code."""
    parser = argparse.ArgumentParser(description="requests' own test suite; what else is given goes to pytest")
    parser.add_argument("--form", choices=FORMS, required=True)
    known, arguments = parser.parse_known_args()
    result = run(known.form, make_ready(), *arguments)
    print(result.output)
    for path, count in result.rewritten.items():
        print(f"{path}: {count} import statements rewritten")
    return result.exit_code


if __name__ == "__main__":
    sys.exit(main())
