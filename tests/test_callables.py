"""Signatures of functions; those of importable compiled functions are cached."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from shmpar.pickling.pack import is_importable
from shmpar.verbs import functions
from shmpar.verbs.functions import check_signature, special_parameters

NAMED = [np.sum, np.median, np.linalg.norm, math.sqrt, abs, max]


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return the list of functions whose signature was inspected."""
    functions._cached_signature.cache_clear()
    seen: list[Any] = []
    signature = inspect.signature
    monkeypatch.setattr(
        inspect, "signature", lambda f, **how: (seen.append(f), signature(f, **how))[1]
    )
    return seen


@pytest.mark.parametrize("call", NAMED)
def test_a_compiled_function_is_inspected_once(call: Callable[..., Any], looked: list[Any]) -> None:
    """The signature is cached, also if the function has none."""
    for _ in range(3):
        check_signature("verb", call, 1, {}, frozenset())
        assert special_parameters(call, {}) == frozenset()
    assert looked == [call]


@pytest.mark.parametrize("call", [np.sum, math.sqrt])
def test_wrong_arguments_are_refused_each_time(call: Callable[..., Any]) -> None:
    """The error names the number of arguments."""
    for _ in range(2):
        with pytest.raises(TypeError, match="verb: the function cannot be called with 9 arguments"):
            check_signature("verb", call, 9, {}, frozenset())


@pytest.mark.parametrize("call", NAMED)
def test_a_compiled_function_of_a_module_holds_nothing(call: Callable[..., Any]) -> None:
    """It is sent as its name."""
    assert functions.held_by(call, [1.0]) == []


@pytest.mark.parametrize("call", NAMED)
def test_functions_that_are_importable(call: Callable[..., Any]) -> None:
    """A compiled function of a module is importable by its name."""
    assert is_importable(call)


@pytest.mark.parametrize(
    "call", [np.ones(3).sum, np.add.reduce, np.add, len.__call__, inspect.stack]
)
def test_functions_that_are_not_importable(call: Callable[..., Any]) -> None:
    """Bound methods, ufuncs, method wrappers and functions in Python do not count."""
    assert not is_importable(call)
