"""Buy files, and go on where a download broke off: neither the money nor what has arrived is lost.

It prints:

    rain.csv: broke off, trying again: ConnectionError
    rain.csv: 0 of 300000 bytes are here
    rain.csv: 100000 of 300000 bytes are here
    rain.csv: 200000 of 300000 bytes are here
    rain.csv: done, 11 sat
    rain.csv: done, 0 sat
    wind.csv: 0 of 300000 bytes are here
    wind.csv: 100000 of 300000 bytes are here
    wind.csv: 200000 of 300000 bytes are here
    wind.csv: done, 11 sat
"""

from __future__ import annotations

import re
from pathlib import Path
from tempfile import TemporaryDirectory

from world import world

from routeweiler_sync import BudgetEnvelope, ConnectionError, Routeweiler, Timeout
from routeweiler_sync.testing import PaywallRequest

BUDGET = BudgetEnvelope("downloads", per_call_minor_units=50, per_day_minor_units=1_000)
TRIES_MAX = 5


def download(session: Routeweiler, url: str, path: Path) -> None:
    """Download ``url`` into ``path``. What is in ``path`` already is kept, also from a run that was killed."""
    before_msat = session.spent_msat
    failed = 0
    while True:
        have = path.stat().st_size if path.exists() else 0
        try:
            # The token of the first request goes along with the others: it was bought for the path.
            with session.get(url, headers={"Range": f"bytes={have}-"}, stream=True, timeout=60) as response:
                if response.status_code == 416:  # there is nothing after what is here
                    break
                response.raise_for_status()
                total = response.headers.get("Content-Range", "?").rpartition("/")[2]
                print(f"{path.name}: {have} of {total} bytes are here")
                with path.open("ab" if response.status_code == 206 else "wb") as file:  # 200: the server sends it whole
                    for piece in response.iter_content(1 << 16):
                        file.write(piece)
                if response.status_code == 200:
                    break
        except (ConnectionError, Timeout) as error:
            failed += 1
            if failed == TRIES_MAX:
                raise
            print(f"{path.name}: broke off, trying again: {type(error).__name__}")
    print(f"{path.name}: done, {(session.spent_msat - before_msat) // 1000} sat")


def ranges(request: PaywallRequest) -> tuple[int, dict[str, str], bytes]:
    """Answer as a file server does that sends at most 100,000 bytes at once."""
    content = bytes(300_000)
    found = re.fullmatch(r"bytes=(\d+)-", request.headers["Range"])
    begin = int(found[1]) if found else 0
    if begin >= len(content):
        return 416, {"Content-Range": f"bytes */{len(content)}"}, b""
    piece = content[begin : begin + 100_000]
    return 206, {"Content-Range": f"bytes {begin}-{begin + len(piece) - 1}/{len(content)}"}, piece


if __name__ == "__main__":
    with TemporaryDirectory() as folder, world(BUDGET, sells="path", respond=ranges) as (session, shop):
        shop.cut_next()  # the connection breaks after the first payment
        for name in ("rain.csv", "rain.csv", "wind.csv"):
            download(session, shop.url_for(f"/{name}"), Path(folder, name))
