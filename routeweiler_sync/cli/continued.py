"""``get --continue``: a download that broke off goes on where it ended, if the server still has the same page.

What has arrived is kept as ``FILE.routeweiler-part``, and beside it, in ``FILE.routeweiler-part.json``, what the server calls this
version of the page: its strong ETag, or the time when it last changed (RFC 9110, section 13.1.5). The next download asks for the
rest by ``Range``, with ``If-Range``: a server that has another version by now, or knows no ranges, sends the whole page, and the
file is begun anew. If nothing is kept, a FILE that exists counts as the beginning of the page, as of the time when it was written.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Mapping
from email.utils import formatdate, parsedate_to_datetime
from types import TracebackType
from typing import BinaryIO

import requests

from ..trace.filelock import locked
from .output import FileOutput, Output, Wrote, copy, ignore, uninterrupted

#: Where the part of a download is kept, and what is known of it.
PART, NOTES = ".routeweiler-part", ".routeweiler-part.json"

_CONTENT_RANGE = re.compile(r"bytes (?:(\d{1,18})-\d{1,18}|\*)/(\d{1,18}|\*)")
#: A strong ETag (RFC 9110, section 8.8.3), of a length that a server may have meant.
_STRONG_ETAG = re.compile(r'"[\x21\x23-\x7e\x80-\xff]{0,1000}"')

#: What `version_of` returns: such an ETag, or a time.
_VERSION = re.compile(rf"{_STRONG_ETAG.pattern}|[A-Za-z0-9 ,:+-]{{1,100}}")
#: Longer notes are none.
_NOTES_CHARS_MAX = 10_000


class ContinuedOutput(FileOutput):
    """A regular file whose download may be continued. If it breaks off, what has arrived is kept beside it.

    Raises: on entering, OSError if the file can't be written to, BlockingIOError if another process is downloading it.
    """

    def __init__(self, path: str, url: str) -> None:
        super().__init__(path)
        self._part_path, self._notes_path = self._final + PART, self._final + NOTES
        #: Identifies the page: a part of another one isn't continued. A digest, since a URL may hold a password.
        self._url = hashlib.sha256(url.encode("utf-8", "surrogateescape")).hexdigest()
        #: What to send as If-Range. None: there is nothing that could be continued.
        self._version: str | None = None
        #: How many bytes there are, and whether they are those of FILE itself.
        self._bytes, self._is_seed = 0, False
        #: Whether there was a part with notes, of whatever page, and whether it has been written to.
        self._was_part, self._is_begun = False, False

    def _look(self) -> None:
        """Look for what there is of the page already."""
        size = os.fstat(self._stream.fileno()).st_size
        try:
            descriptor = _open_own(self._notes_path, os.O_RDONLY)
        except FileNotFoundError:
            descriptor = None
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            notes = {}
            if descriptor is not None:
                self._was_part = size > 0
                with open(descriptor, encoding="utf-8") as file:
                    notes = json.loads(file.read(_NOTES_CHARS_MAX))
            if size and notes["url"] == self._url and _VERSION.fullmatch(notes["version"]):
                self._bytes, self._version = size, notes["version"]
        if not size:
            with contextlib.suppress(OSError):
                status = os.stat(self._final)
                if status.st_size:
                    self._bytes, self._is_seed = status.st_size, True
                    self._version = formatdate(status.st_mtime, usegmt=True)

    @property
    def headers(self) -> Mapping[str, str]:
        """Ask for the rest of the page, if there is a part of it."""
        return {"Range": f"bytes={self._bytes}-", "If-Range": self._version} if self._version is not None else {}

    @property
    def kept_bytes(self) -> int:
        """How many bytes of the page are there already."""
        return self._bytes if self._version is not None else 0

    def takes(self, response: requests.Response) -> bool:
        """Return whether ``response`` is the rest of the page, all of it, or an error. If not, `headers` asks for all of it."""
        if self._version is None or response.status_code not in (206, 416):
            return True
        match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
        begin, length = (None, None) if match is None else (match[1], match[2])
        if response.status_code == 416:
            fits = begin is None and length == str(self._bytes)  # all of it is there already
        else:
            fits = begin == str(self._bytes) and self._is_same_version(response)
        if not fits:
            self._version = None
        return fits

    def _is_same_version(self, response: requests.Response) -> bool:
        """Return whether ``response`` is of the version that is asked for. A server may ignore If-Range, against the standard."""
        assert self._version is not None
        tag, changed = response.headers.get("ETag"), response.headers.get("Last-Modified")
        if not self._is_seed:
            named = tag if self._version.startswith('"') else changed
            return named is None or named == self._version
        try:  # nobody knows the version of FILE, only when it was written
            return changed is not None and parsedate_to_datetime(changed).timestamp() <= os.stat(self._final).st_mtime
        except (ValueError, TypeError, OverflowError):
            return False

    def write(self, response: requests.Response, wrote: Wrote = ignore) -> None:
        """Write the body of ``response``, which `takes` has taken: see `Output.write`."""
        is_rest = self._version is not None and response.status_code in (206, 416)
        if response.status_code == 206 and not is_rest and not _is_all(response):
            raise OSError("the server has sent a part of the page, though all of it was asked for")
        self._is_begun = True
        if is_rest and self._is_seed and response.status_code == 416:
            self.is_whole = True  # FILE has all of it
            return
        if is_rest and self._is_seed:
            with open(self._final, "rb") as seed:
                shutil.copyfileobj(seed, self._stream)
        elif not is_rest:
            self._stream.seek(0)
            self._stream.truncate()
        self._note_version(response, is_rest=is_rest)
        if response.status_code != 416:
            self._stream.seek(0, os.SEEK_END)
            copy(response, self._stream, wrote)
            match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", "").strip()) if is_rest else None
            if match is not None and match[2].isdigit() and int(match[2]) != self._stream.tell():
                raise OSError(f"the server has sent {self._stream.tell()} of {match[2]} bytes")
        self._replace()
        with contextlib.suppress(OSError):
            os.unlink(self._notes_path)

    def _note_version(self, response: requests.Response, *, is_rest: bool) -> None:
        """Write down of which version the part is, before there is more of it. Without a version it can't be continued."""
        version = version_of(response) or (self._version if is_rest and not self._is_seed else None)
        self._version, self._is_seed = version, False
        if version is None:
            with contextlib.suppress(OSError):
                os.unlink(self._notes_path)
            return
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._notes_path)
        descriptor = os.open(self._notes_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            json.dump({"url": self._url, "version": version}, file)

    @property
    def kept(self) -> str | None:
        """The file that the next download can continue, and None if there is none."""
        if self.is_whole or self._version is None or self._is_seed:
            return None
        with contextlib.suppress(OSError):
            if os.path.getsize(self._part_path):
                return self._part_path
        return None

    def __enter__(self) -> Output:
        self._check_writable()
        with uninterrupted():
            descriptor = _open_own(self._part_path, os.O_RDWR | os.O_CREAT, self._new_mode())
            self._stream: BinaryIO = open(descriptor, "r+b")
            self._part = self._part_path
        try:
            self._lock = locked(descriptor, timeout_s=0)
            if (not self._lock.__enter__() and os.name == "posix") or not self._is_in_place(descriptor):
                raise BlockingIOError(f"another process is writing {self._part_path}")
            try:
                self._look()
            except OSError:
                is_new = not os.fstat(descriptor).st_size  # made above
                self._stream.close()  # first: Windows removes no open file
                if is_new:
                    os.unlink(self._part_path)
                raise
        except OSError:
            self._stream.close()
            self._part = ""
            raise
        return self

    def _is_in_place(self, descriptor: int) -> bool:
        """Return whether the open part is still there. Another process may have made it the FILE, before it could be locked."""
        with contextlib.suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(descriptor), os.lstat(self._part_path))
        return False

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with uninterrupted():
            with contextlib.suppress(OSError, ValueError):  # the disk is full, or the file is closed already
                self._stream.flush()
            keeps = self.kept is not None or (self._was_part and not self._is_begun)
            with contextlib.suppress(OSError, ValueError):  # closed already
                self._lock.__exit__(None, None, None)
            with contextlib.suppress(OSError):
                self._stream.close()
            if not keeps:
                for path in (self._part, self._notes_path) if self._part else ():
                    with contextlib.suppress(OSError):
                        os.unlink(path)


def _open_own(path: str, flags: int, mode: int = 0) -> int:
    """Open ``path``, whose name anybody can foresee: not a link or anything else that another user may have put there.

    A file of whoever owns the folder is accepted: that user may replace all files in it anyway.

    Raises: OSError.
    """
    for name in ("O_BINARY", "O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC"):
        flags |= getattr(os, name, 0)
    is_new = False
    if flags & os.O_CREAT:
        with contextlib.suppress(FileExistsError):
            descriptor, is_new = os.open(path, flags | os.O_EXCL, mode), True
    if is_new:
        return descriptor
    strange = PermissionError(f"{path} isn't a file of yours alone: look at it, and remove it")
    try:
        descriptor = os.open(path, flags & ~os.O_CREAT)
    except OSError as error:
        if os.path.islink(path):
            raise strange from None
        raise error
    status = os.fstat(descriptor)
    is_own = os.name != "posix" or status.st_uid in (os.geteuid(), os.stat(os.path.dirname(path)).st_uid)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1 or not is_own:
        os.close(descriptor)
        raise strange
    return descriptor


def _is_all(response: requests.Response) -> bool:
    """Return whether ``response``, a 206, has the page from its beginning to its end."""
    given = response.headers.get("Content-Range", "").strip()
    found = re.fullmatch(r"bytes 0-(\d{1,18})/(\d{1,18})", given)
    return found is not None and int(found[1]) + 1 == int(found[2])


def version_of(response: requests.Response) -> str | None:
    """Return what ``response`` calls its version: its strong ETag, or when it last changed. None if it names no such thing.

    A weak ETag says only that two pages mean the same. A time must be a second older than the answer, because a page may change
    twice within one (RFC 9110, section 8.8.2.2).
    """
    tag = response.headers.get("ETag", "")
    if _STRONG_ETAG.fullmatch(tag):
        return tag
    with contextlib.suppress(ValueError, TypeError, KeyError, OverflowError):
        changed, answered = (parsedate_to_datetime(response.headers[name]) for name in ("Last-Modified", "Date"))
        if (answered - changed).total_seconds() >= 1:
            return response.headers["Last-Modified"]
    return None
