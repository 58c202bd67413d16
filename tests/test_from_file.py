"""Functions by their file: the text travels, and this process does not run it."""

from __future__ import annotations

import copy
import inspect
import os
import pickle
import sys
import textwrap
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shmpar
from shmpar.pickling.files import FileFunction
from shmpar.runtime.call_identity import fingerprint
from tests.pools import ENGINES, drop_caches, warm

X = np.arange(12.0)

SOURCE = """
    import os
    import numpy as np
    import beside_a_test
    from dataclasses import dataclass
    from functools import wraps

    class Odd(Exception):
        pass

    @dataclass
    class Found:
        count: int

    def twice(function):
        @wraps(function)
        def inner(*args, **kwargs):
            return 2 * function(*args, **kwargs)
        return inner

    def scale(block, by=3, *, block_id=None):
        return block * by + block_id[0]

    @twice
    def doubled(block, add=0):
        return block + add

    def where():
        return os.getpid(), __name__, __file__, beside_a_test.VALUE

    def late():
        import late_of_a_test
        return late_of_a_test.VALUE

    def fail(value):
        raise Odd(value)

    def find(block):
        return Found(block.size)

    def steps(last, task):
        for number in range(1, last + 1):
            task.update(number, last)

    calls = []
    def remember(value):
        calls.append(value)
        return list(calls)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file of functions, and modules beside it."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "functions of a test.py").write_text(textwrap.dedent(SOURCE))
    (folder / "beside_a_test.py").write_text("VALUE = 5\n")
    (folder / "late_of_a_test.py").write_text("VALUE = 6\n")
    return folder


@pytest.fixture(scope="module")
def path(folder: Path) -> str:
    """A file of functions, whose name is no name of a module."""
    return str(folder / "functions of a test.py")


@pytest.fixture(scope="module", params=ENGINES)
def pool(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A pool of each engine."""
    with warm(request.param) as pool:
        yield pool


def test_verbs_take_functions_of_a_file(pool: Any, path: str) -> None:
    """Also their keywords, and parameters such as `block_id`."""
    scale = shmpar.from_file(path, "scale")
    due = X * 2 + np.repeat(range(3), 4)
    assert pool.map_blocks(scale, X, chunks=4, kwargs={"by": 2}).tolist() == due.tolist()
    assert pool.map_blocks(partial(scale, by=2), X, chunks=4).tolist() == due.tolist()
    doubled = shmpar.from_file(path, "doubled")
    overlap = pool.map_overlap(doubled, X, depth=1, boundary="wrap", chunks=5)
    assert overlap.tolist() == (2 * X).tolist()
    assert pool.apply_along_axis(doubled, 0, X, add=1).tolist() == (2 * X + 2).tolist()
    assert pool.parallel_map(doubled, X, kwargs={"add": 1}).tolist() == (2 * X + 2).tolist()
    assert list(pool.map(doubled, [1, 2])) == [2, 4]
    assert (
        pool.map_blocks(lambda block: doubled(block, 0), X, chunks=5).tolist() == (2 * X).tolist()
    )
    drop_caches(pool)


def test_a_function_runs_in_the_worker(pool: Any, path: str) -> None:
    """Its module has a name and the file, and finds the modules beside the file, late ones too."""
    pid, name, file, value = pool.submit(shmpar.from_file(path, "where")).result()
    assert (pid == os.getpid()) == (pool.engine != "processes")
    assert name.startswith("_shmpar_file_functions_of_a_test_")
    assert (file, value) == (path, 5)
    for _ in range(2):
        assert pool.submit(shmpar.from_file(path, "late")).result() == 6


def test_objects_and_exceptions_of_the_file_come_back(pool: Any, path: str) -> None:
    fail, find = shmpar.from_file(path, "fail"), shmpar.from_file(path, "find")
    with pytest.raises(Exception, match="seven") as caught:
        pool.submit(fail, "seven").result()
    assert type(caught.value).__qualname__ == "Odd"
    with pytest.raises(shmpar.ChunkError, match="Odd") as failed:
        pool.map_blocks(fail, X, chunks=6)
    assert type(failed.value.__cause__) is type(caught.value)
    found = pool.block_reduce(find, X, chunks=5, dtype=object)
    assert [one.count for one in found] == [5, 5, 2]
    pool._last_run = None
    del caught, failed
    drop_caches(pool)


def test_a_function_with_a_task(pool: Any, path: str) -> None:
    future = pool.submit(shmpar.from_file(path, "steps"), 4)
    future.result()
    assert future.progress == (4, 4, "")


def test_a_text_runs_once_in_a_worker(path: str) -> None:
    with shmpar.Pool(1) as pool:
        for number in (1, 2):
            found = pool.submit(shmpar.from_file(path, "remember"), number).result()
        assert found == [1, 2]


def test_the_text_of_the_moment_is_sent(tmp_path: Path) -> None:
    """Later changes have no effect, until the file is read again; the file may be gone."""
    path = tmp_path / "changing.py"
    path.write_text("def value(): return 1\n")
    first = shmpar.from_file(path, "value")
    path.write_text("def value():\n    return 1 // 0  # second\n")
    second = shmpar.from_file(path, "value")
    path.unlink()
    with shmpar.Pool(1) as pool:
        assert pool.submit(first).result() == 1
        with pytest.raises(ZeroDivisionError) as caught:
            pool.submit(second).result()
        assert "# second" in "".join(caught.value.__notes__)
        assert pool.submit(first).result() == 1
        assert pool.parallel_map(shmpar.from_file(__file__, "plus"), [1]) == [2]


def plus(value: int, more: int = 1) -> int:
    """Add a number; a worker runs this file for it."""
    return value + more


def test_this_process_does_not_run_the_file(tmp_path: Path) -> None:
    """The signature is read from the text, and packages that are missing here do not matter."""
    path = tmp_path / "foreign.py"
    path.write_text("import nowhere_to_be_found\ndef f(a, b=2, *, task=None): pass\n")
    function = shmpar.from_file(path, "f")
    assert str(inspect.signature(function)) == "(a, b=2, *, task=None)"
    with pytest.raises(ModuleNotFoundError, match="nowhere_to_be_found"):
        function(1)
    with shmpar.Pool(1) as pool:
        with pytest.raises(shmpar.PlanError, match="nowhere_to_be_found"):
            pool.submit(function, 1).result()
        with pytest.raises(shmpar.PlanError, match="nowhere_to_be_found"):
            pool.map_blocks(function, X)
        with pytest.raises((TypeError, shmpar.PlanError), match="f"):
            pool.map_blocks(function, X, kwargs={"c": 1})
        pool._last_run = None


SIGNATURES = [
    "()", "(a)", "(a, /, b, *, c)", "(a, b=1, *args, c='x', d, **kwargs)", "(*, a=None)",
    "(a, b=(1, 2), /, c={'k': [1.5]})", "(a=-1, *, b=True)", "(**kwargs)", "(*args)",
]  # fmt: skip


@pytest.mark.parametrize("signature", SIGNATURES)
def test_the_signature_is_that_of_the_function(tmp_path: Path, signature: str) -> None:
    path = tmp_path / "file.py"
    path.write_text(f"async def other(): pass\n\ndef f{signature}:\n    return 1\n")
    function = shmpar.from_file(path, "f")
    namespace: dict[str, Any] = {}
    exec(path.read_text(), namespace)  # noqa: S102 (ours)
    assert inspect.signature(function) == inspect.signature(namespace["f"])


def test_a_default_that_is_no_literal_is_an_ellipsis(tmp_path: Path) -> None:
    path = tmp_path / "file.py"
    path.write_text("import os\ndef f(a: int = os.sep, b: str = 'x') -> None: pass\n")
    assert str(inspect.signature(shmpar.from_file(path, "f"))) == "(a=Ellipsis, b='x')"


def test_functions_in_branches_are_found(tmp_path: Path) -> None:
    path = tmp_path / "file.py"
    path.write_text(
        "try:\n    import nothing_here\n    def f(a): return 1\n"
        "except ImportError:\n    def f(a, b): return 2\n"
        "if False:\n    def g(): return 3\n"
    )
    assert shmpar.from_file(path, "f")(1, 2) == 2
    with pytest.raises(ImportError, match=r"has no 'g' after it was run"):
        shmpar.from_file(path, "g")()


NEWER = """
type Row = list[int]

def f(a, *,
      b=2):
    match a:
        case 1: yield from x if y
    return b
"""


def test_a_file_for_a_newer_python(tmp_path: Path) -> None:
    """The header of the function is enough here; the error of the text comes from the worker."""
    path = tmp_path / "newer.py"
    path.write_text(NEWER)
    function = shmpar.from_file(path, "f")
    assert str(inspect.signature(function)) == "(a, *, b=2)"
    with shmpar.Pool(1) as pool, pytest.raises(shmpar.PlanError, match="SyntaxError"):
        pool.submit(function, 1).result()
    with pytest.raises(SyntaxError):
        shmpar.from_file(path, "g")


def test_files_and_names_that_are_wrong(tmp_path: Path) -> None:
    """The error names the file, and the functions that it has."""
    path = tmp_path / "wrong.py"
    path.write_text(
        "def one(): pass\ndef two(): pass\nclass C:\n    def m(): pass\nasync def a(): 1\n"
    )
    with pytest.raises(ValueError, match=r"wrong\.py' defines no function 'three'.*one, two, a"):
        shmpar.from_file(path, "three")
    with pytest.raises(ValueError, match="defines no function 'm'"):
        shmpar.from_file(path, "m")
    with pytest.raises(ValueError, match=r"a of .*wrong\.py' is a coroutine function"):
        shmpar.from_file(path, "a")
    with pytest.raises(TypeError, match="the name of a function is a str, not 3"):
        shmpar.from_file(path, 3)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError):
        shmpar.from_file(tmp_path / "missing.py", "one")
    with pytest.raises(IsADirectoryError):
        shmpar.from_file(tmp_path, "one")
    path.write_text("")
    with pytest.raises(ValueError, match="it defines no function"):
        shmpar.from_file(path, "one")
    path.write_text("def f(:\n")
    with pytest.raises(SyntaxError):
        shmpar.from_file(path, "f")


def test_the_encoding_of_the_file_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So does the working directory of the moment, for a relative path."""
    (tmp_path / "latin.py").write_bytes(
        "# coding: latin-1\ndef f(): return 'ä'\n".encode("latin-1")
    )
    monkeypatch.chdir(tmp_path)
    function = shmpar.from_file("latin.py", "f")
    monkeypatch.chdir("/")
    assert function() == "ä"
    assert function.path == str(tmp_path / "latin.py")


def test_a_function_is_a_value(path: str) -> None:
    """Equal functions are equal; a copy and a pickle are the function."""
    one, two = shmpar.from_file(path, "find"), shmpar.from_file(path, "find")
    assert one == two
    assert hash(one) == hash(two)
    assert one != shmpar.from_file(path, "fail")
    assert copy.deepcopy(one) is one
    assert repr(one) == "<function find of functions of a test.py>"
    assert isinstance(one, FileFunction)
    assert one.__name__ == "find"
    loaded = pickle.loads(pickle.dumps(one))
    assert loaded is pickle.loads(pickle.dumps(two))
    assert loaded(X).count == 12


def test_an_initializer_of_a_file(path: str) -> None:
    remember = shmpar.from_file(path, "remember")
    with shmpar.Pool(1, initializer=remember, initargs=("first",)) as pool:
        assert pool.submit(remember, "second").result() == ["first", "second"]


def test_a_ledger_knows_the_function_by_its_text(tmp_path: Path) -> None:
    """The file may be read again; another text is another call."""
    path, found = tmp_path / "f.py", []
    for text in ("def f(b): return b + 1\n", "def f(b): return b + 1\n", "def f(b): return b\n"):
        path.write_text(text)
        found.append(fingerprint(shmpar.from_file(path, "f")))
    assert found[0] == found[1] != found[2]


def teardown_module() -> None:
    """Forget the modules of the files."""
    for name in [one for one in sys.modules if one.startswith("_shmpar_file_")]:
        del sys.modules[name]
