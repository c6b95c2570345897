"""``routeweiler-sync mcp`` as a process, and the results of its tools as the client of the official SDK has them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any

from .cli_process import bare_environ

if TYPE_CHECKING:
    from mcp import Client

TIMEOUT_S = 180.0


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), TIMEOUT_S))


def over_stdio(environ: dict[str, str], *options: str) -> Any:
    """What the client starts a server of its own by."""
    from mcp.client.stdio import StdioServerParameters

    return StdioServerParameters(
        command=sys.executable, args=["-m", "routeweiler_sync", "mcp", *options], env=bare_environ(**environ)
    )


@contextlib.asynccontextmanager
async def over_http(environ: dict[str, str], *options: str) -> AsyncIterator[tuple[str, subprocess.Popen[str]]]:
    """A server over HTTP: its URL, and its process, which is killed in the end."""
    command = [sys.executable, "-m", "routeweiler_sync", "mcp", "--http", "0", *options]
    with subprocess.Popen(command, env=bare_environ(**environ), stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            line = await asyncio.to_thread(process.stderr.readline)
            found = re.search(r"http://127\.0\.0\.1:\d+/mcp", line)
            assert found, line + process.stderr.read()
            yield found[0], process
        finally:
            process.kill()


async def call(client: Client, tool: str, /, **arguments: Any) -> Any:
    """The structured result of a tool, which is also its text. An error is marked as one."""
    result = await client.call_tool(tool, arguments)
    found = json.loads(result.content[0].text)  # type: ignore[union-attr]
    assert found == (result.structured_content or found)
    assert result.is_error == (found["error"] is not None)
    return found


async def spending(client: Client) -> Any:
    """What the resource of that name says."""
    [resource] = (await client.list_resources()).resources
    assert resource.name == "spending"
    [content] = (await client.read_resource(str(resource.uri))).contents
    return json.loads(content.text)  # type: ignore[union-attr]
