"""A call is known again by another process, and told from any other."""

from __future__ import annotations

import collections
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shmpar.runtime.checkpoint import fingerprint
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


def look(what: str, **changes: Any) -> str:
    """The fingerprint of something in a module of this source."""
    space: dict[str, Any] = {"__name__": "somewhere"}
    source = SOURCE.format(**{**USUAL, **changes})
    exec(compile(source, "<source>", "exec", dont_inherit=True), space)  # noqa: S102 (ours)
    return fingerprint(eval(what, space))  # noqa: S307 (ours)


@pytest.mark.parametrize("what", WHAT.values(), ids=WHAT)
def test_another_process_finds_the_same(what: str) -> None:
    """Whatever its hash seed."""
    source = f"from shmpar.runtime.checkpoint import fingerprint\n{SOURCE.format(**USUAL)}\nprint(fingerprint({what}))"
    source = "__name__ = 'somewhere'\n" + source
    said = {run_python(source, env={"PYTHONHASHSEED": seed}).stdout.strip() for seed in ("1", "2")}
    assert said == {look(what)}


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
def test_a_function_is_its_code_and_its_constants(part: str, other: Any) -> None:
    """Those of its helpers too."""
    assert look("outer()", **{part: other}) != look("outer()")
    assert look("outer()", comment="# another\n        pass") == look("outer()")


def test_an_object_is_its_class_and_its_state() -> None:
    """And a method is its code too."""
    assert look("Model(2.0)") != look("Model(2.5)")
    assert look("Model(2.0).method") != look("Model(2.0).method", constant=2)


def test_a_method_of_an_array_is_the_array_too() -> None:
    """Also where it is written in C."""
    one, other = np.arange(4.0), np.arange(4.0) + 1
    assert fingerprint(one.take) == fingerprint(np.arange(4.0).take) != fingerprint(other.take)
    assert fingerprint([1].__getitem__) != fingerprint([2].__getitem__)
    assert fingerprint(len) == fingerprint(len) != fingerprint(sum)


def test_what_a_decorator_hides_is_looked_at() -> None:
    """Functools.cache makes an object that pickles by its name alone."""
    made = [functools.cache(lambda x, y=y: x + y) for y in (1, 2, 1)]
    assert fingerprint(made[0]) == fingerprint(made[2]) != fingerprint(made[1])


def test_a_dict_of_a_class_of_its_own_has_more_than_items() -> None:
    """As what it makes of a key that is not there."""
    first, second = (collections.defaultdict(make, a=1) for make in (int, float))
    assert fingerprint(first) != fingerprint(second)
    assert fingerprint(first) != fingerprint({"a": 1})


def test_a_class_of_the_functions_module_is_its_code() -> None:
    """One of another module is its name."""
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

    def looked(what: str, **changes: Any) -> str:
        space: dict[str, Any] = {"__name__": "somewhere"}
        exec(source.format(**{**usual, **changes}), space)  # noqa: S102 (ours)
        return fingerprint(space[what])

    for change in ({"by": 2}, {"operator": "+"}, {"helper": 5}, {"size": 6}):
        assert looked("function", **change) != looked("function") == looked("function")
    assert looked("scaled", by=2) == looked("scaled")


def test_what_pickling_notes_in_a_class_says_nothing() -> None:
    """A class is the same before and after an instance of it was first sent anywhere."""

    class Fresh:
        def __call__(self, x: float) -> float:
            return x * 2

    def func(x: float, of: Any = Fresh()) -> float:  # noqa: B008 - a constant of the function
        return of(x)

    before = fingerprint(func)
    Fresh().__reduce_ex__(4)
    assert "__slotnames__" in vars(Fresh)
    assert fingerprint(func) == before


def test_arrays_are_their_values() -> None:
    """Wherever they lie and however; dtype and shape count."""
    one = np.arange(12.0)
    assert fingerprint(one) == fingerprint(one.copy()) == fingerprint(np.arange(24.0)[::2] / 2)
    others = [one.astype("f4"), one.reshape(3, 4), one + 1, one[:-1], one.tolist()]
    assert len({fingerprint(other) for other in (one, *others)}) == len(others) + 1


def test_what_lies_between_fields_says_nothing() -> None:
    """It is whatever was in memory before."""
    dtype = np.dtype([("a", "u1"), ("b", "f8")], align=True)
    one, other = np.zeros(5, dtype), np.frombuffer(bytearray(b"\xff" * 5 * dtype.itemsize), dtype)
    other["a"] = other["b"] = 0
    assert one.tobytes() != other.tobytes()
    assert fingerprint(one) == fingerprint(other)
    other["b"][2] = 1
    assert fingerprint(one) != fingerprint(other)


def test_what_refers_to_itself_has_an_end() -> None:
    """Lists, functions, and functions of each other."""
    loop: list[Any] = [1]
    loop.append(loop)
    assert fingerprint(loop) == fingerprint(loop)

    def even(n: int) -> bool:
        return n == 0 or odd(n - 1)

    def odd(n: int) -> bool:
        return n != 0 and even(n - 1)

    assert fingerprint(even) != fingerprint(odd)


def test_what_does_not_pickle_is_its_type() -> None:
    """There is nothing more to go by."""
    with open(__file__) as one, open(Path(__file__)) as other:
        assert fingerprint(functools.partial(print, file=one)) == fingerprint(
            functools.partial(print, file=other)
        )
