"""Cut the items of `Pool.map` into calls, and yield their results in order.

The size of a piece is a compromise. A call costs as much as many quick items, so pieces are large:
a worker's share. Slow items must be balanced, cancelled and yielded one by one, so a
call over a piece ends after a slice of time, and the items that are left become calls of that
length.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any

from shmpar.ipc.protocol import Slice
from shmpar.pickling.plain import pack_plain
from shmpar.runtime.calls import Call
from shmpar.tracebacks import delivering, hiding

SLICE_SECONDS = 5e-3
"""Time after which a call over items ends, unless its chunksize was given."""
_HOST_SLICE_SECONDS = 0.1  # Why longer: each slice goes to a host and back.

_SHARE = 1  # pieces for each worker
_PAUSE_SECONDS = 1e-3  # between two pauses for the pool thread
_FEW = 16  # items for each worker that are sent one by one
_FIRST = 16  # items of the first piece, whose pickle tells how large an item is
_MOST = 1024  # items of a piece where their number is not known
_MOST_BYTES = 256 * 1024  # of a piece: it is sent again with each slice
_MOST_OF_RANGE = 64 * 1024  # Why a bound: slow items become calls of their own.


class Pieces(Iterator[Sequence[Any]]):
    """Cuts items into pieces.

    Parameters
    ----------
    items : iterable
        The items.
    total : int or None
        The largest number of items that there may be, if it is known.
    workers : int
        Number of workers.
    """

    def __init__(self, items: Iterable[Any], total: int | None, workers: int) -> None:
        self._items = iter(items)
        self._range = items if type(items) is range else None
        self._most = _MOST if total is None else math.ceil(total / (_SHARE * workers))
        if total is not None and total <= _FEW * workers:
            # Why: each result is there as soon as it can be, and few calls cost little.
            self._most = 1
        elif self._range is not None:
            self._most = min(self._most, _MOST_OF_RANGE)
        self._grows = total is None
        self._size = 1 if self._grows else max(1, min(_FIRST, self._most))
        self._weighed = False
        self._idle, self._paused = workers, time.perf_counter()

    def _pause(self) -> None:
        """Let the pool thread send the pieces that were cut, while there are idle workers.

        Later, pause once in a while: a pause takes as long as the pickle of a piece.
        """
        if self._idle == 0 or time.perf_counter() - self._paused > _PAUSE_SECONDS:
            time.sleep(0)
            self._paused = time.perf_counter()
        self._idle -= 1

    def __next__(self) -> Sequence[Any]:
        if self._most > 1:
            self._pause()
        if self._range is not None:
            # Why: a range of any length is a few bytes, which take no time to make or to send.
            ahead, self._range = self._range[: self._most], self._range[self._most :]
            if not ahead:
                raise StopIteration
            return ahead
        if not self._grows:
            piece = list(itertools.islice(self._items, self._size))
            if not piece:
                raise StopIteration
            if not self._weighed and self._most > 1 and (body := pack_plain(piece)):
                self._weigh(len(piece), len(body))
                # Why max: of large items a piece has fewer than this first one.
                piece += itertools.islice(self._items, max(0, self._size - len(piece)))
            return piece
        piece, until = [], time.perf_counter() + SLICE_SECONDS
        for item in itertools.islice(self._items, self._size):
            piece.append(item)
            # Why: items that take long to make are computed while the next ones are made.
            if time.perf_counter() >= until:
                break
        if not piece:
            raise StopIteration
        return piece

    def weigh(self, count: int, prepared: Any) -> None:
        """Choose the size of the next piece, given a prepared call over so many items."""
        # Why: other engines pickle nothing.
        self._weigh(count, getattr(prepared, "nbytes", 0))

    def _weigh(self, count: int, nbytes: float) -> None:
        self._weighed = True
        limit = min(self._most, max(1, int(_MOST_BYTES * count // max(nbytes, 1))))
        self._size = max(1, min(limit, 2 * self._size) if self._grows else limit)


def shared_by(engine: Any, workers: int, *, remote: bool) -> tuple[int, float]:
    """Return the number of calls at a time that share items, and the seconds of a slice.

    Parameters
    ----------
    engine : ClusterEngine, other Engine or None
        The engine, if it is made already.
    workers : int
        Workers of this machine, or of each host.
    remote : bool
        The workers are on hosts.
    """
    if not remote:
        return workers, SLICE_SECONDS
    hosted = 0 if engine is None else engine.places()
    return hosted or workers, _HOST_SLICE_SECONDS


def length_of(iterables: tuple[Iterable[Any], ...]) -> int | None:
    """Return the largest number of items that there may be; None if it is not known."""
    found = []
    for one in iterables:
        with contextlib.suppress(Exception):  # Why: the user's object may raise anything.
            found.append(len(one))  # type: ignore[arg-type]
    return min(found, default=None)


class Results(Iterator[Any]):
    """The results of calls over items, in order.

    Parameters
    ----------
    calls : deque of Call
        The calls that were submitted.
    more : iterator of Call
        Submits a further call at each step.
    timeout : float or None
        Seconds from now within which each result must be there.
    """

    def __init__(self, calls: deque[Call], more: Iterator[Call], timeout: float | None) -> None:
        self._calls = calls
        end = None if timeout is None else time.monotonic() + timeout
        self._sources: list[list[Any]] = []  # of the results of the current slice, one for each
        self._slices = _take_slices(calls, more, end, self._sources)
        self._results = itertools.chain.from_iterable(self._slices)

    def __iter__(self) -> Iterator[Any]:  # noqa: PYI034 - the chain alone is quicker
        return self._results

    @delivering
    def __next__(self) -> Any:
        return next(self._results)

    def close(self) -> None:
        """Cancel the calls that no worker has begun; yield no further result."""
        self._slices.close()
        self._sources.clear()
        _cancel(self._calls)  # Why here too: a generator that has not begun does nothing.


def _take_slices(
    calls: deque[Call], more: Iterator[Call], end: float | None, sources: list[list[Any]]
) -> Generator[Iterator[Any]]:
    """Yield the results of each call, which are taken from `sources`."""
    left = 0  # calls at the begin of the deque that stand for items of an earlier one
    try:
        while calls:
            if left == 0:
                calls.extend(itertools.islice(more, 1))
            with hiding():
                found = calls[0].result(None if end is None else end - time.monotonic())
            done = calls.popleft()
            single = not done.more
            calls.extendleft(reversed(done.rest))
            left = max(left - 1, 0) + len(done.rest)
            del done
            values, error = [found] if single else found, None
            if type(found) is Slice:
                values, error = found
            del found
            values.reverse()
            # Why popped: the slice does not keep a result that was given out.
            sources[:] = [values] * len(values)
            del values
            yield map(list.pop, sources)
            if error is not None:
                try:
                    with hiding():
                        raise error
                finally:
                    del error  # Why: its traceback has this frame, which would hold it.
    finally:
        _cancel(calls)


def _cancel(calls: deque[Call]) -> None:
    # Why from the end: a call that waits at a worker is cancelled last, when no other takes its
    # place.
    while calls:
        call = calls.pop()
        call.unwanted = True
        if call.cancel():
            continue
        if not call.done() and call.stop is not None:
            call.stop(call)  # Why: no further item of it may begin.
        calls.extend(call.rest)  # of a call that is over, and whose results nobody has taken
