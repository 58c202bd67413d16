"""np.seterrcall and np.errstate(call=...) of the caller, on every engine."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

import shmpar

BOUND = 60


def reciprocal(block: Any) -> Any:
    return 1 / block


def root(block: Any) -> Any:
    return np.sqrt(block)


class Refused(Exception):
    """The callback of the test refuses the operation."""


def refuse(kind: str, flag: int) -> None:
    raise Refused(kind)


class Log:
    """A log as NumPy takes: an object with write()."""

    def write(self, text: str) -> None:
        raise Refused(text)


def test_a_callback_is_called(any_pool: shmpar.Pool) -> None:
    """A callback that raises fails the chunk, in verbs, rows, submit and map."""
    zeros = np.zeros(8)
    with np.errstate(all="call", call=refuse):
        for call in (any_pool.map_blocks, any_pool.parallel_map):
            with pytest.raises(shmpar.ChunkError, match="Refused: divide by zero") as caught:
                call(reciprocal, zeros)
            assert type(caught.value.__cause__) is Refused
        with pytest.raises(Refused, match="divide by zero"):
            any_pool.submit(reciprocal, zeros).result(BOUND)
        with pytest.raises(Refused, match="invalid value"):
            list(any_pool.map(root, [np.float64(-1)]))
        assert any_pool.map_blocks(reciprocal, zeros + 2).tolist() == [0.5] * 8
    with np.errstate(all="log", call=Log()), pytest.raises(shmpar.ChunkError, match="Warning: div"):
        any_pool.map_blocks(reciprocal, zeros)
    with np.errstate(all="ignore"):
        assert np.isinf(any_pool.map_blocks(reciprocal, zeros)).all()


def test_another_callback_replaces_the_last(any_pool: shmpar.Pool) -> None:
    """Each call has the callback of its caller; one by value works too."""
    for number in range(3):

        def numbered(kind: str, _flag: int, number: int = number) -> None:
            raise Refused(f"{kind}, {number}")

        expected = pytest.raises(shmpar.ChunkError, match=f"divide by zero, {number}")
        with np.errstate(divide="call", call=numbered), expected:
            any_pool.map_blocks(reciprocal, np.zeros(3))


def sets_another(block: Any) -> Any:
    np.seterrcall(None)
    return block


def test_a_function_that_changes_it_does_so_for_itself(any_pool: shmpar.Pool) -> None:
    """The next call has the callback of its caller again."""
    with np.errstate(divide="call", call=refuse):
        for _ in range(2):
            any_pool.map_blocks(sets_another, np.zeros(3))
            with pytest.raises(shmpar.ChunkError, match="Refused"):
                any_pool.map_blocks(reciprocal, np.zeros(3))


def test_a_callback_that_does_not_pickle_is_refused(pool: shmpar.Pool) -> None:
    """Processes refuse it before the run, and name the remedy; other error states do not."""
    lock = threading.Lock()

    def locked(kind: str, _flag: int) -> None:
        with lock:
            raise Refused(kind)

    with np.errstate(divide="call", call=locked):
        if pool.engine == "processes":
            for call in (pool.map_blocks, pool.submit):
                with pytest.raises(shmpar.PlanError, match=r"seterrcall: .*'lock'.*engine="):
                    call(reciprocal, np.zeros(3))
        else:
            with pytest.raises(shmpar.ChunkError, match="Refused"):
                pool.map_blocks(reciprocal, np.zeros(3))
    with np.errstate(divide="ignore", call=locked):
        assert np.isinf(pool.map_blocks(reciprocal, np.zeros(3))).all()
