"""Which chunks of a run are done, as it becomes known, for whoever follows it.

Imports nothing of the package.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

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

    def after(self, position: int) -> list[int]:
        """The chunks from a place on; waits until there is one, or there will be none."""
        with self._changed:
            self._changed.wait_for(lambda: len(self.chunks) > position or self.complete)
            return self.chunks[position:]
