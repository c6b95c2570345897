"""Make the two pictures of README.md: what the demo prints, and what the page of a report looks like.

    python docs/pictures.py             writes docs/images/demo.svg and docs/images/report.png
    python docs/pictures.py demo        writes the first of them, report the second, which needs Chromium and matplotlib

What differs from one demo to the next (ports, hashes, times) is the same in each picture, so it changes only where the demo does.
"""

from __future__ import annotations

import copy
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from datetime import datetime, timedelta, timezone
from html import unescape
from pathlib import Path

from rich.color_triplet import ColorTriplet
from rich.console import Console
from rich.terminal_theme import SVG_EXPORT_THEME
from rich.text import Text

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
COLUMNS = 80
TIMEOUT_S = 120
#: What changes from run to run, and what a picture has in its place.
SAME = {
    r"127\.0\.0\.1:\d+": "127.0.0.1:8081",
    r"[0-9a-f]{16}…": "3c4264b1155bf649…",
    r"lnbcrt100n1p\w+…": "lnbcrt100n1p4scs…",
    r"in \d+ min": "in 60 min",
    r"routeweiler-sync \d+\.\d+\.\d+\S* demo": "routeweiler-sync demo",
}
#: The time of a step, and those of the picture, in order.
TIME, TIMES = re.compile(r"(?m)^((?:\x1b\[\d+m)?)(?: *\d+| +<1) ms"), ("<1", "260", "263", "269", "278")
#: The picture ends before this scene: it shows the first purchase.
UNTIL = "── The same page again"
#: rich's own, on a background that is nearly black: the commands' colours are chosen for black and for white.
THEME = copy.copy(SVG_EXPORT_THEME)
THEME.background_color = ColorTriplet(13, 17, 23)
#: rich's template without what a picture must not fetch: a font from another server.
SVG = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-label="The output of routeweiler-sync demo">
<style>
.{unique_id}-matrix {{font-family: Consolas, Menlo, "DejaVu Sans Mono", "Liberation Mono", monospace; font-size: {char_height}px;
line-height: {line_height}px; font-variant-east-asian: full-width}}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal"><rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/></clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""
#: The report in the picture.
CALLS, DAYS, WIDTH, HEIGHT = 400, 30, 1000, 965
HOSTS = {"https://weather.example": 10_000, "https://maps.example": 25_000, "https://news.example": 4_000}


def demo(**environ: str) -> str:
    """Return what the first scene of the demo prints, with the same ports, hashes and times in each run."""
    command = [sys.executable, "-m", "routeweiler_sync", "demo"]
    environ = {**os.environ, "COLUMNS": str(COLUMNS), "PYTHONIOENCODING": "utf-8", **environ}
    done = subprocess.run(command, env=environ, stdout=subprocess.PIPE, encoding="utf-8", timeout=TIMEOUT_S, check=True)  # noqa: S603 - our own program
    text = done.stdout
    for pattern, same in SAME.items():
        text = re.sub(pattern, same, text)
    times = iter(TIMES)
    text = TIME.sub(lambda found: f"{found[1]}{next(times, '300'):>7} ms", text)
    lines = text.splitlines()
    end = next(number for number, line in enumerate(lines) if UNTIL in re.sub(r"\x1b\[[\d;]*m", "", line))
    return "\n".join(lines[:end]).rstrip()


def demo_svg(text: str) -> str:
    """Return a picture of a terminal with this text, which has escape codes for colours."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        console = Console(record=True, width=COLUMNS, file=nowhere, force_terminal=True, color_system="truecolor")
        console.print(Text.from_ansi(text))
        return console.export_svg(title="routeweiler-sync demo", code_format=SVG, theme=THEME, unique_id="demo")


def text_of(svg: str) -> str:
    """Return the text that such a picture shows, without the blanks at the beginnings of lines."""
    lines: dict[int, str] = {}
    for number, piece in re.findall(r'<text[^>]*clip-path="url\(#demo-line-(\d+)\)"[^>]*>([^<]*)</text>', svg):
        lines[int(number)] = lines.get(int(number), "") + unescape(piece).replace("\N{NO-BREAK SPACE}", " ")
    return "\n".join(lines.get(number, "").strip() for number in range(max(lines) + 1))


def trace(path: Path) -> None:
    """Write the trace of a month: most calls pay or use a token, a few fail."""
    from tests.support.trace_events import failed_event, free_event, paid_event

    chance = random.Random(21)  # noqa: S311 - a picture of chance payments
    begin = datetime(2026, 10, 1, tzinfo=timezone.utc)
    paid, free, failed = (event.to_json_dict() for event in (paid_event(), free_event(), failed_event("The connection broke.")))
    with path.open("w", encoding="utf-8") as file:
        for number in range(CALLS):
            at = begin + timedelta(days=DAYS * number / CALLS)
            host = chance.choices(list(HOSTS), (6, 2, 3))[0]
            kind = chance.choices((paid, free, failed), (12, 5, 1))[0]
            event = json.loads(json.dumps(kind))
            took = timedelta(milliseconds=chance.randint(180, 900))
            event |= {"requestId": f"{number:032x}", "url": f"{host}/page/{number}", "envelopeId": "default"}
            event |= {"timestampStart": stamp(at), "timestampEnd": stamp(at + took)}
            if event["payment"]:
                amount, fee = HOSTS[host], chance.choice((0, 1_000, 1_000, 2_000))
                event["challenge"] |= {"url": event["url"], "amountMsat": amount, "paymentHash": f"{number:064x}"}
                event["payment"] |= {
                    "paymentHash": f"{number:064x}",
                    "amountMsat": amount,
                    "feeMsat": fee,
                    "amountNative": amount / 1_000,
                    "amountEnvelope": f"{(amount + fee) / 1000:.3f}",
                    "settlementLatencyMs": chance.randint(90, 700),
                }
            file.write(json.dumps(event) + "\n")


def stamp(at: datetime) -> str:
    """Return the time as the trace writes it."""
    return at.isoformat(timespec="microseconds").replace("+00:00", "Z")


def report_png(into: Path) -> None:
    """Write a picture of the page that `routeweiler-sync report --html` makes of `trace`."""
    from PIL import Image

    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("The picture of the report needs Chromium.")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        trace(folder / "trace.jsonl")
        made = ["report", "--trace", str(folder / "trace.jsonl"), "--html", str(folder / "report.html")]
        subprocess.run([sys.executable, "-m", "routeweiler_sync", *made], timeout=TIMEOUT_S, check=True)  # noqa: S603 - our own program
        shot = ["--headless", "--no-sandbox", "--hide-scrollbars", f"--user-data-dir={folder / 'profile'}"]
        shot += [f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={folder / 'shot.png'}", (folder / "report.html").as_uri()]
        subprocess.run([chromium, *shot], timeout=TIMEOUT_S, check=True, stderr=subprocess.DEVNULL)  # noqa: S603 - a page of ours
        with Image.open(folder / "shot.png") as picture:  # 64 colours are enough, and a quarter of the bytes
            picture.convert("RGB").quantize(64).save(into, optimize=True)


def main(arguments: list[str]) -> None:
    """Write the pictures that are named, or both."""
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    sys.path.insert(0, str(ROOT))
    IMAGES.mkdir(exist_ok=True)
    if "demo" in arguments or not arguments:
        svg = demo_svg(demo(FORCE_COLOR="1", TERM="xterm-256color"))
        (IMAGES / "demo.svg").write_text(svg, encoding="utf-8")
    if "report" in arguments or not arguments:
        report_png(IMAGES / "report.png")


if __name__ == "__main__":
    main(sys.argv[1:])
