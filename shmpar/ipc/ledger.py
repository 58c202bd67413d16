"""The ledger: what is known of every chunk of a run, in memory that all its workers share.

Imports numpy alone.  One piece of memory holds, for one run:

========  =====================================  ===================================
bytes     what                                   who writes it
========  =====================================  ===================================
64 each   the slots, one a worker                the slot's worker, and nobody else
10 each   the time of each chunk                 the holder of the chunk's ticket
1 each    the status of each chunk               the holder of the chunk's ticket
the rest  scratch: outputs too small to wait     the holder of the chunk's ticket
========  =====================================  ===================================

A slot is eight 64-bit numbers: generation, first, last, cursor, since, said, joined, waited.
``first <= ticket < last`` are the tickets that the worker holds; ``cursor`` is the one that it
computes; ``since`` is when it began with its claim, or, if the run is timed, with the chunk under
the cursor (monotonic nanoseconds); ``said`` is a digest of what it takes the outputs in the
scratch for, 0 for nothing; ``joined`` is when it was given the plan (likewise, and 0 for a worker
without a claim); ``waited`` is how long it has waited for outputs (nanoseconds).

The time of a chunk is how long it took (float32, seconds; 0 while that is not known), when the
claim that it was in began (uint32, microseconds after the run's begin, modulo 2**32), and who made
that claim (uint16: the worker's number, and the number of workers as often as the microseconds
went round). Chunks of one claim follow each other in the order of the tickets. Times are for the
report alone: nothing is decided by them.

Guarantees
----------
- A worker holds tickets exactly while ``cursor < last``. It makes its slot empty before it
  fills it anew, and sets ``last`` after the other numbers, so a worker that was killed between
  any two of its writes leaves either its old claim (finished), nothing, or its whole new claim.
- A chunk's output is written before its cursor moves on and before its status says done; its
  status says failed before anybody is told, so that what a worker that dies leaves is right. The
  parent decides from a slot or a status only after a message of that worker or after having
  reaped it; both order memory.  In between it reads them for display alone.
- A duration is written after the chunk's status or before it: who reads while the run goes on may
  find a chunk done of which the time is not known yet.
- The parent writes here while no worker has the run, and for tickets whose holder it has reaped.

Why scratch: a small run would spend more time on waiting for its outputs to be allocated than on
anything else. Where they fit, each worker puts them where all workers must, since all results
agree, and the parent copies them once.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np

__all__ = ["DONE", "FAILED", "PENDING", "SLOT_BYTES", "Held", "Ledger"]

PENDING, DONE, FAILED = 0, 1, 2
SLOT_BYTES = 64
GENERATION, FIRST, LAST, CURSOR, SINCE, FINGERPRINT, JOINED, WAITED = range(8)
_NUMBERS = SLOT_BYTES // 8
_TIME = np.dtype([("seconds", "<f4"), ("begin", "<u4"), ("claimant", "<u2")])
_TIME_BYTES = _TIME.itemsize
_pack_time = struct.Struct("<fIH").pack_into
_WRAP = 1 << 32  # microseconds
_MOST = (1 << 16) - 1


def _aligned(size: int) -> int:
    return -(-size // SLOT_BYTES) * SLOT_BYTES


class Held(NamedTuple):
    """What a worker held when it was last seen.

    Attributes
    ----------
    generation : int
        The generation that the tickets belong to.
    first, cursor, last : int
        Tickets ``first <= t < cursor`` are finished, ``cursor`` was being computed, the others
        up to `last` (excluded) were not begun.
    since : int
        When it began with its claim, or in a timed run with `cursor`, in nanoseconds of the
        monotonic clock; 0 for a moment, before it has begun.
    """

    generation: int
    first: int
    cursor: int
    last: int
    since: int


class Times(NamedTuple):
    """The times of all chunks: arrays in the ledger's memory.

    Attributes
    ----------
    seconds : ndarray of float32
        How long each took; 0 while it is not known.
    begin : ndarray of uint32
        When its claim began, in microseconds, modulo 2**32.
    claimant : ndarray of uint16
        Who made that claim, and how often the microseconds went round.
    """

    seconds: np.ndarray[Any, Any]
    begin: np.ndarray[Any, Any]
    claimant: np.ndarray[Any, Any]


class Ledger:
    """Slots and statuses of one run over a buffer.

    Parameters
    ----------
    buffer : writable buffer
        At least :meth:`nbytes` long, zeroed for a new run.
    workers, chunks : int
        How many of each.

    Examples
    --------
    >>> ledger = Ledger(bytearray(Ledger.nbytes(workers=2, chunks=5)), workers=2, chunks=5)
    >>> ledger.status[3] = DONE
    >>> ledger.done, ledger.pending()
    (1, [0, 1, 2, 4])
    """

    __slots__ = (
        "_carved",
        "_fields",
        "_scratch",
        "_used",
        "chunks",
        "slots",
        "status",
        "workers",
    )

    def __init__(self, buffer: Any, *, workers: int, chunks: int) -> None:
        whole = memoryview(buffer).cast("B")
        head = workers * SLOT_BYTES
        self.workers = workers
        self.chunks = chunks
        self.slots: memoryview = whole[:head].cast("q")
        end = head + _TIME_BYTES * chunks
        used = end + chunks
        self.status = np.frombuffer(whole, np.uint8, chunks, end)
        self._fields: Times | None = None
        self._carved: tuple[Any, list[np.ndarray[Any, Any]]] = None, []
        self._used = whole[:used]
        self._scratch = whole[_aligned(used) :]

    @staticmethod
    def nbytes(*, workers: int, chunks: int) -> int:
        """Bytes that the ledger of such a run takes."""
        return workers * SLOT_BYTES + (_TIME_BYTES + 1) * chunks

    def slot(self, worker: int) -> memoryview:
        """The eight numbers of one worker's slot."""
        return self.slots[worker * _NUMBERS : (worker + 1) * _NUMBERS]

    def held(self, worker: int) -> Held | None:
        """What the worker holds; None if nothing."""
        slot = self.slot(worker)
        held = Held(slot[GENERATION], slot[FIRST], slot[CURSOR], slot[LAST], slot[SINCE])
        return held if held.cursor < held.last else None

    def reset_slot(self, worker: int) -> None:
        """Make the slot of a worker that is gone ready for its successor."""
        slot = self.slot(worker)
        slot[LAST] = slot[FINGERPRINT] = 0

    def clear(self) -> None:
        """Make it a new run's."""
        self._used[:] = bytes(len(self._used))

    def copy(self) -> bytes:
        """What it says now, but for the scratch: the buffer of a ledger that is not written."""
        return bytes(self._used)

    @property
    def times(self) -> Times:
        """The times of the chunks."""
        if self._fields is None:  # many a small run never looks
            times = np.frombuffer(self._used, _TIME, self.chunks, self.workers * SLOT_BYTES)
            self._fields = Times(times["seconds"], times["begin"], times["claimant"])
        return self._fields

    def note_chunk(self, chunk: int, worker: int, begin: float, seconds: float) -> None:
        """Record the time of a chunk that was claimed alone: when, after the run's begin."""
        rounds, micro = divmod(int(begin * 1e6), _WRAP)
        offset = self.workers * SLOT_BYTES + _TIME_BYTES * chunk
        claimant = worker if not rounds else self._claimant(worker, rounds)
        _pack_time(self._used, offset, seconds, micro, claimant)

    def note_claim(self, chunks: Any, worker: int, begin: float) -> None:
        """Record who has claimed these chunks, and when, in seconds after the run's begin."""
        rounds, micro = divmod(int(begin * 1e6), _WRAP)
        times = self.times
        times.begin[chunks] = micro
        times.claimant[chunks] = self._claimant(worker, rounds)

    def _claimant(self, worker: int, rounds: int) -> int:
        return min(worker + self.workers * rounds, _MOST)

    def claims(self, chunks: Any) -> tuple[Any, Any]:
        """Who has claimed these chunks, and when: arrays of numbers, and of seconds."""
        rounds, workers = np.divmod(self.times.claimant[chunks], self.workers)
        return workers, (rounds * float(_WRAP) + self.times.begin[chunks]) * 1e-6

    @property
    def done(self) -> int:
        """Chunks that are done; costs a pass over `chunks` bytes."""
        return self.status.tobytes().count(DONE)

    @property
    def settled(self) -> int:
        """Chunks that are done or failed; costs a pass over `chunks` bytes."""
        return self.chunks - self.status.tobytes().count(PENDING)

    def pending(self) -> list[int]:
        """Numbers of the chunks that are neither done nor failed, in order."""
        if self.status.tobytes().find(PENDING) < 0:  # most often, and ten times as fast
            return []
        found: list[int] = np.flatnonzero(self.status == PENDING).tolist()
        return found

    def mark_done(self, chunks: Sequence[int]) -> None:
        """Record as done what a worker that is gone had finished, unless it had failed."""
        finished = np.asarray(chunks, np.intp)
        self.status[finished[self.status[finished] == PENDING]] = DONE

    def carve(
        self, outputs: Sequence[tuple[tuple[int, ...], np.dtype[Any]]]
    ) -> list[np.ndarray[Any, Any]] | None:
        """Arrays of these shapes and dtypes in the scratch; None if they do not fit.

        They are the same list again until others are asked for.
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
        """Assert what must hold whenever no worker writes."""
        assert self.status.max(initial=0) <= FAILED, "a status is one of three"
        for worker in range(self.workers):
            held = self.held(worker)
            if held is not None:
                assert held.first <= held.cursor, "the cursor lies in its claim"
