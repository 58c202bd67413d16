"""The bell: what a worker process waits for while there is no message.

Imports the standard library.

To be put to sleep and woken again costs a worker, and its parent, more than all else of a small
call. Who makes one such call most often makes the next at once; so after one a worker looks for
the bell again and again for :data:`BRISK_SECONDS` before it goes to sleep.

Guarantees
----------
- Only a worker that has computed a small run alone looks out, so that a pool keeps one processor
  busy at most; with a single processor none does.
"""

from __future__ import annotations

import os
import select
from time import perf_counter

__all__ = ["Bell"]

BRISK_SECONDS = 1e-3
"""How long a worker looks for the next call after a small one."""

SMALL_SECONDS = 0.2e-3
"""What all chunks of a small call take together."""


class Bell:
    """Waits for messages to be told of.

    Parameters
    ----------
    fd : int
        An event counter, which counts the messages; -1: there is none, wait on the socket.
    """

    __slots__ = ("_brisk", "_due", "_fd", "_poll", "_several")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._due = 0
        self._brisk = False
        self._several = hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) > 1
        self._poll = select.poll()
        if fd >= 0:
            self._poll.register(fd, select.POLLIN)

    def computed(self, seconds: float, *, alone: bool) -> None:
        """A run is through here, after so long in its chunks; perhaps no other worker had any."""
        self._brisk = alone and seconds < SMALL_SECONDS and self._several

    def await_message(self) -> None:
        """Return when there is a message to receive."""
        if self._fd < 0:
            return
        if not self._due:
            if self._brisk:
                self._look_out()
            self._due = os.eventfd_read(self._fd)
        self._due -= 1

    def _look_out(self) -> None:
        self._brisk, until = False, perf_counter() + BRISK_SECONDS
        while not self._poll.poll(0) and perf_counter() < until:
            pass
