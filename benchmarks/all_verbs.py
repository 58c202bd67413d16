"""Halos, ufuncs, captured arrays, single calls and runs in flight, against what does the same."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor

import numpy as np

import shmpar
from benchmarks.bare import bare
from benchmarks.pss import peak_pss, pss
from benchmarks.timing import alternate, ratio, table

WORKERS = 2


def halo(*, quick: bool) -> None:
    """Gaussian filter over 6,000 x 6,000 float32 in 36 chunks (aim: 0.96 of the ceiling)."""
    from scipy.ndimage import gaussian_filter

    side, chunk, depth = (600, 200, 12) if quick else (6_000, 1_000, 12)
    image = shmpar.array(np.random.default_rng(0).normal(size=(side, side)).astype("f4"))
    plain, out = image.view(np.ndarray), shmpar.empty((side, side), "f4").view(np.ndarray)
    across = side // chunk

    def blur(window: np.ndarray) -> np.ndarray:
        return gaussian_filter(window, 3, truncate=4)

    def loop(worker: int, workers: int) -> None:
        for number in range(worker, across * across, workers):
            top, left = chunk * (number // across), chunk * (number % across)
            low, first = max(0, top - depth), max(0, left - depth)
            window = plain[low : top + chunk + depth, first : left + chunk + depth]
            core = np.s_[top - low : top - low + chunk, left - first : left - first + chunk]
            out[top : top + chunk, left : left + chunk] = blur(window)[core]

    # Both write into an output that is there: to make one is not what is compared.
    result, options = shmpar.empty((side, side), "f4"), {"depth": depth, "chunks": (chunk, chunk)}
    with bare(loop, WORKERS) as ceiling, shmpar.Pool(WORKERS) as pool:
        systems = {
            "shmpar": lambda: pool.map_overlap(blur, image, out=result, **options),
            "bare processes": ceiling,
        }
        ceiling()
        assert np.array_equal(systems["shmpar"](), out)
        times = alternate(systems, 3 if quick else 9)
    print(table(times))
    print(f"  of the ceiling: {ratio(times, 'bare processes', 'shmpar'):.3f}")


# Run by an interpreter of its own: how far the filter of one window lifts the peak of a process
# that has the filter and the window already.
_ONE_WINDOW = """
import sys
import numpy as np
from scipy.ndimage import gaussian_filter

def peak():
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith("VmHWM:"))

window = np.ones((int(sys.argv[1]),) * 2, "f4")
gaussian_filter(window[:64, :64], 3)
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak is from now on
before = peak()
result = gaussian_filter(window, 3)
print(peak() - before)
"""


def halo_memory(*, quick: bool) -> None:
    """Peak of a halo's run in all processes (aim: input + output + one filter a worker)."""
    from scipy.ndimage import gaussian_filter

    side, chunk, depth = (600, 200, 12) if quick else (6_000, 1_000, 12)
    window = str(chunk + 2 * depth)
    alone = int(subprocess.check_output([sys.executable, "-c", _ONE_WINDOW, window]))

    def blur(window: np.ndarray) -> np.ndarray:
        return gaussian_filter(window, 3)

    def warm(_: int) -> int:
        blur(np.ones((64, 64), "f4"))
        return os.getpid()

    with shmpar.Pool(WORKERS) as pool:
        workers: set[int] = set()
        while len(workers) < WORKERS:
            workers.update(pool.parallel_map(warm, range(64), dtype=object))
        everything = [os.getpid(), *workers]
        before = pss(everything)
        image = pool.empty((side, side), "f4")
        np.random.default_rng(0).standard_normal(dtype="f4", out=image.view(np.ndarray))
        run = pool.map_overlap(blur, image, depth=depth, chunks=(chunk, chunk), wait=False)
        peak = peak_pss(run, everything)
        due = {"input": image.nbytes, "output": image.nbytes, "filters": WORKERS * alone}
    parts = " + ".join(f"{name} {size / 1e6:.1f}" for name, size in due.items())
    print(f"  {parts} = {sum(due.values()) / 1e6:.1f} MB")
    print(f"  peak {peak / 1e6:.1f} MB, of which {before / 1e6:.1f} MB were there before the input")
    print(f"  the run's own: {(peak - before) / 1e6:.1f} MB")
    print(f"  of the aim: {(peak - before) / sum(due.values()):.3f}")


def ufunc(*, quick: bool) -> None:
    """np.sqrt over 800 MB, shared in and out (aim: 0.9 of bare processes with out=)."""
    count = 1_000_000 if quick else 100_000_000
    array, out = shmpar.array(np.arange(float(count))), shmpar.empty(count)
    plain, plain_out = array.view(np.ndarray), out.view(np.ndarray)

    def loop(worker: int, workers: int) -> None:
        part = slice(worker * count // workers, (worker + 1) * count // workers)
        np.sqrt(plain[part], out=plain_out[part])

    with bare(loop, WORKERS) as ceiling, shmpar.Pool(WORKERS) as pool:
        systems = {
            "shmpar": lambda: pool.map_blocks(np.sqrt, array, out=out),
            "bare processes": ceiling,
        }
        times = alternate(systems, 3 if quick else 11)
    print(table(times))
    print(f"  of the ceiling: {ratio(times, 'bare processes', 'shmpar'):.3f}")


def captured(*, quick: bool) -> None:
    """A captured array of 80 MB against the same as an input (aim: 1.2x its time or less)."""
    big = np.random.default_rng(0).normal(size=100_000 if quick else 10_000_000)
    rows = np.arange(8.0)

    with shmpar.Pool(WORKERS) as pool:
        systems = {
            "captured": lambda: pool.parallel_map(lambda row: big.sum() + row, rows),
            "an input": lambda: pool.map_blocks(
                lambda block, whole: block + whole.sum(),
                rows[:, None],
                big[None, :],
                chunks=(1, -1),
                out_chunks={1: 1},
            ),
        }
        times = alternate(systems, 3 if quick else 9)
    print(table(times))
    print(f"  longer than as an input: {ratio(times, 'captured', 'an input'):.2f}x")


def submit(*, quick: bool) -> None:
    """Round trip of a trivial call (aim: no slower than ProcessPoolExecutor)."""
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(WORKERS, mp_context=context) as theirs, shmpar.Pool(WORKERS) as pool:
        systems = {
            "shmpar": lambda: pool.submit(abs, -1).result(),
            "ProcessPoolExecutor": lambda: theirs.submit(abs, -1).result(),
        }
        times = alternate(systems, 100 if quick else 2_000)
    print(table(times, 1e6, "us"))
    print(f"  faster: {ratio(times, 'ProcessPoolExecutor', 'shmpar'):.2f}x")


def map_arrays(*, quick: bool) -> None:
    """Executor.map of a function that takes and returns 10 MB arrays (aim: 3x or more)."""
    arrays = [
        np.random.default_rng(i).normal(size=12_500 if quick else 1_250_000) for i in range(8)
    ]
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
    """Ten runs in flight at once against one after another (aim: not slower)."""
    side = 200 if quick else 2_000
    array = shmpar.array(np.random.default_rng(0).normal(size=(side, side)))

    def work(block: np.ndarray) -> np.ndarray:
        return np.sort(block, axis=1)

    with shmpar.Pool(WORKERS) as pool:

        def together() -> None:
            runs = [pool.map_blocks(work, array, chunks=(50, -1), wait=False) for _ in range(10)]
            for run in runs:
                run.result()

        def in_turn() -> None:
            for _ in range(10):
                pool.map_blocks(work, array, chunks=(50, -1))

        times = alternate({"at once": together, "in turn": in_turn}, 3 if quick else 9)
    print(table(times))
    print(f"  faster at once: {ratio(times, 'in turn', 'at once'):.2f}x")


ALL = {
    "halo": halo,
    "halo_memory": halo_memory,
    "ufunc": ufunc,
    "captured": captured,
    "submit": submit,
    "map_arrays": map_arrays,
    "in_flight": in_flight,
}
