"""Definitions that workers cannot import are sent by value, or an error says the reason."""

from __future__ import annotations

import textwrap
import zipfile
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

Run = Callable[..., CompletedProcess[str]]

DEFINITIONS = """
import contextlib, functools, threading

K = 3
LOCK = threading.Lock()

@functools.lru_cache(maxsize=9)
def count(n):
    return n if n < 2 else count(n - 1) + count(n - 2)

@functools.cache
def times(n):
    return n * K

twice = functools.cache(functools.partial(pow, 2))

@contextlib.contextmanager
def opened(n):
    yield n + K

@functools.singledispatch
def flat(item):
    return [item]

@flat.register(list)
def flat_list(items):
    return [one for item in items for one in flat(item)]

@flat.register
def flat_tuple(items: tuple):
    return flat(list(items))

class Point:
    seen = []

    def __init__(self, x):
        self.x = x

    @functools.cached_property
    def ten(self):
        return self.x * 10

    @functools.lru_cache
    def plus(self, n):
        return self.x + n

    @functools.singledispatchmethod
    def kind(self, item):
        return "any"

    @kind.register
    def kind_of_int(self, item: int):
        return "int"

    @staticmethod
    @functools.cache
    def fixed(n):
        return n + K

class Guarded:
    lock = threading.Lock()

    def go(self, n):
        return n

def use(n):
    point = Point(n)
    kinds = point.kind(n), point.kind("text")
    with opened(n) as more:
        kinds = *kinds, more
    return times(n), flat([n, (n, [n])]), point.ten, point.plus(1), kinds, Point.fixed(n)

def locked(n):
    with LOCK:
        return n

def guarded(n):
    return Guarded().go(n)
"""

CALLS = """
    function = lambda n: space.use(n)
    filled = space.Point(7)
    filled.ten
    with shmpar.Pool(1) as pool:
        plus = space.Point(5).plus
        for call in (space.use, space.count, space.times, space.twice, space.flat, plus):
            due = [call(n) for n in range(3)]
            assert [pool.submit(call, n).result() for n in range(3)] == due, call
            assert pool.parallel_map(call, range(3), dtype=object).tolist() == due, call
        assert pool.submit(lambda point: point.ten, filled).result() == 70
        limits = pool.submit(lambda one=space.count: one.cache_parameters()).result()
        assert limits == {"maxsize": 9, "typed": False}
        assert pool.submit(lambda: (space_count, flat)[0](20)).result() == 6765
        for call, name in ((space.locked, "'LOCK'"), (space.guarded, "'lock'")):
            for send in (pool.submit, pool.parallel_map):
                try:
                    send(call, [1, 2])
                except shmpar.PlanError as error:
                    assert name in str(error) and "_thread.lock" in str(error), error
                else:
                    print("sent", name)
    print("right")
"""

SCRIPT = "exec(SOURCE, globals()); import __main__ as space"
WAYS = {
    "spec": """
        spec = importlib.util.spec_from_file_location("found", PATH)
        space = importlib.util.module_from_spec(spec)
        sys.modules["found"] = space
        spec.loader.exec_module(space)
    """,
    "spec of a hidden package": """
        sys.modules["above"] = types.ModuleType("above")
        spec = importlib.util.spec_from_file_location("above.found", PATH)
        space = importlib.util.module_from_spec(spec)
        sys.modules["above.found"] = space
        spec.loader.exec_module(space)
    """,
    "spec under the name of another module": """
        open("taken.py", "w").write("use = times = flat = count = None")
        spec = importlib.util.spec_from_file_location("taken", PATH)
        space = importlib.util.module_from_spec(spec)
        sys.modules["taken"] = space
        spec.loader.exec_module(space)
    """,
    "spec without a name": """
        spec = importlib.util.spec_from_file_location("found", PATH)
        space = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(space)
    """,
    "made module": """
        space = types.ModuleType("made")
        sys.modules["made"] = space
        exec(SOURCE, vars(space))
    """,
    "run path": "space = types.SimpleNamespace(**runpy.run_path(PATH))",
    "run path under a name": """
        space = types.SimpleNamespace(**runpy.run_path(PATH, run_name="ran"))
    """,
}


@pytest.mark.parametrize("ways", [{"script": SCRIPT}, WAYS], ids=["script", "modules"])
def test_definitions_are_sent(run_python: Run, tmp_path: Path, ways: dict[str, str]) -> None:
    """Caches, dispatchers and classes work in workers; a lock is refused under its name."""
    path = tmp_path / "hidden" / "code.py"
    path.parent.mkdir()
    path.write_text(DEFINITIONS)
    script = tmp_path / "script.py"
    script.write_text(
        "import importlib.util, runpy, sys, types, shmpar\n"
        f"PATH = {str(path)!r}\nSOURCE = open(PATH).read()\n"
    )
    with script.open("a") as file:
        for name, way in ways.items():
            file.write(
                f"print({name!r}, end=' ')\n{textwrap.dedent(way)}\n"
                "space_count, flat = space.count, space.flat\n" + textwrap.dedent(CALLS)
            )
            file.write('for name in ("found", "above.found"): sys.modules.pop(name, None)\n')
    done = run_python(script, cwd=tmp_path)
    due = "".join(f"{name} right\n" for name in ways)
    assert (done.stdout, done.stderr, done.returncode) == (due, "", 0)


def test_modules_of_pytest_s_importlib_mode(run_python: Run, tmp_path: Path) -> None:
    """Test modules that no worker can import are sent by value."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "test_inner.py").write_text(
        textwrap.dedent(
            """
            import functools
            import shmpar

            K = 3

            @functools.cache
            def times(n):
                assert n >= 0
                return n * K

            class Point:
                def __init__(self, x):
                    self.x = times(x)

            def use(n):
                return Point(n)

            def test_it(monkeypatch):
                with shmpar.Pool(2) as pool:
                    assert pool.parallel_map(times, range(3)) == [0, 3, 6]
                    (point,) = pool.map(use, [2])
                    assert type(point) is Point and point.x == 6
                    monkeypatch.setattr(f"{__name__}.K", 5)
                    times.cache_clear()
                    assert pool.submit(lambda: times(2)).result() == 10
            """
        )
    )
    arguments = ["-q", "-p", "no:cacheprovider", "--import-mode=importlib", "folder"]
    source = f"import pytest, sys; sys.path.remove(''); sys.exit(pytest.main({arguments}))"
    done = run_python(source, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


def test_modules_in_an_archive_are_imported(run_python: Run, tmp_path: Path) -> None:
    """Workers import from the archive, as the parent does, and see changes."""
    with zipfile.ZipFile(tmp_path / "code.zip", "w") as archive:
        archive.writestr("zipped.py", "K = 2\ndef double(n): return K * n\nLOCK = print\n")
    source = """
        import sys, shmpar
        sys.path.insert(0, "code.zip")
        import zipped
        with shmpar.Pool(1) as pool:
            print(pool.submit(zipped.double, 4).result())
            zipped.K = 3
            print(pool.submit(zipped.double, 4).result())
    """
    done = run_python(source, cwd=tmp_path)
    assert (done.stdout, done.stderr, done.returncode) == ("8\n12\n", "", 0)


def test_a_name_that_a_worker_does_not_find_is_an_error(run_python: Run) -> None:
    """Verbs and submit raise one error, which names the attribute and the remedy."""
    source = """
        import shmpar

        class Holder:
            def __reduce__(self):
                import importlib
                return importlib.import_module, ("no_such_module",)

        with shmpar.Pool(1) as pool:
            held = Holder()
            for call in (
                lambda: pool.submit(lambda: held).result(),
                lambda: pool.submit(id, held).result(),
                lambda: pool.parallel_map(lambda n: held, range(2)),
                lambda: list(pool.map(id, [held])),
            ):
                try:
                    call()
                except shmpar.PlanError as error:
                    print("no_such_module" in str(error), "register_pickle_by_value" in str(error))
    """
    done = run_python(source)
    assert (done.stdout, done.stderr) == ("True True\n" * 4, "")
