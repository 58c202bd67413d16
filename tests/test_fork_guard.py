"""A child that the user's function forks in a worker exits when it leaves the function."""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np
import pytest

import shmpar

STATUS = {"exit": 3, "exit with a text": 1, "raise": 1, "return": 0}
X = np.arange(400.0)

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")


def forking(how: str) -> Any:
    """Return a function of ``block + 1`` that forks; its child leaves the function in this way."""

    def function(block: Any) -> Any:
        child = os.fork()
        if child:
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            assert status == STATUS[how], status
        else:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            if how == "raise":
                raise KeyError
            if how != "return":
                sys.exit(3 if how == "exit" else "an end")
        return block + 1

    return function


def test_a_child_exits_when_it_leaves_the_function(nothing_left: None) -> None:
    """No process outlives the pool, and the child computes no chunk."""
    with shmpar.Pool(2) as pool:
        for how in STATUS:
            work = forking(how)
            for _ in range(2):
                assert np.array_equal(pool.map_blocks(work, X, chunks=100), X + 1), how
            assert np.array_equal(pool.parallel_map(work, X[:4], dtype=object), X[:4] + 1), how
            assert pool.submit(work, 1).result(60) == 2
            assert pool.last_run.report.deaths == 0
