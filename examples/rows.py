"""A model fitted to each of a million rows: the lifetime of a decay, beside the plain loop.

    python examples/rows.py
    python examples/rows.py --rows 200_000 --workers 1

Each row is a trace: counts of photons that arrive while a fluorophore decays.  Its fit uses the
samples up to the first one that sinks into the dark counts, another number of them in each row, so
that no single NumPy expression fits all rows: a Python function is called for each.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np

import shmpar

Array = np.ndarray[Any, Any]

SAMPLES = 64
STEP = 0.25  # nanoseconds from sample to sample
DARK = 5.0  # counts
TIMES = np.arange(SAMPLES) * STEP
NOTHING = np.array([np.nan, np.nan])


def fit(trace: Array) -> Array:
    """Fit ``amplitude * exp(-t / lifetime)``: an array of amplitude (counts) and lifetime (ns).

    The logarithm makes it a straight line, weighted by the counts since the variance of log(n) is
    1 / n: closed form, no iterations.  NaN where there is no slope to fit.
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
    """Photon counts of as many traces as the block has rows, of 1.5 to 4 ns and 200 counts."""
    lifetimes = rng.uniform(1.5, 4.0, size=(len(block), 1))
    return rng.poisson(200 * np.exp(-TIMES / lifetimes)).astype(block.dtype)


def main() -> None:
    """Read the command line, fit, compare with the loop."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--sample", type=int, default=20_000, help="rows of the plain loop")
    parser.add_argument("--workers", type=int, help="default: one a CPU")
    parser.add_argument("--smoke", action="store_true", help="20,000 rows, 2,000 of them looped")
    options = parser.parse_args()
    if options.smoke:
        options.rows, options.sample = 20_000, 2_000
    if options.rows < 1 or options.sample < 1:
        parser.error("--rows and --sample are 1 or more")

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
        raise SystemExit("the results differ from those of the plain loop")
    lifetimes = fits[np.isfinite(fits[:, 1]), 1]
    low, middle, high = np.percentile(lifetimes, [5, 50, 95])
    print(f"{len(lifetimes):,} fitted: median lifetime {middle:.2f} ns, 5 to 95 % of them")
    print(f"from {low:.2f} to {high:.2f} ns")
    print()

    rate, plain = options.rows / report.seconds, len(sample) / seconds
    print(f"{'':<22}{'rows':>12}{'seconds':>10}{'rows/s':>12}")
    print(f"{'plain loop':<22}{len(sample):>12,}{seconds:>10.2f}{plain:>12,.0f}")
    ours = f"parallel_map, {report.workers} workers"
    print(f"{ours:<22}{options.rows:>12,}{report.seconds:>10.2f}{rate:>12,.0f}")
    print(f"the same to the last bit; {rate / plain:.2f} times the rate")


if __name__ == "__main__":
    main()
