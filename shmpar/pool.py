"""The pool: an engine with its memory and its defaults, and the pool of the module's verbs."""

from __future__ import annotations

import atexit
import contextlib
import functools
import inspect
import itertools
import os
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future
from functools import partial
from types import TracebackType
from typing import Any, Concatenate, NamedTuple, ParamSpec, Self, TypeVar

from shmpar.arrays import creation
from shmpar.arrays.attach import attach
from shmpar.engines.engine import Engine
from shmpar.engines.local import Initializer, SerialEngine, ThreadsEngine, cap_threads
from shmpar.grid.axis import whole_number
from shmpar.memory.limits import available_cpus
from shmpar.memory.manager import Manager
from shmpar.memory.names import remove_stale
from shmpar.plan import Function
from shmpar.runtime.execution import Policy
from shmpar.runtime.loop import Close, Loop, call_here, execute_here
from shmpar.runtime.run import Run
from shmpar.verbs import Defaults, Reductions
from shmpar.verbs.options import Progress, parse_options
from shmpar.worker.context import in_worker

__all__ = [
    "Pool",
    "apply_along_axis",
    "block_reduce",
    "histogram",
    "map_blocks",
    "map_overlap",
    "max",
    "mean",
    "min",
    "parallel_map",
    "std",
    "sum",
    "var",
]

P = ParamSpec("P")
R = TypeVar("R")

_ENGINES = ("processes", "threads", "serial")
# Why calls are waited for: other executors make the submitted calls before the interpreter exits.
_LEFT_OPEN = Close(cancel_runs=True, cancel_calls=False)


class EngineSpec(NamedTuple):
    """A pool's arguments for its engine, checked.

    Attributes
    ----------
    name : {"processes", "threads", "serial"}
        Kind of the engine.
    workers : int
        Number of workers.
    initializer : callable or None
        Called in each worker first, with `initargs`.
    env : mapping
        Added to the environment of worker processes.
    threads : int
        Cap on the threads of BLAS and OpenMP in each worker process.
    python : str or None
        Interpreter of worker processes.
    tasks : int or None
        Chunks and calls after which a worker process is replaced.
    """

    name: str
    workers: int
    initializer: Callable[..., object] | None
    initargs: tuple[Any, ...]
    env: Mapping[str, str]
    threads: int
    python: str | None
    tasks: int | None

    @property
    def initialize(self) -> Callable[[], object] | None:
        """The initializer with its arguments."""
        return None if self.initializer is None else partial(self.initializer, *self.initargs)

    def make(self, initializer: Initializer) -> Engine:
        """Make the engine."""
        if self.name == "serial":
            return SerialEngine(initializer)
        if self.name == "threads":
            return ThreadsEngine(self.workers, self.initialize)
        if sys.platform == "win32":
            raise NotImplementedError(
                "engine='processes' needs a POSIX system; on Windows use engine='threads'"
            )
        # Why here: they need fcntl, which not every system has.
        from shmpar.engines.launch import Launcher
        from shmpar.engines.processes import ProcessesEngine

        packed = None if self.initializer is None else (self.initializer, self.initargs)
        launcher = Launcher(self.python, self.env, self.threads)
        return ProcessesEngine(self.workers, launcher, packed, self.tasks)


def _positive(name: str, value: Any) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} is a number, 1 or more, not {value!r}")
    if value < 1:
        raise ValueError(f"{name} is a number, 1 or more, not {value!r}")
    return int(value.__index__())


def _environment(env: Any) -> dict[str, str]:
    found = dict(env or {})
    for name, value in found.items():
        if not (isinstance(name, str) and isinstance(value, str)):
            raise TypeError(f"env maps names to strings, not {name!r} to {value!r}")
    return found


def _of_pool(function: Callable[P, R]) -> Callable[Concatenate[Memory, P], R]:
    """The function as a method that makes its array under the pool's manager."""

    def method(self: Memory, /, *args: P.args, **kwargs: P.kwargs) -> R:
        kwargs.setdefault("manager", self._memory())
        return function(*args, **kwargs)

    functools.update_wrapper(method, function)
    del method.__wrapped__  # type: ignore[attr-defined]  # its signature lacks self
    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    theirs = inspect.signature(function).parameters.values()
    shown = [
        one.replace(kind=inspect.Parameter.KEYWORD_ONLY) if one.name == "manager" else one
        for one in theirs
    ]
    method.__signature__ = inspect.Signature([own, *shown])  # type: ignore[attr-defined]
    return method


class Memory:
    """Gives a pool the array functions, each with the signature of the module's."""

    def _memory(self) -> Manager:
        raise NotImplementedError

    array = _of_pool(creation.array)
    asarray = _of_pool(creation.asarray)
    empty = _of_pool(creation.empty)
    zeros = _of_pool(creation.zeros)
    ones = _of_pool(creation.ones)
    full = _of_pool(creation.full)
    empty_like = _of_pool(creation.empty_like)
    zeros_like = _of_pool(creation.zeros_like)

    attach = _of_pool(attach)


class Pool(Reductions, Memory, Executor):
    """Workers, the memory that they share, and defaults for the verbs.

    A :class:`concurrent.futures.Executor` too.

    Parameters
    ----------
    n_workers : int, optional
        How many; by default the CPUs that this process may use (affinity, control group), or
        ``SHMPAR_NUM_WORKERS``.
    engine : {"processes", "threads", "serial"}
        What workers are: processes, threads of this one, or this thread itself.
    progress, retries, task_timeout, on_error
        Defaults for the verbs, where they are explained. `task_timeout` is not enforced on
        threads and serial.
    initializer : callable, optional
        Called in each worker before anything else, with `initargs`. If it raises, nothing is
        called in this pool any more: runs and calls end with that as the cause of a
        `ShmparError`, which is a `concurrent.futures.BrokenExecutor` too.
    env : mapping of str to str, optional
        Added to the environment of worker processes, before NumPy is imported there.
    threads_per_worker : int
        Cap on the threads of BLAS and OpenMP in each worker process. With ``engine="threads"`` it
        holds for this process while the pool is open, where threadpoolctl is installed.
    python : path, optional
        Another interpreter for the worker processes; it needs NumPy and cloudpickle.
    check : bool
        For finding faults: fill outputs with a pattern before each run, and verify that each
        chunk's window was written once and whole, and nothing else, neither outputs nor inputs;
        otherwise the run raises :class:`shmpar.ChunkError`. What the user's ``out=`` held is lost
        even if the run fails. In place, and for results that are objects, nothing is checked.
        Cost: inputs are read two times more, outputs five times.
    max_tasks_per_worker : int, optional
        Chunks, and calls of `submit`, after which a worker process ends and is replaced, for
        functions that leak memory. A new worker costs about as much as ``import numpy``.

    Attributes
    ----------
    n_workers : int
        How many workers it has.
    engine : str
        What they are.

    Raises
    ------
    ValueError, TypeError
        For arguments that cannot be.
    OSError
        If the interpreter cannot be executed.

    Notes
    -----
    Cost: a millisecond a worker; it returns at once, and workers join the run in progress when
    they are up, after about as long as ``import numpy`` takes. 18 MB a worker.

    Leaving the ``with`` block ends the workers and releases the pool's memory; after an exception
    it cancels what runs, otherwise it waits for it.

    Examples
    --------
    >>> import numpy as np, shmpar
    >>> with shmpar.Pool(2) as pool:
    ...     image = pool.array(np.ones((4, 6)))
    ...     pool.block_reduce(np.sum, image, chunks=(2, 3))
    array([[6., 6.],
           [6., 6.]])
    """

    def __init__(  # noqa: PLR0913 - the contract
        self,
        n_workers: int | None = None,
        *,
        engine: str = "processes",
        progress: Progress = False,
        retries: int = 1,
        task_timeout: float | None = None,
        on_error: str = "raise",
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        env: Mapping[str, str] | None = None,
        threads_per_worker: int = 1,
        python: str | os.PathLike[str] | None = None,
        check: bool = False,
        max_tasks_per_worker: int | None = None,
    ) -> None:
        self._verb_defaults = Defaults(
            progress=progress,
            on_error=on_error,
            retries=retries,
            task_timeout=task_timeout,
            check=check,
        )
        self._usual = parse_options("Pool", {}, self._verb_defaults)
        if engine not in _ENGINES:
            raise ValueError(f"engine is one of {', '.join(_ENGINES)}, not {engine!r}")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be callable")
        workers = available_cpus() if n_workers is None else _positive("n_workers", n_workers)
        tasks = max_tasks_per_worker
        spec = EngineSpec(
            name=engine,
            workers=1 if engine == "serial" else workers,
            initializer=initializer,
            initargs=tuple(initargs),
            env=_environment(env),
            threads=_positive("threads_per_worker", threads_per_worker),
            python=None if python is None else os.fspath(python),
            tasks=None if tasks is None else _positive("max_tasks_per_worker", tasks),
        )
        self.n_workers, self.engine = spec.workers, engine
        self._pid = os.getpid()
        self._last_run: Run | None = None
        self._manager = Manager()
        self._initializer = Initializer(spec.initialize)
        if in_worker():  # Why here: the engine is made in another thread, which does not know it.
            spec = spec._replace(name="serial")
        self._resume = weakref.WeakMethod(self._launch)
        remove_stale()
        try:
            self._loop = Loop(partial(spec.make, self._initializer), self._manager.close)
        except BaseException:
            self._manager.close()
            raise
        # Why here: BLAS libraries take a cap from the main thread alone.
        self._uncap = cap_threads(spec.threads) if engine == "threads" else None
        self._open = True
        _open_pools.add(self)

    @property
    def last_run(self) -> Run | None:
        """The latest run, whatever came of it."""
        return self._last_run

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return not self._open

    def _defaults(self) -> Defaults:
        return self._verb_defaults

    def _policy(self) -> Policy:
        return self._usual

    def _memory(self) -> Manager:
        return self._manager

    def _execute(self, run: Run, *, wait: bool) -> Any:
        loop = self._checked()
        self._last_run = run
        run.resume_by = self._resume
        if in_worker():  # Why: a worker that waited for workers could wait for itself.
            return execute_here(run, Initializer(None), wait=wait)
        if wait:
            # Why here: a debugger, and Ctrl-C, reach the function in the user's own thread.
            serial = self.engine == "serial"
            return execute_here(run, self._initializer) if serial else loop.run(run)
        loop.launch(run)
        return run

    def _launch(self, run: Run) -> Run:
        self._execute(run, wait=False)
        return run

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
        loop, function = self._checked(), Function(fn, kwargs, args)
        if in_worker():
            return call_here(function)
        return loop.submit(function, self._verb_defaults["retries"])

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

    def _checked(self) -> Loop:
        if self._pid != os.getpid():
            raise RuntimeError("this pool belongs to the parent process; make one after the fork")
        if not self._open:
            raise RuntimeError(
                "cannot schedule new futures after shutdown: this pool is closed, make a new one"
            )
        return self._loop

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the workers and release the memory of the pool; results stay valid.

        Parameters
        ----------
        wait : bool
            Return when all is done; else at once, and the pool's thread sees it through.
        cancel_futures : bool
            Cancel the runs in flight, and calls that no worker has begun.
        """
        self._close(Close(cancel_futures, cancel_futures), wait=wait)

    def _close(self, how: Close, *, wait: bool = True) -> None:
        if self._pid != os.getpid():
            return
        self._open = False
        _closing.add(self._loop)
        _open_pools.discard(self)
        uncap, self._uncap = self._uncap, None
        try:
            self._loop.close(how, wait=wait)
        finally:
            if uncap is not None:
                uncap()

    def __enter__(self) -> Self:
        self._checked()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        failed = error is not None
        self._close(Close(failed, failed, failed))

    def __del__(self) -> None:
        if getattr(self, "_open", False) and self._pid == os.getpid():
            warnings.warn(
                f"{self!r} was never closed; use it in a with block",
                ResourceWarning,
                stacklevel=1,
                source=self,
            )
            self._close(_LEFT_OPEN)

    def __reduce__(self) -> tuple[Any, ...]:
        """In a worker, a pool that the function holds is a serial one, with its defaults."""
        return _nested, (dict(self._verb_defaults),)

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{self.n_workers} workers"
        return f"<shmpar.Pool: {self.engine}, {state}>"


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


def _nested(defaults: dict[str, Any]) -> Pool:
    return Pool(engine="serial", **{**defaults, "progress": False})


_open_pools: weakref.WeakSet[Pool] = weakref.WeakSet()
_closing: weakref.WeakSet[Loop] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Close the pools that were left open, and wait for those that were closed without waiting."""
    for pool in list(_open_pools):
        with contextlib.suppress(Exception):
            pool._close(_LEFT_OPEN)  # noqa: SLF001
    for loop in list(_closing):
        loop.wait()


class _Default:
    """The one pool of this interpreter, made when it is first asked for."""

    lock = threading.Lock()
    pool: Pool | None = None
    pid = 0


def default_pool() -> Pool:
    """The pool of the module's verbs: as many workers as CPUs; it ends with the interpreter."""
    if _Default.pid != os.getpid():  # a forked child's copy of a lock may never be released
        _Default.lock, _Default.pool, _Default.pid = threading.Lock(), None, os.getpid()
    with _Default.lock:
        if _Default.pool is None or _Default.pool.closed:
            _Default.pool = Pool()
        return _Default.pool


def _on_default(method: Callable[Concatenate[Pool, P], R]) -> Callable[P, R]:
    """The method as a function on the default pool."""

    def function(*args: P.args, **kwargs: P.kwargs) -> R:
        return method(default_pool(), *args, **kwargs)

    functools.update_wrapper(function, method)
    del function.__wrapped__  # type: ignore[attr-defined]  # its signature has self
    _, *shown = inspect.signature(method).parameters.values()
    function.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
    function.__module__, function.__qualname__ = "shmpar", method.__name__
    return function


map_blocks = _on_default(Pool.map_blocks)
apply_along_axis = _on_default(Pool.apply_along_axis)
map_overlap = _on_default(Pool.map_overlap)
block_reduce = _on_default(Pool.block_reduce)
parallel_map = _on_default(Pool.parallel_map)
sum = _on_default(Pool.sum)  # noqa: A001 - NumPy's name
mean = _on_default(Pool.mean)
var = _on_default(Pool.var)
std = _on_default(Pool.std)
min = _on_default(Pool.min)  # noqa: A001 - NumPy's name
max = _on_default(Pool.max)  # noqa: A001 - NumPy's name
histogram = _on_default(Pool.histogram)
