"""Write docs/reference/speed.md from the figures that the benchmarks wrote. The words are here, all numbers from the file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import measure

PAGE = Path(__file__).parent.parent / "docs" / "reference" / "speed.md"


@dataclass(frozen=True, kw_only=True)
class Section:
    """A benchmark on the page: ``name`` is its key in the file, ``module`` what is run, ``words`` stand above its table.

    ``peers``: whether it takes ``--peers``. ``rows``: only figures whose name has this text are shown.
    """

    name: str
    title: str
    module: Sequence[str]
    words: str
    peers: bool = False
    rows: str = ""


INTRODUCTION = """\
# Speed

How much this package costs beside plain `requests`, beside a loop by hand, and beside other libraries. The page is written by
`python -m benchmarks` from [figures.json](../../benchmarks/figures.json); what stands above each table says how to make its
figures anew.

In all tables *ours* is this package and *theirs* what it is compared with. Both took turns within one run. The *ratio* is ours
divided by theirs, the *difference* ours less theirs: of times, less is better; of purchases and lines a second, more. *95 %* is the
interval that has the number before it in 95 of 100 resamples; [how it is calculated](../../benchmarks/README.md). A goal is met or
missed by the value itself. Ratios hold on other machines too, times don't."""

SECTIONS = [
    Section(
        name="free_traffic",
        title="Calls without a purchase, and the import",
        module=["benchmarks.free_traffic"],
        words="""\
A call that isn't answered with 402, with a session whose ledger doesn't exist yet, one with 1,000 tokens of other origins, and
one that has somebody else's adapter mounted; then a call that a stored token goes along with, beside a session of `requests`
with a fixed header. The import is that of a fresh interpreter, in processor time. A call on loopback takes `requests` less than
a millisecond, so a percent is some microseconds; over a network it is nothing.""",
    ),
    Section(
        name="trace_lines",
        title="The trace",
        module=["benchmarks.trace_lines"],
        words="What a line of the JSONL trace costs, written by one process and by eight to one file; what a call costs with it.",
    ),
    Section(
        name="purchase",
        title="A purchase, on a fake node",
        module=["benchmarks.purchase"],
        peers=True,
        words="""\
`FakeLnd` settles at once, so this is what the libraries themselves cost, and how long they wait for the disk. *Warm*: the
session has bought before. *Cold*: client, ledger and session are new, and making them counts. *Fresh process*: from the start of an
interpreter to its end. The other libraries wait for no disk: `routeweiler` writes traces and tokens to SQLite without waiting
for it, `l402-requests` and `l402sdk` write nothing. None has a payment on disk before it is ordered, so after a crash only the
node knows what was paid. All wait for the settlement.""",
    ),
    Section(
        name="purchase_lnd",
        title="A purchase, on lnd",
        module=["benchmarks.purchase", "--node", "lnd"],
        peers=True,
        words="""\
The same through three real lnds in a row and a real aperture. Each purchase starts at a random moment: back to back, purchases
fall in step with the tick of 50 ms at which lnd commits updates of its channels. Most of the time is lnd's: the payment goes
over two channels, and its settlement comes back.""",
    ),
    Section(
        name="parts",
        title="Where the time of a purchase goes",
        module=["benchmarks.parts"],
        words="""\
A warm purchase on the fake node, taken apart. The two requests and the order to the node are what the bare loop does too. The
rest is what the promises cost: the intent is on disk before the order leaves, and the preimage before the page is handed over.""",
    ),
    Section(
        name="threads",
        title="64 threads on one session",
        module=["benchmarks.threads"],
        words="All threads use one session at the same time. A figure is the time until all have done their calls.",
    ),
    Section(
        name="throughput",
        title="Several processes on one ledger",
        module=["benchmarks.throughput"],
        words="""\
Purchases a second of all processes together. They share a ledger and a budget, so each purchase waits its turn to write; the
bare loops share and write nothing. Node and server are one process on the same machine, and take their share of its processors.""",
    ),
    Section(
        name="many_rows",
        title="Many rows",
        module=["benchmarks.many_rows"],
        words="""\
A ledger of many past payments: bytes on disk, its migration, commands (each a process of its own), a backup, and an archive of
half of the past while another process buys. [Large ledgers](../how-to/large-ledgers.md) says what follows.""",
    ),
    Section(
        name="purchase_counts",
        title="What a purchase asks of its ledger",
        module=["benchmarks.purchase_counts"],
        words="""\
Counted on a warm session that buys pages it has never seen. A test holds these counts, and
[large ledgers](../how-to/large-ledgers.md) calculates with them.""",
    ),
    Section(
        name="ledger_cost",
        title="A ledger with many payments",
        module=["benchmarks.ledger_cost"],
        rows="purchase",
        words="""\
What the ledger's part of a purchase, and a whole purchase, cost on a ledger with past payments, beside an empty one. `--size
full` has 1,000,000 of them, `--size short` 100,000.""",
    ),
    Section(
        name="report",
        title="The report",
        module=["benchmarks.report"],
        words="The time and the memory that the report needs for a trace with many events. `--size full` has 1,000,000 of them.",
    ),
    Section(
        name="memory",
        title="Memory, descriptors and threads",
        module=["benchmarks.memory"],
        words="How much a process grows with each call and each purchase, after its caches have filled.",
    ),
]


def text(found: Mapping[str, Any]) -> str:
    """Return the page for the file's content."""
    parts = [INTRODUCTION, *([_goals(found), _machine(found)] if found else ["Nothing has been measured yet."])]
    for section in SECTIONS:
        if section.name in found:
            parts.append(_section(section, found[section.name]))
    return "\n\n".join(parts) + "\n"


def _goals(found: Mapping[str, Any]) -> str:
    """Return a table of all figures that have a goal. What they are is said in their sections."""
    lines = ["## The goals", "", "| | figure | value | goal | |", "|---|---|---:|---|---|"]
    for section in SECTIONS:
        for figure in _figures(section, found[section.name]) if section.name in found else ():
            if figure.goal is not None:
                name = f"{figure.name}, against {figure.against}" if figure.against else figure.name
                met = "met" if figure.met else "missed"
                lines.append(f"| {section.title} | {name} | {measure.judged_text(figure)} | {measure.goal_text(figure)} | {met} |")
    return "\n".join(lines)


def _figures(section: Section, run: Mapping[str, Any]) -> list[measure.Figure]:
    """Return the figures of a run that the page shows."""
    return [measure.from_data(each) for each in run["figures"] if section.rows in each["name"]]


def _machine(found: Mapping[str, Any]) -> str:
    lines = ["## The machine", "", "| | |", "|---|---|"]
    each = list(found.values())
    facts = each[0]["machine"]
    fsyncs = sorted(run["machine"]["fsyncs_per_s"] for run in each)
    loads = [run["machine"]["load_before"] for run in each if run["machine"]["load_before"] is not None]
    libraries = ", ".join(f"{name} {version}" for name, version in facts["libraries"].items())
    taken = sorted({run["taken"] for run in each})
    rows = {
        "processor": f"{facts['processor']}, {facts['processors']} of them",
        "system": facts["system"],
        "Python": f"{facts['python']}, SQLite {facts['sqlite']}",
        "libraries": libraries,
        "fsyncs a second": f"{fsyncs[0]:,} to {fsyncs[-1]:,}",
        "load before a benchmark": f"{min(loads)} to {max(loads)}" if loads else "unknown",
        "taken": taken[0] if len(taken) == 1 else f"{taken[0]} to {taken[-1]}",
    }
    return "\n".join([*lines, *(f"| {name} | {value} |" for name, value in rows.items())])


def _section(section: Section, run: Mapping[str, Any]) -> str:
    figures = _figures(section, run)
    command = " ".join(["python -m", *section.module, f"--size {run['size']}", *(["--install-peers"] if section.peers else [])])
    shown, numbers = measure.columns(figures)
    rule = ["---:" if has_numbers else "---" for has_numbers in numbers]
    headings, *rows = zip(*shown, strict=True)
    table = ["| " + " | ".join(row) + " |" for row in (headings, rule, *rows)]
    notes = [f"- {note}" for note in run["notes"]]
    parts = [f"## {section.title}", section.words, f"    {command}", "\n".join(table), *(["\n".join(notes)] if notes else [])]
    return "\n\n".join(parts)
