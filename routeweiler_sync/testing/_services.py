"""`Service`: what a paywall sells under a path prefix, in which way, and how it asks and refuses. Its options are checked here."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, get_args

from ._forms import FORMS, Form, form_of, is_written_out
from ._messages import PaywallRequest
from ._payment import OTHER_HEADER, PAYMENT_FORMS, SCHEME, AuthScheme, Digest, Intent, PaymentForm, Receipts
from ._tokens import TOKEN_KINDS, TokenKind
from ._ways import WAYS, credit_msat, is_way, thing_of

ChallengeIn = Literal["header", "header and body", "body"]
RefusesWith = Literal["challenge", "nothing", "scheme", "realm"]
HeadAnswer = Literal["challenge", "price-only"]
_SCHEMES = ("LSAT", "L402")
_MAX_INSTANCES = 1_000


class ServiceOptions(TypedDict, total=False):
    """The options of a `Service` that have defaults, but for ``way``."""

    valid_for_s: int | None
    dynamic: bool
    scheme: str | Sequence[str]
    refuses: int
    refuses_with: RefusesWith | None
    form: str
    token: TokenKind | None
    challenge_in: ChallengeIn | None
    accept_authenticate: int | None
    head: HeadAnswer
    skip_invoice_paths: Sequence[str]
    instances: int
    authscheme: AuthScheme | None
    intents: Sequence[Intent]
    expires: float | None
    digest: Digest | bool
    header: str | None
    description: str | None
    reoffers: bool | None
    receipts: Receipts | None


@dataclass(slots=True, kw_only=True)
class Service:
    """What is sold under a path prefix. The fields may be changed while the paywall runs.

    ``prefix`` and ``name`` are those of `PaywallLogic.add_service`. ``way`` is the option ``sells`` of `Paywall`; the other fields
    are its options of the same names, and explained there.
    """

    prefix: str
    name: str
    price_msat: int
    valid_for_s: int | None = None
    dynamic: bool = False
    scheme: str | Sequence[str] = _SCHEMES
    way: str | Callable[[PaywallRequest], Hashable] = "service"
    refuses: int = 402
    refuses_with: RefusesWith | None = None
    form: str = "aperture"
    token: TokenKind | None = None
    challenge_in: ChallengeIn | None = None
    accept_authenticate: int | None = None
    head: HeadAnswer = "challenge"
    skip_invoice_paths: Sequence[str] = ()
    instances: int = 3
    authscheme: AuthScheme | None = None
    intents: Sequence[Intent] = ("charge",)
    expires: float | None = None
    digest: Digest | bool = False
    header: str | None = None
    description: str | None = None
    reoffers: bool | None = None
    receipts: Receipts | None = None

    def __post_init__(self) -> None:
        if self.dynamic and self.way != "service":
            raise ValueError(f'dynamic=True goes with sells="service" alone, not {self.way!r}.')
        if self.form in PAYMENT_FORMS and self.form != "aperture" and self.schemes == _SCHEMES:
            self.scheme = SCHEME
        own = (SCHEME,) if self.form in PAYMENT_FORMS else _SCHEMES
        if self.form != "aperture" and self.schemes != own:
            raise ValueError(f'scheme goes with form="aperture" alone: the form {self.form!r} has its own.')
        if self.schemes == (SCHEME,) and self.way not in ("service", "nothing"):
            raise ValueError(
                f"What a payment opens is told by the form, so sells={self.way!r} doesn't go with scheme={SCHEME!r} alone."
            )
        credit = credit_msat(self.way)
        if credit is not None and credit < self.price_msat:
            raise ValueError(f"sells={self.way!r} is less than one page at {self.price_msat} msat: nothing could be opened.")

    def __setattr__(self, name: str, value: Any) -> None:
        """Set a field. Raises: ValueError if the value isn't possible, with those that are."""
        if name in _CHECKS:
            is_possible, possible = _CHECKS[name]
            if not is_possible(value):
                raise ValueError(f"{'sells' if name == 'way' else name} must be {possible}, not {value!r}.")
        if name in ("scheme", "intents"):
            value = (value,) if isinstance(value, str) else tuple(value)
        object.__setattr__(self, name, value)

    def sells(self, path: str) -> bool:
        """Return whether ``path`` is the prefix or lies under it."""
        return path == self.prefix or path.startswith(self.prefix.rstrip("/") + "/")

    def name_for(self, path: str) -> str:
        """Return the name in the ``services`` caveat. If ``dynamic``, it contains the path."""
        return self.name + path if self.dynamic else self.name

    def thing(self, request: PaywallRequest) -> Hashable:
        """Return what ``request`` asks for."""
        return thing_of(self.way, request, service=self.name_for(request.path), instance=request.instance)

    def offers_at(self, path: str) -> bool:
        """Return whether a token can be bought at ``path``."""
        return not any(re.search(pattern, path) for pattern in self.skip_invoice_paths)

    def caveats(self, path: str, expires_at: int | None) -> list[str]:
        """Return the caveats of a macaroon that is sold at ``path`` and ends at ``expires_at`` (unix time)."""
        name = self.name_for(path)
        caveats = [] if self.way != "service" else [f"services={name}:0", *([] if self.dynamic else [f"{name}_capabilities="])]
        return caveats if expires_at is None else [*caveats, f"{name}_valid_until={expires_at}"]

    @property
    def schemes(self) -> tuple[str, ...]:
        """The schemes of aperture's form, in their order."""
        return tuple(self.scheme)

    @property
    def payment_form(self) -> PaymentForm | None:
        """How it speaks the scheme ``Payment``, None if it doesn't."""
        if self.form == "aperture-mpp" or SCHEME in self.schemes:
            return PAYMENT_FORMS.get(self.form, PAYMENT_FORMS["aperture"])
        return None

    @property
    def invoice_msat(self) -> int:
        """The amount of an invoice: the credit, or else the price."""
        return credit_msat(self.way) or self.price_msat

    def header_form(self, token_param: str) -> Form:
        """Return the header form. ``token_param`` is the token's name in aperture's."""
        if self.form in PAYMENT_FORMS:
            return form_of("aperture", scheme=[each for each in self.schemes if each != SCHEME], token_param=token_param)
        return form_of(self.form, scheme=self.schemes, token_param=token_param)


def _is_status(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 200 <= value <= 599


def _are_patterns(value: Any) -> bool:
    try:
        return not isinstance(value, str) and all(re.compile(pattern) for pattern in value)
    except (TypeError, re.error):
        return False


def _listed(names: Sequence[Any]) -> str:
    return f"one of {', '.join(map(str, names))}"


def _are_schemes(value: Any) -> bool:
    """Return whether ``value`` is a scheme or several. ``payment`` would have the parameters of L402, and be paid by nobody."""
    given = (value,) if isinstance(value, str) else tuple(value)
    return all(isinstance(each, str) and (each == SCHEME or each.lower() not in (SCHEME.lower(), "mpp")) for each in given)


def _choice(names: Sequence[Any]) -> tuple[Callable[[Any], bool], str]:
    return lambda value: value is None or value in names, _listed([*names, None])


#: What each option may be, and how that is said.
_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "way": (is_way, _listed(WAYS)),
    "refuses": (lambda value: _is_status(value) and value >= 400, "a status from 400 to 599"),
    "refuses_with": _choice(get_args(RefusesWith)),
    "form": (
        lambda value: isinstance(value, str) and (value in FORMS or value in PAYMENT_FORMS or is_written_out(value)),
        f"{_listed(tuple(FORMS | PAYMENT_FORMS))}, or a line with {{token}} and {{invoice}}",
    ),
    "scheme": (_are_schemes, f"a scheme, or a list of them (MPP is {SCHEME})"),
    "authscheme": _choice(get_args(AuthScheme)),
    "intents": (
        lambda value: all(each in get_args(Intent) for each in ((value,) if isinstance(value, str) else value)),
        f"some of {', '.join(get_args(Intent))}",
    ),
    "expires": (
        lambda value: value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)),
        "seconds (below zero: they have expired already), math.inf for none, or None",
    ),
    "digest": (lambda value: isinstance(value, bool) or value in get_args(Digest), _listed((*get_args(Digest), True, False))),
    "header": (lambda value: value in (None, OTHER_HEADER), f"{OTHER_HEADER} or None"),
    "reoffers": (lambda value: value is None or isinstance(value, bool), "True, False or None"),
    "receipts": _choice(get_args(Receipts)),
    "token": _choice(TOKEN_KINDS),
    "challenge_in": _choice(get_args(ChallengeIn)),
    "accept_authenticate": (lambda value: value is None or _is_status(value), "a status from 200 to 599, or None"),
    "head": (lambda value: value in get_args(HeadAnswer), _listed(get_args(HeadAnswer))),
    "skip_invoice_paths": (_are_patterns, "a list of regular expressions"),
    "instances": (
        lambda value: isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _MAX_INSTANCES,
        f"a number from 1 to {_MAX_INSTANCES}",
    ),
}
