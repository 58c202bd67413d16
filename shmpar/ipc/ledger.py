"""The ledger: the state of every chunk of a run, in memory that all workers of the run share.

One piece of memory holds, for one run:

========  ================================================  ===================================
bytes     content                                           writer
========  ================================================  ===================================
64 each   one slot per worker                               the worker of the slot alone
10 each   the time of each chunk                            the holder of the chunk's ticket
1 each    the status of each chunk                          the holder of the chunk's ticket
the rest  scratch: outputs too small to be allocated apart  the holder of the chunk's ticket
========  ================================================  ===================================

A slot is eight 64-bit numbers:

``generation``
    The generation of the run that the tickets belong to.
``first``, ``last``
    The worker holds the tickets ``first <= ticket < last``.
``cursor``
    The ticket of the chunk that the worker computes.
``since``
    Time in monotonic nanoseconds: begin of the claim, or of the chunk under the cursor if the run
    is timed.
``fingerprint``
    Checksum of the announcement of the outputs that lie in the scratch; 0 without such outputs.
``joined``
    Time in monotonic nanoseconds when the worker received the plan; 0 before its first claim.
``waited``
    Nanoseconds that the worker has waited for outputs.

The time of a chunk has three fields: its duration (float32, seconds; 0 if it is not known), the
begin of its claim (uint32, microseconds after the begin of the run, modulo 2**32), and its claimant
(uint16: the number of the worker, plus the number of workers for each wrap of the microseconds).
Chunks of one claim follow each other in the order of the tickets. Times are for the report alone;
no decision depends on them.

Guarantees
----------
- A worker holds tickets exactly while ``cursor < last``. It empties its slot before it writes a new
  claim, and it writes ``last`` after the other numbers. So a worker that is killed between any two
  writes leaves its old claim (finished), no claim, or its whole new claim.
- A worker writes the output of a chunk before it moves the cursor on and before it sets the status
  to done. It sets the status to failed before it reports the failure. So the ledger of a dead
  worker is right.
- The parent decides by a slot or a status only after a message of that worker or after it has
  waited for the worker's exit: both order memory. At other times it reads them for display alone.
- There is one exception. If a slot shows tickets after the counters of another run were stopped,
  its worker has none of that run, and gets none. Claim and stop take the same lock of the kernel,
  which orders memory.
- A duration may be written before or after the status of its chunk, so a reader during the run may
  find a chunk done without a duration.
- The parent writes only while no worker has the run, and for tickets of workers that have exited.

The scratch exists because a small run would spend most of its time waiting for the allocation of
its outputs. If the outputs fit, each worker writes them to the same place, since all results
agree, and the parent copies them once.
"""

import struct
from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]

PENDING, DONE, FAILED = 0, 1, 2
SLOT_BYTES = 64  # Why: a slot is a cache line, so that workers do not slow each other down
GENERATION, FIRST, LAST, CURSOR, SINCE, FINGERPRINT, JOINED, WAITED = range(8)
_SLOT_NUMBERS = SLOT_BYTES // 8
_TIME = np.dtype([("seconds", "<f4"), ("begin", "<u4"), ("claimant", "<u2")])
_TIME_BYTES = _TIME.itemsize
_pack_time = struct.Struct("<fIH").pack_into  # the same layout, faster than a record of NumPy
_WRAP = 1 << 32  # microseconds
_MAX_CLAIMANT = (1 << 16) - 1


def _aligned(size: int) -> int:
    return -(-size // SLOT_BYTES) * SLOT_BYTES


class Held(NamedTuple):
    """The tickets that a worker holds.

    Attributes
    ----------
    generation : int
        The generation that the tickets belong to.
    first, cursor, last : int
        Tickets ``first <= t < cursor`` are finished, `cursor` is being computed, and the others
        before `last` were not begun.
    since : int
        Begin of the claim, or of the chunk at `cursor` in a timed run, in monotonic nanoseconds.
    """

    generation: int
    first: int
    cursor: int
    last: int
    since: int


class LostClaim(NamedTuple):
    """A claim that ended with its worker, or one that is still in progress.

    Attributes
    ----------
    worker : int
        Number of the worker that held the claim.
    chunk : int or None
        The chunk that the worker died in; None if no chunk is to blame.
    begin, end : float
        Seconds after the start of the run. `begin` is the start of the claim, or of `chunk` in a
        run with ``task_timeout``; `end` is the moment when the death was noticed.
    died : bool
        False for a claim in progress.
    """

    worker: int
    chunk: int | None
    begin: float
    end: float
    died: bool = True


class Times(NamedTuple):
    """The times of all chunks, as arrays in the memory of the ledger.

    Attributes
    ----------
    seconds : ndarray of float32
        Duration of each chunk; 0 if it is not known.
    begin : ndarray of uint32
        Begin of the claim of each chunk, in microseconds modulo 2**32.
    claimant : ndarray of uint16
        Number of the claiming worker, plus the number of workers for each wrap of `begin`.
    """

    seconds: Array
    begin: Array
    claimant: Array


class Ledger:
    """Slots, times, statuses and scratch of one run over a buffer.

    Parameters
    ----------
    buffer : writable buffer
        At least :meth:`nbytes` long, zeroed for a new run.
    workers, chunks : int
        Numbers of workers and of chunks.

    Attributes
    ----------
    status : ndarray of uint8
        PENDING, DONE or FAILED for each chunk.

    Examples
    --------
    >>> ledger = Ledger(bytearray(Ledger.nbytes(workers=2, chunks=5)), workers=2, chunks=5)
    >>> ledger.status[3] = DONE
    >>> ledger.done, ledger.pending()
    (1, [0, 1, 2, 4])
    """

    def __init__(self, buffer: Any, *, workers: int, chunks: int) -> None:
        memory = memoryview(buffer).cast("B")
        used = self.nbytes(workers=workers, chunks=chunks)
        self.workers, self.chunks = workers, chunks
        self.status = np.frombuffer(memory, np.uint8, chunks, used - chunks)
        self._slots = memory[: workers * SLOT_BYTES].cast("q")
        self._used = memory[:used]
        self._scratch = memory[_aligned(used) :]
        self._times: Times | None = None
        self._carved: tuple[Any, list[Array]] = None, []

    @staticmethod
    def nbytes(*, workers: int, chunks: int) -> int:
        """Return the bytes of a ledger without scratch."""
        return workers * SLOT_BYTES + (_TIME_BYTES + 1) * chunks

    def slot(self, worker: int) -> memoryview:
        """Return the eight numbers of one worker's slot."""
        return self._slots[worker * _SLOT_NUMBERS : (worker + 1) * _SLOT_NUMBERS]

    def held(self, worker: int) -> Held | None:
        """Return the tickets that a worker holds; None if it holds none."""
        slot = self.slot(worker)
        held = Held(slot[GENERATION], slot[FIRST], slot[CURSOR], slot[LAST], slot[SINCE])
        return held if held.cursor < held.last else None

    def reset_slot(self, worker: int) -> None:
        """Make the slot of a worker that has exited ready for its successor."""
        slot = self.slot(worker)
        slot[LAST] = slot[FINGERPRINT] = 0

    def clear(self) -> None:
        """Reset everything but the scratch for a new run."""
        self._used[:] = bytes(len(self._used))

    def copy(self) -> bytes:
        """Return a copy of everything but the scratch."""
        return bytes(self._used)

    @property
    def times(self) -> Times:
        """The times of the chunks."""
        if self._times is None:  # Why: many small runs never need them
            times = np.frombuffer(self._used, _TIME, self.chunks, self.workers * SLOT_BYTES)
            self._times = Times(times["seconds"], times["begin"], times["claimant"])
        return self._times

    def note_chunk(self, chunk: int, worker: int, begin: float, seconds: float) -> None:
        """Record the times of a chunk that was claimed alone, `begin` seconds into the run."""
        offset = self.workers * SLOT_BYTES + _TIME_BYTES * chunk
        _pack_time(self._used, offset, seconds, *self._stamp(worker, begin))

    def note_claim(self, chunks: Any, worker: int, begin: float) -> None:
        """Record the claimant of these chunks and the begin of the claim."""
        self.times.begin[chunks], self.times.claimant[chunks] = self._stamp(worker, begin)

    def _stamp(self, worker: int, begin: float) -> tuple[int, int]:
        """Return the fields `begin` and `claimant` of a time."""
        wraps, micro = divmod(int(begin * 1e6), _WRAP)
        if wraps:
            worker = min(worker + self.workers * wraps, _MAX_CLAIMANT)
        return micro, worker

    def claims(self, chunks: Any) -> tuple[Any, Any]:
        """Return the workers that claimed these chunks, and the begins of the claims in seconds."""
        wraps, workers = np.divmod(self.times.claimant[chunks], self.workers)
        return workers, (wraps * float(_WRAP) + self.times.begin[chunks]) * 1e-6

    @property
    def done(self) -> int:
        """Number of chunks that are done; costs a pass over `chunks` bytes."""
        return self.status.tobytes().count(DONE)

    @property
    def settled(self) -> int:
        """Number of chunks that are done or failed; costs a pass over `chunks` bytes."""
        return self.chunks - self.status.tobytes().count(PENDING)

    def pending(self) -> list[int]:
        """Return the numbers of the chunks that are neither done nor failed, in order."""
        if PENDING not in self.status.tobytes():  # Why: the common case, several times as fast
            return []
        found: list[int] = np.flatnonzero(self.status == PENDING).tolist()
        return found

    def mark_done(self, chunks: Sequence[int]) -> None:
        """Record chunks as done that a dead worker had finished, except those that failed."""
        finished = np.asarray(chunks, np.intp)
        self.status[finished[self.status[finished] == PENDING]] = DONE

    def carve(self, outputs: Sequence[tuple[tuple[int, ...], np.dtype[Any]]]) -> list[Array] | None:
        """Return arrays of these shapes and dtypes in the scratch; None if they do not fit.

        Equal outputs give the same list again.
        """
        if outputs != self._carved[0]:
            arrays, offset = [], 0
            for shape, dtype in outputs:
                size = prod(shape) * dtype.itemsize
                if offset + size > len(self._scratch):
                    return None
                arrays.append(np.ndarray(shape, dtype, self._scratch, offset))
                offset += _aligned(size)
            self._carved = outputs, arrays
        return self._carved[1]

    def check_invariants(self) -> None:
        """Assert the invariants that hold while no worker writes."""
        assert self.status.max(initial=0) <= FAILED, "a status is one of three"
        for worker in range(self.workers):
            held = self.held(worker)
            if held is not None:
                assert held.first <= held.cursor, "the cursor lies in its claim"
