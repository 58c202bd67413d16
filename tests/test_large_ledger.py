"""A run of so many chunks that its ledger lies in huge pages."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import shmpar
from shmpar.ipc.ledger import Ledger
from shmpar.memory import huge

CHUNKS = 400_000


@pytest.mark.parametrize("wait", [True, False])
def test_a_ledger_of_some_mebibytes(wait: bool, nothing_left: None) -> None:
    """Both processes see the same bytes, wherever each of them maps the ledger."""
    assert Ledger.nbytes(workers=2, chunks=CHUNKS) > huge.MIN_BYTES
    values = np.arange(CHUNKS)
    with shmpar.Pool(2) as pool:
        run: Any = pool.parallel_map(np.negative, values, wait=wait)
        assert np.array_equal(run if wait else run.result(), -values)
        assert pool.last_run.progress == (CHUNKS, CHUNKS)
        del run
