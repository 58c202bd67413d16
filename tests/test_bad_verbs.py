"""Invalid arguments are refused by the verb: no run is made, and no function is called.

test_halo.py and test_grid.py test the values of depth, boundary and chunks;
contract/test_reductions_numpy.py tests the errors of NumPy's reductions.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import shmpar

X = np.arange(100.0).reshape(10, 10)
Call = Callable[[shmpar.Pool, Callable[..., Any]], Any]


@pytest.fixture
def pool(nothing_left: None) -> Iterator[shmpar.Pool]:
    """A serial pool, since arguments are checked before the engine is used."""
    with shmpar.Pool(1, engine="serial") as made:
        yield made


def refused(pool: shmpar.Pool, call: Call, error: type[Exception], match: str) -> None:
    """Check that the call raises this error, without a call of the function and without a run."""
    calls = []

    def func(*args: Any, **keywords: Any) -> Any:
        calls.append(args)
        return args[0]

    with pytest.raises(error, match=match):
        call(pool, func)
    assert not calls
    assert pool.last_run is None


# Halos


@pytest.mark.parametrize("verb", ["map_overlap", "block_reduce"])
@pytest.mark.parametrize(
    ("keywords", "error", "match"),
    [
        ({"depth": {2: 1}}, ValueError, "depth={2: 1}: there is no axis 2 among 2; pass -2 to 1"),
        ({"depth": {-3: 1}}, ValueError, "there is no axis -3"),
        ({"depth": {0: 1, -2: 1}}, ValueError, "axis 0 is there twice"),
        ({"depth": {0: -1}}, ValueError, "depth={0: -1}, axis 0: .* pass 0 or more"),
        ({"depth": ((1, -1), 0)}, ValueError, "axis 0: .* -1 elements"),
        ({"depth": (1,)}, ValueError, "has 1 entry for 2 axes; pass 2, one per axis"),
        ({"depth": {1: 0.5}}, TypeError, "axis 1: 0.5 is a float; pass an int"),
        ({"depth": 1, "boundary": ("edge",)}, ValueError, "has 1 entry for 2 axes"),
        ({"depth": None}, TypeError, r"needs depth=, the elements of the halo$"),
        ({"depth": 1, "boundary": {2: "edge"}}, ValueError, "there is no axis 2 among 2"),
        ({"depth": 1, "boundary": (("edge", "round"), 0)}, ValueError, "'round' is unknown; pass"),
        ({"depth": 1, "boundary": np.zeros(2)}, TypeError, "ndarray; pass a constant or one of"),
        ({"depth": 1, "boundary": "Reflect"}, ValueError, "one of none, reflect, symmetric"),
        ({"depth": 0, "boundary": "round"}, ValueError, "'round' is unknown"),
    ],
    ids=str,
)
def test_a_halo_that_makes_no_sense(
    pool: shmpar.Pool, verb: str, keywords: Any, error: type[Exception], match: str
) -> None:
    """The message names the argument, the axis and the remedy."""
    refused(pool, lambda p, f: getattr(p, verb)(f, X, chunks=4, **keywords), error, match)


@pytest.mark.parametrize(
    ("constant", "dtype"),
    [
        (300, "u1"),
        (-1, "u4"),
        (2.5, "i4"),
        (1e300, "f4"),
        (70_000, "f2"),
        (np.float64(1e39), "c8"),
        (1j, "f8"),
        (np.datetime64("2020", "s"), "f8"),
        (np.timedelta64(1, "s"), "i8"),
        (np.bytes_(b"abc"), "S2"),
        (333, "U2"),
    ],
    ids=repr,
)
def test_a_constant_that_the_array_cannot_hold(
    pool: shmpar.Pool, constant: Any, dtype: str
) -> None:
    """The constant would be truncated, wrap or become infinite."""
    array, match = np.zeros(9, dtype), f"does not fit an array of dtype {np.dtype(dtype)}; pass a"
    refused(
        pool, lambda p, f: p.map_overlap(f, array, depth=1, boundary=constant), ValueError, match
    )
    sides = (("edge", constant),)
    refused(pool, lambda p, f: p.map_overlap(f, array, depth=1, boundary=sides), ValueError, match)
    refused(
        pool, lambda p, f: p.block_reduce(f, array, depth=1, boundary=constant), ValueError, match
    )


@pytest.mark.parametrize(
    ("constant", "dtype"),
    [
        (np.inf, "f4"),
        (np.nan, "f2"),
        (65_504, "f2"),
        (complex(0, np.inf), "c8"),
        (np.datetime64("NaT", "s"), "M8[s]"),
        (np.bytes_(b"ab"), "S2"),
        (True, "f8"),
    ],
    ids=repr,
)
def test_a_constant_at_the_edge_of_the_dtype_is_taken(
    pool: shmpar.Pool, constant: Any, dtype: str
) -> None:
    """A constant that the dtype holds is the value beyond the array."""
    array = np.zeros(3, dtype)
    got = pool.map_overlap(
        lambda window: window[:-2], array, depth=1, boundary=constant, trim=False
    )
    np.testing.assert_array_equal(got[0], np.array(constant, dtype))


def test_a_constant_must_fit_each_of_several_arrays(pool: shmpar.Pool) -> None:
    """Every dtype must hold the constant, except on a side without a halo."""
    whole, ints = np.zeros(9), np.zeros(9, "i4")
    refused(
        pool,
        lambda p, f: p.map_overlap(f, whole, ints, depth=1, boundary=np.nan),
        ValueError,
        "nan on axis 0 does not fit an array of dtype int32",
    )
    got = pool.map_overlap(np.negative, ints, depth=((1, 0),), boundary=((0, np.nan),), chunks=4)
    np.testing.assert_array_equal(got, ints)


# Outputs


def test_outputs_that_overlap_one_another(pool: shmpar.Pool) -> None:
    """Outputs overlap in part, reversed or as another dtype; interleaved outputs do not."""
    room = np.zeros(30)
    for one, other in (
        (room[:10], room[5:15]),
        (room[:10], room[:10][::-1]),
        (room[:10], room.view("i8")[:10]),
        (room[:20:2], room[1:11]),
    ):
        call = functools.partial(_two_outputs, out=(one, other))
        refused(pool, call, ValueError, "two outputs share memory")
    interleaved = (room[:20:2], room[1:20:2])
    got = pool.map_blocks(lambda b: (b, -b), np.ones(10), chunks=3, out=interleaved)
    assert got is not room
    assert room[:20].tolist() == [1, -1] * 10


def _two_outputs(pool: shmpar.Pool, func: Any, out: Any) -> Any:
    return pool.map_blocks(func, np.ones(10), chunks=3, out=out)


def test_an_output_that_overlaps_itself(pool: shmpar.Pool) -> None:
    """Several elements share memory, so chunks would overwrite each other."""
    room = np.zeros(30)
    windows = np.lib.stride_tricks.sliding_window_view(room, 10, writeable=True)[:10]
    rows = np.lib.stride_tricks.as_strided(room, (10, 10), (0, 8))
    shifted = np.lib.stride_tricks.as_strided(room, (10, 10), (16, 8))
    for out in (windows, rows, shifted):
        match = "several of its elements are one in memory"
        refused(pool, lambda p, f, out=out: p.map_blocks(f, X, out=out), ValueError, match)


@pytest.mark.parametrize(
    "view",
    [
        lambda room: room[:10, :10],
        lambda room: room[::2, ::2],
        lambda room: room[::-2, 9::-1],
        lambda room: room[:10, :10].T,
        lambda room: np.asfortranarray(room)[:10, 10:],
        lambda room: np.moveaxis(room.reshape(2, 10, 20)[0:1], 0, -1)[..., 0][:, :10],
        lambda room: room[:, ::2].reshape(2, 10, 10)[1],
    ],
)
def test_an_output_of_any_other_strides_is_taken(pool: shmpar.Pool, view: Any) -> None:
    """Reversed, transposed and strided arrays: no two elements share memory."""
    out = view(np.zeros((20, 20)))
    assert pool.map_blocks(np.negative, X, chunks=3, out=out) is out
    np.testing.assert_array_equal(out, -X)


@pytest.mark.parametrize(
    "call",
    [
        lambda p, f, r: p.map_blocks(f, r[:10], chunks=3, out=r[5:15]),
        lambda p, f, r: p.map_blocks(f, r, chunks=3, out=r[::-1]),
        lambda p, f, r: p.map_blocks(f, r, chunks=3, out=r.view("i8")),
        lambda p, f, r: p.map_blocks(f, np.ones(9), r[:1], chunks=3, out=r[:9]),
        lambda p, f, r: p.map_blocks(f, np.ones((3, 4)), r[:4], out=r[:12].reshape(3, 4)),
        lambda p, f, r: p.map_blocks(f, r[:9], chunks=3, out=(np.ones(9), r[4:13])),
        lambda p, f, r: p.map_overlap(f, np.ones(9), r[:9], depth=1, out=r[:9]),
        lambda p, f, r: p.block_reduce(f, r[:9], chunks=3, depth=1, out=r[8:11]),
        lambda p, f, r: p.parallel_map(f, r[:9].reshape(3, 3), axis=1, out=r[:9].reshape(3, 3)),
        lambda p, f, r: p.parallel_map(f, range(3), r[:3], out=r[2:5]),
    ],
)
@pytest.mark.parametrize("shared", [False, True], ids=["plain", "shared"])
def test_an_output_that_overlaps_an_input(pool: shmpar.Pool, call: Any, shared: bool) -> None:
    """The output overlaps an input; the message has both shapes."""
    room = pool.array(np.arange(30.0)) if shared else np.arange(30.0)
    match = r"out= \(shape .* shares memory with an input \(shape .* pass another output"
    refused(pool, lambda p, f: call(p, f, room), ValueError, match)
    np.testing.assert_array_equal(room, np.arange(30.0))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda p, f: p.map_overlap(f, X, depth=1, out=np.empty((10, 9))), r"\(10, 9\); .*10, 10"),
        (lambda p, f: p.block_reduce(f, X, chunks=5, out=np.empty((2, 3))), r"\(2, 3\); .*2, 2"),
        (lambda p, f: p.parallel_map(f, X, out=np.empty(9)), r"\(9,\); .*10"),
        (
            lambda p, f: p.map_blocks(
                f, X, chunks=5, out_chunks={0: (2, 3)}, out=np.empty((10, 10))
            ),
            r"\(10, 10\); .*\(5, 10\)",
        ),
        (lambda p, f: p.map_blocks(f, X, chunks=5, new_axis=0, out=np.empty((10, 10))), "any"),
        (lambda p, f: p.map_blocks(f, X, out=(np.empty(9), X.copy()), dtype="f8"), "2 .* 1"),
        (lambda p, f: p.map_blocks(f, X, out=X.copy(), dtype="f4"), "float64.*float32"),
    ],
)
def test_an_output_of_the_wrong_form(pool: shmpar.Pool, call: Call, match: str) -> None:
    """The message has the given shape and the expected shape."""
    refused(pool, call, ValueError, match)


# The function


@pytest.mark.parametrize(
    "make",
    [
        lambda calls: lambda block, sigma: calls.append(1),
        lambda calls: lambda block, *, sigma: calls.append(1),
        lambda calls: lambda: calls.append(1),
        lambda calls: functools.partial(lambda block, sigma, size: calls.append(1), size=3),
    ],
    ids=["positional", "keyword", "none at all", "partial"],
)
def test_a_function_with_a_parameter_that_is_not_passed(pool: shmpar.Pool, make: Any) -> None:
    """The call would fail in each chunk; the message names the keyword for the parameter."""
    calls: list[int] = []
    with pytest.raises((TypeError, shmpar.ChunkError)) as caught:
        pool.map_blocks(make(calls), X, chunks=5)
    assert not calls
    assert caught.type is TypeError
    assert pool.last_run is None


def test_parameters_that_need_no_argument(pool: shmpar.Pool) -> None:
    """Defaults, *args, kwargs and special parameters."""

    def several(block: Any, *rest: Any, rng: Any, sigma: float, size: int = 3, **more: Any) -> Any:
        assert isinstance(rng, np.random.Generator)
        return block * sigma + len(rest)

    got = pool.map_blocks(several, X, X, 3, chunks=5, kwargs={"sigma": 2.0, "mode": "x"})
    np.testing.assert_array_equal(got, X * 2 + 2)


def test_a_partial_that_cannot_be_called(pool: shmpar.Pool) -> None:
    """The keywords of the function are checked, too."""
    with pytest.raises(TypeError, match=r"map_blocks: partial .* has incorrect arguments"):
        pool.map_blocks(functools.partial(lambda block: block, size=3), X)
    assert pool.map_blocks(functools.partial(np.clip, a_min=0), X, kwargs={"a_max": 1}).max() == 1


def test_a_partial_with_wrong_arguments_beside_another_mistake(pool: shmpar.Pool) -> None:
    """The advice on the other mistake looks at its signature, and raises no error of it."""
    wrong = functools.partial(abs_of, more=1)
    with pytest.raises(TypeError, match=r"parallel_map: partial .* has incorrect arguments"):
        pool.parallel_map(wrong, zip([1], [2], strict=True))
    with pytest.raises(TypeError, match="parallel_map: argument 1 is a int, which has no items"):
        pool.parallel_map(wrong, [1], 3)
    with pytest.raises(
        TypeError, match=r"map_blocks\(\) got an unexpected keyword argument 'sigma'"
    ):
        pool.map_blocks(wrong, np.ones(3), sigma=3)


def abs_of(number: Any) -> Any:
    return abs(number)


def test_apply_along_axis_passes_the_parameters_of_the_function(pool: shmpar.Pool) -> None:
    """Other arguments are refused before the run."""
    call = lambda pool, func: pool.apply_along_axis(lambda line, size: func(line), 0, X)
    refused(pool, call, TypeError, "missing a required argument: 'size'")
    with pytest.raises(TypeError, match="unexpected keyword argument 'foo'"):
        pool.apply_along_axis(np.sum, 0, X, foo=1)
    assert pool.last_run is None
    scaled = pool.apply_along_axis(lambda line, size: line.sum() * size, 0, X, 2)
    assert np.array_equal(scaled, X.sum(0) * 2)


def test_out_is_passed_by_pass_out(pool: shmpar.Pool) -> None:
    """The message for a missing out names pass_out; out in kwargs is refused."""
    call = lambda pool, func: pool.map_blocks(lambda block, out: func(block), X)
    refused(pool, call, TypeError, "or out by pass_out=True")
    call = lambda pool, func: pool.map_blocks(
        lambda block, out: func(block), X, dtype=float, pass_out=True, kwargs={"out": 3}
    )
    refused(pool, call, TypeError, "pass_out=True passes out, which is in kwargs= too")


def test_apply_along_axis_needs_a_function(pool: shmpar.Pool) -> None:
    """The error is that of the other verbs."""
    refused(pool, lambda p, f: p.apply_along_axis(3, 0, X), TypeError, "not callable")


@pytest.mark.parametrize("axis", [0.5, None, "rows", True, [0]], ids=repr)
def test_an_axis_is_an_int(pool: shmpar.Pool, axis: Any) -> None:
    """The axis of the rows; the message has the value."""
    match = r"parallel_map: axis=.*; pass an int"
    refused(pool, lambda p, f: p.parallel_map(f, X, axis=axis), TypeError, match)


# Axes that come and go


@pytest.mark.parametrize(
    ("keywords", "error", "match"),
    [
        ({"drop_axis": 2}, ValueError, "drop_axis: there is no axis 2 among 2; pass -2 to 1"),
        ({"drop_axis": -3}, ValueError, "drop_axis: there is no axis -3"),
        ({"drop_axis": (0, -2)}, ValueError, r"drop_axis: \(0, -2\) names an axis twice"),
        ({"drop_axis": 0.5}, TypeError, "drop_axis: 0.5 is a float; pass an int"),
        ({"drop_axis": True}, TypeError, "drop_axis: True is a bool; pass an int"),
        ({"drop_axis": "x"}, TypeError, "drop_axis: 'x' is a str; pass an int"),
        ({"drop_axis": -1}, ValueError, r"axis 1 is cut into 5 chunks, .* chunks=\{1: -1\}"),
        ({"new_axis": 3}, ValueError, "new_axis: there is no axis 3 among 3"),
        ({"new_axis": -4}, ValueError, "new_axis: there is no axis -4"),
        ({"new_axis": (0, 4)}, ValueError, "new_axis: there is no axis 4 among 4"),
        ({"new_axis": (0, -4)}, ValueError, "names an axis twice"),
        ({"new_axis": 1.0}, TypeError, "new_axis: 1.0 is a float; pass an int"),
        ({"new_axis": "x"}, TypeError, "new_axis: 'x' is a str; pass an int"),
    ],
    ids=str,
)
def test_axes_that_are_not_there(
    pool: shmpar.Pool, keywords: Any, error: type[Exception], match: str
) -> None:
    """Missing axes cannot be dropped; new axes count among the axes of the result."""
    refused(pool, lambda p, f: p.map_blocks(f, X, chunks=2, **keywords), error, match)


def test_new_axes_may_be_any_collection(pool: shmpar.Pool) -> None:
    """An axis may be named only once."""
    for axes in ({0, 3}, [3, 0], (-1, 0)):
        got = pool.map_blocks(lambda b: b[None, ..., None], X, chunks=5, new_axis=axes)
        np.testing.assert_array_equal(got, X[None, ..., None])


@pytest.mark.parametrize(
    ("out_chunks", "error", "match"),
    [
        (2.5, TypeError, "out_chunks, axis 0: 2.5 is a float; pass an int"),
        ((2, 2.0), TypeError, "out_chunks, axis 1: 2.0 is a float"),
        (True, TypeError, "True is a bool"),
        ("auto", TypeError, "'auto' is a str"),
        ({1: "auto"}, TypeError, "out_chunks, axis 1: 'auto' is a str"),
        ({0: (2, 2, 2, 2, 2.0)}, TypeError, "out_chunks, axis 0: 2.0 is a float"),
        ({0: [[1, 2]] * 5}, TypeError, r"\[1, 2\] is a list"),
        (0, ValueError, "out_chunks, axis 0: chunk 0 would have 0 elements; pass positive"),
        (-1, ValueError, "out_chunks, axis 0: chunk 0 would have -1 elements"),
        ({-1: (2, 2, 2, 5, -1)}, ValueError, "out_chunks, axis 1: chunk 4 would have -1"),
        ({0: (5, 5)}, ValueError, "out_chunks, axis 0 has 2 lengths for 5 chunks"),
        ({0: ()}, ValueError, "out_chunks, axis 0 has 0 lengths for 5 chunks"),
        (((2,) * 5, (2,) * 6), ValueError, "out_chunks, axis 1 has 6 lengths for 5 chunks"),
        ((1, 2, 3), ValueError, r"out_chunks=\(1, 2, 3\) has 3 entries for an output of 2 axes"),
        ((), ValueError, "has 0 entries for an output of 2 axes"),
        ({2: 1}, ValueError, "out_chunks={2: 1}: there is no axis 2 among 2; pass -2 to 1"),
        ({-3: 1}, ValueError, "there is no axis -3"),
        ({1: 2, -1: 2}, ValueError, "axis 1 is there twice"),
        ({"rows": 1}, TypeError, "'rows' is a str; pass an int"),
        ({0.5: 1}, TypeError, "0.5 is a float; pass an int"),
    ],
    ids=str,
)
def test_out_chunks_that_make_no_sense(
    pool: shmpar.Pool, out_chunks: Any, error: type[Exception], match: str
) -> None:
    """The message names the axis of the output, and the remedy."""
    refused(pool, lambda p, f: p.map_blocks(f, X, chunks=2, out_chunks=out_chunks), error, match)


@pytest.mark.parametrize("out_chunks", [{-1: 1}, {1: (1,) * 5}, (2, 1), (None, 1), {1: np.int8(1)}])
def test_out_chunks_are_of_the_outputs_axes(pool: shmpar.Pool, out_chunks: Any) -> None:
    """Axes may count from the end; an axis that is left out follows the input."""
    got = pool.map_blocks(lambda b: b[:, :1], X, chunks=2, out_chunks=out_chunks)
    np.testing.assert_array_equal(got, X[:, ::2])


def test_chunks_that_the_results_do_not_have(pool: shmpar.Pool) -> None:
    """The length of blocks is known after the first chunk; its error has both shapes."""
    with pytest.raises(
        shmpar.ChunkError, match=r"shape \(2, 2\) where \(1, 2\) is due.*out_chunks"
    ):
        pool.map_blocks(lambda b: b, X, chunks=2, out_chunks={0: 1})
    with pytest.raises(shmpar.ChunkError, match=r"chunk 20 .*shape \(2, 2\) where \(1, 2\)"):
        pool.map_blocks(lambda b: b, X, chunks=2, out_chunks={0: (2, 2, 2, 2, 1)})


# Results that cannot be cast


@pytest.mark.parametrize(
    ("result", "dtype"),
    [
        (1j, "f8"),
        (1.5, "i8"),
        (np.int64(1), "u1"),
        (np.float32(1), "?"),
        (np.datetime64("2020"), "f8"),
        (1.0, "M8[s]"),
        ("four", "U3"),
        ("1", "i4"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("how", ["out", "dtype"])
def test_a_result_that_cannot_be_cast(pool: shmpar.Pool, result: Any, dtype: str, how: str) -> None:
    """A result of another kind is an error of the first chunk with both dtypes."""
    calls: list[Callable[..., Any]] = [
        lambda **given: pool.parallel_map(lambda _: result, range(4), **given),
        lambda **given: pool.block_reduce(lambda _: result, X[0, :4], chunks=1, **given),
        lambda **given: pool.map_blocks(
            lambda b: np.full(b.shape, result), X[0, :4], chunks=2, **given
        ),
        lambda **given: pool.map_overlap(
            lambda w: np.full(w.shape, result), X[0, :4], depth=1, chunks=2, **given
        ),
    ]
    for call in calls:
        out = np.zeros(4, dtype)
        with pytest.raises(shmpar.ChunkError, match=re.escape(str(np.dtype(dtype)))) as caught:
            call(**({"out": out} if how == "out" else {"dtype": dtype}))
        assert caught.value.chunk == 0
        del caught
        np.testing.assert_array_equal(out, np.zeros(4, dtype))


def test_a_result_among_several_that_cannot_be_cast(pool: shmpar.Pool) -> None:
    """The other result is not written either."""
    good, bad = np.zeros(10), np.zeros(10, int)
    with pytest.raises(shmpar.ChunkError, match="float64, which cannot be cast to int64"):
        pool.parallel_map(lambda row: (1.0, 1.0), X, out=(good, bad))
    assert not good.any()
    assert not bad.any()
