"""Texts of exceptions: bounded where they travel or are shown, and with the right advice."""

from __future__ import annotations

import pickle
import traceback
import warnings
from typing import Any

import numpy as np
import pytest

import shmpar

MOST = 10_000
BOUND = 60


class Custom(Exception):
    """An exception whose text is an attribute too."""

    def __init__(self, text: str, number: int) -> None:
        super().__init__(text, number)
        self.text, self.number = text, number


def raises_long(block: Any) -> Any:
    raise ValueError("begin " + "x" * 7_900_000 + " end")


def raises_custom(block: Any) -> Any:
    error = Custom("y" * 1_000_000, 7)
    error.add_note("z" * 1_000_000)
    raise error from KeyError("k" * 1_000_000)


def raises_group(block: Any) -> Any:
    raise ExceptionGroup("several", [ValueError("x" * 1_000_000), Custom("y" * 1_000_000, 3)])


def raises_short(block: Any) -> Any:
    raise Custom("y" * 50_000, 7)


class NotPickled(Exception):
    """An exception with a text that does not pickle."""

    def __reduce__(self) -> Any:
        raise TypeError("u" * 1_000_000)


def raises_unpicklable(block: Any) -> Any:
    raise NotPickled("x" * 1_000_000)


def returns_unpicklable(block: Any) -> Any:
    return NotPickled()


class Refuses:
    """An object that fails where it is unpickled."""

    def __reduce__(self) -> Any:
        return refuse, ()

    def __call__(self, block: Any) -> Any:
        return block


def refuse() -> None:
    raise ValueError("r" * 1_000_000)


def notes(error: BaseException) -> str:
    return "".join(getattr(error, "__notes__", ()))


def test_a_long_text_is_cut_in_the_middle(any_pool: shmpar.Pool) -> None:
    """The message has begin and end, and says how much is cut; the place and the type remain."""
    with pytest.raises(shmpar.ChunkError) as caught:
        any_pool.map_blocks(raises_long, np.arange(4), chunks=2)
    text = str(caught.value)
    assert 9_000 < len(text) <= MOST
    assert text.startswith("map_blocks, chunk 0 at [0:2], block of shape (2,): the function raised")
    assert "ValueError: begin xxx" in text
    assert text.endswith("xxx end")
    cut = int(text.partition("[... ")[2].partition(" characters are cut ...]")[0].replace(",", ""))
    assert 7_890_000 < cut < 7_900_000
    assert type(caught.value.__cause__) is ValueError
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == text


@pytest.mark.parametrize("warm_pool", ["processes"], indirect=True)
@pytest.mark.parametrize("function", [raises_long, raises_custom, raises_group, raises_unpicklable])
def test_the_texts_of_a_worker_are_bounded(any_pool: shmpar.Pool, function: Any) -> None:
    """No text of more than 10,000 characters comes from a worker process, by verb or submit."""
    with pytest.raises(shmpar.ChunkError) as caught:
        any_pool.map_blocks(function, np.arange(4))
    cause = caught.value.__cause__
    assert cause is not None
    error = any_pool.submit(function, 3).exception(BOUND)
    assert error is not None
    for one in (cause, error):
        assert len(notes(one)) <= 3 * MOST
        assert len("".join(traceback.format_exception_only(one))) <= 5 * MOST
    assert type(cause) is type(error)
    if function is raises_custom:
        assert isinstance(cause, Custom)
        assert (cause.number, len(cause.text), len(cause.args[0])) == (7, 9_000, 9_000)
    if function is raises_group:
        assert isinstance(error, ExceptionGroup)
        assert [type(one) for one in error.exceptions] == [ValueError, Custom]
    if function is raises_unpicklable:
        assert isinstance(error, NotPickled)


def test_an_exception_of_moderate_size_stays_whole(any_pool: shmpar.Pool) -> None:
    """Up to 64 KiB the exception is the function's own, while the message about it is cut."""
    with pytest.raises(shmpar.ChunkError) as caught:
        any_pool.map_blocks(raises_short, np.arange(4))
    cause = caught.value.__cause__
    assert isinstance(cause, Custom)
    assert cause.args == ("y" * 50_000, 7)
    assert 9_000 < len(str(caught.value)) <= MOST


def test_the_texts_of_other_failures_are_bounded(any_pool: shmpar.Pool) -> None:
    """So are those of the initializer, of pickling, of unpickling, and of the warning."""
    with shmpar.Pool(1, engine=any_pool.engine, initializer=refuse) as broken:
        error: BaseException | None
        with pytest.raises(shmpar.ShmparError) as caught:
            broken.map_blocks(np.sqrt, np.arange(4.0))
        assert len(str(caught.value)) <= MOST
    if any_pool.engine == "processes":
        error = any_pool.submit(returns_unpicklable, 1).exception(BOUND)
        assert isinstance(error, shmpar.PlanError)
        assert len(str(error)) <= MOST
        for call in (NotPickled(), Refuses()):
            with pytest.raises(shmpar.ShmparError) as caught:
                any_pool.map_blocks(call_of(call), np.arange(4))
            assert len(str(caught.value)) <= MOST
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        any_pool.map_blocks(raises_long, np.arange(4.0), chunks=2, on_error="fill", out=np.zeros(4))
    assert len(shown) == 1
    assert len(str(shown[0].message)) <= MOST + 100


def call_of(held: Any) -> Any:
    return lambda block: (held, block)[1]


def test_a_wrong_option_is_shown_in_short(any_pool: shmpar.Pool) -> None:
    """The error of a bad argument does not repeat all of it."""
    large = list(range(100_000))
    for name in ("kwargs", "retries", "task_timeout", "on_error", "progress", "sigma"):
        with pytest.raises((TypeError, ValueError)) as caught:
            any_pool.map_blocks(np.sqrt, np.arange(4.0), **{name: large})
        assert len(str(caught.value)) < 500, name


# Read-only blocks


def assigns(block: Any) -> Any:
    block[0] = 1
    return block


def views_memory(block: Any) -> Any:
    memoryview(block)[0] = 1
    return block


def reads_into(block: Any) -> Any:
    import io

    return io.BytesIO(b"12345678").readinto(block)


def adds_out(block: Any) -> Any:
    return np.add(block, 1, out=block)


def needs_signature(block: Any) -> Any:
    """Raise as a function that numba has compiled for writable arrays."""
    if not block.flags.writeable:
        text = "No matching definition for argument type(s) readonly array(float64, 1d, C)"
        raise TypeError(text)
    return block


@pytest.mark.parametrize("function", [assigns, views_memory, reads_into, adds_out, needs_signature])
@pytest.mark.parametrize("verb", ["map_blocks", "parallel_map", "apply_along_axis"])
def test_a_read_only_block_is_explained(any_pool: shmpar.Pool, function: Any, verb: str) -> None:
    """The error says that blocks are read-only, and to take a copy, whatever its type is."""
    array = np.arange(6.0).reshape(2, 3)
    call = getattr(any_pool, verb)
    arguments = (0, array) if verb == "apply_along_axis" else (array,)
    with pytest.raises(shmpar.ChunkError, match=r"Blocks are read-only views .*block\.copy\(\)"):
        call(function, *arguments)


def talks(item: Any) -> Any:
    raise OSError("the file is read-only")


def test_a_function_without_blocks_is_given_no_such_advice(any_pool: shmpar.Pool) -> None:
    """The words alone do not decide: an item of a list is no block."""
    with pytest.raises(shmpar.ChunkError) as caught:
        any_pool.parallel_map(talks, ["a"])
    assert "Blocks are" not in str(caught.value)


def names_a_file(block: Any) -> Any:
    raise OSError(30, "Read-only file system", "/data/x.npy")


def names_a_database(block: Any) -> Any:
    raise RuntimeError("attempt to write a readonly database")


@pytest.mark.parametrize("function", [names_a_file, names_a_database])
def test_other_read_only_things_are_given_no_such_advice(
    any_pool: shmpar.Pool, function: Any
) -> None:
    """A copy of the block would change nothing."""
    with pytest.raises(shmpar.ChunkError) as caught:
        any_pool.map_blocks(function, np.arange(4), chunks=2)
    assert "Blocks are" not in str(caught.value)


# Masked results


def masks(line: Any) -> Any:
    return np.ma.masked_less(line, 2)


def masks_late(line: Any) -> Any:
    return np.ma.masked if line[0] > 1 else line[0]


def fills(line: Any) -> Any:
    return masks(line).filled(-1)


def mask_of(line: Any) -> Any:
    return np.ma.getmaskarray(masks(line))


def test_masked_results_of_lines_are_refused_with_advice_that_helps(any_pool: shmpar.Pool) -> None:
    """The advice of apply_along_axis gives values and mask by two calls."""
    array = np.arange(6.0).reshape(2, 3)
    for function in (masks, masks_late):
        with pytest.raises(shmpar.ChunkError, match=r"filled.*getmaskarray.* by a second call"):
            any_pool.apply_along_axis(function, 0, array)
    values = any_pool.apply_along_axis(fills, 0, array)
    mask = any_pool.apply_along_axis(mask_of, 0, array)
    assert values.tolist() == [[-1, -1, 2], [3, 4, 5]]
    assert mask.tolist() == [[True, True, False], [False, False, False]]


@pytest.mark.parametrize("verb", ["map_blocks", "map_overlap", "block_reduce", "parallel_map"])
def test_masked_results_are_refused(any_pool: shmpar.Pool, verb: str) -> None:
    """No verb drops a mask in silence; a tuple of values and mask gives both."""
    array = np.arange(6.0)[:, None] if verb == "parallel_map" else np.arange(6.0)
    keywords: dict[str, Any] = {} if verb == "parallel_map" else {"chunks": 3}
    if verb == "map_overlap":
        keywords["depth"] = 1
    call = getattr(any_pool, verb)
    with pytest.raises(shmpar.ChunkError, match="masked array, whose mask would be lost"):
        call(masks, array, **keywords)
    values, mask = call(lambda block: (fills(block), mask_of(block)), array, **keywords)
    assert values.ravel().tolist() == [-1, -1, 2, 3, 4, 5]
    assert mask.ravel().tolist() == [True, True, False, False, False, False]


def test_an_exception_that_the_parent_cannot_load_keeps_its_type_and_text(
    process_pool: shmpar.Pool, tmp_path: Any
) -> None:
    """The message has all of its lines, and no note in their place."""
    source = (
        "class Special(Exception): pass\nerror = Special('first\\nsecond')\nerror.add_note('x')\n"
    )
    (tmp_path / "only_there.py").write_text(source)

    def fails(_: Any) -> Any:
        import importlib
        import sys

        sys.path.insert(0, str(tmp_path))
        try:
            raise importlib.import_module("only_there").error
        finally:
            del sys.path[0]

    with pytest.raises(
        shmpar.ChunkError, match="raised Special: first\nsecond \\(an exception that"
    ):
        process_pool.parallel_map(fails, [1])
