"""What an examination finds: `Finding`, its `Verdict`, and a bound on the time that each look may take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

from .._core.secret_text import without_passwords
from ..errors import RouteweilerError
from ..funding.worker_calls import NoThreadError, SilentError, result_of

T = TypeVar("T")


class Verdict(str, Enum):
    """How grave a finding is."""

    OK = "ok"
    WARNING = "warning"  #: paying works, or can't be judged; somebody should know
    WRONG = "wrong"  #: nothing can be paid until this is mended


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at. ``check`` is its stable name, ``what`` says what was found, ``advice`` what to do about it.

    ``advice`` is None where nothing is to be done; that of an OK finding may be left undone. It is meant for the command line: it
    names commands and variables. Neither text holds a secret.
    """

    check: str
    verdict: Verdict
    what: str
    advice: str | None = None


def ok(check: str, what: str, advice: str | None = None) -> Finding:
    """Return a finding about which nothing has to be done."""
    advice = None if advice is None else without_passwords(advice)
    return Finding(check=check, verdict=Verdict.OK, what=without_passwords(what), advice=advice)


def warning(check: str, what: str, advice: str) -> Finding:
    """Return a finding that somebody should know of."""
    return Finding(check=check, verdict=Verdict.WARNING, what=without_passwords(what), advice=without_passwords(advice))


def wrong(check: str, what: str, advice: str) -> Finding:
    """Return a finding that prevents paying."""
    return Finding(check=check, verdict=Verdict.WRONG, what=without_passwords(what), advice=without_passwords(advice))


def wrong_by(check: str, error: RouteweilerError) -> Finding:
    """Return the finding for an error that paying would raise."""
    return wrong(check, error.what.rstrip("."), error.shell_advice or error.advice or "Remove the cause.")


class TooSlowError(Exception):
    """A look didn't end in time. It goes on, or hangs, in its own thread."""


def within(timeout_s: float, look: Callable[[], T]) -> T:
    """Return the result of ``look``, which runs in a thread of its own: a disk, a name server or a wallet may hang.

    Raises: TooSlowError after ``timeout_s`` seconds. Whatever ``look`` raises.
    """
    try:
        return result_of(lambda _: look(), timeout_s=timeout_s)
    except SilentError:
        raise TooSlowError(f"no answer within {timeout_s:.3g} s") from None
    except NoThreadError:
        return look()
