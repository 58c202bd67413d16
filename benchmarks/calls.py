"""Measurements of many small calls, and of joblib with this package's workers."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import statistics
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import numpy as np

import shmpar
from benchmarks.cases import WORKERS, busy_loops, worker_pids
from benchmarks.harness import alternate, family_pss, ratio, table


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


def joblib_backends(*, quick: bool) -> None:
    """Searches, forests, tiny calls, large results and memory: joblib's workers and ours."""
    if importlib.util.find_spec("sklearn") is None:
        print("  0 ms measured: scikit-learn is not installed")
        return
    import joblib

    from shmpar.integrations.joblib import close

    for title, call in _joblib_cases(quick).items():
        systems = {}
        for backend in ("shmpar", "loky"):

            def run(backend: str = backend, call: Callable[[], object] = call) -> None:
                with joblib.parallel_config(backend=backend, n_jobs=WORKERS):
                    call()

            systems[f"{title}, {backend}"] = run
        times = alternate(systems, 1 if quick else 3)
        print(table(times))
        print(f"  loky's time / shmpar's: {ratio(times, *list(systems)[::-1]):.2f}")
    array = np.ones((1 if quick else 400) * 125_000)
    for backend in ("shmpar", "loky"):
        added = _added_memory(backend, array) / 1e6
        print(f"  memory above the array of {array.nbytes / 1e6:.0f} MB, {backend}: {added:.0f} MB")
    close()


def _joblib_cases(quick: bool) -> dict[str, Callable[[], object]]:
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
        "search": lambda: search.fit(inputs, target),
        "forest": lambda: forest.fit(inputs[few], labels),
        "tiny calls": lambda: joblib.Parallel()(one(abs)(i) for i in range(tiny)),
        "results": lambda: joblib.Parallel()(one(np.ones)(large) for _ in range(8)),
    }


def _mean(array: np.ndarray) -> float:
    return float(array.mean())


def _added_memory(backend: str, array: np.ndarray) -> int:
    """Return the bytes that calls on an array add at most to this process and its workers."""
    import joblib

    with joblib.parallel_config(backend=backend, n_jobs=WORKERS):
        joblib.Parallel()(joblib.delayed(abs)(i) for i in range(WORKERS))
        before, found, done = family_pss(os.getpid()), [0], threading.Event()

        def watch() -> None:
            while not done.wait(0.02):
                found.append(family_pss(os.getpid()))

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            joblib.Parallel()(joblib.delayed(_mean)(array) for _ in range(8))
        finally:
            done.set()
            thread.join()
    return max(found) - before
