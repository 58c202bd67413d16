"""Names of other libraries on arrays, futures, stores and reports, and keywords of calls."""

from __future__ import annotations

import copy
import functools
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import shmpar


def text_of(error: type[Exception], call: Callable[[], object]) -> str:
    """The message of the error that a call raises."""
    with pytest.raises(error) as caught:
        call()
    return str(caught.value)


@pytest.fixture
def array() -> Iterator[Any]:
    with shmpar.ones((3, 4)) as made:
        yield made


@pytest.fixture
def store(tmp_path: Path) -> shmpar.Store:
    np.save(tmp_path / "x.npy", np.arange(6.0))
    return shmpar.opened(np.load, str(tmp_path / "x.npy"))


DONE = "leave it out: the values are here"
CHUNKS = "pass chunks= to the verb: an array has no chunks of its own"


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("compute", DONE),
        ("persist", DONE),
        ("to_numpy", DONE),
        ("get_obj", DONE),
        ("rechunk", CHUNKS),
        ("npartitions", CHUNKS),
        ("chunksize", CHUNKS),
        ("get_lock", "write with a.lock: ..."),
        ("unlink", "write close()"),
        ("shm", "write a.name, or a.address for another process"),
        ("map_blocks", "write pool.map_blocks(f, a)"),
        ("visualize", "write run.report.plot(), after run = pool.last_run"),
        ("to_zarr", 'write zarr.save(path, a), or out="result.zarr" in the verb'),
        ("median", "write np.median(a)"),
        ("sqrt", "write np.sqrt(a)"),
    ],
)
def test_names_on_an_array(array: Any, name: str, advice: str) -> None:
    """The error has the call to write, also for NumPy's functions as methods."""
    assert text_of(AttributeError, lambda: getattr(array, name)) == (
        f"SharedArray has no attribute {name!r}; {advice}"
    )


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("compute", "write result()"),
        ("gather", "write result()"),
        ("kill", "write cancel()"),
        ("state", "write done(), running() or cancelled()"),
        ("visualize", "write report.plot()"),
        ("to_zarr", "pass out=target to the verb"),
        ("to_frame", "write table().to_frame()"),
        ("errors", "write failed, the list of the errors"),
        ("as_completed", "write completed(), which yields results as they come"),
        ("retry", "write resume(), which computes the chunks that are not done"),
        ("mean", "write result().mean"),
        ("shape", "write result().shape"),
    ],
)
def test_names_on_a_run(any_pool: shmpar.Pool, name: str, advice: str) -> None:
    """The error has the call to write; a name of multiprocessing that means the same works."""
    run = any_pool.parallel_map(abs, [-1, 2], wait=False)
    assert run.get(60) == [1, 2]
    assert run.ready()
    assert text_of(AttributeError, lambda: getattr(run, name)) == (
        f"Run has no attribute {name!r}; {advice}"
    )


def test_a_future_has_no_items(any_pool: shmpar.Pool) -> None:
    """The error of an index, a loop or a sum names result(); a list of futures is an array."""
    for future in (any_pool.submit(abs, -1), any_pool.parallel_map(abs, [-1], wait=False)):
        sums = (lambda one: one + 1, lambda one: 2 * one, lambda one: np.ones(3) / one, float)
        for use in (lambda one: one[0], list, lambda one: 1 in one, *sums):
            text = text_of(TypeError, lambda use=use, one=future: use(one))  # type: ignore[misc]
            assert text.endswith("is a future, not its result: write result() first")
        assert np.array([future, future]).tolist() == [future, future]
        assert bool(future)
        future.result(60)


def test_names_on_a_store(store: shmpar.Store) -> None:
    """The error names the verb, and the call that reads all values."""
    assert text_of(AttributeError, lambda: store.mean) == (
        "Store has no attribute 'mean'; pass the store to a verb, as in pool.mean(store), or write "
        "store[...].mean"
    )
    assert text_of(AttributeError, lambda: store.compute) == (
        "Store has no attribute 'compute'; write store[...] for all values, or pass the store to a "
        "verb"
    )
    assert text_of(TypeError, lambda: np.sqrt(store)) == (
        f"np.sqrt: {store!r} is not read as a whole by mistake: write pool.map_blocks(np.sqrt, "
        "store), or np.sqrt(store[...]) for an array of 48 bytes"
    )
    uses: list[Callable[[], Any]] = [
        lambda: store + 1,
        lambda: np.ones(6) + store,
        lambda: 1 + store,
    ]
    for use in uses:
        assert "write pool.map_blocks(np.add, store, other)" in text_of(TypeError, use)
    assert "np.greater(store[...], other)" in text_of(TypeError, lambda: store > 1)
    same = pickle.loads(pickle.dumps(copy.copy(store)))
    assert store == store  # noqa: PLR0124
    assert store != same
    assert {store: 1}[store] == 1
    np.testing.assert_array_equal(same[...], np.arange(6.0))


def test_names_on_a_report(any_pool: shmpar.Pool) -> None:
    any_pool.map_blocks(abs, np.ones(4), chunks=2)
    assert any_pool.last_run is not None
    report = any_pool.last_run.report
    assert (
        text_of(AttributeError, lambda: report.show)
        == "Report has no attribute 'show'; write plot()"
    )
    assert text_of(AttributeError, lambda: report.to_html) == (
        "Report has no attribute 'to_html'; write plot().savefig(path), or to_perfetto(path)"
    )


PROTOCOLS = [
    "__array_interface__", "__array_struct__", "__cuda_array_interface__", "__dask_graph__",
    "__dataframe__", "__arrow_array__", "_ipython_display_", "_repr_mimebundle_", "_repr_png_",
    "_ipython_canary_method_should_not_exist_", "__jax_array__", "__torch_function__", "colour",
]  # fmt: skip


def test_protocols_are_looked_up_as_ever(
    array: Any, store: shmpar.Store, any_pool: shmpar.Pool
) -> None:
    """`hasattr`, copies and pickles work; no name of a protocol gets advice."""
    any_pool.submit(abs, 1).result(60)
    run = any_pool.map_blocks(abs, np.ones(4), wait=False)
    run.result(60)
    for one in (array, store, run, run.report, any_pool.submit(abs, 1)):
        for name in PROTOCOLS:
            if not hasattr(np.ndarray, name) or one is not array:
                assert not hasattr(one, name), name
        assert not hasattr(one, "compute")
        assert not hasattr(one, "dask")
        assert "compute" not in dir(one)
    assert hasattr(array, "__array_interface__")
    assert isinstance(copy.copy(array), np.ndarray)
    assert (copy.deepcopy(array) == array).all()
    assert (pickle.loads(pickle.dumps(array)) == array).all()
    assert pd.DataFrame(array).shape == (3, 4)
    assert isinstance(run._repr_html_(), str)
    assert isinstance(array._repr_html_(), str)


# Keywords of calls

CALLS: dict[str, Callable[..., Any]] = {
    "map": lambda pool, **more: pool.map(abs, [1], **more),
    "map_async": lambda pool, **more: pool.map_async(abs, [1], **more),
    "imap": lambda pool, **more: pool.imap(abs, [1], **more),
    "imap_unordered": lambda pool, **more: pool.imap_unordered(abs, [1], **more),
    "starmap": lambda pool, **more: pool.starmap(abs, [(1,)], **more),
    "starmap_async": lambda pool, **more: pool.starmap_async(abs, [(1,)], **more),
    "apply": lambda pool, **more: pool.apply(abs, (1,), **more),
    "apply_async": lambda pool, **more: pool.apply_async(abs, (1,), **more),
}


@pytest.mark.parametrize("method", CALLS)
def test_keywords_of_verbs_on_calls(any_pool: shmpar.Pool, method: str) -> None:
    """The error names parallel_map, the pool, or functools.partial for the function's own."""
    call = functools.partial(CALLS[method], any_pool)
    begin = f"{method}() got an unexpected keyword argument "
    assert text_of(TypeError, lambda: call(progress=True)) == (
        f"{begin}'progress'; parallel_map has it: write pool.parallel_map(f, items, progress=...)"
    )
    assert text_of(TypeError, lambda: call(n_jobs=2)) == (
        f"{begin}'n_jobs'; write shmpar.Pool(n_workers=...)"
    )
    assert text_of(TypeError, lambda: call(sigma=2)) == (
        f"{begin}'sigma'; for a keyword of the function write functools.partial(f, sigma=...)"
    )


def takes_progress(number: int, progress: bool) -> Any:
    return number, progress


def takes_all(number: int, **more: Any) -> Any:
    return number, more


@functools.wraps(abs)
def wrapped(*args: Any, **more: Any) -> Any:
    return args, more


def test_keywords_of_verbs_on_submit(any_pool: shmpar.Pool) -> None:
    """A keyword that the function takes is its own; of the others the error names the remedy."""
    for name in ("progress", "on_error", "retries", "task_timeout"):
        assert text_of(TypeError, lambda name=name: any_pool.submit(abs, 1, **{name: 1})) == (  # type: ignore[misc]
            f"submit: the function has no {name}=; parallel_map has it: write "
            f"pool.parallel_map(f, items, {name}=...)"
        )
    assert text_of(TypeError, lambda: any_pool.submit(abs, 1, timeout=3)) == (
        "submit: the function has no timeout=; write next(timeout) of the iterator, or "
        "result(timeout) of the future"
    )
    assert any_pool.submit(takes_progress, 1, progress=True).result(60) == (1, True)
    assert any_pool.submit(takes_all, 1, timeout=3).result(60) == (1, {"timeout": 3})
    assert any_pool.submit(wrapped, 1, retries=3).result(60) == ((1,), {"retries": 3})
    assert any_pool.submit(functools.partial(takes_all), 1, key="a").result(60) == (1, {"key": "a"})


def takes_a_tuple(*args: Any) -> Any:
    return args


def takes_by_position(key: Any, /) -> Any:
    return key


def test_parameters_that_take_no_keyword(any_pool: shmpar.Pool) -> None:
    """A parameter ``*args``, or one before a slash, does not take the keyword of its name."""
    assert text_of(TypeError, lambda: any_pool.submit(takes_a_tuple, args=(1, 2))) == (
        "submit: the function has no args=; pass the arguments of the function as they are, as in "
        "submit(f, x, key=1), or write pool.apply_async(f, args, kwds)"
    )
    assert text_of(TypeError, lambda: any_pool.submit(takes_by_position, key=1)) == (
        "submit: the function has no key=; leave it out: a future needs no name"
    )


def test_starmap_of_numbers(any_pool: shmpar.Pool) -> None:
    assert text_of(TypeError, lambda: any_pool.starmap(pow, [1, 2])) == (
        "starmap: an item is a int, not a tuple of arguments; for one argument write "
        "pool.map_async(f, items).get()"
    )


FRAME = pd.DataFrame({"v": [1.0, 2, 3], "w": [2.0, 3, 4]})


@pytest.mark.parametrize("function", [lambda row: row["v"], lambda row: row.v])
@pytest.mark.parametrize("verb", ["parallel_map", "map_blocks"])
def test_names_of_columns_in_rows(any_pool: shmpar.Pool, function: Any, verb: str) -> None:
    """The error names the calls that take a column; these work."""
    with pytest.raises(shmpar.ChunkError) as caught:
        getattr(any_pool, verb)(function, FRAME)
    assert str(caught.value).endswith(
        ". Blocks and rows are NumPy arrays, without the names of a DataFrame: take a column by "
        "its number, as in row[0], or for names write "
        'parallel_map(f, frame.to_dict("records"))'
    )
    assert any_pool.parallel_map(lambda row: row[0], FRAME).tolist() == [1, 2, 3]
    records = FRAME.to_dict("records")
    assert any_pool.parallel_map(lambda row: row["v"], records) == [1, 2, 3]


def test_items_are_given_no_advice_on_columns(any_pool: shmpar.Pool) -> None:
    """An item that is no row of an array has names of its own."""
    with pytest.raises(shmpar.ChunkError) as caught:
        any_pool.parallel_map(lambda item: np.ones(3)[item], ["a"])
    assert "DataFrame" not in str(caught.value)
