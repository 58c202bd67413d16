"""Single measurements of shmpar beside bare processes and the standard library.

``python -m benchmarks NAME`` runs one of them; each prints its own table.
"""

from __future__ import annotations

import fcntl
import functools
import importlib.util
import itertools
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory

import numpy as np

import shmpar
from benchmarks import cases, workloads
from benchmarks.calls import calls, joblib_backends
from benchmarks.cases import WORKERS, busy_loops, worker_pids
from benchmarks.harness import alternate, forked_loop, peak_pss, pss, ratio, table
from benchmarks.scaling import scaling
from benchmarks.stores import stores
from shmpar.memory.huge import VARIABLE

_shared: dict[str, np.ndarray] = {}


@contextmanager
def _fork_pool() -> Iterator[multiprocessing.pool.Pool]:
    """Start a warm pool of the standard library; its processes see the arrays in `_shared`."""
    with multiprocessing.get_context("fork").Pool(WORKERS) as pool:
        pool.map(abs, range(WORKERS))
        yield pool


# Small calls ----------------------------------------------------------------------------------


def floor(*, quick: bool) -> None:
    """A warm call on two chunks, on the idle machine and beside two busy loops, in turns."""
    burst, rounds = (5, 3) if quick else (50, 60)
    case, times = cases.floor(0), {}

    def turn(name: str, call: Callable[[], object]) -> None:
        # Why: the first calls of a turn find processor and caches cold.
        took = cases.time_calls(call, seconds=0, warm=0.005)
        for _ in range(burst):
            began = time.perf_counter()
            call()
            took.append(time.perf_counter() - began)
        times.setdefault(name, []).extend(took)

    def all_turns(where: str) -> None:
        turn(f"shmpar, {where}", lambda: case.call(pool))
        turn(f"Pool.map, {where}", lambda: theirs.map(abs, (1, 2), chunksize=1))

    with _fork_pool() as theirs, shmpar.Pool(WORKERS) as pool:
        worker_pids(pool)
        for _ in range(rounds):
            all_turns("idle")
            with busy_loops(2):
                all_turns("busy")
    print(table(times, 1e6, "us"))
    for where in ("idle", "busy"):
        medians = [statistics.median(times[f"{name}, {where}"]) for name in ("Pool.map", "shmpar")]
        print(f"  Pool.map's median / shmpar's, {where}: {medians[0] / medians[1]:.2f}")


def _now(_block: np.ndarray) -> int:
    return time.monotonic_ns()


def anatomy(*, quick: bool) -> None:
    """Stages of a warm call on two chunks (medians)."""
    stages = {
        "from the call to the first chunk": [],
        "between the two chunks": [],
        "from the last chunk to the result": [],
        "the whole call": [],
    }
    with shmpar.Pool(WORKERS) as pool:
        array = pool.array(np.arange(10.0))
        worker_pids(pool)
        for _ in range(100 if quick else 3_000):
            began = time.monotonic_ns()
            first, last = sorted(pool.block_reduce(_now, array, chunks=5).tolist())
            ended = time.monotonic_ns()
            steps = (first - began, last - first, ended - last, ended - began)
            for found, nanoseconds in zip(stages.values(), steps, strict=True):
                found.append(nanoseconds / 1e3)
    for name, microseconds in stages.items():
        print(f"  {statistics.median(microseconds):7.1f} us  {name}")


def constants(*, quick: bool) -> None:
    """Cost of a claim, a row, a block and a byte."""
    with tempfile.TemporaryFile() as file:
        print(f"  claim, alone                {_claim(_offset(file), quick):8.2f} us (file offset)")
        print(f"                              {_claim(_lock(file), quick):8.2f} us (file lock)")
        for workers in (2, 8):
            each = _claims_at_once(_offset(file), workers, quick)
            print(f"  claim, {workers} processes at once  {each:8.2f} us of the counter's time")
    for name in ("added_row", "added_block"):
        sizes = cases.CASES[name]
        case = sizes.prepare(sizes.smoke if quick else sizes.large)
        with shmpar.Pool(1) as pool:
            added = statistics.median(case.measure(pool) for _ in range(1 if quick else 9))
        print(f"  {name.replace('_', ' to a '):27} {added * 1e6:8.2f} us")
    one, two = _bandwidth(1, quick), _bandwidth(2, quick)
    print(f"  memory, one process         {one:8.1f} GB/s read")
    print(f"  memory, two processes       {two:8.1f} GB/s read, together")


def _offset(file) -> Callable[[], int]:
    """Return a claim of one ticket by a file offset that all processes share."""
    descriptor = file.fileno()
    return lambda: os.lseek(descriptor, 1, os.SEEK_CUR)


def _lock(file) -> Callable[[], None]:
    """Return a claim of one ticket by a byte-range lock around a counter in the file."""
    descriptor = file.fileno()
    os.pwrite(descriptor, bytes(8), 0)

    def claim() -> None:
        fcntl.lockf(descriptor, fcntl.LOCK_EX, 8)
        number = int.from_bytes(os.pread(descriptor, 8, 0), "little")
        os.pwrite(descriptor, (number + 1).to_bytes(8, "little"), 0)
        fcntl.lockf(descriptor, fcntl.LOCK_UN, 8)

    return claim


def _claim(claim: Callable[[], object], quick: bool) -> float:
    count = 2_000 if quick else 200_000
    began = time.perf_counter()
    for _ in range(count):
        claim()
    return (time.perf_counter() - began) / count * 1e6


def _claims_at_once(claim: Callable[[], object], workers: int, quick: bool) -> float:
    count = 2_000 if quick else 100_000

    def loop(_worker: int, _workers: int) -> None:
        for _ in range(count):
            claim()

    with forked_loop(loop, workers) as call:
        call()
        began = time.perf_counter()
        call()
        return (time.perf_counter() - began) / count / workers * 1e6


def _bandwidth(workers: int, quick: bool) -> float:
    """Return the GB/s that so many processes read together, each from its own array."""
    size, rounds = (1_000_000 if quick else 50_000_000), 5
    arrays = [np.ones(size) for _ in range(workers)]

    def loop(worker: int, _workers: int) -> None:
        for _ in range(rounds):
            arrays[worker].sum()

    with forked_loop(loop, workers) as call:
        call()
        began = time.perf_counter()
        call()
        spent = time.perf_counter() - began
    return rounds * workers * arrays[0].nbytes / spent / 1e9


# Rows and tiles -------------------------------------------------------------------------------


def _sum_row(number: int) -> float:
    return np.sum(_shared["rows"][number])


def tiny_rows(*, quick: bool) -> None:
    """parallel_map(np.sum) on 20,000 rows of 16 against Pool.map over a shared array."""
    case = cases.tiny_rows(2_000 if quick else 20_000)
    _shared["rows"] = plain = case.array.view(np.ndarray)
    numbers = range(len(plain))
    out = shmpar.empty(len(plain)).view(np.ndarray)

    def loop(worker: int, workers: int) -> None:
        for number in range(worker, len(plain), workers):
            out[number] = np.sum(plain[number])

    with (
        _fork_pool() as theirs,
        forked_loop(loop, WORKERS) as ceiling,
        shmpar.Pool(WORKERS) as pool,
    ):
        systems = {
            "shmpar": lambda: case.call(pool),
            "Pool.map": lambda: theirs.map(_sum_row, numbers),
            "bare processes": ceiling,
        }
        batches = {f"Pool.map, {len(plain) // n:,} a batch": len(plain) // n for n in (100, 4, 2)}
        for name, size in batches.items():
            systems[name] = lambda size=size: theirs.map(_sum_row, numbers, size)
        assert np.array_equal(systems["shmpar"](), systems["Pool.map"]())
        times = alternate(systems, 5 if quick else 45)
    print(table(times))
    best = min(("Pool.map", *batches), key=lambda name: statistics.median(times[name]))
    for name in dict.fromkeys(("Pool.map", best)):
        print(f"  faster than {name}: {ratio(times, name, 'shmpar'):.2f}x")
    print(f"  of the ceiling: {ratio(times, 'bare processes', 'shmpar'):.3f}")


def row_limits(*, quick: bool) -> None:
    """Row sums of 800 MB in bands, and numba's on private and on shared memory.

    numba's threads write into an output that exists, as shmpar's workers do with `out=`.
    """
    from benchmarks.systems import numba

    workload = workloads.load("row_sums")
    (point,) = workload.points("quick" if quick else "full")
    job = workload.job(point)
    bands = job.in_bands(WORKERS).chunks
    with shmpar.Pool(WORKERS) as pool:
        shared = pool.empty(job.shape, job.dtype)
        workload.fill(shared, point)

        def ours(func: Callable[[np.ndarray], np.ndarray]) -> Callable[[], np.ndarray]:
            return lambda: pool.map_blocks(func, shared, chunks=bands, drop_axis=1)

        systems = {"shmpar, sum": ours(_sum_in_order), "shmpar, @ ones": ours(_sum_in_any_order)}
        if importlib.util.find_spec("numba") is not None:
            private, sharing = (numba.Implementation(WORKERS, "") for _ in range(2))
            private.open()
            private.load(job, lambda array: workload.fill(array, point))
            sharing.job, sharing.input = job, shared.view(np.ndarray)
            systems["numba, in order"] = private.call("same")
            systems["numba"] = private.call("own")
            systems["numba, shared"] = sharing.call("own")
            compiled, out = _compiled_sums(), pool.empty(job.out_shape, job.out_dtype)
            systems["shmpar, numba"] = ours(compiled)
            for rows in (2 * bands[0], bands[0]):
                systems[f"shmpar, numba, out=, {rows} rows"] = functools.partial(
                    pool.map_blocks, compiled, shared, chunks=(rows, -1), drop_axis=1, out=out
                )
        for system in systems.values():
            workload.verify(system(), shared, point)
        times = alternate(systems, 5 if quick else 45)
    print(table(times))
    if "numba" in times:
        for name in times:
            print(f"  numba's time / {name}'s: {ratio(times, 'numba', name):.3f}")


def _sum_in_order(block: np.ndarray) -> np.ndarray:
    return block.sum(axis=1)


def _sum_in_any_order(block: np.ndarray) -> np.ndarray:
    return block @ np.ones(block.shape[1])


def _compiled_sums() -> Callable[[np.ndarray], np.ndarray]:
    """Compile the loop of numba's threads for a block."""
    import numba

    compiled: Callable[[np.ndarray], np.ndarray] = numba.njit(fastmath=True)(_sum_by_loops)
    return compiled


def _sum_by_loops(block: np.ndarray) -> np.ndarray:
    sums = np.empty(len(block))
    for row in range(len(block)):
        total = 0.0
        for column in range(block.shape[1]):
            total += block[row, column]
        sums[row] = total
    return sums


def small_objects(*, quick: bool) -> None:
    """Time of a loop in pure Python, while more and more small objects are kept."""
    looks = 10 if quick else 80
    with shmpar.Pool(1) as pool:
        places = {"here": _times_beside_objects(looks)}
        places["in a worker"] = pool.submit(_times_beside_objects, looks).result()
        places["in a map"] = pool.parallel_map(_times_beside_objects, [looks])[0]
    for name, times in places.items():
        low, *_, high = statistics.quantiles(times, n=10)  # Why: others interrupt a few looks.
        print(f"  {name:12} {low * 1e6:6.1f} us to {high * 1e6:6.1f} us")


def _times_beside_objects(looks: int) -> list[float]:
    row, kept, found = np.array([0.3, 2_000.0]), [], []
    for look in range(looks):
        times = []
        for _ in range(9):
            began = time.perf_counter()
            workloads.logistic(row)
            times.append(time.perf_counter() - began)
        found.append(statistics.median(times))
        kept.append([1_000 + look, float(look)])
    return found


# Arrays ---------------------------------------------------------------------------------------


def copy_in(*, quick: bool) -> None:
    """shmpar.array(x) of 400 MB beside view[:] = x into SharedMemory, and a warm memcpy."""
    source = np.ones(1_250_000 if quick else 50_000_000)
    other = source.copy()
    shorter = itertools.count(1)

    def copy(array: np.ndarray) -> None:
        with shmpar.array(array):
            pass

    def copy_to_new_memory() -> None:
        copy(source[: -next(shorter)])  # Why: only an array of the same size is given old memory.

    def idiom() -> None:
        memory = SharedMemory(create=True, size=source.nbytes)
        try:
            view = np.ndarray(source.shape, source.dtype, buffer=memory.buf)
            view[:] = source
            del view
        finally:
            memory.close()
            memory.unlink()

    systems = {
        "view[:] = x": idiom,
        "shmpar.array(x)": lambda: copy(source),
        "in new memory": copy_to_new_memory,
        "other[:] = x": lambda: np.copyto(other, source),
        "in small pages": lambda: _in_small_pages(copy_to_new_memory),
    }
    with shmpar.Pool(WORKERS) as pool:
        pool.submit(abs, -1).result()
        times = alternate(systems, 3 if quick else 15)
    print(table(times))
    for ours in ("shmpar.array(x)", "in new memory"):
        print(f"  view[:] = x / {ours}: {ratio(times, 'view[:] = x', ours):.2f}")
        print(f"  warm memcpy / {ours}: {ratio(times, 'other[:] = x', ours):.2f}")


def _in_small_pages(call: Callable[[], object]) -> object:
    """Call a function while new arrays lie in small pages."""
    os.environ[VARIABLE] = "0"
    try:
        return call()
    finally:
        del os.environ[VARIABLE]


def _double(block: np.ndarray) -> np.ndarray:
    return block * 2


def _double_part(name: str, start: int, stop: int) -> None:
    memory = SharedMemory(name)
    values = _shared["plain"]
    out = np.ndarray(values.shape, values.dtype, buffer=memory.buf)
    np.multiply(values[start:stop], 2, out=out[start:stop])
    del out
    memory.close()


def fresh_output(*, quick: bool) -> None:
    """map_blocks(lambda b: b * 2, a) of 400 MB without out=, beside a Pool and threads."""
    rows = 400 if quick else 10_000
    values = np.random.default_rng(0).normal(size=(rows, 5_000))
    edges = [round(number * rows / 32) for number in range(33)]
    parts = list(itertools.pairwise(edges))
    # Why before the fork: the processes share the tracker, which a SharedMemory needs.
    resource_tracker.ensure_running()
    array, shorter = shmpar.array(values), itertools.count(1)
    _shared["plain"] = array.view(np.ndarray)
    with (
        shmpar.Pool(WORKERS) as pool,
        ThreadPoolExecutor(WORKERS) as executor,
        _fork_pool() as theirs,
    ):

        def by_threads() -> np.ndarray:
            out = np.empty_like(values)
            _ = list(
                executor.map(
                    lambda part: np.multiply(values[slice(*part)], 2, out=out[slice(*part)]), parts
                )
            )
            return out

        def by_hand() -> None:
            memory = SharedMemory(create=True, size=values.nbytes)
            theirs.starmap(_double_part, [(memory.name, *part) for part in parts])
            memory.close()
            memory.unlink()

        def in_new_memory() -> np.ndarray:
            return pool.map_blocks(_double, array[: -next(shorter)])  # Why: as in `copy_in`.

        systems: dict[str, Callable[[], object]] = {
            "shmpar": lambda: pool.map_blocks(_double, array),
            "shmpar, plain input": lambda: pool.map_blocks(_double, values),
            "shmpar, new memory": in_new_memory,
            "shmpar, small pages": lambda: _in_small_pages(in_new_memory),
            "threads": by_threads,
            "Pool and SharedMemory": by_hand,
        }
        assert np.array_equal(systems["shmpar"](), by_threads())
        times = alternate(systems, 3 if quick else 15)
    print(table(times))
    for ours, name in itertools.product(
        ("shmpar", "shmpar, new memory"), ("Pool and SharedMemory", "threads")
    ):
        print(f"  {name} / {ours}: {ratio(times, name, ours):.2f}")


def map_arrays(*, quick: bool) -> None:
    """Executor.map of a function that takes and returns arrays of 10 MB."""
    count = 12_500 if quick else 1_250_000
    arrays = [np.random.default_rng(number).normal(size=count) for number in range(8)]
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(WORKERS, mp_context=context) as theirs, shmpar.Pool(WORKERS) as pool:
        systems = {
            "shmpar": lambda: list(pool.map(np.abs, arrays)),
            "ProcessPoolExecutor": lambda: list(theirs.map(np.abs, arrays)),
        }
        assert np.array_equal(systems["shmpar"](), systems["ProcessPoolExecutor"]())
        times = alternate(systems, 3 if quick else 9)
    print(table(times))
    print(f"  faster: {ratio(times, 'ProcessPoolExecutor', 'shmpar'):.2f}x")


def in_flight(*, quick: bool) -> None:
    """Ten runs in flight at once against ten in turn."""
    case = cases.in_flight(200 if quick else 2_000)

    def in_turn() -> None:
        for _ in range(10):
            pool.map_blocks(lambda block: np.sort(block, axis=1), case.array, chunks=(50, -1))

    with shmpar.Pool(WORKERS) as pool:
        systems = {"at once": lambda: case.call(pool), "in turn": in_turn}
        times = alternate(systems, 3 if quick else 9)
    print(table(times))
    print(f"  faster at once: {ratio(times, 'in turn', 'at once'):.2f}x")


# Memory ---------------------------------------------------------------------------------------


def memory(*, quick: bool) -> None:
    """Proportional set size of all processes of a run, beyond input and output, per worker."""
    array = np.ones((20 if quick else 400, 125_000))
    before = pss([os.getpid()]) - array.nbytes
    with shmpar.Pool(WORKERS) as pool:
        shared = pool.array(array)
        del array
        processes = [os.getpid(), *worker_pids(pool)]
        run = pool.map_blocks(lambda block: block + 1, shared, chunks=(1, -1), wait=False)
        peak = peak_pss(run, processes)
        arrays = 2 * shared.nbytes
    print(
        f"  input + output {arrays / 1e6:.0f} MB, peak {peak / 1e6:.0f} MB, parent before "
        f"{before / 1e6:.0f} MB"
    )
    print(f"  beyond both: {(peak - arrays - before) / WORKERS / 1e6:.1f} MB per worker")


ALL = {
    "floor": floor,
    "calls": calls,
    "joblib": joblib_backends,
    "anatomy": anatomy,
    "constants": constants,
    "tiny_rows": tiny_rows,
    "small_objects": small_objects,
    "row_limits": row_limits,
    "copy_in": copy_in,
    "fresh_output": fresh_output,
    "map_arrays": map_arrays,
    "in_flight": in_flight,
    "memory": memory,
    "scaling": scaling,
    "stores": stores,
}
