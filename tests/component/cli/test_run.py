"""``routeweiler-sync run``: a program can't tell that it isn't run by python, but that its `requests` pays.

Each comparison runs both, as processes of their own, and takes what they write and how they end to the byte.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import routeweiler_sync
from routeweiler_sync.cli.run import options_of, paying_environ, stand_by
from routeweiler_sync.payments.slow_payments import SLOW_S
from routeweiler_sync.testing import FakeLnd, Paywall
from tests.support.accounts import Books
from tests.support.cli_process import NO_NODE, TIMEOUT_S, bare_environ

if os.name == "posix":
    from tests.support.terminal import Terminal

posix_only = pytest.mark.skipif(os.name != "posix", reason="pipes and signals as POSIX has them")

#: What a console script is. It lies where it shadows nothing: ``python -m`` has the current folder's modules first.
CONSOLE = "import sys; from routeweiler_sync.cli import main; sys.exit(main())"
MODULE = ("-m", "routeweiler_sync")
ADDRESS = re.compile(rb"0x[0-9a-f]{6,}")
Ended = subprocess.CompletedProcess[bytes]


def environ_of_test(**environ: str) -> dict[str, str]:
    """As `bare_environ`, and with python's own defaults."""
    return {name: value for name, value in bare_environ(**environ).items() if not name.startswith("PYTHON") or name == "PYTHONPATH"}


@dataclass
class Interpreter:
    """Runs programs of one folder: by python, and by ``routeweiler-sync run``."""

    folder: Path
    environ: dict[str, str] = field(default_factory=environ_of_test)

    @property
    def paying(self) -> list[str]:
        """What makes python's arguments those of ``routeweiler-sync run``."""
        return [str(self.folder.parent / "bin" / "routeweiler-sync"), "run"]

    def write(self, name: str, text: str | bytes) -> None:
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text if isinstance(text, bytes) else textwrap.dedent(text).encode())

    def started(self, *args: str, how: Sequence[str] | None = None, options: Sequence[str] = ()) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, *options, *(self.paying if how is None else how), *args],
            cwd=self.folder,
            env=self.environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, *args: str, how: Sequence[str] | None = None, options: Sequence[str] = (), stdin: bytes = b"") -> Ended:
        with self.started(*args, how=how, options=options) as process:
            out, err = (ADDRESS.sub(b"0x", said) for said in process.communicate(stdin, TIMEOUT_S))
            return Ended(process.args, process.returncode, out, err)

    def same(self, *args: str, **kwargs: Any) -> Ended:
        """What python does with these arguments, and so does ``run``."""
        plain = self.run(*args, how=(), **kwargs)
        paying = self.run(*args, **kwargs)
        assert (paying.stdout, paying.stderr, paying.returncode) == (plain.stdout, plain.stderr, plain.returncode)
        assert b"routeweiler" not in plain.stderr
        return plain


@pytest.fixture
def python(tmp_path: Path) -> Interpreter:
    made = Interpreter(tmp_path / "here")
    made.write("../bin/routeweiler-sync", CONSOLE)
    made.folder.mkdir(exist_ok=True)
    return made


# What a program is told of itself

WHO = """
    import sys
    for name, value in sorted(globals().items()):
        print(name, value)
    print(sys.argv, sys.orig_argv[-1:], sys.flags, sys.path, sys.executable, sys.modules["__main__"].__dict__ is globals())
    print(sys.path_hooks, sys._getframe().f_back is None, "requests" in sys.modules, "grpc" in sys.modules)
"""


@pytest.mark.slow
@pytest.mark.parametrize("script", ["who.py", "./who.py", "sub/../who.py", "{folder}/who.py", "app", "app.zip", "-"])
def test_a_program_finds_itself_as_python_would_have_it(python: Interpreter, script: str) -> None:
    """Programs look for their files beside ``__file__`` and ``sys.path[0]``, and for their arguments in ``sys.argv``."""
    python.write("who.py", WHO)
    python.write("app/__main__.py", WHO)
    (python.folder / "sub").mkdir()
    with zipfile.ZipFile(python.folder / "app.zip", "w") as archive:
        archive.write(python.folder / "app/__main__.py", "__main__.py")
    stdin = (python.folder / "who.py").read_bytes() if script == "-" else b""
    ended = python.same(script.format(folder=python.folder), "a", "", "b c", "ü", stdin=stdin)
    assert ended.returncode == 0, ended.stderr
    assert b"__name__ __main__" in ended.stdout


@pytest.mark.slow
@pytest.mark.parametrize("args", [["pkg"], ["pkg.mod"], ["who"], ["nowhere"], ["pkg.empty"], ["json.tool", "--help"]])
def test_a_module_is_run_as_by_python_m(python: Interpreter, args: list[str]) -> None:
    """A service that is started as ``python -m service`` has relative imports, which need its package."""
    python.write("who.py", WHO)
    for name in ("pkg/__main__.py", "pkg/mod.py"):
        python.write(name, "from . import sibling\n" + textwrap.dedent(WHO))
    for name in ("pkg/__init__.py", "pkg/sibling.py", "pkg/empty/__init__.py"):
        python.write(name, "")
    python.same("-m", *args)


@pytest.mark.slow
@pytest.mark.parametrize(
    "args",
    [
        ["--help"],
        ["-h", "-X", "foo", "--", "bar", "-m", "x"],
        ["--", "--"],
        ["run", "get", "--version"],
        ["*", "~", "%PATH%", "$HOME"],
    ],
)
def test_what_follows_the_script_is_the_script_s(python: Interpreter, args: list[str]) -> None:
    """A ``--help`` or ``--`` that we take away never reaches the program."""
    python.write("args.py", "import sys; print(sys.argv)")
    assert repr(args)[1:].encode() in python.same("args.py", *args).stdout
    assert repr(args)[1:].encode() in python.same("-m", "args", *args).stdout


@pytest.mark.slow
def test_the_interpreter_s_options_hold(python: Interpreter) -> None:
    """With ``-W error`` or ``-O`` a program is another; ``-P`` keeps the folder of a script off the path."""
    python.write("who.py", WHO)
    python.write("warn.py", "import warnings\nwarnings.warn('old')\nassert not __debug__")
    for options in (["-W", "error"], ["-Werror", "-O"], ["-OO", "-X", "dev"], ["-ub"], ["-X", "utf8", "-s"]):
        python.same("warn.py", options=options)
        python.same("who.py", options=options)
    if sys.version_info >= (3, 11):
        python.same("who.py", options=["-P"])
        python.environ["PYTHONSAFEPATH"] = "1"
        python.same("who.py")
        python.same("-m", "who")


def test_options_of_the_interpreter_are_separated_from_the_program() -> None:
    """An option's value that is taken for the program, or the other way round, starts something else."""
    ours = ["-m", "routeweiler_sync", "run", "-W"]
    assert options_of(["python", *ours]) == []
    assert options_of(["python", "-uW", "error", "-X", "dev", "-Wdefault", *ours]) == ["-uW", "error", "-X", "dev", "-Wdefault"]
    assert options_of(["python", "-Om", "routeweiler_sync"]) == ["-O"]
    assert options_of(["python", "-W", "-m", *ours]) == ["-W", "-m"]
    assert options_of(["python", "--check-hash-based-pycs", "never", "/bin/routeweiler-sync", "-u"]) == [
        "--check-hash-based-pycs",
        "never",
    ]
    assert options_of(["python", "-u", "/bin/routeweiler-sync", "run", "-m"]) == ["-u"]
    assert options_of(["python"]) == options_of([]) == []


@pytest.mark.parametrize("options", [["-E"], ["-I"], ["-S"]])
def test_options_with_which_nothing_could_pay_are_refused(python: Interpreter, options: list[str]) -> None:
    """A program that was to pay and silently doesn't, fails far from the cause."""
    python.write("script.py", "print('run')")
    # -m would not find the package where the environment is ignored, as it isn't installed in every place where this is tested.
    start = f"import sys; sys.path[:0] = {sys.path!r}; from routeweiler_sync.cli import main; main()"
    ended = python.run("script.py", how=["-c", start, "run"], options=options)
    assert (ended.returncode, ended.stdout) == (2, b"")
    assert b"-E, -I and -S" in ended.stderr


def test_a_budget_that_can_t_be_read_is_refused_at_once(python: Interpreter) -> None:
    """Found at the first 402, it would stop a program in the middle of its work."""
    python.write("script.py", "print('run')")
    python.environ["ROUTEWEILER_BUDGET"] = "lots"
    ended = python.run("script.py")
    assert (ended.returncode, ended.stdout) == (2, b"")
    assert b"'lots' isn't a limit" in ended.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nowhere.py", "no/where.py", "void", "noise.zip"])
def test_what_can_t_be_run_is_told_in_python_s_words(python: Interpreter, name: str) -> None:
    """Exit code 2 and the path: what a supervisor's log is searched for."""
    (python.folder / "void").mkdir()
    python.write("noise.zip", b"PK\x03\x04noise")
    assert python.same(name).returncode in (1, 2)
    if os.name == "posix" and os.geteuid():
        python.write("secret.py", "")
        (python.folder / "secret.py").chmod(0)
        assert python.same("secret.py").returncode == 2


# How programs end

PROGRAMS: dict[str, str | bytes] = {
    "exits with a number": "import sys; sys.exit(3)",
    "exits with a text": "import sys; sys.exit('a text')",
    "exits with nothing": "import sys; sys.exit()",
    "exits with an object": "raise SystemExit([1, 2])",
    "exits with a big number": "raise SystemExit(-1)",
    "exits at once, its buffer unwritten": "import os; print('lost'); os._exit(7)",
    "aborts click": "import click; raise click.Abort",
    "raises click's exit": "import click.exceptions; raise click.exceptions.Exit(4)",
    "raises click's error": "import click; raise click.UsageError('wrong')",
    "raises": "def f():\n    1 / 0\n\nf()",
    "raises EOFError": "input()",
    "raises BrokenPipeError": "raise BrokenPipeError(32, 'Broken pipe')",
    "raises KeyboardInterrupt": "raise KeyboardInterrupt",
    "raises GeneratorExit": "raise GeneratorExit",
    "chains": "try:\n    1 / 0\nexcept ZeroDivisionError as e:\n    raise ValueError('then') from e",
    "raises in a handler": "try:\n    1 / 0\nexcept ZeroDivisionError:\n    {}['x']",
    "raises a group": "raise ExceptionGroup('both', [ValueError(1), TypeError(2)])",
    "adds a note": "e = ValueError(1); e.add_note('noted'); raise e",
    "recurses": "def f(n): return f(n + 1)\nf(0)",
    "tells its depth": "def f(n):\n    try: return f(n + 1)\n    except RecursionError: return n\nprint(f(0))",
    "has no syntax": "x = 1\nif x\n    pass\n",
    "is cut short": "print((1,",
    "mixes tabs": "if 1:\n\tpass\n        pass\n",
    "has a null byte": b"x = 1\x00\n",
    "has a BOM": b"\xef\xbb\xbfprint('b\xc3\xb6m', __file__)",
    "has CRLF": b"print('a')\r\nprint('''x\r\ny'''.encode())\r\n1 / 0\r\n",
    "is in Latin-1": b"# -*- coding: latin-1 -*-\nprint(ascii('\xe4'))\n1 / 0 # \xe4\n",
    "is in an unknown coding": b"# coding: nonsense\nprint(1)\n",
    "isn't in UTF-8": b"print('\xe4')\n",
    "is empty": "",
    "sets excepthook": "import sys\nsys.excepthook = lambda *a: print('hook', a[0].__name__, a[2].tb_frame.f_code.co_name)\n1 / 0",
    "has a broken excepthook": "import sys\ndef hook(*a):\n    return a[7]\nsys.excepthook = hook\n1 / 0",
    "exits from excepthook": "import sys\nsys.excepthook = lambda *a: sys.exit(9)\n1 / 0",
    "looks back at exit": "import atexit, sys\natexit.register(lambda: print(sys.last_value, sys.last_traceback.tb_lineno))\n1 / 0",
    "registers exits": "import atexit\natexit.register(print, 'later')\nx = 1\natexit.register(lambda: print(x))\nprint('now')",
    "fails at exit": "import atexit\natexit.register(lambda: 1 / 0)",
    "leaves a thread": """
        import threading, sys
        def late():
            threading.main_thread().join()
            print(value, sys.modules["__main__"].value)
        threading.Thread(target=late).start()
        value = 3
    """,
    "fails in a thread": "import threading; t = threading.Thread(target=lambda: 1 / 0, name='t'); t.start(); t.join()",
    "pickles its classes": """
        import pickle
        class A: pass
        print(type(pickle.loads(pickle.dumps(A()))) is A, b"__main__" in pickle.dumps(A()))
    """,
    "pools, forking": "POOL fork",
    "pools, spawning": "POOL spawn",
    "pools from a server": "POOL forkserver",
    "uses asyncio": "import asyncio\nasync def f():\n    await asyncio.sleep(0)\n    print('in')\n    1 / 0\nasyncio.run(f())",
    "logs": "import logging; logging.warning('w'); logging.info('i'); print(logging.root.handlers, logging.lastResort)",
    "warns": "import warnings; warnings.warn('w', stacklevel=2); warnings.warn('d', DeprecationWarning, stacklevel=1)",
    "breaks": "x = 41\nbreakpoint()\nprint(x)",
    "reads": "import sys; print(sys.stdin.read().upper(), sys.stdin.isatty())",
    "annotates": "x: int = 1\nprint(__annotations__)\nfrom __future__ import annotations",
    "has a future": "'''doc'''\nfrom __future__ import annotations\nx: undefined = 1\nprint(__doc__, __annotations__)",
    "imports a sibling": "import sibling; print(sibling.__file__, sibling.main is __import__('__main__'))",
    "imports a broken sibling": "import broken",
    "inspects itself": "import inspect\ndef f(): pass\nprint(inspect.getsource(f), inspect.stack()[-1], len(inspect.stack()))",
    "prints its stack": "import traceback; traceback.print_stack()",
    "writes half a line": "import sys; sys.stdout.write('half'); sys.stderr.write('err')",
    "has an encoding": "import sys; print(sys.stdout.encoding, sys.stdout.errors, sys.stderr.errors, sys.stdout.line_buffering)",
    "runs its children": "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import sys; print(sys.path)'])",
    "lists its environment": "import os; print([each for each in os.environ.items() if each[0] not in ADDED])",
    "knows its modules": """
        import sys
        print(sorted(m for m in sys.modules if not m.startswith(("_routeweiler", "sitecustom", "importlib", "warnings"))))
    """,
}
POOL = """
    import multiprocessing, os
    class Box:
        def __init__(self, x): self.x = x
    def double(box): return Box((box.x * 2, __name__, os.getpid() != parent))
    parent = os.getpid() if __name__ == "__main__" else os.getppid()
    if __name__ == "__main__":
        with multiprocessing.get_context("HOW").Pool(2) as pool:
            print([box.x for box in pool.map(double, map(Box, range(4)))])
        1 / 0
"""
STDIN = {"breaks": b"p x + 1\nx = 5\nc\n", "reads": b"some\r\ntext"}


@pytest.mark.slow
@pytest.mark.parametrize("what", PROGRAMS)
def test_a_program_ends_as_under_python(python: Interpreter, what: str) -> None:
    """A frame of ours in a traceback, or an exit code that isn't the program's, sends its user looking in the wrong place."""
    text = PROGRAMS[what]
    if isinstance(text, str) and text.startswith("POOL"):
        how = text.split()[1]
        if how != "spawn" and os.name != "posix":
            pytest.skip("there is no fork here")
        text = POOL.replace("HOW", how)
    python.write(
        "program.py",
        text.replace("ADDED", "('PYTHONPATH', 'ROUTEWEILER_RUN', 'ROUTEWEILER_RUN_BILL')") if isinstance(text, str) else text,
    )
    python.write("sibling.py", "import __main__ as main")
    python.write("broken.py", "def f():\n    return 1 / 0\nf()")
    python.same("program.py", stdin=STDIN.get(what, b""))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["-strange.py", "with space.py", "ümlaut.py", "noext"])
def test_a_program_may_have_any_name(python: Interpreter, name: str) -> None:
    """A path is a path."""
    python.write(name, "import sys; print(ascii(sys.argv), ascii(__file__)); 1 / 0")
    args = ["--", name] if name.startswith("-") else [name]
    assert python.same(*args, "x").returncode == 1


#: Says that the program is ready once it sleeps, and not a line before: its traceback is to be the same each time.
READY = """
import sys, threading, time
def tell():
    main = threading.main_thread().ident
    while sys._current_frames()[main].f_lineno != int(sys.argv[1]):
        time.sleep(0.01)
    print("ready", flush=True)
threading.Thread(target=tell, daemon=True).start()
"""


@pytest.mark.slow
@posix_only
@pytest.mark.parametrize(
    "program",
    {
        "sleeps": "time.sleep(60)\n",
        "cleans up": "try:\n    time.sleep(60)\nfinally:\n    print('clean')\n",
        "answers": """
            import signal, sys
            signal.signal(signal.SIGINT, lambda *_: sys.exit(5))
            print('ready', flush=True)
            signal.pause()
        """,
        "is deaf": "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nprint('ready', flush=True)\nprint(input())\n",
        "is interrupted in a thread pool": """
            import concurrent.futures, time
            with concurrent.futures.ThreadPoolExecutor() as pool:
                pool.submit(time.sleep, 0.2)
                time.sleep(60)
        """,
    }.values(),
)
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_the_program_s(python: Interpreter, program: str, signum: int) -> None:
    """A shell's loop goes on after Ctrl-C, unless what it ran died of it; and a supervisor's kill must reach the program."""
    text = textwrap.dedent(program)
    text = READY + text if "sleep(60)" in text else text
    line = next((number for number, each in enumerate(text.splitlines(), 1) if "sleep(60)" in each), 0)
    python.write("program.py", text)

    def signalled(how: Sequence[str] | None) -> tuple[bytes, bytes, int]:
        with python.started("program.py", str(line), how=how) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            process.send_signal(signum)
            out, err = process.communicate(b"went on\n", TIMEOUT_S)
            return out, err, process.returncode

    plain, paying = signalled(()), signalled(None)
    assert paying == plain
    if "sleep(60)\n" in program:
        assert plain[2] == -signum


@pytest.mark.slow
@posix_only
def test_a_reader_that_leaves_ends_the_program_as_ever(python: Interpreter) -> None:
    """``… | head``: what python makes of a broken pipe, it makes here, be it while the program writes or at its end."""
    # Flushed line by line: else it is chance how much is still to be written at the end.
    python.write("much.py", "for n in range(200_000):\n    print('line', n, flush=True)\n")
    python.write("late.py", "import sys\nprint('first', flush=True)\nsys.stdin.read()\nprint('last')\n")

    def left(script: str, how: Sequence[str] | None) -> tuple[bytes, int]:
        with python.started(script, how=how) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdin is not None
            process.stdout.readline()
            process.stdout.close()
            process.stdin.close()
            return process.stderr.read(), process.wait(TIMEOUT_S)

    for script in ("much.py", "late.py"):
        assert left(script, None) == left(script, ()), script
    assert left("late.py", None)[1] == 120


@pytest.mark.slow
def test_the_site_s_own_customization_runs(python: Interpreter) -> None:
    """Coverage tools and companies have a sitecustomize of their own: it isn't replaced, and its faults are told as its own."""
    python.write("site/sitecustomize.py", "import sys; sys.custom = (__name__, __file__, list(sys.path))")
    python.write("program.py", "import sys, sitecustomize; print(sys.custom, sitecustomize.__file__, sys.path)")
    python.environ["PYTHONPATH"] = os.pathsep.join([str(python.folder / "site"), python.environ["PYTHONPATH"]])
    assert python.same("program.py").stdout.startswith(b"('sitecustomize'")
    python.write("program.py", "import sys; print(sys.path)")
    for fault in ("1 / 0", "import nowhere"):
        python.write("site/sitecustomize.py", fault)
        plain, paying = python.run("program.py", how=()), python.run("program.py")
        assert (paying.stdout, paying.stderr) == (plain.stdout, 2 * plain.stderr)  # ours is a python, too


@pytest.mark.slow
@pytest.mark.parametrize("path", ["", None, "{os.pathsep}", "one{os.pathsep}{os.pathsep}two"])
def test_the_path_is_the_user_s(python: Interpreter, path: str | None) -> None:
    """An empty entry of PYTHONPATH is the current folder: one too many, and a program imports what lies there."""
    python.write("app/program.py", "import sys; print(sys.path)")
    if path is None:
        del python.environ["PYTHONPATH"]
    else:
        python.environ["PYTHONPATH"] = path.replace("{os.pathsep}", os.pathsep)
    plain = python.run("app/program.py", how=())
    start = f"import sys; sys.path[:0] = {sys.path!r}; from routeweiler_sync.cli import main; main()"
    paying = python.run("app/program.py", how=["-c", start, "run"])
    assert (paying.stdout, paying.stderr) == (plain.stdout, plain.stderr)


def test_run_within_run_adds_nothing() -> None:
    """A program that runs another one so would lengthen the path for ever."""
    once = paying_environ({"PYTHONPATH": "x"})
    assert paying_environ(once) == once


@pytest.mark.slow
def test_python_m_with_a_file_runs_it_and_commands_go_first(python: Interpreter) -> None:
    """``python -m routeweiler_sync script.py`` is what people type who know ``python -m cProfile script.py``."""
    python.write("program.py", "import sys; print(sys.argv); sys.exit(3)")
    python.write("app/__main__.py", "import sys; print(sys.argv)")
    python.write("demo", "print('not run')")
    for args in (["program.py", "get", "-x"], ["./program.py"], ["app", "--help"], ["nowhere.py"]):
        plain, paying = python.run(*args, how=()), python.run(*args, how=MODULE)
        assert (paying.stdout, paying.stderr, paying.returncode) == (plain.stdout, plain.stderr, plain.returncode)
    assert b"Usage: routeweiler-sync demo" in python.run("demo", "--help", how=MODULE).stdout
    assert python.run("./demo", how=MODULE).stdout.strip() == b"not run"
    assert b"No such command 'nowhere'" in python.run("nowhere", how=MODULE).stderr
    assert b"Usage: routeweiler-sync run" in python.run("--help").stdout
    assert python.run().returncode == 2


def test_without_exec_the_command_waits_for_the_program(python: Interpreter) -> None:
    """On Windows a shell would go on while the program runs, and never learn its exit code."""
    python.write("program.py", "import sys; print(sys.stdin.read()); sys.exit(7)")
    python.write("stand_by.py", "from routeweiler_sync.cli.run import stand_by\nimport os, sys\n"
                                "sys.exit(stand_by([sys.executable, 'program.py'], dict(os.environ)))\n")  # fmt: skip
    ended = python.run("stand_by.py", how=(), stdin=b"heard")
    assert (ended.stdout.strip(), ended.returncode) == (b"heard", 7)
    assert callable(stand_by)


# What is different: it pays


@pytest.fixture
def buying(python: Interpreter, lnd: FakeLnd, books: Books) -> Interpreter:
    """The same with a node, a ledger and a trace."""
    python.environ = environ_of_test(
        **lnd.environ, ROUTEWEILER_LEDGER=str(books.ledger_path), ROUTEWEILER_TRACE=str(books.trace_path)
    )
    return python


WAYS = {
    "the verbs": "import requests\nget = requests.get",
    "a session": "import requests\nget = requests.Session().get",
    "a name from it": "from requests import get",
    "a class from it": "from requests import Session\nget = Session().get",
    "its submodule": "import requests.sessions\nget = requests.sessions.Session().get",
    "a name from its submodule": "from requests.api import get",
    "an import in a function": "def get(url):\n    import requests\n    return requests.get(url)",
    "an import in a thread": "import threading\nt = threading.Thread(target=__import__, args=('requests',))\nt.start(); t.join()\n"
    "import requests\nget = requests.get",
    "importlib": "import importlib, importlib.util\nassert importlib.util.find_spec('requests')\n"
    "get = importlib.import_module('requests').get",
    "our own name, first": "import routeweiler_sync, requests\nget = requests.get",
    "our own name, after": "import requests, routeweiler_sync\nget = requests.get",
    "a class of its own": "import requests\nclass Mine(requests.Session): pass\nget = Mine().get",
}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_program_pays_however_it_imports_requests(
    buying: Interpreter, paywall: Paywall, lnd: FakeLnd, books: Books, way: str
) -> None:
    """A program that was to pay gets 402, far from any cause."""
    buying.write("program.py", WAYS[way] + "\nimport sys\nfor url in sys.argv[1:]: print(get(url).status_code)")
    urls = [paywall.url_for("/free"), paywall.url, paywall.url]
    assert buying.run("program.py", *urls, how=()).stdout.split() == [b"200", b"402", b"402"]
    ended = buying.run("program.py", *urls)
    assert (ended.stdout.split(), ended.returncode) == ([b"200", b"200", b"200"], 0)
    assert ended.stderr == b"routeweiler-sync: paid 10 sat for 1 page; 1 came from tokens\n"
    assert len(lnd.payments) == 1
    books.check()


CHILDREN = {
    "fork": """
        import multiprocessing, requests
        def get(_): return requests.get(url).status_code
        def status(): return multiprocessing.get_context("fork").Pool(2).map(get, range(2))
    """,
    "spawn": """
        import multiprocessing, sys
        def get(url):
            import requests
            return requests.get(url).status_code
        def status(): return multiprocessing.get_context("spawn").Pool(2).map(get, [url, url])
    """,
    "forkserver": """
        import multiprocessing, requests
        def get(url): return requests.get(url).status_code
        def status(): return multiprocessing.get_context("forkserver").Pool(2).map(get, [url, url])
    """,
    "python": """
        import subprocess, sys
        child = "import requests, sys; print(requests.get(sys.argv[1]).status_code)"
        def status(): return [int(subprocess.check_output([sys.executable, "-c", child, url])) for _ in range(2)]
    """,
}


@pytest.mark.slow
@pytest.mark.parametrize("how", CHILDREN)
def test_a_program_s_children_pay_and_share_what_is_bought(
    buying: Interpreter, paywall: Paywall, lnd: FakeLnd, books: Books, how: str
) -> None:
    """A program with a pool of workers would be served in one half of it and refused in the other."""
    if how.startswith("fork") and os.name != "posix":
        pytest.skip("there is no fork here")
    end = "\nimport sys\nurl = sys.argv[1]\nif __name__ == '__main__': print(status())"
    buying.write("program.py", textwrap.dedent(CHILDREN[how]) + end)
    ended = buying.run("program.py", paywall.url)
    assert ended.stdout.strip() == b"[200, 200]"
    assert ended.stderr == b"routeweiler-sync: paid 10 sat for 1 page; 1 came from tokens\n"
    assert len(lnd.payments) == 1
    books.check()


@pytest.mark.slow
def test_free_traffic_needs_no_node_and_leaves_nothing(python: Interpreter, paywall: Paywall, books: Books) -> None:
    """Who has set nothing up runs a program as ever."""
    python.environ.update(NO_NODE, ROUTEWEILER_LEDGER=str(books.ledger_path))
    python.write("program.py", "import requests, sys; print(requests.get(sys.argv[1]).text)")
    assert python.same("program.py", paywall.url_for("/free")).stdout.strip() == b"free"
    assert not books.ledger_path.exists()


def test_without_a_node_a_402_stays_one_and_is_explained_once(python: Interpreter, paywall: Paywall) -> None:
    """Who forgot the node sees 402 where a paying program was promised; but a program's stderr isn't ours to fill."""
    python.environ.update(NO_NODE)
    python.write("program.py", "import requests, sys\nfor _ in range(3): print(requests.get(sys.argv[1]).status_code)")
    ended = python.run("program.py", paywall.url)
    assert (ended.stdout.split(), ended.returncode) == ([b"402"] * 3, 0)
    assert ended.stderr.count(b"Warning") == 1


@pytest.mark.slow
def test_what_a_startup_file_has_imported_pays_as_well(buying: Interpreter, paywall: Paywall, lnd: FakeLnd) -> None:
    """Tools that patch certificates import requests as python starts, before anybody could watch."""
    for name in ("requests", "routeweiler_sync"):
        start = (
            "import sys, os, {name}; sys.path.insert(0, os.environ['PYTHONPATH'].split(os.pathsep)[0]); import _routeweiler_paying;"
            "_routeweiler_paying.begin(); import requests; print(requests.get(sys.argv[1]).status_code)"
        )
        buying.write("start.py", start.format(name=name))
        environ = dict(buying.environ)
        buying.environ.update(PYTHONPATH=paying_environ(environ)["PYTHONPATH"])
        assert buying.run("start.py", paywall.url, how=()).stdout.strip() == b"200"
        buying.environ = environ
    assert len(lnd.payments) == 1


@pytest.mark.slow
def test_a_program_s_log_has_our_lines_where_it_wants_them(buying: Interpreter, paywall: Paywall) -> None:
    """The command line is silent, for it tells the money in its own words; a program's log is where such things are looked for."""
    buying.write("program.py", "import logging, requests, sys; logging.basicConfig(level='DEBUG'); requests.get(sys.argv[1])")
    assert b"routeweiler_sync" in buying.run("program.py", paywall.url).stderr


def test_requests_is_not_imported_before_the_program_does(buying: Interpreter, paywall: Paywall) -> None:
    """gevent must patch ssl before it is imported; a program that never fetches anything doesn't wait for it."""
    buying.write("program.py", "import sys; print({'ssl', 'requests', 'typing', 'routeweiler_sync'} & sys.modules.keys())")
    assert buying.run("program.py").stdout.strip() == b"set()"


@pytest.mark.slow
def test_requests_looks_as_it_was_loaded(buying: Interpreter) -> None:
    """importlib.resources and pkgutil ask a module's loader for its files."""
    buying.write(
        "program.py",
        """
        import importlib.resources, pkgutil, requests, sys
        print(type(requests.__loader__).__name__, requests.__spec__.loader is requests.__loader__, requests.__spec__.origin)
        print(importlib.resources.files("requests").joinpath("api.py").is_file(), pkgutil.get_data("requests", "api.py")[:3])
        """,
    )
    assert buying.same("program.py").returncode == 0


def test_a_module_of_the_program_s_own_may_have_the_name(buying: Interpreter) -> None:
    """Many a tutorial's folder has a requests.py."""
    buying.write("requests.py", "x = 5")
    buying.write("program.py", "import requests, sys; print(requests.x, 'routeweiler_sync' in sys.modules)")
    buying.same("program.py")


def test_another_installation_is_left_as_it_is(buying: Interpreter) -> None:
    """A child that runs on another Python has its own requests, or none, and none of what paying needs."""
    buying.write("child.py", "import sys; print(sys.path, [type(f).__name__ for f in sys.meta_path if isinstance(f, object)])")
    buying.write(
        "program.py",
        """
        import os, subprocess, sys
        if "ROUTEWEILER_RUN" in os.environ:
            os.environ["ROUTEWEILER_RUN"] = "3.9 /another"
        sys.exit(subprocess.run([sys.executable, "child.py"]).returncode)
        """,
    )
    assert buying.same("program.py").returncode == 0


def test_what_an_interpreter_starts_with_is_part_of_the_package(tmp_path: Path) -> None:
    """Installed without it, every program would run unpaid."""
    root = Path(routeweiler_sync.__file__).parents[1]
    if not (root / "setup.py").exists():
        pytest.skip("not a checkout")
    build = [sys.executable, "setup.py", "-q", "egg_info", "-e", str(tmp_path), "build_py", "-d", str(tmp_path / "lib")]
    subprocess.run(build, cwd=root, check=True, capture_output=True, timeout=TIMEOUT_S)
    made = tmp_path / "lib/routeweiler_sync/cli/paying"
    assert {file.name for file in made.glob("*.py")} == {"sitecustomize.py", "_routeweiler_paying.py"}


# run: --max-sats

CAPPED = {
    "in turn": """
        import sys, requests
        for number in range(3):
            try:
                print(requests.get(f"{sys.argv[1]}/{number}").status_code)
            except requests.RequestException as error:
                print(type(error).__name__, error)
    """,
    "threads": """
        import sys, requests
        from concurrent.futures import ThreadPoolExecutor
        def get(number):
            try:
                return requests.get(f"{sys.argv[1]}/{number}").status_code
            except requests.RequestException as error:
                return f"{type(error).__name__} {error}"
        with ThreadPoolExecutor(3) as pool:
            print(*pool.map(get, range(3)), sep="\\n")
    """,
    "children": """
        import multiprocessing, sys, requests
        def get(number):
            try:
                return requests.get(f"{sys.argv[1]}/{number}").status_code
            except requests.RequestException as error:
                return f"{type(error).__name__} {error}"
        if __name__ == "__main__":
            with multiprocessing.get_context("spawn").Pool(2) as pool:
                print(*pool.map(get, range(3), 1), sep="\\n")
    """,
    "sessions of its own": """
        import sys
        from routeweiler_sync import Funding, LndClient, Routeweiler
        from routeweiler_sync.errors import RouteweilerError
        for number in range(3):
            funding = [Funding.lightning_lnd(client=LndClient.from_env(), network="bitcoin-regtest")]
            with Routeweiler(funding=funding, budget_envelope=None) as session:
                try:
                    print(session.get(f"{sys.argv[1]}/{number}").status_code)
                except RouteweilerError as error:
                    print(type(error).__name__, error)
    """,
    "another command": """
        import subprocess, sys
        for number in range(3):
            command = [sys.executable, "-m", "routeweiler_sync", "get", "--max-sats", "1000", f"{sys.argv[1]}/{number}"]
            done = subprocess.run(command, capture_output=True, text=True)
            print("200" if done.returncode == 0 else f"BudgetExceededError {done.stderr}")
    """,
    "a run of its own": """
        import subprocess, sys
        program = "import sys, requests; print(requests.get(sys.argv[1]).status_code)"
        open("inner.py", "w").write(program)
        for number in range(3):
            command = [sys.executable, "-m", "routeweiler_sync", "run", "--max-sats", "1000", "inner.py", f"{sys.argv[1]}/{number}"]
            done = subprocess.run(command, capture_output=True, text=True)
            print(done.stdout.strip() or f"BudgetExceededError {done.stderr.splitlines()[-1]}")
    """,
}


@pytest.mark.slow
@pytest.mark.parametrize("how", CAPPED)
def test_max_sats_is_for_the_program_and_all_that_it_starts(
    buying: Interpreter, lnd: FakeLnd, books: Books, tmp_path: Path, how: str
) -> None:
    """A limit that each thread, session or child has for itself is no limit of the command."""
    (tmp_path / "tmp").mkdir()
    buying.environ["TMPDIR"] = str(tmp_path / "tmp")
    with Paywall(lnd, price_msat=10_000, dynamic=True) as wall:
        buying.write("buy.py", CAPPED[how])
        done = buying.run("--max-sats", "25", "buy.py", wall.base_url)
    lines = [line for line in done.stdout.decode().splitlines() if line]
    refused = [line for line in lines if line.startswith("BudgetExceededError")]
    bought = lines.count("200")
    assert len(lines) == len(refused) + bought == 3, (lines, done.stderr)
    assert all("--max-sats 25" in line for line in refused)
    # At the same moment one payment's reservation for routing may leave no room for another.
    assert bought in ((1, 2) if how in ("threads", "children") else (2,)), lines
    assert lnd.spent_msat == bought * 10_000
    assert list((tmp_path / "tmp").glob("routeweiler-run-*")) == []
    books.check()


@pytest.mark.slow
def test_max_sats_whose_sums_are_lost_buys_nothing(buying: Interpreter, lnd: FakeLnd, paywall: Paywall) -> None:
    """A limit that nobody counts any more isn't one."""
    buying.write(
        "buy.py",
        """
        import os, sys, requests
        os.remove(os.environ["ROUTEWEILER_RUN_LIMIT"].split(" ", 2)[2])
        try:
            requests.get(sys.argv[1])
        except requests.RequestException as error:
            print(type(error).__name__, error.spent)
        """,
    )
    done = buying.run("--max-sats", "25", "buy.py", paywall.url)
    assert done.stdout.split() == [b"LedgerError", b"False"], done.stderr
    assert lnd.orders == []


# The bill


@pytest.fixture
def shop(lnd: FakeLnd) -> Iterator[Paywall]:
    """Sells each path by itself."""
    with Paywall(lnd, price_msat=10_000, dynamic=True) as wall:
        yield wall


@pytest.fixture
def temporary(buying: Interpreter, tmp_path: Path) -> Path:
    """The folder for temporary files. A run must leave nothing there."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    buying.environ["TMPDIR"] = str(folder)
    return folder


BUY = "import requests, sys\nfor path in sys.argv[2:]: print(requests.get(sys.argv[1] + path).status_code)\n"
ENDS = {
    "at its end": ("", 0),
    "by sys.exit": ("sys.exit(7)", 7),
    "by an exception": ("1 / 0", 1),
    "by Ctrl-C": ("import os, signal; os.kill(os.getpid(), signal.SIGINT)", -signal.SIGINT),
    "by an exit in a thread pool": (
        "import concurrent.futures as c\nwith c.ThreadPoolExecutor() as p: p.submit(int)\nsys.exit(3)",
        3,
    ),
    "with another program in its place": ("import os; os.execv(sys.executable, [sys.executable, '-c', 'raise SystemExit(4)'])", 4),
    "with stderr of its own": ("import io; sys.stderr = io.StringIO()", 0),
}


@pytest.mark.slow
@posix_only
@pytest.mark.parametrize("how", ENDS)
def test_a_program_s_bill_is_presented_however_it_ends(
    buying: Interpreter, shop: Paywall, lnd: FakeLnd, books: Books, temporary: Path, how: str
) -> None:
    """A program that failed has spent as much; and its exit code is what a shell goes by."""
    end, code = ENDS[how]
    buying.write("buy.py", f"{BUY}sys.stdout.flush()\n{end}")
    lnd.fee_msat = 500
    ended = buying.run("buy.py", shop.base_url, "/1", "/2", "/3", "/1", "/2")
    assert (ended.stdout.split(), ended.returncode) == ([b"200"] * 5, code), ended.stderr
    bill = b"routeweiler-sync: paid 30 sat + 1.500 sat fees for 3 pages; 2 came from tokens"
    assert ended.stderr.splitlines().count(bill) == 1, ended.stderr
    assert list(temporary.iterdir()) == []
    books.check()


@pytest.mark.slow
@posix_only
def test_the_bill_comes_after_all_that_the_program_does_at_its_end(buying: Interpreter, shop: Paywall, temporary: Path) -> None:
    """What is bought in an exit handler is money too."""
    buying.write(
        "buy.py",
        """
        import atexit, sys
        atexit.register(lambda: print(__import__("requests").get(sys.argv[1]).status_code))
        """,
    )
    ended = buying.run("buy.py", shop.base_url + "/1")
    assert (ended.stdout.strip(), ended.stderr) == (b"200", b"routeweiler-sync: paid 10 sat for 1 page\n")
    assert list(temporary.iterdir()) == []


@pytest.mark.slow
def test_without_a_payment_there_is_no_bill_nor_with_quiet(buying: Interpreter, shop: Paywall, temporary: Path) -> None:
    """A program's stderr may be somebody's input."""
    buying.write("buy.py", BUY)
    assert buying.run("-q", "buy.py", shop.base_url, "/1").stderr == b""
    assert buying.run("buy.py", shop.base_url, "/1", "/1", "/free").stderr == b"", "all came from tokens"
    buying.write("exit.py", "import os; os._exit(3)")
    assert (buying.run("exit.py").stderr, list(temporary.iterdir())) == (b"", [])


@pytest.mark.slow
@pytest.mark.parametrize("how", CAPPED)
def test_the_bill_is_of_the_program_and_all_that_it_starts(
    buying: Interpreter, lnd: FakeLnd, shop: Paywall, books: Books, temporary: Path, how: str
) -> None:
    """Children and sessions of its own spend from the same purse."""
    buying.write("buy.py", CAPPED[how])
    ended = buying.run("buy.py", shop.base_url)
    assert ended.stdout.split() == [b"200"] * 3, (ended.stdout, ended.stderr)
    assert ended.stderr.splitlines()[-1] == b"routeweiler-sync: paid 30 sat for 3 pages"
    assert lnd.spent_msat == 30_000
    assert list(temporary.iterdir()) == []
    books.check()


@pytest.mark.slow
def test_a_payment_that_brought_no_page_is_on_the_bill(buying: Interpreter, shop: Paywall, lnd: FakeLnd, temporary: Path) -> None:
    """Paid and not delivered: who isn't told so believes that the page was bought."""
    buying.write("buy.py", BUY)
    shop.cut_next("before")
    ended = buying.run("buy.py", shop.base_url, "/1")
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == (
        b"routeweiler-sync: paid 10 sat; 1 payment of 10 sat brought no page yet: the token is kept, and the next call uses it"
    )
    assert buying.run("buy.py", shop.base_url, "/1").stderr == b"", "it is used now"
    assert len(lnd.payments) == 1


@pytest.mark.slow
@posix_only
def test_an_interrupt_while_paying_is_on_the_bill(
    buying: Interpreter, shop: Paywall, lnd: FakeLnd, books: Books, temporary: Path
) -> None:
    """Ctrl-C doesn't stop a payment: who isn't told so pays again somewhere else."""
    buying.write("buy.py", "import warnings; warnings.simplefilter('ignore')\n" + BUY)
    assert buying.run("buy.py", shop.base_url, "/0").returncode == 0
    lnd.hang_next()
    with buying.started("buy.py", shop.base_url, "/1") as process:
        lnd.wait_for(lambda node: len(node.payments) == 2)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == -signal.SIGINT
    assert err.splitlines()[-1] == (
        b"routeweiler-sync: 1 payment of 10 sat isn't finished, the node may still pay: run the program again, and nothing is paid "
        b"twice; or run routeweiler-sync payments recover"
    )
    assert list(temporary.iterdir()) == []
    lnd.release()
    ended = buying.run("buy.py", shop.base_url, "/1")
    assert ended.stderr == b"routeweiler-sync: paid 10 sat for 1 page\n", "the run that ends it has it on its bill"
    assert len(lnd.payments) == 2
    books.check()


@pytest.mark.slow
def test_a_payment_that_failed_isn_t_on_the_bill(buying: Interpreter, shop: Paywall, lnd: FakeLnd, temporary: Path) -> None:
    """Nothing was spent, and nothing may be."""
    buying.write("buy.py", BUY)
    lnd.fail_next("NO_ROUTE")
    ended = buying.run("buy.py", shop.base_url, "/1")
    assert ended.returncode == 1
    assert b"routeweiler-sync: " not in ended.stderr


@pytest.mark.slow
@posix_only
def test_a_payment_that_takes_long_says_so_on_a_terminal(buying: Interpreter, shop: Paywall, lnd: FakeLnd) -> None:
    """Who sees nothing for a minute takes the program for dead; but a log file has no use for it."""
    buying.write("buy.py", BUY)
    for terminal in (True, False):
        lnd.hang_next()
        before = len(lnd.payments)
        command = [sys.executable, *buying.paying, "buy.py", shop.base_url, f"/{terminal}"]
        with Terminal(command, buying.environ, buying.folder, on=("err",) if terminal else ("out",)) as process:
            if terminal:
                process.wait_for("Still waiting for the payment of 10 sat to http://")
            else:
                lnd.wait_for(lambda node, before=before: len(node.payments) > before)  # type: ignore[misc]
                time.sleep(SLOW_S + 0.5)
            lnd.release()
            assert process.wait() == 0
        assert process.text.count("Still waiting") == terminal
        assert "paid 10 sat for 1 page" in process.text
