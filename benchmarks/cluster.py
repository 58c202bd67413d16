"""Compare a pool on a Dask cluster with Dask's own collections.

Three hosts with one thread each, on this machine. Both sides run on the same cluster, in turn,
after one call that is not counted; the median of each counts. The hosts are told that this process
is on another machine, so that all values pass through sockets. Bytes on the wire are those of the
loopback interface (``/proc/net/dev``), with everything that Dask itself sends meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np

import shmpar

Array = np.ndarray[Any, Any]
Call = Callable[[], Any]
HOSTS = 3


def halved(block: Array) -> Array:
    """Return half of a block."""
    return block / 2


def total(block: Array) -> Array:
    """Return the sum of a block, as a block of one element."""
    return np.asarray(block.sum()).reshape((1,) * block.ndim)


def smooth(block: Array) -> Array:
    """Filter a block."""
    from scipy.ndimage import gaussian_filter

    return np.asarray(gaussian_filter(block, 3, truncate=2))


def wire() -> int:
    """Return the bytes that the loopback interface has received."""
    with open("/proc/net/dev", encoding="ascii") as file:
        lines = dict(line.split(":", 1) for line in file if ":" in line)
    found = {name.strip(): numbers for name, numbers in lines.items()}
    return int(found["lo"].split()[0])


def cases(pool: shmpar.Pool, folder: str, *, quick: bool) -> dict[str, tuple[Call, Call]]:
    """Return by name a call of ours, and the call of Dask that has the same result."""
    import dask.array as da
    import zarr

    side, tile = (1024, 32) if quick else (4096, 64)
    image = np.random.default_rng(0).random((side, side))
    wide = image[: side // 2, : side // 2] if quick else image
    unit = side // 16
    path = os.path.join(folder, "x.zarr")
    store: Any = zarr.create_array(path, shape=image.shape, chunks=(unit, unit), dtype="f8")
    store[...] = image
    made = iter(range(10**6))

    def new() -> Any:
        place = os.path.join(folder, f"{next(made)}.zarr")
        return zarr.create_array(place, shape=image.shape, chunks=(unit, unit), dtype="f8")

    def stored(array: Any) -> Any:
        out = new()
        da.store(array, out, lock=False)
        return out[...]

    def ours(call: Callable[..., Any]) -> Any:
        out = new()
        call(out)
        return out[...]

    def tiles(array: Any, chunk: int) -> Any:
        return da.from_array(array, chunks=chunk)

    return {
        "map_blocks, memory": (
            lambda: pool.map_blocks(halved, image, chunks=tile),
            lambda: tiles(image, tile).map_blocks(halved, dtype="f8").compute(),
        ),
        "block_reduce, memory": (
            lambda: pool.block_reduce(np.sum, image, chunks=tile),
            lambda: tiles(image, tile).map_blocks(total, dtype="f8", chunks=(1, 1)).compute(),
        ),
        "map_overlap, memory": (
            lambda: pool.map_overlap(smooth, wide, depth=6, boundary="reflect", chunks=unit),
            lambda: da.map_overlap(
                smooth, tiles(wide, unit), depth=6, boundary="reflect", dtype="f8"
            ).compute(),
        ),
        "map_blocks, zarr to zarr": (
            lambda: ours(lambda out: pool.map_blocks(halved, store, chunks=unit, out=out)),
            lambda: stored(da.from_zarr(path).map_blocks(halved, dtype="f8")),
        ),
        "map_overlap, zarr to zarr": (
            lambda: ours(
                lambda out: pool.map_overlap(
                    smooth, store, depth=6, boundary="reflect", chunks=2 * unit, out=out
                )
            ),
            lambda: stored(
                da.map_overlap(smooth, da.from_zarr(path), depth=6, boundary="reflect", dtype="f8")
            ),
        ),
    }


def timed(call: Call) -> tuple[float, int, Any]:
    """Return the seconds, the bytes on the wire, and the result of a call."""
    before, began = wire(), time.perf_counter()
    result = call()
    return time.perf_counter() - began, wire() - before, result


def compare(ours: Call, theirs: Call, rounds: int) -> dict[str, float]:
    """Run both calls in turn, and compare their results."""
    found: dict[str, list[tuple[float, int]]] = {"ours": [], "dask": []}
    for number in range(rounds + 1):
        results = {}
        for name, call in (("ours", ours), ("dask", theirs)):
            seconds, nbytes, results[name] = timed(call)
            if number:
                found[name].append((seconds, nbytes))
        assert np.allclose(results["ours"], results["dask"])
    medians = {name: statistics.median(s for s, _ in pairs) for name, pairs in found.items()}
    wires = {name: statistics.median(n for _, n in pairs) for name, pairs in found.items()}
    return {
        "ours_seconds": medians["ours"],
        "dask_seconds": medians["dask"],
        "ratio": medians["dask"] / medians["ours"],
        "ours_wire": wires["ours"],
        "dask_wire": wires["dask"],
    }


def empty_span(pool: shmpar.Pool) -> float:
    """Return the seconds of a run with one span that carries no data."""
    return statistics.median(timed(lambda: pool.parallel_map(abs, range(1)))[0] for _ in range(30))


def traffic(pool: shmpar.Pool, *, quick: bool) -> float:
    """Return the bytes of a map of an array in memory, divided by those of its input and output."""
    array = np.random.default_rng(0).random((1000, 1250 if quick else 12_500))
    pool.map_blocks(halved, array, chunks=100)
    _, nbytes, result = timed(lambda: pool.map_blocks(halved, array, chunks=100))
    return nbytes / (array.nbytes + result.nbytes)


def main(arguments: list[str]) -> None:
    """Print the table, and one line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks cluster", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="counted calls of each side")
    parser.add_argument("--quick", action="store_true", help="small arrays, one round")
    parser.add_argument("--only", default="", help="cases whose name contains this text")
    options = parser.parse_args(arguments)
    from distributed import Client, LocalCluster

    rounds, figures = 1 if options.quick else options.rounds, {}
    with (
        tempfile.TemporaryDirectory() as folder,
        LocalCluster(
            n_workers=HOSTS, threads_per_worker=1, dashboard_address=":0", memory_limit=0
        ) as cluster,
        Client(cluster) as client,
        mock.patch("shmpar.cluster.messages.machine", return_value="another machine"),
        mock.patch("shmpar.cluster.dask.machine", return_value="another machine"),
        shmpar.Pool(engine=client) as pool,
    ):
        print(f"{'':28}{'ours':>10}{'Dask':>10}{'ratio':>8}{'MB ours':>10}{'MB Dask':>10}")
        for name, calls in cases(pool, folder, quick=options.quick).items():
            if options.only not in name:
                continue
            one = figures[name] = compare(*calls, rounds)
            print(
                f"{name:28}{one['ours_seconds']:9.3f}s{one['dask_seconds']:9.3f}s"
                f"{one['ratio']:8.1f}{one['ours_wire'] / 1e6:10.0f}{one['dask_wire'] / 1e6:10.0f}",
                flush=True,
            )
        single: dict[str, Callable[[], float]] = {
            "a span without data, ms": lambda: 1e3 * empty_span(pool),
            "wire / (input + output)": lambda: traffic(pool, quick=options.quick),
        }
        for name, measure in single.items():
            if options.only in name:
                figures[name] = {"ours": measure()}
                print(f"{name:28}{figures[name]['ours']:10.2f}", flush=True)
    print(json.dumps(figures))
