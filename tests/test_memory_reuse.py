"""New arrays get the memory of arrays that were dropped, and nobody sees a change of a value."""

from __future__ import annotations

import errno
import fcntl
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

import shmpar
from shmpar.cluster.messages import Memory
from shmpar.memory import allocate, limits, names, reuse
from shmpar.memory.locate import locate
from tests.interpreters import run_python
from tests.test_little_shm import in_little_shm

COUNT = 1 << 20  # numbers of an array of 8 MiB
LONG = 60.0  # seconds, more than any test takes

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux has leases")


@pytest.fixture
def long_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep files for so long that no test is too slow to see them."""
    monkeypatch.setattr(reuse, "SECONDS", LONG)


@pytest.fixture(params=["processes", "threads"])
def pool(
    request: pytest.FixtureRequest, long_kept: None, nothing_left: None
) -> Iterator[shmpar.Pool]:
    """A pool of its own, whose end closes all files that are kept."""
    with shmpar.Pool(2, engine=request.param) as pool:
        pool.submit(abs, 1).result()  # Why: only a pool thread that runs keeps files.
        yield pool


@pytest.fixture
def processes(long_kept: None, nothing_left: None) -> Iterator[shmpar.Pool]:
    with shmpar.Pool(2) as pool:
        pool.submit(abs, 1).result()
        yield pool


def file_of(array: np.ndarray) -> int:
    """Return the number of the file in which an array lies."""
    found = locate(array)
    assert found is not None
    return found.segment.identity()[1]


def drop(make: Callable[[], np.ndarray]) -> int:
    """Make an array and drop it; return the number of its file."""
    return file_of(make())


def wait_until(holds: Callable[[], object]) -> None:
    until = time.monotonic() + LONG
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.01)


def new_files(pool: shmpar.Pool, count: int = 6) -> list[np.ndarray]:
    """Return arrays of minus ones that live at the same time."""
    return [pool.array(np.full(COUNT, -1.0)) for _ in range(count)]


# The memory is reused


def test_outputs(pool: shmpar.Pool) -> None:
    """The outputs of a loop lie in few files, and each has its own values."""
    values = pool.array(np.arange(float(COUNT)))
    files = set()
    for factor in range(1, 9):
        found = pool.map_blocks(lambda block, factor=factor: block * factor, values)
        assert np.array_equal(found, values * factor)
        files.add(file_of(found))
        del found
    assert len(files) < 8


def test_an_output_that_is_held_keeps_its_memory(pool: shmpar.Pool) -> None:
    """Arrays that live at the same time never share memory, also if only a part is held."""
    values = pool.array(np.arange(float(COUNT)))
    held = [
        pool.map_blocks(lambda block, add=add: block + add, values)[::-1][5:9] for add in range(8)
    ]
    for add, part in enumerate(held):
        assert np.array_equal(part, values[::-1][5:9] + add)


def test_a_copy_waits_for_workers(processes: shmpar.Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain inputs of calls in a loop lie in one file, which workers unmap between the calls."""
    monkeypatch.setattr(reuse, "_PATIENCE", 1.0)  # seconds per byte
    values = np.arange(float(COUNT))
    for _ in range(5):
        assert processes.sum(values) == values.sum()
    wait_until(reuse.kept)
    assert len(reuse.kept()) == 1


@pytest.mark.parametrize(
    "source",
    [
        np.arange(float(COUNT)),
        np.arange(COUNT, dtype=np.int64),
        np.arange(float(COUNT)).reshape(1 << 10, 1 << 10).T,
        np.arange(2.0 * COUNT)[::2],
        np.arange(float(COUNT))[::-1],
        np.arange(8 * COUNT, dtype=np.uint8).reshape(-1, 8),
    ],
    ids=["floats", "integers", "transposed", "strided", "reversed", "bytes"],
)
def test_copies(source: np.ndarray, pool: shmpar.Pool) -> None:
    """Copies of any layout have NumPy's values in memory that had others."""
    dropped = drop(lambda: pool.array(np.full(COUNT, 7.0)))
    found = pool.array(source)
    assert np.array_equal(found, source)
    assert file_of(found) == dropped
    del found
    assert pool.sum(source) == source.sum()
    assert np.array_equal(pool.map_blocks(lambda block: block + 1, source), source + 1)


def test_a_cast_copy(pool: shmpar.Pool) -> None:
    dropped = drop(lambda: pool.array(np.full(COUNT, 7.0)))
    found = pool.array(np.arange(COUNT, dtype="f4"), dtype="f8")
    assert np.array_equal(found, np.arange(COUNT))
    assert file_of(found) == dropped


@pytest.mark.parametrize("make", ["zeros", "empty", "ones", "full"])
def test_arrays_that_are_made_without_values(make: str, pool: shmpar.Pool) -> None:
    """Zeros are zeros, and so is new memory that is given as empty."""
    drop(lambda: pool.array(np.full(COUNT, 7.0)))
    more = (3.0,) if make == "full" else ()
    found = getattr(pool, make)(COUNT, *more)
    assert (found == {"ones": 1.0, "full": 3.0}.get(make, 0.0)).all()


def test_small_pages(pool: shmpar.Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory in small pages is reused as well."""
    monkeypatch.setenv("SHMPAR_HUGE_PAGES", "0")
    dropped = drop(lambda: pool.array(np.full(COUNT, 7.0)))
    found = pool.array(np.arange(float(COUNT)))
    assert np.array_equal(found, np.arange(COUNT))
    assert file_of(found) == dropped


def test_the_list_of_memory(processes: shmpar.Pool) -> None:
    """The memory of a dropped array belongs to no pool, and `ls --all` lists it."""
    dropped = drop(lambda: processes.array(np.ones(COUNT)))
    assert 8 * COUNT not in [one.nbytes for one in processes.memory]
    found = [one for one in names.nameless() if one.path == f"/dev/shm/#{dropped}"]
    assert [(one.size, one.pids) for one in found] == [(8 * COUNT, (os.getpid(),))]


# Nobody sees the new values


def _hold(block: np.ndarray) -> float:
    _held.append(block)
    return float(block[0])


_held: list[np.ndarray] = []


def _held_values() -> list[float]:
    found = [float(block.min()) for block in _held]
    _held.clear()
    return found


def test_a_view_that_a_worker_keeps(processes: shmpar.Pool) -> None:
    """A function may keep its block; that worker holds the file."""
    values = processes.array(np.full(COUNT, 5.0))
    processes.block_reduce(_hold, values, chunks=COUNT // 4)
    del values
    made = new_files(processes)
    found = [processes.submit(_held_values) for _ in range(20)]
    assert {value for one in found for value in one.result()} == {5.0}
    del made


def test_a_view_that_a_worker_thread_keeps(long_kept: None, nothing_left: None) -> None:
    with shmpar.Pool(2, engine="threads") as pool:
        values = pool.array(np.full(COUNT, 5.0))
        pool.block_reduce(_hold, values, chunks=COUNT // 4)
        del values
        made = new_files(pool)
        assert set(_held_values()) == {5.0}
        del made


def _min_later(array: np.ndarray, told: Any, answer: Any) -> None:
    told.recv()
    answer.send(float(array.min()))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child(pool: shmpar.Pool) -> None:
    """A child that inherits an array sees its values for as long as it lives."""
    values = pool.array(np.full(COUNT, 5.0))
    told, tell = multiprocessing.Pipe(duplex=False)
    hear, answer = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(
        target=_min_later, args=(values.view(np.ndarray), told, answer)
    )
    child.start()
    del values
    made = new_files(pool)
    tell.send(None)
    assert hear.recv() == 5.0
    child.join()
    child.close()
    for pipe in (told, tell, hear, answer):
        pipe.close()
    del made


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_keeps_no_file(pool: shmpar.Pool) -> None:
    """The memory that is kept in the parent is not held by its children."""
    drop(lambda: pool.array(np.full(COUNT, 5.0)))
    fds = [one.fileno() for one in reuse.kept()]
    status = os.fstat(fds[0])
    child = os.fork()
    if not child:
        try:
            same = os.path.samestat(os.fstat(fds[0]), status)
        except OSError:
            same = False
        os._exit(same or bool(reuse.kept()) or bool(reuse._wakes))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert file_of(pool.array(np.ones(COUNT))) == status.st_ino


def test_a_process_that_is_attached(processes: shmpar.Pool) -> None:
    """An array with a name is not reused: others may open it later."""
    values = processes.array(np.full(COUNT, 5.0))
    source = """
        import sys, shmpar
        array = shmpar.attach(sys.argv[1], int(sys.argv[2]), "f8")
        print(array.min(), flush=True)
        sys.stdin.readline()
        print(array.min())
        """
    program = subprocess.Popen(
        [sys.executable, "-c", "\n".join(line[8:] for line in source.splitlines()),
         values.name, str(COUNT)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert program.stdout is not None
    assert program.stdout.readline() == "5.0\n"
    del values
    made = new_files(processes)
    assert program.communicate("\n")[0] == "5.0\n"
    assert program.returncode == 0
    del made


def _by_name(array: Any) -> object:
    return array.name


def _by_address(array: Any) -> object:
    return dict(array.address)


def _by_pickle(array: Any) -> object:
    import pickle

    return pickle.dumps(array)


def _by_memoryview(array: Any) -> object:
    return memoryview(array)


def _by_dlpack(array: Any) -> object:
    return array.view(np.ndarray).__dlpack__()


def _by_descriptor(array: Any) -> object:
    found = locate(array)
    assert found is not None
    return open(os.dup(found.segment.fileno()), "rb")


def _by_lock(array: Any) -> object:
    array.lock.acquire()
    array.lock.release()
    return array.lock


def _by_view_of_a_closed_array(array: Any) -> object:
    view = array.view(np.ndarray)[5:]
    array.close()
    return view


def _by_place(array: Any) -> object:
    found = locate(array)
    assert found is not None
    return Memory.of(found.segment)


@pytest.mark.parametrize(
    "hold",
    [
        _by_view_of_a_closed_array,
        _by_place,
        _by_name,
        _by_address,
        _by_pickle,
        _by_memoryview,
        _by_dlpack,
        _by_descriptor,
        _by_lock,
    ],
)
def test_other_holders(hold: Callable[[Any], object], processes: shmpar.Pool) -> None:
    """The file of an array that something else holds, or could find, is not reused."""
    values = processes.array(np.full(COUNT, 5.0))
    number, holder = file_of(values), hold(values)
    del values
    made = new_files(processes)
    assert number not in map(file_of, made)
    if hasattr(holder, "close"):
        holder.close()
    del holder, made


def test_copies_in_flight(processes: shmpar.Pool) -> None:
    """Calls that wait for a worker have the values of their arguments."""
    gate = processes.zeros(1)

    def wait_for(gate: np.ndarray) -> None:
        while not gate[0]:
            time.sleep(0.001)

    blocked = [processes.submit(wait_for, gate) for _ in range(2)]
    waiting = [processes.submit(np.min, np.full(COUNT, float(one))) for one in range(6)]
    try:
        made = new_files(processes)
    finally:
        gate[0] = 1
    assert [one.result() for one in waiting] == list(map(float, range(6)))
    assert [one.result() for one in blocked] == [None, None]
    del made


class Arrays(RuleBasedStateMachine):
    """Arrays are made, computed, cut and dropped in any order; each keeps its values."""

    pools: dict[str, shmpar.Pool] = {}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.live: list[tuple[np.ndarray, float]] = []
        self.next = 0.0

    def add(self, array: np.ndarray) -> None:
        self.live.append((array, self.next))

    @property
    def pool(self) -> shmpar.Pool:
        return next(iter(self.pools.values()))

    def values(self, half: bool) -> np.ndarray:
        self.next += 1
        return np.full(COUNT // 2 if half else COUNT, self.next)

    @rule(half=st.booleans())
    def copy(self, half: bool) -> None:
        self.add(self.pool.array(self.values(half)))

    @rule(half=st.booleans(), shared=st.booleans())
    def compute(self, half: bool, shared: bool) -> None:
        values = self.values(half)
        if shared:
            values = self.pool.array(values)
        self.add(self.pool.map_blocks(np.positive, values))

    @rule(half=st.booleans())
    def call(self, half: bool) -> None:
        self.add(self.pool.submit(np.positive, self.values(half)).result())

    @rule(number=st.integers(0, 100), cut=st.booleans())
    def drop(self, number: int, cut: bool) -> None:
        if self.live:
            array, value = self.live.pop(number % len(self.live))
            if cut:
                self.live.append((array[3:5], value))

    @invariant()
    def values_are_kept(self) -> None:
        assert all((array == value).all() for array, value in self.live)


@pytest.mark.parametrize("engine", ["processes", "threads"])
def test_any_order(engine: str, long_kept: None, nothing_left: None) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    with shmpar.Pool(2, engine=engine) as pool:
        Arrays.pools[engine] = pool
        try:
            run_state_machine_as_test(
                Arrays, settings=settings(max_examples=8, stateful_step_count=25, deadline=None)
            )
        finally:
            Arrays.pools.clear()


# Windows that nobody has written


def test_a_failed_run_leaves_zeros(pool: shmpar.Pool) -> None:
    """Windows without a result are zeros, not values of an earlier array."""
    values = pool.array(np.ones((64, COUNT // 64)))
    values[48:] = -1

    def work(block: np.ndarray) -> np.ndarray:
        if block[0, 0] < 0:
            raise ValueError("bad")
        return block + 1

    drop(lambda: pool.map_blocks(lambda block: block * 7, values))
    with pytest.raises(shmpar.FailedChunks):
        pool.map_blocks(work, values, chunks=(8, -1), on_error="collect")
    found = pool.last_run.out
    assert (found[:48] == 2).all()
    assert not found[48:].any()


def test_a_run_that_never_began_leaves_zeros(long_kept: None, nothing_left: None) -> None:
    """The output of a function that cannot be pickled was made, and is blank."""
    lock = threading.Lock()
    with shmpar.Pool(2) as pool:
        pool.submit(abs, 1).result()
        values = pool.array(np.ones(COUNT))
        dropped = drop(lambda: pool.array(np.full(COUNT, 7.0)))
        with pytest.raises(shmpar.PlanError):
            pool.map_overlap(lambda block: block + bool(lock), values, depth=1, dtype="f8")
        out = pool.last_run.out
        assert file_of(out) == dropped
        assert not out.any()


def test_filled_windows(pool: shmpar.Pool) -> None:
    def work(block: np.ndarray, block_id: tuple[int, ...]) -> np.ndarray:
        if block_id[0] % 2:
            raise ValueError("odd")
        return block

    values = pool.array(np.ones((64, COUNT // 64)))
    drop(lambda: pool.map_blocks(lambda block: block * 7, values))
    with pytest.warns(RuntimeWarning):
        found = pool.map_blocks(work, values, chunks=(8, -1), on_error="fill", fill_value=-1.0)
    assert np.array_equal(found[:, 0].reshape(8, 8)[:, 0], [1, -1] * 4)


def _add(block: np.ndarray, out: np.ndarray) -> None:
    out += block


def test_a_function_that_adds_to_its_window(pool: shmpar.Pool) -> None:
    """With pass_out=True, and for a run that others may look at, new outputs are zeros."""
    values = pool.array(np.ones(COUNT))
    drop(lambda: pool.map_blocks(lambda block: block * 7, values))
    assert (pool.map_blocks(_add, values, pass_out=True, dtype="f8") == 1).all()


def test_outputs_that_others_may_look_at(processes: shmpar.Pool) -> None:
    """The output of a run with wait=False reads as zeros until it is written."""
    gate, values = processes.zeros(1), processes.array(np.ones((4, COUNT // 4)))

    def work(block: np.ndarray, block_id: tuple[int, ...], gate: np.ndarray) -> np.ndarray:
        while block_id[0] and not gate[0]:
            time.sleep(0.001)
        return block + 1

    drop(lambda: processes.map_blocks(lambda block: block * 7, values))
    run = processes.map_blocks(work, values, chunks=(1, -1), kwargs={"gate": gate}, wait=False)
    try:
        assert next(run.completed())[0] == slice(0, 1)
        assert not run.out[1:].any()
    finally:
        gate[0] = 1
    assert (run.result() == 2).all()
    del run


def test_an_output_that_is_looked_at_during_a_call(pool: shmpar.Pool) -> None:
    """Until the call is over, its output shows no values of earlier arrays."""
    values, looks = pool.array(np.ones((64, COUNT // 64))), []
    gate = pool.zeros(1)

    def work(block: np.ndarray, block_id: tuple[int, ...], gate: np.ndarray) -> np.ndarray:
        while block_id[0] == 63 and not gate[0]:
            time.sleep(0.001)
        return block + 1

    def look(done: int, _total: int) -> None:
        if done in range(1, 64):
            out = pool.last_run.out
            looks.append(out is None or not (out == 7).any())
            gate[0] = 1

    drop(lambda: pool.array(np.full(COUNT, 7.0)))
    found = pool.map_blocks(work, values, chunks=(1, -1), kwargs={"gate": gate}, progress=look)
    assert (found == 2).all()
    assert looks
    assert all(looks)


@pytest.mark.parametrize("copied", [False, True])
def test_padding(copied: bool, pool: shmpar.Pool) -> None:
    """The gaps between the fields of records hold no values of earlier arrays."""
    dtype = np.dtype([("a", "i1"), ("b", "f8")], align=True)
    values = np.zeros((COUNT, 2), dtype)[:, 0]
    drop(lambda: pool.array(np.full(2 * COUNT, -1e300)))
    make = pool.array if copied else partial(pool.map_blocks, lambda block: block.copy())
    found = make(values)
    assert not np.asarray(found).view(np.uint8).any()


# The memory is given back


def test_after_a_while(monkeypatch: pytest.MonkeyPatch, nothing_left: None) -> None:
    """A pool that does nothing closes the files of dropped arrays."""
    monkeypatch.setattr(reuse, "SECONDS", 0.05)
    with shmpar.Pool(2) as pool:
        pool.submit(abs, 1).result()
        drop(lambda: pool.array(np.ones(COUNT)))
        wait_until(lambda: not reuse.kept())


def test_without_a_pool() -> None:
    """No thread would close them, so none is kept."""
    source = """
        import numpy as np, shmpar
        from shmpar.memory import reuse
        reuse.SECONDS = 60
        def kept():
            array = shmpar.array(np.ones(1 << 20))
            del array
            return len(reuse.kept())
        print(kept())
        with shmpar.Pool(2) as pool:
            print(kept())
            pool.submit(abs, 1).result()
            print(kept())
        print(len(reuse.kept()), kept())
        """
    assert run_python(source).stdout.split() == ["0", "0", "1", "0", "0"]


def test_beside_little_free_memory(processes: shmpar.Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that are large beside the free memory are closed at once."""
    monkeypatch.setattr(limits, "free_memory", lambda: 8 * 8 * COUNT)
    drop(lambda: processes.array(np.ones(COUNT)))
    processes._loop.settle()
    processes._loop.settle()  # Why twice: the files are looked at before the next request
    assert len(reuse.kept()) == 1
    monkeypatch.setattr(limits, "free_memory", lambda: 8 * 8 * COUNT - 1)
    drop(lambda: processes.array(np.ones(COUNT // 2)))
    wait_until(lambda: [one.nbytes for one in reuse.kept()] == [4 * COUNT])


def test_many_files(processes: shmpar.Pool) -> None:
    """No more than some descriptors are held."""
    for more in range(2 * reuse._MOST):
        drop(lambda more=more: processes.array(np.ones((1 << 19) + more)))
    wait_until(lambda: len(reuse.kept()) == reuse._MOST)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small /dev/shm needs root")
def test_where_room_is_lacking() -> None:
    """An array that fits beside no kept file gets its room at once, in /dev/shm."""
    source = """
import numpy as np, shmpar
from shmpar.memory import limits, reuse
reuse.SECONDS, reuse._SHARE = 60, 0
with shmpar.Pool(2) as pool:
    pool.submit(abs, 1).result()
    limits.free_memory = lambda: (60 << 20) - sum(one.nbytes for one in reuse.kept())
    values = pool.array(np.ones(5 << 20))
    del values
    print(len(reuse.kept()))
    values = pool.array(np.ones(6 << 20))
    print(len(reuse.kept()), values.sum())
    del values
    found = pool.map_blocks(lambda block: block + 1, np.ones(3 << 20))
    print(found.sum())
"""
    assert in_little_shm(source) == f"1\n0 {float(6 << 20)}\n{float(6 << 20)}\n"


def test_a_name_that_another_process_gave(processes: shmpar.Pool) -> None:
    """A file that can be opened by a name is not used again, also if nobody has it open."""
    values = processes.array(np.full(COUNT, 7.0))
    number, found, path = file_of(values), locate(values), f"/dev/shm/other-{os.getpid()}"
    assert found is not None
    # Why not by a worker that ends: another test would remove its name.
    allocate.link_file(found.segment.fileno(), path)
    try:
        del values, found
        assert len(reuse.kept()) == 1
        made = new_files(processes)
        assert number not in map(file_of, made)
        assert (np.fromfile(path) == 7).all()
        del made
    finally:
        os.unlink(path)


def test_a_second_name(nothing_left: None) -> None:
    """An array whose name a worker has removed is found in another way."""
    with shmpar.Pool(1) as pool:
        values = pool.array(np.full(COUNT, 7.0))
        first = pool.submit(_by_name, values).result()
        pool.restart()
        wait_until(lambda: not os.path.exists(f"/dev/shm/{first}"))
        found = pool.submit(lambda name: shmpar.attach(name, COUNT, "f8").min(), values.name)
        assert found.result() == 7.0


def test_a_file_with_holes(pool: shmpar.Pool) -> None:
    """The output of a failed run, which is not reserved as a whole, is not kept."""
    values = pool.array(np.ones((64, COUNT // 8)))

    def fail(block: np.ndarray) -> np.ndarray:
        raise ValueError("bad")

    with pytest.raises(shmpar.ChunkError):
        pool.map_overlap(fail, values, depth=1, dtype="f8", chunks=(1, -1))
    output = file_of(pool.last_run.execution.outputs.arrays[0])
    pool.parallel_map(abs, range(2))  # Why: the pool holds its last run.
    gc.collect()
    path = f"/dev/shm/#{output}"
    wait_until(lambda: path not in [one.path for one in names.nameless()])


def test_a_closed_standard_stream(processes: shmpar.Pool) -> None:
    """No array gets the number of a stream, into which a program prints."""
    source = """
        import os, numpy as np, shmpar
        with shmpar.Pool(2) as pool:
            pool.submit(abs, 1).result()
            array = pool.array(np.ones(1 << 20))
            del array
            os.close(1)
            array = pool.array(np.ones(1 << 20))
            print("x" * 100, flush=True)
            os.write(2, str(array.sum()).encode())
        """
    assert run_python(source).stderr == str(float(1 << 20))


def test_a_lock_of_a_new_array(processes: shmpar.Pool) -> None:
    """The lock of a dropped array is not that of the next one."""
    values = processes.array(np.ones(COUNT))
    old = values.lock
    values.close()
    del values
    new = processes.array(np.ones(COUNT))
    with new.lock:
        assert new.lock is not old
    del old, new


def test_a_pool_thread_that_is_busy(long_kept: None, nothing_left: None) -> None:
    """Each pool closes the files of all, since another one may have no time."""
    with shmpar.Pool(1) as one, shmpar.Pool(1) as other:
        for each in (one, other):
            each.submit(abs, 1).result()
        gate = threading.Event()
        one._loop._post(gate.wait)
        try:
            reuse.SECONDS = 0.05
            drop(lambda: other.array(np.ones(COUNT)))
            wait_until(lambda: not reuse.kept())
        finally:
            gate.set()


def test_room_that_others_were_promised(processes: shmpar.Pool) -> None:
    """A file that is reserved needs no further room."""
    dropped = drop(lambda: processes.array(np.full(COUNT, 7.0)))

    class Booking:
        def unreserved(self) -> tuple[int, int]:
            return os.stat("/dev/shm").st_dev, 1 << 60

    booking = Booking()
    allocate.note_promise(-(1 << 40), booking)
    found = processes.array(np.arange(float(COUNT)))
    assert file_of(found) == dropped
    del booking


# A system that refuses


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EPERM])
def test_a_system_without_leases(
    number: int, processes: shmpar.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is reused, and later nothing is kept."""

    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(reuse, "_refused", False)
    monkeypatch.setattr(reuse.fcntl, "fcntl", refuse)
    dropped = drop(lambda: processes.array(np.full(COUNT, 7.0)))
    found = processes.array(np.arange(float(COUNT)))
    assert file_of(found) != dropped
    assert np.array_equal(found, np.arange(COUNT))
    del found
    assert not reuse.kept()


def test_another_opening_at_the_moment_of_the_lease(
    processes: shmpar.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel sends a signal then, which does not end the process."""
    heard, opened = [], []
    real = fcntl.fcntl

    def call(fd: int, command: int, argument: int) -> int:
        if (command, argument) == (fcntl.F_SETLEASE, fcntl.F_UNLCK):
            try:
                opened.append(os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_NONBLOCK))
            except BlockingIOError:
                opened.append(-1)
        return real(fd, command, argument)

    before = {one: signal.signal(one, lambda number, _: heard.append(number))
              for one in (signal.SIGIO, signal.SIGURG)}  # fmt: skip
    monkeypatch.setattr(reuse.fcntl, "fcntl", call)
    try:
        drop(lambda: processes.array(np.ones(COUNT)))
        found = processes.array(np.arange(float(COUNT)))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert opened == [-1]
    assert heard == [signal.SIGURG]
    assert before[signal.SIGURG] is signal.SIG_DFL  # which the kernel ignores
    assert np.array_equal(found, np.arange(COUNT))


def test_the_end_of_the_interpreter() -> None:
    """A program that drops arrays up to its end, with its pool open, says nothing."""
    source = """
        import numpy as np, shmpar
        pool = shmpar.Pool(2)
        kept = [pool.array(np.ones(1 << 20)) for _ in range(3)]
        found = pool.map_blocks(lambda block: block + 1, kept[0])
        print(found.sum())
        """
    done = run_python(source)
    assert (done.stdout, done.stderr) == (f"{2.0 * (1 << 20)}\n", "")
