"""Calls over items: call the function on one item after the other, also for a slice of time.

Guarantees
----------
- The results of the items before a failure are kept: the exception of an item, and a result that
  does not pickle, come after them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from time import perf_counter
from typing import Any, Final

from shmpar.errors import ShmparError
from shmpar.ipc.protocol import Slice
from shmpar.worker.environment import exit_if_forked, inside_worker

STOP = 1 << 20
"""Tickets that the parent takes from a worker's counter of calls to end a call over items."""

_QUICK_SECONDS = 1e-3
_LOOK_SECONDS = 1e-4  # between two looks if the call is to end
_MOST = 8  # Why not more: quick items may be followed by slow ones.
_TINY_SECONDS = 2e-5
_MOST_TINY = 32  # Why more: a look at the clock takes as long as several items of this kind.


def _never() -> bool:
    return False


is_stopped: Callable[[], bool] = _never
"""Tells that the call in progress is to end; a worker process puts its own function here."""


class _Items:
    """The items of a call; a child that the function forks has none after its own."""

    def __init__(self, items: Sequence[Any]) -> None:
        self._items = list(items)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._items)

    def abandon(self) -> None:
        self._items.clear()


def call_each(
    fn: Callable[..., Any],
    items: Sequence[Any],
    seconds: float,
    first: int,
    last: int,
    *,
    star: bool,
) -> list[Any] | Slice:
    """Call a function on the items ``first <= i < last``, until the time is over.

    Parameters
    ----------
    star : bool
        An item is a tuple of arguments.

    Returns
    -------
    list or Slice
        The results; a slice if the function has raised.

    Examples
    --------
    >>> call_each(abs, [3, -2, -1, "0"], 1.0, 1, 3, star=False)
    [2, 1]
    >>> call_each(pow, [(2, 3), (0, -1)], 1.0, 0, 2, star=True)
    Slice(values=[8], error=ZeroDivisionError('0.0 cannot be raised to a negative power'))
    """
    values, count, size, due, now = list[Any](), last - first, 1, 0, perf_counter()
    until, look, spent = now + seconds, now, 0.0
    call: Callable[..., Iterator[Any]] = itertools.starmap if star else map
    own = _Items(items[first:last])
    results = call(fn, own)
    with inside_worker(own):
        try:
            while due < count and now < until:
                # Why not after tiny items: the look is a system call, which takes as long as many.
                if spent >= _TINY_SECONDS or now >= look:
                    if is_stopped():
                        break
                    look = now + _LOOK_SECONDS
                # Why not item by item: looking at the clock takes as long as a quick item.
                due = min(due + size, count)
                # Invariant: if an item raises, the list has the results of the items before it.
                values.extend(itertools.islice(results, size))
                exit_if_forked()
                if len(values) < due:  # Why: an iterator takes this exception for its end.
                    raise RuntimeError("the function raised StopIteration")  # noqa: TRY301
                before, now = now, perf_counter()
                spent = now - before
                most = _MOST_TINY if spent < _TINY_SECONDS else _MOST
                size = min(2 * size, most) if spent < _QUICK_SECONDS else 1
        except BaseException as error:  # noqa: BLE001 - it is the item's outcome
            exit_if_forked(error)
            return Slice(values, error)
    return values


def picklable(values: Sequence[Any], pack: Callable[[Any], object]) -> Slice:
    """Return the results up to the first one that `pack` refuses, with its error."""
    number, error = 0, None
    try:
        for number, value in enumerate(values):  # noqa: B007 - the error needs it
            pack(value)
    except (ShmparError, OSError) as refused:  # of the object itself, or of a lack of memory
        error = refused
    return Slice(list(values[:number]), error)


def each(func: Callable[..., Any], items: Iterable[Any]) -> list[Any]:
    """Call a function on each item of a batch."""
    return each_star(func, ((item,) for item in items))


def each_star(func: Callable[..., Any], items: Iterable[Iterable[Any]]) -> list[Any]:
    """Call a function on the arguments in each item of a batch."""
    values = []
    for item in items:
        values.append(func(*item))
        exit_if_forked()  # Why here: else the child would call the function on further items.
    return values


BATCHES: Final = (each, each_star)
"""Their first argument is the function of the user; methods of `multiprocessing.Pool` use them."""
