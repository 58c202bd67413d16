"""map_overlap equals the function on the whole array, on every engine."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import shmpar

quick = settings(
    max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)

PAD = {"reflect": "symmetric", "mirror": "reflect", "nearest": "edge", "periodic": "wrap"}


def box_sum(window: np.ndarray, reach: int) -> np.ndarray:
    """Sums over (2 reach + 1) elements along each axis, where they fit: a smaller array."""
    for axis in range(window.ndim):
        view = np.lib.stride_tricks.sliding_window_view(window, 2 * reach + 1, axis)
        window = view.sum(-1)
    return window


@st.composite
def cases(draw: st.DrawFn) -> tuple[Any, ...]:
    """An array of integers, chunks, a reach no wider than the array, and a boundary."""
    shape = draw(st.lists(st.integers(4, 9), min_size=1, max_size=3))
    chunks = tuple(draw(st.integers(1, 10)) for _ in shape)
    reach = draw(st.integers(1, 3))
    boundary = draw(st.sampled_from([*PAD, 7]))
    return np.arange(np.prod(shape)).reshape(shape) ** 2 % 101, chunks, reach, boundary


@quick
@given(case=cases())
def test_a_local_function_equals_itself_on_the_whole_array(pool: shmpar.Pool, case: Any) -> None:
    """Box sums over padded blocks are those over the padded array."""
    array, chunks, reach, boundary = case
    if boundary in PAD:
        padded = np.pad(array, reach, PAD[boundary])
    else:
        padded = np.pad(array, reach, constant_values=boundary)
    got = pool.map_overlap(
        lambda window: box_sum(window, reach),
        array, depth=reach, boundary=boundary, chunks=chunks, trim=False,
    )  # fmt: skip
    np.testing.assert_array_equal(got, box_sum(padded, reach))


@pytest.mark.parametrize("depth", [2, (2, 0), {1: 3}, ((0, 2), (3, 1))], ids=str)
def test_the_halo_is_trimmed(pool: shmpar.Pool, image: Any, depth: Any) -> None:
    """A function that returns its window gives the array back, whatever the halo."""
    for boundary in ("none", "mirror", 0.0):
        got = pool.map_overlap(np.negative, image, depth=depth, boundary=boundary, chunks=(9, 8))
        np.testing.assert_array_equal(got, -image)


def test_without_a_boundary_the_window_is_a_view_that_ends_with_the_array(
    pool: shmpar.Pool, image: Any
) -> None:
    """Nothing is copied, and windows at the border are smaller."""
    sizes = pool.block_reduce(np.size, image, chunks=(10, 10), depth=3)
    assert sizes[0, 0] == 13 * 13
    assert sizes[1, 1] == 16 * 16
    assert sizes[3, 2] == 10 * 6
    owned = pool.block_reduce(lambda w: w.base is None, pool.array(image), chunks=10, depth=3)
    assert not owned.any()


def test_several_inputs_have_the_halo_each(pool: shmpar.Pool, image: Any) -> None:
    """A row that is broadcast has its halo along its own axis."""
    row = np.arange(23.0)

    def shapes(window: Any, across: Any) -> Any:
        assert across.shape == (1, window.shape[1])
        return window + across

    got = pool.map_overlap(shapes, image, row[None], depth=2, boundary="nearest", chunks=8)
    np.testing.assert_array_equal(got, image + row)


@pytest.mark.parametrize(
    ("keywords", "error", "match"),
    [
        ({"depth": -1}, ValueError, "-1"),
        ({"depth": 1.5}, TypeError, "1.5"),
        ({"depth": (1, 1, 1)}, ValueError, "depth"),
        ({"depth": 1, "boundary": "around"}, ValueError, "around"),
        ({"depth": 1, "boundary": "x"}, ValueError, "mirror"),
    ],
)
def test_a_halo_that_makes_no_sense_is_refused(
    pool: shmpar.Pool, image: Any, keywords: Any, error: type[Exception], match: str
) -> None:
    """The error names the wrong entry, before anything starts."""
    with pytest.raises(error, match=match):
        pool.map_overlap(np.negative, image, **keywords)


def test_a_constant_must_fit_the_array(pool: shmpar.Pool) -> None:
    """NaN beyond an array of integers is an error, not a zero."""
    with pytest.raises(ValueError, match="nan"):
        pool.map_overlap(np.negative, np.arange(9), depth=1, boundary=np.nan)


def inside(window: Any) -> Any:
    """A window without a halo of one element, as a convolution of mode "valid" makes it."""
    return window[1:-1, 1:-1]


OPEN = 'boundary="none" makes windows'
RESULTS = {
    "it is trimmed": (inside, {"boundary": "edge"}, "pass trim=False$"),
    "it is trimmed, and so small": (inside, {}, f"pass trim=False and another .* {OPEN}"),
    "it is neither": (lambda w: w[1:], {}, r"\(11, 11\), or, with trim=False, \(10, 10\); for"),
    "a border's window is small": (inside, {"trim": False}, f"{OPEN} .*, so pass another one$"),
    "it is not trimmed": (np.negative, {"trim": False}, "without trim=False it is cut off$"),
    "an axis is gone": (lambda w: w.sum(0), {"trim": False}, "it drops in drop_axis$"),
    "an axis is new": (lambda w: w[None], {"trim": False, "dtype": "f8"}, "it adds in new_axis$"),
    "it is a number": (np.sum, {}, "block_reduce has depth="),
    "it is a number, trimmed": (np.sum, {"trim": False}, "block_reduce has depth="),
    "there is no halo": (lambda w: w[1:], {"depth": 0}, "of other lengths pass out_chunks=$"),
}


@pytest.mark.parametrize("case", RESULTS)
def test_a_result_of_another_shape_names_the_remedy(
    pool: shmpar.Pool, image: Any, case: str
) -> None:
    """The remedy names keywords of this verb."""
    func, keywords, remedy = RESULTS[case]
    with pytest.raises(shmpar.ChunkError, match="the function returned") as caught:
        pool.map_overlap(func, image, chunks=10, **{"depth": 1, **keywords})
    message = str(caught.value.__cause__ or caught.value)
    assert re.search(remedy, message)


@pytest.mark.parametrize("keywords", [{}, {"trim": False, "boundary": "edge"}], ids=str)
def test_a_later_result_of_another_shape_is_an_error_too(
    pool: shmpar.Pool, image: Any, keywords: Any
) -> None:
    """The shape of every chunk is checked, not only of the first."""

    def func(window: Any, block_id: Any) -> Any:
        expected = inside(window) if keywords else window
        return expected[1:] if block_id == (1, 1) else expected

    with pytest.raises(
        shmpar.ChunkError, match=r"window of shape \(12, 12\).*trim=False"
    ) as caught:
        pool.map_overlap(func, image, depth=1, chunks=10, **keywords)
    assert caught.value.chunk == 4


def test_the_output_may_not_be_an_input(pool: shmpar.Pool, image: Any) -> None:
    """Another chunk would read the new values."""
    shared = pool.array(image)
    with pytest.raises(ValueError, match="shares memory"):
        pool.map_overlap(np.negative, shared, depth=1, out=shared)


@pytest.mark.parametrize("dtype", ["f8", "c16"])
def test_equal_constants_of_two_calls_stay_apart(pool: shmpar.Pool, dtype: str) -> None:
    """0.0 and -0.0 are equal, but a call pads with the zero that it was given."""
    array = np.ones(4, dtype)
    for zero in (0.0, -0.0, 0.0, np.float32(-0.0), np.float64(0.0), -0.0):
        signs = pool.map_overlap(
            lambda window: np.signbit(window.real[:-1]),
            array, depth=((1, 0),), boundary=zero, chunks=4, trim=False,
        )  # fmt: skip
        assert signs.tolist() == [np.signbit(zero), False, False, False]
