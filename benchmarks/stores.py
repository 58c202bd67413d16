"""Maps from one zarr array to another, beside Dask's schedulers.

``python -m benchmarks stores`` measures them. ``python -m benchmarks.stores SYSTEM FOLDER`` is the
process of one system, which reads requests and writes replies, a line of JSON each.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import numpy as np

from benchmarks.harness import Child, end, family, family_pss, serve, table

WORKERS = 2
DEPTH = 12
SYSTEMS = ("shmpar", "dask threads", "dask processes", "dask distributed")


class Case(NamedTuple):
    """A map from zarr to zarr.

    Attributes
    ----------
    name : str
        The case in the table.
    side : int
        Elements along both axes.
    unit : int
        Elements of a unit of both stores along both axes.
    dtype : str
        Dtype of both.
    due : dict of str to float
        The least time of a system divided by ours.
    halo : bool
        The function gets a halo, and the blocks are automatic.
    codec : str
        "zstd" is the default of zarr; "lz4" takes less time and more bytes.
    """

    name: str
    side: int
    unit: int
    dtype: str
    due: dict[str, float]
    halo: bool = False
    codec: str = "zstd"


CASES = (
    Case(
        "half", 23_040, 1_024, "u2",
        {"dask threads": 1.2, "dask processes": 2.3, "dask distributed": 1.3},
    ),
    Case(
        "half, LZ4", 23_040, 1_024, "u2",
        {"dask threads": 1.2, "dask processes": 2.3, "dask distributed": 1.3},
        codec="lz4",
    ),
    Case("holds the lock", 6_144, 512, "u2", {"dask threads": 1.6}),
    Case("gaussian", 9_728, 512, "f4", {"dask threads": 1.0}, halo=True),
)  # fmt: skip
LARGE = Case("memory", 32_768, 2_048, "u2", {})  # 2 GiB in chunks of 8 MiB
BY_NAME = {case.name: case for case in (*CASES, LARGE)}


# Functions of a block


def half(block: np.ndarray) -> np.ndarray:
    """Compute what NumPy computes without the interpreter lock."""
    return block // 2


def holds_the_lock(block: np.ndarray) -> np.ndarray:
    """Compute in Python for some milliseconds."""
    total = 0
    for number in range(400_000):
        total += number & 7
    return block // 2 + block.dtype.type(total == 1)


def gaussian(window: np.ndarray) -> np.ndarray:
    """Smooth a block with its halo."""
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(window, 3)


FUNCTIONS = {
    "half": half,
    "half, LZ4": half,
    "memory": half,
    "holds the lock": holds_the_lock,
    "gaussian": gaussian,
}


# Systems, each in a process of its own


class Ours:
    """A pool of worker processes."""

    def __init__(self) -> None:
        import shmpar

        self._pool = shmpar.Pool(WORKERS)
        self._pool.parallel_map(abs, range(-64, 0))

    def run(self, case: Case, source: Any, out: Any) -> None:
        """Map one array to the other."""
        func = FUNCTIONS[case.name]
        if case.halo:
            self._pool.map_overlap(func, source, depth=DEPTH, out=out)
        else:
            self._pool.map_blocks(func, source, chunks=case.unit, out=out)


class Dask:
    """dask.array on one of its schedulers; each chunk is a unit, its default for zarr."""

    def __init__(self, scheduler: str) -> None:
        self._options: dict[str, Any] = {"scheduler": scheduler, "num_workers": WORKERS}
        if scheduler == "distributed":
            from distributed import Client, LocalCluster

            cluster = LocalCluster(
                n_workers=WORKERS, threads_per_worker=1, dashboard_address=None, memory_limit=0
            )
            self._client = Client(cluster)
            self._options = {"scheduler": self._client}

    def run(self, case: Case, source: Any, out: Any) -> None:
        """Map one array to the other."""
        import dask.array as da

        func, lazy = FUNCTIONS[case.name], da.from_zarr(source)
        meta = np.empty((0, 0), case.dtype)
        if case.halo:
            made = lazy.map_overlap(func, depth=DEPTH, boundary="none", dtype=case.dtype, meta=meta)
        else:
            made = lazy.map_blocks(func, dtype=case.dtype, meta=meta)
        da.store(made, out, lock=False, **self._options)


class Server:
    """A system and its folder."""

    def __init__(self, name: str, folder: str) -> None:
        self._name, self._folder = name, folder
        self._system = Ours() if name == "shmpar" else Dask(name.partition(" ")[2])

    def load(self, case: str, sizes: dict[str, int]) -> dict[str, Any]:
        """Open the input and make an output."""
        import zarr

        self._case = BY_NAME[case]._replace(**sizes)
        self._source = zarr.open_array(os.path.join(self._folder, f"{case}.zarr"), mode="r")
        self._out = _create(os.path.join(self._folder, f"{case} {self._name}.zarr"), self._case)
        return {}

    def call(self, **request: Any) -> dict[str, Any]:
        """Return the seconds of a map into a new output."""
        self.load(**request)
        began = time.perf_counter()
        self._system.run(self._case, self._source, self._out)
        return {"seconds": time.perf_counter() - began}


def _create(path: str, case: Case) -> Any:
    import zarr

    return zarr.create_array(
        path,
        shape=(case.side, case.side),
        chunks=(case.unit, case.unit),
        dtype=case.dtype,
        compressors="auto" if case.codec == "zstd" else zarr.codecs.BloscCodec(cname=case.codec),
        overwrite=True,
    )


# The parent


def make_input(folder: str, case: Case) -> None:
    """Make a store of waves with a little noise, which zstd makes about half as large."""
    out = _create(os.path.join(folder, f"{case.name}.zarr"), case)
    random = np.random.default_rng(0)
    across = 400 * np.sin(np.arange(case.side) / 300)
    noise = random.integers(0, 64, (case.unit, case.side))
    for top in range(0, case.side, case.unit):
        rows = np.arange(top, min(top + case.unit, case.side))[:, None]
        noise = np.roll(noise, 977, 1)
        out[top : top + case.unit] = 2_000 + 400 * np.sin(rows / 500) + across + noise[: len(rows)]


@contextmanager
def children(folder: str, names: tuple[str, ...]) -> Iterator[dict[str, Child]]:
    """Start a process for each system that is installed; end them all."""
    with ExitStack() as stack:
        # Why: a signal may come between the start of a process and the next line.
        stack.callback(lambda: end(family(os.getpid())[1:], grace=0))
        found = {}
        for name in names:
            arguments = ["-m", "benchmarks.stores", name, folder]
            found[name] = Child(name.replace(" ", "_"), arguments, folder)
            stack.callback(found[name].end)
        yield found


def stores(*, quick: bool) -> None:
    """Maps from zarr to zarr, in turns with Dask's schedulers; ratios of time and of memory."""
    rounds = 1 if quick else 3
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            sizes = {"side": 512, "unit": 128} if quick else {}
            measured = case._replace(**sizes)
            make_input(folder, measured)
            names = tuple(name for name in SYSTEMS if name == "shmpar" or name in case.due)
            with children(folder, names) as systems:
                _compare(folder, measured, systems, sizes, rounds)
        _memory_of_a_large_map(folder, quick)


def _compare(
    folder: str, case: Case, systems: dict[str, Child], sizes: dict[str, int], rounds: int
) -> None:
    import zarr

    request = {"case": case.name, "sizes": sizes}
    times: dict[str, list[float]] = {name: [] for name in systems}
    for child in systems.values():
        child.request("call", 300, **request)
    for _ in range(rounds):
        for name, child in systems.items():
            times[name].append(child.request("call", 300, **request)["seconds"])
    nbytes = case.side**2 * np.dtype(case.dtype).itemsize
    chunks = (-(-case.side // case.unit)) ** 2
    print(f"  {case.name}: {nbytes / 1e6:,.0f} MB, {chunks:,} units")
    print(table(times, 1e3, "ms"))
    results = [
        zarr.open_array(os.path.join(folder, f"{case.name} {n}.zarr"), mode="r") for n in systems
    ]
    for top in range(0, case.side, case.unit):
        first, *others = [one[top : top + case.unit] for one in results]
        assert all(np.array_equal(first, other) for other in others), "the systems agree"
    for name, due in case.due.items():
        ratio = statistics.median(
            theirs / ours for theirs, ours in zip(times[name], times["shmpar"], strict=True)
        )
        print(f"  {case.name}: {name} / shmpar {ratio:.2f} (due {due})")
    if case.name.startswith("half"):
        peaks = {}
        for name in ("shmpar", "dask threads"):
            peaks[name] = systems[name].peak_memory("call", 300, **request)
        print(
            f"  {case.name}: peak {peaks['shmpar'] / 1e6:.0f} MB, dask threads "
            f"{peaks['dask threads'] / 1e6:.0f} MB, ratio "
            f"{peaks['shmpar'] / peaks['dask threads']:.2f} (due 0.8)"
        )


def _memory_of_a_large_map(folder: str, quick: bool) -> None:
    sizes = {"side": 512, "unit": 128} if quick else {}
    case = LARGE._replace(**sizes)
    make_input(folder, case)
    with children(folder, ("shmpar",)) as systems:
        child = systems["shmpar"]
        request = {"case": case.name, "sizes": sizes}
        child.request("load", 60, **request)
        idle = family_pss(child.pid)
        peak = child.peak_memory("call", 300, **request)
    nbytes, beyond = case.side**2 * np.dtype(case.dtype).itemsize, (peak - idle) / 1e6
    due = 40 * WORKERS + 64
    print(
        f"  memory: {nbytes / 1e6:,.0f} MB in chunks of {case.unit**2 * 2 / 2**20:.0f} MiB, idle "
        f"{idle / 1e6:.0f} MB, peak {peak / 1e6:.0f} MB, beyond it {beyond:.0f} MB (due {due})"
    )


if __name__ == "__main__":
    serve(Server(*sys.argv[1:]))
