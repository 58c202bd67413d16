"""Keywords that a verb does not have: the error names the right one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import shmpar

X = np.arange(6.0)


def same(block: Any) -> Any:
    return block


@pytest.mark.parametrize(
    ("verb", "name", "advice"),
    [
        ("map_blocks", "chunksize", "did you mean chunks="),
        ("map_blocks", "chunk", "did you mean chunks="),
        ("map_blocks", "block_size", "did you mean chunks="),
        ("map_blocks", "dropaxis", "did you mean drop_axis="),
        ("map_blocks", "timeout", "did you mean task_timeout="),
        ("map_blocks", "fillvalue", "did you mean fill_value="),
        ("map_blocks", "retry", "did you mean retries="),
        ("map_blocks", "resume", "did you mean ledger="),
        ("map_blocks", "n_jobs", r"a pool has it: shmpar\.Pool\(n_workers=\.\.\.\)"),
        ("map_blocks", "backend", r"a pool has it: shmpar\.Pool\(engine=\.\.\.\)"),
        ("map_blocks", "depth", "block_reduce and map_overlap take depth="),
        ("map_blocks", "axis", "parallel_map takes axis="),
        ("map_blocks", "trim", "map_overlap takes trim="),
        ("map_overlap", "boundry", "did you mean boundary="),
        ("map_overlap", "deph", "did you mean depth="),
        ("block_reduce", "axis", "parallel_map takes axis="),
        ("parallel_map", "chunks", "map_overlap take chunks="),
        ("parallel_map", "axes", "did you mean axis="),
        ("sum", "keep_dims", "did you mean keepdims="),
        ("sum", "chunksize", "did you mean chunks="),
        ("sum", "dim", "did you mean axis="),
        ("parallel_map", "dim", "did you mean axis="),
        ("sum", "out", "beside its own a reduction takes progress, on_error"),
        ("var", "dof", "did you mean ddof="),
        ("histogram", "bin", "did you mean bins="),
        ("histogram", "n_jobs", r"shmpar\.Pool\(n_workers"),
    ],
)
def test_the_error_names_the_keyword_that_was_meant(
    any_pool: shmpar.Pool, verb: str, name: str, advice: str
) -> None:
    """It names a keyword of the verb, of another verb, or of the pool."""
    arguments = (X,) if verb in {"sum", "var", "histogram"} else (same, X)
    needed: dict[str, Any] = {"depth": 1} if verb == "map_overlap" and name != "deph" else {}
    expected = rf"^{verb}\(\) got an unexpected keyword argument '{name}'; .*{advice}"
    with pytest.raises(TypeError, match=expected) as caught:
        getattr(any_pool, verb)(*arguments, **needed, **{name: 3})
    assert "kwargs={" not in str(caught.value)


def test_a_keyword_like_none_of_them_goes_to_the_function(any_pool: shmpar.Pool) -> None:
    """Without a name that is close, the advice is kwargs alone."""
    with pytest.raises(TypeError) as caught:
        any_pool.map_blocks(same, X, sigma=3)
    assert str(caught.value) == (
        "map_blocks() got an unexpected keyword argument 'sigma'; keyword arguments for the "
        "function go into kwargs={'sigma': 3}"
    )


@pytest.mark.parametrize("name", ["size", "axis", "chunksize"])
def test_a_keyword_of_the_function_itself(any_pool: shmpar.Pool, name: str) -> None:
    """A name that both may mean is explained for both."""
    space: dict[str, Any] = {}
    exec(f"def function(block, {name}=1): return block", space)  # noqa: S102 - a name per case
    with pytest.raises(TypeError) as caught:
        any_pool.map_blocks(space["function"], X, **{name: 3})
    due = "parallel_map takes axis=" if name == "axis" else "did you mean chunks=?"
    assert due in str(caught.value)
    assert str(caught.value).endswith(f"go into kwargs={{'{name}': 3}}")


@pytest.mark.parametrize("depth", [3, np.int64(3)])
def test_a_depth_without_its_name(any_pool: shmpar.Pool, depth: Any) -> None:
    """map_overlap(f, x, 3) says depth=3."""
    with pytest.raises(TypeError, match=r"map_overlap\(\) needs depth=.* write depth=3$"):
        any_pool.map_overlap(same, X, depth)
    with pytest.raises(TypeError, match=r"map_overlap\(\) needs depth=, the elements of the halo$"):
        any_pool.map_overlap(same, X)


def test_a_seed_without_a_generator(any_pool: shmpar.Pool) -> None:
    """A function that names no rng would give the same numbers, or others, whatever the seed is."""
    calls: list[tuple[Any, dict[str, Any]]] = [
        (same, {}),
        (np.negative, {}),
        (lambda block, rng: block, {"kwargs": {"rng": 1}}),
    ]
    for func, keywords in calls:
        with pytest.raises(TypeError, match="name a parameter of the function rng"):
            any_pool.map_blocks(func, X, seed=0, **keywords)
        assert any_pool.map_blocks(func, X, seed=None, **keywords).shape == X.shape


def test_a_fill_value_that_fills_nothing(any_pool: shmpar.Pool) -> None:
    """It needs on_error="fill", of the call or of the pool."""
    for verb in (any_pool.map_blocks, any_pool.parallel_map):
        with pytest.raises(ValueError, match=r'fill_value= .* pass on_error="fill" too'):
            verb(same, X, fill_value=0)
    with pytest.raises(ValueError, match="fill_value="):
        any_pool.sum(X, fill_value=0)
    assert any_pool.sum(X, fill_value=None) == X.sum()
    with shmpar.Pool(1, engine="serial", on_error="fill") as pool:
        assert pool.sum(X, fill_value=0) == X.sum()


def test_names_of_keywords_that_are_no_text(any_pool: shmpar.Pool) -> None:
    """The error names them all."""
    with pytest.raises(TypeError, match=r"kwargs=\[1, 'a'\]: keywords must be strings"):
        any_pool.map_blocks(np.clip, X, kwargs={1: 2, "a": 3})


@pytest.mark.parametrize(
    ("keywords", "match"),
    [
        ({"out": ()}, "an empty tuple; pass an entry per output"),
        ({"dtype": ()}, "an empty tuple; pass an entry per output"),
        ({"dtype": "(2,)f4"}, "adds axes; pass dtype=float32"),
        ({"dtype": [("a", "O")]}, "need dtype=object alone"),
        ({"dtype": ("O", "f4")}, "need dtype=object alone"),
    ],
)
def test_outputs_that_nothing_can_have(any_pool: shmpar.Pool, keywords: Any, match: str) -> None:
    """The error comes before anything starts."""
    before = any_pool.last_run
    with pytest.raises((TypeError, ValueError), match=match):
        any_pool.block_reduce(np.copy, X, **keywords)
    assert any_pool.last_run is before
