"""Verbs equal naive implementations, on every engine."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import shmpar
from tests import naive_verbs as naive

quick = settings(
    max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)

DTYPES = [
    "?",
    "u1",
    "i4",
    ">i4",
    "f2",
    "f4",
    "f8",
    ">f8",
    "c8",
    "c16",
    "U3",
    "S2",
    "M8[s]",
    "m8[ms]",
]


@st.composite
def cut_arrays(draw: st.DrawFn) -> tuple[np.ndarray, tuple[int, ...]]:
    """An array of up to three axes with chunks for it."""
    shape = draw(st.lists(st.integers(1, 9), min_size=1, max_size=3))
    chunks = tuple(draw(st.integers(1, 10)) for _ in shape)
    dtype = draw(st.sampled_from(["i4", "f8", "c16", ">f4", "u1"]))
    values = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    return (np.asfortranarray(values) if draw(st.booleans()) else values), chunks


@quick
@given(case=cut_arrays())
def test_map_blocks_equals_the_loop(pool: shmpar.Pool, case: tuple[Any, Any]) -> None:
    """Each block is placed at its position, for every grid."""
    array, chunks = case
    result = pool.map_blocks(lambda block: block * 2, array, chunks=chunks)
    np.testing.assert_array_equal(result, naive.map_blocks(lambda b: b * 2, array, chunks))
    assert result.dtype == (array * 2).dtype
    assert type(result) is np.ndarray


@quick
@given(case=cut_arrays())
def test_block_reduce_equals_the_loop(pool: shmpar.Pool, case: tuple[Any, Any]) -> None:
    """Each block's value is at the block's index, and a tuple is several outputs."""
    array, chunks = case
    total, edge = pool.block_reduce(lambda b: (b.sum(), np.array(b.shape)), array, chunks=chunks)
    np.testing.assert_array_equal(total, naive.block_reduce(np.sum, array, chunks))
    np.testing.assert_array_equal(edge, naive.block_reduce(np.shape, array, chunks))


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_parallel_map_gives_rows_along_an_axis(pool: shmpar.Pool, image: Any, axis: int) -> None:
    """Rows are taken along the axis, and results are stacked along the first."""
    result = pool.parallel_map(lambda row: row[:3] + 1, image, axis=axis)
    np.testing.assert_array_equal(result, [r[:3] + 1 for r in np.moveaxis(image, axis, 0)])


def test_parallel_map_takes_several_arrays_and_iterables(pool: shmpar.Pool) -> None:
    """Arrays give rows and any other iterable its items, side by side."""
    names = (name for name in ["a", "bc", "def"])
    got = pool.parallel_map(lambda row, name: row.sum() + len(name), np.eye(3), names)
    np.testing.assert_array_equal(got, [2.0, 3.0, 4.0])


def test_parallel_map_of_none_returns_a_list(pool: shmpar.Pool, tmp_path: Any) -> None:
    """A function called for its effect gives None for each item."""
    paths = [tmp_path / f"{number}" for number in range(5)]
    assert pool.parallel_map(lambda path: path.touch(), paths) == [None] * 5
    assert sorted(os.listdir(tmp_path)) == ["0", "1", "2", "3", "4"]


def test_objects_are_collected_with_dtype_object(pool: shmpar.Pool, image: Any) -> None:
    """block_reduce and parallel_map collect any objects, in their places."""
    found = pool.block_reduce(lambda b: {"n": b.size}, image, chunks=(20, 20), dtype=object)
    assert found.shape == (2, 2)
    assert [one["n"] for one in found.flat] == [400, 60, 340, 51]
    listed = pool.parallel_map(lambda n: [n] * n, range(4), dtype=object)
    assert listed.tolist() == [[], [1], [2, 2], [3, 3, 3]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_plain_dtype_passes(pool: shmpar.Pool, dtype: str) -> None:
    """Values of every dtype without Python objects arrive and come back as they were."""
    array = np.arange(12).astype(dtype).reshape(3, 4)
    result = pool.map_blocks(lambda block: block.copy(), array, chunks=2)
    assert result.dtype == array.dtype
    np.testing.assert_array_equal(result, array)


def test_structured_arrays_pass(pool: shmpar.Pool) -> None:
    """Fields, aligned and nested, survive."""
    dtype = np.dtype([("x", "u1"), ("y", "f8", (2,))], align=True)
    array = np.zeros((4, 4), dtype)
    array["y"] = np.arange(32).reshape(4, 4, 2)
    result = pool.map_blocks(lambda block: block.copy(), array, chunks=(2, 3))
    assert result.dtype == dtype
    np.testing.assert_array_equal(result["y"], array["y"])


def test_inputs_broadcast_and_constants_pass(pool: shmpar.Pool, image: Any) -> None:
    """A row, a column and a number meet each block as NumPy's broadcasting has it."""
    row, column = np.arange(23.0), np.arange(37.0)[:, None]

    def combine(block: Any, across: Any, down: Any, factor: float) -> Any:
        assert across.shape[-1] == block.shape[1]
        return (block + across + down) * factor

    got = pool.map_blocks(combine, image, row, column, 3.0, chunks=(10, 7))
    np.testing.assert_array_equal(got, (image + row + column) * 3.0)


def test_length_one_axes_arrive_whole(pool: shmpar.Pool) -> None:
    """An axis of length one is not cut, where the other input is."""
    got = pool.map_blocks(lambda a, b: a + b.shape[0], np.zeros((6, 2)), np.ones((1, 2)), chunks=3)
    np.testing.assert_array_equal(got, np.ones((6, 2)))


def test_results_are_cast_as_a_ufunc_casts(pool: shmpar.Pool, image: Any) -> None:
    """dtype= declares the result; values of the same kind are cast to it."""
    got = pool.map_blocks(lambda block: block, image, chunks=10, dtype="f4")
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, image.astype("f4"))
    with pytest.raises(shmpar.ChunkError, match=r"float64.*int32"):
        pool.map_blocks(lambda block: block, image, chunks=10, dtype="i4")


def test_python_numbers_take_the_declared_dtype(pool: shmpar.Pool) -> None:
    """A Python int fits a declared integer if it is in bounds."""
    assert pool.parallel_map(lambda n: n, range(3), dtype="u1").dtype == np.uint8
    with pytest.raises(shmpar.ChunkError, match="300"):
        pool.parallel_map(lambda n: 300, range(3), dtype="u1")


def test_out_is_filled_and_returned(pool: shmpar.Pool, image: Any) -> None:
    """out= may be plain, strided, shared or a mapped file; the verb returns that object."""
    for out in (np.empty((37, 23)), np.empty((37, 46))[:, ::2], pool.empty((37, 23))):
        assert pool.map_blocks(lambda block: -block, image, chunks=10, out=out) is out
        np.testing.assert_array_equal(out, -image)


def test_out_of_a_mapped_file_is_written_in_the_file(
    pool: shmpar.Pool, image: Any, tmp_path: Any
) -> None:
    """An np.memmap as output reaches the disk."""
    out = np.lib.format.open_memmap(tmp_path / "out.npy", "w+", "f8", image.shape)
    assert pool.map_blocks(lambda block: -block, image, chunks=10, out=out) is out
    del out
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), -image)


def test_several_outputs_take_several_arrays(pool: shmpar.Pool, image: Any) -> None:
    """out=(a, b) have shapes and dtypes of their own."""
    means, counts = np.empty((4, 3), "f4"), pool.empty((4, 3), "i8")
    got = pool.block_reduce(
        lambda b: (b.mean(), b.size), image, chunks=(10, 10), out=(means, counts)
    )
    assert got[0] is means
    assert got[1] is counts
    assert counts.sum() == image.size
    np.testing.assert_array_equal(means, naive.block_reduce(np.mean, image, (10, 10)).astype("f4"))


def test_in_place_the_output_is_the_input(pool: shmpar.Pool, image: Any) -> None:
    """The very input as out= is allowed in map_blocks and parallel_map."""
    shared = pool.array(image)
    assert pool.map_blocks(lambda block: block + 1, shared, chunks=10, out=shared) is shared
    np.testing.assert_array_equal(shared, image + 1)
    plain = image.copy()
    pool.parallel_map(lambda row: row * 2, plain, out=plain)
    np.testing.assert_array_equal(plain, image * 2)


@pytest.mark.parametrize("share", [False, True])
def test_several_outputs_in_place_are_those_of_the_old_values(
    pool: shmpar.Pool, share: bool
) -> None:
    """The old values count, also if the function returns the blocks that it got."""

    def made() -> tuple[Any, Any]:
        x, y = np.arange(12.0).reshape(4, 3), np.arange(12.0).reshape(4, 3) * 10
        return (pool.array(x), pool.array(y)) if share else (x, y)

    swap = lambda one, other: (other, one)
    first, second = made()
    pool.map_blocks(swap, first, second, out=(first, second), chunks=2)
    np.testing.assert_array_equal([second, first], made())
    pool.parallel_map(swap, first, second, out=(first, second))
    np.testing.assert_array_equal([first, second], made())
    pool.map_blocks(lambda one, _: (one + 1, one), first, second, out=(first, second), chunks=2)
    np.testing.assert_array_equal([first - 1, second], [made()[0]] * 2)


def test_named_tuples_are_several_outputs(pool: shmpar.Pool) -> None:
    """Functions of NumPy's linear algebra return named tuples."""
    matrices = np.random.default_rng(0).normal(size=(4, 3, 3))
    sign, logarithm = pool.parallel_map(np.linalg.slogdet, matrices)
    expected = np.linalg.slogdet(matrices)
    np.testing.assert_array_equal(sign, expected.sign)
    np.testing.assert_allclose(logarithm, expected.logabsdet)
    values, vectors = pool.parallel_map(np.linalg.eigh, matrices, dtype=(float, "f4"))
    assert (values.shape, vectors.shape, vectors.dtype) == ((4, 3), (4, 3, 3), np.float32)
    both = pool.map_overlap(
        lambda w: np.linalg.slogdet(np.eye(2))._replace(sign=w, logabsdet=-w),
        np.arange(6.0),
        depth=1,
        chunks=2,
    )
    np.testing.assert_array_equal(both, [np.arange(6.0), -np.arange(6.0)])


@pytest.mark.parametrize("verb", ["map_blocks", "map_overlap", "block_reduce"])
def test_a_forgotten_return_is_an_error(pool: shmpar.Pool, image: Any, verb: str) -> None:
    """Only functions of parallel_map may return None."""
    more = {"depth": 1} if verb == "map_overlap" else {}
    with pytest.raises(shmpar.ChunkError, match="returned None where a value is due"):
        getattr(pool, verb)(lambda block: None, image, chunks=20, **more)
    assert pool.parallel_map(lambda row: None, image) is None


def test_blocks_are_read_only(pool: shmpar.Pool, image: Any) -> None:
    """Writing to a block is an error that names the remedy, and changes nothing."""
    shared = pool.array(image)

    def spoil(block: Any) -> Any:
        block[0, 0] = 99
        return block

    with pytest.raises(shmpar.ChunkError, match=r"block\.copy\(\)"):
        pool.map_blocks(spoil, shared, chunks=10)
    np.testing.assert_array_equal(shared, image)


def test_axes_are_dropped_and_added(pool: shmpar.Pool, image: Any) -> None:
    """drop_axis takes away an axis that is whole; new_axis adds one."""
    got = pool.map_blocks(lambda b: b.sum(1), image, chunks=(10, -1), drop_axis=1)
    np.testing.assert_allclose(got, image.sum(1))
    got = pool.map_blocks(lambda b: np.stack([b, -b]), image, chunks=10, new_axis=0)
    np.testing.assert_array_equal(got, np.stack([image, -image]))
    with pytest.raises(ValueError, match=r"chunks=\{1: -1\}"):
        pool.map_blocks(lambda b: b.sum(1), image, chunks=10, drop_axis=1)


def test_blocks_may_change_their_size(pool: shmpar.Pool) -> None:
    """Blocks may have any length along a whole axis, and else the lengths in out_chunks."""
    array = np.arange(24.0).reshape(4, 6)
    got = pool.map_blocks(lambda b: b[:, ::2], array, chunks=(2, -1))
    np.testing.assert_array_equal(got, array[:, ::2])
    got = pool.map_blocks(lambda b: b[::2], array, chunks=(2, 3), out_chunks=(1, 3))
    np.testing.assert_array_equal(got, array[::2])


def test_arrays_without_axes_are_one_chunk(pool: shmpar.Pool) -> None:
    """A 0-d array gives a scalar."""
    assert pool.map_blocks(lambda block: block + 1, np.array(3)) == 4


@pytest.mark.parametrize("shape", [(0,), (0, 5), (5, 0)])
def test_arrays_without_elements_give_empty_results(pool: shmpar.Pool, shape: Any) -> None:
    """No chunk, no call: the result is empty and of the right shape."""
    array = np.empty(shape, "f4")
    assert pool.map_blocks(lambda block: 1 / 0, array, dtype="f4").shape == shape
    assert pool.block_reduce(lambda block: 1 / 0, array, chunks=2, dtype="i2").dtype == np.int16
    assert pool.block_reduce(lambda block: 1 / 0, array, chunks=2, dtype="i2").size == 0
    assert pool.parallel_map(lambda item: 1 / 0, [], dtype=float).shape == (0,)


def test_rows_without_elements_are_still_rows(pool: shmpar.Pool) -> None:
    """Ten rows without elements are ten calls."""
    np.testing.assert_array_equal(pool.parallel_map(np.sum, np.empty((10, 0))), np.zeros(10))


def test_a_function_gets_block_id_and_block_info(pool: shmpar.Pool, image: Any) -> None:
    """block_id and block_info are passed to a function that names them."""

    def where(block: Any, block_id: Any, block_info: Any) -> Any:
        (low, _), (left, _) = block_info[0]["array-location"]
        assert block_info[None]["chunk-location"] == block_id
        return np.array([*block_id, low, left])

    got = pool.block_reduce(where, image, chunks=(10, 20))
    np.testing.assert_array_equal(got[3, 1], [3, 1, 30, 20])


def test_a_function_of_rows_may_ask_too(pool: shmpar.Pool) -> None:
    """Argument 0 of block_info describes the row."""

    def where(row: Any, item: Any, block_info: Any) -> Any:
        info = block_info[0]
        assert (info["shape"], info["num-chunks"]) == ((5, 3), (5, 1))
        assert (info["chunk-location"], info["dtype"]) == ((item, 0), row.dtype)
        assert set(block_info) == {0, None}
        return info["array-location"]

    got = pool.parallel_map(where, np.ones((5, 3)), range(5))
    np.testing.assert_array_equal(got[3], [(3, 4), (0, 3)])


def test_a_window_that_is_padded_begins_before_the_array(pool: shmpar.Pool) -> None:
    """The entry of block_info has the shape of the argument."""

    def where(window: Any, block_info: Any) -> Any:
        ((start, stop),) = block_info[0]["array-location"]
        assert stop - start == window.shape[0]
        return np.array([start, stop])

    array = np.arange(9)
    got = pool.block_reduce(where, array, chunks=4, depth=2, boundary="wrap")
    assert got.tolist() == [[-2, 6], [2, 10], [6, 11]]
    got = pool.block_reduce(where, array, chunks=4, depth=2)
    assert got.tolist() == [[0, 6], [2, 9], [6, 9]]


def test_random_streams_depend_on_the_seed_alone(pool: shmpar.Pool, image: Any) -> None:
    """Each chunk has its own stream, equal on all engines; seed=None is recorded."""

    def noise(block: Any, rng: np.random.Generator) -> Any:
        return rng.normal(size=block.shape)

    got = pool.map_blocks(noise, image, chunks=10, seed=5)
    np.testing.assert_array_equal(got, naive.noise(image.shape, (10, 10), 5))
    first = pool.map_blocks(noise, image, chunks=10)
    again = pool.map_blocks(noise, image, chunks=10, seed=pool.last_run.report.seed)
    np.testing.assert_array_equal(first, again)


def test_captured_arrays_are_the_functions_own(pool: shmpar.Pool, image: Any) -> None:
    """A large array in a closure arrives with its values; a changed global is seen."""
    table = np.arange(50_000.0)
    assert pool.block_reduce(lambda b: table[-1], image, chunks=40)[0, 0] == 49_999
    table[-1] = 7
    assert pool.block_reduce(lambda b: table[-1], image, chunks=40)[0, 0] == 7


def test_captured_shared_arrays_stay_shared(pool: shmpar.Pool) -> None:
    """A SharedArray that the function holds is the same memory, and .lock protects it."""
    total = pool.zeros(1)

    def add(n: int) -> None:
        with total.lock:
            total[0] += n

    pool.parallel_map(add, range(101))
    assert total[0] == 5050


def test_nested_calls_run_in_the_worker(pool: shmpar.Pool, image: Any) -> None:
    """A call inside a worker gives the same result on any pool."""

    def nested(block: Any) -> Any:
        return shmpar.block_reduce(np.sum, block, chunks=-1)[0, 0] + len(
            pool.parallel_map(np.sum, block)
        )

    got = pool.block_reduce(nested, image, chunks=(10, 23))
    np.testing.assert_allclose(
        got[:, 0], [image[i : i + 10].sum() + len(image[i : i + 10]) for i in range(0, 37, 10)]
    )


def test_results_are_inputs_without_a_copy(pool: shmpar.Pool, image: Any) -> None:
    """A result lies in shared memory, and stays valid."""
    first = pool.map_blocks(lambda block: block + 1, image, chunks=10)
    second = pool.map_blocks(lambda block: block * 2, first, chunks=10)
    np.testing.assert_array_equal(second, (image + 1) * 2)
    assert np.shares_memory(shmpar.asarray(first), first)


def test_progress_counts_chunks_and_ends_complete(pool: shmpar.Pool, image: Any) -> None:
    """The observer gets (done, total) at the end at the latest."""
    seen: list[tuple[int, int]] = []
    pool.map_blocks(np.negative, image, chunks=10, progress=lambda *at: seen.append(at))
    assert seen[-1] == (12, 12)
    assert sorted(seen) == seen


def test_progress_true_draws_a_bar(pool: shmpar.Pool, image: Any, capsys: Any) -> None:
    """The bar has the label, the count and the unit, and is closed."""
    pool.map_blocks(np.negative, image, chunks=10, progress="negating")
    drawn = capsys.readouterr().err
    assert "negating: 100%" in drawn
    assert "12/12" in drawn
    assert "chunk" in drawn


def test_wait_false_returns_a_future(pool: shmpar.Pool, image: Any) -> None:
    """A run is a concurrent.futures.Future with progress, out and a report."""
    run = pool.map_blocks(np.negative, image, chunks=10, wait=False)
    np.testing.assert_array_equal(run.result(timeout=60), -image)
    assert isinstance(run, shmpar.Run)
    assert run.done()
    assert run.progress == (12, 12)
    assert run.report.chunks == 12
    assert pool.last_run is run


def test_many_runs_in_flight_do_not_mix(pool: shmpar.Pool, image: Any) -> None:
    """Runs share the workers without mixing their results."""
    with shmpar.Pool(2, engine=pool.engine) as own:
        runs = [
            own.map_blocks(lambda block, n=n: block + n, image, chunks=(7, 11), wait=False)
            for n in range(10)
        ]
        for number, run in enumerate(runs):
            np.testing.assert_array_equal(run.result(timeout=60), image + number)


def test_the_default_pool_serves_the_modules_verbs() -> None:
    """shmpar.map_blocks and the other functions use the default pool."""
    from shmpar.defaults import default_pool

    with default_pool():
        np.testing.assert_array_equal(shmpar.map_blocks(np.negative, np.arange(4)), -np.arange(4))
        np.testing.assert_array_equal(shmpar.parallel_map(len, ["a", "bb"]), [1, 2])
        assert shmpar.block_reduce(np.sum, np.ones(8), chunks=4).tolist() == [4.0, 4.0]
