"""One worker first: small calls that are made again and again do not wake all workers.

Imports nothing of the package.

To wake a worker costs the parent some 50 us, and a second one that finds nothing left to do takes
the parent's processor away when it is wanted most. So the second and later workers are sent a plan
of which all chunks together took less than that last time only if the first worker has not been
through with it in :data:`PATIENCE`.

Guarantees
----------
- What is held back is sent after :data:`PATIENCE` at the latest, and at once when anything else
  happens: a call whose function has become slow loses no more than that.
"""

from __future__ import annotations

from collections import OrderedDict

__all__ = ["PATIENCE", "Trial"]

PATIENCE = 0.5e-3
"""Seconds that one worker gets for a small call."""

_SMALL = 0.2e-3  # seconds in all chunks
_REMEMBERED = 64  # calls


class Trial:
    """Which call is tried with one worker now, and which were small.

    Attributes
    ----------
    run : int or None
        The run whose plan one worker was sent, and others were not.
    waited : bool
        Whether its worker has had its time.
    """

    def __init__(self) -> None:
        self.run: int | None = None
        self.waited = False
        self._small: OrderedDict[int, None] = OrderedDict()
        self._seconds: dict[int, float] = {}

    def begin(self, run: int, call: int) -> None:
        """Hold the run back, if its call was small the last time."""
        if call in self._small:
            self.run, self.waited = run, False

    def spent(self, run: int, seconds: float) -> None:
        """A worker has spent that long in the chunks of a run."""
        self._seconds[run] = self._seconds.get(run, 0.0) + seconds

    def end(self, run: int, call: int) -> None:
        """The run is over; remember whether it was small."""
        if self.run == run:
            self.run = None
        # Nothing is known of a run that no worker has reported on.
        if self._seconds.pop(run, 1.0) < _SMALL:
            self._small[call] = None
            self._small.move_to_end(call)
            if len(self._small) > _REMEMBERED:
                self._small.popitem(last=False)
        else:
            self._small.pop(call, None)
