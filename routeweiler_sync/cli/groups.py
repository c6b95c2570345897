"""The class of groups of commands: their help lists each command with its whole sentence."""

from __future__ import annotations

import click

#: Longer than any sentence: click cuts off the sentences of a list at the end of a line unless it is told a longer limit.
_WHOLE = 10_000


class Group(click.Group):
    """A group of commands. On narrow terminals the sentences of its commands are continued on the next line, not cut off."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands."""
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        rows = [(name, command.get_short_help_str(_WHOLE)) for name, command in commands if command and not command.hidden]
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)
