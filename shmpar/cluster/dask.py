"""The transport of Dask's distributed: hosts are its workers, spans are tasks pinned to them.

Guarantees
----------
- Windows and results go between client and host, not through the scheduler (``direct=True``).
- A host is asked for a result while it computes, so that a short span is not delayed by the news of
  its end, which go through the scheduler.
- The scheduler retries nothing: each task is pinned, and a task of a lost host is released.
- A plugin of the workers ends the hosts' pools: with the client's pool, or after the scheduler has
  seen the client go.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import itertools
import warnings
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, NamedTuple

from distributed import Client, Future, Security
from distributed.client import _wait
from distributed.comm.addressing import get_address_host, parse_address, parse_host_port
from distributed.comm.registry import get_backend
from distributed.diagnostics.plugin import WorkerPlugin
from distributed.protocol import to_serialize
from distributed.utils_comm import gather_from_workers

from shmpar.cluster import host as serving
from shmpar.cluster.messages import Head, Probe, Settings, Span, Submitted, Versions, machine
from shmpar.cluster.transport import Answer, Broken, HostDown, HostUp, Report
from shmpar.errors import SecurityWarning, summarize
from shmpar.runtime.error_texts import warn_user

_MOST_HOSTS = 256
_INLINE = 64 << 10  # bytes of windows, and of a head, that go with the task: it saves messages
_LOOK_SECONDS = 0.25  # between two looks at the workers that the scheduler has
_CLIENT_SECONDS = 1.0  # between two looks of a worker for the client
_CLOSE_SECONDS = 10.0
_RELEASE_SECONDS = 0.1
_SOON_SECONDS = 0.5  # for so long a host keeps the question for a result
_BEFORE_END = frozenset({"waiting", "constrained", "ready", "executing"})  # states of Dask
_LEFT = "it has left the cluster, or its process has ended"
_LOST = frozenset(
    {
        "CommClosedError",
        "FutureCancelledError",
        "FuturesCancelledError",
        "FuturesTimeoutError",
        "KilledWorker",
    }
)


class HostPlugin(WorkerPlugin):  # type: ignore[misc]  # distributed has no types
    """Ends the pool of a Dask worker with the worker, or with the client; answers the client.

    Parameters
    ----------
    pool : str
        Name of the client's pool, and of this plugin.
    client : str
        Name of the client.
    """

    idempotent = True

    def __init__(self, pool: str, client: str) -> None:
        self.name, self.client = pool, client

    def setup(self, worker: Any) -> None:
        """Begin to watch the client, and to answer it."""
        self._data = worker.data
        self._ends: dict[str, asyncio.Future[None]] = {}
        worker.handlers[self.name] = self._answer
        self._task = asyncio.ensure_future(self._watch(worker))

    async def _answer(self, key: str) -> list[Any]:
        """Return the result of a task as soon as it is there, and none if it takes long."""
        if key not in self._data:
            end = self._ends[key] = asyncio.get_running_loop().create_future()
            await asyncio.wait([end], timeout=_SOON_SECONDS)
            del self._ends[key]
        return [to_serialize(self._data[key])] if key in self._data else []

    def transition(self, key: Any, start: str, finish: str, **_: Any) -> None:
        """Have the question for the result of a task answered at the end of the task."""
        end = self._ends.get(key)
        if end is not None and finish not in _BEFORE_END and not end.done():
            end.set_result(None)

    async def _watch(self, worker: Any) -> None:
        while True:
            await asyncio.sleep(_CLIENT_SECONDS)
            events = await worker.scheduler.events(topic=self.client)
            if not events or any(one.get("action") == "remove-client" for _, one in events):
                await asyncio.to_thread(serving.close, self.name)
                return

    def teardown(self, worker: Any) -> None:
        """End the pool."""
        worker.handlers.pop(self.name, None)
        if not self._task.done():
            self._task.cancel()
        serving.close(f"{self.name}@{worker.address}")

    def __getstate__(self) -> dict[str, Any]:
        return {"name": self.name, "client": self.client}


def warn_if_open(address: str) -> None:
    """Warn of a scheduler on another machine that anybody can use.

    Examples
    --------
    >>> warn_if_open("tcp://127.0.0.1:8786"), warn_if_open("tls://10.0.0.1:8786")
    (None, None)
    """
    scheme, _, rest = address.partition("://")
    name = rest.rpartition(":")[0].strip("[]") or rest
    try:
        local = ipaddress.ip_address(name).is_loopback
    except ValueError:
        local = name in {"localhost", ""}
    if scheme in {"tcp", "ws", "ucx"} and not local:
        warn_user(
            f"{address} is neither encrypted nor authenticated: anybody who reaches it can run "
            "code on its hosts and read your data; use tls:// with a Security of distributed, or "
            "a network that nobody else reaches",
            SecurityWarning,
        )


class DaskTransport:
    """Hosts are the workers of a Dask cluster.

    Parameters
    ----------
    client : distributed.Client
        The connection to its scheduler.
    own : bool
        The client ends with the pool.
    """

    name = "dask"
    hosts = _MOST_HOSTS
    places = 0
    _settings: Settings
    _tell: Callable[[Report], object]

    def __init__(self, client: Client, *, own: bool = False) -> None:
        self.client, self._own = client, own
        self._heads: dict[tuple[int, str], Any] = {}  # futures of large ones, by run and host
        self._workers: dict[str, int] = {}  # local workers of each host; 0 for one that is refused
        self._serving: dict[int, tuple[str, asyncio.Task[None]]] = {}
        self._asked: dict[int, Any] = {}  # futures of Dask, by token
        self._joining: set[asyncio.Future[None]] = set()
        self._keys = itertools.count()
        self._done: list[Any] = []  # futures of Dask that are to be released
        self._timer: asyncio.TimerHandle | None = None
        self._direct = True  # this process reaches the hosts

    def _later(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.client.loop.asyncio_loop)

    def start(self, settings: Settings, tell: Callable[[Report], object]) -> None:
        """Register the plugin; report the workers that are there, and those that come and go."""
        self._settings, self._tell = settings, tell
        self._later(self._begin()).result()

    async def _begin(self) -> None:
        client, pool = self.client, self._settings.pool
        await client.register_plugin(HostPlugin(pool, client.id), name=pool)
        threads: dict[str, int] = await client.scheduler.ncores()
        most = self._settings.workers or _MOST_HOSTS
        self.places = sum(min(most, count) for count in threads.values())
        self._watcher = asyncio.ensure_future(self._watch())

    async def _watch(self) -> None:
        """Report the workers that come and go, and the end of the connection to the scheduler.

        Why by looks: Dask tells nobody of its end, and the only handler of a client's events may be
        the user's.
        """
        while self.client.status not in {"closed", "closing"}:
            with contextlib.suppress(Exception):  # Why: the client may connect again.
                await self._look()
            await asyncio.sleep(_LOOK_SECONDS)
        self._tell(Broken("the client of Dask is closed, or has lost its scheduler"))

    async def _look(self) -> None:
        there = await self.client.scheduler.ncores()
        for worker in [one for one in self._workers if one not in there]:
            self._gone(worker, _LEFT)
        if there.keys() - self._workers:
            # Why again: the scheduler has a worker before that runs.
            running = await self.client.scheduler.ncores_running()
            new = {one: threads for one, threads in running.items() if one not in self._workers}
            self._workers.update(dict.fromkeys(new, 0))
            # Why a task: while a worker does not answer, others may come and go.
            task = asyncio.ensure_future(self._join(new))
            self._joining.add(task)
            task.add_done_callback(self._joining.discard)

    async def _join(self, threads: dict[str, int]) -> None:
        """Compare the versions of workers with those of this process, and report the workers."""
        try:
            found = await self.client.run(_probe, workers=[*threads], on_error="return")
        except Exception as error:  # noqa: BLE001 - they have gone meanwhile
            found = dict.fromkeys(threads, OSError(summarize(error)))
        here = machine()
        for worker, answer in found.items():
            if isinstance(answer, BaseException):
                self._tell(HostDown(worker, f"refused: {summarize(answer)}"))
                if isinstance(answer, OSError):
                    self._workers.pop(worker, None)  # Why: it is asked again if it is there.
                continue
            probe, memory = answer
            difference = self._settings.versions.disagrees(probe.versions)
            if difference is not None:
                self._tell(HostDown(worker, f"refused: {difference}"))
                continue
            count = self._workers[worker] = self._settings.workers or threads[worker]
            self._tell(HostUp(worker, count, probe.machine == here, memory, threads[worker]))

    def _gone(self, worker: str, reason: str) -> None:
        self._workers.pop(worker, None)
        self._drop_heads(lambda key: key[1] == worker)
        for token in [token for token, (host, _) in self._serving.items() if host == worker]:
            self._drop(token)
        self._tell(HostDown(worker, reason))

    def _drop_heads(self, chosen: Callable[[tuple[int, str]], bool]) -> None:
        """Have hosts drop large heads."""
        self._heads = {key: one for key, one in self._heads.items() if not chosen(key)}

    def _drop(self, token: int) -> None:
        """Wait for an answer no longer."""
        _, task = self._serving.pop(token)
        future = self._asked.get(token)
        if future is None:
            task.cancel()
        else:
            future.release()  # Why not cancel the task: Dask would log that its own ones fail.

    # Work

    def send(self, token: int, host: str, work: Span | Submitted, head: Head | None) -> None:
        """Submit a task to a host."""
        self.client.loop.asyncio_loop.call_soon_threadsafe(self._send, token, host, work, head)

    def _send(self, token: int, host: str, work: Span | Submitted, head: Head | None) -> None:
        task = asyncio.ensure_future(self._serve(token, host, work, head))
        self._serving[token] = host, task

    async def _serve(
        self, token: int, host: str, work: Span | Submitted, head: Head | None
    ) -> None:
        try:
            answer = Answer(token, await self._ask(token, host, work, head))
        except asyncio.CancelledError as error:
            self._lost_track(token, host, f"its task was cancelled ({error})")
            return
        except Exception as error:  # noqa: BLE001 - the engine is told
            if type(error).__name__ in _LOST:
                self._lost_track(token, host, summarize(error))
                return
            answer = Answer(token, None, error)
        if self._serving.pop(token, None) is not None:
            self._tell(answer)

    def _lost_track(self, token: int, host: str, reason: str) -> None:
        """Report a host whose task is lost; the next look finds it if it is there."""
        if token in self._serving:  # else its host is gone, or the pool is closed
            self._gone(host, reason)

    async def _ask(self, token: int, host: str, work: Span | Submitted, head: Head | None) -> Any:
        client, settings = self.client, self._settings
        settings = settings._replace(
            pool=f"{settings.pool}@{host}", workers=self._workers.get(host, 1)
        )
        given: Any = work
        if work.nbytes > _INLINE:
            given = await self._scatter(host, work)
        head_there = await self._head(host, head)
        self._release()
        if client.scheduler_comm is not None:
            # Why: Dask holds a task back up to 10 ms if the client has just sent another message.
            client.scheduler_comm.next_deadline = None
        future = client.submit(
            _serve,
            settings,
            given,
            head_there,
            workers=[host],
            allow_other_workers=False,
            pure=False,
            retries=0,
            # Why unique: Dask would answer with the result of an earlier task of the same key.
            key=f"{work.verb}-{next(self._keys)}-{settings.pool}",
        )
        try:
            found = await self._soon(host, future.key)
            if found:
                return found[0]
            self._asked[token] = future
            return await self._result(host, future)
        finally:
            self._asked.pop(token, None)
            self._done += [future, given]
            if self._timer is None:
                loop = asyncio.get_running_loop()
                self._timer = loop.call_later(_RELEASE_SECONDS, self._release)

    async def _soon(self, host: str, key: str) -> list[Any]:
        """Ask a host for the result of a task; return none if the task takes long, or is lost."""
        rpc = self.client.rpc
        if not self._direct or rpc.active > rpc.limit // 2:  # Why: other messages need connections.
            return []
        try:
            return await getattr(rpc(host), self._settings.pool)(key=key) or []
        except Exception as error:  # noqa: BLE001 - Dask's own way reports it
            self._reaches(host, error)
            return []

    async def _result(self, host: str, future: Future) -> Any:
        """Return the result of a task.

        Why not gather it at once: Dask would ask the scheduler for the place, which is known.
        """
        if self._direct:
            await _wait([future])
            found, *_ = await gather_from_workers({future.key: [host]}, rpc=self.client.rpc)
            if future.key in found:
                return found[future.key]
        return await self.client.gather(future, direct=self._direct, asynchronous=True)

    def _release(self) -> None:
        """Have the hosts drop the results and windows that are done with.

        Why not at once: Dask holds back a message that follows another one soon, so the next task
        would wait. Its message takes these along.
        """
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        for one in self._done:
            if isinstance(one, Future):
                one.release()
        self._done.clear()

    async def _head(self, host: str, head: Head | None) -> Any:
        """Return a small head, or the future of a large one on a host; it is sent there once."""
        if head is None:
            return None
        if head.nbytes <= _INLINE:
            return _Sealed(head)
        key = head.run, host
        if key not in self._heads:
            self._heads[key] = asyncio.ensure_future(self._scatter(host, head))
        return await self._heads[key]

    async def _scatter(self, host: str, value: Span | Submitted | Head) -> Any:
        """Send an object to a host; through the scheduler, if there is no other way."""
        options = {"workers": [host], "hash": False, "asynchronous": True}
        if self._direct:
            try:
                (future,) = await self.client.scatter([_Sealed(value)], direct=True, **options)
            except OSError as error:
                if self._reaches(host, error):
                    raise
            else:
                return future
        (future,) = await self.client.scatter([_Sealed(value)], direct=False, **options)
        return future

    def _reaches(self, host: str, error: Exception) -> bool:
        """Return whether this process reaches a host, in spite of an error; note it if not."""
        # Why the names: the connection to a host that dies breaks before its loss is told.
        lost = host not in self._workers or type(error).__name__ in _LOST
        if lost or not isinstance(error, OSError):
            return True
        if self._direct:
            self._direct = False
            warnings.warn(
                f"host {host} cannot be reached from here ({error}), so all data pass through the "
                "scheduler: pass stores, which the hosts open themselves",
                RuntimeWarning,
                stacklevel=1,
            )
        return False

    def stop(self, run: int, hosts: Sequence[str], *, kill: bool) -> None:
        """Tell hosts to stop a run."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._later(self._stop(run, hosts, kill=kill))

    async def _stop(self, run: int, hosts: Sequence[str], *, kill: bool) -> None:
        pool = self._settings.pool
        await self.client.run(
            serving.stop, pool, run, kill=kill, workers=list(hosts), on_error="ignore"
        )

    def forget(self, run: int) -> None:
        """Release the heads of a run."""
        with contextlib.suppress(RuntimeError):
            self.client.loop.asyncio_loop.call_soon_threadsafe(self._forget, run)

    def _forget(self, run: int) -> None:
        self._drop_heads(lambda key: key[0] == run)

    def withdraw(self, token: int) -> None:
        """Do nothing: a host that is told to stop a run ends its later spans at once too."""

    def close(self) -> None:
        """Remove the plugin, which ends the hosts' pools."""
        with contextlib.suppress(Exception):  # Why: the client may be closed already.
            self._later(self._close()).result(_CLOSE_SECONDS)
        if self._own:
            self.client.close()

    async def _close(self) -> None:
        self._watcher.cancel()
        for token in list(self._serving):
            self._drop(token)
        self._heads.clear()
        await self.client.unregister_worker_plugin(self._settings.pool)
        self._release()


class _Sealed:
    """An object that Dask sends as it is: of a tuple it would send each item."""

    def __init__(self, value: Any) -> None:
        self.value = value


def _probe(dask_worker: Any) -> tuple[Probe, int]:
    """Return the facts of a worker's process, and the bytes that it may use; 0 is no limit."""
    return serving.probe(), dask_worker.memory_manager.memory_limit or 0


def _serve(settings: Settings, work: Any, head: Any) -> Any:
    """Serve a span or a call, in a thread of a Dask worker."""
    opened = [one.value if isinstance(one, _Sealed) else one for one in (work, head)]
    return serving.serve(settings, *opened)


class HostFacts(NamedTuple):
    """A worker of Dask, for ``python -m shmpar doctor``.

    Attributes
    ----------
    address, machine : str
        Its address, and the name of its machine.
    near : bool
        It can map memory of this process.
    cpus, threads : int
        CPUs that it may use, and threads of Dask.
    memory_limit : int
        Bytes that Dask lets it use; 0 is no limit, or that of a worker that could not be asked.
    versions : str
        Its versions.
    refused : str
        Why a pool would refuse it; empty if it would not.
    """

    address: str
    machine: str
    near: bool = False
    cpus: int = 0
    threads: int = 0
    memory_limit: int = 0
    versions: str = ""
    refused: str = ""


def inspect(address: str) -> list[HostFacts]:
    """Return the facts of the workers of a scheduler.

    Raises
    ------
    ValueError
        If the address, or the configuration of Dask, cannot lead to a scheduler.
    OSError
        If there is none.
    """
    # Why first: a client that cannot be made takes 20 seconds to end, and prints an error.
    scheme, place = parse_address(address)
    get_backend(scheme)
    parse_host_port(place)
    if scheme == "tls" and Security().get_connection_args("client")["ssl_context"] is None:
        raise ValueError("tls:// needs certificates: set distributed.comm.tls in Dask's settings")
    warn_if_open(f"{scheme}://{place}")
    found = []
    with Client(address, set_as_default=False, timeout=_CLOSE_SECONDS) as client:
        threads: dict[str, int] = client.nthreads()
        answers = client.run(_probe, on_error="return") if threads else {}
    for worker, answer in answers.items():
        host = HostFacts(worker, get_address_host(worker), threads=threads.get(worker, 0))
        if isinstance(answer, BaseException):
            found.append(host._replace(refused=summarize(answer)))
            continue
        probe, limit = answer
        host = host._replace(
            machine=probe.name,
            near=probe.machine == machine(),
            cpus=probe.cpus,
            memory_limit=limit,
            versions="Python {}, NumPy {}, shmpar {}".format(*probe.versions),
            refused=Versions.here().disagrees(probe.versions) or "",
        )
        found.append(host)
    return found
