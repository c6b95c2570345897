"""The notebooks of docs/how-to/notebooks and of examples run as they stand; a notebook's cells pay once, whenever they are stopped.

The kernels are real ones. ``python -m tests.support.notebooks`` writes what comes out of the notebooks now into them.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from routeweiler_sync.testing import FakeLnd, Paywall
from tests.support import notebooks
from tests.support.accounts import Books
from tests.support.notebooks import FOLDER, PATHS, SECRETS, Kernel, every_text, kept, kernel_environ

from .conftest import library

nbformat = library("nbformat", "notebooks")
library("nbclient", "notebooks")
library("ipykernel", "notebooks")
library("jupyter_client", "notebooks")

#: What a program begins with: a session on the node and the ledger that the environment names.
BEGIN = """
import routeweiler_sync
session = routeweiler_sync.Session()
url = {url!r}
"""
PAY = "print(session.get(url).text, end='')"


def test_every_notebook_is_tested_and_listed() -> None:
    """One that isn't listed is found by nobody."""
    assert sorted(PATHS) == ["budget", "notebook", "paid-dataset", "quick-start", "recovery"]
    listed = re.findall(r"\]\(([\w-]+)\.ipynb\)", (FOLDER / "index.md").read_text("utf-8"))
    assert sorted(listed) == sorted(path.stem for path in PATHS.values() if path.parent == FOLDER)


@pytest.mark.slow
@pytest.mark.parametrize("name", PATHS)
def test_a_notebook_runs_as_it_stands(name: str, tmp_path: Path) -> None:
    """Who runs a notebook would see something else than it shows, or an error; or it would leave files, or show a secret."""
    if name in ("notebook", "paid-dataset"):
        library("pandas", "notebooks")
    cwd = tmp_path / "cwd"
    cwd.mkdir()
    shutil.copy(PATHS[name], cwd)
    with kernel_environ(tmp_path):
        ran = notebooks.run(cwd / f"{name}.ipynb", cwd)
    committed = nbformat.read(PATHS[name], as_version=4)
    assert [kept(cell) for cell in ran.cells if cell.cell_type == "code"] == [
        [(output.get("name", output.output_type), output.get("text") or output.data["text/plain"]) for output in cell.outputs]
        for cell in committed.cells
        if cell.cell_type == "code"
    ]
    told = [cell for cell in ran.cells if notebooks.SLOW in cell.metadata.get("tags", ())]
    assert all("Still waiting for the payment" in "".join(every_text(cell.outputs)) for cell in told)
    for notebook in (ran, committed):
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
        assert not [text for text in every_text(outputs) if SECRETS.search(text)]
    assert [path.name for path in cwd.iterdir()] == [f"{name}.ipynb"], "a notebook leaves nothing behind"
    assert not (tmp_path / "mine.db").exists(), "nor is anything in the user's own ledger"


@pytest.mark.parametrize("name", PATHS)
def test_a_notebook_is_committed_as_it_is_read(name: str) -> None:
    """Counts, times and versions of whoever ran it last would change with each run."""
    notebook = json.loads(PATHS[name].read_text("utf-8"))
    nbformat.validate(nbformat.from_dict(notebook))
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert "version" not in notebook["metadata"]["language_info"]
    for cell in notebook["cells"]:
        assert set(cell["metadata"]) <= {"tags"}
        assert cell.get("execution_count") is None
    assert notebook["cells"][0]["cell_type"] == "markdown"
    assert notebook["cells"][0]["source"][0].startswith("# ")


# A kernel whose cells are stopped


class Lab:
    """A notebook with a session that pays through the test's node, on the test's ledger."""

    def __init__(self, folder: Path, lnd: FakeLnd, paywall: Paywall, books: Books) -> None:
        self.lnd, self.paywall, self.books = lnd, paywall, books
        variables = {**lnd.environ, "ROUTEWEILER_LEDGER": str(books.ledger_path), "ROUTEWEILER_TRACE": str(books.trace_path)}
        with kernel_environ(folder, **variables) as environ:
            self.kernel = Kernel(environ, folder)

    def begin(self) -> None:
        assert not self.kernel.cell(BEGIN.format(url=self.paywall.url))["error"]

    def check(self, out: dict[str, str]) -> None:
        """Look for secrets in what a cell put out."""
        text = "".join(out.values())
        for row in self.books.rows:
            assert row.token not in text
            assert row.preimage is None or row.preimage not in text


@pytest.fixture
def books(tmp_path: Path, lnd: FakeLnd) -> Books:
    return Books(tmp_path, lnd)


@pytest.fixture
def lab(tmp_path: Path, lnd: FakeLnd, paywall: Paywall, books: Books) -> Iterator[Lab]:
    made = Lab(tmp_path, lnd, paywall, books)
    with made.kernel:
        made.begin()
        yield made


@pytest.mark.slow
def test_a_stopped_cell_says_what_it_means_for_the_money_and_pays_once(lab: Lab) -> None:
    """Who stops a cell that hangs, and runs it again, would pay for the page twice."""
    lab.lnd.hang_next()
    running = lab.kernel.begin(PAY)
    lab.lnd.wait_for(lambda node: len(node.payments) == 1)
    lab.kernel.interrupt()
    out = lab.kernel.outputs(running)
    payment_hash = lab.lnd.payments[0].payment_hash
    assert "KeyboardInterrupt" in out["error"]
    assert f"Interrupted while the payment {payment_hash} of 10 sat to {lab.paywall.base_url} isn't finished" in out["stderr"]
    assert "nothing is paid twice" in out["stderr"]
    assert out["stdout"] == ""
    lab.check(out)

    lab.lnd.release()
    out = lab.kernel.cell(PAY)
    assert (out["stdout"], out["error"]) == ("paid content\n", "")
    assert len(lab.lnd.payments) == 1
    lab.books.check()


@pytest.mark.slow
def test_a_cell_that_is_stopped_again_and_again_pays_once(lab: Lab) -> None:
    """Impatience must not cost anything: each time the cell is run anew it waits for the same payment."""
    lab.lnd.hang_next(times=None)
    for _ in range(3):
        tracks = lab.lnd.calls["TrackPaymentV2"] + lab.lnd.calls["SendPaymentV2"]
        running = lab.kernel.begin(PAY)
        lab.lnd.wait_for(lambda node, seen=tracks: node.calls["TrackPaymentV2"] + node.calls["SendPaymentV2"] > seen)
        lab.kernel.interrupt()
        out = lab.kernel.outputs(running)
        assert "KeyboardInterrupt" in out["error"]
        assert "Interrupted while the payment" in out["stderr"]
    lab.lnd.release()
    assert lab.kernel.cell("print([row.state.value for row in session.recover()])")["stdout"] == "['settled']\n"
    assert lab.kernel.cell(PAY)["stdout"] == "paid content\n"
    assert len(lab.lnd.payments) == 1
    lab.books.check()


@pytest.mark.slow
def test_a_cell_stopped_while_its_order_is_on_the_way_pays_once(lab: Lab) -> None:
    """The order may arrive after the cell has ended: then the next cell must find that payment, and begin no other."""
    lab.lnd.hold_orders()
    running = lab.kernel.begin(PAY)
    lab.lnd.wait_for(lambda node: node.held_orders == 1)
    lab.kernel.interrupt()
    assert "Interrupted while the payment" in lab.kernel.outputs(running)["stderr"]
    assert not lab.lnd.payments
    lab.lnd.deliver_orders()
    assert lab.kernel.cell(PAY)["stdout"] == "paid content\n"
    assert len(lab.lnd.payments) == 1
    lab.books.check()


@pytest.mark.slow
def test_a_kernel_that_is_killed_while_it_pays_pays_once(lab: Lab) -> None:
    """A kernel runs out of memory, or is restarted: its payments must be found by the next."""
    lab.lnd.hang_next()
    lab.kernel.begin(PAY)
    lab.lnd.wait_for(lambda node: len(node.payments) == 1)
    lab.kernel.kill()
    lab.lnd.release()
    lab.begin()
    assert lab.kernel.cell(PAY)["stdout"] == "paid content\n"
    assert len(lab.lnd.payments) == 1
    lab.books.check()


@pytest.mark.slow
@pytest.mark.parametrize("shown_by", ["the cell", "the log"])
def test_a_cell_whose_payment_takes_long_says_so_once(lab: Lab, shown_by: str) -> None:
    """Else the cell shows nothing for a minute, and is stopped in the midst of a payment."""
    if shown_by == "the log":
        lab.kernel.cell("import logging; logging.basicConfig(level=logging.INFO)")
    lab.lnd.hang_next()
    running = lab.kernel.begin(PAY)
    first = lab.kernel.outputs(running, until="Still waiting")
    assert "Still waiting for the payment of 10 sat" in first["stderr"]
    lab.lnd.release()
    rest = lab.kernel.outputs(running)
    assert rest["stdout"] == "paid content\n"
    assert (first["stderr"] + rest["stderr"]).count("Still waiting") == 1
    lab.check(first)
    lab.books.check()


@pytest.mark.slow
def test_cells_pay_beside_the_running_loop(lab: Lab) -> None:
    """A notebook's cells run inside an event loop; a blocking call there must neither fail nor need a patch of asyncio."""
    out = lab.kernel.cell("import asyncio; print(asyncio.get_running_loop().is_running())\n" + PAY)
    assert (out["stdout"], out["stderr"], out["error"]) == ("True\npaid content\n", "", "")
    out = lab.kernel.cell("response = await asyncio.to_thread(session.get, url + '/2'); print(response.payment.reused)")
    assert (out["stdout"], out["stderr"], out["error"]) == ("True\n", "", "")
    lab.books.check()


@pytest.mark.slow
def test_a_traceback_with_all_variables_shows_no_secret(lab: Lab) -> None:
    """``%xmode Verbose`` prints the variables of every frame, and notebooks are sent around with their outputs."""
    lab.kernel.cell("%xmode Verbose")
    lab.paywall.faults.refuse_tokens = True
    out = lab.kernel.cell(PAY)
    assert "TokenRefusedError" in out["error"]
    lab.check(out)
    lab.paywall.faults.refuse_tokens = 0
    lab.paywall.cut_next(times=5)
    out = lab.kernel.cell(PAY)
    assert "ConnectionError" in out["error"]
    lab.check(out)
