"""The program that `test_diary.py` tests: it writes the weather of some cities into a diary."""

from __future__ import annotations

from pathlib import Path

from routeweiler_sync import PaymentPendingError, Routeweiler, Session

SATS_MAX = 100


def write(session: Routeweiler, base_url: str, cities: list[str], diary: Path) -> int:
    """Add a line for each city that isn't in the diary yet. Return how many there are now. Spends at most `SATS_MAX`."""
    lines = diary.read_text("utf-8").splitlines() if diary.exists() else []
    with session.limit(sats=SATS_MAX):
        for city in cities:
            if any(line.startswith(f"{city}: ") for line in lines):
                continue
            try:
                response = session.get(f"{base_url}/{city}", timeout=30)
            except PaymentPendingError:
                continue  # it may have been paid: the next run asks again, and pays nothing twice
            response.raise_for_status()
            lines.append(f"{city}: {response.text.strip()}")
            diary.write_text("\n".join(lines) + "\n", "utf-8")
    return len(lines)


if __name__ == "__main__":
    with Session() as session:  # pays with the wallet that the environment names
        write(session, "https://weather.example", ["berlin", "paris"], Path("diary.txt"))
