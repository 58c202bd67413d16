"""Stateless functions are pickled once; all others are pickled at each call."""

from __future__ import annotations

import functools
import json
import math
import sys
import types
import xml
from collections.abc import Callable
from decimal import Decimal
from math import sqrt
from typing import Any

import cloudpickle
import numpy as np
import pytest
from numpy.linalg import norm
from numpy.random import normal

import shmpar
from shmpar.errors import PlanError
from shmpar.pickling import pack as pack_module
from shmpar.pickling.pack import pack
from shmpar.plan import Function
from tests.interpreters import run_python

COUNT = 0
module = math


def packed(call: Callable[..., Any]) -> tuple[bytes, bool]:
    payload = pack(Function(call, {}, ()))
    return payload.body, payload.stateless


def counting(block: Any) -> Any:
    global COUNT  # noqa: PLW0603 - the subject of the test
    COUNT += 1
    return block + COUNT


def remembering(block: Any, before: Any = []) -> Any:  # noqa: B006 - the subject of the test
    before.append(1)
    return block + len(before)


def with_attribute() -> Callable[..., Any]:
    def work(block):
        return block

    work.calls = 0
    return work


def with_closure(number: int = 1) -> Callable[..., Any]:
    return lambda block: block + number


def annotated(of_block: Any, of_result: Any) -> Callable[..., Any]:
    def work(block):
        return block

    work.__annotations__ = {"block": of_block, "return": of_result}
    return work


def with_nested_store() -> Callable[..., Any]:
    def work(block):
        def inner():
            global COUNT  # noqa: PLW0603 - the subject of the test
            COUNT = 1

        inner()
        return block

    return work


@pytest.fixture(autouse=True)
def by_value() -> Any:
    """Hide the name under which a worker could import the functions of this file."""
    here = sys.modules.pop(__name__)
    yield
    sys.modules[__name__] = here


@pytest.mark.parametrize(
    "call",
    [
        np.negative,
        np.sum,
        np.linalg.norm,
        math.sqrt,
        json.dumps,
        lambda block: np.negative(block) + 1,
        lambda block, more=1, text="a": block + len(text) + more,
        lambda block: [math.sqrt(one) for one in block],
        lambda block: norm(block) + sqrt(1.0) + isinstance(block, Decimal),
        annotated(np.ndarray, float),
        annotated("np.ndarray", None),
    ],
    ids=[
        *("ufunc", "of NumPy", "of a submodule", "of C", "by name"),
        *("global module", "defaults", "nested", "imported", "classes", "text"),
    ],
)
def test_a_stateless_function_is_pickled_once(call: Callable[..., Any]) -> None:
    body, plain = packed(call)
    assert plain
    assert packed(call)[0] is body
    assert cloudpickle.loads(body).call.__name__ == call.__name__


@pytest.mark.parametrize(
    "call",
    [
        counting,
        remembering,
        with_attribute(),
        with_closure(),
        with_nested_store(),
        functools.partial(np.add, 1),
        np.ndarray.sum,
        np.ones(3).sum,
        np.add.reduce,
        np.random.normal,
        lambda block: block + COUNT,
        lambda block: normal(block) + 1,  # noqa: NPY002 - the subject of the test
        lambda block: with_closure()(block) + 1,
        lambda block: [run_python(block)],
        annotated(Callable[..., Any], float),
        annotated(np.ndarray, type("Local", (), {})),
    ],
    ids=[
        *("stores", "mutable", "attribute", "closure", "nested", "partial", "method"),
        *("of an object", "of a ufunc", "of a generator", "global", "imported method"),
        *("function of the module", "function of a module of the user's"),
        *("annotation", "class of its own"),
    ],
)
def test_a_function_with_state_is_pickled_each_time(call: Callable[..., Any]) -> None:
    assert not packed(call)[1]


def test_a_compiled_function_is_pickled_as_its_current_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A worker would not find a function after another one has taken its name."""
    ours = np.sum
    assert packed(ours)[1]
    monkeypatch.setattr(np, "sum", np.mean)
    with pytest.raises(PlanError):
        packed(ours)
    assert cloudpickle.loads(packed(np.sum)[0]).call is np.mean


def test_a_changed_function_is_pickled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(block, more=1):
        return module.floor(block) + more

    bodies = [packed(work)[0]]
    changes: list[Callable[[], object]] = [
        lambda: setattr(work, "__code__", (lambda block, more=1: module.ceil(block)).__code__),
        lambda: setattr(work, "__defaults__", (2,)),
        lambda: setattr(work, "__name__", "other"),
        lambda: work.__annotations__.update({"block": float}),
        lambda: work.__annotations__.update({"block": int}),
        lambda: work.__annotations__.update({"more": int}),
        lambda: monkeypatch.setitem(work.__globals__, "module", np),
    ]
    for change in changes:
        change()
        bodies.append(packed(work)[0])
        assert packed(work) == (bodies[-1], True)
    assert len(set(bodies)) == len(bodies)


def test_another_imported_function_is_pickled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name of a function in the globals may get another value."""

    def work(block):
        return sqrt(block)

    before, is_stateless = packed(work)
    assert is_stateless
    monkeypatch.setitem(work.__globals__, "sqrt", math.exp)
    assert cloudpickle.loads(packed(work)[0]).call(0.0) == 1.0
    monkeypatch.setitem(work.__globals__, "sqrt", lambda block: -block)
    assert packed(work)[1] is False
    monkeypatch.setitem(work.__globals__, "sqrt", math.sqrt)
    assert packed(work) == (before, True)


def test_functions_that_numba_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are stateless if their Python functions are, and hold what they were compiled with."""
    numba = pytest.importorskip("numba")

    def add(block):
        return np.sum(block) + math.floor(0.5)

    add = numba.njit(add)

    def work(block):
        return sums(block)  # noqa: F821 - a global that is set below

    monkeypatch.setitem(work.__globals__, "sums", add)
    for call in (add, work):
        body, is_stateless = packed(call)
        assert is_stateless
        assert packed(call)[0] is body
        assert cloudpickle.loads(body).call(np.ones(3)) == 3.0
    other = numba.njit(lambda block: block[0] - 1)
    monkeypatch.setitem(work.__globals__, "sums", other)
    assert cloudpickle.loads(packed(work)[0]).call(np.ones(3)) == 0.0
    number = 1
    assert not packed(numba.njit(lambda block: block + number))[1]
    nested = numba.njit(lambda block: sums(block) + 1)  # noqa: F821 - as above
    assert packed(nested)[1]
    monkeypatch.setitem(work.__globals__, "sums", nested)  # which calls itself now
    assert not packed(nested)[1]
    with shmpar.Pool(1) as pool:
        for factor in (2, 3):
            scaled = numba.njit(lambda block, factor=factor: block * factor)
            assert pool.map_blocks(scaled, np.ones(1)).tolist() == [factor]


def test_a_submodule_that_is_imported_later_is_sent_along(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker imports the loaded submodules that a function uses."""

    def work(block):
        return xml.shmpar_later.f(block)

    before, _ = packed(work)
    later = types.ModuleType("xml.shmpar_later")
    monkeypatch.setitem(sys.modules, "xml.shmpar_later", later)
    assert packed(work)[0] != before


def test_a_function_that_uses_a_module_by_value_is_not_stateless(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = types.ModuleType("shmpar_made")
    monkeypatch.setitem(sys.modules, made.__name__, made)
    monkeypatch.setitem(with_closure.__globals__, "module", made)
    cloudpickle.register_pickle_by_value(made)
    try:
        assert not packed(lambda block: module)[1]
    finally:
        cloudpickle.unregister_pickle_by_value(made)
    monkeypatch.setitem(with_closure.__globals__, "module", math)
    assert packed(lambda block: module)[1]


def test_no_call_sees_state_of_the_call_before() -> None:
    """The next call of a function sees no state of the call before."""
    with shmpar.Pool(1) as pool:
        for call in (counting, remembering):
            results = [pool.map_blocks(call, np.zeros(1)).tolist() for _ in range(3)]
            assert results == [[1.0]] * 3


def test_another_function_may_bring_other_globals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Functions of a module share its globals, so a worker keeps only the last function."""

    def work(block):
        return block + module.inf

    def other(block):
        return block * module.inf

    ours = types.SimpleNamespace(inf=1.0)
    with shmpar.Pool(1) as pool:
        assert pool.map_blocks(work, np.ones(1)).tolist() == [math.inf]
        for value, call, due in [(ours, other, 1.0), (math, work, math.inf), (ours, work, 2.0)]:
            monkeypatch.setitem(work.__globals__, "module", value)
            for _ in range(2):
                assert pool.map_blocks(call, np.ones(1)).tolist() == [due]
            pool.submit(other, np.ones(1)).result()


def test_the_public_pickler_knows_too_which_definitions_are_pickled_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The public pickler is used if cloudpickle lacks the private function."""
    definitions = [
        pack, json.dumps, np.ndarray, int, type(None), functools.partial,
        counting, with_closure(), with_closure, type("Local", (), {}),
    ]  # fmt: skip
    expected = [pack_module.is_pickled_by_name(one) for one in definitions]
    assert set(expected) == {True, False}
    monkeypatch.setitem(sys.modules, "cloudpickle.cloudpickle", types.ModuleType("cloudpickle"))
    assert [pack_module.is_pickled_by_name(one) for one in definitions] == expected
