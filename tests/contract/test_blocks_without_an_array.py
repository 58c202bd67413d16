"""map_blocks without an array: the function makes blocks from their position."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import shmpar

quick = settings(
    max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)

LENGTHS = st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=4), min_size=1, max_size=3)


def table(block_id: Any, block_info: Any) -> Any:
    """The position of each element, times 100 for each axis, plus the number of the block."""
    position = block_info[None]["array-location"]
    blocks = block_info[None]["num-chunks"]
    values = np.zeros([stop - start for start, stop in position], int)
    for axis, (start, stop) in enumerate(position):
        along = np.arange(start, stop).reshape(-1, *[1] * (len(position) - axis - 1))
        values = values * 100 + along
    return values * 1000 + np.ravel_multi_index(block_id, blocks)


def whole_table(lengths: Any) -> Any:
    """The same by a loop over all elements."""
    shape = tuple(map(sum, lengths))
    block_of = [np.repeat(range(len(along)), along) for along in lengths]
    out = np.empty(shape, int)
    for place in itertools.product(*map(range, shape)):
        value = 0
        for index in place:
            value = value * 100 + index
        block = tuple(of[index] for of, index in zip(block_of, place, strict=True))
        out[place] = value * 1000 + np.ravel_multi_index(block, [len(one) for one in lengths])
    return out


@quick
@given(lengths=LENGTHS, spell=st.sampled_from([tuple, list]), dtype=st.sampled_from([None, "f8"]))
def test_the_shape_comes_from_the_chunks(
    pool: shmpar.Pool, lengths: Any, spell: Any, dtype: Any
) -> None:
    """chunks= has the length of every chunk along each axis."""
    got = pool.map_blocks(table, chunks=spell(map(tuple, lengths)), dtype=dtype)
    np.testing.assert_array_equal(got, whole_table(lengths))
    assert got.dtype == (dtype or int)


@quick
@given(lengths=LENGTHS, given_chunks=st.booleans())
def test_the_shape_comes_from_the_output(
    pool: shmpar.Pool, lengths: Any, given_chunks: bool
) -> None:
    """With out= any chunks do."""
    out = np.zeros(tuple(map(sum, lengths)), int)
    chunks = tuple(map(tuple, lengths)) if given_chunks else "auto"
    assert pool.map_blocks(table, chunks=chunks, out=out) is out
    expected = lengths if given_chunks else [(n,) for n in out.shape]
    np.testing.assert_array_equal(out, whole_table(expected))


def test_the_output_may_be_a_file_or_several(pool: shmpar.Pool, tmp_path: Any) -> None:
    """A path has no shape, so the chunks give it."""
    chunks = ((2, 1), (3,))
    got = pool.map_blocks(table, chunks=chunks, out=tmp_path / "a.npy")
    np.testing.assert_array_equal(got, whole_table(chunks))
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), whole_table(chunks))
    first, second = pool.map_blocks(lambda: (np.zeros(2), np.ones(2, int)), chunks=((2, 2),))
    assert (first.tolist(), second.tolist()) == ([0] * 4, [1] * 4)


def test_scalars_are_passed_beside_nothing(pool: shmpar.Pool) -> None:
    """Constants, types and names come first; there is no block."""

    def arange(dtype: Any, step: Any, name: Any, block_info: Any) -> Any:
        assert name == "n"
        (start, stop) = block_info[None]["array-location"][0]
        return np.arange(start, stop, dtype=dtype) * step

    got = pool.map_blocks(arange, np.float32, 2, "n", chunks=((5, 3),))
    np.testing.assert_array_equal(got, np.arange(8) * 2)
    assert got.dtype == np.float32


def test_random_numbers_do_not_depend_on_the_workers(pool: shmpar.Pool) -> None:
    """The streams are those of the chunks."""
    got = pool.map_blocks(lambda rng: rng.normal(size=3), chunks=((3, 3),), seed=5)
    streams = map(np.random.default_rng, np.random.SeedSequence(5).spawn(2))
    np.testing.assert_array_equal(got, np.concatenate([one.normal(size=3) for one in streams]))


def test_all_options_hold(pool: shmpar.Pool, tmp_path: Any) -> None:
    """Axes, ledgers, wait=False, pass_out and the report."""
    chunks = ((2, 1), (3,))
    got = pool.map_blocks(
        lambda block_info: np.stack([np.zeros(block_info[None]["chunk-shape"])] * 2),
        chunks=chunks, new_axis=0,
    )  # fmt: skip
    assert got.shape == (2, 3, 3)
    files = {"out": tmp_path / "a.npy", "ledger": tmp_path / "a.ledger"}
    for _ in range(2):
        run = pool.map_blocks(table, chunks=chunks, wait=False, **files)
        np.testing.assert_array_equal(run.result(), whole_table(chunks))
    assert "map_blocks(table)" in str(run.report)

    def fill(out: Any, block_id: Any) -> None:
        out[...] = block_id[0]

    got = pool.map_blocks(fill, chunks=chunks, dtype=int, pass_out=True)
    assert got[:, 0].tolist() == [0, 0, 1]


def test_checked_calls_need_no_input() -> None:
    """check=True looks at the windows alone."""
    with shmpar.Pool(1, engine="serial", check=True) as pool:
        got = pool.map_blocks(table, chunks=((2, 1), (3,)))
    np.testing.assert_array_equal(got, whole_table(((2, 1), (3,))))


@pytest.mark.parametrize("chunks", ["auto", 3, (3, 3), ((3,), 3), ()], ids=str)
def test_without_a_shape_the_call_is_refused(pool: shmpar.Pool, chunks: Any) -> None:
    """The error shows the two ways to give a shape."""
    with pytest.raises(
        TypeError, match=r"at least one array, or chunks= .* \(\(4, 4\), .* or out="
    ):
        pool.map_blocks(table, chunks=chunks)


@pytest.mark.parametrize("verb", ["map_overlap", "block_reduce"])
def test_other_verbs_need_an_array(pool: shmpar.Pool, verb: str) -> None:
    """A halo and a value need a block."""
    keywords = {"depth": 1} if verb == "map_overlap" else {}
    with pytest.raises(TypeError, match=rf"{verb}\(\) needs at least one array$"):
        getattr(pool, verb)(table, chunks=((3,),), **keywords)


@pytest.mark.parametrize(
    ("chunks", "out", "error", "match"),
    [
        (((3, 0),), None, ValueError, "chunk 1 would have 0 elements"),
        (((3, 1.5),), None, TypeError, "1.5 is a float"),
        (((3, 3),), np.zeros(7), ValueError, r"has shape \(7,\); the results make .* \(6,\)"),
        (((3, 3),), np.zeros((6, 2)), ValueError, r"\(6, 2\); the results make"),
    ],
)
def test_chunks_that_do_not_fit_are_refused(
    pool: shmpar.Pool, chunks: Any, out: Any, error: type[Exception], match: str
) -> None:
    """The errors are those of any chunks, and of any output."""
    with pytest.raises(error, match=match):
        pool.map_blocks(table, chunks=chunks, out=out)


def test_a_block_has_the_length_of_its_chunk(pool: shmpar.Pool) -> None:
    """An axis in one chunk has no other length either, since no input could give it."""
    with pytest.raises(shmpar.ChunkError, match=r"shape \(4,\) where \(3,\) is due; .*out_chunks="):
        pool.map_blocks(lambda: np.zeros(4), chunks=((3,),))
    got = pool.map_blocks(lambda: np.zeros(4), chunks=((3,),), out_chunks=4)
    assert got.shape == (4,)


def test_a_function_of_a_block_is_refused(pool: shmpar.Pool) -> None:
    """The signature is checked before anything starts."""
    with pytest.raises(TypeError, match="cannot be called with 0 arguments"):
        pool.map_blocks(lambda block: block, chunks=((3,),))
