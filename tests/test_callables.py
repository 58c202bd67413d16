"""What functions ask for; of compiled ones that go by a name it is worked out once."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from shmpar.pickling.pack import is_named
from shmpar.verbs import arguments
from shmpar.verbs.arguments import check_signature, special_parameters

NAMED = [np.sum, np.median, np.linalg.norm, math.sqrt, abs, max]


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The functions whose signature was worked out, each time."""
    for cached in (arguments._takes_named, arguments._parameters_named):
        cached.cache_clear()
    seen: list[Any] = []
    signature = inspect.signature
    monkeypatch.setattr(inspect, "signature", lambda f: (seen.append(f), signature(f))[1])
    return seen


@pytest.mark.parametrize("call", NAMED)
def test_a_compiled_function_is_looked_at_once(call: Callable[..., Any], looked: list[Any]) -> None:
    """Once for what it takes, and once for what it wants by name."""
    for _ in range(3):
        check_signature("verb", call, 1, {}, frozenset())
        assert special_parameters(call, {}) == frozenset()
    assert looked == [call, call]


@pytest.mark.parametrize("call", [np.sum, math.sqrt])
def test_one_that_cannot_be_called_so_is_refused_each_time(call: Callable[..., Any]) -> None:
    """With what it was about to be called with."""
    for _ in range(2):
        with pytest.raises(TypeError, match="verb: the function cannot be called with 9 arguments"):
            check_signature("verb", call, 9, {}, frozenset())


@pytest.mark.parametrize("call", NAMED)
def test_what_goes_by_a_name(call: Callable[..., Any]) -> None:
    """A function of a module does; a method of an object, and a function in Python, do not."""
    assert is_named(call)


@pytest.mark.parametrize(
    "call", [np.ones(3).sum, np.add.reduce, np.add, len.__call__, inspect.stack]
)
def test_what_does_not(call: Callable[..., Any]) -> None:
    """Nor does a ufunc, which is one of a kind of its own."""
    assert not is_named(call)
