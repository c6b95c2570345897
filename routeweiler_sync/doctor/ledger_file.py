"""Whether the ledger can be used, and what is unfinished in it.

Nothing is changed: a ledger that isn't there isn't created, and one of an older schema isn't opened, which would migrate it.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from .._core.deadline import patience
from .._core.durations import in_words
from .._core.files import printable, quoted
from .._core.money import sats
from ..errors import LedgerError
from ..funding.replies import WalletReply
from ..ledger.store import SCHEMA_VERSION
from .findings import Finding, TooSlowError, ok, warning, within, wrong, wrong_by

if TYPE_CHECKING:
    from ..ledger.ledger import Ledger
    from ..ledger.types import EnvelopeRow, PaymentRow
    from .wallets import Examination

_SQLITE = "sqlite:///"
#: Less room than this on the ledger's disk is worth a warning.
FREE_BYTES_MIN = 50 * 2**20
#: File systems over a network, where SQLite's locks don't hold (SQLite, "How To Corrupt An SQLite Database File", 2.1).
_REMOTE = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "fuse.sshfs", "afs", "ceph", "glusterfs", "fuse.glusterfs"})
#: How many unfinished payments are listed, and asked about.
ROWS_MAX = 5
#: A payment that is in flight for so long without an HTLC isn't looking for its first route any more.
ORPHAN_S = 600
#: A row from the future by more than this shows that a clock was set back.
AHEAD_S = 300


class Look:
    """A look at one ledger. The attributes are known after `findings` has ended.

    ``is_readable``: it could be read. ``is_new``: there is none yet. ``envelopes`` are its envelopes by id.
    """

    def __init__(self, ledger: Ledger, *, look_s: float, now: Callable[[], float]) -> None:
        self.ledger, self._look_s, self._now = ledger, look_s, now
        self.is_readable = self.is_new = False
        self.envelopes: dict[str, EnvelopeRow] = {}

    def findings(self) -> Iterator[Finding]:
        """Yield what is found about the ledger's file or database."""
        try:
            yield from within(self._look_s * 2, lambda: list(self._looked()))
        except TooSlowError as error:
            what = f"the ledger {self.ledger.url} can't be read: {error}"
            yield wrong("ledger", what, "Look whether its disk or database hangs, or whether another program holds its lock.")
        except LedgerError as error:
            yield wrong_by("ledger", error)
        except OSError as error:
            yield wrong("ledger", f"the ledger {self.ledger.url} can't be read: {error}", "Let this user read and write it.")

    def _looked(self) -> Iterator[Finding]:
        url = self.ledger.url
        path = Path(url.removeprefix(_SQLITE)) if url.startswith(_SQLITE) else None
        where = printable(path) if path is not None else url
        with patience(self._look_s):
            exists, version = self.ledger.exists(), self.ledger.schema_version()
        if not exists:
            self.is_new = True
            said = "the database answers, and the first payment will create the ledger in it: nothing was bought yet"
            yield _new(path) if path is not None else ok("ledger", f"{where}: {said}")
            return
        if 0 < version < SCHEMA_VERSION:
            what = f"{where} has schema {version}; the next payment brings it to {SCHEMA_VERSION}, so it wasn't opened"
            yield warning("ledger", what, "Upgrade all programs that use it: older versions can't read it after that.")
            return
        with patience(self._look_s), warnings.catch_warnings(record=True):
            warnings.simplefilter("always")  # a file that isn't private is told of below
            self.ledger.check_writable()
            self.envelopes = {each.id: each for each in self.ledger.envelopes()}
            newest = next(self.ledger.payments(newest_first=True), None)
        self.is_readable = True
        about = f"{where}, schema {SCHEMA_VERSION}"
        if path is None:
            yield ok("ledger", f"{about}; readable and writable")
        else:
            yield _file(path, about)
            yield from _disk(path)
        if newest is not None and newest.created_at.timestamp() > self._now() + AHEAD_S:
            ahead = in_words(newest.created_at.timestamp() - self._now())
            what = f"the ledger's newest payment is from a time {ahead} ahead of this machine's clock"
            yield warning("clock", what, "Set this machine's clock. Limits of an hour and a day hold for longer till then.")


def unfinished(ledger: Ledger, paying: Examination | None, *, look_s: float, now: Callable[[], float]) -> Iterator[Finding]:
    """Yield what is unfinished, and what its wallet says about it."""

    def read() -> list[PaymentRow]:
        with patience(look_s):
            return ledger.unfinished()

    try:
        rows = within(look_s * 2, read)
    except (LedgerError, TooSlowError) as error:
        yield wrong("payments", f"the unfinished payments can't be read: {error}", "Look at the ledger.")
        return
    if not rows:
        yield ok("payments", "none is unfinished")
        return
    for row in rows[:ROWS_MAX]:
        said, advice = _outcome(row, paying, now())
        age = in_words(max(now() - row.created_at.timestamp(), 0))
        what = (
            f"unfinished for {age}: {sats(row.amount_msat)} to {row.origin}, payment {row.payment_hash}, "
            f"{sats(row.amount_msat + row.max_fee_msat)} reserved; {said}"
        )
        yield warning("payments", what, advice)
    if len(rows) > ROWS_MAX:
        what = f"{len(rows) - ROWS_MAX} more are unfinished"
        yield warning("payments", what, "See them: routeweiler-sync payments list --unfinished")


def _outcome(row: PaymentRow, paying: Examination | None, now_s: float) -> tuple[str, str]:
    """Return what the wallet says about an unfinished payment, and what to do about it."""
    recover = "Run: routeweiler-sync payments recover"
    abandon = f"routeweiler-sync payments abandon {row.payment_hash}"
    asked = None if paying is None else paying.track(row.node_pubkey, bytes.fromhex(row.payment_hash))
    if asked is None:
        if paying is not None and paying.has(row.node_pubkey) is False:
            key = f"{row.node_pubkey[:10]}…"
            return f"it was ordered from another wallet ({key})", f"Configure that wallet, then run: {recover.partition(': ')[2]}"
        return "its wallet can't be asked now", f"Once the wallet answers, run: {recover.partition(': ')[2]}"
    answer, htlcs = asked
    match answer.reply:
        case WalletReply.SUCCEEDED | WalletReply.WRONG_PREIMAGE:
            return "the node has paid it", f"{recover} to book it. Or load the page again: it isn't paid for twice."
        case WalletReply.FAILED | WalletReply.FAILED_FOR_GOOD:
            return "the node has failed to pay it", f"{recover} to end it."
        case WalletReply.FAILED_SO_FAR:
            advice = f"Once its invoice has expired, run: {recover.partition(': ')[2]}"
            return "its wallet says that it failed, or knows nothing of it; it may still be made until its invoice expires", advice
        case WalletReply.NOT_FOUND:
            advice = f"Load the page again: the same payment goes on. If you know that it won't be made, run: {abandon}"
            return "the node doesn't know of it, but an order may still be on its way", advice
        case WalletReply.IN_FLIGHT:
            is_old = now_s - row.created_at.timestamp() > ORPHAN_S
            if is_old and htlcs is not None and row.payment_hash not in htlcs:
                what = "the node says it is in flight, but has no HTLC out for it, and so will never end it"
                return what, f"Run: {abandon}"
            if is_old:
                advice = (
                    f"Wait, then run: {recover.partition(': ')[2]}. If lncli listchannels shows no pending HTLC with this hash, it "
                    f"will never end; then run: {abandon}"
                )
                return "the node is still paying it", advice
            return "the node is still paying it", f"Wait a moment, then run: {recover.partition(': ')[2]}"
    reason = f" ({answer.reason})" if answer.reason else ""
    return f"what became of it couldn't be found out{reason}", recover


def _new(path: Path) -> Finding:
    """Return whether a ledger could be created at ``path``."""
    folder = next((each for each in path.parents if each.exists()), path.parent)
    shown = printable(path)
    if not folder.is_dir():
        return wrong("ledger", f"{shown} can't be created: {printable(folder)} isn't a folder", "Name another file as the ledger.")
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0")
            file.flush()
    except OSError as error:
        why = error.strerror or str(error)
        advice = f"Let this user write to {quoted(folder)}, or name another file as the ledger."
        return wrong("ledger", f"{shown} can't be created: {why}", advice)
    return ok("ledger", f"{shown} will be created by the first payment: nothing was bought yet")


def _file(path: Path, about: str) -> Finding:
    """Return what is found about the owner and the mode of the file."""
    status = path.stat()
    if os.name == "nt":
        return ok("ledger", f"{about}; readable and writable")
    mode = stat.S_IMODE(status.st_mode)
    about = f"{about}, mode {mode:04o}, owner {_user(status.st_uid)}"
    if status.st_uid != os.geteuid():
        return warning("ledger", f"{about}, who isn't the user of this process", f"Run: chown {os.geteuid()} {quoted(path)}")
    if mode & 0o077:
        return warning("ledger", f"{about}: others can read the tokens in it", f"Run: chmod 600 {quoted(path)}")
    return ok("ledger", f"{about}; readable and writable")


def _disk(path: Path) -> Iterator[Finding]:
    with contextlib.suppress(OSError):
        free = shutil.disk_usage(path.parent).free
        if free < FREE_BYTES_MIN:
            what = f"only {free // 2**20} MiB are left on the ledger's disk"
            yield warning("disk", what, "Make room: without a ledger that can be written nothing is paid.")
    kind = _file_system(path)
    if kind in _REMOTE:
        what = f"the ledger is on a file system over the network ({kind}), where programs on two machines may pay twice"
        yield warning("disk", what, "Move it to a local disk, or use a PostgreSQL ledger.")


def _file_system(path: Path) -> str | None:
    """Return the kind of the file system that ``path`` is on; None where the system doesn't say."""
    best, kind = "", None
    with contextlib.suppress(OSError, IndexError, ValueError), open("/proc/self/mountinfo", encoding="utf-8") as file:
        for line in file:
            before, _, after = line.partition(" - ")
            mounted = re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), before.split(" ")[4])
            if len(mounted) >= len(best) and (f"{path}/".startswith(mounted.rstrip("/") + "/")):
                best, kind = mounted, after.split(" ")[0]
    return kind


def _user(number: int) -> str:
    with contextlib.suppress(Exception):
        import pwd

        return pwd.getpwuid(number).pw_name
    return str(number)
