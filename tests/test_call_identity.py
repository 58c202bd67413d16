"""Fingerprints: equal for the same call in another process, different for another call."""

from __future__ import annotations

import collections
import functools
import random
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shmpar.runtime.call_identity import fingerprint
from tests.interpreters import run_python

FACTOR = 3
SOURCE = """
import functools
import numpy as np

FACTOR = {factor}
TABLE = np.arange({table})

def helper(x):
    return x {operator} FACTOR

class Model:
    def __init__(self, scale): self.scale = scale
    def __call__(self, x): return x * self.scale
    def method(self, x): return x - {constant}

captured = {captured}

def outer():
    inside = {inside}
    def func(block, scale={default}):
        {comment}
        total = [helper(v) + captured["a"] for v in block]
        return total[0] * scale + inside + TABLE[0]
    return func
"""
USUAL = {
    "factor": 3, "table": 5, "operator": "+", "constant": 1, "captured": {"a": 1, "b": {2, 3}},
    "inside": 1.5, "default": "'s'", "comment": "pass",
}  # fmt: skip
WHAT = {
    "function": "outer()",
    "partial": "functools.partial(outer(), scale=2)",
    "instance": "Model(2.0)",
    "method": "Model(2.0).method",
    "values": "[1, 'a', None, 2j, {'x', 'y', 'z'}, np.float32(3), np.dtype('f4'), range(3)]",
    "array": "np.arange(1e5).reshape(100, 1000)[::2, ::3]",
    "objects": "np.array([1, 'a', None], dtype=object)",
    "generator": "np.random.default_rng(5)",
}


def fingerprint_of(what: str, **changes: Any) -> str:
    """Return the fingerprint of an expression in a module of this source."""
    space: dict[str, Any] = {"__name__": "somewhere"}
    source = SOURCE.format(**{**USUAL, **changes})
    exec(compile(source, "<source>", "exec", dont_inherit=True), space)  # noqa: S102 (ours)
    return fingerprint(eval(what, space))  # noqa: S307 (ours)


def test_another_process_computes_the_same() -> None:
    """The hash seed of the interpreter does not matter."""
    source = "__name__ = 'somewhere'\nfrom shmpar.runtime.call_identity import fingerprint\n"
    source += SOURCE.format(**USUAL)
    for what in WHAT.values():
        source += f"\nprint(fingerprint({what}))"
    due = [fingerprint_of(what) for what in WHAT.values()]
    for seed in "12":
        assert run_python(source, env={"PYTHONHASHSEED": seed}).stdout.split() == due


@pytest.mark.parametrize(
    ("part", "other"),
    [
        ("factor", 4),
        ("table", 6),
        ("operator", "-"),
        ("captured", {"a": 2, "b": {2, 3}}),
        ("captured", {"a": 1, "b": {2, 4}}),
        ("inside", 1.25),
        ("default", "'t'"),
    ],
)
def test_the_identity_of_a_function_has_its_code_and_constants(part: str, other: Any) -> None:
    """The code and constants of its helpers count too."""
    assert fingerprint_of("outer()", **{part: other}) != fingerprint_of("outer()")
    assert fingerprint_of("outer()", comment="# another\n        pass") == fingerprint_of("outer()")


def test_the_identity_of_an_object_has_its_class_and_state() -> None:
    """A method is its code and its object."""
    assert fingerprint_of("Model(2.0)") != fingerprint_of("Model(2.5)")
    assert fingerprint_of("Model(2.0).method") != fingerprint_of("Model(2.0).method", constant=2)


def test_a_bound_method_includes_its_object() -> None:
    """The method may be written in C."""
    one, other = np.arange(4.0), np.arange(4.0) + 1
    assert fingerprint(one.take) == fingerprint(np.arange(4.0).take) != fingerprint(other.take)
    assert fingerprint([1].__getitem__) != fingerprint([2].__getitem__)
    assert fingerprint(len) == fingerprint(len) != fingerprint(sum)


def test_a_decorated_function_counts() -> None:
    """An object of functools.cache pickles by name alone."""
    made = [functools.cache(lambda x, y=y: x + y) for y in (1, 2, 1)]
    assert fingerprint(made[0]) == fingerprint(made[2]) != fingerprint(made[1])


def test_a_subclass_of_dict_has_more_than_items() -> None:
    """A defaultdict has a factory."""
    first, second = (collections.defaultdict(make, a=1) for make in (int, float))
    assert fingerprint(first) != fingerprint(second)
    assert fingerprint(first) != fingerprint({"a": 1})


def test_the_identity_of_a_class_of_the_module_has_its_code() -> None:
    """The methods, static methods, properties and attributes count."""
    source = """
class Scale:
    by = {by}
    def apply(self, block): return block {operator} self.helper(block)
    @staticmethod
    def helper(block): return {helper}
    @property
    def size(self): return {size}

def function(block): return Scale().apply(block)
scaled = Scale()
"""
    usual = {"by": 1, "operator": "*", "helper": 3, "size": 4}

    def fingerprint_in(what: str, **changes: Any) -> str:
        space: dict[str, Any] = {"__name__": "somewhere"}
        exec(source.format(**{**usual, **changes}), space)  # noqa: S102 (ours)
        return fingerprint(space[what])

    for change in ({"by": 2}, {"operator": "+"}, {"helper": 5}, {"size": 6}):
        assert (
            fingerprint_in("function", **change)
            != fingerprint_in("function")
            == fingerprint_in("function")
        )
    assert fingerprint_in("scaled", by=2) != fingerprint_in("scaled")


def test_attributes_that_pickling_adds_do_not_count() -> None:
    """A class is the same before and after the first pickling of an instance."""

    class Fresh:
        def __call__(self, x: float) -> float:
            return x * 2

    def func(x: float, of: Any = Fresh()) -> float:  # noqa: B008 - a constant of the function
        return of(x)

    before = fingerprint(func)
    Fresh().__reduce_ex__(4)
    assert "__slotnames__" in vars(Fresh)
    assert fingerprint(func) == before


def test_the_identity_of_an_array_has_its_values() -> None:
    """The dtype and shape of an array count, its memory layout does not."""
    one = np.arange(12.0)
    assert fingerprint(one) == fingerprint(one.copy()) == fingerprint(np.arange(24.0)[::2] / 2)
    others = [one.astype("f4"), one.reshape(3, 4), one + 1, one[:-1], one.tolist()]
    assert len({fingerprint(other) for other in (one, *others)}) == len(others) + 1


def test_padding_between_fields_does_not_count() -> None:
    """Padding has the bytes that were in memory before."""
    dtype = np.dtype([("a", "u1"), ("b", "f8")], align=True)
    one, other = np.zeros(5, dtype), np.frombuffer(bytearray(b"\xff" * 5 * dtype.itemsize), dtype)
    other["a"] = other["b"] = 0
    assert one.tobytes() != other.tobytes()
    assert fingerprint(one) == fingerprint(other)
    other["b"][2] = 1
    assert fingerprint(one) != fingerprint(other)


def test_arrays_with_the_same_crc_differ() -> None:
    """Items of a list would get the results of each other."""
    values = (204799331, 2382061509), (3784023915, 3204072662)
    one, other = (np.array(pair, "<u4") for pair in values)
    assert zlib.crc32(one) == zlib.crc32(other)
    assert fingerprint(one) != fingerprint(other)
    assert fingerprint(one.view("V8")[0]) != fingerprint(other.view("V8")[0])


@pytest.mark.parametrize("dtype", ["=g", "=G", ">g"])
def test_padding_behind_long_doubles_does_not_count(dtype: str) -> None:
    """A long double may have unused bytes, and its sign counts even at 0."""
    arrays = [np.frombuffer(bytearray([byte]) * 320, dtype) for byte in (0, 1)]
    for array in arrays:
        array[:] = np.longdouble("0.1")
    assert len(set(map(fingerprint, arrays))) == 1
    assert fingerprint(np.zeros(3, dtype)) != fingerprint(-np.zeros(3, dtype))


def test_a_subclass_of_an_array_has_its_attributes() -> None:
    """The mask of an array counts."""
    one, other = (np.ma.array([1, 2], mask=mask) for mask in ([0, 1], [1, 0]))
    assert fingerprint(one) == fingerprint(one.copy()) != fingerprint(other)
    assert fingerprint(np.ma.masked) != fingerprint(one)


def _record(middle: float) -> Any:
    found = np.zeros((), [("a", "f8", 3000)])[()]
    found["a"][1500] = middle
    return found


class ByFunction:
    """An object that a function of its own makes again."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> Any:
        return functools.partial(ByFunction, self.number), ()


@pytest.mark.parametrize(
    "make",
    [
        _record,
        ByFunction,
        lambda number: 10**5000 + number,
        lambda number: {number: 1}.keys(),
        lambda number: collections.OrderedDict(a=number).values(),
        lambda number: {1: number}.items(),
        lambda number: memoryview(bytes([number])),
        lambda number: np.ma.array([1, number], mask=[0, 1]),
        lambda number: np.frompyfunc([abs, len][number], 1, 1),
        lambda number: np.frompyfunc([lambda x: x + 1, lambda x: x + 2][number], 1, 1),
    ],
)
def test_all_of_a_value_counts(make: Any) -> None:
    """Values count that `repr` or `tobytes` leaves out, or that `pickle` refuses."""
    assert fingerprint(make(0)) == fingerprint(make(0)) != fingerprint(make(1))


KINDS = """
import enum, functools, typing
import numpy as np

class Tuple(typing.NamedTuple):
    a: int
    def scaled(self): return self.a * {v}
class Number(enum.IntEnum):
    A = 1
    def scaled(self): return self * {v}
class Text(str):
    def scaled(self): return {v}
class Real(float):
    def scaled(self): return {v}
class Items(list):
    def scaled(self): return {v}
class Some(set):
    def scaled(self): return {v}
class Array(np.ndarray):
    def scaled(self): return {v}

def own(x): return x * own.factor
own.factor = {v}
def of_attribute(x): return own(x)
@functools.wraps(np.sum)
def total(x): return np.sum(x) * {v}
def of_wrapper(x): return total(x)
space = dict()
exec("def first(x): return x + {v}\\ndef second(x): return first(x)", space)
second = space["second"]
def of_namespace(x): return second(x)
values = [
    Tuple(1), Number.A, Text("a"), Real(1), Items("a"), Some("ab"), np.ones(2).view(Array),
    of_attribute, of_wrapper, of_namespace,
]
"""
OF_KINDS = """
from shmpar.runtime.call_identity import fingerprint
for value in values: print(fingerprint(value))
"""


def test_code_behind_values_of_all_kinds_counts() -> None:
    """Subclasses of builtin types, decorators, and functions of a bare dict have code too."""
    found = [
        run_python(KINDS.format(v=value) + OF_KINDS, env={"PYTHONHASHSEED": seed}).stdout.split()
        for value, seed in ((1, "1"), (1, "2"), (2, "1"))
    ]
    assert found[0] == found[1]
    assert len(found[0]) == 10
    assert not {*found[0]} & {*found[2]}


def test_modules_of_the_user_of_all_kinds_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They lie in folders without a file of their own, in archives, and under names of Python's."""
    names = ("folder_of_ours.inner", "zipped_by_us", "colorsys")

    def inside(x: float) -> float:
        from folder_of_ours.inner import change

        return change(x)

    def found(value: int) -> set[str]:
        folder = tmp_path / str(value)
        (folder / "folder_of_ours").mkdir(parents=True)
        source = f"def change(x): return x + {value}\n"
        (folder / "folder_of_ours" / "inner.py").write_text(source)
        (folder / "colorsys.py").write_text(source)
        with zipfile.ZipFile(folder / "code.zip", "w") as archive:
            archive.writestr("zipped_by_us.py", source)
        with monkeypatch.context() as patch:
            patch.syspath_prepend(folder)
            patch.syspath_prepend(folder / "code.zip")
            for name in (*names, "folder_of_ours"):
                patch.delitem(sys.modules, name, raising=False)
            first = fingerprint(inside)
            space = {name.partition(".")[0]: __import__(name) for name in names}
            texts = [f"lambda x: {name}.change(x)" for name in names]
            functions = [inside, *[eval(text, space) for text in texts]]  # noqa: S307 (ours)
            for name in (*names, "folder_of_ours"):
                sys.modules.pop(name, None)
            return {first, *map(fingerprint, functions)}

    assert len(found(1)) == len(names) + 1
    assert not found(2) & found(3)


def test_a_call_leaves_the_fingerprint() -> None:
    """Caches, attributes that a class gets at a look, and global generators do not count."""

    @functools.singledispatch
    def flat(item: Any) -> Any:
        return item

    class Plain:
        @functools.singledispatchmethod
        def method(self, item: Any) -> Any:
            return item

    each = np.vectorize(lambda x: x + 1.0, otypes=[float])
    drawn = [random.random, random.choice, np.random.normal]
    values = [flat, lambda x: flat(x) + 1, Plain, Plain(), each, *drawn]
    before = [fingerprint(value) for value in values]
    assert len(set(before)) == len(values)
    assert flat(1) == Plain().method(1) == each(0) == 1
    assert random.choice([random.random(), np.random.normal()])  # noqa: NPY002
    assert Plain.__annotations__ == {}
    assert [fingerprint(value) for value in values] == before
    flat.register(int, abs)
    assert fingerprint(flat) != before[0]


def test_compiled_functions_of_numba() -> None:
    """They have a random number, and what was compiled before."""
    numba = pytest.importorskip("numba")

    def made(number: int) -> Any:
        return numba.njit(lambda x: x + number)

    function = made(1)
    before = fingerprint(function)
    assert function(1) == 2
    assert before == fingerprint(function) == fingerprint(made(1)) != fingerprint(made(2))


def test_values_that_are_nested_too_deeply() -> None:
    """The error names the remedy."""
    value: list[Any] = []
    for _ in range(sys.getrecursionlimit()):
        value = [value]
    with pytest.raises(ValueError, match=r"nested too deeply .* leave out ledger="):
        fingerprint(value)


def test_an_object_whose_state_needs_the_stack_too() -> None:
    """At the limit no part of a value is left out without an error."""

    def state_of(node: Any, frames: int) -> dict[str, Any]:
        return state_of(node, frames - 1) if frames else dict(vars(node))

    class Node:
        def __init__(self, rest: Any) -> None:
            self.rest = rest

        def __getstate__(self) -> dict[str, Any]:
            return state_of(self, 10)

    value: Any = None
    for _ in range(sys.getrecursionlimit()):
        value = Node(value)
    with pytest.raises(ValueError, match="nested too deeply"):
        fingerprint(value)


def test_cycles_end() -> None:
    """A list may contain itself, and functions may call each other."""
    loop: list[Any] = [1]
    loop.append(loop)
    assert fingerprint(loop) == fingerprint(loop)

    def even(n: int) -> bool:
        return n == 0 or odd(n - 1)

    def odd(n: int) -> bool:
        return n != 0 and even(n - 1)

    assert fingerprint(even) != fingerprint(odd)


def test_the_identity_of_an_object_that_does_not_pickle_is_its_type() -> None:
    """The state of the object is unknown."""
    with open(__file__) as one, open(Path(__file__)) as other:
        assert fingerprint(functools.partial(print, file=one)) == fingerprint(
            functools.partial(print, file=other)
        )
