"""What the commands on a ledger share: the option ``--ledger``, opening it, and finding a payment by the start of its hash.

Nothing here creates a ledger, but for `opened_ledger` with ``create=True``.
"""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click

from ..config import env_settings
from ..errors import BudgetError, LedgerError
from .outcome import exit_for, printable, text_of
from .tables import print_line

if TYPE_CHECKING:
    from ..ledger.ledger import Ledger
    from ..ledger.types import PaymentRow

#: The fewest hex digits that name a payment.
HASH_DIGITS_MIN = 8
#: How many payments an ambiguous hash lists.
AMBIGUOUS_SHOWN_MAX = 8

ledger_option = click.option(
    "--ledger", metavar="URL", help="Path or URL of the ledger. Default: ROUTEWEILER_LEDGER, else the user's own ledger."
)
archive_option = click.option(
    "--archive", "archives", metavar="FILE", multiple=True, help="An archive of this ledger (payments archive); repeat for several."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print a JSON list of objects.")


@contextlib.contextmanager
def reading(url: str | None) -> Iterator[tuple[Ledger, bool]]:
    """Open a ledger to read it, and close it after use. Yield it, and whether it exists; if it doesn't, it mustn't be read.

    ``url``: None means the environment's ledger. Errors of the ledger, inside the ``with`` too, become a message and an exit code.
    """
    from ..ledger.ledger import Ledger

    try:
        with contextlib.closing(Ledger.open(env_settings.ledger_url() if url is None else url)) as ledger:
            yield ledger, ledger.exists()
    except BudgetError as error:
        raise click.UsageError(printable(text_of(error))) from None
    except LedgerError as error:
        click.echo(printable(text_of(error)), err=True)
        raise click.exceptions.Exit(exit_for(error, paid=False)) from None


@contextlib.contextmanager
def opened_ledger(url: str | None, *, create: bool = False) -> Iterator[Ledger]:
    """Open a ledger as `reading` does. Raises: click.UsageError if it doesn't exist, unless ``create`` allows that."""
    with reading(url) as (ledger, exists):
        if not exists and not create:
            raise click.UsageError(f"{no_ledger_at(ledger)}: nothing was bought yet.")
        yield ledger


def opened_archives(files: Sequence[str]) -> list[Ledger]:
    """Return the archives ``files``, opened as ledgers.

    Raises: click.UsageError if one doesn't exist, or is no archive; LedgerError for a name that no ledger can have.
    """
    from ..ledger.ledger import Ledger

    opened = {archive.url: archive for archive in map(Ledger.open, files)}
    for url, archive in opened.items():
        if not archive.is_archive():
            raise click.UsageError(f"{printable(url)} is no archive of payments: routeweiler-sync payments archive makes one")
    return list(opened.values())


def no_ledger_at(ledger: Ledger) -> str:
    """Return a clause for a ledger that doesn't exist."""
    return f"there is no ledger at {printable(ledger.url)}"


def nothing_bought(ledger: Ledger, *, exists: bool) -> str:
    """Return the sentence for a ledger without payments."""
    if exists:
        return f"The ledger {ledger.url} holds no payment: nothing was bought yet."
    return f"T{no_ledger_at(ledger)[1:]}: nothing was bought yet."


@contextlib.contextmanager
def named_payment(given: str, url: str | None) -> Iterator[tuple[Ledger, PaymentRow]]:
    """Open the ledger, and yield it with the payment whose hash begins with ``given``, hex digits in any case.

    Raises: click.UsageError if ``given`` isn't the start of a hash, or not of exactly one payment's.
    """
    beginning = given.strip().lower().rstrip(".…")  # as a table on a terminal shows it
    if not re.fullmatch(rf"[0-9a-f]{{{HASH_DIGITS_MIN},64}}", beginning):
        raise click.UsageError(
            f"a payment is named by the first digits of its payment hash, at least {HASH_DIGITS_MIN} of the 64 hex digits: "
            "routeweiler-sync payments list shows them"
        )
    with opened_ledger(url) as ledger:
        found = ledger.payments_named(beginning, AMBIGUOUS_SHOWN_MAX + 1)
        if not found and ledger.archived(beginning):
            raise click.UsageError(f"payment {beginning} was moved to an archive: name that one instead, by --ledger FILE")
        if not found:
            raise click.UsageError(f"{printable(ledger.url)} has no payment {beginning}")
        if len(found) > 1:
            for row in found[:AMBIGUOUS_SHOWN_MAX]:
                print_line(f"{row.payment_hash}  {row.origin}", err=True)
            many = f"more than {AMBIGUOUS_SHOWN_MAX}" if len(found) > AMBIGUOUS_SHOWN_MAX else str(len(found))
            raise click.UsageError(f"{many} payments begin with {beginning}: give more digits. Nothing was changed.")
        yield ledger, found[0]


def command_text(*words: str, ledger: str | None) -> str:
    """Return a command to copy, which names the same ``--ledger`` if one was given: the URL of a database without its password."""
    from ..ledger.postgres import url

    if ledger is not None and ledger.partition("://")[0] in url.SCHEMES:
        ledger = url.read_url(ledger).url
    return shlex.join(["routeweiler-sync", *words, *([] if ledger is None else ["--ledger", ledger])])
