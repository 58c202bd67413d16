"""Waiting for worker processes: their sockets, their deaths, and a wake-up from another thread.

Imports link, segment and cpus.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import time

from shmpar.cpus import affinity_cpus
from shmpar.engines.link import Link
from shmpar.interrupts import allowed
from shmpar.segment import descriptors

__all__ = ["Ears"]


class Ears:
    """Listens to links."""

    def __init__(self) -> None:
        self._ready: list[tuple[selectors.SelectorKey, int]] = []
        self._alone = affinity_cpus() == 1
        descriptors.fill_standard()
        self._selector = descriptors.opened(selectors.DefaultSelector)
        self._wake_read, self._wake_write = descriptors.opened(os.pipe)
        for fd in (self._wake_read, self._wake_write):
            os.set_blocking(fd, False)
        self._selector.register(self._wake_read, selectors.EVENT_READ)

    def add(self, link: Link) -> None:
        """Listen to a worker, and for its death."""
        launched = link.launched
        self._selector.register(launched.wire.fileno(), selectors.EVENT_READ, link)
        if launched.pidfd >= 0:
            self._selector.register(launched.pidfd, selectors.EVENT_READ, link)

    def drop(self, link: Link) -> None:
        """Listen to it no more."""
        self.drop_wire(link)
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(link.launched.pidfd)

    def drop_wire(self, link: Link) -> None:
        """Wait for its death alone: the end of its file would be reported for ever."""
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(link.launched.wire.fileno())

    def wait(self, timeout: float | None) -> None:
        """Block until there is something, or for `timeout` seconds, up to whole milliseconds."""
        with allowed():
            self._ready = self._selector.select(timeout)

    def wait_briefly(self, seconds: float) -> bool:
        """Wait for less than a millisecond; return whether there is something.

        This thread looks again and again, and lets others of its process run meanwhile: to be put
        to sleep and woken again would cost it, and its processor, more than that. With a single
        processor it would only keep the worker from it, and it sleeps. An interrupt waits until
        it is over.
        """
        if self._alone:
            self.wait(seconds)
            return bool(self._ready)
        until = time.perf_counter() + seconds
        while not (ready := self._selector.select(0)) and time.perf_counter() < until:
            pass
        self._ready = ready
        return bool(ready)

    def heard(self) -> list[tuple[Link, bool]]:
        """Workers that have something to say, and whether it is that they are dead."""
        ready, self._ready = self._ready, []
        found = []
        for key, _ in ready or self._selector.select(0):
            link: Link | None = key.data
            if link is None:
                os.read(self._wake_read, 1024)
            else:
                found.append((link, key.fd == link.launched.pidfd))
        return found

    def wake(self) -> None:
        """End another thread's :meth:`wait`."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_write, b"\0")

    def close(self) -> None:
        """Close the descriptors."""
        self._selector.close()
        os.close(self._wake_read)
        os.close(self._wake_write)
