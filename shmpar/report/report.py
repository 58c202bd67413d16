"""The chunks that took longest.

Imports plan.

How many bytes the chunks of a run read and write.

Imports grid and plan.

Memory that a process has for itself, as the kernel tells.

Imports nothing of the package.

How fast this machine's memory is: a quick measurement, made when it is asked for.

Imports cpus and room.

The report of one run.

Imports the neighbours in this package, account, ledger and plan.
"""

from __future__ import annotations

import functools
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from shmpar.grid import Axis, Halo
from shmpar.ipc.ledger import DONE, Ledger
from shmpar.memory import limits
from shmpar.memory.limits import affinity_cpus
from shmpar.plan import Blocks, Plan, Rows
from shmpar.report.timings import Timings, WorkerTime, durations_by_chunk
from shmpar.runtime.execution import Attempt

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Ceiling", "Report", "SlowChunk", "bytes_read", "measured", "private", "slowest"]


class SlowChunk(NamedTuple):
    """A chunk and how long it took.

    Attributes
    ----------
    chunk : int
        Its number.
    region : tuple of slice
        Where it lies in the array that was cut.
    seconds : float
        How long it took; the mean of its claim, where chunks are shorter than 20 us.
    worker : int
        Who computed it.
    """

    chunk: int
    region: tuple[slice, ...]
    seconds: float
    worker: int


def slowest(plan: Plan, timings: Timings, count: int) -> list[SlowChunk]:
    """The chunks that took longest, the longest first; equal ones in their order."""
    order = np.lexsort((timings.chunks, -timings.durations))[: max(count, 0)]
    return [
        SlowChunk(
            int(timings.chunks[place]),
            plan.region(int(timings.chunks[place])),
            float(timings.durations[place]),
            int(timings.workers[place]),
        )
        for place in order
    ]


def bytes_read(plan: Plan, sizes: Sequence[int]) -> int:
    """Bytes of the inputs that the function is given, over all chunks.

    A halo counts in each chunk that has it; so does an array, or an axis of it, that arrives
    whole. Items of an iterable and constants do not count.

    Parameters
    ----------
    sizes : sequence of int
        Bytes of each of the run's arrays.

    Examples
    --------
    >>> from shmpar.grid import Grid
    >>> from shmpar.plan import InBlocks
    >>> grid = Grid.cut((6, 4), (3, 2))
    >>> arguments = Blocks(0, (0, 1)), Blocks(1, (None, 1))
    >>> plan = Plan("map_blocks", grid, arguments, InBlocks.like(grid))
    >>> bytes_read(plan, [6 * 4 * 8, 1 * 4 * 8])
    256
    """
    total = 0.0
    for argument in plan.arguments:
        if isinstance(argument, Rows):
            total += sizes[argument.array]
        elif isinstance(argument, Blocks):
            total += sizes[argument.array] * _times_read(plan, argument)
    return round(total)


def _times_read(plan: Plan, argument: Blocks) -> float:
    """How often each element of an input is read, on average."""
    times = 1.0
    for number, axis in enumerate(plan.grid.axes):
        if number not in argument.axes:
            times *= len(axis)
        elif plan.halo is not None:
            times *= _seen(axis, plan.halo, number) / max(axis.size, 1)
    return times


def _seen(axis: Axis, halo: Halo, number: int) -> int:
    """Elements of an axis that all windows together see; what lies beyond it is made, not read."""
    before, after = halo.depth[number]
    spans = [axis.span(i) for i in range(len(axis))]
    return sum(min(axis.size, stop + after) - max(0, start - before) for start, stop in spans)


def private(pid: int) -> int:
    """Bytes in memory that no file and no other process has, ``RssAnon`` in ``/proc/<pid>/status``.

    0 where there is no such process, or no ``/proc``.

    Examples
    --------
    >>> import os
    >>> private(os.getpid()) > 1_000_000
    True
    """
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith("RssAnon:"):
                    return 1024 * int(line.split()[1])
    except OSError:
        pass
    return 0


Array = np.ndarray[Any, Any]

_BYTES = 256 << 20  # of all threads: more than the caches of most machines hold
_ROUNDS = 6


class Ceiling(NamedTuple):
    """Bytes a second that all CPUs together move between memory and themselves.

    Attributes
    ----------
    read, write : float
        When they do nothing else.
    """

    read: float
    write: float

    def of(self, read: int, written: int) -> float:
        """Bytes a second for a mixture of both, each at its own best.

        Examples
        --------
        >>> Ceiling(read=20e9, write=10e9).of(100, 100) / 1e9
        13.3...
        """
        seconds = read / self.read + written / self.write
        return (read + written) / seconds if seconds else self.read


@functools.cache
def measured() -> Ceiling:
    """Measure it; takes about a fifth of a second once a process, and 256 MB for as long.

    Each thread reads, then writes, an array of its own; the best of a few rounds counts.
    """
    threads = affinity_cpus()
    nbytes = min(_BYTES, limits.free_memory() // 8)
    arrays = [np.ones(max(nbytes // threads, 1 << 19), np.uint8) for _ in range(threads)]
    total = sum(array.nbytes for array in arrays)
    read = min(_together(np.max, arrays) for _ in range(_ROUNDS))
    write = min(_together(lambda array: array.fill(2), arrays) for _ in range(_ROUNDS))
    return Ceiling(total / read, total / write)


def _together(work: Callable[[Array], object], arrays: Sequence[Array]) -> float:
    """Seconds in which as many threads as arrays do this with one each."""
    start = threading.Barrier(len(arrays) + 1)

    def one(array: Array) -> None:
        start.wait()
        work(array)

    threads = [threading.Thread(target=one, args=(array,)) for array in arrays]
    for thread in threads:
        thread.start()
    start.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    return time.perf_counter() - began


_GIGA = 1e9


@dataclass(frozen=True, eq=False, repr=False)
class Report:
    """The numbers of one run; ``pool.last_run.report`` is that of the latest.

    Shown in a terminal it is a table, in a notebook too. The report of a run in flight tells how
    far it is, and does not change; ask for it again.

    Attributes
    ----------
    verb : str
        What was called.
    function : str
        The name of the user's function; empty if it has none.
    engine : str
        What ran it.
    workers : int
        How many workers the engine has.
    chunks, done, failed : int
        How many there are, were computed, and failed.
    deaths : int
        Workers that ended while they had a chunk of this run.
    seconds : float
        From the call to the end.
    memory : tuple of str
        Where each input and output was: ``shm``, ``memfd``, ``tempfile`` or ``file``; ``private``
        for memory of this process alone.
    worker_bytes : tuple of int
        What each worker that was up when the report was made had in memory for itself, beyond the
        shared arrays and the files of programs: ``RssAnon`` in ``/proc``. Empty where workers are
        no processes, and once the pool is closed.
    seed : int, sequence of int or None
        Entropy of the random streams, if the function was passed one.
    preparing : float
        Seconds from the call until all that the workers need was ready: inputs copied into shared
        memory, the function pickled, known outputs made.
    cold : bool
        Whether no worker was up then: the call has waited for one to start.
    attempts : tuple of Attempt
        Attempts that ended with their worker.

    Notes
    -----
    Cost: 11 bytes a chunk; about 0.2 us a chunk of 20 us and more, and 4 us a claim; of shorter
    chunks only a claim's mean is known.

    Examples
    --------
    >>> import numpy as np, shmpar
    >>> with shmpar.Pool(2) as pool:
    ...     _ = pool.map_blocks(np.sqrt, np.ones((60, 40)), chunks=20)
    >>> report = pool.last_run.report
    >>> report.chunks, report.done, report.bytes_read, report.bytes_written
    (6, 6, 19200, 19200)
    >>> report.slowest(1)[0].seconds <= report.serial_seconds
    True
    """

    verb: str
    function: str
    engine: str
    workers: int
    chunks: int
    done: int
    failed: int
    deaths: int
    seconds: float
    memory: tuple[str, ...]
    worker_bytes: tuple[int, ...]
    seed: Any
    preparing: float
    cold: bool
    attempts: tuple[Attempt, ...]
    plan: Plan = field(repr=False)
    inputs: tuple[tuple[str, int], ...] = field(repr=False)
    outputs: tuple[tuple[str, int], ...] = field(repr=False)
    origin: float = field(repr=False)
    complete: bool = field(repr=False)
    ledger: Ledger | None = field(repr=False)

    @cached_property
    def timings(self) -> Timings:
        """When each chunk was computed, and by whom; not for users, it may change."""
        ledger = self.ledger
        if ledger is None:
            ledger = Ledger(bytes(Ledger.nbytes(workers=0, chunks=0)), workers=0, chunks=0)
        return Timings(ledger, self.origin, self.seconds, self.attempts, complete=self.complete)

    @property
    def claims(self) -> int:
        """How often a worker took chunks: one or more at once."""
        return len(self.timings.heads)

    @property
    def computed(self) -> int:
        """Chunks that this run has computed; others were done before, by one that it resumes."""
        return self.timings.computed

    @property
    def retries(self) -> int:
        """How often a chunk was computed again since its worker had ended while it was at it."""
        if self.ledger is None:
            return 0
        again = self.ledger.status == DONE
        again[self.timings.chunks] = True  # the function may have raised then
        died = Counter([one.chunk for one in self.attempts if one.chunk is not None])
        return sum(times - int(not again[chunk]) for chunk, times in died.items())

    @property
    def array_bytes(self) -> dict[str, int]:
        """Bytes of the inputs and outputs in each kind of memory, as `memory` names them."""
        found: dict[str, int] = {}
        for kind, nbytes in (*self.inputs, *self.outputs):
            found[kind] = found.get(kind, 0) + nbytes
        return found

    @property
    def bytes_read(self) -> int:
        """Bytes that the function was given, halos and repetitions included."""
        whole = bytes_read(self.plan, [size for _, size in self.inputs])
        return round(whole * self._share)

    @property
    def bytes_written(self) -> int:
        """Bytes of the outputs' chunks that were computed."""
        return round(sum(size for _, size in self.outputs) * self._share)

    @property
    def _share(self) -> float:
        return self.computed / self.chunks if self.chunks else 0.0

    @property
    def gb_per_second(self) -> float:
        """Gigabytes (10**9) that were read and written a second, over the whole call."""
        return (self.bytes_read + self.bytes_written) / max(self.seconds, 1e-9) / _GIGA

    @property
    def ceiling(self) -> float:
        """Gigabytes a second that this machine's memory can do, for as much reading and writing.

        Measured when it is first asked for, once a process, with one thread a CPU: takes about a
        fifth of a second and 256 MB. Other programs that run meanwhile make it less.
        """
        return measured().of(self.bytes_read, self.bytes_written) / _GIGA

    @property
    def serial_seconds(self) -> float:
        """Seconds that one worker would need: the sum of all chunks' durations.

        Where workers wait for the same memory it is too much: one alone has it for itself.
        """
        return self.timings.serial

    @property
    def speedup(self) -> float:
        """How many times as long one worker would need."""
        return self.serial_seconds / max(self.seconds, 1e-9)

    @cached_property
    def worker_times(self) -> tuple[WorkerTime, ...]:
        """Where the time of each worker went."""
        return self.timings.of_workers()

    @property
    def durations(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Seconds that each chunk took, by its number; NaN for one that was not computed."""
        if self.ledger is None:
            return np.full(self.chunks, np.nan, np.float32)
        return durations_by_chunk(self.ledger)

    def slowest(self, count: int = 5) -> list[SlowChunk]:
        """The chunks that took longest, with where they lie.

        Parameters
        ----------
        count : int
            How many.

        Returns
        -------
        list of SlowChunk
            The longest first.

        Examples
        --------
        >>> import numpy as np, shmpar, time
        >>> with shmpar.Pool(2) as pool:
        ...     nap = lambda row: time.sleep(0.01 * row[0])
        ...     _ = pool.parallel_map(nap, np.array([[0], [3], [1]]))
        >>> [(one.chunk, one.region) for one in pool.last_run.report.slowest(1)]
        [(1, (slice(1, 2, None),))]
        """
        return slowest(self.plan, self.timings, count)

    @property
    def advice(self) -> str:
        """What would make the call faster, in a line; empty where nothing is known to.

        Cost: measures the memory's ceiling, once a process, if more than 64 MB were moved.
        """
        from shmpar.report.text import advice

        return advice(self)

    def plot(self) -> Figure:
        """Draw what the workers did, and what each chunk cost.

        Returns
        -------
        matplotlib.figure.Figure
            A timeline with a line for each worker, and below it, for a grid that cuts two axes, a
            map of the cost over the array, or for one axis a curve. Not shown, not known to
            ``pyplot``: a notebook shows it, and ``report.plot().savefig("run.png")`` writes it.

        Raises
        ------
        ImportError
            Where matplotlib is not installed: ``pip install shmpar[plot]``.

        Examples
        --------
        >>> import numpy as np, shmpar
        >>> with shmpar.Pool(2) as pool:
        ...     _ = pool.map_blocks(np.sqrt, np.ones((600, 400)), chunks=100)
        >>> figure = pool.last_run.report.plot()
        >>> [axes.get_ylabel() for axes in figure.axes[:2]]
        ['worker', 'axis 0']
        """
        from shmpar.report.plot import draw

        return draw(self)

    def to_perfetto(self, path: str | os.PathLike[str]) -> None:
        """Write a trace that opens in https://ui.perfetto.dev, and in ``chrome://tracing``.

        Parameters
        ----------
        path : path
            The file, ``.json``; it is replaced if there is one.

        Notes
        -----
        There is one track a worker and one slice a chunk, inside the slice of its claim where a
        worker took several; a claim of chunks that are shorter than 20 us is one slice.

        Examples
        --------
        >>> import json, numpy as np, pathlib, shmpar, tempfile
        >>> with shmpar.Pool(2) as pool, tempfile.TemporaryDirectory() as folder:
        ...     _ = pool.map_blocks(np.sqrt, np.ones((60, 40)), chunks=20)
        ...     path = pathlib.Path(folder) / "trace.json"
        ...     pool.last_run.report.to_perfetto(path)
        ...     sorted(json.loads(path.read_text()))
        ['displayTimeUnit', 'traceEvents']
        """
        from shmpar.report.trace import write

        write(self, path)

    def __str__(self) -> str:
        from shmpar.report.text import table

        return table(self)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from shmpar.report.html import page

        return page(self)
