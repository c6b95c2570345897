"""The notebooks of docs/how-to/notebooks and of examples, run in a real kernel, and kernels that tests drive cell by cell.

``python -m tests.support.notebooks`` runs the notebooks and writes what came out into them.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import routeweiler_sync

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "how-to" / "notebooks"
#: All of them, by name.
PATHS = {path.stem: path for path in [*sorted(FOLDER.glob("*.ipynb")), *sorted((ROOT / "examples").glob("*.ipynb"))]}
TIMEOUT_S = 120
#: A cell with this tag shows what differs from run to run (ports, hashes): its outputs are checked for secrets, and not kept.
VARIES = "varies"
#: A cell with this tag waits for a payment, and says so on stderr. That isn't kept: it has a port and a hash.
SLOW = "slow"
#: What a token, a preimage or a macaroon looks like. A payment hash looks like a preimage, so it must say what it is.
SECRETS = re.compile(r"AgEEbHNhdA|(?<!payment hash )[0-9a-fA-F]{64}|lndconnect:|Authorization: L402 [A-Za-z0-9]")


@contextlib.contextmanager
def kernel_environ(folder: Path, **variables: str) -> Iterator[dict[str, str]]:
    """Give kernels that start in the block this package, and let them keep their files in ``folder``."""
    ours = {
        "PYTHONPATH": str(Path(routeweiler_sync.__file__).parents[1]),
        "IPYTHONDIR": str(folder / "ipython"),
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
        "JUPYTER_DATA_DIR": str(folder / "data"),
        "JUPYTER_PLATFORM_DIRS": "1",
        "HOME": str(folder / "home"),
        "ROUTEWEILER_LEDGER": str(folder / "mine.db"),
        **variables,
    }
    before = dict(os.environ)
    # In a test of pytest's, ipykernel would not show below the cell what C code writes to stderr.
    for name in [name for name in os.environ if re.match(r"LND_|POLAR_|ROUTEWEILER_|COLUMNS$|PYTEST_CURRENT_TEST$", name)]:
        del os.environ[name]
    os.environ.update(ours)
    try:
        yield dict(os.environ)
    finally:
        os.environ.clear()
        os.environ.update(before)


def run(path: Path, cwd: Path) -> Any:
    """Run all cells of a notebook in a kernel of their own, which starts in ``cwd``. Return the notebook with its outputs."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=TIMEOUT_S, kernel_name="python3", resources={"metadata": {"path": str(cwd)}}).execute()
    return notebook


def kept(cell: Any) -> list[tuple[str, str]]:
    """Return what is kept of the outputs of a cell: what it printed, and the text of its last value."""
    tags = cell.metadata.get("tags", ())
    found: list[tuple[str, str]] = []
    for output in cell.outputs:
        if VARIES in tags or (SLOW in tags and output.get("name") == "stderr"):
            continue
        if output.output_type == "stream":
            joins = bool(found) and found[-1][0] == output.name  # how many pieces it came in is chance
            found.append((output.name, (found.pop()[1] if joins else "") + output.text))
        else:
            found.append((output.output_type, output.get("data", {}).get("text/plain", "")))
    return found


def every_text(value: Any) -> Iterator[str]:
    """Yield each text in the outputs of a notebook: HTML, tracebacks and all."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from every_text(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from every_text(each)


class Kernel:
    """A real IPython kernel, driven as a notebook's page does it."""

    def __init__(self, environ: dict[str, str], cwd: Path) -> None:
        from jupyter_client.manager import KernelManager

        self._manager = KernelManager(kernel_name="python3")
        self._manager.start_kernel(env=environ, cwd=str(cwd))
        self._client = self._manager.blocking_client()
        self._client.start_channels()
        self._client.wait_for_ready(timeout=TIMEOUT_S)

    def __enter__(self) -> Kernel:
        return self

    def __exit__(self, *error: object) -> None:
        self._client.stop_channels()
        self._manager.shutdown_kernel(now=True)

    def begin(self, code: str) -> str:
        """Send a cell, and return its id at once."""
        id_ = self._client.execute(code)
        assert isinstance(id_, str)
        return id_

    def outputs(self, id_: str, until: str | None = None) -> dict[str, str]:
        """Return all that the cell put out, by kind (``stdout``, ``stderr``, ``error``, ``result``), once it has ended.

        With ``until``, return as soon as that text has come.
        """
        out = dict.fromkeys(("stdout", "stderr", "error", "result"), "")
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            try:
                message = self._client.get_iopub_msg(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise TimeoutError(f"the cell hasn't ended: {out}") from None
            if message["parent_header"].get("msg_id") != id_:
                continue
            kind, content = message["msg_type"], message["content"]
            if kind == "stream":
                out[content["name"]] += content["text"]
            elif kind == "error":
                out["error"] += "\n".join(content["traceback"])
            elif kind in ("execute_result", "display_data"):
                out["result"] += "\n".join(every_text(content["data"]))
            if (kind == "status" and content["execution_state"] == "idle") or (until and until in "".join(out.values())):
                return out

    def cell(self, code: str) -> dict[str, str]:
        """Run a cell, and return what it put out."""
        return self.outputs(self.begin(code))

    def interrupt(self) -> None:
        """Press the stop button."""
        self._manager.interrupt_kernel()

    def kill(self) -> None:
        """Kill the kernel at once, and start it anew."""
        self._manager.restart_kernel(now=True)
        self._client.wait_for_ready(timeout=TIMEOUT_S)


def write(path: Path) -> None:
    """Run a notebook and write what is kept of its outputs into its file."""
    import nbformat

    with tempfile.TemporaryDirectory() as folder, kernel_environ(Path(folder)):
        cwd = Path(folder) / "cwd"
        cwd.mkdir()
        notebook = run(path, cwd)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type != "code":
            continue
        cell.execution_count = None
        texts = kept(cell)
        cell.outputs = [
            nbformat.v4.new_output("stream", name=kind, text=text)
            if kind in ("stdout", "stderr")
            else nbformat.v4.new_output("execute_result", data={"text/plain": text})
            for kind, text in texts
        ]
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    nbformat.write(notebook, path)


if __name__ == "__main__":
    for each in PATHS.values():
        write(each)
        print(each.name, file=sys.stderr)
