"""Messages count in the singular and the plural, and show shapes as a reader needs them."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest

import shmpar
from shmpar.errors import format_count
from shmpar.plan import describe_shape


def fails(text: str) -> Any:
    """A function that fails where the block has the number 0, or everywhere."""

    def func(block: Any) -> Any:
        if text == "all" or not block.any():
            raise ValueError("no")
        return block

    return func


X = np.arange(6.0)


def warned(call: Any) -> str:
    """The warning of a call."""
    with pytest.warns(RuntimeWarning) as caught:
        call()
    return str(caught[0].message)


def raised(call: Any) -> str:
    """The error of a call."""
    with pytest.raises(Exception) as caught:
        call()
    return str(caught.value)


def test_filled_chunks_are_counted(pool: shmpar.Pool) -> None:
    """A single chunk was filled, several were."""
    one = warned(lambda: pool.map_blocks(fails("first"), X, chunks=1, on_error="fill"))
    assert one.startswith("1 chunk failed and was filled")
    both = warned(lambda: pool.map_blocks(fails("all"), X, chunks=3, on_error="fill", dtype="f8"))
    assert both.startswith("2 chunks failed and were filled")


COUNTS: dict[str, tuple[Any, str]] = {
    "collected": (
        lambda pool: pool.map_blocks(fails("first"), X, chunks=1, on_error="collect"),
        "^1 chunk of map_blocks failed",
    ),
    "entries and axes": (lambda pool: pool.map_blocks(abs, X, chunks=(1, 2)), "2 entries for an"),
    "depths": (
        lambda pool: pool.map_overlap(abs, X[None], depth=(1,)),
        "has 1 entry for 2 axes; pass 2",
    ),
    "one axis": (lambda pool: pool.map_overlap(abs, X, depth=(1, 2)), "2 entries for 1 axis"),
    "inputs": (lambda pool: pool.map_overlap(abs, X, depth=[1, 2]), "of 2 entries for 1 input;"),
    "pairs": (lambda pool: pool.map_overlap(abs, X, depth=((1,),)), "has 1 entry; pass an int or"),
    "arrays of a ufunc": (lambda pool: pool.map_blocks(np.sqrt, X, X), "sqrt takes 1 array, not 2"),
    "arguments": (lambda pool: pool.map_blocks(lambda: 1, X), "be called with 1 argument and"),
    "lengths": (
        lambda pool: pool.map_blocks(abs, X, chunks=6, out_chunks=((1, 2),)),
        "has 2 lengths for 1 chunk$",
    ),
    "dtypes": (
        lambda pool: pool.map_blocks(abs, X, out=(X.copy(),), dtype=("f8", "f8")),
        "out= has 1 array, and dtype= has 2 dtypes",
    ),
    "outputs": (
        lambda pool: pool.map_blocks(lambda b: (b,), X, out=(X.copy(), X.copy())),
        "returned 1 output, but out= or dtype= declares 2",
    ),
    "axes of a block": (
        lambda pool: pool.map_blocks(lambda b: b[None], X),
        "where a block is due with 1 axis; name the axes that it adds",
    ),
    "outputs of a later chunk": (
        lambda pool: pool.map_blocks(
            lambda b: (b, b) if b[0] == 0 else (b,), X, chunks=3
        ),
        "returned (1 output here but 2|2 outputs here but 1) for another chunk",
    ),
    "address": (
        lambda _: shmpar.attach(json.loads(json.dumps({**shmpar.zeros(3).address, "strides": []}))),
        "address with 1 axis, 0 strides",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", COUNTS)
def test_numbers_and_nouns_agree(pool: shmpar.Pool, case: str) -> None:
    """One thing is in the singular."""
    call, match = COUNTS[case]
    assert re.search(match, raised(lambda: call(pool)))


def test_the_pool_and_the_report_count(pool: shmpar.Pool) -> None:
    """One worker is one worker."""
    with shmpar.Pool(1, engine=pool.engine) as single:
        assert repr(single).endswith(", 1 worker>")
    pool.map_blocks(np.negative, X, chunks=6)
    assert "1 chunk in" in str(pool.last_run.report)


def test_a_changed_output_of_a_ledger_is_counted(pool: shmpar.Pool, tmp_path: Any) -> None:
    """One chunk is not as it was written."""
    files = {"out": tmp_path / "a.npy", "ledger": tmp_path / "a.ledger"}
    pool.map_blocks(np.negative, X, chunks=6, **files)
    np.lib.format.open_memmap(files["out"], "r+")[0] = 9
    message = warned(lambda: pool.map_blocks(np.negative, X, chunks=6, **files))
    assert "of 1 chunk that" in message
    assert "1 is not in the output as written" in message
    assert re.search("of map_blocks with 1 chunk,", raised(
        lambda: pool.map_blocks(np.negative, X, chunks=3, **files)
    ))  # fmt: skip


def test_an_unwritten_element_is_counted() -> None:
    """check=True counts in the singular too."""

    def but_one(block: Any, out: Any) -> None:
        out[1:] = block[1:]

    with shmpar.Pool(1, engine="serial", check=True) as pool:
        message = raised(lambda: pool.map_blocks(but_one, X, pass_out=True, dtype="f8"))
    assert "left 1 element of its window unwritten" in message


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (
            lambda pool, out: pool.map_blocks(abs, np.zeros((1000, 3)), chunks=(10, -1), out=out),
            r"has shape \(7, 7\); the results make an array of shape \(1000, n\) for any n$",
        ),
        (
            lambda pool, out: pool.block_reduce(np.sum, np.zeros((9, 3)), chunks=(2, -1), out=out),
            r"an array of shape \(5, 1, \.\.\.\) with the axes of a result at the end$",
        ),
        (
            lambda pool, out: pool.parallel_map(np.sum, np.zeros((9, 3)), out=out),
            r"an array of shape \(9, \.\.\.\) with the axes of a result at the end$",
        ),
        (
            lambda pool, out: pool.map_overlap(abs, np.zeros((9, 3)), depth=1, out=out),
            r"an array of shape \(9, 3\)$",
        ),
        (
            lambda pool, out: pool.map_blocks(
                abs, np.zeros((9, 3)), chunks=(3, 1), new_axis=(0, 3), out=out
            ),
            r"an array of shape \(n, 9, 3, m\) for any n, m$",
        ),
    ],
)
def test_a_shape_that_may_vary_is_readable(pool: shmpar.Pool, call: Any, match: str) -> None:
    """Names stand for any length; no word of the program's own is among the numbers."""
    message = raised(lambda: call(pool, np.zeros((7, 7))))
    assert re.search(match, message)
    assert not re.search("'|None|Ellipsis|any\\b(?! n)", message)


def test_shapes_of_one_axis_are_tuples() -> None:
    """As NumPy writes them."""
    assert describe_shape((None,)) == "(n,) for any n"
    assert describe_shape((3,)) == "(3,)"
    assert format_count(0, "chunk") == "0 chunks"


def test_an_object_array_is_told_another_way(pool: shmpar.Pool) -> None:
    """parallel_map takes a list; other verbs name parallel_map."""
    words = np.array(["a", "bc"], object)
    message = raised(lambda: pool.parallel_map(len, words))
    assert message.endswith("or a list of the objects, array.tolist()")
    assert pool.parallel_map(len, words.tolist()) == [1, 2]
    for verb in ("map_blocks", "block_reduce", "sum"):
        call = getattr(pool, verb)
        arguments = (words,) if verb == "sum" else (len, words)
        assert raised(lambda: call(*arguments)).endswith("or a list to parallel_map")  # noqa: B023


@pytest.mark.parametrize("verb", ["map_blocks", "block_reduce", "parallel_map"])
def test_an_object_as_result_is_told_the_option(pool: shmpar.Pool, verb: str) -> None:
    """The option is dtype=object, not the verb in which the reader is."""
    message = raised(lambda: getattr(pool, verb)(lambda _: {1}, X))
    assert message.endswith(
        "returned set, which is no array of plain values; for any objects pass dtype=object, which "
        "block_reduce and parallel_map take"
    )
