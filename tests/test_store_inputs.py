"""A verb over an array in a store gives the bytes of the same call on the array in memory."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

zarr = pytest.importorskip("zarr")
pytest.importorskip("h5py")
pytest.importorskip("tifffile")
pytest.importorskip("xarray")
pytest.importorskip("dask")

import shmpar  # noqa: E402
from shmpar.stores.store import Part  # noqa: E402
from tests import store_formats  # noqa: E402
from tests.store_formats import FORMATS  # noqa: E402

BOUNDARIES = ("none", "reflect", "mirror", "nearest", "periodic", 3)

# Why so few: each example writes files. The stress test below draws more.
quick = settings(
    max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
many = settings(
    max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)


@pytest.fixture
def folder() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as made:
        yield made


def assert_same(got: Any, due: Any) -> None:
    """Compare results bit by bit, with their shapes and dtypes."""
    assert isinstance(got, tuple) == isinstance(due, tuple)
    parts = got if isinstance(got, tuple) else (got,)
    for one, other in zip(parts, due if isinstance(due, tuple) else (due,), strict=True):
        one, other = np.asarray(one), np.asarray(other)  # noqa: PLW2901 - as arrays
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        assert one.tobytes() == other.tobytes()


@st.composite
def cases(draw: st.DrawFn) -> tuple[Any, ...]:
    """An array of floats, whose sums depend on their order, with a unit and chunks."""
    shape = tuple(draw(st.lists(st.integers(1, 11), min_size=1, max_size=3)))
    unit = tuple(draw(st.integers(1, 6)) for _ in shape)
    chunks = tuple(draw(st.integers(1, 12)) for _ in shape)
    x = np.random.default_rng(draw(st.integers(0, 99))).normal(size=shape).astype("f4")
    return x, unit, chunks, draw(st.sampled_from(sorted(FORMATS)))


def stencil(window: np.ndarray) -> np.ndarray:
    """A function of the window as a whole, that depends on the order of additions."""
    return window * window.sum() + window.mean(axis=0)


halos = st.lists(st.integers(0, 4), min_size=6, max_size=6)


@quick
@given(case=cases(), depths=halos, data=st.data())
def test_halos_of_stores(pool: shmpar.Pool, case: Any, depths: Any, data: Any) -> None:
    """Windows with a halo are those of the array in memory, for every boundary and unit."""
    compare_halos(pool, case, depths, data)


@pytest.mark.stress
@many
@given(case=cases(), depths=halos, data=st.data())
def test_many_halos_of_stores(pool: shmpar.Pool, case: Any, depths: Any, data: Any) -> None:
    """So are those of many more arrays."""
    compare_halos(pool, case, depths, data)


def compare_halos(pool: shmpar.Pool, case: Any, depths: Any, data: Any) -> None:
    """Compare windows of a store and of the array in memory."""
    x, unit, chunks, name = case
    depth = tuple((depths[k], depths[k + 3]) for k in range(x.ndim))
    boundary = tuple(data.draw(st.sampled_from(BOUNDARIES)) for _ in x.shape)
    how = {"depth": depth, "boundary": boundary, "chunks": chunks}
    with tempfile.TemporaryDirectory() as folder:
        store = FORMATS[name](folder, x, unit)
        assert_same(pool.map_overlap(stencil, store, **how), pool.map_overlap(stencil, x, **how))


@quick
@given(case=cases(), axis=st.integers(-3, 2))
def test_blocks_and_rows_of_stores(pool: shmpar.Pool, case: Any, axis: int) -> None:
    """Blocks, rows along any axis, reductions and mixed inputs are those of the array in memory."""
    compare_blocks(pool, case, axis)


@pytest.mark.stress
@many
@given(case=cases(), axis=st.integers(-3, 2))
def test_many_blocks_and_rows(pool: shmpar.Pool, case: Any, axis: int) -> None:
    """So are those of many more arrays."""
    compare_blocks(pool, case, axis)


def compare_blocks(pool: shmpar.Pool, case: Any, axis: int) -> None:
    """Compare blocks and rows of a store and of the array in memory."""
    x, unit, chunks, name = case
    axis %= x.ndim
    last = x[..., :1]  # broadcast, and in memory
    with tempfile.TemporaryDirectory() as folder:
        s = FORMATS[name](folder, x, unit)
        for one, other in ((s, x), (store_formats.zarr3(folder, last, (1,) * x.ndim), last)):
            assert_same(
                pool.map_blocks(np.add, s, one, chunks=chunks),
                pool.map_blocks(np.add, x, other, chunks=chunks),
            )
        assert_same(
            pool.block_reduce(lambda a, b: (a.sum(), a.mean() + b.sum()), s, x, chunks=chunks),
            pool.block_reduce(lambda a, b: (a.sum(), a.mean() + b.sum()), x, x, chunks=chunks),
        )
        assert_same(
            pool.parallel_map(lambda row: row.sum(), s, axis=axis),
            pool.parallel_map(lambda row: row.sum(), x, axis=axis),
        )
        assert_same(pool.var(s, axis=axis, chunks=chunks), pool.var(x, axis=axis, chunks=chunks))


def test_all_reductions_of_a_store(pool: shmpar.Pool, folder: str) -> None:
    """Each reduction of a store is that of the array in memory, in the same chunks."""
    x = np.random.default_rng(3).normal(size=(19, 13)).astype("f4")
    x[3, 4] = np.nan
    s = store_formats.zarr3(folder, x, (5, 4))
    for name in ("nansum", "nanmin", "nanmax", "any", "all"):
        verb = getattr(pool, name)
        assert_same(verb(s, chunks=(6, 6)), verb(x, chunks=(6, 6)))
    x[3, 4] = 7
    s = store_formats.hdf5(folder, x, (5, 4))
    for name in ("sum", "mean", "var", "std", "min", "max", "prod"):
        verb = getattr(pool, name)
        for axis in (None, 0, (0, 1)):
            assert_same(verb(s, axis, chunks=(6, 6)), verb(x, axis, chunks=(6, 6)))
    for bins in (7, "auto", "scott", [-1.0, 0.5, 2]):
        assert_same(pool.histogram(s, bins), np.histogram(x, bins))
    assert_same(pool.histogram(s, 4, weights=s)[0], pool.histogram(x, 4, weights=x)[0])
    mask = store_formats.zarr3(folder, x > 0, (5, 4))
    assert_same(pool.histogram(mask), np.histogram((x > 0).view("u1")))
    assert_same(pool.apply_along_axis(np.sort, 1, s), np.sort(x, 1))


def test_stores_without_elements_or_axes(pool: shmpar.Pool, folder: str) -> None:
    """A store without elements has no chunks, and one without axes is a constant."""
    empty = store_formats.zarr3(folder, np.zeros((0, 3), "f4"), (1, 3))
    assert pool.map_blocks(np.negative, empty).shape == (0, 3)
    assert pool.sum(empty) == 0
    path = os.path.join(folder, "0.zarr")
    zero = zarr.create_array(path, shape=(), chunks=(), dtype="f8")
    zero[...] = 2.5
    assert_same(pool.map_blocks(np.multiply, np.ones(3), zero), np.full(3, 2.5))


@pytest.mark.parametrize("dtype", [">i2", "f2", "c8", "?", "u8"])
def test_dtypes_of_stores(pool: shmpar.Pool, folder: str, dtype: str) -> None:
    """Values of any plain dtype arrive as they are."""
    x = np.arange(60).reshape(6, 10).astype(dtype)
    for name in ("zarr3", "hdf5", "contiguous"):
        got = pool.map_blocks(np.copy, FORMATS[name](folder, x, (4, 3)), chunks=(4, 7))
        assert_same(got, pool.map_blocks(np.copy, x, chunks=(4, 7)))


# Why not serial: it opens stores and cuts blocks as threads do.
@pytest.mark.parametrize("warm_pool", ["threads", "processes"], indirect=True)
@pytest.mark.parametrize("name", [*FORMATS, "tiff"])
def test_blocks_are_read_only(pool: shmpar.Pool, folder: str, name: str) -> None:
    """A block of a store cannot be written to, as a block of memory."""
    x = np.arange(40 * 30, dtype="u2").reshape(40, 30)
    s = store_formats.tiff(folder, x, ()) if name == "tiff" else FORMATS[name](folder, x, (9, 8))
    flags = pool.block_reduce(lambda b: b.flags.writeable, s, chunks=(20, 30))
    assert flags.shape == (2, 1)
    assert not flags.any()
    assert_same(pool.map_blocks(np.negative, s), -x)


def test_a_function_gets_the_place_of_its_block(pool: shmpar.Pool, folder: str) -> None:
    """`block_info` and `block_id` are those of the array in memory."""

    def place(block: np.ndarray, block_info: Any, block_id: Any) -> Any:
        return repr((block_id, sorted(block_info[0].items(), key=repr), block_info[None]))

    x = np.zeros((7, 5))
    s = store_formats.zarr3(folder, x, (2, 3))
    how = {"chunks": (4, 2), "depth": 1, "boundary": "periodic", "dtype": object}
    assert (
        pool.block_reduce(place, s, **how).tolist() == pool.block_reduce(place, x, **how).tolist()
    )


def test_an_error_names_the_block_of_a_store(pool: shmpar.Pool, folder: str) -> None:
    """A failed chunk has the shape of its block, as for an array in memory."""
    s = store_formats.zarr3(folder, np.zeros((7, 5)), (2, 3))
    with pytest.raises(shmpar.ChunkError, match=r"block of shape \(4, 3\)") as caught:
        pool.map_blocks(lambda b: 1 / 0, s, chunks=(4, 3), on_error="raise")
    assert caught.value.shape in {(4, 3), (3, 3), (4, 2), (3, 2)}


def test_the_report_tells_the_traffic_of_stores(pool: shmpar.Pool, folder: str) -> None:
    """The report counts the bytes that were read from stores, and their seconds."""
    x = np.ones((40, 30), "f4")
    pool.map_overlap(np.negative, store_formats.zarr3(folder, x, (10, 10)), depth=0, chunks=20)
    report = pool.last_run.report
    assert (report.store_read, report.store_written) == (x.nbytes, 0)
    assert 0 < report.store_seconds <= report.serial_seconds
    assert report.memory[0] == "zarr"
    assert re.search(r"stores +4.7 KiB read in .* of the work", str(report))
    pool.map_blocks(np.negative, x)
    assert "stores" not in str(pool.last_run.report)


def test_the_report_counts_the_reads_of_its_own_run(pool: shmpar.Pool, folder: str) -> None:
    """A copy before it, a call and a nested call in the same thread are not counted."""
    x = np.ones((40, 30), "f4")
    store = store_formats.zarr3(folder, x, (10, 10))

    def total(block: Any = 0) -> Any:
        return block + shmpar.map_blocks(np.negative, store).sum()

    assert pool.asarray(store).sum() == x.size
    assert pool.submit(total).result() == -x.size
    assert np.array_equal(pool.map_blocks(total, store, chunks=20), x - x.size)
    assert pool.last_run.report.store_read == x.nbytes
    runs = [pool.map_blocks(np.negative, store, chunks=10, wait=False) for _ in range(3)]
    for run in runs:
        run.result()
        assert run.report.store_read == x.nbytes


def test_verbs_over_a_part(pool: shmpar.Pool) -> None:
    """A part that is the whole array gives what the array gives."""
    x = np.random.default_rng(0).normal(size=(19, 13))
    part = Part(x, (0, 0), x.shape)
    for boundary in BOUNDARIES:
        how = {"depth": (2, 15), "boundary": boundary, "chunks": (7, 5)}
        got = pool.map_overlap(stencil, part, **how)
        assert_same(got, pool.map_overlap(stencil, x, **how))
    assert_same(pool.parallel_map(np.sum, part), pool.parallel_map(np.sum, x))


def test_rows_of_tables(pool: shmpar.Pool) -> None:
    """A DataFrame gives its rows, a Series its values, and a DataArray its rows."""
    pandas, xarray = pytest.importorskip("pandas"), pytest.importorskip("xarray")
    x = np.arange(12.0).reshape(4, 3)
    frame = pandas.DataFrame(x, columns=list("abc"))
    assert_same(pool.parallel_map(np.sum, frame), x.sum(1))
    assert_same(pool.parallel_map(np.sqrt, frame["a"]), np.sqrt(x[:, 0]))
    assert pool.parallel_map(len, pandas.Series(["a", "bcd"])).tolist() == [1, 3]
    mixed = pandas.DataFrame({"a": [1, 2], "b": ["x", "yz"]})
    assert pool.parallel_map(lambda row: row[0] * len(row[1]), mixed).tolist() == [1, 4]
    table = xarray.DataArray(x)
    assert_same(pool.parallel_map(np.sum, table, axis=1), x.sum(0))
    assert_same(pool.parallel_map(lambda row: row.flags.owndata, table), np.zeros(4, bool))
