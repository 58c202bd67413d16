"""Values that a call was given stay as they were when it was made, at every size."""

from __future__ import annotations

import functools
import random
import warnings
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shmpar
from shmpar.memory.locate import locate
from tests.pools import drop_caches, warm
from tests.work.captured import Box, Gate, keep, kept_sum, wait

SIZES = (1_000, 100_000)


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    """Return a gate that is closed."""
    made = Gate(tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="module")
def warm_worker() -> Iterator[shmpar.Pool]:
    """Return a pool with a single process, for the module."""
    with warm("processes", 1) as pool:
        yield pool


@pytest.fixture
def workers(warm_worker: shmpar.Pool, nothing_left: None) -> Iterator[shmpar.Pool]:
    """Return a pool with a single process, which a test can keep busy."""
    yield warm_worker
    drop_caches(warm_worker)


def of_verb(pool: shmpar.Pool, size: int) -> Any:
    """Return an array of ones that is the result of a verb: plain, in shared memory."""
    made = pool.map_blocks(np.ones_like, np.zeros(size), dtype="f8")
    assert locate(made) is not None
    return made


@pytest.mark.parametrize("size", SIZES)
class TestPlainArraysInSharedMemory:
    """Results of verbs, given to a call that is made later."""

    def test_submit(self, workers: shmpar.Pool, gate: Gate, size: int) -> None:
        """An argument has the values of the moment of the call."""
        a = of_verb(workers, size)
        busy = workers.submit(wait, gate.path)
        late = workers.submit(np.sum, a)
        named = workers.submit(lambda *, x: float(x.sum()), x=a[10:])
        held = workers.submit(lambda: float(a.sum()))
        a[:] = 7
        gate.open(1)
        busy.result()
        assert (late.result(), named.result(), held.result()) == (size, size - 10, size)

    def test_map(self, workers: shmpar.Pool, gate: Gate, size: int) -> None:
        """Rows have the values of the moment of the call."""
        rows = of_verb(workers, 3 * size).reshape(3, size)
        busy = workers.submit(wait, gate.path)
        late = workers.map(np.sum, rows)
        rows[:] = 7
        gate.open(1)
        busy.result()
        assert list(late) == [size] * 3

    def test_a_verb_that_does_not_wait(self, workers: shmpar.Pool, gate: Gate, size: int) -> None:
        """Captured arrays have the values of the moment of the call."""
        a = of_verb(workers, size)
        busy = workers.submit(wait, gate.path)
        run = workers.parallel_map(lambda _: float(a.sum()), range(2), dtype="f8", wait=False)
        also = workers.parallel_map(
            lambda _, b: float(b.sum()), range(2), dtype="f8", kwargs={"b": a}, wait=False
        )
        a[:] = 7
        gate.open(1)
        busy.result()
        assert run.result().tolist() == also.result().tolist() == [size] * 2

    def test_a_file_mapped_for_writing(
        self, workers: shmpar.Pool, gate: Gate, size: int, tmp_path: Path
    ) -> None:
        """An argument has the values of the moment of the call too."""
        file = np.lib.format.open_memmap(tmp_path / "a.npy", "w+", "f8", (size,))
        file[:] = 1
        busy = workers.submit(wait, gate.path)
        late = workers.submit(np.sum, file)
        file[:] = 7
        gate.open(1)
        busy.result()
        assert late.result() == size

    def test_a_shared_array_stays_shared(self, workers: shmpar.Pool, gate: Gate, size: int) -> None:
        """A SharedArray is a handle on memory, so the call sees what is there when it looks."""
        with shmpar.ones(size) as a:
            busy = workers.submit(wait, gate.path)
            late = workers.submit(np.sum, a)
            a[:] = 7
            gate.open(1)
            busy.result()
            assert late.result() == 7 * size


@pytest.mark.parametrize("size", SIZES)
def test_an_initializer_keeps_its_values(size: int) -> None:
    """A worker that is started later gets the values of the moment when the pool was made."""
    with shmpar.Pool(1) as maker:
        a = of_verb(maker, size)
    with shmpar.Pool(1, initializer=keep, initargs=(a,), max_tasks_per_worker=1) as pool:
        assert pool.submit(kept_sum).result() == size
        a[:] = 7
        assert pool.submit(kept_sum).result() == size


def holders(array: Any) -> dict[str, Any]:
    """Return functions of a block that hold an array in each way."""

    class Model:
        def __init__(self) -> None:
            self.parts = {"a": [array]}

        def __call__(self, block: Any) -> Any:
            return block + self.parts["a"][0].mean()

    def default(block: Any, a: Any = array) -> Any:
        return block + a.mean()

    return {
        "closure": lambda block: block + array.mean(),
        "partial": functools.partial(np.add, array),
        "default": default,
        "instance": Model(),
        "method": Model().__call__,
    }


@pytest.mark.parametrize(
    ("how", "size"),
    [
        ("closure", SIZES[0]),
        ("closure", SIZES[1]),
        ("partial", SIZES[0]),
        ("default", SIZES[1]),
        ("instance", SIZES[0]),
        ("method", SIZES[1]),
    ],
)
@pytest.mark.parametrize("kind", ["plain", "shared", "file"])
def test_a_captured_array_that_is_also_the_output_is_refused(
    pool: shmpar.Pool, how: str, kind: str, size: int, tmp_path: Path
) -> None:
    """A chunk would read the results of others."""
    x = np.ones(size)
    if kind == "shared":
        out: Any = pool.array(x)
    elif kind == "file":
        out = np.lib.format.open_memmap(tmp_path / "a.npy", "w+", "f8", (size,))
        out[:] = 1
    else:
        out = pool.map_blocks(np.negative, -x)
    function = holders(out)[how]
    for where in (out, out[::-1]):
        with pytest.raises(ValueError, match=r"an array \(.*\) that the function"):
            pool.map_blocks(function, x, out=where, chunks=size // 10)
    with pytest.raises(ValueError, match="shares memory with an array"):
        pool.map_blocks(lambda b, a: b + a.mean(), x, out=out, kwargs={"a": out})
    np.testing.assert_array_equal(out, 1)
    other = np.zeros(size)
    pool.map_blocks(function, x, out=other, chunks=size)
    np.testing.assert_array_equal(other, 2)


class Slotted:
    """An object whose class has no slots of its own."""

    __slots__ = ("held",)


class Inherited(Slotted):
    """Its slot is that of the base class."""

    __slots__ = ()


def in_slot(held: Any) -> Any:
    one = Inherited()
    one.held = held
    return lambda block: block + (one.held is None)


def in_attribute(held: Any) -> Any:
    def function(block: Any) -> Any:
        return block + (function.held is None)  # type: ignore[attr-defined]

    function.held = held  # type: ignore[attr-defined]
    return function


def in_deque(held: Any) -> Any:
    queue = deque([held])
    return lambda block: block + len(queue)


def in_vectorized(held: Any) -> Any:
    return np.vectorize(lambda value: value + (held is None))


@pytest.mark.parametrize("holder", [in_slot, in_attribute, in_deque, in_vectorized])
def test_objects_in_slots_attributes_queues_and_vectorized_functions_are_found(holder: Any) -> None:
    """An inherited slot, an attribute of the function and an item of a deque are held too."""
    with shmpar.Pool(engine="serial") as pool:
        out = pool.ones(4)
        with pytest.raises(ValueError, match="shares memory with an array"):
            pool.map_blocks(holder(out), np.zeros(4), out=out, chunks=2)
        np.testing.assert_array_equal(out, 1)
        with pytest.warns(RuntimeWarning, match="the function holds a Generator"):
            pool.map_blocks(holder(rng), np.zeros(4), chunks=2)


def test_an_array_that_a_compiled_function_reads_is_found() -> None:
    """Its dispatcher also holds many objects of the compiler."""
    numba = pytest.importorskip("numba")
    with shmpar.Pool(engine="serial") as pool:
        out = pool.ones(4)
        function = numba.njit(lambda block: block + out[0])
        function(np.zeros(4))
        with pytest.raises(ValueError, match="shares memory with an array"):
            pool.map_blocks(function, np.zeros(4), out=out, chunks=2)


@pytest.mark.parametrize("size", SIZES)
def test_an_array_hidden_in_an_object_is_copied(size: int) -> None:
    """Worker processes see the old values, also of an array that the check does not find."""
    with shmpar.Pool(2) as pool:
        out = of_verb(pool, size)
        result = pool.map_blocks(
            lambda block, box: block + box()[0], np.ones(size), chunks=size // 10, out=out,
            kwargs={"box": Box(out)},
        )  # fmt: skip
        np.testing.assert_array_equal(result, 2)
    Box._contents.clear()


def test_items_of_the_output_are_refused(pool: shmpar.Pool) -> None:
    """A list of arrays in which the output lies would be read half old, half new."""
    out = pool.map_blocks(np.negative, np.zeros(3))
    with pytest.raises(ValueError, match="gets as an item"):
        pool.parallel_map(np.sum, [out, out, out], out=out)


class TestMappedFiles:
    """Captured np.memmap arrays."""

    @pytest.mark.parametrize("mode", ["r", "r+", "c"])
    def test_a_captured_file_is_mapped(self, tmp_path: Path, mode: Any) -> None:
        """The payload holds no values, and in the worker it is a np.memmap of the same values."""
        from shmpar.pickling.pack import pack

        np.save(tmp_path / "a.npy", np.arange(100_000.0).reshape(100, -1))
        file = np.load(tmp_path / "a.npy", mmap_mode=mode)[:, ::-2]
        if mode == "c":
            file[0, 0] = -1
        payload = pack({"held": file})
        assert len(payload.body) < 1_000
        assert payload.segments[0].kind == ("file" if mode != "c" else payload.segments[0].kind)
        with shmpar.Pool(1) as pool:

            def look(_: int) -> tuple[str, bool, Any]:
                return type(file).__name__, bool(file.flags.writeable), file.copy()

            name, writable, values = pool.parallel_map(look, range(1), dtype=object)[0]
            assert (name, writable) == ("memmap", mode != "r")
            np.testing.assert_array_equal(values, file)
            future = pool.submit(look, 0)
            np.testing.assert_array_equal(future.result()[2], file)

    def test_writes_stay_in_the_worker(self, tmp_path: Path) -> None:
        """To the function a captured file is its own, as if pickled."""
        file = np.lib.format.open_memmap(tmp_path / "a.npy", "w+", "f8", (100_000,))

        def change(_: int) -> float:
            file[:] = 5
            return float(file[0])

        with shmpar.Pool(1) as pool:
            assert pool.parallel_map(change, range(1)) == [5]
            assert pool.submit(change, 0).result() == 5
        assert not file.any()


rng = np.random.default_rng(0)


def noisy(block: Any) -> Any:
    """Add numbers of a global generator of this module."""
    return block + rng.normal(size=block.shape)


def random_functions() -> dict[str, Any]:
    """Return functions that hold a generator in each way."""
    mine, old, plain = np.random.default_rng(0), np.random.RandomState(0), random.Random(0)
    normal = old.normal

    class Model:
        def __init__(self) -> None:
            self.source = mine

        def step(self, block: Any) -> Any:
            return block + self.source.normal()

    def inner(block: Any) -> Any:
        return block + mine.normal()

    namespace = {"source": mine}
    exec("def by_global(block): return block + source.normal()", namespace)  # noqa: S102

    return {
        "Generator": lambda block: block + mine.normal(),
        "RandomState": lambda block: block + old.normal(),
        "Random": lambda block: block + plain.random(),
        "method of a C extension": lambda block: block + normal(),
        "partial": functools.partial(lambda block, source: block + source.normal(), source=mine),
        "nested": lambda block: inner(block) + 1,
        "method": Model().step,
        "global": namespace["by_global"],
        "container": lambda block, sources=[mine]: block + sources[0].normal(),
    }


@pytest.mark.parametrize("how", list(random_functions()))
class TestCapturedGenerators:
    """A generator that each worker gets a copy of."""

    def test_verbs_warn(self, pool: shmpar.Pool, how: str) -> None:
        """One warning names the remedy, at the line of the call."""
        function = random_functions()[how]
        with pytest.warns(RuntimeWarning, match="a parameter of the function rng") as caught:
            pool.map_blocks(function, np.zeros(40), chunks=1)
        assert [one.filename for one in caught] == [__file__]
        with pytest.warns(RuntimeWarning, match=r"parallel_map: the function holds a \w+\."):
            pool.parallel_map(function, np.zeros(40))

    def test_submit_and_map_warn(self, pool: shmpar.Pool, how: str) -> None:
        """One warning a call, and the remedy is a generator for each call."""
        function = random_functions()[how]
        with pytest.warns(RuntimeWarning, match="submit: .*spawn") as caught:
            pool.submit(function, 1.0).result()
        assert [one.filename for one in caught] == [__file__]
        with pytest.warns(RuntimeWarning, match="map: .*spawn") as caught:
            list(pool.map(function, range(5)))
        assert [one.filename for one in caught] == [__file__]


def test_a_function_of_cython_is_sent_by_its_name(pool: shmpar.Pool) -> None:
    """Its type has a descriptor as its ``__module__``, and lies in a module without a file."""
    rand = vars(np.random.RandomState)["rand"]

    def draw(seed: int) -> tuple[float, Any]:
        return rand(np.random.RandomState(seed)), rand

    assert draw(3) == pool.submit(draw, 3).result() == pool.parallel_map(draw, [3])[0]


def test_a_generator_in_kwargs_or_as_a_constant_warns(pool: shmpar.Pool) -> None:
    """Each worker gets the same state, also if the parameter is named rng."""
    with pytest.warns(RuntimeWarning, match="named? a parameter|name a parameter"):
        pool.map_blocks(
            lambda block, rng: block + rng.normal(), np.zeros(4), chunks=1, kwargs={"rng": rng}
        )


class Proxy:
    """An object that has no attributes outside of a context, as proxies of web frameworks."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError("outside of a context")


def test_objects_that_refuse_attributes_are_passed_over() -> None:
    """The check of captured objects raises none of their errors."""
    proxy, many = Proxy(), list(range(100_000))
    with shmpar.Pool(2, engine="threads") as pool:
        result = pool.map_blocks(lambda block: block + (proxy is not None) + many[1], np.ones(3))
        assert result.tolist() == [3, 3, 3]
        assert pool.submit(lambda: proxy is None).result() is False


def test_no_warning_without_a_copy(pool: shmpar.Pool) -> None:
    """Streams of the chunks, generators for each call or item, and other random numbers."""
    from random import SystemRandom

    system = SystemRandom()
    spawned = np.random.default_rng(1).spawn(4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pool.map_blocks(lambda block, rng: block + rng.normal(), np.zeros(4), chunks=1)
        pool.map_blocks(with_default, np.zeros(4), chunks=1)
        pool.map_blocks(lambda block: block + np.random.normal(), np.zeros(4))  # noqa: NPY002
        pool.map_blocks(noisy, np.zeros(4), chunks=1)  # the workers import it
        pool.parallel_map(lambda one: one.normal(), spawned)
        list(pool.map(lambda one: one.normal(), spawned))
        pool.submit(lambda one: one.normal(), spawned[0]).result()
        if pool.engine != "processes":  # it does not pickle
            pool.map_blocks(lambda block: block + system.random(), np.zeros(4), chunks=1)


def with_default(block: Any, rng: Any = np.random.default_rng(0)) -> Any:  # noqa: B008
    """Add a number; the default is not used, since each chunk is passed a stream."""
    return block + rng.normal()
