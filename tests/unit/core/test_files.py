"""Which files are private, which have one name, and how new ones are made."""

from __future__ import annotations

import errno
import logging
import os
import pickle
import stat
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from routeweiler_sync._core import files
from routeweiler_sync._core.files import (
    UnsafeFileError,
    create_private,
    make_private_sqlite,
    open_private,
    require_one_name,
    require_private,
)
from routeweiler_sync.errors import LedgerError
from routeweiler_sync.ledger.ledger import Ledger

pytestmark = pytest.mark.skipif(os.name == "nt", reason="modes and links are POSIX's")
#: A user that these tests aren't run as.
SOMEBODY_ELSE = 65_533


@pytest.fixture(autouse=True)
def _nothing_was_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_warned", set())


@pytest.fixture(params=[0o000, 0o022, 0o077, 0o277, 0o777], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# -- new files -----------------------------------------------------------------------------------------------------------------


def test_a_new_file_is_private_under_any_umask(tmp_path: Path, umask: int) -> None:
    """Tokens would be readable by others; or the file by nobody, its owner included."""
    os.close(open_private(tmp_path / "opened"))
    os.close(create_private(tmp_path / "created"))
    make_private_sqlite(tmp_path / "database")
    assert {mode(each) for each in tmp_path.iterdir()} == {0o600}


@pytest.mark.parametrize("links", [1, 2, 5])
@pytest.mark.parametrize("folder", ["there", "missing/and/missing"])
def test_a_file_behind_dangling_links_is_private(tmp_path: Path, links: int, folder: str) -> None:
    """With a link to tell where the ledger lies, everybody on the machine could read the tokens."""
    (tmp_path / "there").mkdir()
    for make, name in ((open_private, "opened"), (create_private, "created"), (make_private_sqlite, "database")):
        target = tmp_path / folder / name
        for number in range(links):
            link = tmp_path / f"{name}-{number}"
            link.symlink_to(os.path.relpath(target, tmp_path) if number % 2 else target)
            target = link
        if (fd := make(target)) is not None:
            os.close(fd)
        assert mode(tmp_path / folder / name) == 0o600
    if folder != "there":
        assert mode(tmp_path / "missing") == mode(tmp_path / "missing/and") == 0o700


def test_a_file_that_is_there_is_opened_as_it_is(tmp_path: Path) -> None:
    """A log shipper would lose access that it was given; or the trace its lines."""
    path = tmp_path / "file"
    path.write_text("old\n")
    path.chmod(0o640)
    fd = open_private(path)
    os.write(fd, b"new\n")
    os.close(fd)
    make_private_sqlite(path)
    with pytest.raises(FileExistsError):
        create_private(path)
    assert (path.read_text(), mode(path)) == ("old\nnew\n", 0o640)


def test_links_in_a_circle_are_an_error_of_the_system(tmp_path: Path) -> None:
    """Opening would go round for ever."""
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(OSError) as caught:
        open_private(tmp_path / "a")
    assert caught.value.errno == errno.ELOOP


# -- private files -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    path = tmp_path / "the file.db"
    path.touch(mode=0o600)
    path.chmod(0o600)
    return path


def told(path: Path, caplog: pytest.LogCaptureFixture) -> str:
    """What is warned of for the file, by both ways; empty if nothing is."""
    caplog.clear()
    with warnings.catch_warnings(record=True) as caught, caplog.at_level(logging.WARNING, "routeweiler_sync"):
        warnings.simplefilter("always")
        require_private(files.resolved(path))
    said = [str(each.message) for each in caught]
    assert [record.getMessage() for record in caplog.records] == said
    assert len(said) <= 1
    return "".join(said)


def test_a_private_file_is_used_without_a_word(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Everybody would get used to the warning."""
    for suffix in files.SIDE_FILES:
        path.with_name(path.name + suffix).touch(mode=0o600)
    assert told(path, caplog) == ""
    assert told(path.parent / "missing", caplog) == ""


@pytest.mark.parametrize("suffix", ["", *files.SIDE_FILES])
@pytest.mark.parametrize("given", [0o640, 0o604, 0o644, 0o620, 0o660, 0o664, 0o610 | 0o040], ids=oct)
def test_a_file_that_others_can_use_is_told_once(path: Path, given: int, suffix: str, caplog: pytest.LogCaptureFixture) -> None:
    """Others would read the tokens, and nobody would know."""
    each = path.with_name(path.name + suffix)
    each.touch()
    each.chmod(given)
    said = told(path, caplog)
    assert str(path) in said
    assert f"chmod 600 '{each}'" in said
    assert told(path, caplog) == ""
    link = path.with_name("link")
    link.symlink_to(path)
    assert told(link, caplog) == ""


@pytest.mark.parametrize("suffix", ["", *files.SIDE_FILES])
@pytest.mark.parametrize("given", [0o666, 0o602, 0o646, 0o777], ids=oct)
def test_a_file_that_every_user_can_write_is_refused_each_time(path: Path, given: int, suffix: str) -> None:
    """Every user could raise the budget, or put in a token of theirs."""
    each = path.with_name(path.name + suffix)
    each.touch()
    each.chmod(given)
    link = path.with_name("link")
    link.symlink_to(path)
    for name in (path, path, link):
        with pytest.raises(UnsafeFileError, match=r"every user can .*write") as caught:
            require_private(files.resolved(name))
        assert str(each) in str(caught.value)
        assert f"chmod 600 '{each}'" in caught.value.advice


def test_a_file_system_without_modes_is_told_not_refused(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a USB stick, where every file shows 0777 and chmod does nothing, nothing could ever be bought."""
    path.chmod(0o777)
    monkeypatch.setattr(files, "_has_modes", lambda folder: False)
    assert str(path) in told(path, caplog)


def test_a_file_of_somebody_else_is_told(path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its owner can change what was spent."""
    monkeypatch.setattr(os, "geteuid", lambda: SOMEBODY_ELSE)
    said = told(path, caplog)
    assert f"belongs to another user (number {path.stat().st_uid})" in said
    assert f"chown {SOMEBODY_ELSE} '{path}'" in said


@pytest.mark.parametrize(("given", "warns"), [(0o777, True), (0o1777, False), (0o770, False), (0o755, False)])
def test_a_folder_where_everybody_can_replace_the_file_is_told(
    path: Path, given: int, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A private file in a public folder can be renamed, and another put in its place."""
    path.parent.chmod(given)
    assert (f"chmod o-w {path.parent}" in told(path, caplog)) is warns


def test_what_is_no_regular_file_has_no_mode_to_judge(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A trace on /dev/null, /dev/stdout or a pipe would be refused."""
    fifo = path.with_name("fifo")
    os.mkfifo(fifo)
    fifo.chmod(0o666)
    for each in (fifo, Path("/dev/null"), Path("/dev/stdout"), Path("/dev/fd/1")):
        assert told(each, caplog) == ""


def test_a_warning_is_no_error_where_warnings_are_errors(path: Path) -> None:
    """Under ``python -W error`` a call would break with a RuntimeWarning."""
    path.chmod(0o644)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        require_private(path)


def test_windows_has_no_modes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There every file shows 0666, and every ledger would be refused."""
    path.chmod(0o666)
    monkeypatch.setattr(files.os, "name", "nt")
    require_private(path)


def test_on_windows_a_file_that_is_open_for_a_moment_is_waited_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A virus scanner that looks at a new file would cost a page that was paid for."""
    (part := path.parent / "part").write_text("new")
    denials, real = [PermissionError(13, "in use")] * 3, os.replace

    def busy(source: str, target: str) -> None:
        if denials:
            raise denials.pop()
        real(source, target)

    monkeypatch.setattr(files.os, "replace", busy)
    with pytest.raises(PermissionError):  # elsewhere it has another cause, which stays
        files.replace(str(part), str(path))
    monkeypatch.setattr(files.os, "name", "nt")
    files.replace(str(part), str(path))
    assert not denials
    monkeypatch.undo()
    assert path.read_text() == "new"


def test_a_word_of_a_command_is_quoted_as_the_system_does(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Advice that is pasted into a shell would name another file."""
    assert files.quoted("my ledger.db") == "'my ledger.db'"
    monkeypatch.setattr(files.os, "name", "nt")
    assert files.quoted("C:\\my ledger.db") == '"C:\\my ledger.db"'


# -- one name ------------------------------------------------------------------------------------------------------------------


def test_a_second_name_is_refused_and_a_link_isnt(path: Path) -> None:
    """Under a hard link SQLite keeps another log: what one program pays, the other doesn't see."""
    require_one_name(path)
    (path.parent / "link").symlink_to(path)
    require_one_name(path)
    other = path.parent / "other"
    os.link(path, other)
    for each in (path, other):
        with pytest.raises(UnsafeFileError, match="2 names"):
            require_one_name(each)
    other.unlink()
    require_one_name(path)


def test_a_file_that_is_mounted_alone_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A container that gets the file without its folder keeps a log of its own."""
    mounts = tmp_path / "mounts"
    line = "1056 1041 0:48 /host/ledger.db {} rw,relatime - ext4 /dev/sda1 rw\n"
    monkeypatch.setattr(files, "_MOUNTS", str(mounts))
    for elsewhere in (tmp_path, path.with_name("the file.db-wal"), "/"):
        mounts.write_text(line.format(str(elsewhere).replace(" ", "\\040")))
        require_one_name(path)
    mounts.write_text(line.format("/") + line.format(str(path).replace(" ", "\\040")) + line.format("/proc"))
    with pytest.raises(UnsafeFileError, match="mounted alone"):
        require_one_name(path)


def test_without_a_list_of_mounts_the_device_tells(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On other systems than Linux nothing would be noticed."""
    monkeypatch.setattr(files, "_MOUNTS", str(path.parent / "no such file"))
    require_one_name(path)
    monkeypatch.setattr(os.path, "ismount", lambda name: os.fspath(name) == str(path))
    with pytest.raises(UnsafeFileError, match="mounted alone"):
        require_one_name(path)


@pytest.mark.skipif(sys.platform != "linux", reason="the list of mounts is Linux's")
def test_the_systems_own_list_of_mounts_is_understood() -> None:
    """The format would be another one than the test above has in mind."""
    mounted = next(Path(line.split()[4]) for line in Path(files._MOUNTS).read_text().splitlines() if "\\" not in line.split()[4])
    assert files._is_mounted_alone(mounted)
    assert not files._is_mounted_alone(Path(__file__))


def test_an_unsafe_file_is_told_across_processes() -> None:
    """A worker's error would break the pool that it comes from."""
    error = pickle.loads(pickle.dumps(UnsafeFileError("why", advice="what to do")))
    assert (str(error), error.advice) == ("why", "what to do")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with a name are POSIX's")
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_database_is_no_pipe_and_no_device(tmp_path: Path, kind: str) -> None:
    """Else SQLite, run by root, leaves a journal beside /dev/null that every user may write."""
    path = Path(os.devnull) if kind == "device" else tmp_path / "pipe"
    if kind == "pipe":
        os.mkfifo(path)
    with pytest.raises(OSError, match="a database is a file"):
        make_private_sqlite(path)
    with pytest.raises(LedgerError, match="a database is a file") as caught:
        Ledger.open(path).payment("00" * 32)
    assert caught.value.spent is False
    assert not Path(f"{path}-journal").exists()
