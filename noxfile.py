"""The lanes: sets of checks that are run by name.

    nox                       lint and fast: while you work
    nox -s full               all tests: before a change lands
    nox --list                every lane with its purpose
    nox -s fast -- -k budget  what stands after -- goes to pytest

Each lane has a virtual environment below ``.nox``. The first run of a lane makes it; later runs reuse it.
"""

from __future__ import annotations

import os

import nox

nox.options.sessions = ["lint", "fast"]
nox.options.reuse_venv = "yes"
nox.options.default_venv_backend = "virtualenv"  # these have pip, which .ci/types calls

FAST = ("-m", "not slow and not real and not model", "tests/unit", "tests/component")


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, types, and which folder imports which."""
    session.install("-e", ".[test,lint]")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")
    session.run("lint-imports")


@nox.session
def fast(session: nox.Session) -> None:
    """Run the quick unit and component tests on all cores. Limit: a minute on two cores."""
    session.install("-e", ".[test]")
    session.run("python", "-m", "pytest", "-n", "auto", "--durations=5", *FAST, *session.posargs)


@nox.session
def full(session: nox.Session) -> None:
    """Run all tests. Without Go or without PostgreSQL the tests that need them are skipped."""
    session.install("-e", ".[test]")
    session.run("python", "-m", "pytest", "-n", "auto", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the site, check its links, and run every code block of README and docs. Names of pages stand after -- -k."""
    session.install("-e", ".[test,docs]")
    session.run("python", "-m", "sphinx", "-W", "--keep-going", "-n", "-q", "-b", "html", "docs", "docs/_build/html")
    session.run("python", "-m", "pytest", "-n", "auto", "tests/docs", *session.posargs)


@nox.session
def types(session: nox.Session) -> None:
    """Check the programs of tests/typing against the built wheel, with mypy, pyright and several versions of requests."""
    session.install("-e", ".[lint]")
    session.run("python", ".ci/types")


@nox.session
def release(session: nox.Session) -> None:
    """Build the source distribution and the wheel, check them, and try the wheel on each Python. Uploads nothing."""
    session.install("-e", ".[release]")
    session.run("python", ".ci/release", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Run the benchmarks with small numbers. They show that the benchmarks work, not whether a change made anything slower."""
    session.install("-e", ".[postgres,testing]")
    session.run("python", "-m", "benchmarks", "--size", "tiny", "--into", os.path.join(session.create_tmp(), "figures.json"))


@nox.session
def cover(session: nox.Session) -> None:
    """Show the lines that the quick tests don't run, or those that the tests named after -- don't. No percentage is required."""
    session.install("-e", ".[test]")
    # Not `pytest --cov`: pytest imports the package, for its fixtures, before that begins to measure.
    session.run("coverage", "run", "-m", "pytest", *(session.posargs or FAST))
    session.run("coverage", "report")
