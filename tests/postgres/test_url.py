"""How a PostgreSQL ledger is named, and that its password is written nowhere. No server is needed."""

from __future__ import annotations

import copy
import pickle
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from routeweiler_sync import Ledger, Routeweiler
from routeweiler_sync.errors import LedgerError
from routeweiler_sync.ledger.postgres import url as postgres_url
from routeweiler_sync.ledger.postgres.url import read_url, search_path_in, split_path
from tests.support.ledger_builders import hash_of, intent

SECRET = "s3cret"


@pytest.fixture(autouse=True)
def fresh_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_url, "_given", {})
    monkeypatch.setattr(postgres_url, "_looked_at", set())


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("postgresql://h/d", "postgresql://h/d"),
        ("postgres://h/d", "postgresql://h/d"),
        ("postgresql://", "postgresql://"),
        ("postgresql:///d", "postgresql:///d"),
        ("postgresql://u@h:5433/d?sslmode=require", "postgresql://u@h:5433/d?sslmode=require"),
        ("postgresql://u:s3cret@h/d", "postgresql://u@h/d"),
        ("postgresql://u:@h/d", "postgresql://u@h/d"),
        ("postgresql://:s3cret@h/d", "postgresql://h/d"),
        ("postgresql://u:a%40s3cret@h1:1,h2:2/d", "postgresql://u@h1:1,h2:2/d"),
        ("postgresql://u:s3cret@[::1]:5432/d", "postgresql://u@[::1]:5432/d"),
        ("postgresql://u@h/d?password=s3cret", "postgresql://u@h/d"),
        ("postgresql://u@h/d?p%61ssword=s3cret&sslmode=require", "postgresql://u@h/d?sslmode=require"),
        ("postgresql://u@h/d?sslkey=k&sslpassword=s3cret", "postgresql://u@h/d?sslkey=k"),
        ("postgresql://u@h/d?%70assword=s3cret", "postgresql://u@h/d"),
        ("postgresql://u@h/d?%2570assword=s3cret", "postgresql://u@h/d"),
        ("postgresql://u@h/d?PASSWORD=s3cret", "postgresql://u@h/d"),
        ("postgresql://u@h/d?pwd=s3cret&sslmode=require", "postgresql://u@h/d?sslmode=require"),
        ("postgresql://h/d?options=-csearch_path%3Dledger", "postgresql://h/d?options=-csearch_path%3Dledger"),
    ],
)
def test_a_ledgers_name_is_free_of_secrets_and_names_it_all_the_same(given: str, shown: str) -> None:
    """Else the database's password would be in logs, reprs and pickles, or the copy of a session use another ledger."""
    ledger = Ledger.open(given)
    assert ledger.url == shown
    assert SECRET not in repr(ledger) + repr(read_url(given))
    assert Ledger.open(shown).url == shown


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:p@s3cret@h/d",
        "postgresql://u:p/s3cret@h/d",
        "postgresql://u:12/s3cret@h/d",
        "postgresql://u:p?s3cret@h/d",
        "postgresql://u:12?s3cret@h/d",
        "postgresql://u:12?x=s3cret@h/d",
        "postgresql://h:s3cret/d",
        "postgresql://h/d?s3cret",
        "postgresql://u%3As3cret@h/d",
        "postgresql://u%253As3cret@h/d",
    ],
)
def test_a_password_that_isnt_encoded_is_refused_and_not_repeated(url: str) -> None:
    """Else libpq would take a part of the password for a host, ask the network for it, and repeat it in its error."""
    with pytest.raises(LedgerError, match="percent-encoded") as refused:
        Ledger.open(url)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    "url", ["postgresql://h/d?sslmode=require;password=s3cret", "postgresql://h/d?options=-c%20password%3Ds3cret"]
)
def test_a_password_where_none_is_looked_for_is_refused(url: str) -> None:
    """Else it would be a part of the ledger's name, and so in every text about it."""
    with pytest.raises(LedgerError, match="password in a place") as refused:
        Ledger.open(url)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize("text", ["u:s3cret@h/d", "u:s3/cret@h/d", "//u:s3cret@h:5432/d", " u:s3cret@h"])
def test_a_url_without_its_scheme_is_no_files_name(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the password would be the name of a file, and a new budget begin in it."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LedgerError, match="postgresql://") as refused:
        Ledger.open(text).freeze("default")
    assert "s3" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "query", ["password=%s", "%%70assword=%s", "PASSWORD=%s", "password=%s&nonsense=1", "password=%s&sslmode=odd", "pwd=%s"]
)
def test_libpqs_own_errors_repeat_no_password(query: str) -> None:
    """It repeats values that it can't read."""
    pytest.importorskip("psycopg")
    for secret in ("s3cret", "s3cret%zz", "s3cret%00"):
        with pytest.raises(LedgerError) as refused:
            Ledger.open("postgresql://u@127.0.0.1:1/d?connect_timeout=2&" + query % secret).unfinished()
        shown = f"{refused.value} {refused.value.__cause__!r} {refused.value.__context__!r}"
        assert "s3cret" not in shown


@pytest.mark.parametrize("url", [Path("postgresql://u:s3cret@h/d"), "postgres:s3cret", Path("sqlite:///l.db")])
def test_a_url_that_was_made_a_path_is_refused(url: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a new ledger would begin in a folder that is named after the password, with every budget unspent."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LedgerError) as refused:
        Ledger.open(url)  # type: ignore[arg-type]
    assert SECRET not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text",
    [
        "host=db password=s3cret dbname=x",
        "dbname=x",
        "sslmode=require  HOST = db password = 's3c ret'",
        "service=ledger",
        " user=me\thostaddr=127.0.0.1 password=s3cret",
    ],
)
def test_libpqs_other_form_is_no_files_name(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else each machine of the fleet would spend on a budget of its own, and the password be the name of a file."""
    monkeypatch.chdir(tmp_path)
    for given in (text, Path(text)):
        with pytest.raises(LedgerError) as refused:
            Ledger.open(given).freeze("default")
        assert "postgresql://" in str(refused.value)
        assert "s3c" not in f"{refused.value!r} {refused.value}"
        assert refused.value.spent is False
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["./host=db.sqlite", "a=b.db", "ledger host.db", "x/host=1"])
def test_a_files_name_may_have_an_equals_sign(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a ledger that is in use couldn't be opened any more."""
    monkeypatch.chdir(tmp_path)
    assert Ledger.open(name).freeze("default").frozen
    assert (tmp_path / name).exists()


def test_a_copied_session_knows_the_password_and_a_pickled_one_doesnt_tell_it() -> None:
    """Else a copy would be shut out of the ledger, or a pickle on disk would hold the password."""
    with Routeweiler(ledger="postgresql://u:s3cret@h/d") as session:
        assert SECRET.encode() not in pickle.dumps(session)
        copies = [copy.deepcopy(session), pickle.loads(pickle.dumps(session))]
        for other in copies:
            assert other._payer.ledger.url == "postgresql://u@h/d"
            assert SECRET in other._payer.ledger._store._address.conninfo
            other.close()
    postgres_url._given.clear()  # as in another process
    assert SECRET not in read_url("postgresql://u@h/d").conninfo


def test_importing_and_naming_imports_no_psycopg() -> None:
    """Else whoever pays from a file would wait for a database driver that they don't use, or need it installed."""
    code = (
        "import sys, routeweiler_sync; from routeweiler_sync import Ledger; Ledger.open('l.db'); Ledger.open('postgresql://h/d');"
        "raise SystemExit('psycopg' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def uses(ledger: Ledger) -> list[Callable[[], object]]:
    """Each way in which a ledger is used first."""
    return [
        ledger.exists,
        ledger.unfinished,
        lambda: ledger.open_payment(intent(1), None),
        lambda: ledger.mark(hash_of(1), reported=True),
    ]


def test_a_missing_driver_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else whoever reads ModuleNotFoundError must guess what this package wants."""
    monkeypatch.setitem(sys.modules, "psycopg", None)
    for use in uses(Ledger.open("postgresql://u:s3cret@127.0.0.1:1/d")):
        with pytest.raises(LedgerError, match=r'pip install "routeweiler-sync\[postgres\]"') as refused:
            use()
        assert refused.value.spent is False


@pytest.mark.slow
@pytest.mark.parametrize("listens", [False, True])
def test_a_server_that_is_down_or_mute_is_refused_soon(listens: bool) -> None:
    """Else a purchase, and free traffic beside it, would hang on a database that isn't there."""
    pytest.importorskip("psycopg")
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        if listens:
            mute.listen(0)  # takes connections, and says nothing on them
        port = mute.getsockname()[1]
        for use in uses(Ledger.open(f"postgresql://u:s3cret@127.0.0.1:{port}/d?connect_timeout=2")):
            began_s = time.monotonic()
            with pytest.raises(LedgerError, match="Nothing was spent") as refused:
                use()
            assert time.monotonic() - began_s < 20
            assert refused.value.spent is False
            assert SECRET not in f"{refused.value} {refused.value.__cause__} {refused.value.__context__}"


def test_parameters_that_libpq_doesnt_know_are_told_without_the_password() -> None:
    """Else a slip in one parameter would write the whole URL into the log."""
    pytest.importorskip("psycopg")
    for url in (
        "postgresql://u:s3cret@h/d?sslmod=x",
        "postgresql://u:s3cret@h/d?connect_timeout=x",
        "postgresql://u:s3%zzcret@h/d",
    ):
        with pytest.raises(LedgerError) as refused:
            Ledger.open(url).unfinished()
        for told in (refused.value, refused.value.__cause__):
            assert SECRET not in str(told)
            assert "cret@" not in str(told)


def test_an_unpickled_session_takes_the_password_from_its_own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where an engine's workers have ``ROUTEWEILER_LEDGER``, a session that was sent to them would be refused by the database."""
    monkeypatch.setenv("ROUTEWEILER_LEDGER", f"postgresql://u:{SECRET}@h/d")
    there = pickle.loads(pickle.dumps(Routeweiler(funding=[], ledger="postgresql://u@h/d")))
    ledger = there.adapters["https://"].payer.ledger
    assert ledger._store._address.conninfo == f"postgresql://u:{SECRET}@h/d"
    assert SECRET not in repr(ledger) + ledger.url
    assert read_url("postgresql://u@other/d").conninfo == "postgresql://u@other/d", "no password goes to another server"


@pytest.mark.parametrize("named", ["postgresql://u@h/d", "postgresql://u:@:@h/d", "/a/file.db", ""])
def test_an_environment_without_a_password_changes_nothing(named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a mistake in the environment would break a ledger that is named in the program."""
    monkeypatch.setenv("ROUTEWEILER_LEDGER", named)
    assert read_url("postgresql://u@h/d").conninfo == "postgresql://u@h/d"


@pytest.mark.parametrize(
    ("options", "path"),
    [
        ("", None),
        ("-c statement_timeout=5s", None),
        ("-c application_name=search_path=a", None),
        ("-csearch_path=a", ["a"]),
        ("-c search_path=a,public", ["a", "public"]),
        ("--search_path=a", ["a"]),
        ("--search-path=a", ["a"]),
        ("-c work_mem=4MB -c Search_Path=a -c search_path=b", ["b"]),
        (r'-c search_path="a",\ "$user",\ b -c work_mem=4MB', ["a", "$user", "b"]),
    ],
)
def test_the_search_path_of_a_url_is_found_in_all_its_spellings(options: str, path: list[str] | None) -> None:
    """Else a pooler could drop it unnoticed, and the ledger be another one."""
    found = search_path_in(options)
    assert (None if found is None else split_path(found)) == path
