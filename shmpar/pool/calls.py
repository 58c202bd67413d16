"""Single calls: the pool as a :class:`concurrent.futures.Executor`.

Imports plan, tasks and worker.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import Any, ParamSpec, TypeVar

from shmpar.grid.axis import whole_number
from shmpar.plan import Function
from shmpar.tasks import Task

__all__ = ["Calls"]

P = ParamSpec("P")
R = TypeVar("R")


class Calls(Executor):
    """Gives a pool ``submit`` and ``map``."""

    def _submit(self, call: Function) -> Task:
        raise NotImplementedError

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Have a function called once in a worker, with these arguments.

        Parameters
        ----------
        fn : callable
            It travels with its arguments, and so does what it returns: arrays of more than 64 KiB
            through shared memory, everything else pickled. To the function they are its own, as
            if pickled.
        *args, **kwargs
            Its arguments.

        Returns
        -------
        Future
            A :class:`concurrent.futures.Future`.

        Raises
        ------
        RuntimeError
            If the pool is closed.
        PlanError
            If the function or an argument does not pickle.

        Notes
        -----
        A call whose worker dies is made again, `retries` times; then its future raises
        :class:`shmpar.WorkerDied`. `task_timeout` is for the chunks of verbs.

        Cost: a large array is copied once on the way there, unless it lies in shared memory
        already, and once on the way back.

        Examples
        --------
        >>> import shmpar
        >>> with shmpar.Pool(2) as pool:
        ...     pool.submit(pow, 2, 5).result()
        32
        """
        return self._submit(Function(fn, kwargs, args))

    def map(
        self,
        fn: Callable[..., R],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
    ) -> Iterator[R]:
        """Call a function on the items of iterables, in workers; give the results in order.

        Parameters
        ----------
        fn : callable
            As for :meth:`submit`.
        *iterables : iterable
            Read at once; the shortest decides.
        timeout : float, optional
            Seconds from now until which each result must be there.
        chunksize : int
            Items that one worker is sent at a time.

        Returns
        -------
        iterator
            Of the results. Closing it, or an error, cancels the calls that no worker has begun.

        Raises
        ------
        ValueError
            If `chunksize` is less than 1.
        TimeoutError
            From the iterator, if a result is not there in time.

        Notes
        -----
        To map over the rows of an array, :meth:`parallel_map` is quicker by far: it sends nothing
        an item.

        Examples
        --------
        >>> import shmpar
        >>> with shmpar.Pool(2) as pool:
        ...     list(pool.map(pow, [2, 3], [5, 2]))
        [32, 9]
        """
        size = whole_number(chunksize, f"chunksize={chunksize!r}")
        if size < 1:
            raise ValueError(f"chunksize is a number of items, 1 or more, not {chunksize!r}")
        items = zip(*iterables, strict=False)
        batches = iter(lambda: tuple(itertools.islice(items, size)), ())
        found = super().map(functools.partial(_each, fn), batches, timeout=timeout)
        return _flat(found)


def _each(fn: Callable[..., R], items: Iterable[tuple[Any, ...]]) -> list[R]:
    return [fn(*item) for item in items]


def _flat(batches: Iterator[list[R]]) -> Iterator[R]:
    """The results of all batches; closing it closes `batches`, which cancels what is left."""
    try:
        for batch in batches:
            # Each is dropped when it has been given out.
            batch.reverse()
            while batch:
                yield batch.pop()
    finally:
        close = getattr(batches, "close", None)
        if close is not None:
            close()
