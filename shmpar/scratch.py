"""Small outputs: what the workers say of those that they put into the ledger's scratch.

Imports ledger, outputs and plan.

Guarantees
----------
- What lies in the scratch counts only if a worker has lived to say what it is.
- All workers must say the same; the first that says otherwise has failed on its first chunk.
"""

from __future__ import annotations

from shmpar.ledger import DONE, PENDING, Ledger
from shmpar.outputs import Outputs
from shmpar.placement import ResultError
from shmpar.plan import Announcement, Failure

__all__ = ["Scratch"]


class Scratch:
    """The small outputs of one run."""

    def __init__(self) -> None:
        self._said: Announcement | None = None
        self._last_words: set[int] = set()
        self._agreed = True

    def lost(self, digest: int) -> None:
        """A worker has died that took the outputs for what has this digest (0: for nothing)."""
        if digest:
            self._last_words.add(digest)

    def hear(self, announcement: Announcement) -> Failure | None:
        """Take what a worker says; if it is not what another has said, its chunk has failed."""
        if self._said is None:
            self._said = announcement
            return None
        reason = announcement.disagrees(self._said)
        self._agreed = self._agreed and reason is None
        return None if reason is None else Failure(announcement.chunk, ResultError(reason), None)

    def void(self, ledger: Ledger) -> None:
        """Nobody works: what is done counts only if all who wrote there meant the same."""
        meant = set() if self._said is None else {self._said.digest()}
        if self._said is None or not self._agreed or not self._last_words <= meant:
            ledger.status[ledger.status == DONE] = PENDING
        self._last_words.clear()

    def take(self, ledger: Ledger, outputs: Outputs) -> None:
        """Copy it to where it stays."""
        if self._said is not None:
            small = ledger.carve(self._said.outputs) or ()
            for array, written in zip(outputs.allocate(self._said), small, strict=True):
                array[...] = written
