"""Read ``engine=`` of a pool that is a cluster, and refuse calls that no cluster can execute."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from functools import partial
from reprlib import repr as brief
from typing import Any, NamedTuple

import cloudpickle
import numpy as np

from shmpar.cluster.engine import ClusterEngine
from shmpar.cluster.messages import Settings, Versions
from shmpar.cluster.transport import ExecutorTransport, Transport
from shmpar.engines.engine import Engine
from shmpar.errors import PlanError
from shmpar.grid.axis import positive_number
from shmpar.memory.locate import locate
from shmpar.runtime.run import Run
from shmpar.stores.formats import library


class Cluster(NamedTuple):
    """Another engine whose processes are the hosts of a pool.

    Attributes
    ----------
    name : str
        ``"dask"`` or ``"executor"``.
    transport : callable
        Makes the transport.
    """

    name: str
    transport: Callable[[], Transport]

    @property
    def workers(self) -> int:
        """Local workers of a host by default; 0 stands for the threads of each Dask worker."""
        return 0 if self.name == "dask" else 1

    def engine_maker(
        self,
        settings: tuple[Any, ...],
        host_timeout: Any,
        shared_files: bool | None,
        retries: int,
        *,
        python: Any,
        check: bool,
    ) -> Callable[[], Engine]:
        """Return the function that makes the engine.

        Raises
        ------
        ValueError
            For arguments that only workers on this machine can obey.
        PlanError
            If the initializer cannot be pickled.
        """
        if python is not None:
            raise ValueError("python= is for workers on this machine: start the hosts with it")
        if check:
            raise ValueError(
                "check=True compares the memory of this machine: check the function on a local pool"
            )
        is_number = isinstance(host_timeout, int | float) and not isinstance(host_timeout, bool)
        if not (is_number and host_timeout > 0):
            raise ValueError(f"host_timeout is a number of seconds above 0, not {host_timeout!r}")
        made, seconds = _make_settings(*settings), min(float(host_timeout), threading.TIMEOUT_MAX)
        more: Any = {"host_timeout": seconds, "shared_files": shared_files, "retries": retries}
        return lambda: ClusterEngine(self.transport(), made, **more)

    @staticmethod
    def refuse(run: Run, shared_files: bool | None) -> None:
        """Raise ``ValueError`` for a run that no cluster can execute, before it begins."""
        execution = run.execution
        verb = execution.plan.verb
        if execution.policy.in_place:
            raise ValueError(
                f"{verb}: out= is the very input, and hosts do not share memory: pass another "
                "output"
            )
        for array in execution.outputs.given or ():
            if shared_files is not None or not isinstance(array, np.ndarray):
                continue
            place = locate(array)
            if place is not None and place.segment.kind == "file":
                raise ValueError(
                    f"{verb}: out= is a mapped file, {place.segment.path}: pass shared_files=True "
                    "to the pool if all hosts see it under this path, and write it themselves; "
                    "shared_files=False if this process is to write their results"
                )


def find_cluster(engine: Any, hosts: int | None, others: Sequence[str]) -> Cluster:
    """Return the cluster of ``engine=``; `others` are the names of the local engines.

    Raises
    ------
    TypeError, ValueError
        For an executor without ``hosts=``, for ``hosts=`` without an executor, for a pool.
    ImportError
        If distributed is missing.
    RuntimeError
        For ``"dask"`` without a current client.
    """
    if isinstance(engine, str):
        if engine != "dask" and "://" not in engine:
            if engine in others:
                raise ValueError("hosts= is for an Executor; local workers are n_workers=")
            raise ValueError(f"engine is one of {', '.join([*others, 'dask'])}, not {engine!r}")
        _no_hosts(hosts)
        return _by_name(engine)
    if any(cls.__module__.partition(".")[0] == "distributed" for cls in type(engine).__mro__):
        if hasattr(engine, "register_plugin"):
            _no_hosts(hosts)
            return _of_client(engine)
        if hasattr(engine, "scheduler_info"):
            raise TypeError(
                "engine= is a cluster of Dask: pass a client of it, distributed.Client(cluster)"
            )
    return _of_executor(engine, hosts)


def _of_executor(engine: Any, hosts: int | None) -> Cluster:
    if not isinstance(engine, Executor):
        raise TypeError(
            "engine is 'processes', 'threads', 'serial', 'dask', the address of a scheduler of "
            "Dask, its Client, or a concurrent.futures.Executor with hosts=, not "
            f"{brief(engine)}"
        )
    if hasattr(engine, "map_blocks"):
        raise TypeError("engine= is a pool of shmpar: use it itself")
    given = getattr(engine, "_max_workers", None) if hosts is None else hosts
    if given is None:
        raise ValueError(
            f"engine= is a {type(engine).__name__}: pass hosts=, its calls in flight at a time"
        )
    count = positive_number(given, "hosts")
    return Cluster("executor", lambda: ExecutorTransport(engine, count))


def _no_hosts(hosts: int | None) -> None:
    if hosts is not None:
        raise ValueError("hosts= is for an Executor: a scheduler of Dask knows its hosts")


def _by_name(engine: str) -> Cluster:
    distributed: Any = library("distributed", f"engine={engine!r}")
    if engine != "dask":
        from shmpar.cluster.dask import DaskTransport, warn_if_open

        warn_if_open(engine)
        connect = partial(distributed.Client, engine, set_as_default=False)
        # Why later: the pool's other arguments are checked first.
        return Cluster("dask", lambda: DaskTransport(connect(), own=True))
    try:
        client = distributed.get_client()
    except ValueError as error:
        raise RuntimeError(
            "engine='dask' is the current client of Dask, and there is none: make one by "
            "distributed.Client(), for one on this machine, or distributed.Client(address)"
        ) from error
    return _of_client(client)


def _of_client(client: Any) -> Cluster:
    if client.asynchronous:
        raise TypeError("engine= is an asynchronous client: pass one with asynchronous=False")
    if client.status != "running":
        raise RuntimeError(f"engine= is a client of Dask that is {client.status}: make a new one")
    from shmpar.cluster.dask import DaskTransport, warn_if_open

    warn_if_open(str(client.scheduler.address))
    return Cluster("dask", lambda: DaskTransport(client))


def _make_settings(
    n_workers: int,
    env: Mapping[str, str],
    threads: int,
    initializer: tuple[Callable[..., object], tuple[Any, ...]] | None,
    tasks: int | None,
) -> Settings:
    """Make the settings of the hosts' pools; pickle the initializer.

    Raises
    ------
    PlanError
        If it cannot be pickled.
    """
    packed = None
    if initializer is not None:
        try:
            packed = cloudpickle.dumps(initializer, 5)
        except Exception as error:
            raise PlanError(f"the initializer cannot be pickled: {error}") from error
    return Settings(
        pool=f"shmpar-{uuid.uuid4().hex}",
        workers=n_workers,
        env=dict(env),
        threads=threads,
        initializer=packed,
        tasks=tasks,
        versions=Versions.here(),
    )
