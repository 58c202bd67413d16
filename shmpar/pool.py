"""The pool: an engine with its memory and its defaults."""

from __future__ import annotations

import atexit
import contextlib
import inspect
import itertools
import math
import os
import sys
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from functools import partial, wraps
from reprlib import repr as brief
from typing import TYPE_CHECKING, Any, Concatenate, NoReturn, ParamSpec, Self, TypeVar

import numpy as np

from shmpar.arrays import creation
from shmpar.arrays.sharedarray import attach
from shmpar.engines import local
from shmpar.engines.engine import Engine
from shmpar.engines.local import cap_threads
from shmpar.errors import format_count
from shmpar.grid.axis import positive_number
from shmpar.memory.copying import share
from shmpar.memory.limits import available_cpus, check_workers
from shmpar.memory.locate import locate
from shmpar.memory.manager import Manager
from shmpar.memory.names import remove_stale
from shmpar.plan import Function
from shmpar.runtime.calls import (
    HOST_SLICE_SECONDS,
    SLICE_SECONDS,
    Pieces,
    Results,
    call_here,
    length_of,
    task_for,
)
from shmpar.runtime.calls import Call as _Call
from shmpar.runtime.error_texts import call_name
from shmpar.runtime.futures import surely
from shmpar.runtime.loop import AT_ONCE, Close, Loop
from shmpar.runtime.progress import Progress
from shmpar.runtime.run import Run, execute_here
from shmpar.tracebacks import hide_frames
from shmpar.verbs import Defaults, Reductions
from shmpar.verbs.first_guesses import (
    SPAWN,
    FirstGuesses,
    Mapped,
    accepts_other_names,
    argument_tuple,
    check_call,
    check_iterables,
    names_keywords,
)
from shmpar.verbs.functions import held_by, warn_of_random
from shmpar.verbs.options import parse_options
from shmpar.worker.environment import in_worker
from shmpar.worker.items import BATCHES, call_each

if TYPE_CHECKING:
    from shmpar.cluster.connect import Cluster
    from shmpar.report.views import MemoryTable

P = ParamSpec("P")
R = TypeVar("R")

_ENGINES = ("processes", "threads", "serial")
_FEW_WORKERS = 64  # Why: the check of the limits takes longer than the rest.
# Why calls are waited for: other executors make the submitted calls before the interpreter exits.
_LEFT_OPEN = Close(cancel_runs=True, cancel_calls=False)


def _engine_maker(
    kind: str,
    workers: int,
    initializer: local.Initializer,
    call: local.Initialization | None,
    processes: tuple[Any, Mapping[str, str], int],
    **limits: Any,
) -> Callable[[], Engine]:
    """Return the function that makes an engine; wait until another interpreter has answered.

    Parameters
    ----------
    initializer : Initializer
        Initializes the caller's thread; `call` initializes each worker.
    processes : tuple
        Interpreter of worker processes, their environment, and the threads of each.
    """
    if kind == "serial":
        return partial(local.SerialEngine, initializer)
    if kind == "threads":
        return partial(local.ThreadsEngine, workers, call)
    if sys.platform == "win32":
        raise NotImplementedError("engine='processes' needs POSIX; on Windows use engine='threads'")
    # Why here: they need fcntl, which not every system has.
    from shmpar.engines.launch import Launcher
    from shmpar.engines.processes import ProcessesEngine

    python, env, threads = processes
    launcher = Launcher(None if python is None else os.fsdecode(python), env, threads)
    return partial(ProcessesEngine, workers, launcher, call, **limits)


def _find_cluster(engine: Any, hosts: int | None) -> Cluster | None:
    """Return the cluster of ``engine=``; None for a local engine."""
    if isinstance(engine, str) and engine in _ENGINES and hosts is None:
        return None
    from shmpar.cluster.connect import find_cluster  # Why here: most pools are local.

    return find_cluster(engine, hosts, _ENGINES)


def _parse_workers(n_workers: int | None, cluster: Cluster | None) -> int:
    """Return the number of workers; 0 stands for the threads of each Dask worker."""
    if n_workers is None and cluster is not None:
        return cluster.workers
    return positive_number(available_cpus() if n_workers is None else n_workers, "n_workers")


def _environment(env: Any) -> dict[str, str]:
    try:
        found = dict(env or {})
    except (TypeError, ValueError):
        raise TypeError(f"env maps names to strings, so it is not {brief(env)}") from None
    for name, value in found.items():
        if not (isinstance(name, str) and isinstance(value, str)):
            raise TypeError(f"env maps names to strings, not {name!r} to {value!r}")
        if "=" in name or "\0" in name + value:
            raise ValueError(f"env: no environment has a variable {name!r} with value {value!r}")
    return found


def _initialization(initializer: Any, initargs: Any) -> local.Initialization | None:
    """Return the initializer with its arguments; None without an initializer."""
    if initializer is None:
        return None
    if not callable(initializer):
        raise TypeError("initializer must be callable")
    return initializer, argument_tuple("initargs", "initializer", initargs)


def _of_pool(function: Callable[P, R]) -> Callable[Concatenate[Pool, P], R]:
    """The function as a method that makes its array under the pool's manager."""

    @hide_frames
    @wraps(function)
    def method(self: Pool, /, *args: P.args, **kwargs: P.kwargs) -> R:
        kwargs.setdefault("manager", self._manager)
        return function(*args, **kwargs)

    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    shown = [own, *inspect.signature(function).parameters.values()]
    method.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
    return method


class Pool(Reductions, FirstGuesses, Executor):
    """Workers, shared memory, and defaults for the verbs.

    A pool is a :class:`concurrent.futures.Executor` too.

    Parameters
    ----------
    n_workers : int, optional
        Number of workers. The default is the CPUs that this process may use (affinity, control
        group), or ``SHMPAR_NUM_WORKERS``. More than 64 are a ValueError with the sums, if the
        limits on memory, processes or descriptors do not allow them.
    engine : {"processes", "threads", "serial", "dask"}, address, Client or Executor
        Kind of the workers: processes, threads of this process, or the calling thread itself.
        Or many machines: a ``distributed.Client``, the address of its scheduler
        (``"tls://scheduler:8786"``), ``"dask"`` for the current client, or any
        :class:`concurrent.futures.Executor` with `hosts`. Then each host has `n_workers` local
        workers: by default as many as its Dask worker has threads, and one per call of an executor.
    progress, retries, task_timeout, on_error
        Defaults for the verbs, which explain them. `task_timeout` is not enforced on threads and
        serial.
    initializer : callable, optional
        Called in each worker before anything else, with `initargs`. If it raises, the pool calls
        no function any more: runs and calls end with a `ShmparError`, which is a
        `concurrent.futures.BrokenExecutor` too and has that exception as its cause. Later verbs
        and calls of `submit` raise it at once. With ``engine="serial"`` the first run or call
        calls it.
    initargs : iterable, optional
        Arguments of `initializer`.
    env : mapping of str to str, optional
        Added to the environment of worker processes, before NumPy is imported there. Other
        variables that this process changes later are sent with the next run or call; those that
        libraries read when they are loaded, such as ``OMP_NUM_THREADS``, have no effect then. The
        folders of ``PYTHONPATH`` come behind this process' ``sys.path``.
    threads_per_worker : int
        Cap on the threads of BLAS and OpenMP in each worker process. With ``engine="threads"`` it
        holds for this process while the pool is open, where threadpoolctl is installed.
    python : path, optional
        Another interpreter for the worker processes: CPython 3.11 or later, with NumPy 1.26 or
        later and cloudpickle. It has its own `sys.path`, to which ``env={"PYTHONPATH": folder}``
        adds a folder. Functions that are sent by value need the same minor version of Python;
        :func:`from_file` needs none. :func:`environment` makes an interpreter.
    check : bool
        Find faults: fill outputs with a pattern before each run. Then verify that each chunk's
        window was written once and whole, and that no other byte of outputs and inputs changed;
        otherwise the run raises :class:`shmpar.ChunkError`. The values of the user's ``out=`` are
        lost even if the run fails. In place, and for results that are objects, nothing is checked.
        Cost: inputs are read two times more, outputs five times.
    max_tasks_per_worker : int, optional
        Chunks, and calls of `submit`, after which a worker process exits and is replaced, for
        functions that leak memory. A new worker costs about as much as ``import numpy``.
        An exit that takes more than two seconds is ended by SIGKILL.
    forward_logs : bool
        Give the :mod:`logging` records of worker processes to the handlers of this process, at the
        levels that its loggers have. A record that a handler in the worker takes stays there.
        Handlers run in a thread of their own. With False, all records stay in the workers.
    hosts : int, optional
        Calls of an executor in flight at a time. The default is its number of workers; an executor
        that does not tell this number needs `hosts`.
    host_timeout : float
        Seconds without any host after which a run fails with :class:`shmpar.HostsLost`; it can be
        resumed.
    shared_files : bool, optional
        True if all hosts see the files of this machine under the same paths: then they read and
        write np.memmap inputs and outputs themselves. False if they do not: then this process sends
        the values of inputs, and writes the results. By default it sends inputs too, and an
        np.memmap as ``out=`` is refused.

    Attributes
    ----------
    n_workers : int
        Number of workers.
    engine : str
        Kind of the workers.

    Raises
    ------
    ValueError, TypeError
        For bad arguments, before anything starts.
    OSError
        If the interpreter cannot be executed.
    PlanError
        If the interpreter of `python` cannot run workers; the error names the reason.

    Notes
    -----
    Cost: one process per worker. The constructor returns at once, and workers join the run in
    progress when they are up, after about as long as ``import numpy`` takes. With `python` the
    constructor first asks that interpreter for its versions, which takes as long again.

    Leaving the ``with`` block ends the workers and releases the pool's memory. After an exception
    it cancels the runs and calls in flight, otherwise it waits for them.

    Examples
    --------
    >>> import numpy as np, shmpar
    >>> with shmpar.Pool(2) as pool:
    ...     image = pool.array(np.ones((4, 6)))
    ...     pool.block_reduce(np.sum, image, chunks=(2, 3))
    array([[6., 6.],
           [6., 6.]])
    """

    array = _of_pool(creation.array)
    asarray = _of_pool(creation.asarray)
    empty = _of_pool(creation.empty)
    zeros = _of_pool(creation.zeros)
    ones = _of_pool(creation.ones)
    full = _of_pool(creation.full)
    empty_like = _of_pool(creation.empty_like)
    zeros_like = _of_pool(creation.zeros_like)
    attach = _of_pool(attach)

    @accepts_other_names
    def __init__(  # noqa: PLR0913 - the contract
        self,
        n_workers: int | None = None,
        *,
        engine: Any = "processes",
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
        forward_logs: bool = True,
        hosts: int | None = None,
        host_timeout: float = 60.0,
        shared_files: bool | None = None,
    ) -> None:
        self._verb_defaults = Defaults(
            progress=progress, on_error=on_error, retries=retries, task_timeout=task_timeout,
            check=check,
        )  # fmt: skip
        self._usual = parse_options("Pool", {}, self._verb_defaults)
        cluster = _find_cluster(engine, hosts)
        call = _initialization(initializer, initargs)
        workers = _parse_workers(n_workers, cluster)
        if workers > _FEW_WORKERS and cluster is None:
            check_workers(workers, processes=engine == "processes")
        threads = positive_number(threads_per_worker, "threads_per_worker")
        most = max_tasks_per_worker
        tasks = None if most is None else positive_number(most, "max_tasks_per_worker")
        variables = _environment(env)
        self.engine: str = engine if cluster is None else cluster.name
        self.n_workers = 1 if self.engine == "serial" else max(1, workers)
        self._pid, self._last_run = os.getpid(), None
        self._refuse: Callable[[Run], None] | None = None
        self._manager, self._initializer = Manager(), local.Initializer(call)
        self._resume = weakref.WeakMethod(self._launch)
        remove_stale()
        # Why here: the engine is made in another thread, which does not know of this worker.
        kind = "serial" if in_worker() else self.engine
        make: Callable[[], Engine]
        if cluster is not None and kind != "serial":
            make = cluster.engine_maker(
                (workers, variables, threads, call, tasks), host_timeout, shared_files,
                self._usual.retries, python=python, check=check,
            )  # fmt: skip
            self._refuse = partial(cluster.refuse, shared_files=shared_files)
        else:
            make = _engine_maker(
                kind, self.n_workers, self._initializer, call, (python, variables, threads),
                tasks=tasks, logs=bool(forward_logs),
            )  # fmt: skip
        self._loop = Loop(make, self._manager.close)
        self._begin(threads, watch=call is not None and self.engine != "serial")

    def _begin(self, threads: int, *, watch: bool) -> None:
        """Make the engine, and start the pool thread if it is to `watch` an initializer."""
        # Invariant: a pool with workers is among those that are closed at exit, at any interrupt.
        self._open, self._caps = True, contextlib.ExitStack()
        try:
            _open_pools.add(self)
            self._loop.begin(watch=watch)
            if self.engine == "threads":
                # Why here: BLAS libraries take a cap from the main thread alone.
                self._caps.callback(cap_threads(threads))
        except BaseException:
            self._close(AT_ONCE)
            raise

    _last_run: Run | None

    @property
    def _max_workers(self) -> int:
        """Number of calls at a time: Dask reads it of the executors that it is given."""
        return self._places()

    def _places(self, *, wait: bool = False) -> int:
        """Return the number of calls at a time; `wait` for the first host if there is none yet."""
        engine: Any = self._loop.engine
        if self._refuse is None or engine is None:
            return self.n_workers
        if wait and not engine.places():
            self.submit(abs, 0).result()
        return int(engine.places()) or 1

    @property
    def last_run(self) -> Run | None:
        """The latest run, also if it failed or was cancelled."""
        return self._last_run

    @property
    def memory(self) -> MemoryTable:
        """The shared memory of this pool that is in use now: arrays, outputs, copies, ledgers.

        A tuple of records with the fields ``purpose``, ``nbytes``, ``kind``, ``name`` and
        ``huge_bytes``, largest first; it prints as a table. Private memory is not counted, nor are
        outputs of the engines threads and serial.

        Examples
        --------
        >>> import numpy as np, shmpar
        >>> with shmpar.Pool(2) as pool:
        ...     values = pool.array(np.ones(1000))
        ...     pool.memory[0]
        SegmentInfo(purpose='array', nbytes=8000, kind='shm', name=None, huge_bytes=0)
        """
        from shmpar.report.views import MemoryTable  # Why here: most programs never ask for it.

        engine = self._loop.engine
        found = [*self._manager.segments(), *(engine.segments() if engine is not None else ())]
        infos = [segment.info() for segment in {one.key: one for one in found}.values()]
        return MemoryTable(sorted(infos, key=lambda one: -one.nbytes))

    @property
    def closed(self) -> bool:
        """True after it was closed."""
        return not self._open

    def _share(self, values: Any) -> Any:
        self._checked()
        in_memory = isinstance(values, np.ndarray) and self.engine == "processes"
        if not in_memory or locate(values) is not None:
            return values
        _, copy = share(values)  # Why not asarray(): that makes all elements of a broadcast array.
        return copy

    def _execute(self, run: Run, *, wait: bool) -> Any:
        loop = self._checked()
        if self._refuse is not None:
            self._refuse(run)
        self._last_run = run
        run.resume_by = self._resume
        if in_worker():  # Why: a worker that waited for workers could wait for itself.
            return execute_here(run, local.Initializer(), wait=wait)
        if wait:
            # Why here: a debugger, and Ctrl-C, reach the function in the user's own thread.
            serial = self.engine == "serial"
            return loop.run_here(run, self._initializer) if serial else loop.run(run)
        loop.launch(run)
        return run

    def _launch(self, run: Run) -> Run:
        self._execute(run, wait=False)
        return run

    @hide_frames
    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Call a function once in a worker.

        Parameters
        ----------
        fn : callable
            The function. Its arguments and its result are sent like this: arrays of more than
            64 KiB through shared memory, everything else pickled. To the function the arguments
            are its own, with the values of this moment, as if pickled. The exceptions are a
            :class:`SharedArray` and a file that is mapped for reading: of these the function gets
            the memory, and sees later changes. The engines threads and serial pass all objects
            themselves.
        *args, **kwargs
            Its arguments.

        Returns
        -------
        Future
            A :class:`concurrent.futures.Future`. A function with a parameter named ``task``, which
            the arguments leave free, gets an object with ``update(current, total, message)`` and
            ``cancelled``. Then ``future.progress`` is its latest report, and ``cancel()`` of a
            call that has begun sets ``cancelled``.

        Raises
        ------
        RuntimeError
            If the pool is closed.
        PlanError
            If the function or an argument cannot be pickled.

        Notes
        -----
        A call whose worker dies is made again, `retries` times; then its future raises
        :class:`shmpar.WorkerDied`. `task_timeout` is for the chunks of verbs.

        Cost: a large array is copied once on the way there, and once on the way back. A
        :class:`SharedArray` and a file that is mapped for reading are not copied.

        Examples
        --------
        >>> import shmpar
        >>> with shmpar.Pool(2) as pool:
        ...     pool.submit(pow, 2, 5).result()
        32
        """
        check_call("submit", fn, kwargs)
        loop, here = self._checked(), in_worker()
        name = call_name(fn)
        shared = self.engine == "processes" and not here
        task = task_for(fn, args, kwargs, self.zeros if shared else np.zeros)
        function = Function(fn, kwargs if task is None else {**kwargs, "task": task}, args)
        if here:
            _check_random(function)
            call = call_here(name, function)
        else:
            prepared = loop.prepare_call(function, _check_random)
            call = loop.add_call(name, prepared, self._verb_defaults["retries"])
        call.task = task
        return call

    @names_keywords
    def map(
        self,
        fn: Callable[..., R],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | None = None,
        buffersize: int | None = None,
    ) -> Iterator[R]:
        """Call a function on the items of iterables, in workers; yield the results in order.

        Parameters
        ----------
        fn : callable
            As for :meth:`submit`.
        *iterables : iterable
            They are read at once, or as `buffersize` says; the shortest decides.
        timeout : float, optional
            Seconds from now within which each result must be there.
        chunksize : int, optional
            Items that a worker is sent at a time, 1 for the results as soon as they are there. By
            default many quick items are sent at a time, and few items, or slow ones, of more than
            about 5 ms, one by one. With `buffersize` the default is 1.
        buffersize : int, optional
            Tasks, of `chunksize` items each, that are submitted before their results are taken.
            The iterables are read no further, so they may be larger than memory, or infinite. As
            in :meth:`concurrent.futures.Executor.map` of Python 3.14.

        Returns
        -------
        iterator
            The results. Closing it, or an error, cancels the calls that no worker has begun.

        Raises
        ------
        ValueError, TypeError
            If `chunksize` or `buffersize` is less than 1, or is not an int.
        TimeoutError
            From the iterator, if a result is not there in time.
        Exception
            An exception that an iterable raises. With `buffersize` it may come from the iterator.

        Notes
        -----
        An exception of an item comes after the results of the items before it. If a worker dies,
        the items that it was sent are sent again one by one, so the iterator raises
        :class:`shmpar.WorkerDied` at the item that is to blame. The same happens if a result does
        not unpickle in this process.

        To map over the rows of an array, :meth:`parallel_map` is far quicker: it sends no item.

        Cost: a slow item costs as much as a call of :meth:`submit`, a quick one a small part of it.

        Examples
        --------
        >>> import itertools, shmpar
        >>> with shmpar.Pool(2) as pool:
        ...     list(pool.map(pow, [2, 3], [5, 2]))
        ...     powers = pool.map(pow, itertools.count(), itertools.repeat(2), buffersize=4)
        ...     list(itertools.islice(powers, 5))
        [32, 9]
        [0, 1, 4, 9, 16]
        """
        check_call("map", fn)
        check_iterables("map", fn, iterables)
        warn_of_random("map", held_by(fn), SPAWN)
        ahead = None if buffersize is None else positive_number(buffersize, "buffersize")
        items: Iterable[Any] = (
            iterables[0] if len(iterables) == 1 else zip(*iterables, strict=False)
        )
        submit = partial(self._submit_items, fn, star=len(iterables) != 1)
        if chunksize is None and ahead is None:
            pieces = Pieces(items, length_of(iterables), self._places())
            seconds = SLICE_SECONDS if self._refuse is None else HOST_SLICE_SECONDS
            more = (submit(piece, seconds, pieces.weigh) for piece in pieces)
        else:
            size = 1 if chunksize is None else positive_number(chunksize, "chunksize")
            source = iter(items)
            batches = iter(lambda: list(itertools.islice(source, size)), [])
            more = (submit(batch, math.inf) for batch in batches)
        calls = deque[_Call]()
        results = _Results(calls, iter(()) if ahead is None else more, timeout)
        try:
            calls.extend(itertools.islice(more, ahead))
        except BaseException:
            results.close()
            raise
        return results

    def _submit_items(
        self,
        fn: Callable[..., Any],
        items: Sequence[Any],
        seconds: float,
        weigh: Callable[[int, Any], object] = lambda *_: None,
        *,
        star: bool,
    ) -> _Call:
        """Submit a call over items, which ends after a slice of time."""
        loop, count = self._checked(), len(items)
        over: tuple[int, int] | tuple[()] = ()
        if count > 1:
            over = 0, count
            function = Function(call_each, {"star": star}, (fn, items, seconds))
        else:
            function = Function(fn, {}, items[0] if star else (items[0],))
        name = call_name(fn)
        if in_worker():
            return call_here(name, function, over)
        prepared = loop.prepare_call(function)
        weigh(count, prepared)
        return loop.add_call(name, prepared, self._verb_defaults["retries"], over)

    def _checked(self) -> Loop:
        if self._pid != os.getpid():
            raise RuntimeError("this pool belongs to the parent process; make one after the fork")
        if not self._open:
            raise RuntimeError(
                "cannot schedule new futures after shutdown: this pool is closed, make a new one"
            )
        return self._loop

    @hide_frames
    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the workers and release the memory of the pool; results stay valid.

        Parameters
        ----------
        wait : bool
            Return when all is done; else at once, and the pool's thread goes on until it is.
        cancel_futures : bool
            Cancel the runs in flight, and the calls that no worker has begun. These calls are
            cancelled when this method returns, except by a serial pool that does not wait.
        """
        self._close(Close(cancel_futures, cancel_futures), wait=wait)
        # Why not serial: its pool thread makes the calls, so it may be long in one.
        if cancel_futures and not wait and self.engine != "serial":
            self._loop.settle()

    def _close(self, how: Close, *, wait: bool = True) -> None:
        if self._pid != os.getpid():
            return
        try:
            self._open = False
            _closing.add(self._loop)
            _open_pools.discard(self)
            self._loop.close(how, wait=wait)
        except BaseException:
            # Why: an interrupt may have come before the loop knew that it is to end.
            surely(partial(self._loop.close, AT_ONCE, wait=False))
            raise
        finally:
            self._caps.close()

    @hide_frames
    def __enter__(self) -> Self:
        self._checked()
        return self

    @hide_frames
    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        failed = error is not None
        self._close(Close(failed, failed, failed))

    def __del__(self) -> None:
        if getattr(self, "_open", False) and self._pid == os.getpid():
            text = f"{self!r} was never closed; use it in a with block"
            warnings.warn(text, ResourceWarning, stacklevel=1, source=self)
            # Why no wait: the garbage collector may run in a thread that holds a lock.
            self._close(_LEFT_OPEN, wait=False)

    def __copy__(self) -> NoReturn:
        raise TypeError("a pool has workers and memory, so it has no copy; use it itself")

    def __deepcopy__(self, _: Any) -> NoReturn:
        self.__copy__()

    def __reduce__(self) -> tuple[Any, ...]:
        """In a worker, a pool that the function holds is a serial one, with its defaults."""
        defaults: dict[str, Any] = {**self._verb_defaults, "progress": False}
        return partial(Pool, engine="serial", **defaults), ()

    def __repr__(self) -> str:
        # Why: a host may have more workers than the others.
        local = self.engine in _ENGINES
        workers = format_count(self.n_workers, "worker") if local else "workers on hosts"
        state = "closed" if self.closed else workers
        return f"<shmpar.Pool: {self.engine}, {state}>"

    def _repr_html_(self) -> str:
        from shmpar.report.views import render_pool

        return render_pool(self)


def _check_random(function: Function) -> None:
    call = function.call
    if not (isinstance(call, partial) and call.func in BATCHES):  # Why: their method warns once.
        warn_of_random("submit", held_by(call), SPAWN)


class _Results(Mapped, Results):
    """The results of :meth:`Pool.map`, in order."""


_open_pools: weakref.WeakSet[Pool] = weakref.WeakSet()
_closing: weakref.WeakSet[Loop] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Close the pools that were left open, and wait for those that were closed without waiting."""
    for pool in list(_open_pools):
        with contextlib.suppress(Exception):
            pool._close(_LEFT_OPEN)  # noqa: SLF001
    for loop in list(_closing):
        if loop.pid == os.getpid():
            loop.close(Close(cancel_runs=False, cancel_calls=False))
