"""Workers use the modules of the user as the parent has them: reloaded, patched, changed."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

Run = Callable[..., CompletedProcess[str]]

HELPER = """
import math
from contextlib import contextmanager
from math import floor
import numpy as np
import inner
from inner import doubled, LEVEL

K = 1
ZERO = 0.0
NAME: str = "plain"
CONFIG = {"k": 1, "deep": [1, 2]}
TABLE = np.arange(3.0)
COMPUTED = int("7")
LATER = None

def configure(value):
    global LATER
    LATER = value

def part(x):
    return x + K

def wrap(function):
    def wrapped(x):
        return function(x) + K
    return wrapped

@wrap
def decorated(x):
    return x * 100

@contextmanager
def opened(x):
    yield x + K

def within(x):
    with opened(x) as value:
        return value

class Point:
    scale = 10

    def __init__(self, x):
        self.x = x

    def scaled(self):
        return self.x * self.scale + K

    @staticmethod
    def fixed():
        return K

def use(x):
    return (
        part(x), K, str(ZERO), NAME, repr(CONFIG), TABLE.tolist(), COMPUTED, LATER, floor(2.5),
        Point(x).scaled(), Point.fixed(), decorated(x), doubled(x), inner.LEVEL, LEVEL,
        inner.nested(x), math.sqrt(4), default(), within(x),
    )

def default(value=K):
    return value
"""

INNER = """
LEVEL = 5
def doubled(x):
    return 2 * x + LEVEL
def nested(x):
    return deepest(x)
def deepest(x):
    return x - LEVEL
"""

PROGRAM = """
import functools, importlib, os, sys, time
import numpy as np, shmpar
EARLY = sys.argv[1] == "early"

def results(pool, ways, case):
    found = {}
    for way, make in ways.items():
        function = make()
        # Why text: True is equal to 1, and 0.0 to -0.0.
        found[way] = repr([pool.submit(function, x).result() for x in range(2)])
        rows = repr(pool.parallel_map(function, range(2), dtype=object).tolist())
        due = repr([function(x) for x in range(2)])
        if not found[way] == rows == due:
            print(case, pool.engine, way, found[way], rows, due, sep="\\n   ")
    return found

def rewrite(name, old, new):
    source = open(name + ".py").read()
    assert old in source
    with open(name + ".py", "w") as file:
        file.write(source.replace(old, new))
    os.utime(name + ".py", ns=(1, 1))

# Why not all: nothing is pickled on either engine of this process.
here = "threads" if EARLY else "serial"
pools = [shmpar.Pool(2, engine=engine) for engine in ("processes", here)]
try:
    CASES
finally:
    for pool in pools:
        pool.shutdown()
print("as the parent")
"""

# Why modules of its own: the pools are those of all cases, and a worker imports a module once.
CASE = """
import helper, inner
from helper import use

def within(x):
    import helper as mine
    from inner import deepest
    return mine.use(x), deepest(x)

def direct(x):
    return helper.K, helper.part(x), helper.Point(x).scaled(), helper.inner.LEVEL

point = helper.Point(4)
WAYS = {
    "by name": lambda: helper.use,
    "imported name": lambda: use,
    "lambda": lambda: lambda x: helper.use(x),
    "attributes": lambda: direct,
    "import inside": lambda: within,
    "partial": lambda: functools.partial(helper.use),
    "method": lambda: lambda x: point.scaled() + x,
    "bound method": lambda: lambda x, m=point.scaled: m() + x,
    "class": lambda: lambda x, made=helper.Point: made(x).scaled(),
}

if EARLY:
    before = [results(pool, WAYS, NAME) for pool in pools]
CHANGE
for _ in range(2):
    after = [results(pool, WAYS, NAME) for pool in pools]
    assert after[0] == after[1], NAME
if EARLY:
    assert after != before, NAME
UNDO
for pool in pools:
    results(pool, WAYS, NAME)
"""

CHANGES = {
    "number": ("helper.K = 100", "helper.K = 1"),
    "negative zero": ("helper.ZERO = -0.0", "helper.ZERO = 0.0"),
    "true": ("helper.K = True", "helper.K = 1"),
    "text": ("helper.NAME = 'other'", "helper.NAME = 'plain'"),
    "item of a dict": ("helper.CONFIG['k'] = 2", "helper.CONFIG['k'] = 1"),
    "item of a list": ("helper.CONFIG['deep'].append(3)", "helper.CONFIG['deep'].pop()"),
    "level below": ("inner.LEVEL = 50", "inner.LEVEL = 5"),
    "imported number": ("helper.LEVEL = 50", "helper.LEVEL = 5"),
    "own function": ("helper.configure([3])", "helper.configure(None)"),
    "function": ("helper.part = lambda x: -x", "del helper.part; importlib.reload(helper)"),
    "function below": ("inner.deepest = lambda x: -x", "importlib.reload(inner)"),
    "imported function": ("helper.floor = lambda x: 'floored'", "importlib.reload(helper)"),
    "function of another module": ("helper.doubled = inner.nested", "importlib.reload(helper)"),
    "method": (
        "old = helper.Point.scaled; helper.Point.scaled = lambda self: -self.x",
        "helper.Point.scaled = old",
    ),
    "class attribute": ("helper.Point.scale = 11", "helper.Point.scale = 10"),
    "class": (
        "class Point(helper.Point): scale = 12\nold, helper.Point = helper.Point, Point",
        "helper.Point = old",
    ),
    "default": ("helper.default.__defaults__ = (9,)", "helper.default.__defaults__ = (1,)"),
    "new method": (
        "helper.Point.more = 11; helper.default = lambda: helper.Point.more",
        "helper.Point.more = 2",
    ),
    "new name": (
        "helper.extra = 4; helper.part = lambda x: x + helper.extra",
        "helper.extra = 5",
    ),
    "reload after an edit": (
        "rewrite('helper', 'x + K', 'x - K'); importlib.reload(helper)",
        "rewrite('helper', 'x - K', 'x + K'); importlib.reload(helper)",
    ),
    "reload of a constant": (
        "rewrite('helper', 'K = 1\\n', 'K = 2\\n'); importlib.reload(helper)",
        "rewrite('helper', 'K = 2\\n', 'K = 1\\n'); importlib.reload(helper)",
    ),
    "reload of a decorator": (
        "rewrite('helper', 'function(x) + K', 'function(x) - K'); importlib.reload(helper)",
        "importlib.reload(helper)",
    ),
    "reload of a decorator of Python": (
        "rewrite('helper', 'yield x + K', 'yield x - K'); importlib.reload(helper)",
        "importlib.reload(helper)",
    ),
    "reload below": (
        "rewrite('inner', '2 * x', '3 * x'); importlib.reload(inner); helper.doubled=inner.doubled",
        "helper.K = 6",
    ),
    "old value of a computed name": ("helper.COMPUTED = 8", "helper.COMPUTED = 7"),
    "array": ("helper.TABLE = np.ones(2)", "helper.TABLE = np.arange(3.0)"),
    "large array": ("helper.TABLE = np.ones(20_000)", "helper.TABLE = np.arange(3.0)"),
}
# Why: a worker computes these by itself when it imports the module.
ONLY_EARLY = {"default", "old value of a computed name", "array", "large array"}


def of_case(text: str, number: int) -> str:
    """Return a text with the names of the modules of one case."""
    return re.sub(r"\b(helper|inner)\b", rf"\g<1>{number}", text)


@pytest.mark.parametrize(
    ("when", "part"),
    [
        ("early", 0),
        ("late", 1),
        pytest.param("early", 1, marks=pytest.mark.stress),
        pytest.param("late", 0, marks=pytest.mark.stress),
    ],
)
def test_workers_use_what_the_parent_uses(
    run_python: Run, tmp_path: Path, when: str, part: int
) -> None:
    """A change is seen, before the first call and after it, and so is its end."""
    names = [name for name in CHANGES if when == "early" or name not in ONLY_EARLY]
    cases = ""
    for number, name in enumerate(names[part::2]):
        (tmp_path / f"helper{number}.py").write_text(of_case(HELPER, number))
        (tmp_path / f"inner{number}.py").write_text(of_case(INNER, number))
        change, undo = CHANGES[name]
        text = CASE.replace("NAME", repr(name)).replace("CHANGE", change).replace("UNDO", undo)
        cases += of_case(text, number)
    script = tmp_path / "script.py"
    script.write_text(PROGRAM.replace("CASES", textwrap.indent(cases, "    ")))
    done = run_python(script, when, cwd=tmp_path, timeout=120)
    assert (done.stdout, done.stderr, done.returncode) == ("as the parent\n", "", 0)


def test_packages_that_import_each_other(run_python: Run, tmp_path: Path) -> None:
    """Circles of modules end, and a change anywhere in them is seen; folders may be packages."""
    for folder in ("whole", "space"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "one.py").write_text(
            f"import {folder}.two as two\nK = 1\n"
            "def use(x):\n    from . import three\n    return two.call(x), three.K, two.one.K\n"
        )
        (tmp_path / folder / "two.py").write_text(
            f"from {folder} import one\ndef call(x): return one.K + x\n"
        )
        (tmp_path / folder / "three.py").write_text("K = 3\n")
    (tmp_path / "whole" / "__init__.py").write_text("")
    source = """
        import whole.one, whole.two, whole.three, space.one, space.two, space.three, shmpar
        with shmpar.Pool(2) as pool:
            for package in (whole, space):
                look = lambda x: (package.one.use(x), package.two.one.two.one.K, package.three.K)
                for change in (
                    lambda: None,
                    lambda: setattr(package.one, "K", 5),
                    lambda: setattr(package.three, "K", 6),
                    lambda: setattr(package.two, "call", lambda x: -x),
                ):
                    change()
                    for function in (look, package.one.use):
                        assert pool.submit(function, 2).result() == function(2)
                        found = pool.parallel_map(function, [2], dtype=object)
                        assert found.tolist() == [function(2)]
        print("right")
    """
    done = run_python(source, cwd=tmp_path)
    assert (done.stdout, done.stderr, done.returncode) == ("right\n", "", 0)


def test_a_reload_of_an_unchanged_module_and_state_of_workers(
    run_python: Run, tmp_path: Path
) -> None:
    """A worker keeps what its functions have stored, unless the parent changes it.

    That holds for a file that was edited, and for a module that no worker can import.
    """
    (tmp_path / "helper.py").write_text(
        "import os\nmodel = None\nlimit = 1\n"
        "def use(x):\n    global model\n"
        "    if model is None:\n        model = object(), os.getpid()\n"
        "    return id(model), limit\n"
        "def load():\n    global model\n    model = 'loaded'\n"
        "def look(x):\n    return model, limit\n"
    )
    source = """
        import importlib.util, sys, helper, shmpar
        with shmpar.Pool(1) as pool:
            (first, one), (second, other) = (pool.submit(helper.use, 0).result() for _ in range(2))
            assert first == second and one == other == 1
            helper.limit = 2
            assert pool.submit(helper.use, 0).result() == (first, 2)
        helper.limit = 1
        with shmpar.Pool(1, initializer=helper.load) as pool:
            assert pool.submit(helper.look, 0).result() == ("loaded", 1)
            helper.limit = 3
            assert pool.submit(helper.look, 0).result() == ("loaded", 3)
            with open("helper.py", "a") as file:
                file.write("# edited")
            assert pool.submit(helper.look, 0).result() == ("loaded", 3)
            importlib.reload(helper)
            assert pool.submit(helper.look, 0).result() == ("loaded", 1)
            helper.model = "the parent's"
            assert pool.submit(helper.look, 0).result() == ("the parent's", 1)
        spec = importlib.util.spec_from_file_location("hidden", "helper.py")
        hidden = sys.modules["hidden"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(hidden)
        with shmpar.Pool(1, initializer=hidden.load) as pool:
            assert pool.submit(hidden.look, 0).result() == ("loaded", 1)
            hidden.model = "the parent's"
            assert pool.submit(hidden.look, 0).result() == ("the parent's", 1)
        print("right")
    """
    done = run_python(source, cwd=tmp_path)
    assert (done.stdout, done.stderr, done.returncode) == ("right\n", "", 0)


def test_a_pickle_looks_at_each_definition_once(run_python: Run, tmp_path: Path) -> None:
    """A package of many modules that reach each other takes one walk, and the next call none."""
    count = 40
    (tmp_path / "large").mkdir()
    modules = [f"m{number}" for number in range(count)]
    (tmp_path / "large" / "__init__.py").write_text(f"from . import {', '.join(modules)}\n")
    reach = ", ".join(f"large.{module}.One" for module in modules)
    for module in modules:
        (tmp_path / "large" / f"{module}.py").write_text(
            f"import large\nK = 1\nclass One:\n    def go(self, x): return x + K, {reach}\n"
        )
    source = f"""
        import large, shmpar
        from shmpar.pickling import changes
        looks, look = [], changes.Walk._look
        changes.Walk._look = lambda *found: looks.append(1) or look(*found)
        ones = [getattr(large, f"m{{number}}").One() for number in range({count})]
        with shmpar.Pool(2) as pool:
            def call():
                looks.clear()
                found = pool.submit(lambda x: [one.go(x)[0] for one in ones], 2).result()
                return set(found), len(looks)
            found, number = call()
            assert found == {{3}} and {count} < number < 6 * {count} ** 2, number
            assert call() == ({{3}}, 0)
            large.m7.K = 10
            assert call()[0] == {{3, 12}}
            large.m7.K = 1
            assert call()[0] == {{3}}
        print("right")
    """
    done = run_python(source, cwd=tmp_path)
    assert (done.stdout, done.stderr, done.returncode) == ("right\n", "", 0)


def test_a_folder_into_which_packages_were_installed(run_python: Run, tmp_path: Path) -> None:
    """Its packages are not the user's: workers import them, and no file is read at a call."""
    for name in ("installed", "owned"):
        folder = tmp_path / f"of_{name}" / name
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text("K = 1\ndef use(x):\n    return x + K\n")
    (tmp_path / "of_installed" / "installed-1.0.dist-info").mkdir()
    (tmp_path / "of_installed" / "single.py").write_text("K = 1\ndef use(x):\n    return x + K\n")
    source = f"""
        import sys
        sys.path += [r"{tmp_path}/of_installed", r"{tmp_path}/of_owned"]
        import installed, owned, shmpar, single
        with shmpar.Pool(2) as pool:
            for module, due in ((installed, 3), (single, 3), (owned, 102)):
                assert pool.submit(module.use, 2).result() == 3
                module.K = 100
                assert pool.submit(module.use, 2).result() == due, module
        print("right")
    """
    done = run_python(source, cwd=tmp_path)
    assert (done.stdout, done.stderr, done.returncode) == ("right\n", "", 0)


HOLDERS = """
import collections, functools, xmlrpc.client

K = 1
class Endless:
    def __getattr__(self, name):
        return Endless()
class Broken:
    def __getattr__(self, name):
        raise KeyError(name)
class Unbound:
    @property
    def __class__(self):
        raise RuntimeError("it is not bound")
class Decorator:
    def __init__(self, function):
        self.function = function
    def __call__(self, x):
        return self.function(x)
class Made(type):
    def make(cls, x):
        return x + K

server, others = xmlrpc.client.ServerProxy("http://localhost:1"), [Endless(), Broken(), Unbound()]
def add(x):
    return x + K
TABLE = {"add": [add]}
ORDERED = collections.OrderedDict(add=functools.partial(add))
@Decorator
def decorated(x):
    return x + K
@functools.singledispatch
def dispatched(x):
    return None
@dispatched.register
def _(x: int):
    return x + K
class One(metaclass=Made):
    pass

def by_name(x):
    return TABLE["add"][0](x), server is None, len(others)
def by_order(x):
    return ORDERED["add"](x)
def by_default(x, function=add):
    return function(x)
def by_keyword(x, *, function=add):
    return function(x)
def by_attribute(x):
    return by_attribute.function(x)
by_attribute.function = add
def by_decorator(x):
    return decorated(x)
def by_type(x):
    return dispatched(x)
def by_metaclass(x):
    return One.make(x)
def by_its_name(x):
    return add(x), __name__
"""


def test_what_objects_hold(run_python: Run, tmp_path: Path) -> None:
    """Containers, defaults, decorators and attributes are followed, and no code of them is run."""
    (tmp_path / "holders.py").write_text(HOLDERS)
    names = re.findall(r"def (by_\w+)", HOLDERS)
    source = f"""
        import holders, shmpar, sys
        with shmpar.Pool(1) as pool:
            for name in {names}:
                function = getattr(holders, name)
                for holders.K in (1, 5):
                    assert pool.submit(function, 1).result() == function(1), name
                del sys.modules["holders"]
                import holders
    """
    done = run_python(source, cwd=tmp_path)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


def test_a_module_that_is_imported_again(run_python: Run, tmp_path: Path) -> None:
    """Workers use the new module, and not the one that they have imported before."""
    source = """
        import shmpar, sys
        def write(text):
            with open("again.py", "w") as file:
                file.write(text)
        write("K = 1\\ndef use(x): return x + K")
        import again
        with shmpar.Pool(1) as pool:
            def check(due):
                assert pool.submit(again.use, 3).result() == due
            check(4)
            again.K = 5
            check(8)
            del sys.modules["again"]
            import again
            check(4)
            del sys.modules["again"]
            write("K = 1\\ndef use(x): return x - K  # edited")
            import again
            check(2)
    """
    done = run_python(source, cwd=tmp_path)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


def test_globals_that_are_gone_keep_no_memory(run_python: Run, tmp_path: Path) -> None:
    """An object that a module has replaced is released, also if no call follows."""
    (tmp_path / "helper.py").write_text(
        "import numpy as np\nTABLE = np.ones(3)\nTABLES = [np.zeros(3_000_000)]\n"
        "def use(x): return x + TABLE[0] + TABLES[0][0]\n"
    )
    source = """
        import gc, helper, numpy, shmpar, tracemalloc, weakref
        with shmpar.Pool(1) as pool:
            tracemalloc.start()
            for _ in range(2):
                assert pool.submit(helper.use, 1).result() == 2
            assert tracemalloc.get_traced_memory()[1] < helper.TABLES[0].nbytes / 4
            known = weakref.ref(helper.TABLE)
            helper.TABLE = None
            gc.collect()
            assert known() is None
            helper.TABLE = [5]
            assert pool.submit(helper.use, 1).result() == 6
            helper.TABLES[0] = numpy.full(100_000, 3)
            assert pool.submit(helper.use, 1).result() == 9
            helper.TABLES[0] = numpy.full(1000, 4)
            assert pool.submit(helper.use, 1).result() == 10
    """
    done = run_python(source, cwd=tmp_path)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


def test_a_module_with_the_name_of_one_of_python(run_python: Run, tmp_path: Path) -> None:
    """It is the user's, so its changes are seen."""
    (tmp_path / "statistics.py").write_text("K = 1\ndef mean(x): return x + K\n")
    source = """
        import shmpar, statistics
        with shmpar.Pool(1) as pool:
            for statistics.K in (1, 5):
                assert pool.submit(statistics.mean, 1).result() == 1 + statistics.K
    """
    done = run_python(source, cwd=tmp_path)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


SEARCHED = """
from searched_origin import *

class Thing:
    def __init__(self, **values):
        for name, value in values.items():
            setattr(self, name, value)

for number in range(3):
    globals()[f"MADE{number}"] = number
exec("def executed(): return 1")
KNOWN = 1

def shadowed(x):
    return max(x, 2)
def added(x):
    return x + ADDED
def taken(x):
    return x + ORIGIN + origin()
def made(x):
    return x + MADE1 + executed()
def first(x):
    return x + KNOWN
def second(x):
    return x + KNOWN
"""

AFTER_CHANGES = """
import importlib, sys
import searched, searched_origin, shmpar

def check(function):
    due = function(1)
    for pool in pools:
        assert [pool.submit(function, 1).result(), *pool.parallel_map(function, [1])] == [due] * 2

functions = [searched.shadowed, searched.taken, searched.made, searched.first, searched.second]
pools = [shmpar.Pool(1, engine=engine) for engine in ("processes", "threads", "serial")]
try:
    for function in functions if sys.argv[1] == "early" else ():
        check(function)
    searched.max = lambda *_: 77
    check(searched.shadowed)
    del searched.max
    check(searched.shadowed)
    for searched.ADDED in (5, 6):
        check(searched.added)
    searched.MADE1, searched.executed = 8, lambda: 9
    check(searched.made)
    searched_origin.ORIGIN = 20
    check(searched.taken)
    importlib.reload(searched)
    check(searched.taken)
    check(searched.made)
    searched.KNOWN = 5
    check(searched.first)
    searched.KNOWN = 1
    check(searched.second)
finally:
    for pool in pools:
        pool.shutdown()
"""


@pytest.mark.parametrize("when", ["early", "late"])
def test_names_that_the_source_does_not_show(run_python: Run, tmp_path: Path, when: str) -> None:
    """A module may bind names by itself; others are noticed, and the return to an old value."""
    (tmp_path / "searched.py").write_text(SEARCHED)
    origin = "import threading\nORIGIN, lock = 10, threading.Lock()\ndef origin(): return ORIGIN\n"
    (tmp_path / "searched_origin.py").write_text(origin)
    script = tmp_path / "script.py"
    script.write_text(AFTER_CHANGES)
    done = run_python(script, when, cwd=tmp_path)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


KEEPERS = """
import enum, threading
from collections import OrderedDict
from types import SimpleNamespace
from typing import NamedTuple
import numpy as np

class Color(enum.Enum):
    RED = 1
    BLUE = 2
    ROT = 1
    def text(self):
        return self.name
class Pair(NamedTuple):
    left: int
    def text(self):
        return self.left
class Base:
    def __init_subclass__(cls):
        cls.name = cls.__name__
class Locked(Base):
    lock = threading.Lock()
class Added:
    lock = threading.Lock()
Added.name = "added"
RED, PAIR = Color.RED, Pair(1)

def of_made_classes(x):
    found = RED is Color.RED, Color(1) is RED, isinstance(PAIR, Pair), RED.text(), PAIR.text()
    return found, [one.lock.acquire(False) and one.lock.release() for one in (Locked, Added)]

class Plain:
    K = 1
    def get(self, x):
        return x + self.K
class Slotted:
    __slots__ = ("own",)
    K = 1
    def get(self, x):
        self.own = x
        return self.own + self.K
class Under(Plain):
    M = 2
    def get(self, x):
        return super().get(x) * 10 + self.M
Plain.M = 1
class Outer:
    class Inner:
        K = 1

PLAIN, SLOTTED, UNDER, HELD = Plain(), Slotted(), Under(), [Plain()]

def of_classes(x):
    mine, theirs = (PLAIN, SLOTTED, UNDER, HELD[0]), (Plain, Slotted, Under, Plain)
    found = [(one.get(x), isinstance(one, kind)) for one, kind in zip(mine, theirs)]
    return found, hasattr(PLAIN, "more"), Outer.Inner.K

def first(x):
    return x
def second(x):
    return x * 100
TABLE, LISTED, REGISTRY = {"call": first}, [first, len], {}
REGISTRY["call"] = first
ORDERED, SPACE, ARRAYS = OrderedDict(k=1), SimpleNamespace(k=1), [np.zeros(4)]

def of_tables(x):
    functions = TABLE["call"](x), LISTED[0](x), REGISTRY["call"](x), sorted(TABLE)
    return functions, ORDERED["k"], SPACE.k, ARRAYS[0].shape, ARRAYS[0].dtype
"""


def test_classes_that_get_more_attributes_than_their_source_shows(
    run_python: Run, tmp_path: Path
) -> None:
    """An unchanged class of any kind is that of the worker's module, whose objects are of it."""
    (tmp_path / "keepers.py").write_text(KEEPERS)
    source = """
        import keepers, shmpar
        with shmpar.Pool(1) as pool:
            assert pool.submit(keepers.of_made_classes, 2).result() == keepers.of_made_classes(2)
            assert pool.submit(lambda: keepers.RED).result() is keepers.Color.RED
            del keepers.Added.lock, keepers.Locked.lock
            keepers.Color.text = keepers.Pair.text = lambda self: "new"
            red = keepers.Color["ROT"]
            function = lambda: (keepers.RED.text(), keepers.PAIR.text(), red.text())
            assert pool.submit(function).result() == ("new", "new", "new")
        print("right")
    """
    done = run_python(source, cwd=tmp_path)
    assert (done.stdout, done.stderr, done.returncode) == ("right\n", "", 0)


@pytest.mark.parametrize("called_before", [False, True])
def test_a_class_whose_objects_the_module_holds(
    run_python: Run, tmp_path: Path, called_before: bool
) -> None:
    """Workers change their own class, so that the objects of the module change with it."""
    (tmp_path / "keepers.py").write_text(KEEPERS)
    source = f"""
        import keepers, shmpar
        with shmpar.Pool(1) as pool:
            def check():
                assert pool.submit(keepers.of_classes, 2).result() == keepers.of_classes(2)
                assert isinstance(pool.submit(lambda: keepers.PLAIN).result(), keepers.Plain)
            if {called_before}:
                check()
            keepers.Plain.K = keepers.Slotted.K = keepers.Outer.Inner.K = 9
            check()
            keepers.Plain.get, keepers.Plain.more = (lambda self, x: x - self.K), 1
            check()
            assert pool.submit(lambda one: isinstance(one, keepers.Plain), keepers.PLAIN).result()
            del keepers.Plain.more
            keepers.Under.M = keepers.Plain.M
            check()
            former = keepers.PLAIN
            class Plain(keepers.Plain):  # Why: a class of another layout is no changed class.
                pass
            Plain.__module__, Plain.__qualname__ = "keepers", "Plain"
            keepers.Plain = Plain
            assert pool.submit(lambda: issubclass(keepers.Plain, type(former))).result()
        print("right")
    """
    done = run_python(source, cwd=tmp_path)
    assert (done.stdout, done.stderr, done.returncode) == ("right\n", "", 0)


def test_containers_are_compared_item_by_item(run_python: Run, tmp_path: Path) -> None:
    """An item of a container of functions, numbers or arrays can be replaced, added and deleted."""
    (tmp_path / "keepers.py").write_text(KEEPERS)
    source = """
        import keepers, shmpar, numpy as np
        with shmpar.Pool(1) as pool:
            def check():
                assert pool.submit(keepers.of_tables, 2).result() == keepers.of_tables(2)
            check()
            for holder in (keepers.TABLE, keepers.ORDERED, vars(keepers.SPACE)):
                holder["lock"] = keepers.Added.lock  # Why: it stays here, since it does not pickle.
            assert pool.submit(keepers.of_tables, 2).result()[0][3] == ["call"]
            for holder in (keepers.TABLE, keepers.ORDERED, vars(keepers.SPACE)):
                del holder["lock"]
            keepers.TABLE["call"] = keepers.LISTED[0] = keepers.REGISTRY["call"] = keepers.second
            check()
            keepers.TABLE["more"] = lambda x: x
            check()
            keepers.ORDERED["k"] = keepers.SPACE.k = 2
            keepers.ARRAYS[0] = keepers.ARRAYS[0].reshape(2, 2)
            check()
            keepers.ARRAYS[0] = np.zeros((2, 2), int)
            check()
            del keepers.TABLE["more"]
            keepers.TABLE["call"] = keepers.first
            check()
        print("right")
    """
    done = run_python(source, cwd=tmp_path)
    assert (done.stdout, done.stderr, done.returncode) == ("right\n", "", 0)


MANAGER = """
LEVEL = None
def configure(level):
    global LEVEL
    LEVEL = level
def twice(function):
    def call(x):
        return function(x), LEVEL
    return call
@twice
def decorated(x):
    return x, LEVEL
nameless = lambda x: LEVEL
"""


def test_functions_without_a_name_share_the_globals_of_their_module(
    run_python: Run, tmp_path: Path
) -> None:
    """A decorated function sees what the initializer has set, as a function with a name does."""
    (tmp_path / "manager.py").write_text(MANAGER)
    source = """
        import manager, shmpar
        with shmpar.Pool(1, initializer=manager.configure, initargs=(5,)) as pool:
            assert pool.submit(manager.decorated, 1).result() == ((1, 5), 5)
            assert pool.submit(manager.nameless, 1).result() == 5
            assert pool.submit(lambda: manager.nameless(1)).result() == 5
            manager.LEVEL = 7
            assert pool.submit(manager.decorated, 1).result() == ((1, 7), 7)
            assert pool.submit(manager.nameless, 1).result() == 7
        print("right")
    """
    done = run_python(source, cwd=tmp_path)
    assert (done.stdout, done.stderr, done.returncode) == ("right\n", "", 0)


def test_modules_that_cloudpickle_sends_by_value(run_python: Run, tmp_path: Path) -> None:
    """A package that is registered brings its modules, and one that was registered does not."""
    (tmp_path / "whole").mkdir()
    (tmp_path / "whole" / "__init__.py").touch()
    text = "import functools\nK = 1\n@functools.lru_cache\ndef add(x): return x + K\n"
    (tmp_path / "whole" / "part.py").write_text(text + "def use(x): return x + K\n")
    source = """
        import sys, cloudpickle, shmpar, whole.part
        is_imported = lambda name="whole.part": name in sys.modules
        with shmpar.Pool(1) as pool:
            cloudpickle.register_pickle_by_value(whole)
            for due, whole.part.K in ((2, 1), (6, 5)):
                whole.part.add.cache_clear()
                for function in (whole.part.add, whole.part.use):
                    assert pool.submit(function, 1).result() == due
            assert not pool.submit(is_imported).result()
            whole.part.K = 1
            cloudpickle.unregister_pickle_by_value(whole)
            cloudpickle.register_pickle_by_value(whole.part)
            assert pool.submit(whole.part.use, 1).result() == 2
            cloudpickle.unregister_pickle_by_value(whole.part)
            whole.part.K = 8
            assert pool.submit(whole.part.use, 1).result() == 9
            assert pool.submit(is_imported).result()
        print("right")
    """
    done = run_python(source, cwd=tmp_path)
    assert (done.stdout, done.stderr, done.returncode) == ("right\n", "", 0)
