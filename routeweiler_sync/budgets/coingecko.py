"""The price of bitcoin from CoinGecko, asked over a plain `requests.Session`. What a price means for a budget is `fmv`'s.

It fails closed: a price that can't be had, is nonsense or is too old is no price, and nothing is paid. API facts are from
CoinGecko's reference: "Coin Price by IDs" (``/simple/price``, its parameters, ``last_updated_at``), "Authentication" (addresses,
key headers).
"""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any
from urllib.parse import urlsplit

import requests

from .._core.forks import in_child
from .._core.money import FIAT_DECIMALS
from ..errors import FmvUnavailableError

log = logging.getLogger("routeweiler_sync")

PUBLIC_URL, PUBLIC_KEY_HEADER = "https://api.coingecko.com/api/v3", "x-cg-demo-api-key"
PRO_URL, PRO_KEY_HEADER = "https://pro-api.coingecko.com/api/v3", "x-cg-pro-api-key"

#: How often one question is asked before it is given up.
ATTEMPTS = 3
#: Pause between two attempts, growing; a server that wants a longer one (Retry-After) isn't waited for, but left alone so long.
MIN_PAUSE_S, MAX_PAUSE_S = 0.25, 2.0
#: After a failure nobody asks again for so long (or for Retry-After, up to the second bound): who comes meanwhile fails at once.
LEAVE_ALONE_S, LEAVE_ALONE_S_MAX = 5.0, 600.0
#: The answer is about 60 bytes; no more than this is read.
MAX_ANSWER_BYTES = 4_096
#: A price below or above is a blunder: one in another unit (per sat, per mBTC, in cents of a cent), or a placeholder.
PLAUSIBLE_USD = (1_000, 1_000_000_000)
YEN_PER_USD = 100
#: A price that is more than this many times another one, or less than one such part of it, isn't believed …
MAX_JUMP = 2
#: … unless the other one was asked for longer ago than this.
JUMP_MEMORY_S = 3_600.0
#: Attempts that were given up and whose connections haven't ended yet: with so many of them no further one is begun.
MAX_GIVEN_UP = 6
#: How much later than now, by this machine's clock, a price may be from.
CLOCK_TOLERANCE_S = 300.0

#: Held while a price is asked for: all threads want the same one, and the API counts questions.
_asking = threading.Lock()


@in_child
def _start_over_after_fork() -> None:
    global _asking
    _asking = threading.Lock()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Held:
    """A price, when it was asked for (by two clocks), and how old it was by then."""

    price: Decimal
    asked_at_s: float
    asked_at_monotonic_s: float
    age_then_s: float = 0.0

    @property
    def asked_ago_s(self) -> float:
        # One clock stands still while a machine sleeps, the other may be set back: the longer time counts.
        return max(time.time() - self.asked_at_s, time.monotonic() - self.asked_at_monotonic_s)

    @property
    def age_s(self) -> float:
        return self.asked_ago_s + self.age_then_s


class _NoPriceError(Exception):
    """An attempt that gave no price. ``again``: another may; ``pause_s``: after so long, says the server."""

    def __init__(self, why: str, *, again: bool = False, pause_s: float | None = None) -> None:
        super().__init__(why)
        self.again = again and (pause_s is None or pause_s <= MAX_PAUSE_S)
        self.pause_s = pause_s


class CoinGecko:
    """An `FmvProvider`: the price of bitcoin from CoinGecko, keyless or with an API key.

    ``api_key``: a demo key, or with ``pro=True`` a paid plan's; it goes into a header to ``base_url`` and nowhere else: in no repr,
    log, error or pickle. ``base_url``: another address of the same API. A price is asked for anew when ``max_age_s`` seconds have
    passed since the last one; where that fails, the last one serves until it is ``max_stale_s`` old, by CoinGecko's own word on
    its age. ``timeout_s`` bounds one attempt, however slowly its answer trickles in; there are at most three.
    Thread-safe, one question at a time.

    Raises ValueError for arguments that can't be. No money moves here.

    >>> CoinGecko()
    CoinGecko(base_url='https://api.coingecko.com/api/v3', keyed=False)
    """

    #: How the price is known, as the trace tells it (``fmvQuality``).
    quality = "coingecko_simple"

    def __init__(
        self,
        api_key: str | None = None,
        *,
        pro: bool = False,
        base_url: str | None = None,
        max_age_s: float = 60.0,
        max_stale_s: float = 600.0,
        timeout_s: float = 4.0,
    ) -> None:
        if pro and api_key is None:
            raise ValueError("CoinGecko's pro address needs an api_key")
        if api_key is not None:
            api_key = api_key.strip() if isinstance(api_key, str) else ""
            if not api_key or not api_key.isascii() or not api_key.isprintable() or " " in api_key:
                raise ValueError("api_key is a string of letters and digits, as CoinGecko shows it (what it is isn't told here)")
        for name, seconds in (("max_age_s", max_age_s), ("max_stale_s", max_stale_s), ("timeout_s", timeout_s)):
            if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds <= 86_400:
                raise ValueError(f"{name} is a number of seconds, above 0 and at most a day, not {seconds!r}")
        if max_stale_s < max_age_s:
            raise ValueError(f"max_stale_s, {max_stale_s}, is below max_age_s, {max_age_s}")
        self.base_url = (base_url or (PRO_URL if pro else PUBLIC_URL)).rstrip("/")
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.netloc or "@" in parts.netloc or parts.query:
            raise ValueError("base_url is an http or https URL without user:password@ and query")
        self.max_age_s, self.max_stale_s, self.timeout_s = max_age_s, max_stale_s, timeout_s
        self._headers = {} if api_key is None else {PRO_KEY_HEADER if pro else PUBLIC_KEY_HEADER: api_key}
        self._keyed = api_key is not None
        self._held: dict[str, _Held] = {}
        self._failed: tuple[str, float] = ("", 0.0)
        self._given_up: tuple[threading.Thread, ...] = ()

    def btc_price(self, currency: str) -> Decimal:
        """The price of one bitcoin in ``currency`` (``usd``, ``eur``, ``gbp``, ``jpy``), at most ``max_stale_s`` old.

        Raises FmvUnavailableError where there is none: nothing spent.
        """
        if currency not in FIAT_DECIMALS:
            raise FmvUnavailableError(
                f"No price of bitcoin in {currency!r} is asked for: only {', '.join(FIAT_DECIMALS)} are known.",
                advice="Use an envelope in one of these, or in sat.",
            )
        fresh = self._fresh(currency)
        if fresh is not None:
            return fresh
        try:
            return self._ask_alone(currency)
        except _NoPriceError as problem:
            held = self._held.get(currency)
            if held is not None and held.age_s <= self.max_stale_s:
                log.warning("no new price of bitcoin in %s: %s; that of %.0f s ago is used", currency, problem, held.age_s)
                return held.price
            raise FmvUnavailableError(
                f"CoinGecko gives no price of bitcoin in {currency}: {problem}.",
                advice="Try again later, use an envelope in sat, or give the session another fmv_provider.",
            ) from None  # the cause holds the request, and that the key

    def _ask_alone(self, currency: str) -> Decimal:
        asking = _asking  # a forked child has another
        if not asking.acquire(timeout=ATTEMPTS * (self.timeout_s + MAX_PAUSE_S)):  # longer than a question takes
            raise _NoPriceError("other threads' questions take too long")
        try:
            fresh = self._fresh(currency)  # whoever held the lock before may have asked for it
            return self._ask(currency) if fresh is None else fresh
        finally:
            asking.release()

    def _fresh(self, currency: str) -> Decimal | None:
        held = self._held.get(currency)
        usable = held is not None and held.asked_ago_s <= self.max_age_s and held.age_s <= self.max_stale_s
        return held.price if held is not None and usable else None

    def _ask(self, currency: str) -> Decimal:
        import tenacity

        why, until_s = self._failed
        if time.monotonic() < until_s:
            raise _NoPriceError(f"{why} (and it is left alone for a moment)")
        backoff = tenacity.wait_random_exponential(multiplier=MIN_PAUSE_S, max=MAX_PAUSE_S)

        def pause_s(state: tenacity.RetryCallState) -> float:
            problem = state.outcome.exception() if state.outcome is not None else None
            wanted_s = problem.pause_s if isinstance(problem, _NoPriceError) else None
            return backoff(state) if wanted_s is None else wanted_s

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(lambda error: isinstance(error, _NoPriceError) and error.again),
            stop=tenacity.stop_after_attempt(ATTEMPTS),
            wait=pause_s,
            reraise=True,
        )
        try:
            held = self._believed(currency, retrying(self._attempt, currency))
        except _NoPriceError as problem:
            self._failed = (str(problem), time.monotonic() + min(problem.pause_s or LEAVE_ALONE_S, LEAVE_ALONE_S_MAX))
            raise
        self._held[currency] = held
        return held.price

    def _attempt(self, currency: str) -> _Held:
        """Ask once, in a thread of its own: an answer whose head never ends is bounded by no timeout of requests'."""
        if self._keyed and not self._headers:
            raise _NoPriceError("its API key was left behind when this object was pickled; make a new one")
        self._given_up = tuple(each for each in self._given_up if each.is_alive())
        if len(self._given_up) >= MAX_GIVEN_UP:
            raise _NoPriceError(f"{MAX_GIVEN_UP} of its answers haven't ended yet")
        answers: queue.SimpleQueue[_Held | _NoPriceError] = queue.SimpleQueue()
        thread = threading.Thread(
            target=lambda: answers.put(self._answer(currency)), name="routeweiler-sync price of bitcoin", daemon=True
        )
        thread.start()
        try:
            answer = answers.get(timeout=self.timeout_s)
        except queue.Empty:
            self._given_up += (thread,)
            raise _NoPriceError("Timeout: its answer takes too long", again=True) from None
        if isinstance(answer, _NoPriceError):
            raise answer
        return answer

    def _answer(self, currency: str) -> _Held | _NoPriceError:
        try:
            return _price_in(self._asked(currency), currency)
        except _NoPriceError as problem:
            return problem
        except requests.RequestException as error:
            # A URL that can't be read is a proxy's: it may hold a password.
            shown = "" if isinstance(error, ValueError) or "@" in str(error) else f": {error}"
            return _NoPriceError(f"{type(error).__name__}{shown}", again=True)
        except Exception as error:  # noqa: BLE001  (urllib3 raises its own where a proxy's URL can't be read)
            return _NoPriceError(type(error).__name__, again=True)

    def _asked(self, currency: str) -> bytes:
        """The body of an answer. No redirect is followed: the key would go along."""
        session = _plain_session()
        with session, session.get(
            f"{self.base_url}/simple/price",
            params={"ids": "bitcoin", "vs_currencies": currency, "precision": "full", "include_last_updated_at": "true"},
            headers={"Accept": "application/json", **self._headers},
            timeout=(self.timeout_s / 2, self.timeout_s),  # time for a second address where the first is mute
            allow_redirects=False,
            stream=True,
        ) as response:  # fmt: skip
            if response.status_code != 200:
                again = response.status_code == 429 or response.status_code >= 500
                raise _NoPriceError(f"status {response.status_code}", again=again, pause_s=_retry_after_s(response))
            return _read(response, self.timeout_s)

    def _believed(self, currency: str, new: _Held) -> _Held:
        """``new``, unless it is too old, or too far from what was believed a short while ago."""
        if new.age_s > self.max_stale_s:
            raise _NoPriceError(f"its price is {new.age_s:.0f} s old, by this machine's clock")
        old = self._held.get(currency)
        if old is not None and old.asked_ago_s <= JUMP_MEMORY_S and not _near(new.price, old.price):
            raise _NoPriceError(f"its price has jumped from {old.price} to {new.price} within {old.asked_ago_s:.0f} s")
        return new

    def __repr__(self) -> str:
        return f"CoinGecko(base_url={self.base_url!r}, keyed={self._keyed})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_headers": {}, "_held": {}, "_failed": ("", 0.0), "_given_up": ()}

    def __copy__(self) -> CoinGecko:
        return self  # thread-safe, and what it knows is true for all

    def __deepcopy__(self, memo: object) -> CoinGecko:
        return self


def _near(new: Decimal, old: Decimal) -> bool:
    # Fractions: a program's own decimal context mustn't have a say.
    return Fraction(1, MAX_JUMP) <= Fraction(new) / Fraction(old) <= MAX_JUMP


def _plain_session() -> requests.Session:
    """A session of `requests` itself, also where a program (or we) put another class, one that pays or caches, in its place."""
    plain: type[requests.Session] = next(
        (base for base in requests.Session.__mro__ if base.__module__ == "requests.sessions"), requests.Session
    )
    return plain()


def _read(response: requests.Response, timeout_s: float) -> bytes:
    """The body, bounded in size and time: a server that trickles is one that doesn't answer."""
    body, end_s = bytearray(), time.monotonic() + timeout_s
    for byte in response.iter_content(1):
        body += byte
        if len(body) > MAX_ANSWER_BYTES or time.monotonic() > end_s:
            raise _NoPriceError("its answer is too long, or takes too long", again=True)
    return bytes(body)


def _retry_after_s(response: requests.Response) -> float | None:
    text = response.headers.get("Retry-After", "")
    return float(text) if text.isascii() and text.isdigit() and len(text) < 10 else None


def _price_in(body: bytes, currency: str) -> _Held:
    """The price in an answer such as ``{"bitcoin": {"usd": 67187.33, "last_updated_at": 1711356300}}``."""
    now_s = time.time()
    try:
        # Never through a float: the price is what the digits say.
        answer = json.loads(body, parse_float=Decimal, parse_int=Decimal, object_pairs_hook=_unique)
    except (ValueError, ArithmeticError, RecursionError):
        raise _NoPriceError("its answer is no JSON", again=True) from None
    prices = answer.get("bitcoin") if isinstance(answer, Mapping) else None
    price = prices.get(currency) if isinstance(prices, Mapping) else None
    factor = YEN_PER_USD if currency == "jpy" else 1
    if not isinstance(price, Decimal) or not PLAUSIBLE_USD[0] * factor <= price <= PLAUSIBLE_USD[1] * factor:
        told = price if isinstance(price, Decimal) else "nothing"
        raise _NoPriceError(f"it says {told!s:.40} for the price, and that can't be")
    updated_at = prices.get("last_updated_at") if isinstance(prices, Mapping) else None
    if not isinstance(updated_at, Decimal) or not updated_at.is_finite():
        raise _NoPriceError("it doesn't say from when its price is")
    if not 0 <= updated_at <= Decimal(now_s + CLOCK_TOLERANCE_S):
        raise _NoPriceError("its price is from the future, by this machine's clock")
    age_s = max(0.0, now_s - float(updated_at))
    return _Held(price=price, asked_at_s=now_s, asked_at_monotonic_s=time.monotonic(), age_then_s=age_s)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    known = dict(pairs)
    if len(known) < len(pairs):
        raise ValueError("a name twice in one object")  # which of two prices is meant?
    return known
