"""The report of one run.

Imports the neighbours in this package, account, ledger and plan.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from shmpar.account import Attempt
from shmpar.ledger import DONE, Ledger
from shmpar.plan import Plan
from shmpar.report.slowest import SlowChunk, slowest
from shmpar.report.timings import Timings, WorkerTime, durations_by_chunk
from shmpar.report.traffic import bytes_read

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Report"]

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
        from shmpar.report.ceiling import measured

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
        from shmpar.report.advice import advice

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
        from shmpar.report.drawing import draw

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
