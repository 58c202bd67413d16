"""Names that were deleted in the parent are gone in workers, and results change no class."""

from __future__ import annotations

from collections.abc import Callable
from subprocess import CompletedProcess

Run = Callable[..., CompletedProcess[str]]

START = """
import enum, shmpar

def check(pool, function, due):
    for _ in range(2):
        assert pool.submit(function, 3).result() == due, (pool.submit(function, 3).result(), due)
        assert pool.parallel_map(function, [3], dtype=object).tolist() == [due]
"""


def check(done: CompletedProcess[str]) -> None:
    assert (done.stdout, done.stderr, done.returncode) == ("right\n", "", 0)


def test_a_deleted_global_is_gone(run_python: Run) -> None:
    """A builtin is found again, and a helper is missing, by functions of each kind."""
    source = f"""{START}
with shmpar.Pool(1) as pool:
    function = lambda x: max(x, 0)
    other = lambda x, more=[0]: max(x, *more)
    check(pool, function, 3)
    max = lambda *_: -1
    check(pool, function, -1)
    check(pool, other, -1)
    del max
    check(pool, function, 3)
    check(pool, other, 3)
    max = lambda *_: -2
    check(pool, other, -2)
    del max
    check(pool, function, 3)

    def helper(x): return x
    def user(x): return helper(x)
    check(pool, user, 3)
    del helper
    for send in (lambda: pool.submit(user, 1).result(), lambda: pool.map_blocks(user, [1])):
        try:
            send()
        except NameError as error:
            assert "helper" in str(error)
        except shmpar.ChunkError as error:
            assert "helper" in str(error.__cause__)
        else:
            print("the helper lives")
    check(pool, function, 3)
print("right")
"""
    check(run_python(source))


def test_a_worker_s_own_global_stays(run_python: Run) -> None:
    """A global that a function has set, and the parent never had, is kept."""
    source = f"""{START}
def count(_):
    global counted
    try:
        counted += 1
    except NameError:
        counted = 0
    return counted

def load():
    global model
    model = "loaded"

model = 1
with shmpar.Pool(1, initializer=load) as pool:
    assert [pool.submit(count, 0).result() for _ in range(3)] == [0, 1, 2]
    check(pool, lambda _: model, "loaded")
    del model
    check(pool, lambda _: model, "loaded")
print("right")
"""
    check(run_python(source))


def test_a_deleted_attribute_of_a_class_is_gone(run_python: Run) -> None:
    """A class that is sent by value is as it is in the parent."""
    source = f"""{START}
class Base:
    level = 1

class Derived(Base):
    level = 2
    def method(self): return "own"

with shmpar.Pool(1) as pool:
    look = lambda _: (Derived.level, hasattr(Derived, "method"))
    check(pool, look, (2, True))
    del Derived.level
    check(pool, look, (1, True))
    del Derived.method
    Derived.level = 3
    check(pool, look, (3, False))
print("right")
"""
    check(run_python(source))


def test_a_result_leaves_the_classes_of_the_parent_alone(run_python: Run) -> None:
    """A worker's change of its copy of a class does not arrive with an object of that class."""
    source = f"""{START}
class Point:
    level = 1
    def method(self): return "first"

class Colour(enum.Enum):
    RED = 1

method = Point.method

def change(_):
    Point.level = 99
    Point.method = lambda self: "other"
    class New:
        kind = 5
        def method(self): return "new"
    class Kind(enum.Enum):
        A = 1
        def method(self): return "kind"
    return Point(), New(), Kind.A, Colour.RED

with shmpar.Pool(1) as pool:
    for _ in range(2):
        point, new, kind, red = pool.submit(change, 0).result()
        assert type(point) is Point and Point.level == 1 and Point.method is method
        assert (new.kind, new.method(), kind.method()) == (5, "new", "kind")
        assert red is Colour.RED
print("right")
"""
    check(run_python(source))
