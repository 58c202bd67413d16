"""The contract between the engine of many machines and a transport; the transport of an executor.

Any :class:`concurrent.futures.Executor` will do: a span is a call of :func:`host.serve`. It does
not tell its processes apart. So its hosts are numbers, as many as calls may be in flight, and each
call may reach any process. A process that lacks the head of a run says so.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, wait
from functools import partial
from typing import Any, NamedTuple, Protocol

from shmpar.cluster import host as serving
from shmpar.cluster import spans
from shmpar.cluster.messages import Head, Probe, Settings, Span, Submitted, machine
from shmpar.errors import summarize

_CLOSE_SECONDS = 5.0


# Reports of a transport


class HostUp(NamedTuple):
    """A host is there.

    Attributes
    ----------
    host : str
        Its name in this transport.
    workers : int
        Its local workers.
    near : bool
        It maps memory of this process.
    memory : int
        Bytes that it may use; 0 if there is no limit.
    calls : int
        Pieces of work that its process does at a time.
    """

    host: str
    workers: int
    near: bool
    memory: int = 0
    calls: int = 1

    @property
    def most_bytes(self) -> int:
        """Bytes that a span may take along: a tenth of its memory at most."""
        return min(spans.SPAN_BYTES, self.memory // 10 or spans.SPAN_BYTES)

    @property
    def most_calls(self) -> int:
        """Calls that it makes at a time."""
        return min(self.workers, self.calls)


class HostDown(NamedTuple):
    """A host is gone, or leaves."""

    host: str
    reason: str


class Answer(NamedTuple):
    """The result of a piece of work, or the exception of the transport."""

    token: int
    value: Any
    error: BaseException | None = None


class Broken(NamedTuple):
    """No host will come any more."""

    reason: str


Report = HostUp | HostDown | Answer | Broken


class Transport(Protocol):
    """Carries work to hosts and reports on them. Any thread may be told; none may wait.

    Attributes
    ----------
    name : str
        As the engine's name.
    hosts : int
        Most hosts at a time.
    places : int
        Calls that the hosts which were there at the start make at a time.
    """

    name: str
    hosts: int
    places: int

    def start(self, settings: Settings, tell: Callable[[Report], object]) -> None:
        """Begin to look for hosts; report by `tell`."""

    def send(self, token: int, host: str, work: Span | Submitted, head: Head | None) -> None:
        """Send work to a host; its answer has the token. `head` is one that the host may lack."""

    def stop(self, run: int, hosts: Sequence[str], *, kill: bool) -> None:
        """Tell hosts to stop a run, as far as this transport can."""

    def forget(self, run: int) -> None:
        """Drop the objects that were kept for a run."""

    def withdraw(self, token: int) -> None:
        """Cancel work that no host has begun, as far as this transport can."""

    def close(self) -> None:
        """End the hosts' pools, and wait for it if they can be reached."""


class ExecutorTransport:
    """Hosts are the processes (or threads) of an executor.

    Parameters
    ----------
    executor : Executor
        The user's; it is not shut down here.
    hosts : int
        Calls in flight at a time.
    """

    name = "executor"
    _settings: Settings
    _tell: Callable[[Report], object]

    def __init__(self, executor: Executor, hosts: int) -> None:
        self.hosts = self.places = hosts
        self._executor = executor
        # Why a thread: an executor may fork its processes in the thread that submits. A child of
        # the pool thread would take itself for a worker.
        self._tasks = queue.SimpleQueue[Callable[[], None] | None]()
        self._thread = threading.Thread(target=self._submit, name="shmpar-executor", daemon=True)
        self._futures: dict[int, Future[Any]] = {}
        self._broken = False

    def start(self, settings: Settings, tell: Callable[[Report], object]) -> None:
        """Ask a process for its facts; then all hosts are there."""
        self._settings, self._tell = settings, tell
        self._thread.start()
        self._tasks.put(self._probe)

    def _submit(self) -> None:
        """Submit calls, in a thread of their own."""
        while (task := self._tasks.get()) is not None:
            try:
                task()
            except Exception as error:  # noqa: BLE001 - an executor may raise anything
                self._break(error)
            del task  # Why: while this thread waits, its frame keeps no input alive.

    def _break(self, error: BaseException) -> None:
        if not self._broken:
            self._broken = True
            self._tell(Broken(f"the executor is broken: {summarize(error)}"))

    def _probe(self) -> None:
        self._executor.submit(serving.probe).add_done_callback(self._probed)

    def _probed(self, future: Future[Any]) -> None:
        try:
            found: Probe = future.result()
        except BaseException as error:  # noqa: BLE001 - an executor may raise anything
            self._break(error)
            return
        difference = self._settings.versions.disagrees(found.versions)
        if difference is not None:
            self._tell(Broken(f"refused: {difference}"))
            return
        near = found.machine == machine()
        for number in range(self.hosts):
            self._tell(HostUp(f"host-{number}", self._settings.workers, near))

    def send(self, token: int, host: str, work: Span | Submitted, head: Head | None) -> None:
        """Submit a call."""
        self._tasks.put(partial(self._call, token, work, head))

    def _call(self, token: int, work: Span | Submitted, head: Head | None) -> None:
        if not self._broken:
            future = self._executor.submit(serving.serve, self._settings, work, head)
            self._futures[token] = future
            future.add_done_callback(partial(self._answered, token))

    def _answered(self, token: int, future: Future[Any]) -> None:
        self._futures.pop(token, None)
        try:
            answer = Answer(token, future.result())
        except BaseException as error:  # noqa: BLE001 - an executor may raise anything
            if isinstance(error, BrokenExecutor):
                self._break(error)
            answer = Answer(token, None, error)
        self._tell(answer)

    def stop(self, run: int, hosts: Sequence[str], *, kill: bool) -> None:
        """Do nothing: hosts on this machine look at the control memory, others end their spans."""

    def forget(self, run: int) -> None:
        """Do nothing: nothing is kept."""

    def withdraw(self, token: int) -> None:
        """Cancel a call that has not begun."""
        future = self._futures.get(token)
        if future is not None:
            future.cancel()

    def close(self) -> None:
        """Ask the processes to end their pools; the control memory tells those on this machine."""
        self._tasks.put(None)
        self._thread.join()
        asked: list[Future[Any]] = []
        for future in list(self._futures.values()):
            future.cancel()
        with contextlib.suppress(Exception):
            pool = self._settings.pool
            asked.extend(self._executor.submit(serving.close, pool) for _ in range(self.hosts))
        wait(asked, _CLOSE_SECONDS)
        for future in asked:
            future.cancel()
