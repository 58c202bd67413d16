"""Pools of every engine, kept for the module."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

import shmpar
from tests.pools import let_go, wait_for_workers

ENGINES = ("serial", "threads", "processes")


@pytest.fixture
def pool(warm_pool: shmpar.Pool, nothing_left: None) -> Iterator[shmpar.Pool]:
    """The pool of the module; what it remembers of its runs goes with the test."""
    yield warm_pool
    let_go(warm_pool)


@pytest.fixture(scope="module", params=ENGINES)
def warm_pool(request: pytest.FixtureRequest) -> Iterator[shmpar.Pool]:
    """A pool whose workers were up before the first test."""
    with shmpar.Pool(2, engine=request.param) as made:
        wait_for_workers(made)
        let_go(made)
        yield made


@pytest.fixture
def image() -> np.ndarray:
    """An array of two axes with ragged edges under most chunks."""
    return np.random.default_rng(7).normal(size=(37, 23))
