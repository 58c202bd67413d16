"""What the runs of a processes engine leave to later ones: ledgers and counters.

Imports ledger, segment and tickets.

Guarantees
----------
- A counter is used again only when no worker can look at it any more for the run before.
- A ledger may be used again earlier: a worker that comes late finds no tickets, and writes nothing
  but its own slot.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from shmpar.ledger import Ledger
from shmpar.segment import Segment, create
from shmpar.tickets import LockTickets, OffsetTickets, new_tickets

__all__ = ["Counters", "Ledgers"]

Counter = OffsetTickets | LockTickets

_SCRATCH_BYTES = 16 * 1024  # behind each ledger, for outputs that are not larger
_LEDGERS = 2  # kept for later runs
_LARGE_BYTES = 1 << 20  # of a ledger that is not kept: the run's account has a copy already
_COUNTERS = 4  # kept for later runs; the workers keep their descriptors too


class Ledgers:
    """Ledgers in shared memory, for a number of workers."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._free: list[Ledger] = []
        self._segments: dict[Ledger, Segment] = {}

    def take(self, chunks: int) -> Ledger:
        """A zeroed ledger."""
        for position, free in enumerate(self._free):
            if free.chunks == chunks:
                free.clear()
                return self._free.pop(position)
        size = Ledger.nbytes(workers=self._workers, chunks=chunks)
        segment = create(size + _SCRATCH_BYTES, what="ledger")
        ledger = Ledger(segment.mapping, workers=self._workers, chunks=chunks)
        self._segments[ledger] = segment
        return ledger

    def segment(self, ledger: Ledger) -> Segment:
        """Where it lies."""
        return self._segments[ledger]

    def leave(self, ledger: Ledger) -> None:
        """Keep the ledger of a run that is over, unless it is large."""
        if self._segments[ledger].size > _LARGE_BYTES:
            del self._segments[ledger]
            return
        self._free.append(ledger)
        for old in self._free[:-_LEDGERS]:
            del self._segments[old]
        del self._free[:-_LEDGERS]

    def clear(self) -> None:
        """Drop all."""
        self._free.clear()
        self._segments.clear()


class Counters:
    """Counters, of which a few are numbered and kept, here and in the workers."""

    def __init__(self) -> None:
        self._free: list[Counter] = []
        self._kept: dict[Counter, int] = {}
        self._late: list[tuple[int, Sequence[Counter]]] = []

    def take(self) -> Counter:
        """A counter at 0."""
        if self._free:
            return self._free.pop()
        made = new_tickets()
        if len(self._kept) < _COUNTERS:
            self._kept[made] = len(self._kept)
        return made

    def number(self, counter: Counter) -> int:
        """The number under which workers keep it; -1: they do not."""
        return self._kept.get(counter, -1)

    def leave(self, run: int, counters: Sequence[Counter]) -> None:
        """Take the counters of a run that is over; :meth:`settle` says when they are free."""
        self._late.append((run, counters))

    def settle(self, outstanding: Callable[[int], bool]) -> None:
        """Free the counters of the runs of which no worker has anything any more."""
        late, self._late = self._late, []
        for run, counters in late:
            if outstanding(run):
                self._late.append((run, counters))
            else:
                self._release(counters)

    def _release(self, counters: Sequence[Counter]) -> None:
        for counter in counters:
            if counter in self._kept:
                counter.rewind()
                self._free.append(counter)
            else:
                counter.close()

    def close(self) -> None:
        """Close all; no worker is left."""
        for _, counters in self._late:
            for counter in counters:
                counter.close()
        for counter in self._kept:
            counter.close()
