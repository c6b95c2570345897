"""What a session pays with: its settings, checked, and what is made from them when needed (ledger, checkout, token cache).

A payer is cheap to make: nothing is opened, read or connected until it is needed, and what only paying needs isn't imported before
that. What the environment says is left to `environment`, buying to `payments.checkout`.
"""

from __future__ import annotations

import copy
import functools
import os
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from .._core.durations import read_seconds
from .._core.forks import importing
from .._core.preload import prepare_session
from .._core.secret_text import WHERE, kind_of, shown
from ..budgets.schema import SAFE_DEFAULT, BudgetEnvelope
from ..errors import LedgerError, RouteweilerError
from ..payments.tally import Tally
from ..payments.token_cache import TokenCache
from ..settings import Default, Unpayable
from . import unpicklable

if TYPE_CHECKING:
    from ..budgets.fmv import FmvProvider
    from ..funding.lightning import LightningFundingSource
    from ..ledger.ledger import Ledger
    from ..ledger.types import EnvelopeRow
    from ..payments.checkout import Checkout
    from ..payments.types import Quote
    from ..policy.dsl import Policy
    from ..trace.sink import TraceSink


def _open(ledger: Ledger | str | os.PathLike[str]) -> Ledger:
    from ..ledger.ledger import Ledger

    return Ledger.open(ledger)


def _ledger_of(payer: weakref.ref[Payer]) -> Ledger:
    alive = payer()
    assert alive is not None, "a token cache is asked by its payer alone"
    return alive.ledger


#: By URL: the ledger of the unpickled payers of this process, where it is a PostgreSQL database. An engine unpickles a session for
#: each task, and may keep those whose tasks have failed; each with connections of its own would be more than the server accepts.
_of_the_unpickled: weakref.WeakValueDictionary[str, Ledger] = weakref.WeakValueDictionary()


def _sink(given: TraceSink | str | os.PathLike[str] | None) -> TraceSink | None:
    if given is None:
        return None
    if isinstance(given, (str, os.PathLike)):
        from .env_settings import sink_at

        return sink_at(os.fspath(given))
    _must_have(given, "trace_sink", "a TraceSink or a path", "emit", "close")
    return given


def _must_have(given: object, name: str, what: str, *attributes: str) -> None:
    """Check now, not after a payment, that an argument has the attributes it needs. None passes.

    Raises: ValueError, which names the argument and says what it must be.
    """
    if given is not None and not all(hasattr(given, attribute) for attribute in attributes):
        raise ValueError(f"{name} must be {what}, not {shown(given)}")


class Payer:
    """The paying part of a session. Its arguments are those of `routeweiler_sync.Routeweiler`, and ``idle`` and ``problem``.

    A pickle, a copy or a forked child's payer keeps the settings and shares the ledger; everything else is made anew.

    Raises: ValueError for an argument that can't be used.
    """

    #: Of a copy: what its original knew to be in the ledger. See `Ledger.known`.
    _ledger_known: object = None

    def __init__(
        self,
        *,
        funding: Sequence[LightningFundingSource] = (),
        policy: Policy | None = None,
        budget_envelope: BudgetEnvelope | str | Default | None = Default.ENVELOPE,
        trace_sink: TraceSink | str | os.PathLike[str] | None = None,
        fmv_provider: FmvProvider | None = None,
        agent_id: str | None = None,
        session_id: str | None = None,
        ledger: Ledger | str | os.PathLike[str] | None = None,
        payment_timeout: float = 60.0,
        confirm: Callable[[Quote], bool] | None = None,
        unpayable: Unpayable = "raise",
        idle: bool = False,
        problem: RouteweilerError | None = None,
    ) -> None:
        prepare_session()
        #: Whether no wallet is named anywhere. Then the session behaves as one of `requests`.
        self.idle = idle
        #: A fault in the settings that keeps anything from being bought. It is raised when a call would have to pay.
        self.problem = problem
        #: The arguments that a pickle couldn't hold, each with the reason: without them, the unpickled copy buys nothing.
        self.lost: dict[str, str] = {}
        if isinstance(budget_envelope, Default):
            budget_envelope = SAFE_DEFAULT
        self.payment_timeout_s = read_seconds("payment_timeout", payment_timeout)
        if unpayable not in ("raise", "return"):
            raise ValueError(f"unpayable must be 'raise' or 'return', not {shown(unpayable)}")
        if budget_envelope is not None and not isinstance(budget_envelope, (str, BudgetEnvelope)):
            raise ValueError(
                f"budget_envelope must be a BudgetEnvelope, the id of one, or None for no limit, not {shown(budget_envelope)}"
            )
        for name, text in (("budget_envelope", budget_envelope), ("agent_id", agent_id), ("session_id", session_id)):
            text = text.id if isinstance(text, BudgetEnvelope) else text
            if isinstance(text, str) and (kind := kind_of(text)) != "a secret":
                raise ValueError(f"{name} looks like {kind}, and so isn't shown. {WHERE[kind]}.")
        if confirm is not None and not callable(confirm):
            raise ValueError(f"confirm must be a function that takes a Quote and returns True or False, not {shown(confirm)}")
        _must_have(policy, "policy", "a Policy", "policy_hash", "rules")
        _must_have(fmv_provider, "fmv_provider", "an FmvProvider, e.g. StaticRate", "btc_price", "quality")
        if isinstance(funding, (str, bytes)) or not isinstance(funding, Iterable):
            raise ValueError(f"funding must be a list of funding sources (see Funding.lightning_lnd), not {shown(funding)}")
        self.funding = tuple(funding)
        for source in self.funding:
            what = "a list of funding sources (see Funding.lightning_lnd)"
            _must_have(... if source is None else source, "funding", what, "network", "ready", "send", "track")
        self.policy = policy
        self.envelope = budget_envelope
        self.trace_sink = _sink(trace_sink)
        self.fmv_provider = fmv_provider
        self.agent_id = None if agent_id is None else str(agent_id)
        self.session_id = None if session_id is None else str(session_id)
        self.confirm = confirm
        self.unpayable = unpayable
        self._ledger_given = ledger
        self._twin_of: Payer | None = None
        self._started_s = time.time()
        if isinstance(ledger, (str, os.PathLike)) or (ledger is not None and not hasattr(ledger, "open_payment")):
            self._ledger_given = _open(ledger).url  # opens nothing; makes a relative path absolute now
        #: Whether it came out of a pickle.
        self._was_pickled = False
        self._make()

    def _make(self) -> None:
        self._ledger: Ledger | None = None
        self._checkout: Checkout | None = None
        # Without a cycle: a session that is dropped, an engine's unpickled one for instance, takes its connections with it at once.
        self.token_cache = TokenCache(functools.partial(_ledger_of, weakref.ref(self)))
        #: What the calls of this payer have spent. A copy, and an unpickled payer, begin at 0.
        self.tally = Tally()

    def twin(self) -> Payer:
        """Return a shared copy for another session: it uses, but never closes, this payer's ledger, tokens, node and trace."""
        made = object.__new__(type(self))
        made.__dict__.update(self.__dict__)
        made._checkout, made._twin_of, made._started_s = None, self, time.time()
        made.tally = Tally()
        return made

    @property
    def tallies(self) -> tuple[Tally, ...]:
        """What counts the spending of this payer's calls: its own tally, and that of the payer of which it is a shared copy."""
        return (self.tally,) if self._twin_of is None else (self.tally, *self._twin_of.tallies)

    @property
    def ledger(self) -> Ledger:
        """The ledger, which opens its file on first use. Default: ``$ROUTEWEILER_LEDGER``, else in the user's state folder.

        Raises: LedgerError if there is no place for it.
        """
        if self._twin_of is not None:
            return self._twin_of.ledger
        if self._ledger is None:
            from .env_settings import ledger_url

            given = self._ledger_given if self._ledger_given is not None else ledger_url()
            ledger = self._shared(given) if self._was_pickled and isinstance(given, str) else _open(given)
            ledger.expect(self._ledger_known)
            self._ledger = ledger
        return self._ledger

    @staticmethod
    def _shared(url: str) -> Ledger:
        """Return the ledger at ``url``; in PostgreSQL, the one that the other unpickled payers of this process have."""
        ledger = _open(url)
        return _of_the_unpickled.setdefault(ledger.url, ledger) if ledger.url.startswith("postgresql:") else ledger

    @property
    def checkout(self) -> Checkout:
        """The checkout, made on first use."""
        ledger = self.ledger  # before the lock: no other lock is taken under `importing`
        with importing:
            if self._checkout is None:
                from ..payments.checkout import Checkout

                self._checkout = Checkout(
                    funding=self.funding,
                    ledger=ledger,
                    envelope=self.envelope,
                    policy=self.policy,
                    fmv_provider=self.fmv_provider,
                    payment_timeout_s=self.payment_timeout_s,
                    confirm=self.confirm,
                    session_started_s=self._started_s,
                    problem=unpicklable.refusal(self.lost) if self.lost else self.problem,
                )
            return self._checkout

    @property
    def budget(self) -> EnvelopeRow | None:
        """The envelope in force, with what counts against it now; None if there is no limit. See `Ledger.in_force`."""
        return None if self.envelope is None else self.ledger.in_force(self.envelope, session_started_s=self._started_s)

    @property
    def envelope_id(self) -> str | None:
        """The id of the envelope in force; None if there is no limit."""
        return self.envelope if self.envelope is None or isinstance(self.envelope, str) else self.envelope.id

    @property
    def policy_hash(self) -> str | None:
        """The hash of the policy in force; None without a policy."""
        return None if self.policy is None else self.policy.policy_hash

    def close(self) -> None:
        """Close the trace, and the ledger unless a `Ledger` was given. Both open anew if used again.

        Connections to nodes stay open: they belong to the clients that were given, and other sessions may be paying over them. A
        shared copy (`twin`) closes nothing: other sessions use the same ledger and trace.
        """
        if self._twin_of is not None:
            return
        if self._ledger is not None and self._ledger is not self._ledger_given:
            if _of_the_unpickled.get(self._ledger.url) is self._ledger:
                self._ledger = self._checkout = None  # others may use it; it closes with the last of them
            else:
                self._ledger.close()
        if self.trace_sink is not None:
            self.trace_sink.close()

    def _settings(self) -> dict[str, Any]:
        """Return the state of a copy that has all settings of this payer, and shares its ledger."""
        dropped = {"_ledger", "_checkout", "_twin_of", "token_cache", "tally"}
        state = {name: value for name, value in self.__dict__.items() if name not in dropped}
        if not self.idle:
            with suppress(LedgerError):  # the first 402 reports it
                state["_ledger_given"] = self.ledger.url  # even if it is the default: the copy must share this very ledger
                state["_ledger_known"] = self.ledger.known()
        return state

    def __getstate__(self) -> dict[str, Any]:
        state, lost = self._settings(), dict(self.lost)
        for name in ("confirm", "policy", "fmv_provider", "trace_sink"):
            why = unpicklable.why_not(state[name])
            if why is not None:
                state[name] = unpicklable.LostSink(why) if name == "trace_sink" else None
                if name != "fmv_provider" or self._needs_rate:
                    lost[name] = why
        return {**state, "funding": unpicklable.kept_sources(self.funding), "lost": lost}

    @property
    def _needs_rate(self) -> bool:
        """Whether a purchase may need the price of bitcoin."""
        envelope, policy = self.envelope, self.policy
        return isinstance(envelope, str) or any(
            currency != "sat"
            for currency in (
                "sat" if envelope is None else envelope.cap_currency,
                "sat" if policy is None else policy.currency,
            )
        )

    def __copy__(self) -> Payer:
        return self._copied(lambda value: value)

    def __deepcopy__(self, memo: dict[int, Any]) -> Payer:
        def copied(value: Any) -> Any:
            try:
                return copy.deepcopy(value, memo)
            except Exception:  # noqa: BLE001 - what can't be copied, a wallet with a lock for instance, is shared
                return value

        made = self._copied(copied)
        made.confirm = self.confirm  # asks the very function: a copied method would have a copied object
        memo[id(self)] = made
        return made

    def _copied(self, copied: Callable[[Any], Any]) -> Payer:
        made = object.__new__(type(self))
        made._restore({name: copied(value) for name, value in self._settings().items()})
        return made

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._restore({**state, "_was_pickled": True})

    def _restore(self, state: dict[str, Any]) -> None:
        prepare_session()
        self.__dict__.update(state)
        self._twin_of = None
        self._make()
