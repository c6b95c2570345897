"""``routeweiler-sync demo``, as a newcomer runs it: a process of its own."""

from __future__ import annotations

import ast
import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from routeweiler_sync._core import early_stop
from routeweiler_sync.cli import main
from routeweiler_sync.cli.demo import SIX_LINES, _folder_to_type
from routeweiler_sync.cli.palette import CONTRAST_MIN, THEME
from routeweiler_sync.cli.stop_signal import StopSignal, stop_signal
from routeweiler_sync.cli.story import continued
from routeweiler_sync.testing import FakeLnd
from tests.support.cli_process import ANY_TOKEN, TIMEOUT_S, bare_environ, demo

COLOUR = r"\x1b\[[0-9;]*(38;5;\d+|3[0-7]|9[0-7])m"


def test_the_demo_succeeds_wherever_it_runs(tmp_path: Path) -> None:
    """It is the first thing that anybody runs: behind a proxy, without a home, with an environment of its own, on any code page."""
    (tmp_path / "tmp").mkdir()
    shown = demo(
        TMPDIR=str(tmp_path / "tmp"),
        TEMP=str(tmp_path / "tmp"),
        HOME=str(tmp_path / "no" / "home"),
        PYTHONIOENCODING="ascii",
        ROUTEWEILER_LEDGER=str(tmp_path / "mine.db"),
        ROUTEWEILER_BUDGET="0 sat",
        **dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), "http://127.0.0.1:9"),
    )
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "402 Payment Required" in shown.stdout
    assert "BudgetExceededError" in shown.stdout
    assert "NO  " not in shown.stdout
    assert [path.name for path in tmp_path.rglob("*")] == ["tmp"]


@pytest.mark.slow
@pytest.mark.parametrize("columns", [40, 63, 80, 120])
def test_the_demo_is_plain_and_fits_the_screen(columns: int) -> None:
    """In a file or a narrow window it would be unreadable; and it shows no secret to whom it is shown."""
    shown = demo(COLUMNS=str(columns), PYTHONIOENCODING="utf-8").stdout
    assert "\x1b" not in shown
    assert max(map(len, shown.splitlines())) <= columns
    assert "Authorization: L402 <token>:<preimage>" in " ".join(shown.split())
    assert ANY_TOKEN.decode() not in shown
    assert not re.search(r"[0-9a-f]{64}", shown)


@pytest.mark.slow
def test_the_demos_colours_can_be_had_and_be_refused() -> None:
    """NO_COLOR is the user's word."""
    coloured = {"FORCE_COLOR": "1", "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"}
    assert re.search(COLOUR, demo(**coloured).stdout)
    assert not re.search(COLOUR, demo(**coloured, NO_COLOR="1").stdout)


@pytest.mark.slow
def test_the_demos_colours_can_be_read_on_white_and_on_black() -> None:
    """Yellow on white, which many terminals make of "yellow", hides the refusal that the demo is about."""
    shown = demo(FORCE_COLOR="1", TERM="xterm-256color", PYTHONIOENCODING="utf-8").stdout
    codes = {code for codes in re.findall(r"\x1b\[([0-9;]*)m", shown) for code in re.findall(r"38;5;\d+|\d+", codes)}
    assert {"38;5;28", "38;5;130", "38;5;30"} <= codes
    assert {code for code in codes if not code.startswith("38;5;")} <= {"0", "1", "2"}, "bold and dim alone"
    for name, style in THEME.styles.items():
        if name.removeprefix("bold ") in ("green", "yellow", "red", "cyan"):
            assert style.color is not None
            for ground in ((0, 0, 0), (255, 255, 255)):
                assert contrast(style.color.get_truecolor(), ground) >= CONTRAST_MIN, name


def contrast(one: tuple[int, ...], other: tuple[int, ...]) -> float:
    """The contrast of two colours as WCAG 2 computes it: 1 to 21."""

    def luminance(colour: tuple[int, ...]) -> float:
        parts = [each / 255 for each in colour]
        red, green, blue = (each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.slow
@pytest.mark.parametrize("columns", [40, 80])
def test_the_six_lines_run_as_they_are_shown(columns: int, tmp_path: Path) -> None:
    """They are what is pasted first: also from a narrow window, in which they are broken."""
    shown = demo(COLUMNS=str(columns), PYTHONIOENCODING="utf-8").stdout
    head, program, after = re.split(r"(?m)^── (?:The same in six lines of Python|What to type next) ─+\n", shown)
    assert "All 18 statements" in " ".join(head.split())
    assert after.startswith("python")
    assert "routeweiler-sync doctor" in after
    assert columns == 40 or len(program.strip().splitlines()) == 6
    done = subprocess.run(
        [sys.executable, "-c", program], env=bare_environ(), cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=TIMEOUT_S
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("paid content\n Payment(")


@pytest.mark.parametrize("width", range(36, 90, 3))
def test_code_that_is_broken_stays_the_same_code(width: int) -> None:
    """A backslash at a wrong place, and what was copied is a syntax error."""
    parts = [part for line in SIX_LINES.splitlines() for part in continued(line, width)]
    assert max(map(len, parts)) <= width
    assert ast.dump(ast.parse("\n".join(parts))) == ast.dump(ast.parse(SIX_LINES))


def test_code_without_a_place_to_break_stays_whole() -> None:
    assert list(continued("a_very_long_name", 5)) == ["a_very_long_name"]


def test_what_to_type_next_can_be_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``.venv/bin/routeweiler-sync demo`` is typed by those who have no routeweiler-sync on their PATH."""
    script = tmp_path / "bin" / "routeweiler-sync"
    script.parent.mkdir()
    script.write_text("", "utf-8")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", "")
    assert _folder_to_type(str(script)) == f"{tmp_path / 'bin'}{os.sep}"
    monkeypatch.setenv("PATH", str(script.parent))
    assert _folder_to_type(str(script)) == ""
    assert _folder_to_type("/x/routeweiler_sync/__main__.py") == ""


def test_the_demo_fails_where_the_accounts_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """A demo that can't fail shows nothing: here lnd pays more than it says it charged, there it knows of two payments."""
    honest = FakeLnd.spent_msat.fget
    assert honest is not None
    monkeypatch.setattr(FakeLnd, "spent_msat", property(lambda lnd: honest(lnd) + 1))
    told = CliRunner().invoke(main, ["demo"])
    shown = " ".join(told.output.split())
    assert (told.exit_code, "didn't go as described: ledger, budget, trace and node agree" in shown) == (1, True)
    monkeypatch.undo()

    one = FakeLnd.payments.fget
    assert one is not None
    monkeypatch.setattr(FakeLnd, "payments", property(lambda lnd: one(lnd) * 2))
    told = CliRunner().invoke(main, ["demo"])
    assert (told.exit_code, "NO  one order, one payment" in told.output) == (1, True)


def test_the_demo_says_what_it_lacks() -> None:
    """Without the extra, a traceback would be all that a newcomer sees."""
    code = "import sys; sys.modules['cryptography'] = None; from routeweiler_sync.cli import main; main(['demo'])"
    done = subprocess.run(
        [sys.executable, "-c", code], env=bare_environ(), capture_output=True, encoding="utf-8", timeout=TIMEOUT_S
    )
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        'cryptography is missing: the demo needs the extra. Run: pip install "routeweiler-sync[testing]"'
    ]


# Ctrl-C

#: Where the demo is when Ctrl-C is pressed: what Python, or the demo, has written last.
MOMENTS = {
    "requests is imported": "urllib3.util.retry",
    "the commands are imported": "routeweiler_sync.cli.outcome",
    "gRPC is imported": "google.protobuf.message",
    "the demo begins": "Both are real",
    "the page is asked for": "A page that costs",
    "the page was paid": "one order, one payment",
    "a new session has asked": "a new session on the same",
    "a page was refused": "BudgetExceededError",
    "the tables are shown": "Adding up",
    "the demo ends": "What to type next",
    "the last line is shown": "--max-sats",
}
#: When these are noticed, the demo may have ended well.
LAST_MOMENTS = ("the demo ends", "the last line is shown")


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
@pytest.mark.parametrize(
    ("moment", "presses"),
    [*((moment, 1) for moment in MOMENTS), ("gRPC is imported", 3), ("the page is asked for", 3), ("the demo ends", 3)],
)
def test_ctrl_c_ends_the_demo_cleanly(tmp_path: Path, moment: str, presses: int) -> None:
    """The first thing that anybody runs, and its first impression: a traceback, and folders left in /tmp."""
    code, shown = interrupted_demo(tmp_path, MOMENTS[moment], presses)
    assert code in ((0, 130) if moment in LAST_MOMENTS else (130,)), shown
    assert "Traceback" not in shown
    assert "Exception ignored" not in shown
    assert "Aborted" not in shown
    assert list(tmp_path.iterdir()) == []


def interrupted_demo(folder: Path, marker: str, presses: int) -> tuple[int, str]:
    """Run the demo in a terminal, and press Ctrl-C once ``marker`` has been written. Return its exit code and what it wrote."""
    import pty

    parent, child = pty.openpty()
    command = [sys.executable, "-X", "importtime", "-m", "routeweiler_sync", "demo"]
    environ = bare_environ(TMPDIR=str(folder), TERM="xterm-256color", PYTHONIOENCODING="utf-8", COLUMNS="80")
    with subprocess.Popen(command, stdin=child, stdout=child, stderr=child, env=environ, start_new_session=True) as program:
        os.close(child)
        written, deadline = b"", time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline and select.select([parent], [], [], TIMEOUT_S)[0]:
            try:
                new = os.read(parent, 65536)
            except OSError:  # how a terminal says that its programs have ended
                break
            had, written = marker.encode() in written, written + new
            if not had and marker.encode() in written:
                for _ in range(presses):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(program.pid, signal.SIGINT)
        os.close(parent)
        assert marker.encode() in written
        return program.wait(TIMEOUT_S), written.decode()


def test_a_stop_is_heeded_between_two_steps_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt in the midst of a cleanup would leave half of it behind; one that is ignored in a step that hangs never ends."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    stop = StopSignal()
    stop.check()
    stop.press()
    stop.press()
    with pytest.raises(KeyboardInterrupt):
        stop.check()
    stop.check()
    now[0] += 10
    stop.press()

    hanging = StopSignal()
    hanging.press()
    now[0] += 10
    with pytest.raises(KeyboardInterrupt):
        hanging.press()
    hanging.press()


def test_after_a_stop_in_a_program_ctrl_c_works_as_before() -> None:
    """The commands are also called by programs, which go on after them."""
    before = signal.getsignal(signal.SIGINT)
    with stop_signal() as stop:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            stop.check()
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    ("argv", "orig", "is_ours"),
    [
        (["-m"], ["python", "-m", "routeweiler_sync", "demo"], True),
        (["-m"], ["python", "-X", "dev", "-m", "routeweiler_sync"], True),
        (["/usr/bin/routeweiler-sync", "demo"], ["python", "/usr/bin/routeweiler-sync", "demo"], True),
        (["C:\\x\\routeweiler-sync.exe".replace("\\", os.sep)], ["python"], True),
        (["-m"], ["python", "-m", "mine", "routeweiler_sync"], False),
        (["-c"], ["python", "-c", "import routeweiler_sync"], False),
        (["script.py", "routeweiler-sync"], ["python", "script.py", "routeweiler-sync"], False),
        ([""], ["python"], False),
        ([], [], False),
    ],
)
def test_only_the_command_changes_ctrl_c_while_it_is_imported(
    monkeypatch: pytest.MonkeyPatch, argv: list[str], orig: list[str], is_ours: bool
) -> None:
    """A program that imports the package would lose its own Ctrl-C, and with it the warning about a payment under way."""
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys, "orig_argv", orig)
    assert early_stop._is_the_command() is is_ours
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        early_stop.begin()
        assert (signal.getsignal(signal.SIGINT) is not signal.default_int_handler) is is_ours
        early_stop.end()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
