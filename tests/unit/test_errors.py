"""An error's text: what happened, what became of the money, what to do. Users decide by it whether to pay again."""

from __future__ import annotations

import copy
import copyreg
import inspect
import pickle

import pytest
import requests

from routeweiler_sync import errors
from routeweiler_sync.errors import (
    FundingError,
    InvoicePaymentError,
    LedgerError,
    PaymentPendingError,
    PreimageMismatchError,
    RouteweilerError,
    TokenRefusedError,
)

HASH = "ab" * 32
NOTHING, GONE, UNKNOWN = "Nothing was spent.", "The money is spent.", "Whether money was spent isn't known yet."
BY_THIS_CALL = "Nothing was spent by this call."
KINDS = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, RouteweilerError)]
SPENT_BY_DEFAULT = {PaymentPendingError: None, TokenRefusedError: True, PreimageMismatchError: True}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_text_is_what_happened_then_the_money_then_the_advice(kind: type[RouteweilerError]) -> None:
    """Without the middle sentence a user must guess whether calling again pays a second time."""
    spent = SPENT_BY_DEFAULT.get(kind, False)
    nothing = BY_THIS_CALL if kind in (LedgerError, TokenRefusedError) else NOTHING
    error = kind("It broke.", advice="Mend it.")
    assert error.spent is spent
    assert error.money_sentence == {None: UNKNOWN, True: GONE, False: nothing}[spent]
    assert str(error) == f"It broke. {error.money_sentence} Mend it."
    assert isinstance(error, requests.RequestException)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_each_kind_of_error_has_a_name_of_its_own_for_the_trace(kind: type[RouteweilerError]) -> None:
    """Two kinds of one name can't be told apart in the trace of last month."""
    assert [each for each in KINDS if each.code == kind.code] == [kind]


@pytest.mark.parametrize(("spent", "sentence"), [(False, NOTHING), (True, GONE), (None, UNKNOWN)])
def test_what_is_known_of_the_money_may_differ_from_the_class(spent: bool | None, sentence: str) -> None:
    """A node that fails after the payment left raises a FundingError too: "Nothing was spent" would be a lie."""
    error = FundingError("The node is away.", spent=spent, advice="Start it.")
    assert error.spent is spent
    assert str(error) == f"The node is away. {sentence} Start it."


@pytest.mark.parametrize("kind", [LedgerError, TokenRefusedError])
def test_where_earlier_calls_may_have_paid_nothing_is_said_of_those(kind: type[RouteweilerError]) -> None:
    """The tokens that were refused, and the rows that can't be read, are paid for: "Nothing was spent" would deny that."""
    assert str(kind("It broke.", spent=False, advice="Mend it.")) == f"It broke. {BY_THIS_CALL} Mend it."


def test_what_becomes_known_later_is_in_the_text() -> None:
    """An error is made before its call's money is counted: a sentence fixed at its making would tell of what was known then."""
    error = FundingError("The node is away.", advice="Start it.")
    assert NOTHING in str(error)
    error.spent = True
    assert str(error) == f"The node is away. {GONE} Start it."
    error.spent = None
    assert str(error) == f"The node is away. {UNKNOWN} Start it."


def test_what_the_call_had_paid_before_is_in_the_text() -> None:
    """A chain of redirects has paid two pages when the third is refused: "Nothing was spent" hides twenty sats."""
    error = FundingError("The node is away.", advice="Start it.")
    error.paid_before_msat = 20_000
    assert NOTHING not in str(error)
    assert str(error).startswith("The node is away. Nothing more was spent; this call has paid 20 sat before")
    assert str(error).endswith(" Start it.")


@pytest.mark.parametrize("spent", [False, True, None])
def test_an_error_without_advice_is_its_text_alone(spent: bool | None) -> None:
    """A wallet of one's own raises with a text that says all: sentences of ours behind it would contradict it."""
    assert str(FundingError("My wallet says no", spent=spent)) == "My wallet says no"
    assert FundingError("My wallet says no", spent=spent).advice is None


def test_advice_that_is_empty_leaves_what_happened_and_the_money() -> None:
    """Else an error that has nothing to advise would say nothing of the money either."""
    assert str(FundingError("The node is away.", advice="")) == f"The node is away. {NOTHING}"


@pytest.mark.parametrize(("what", "ended"), [("No route", "No route."), ("Why?", "Why?"), ("No!", "No!"), ("No.", "No.")])
def test_what_happened_ends_as_a_sentence(what: str, ended: str) -> None:
    """Two sentences that run into each other are read as one."""
    assert str(InvoicePaymentError(what, advice="Call again.")) == f"{ended} {NOTHING} Call again."


def test_the_brief_form_leaves_the_money_out() -> None:
    """A text that speaks of the money itself would say it twice, or say two things."""
    error = FundingError("The node is away.", spent=True, advice="Start it.")
    assert error.brief == "The node is away (Start it)"
    assert FundingError("The node is away.").brief == "The node is away."
    assert error.what == "The node is away."


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_copy_is_an_error_of_its_own_beside_dask(kind: type[RouteweilerError], monkeypatch: pytest.MonkeyPatch) -> None:
    """Dask lets tblib copy the errors of all classes that are there when it is imported."""
    support = pytest.importorskip("tblib.pickling_support", reason="tblib isn't installed: pip install 'routeweiler-sync[engines]'")
    monkeypatch.setitem(copyreg.dispatch_table, kind, support.pickle_exception)
    error = kind("It broke.", advice="Mend it.")
    twin = copy.copy(error)
    twin.advice = "Leave it."
    assert (type(twin), error.advice, twin.what, twin.spent) == (kind, "Mend it.", error.what, error.spent)


@pytest.mark.parametrize("way", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy, copy.deepcopy])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_error_from_another_process_is_the_same_error(kind: type[RouteweilerError], way) -> None:
    """A pool hands its workers' errors over as pickles: one that forgets `spent` there says "Nothing was spent" of spent money."""
    given = not SPENT_BY_DEFAULT.get(kind, False)
    error = kind("It broke.", advice="Mend it.", spent=given, payment_hash=HASH)
    error.paid_before_msat = 1_000
    twin = way(error)
    assert type(twin) is kind
    assert (twin.advice, twin.spent, twin.payment_hash, twin.paid_before_msat) == ("Mend it.", given, HASH, 1_000)
    assert (str(twin), twin.args, twin.what, twin.brief) == (str(error), error.args, error.what, error.brief)
    twin.paid_before_msat = 0
    assert str(twin) != str(error)


def test_the_nodes_reason_survives_a_pickle() -> None:
    """A program that retries on NO_ROUTE alone would do so in one process, and not in a pool."""
    error = InvoicePaymentError("No way.", failure_reason="NO_ROUTE", advice="Call again.")
    assert pickle.loads(pickle.dumps(error)).failure_reason == "NO_ROUTE"
    assert InvoicePaymentError("No way.").failure_reason is None


def test_an_instance_says_nothing_of_its_class() -> None:
    """Set on the class, what is known of one error would be told of all later ones."""
    error = FundingError("The node is away.", spent=True, payment_hash=HASH, advice="Start it.")
    error.paid_before_msat = 1
    fresh = FundingError("The node is away.")
    assert (fresh.spent, fresh.payment_hash, fresh.advice, fresh.paid_before_msat) == (False, None, None, 0)


def test_request_and_response_are_taken_as_requests_takes_them() -> None:
    """Handlers for `requests` look at `error.response.status_code`."""
    response = requests.Response()
    response.request = requests.Request("GET", "https://shop.example/page").prepare()
    error = TokenRefusedError("Refused.", response=response, advice="Call again.")
    assert (error.response, error.request) == (response, response.request)


def test_an_error_without_advice_says_so_too_where_its_call_had_paid_before() -> None:
    """A wallet of one's own raises "offline": log and trace would say nothing of the money that the call's first hop has spent."""
    error = FundingError("offline")
    error.spent, error.paid_before_msat = True, 5_000
    assert str(error) == "offline. Nothing more was spent; this call has paid 5 sat before, and its tokens are kept."


def test_a_subclass_may_have_attributes_of_the_same_names() -> None:
    """An error of a program's own wallet that sets ``what`` would fail to be made: "nothing was sent" would become "not known"."""

    class Locked(FundingError):
        def __init__(self, what: str) -> None:
            super().__init__(f"locked: {what}")
            self.what = what  # type: ignore[assignment]

    error = Locked("wallet")
    assert (error.what, error.brief, str(error)) == ("wallet", "locked: wallet", "locked: wallet")


def test_a_text_that_a_subclass_makes_in_str_is_kept_in_longer_texts() -> None:
    """The cause would be gone from the error of the call, and from the ledger's row."""

    class Locked(FundingError):
        def __str__(self) -> str:
            return "the wallet is locked" + super().__str__()

    assert (Locked().brief, Locked().what) == ("the wallet is locked", "the wallet is locked")


def test_the_advice_for_the_shell_is_a_text_of_its_own_and_survives_pickling() -> None:
    """A user of the command line can't call `Ledger.thaw`; and an error from a worker process must advise the same."""
    error = errors.EnvelopeFrozenError("It is frozen.", advice="Call thaw().", shell_advice="Run thaw.")
    for each in (error, pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert str(each) == "It is frozen. Nothing was spent. Call thaw()."
        assert each.shell_text == "It is frozen. Nothing was spent. Run thaw."
        assert each.brief == "It is frozen (Call thaw())"
    error.spent = None
    assert "Nothing was spent" not in error.shell_text
    assert errors.FundingError("Down.", advice="Start it.").shell_text == "Down. Nothing was spent. Start it."
    assert errors.FundingError("Down.").shell_text == "Down."


def test_a_class_with_a_text_of_its_own_keeps_it_in_the_shell() -> None:
    """A wallet's own error would lose its words on the command line."""

    class Own(errors.FundingError):
        def __str__(self) -> str:
            return "my words"

    assert Own("x", advice="y", shell_advice="z").shell_text == "my words"


class EngineError(Exception):
    """The root of another library's errors."""


def standing_for(cause: RouteweilerError) -> RouteweilerError:
    """An error as Ray raises it where a task's result is asked for: of both classes, with neither's constructor called."""

    class Standing(EngineError, type(cause)):  # type: ignore[misc]
        def __init__(self, cause: RouteweilerError) -> None:
            self.cause = cause

        def __getattr__(self, name: str) -> object:
            return getattr(self.cause, name)

        def __str__(self) -> str:
            return "a traceback of many lines"

    return Standing(cause)


@pytest.mark.parametrize("spent", [False, True, None])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_engines_error_that_stands_for_ours_knows_what_ours_knows(kind: type[RouteweilerError], spent: bool | None) -> None:
    """Else what is known of the class alone would be told: of a payment that was made, that nothing was spent."""
    response = requests.Response()
    error = kind("It broke.", advice="Mend it.", shell_advice="Mend.", spent=spent, payment_hash=HASH, response=response)
    error.paid_before_msat = 7_000
    standing = standing_for(error)
    assert isinstance(standing, kind)
    for name in ("spent", "advice", "shell_advice", "payment_hash", "paid_before_msat", "what", "brief", "money_sentence"):
        assert getattr(standing, name) == getattr(error, name), name
    assert standing.response is response
    if isinstance(error, InvoicePaymentError):
        error.failure_reason = "NO_ROUTE"
        assert standing.failure_reason == "NO_ROUTE"  # type: ignore[attr-defined]
