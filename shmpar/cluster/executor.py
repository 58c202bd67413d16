"""The transport of any `concurrent.futures.Executor`: a span is a call of :func:`host.serve`.

An executor does not tell its processes apart. So its hosts are numbers, as many as calls may be in
flight, and each call may reach any process. A process that lacks the head of a run says so.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, wait
from functools import partial
from typing import Any

from shmpar.cluster import host as serving
from shmpar.cluster.messages import Head, Missing, Probe, Settings, Span, Submitted, machine
from shmpar.cluster.transport import LANES, Answer, Broken, HostUp, Report
from shmpar.errors import summarize

_SMALL_HEAD = 64 << 10
_CLOSE_SECONDS = 5.0


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

    def __init__(self, executor: Executor, hosts: int) -> None:
        self.hosts = self.places = hosts
        self._executor = executor
        self._settings: Settings | None = None
        self._tell: Callable[[Report], object] = lambda _: None
        # Why a thread: an executor may fork its processes in the thread that submits, and a child
        # of the pool thread would take itself for a worker.
        self._tasks = queue.SimpleQueue[Callable[[], None] | None]()
        self._thread: threading.Thread | None = None
        self._futures: dict[int, Future[Any]] = {}
        self._sent: dict[int, int] = {}  # spans of each run that had the head
        self._broken = False

    def start(self, settings: Settings, tell: Callable[[Report], object]) -> None:
        """Ask a process for its facts; then all hosts are there."""
        self._settings, self._tell = settings, tell
        self._thread = threading.Thread(target=self._submit, name="shmpar-executor", daemon=True)
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
        assert self._settings is not None
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
            name = f"host-{number}"
            self._tell(HostUp(name, self._settings.workers, near, name))

    def send(self, token: int, host: str, work: Span | Submitted, head: Head | None) -> None:
        """Submit a call; leave out a large head that the processes are likely to have."""
        if head is not None:
            self._sent[head.run] = self._sent.get(head.run, 0) + 1
            large = len(head.function) + sum(one.nbytes for one in head.held) > _SMALL_HEAD
            known = self._sent[head.run] > self.hosts * LANES
            self._tasks.put(
                partial(self._call, token, work, head, None if large and known else head)
            )
        else:
            self._tasks.put(partial(self._call, token, work, None, None))

    def _call(
        self, token: int, work: Span | Submitted, head: Head | None, given: Head | None
    ) -> None:
        if self._broken:
            return
        assert self._settings is not None
        future = self._executor.submit(serving.serve, self._settings, work, given)
        self._futures[token] = future
        future.add_done_callback(partial(self._answered, token, work, head))

    def _answered(
        self, token: int, work: Span | Submitted, head: Head | None, future: Future[Any]
    ) -> None:
        self._futures.pop(token, None)
        try:
            value = future.result()
        except (BrokenExecutor, CancelledError) as error:
            if isinstance(error, BrokenExecutor):
                self._break(error)
            self._tell(Answer(token, None, error))
            return
        except BaseException as error:  # noqa: BLE001 - an executor may raise anything
            self._tell(Answer(token, None, error))
            return
        if isinstance(value, Missing) and value.part == "head" and head is not None:
            self._tasks.put(partial(self._call, token, work, head, head))
            return
        self._tell(Answer(token, value, None))

    def stop(self, run: int, hosts: Sequence[str], *, kill: bool) -> None:
        """Do nothing: hosts on this machine look at the control memory, others end their spans."""

    def forget(self, run: int) -> None:
        """Forget a run."""
        self._sent.pop(run, None)

    def withdraw(self, token: int) -> None:
        """Cancel a call that has not begun."""
        future = self._futures.get(token)
        if future is not None:
            future.cancel()

    def close(self) -> None:
        """Ask the processes to end their pools; the control memory tells those on this machine."""
        self._tasks.put(None)
        if self._thread is not None:
            self._thread.join()
        assert self._settings is not None
        asked: list[Future[Any]] = []
        for future in list(self._futures.values()):
            future.cancel()
        with contextlib.suppress(Exception):
            pool = self._settings.pool
            asked.extend(self._executor.submit(serving.close, pool) for _ in range(self.hosts))
        wait(asked, _CLOSE_SECONDS)
        for future in asked:
            future.cancel()
