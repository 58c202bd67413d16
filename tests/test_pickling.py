"""Pickling: functions arrive with all that they hold; errors name parts that do not pickle."""

from __future__ import annotations

import concurrent.futures
import functools
import os
import sys
import threading
import types
from collections.abc import Iterator
from typing import Any

import cloudpickle
import numpy as np
import pytest

import shmpar
from shmpar.memory.locate import locate
from shmpar.memory.segment import Segment, create
from shmpar.pickling import changes
from shmpar.pickling import unpack as unpack_module
from shmpar.pickling.pack import LARGE, Interpreter, Payload, pack
from shmpar.pickling.unpack import Namespaces, unpack
from shmpar.plan import Function
from shmpar.worker.compute import ApplyAlongAxis

LOCK = threading.Lock()
LARGE_ARRAY = np.arange(LARGE // 4, dtype="f8")


def delivered(payload: Payload) -> tuple[Any, list[np.ndarray[Any, Any]]]:
    """Unpickle a payload as a worker does: with descriptors of its own."""
    segments = [
        Segment.adopt(
            os.dup(segment.fileno()),
            segment.size,
            key=-segment.key,
            kind=segment.kind,
            writable=segment.writable,
            private=private,
        )
        for segment, private in zip(payload.segments, payload.private, strict=True)
    ]
    return unpack(payload.body, segments)


def sent(value: Any) -> Any:
    """Return a value as it arrives in a worker."""
    return delivered(pack(value))[0]


@pytest.fixture(autouse=True)
def namespaces(monkeypatch: pytest.MonkeyPatch) -> Namespaces:
    """Use the namespaces of a fresh worker."""
    fresh = Namespaces()
    for module in (unpack_module,):
        monkeypatch.setattr(module, "namespaces", fresh)
    return fresh


class Notebook(types.ModuleType):
    """A module whose functions are pickled by value, like those of __main__."""

    def run(self, source: str) -> None:
        exec(source, vars(self))  # noqa: S102 - as a cell does


@pytest.fixture
def notebook(nothing_left: None) -> Iterator[Notebook]:
    """Make an empty notebook."""
    made = Notebook("notebook_of_a_test")
    sys.modules[made.__name__] = made
    cloudpickle.register_pickle_by_value(made)
    yield made
    cloudpickle.unregister_pickle_by_value(made)
    del sys.modules[made.__name__]
    vars(made).clear()


class TestFunctions:
    """Code, closures and globals."""

    def test_a_function_of_a_module_is_pickled_by_name(self) -> None:
        """The function is the same object if both ends are one process."""
        assert sent(np.linalg.norm) is np.linalg.norm
        assert sent(Function(np.sqrt, {}, ())) == Function(np.sqrt, {}, ())
        assert len(pack(Function(np.sqrt, {}, ())).body) < 200

    def test_closures_and_defaults_are_pickled_by_value(self, notebook: Notebook) -> None:
        """Closures have the values of the moment when they are sent."""
        notebook.run(
            "def make(n):\n    def add(x, step=3):\n        return x + n + step\n    return add"
        )
        function = notebook.make(10)
        other = sent(function)
        assert other is not function
        assert other(1) == 14

    def test_threads_pickle_functions_of_one_module(self, notebook: Notebook) -> None:
        """A thread may bring globals while another one looks for those that are gone."""
        notebook.run("\n".join(f"n{k} = {k}\ndef f{k}(x): return x + n{k}" for k in range(800)))
        interval, functions = sys.getswitchinterval(), [vars(notebook)[f"f{k}"] for k in range(800)]
        with concurrent.futures.ThreadPoolExecutor(4) as threads:
            try:
                sys.setswitchinterval(1e-6)
                assert len([*threads.map(pack, functions)]) == len(functions)
            finally:
                sys.setswitchinterval(interval)

    def test_a_changed_global_is_seen_on_the_next_call(self, notebook: Notebook) -> None:
        """Each call brings the current values of the globals that its function uses."""
        notebook.run("factor = 2\ndef scale(x): return x * factor")
        first = sent(notebook.scale)
        assert first(10) == 20
        notebook.factor = 5
        assert sent(notebook.scale)(10) == 50
        assert first(10) == 50, "functions of one module share its globals"

    def test_functions_of_one_module_share_their_globals(self, notebook: Notebook) -> None:
        """A function sees the globals that another one sets, in any payload."""
        notebook.run(
            "count = 0\n"
            "def increase():\n    global count\n    count += 1\n"
            "def look(): return count\n"
        )
        increase, look = sent((notebook.increase, notebook.look))
        increase()
        assert look() == 1
        assert notebook.count == 0

    def test_globals_of_an_initializer_stay(
        self, notebook: Notebook, namespaces: Namespaces
    ) -> None:
        """Later functions bring the parent's values of all other globals."""
        notebook.run(
            "model, other = None, 1\n"
            "def load():\n    global model\n    model = 'loaded'\n"
            "def use(): return model, other\n"
        )
        namespaces.run_initializer(sent(notebook.load))
        assert sent(notebook.use)() == ("loaded", 1)
        notebook.other, notebook.model = 2, "the parent's"
        assert sent(notebook.use)() == ("loaded", 2)

    def test_numbers_in_containers_are_not_looked_at_one_by_one(self) -> None:
        """A table that a function has captured takes few steps beside its pickle."""
        table, calls = [[0.5] * 9 for _ in range(1000)], list[str]()

        def count(frame: types.FrameType, event: str, _: object) -> None:
            if event == "call" and frame.f_code.co_filename == changes.__file__:
                calls.append(frame.f_code.co_name)

        sys.setprofile(count)
        try:
            pack(lambda row: table[row])
        finally:
            sys.setprofile(None)
        assert 0 < len(calls) < len(table)

    def test_functions_call_each_other(self, notebook: Notebook) -> None:
        """Recursion works, and so do functions that only another function uses."""
        notebook.run(
            "def even(n): return n == 0 or odd(n - 1)\ndef odd(n): return n != 0 and even(n - 1)\n"
        )
        assert sent(notebook.even)(10)
        assert not sent(notebook.even)(7)

    def test_functions_have_the_name_of_their_module(self, notebook: Notebook) -> None:
        """Tracebacks and pickles of their results name the module."""
        notebook.run("def where(): return __name__")
        assert sent(notebook.where)() == "notebook_of_a_test"

    def test_bytecode_is_refused_for_another_version_of_python(self, notebook: Notebook) -> None:
        """Importable functions are still sent."""
        notebook.run("def local(x): return x")
        other = Interpreter("3.99.0")
        assert pack(np.linalg.norm, other)
        with pytest.raises(shmpar.PlanError, match="'local' would be sent as bytecode"):
            pack(Function(notebook.local, {}, ()), other)
        with pytest.raises(shmpar.PlanError, match="put it into a module"):
            pack(Function(map, {"key": notebook.local}, ()), other)


class TestArrays:
    """Arrays that a function holds."""

    def test_a_large_array_is_the_function_s_own(self, notebook: Notebook) -> None:
        """The function may write to it; no other process sees the writes."""
        notebook.table = LARGE_ARRAY.copy()
        notebook.run("def change():\n    table[0] = -1\n    return table")
        payload = pack(notebook.change)
        assert payload.private == (True,)
        assert len(payload.body) < LARGE // 8
        first, second = delivered(payload)[0], delivered(payload)[0]
        assert first()[0] == -1
        fresh, (array,) = delivered(payload)
        assert array[0] == 0
        np.testing.assert_array_equal(array, LARGE_ARRAY)
        assert notebook.table[0] == 0
        assert fresh()[0] == second()[0] == -1

    @pytest.mark.parametrize("size", [LARGE // 8, LARGE // 8 + 1], ids=["small", "large"])
    @pytest.mark.parametrize("dtype", ["f8", ">i8", "M8[s]", "S8", "U2", "i4,f4"])
    def test_arrays_of_every_size_and_dtype_arrive_alike(self, size: int, dtype: str) -> None:
        """Arrays arrive with their values, and exactly as an ndarray."""
        original = np.frombuffer(np.arange(size, dtype="i8").tobytes(), np.void(8).dtype)
        original = original.view(dtype) if dtype != "U2" else np.arange(size).astype("U2")
        payload = pack({"held": original})
        assert bool(payload.segments) is (original.nbytes > LARGE)
        array = delivered(payload)[0]["held"]
        assert type(array) is np.ndarray
        assert array.dtype == original.dtype
        assert array.tobytes() == original.tobytes()

    @pytest.mark.parametrize("size", [9, LARGE], ids=["small", "large"])
    @pytest.mark.parametrize("writable", [True, False], ids=["writable", "read-only"])
    def test_arrays_of_every_size_keep_the_writeable_flag(self, size: int, writable: bool) -> None:
        """A read-only array arrives read-only, from a pickle or a segment."""
        original = np.zeros(size)
        original.flags.writeable = writable
        assert sent(original).flags.writeable is writable

    @pytest.mark.parametrize(
        "cut",
        [
            pytest.param(lambda a: a.T, id="transposed"),
            pytest.param(lambda a: a[::-2, ::3], id="strided"),
            pytest.param(lambda a: np.broadcast_to(a[:1], (9, *a.shape)), id="broadcast"),
        ],
    )
    def test_large_views_arrive_with_their_values(self, cut: Any) -> None:
        """The strides do not matter."""
        view = cut(np.arange(90_000.0).reshape(300, 300))
        np.testing.assert_array_equal(sent(view), view)

    def test_an_array_that_is_held_twice_arrives_once(self) -> None:
        """A pickle keeps identities."""
        one, other = sent((LARGE_ARRAY, {"again": LARGE_ARRAY}))
        assert one is other["again"]

    def test_arrays_of_objects_are_pickled(self) -> None:
        """Arrays of objects cannot lie in shared memory."""
        held = np.full(LARGE, None, dtype=object)
        payload = pack(held)
        assert payload.segments == ()
        assert (delivered(payload)[0] == held).all()

    def test_a_result_that_lies_in_a_segment_is_not_copied(self) -> None:
        """The worker maps its segment privately."""
        segment = create(8 * 20_000)
        array = segment.ndarray(0, (20_000,), None, np.dtype("f8"))
        array[:] = 7
        payload = pack(array)
        assert payload.segments == (segment,)
        (received,) = [delivered(payload)[0]]
        received[0] = -1
        assert array[0] == received[1] == 7

    @pytest.mark.alone
    def test_a_shared_array_stays_shared(self) -> None:
        """The array is writable, the same memory, still a SharedArray, and gets no name."""
        array = shmpar.zeros(20_000)
        names = set(os.listdir("/dev/shm"))
        payload = pack((array[10:], LARGE_ARRAY))
        received, own = delivered(payload)[0]
        assert set(os.listdir("/dev/shm")) == names
        assert type(received) is shmpar.SharedArray
        assert type(own) is np.ndarray
        assert sorted(payload.private) == [False, True]
        received[0] = 5
        assert array[10] == 5
        assert received.lock is array.lock

    def test_a_read_only_view_of_a_shared_array_stays_so(self) -> None:
        """The flag is kept."""
        array = shmpar.zeros(10)
        array.flags.writeable = False
        received = sent(array)
        assert not received.flags.writeable

    def test_small_and_large_shared_arrays_are_alike(self) -> None:
        """A shared array is shared at every size."""
        array = shmpar.zeros(3)
        sent(array)[1] = 4
        assert array.tolist() == [0, 4, 0]

    def test_a_worker_forgets_the_arrays_of_a_call(
        self, notebook: Notebook, namespaces: Namespaces
    ) -> None:
        """The globals of the worker release the memory; the next call brings the arrays again."""
        notebook.table, notebook.small = LARGE_ARRAY.copy(), 3
        notebook.run("def look(): return table[small]")
        function, private = delivered(pack(notebook.look))
        assert function() == 3
        namespaces.forget(private)
        assert function.__globals__.keys() >= {"small"}
        assert "table" not in function.__globals__
        assert sent(notebook.look)() == 3

    def test_arrays_of_an_initializer_are_not_forgotten(
        self, notebook: Notebook, namespaces: Namespaces
    ) -> None:
        """The arrays belong to the worker as long as the worker lives."""
        notebook.table, notebook.kept = LARGE_ARRAY.copy(), None
        notebook.run("def load():\n    global kept\n    kept = table\ndef look(): return kept[5]")
        namespaces.run_initializer(sent(notebook.load))
        function, private = delivered(pack(notebook.look))
        namespaces.forget(private)
        assert function() == 5

    def test_the_segment_lives_as_long_as_its_array(self) -> None:
        """The parent may drop the payload after it has arrived."""
        payload = pack(LARGE_ARRAY)
        array, _ = delivered(payload)
        del payload
        assert locate(array) is not None
        assert array.sum() == LARGE_ARRAY.sum()


class Holder:
    """A callable with an attribute that does not pickle."""

    def __init__(self) -> None:
        self.fine, self.connection = 1, threading.Lock()

    def __call__(self, block: Any) -> Any:
        return block

    def method(self, block: Any) -> Any:
        return block


def global_user(block: Any) -> Any:
    return block, LOCK


def closure_user() -> Any:
    secret = threading.Lock()
    return lambda block: (block, secret)


def default_user() -> Any:
    return lambda block, lock=LOCK: (block, lock)


def unfinished() -> Any:
    def func(block: Any) -> Any:
        return block, later

    if func is None:
        later = 1
    return func


def along(function: Any, *args: Any) -> ApplyAlongAxis:
    return ApplyAlongAxis(function, 0, args, {})


class TestUnpicklable:
    """A PlanError names the holder of an object that does not pickle."""

    @pytest.mark.parametrize(
        ("function", "culprit"),
        [
            (lambda n: Function(closure_user(), {}, ()), "closure variable 'secret'"),
            (lambda n: Function(n.use, {}, ()), "the global 'LOCK'"),
            (lambda n: Function(unfinished(), {"key": LOCK}, ()), "keyword argument 'key'"),
            (lambda n: Function(len, {"fine": 1, "key": LOCK}, ()), "keyword argument 'key'"),
            (lambda n: Function(Holder(), {}, ()), "attribute 'connection'"),
            (lambda n: Function(Holder().method, {}, ()), "the object of the method"),
            (lambda n: Function(default_user(), {}, ()), "its default number 0"),
            (lambda n: Function(functools.partial(len, LOCK), {}, ()), "the partial's arguments"),
            (lambda n: Function(along(closure_user()), {}, ()), "closure variable 'secret'"),
            (lambda n: Function(along(len, LOCK), {}, ()), "args and kwargs is a builtins.tuple"),
            (lambda n: Function(len, {}, ([1, LOCK],)), "an item such as [1, <unlocked"),
            (lambda n: Function(len, {}, (1, LOCK)), "an item such as <unlocked"),
            (lambda n: Function(np.frompyfunc(closure_user(), 1, 1), {}, ()), "does not pickle"),
            (lambda n: LOCK, "an item such as <unlocked"),
        ],
        ids=[
            "closure", "global", "unfinished-closure", "kwargs", "attribute", "method", "default",
            "partial", "along", "along-arguments", "items", "value", "ufunc", "no-function",
        ],
    )  # fmt: skip
    def test_the_holder_is_importable(
        self, function: Any, culprit: str, notebook: Notebook
    ) -> None:
        """The error names the variable, keyword or attribute that the user knows."""
        notebook.LOCK = LOCK
        notebook.run("def use(block): return block, LOCK")
        with pytest.raises(shmpar.PlanError) as caught:
            pack(function(notebook))
        assert culprit in str(caught.value)
        assert caught.value.__cause__ is not None

    def test_a_function_by_name_may_use_any_global(self) -> None:
        """The worker imports the module itself."""
        assert sent(global_user) is global_user

    def test_the_reason_of_a_failure_is_reported(self) -> None:
        """The reason is in the message."""

        class Refuses:
            def __reduce__(self) -> Any:
                raise RuntimeError("not today")

        with pytest.raises(shmpar.PlanError, match="not today"):
            pack((Refuses(),))

    def test_a_closed_shared_array_is_gone(self) -> None:
        """The missing segment has an error of its own."""
        array = shmpar.zeros(4)
        array.close()
        with pytest.raises(shmpar.SegmentGone):
            pack({"held": array})
