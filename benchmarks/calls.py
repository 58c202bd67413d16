"""Measurements of many small calls, and of joblib with this package's workers."""

from __future__ import annotations

import contextlib
import importlib.util
import multiprocessing
import os
import statistics
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import numpy as np

import shmpar
from benchmarks.cases import WORKERS, busy_loops, worker_pids
from benchmarks.harness import alternate, family, ratio, table


def calls(*, quick: bool) -> None:
    """Map of 20,000 items, a round trip, and the time to submit 20,000 calls; idle and busy."""
    count, rounds, trips = (500, 2, 50) if quick else (20_000, 9, 1_000)
    context, items = multiprocessing.get_context("fork"), range(count)
    with (
        context.Pool(WORKERS) as theirs,
        ProcessPoolExecutor(WORKERS, mp_context=context) as executor,
        shmpar.Pool(WORKERS) as pool,
    ):
        theirs.map(abs, range(WORKERS))
        executor.submit(abs, 0).result()
        worker_pids(pool)

        def measure(where: str) -> None:
            maps = {
                f"map, shmpar, {where}": lambda: list(pool.map(abs, items)),
                f"map, Pool.map, {where}": lambda: theirs.map(abs, items),
            }
            times = alternate(maps, rounds)
            print(table(times))
            print(f"  Pool.map's time / shmpar's: {ratio(times, *list(maps)[::-1]):.2f}")
            round_trips = {
                f"round trip, shmpar, {where}": lambda: pool.submit(abs, 0).result(),
                f"round trip, executor, {where}": lambda: executor.submit(abs, 0).result(),
            }
            times = alternate(round_trips, trips)
            print(table(times, 1e6, "us"))
            print(f"  the executor's / shmpar's: {ratio(times, *list(round_trips)[::-1]):.2f}")
            for name, system in (("shmpar", pool), ("executor", executor)):
                spent = [_submit(system, count) for _ in range(min(rounds, 3))]
                each = statistics.median(spent) / count * 1e6
                print(f"  submit, {name}, {where}: {each:.1f} us a call, of the caller's time")

        measure("idle")
        with busy_loops(1):
            measure("busy")


def _submit(system: shmpar.Pool | ProcessPoolExecutor, count: int) -> float:
    """Return the seconds until so many calls are submitted; wait for them afterwards."""
    began = time.perf_counter()
    futures = [system.submit(abs, number) for number in range(count)]
    spent = time.perf_counter() - began
    for future in futures:
        future.result()
    return spent


# joblib ---------------------------------------------------------------------------------------


BACKENDS = ("shmpar", "loky")


def joblib_backends(*, quick: bool) -> None:
    """Searches, forests, tiny calls, large results and memory: joblib's workers and ours."""
    if importlib.util.find_spec("sklearn") is None:
        print("  0 ms measured: scikit-learn is not installed")
        return
    from shmpar.integrations.joblib import close

    for title, (rounds, call) in _joblib_cases(quick).items():
        spent = dict.fromkeys(BACKENDS, 0.0)
        systems = {f"{title}, {one}": partial(_run, one, call, spent) for one in BACKENDS}
        times = alternate(systems, 1 if quick else rounds)
        print(table(times))
        print(f"  loky's time / shmpar's: {ratio(times, *list(systems)[::-1]):.2f}")
        calls = 1 + len(times[f"{title}, loky"])
        here = ", ".join(f"{one} {seconds / calls:.3f} s" for one, seconds in spent.items())
        print(f"  CPU time of this process, without its workers: {here}")
    inputs = np.random.default_rng(0).normal(size=(500 if quick else 2_500_000, 20))
    for backend in BACKENDS:
        added = _added_memory(backend, inputs) / 1e6
        print(
            f"  memory above the input of {inputs.nbytes / 1e6:.0f} MB, {backend}: {added:.0f} MB"
        )
    close()


def _run(backend: str, call: Callable[[], object], spent: dict[str, float]) -> None:
    """Make a call with a backend; add the CPU time of this process."""
    import joblib

    before = time.process_time()
    with joblib.parallel_config(backend=backend, n_jobs=WORKERS):
        call()
    spent[backend] += time.process_time() - before


def _joblib_cases(quick: bool) -> dict[str, tuple[int, Callable[[], object]]]:
    """Return the rounds of each case, and its call."""
    import joblib
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import GridSearchCV

    rng = np.random.default_rng(0)
    rows, tiny, large = (500, 200, 2_000) if quick else (400_000, 50_000, 2_000_000)
    inputs = rng.normal(size=(rows, 20))  # 64 MB
    target = inputs[:, 0] + rng.normal(size=rows)
    few = slice(0, 20_000)
    labels = target[few] > 0
    search = GridSearchCV(Ridge(), {"alpha": [0.1, 1.0, 10.0]}, cv=3)
    forest = RandomForestClassifier(16, max_depth=8, random_state=0)
    one = joblib.delayed
    return {
        "search": (5, lambda: search.fit(inputs, target)),
        "forest": (5, lambda: forest.fit(inputs[few], labels)),
        "tiny calls": (25, lambda: joblib.Parallel()(one(abs)(i) for i in range(tiny))),
        "results": (9, lambda: joblib.Parallel()(one(np.ones)(large) for _ in range(8))),
    }


def _memory() -> int:
    """Return the bytes of this process, its workers, and all shared memory of the machine.

    Why all of it: no process need have a file in /dev/shm mapped that takes memory.
    """
    total = 0
    for pid, _ in family(os.getpid()):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/smaps_rollup") as lines:
            found = dict(line.split()[:2] for line in lines if line.startswith("Pss_"))
            total += int(found["Pss_Anon:"]) + int(found["Pss_File:"])
    with open("/proc/meminfo") as lines:
        total += next(int(line.split()[1]) for line in lines if line.startswith("Shmem:"))
    return total * 1024


def _added_memory(backend: str, inputs: np.ndarray) -> int:
    """Return the bytes that a search over parameters adds at most."""
    import joblib
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import GridSearchCV

    target = inputs[:, 0] + 1
    search = GridSearchCV(Ridge(), {"alpha": [0.1, 1.0]}, cv=3)
    with joblib.parallel_config(backend=backend, n_jobs=WORKERS):
        search.fit(inputs[:500], target[:500])
        before, found, done = _memory(), [0], threading.Event()

        def watch() -> None:
            while not done.wait(0.02):
                found.append(_memory())

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            search.fit(inputs, target)
        finally:
            done.set()
            thread.join()
    return max(found) - before
