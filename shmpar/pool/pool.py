"""The pool.

Imports the neighbours in this package, driver, segment, verbs and worker.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Self

from shmpar.driver import Driver, End
from shmpar.interrupts import allowed, held_back
from shmpar.plan import Function
from shmpar.policy import Policy
from shmpar.pool.calls import Calls
from shmpar.pool.engine import EngineChoice
from shmpar.pool.memory import Memory
from shmpar.progress import Progress
from shmpar.run import Run
from shmpar.segment import Manager, reap
from shmpar.tasks import Task
from shmpar.verbs import Defaults, Reductions
from shmpar.verbs.options import parse_options
from shmpar.worker import in_worker

__all__ = ["Pool"]

# As other executors: what was submitted is done before the interpreter ends.
_LEFT_OPEN = End(cancel_runs=True, cancel_tasks=False)


class Pool(Reductions, Memory, Calls):
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
        choice = EngineChoice.parse(
            engine,
            n_workers,
            initializer=initializer,
            initargs=initargs,
            env=env,
            threads_per_worker=threads_per_worker,
            python=python,
            tasks=max_tasks_per_worker,
        )
        self._pid = os.getpid()
        self._last_run: Run | None = None
        self._manager = Manager()
        self._driver: Driver | None = None
        self._open(choice)

    def _open(self, choice: EngineChoice) -> None:
        self.n_workers = choice.workers
        self.engine = choice.name
        self._closing: threading.Thread | None = None
        self._closer: int | None = None  # the thread that closes
        self._ending: Driver | None = None
        self._closed = threading.Event()
        self._relaunch = weakref.WeakMethod(self._launch)
        reap()
        try:
            with held_back():
                self._driver = Driver(choice.make)
                _open_pools.add(self)
        except BaseException:  # no engine could be made, or an interrupt had to wait
            if self._driver is None:
                self._manager.close()
                self._closed.set()
            self._shut(End(cancel_runs=True, cancel_tasks=True, kill=True))
            raise

    @property
    def last_run(self) -> Run | None:
        """The latest run, whatever came of it."""
        return self._last_run

    @property
    def closed(self) -> bool:
        """Whether its workers were ended."""
        return self._driver is None

    def _defaults(self) -> Defaults:
        return self._verb_defaults

    def _policy(self) -> Policy:
        return self._usual

    def _memory(self) -> Manager:
        return self._manager

    def _execute(self, run: Run, *, wait: bool) -> Any:
        driver = self._checked()
        self._last_run = run
        run.resume_by(self._relaunch)
        if in_worker():
            driver = _here()
        if wait:
            return driver.run(run)
        driver.launch(run)
        return run

    def _launch(self, run: Run) -> Run:
        self._execute(run, wait=False)
        return run

    def _submit(self, call: Function) -> Task:
        driver = self._checked()
        if in_worker():
            driver = _here()
        return driver.submit(call, self._verb_defaults["retries"])

    def _checked(self) -> Driver:
        if self._pid != os.getpid():
            raise RuntimeError("this pool belongs to the parent process; make one after the fork")
        if self._driver is None:
            raise RuntimeError(
                "cannot schedule new futures after shutdown: this pool is closed, make a new one"
            )
        return self._driver

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the workers and release the memory of the pool; results stay valid.

        Parameters
        ----------
        wait : bool
            Return when all is done; else at once, and a thread of ours sees it through.
        cancel_futures : bool
            Cancel the runs in flight, and calls that no worker has begun.
        """
        self._shut(End(cancel_futures, cancel_futures), wait=wait)

    def _shut(self, end: End, *, wait: bool = True) -> None:
        if self._pid != os.getpid():
            return
        with held_back():
            driver, self._driver = self._driver, None
            if driver is None:
                calls_back = self._ending is not None and self._ending.calls_back
                if wait and not calls_back and self._closer != threading.get_ident():
                    with allowed():
                        self._closed.wait()
                        if self._closing is not None:
                            self._closing.join()
            elif wait:
                self._close(driver, end)
            else:
                # Not a daemon: the interpreter waits for what was submitted.
                self._closing = threading.Thread(
                    target=self._close, args=(driver, end), name="shmpar-closer"
                )
                self._closing.start()

    def _close(self, driver: Driver, end: End) -> None:
        self._closer, self._ending = threading.get_ident(), driver
        with held_back(), contextlib.ExitStack() as last:
            last.callback(self._closed.set)
            last.callback(self._manager.close)
            _open_pools.discard(self)
            driver.close(end)

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
        self._shut(End(failed, failed, failed))

    def __del__(self) -> None:
        if getattr(self, "_driver", None) is not None and self._pid == os.getpid():
            warnings.warn(
                f"{self!r} was never closed; use it in a with block",
                ResourceWarning,
                stacklevel=1,
                source=self,
            )
            self._shut(_LEFT_OPEN)

    def __reduce__(self) -> tuple[Any, ...]:
        """In a worker, a pool that the function holds is a serial one, with its defaults."""
        return _nested, (dict(self._verb_defaults),)

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{self.n_workers} workers"
        return f"<shmpar.Pool: {self.engine}, {state}>"


def _here() -> Driver:
    """The driver inside a worker: one that waited for workers could wait for itself."""
    from shmpar.engines.serial import SerialEngine  # most programs have no use for it

    return Driver(SerialEngine)


def _nested(defaults: dict[str, Any]) -> Pool:
    return Pool(engine="serial", **{**defaults, "progress": False})


_open_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for pool in list(_open_pools):
        with contextlib.suppress(Exception):
            pool._shut(_LEFT_OPEN)  # noqa: SLF001
