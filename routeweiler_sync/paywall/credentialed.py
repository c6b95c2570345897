"""Requests and responses that hold a token, and what pickles and caches may see of them.

`CredentialedRequest` carries a paid token, `PaywallResponse` is an answer that may name one. Both drop the token when they are
pickled or copied, wherever in the answer it stands.
A cache writes responses and their ``history`` to disk as they are: the functions below remove tokens from what it writes.
`with_credential` is the only place where a token gets onto a request, and it checks the origin. When a token is sent is left to
`handler` and `transport`.
"""

from __future__ import annotations

import copyreg
import re
import traceback
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, SupportsIndex

import requests
from requests.structures import CaseInsensitiveDict

from .._core.credential_headers import AUTHORIZATION, CREDENTIAL_HEADERS
from .._core.urls import leads_to_one_server, origin_at
from ..errors import ChallengeMismatchError

if TYPE_CHECKING:
    from ..payments.token import Token


#: How many errors of a chain (an error, what caused it, and so on) are cleared of tokens.
_CHAIN_MAX = 100
#: The longest error, as its Content-Length says, that is searched for tokens before a cache gets it.
_ERROR_BYTES_MAX = 64 * 1024


class _CredentialedHeaders(CaseInsensitiveDict):  # type: ignore[type-arg]
    """Headers with a token. A ``Host`` of another server that an adapter puts onto them takes the token off."""

    #: The URL of the request, and the header that the token is in.
    _url: str
    _name: str

    def __setitem__(self, name: Any, value: Any) -> None:
        super().__setitem__(name, value)
        plain = name.decode("latin-1") if isinstance(name, bytes) else str(name)
        if plain.strip().lower() == "host" and not leads_to_one_server(self._url, {"Host": value}):
            self.pop(self._name, None)


class CredentialedRequest(requests.PreparedRequest):
    """A request that carries a token. Its pickles and copies don't."""

    #: Whether it carries a charge, which no adapter may send twice.
    single_use = False
    #: The header that the token is in.
    _credential_header = AUTHORIZATION

    @classmethod
    def made_of(cls, request: requests.PreparedRequest, credential: str, name: str = AUTHORIZATION) -> CredentialedRequest:
        """Return ``request`` with ``credential`` as its header ``name``.

        The result shares headers and body with ``request``, so ``request`` mustn't be used any more.
        """
        made = cls()
        made.__dict__.update(request.__dict__)
        headers: Any = made.headers
        headers[name] = credential
        if name != AUTHORIZATION:
            made._credential_header = name
        if type(headers) is CaseInsensitiveDict:
            headers.__class__ = _CredentialedHeaders  # in place: a token goes along with every call, and a copy would cost each
            vars(headers).update(_url=made.url or "", _name=name)
        return made

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        if self.headers is None:
            return state
        headers = state["headers"] = self.headers.copy()
        tokens = _tokens_sent(self)
        headers.pop(state.pop("_credential_header", AUTHORIZATION), None)
        cookies = _without(state.get("_cookies"), tokens, by_value=True)
        return {**state, "headers": _without(headers, tokens, by_value=True), "_cookies": cookies}

    def copy(self) -> requests.PreparedRequest:
        """Return a plain copy without the credential. When the copy is sent, a token is attached anew."""
        plain = super().copy()
        if plain.headers is not None:
            plain.headers.pop(self._credential_header, None)
        return plain


def with_credential(request: requests.PreparedRequest, token: Token, answers: list[requests.Response]) -> CredentialedRequest:
    """Return a copy of ``request`` that carries ``token``.

    ``answers`` are the answers to the request so far: the copy gets their cookies.

    Raises: ChallengeMismatchError if the token was issued by another origin than the request's, or if the request's ``Host`` header
    names another server.
    """
    from ..protocol.schemes import authorization, credential_header
    from .replay import again

    origin = origin_at(request.url or "")
    if token.origin != origin:  # can't happen by any known path: this is the last check before a token could reach another server
        raise ChallengeMismatchError(
            f"A token of {token.origin} was about to be sent to {origin}, and wasn't sent.",
            advice="This is a bug in routeweiler_sync: report it.",
        )
    if not leads_to_one_server(request.url or "", request.headers):
        raise other_host_error(origin)
    credential, name = authorization(token.scheme, token.token, token.preimage), credential_header(token.scheme, token.token)
    return CredentialedRequest.made_of(again(request, answers), credential, name)


def other_host_error(origin: str) -> ChallengeMismatchError:
    """Return the error for a request to ``origin`` that may be for another server. Its 402 is returned unpaid, with a log line."""
    return ChallengeMismatchError(
        f"The request to {origin} has a Host header that names another server, or a URL whose host can be read in two ways. So no "
        "token goes along, and its 402 isn't paid.",
        advice="Put the server's name into the URL, and leave out the Host header.",
    )


class PaywallResponse(requests.Response):
    """An answer that may name tokens: a 402, or another answer that was superseded. Its pickles and copies drop them.

    With a preimage, a token opens pages. If the body holds a token, all of it is dropped, since it may be spelt in any way.
    """

    #: The tokens that were offered and asked for in this hop.
    _tokens: frozenset[str] = frozenset()
    #: Whether the answer is what was paid for. Then its body stays as it is.
    _is_page = False

    def __getstate__(self) -> dict[str, Any]:
        return _without_tokens(super().__getstate__(), self._tokens, is_page=self._is_page)


class _DropsTokens:
    """Does for an answer of a program's own class what `PaywallResponse` does. The pickle is of that class."""

    _tokens: frozenset[str] = frozenset()
    _is_page = False
    _kind: type[requests.Response]

    def __reduce_ex__(self, protocol: SupportsIndex) -> str | tuple[Any, ...]:
        reduced = super().__reduce_ex__(protocol)
        if isinstance(reduced, str):
            return reduced
        made, arguments, *rest = reduced
        arguments = tuple(self._kind if each is type(self) else _without(each, self._tokens) for each in arguments)
        if rest and isinstance(rest[0], dict):
            rest[0] = _without_tokens(rest[0], self._tokens, is_page=self._is_page)
        made = self._kind if made is type(self) else _new if made is copyreg.__newobj__ else made  # type: ignore[attr-defined]
        return made, arguments, *rest


def _new(kind: type, *arguments: Any) -> Any:
    """Return a new instance of ``kind``, in unpickling: pickle takes `copyreg.__newobj__` for an instance's very class only."""
    return kind.__new__(kind, *arguments)


_made: dict[type, type] = {}


def droppable(response: requests.Response, tokens: frozenset[str] = frozenset(), *, is_page: bool = False) -> requests.Response:
    """Return ``response``, with its class changed so that pickles and copies hold no token.

    ``tokens`` are those that are known to be at stake; the ones that the response itself offers are added. ``is_page``: the
    response is what was paid for, so its body stays as it is.
    """
    tokens = tokens | tokens_offered(response) | getattr(response, "_tokens", frozenset())
    kind = type(response)
    try:
        if kind is requests.Response:
            response.__class__ = PaywallResponse
        elif not issubclass(kind, (PaywallResponse, _DropsTokens)):
            if kind not in _made:
                _made[kind] = type(kind.__name__, (_DropsTokens, kind), {"_kind": kind, "__module__": kind.__module__})
            response.__class__ = _made[kind]
        response._tokens = tokens  # type: ignore[attr-defined]
        response._is_page = is_page  # type: ignore[attr-defined]
    except (TypeError, AttributeError):  # its class can't be changed, for instance because it has slots
        _scrub(response, tokens, is_page=is_page)
    return response


def lost_its_token(response: requests.Response) -> bool:
    """Return whether ``response`` answers a request of ours whose token was taken off again, by an adapter for instance."""
    request = getattr(response, "request", None)
    return isinstance(request, CredentialedRequest) and request._credential_header not in (request.headers or {})


def names_a_token(response: requests.Response, tokens: frozenset[str]) -> bool:
    """Return whether the head of ``response`` repeats one of ``tokens``: a ``Location``, a cookie, the reason phrase."""
    from ..protocol.token_search import holds_token

    headers: Any = response.headers or {}
    # Each call with a token comes here, and `values` of these headers looks each name up anew.
    values = [value for _, value in headers.lower_items()] if type(headers) is CaseInsensitiveDict else headers.values()
    head = "\n".join([str(response.reason), *map(str, values)])
    return holds_token(head, tokens, by_value=True)


def tokens_offered(response: requests.Response) -> frozenset[str]:
    """Return the tokens in the challenges of ``response``, and the one that its request carried."""
    from ..protocol.token_search import tokens_in

    lines = response.headers.get("WWW-Authenticate") if response.headers else None
    return (frozenset() if lines is None else tokens_in([lines])) | _tokens_sent(response.request)


def secrets_of(response: requests.Response) -> frozenset[str]:
    """Return the tokens of `tokens_offered`, and the preimage that the request of ``response`` carried."""
    secrets, request = tokens_offered(response), response.request
    value: object = request.headers.get(request._credential_header) if isinstance(request, CredentialedRequest) else None
    text = value.decode("latin-1") if isinstance(value, bytes) else str(value)
    preimage = text.rpartition(":")[2].strip()
    return secrets | {preimage} if re.fullmatch(r"[0-9A-Fa-f]{64}", preimage) else secrets


def _tokens_sent(request: Any) -> frozenset[str]:
    from ..protocol.token_search import token_of

    if not isinstance(request, CredentialedRequest) or not request.headers:
        return frozenset()
    value: object = request.headers.get(request._credential_header)
    return token_of(value) if isinstance(value, (str, bytes)) else frozenset()


def _without_tokens(state: dict[str, Any], tokens: frozenset[str], *, is_page: bool = False) -> dict[str, Any]:
    """Return the state of a response without tokens. What isn't a text of the answer, such as its history, stays as it is."""
    from ..protocol.token_search import holds_token

    found = {
        name: value if name in _NO_TEXTS else _without(value, tokens, by_value=is_page or name == "url")
        for name, value in state.items()
    }
    content = found.get("_content")
    if isinstance(content, (bytes, bytearray)) and not is_page and holds_token(content, tokens):
        found["_content"] = b""
    found.pop("_tokens", None)
    found.pop("_is_page", None)
    return found


#: Attributes of a response that are no texts of the server's. (The URL is one: a redirect may have made it.)
_NO_TEXTS = ("_content", "history", "request", "elapsed", "encoding", "status_code", "payment")


def _without(value: Any, tokens: frozenset[str], *, by_value: bool = False) -> Any:
    """Return ``value``, a part of an answer, without tokens: a copy, if it held some.

    ``by_value``: remove ``tokens`` alone, and nothing that only looks like a token. The caller's own texts may hold such things.
    """
    from ..protocol.token_search import holds_token, without_tokens

    if isinstance(value, str):
        return without_tokens(value, tokens, by_value=by_value)
    if isinstance(value, (bytes, bytearray)):
        return type(value)() if holds_token(value, tokens, by_value=by_value) else value
    if isinstance(value, requests.cookies.RequestsCookieJar):
        kept = value.copy()
        cookies: list[Any] = list(value)
        for cookie in cookies:
            if holds_token(f"{cookie.name}={cookie.value}", tokens, by_value=by_value):
                kept.clear(cookie.domain, cookie.path, cookie.name)
        return kept
    if type(value) is dict or isinstance(value, CaseInsensitiveDict):
        return type(value)({name: _without(each, tokens, by_value=by_value) for name, each in value.items()})
    if type(value) in (list, tuple, set):
        return type(value)(_without(each, tokens, by_value=by_value) for each in value)
    return value


def _scrub(response: requests.Response, tokens: frozenset[str], *, is_page: bool = False) -> None:
    """Remove ``tokens`` from ``response`` itself, as they are left out of a pickle."""
    for name, value in _without_tokens(dict(response.__dict__), tokens, is_page=is_page).items():
        if name != "raw" and value is not response.__dict__[name]:
            setattr(response, name, value)


def mark_refused(response: requests.Response) -> requests.Response:
    """Return ``response``, a 402 that the caller gets unpaid, with the mark that no other layer may pay for it either."""
    response._refused = True  # type: ignore[attr-defined]
    return response


def is_refused(response: requests.Response) -> bool:
    """Return whether another layer has refused to pay for ``response``, by `mark_refused`."""
    return getattr(response, "_refused", False) is True


def scrub_cookies(request: requests.PreparedRequest, tokens: frozenset[str]) -> None:
    """Remove ``tokens`` from the cookies of ``request``, which has been sent and isn't the caller's own.

    A server may have set its token as a cookie, and a caching session writes the cookies of a request to disk.
    """
    headers: Any = getattr(request, "headers", None)  # a testing library may set no request on the response
    if headers and "Cookie" in headers:
        headers["Cookie"] = _without(headers["Cookie"], tokens, by_value=True)
        request._cookies = _without(getattr(request, "_cookies", None), tokens, by_value=True)


def scrub_error(response: requests.Response, tokens: frozenset[str]) -> None:
    """Remove ``tokens`` from the body of ``response``, an error that a caching session may write to disk.

    The rest of the body stays. One that is long, or doesn't say how long it is, isn't read: it may have no end.
    """
    from ..protocol.token_search import holds_token

    length = str(response.headers.get("Content-Length", ""))
    if not length.isdecimal() or int(length) > _ERROR_BYTES_MAX:
        return
    content = response.content
    if holds_token(content, tokens, by_value=True):
        for token in tokens:
            content = re.sub(re.escape(token.encode()), b"<redacted>", content, flags=re.IGNORECASE)
        # If one is spelt in another way, nothing of the body is kept.
        response._content = b"" if holds_token(content, tokens, by_value=True) else content


def scrub_page(response: requests.Response, tokens: frozenset[str]) -> None:
    """Remove ``tokens`` from the head of ``response``, a page that a caching session writes to disk."""
    _scrub(response, tokens, is_page=True)


def scrub_redirect(response: requests.Response) -> requests.Response:
    """Remove the token from the request of ``response`` if that is a redirect. Return ``response``.

    A redirect goes into ``response.history``, which a caching session writes to disk.
    """
    return restore_authorization(response, {}) if response.is_redirect else response


def drop_credential_if_varied(response: requests.Response) -> requests.Response:
    """Remove the token from the request of ``response`` if the page varies by a header of credentials. Return ``response``.

    A caching adapter writes the request headers that a page varies by to its cache.
    """
    if "authorization" in response.headers.get("Vary", "").lower():
        for name in _token_headers(response.request):
            response.request.headers.pop(name)
    return response


def drop_credential_of_other_header(response: requests.Response, own: requests.PreparedRequest) -> requests.Response:
    """Remove the token from the request of ``response`` if it isn't in Authorization. Return ``response``.

    A caching session leaves Authorization out of what it writes, and no other header of credentials. ``own`` is the caller's
    request.
    """
    others = [name for name in _token_headers(response.request) if name != AUTHORIZATION]
    return restore_authorization(response, own.headers or {}) if others else response


def restore_authorization(response: requests.Response, own: Mapping[str, str | bytes]) -> requests.Response:
    """Replace a token in the request of ``response`` by what ``own``, the caller's headers, have there. Return ``response``.

    A request without a token stays as it is.
    """
    names = _token_headers(response.request)
    if names:
        response.request = request = response.request.copy()
        for name in names:
            request.headers.pop(name, None)
            if name in own:
                request.headers[name] = own[name]
    return response


def _token_headers(request: requests.PreparedRequest) -> list[str]:
    """Return the headers of ``request`` that hold a token of a scheme that this package pays for."""
    from ..protocol.schemes import is_credential

    headers = getattr(request, "headers", None) or {}  # a testing library may set no request on the response
    sent = {name: headers.get(name) for name in CREDENTIAL_HEADERS}
    texts = {name: value.decode("latin-1") if isinstance(value, bytes) else value for name, value in sent.items() if value}
    return [name for name, text in texts.items() if is_credential(text)]


class errors_with_original_request:  # noqa: N801  (used like a function; a generator costs each call with a token more)
    """Remove the token from the errors that come out of the block, which sends a request with one for ``request``, the caller's.

    Loggers write errors to disk with their requests; notebooks, test runners and reporters of errors also write the variables of
    the frames in the traceback, and in those of urllib3 and http.client the headers stand.
    """

    def __init__(self, request: requests.PreparedRequest) -> None:
        self._request = request

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if error is None:
            return
        if isinstance(error, requests.RequestException) and isinstance(error.request, CredentialedRequest):
            error.request = self._request
        _clear_frames(error)


def _clear_frames(error: BaseException) -> None:
    """Clear the variables of the frames in the tracebacks of ``error`` and its causes. Frames that still run keep theirs."""
    chain: list[BaseException | None] = [error]
    seen: set[int] = set()
    while chain and len(seen) < _CHAIN_MAX:
        each = chain.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            traceback.clear_frames(each.__traceback__)
            chain += [each.__cause__, each.__context__]


def scrub_for_history(
    response: requests.Response, request: requests.PreparedRequest, tokens: frozenset[str] = frozenset()
) -> requests.Response:
    """Remove all tokens from a superseded ``response`` before it enters a ``history`` that is written to disk. Return ``response``.

    That includes the token that its challenge offers, which is being paid for, and ``tokens``, which are known to be at stake.
    ``request`` is the caller's own: its own header takes the place of a token on the request of ``response``.
    """
    _scrub(response, tokens | tokens_offered(response))
    return restore_authorization(response, request.headers or {})
