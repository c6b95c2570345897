"""What a web server's answer means for the token that was sent with the request, as a table. Pure: no I/O, no clock.

    (what is known of the token, the server's answer) → what to do with the answer and the token, each with the reason why

`read_answer` turns a status and its challenges into a `ServerAnswer`, `token_status` turns what is known of a token into a
`TokenStatus`. `SERVER_RULES` has one `Rule` for each pair that can occur, and `judge` looks it up. Meeting any other pair is a bug
of this package, and raises AssertionError before anything is done.

`negotiation` remembers what the table needs to know of a call, and `handler` does what the table says. What a wallet's reply means
for a payment is left to `payments.wallet_rules`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class ServerAnswer(str, Enum):
    """A server's answer, given the token that was sent with the request, if any."""

    DELIVERED = "2xx; or 3xx, if the request without the token was answered with 402 just before (to a charge: with a receipt)"
    REFUSED = "402 (or 401) with an L402 challenge of the token's own scope"
    REPLAYED = (
        "402 (or 401) with an L402 challenge of the token's own scope whose invoice is paid in the ledger already: an old answer, "
        "from a cassette or a cache"
    )
    PRICED = (
        "402 (or, to a token, 401; to a charge, any error) with a challenge of another scope than the token's, or of any scope if "
        "no token was sent"
    )
    REPEATED = "an error with a new challenge for the invoice that the charge has paid, the first one in the call"
    RECEIPTED = "any other error with a receipt for the charge"
    OTHER_402 = "402 without a challenge that can be paid"
    LOGIN = "401 with challenges, of which none is L402; or of which one isn't, if no token was sent or only a guess"
    BARE_401 = (
        "401 without a challenge; or with nothing but L402, if no token was sent; to a token, also 401 or 402 that names L402 "
        "alone, with neither token nor invoice"
    )
    TURNED_DOWN = "400, 403, 404, 409 or 410, where that may be about the token"
    FAILED = "5xx to a GET, HEAD or OPTIONS, where that may be about the token"
    ELSE = "any other 4xx or 5xx"
    PASSED = "1xx; or 3xx, if no 402 came just before"
    NO_ANSWER = "no answer: the connection was refused or cut, the request timed out, or the server didn't speak HTTP"


class TokenStatus(str, Enum):
    """What is known of the token that was sent with the request."""

    NONE = "no token was sent"
    GUESS = "sent as a guess: nothing says that this page accepts it"
    TRIAL = "offered in reply to a 402 or 401: it has opened other pages of the origin, and nothing says that it opens this one"
    FRESH = "never accepted so far, and refused for less time than a settlement may lag, or not at all"
    WAITED = "never accepted, and refused for as long as a settlement may lag"
    UNTIMELY = "never accepted, and past its own valid_until"
    ACCEPTED = "accepted before, on this path"
    ELSEWHERE = "accepted before, but never on this path"
    DOUBTED = "accepted before, on this path, and the server has just been asked without it"
    EXPIRED = "accepted before, and past its own valid_until"
    CHARGE = "a charge: it was paid for this very request, and opens it once"


class Verdict(str, Enum):
    """What to do with the answer and with the token."""

    AS_IT_IS = "return the answer to the caller, as for free traffic"
    ACCEPTED = "return the answer to the caller, and note that the token was accepted"
    KEEP = "return the answer to the caller, and keep the token as it is"
    WITHDRAW = "ask again without the token, which isn't sent to this path again unless it asks for the token's scope"
    TRY_OTHERS = (
        "offer the origin's live tokens, one after the other, the newest first; if there is none, return the answer to the caller"
    )
    OTHERS_FIRST = (
        "the token isn't for this page: offer the next one; if there is none, get one for the challenge that came before, or ask "
        "without a token"
    )
    OFFER_AGAIN = "offer the token again, a little later"
    GIVE_UP = "raise TokenRefusedError: the row stays, and nothing more is paid for the scope (a charge: for the same request)"
    SPENT = "return the answer to the caller, and note that the charge is spent"
    USED_UP = "return the answer to the caller, and note that the charge is spent, although it wasn't delivered"
    PRESENT_ANEW = "present the preimage under the new challenge, once"
    ASK_BARE = "ask without the token; if the answer is an L402 challenge of the token's scope, offer the token once more"
    RETIRE = (
        "retire the token, then get one for the challenge, or for the one that came before. Without any, ask without a token "
        "first. A call buys at most one token"
    )
    GET_ONE = (
        "get a token for the challenge: a live one of its scope, else one that was bought for this very page, else (if the scope "
        "is only a path) the origin's newest, else a new one. A call buys at most one token, and none if one was bought for this "
        "very page and never accepted, or if the origin has accepted none and refused one"
    )


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One cell of the table: what to do with the answer and the token, and the reason why."""

    verdict: Verdict
    why: str


#: The statuses of tokens that an answer may be about: tokens bought for this scope, or known to open this path.
_JUDGED_STATUSES = tuple(
    status for status in TokenStatus if status not in (TokenStatus.NONE, TokenStatus.GUESS, TokenStatus.TRIAL, TokenStatus.CHARGE)
)


def _rule_for(
    answers: ServerAnswer | tuple[ServerAnswer, ...], statuses: tuple[TokenStatus, ...], verdict: Verdict, why: str
) -> dict[tuple[TokenStatus, ServerAnswer], Rule]:
    """Return the same rule for each of ``answers`` to a token of each of ``statuses``."""
    rule = Rule(verdict=verdict, why=why)
    answers = (answers,) if isinstance(answers, ServerAnswer) else answers
    return {(status, answer): rule for answer in answers for status in statuses}


#: Errors that may refuse the token. They are far more often about the request, so the ledger isn't asked about the token for them,
#: and it doesn't matter whether the token has expired.
ERRORS = (ServerAnswer.TURNED_DOWN, ServerAnswer.FAILED)

#: (what is known of the token, the server's answer) → rule. A token that was accepted before is retired only on an answer that is
#: about tokens: each retired token costs a purchase, and an application behind the paywall has 401s and 402s of its own.
SERVER_RULES: dict[tuple[TokenStatus, ServerAnswer], Rule] = {
    **_rule_for(ServerAnswer.DELIVERED, (TokenStatus.NONE,), Verdict.AS_IT_IS, "the page came without a token"),
    **_rule_for(
        ServerAnswer.DELIVERED,
        (TokenStatus.GUESS,),
        Verdict.KEEP,
        "the page may be free: nothing shows that the token opened it",
    ),
    **_rule_for(ServerAnswer.DELIVERED, (TokenStatus.TRIAL, *_JUDGED_STATUSES), Verdict.ACCEPTED, "the token opened the page"),
    **_rule_for(
        ServerAnswer.REFUSED,
        (TokenStatus.GUESS, TokenStatus.TRIAL),
        Verdict.GET_ONE,
        "the server asks for the token's scope, so the token is no longer a guess",
    ),
    **_rule_for(
        ServerAnswer.REFUSED,
        (TokenStatus.FRESH,),
        Verdict.OFFER_AGAIN,
        "the server may learn of the settlement late, so nothing is paid again",
    ),
    **_rule_for(
        ServerAnswer.REFUSED, (TokenStatus.WAITED,), Verdict.GIVE_UP, "a server that never delivers gets one payment, not two"
    ),
    **_rule_for(
        ServerAnswer.REFUSED,
        (TokenStatus.UNTIMELY,),
        Verdict.RETIRE,
        "the token's time was over before the server accepted it once",
    ),
    **_rule_for(
        ServerAnswer.REFUSED,
        (TokenStatus.ACCEPTED, TokenStatus.ELSEWHERE, TokenStatus.DOUBTED, TokenStatus.EXPIRED),
        Verdict.RETIRE,
        "the token has served, and the server explicitly asks for another one: it is used up, expired or revoked",
    ),
    **_rule_for(
        ServerAnswer.REPLAYED,
        (TokenStatus.TRIAL,),
        Verdict.GET_ONE,
        "the server asks for the token's scope, so the token is no longer a guess",
    ),
    **_rule_for(
        ServerAnswer.REPLAYED,
        (TokenStatus.FRESH,),
        Verdict.OFFER_AGAIN,
        "the server may learn of the settlement late, so nothing is paid again",
    ),
    **_rule_for(
        ServerAnswer.REPLAYED,
        (TokenStatus.WAITED,),
        Verdict.GIVE_UP,
        "a server that never delivers gets one payment, not two",
    ),
    **_rule_for(
        ServerAnswer.REPLAYED,
        (TokenStatus.UNTIMELY,),
        Verdict.RETIRE,
        "the token's time was over before the server accepted it once",
    ),
    **_rule_for(
        ServerAnswer.REPLAYED,
        (TokenStatus.ACCEPTED, TokenStatus.ELSEWHERE, TokenStatus.DOUBTED, TokenStatus.EXPIRED),
        Verdict.OFFER_AGAIN,
        "an old answer proves nothing about the token, and the next answer may be the page; followed once for each token",
    ),
    **_rule_for(ServerAnswer.PRICED, (TokenStatus.NONE,), Verdict.GET_ONE, "the server asks for a payment"),
    **_rule_for(
        ServerAnswer.PRICED,
        (TokenStatus.GUESS, TokenStatus.TRIAL, *_JUDGED_STATUSES),
        Verdict.GET_ONE,
        "the server asks for another token, which is no refusal of this one",
    ),
    **_rule_for(ServerAnswer.OTHER_402, (TokenStatus.NONE,), Verdict.AS_IT_IS, "other ways to pay are left to the caller"),
    **_rule_for(ServerAnswer.OTHER_402, (TokenStatus.GUESS,), Verdict.WITHDRAW, "without the token the answer might be another"),
    **_rule_for(
        ServerAnswer.OTHER_402, (TokenStatus.FRESH,), Verdict.OFFER_AGAIN, "the paywall may answer so while the settlement lags"
    ),
    **_rule_for(ServerAnswer.OTHER_402, (TokenStatus.WAITED,), Verdict.GIVE_UP, "nothing was delivered for the payment"),
    **_rule_for(
        ServerAnswer.OTHER_402,
        (TokenStatus.UNTIMELY, TokenStatus.EXPIRED),
        Verdict.RETIRE,
        "the token's time is over, whatever the server means",
    ),
    **_rule_for(
        ServerAnswer.OTHER_402,
        (TokenStatus.ACCEPTED, TokenStatus.ELSEWHERE, TokenStatus.DOUBTED),
        Verdict.KEEP,
        "an application behind the paywall has 402s of its own (a used-up quota, for instance)",
    ),
    **_rule_for(
        ServerAnswer.LOGIN,
        (TokenStatus.NONE,),
        Verdict.AS_IT_IS,
        "L402 asks for payment with 402, so a 401 is about something else",
    ),
    **_rule_for(ServerAnswer.LOGIN, (TokenStatus.GUESS,), Verdict.WITHDRAW, "it may be about the token, which nobody asked for"),
    **_rule_for(
        ServerAnswer.LOGIN, _JUDGED_STATUSES, Verdict.KEEP, "the server asks for a login, which says nothing about the token"
    ),
    **_rule_for(
        ServerAnswer.BARE_401,
        (TokenStatus.NONE,),
        Verdict.TRY_OTHERS,
        "the path may want a token that it doesn't sell; nothing is bought without a 402",
    ),
    **_rule_for(ServerAnswer.BARE_401, (TokenStatus.GUESS,), Verdict.WITHDRAW, "it may be about the token, which nobody asked for"),
    **_rule_for(
        ServerAnswer.BARE_401,
        (TokenStatus.FRESH,),
        Verdict.OFFER_AGAIN,
        "the specification has servers refuse a token in this way, and the settlement may lag",
    ),
    **_rule_for(ServerAnswer.BARE_401, (TokenStatus.WAITED,), Verdict.GIVE_UP, "nothing was delivered for the payment"),
    **_rule_for(
        ServerAnswer.BARE_401,
        (TokenStatus.UNTIMELY, TokenStatus.EXPIRED),
        Verdict.RETIRE,
        "the token's time is over, whatever the server means",
    ),
    **_rule_for(
        ServerAnswer.BARE_401,
        (TokenStatus.ACCEPTED,),
        Verdict.ASK_BARE,
        "the answer doesn't say whether it refuses the token or asks for a login",
    ),
    **_rule_for(
        ServerAnswer.BARE_401,
        (TokenStatus.DOUBTED,),
        Verdict.RETIRE,
        "without the token the server asks for one of its scope, and it refuses this one",
    ),
    **_rule_for(
        ServerAnswer.BARE_401,
        (TokenStatus.ELSEWHERE,),
        Verdict.KEEP,
        "it may ask for a login: nothing says that this page accepts such tokens",
    ),
    **_rule_for(ERRORS, (TokenStatus.NONE,), Verdict.AS_IT_IS, "no token was sent that it could be about"),
    **_rule_for(ERRORS, (TokenStatus.GUESS,), Verdict.WITHDRAW, "it may be about the token, which nobody asked for"),
    **_rule_for(
        ERRORS,
        (TokenStatus.FRESH, TokenStatus.WAITED, TokenStatus.ELSEWHERE),
        Verdict.KEEP,
        "it may be about the request, or come from in front of the paywall: nothing says that this page accepts the token",
    ),
    **_rule_for(
        ERRORS,
        (TokenStatus.ACCEPTED,),
        Verdict.ASK_BARE,
        "some servers refuse a used-up or unknown token in this way; the answer without the token tells",
    ),
    **_rule_for(
        ERRORS,
        (TokenStatus.DOUBTED,),
        Verdict.RETIRE,
        "without the token the server asks for one of its scope, and it refuses this one",
    ),
    **_rule_for(ServerAnswer.ELSE, (TokenStatus.NONE,), Verdict.AS_IT_IS, "it isn't about tokens"),
    **_rule_for(ServerAnswer.ELSE, (TokenStatus.GUESS,), Verdict.WITHDRAW, "it may be about the token, which nobody asked for"),
    **_rule_for(
        (ServerAnswer.OTHER_402, ServerAnswer.LOGIN, ServerAnswer.BARE_401, *ERRORS, ServerAnswer.ELSE),
        (TokenStatus.TRIAL,),
        Verdict.OTHERS_FIRST,
        "without the token the server asked for one, and it doesn't want this one",
    ),
    **_rule_for(
        ServerAnswer.ELSE,
        _JUDGED_STATUSES,
        Verdict.KEEP,
        "it isn't about tokens, whether it comes from in front of the paywall or from behind it",
    ),
    **_rule_for(ServerAnswer.PASSED, (TokenStatus.NONE, TokenStatus.GUESS), Verdict.AS_IT_IS, "it isn't about tokens"),
    **_rule_for(
        ServerAnswer.PASSED,
        (TokenStatus.TRIAL, *_JUDGED_STATUSES),
        Verdict.KEEP,
        "it isn't about tokens, whether it comes from in front of the paywall or from behind it",
    ),
    **_rule_for(
        ServerAnswer.NO_ANSWER,
        (TokenStatus.NONE, TokenStatus.GUESS),
        Verdict.AS_IT_IS,
        "the caller gets the error that `requests` raises",
    ),
    **_rule_for(
        ServerAnswer.NO_ANSWER,
        (TokenStatus.TRIAL, *_JUDGED_STATUSES),
        Verdict.KEEP,
        "the caller gets the error; the token is in the ledger, and the next call offers it",
    ),
    **_rule_for(ServerAnswer.DELIVERED, (TokenStatus.CHARGE,), Verdict.SPENT, "the charge has opened the request, as it does once"),
    **_rule_for(
        ServerAnswer.RECEIPTED,
        (TokenStatus.CHARGE,),
        Verdict.USED_UP,
        "the server says that it has taken the charge, and won't again",
    ),
    **_rule_for(
        ServerAnswer.REPEATED,
        (TokenStatus.CHARGE,),
        Verdict.PRESENT_ANEW,
        "the server asks for a payment that is made already, so its preimage answers this challenge too",
    ),
    **_rule_for(
        (ServerAnswer.PRICED, ServerAnswer.OTHER_402, ServerAnswer.BARE_401),
        (TokenStatus.CHARGE,),
        Verdict.GIVE_UP,
        "one request is paid for once: the server gets no second payment for it",
    ),
    **_rule_for(
        ServerAnswer.LOGIN, (TokenStatus.CHARGE,), Verdict.KEEP, "the server asks for a login, which says nothing about the charge"
    ),
    **_rule_for(
        (*ERRORS, ServerAnswer.ELSE, ServerAnswer.PASSED),
        (TokenStatus.CHARGE,),
        Verdict.KEEP,
        "nothing says that the charge is used up: the next call for the same request presents it",
    ),
    **_rule_for(
        ServerAnswer.NO_ANSWER,
        (TokenStatus.CHARGE,),
        Verdict.KEEP,
        "the caller gets the error; the charge is in the ledger, and the next call for the same request presents it",
    ),
}

#: Answers that may refuse the token. What they mean depends on what is known of the token.
MAYBE_REFUSALS = (ServerAnswer.REFUSED, ServerAnswer.REPLAYED, ServerAnswer.OTHER_402, ServerAnswer.BARE_401)


class Wants(str, Enum):
    """What the WWW-Authenticate lines of a 401 or 402 ask for."""

    SAME = "a payment, of the scope of the token that was sent"
    PAID = "a payment, of the scope of the token that was sent, with an invoice that is paid in the ledger"
    CHALLENGE = "a payment, of another scope than the token's, or no token was sent"
    ALONE = "nothing: they name L402 alone, with neither token nor invoice"
    OTHER = "another scheme than those that can be paid"
    NOTHING = "nothing: they name no scheme"


_CHALLENGES = {Wants.SAME: ServerAnswer.REFUSED, Wants.PAID: ServerAnswer.REPLAYED, Wants.CHALLENGE: ServerAnswer.PRICED}


#: Statuses by which some servers refuse a token that is used up, expired or unknown to them.
_TURNED_DOWN = (400, 403, 404, 409, 410)


def read_answer(
    status: int | None,
    *,
    wants: Wants = Wants.NOTHING,
    judged: bool,
    after_402: bool = False,
    is_safe: bool = True,
    may_refuse: bool = True,
) -> ServerAnswer:
    """Return the kind of an answer with HTTP status ``status``, None if there was no answer.

    ``wants`` is what the answer's challenges ask for. ``judged``: a token was sent that isn't a guess. Without one, a 401 asks for
    nothing that is paid, whatever its challenges. ``after_402``: the same request was answered with 402 before. A redirect that no
    402 preceded may come from in front of the paywall, so it doesn't show that the token was accepted. ``is_safe``: the request's
    method changes nothing at the server. ``may_refuse``: an error may be about the token.
    """
    if status is None:
        return ServerAnswer.NO_ANSWER
    if 200 <= status < 300 or (after_402 and 300 <= status < 400):
        return ServerAnswer.DELIVERED
    if status == 401 and not judged:
        return ServerAnswer.LOGIN if wants is Wants.OTHER else ServerAnswer.BARE_401
    if status in (401, 402):
        if wants in _CHALLENGES:
            return _CHALLENGES[wants]
        if status == 402 and not (judged and wants is Wants.ALONE):
            return ServerAnswer.OTHER_402
        return ServerAnswer.LOGIN if wants is Wants.OTHER else ServerAnswer.BARE_401
    if status < 400:
        return ServerAnswer.PASSED
    if may_refuse and status in _TURNED_DOWN:
        return ServerAnswer.TURNED_DOWN
    return ServerAnswer.FAILED if may_refuse and is_safe and 500 <= status < 600 else ServerAnswer.ELSE


def read_charge_answer(
    status: int | None, *, wants: Wants = Wants.NOTHING, receipted: bool = False, repeated: bool = False
) -> ServerAnswer:
    """Return the kind of an answer with HTTP status ``status`` to a charge, None if there was no answer.

    ``wants`` is what the answer's challenges ask for. ``receipted``: it has a receipt for the charge. ``repeated``: it has a new
    challenge for the invoice that the charge has paid, the first one of this call.
    """
    if status is None:
        return ServerAnswer.NO_ANSWER
    if 200 <= status < 300 or (receipted and status < 400):
        return ServerAnswer.DELIVERED
    if receipted:
        return ServerAnswer.RECEIPTED
    if repeated and status >= 400:
        return ServerAnswer.REPEATED
    if wants is Wants.CHALLENGE and status >= 400:
        return ServerAnswer.PRICED
    return read_answer(status, wants=Wants.NOTHING if wants is Wants.CHALLENGE else wants, judged=True)


def token_status(*, accepted: bool, accepted_here: bool, expired: bool, asked_bare: bool, patience_left: bool) -> TokenStatus:
    """Return the status of a token that isn't a guess.

    ``accepted``: the server has accepted the token before. ``accepted_here``: this path has accepted tokens of its scope.
    ``expired``: by this machine's clock, the token is past its own valid_until. ``asked_bare``: since the token was refused, the
    server has been asked without it. ``patience_left``: the token has been refused for less time than a settlement may lag, or not
    at all.
    """
    if not accepted:
        return TokenStatus.UNTIMELY if expired else TokenStatus.FRESH if patience_left else TokenStatus.WAITED
    if expired:
        return TokenStatus.EXPIRED
    if not accepted_here:
        return TokenStatus.ELSEWHERE
    return TokenStatus.DOUBTED if asked_bare else TokenStatus.ACCEPTED


def judge(status: TokenStatus, answer: ServerAnswer) -> Rule:
    """Return what the table says about ``answer`` to a token of ``status``. Pure.

    Raises: AssertionError if the two can't occur together.
    """
    rule = SERVER_RULES.get((status, answer))
    assert rule is not None, f"no rule for ({status.name}, {answer.name})"
    return rule
