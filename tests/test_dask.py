"""A pool serves as the pool of Dask's schedulers."""

from __future__ import annotations

import pytest

import shmpar
from tests.pools import ENGINES


@pytest.mark.parametrize("engine", ENGINES)
def test_a_pool_tells_the_number_of_its_workers(engine: str) -> None:
    """Dask reads the attribute that the executors of the standard library have."""
    with shmpar.Pool(3, engine=engine) as pool:
        assert pool._max_workers == pool.n_workers


@pytest.mark.parametrize("engine", ENGINES)
def test_dask_computes_on_a_pool(engine: str) -> None:
    """Arrays, delayed functions and bags have the results of Dask's own pool."""
    dask = pytest.importorskip("dask")
    da, bag = pytest.importorskip("dask.array"), pytest.importorskip("dask.bag")
    with shmpar.Pool(2, engine=engine) as pool, dask.config.set(pool=pool):
        assert dask.delayed(sum)([1, 2]).compute() == 3
        assert da.ones((10, 10), chunks=5).sum().compute() == 100.0
        for scheduler in ("threads", "processes"):
            items = bag.from_sequence(range(9)).map(lambda item: item * 2)
            assert items.sum().compute(scheduler=scheduler) == 72
