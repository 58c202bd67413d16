"""Functions whose signature is not the one of the function that they wrap, and odd sequences."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import pytest

import shmpar


def supplying(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a function: supply its last argument."""

    @functools.wraps(function)
    def decorated(*args: Any, **keywords: Any) -> Any:
        return function(*args, 3, **keywords)

    return decorated


def passing_on(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a function: change nothing."""

    @functools.wraps(function)
    def decorated(*args: Any, **keywords: Any) -> Any:
        return function(*args, **keywords)

    return decorated


def of_one_block(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a function: take a block alone, and supply the stream of random numbers."""

    @functools.wraps(function)
    def decorated(block: Any) -> Any:
        return function(block, rng=7)

    return decorated


@supplying
def times(block: Any, factor: Any) -> Any:
    return block * factor


@mock.patch("os.getpid", return_value=5)
def plus_patched(block: Any, patched: Any) -> Any:
    return block + os.getpid()


@of_one_block
def plus_supplied(block: Any, rng: Any) -> Any:
    return block + rng


@passing_on
def special(block: Any, rng: Any, block_id: Any) -> Any:
    return block + block_id[0] + 0 * rng.random()


@passing_on
def needs_two(block: Any, other: Any) -> Any:
    return block + other


class Wrapped:
    """An object as numba.guvectorize makes: called with the arrays, it names those of a kernel."""

    def __init__(self) -> None:
        functools.update_wrapper(self, kernel)

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        (block,) = args
        return block * 2


def kernel(block: Any, result: Any) -> None:
    result[:] = block * 2


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (times, [0, 3, 6, 9]),
        (functools.partial(times), [0, 3, 6, 9]),
        (plus_patched, [5, 6, 7, 8]),
        (plus_supplied, [7, 8, 9, 10]),
        (Wrapped(), [0, 2, 4, 6]),
        (special, [0, 1, 3, 4]),
    ],
)
def test_a_decorator_may_supply_arguments(
    any_pool: shmpar.Pool, function: Any, expected: list[int]
) -> None:
    """The signature beneath a decorator refuses no call that the decorator takes."""
    array = np.arange(4)
    assert any_pool.map_blocks(function, array, chunks=2).tolist() == expected
    assert any_pool.apply_along_axis(times, 0, array).tolist() == [0, 3, 6, 9]
    assert any_pool.parallel_map(times, array).tolist() == [0, 3, 6, 9]
    assert any_pool.submit(times, 4).result() == 12
    assert list(any_pool.map(times, [1, 2])) == [3, 6]


def test_a_call_that_the_decorator_takes_decides_itself(any_pool: shmpar.Pool) -> None:
    """A missing argument beneath a decorator is an error of the function."""
    with pytest.raises(shmpar.ChunkError, match="missing 1 required positional argument: 'other'"):
        any_pool.map_blocks(needs_two, np.arange(4))


@pytest.mark.parametrize(
    "function", [lambda block, other: block, of_one_block(kernel), functools.partial(kernel)]
)
def test_a_call_that_no_signature_takes_is_refused(any_pool: shmpar.Pool, function: Any) -> None:
    """A function that cannot be called is refused before anything starts."""
    before = any_pool.last_run
    arrays = [np.arange(4)] * (3 if function.__class__ is functools.partial else 1)
    keywords = {"other": 1} if hasattr(function, "__wrapped__") else {}
    with pytest.raises(TypeError, match="the function cannot be called with"):
        any_pool.map_blocks(function, *arrays, kwargs=keywords)
    assert any_pool.last_run is before


class Frames:
    """A reader of frames as some packages have: the old protocol of sequences alone."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, number: int) -> Any:
        if not 0 <= number < 5:
            raise IndexError(number)
        return np.full((2, 3), number)


def mean(frame: Any, offset: float = 0) -> float:
    return float(frame.mean()) + offset


def test_a_sequence_without_iter_gives_its_items(any_pool: shmpar.Pool) -> None:
    """An object with __getitem__ and __len__ is an iterable, as for iter()."""
    expected = [0.0, 1.0, 2.0, 3.0, 4.0]
    assert any_pool.parallel_map(mean, Frames()) == expected
    assert any_pool.parallel_map(mean, Frames(), range(5)) == [0.0, 2.0, 4.0, 6.0, 8.0]
    assert list(any_pool.map(mean, Frames(), chunksize=2)) == expected
    assert list(any_pool.map(mean, Frames(), buffersize=2)) == expected


@pytest.mark.parametrize("value", [3, np.float64(3), None])
def test_a_value_without_items_is_refused(any_pool: shmpar.Pool, value: Any) -> None:
    """The error says that there are no items."""
    with pytest.raises(TypeError, match=r"argument 0 is a .*, which has no items"):
        any_pool.parallel_map(mean, value)
