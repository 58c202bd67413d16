"""Which chunks of a run are done, as it becomes known, for whoever follows it.

Imports nothing of the package.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator

__all__ = ["News"]


class News:
    """Which chunks of a run are done.

    Attributes
    ----------
    chunks : list of int
        Their numbers, in the order in which they were heard of.
    complete : bool
        Whether no more will come.
    """

    def __init__(self) -> None:
        self.chunks: list[int] = []
        self.complete = False
        self._changed = threading.Condition()

    def add(self, chunks: Iterable[int], *, last: bool = False) -> None:
        """Tell of chunks."""
        with self._changed:
            self.chunks.extend(chunks)
            self.complete = self.complete or last
            self._changed.notify_all()

    def __iter__(self) -> Iterator[int]:
        """The chunks, each as soon as it is heard of; ends when no more will come."""
        given = 0
        while fresh := self._after(given):
            given += len(fresh)
            yield from fresh

    def _after(self, position: int) -> list[int]:
        """The chunks from a place on; waits until there is one, or there will be none."""
        with self._changed:
            self._changed.wait_for(lambda: len(self.chunks) > position or self.complete)
            return self.chunks[position:]
