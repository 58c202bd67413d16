"""Which engine a pool's arguments ask for.

Imports engines, cpus and worker.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from shmpar.cpus import available_cpus
from shmpar.engines.protocol import Engine
from shmpar.worker import in_worker

__all__ = ["EngineChoice"]

_NAMES = ("processes", "threads", "serial")


class EngineChoice(NamedTuple):
    """What a pool was told of its engine.

    Attributes
    ----------
    name : {"processes", "threads", "serial"}
        Which one.
    workers : int
        How many workers.
    initializer : callable or None
        Called in each worker first, with `initargs`.
    env : mapping
        Added to the environment of worker processes.
    threads : int
        Cap on the threads of BLAS and OpenMP in each worker process.
    python : str or None
        The interpreter of worker processes.
    tasks : int or None
        Chunks and tasks after which a worker process is replaced.
    """

    name: str
    workers: int
    initializer: Callable[..., object] | None
    initargs: tuple[Any, ...]
    env: Mapping[str, str]
    threads: int
    python: str | None
    tasks: int | None

    @classmethod
    def parse(  # noqa: PLR0913 - the arguments of a pool
        cls,
        engine: Any,
        n_workers: Any,
        *,
        initializer: Any,
        initargs: Any,
        env: Any,
        threads_per_worker: Any,
        python: Any,
        tasks: Any,
    ) -> EngineChoice:
        """Check a pool's arguments.

        Raises
        ------
        ValueError, TypeError
            For what cannot be.
        """
        if engine not in _NAMES:
            raise ValueError(f"engine is one of {', '.join(_NAMES)}, not {engine!r}")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be callable")
        workers = available_cpus() if n_workers is None else _positive("n_workers", n_workers)
        return cls(
            name=engine,
            workers=1 if engine == "serial" else workers,
            initializer=initializer,
            initargs=tuple(initargs),
            env=_environment(env),
            threads=_positive("threads_per_worker", threads_per_worker),
            python=None if python is None else os.fspath(python),
            tasks=None if tasks is None else _positive("max_tasks_per_worker", tasks),
        )

    def make(self) -> Engine:
        """Make the engine; inside a worker it is the serial one.  Only that one is loaded."""
        if self.name == "serial" or in_worker():
            from shmpar.engines.serial import SerialEngine

            return SerialEngine(self._initialize)
        if self.name == "threads":
            from shmpar.engines.threads import ThreadsEngine

            return ThreadsEngine(self.workers, self._initialize, self.threads)
        if sys.platform == "win32":
            raise NotImplementedError(
                "engine='processes' needs a POSIX system; on Windows use engine='threads'"
            )
        from shmpar.engines.launch import Launcher
        from shmpar.engines.processes import ProcessesEngine

        initializer = None if self.initializer is None else (self.initializer, self.initargs)
        launcher = Launcher(self.python, self.env, self.threads)
        return ProcessesEngine(self.workers, launcher, initializer, self.tasks)

    @property
    def _initialize(self) -> Callable[[], object] | None:
        return None if self.initializer is None else partial(self.initializer, *self.initargs)


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
