"""Creation of shared arrays, and their behaviour as ndarrays."""

from __future__ import annotations

import copy
import inspect
import pickle
import traceback
from collections import deque
from functools import partial
from multiprocessing.managers import SharedMemoryManager, SyncManager
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from shmpar import Pool
from shmpar.arrays import SharedArray, attach
from shmpar.arrays import creation as sa
from shmpar.errors import SegmentFull, SegmentGone
from shmpar.memory.locate import locate
from tests.test_segment import layouts

STRUCTURED = np.dtype([("x", "<i2"), ("y", ">f4", (3,)), ("t", "M8[ms]")])
DTYPES = [
    "?", "i1", ">u4", "f2", ">f8", "c16", "g", "M8[us]", "m8[15s]", "U7", "S3", "V5",
    STRUCTURED,
    np.dtype({"names": ["a", "b"], "formats": ["u1", "f8"]}, align=True),
    np.dtype({"names": ["a"], "formats": ["i4"], "offsets": [8], "itemsize": 32}),
    np.dtype([(("title", "name"), "f4"), ("nested", STRUCTURED)]),
    np.dtype((np.record, [("r", "i4")])),
]  # fmt: skip


STRING_DTYPES = [np.dtypes.StringDType()] if hasattr(np.dtypes, "StringDType") else []


@pytest.fixture
def shared():
    """Share an array of 4 x 5 float64."""
    return sa.array(np.arange(20.0).reshape(4, 5))


@pytest.mark.parametrize("make", ["zeros", "empty", "ones"])
@pytest.mark.parametrize("shape", [(), 3, (2, 3), [2, 0], (np.int64(4),), iter((2, 2))])
@pytest.mark.parametrize("dtype", [None, "f4", STRUCTURED, "U", (np.int32, (2, 3))])
def test_creation_follows_numpy(make, shape, dtype):
    """Shape, dtype and values are those of NumPy's function of the same name."""
    shape = tuple(shape) if not isinstance(shape, int) else shape
    made, expected = getattr(sa, make)(shape, dtype), getattr(np, make)(shape, dtype)
    assert type(made) is SharedArray
    assert (made.shape, made.dtype) == (expected.shape, expected.dtype)
    if make != "empty":
        assert made.tobytes() == expected.tobytes()


@pytest.mark.parametrize("order", ["C", "F"])
def test_order_of_memory(order):
    """The strides are NumPy's; an unknown order is refused."""
    made = sa.zeros((3, 4, 5), order=order)
    assert made.strides == np.zeros((3, 4, 5), order=order).strides
    with pytest.raises(ValueError, match="order"):
        sa.zeros(3, order="K")


@pytest.mark.parametrize("order", ["C", "F", "A", "K"])
@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_likes_follow_numpy(order, axes):
    """zeros_like and empty_like keep shape, dtype and order, unless an argument replaces them."""
    source = np.ones((3, 4, 5), "f4").transpose(axes)
    for name in ("zeros_like", "empty_like"):
        made, expected = (getattr(module, name)(source, order=order) for module in (sa, np))
        assert (made.shape, made.dtype, made.strides) == (
            expected.shape, expected.dtype, expected.strides,
        )  # fmt: skip
    assert sa.zeros_like(source, "i8", shape=(2,)).tolist() == [0, 0]
    flat = np.ones((3, 1, 2)).T  # two of its strides are equal
    likes = [like(flat, order=order, shape=(3, 2, 4)) for like in (sa.zeros_like, np.zeros_like)]
    assert likes[0].strides == likes[1].strides


def test_full_follows_numpy():
    """The value gives the dtype and may broadcast; if it cannot, nothing is allocated."""
    assert sa.full((2, 2), 7).dtype == np.full((2, 2), 7).dtype
    assert sa.full((2, 2), [1, 2]).tolist() == [[1, 2], [1, 2]]
    assert sa.full(2, 1, "f4").dtype == "f4"
    with pytest.raises(ValueError, match="broadcast"):
        sa.full((2, 2), [1, 2, 3])


@pytest.mark.parametrize("value", [5, (1, 2)])
def test_axes_of_a_dtype_follow_those_of_the_shape(value):
    """full() makes the same array as NumPy for a dtype that is a subarray."""
    made, expected = sa.full((2, 3), value, "(2,)f4"), np.full((2, 3), value, "(2,)f4")
    assert (made.shape, made.dtype) == (expected.shape, expected.dtype)
    assert made.tobytes() == expected.tobytes()


@given(layouts())
def test_array_copies_any_layout(source):
    """array() returns a writable copy with the same values and memory order."""
    made = sa.array(source)
    assert type(made) is SharedArray
    assert made.tobytes() == source.tobytes()
    assert (made.shape, made.dtype) == (source.shape, source.dtype)
    assert made.flags.writeable
    assert not np.shares_memory(made, source)
    back = pickle.loads(pickle.dumps(made))
    assert back.tobytes() == source.tobytes()
    assert (back.shape, back.strides, back.dtype) == (made.shape, made.strides, made.dtype)


@given(st.data())
def test_addresses_lead_to_the_same_bytes(data):
    """Any view of any array pickles as an address, with its strides and its writability."""
    made = sa.array(np.arange(360, dtype=data.draw(hnp.integer_dtypes())).reshape(3, 4, 5, 6))
    view = made[data.draw(hnp.basic_indices(made.shape, allow_newaxis=True))]
    if isinstance(view, np.ndarray):
        assert type(view) is SharedArray
        view.flags.writeable = data.draw(st.booleans())
        back = pickle.loads(pickle.dumps(view))
        assert type(back) is SharedArray
        assert (back.shape, back.strides) == (view.shape, view.strides)
        assert back.flags.writeable == view.flags.writeable
        assert np.array_equal(back, view)
        assert not view.size or np.shares_memory(back, view)
        assert not back.owner


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_survives_pickling(dtype):
    """A pickled array keeps its dtype with titles, offsets, alignment and record type."""
    made = sa.zeros(3, dtype)
    raw = made.view("u1") if made.dtype.itemsize else made
    raw[...] = 1
    back = pickle.loads(pickle.dumps(made))
    assert back.dtype == made.dtype
    assert back.dtype.isalignedstruct == made.dtype.isalignedstruct
    assert back.dtype.type is made.dtype.type
    assert back.tobytes() == made.tobytes()


@pytest.mark.parametrize(
    ("shape", "error"),
    [
        (-1, ValueError), ((2, -3), ValueError), (2.0, TypeError), ((2, 3.5), TypeError),
        (True, TypeError), ((True, 2), TypeError), (None, TypeError), ("23", TypeError),
        ((2**32, 2**32), ValueError), ((2**62, 8), ValueError), ((0, 2**62, 8), ValueError),
        ((1,) * 100, ValueError), (10**14, SegmentFull), (np.array([1.5]), TypeError),
        ({2, 3}, TypeError), ({2: 3}, TypeError),
    ],
)  # fmt: skip
def test_bad_shapes_are_refused(shape, error):
    """No size overflows, and no type is guessed."""
    with pytest.raises(error):
        sa.zeros(shape)


@pytest.mark.parametrize("dtype", ["O", [("a", "O")], (object, (2,)), *STRING_DTYPES], ids=str)
def test_python_objects_are_refused(dtype):
    """Each function refuses pointers, which mean nothing in another process."""
    with pytest.raises(TypeError, match="Python objects"):
        sa.zeros(3, dtype)
    with pytest.raises(TypeError, match="Python objects"):
        sa.array(np.empty(3, dtype))
    with pytest.raises(TypeError, match="Python objects"):
        attach("nothing", 3, dtype)


def test_other_bad_input():
    """Unknown dtypes, ragged lists and masked arrays are refused."""
    with pytest.raises(TypeError, match="not understood"):
        sa.zeros(3, "nonsense")
    for function in (sa.zeros, sa.array, sa.asarray, sa.zeros_like, partial(sa.full, 2)):
        with pytest.raises(TypeError, match="not a dtype"):
            function(3, ",")
    with pytest.raises(ValueError, match="inhomogeneous"):
        sa.array([[1], [2, 3]])
    with pytest.raises(TypeError, match="Python objects"):
        sa.array([None])
    for function in (sa.array, sa.asarray, sa.zeros_like):
        with pytest.raises(TypeError, match="second input"):
            function(np.ma.masked_equal([1, 2], 1))
    with pytest.raises(TypeError, match="second input"):
        sa.full(2, np.ma.masked_equal([1, 2], 1))


def test_a_read_only_source_gives_a_writable_copy():
    """The flag of the source is not copied."""
    source = np.arange(3)
    source.flags.writeable = False
    made = sa.array(source)
    made += 1
    assert made.tolist() == [1, 2, 3]


@pytest.mark.parametrize("length", [3, 3_000_000])
def test_a_value_that_the_dtype_cannot_hold_is_told_as_by_numpy(length):
    """A cast warns, or raises an error, as numpy.array does; arrays of any size are alike."""
    source = np.zeros(length)
    source[-1] = np.nan
    with pytest.warns(RuntimeWarning, match="invalid value"):
        assert sa.array(source, "i4")[0] == 0
    with np.errstate(invalid="raise"), pytest.raises(FloatingPointError):
        sa.array(source, "i4")


# --- operations that keep an array shared, and operations that do not


class Pair(NamedTuple):
    """A container that is no list."""

    first: np.ndarray
    second: np.ndarray


def _array_of_arrays(*arrays):
    found = np.empty(len(arrays), object)
    found[:] = [each[0] for each in arrays]
    return found


VIEWS = {
    "slice": lambda a: a[1:],
    "reversed": lambda a: a[::-1, ::2],
    "newaxis": lambda a: a[..., None],
    "T": lambda a: a.T,
    "reshape": lambda a: a.reshape(-1),
    "ravel": lambda a: a.ravel(),
    "view": lambda a: a.view("i8"),
    "real": lambda a: a.real,
    "squeeze": lambda a: a[:, :1].squeeze(),
    "diagonal": lambda a: a.diagonal(),
    "swapaxes": lambda a: a.swapaxes(0, 1),
    "np.moveaxis": lambda a: np.moveaxis(a, 0, 1),
    "np.transpose": np.transpose,
    "np.split": lambda a: np.split(a, 2)[1],
    "np.atleast_3d": np.atleast_3d,
    "np.broadcast_to": lambda a: np.broadcast_to(a, (3, 4, 5)),
    "sliding_window_view": lambda a: np.lib.stride_tricks.sliding_window_view(a, 2, 0),
    "iteration": lambda a: next(iter(a)),
    "astype without copy": lambda a: a.astype("f8", copy=False),
}
COPIES = {
    "copy": lambda a: a.copy(),
    "np.copy": lambda a: np.copy(a, subok=True),
    "copy.copy": copy.copy,
    "copy.deepcopy": copy.deepcopy,
    "astype": lambda a: a.astype("f4"),
    "add": lambda a: a + 1,
    "radd": lambda a: 1 + a,
    "eq": lambda a: a == a.T.T,
    "neg": lambda a: -a[1:],
    "matmul": lambda a: a @ a.T,
    "dot": lambda a: a.dot(a.T),
    "np.dot": lambda a: np.dot(a, a.T),
    "einsum": lambda a: np.einsum("ij,ij->i", a, a),
    "sum": lambda a: a.sum(axis=0),
    "np.mean": lambda a: np.mean(a, axis=1, keepdims=True),
    "cumsum": lambda a: a.cumsum(),
    "argmax": lambda a: a.argmax(0),
    "argsort": lambda a: a.argsort(),
    "clip": lambda a: a.clip(1, 2),
    "round": lambda a: a.round(),
    "fancy": lambda a: a[[0, 1]],
    "mask": lambda a: a[a > 3],
    "take": lambda a: a.take([0, 1]),
    "repeat": lambda a: a.repeat(2),
    "np.sort": np.sort,
    "nonzero": lambda a: a.nonzero()[0],
    "flatten": lambda a: a.flatten(),
    "ravel of T": lambda a: a.T.ravel(),
    "reshape of T": lambda a: a.T.reshape(-1),
    "imag": lambda a: a.imag,
    "conj": lambda a: (a * 1j).conj(),
    "concatenate": lambda a: np.concatenate([a, a]),
    "np.where": lambda a: np.where(a > 1, a, 0),
    "np.pad": lambda a: np.pad(a, 1),
    "empty_like": np.empty_like,
    "modf": lambda a: np.modf(a)[0],
    "np.linalg": lambda a: np.linalg.svd(a)[0],
    "np.array": np.array,
    "np.asarray": np.asarray,
    "named tuple": lambda a: np.stack(Pair(a, a)),
    "deque": lambda a: np.concatenate(deque([a, a])),
    "array of arrays": lambda a: np.vstack(_array_of_arrays(a, a)),
    "containers": lambda a: np.concatenate([np.stack(Pair(a[0], a[0])), a]),
}


@pytest.mark.parametrize("view", VIEWS)
def test_views_stay_shared(view, shared):
    """A view is a SharedArray with an address of its own."""
    found, expected = VIEWS[view](shared), VIEWS[view](np.array(shared))
    assert type(found) is SharedArray
    assert np.array_equal(found, expected, equal_nan=True) or view == "view"
    back = attach(found.address)
    assert back.strides == found.strides
    assert np.shares_memory(back, shared)


@pytest.mark.parametrize("make", COPIES)
def test_new_memory_is_plain(make, shared):
    """An operation that makes new memory returns exactly an ndarray, with NumPy's values."""
    found, expected = COPIES[make](shared), COPIES[make](np.array(shared))
    assert type(found) is np.ndarray
    assert found.shape == expected.shape
    if make != "empty_like":
        assert np.array_equal(found, expected)


def test_scalars_are_scalars(shared):
    """Elements and full reductions are NumPy's scalars."""
    assert type(shared[1, 2]) is np.float64
    assert type(shared.sum()) is np.float64
    assert type(np.max(shared)) is np.float64
    assert type(shared.mean()) is np.float64


def test_out_is_the_object_that_was_passed(shared):
    """In-place operators and out= return the object that was passed, and fill the segment."""
    same = shared
    same += 1
    assert same is shared
    assert np.add(shared, 1, out=shared) is shared
    assert np.cumsum(shared, axis=0, out=shared) is shared
    total = sa.zeros(())
    assert shared.sum(out=total) is total
    assert np.sum(shared, out=total) is total
    first, second = sa.zeros((4, 5)), sa.zeros((4, 5))
    assert np.modf(shared, out=(first, second))[1] is second
    plain = np.zeros((4, 5))
    assert np.multiply(shared, 2, out=plain) is plain
    assert np.add(shared, 1, where=sa.array(shared > 1e9), out=plain) is plain
    assert plain.tolist() == (np.asarray(shared) * 2).tolist()
    assert attach(shared.address).tolist() == shared.tolist()


def test_a_warning_of_an_operator_names_the_line_of_the_user(shared):
    """As for any array, so that filters by module work and each line is told once."""
    with pytest.warns(RuntimeWarning, match="divide by zero") as caught:
        1 / shared
    with pytest.warns(RuntimeWarning, match="invalid value") as again:
        np.sqrt(-1 - shared, out=shared)
    assert [one.filename for one in (*caught, *again)] == [__file__] * 2


@pytest.mark.parametrize(
    "wrong",
    [
        lambda a: a[99],
        lambda a: a["x"],
        lambda a: a.reshape(3),
        lambda a: a + np.ones(3),
        lambda a: np.concatenate([a, a[0]]),
        lambda a: np.stack(Pair(a, a[0])),
    ],
)
def test_the_traceback_of_an_error_of_numpy_has_no_lines_of_this_library(wrong, shared):
    """The error is NumPy's, and its last line is the user's or NumPy's."""
    with pytest.raises((IndexError, ValueError)) as caught:
        wrong(shared)
    names = [frame.filename for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert names[:2] == [__file__] * 2
    assert not any("shmpar/arrays" in name for name in names)


def test_an_array_without_axes_is_not_iterable():
    """The error is that of NumPy."""
    with pytest.raises(TypeError, match="iteration over a 0-d array"):
        list(sa.zeros(()))


def test_methods_in_place(shared):
    """sort, fill, put and item assignment reach the views of other processes."""
    other = attach(shared.address)
    shared[::-1].sort(axis=0)
    shared[0] = 7
    np.put(shared, [19], -1)
    np.copyto(shared[1], 3)
    np.add.at(shared, (2, [0, 0]), 1)
    assert np.array_equal(other, np.asarray(shared))
    assert other[3, 4] == -1
    assert other[1].tolist() == [3] * 5


def test_imag_of_complex_is_shared():
    """The imaginary part is a view, and can be set."""
    made = sa.zeros(3, complex)
    made.imag = 2
    made.imag[1] = 5
    assert type(made.imag) is SharedArray
    assert made.tolist() == [2j, 5j, 2j]


def test_a_copy_that_kept_the_type_is_not_shared(shared):
    """A copy by np.array(subok=True) pickles by value, as a plain array."""
    odd = np.array(shared, subok=True, copy=True)
    back = pickle.loads(pickle.dumps(odd))
    assert type(back) is np.ndarray
    assert np.array_equal(back, shared)
    if type(odd) is SharedArray:
        with pytest.raises(SegmentGone, match="does not lie"):
            odd.address  # noqa: B018
        assert odd.closed
        assert not odd.owner


def test_a_copy_that_kept_the_type_neither_closes_nor_keeps_the_memory():
    """np.require and others copy so; the copy has nothing to do with the segment."""
    made = sa.zeros((4, 5))
    copied = np.require(made, "f4")
    copied.close()
    assert not made.closed
    end = []
    made._handle.segment.subscribe(end.append)
    del made
    assert len(end) == 1
    assert copied.sum() == 0


def test_the_constructor_names_the_functions_to_call():
    """SharedArray(...) has no memory."""
    with pytest.raises(TypeError, match=r"shmpar\.array"):
        SharedArray((3,))


def test_typing_at_run_time():
    """The class takes type parameters as ndarray does."""
    assert SharedArray[tuple[int], np.dtype[np.float64]]


def test_repr_is_numpys(shared):
    """The repr is that of any subclass."""
    assert repr(shared[0]) == "SharedArray([0., 1., 2., 3., 4.])"


# --- lifetime


@pytest.mark.parametrize("end", ["close", "with", "del"])
def test_views_outlive_everything(end, shared):
    """A view stays readable and writable: no fault, no lost write."""
    view, plain = shared[1:], np.asarray(shared)[2:]
    if end == "with":
        with shared as same:
            assert same is shared
    elif end == "close":
        shared.close()
        shared.close()
    del shared
    view += 1
    assert plain[0, 0] == view[1, 0] == 11
    if end != "del":
        assert view.closed
        for what in ("address", "name", "lock"):
            with pytest.raises(SegmentGone, match="stay readable"):
                getattr(view, what)
        with pytest.raises(SegmentGone):
            pickle.dumps(view)
        assert type(sa.array(view)) is SharedArray


def test_a_with_block_passes_exceptions_on(shared):
    """The exception is raised, and the array is closed."""
    with pytest.raises(KeyError), shared:
        raise KeyError
    assert shared.closed


# --- asarray


def test_asarray_copies_only_private_memory(shared, tmp_path):
    """Shared arrays are not copied; any other array is copied once."""
    assert sa.asarray(shared) is shared
    again = sa.asarray(np.asarray(shared)[1:])
    assert np.shares_memory(again, shared)
    assert attach(again.address).shape == (3, 5)
    plain = np.zeros(3)
    made = sa.asarray(plain)
    made += 1
    assert plain.tolist() == [0, 0, 0]
    assert sa.asarray([1, 2]).tolist() == [1, 2]
    assert sa.asarray(shared, "f4").dtype == "f4"
    shared.close()
    assert not np.shares_memory(sa.asarray(shared), shared)


def test_asarray_of_a_mapped_file(tmp_path):
    """The address of the array is the file, and writes of another process reach the file."""
    path = tmp_path / "x.npy"
    np.save(path, np.arange(6.0))
    mapped = np.load(path, mmap_mode="r+")
    made = sa.asarray(mapped[2:])
    assert type(made) is SharedArray
    assert not made.owner
    assert made.name == str(path)
    back = pickle.loads(pickle.dumps(made))
    back[0] = 99
    assert mapped[2] == 99
    made.close()
    assert np.load(path)[2] == 99
    private = sa.asarray(np.load(path, mmap_mode="c"))
    assert not np.shares_memory(private, mapped)
    assert locate(private).segment.kind == "shm"


# --- the standard library's manager


def test_a_standard_manager_owns_its_segments():
    """Segments of a SharedMemoryManager are reserved, and removed by the manager alone."""
    with SharedMemoryManager() as manager:
        made = sa.array(np.arange(4.0), manager=manager)
        assert not made.owner
        name = made.name
        assert attach(name, 4, "f8").tolist() == [0, 1, 2, 3]
        made.close()
        assert attach(name, 4, "f8")[3] == 3
        assert sa.zeros((2, 2), manager=manager).tolist() == [[0, 0], [0, 0]]
        with pytest.raises(ValueError, match="chooses"):
            sa.zeros(3, name="mine", manager=manager)
    with pytest.raises(SegmentGone):
        attach(name, 4, "f8")
    assert made.sum() == 6


@pytest.mark.parametrize("make", [sa.zeros, sa.full, sa.array, sa.asarray, attach])
def test_an_object_that_owns_no_memory_is_no_manager(make):
    """A pool and other managers are refused by name; the error names the methods of the pool."""
    made = sa.zeros(3)
    arguments = (made.address,) if make is attach else ((3, 1) if make is sa.full else (3,))
    with Pool(1, engine="serial") as pool:
        for manager in (SyncManager(), pool, "pool"):
            with pytest.raises(TypeError, match=rf"{type(manager).__name__} here.*pool\.zeros"):
                make(*arguments, manager=manager)
    with pytest.raises(TypeError, match="SharedMemoryManager here"):
        attach(made.address, manager=SharedMemoryManager())


def test_a_standard_manager_without_room():
    """SegmentFull is raised before the first write, and the memory is given back."""
    with SharedMemoryManager() as manager, pytest.raises(SegmentFull):
        sa.zeros(10**12, manager=manager)


@pytest.mark.parametrize(
    "name", ["empty", "ones", "full", "zeros_like", "empty_like", "array", "asarray"]
)
def test_docstrings_have_the_common_text(name):
    """Each creation function has its own name and documents its own parameters in full."""
    function = getattr(sa, name)
    assert function.__name__ == name
    assert "As for" not in function.__doc__
    for parameter in inspect.signature(function).parameters:
        assert f"\n{parameter} : " in function.__doc__
