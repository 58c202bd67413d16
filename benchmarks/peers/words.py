"""What the page says in words; its numbers are in the figures."""

from __future__ import annotations

SALT = """
A benchmark by the authors of one of its contestants deserves doubt. So: the code is in
`benchmarks/peers/`, a plain file for each system and each workload, and one command runs it again
on your machine. Each system has a process of its own, and they take turns, in an order that is
drawn anew for each round, so that whatever else the machine does hits all alike. Those that wait
are stopped, with all of their processes (SIGSTOP): whose turn it is has the machine. Where memory
decides, all start three times, in another order each, since what memory a process gets makes it
faster or slower for as long as it lives. Answers are checked. Times are medians of
warm calls. Each system is measured with the same chunks as ours and in the way that
its documentation recommends; pictures and tables show the better of both, and the file of figures
has both. Where the cost of a chunk is the question, only the same chunks count. No workload is
yours: a function that takes long enough makes all of these libraries equal.

What is unfair to others: Dask, distributed and Ray are made for clusters, for data larger than
memory, and for graphs of many steps; here they get one machine and one step. To build Dask's
graph counts, because one writes it for each call. Dask's processes read chunks from a mapped
file, which is faster than sending them. What is unfair to us: a pool made by hand is made for its
one array, and its results are written where they are already wanted.
"""

INSTEAD = """
- **A whole-array expression exists** (`a.sum(axis=1)`, `np.sqrt(a)`): use it. One process and no
  calls in Python beat a call a row or tile, and often several processes.
- **The function can be compiled**: use numba. Rewritten as loops it has no interpreter left to
  parallelise. shmpar is for functions that exist already, and for those that cannot be compiled.
- **The function releases the interpreter lock** and its chunks are large (SciPy filters, large
  ufuncs, compression): a thread pool does as well, with nothing to copy or start.
  `shmpar.Pool(engine="threads")` is one.
- **A chain of cheap elementwise steps**: fuse them in one function, or have Dask do it; three
  maps read and write memory three times.
- **The loop may be yours**: spans of rows that a pool of the standard library hands out, with the
  shared output, the loop and the clean-up written by hand, add nothing to a row. That is what
  shmpar spares you rather than what it beats.
- **One call in a short script**: a forked pool or threads start in milliseconds, since they
  import nothing.
- **Data larger than memory, many machines**: Dask, Ray or Spark. Nothing here measures what they
  are for.
"""

ABSENT = """
- loky, pebble, billiard: they start processes and send arguments as `ProcessPoolExecutor` and
  joblib do, which are here.
- multiprocess, pathos: `multiprocessing` with another pickler.
- ipyparallel, Parsl, Spark, Modin, cubed: made for many machines; distributed and Ray stand for
  them.
- xarray, `dask.dataframe`: they run on Dask, which is here.
"""

CAPTIONS = {
    "at_a_glance": (
        "Each system's time as a multiple of shmpar's, in its better way. Left is better, and "
        "left of the line better than shmpar."
    ),
    "overhead": (
        "How much of the ceiling's speed is left when a chunk costs so many microseconds. The "
        "ceiling is bare forked processes in a loop. Higher is better."
    ),
    "many_chunks": (
        "Time a chunk whose function does nothing, by the number of chunks. Lower is better."
    ),
    "workers": (
        "Chunks of 1 ms, with more and more workers. Lower is better; past the cores flat is best."
    ),
    "bytes": "Sums of rows of 1 MB, by the size of the array. Higher is better.",
    "start": "A fresh process that sums eight rows. Lower is better.",
    "memory": (
        "The most memory that all processes of a system had together (proportional set size), "
        "the interpreter and its imports included; in the heading, what input and output take. "
        "Lower is better."
    ),
    "chunk_cost": (
        "Time a chunk, all workers together: its cost divided by their number is the least there "
        "can be."
    ),
    "row_sums": (
        "Bound by memory: *private arrays* is what the same loop reaches on unshared memory. "
        "*numba prange* may add in any order here (`fastmath=True`)."
    ),
    "copy_in": (
        "How long it takes until workers can see a plain array. *NumPy alone* is `x.copy()`."
    ),
    "ufunc": ("Into an output that is there, but for Dask and `apply_parallel`, which make one."),
    "floor": "A map that is warm and has nothing to do.",
}

ABOUT = """
## Again, on your machine

```sh
python -m pip install -e ".[benchmarks]"
python -m benchmarks peers --json figures.json  # all: about an hour on 2 idle cores
python -m benchmarks peers tiles floor --systems ours,pool,joblib --quick
python -m benchmarks page figures.json  # this page and its pictures
```

This page was made from `{source}`.
"""
