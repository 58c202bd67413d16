"""Errors of first guesses: the whole text, with the name or the call to write instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import shmpar

X = np.arange(6.0)


def text_of(error: type[Exception], call: Callable[[], object]) -> str:
    """The message of the error that a call raises."""
    with pytest.raises(error) as caught:
        call()
    return str(caught.value)


def with_task(block: Any, task: Any) -> Any:
    return block


def with_keyword(block: Any, sigma: float = 1) -> Any:
    return block


@pytest.mark.parametrize("verb", ["map_blocks", "map_overlap", "block_reduce", "sum", "median"])
def test_text_is_no_array(any_pool: shmpar.Pool, verb: str) -> None:
    """The error names the call that opens a file, and the option for other text."""
    function = () if verb in {"sum", "median"} else (abs,)
    more: dict[str, Any] = {"depth": 1} if verb == "map_overlap" else {}
    assert text_of(TypeError, lambda: getattr(any_pool, verb)(*function, "mean", **more)) == (
        f"{verb}: 'mean' is text, not an array; pass shmpar.open(path) for the array in a file, "
        "or a keyword of the function in kwargs="
    )


@pytest.mark.parametrize("boundary", ["zero", {0: "zero"}])
def test_an_unknown_boundary(any_pool: shmpar.Pool, boundary: Any) -> None:
    """The error lists the names of boundaries; "constant" is a name, and means 0."""
    message = text_of(ValueError, lambda: any_pool.map_overlap(abs, X, depth=1, boundary=boundary))
    assert message == (
        f"boundary={boundary!r}, axis 0: 'zero' is unknown; pass a constant or one of none, "
        "reflect, symmetric, grid-mirror, mirror, nearest, edge, periodic, wrap, grid-wrap, "
        "constant, grid-constant"
    )
    sums = any_pool.map_overlap(
        lambda window: np.full(3, window.sum()), X[:1] + 3, depth=1, boundary="constant"
    )
    assert sums.tolist() == [3]


@pytest.mark.parametrize("verb", ["map_blocks", "block_reduce", "parallel_map"])
def test_a_verb_passes_no_task(any_pool: shmpar.Pool, verb: str) -> None:
    """The error of a function with a parameter named task names the call that passes it."""
    assert text_of(TypeError, lambda: getattr(any_pool, verb)(with_task, X)) == (
        f"{verb}: the function cannot be called with 1 argument and kwargs=[]: missing a required "
        "argument: 'task'; write pool.submit(f, x), which alone passes a task"
    )


def test_a_keyword_that_the_function_lacks(any_pool: shmpar.Pool) -> None:
    """The error has the parameters of the function."""
    more: dict[str, Any] = {"kwargs": {"sigmas": 2}}
    assert text_of(TypeError, lambda: any_pool.map_blocks(with_keyword, X, **more)) == (
        "map_blocks: the function cannot be called with 1 argument and kwargs=['sigmas']: got an "
        "unexpected keyword argument 'sigmas'; it takes block, sigma"
    )


@pytest.mark.parametrize("name", ["extra_keywords", "extra_arguments"])
def test_keywords_of_scikit_image(any_pool: shmpar.Pool, name: str) -> None:
    """The error names kwargs=, and does not repeat the wrong name."""
    more: dict[str, Any] = {name: {"sigma": 2}}
    assert text_of(TypeError, lambda: any_pool.map_blocks(with_keyword, X, **more)) == (
        f"map_blocks() got an unexpected keyword argument {name!r}; did you mean kwargs=?"
    )


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("to_zarr", 'write out="result.zarr" in the verb'),
        ("store", "write out=target in the verb"),
        ("from_zarr", "write shmpar.open(path), and pass it to the verb"),
        ("imread", "write shmpar.open(path), and pass it to the verb"),
        ("scale", "write shmpar.Pool(n_workers): the number of workers is fixed"),
        ("workers", "write pool.n_workers"),
        ("Manager", "leave it out: workers share the arrays of pool.zeros(shape)"),
        ("Lock", "write pool.zeros(shape).lock"),
        ("kill", "write terminate()"),
        ("count_nonzero", "write pool.sum(x != 0)"),
        ("random", "name a parameter rng: pool.map_blocks(f, x) passes f a generator"),
        ("parallel_config", 'write joblib.parallel_config(backend="shmpar")'),
        ("apply_ufunc", "write pool.map_blocks(f, x), which keeps the names of a DataArray"),
        ("vectorize", "write pool.parallel_map(f, items)"),
    ],
)
def test_names_of_other_libraries(any_pool: shmpar.Pool, name: str, advice: str) -> None:
    """A pool and the module give the same advice."""
    assert text_of(AttributeError, lambda: getattr(any_pool, name)) == (
        f"Pool has no attribute {name!r}; {advice}"
    )
    assert text_of(AttributeError, lambda: getattr(shmpar, name)) == (
        f"module 'shmpar' has no attribute {name!r}; {advice}"
    )


@pytest.mark.parametrize("name", ["map", "submit", "starmap", "imap_unordered", "shutdown"])
def test_methods_of_a_pool_as_functions_of_the_module(name: str) -> None:
    """The error has the default pool, whose method it is."""
    assert text_of(AttributeError, lambda: getattr(shmpar, name)) == (
        f"module 'shmpar' has no attribute {name!r}; write shmpar.default_pool().{name}, or pool = "
        f"shmpar.Pool() and pool.{name}"
    )
