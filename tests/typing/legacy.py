"""A script of the days before payments, of which the import line alone was changed. It uses most of what `requests` offers.

Its argument is the URL of a server that answers a GET of /json, /redirect and /missing.
"""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true, reportUnnecessaryComparison=false
from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from urllib3.util.retry import Retry

import routeweiler_sync as requests

if TYPE_CHECKING:
    from typing_extensions import assert_type
else:

    def assert_type(value, kind):
        return value


requests.packages.urllib3.disable_warnings()


class TokenAuth(requests.auth.AuthBase):
    """A user's own way to sign requests."""

    def __init__(self, token: str) -> None:
        self.token = token

    def __call__(self, r: requests.PreparedRequest) -> requests.PreparedRequest:
        r.headers["X-Token"] = self.token
        return r


class NamedAdapter(requests.adapters.HTTPAdapter):
    """A user's own adapter."""

    def __init__(self, name: str, **kwargs: Any) -> None:
        self.name = name
        super().__init__(**kwargs)

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        request.headers["X-Sent-By"] = self.name
        return super().send(request, *args, **kwargs)


class ApiClient:
    """A client as many have written it: it holds a session, or is given one."""

    def __init__(self, base_url: str, session: requests.Session | None = None) -> None:
        self.base_url = base_url
        self.session = session or requests.Session()
        self.session.headers.update({"Accept": "application/json"})
        self.session.hooks["response"].append(self.note)
        self.statuses: list[int] = []

    def note(self, response: requests.Response, *args: Any, **kwargs: Any) -> None:
        self.statuses.append(response.status_code)

    def get(self, path: str, **params: str) -> requests.models.Response:
        response = self.session.get(self.base_url + path, params=params, timeout=(3.05, 30))
        response.raise_for_status()
        return response

    def walk(self, path: str) -> Iterator[str]:
        with self.session.get(self.base_url + path, stream=True, timeout=30) as response:
            for line in response.iter_lines(decode_unicode=True):
                yield str(line)


def retrying() -> requests.Session:
    """The commonest recipe there is."""
    session = requests.session()
    retry = Retry(total=3, backoff_factor=0.1, status_forcelist=[502, 503])
    session.mount("https://", requests.adapters.HTTPAdapter(max_retries=retry))
    session.mount("http://", NamedAdapter("legacy", pool_maxsize=20))
    session.auth = requests.auth.HTTPBasicAuth("user", "secret")
    session.verify = True
    session.proxies = {}
    session.trust_env = False
    session.max_redirects = 5
    return session


def verbs(url: str) -> list[int]:
    responses: list[requests.Response] = [
        requests.get(url + "/json", params={"a": "1"}, headers={"X-One": "1"}, timeout=30),
        requests.head(url + "/json", timeout=30),
        requests.options(url + "/json", auth=("user", "secret"), timeout=30),
        requests.post(url + "/json", data={"a": "1"}, timeout=30),
        requests.post(url + "/json", json={"a": [1, None]}, cookies={"a": "1"}, timeout=30),
        requests.post(url + "/json", files={"file": ("name.txt", io.BytesIO(b"text"))}, timeout=30),
        requests.put(url + "/json", data=b"bytes", timeout=30),
        requests.patch(url + "/json", data="text", timeout=30),
        requests.delete(url + "/json", timeout=30),
        requests.request("GET", url + "/redirect", allow_redirects=False, auth=TokenAuth("t"), timeout=30),
        requests.api.get(url + "/json", timeout=30),
        requests.api.request("GET", url + "/json", timeout=30),
        requests.sessions.Session().get(url + "/json", timeout=30),
    ]
    return [response.status_code for response in responses]


def prepared(url: str) -> requests.Response:
    request = requests.Request("POST", url + "/json", data={"a": "1"}, auth=requests.auth.HTTPDigestAuth("user", "secret"))
    with requests.Session() as session:
        ready: requests.PreparedRequest = session.prepare_request(request)
        assert_type(ready, requests.models.PreparedRequest)
        settings = session.merge_environment_settings(ready.url or "", {}, None, None, None)
        assert settings["stream"] in (None, False)
        return session.send(ready, timeout=30, allow_redirects=True)


def what_went_wrong(url: str) -> str:
    try:
        requests.get(url + "/missing", timeout=30).raise_for_status()
    except requests.exceptions.HTTPError as error:
        response = error.response
        return "none" if response is None else f"{response.status_code} {response.reason}"
    except (requests.Timeout, requests.exceptions.ReadTimeout, requests.ConnectTimeout) as error:
        return f"timeout: {error}"
    except (requests.exceptions.SSLError, requests.exceptions.ProxyError, requests.ConnectionError):
        return "connection"
    except (requests.TooManyRedirects, requests.URLRequired, requests.JSONDecodeError):
        return "redirects"
    except requests.RequestException as error:
        assert_type(error, requests.exceptions.RequestException)
        return str(error)
    return "nothing"


def main(url: str) -> None:
    assert all(200 <= status < 400 for status in verbs(url))

    client = ApiClient(url, retrying())
    answer = client.get("/json", page="1")
    assert_type(answer, requests.Response)
    assert_type(answer.status_code, int)
    assert_type(answer.text, str)
    assert_type(answer.url, str)
    assert_type(answer.history, list[requests.Response])
    assert answer.ok
    assert answer.headers["content-TYPE"].startswith("application/json")
    assert isinstance(answer.headers, requests.structures.CaseInsensitiveDict)
    assert isinstance(answer.cookies, requests.cookies.RequestsCookieJar)
    assert answer.content == b'{"legacy": true}'
    assert answer.json() == {"legacy": True}
    assert answer.elapsed.total_seconds() >= 0
    assert list(client.walk("/json")) == ['{"legacy": true}']
    assert client.statuses == [200, 200]
    assert ApiClient(url).get("/redirect").history[0].is_redirect

    assert prepared(url).status_code == requests.codes.ok == requests.status_codes.codes.ok == 200
    assert what_went_wrong(url) == "404 Not Found"

    headers: requests.structures.CaseInsensitiveDict[str] = requests.structures.CaseInsensitiveDict({"A": "1"})
    assert headers["a"] == "1"
    assert requests.utils.requote_uri("http://localhost/a b") == "http://localhost/a%20b"
    assert requests.compat.builtin_str is str
    assert issubclass(requests.exceptions.ReadTimeout, requests.Timeout)
    assert requests.__version__.split(".")[0] == "2"
    assert issubclass(requests.exceptions.RequestsWarning, Warning)


if __name__ == "__main__":
    main(sys.argv[1])
