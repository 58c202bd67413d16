"""The group of errors of a run that goes on: short where it is shown, complete where it is kept."""

from __future__ import annotations

import pickle
import traceback
from typing import Any

import numpy as np
import pytest

import shmpar
from tests.interpreters import run_python


def fails(number: int) -> Any:
    raise ValueError(f"bad {number}")


def fails_long(number: int) -> Any:
    raise ValueError(f"bad {number} " + "x" * 100_000)


def fails_in_lines(number: int) -> Any:
    raise ValueError("\n".join(map(str, range(5_000))))


def deep(number: int) -> Any:
    return deep(number - 1) if number else fails(0)


def group_of(pool: shmpar.Pool, function: Any, count: int) -> shmpar.FailedChunks:
    """The error of a run in which all items fail."""
    with pytest.raises(shmpar.FailedChunks) as caught:
        pool.parallel_map(function, list(range(count)), on_error="collect")
    return caught.value


@pytest.mark.parametrize("count", [1, 2, 5, 10_000])
def test_texts_of_a_group_are_bounded(any_pool: shmpar.Pool, count: int) -> None:
    """Its message, its repr and IPython's lines show a few errors, and tell where all are."""
    error = group_of(any_pool, fails, count)
    items = "1 item" if count == 1 else f"{count:,} items"
    all_of_them = "see error.exceptions" if count == 1 else f"error.exceptions has all {count:,}"
    assert str(error) == (
        f"{items} of parallel_map failed; the first: parallel_map, item 0 (0): the function raised "
        f"ValueError: bad 0; {all_of_them}, and error.run.table() has a record of each item"
    )
    more = f", ... {count - 1:,} more" * (count > 1)
    assert repr(error) == (
        f"FailedChunks('{items} of parallel_map failed', [ChunkError("
        f'"parallel_map, item 0 (0): the function raised ValueError: bad 0"){more}])'
    ).replace('"', "'")
    lines = error._render_traceback_()
    assert len("\n".join(lines).splitlines()) <= 20
    assert lines[-1] == f"FailedChunks: {error}"
    assert ("  ... and 9,997 more" in lines) == (count == 10_000)
    assert 'raise ValueError(f"bad {number}")' in "".join(lines)
    assert f'"{__file__}", line' in "".join(lines)
    assert len(error.exceptions) == count == len(error.run.table())
    assert [one.item for one in error.exceptions] == list(range(count))  # type: ignore[attr-defined]


@pytest.mark.parametrize("function", [fails_long, fails_in_lines, deep])
def test_long_messages_of_a_group(any_pool: shmpar.Pool, function: Any) -> None:
    """Messages of 100 kB, of 5,000 lines and of deep calls leave 20 short lines."""
    error = group_of(any_pool, function, 5)
    shown = "\n".join(error._render_traceback_())
    assert len(shown.splitlines()) <= 20
    assert len(shown) < 5_000
    assert len(str(error)) < 1_300
    assert len(repr(error)) < 500
    assert shown.endswith(
        "; error.exceptions has all 5, and error.run.table() has a record of each item"
    )
    single = "\n".join(error.exceptions[0]._render_traceback_())  # type: ignore[attr-defined]
    assert len(single.splitlines()) <= 20


def test_a_group_of_chunks_has_no_table(any_pool: shmpar.Pool) -> None:
    """The errors have the chunks."""
    with pytest.raises(ExceptionGroup) as caught:
        any_pool.map_blocks(fails, np.zeros((4, 4)), chunks=2, on_error="collect")
    assert str(caught.value).endswith("; error.exceptions has all 4")
    assert [one.chunk for one in caught.value.exceptions] == [0, 1, 2, 3]  # type: ignore[attr-defined]


def test_parts_and_copies_of_a_group(any_pool: shmpar.Pool) -> None:
    """A part for except* keeps the run; a pickle keeps all but the run, and hints at no table."""
    error = group_of(any_pool, fails, 3)
    part, rest = error.split(lambda one: getattr(one, "item", 9) < 2)
    assert isinstance(part, shmpar.FailedChunks)
    assert isinstance(rest, shmpar.FailedChunks)
    assert (part.run, rest.run) == (error.run, error.run)
    assert (len(part.exceptions), len(rest.exceptions)) == (2, 1)
    found: list[BaseException] = []
    try:
        raise error
    except* shmpar.ChunkError as caught:
        found += caught.exceptions
    assert len(found) == 3
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is shmpar.FailedChunks
    assert again.run is None
    assert list(map(str, again.exceptions)) == list(map(str, error.exceptions))
    assert str(again).endswith("; error.exceptions has all 3")


def test_the_traceback_of_python_names_a_few(any_pool: shmpar.Pool) -> None:
    """Python's own text has 15 of the errors."""
    error = group_of(any_pool, fails, 100)
    lines = "".join(traceback.format_exception(error)).splitlines()
    assert len(lines) < 250
    assert any("and 85 more exceptions" in line for line in lines)


SHELL = """
import sys
from IPython.core.interactiveshell import InteractiveShell

shell = InteractiveShell.instance()
shell.run_cell("import shmpar; pool = shmpar.Pool(1, engine='threads')")
{before}
shell.run_cell("pool.parallel_map(lambda n: 1 / n, [0] * 50, on_error='collect')")
shell.run_cell("pool.shutdown()")
"""


def test_ipython_shows_a_group_in_twenty_lines() -> None:
    """IPython itself would print the tracebacks of 15 errors."""
    done = run_python(SHELL.format(before=""))
    lines = done.stdout.splitlines()
    assert len(lines) <= 20
    assert lines[0] == "FailedChunks: 50 items of parallel_map failed"
    assert "  ... and 47 more" in lines
    assert "    pool.parallel_map(lambda n: 1 / n, [0] * 50, on_error='collect')" in lines
    assert done.stderr == ""


def test_a_handler_of_the_users_stays() -> None:
    """A handler that the user has set is not replaced."""
    before = "shell.set_custom_exc((ExceptionGroup,), lambda *_, **__: print('mine'))"
    assert run_python(SHELL.format(before=before)).stdout == "mine\n"
