"""Smooth an image on three hosts of a Dask cluster, and compare with a pool of this machine.

    python examples/cluster.py
    python examples/cluster.py --address tls://scheduler:8786

The script starts a cluster on this machine, unless it is given the address of a scheduler.  One of
its hosts is killed while the image is computed: the result is the same, byte for byte.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import time
from contextlib import ExitStack
from typing import Any

import numpy as np

import shmpar

Array = np.ndarray[Any, Any]
DEPTH = 6
QUIET = logging.CRITICAL + 1


def smooth(block: Array) -> Array:
    """Return the mean of 13 x 13 elements around each element, by sums of shifted arrays."""
    rows = sum(block[k : block.shape[0] - 2 * DEPTH + k] for k in range(2 * DEPTH + 1))
    columns = rows.shape[1] - 2 * DEPTH
    total = sum(rows[:, k : columns + k] for k in range(2 * DEPTH + 1))
    return np.asarray(total) / (2 * DEPTH + 1) ** 2


def smoothed(pool: shmpar.Pool, image: Array, chunk: int, **options: Any) -> Any:
    """Smooth an image in chunks."""
    return pool.map_overlap(
        smooth, image, depth=DEPTH, boundary="reflect", trim=False, chunks=chunk, **options
    )


def main() -> None:
    """Compute the image on the cluster and here; print the numbers of each host."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--address", help="a scheduler of Dask; default: a cluster of its own")
    parser.add_argument("--size", type=int, default=6000, help="rows and columns of the image")
    parser.add_argument("--smoke", action="store_true", help="a small image")
    options = parser.parse_args()
    try:
        from distributed import Client, LocalCluster
    except ImportError:
        raise SystemExit(
            'distributed is missing; this example needs: pip install -e ".[dask]"'
        ) from None
    # Why: Dask logs each connection that the death of a host cuts.
    for name in ("distributed", "asyncio", "tornado"):
        logging.getLogger(name).setLevel(QUIET)
    size, chunk = (800, 100) if options.smoke else (options.size, 500)
    image = np.random.default_rng(0).random((size, size))
    with ExitStack() as stack:
        address = options.address
        if address is None:
            cluster = LocalCluster(
                n_workers=3, threads_per_worker=1, dashboard_address=":0", silence_logs=QUIET
            )
            address = stack.enter_context(cluster)
        client = stack.enter_context(Client(address))
        pool = stack.enter_context(shmpar.Pool(engine=client))
        began = time.perf_counter()
        run = smoothed(pool, image, chunk, wait=False)
        if options.address is None:
            while not run.progress[0]:
                time.sleep(0.01)
            pid = next(iter(client.run(os.getpid).values()))
            os.kill(pid, signal.SIGKILL)
        found = run.result()
        print(f"{time.perf_counter() - began:.2f} s on the hosts")
        print(run.report)
    with shmpar.Pool() as pool:
        began = time.perf_counter()
        due = smoothed(pool, image, chunk)
        print(f"{time.perf_counter() - began:.2f} s on this machine")
    print("the results are equal, byte for byte:", found.tobytes() == due.tobytes())


if __name__ == "__main__":
    main()
