"""Fit a model to each of a million rows, and compare with a plain loop.

    python examples/rows.py
    python examples/rows.py --rows 200_000 --workers 1

Each row is a trace: counts of photons that arrive while a fluorophore decays.  The fit uses the
samples before the first sample below the dark counts.  Their number differs from row to row, so no
single NumPy expression fits all rows: a Python function is called for each row.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np

import shmpar

Array = np.ndarray[Any, Any]

SAMPLES = 64
STEP = 0.25  # nanoseconds between samples
DARK = 5.0  # counts
TIMES = np.arange(SAMPLES) * STEP
NOTHING = np.array([np.nan, np.nan])


def fit(trace: Array) -> Array:
    """Fit ``amplitude * exp(-t / lifetime)``; return amplitude (counts) and lifetime (ns).

    The fit is a straight line through the logarithms, weighted by the counts, since the variance
    of log(n) is 1 / n.  It has a closed form.  The result is NaN if there is no slope to fit.
    """
    below = trace < DARK
    end = int(below.argmax()) or SAMPLES
    if below[0] or end < 3:  # noqa: PLR2004 (samples)
        return NOTHING
    counts, t = trace[:end].astype(float), TIMES[:end]
    logs = np.log(counts)
    total = counts.sum()
    t_mean, log_mean = counts @ t / total, counts @ logs / total
    slope = (counts * (t - t_mean)) @ (logs - log_mean) / (counts @ (t - t_mean) ** 2)
    if not slope < 0:
        return NOTHING
    return np.array([np.exp(log_mean - slope * t_mean), -1 / slope])


def simulated(block: Array, rng: np.random.Generator) -> Array:
    """Return photon counts of a trace per row, with lifetimes of 1.5 to 4 ns."""
    lifetimes = rng.uniform(1.5, 4.0, size=(len(block), 1))
    return rng.poisson(200 * np.exp(-TIMES / lifetimes)).astype(block.dtype)


def main() -> None:
    """Read the command line, fit, and compare with the loop."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--sample", type=int, default=20_000, help="rows for the plain loop")
    parser.add_argument("--workers", type=int, help="default: one per CPU")
    parser.add_argument("--smoke", action="store_true", help="20,000 rows, 2,000 in the loop")
    options = parser.parse_args()
    if options.smoke:
        options.rows, options.sample = 20_000, 2_000
    if options.rows < 1 or options.sample < 1:
        parser.error("--rows and --sample must be 1 or more")

    with shmpar.Pool(options.workers) as pool:
        traces = pool.empty((options.rows, SAMPLES), np.uint16)
        pool.map_blocks(simulated, traces, out=traces, chunks=(4096, -1), seed=0)
        print(f"{options.rows:,} traces of {SAMPLES} samples, {traces.nbytes / 1e6:,.0f} MB")

        fits = pool.parallel_map(fit, traces, progress="fitting")
        report = pool.last_run.report

    sample = traces[: options.sample].view(np.ndarray)
    began = time.perf_counter()
    looped = np.array([fit(trace) for trace in sample])
    seconds = time.perf_counter() - began

    if not np.array_equal(fits[: options.sample], looped, equal_nan=True):
        raise SystemExit("the results differ from the results of the plain loop")
    lifetimes = fits[np.isfinite(fits[:, 1]), 1]
    low, middle, high = np.percentile(lifetimes, [5, 50, 95])
    print(f"{len(lifetimes):,} fitted: median lifetime {middle:.2f} ns,")
    print(f"5th to 95th percentile {low:.2f} to {high:.2f} ns")
    print()

    rate, plain = options.rows / report.seconds, len(sample) / seconds
    print(f"{'':<24}{'rows':>12}{'seconds':>10}{'rows/s':>12}")
    print(f"{'plain loop':<24}{len(sample):>12,}{seconds:>10.2f}{plain:>12,.0f}")
    ours = f"parallel_map, {report.workers} workers"
    print(f"{ours:<24}{options.rows:>12,}{report.seconds:>10.2f}{rate:>12,.0f}")
    print(f"the results are the same to the last bit, at {rate / plain:.2f} times the rate")


if __name__ == "__main__":
    main()
