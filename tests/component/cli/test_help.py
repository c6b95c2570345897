"""``--help`` of every command, and shell completion."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import routeweiler_sync
from routeweiler_sync.cli import main
from tests.support.cli_process import TIMEOUT_S, bare_environ

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "command-line.md"


def walk(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    if isinstance(command, click.Group):
        for name, each in command.commands.items():
            yield from walk(each, (*path, name))


COMMANDS = [" ".join(path) for path in walk(main)]


def help_of(command: str, columns: int = 80) -> str:
    """What ``--help`` prints on a terminal of that width: click leaves two columns free."""
    context = None
    group: click.Command = main
    for name in ["routeweiler-sync", *command.split()]:
        if context is not None:
            assert isinstance(group, click.Group)
            group = group.commands[name]
        context = click.Context(group, info_name=name, parent=context, max_content_width=columns, terminal_width=columns - 2)
    assert context is not None
    return group.get_help(context)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_by_an_example_of_the_command_itself(command: str) -> None:
    """Who asks for help has a task: a list of options is no answer to that."""
    text = help_of(command)
    assert re.search(r"^  Examples?:$", text, re.MULTILINE), text
    example = text[re.search(r"^  Examples?:$", text, re.MULTILINE).end() :]  # type: ignore[union-attr]
    assert f"routeweiler-sync {command}".rstrip() in example.split("\n\n")[0]


def test_what_the_package_says_of_itself_names_each_kind_of_wallet() -> None:
    """Whoever has no lnd, but LNbits or a wallet on the phone, would take the package for useless, and go."""
    settings = configparser.ConfigParser()
    settings.read(Path(__file__).parents[3] / "setup.cfg")
    texts = [settings["metadata"]["description"], (main.help or "").partition("\n\n")[0], routeweiler_sync.__doc__ or ""]
    for text in texts:
        for wallet in ("lnd", "LNbits", "Nostr Wallet Connect"):
            assert wallet in text
        assert "your own LND" not in text


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_not_cut_off(command: str) -> None:
    """'Print the command that bakes a macaroon which can pay, and do...' what?"""
    text = help_of(command)
    assert not [line for line in text.splitlines() if re.search(r"\w\.\.\.$", line)], text
    assert all(len(line) <= 80 for line in text.splitlines()), [line for line in text.splitlines() if len(line) > 80]
    listed = text.partition("\nCommands:\n")[2]
    for width in (40, 60) if listed else ():
        narrow = help_of(command, width).partition("\nCommands:\n")[2]
        assert "..." not in narrow
        assert " ".join(narrow.split()).endswith(" ".join(listed.split())[-20:])


@pytest.mark.parametrize("command", COMMANDS)
def test_the_options_of_the_examples_exist(command: str) -> None:
    """An example that can't be typed teaches the wrong thing."""
    text = help_of(command)
    for line in re.findall(r"^ +(?:lncli .*)?routeweiler-sync (.*)$", text, re.MULTILINE):
        words = line.split("|")[0].split()
        each: click.Command = main
        while words and isinstance(each, click.Group) and words[0] in each.commands:
            each = each.commands[words.pop(0)]
        names = {name for parameter in each.params for name in parameter.opts} | {"--help", "--its"}
        assert {word for word in words if re.fullmatch(r"--?[a-z][a-z-]*|-[A-Za-z]", word)} <= names, line


# Completion


@pytest.fixture
def console(tmp_path: Path) -> dict[str, str]:
    """An environment with ``routeweiler-sync`` on the path."""
    script = tmp_path / "bin" / "routeweiler-sync"
    script.parent.mkdir()
    script.write_text(f"#!{sys.executable}\nimport sys\nfrom routeweiler_sync.cli import main\nsys.exit(main())\n")
    script.chmod(0o755)
    return bare_environ(PATH=f"{script.parent}{os.pathsep}{os.environ['PATH']}")


def line_for(shell: str) -> str:
    """The line that the page has for a shell."""
    found = re.search(rf"^.*_ROUTEWEILER_SYNC_COMPLETE={shell}_source.*$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None
    return found[0].partition("  #")[0]


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix" or shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        (["pay"], {"payments"}),
        (["payments", "re"], {"recover"}),
        (["get", "--dr"], {"--dry-run"}),
        (["run", "--max"], {"--max-sats"}),
        (["payments", "list", "--state", "se"], {"settled"}),
    ],
)
def test_bash_completes_commands_options_and_choices(console: dict[str, str], typed: list[str], completed: set[str]) -> None:
    """The line of the page, as it stands, in a real bash."""
    words = " ".join(["routeweiler-sync", *typed])
    ask = f"COMP_WORDS=({words}); COMP_CWORD={len(typed)}; _routeweiler_sync_completion routeweiler-sync"
    script = f"{line_for('bash')}\n{ask}\nprintf '%s ' \"${{COMPREPLY[@]}}\""
    done = subprocess.run(["bash", "-c", script], env=console, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert set(done.stdout.split()) == completed, (done.stdout, done.stderr)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="no shells")
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_its_script(console: dict[str, str], shell: str) -> None:
    """A name in the page that click doesn't know completes nothing."""
    assert line_for(shell)
    environ = {**console, "_ROUTEWEILER_SYNC_COMPLETE": f"{shell}_source"}
    done = subprocess.run(["routeweiler-sync"], env=environ, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0
    assert "_ROUTEWEILER_SYNC_COMPLETE" in done.stdout
    if shutil.which(shell) is not None and shell != "bash":
        checked = subprocess.run([shell, "-n", "-c", done.stdout], capture_output=True, text=True, timeout=TIMEOUT_S)
        assert checked.returncode == 0, checked.stderr
