"""``get -o FILE``: a file is whole or as it was, whatever happens; and ``--continue``."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from routeweiler_sync.cli.continued import NOTES, PART
from routeweiler_sync.testing import FakeLnd, Paywall
from tests.support.accounts import Books
from tests.support.cli_process import TIMEOUT_S, Command
from tests.support.download import CHANGED, Download

pytestmark = pytest.mark.slow

posix_only = pytest.mark.skipif(os.name != "posix", reason="signals, modes and limits as POSIX has them")

PAGE = bytes(range(256)) * 4096


@pytest.fixture
def command(tmp_path: Path, lnd: FakeLnd, books: Books) -> Command:
    return Command(tmp_path, lnd, books)


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A file that exists, alone in its folder."""
    file = tmp_path / "out" / "page"
    file.parent.mkdir()
    file.write_bytes(b"old")
    return file


@pytest.fixture
def download(paywall: Paywall) -> Download:
    """What is sold at ``paywall.url``."""
    made = Download(PAGE)
    paywall.respond = made.respond
    return made


def limited_to(most: int) -> Callable[[], object]:
    """Let no file become larger than that: what a full disk is like, but that the limit is in bytes of each file."""

    def before() -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    return before


# Whole, or as it was


@posix_only
@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077, 0o000])
def test_a_new_file_has_the_mode_that_the_umask_says(command: Command, paywall: Paywall, tmp_path: Path, umask: int) -> None:
    """A page that others in the group are to read is unreadable for them; or one that they mustn't read isn't."""
    assert command("get", paywall.url, "-o", "page", before=lambda: os.umask(umask)) == 0
    assert stat.S_IMODE((tmp_path / "page").stat().st_mode) == 0o666 & ~umask


@posix_only
def test_a_link_leads_to_the_file_that_is_replaced(command: Command, paywall: Paywall, kept: Path, tmp_path: Path) -> None:
    """The link would become a file, and what it led to would stay old."""
    (tmp_path / "link").symlink_to(kept)
    assert command("get", paywall.url, "-o", "link") == 0
    assert (tmp_path / "link").is_symlink()
    assert kept.read_bytes() == paywall.content


@pytest.mark.parametrize("name", ["out", "out/", "new/", "out/none/page"])
def test_what_is_no_file_is_found_before_anything_is_paid(command: Command, paywall: Paywall, kept: Path, name: str) -> None:
    """The page would be paid for, and there would be no place for it."""
    assert command("get", paywall.url, "-o", name) == 2
    assert b"Nothing was fetched or paid" in command.err
    assert paywall.requests == []
    assert list(kept.parent.iterdir()) == [kept]


@posix_only
@pytest.mark.parametrize("paid_now", [True, False])
def test_a_full_disk_leaves_the_file_as_it_was(
    command: Command, paywall: Paywall, download: Download, lnd: FakeLnd, books: Books, kept: Path, paid_now: bool
) -> None:
    """A disk fills up in the middle of a page: what was there is lost, or what was paid for is forgotten."""
    if not paid_now:
        assert command("get", paywall.url, "-o", os.devnull) == 0
    code = command("get", paywall.url, "-o", str(kept), before=limited_to(600_000))
    assert code == (6 if paid_now else 1)
    assert b"couldn't be written to" in command.err
    assert b"File too large" in command.err
    assert (b"The token is kept" in command.err) is paid_now
    assert kept.read_bytes() == b"old"
    assert list(kept.parent.iterdir()) == [kept]
    assert command("get", paywall.url, "-o", str(kept)) == 0
    assert kept.read_bytes() == PAGE
    assert len(lnd.payments) == 1
    books.check()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is full")
@pytest.mark.parametrize("how", ["stdout", "-o", "json"])
def test_a_full_disk_behind_stdout_is_told_as_well(
    command: Command, paywall: Paywall, download: Download, lnd: FakeLnd, how: str
) -> None:
    """Python would try to write once more at its end, and exit with 120."""
    args = {"stdout": [], "-o": ["-o", "/dev/full"], "json": ["--json"]}[how]
    assert command("get", paywall.url, *args, stdout="/dev/full" if how != "-o" else None) == 6
    assert b"No space left on device" in command.err
    assert len(lnd.payments) == 1


def test_a_paid_page_that_breaks_off_is_exit_6(
    command: Command, paywall: Paywall, download: Download, lnd: FakeLnd, kept: Path
) -> None:
    """Paid and not delivered: a script has to know that asking again costs nothing."""
    download.breaks_at = 1000
    assert command("get", paywall.url, "-o", str(kept)) == 6
    assert b"didn't arrive whole" in command.err
    assert b"The token is kept, and the next call uses it" in command.err
    assert (kept.read_bytes(), list(kept.parent.iterdir())) == (b"old", [kept])
    assert command("get", paywall.url, "-o", str(kept)) == 0
    assert len(lnd.payments) == 1


@posix_only
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("moment", ["before the answer", "paying", "in the page", "in the page, continuing"])
def test_a_signal_leaves_no_litter_and_tells_of_the_money(
    command: Command, paywall: Paywall, download: Download, lnd: FakeLnd, books: Books, kept: Path, moment: str, signum: int
) -> None:
    """Ctrl-C, a closed terminal, a supervisor: whoever ends the command wants to know whether it has paid."""
    continues = moment.endswith("continuing")
    download.breaks_at, download.stalls = 300_000, True
    if moment == "before the answer":
        paywall.faults.delay_s = TIMEOUT_S
    elif moment == "paying":
        lnd.hang_next()
    args = ["get", paywall.url, "-o", str(kept), *(["--continue"] if continues else [])]
    with subprocess.Popen(
        [sys.executable, "-m", "routeweiler_sync", *args],
        env=command.environ(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        if moment == "before the answer":
            paywall.wait_for(lambda: paywall.requests)
        elif moment == "paying":
            lnd.wait_for(lambda node: bool(node.payments))
        else:
            paywall.wait_for(lambda: any(part.stat().st_size > 200_000 for part in kept.parent.glob("*part")))
        process.send_signal(signum)
        command.out, command.err = process.communicate(timeout=TIMEOUT_S)
    paywall.faults.delay_s, download.breaks_at = 0, None
    command.look_for_secrets()
    assert kept.read_bytes() == b"old"
    parts = {Path(f"{kept}{PART}"), Path(f"{kept}{NOTES}")} if continues else set()
    assert set(kept.parent.iterdir()) == {kept} | parts
    if moment == "before the answer":
        assert process.returncode == (1 if signum == signal.SIGINT else 128 + signum)
    elif moment == "paying":
        assert (process.returncode, b"nothing is paid twice" in command.err) == (5, True)
        lnd.release()
    else:
        assert (process.returncode, b"Interrupted; paid 10 sat" in command.err) == (6, True)
    assert command("get", *args[1:]) == 0
    assert (kept.read_bytes(), list(kept.parent.iterdir())) == (PAGE, [kept])
    assert len(lnd.payments) == 1
    books.check()


# --continue


def ranges(paywall: Paywall) -> list[tuple[str | None, str | None, int]]:
    """Range, If-Range and status of the requests that came with a token."""
    return [(r.headers.get("Range"), r.headers.get("If-Range"), r.status) for r in paywall.requests if r.status != 402]


VERSIONS = {
    "a strong ETag": ({"ETag": '"one"'}, '"one"'),
    "a time": ({"Last-Modified": CHANGED}, CHANGED),
    "both": ({"Last-Modified": CHANGED, "ETag": '"one"'}, '"one"'),
    "a weak ETag and a time": ({"Last-Modified": CHANGED, "ETag": 'W/"one"'}, CHANGED),
}


@pytest.mark.parametrize("version", VERSIONS)
def test_a_download_goes_on_where_it_broke_off(
    command: Command, paywall: Paywall, download: Download, lnd: FakeLnd, books: Books, kept: Path, version: str
) -> None:
    """Of a large file over a bad line, each attempt would begin at 0."""
    download.headers, named = dict(VERSIONS[version][0]), VERSIONS[version][1]
    kept.unlink()
    for at in (300_000, 200_000):
        download.breaks_at = at
        assert command("get", "--continue", "-o", str(kept), paywall.url) == (6 if at == 300_000 else 1)
        assert f"is kept in {kept}{PART}: the same command continues there".encode() in command.err
        assert not kept.exists()
    assert command("get", "-C", "-", "-o", str(kept), paywall.url) == 0
    assert ranges(paywall) == [(None, None, 200), ("bytes=300000-", named, 206), ("bytes=500000-", named, 206)]
    assert (kept.read_bytes(), list(kept.parent.iterdir())) == (PAGE, [kept])
    assert len(lnd.payments) == 1
    books.check()


ANEW = {
    "the page has changed": lambda download: download.headers.update(ETag='"two"'),
    "the server knows no ranges": lambda download: download.knows.clear(),
    "the server ignores If-Range": lambda download: (download.knows.discard("if-range"), download.headers.update(ETag='"two"')),
    "the page has shrunk, and the server ignores If-Range": lambda download: (
        download.knows.discard("if-range"),
        download.headers.update(ETag='"two"'),
        setattr(download, "content", PAGE[:1000]),
    ),
}


@pytest.mark.parametrize("why", ANEW)
def test_where_it_cannot_go_on_it_begins_anew(
    command: Command, paywall: Paywall, download: Download, lnd: FakeLnd, kept: Path, why: str
) -> None:
    """The halves of two versions would make a whole that nobody ever published."""
    download.breaks_at = 300_000
    assert command("get", "--continue", "-o", str(kept), paywall.url) == 6
    download.content = PAGE[::-1]
    ANEW[why](download)
    assert command("get", "--continue", "-o", str(kept), paywall.url) == 0
    assert (kept.read_bytes(), list(kept.parent.iterdir())) == (download.content, [kept])
    assert len(lnd.payments) == 1


@pytest.mark.parametrize("has_part", [False, True])
def test_a_part_that_nobody_asked_for_is_no_page(
    command: Command, paywall: Paywall, download: Download, lnd: FakeLnd, kept: Path, has_part: bool
) -> None:
    """A cache between may answer with what somebody else has asked for. It would replace the file."""
    if has_part:
        download.breaks_at = 300_000
        assert command("get", "--continue", "-o", str(kept), paywall.url) == 6
    paywall.respond = lambda _: (206, {"Content-Range": f"bytes 1000-{len(PAGE) - 1}/{len(PAGE)}", "ETag": '"one"'}, PAGE[1000:])
    assert command("get", "--continue", "-o", str(kept), paywall.url) == (1 if has_part else 6)
    assert b"a part of the page" in command.err
    assert kept.read_bytes() == b"old"
    paywall.respond = download.respond
    assert command("get", "--continue", "-o", str(kept), paywall.url) == 0
    assert ranges(paywall)[-1][2] == (206 if has_part else 200)
    assert (kept.read_bytes(), list(kept.parent.iterdir())) == (PAGE, [kept])
    assert len(lnd.payments) == 1


@pytest.mark.parametrize(
    "version",
    ['"x\\r\\nCookie: a=b"', '"\\u2603"', "[" * 50_000, "5", f'"{"x" * 50_000}"'],
    ids=["lines", "snow", "deep", "5", "long"],
)
def test_damaged_notes_are_none(command: Command, paywall: Paywall, download: Download, kept: Path, version: str) -> None:
    """Whatever a broken disk made of them would be sent as a header, or end the command with a traceback."""
    download.breaks_at = 300_000
    assert command("get", "--continue", "-o", str(kept), paywall.url) == 6
    notes = Path(f"{kept}{NOTES}")
    notes.write_text(notes.read_text().replace(r'"\"one\""', version))
    assert command("get", "--continue", "-o", str(kept), paywall.url) == 0
    assert ranges(paywall)[-1] == (None, None, 200)
    assert (kept.read_bytes(), list(kept.parent.iterdir())) == (PAGE, [kept])


def test_a_page_without_a_version_is_not_kept(command: Command, paywall: Paywall, download: Download, kept: Path) -> None:
    """Nobody could tell whether the rest belongs to it."""
    download.headers = {"ETag": 'W/"one"'}
    download.breaks_at = 300_000
    assert command("get", "--continue", "-o", str(kept), paywall.url) == 6
    assert b"is kept in" not in command.err
    assert list(kept.parent.iterdir()) == [kept]


def test_a_part_of_another_page_is_not_continued(command: Command, paywall: Paywall, download: Download, kept: Path) -> None:
    """Two pages may have the same ETag."""
    download.breaks_at = 300_000
    assert command("get", "--continue", "-o", str(kept), paywall.url) == 6
    assert command("get", "--continue", "-o", str(kept), f"{paywall.url}?other") == 0
    assert ranges(paywall)[-1] == (None, None, 200)
    assert (kept.read_bytes(), list(kept.parent.iterdir())) == (PAGE, [kept])


def test_a_part_that_is_whole_already_becomes_the_file(command: Command, paywall: Paywall, download: Download, kept: Path) -> None:
    """A power cut came between the last byte and the renaming."""
    download.breaks_at = 300_000
    assert command("get", "--continue", "-o", str(kept), paywall.url) == 6
    Path(f"{kept}{PART}").write_bytes(PAGE)
    assert command("get", "--continue", "-o", str(kept), paywall.url) == 0
    assert b"has the whole page already" in command.err
    assert (kept.read_bytes(), list(kept.parent.iterdir())) == (PAGE, [kept])


@pytest.mark.parametrize("is_whole", [False, True])
def test_a_file_that_another_program_has_begun_is_continued(
    command: Command, paywall: Paywall, download: Download, kept: Path, is_whole: bool
) -> None:
    """``curl -C -`` and ``wget -c`` do it; but only the time can tell whether it is the same page."""
    download.headers = {"Last-Modified": CHANGED}
    kept.write_bytes(PAGE if is_whole else PAGE[:300_000])
    os.utime(kept, (1_700_000_000, 1_700_000_000))
    assert command("get", "--continue", "-o", str(kept), paywall.url) == 0
    assert ranges(paywall) == [(f"bytes={len(PAGE) if is_whole else 300_000}-", CHANGED, 416 if is_whole else 206)]
    assert (kept.read_bytes(), list(kept.parent.iterdir())) == (PAGE, [kept])


def test_a_file_of_an_older_page_begins_anew(command: Command, paywall: Paywall, download: Download, kept: Path) -> None:
    """Yesterday's page under today's tail."""
    download.headers, download.knows = {"Last-Modified": CHANGED}, {"ranges"}
    os.utime(kept, (1_600_000_000, 1_600_000_000))
    assert command("get", "--continue", "-o", str(kept), paywall.url) == 0
    assert (kept.read_bytes(), list(kept.parent.iterdir())) == (PAGE, [kept])


@posix_only
def test_a_full_disk_keeps_what_has_arrived_when_continuing(
    command: Command, paywall: Paywall, download: Download, kept: Path
) -> None:
    """When there is room again, it goes on."""
    assert command("get", "--continue", "-o", str(kept), paywall.url, before=limited_to(600_000)) == 6
    assert kept.read_bytes() == b"old"
    assert command("get", "--continue", "-o", str(kept), paywall.url) == 0
    assert ranges(paywall)[-1][2] == 206
    assert (kept.read_bytes(), list(kept.parent.iterdir())) == (PAGE, [kept])


def test_an_error_costs_the_part_nothing(command: Command, paywall: Paywall, download: Download, kept: Path) -> None:
    """A server that is busy would make the next download begin at 0."""
    download.breaks_at = 300_000
    assert command("get", "--continue", "-o", str(kept), paywall.url) == 6
    paywall.answer_next(429)
    assert command("get", "--continue", "-o", str(kept), paywall.url) == 1
    assert command("get", "--continue", "-o", str(kept), paywall.url, ROUTEWEILER_BUDGET="lots") == 2
    assert command("get", "--continue", "-o", str(kept), paywall.url) == 0
    assert ranges(paywall)[-1] == ("bytes=300000-", '"one"', 206)
    assert kept.read_bytes() == PAGE


@pytest.mark.parametrize(
    "args",
    [["--continue"], ["--continue", "-o", "-"], ["--continue", "-o", os.devnull], ["-C", "5", "-o", "page"]]
    + [["--continue", "-o", "page", *more] for more in (["-X", "POST"], ["-d", "x"], ["-H", "Range: bytes=1-"])],
)
def test_what_cannot_be_continued_is_refused_before_anything_is_sent(command: Command, paywall: Paywall, args: list[str]) -> None:
    """A request that does something would be done a second time, to continue it."""
    assert command("get", paywall.url, *args) == 2
    assert paywall.requests == []


def plant_link(at: Path, victim: Path) -> None:
    at.symlink_to(victim)


def plant_second_name(at: Path, victim: Path) -> None:
    os.link(victim, at)


def plant_pipe(at: Path, victim: Path) -> None:
    os.mkfifo(at)


@posix_only
@pytest.mark.parametrize("ending", [PART, NOTES])
@pytest.mark.parametrize("plant", [plant_link, plant_second_name, plant_pipe])
def test_nothing_is_written_through_what_another_user_has_put_in_the_place_of_the_part(
    command: Command,
    paywall: Paywall,
    download: Download,
    kept: Path,
    tmp_path: Path,
    plant: Callable[[Path, Path], None],
    ending: str,
) -> None:
    """In a shared folder the name of the part can be foreseen: a server's page would replace a file of the user's."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    plant(Path(f"{kept}{ending}"), victim)
    assert command("get", "--continue", "-o", str(kept), paywall.url) == 2
    assert b"isn't a file of yours alone" in command.err
    assert (victim.read_bytes(), kept.read_bytes(), paywall.requests) == (b"precious", b"old", [])
    assert sorted(path.name for path in kept.parent.iterdir()) == [kept.name, f"{kept.name}{ending}"]


@posix_only
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("ending", [PART, NOTES])
def test_a_part_of_another_user_is_not_continued(
    command: Command, paywall: Paywall, download: Download, kept: Path, ending: str
) -> None:
    """That user could change the page afterwards, which looks like the server's."""
    planted = Path(f"{kept}{ending}")
    planted.write_bytes(b"{}")
    os.chown(planted, 12345, 12345)
    assert command("get", "--continue", "-o", str(kept), paywall.url) == 2
    assert (planted.read_bytes(), kept.read_bytes(), paywall.requests) == (b"{}", b"old", [])
    os.chown(kept.parent, 12345, 12345)  # who owns the folder may replace the file itself
    assert command("get", "--continue", "-o", str(kept), paywall.url) == 0


@posix_only
@pytest.mark.parametrize("args", [[], ["--continue"]])
def test_nobody_can_read_the_part_who_may_not_read_the_file(
    command: Command, paywall: Paywall, download: Download, kept: Path, args: list[str]
) -> None:
    """A page that is kept private would be open to all while it arrives, or for good if it breaks off."""
    kept.chmod(0o600)
    download.breaks_at, download.stalls = 300_000, True
    with subprocess.Popen(
        [sys.executable, "-m", "routeweiler_sync", "get", *args, "-o", str(kept), paywall.url],
        env=command.environ(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        paywall.wait_for(lambda: any(part.stat().st_size > 200_000 for part in kept.parent.glob("*part")))
        assert [stat.S_IMODE(part.stat().st_mode) for part in kept.parent.glob("*part")] == [0o600]
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=TIMEOUT_S)


@pytest.mark.parametrize("args", [[], ["--continue"]])
@pytest.mark.parametrize("exists", [False, True])
def test_no_page_replaces_the_ledger_or_the_trace(
    command: Command, paywall: Paywall, books: Books, args: list[str], exists: bool
) -> None:
    """All tokens that were paid for would be lost, and what is known of payments that are under way."""
    if exists:
        assert command("get", paywall.url) == 0
    files = [books.ledger_path, Path(f"{books.ledger_path}-wal"), books.trace_path]
    before = [file.read_bytes() if file.exists() else None for file in files]
    number = len(paywall.requests)
    for file in files:
        assert command("get", *args, "-o", str(file), paywall.url) == 2
        assert b"Nothing was fetched or paid" in command.err
    assert [file.read_bytes() if file.exists() else None for file in files] == before
    assert len(paywall.requests) == number
    assert command("get", *args, "-o", f"{books.ledger_path}.page", paywall.url) == 0


@posix_only
def test_a_page_gets_no_rights_of_another_user(command: Command, paywall: Paywall, kept: Path) -> None:
    """What a server sends would run as the file's owner, whoever starts it."""
    kept.chmod(0o4755)
    assert command("get", "-o", str(kept), paywall.url) == 0
    assert stat.S_IMODE(kept.stat().st_mode) == 0o755


def test_an_error_costs_the_part_of_another_page_nothing(
    command: Command, paywall: Paywall, download: Download, kept: Path
) -> None:
    """A mistyped address would throw away what has arrived of a long download."""
    download.breaks_at = 300_000
    assert command("get", "--continue", "-o", str(kept), paywall.url) == 6
    assert command("get", "--continue", "-o", str(kept), "http://127.0.0.1:1/") == 1
    assert command("get", "--continue", "-o", str(kept), paywall.url) == 0
    assert ranges(paywall)[-1] == ("bytes=300000-", '"one"', 206)


@posix_only
def test_two_downloads_to_one_file_do_not_mix(command: Command, paywall: Paywall, download: Download, kept: Path) -> None:
    """Both would write to the same part."""
    download.breaks_at, download.stalls = 300_000, True
    args = ["get", "--continue", "-o", str(kept), paywall.url]
    with subprocess.Popen(
        [sys.executable, "-m", "routeweiler_sync", *args], env=command.environ(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as first:
        paywall.wait_for(lambda: any(part.stat().st_size > 200_000 for part in kept.parent.glob("*part")))
        assert command(*args) == 2
        assert b"another process" in command.err
        first.send_signal(signal.SIGINT)
        first.communicate(timeout=TIMEOUT_S)
    assert command(*args) == 0
    assert kept.read_bytes() == PAGE
