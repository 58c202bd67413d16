"""Messages of the errors and warnings of a run."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from shmpar.engines.engine import Exit
from shmpar.errors import ChunkError
from shmpar.grid import Grid
from shmpar.ipc.protocol import ChunkFailed
from shmpar.plan import Blocks, InBlocks, Plan
from shmpar.runtime import error_texts

GRID = Grid.cut((10, 4), (5, 4), itemsize=8)
PLAN = Plan("map_blocks", GRID, (Blocks(0, (0, 1)),), InBlocks.like(GRID))


class Unprintable(Exception):
    """An exception of the user that has no message."""

    def __str__(self) -> str:
        raise OSError


def test_an_error_names_the_verb_the_chunk_and_its_region() -> None:
    """The exception of the function is the cause."""
    cause = OSError("no such file")
    error = error_texts.chunk_error(PLAN, ChunkFailed(0, 1, cause, (5, 4)), None)
    assert str(error) == (
        "map_blocks, chunk 1 at [5:10, 0:4], block of shape (5, 4): the function raised OSError: "
        "no such file"
    )
    assert error.__cause__ is cause
    assert (error.chunk, error.region) == (1, (slice(5, 10), slice(0, 4)))


def test_an_exception_without_a_message_is_reported() -> None:
    """The user's ``__str__`` raises."""
    error = error_texts.chunk_error(PLAN, ChunkFailed(0, 0, Unprintable(), None), None)
    assert str(error).endswith("the function raised Unprintable: (its message raised OSError)")


def test_an_exception_with_an_empty_message_is_named_alone() -> None:
    """An assert without a message leaves no colon at the end."""
    error = error_texts.chunk_error(PLAN, ChunkFailed(0, 0, AssertionError(), None), None)
    assert str(error).endswith("the function raised AssertionError")


def test_a_write_to_a_block_gets_advice() -> None:
    """NumPy's own message does not say that blocks are views of the input."""
    block = np.zeros(3)
    block.flags.writeable = False
    with pytest.raises(ValueError, match="read-only") as caught:
        block[0] = 1
    error = error_texts.chunk_error(PLAN, ChunkFailed(0, 0, caught.value, None), None)
    assert "write to a copy (block.copy())" in str(error)


def test_the_death_of_a_worker_gives_its_exit_status() -> None:
    """In place, the error warns that the chunk may be overwritten in part."""
    for in_place in (False, True):
        error = error_texts.worker_died(PLAN, 0, Exit(7), None, in_place=in_place)
        assert "chunk 0 at [0:5, 0:4]: the worker exited with status 7" in str(error)
        assert ("in part" in str(error)) == in_place
        assert error.exitcode == 7


@pytest.mark.parametrize(
    ("count", "text"),
    [(1, "1 chunk failed and was filled; the "), (2, "2 chunks failed and were filled; the ")],
)
def test_one_warning_counts_the_chunks_that_were_filled(count: int, text: str) -> None:
    """The warning names the line of the caller outside of the package."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        error_texts.warn_filled([ChunkError("first")] * count)
    assert str(caught[0].message) == f"{text}first error: first"
    assert caught[0].filename == __file__
