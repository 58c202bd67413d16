"""The report of one run."""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import numpy as np

from shmpar.engines.engine import HostTraffic
from shmpar.errors import no_attribute
from shmpar.ipc.ledger import DONE, Ledger, LostClaim
from shmpar.memory import limits
from shmpar.plan import Blocks, Plan, Rows
from shmpar.report.timings import Timings, WorkerTime, write_trace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]

_GIGA = 1e9
_BANDWIDTH_BYTES = 256 << 20  # of all threads; Why: more than the caches of most machines
_BANDWIDTH_ROUNDS = 6


class SlowChunk(NamedTuple):
    """A chunk and its duration.

    Attributes
    ----------
    chunk : int
        Number of the chunk.
    region : tuple of slice
        Its window in the array that was cut.
    seconds : float
        Its duration; the mean of its claim, where chunks are shorter than 20 us.
    worker : int
        The worker that computed it.
    """

    chunk: int
    region: tuple[slice, ...]
    seconds: float
    worker: int


def bytes_read(plan: Plan, sizes: Sequence[int]) -> int:
    """Return the bytes of the inputs that the function receives, over all chunks.

    A halo counts in each chunk that has it, and so does an array, or an axis of it, that arrives
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


def _times_read(plan: Plan, argument: Blocks, unit: Sequence[int] | None = None) -> float:
    """Return how often a run reads each unit of an array, on average; None stands for elements."""
    reads = 1.0
    for number, axis in enumerate(plan.grid.axes):
        if number not in argument.axes:
            reads *= len(axis)
        elif argument.halo is not None or unit is not None:
            place = argument.axes.index(number)
            before, after = (0, 0) if argument.halo is None else argument.halo.depth[place]
            length = 1 if unit is None else unit[place]
            # Why: clipped, since elements beyond the border are made up, not read.
            touched = [
                -(-min(axis.size, s.stop + after) // length) - max(0, s.start - before) // length
                for s in axis
            ]
            reads *= sum(touched) / max(1, -(-axis.size // length))
    return reads


def units_read(plan: Plan, units: Sequence[Shape | None]) -> tuple[float, Shape]:
    """Return how often a run reads each unit of its stores, on average, and the unit.

    These are the number and the unit of the input whose units are read most often; 1 and no unit
    without such an input.

    Parameters
    ----------
    units : sequence of (tuple of int or None)
        The unit of each of the run's arrays; None for an array in memory.

    Examples
    --------
    >>> from shmpar.grid import Grid
    >>> from shmpar.plan import PerChunk
    >>> plan = Plan("map_blocks", Grid.cut((100,), (30,)), (Blocks(0, (0,)),), PerChunk())
    >>> units_read(plan, [(20,)])
    (1.4, (20,))
    """
    blocks = [one for one in plan.arguments if isinstance(one, Blocks)]
    pairs = [(one, unit) for one in blocks if (unit := units[one.array]) is not None]
    return max([(1.0, ()), *[(_times_read(plan, one, unit), unit) for one, unit in pairs]])


def private_bytes(pid: int) -> int:
    """Return the private memory of a process: ``RssAnon`` in ``/proc/<pid>/status``.

    Return 0 without such a process, or without ``/proc``.

    Examples
    --------
    >>> import os
    >>> private_bytes(os.getpid()) > 1_000_000
    True
    """
    with suppress(OSError), open(f"/proc/{pid}/status", "rb") as file:
        if found := re.search(rb"RssAnon:\s*(\d+) kB", file.read()):
            return 1024 * int(found[1])
    return 0


@cache
def measure_bandwidth() -> tuple[float, float]:
    """Measure the bytes per second that all CPUs together read, and write; once per process.

    Threads read, then write, an array each; the best of a few rounds counts.

    Cost: a fraction of a second, and 256 MB for as long.
    """
    threads = limits.affinity_cpus()
    nbytes = min(_BANDWIDTH_BYTES, limits.free_memory() // 8)
    arrays = [np.ones(max(nbytes // threads, 1 << 19), np.uint8) for _ in range(threads)]
    total = sum(array.nbytes for array in arrays)
    with ThreadPoolExecutor(threads) as executor:

        def rate(work: Callable[[Array], object]) -> float:
            seconds = []
            for _ in range(_BANDWIDTH_ROUNDS):
                start = time.perf_counter()
                list(executor.map(work, arrays))
                seconds.append(time.perf_counter() - start)
            return total / min(seconds)

        return rate(np.max), rate(lambda array: array.fill(2))


_OTHER_NAMES = {
    **dict.fromkeys(("show", "visualize", "view"), "write plot()"),
    **dict.fromkeys(
        ("html", "save", "savefig", "to_file", "to_html"),
        "write plot().savefig(path), or to_perfetto(path)",
    ),
    **dict.fromkeys(("print", "summary", "text", "to_string"), "write print(report)"),
    "to_dataframe": "write pandas.DataFrame(report.worker_times)",
    "to_dict": "write worker_times, slowest() and the other attributes",
    "to_frame": "write pandas.DataFrame(report.worker_times)",
}


@dataclass(frozen=True, eq=False, repr=False)
class Report:
    """The numbers of one run; ``pool.last_run.report`` is the report of the latest.

    A terminal and a notebook show it as a table. The report of a run in flight shows the progress
    so far and does not change; ask for a new report later.

    Attributes
    ----------
    verb : str
        The verb that was called.
    function : str
        The name of the user's function; empty if it has none.
    engine : str
        The engine that ran it.
    workers : int
        Number of workers of the engine.
    chunks, done, failed : int
        Number of chunks, of computed chunks, and of failed chunks.
    deaths : int
        Workers that died while they had a chunk of this run.
    seconds : float
        Duration of the call.
    huge_bytes : int
        Bytes of the inputs and outputs that lie in pages of 2 MiB.
    worker_bytes : tuple of int
        Private memory of each worker that was up when the report was made, beyond the shared
        arrays and the files of programs: ``RssAnon`` in ``/proc``. Empty where workers are no
        processes, and after the pool is closed.
    seed : int, sequence of int or None
        Entropy of the random streams, if the function was passed one.
    preparing : float
        Seconds from the call until the workers could begin: inputs copied into shared memory, the
        function pickled, known outputs allocated.
    cold : bool
        True if no worker was up then, so that the call waited for the start of a worker.
    attempts : tuple of LostClaim
        Claims that ended with the death of their worker.
    filled : bool
        True if the failed chunks were filled (``on_error="fill"``).
    hosts : tuple of HostTraffic
        On a cluster: spans, bytes, seconds and the loss of each host. `deaths` counts the hosts
        too that were lost while they had a single chunk.
    store_read, store_written : int
        Bytes of values that workers have read from stores, with halos and repetitions, and written
        to stores.
    unit_reads : float
        How often each unit of an input store is read, on average: more than once if chunks end
        inside of units, or have a halo.
    units : tuple of int
        The units of that store, in elements along each axis; empty without a store.
    store_seconds : float
        Seconds that all workers together took for it, decoding included: the part of
        `serial_seconds` that the function did not take.

    Notes
    -----
    Cost: 11 bytes per chunk; one reading of the clock per chunk of at least 20 us. The durations of
    shorter chunks are the mean of their claim.

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
    huge_bytes: int
    worker_bytes: tuple[int, ...]
    seed: Any
    preparing: float
    cold: bool
    attempts: tuple[LostClaim, ...]
    plan: Plan
    inputs: tuple[tuple[str, int], ...]
    outputs: tuple[tuple[str, int], ...]
    origin: float
    complete: bool
    ledger: Ledger | None
    filled: bool = False
    hosts: tuple[HostTraffic, ...] = ()
    store_read: int = 0
    store_written: int = 0
    store_seconds: float = 0.0
    unit_reads: float = 1.0
    units: tuple[int, ...] = ()

    if not TYPE_CHECKING:  # Why: a type checker would take any name for an attribute.

        def __getattr__(self, name: str) -> NoReturn:
            raise no_attribute(self, name, _OTHER_NAMES.get(name))

    @cached_property
    def timings(self) -> Timings:
        """The times of all chunks and workers; private, it may change."""
        lost, complete = self.attempts, self.complete
        return Timings(self._ledger, self.origin, self.seconds, lost, complete=complete)

    @cached_property
    def _ledger(self) -> Ledger:
        """The ledger, or an empty one for a run that has not started."""
        sizes = {"workers": 0, "chunks": self.chunks}
        return self.ledger or Ledger(bytes(Ledger.nbytes(**sizes)), **sizes)

    @property
    def claims(self) -> int:
        """Number of claims, in each of which a worker took one or more chunks."""
        return len(self.timings.claim_starts)

    @property
    def computed(self) -> int:
        """Chunks that this run has computed; a resumed run has others that were done before."""
        return self.timings.computed

    @property
    def retries(self) -> int:
        """Number of times that a chunk was computed again after its worker had died."""
        finished = self._ledger.status == DONE
        finished[self.timings.chunks] = True  # Why: the last attempt may have raised.
        deaths = Counter(claim.chunk for claim in self.attempts if claim.chunk is not None)
        return sum(times - int(not finished[chunk]) for chunk, times in deaths.items())

    @property
    def memory(self) -> tuple[str, ...]:
        """The memory of each input and output.

        It is ``shm``, ``memfd``, ``tempfile`` or ``file``; ``private`` for memory of this process
        alone.
        """
        return tuple(kind for kind, _ in (*self.inputs, *self.outputs))

    @property
    def array_bytes(self) -> dict[str, int]:
        """Bytes of the inputs and outputs in each kind of memory, as `memory` names them."""
        totals: dict[str, int] = {}
        for kind, nbytes in (*self.inputs, *self.outputs):
            totals[kind] = totals.get(kind, 0) + nbytes
        return totals

    @property
    def bytes_read(self) -> int:
        """Bytes that the function received, with halos and repetitions."""
        return self._computed_part(bytes_read(self.plan, [size for _, size in self.inputs]))

    @property
    def bytes_written(self) -> int:
        """Bytes of the computed chunks of the outputs."""
        return self._computed_part(sum(size for _, size in self.outputs))

    def _computed_part(self, nbytes: int) -> int:
        return round(nbytes * self.computed / max(self.chunks, 1))

    @property
    def gb_per_second(self) -> float:
        """Gigabytes (10**9) read and written per second, over the whole call."""
        return (self.bytes_read + self.bytes_written) / max(self.seconds, 1e-9) / _GIGA

    @property
    def ceiling(self) -> float:
        """Memory bandwidth of this machine for the same reading and writing, in GB per second.

        Cost: the first use in a process measures it with one thread per CPU, which takes a fraction
        of a second and 256 MB. Other programs that run meanwhile lower it.
        """
        read_rate, write_rate = measure_bandwidth()
        read, written = self.bytes_read, self.bytes_written
        seconds = read / read_rate + written / write_rate
        return ((read + written) / seconds if seconds else read_rate) / _GIGA

    @property
    def serial_seconds(self) -> float:
        """Sum of the durations of all chunks: the seconds that one worker would need.

        It is too large where workers compete for memory, which one worker alone would not.
        """
        return float(self.timings.durations.sum())

    @property
    def speedup(self) -> float:
        """Time of one worker, divided by the time of the call."""
        return self.serial_seconds / max(self.seconds, 1e-9)

    @cached_property
    def worker_times(self) -> tuple[WorkerTime, ...]:
        """The time of each worker, in its parts."""
        return self.timings.of_workers()

    @property
    def durations(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Seconds that each chunk took, by its number; NaN for a chunk that was not computed."""
        seconds = self._ledger.times.seconds
        known = (self._ledger.status == DONE) & (seconds > 0)
        return np.where(known, seconds, np.float32(np.nan))

    def slowest(self, count: int = 5) -> list[SlowChunk]:
        """Return the chunks that took longest, with their regions.

        Parameters
        ----------
        count : int
            Number of chunks.

        Returns
        -------
        list of SlowChunk
            The longest first.

        Examples
        --------
        >>> import numpy as np, shmpar, time
        >>> with shmpar.Pool(2) as pool:
        ...     nap = lambda row: time.sleep(0.1 * row[0])
        ...     _ = pool.parallel_map(nap, np.array([[0], [3], [1]]))
        >>> [(one.chunk, one.region) for one in pool.last_run.report.slowest(1)]
        [(1, (slice(1, 2, None),))]
        """
        timings = self.timings
        order = np.lexsort((timings.chunks, -timings.durations))[: max(count, 0)]
        arrays = timings.chunks, timings.durations, timings.workers
        picked = zip(*[array[order].tolist() for array in arrays], strict=True)
        return [SlowChunk(chunk, self.plan.region(chunk), *rest) for chunk, *rest in picked]

    @property
    def advice(self) -> str:
        """Advice that would make the call faster, in one line, or an empty string.

        Cost: measures the memory bandwidth, once per process, if more than 64 MB were moved.
        """
        from shmpar.report.views import advise

        return advise(self)

    def plot(self) -> Figure:
        """Draw a timeline of the workers and the cost of each chunk.

        Returns
        -------
        matplotlib.figure.Figure
            A timeline with a line per worker, and below it the cost: a map over the array for a
            grid that cuts two axes, a curve for one axis. It is not registered with ``pyplot``:
            a notebook shows it, and ``report.plot().savefig("run.png")`` writes it.

        Raises
        ------
        ImportError
            If matplotlib is not installed, which the extra ``plot`` installs.

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
            The file, ``.json``; an existing file is replaced.

        Notes
        -----
        There is one track per worker and one slice per chunk, inside the slice of its claim if the
        claim has several chunks; a claim of chunks that are shorter than 20 us is one slice.

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
        write_trace(self, path)

    def __str__(self) -> str:
        from shmpar.report.views import render

        return render(self)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from shmpar.report.views import render_html

        return render_html(self)
