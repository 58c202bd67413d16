"""Tells workers when a segment that they map is gone.

Imports link and segment.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping

from shmpar.engines.link import Link
from shmpar.segment import Segment

__all__ = ["Watch"]


class Watch:
    """Watches the segments that were sent to workers.

    Parameters
    ----------
    links : mapping of int to Link
        The workers, as they come and go.
    """

    def __init__(self, links: Mapping[int, Link]) -> None:
        self._links = links
        self._subscribed: set[int] = set()

    def over(self, segments: Iterable[Segment]) -> None:
        """Have workers told when any of these is gone."""
        for segment in segments:
            self.add(segment)

    def add(self, segment: Segment) -> None:
        """Have workers told when this one is gone."""
        if segment.key not in self._subscribed:
            self._subscribed.add(segment.key)
            segment.subscribe(_Forgetter(self))

    def forget(self, key: int) -> None:
        """Tell the workers to drop a segment; takes no lock, so a finalizer may call it."""
        self._subscribed.discard(key)
        for link in list(self._links.values()):
            link.forget(key)


class _Forgetter:
    """Tells a watch, as long as there is one, that a segment is gone."""

    def __init__(self, watch: Watch) -> None:
        self._watch = weakref.ref(watch)

    def __call__(self, key: int) -> None:
        watch = self._watch()
        if watch is not None:
            watch.forget(key)
