"""Arrays for all verbs."""

from __future__ import annotations

import numpy as np
import pytest


@pytest.fixture
def image() -> np.ndarray:
    """An array of two axes with ragged edges under most chunks."""
    return np.random.default_rng(7).normal(size=(37, 23))
