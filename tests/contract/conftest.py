"""Arrays and pools for the tests of all verbs."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
import pytest

import shmpar


@pytest.fixture
def image() -> np.ndarray:
    """An array of two axes with ragged edges under most chunks."""
    return np.random.default_rng(7).normal(size=(37, 23))


@pytest.fixture
def serial(nothing_left: None) -> Iterator[shmpar.Pool]:
    """A serial pool, for tests that do not depend on the engine."""
    with shmpar.Pool(1, engine="serial") as made:
        yield made


@pytest.fixture
def numpy_may_warn() -> Iterator[None]:
    """Ignore warnings of overflows, of NaN and of empty slices, which both issue."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        yield
