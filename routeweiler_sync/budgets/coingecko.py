"""The price of bitcoin from CoinGecko's API, requested with a plain `requests.Session` that never pays.

This module knows the API, how often it may be asked, and which prices are believed. How a price is used for a budget is left to
`fmv`.

It fails closed: without a price that is plausible and recent enough, nothing is paid. The facts about the API are from CoinGecko's
reference: "Coin Price by IDs" (``/simple/price``, its parameters, ``last_updated_at``) and "Authentication" (addresses, key
headers).
"""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, localcontext
from fractions import Fraction
from typing import Any
from urllib.parse import urlsplit

import requests

from .._core import env_vars, retries
from .._core.forks import in_child
from .._core.log import log
from .._core.money import EXACT, FIAT_DECIMALS
from .._core.secret_text import shown
from ..errors import FmvUnavailableError

PUBLIC_URL, PUBLIC_KEY_HEADER = "https://api.coingecko.com/api/v3", "x-cg-demo-api-key"
PRO_URL, PRO_KEY_HEADER = "https://pro-api.coingecko.com/api/v3", "x-cg-pro-api-key"

#: How many times a price is requested before giving up.
ATTEMPTS = 3
#: Pause between two attempts; it grows from the first value to the second. If the server asks for a longer one (Retry-After), there
#: is no further attempt: the server gets no request for that long.
MIN_PAUSE_S, MAX_PAUSE_S = 0.25, 2.0
#: After a failure no request is made for this long, or for Retry-After up to the second value. Calls during that time fail at once.
LEAVE_ALONE_S, LEAVE_ALONE_S_MAX = 5.0, 600.0
#: Most bytes read of an answer. A normal one has about 60.
MAX_ANSWER_BYTES = 4_096
#: Lowest and highest plausible price in usd. Others are mistakes: a price in another unit (per sat, per mBTC, in hundredths of a
#: cent), or a placeholder. The range is used for eur and gbp too, and for jpy times `YEN_PER_USD`.
PLAUSIBLE_USD = (1_000, 1_000_000_000)
YEN_PER_USD = 100
#: A new price isn't believed if it is more than this many times the last one, or less than the last one divided by this.
MAX_JUMP = 2
#: `MAX_JUMP` applies for this long after the last price was requested.
JUMP_MEMORY_S = 3_600.0
#: The most attempts that were given up and whose threads are still waiting for an answer. With so many, no further attempt is made.
MAX_GIVEN_UP = 6
#: How far in the future, by this machine's clock, a price's time may be.
CLOCK_TOLERANCE_S = 300.0

#: Held while a price is requested. The other threads wait for the same price, because the API limits the number of requests.
_asking = threading.Lock()
#: The id of the thread that has the lock.
_asker: int | None = None


@in_child
def _start_over_after_fork() -> None:
    global _asking, _asker
    _asking, _asker = threading.Lock(), None


@dataclass(frozen=True, slots=True, kw_only=True)
class _KnownPrice:
    """A price that was received: when it was requested, by two clocks, and how old it was at that time by CoinGecko's timestamp."""

    price: Decimal
    asked_at_s: float
    asked_at_monotonic_s: float
    age_then_s: float = 0.0

    @property
    def asked_ago_s(self) -> float:
        # The monotonic clock may stop while the machine sleeps, and the wall clock may be set back. So the longer time counts.
        return max(time.time() - self.asked_at_s, time.monotonic() - self.asked_at_monotonic_s)

    @property
    def age_s(self) -> float:
        return self.asked_ago_s + self.age_then_s


class _NoPriceError(Exception):
    """An attempt gave no price. ``again``: another attempt may. ``pause_s``: how long to wait before it, by Retry-After."""

    def __init__(self, why: str, *, again: bool = False, pause_s: float | None = None) -> None:
        super().__init__(why)
        self.again = again and (pause_s is None or pause_s <= MAX_PAUSE_S)
        self.pause_s = pause_s


class CoinGecko:
    """An `FmvProvider` with the price of bitcoin from CoinGecko, with or without an API key.

    ``api_key`` is a demo key, or with ``pro=True`` the key of a paid plan. It is sent in a header to ``base_url`` and appears
    nowhere else: in no repr, log, error or pickle. ``base_url`` is another address of the same API.

    A price is used for ``max_age_s`` seconds, then a new one is requested. If that fails, the last price is still used until it is
    ``max_stale_s`` seconds old, counted from CoinGecko's own timestamp. ``timeout_s`` bounds one attempt, however slowly its answer
    arrives; there are at most three attempts. Thread-safe: one request at a time.

    Raises: ValueError for impossible arguments.
    Money: none moves here.

    >>> CoinGecko()
    CoinGecko(base_url='https://api.coingecko.com/api/v3', keyed=False)
    """

    #: How the price is known. The trace writes it as ``fmvQuality``.
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
            raise ValueError("CoinGecko(pro=True) needs an api_key")
        if api_key is not None:
            api_key = api_key.strip() if isinstance(api_key, str) else ""
            if not api_key or not api_key.isascii() or not api_key.isprintable() or " " in api_key:
                raise ValueError(
                    "api_key must be a string of letters and digits, as CoinGecko shows it (the value given isn't shown)"
                )
        for name, seconds in (("max_age_s", max_age_s), ("max_stale_s", max_stale_s), ("timeout_s", timeout_s)):
            if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds <= 86_400:
                raise ValueError(f"{name} must be a number of seconds above 0 and at most 86400, not {shown(seconds)}")
        if max_stale_s < max_age_s:
            raise ValueError(f"max_stale_s ({max_stale_s}) must not be below max_age_s ({max_age_s})")
        self.base_url = (base_url or (PRO_URL if pro else PUBLIC_URL)).rstrip("/")
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.netloc or "@" in parts.netloc or parts.query:
            raise ValueError("base_url must be an http or https URL without user:password@ and without a query")
        self.max_age_s, self.max_stale_s, self.timeout_s = max_age_s, max_stale_s, timeout_s
        self._headers = {} if api_key is None else {PRO_KEY_HEADER if pro else PUBLIC_KEY_HEADER: api_key}
        self._keyed = api_key is not None
        #: The last price for each currency.
        self._known: dict[str, _KnownPrice] = {}
        #: The last failure, and the monotonic time before which no request is made.
        self._failed: tuple[str, float] = ("", 0.0)
        self._given_up: tuple[threading.Thread, ...] = ()

    def btc_price(self, currency: str) -> Decimal:
        """Return the price of one bitcoin in ``currency`` (``usd``, ``eur``, ``gbp``, ``jpy``), at most ``max_stale_s`` old.

        Raises: FmvUnavailableError if there is none.
        """
        if currency not in FIAT_DECIMALS:
            raise FmvUnavailableError(
                f"There is no price of bitcoin in {shown(currency)}: the currencies are {', '.join(FIAT_DECIMALS)}.",
                advice="Use an envelope in one of these, or in sat.",
            )
        fresh = self._fresh(currency)
        if fresh is not None:
            return fresh
        try:
            return self._ask_alone(currency)
        except _NoPriceError as problem:
            known = self._known.get(currency)
            if known is not None and known.age_s <= self.max_stale_s:
                log.warning("no new price of bitcoin in %s: %s; the price from %.0f s ago is used", currency, problem, known.age_s)
                return known.price
            raise FmvUnavailableError(
                f"CoinGecko gives no price of bitcoin in {currency}: {problem}.",
                advice="Try again later, use an envelope in sat, or give the session another fmv_provider.",
                shell_advice=f"Try again later, or set {env_vars.BUDGET} in sat.",
            ) from None  # the cause has the request with the API key

    def _ask_alone(self, currency: str) -> Decimal:
        """Request a price while no other thread does, or return the one that another thread has just received."""
        global _asker
        if _asker == threading.get_ident():
            raise _NoPriceError("this same thread is requesting one, in a call that was interrupted by a handler or finalizer")
        asking = _asking  # a fork replaces the global, and the same lock must be released
        if not asking.acquire(timeout=ATTEMPTS * (self.timeout_s + MAX_PAUSE_S)):  # the longest that a request can take
            raise _NoPriceError("the requests of other threads take too long")
        try:
            _asker = threading.get_ident()
            fresh = self._fresh(currency)  # the thread that had the lock before may have received it
            return self._ask(currency) if fresh is None else fresh
        finally:
            _asker = None
            asking.release()

    def _fresh(self, currency: str) -> Decimal | None:
        """Return the last price if it may be used without a new request, or None."""
        known = self._known.get(currency)
        usable = known is not None and known.asked_ago_s <= self.max_age_s and known.age_s <= self.max_stale_s
        return known.price if known is not None and usable else None

    def _ask(self, currency: str) -> Decimal:
        """Request a price, up to `ATTEMPTS` times, and remember it. After a failure, remember not to ask for a while."""
        import tenacity

        why, until_s = self._failed
        if time.monotonic() < until_s:
            raise _NoPriceError(f"{why} (no new request is made for a moment)")
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
            known = self._believed(currency, retries.run(retrying, lambda: self._attempt(currency)))
        except _NoPriceError as problem:
            self._failed = (str(problem), time.monotonic() + min(problem.pause_s or LEAVE_ALONE_S, LEAVE_ALONE_S_MAX))
            raise
        self._known[currency] = known
        return known.price

    def _attempt(self, currency: str) -> _KnownPrice:
        """Request the price once, in a thread of its own: no timeout of `requests` bounds an answer whose headers never end."""
        if self._keyed and not self._headers:
            raise _NoPriceError("the API key isn't kept when a CoinGecko object is pickled; make a new object")
        self._given_up = tuple(each for each in self._given_up if each.is_alive())
        if len(self._given_up) >= MAX_GIVEN_UP:
            raise _NoPriceError(f"{MAX_GIVEN_UP} earlier requests are still without an answer")
        answers: queue.SimpleQueue[_KnownPrice | _NoPriceError] = queue.SimpleQueue()
        thread = threading.Thread(
            target=lambda: answers.put(self._answer(currency)), name="routeweiler-sync price of bitcoin", daemon=True
        )
        thread.start()
        try:
            answer = answers.get(timeout=self.timeout_s)
        except queue.Empty:
            self._given_up += (thread,)
            raise _NoPriceError("Timeout: the answer takes too long", again=True) from None
        if isinstance(answer, _NoPriceError):
            raise answer
        return answer

    def _answer(self, currency: str) -> _KnownPrice | _NoPriceError:
        """Return the price, or the reason why there is none. Raises no Exception: the waiting thread must get a result."""
        try:
            return _price_in(self._asked(currency), currency)
        except _NoPriceError as problem:
            return problem
        except requests.RequestException as error:
            # The error about a malformed URL repeats it. That can only be a proxy's URL, which may hold a password.
            shown = "" if isinstance(error, ValueError) or "@" in str(error) else f": {error}"
            return _NoPriceError(f"{type(error).__name__}{shown}", again=True)
        except Exception as error:  # noqa: BLE001  (urllib3 raises its own errors for a malformed proxy URL)
            return _NoPriceError(type(error).__name__, again=True)

    def _asked(self, currency: str) -> bytes:
        """Return the body of an answer with status 200. Redirects aren't followed: the API key would be sent there too."""
        session = _plain_session()
        with session, session.get(
            f"{self.base_url}/simple/price",
            params={"ids": "bitcoin", "vs_currencies": currency, "precision": "full", "include_last_updated_at": "true"},
            headers={"Accept": "application/json", **self._headers},
            timeout=(self.timeout_s / 2, self.timeout_s),  # half: time for a second address if the first is mute
            allow_redirects=False,
            stream=True,
        ) as response:  # fmt: skip
            if response.status_code != 200:
                again = response.status_code == 429 or response.status_code >= 500
                raise _NoPriceError(f"status {response.status_code}", again=again, pause_s=_retry_after_s(response))
            return _read(response, self.timeout_s)

    def _believed(self, currency: str, new: _KnownPrice) -> _KnownPrice:
        """Return ``new``. Raises _NoPriceError if it is too old, or too far from the price received a short while ago."""
        if new.age_s > self.max_stale_s:
            raise _NoPriceError(f"the price is {new.age_s:.0f} s old, by this machine's clock")
        old = self._known.get(currency)
        if old is not None and old.asked_ago_s <= JUMP_MEMORY_S and not _near(new.price, old.price):
            raise _NoPriceError(f"the price has jumped from {old.price} to {new.price} within {old.asked_ago_s:.0f} s")
        return new

    def __repr__(self) -> str:
        return f"CoinGecko(base_url={shown(self.base_url)}, keyed={self._keyed})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_headers": {}, "_known": {}, "_failed": ("", 0.0), "_given_up": ()}

    def __copy__(self) -> CoinGecko:
        return self  # thread-safe, and all users may share its price

    def __deepcopy__(self, memo: object) -> CoinGecko:
        return self


def _near(new: Decimal, old: Decimal) -> bool:
    # Fractions, because the decimal context of the user's program would affect a division of Decimals.
    return Fraction(1, MAX_JUMP) <= Fraction(new) / Fraction(old) <= MAX_JUMP


def _plain_session() -> requests.Session:
    """Return a session of `requests` itself, even if `requests.Session` was replaced by a class that pays or caches."""
    plain: type[requests.Session] = next(
        (base for base in requests.Session.__mro__ if base.__module__ == "requests.sessions"), requests.Session
    )
    return plain()


def _read(response: requests.Response, timeout_s: float) -> bytes:
    """Return the body. It is bounded in size and time: a server that sends it too slowly counts as one that doesn't answer."""
    body, end_s = bytearray(), time.monotonic() + timeout_s
    for byte in response.iter_content(1):
        body += byte
        if len(body) > MAX_ANSWER_BYTES or time.monotonic() > end_s:
            raise _NoPriceError("the answer is too long, or takes too long", again=True)
    return bytes(body)


def _retry_after_s(response: requests.Response) -> float | None:
    """Return the seconds in the header Retry-After, None if there is none or it is a date."""
    text = response.headers.get("Retry-After", "")
    return float(text) if text.isascii() and text.isdigit() and len(text) < 10 else None


def _price_in(body: bytes, currency: str) -> _KnownPrice:
    """Return the price in an answer such as ``{"bitcoin": {"usd": 67187.33, "last_updated_at": 1711356300}}``.

    Raises _NoPriceError for any other answer, an implausible price, and a time in the future.
    """
    with localcontext(EXACT):
        return _price_exactly(body, currency)


def _price_exactly(body: bytes, currency: str) -> _KnownPrice:
    now_s = time.time()
    try:
        # Numbers become Decimals directly, because a float would change the digits.
        answer = json.loads(body, parse_float=Decimal, parse_int=Decimal, object_pairs_hook=_unique)
    except (ValueError, ArithmeticError, RecursionError):
        raise _NoPriceError("the answer isn't JSON", again=True) from None
    prices = answer.get("bitcoin") if isinstance(answer, Mapping) else None
    price = prices.get(currency) if isinstance(prices, Mapping) else None
    factor = YEN_PER_USD if currency == "jpy" else 1
    if not isinstance(price, Decimal) or not PLAUSIBLE_USD[0] * factor <= price <= PLAUSIBLE_USD[1] * factor:
        shown = price if isinstance(price, Decimal) else "no number"
        raise _NoPriceError(f"the answer has {shown!s:.40} as the price, which is impossible")
    updated_at = prices.get("last_updated_at") if isinstance(prices, Mapping) else None
    if not isinstance(updated_at, Decimal) or not updated_at.is_finite():
        raise _NoPriceError("the answer doesn't say from when the price is")
    if not 0 <= updated_at <= Decimal(now_s + CLOCK_TOLERANCE_S):
        raise _NoPriceError("the price is from the future, by this machine's clock")
    age_s = max(0.0, now_s - float(updated_at))
    return _KnownPrice(price=price, asked_at_s=now_s, asked_at_monotonic_s=time.monotonic(), age_then_s=age_s)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    known = dict(pairs)
    if len(known) < len(pairs):
        raise ValueError("a name occurs twice in one object")  # it can't be known which of the two prices is meant
    return known
