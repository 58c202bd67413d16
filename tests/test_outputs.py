"""Outputs: allocated for the results, or passed by the user and filled at the end."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import shmpar
from shmpar.memory.locate import locate
from shmpar.memory.segment import Slab, new_output
from shmpar.plan import Announcement, Output, ResultError
from shmpar.runtime.outputs import Outputs, WeakResult, fill_value_for, missing_value

F8, I4 = np.dtype("f8"), np.dtype("i4")


def announcement(*outputs: tuple[Any, Any], is_tuple: bool = False) -> Announcement:
    """Return the announcement of a first result."""
    made = tuple(Output(shape, np.dtype(dtype)) for shape, dtype in outputs)
    return Announcement(made, is_tuple=is_tuple, chunk=0)


class TestAllocation:
    """Arrays that workers write to."""

    def test_new_outputs_lie_in_segments(self) -> None:
        """New outputs are plain arrays of zeros, and live as long as their views."""
        outputs = Outputs(None)
        one, other = outputs.allocate(announcement(((2, 3), "f8"), ((), "i4"), is_tuple=True))
        assert (one.shape, one.dtype, type(one)) == ((2, 3), F8, np.ndarray)
        assert not one.any()
        assert locate(one) is not None
        assert locate(other) is not None
        assert outputs.is_tuple is True
        result = outputs.result()
        assert type(result) is tuple
        assert result[0] is one
        assert type(result[1]) is np.int32

    @given(
        shape=st.lists(st.integers(0, 4), max_size=3).map(tuple),
        dtype=st.sampled_from(["f8", ">c8", "S3", "M8[s]", "?", "i4,f8"]),
    )
    def test_outputs_of_every_shape_and_dtype_can_be_made(self, shape: Any, dtype: str) -> None:
        """An output may have no elements or no axes."""
        made = new_output(shape, np.dtype(dtype))
        assert (made.shape, made.dtype) == (shape, np.dtype(dtype))
        assert made.flags.writeable
        assert made.flags.c_contiguous

    def test_small_outputs_share_a_segment(self) -> None:
        """Small outputs lie side by side in the slab."""
        slab = Slab()
        outputs = Outputs(None)
        outputs.slab = slab
        one, other = outputs.allocate(announcement(((3,), "f8"), ((3,), "f8"), is_tuple=True))
        one_place, other_place = locate(one), locate(other)
        assert one_place is not None
        assert other_place is not None
        assert one_place.segment == other_place.segment
        assert not np.shares_memory(one, other)

    def test_outputs_of_up_to_128_kib_share_a_segment(self) -> None:
        """A segment of their own would cost a small call a tenth of its time."""
        slab = Slab()

        def place(nbytes: int) -> Any:
            kept.append(new_output((nbytes,), np.dtype("u1"), slab))
            return locate(kept[-1])

        kept = list[np.ndarray]()
        for nbytes, size in (
            (131_072, 1 << 20),
            (8000, 128 << 10),
            (4096, 64 << 10),
            (8, 64 << 10),
        ):
            segments = {place(nbytes).segment for _ in range(8)}
            assert [one.size for one in segments] == [size]
        assert len({place(80_000).segment for _ in range(3)}) == 1
        assert (place(131_073).offset, place(131_073).segment.size) == (0, 131_073)
        for number, array in enumerate(kept):
            array[:] = number
        assert all((array == number).all() for number, array in enumerate(kept))

    def test_a_single_output_is_no_tuple(self) -> None:
        """A tuple of one output stays a tuple."""
        outputs = Outputs(None)
        (array,) = outputs.allocate(announcement(((3,), "f8")))
        assert outputs.result() is array
        outputs.allocate(announcement(((3,), "f8"), is_tuple=True))
        assert type(outputs.result()) is tuple
        outputs.allocate(announcement())
        assert outputs.result() is None
        assert Outputs(None).result() is None

    def test_objects_are_collected_in_a_plain_array(self) -> None:
        """Objects never lie in shared memory."""
        outputs = Outputs(None, returns_objects=True)
        (array,) = outputs.allocate(announcement(((2, 2), object)))
        assert array.dtype == object
        assert array[0, 0] is None

    @pytest.mark.parametrize(
        ("given", "announced", "message"),
        [
            (
                (np.zeros(3),),
                announcement(((4,), "f8")),
                r"out= has shape \(3,\), but the results make",
            ),
            (
                (np.zeros(3),),
                announcement(),
                "out= has 1 array, but the function returns 0 outputs",
            ),
            (
                (np.zeros(3),) * 2,
                announcement(((3,), "f8")),
                "has 2 arrays, but the function returns 1",
            ),
        ],
        ids=["shape", "none", "number"],
    )
    def test_results_that_do_not_fit_the_user_s_arrays_are_refused(
        self, given: Any, announced: Any, message: str
    ) -> None:
        """Nothing is allocated."""
        outputs = Outputs(given)
        with pytest.raises(ResultError, match=message):
            outputs.allocate(announced)
        assert outputs.arrays is None


class TestDelivery:
    """The user's own arrays."""

    def test_a_plain_array_gets_the_finished_windows_at_the_end(self) -> None:
        """The verb returns it."""
        mine = np.full((4, 4), -1.0)
        outputs = Outputs((mine,))
        (array,) = outputs.allocate(announcement(((4, 4), "f8")))
        assert not np.shares_memory(array, mine)
        array[:2] = 5
        array[2:] = 6
        outputs.deliver([(slice(0, 2), slice(0, 3)), (3, 3)])
        assert mine.tolist() == [[5, 5, 5, -1], [5, 5, 5, -1], [-1] * 4, [-1, -1, -1, 6]]
        assert outputs.result() is mine

    def test_a_complete_output_is_delivered_as_a_whole(self) -> None:
        """The user's array may be strided or have no axes."""
        wide, point = np.zeros((3, 4)), np.zeros(())
        outputs = Outputs((wide[:, ::2], point))
        strided, single = outputs.allocate(announcement(((3, 2), "f8"), ((), "f8"), is_tuple=True))
        strided[...], single[...] = 7, 8
        outputs.deliver(None)
        assert wide.tolist() == [[7, 0, 7, 0]] * 3
        assert point == 8
        assert outputs.result()[1] is point

    def test_shared_and_mapped_arrays_are_written_in_place(self, tmp_path: Path) -> None:
        """Workers write to them, and nothing is copied at the end."""
        shared = shmpar.zeros((2, 3))
        mapped = np.memmap(tmp_path / "out", "f8", "w+", shape=(2, 3))
        outputs = Outputs((shared[:, 1:], mapped))
        one, other = outputs.allocate(announcement(((2, 2), "f8"), ((2, 3), "f8"), is_tuple=True))
        assert type(one) is type(other) is np.ndarray
        one[...], other[...] = 1, 2
        assert shared.tolist() == [[0, 1, 1]] * 2
        assert (mapped == 2).all()
        one[...] = 3
        outputs.deliver([(0,)])
        assert shared.tolist() == [[0, 3, 3]] * 2
        assert outputs.result()[1] is mapped

    def test_nothing_is_delivered_before_allocation(self) -> None:
        """A run that failed before its first result leaves the user's array alone."""
        mine = np.full(3, -1.0)
        Outputs((mine,)).deliver([(0,)])
        assert mine.tolist() == [-1, -1, -1]


class TestFilling:
    """The windows of chunks that failed."""

    @pytest.mark.parametrize(
        ("value", "dtype", "filled"),
        [
            (None, "f4", np.float32("nan")),
            (None, "c16", complex("nan")),
            (None, "M8[s]", np.datetime64("NaT", "s")),
            (None, "m8[s]", np.timedelta64("NaT", "s")),
            (None, "O", None),
            (-1, "f4", np.float32(-1)),
            (255, "u1", np.uint8(255)),
            (-128, "i1", np.int8(-128)),
            (True, "i8", np.int64(1)),
            (2, "c8", np.complex64(2)),
            (False, "?", np.False_),
            (b"no", "S2", b"no"),
            ("no", "U5", "no"),
            (np.datetime64("2020-01-01"), "M8[s]", np.datetime64("2020-01-01T00:00:00")),
            ("anything", "O", "anything"),
        ],
    )
    def test_a_value_that_fits_is_written(self, value: Any, dtype: str, filled: Any) -> None:
        """None stands for the missing value of the dtype."""
        array = np.zeros(1, dtype)
        array[0] = fill_value_for(value, np.dtype(dtype))
        assert repr(array[0]) == repr(np.array([filled], dtype)[0])

    @pytest.mark.parametrize(
        ("value", "dtype"),
        [
            (1.5, "i8"), (-1, "u1"), (256, "u1"), (-129, "i1"), (2**70, "i8"), (1, "?"), (1j, "f8"),
            ("x", "f8"), ("NaT", "M8[s]"), ("abc", "U2"), (b"abc", "S2"), (1000, "U3"),
            (None, "f8,f8"), (7, "M8[s]"), (2**63, "m8[s]"), (7, "V3"),
        ],
    )  # fmt: skip
    def test_a_value_that_does_not_fit_is_an_error(self, value: Any, dtype: str) -> None:
        """The value is neither wrapped around nor cut off."""
        with pytest.raises(ValueError, match="fill_value"):
            fill_value_for(value, np.dtype(dtype))

    @pytest.mark.parametrize("dtype", ["i4", "u1", "?", "S3", "U3", "V2"])
    def test_some_dtypes_have_no_missing_value(self, dtype: str) -> None:
        """The error says to pass fill_value=."""
        with pytest.raises(ValueError, match="needs fill_value="):
            missing_value(np.dtype(dtype))

    def test_the_value_is_checked_when_the_dtypes_are_known(self) -> None:
        """Nothing is allocated before."""
        outputs = Outputs(None, fill=functools.partial(fill_value_for, None))
        outputs.check_fill([F8, None])
        with pytest.raises(ValueError, match="fill_value"):
            outputs.check_fill([F8, I4])
        with pytest.raises(ValueError, match="fill_value"):
            outputs.allocate(announcement(((3,), "i4")))
        assert outputs.arrays is None
        Outputs(None).check_fill([I4])

    def test_the_windows_are_filled_in_each_output(self) -> None:
        """Nothing else is written."""
        outputs = Outputs(None, fill=functools.partial(fill_value_for, -1))
        one, other = outputs.allocate(announcement(((3,), "f8"), ((3, 2), "i4"), is_tuple=True))
        outputs.fill([(1,)])
        assert one.tolist() == [0, -1, 0]
        assert other.tolist() == [[0, 0], [-1, -1], [0, 0]]
        Outputs(None).fill([(1,)])


class TestWeakResult:
    """A result that only its caller holds."""

    def test_it_lives_as_long_as_the_caller_holds_it(self) -> None:
        """Later, the error names the reason."""
        array = np.zeros(3)
        held = WeakResult(array)
        assert held.get() is array
        del array
        with pytest.raises(shmpar.ShmparError, match="who has dropped it"):
            held.get()

    def test_a_tuple_lives_as_long_as_all_of_its_arrays(self) -> None:
        """Scalars are held strongly."""
        array = np.zeros(3)
        held = WeakResult((array, np.float64(2)))
        assert held.get()[0] is array
        assert held.get()[1] == 2
        del array
        with pytest.raises(shmpar.ShmparError):
            held.get()

    @pytest.mark.parametrize("result", [None, np.float64(3), (np.int32(1), np.int32(2))])
    def test_scalars_and_none_are_held(self, result: Any) -> None:
        """Scalars need no shared memory."""
        assert WeakResult(result).get() == result
