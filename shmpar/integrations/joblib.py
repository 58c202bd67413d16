"""The backend of joblib, and with it of scikit-learn's ``n_jobs``.

::

    import joblib, shmpar

    with joblib.parallel_config(backend="shmpar", n_jobs=-1):
        search.fit(X, y)

``import shmpar`` registers it, before or after joblib is imported.

Guarantees
----------
- An array of more than 64 KiB among the arguments is put into shared memory once for all calls of a
  ``Parallel``, by its identity. Each call maps it copy on write, so it may write to its arguments,
  whatever their size.
- Workers are kept for the next ``Parallel``. After an error, a timeout or an interrupt, those that
  do not become idle are ended.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import inspect
import multiprocessing
import os
import pickle
import queue
import threading
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from joblib import Parallel
from joblib._parallel_backends import (
    AutoBatchingMixin,
    FallbackToBackend,
    ParallelBackendBase,
    SequentialBackend,
)

from shmpar.errors import PlanError
from shmpar.memory.copying import Copies, shared_once
from shmpar.memory.limits import available_cpus
from shmpar.plan import Function
from shmpar.pool import Pool
from shmpar.runtime.error_texts import call_name
from shmpar.runtime.futures import Latch
from shmpar.runtime.loop import AT_ONCE
from shmpar.worker.environment import in_worker

_GRACE_SECONDS = 0.1  # for calls in progress, when a Parallel is aborted
_CALLBACK_SECONDS = 5.0  # for callbacks of joblib's, which wait for its lock at most
_SHORT_SHARE = 0.1  # of joblib's least duration of a batch; shorter ones grow fourfold
# Options that joblib passes to each backend, in this version of joblib.
_OF_PARALLEL = frozenset({*inspect.signature(Parallel.__init__).parameters, "context"})


class _Kind(NamedTuple):
    """The options of a pool of the backend's own."""

    workers: int
    threads: int
    initializer: Callable[..., object] | None
    initargs: tuple[Any, ...]
    process: int

    def serves(self, other: _Kind) -> bool:
        """Return whether a pool of this kind can be used for one of another."""
        # Why identity: arguments such as arrays have no single answer to `==`.
        same = [*map(id, self.initargs)] == [*map(id, other.initargs)]
        return same and self._replace(initargs=()) == other._replace(initargs=())


class _Kept:
    """The pool that waits for the next ``Parallel``.

    Invariant: at most one pool waits, since its workers hold memory.
    """

    def __init__(self) -> None:
        # Lock: held for a few instructions; no pool is made or closed under it.
        self._lock = threading.Lock()
        self._waiting: tuple[_Kind, Pool] | None = None

    def swap(self, new: tuple[_Kind, Pool] | None = None) -> tuple[_Kind, Pool] | None:
        """Have another pool wait, or none; return the one that has waited."""
        with self._lock:
            before, self._waiting = self._waiting, new
        return before

    def take(self, kind: _Kind) -> Pool:
        """Return a pool for one ``Parallel``."""
        if (found := self.swap()) is not None:
            if found[0].serves(kind) and not found[1].closed:
                return found[1]
            _end(found[1])
        return Pool(
            kind.workers,
            threads_per_worker=kind.threads,
            retries=0,
            initializer=kind.initializer,
            initargs=kind.initargs,
        )

    def give_back(self, pool: Pool, kind: _Kind) -> None:
        """Keep a pool that is not used any more."""
        if (before := self.swap((kind, pool))) is not None:
            _end(before[1])


def _end(pool: Pool) -> None:
    """End a pool, and the calls in progress; do not wait for it."""
    # Why no wait: its callbacks may wait for a lock of joblib's that this thread holds.
    pool._close(AT_ONCE, wait=False)  # noqa: SLF001


def _name_of(batch: Callable[[], Any]) -> str:
    """Return the name of the first function of a batch, for errors."""
    return call_name(next(iter(getattr(batch, "items", ())), (batch,))[0])


_kept = _Kept()


def close() -> None:
    """End the workers that wait for the next ``Parallel``; the next one starts new ones.

    Examples
    --------
    >>> import joblib, shmpar
    >>> from shmpar.integrations.joblib import close
    >>> joblib.Parallel(n_jobs=2, backend="shmpar")(joblib.delayed(abs)(-i) for i in range(3))
    [0, 1, 2]
    >>> close()
    """
    if (found := _kept.swap()) is not None:
        found[1].shutdown()


class ShmparBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]  # no types
    """A backend of joblib that runs calls in the workers of a pool.

    Parameters
    ----------
    pool : Pool, optional
        The pool, which stays open. By default the backend makes a pool of `n_jobs` workers that
        stays for the next ``Parallel``; :func:`close` ends it.
    **more
        ``inner_max_num_threads`` and ``nesting_level``, as for every backend of joblib, and
        ``initializer`` and ``initargs`` of the workers that the backend makes, as for loky.

    Notes
    -----
    Without `n_jobs` all CPUs are used. Inside of a worker ``n_jobs`` is 1, and so it is, with a
    warning, below threads of another ``Parallel``, unless a pool is given. For a pool that is
    given its ``threads_per_worker`` decides, and ``inner_max_num_threads`` has no effect. Nor have
    ``max_nbytes``, ``mmap_mode`` and ``temp_folder`` of ``Parallel``: no array becomes a file.

    When a ``Parallel`` ends early, by an exception, its ``timeout`` or an interrupt, the calls that
    have not begun are cancelled. Calls in progress are ended with their workers, except in a pool
    that is given, where they go on.

    Cost: an array of more than 64 KiB is copied once for all calls of a ``Parallel``. A
    :class:`shmpar.SharedArray` is not copied: the calls share it.

    Examples
    --------
    >>> import joblib, shmpar
    >>> from shmpar.integrations.joblib import ShmparBackend
    >>> with shmpar.Pool(2) as pool, joblib.parallel_config(backend=ShmparBackend(pool=pool)):
    ...     joblib.Parallel()(joblib.delayed(pow)(i, 2) for i in range(4))
    [0, 1, 4, 9]
    """

    supports_retrieve_callback = True
    supports_inner_max_num_threads = True
    default_n_jobs = -1
    _smoothed_batch_duration: float  # of joblib's class

    def __init__(self, pool: Pool | None = None, **more: Any) -> None:
        if pool is not None and not isinstance(pool, Pool):
            raise TypeError(f"pool is a shmpar.Pool, not {type(pool).__name__}")
        super().__init__(**more)
        self._given = pool
        self._pool: Pool | None = None
        self._copies = Copies()
        # The calls whose callbacks have not returned; the latch tells that one has.
        self._flying: dict[concurrent.futures.Future[Any], Latch] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """In a worker there is nobody to share the work with."""
        return SequentialBackend, (self.nesting_level,)

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """Return the number of workers for this ``n_jobs``."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is None or in_worker():
            return 1
        given = self._given
        if given is None and (obstacle := self._obstacle()):
            if n_jobs != 1:
                text = f"shmpar-backed parallel loops cannot be {obstacle}, setting n_jobs=1"
                warnings.warn(text, stacklevel=3)
            return 1
        most = available_cpus() if given is None else given._places(wait=True)  # noqa: SLF001
        if n_jobs < 0:
            return max(most + 1 + n_jobs, 1)
        return n_jobs if given is None else min(n_jobs, most)

    def _obstacle(self) -> str:
        """Return the place in which the backend must not start workers; empty in any other."""
        # Why: joblib's pool ends such a process by a signal, and its workers would be left.
        if multiprocessing.current_process().daemon:
            return "called in a multiprocessing"
        # Why: each of the threads would start workers.
        nested = not (self.in_main_thread() or self.nesting_level in {0, None})
        return "nested below threads" * nested

    def configure(self, n_jobs: int = 1, parallel: Any = None, **options: Any) -> int:
        """Get workers for a ``Parallel``; return their number."""
        initializer, initargs = self._initializer({**self.backend_kwargs, **options})
        n_jobs = self.effective_n_jobs(n_jobs)
        if n_jobs == 1:
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        self.parallel = parallel
        if self._given is None:
            threads = self._threads_of(n_jobs)
            self._kind = _Kind(n_jobs, threads, initializer, initargs, os.getpid())
            self._pool = _kept.take(self._kind)
        else:
            self._pool = self._given
        return n_jobs

    def _initializer(
        self, options: dict[str, Any]
    ) -> tuple[Callable[..., object] | None, tuple[Any, ...]]:
        """Return the initializer of the workers and its arguments; refuse unknown options."""
        initializer, initargs = options.pop("initializer", None), options.pop("initargs", ())
        if unknown := sorted(options.keys() - _OF_PARALLEL):
            raise TypeError(
                f'the backend "shmpar" has no option {unknown[0]!r}; it takes initializer, '
                "initargs and inner_max_num_threads, and as ShmparBackend(...) a pool"
            )
        if initializer is not None and self._given is not None:
            raise TypeError(
                "the pool of ShmparBackend(pool=...) has its own initializer: write "
                "shmpar.Pool(initializer=...)"
            )
        return initializer, tuple(initargs)

    def _threads_of(self, n_jobs: int) -> int:
        """Return the threads of each worker, as joblib chooses them for its own workers."""
        if self.inner_max_num_threads is not None:
            return int(self.inner_max_num_threads)
        wanted = os.environ.get("OMP_NUM_THREADS", "")
        return (
            int(wanted)
            if wanted.isdecimal() and int(wanted)
            else max(available_cpus() // n_jobs, 1)
        )

    def compute_batch_size(self) -> int:
        """Return the calls of the next batch: as joblib, which doubles short batches."""
        before, seconds = self._effective_batch_size, self._smoothed_batch_duration
        size: int = super().compute_batch_size()
        if size == 2 * before and 0 < seconds < _SHORT_SHARE * self.MIN_IDEAL_BATCH_DURATION:
            # Why twice: the first batches of tiny calls cost more than all of their calls.
            self._smoothed_batch_duration = 2 * seconds
            size = super().compute_batch_size()
        return size

    def submit(
        self, func: Callable[[], Any], callback: Callable[[Any], object] | None = None
    ) -> concurrent.futures.Future[Any]:
        """Have a batch of calls made; `callback` takes its future when it is done."""
        pool = self._pool
        if pool is None:
            raise RuntimeError("the Parallel that has this backend is over")
        # Why not `pool.submit`: it warns of random generators that a function holds, but those in
        # a batch are arguments. Its look for them takes longer than a small batch.
        loop, retries = pool._checked(), pool._verb_defaults["retries"]  # noqa: SLF001
        with shared_once(self._copies):
            try:
                prepared = loop.prepare_call(Function(func, {}, ()))
            except PlanError as error:  # Why: callers of joblib expect the class that loky raises.
                text = f"Could not pickle the task to send to the workers: {error}"
                raise pickle.PicklingError(text) from error
        future = loop.add_call(_name_of(func), prepared, retries)
        self._flying[future] = Latch()
        future.add_done_callback(partial(self._done, callback))
        return future

    def _done(
        self,
        callback: Callable[[Any], object] | None,
        future: concurrent.futures.Future[Any],
    ) -> None:
        try:
            if callback is not None:
                callback(future)
        finally:
            self._flying.pop(future).set()

    def retrieve_result_callback(self, out: concurrent.futures.Future[Any]) -> Any:
        """Return the results of a batch, or raise its exception."""
        return out.result()

    def start_call(self) -> None:
        """Drop the batches that a failed call of the same ``Parallel`` has left."""
        # Why: joblib keeps them, and would give their results to this call.
        left = getattr(self.parallel, "_ready_batches", None)
        with contextlib.suppress(queue.Empty):
            while left is not None:
                left.get_nowait()

    def stop_call(self) -> None:
        """Release the arguments of a call of ``Parallel``, when its callbacks have returned."""
        # Why: a callback counts its batch after joblib has the results, and may print the count.
        _wait_for_callbacks(list(self._flying.items()))
        self._copies.clear()

    def terminate(self) -> None:
        """Release the workers of a ``Parallel``."""
        self._copies.clear()
        self.reset_batch_stats()
        pool, self._pool = self._pool, None
        if pool is not None and self._given is None:
            _kept.give_back(pool, self._kind)

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """Cancel the calls that have not begun, and end those in progress."""
        self._cancel()
        # Why again: a callback may have had a further batch made meanwhile.
        flying = self._cancel()
        self._copies.clear()
        _, busy = concurrent.futures.wait(flying, _GRACE_SECONDS)
        pool = self._pool
        if busy and pool is not None and self._given is None:
            self._pool = None
            _end(pool)
            if ensure_ready:
                options = self.parallel._backend_kwargs  # noqa: SLF001 - as loky does
                self.configure(n_jobs=self.parallel.n_jobs, parallel=self.parallel, **options)

    def _cancel(self) -> list[concurrent.futures.Future[Any]]:
        """Cancel the calls that have not begun; return those in progress."""
        flying = list(self._flying.items())
        for future, _ in reversed(flying):
            future.cancel()
        # Why: a callback that goes on would count its batch in the next call of joblib's.
        _wait_for_callbacks(flying)
        return [future for future, _ in flying if not future.done()]


def _wait_for_callbacks(flying: list[tuple[concurrent.futures.Future[Any], Latch]]) -> None:
    """Wait until the callbacks of finished calls have returned."""
    end = time.monotonic() + _CALLBACK_SECONDS
    for future, returned in flying:
        if future.done():
            returned.wait(max(0.0, end - time.monotonic()))
