"""SERVER RULES"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

# -- what the server says of a token ------------------------------------------------------------------------------------------


class ServerAnswer(str, Enum):
    """A server's answer, in the light of the token that went along, if one did."""

    DELIVERED = "2xx; or 3xx, where without the token it was a 402 just before"
    REFUSED = "402 (or 401) with an L402 challenge of the token's own scope"
    REPLAYED = "the same, but for an invoice that was paid long ago: an old answer, of a cassette or a cache"
    PRICED = "402 (or, to a token, 401) with an L402 challenge of another scope than the token's, if one went along"
    OTHER_402 = "402 without an L402 challenge"
    LOGIN = "401 with challenges, none of them L402's"
    BARE_401 = "401 without a challenge"
    UNREAD_401 = "401, whatever it holds, where no token went along that it could be about"
    TURNED_DOWN = "400 or 403"
    ELSE = "anything else: 3xx, 404, 429, 5xx, 1xx"
    NO_ANSWER = "no answer: the connection was refused or cut, timed out, or didn't speak HTTP"


class TokenStatus(str, Enum):
    """What is known of the token that went along."""

    NONE = "none went along"
    GUESS = "a guess: nothing says that this page takes it"
    FRESH = "never taken yet, and not refused for longer than a settlement may lag"
    WAITED = "never taken, and refused for that long"
    UNTIMELY = "never taken, and past its own valid_until"
    TAKEN = "taken before, on this path"
    ELSEWHERE = "taken before, but never on this path"
    DOUBTED = "taken before, on this path; and the server has just been asked without it"
    EXPIRED = "taken before, and past its own valid_until"


class Verdict(str, Enum):
    """What to do with the answer and with the token."""

    AS_IT_IS = "the caller's, as free traffic is"
    TAKEN = "the caller's; the token is noted as taken"
    NOT_TOLD = "the caller's; the token stays as it is"
    WITHDRAW = "ask again without the token; this path is sent no guess any more"
    OFFER_AGAIN = "offer the token again, a little later"
    GIVE_UP = "TokenRefusedError: the row stays, and nothing more is paid for the scope"
    ASK_BARE = "ask without the token; if an L402 challenge of its scope comes, offer it once more"
    RETIRE = "retire the token; get one for the challenge, or first ask without for one. At most one is bought in a call"
    GET_ONE = (
        "get a token of the challenge's scope: a live one, else a new one. At most one is bought in a call, and none beside one "
        "that was bought for this very page and never taken"
    )


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One cell of the server's table."""

    verdict: Verdict
    why: str


#: Tokens that an answer may be about: those that were bought for this scope, or learned to open this path.
_JUDGED_STATUSES = tuple(known for known in TokenStatus if known not in (TokenStatus.NONE, TokenStatus.GUESS))


def _same(
    said: ServerAnswer, of: tuple[TokenStatus, ...], verdict: Verdict, why: str
) -> dict[tuple[TokenStatus, ServerAnswer], Rule]:
    return {(known, said): Rule(verdict=verdict, why=why) for known in of}


#: (what is known of the token, what the server said) → what follows. A token that was taken is given up only on an answer that is
#: about tokens: each one given up costs a purchase, and an application behind the paywall has 401s and 402s of its own.
SERVER_RULES: dict[tuple[TokenStatus, ServerAnswer], Rule] = {
    **_same(ServerAnswer.DELIVERED, (TokenStatus.NONE,), Verdict.AS_IT_IS, "nothing was asked for it"),
    **_same(
        ServerAnswer.DELIVERED,
        (TokenStatus.GUESS,),
        Verdict.AS_IT_IS,
        "the page may be free: nothing says that the token opened it",
    ),
    **_same(ServerAnswer.DELIVERED, _JUDGED_STATUSES, Verdict.TAKEN, "it opened the page"),
    **_same(
        ServerAnswer.REFUSED, (TokenStatus.GUESS,), Verdict.GET_ONE, "its scope is asked for: now it can be offered for what it is"
    ),
    **_same(
        ServerAnswer.REFUSED,
        (TokenStatus.FRESH,),
        Verdict.OFFER_AGAIN,
        "the server may hear late of the settlement: never pay again",
    ),
    **_same(
        ServerAnswer.REFUSED, (TokenStatus.WAITED,), Verdict.GIVE_UP, "a server that never delivers gets one payment, and no second"
    ),
    **_same(ServerAnswer.REFUSED, (TokenStatus.UNTIMELY,), Verdict.RETIRE, "its time was over before it could serve"),
    **_same(
        ServerAnswer.REFUSED,
        (TokenStatus.TAKEN, TokenStatus.ELSEWHERE, TokenStatus.DOUBTED, TokenStatus.EXPIRED),
        Verdict.RETIRE,
        "it has served, and the server asks for another in so many words: used up, expired or revoked",
    ),
    **_same(
        ServerAnswer.REPLAYED,
        (TokenStatus.FRESH,),
        Verdict.OFFER_AGAIN,
        "the server may hear late of the settlement: never pay again",
    ),
    **_same(
        ServerAnswer.REPLAYED,
        (TokenStatus.WAITED,),
        Verdict.GIVE_UP,
        "a server that never delivers gets one payment, and no second",
    ),
    **_same(ServerAnswer.REPLAYED, (TokenStatus.UNTIMELY,), Verdict.RETIRE, "its time was over before it could serve"),
    **_same(
        ServerAnswer.REPLAYED,
        (TokenStatus.TAKEN, TokenStatus.ELSEWHERE, TokenStatus.DOUBTED, TokenStatus.EXPIRED),
        Verdict.OFFER_AGAIN,
        "an old answer says nothing of it, and the page may be the next: heard once for each token",
    ),
    **_same(ServerAnswer.PRICED, (TokenStatus.NONE,), Verdict.GET_ONE, "that is the price"),
    **_same(
        ServerAnswer.PRICED,
        (TokenStatus.GUESS, *_JUDGED_STATUSES),
        Verdict.GET_ONE,
        "another token is asked for: this one isn't refused by that",
    ),
    **_same(ServerAnswer.OTHER_402, (TokenStatus.NONE,), Verdict.AS_IT_IS, "other ways to pay are the caller's business"),
    **_same(ServerAnswer.OTHER_402, (TokenStatus.GUESS,), Verdict.WITHDRAW, "without the token it might be another answer"),
    **_same(
        ServerAnswer.OTHER_402, (TokenStatus.FRESH,), Verdict.OFFER_AGAIN, "it may be the paywall's word on a settlement that lags"
    ),
    **_same(ServerAnswer.OTHER_402, (TokenStatus.WAITED,), Verdict.GIVE_UP, "nothing was delivered for the payment"),
    **_same(
        ServerAnswer.OTHER_402,
        (TokenStatus.UNTIMELY, TokenStatus.EXPIRED),
        Verdict.RETIRE,
        "its time is over, whatever the server means",
    ),
    **_same(
        ServerAnswer.OTHER_402,
        (TokenStatus.TAKEN, TokenStatus.ELSEWHERE, TokenStatus.DOUBTED),
        Verdict.NOT_TOLD,
        "an application behind the paywall has 402s of its own (a quota used up)",
    ),
    **_same(ServerAnswer.LOGIN, _JUDGED_STATUSES, Verdict.NOT_TOLD, "a login is asked for, whatever the token is worth"),
    **_same(
        ServerAnswer.BARE_401, (TokenStatus.FRESH,), Verdict.OFFER_AGAIN, "the specification's refusal; the settlement may lag"
    ),
    **_same(ServerAnswer.BARE_401, (TokenStatus.WAITED,), Verdict.GIVE_UP, "nothing was delivered for the payment"),
    **_same(
        ServerAnswer.BARE_401,
        (TokenStatus.UNTIMELY, TokenStatus.EXPIRED),
        Verdict.RETIRE,
        "its time is over, whatever the server means",
    ),
    **_same(ServerAnswer.BARE_401, (TokenStatus.TAKEN,), Verdict.ASK_BARE, "a refusal or a login: it doesn't say"),
    **_same(
        ServerAnswer.BARE_401,
        (TokenStatus.DOUBTED,),
        Verdict.RETIRE,
        "without it the server asks for such a token, and refuses this one",
    ),
    **_same(
        ServerAnswer.BARE_401,
        (TokenStatus.ELSEWHERE,),
        Verdict.NOT_TOLD,
        "a login, maybe: nothing says that this page takes such tokens",
    ),
    **_same(ServerAnswer.UNREAD_401, (TokenStatus.NONE,), Verdict.AS_IT_IS, "L402 asks with 402: a 401 is about something else"),
    **_same(ServerAnswer.UNREAD_401, (TokenStatus.GUESS,), Verdict.WITHDRAW, "it may be about the token, which nobody asked for"),
    **_same(ServerAnswer.TURNED_DOWN, (TokenStatus.NONE,), Verdict.AS_IT_IS, "nothing was asked for it"),
    **_same(ServerAnswer.TURNED_DOWN, (TokenStatus.GUESS,), Verdict.WITHDRAW, "it may be about the token, which nobody asked for"),
    **_same(ServerAnswer.TURNED_DOWN, _JUDGED_STATUSES, Verdict.NOT_TOLD, "about the request, or from in front of the paywall"),
    **_same(ServerAnswer.ELSE, (TokenStatus.NONE, TokenStatus.GUESS), Verdict.AS_IT_IS, "not about tokens"),
    **_same(
        ServerAnswer.ELSE, _JUDGED_STATUSES, Verdict.NOT_TOLD, "not about tokens; from in front of the paywall or from behind it"
    ),
    **_same(
        ServerAnswer.NO_ANSWER,
        (TokenStatus.NONE, TokenStatus.GUESS),
        Verdict.AS_IT_IS,
        "the error is the caller's, as `requests` raises it",
    ),
    **_same(
        ServerAnswer.NO_ANSWER,
        _JUDGED_STATUSES,
        Verdict.NOT_TOLD,
        "the error is the caller's; the token is in the ledger, the next call offers it",
    ),
}

#: Answers whose meaning depends on what is known of the token: they may refuse it.
MAYBE_REFUSALS = (ServerAnswer.REFUSED, ServerAnswer.REPLAYED, ServerAnswer.OTHER_402, ServerAnswer.BARE_401)


class Wants(str, Enum):
    """What the WWW-Authenticate lines of a 401 or 402 ask for."""

    SAME = "L402, of the scope of the token that went along"
    PAID = "the same, by an invoice that the ledger has as paid"
    CHALLENGE = "L402, of another scope, or no token went along"
    OTHER = "something else"
    NOTHING = "they don't say"


_CHALLENGES = {Wants.SAME: ServerAnswer.REFUSED, Wants.PAID: ServerAnswer.REPLAYED, Wants.CHALLENGE: ServerAnswer.PRICED}


def read_answer(status: int | None, *, wants: Wants = Wants.NOTHING, judged: bool, after_402: bool = False) -> ServerAnswer:
    """What an answer of ``status`` (None: there was none) says.

    ``wants``: of a 402, and of a 401 to a token that is judged; it isn't looked at otherwise. ``judged``: a token went along that
    is no guess. ``after_402``: without the token the answer was a 402, just before. A redirect that none preceded may stand in
    front of the paywall: it doesn't say that the token was taken.
    """
    if status is None:
        return ServerAnswer.NO_ANSWER
    if 200 <= status < 300 or (after_402 and 300 <= status < 400):
        return ServerAnswer.DELIVERED
    if status == 401 and not judged:
        return ServerAnswer.UNREAD_401
    if status in (401, 402):
        if wants in _CHALLENGES:
            return _CHALLENGES[wants]
        if status == 402:
            return ServerAnswer.OTHER_402
        return ServerAnswer.LOGIN if wants is Wants.OTHER else ServerAnswer.BARE_401
    return ServerAnswer.TURNED_DOWN if status in (400, 403) else ServerAnswer.ELSE


def token_status(*, accepted: bool, accepted_here: bool, expired: bool, asked_bare: bool, patience_left: bool) -> TokenStatus:
    """What is known of a token that is no guess.

    ``taken``: the server has taken it before; ``accepted_here``: this path has taken tokens of its scope. ``expired`` by its own
    valid_until and our clock. ``asked_bare``: the server was asked without it meanwhile. ``patience_left``: it was refused for
    less than a settlement may lag, or not at all.
    """
    if not accepted:
        return TokenStatus.UNTIMELY if expired else TokenStatus.FRESH if patience_left else TokenStatus.WAITED
    if expired:
        return TokenStatus.EXPIRED
    if not accepted_here:
        return TokenStatus.ELSEWHERE
    return TokenStatus.DOUBTED if asked_bare else TokenStatus.TAKEN


def judge(known: TokenStatus, said: ServerAnswer) -> Rule:
    """The table's word on a server's answer. Pure; AssertionError for a pair that can't be."""
    ruling = SERVER_RULES.get((known, said))
    assert ruling is not None, f"no ruling for ({known.name}, {said.name})"
    return ruling
