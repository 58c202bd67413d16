"""Give logging records of workers to the handlers of this process, in order.

Guarantees
----------
- Handlers run in a callback thread, one record at a time, never in the pool thread.
- The result of a run or call waits for the records that came before it, at most a second.
- A bounded number of records waits for slow handlers; a warning counts the others.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from functools import partial
from typing import Final

from shmpar.ipc.protocol import Logged
from shmpar.runtime.futures import CallbackThreads, Latch, handling
from shmpar.worker.logs import handle

_MOST_WAITING: Final = 10_000


class LogRelay:
    """Hands records over to a callback thread, a batch at a time; the pool thread owns it.

    Parameters
    ----------
    callbacks : CallbackThreads
        They run the handlers.
    post : callable
        Has a function called in the pool thread.
    """

    def __init__(
        self, callbacks: CallbackThreads, post: Callable[[Callable[[], None]], None]
    ) -> None:
        self._callbacks, self._post = callbacks, post
        self._waiting: list[Logged] = []
        self._dropped = 0
        self._next = Latch()  # set when the records that wait are handled
        self._current: Latch | None = None  # of the batch that a thread handles

    def add(self, message: Logged) -> None:
        """Take a record."""
        if len(self._waiting) < _MOST_WAITING:
            self._waiting.append(message)
        else:
            self._dropped += 1

    def pending(self) -> Latch | None:
        """Return a latch that is set when all records so far are handled; None if they are."""
        return self._next if self._waiting else self._current

    def flush(self, *, last: bool = False) -> None:
        """Have the records handled, unless a batch is in progress; the `last` one waits for it."""
        before = self._current
        if not self._waiting or (before is not None and not last):
            return
        batch, self._waiting = self._waiting, []
        if self._dropped:
            text = f"{self._dropped:,} records of workers were dropped: the handlers are too slow"
            fields = {"name": "shmpar", "msg": text, "levelno": 30, "levelname": "WARNING"}
            batch.append(Logged(fields, {}))
            self._dropped = 0
        self._current, self._next = self._next, Latch()
        self._callbacks.run(partial(self._handle, batch, before, self._current))

    def _handle(self, batch: list[Logged], before: Latch | None, done: Latch) -> None:
        """Handle a batch, in a callback thread."""
        try:
            if before is not None:
                before.wait()
            handling.records = True
            for message in batch:
                try:
                    handle(message)
                except Exception:  # noqa: BLE001 - a handler is the user's code
                    # Why the futures' logger: it is where errors of callbacks are reported.
                    futures = logging.getLogger("concurrent.futures")
                    futures.exception("exception in a handler of the record %r", message.fields)
        finally:
            handling.records = False
            done.set()
            # Why suppressed: after the end of the pool there is no batch to follow.
            with contextlib.suppress(RuntimeError):
                self._post(self._finished)

    def _finished(self) -> None:
        if self._current is not None and self._current.is_set:
            self._current = None
        self.flush()
